"""Decentralised training without a server: all-reduce and gossip."""

import itertools

import torch

from survey_lib.errors import UsageError
from survey_lib.topology import at_round, delivered, heard, links, mask
from survey_lib.training import gradients, some


def allreduce_sgd(task, world, *, eta, B, algorithm="ring", seed=0):
    """AllReduce-SGD: every device takes the mean gradient step.
    Ring collectives as in Luehr, NVIDIA blog, 2016.

    x (d,) is the same on all devices: x <- x - eta (1/n) sum_i g_i(x).
    The ring moves 2 (n - 1) messages and 2 (n - 1) / n models to one successor per device;
    algorithm="naive" moves n - 1 models to n - 1 others.
    One step of n devices with batch B is an SGD step with batch n B. A round has only the devices
    that are on.
    """
    x = task.init()  # (d,)
    for r in itertools.count():
        yield x
        on = world.online()
        G = gradients(task, world, on, x, B=B, seed=(seed, r))  # (k, d)
        total = world.allreduce(on, G, algorithm)
        if len(on):
            x = x - eta * total / len(on)


def d_psgd(task, world, *, W, eta, B, adapt_first=False, seed=0):
    """D-PSGD: mix with the neighbours and take a local gradient step.
    Lian et al., NeurIPS 2017, Algorithm 1.

    X (n, d), one model per device; W (n, n) doubly stochastic, dense or sparse, or (T, n, n) where
    it changes from round to round. X <- W X - eta G(X), the gradient at the model before mixing.
    adapt_first: X <- W (X - eta G(X)), "adapt then combine". Per device: deg_i models sent.
    The mean model moves by -eta mean_i g_i(x_i), for any doubly stochastic W; with W = J and
    adapt_first it is AllReduce-SGD. Where a message is lost, the receiver uses its own model in
    its place; a device that is off does nothing.
    """
    X = task.init().repeat(task.n, 1)  # (n, d)
    W = W.to(X.dtype)
    for r in itertools.count():
        yield X
        on, V = world.online(), at_round(W, r)
        G = gradients(task, world, on, some(X, on), B=B, seed=(seed, r))  # (k, d)
        step = (0, torch.from_numpy(on), G)
        if adapt_first:
            X = X.index_add(*step, alpha=-eta)
        X = heard(V, world.exchange(V, X)) @ X
        if not adapt_first:
            X = X.index_add_(*step, alpha=-eta)


def choco_sgd(task, world, *, W, Q, gamma, eta, B, seed=0):
    """CHOCO-SGD: gossip of compressed differences to public replicas.
    Koloskova, Stich, Jaggi, ICML 2019, Algorithm 2, in the memory-efficient form of its appendix.

    Device i: x_i, its public replica xhat_i and s_i = sum_j W_ij xhat_j, each (d,), from 0.
    y_i = x_i - eta g_i(x_i);  q_i = Q(y_i - xhat_i), sent to the neighbours;
    xhat_i += q_i;  s_i += sum_j W_ij q_j;  x_i = y_i + gamma (s_i - xhat_i).
    Q: from compression.py; gamma: consensus step, to be tuned.
    The mean model moves by -eta mean_i g_i(x_i), for any Q; Q = identity and gamma = 1 is D-PSGD
    with adapt_first. A lost message leaves sender and receiver with unlike replicas for good.
    """
    X = task.init().repeat(task.n, 1)  # (n, d)
    W = W.to(X.dtype)
    Xhat, S = torch.zeros_like(X), torch.zeros_like(X)  # (n, d)
    for r in itertools.count():
        yield X
        on = world.online()
        Y = X.clone()
        Y[on] -= eta * gradients(task, world, on, X[on], B=B, seed=(seed, r))
        q, arrived = _tell(world, on, W, Q, Y - Xhat, seed, r)
        Xhat, S = Xhat + q, S + delivered(W, arrived) @ q
        X = Y.clone()
        X[on] += gamma * (S - Xhat)[on]


def choco_gossip(task, world, *, W, Q, gamma, direct=False, seed=0):
    """CHOCO-Gossip: the mean of the devices' vectors, from compressed differences.
    Koloskova, Stich, Jaggi, ICML 2019, Algorithm 1, in the memory-efficient form of its appendix.

    task.start (n, d): the vectors x_i at first (problems.Averaging). CHOCO-SGD without gradients:
    q_i = Q(x_i - xhat_i);  xhat_i += q_i;  s_i += sum_j W_ij q_j;  x_i += gamma (s_i - xhat_i).
    Linear for any Q of quality omega > 0, if gamma is small enough: the paper's gamma is safe, and
    far smaller than what works. Keeps mean x_i for any Q and gamma; Q = identity, gamma = 1: W X.
    direct: without replicas, x_i += gamma sum_j W_ij (Q(x_j) - Q(x_i)), which keeps the mean too,
    but does not end where Q errs. A lost message of choco_gossip is missing for good; direct does
    without the neighbour for a round.
    """
    if not hasattr(task, "start"):
        raise UsageError("choco_gossip averages task.start; use problems.Averaging as the problem")
    X = task.start  # (n, d)
    W = heard(W.to(X.dtype), mask(W, *links(W)))  # rows sum to 1 in the precision of X
    Xhat, S = torch.zeros_like(X), torch.zeros_like(X)  # (n, d)
    for r in itertools.count():
        yield X
        on = world.online()
        q, arrived = _tell(world, on, W, Q, X if direct else X - Xhat, seed, r)
        if direct:
            Xhat, S = q, heard(W, arrived) @ q
        else:
            Xhat, S = Xhat + q, S + delivered(W, arrived) @ q
        X = X.clone()
        X[on] += gamma * (S - Xhat)[on]


def _tell(world, on, W, Q, V, *key):
    """Each device tells its neighbours Q(v_i). Returns q (n, d), as they read it, 0 of those who
    are off, and whom it reached: arrived (n, n)."""
    q, (sent, dense) = torch.zeros_like(V), Q(V, *key)
    q[on] = dense[on]
    return q, world.exchange(W, sent)
