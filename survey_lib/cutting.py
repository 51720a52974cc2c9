"""Where to cut a chain of layers: dynamic programming over its profile, and rules of thumb.

A chain is three vectors with an entry per layer: work or time, messages (bytes that leave the
layer, each way), weights (bytes). A cut is the number of the layer that begins a new stage.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, permutations

import numpy as np

from survey_lib.errors import UsageError
from survey_lib.models import Network
from survey_lib.pipeline import Event, resend


@dataclass(frozen=True)
class Chain:
    """What a mini-batch of B samples asks of each layer of a chain, (L,) each."""

    forward: np.ndarray  # FLOPs
    backward: np.ndarray  # FLOPs
    messages: np.ndarray  # bytes of the activation that leaves the layer; its gradient comes back
    weights: np.ndarray  # bytes
    saved: np.ndarray  # bytes kept for the backward pass
    names: tuple[str, ...] = ()

    @property
    def work(self) -> np.ndarray:
        return self.forward + self.backward

    def __len__(self) -> int:
        return len(self.forward)


def chain(network: Network, B: int, item: int = 4) -> Chain:
    """The chain of a network's layers, with `item` bytes a number."""
    rows = [
        (B * v.forward, B * v.backward, B * item * v.activation, item * v.parameters,
         B * item * v.saved)
        for v in network.layers
    ]  # fmt: skip
    return Chain(*np.array(rows, float).T, tuple(v.name for v in network.layers))


# ---- equal devices, with replication


def replicated(times, messages, weights, M: int, *, bandwidth: float, overlap: bool = True):
    """PipeDream's partitioner for M equal machines: (seconds of the slowest stage, [(first layer,
    last layer + 1, machines)]). Harlap et al., arXiv 1806.03377, section 3.1.

    times (L,): forward + backward of a mini-batch, s. A stage of layers i .. j on m machines takes
    T(i, j, m) = max(sum T_l, sum W_l) / m, with W_l = 4 (m - 1) w_l / (m bandwidth) to synchronise
    its replicas; a cut takes 2 messages / bandwidth, which overlaps with computing.
    A(j, m) = min(T(1, j, m), min over i < j, m' < m of max(A(i, m - m'), cut_i, T(i + 1, j, m'))).
    overlap=False: sum T_l + sum W_l, as the authors' code has it. All M machines are used.
    """
    L = len(times)
    if M < 1 or L < 1:
        raise UsageError(f"{L} layers on {M} machines; a plan needs one of each at least")
    T = np.concatenate([[0.0], np.cumsum(times)])
    W = np.concatenate([[0.0], np.cumsum(weights)])
    combine = max if overlap else lambda a, b: a + b

    def alone(i, j, m):
        return combine(T[j] - T[i], 4 * (m - 1) / m * (W[j] - W[i]) / bandwidth) / m

    @cache
    def best(j, m):
        found = [(alone(0, j, m), ((0, j, m),))]
        for i in range(1, j):
            for k in range(1, m):
                seconds, before = best(i, m - k)
                slowest = max(seconds, 2 * messages[i - 1] / bandwidth, alone(i, j, k))
                found.append((slowest, (*before, (i, j, k))))
        return min(found, key=lambda plan: plan[0])

    seconds, stages = best(L, M)
    return float(seconds), list(stages)


# ---- unlike devices


