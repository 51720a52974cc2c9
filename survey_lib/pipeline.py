"""Pipelines: a network cut into stages, schedules, their timetable, and the numbers they compute.

A schedule says in which order each stage works, also without end; `flow` says when, on given
devices and links; `play` and `endless` replay that with real tensors, so that every gradient comes
from what was there at that time. Loss and update cost no time, on one device as on many.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from survey_lib import timetable as clockwork
from survey_lib.errors import UsageError
from survey_lib.models import Network
from survey_lib.passes import Passes
from survey_lib.streams import attempts, uniform

Tick = list[tuple[int, str, int]]  # (stage, "F" or "B", item): operations that may run side by side
Schedule = Callable[[int, int], Iterator[Tick]]  # (stages, micro-batches) -> ticks


class Event(NamedTuple):
    """What a device does from start to end, in s from the beginning of the step.

    what: F forward, B backward, R forward again (re-materialisation), send. item: the micro-batch.
    nbytes, to: size and receiver of a message, which was sent so many times until it arrived.
    """

    device: int
    start: float
    end: float
    what: str
    item: int
    nbytes: int = 0
    to: int | None = None
    stage: int = 0
    tries: int = 1


@dataclass(frozen=True)
class Stage:
    """Consecutive layers on one device; figures per sample, bytes of the tensors' own dtype."""

    layers: slice
    params: slice  # of the flat vector
    call: Callable[[Tensor, Tensor], Tensor]  # (its part of x, input) -> output
    forward: int  # FLOPs
    backward: int  # FLOPs, without an input gradient in the first stage
    parameter_bytes: int  # in all, not per sample
    input_bytes: int  # all that re-materialisation keeps
    output_bytes: int  # crosses the next cut, and its gradient comes back
    saved_bytes: int  # kept for the backward pass, the input included


def split(network: Network, cuts: Sequence[int], dtype=torch.float32) -> list[Stage]:
    """The stages between cuts, which are the layers that begin a new stage: (1, 3) of 4 gives 3."""
    L = len(network.layers)
    edges = (0, *cuts, L)
    if any(a >= b for a, b in pairwise(edges)):
        raise UsageError(f"cuts = {tuple(cuts)}; expected ascending numbers from 1 to {L - 1}")
    stages, inputs = [], torch.zeros(1, *network.shape, dtype=dtype)
    for a, b in pairwise(edges):
        own, call = network.layers[a:b], network.stage(a, b)
        params = slice(own[0].params.start, own[-1].params.stop)
        forward, backward = (sum(getattr(v, k) for v in own) for k in ("forward", "backward"))
        w = torch.zeros(params.stop - params.start, dtype=dtype)
        outputs, saved = _trace(call, w, inputs)
        weighed = w.nbytes, inputs.nbytes, outputs.nbytes, saved
        stages.append(Stage(slice(a, b), params, call, forward, backward, *weighed))
        inputs = outputs
    return stages


def _trace(call, w, inputs):
    """The outputs, and the bytes autograd keeps besides the weights, each storage once."""
    kept = {}

    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t
        return t

    w, inputs = w.requires_grad_(), inputs.requires_grad_()
    with saved_tensors_hooks(keep, lambda t: t):
        outputs = call(w, inputs)
    kept.pop(w.untyped_storage().data_ptr(), None)
    return outputs.detach(), sum(t.untyped_storage().nbytes() for t in kept.values())


def balanced(network: Network, K: int, speeds: Sequence[float] | None = None) -> tuple[int, ...]:
    """Cuts into K stages whose slowest is as fast as can be; speeds: of the K devices, in order."""
    work = [layer.forward + layer.backward for layer in network.layers]
    L, speeds = len(work), [1.0] * K if speeds is None else speeds
    if not 1 <= K <= L:
        raise UsageError(f"K = {K} stages of {L} layers; choose K from 1 to {L}")
    if len(speeds) != K:
        raise UsageError(f"{len(speeds)} speeds for K = {K} stages; give one for each")
    best = {0: (0.0, ())}  # layers placed -> (time of the slowest stage, where the stages begin)
    for k in range(K):
        best = {
            j: min(
                (max(slowest, sum(work[i:j]) / speeds[k]), (*begins, i))
                for i, (slowest, begins) in best.items()
                if i < j
            )
            for j in range(k + 1, L + 1)
        }
    return best[L][1][1:]


