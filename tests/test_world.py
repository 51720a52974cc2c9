"""The world: times in closed form, bytes, joules, loss, churn, asynchronous arrivals."""

import itertools
from dataclasses import replace

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import close, leaves

from survey_lib import presets
from survey_lib.errors import UsageError
from survey_lib.pipeline import Event
from survey_lib.presets import Device, Link
from survey_lib.streams import stream, uniform
from survey_lib.topology import complete, hypercube, metropolis, ring, star, torus
from survey_lib.world import (
    PATIENCE,
    World,
    exponential,
    lognormal,
    loguniform,
    one_slow,
    weigh,
)

F, L, UP, DOWN = 1e9, 0.01, 1e6, 4e6  # FLOP/s, s, B/s, B/s
DEVICE = Device(F, 1e9, idle=1.0, compute=10.0, radio=3.0, source="test")
LINK = Link(L, UP, DOWN, source="test")


def world(n=4, **how):
    return World(n, **{"device": DEVICE, "link": LINK} | how)


def payload(nbytes, *leading):
    """A tensor of so many bytes per leading row."""
    return torch.zeros(*leading, nbytes, dtype=torch.uint8)


def one_round(w, chosen, size=4000, flops=2e8):
    """Broadcast, compute, gather."""
    reached = w.broadcast(chosen, payload(size))
    w.compute(reached, flops)
    return w.gather(reached, payload(size, len(reached)))


# ---- payloads ---------------------------------------------------------------


def test_weigh():
    assert weigh(torch.zeros(3, 5)) == 60
    assert weigh(torch.zeros(3, 5, dtype=torch.float64)) == 120
    assert weigh(torch.zeros(7, dtype=torch.int32)) == 28
    assert weigh(torch.zeros(7, dtype=torch.bool)) == 7
    assert weigh(torch.zeros(0, 9)) == 0 == weigh(())
    assert weigh(1.5) == 8 == weigh(3)
    assert weigh(torch.zeros(100)[:2]) == 8  # a view: what it shows
    assert weigh(torch.zeros(1).expand(5)) == 20  # sent as 5 numbers
    nested = (torch.zeros(2), [torch.zeros(3, dtype=torch.uint8), 1, (2.0, torch.zeros(1))])
    assert weigh(nested) == 8 + (3 + 8 + (8 + 4))
    flags = np.arange(1000) % 3 == 0
    assert weigh(torch.from_numpy(np.packbits(flags))) == 125  # a bit each


# ---- one round in closed form -----------------------------------------------


def test_round_of_equal_devices():
    """Latency, download, computation, latency, upload; a second round takes as long again."""
    w = world(4)
    span = L + 4000 / DOWN + 2e8 / F + L + 4000 / UP
    for r in (1, 2, 3):
        assert list(one_round(w, np.arange(4))) == [0, 1, 2, 3]
        assert w.clock == pytest.approx(r * span, rel=1e-12)
    np.testing.assert_allclose(w.up, 12000)
    np.testing.assert_allclose(w.down, 12000)
    assert w.server_up == w.server_down == 48000 and w.messages == 24
    totals = w.totals()
    assert totals["bytes"] == 96000 and totals["bytes_busiest"] == 96000
    assert totals["clock"] == w.clock and totals["messages"] == 24


@pytest.mark.parametrize("server", [(1e6, 1e6), (2e7, 3e6), (3e6, inf := float("inf")), (1e9, 1e9)])
def test_round_with_a_finite_server_link(server):
    """k equal transfers at the server: each at min(its own link, C / k)."""
    k, size = 4, 4000
    w = world(6, server=server)
    one_round(w, np.array([0, 2, 3, 5]), size)
    up, down = min(UP, server[1] / k), min(DOWN, server[0] / k)
    assert w.clock == pytest.approx(L + size / down + 0.2 + L + size / up, rel=1e-12)


def test_round_waits_for_the_slowest_device():
    slow = replace(DEVICE, speed=F / 7)
    w = world(3, device=[DEVICE, slow, DEVICE])
    one_round(w, np.arange(3))
    assert w.clock == pytest.approx(L + 4000 / DOWN + 7 * 0.2 + L + 4000 / UP, rel=1e-12)
    np.testing.assert_allclose(w.busy, [0.2, 1.4, 0.2])
    assert w.ready[0] == pytest.approx(w.clock - 6 * 0.2)


def test_unequal_links_by_hand():
    """An upload of 1e6 B at 1e6 and at 2e6 B/s through a server of 2.5e6 B/s: the first is capped
    at 1e6, the second has 1.5e6 left: 1 s and 2/3 s."""
    links = [replace(LINK, latency=0.0), replace(LINK, latency=0.0, up=2e6)]
    w = world(2, link=links, server=(float("inf"), 2.5e6))
    w.gather([0, 1], payload(10**6, 2))
    np.testing.assert_allclose(w.ready, [1, 2 / 3], rtol=1e-12)


