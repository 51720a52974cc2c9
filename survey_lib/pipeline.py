"""Pipelines: a network cut into stages, schedules, their timetable, and the numbers they compute.

A schedule says in which order each stage works; `timetable` says when, on given devices and links;
`play` replays the timetable with real tensors, so that every gradient comes from what was there at
that time. Loss and update cost no time, on one device as on many.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from survey_lib.errors import UsageError
from survey_lib.models import Network

Tick = list[tuple[int, str, int]]  # (stage, "F" or "B", item): operations that may run side by side
Schedule = Callable[[int, int], Iterator[Tick]]  # (stages, micro-batches) -> ticks


class Event(NamedTuple):
    """What a device does from start to end, in s from the beginning of the step.

    what: F forward, B backward, R forward again (re-materialisation), send. item: the micro-batch.
    nbytes, to: size and receiver of a message.
    """

    device: int
    start: float
    end: float
    what: str
    item: int
    nbytes: int = 0
    to: int | None = None
    stage: int = 0


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
    for m in range(micro):
        yield from ([(s, "F", m)] for s in range(stages))
        yield from ([(s, "B", m)] for s in reversed(range(stages)))


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


def timetable(
    ticks: Iterable[Tick],
    forward,
    backward,
    nbytes=None,
    *,
    link=None,
    devices=None,
    rematerialise=False,
    pure_delay=False,
) -> list[Event]:
    """When everything happens, sorted by start: also an order in which to replay the numbers.

    forward, backward (K, M): s per stage and item. nbytes (K - 1, M): what crosses each cut, each
    way. link(d, e): latency (s) and bandwidth (B/s); None: messages take no time. devices: of the
    stages. A stage keeps the schedule's order and starts when its device is free and its input is
    there; it need not wait for its own message to get through. A message takes latency +
    bytes / bandwidth, one at a time from d to e (the next leaves when the last has arrived); with
    pure_delay they do not hold each other up. rematerialise: forward again before each backward.
    """
    K, todo = len(forward), [[] for _ in forward]
    devices = range(K) if devices is None else devices
    for tick in ticks:
        for s, op, m in tick:
            todo[s].insert(0, (op, m))  # the next one last
    ready = {(0, "F", m): 0.0 for m in range(len(forward[0]))}  # when an operation's input is there
    free, line = defaultdict(float), defaultdict(float)  # when a device, a direction is free
    events = []
    while any(todo):
        next_ = [(s, *ops[-1]) for s, ops in enumerate(todo) if ops and (s, *ops[-1]) in ready]
        if not next_:
            raise UsageError("a deadlocked schedule: F needs the stage before, B the one after")
        start, s = min((max(free[devices[s]], ready[s, op, m]), s) for s, op, m in next_)
        op, m = todo[s].pop()
        d, now = devices[s], start
        if op == "B" and rematerialise:
            now += forward[s][m]
            events.append(Event(d, start, now, "R", m, stage=s))
        end = now + (forward if op == "F" else backward)[s][m]
        events.append(Event(d, now, end, op, m, stage=s))
        free[d] = end
        to = s + 1 if op == "F" else s - 1
        if to == K:
            ready[s, "B", m] = end
        elif to >= 0:
            ready[to, op, m] = end
            e, size = devices[to], 0 if nbytes is None else int(nbytes[min(s, to)][m])
            if e != d and size:
                latency, bandwidth = link(d, e) if link else (0.0, np.inf)
                leave = end if pure_delay else max(end, line[d, e])
                ready[to, op, m] = line[d, e] = leave + latency + size / bandwidth
                events.append(Event(d, leave, line[d, e], "send", m, size, e, s))
    return sorted(events, key=lambda event: event.start)


def plan(world, stages, schedule, sizes, *, devices=None, **how) -> list[Event]:
    """The timetable of one mini-batch, in micro-batches of `sizes` samples, in the world.

    how: rematerialise, pure_delay of `timetable`.
    """
    devices = list(range(len(stages)) if devices is None else devices)
    if len(devices) != len(stages) or not all(0 <= d < world.n for d in devices):
        raise UsageError(
            f"devices = {devices}, for {len(stages)} stages; name one of {world.n} for each stage"
        )
    speed, sizes = world.speed[devices][:, None], np.asarray(sizes)
    return timetable(
        schedule(len(stages), len(sizes)),
        np.outer([stage.forward for stage in stages], sizes) / speed,
        np.outer([stage.backward for stage in stages], sizes) / speed,
        np.outer([stage.output_bytes for stage in stages[:-1]], sizes),
        link=world.link,
        devices=devices,
        **how,
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
    images, labels = (part.split(list(sizes)) for part in batch)
    last, N, (operations, again) = len(stages) - 1, len(batch[1]), _operations(events)
    inputs, kept, back, g = {(0, m): a for m, a in enumerate(images)}, {}, {}, torch.zeros_like(x)

    def run(s, m, a):
        """(weights, input, output) for the backward pass; the last stage's output is the loss."""
        w, a = x[stages[s].params].detach().requires_grad_(), a.detach().requires_grad_(s > 0)
        out = stages[s].call(w, a)
        if s == last:
            out = F.cross_entropy(out, labels[m], reduction="sum") / N
        return w, a, out

    for what, s, m in operations:
        if what == "F":
            a = inputs.pop((s, m))
            kept[s, m] = run(s, m, a)
            inputs[s + 1, m] = kept[s, m][2].detach()
            if (s, m) in again:
                kept[s, m] = a
        elif what == "R":
            kept[s, m] = run(s, m, kept[s, m])
        else:
            w, a, out = kept.pop((s, m))
            dw, *da = torch.autograd.grad(out, (w, a)[: 1 + (s > 0)], back.pop((s, m), None))
            g[stages[s].params] += dw
            if s:
                back[s - 1, m] = da[0]
    return g
