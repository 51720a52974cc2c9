"""Stages, schedules, timetables and gradients, against formulas, drawn grids, serial autograd."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import close
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from survey_lib.errors import UsageError
from survey_lib.models import Network, cnn, mlp
from survey_lib.pipeline import (
    balanced,
    bubble,
    fill_drain,
    micro_batches,
    one_by_one,
    one_f_one_b,
    peak_memory,
    plan,
    play,
    split,
    timetable,
)
from survey_lib.presets import Link
from survey_lib.world import World

FREE = Link(0.0, np.inf, np.inf)
SCHEDULES = [one_by_one, fill_drain, one_f_one_b]


def network(*hidden, build=None):
    return Network(build or mlp(*hidden), (1, 8, 8), 10)


def some_batch(B, seed=0):
    rng = torch.Generator().manual_seed(seed)
    images = torch.randn(B, 1, 8, 8, generator=rng, dtype=torch.float64)
    return images, torch.randint(10, (B,), generator=rng)


def serial(net, x, batch):
    """(d,): the gradient of the mean cross-entropy of the whole network on the whole batch."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(net(x, batch[0]), batch[1]), x)[0]


def lay(schedule, f, b, M, links=None, **how):
    """A timetable with f_k, b_k seconds for any micro-batch, and delays c_k between the stages."""
    K = len(f)
    f, b = np.repeat(np.c_[f], M, 1), np.repeat(np.c_[b], M, 1)
    link = None if links is None else lambda d, e: (links[min(d, e)], np.inf)
    return timetable(schedule(K, M), f, b, np.ones((K - 1, M)), link=link, **how)


def makespan(events):
    return max(e.end for e in events)


def busy(events):
    out = {}
    for e in events:
        out[e.device] = out.get(e.device, 0) + (e.end - e.start) * (e.what != "send")
    return out


def in_flight(events, K):
    """The most micro-batches each stage ever holds."""
    live, most = [0] * K, [0] * K
    for e in events:
        live[e.stage] += {"F": 1, "B": -1}.get(e.what, 0)
        most[e.stage] = max(most[e.stage], live[e.stage])
    return most


# ---- stages


def test_stages_of_the_digits_mlp_by_hand():
    net = network(128, 128, 128)  # 64-128-128-128-10
    a, b, c = split(net, (1, 3), torch.float64)
    square = 128 * 128
    assert (a.forward, a.backward) == (2 * 64 * 128, 2 * 64 * 128)  # no gradient of the images
    assert (b.forward, b.backward) == (2 * 2 * square, 4 * 2 * square)
    assert (c.forward, c.backward) == (2 * 128 * 10, 4 * 128 * 10)
    weights = (64 * 128 + 128, 2 * (square + 128), 128 * 10 + 10)
    assert [s.parameter_bytes for s in (a, b, c)] == [8 * n for n in weights]
    assert [s.input_bytes for s in (a, b, c)] == [8 * 64, 8 * 128, 8 * 128]
    assert [s.output_bytes for s in (a, b, c)] == [8 * 128, 8 * 128, 8 * 10]
    # inputs of the linear layers and outputs of ReLU, of which one is the next layer's input
    assert [s.saved_bytes for s in (a, b, c)] == [8 * (64 + 128), 8 * 3 * 128, 8 * 128]
    assert [(s.params.start, s.params.stop) for s in (a, b, c)] == [
        (0, weights[0]),
        (weights[0], weights[0] + weights[1]),
        (weights[0] + weights[1], net.d),
    ]


def test_half_the_bytes_in_single_precision():
    for a, b in zip(split(network(16), (1,)), split(network(16), (1,), torch.float64), strict=True):
        for name in ("parameter_bytes", "input_bytes", "output_bytes", "saved_bytes"):
            assert 2 * getattr(a, name) == getattr(b, name)


def test_saved_bytes_of_a_convolution():
    (stage, _, _) = split(network(build=cnn(4, 8)), (1, 2))
    # the image, 4 maps of 8 x 8 after ReLU, and the places of the maxima as 64-bit numbers
    assert stage.saved_bytes == 4 * (64 + 4 * 64) + 8 * 4 * 16
    assert stage.output_bytes == 4 * 4 * 16