def test_scatter_and_lists_weigh_each_payload_of_its_own():
    w = world(3)
    w.scatter([2, 0], [payload(8000), (payload(100), 1.0)])
    np.testing.assert_allclose(w.down, [108, 0, 8000])
    np.testing.assert_allclose(w.ready[[2, 0]], [L + 8000 / DOWN, L + 108 / DOWN])
    w.gather([2, 0], [payload(10), payload(30)])
    np.testing.assert_allclose(w.up, [30, 0, 10])
    np.testing.assert_allclose(w.server_down, 40)


def test_gather_of_tensors_divides_by_the_devices():
    w = world(3)
    w.gather(np.arange(3), (torch.zeros(3, 5), payload(2, 3)))
    np.testing.assert_allclose(w.up, 22)


# ---- exchange ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("W", "degree"), [(ring(8), 2), (torus(16), 4), (hypercube(8), 3), (complete(5), 4)]
)
def test_exchange_of_equal_devices(W, degree):
    """A device sends its row to each neighbour: degree copies through its uplink at one instant."""
    n = len(W)
    w = world(n)
    arrived = w.exchange(W, torch.zeros(n, 500))
    assert torch.equal(arrived, (W > 0) & ~torch.eye(n, dtype=torch.bool))
    assert w.clock == pytest.approx(L + degree * 2000 / min(UP, DOWN), rel=1e-12)
    np.testing.assert_allclose(w.up, degree * 2000)
    np.testing.assert_allclose(w.down, degree * 2000)
    assert w.messages == degree * n and w.server_up == w.server_down == 0
    assert w.totals()["bytes"] == degree * 2000 * n
    assert w.totals()["bytes_busiest"] == 2 * degree * 2000
    w.exchange(W, torch.zeros(n, 500))
    assert w.clock == pytest.approx(2 * (L + degree * 2000 / UP), rel=1e-12)


def test_exchange_on_a_star_is_held_up_by_the_hub():
    """The hub sends 6 copies at UP and hears 6 at DOWN, each no faster than its sender's UP."""
    w = world(7)
    w.exchange(star(7), payload(1000, 7))
    assert w.clock == pytest.approx(L + 6 * 1000 / UP)
    quick = world(7, link=replace(LINK, up=10 * UP))
    quick.exchange(star(7), payload(1000, 7))
    assert quick.clock == pytest.approx(L + 6 * 1000 / DOWN)


def test_exchange_begins_when_all_are_ready_and_the_longer_latency_counts():
    far = replace(LINK, latency=0.5)
    w = world(3, link=[LINK, LINK, far])
    w.compute([1], 3e8)
    w.exchange(metropolis(nx.Graph([(0, 1), (1, 2)])), payload(1000, 3))
    assert w.clock == pytest.approx(0.3 + 0.5 + 1000 / UP)  # the other copy left at 0.31
    w2 = world(2)
    w2.compute([1], 3e8)
    w2.exchange(ring(2), payload(1000, 2))
    np.testing.assert_allclose(w2.wait, [0.3, 0.0], atol=1e-12)


def test_exchange_needs_a_matrix_of_its_size():
    with pytest.raises(UsageError, match=r"W is \(8, 8\) but the world has 10"):
        world(10).exchange(ring(8), torch.zeros(10, 3))


def test_alone_there_is_nothing_to_exchange():
    w = world(1)
    w.compute([0], 1e9)
    assert w.exchange(torch.ones(1, 1), torch.zeros(1, 5)).sum() == 0
    assert w.clock == pytest.approx(1.0) and w.messages == 0


# ---- all-reduce -------------------------------------------------------------


def numbers(n, d, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(n * d), dtype=dtype)


@pytest.mark.parametrize("algorithm", ["ring", "naive", "halving"])
@pytest.mark.parametrize(("n", "d"), [(1, 5), (2, 9), (4, 4), (8, 37), (4, 2)])
def test_allreduce_is_the_sum(algorithm, n, d):
    rows = numbers(n, d)
    close(world(n).allreduce(np.arange(n), rows, algorithm), rows.sum(0))


@pytest.mark.parametrize(("n", "d"), [(3, 10), (5, 23), (7, 7), (6, 4)])
def test_ring_adds_each_block_in_the_order_of_the_ring(n, d):
    """Block b starts at device b and is added to by b + 1, b + 2, ...: bit for bit."""
    rows, want = numbers(n, d, torch.float32), []
    for b, block in enumerate(np.array_split(np.arange(d), n)):
        total = rows[b, block].clone()
        for m in range(1, n):
            total = total + rows[(b + m) % n, block]
        want.append(total)
    assert torch.equal(world(n).allreduce(np.arange(n), rows), torch.cat(want))


@pytest.mark.parametrize("n", [2, 3, 4, 8])
def test_ring_time_and_volume_of_equal_devices(n):
    """2 (n - 1) steps, each of latency and a block of d / n numbers."""
    d = 1200
    w = world(n)
    w.allreduce(np.arange(n), torch.zeros(n, d))
    assert w.clock == pytest.approx(2 * (n - 1) * (L + 4 * d / (n * UP)), rel=1e-12)
    np.testing.assert_allclose(w.up, 4 * 2 * (n - 1) / n * d, rtol=1e-12)
    np.testing.assert_allclose(w.down, 4 * 2 * (n - 1) / n * d, rtol=1e-12)
    assert w.messages == 2 * (n - 1) * n


