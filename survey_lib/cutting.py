"""Where to cut a chain of layers: dynamic programming over its profile, and rules of thumb.

A chain is three vectors with an entry per layer: work or time, messages (bytes that leave the
layer, each way), weights (bytes). A cut is the number of the layer that begins a new stage.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, permutations
from types import SimpleNamespace

import numpy as np

from survey_lib.errors import UsageError
from survey_lib.models import Network
from survey_lib.pipeline import Event, balanced, resend


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
    A(j, k, n), layers before j with the last of them on device k and n stages to follow: min over
    i, k' < k of max(A(i, k', n + 1), time of message i between k' and k, work of i .. j - 1 / speed
    of k). The activation goes one way and its gradient the other: the slower of the two counts.
    memory (K,), bytes: a stage that n others follow must hold n + 1 versions and activations, and a
    gradient.
    """
    L, K = len(chain), len(speeds)
    work, weights, saved = (
        np.concatenate([[0.0], np.cumsum(v)]) for v in (chain.work, chain.weights, chain.saved)
    )

    def fits(i, j, k, n):
        own = weights[j] - weights[i]
        return memory is None or (n + 1) * (own + saved[j] - saved[i]) + own <= memory[k]

    # (layers placed, last device, stages to follow) -> (slowest, the device before, first layer of
    # the last stage, and the same three of the plan before it, ...); of equally fast ones the least
    best = {(0, -1, n): (0.0,) for n in range(1, K + 1)}
    for k in range(K):
        new = {}
        for (i, last, left), plan in best.items():
            if not left:
                continue
            n, passing = left - 1, 0.0
            if last >= 0:
                passing = _crossing(link, last, k, chain.messages[i - 1])
            for j in range(i + 1, L + 1):
                if not fits(i, j, k, n):
                    break
                value = max(plan[0], passing, (work[j] - work[i]) / speeds[k])
                new[j, k, n] = min(new.get((j, k, n), (np.inf,)), (value, last, i, *plan))
        best |= new
    ends = [(plan[0], k, *plan[1:]) for (j, k, n), plan in best.items() if (j, n) == (L, 0)]
    if not ends:
        most = max((j for j, _, n in best if n == 0), default=0)
        raise UsageError(
            f"{L} layers do not fit into the memory of {K} devices, in any pipeline over them in "
            f"this order: at most the first {most} do; take smaller batches or more devices"
        )
    plan = min(ends)  # from its last stage back to (device -1, layer 0, slowest 0)
    return float(plan[0]), plan[3::3][-2::-1], (*plan[2::3][-2::-1], plan[1])


def _crossing(link, d, e, nbytes):
    """Seconds of an activation from d to e, or of its gradient back: the longer of the two."""
    ways = link(d, e), link(e, d)
    return max(latency + nbytes / bandwidth for latency, bandwidth in ways)


def place(
    chain: Chain, world, devices: Sequence[int], *, any_order: bool = False, bounded: bool = True
) -> tuple[float, tuple[int, ...], tuple[int, ...]]:
    """`cut` for devices of a world, in the order given or (any_order) in the best of all orders:
    (seconds, cuts, devices of the stages). bounded: within their memory."""
    found = refused = None
    for order in permutations(devices) if any_order else [tuple(devices)]:
        chosen = list(order)
        memory = world.memory[chosen] if bounded else None

        def link(d, e, order=order):
            return world.link(order[d], order[e])

        try:
            seconds, cuts, used = cut(chain, world.speed[chosen], link, memory=memory)
        except UsageError as error:  # another order may fit
            refused = error
            continue
        if found is None or seconds < found[0]:
            found = seconds, cuts, tuple(int(order[k]) for k in used)
    if found is None:
        raise refused
    return found


def slowest(chain: Chain, world, cuts: Sequence[int], devices: Sequence[int]) -> float:
    """Seconds of the slowest stage or message of a plan."""
    own = layers_of(cuts, len(chain))
    stages = [chain.work[own == s].sum() / world.speed[d] for s, d in enumerate(devices)]
    for c, (d, e) in zip(cuts, pairwise(devices), strict=True):
        stages.append(_crossing(world.link, d, e, chain.messages[c - 1]))
    return float(max(stages))


def equal_work(chain: Chain, K: int) -> tuple[int, ...]:
    """Cuts into K stages, none of them empty, whose largest has as few FLOPs as can be."""
    layers = [
        SimpleNamespace(forward=f, backward=b)
        for f, b in zip(chain.forward, chain.backward, strict=True)
    ]
    return balanced(SimpleNamespace(layers=layers), K)


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