@pytest.mark.parametrize("build", [mlp(16, 12, 14), cnn(3, 5)])
def test_stages_one_after_the_other_are_the_network(build):
    net = network(build=build)
    x, (images, _) = net.init(0, dtype=torch.float64), some_batch(5)
    L = len(net.layers)
    for cuts in itertools.chain(*(itertools.combinations(range(1, L), k) for k in range(L))):
        stages, out = split(net, cuts, torch.float64), images
        for stage in stages:
            out = stage.call(x[stage.params], out)
        assert torch.equal(out, net(x, images))
        assert sum(s.forward for s in stages) == net.flops
        assert sum(s.backward for s in stages) == sum(v.backward for v in net.layers)


@pytest.mark.parametrize("cuts", [(0,), (4,), (2, 2), (3, 1), (-1,)])
def test_impossible_cuts(cuts):
    with pytest.raises(UsageError, match="ascending numbers from 1 to 3"):
        split(network(8, 8, 8), cuts)


def test_balanced_against_all_splits():
    rng = np.random.default_rng(0)
    for _ in range(60):
        L = int(rng.integers(1, 8))
        K = int(rng.integers(1, L + 1))
        speeds = rng.choice([1.0, 2.0, 4.0], K)
        layers = [SimpleNamespace(forward=int(w), backward=int(w)) for w in rng.integers(1, 30, L)]

        def slowest(cuts, layers=layers, speeds=speeds):
            parts = itertools.pairwise((0, *cuts, len(layers)))
            work = [sum(v.forward + v.backward for v in layers[a:b]) for a, b in parts]
            return max(w / s for w, s in zip(work, speeds, strict=True))

        best = min(slowest(cuts) for cuts in itertools.combinations(range(1, L), K - 1))
        assert slowest(balanced(SimpleNamespace(layers=layers), K, speeds)) == best


def test_balanced_by_hand():
    net = network(128, 128, 128)  # FLOPs 32768, 98304, 98304, 7680
    assert balanced(net, 1) == ()
    assert balanced(net, 2) == (2,)  # 131072 | 105984
    assert balanced(net, 4) == (1, 2, 3)
    assert balanced(net, 2, speeds=[4, 1]) == (3,)  # 229376 / 4 | 7680 beats 131072 / 4 | 105984
    with pytest.raises(UsageError, match="choose K from 1 to 4"):
        balanced(net, 5)
    with pytest.raises(UsageError, match="1 speeds for K = 2"):
        balanced(net, 2, speeds=[1])


def test_micro_batches():
    assert micro_batches(64, 4) == [16, 16, 16, 16]
    assert micro_batches(10, 4) == [3, 3, 2, 2]
    for M in (0, 11):
        with pytest.raises(UsageError, match="choose M from 1 to 10"):
            micro_batches(10, M)


# ---- schedules

GRIDS = {
    (one_by_one, 2): """F0 .. .. .. .. B0 F1 .. .. .. .. B1
                        .. F0 .. .. B0 .. .. F1 .. .. B1 ..
                        .. .. F0 B0 .. .. .. .. F1 B1 .. ..""",
    (fill_drain, 4): """F0 F1 F2 F3 .. .. .. .. B3 B2 B1 B0
                        .. F0 F1 F2 F3 .. .. B3 B2 B1 B0 ..
                        .. .. F0 F1 F2 F3 B3 B2 B1 B0 .. ..""",
    (one_f_one_b, 4): """F0 F1 F2 .. .. B0 F3 B1 .. B2 .. B3
                         .. F0 F1 .. B0 F2 B1 F3 B2 .. B3 ..
                         .. .. F0 B0 F1 B1 F2 B2 F3 B3 .. ..""",
}


@pytest.mark.parametrize("schedule, micro", GRIDS)
def test_grids(schedule, micro):
    rows = [["..", *[".."] * 11] for _ in range(3)]
    for t, tick in enumerate(schedule(3, micro)):
        for s, op, m in tick:
            rows[s][t] = f"{op}{m}"
    assert rows == [line.split() for line in GRIDS[schedule, micro].splitlines()]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_operation_once_after_what_it_needs(schedule):
    for K, M in itertools.product((1, 2, 3, 5, 8), (1, 2, 4, 7, 16)):
        done = set()
        for tick in schedule(K, M):
            assert len({s for s, _, _ in tick}) == len(tick)  # a stage does one thing at a time
            for s, op, m in tick:
                needs = {(s - 1, "F", m)} if op == "F" else {(s, "F", m), (s + 1, "B", m)}
                assert all(n in done for n in needs if 0 <= n[0] < K)
            assert not done & set(tick)
            done |= set(tick)
        assert done == set(itertools.product(range(K), "FB", range(M)))