@pytest.mark.parametrize(("n", "d"), [(3, 100), (7, 1000), (8, 1003), (6, 4)])
def test_ring_volume_of_uneven_blocks(n, d):
    """Device i sends all blocks but i + 1 when scattering and all but i + 2 when gathering: within
    two numbers of 2 (n - 1) / n d, and 2 (n - 1) d in all."""
    w = world(n)
    w.allreduce(np.arange(n), torch.zeros(n, d))
    assert np.abs(w.up / 4 - 2 * (n - 1) / n * d).max() <= 2
    block = np.array([len(b) for b in np.array_split(np.arange(d), n)])
    me = np.arange(n)
    np.testing.assert_allclose(w.up / 4, 2 * d - block[(me + 1) % n] - block[(me + 2) % n])
    np.testing.assert_allclose(w.down, np.roll(w.up, 1))
    assert w.up.sum() == pytest.approx(4 * 2 * (n - 1) * d)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_halving_doubling(k):
    """2 log2 n messages a device of d/2, d/4, ... numbers and back: the ring's volume, fewer
    latencies."""
    n, d = 2**k, 1600
    w = world(n)
    w.allreduce(np.arange(n), torch.zeros(n, d), "halving")
    np.testing.assert_allclose(w.up, 4 * 2 * (n - 1) / n * d)
    assert w.messages == 2 * k * n
    assert w.clock == pytest.approx(2 * k * L + 4 * 2 * (n - 1) / n * d / UP, rel=1e-12)


def test_naive_sends_a_model_to_everybody():
    n, d = 5, 300
    w = world(n)
    w.allreduce(np.arange(n), torch.zeros(n, d), "naive")
    np.testing.assert_allclose(w.up, (n - 1) * 4 * d)
    assert w.messages == n * (n - 1)
    assert w.clock == pytest.approx(L + (n - 1) * 4 * d / UP, rel=1e-12)


@pytest.mark.parametrize("algorithm", ["ring", "halving", "naive"])
def test_allreduce_of_some_devices_leaves_the_others_alone(algorithm):
    w, rows = world(7), numbers(4, 10)
    w.compute([5], 2e8)
    close(w.allreduce([5, 0, 3, 6], rows, algorithm), rows.sum(0))
    assert not w.up[[1, 2, 4]].any() and (w.up[[0, 3, 5, 6]] > 0).all()
    np.testing.assert_allclose(w.wait, [0.2, 0, 0, 0.2, 0, 0, 0.2])
    np.testing.assert_allclose(w.ready[[0, 3, 5, 6]], w.clock)


def test_one_slow_device_stretches_the_ring():
    """Its uplink is 10 times slower: it sends 2 (n - 1) blocks in a row, and all wait."""
    n, d = 6, 600
    w = world(n, link=[replace(LINK, up=UP / 10)] + [LINK] * (n - 1))
    w.allreduce(np.arange(n), torch.zeros(n, d))
    assert w.clock == pytest.approx(2 * (n - 1) * (L + 4 * d / n / (UP / 10)), rel=1e-12)


def test_allreduce_refuses_what_it_cannot_do():
    with pytest.raises(UsageError, match="power of two, there are 6"):
        world(6).allreduce(np.arange(6), torch.zeros(6, 3), "halving")
    with pytest.raises(UsageError, match='algorithm="tree"'):
        world(4).allreduce(np.arange(4), torch.zeros(4, 3), "tree")


def test_nobody_reduces_nothing():
    w = world(3)
    assert torch.equal(w.allreduce([], torch.zeros(0, 4)), torch.zeros(4))
    assert w.clock == PATIENCE and w.messages == 0


# ---- loss -------------------------------------------------------------------


def test_with_loss_1_nothing_arrives_and_bytes_are_sent():
    w = world(4, loss=1.0)
    assert len(w.broadcast(np.arange(4), payload(1000))) == 0
    assert w.server_up == 4000 and w.clock == PATIENCE
    assert len(w.gather(np.arange(4), payload(500, 4))) == 0
    np.testing.assert_allclose(w.up, 500)
    assert w.server_down == 0 and w.messages == 8
    before = w.clock
    assert w.exchange(ring(4), payload(100, 4)).sum() == 0
    np.testing.assert_allclose(w.up, 700)
    assert w.messages == 16 and w.clock == pytest.approx(before + L + 200 / UP)


def test_a_share_p_of_the_messages_is_lost():
    n, p = 20_000, 0.3
    w = world(n, loss=p)
    sd = np.sqrt(p * (1 - p) / n)
    reached = w.broadcast(np.arange(n), payload(8))
    assert len(reached) / n == pytest.approx(1 - p, abs=4 * sd)
    up = w.gather(np.arange(n), payload(8, n))
    assert len(up) / n == pytest.approx(1 - p, abs=4 * sd)
    both = len(np.intersect1d(reached, up)) / n  # the two ways fail independently
    assert both == pytest.approx((1 - p) ** 2, abs=4 / 2 / np.sqrt(n))


