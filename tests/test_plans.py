"""Plans of hybrid parallelism: what they compute, what they cost, and the search for them."""

import itertools

import numpy as np
import pytest
import torch
from conftest import close, values
from torch.nn import functional as F

from survey_lib.errors import UsageError
from survey_lib.methods.placement import accepted, pure_plan, soap_mcmc
from survey_lib.models import lenet, mlp
from survey_lib.plans import Splitting, overlap
from survey_lib.presets import Device, Link
from survey_lib.spread import shuffled
from survey_lib.world import World

FREE = Link(0.0, np.inf, np.inf)


def board(speed, memory=1e12):
    return Device(speed, memory, 1.0, 2.0, 1.5, "assumed")


def problem(n=3, network=None, B=12, **how):
    return Splitting("digits", n=n, network=network or lenet(4, 6, hidden=(9,)), B=B, **how)


def fleet(n=3, link=FREE, **how):
    return World(n, device=[board(v) for v in (4e9, 2e9, 1e9, 1e9)[:n]], link=link, **how)


# ---- what a plan computes


def some_plans(n, d, count, seed=0):
    rng = np.random.default_rng(seed)
    pure = [[k] * d for k in (0, n, n + 1)]
    return pure + rng.integers(n + 2, size=(count, d)).tolist()


@pytest.mark.parametrize("network", [lenet(4, 6, hidden=(9,)), mlp(10, 7), lenet(5, 3, hidden=())])
def test_any_plan_computes_the_serial_gradient(network):
    """Layers split by samples, by outputs or not at all, in parts of unlike sizes."""
    t, world = problem(network=network, dtype=torch.float64), fleet()
    x, batch = t.weights, t.batch(12, 0)
    y = x.clone().requires_grad_()
    want = torch.autograd.grad(F.cross_entropy(t.network(y, batch[0]), batch[1]), y)[0]
    assert want.abs().max() > 1e-3
    for plan in some_plans(3, t.d, 12):
        close(t.gradient(world, plan, x, batch), want)


def test_the_found_plan_computes_the_serial_gradient():
    t, world = problem(dtype=torch.float64), fleet(link=Link(1e-4, 1e7, 1e7))
    plan = values(soap_mcmc, 60, task=t, world=world)[-1][0]
    x, batch = t.weights, t.batch(12, 0)
    y = x.clone().requires_grad_()
    want = torch.autograd.grad(F.cross_entropy(t.network(y, batch[0]), batch[1]), y)[0]
    close(t.gradient(world, plan, x, batch), want)


def test_parts():
    t, world = problem(n=3), fleet()
    assert [p.device for p in t.parts(world, 1)] == [1]
    by_samples, by_outputs = t.parts(world, 3), t.parts(world, 4)
    edges = [(0, 4 / 7), (4 / 7, 6 / 7), (6 / 7, 1)]
    assert [p.samples for p in by_samples] == [pytest.approx(e) for e in edges]
    assert [p.outputs for p in by_outputs] == [pytest.approx(e) for e in edges]
    assert all(p.outputs == (0, 1) for p in by_samples)
    assert overlap((0, 0.5), (0.25, 1)) == 0.25 and overlap((0, 0.5), (0.5, 1)) == 0
    for wrong in (-1, 5):
        with pytest.raises(UsageError, match="choose 0 to 4"):
            t.parts(world, wrong)
    with pytest.raises(UsageError, match="for 4 layers"):
        t.step(world, [0])


# ---- what it costs


def test_one_device_takes_the_sum_of_everything():
    t, world = problem(), fleet(link="wifi")
    work = t.B * sum(s.forward + s.backward for s in t.stages)
    for d in range(3):
        assert t.seconds(world, [d] * t.d) == pytest.approx(work / world.speed[d], rel=1e-12)


def test_layers_on_their_own_devices_are_naive_model_parallelism():
    """sum (f + b) and two messages per cut: latency + bytes / bandwidth."""
    t = problem(n=4)
    world = fleet(4, link=Link(0.01, 1e6, 1e6))
    speed = world.speed
    T = sum(t.B * (s.forward + s.backward) / speed[k] for k, s in enumerate(t.stages))
    T += sum(2 * (0.01 + t.B * s.output_bytes / 1e6) for s in t.stages[:-1])
    assert t.seconds(world, [0, 1, 2, 3]) == pytest.approx(T, rel=1e-9)


def test_data_parallelism_by_formula():
    """Shares in proportion to the speeds: forward and backward take sum (f + b) / sum of speeds
    everywhere. Each layer's gradient, from the last one on, then goes round the ring in 2 (n - 1)
    hops of an n-th of its weights, which take the links one layer after the other."""
    for n, link in ((1, "wifi"), (3, FREE), (3, Link(0.002, 2e6, 2e6)), (4, Link(1e-4, 1e5, 1e5))):
        t, world = problem(n=n), fleet(n, link=link)
        total, last = world.speed.sum(), 0.0
        time = t.B * sum(s.forward for s in t.stages) / total
        latency, rate = world.latency[0], world.bandwidth_up[0]
        for s in reversed(t.stages):
            time += t.B * s.backward / total
            ring = 2 * (n - 1) * (latency + s.parameter_bytes / n / rate)
            last = max(last, time) + ring * (n > 1)
        want = max(last, time)
        assert t.seconds(world, [n] * t.d) == pytest.approx(want, rel=1e-4)  # bytes are whole


