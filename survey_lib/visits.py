"""Asynchronous devices: the order in which things happen when nobody waits for a round."""

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush

import numpy as np

from survey_lib.errors import UsageError
from survey_lib.flows import SharedLink, weigh
from survey_lib.streams import attempts, uniform

SPAN, TABLE = 64, 2**20  # draws that are made ahead: at most per device, about in all
GROUP = 4096  # devices whose draws are made in one call; a heap of so many events is in cache
GUESSES = 16  # random devices that are asked whether they are on, before all are


def arrivals(
    world, down, up, flops, *, active: int | None = None
) -> Iterator[tuple[int | None, int]]:
    """Asynchronous visits: device after device in the order their uploads reach the server.

    Yields (i, j): the upload of i is here, and j is given the newest model next; first (None,
    j) for each of the `active` devices (default: all) that begin at time 0. The next device is
    drawn among the idle ones that are on, if any is. Ends when all devices are gone for good.
    down, up: payloads of a visit; up may be a function of the device that is asked when it has
    computed. flops: per device, as they are when its visit begins. Lost messages are sent again; a
    device that goes off pauses until it is back. A finite server link is shared by all transfers
    under way. Nobody crashes. Download and computing are charged when the visit begins (seconds
    that depend on a shared link: when they are known), the upload when it arrives. What a device
    that is gone for good does not finish is free, but for the bytes of its download.

    A device goes its way in one step as far as nobody else can change it. So the events are only
    arrivals, uploads that are asked for, and beginnings and ends of flows on a shared link.
    """
    active = world.n if active is None else active
    if not 0 < active <= world.n:
        raise UsageError(f"active = {active} devices at once, but the world has {world.n}")
    asked, received, sent = callable(up), float(weigh(down)), 0.0 if callable(up) else weigh(up)
    capacity = {"receive": world.server[0], "send": world.server[1]}
    shared = {what: SharedLink(c) for what, c in capacity.items() if np.isfinite(c)}
    rate = dict(receive=memoryview(world.bandwidth_down), send=memoryview(world.bandwidth_up))
    latency, steady = memoryview(world.latency), world.off is None and world.fading is None
    record = world.timeline is not None
    tries, seconds = {what: _tries(world, what) for what in rate}, _seconds(world, flops)
    bytes_down, bytes_up, busy, radio = (  # single numbers are read and written faster so
        memoryview(a) for a in (world.down, world.up, world.busy, world.radio)
    )
    agenda, idle, number = Agenda(world.n), list(range(world.n)), _numbers(world, "pick")
    then, upload, flow = [""] * world.n, [None] * world.n, {}  # each device's event, and messages

    def transfer(i, what, now, nbytes, times):
        """(end, seconds on the air) of a message of device i; end inf: never, or not known yet."""
        if steady and what not in shared:
            air = nbytes / rate[what][i]
            return now + latency[i] * times + air, air
        start = world.pause(i, now, latency[i] * times)
        if start == np.inf:
            return start, 0.0
        own = rate[what][i]
        if world.fading is not None:
            own *= float(world.fade([i], start)[0])
        if what not in shared:
            return world.pause(i, start, nbytes / own), nbytes / own
        flow[i], then[i] = (now, start, nbytes, own), what
        agenda.add(start, i)
        return np.inf, 0.0

    def receive(i, now):
        times = tries["receive"](i)
        bytes_down[i] += received * times
        world.server_up += received * times
        world.messages += times
        world.lost += received * (times - 1)
        end, air = transfer(i, "receive", now, received * times, times)
        if end < np.inf:
            compute(i, now, end, air)
        elif i not in flow:  # gone for good
            world.lost += received

    def compute(i, began, now, air):
        """Device i has received its model, from `began` to `now`."""
        radio[i] += air
        if record:
            world.note([i], [began], [now - began], "receive")
        took = seconds(i)
        end = now + took if steady else world.pause(i, now, took)
        if end == np.inf:
            return
        busy[i] += took
        if record:
            world.note([i], [now], [end - now], "compute")
        if asked:
            then[i] = "ask"
            agenda.add(end, i)
        else:
            send(i, end, sent)

    def send(i, now, nbytes):
        times = tries["send"](i)
        end, air = transfer(i, "send", now, nbytes * times, times)
        upload[i] = nbytes * times, times, now, air
        if end < np.inf:
            then[i] = "arrive"
            agenda.add(end, i)

    for _ in range(active):
        j = _pick(world, idle, number)
        yield None, j
        receive(j, world.clock)
    while True:
        now, i = agenda.first()
        if shared:
            through, what = min((link.next_time(), what) for what, link in shared.items())
            if through < now:
                now, i = shared[what].pop()
                began, start, _, _ = flow.pop(i)
                if what == "receive":
                    compute(i, began, now, now - start)
                else:
                    upload[i], then[i] = (*upload[i][:3], now - start), "arrive"
                    agenda.add(now, i)
                continue
        if now == np.inf:
            return  # nobody is left
        agenda.pop()
        if then[i] == "arrive":
            nbytes, times, began, air = upload[i]
            bytes_up[i] += nbytes
            world.server_down += nbytes
            world.messages += times
            world.lost += nbytes * (times - 1) / times
            radio[i] += air
            if record:
                world.note([i], [began], [now - began], "send")
            world.clock = max(world.clock, now)
            j = i
            if idle:
                idle.append(i)
                j = _pick(world, idle, number)
            yield i, j
            receive(j, world.clock)
        elif then[i] == "ask":
            send(i, now, float(weigh(up(i))))
        else:
            shared[then[i]].add(now, i, *flow[i][2:])