def test_a_message_between_devices_meets_both_access_links():
    """Lost unless it passes either: 1 - (1 - 0.1) (1 - 0.3) = 0.37."""
    n = 120
    links = [replace(LINK, loss=0.1), replace(LINK, loss=0.3)] * (n // 2)
    w = world(n, link=links)
    arrived = w.exchange(complete(n), payload(8, n)).double()
    unlike, m = arrived[::2, 1::2], (n // 2) ** 2
    assert unlike.mean().item() == pytest.approx(0.63, abs=4 * np.sqrt(0.63 * 0.37 / m))
    alike = arrived[::2, ::2].sum().item() / (n // 2 * (n // 2 - 1))
    assert alike == pytest.approx(0.81, abs=4 * np.sqrt(0.81 * 0.19 / m))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_retries_follow_the_geometric_law(p):
    """Each message arrives, after 1 / (1 - p) sendings on average, j or more with probability p^(j
    - 1)."""
    n = 20_000
    w = world(n, loss=p, retry=True)
    assert len(w.broadcast(np.arange(n), payload(8))) == n
    tries = w.down / 8
    sd = np.sqrt(p) / (1 - p)
    assert tries.mean() == pytest.approx(1 / (1 - p), abs=4 * sd / np.sqrt(n))
    assert w.messages == tries.sum() == w.server_up / 8
    for j in (2, 3, 5):
        share = p ** (j - 1)
        assert (tries >= j).mean() == pytest.approx(share, abs=4 * np.sqrt(share / n))
    start, sent = L * tries, 8 * tries / DOWN  # each sending costs its latency and its bytes
    np.testing.assert_allclose(w.ready, start + sent)


def test_every_move_pays_each_sending():
    n = 16
    w = world(n, loss=0.6, retry=True)
    assert list(w.gather(np.arange(n), payload(1000, n))) == list(range(n))
    tries = w.up / 1000
    assert tries.max() > 1
    assert w.clock == pytest.approx((tries * (L + 1000 / UP)).max())
    once = L + 1000 / UP
    v = world(2, loss=0.5, retry=True)
    v.exchange(ring(2), payload(1000, 2))
    assert v.messages == v.up.sum() / 1000 > 2
    assert v.clock == pytest.approx(v.up.max() / 1000 * once)
    v = world(2, loss=0.5, retry=True)  # all-reduce: two steps, each as long as its slower message
    v.allreduce([0, 1], payload(2000, 2))
    assert v.messages == v.up.sum() / 1000 > 4
    assert v.up.max() / 1000 * once <= v.clock * (1 + 1e-12)
    assert v.clock <= (v.messages - 2) * once * (1 + 1e-12)


def test_allreduce_and_arrivals_send_again_whatever_the_loss():
    w = world(4, loss=1.0)  # at most 100 sendings each
    rows = numbers(4, 8)
    close(w.allreduce(np.arange(4), rows), rows.sum(0))
    assert w.messages == 100 * 2 * 3 * 4
    w = world(1, loss=1.0)
    list(itertools.islice(w.arrivals(payload(10), payload(10), 1e6), 2))
    assert w.messages == 200


def test_same_seed_same_failures_whatever_else_is_drawn():
    def failures(seed, noise):
        w, seen = world(30, loss=0.3, churn=(5.0, 2.0), jitter=exponential(), seed=seed), []
        for r in range(6):
            if noise:
                torch.rand(r + 1), stream("mine", r).random(9), uniform(np.arange(5), r)
                np.random.random(3)  # noqa: NPY002
            seen += [tuple(one_round(w, np.arange(30))), w.clock]
            seen += [w.exchange(ring(30), payload(10, 30)).numpy().tobytes(), w.totals()]
        return seen

    assert failures(0, False) == failures(0, True)
    assert failures(0, False)[0] != failures(1, False)[0]


def test_impossible_losses_are_refused():
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="probability"):
            world(loss=bad)
    with pytest.raises(UsageError, match="never delivers"):
        world(loss=1.0, retry=True)


# ---- churn ------------------------------------------------------------------


@pytest.mark.parametrize(("on", "off"), [(3.0, 1.0), (1.0, 4.0)])
def test_share_of_time_on(on, off):
    """Stationary from the beginning: on / (on + off) at any time."""
    n = 3000
    w = world(n, churn=(on, off))
    share = on / (on + off)
    for t in (0.0, 0.5, 30.0):
        w.clock = t
        assert len(w.online()) / n == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / n))


def test_times_on_and_off_have_their_means():
    w = world(200, churn=(3.0, 1.0))
    spans = [w.off._until(i, 300.0) for i in range(200)]
    off = np.concatenate([[b - a for a, b in s[1:]] for s in spans])
    on = np.concatenate([[b[0] - a[1] for a, b in itertools.pairwise(s)] for s in spans])
    assert off.mean() == pytest.approx(1.0, abs=4 / np.sqrt(len(off)))
    assert on.mean() == pytest.approx(3.0, abs=4 * 3 / np.sqrt(len(on)))


