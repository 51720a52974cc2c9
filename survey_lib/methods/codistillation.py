"""Devices that teach each other while they train: codistillation and mutual learning.

Networks may be unlike (problems.Mixed), in which case a model is its network's parameters and zeros
up to d.
"""

import itertools
from copy import copy
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from survey_lib.errors import UsageError
from survey_lib.models import Build, Network
from survey_lib.streams import stream
from survey_lib.tasks import kinds, redealt
from survey_lib.topology import complete
from survey_lib.training import (
    cohort_logits,
    cross_entropy,
    gradients_on,
    local_sgd,
    schedule,
    work,
)


def codistillation(task, world, *, K, B, eta, alpha=1.0, burn_in=0, unlike=False, seed=0):
    """Codistillation: models on data of their own learn from each other's stale predictions.
    Anil et al., ICLR 2018, Algorithm 1.

    Y (n, d), a model each; from round `burn_in` on every device fetches the others' models every K
    steps, a round, and keeps them as they are until the next one. y_i <- y_i - eta grad [CE(y,
    F(y_i, x)) + alpha CE(mean_{j != i} F(y~_j, x), F(y_i, x))] on its own batches, F = softmax
    outputs, y~_j the stale copy of model j, which i evaluates itself. alpha = 1: the paper's box.
    To each other device: its model, 4d B a fetch. Samples are not shared.
    alpha = 0 is local training (nothing is fetched); so are the rounds of burn_in. unlike: devices
    begin at initial models of their own, as in the paper, in place of a common one.
    A lost model leaves the older copy in use, or, if there is none yet, the mean of the others'.
    A stale copy is evaluated once per own sample between two fetches.
    """
    Y, W = starts(task, unlike, seed), complete(task.n)  # (n, d)
    copies, known = Y.expand(task.n, -1, -1), torch.zeros(task.n, task.n, dtype=torch.bool)
    for r in itertools.count():
        yield Y
        on = world.online()
        if alpha > 0 and r >= burn_in:
            arrived = world.exchange(W, Y, sizes=nbytes(task))
            copies = torch.where(arrived[..., None], Y, copies)  # (n, n, d): [i, j] model j at i
            known = known | arrived
            on = world.online()
        target, taught = predictions(task, world, on, copies, known, visits=K * (B or np.inf))
        loss = partial(with_target, target=target, taught=taught, alpha=alpha)
        Y = trained(task, world, on, Y, loss, K=K, B=B, eta=eta, seed=(seed, r))
        world.barrier(on)


def codistillation_shared_samples(
    task, world, *, shared, K, B, eta, alpha=1.0, burn_in=0, average=None, seed=0
):
    """Codistillation by outputs on shared samples, as the survey describes it.
    After Jeong et al., NeurIPS workshop MLPCD 2018, section 1, on Anil et al., ICLR 2018.

    Y (n, d). At first devices disclose `shared` of their samples S, in proportion to what they
    have: up 4D + 1 B a sample of D numbers, down those of the others. All train on own and shared
    samples. From round `burn_in` on: up the logits on S, 4 C |S| B, at every K steps; down the
    average over the others that answered, as much; loss CE + alpha CE(average, p), the second term
    on S only. average: (m, s, C) -> (s, C) probabilities, default `mean_logits`, as the survey
    says; `mean_outputs` averages predictions, and if all data are shared by all devices this is
    codistillation. Who does not get the samples, or an average, trains without.
    """
    average, Y = average or mean_logits, starts(task)  # (n, d)
    data, rows, holders = task, None, np.zeros(0, int)
    target = torch.zeros(task.n, len(task.y), task.classes, dtype=task.dtype)
    taught = torch.zeros(task.n, len(task.y), dtype=torch.bool)
    for r in itertools.count():
        yield Y
        on = world.online()
        if rows is None and len(on):
            data, rows, holders = disclosed(task, world, on, shared, seed)
            on = world.online()
        able = np.intersect1d(on, holders)
        if alpha > 0 and r >= burn_in and len(able) > 1:
            images = task.x[rows].expand(len(able), *task.x[rows].shape)
            Z = outputs(task, able, Y[able], images)  # (k, s, C)
            world.compute(able, forward_flops(task, able) * len(rows))
            up = world.gather(able, Z)
            if len(up) > 1:
                others = torch.stack([average(Z[up[up != j]]) for j in up])
                heard = np.isin(able[up], world.scatter(able[up], list(others)))
                at = able[up][heard, None], rows
                target[at], taught[at] = others[heard], True
            on = world.online()
        loss = partial(with_target, target=target[on], taught=taught[on], alpha=alpha)
        Y = trained(data, world, on, Y, loss, K=K, B=B, eta=eta, seed=(seed, r))
        world.barrier(on)


