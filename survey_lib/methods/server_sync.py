"""Synchronous training around a parameter server."""

import itertools

import numpy as np
import torch
from torch import Tensor

from survey_lib.errors import UsageError
from survey_lib.streams import stream
from survey_lib.training import gradients, local_sgd


def sample(n: int, S: int, *key) -> np.ndarray:
    """(S,): S of n devices, drawn without replacement, in ascending order."""
    if not 0 < S <= n:
        raise UsageError(f"S = {S} devices a round, but there are {n}; choose S from 1 to {n}")
    return np.sort(stream("sample", *key).choice(n, S, replace=False))


def mean(rows: Tensor, weight) -> Tensor:
    """(d,): sum_i weight_i rows_i / sum_i weight_i."""
    weight = torch.as_tensor(weight, dtype=rows.dtype)
    return (weight / weight.sum()) @ rows


def fedsgd(task, world, *, S, eta, seed=0):
    """FedSGD: one full-batch gradient of each sampled device a round. McMahan et al., AISTATS 2017,
    section 2.

    x <- x - eta sum_i (n_i / n_S) grad F_i(x), n_S = the samples of the devices that answered.
    Per sampled device: down x = 4d B; up g_i = 4d B. S = n: a gradient step on the pooled data.
    """
    x = task.init()  # (d,)
    for r in itertools.count():
        yield x
        chosen = world.broadcast(sample(task.n, S, seed, r), x)
        G = gradients(task, world, chosen, x, seed=(seed, r))  # (k, d)
        up = world.gather(chosen, G)
        if len(up):
            x = x - eta * mean(G[up], task.sizes[chosen[up]])


def fedavg(
    task, world, *, S, B, eta, E=None, K=None, local=local_sgd, stragglers=0.0, keep=False, seed=0
):
    """FedAvg: average of models after local SGD. McMahan et al., AISTATS 2017, Algorithm 1.

    S of n devices a round, drawn without replacement; each runs E epochs (or K steps) of SGD in
    batches of B from x; x <- sum_i (n_i / n_S) y_i, n_S over the devices that answered (the
    paper's box divides by all n, which shrinks the model when S < n; its text takes the sampled).
    Per sampled device: down x = 4d B; up y_i = 4d B. E = 1, B = None (all samples) is FedSGD.

    stragglers: share of the sampled devices that manage only 1 .. E - 1 epochs, drawn uniformly
    (Li et al., MLSys 2020, section 5.2); their work is dropped unless keep.
    """
    x = task.init()  # (d,)
    for r in itertools.count():
        yield x
        chosen = world.broadcast(sample(task.n, S, seed, r), x)
        epochs = partial_work(E, stragglers, chosen, seed, r) if stragglers else E
        Y = local(task, world, chosen, x, eta=eta, B=B, E=epochs, K=K, seed=(seed, r))  # (k, d)
        sent = np.flatnonzero(np.broadcast_to((epochs == E) | keep, len(chosen)))
        if len(chosen) and not len(sent):
            world.barrier(chosen)  # gather would wait for nobody
        up = sent[world.gather(chosen[sent], Y[sent])]
        if len(up):
            x = mean(Y[up], task.sizes[chosen[up]])


def partial_work(E, share, chosen, *key) -> np.ndarray:
    """(k,): E epochs, or for a share of the devices a number drawn uniformly from 1 .. E - 1."""
    if E is None or E < 2:
        raise UsageError(
            f"E = {E} epochs leave no part of the work to do; stragglers need E of 2 or more"
        )
    late = stream("stragglers", *key).permutation(len(chosen)) < round(share * len(chosen))
    return np.where(late, [stream("epochs", *key, int(i)).integers(1, E) for i in chosen], E)
