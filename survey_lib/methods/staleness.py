"""Asynchronous gradients: penalties of age, step sizes from gradient statistics, momentum."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from survey_lib.methods.server_async import reciprocal, sasgd
from survey_lib.streams import uniform
from survey_lib.training import InFlight, batch_gradients, work

State = tuple  # what a spread remembers


def geometric(lam: float) -> Callable[[int], float]:
    """s(d) = lam^d, which is 1 at d = 0 also for lam = 0. Chan, Lane, Interspeech 2014."""
    return partial(_geometric, lam=lam)


def _geometric(d, lam):
    return float(lam) ** d


def exp_penalty(task, world, *, eta, B, lam=0.9, seed=0):
    """Asynchronous SGD in which a gradient's weight falls exponentially with its age. Chan, Lane,
    Interspeech 2014.

    x <- x - eta lam^d g for a gradient g that is d versions old: `sasgd` with s = geometric(lam).
    lam = 1 is asynchronous SGD; lam = 0 uses fresh gradients only. Yields once per gradient, with
    its weight. In turn (equal devices) d = n - 1 after the first sweep, so that it is asynchronous
    SGD with the step eta lam^(n - 1). The paper could not be had: that the penalty is exponential
    is what later papers say of it; the base, and an exponent of d itself, are ours.
    """
    s = geometric(lam)
    for x, extra in sasgd(task, world, alpha_0=eta, B=B, s=s, seed=seed):
        yield x, extra | {"weight": s(extra["staleness"])}


def deviation(
    gamma: float = 0.9,
    beta: float = 0.9,
    eps: float = 1e-4,
    *,
    inverted: bool = False,
    correct: bool = False,
) -> Callable[[Tensor, State | None], tuple[Tensor, State]]:
    """FASGD's moving standard deviation v of each entry of the gradient, from (g, state) to (v,
    state), all from 0:

    m <- gamma m + (1 - gamma) g^2,   b <- gamma b + (1 - gamma) g,
    v <- beta v + (1 - beta) sqrt(m - b^2 + eps).

    inverted: 1 / sqrt in the last line, as the paper prints it; since it also divides the step by
    v, that multiplies by the deviation, against its own words. correct: m, b and v are divided by
    what is missing from them after k gradients, 1 - gamma^k or 1 - beta^k; not in the paper.
    """
    how = dict(gamma=gamma, beta=beta, eps=eps, inverted=inverted, correct=correct)
    return partial(_deviation, **how)


def _deviation(g, state, gamma, beta, eps, inverted, correct):
    m, b, v, k = state or (*(torch.zeros_like(g),) * 3, 0)
    m, b, k = gamma * m + (1 - gamma) * g.square(), gamma * b + (1 - gamma) * g, k + 1
    there, of_v = (1 - gamma**k, 1 - beta**k) if correct else (1.0, 1.0)
    sd = (m / there - (b / there).square() + eps).sqrt()
    v = beta * v + (1 - beta) * (1 / sd if inverted else sd)
    return v / of_v, (m, b, v, k)


def magnitude(decay: float = 0.9, eps: float = 1e-3):
    """The rule of the author's code in place of `deviation`: m <- decay m + (1 - decay) |g|, v = m
    + eps. The code divides by staleness + 1: s = polynomial(1.0)."""
    return partial(_magnitude, decay=decay, eps=eps)


def _magnitude(g, state, decay, eps):
    m = decay * (state[0] if state else 0.0) + (1 - decay) * g.abs()
    return m + eps, (m,)


def chance(c: float, v: float) -> float:
    """Probability of a transfer, 1 / (1 + c / (v + eps)), eps = 1e-4 as in the author's code."""
    return 1 / (1 + c / (v + 1e-4))


