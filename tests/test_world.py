"""The world: times in closed form, bytes, joules, waiting rules, loss, churn, fading."""

import itertools
from dataclasses import replace

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import close, leaves

from survey_lib import presets
from survey_lib.churn import Churn
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
    pareto,
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
    np.testing.assert_allclose(w.wait, 2 * L + np.array([1.2, 0.0, 1.2]))
    np.testing.assert_allclose(w.ready, w.clock)  # free when the round is over


def test_unequal_links_by_hand():
    """An upload of 1e6 B at 1e6 and at 2e6 B/s through a server of 2.5e6 B/s: the first is capped
    at 1e6, the second has 1.5e6 left: 1 s and 2/3 s."""
    links = [replace(LINK, latency=0.0), replace(LINK, latency=0.0, up=2e6)]
    w = world(2, link=links, server=(float("inf"), 2.5e6))
    np.testing.assert_allclose(w.uploads([0, 1], payload(10**6, 2)), [1, 2 / 3], rtol=1e-12)


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


# ---- where the seconds of a round go -------------------------------------------------------------


def uneven(n=6, **how):
    """Speeds, latencies and bandwidths that all differ."""
    devices = [replace(DEVICE, speed=F / (1 + i)) for i in range(n)]
    links = [
        Link(L * (1 + i % 3), UP / (1 + i % 4), DOWN / (1 + i % 2), source="test") for i in range(n)
    ]
    return world(n, device=devices, link=links, **how)


def phases(w, all_of):
    """Gathers without a broadcast, of what is ready at unlike times."""
    w.compute(all_of, 1e7)
    w.gather(all_of, payload(300, len(all_of)))
    w.gather(all_of, payload(300, len(all_of)))
    w.compute(all_of, 1e7)
    w.barrier(all_of)


def one_gather(w, all_of, **rule):
    w.compute(w.broadcast(all_of, payload(4000)), 2e8)
    w.gather(all_of, payload(4000, len(all_of)), **rule)


MOVES = {
    "round": one_gather,
    "first": lambda w, i: one_gather(w, i, first=3),
    "deadline": lambda w, i: one_gather(w, i, deadline=0.6),
    "serial": lambda w, i: one_gather(w, i[::-1], serial=True),
    "serial first": lambda w, i: one_gather(w, i, serial=True, first=2),
    "phases": phases,
    "multicast": lambda w, i: w.barrier(w.broadcast(i, payload(4000), multicast=True)),
    "exchange": lambda w, i: w.exchange(metropolis(nx.path_graph(len(i))), payload(900, len(i))),
    "ring": lambda w, i: w.allreduce(i, torch.zeros(len(i), 600)),
    "naive": lambda w, i: w.allreduce(i, torch.zeros(len(i), 600), "naive"),
    "halving": lambda w, i: w.allreduce(i[:4], torch.zeros(4, 600), "halving"),
}


@pytest.mark.parametrize(
    "how",
    [
        {},
        dict(jitter=exponential(), seed=1),
        dict(loss=0.3, retry=True),
        dict(server=(5e6, 1e6)),
        dict(crash=0.4),
        dict(fading=(0.3, 0.2, 0.2)),
    ],
    ids=lambda how: " ".join(how),
)
@pytest.mark.parametrize("move", MOVES)
def test_every_second_of_a_round_is_in_one_account(move, how):
    """busy + radio + wait = clock for whoever takes part in all rounds."""
    w = uneven(**how)
    part = np.arange(4 if move == "halving" else 6)
    for _ in range(3):
        before = w.clock
        MOVES[move](w, np.arange(6))
        assert w.clock > before
        spent = w.busy + w.radio + w.wait
        np.testing.assert_allclose(spent[part], w.clock, rtol=1e-9)
        assert min(w.busy.min(), w.radio.min(), w.wait.min()) >= 0


def test_who_is_not_asked_is_charged_nothing():
    w = world(3)
    for _ in range(2):
        one_round(w, np.array([0, 2]))
    assert w.busy[1] == w.radio[1] == w.wait[1] == w.ready[1] == 0
    w.barrier([1])
    assert w.wait[1] == 0  # it was done long before


def test_nobody_works_in_the_past():
    """A device that has idled begins at the clock, whatever it is asked for first."""
    w = world(3)
    w.clock = 5.0
    w.compute([0], 2e8)
    assert w.ready[0] == pytest.approx(5.2)
    np.testing.assert_allclose(w.uploads([1], payload(4000, 1)), 5 + L + 4000 / UP)
    w.close([1], 6.0)
    w.barrier([0, 2])
    assert w.clock == 6 and w.wait[2] == 0
    np.testing.assert_allclose(w.ready, 6)


def test_a_barrier_is_waited_for():
    """1 computes for 0.5 s; 0 waits 0.3 s for it, and goes on after it."""
    w = world(2)
    w.compute([0, 1], [2e8, 5e8])
    w.barrier([0, 1])
    np.testing.assert_allclose(w.wait, [0.3, 0])
    w.compute([0], 2e8)
    assert w.ready[0] == pytest.approx(0.7)


def test_a_second_message_finds_the_device_at_work():
    """It computes until 0.211; a second broadcast at 0 arrives meanwhile and does not free it."""
    w = world(1)
    w.compute(w.broadcast([0], payload(4000)), 2e8)
    w.broadcast([0], payload(4000))
    assert w.ready[0] == pytest.approx(L + 0.001 + 0.2)
    w.compute([0], 2e8)
    w.gather([0], payload(4000, 1))
    assert w.clock == pytest.approx(L + 0.001 + 0.4 + L + 0.004)
    assert w.busy[0] == pytest.approx(0.4) and w.wait[0] == pytest.approx(2 * L)
    w = world(1)
    w.compute(w.broadcast([0], payload(4000)), 2e8)
    w.broadcast([0], payload(400_000))  # until 0.11; it computes all the time from 0.011
    w.close([0], 0.05)
    assert w.busy[0] == pytest.approx(0.05 - 0.011)