def test_a_device_that_goes_off_during_the_round_loses_its_upload(tmp_path):
    """A round lasts 0.01 + 0.001 + 0.2 + 0.01 + 0.004 = 0.225 s. 1 is off while it computes and
    back before it sends; 2 is off from the start; 3 goes off after the round."""
    trace = tmp_path / "trace.csv"
    trace.write_text("device,start,end\n1,0.1,0.15\n2,0,0.2\n3,0.3,9\n")
    w = world(4, churn=str(trace))
    reached = w.broadcast(np.arange(4), payload(4000))
    assert list(reached) == [0, 1, 3]
    w.compute(reached, 2e8)
    assert list(w.gather(reached, payload(4000, 3))) == [0, 2]  # positions of 0 and 3
    assert w.clock == pytest.approx(0.225)
    assert w.server_down == 8000 and w.up[1] == 4000  # waited for and sent, in vain
    assert list(w.online()) == [0, 1, 2, 3]
    assert list(one_round(w, np.arange(4))) == [0, 1, 2]
    assert list(w.online()) == [0, 1, 2]


def test_what_was_lost_stays_lost_until_the_next_broadcast():
    """1 goes off while it computes; a second upload in the same round is lost as well."""
    w = world(2, churn=leaves(1, 0.1, 0.15))
    assert list(one_round(w, np.arange(2))) == [0]
    assert w.clock > 0.15
    assert list(w.gather(np.arange(2), payload(10, 2))) == [0]
    assert list(one_round(w, np.arange(2))) == [0, 1]


def test_time_goes_on_when_nobody_is_there():
    off = pd.concat([leaves(i, 0.0, 2.5) for i in range(3)])
    w, tries = world(3, churn=off), 0
    while not len(w.broadcast(np.arange(3), payload(10))):
        tries += 1
        assert w.clock == tries * PATIENCE
    assert tries == 3 and w.server_up == 30
    w = world(3, churn=off)
    w.exchange(complete(3), payload(10, 3))
    assert w.clock == PATIENCE and w.messages == 0
    w.barrier(w.online())
    assert w.clock == 2 * PATIENCE


def test_who_is_off_neither_sends_nor_hears_nor_delays():
    """Device 1 is slow and off; the others exchange without it."""
    w = world(4, churn=leaves(1, 0.1))
    w.compute([1], 9e9)
    w.clock = 0.2
    arrived = w.exchange(complete(4), payload(1000, 4))
    want = 1 - torch.eye(4)
    want[1, :] = want[:, 1] = 0
    assert torch.equal(arrived, want.bool())
    assert w.clock == pytest.approx(0.2 + L + 2 * 1000 / UP)
    np.testing.assert_allclose(w.up, [2000, 0, 2000, 2000])


def test_overlapping_times_off_are_one():
    trace = pd.DataFrame(
        [(0, 10, 20), (0, 0, 100), (0, 100, 110)], columns=["device", "start", "end"]
    )
    w = world(1, churn=trace)
    assert w.off.spans == {0: [(0.0, 110.0)]}
    w.clock = 50.0
    assert len(w.online()) == 0


def test_work_that_pauses():
    """Off from 1 to 2 and from 3 to 5: 3 s of work begun at 0.5 use 0.5, 1, and 1.5 after 5."""
    trace = pd.concat([leaves(0, 1, 2), leaves(0, 3, 5)])
    off = world(1, churn=trace).off
    assert off.finish(0, 0.5, 3.0) == pytest.approx(6.5)
    assert off.finish(0, 0.5, 0.5) == 1.0
    assert off.finish(0, 1.5, 0.5) == 2.5
    assert off.finish(7, 1.5, 0.5) == 2.0  # not in the trace: never off
    assert (
        off.next_off(0, 0.0) == 1 and off.next_off(0, 2.0) == 3 and off.next_off(0, 5.0) == np.inf
    )
    assert off.next_off(0, 1.0) == -np.inf == off.next_off(0, 4.9)


def test_pauses_take_their_share_of_time():
    """Long work lasts (on + off) / on times as long."""
    off = world(1, churn=(3.0, 1.0)).off
    took = np.array([off.finish(i, 0.0, 300.0) for i in range(100)])
    assert took.mean() == pytest.approx(400, rel=0.02)


def test_wrong_churn_is_refused():
    for bad in ((0.0, 1.0), (1.0, -1.0), (1.0, 2.0, 3.0)):
        with pytest.raises(UsageError, match="mean seconds on"):
            world(churn=bad)
    with pytest.raises(UsageError, match="columns device, start, end"):
        world(churn=pd.DataFrame({"device": [1], "from": [0]}))
    with pytest.raises(UsageError, match=r"device 3 is off from 5.0 s to 4.0 s"):
        world(churn=leaves(3, 5.0, 4.0))


# ---- asynchronous arrivals --------------------------------------------------

CYCLE = L + 8000 / DOWN + 0.2 + L + 8000 / UP  # a visit of a payload of 8000 B and 2e8 FLOPs


