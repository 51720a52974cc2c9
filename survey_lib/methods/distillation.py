"""Knowledge distillation on one device and between devices."""

import itertools
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from survey_lib.methods.codistillation import starts, trained
from survey_lib.models import Build, mlp
from survey_lib.training import Task, cross_entropy, local_sgd, train


@dataclass(frozen=True)
class Teacher:
    """How the server trains its model on all training data: epochs of SGD in batches of B with step
    eta."""

    network: Build = mlp(256, 256)
    epochs: int = 40
    B: int = 32
    eta: float = 0.1

    def logits(self, task: Task) -> Tensor:
        """(N, C): the trained teacher's outputs for all training samples of the task's data."""
        return _teach(self, task.data, task.seed, task.dtype)


@lru_cache(maxsize=8)
def _teach(teacher, data, seed, dtype):
    task = Task(data, n=1, network=teacher.network, seed=seed, dtype=dtype)
    x = train(
        task,
        [0],
        task.init(),
        E=teacher.epochs,
        B=teacher.B,
        eta=teacher.eta,
        seed=("teacher", seed),
    )[0]
    return task.logits(x, task.x)


def distil(z, y, rows, members, *, teacher: Tensor, T: float, a: float) -> Tensor:
    """dL/dz of (1 - a) CE(y, p(z, 1)) + a T^2 KL(p(teacher, T) || p(z, T)), p(z, T) = softmax(z /
    T); teacher (N, C). Hinton, Vinyals, Dean, arXiv 1503.02531, section 2."""
    soft = torch.softmax(z / T, -1) - torch.softmax(teacher[rows] / T, -1)
    return (1 - a) * cross_entropy(z, y, rows, members) + a * T * soft


def kd_logits(task, world, *, K, B, eta, teacher=Teacher(), T=4.0, a=0.9, seed=0):
    """Response distillation with temperature. Hinton, Vinyals, Dean, arXiv 1503.02531, 2015.

    The server trains a teacher on all data and sends the device its outputs for the device's own
    samples, once: 4 C n_i B. The device trains the student x (d,) on (1 - a) CE + a T^2 KL, and on
    hard labels until the outputs have arrived. Yields every K steps.
    T = 4 and a = 0.9 are usual choices. a = 0 is training on hard labels.
    """
    outputs, x, arrived = teacher.logits(task) if a > 0 else None, task.init(), False
    for r in itertools.count():
        yield x
        if not arrived:
            arrived = a > 0 and len(world.broadcast([0], outputs[task.rows(0)])) > 0
        loss = partial(distil, teacher=outputs, T=T, a=a) if arrived else cross_entropy
        on = world.online([0])
        if len(on):
            x = local_sgd(task, world, on, x, K=K, B=B, eta=eta, loss=loss, seed=(seed, r))[0]
        world.barrier(on)


def student_hard_labels(task, world, *, K, B, eta, seed=0):
    """The same student trained on the device's labels only: kd_logits with a = 0."""
    yield from kd_logits(task, world, K=K, B=B, eta=eta, a=0.0, seed=seed)


def federated_distillation_fd(task, world, *, K, B, eta, gamma=1.0, seed=0):
    """FD: devices exchange mean outputs per class.
    Jeong et al., NeurIPS workshop MLPCD 2018, Algorithm 1.

    Y (n, d), one model per device, of any networks (problems.Mixed). While training K steps, device
    i averages its softmax outputs over its samples of true class l: F_il (the paper's "logit" is
    the softmax output).
    Up: F_i and a bit per class it has, 4 C^2 + ceil(C / 8) B; down: for each class the mean over
    the other devices that have it, as many bytes.
    Local loss: CE(p, y) + gamma CE(p, Fhat_y), the second term only for classes with a target.
    gamma = 0 is local training.
    """
    C = task.classes
    Y = starts(task)  # (n, d)
    target, known = (
        torch.zeros(task.n, C, C, dtype=Y.dtype),
        torch.zeros(task.n, C, dtype=torch.bool),
    )
    for r in itertools.count():
        yield Y
        on = world.online()
        total, count = (
            torch.zeros(len(on), C, C, dtype=Y.dtype),
            torch.zeros(len(on), C, dtype=Y.dtype),
        )
        loss = partial(
            regularised, target=target[on], known=known[on], gamma=gamma, total=total, count=count
        )
        Y = trained(task, world, on, Y, loss, K=K, B=B, eta=eta, seed=(seed, r))
        mean = total / count.clamp(min=1)[..., None]  # (k, C, C)
        up = world.gather(on, (mean, bits(count > 0)))
        others, has = leave_one_out(mean[up], count[up] > 0)
        messages = [(t, bits(h[None])) for t, h in zip(others, has, strict=True)]
        reached = world.scatter(on[up], messages)
        got = torch.as_tensor([list(on[up]).index(i) for i in reached], dtype=torch.long)
        target[reached], known[reached] = others[got], has[got]


def regularised(z, y, rows, members, *, target, known, gamma, total, count) -> Tensor:
    """dL/dz of FD's local loss, which also adds the outputs to total (k, C, C) and count (k, C) by
    true class."""
    p, real = torch.softmax(z, -1), (rows >= 0).to(z.dtype)
    k, C = members[:, None].expand_as(y), z.shape[-1]
    total.view(-1, C).index_add_(0, (k * C + y).reshape(-1), (p * real[..., None]).reshape(-1, C))
    count.view(-1).index_add_(0, (k * C + y).reshape(-1), real.reshape(-1))
    pull = known[k, y][..., None] * (p - target[k, y]) * gamma
    return p - F.one_hot(y, C) + pull


def leave_one_out(mean: Tensor, has: Tensor) -> tuple[Tensor, Tensor]:
    """For each device and class the mean of the others' rows mean (k, C, C) among those that have
    the class (k, C), and whether there is any."""
    weight = has.to(mean.dtype)[..., None]
    others = weight.sum(0) - weight
    return ((weight * mean).sum(0) - weight * mean) / others.clamp(min=1), others[..., 0] > 0


def bits(flags: Tensor) -> Tensor:
    """(k, ceil(C / 8)) uint8: flags (k, C) as they are sent."""
    padded = F.pad(flags, (0, -flags.shape[1] % 8)).unflatten(1, (-1, 8))
    return (padded * 2 ** torch.arange(8)).sum(-1).to(torch.uint8)


def local_only(task, world, *, K, B, eta, seed=0):
    """Every device trains alone on its own data, nothing is sent: Y (n, d), of any networks."""
    Y = starts(task)
    for r in itertools.count():
        yield Y
        on = world.online()
        Y = trained(task, world, on, Y, cross_entropy, K=K, B=B, eta=eta, seed=(seed, r))
        world.barrier(on)