# ---- multicast -----------------------------------------------------------------------------------


@pytest.mark.parametrize("server", [np.inf, 5e5])
def test_multicast_is_one_transmission_at_the_slowest_rate(server):
    links = [replace(LINK, down=d) for d in (4e6, 1e6, 2e6)]
    w = world(4, link=[*links, LINK], server=(server, np.inf))
    assert list(w.broadcast([0, 1, 2], payload(4000), multicast=True)) == [0, 1, 2]
    assert w.server_up == 4000 and w.messages == 1
    np.testing.assert_allclose(w.down, [4000, 4000, 4000, 0])
    air = 4000 / min(1e6, server)
    np.testing.assert_allclose(w.ready, [L + air] * 3 + [0])
    np.testing.assert_allclose(w.radio, [air] * 3 + [0])
    plain = world(4, link=[*links, LINK], server=(server, np.inf))
    plain.broadcast([0, 1, 2], payload(4000))
    assert plain.server_up == 12000 and plain.messages == 3


def test_multicast_to_some_that_do_not_hear():
    n = 2000
    w = world(n, loss=0.3, churn=leaves(0, 0.0, 9.0))
    reached = w.broadcast(np.arange(n), payload(10), multicast=True)
    assert 0 not in reached
    assert len(reached) / n == pytest.approx(0.7, abs=4 * np.sqrt(0.21 / n))
    assert w.server_up == 10 and w.messages == 1 and w.down.sum() == 10 * (n - 1)
    w = world(2, loss=1.0)
    assert len(w.broadcast([0, 1], payload(10), multicast=True)) == 0 and w.clock == PATIENCE
    assert len(w.broadcast([], payload(10), multicast=True)) == 0 and w.clock == 2 * PATIENCE
    assert w.messages == 1
    w = world(n, loss=0.5, retry=True)  # until the last one has it
    assert len(w.broadcast(np.arange(n), payload(10), multicast=True)) == n
    assert w.server_up == w.down.max() == 10 * w.messages and w.messages > 5
    np.testing.assert_allclose(w.ready, w.down / 10 * (L + 10 / DOWN))  # each when it has it
    assert w.lost == w.server_up - 10


def test_what_is_sent_and_does_not_arrive_is_lost():
    """By hand: a download of 8 B that nobody hears, an upload cut when half is sent, an exchange
    that arrives."""
    w = world(2, loss=1.0)
    w.broadcast([0, 1], payload(8))
    assert w.lost == w.server_up == 16
    w = world(2)
    w.uploads([0, 1], payload(4000, 2))
    w.close([0, 1], L + 0.002)  # the upload takes 0.004 s
    assert w.lost == pytest.approx(4000) and w.up.sum() == pytest.approx(4000)
    w.exchange(ring(2), payload(100, 2))
    assert w.lost == pytest.approx(4000) and w.up.sum() == pytest.approx(4200)


# ---- rules of waiting ----------------------------------------------------------------------------

ROUND = L + 4000 / DOWN + 0.2 + L + 4000 / UP  # a round of payloads of 4000 B and 2e8 FLOPs


def quick_and_slow(*times, **how):
    """A device for each number: it computes so many times longer than F."""
    return world(len(times), device=[replace(DEVICE, speed=F / t) for t in times], **how)


def begin(w, chosen, flops=2e8):
    """Broadcast and compute."""
    reached = w.broadcast(chosen, payload(4000))
    w.compute(reached, flops)
    return reached


@pytest.mark.parametrize("N", [1, 2, 4, 5])
def test_first_takes_exactly_so_many_even_of_equals(N):
    """All five come at the same instant: the first in `chosen` count, all have been sent."""
    w = world(6)
    chosen = begin(w, np.array([5, 3, 1, 0, 4]))
    assert list(w.gather(chosen, payload(4000, 5), first=N)) == list(range(N))
    assert w.clock == pytest.approx(ROUND)
    assert w.up.sum() == w.server_down == 5 * 4000 and w.messages == 10


def test_more_than_there_are_waits_for_all():
    for first in (3, 4, 100):
        w = quick_and_slow(1, 2, 3)
        begin(w, np.arange(3))
        assert list(w.gather(np.arange(3), payload(4000, 3), first=first)) == [0, 1, 2]
        assert w.clock == pytest.approx(ROUND + 0.4)


def test_what_is_cancelled_costs_what_was_done_until_then():
    """0 is through after 0.225 s. 1 and 2 have then computed for 0.225 - 0.011 s and sent nothing,
    and all three begin anew."""
    w = quick_and_slow(1, 2, 40, record=True)
    for r in (1, 2, 3):
        begin(w, np.arange(3))
        assert list(w.gather(np.arange(3), payload(4000, 3), first=1)) == [0]
        assert w.clock == pytest.approx(r * ROUND)
        np.testing.assert_allclose(w.ready, w.clock)
    got = ROUND - L - 0.001
    np.testing.assert_allclose(w.busy, 3 * np.array([0.2, got, got]))
    np.testing.assert_allclose(w.up, [12000, 0, 0])
    np.testing.assert_allclose(w.radio, [0.015, 0.003, 0.003])
    np.testing.assert_allclose(w.wait, [3 * 2 * L, 3 * L, 3 * L])
    assert w.messages == 3 * (3 + 1) and w.server_down == 12000
    bars = w.gantt()
    length = (bars.end - bars.start).groupby([bars.device, bars.what]).sum()
    np.testing.assert_allclose(length[:, "compute"], w.busy)  # the timeline ends there too
    assert bars.end.max() == pytest.approx(w.clock) and (bars.what == "send").sum() == 3


