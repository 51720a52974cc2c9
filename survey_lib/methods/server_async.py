"""Asynchronous training around a parameter server."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from survey_lib.streams import stream
from survey_lib.training import InFlight, batch_gradients, gradients_on, schedule, work


def constant() -> Callable[[int], float]:
    """s(d) = 1: no penalty."""
    return _constant


def polynomial(a: float = 0.5) -> Callable[[int], float]:
    """s(d) = (d + 1)^-a. Xie, Koyejo, Gupta, OPT 2020, section 5.2."""
    return partial(_polynomial, a=a)


def hinge(a: float = 10, b: float = 4) -> Callable[[int], float]:
    """s(d) = 1 if d <= b, else 1 / (a (d - b) + 1). Xie, Koyejo, Gupta, OPT 2020, section 5.2."""
    return partial(_hinge, a=a, b=b)


def _constant(d):
    return 1.0


def reciprocal(d: int) -> float:
    """s(d) = 1 / d, and 1 at d = 0. Zhang et al., IJCAI 2016."""
    return 1 / max(d, 1)


def _polynomial(d, a):
    return (d + 1.0) ** -a


def _hinge(d, a, b):
    return 1.0 if d <= b else 1 / (a * (d - b) + 1)


def fedasync(
    task, world, *, alpha=0.6, s=polynomial(0.5), rho=0.005, E=1, B=10, eta=0.1, active=None, seed=0
):
    """FedAsync: the server mixes in each model as it arrives, the less the staler it is.
    Xie, Koyejo, Gupta, OPT 2020, Algorithm 1.

    x (d,), version t. A device that received x at version tau runs E epochs on F_i(y) + rho/2
    ||y - x||^2 and sends y; on arrival x <- (1 - a) x + a y with a = alpha s(t - tau). Staleness
    t - tau counts the versions made since the device's copy, 0 for a device alone; counted from
    the version about to be made it would be one more. Per visit: down 4d B, up 4d B. Yields once
    per arrival. active: devices at work at once (default: all). alpha, rho: as in public
    implementations. alpha = 1 and s = 1 with one device is local SGD in a row.
    """
    x, t = task.init(), 0  # (d,)
    flight, tau = InFlight(task, E=E, B=B, eta=eta, mu=rho), {}
    yield x, {"staleness": 0}
    flops = work(task, np.arange(task.n), B=B, E=E)
    for i, j in world.arrivals(x, x, flops, active=active):
        if i is not None:
            staleness = t - tau[i]
            a = alpha * s(staleness)
            x, t = (1 - a) * x + a * flight.result(i), t + 1
            yield x, {"staleness": staleness}
        flight.start(j, x, (seed, t))
        tau[j], flops[j] = t, work(task, [j], B=B, E=E)[0]  # its data may have grown


def sasgd(task, world, *, alpha_0, B, c=1, s=reciprocal, seed=0):
    """Staleness-aware asynchronous SGD: a gradient counts the less the staler it is.
    Zhang, Gupta, Lian, Liu, IJCAI 2016, the n-softsync protocol.

    x (d,), version t. A device pulls x at version tau, computes the gradient g of a batch of B and
    pushes it; c gradients, from whomever, make a version:
    x <- x - (1/c) sum alpha_0 s(t - tau) g, t <- t + 1.
    c = floor(lambda / n) for the paper's lambda learners and n splits: c = 1 applies every gradient
    at once, c = lambda is its 1-softsync. Its step alpha_0 / staleness is taken as alpha_0 for
    fresh gradients. Per gradient: down x = 4d B, up g = 4d B. Yields once per version.
    s = 1 is asynchronous SGD; one device alone is SGD. Devices pull as soon as they have pushed,
    so that gradients are stale even with c = lambda; the paper's hardsync is FedAvg with K = 1.
    """
    x, t, pushed = task.init(), 0, 0  # (d,)
    step, stale, tau = 0, [], {}
    flight = InFlight(task, batch_gradients, B=B)
    yield x, {"staleness": 0}
    for i, j in world.arrivals(x, x, work(task, np.arange(task.n), B=B, K=1)):
        if i is not None:
            stale.append(t - tau[i])
            step, pushed = step + alpha_0 * s(stale[-1]) / c * flight.result(i), pushed + 1
            if len(stale) == c:
                x, t = x - step, t + 1
                yield x, {"staleness": sum(stale) / c}
                step, stale = 0, []
        flight.start(j, x, (seed, pushed))
        tau[j] = t


def lazy(Omega: float) -> Callable[..., bool]:
    """Send g if ||g||^2 > ||moved||^2 / (alpha^2 Omega m^2): smaller Omega, fewer uploads. Lu et
    al., IEEE Access 2020, with D = 1 and xi = 1."""
    return partial(_lazy, Omega=Omega)


def at_random(share: float) -> Callable[..., bool]:
    """Send with this probability."""
    return partial(_at_random, share=share)


def _lazy(g, moved, alpha, m, *key, Omega):
    return bool(g @ g > moved @ moved / (alpha**2 * Omega * m**2))


def _at_random(g, moved, alpha, m, *key, share):
    return bool(stream("send", *key).random() < share)


def paflm(task, world, *, alpha, B, send, p=polynomial(0.5), keep=True, seed=0):
    """PAFLM: devices send a gradient only if it is large beside the model's last movement; the
    server weights it by samples and staleness. Lu, Liao, Lio, Hui, IEEE Access 8, 2020.

    x (d,), version t. Device i: g_i (d,), the gradients that it has not sent yet, and the last two
    models that it received, of which `moved` is the difference. Its own model is x - alpha g_i; the
    gradient there, of a batch of B (None: all its samples), is added to g_i. If send(g_i, moved,
    alpha, m = n) says so, it uploads g_i and forgets it, and the server does
    x <- x - alpha s_i p(staleness) g_i, t <- t + 1, with s_i = n_i / mean(n).
    Per visit: down x = 4d B; up g_i = 4d B, or an 8 B notice. Yields once per visit.
    send = at_random(1.0) is asynchronous SGD with the same weights.

    The paper could not be had; its test is that of lazily aggregated gradients, and a later paper
    with the same symbols confirms which way it goes in Omega. That a device which does not send
    goes on training, with gradients that add up, is our reading (keep=False: they are dropped); so
    are the form of p, for which a public implementation has a^(staleness / n - 1), and that the two
    models are those that the device received, not the server's last two versions.
    """
    x, t = task.init(), 0  # (d,)
    g = torch.zeros(task.n, len(x), dtype=x.dtype)  # (n, d)
    s = task.sizes / task.sizes.mean()
    models, tau, sends, visits = {}, {}, {}, 0
    flight = InFlight(task, batch_gradients, B=B)

    def up(i):
        g[i] += flight.result(i)
        before, now = models[i]
        sends[i] = send(g[i], now - before, alpha, task.n, seed, i, visits)
        return g[i] if sends[i] else 0.0

    yield x, {"sent": 0.0}
    for i, j in world.arrivals(x, up, work(task, np.arange(task.n), B=B, K=1)):
        if i is not None:
            if sends[i]:
                x, t = x - alpha * s[i] * p(t - tau[i]) * g[i], t + 1
            if sends[i] or not keep:
                g[i] = 0
            yield x, {"sent": float(sends[i])}
            visits += 1
        models[j], tau[j] = (models.get(j, (x, x))[1], x), t
        flight.start(j, x - alpha * g[j], (seed, visits))


def attention(network, x: Tensor, *, rescale: bool = False) -> Tensor:
    """(d,): the model x with its first layer W <- a W, a = softmax |W| over a unit's inputs. Chen
    et al., IEEE Big Data 2020. rescale: times the number of inputs, so that equal |W| stay."""
    W = network.views(x)[0].flatten(1)  # (out, in)
    a = torch.softmax(W.abs(), 1) * (W.shape[1] if rescale else 1)
    return torch.cat([(a * W).flatten(), x[W.numel() :]])


def decayed(task, chosen, X, *, g, h, rate, eta, lam, beta, newest, B, E, K, seed) -> Tensor:
    """(k, d): ASO-Fed's local steps from X (k, d). g, h (n, d) are updated in place."""
    rows, weight, steps = schedule(task, chosen, B=B, E=E, K=K, seed=seed)
    order = np.argsort(-steps, kind="stable")  # the longest first: those at work are a prefix
    i, X, rows, weight = np.asarray(chosen)[order], X[order], rows[order], weight[order]
    Y, G, H, step = X.clone(), g[i], h[i], eta * rate[i, None]
    for k in range(steps.max(initial=0)):
        m = (steps > k).sum()
        s = gradients_on(task, Y[:m], rows[:m, k], weight[:m, k]) + lam * (Y[:m] - X[:m])
        Y[:m] -= step[:m] * (s - G[:m] + H[:m])
        H[:m] = beta * H[:m] + (1 - beta) * (s if newest else G[:m])
        G[:m] = s
    g[i], h[i] = G, H
    return Y[np.argsort(order)]


