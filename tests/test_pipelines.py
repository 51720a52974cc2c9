"""Naive model parallelism and GPipe: weights, seconds and bytes against serial SGD and formulas."""

import itertools

import numpy as np
import pytest
import torch
from conftest import close, models, small
from torch.nn import functional as F

from survey_lib.errors import UsageError
from survey_lib.methods.pipelines import gpipe, naive_layerwise_mp, single_device
from survey_lib.models import cnn, mlp
from survey_lib.pipeline import one_f_one_b, split
from survey_lib.presets import Device, Link
from survey_lib.world import World

FREE = Link(0.0, np.inf, np.inf)
HIDDEN = (24, 20, 16)
ALL_CUTS = list(itertools.chain(*(itertools.combinations((1, 2, 3), k) for k in range(4))))


def task(*hidden, **how):
    return small(1, network=mlp(*(hidden or HIDDEN)), **how)


def equal(speed):
    """A device of so many FLOP/s."""
    return Device(speed, 1e9, 1.0, 2.0, 1.5, "assumed")


def serial_sgd(task, steps, *, eta, B, seed=0):
    """(steps + 1, d): the whole network, the whole batch, one autograd call a step."""
    x, out = task.init(), []
    for r in range(steps + 1):
        out.append(x)
        y, (images, labels) = x.clone().requires_grad_(), task.batch(B, seed, r)
        x = x - eta * torch.autograd.grad(F.cross_entropy(task.network(y, images), labels), y)[0]
    return torch.stack(out)


@pytest.mark.parametrize("cuts", ALL_CUTS)
def test_weights_equal_serial_sgd(cuts):
    t, how = task(), dict(eta=0.2, B=14, seed=3)
    want = serial_sgd(t, 50, **how)
    K = len(cuts) + 1
    close(models(naive_layerwise_mp, 50, task=t, world=World(K), cuts=cuts, **how), want)
    for M, again in ((4, False), (5, True)):  # 14 samples: unequal micro-batches
        got = models(gpipe, 50, task=t, world=World(K), cuts=cuts, M=M, rematerialise=again, **how)
        close(got, want)
    assert (want[-1] - want[0]).abs().max() > 0.05  # it did move


def test_weights_equal_serial_sgd_for_convolutions():
    t, how = small(1, network=cnn(3, 4)), dict(eta=0.1, B=10)
    got = models(gpipe, 5, task=t, world=World(3), cuts=(1, 2), M=3, **how)
    close(got, serial_sgd(t, 5, **how))


def test_one_micro_batch_is_naive_model_parallelism():
    t, how = task(), dict(cuts=(1, 3), eta=0.2, B=16)
    a, b = World(3, record=True), World(3, record=True)
    one = models(gpipe, 4, task=t, world=a, M=1, **how)
    assert torch.equal(one, models(naive_layerwise_mp, 4, task=t, world=b, **how))
    assert a.totals() == b.totals() and a.timeline == b.timeline


def test_one_stage_is_gradient_accumulation_in_the_time_of_one_device():
    t, how, B = task(), dict(eta=0.2), 14
    x, want = t.init(), []
    for r in range(4):
        want.append(x)
        images, labels = t.batch(B, 0, r)
        y = x.clone().requires_grad_()
        for part in range(0, B, 2):  # seven backward calls into one gradient
            z = t.network(y, images[part : part + 2])
            (F.cross_entropy(z, labels[part : part + 2]) * 2 / B).backward()
        x = x - how["eta"] * y.grad
    world, one = World(1), World(3)
    close(models(gpipe, 3, task=t, world=world, cuts=(), M=7, B=B, **how), torch.stack(want))
    close(models(single_device, 3, task=t, world=one, device=2, B=B, **how), torch.stack(want))
    work = 3 * B * sum(v.forward + v.backward for v in t.network.layers)
    assert world.clock == pytest.approx(work / world.speed[0], rel=1e-12)
    assert one.clock == pytest.approx(world.clock, rel=1e-12)
    assert world.totals()["bytes"] == 0 and one.busy.tolist() == [0, 0, one.clock]


def test_other_order_same_model():
    t, how = task(), dict(cuts=(1, 2, 3), M=6, eta=0.2, B=16)
    a, b = World(4), World(4)
    flush = models(gpipe, 20, task=t, world=a, schedule=one_f_one_b, **how)
    close(flush, models(gpipe, 20, task=t, world=b, **how))
    assert a.totals()["bytes"] == b.totals()["bytes"]