def test_an_upload_that_is_cut_has_sent_its_share():
    """Without latency, 4000 B take 4 ms, 40 ms and 1 s: when the first is through, the others have
    sent 4 ms' worth."""
    links = [Link(0.0, up, DOWN, source="test") for up in (UP, UP / 10, UP / 250)]
    w = world(3, link=links, record=True)
    assert list(w.gather(np.arange(3), payload(4000, 3), first=1)) == [0]
    np.testing.assert_allclose(w.up, [4000, 400, 16])
    np.testing.assert_allclose(w.radio, 0.004)
    assert w.server_down == 4000 and w.messages == 3
    assert sorted(w.gantt().what) == ["failed", "failed", "send"]


def test_an_upload_that_is_cut_in_its_latency_has_sent_nothing():
    w = world(2, link=[LINK, replace(LINK, latency=1.0)])
    w.gather([0, 1], payload(4000, 2), first=1)
    np.testing.assert_allclose(w.up, [4000, 0])
    np.testing.assert_allclose(w.wait, [L, L + 0.004])
    assert w.messages == 2 and w.radio[1] == 0


def test_who_has_not_even_begun_to_compute_is_free_of_charge():
    """Its download takes 1 s, and is paid; the others are through long before."""
    w = world(3, link=[LINK, LINK, replace(LINK, down=4000)])
    begin(w, np.arange(3))
    assert list(w.gather(np.arange(3), payload(4000, 3), first=2)) == [0, 1]
    assert w.busy[2] == pytest.approx(0, abs=1e-12)
    assert w.radio[2] == pytest.approx(1) and w.down[2] == 4000
    assert w.ready[2] == w.clock == pytest.approx(ROUND)


@pytest.mark.parametrize(("P", "K"), [(10, 4), (10, 10), (5, 1)])
def test_the_first_K_of_P_exponential_times(P, K):
    """The time is H_P - H_(P-K) on average, and the devices compute K s in all: each is through
    with the same chance at any instant (Renyi, 1953)."""
    rounds, w = 3000, world(P, link=Link(0.0, 1e12, 1e12, source="test"), jitter=exponential())
    for _ in range(rounds):
        w.compute(np.arange(P), F)
        w.gather(np.arange(P), payload(0, P), first=K)
    gaps = 1 / np.arange(P - K + 1, P + 1)  # means and standard deviations of the K gaps
    assert w.clock / rounds == pytest.approx(gaps.sum(), abs=3 * np.sqrt((gaps**2).sum() / rounds))
    assert w.busy.sum() / rounds == pytest.approx(K, abs=3 * np.sqrt(K / rounds))


def test_a_deadline_ends_the_round():
    """Through after 0.225, 0.425 and 0.625 s."""
    ends = ((0.1, 0, 0.1), (0.5, 2, 0.5), (0.625, 3, 0.625), (9, 3, 0.625), (np.inf, 3, 0.625))
    for deadline, want, end in ends:
        w = quick_and_slow(1, 2, 3)
        for r in (1, 2):
            begin(w, np.arange(3))
            up = w.gather(np.arange(3), payload(4000, 3), deadline=deadline + 1e-12)
            assert list(up) == list(range(want))
            assert w.clock == pytest.approx(r * end)
        np.testing.assert_allclose(w.up, 8000 * (np.arange(3) < want))
    assert len(world(2).gather([0, 1], payload(10, 2), deadline=0)) == 0


def test_the_first_or_the_deadline_whatever_comes_earlier():
    for first, deadline, want, end in ((1, 0.5, 1, 0.225), (3, 0.5, 2, 0.5), (2, 9.0, 2, 0.425)):
        w = quick_and_slow(1, 2, 3)
        begin(w, np.arange(3))
        up = w.gather(np.arange(3), payload(4000, 3), first=first, deadline=deadline)
        assert len(up) == want and w.clock == pytest.approx(end)


def test_nobody_to_wait_for():
    w = world(3)
    assert len(w.gather([], payload(10, 0))) == 0 and w.clock == 0
    assert len(w.gather([], payload(10, 0), deadline=np.inf)) == 0 and w.clock == 0
    assert len(w.gather([], payload(10, 0), deadline=2.5)) == 0 and w.clock == 2.5
    assert len(w.uploads([], [])) == 0
    w.close([], 1.0)
    assert w.clock == 2.5 and w.messages == 0
    w = world(2, link=replace(LINK, latency=0.0))
    assert list(w.gather([0, 1], payload(0, 2))) == [0, 1]  # nothing to send takes no time
    assert w.clock == 0 and w.messages == 2


def test_uploads_are_due_until_they_are_closed():
    """Computing takes 0.2 s and 0.8 s; who crashes is due when its upload would be through."""
    for crash in (0.0, 1.0):
        w = quick_and_slow(1, 4, 1, crash=crash)
        w.uploads(begin(w, [0, 1]), payload(4000, 2))
        np.testing.assert_allclose(w.due([1, 0, 2]), [ROUND + 0.6, ROUND, 0])
        w.close([0], ROUND)
        np.testing.assert_allclose(w.due([1, 0]), [ROUND + 0.6, 0])


def test_of_whom_nothing_arrives_is_given_up_at_the_deadline():
    """Or waited for as long as it would take, unless enough others come."""
    for how in (dict(churn=leaves(1, 0.1, 0.15)), dict(link=[LINK, replace(LINK, loss=1.0), LINK])):
        for rule, end in (
            (dict(), 0.214),
            (dict(deadline=np.inf), 0.214),
            (dict(deadline=0.7), 0.7),
            (dict(first=3), 0.214),
        ):
            w = world(3, **how)
            w.compute(np.arange(3), 2e8)
            assert list(w.gather(np.arange(3), payload(4000, 3), **rule)) == [0, 2]
            assert w.clock == pytest.approx(end)
        w = world(3, **how)
        w.compute(np.arange(3), [2e8, 9e8, 3e8])
        assert list(w.gather(np.arange(3), payload(4000, 3), first=2, deadline=7.0)) == [0, 2]
        assert w.clock == pytest.approx(0.3 + L + 0.004)


