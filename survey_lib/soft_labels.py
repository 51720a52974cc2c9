"""Soft labels on a grid, and the bits in which they are sent. Sattler et al., arXiv 2012.00632,
2020.

With b bits the grid is all (q_1 .. q_C) of whole numbers that sum to 2^b - 1, one of N = binom(2^b
- 1 + C - 1, C - 1) points, numbered from 0. b = 1: a single 1, the class.
"""

from functools import cache
from math import comb

import numpy as np
import torch
from torch import Tensor

PLAIN = 2**16 - 1  # in place of the number of changes: all labels follow, not what changed


def quantise(p: Tensor, b: int) -> Tensor:
    """(..., C) whole numbers: the point of the grid nearest to p (..., C), in the sum of absolute
    differences (largest remainders). Of equal remainders the first class is rounded up."""
    levels = 2**b - 1
    scaled = p.double() * levels
    low = (scaled + 1e-9).floor()  # what is on the grid stays
    order = (low - scaled).sort(dim=-1, stable=True).indices  # the largest remainder first
    short = levels - low.sum(-1, keepdim=True)
    extra = torch.zeros_like(low).scatter_(
        -1, order, (torch.arange(p.shape[-1]) < short).to(low.dtype)
    )
    return (low + extra).long()


def points(b: int, C: int) -> int:
    """N: how many points the grid has."""
    return comb(2**b - 1 + C - 1, C - 1)


def number(q: Tensor) -> np.ndarray:
    """(...,): the number of each point q (..., C) of the grid, by its C - 1 bars between stars."""
    q = q.numpy()
    C = q.shape[-1]
    bars = q[..., :-1].cumsum(-1) + np.arange(C - 1)
    return _choose(int(q.reshape(-1, C)[0].sum()) + C, C)[bars, np.arange(1, C)].sum(-1)


def point(numbers: np.ndarray, b: int, C: int) -> Tensor:
    """(..., C): the points of the grid with these numbers, the inverse of `number`."""
    table, left = _choose(2**b - 1 + C, C), np.array(numbers)
    bars = np.full((*left.shape, C), 2**b + C - 2)
    for j in range(C - 1, 0, -1):
        bars[..., j - 1] = np.searchsorted(table[:, j], left, side="right") - 1
        left = left - table[bars[..., j - 1], j]
    return torch.from_numpy(np.diff(bars, prepend=-1, axis=-1) - 1)


@cache
def _choose(rows, columns):
    return np.array([[comb(a, j) for j in range(columns)] for a in range(rows)])


def encode(numbers: np.ndarray, before: np.ndarray | None, N: int) -> bytes:
    """The labels' numbers (m,) below N as one whole number, in as few bytes as it has, behind two
    that say how many differ from those of `before`: which ones (of binom(m, k) sets) and their new
    numbers (of N - 1); or, if this is shorter or nothing was before, all of them (of N)."""
    m = len(numbers)
    if before is not None:
        (changed,) = np.nonzero(numbers != before)
        k = len(changed)
        if comb(m, k) * (N - 1) ** k <= N**m:
            new = numbers[changed] - (numbers > before)[changed]
            which = sum(comb(a, j + 1) for j, a in enumerate(changed.tolist()))
            return _bytes(k, which * (N - 1) ** k + _joined(new, N - 1), comb(m, k) * (N - 1) ** k)
    return _bytes(PLAIN, _joined(numbers, N), N**m)


def decode(message: bytes, before: np.ndarray | None, N: int, m: int) -> np.ndarray:
    """(m,): the numbers of the labels, the inverse of `encode`."""
    k, value = int.from_bytes(message[:2], "big"), int.from_bytes(message[2:], "big")
    if k == PLAIN:
        return _split(value, N, m)
    which, value = divmod(value, (N - 1) ** k)
    new, numbers = _split(value, N - 1, k), np.array(before)
    a = m
    for j in range(k, 0, -1):  # the last change first
        a = next(c for c in range(a - 1, -1, -1) if comb(c, j) <= which)
        which -= comb(a, j)
        numbers[a] = new[j - 1] + (new[j - 1] >= before[a])
    return numbers


def _bytes(head, value, values):
    return head.to_bytes(2, "big") + value.to_bytes(((values - 1).bit_length() + 7) // 8, "big")


def _joined(numbers, N):
    value = 0
    for v in numbers.tolist():
        value = value * N + v
    return value


def _split(value, N, m):
    numbers = np.zeros(m, int)
    for j in range(m - 1, -1, -1):
        value, numbers[j] = divmod(value, N)
    return numbers
