"""Messages as fluid flows that share access links max-min fairly: the model of flow-level network
simulators.

A flow leaves a sender's uplink and enters a receiver's downlink; the path between them may have
a limit of its own. At any instant the rates are max-min fair over these links (Bertsekas and
Gallager, Data Networks, section 6.5.2). Sizes in bytes, capacities in B/s, times in s.
"""

import heapq
from numbers import Number

import numpy as np
from torch import Tensor

from survey_lib.errors import UsageError


def weigh(payload) -> int:
    """Bytes of a payload: of its tensors and arrays, and 8 for each plain number; UsageError for
    what has no weight here."""
    if isinstance(payload, Tensor):
        return payload.numel() * payload.element_size()
    if isinstance(payload, tuple | list):
        return sum(weigh(part) for part in payload)
    if isinstance(payload, dict):
        return sum(weigh(part) for part in payload.values())
    if isinstance(payload, np.ndarray):
        return payload.nbytes
    if isinstance(payload, Number | np.generic):
        return 8
    raise UsageError(
        f"a {type(payload).__name__} cannot be sent; send tensors, arrays, numbers, or tuples, "
        "lists and dictionaries of them"
    )


def finish_times(src, dst, size, start, up, down, path=np.inf) -> np.ndarray:
    """(m,) when each of m flows is through.

    src, dst (m,): sender and receiver. size, start (m,). up, down: capacity per node. path: no flow
    is faster, whatever the links have left. Flows that share no link have size / min(up, down,
    path), and so have all where no link is filled even if all run at once at that rate; a star
    costs O(m log m); anything else is filled progressively at every start and end.
    """
    src, dst, size, start = (np.asarray(a) for a in (src, dst, size, start))
    if len(size) == 0:
        return np.zeros(0)
    own = np.minimum(np.minimum(up[src], down[dst]), path)
    tight_up, tight_down = _tight(own, src, up), _tight(own, dst, down)
    tight = tight_up.sum() + tight_down.sum()
    if not tight:
        return start + size / own
    if tight == 1:
        at, capacity, node = (src, up, tight_up) if tight_up.any() else (dst, down, tight_down)
        through, flows = start + size / own, at == node.argmax()
        caps = np.minimum((down[dst] if at is src else up[src])[flows], path)
        through[flows] = star(capacity[node.argmax()], caps, size[flows], start[flows])
        return through
    return _progressive(src, dst, size.astype(float), start, up, down, path)


def _tight(own, nodes, capacity):
    """Which nodes' links would be filled by several flows of rates `own` at once."""
    load, count = (
        np.bincount(nodes, own, len(capacity)),
        np.bincount(nodes, minlength=len(capacity)),
    )
    return (load > capacity) & (count > 1)


def star(capacity: float, caps, size, start) -> np.ndarray:
    """(m,) when flows with caps (m,) of their own that share one link are through."""
    if np.isinf(capacity) or caps.sum() <= capacity:
        return start + size / caps
    if len(size) == 1:
        return start + size / min(capacity, caps[0])
    if all((a == a[0]).all() for a in (caps, size, start)):  # equals: through at one instant
        return start + size * (len(size) / capacity)
    return _star(capacity, caps, size, start)


def _star(capacity, caps, size, start):
    link, finish = SharedLink(capacity), np.zeros(len(size))
    order = np.argsort(start, kind="stable")
    size, start, caps = size.tolist(), start.tolist(), caps.tolist()
    for j in order.tolist():
        while link.next_time() <= start[j]:
            time, done = link.pop()
            finish[done] = time
        link.add(start[j], j, size[j], caps[j])
    while link.next_time() < np.inf:
        time, done = link.pop()
        finish[done] = time
    return finish