def test_wrong_rules_are_refused():
    w = world(2)
    for bad in (0, -1):
        with pytest.raises(UsageError, match=f"first = {bad} uploads"):
            w.gather([0, 1], payload(10, 2), first=bad)
    for bad in (-0.1, float("nan")):
        with pytest.raises(UsageError, match="deadline = "):
            w.gather([0, 1], payload(10, 2), deadline=bad)
    for bad in (np.inf, float("nan")):
        with pytest.raises(UsageError, match="finite time"):
            w.close([0], bad)
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="crash = "):
            world(crash=bad)
    for bad in ((0.5, 1.0), (0.0, 1.0, 1.0), (0.5, 0.0, 1.0), (0.5, 1.0, -1.0)):
        with pytest.raises(UsageError, match="fading = "):
            world(fading=bad)
    assert w.clock == 0 and w.messages == 0


# ---- one shared channel --------------------------------------------------------------------------


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
@pytest.mark.parametrize("server", [np.inf, 5e5])
def test_uploads_one_after_another(order, server):
    """Theta_i = max(Theta_(i-1), ready_i + L) + t_i, in the given order."""
    w = quick_and_slow(1, 3, 2, 1, server=(np.inf, server))
    w.compute(np.arange(4), 1e7)
    theta, want = 0.0, []
    for i in order:
        theta = max(theta, 0.01 * [1, 3, 2, 1][i] + L) + 4000 * (1 + i) / min(UP, server)
        want.append(theta)
    sizes = [payload(4000 * (1 + i)) for i in order]
    np.testing.assert_allclose(w.uploads(order, sizes, serial=True), want, rtol=1e-12)
    w.close(order, theta)
    air = 4000 * np.arange(1, 5) / min(UP, server)
    np.testing.assert_allclose(w.radio, air)
    np.testing.assert_allclose(w.wait, theta - w.busy - air)


def test_serial_of_one_is_parallel_and_the_others_take_the_channel_in_turn():
    ends = []
    for serial in (False, True):
        w = world(1)
        w.gather([0], payload(4000, 1), serial=serial)
        ends.append(w.clock)
    assert ends[0] == ends[1] == pytest.approx(L + 0.004)
    w = world(5)
    assert list(w.gather(np.arange(5), payload(4000, 5), serial=True, first=3)) == [0, 1, 2]
    assert w.clock == pytest.approx(L + 3 * 0.004)
    np.testing.assert_allclose(w.up, [4000, 4000, 4000, 0, 0])
    w = world(3, loss=1.0)  # lost messages take the channel as well
    assert len(w.gather(np.arange(3), payload(4000, 3), serial=True)) == 0
    assert w.clock == pytest.approx(L + 3 * 0.004)


# ---- uploads that stay pending -------------------------------------------------------------------


def test_uploads_cost_nothing_before_they_are_closed():
    w = world(2)
    w.compute([0, 1], [2e8, 4e8])
    before = w.totals()
    times = w.uploads([0, 1], payload(4000, 2))
    np.testing.assert_allclose(times, [0.214, 0.414])
    assert w.totals() == before and not w.radio.any() and not w.wait.any()
    w.close([0, 1], times.max())
    np.testing.assert_allclose(w.wait, [L + 0.2, L])
    assert w.totals()["bytes"] == 8000 and w.server_down == 8000


def test_some_stay_pending_while_others_go_round_and_round():
    """They compute 0.2, 0.8 and 2 s. 0 takes part in three rounds of 0.225 s, 1 comes between the
    third and the fourth, at 0.825 s, and 2 is cancelled at 1 s."""
    w = quick_and_slow(1, 4, 10)
    begin(w, np.arange(3))
    times = w.uploads(np.arange(3), payload(4000, 3))
    np.testing.assert_allclose(times, [ROUND, ROUND + 0.6, ROUND + 1.8])
    w.close([0], times[0])
    for r in (2, 3):
        assert list(w.online()) == [0, 1, 2]  # asks who is there, and disturbs nobody
        begin(w, [0])
        assert list(w.gather([0], payload(4000, 1))) == [0]
        assert w.clock == pytest.approx(r * ROUND) and w.up[1] == 0
    w.close([1], times[1])
    assert w.clock == pytest.approx(0.825)
    np.testing.assert_allclose(w.up, [12000, 4000, 0])
    np.testing.assert_allclose(w.busy[:2], [0.6, 0.8])
    assert w.busy[1] + w.radio[1] + w.wait[1] == pytest.approx(w.clock)
    begin(w, [0, 1])
    w.close([2], 1.0)
    assert w.up[2] == 0 and w.busy[2] == pytest.approx(1.0 - L - 0.001) and w.clock == 1.0
    assert w.busy[2] + w.radio[2] + w.wait[2] == pytest.approx(1.0)
    assert list(w.gather([0, 1], payload(4000, 2), first=1)) == [0]
    assert w.clock == pytest.approx(0.825 + ROUND)
    begin(w, [2])
    assert list(w.gather([2], payload(4000, 1))) == [0]
    assert w.up[2] == 4000 and w.clock == pytest.approx(0.825 + 2 * ROUND + 1.8)


def test_what_came_before_the_clock_is_closed_at_the_clock():
    """0 was through at 0.225 s, the server asks for it at 0.5 s; the clock does not go back."""
    w = quick_and_slow(1, 4)
    begin(w, [0, 1])
    times = w.uploads([0, 1], payload(4000, 2))
    w.clock = 0.5
    w.close([0, 1], times[0])
    assert w.clock == 0.5
    np.testing.assert_allclose(w.ready, 0.5)
    np.testing.assert_allclose(w.up, [4000, 0])
    np.testing.assert_allclose(w.busy + w.radio + w.wait, 0.5)