def visits(w, m, nbytes=8000, flops=2e8, **how):
    """The first m arrivals: [(time, device, next device)], and those that begin."""
    events, begin = [], []
    for i, j in w.arrivals(payload(nbytes), payload(nbytes), flops, **how):
        if i is None:
            begin.append(j)
            assert w.clock == 0
            continue
        events.append((w.clock, i, j))
        if len(events) == m:
            return events, begin


def test_arrivals_of_equal_devices():
    """Wave after wave of all devices, each a cycle apart, in the order of the devices."""
    w = world(4)
    events, begin = visits(w, 12)
    assert sorted(begin) == [0, 1, 2, 3]
    for k, (time, i, j) in enumerate(events):
        assert time == pytest.approx((1 + k // 4) * CYCLE, rel=1e-12)
        assert i == j == k % 4
    np.testing.assert_allclose(w.up, 3 * 8000)
    assert w.server_down == 12 * 8000


def test_arrivals_of_unequal_devices_come_at_multiples_of_their_own_cycles():
    speeds = np.array([1.0, 2.0, 0.4])
    w = world(3, device=[replace(DEVICE, speed=F * s) for s in speeds])
    cycles = CYCLE - 0.2 + 0.2 / speeds
    want = sorted((k * cycles[i], i) for i in range(3) for k in range(1, 40))[:30]
    events, _ = visits(w, 30)
    assert [i for _, i, _ in events] == [i for _, i in want]
    np.testing.assert_allclose([t for t, _, _ in events], [t for t, _ in want], rtol=1e-12)


def test_arrivals_do_not_depend_on_anything_but_the_seed():
    def run(seed):
        how = dict(jitter=lognormal(0.5), loss=0.2, churn=(5.0, 1.0), server=(4e6, 3e6), seed=seed)
        return visits(world(9, **how), 60, active=5)

    assert run(0) == run(0) and run(0) != run(1)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_finite_server_link_is_shared_by_all_transfers(n):
    """Equal devices stay in step: n transfers at once, each at min(own link, C / n)."""
    w = world(n, server=(5e6, 1.5e6))
    cycle = L + 8000 / min(DOWN, 5e6 / n) + 0.2 + L + 8000 / min(UP, 1.5e6 / n)
    events, _ = visits(w, 3 * n)
    np.testing.assert_allclose(
        [t for t, _, _ in events], np.repeat([1, 2, 3], n) * cycle, rtol=1e-9
    )
    assert sorted(i for _, i, _ in events) == sorted(list(range(n)) * 3)


def test_a_finite_but_ample_server_link_changes_nothing():
    devices = [replace(DEVICE, speed=F * s) for s in (1.0, 2.0, 0.4)]
    free, ample = world(3, device=devices), world(3, device=devices, server=(1e9, 1e9))
    a, b = visits(free, 25)[0], visits(ample, 25)[0]
    assert [e[1:] for e in a] == [e[1:] for e in b]
    np.testing.assert_allclose([e[0] for e in a], [e[0] for e in b], rtol=1e-9)
    for name in ("busy", "radio", "up", "down"):
        np.testing.assert_allclose(getattr(free, name), getattr(ample, name), rtol=1e-9)


def test_fewer_active_devices_are_drawn_among_the_idle():
    """One at a time: arrivals a cycle apart, each device one time in n."""
    n, m = 5, 2000
    w = world(n)
    events, begin = visits(w, m, active=1)
    assert len(begin) == 1
    np.testing.assert_allclose(np.diff([t for t, _, _ in events]), CYCLE, rtol=1e-6)
    assert [i for _, i, _ in events] == begin + [j for _, _, j in events[:-1]]
    share = np.bincount([i for _, i, _ in events], minlength=n) / m
    assert np.abs(share - 1 / n).max() < 4 * np.sqrt(0.2 * 0.8 / m)


def test_never_more_than_the_active_are_out():
    out = set()
    for k, (i, j) in enumerate(world(8, jitter=exponential()).arrivals(1.0, 1.0, 1e8, active=3)):
        out.discard(i)
        assert j not in out
        out.add(j)
        assert len(out) == min(k + 1, 3)
        if k == 300:
            break


def test_a_device_pauses_while_it_is_off():
    """Off from 0.1 to 2.1 while it computes: the visit ends 2 s later; the other is not held up."""
    w = world(2, churn=leaves(0, 0.1, 2.1))
    events, _ = visits(w, 12)
    times = {i: [t for t, k, _ in events if k == i] for i in (0, 1)}
    assert times[0][0] == pytest.approx(CYCLE + 2)
    np.testing.assert_allclose(times[1], CYCLE * np.arange(1, len(times[1]) + 1))
    assert w.busy[0] == pytest.approx(0.2 * round(w.busy[0] / 0.2))  # a pause is not work


def test_devices_that_are_gone_are_not_given_work_and_without_any_arrivals_end():
    """2 is never on; 0 leaves during its third cycle of its own, 1 before it is through once."""
    gone = pd.concat([leaves(2, 0.0), leaves(1, CYCLE / 2), leaves(0, 2.5 * CYCLE)])
    w = world(3, churn=gone)
    events = list(itertools.islice(w.arrivals(payload(8000), payload(8000), 2e8), 50))
    assert [i for i, _ in events if i is not None] == [0, 0]
    assert w.clock == pytest.approx(2 * CYCLE)
    w = world(3, churn=leaves(2, 0.0))
    assert {i for _, i, _ in visits(w, 60, active=1)[0]} == {0, 1}


def test_lost_messages_are_sent_again_on_arrival():
    w = world(1, loss=0.5)
    events, _ = visits(w, 400)
    tries = w.messages / 802  # down and up of 400 visits, and what has begun of the next
    assert tries == pytest.approx(2, abs=4 * np.sqrt(2 / 800))
    time = events[-1][0]
    down, up = w.down[0] / 8000, w.up[0] / 8000
    assert time == pytest.approx(
        400 * 0.2 + down * (L + 8000 / DOWN) + up * (L + 8000 / UP), rel=1e-3
    )


@pytest.mark.parametrize("active", [0, -1, 5])
def test_wrong_numbers_of_active_devices_are_refused(active):
    with pytest.raises(UsageError, match=f"active = {active}"):
        next(world(4).arrivals(1.0, 1.0, 1.0, active=active))


# ---- speeds -----------------------------------------------------------------


def test_spreads_by_their_definitions():
    u = (np.arange(100_000) + 0.5) / 100_000
    z = np.log(lognormal(0.7)(u))
    assert z.mean() == pytest.approx(0, abs=1e-6) and z.std() == pytest.approx(0.7, rel=1e-3)
    slow = loguniform(10)(u)
    assert slow.max() <= 1 and slow.min() >= 0.1
    np.testing.assert_allclose(np.log(slow).mean(), -np.log(10) / 2, rtol=1e-6)
    e = exponential()(u)
    assert e.mean() == pytest.approx(1, rel=1e-3) and e.var() == pytest.approx(1, rel=1e-2)
    few = one_slow(0.25, 8)(u)
    assert (few == 1 / 8).mean() == 0.25 and (few == 1).mean() == 0.75


def test_spread_and_jitter_act_on_the_time_of_a_computation():
    n = 2000
    w = world(n, spread=one_slow(0.3, 5.0), seed=2)
    w.compute(np.arange(n), F)
    assert set(np.round(w.busy, 9)) == {1.0, 5.0}
    assert (w.busy > 2).mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / n))
    w = world(n, jitter=exponential())
    w.compute(np.arange(n), F)
    first = w.busy.copy()
    assert first.mean() == pytest.approx(1, abs=4 / np.sqrt(n))
    w.compute(np.arange(n), F)
    second = w.busy - first
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(n)
    alone = world(n, jitter=exponential())
    alone.compute([7], F)
    assert alone.busy[7] == first[7]  # drawn for the device, not for its place in the cohort


