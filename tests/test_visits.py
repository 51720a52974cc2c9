"""Asynchronous devices: arrivals at a server, wakes without one, sends, swaps and pulls."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import leaves
from hypothesis import given, settings
from hypothesis import strategies as st
from test_world import DEVICE, DOWN, LINK, UP, F, L, bad_spell, payload, world

from survey_lib import visits as core
from survey_lib.errors import UsageError
from survey_lib.presets import Link
from survey_lib.streams import attempts, uniform
from survey_lib.world import exponential, lognormal, loguniform

# ---- arrivals ------------------------------------------------------------------------------------

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
    tries = w.messages / 800  # down and up of 400 visits
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


# ---- arrivals: everything at once ----------------------------------------------------------------

HOW = dict(
    jitter=st.sampled_from([None, lognormal(0.8)]),
    loss=st.sampled_from([0.0, 0.3]),
    churn=st.sampled_from([None, (1.0, 0.3)]),
    fading=st.sampled_from([None, (0.2, 0.3, 0.3)]),
    seed=st.integers(0, 99),
)
worlds = st.fixed_dictionaries(HOW)
many = settings(max_examples=30, deadline=None)
ACCOUNTS = "clock up down server_up server_down messages lost busy radio".split()


def rough(n=5, **how):
    """Devices of unlike speeds on unlike links; no two events at one instant."""
    links = [Link(0.01 * (1 + i), UP / (1 + i), DOWN / (2 + i), source="test") for i in range(n)]
    return world(n, link=links, spread=loguniform(7), **how)


def followed(w, m, up=None, **how):
    """After each of the first m arrivals: who came and who is next, and all accounts."""
    up, seen = payload(3000) if up is None else up, []
    for i, j in w.arrivals(payload(8000), up, 2e8, **how):
        accounts = [np.copy(getattr(w, name)) for name in ACCOUNTS]
        seen += [] if i is None else [(i, j, accounts)]
        if len(seen) == m:
            break
    return seen


def alone(w, i):
    """What device i has done when it arrives for the k-th time, and nobody is in its way: (time,
    up, down, busy, radio)."""
    now, up, down, busy, radio = 0.0, 0.0, 0.0, 0.0, 0.0

    def u(what, k):
        return uniform(np.array([i + k * 2**32]), w.seed, what)

    def transfer(what, size, bandwidth, k):
        tries = int(attempts(u(what, k), w.loss[[i]])[0])
        start = w.pause(i, now, w.latency[i] * tries)
        air = size * tries / (bandwidth[i] * w.fade([i], start)[0])
        return w.pause(i, start, air), size * tries, air

    for k in itertools.count(1):
        now, size, air = transfer("receive", 8000, w.bandwidth_down, k)
        down, radio = down + size, radio + air
        took = 2e8 / w.speed[i] * (1.0 if w.jitter is None else w.jitter(u("jitter", k))[0])
        now, busy = w.pause(i, now, took), busy + took
        now, size, air = transfer("send", 3000, w.bandwidth_up, k)
        up, radio = up + size, radio + air
        yield now, up, down, busy, radio


@many
@given(worlds)
def test_every_device_goes_its_own_way(how):
    """All at work: the arrivals are those that each device alone would have, in order of time."""
    w, n = rough(**how), 5
    seen, ways = followed(w, 200), [alone(w, i) for i in range(n)]
    due = [next(way) for way in ways]
    for k, (i, j, accounts) in enumerate(seen, 1):
        now = dict(zip(ACCOUNTS, accounts, strict=True))
        assert i == j == min(range(n), key=lambda i: due[i][0])
        own = [now["clock"], *(now[name][i] for name in ("up", "down", "busy", "radio"))]
        np.testing.assert_allclose(own, due[i], rtol=1e-9)
        due[i] = next(ways[i])
        assert now["server_down"] == now["up"].sum() and now["server_up"] == now["down"].sum()
        arrived = 3000 * k + 8000 * (k - 1 + n)
        assert now["lost"] == pytest.approx(now["up"].sum() + now["down"].sum() - arrived)
        assert now["messages"] == now["up"].sum() / 3000 + now["down"].sum() / 8000


@many
@given(worlds, st.integers(1, 5))
def test_an_upload_that_is_asked_for_is_the_same_upload(how, active):
    """What takes another event takes no other time or bytes."""
    a = followed(rough(**how), 100, active=active)
    b = followed(rough(**how), 100, lambda i: payload(3000), active=active)
    assert [e[:2] for e in a] == [e[:2] for e in b]
    for (*_, x), (*_, y) in zip(a, b, strict=True):
        for value, other in zip(x, y, strict=True):
            np.testing.assert_array_equal(value, other)


@many
@given(worlds, st.integers(1, 5))
def test_an_ample_server_link_is_the_same_link(how, active):
    """Bytes are the same at every arrival; seconds are known later, but by the device's arrival."""
    how["churn"] = None  # a flow on a shared link does not pause
    a = followed(rough(**how), 100, active=active)
    b = followed(rough(**how, server=(1e12, 1e12)), 100, active=active)
    assert [e[:2] for e in a] == [e[:2] for e in b]
    for (i, _, x), (_, _, y) in zip(a, b, strict=True):
        np.testing.assert_allclose(np.hstack(x[:7]), np.hstack(y[:7]), rtol=1e-9)
        np.testing.assert_allclose([x[7][i], x[8][i]], [y[7][i], y[8][i]], rtol=1e-9)


