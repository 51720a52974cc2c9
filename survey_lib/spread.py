"""Distributions of speeds and computing times: functions of uniform numbers, so that draws are
keyed by who draws them."""

from collections.abc import Callable
from functools import partial

import numpy as np
from scipy.special import ndtri

from survey_lib.errors import UsageError

Draw = Callable[[np.ndarray], np.ndarray]  # uniform numbers -> positive factors


def lognormal(sigma: float) -> Draw:
    """Factors exp(sigma N(0, 1)): median 1."""
    return partial(_lognormal, sigma=sigma)


def loguniform(factor: float) -> Draw:
    """Factors log-uniform from 1 to 1 / factor: the slowest device is `factor` times slower."""
    return partial(_loguniform, factor=factor)


def exponential() -> Draw:
    """Exponential factors of mean 1."""
    return _exponential


def pareto(a: float) -> Draw:
    """Pareto factors of index a, at least 1: heavy tails, with infinite variance for a <= 2."""
    return partial(_pareto, a=a)


def one_slow(share: float, factor: float) -> Draw:
    """A share of the devices is `factor` times slower."""
    return partial(_one_slow, share=share, factor=factor)


def _lognormal(u, sigma):
    return np.exp(sigma * ndtri(u))


def _loguniform(u, factor):
    return factor**-u


def _exponential(u):
    return -np.log1p(-u)


def _pareto(u, a):
    return (1 - u) ** (-1 / a)


def _one_slow(u, share, factor):
    return np.where(u < share, 1 / factor, 1.0)


def shuffled(*factors: float) -> Draw:
    """These factors, one for each device, in an order that the seed draws."""
    return partial(_shuffled, factors=factors)


def _shuffled(u, factors):
    if len(u) != len(factors):
        raise UsageError(f"{len(factors)} factors for {len(u)} devices; give one for each")
    return np.array(factors, float)[np.argsort(np.argsort(u))]
