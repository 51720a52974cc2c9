"""The tournament: regrets, ranks, winners and the selector by hand; every world can be run."""

import numpy as np
import pandas as pd
import pytest

from survey_lib.evidence import tournament
from survey_lib.evidence.tournament import METHODS, SHARING

ACCURACY = {  # world: accuracy of the first methods, the last of which shares data
    ("a", "mild"): (0.90, 0.80, 0.70),
    ("a", "strong"): (0.60, 0.50, 0.55),
    ("b", "mild"): (0.40, 0.62, 0.99),
}
NAMES = [*list(METHODS)[:2], SHARING]


@pytest.fixture
def played():
    rows = [
        (*world, name, seed, 0.1, value + 0.01 * (seed - 1) * (k == 0), 10.0 * (k + 1))
        for world, values in ACCURACY.items()
        for k, (name, value) in enumerate(zip(NAMES, values, strict=True))
        for seed in range(3)
    ]
    return pd.DataFrame(rows, columns="kind degree method seed step accuracy bytes".split())


def test_points_behind_the_best_by_hand(played):
    lost = tournament.behind(played)
    assert list(lost.columns) == sorted(NAMES[:2])
    want = {("a", "mild"): (0, 10), ("a", "strong"): (0, 10), ("b", "mild"): (22, 0)}
    for world, points in want.items():
        np.testing.assert_allclose(lost.loc[world, NAMES[:2]], points, atol=1e-9)
    assert (lost.min(axis=1) == 0).all() and (lost >= 0).all().all()


def test_winners_leave_shared_data_aside(played):
    found = tournament.winners(played).set_index(["kind", "degree"])
    assert list(found["winner"]) == [NAMES[0], NAMES[0], NAMES[1]]
    assert list(found["next"]) == [NAMES[1], NAMES[1], NAMES[0]]
    np.testing.assert_allclose(found["points_ahead"], [10, 10, 22])
    gaps = np.array([0.09, 0.10, 0.11])  # of the seeds; their t-value is mean / (sd / sqrt(3))
    t = gaps.mean() / (gaps.std(ddof=1) / np.sqrt(3))
    assert found["p"].iloc[0] == pytest.approx(2 * (1 - _student(t)), rel=1e-9)
    assert (found["seeds_won"] == "3 of 3").all()


def _student(t):
    """Student's distribution with 2 degrees of freedom, which has a closed form."""
    return 0.5 + t / (2 * np.sqrt(2) * np.sqrt(1 + t * t / 2))


def test_standing_and_the_selector_by_hand(played):
    index = pd.MultiIndex.from_tuples(list(ACCURACY), names=["kind", "degree"])
    seen = pd.DataFrame({"skew": [0.0, 1.0, 1.4]}, index)  # nearest: strong, b, strong
    found = tournament.standing(played, seen).set_index("method")
    first, second = NAMES[:2]
    assert found.loc[first, "mean_behind"] == pytest.approx(22 / 3)
    assert found.loc[second, "most_behind"] == pytest.approx(10)
    assert found.loc[[first, second], "mean_rank"].sum() == pytest.approx(3)  # M (M + 1) / 2
    assert found.loc[first, "within_a_point"] == 2
    picked = found.loc["chosen by what is seen"]  # first in mild, second in strong, first in b
    assert picked["mean_behind"] == pytest.approx((0 + 10 + 22) / 3)
    assert picked["within_a_point"] == 1


def test_every_world_has_every_method_and_glimpses():
    cases = tournament.cases("digits", 1, 1.0)
    worlds = {key[:2] for key in cases}
    assert len(worlds) == 25 and len(cases) == len(worlds) * len(METHODS)
    strong = tournament.cases("digits", 1, 1.0, mild=False)
    assert len(strong) == len(tournament.skews()) * len(METHODS) and set(strong) < set(cases)
    seen = tournament.glimpses("digits", [0])
    assert set(seen.index) == worlds
    assert seen.loc[("P(y): classes", "1 shard"), "label skew"] > 1.6
    assert seen.loc[("amounts", "Dir(0.2)"), "Gini of sizes"] > 0.5


@pytest.mark.parametrize("kind", tournament.skews())
def test_a_round_in_the_strongest_world_of_each_kind(kind):
    cases = tournament.cases("digits", 2, 1.0, mild=False)
    for (found, _, name), case in cases.items():
        if found == kind:
            history = case.but(**{METHODS[name][2]: 0.05}).run(1000)
            assert history["round"].iloc[-1] == 2 and np.isfinite(history["accuracy"]).all()
            assert history["bytes"].iloc[-1] > 0 or kind == "who is online"


def test_without_skew_and_with_equal_steps_fednova_is_fedavg():
    cases = tournament.cases("digits", 4, 1.0)
    a, b = (
        cases["none", "IID", name].but(E=None, K=8, eta=0.1).run(1000)
        for name in ("FedAvg", "FedNova")
    )
    np.testing.assert_allclose(a["accuracy"], b["accuracy"], atol=2 / 360)
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-4)
