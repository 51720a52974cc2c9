import itertools

import numpy as np
import pytest
import torch
from conftest import Deaf, close, leaves, models, small, values

from survey_lib.errors import UsageError
from survey_lib.methods import slow_devices
from survey_lib.methods.server_sync import fedavg, mean
from survey_lib.methods.slow_devices import (
    always_the_same,
    at_random,
    by_rank,
    cost,
    diagonal,
    elfish,
    hfl_adsgd,
    keep_pace,
    masks,
    moved_most,
    outer,
    profile,
    reports,
    tiering,
    tifl,
)
from survey_lib.models import Network, cnn, logistic, mlp
from survey_lib.presets import Device, Link
from survey_lib.streams import stream
from survey_lib.training import Task, batch_gradients, gradients, train, work
from survey_lib.world import World, loguniform

INSTANT = Link(0.0, np.inf, np.inf)
ONE = dict(B=None, K=1)  # a step on all samples: each device computes a gradient


def world_of(task, *seconds, link=INSTANT, how=ONE, kind=World, **more):
    """A world in which device i does its local work in seconds[i], exactly."""
    flops = work(task, np.arange(task.n), **how)
    devices = [Device(f / s, 1e9, 1, 2, 1.5, "test") for f, s in zip(flops, seconds, strict=True)]
    return kind(task.n, device=devices, link=link, **more)


class Mute(World):
    """A world in which the uploads of some devices are lost."""

    mute = ()

    def uploads(self, chosen, payload, **how):
        times = super().uploads(chosen, payload, **how)
        lost = np.isin(chosen, self.mute)
        self.sending["ok"][np.asarray(chosen)[lost]] = False
        return np.where(lost, np.inf, times)


# ---- tiers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("S", [2, 6])
def test_with_one_tier_it_is_fedavg(S):
    how = dict(S=S, B=8, E=2, eta=0.1, rounds=5, world=World(6, spread=loguniform(8)))
    close(models(tifl, m=1, **how), models(fedavg, **how), atol=0)


def test_the_probabilities_by_rank_of_accuracy():
    p = by_rank([0.8, 0.5, 0.9, 0.6, 0.7], np.ones(5, bool))
    np.testing.assert_allclose(p, np.array([2, 5, 1, 4, 3]) / 15)
    # three tiers with credits: 3/6, 2/6, 1/6 from the worst; the worst of all has none left
    left = np.array([True, False, True, False, True])
    np.testing.assert_allclose(by_rank([0.8, 0.1, 0.9, 0.6, 0.7], left), [2 / 6, 0, 1 / 6, 0, 0.5])


def test_tiers_are_equal_parts_from_fast_to_slow_without_those_that_never_answered():
    seconds = np.array([5.0, 1.0, np.inf, 3.0, 4.0, 2.0, 6.0])
    tiers = tiering(seconds, 3)
    assert [t.tolist() for t in tiers] == [[1, 5], [3, 4], [0, 6]]
    assert [len(t) for t in tiering(np.full(7, np.inf), 3)] == [0, 0, 0]
    assert [t.tolist() for t in tiering(np.array([2.0, 1.0]), 3)] == [[1], [0], []]


def test_a_tier_is_drawn_as_often_as_its_credits_allow_then_training_ends():
    found = values(tifl, 50, m=3, S=2, **ONE, eta=0.1, credits=(4, 1, 2))
    drawn = [int(extra["tier"]) for _, extra in found[1:]]
    assert np.bincount(drawn, minlength=3).tolist() == [4, 1, 2]


def test_a_static_policy_draws_as_told_and_asks_for_no_reports():
    task = small()
    world = world_of(task, 1, 2, 3, 4, 5, 6)
    found = values(tifl, 4, task=task, world=world, m=3, S=2, **ONE, eta=0.1, p=(0, 1, 0))
    assert [extra["tier"] for _, extra in found[1:]] == [1] * 4
    assert world.clock == pytest.approx(6 + 4 * 4)  # profiling, then rounds of devices 2 and 3
    assert world.up.tolist() == [8 * task.d] * 2 + [5 * 8 * task.d] * 2 + [8 * task.d] * 2