@many
@given(worlds, st.integers(1, 7), st.integers(1, 12), st.integers(1, 8))
def test_how_draws_and_events_are_kept_changes_nothing(how, active, span, group):
    """Blocks of draws, groups of devices, and how many events are in the heap: the same bits."""

    def run():
        seen = followed(world(7, **how), 120, active=active)
        wakes = woken(world(7, **how), 120)
        return [(i, j, *map(np.ndarray.tolist, x)) for i, j, x in seen], wakes

    want = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "TABLE", 0)
        patch.setattr(core, "SPAN", span)
        patch.setattr(core, "GROUP", group)
        assert run() == want


def test_work_may_change_between_visits():
    """0 has twice as much to compute from its third visit on."""
    w, flops, times = world(2), np.full(2, 2e8), []
    for i, _ in w.arrivals(payload(8000), payload(8000), flops):
        times += [w.clock] if i == 0 else []
        flops[0] = 4e8 if len(times) >= 2 else 2e8
        if len(times) == 4:
            break
    np.testing.assert_allclose(np.diff(times), [CYCLE, CYCLE + 0.2, CYCLE + 0.2])


def test_the_few_that_are_on_among_many_are_found():
    """5 of 300 are ever on: each gets a fifth of the visits."""
    n, on, m = 300, [3, 40, 41, 222, 299], 1000
    gone = pd.concat([leaves(i, 0.0) for i in range(n) if i not in on])
    events, _ = visits(world(n, churn=gone), m, active=1)
    count = np.bincount([i for _, i, _ in events], minlength=n)
    assert count[on].sum() == m
    assert np.abs(count[on] / m - 0.2).max() < 4 * np.sqrt(0.2 * 0.8 / m)


# ---- arrivals: uploads of their own --------------------------------------------------------------


def asked(w, m, size):
    """The first m arrivals where device i is asked for its upload, of size(i, its turn) bytes."""
    turns, arrived = [], []

    def up(i):
        turns.append(i)
        return payload(size(i, turns.count(i)))

    for i, _ in itertools.islice(w.arrivals(payload(8000), up, 2e8), m + w.n):
        arrived += [] if i is None else [(w.clock, i)]
    return arrived, turns


@pytest.mark.parametrize("server", [(np.inf, np.inf), (1e9, 1e9)])
def test_uploads_are_asked_for_when_they_are_computed(server):
    """0 computes 0.2 s and sends 1000 B, 1 computes 0.5 s and sends 3000 B more each time."""
    w = world(2, device=[DEVICE, replace(DEVICE, speed=F * 0.4)], server=server)
    arrived, turns = asked(w, 12, lambda i, k: 3000 * k if i else 1000)
    start = 2 * L + 8000 / DOWN
    first = [k * (start + 0.2 + 1000 / UP) for k in range(1, 13)]
    second = np.cumsum([start + 0.5 + 3000 * k / UP for k in range(1, 13)])
    want = sorted([(t, 0) for t in first] + [(t, 1) for t in second])[:12]
    assert [i for _, i in arrived] == [i for _, i in want]
    np.testing.assert_allclose([t for t, _ in arrived], [t for t, _ in want], rtol=1e-9)
    count = np.bincount(turns)
    np.testing.assert_allclose(w.up, [1000 * count[0], 3000 * count[1] * (count[1] + 1) / 2])
    assert w.server_down == w.up.sum()


