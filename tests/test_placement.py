"""Planned and searched placements."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import close, leaves, models, small, values
from torch.nn import functional as F

from survey_lib.cutting import chain, place
from survey_lib.errors import UsageError
from survey_lib.methods.pipelines import pipedream, single_device
from survey_lib.methods.placement import (
    adam,
    backed_up,
    greedy_placement,
    pipedream_partitioner,
    random_placement,
    rl_placement,
    score,
)
from survey_lib.models import mlp
from survey_lib.placing import Graph, Placing, branches, in_line
from survey_lib.presets import Device, Link
from survey_lib.spread import loguniform, shuffled
from survey_lib.world import World

LAN = Link(1e-4, 1.2e8, 1.2e8)


def task():
    return small(4, network=mlp(*[40] * 7))


def world(**how):
    """Four slow devices: cutting pays."""
    device = Device(1e9, 1e9, 1.0, 2.0, 1.5, "assumed")
    return World(4, device=device, link=LAN, spread=shuffled(4, 2, 1, 1), **how)


# ---- pipedream_partitioner


def test_it_is_pipedream_on_the_planned_cuts():
    t, how = task(), dict(eta=0.1, B=16)
    a, b = world(), world()
    _, cuts, devices = place(chain(t.network, 16, 8), a, range(4))
    assert len(cuts) == 3
    got = models(pipedream_partitioner, 8, task=t, world=a, **how)
    assert torch.equal(
        got, models(pipedream, 8, task=t, world=b, cuts=cuts, devices=devices, **how)
    )
    assert a.totals() == b.totals()


def test_one_device_is_serial_sgd():
    t, how = small(1), dict(eta=0.1, B=16)
    got = models(pipedream_partitioner, 8, task=t, world=World(1), **how)
    close(got, models(single_device, 8, task=t, world=World(1), **how))


def halfway(**how):
    """Device 1 leaves for good when five mini-batches are through."""
    t, calm = task(), world()
    a = models(pipedream_partitioner, 6, task=t, world=calm, eta=0.1, B=16)
    gone = world(churn=leaves(1, calm.clock))
    return t, a, gone, values(pipedream_partitioner, 30, task=t, world=gone, eta=0.1, B=16, **how)


def test_a_device_that_leaves_takes_its_weights_along():
    """Without a backup training begins anew, on the three that are left."""
    t, a, gone, found = halfway()
    x = torch.stack([v[0] for v in found])
    assert torch.equal(x[:7], a)
    moved = [float((v - t.init()).norm()) for v in x]  # the first mini-batch of the new pipeline
    assert moved[7] < 0.5 * moved[6] and moved[-1] > moved[7]
    assert gone.clock > 1  # until it is noticed
    late = gone.busy.copy()
    assert late[1] < late[[0, 2, 3]].min()


def test_with_a_backup_it_goes_on_from_there():
    t, a, gone, found = halfway(backup=3)
    x = torch.stack([v[0] for v in found])
    images, labels = t.batch(16, (0, 1), 0)  # the first mini-batch of the new pipeline
    y = a[3].clone().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(t.network(y, images), labels), y)
    close(x[7], a[3] - 0.1 * g)  # from the backup after the third


def test_a_backup_that_is_lost_is_none():
    t, owner = task(), dict(enumerate([0, 0, 0, 1, 1, 2, 2, 2]))
    for loss, there in ((0.0, lambda i: [i, (i + 1) % 3]), (1.0, lambda i: [i])):
        copies = backed_up(world(loss=loss), t, t.init(), owner, (0, 1, 2))
        assert copies == {j: there(i) for j, i in owner.items()}
    alone = world()
    assert backed_up(alone, t, t.init(), dict.fromkeys(range(8), 3), (3,)) == {
        j: [3] for j in range(8)
    }
    assert alone.up.sum() == 0


def test_what_the_move_costs():
    """Every layer that changes its device is sent once, from its owner or the owner of its backup;
    all of it leaves at once."""
    t, how = task(), dict(eta=0.1, B=16, backup=1)
    calm = world()
    models(pipedream_partitioner, 6, task=t, world=calm, **how)
    weights = 8 * t.network.d
    assert calm.up.sum() >= 5 * weights  # a backup of all weights per mini-batch
    before = world()
    models(pipedream_partitioner, 6, task=t, world=before, eta=0.1, B=16)
    per_batch = (calm.up.sum() - before.up.sum()) / 5
    assert per_batch == pytest.approx(weights, rel=1e-12)
    assert calm.clock == before.clock  # which holds nobody up


def test_a_device_that_comes_back_is_used_again():
    t, calm = task(), world()
    models(pipedream_partitioner, 6, task=t, world=calm, eta=0.1, B=16)
    trace = leaves(1, calm.clock, calm.clock + 1.02)
    w = world(churn=trace)
    models(pipedream_partitioner, 12, task=t, world=w, eta=0.1, B=16, backup=2)
    early = w.busy[1]
    w = world(churn=trace)
    models(pipedream_partitioner, 200, task=t, world=w, eta=0.1, B=16, backup=2)
    assert w.clock > calm.clock + 1.02 and w.busy[1] > 3 * early


def test_when_all_are_away_time_passes():
    trace = pd.concat([leaves(i, 0.0, 2.5) for i in range(4)])
    w = world(churn=trace)
    got = models(pipedream_partitioner, 8, task=task(), world=w, eta=0.1, B=16)
    assert all(torch.equal(got[k], got[0]) for k in range(3)) and not torch.equal(got[-1], got[0])
    assert w.clock > 3


# ---- rl_placement


def exact_gradient(theta, R):
    """E[R] over all placements P {P: R}, and its gradient in the logits, by autograd."""
    theta = theta.clone().requires_grad_()
    log = torch.log_softmax(theta, 1)
    groups = torch.arange(len(theta))
    mean = sum(log[groups, torch.tensor(P)].sum().exp() * r for P, r in R.items())
    return torch.autograd.grad(mean, theta)[0]


def one(value):
    return torch.tensor([value], dtype=torch.float64)


def enumerated(groups=4, n=2, seed=0):
    rng = np.random.default_rng(seed)
    theta = torch.from_numpy(rng.normal(size=(groups, n)))
    R = {P: float(rng.uniform(1, 3)) for P in itertools.product(range(n), repeat=groups)}
    pi = torch.softmax(theta, 1)
    P = torch.tensor(list(R))
    mass = pi[torch.arange(groups), P].prod(1)  # (n^groups,)
    return theta, R, pi, P, mass


@pytest.mark.parametrize("b", [0.0, 1.7, -5.0])
def test_the_estimator_is_unbiased_whatever_the_baseline(b):
    """All 16 placements of 4 groups on 2 devices, each counted with its probability: the gradient
    of E[R] by autograd; a constant b changes nothing, since sum pi grad log pi = 0."""
    theta, R, pi, P, mass = enumerated()
    each = torch.stack([score(pi, p[None], one(r - b)) for p, r in zip(P, R.values(), strict=True)])
    close((mass[:, None, None] * each).sum(0), exact_gradient(theta, R))
    assert exact_gradient(theta, R).abs().max() > 0.01


def test_equal_times_give_no_gradient():
    theta, R, pi, P, mass = enumerated()
    each = torch.stack([score(pi, p[None], one(2.0)) for p in P])
    close((mass[:, None, None] * each).sum(0), torch.zeros_like(theta))


def test_the_entropy_is_driven_up():
    theta = enumerated()[0].requires_grad_()
    pi = torch.softmax(theta, 1)
    H = -(pi * pi.log()).sum()
    got = score(pi.detach(), torch.zeros(1, 4, dtype=torch.long), torch.zeros(1), entropy=0.3)
    close(got, -0.3 * torch.autograd.grad(H, theta)[0])


def test_adam_is_pytorchs():
    rng = torch.Generator().manual_seed(0)
    a = torch.randn(3, 2, generator=rng, dtype=torch.float64)
    b, moments = a.clone().requires_grad_(), [torch.zeros_like(a)] * 2
    theirs = torch.optim.Adam([b], lr=0.1)
    for t in range(1, 6):
        g = torch.randn(3, 2, generator=rng, dtype=torch.float64)
        a, moments = adam(a, g, moments, 0.1, t)
        b.grad = g
        theirs.step()
    close(a, b.detach(), atol=1e-9)


def fleet(seed=0, n=3, **how):
    return World(n, spread=loguniform(4), seed=seed, **how)


def test_it_finds_the_optimum_of_a_chain_most_of_the_time():
    """A chain on three devices: nothing runs side by side, so that all on the fastest one is the
    best of 3^6 placements; with memory for about three groups each it is not so simple. A policy
    that takes each group by itself can also settle where moving one group alone makes it worse."""
    tight, found = Device(2.4e10, 3.5e9, 1.0, 2.0, 1.5, "assumed"), []
    for seed, device in itertools.product(range(4), ("raspberry_pi", tight)):
        t = Placing(n=3, edges=in_line(6), memory=1e9, spread=1.5, seed=seed)
        world = fleet(seed, device=device, link="lan")
        every = itertools.product(range(3), repeat=6)
        best = min(t.seconds(world, p) for p in every if not t.missing(world, p))
        history = values(rl_placement, 60, task=t, world=world)
        found.append(history[-1][1]["seconds"] / best)
        assert not t.missing(world, history[-1][0])
        assert history[-1][1]["sure"] > history[0][1]["sure"]
    assert min(found) >= 1 - 1e-12
    assert np.mean(np.array(found) <= 1.02) >= 0.75
    roomy = fleet(seed, device=replace(tight, memory=np.inf), link="lan")
    assert best > t.seconds(roomy, [int(roomy.speed.argmax())] * 6)  # which does not fit


def test_it_beats_random_search_on_the_same_budget():
    gains = []
    for seed in range(4):
        t = Placing(n=3, edges=branches(3, 3), seed=seed)
        one, other = (
            values(method, 40, task=t, world=fleet(seed))[-1][1]["seconds"]
            for method in (rl_placement, random_placement)
        )
        gains.append(np.log(other / one))
    assert np.mean(gains) > 2 * np.std(gains, ddof=1) / 2  # two standard errors


def test_everything_on_one_device_takes_its_time():
    t, world = Placing(n=3, seed=1), fleet()
    seconds = 3 * sum(t.graph.forward) / world.speed
    for d in range(3):
        assert t.seconds(world, [d] * t.d) == pytest.approx(seconds[d], rel=1e-12)
    t = Placing(n=3, seed=1, crowded=(1, 2.5))
    assert t.seconds(world, [1] * t.d) == pytest.approx(2.5 * seconds[1], rel=1e-12)


def test_a_step_by_hand():
    """Groups 0 -> 1, 2 -> 3, of 1, 2, 4, 1 GFLOP; device 0 (1 GFLOP/s) has all but group 2, which
    device 1 (2 GFLOP/s) has. Messages take 1 s. Forward: 0 at 0-1, sent 1-2, 1 at 1-3, 2 at 2-4,
    sent 4-5, 3 at 5-6. Backward: 3 at 6-8, sent 8-9, 1 at 8-12, 2 at 9-13, sent 13-14, 0 at
    14-16."""
    t = Placing(n=2, edges=branches(2, 1))
    t.graph = Graph((1e9, 2e9, 4e9, 1e9), (1e6,) * 4, (0.0,) * 4, branches(2, 1))
    device = [Device(v, 1e9, 1.0, 2.0, 1.5, "assumed") for v in (1e9, 2e9)]
    world = World(2, device=device, link=Link(0.5, 2e6, 2e6))
    events = [(e.what, e.item, e.start, e.end) for e in t.step(world, [0, 0, 1, 0])]
    assert events == [
        ("F", 0, 0, 1),
        ("F", 1, 1, 3),
        ("send", 0, 1, 2),
        ("F", 2, 2, 4),
        ("send", 2, 4, 5),
        ("F", 3, 5, 6),
        ("B", 3, 6, 8),
        ("send", 2, 8, 9),
        ("B", 2, 9, 13),
        ("B", 1, 8, 12),
        ("send", 0, 13, 14),
        ("B", 0, 14, 16),
    ]


def test_what_does_not_fit_is_never_the_best():
    none = Device(2.4e10, 1.0, 1.0, 2.0, 1.5, "assumed")
    t, world = Placing(n=2, seed=3), World(2, device=none)
    found = values(rl_placement, 2, task=t, world=world, S=5)
    assert torch.equal(found[-1][0], t.init())
    assert all(extra["seconds"] == np.inf for _, extra in found)
    assert world.clock == 10.0  # a second each
    assert t.missing(world, [0] * t.d) == pytest.approx(sum(t.graph.memory) - 1)


def test_what_measuring_costs_and_its_noise():
    t, world = Placing(n=3, seed=1, noise=0.1), fleet()
    true = t.seconds(world, [0] * t.d)
    seen = [t.measure(world, [0] * t.d, k) for k in range(400)]
    assert world.clock == pytest.approx(400 * true)
    log = np.log(np.array(seen) / true)
    assert abs(log.std() - 0.1) < 5 * 0.1 / np.sqrt(800) and abs(log.mean()) < 5 * 0.1 / 20


def test_greedy_by_hand():
    """Groups 0 -> 1, 2 -> 3 of 4, 2, 2, 1 GFLOP; devices of 2 and 1 GFLOP/s. 0: at 0 until 2 s
    (not 1: 4 s). 1: at 0 until 3 s. 2: until 4 s at 0, at 1 too: the first one. 3: at 0."""
    t = Placing(n=2, edges=branches(2, 1))
    t.graph = Graph((4e9, 2e9, 2e9, 1e9), (1e6,) * 4, (1.0,) * 4, branches(2, 1))
    device = [Device(v, 1e9, 1.0, 2.0, 1.5, "assumed") for v in (2e9, 1e9)]
    found = values(greedy_placement, 1, task=t, world=World(2, device=device))[-1][0]
    assert found.tolist() == [0, 0, 0, 0]
    device = [Device(v, 1e9, 1.0, 2.0, 1.5, "assumed") for v in (2e9, 1.5e9)]
    found = values(greedy_placement, 1, task=t, world=World(2, device=device))[-1][0]
    assert found.tolist() == [0, 0, 1, 0]  # 2 is through at 2 + 4/3 s on device 1
    small = [Device(2e9, 2.5, 1.0, 2.0, 1.5, "assumed"), device[1]]
    found = values(greedy_placement, 1, task=t, world=World(2, device=small))[-1][0]
    assert found.tolist() == [0, 0, 1, 1]  # room for two on device 0


def test_graphs():
    assert in_line(3) == ((0, 1), (1, 2))
    assert branches(2, 1) == ((0, 1), (0, 2), (1, 3), (2, 3))
    assert Placing(edges=branches(3, 2)).d == 8
    with pytest.raises(UsageError, match="no placement of 10 groups on 4 devices"):
        Placing().step(World(4), [0] * 9)


def test_same_bits_twice_and_another_seed():
    a, b, c = (
        values(rl_placement, 5, task=Placing(n=3, seed=2), world=fleet(), seed=s) for s in (0, 0, 1)
    )
    assert [v[1] for v in a] == [v[1] for v in b] != [v[1] for v in c]
