import pickle
from heapq import heappop, heappush
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import close, models, same_data, small, values

from survey_lib.evidence.run import final, run
from survey_lib.methods.server_async import constant, fedasync, hinge, polynomial
from survey_lib.methods.server_sync import fedavg
from survey_lib.partition import quantity, shards
from survey_lib.presets import DEVICES, Device, Link
from survey_lib.training import Task, train, work
from survey_lib.world import World, loguniform

HOW = dict(E=1, B=10, eta=0.2)


def devices(*speeds):
    return [Device(s, 1e9, 1, 2, 1.5, "test") for s in speeds]


# ---- s(d) --------------------------------------------------------------------------------------


def test_penalties_by_hand():
    assert [s(0) for s in (constant(), polynomial(), hinge())] == [1, 1, 1]
    assert constant()(50) == 1
    assert polynomial(0.5)(3) == pytest.approx(1 / 2)  # (3 + 1)^-1/2
    assert polynomial(2)(1) == pytest.approx(1 / 4)
    assert hinge(10, 4)(4) == 1
    assert hinge(10, 4)(5) == pytest.approx(1 / 11)  # 1 / (a + 1)
    assert hinge(10, 4)(6) == pytest.approx(1 / 21)
    assert hinge(10, 4)(4 + 1e-9) == pytest.approx(1, abs=1e-7)  # the +1 makes it continuous


@pytest.mark.parametrize("s", [constant(), polynomial(), hinge()])
def test_penalties_fall_and_can_be_sent_to_other_processes(s):
    found = [pickle.loads(pickle.dumps(s))(d) for d in range(20)]
    assert found == [s(d) for d in range(20)]
    assert all(0 < b <= a <= 1 for a, b in pairwise(found))


# ---- fedasync ----------------------------------------------------------------------------------


def test_one_device_with_alpha_1_is_sequential_local_sgd():
    task = small(n=1, samples=45)
    how = dict(alpha=1.0, s=constant(), rho=0.0)
    found = values(fedasync, 4, task=task, **how, **HOW)
    x = task.init()
    for t, (model, extra) in enumerate(found):
        close(model, x)
        assert extra == {"staleness": 0}
        x = train(task, [0], x, seed=(0, t), **HOW)[0]
    close(models(fedasync, 4, task=task, **how, **HOW), models(fedavg, 4, task=task, S=1, **HOW))


def test_alpha_0_moves_nothing():
    found = models(fedasync, 10, alpha=0.0, **HOW)
    assert (found == found[0]).all()


@pytest.mark.parametrize("s", [constant(), polynomial(), hinge(1, 1)])
@pytest.mark.parametrize("active", [None, 2])
def test_every_step_of_the_algorithm(s, active):
    """x <- (1 - a) x + a y, a = alpha s(t - tau), with y trained at once where the device
    starts: only the order of the visits is taken from the world."""
    task = small(partition=quantity(1.0))
    setting = dict(spread=loguniform(10), seed=1)
    found = values(
        fedasync, 25, task=task, world=World(6, **setting), s=s, active=active, rho=0.5, **HOW
    )
    assert found[0][1] == {"staleness": 0}
    x, t, y, tau = task.init(), 0, {}, {}
    world = World(6, **setting)
    flops = work(task, np.arange(6), B=10, E=1)
    for i, j in world.arrivals(x, x, flops, active=active):
        if i is not None:
            a = 0.6 * s(t - tau[i])
            before = x
            x, t = (1 - a) * x + a * y[i], t + 1
            close(found[t][0], x)
            assert found[t][1] == {"staleness": t - 1 - tau[i]}
            moved, whole = x - before, y[i] - before  # stays in the segment from x to y
            close(moved.norm() + (x - y[i]).norm(), whole.norm(), 1e-10)
        if t == 25:
            break
        # with the proximal term: gradient + rho (y - start)
        y[j], tau[j] = train(task, [j], x, mu=0.5, seed=(0, t), **HOW)[0], t


