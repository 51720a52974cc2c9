"""Federated averaging as theory treats it, and what theory speaks of, measured while a method runs:
client drift, the parts of a round's error, the distance from centralised training."""

import itertools
from copy import copy

import numpy as np
import torch
from torch import Tensor

from survey_lib.methods.server_sync import fedavg, mean, sample
from survey_lib.streams import stream
from survey_lib.training import batch_gradients, gradients_on, local_sgd, schedule, train, work


def with_replacement(p: np.ndarray, S: int, *key) -> np.ndarray:
    """(n,): scheme I, S draws of device i with probability p_i, each of them with weight 1 / S."""
    drawn = stream("with replacement", *key).choice(len(p), S, p=p)
    return np.bincount(drawn, minlength=len(p)) / S


def without_replacement(p: np.ndarray, S: int, *key) -> np.ndarray:
    """(n,): scheme II, S of n devices, each equally likely, with weight n p_i / S."""
    weight, chosen = np.zeros(len(p)), sample(len(p), S, *key)
    weight[chosen] = len(p) * p[chosen] / S
    return weight


def fedavg_decay(task, world, *, S, K, eta, gamma, B=None, scheme=with_replacement, seed=0):
    """FedAvg with a step that decays as 1 / t, which reaches the optimum on unlike data.
    Li X. et al., ICLR 2020, section 3, schemes I and II.

    In round r the devices drawn take K steps y_i <- y_i - eta_t g_i(y_i) from x, t = r K, r K + 1,
    ..., and x <- x + sum_i w_i (y_i - x), with the weights w (n,) of the scheme, E[w_i] = p_i.
    eta_t = eta / (1 + t / gamma). The paper's step 2 / (m (gamma' + t)) on f that is m-strongly
    convex and L-smooth is gamma = gamma' = max(8 L / m, K) and eta = 2 / (m gamma). Its E is K here
    and counts steps, not epochs; its K is S. B: samples a step (None: all).
    Per device drawn: down x = 4d B; up y_i = 4d B. What is lost does not move x.
    S = n in scheme II: all devices, with weights p_i. gamma = inf: a fixed step; if S = n, FedAvg.
    Scheme II is meant for p_i = 1 / n: else sum_i w_i is not 1, and the paper's x = sum_i w_i y_i
    would be scaled by it; written as a step from x it is not, and has the same mean. The paper's
    remedy, to scale f_i by n p_i, is left out. The authors' code lowers the step once a round.
    """
    x, p = task.init(), task.sizes / task.sizes.sum()  # (d,), (n,)
    for r in itertools.count():
        yield x
        w = torch.as_tensor(scheme(p, S, seed, r), dtype=x.dtype)  # (n,)
        chosen = world.broadcast(w.nonzero()[:, 0].numpy(), x)
        world.compute(chosen, work(task, chosen, B=B, K=K))
        rows, weight, _ = schedule(task, chosen, B=B, K=K, seed=(seed, r))  # (k, K, B)
        Y = x.repeat(len(chosen), 1)  # (k, d)
        for k in range(rows.shape[1]):  # K, or 0 where nobody was reached
            step = eta / (1 + (r * K + k) / gamma)
            Y = Y - step * gradients_on(task, Y, rows[:, k], weight[:, k])
        up = world.gather(chosen, Y)
        x = x + w[chosen[up]] @ (Y[up] - x)


def local_gd(task, world, *, K, eta, seed=0):
    """Local GD: K exact gradient steps on every device, then the mean of the models.
    Khaled, Mishchenko, Richtarik, NeurIPS workshop on federated learning, 2019, Algorithm 1.

    y_i <- y_i - eta grad f_i(y_i), K times from x; x <- (1 / n) sum_i y_i over those that answered.
    The paper's H is K here, its gamma is eta, and all devices count alike: with equal sizes FedAvg
    of all devices and full batches. K = 1: gradient descent. No part of it is random. The paper
    lets devices talk to each other; here the mean is taken by a server.
    Per device: down x = 4d B; up y_i = 4d B. Yields V = (1 / n) sum_i ||y_i - mean_j y_j||^2 before
    the models are replaced by their mean.
    """
    x, extra = task.init(), {}  # (d,)
    for r in itertools.count():
        yield x, extra
        chosen = world.broadcast(np.arange(task.n), x)
        Y = local_sgd(task, world, chosen, x, eta=eta, B=None, K=K, seed=(seed, r))  # (k, d)
        up = world.gather(chosen, Y)
        if len(up):
            x = Y[up].mean(0)
            extra = {"V": (Y[up] - x).square().sum(1).mean().item()}


class Watch:
    """A world that notes the last upload: who = the devices that got through, (k,), and the rows
    that they sent, each (k, ...)."""

    def __init__(self, world):
        self.world, self.who, self.rows = world, np.zeros(0, int), None

    def __getattr__(self, name):
        return getattr(self.world, name)

    def gather(self, chosen, payload, **how):
        """`World.gather`."""
        up = self.world.gather(chosen, payload, **how)
        self.who = np.asarray(chosen, dtype=int)[up]
        self.rows = tuple(v[up] for v in (payload if isinstance(payload, tuple) else (payload,)))
        return up


