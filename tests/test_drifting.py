"""FedAvg on streams: reductions, what is scored, what is remembered, who stops."""

import itertools

import numpy as np
import pytest
import torch
from conftest import leaves
from test_drift import HOW

from survey_lib.drift import Drifting, above, reservoir, swapped, window
from survey_lib.evidence.run import run
from survey_lib.methods.drifting import fedavg_on_stream
from survey_lib.methods.server_sync import fedavg
from survey_lib.training import train
from survey_lib.world import World

AVG = dict(S=4, K=4, B=5, eta=0.2)


def history(method=fedavg_on_stream, rounds=11, *, task=None, world=None, **how):
    task = task or Drifting(**HOW)
    return run(method, task, world or World(4), rounds=rounds, **AVG, **how)


def test_with_everything_kept_it_is_fedavg_on_growing_data():
    growing = history(fedavg)
    for memory in ({}, dict(memory=window(12)), dict(memory=reservoir(12 * 5))):
        found = history(**memory)
        assert (found["accuracy"] == growing["accuracy"]).all()
        assert (found["loss"] == growing["loss"]).all()
        assert (found["bytes"] == growing["bytes"]).all()
        assert (found["joules"] > growing["joules"])[1:].all()  # the test takes a forward pass
        assert found["held"].tolist() == [5 * (r + 1) for r in range(12)]


def test_round_r_is_scored_on_batch_r_plus_1_by_a_model_that_has_not_seen_it():
    """By hand: full participation of equal devices, window 1: the mean of models trained on the
    batch before."""
    task, seen = Drifting(**HOW), Drifting(**HOW)
    found, x = history(rounds=3, task=task, memory=window(1)), seen.init()
    for r in range(4):
        if r:
            seen.hold([rows[-5:] for rows in seen.held])
            Y = train(seen, np.arange(4), x, eta=0.2, B=5, K=4, seed=(0, r - 1))
            x = Y.mean(0)
        seen.reveal()
        assert seen.t == r + 1
        assert found["accuracy"][r] == pytest.approx(seen.evaluate(x[None])[0][0])


@pytest.mark.parametrize(("w", "want"), [(1, 5), (3, 15), (99, 60)])
def test_memory_bounds_what_a_device_holds(w, want):
    task = Drifting(**HOW)
    found = history(task=task, memory=window(w))
    assert found["held"].iloc[-1] == want
    assert found["held"].iloc[0] == 5


def test_an_alarm_clears_the_memory():
    task = Drifting(drift=swapped(8), **HOW | dict(m=20))
    calm = Drifting(**HOW | dict(m=20))
    changed = history(task=task, alarm=above)
    assert changed["alarms"].iloc[8] > 0.5  # told in the round after batch 8 came in
    assert changed["held"].iloc[8] < 4 * 20
    quiet = history(task=calm, alarm=above)
    assert quiet["alarms"].mean() < 0.1
    assert (changed["accuracy"][:7] == quiet["accuracy"][:7]).all()


def test_a_frozen_model_stays_and_costs_no_bytes():
    task, world, going = Drifting(**HOW), World(4), []
    models, sent = [], []
    for x, _ in itertools.islice(fedavg_on_stream(task, world, stop=3, **AVG), 8):
        task.reveal()
        models.append(x)
        sent.append(world.totals()["bytes"])
        going.append(world.clock)
    assert all(torch.equal(x, models[3]) for x in models[3:])
    assert not torch.equal(models[2], models[3])
    assert sent[3:] == [sent[3]] * 5 and (np.diff(going) > 0).all()
    plain, frozen = history(), history(stop=3)
    assert (plain["accuracy"][:4] == frozen["accuracy"][:4]).all()


def test_who_is_off_keeps_what_comes_in_until_it_is_back():
    task = Drifting(**HOW)
    world = World(4, churn=leaves(2, 0.0))
    history(task=task, world=world, rounds=6, memory=window(2))
    assert task.sizes.tolist() == [15, 15, 40, 15]  # with the newest batch, of 8 so far


def test_messages_may_be_lost():
    found = history(world=World(4, loss=0.3), memory=window(3), alarm=above)
    assert np.isfinite(found[["accuracy", "loss", "clock"]]).all().all()
    one = Drifting(**HOW | dict(n=1))
    assert len(run(fedavg_on_stream, one, World(1), rounds=5, **AVG | dict(S=1))) == 6
