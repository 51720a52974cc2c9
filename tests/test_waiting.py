import itertools

import numpy as np
import pytest
import torch
from conftest import small

from survey_lib.evidence.run import Case
from survey_lib.evidence.waiting import paced, watched
from survey_lib.methods.gossip import d_psgd
from survey_lib.methods.server_sync import fedavg
from survey_lib.methods.slow_devices import tifl
from survey_lib.presets import Link
from survey_lib.topology import ring
from survey_lib.training import work
from survey_lib.world import World

HOW = dict(S=3, B=None, K=1, eta=0.5)
LINK = Link(0.0, np.inf, np.inf)


def world_of(task, *seconds, link=LINK):
    return World(task.n, device=paced(task, seconds, B=None, K=1), link=link)


def test_paced_devices_take_the_seconds_asked_for():
    task = small(n=3)
    world = World(3, device=paced(task, (1, 2, 16), B=10, E=2))
    world.compute(np.arange(3), work(task, np.arange(3), B=10, E=2))
    np.testing.assert_allclose(world.ready, [1, 2, 16])


def test_the_models_are_those_of_the_method_and_what_it_says_is_kept():
    task, how = small(n=3), dict(m=1, **HOW)
    plain = list(itertools.islice(tifl(task, world_of(task, 1, 1, 2), **how), 4))
    told = watched(task, world_of(task, 1, 1, 2), of=tifl, classes=(1, 2), **how)
    for (x, extra), (y, more) in zip(plain, told, strict=False):
        assert torch.equal(x, y) and extra.items() <= more.items()


def test_recall_is_the_share_of_right_answers_on_the_classes():
    task = small(n=3)
    told = watched(task, World(3), of=fedavg, classes=(1, 7), **HOW)
    x, extra = list(itertools.islice(told, 6))[-1]
    right = task.network(x, task.x_test).argmax(1) == task.y_test
    there = (task.y_test == 1) | (task.y_test == 7)
    assert extra["recall"] == pytest.approx(right[there].double().mean().item())
    X, extra = list(itertools.islice(
        watched(task, World(3), of=d_psgd, classes=(1, 7), W=ring(3), B=8, eta=0.3), 6
    ))[-1]  # fmt: skip
    right = torch.stack([task.network(x, task.x_test).argmax(1) == task.y_test for x in X])
    assert extra["recall"] == pytest.approx(right[:, there].double().mean().item())


def test_the_shares_of_time_by_hand():
    """Devices of 1 s, 1 s and 4 s: of 12 s a round, 6 s are work and 6 s waiting. With a deadline
    of 2 s the slow one is cancelled: of 6 s, 4 s are work."""
    task = small(n=3)

    def shares(**more):
        world = world_of(task, 1, 1, 4)
        told = watched(task, world, of=fedavg, classes=(1,), **HOW | more)
        found = [extra for _, extra in itertools.islice(told, 3)]
        assert found[0]["working"] == found[0]["waiting"] == 0
        return [found[-1][k] for k in ("working", "waiting", "left_out")]

    np.testing.assert_allclose(shares(), [1 / 2, 1 / 2, 0], atol=1e-12)
    np.testing.assert_allclose(shares(deadline=2.0), [4 / 6, 2 / 6, 0], atol=1e-12)


def test_devices_that_are_not_asked_are_left_out():
    task = small(n=3)
    told = watched(task, world_of(task, 1, 1, 1), of=fedavg, classes=(1,), **HOW | dict(S=1))
    extra = [extra for _, extra in itertools.islice(told, 5)][-1]
    np.testing.assert_allclose([extra["working"], extra["left_out"]], [1 / 3, 2 / 3])


def test_it_runs_as_a_case():
    task = dict(data="digits", n=3, samples=60)
    case = Case(
        watched, dict(of=fedavg, classes=(8, 9), **HOW), task, until=dict(rounds=4, every=2)
    )
    history = case.run(0)
    assert history["round"].tolist() == [0, 2, 4]
    assert history[["recall", "working", "waiting", "left_out"]].notna().to_numpy().all()