# ---- time


def random_case(rng, equal=False):
    K, M = int(rng.integers(1, 7)), int(rng.integers(1, 13))
    f, b = rng.uniform(0.1, 3, (2, K))
    return M, np.repeat(f[:1], K) if equal else f, np.repeat(b[:1], K) if equal else b


def test_one_by_one_takes_the_sum_of_everything():
    rng = np.random.default_rng(1)
    for _ in range(100):
        M, f, b = random_case(rng)
        c = rng.uniform(0, 2, len(f) - 1)
        events = lay(one_by_one, f, b, 1, c)
        assert makespan(events) == pytest.approx(f.sum() + b.sum() + 2 * c.sum(), rel=1e-12)
        # the next one enters when the last has left the first stage
        T = M * (f.sum() + b.sum() + 2 * c.sum())
        assert makespan(lay(one_by_one, f, b, M, c)) == pytest.approx(T, rel=1e-12)


def test_naive_with_equal_stages_and_free_links_works_a_kth_of_the_time():
    for K in (1, 2, 4, 7):
        events = lay(fill_drain, [1.0] * K, [2.0] * K, 1)
        share = [v / makespan(events) for v in busy(events).values()]
        assert share == pytest.approx([1 / K] * K, rel=1e-15)
    f, b = [0.5, 3.0, 1.0], [1.0, 2.0, 4.0]
    events = lay(fill_drain, f, b, 1)  # unequal: the shares still add up to 1
    assert sum(busy(events).values()) / makespan(events) == pytest.approx(1, rel=1e-15)


def test_fill_drain_equal_stages():
    for K, M in itertools.product((1, 2, 4, 8), (1, 2, 4, 16, 32)):
        events = lay(fill_drain, [1.0] * K, [2.0] * K, M)
        assert makespan(events) == (M + K - 1) * 3.0
        idle = 1 - sum(busy(events).values()) / (K * makespan(events))
        assert idle == pytest.approx(bubble(K, M), abs=1e-15)
    assert 1 - np.array([bubble(4, M) for M in (1, 4, 16)]) == pytest.approx(
        [1 / 4, 4 / 7, 16 / 19]
    )


def test_fill_drain_unequal_stages_with_delays():
    """All forwards are a flow shop of M identical jobs: the first one crosses all stages, and then
    one leaves every max f seconds; the same for the backwards."""
    rng = np.random.default_rng(2)
    for _ in range(300):
        M, f, b = random_case(rng)
        c = rng.uniform(0, 2, len(f) - 1)
        T = f.sum() + (M - 1) * f.max() + b.sum() + (M - 1) * b.max() + 2 * c.sum()
        assert makespan(lay(fill_drain, f, b, M, c, pure_delay=True)) == pytest.approx(T, rel=1e-9)
        anew = T + f.sum() + (M - 1) * ((b + f).max() - b.max())  # b_k becomes b_k + f_k
        events = lay(fill_drain, f, b, M, c, pure_delay=True, rematerialise=True)
        assert makespan(events) == pytest.approx(anew, rel=1e-9)


