"""Soft labels on a grid and their coder."""

import itertools
from math import comb, log2

import numpy as np
import pytest
import torch

from survey_lib.soft_labels import PLAIN, decode, encode, number, point, points, quantise


def grid(b, C):
    every = itertools.product(range(2**b), repeat=C)
    return torch.tensor([q for q in every if sum(q) == 2**b - 1])


def random_labels(*shape, seed=0):
    z = 3 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.softmax(z, -1)


@pytest.mark.parametrize("b, C", [(1, 3), (2, 3), (3, 3), (2, 5)])
def test_the_nearest_point_of_the_grid(b, C):
    """Brute force over all points: none is nearer in the sum of absolute differences."""
    p, every = random_labels(200, C), grid(b, C)
    q, levels = quantise(p, b), 2**b - 1
    assert (q.sum(-1) == levels).all() and (q >= 0).all()
    distance = (p[:, None] - every / levels).abs().sum(-1)
    own = (p - q / levels).abs().sum(-1)
    torch.testing.assert_close(own, distance.amin(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("b, C", [(1, 10), (2, 4), (8, 10)])
def test_what_is_on_the_grid_stays(b, C, dtype):
    q = quantise(random_labels(100, C), b)
    again = quantise((q / (2**b - 1)).to(dtype), b)
    assert torch.equal(q, again)


def test_one_bit_is_the_class():
    p = random_labels(100, 10)
    assert torch.equal(quantise(p, 1), torch.nn.functional.one_hot(p.argmax(-1), 10))
    assert points(1, 10) == 10  # log2 C bits
    assert quantise(torch.full((4,), 0.25), 1).tolist() == [1, 0, 0, 0]  # a tie: the first


@pytest.mark.parametrize("b, C", [(1, 10), (2, 3), (3, 4)])
def test_points_are_numbered(b, C):
    every = grid(b, C)
    assert len(every) == points(b, C) == comb(2**b - 1 + C - 1, C - 1)
    numbers = number(every)
    assert sorted(numbers.tolist()) == list(range(points(b, C)))
    assert torch.equal(point(numbers, b, C), every)


def test_eight_bits_and_ten_classes():
    q = quantise(random_labels(3, 40, 10), 8)
    numbers = number(q)
    assert numbers.shape == (3, 40) and numbers.min() >= 0 and numbers.max() < points(8, 10)
    assert torch.equal(point(numbers, 8, 10), q)


@pytest.mark.parametrize("b, C", [(1, 10), (2, 10), (8, 10), (2, 3)])
@pytest.mark.parametrize("changes", [0, 1, 7, 60])
def test_the_decoder_gives_the_labels_back(b, C, changes):
    N, m = points(b, C), 60
    before = number(quantise(random_labels(m, C), b))
    numbers = before.copy()
    rng = np.random.default_rng(changes)
    some = rng.permutation(m)[:changes]
    numbers[some] = number(quantise(random_labels(len(some), C, seed=9), b)) if changes else 0
    for old in (before, None):
        assert (decode(encode(numbers, old, N), old, N, m) == numbers).all()
    k = int((numbers != before).sum())
    bits = log2(comb(m, k)) + k * log2(N - 1)
    size = min(bits, m * log2(N))
    assert 8 * (len(encode(numbers, before, N)) - 2) == pytest.approx(np.ceil(size / 8) * 8, abs=8)


def test_sizes():
    """All labels: m log2 N bits; unchanged ones cost nothing but the count."""
    labels = np.arange(300) % 10
    assert len(encode(labels, None, 10)) == 2 + int(np.ceil(300 * log2(10) / 8))
    assert encode(labels, labels, 10) == bytes(2)
    other = (labels + 1) % 10
    assert encode(other, labels, 10)[:2] == (300).to_bytes(2, "big")  # 9 values each, not 10
    few = labels.copy()
    few[:30] = other[:30]
    share = 0.1  # h(p) + p log2(C - 1) bits a label, but for the order of log m
    entropy = -share * log2(share) - (1 - share) * log2(1 - share) + share * log2(9)
    assert len(encode(few, labels, 10)) == pytest.approx(2 + 300 * entropy / 8, abs=2)
    assert PLAIN == 65535
