"""Whatever a world is like and in whichever order it is used: the clock does not go back, bytes are
sent = delivered + lost, every account is a number, and nothing hangs."""

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import leaves, small
from hypothesis import given, settings
from hypothesis import strategies as st

from survey_lib.evidence.run import run
from survey_lib.methods.gossip import allreduce_sgd, d_psgd
from survey_lib.methods.server_async import fedasync
from survey_lib.methods.server_sync import fedavg
from survey_lib.methods.stragglers import k_sync_async
from survey_lib.presets import Device, Link
from survey_lib.topology import metropolis, ring
from survey_lib.world import World, exponential, lognormal

DEVICES = ["raspberry_pi", "phone", Device(1e6, 1.0, idle=0.0, compute=0.0, radio=0.0, source="")]
LINKS = ["wifi", "lte", "lora", Link(0.0, 1e3, np.inf), Link(2.0, np.inf, 500.0, loss=1.0)]
BETWEEN = ("exchange", "overlapped", "sparse", "ring", "naive", "send", "swap", "pull")
MOVES = ("broadcast", "multicast", "scatter", "compute", "gather", "uploads", "close", "barrier")


@st.composite
def worlds(draw):
    """Any fleet; everybody may be off for good."""
    n, retry = draw(st.integers(1, 6)), draw(st.booleans())
    loss = st.sampled_from([0.0, 0.3, 0.99] if retry else [None, 0.0, 0.3, 1.0])
    times = st.tuples(st.sampled_from([0.01, 1.0, 50.0]), st.sampled_from([0.01, 1.0, 50.0]))
    gone = pd.concat([leaves(i, 0.0) for i in range(n)])
    return Counted(
        n,
        device=draw(st.lists(st.sampled_from(DEVICES), min_size=n, max_size=n)),
        link=draw(st.lists(st.sampled_from(LINKS), min_size=n, max_size=n)),
        spread=draw(st.sampled_from([None, lognormal(2.0)])),
        jitter=draw(st.sampled_from([None, exponential()])),
        loss=draw(loss),
        retry=retry,
        churn=draw(st.sampled_from([None, gone]) | times),
        crash=draw(st.sampled_from([0.0, 0.4, 1.0])),
        fading=draw(st.none() | times.map(lambda t: (0.1, *t))),
        path=draw(st.sampled_from([np.inf, 1e4])),
        server=draw(st.sampled_from([(np.inf, np.inf), (2e5, 1e3), (1e9, 1e9)])),
        seed=draw(st.integers(0, 3)),
        record=draw(st.booleans()),
    )


class Counted(World):
    """A world beside which the bytes are counted that each move says to have delivered."""

    delivered = 0.0

    def _message(self, i, j, nbytes, begin):
        seconds, air, arrived = super()._message(i, j, nbytes, begin)
        self.delivered += nbytes * arrived
        return seconds, air, arrived


def payload(nbytes, *leading):
    return torch.zeros(*leading, nbytes, dtype=torch.uint8)


def act(w, data, move, pending):
    """One move of some idle devices. pending: (size, arrival in s) of each upload under way."""
    free = [i for i in range(w.n) if i not in pending]
    some = np.array(sorted(data.draw(st.sets(st.sampled_from(free)))) if free else [], int)
    size = data.draw(st.sampled_from([0, 7, 4000]))
    if move in ("broadcast", "multicast"):
        reached = w.broadcast(some, payload(size), multicast=move == "multicast")
        w.delivered += size * (len(reached) if move == "broadcast" else len(reached) > 0)
    elif move == "scatter":
        w.delivered += sum(int(i) for i in w.scatter(some, [payload(int(i)) for i in some]))
    elif move == "compute":
        w.compute(some, data.draw(st.sampled_from([0.0, 1e6, 1e9])))
    elif move == "gather":
        how = dict(
            serial=data.draw(st.booleans()), deadline=data.draw(st.sampled_from([None, 0, 2]))
        )
        w.delivered += size * len(w.gather(some, payload(size, len(some)), **how))
    elif move == "uploads":
        times = w.uploads(some, payload(size, len(some)))
        assert (times[np.isfinite(times)] == w.due(some)[np.isfinite(times)]).all()
        pending.update({int(i): (size, t) for i, t in zip(some, times, strict=True)})
    elif move == "close":
        over = list(pending)[: data.draw(st.integers(0, w.n))]
        w.close(over, data.draw(st.sampled_from([0.0, w.clock + 0.01, max([0.0, *w.due(over)])])))
        w.delivered += sum(size for size, t in map(pending.pop, over) if t <= w.clock)
    elif move == "barrier":
        w.barrier(some)


def between(w, data, move):
    """A move between all the devices."""
    size, n = data.draw(st.sampled_from([1, 4000])), w.n
    if move in ("exchange", "overlapped", "sparse"):
        W = metropolis(nx.path_graph(n), sparse=move == "sparse")
        overlap = 2 * (move == "overlapped")
        w.delivered += size * int(w.exchange(W, payload(size, n), overlap=overlap).sum())
    elif move in ("ring", "naive"):
        k = len(on := w.online())
        w.allreduce(on, torch.zeros(k, size), move)
        w.delivered += 4 * size * (max(0, 2 * (k - 1)) if move == "ring" else k * (k - 1))
    elif n > 1:
        i, j = data.draw(st.permutations(range(n)))[:2]
        getattr(w, move)(i, j, payload(size))
        w.clock = max(w.clock, w.ready[i])  # i waits, see World.wakes


