"""Compressors of the rows of a matrix. Each returns (what is sent, what the receiver makes of it).

A compressor is a function (V (n, d), *key) -> (sent, dense): `sent` is a tuple of tensors with n
leading rows, from which the world weighs the bytes; `dense` (n, d) is the receiver's
reconstruction. Quality omega: E||Q(v) - v||^2 <= (1 - omega) ||v||^2.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from survey_lib.errors import UsageError
from survey_lib.streams import stream

Compressor = Callable[..., tuple[tuple[Tensor, ...], Tensor]]


def identity(V: Tensor, *key) -> tuple[tuple[Tensor, ...], Tensor]:
    """Everything is sent; omega = 1."""
    return (V,), V


def top_k(fraction: float) -> Compressor:
    """The k = fraction d entries of largest magnitude, 8 bytes each (4 index, 4 value); omega >= k
    / d."""
    return partial(_top_k, fraction=_share(fraction))


def rand_k(fraction: float) -> Compressor:
    """k = fraction d entries drawn anew for each row, unscaled; omega = k / d. 8 bytes each."""
    return partial(_rand_k, fraction=_share(fraction))


def _share(fraction):
    if not 0 < fraction <= 1:
        raise UsageError(f"fraction = {fraction} of the entries; expected above 0, at most 1")
    return fraction


def _top_k(V, *key, fraction):
    k = max(1, round(fraction * V.shape[1]))
    return _sparse(V, V.abs().topk(k, dim=1).indices)


def _rand_k(V, *key, fraction):
    k = max(1, round(fraction * V.shape[1]))
    rng = stream("rand_k", *key)
    return _sparse(V, torch.stack([torch.from_numpy(rng.permutation(V.shape[1])[:k]) for _ in V]))


def _sparse(V, index):
    value = V.gather(1, index)
    return (index.int(), value), torch.zeros_like(V).scatter_(1, index, value)
