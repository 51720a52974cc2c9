"""False discoveries: t and p from a ledger's intervals by hand, the correction, all claims null."""

import math

import numpy as np
import pandas as pd
import pytest

from survey_lib.evidence import discoveries as chance
from survey_lib.evidence import judge
from survey_lib.evidence.discoveries import LEVEL, discoveries, sentence
from survey_lib.tables import claim
from survey_lib.tables.claims import CLAIMS

# (3, sasgd): points, +1, least -1. (2, choco_sgd): points, +1, least 1. (2, d_psgd): x, -1, least 2
HALF = 12.706204736432095 * 0.1  # two seeds: t(0.975, 1) = tan(0.475 pi), standard error 0.1


def line(table, method, effect, half, *, seeds=2, verdict="supported", ratio=False):
    low, high = effect - half, effect + half
    scale = math.exp if ratio else float
    figures = dict(effect=scale(effect), ci_low=scale(low), ci_high=scale(high))
    return dict(table=table, row="1", method=method, seeds=seeds, verdict=verdict) | figures


def test_t_and_p_by_hand_for_a_difference_and_a_ratio():
    # 1.2 is two standard errors above the least effect 1; with one degree of freedom t is Cauchy:
    # P(T > 2) = 1/2 - arctan(2) / pi. The factor exp(-log 2 - 0.2) is as far beyond a half.
    frame = pd.DataFrame(
        [
            line(2, "choco_sgd", 1.2, HALF),
            line(2, "d_psgd", -math.log(2) - 0.2, HALF, ratio=True),
        ]
    )
    t, p = chance.tests(frame, "supported")
    np.testing.assert_allclose(t, 2, rtol=1e-9)
    np.testing.assert_allclose(p, 0.5 - math.atan(2) / math.pi, rtol=1e-9)


def test_each_verdict_has_its_own_threshold_and_side():
    frame = pd.DataFrame([line(2, "choco_sgd", 0.2, HALF), line(3, "sasgd", -1.3, HALF)])
    np.testing.assert_allclose(chance.tests(frame, "supported")[0], [-8, -3])  # least 1 and -1
    np.testing.assert_allclose(chance.tests(frame, "partly")[0], [2, -3])  # zero and the margin
    np.testing.assert_allclose(chance.tests(frame, "contradicted")[0], [-2, 3])


@pytest.mark.parametrize(
    "effect, supported, contradicted",
    [(1.0, 0, 1), (1.5, 0, 1), (0.5, 1, 1), (-0.5, 1, 0)],
)
def test_without_spread_chance_has_no_part(effect, supported, contradicted):
    frame = pd.DataFrame([line(2, "choco_sgd", effect, 0.0), line(2, "choco_sgd", effect, 1e-15)])
    assert chance.tests(frame, "supported")[1].tolist() == [supported] * 2
    assert chance.tests(frame, "contradicted")[1].tolist() == [contradicted] * 2


def test_the_correction_by_hand():
    # p = 0.01, 0.02 and 0.9 of three: Benjamini-Hochberg gives 0.03, 0.03, 0.9. At 2.5 % none of
    # the two that were supported remains
    t = [math.tan(math.pi * (0.5 - p)) for p in (0.01, 0.02, 0.9)]
    verdicts = ("supported", "supported", "inconclusive")
    frame = pd.DataFrame(
        [
            line(2, "choco_sgd", 1 + 0.1 * k, HALF, verdict=v)
            for k, v in zip(t, verdicts, strict=True)
        ]
    )
    found = discoveries(frame)
    np.testing.assert_allclose(found["p"], [0.01, 0.02, 0.9])
    np.testing.assert_allclose(found["adjusted"], [0.03, 0.03, 0.9])
    assert not found["survives"].any()
    said = sentence(frame)
    assert "at most 0.1 of 3 claims" in said and "2 are" in said
    assert "0 of 2 supported (not `choco_sgd` (2, 1), `choco_sgd` (2, 1))" in said
    strong = pd.concat([frame, pd.DataFrame([line(2, "choco_sgd", 2.0, 0.0)] * 3)])
    assert discoveries(strong)["survives"].tolist() == [True, True, False, True, True, True]


def drawn(shift, rng, n):
    """n ledger lines of a claim whose true effect lies `shift` beyond its least, five seeds."""
    stated, rows = claim("choco_sgd", 2), []
    for gaps in rng.normal(stated.least + shift, 1.0, (n, 5)):
        e = judge(stated, dict(enumerate(gaps)), dict.fromkeys(range(5), 0.0))
        figures = dict(effect=e.effect, ci_low=e.low, ci_high=e.high, seeds=5, verdict=e.verdict)
        rows.append(dict(table=2, row="8", method="choco_sgd") | figures)
    return rows


def test_supported_is_p_below_the_level():
    frame = pd.DataFrame(drawn(1.0, np.random.default_rng(0), 200))
    for verdict, held in (("supported", ["supported"]), ("partly", ["supported", "partly"])):
        passed = chance.tests(frame, verdict)[1] < LEVEL
        assert passed.tolist() == frame["verdict"].isin(held).tolist()
        assert 0 < passed.sum() < 200


def test_of_null_claims_the_expected_share_passes_and_the_correction_takes_it_back():
    rng, passed, any_left = np.random.default_rng(1), 0, 0
    for _ in range(40):
        found = discoveries(pd.DataFrame(drawn(0.0, rng, 100)))
        kept = found[found["verdict"] == "supported"]
        passed, any_left = passed + len(kept), any_left + kept["survives"].any()
    # 4000 trials at 2.5 %: mean 100, standard deviation 9.9; 40 families at 2.5 %: mean 1
    assert 70 <= passed <= 130 and any_left <= 5


def test_real_effects_remain_with_few_false_ones_among_them():
    rng, false, kept = np.random.default_rng(2), 0, 0
    for _ in range(40):
        found = discoveries(pd.DataFrame([*drawn(0.0, rng, 50), *drawn(8.0, rng, 50)]))
        found = found["survives"] & (found["verdict"] == "supported")
        false, kept = false + found[:50].sum(), kept + found.sum()
    assert kept > 0.9 * 2000 and false / kept <= 2 * LEVEL  # the procedure promises LEVEL / 2


def test_nothing_measured_and_every_claim():
    empty = pd.DataFrame(columns=["table", "row", "method", "verdict"])
    assert discoveries(empty).empty and "no evidence yet" in sentence(empty)
    frame = pd.DataFrame([line(t, m, 0.1, 0.2, seeds=5) for t, m in CLAIMS])
    assert discoveries(frame)["p"].between(0, 1).all() and len(discoveries(frame)) == len(CLAIMS)
