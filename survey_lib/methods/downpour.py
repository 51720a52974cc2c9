"""Learners that work for a while between two exchanges with a server; momentum for SGD."""

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from survey_lib.errors import UsageError
from survey_lib.training import InFlight, gradients, gradients_on, schedule, work


def accrued(task, chosen, X, *, eta, B, K, seed):
    """(k, d): the sum of the gradients of K local SGD steps from X (k, d)."""
    rows, weight, _ = schedule(task, chosen, B=B, K=K, seed=seed)
    Y, total = X, torch.zeros_like(X)
    for k in range(rows.shape[1]):
        G = gradients_on(task, Y, rows[:, k], weight[:, k])
        Y, total = Y - eta * G, total + G
    return total


def downpour(task, world, *, eta, B, period=1, adagrad=False, eps=1e-8, seed=0):
    """Downpour SGD: replicas push what gradients they accrued and fetch, each in its own time.
    Dean, Corrado, Monga et al., NIPS 2012, section 4.1 and the algorithm of its appendix.

    Server: x (d,). A replica fetches x, makes `period` SGD steps of B samples on its own data with
    step eta, pushes the sum g of their gradients, and fetches anew: n_fetch = n_push = period, 1 in
    the paper's runs. The server applies g at once: x <- x - eta g, or with Adagrad, per parameter,
    x <- x - eta g / sqrt(sum of all g^2 so far). Per visit: down x = 4d B, up g = 4d B. Yields once
    per push. One replica with period 1 and no Adagrad is SGD.

    The local steps have the server's eta in either case. The parameters are not spread over shards
    that answer at different times: all rules here are elementwise, so that shards without delays
    change nothing. eps is ours; the paper divides by the root alone.
    """
    x, squares, pushes = task.init(), 0, 0  # (d,), (d,)
    flight = InFlight(task, accrued, eta=eta, B=B, K=period)
    yield x
    for i, j in world.arrivals(x, x, work(task, np.arange(task.n), B=B, K=period)):
        if i is not None:
            g, pushes = flight.result(i), pushes + 1
            squares = squares + g**2
            x = x - eta * (g / (squares.sqrt() + eps) if adagrad else g)
            yield x
        flight.start(j, x, (seed, pushes))


def pulled(task, chosen, X, *, eta, B, K, momentum, seed):
    """(k, 2, d): models and velocities after K steps from X (k, 3, d): where the first gradient is
    taken, the models that step, their velocities."""
    rows, weight, _ = schedule(task, chosen, B=B, K=K, seed=seed)
    at, Y, v = X.unbind(1)
    for k in range(rows.shape[1]):
        G = gradients_on(task, at + momentum * v, rows[:, k], weight[:, k])
        v = momentum * v - eta * G
        at = Y = Y + v
    return torch.stack([Y, v], 1)


def easgd(task, world, *, eta, B, beta=0.9, period=10, momentum=0.0, seed=0):
    """Asynchronous EASGD: an elastic force ties each learner to a centre, which it moves in turn.
    Zhang, Choromanska, LeCun, NIPS 2015, Algorithm 1; with momentum Algorithm 2 (EAMSGD).

    Server: the centre x (d,), the paper's x~. Learner i: x_i, v_i (d,). Every `period` steps of its
    own, with alpha = beta / n:  e = alpha (x_i - x);  x_i <- x_i - e;  x <- x + e.  Each step:
    v_i <- momentum v_i - eta grad f_i(x_i + momentum v_i);  x_i <- x_i + v_i, where the step beside
    an exchange takes its gradient at x_i as it was before. Per exchange: down x = 4d B, up
    x_i = 4d B. Yields the centre once per exchange. beta, period, momentum: 0.9, 10, 0.99 are usual
    in the paper. x_i + x is conserved by an exchange. beta = 0: independent learners, a centre that
    stays; beta = n: learner and centre swap.
    """
    x, exchanges, alpha = task.init(), 0, beta / task.n  # (d,)
    X = x.repeat(task.n, 1)  # (n, d)
    V, before = torch.zeros_like(X), X.clone()
    flight = InFlight(task, pulled, eta=eta, B=B, K=period, momentum=momentum)
    yield x
    for i, j in world.arrivals(x, x, work(task, np.arange(task.n), B=B, K=period)):
        if i is not None:
            before[i], V[i] = flight.result(i)
            e = alpha * (before[i] - x)
            X[i], x, exchanges = before[i] - e, x + e, exchanges + 1
            yield x
        flight.start(j, torch.stack([before[j], X[j], V[j]]), (seed, exchanges))


def easgd_synchronous(task, world, *, eta, B, beta=0.9, period=1, momentum=0.0, seed=0):
    """EASGD in rounds: all learners meet the same centre. Zhang, Choromanska, LeCun, NIPS 2015,
    equations 5 and 6.

    x_i <- x_i - eta g_i - alpha (x_i - x);  x <- x + alpha sum_i (x_i - x), alpha = beta / n: the
    centre goes by beta towards the learners' mean. `period`, momentum and bytes as in `easgd`. A
    learner whose upload is lost feels no force either. Yields the centre once per round. beta = 1
    and eta = 0: the centre becomes the mean.
    """
    x, alpha = task.init(), beta / task.n  # (d,)
    X = x.repeat(task.n, 1)  # (n, d)
    V, how = torch.zeros_like(X), dict(eta=eta, B=B, K=period)
    for r in itertools.count():
        yield x
        on = world.broadcast(world.online(), x)
        E = alpha * (X[on] - x)  # (k, d)
        world.compute(on, work(task, on, B=B, K=period))
        up = world.gather(on, E)
        felt = torch.zeros_like(E)
        felt[up] = E[up]
        start = torch.stack([X[on], X[on] - felt, V[on]], 1)  # (k, 3, d)
        X[on], V[on] = pulled(task, on, start, momentum=momentum, seed=(seed, r), **how).unbind(1)
        x = x + felt.sum(0)


def warming(mu_max: float) -> Callable[[int], float]:
    """mu_t = min(1 - 2^(-1 - log2(floor(t / 250) + 1)), mu_max). Sutskever, Martens, Dahl, Hinton,
    ICML 2013, equation 5."""
    return partial(_warming, mu_max=mu_max)


def _warming(t, mu_max):
    return min(1 - 0.5 / (t // 250 + 1), mu_max)


def sgd_momentum_nag(task, world, *, eta, mu, B, form="classical", seed=0):
    """SGD with momentum on device 0. Sutskever, Martens, Dahl, Hinton, ICML 2013, equations 1 to 4.

    x, v (d,), g a gradient of B samples. No messages. form:
    "classical" (heavy ball): v <- mu v - eta g(x);         x <- x + v
    "nesterov":               v <- mu v - eta g(x + mu v);  x <- x + v
    "bengio":                 v <- mu v - eta g(x);         x <- x - eta g(x) + mu v, as in
    deep-learning libraries: Nesterov's with x standing for x + mu v.
    mu: a number, or a function of the step such as `warming`. mu = 0 is SGD. Yields every step.
    """
    if form not in ("classical", "nesterov", "bengio"):
        raise UsageError(f'form = "{form}"; expected "classical", "nesterov" or "bengio"')
    x = task.init()  # (d,)
    v = torch.zeros_like(x)
    for t in itertools.count():
        yield x
        m = mu(t) if callable(mu) else mu
        on = world.online([0])
        if len(on):
            at = x + m * v if form == "nesterov" else x
            (g,) = gradients(task, world, on, at, B=B, seed=(seed, t))
            v = m * v - eta * g
            x = x + (m * v - eta * g if form == "bengio" else v)
        world.barrier(on)