def test_a_second_close_finds_nothing():
    w = world(2, record=True)
    begin(w, [0, 1])
    w.gather([0, 1], payload(4000, 2))
    once, bars = w.totals() | dict(wait=w.wait.sum()), len(w.timeline)
    w.close([0, 1], w.clock)
    assert w.totals() | dict(wait=w.wait.sum()) == once and len(w.timeline) == bars
    w.close([0, 1], w.clock + 1)
    assert w.totals() | dict(wait=w.wait.sum()) == once | dict(clock=once["clock"] + 1)


def test_close_cancels_computing_without_an_upload():
    w = world(1, record=True)
    w.compute([0], 1e9)
    w.close([0], 0.25)
    assert w.busy[0] == w.ready[0] == 0.25 and w.messages == 0
    w.compute([0], 1e9)
    w.compute([0], 1e9)
    w.close([0], 1.0)  # in the first of two: the second never begins
    assert w.busy[0] == 1.0
    assert list(w.gantt().end) == [0.25, 1.0] and list(w.gantt().start) == [0, 0.25]


@pytest.mark.parametrize("seed", range(6))
def test_whatever_a_rule_does_the_accounts_stay_sound(seed):
    """Devices begin, are closed when they are through or cancelled, in no order: no account is ever
    negative or counts a second twice, what arrives was sent, and the clock does not go back."""
    rng, n = stream("rule", seed), 7
    how = dict(jitter=lognormal(1.0), crash=0.1, fading=(0.2, 1.0, 1.0), server=(9e6, 2e6))
    how |= dict(churn=(20.0, 1.0), loss=0.2, retry=bool(seed % 2), record=seed < 2)
    w, due, away = uneven(n, seed=seed, **how), np.full(n, np.inf), np.zeros(n, bool)
    sizes, arrived = 500 * np.arange(1, n + 1), 0
    for _ in range(120):
        before = w.clock
        idle = np.flatnonzero(~away)
        idle = w.broadcast(idle[rng.random(len(idle)) < 0.7], payload(1000))
        w.compute(idle, 1e8)
        list_of = [payload(int(sizes[i])) for i in idle]
        due[idle], away[idle] = w.uploads(idle, list_of, serial=rng.random() < 0.3), True
        when = due.min() if np.isfinite(due.min()) else w.clock + 0.5
        when = max(when, w.began.max())  # not while somebody still receives
        over = away & ((due <= when) | (rng.random(n) < 0.2))
        w.close(np.flatnonzero(over), when)
        arrived += sizes[over & (due <= w.clock)].sum()
        due[over], away[over] = np.inf, False
        assert w.clock >= before
        for account in (w.busy, w.radio, w.wait, w.up, w.down):
            assert account.min() >= -1e-9
        spent = w.busy + w.radio + w.wait
        assert (spent <= np.maximum(w.clock, w.ready) + 1e-9).all()
        assert (w.ready[over] <= w.clock).all()
        assert w.server_down >= arrived - 1e-6 if w.retry else w.server_down == arrived
        assert w.up.sum() >= w.server_down - 1e-6
    assert arrived > 0 and w.up.sum() > w.server_down


# ---- crashes -------------------------------------------------------------------------------------


def test_of_a_crashed_device_nothing_arrives_and_nothing_is_sent():
    for rule, end in ((dict(), ROUND), (dict(deadline=0.5), 0.5), (dict(first=1), ROUND)):
        w = world(3, crash=1.0)
        begin(w, np.arange(3))
        assert len(w.gather(np.arange(3), payload(4000, 3), **rule)) == 0
        assert w.clock == pytest.approx(end)
        np.testing.assert_allclose(w.busy, 0.2)
        np.testing.assert_allclose(w.radio, 0.001)  # the download
        assert w.up.sum() == w.server_down == 0 and w.messages == 3


def test_a_share_crashes_in_each_round_anew():
    n, p = 20_000, 0.3
    w = world(n, crash=p)
    first, second = (one_round(w, np.arange(n), size=10) for _ in range(2))
    assert len(first) / n == pytest.approx(1 - p, abs=4 * np.sqrt(p * (1 - p) / n))
    both = len(np.intersect1d(first, second)) / n
    assert both == pytest.approx((1 - p) ** 2, abs=2 / np.sqrt(n))
    assert w.up.sum() == 10 * (len(first) + len(second)) == w.server_down


def test_relatives_meet_the_same_crashes():
    """However often they compute, ask who is on, or who else takes part."""
    plain, other = world(50, crash=0.4), world(50, crash=0.4)
    for _ in range(4):
        begin(plain, np.arange(50))
        begin(other, np.arange(50))
        other.compute(other.online(), 1e6)
        a = plain.gather(np.arange(50), payload(10, 50))
        b = other.gather(np.arange(20, 40), payload(10, 20), first=30)
        assert set(b + 20) == set(a) & set(range(20, 40))


@pytest.mark.parametrize("serial", [False, True])
def test_a_crashed_device_leaves_the_server_to_the_others(serial):
    """Two at once need 8 ms at 1e6 B/s, one after the other as well; alone, 4 ms."""
    first = (s for s in range(50) if list(one_round(world(2, crash=0.5, seed=s), [0, 1])) == [1])
    how = dict(seed=next(first), server=(np.inf, UP))  # 0 crashes, and 1 does not
    times = world(2, **how).uploads([0, 1], payload(4000, 2), serial=serial)
    assert times[1] == pytest.approx(L + 0.008)
    times = world(2, crash=0.5, **how).uploads([0, 1], payload(4000, 2), serial=serial)
    assert times[0] == np.inf and times[1] == pytest.approx(L + 0.004)