def fml(task, world, *, K, B, eta, alpha=0.5, beta=0.5, meme=None, private=True, seed=0):
    """FML: each device trains a model of its own and a copy of the shared one, which teach each
    other. Shen et al., arXiv 2006.16765, 2020, Algorithm 1.

    x (d_m,): the shared model; P (n, d): private models, of any networks, never sent. A round:
    device i forks x into its "meme" model m_i; on every batch of its K steps, both at once,
    L_p = alpha CE(y, p) + (1 - alpha) KL(q_m || q_p), L_m = beta CE(y, m) + (1 - beta) KL(q_p ||
    q_m), q softmax outputs, the other's held fixed; then x <- mean_i m_i, all alike.
    Per device: down x = 4 d_m B; up m_i = 4 d_m B. meme: the network of x, default the devices' or
    the first of unlike ones. alpha = beta = 1/2: the authors' values; their momentum is left out.
    alpha = 1: P is local training. beta = 1: x is FedAvg on equal shares. Yields P; private=False:
    x. Who does not get x trains its private model alone.
    """
    P, shared = starts(task), as_network(task, meme)  # (n, d)
    like = shared is task
    x = task.init() if like else shared.network.init(task.seed, dtype=task.dtype)  # (d_m,)
    for r in itertools.count():
        yield P if private else x
        on = world.online()
        got = world.broadcast(on, x)
        alone = np.setdiff1d(on, got)
        how = dict(K=K, B=B, eta=eta, seed=(seed, r))
        P = trained(task, world, alone, P, cross_entropy, **how)
        P, M = mutual_sgd(task, shared, world, got, P, x, alpha=alpha, beta=beta, **how)
        up = world.gather(got, M)
        if len(up):
            x = M[up].mean(0)


def mutual_sgd(task, shared, world, chosen, P, x, *, alpha, beta, K, B, eta, seed):
    """P (n, d) after K steps of the chosen devices, and their memes (k, d_m) from x: both step at
    once, each towards the labels and the other's outputs on the same batch."""
    P, M = P.clone(), x.repeat(len(chosen), 1)
    world.compute(chosen, work(shared, chosen, B=B, K=K))
    for some, part in kinds(task, chosen):
        own = chosen[some]
        world.compute(own, work(part, own, B=B, K=K))
        Y, m = P[own, : part.d], M[some]
        rows, weight, _ = schedule(part, own, B=B, K=K, seed=seed)
        for t in range(K):
            batch, images = (rows[:, t], weight[:, t]), part.x[rows[:, t].clamp(min=0)]
            q_p, q_m = (
                torch.softmax(cohort_logits(net.network, V, images), -1)
                for net, V in ((part, Y), (shared, m))
            )
            G_p = gradients_on(part, Y, *batch, partial(mutual, other=q_m, share=alpha))
            G_m = gradients_on(shared, m, *batch, partial(mutual, other=q_p, share=beta))
            Y, m = Y - eta * G_p, m - eta * G_m
        P[own, : part.d], M[some] = Y, m
    return P, M


def mutual(z, y, rows, members, *, other, share):
    """dL/dz of share CE(y, q) + (1 - share) KL(other || q), q = softmax(z); other (k, B, C)."""
    target = (1 - share) * other[members]
    q = torch.softmax(z.mT, 1).mT  # see cross_entropy
    return q - target.scatter_add_(2, y[..., None], torch.full_like(q[..., :1], share))


def with_target(z, y, rows, members, *, target, taught, alpha):
    """dL/dz of CE(y, q) + alpha CE(target, q) where a sample is `taught` (k, N): target (k, N, C),
    by device and training sample."""
    at = members[:, None], rows.clamp(min=0)
    pull = (torch.softmax(z, -1) - target[at]) * taught[at][..., None].to(z.dtype)
    return cross_entropy(z, y, rows, members) + alpha * pull


# ---- averages of outputs Z (m, s, C) -------------------------------------------------------------


def mean_logits(Z: Tensor) -> Tensor:
    """Softmax of the mean logits."""
    return torch.softmax(Z.mean(0), -1)


def mean_outputs(Z: Tensor) -> Tensor:
    """Mean of the softmax outputs."""
    return torch.softmax(Z, -1).mean(0)


# ---- devices of one network or of several --------------------------------------------------------


