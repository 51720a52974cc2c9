"""Compressors of rows: what they keep, what they send, and their quality omega."""

import pytest
import torch
from conftest import close

from survey_lib.compression import identity, rand_k, top_k
from survey_lib.errors import UsageError
from survey_lib.world import weigh


def rows(n, d, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(n * d), dtype=dtype)


def loss(V, dense):
    """(n,): ||Q(v) - v||^2 / ||v||^2."""
    return (dense - V).square().sum(1) / V.square().sum(1)


def test_identity_sends_the_rows_as_they_are():
    V = rows(4, 9, torch.float32)
    sent, dense = identity(V, "any", "key")
    assert torch.equal(dense, V) and weigh(sent) == 4 * 4 * 9


def test_top_k_by_hand():
    V = torch.tensor([[1.0, -5.0, 3.0, 0.0, -4.0], [0.1, 0.0, 0.3, 0.2, -0.4]])
    (index, value), dense = top_k(0.4)(V)
    want = torch.tensor([[0.0, -5.0, 0.0, 0.0, -4.0], [0.0, 0.0, 0.3, 0.0, -0.4]])
    assert torch.equal(dense, want)
    assert [set(i) for i in index.tolist()] == [{1, 4}, {2, 4}]
    assert torch.equal(value, V.gather(1, index.long()))


@pytest.mark.parametrize("Q", [top_k, rand_k])
@pytest.mark.parametrize(
    ("fraction", "kept"), [(0.01, 1), (0.1, 5), (0.33, 16), (0.5, 25), (1, 50)]
)
def test_what_is_sent_rebuilds_the_rows_at_8_bytes_an_entry(Q, fraction, kept):
    V = rows(6, 50, torch.float32)
    (index, value), dense = Q(fraction)(V, 0, "r")
    assert index.shape == value.shape == (6, kept)
    assert weigh((index, value)) == 8 * 6 * kept
    assert all(len(set(i)) == kept for i in index.tolist())  # without replacement
    assert torch.equal(torch.zeros_like(V).scatter(1, index.long(), value), dense)
    assert ((dense == V) | (dense == 0)).all()
    if fraction == 1:
        assert torch.equal(dense, V)


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.8])
def test_rand_k_loses_1_minus_k_over_d_on_average(fraction):
    """E ||Q(v) - v||^2 = (1 - k/d) ||v||^2, for one v and over the draws."""
    d, draws = 20, 4000
    V = rows(1, d).expand(draws, d)
    lost = loss(V, rand_k(fraction)(V, "mean")[1])
    error = lost.std().item() / draws**0.5
    assert lost.mean().item() == pytest.approx(1 - fraction, abs=4 * error)
    kept = (rand_k(fraction)(torch.ones(draws, d), "mean")[1]).mean(0)  # every entry alike
    tolerance = 4.5 * (fraction * (1 - fraction) / draws) ** 0.5
    close(kept, torch.full((d,), float(fraction)), atol=tolerance)


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.8])
def test_top_k_loses_no_more_and_never_more_than_rand_k(fraction):
    V = rows(500, 20)
    top = loss(V, top_k(fraction)(V)[1])
    assert (top <= 1 - fraction + 1e-12).all()
    assert (top <= loss(V, rand_k(fraction)(V, 1)[1]) + 1e-12).all()
    flat = torch.ones(1, 20)  # equality where all entries are alike
    assert loss(flat, top_k(fraction)(flat)[1]).item() == pytest.approx(1 - fraction, abs=1e-6)


def test_rand_k_draws_are_keyed_and_differ_between_rows():
    V, Q = rows(8, 40), rand_k(0.25)
    assert torch.equal(Q(V, 0, 1)[1], Q(V, 0, 1)[1])
    assert not torch.equal(Q(V, 0, 1)[1], Q(V, 0, 2)[1])
    masks = {tuple(sorted(i)) for i in Q(V, 0, 1)[0][0].tolist()}
    assert len(masks) == 8


def test_compressors_leave_input_and_global_generator_alone():
    V = rows(3, 10)
    before, state = V.clone(), torch.random.get_rng_state()
    for Q in (top_k(0.2), rand_k(0.2)):
        _, dense = Q(V, 0)
        dense.zero_()
    assert torch.equal(V, before) and torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan")])
@pytest.mark.parametrize("Q", [top_k, rand_k])
def test_a_fraction_outside_0_to_1_is_refused(Q, fraction):
    with pytest.raises(UsageError, match="fraction"):
        Q(fraction)
