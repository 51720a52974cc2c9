"""Cuts of a chain against brute force, by hand, and against the pipeline's own timetable."""

import itertools

import numpy as np
import pytest

from survey_lib.cutting import (
    Chain,
    chain,
    cut,
    equal_counts,
    equal_work,
    layers_of,
    move,
    place,
    replicated,
    slowest,
)
from survey_lib.errors import UsageError
from survey_lib.models import Network, cnn, mlp, transformer
from survey_lib.pipeline import endless, one_f_one_b, split
from survey_lib.presets import Device, Link
from survey_lib.spread import shuffled
from survey_lib.world import World


def some_chain(rng, L):
    work, messages, weights, saved = rng.uniform(1, 10, (4, L))
    return Chain(work / 3, 2 * work / 3, messages, weights, saved)


def compositions(M, parts):
    """All ways to write M as an ordered sum of so many numbers above 0."""
    for cuts in itertools.combinations(range(1, M), parts - 1):
        yield [b - a for a, b in itertools.pairwise((0, *cuts, M))]


def stages_of(L, K):
    """All cuts of L layers into K stages, as (first, last + 1)."""
    for cuts in itertools.combinations(range(1, L), K - 1):
        yield list(itertools.pairwise((0, *cuts, L)))


# ---- equal machines, with replication


def brute_replicated(times, messages, weights, M, bandwidth, overlap):
    """The least slowest stage of all cuts and replications; formulas written out again."""
    best = np.inf
    for K in range(1, min(len(times), M) + 1):
        for stages in stages_of(len(times), K):
            for machines in compositions(M, K):
                slowest = max((2 * messages[b - 1] / bandwidth for _, b in stages[:-1]), default=0)
                for (a, b), m in zip(stages, machines, strict=True):
                    compute = sum(times[a:b])
                    sync = sum(4 * (m - 1) * w / (m * bandwidth) for w in weights[a:b])
                    one = max(compute, sync) if overlap else compute + sync
                    slowest = max(slowest, one / m)
                best = min(best, slowest)
    return best


@pytest.mark.parametrize("overlap", [True, False])
def test_replicated_equals_brute_force(overlap):
    rng = np.random.default_rng(0)
    for _ in range(100):
        L, M = int(rng.integers(1, 9)), int(rng.integers(1, 5))
        times, messages, weights = rng.uniform(1, 10, (3, L))
        bandwidth = rng.choice([0.3, 3.0, 30.0])
        got, stages = replicated(times, messages, weights, M, bandwidth=bandwidth, overlap=overlap)
        want = brute_replicated(times, messages, weights, M, bandwidth, overlap)
        assert got == pytest.approx(want, rel=1e-12)
        assert sum(m for *_, m in stages) == M
        assert [a for a, _, _ in stages] == [0, *(b for _, b, _ in stages[:-1])]
        assert stages[-1][1] == L


def test_replication_by_hand():
    """Two machines, equal layers. Free links: two halves and one stage on both take 4 s alike, so
    four heavy layers and one light: data parallelism balances 9 into 4.5, no cut can."""
    free = dict(bandwidth=np.inf)
    assert replicated([2, 2, 2, 2], [1] * 4, [1] * 4, 1, **free) == (8.0, [(0, 4, 1)])
    assert replicated([2, 2, 2, 2], [1] * 4, [1] * 4, 2, **free)[0] == 4.0
    assert replicated([2, 2, 2, 2, 1], [1] * 5, [1] * 5, 2, **free) == (4.5, [(0, 5, 2)])
    heavy = [1e9] * 5  # weights forbid replicas
    assert replicated([2, 2, 2, 2, 1], [1] * 5, heavy, 2, bandwidth=10)[1] == [(0, 2, 1), (2, 5, 1)]
    # a heavy stage of few weights is replicated: 8 | 2 on three machines
    got = replicated([8, 2], [0, 0], [0, 100], 3, bandwidth=10)
    assert got == (4.0, [(0, 1, 2), (1, 2, 1)])


# ---- unlike devices