def models_sent(rows, x) -> Tensor:
    """(k, d): how far the local models moved, where they are what is uploaded."""
    return rows[0] - x


def updates_sent(rows, x) -> Tensor:
    """(k, d): the same where the first thing uploaded is the update itself."""
    return rows[0]


def normalised_sent(rows, x, *, eta) -> Tensor:
    """(k, d): the same for FedNova with the step eta, which uploads d_i and ||a_i||_1."""
    return -eta * rows[1][:, None] * rows[0]


def client_drift(task, world, *, of, moved=models_sent, **arguments):
    """Client drift: a method around a server as it is, and how far its local models part in each
    round. After Karimireddy et al., ICML 2020.

    of: the method, which yields x (d,) and uploads once a round what `moved(rows, x)` makes the
    updates dy_i = y_i - x (k, d) of. With weights p_i = n_i / n_S over the devices that answered, u
    = x' - x what the server made of the updates, and g the gradient of the loss on all data at x:
    distance = sqrt(sum_i p_i ||dy_i||^2), of the local models from the server model;
    spread = sqrt(sum_i p_i ||dy_i - mean_j dy_j||^2) / ||mean_j dy_j||;
    angle = the mean angle between dy_i and u, degrees; descent = the angle between u and -g.
    Messages, models and clock are those of the method.
    """
    watch, x, extra = Watch(world), None, {}
    for value in of(task, watch, **arguments):
        new = value[0] if isinstance(value, tuple) else value
        if x is not None and len(watch.who):
            extra = parted(task, x, new - x, watch.who, moved(watch.rows, x))
        yield new, extra
        watch.who, x, extra = watch.who[:0], new, {}


def parted(task, x, u, who, dy) -> dict[str, float]:
    """distance, spread, angle and descent of a round, see `client_drift`."""
    size = torch.as_tensor(task.sizes[who], dtype=x.dtype)
    p, middle = size / size.sum(), mean(dy, size)
    G = batch_gradients(task, np.arange(task.n), x, seed=0)
    return dict(
        distance=(p @ dy.square().sum(1)).sqrt().item(),
        spread=((p @ (dy - middle).square().sum(1)).sqrt() / middle.norm()).item(),
        angle=(p @ degrees(dy, u)).item(),
        descent=degrees(-mean(G, task.sizes), u).item(),
    )


def degrees(a: Tensor, b: Tensor) -> Tensor:
    """The angles between vectors (..., d)."""
    a, b = (v / v.norm(dim=-1, keepdim=True) for v in (a, b))
    return torch.rad2deg(2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1)))


def round_errors(task, world, *, S, K, B, eta, seed=0):
    """FedAvg, and what parts the error of each of its rounds has.

    The reference is K steps of gradient descent on all data from the same x. Each part is a squared
    distance, with one more source of error switched on:
    drift: of all devices with full batches from the reference;
    sampling: of the S devices of the round, with full batches, from all;
    noise: of what the round did, in batches of B, from the same devices with full batches.
    total: of what the round did from the reference; the sum of the three, but for their products.
    All are 0 with K = 1, S = n and B = None.
    """
    watch, x, extra = Watch(world), None, {}
    whole, exact = pooled(task), dict(eta=eta, B=None, K=K, seed=seed)
    for new in fedavg(task, watch, S=S, B=B, K=K, eta=eta, seed=seed):
        if x is not None and len(watch.who):
            Y = train(task, np.arange(task.n), x, **exact)
            sampled = mean(Y[watch.who], task.sizes[watch.who])
            ends = [new, sampled, mean(Y, task.sizes), train(whole, [0], x, **exact)[0]]
            parts = [(a - b).square().sum().item() for a, b in itertools.pairwise(ends)]
            extra = dict(zip(("noise", "sampling", "drift"), parts, strict=True))
            extra["total"] = (new - ends[-1]).square().sum().item()
        yield new, extra
        watch.who, x, extra = watch.who[:0], new, {}


def weight_divergence(task, world, *, E, B, eta, seed=0):
    """FedAvg beside SGD on the same data in one place, and how far their models part.
    Zhao et al., arXiv 1806.00582, 2018, section 3.

    Both start from the same model; w takes E epochs a round in batches of n B, which is as many
    steps as the devices take if they hold equally many samples. divergence = ||x - w|| / ||w||.
    All devices take part. With one full batch a round both are gradient descent: divergence 0.
    """
    whole, w = pooled(task), task.init()
    how = dict(E=E, eta=eta)
    for r, x in enumerate(fedavg(task, world, S=task.n, B=B, seed=seed, **how)):
        yield x, {"divergence": ((x - w).norm() / w.norm().clamp(min=1e-30)).item()}
        w = train(whole, [0], w, B=B and task.n * B, seed=(seed, r, "whole"), **how)[0]


def pooled(task):
    """The task with all data at one device."""
    whole, N = copy(task), int(task.sizes.sum())
    whole.n, whole.sizes, whole.offset = 1, np.array([N]), np.array([0, N])
    whole.p = torch.ones(1, dtype=task.dtype)
    return whole