def test_one_f_one_b_equal_stages_is_as_fast_and_holds_less():
    rng = np.random.default_rng(3)
    for _ in range(100):
        M, f, b = random_case(rng, equal=True)
        K = len(f)
        events = lay(one_f_one_b, f, b, M)
        assert makespan(events) == pytest.approx((M + K - 1) * (f[0] + b[0]), rel=1e-12)
        assert in_flight(events, K) == [min(M, K - k) for k in range(K)]
        assert in_flight(lay(fill_drain, f, b, M), K) == [M] * K


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_timetables_keep_their_rules(schedule):
    """Whatever the times and sizes: one operation at a time on a device, one message at a time in a
    direction, inputs first; messages take latency + bytes / bandwidth."""
    rng = np.random.default_rng(4)
    for _ in range(60):
        K, M = int(rng.integers(1, 6)), int(rng.integers(1, 9))
        f, b = rng.uniform(0, 2, (2, K, M))
        nbytes, latency, bandwidth = rng.integers(1, 99, (K - 1, M)), 0.3, 40.0
        events = timetable(schedule(K, M), f, b, nbytes, link=lambda d, e: (0.3, 40.0))
        sends = [e for e in events if e.what == "send"]
        work = {(e.stage, e.what, e.item): e for e in events if e.what != "send"}
        assert len(work) == 2 * K * M and len(sends) == 2 * (K - 1) * M
        assert [e.start for e in events] == sorted(e.start for e in events)
        for (s, op, m), e in work.items():
            assert e.end - e.start == pytest.approx((f if op == "F" else b)[s, m], abs=1e-12)
        for e in sends:
            op = "F" if e.to > e.device else "B"
            assert e.nbytes == nbytes[min(e.device, e.to), e.item]
            assert e.end - e.start == pytest.approx(latency + e.nbytes / bandwidth, rel=1e-9)
            assert work[e.device, op, e.item].end <= e.start
            assert e.end <= work[e.to, op, e.item].start
        for m in range(M):
            assert work[K - 1, "F", m].end <= work[K - 1, "B", m].start
        lanes = itertools.chain(
            ([e for e in events if e.device == d and e.what != "send"] for d in range(K)),
            (
                [e for e in sends if (e.device, e.to) == lane]
                for lane in {(e.device, e.to) for e in sends}
            ),
        )
        for lane in lanes:
            assert all(a.end <= b.start for a, b in itertools.pairwise(lane))


def test_messages_one_at_a_time_by_hand():
    """Two stages, f = 1, b = 2, M = 2, messages of 2 s. Stage 0: F0 0-1, F1 1-2; sent 1-3 and, when
    that is through, 3-5; stage 1: F0 3-4, F1 5-6, B1 6-8, B0 8-10; sent back 8-10, 10-12; stage 0:
    B1 10-12, B0 12-14."""
    f, b = np.ones((2, 2)), 2 * np.ones((2, 2))
    link = {(0, 1): (1.0, 10.0), (1, 0): (1.0, 10.0)}
    events = timetable(fill_drain(2, 2), f, b, [[10, 10]], link=lambda d, e: link[d, e])
    work = [(e.device, e.what, e.item, e.start, e.end) for e in events]
    assert sorted(work) == [
        (0, "B", 0, 12, 14),
        (0, "B", 1, 10, 12),
        (0, "F", 0, 0, 1),
        (0, "F", 1, 1, 2),
        (0, "send", 0, 1, 3),
        (0, "send", 1, 3, 5),
        (1, "B", 0, 8, 10),
        (1, "B", 1, 6, 8),
        (1, "F", 0, 3, 4),
        (1, "F", 1, 5, 6),
        (1, "send", 0, 10, 12),
        (1, "send", 1, 8, 10),
    ]
    # as a pure delay the second activation arrives at 4: everything after it is one second earlier
    events = timetable(
        fill_drain(2, 2), f, b, [[10, 10]], link=lambda d, e: (1.0, 10.0), pure_delay=True
    )
    assert makespan(events) == 13


def test_two_stages_on_one_device_share_it():
    events = lay(fill_drain, [1.0, 2.0, 1.0], [1.0, 2.0, 1.0], 3, [5.0, 5.0], devices=(0, 0, 0))
    assert makespan(events) == 3 * 8.0 and {e.what for e in events} == {"F", "B"}
    events = lay(fill_drain, [1.0] * 3, [1.0] * 3, 2, devices=(0, 1, 0))
    spans = [e for e in events if e.device == 0 and e.what != "send"]
    assert len(spans) == 8 and all(a.end <= b.start for a, b in itertools.pairwise(spans))


def test_a_schedule_that_waits_for_itself():
    ticks = [[(0, "B", 0)], [(0, "F", 0)], [(1, "F", 0)], [(1, "B", 0)]]
    with pytest.raises(UsageError, match="deadlock"):
        timetable(ticks, np.ones((2, 1)), np.ones((2, 1)))


