"""Asynchronous training around a parameter server."""

from collections.abc import Callable
from functools import partial

import numpy as np

from survey_lib.training import InFlight, work


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
        tau[j] = t