def test_an_upload_is_asked_for_after_all_that_came_before_it():
    """What i is asked for may depend on what the server did until then, and on nothing later."""
    w, log = world(3, device=[replace(DEVICE, speed=F * s) for s in (1.0, 0.31, 0.17)]), []

    def up(i):
        log.append(("asked", i, w.clock))
        return payload(100)

    for i, _ in itertools.islice(w.arrivals(payload(8000), up, 2e8), 30):
        log.append(("arrived", i, w.clock))
    last = 0.0
    for what, _, clock in log:
        assert clock >= last if what == "arrived" else clock == last
        last = clock
    order = [(what, i) for what, i, _ in log if i == 0]  # asked and arrived take turns
    assert order[::2] == [("asked", 0)] * len(order[::2]) and len(order) > 15
    assert order[1::2] == [("arrived", 0)] * len(order[1::2])


def test_nothing_but_a_number_is_sent():
    w = world(1, link=replace(LINK, latency=0.0))
    arrived, _ = asked(w, 3, lambda i, k: 0)
    np.testing.assert_allclose([t for t, _ in arrived], 0.202 * np.arange(1, 4))
    assert w.server_down == 0


def test_visits_fade():
    """0 downloads before the bad spell, and uploads in it; the next visit is after it."""
    for server in ((np.inf, np.inf), (1e9, 1e9)):
        w = bad_spell(2, 0.1, 0.24, server=server)
        events, _ = visits(w, 4)
        times = {i: [t for t, k, _ in events if k == i] for i in (0, 1)}
        np.testing.assert_allclose(times[0], [CYCLE + 0.008, 2 * CYCLE + 0.008], rtol=1e-9)
        np.testing.assert_allclose(times[1], [CYCLE, 2 * CYCLE], rtol=1e-9)
        assert w.radio[0] == pytest.approx(2 * (0.002 + 0.008) + 0.008)


def test_a_pause_within_a_message_is_no_air_time():
    """0 goes off for 2 s in the middle of its upload, which takes 8 ms."""
    half = CYCLE - 0.004
    w = world(1, churn=leaves(0, half, half + 2))
    events, _ = visits(w, 1)
    assert events[0][0] == pytest.approx(CYCLE + 2)
    assert w.radio[0] == pytest.approx(8000 / DOWN + 8000 / UP)  # and the next is under way


# ---- wakes ---------------------------------------------------------------------------------------


def woken(w, m, flops=2e8, act=lambda i: None):
    """The first m wakes: [(time, device)]."""
    events = []
    for i in w.wakes(flops):
        events.append((w.clock, i))
        if len(events) == m:
            break
        act(i)
    return events


def test_devices_wake_at_multiples_of_their_own_times():
    speeds = np.array([1.0, 2.0, 0.37])
    w = world(3, device=[replace(DEVICE, speed=F * s) for s in speeds])
    flops = np.array([2e8, 6.1e8, 1e8])
    own = flops / F / speeds
    want = sorted((k * own[i], i) for i in range(3) for k in range(1, 60))[:40]
    events = woken(w, 40, flops)
    assert [i for _, i in events] == [i for _, i in want]
    np.testing.assert_allclose([t for t, _ in events], [t for t, _ in want], rtol=1e-12)
    assert w.clock == events[-1][0] and w.messages == 0 and not w.wait.any()


def test_equal_devices_wake_in_their_order_and_one_wakes_alone():
    events = woken(world(4), 12)
    assert [i for _, i in events] == [0, 1, 2, 3] * 3
    np.testing.assert_allclose([t for t, _ in events], np.repeat([0.2, 0.4, 0.6], 4))
    w = world(1)
    assert [i for _, i in woken(w, 3)] == [0, 0, 0] and w.clock == pytest.approx(0.6)