def test_a_round_lasts_as_long_as_the_slowest_of_its_tier():
    """Uniform policy: the mean time of a round is the mean of the tiers' slowest, here with whole
    tiers of two and standard deviation sqrt(var(2, 4, 6) / rounds)."""
    task, rounds = small(), 300
    world = world_of(task, 1, 2, 3, 4, 5, 6)
    steps = tifl(task, world, m=3, S=2, **ONE, eta=0.01, p=(1 / 3, 1 / 3, 1 / 3))
    clocks, drawn = [], []
    for _, extra in itertools.islice(steps, rounds + 1):
        clocks.append(world.clock)
        drawn.append(int(extra["tier"]))
    seconds = np.diff(clocks)[1:]  # the first has the profiling, too
    np.testing.assert_allclose(seconds, np.array([2.0, 4, 6])[drawn[2:]])
    assert abs(seconds.mean() - 4) < 4 * np.sqrt(8 / 3 / rounds)


def test_what_the_rounds_the_profiling_and_the_reports_send():
    task = small()
    world, size = World(6), 8 * task.d
    values(
        tifl, 4, task=task, world=world, m=2, S=2, **ONE, eta=0.1, interval=2, sync_rounds=3
    )  # reports after rounds 0 and 2
    assert world.down.sum() == size * (3 * 6 + 4 * 2 + 2 * 6)
    assert world.up.sum() == size * (3 * 6 + 4 * 2) + 2 * 6 * 8


def test_profiling_measures_the_latency_of_each_device():
    task = small(n=3)
    size = 8 * task.d
    link = Link(0.25, size / 1.0, size / 0.5)  # 1 s up, 0.5 s down, 0.25 s latency each way
    world = world_of(task, 1, 2, 4, link=link)
    found = profile(task, world, task.init(), 2, np.inf, **ONE, E=None)
    np.testing.assert_allclose(found, [3, 4, 6])
    assert world.clock == pytest.approx(12)


def test_who_never_answers_in_time_is_left_out_for_good():
    task = small(n=4)
    world = world_of(task, 1, 2, 3, 50)
    found = values(tifl, 20, task=task, world=world, m=2, S=2, **ONE, eta=0.1, T_max=4.0)
    assert world.clock < 4 + 20 * (3 + 3) and len(found) == 21  # rounds and reports without it
    again = profile(task, world_of(task, 1, 2, 3, 50), task.init(), 1, 4.0, **ONE, E=None)
    assert again.tolist() == [1, 2, 3, np.inf]


def test_one_lost_answer_counts_as_the_longest_time_and_leaves_nobody_out():
    task, x = small(n=3), small(n=3).init()
    world = world_of(task, 1, 2, 3, kind=Mute)
    world.mute = (0,)
    first = profile(task, world, x, 1, np.inf, **ONE, E=None)
    assert first.tolist() == [np.inf, 2, 3]

    class Once(Mute):
        def uploads(self, chosen, payload, **how):
            self.mute = (0,) if self.clock == 0 else ()
            return super().uploads(chosen, payload, **how)

    found = profile(task, world_of(task, 1, 2, 3, kind=Once), x, 2, np.inf, **ONE, E=None)
    np.testing.assert_allclose(found, [(3 + 1) / 2, 2, 3])


def test_profiling_is_repeated_while_nobody_answers():
    task = small(n=2)
    world = world_of(task, 1, 1, kind=Mute)
    world.mute = (0, 1)
    steps = tifl(task, world, m=2, S=1, **ONE, eta=0.1)
    start = next(steps)[0]
    assert torch.equal(next(steps)[0], start) and torch.equal(next(steps)[0], start)
    world.mute = ()
    assert not torch.equal(next(steps)[0], start)