def test_plan_takes_speeds_and_bytes_from_world_and_stages():
    stages = split(network(128, 128, 128), (1, 3))
    world = World(5, spread=lambda u: np.array([4.0, 2.0, 1.0, 1.0, 1.0]))
    events = plan(world, stages, fill_drain, [3, 2], devices=(4, 0, 2))
    for e in events:
        if e.what == "send":
            assert e.nbytes == 4 * 128 * [3, 2][e.item]
        else:
            work = stages[e.stage].forward if e.what == "F" else stages[e.stage].backward
            seconds = work * [3, 2][e.item] / world.speed[e.device]
            assert e.end - e.start == pytest.approx(seconds, rel=1e-9)
            assert e.device == (4, 0, 2)[e.stage]
    for devices in ((0, 1), (0, 1, 5)):
        with pytest.raises(UsageError, match="for 3 stages"):
            plan(world, stages, fill_drain, [3, 2], devices=devices)


# ---- memory


def test_peak_memory_by_formula():
    stages, M, sizes = split(network(128, 128, 128), (1, 2, 3)), 8, [2] * 8
    K, world = 4, World(4)
    P = np.array([2 * s.parameter_bytes for s in stages])  # weights and their gradient
    A = np.array([2 * s.saved_bytes for s in stages])  # of a micro-batch of 2
    inputs = np.array([2 * s.input_bytes for s in stages])

    def peak(schedule, sizes=sizes, **how):
        return peak_memory(stages, sizes, plan(world, stages, schedule, sizes, **how)).tolist()

    assert peak(one_by_one, sizes=[16]) == (P + 8 * A).tolist()
    assert peak(fill_drain) == (P + M * A).tolist()
    # the input of the micro-batch that is computed again is one of its saved tensors
    assert peak(fill_drain, rematerialise=True) == (P + (M - 1) * inputs + A).tolist()
    held = np.array([min(M, K - k) for k in range(K)])
    assert peak(one_f_one_b) == (P + held * A).tolist()


class Kept:
    """What a stage saves for its backward pass, counted until autograd lets go of it."""

    def __init__(self, stages, x):
        self.live, self.peak, self.bytes = {}, [0] * len(stages), [0] * len(stages)
        self.weights = x.untyped_storage().data_ptr()
        self.stages = [replace(v, call=self.watch(s, v.call)) for s, v in enumerate(stages)]

    def watch(self, s, call):
        def watched(w, a):
            with saved_tensors_hooks(lambda t: Token(self, s, t), lambda token: token.t):
                return call(w, a)

        return watched


