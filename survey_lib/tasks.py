"""Tasks of other kinds: other losses, other data for each device or at each time, other tests."""

from copy import copy
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from survey_lib.data import Data, load
from survey_lib.errors import UsageError
from survey_lib.models import Build, Network, logistic
from survey_lib.partition import Partition, everything, fill, iid, styled, trimmed
from survey_lib.streams import stream
from survey_lib.training import Task, gradients_on
from survey_lib.views import View


class LowerHalf(Task):
    """A Task with two classes, is the label in the lower half of them or not (is a digit below 5),
    for softmax regression from zero: what the streams of He et al., arXiv 1910.04956, look like."""

    def __init__(
        self,
        data: str = "digits",
        *,
        n: int = 32,
        partition: Partition | None = None,
        seed: int = 0,
        dtype=torch.float32,
    ):
        whole = load(data)
        y, y_test = ((y >= whole.classes // 2).long() for y in (whole.y, whole.y_test))
        halves = replace(whole, y=y, y_test=y_test, classes=2)
        how = dict(n=n, partition=partition, network=logistic(), seed=seed, dtype=dtype)
        super().__init__(halves, **how)

    def init(self) -> Tensor:
        """(d,): zeros."""
        return torch.zeros(self.d, dtype=self.dtype)


def _minimum(task, share):
    """The minimum of sum_j share_j times the cross-entropy of sample j of `task.order`, plus ridge
    / 2 ||x||^2, of a linear model, by L-BFGS from zero: x and fun."""
    images, y = task.x[task.order].double(), task.y[task.order]
    share = torch.from_numpy(share)

    def loss(x):
        x = torch.from_numpy(x).requires_grad_()
        each = F.cross_entropy(task.network(x, images), y, reduction="none")
        value = share @ each + task.ridge / 2 * x.square().sum()
        return value.item(), torch.autograd.grad(value, x)[0].numpy()

    limits = dict(maxiter=10000, maxfun=20000, ftol=0, gtol=1e-8)
    return minimize(loss, np.zeros(task.d), jac=True, method="L-BFGS-B", options=limits)


class RidgeSoftmax(Task):
    """Softmax regression with mu / 2 ||x||^2 in each device's loss, from zero: strongly convex.

    best (d,): the minimum of the mean of the devices' losses, by L-BFGS. loss: the relative squared
    error ||x - best||^2 / ||best||^2, 1 at the start; accuracy: 1 - loss.
    """

    def __init__(
        self,
        data: str = "digits",
        *,
        n: int = 16,
        partition: Partition | None = None,
        mu: float = 0.1,
        seed: int = 0,
        dtype=torch.float32,
    ):
        how = dict(n=n, partition=partition, network=logistic(), seed=seed, dtype=dtype)
        super().__init__(data, **how)
        self.ridge, self.guess = mu, 0.0
        found = _minimum(self, np.repeat(1 / (n * self.sizes), self.sizes))
        self.best = torch.from_numpy(found.x).to(dtype)

    def init(self) -> Tensor:
        """(d,): zeros."""
        return torch.zeros(self.d, dtype=self.dtype)

    def evaluate(self, X: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """(1 - error, error), the relative squared error of the models X (m, d), each (m,)."""
        error = ((X - self.best).square().sum(1) / self.best.square().sum()).double().numpy()
        return 1 - error, error


class OnTraining(Task):
    """A Task that evaluates on its training data, for claims about the loss that is minimised."""

    def __init__(self, data: str | Data = "digits", **how):
        super().__init__(data, **how)
        self.x_test, self.y_test = self.x[self.order], self.y[self.order]


class OnDevices(Task):
    """A Task in which each device is tested on data like its own: a share of the test images, of
    each class in proportion to what the device holds of it, and all seen through its view.

    view: from views.py, or None. unseen: so many devices more hold data but do not train; the n
    devices are the first. tests: per device (n + unseen) its rows of x_test and y_test, none empty;
    held (n + unseen, classes): how many training samples it has of each class, as it names them.
    Every device counts equally, whatever its share. details: the mean accuracy of the worst tenth
    of the devices, of the unseen ones (of one model for all), and of each device.
    """

    def __init__(
        self,
        data: str | Data = "digits",
        *,
        n: int = 20,
        view: View | None = None,
        unseen: int = 0,
        seed: int = 0,
        **how,
    ):
        super().__init__(data, n=n + unseen, seed=seed, **how)
        rng, everybody = stream(seed, "own tests"), range(n + unseen)
        held = [self.y[self.rows(i)].bincount(minlength=self.classes) for i in everybody]
        parts = [[] for _ in everybody]
        for k, share in enumerate(torch.stack(held).cumsum(0).T.numpy()):
            rows = rng.permutation(np.flatnonzero(self.y_test == k)) if share[-1] else []
            cut = np.round(share / max(1, share[-1]) * len(rows)).astype(int)
            for i, own in enumerate(np.split(rows, cut[:-1])):
                parts[i].append(own)
        self.tests = fill([np.concatenate(own).astype(int) for own in parts])
        if view is not None:
            self._look(view, seed)
        self.held = np.stack(
            [np.bincount(self.y[self.rows(i)], minlength=self.classes) for i in everybody]
        )
        self.order = self.order[: self.offset[n]]  # what the others hold is in no batch
        self.n, self.sizes = n, self.sizes[:n]
        self.p = torch.as_tensor(self.sizes / self.sizes.sum(), dtype=self.dtype)

    def _look(self, view, seed):
        if len(np.unique(self.order)) < len(self.order):
            raise UsageError("a sample that two devices hold can be seen in one way only")
        names = ("x", "y", "x_test", "y_test")
        x, y, x_test, y_test = (getattr(self, name).clone() for name in names)
        for i, test in enumerate(self.tests):
            own = self.rows(i)
            seen = torch.cat([x[own], x_test[test]]), torch.cat([y[own], y_test[test]])
            images, labels = view(*seen, i, len(self.tests), self.classes, seed)
            x[own], x_test[test] = images.split([len(own), len(test)])
            y[own], y_test[test] = labels.split([len(own), len(test)])
        self.x, self.y, self.x_test, self.y_test = x, y, x_test, y_test

    def evaluate(self, X: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Accuracy and mean cross-entropy of each device on its own tests, each (n,): of row i of
        X (n, d), or of the one model X (1, d)."""
        return self._evaluate(X, range(self.n))

    def details(self, X: Tensor) -> dict[str, float]:
        """What `run` notes beside: worst_tenth, unseen (if any), device 0, device 1, ..."""
        accuracy, _ = self.evaluate(X)
        found = dict(worst_tenth=np.sort(accuracy)[: -(-self.n // 10)].mean())
        if len(self.tests) > self.n:
            unseen = range(self.n, len(self.tests))
            found["unseen"] = np.nan if len(X) > 1 else self._evaluate(X, unseen)[0].mean()
        return found | {f"device {i}": v for i, v in enumerate(accuracy)}

    @torch.no_grad()
    def _evaluate(self, X, devices):
        if len(X) not in (1, self.n):
            raise UsageError(f"{len(X)} models for {self.n} devices; expected one, or one each")
        rows = [self.tests[i] for i in devices]
        z = [
            self._outputs(i, x, self.x_test[own])
            for i, (x, own) in enumerate(
                zip(X, rows if len(X) > 1 else [np.concatenate(rows)], strict=True)
            )
        ]
        z, y = torch.cat(z), self.y_test[np.concatenate(rows)]
        right = (z.argmax(1) == y).double()
        loss = F.cross_entropy(z, y, reduction="none").double()
        starts = np.cumsum([0] + [len(own) for own in rows[:-1]])
        sizes = [len(own) for own in rows]
        return tuple(np.add.reduceat(v.numpy(), starts) / sizes for v in (right, loss))

    def _outputs(self, i, x, images):
        return self.network(x, images)


class Mixed(OnDevices):
    """OnDevices with unlike networks: device i has networks[i mod how many they are].

    A model is the parameters of its device's network and zeros up to d, the largest one's. start
    (n, d): the initial models, the same for all devices of one network. `kinds` gives the devices
    of each network as a task of their own. One model for all there is not, and is NaN to evaluate.
    """

    def __init__(self, data: str | Data = "digits", *, networks: tuple[Build, ...], **how):
        super().__init__(data, **how)
        self.parts = [copy(self) for _ in networks]
        for part, build in zip(self.parts, networks, strict=True):
            part.network = Network(build, self.x.shape[1:], self.classes)
            part.d = part.network.d
        self.network, self.d = None, max(part.d for part in self.parts)
        first = [F.pad(Task.init(part), (0, self.d - part.d)) for part in self.parts]
        self.start = torch.stack([first[i % len(first)] for i in range(self.n)])

    def init(self) -> Tensor:
        raise UsageError("unlike networks have no common initial model; begin at task.start")

    def evaluate(self, X: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """As in OnDevices; NaN (1,) twice for a single model of several devices."""
        if len(X) == 1 < self.n:
            return np.full(1, np.nan), np.full(1, np.nan)
        return super().evaluate(X)

    def _outputs(self, i, x, images):
        part = self.parts[i % len(self.parts)]
        return part.network(x[: part.d], images)


def kinds(task, chosen) -> list[tuple[np.ndarray, Task]]:
    """The devices `chosen` (k,) by network: their positions in chosen, and the task with that
    network, whose models are the first part.d numbers of a row. A usual task is of one kind."""
    parts = getattr(task, "parts", [task])
    which = np.asarray(chosen, int) % len(parts)
    found = [(np.flatnonzero(which == k), part) for k, part in enumerate(parts)]
    return [(some, part) for some, part in found if len(some)]


class Styles(Task):
    """A Task in which each device holds one style of each class only, and is tested on all.

    The classes of Fashion-MNIST become styles of three: tops, shoes, and the rest. Of other data
    the styles of a class are so many clusters of its images (k-means). mixed: all styles at all
    devices, an IID split. spare: a share of each device's samples that nobody gets. style (N,): of
    each training sample.
    """

    def __init__(
        self,
        data: str | Data = "digits",
        *,
        styles: int = 3,
        mixed: bool = False,
        spare: float = 0.0,
        samples: int | None = None,
        seed: int = 0,
        **how,
    ):
        whole = load(data) if isinstance(data, str) else data
        rows = stream(seed, "samples").permutation(len(whole.y))[:samples]
        part = replace(whole, x=whole.x[rows], y=whole.y[rows])
        if part.name == "fashion_mnist":
            self.style, coarse = part.y.numpy(), torch.tensor(COARSE)
            part = replace(part, y=coarse[part.y], y_test=coarse[part.y_test], classes=3)
        else:
            self.style = clusters(part.x.flatten(1).numpy(), part.y.numpy(), styles)
        partition = iid() if mixed else styled(self.style)
        partition = trimmed(partition, spare) if spare else partition
        super().__init__(part, partition=partition, seed=seed, **how)


COARSE = 0, 2, 0, 2, 0, 1, 0, 1, 2, 1  # T-shirt, trousers, pullover, dress, coat, sandal, ...


def clusters(x: np.ndarray, y: np.ndarray, k: int) -> np.ndarray:
    """(N,): to which of k clusters of its class each sample belongs, by k-means on x (N, d)."""
    from sklearn.cluster import KMeans

    found = np.zeros(len(y), int)
    for c in np.unique(y):
        own = y == c
        how = dict(n_clusters=min(k, int(own.sum())), n_init=4, random_state=0)
        found[own] = KMeans(**how).fit_predict(x[own])
    return found


class Instalments(Task):
    """A Task whose data come in over time: at first every device holds the first of so many equal
    instalments of its samples, and one more `every` so many seconds. The order in which a device
    gets its samples is random.

    sizes (n,) and p are those of the data that are there; `reveal` brings them up to a time, and
    `run` calls it between rounds or arrivals: a round sees the data that were there when it began.
    """

    def __init__(self, *data, instalments: int = 10, every: float, **how):
        super().__init__(*data, **how)
        if instalments < 1 or not every > 0:
            raise UsageError(
                f"instalments = {instalments}, every = {every} s; expected 1 or more, and above 0"
            )
        self.instalments, self.every, self.held = instalments, every, self.sizes
        for i in range(self.n):
            own = super().rows(i)
            own[:] = stream(self.seed, "instalments", i).permutation(own)
        self.reveal(0.0)

    def rows(self, i: int) -> np.ndarray:
        """Indices of the samples that device i holds by now."""
        return super().rows(i)[: self.sizes[i]]

    def reveal(self, seconds: float) -> None:
        """The data that have come in until `seconds` are there."""
        here = min(1 + seconds // self.every, self.instalments) / self.instalments
        sizes = np.ceil(np.round(here * self.held, 6)).astype(int)
        if (sizes != self.sizes).any():
            self.sizes = sizes
            self.p = torch.as_tensor(sizes / sizes.sum(), dtype=self.dtype)


class Recall(Task):
    """A Task of which only the `tested` classes are tested: accuracy is the share of their test
    samples that the model finds among all classes."""

    def __init__(self, data: str = "digits", *, tested: tuple[int, ...], **how):
        super().__init__(data, **how)
        there = torch.isin(self.y_test, torch.tensor(tested))
        self.x_test, self.y_test = self.x_test[there], self.y_test[there]


class Stationarity(Task):
    """A Task whose n learners all hold all samples. loss: the squared norm of the gradient of the
    mean loss over them, which is 0 at a stationary point; accuracy: on the test data."""

    def __init__(self, data: str = "digits", **how):
        super().__init__(data, partition=everything(), **how)

    def gradient(self, X: Tensor) -> Tensor:
        """(m, d): of the mean loss over all samples at X (m, d)."""
        rows = torch.arange(len(self.y)).expand(len(X), -1)
        return gradients_on(self, X, rows, X.new_full(rows.shape, 1 / len(self.y)))

    def evaluate(self, X: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Test accuracy and squared gradient norm of the models X (m, d), each (m,)."""
        return super().evaluate(X)[0], self.gradient(X).square().sum(1).double().numpy()

    def smoothness(self, X: Tensor, steps: int = 20) -> Tensor:
        """(m,): the greatest curvature at the models X (m, d), by power iteration. In float64."""
        v = torch.ones_like(X)
        for _ in range(steps):
            v = 1e-4 * v / v.norm(dim=1, keepdim=True)
            v = (self.gradient(X + v) - self.gradient(X - v)) / 2e-4
        return v.norm(dim=1)

    def variance(self, x: Tensor, B: int) -> float:
        """E ||g - grad f(x)||^2 of the gradient g of a batch of B, drawn without replacement."""
        N = len(self.y)
        G = gradients_on(self, x.expand(N, -1), torch.arange(N)[:, None], x.new_ones(N, 1))
        return float((G - G.mean(0)).square().sum(1).mean() / B * (N - B) / (N - 1))

    def constants(self, X: Tensor, *, B: int) -> tuple[float, float, float]:
        """The loss at the first of the models X (m, d) of a run, and along them the greatest
        smoothness, and variance of the gradient of a batch of B."""
        f = F.cross_entropy(self.logits(X[0], self.x), self.y).item()
        return f, self.smoothness(X).max().item(), max(self.variance(x, B) for x in X)


class ExcessLoss(Task):
    """Softmax regression with mu / 2 ||x||^2 in each device's loss, from zero, judged by what it
    minimises. loss: f(x) - min f of the training loss f = sum_i p_i f_i; accuracy: 1 - loss."""

    guess = np.nan

    def __init__(
        self,
        data: str = "digits",
        *,
        n: int = 20,
        partition: Partition | None = None,
        samples: int | None = None,
        mu: float = 0.01,
        seed: int = 0,
        dtype=torch.float64,
    ):
        how = dict(n=n, partition=partition, samples=samples, network=logistic(), dtype=dtype)
        super().__init__(data, seed=seed, **how)
        self.ridge, self.least = mu, _least(data, samples, seed if samples else 0, mu)
        self.seen = self.x[self.order], self.y[self.order]

    def init(self) -> Tensor:
        """(d,): zeros."""
        return torch.zeros(self.d, dtype=self.dtype)

    @torch.no_grad()
    def evaluate(self, X: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """(1 - excess, excess training loss) of the models X (m, d), each (m,)."""
        images, y = self.seen
        each = torch.stack([F.cross_entropy(self.network(x, images), y) for x in X]).double()
        excess = each + self.ridge / 2 * X.square().sum(1).double() - self.least
        return (1 - excess).numpy(), excess.numpy()


@cache
def _least(data, samples, seed, mu):
    """The minimum of ExcessLoss, which does not depend on who holds what."""
    task = Task(data, n=1, network=logistic(), samples=samples, seed=seed)
    task.ridge = mu
    return float(_minimum(task, np.full(len(task.order), 1 / len(task.order))).fun)


def redealt(task: Task, parts, x: Tensor | None = None, y: Tensor | None = None) -> Task:
    """The task with other training data: device i holds the samples parts[i] of x and y (default:
    the task's own); test data and network stay."""
    new = copy(task)
    if x is not None:
        new.x, new.y = x, y
    new.sizes = np.array([len(p) for p in parts])
    new.order, new.offset = np.concatenate(parts), np.concatenate([[0], np.cumsum(new.sizes)])
    new.p = torch.as_tensor(new.sizes / new.sizes.sum(), dtype=task.dtype)
    if hasattr(task, "parts"):  # Mixed
        new.parts = [redealt(part, parts, x, y) for part in task.parts]
    return new
