"""A network as a graph of groups of operations, and how long a step takes when each group is on
some device: the problem of the placement methods."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from survey_lib.errors import UsageError
from survey_lib.jobs import Job, run_jobs
from survey_lib.pipeline import Event
from survey_lib.streams import stream


@dataclass(frozen=True)
class Graph:
    """Groups of operations in topological order; `edges` (i, j): j needs what i puts out."""

    forward: tuple[float, ...]  # FLOPs of a mini-batch; its backward pass takes twice as many
    messages: tuple[float, ...]  # bytes that leave a group, and whose gradient comes back
    memory: tuple[float, ...]  # bytes
    edges: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.forward)


def in_line(L: int) -> tuple[tuple[int, int], ...]:
    """The edges of a chain of L groups."""
    return tuple((i, i + 1) for i in range(L - 1))


def branches(number: int, length: int) -> tuple[tuple[int, int], ...]:
    """The edges of a network with a first group, so many branches of so many groups each that do
    not need each other, and a last group."""
    last, edges = 1 + number * length, []
    for b in range(number):
        own = [0, *range(1 + b * length, 1 + (b + 1) * length), last]
        edges += itertools.pairwise(own)
    return tuple(sorted(edges))


class Placing:
    """Which of n devices computes which group of a graph: a placement is a vector (d,) of device
    numbers, d groups. The seed draws the groups: FLOPs, messages and memory log-uniform within a
    factor of `spread` around their medians.

    edges: of in_line or branches. flops, nbytes, memory: medians of a group. crowded: (device,
    factor): this device is that much slower than its speed says, since it has other work. noise: of
    a measured step, relative (standard deviation of its logarithm). evaluate: NaN; the methods
    yield the seconds of a step without noise.
    """

    guess = np.nan

    def __init__(
        self,
        *,
        n: int = 4,
        edges: tuple = branches(2, 4),
        flops: float = 1e9,
        nbytes: float = 1e6,
        memory: float = 1e6,
        spread: float = 4.0,
        crowded: tuple[int, float] | None = None,
        noise: float = 0.0,
        seed: int = 0,
    ):
        self.d = 1 + max(j for _, j in edges)
        self.n, self.crowded, self.noise, self.seed = n, crowded, noise, seed
        self.dtype, self.sizes, self.known = torch.float64, np.ones(n, int), {}
        rng = stream(seed, "placing")
        draws = (m * spread ** rng.uniform(-0.5, 0.5, self.d) for m in (flops, nbytes, memory))
        self.graph = Graph(*(tuple(v.tolist()) for v in draws), edges)

    def init(self) -> Tensor:
        """(d,): everything on device 0."""
        return torch.zeros(self.d, dtype=self.dtype)

    def evaluate(self, X: Tensor) -> tuple[np.ndarray, np.ndarray]:
        return np.full(len(X), np.nan), np.full(len(X), np.nan)

    def missing(self, world, placement) -> float:
        """Bytes of memory that the devices lack for it, 0 if it fits."""
        held = np.bincount(np.asarray(placement, int), self.graph.memory, self.n)
        return float(np.maximum(0.0, held - world.memory).sum())

    def step(self, world, placement) -> list[Event]:
        """The timetable of a mini-batch: forward through the graph, then backward; a group's output
        goes once to each other device that needs it, and a gradient comes back. It is remembered:
        links that fade are as they were when it was first asked for."""
        placement = tuple(int(d) for d in placement)
        if (world, placement) in self.known:
            return self.known[world, placement]
        if len(placement) != self.d or not all(0 <= d < self.n for d in placement):
            raise UsageError(f"{placement} is no placement of {self.d} groups on {self.n} devices")
        slow = {} if self.crowded is None else dict([self.crowded])
        speed = [world.speed[d] / slow.get(d, 1.0) for d in range(self.n)]
        events = self.known[world, placement] = run_jobs(list(self._jobs(world, placement, speed)))
        return events

    def _jobs(self, world, placement, speed) -> Iterator[Job]:
        graph, at, sent, number = self.graph, {}, {}, itertools.count()

        def message(i, d, e, after):
            latency, bandwidth = world.link(d, e)
            seconds = latency + graph.messages[i] / bandwidth
            return Job("send", d, seconds, (after,), e, int(graph.messages[i]), i)

        for j, d in enumerate(placement):
            after = []
            for i in (a for a, b in graph.edges if b == j):
                if placement[i] != d and (i, d) not in sent:
                    yield message(i, placement[i], d, at[i])
                    sent[i, d] = next(number)
                after.append(sent.get((i, d), at[i]))
            yield Job("F", d, graph.forward[j] / speed[d], tuple(after), item=j)
            at[j] = next(number)
        for j in reversed(range(self.d)):
            d, after = placement[j], [at[j]]
            for k in (b for a, b in graph.edges if a == j):
                after.append(at["B", k])
                if placement[k] != d:
                    yield message(j, placement[k], d, at["B", k])
                    after[-1] = next(number)
            yield Job("B", d, 2 * graph.forward[j] / speed[d], tuple(after), item=j)
            at["B", j] = next(number)

    def seconds(self, world, placement) -> float:
        """Of a step; inf where it does not fit into the memory."""
        if self.missing(world, placement):
            return np.inf
        return max(e.end for e in self.step(world, placement))

    def measure(self, world, placement, *key) -> float:
        """The seconds of a step that the devices really take, and which pass; inf, and a second
        passes, where it does not fit into the memory. key: of the noise."""
        if self.missing(world, placement):
            world.barrier([])
            return np.inf
        events = self.step(world, placement)
        world.replay(events)
        noise = self.noise * stream(self.seed, "noise", *key).standard_normal()
        return max(e.end for e in events) * float(np.exp(noise))