def starts(task, unlike: bool = False, seed=0) -> Tensor:
    """(n, d): the devices' initial models; unlike: each device's own."""
    if unlike:
        rows = [
            F.pad(part.network.init(seed, int(i), dtype=task.dtype), (0, task.d - part.d))
            for i in range(task.n)
            for _, part in kinds(task, [i])
        ]
        return torch.stack(rows)
    first = getattr(task, "start", None)
    return task.init().repeat(task.n, 1) if first is None else first


def nbytes(task) -> np.ndarray:
    """(n,) bytes of each device's model, without the zeros that follow it."""
    size, number = np.zeros(task.n), torch.finfo(task.dtype).bits // 8
    for some, part in kinds(task, np.arange(task.n)):
        size[some] = part.d * number
    return size


def forward_flops(task, chosen) -> np.ndarray:
    """(k,) FLOPs of each chosen device's network on a sample."""
    flops = np.zeros(len(chosen))
    for some, part in kinds(task, chosen):
        flops[some] = part.network.flops
    return flops


def as_network(task, build: Build | None):
    """The task with the network `build`, or, without, with the (first) one that it has."""
    base = kinds(task, [0])[0][1]
    if build is None:
        return base
    new = copy(base)
    new.network = Network(build, task.x.shape[1:], task.classes)
    new.d = new.network.d
    return new


@torch.no_grad()
def outputs(task, chosen, X: Tensor, images: Tensor) -> Tensor:
    """`cohort_logits` of the chosen devices' models X (k, d), each with its device's network."""
    Z = torch.zeros(*images.shape[:2], task.classes, dtype=X.dtype)
    for some, part in kinds(task, chosen):
        Z[some] = cohort_logits(part.network, X[some, : part.d], images[some])
    return Z


def trained(task, world, on, Y, loss, **how) -> Tensor:
    """Y (n, d) after local training of the devices `on`; loss: of all of them as one cohort."""
    Y = Y.clone()
    for some, part in kinds(task, on):
        own, place = on[some], torch.as_tensor(some)
        of = partial(_renumbered, loss=loss, place=place)
        Y[own, : part.d] = local_sgd(part, world, own, Y[own, : part.d], loss=of, **how)
    return Y


def _renumbered(z, y, rows, members, *, loss, place):
    return loss(z, y, rows, place[members])


def predictions(task, world, on, copies, known, *, visits) -> tuple[Tensor, Tensor]:
    """For each device in `on` the mean softmax outputs of the copies (n, n, d) of others' models
    that it has, on its own samples, (k, N, C), and where there are any, (k, N). visits: samples
    that it looks at until the next fetch, at most."""
    target = torch.zeros(len(on), len(task.y), task.classes, dtype=task.dtype)
    taught = torch.zeros(len(on), len(task.y), dtype=torch.bool)
    for k, i in enumerate(on):
        others = np.flatnonzero(known[i].numpy() & (np.arange(task.n) != i))
        if len(others):
            rows = task.rows(i)
            images = task.x[rows].expand(len(others), *task.x[rows].shape)
            Z = outputs(task, others, copies[i, others], images)
            target[k, rows], taught[k, rows] = mean_outputs(Z), True
            flops = forward_flops(task, others).sum()
            world.compute([i], flops * min(visits, len(rows)))
    return target, taught


def disclosed(task, world, on, size, seed):
    """The devices `on` send samples to the server, `size` in all, which sends each of them those of
    the others. Returns the task in which devices hold these too, the shared rows (s,), and who has
    them."""
    own = [stream(seed, "disclosed", int(i)).permutation(task.rows(i)) for i in on]
    held = np.array([len(v) for v in own])
    if size > held.sum():
        raise UsageError(f"shared = {size} samples, but the devices have {held.sum()}")
    ends = np.round(np.cumsum(held) / held.sum() * size).astype(int)
    parts = [np.sort(v[:m]) for v, m in zip(own, np.diff(ends, prepend=0), strict=True)]
    messages = [(task.x[p], task.y[p].to(torch.uint8)) for p in parts]
    up = world.gather(on, messages)
    rows = np.unique(np.concatenate([np.zeros(0, int), *(parts[k] for k in up)]))
    foreign = [np.setdiff1d(rows, task.rows(i)) for i in on[up]]
    sent = [(task.x[p], task.y[p].to(torch.uint8)) for p in foreign]
    holders = world.scatter(on[up], sent)
    extra = {i: p for i, p in zip(on[up], foreign, strict=True) if i in holders}
    dealt = [np.concatenate([task.rows(i), extra.get(i, [])]).astype(int) for i in range(task.n)]
    return redealt(task, dealt), rows, holders
