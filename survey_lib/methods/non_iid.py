"""Methods for data that are not identically distributed over the devices."""

import itertools
from functools import partial

import torch

from survey_lib.methods.server_sync import fedavg, sample
from survey_lib.training import local_sgd


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