class SharedLink:
    """One link shared max-min fairly by flows with caps of their own, as they come and go.

    Flows below the fair share run at their cap; the others all run at the same rate, the level. V
    is what a flow at the level has been served since the beginning, so that such a flow is through
    when V reaches its tag, whatever happens to the level meanwhile.
    """

    def __init__(self, capacity: float):
        self.capacity, self.now, self.V, self.level = float(capacity), 0.0, 0.0, np.inf
        self.flows = {}  # id -> [cap, capped?, tag V or finish time]
        self.free = 0  # flows at the level
        self.caps = 0.0  # total rate of the capped ones
        self.heaps = (
            [],
            [],
            [],
            [],
        )  # level by tag, level by cap, capped by finish, capped by -cap

    def add(self, now: float, flow: int, size: float, cap: float) -> None:
        self._advance(now)
        self.flows[flow] = [cap, False, self.V + size]
        self._free(flow)
        self._balance()

    def next_time(self) -> float:
        """When the next flow is through; inf without flows."""
        tag, finish = self._top(0), self._top(2)
        at_level = self.now + max(0.0, tag - self.V) / self.level if tag is not None else np.inf
        return min(at_level, np.inf if finish is None else finish)

    def pop(self) -> tuple[float, int]:
        """(time, id) of the flow that is through next, which leaves."""
        time, finish = self.next_time(), self._top(2)
        heap = 2 if finish is not None and finish <= time else 0
        flow = self.heaps[heap][0][1]
        self._advance(time)
        cap, capped, _ = self.flows.pop(flow)
        self.caps -= cap if capped else 0.0
        self.free -= not capped
        if self.free == len(self.flows):
            self.caps = 0.0  # no rounding left behind
        self._balance()
        return time, flow

    def _advance(self, now):
        if self.free:
            self.V += self.level * (now - self.now)
        self.now = now

    def _top(self, heap):
        """Smallest key of a heap among entries that still hold."""
        entries, want, value = self.heaps[heap], heap >= 2, heap % 2 == 0
        while entries:
            key, flow = entries[0]
            state = self.flows.get(flow)
            if (
                state
                and state[1] == want
                and key == (state[2] if value else -state[0] if want else state[0])
            ):
                return key
            heapq.heappop(entries)
        return None

    def _free(self, flow):
        self.free += 1
        heapq.heappush(self.heaps[0], (self.flows[flow][2], flow))
        heapq.heappush(self.heaps[1], (self.flows[flow][0], flow))

    def _balance(self):
        while True:
            self.level = (self.capacity - self.caps) / self.free if self.free else np.inf
            lowest, highest = self._top(1), self._top(3)
            if lowest is not None and lowest <= self.level:
                flow = self.heaps[1][0][1]
                cap, _, tag = self.flows[flow]
                self.flows[flow] = [cap, True, self.now + max(0.0, tag - self.V) / cap]
                self.free, self.caps = self.free - 1, self.caps + cap
                heapq.heappush(self.heaps[2], (self.flows[flow][2], flow))
                heapq.heappush(self.heaps[3], (-cap, flow))
            elif highest is not None and self._too_fast(-highest):
                flow = self.heaps[3][0][1]
                cap, _, finish = self.flows[flow]
                self.flows[flow] = [cap, False, self.V + (finish - self.now) * cap]
                self.caps -= cap
                self._free(flow)
            else:
                return

    def _too_fast(self, cap):
        slack = 1 + 1e-12
        return cap > self.level * slack if self.free else self.caps > self.capacity * slack


def _progressive(src, dst, size, start, up, down, path=np.inf):
    """Max-min rates by progressive filling, anew at every start and end; after an end only of flows
    at least as fast as the fastest rate that is not free: slower ones were filled before it."""
    links = np.stack([src, dst + len(up)])  # (2, m): every flow crosses two links
    capacity, used = np.concatenate([up, down]).astype(float), np.zeros(len(up) + len(down))
    left, since, finish = size.copy(), start.astype(float), np.zeros(len(size))
    rate, end = np.full(len(size), -1.0), np.full(len(size), np.inf)  # -1: not under way
    coming = np.unique(start)[::-1].tolist()
    while coming or end.min() < np.inf:
        now = end.min()
        if coming and coming[-1] < now:
            now = coming.pop()
            rate[start == now] = 0.0
            anew = np.flatnonzero(rate >= 0)
        else:
            done = np.flatnonzero(end <= now + 1e-12 * abs(now))
            lowest = rate[done].min()
            finish[done], end[done] = now, np.inf
            _use(used, links[:, done], -rate[done])
            rate[done] = -1.0
            anew = np.flatnonzero(rate >= lowest * (1 - 1e-12))
        if not len(anew):
            continue
        some, before = links[:, anew], rate[anew]
        _use(used, some, -before)
        new = max_min(some, np.maximum(capacity - used, 0.0), path)
        _use(used, some, new)
        left[anew] = np.maximum(left[anew] - before * (now - since[anew]), 0.0)
        rate[anew], since[anew], end[anew] = new, now, now + left[anew] / new
    return finish


def _use(used, links, rate):
    """Flows of these rates more on their links; those without a limit use up nothing."""
    rate = np.where(np.isfinite(rate), rate, 0.0)
    for ends in links:
        np.add.at(used, ends, rate)


def max_min(links, capacity, path=np.inf) -> np.ndarray:
    """(m,) max-min fair rates of flows that cross links (2 or more, m) of the given capacities, and
    each a path of its own.

    Shares only grow while others are filled. So a link whose share is the least at each of its
    flows is full at that share, and all such links are filled at once.
    """
    left = capacity.astype(float)
    if len(left) > links.size + 1000:  # only those that are crossed
        nodes, links = np.unique(links, return_inverse=True)
        links, left = links.reshape(-1, links.shape[-1]), left[nodes]
    rate, todo = np.zeros(links.shape[1]), np.arange(links.shape[1])
    while len(todo):
        some = links[:, todo]
        count = np.bincount(some.ravel(), minlength=len(left))
        share = left / np.maximum(count, 1)
        own = np.minimum(share[some].min(0), path)
        least = np.full(len(left), np.inf)
        for ends in some:
            np.minimum.at(least, ends, own)
        full = share <= least * (1 + 1e-12)
        fixed = (own >= path) | full[some].any(0)
        rate[todo[fixed]] = own[fixed]
        _use(left, some[:, fixed], -own[fixed])
        left, todo = np.maximum(left, 0.0), todo[~fixed]
    return rate


def longest(n, src, dst, seconds, least=0.0):
    """(n,): the longest of the transfers (m,) that each node sends or hears."""
    longest = np.full(n, least)
    np.maximum.at(longest, src, seconds)
    np.maximum.at(longest, dst, seconds)
    return longest