def cut(
    chain: Chain, speeds, link: Callable[[int, int], tuple[float, float]], *, memory=None
) -> tuple[float, tuple[int, ...], tuple[int, ...]]:
    """The cuts of the fastest pipeline over devices in a given order, of which some may get
    nothing: (seconds of the slowest stage or message, cuts, positions of the devices used).

    speeds (K,): FLOP/s; link(d, e): latency (s) and bandwidth (B/s) from position d to e.
    A(j, k), layers before j with the last of them on device k: min over i, k' < k of
    max(A(i, k'), time of message i between k' and k, work of i .. j - 1 / speed of k). The
    activation goes one way and its gradient the other: the slower of the two counts.
    memory (K,), bytes: device k must hold K - k versions and activations, and a gradient.
    """
    L, K = len(chain), len(speeds)
    work, weights, saved = (
        np.concatenate([[0.0], np.cumsum(v)]) for v in (chain.work, chain.weights, chain.saved)
    )

    def lacks(i, j, k):
        own = weights[j] - weights[i]
        need = (K - k) * (own + saved[j] - saved[i]) + own
        return need - (np.inf if memory is None else memory[k])

    best = {(0, -1): (0.0, ())}  # (layers placed, last device) -> (slowest, ((first, device), ...))
    for k in range(K):
        new = {}
        for (i, last), (slowest, before) in best.items():
            passing = 0.0
            if last >= 0:
                passing = _crossing(link, last, k, chain.messages[i - 1])
            for j in range(i + 1, L + 1):
                if lacks(i, j, k) > 0:
                    break
                value = max(slowest, passing, (work[j] - work[i]) / speeds[k])
                if value < new.get((j, k), (np.inf,))[0]:
                    new[j, k] = value, (*before, (i, k))
        best |= new
    ends = [plan for (j, _), plan in best.items() if j == L]
    if not ends:
        first = max(j for j, _ in best)  # layers that can be placed
        k = min(range(K), key=lambda k: lacks(first, first + 1, k))
        short = lacks(first, first + 1, k)
        where = f"device {k} lacks {short:.0f} bytes for it" if short > 0 else "no device is left"
        raise UsageError(
            f"{L} layers do not fit into the memory of {K} devices: the stage of layer {first} has "
            f"no place, {where}; take smaller batches or more devices"
        )
    seconds, stages = min(ends, key=lambda plan: plan[0])
    return float(seconds), tuple(i for i, _ in stages[1:]), tuple(k for _, k in stages)


def _crossing(link, d, e, nbytes):
    """Seconds of an activation from d to e, or of its gradient back: the longer of the two."""
    ways = link(d, e), link(e, d)
    return max(latency + nbytes / bandwidth for latency, bandwidth in ways)


def place(
    chain: Chain, world, devices: Sequence[int], *, any_order: bool = False, bounded: bool = True
) -> tuple[float, tuple[int, ...], tuple[int, ...]]:
    """`cut` for devices of a world, in the order given or (any_order) in the best of all orders:
    (seconds, cuts, devices of the stages). bounded: within their memory."""
    found = None
    for order in permutations(devices) if any_order else [tuple(devices)]:
        chosen = list(order)
        memory = world.memory[chosen] if bounded else None

        def link(d, e, order=order):
            return world.link(order[d], order[e])

        seconds, cuts, used = cut(chain, world.speed[chosen], link, memory=memory)
        if found is None or seconds < found[0]:
            found = seconds, cuts, tuple(int(order[k]) for k in used)
    return found


def slowest(chain: Chain, world, cuts: Sequence[int], devices: Sequence[int]) -> float:
    """Seconds of the slowest stage or message of a plan."""
    own = layers_of(cuts, len(chain))
    stages = [chain.work[own == s].sum() / world.speed[d] for s, d in enumerate(devices)]
    for c, (d, e) in zip(cuts, pairwise(devices), strict=True):
        stages.append(_crossing(world.link, d, e, chain.messages[c - 1]))
    return float(max(stages))


def equal_work(chain: Chain, K: int) -> tuple[int, ...]:
    """Cuts into K stages whose largest has as few FLOPs as can be: for equal devices."""

    def free(d, e):
        return 0.0, np.inf

    return cut(chain, np.ones(K), free)[1]


def equal_counts(L: int, K: int) -> tuple[int, ...]:
    """Cuts of L layers into K stages of as many layers each, the larger ones first."""
    if not 1 <= K <= L:
        raise UsageError(f"K = {K} stages of {L} layers; choose K from 1 to {L}")
    return tuple(k * (L // K) + min(k, L % K) for k in range(1, K))


def move(world, messages: Sequence[tuple[int, int, int]]) -> None:
    """Messages (from, to, bytes) that leave at once, one after the other from one device to the
    same other; the clock moves until all are there, sent again where they are lost."""
    line, events = {}, []
    for d, e, nbytes in messages:
        latency, bandwidth = world.link(d, e)
        tries, begin = resend(world, d, e), line.get((d, e), 0.0)
        line[d, e] = begin + tries * (latency + nbytes / bandwidth)
        events.append(Event(d, begin, line[d, e], "send", 0, tries * nbytes, e, 0, tries))
    world.replay(events)


def layers_of(cuts: Sequence[int], L: int) -> np.ndarray:
    """(L,): the stage of each layer."""
    return np.repeat(np.arange(len(cuts) + 1), [b - a for a, b in pairwise((0, *cuts, L))])
