"""A task: data split over devices, a network, local training of a cohort, evaluation. The hot path.

The gradients of a cohort are taken in chunks of many models at once. Networks of linear, ReLU,
convolution and pooling layers take them by hand (backprop.py), any other by autograd. Which path
runs depends on the network only; how large a chunk is, on the network and the batch size.
"""

import itertools
from collections.abc import Callable
from copy import copy
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from survey_lib import data as datasets
from survey_lib.backprop import backward, forward
from survey_lib.device import device, resident
from survey_lib.errors import UsageError
from survey_lib.models import Build, Network, mlp
from survey_lib.partition import Partition, iid
from survey_lib.streams import permutations, salt, stream, words

torch.set_num_threads(1)  # parallelism is over runs: two threads on busy cores are far slower

Loss = Callable[..., Tensor]  # (logits z, labels y, rows, members) -> dL/dz per sample
Project = Callable[[Tensor, Tensor], Tensor]  # (gradients (m, d), members (m,)) -> (m, d)
CHUNK, WIDE = 1e8, 100  # at once: FLOPs of a forward pass, models


class Task:
    """Data split over n devices and a network.

    data: a name or file for data.load, or a Data. partition: from partition.py. network: from
    models.py. samples: use only so many training samples. seed: draws the split, the subset and the
    initial model. Attributes: x (N, ...), y (N,), x_test, y_test, sizes (n,) samples per device, p
    (n,) their shares, d parameters, network, guess: the accuracy of guessing. ridge: weight of
    ridge / 2 ||x||^2 in every device's loss.
    """

    ridge = 0.0

    def __init__(
        self,
        data: str | datasets.Data = "digits",
        *,
        n: int = 20,
        partition: Partition | None = None,
        network: Build | None = None,
        samples: int | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ):
        if n < 1:
            raise UsageError(f"n = {n} devices; a task needs at least one")
        self.data = datasets.load(data) if isinstance(data, str) else data
        self.n, self.seed, self.dtype = n, seed, dtype
        total = len(self.data.y)
        if samples is not None and not 0 < samples <= total:
            raise UsageError(
                f"samples = {samples}, but {self.data.name} has {total} training samples"
            )
        rows = (
            np.arange(total)
            if samples is None
            else stream(seed, "samples").permutation(total)[:samples]
        )
        parts = (partition or iid())(self.data.y.numpy()[rows], n, seed)
        self.sizes = np.array([len(p) for p in parts])
        if self.sizes.min() < 1:
            raise UsageError(
                f"{n} devices share {len(rows)} samples and some get none; use fewer devices"
            )
        self.order = rows[np.concatenate(parts)]
        self.offset = np.concatenate([[0], np.cumsum(self.sizes)])
        self.p = torch.as_tensor(self.sizes / self.sizes.sum(), dtype=dtype)  # (n,)
        self.x, self.x_test = self.data.x.to(dtype), self.data.x_test.to(dtype)
        self.y, self.y_test, self.classes = self.data.y, self.data.y_test, self.data.classes
        self.network = Network(network or mlp(64), self.x.shape[1:], self.classes)
        self.d, self.guess = self.network.d, 1 / self.classes

    def init(self) -> Tensor:
        """(d,): the initial model, the same for every method at this seed."""
        return self.network.init(self.seed, dtype=self.dtype)

    def rows(self, i: int) -> np.ndarray:
        """Indices of device i's samples."""
        return self.order[self.offset[i] : self.offset[i + 1]]

    def steps(self, chosen, *, B=None, E=None, K=None) -> np.ndarray:
        """(k,) SGD steps of each chosen device: K, or E ceil(n_i / B)."""
        if (E is None) == (K is None):
            raise UsageError("give either E (epochs) or K (steps)")
        if B is not None and B < 1:
            raise UsageError(
                f"B = {B}; a batch needs at least one sample (None: all of the device's)"
            )
        size = self.sizes[chosen]
        if K is not None:
            return np.full(size.shape, K, int)
        return ((-(-size // B) if B else np.ones_like(size)) * E).astype(int)

    def batch(self, B: int, *key) -> tuple[Tensor, Tensor]:
        """B samples of all devices' data without replacement: images (B, ...), labels (B,)."""
        if B > len(self.order):
            raise UsageError(f"B = {B}, but there are {len(self.order)} training samples")
        rows = torch.from_numpy(stream("pooled batch", *key).choice(self.order, B, replace=False))
        return self.x[rows], self.y[rows]

    @torch.no_grad()
    def logits(self, x: Tensor, images: Tensor) -> Tensor:
        """(b, classes): the outputs of the model x (d,)."""
        return torch.cat([self.network(x, part) for part in images.split(2000)])

    @torch.no_grad()
    def evaluate(self, X: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Test accuracy and mean test cross-entropy of the models X (m, d), each (m,)."""
        X, x_test, y_test = X.to(device()), resident(self.x_test), resident(self.y_test)
        size = max(20, int(2 * CHUNK // self.network.flops))  # images at a time
        right, loss = torch.zeros(2, len(X), dtype=torch.float64, device=X.device)
        for part in _chunks(self, len(X), min(size, len(y_test))):
            for images, y in zip(x_test.split(size), y_test.split(size), strict=True):
                z = cohort_logits(self.network, X[part], images.expand(len(X[part]), *images.shape))
                y = y.expand(z.shape[:2])
                right[part] += (z.argmax(2) == y).sum(1)
                loss[part] += F.cross_entropy(z.mT, y, reduction="none").double().sum(1)
        return (right / len(y_test)).cpu().numpy(), (loss / len(y_test)).cpu().numpy()


@torch.no_grad()
def cohort_logits(network: Network, X: Tensor, images: Tensor) -> Tensor:
    """(k, B, classes): the outputs of the models X (k, d), each for its images (k, B, ...)."""
    if not network.by_hand:
        return torch.stack([network(x, own) for x, own in zip(X, images, strict=True)])
    return forward(network.by_hand, *_unstack(network, X, copy=False), images)[0]


def cross_entropy(z: Tensor, y: Tensor, rows: Tensor, members: Tensor) -> Tensor:
    """dL/dz of the cross-entropy, softmax(z) - onehot(y), for z (k, B, C) and y (k, B).

    A loss is given by this derivative, per sample. rows (k, B) are the samples' indices in the
    training data (-1: padding), members (k,) the devices' positions in the cohort, for losses that
    need them.
    """
    p = torch.softmax(z.mT, 1)  # (k, C, B): over the last dimension it takes several times as long
    return p.scatter_(1, y.unsqueeze(1), -1.0, reduce="add").mT


def local_sgd(
    task,
    world,
    chosen,
    x,
    *,
    eta,
    B,
    E=None,
    K=None,
    correct=None,
    mu=0.0,
    loss: Loss = cross_entropy,
    project: Project | None = None,
    seed,
) -> Tensor:
    """(k, d): the models of the devices `chosen` after y <- y - eta (P_i g_i(y) + correct_i + mu (y
    - x)), from y = x.

    x: (d,) or (k, d) start models. E epochs of fresh permutations in batches of B (None: all
    samples), or K steps. E, K: a number, or one per device. correct: (d,) or (k, d). mu: proximal
    weight. project: P, on the gradients of the cohort's `members` (their positions in chosen), for
    devices that train a part of the model only; none: P_i = I. The devices compute in the world
    for as long as the gradients take them.
    """
    world.compute(chosen, work(task, chosen, B=B, E=E, K=K))
    how = dict(correct=correct, mu=mu, loss=loss, project=project)
    return train(task, chosen, x, eta=eta, B=B, E=E, K=K, **how, seed=seed)


def gradients(task, world, chosen, X, *, B=None, loss: Loss = cross_entropy, seed) -> Tensor:
    """(k, d): the gradient of each chosen device at its model X (d,) or (k, d), on one batch of B
    samples (None: all of its samples)."""
    world.compute(chosen, work(task, chosen, B=B, K=1))
    return batch_gradients(task, chosen, X, B=B, loss=loss, seed=seed)


def batch_gradients(task, chosen, X, *, B=None, loss: Loss = cross_entropy, seed) -> Tensor:
    """`gradients` without the world: the numbers alone."""
    rows, weight, _ = schedule(task, chosen, B=B, K=1, seed=seed)
    return gradients_on(task, X, rows.flatten(1), weight.flatten(1), loss)


def gradients_on(task, X, rows, weight, loss: Loss = cross_entropy) -> Tensor:
    """(k, d): the gradients of the models X (d,) or (k, d), each on its samples `rows` (k, B) that
    count `weight` (k, B): one step of a `schedule`."""
    X, G = _cohort(X, len(rows)), torch.empty(len(rows), task.d, dtype=task.dtype)
    seen, members = rows.clamp(min=0), torch.arange(len(rows))
    batch = [v.to(device()) for v in (seen, task.y[seen], rows, weight)]
    for part in _chunks(task, *rows.shape):
        here = X[part].to(device()), *(v[part] for v in batch)
        _gradients(task, G[part], *here, loss, members[part])
    return G.add_(X, alpha=task.ridge) if task.ridge else G


def work(task, chosen, *, B=None, E=None, K=None) -> np.ndarray:
    """(k,) FLOPs of local training: forward and backward of every sample that is visited."""
    steps, size = task.steps(chosen, B=B, E=E, K=K), task.sizes[chosen]
    if K is None:
        visited = size * E
    else:
        per_epoch = task.steps(chosen, B=B, E=1)
        visited = steps // per_epoch * size + steps % per_epoch * np.minimum(size, B or size)
    per_sample = task.network.flops + sum(layer.backward for layer in task.network.layers)
    return visited * float(per_sample)


def schedule(task, chosen, *, B=None, E=None, K=None, seed):
    """Which samples each device visits: rows (k, T, B) into the training data, -1 for padding;
    weight (k, T, B), 1 / batch size for samples and 0 for padding; and steps (k,). Epoch e of
    device i is a permutation keyed by (seed, i, e); seed: one key, or a list of one per device."""
    steps, per_epoch = task.steps(chosen, B=B, E=E, K=K), task.steps(chosen, B=B, E=1)
    largest = int(task.sizes[chosen].max(initial=1))
    width, k, T = min(B or largest, largest), len(steps), int(steps.max(initial=0))
    own = [task.rows(i) for i in chosen]  # empty where the data are elsewhere, see live
    size = np.array([len(v) for v in own], int)
    keys = np.array([salt(v, "batch") for v in (seed if isinstance(seed, list) else [seed])])
    epochs = -(-steps // per_epoch)
    j = np.repeat(np.arange(k), epochs)  # (m,): the device of each epoch
    e = np.arange(len(j)) - np.repeat(np.cumsum(epochs) - epochs, epochs)  # and its number
    visits = np.minimum(size[j], (steps[j] - e * per_epoch[j]) * width)
    key = words(e, words(np.asarray(chosen, int), keys)[j])
    position = permutations(key, size[j], int(visits.max(initial=0)))  # (m, most visits)
    column = np.arange(position.shape[1])
    there = column < visits[:, None]
    source = (np.cumsum(size) - size)[j][:, None] + position
    target = (j * T + e * per_epoch[j])[:, None] * width + column
    rows = np.full(k * T * width, -1)
    rows[target[there]] = np.concatenate([np.zeros(0, int), *own])[source[there]]
    rows = torch.from_numpy(rows.reshape(k, T, width))
    real = (rows >= 0).to(task.dtype)
    return rows, real / real.sum(-1, keepdim=True).clamp(min=1), steps


def train(
    task,
    chosen,
    x,
    *,
    eta,
    B,
    E=None,
    K=None,
    correct=None,
    mu=0.0,
    loss=cross_entropy,
    project=None,
    seed,
) -> Tensor:
    """`local_sgd` without the world: the numbers alone."""
    rows, weight, steps = schedule(task, chosen, B=B, E=E, K=K, seed=seed)
    x = _cohort(x, len(rows))
    drift = None
    if mu or correct is not None:  # the part of the step that does not change: eta (mu x - correct)
        drift = eta * (mu * x - (0 if correct is None else _cohort(correct, len(rows))))
    order = np.argsort(-steps, kind="stable")  # the longest first: those at work are a prefix
    if (np.diff(order) < 0).any():
        x, rows, weight, steps = x[order], rows[order], weight[order], steps[order]
        drift = drift if drift is None else drift[order]
    plain, shrink = task.network.by_hand and project is None, 1 - eta * (mu + task.ridge)
    step = _train_by_hand if plain else partial(_train_any, project=project)
    Y, members = torch.empty(len(rows), task.d, dtype=task.dtype), torch.from_numpy(order)
    seen = rows.clamp(min=0)
    batches = seen, task.y[seen], rows, weight
    batches = [v.transpose(0, 1).contiguous().to(device()) for v in batches]  # (T, k, B)
    for part in _chunks(task, *rows.shape[::2]):
        push = None if drift is None else drift[part].to(device())
        here = x[part].to(device()), [v[:, part] for v in batches], steps[part]
        step(task, Y[part], *here, loss, members[part], eta, shrink, push)
    return Y if (np.diff(order) > 0).all() else Y[np.argsort(order)]


def some(rows: Tensor, at: np.ndarray) -> Tensor:
    """The rows at ascending positions, without a copy where these are all."""
    return rows if len(at) == len(rows) else rows[at]


def _cohort(x, k):
    return x.expand(k, -1) if x.dim() == 1 else x


def _chunks(task, k, B):
    """The k models in parts. Small models go many at once, since what costs are the calls; models
    of much work, such as convolutions of large images, one by one, since what costs is memory. A
    model itself is read and written as if it were 10 samples more than its B."""
    size = max(1, min(WIDE, int(CHUNK // ((B + 10) * task.network.flops))))
    return [slice(a, a + size) for a in range(0, k, size)]


@torch.no_grad()
def _train_by_hand(task, Y, x, batches, steps, loss, members, eta, shrink, drift):
    """Y = x after its steps. Step t: W <- shrink W - eta dL/dW + drift."""
    W, b = models = _unstack(task.network, x)
    push = None if drift is None else _unstack(task.network, drift)
    data, samples = resident(task.x), len(x) * batches[0].shape[2]
    space = torch.empty(samples, *data.shape[1:], dtype=data.dtype, device=data.device)
    for m, *batch in _at_work(steps, batches):
        if m < len(W[0]):
            W, b = [w[:m] for w in W], [v[:m] for v in b]
        for j, left, right, db in _slopes(task, W, b, *batch, loss, members[:m], space):
            W[j].baddbmm_(left, right, beta=shrink, alpha=-eta)
            v = b[j] if shrink == 1 else b[j].mul_(shrink)
            v.sub_(db, alpha=eta)
            if push is not None:
                W[j].add_(push[0][j][:m])
                b[j].add_(push[1][j][:m])
    for target, source in zip(_unstack(task.network, Y, copy=False), models, strict=True):
        for v, w in zip(target, source, strict=True):
            v.copy_(w)


@torch.no_grad()
def _train_any(task, Y, x, batches, steps, loss, members, eta, shrink, drift, *, project):
    """`_train_by_hand` for any network, with a projection of the gradients."""
    X = x.clone(memory_format=torch.contiguous_format)
    for m, *batch in _at_work(steps, batches):
        if project is not None:
            G = _gradients(task, torch.empty_like(X[:m]), X[:m], *batch, loss, members[:m])
            X[:m].mul_(shrink).sub_(project(G.cpu(), members[:m]).to(G.device), alpha=eta)
        else:
            for part, own, slope in _autograd(task, X[:m], *batch, loss, members[:m]):
                v = X[:m][part, own]
                v = v if shrink == 1 else v.mul_(shrink)
                v.sub_(slope, alpha=eta)
        if drift is not None:
            X[:m].add_(drift[:m])
    Y.copy_(X)


def _at_work(steps, batches):
    """Per step: the number m of models that still train, a prefix, and their batches, (m, B) each.

    steps (k,), longest first; batches (T, k, B) each."""
    T = int(steps.max(initial=0))
    number = (steps > np.arange(T)[:, None]).sum(1).tolist()
    for m, *batch in zip(number, *(v[:T].unbind(0) for v in batches), strict=True):
        yield m, *(batch if m == len(steps) else (v[:m] for v in batch))


@torch.no_grad()
def _gradients(task, G, X, seen, y, rows, weight, loss, members):
    """G = the gradients of the models X, each (k, d), on their samples."""
    if not task.network.by_hand:
        for part, own, slope in _autograd(task, X, seen, y, rows, weight, loss, members):
            G[part, own] = slope
        return G
    (W, b), (dW, db) = (_unstack(task.network, V, copy=False) for V in (X, G))
    for j, left, right, slope in _slopes(task, W, b, seen, y, rows, weight, loss, members):
        dW[j].copy_(torch.bmm(left, right))
        db[j].copy_(slope)
    return G


def _slopes(task, W, b, seen, y, rows, weight, loss, members, space=None):
    """`backward` of the models W, b on the samples `seen` (k, B) that count `weight` (k, B). space:
    where to put the samples; in the same place at each step they are fetched faster."""
    space = None if space is None else space[: seen.numel()]
    h = torch.index_select(resident(task.x), 0, seen.reshape(-1), out=space)
    z, kept = forward(task.network.by_hand, W, b, h.view(*seen.shape, *h.shape[1:]))
    delta = _slope(loss, z, y, rows, members) * weight.unsqueeze(2)
    return backward(task.network.by_hand, W, kept, delta)


def _unstack(network, X, copy=True):
    """Weights and biases of the models X (k, d), as `forward` wants them; copy=False: as views."""
    views = [v.flatten(2).mT if v.dim() == 5 else v for v in network.views(X)]
    if copy:
        views = [v.clone(memory_format=torch.contiguous_format) for v in views]
    return views[0::2], views[1::2]


def _autograd(task, X, seen, y, rows, weight, loss, members):
    """The gradients of the models X (k, d) in parts, by autograd: which models, which of their
    parameters, and (models, parameters). All models at once, or one by one where some have a
    smaller batch."""
    alike = len(X) > 1 and bool(weight.all())
    for i in range(1 if alike else len(X)):
        part = slice(None) if alike else slice(i, i + 1)
        real = slice(None) if alike or weight[i, -1] else weight[i] > 0  # padding comes last
        images, *batch, w = (v[part][:, real] for v in (seen, y, rows, weight))
        z, parameters = task.network.track(X[part], resident(task.x)[images])
        delta = _slope(loss, z.detach(), *batch, members[part]) * w.unsqueeze(2)
        end = 0
        for slope in torch.autograd.grad(z, parameters, delta, materialize_grads=True):
            slope = slope.reshape(len(z), -1)
            begin, end = end, end + slope.shape[1]
            yield part, slice(begin, end), slope


def _slope(loss, z, y, rows, members):
    """loss(z, y, rows, members); losses of a method's own know the CPU only."""
    if loss is cross_entropy or z.device.type == "cpu":
        return loss(z, y, rows, members)
    return loss(z.cpu(), y.cpu(), rows.cpu(), members).to(z.device)


class InFlight:
    """Local trainings under way at asynchronous devices, done late and many at once.

    `start(i, x, seed)` notes that device i begins at model x; `result(i)` trains i, when its model
    is not there yet, in one cohort with the devices that were noted first. What a device computes
    depends on its own start only, and on the data that it held then. compute: (task, devices, X,
    seed=keys, **how) -> rows, such as `batch_gradients`; default: `train`.
    """

    def __init__(self, task, compute=None, **how):
        self.task, self.compute, self.how, self.noted, self.done = task, compute, how, {}, {}
        self.then = copy(task)  # as it was when the noted devices began

    def start(self, i: int, x: Tensor, seed) -> None:
        if self.task.sizes is not self.then.sizes:  # data came in
            while self.noted:
                self._finish([*self.noted][:WIDE])
            self.then = copy(self.task)
        for earlier in (self.noted, self.done):  # is not asked for any more
            earlier.pop(i, None)
        self.noted[i] = (x, seed)

    def result(self, i: int) -> Tensor:
        if i not in self.done:
            others = (j for j in self.noted if j != i)  # the first ones are likely to be next
            self._finish(sorted([i, *itertools.islice(others, WIDE - 1)]))
        return self.done.pop(i)

    def _finish(self, devices):
        X, keys = zip(*(self.noted.pop(j) for j in devices), strict=True)
        compute = self.compute or train
        Y = compute(self.then, devices, torch.stack(X), seed=list(keys), **self.how)
        self.done.update(zip(devices, Y, strict=True))