def test_work_of_a_device_is_drawn_as_in_rounds():
    """Its k-th computation takes as long as in the k-th round, or on its k-th visit."""
    n, rounds = 5, 4
    own = [[] for _ in range(n)]
    w = world(n, jitter=exponential())
    for t, i in woken(w, 400):
        own[i].append(t)
    assert min(len(o) for o in own) > rounds
    v = world(n, jitter=exponential())
    for r in range(rounds):
        before = v.busy.copy()
        v.compute(np.arange(n), 2e8)
        for i in range(n):
            took = np.diff([0.0, *own[i]])[r]
            assert took == pytest.approx(v.busy[i] - before[i])
    u = world(1, jitter=exponential(), link=replace(LINK, latency=0.0))
    events, _ = visits(u, rounds, nbytes=0)
    np.testing.assert_allclose([t for t, _, _ in events], own[0][:rounds])


def test_mean_number_of_wakes():
    """Exponential times of mean 0.2 s: a Poisson process of rate n / 0.2."""
    n, m = 8, 4000
    w = world(n, jitter=exponential())
    events = woken(w, m)
    count = np.bincount([i for _, i in events], minlength=n)
    assert w.clock == pytest.approx(m * 0.2 / n, rel=4 / np.sqrt(m))
    assert np.abs(count / m - 1 / n).max() < 4 * np.sqrt(1 / n / m)


def test_a_device_sleeps_while_it_is_off():
    """0 is off from 0.1 to 2.15; 1 wakes every 0.2 s. A pause is not work."""
    w = world(2, churn=leaves(0, 0.1, 2.15))
    events = woken(w, 14)
    np.testing.assert_allclose([t for t, i in events if i == 0], [2.25, 2.45])
    np.testing.assert_allclose([t for t, i in events if i == 1], 0.2 * np.arange(1, 13))
    np.testing.assert_allclose(w.busy, [0.4, 2.6])


def test_when_all_are_gone_nobody_wakes():
    gone = pd.concat([leaves(2, 0.0), leaves(1, 0.3), leaves(0, 0.5)])
    w = world(3, churn=gone)
    assert [i for _, i in woken(w, 99)] == [0, 1, 0]
    assert w.clock == pytest.approx(0.4)
    np.testing.assert_allclose(w.busy, [0.4, 0.2, 0])


def test_a_clock_that_somebody_moved_does_not_go_back():
    w, seen = world(2), []
    for i in itertools.islice(w.wakes(2e8), 8):
        seen.append((w.clock, i))
        if len(seen) == 3:
            w.clock += 1.0
    times = [t for t, _ in seen]
    assert times == sorted(times) and times[3] == times[2] + 1
    w, seen = world(2), []
    for i, _ in itertools.islice(w.arrivals(payload(8000), payload(8000), 2e8), 7):
        seen.append((w.clock, i))
        w.clock += 1.0 if len(seen) == 3 else 0.0  # 0 is back, 1 about to come, late for the server
    want = [0, 0, CYCLE, CYCLE + 1, 2 * CYCLE + 1, 2 * CYCLE + 1]
    np.testing.assert_allclose([t for t, _ in seen[:6]], want)


# ---- send ----------------------------------------------------------------------------------------


def test_a_message_arrives_later_and_nobody_waits():
    links = [LINK, Link(0.5, UP, UP / 2, source="test")]
    w = world(2, link=links, record=True)
    w.clock = 1.0
    assert w.send(0, 1, payload(4000)) == pytest.approx(1 + 0.5 + 4000 / (UP / 2))
    assert w.clock == 1.0 and not w.ready.any() and not w.wait.any()
    np.testing.assert_allclose(w.up, [4000, 0])
    np.testing.assert_allclose(w.down, [0, 4000])
    np.testing.assert_allclose(w.radio, 0.008)
    assert w.messages == 1 and w.server_up == w.server_down == 0
    bars = w.gantt()
    assert list(bars.what) == ["send", "receive"] and list(bars.device) == [0, 1]
    np.testing.assert_allclose(bars.end - bars.start, 0.008)