@pytest.mark.parametrize("cuts", ALL_CUTS)
def test_naive_seconds_and_bytes(cuts):
    """T = sum_k (f_k + b_k) + 2 sum over cuts (latency + bytes / bandwidth). 2 B a_k numbers of 8
    bytes per cut and step, whatever the number of parameters."""
    t, steps, B, K = task(), 3, 16, len(cuts) + 1
    speed = np.array([4.0, 2.0, 1.0, 1.0])[:K] * 1e9
    world = World(K, device=[equal(s) for s in speed], link=Link(0.001, 2e6, 5e6))
    models(naive_layerwise_mp, steps, task=t, world=world, cuts=cuts, eta=0.1, B=B)
    edges = (0, *cuts, 4)
    work = [t.network.layers[a:b] for a, b in itertools.pairwise(edges)]
    seconds = [B * sum(v.forward + v.backward for v in w) for w in work] / speed
    sent = [8 * B * HIDDEN[c - 1] for c in cuts]
    T = seconds.sum() + 2 * sum(0.001 + size / 2e6 for size in sent)
    assert world.clock == pytest.approx(steps * T, rel=1e-12)
    assert world.totals()["bytes"] == steps * 2 * sum(sent)
    assert world.messages == steps * 2 * len(cuts)
    assert world.busy == pytest.approx(steps * seconds, rel=1e-12)


def test_naive_busy_shares_add_up_to_one_with_free_links():
    t = task()
    for device in (equal(1e9), [equal(s) for s in (4e9, 2e9, 1e9, 1e9)]):
        world = World(4, device=device, link=FREE)
        models(naive_layerwise_mp, 2, task=t, world=world, cuts=(1, 2, 3), eta=0.1, B=8)
        assert world.busy.sum() / world.clock == pytest.approx(1, rel=1e-12)


def test_naive_is_no_faster_than_one_device():
    t, how = task(), dict(eta=0.1, B=8)
    alone, free, wired = World(1), World(4, link=FREE), World(4, link="lan")
    models(single_device, 2, task=t, world=alone, **how)
    for world in (free, wired):
        models(naive_layerwise_mp, 2, task=t, world=world, cuts=(1, 2, 3), **how)
    assert free.clock == pytest.approx(alone.clock, rel=1e-12)
    assert wired.clock > alone.clock


def test_gpipe_seconds_and_bytes_with_free_links():
    """T = sum f + (M - 1) max f + sum b + (M - 1) max b, of micro-batches; bytes as naive."""
    t, B, cuts, speed = task(), 16, (1, 2, 3), 1e9
    stages = split(t.network, cuts, t.dtype)
    f, b = np.array([(s.forward, s.backward) for s in stages]).T / speed
    for M, again in itertools.product((1, 2, 4, 8, 16), (False, True)):
        world = World(4, device=equal(speed), link=FREE)
        models(gpipe, 2, task=t, world=world, cuts=cuts, M=M, eta=0.1, B=B, rematerialise=again)
        back = b + f * again
        T = f.sum() + (M - 1) * f.max() + back.sum() + (M - 1) * back.max()
        assert world.clock == pytest.approx(2 * B / M * T, rel=1e-9)
        assert world.totals()["bytes"] == 2 * 2 * B * 8 * sum(HIDDEN)


def test_slow_links_make_the_best_number_of_micro_batches_finite():
    t, clock = task(128, 128, 128), []
    for M in (1, 4, 64):
        world = World(4, device=equal(1e9), link=Link(0.005, 1.25e6, 1.25e6))
        models(gpipe, 1, task=t, world=world, cuts=(1, 2, 3), M=M, eta=0.1, B=64)
        clock.append(world.clock)
    assert clock[1] < clock[0] < clock[2]


def test_stages_may_sit_anywhere():
    t, how = task(), dict(cuts=(2,), M=2, eta=0.1, B=8)
    world = World(5)
    close(
        models(gpipe, 3, task=t, world=world, devices=(4, 1), **how),
        models(gpipe, 3, task=t, world=World(2), **how),
    )
    assert np.flatnonzero(world.busy).tolist() == np.flatnonzero(world.up).tolist() == [1, 4]


def test_what_was_yielded_and_the_global_generator_stay_untouched():
    t, state = task(), torch.get_rng_state()
    method = gpipe(t, World(2), cuts=(2,), M=2, eta=0.5, B=8)
    x, _ = next(method)
    copy = x.clone()
    assert torch.equal(x, t.init())
    next(method)
    assert torch.equal(x, copy) and torch.equal(torch.get_rng_state(), state)


def test_usage_errors():
    t = task()
    for wrong in (dict(cuts=(9,), M=2), dict(cuts=(1,), M=9), dict(cuts=(1, 2), M=2)):
        with pytest.raises(UsageError):
            models(gpipe, 1, task=t, world=World(2), eta=0.1, B=8, **wrong)