def test_the_reports_are_mean_accuracies_on_the_devices_own_data():
    task, world = small(n=4), World(4)
    x = train(task, [0], task.init(), eta=0.5, B=5, E=3, seed=0)[0]
    own = []
    for i in range(4):
        rows = task.rows(i)
        guess = task.network(x, task.x[rows]).argmax(1)
        own.append((guess == task.y[rows]).double().mean().item())
    tiers = [np.array([0, 3]), np.array([1, 2])]
    expected = [(own[0] + own[3]) / 2, (own[1] + own[2]) / 2]
    np.testing.assert_allclose(reports(task, world, x, tiers, np.zeros(2)), expected)
    deaf = reports(task, Deaf(4, deaf=(1, 2)), x, tiers, np.array([0.1, 0.2]))
    np.testing.assert_allclose(deaf, [expected[0], 0.2])  # nobody of tier 1: as it was
    some = reports(task, Deaf(4, deaf=(2,)), x, tiers, np.zeros(2))
    np.testing.assert_allclose(some, [expected[0], own[1]])


SEED = 3  # with which the two policies of this test draw unlike tiers, see below


@pytest.mark.parametrize("change, adapts", [(0.1, False), (0.0, True), (-0.1, True)])
def test_the_policy_changes_unless_the_present_tier_became_better(monkeypatch, change, adapts):
    told = iter([[0.3, 0.5], [0.3 + change, 0.5 + change]])
    monkeypatch.setattr(slow_devices, "reports", lambda *a: np.array(next(told)))
    found = values(tifl, 12, m=2, S=2, **ONE, eta=0.1, interval=6, seed=SEED)
    drawn = [int(extra["tier"]) for _, extra in found[1:]]
    p = [[1 / 2, 1 / 2]] * 7 + [[2 / 3, 1 / 3] if adapts else [1 / 2, 1 / 2]] * 5
    assert drawn == [stream(SEED, "tier", r).choice(2, p=p[r]) for r in range(12)]


def test_the_two_policies_of_that_test_differ_in_what_they_draw():
    a, b = (
        [stream(SEED, "tier", r).choice(2, p=p) for r in range(7, 12)]
        for p in ([1 / 2, 1 / 2], [2 / 3, 1 / 3])
    )
    assert a != b


def test_a_tier_smaller_than_the_round_takes_part_as_a_whole():
    task = small(n=3)
    world = world_of(task, 1, 2, 3)
    values(tifl, 3, task=task, world=world, m=3, S=2, **ONE, eta=0.1, p=(0, 0, 1))
    assert world.up.tolist() == [8 * task.d] * 2 + [4 * 8 * task.d]


def test_a_tier_that_is_off_costs_a_while_and_changes_nothing():
    task = small(n=2)
    world = world_of(task, 1, 2, churn=leaves(1, 2.5))
    found = values(tifl, 3, task=task, world=world, m=2, S=1, **ONE, eta=0.1, p=(0, 1))
    assert all(torch.equal(found[0][0], x) for x, _ in found)  # it goes off in the first round


# ---- late updates --------------------------------------------------------------------------------


@pytest.mark.parametrize("S", [3, 6])
def test_without_stragglers_it_is_fedavg(S):
    how = dict(S=S, B=8, E=2, eta=0.1, rounds=5)
    fast, slow = (World(6, spread=loguniform(8)) for _ in range(2))
    close(models(hfl_adsgd, deadline=100.0, world=fast, **how), models(fedavg, world=slow, **how))
    assert fast.totals() == slow.totals()