def test_lost_messages():
    w = world(2, loss=1.0)
    assert w.send(0, 1, payload(100)) == np.inf
    assert w.up[0] == 100 and w.messages == 1
    n, links = 4000, [replace(LINK, loss=0.1), replace(LINK, loss=0.3)]
    w = world(2, link=links)
    lost = np.mean([w.send(0, 1, payload(1)) == np.inf for _ in range(n)])
    assert lost == pytest.approx(0.37, abs=4 * np.sqrt(0.37 * 0.63 / n))
    w = world(2, link=links, retry=True)
    took = np.array([w.send(0, 1, payload(1000)) for _ in range(n)])
    assert np.isfinite(took).all()
    tries = took / (L + 1000 / UP)
    np.testing.assert_allclose(tries, np.round(tries), atol=1e-9)
    assert tries.sum() == pytest.approx(w.messages) and w.up[0] == 1000 * w.messages
    sd = np.sqrt(0.37) / 0.63
    assert tries.mean() == pytest.approx(1 / 0.63, abs=4 * sd / np.sqrt(n))


@pytest.mark.parametrize("who", [0, 1])
def test_a_message_needs_both_while_it_is_on_the_air(who):
    """On the air from 0.01 to 0.014."""
    for off, arrives in (
        (leaves(who, 0.0, 0.009), True),
        (leaves(who, 0.0, 0.012), False),
        (leaves(who, 0.012, 0.013), False),
        (leaves(who, 0.015), True),
        (leaves(who, 0.0), False),
    ):
        arrive = world(2, churn=off).send(0, 1, payload(4000))
        assert arrive == pytest.approx(0.014) if arrives else arrive == np.inf


def test_a_message_in_a_bad_spell():
    w = bad_spell(2, 0.0, 1.0)
    assert w.send(0, 1, payload(4000)) == pytest.approx(L + 0.008)
    assert w.send(1, 0, payload(4000)) == pytest.approx(L + 0.004)  # its downlink has 2e6 left
    w.clock = 1.0
    assert w.send(0, 1, payload(4000)) == pytest.approx(1 + L + 0.004)


# ---- swap ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "wait"), [(4000, 0.014), (1000, 0.011)])
def test_who_swaps_waits_and_the_partner_does_not(size, wait):
    """0 swaps with 1 each time that it wakes: its period is 0.2 + L + size / UP, that of 1 0.2."""
    w = world(2)
    swaps = []

    def act(i):
        if i == 0:
            swaps.append(w.swap(0, 1, payload(size)))

    events = woken(w, 21, act=act)
    zero, one = ([t for t, i in events if i == k] for k in (0, 1))
    np.testing.assert_allclose(one, 0.2 * np.arange(1, len(one) + 1))
    np.testing.assert_allclose(zero, (0.2 + wait) * np.arange(1, len(zero) + 1) - wait)
    assert all(swaps) and w.messages == 2 * len(swaps)
    np.testing.assert_allclose(w.up, size * len(swaps))
    np.testing.assert_allclose(w.down, size * len(swaps))
    np.testing.assert_allclose(w.radio, size / UP * len(swaps))  # both ways at once


@pytest.mark.parametrize("size", [100_000, 190_000, 400_000])
def test_an_overlapped_swap_is_waited_for_as_far_as_it_is_left(size):
    """It began with the computation: the period is max(0.2, L + size / UP)."""
    w = world(2)
    events = woken(w, 15, act=lambda i: w.swap(0, 1, payload(size), overlap=True) if not i else 0)
    zero = np.array([t for t, i in events if i == 0])
    left = max(0.0, L + size / UP - 0.2)
    np.testing.assert_allclose(zero, 0.2 + (0.2 + left) * np.arange(len(zero)))


def test_a_partner_that_is_off_costs_the_latency():
    far = replace(LINK, latency=0.05)
    for overlap, want in ((False, [0.2, 0.45, 0.7]), (True, [0.2, 0.4, 0.6])):
        w, times = world(2, link=[LINK, far], churn=leaves(1, 0.0)), []
        for i in itertools.islice(w.wakes(2e8), 3):
            times.append(w.clock)
            assert w.swap(i, 1, payload(10), overlap=overlap) is False
        np.testing.assert_allclose(times, want)
        assert w.messages == 0 and not w.radio.any()