class Token:
    def __init__(self, kept, s, t):
        self.kept, self.t, self.key = kept, t, (s, t.data_ptr())
        self.size = 0 if t.untyped_storage().data_ptr() == kept.weights else t.nbytes
        kept.live[self.key] = kept.live.get(self.key, 0) + 1
        if kept.live[self.key] == 1:
            kept.bytes[s] += self.size
            kept.peak[s] = max(kept.peak[s], kept.bytes[s])

    def __del__(self):
        self.kept.live[self.key] -= 1
        self.kept.bytes[self.key[0]] -= self.size * (self.kept.live[self.key] == 0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_peak_memory_is_what_autograd_really_keeps(schedule):
    net = network(24, 40, 16, 32)
    stages, sizes = split(net, (1, 3), torch.float64), micro_batches(17, 5)
    x, events = net.init(0, dtype=torch.float64), plan(World(3), stages, schedule, sizes)
    kept = Kept(stages, x)
    play(kept.stages, x, some_batch(17), sizes, events)
    weights = 2 * np.array([s.parameter_bytes for s in stages])
    assert (peak_memory(stages, sizes, events) - weights).tolist() == kept.peak
    assert kept.bytes == [0, 0, 0]  # nothing is left behind


# ---- numbers


@pytest.mark.parametrize("build", [mlp(20, 12, 16), cnn(3, 5)])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gradients_equal_serial_ones(build, schedule):
    net, B = network(build=build), 13
    x, batch = net.init(1, dtype=torch.float64), some_batch(B)
    want, L = serial(net, x, batch), len(net.layers)
    for cuts in itertools.chain(*(itertools.combinations(range(1, L), k) for k in range(L))):
        stages, world = split(net, cuts, torch.float64), World(len(cuts) + 1)
        for M in (1, 2, 5, 13):  # 13 samples in unequal micro-batches
            sizes = micro_batches(B, M)
            close(play(stages, x, batch, sizes, plan(world, stages, schedule, sizes)), want)
            events = plan(world, stages, schedule, sizes, rematerialise=True)
            again = play(stages, x, batch, sizes, events)
            plain = play(stages, x, batch, sizes, plan(world, stages, schedule, sizes))
            assert torch.equal(again, plain)  # not one bit


def test_the_mean_of_unequal_micro_batch_means_would_be_wrong():
    net, sizes = network(12), [5, 2, 6]
    x, (images, labels) = net.init(0, dtype=torch.float64), some_batch(13)
    parts = zip(images.split(sizes), labels.split(sizes), strict=True)
    means = torch.stack([serial(net, x, part) for part in parts])
    stages = split(net, (1,), torch.float64)
    g = play(stages, x, (images, labels), sizes, plan(World(2), stages, fill_drain, sizes))
    close(g, torch.tensor(sizes, dtype=torch.float64) @ means / 13)
    assert (g - means.mean(0)).abs().max() > 1e-3


def test_replay_by_hand_of_two_scalar_layers():
    """z = w2 relu(w1 a): with two logits (z, 0) the loss is log(1 + e^-z) for label 0, so that
    dL/dz = -1 / (1 + e^z), dL/dw2 = dL/dz w1 a, dL/dw1 = dL/dz w2 a."""

    def build(shape, classes):
        return nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 2, bias=False))

    net = Network(build, (1,), 2)
    x = torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64)  # w1, w2, and the second logit's weight
    a = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    z = 2.0 * 0.5 * a
    dz = -1 / (1 + z.exp())
    want = [(dz * 2.0 * a).mean(), (dz * 0.5 * a).mean(), (-dz * 0.5 * a).mean()]
    stages = split(net, (1,), torch.float64)
    g = play(
        stages, x, (a, torch.tensor([0, 0])), [1, 1], plan(World(2), stages, fill_drain, [1, 1])
    )
    close(g, torch.stack(want))


def dropout(shape, classes):
    first = nn.Flatten(1), nn.Linear(64, 30), nn.ReLU(), nn.Dropout(0.5)
    return nn.Sequential(*first, nn.Linear(30, 20), nn.Dropout(0.5), nn.Linear(20, classes))


def test_dropout_breaks_both_equalities():
    """Random layers draw in the order of the timetable, so that samples meet other masks than in
    the whole batch, and others again when a forward is repeated. With equal seeds only the unsplit
    batch, computed once, agrees with the serial run. The links are fast: were they so slow that the
    first stage is through before the second begins, the draws would come in the serial order."""
    net, batch = network(build=dropout), some_batch(12)
    x = net.init(0, dtype=torch.float64)

    def seeded(function, *args):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            return function(*args)

    def gradient(M, **how):
        stages, sizes = split(net, (1,), torch.float64), micro_batches(12, M)
        events = plan(World(2, link=FREE), stages, fill_drain, sizes, **how)
        return seeded(play, stages, x, batch, sizes, events)

    want = seeded(serial, net, x, batch)
    close(gradient(1), want)
    assert (gradient(3) - want).abs().max() > 1e-3
    assert (gradient(1, rematerialise=True) - want).abs().max() > 1e-3


def normed(shape, classes):
    first = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU()
    return nn.Sequential(*first, nn.Flatten(1), nn.Linear(3 * 6 * 6, classes))


def test_batch_norms_see_a_micro_batch_each():
    """A micro-batch has a mean and a variance of its own, so that the gradient is that of the parts
    and not that of the whole batch; a forward that is repeated has the same ones."""
    net, (images, labels) = network(build=normed), some_batch(12)
    x = net.init(0, dtype=torch.float64)
    stages = split(net, (1,), torch.float64)

    def gradient(M, **how):
        sizes = micro_batches(12, M)
        events = plan(World(2), stages, fill_drain, sizes, **how)
        return play(stages, x, (images, labels), sizes, events)

    whole = serial(net, x, (images, labels))
    parts = zip(images.split(4), labels.split(4), strict=True)
    close(gradient(1), whole)
    close(gradient(3), torch.stack([serial(net, x, part) for part in parts]).mean(0))
    assert (gradient(3) - whole).abs().max() > 1e-3
    assert torch.equal(gradient(3, rematerialise=True), gradient(3))
