"""The simulated edge: devices, links, churn, one virtual clock, and the accounts of bytes and
joules.

What passes through a move is weighed from the tensors themselves. The moves of one round leave at
one instant; a move returns who was reached, so that a lost message can change nothing.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from heapq import heappop, heappush

import numpy as np
import pandas as pd
import torch
from scipy.special import ndtri
from torch import Tensor

from survey_lib import presets
from survey_lib.churn import Churn
from survey_lib.errors import UsageError
from survey_lib.flows import SharedLink, finish_times
from survey_lib.streams import stream, uniform

Draw = Callable[[np.ndarray], np.ndarray]  # uniform numbers -> positive factors
PATIENCE = 1.0  # s that a server waits before it tries again when nobody was reached


def lognormal(sigma: float) -> Draw:
    """Factors exp(sigma N(0, 1)): median 1."""
    return partial(_lognormal, sigma=sigma)


def loguniform(factor: float) -> Draw:
    """Factors log-uniform from 1 to 1 / factor: the slowest device is `factor` times slower."""
    return partial(_loguniform, factor=factor)


def exponential() -> Draw:
    """Exponential factors of mean 1."""
    return _exponential


def one_slow(share: float, factor: float) -> Draw:
    """A share of the devices is `factor` times slower."""
    return partial(_one_slow, share=share, factor=factor)


def _lognormal(u, sigma):
    return np.exp(sigma * ndtri(u))


def _loguniform(u, factor):
    return factor**-u


def _exponential(u):
    return -np.log1p(-u)


def _one_slow(u, share, factor):
    return np.where(u < share, 1 / factor, 1.0)


def weigh(payload) -> int:
    """Bytes of a payload: of its tensors, and 8 for each plain number."""
    if isinstance(payload, Tensor):
        return payload.numel() * payload.element_size()
    if isinstance(payload, tuple | list):
        return sum(weigh(part) for part in payload)
    return 8


class World:
    """n devices around an optional server, on one virtual clock.

    n: devices. device, link: presets or records of presets.py, or a list of n names. spread:
    factors of the devices' speeds. jitter: factors of each computation's time. loss: probability
    that a message is lost (default: the link's). retry: send lost messages again until they arrive,
    at their cost. churn: (mean seconds on, mean seconds off), or a CSV file or DataFrame with
    columns device, start, end of the times a device is off. server: the server's (up, down) in B/s.
    record: keep a timeline for a Gantt chart.

    clock: s. ready (n,): when each device is free. Accounts: up, down (n,) bytes; server_up,
    server_down bytes; messages; busy, radio, wait (n,) s.
    """

    def __init__(
        self,
        n: int,
        *,
        device="raspberry_pi",
        link="wifi",
        spread: Draw | None = None,
        jitter: Draw | None = None,
        loss: float | None = None,
        retry: bool = False,
        churn=None,
        server: tuple[float, float] = (np.inf, np.inf),
        seed: int = 0,
        record: bool = False,
    ):
        if n < 1:
            raise UsageError(f"n = {n} devices; a world needs at least one")
        self.n, self.seed, self.jitter, self.retry, self.server = n, seed, jitter, retry, server
        devices, links = _each(device, n, presets.device), _each(link, n, presets.link)
        self.speed = _column(devices, "speed", n)
        if spread is not None:
            self.speed = self.speed * spread(uniform(np.arange(n), seed, "speed"))
        self.memory = _column(devices, "memory", n)
        self.watts = {k: _column(devices, k, n) for k in ("idle", "compute", "radio")}
        self.latency, self.bandwidth_up = _column(links, "latency", n), _column(links, "up", n)
        self.bandwidth_down = _column(links, "down", n)
        self.loss = _column(links, "loss", n) if loss is None else np.full(n, float(loss))
        if not ((self.loss >= 0) & (self.loss <= 1)).all():
            raise UsageError(f"loss = {loss} is a probability; expected 0 to 1")
        if retry and (self.loss >= 1).any():
            raise UsageError(
                "loss = 1 with retry never delivers; lower the loss or set retry=False"
            )
        self.off = None if churn is None else Churn(churn, seed)
        self.clock, self.ready, self.since = 0.0, np.zeros(n), np.zeros(n)
        self.up, self.down, self.server_up, self.server_down, self.messages = (
            np.zeros(n),
            np.zeros(n),
            0,
            0,
            0,
        )
        self.busy, self.radio, self.wait = np.zeros(n), np.zeros(n), np.zeros(n)
        self.timeline = [] if record else None
        self.draws = Counter()  # of moves and computations so far, by kind: keys their draws
        self._known = {}  # durations of exchanges already worked out

    # ---- who is there ----------------------------------------------------------------------------

    def online(self, chosen=None) -> np.ndarray:
        """The devices among `chosen` (default: all) that are on now, ready for a round that begins
        now."""
        chosen = np.arange(self.n) if chosen is None else np.asarray(chosen, dtype=int)
        if self.off is not None:
            chosen = chosen[[self.off.next_off(int(i), self.clock) > -np.inf for i in chosen]]
        self.since[chosen], self.ready[chosen] = (
            self.clock,
            np.maximum(self.ready[chosen], self.clock),
        )
        return chosen

    # ---- work and moves of a round ---------------------------------------------------------------

    def compute(self, chosen, flops) -> None:
        """The chosen devices compute `flops` each, from when they are free."""
        chosen = np.asarray(chosen, dtype=int)
        seconds = np.broadcast_to(flops, chosen.shape) / self.speed[chosen]
        if self.jitter is not None:
            seconds = seconds * self.jitter(
                uniform(chosen, self.seed, "jitter", self._draw("jitter"))
            )
        self._note(chosen, self.ready[chosen], seconds, "compute")
        self.busy[chosen] += seconds
        self.ready[chosen] += seconds

    def broadcast(self, chosen, payload) -> np.ndarray:
        """The server sends one payload to each chosen device, at the clock. Returns the devices it
        reached."""
        return self._down(chosen, np.full(len(chosen), float(weigh(payload))))

    def scatter(self, chosen, payloads: list) -> np.ndarray:
        """The server sends each chosen device its own payload. Returns the devices it reached."""
        return self._down(chosen, np.array([weigh(p) for p in payloads], float))

    def _down(self, chosen, size):
        chosen = np.asarray(chosen, dtype=int)
        self._check(chosen)
        on = np.isin(chosen, self.online(chosen))
        chosen, size = chosen[on], size[on]
        tries, arrived = self._tries(chosen, "down")
        start = self.clock + self.latency[chosen] * tries
        up, down = (
            np.append(self.bandwidth_up, self.server[0]),
            np.append(self.bandwidth_down, self.server[1]),
        )
        finish = finish_times(np.full(len(chosen), self.n), chosen, size * tries, start, up, down)
        self.server_up += (size * tries).sum()
        self.messages += int(tries.sum())
        self.down[chosen] += size * tries
        self.radio[chosen] += finish - start
        self._note(chosen, start, finish - start, "receive", arrived)
        reached = chosen[arrived]
        self.ready[reached] = finish[arrived]
        if not len(reached):
            self.clock = max([self.clock + PATIENCE, *finish])
        return reached

    def gather(self, chosen, payload) -> np.ndarray:
        """The chosen devices send to the server, each when it is free; the server waits for all of
        them.

        payload: tensors with one leading row per chosen device, or a list with one payload each.
        Returns the positions in `chosen` whose upload arrived: not lost, and from a device that was
        on since the broadcast. A failed upload is waited for as long as it would have taken.
        """
        chosen = np.asarray(chosen, dtype=int)
        if not len(chosen):
            return np.zeros(0, int)
        if isinstance(payload, list):
            size = np.array([weigh(p) for p in payload], float)
        else:
            size = np.full(len(chosen), weigh(payload) / len(chosen))
        tries, arrived = self._tries(chosen, "up")
        start = self.ready[chosen] + self.latency[chosen] * tries
        up, down = (
            np.append(self.bandwidth_up, self.server[0]),
            np.append(self.bandwidth_down, self.server[1]),
        )
        finish = finish_times(chosen, np.full(len(chosen), self.n), size * tries, start, up, down)
        if self.off is not None:
            stays = [
                self.off.next_off(int(i), self.since[i]) > end
                for i, end in zip(chosen, finish, strict=True)
            ]
            arrived &= np.array(stays)
        self.up[chosen] += size * tries
        self.server_down += (size * tries)[arrived].sum()
        self.messages += int(tries.sum())
        self.radio[chosen] += finish - start
        self._note(chosen, start, finish - start, "send", arrived)
        self.clock = max(self.clock, finish.max())
        self.ready[chosen] = finish
        return np.flatnonzero(arrived)

    def barrier(self, chosen) -> None:
        """The clock moves to when all the chosen devices are done; without any, by PATIENCE
        seconds."""
        ends = self.ready[np.asarray(chosen, dtype=int)]
        self.clock = max(self.clock, *ends) if len(ends) else self.clock + PATIENCE

    def exchange(self, W: Tensor, rows) -> Tensor:
        """Every device sends its row to its neighbours, all at one instant: i hears j where W[i, j]
        is not 0.

        rows: a tensor (or tuple of tensors) with n leading rows. Returns arrived (n, n), True where
        i has j's message; devices that are off neither send nor hear, and do not hold the others
        up.
        """
        if W.shape != (self.n, self.n):
            raise UsageError(
                f"W is {tuple(W.shape)} but the world has {self.n} devices; build it for {self.n}"
            )
        size, on = weigh(rows) / self.n, np.zeros(self.n, bool)
        on[self.online()] = True
        links = (W.numpy() != 0) & on & on[:, None]
        np.fill_diagonal(links, False)
        dst, src = np.nonzero(links)
        begin = max([self.clock, *self.ready[on]])
        self.wait[on] += begin - np.maximum(self.ready[on], self.clock)
        tries, ok = self._tries(src, "exchange", dst)
        seconds = self._exchange_seconds(src, dst, size * tries, tries)
        arrived = torch.zeros(self.n, self.n, dtype=torch.bool)
        arrived[dst[ok], src[ok]] = True
        np.add.at(self.up, src, size * tries)
        np.add.at(self.down, dst, size * tries)
        self.messages += int(tries.sum())
        sends, hears = np.zeros(self.n), np.zeros(self.n)
        np.maximum.at(sends, src, seconds)
        np.maximum.at(hears, dst, seconds)
        active = np.maximum(sends, hears)
        self.radio += active
        self._note(np.flatnonzero(on), np.full(on.sum(), begin), active[on], "exchange")
        self.clock = begin + (seconds.max() if len(seconds) else PATIENCE * (self.n > 1))
        self.wait[on] += self.clock - begin - active[on]
        self.ready[:] = self.clock
        return arrived

    def _exchange_seconds(self, src, dst, size, tries):
        key = tuple(a.tobytes() for a in (src, dst, size, tries))
        if key not in self._known:
            late = np.maximum(self.latency[src], self.latency[dst]) * tries
            self._known = {
                key: finish_times(src, dst, size, late, self.bandwidth_up, self.bandwidth_down)
            }
        return self._known[key]

    def allreduce(self, chosen, rows: Tensor, algorithm: str = "ring") -> Tensor:
        """(d,): the sum of the chosen devices' rows (k, d), which each of them then holds; lost
        messages are sent again. The ring adds block b in the order b, b + 1, ... around the ring.

        ring: d numbers in k blocks, reduce-scatter then all-gather, 2 (k - 1) messages to one
        successor. naive: everybody sends everything to everybody. halving: recursive halving and
        doubling, 2 log2 k messages.
        """
        chosen = np.asarray(chosen, dtype=int)
        k, (_, d), item = len(chosen), rows.shape, rows.element_size()
        if not k:
            self.barrier(chosen)
            return rows.sum(0)
        begin = max([self.clock, *self.ready[chosen]])
        self.wait[chosen] += begin - np.maximum(self.ready[chosen], self.clock)
        block = np.array([len(b) for b in np.array_split(np.arange(d), k)])
        t, me = np.full(k, begin), np.arange(k)
        if algorithm == "ring":
            steps = [((me + 1) % k, block[(me - s) % k]) for s in range(2 * k - 2)]
        elif algorithm == "halving":
            if k & (k - 1):
                raise UsageError(
                    f"halving-doubling needs a power of two, there are {k} devices; use the ring"
                )
            halves = [(me ^ (k >> s), d / 2**s) for s in range(1, k.bit_length())]
            steps = halves + halves[::-1]
        elif algorithm == "naive":
            steps = []
            others = (
                np.array([(i, j) for i in range(k) for j in range(k) if i != j]).reshape(-1, 2).T
            )
            if k > 1:
                t += self._hop(
                    chosen[others[0]], chosen[others[1]], np.full(k * (k - 1), float(d * item))
                ).max()
        else:
            raise UsageError(
                f'algorithm="{algorithm}" is unknown; expected "ring", "halving" or "naive"'
            )
        for to, numbers in steps:
            seconds = self._hop(
                chosen, chosen[to], np.broadcast_to(numbers * item, k).astype(float)
            )
            arrive = np.empty(k)
            arrive[to] = t + seconds
            t = np.maximum(t + seconds, arrive)
        self._note(chosen, np.full(k, begin), t - begin, "exchange")
        self.radio[chosen] += t - begin
        self.clock = max(self.clock, t.max()) if k > 1 else begin
        self.ready[chosen] = self.clock
        if algorithm != "ring":
            return rows.sum(0)
        parts = rows.tensor_split(k, 1)
        return torch.cat([sum(part[(b + m) % k] for m in range(k)) for b, part in enumerate(parts)])

    def _hop(self, src, dst, size):
        """Seconds of messages that leave together; lost ones are sent again."""
        p = 1 - (1 - self.loss[src]) * (1 - self.loss[dst])
        tries = _attempts(uniform(src * self.n + dst, self.seed, "hop", self._draw("hop")), p)
        late = np.maximum(self.latency[src], self.latency[dst])
        np.add.at(self.up, src, size * tries)
        np.add.at(self.down, dst, size * tries)
        self.messages += int(tries.sum())
        return finish_times(
            src, dst, size * tries, late * tries, self.bandwidth_up, self.bandwidth_down
        )

    # ---- asynchronous devices --------------------------------------------------------------------

    def arrivals(
        self, down, up, flops, *, active: int | None = None
    ) -> Iterator[tuple[int | None, int]]:
        """Asynchronous visits: device after device in the order their uploads reach the server.

        Yields (i, j): the upload of i is here, and j is given the newest model next; first (None,
        j) for each of the `active` devices (default: all) that begin at time 0. The next device is
        drawn among the idle ones that are on, if any is. Ends when all devices are gone for good.
        down, up: payloads of a visit; flops: per device. Lost messages are sent again; a device
        that goes off pauses until it is back. A finite server link is shared by all transfers under
        way.
        """
        active = self.n if active is None else active
        if not 0 < active <= self.n:
            raise UsageError(f"active = {active} devices at once, but the world has {self.n}")
        size = {"receive": float(weigh(down)), "send": float(weigh(up))}
        cap = {"receive": self.bandwidth_down, "send": self.bandwidth_up}
        server = {"receive": self.server[0], "send": self.server[1]}
        shared = {k: SharedLink(c) for k, c in server.items() if np.isfinite(c)}
        flops = np.broadcast_to(flops, self.n)
        idle, visits, events = list(range(self.n)), np.zeros(self.n, int), []
        follow = {"receive": "compute", "compute": "send", "send": "arrive"}

        def begin(i, what, now):
            """Device i enters a phase at `now`; its end becomes an event, or a flow on a shared
            link."""
            if what == "arrive":
                heappush(events, (now, i, "arrive"))
                return
            if what == "compute":
                seconds = flops[i] / self.speed[i]
                if self.jitter is not None:
                    seconds *= self.jitter(
                        uniform(np.array([i]), self.seed, "jitter", int(visits[i]))
                    )[0]
                end = self._pause(i, now, seconds)
                self.busy[i] += seconds if np.isfinite(end) else 0.0
            else:
                key = uniform(np.array([i]), self.seed, what, int(visits[i]))
                tries = int(_attempts(key, self.loss[[i]])[0])
                self._account(i, what, size[what] * tries, tries)
                start = self._pause(i, now, self.latency[i] * tries)
                if what in shared and np.isfinite(start):
                    heappush(events, (start, i, what + " flow"))
                    waiting[i] = (now, start, size[what] * tries)
                    return
                end = self._pause(i, start, size[what] * tries / cap[what][i])
                self.radio[i] += end - start if np.isfinite(end) else 0.0
            if np.isfinite(end):  # else the device is gone for good
                self._note([i], [now], [end - now], what)
                heappush(events, (end, i, follow[what]))

        waiting = {}
        for _ in range(active):
            j = self._pick(idle)
            yield None, j
            visits[j] += 1
            begin(j, "receive", self.clock)
        while True:
            soon = min(
                ((link.next_time(), what) for what, link in shared.items()), default=(np.inf, "")
            )
            if events and events[0][0] <= soon[0]:
                now, i, what = heappop(events)
                if what.endswith(" flow"):
                    kind = what.removesuffix(" flow")
                    shared[kind].add(now, i, waiting[i][2], cap[kind][i])
                elif what != "arrive":
                    begin(i, what, now)
                else:
                    self.clock = now
                    idle.append(i)
                    j = self._pick(idle)
                    yield i, j
                    visits[j] += 1
                    begin(j, "receive", now)
            elif soon[0] == np.inf:
                return  # nobody is left
            else:
                what = soon[1]
                end, i = shared[what].pop()
                began, started, _ = waiting.pop(i)
                self.radio[i] += end - started
                self._note([i], [began], [end - began], what)
                heappush(events, (end, i, follow[what]))

    def _pick(self, idle):
        """One of the idle devices, which leaves the list: drawn among those that are on, if any."""
        if len(idle) == 1:
            return idle.pop()
        there = list(self.online(idle)) or idle
        j = int(there[stream(self.seed, "pick", self._draw("pick")).integers(len(there))])
        idle.remove(j)
        return j

    def _account(self, i, what, size, tries):
        self.messages += tries
        if what == "receive":
            self.down[i] += size
            self.server_up += size
        else:
            self.up[i] += size
            self.server_down += size

    def _pause(self, i, start, seconds):
        return start + seconds if self.off is None else self.off.finish(i, start, seconds)

    # ---- timetables made elsewhere ---------------------------------------------------------------

    def link(self, d: int, e: int) -> tuple[float, float]:
        """(latency s, bandwidth B/s) of a message from device d to device e on idle links."""
        return max(self.latency[d], self.latency[e]), min(
            self.bandwidth_up[d], self.bandwidth_down[e]
        )

    def replay(self, events) -> None:
        """Charge a timetable of pipeline.Event, whose times count from now; the clock moves to its
        end."""
        span = max((e.end for e in events), default=0.0)
        active = {i: [] for e in events for i in (e.device, e.to) if i is not None}
        for e in events:
            if e.what == "send":
                self.up[e.device] += e.nbytes
                self.down[e.to] += e.nbytes
                self.messages += 1
                self.radio[[e.device, e.to]] += e.end - e.start
                active[e.to].append((e.start, e.end))
            else:
                self.busy[e.device] += e.end - e.start
            active[e.device].append((e.start, e.end))
            self._note([e.device], [self.clock + e.start], [e.end - e.start], e.what)
        for i, spans in active.items():
            self.wait[i] += span - _covered(spans)
        self.clock += span
        self.ready[:] = self.clock

    # ---- accounts --------------------------------------------------------------------------------

    def joules(self) -> float:
        """Energy of all devices for what they did: computing, radio, and waiting in a round that
        they cannot leave (gossip, collectives, pipelines; a server's device is done when it has
        sent).
        """
        w = self.watts
        return float(
            (w["compute"] * self.busy + w["radio"] * self.radio + w["idle"] * self.wait).sum()
        )

    def totals(self) -> dict:
        """clock (s), bytes sent in all, bytes_busiest sent and received by the busiest node, the
        server included, messages, joules."""
        busiest = max((self.up + self.down).max(), self.server_up + self.server_down)
        sent = self.up.sum() + self.server_up
        return dict(
            clock=self.clock,
            bytes=sent,
            bytes_busiest=busiest,
            messages=self.messages,
            joules=self.joules(),
        )

    def gantt(self) -> pd.DataFrame:
        """The timeline as columns device, start, end, what; needs record=True."""
        if self.timeline is None:
            raise UsageError("this world kept no timeline; build it with record=True")
        return pd.DataFrame(self.timeline, columns=["device", "start", "end", "what"])

    def _note(self, devices, start, seconds, what, ok=None):
        if self.timeline is not None:
            for k, i in enumerate(devices):
                name = what if ok is None or ok[k] else "failed"
                self.timeline.append((int(i), float(start[k]), float(start[k] + seconds[k]), name))

    def _draw(self, what):
        """How often this kind of draw was made: relatives meet the same failures in round r."""
        self.draws[what] += 1
        return self.draws[what]

    def _tries(self, nodes, what, others=None):
        """How often each message is sent, and whether it arrives."""
        p = (
            self.loss[nodes]
            if others is None
            else 1 - (1 - self.loss[nodes]) * (1 - self.loss[others])
        )
        draw = self._draw(what)
        if not p.any():
            return np.ones(len(p), int), np.ones(len(p), bool)
        u = uniform(nodes if others is None else nodes * self.n + others, self.seed, what, draw)
        if self.retry:
            return _attempts(u, p), np.ones(len(p), bool)
        return np.ones(len(p), int), u >= p

    def _check(self, chosen):
        if len(chosen) and not (0 <= chosen.min() and chosen.max() < self.n):
            raise UsageError(
                f"devices {chosen.min()} to {chosen.max()} were chosen; "
                f"the world has 0 to {self.n - 1}"
            )


def _covered(spans):
    """Seconds that at least one of the (start, end) spans covers."""
    total, until = 0.0, -np.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def _attempts(u, p):
    """Geometric: how many sendings until one arrives, each lost with probability p; at most 100."""
    with np.errstate(divide="ignore"):
        p = np.clip(p, 1e-300, 1 - 1e-16)
        return np.minimum(1 + np.floor(np.log(u) / np.log(p)), 100).astype(int)


def _each(kind, n, find):
    """One record for all devices, or a list of n."""
    if isinstance(kind, list | tuple):
        if len(kind) != n:
            raise UsageError(f"{len(kind)} records for {n} devices; give one, or {n}")
        return [find(k) for k in kind]
    return [find(kind)]


def _column(records, field, n):
    values = np.array([getattr(r, field) for r in records], float)
    return np.full(n, values[0]) if len(values) == 1 else values
