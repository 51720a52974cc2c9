"""Data that change while they come in: streams, how they drift, and what a device remembers.

A drift is a function (x, y, t, i, n, classes) -> (x, y): what becomes of the images x (N, c, h, w)
and labels y (N,) that come in at the rounds t (N,) on the devices i (N,) of n. A prior is a
function (t, classes) -> (classes,): how likely a device draws each class in round t, next to its
share. A memory is a function (rows, m, *key) -> rows: what a device keeps of the samples `rows`,
the oldest first, which came in m a round. They are made by the functions below.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from survey_lib.data import Data, load
from survey_lib.errors import UsageError
from survey_lib.models import Build
from survey_lib.partition import Partition, everything
from survey_lib.streams import stream, uniform
from survey_lib.training import Task
from survey_lib.views import turned

Drift = Callable[..., tuple[Tensor, Tensor]]
Prior = Callable[[int, int], np.ndarray]
Memory = Callable[..., np.ndarray]


class Drifting(Task):
    """A Task of streams: every device gets m samples a round, drawn with replacement from its part
    of the data, and all test a model on them before anybody trains on them (prequentially).

    At first each device holds one batch. `reveal`, which `run` calls between rounds, brings the
    next, at most `rounds` times, and they are what `evaluate` tests on: round r is tested on batch
    r + 1 and trained on batches up to r. rows(i): what device i remembers, everything unless a
    method drops some by `hold`. t: batches so far but the first; newest (n, m): the last.
    """

    def __init__(
        self,
        data: str | Data = "digits",
        *,
        n: int = 20,
        m: int = 12,
        rounds: int = 50,
        drift: Drift | None = None,
        prior: Prior | None = None,
        partition: Partition | None = None,
        network: Build | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ):
        source = load(data) if isinstance(data, str) else data
        labels, classes = source.y.numpy(), source.classes
        drawn = []
        for i, own in enumerate((partition or everything())(labels, n, seed)):
            rng = stream(seed, "drifting", i)
            for t in range(rounds + 1):
                p = None if prior is None else prior(t, classes)[labels[own]]
                drawn.append(rng.choice(own, m, p=p if p is None else p / p.sum()))
        rows = np.concatenate(drawn)  # device by device, round by round
        i, t = np.divmod(np.arange(len(rows)) // m, rounds + 1)
        x, y = source.x[rows], source.y[rows]
        if drift is not None:
            x, y = drift(x, y, t, i, n, classes)
        parts = np.split(np.arange(len(rows)), n)
        streams = Data(source.name, x, y, x[:0], y[:0], classes, "")
        how = dict(n=n, partition=lambda y, n, seed: parts, network=network, dtype=dtype)
        super().__init__(streams, seed=seed, **how)
        self.m, self.rounds, self.t, self.held = m, rounds, -1, [own[:0] for own in parts]
        self.reveal()

    def rows(self, i: int) -> np.ndarray:
        """Indices of the samples that device i remembers, the oldest first."""
        return self.held[i]

    @property
    def newest(self) -> np.ndarray:
        """(n, m): indices of the samples that came in last."""
        first = np.arange(self.n) * (self.rounds + 1) + self.t
        return first[:, None] * self.m + np.arange(self.m)

    def reveal(self, seconds: float = 0.0) -> None:
        """The next batch of every device is there."""
        if self.t == self.rounds:
            raise UsageError(f"the streams end after {self.rounds} rounds; set rounds=...")
        self.t += 1
        new = self.newest
        self.x_test, self.y_test = self.x[new].flatten(0, 1), self.y[new].flatten()
        self.hold([np.concatenate(pair) for pair in zip(self.held, new, strict=True)])

    def hold(self, held: list[np.ndarray]) -> None:
        """From now on the devices remember these samples."""
        self.held, self.sizes = held, np.array([len(rows) for rows in held])
        self.p = torch.as_tensor(self.sizes / self.sizes.sum(), dtype=self.dtype)

    def incoming(self, x: Tensor) -> np.ndarray:
        """(n,): mean cross-entropy of the model x (d,) on each device's newest samples."""
        z = self.logits(x, self.x_test)
        each = torch.nn.functional.cross_entropy(z, self.y_test, reduction="none")
        return each.view(self.n, self.m).double().mean(1).numpy()


# ---- how the data change -----------------------------------------------------------------------


def swapped(at: int, pairs: int | None = None, spread: int = 0) -> Drift:
    """From round `at` on, neighbouring classes swap their names: 0 and 1, 2 and 3, ..., so many
    pairs (default: all). The last of the devices follows `spread` rounds later: P(y | x)."""
    return partial(_swapped, at=at, pairs=pairs, spread=spread)


def turning(at: int, degrees: float = 2.0) -> Drift:
    """From round `at` on, images are turned by so many degrees more in each round: P(x)."""
    return partial(_turning, at=at, degrees=degrees)


def moving(at: int, kappa: float = 3.0, period: int = 20) -> Prior:
    """From round `at` on, the class prior is exp(kappa cos) around a class that goes once around
    the ring of classes in `period` rounds; before, it is even: P(y)."""
    return partial(_moving, at=at, kappa=kappa, period=period)


def _swapped(x, y, t, i, n, classes, *, at, pairs, spread):
    pairs = classes // 2 if pairs is None else pairs
    if not 0 <= 2 * pairs <= classes:
        raise UsageError(f"swapped(pairs={pairs}): {classes} classes have {classes // 2} pairs")
    there = torch.from_numpy(t >= at + spread * i / max(1, n - 1)) & (y < 2 * pairs)
    return x, torch.where(there, y ^ 1, y)


def _turning(x, y, t, i, n, classes, *, at, degrees):
    x = x.clone()
    for r in np.unique(t[t > at]):
        x[t == r] = turned(x[t == r], degrees * float(r - at))
    return x, y


def _moving(t, classes, *, at, kappa, period):
    if t < at:
        return np.ones(classes)
    return np.exp(kappa * np.cos(2 * np.pi * (np.arange(classes) / classes - (t - at) / period)))


# ---- what a device remembers -------------------------------------------------------------------


def whole(rows: np.ndarray, m: int, *key) -> np.ndarray:
    """A memory: everything."""
    return rows


def window(w: int) -> Memory:
    """What came in during the last w rounds."""
    return partial(_window, w=w)


def reservoir(size: int) -> Memory:
    """At most so many samples, at any time a uniform draw from all that came in: those of the least
    of a number that each is given for good."""
    return partial(_reservoir, size=size)


def fading(q: float) -> Memory:
    """A sample survives each round with probability q: its age is geometric."""
    return partial(_fading, q=q)


def _window(rows, m, *key, w):
    return rows[-w * m :]


def _reservoir(rows, m, *key, size):
    return rows[np.sort(np.argsort(uniform(rows, *key, "reservoir"))[:size])]


def _fading(rows, m, *key, q):
    age = rows[-1] // m - rows // m
    return rows[uniform(rows, *key, "fading") < q**age]


def above(losses: list[float], z: float = 3.0, least: int = 5) -> bool:
    """An alarm: the last loss lies z standard deviations above the mean of those before, of which
    there must be `least`."""
    *before, last = losses
    return len(before) >= least and last > np.mean(before) + z * np.std(before)