def test_every_round_by_hand():
    """Devices 0 and 1 need 1 s, device 2 needs 2.2 s and as long again for its gradient: begun at 0
    s, it is there at 4.4 s, in the round from 4 s to 5 s, four versions late."""
    task = small(n=3, samples=90)
    world, eta, n = world_of(task, 1, 1, 2.2), 0.5, torch.as_tensor(task.sizes).double()
    how = dict(S=3, deadline=1.0, eta=eta, **ONE, lambda_0=8.0, lambda_H=0.7)
    steps = hfl_adsgd(task, world, **how)
    x = task.init()
    old, g = x, batch_gradients(task, [2], x, seed=0)[0]
    for t in range(5):
        found, extra = next(steps)
        close(found, x)
        assert world.clock == pytest.approx(t) and extra == {"late": 0, "share": 0.0}
        Y = x - eta * batch_gradients(task, [0, 1], x, seed=0)
        if t < 4:
            x = mean(Y, n[:2])
    weight = 8.0 * np.exp(-4)
    late = x - weight * (eta * g + eta * 0.7 * g * (g @ (x - old)))
    x = (n[0] * Y[0] + n[1] * Y[1] + n[2] * late) / n.sum()
    found, extra = next(steps)
    close(found, x)
    assert extra["late"] == 1 and world.clock == pytest.approx(5)
    assert extra["share"] == pytest.approx((weight * n[2] / (n[0] + n[1] + weight * n[2])).item())
    # 8 B a number: five rounds of devices 0 and 1; device 2 got x once and sent two vectors
    assert world.down.tolist() == [5 * 8 * task.d] * 2 + [8 * task.d]
    assert world.up.tolist() == [5 * 8 * task.d] * 2 + [2 * 8 * task.d]


def test_without_weight_late_updates_only_damp_the_step():
    task = small(n=3, samples=90)
    runs = [
        models(hfl_adsgd, 5, task=task, world=world_of(task, 1, 1, 2.2), deadline=1.0, S=3,
               eta=0.5, **ONE, lambda_0=weight)
        for weight in (0.0, 8.0)
    ]  # fmt: skip
    dropped = models(
        fedavg, 5, task=task, world=world_of(task, 1, 1, 2.2), deadline=1.0, S=3, eta=0.5, **ONE
    )
    close(runs[0][:5], dropped[:5])
    close(runs[1][:5], dropped[:5])
    share = task.sizes[:2].sum() / task.sizes.sum()
    close(runs[0][5] - runs[0][4], share * (dropped[5] - dropped[4]))
    assert not torch.allclose(runs[0][5], runs[1][5], atol=1e-4)


def test_lambda_h_zero_merges_the_raw_update():
    task = small(n=3, samples=90)
    how = dict(task=task, deadline=1.0, S=3, eta=0.5, **ONE, lambda_0=8.0)
    raw, none, full = (
        models(hfl_adsgd, 6, world=world_of(task, 1, 1, 2.2), **how, **more)
        for more in (dict(lambda_H=0.0), dict(correct=lambda g, moved: 0 * g), {})
    )
    assert torch.equal(raw, none)
    assert torch.equal(raw[:5], full[:5]) and not torch.equal(raw[5], full[5])


def test_the_corrections_on_one_sample_of_least_squares():
    """f(w) = (a^T w - b)^2 / 2: g = e a with e = a^T w - b, and g(w') - g(w) = a a^T (w' - w). The
    outer product gives e^2 times that, so it points exactly along a."""
    a, w, moved = torch.tensor([1.0, 2, -1]), torch.tensor([0.5, 0, 1]), torch.tensor([1.0, -1, 3])
    b = 2.0
    e = a @ w - b
    g, fresh = e * a, (a @ (w + moved) - b) * a
    close(outer(g[None], moved[None])[0], e**2 * (fresh - g))
    close(diagonal(g[None], moved[None])[0], e**2 * a * a * moved)


def test_an_update_without_age_needs_no_correction():
    g = torch.ones(2, 3)
    assert not outer(g, torch.zeros(2, 3)).any() and not diagonal(g, torch.zeros(2, 3)).any()


def test_a_lost_late_update_changes_nothing_and_its_device_begins_anew():
    task = small(n=3, samples=90)
    world = world_of(task, 1, 1, 2.2, kind=Mute)
    world.mute = (2,)
    how = dict(task=task, deadline=1.0, S=3, eta=0.5, **ONE)
    found = models(hfl_adsgd, 6, world=world, **how, lambda_0=8.0)
    close(found, models(fedavg, 6, world=world_of(task, 1, 1, 2.2), **how))
    assert world.down[2] == 2 * 8 * task.d  # at 0 s, and at 5 s when its message was due


