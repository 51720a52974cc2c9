"""Streams that drift: what comes in when, how it changes, what is remembered."""

import numpy as np
import pytest
import torch
from conftest import close
from torch.nn import functional as F

from survey_lib.drift import (
    Drifting,
    above,
    fading,
    moving,
    reservoir,
    swapped,
    turning,
    whole,
    window,
)
from survey_lib.errors import UsageError
from survey_lib.models import logistic
from survey_lib.partition import shards

HOW = dict(n=4, m=5, rounds=12, network=logistic())


def test_batches_come_in_one_a_round_and_are_tested_before_they_are_trained_on():
    task = Drifting(**HOW)
    assert (task.sizes == 5).all() and task.t == 0
    for t in range(1, 13):
        before = np.concatenate([task.rows(i) for i in range(4)])
        task.reveal()
        new = task.newest
        assert new.shape == (4, 5) and not np.isin(new, before).any()
        assert torch.equal(task.x_test, task.x[new.ravel()])
        assert torch.equal(task.y_test, task.y[new.ravel()])
        for i in range(4):
            rows = task.rows(i)
            assert len(rows) == 5 * (t + 1) == task.sizes[i]
            assert (rows[-5:] == new[i]).all() and (np.diff(rows) > 0).all()
        assert task.p.tolist() == [0.25] * 4
    assert len(np.unique(np.concatenate(task.held))) == len(task.y) == 4 * 5 * 13
    with pytest.raises(UsageError, match="12 rounds"):
        task.reveal()


def test_a_model_is_scored_on_the_newest_batch():
    task = Drifting(**HOW)
    task.reveal()
    x = task.init()
    z = task.network(x, task.x[task.newest.ravel()])
    y = task.y[task.newest.ravel()]
    accuracy, loss = task.evaluate(x[None])
    assert accuracy[0] == pytest.approx((z.argmax(1) == y).double().mean().item())
    each = F.cross_entropy(z, y, reduction="none").view(4, 5).mean(1)
    close(torch.from_numpy(task.incoming(x)).float(), each, 1e-6)
    assert loss[0] == pytest.approx(each.mean().item(), rel=1e-6)


def test_streams_are_drawn_from_the_parts_by_keys():
    task, again = Drifting(seed=3, **HOW), Drifting(seed=3, **HOW)
    assert torch.equal(task.x, again.x) and torch.equal(task.y, again.y)
    assert not torch.equal(task.y, Drifting(seed=4, **HOW).y)
    longer = Drifting(seed=3, **HOW | dict(rounds=20))
    assert torch.equal(longer.y.view(4, -1)[:, :65], task.y.view(4, -1))
    skewed = Drifting(partition=shards(1), **HOW)
    assert max(len(own.unique()) for own in skewed.y.view(4, -1)) <= 5
    assert min(len(own.unique()) for own in task.y.view(4, -1)) >= 9


def by_round(task):
    """(n, rounds + 1, m): labels by device and round."""
    return task.y.view(task.n, -1, task.m)


def test_neighbouring_classes_swap_their_names_from_a_round_on():
    plain, task = Drifting(**HOW), Drifting(drift=swapped(6), **HOW)
    a, b = by_round(plain), by_round(task)
    assert torch.equal(task.x, plain.x) and torch.equal(a[:, :6], b[:, :6])
    swap = torch.tensor([1, 0, 3, 2, 5, 4, 7, 6, 9, 8])
    assert torch.equal(swap[a[:, 6:]], b[:, 6:])
    some = by_round(Drifting(drift=swapped(6, pairs=2), **HOW))
    swap[4:] = torch.arange(4, 10)
    assert torch.equal(swap[a[:, 6:]], some[:, 6:])
    with pytest.raises(UsageError, match="5 pairs"):
        Drifting(drift=swapped(6, pairs=6), **HOW)


def test_the_devices_may_change_one_after_the_other():
    """Devices 0 to 3 change at 3, 5, 7 and 9."""
    a, b = (by_round(Drifting(drift=d, **HOW)) for d in (None, swapped(3, spread=6)))
    first = [(a[i] != b[i]).any(1).nonzero()[0].item() for i in range(4)]
    assert first == [3, 5, 7, 9]


