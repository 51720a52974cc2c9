"""The Gaussian multiple-access channel."""

import numpy as np
import pytest
import torch
from conftest import close
from scipy import stats

from survey_lib.channel import analog, capacity, digital, some_entries


def vectors(k=4, m=6, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).random((k, m)))


def estimate(scheme, V, *how):
    _, parts, noise = scheme(V, *how)
    return parts.sum(0) + noise


@pytest.mark.parametrize("scheme", [analog, digital])
def test_without_noise_the_sum_is_exact(scheme):
    V = vectors()
    close(estimate(scheme, V, 10**6, np.inf, 0), V.sum(0))


@pytest.mark.parametrize("uses", [6, 20, 600])
def test_noise_over_the_air(uses):
    """Unbiased, with variance N0 max ||v||^2 / (P T) per entry, however often it is repeated:
    chi-square of 4000 rounds of 6 entries, and 4 standard errors of the mean."""
    V, snr = vectors(), 0.5
    gaps = torch.stack([estimate(analog, V, uses, snr, r) for r in range(4000)]) - V.sum(0)
    variance = V.square().sum(1).max().item() / (snr * uses)
    assert (gaps.mean(0).abs() < 4 * (variance / 4000) ** 0.5).all()
    total = gaps.square().sum().item() / variance
    assert 0.001 < stats.chi2.cdf(total, 24000) < 0.999


def test_repeating_over_the_air_by_hand():
    """r receptions of g v_i + z with g = sqrt(P T / r) / max ||v||: the mean over g has variance N0
    / (r g^2), and the device of the longest vector spends P T."""
    V, T, P, N0 = vectors(), 18, 2.0, 3.0
    r = T // V.shape[1]
    longest = V.norm(dim=1).max().item()
    g = (P * T / r) ** 0.5 / longest
    assert N0 / (r * g * g) == pytest.approx(longest**2 * N0 / (P * T))
    spent = r * g * g * V.square().sum(1)
    assert spent.max().item() == pytest.approx(P * T)


@pytest.mark.parametrize("uses", [3, 6, 20])
def test_nobody_spends_more_than_its_energy(uses):
    """The noise over the air is z / (g sqrt(r)) for N0 = 1, and device i spends r g^2 ||sent_i||^2
    = ||sent_i||^2 / (noise / z)^2: the one of the longest vector P T. A vector of length 1 at P T =
    1 has g sqrt(r) = 1, so that its noise is z."""
    V, snr = vectors(), 0.5
    unit = torch.eye(1, V.shape[1]).double()
    z = analog(unit, V.shape[1], 1 / V.shape[1], 0)[2]
    sent, _, noise = analog(V, uses, snr, 0)
    there = ~noise.isnan()
    assert sent.shape == (4, there.sum()) and there.sum() == min(uses, V.shape[1])
    for ratio in noise[there] / z[there]:
        spent = sent.square().sum(1) / ratio**2
        assert spent.max().item() == pytest.approx(snr * uses)


def test_digital_rate():
    """R = T / (2 k) log2(1 + k snr): by hand, and linear in T."""
    assert capacity(1000, 10.0, 10) == np.floor(1000 / 20 * np.log2(101)) == 332
    assert capacity(2000, 10.0, 10) - 2 * capacity(1000, 10.0, 10) in (0, 1)
    assert capacity(100, 0.0, 5) == 0 and capacity(100, np.inf, 5) == np.inf


@pytest.mark.parametrize("uses", [40, 100, 400, 4000])
def test_digital_keeps_to_its_rate(uses):
    V, snr = vectors(k=5, m=12), 3.0
    R = capacity(uses, snr, 5)
    sent, parts, noise = digital(V, uses, snr, 0)
    there = ~noise.isnan()
    assert sent.shape[0] == 5
    if R < 12:
        assert there.sum() == R and set(parts[:, there].unique().tolist()) <= {0.0, 1.0}
        assert 8 * sent.shape[1] < R + 8
    else:
        b = int(min(R // 12, 32))
        assert there.all() and b * 12 <= R
        assert (parts - V).abs().max() <= 0.5 / (2**b - 1) + 1e-12
        if b < 32:
            assert 8 * sent.shape[1] < b * 12 + 8
            steps = parts * (2**b - 1)
            close(steps, steps.round(), 1e-6)


def test_whole_numbers_fit_into_the_rate():
    """R = 1000 / (2 5) log2(1 + 5 3) = 400 bits, 33 for each of 12 entries, which need 32."""
    V = vectors(k=5, m=12).float()
    sent, parts, _ = digital(V, 1000, 3.0, 0)
    assert capacity(1000, 3.0, 5) == 400 and 8 * sent[0].nbytes == 32 * 12
    assert torch.equal(parts, V)


def test_counts_survive_any_number_of_bits():
    """0 and 1 are on every grid."""
    V = (vectors(k=5, m=12) > 0.5).double()
    for uses in (100, 400, 4000):
        _, parts, _ = digital(V, uses, 3.0, 0)
        close(parts, V)


@pytest.mark.parametrize("scheme", [analog, digital])
def test_few_uses_carry_some_entries(scheme):
    """Others in other rounds, and all in the long run; without any use nothing is sent."""
    V, heard = vectors(m=40), torch.zeros(40, dtype=torch.bool)
    for r in range(30):
        sent, _, noise = scheme(V, 20, 3.0, r)
        there = ~noise.isnan()
        assert 0 < there.sum() <= 20
        if scheme is analog:
            assert there.sum() == 20 and sent.shape == (4, 20)
        heard |= there
    assert heard.all()
    assert scheme(V, 0, 3.0, 0)[2].isnan().all()
    assert torch.equal(some_entries(40, 40, 0), torch.ones(40, dtype=torch.bool))


@pytest.mark.parametrize("scheme", [analog, digital])
def test_nobody_sends(scheme):
    sent, parts, _ = scheme(torch.zeros(0, 6).double(), 100, 3.0, 0)
    assert len(sent) == len(parts) == 0


def test_same_round_same_noise():
    V = vectors()
    a, b, c = (estimate(analog, V, 60, 1.0, *key) for key in ((0, 1), (0, 1), (0, 2)))
    assert torch.equal(a, b) and not torch.equal(a, c)
