"""Methods for data that are not identically distributed over the devices."""

import itertools
from copy import copy
from functools import partial

import numpy as np
import torch
from torch import Tensor

from survey_lib.errors import UsageError
from survey_lib.methods.server_sync import fedavg, follow, mean, own, sample
from survey_lib.streams import stream
from survey_lib.training import Task, cross_entropy, local_sgd, train, work


def scaffold(task, world, *, S, B, eta_l, E=None, K=None, eta_g=1.0, seed=0):
    """SCAFFOLD: local steps corrected by control variates.
    Karimireddy et al., ICML 2020, Algorithm 1, option II.

    Server: x, c (d,). Device i: c_i (d,), kept between rounds.
    Per sampled device: down (x, c) = 8d B; up (y_i - x, c_i+ - c_i) = 8d B: twice FedAvg.
    S: devices a round; E epochs or K steps each; eta_l, eta_g: local and global step (paper:
    eta_g = 1). Devices count equally, as in the paper.
    Keeps c = mean_i c_i, for any participation and loss. With c frozen at 0 and equal shares this
    is FedAvg.
    """
    x = task.init()  # (d,)
    c, c_i = torch.zeros_like(x), torch.zeros(task.n, len(x), dtype=x.dtype)  # (d,), (n, d)
    for r in itertools.count():
        yield x
        chosen = world.broadcast(sample(task.n, S, seed, r), (x, c))
        key = (seed, r)
        Y = local_sgd(
            task, world, chosen, x, eta=eta_l, B=B, E=E, K=K, correct=c - c_i[chosen], seed=key
        )  # (k, d)
        steps = torch.as_tensor(task.steps(chosen, B=B, E=E, K=K)[:, None], dtype=x.dtype)
        dx, dc = Y - x, (x - Y) / (steps * eta_l) - c  # dc = c_i+ - c_i
        up = world.gather(chosen, (dx, dc))
        if len(up):
            c_i[chosen[up]] += dc[up]
            x = x + eta_g * dx[up].mean(0)
            c = c + dc[up].sum(0) / task.n


def fedprox(task, world, *, mu, **fedavg_arguments):
    """FedProx: FedAvg whose local loss adds mu/2 ||y - x||^2 and which takes in partial work.
    Li T. et al., MLSys 2020, Algorithm 2.

    Devices are drawn uniformly and weighted by n_i, as in the authors' experiments and code (the
    algorithm box draws by p_i and weights equally). mu = 0 without stragglers is FedAvg; so is
    one local step for every mu.
    """
    yield from fedavg(task, world, local=partial(local_sgd, mu=mu), keep=True, **fedavg_arguments)


def fedavgm(task, world, *, beta=0.9, eta_g=1.0, **fedavg_arguments):
    """FedAvgM: FedAvg with momentum at the server. Hsu et al., arXiv 1909.06335, 2019.

    v <- beta v + sum_i (n_i / n_S) (x - y_i), x <- x - eta_g v; v (d,) stays at the server, so the
    bytes are FedAvg's. The paper: eta_g = 1, beta and the devices' step searched together, since
    eta / (1 - beta) is what they come to. beta = 0, eta_g = 1 is FedAvg, bit for bit; one full
    step of all devices is the heavy ball, x <- x - eta_g eta grad F + beta (x - x_before).
    """
    rule = partial(momentum, beta=beta, eta_g=eta_g)
    yield from fedavg(task, world, server=rule, **fedavg_arguments)


def momentum(x, y, v, *, beta, eta_g=1.0):
    """v <- beta v + (x - y), x <- x - eta_g v, with the average y put first: see `follow`."""
    return (1 - eta_g) * x + eta_g * (y - beta * v), beta * v + (x - y)


def fednova(task, world, *, S, B, eta, E=None, K=None, mu=0.0, seed=0):
    """FedNova: updates divided by the local work in them before they are averaged. Wang J. et al.,
    NeurIPS 2020.

    x <- x - eta tau_eff sum_i p_i d_i with d_i = (x - y_i) / (eta ||a_i||_1), p_i = n_i / n_S over
    the devices that answered, tau_eff = sum_i p_i ||a_i||_1, which makes it FedAvg, to round-off,
    where all devices take equally many steps. ||a_i||_1: see `accumulated`. E, K: a number, or one
    per device (n,). mu: the penalty of FedProx; there the authors' code takes tau_eff = sum_i p_i
    tau_i, a longer step of the server. They also have local momentum, which is left out.
    Per sampled device: down x = 4d B; up (d_i, ||a_i||_1) = 4d + 4 B.
    """
    x = task.init()  # (d,)
    for r in itertools.count():
        yield x
        chosen = world.broadcast(sample(task.n, S, seed, r), x)
        steps = dict(B=B, E=own(E, chosen), K=own(K, chosen))
        Y = local_sgd(task, world, chosen, x, eta=eta, mu=mu, **steps, seed=(seed, r))  # (k, d)
        a = accumulated(task.steps(chosen, **steps), pull=eta * mu)
        a = torch.as_tensor(a, dtype=x.dtype)  # (k,)
        D = (x - Y) / (eta * a[:, None])
        up = world.gather(chosen, (D, a))
        if len(up):
            p = task.sizes[chosen[up]]
            x = x - eta * mean(a[up], p) * mean(D[up], p)


