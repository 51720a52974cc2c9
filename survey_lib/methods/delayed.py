"""Asynchronous stochastic gradients in theory: how long a delay may be before it matters."""

import itertools
from collections import deque

import numpy as np
import torch
from torch import Tensor

from survey_lib.errors import UsageError
from survey_lib.problems import Rows
from survey_lib.streams import stream
from survey_lib.training import InFlight, batch_gradients, work


def asysg_con(task, world, *, gamma, B, M=1, window=0, missed=0.5, coordinates=None, seed=0):
    """AsySG-con: M stochastic gradients, each at whatever version its device read, make an update.
    Lian, Huang, Li, Liu, NIPS 2015.

    x_{k+1} = x_k - gamma sum_{m = 1..M} G(x_{k - tau_{k,m}}, xi_{k,m}): a sum, not a mean. The
    delays tau come from the world: n equal devices deliver in turn, so that with M = 1 each
    gradient is n - 1 updates old after the first sweep; unequal ones deliver at random.
    gamma: constant, of the order sqrt(1 / (M K)) for K updates. Per gradient: down 4d B, up 4d B.
    Yields once per update, with the mean delay. It is `sasgd` with s = 1, c = M, alpha_0 = M gamma.

    AsySG-incon, its form for shared memory: a read may mix versions, xhat = x_k - sum_{j in J}
    (x_{j+1} - x_j), where J has each of the last `window` updates with probability `missed`; and an
    update writes so many random `coordinates` only (None: all; the paper: one). window = 0 is
    AsySG-con.
    """
    x, k, drawn, tau, late = task.init(), 0, 0, {}, []  # (d,)
    g, recent = torch.zeros_like(x), deque(maxlen=window)  # the last updates, each (d,)
    flight, flops = _learners(task, B)
    yield x, {"delay": 0.0}
    for i, j in world.arrivals(x, x, flops):
        if i is not None:
            g, late, drawn = g + flight.result(i), [*late, k - tau[i]], drawn + 1
            if len(late) == M:
                step = -gamma * _some(g, coordinates, seed, k)
                x, k = x + step, k + 1
                recent.append(step)
                yield x, {"delay": sum(late) / M}
                g, late = torch.zeros_like(x), []
        J = stream("missed", seed, drawn).random(len(recent)) < missed if recent else ()
        read = x - sum(itertools.compress(recent, J))
        flight.start(j, read, (seed, drawn))
        tau[j] = k


def _some(g: Tensor, coordinates: int | None, *key) -> Tensor:
    """g with all but so many random entries 0."""
    if coordinates is None:
        return g
    kept = stream("coordinates", *key).choice(len(g), coordinates, replace=False)
    return torch.zeros_like(g).index_copy_(0, torch.from_numpy(kept), g[kept])


def _learners(task, B):
    """(gradients of batches of B under way at devices, their FLOPs)."""
    if isinstance(task, Rows):
        return InFlight(task, Rows.sampled, B=B), B * task.flops
    return InFlight(task, batch_gradients, B=B), work(task, np.arange(task.n), B=B, K=1)


def delayed_mirror_descent(task, world, *, L, eta, B, R=np.inf, dual=False, seed=0):
    """Delayed mirror descent and dual averaging: a step size that knows the delay makes it cost
    nothing in the long run. Agarwal, Duchi, NIPS 2011, cyclic master and workers.

    Master: x(t) (d,), and z (d,), the sum of the gradients; n workers in a cycle return gradients
    of the points that they were given, g(t) = G(x(t - tau)), tau = n - 1 (equal devices deliver in
    turn). With psi(x) = ||x - x(1)||^2 / 2 and the ball of radius R around x(1),
    mirror descent:           x(t+1) = project(x(t) - alpha(t) g(t)),
    dual, dual averaging:     x(t+1) = project(x(1) - alpha(t+1) sum_{s <= t} g(s)).
    1 / alpha(t) = L + eta sqrt(t + tau): L, the smoothness; eta of the order sigma / R. eta = 0: a
    constant step, for which both are SGD if R is infinite. Per gradient: down 4d B, up 4d B.
    Yields the mean of x(2) .. x(t+1), which the theorem is about, with the delay of g(t).
    Left out: the variant that averages gradients locally on a tree.
    """
    start = x = average = task.init()  # (d,)
    z, t, tau = torch.zeros_like(x), 0, {}
    flight, flops = _learners(task, B)
    yield x, {"delay": 0}
    for i, j in world.arrivals(x, x, flops):
        if i is not None:
            g, t = flight.result(i), t + 1
            z = z + g
            alpha = 1 / (L + eta * (t + dual + task.n - 1) ** 0.5)  # t + dual: alpha(t + 1)
            away = -alpha * z if dual else x - start - alpha * g
            x = start + away * min(1.0, R / max(away.norm().item(), 1e-300))
            average = average + (x - average) / t
            yield average, {"delay": t - 1 - tau[i]}
        flight.start(j, x, (seed, t))
        tau[j] = t


def async_linear_systems(task, world, *, omega=1.0, theta=1.0, seed=0):
    """Asynchronous SGD for a consistent linear system, by random rows. Sahu, Dutta, Tiwari,
    Richtarik, arXiv 2004.02163, 2020.

    task: problems.LinearSystem. A processor that began at x_{k-d} draws a row i and returns
    z = x_{k-d} - omega a_i (a_i^T x_{k-d} - b_i); the master x_{k+1} = (1 - theta) x_k + theta z.
    omega: step; theta: damping. 8 B a coordinate, in double precision: down 8d B, up 8d B. Yields
    once per row, with the delay d. One processor with theta = omega = 1 is the randomised Kaczmarz
    method. The hyper-parameters are the paper's, the form of the damped update is our reading.
    """
    x, k, tau = task.init(), 0, {}  # (d,)
    flight = InFlight(_system(task), Rows.sampled, B=1)
    yield x, {"delay": 0}
    for i, j in world.arrivals(x, x, task.flops):
        if i is not None:
            began, t = tau[i]
            z = began - omega * flight.result(i)
            x, k = (1 - theta) * x + theta * z, k + 1
            yield x, {"delay": k - 1 - t}
        flight.start(j, x, (seed, k))
        tau[j] = x, k


def sync_linear_systems(task, world, *, omega=1.0, seed=0):
    """The synchronous parallel method for a consistent linear system: the mean of what n processors
    make of x, each with a random row. Richtarik, Takac, SIAM J. Matrix Anal. Appl. 2020.

    task: problems.LinearSystem. x <- mean_l (x - omega a_l (a_l^T x - b_l)) over the processors
    that answer. Per processor and round: down 8d B, up 8d B. One processor: `async_linear_systems`
    with theta = 1. omega may be above 2: the mean of n rows is smoother than one.
    """
    x, _ = task.init(), _system(task)  # (d,)
    for r in itertools.count():
        yield x
        chosen = world.broadcast(np.arange(task.n), x)
        world.compute(chosen, task.flops)
        keys = [(seed, r)] * len(chosen)
        Z = x - omega * task.sampled(chosen, x.expand(len(chosen), -1), B=1, seed=keys)
        up = world.gather(chosen, Z)
        if len(up):
            x = Z[up].mean(0)


def _system(task):
    if not isinstance(task, Rows):
        raise UsageError("linear systems have rows; use problems.LinearSystem as the problem")
    return task
