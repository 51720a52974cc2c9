"""Moves between devices that all take part in: what messages at one instant and an all-reduce
cost, and in which order it adds."""

import numpy as np
import torch
from torch import Tensor

from survey_lib.churn import Watch
from survey_lib.errors import UsageError
from survey_lib.flows import finish_times, longest
from survey_lib.streams import attempts, uniform

PATIENCE = 1.0  # s that are waited where nobody is there or reached, before the next try
REMEMBERED = 64  # exchanges whose durations are kept
TOGETHER = 2**14  # messages that are charged at once: their numbers stay in cache


def transfer(world, src, dst, nbytes, on, overlap) -> np.ndarray:
    """(m,) whether the messages arrive, see World.transfer."""
    begin = max(world.clock, world.ready[on].max(initial=0.0))
    world.wait[on] += begin - np.maximum(world.ready[on], world.clock)
    leave = max(begin, world.free)  # later only if an overlapped exchange uses the links
    tries, ok = world.tries(src, "exchange", dst)
    sent = nbytes * tries
    talk, ends = np.unique([src, dst], return_inverse=True)  # nodes that take part
    ends = ends.reshape(2, -1)
    seconds, late = _seconds(world, talk, ends, sent, tries, leave)
    world.up[talk] += np.bincount(ends[0], sent, len(talk))
    world.down[talk] += np.bincount(ends[1], sent, len(talk))
    world.lost += sent.sum() - (nbytes * ok).sum()
    world.messages += int(tries.sum())
    air = longest(len(talk), *ends, seconds - late)
    world.radio[talk] += air
    if world.timeline is not None:
        first = -longest(len(talk), *ends, -late, -np.inf)
        world.note(talk, leave + first, air, "exchange")
    world.free = leave + air.max(initial=0.0)
    idle = PATIENCE * (world.n > 1 or not len(on))
    world.behind.append(leave + (seconds.max() if len(src) else idle))
    world.clock = begin
    while len(world.behind) > overlap:
        world.clock = max(world.clock, world.behind.popleft())
    world.wait[on] += world.clock - begin
    if not overlap:
        world.wait[talk] -= air
    world.ready[on] = world.clock
    return ok


def _seconds(world, talk, ends, size, tries, begin):
    """(seconds, of which latency) of messages that leave together between the nodes `talk`; ends
    (2, m): the positions there of senders and receivers."""
    fade, late = world.fade(talk, begin), world.latency[talk][ends].max(0) * tries
    key = tuple(a.tobytes() for a in (talk, ends, size, tries, fade))
    if key not in world.known:
        if len(world.known) >= REMEMBERED:
            world.known.clear()
        up, down = world.bandwidth_up[talk] * fade, world.bandwidth_down[talk] * fade
        world.known[key] = finish_times(*ends, size, late, up, down, world.path)
    return world.known[key], late