def test_order_and_times_of_arrivals():
    """Devices 4 : 2 : 1 in speed on instant links visit at multiples of their own times."""
    task = small(n=3, partition=same_data)
    instant = Link(0.0, np.inf, np.inf)
    world = World(3, device=devices(4e6, 2e6, 1.1e6), link=instant)
    flops = work(task, np.arange(3), B=10, E=1)[0]
    events, clocks, staleness, t = [], [], [], 0
    for i, speed in enumerate((4e6, 2e6, 1.1e6)):
        heappush(events, (flops / speed, i, flops / speed, 0))
    for _ in range(20):
        now, i, each, tau = heappop(events)
        clocks.append(now)
        staleness.append(t - tau)
        t += 1
        heappush(events, (now + each, i, each, t))
    found = []
    for _, extra in zip_first(fedasync(task, world, **HOW), 21):
        found.append((world.clock, extra["staleness"]))
    assert [f[1] for f in found[1:]] == staleness
    assert [f[0] for f in found[1:]] == pytest.approx(clocks)


def zip_first(generator, count):
    for _ in range(count):
        yield next(generator)


def test_equal_devices_are_n_minus_1_versions_stale():
    task = small(n=5, partition=same_data)
    found = values(fedasync, 30, task=task, **HOW)
    assert [v[1]["staleness"] for v in found[1:]] == [0, 1, 2, 3, 4] + [4] * 25


def test_bytes_of_a_visit():
    """Down 4 d and up 4 d B; devices at work have had their download only."""
    task = small(n=4, partition=same_data, dtype=torch.float32)
    world = World(4)
    values(fedasync, 12, task=task, world=world, **HOW)
    model = 4 * task.d
    assert world.up.sum() == pytest.approx(12 * model, abs=4 * model)
    assert 0 <= world.down.sum() - 12 * model <= 4 * model
    assert world.server_up == world.down.sum() and world.server_down == world.up.sum()
    assert set(world.up / model) | set(world.down / model) <= set(range(20))
    one = World(1)
    values(fedasync, 12, task=small(n=1, samples=20, dtype=torch.float32), world=one, **HOW)
    assert one.up[0] == 12 * model
    assert one.down[0] == 12 * model


def test_time_of_a_visit():
    task = small(n=1, samples=40)
    world = World(1, device=devices(1e6), link=Link(0.01, 1e4, 2e4))
    values(fedasync, 5, task=task, world=world, **HOW)
    flops = 40 * 2 * 2 * 64 * 10
    visit = 0.01 + 8 * task.d / 2e4 + flops / 1e6 + 0.01 + 8 * task.d / 1e4
    assert world.clock == pytest.approx(5 * visit, rel=1e-12)


def test_active_bounds_the_staleness():
    task = small(n=6, partition=same_data)
    world = World(6, spread=loguniform(3))
    found = values(fedasync, 60, task=task, world=world, active=1, **HOW)
    assert all(v[1]["staleness"] == 0 for v in found)
    assert (world.up > 0).sum() > 3  # idle devices take turns


def test_lost_messages_are_sent_again():
    """A visit is never lost: the run has as many arrivals, at more bytes and time."""
    task = small(n=4, partition=same_data)
    calm, lossy = World(4), World(4, loss=0.3)
    values(fedasync, 40, task=task, world=calm, **HOW)
    found = models(fedasync, 40, task=task, world=lossy, **HOW)
    assert lossy.clock > calm.clock and lossy.up.sum() > calm.up.sum()
    assert torch.isfinite(found).all() and (found[1:] != found[:-1]).any(1).all()


@pytest.mark.slow
def test_claim_polynomial_is_more_accurate_than_constant():
    gains = []
    for seed in range(3):
        accuracy = []
        for s in (polynomial(), constant()):
            task = Task(n=20, partition=shards(2), seed=seed)
            world = World(20, device=DEVICES["raspberry_pi"], spread=loguniform(10), seed=seed)
            history = run(
                fedasync, task, world, rounds=600, every=10, s=s, E=1, B=10, eta=0.1, seed=seed
            )
            accuracy.append(final(history, last=10))
        gains.append(accuracy[0] - accuracy[1])
    assert min(gains) > 0 and np.mean(gains) > 0.05, gains