def test_of_all_that_is_kept_the_old_concept_is_half_as_long_again_after():
    """A switch at batch 6: after s more batches its share is 6 / (6 + s)."""
    plain, task = Drifting(**HOW), Drifting(drift=swapped(6), **HOW)
    for t in range(1, 13):
        task.reveal()
        rows = np.concatenate(task.held)
        old = (plain.y[rows] == task.y[rows]).double().mean().item()
        assert old == pytest.approx(min(1.0, 6 / (t + 1)))


def test_images_turn_further_each_round():
    plain, task = Drifting(**HOW), Drifting(drift=turning(4, degrees=15.0), **HOW)
    assert torch.equal(plain.y, task.y)
    a, b = (t.x.view(4, 13, 5, 8, 8) for t in (plain, task))
    assert torch.equal(a[:, :5], b[:, :5]) and not torch.equal(a[:, 5], b[:, 5])
    close(b[:, 10], a[:, 10].rot90(1, (-2, -1)), 1e-5)  # 6 times 15 degrees


def test_the_class_prior_goes_around_the_ring():
    assert (moving(5)(4, 10) == 1).all()
    p = moving(5, kappa=3.0, period=20)
    for t, at in ((5, 0), (7, 1), (15, 5), (25, 0)):
        weights = p(t, 10)
        assert weights.argmax() == at and weights[at] == pytest.approx(np.exp(3.0))
        assert weights.min() == pytest.approx(np.exp(-3.0))
        assert weights[(at + 2) % 10] == pytest.approx(weights[(at - 2) % 10])
    task = Drifting(prior=moving(0, kappa=3.0, period=10**9), **HOW | dict(m=400, rounds=1))
    share = torch.bincount(task.y, minlength=10) / len(task.y)
    want = p(5, 10) / p(5, 10).sum()
    error = np.sqrt(want * (1 - want) / len(task.y))  # pools are even to some per cent
    assert (np.abs(share.numpy() - want) < 4 * error + 0.05 * want).all()


ROWS = np.arange(100, 160)  # of batches 20 to 31 of 5


def test_memories_by_hand():
    assert (whole(ROWS, 5) == ROWS).all()
    assert (window(1)(ROWS, 5) == ROWS[-5:]).all() and (window(3)(ROWS, 5) == ROWS[-15:]).all()
    assert (window(12)(ROWS, 5) == ROWS).all() and (window(99)(ROWS, 5) == ROWS).all()
    assert (reservoir(60)(ROWS, 5) == ROWS).all() and (fading(1.0)(ROWS, 5) == ROWS).all()
    assert (fading(0.0)(ROWS, 5) == ROWS[-5:]).all()


def remembered(memory, key, rounds=40, m=5):
    """(rounds m,): which samples are there after so many rounds."""
    held = np.zeros(0, int)
    for t in range(rounds):
        held = memory(np.concatenate([held, t * m + np.arange(m)]), m, key)
    return np.isin(np.arange(rounds * m), held)


def test_a_reservoir_is_a_uniform_draw_from_all_that_came_in():
    there = np.stack([remembered(reservoir(50), key) for key in range(400)])
    assert (there.sum(1) == 50).all()
    share, error = there.mean(0), np.sqrt(0.25 * 0.75 / 400)
    assert np.abs(share - 0.25).max() < 5 * error
    assert np.abs(share.reshape(40, 5).mean(1) - 0.25).max() < 4 * error / np.sqrt(5)


def test_what_fades_is_of_geometric_age():
    there = np.stack([remembered(fading(0.8), key) for key in range(400)])
    share, want = there.mean(0).reshape(40, 5).mean(1), 0.8 ** np.arange(39, -1, -1)
    assert np.abs(share - want).max() < 4 * np.sqrt(0.25 / 2000)
    assert share[-1] == 1


def test_an_alarm_needs_losses_before_and_a_leap():
    calm = [1.0, 1.2, 1.0, 1.2, 1.1]  # mean 1.1, sd 0.0894: 1.368
    assert above([*calm, 1.38]) and not above([*calm, 1.36])
    assert not above([*calm[:4], 9.0]) and above([*calm[:4], 9.0], least=4)
    assert above([*calm, 1.2], z=1.0) and not above([1.0])
