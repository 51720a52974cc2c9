import pandas as pd
import pytest

from survey_lib.evidence.steady import cut_study, period, steady, until_near
from survey_lib.models import Network, mlp
from survey_lib.pipeline import split
from survey_lib.presets import Device, Link
from survey_lib.world import World


def test_the_fill_does_not_count():
    clock = [0.0, 10.0, 10.0, 12.0, 14.0]  # rounds 0, 2, 4, 6, 8: two seconds every two rounds
    history = pd.DataFrame(dict(round=[0, 2, 4, 6, 8], clock=clock))
    assert steady(history) == 1.0


def test_the_period_of_a_full_pipeline_is_its_slowest_stage():
    """Unlike stages, free links, 1F1B: max over the stages of f + b."""
    network = Network(mlp(40, 20, 30), (1, 8, 8), 10)
    stages = split(network, (1, 2, 3))
    board = Device(1e9, 1e9, 1.0, 2.0, 1.5, "assumed")
    world = World(4, device=board, link=Link(0.0, float("inf"), float("inf")))
    slowest = max(8 * (s.forward + s.backward) / 1e9 for s in stages)
    assert period(world, stages, 8) == pytest.approx(slowest, rel=0.02)


def test_a_study_of_cuts():
    networks = {"MLP": Network(mlp(*[64] * 6), (1, 8, 8), 10)}
    found = cut_study(networks, ("lan",), (4, 2, 1, 1), B=16)
    assert len(found) == 5 * 3 and set(found["network"]) == {"MLP"}
    planned = found.pivot(index="seed", columns="cut", values="planned")
    for other in ("random", "equal layers", "equal FLOPs"):
        assert (planned["DP"] <= planned[other] * (1 + 1e-9)).all()
    assert (planned["DP, best order"] <= planned["DP"] * (1 + 1e-9)).all()
    assert (planned["random"] > planned["DP"]).any()
    assert (found["simulated"] >= 0.98 * found["planned"]).all()


def test_until_near():
    """Seed 0 is within 5 % of its 2.0 from round 2 on, seed 1 of its 1.0 from round 3 on."""
    seconds = [5.0, 3.0, 2.1, 2.0, 4.0, 3.0, 2.0, 1.0]
    runs = pd.DataFrame(dict(label="a", seed=[0] * 4 + [1] * 4, round=[0, 1, 2, 3] * 2))
    runs["seconds"] = seconds
    assert until_near(runs, "a") == 2.5 and until_near(runs, "a", share=1.0) == 1.5