def test_a_partner_that_leaves_during_the_swap():
    """On the air from 0.21 to 0.214: lost, and waited for."""
    for off, arrives in ((leaves(1, 0.212, 0.3), False), (leaves(1, 0.22, 0.3), True)):
        w = world(2, churn=off)
        next(w.wakes(2e8))
        assert w.swap(0, 1, payload(4000)) is arrives
        assert w.ready[0] == pytest.approx(0.214) and w.messages == 2


def test_a_swap_needs_both_messages():
    n, p = 4000, 0.3  # each way is lost unless both ends let it pass
    w = world(2, loss=p)
    both = np.mean([w.swap(0, 1, payload(1)) for _ in range(n)])
    share = (1 - p) ** 4
    assert both == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / n))
    assert w.ready[0] == pytest.approx(L + 1 / UP)  # the last one, lost or not


# ---- pull ----------------------------------------------------------------------------------------


def test_who_pulls_waits_for_question_and_answer():
    """0 pulls from 1 each time that it wakes: its period is 0.2 + 2 L + size / UP, that of 1 0.2;
    only 1 sends."""
    w, size, pulls = world(2), 4000, []

    def act(i):
        if i == 0:
            pulls.append(w.pull(0, 1, payload(size)))

    events = woken(w, 21, act=act)
    zero, one = ([t for t, i in events if i == k] for k in (0, 1))
    wait = 2 * L + size / UP
    np.testing.assert_allclose(one, 0.2 * np.arange(1, len(one) + 1))
    np.testing.assert_allclose(zero, (0.2 + wait) * np.arange(1, len(zero) + 1) - wait)
    assert all(pulls) and w.messages == len(pulls)
    assert w.up.tolist() == w.down[::-1].tolist() == [0, size * len(pulls)]
    np.testing.assert_allclose(w.radio, size / UP * len(pulls))


def test_a_pull_from_who_is_off_or_leaves():
    """Asked at 0.2, at 1 from 0.21, answer on the air from 0.22 to 0.224."""
    for off, arrives, ready in (
        (leaves(1, 0.0), False, 0.21),
        (leaves(1, 0.205, 0.207), False, 0.21),
        (leaves(1, 0.222, 0.3), False, 0.224),
        (leaves(1, 0.23, 0.3), True, 0.224),
    ):
        w = world(2, churn=off)
        next(i for i in w.wakes(2e8) if i == 0)
        assert w.pull(0, 1, payload(4000)) is arrives
        assert w.ready[0] == pytest.approx(ready)
        assert w.messages == (ready > 0.21)


def test_pulls_get_lost():
    n, p = 4000, 0.3
    w = world(2, loss=p)
    share = (1 - p) ** 2
    got = np.mean([w.pull(0, 1, payload(1)) for _ in range(n)])
    assert got == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / n))


def test_asynchronous_devices_under_everything_at_once():
    """Order of time, no negative account, the same again with the same seed."""

    def run(seed):
        how = dict(jitter=lognormal(0.7), loss=0.2, churn=(3.0, 0.5), fading=(0.2, 0.3, 0.3))
        w, seen = world(5, seed=seed, **how), []

        def act(i):
            j = (i + 1 + len(seen) % 4) % 5
            seen.append(w.swap(i, j, payload(500), overlap=len(seen) % 2 == 0))
            seen.append(w.send(j, i, payload(100)))
            assert seen[-1] >= w.clock + L and w.ready[i] >= w.clock

        events = woken(w, 150, act=act)
        times = [t for t, _ in events]
        assert times == sorted(times) and {i for _, i in events} == set(range(5))
        assert min(w.busy.min(), w.radio.min(), w.up.min(), w.down.min()) > 0 == w.wait.max()
        assert w.up.sum() == w.down.sum() and True in seen and False in seen
        return events, seen, w.totals()

    assert run(0) == run(0) and run(0) != run(1)