# ---- fading --------------------------------------------------------------------------------------


def bad_spell(n, start, end, factor=0.5, **how):
    """A world in which device 0's link is `factor` times as fast from start to end."""
    w = world(n, **how)
    w.fading = (factor, Churn(leaves(0, start, end), 0))
    return w


def test_a_transfer_goes_at_the_speed_of_the_spell_in_which_it_begins():
    """A download begins at 0, an upload at 0.221; the spell begins at 0.1."""
    w = bad_spell(2, 0.1, 1.0)
    begin(w, [0, 1])
    np.testing.assert_allclose(w.ready, L + 0.001 + 0.2)
    np.testing.assert_allclose(w.uploads([0, 1], payload(4000, 2)), [ROUND + 0.004, ROUND])
    serial = w.uploads([1, 0], payload(4000, 2), serial=True)
    np.testing.assert_allclose(serial, [ROUND, ROUND + 0.008])
    w.close([0, 1], 1.0)
    assert w.link(0, 1) == w.link(1, 0) == (L, UP)  # the spell is over
    w = bad_spell(2, 0.0, 1.0)
    assert w.link(0, 1) == (L, UP / 2) and w.link(1, 0) == (L, UP) and w.link(0, 1, 1.5) == (L, UP)
    w.broadcast([0, 1], payload(4000))
    np.testing.assert_allclose(w.ready, [L + 0.002, L + 0.001])
    w = bad_spell(2, 0.0, 1.0)
    w.broadcast([0, 1], payload(4000), multicast=True)  # all at the pace of the slowest
    np.testing.assert_allclose(w.ready, L + 0.002)


@pytest.mark.parametrize("when", [0.0, 0.2])
def test_an_exchange_that_begins_in_a_bad_spell(when):
    """The exchange begins after 0.2 s of computing. Each time is that of the slower message."""
    for start, end in ((when, 0.3), (0.0, 0.2)):
        slow = 2 if start <= 0.2 < end else 1
        for move, seconds in (
            (lambda w: w.exchange(ring(2), payload(1000, 2)), L + slow * 0.001),
            (lambda w: w.allreduce([0, 1], payload(1000, 2), "naive"), L + slow * 0.001),
            (lambda w: w.allreduce([0, 1], payload(1000, 2)), 2 * (L + slow * 0.0005)),
        ):
            w = bad_spell(2, start, end)
            w.compute([1], 2e8)
            move(w)
            assert w.clock == pytest.approx(0.2 + seconds)


def test_the_same_exchange_again_after_the_spell():
    w = bad_spell(2, 0.0, 0.01)
    for want in (L + 0.002, L + 0.001, L + 0.001):
        before = w.clock
        w.exchange(ring(2), payload(1000, 2))
        assert w.clock - before == pytest.approx(want)


def test_a_device_knows_its_rates_and_when_it_leaves():
    w = bad_spell(3, 1.0, 3.0, 0.25)
    for clock, factor in ((0.0, 1.0), (2.0, 0.25), (4.0, 1.0)):
        w.clock = clock
        up, down = w.rates([2, 0])
        assert (up == [UP, factor * UP]).all() and (down == [DOWN, factor * DOWN]).all()
    assert (w.leaves([0, 1]) == np.inf).all()
    w = world(churn=leaves(1, 1.0, 3.0))
    for clock, left in ((0.0, 1.0), (2.0, -np.inf), (3.0, np.inf)):
        w.clock = clock
        assert (w.leaves([0, 1]) == [np.inf, left]).all()
    assert all(len(v) == 0 for v in (w.leaves([]), *w.rates([])))


def test_fading_by_1_is_no_fading_and_bad_spells_have_their_share():
    n, runs = 5, []
    for fading in (None, (1.0, 0.5, 0.5)):
        w = world(n, fading=fading, jitter=exponential(), loss=0.2)
        one_round(w, np.arange(n))
        w.exchange(ring(n), payload(100, n))
        w.allreduce(np.arange(n), torch.zeros(n, 10))
        runs.append(w.totals())
    assert runs[0] == runs[1]
    n = 4000
    w = world(n, fading=(0.25, 3.0, 1.0))
    w.broadcast(np.arange(n), payload(4000))
    took = np.round((w.ready - L) / 0.001, 6)
    assert set(took) == {1.0, 4.0}
    assert (took == 4).mean() == pytest.approx(0.25, abs=4 * np.sqrt(0.1875 / n))


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
    np.testing.assert_allclose(w2.wait, [0.3 + L, L], atol=1e-12)


@pytest.mark.parametrize("tau", [0, 1, 2, 5])
@pytest.mark.parametrize(
    ("C", "late", "size"),
    [(0.1, 0.02, 1000), (0.1, 0.5, 1000), (0.1, 0.02, 300_000), (0.01, 0.09, 50_000), (0.05, 0, 4)],
    ids=["computing", "latency", "bandwidth", "all", "nothing"],
)
def test_rounds_of_overlapped_exchanges(tau, C, late, size):
    """An exchange of late + s seconds begins when its round has computed, and must be through
    when the round tau later has: tau rounds and the rest of one, T - C, cover it, so that
    (tau + 1) T = C + late + s; unless computing (C) or the links (s) are busy all the time."""
    w, rounds = world(2, link=replace(LINK, latency=late)), 10 * (tau + 1)
    s = size / UP

    def go(times):
        for _ in range(times):
            w.compute([0, 1], C * F)
            w.exchange(ring(2), payload(size, 2), overlap=tau)

    go(rounds)  # until it is steady
    begin = w.clock
    go(rounds)
    assert (w.clock - begin) / rounds == pytest.approx(max(C, s, (C + late + s) / (tau + 1)))
    np.testing.assert_allclose(w.busy, 2 * rounds * C)
    np.testing.assert_allclose(w.radio, 2 * rounds * s)
    np.testing.assert_allclose(w.up, 2 * rounds * size)
    if tau:  # the radio is on beside the rest
        np.testing.assert_allclose(w.busy + w.wait, w.clock)