def wakes(world, flops) -> Iterator[int]:
    """Asynchronous devices without a server: yields device i each time that it has computed
    `flops` (a number, or one per device), in the order of time; it then begins anew at once, or
    when a `swap` that it made in between is over. A device that goes off pauses until it is back.
    Ends when all are gone for good.
    """
    agenda, seconds = Agenda(world.n), _seconds(world, flops)
    busy, began, ready = (memoryview(a) for a in (world.busy, world.began, world.ready))

    def begin(i):
        took = seconds(i)
        now = world.pause(i, max(world.clock, ready[i]), 0.0)
        end = world.pause(i, now, took) if now < np.inf else np.inf
        if end < np.inf:  # else the device is gone for good
            busy[i] += took
            began[i], ready[i] = now, end
            agenda.add(end, i)
            if world.timeline is not None:
                world.note([i], [now], [end - now], "compute")

    for i in range(world.n):
        begin(i)
    while True:
        now, i = agenda.first()
        if now == np.inf:
            return
        agenda.pop()
        world.clock = max(world.clock, now)
        yield i
        begin(i)


class Agenda:
    """The next event of each device, one at most, in the order of time and, at one instant, of the
    devices. A heap holds the events up to a horizon, an array the later ones: a heap of all events
    of very many devices would not stay in cache."""

    def __init__(self, n: int):
        self.soon, self.later = [], np.full(n, np.inf)
        self.horizon = np.inf if n <= GROUP else -np.inf

    def add(self, time: float, i: int) -> None:
        if time <= self.horizon:
            heappush(self.soon, (time, i))
        else:
            self.later[i] = time

    def first(self) -> tuple[float, int]:
        """(time, device) of the next event; time inf without any."""
        if not self.soon and self.horizon < np.inf:
            part = max(len(self.later) // 64, GROUP // 4)
            self.horizon = float(np.partition(self.later, part)[part])
            due = np.flatnonzero((self.later <= self.horizon) & (self.later < np.inf))
            self.soon = list(zip(self.later[due].tolist(), due.tolist(), strict=True))
            heapify(self.soon)
            self.later[due] = np.inf
        return self.soon[0] if self.soon else (np.inf, -1)

    def pop(self) -> None:
        heappop(self.soon)


def _pick(world, idle: list[int], number: Iterator[float]) -> int:
    """One of the idle devices, which leaves the list: drawn among those that are on, if any."""

    def on(k):
        return world.off is None or world.off.next_off(idle[k], world.clock) > -np.inf

    guesses = (int(next(number) * len(idle)) for _ in range(GUESSES))
    k = next(filter(on, guesses), None)
    if k is None:
        there = list(filter(on, range(len(idle)))) or range(len(idle))
        k = there[int(next(number) * len(there))]
    idle[k], idle[-1] = idle[-1], idle[k]
    return idle.pop()


def _numbers(world, what) -> Iterator[float]:
    """Uniform numbers one after another, drawn in blocks."""
    while True:
        yield from uniform(np.arange(256), world.seed, what, world.draw(what)).tolist()


def _seconds(world, flops) -> Callable[[int], float]:
    """How long a device computes its `flops`, which may change, each time."""
    flops, speed = memoryview(np.broadcast_to(flops, world.n)), memoryview(world.speed)
    if world.jitter is None:
        return lambda i: flops[i] / speed[i]
    factor = _ahead(world, "jitter", lambda u, devices: world.jitter(u))
    return lambda i: flops[i] / speed[i] * factor(i)


def _tries(world, what) -> Callable[[int], int]:
    """How often a device sends its next message until it arrives."""
    if not world.loss.any():
        return lambda i: 1
    tries = _ahead(world, what, lambda u, devices: attempts(u, world.loss[devices]))
    return lambda i: int(tries(i))


def nth(devices, count) -> np.ndarray:
    """Ids of draws: of each device, the count-th time that it makes such a draw."""
    return np.asarray(devices) + (np.asarray(count) << 32)


def _ahead(world, what, form) -> Callable[[int], float]:
    """A function that gives the next of a device's own numbers, form(uniform numbers, devices).
    They depend on the device and how many it had before only, and are made in blocks."""
    span = min(max(TABLE // world.n, 8), SPAN)
    table, used, count = np.empty((world.n, span)), np.full(world.n, span), np.full(world.n, -span)
    value, place = memoryview(table), memoryview(used)

    def refill(group):
        """New blocks for those of a group of devices that have used half of theirs."""
        due = group + np.flatnonzero(used[group : group + GROUP] >= span / 2)
        count[due] += used[due]
        used[due] = 0
        devices, counts = np.repeat(due, span), np.add.outer(count[due], np.arange(1, span + 1))
        u = uniform(nth(devices, counts.ravel()), world.seed, what)
        table[due] = form(u, devices).reshape(-1, span)

    def following(i):
        k = place[i]
        if k == span:
            refill(i // GROUP * GROUP)
            k = 0
        place[i] = k + 1
        return value[i, k]

    return following