@settings(max_examples=150, deadline=None, derandomize=True)
@given(w=worlds(), data=st.data())
def test_every_move_in_any_order(w, data):
    pending, clock = {}, 0.0
    for _ in range(data.draw(st.integers(1, 12))):
        move = data.draw(st.sampled_from(MOVES if pending else MOVES + BETWEEN))
        if move in BETWEEN:
            between(w, data, move)
        else:
            act(w, data, move, pending)
        assert w.clock >= clock and np.isfinite(w.clock)
        clock = w.clock
        for account in (w.up, w.down, w.busy, w.radio, w.wait, w.ready):
            assert np.isfinite(account).all() and account.min() >= -1e-9
        totals = w.totals()
        assert np.isfinite(list(totals.values())).all()
        assert totals["bytes"] == pytest.approx(w.delivered + w.lost, rel=1e-9, abs=1e-6)
        assert w.lost >= -1e-6
    if w.timeline:
        assert np.isfinite(w.gantt()[["start", "end"]].to_numpy()).all()


@st.composite
def departures(draw):
    """A trace after which all are gone for good, each at its own time."""
    ends = draw(st.lists(st.sampled_from([0.0, 0.004, 0.3, 4.0, 60.0]), min_size=6, max_size=6))
    return pd.concat([leaves(i, end) for i, end in enumerate(ends)])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(w=worlds(), trace=departures(), asked=st.booleans(), data=st.data())
def test_asynchronous_visits(w, trace, asked, data):
    """What is neither delivered nor lost is under way: a message a device at most, and nothing when
    all are gone."""
    own = dict(loss=w.loss[0], server=w.server, seed=w.seed, jitter=w.jitter, record=True)
    trace = trace[trace["device"] < w.n] if data.draw(st.booleans()) else None
    w = World(w.n, device=DEVICES[-1], link=LINKS[3], churn=trace, **own)
    down, up, visits, clock = payload(400), payload(70), 0, 0.0
    for i, _ in w.arrivals(down, (lambda i: up) if asked else up, 1e6):
        visits += i is not None
        assert w.clock >= clock and np.isfinite(w.clock)
        clock = w.clock
        if visits == 30:
            break
    received = (w.gantt()["what"] == "receive").sum() if w.timeline else 0
    rest = w.totals()["bytes"] - 400 * received - 70 * visits - w.lost
    assert -1e-6 <= rest <= (400 * w.n if visits == 30 else 1e-6)
    assert np.isfinite(list(w.totals().values())).all() and w.lost >= 0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(w=worlds(), data=st.data())
def test_every_second_of_rounds_is_in_one_account(w, data):
    """busy + radio + wait = clock for whoever takes part in all rounds."""
    everyone = np.arange(w.n)
    for _ in range(3):
        before, on = w.clock, w.online()
        if data.draw(st.booleans()):
            w.compute(on, 1e6)
            w.exchange(ring(w.n), payload(100, w.n))
        else:
            got = w.broadcast(everyone, payload(100))
            w.compute(got, 1e6)
            w.gather(got, payload(100, len(got)))
            on = got
        if len(on) < w.n:
            return
        assert w.clock > before
        np.testing.assert_allclose(w.busy + w.radio + w.wait, w.clock, rtol=1e-9)


LOCAL = dict(B=5, eta=0.1)
ENDLESS = {
    "FedAvg": (fedavg, 3, dict(S=2, K=1, **LOCAL)),
    "FedAvg with a deadline": (fedavg, 3, dict(S=2, K=1, deadline=0.5, **LOCAL)),
    "K-sync": (k_sync_async, 3, dict(K=2, rule="K-sync", **LOCAL)),
    "K-async": (k_sync_async, 3, dict(K=2, rule="K-async", **LOCAL)),
    "all-reduce": (allreduce_sgd, 3, LOCAL),
    "D-PSGD": (d_psgd, 3, dict(W=ring(3), **LOCAL)),
    "D-PSGD alone": (d_psgd, 1, dict(W=torch.ones(1, 1), **LOCAL)),
}


@pytest.mark.parametrize("until", [dict(rounds=4), dict(seconds=4.0)])
@pytest.mark.parametrize("how", ["all off", "all lost", "all crash"])
@pytest.mark.parametrize("name", ENDLESS)
def test_a_run_that_gets_nowhere_ends(name, how, until):
    method, n, arguments = ENDLESS[name]
    off = pd.concat([leaves(i, 0.0) for i in range(n)])
    bad = {"all off": dict(churn=off), "all lost": dict(loss=1.0), "all crash": dict(crash=1.0)}
    w = World(n, device=DEVICES[-1], link=Link(0.1, 1e6, 1e6), **bad[how])
    history = run(method, small(n), w, every=100, **until, **arguments)
    last = history.iloc[-1]
    assert last["round"] == until.get("rounds", last["round"])
    assert last["clock"] >= until.get("seconds", 0.0) and np.isfinite(last).all()
    if how == "all off":
        assert last["bytes"] == 0


def test_asynchronous_visits_end_when_all_are_gone():
    off = pd.concat([leaves(i, 0.0) for i in range(3)])
    history = run(fedasync, small(3), World(3, churn=off), seconds=9.0, **LOCAL)
    assert history["bytes"].iloc[-1] == 0