def aso_fed(
    task,
    world,
    *,
    B,
    eta,
    E=None,
    K=None,
    lam=1.0,
    beta=0.001,
    newest=False,
    copies=True,
    dynamic=True,
    feature=None,
    seed=0,
):
    """ASO-Fed: asynchronous steps of FedAvg's size on data that stream in, with decayed gradients.
    Chen, Ning, Slawski, Rangwala, IEEE Big Data 2020.

    Server: x (d,), version t, and y_i (d,), the last model that each device uploaded, at first x.
    Device i keeps g_i, h_i (d,) between visits, from 0. It runs E epochs (or K steps) from the x
    that it was sent on the data that it holds then:
    s = grad F_i(y) + lam (y - x);  y <- y - r_i eta (s - g_i + h_i);
    h_i <- beta h_i + (1 - beta) g_i;  g_i <- s.    Server: x <- x - (n_i / n) (y_i - y), y_i <- y,
    for the samples n_i that there are by now. r_i (rate) = max(1, log mean delay), in versions
    between the device's visits. Per visit: down x = 4d B, up y = 4d B. Yields once per arrival.
    lam, beta: recalled from the paper. Where all devices deliver from one x, the result is
    FedAvg's. x = sum_i (n_i / n) y_i at all times, for constant shares n_i / n.

    Public implementations differ. copies=False, in two of them: y_i is the model that the device
    was sent. newest=True, in one of three: h_i takes in s instead of g_i; then beta = lam = 0 and
    dynamic=False (r = 1) leave SGD as the local steps. One of them corrects the steps once a visit.
    feature: a function (network, x) -> x that the server applies to each new model: `attention` in
    the paper, which shrinks the first layer by its number of inputs at each arrival; hence not the
    default.
    """
    x, t = task.init(), 0  # (d,)
    y = x.repeat(task.n, 1)  # (n, d)
    g, h, rate = torch.zeros_like(y), torch.zeros_like(y), torch.ones(task.n, dtype=x.dtype)
    tau, delay, visits = np.zeros(task.n, int), np.zeros(task.n), np.zeros(task.n)
    how = dict(eta=eta, lam=lam, beta=beta, newest=newest, B=B, E=E, K=K)
    flight = InFlight(task, decayed, g=g, h=h, rate=rate, **how)
    flops = work(task, np.arange(task.n), B=B, E=E, K=K)
    yield x, {"staleness": 0}
    for i, j in world.arrivals(x, x, flops):
        if i is not None:
            new, share, staleness = flight.result(i), task.sizes[i] / task.sizes.sum(), t - tau[i]
            x, y[i], t = x - share * (y[i] - new), new, t + 1
            x = x if feature is None else feature(task.network, x)
            delay[i], visits[i] = delay[i] + t - tau[i], visits[i] + 1
            rate[i] = max(1.0, np.log(delay[i] / visits[i])) if dynamic else 1.0
            yield x, {"staleness": staleness}
        flight.start(j, x, (seed, t))
        y[j] = y[j] if copies else x
        tau[j], flops[j] = t, work(task, [j], B=B, E=E, K=K)[0]  # its data may have grown