# ---- joules and the timeline ------------------------------------------------


def test_joules_by_hand():
    """Each computes 0.2 s at 10 W, receives 4000 / DOWN = 0.001 s and sends 0.004 s at 3 W."""
    w = world(4)
    one_round(w, np.arange(4))
    assert w.joules() == pytest.approx(4 * (0.2 * 10 + 0.005 * 3), rel=1e-12)
    w = world(2)
    w.compute([1], 3e8)
    w.exchange(
        ring(2), payload(1000, 2)
    )  # device 0 waits 0.3 s at 1 W, both exchange 0.011 s at 3 W
    assert w.joules() == pytest.approx(0.3 * 10 + 0.3 * 1 + 2 * 0.011 * 3, rel=1e-12)
    assert w.totals()["joules"] == w.joules()


def test_waiting_within_an_exchange():
    """On a path the ends are done earlier than the middle, which sends two copies."""
    w = world(3)
    w.exchange(metropolis(nx.path_graph(3)), payload(1000, 3))
    # the middle sends two copies at UP / 2 each, 2 ms; all three are busy till then
    np.testing.assert_allclose(w.radio, L + 2000 / UP)
    np.testing.assert_allclose(w.wait, 0, atol=1e-12)
    w = world(4)
    w.exchange(metropolis(nx.Graph([(0, 1), (1, 2), (1, 3)])), payload(1000, 4))
    np.testing.assert_allclose(w.radio + w.wait, w.clock)


def test_timeline_agrees_with_the_accounts():
    w = world(5, record=True, jitter=exponential(), loss=0.3, server=(5e6, 2e6), seed=3)
    for _ in range(4):
        one_round(w, np.arange(5))
    gantt = w.gantt()
    assert list(gantt.columns) == ["device", "start", "end", "what"]
    length = (
        (gantt.end - gantt.start).groupby([gantt.device, gantt.what]).sum().unstack(fill_value=0)
    )
    np.testing.assert_allclose(length["compute"], w.busy)
    np.testing.assert_allclose(length[["receive", "send", "failed"]].sum(axis=1), w.radio)
    assert gantt.end.max() == pytest.approx(w.clock) and gantt.start.min() >= 0
    for _, own in gantt.sort_values("start").groupby("device"):
        assert (own.start.to_numpy()[1:] >= own.end.to_numpy()[:-1] - 1e-9).all()  # one at a time
    failed = (gantt.what == "failed").sum()
    assert failed > 0 and failed + (gantt.what.isin(["receive", "send"])).sum() == w.messages