def brute(chain, speeds, link, memory=None):
    """The least slowest of all cuts and all devices in this order; with a memory (K,), of those
    where each stage has room for a version of its weights and its saved activations for itself and
    for each stage after it, and for its gradient. Infinite where there is none."""
    L, best = len(chain), np.inf
    for K in range(1, min(L, len(speeds)) + 1):
        for used in itertools.combinations(range(len(speeds)), K):
            for stages in stages_of(L, K):
                if memory is not None and any(
                    (K - s) * (sum(chain.weights[a:b]) + sum(chain.saved[a:b]))
                    + sum(chain.weights[a:b])
                    > memory[d]
                    for s, ((a, b), d) in enumerate(zip(stages, used, strict=True))
                ):
                    continue
                slowest = 0.0
                for (a, b), d in zip(stages, used, strict=True):
                    slowest = max(slowest, sum(chain.work[a:b]) / speeds[d])
                for (_, b), (d, e) in zip(stages[:-1], itertools.pairwise(used), strict=True):
                    for latency, bandwidth in (link(d, e), link(e, d)):  # and its gradient back
                        slowest = max(slowest, latency + chain.messages[b - 1] / bandwidth)
                best = min(best, slowest)
    return best


def test_cut_equals_brute_force():
    """Every chain of up to 8 layers on up to 4 devices in a given order, 200 random ones."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        L, K = int(rng.integers(1, 9)), int(rng.integers(1, 5))
        layers, speeds = some_chain(rng, L), rng.choice([1.0, 2.0, 4.0], K)
        latency, rate = rng.uniform(0, 2, (K, K)), rng.uniform(1, 20, (K, K))

        def link(d, e, latency=latency, rate=rate):
            return latency[d, e], rate[d, e]

        seconds, cuts, used = cut(layers, speeds, link)
        assert seconds == pytest.approx(brute(layers, speeds, link), rel=1e-12)
        own = layers_of(cuts, L)  # and the plan is worth what it says
        times = [layers.work[own == s].sum() / speeds[d] for s, d in enumerate(used)]
        sent = [
            latency[way] + layers.messages[c - 1] / rate[way]
            for c, (d, e) in zip(cuts, itertools.pairwise(used), strict=True)
            for way in ((d, e), (e, d))
        ]
        assert max(times + sent) == pytest.approx(seconds, rel=1e-12)


def test_the_best_order_equals_brute_force():
    """Every number of layers up to 8 on every number of devices up to 4."""
    rng = np.random.default_rng(2)
    for L, K in itertools.product(range(1, 9), range(1, 5)):
        layers = some_chain(rng, L)
        speed = rng.choice([1.0, 2.0, 4.0], K)
        links = [Link(0.1 * rng.random(), *rng.uniform(1, 20, 2)) for _ in range(K)]
        device = [Device(v, np.inf, 1.0, 2.0, 1.5, "assumed") for v in speed]
        world = World(K, device=device, link=links)
        each = [
            brute(layers, speed[list(o)], lambda d, e, o=o, w=world: w.link(o[d], o[e]))
            for o in itertools.permutations(range(K))
        ]
        found = place(layers, world, range(K), any_order=True, bounded=False)
        assert found[0] == pytest.approx(min(each), rel=1e-12)
        given = place(layers, world, range(K), bounded=False)
        assert given[0] == pytest.approx(each[0], rel=1e-12)


def free(d, e):
    return 0.0, np.inf


def fastest(*args, **how):
    """The seconds of `cut`, infinite where nothing fits."""
    try:
        return cut(*args, **how)[0]
    except UsageError:
        return np.inf


def test_within_memory_cut_equals_brute_force():
    rng, fit = np.random.default_rng(5), 0
    for _ in range(300):
        L, K = int(rng.integers(1, 8)), int(rng.integers(1, 5))
        layers, speeds = some_chain(rng, L), rng.choice([1.0, 2.0, 4.0], K)
        memory = rng.choice([10.0, 40.0, 80.0, 160.0], K)

        def link(d, e):
            return 0.2, 5.0

        want = brute(layers, speeds, link, memory)
        assert fastest(layers, speeds, link, memory=memory) == pytest.approx(want, rel=1e-12)
        fit += np.isfinite(want) and want > brute(layers, speeds, link) * (1 + 1e-9)
    assert fit > 50  # fit, and are slower for it


@pytest.mark.parametrize("bounded", [False, True])
def test_another_device_never_makes_it_slower(bounded):
    rng = np.random.default_rng(3)
    for _ in range(50):
        layers, speeds = some_chain(rng, 6), rng.uniform(1, 4, 4)
        memory = rng.uniform(5, 150, 4) if bounded else np.full(4, np.inf)
        values = [
            fastest(layers, speeds[:k], lambda d, e: (0.2, 5.0), memory=memory[:k])
            for k in range(1, 5)
        ]
        assert all(b <= a for a, b in itertools.pairwise(values))


def test_by_hand():
    equal = Chain(*np.ones((2, 8)), *np.ones((3, 8)))
    assert cut(equal, [1.0], free) == (16.0, (), (0,))
    assert cut(equal, [1.0] * 4, free) == (4.0, (2, 4, 6), (0, 1, 2, 3))
    assert cut(equal, [4.0, 2.0, 1.0, 1.0], free) == (2.0, (4, 6, 7), (0, 1, 2, 3))
    # links so slow that every message takes 100 s: the fastest device does it all
    assert cut(equal, [1.0, 4.0], lambda d, e: (100.0, 1.0)) == (4.0, (), (1,))


def test_slow_links_move_the_cut_to_a_narrow_layer():
    layers = Chain(*np.ones((2, 4)), np.array([1.0, 70.0, 1.0, 70.0]), *np.ones((2, 4)))
    assert cut(layers, [1.0, 1.0], lambda d, e: (0.0, 100.0))[1] == (2,)
    assert cut(layers, [1.0, 1.0], lambda d, e: (0.0, 10.0))[1] in {(1,), (3,)}


def test_memory_bounds_a_stage():
    """Stage s of U holds U - s versions and activations, and a gradient: of j layers on the first
    of two, 2 (j + j) + j = 5 j bytes; on the last, or on one device alone, 3 j."""
    layers = Chain(*np.ones((2, 4)), *np.ones((3, 4)))
    assert cut(layers, [3.0, 1.0], free, memory=[100, 100])[1] == (3,)
    assert cut(layers, [3.0, 1.0], free, memory=[10, 100])[1] == (2,)
    assert cut(layers, [3.0, 1.0], free, memory=[9.9, 100])[1] == (1,)
    with pytest.raises(UsageError, match="2 devices.*at most the first 1 do"):  # on the first
        cut(layers, [3.0, 1.0], free, memory=[3, 2])
    with pytest.raises(UsageError, match="2 devices.*at most the first 2 do"):  # 5 and 3 bytes
        cut(layers, [3.0, 1.0], free, memory=[5, 3])
    with pytest.raises(UsageError, match="2 devices.*at most the first 0 do"):
        cut(layers, [3.0, 1.0], free, memory=[2, 2])


def test_a_device_that_gets_nothing_takes_no_memory():
    """Four layers on one device need 3 * 4 = 12 bytes, whatever other devices there are."""
    layers = Chain(*np.ones((2, 4)), *np.ones((3, 4)))
    assert cut(layers, [1.0], free, memory=[12]) == (8.0, (), (0,))
    assert cut(layers, [1.0, 1.0], free, memory=[12, 1]) == (8.0, (), (0,))
    assert cut(layers, [10.0, 1.0], free, memory=[12, 100]) == (0.8, (), (0,))
    assert cut(layers, [1.0, 1.0, 1.0], free, memory=[10, 1, 6]) == (4.0, (2,), (0, 2))


def test_an_order_that_does_not_fit_leaves_the_others():
    """The heavy layer needs 3 * 3 bytes as the first stage of two, the others 2 * 3 as the last:
    only the larger device can come first, and neither has room for all, 2 * 6 bytes."""
    layers = Chain(*np.ones((3, 4)), np.array([3.0, 1.0, 1.0, 1.0]), np.zeros(4))
    device = [Device(1.0, m, 1.0, 2.0, 1.5, "assumed") for m in (6.0, 9.0)]
    world = World(2, device=device, link=Link(0.0, np.inf, np.inf))
    assert place(layers, world, range(2), any_order=True) == (6.0, (1,), (1, 0))
    with pytest.raises(UsageError, match="4 layers do not fit"):
        place(layers, world, range(2))
    with pytest.raises(UsageError, match="4 layers do not fit"):
        place(layers, world, [0], any_order=True)


def test_a_slow_way_back_is_no_place_for_a_cut():
    """Gradients come back over the first device's slow downlink: one device alone is faster."""
    device = Device(1e9, np.inf, 1.0, 2.0, 1.5, "assumed")
    world = World(2, device=device, link=[Link(0, np.inf, 1e6), Link(0, np.inf, np.inf)])
    layers = chain(Network(mlp(*[48] * 7), (1, 8, 8), 10), 16)
    seconds, cuts, _ = place(layers, world, range(2))
    assert cuts == () and seconds == pytest.approx(layers.work.sum() / 1e9)
    assert slowest(layers, world, (4,), (0, 1)) == layers.messages[3] / 1e6