def test_overlap_changes_the_time_alone():
    """The same messages, losses and air time, sooner. A plain exchange after them waits
    for all that is still on its way."""
    runs = {}
    for tau in (0, 1, 3):
        w, arrived = uneven(6, loss=0.2, retry=False, seed=4), []
        for _ in range(8):
            w.compute(np.arange(6), 1e6)
            before = w.clock
            arrived.append(w.exchange(ring(6), payload(900, 6), overlap=tau))
            assert w.clock >= before and (w.ready == w.clock).all()
        runs[tau] = (w, torch.stack(arrived), w.clock)
        last = max(w.behind, default=0.0)
        w.exchange(ring(6), payload(900, 6))
        assert w.clock >= last and not w.behind
    for w, arrived, _ in runs.values():
        assert torch.equal(arrived, runs[0][1]) and w.messages == runs[0][0].messages
        for name in ("up", "down", "busy", "radio"):
            np.testing.assert_allclose(getattr(w, name), getattr(runs[0][0], name), rtol=1e-12)
    assert runs[3][2] < runs[1][2] < runs[0][2]


def test_overlapped_exchanges_of_one_and_of_nobody():
    w = world(1)
    for _ in range(3):
        w.compute([0], 1e8)
        w.exchange(torch.ones(1, 1), payload(9, 1), overlap=2)
    assert w.clock == pytest.approx(0.3) and w.messages == 0
    w = world(3, churn=pd.concat([leaves(i, 0.0, 2.5) for i in range(3)]))
    for _ in range(20):  # time goes on, so that they come back
        arrived = w.exchange(complete(3), payload(10, 3), overlap=1)
    assert arrived.sum() == 6 and w.clock > 2.5


def test_exchange_needs_a_matrix_of_its_size():
    with pytest.raises(UsageError, match=r"W is \(8, 8\) but the world has 10"):
        world(10).exchange(ring(8), torch.zeros(10, 3))


def test_alone_there_is_nothing_to_exchange():
    w = world(1)
    w.compute([0], 1e9)
    assert w.exchange(torch.ones(1, 1), torch.zeros(1, 5)).sum() == 0
    assert w.clock == pytest.approx(1.0) and w.messages == 0


# ---- paths between devices -------------------------------------------------------------------


@pytest.mark.parametrize("path", [1e5, UP / 3, UP / 2, 2 * UP])
def test_exchange_over_slow_paths(path):
    """Three messages of each device: L + m / path, or what the access link takes for all three."""
    w = world(4, path=path)
    w.exchange(complete(4), payload(3000, 4))
    assert w.clock == pytest.approx(L + max(3000 / path, 3 * 3000 / UP), rel=1e-12)


def test_messages_in_segments_over_slow_paths():
    """Ring of 5 over paths of 1e5 B/s, where 0 asks its left neighbour for 2 segments."""
    w, bytes_of = world(5, path=1e5), (ring(5) != 0).numpy() * 1000.0
    bytes_of[0, 4] = 2000
    w.exchange(ring(5), (), sizes=bytes_of)
    assert w.clock == pytest.approx(L + 2000 / 1e5, rel=1e-12)
    assert w.up.tolist() == [2000, 2000, 2000, 2000, 3000]
    assert w.radio == pytest.approx([0.02, 0.01, 0.01, 0.01, 0.02])


def test_every_move_between_devices_takes_the_path():
    k, d, path = 4, 100, 1e5
    w = world(k, path=path)
    w.allreduce(np.arange(k), torch.zeros(k, d))
    assert w.clock == pytest.approx(2 * (k - 1) * (L + 4 * d / (k * path)), rel=1e-12)
    assert w.link(0, 1) == (L, path)
    start = w.clock
    assert w.send(0, 1, payload(500)) == pytest.approx(start + L + 500 / path)
    w.swap(0, 1, payload(500))
    assert w.ready[0] == pytest.approx(start + L + 500 / path)
    w.pull(2, 1, payload(500))
    assert w.ready[2] == pytest.approx(start + 2 * L + 500 / path)


def test_a_path_leaves_the_way_to_the_server_alone_and_a_wide_one_everything():
    for path in (1e5, 1e12):
        a, b = world(4, path=path), world(4)
        for w in (a, b):
            one_round(w, np.arange(4))
        assert a.totals() == b.totals()
    for w in (a, b):
        w.exchange(star(4), payload(700, 4))
        w.allreduce(np.arange(4), torch.zeros(4, 30))
        w.send(0, 1, payload(50))
    assert a.clock == pytest.approx(b.clock, rel=1e-12)
    assert a.radio == pytest.approx(b.radio, rel=1e-12)
    with pytest.raises(UsageError, match="path = 0"):
        world(4, path=0)


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


@pytest.mark.parametrize(("algorithm", "hops"), [("ring", 6), ("halving", 4), ("naive", 1)])
def test_allreduce_of_some_devices_leaves_the_others_alone(algorithm, hops):
    """Whoever takes part waits for 5, and through the latency of each hop."""
    w, rows = world(7), numbers(4, 8)
    w.compute([5], 2e8)
    close(w.allreduce([5, 0, 3, 6], rows, algorithm), rows.sum(0))
    assert not w.up[[1, 2, 4]].any() and (w.up[[0, 3, 5, 6]] > 0).all()
    part = np.array([1, 0, 0, 1, 0, 1, 1])
    np.testing.assert_allclose(w.wait, [0.2, 0, 0, 0.2, 0, 0, 0.2] + hops * L * part)
    np.testing.assert_allclose(w.busy + w.radio + w.wait, w.clock * part)
    np.testing.assert_allclose(w.ready[[0, 3, 5, 6]], w.clock)