def micro_batches(B: int, M: int) -> list[int]:
    """Sizes of M micro-batches of B samples, as even as possible, the larger ones first."""
    if not 1 <= M <= B:
        raise UsageError(f"M = {M} micro-batches of B = {B} samples; choose M from 1 to {B}")
    return [B // M + (m < B % M) for m in range(M)]


def one_by_one(stages: int, micro: int) -> Iterator[Tick]:
    # stages = 3, micro = 2     stage 0  F0 .. .. .. .. B0 F1 .. .. .. .. B1
    #                           stage 1  .. F0 .. .. B0 .. .. F1 .. .. B1 ..
    #                           stage 2  .. .. F0 B0 .. .. .. .. F1 B1 .. ..
    m = 0
    while m < micro:
        yield from ([(s, "F", m)] for s in range(stages))
        yield from ([(s, "B", m)] for s in reversed(range(stages)))
        m += 1


def fill_drain(stages: int, micro: int) -> Iterator[Tick]:
    # stages = 3, micro = 4     stage 0  F0 F1 F2 F3 .. .. .. .. B3 B2 B1 B0
    #                           stage 1  .. F0 F1 F2 F3 .. .. B3 B2 B1 B0 ..
    #                           stage 2  .. .. F0 F1 F2 F3 B3 B2 B1 B0 .. ..
    ticks = range(stages + micro - 1)
    for t in ticks:
        yield [(s, "F", t - s) for s in range(stages) if 0 <= t - s < micro]
    for t in reversed(ticks):
        yield [(s, "B", t - s) for s in range(stages) if 0 <= t - s < micro]


def one_f_one_b(stages: int, micro: int) -> Iterator[Tick]:
    # stages = 3, micro = 4     stage 0  F0 F1 F2 .. .. B0 F3 B1 .. B2 .. B3
    #                           stage 1  .. F0 F1 .. B0 F2 B1 F3 B2 .. B3 ..
    #                           stage 2  .. .. F0 B0 F1 B1 F2 B2 F3 B3 .. ..
    f, b = [0] * stages, [0] * stages  # next forward, next backward of each stage
    while b[0] < micro:
        tick = []
        for s in range(stages):
            may_f = f[s] < micro and f[s] - b[s] < stages - s and (s == 0 or f[s] < f[s - 1])
            may_b = b[s] < f[s] and (s == stages - 1 or b[s] < b[s + 1])
            if may_b:
                tick.append((s, "B", b[s]))
            elif may_f:
                tick.append((s, "F", f[s]))
        for s, op, _ in tick:
            (f if op == "F" else b)[s] += 1
        yield tick


def bubble(K: int, M: int) -> float:
    """The idle share of K equal stages with M micro-batches and free links."""
    return (K - 1) / (M + K - 1)


def timetable(ticks: Iterable[Tick], forward, backward, nbytes=None, **how) -> list[Event]:
    """When everything happens, sorted by start: also an order in which to replay the numbers.

    forward, backward (K, M): s per stage and item. nbytes (K - 1, M): what crosses each cut, each
    way; None: nothing. how: link, devices, resend, rematerialise, pure_delay of `flow`.
    """
    times = {"F": forward, "B": backward}
    size = None if nbytes is None else lambda cut, m: nbytes[cut][m]
    events = flow(ticks, len(forward), lambda op, s, m: times[op][s][m], size, **how)
    return sorted(events, key=lambda event: event.start)


def flow(
    ticks: Iterable[Tick],
    K: int,
    seconds: Callable[[str, int, int], float],
    nbytes: Callable[[int, int], int] | None = None,
    *,
    link=None,
    devices=None,
    resend=None,
    rematerialise=False,
    pure_delay=False,
) -> Iterator[Event]:
    """When the operations of K stages happen, in the order of their start, each followed by the
    message that it sends; ticks may have no end.

    seconds(op, s, m); nbytes(cut, m): what crosses a cut, each way. link(d, e): latency (s) and
    bandwidth (B/s); None: messages take no time. devices: of the stages. A stage keeps the
    schedule's order and starts when its device is free and its input is there; it need not wait for
    its own message to get through. A message takes latency + bytes / bandwidth, one at a time from
    d to e (the next leaves when the last has arrived); with pure_delay they do not hold each other
    up. resend(d, e): how often it is sent until it arrives (default: once). rematerialise: forward
    again before each backward.
    """
    ticks, todo = iter(ticks), [deque() for _ in range(K)]
    devices = range(K) if devices is None else devices
    ready = {}  # when an operation's input is there; images are there from the beginning
    free, line = defaultdict(float), defaultdict(float)  # when a device, a direction is free
    while True:
        while not all(todo) and (tick := next(ticks, None)):
            for s, op, m in tick:
                todo[s].append((op, m))
        if not any(todo):
            return
        best = None
        for s, ops in enumerate(todo):
            if not ops:
                continue
            op, m = ops[0]
            there = 0.0 if op == "F" and s == 0 else ready.get((s, op, m))
            if there is not None and (best is None or max(free[devices[s]], there) < best[0]):
                best = max(free[devices[s]], there), s, op, m
        if best is None:
            raise UsageError("a deadlocked schedule: F needs the stage before, B the one after")
        start, s, op, m = best
        todo[s].popleft()
        ready.pop((s, op, m), None)
        d, now = devices[s], start
        if op == "B" and rematerialise:
            now += seconds("F", s, m)
            yield Event(d, start, now, "R", m, stage=s)
        end = free[d] = now + seconds(op, s, m)
        yield Event(d, now, end, op, m, stage=s)
        to = s + 1 if op == "F" else s - 1
        if to == K:
            ready[s, "B", m] = end
        elif to >= 0:
            ready[to, op, m] = end
            e, size = devices[to], 0 if nbytes is None else int(nbytes(min(s, to), m))
            if e != d and size:
                latency, bandwidth = link(d, e) if link else (0.0, np.inf)
                tries = resend(d, e) if resend else 1
                leave = end if pure_delay else max(end, line[d, e])
                ready[to, op, m] = line[d, e] = leave + tries * (latency + size / bandwidth)
                yield Event(d, leave, line[d, e], "send", m, tries * size, e, s, tries)


def plan(world, stages, schedule, sizes, *, devices=None, **how) -> list[Event]:
    """The timetable of one mini-batch, in micro-batches of `sizes` samples, in the world.

    Lost messages are sent again until they arrive. how: rematerialise, pure_delay of `flow`.
    """
    devices = on_devices(world, stages, devices)
    speed, sizes = world.speed[devices][:, None], np.asarray(sizes)
    return timetable(
        schedule(len(stages), len(sizes)),
        np.outer([stage.forward for stage in stages], sizes) / speed,
        np.outer([stage.backward for stage in stages], sizes) / speed,
        np.outer([stage.output_bytes for stage in stages[:-1]], sizes),
        link=world.link,
        devices=devices,
        resend=partial(resend, world),
        **how,
    )


def on_devices(world, stages, devices=None) -> list[int]:
    """The devices of the stages; None: device s for stage s."""
    devices = [int(d) for d in (range(len(stages)) if devices is None else devices)]
    if len(devices) != len(stages) or not all(0 <= d < world.n for d in devices):
        raise UsageError(
            f"devices = {devices}, for {len(stages)} stages; name one of {world.n} for each stage"
        )
    return devices


def resend(world, d: int, e: int) -> int:
    """How often a message from device d to device e is sent until it arrives."""
    if not world.loss[[d, e]].any():
        return 1
    p = 1 - (1 - world.loss[d]) * (1 - world.loss[e])
    u = uniform(np.array([d * world.n + e]), world.seed, "pipeline", world.draw("pipeline"))
    return int(attempts(u, p)[0])


def endless(
    world, stages, B: int, *, schedule: Schedule, devices=None
) -> Iterator[tuple[Event, int] | None]:
    """The operations F and B of a pipeline of mini-batches of B samples that never stops, in the
    order of their start, and how many are ahead: updates of the own stage, one after each of its
    backward passes, from the operation's start until its mini-batch is back at the first stage (the
    start of its backward pass there); its own is not counted.

    The world's clock is at the end of the first stage's B when that is handed out. None: some
    device is off; the pipeline stands still, and a second passes.
    """
    devices = on_devices(world, stages, devices)
    work = {"F": [s.forward for s in stages], "B": [s.backward for s in stages]}
    events = flow(
        schedule(len(stages), np.inf),
        len(stages),
        lambda op, s, m: work[op][s] * B / world.speed[devices[s]],
        lambda cut, m: stages[cut].output_bytes * B,
        link=world.link,
        devices=devices,
        resend=partial(resend, world),
    )
    known, waiting, home, begin = [], deque(), {}, 0.0
    updates = [[] for _ in stages]  # (end, item) of backward passes
    for event in events:
        known.append(event)
        if event.what == "send":
            continue
        waiting.append(event)
        if event.what == "B":
            updates[event.stage].append((event.end, event.item))
            if event.stage == 0:
                home[event.item] = event
        # an item's operations go out once all that began before it was through is known
        while (back := home.get(waiting[0].item)) and back.end <= event.start:
            e = waiting.popleft()
            done = updates[e.stage] = [u for u in updates[e.stage] if u[0] > e.start]
            ahead = sum(end <= back.start and m != e.item for end, m in done)
            if e is back:
                while len(world.online(devices)) < len(devices):
                    world.barrier([])
                    yield None
                clockwork.replay(world, known, begin, e.end)
                begin, known = e.end, [k for k in known if k.end > e.end]
                del home[e.item]
            yield e, ahead


def must_fit(world, devices: Sequence[int], need: Sequence[int]) -> None:
    """UsageError unless the memory of each device holds what its stages need (K,), in bytes."""
    for s, d in enumerate(devices):
        there = sum(n for n, e in zip(need, devices, strict=True) if e == d)
        if there > world.memory[d]:
            shared = "" if there == need[s] else f", {there:.0f} with the device's other stages,"
            raise UsageError(
                f"stage {s} needs {need[s]:.0f} bytes{shared} and device {d} has "
                f"{world.memory[d]:.0f}: "
                f"{there - world.memory[d]:.0f} bytes are missing; cut the network into more "
                "stages, take smaller batches, or put the stage elsewhere"
            )


def _operations(events):
    """[(what, stage, item)] without messages, and the (stage, item) that are computed again."""
    done = [(e.what, e.stage, e.item) for e in events if e.what != "send"]
    return done, {(s, m) for what, s, m in done if what == "R"}


def peak_memory(stages: list[Stage], sizes: Sequence[int], events: list[Event]) -> np.ndarray:
    """(K,) bytes: the high-water mark of each stage's weights, gradient and saved activations.

    Messages that wait for their stage are not counted.
    """
    live = 2 * np.array([stage.parameter_bytes for stage in stages])
    peak, (operations, again) = live.copy(), _operations(events)
    for what, s, m in operations:
        saved, inputs = stages[s].saved_bytes * sizes[m], stages[s].input_bytes * sizes[m]
        if what == "F":
            live[s] += inputs if (s, m) in again else saved
        elif what == "R":
            live[s] += saved - inputs
        peak[s] = max(peak[s], live[s])
        if what == "B":
            live[s] -= saved
    return peak


def play(stages: list[Stage], x: Tensor, batch, sizes: Sequence[int], events) -> Tensor:
    """(d,): the gradient of the mean cross-entropy, one operation of the timetable after the other.

    batch: images (N, ...), labels (N,). g = sum_m (n_m / N) g_m over the micro-batches. A forward
    that an R event repeats keeps its input alone. A random layer (dropout) draws anew each time.
    """
    operations, again = _operations(events)
    passes, g = Passes(stages), torch.zeros_like(x)
    for m, part in enumerate(zip(*(whole.split(list(sizes)) for whole in batch), strict=True)):
        passes.enter(m, *part, total=len(batch[1]))
    for what, s, m in operations:
        w = x[stages[s].params]
        if what == "F":
            passes.forward(s, m, w, drop=(s, m) in again)
        elif what == "R":
            passes.again(s, m, w)
        else:
            g[stages[s].params] += passes.backward(s, m)
    return g