def test_equal_counts():
    assert equal_counts(10, 4) == (3, 6, 8) and equal_counts(8, 4) == (2, 4, 6)
    assert equal_counts(5, 1) == () and equal_counts(4, 4) == (1, 2, 3)
    with pytest.raises(UsageError, match="choose K from 1 to 3"):
        equal_counts(3, 4)
    assert layers_of((3, 6, 8), 10).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3]


def test_equal_work():
    """All K stages get a layer, also where one layer outweighs the rest."""
    work = np.array([1.0, 100.0, 1.0, 1.0])
    layers = Chain(work / 2, work / 2, *np.ones((3, 4)))
    assert equal_work(layers, 4) == (1, 2, 3) and equal_work(layers, 1) == ()
    world = World(
        4, device=Device(1.0, np.inf, 1.0, 2.0, 1.5, "assumed"), link=Link(0.0, np.inf, np.inf)
    )
    assert slowest(layers, world, equal_work(layers, 4), range(4)) == 100.0
    rng = np.random.default_rng(6)
    for L in range(2, 8):
        layers, K = some_chain(rng, L), int(rng.integers(1, L + 1))
        most = [max(sum(layers.work[a:b]) for a, b in stages) for stages in stages_of(L, K)]
        own = layers_of(equal_work(layers, K), L)
        assert own[-1] == K - 1
        assert np.bincount(own, layers.work).max() == pytest.approx(min(most), rel=1e-12)
    with pytest.raises(UsageError, match="choose K from 1 to 4"):
        equal_work(Chain(work, work, *np.ones((3, 4))), 5)