def test_one_slow_device_stretches_the_ring():
    """Its uplink is 10 times slower: it sends 2 (n - 1) blocks in a row, and all wait."""
    n, d = 6, 600
    w = world(n, link=[replace(LINK, up=UP / 10)] + [LINK] * (n - 1))
    w.allreduce(np.arange(n), torch.zeros(n, d))
    air = 2 * (n - 1) * 4 * d / n / (UP / 10)
    assert w.clock == pytest.approx(2 * (n - 1) * L + air, rel=1e-12)
    assert w.radio[1] == pytest.approx(air) and w.radio[0] >= air  # 1 hears what 0 sends
    assert w.radio[3] < air / 2  # the others are done earlier, and wait
    np.testing.assert_allclose(w.radio + w.wait, w.clock)


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
    for i in range(200):
        w.off.until(i, 300.0)
    spells = [np.diff(w.off.switches[i])[1:] for i in range(200)]  # on, off, on, ...
    on, off = (np.concatenate([s[k::2] for s in spells]) for k in (0, 1))
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
    assert w.off.switches == {0: [0.0, 110.0]}
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
    tail = pareto(1.5)(u)  # P(X > x) = x^-1.5 from 1 on
    assert tail.min() >= 1 and np.median(tail) == pytest.approx(2 ** (1 / 1.5), rel=1e-3)
    assert (tail > 100).mean() == pytest.approx(0.001, rel=0.02)
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
    """Each computes 0.2 s at 10 W, receives 4000 / DOWN = 0.001 s and sends 0.004 s at 3 W, and
    idles through two latencies of 0.01 s at 1 W."""
    w = world(4)
    one_round(w, np.arange(4))
    assert w.joules() == pytest.approx(4 * (0.2 * 10 + 0.005 * 3 + 0.02 * 1), rel=1e-12)
    w = world(2)
    w.compute([1], 3e8)
    w.exchange(ring(2), payload(1000, 2))  # 0 waits 0.3 s; both 0.01 s, and are 0.001 s on the air
    assert w.joules() == pytest.approx(0.3 * 10 + (0.3 + 2 * 0.01) * 1 + 2 * 0.001 * 3, rel=1e-12)
    assert w.totals()["joules"] == w.joules()


def test_waiting_within_an_exchange():
    """On a path the middle sends two copies at UP / 2 each, 2 ms, and the ends hear till then."""
    w = world(3)
    w.exchange(metropolis(nx.path_graph(3)), payload(1000, 3))
    np.testing.assert_allclose(w.radio, 2000 / UP)
    np.testing.assert_allclose(w.wait, L)
    w = world(4, link=[LINK, LINK, replace(LINK, up=UP / 10), LINK])  # two pairs; 2 needs 10 ms
    w.exchange(metropolis(nx.Graph([(0, 1), (2, 3)])), payload(1000, 4))
    np.testing.assert_allclose(w.radio, [0.001, 0.001, 0.01, 0.01])
    np.testing.assert_allclose(w.wait, [L + 0.009, L + 0.009, L, L])


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


def test_no_timeline_unless_asked():
    with pytest.raises(UsageError, match="record=True"):
        world().gantt()
    w = world(3, record=True)
    w.exchange(ring(3), payload(10, 3))
    middle, radio = w.clock, w.radio.copy()
    w.allreduce(np.arange(3), torch.zeros(3, 6))
    gantt = w.gantt()
    assert list(gantt.what) == ["exchange"] * 6 and list(gantt.device) == [0, 1, 2] * 2
    first, second = gantt[:3], gantt[3:]
    np.testing.assert_allclose(first.start, L)  # the messages are on the air
    np.testing.assert_allclose(first.end - first.start, radio)
    np.testing.assert_allclose(second.start, middle)  # one bar from beginning to end
    np.testing.assert_allclose(second.end, w.clock)


# ---- timetables made elsewhere ----------------------------------------------


def test_replay_charges_a_timetable():
    """0 computes 1 s, sends 100 B in 0.5 s to 1, which computes 2 s and answers 40 B in 0.25 s. L
    of each message is latency."""
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
    np.testing.assert_allclose(w.radio, np.array([0.75, 0.75, 0]) - 2 * L * np.array([1, 1, 0]))
    np.testing.assert_allclose(w.wait, np.array([2, 1, 0]) + 2 * L * np.array([1, 1, 0]))
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


def held(value):
    """Bytes of the arrays in a value, a dictionary or an object's attributes."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, dict):
        return sum(held(v) for v in value.values())
    return sum(held(v) for v in value) if isinstance(value, list | tuple) else 0


@pytest.mark.parametrize("how", [{}, dict(crash=0.1, fading=(0.5, 9.0, 3.0), churn=(100.0, 10.0))])
def test_registered_devices_cost_nearly_nothing(how):
    """100 000 devices of which 10 train: at most 200 bytes each, and a round touches but the 10."""
    n = 100_000
    w = World(n, spread=lognormal(1.0), **how)
    chosen = stream("who").permutation(n)[:10]
    for _ in range(2):
        one_round(w, chosen)
    assert w.speed.nbytes < held(vars(w)) <= 200 * n
    for spells in (w.off, w.fading and w.fading[1]):
        assert spells is None or 0 < len(spells.switches) <= 10
        assert spells is None or set(spells.switches) <= set(chosen)
    others = np.setdiff1d(np.arange(n), chosen)
    assert not (w.up + w.down + w.busy + w.radio + w.wait)[others].any()


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
    with pytest.raises(UsageError, match=r"server = \(0, 1\); expected \(up, down\)"):
        World(3, server=(0, 1))
    for chosen in ([0, 4], [-1, 2]):
        with pytest.raises(UsageError, match="the world has 0 to 3"):
            world(4).broadcast(chosen, payload(10))