def fasgd(
    task,
    world,
    *,
    alpha,
    B,
    spread=None,
    s=reciprocal,
    c_fetch=0.0,
    c_push=0.0,
    seed=0,
):
    """FASGD: each entry's step is divided by staleness and by a moving deviation of the gradient.
    Odena, arXiv 1601.04033, 2016; with c_fetch, c_push: B-FASGD, which also skips transfers.

    Server: x (d,), version t, and the state of `spread` (default: deviation()). On a gradient g
    of age d: v from spread, x <- x - alpha s(d) g / v, s(d) = 1 / d. s = constant(): without the
    staleness, much like RMSProp; v = 1 would be sasgd.
    B-FASGD: vbar, the mean of v, is told to a device at each visit. The device fetches x with
    probability chance(c_fetch, vbar), else it computes at the x that it holds; it pushes g with
    probability chance(c_push, vbar), else the server applies its last pushed gradient once more.
    The first fetch and push of a device are always made. c = 0 never skips.
    Per visit: down x = 4d B (and vbar, 8 B, if c_push); up g = 4d B, or an 8 B notice. A skipped
    fetch is charged as if it were made: `fetched` and `pushed` say which share is. Yields once
    per visit.

    The printed formula divides twice, see `deviation`. v begins at 0, so that the first steps are
    long: a tenth of the deviation stands in v after one gradient. In the author's code a device
    that skipped a fetch counts as up to date; here it is as stale as the model that it holds.
    """
    x, t, state, vbar, visits = task.init(), 0, None, 1.0, 0  # (d,); vbar = 1 as in the code
    spread = spread or deviation()
    held, told, last = {}, {}, {}  # of device i: (x, version), vbar, (gradient, its version)
    fetched, pushed = np.ones(task.n), np.ones(task.n)  # did its visit?
    flight = InFlight(task, batch_gradients, B=B)

    def drawn(i, c, v, what):
        return not c or uniform(np.array([i]), seed, what, visits)[0] < chance(c, v)

    def up(i):
        pushed[i] = i not in last or drawn(i, c_push, told[i], "push")
        if pushed[i]:
            last[i] = flight.result(i), held[i][1]
        return last[i][0] if pushed[i] else 0.0

    yield x, {"staleness": 0, "fetched": 1.0, "pushed": 1.0}
    down = (x, vbar) if c_push else x
    for i, j in world.arrivals(down, up, work(task, np.arange(task.n), B=B, K=1)):
        if i is not None:
            g, version = last[i]
            v, state = spread(g, state)
            x, d, vbar = x - alpha * s(t - version) * g / v, t - version, v.mean().item()
            t, visits = t + 1, visits + 1
            yield x, {"staleness": d, "fetched": fetched[i], "pushed": pushed[i]}
        fetched[j] = j not in held or drawn(j, c_fetch, vbar, "fetch")
        if fetched[j]:
            held[j] = x, t
        told[j] = vbar
        flight.start(j, held[j][0], (seed, visits))


def dana(task, world, *, eta, B, gamma=0.9, own=True, ahead=True, lam=0.0, seed=0):
    """DANA-Zero: a momentum per device, and gradients at an estimate of the parameters to come.
    Hakimi, Barkai, Gabel, Schuster, arXiv 1907.11612, 2019.

    Server: x (d,); v_i (d,) for each device, row i of v (n, d); their sum. On a gradient g of i:
    v_i <- gamma v_i + g;   x <- x - eta v_i;   send back x - eta gamma sum_j v_j, where x will be
    when each device has reported once more, if all new gradients were 0.
    Per gradient: down 4d B, up g = 4d B. Yields x once per gradient, with its staleness and its gap
    ||x - x_i|| / sqrt(d), x_i the model at which it was computed.
    own=False: one v for all. ahead=False: send back x. Without own: NAG-ASGD, without ahead:
    Multi-ASGD, with neither: heavy ball. lam: DANA-DC, g + lam g^2 (x - x_i) in place of g.
    gamma = 0: asynchronous SGD, for all of them. One device: Nesterov's momentum. The rescaling of
    v when eta changes is left out: eta is constant here.
    """
    x, t = task.init(), 0  # (d,)
    v, total = x.new_zeros(task.n if own else 1, task.d), torch.zeros_like(x)
    flight, sent, tau = InFlight(task, batch_gradients, B=B), {}, {}
    yield x, {"staleness": 0, "gap": 0.0}
    for i, j in world.arrivals(x, x, work(task, np.arange(task.n), B=B, K=1)):
        if i is not None:
            g, moved, k = flight.result(i), x - sent[i], i if own else 0
            new = gamma * v[k] + g + lam * g.square() * moved
            total, v[k] = total + new - v[k], new
            x, t = x - eta * new, t + 1
            yield x, {"staleness": t - 1 - tau[i], "gap": moved.norm().item() / task.d**0.5}
        sent[j], tau[j] = x - eta * gamma * total if ahead else x, t
        flight.start(j, sent[j], (seed, t))


def dana_slim(task, world, *, eta, B, gamma=0.9, seed=0):
    """DANA-Slim: DANA-Zero with the momenta at the devices and a server that only adds. Hakimi,
    Barkai, Gabel, Schuster, arXiv 1907.11612, 2019.

    Server: X (d,), which stands for DANA-Zero's x - eta gamma sum_j v_j. Device i: v_i (d,).
    v_i <- gamma v_i + g;  up gamma v_i + g = 4d B;  X <- X - eta (gamma v_i + g);  down X = 4d B.
    Yields X: evaluated, it is ahead of DANA-Zero's x, as Nesterov's look-ahead point is.
    """
    X, t = task.init(), 0  # (d,)
    v = X.new_zeros(task.n, task.d)  # (n, d)
    flight = InFlight(task, batch_gradients, B=B)
    yield X
    for i, j in world.arrivals(X, X, work(task, np.arange(task.n), B=B, K=1)):
        if i is not None:
            g = flight.result(i)
            v[i] = gamma * v[i] + g
            X, t = X - eta * (gamma * v[i] + g), t + 1
            yield X
        flight.start(j, X, (seed, t))