def test_where_all_are_at_work_the_next_late_update_ends_the_round():
    """They answer at 4 s and 6.8 s. Device 0 begins anew at 4 s and answers at 8 s."""
    task = small(n=2, samples=60)
    world = world_of(task, 2.0, 3.4)
    steps, found = hfl_adsgd(task, world, S=2, deadline=1.0, eta=0.5, **ONE), []
    for _ in range(10):
        _, extra = next(steps)
        found.append((world.clock, extra["late"]))
    np.testing.assert_allclose([c for c, _ in found], [0, 1, 2, 3, 4, 5, 6, 6.8, 7.8, 8])
    assert [late for _, late in found] == [0, 0, 0, 0, 1, 0, 0, 1, 0, 1]


def test_a_round_of_nobody_ends_early_with_the_next_late_update():
    task = small(n=1, samples=30)
    world = world_of(task, 2.0)
    steps = hfl_adsgd(task, world, S=1, deadline=3.0, eta=0.5, **ONE)
    assert [(next(steps)[1]["late"], world.clock) for _ in range(3)] == [(0, 0), (0, 2), (0, 4)]
    world = world_of(task, 2.0)
    steps = hfl_adsgd(task, world, S=1, deadline=1.5, eta=0.5, **ONE)
    clocks = [(next(steps)[1]["late"], world.clock) for _ in range(4)]
    assert clocks == [(0, 0), (0, 1.5), (0, 3.0), (1, 4.0)]


# ---- parts of the model --------------------------------------------------------------------------


def dense(n=4, width=8, samples=120, **how):
    return small(n=n, network=mlp(width), samples=samples, **how)


def extract(network, x, kept):
    """The parameters of the smaller network of the kept neurons of one hidden layer."""
    W, b, V, c = network.views(x)
    return torch.cat([W[kept].flatten(), b[kept], V[:, kept].flatten(), c])


def only(*neurons):
    """A choice that does not depend on the device."""
    return lambda moved, q, *key: np.array(neurons)[:q]


def test_all_neurons_are_fedavg():
    task, how = dense(), dict(S=3, B=8, E=2, eta=0.1)
    a, b = (World(4, spread=loguniform(8)) for _ in range(2))
    found = models(elfish, 4, task=task, world=a, p=1.0, **how)
    close(found, models(fedavg, 4, task=task, world=b, **how))
    assert a.totals() == b.totals()


def test_the_masked_network_is_the_smaller_network():
    task, kept = dense(width=8), np.array([1, 4, 6])
    row = np.isin(np.arange(8), kept)[None]
    M, x = masks(task.network, row)[0], task.init()
    smaller = Network(mlp(3), (1, 8, 8), 10)
    assert M.sum() == smaller.d == 64 * 3 + 3 + 3 * 10 + 10
    close(x[M], extract(task.network, x, kept))
    images = task.x[:7]
    close(task.network(M * x, images), smaller(x[M], images))
    G = gradients(task, World(4), [0, 1], M * x, B=8, seed=0)
    assert G[:, ~M].abs().max() == 0 and (G[:, M] != 0).any(1).all()
    other = dense(width=3)
    how = dict(eta=0.3, B=8, E=2, seed=5)
    Y, small_Y = train(task, [0, 2], M * x, **how), train(other, [0, 2], x[M], **how)
    assert not Y[:, ~M].any()
    close(Y[:, M], small_Y)


def test_the_mask_of_two_hidden_layers():
    network = Network(mlp(3, 2), (1, 1, 2), 2)
    M = masks(network, np.array([[True, False, True, False, True]]))
    W1, b1, W2, b2, W3, b3 = network.views(M)
    assert W1[0].tolist() == [[True, True], [False, False], [True, True]]
    assert b1[0].tolist() == [True, False, True] and b2[0].tolist() == [False, True]
    assert W2[0].tolist() == [[False] * 3, [True, False, True]]
    assert W3[0].tolist() == [[False, True]] * 2 and b3.all()


