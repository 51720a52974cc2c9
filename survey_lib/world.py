"""The simulated edge: devices, links, churn, one virtual clock, and the accounts of bytes and
joules.

What passes through a move is weighed from the tensors themselves. The moves of one round leave at
one instant; a move returns who was reached, so that a lost message can change nothing.
"""

from collections import Counter, deque
from collections.abc import Iterator

import numpy as np
import pandas as pd
from torch import Tensor

from survey_lib import collectives, presets, timetable, visits
from survey_lib.churn import Churn
from survey_lib.collectives import PATIENCE
from survey_lib.errors import UsageError
from survey_lib.flows import star, weigh
from survey_lib.spread import (  # noqa: F401 (a world is described with them)
    Draw,
    exponential,
    lognormal,
    loguniform,
    one_slow,
    pareto,
)
from survey_lib.streams import attempts, uniform
from survey_lib.topology import links, mask

UPLOAD = [(name, float) for name in ("begin", "start", "finish", "size")]
UPLOAD += [("tries", np.int32), ("ok", bool), ("pending", bool)]


class World:
    """n devices around an optional server, on one virtual clock.

    n: devices. device, link: presets or records of presets.py, or a list of n names. spread:
    factors of the devices' speeds. jitter: factors of each computation's time. loss: probability
    that a message is lost (default: the link's). retry: send lost messages again until they arrive,
    at their cost and at most 100 times; the last one arrives. All-reduce and asynchronous visits
    always do so. churn: (mean seconds on, mean seconds off), or a CSV file or DataFrame with
    columns device, start, end of the times a device is off. crash: probability that a device fails
    before an upload of a server's round: it has computed, and sends nothing. fading: (factor, mean
    seconds good, mean seconds bad): each device's bandwidth is multiplied by the factor in bad
    spells, as it is when a transfer begins. path: B/s that a message from device to device has at
    most, below their access links, and which no other message shares. server: the server's (up,
    down) in B/s. record: keep a timeline for a Gantt chart.

    clock: s, never goes back. ready (n,): when each device is free. Accounts: up, down (n,) bytes;
    server_up, server_down bytes; lost, bytes of all that was sent and did not arrive, be it lost,
    cut short, or in vain before it was sent again; messages; and the seconds (n,) of each device:
    busy, it computes; radio, data is on the air; wait, it does neither, in a round that it takes
    part in: a latency passes, the channel is taken, or others are not through. So busy + radio +
    wait = clock for a device that every round reaches and waits for. Asynchronous devices do not
    wait; overlapped messages are on the air beside the rest. Bytes sent to a device count in down
    whether they arrive or not.

    A device that is registered and idle costs about 100 bytes; a move costs what its devices cost.
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
        crash: float = 0.0,
        fading: tuple[float, float, float] | None = None,
        path: float = np.inf,
        server: tuple[float, float] = (np.inf, np.inf),
        seed: int = 0,
        record: bool = False,
    ):
        if n < 1:
            raise UsageError(f"n = {n} devices; a world needs at least one")
        self.n, self.seed, self.jitter, self.retry, self.server = n, seed, jitter, retry, server
        devices, access = _each(device, n, presets.device), _each(link, n, presets.link)
        self.speed = _column(devices, "speed", n)
        if spread is not None:
            self.speed = self.speed * spread(uniform(np.arange(n), seed, "speed"))
        self.memory = _column(devices, "memory", n)
        self.watts = {k: _column(devices, k, n) for k in ("idle", "compute", "radio")}
        self.latency, self.bandwidth_up = _column(access, "latency", n), _column(access, "up", n)
        self.bandwidth_down = _column(access, "down", n)
        self.loss = _column(access, "loss", n) if loss is None else _constant(float(loss), n)
        if not ((self.loss >= 0) & (self.loss <= 1)).all():
            raise UsageError(f"loss = {loss} is a probability; expected 0 to 1")
        if retry and (self.loss >= 1).any():
            raise UsageError(
                "loss = 1 with retry never delivers; lower the loss or set retry=False"
            )
        self.off = None if churn is None else Churn(churn, seed)
        if not 0 <= crash <= 1:
            raise UsageError(f"crash = {crash} is a probability; expected 0 to 1")
        if fading is not None and not (len(fading) == 3 and min(fading) > 0):
            raise UsageError(
                f"fading = {fading}; expected (factor, mean seconds good, mean seconds bad), "
                "all above 0"
            )
        if not path > 0:
            raise UsageError(f"path = {path}; expected B/s above 0")
        if not min(server) > 0:
            raise UsageError(f"server = {server}; expected (up, down) in B/s, both above 0")
        self.crash, self.path = crash, path
        self.fading = fading and (fading[0], Churn(tuple(fading[1:]), (seed, "fading")))
        self.clock, self.ready, self.since = 0.0, np.zeros(n), np.zeros(n)
        self.up, self.down, self.lost = np.zeros(n), np.zeros(n), 0.0
        self.server_up, self.server_down, self.messages = 0, 0, 0
        self.busy, self.radio, self.wait = np.zeros(n), np.zeros(n), np.zeros(n)
        self.began = np.zeros(n)  # from then, or the clock, until it is ready a device computes
        self.sending = np.zeros(n, UPLOAD)  # the upload that each device has under way, if pending
        self.behind, self.free = deque(), 0.0  # ends of overlapped exchanges; when links are free
        self.timeline = [] if record else None
        self.draws = Counter()  # of moves and computations so far, by kind: keys their draws
        self.known = {}  # durations of exchanges already worked out
        self._pending = 0  # uploads under way

    # ---- who is there ----------------------------------------------------------------------------

    def online(self, chosen=None) -> np.ndarray:
        """The devices among `chosen` (default: all) that are on now, ready for a round that begins
        now."""
        chosen = np.arange(self.n) if chosen is None else np.asarray(chosen, dtype=int)
        if self.off is not None:
            chosen = chosen[self._on(chosen)]
        self.since[chosen] = self.clock
        self.ready[chosen] = np.maximum(self.ready[chosen], self.clock)
        return chosen

    def _on(self, chosen):
        """(k,) which of the devices are on."""
        if self.off is None:
            return np.ones(len(chosen), bool)
        return np.array([not self.off.until(i, self.clock)[0] for i in chosen.tolist()], bool)

    def leaves(self, chosen) -> np.ndarray:
        """(k,) s: when each of the chosen devices goes off next; inf: never, -inf: it is off now.
        For devices whose position and speed tell how long they stay."""
        if self.off is None:
            return np.full(len(chosen), np.inf)
        return np.array([self.off.next_off(int(i), self.clock) for i in chosen])

    def rates(self, chosen, at: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(up, down): the chosen devices' bandwidths now, or `at` a time, B/s, each (k,)."""
        chosen = np.asarray(chosen, dtype=int)
        fade = self.fade(chosen, self.clock if at is None else at)
        return self.bandwidth_up[chosen] * fade, self.bandwidth_down[chosen] * fade

    # ---- work and moves of a round ---------------------------------------------------------------

    def compute(self, chosen, flops) -> None:
        """The chosen devices compute `flops` each, from when they are free; the clock stays."""
        chosen = np.asarray(chosen, dtype=int)
        seconds = np.broadcast_to(flops, chosen.shape) / self.speed[chosen]
        if self.jitter is not None:
            ids = visits.nth(chosen, self.draw("jitter"))
            seconds = seconds * self.jitter(uniform(ids, self.seed, "jitter"))
        begin = np.maximum(self.ready[chosen], self.clock)
        self.note(chosen, begin, seconds, "compute")
        self.busy[chosen] += seconds
        self.ready[chosen] = begin + seconds

    def broadcast(self, chosen, payload, *, multicast: bool = False) -> np.ndarray:
        """The server sends one payload to each chosen device, at the clock. Returns the devices it
        reached. multicast: all of them listen to one transmission, at the slowest one's rate, which
        the server pays once (with retry: as often as the device needs that needs it most often)."""
        return self._down(chosen, np.full(len(chosen), float(weigh(payload))), multicast)

    def scatter(self, chosen, payloads: list) -> np.ndarray:
        """The server sends each chosen device its own payload. Returns the devices it reached."""
        return self._down(chosen, np.array([weigh(p) for p in payloads], float))

    def _down(self, chosen, size, multicast=False):
        chosen = np.asarray(chosen, dtype=int)
        self._check(chosen)
        if self.off is not None:
            on = self._on(chosen)
            chosen, size = chosen[on], size[on]
        self.since[chosen] = self.clock
        tries, arrived = self.tries(chosen, "down")
        start, sent = self.clock + self.latency[chosen] * tries, size * tries
        down = self.bandwidth_down[chosen] * self.fade(chosen, self.clock)
        if multicast:
            finish = start + sent / min(self.server[0], down.min(initial=np.inf))
            heard = size.max(initial=0.0) if arrived.any() else 0.0
        else:
            finish, heard = star(self.server[0], down, sent, start), size[arrived].sum()
        paid, last = (np.max if multicast else np.sum), finish.max(initial=0.0)
        self.server_up += paid(sent, initial=0)
        self.lost += paid(sent, initial=0) - heard
        self.messages += int(paid(tries, initial=0))
        self.down[chosen] += sent
        self.radio[chosen] += finish - start
        self.note(chosen, start, finish - start, "receive", arrived)
        free = np.maximum(self.ready[chosen], self.clock)
        if arrived.all():
            reached = chosen
        else:
            self.ready[chosen] = free
            reached, start, finish, free = (a[arrived] for a in (chosen, start, finish, free))
        self.wait[reached] += np.maximum(0.0, start - free)
        self.began[reached] = np.where(finish > free, finish, self.began[reached])
        self.ready[reached] = np.maximum(finish, free)
        if not len(reached) and not self._pending:
            self.clock = max(self.clock + PATIENCE, last)  # else an upload under way is next
        return reached

    def gather(
        self,
        chosen,
        payload,
        *,
        first: int | None = None,
        deadline: float | None = None,
        serial: bool = False,
    ) -> np.ndarray:
        """The chosen devices send to the server, each when it is free. The server waits for all of
        them; or for the `first` so many; or until `deadline` seconds after the clock, by which it
        also gives up on those of whom nothing arrives. What is then unfinished is cancelled, see
        `close`.

        payload: tensors with one leading row per chosen device, or a list with one payload each.
        serial: one after another in the order of `chosen`, as on one shared channel. Returns the
        positions in `chosen` whose upload arrived: not lost, and from a device that was on since
        the broadcast; exactly `first` if so many do in time, the earlier in `chosen` of two that
        come at one instant. Without a deadline a failed upload, if the server is short of others,
        is waited for as long as it would take.
        """
        if first is not None and first < 1:
            raise UsageError(f"first = {first} uploads; expected 1 or more, or None for all")
        if deadline is not None and not deadline >= 0:
            raise UsageError(f"deadline = {deadline} s from now; expected 0 or more")
        chosen = np.asarray(chosen, dtype=int)
        limit = np.inf if deadline is None else self.clock + deadline
        if not len(chosen):
            self.clock = limit if limit < np.inf else self.clock
            return np.zeros(0, int)
        times = self.uploads(chosen, payload, serial=serial)
        arrive, end = np.isfinite(times), self.due(chosen).max()
        if first is not None and arrive.sum() >= first:
            end = np.sort(times)[first - 1]
        elif limit < np.inf and not arrive.all():
            end = limit
        end = min(end, limit)
        up = np.argsort(times, kind="stable")[:first]
        self.close(chosen, end)
        return np.sort(up[times[up] <= end])

    def uploads(self, chosen, payload, *, serial: bool = False) -> np.ndarray:
        """(k,) when the uploads of the chosen devices reach the server, s: inf where nothing
        arrives. The clock stays, and nothing is charged before `close`: the step of `gather` for
        methods that wait by a rule of their own. Uploads of one call share the server's link, those
        of different calls do not; a crashed device takes no part of it. Close each upload, also
        those of which nothing arrives, before the device begins anew.
        """
        chosen = np.asarray(chosen, dtype=int)
        if isinstance(payload, list):
            size = np.array([weigh(p) for p in payload], float)
        else:
            size = np.full(len(chosen), weigh(payload) / max(1, len(chosen)))
        self._check(chosen)
        tries, ok = self.tries(chosen, "up")
        begin = np.maximum(self.ready[chosen], self.clock)
        size, start = size * tries, begin + self.latency[chosen] * tries
        crashed = np.zeros(len(chosen), bool)
        if self.crash:
            crashed = uniform(chosen, self.seed, "crash", self.draws["up"]) < self.crash
        if serial:
            finish, free = np.zeros(len(chosen)), -np.inf
            for k, i in enumerate(chosen):
                start[k] = max(start[k], free)
                own = self.bandwidth_up[i] * self.fade([i], start[k])[0]
                finish[k] = start[k] + size[k] / min(own, self.server[1])
                free = free if crashed[k] else finish[k]
        else:
            own = self.bandwidth_up[chosen] * self.fade(chosen, start)
            finish, there = start + size / np.minimum(own, self.server[1]), ~crashed
            finish[there] = star(self.server[1], own[there], size[there], start[there])
        if crashed.any():
            start, ok = np.where(crashed, finish, start), ok & ~crashed
            size, tries = np.where(crashed, 0.0, size), np.where(crashed, 0, tries)
        if self.off is not None:
            spans = zip(chosen, self.since[chosen], finish, strict=True)
            ok = ok & np.array([self._stays(*span) for span in spans], bool)
        self._pending += len(chosen) - int(self.sending["pending"][chosen].sum())
        values = begin, start, finish, size, tries, ok, True
        for (field, _), value in zip(UPLOAD, values, strict=True):
            self.sending[field][chosen] = value
        return np.where(ok, finish, np.inf)

    def due(self, chosen) -> np.ndarray:
        """(k,) when the uploads that the chosen devices have under way are through, s, or would be
        if nothing arrives; 0 for a device that has none."""
        sending = self.sending[chosen]
        return np.where(sending["pending"], sending["finish"], 0.0)

    def close(self, chosen, when: float) -> None:
        """The clock moves to `when` (it stays if that has passed), and the chosen devices are free
        then. What they computed and sent is charged, an unfinished upload with its share of the
        bytes; what they would still do is cancelled, free of charge. Only a download is charged
        in full at its broadcast. A second `close` finds nothing to charge."""
        if not np.isfinite(when):
            raise UsageError(f"when = {when} s; wait for uploads that arrive, at a finite time")
        chosen, when = np.asarray(chosen, dtype=int), max(self.clock, when)
        values = (self.sending[field][chosen] for field, _ in UPLOAD)
        begin, start, finish, size, tries, ok, pending = values
        undone = np.maximum(0.0, self.ready[chosen] - np.maximum(self.began[chosen], when))
        air = np.maximum(0.0, np.minimum(finish, when) - start) * pending
        done = pending & (finish <= when)
        begun = pending & (tries > 0) & (done | (when > begin))
        sent = np.where(done, size, size * air / np.maximum(finish - start, 1e-300))
        here = done & ok
        self.busy[chosen] -= undone
        if self.timeline is not None and (undone > 0).any():
            self.timeline = timetable.cut(self.timeline, chosen[undone > 0], when)
        self.radio[chosen] += air
        self.wait[chosen] += np.maximum(0.0, when - begin) * pending - air
        self.up[chosen] += sent
        self.messages += int(tries[begun].sum())
        self.server_down += size[here].sum()
        self.lost += sent.sum() - (size[here] / np.maximum(tries[here], 1)).sum()
        shown = begun & (done | (air > 0))
        self.note(chosen[shown], start[shown], air[shown], "send", here[shown])
        self._pending -= int(pending.sum())
        self.sending["pending"][chosen] = False
        self.ready[chosen] = self.clock = when

    def barrier(self, chosen) -> None:
        """All the chosen devices wait until the last of them is done, and the clock moves there;
        without any, by PATIENCE seconds."""
        chosen = np.asarray(chosen, dtype=int)
        free = np.maximum(self.ready[chosen], self.clock)
        self.clock = free.max() if len(chosen) else self.clock + PATIENCE
        self.wait[chosen] += self.clock - free
        self.ready[chosen] = self.clock

    def exchange(self, W: Tensor, rows, *, overlap: int = 0, sizes=None) -> Tensor:
        """Every device sends its row to its neighbours, all at one instant: i hears j where W[i, j]
        is not 0.

        rows: a tensor (or tuple of tensors) with n leading rows. W: dense, or sparse (COO): then
        the cost grows with the links alone. Returns arrived (n, n), True where i has j's message,
        of W's layout; devices that are off neither send nor hear, and do not hold the others up.
        overlap: once they have sent, the devices wait only for the exchange of so many rounds ago;
        one exchange after the other uses the links, while latencies run side by side. So rounds of
        C s of computing and exchanges of L + s seconds, L of them latency, take
        max(C, s, (C + L + s) / (overlap + 1)) on average. The radio is then on beside computing and
        waiting. sizes: bytes of each sender's message (n,), or of each [receiver, sender] (n, n),
        for rows of which only some entries are sent.
        """
        if W.shape != (self.n, self.n):
            raise UsageError(
                f"W is {tuple(W.shape)} but the world has {self.n} devices; build it for {self.n}"
            )
        size, on = weigh(rows) / self.n, np.zeros(self.n, bool)
        on[self.online()] = True
        dst, src = links(W)
        there = on[dst] & on[src]
        dst, src = dst[there], src[there]
        if sizes is not None:
            size = np.broadcast_to(sizes, tuple(W.shape))[dst, src].astype(float)
        ok = self.transfer(src, dst, size, on=np.flatnonzero(on), overlap=overlap)
        return mask(W, dst[ok], src[ok])

    def transfer(self, src, dst, nbytes, *, on=None, overlap: int = 0) -> np.ndarray:
        """(m,) whether they arrive: m messages from device src to device dst that leave at one
        instant, when all the devices `on` (default: all; all of src and dst at least) are free, and
        which these wait for. The step of `exchange` for a list of links."""
        on = np.arange(self.n) if on is None else np.asarray(on, dtype=int)
        return collectives.transfer(self, src, dst, nbytes, on, overlap)

    def allreduce(self, chosen, rows: Tensor, algorithm: str = "ring") -> Tensor:
        """(d,): the sum of the chosen devices' rows (k, d), which each of them then holds, see
        collectives.allreduce."""
        collectives.allreduce(self, chosen, rows.shape[1], rows.element_size(), algorithm)
        return collectives.ring_sum(rows) if algorithm == "ring" else rows.sum(0)

    # ---- asynchronous devices --------------------------------------------------------------------

    def arrivals(
        self, down, up, flops, *, active: int | None = None
    ) -> Iterator[tuple[int | None, int]]:
        """Asynchronous visits around a server, see visits.arrivals."""
        return visits.arrivals(self, down, up, flops, active=active)

    def wakes(self, flops) -> Iterator[int]:
        """Asynchronous devices without a server, see visits.wakes."""
        return visits.wakes(self, flops)

    def send(self, i: int, j: int, payload) -> float:
        """Device i sends to j at the clock and goes on at once. Returns when it arrives, s: inf
        where the message is lost or one of them is off meanwhile."""
        seconds, air, arrived = self._message(i, j, weigh(payload), self.clock)
        self.radio[[i, j]] += air
        return self.clock + seconds if arrived else np.inf

    def swap(self, i: int, j: int, payload, *, overlap: bool = False) -> bool:
        """Devices i and j send each other a payload; i waits for it, j goes on. Returns whether
        both arrived. overlap: it began when i's computation did (in wakes), so that only what is
        left of it is waited for. A partner that is off costs the time to notice: the latency.
        """
        begin = self.began[i] if overlap else self.clock
        if not self._stays(j, begin, begin):
            self.ready[i] = max(self.clock, begin + self.link(i, j, begin)[0])
            return False
        there, back = (self._message(*way, weigh(payload), begin) for way in ((i, j), (j, i)))
        self.radio[[i, j]] += max(there[1], back[1])
        self.ready[i] = max(self.clock, begin + max(there[0], back[0]))
        return there[2] and back[2]

    def pull(self, i: int, j: int, payload) -> bool:
        """Device i asks j for a payload and waits for it: a latency for the question, which weighs
        nothing, then the message; j goes on. Returns whether it arrived. A j that is off costs the
        time to notice: the latency."""
        answer = self.clock + self.link(i, j)[0]
        if not self._stays(j, self.clock, answer):
            self.ready[i] = answer
            return False
        seconds, air, arrived = self._message(j, i, weigh(payload), answer)
        self.radio[[i, j]] += air
        self.ready[i] = answer + seconds
        return arrived

    def _message(self, i, j, nbytes, begin):
        """(seconds, of which on the air, arrived) of one message on otherwise idle links."""
        latency, bandwidth = self.link(i, j, begin)
        (tries,), (ok,) = self.tries(np.array([i]), "send", np.array([j]))
        air = tries * nbytes / bandwidth
        start = begin + latency * tries
        ok = bool(ok and all(self._stays(k, start, start + air) for k in (i, j)))
        self.up[i] += tries * nbytes
        self.down[j] += tries * nbytes
        self.messages += int(tries)
        self.lost += (tries - ok) * nbytes
        self.note([i], [start], [air], "send", [ok])
        self.note([j], [start], [air], "receive", [ok])
        return latency * tries + air, air, ok

    def _stays(self, i, start, end):
        """Whether device i is on from start to end."""
        return self.off is None or self.off.next_off(int(i), start) > end

    def pause(self, i, start: float, seconds: float) -> float:
        """When device i is through with so many seconds of work, which pauses while it is off."""
        return start + seconds if self.off is None else self.off.finish(i, start, seconds)

    # ---- timetables made elsewhere ---------------------------------------------------------------

    def link(self, d: int, e: int, at: float | None = None) -> tuple[float, float]:
        """(latency s, bandwidth B/s) of a message from device d to device e on idle links that
        begins at the clock, or `at`."""
        fade = self.fade((d, e), self.clock if at is None else at)
        rate = min(self.bandwidth_up[d] * fade[0], self.bandwidth_down[e] * fade[1])
        return max(self.latency[d], self.latency[e]), min(rate, self.path)

    def replay(self, events) -> None:
        """Charge a timetable, see timetable.replay."""
        timetable.replay(self, events)

    # ---- accounts --------------------------------------------------------------------------------

    def joules(self) -> float:
        """Energy of all devices for what they did: computing, radio, and waiting in a round that
        they take part in. A device that no round asks for costs nothing."""
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
        """The timeline as columns device, start, end, what; needs record=True. Computing and
        messages of rounds as in busy and radio; an all-reduce is one bar, and asynchronous messages
        and those of timetables are drawn with their latency."""
        return timetable.gantt(self.timeline)

    def note(self, devices, start, seconds, what: str, ok=None) -> None:
        """A bar in the timeline for each of the devices, if there is one; ok: which succeed."""
        if self.timeline is not None:
            for k, i in enumerate(devices):
                name = what if ok is None or ok[k] else "failed"
                self.timeline.append((int(i), float(start[k]), float(start[k] + seconds[k]), name))

    # ---- draws -----------------------------------------------------------------------------------

    def draw(self, what: str) -> int:
        """How often this kind of draw was made: relatives meet the same failures in round r."""
        self.draws[what] += 1
        return self.draws[what]

    def tries(self, nodes, what: str, others=None) -> tuple[np.ndarray, np.ndarray]:
        """(k,) how often each message is sent, and whether it arrives."""
        p, draw = self.loss[nodes], self.draw(what)
        if others is not None:
            p = 1 - (1 - p) * (1 - self.loss[others])
        if not p.any():
            return np.ones(len(p), int), np.ones(len(p), bool)
        u = uniform(nodes if others is None else nodes * self.n + others, self.seed, what, draw)
        if self.retry:
            return attempts(u, p), np.ones(len(p), bool)
        return np.ones(len(p), int), u >= p

    def fade(self, nodes, t) -> np.ndarray:
        """(k,) factors of the bandwidths of `nodes` at time t, one for all or one each."""
        if self.fading is None:
            return np.ones(len(nodes))
        factor, spells = self.fading
        at = zip(nodes, np.broadcast_to(t, len(nodes)), strict=True)
        return np.where([spells.until(int(i), float(now))[0] for i, now in at], factor, 1.0)

    def _check(self, chosen):
        if len(chosen) and not (0 <= chosen.min() and chosen.max() < self.n):
            raise UsageError(
                f"devices {chosen.min()} to {chosen.max()} were chosen; "
                f"the world has 0 to {self.n - 1}"
            )


def _each(kind, n, find):
    """One record for all devices, or a list of n."""
    if isinstance(kind, list | tuple):
        if len(kind) != n:
            raise UsageError(f"{len(kind)} records for {n} devices; give one, or {n}")
        return [find(k) for k in kind]
    return [find(kind)]


def _column(records, field, n):
    values = np.array([getattr(r, field) for r in records], float)
    return _constant(values[0], n) if len(values) == 1 else values


def _constant(value, n):
    """(n,) of one value, which is stored once."""
    return np.broadcast_to(value, n)
