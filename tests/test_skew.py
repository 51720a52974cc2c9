"""Statistics of skew: closed forms, floors of finite samples, and what each kind moves."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import close, small

from survey_lib import skew
from survey_lib.data import load
from survey_lib.evidence.run import final, run
from survey_lib.methods.server_sync import fedavg
from survey_lib.models import logistic
from survey_lib.partition import (
    dirichlet,
    iid,
    label_counts,
    label_skew,
    persistent,
    quantity,
    shuffled,
    tied,
)
from survey_lib.skew import (
    amplitude,
    auc,
    availability,
    between_devices,
    dependence,
    effective_devices,
    entropy,
    gini,
    label_entropy,
    label_information,
    nearest,
    noniid_statistics,
    own_names,
    persistence,
    principal,
    reweighed,
    told_apart,
    train_test_shift,
)
from survey_lib.streams import stream
from survey_lib.tasks import OnDevices, Styles
from survey_lib.views import renamed, rotated
from survey_lib.world import World

Y = load("digits").y.numpy()


# ---- labels ------------------------------------------------------------------------------------


def test_label_skew_of_one_and_of_two_classes_each():
    """K = 10: 2 (1 - 1/10) = 1.8, and 2 (0.5 - 0.1) + 8 x 0.1 = 1.6."""
    assert label_skew(np.eye(10) * 5) == pytest.approx(1.8)
    two = np.eye(10) + np.roll(np.eye(10), 1, 1)
    assert label_skew(two * 3) == pytest.approx(1.6)


def test_label_skew_is_between_0_and_2_less_twice_the_rarest_class():
    """A device of class k alone is 2 (1 - p_k) away; nobody is further."""
    for seed in range(200):
        rng = stream(seed, "counts")
        counts = rng.integers(0, 4, (rng.integers(1, 6), 5)) * rng.integers(1, 9, (1, 5))
        counts[0] += 1  # all classes exist
        counts = counts[counts.sum(1) > 0]
        p = counts.sum(0) / counts.sum()
        assert -1e-12 <= label_skew(counts) <= 2 * (1 - p.min()) + 1e-12


def test_label_skew_has_a_floor_of_a_finite_sample():
    """A share q of m draws has E|q - p| = sqrt(2 p (1 - p) / (pi m)) nearly; with the whole known
    from n m draws the variance is (1 - 1/n) of that. Ten classes, 10 devices of 135: 0.195."""
    y, n, m = np.repeat(np.arange(10), 135), 10, 135
    found = [label_skew(label_counts(y, iid()(y, n, s))) for s in range(60)]
    wanted = 10 * np.sqrt(2 * 0.1 * 0.9 * (1 - 1 / n) / (np.pi * m))
    assert np.mean(found) == pytest.approx(wanted, rel=0.03) and min(found) > 0.1


def test_entropy_by_hand():
    """H(1/2, 1/2) = ln 2, H(1) = 0; a device of 2 samples and one of 6: 6/8 ln 2."""
    assert entropy(np.array([[1, 1], [3, 0]])) == pytest.approx([np.log(2), 0])
    assert label_entropy(np.array([[2, 0], [3, 3]])) == pytest.approx(0.75 * np.log(2))


def test_label_information_is_at_most_the_entropy_of_the_labels():
    """With equality if and only if every device has one class."""
    for seed in range(100):
        counts = stream(seed, "counts").integers(0, 5, (4, 3)) + np.eye(4, 3, dtype=int)
        counts[3] += 1
        most = entropy(counts.sum(0))
        assert -1e-12 <= label_information(counts) < most
        alone = np.eye(3, dtype=int)[[0, 1, 2, 1]] * counts.sum(1, keepdims=True)
        assert label_information(alone) == pytest.approx(entropy(alone.sum(0)))
    assert label_information(np.array([[1, 2], [3, 6]])) == pytest.approx(0)


def test_label_information_does_not_change_if_a_device_is_cut_in_alike_ones():
    counts = np.array([[6, 2, 4], [1, 5, 0]])
    cut = np.array([[3, 1, 2], [3, 1, 2], [1, 5, 0]])
    assert label_information(cut) == pytest.approx(label_information(counts))
    assert label_skew(cut) == pytest.approx(label_skew(counts))


# ---- amounts -----------------------------------------------------------------------------------


def test_gini_by_hand():
    """Half the mean difference over the mean: of 1 and 3, (0 + 2 + 2 + 0) / 4 / 2 / 2 = 1/4."""
    assert gini([3, 1]) == pytest.approx(0.25)
    assert gini([7] * 5) == pytest.approx(0) and gini([0, 0, 0, 9]) == pytest.approx(3 / 4)
    v = stream(0, "sizes").integers(1, 50, 9)
    assert gini(v) == pytest.approx(np.abs(v[:, None] - v).mean() / 2 / v.mean())


def test_effective_devices_are_all_if_equal_and_one_if_one_has_all():
    assert effective_devices([5] * 8) == pytest.approx(8)
    assert effective_devices([1e9, 1, 1]) == pytest.approx(1)
    assert effective_devices([1, 2]) == pytest.approx(9 / 5)


@pytest.mark.parametrize("beta", [0.3, 1e7])
def test_sizes_of_quantity_skew(beta):
    """They sum to the whole; E n_i = N / n; equal for a large beta."""
    sizes = np.array([[len(p) for p in quantity(beta)(Y, 8, s)] for s in range(300)])
    assert (sizes.sum(1) == len(Y)).all()
    if beta > 1:
        assert np.abs(sizes - len(Y) / 8).max() <= 1.2  # the floor at either cut, and of the draw
    else:
        error = sizes.std(0) / np.sqrt(300)
        assert (np.abs(sizes.mean(0) - len(Y) / 8) < 4 * error + 1).all()


def test_dirichlet_sizes_are_worth_fewer_devices():
    """Of Dir(beta) shares E p_i^2 = (beta + 1) / (n (n beta + 1)), so n sum p_i^2, by which FedNova
    lengthens its step where epochs are equal, is n (beta + 1) / (n beta + 1) on average: 2.5."""
    n, beta, draws = 10, 0.5, 2000
    y = np.zeros(3000, int)
    sizes = [[len(p) for p in quantity(beta)(y, n, s)] for s in range(draws)]
    factor = np.array([n / effective_devices(v) for v in sizes])
    assert n * (beta + 1) / (n * beta + 1) == 2.5
    assert factor.mean() == pytest.approx(2.5, abs=4 * factor.std() / np.sqrt(draws))


def test_one_full_batch_step_weighted_by_size_is_one_on_all_data_whatever_the_sizes():
    for split in (iid(), quantity(0.2)):
        task = small(6, partition=split)
        how = dict(S=6, E=1, B=None, eta=0.5)
        *_, x = itertools.islice(fedavg(task, World(6), **how), 4)
        one = small(1)
        *_, y = itertools.islice(fedavg(one, World(1), **how | dict(S=1)), 4)
        close(x, y)


# ---- features, names, order, test --------------------------------------------------------------


def test_principal_components_keep_distances_and_most_of_the_variance():
    x = stream(0, "x").standard_normal((50, 6)) * np.arange(1, 7)
    f = principal(x, 6)
    apart = np.linalg.norm(x[:, None] - x, axis=2)
    np.testing.assert_allclose(np.linalg.norm(f[:, None] - f, axis=2), apart, atol=1e-9)
    assert (np.diff(f.var(0)) < 0).all()
    np.testing.assert_allclose(principal(x, 2), f[:, :2])


def test_variance_between_devices_by_hand():
    """One class, values 0 2 | 4 6: within 4 / (4 - 2), total 20 / (4 - 1): 1 - 2 / (20/3) = 0.7."""
    f, y = np.array([[0.0], [2], [4], [6]]), np.zeros(4, int)
    assert between_devices(f, y, np.array([0, 0, 1, 1])) == pytest.approx(0.7)
    same = np.array([[0.0], [0], [4], [4]])
    assert between_devices(same, y, np.array([0, 0, 1, 1])) == pytest.approx(1)


def test_a_difference_between_classes_is_none_between_devices():
    """Devices of one class each, of unlike means: within a class there is one device."""
    rng = stream(0, "f")
    device = np.repeat([0, 1], 200)
    f = rng.standard_normal((400, 3)) + 10 * device[:, None]
    assert between_devices(f, device, device) == 0
    assert between_devices(f, 0 * device, device) > 0.9


@pytest.mark.parametrize("devices", [2, 20])
def test_devices_that_see_alike_share_no_variance_on_average(devices):
    found = []
    for seed in range(200):
        rng = stream(seed, "alike", devices)
        f, y = rng.standard_normal((120, 2)), rng.integers(0, 3, 120)
        found.append(between_devices(f, y, rng.integers(0, devices, 120)))
    assert np.mean(found) == pytest.approx(0, abs=4 * np.std(found) / np.sqrt(200))


def test_nearest_by_hand():
    near = nearest(np.array([[0.0], [1], [3], [7]]), 2)
    assert [set(v) for v in near] == [{1, 2}, {0, 2}, {1, 0}, {2, 1}]


def test_own_names_by_hand():
    """Samples 0, 1 of device 0 are named 0, and 2, 3 of device 1 are named 1."""
    near = np.array([[1, 2], [0, 3], [3, 0], [2, 1]])
    y, device = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1])
    assert own_names(near, y, device) == 1
    assert own_names(near, np.array([0, 1, 0, 1]), device) == -1  # the other way round
    assert own_names(near, 0 * y, device) == 0
    assert own_names(near, y, 0 * device) == 0  # one device: nothing to compare


def test_two_groups_with_other_names_agree_with_themselves_only():
    """Each point stands at both devices; they share a share f of the names: 1 - f."""
    rng = stream(0, "names")
    digit, device = rng.integers(0, 10, 800), rng.integers(0, 2, 800)
    f = 100.0 * digit[:, None] + rng.standard_normal((800, 1))
    new = np.array([1, 0, 3, 2, 4, 5, 6, 7, 8, 9])  # f = 6 / 10
    found = own_names(nearest(f, 10), np.where(device == 1, new[digit], digit), device)
    assert found == pytest.approx(0.4, abs=0.05)


@pytest.mark.parametrize("r", [0.1, 0.5, 0.9])
def test_persistence_of_a_chain(r):
    """The chain stays with probability r, else goes to any other of K states: its transition
    matrix has the eigenvalue (r K - 1) / (K - 1), 0 for r = 1 / K."""
    size, n = 3000, 4
    parts = persistent(r, size)(np.repeat(np.arange(10), 50), n, 0)
    y = np.repeat(np.arange(10), 50)[np.concatenate(parts)]
    found = persistence(y, np.repeat(np.arange(n), size))
    assert found == pytest.approx((10 * r - 1) / 9, abs=0.03)


def test_persistence_by_hand_and_not_across_devices():
    device = np.array([0] * 4 + [1] * 4)
    assert persistence(np.array([0, 1, 0, 1] * 2), device) == pytest.approx(-1)
    blocks = persistence(np.array([0, 0, 1, 1] * 2), device)  # 1/2 each: (1 - 1 + 1) / 3
    assert blocks == pytest.approx(1 / 3)
    assert persistence(np.array([0] * 4 + [1] * 4), device) == 0  # a class each says nothing


def test_auc_by_hand():
    there = np.array([True, True, False, False])
    assert auc(np.array([3.0, 1, 2, 0]), there) == 3 / 4
    assert auc(np.ones(4), there) == 1 / 2
    assert auc(np.array([2.0, 3, 0, 1]), there) == 1


def test_train_and_test_are_told_apart_by_their_neighbours():
    rng = stream(0, "apart")
    test = rng.random(600) < 0.3
    x = rng.standard_normal((600, 2))
    assert told_apart(nearest(x, 10), test) == pytest.approx(0.5, abs=4 * np.sqrt(1 / 12 / 180))
    assert told_apart(nearest(x + 9 * test[:, None], 10), test) == 1


# ---- the kinds ---------------------------------------------------------------------------------


def scores(problem=OnDevices, seed=0, **how):
    task = problem(n=20, seed=seed, **how)
    (_, found), *rest = list(noniid_statistics(task, World(20), seed=seed))
    assert not rest
    return found


KINDS = {
    "labels": dict(partition=shuffled(dirichlet(0.1, "client"))),
    "features": dict(view=rotated(45)),
    "concept": dict(view=renamed()),
    "amounts": dict(partition=quantity(0.5)),
    "order": dict(partition=persistent(0.9)),
    "test": dict(unseen=5, partition=tied((5, 6, 7, 8, 9), (20, 21, 22, 23, 24))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_moves_its_own_statistic_most(kind):
    """Another name for an image is another image of the name: P(x|y) changes with P(y|x)."""
    z = {k: v for k, v in scores(**KINDS[kind]).items() if k.startswith("z ")}
    own = z.pop(f"z {kind}")
    if kind == "concept":
        assert z.pop("z features") > 10
    assert own > 10 and own > 1.5 * max(map(abs, z.values()))


def test_iid_data_move_none():
    """60 scores of 20 re-draws each are t-distributed: beyond 5 once in 10,000."""
    for seed in range(10):
        found = scores(seed=seed)
        assert max(abs(found[f"z {k}"]) for k in skew.FACTORS) < 5


def test_styles_move_the_features_and_not_the_labels():
    z = scores(Styles)
    assert z["z features"] > 20 and abs(z["z labels"]) < 5 and abs(z["z amounts"]) < 5
    assert max(map(abs, (scores(Styles, mixed=True)[f"z {k}"] for k in skew.FACTORS))) < 5


def test_label_draws_per_class_change_the_amounts_too():
    assert scores(partition=dirichlet(0.1))["z amounts"] > 20
    assert abs(scores(partition=dirichlet(0.1, "client"))["z amounts"]) < 5


def test_a_camera_leaves_every_statistic_of_labels_to_the_last_digit():
    plain, turned = scores(), scores(view=rotated(45))
    for k in ("labels", "amounts", "order"):
        assert plain[k] == turned[k]


# ---- a cycle of availability -------------------------------------------------------------------


def on(trace, n, times):
    """(n, times): whether each device is on."""
    off = np.zeros((n, len(times)), bool)
    for d, start, end in trace.itertuples(index=False):
        off[d] |= (start <= times) & (times < end)
    return ~off


def test_halves_of_a_cycle_take_turns():
    trace = availability([0, 0.5], period=10, slot=5, until=40)
    there = on(trace, 2, np.arange(40) + 0.5)
    np.testing.assert_array_equal(there[0], np.tile([True] * 5 + [False] * 5, 4))
    np.testing.assert_array_equal(there[1], ~there[0])
    later = availability([0, 0.5], period=10, slot=5, start=-1.0, until=39)
    np.testing.assert_array_equal(on(later, 2, np.arange(39) - 0.5), there[:, :39])


def test_without_a_cycle_the_slots_are_independent_draws():
    """a1 = 0: Bernoulli(a0), alike in both halves, and from slot to slot."""
    trace = availability(np.zeros(40), period=10, a0=0.3, a1=0, slot=1, until=500, seed=1)
    there = on(trace, 40, np.arange(500) + 0.5)
    error = np.sqrt(0.21 / there.size)
    assert there.mean() == pytest.approx(0.3, abs=4 * error)
    first = np.arange(500) % 10 < 5
    gap = there[:, first].mean() - there[:, ~first].mean()
    assert gap == pytest.approx(0, abs=8 * error)
    centred = there - 0.3
    for pair in (centred[:, 1:] * centred[:, :-1], centred[1:] * centred[:-1]):
        assert pair.mean() == pytest.approx(0, abs=4 * 0.21 / np.sqrt(pair.size))


@pytest.mark.parametrize("a1", [0.0, 0.2, 0.5])
def test_every_device_is_on_as_often_whatever_the_cycle(a1):
    phase = np.arange(20) / 20
    trace = availability(phase, period=20, a1=a1, slot=1, until=4000)
    share = on(trace, 20, np.arange(4000) + 0.5).mean(1)
    assert np.abs(share - 0.5).max() < (1e-9 if a1 == 0.5 else 4.5 * np.sqrt(0.25 / 4000))


def test_amplitude_is_that_of_the_wave():
    r = np.arange(61)
    wave = 0.5 + 0.2 * np.sin(2 * np.pi * r / 10 + 1) + 0.3 * np.cos(2 * np.pi * r / 5)
    history = pd.DataFrame(dict(accuracy=wave))
    assert amplitude(history, 10, 4) == pytest.approx(0.2)
    assert amplitude(history, 5, 8) == pytest.approx(0.3)
    assert amplitude(history + 0.4, 10, 4) == pytest.approx(0.2)


HALVES = dict(partition=tied((0, 1, 2, 3, 4), (0, 1, 2)), network=logistic())
LOCAL = dict(S=6, K=5, B=5, eta=0.1)


def test_halves_of_the_devices_train_in_turns():
    """Rounds take equal time; devices 0 to 2 hold classes 0 to 4."""
    task = small(6, **HALVES)
    world, seen = World(6), []
    steps = dependence(task, world, of=fedavg, cycle=10 * world_round(task), **LOCAL)
    for r, _ in enumerate(steps):
        seen.append(set(world.online().tolist()))
        if r == 19:
            break
    first = [s == {0, 1, 2} for s in seen]
    assert first == [True] * 5 + [False] * 5 + [True] * 5 + [False] * 5
    assert all(s in ({0, 1, 2}, {3, 4, 5}) for s in seen)


def world_round(task):
    """Seconds of a round in which everybody takes part."""
    world = World(task.n)
    return run(fedavg, task, world, rounds=1, **LOCAL)["clock"].iloc[-1]


def test_always_on_is_the_method_itself():
    """a0 = 1 and no cycle."""
    task = small(6, **HALVES)
    how = dict(of=fedavg, cycle=1.0, a0=1.0, a1=0.0, **LOCAL)
    *_, x = itertools.islice(dependence(task, World(6), **how), 4)
    *_, y = itertools.islice(fedavg(task, World(6), **LOCAL), 4)
    assert torch.equal(x, y)


# ---- devices that do not train -----------------------------------------------------------------


def test_reweighed_logits_are_the_bayes_rule():
    """P(k, x) known on 4 x 3 cells: with calibrated P(k | x) another prior of k, and the same
    P(x | k), gives the exact posterior."""
    rng = stream(0, "joint")
    given = rng.dirichlet(np.ones(4), 3)  # P(x | k), (3, 4)
    old, new = rng.dirichlet(np.ones(3), 2)
    before, after = (p[:, None] * given / (p @ given) for p in (old, new))  # P(k | x)
    z = torch.from_numpy(np.log(before.T) + rng.normal(size=(4, 1)))  # logits, to a constant
    found = torch.softmax(reweighed(z, old, new), -1)
    close(found, torch.from_numpy(after.T))
    close(reweighed(z, old, old), z)


def test_the_method_is_as_it_was_and_the_correction_helps_where_labels_differ():
    how = dict(n=6, unseen=3, network=logistic(), partition=dirichlet(0.5), seed=2)
    task = OnDevices(**how)
    history = run(train_test_shift, task, World(6), rounds=3, of=fedavg, **LOCAL)
    plain = run(fedavg, OnDevices(**how), World(6), rounds=3, **LOCAL)
    for column in ("accuracy", "unseen", "clock"):
        assert (history[column] == plain[column]).all()
    assert final(history, "corrected") > final(history, "unseen") + 0.05  # few classes each


def test_the_correction_by_hand():
    """Device 1 does not train and holds 3 of class 1 only, device 0 4 of class 0. With one more of
    each of 10 classes: P = 5/14, 1/14, 1/14, ... and there 1/13, 4/13, 1/13, ..."""
    task = OnDevices(n=1, unseen=1, network=logistic(), samples=40, dtype=torch.float64)
    task.held = np.zeros((2, 10))
    task.held[0, 0], task.held[1, 1] = 4, 3
    x = torch.randn(task.d, dtype=task.dtype, generator=torch.Generator().manual_seed(0))

    def fixed(task, world, *, seed=0):
        yield x

    _, found = next(train_test_shift(task, World(1), of=fixed))
    z = task.logits(x, task.x_test[task.tests[1]])
    z[:, 0] += np.log(14 / 13 / 5)
    z[:, 1] += np.log(14 / 13 * 4)
    z[:, 2:] += np.log(14 / 13)
    right = (z.argmax(1) == task.y_test[task.tests[1]]).double().mean().item()
    assert found["corrected"] == pytest.approx(right)