def accumulated(tau, *, rho: float = 0.0, pull: float = 0.0) -> np.ndarray:
    """||a||_1: how often the gradients of tau local steps, a number or (k,), count in what they
    come to: tau for SGD; with momentum rho, or with a penalty, pull = eta mu, see the code."""
    if rho and pull:
        raise UsageError("momentum rho and penalty together have no closed form; use one at a time")
    tau = np.asarray(tau, float)
    if rho:
        return (tau - rho * (1 - rho**tau) / (1 - rho)) / (1 - rho)
    return (1 - (1 - pull) ** tau) / pull if pull else tau


def fedvc(task, world, *, S, size, B, eta, E=1, server=follow, seed=0):
    """FedVC: virtual clients of one size. Hsu et al., ECCV 2020.

    S virtual clients a round, drawn with replacement, device i with probability n_i / n. Each
    trains on `size` samples of its device, drawn afresh, without replacement if there are so many,
    else with, for E epochs in batches of B: all take equally many steps. x <- the plain mean of
    their models, since the draw carries n_i. size=None: all samples of the device, for comparison.
    Per drawn device: down x = 4d B, once however often it is drawn; up 4d B for each time, which it
    works off one after the other: how repeats are dealt with is our reading. server: see `follow`;
    the paper adds `momentum`.
    """
    x, v = task.init(), 0.0  # (d,)
    for r in itertools.count():
        yield x
        drawn = by_size(task, S, seed, r)
        reached = world.broadcast(np.unique(drawn), x)
        drawn = drawn[np.isin(drawn, reached)]  # (m,)
        virtual, each = clients(task, drawn, size, seed, r), np.arange(len(drawn))
        Y = train(virtual, each, x, eta=eta, B=B, E=E, seed=(seed, r))  # (m, d)
        flops = work(virtual, each, B=B, E=E)
        world.compute(reached, [flops[drawn == i].sum() for i in reached])
        up = world.gather(reached, [Y[drawn == i] for i in reached])
        heard = np.isin(drawn, reached[up])
        if heard.any():
            x, v = server(x, Y[heard].mean(0), v)


def by_size(task, S: int, *key) -> np.ndarray:
    """(S,): devices drawn with replacement, in proportion to their samples, in ascending order."""
    p = task.sizes / task.sizes.sum()
    return np.sort(stream("by size", *key).choice(task.n, S, p=p))


def clients(task, drawn, size: int | None, *key) -> Task:
    """The task in which each draw of a device is a device, and holds `size` of its samples."""
    parts = [task.rows(i) for i in drawn]
    if size is not None:
        parts = [
            stream("virtual", *key, j).choice(part, size, replace=len(part) < size)
            for j, part in enumerate(parts)
        ]
    virtual = copy(task)
    virtual.n, virtual.sizes = len(parts), np.array([len(p) for p in parts], int)
    virtual.order = np.concatenate([np.zeros(0, int), *parts])
    virtual.offset = np.concatenate([[0], np.cumsum(virtual.sizes)])
    return virtual


def fedir(task, world, *, clip=None, seed=0, **fedavg_arguments):
    """FedIR: FedAvg in which a sample of class y counts p(y) / q_i(y) at device i. Hsu et al., ECCV
    2020.

    q_i: the device's shares of the classes, p: those of all data. Devices send their counts up
    once, 4 B a class, and get p once, 4 B a class, in the first round; p is that of the devices
    that were heard, and who does not get it weights all samples alike. clip: the largest weight,
    None: no limit. If no class is missing at a device, its weights have mean 1, and its loss
    is that on data like p; else the mean is p's share of the classes that it has.
    """
    weights = torch.ones(task.n, task.classes, dtype=task.dtype)
    local = partial(reweighted_sgd, weights=weights)
    rounds = fedavg(task, world, local=local, seed=seed, **fedavg_arguments)
    yield next(rounds)
    everybody = world.online()
    count = [task.y[task.rows(i)].bincount(minlength=task.classes) for i in range(task.n)]
    count = torch.stack(count).int()  # (n, classes)
    up = world.gather(everybody, count[everybody])
    if len(up):
        p = count[everybody[up]].sum(0).to(task.dtype)
        p = p / p.sum()
        heard = world.broadcast(everybody, p)
        world.barrier(heard)
        weights[heard] = importance(p, count[heard], clip)
    yield from rounds


def importance(p: Tensor, count: Tensor, clip: float | None = None) -> Tensor:
    """(k, classes): p / q_i for the shares q_i of the classes in the counts (k, classes), at most
    `clip`; 0 where a device has none."""
    q = count.to(p.dtype) / count.sum(1, keepdim=True)
    return torch.where(q > 0, p / q, 0.0).clamp(max=np.inf if clip is None else clip)


def reweighted_sgd(task, world, chosen, x, *, weights, **how) -> Tensor:
    """`local_sgd` in which device i's sample of class y counts weights[i, y] (n, classes)."""
    weights = weights[chosen]

    def loss(z, y, rows, members):
        return weights[members].gather(1, y)[..., None] * cross_entropy(z, y, rows, members)

    return local_sgd(task, world, chosen, x, loss=loss, **how)