@pytest.mark.parametrize("build", [mlp(20, 12, 16), cnn(3, 5), transformer(8, blocks=3)])
def test_a_chain_is_what_the_stages_weigh(build):
    net, B = Network(build, (1, 8, 8), 10), 3
    layers = chain(net, B)
    stages = split(net, tuple(range(1, len(layers))))
    for name, factor in (("forward", B), ("backward", B), ("output_bytes", B)):
        column = dict(output_bytes="messages").get(name, name)
        assert getattr(layers, column).tolist() == [factor * getattr(s, name) for s in stages]
    assert layers.weights.tolist() == [s.parameter_bytes for s in stages]


@pytest.mark.parametrize("build", [mlp(*[48] * 7), transformer(16, blocks=6)])
def test_the_pipeline_takes_what_the_plan_says(build):
    """With free links the steady period of the simulated pipeline is the slowest stage's time."""
    net = Network(build, (1, 8, 8), 10)
    layers = chain(net, 16)
    for seed in range(3):
        free_link = Link(0.0, np.inf, np.inf)
        world = World(4, link=free_link, spread=shuffled(4, 2, 1, 1), seed=seed)
        seconds, cuts, devices = place(layers, world, range(4))
        steps = endless(world, split(net, cuts), 16, schedule=one_f_one_b, devices=devices)
        home = (world.clock for e, _ in steps if (e.what, e.stage) == ("B", 0))
        clock = list(itertools.islice(home, 61))
        assert clock[60] - clock[20] == pytest.approx(40 * seconds, rel=0.02)


def test_shuffled_speeds():
    speeds = {
        tuple(World(4, spread=shuffled(4, 2, 1, 1), seed=s).speed / 2.4e10) for s in range(60)
    }
    assert speeds == set(itertools.permutations((4.0, 2.0, 1.0, 1.0)))
    with pytest.raises(UsageError, match="4 factors for 3 devices"):
        World(3, spread=shuffled(4, 2, 1, 1))


def test_move_by_hand():
    """Two messages from 0 to 1 follow each other, one from 0 to 2 beside them."""
    world = World(3, link=Link(0.5, 10.0, 10.0))
    move(world, [(0, 1, 10), (0, 2, 5), (0, 1, 20)])
    assert world.clock == 1.5 + 2.5 and world.up.tolist() == [35, 0, 0] and world.messages == 3
    world = World(2, link=Link(0.5, 10.0, 10.0), loss=0.6)
    for _ in range(200):
        move(world, [(0, 1, 10)])
    sent = world.messages  # 1 / (1 - 0.6)^2 = 6.25 sendings a message, a geometric number
    assert abs(sent / 200 - 6.25) < 5 * np.sqrt(0.84 / 0.16**2 / 200)
    assert world.up[0] == 10 * sent and world.clock == pytest.approx(1.5 * sent)
    assert world.lost == pytest.approx(10 * (sent - 200))