def test_what_nobody_trained_stays_and_the_rest_is_averaged_over_who_trained_it():
    """Device 0 keeps neurons 0, 1, 2, 3 (all of its quota), the others 0 and 1 only: neurons 4 to 7
    are nobody's, 2 and 3 device 0's alone."""
    task = dense(n=3)
    n, x = torch.as_tensor(task.sizes).double(), task.init()
    how = dict(B=8, E=1, eta=0.3)
    found = models(elfish, 1, task=task, S=3, p=(0.5, 0.25, 0.25), choose=only(0, 1, 2, 3), **how)
    four, two = (masks(task.network, np.arange(8)[None] < k)[0] for k in (4, 2))
    starts = torch.stack([four, two, two]) * x
    Y = train(task, [0, 1, 2], starts, seed=(0, 0), **how)
    assert torch.equal(found[1][~four], x[~four])
    close(found[1][four & ~two], Y[0][four & ~two])
    close(found[1][two], (n @ Y / n.sum())[two])


def test_it_remembers_how_far_each_neuron_moved():
    seen = []

    def choose(moved, q, *key):
        seen.append(moved.copy())
        return np.array([0, 1])

    task = dense(n=1)
    found = models(elfish, 2, task=task, S=1, p=0.25, choose=choose, B=8, E=1, eta=0.3)
    W, b, V, _ = task.network.views((found[1] - found[0]).abs())
    assert not seen[0].any() and not seen[1][2:].any()
    np.testing.assert_allclose(seen[1][:2], (W.sum(1) + b + V.sum(0))[:2])


def test_half_of_the_neurons_are_those_that_moved_most():
    moved = np.array([0, 5, 1, 9, 0, 7, 0, 2.0])
    for key in range(20):
        chosen = moved_most(moved, 5, key)
        assert set(chosen[:2]) == {3, 5} and len(set(chosen)) == 5
    rest = np.concatenate([moved_most(moved, 5, key)[2:] for key in range(2000)])
    often = np.bincount(rest, minlength=8)
    p = 3 / 6  # 3 of the other 6
    assert often[[3, 5]].sum() == 0
    assert (abs(often[[0, 1, 2, 4, 6, 7]] - 2000 * p) < 4 * np.sqrt(2000 * p * (1 - p))).all()
    assert always_the_same(moved, 3, 1).tolist() == [0, 1, 2]
    assert len(set(at_random(moved, 3, 1))) == 3
    at_first = np.concatenate([moved_most(np.zeros(8), 4, key) for key in range(500)])
    assert (abs(np.bincount(at_first) - 250) < 4 * np.sqrt(125)).all()  # nothing moved: at random


def test_every_neuron_is_trained_sooner_or_later():
    """A quarter of 64, of which 8 are always the same: each of the others is kept with probability
    8/56 in a cycle, so that in 45 cycles (6/7)^45 < 0.001 of them are missed."""
    moved, miss, trials, R = np.arange(64.0), 0, 60, 45
    for trial in range(trials):
        kept = {i for r in range(R) for i in moved_most(moved, 16, trial, r)}
        assert kept >= set(range(56, 64))
        miss += 64 - len(kept)
    p = (6 / 7) ** R
    assert p < 0.001
    assert miss <= 56 * trials * p + 4 * np.sqrt(56 * trials * p)


def test_the_bytes_of_a_part():
    task, world = dense(n=2, width=12), World(2)
    values(elfish, 3, task=task, world=world, S=2, p=(0.25, 1.0), B=8, E=1, eta=0.1)
    part = 64 * 3 + 3 + 3 * 10 + 10  # 3 of 12 neurons
    assert world.up.tolist() == [3 * (8 * part + 2), 3 * 8 * task.d]  # 12 bits: 2 B
    assert world.down.tolist() == [3 * 8 * task.d] * 2