@pytest.mark.parametrize("server", [(float("inf"),) * 2, (5e6, 2e6)])
def test_timeline_of_arrivals(server):
    """A visit is receive, compute, send without a gap; radio is that without the latencies."""
    w = world(3, record=True, server=server)
    visits(w, 9)
    gantt = w.gantt()
    for _, own in gantt.sort_values("start").groupby("device"):
        kinds = list(own.what)[:9]
        assert kinds == ["receive", "compute", "send"] * 3
        np.testing.assert_allclose(own.start.to_numpy()[1:9], own.end.to_numpy()[:8])
    length = (
        (gantt.end - gantt.start).groupby([gantt.device, gantt.what]).sum().unstack(fill_value=0)
    )
    np.testing.assert_allclose(length["compute"], w.busy)
    moves = gantt.what.isin(["receive", "send"]).groupby(gantt.device).sum()
    np.testing.assert_allclose(length["receive"] + length["send"] - moves * L, w.radio)


def test_no_timeline_unless_asked():
    with pytest.raises(UsageError, match="record=True"):
        world().gantt()
    with_record = world(3, record=True)
    with_record.exchange(ring(3), payload(10, 3))
    with_record.allreduce(np.arange(3), torch.zeros(3, 6))
    gantt = with_record.gantt()
    assert list(gantt.what) == ["exchange"] * 6
    radio = (gantt.end - gantt.start).groupby(gantt.device).sum()
    np.testing.assert_allclose(radio, with_record.radio)


# ---- timetables made elsewhere ----------------------------------------------


def test_replay_charges_a_timetable():
    """0 computes 1 s, sends 100 B in 0.5 s to 1, which computes 2 s and answers 40 B in 0.25 s."""
    w = world(3, record=True)
    w.clock = 10.0
    w.replay(
        [
            Event(0, 0.0, 1.0, "F", 0),
            Event(0, 1.0, 1.5, "send", 0, 100, 1),
            Event(1, 1.5, 3.5, "B", 0),
            Event(1, 3.5, 3.75, "send", 0, 40, 0),
        ]
    )
    assert w.clock == 13.75 and w.messages == 2
    np.testing.assert_allclose(w.up, [100, 40, 0])
    np.testing.assert_allclose(w.down, [40, 100, 0])
    np.testing.assert_allclose(w.busy, [1, 2, 0])
    np.testing.assert_allclose(w.radio, [0.75, 0.75, 0])
    np.testing.assert_allclose(w.wait, [2, 1, 0])  # neither computing nor sending or receiving
    np.testing.assert_allclose(w.ready, 13.75)
    gantt = w.gantt()
    assert list(gantt.start) == [10, 11, 11.5, 13.5] and list(gantt.what) == [
        "F",
        "send",
        "B",
        "send",
    ]
    w.replay([])
    assert w.clock == 13.75


def test_link_between_devices():
    fast = Link(0.1, 9e9, 5e5)
    w = world(2, link=[LINK, fast])
    assert w.link(0, 1) == (0.1, 5e5) and w.link(1, 0) == (0.1, DOWN) and w.link(0, 0) == (L, UP)


# ---- registered devices -----------------------------------------------------


def test_registered_devices_cost_nearly_nothing():
    """100 000 devices of which 10 train: some numbers each, and a round as quick as among 10."""
    w = World(100_000, churn=(100.0, 10.0), spread=lognormal(1.0))
    held = sum(v.nbytes for v in vars(w).values() if isinstance(v, np.ndarray))
    assert held <= 25 * 8 * 100_000 and not w.off.spans
    chosen = stream("who").permutation(100_000)[:10]
    one_round(w, chosen)
    assert set(w.off.spans) == set(chosen)
    assert not w.up[np.setdiff1d(np.arange(100_000), chosen)].any()


def test_presets_by_name_and_by_record():
    w = World(3, device=["phone", "jetson", DEVICE], link="5g")
    np.testing.assert_allclose(
        w.speed, [presets.DEVICES["phone"].speed, presets.DEVICES["jetson"].speed, F]
    )
    np.testing.assert_allclose(w.bandwidth_up, presets.LINKS["5g"].up)
    assert World(2, link="lora").loss.tolist() == [0.1, 0.1]
    assert World(2, link="lora", loss=0).loss.tolist() == [0, 0]


def test_a_wrong_world_is_refused():
    with pytest.raises(UsageError, match="n = 0 devices"):
        World(0)
    with pytest.raises(UsageError, match="2 records for 3 devices"):
        World(3, device=["phone", "jetson"])
    with pytest.raises(UsageError, match="toaster"):
        World(3, device="toaster")
    for chosen in ([0, 4], [-1, 2]):
        with pytest.raises(UsageError, match="the world has 0 to 3"):
            world(4).broadcast(chosen, payload(10))