def test_free_links_make_every_split_of_all_layers_equally_fast():
    t, world = problem(), fleet()
    work = t.B * sum(s.forward + s.backward for s in t.stages) / world.speed.sum()
    for plan in itertools.product((3, 4), repeat=t.d):
        assert t.seconds(world, plan) == pytest.approx(work, rel=1e-9)


def test_every_message_has_its_twin():
    """Between two layers what goes forward comes back; the last layer's outputs go round once
    where the loss needs them; replicas' gradients go round the ring."""
    t, world = problem(), fleet(link="wifi")
    for plan in some_plans(3, t.d, 10):
        sent = {}
        for e in t.step(world, plan):
            if e.what == "send":
                sent[e.device, e.to] = sent.get((e.device, e.to), 0) + e.nbytes
        rings = sum(int(c) == 3 for c in plan)
        loss = plan[-1] == 4
        if not rings and not loss:
            assert all(sent[b, a] == nbytes for (a, b), nbytes in sent.items())
        if rings == t.d:
            weights = sum(s.parameter_bytes for s in t.stages)
            assert sum(sent.values()) == pytest.approx(4 * weights, rel=1e-2)  # 2 (n - 1)


def test_what_does_not_fit_is_never_chosen():
    t = problem(B=64)
    tight = [board(4e9, 1.5e5), board(2e9, 3e5), board(1e9, 3e5)]
    world = World(3, device=tight, link="lan")
    assert t.missing(world, [0] * t.d) > 0 and t.seconds(world, [0] * t.d) == np.inf
    plan = values(soap_mcmc, 80, task=t, world=world, beta=5.0)[-1]
    assert t.missing(world, plan[0]) == 0 and np.isfinite(plan[1]["seconds"])


# ---- the search


def exhaustive(t, world):
    return min(t.seconds(world, p) for p in itertools.product(range(t.n + 2), repeat=t.d))


@pytest.mark.parametrize("n, hidden", [(3, (64, 32)), (2, (64, 48, 32))])
@pytest.mark.parametrize("seed", range(3))
def test_enough_steps_find_the_optimum_of_a_few_layers(seed, n, hidden):
    t = problem(n, network=mlp(*hidden), B=32)
    world = fleet(n, link=Link(1e-5, 5e6, 5e6))
    found = [v[1]["seconds"] for v in values(soap_mcmc, 400, task=t, world=world, seed=seed)]
    best = exhaustive(t, world)
    assert found[-1] == best and min(found) == best
    assert all(b <= a for a, b in itertools.pairwise(found))
    assert found[0] == t.seconds(world, [n] * t.d) > best


def test_where_data_parallelism_does_not_fit_beta_still_counts():
    t = problem(n=3, network=mlp(64, 32), B=8)
    world = World(3, device=[board(v, 4e4) for v in (4e9, 2e9, 2e9)], link="lan")
    assert t.seconds(world, [3] * 3) == np.inf > exhaustive(t, world)
    found = values(soap_mcmc, 400, task=t, world=world, beta=np.inf, patience=10**9)
    now = [extra["now"] for _, extra in found]
    assert all(b <= a for a, b in itertools.pairwise(now))
    assert found[-1][1]["seconds"] == exhaustive(t, world)


def test_metropolis():
    assert accepted(0.1, 5.0, 0.999) and accepted(0.0, np.inf, 0.999)
    assert not accepted(-1e-9, np.inf, 1e-12)  # beta -> infinity: no worsening step
    assert all(accepted(-g, 0.0, 0.999) for g in (0.1, 10.0, np.inf))  # beta = 0: all
    p = np.exp(-2.0 * 0.3)
    assert accepted(-0.3, 2.0, p - 1e-9) and not accepted(-0.3, 2.0, p + 1e-9)


def test_a_search_that_never_worsens_and_one_that_does():
    t = problem(network=mlp(64, 32), B=32)
    for beta, patience in ((np.inf, 10**9), (0.0, 10**9)):
        world = fleet(link=Link(1e-5, 5e6, 5e6))
        found = values(soap_mcmc, 100, task=t, world=world, beta=beta, patience=patience)
        now = [v[1]["now"] for v in found]
        worse = [b > a for a, b in itertools.pairwise(now)]
        assert any(worse) == (beta == 0.0)


def test_pure_plans():
    t, world = problem(network=mlp(64, 32)), fleet(link=Link(1e-5, 5e6, 5e6))
    (data, a), (layers, b), (_, c) = (
        values(pure_plan, 0, task=t, world=world, split=how)[0]
        for how in ("samples", "layers", None)
    )
    assert torch.equal(data, t.init()) and a["seconds"] == t.seconds(world, data)
    each = itertools.product(range(3), repeat=3)
    assert b["seconds"] == min(t.seconds(world, p) for p in each) == t.seconds(world, layers)
    assert c["seconds"] == min(a["seconds"], b["seconds"])


def test_same_bits_twice_and_another_seed():
    runs = [
        values(soap_mcmc, 30, task=problem(), world=fleet(link="lan"), seed=s) for s in (0, 0, 1)
    ]
    now = [[v[1]["now"] for v in run] for run in runs]
    assert now[0] == now[1] != now[2]
    assert World(4, spread=shuffled(1, 1, 0.5, 0.5)).speed.sum() == 3 * 2.4e10