def test_rescaled_parts_see_the_sums_of_the_whole_network():
    """With 2 of 8 neurons what leaves the hidden layer counts four times while a device trains."""
    task = dense(n=2)
    n, x = torch.as_tensor(task.sizes).double(), task.init()
    M = masks(task.network, np.arange(8)[None] < 2)[0]
    P = M.double()
    task.network.views(P)[2][:] *= 4
    hidden_layer = torch.relu(task.x[:5].flatten(1) @ task.network.views(x)[0][:2].T
                              + task.network.views(x)[1][:2])  # fmt: skip
    V, c = task.network.views(x)[2:]
    close(task.network(P * x, task.x[:5]), 4 * hidden_layer @ V[:, :2].T + c)
    how = dict(B=8, E=1, eta=0.1)
    found = models(elfish, 1, task=task, S=2, p=0.25, rescale=True, choose=only(0, 1), **how)
    Y = train(task, [0, 1], P * x, seed=(0, 0), **how)[:, M] / P[M]
    close(found[1][M], n @ Y / n.sum())
    assert torch.equal(found[1][~M], x[~M])
    whole = models(elfish, 2, task=task, S=2, p=1.0, rescale=True, **how)
    close(whole, models(fedavg, 2, task=task, S=2, **how))


@pytest.mark.parametrize("widths, q", [((8,), [2]), ((8, 6), [2, 3])])
def test_the_cost_of_a_part_is_that_of_the_smaller_network(widths, q):
    whole, part = (Network(mlp(*h), (1, 8, 8), 10) for h in (widths, q))
    flops = [sum(la.forward + la.backward for la in net.layers) for net in (whole, part)]
    assert cost(whole, np.array([q]))[0] == pytest.approx(flops[1] / flops[0])


def test_shares_with_which_slow_devices_keep_pace():
    task = dense(n=4, width=16, samples=160)
    how = dict(B=8, E=1)
    world = world_of(task, 1.0, 1.0, 4.0, 2.0, how=how)
    np.testing.assert_allclose(keep_pace(task, world, **how), [1, 1, 1 / 4, 1 / 2])
    np.testing.assert_allclose(keep_pace(task, world, 2.0, **how), [1, 1, 1 / 2, 1])
    np.testing.assert_allclose(keep_pace(task, world, 1e-9, **how), [1 / 16] * 4)
    steps = elfish(task, world, S=4, eta=0.1, **how)
    clocks = [(next(steps), world.clock)[1] for _ in range(4)]
    np.testing.assert_allclose(clocks, [0, 1, 2, 3])  # all are done at the same time
    # 1 s down, then as much up: twice as slow, a device must save 1 s of at most 2 s
    size = 8 * task.d
    world = world_of(task, 1.0, 1.0, 1.0, 2.0, how=how, link=Link(0.5, size, size))
    share = keep_pace(task, world, **how)
    assert share[:3].tolist() == [1, 1, 1] and 0.5 < share[3] < 1
    part, less = (64 * k + k + 10 * k + 10 for k in (16 * share[3], 16 * share[3] + 1))
    assert 2 * share[3] + (8 * part + 2) / size <= 2 < 2 * share[3] + 2 / 16 + (8 * less) / size


def test_a_lost_upload_changes_nothing():
    task = dense(n=3)
    how = dict(task=task, S=3, p=0.5, B=8, E=1, eta=0.1)
    assert torch.equal(*models(elfish, 1, world=Deaf(3, deaf=(0, 1, 2)), **how))
    found = models(elfish, 1, world=Deaf(3, deaf=(1,)), choose=only(0, 1, 2, 3), **how)
    M = masks(task.network, np.arange(8)[None] < 4)[0]
    n = torch.as_tensor(task.sizes[[0, 2]]).double()
    Y = train(task, [0, 2], M * task.init(), B=8, E=1, eta=0.1, seed=(0, 0))
    close(found[1], torch.where(M, n @ Y / n.sum(), task.init()))


@pytest.mark.parametrize("network", [logistic(), cnn(2, 2)])
def test_a_network_without_hidden_neurons_is_refused(network):
    task = Task(n=2, samples=40, network=network)
    with pytest.raises(UsageError, match="mlp"):
        next(elfish(task, World(2), S=2, B=8, E=1, eta=0.1))