def allreduce(world, chosen, d: int, item: int, algorithm: str = "ring") -> None:
    """The chosen devices all-reduce d numbers of `item` bytes each; lost messages are sent again.

    ring: d numbers in k blocks, reduce-scatter then all-gather, 2 (k - 1) messages to one
    successor. naive: everybody sends everything to everybody. halving: recursive halving and
    doubling, 2 log2 k messages. Rings of equal devices with equal blocks, in which all hops are
    alike, are charged at once.
    """
    chosen = np.asarray(chosen, dtype=int)
    k = len(chosen)
    if not k:
        return world.barrier(chosen)
    begin = max(world.clock, world.ready[chosen].max())
    world.wait[chosen] += begin - np.maximum(world.ready[chosen], world.clock)
    t, me, air, steps = np.full(k, begin), np.arange(k), np.zeros(k), []
    if algorithm == "ring" and k > 1 and _alike(world, chosen, d):
        hops, size = 2 * k - 2, d // k * item
        latency, rate = world.link(chosen[0], chosen[1])
        t, air = t + hops * (latency + size / rate), air + hops * size / rate
        world.up[chosen] += hops * size
        world.down[chosen] += hops * size
        world.messages += hops * k
    elif algorithm == "ring":
        block, some = (d // k + (me < d % k)) * item, max(1, TOGETHER // k)
        hops = np.arange(2 * k - 2)[:, None]
        parts = (hops[h : h + some] for h in range(0, len(hops), some))
        steps = (((me + 1) % k, block[(me - part) % k]) for part in parts)
    elif algorithm == "halving":
        if k & (k - 1):
            raise UsageError(
                f"halving-doubling needs a power of two, there are {k} devices; use the ring"
            )
        halves = [
            (me ^ (k >> s), np.full((1, k), d / 2**s * item)) for s in range(1, k.bit_length())
        ]
        steps = halves + halves[::-1]
    elif algorithm == "naive":
        src, dst = np.nonzero(~np.eye(k, dtype=bool))
        if k > 1:
            sent, late = _send(world, chosen[src], chosen[dst], np.full((1, len(src)), d * item))
            up, down = world.rates(chosen, begin)
            seconds = finish_times(src, dst, sent[0], late[0], up, down, world.path)
            world.up[chosen] += np.bincount(src, sent[0])
            world.down[chosen] += np.bincount(dst, sent[0])
            t, air = t + seconds.max(), longest(k, src, dst, seconds - late[0])
    else:
        raise UsageError(
            f'algorithm="{algorithm}" is unknown; expected "ring", "halving" or "naive"'
        )
    bad = world.fading and Watch(world.fading[1], chosen)
    for to, size in steps:
        t, more = _pass_on(world, chosen, to, size, t, bad)
        air += more
    world.note(chosen, np.full(k, begin), t - begin, "exchange")
    world.radio[chosen] += air
    world.clock = max(world.clock, t.max()) if k > 1 else begin
    world.wait[chosen] += world.clock - begin - air
    world.ready[chosen] = world.clock


def _pass_on(world, chosen, to, size, t, bad):
    """(t, air), both (k,): when each device is through after some hops from t on, and its seconds
    on the air. In hop h device j sends size[h, j] bytes to device to[j], once it has sent and
    heard all of the hop before; each hears one other. bad: which devices fade at a given time."""
    (sent, late), back = _send(world, chosen, chosen[to], size), np.argsort(to)
    total = sent.sum(0)
    world.up[chosen] += total
    world.down[chosen[to]] += total
    up, down = world.bandwidth_up[chosen], world.bandwidth_down[chosen]
    begin, seconds = np.empty_like(late), np.minimum(np.minimum(up, down[to]), world.path)
    seconds = late + sent / seconds
    for h in range(len(size)):
        if bad is not None:
            fade = np.where(bad(t.max()), world.fading[0], 1.0)
            rate = np.minimum(np.minimum(up * fade, (down * fade)[to]), world.path)
            seconds[h] = late[h] + sent[h] / rate
        begin[h] = t
        through = t + seconds[h]
        t = np.maximum(through, through.take(back))
    leave, through = begin + late, begin + seconds
    hear, came = np.maximum(leave[:, back], begin), through[:, back]
    both = np.minimum(came, through) - np.maximum(hear, leave)  # what came before `begin` did so
    air = seconds - late + np.maximum(0.0, came - hear) - np.maximum(0.0, both)  # in the hop before
    return t, air.sum(0)


def _send(world, src, dst, size):
    """(bytes, seconds of latency), both (h, m), of h messages of `size` (h, m) from each src to its
    dst, with all their repetitions."""
    p = 1 - (1 - world.loss[src]) * (1 - world.loss[dst])
    tries, draw = np.ones(size.shape), world.draw("hop")
    if p.any():
        ids = src * world.n + dst + np.arange(len(size))[:, None] * world.n**2
        u = uniform(ids, world.seed, "hop", draw)
        again = u < p
        tries[again] = attempts(u[again], np.broadcast_to(p, u.shape)[again])
        world.lost += float((size * (tries - 1)).sum())
    world.messages += int(tries.sum())
    return size * tries, np.maximum(world.latency[src], world.latency[dst]) * tries


def _alike(world, chosen, d):
    """Whether every hop of a ring takes equally long."""
    k = len(chosen)
    own = (world.latency, world.bandwidth_up, world.bandwidth_down, world.ready)
    equal = all((v[chosen] == v[chosen[0]]).all() for v in own)
    return equal and d % k == 0 and not world.loss[chosen].any() and world.fading is None


def ring_sum(rows: Tensor) -> Tensor:
    """(d,): the sum of rows (k, d) as a ring adds it: block b in the order b, b + 1, ... of the
    devices around the ring."""
    k, d = rows.shape
    if k < 2:
        return rows.sum(0)
    width = -(-d // k)  # of a block; the later ones are one shorter, and padded
    real = np.arange(width) < (d // k + (np.arange(k) < d % k))[:, None]
    blocks = np.zeros((k, k, width), rows.numpy().dtype)
    blocks[:, real] = rows.numpy()
    total = np.zeros_like(blocks[0])
    for m in range(k):  # block b of device b + m
        total[: k - m] += blocks.diagonal(-m).T
        total[k - m :] += blocks.diagonal(k - m).T
    return torch.from_numpy(total[real])
