"""Partitions: each sample at one device, the skew alpha promises, the same on every machine."""

import hashlib

import numpy as np
import pytest
import torch
from conftest import models, small

from survey_lib.data import load
from survey_lib.errors import UsageError
from survey_lib.methods.server_sync import fedavg
from survey_lib.partition import (
    blocks,
    by,
    dirichlet,
    drawn,
    everything,
    given,
    iid,
    kept_back,
    label_counts,
    label_skew,
    lacking,
    mixed,
    persistent,
    places,
    quantity,
    redrawn,
    shards,
    shuffled,
    styled,
    tied,
)

Y = load("digits").y.numpy()  # 1437 labels, 10 classes
N = 10
SPLITS = {
    "iid": iid(),
    "shards 1": shards(1),
    "shards 2": shards(2),
    "class 0.1": dirichlet(0.1),
    "class 1e-6": dirichlet(1e-6),
    "class 1e6": dirichlet(1e6),
    "client 0.1": dirichlet(0.1, per="client"),
    "client 1e-6": dirichlet(1e-6, per="client"),
    "client 100": dirichlet(100, per="client"),
    "quantity 0.5": quantity(0.5),
    "styled": styled(np.arange(len(Y)) // 200),
    "persistent 0.9": persistent(0.9),
    "shuffled": shuffled(dirichlet(0.1)),
    "mixed": mixed(0.2, shards(2)),
    "households": by(np.arange(len(Y)) % 7, dirichlet(0.1)),
    "redrawn": redrawn(dirichlet(0.1)),
    "blocks 1.5": blocks(1.5),
    "blocks of two": blocks(1.5, 2),
}


@pytest.mark.parametrize("n", [1, 3, 10, 100])
@pytest.mark.parametrize("name", SPLITS)
def test_every_sample_is_at_exactly_one_device_and_none_is_empty(name, n):
    parts = SPLITS[name](Y, n, 0)
    assert len(parts) == n and min(len(p) for p in parts) >= 1
    assert all(np.issubdtype(p.dtype, np.integer) for p in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(Y)))


@pytest.mark.parametrize("name", SPLITS)
def test_same_key_same_split(name):
    a, b = SPLITS[name](Y, N, 3, "x"), SPLITS[name](Y, N, 3, "x")
    assert all(np.array_equal(p, q) for p, q in zip(a, b, strict=True))
    for other in (SPLITS[name](Y, N, 4, "x"), SPLITS[name](Y, N, 3)):
        assert not any(np.array_equal(p, q) for p, q in zip(a, other, strict=True))


def test_training_has_no_part_in_the_split():
    """The task's seed draws it; the method's draws devices and batches."""
    task = small(N, samples=None, partition=dirichlet(0.1), seed=3)
    split, ends = dirichlet(0.1)(Y, N, 3), []
    for seed in (0, 1):
        ends.append(models(fedavg, 2, task=task, S=3, B=32, K=1, eta=0.1, seed=seed)[-1])
        assert all(np.array_equal(task.rows(i), split[i]) for i in range(N))
    assert not torch.equal(*ends)


def digest(parts):
    whole = [np.concatenate([[len(p)], p]).astype("<i8").tobytes() for p in parts]
    return hashlib.sha256(b"".join(whole)).hexdigest()[:16]


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("iid", "167c7d7a5f715e9e"),
        ("shards 2", "5cbd5d73ee06a482"),
        ("class 0.1", "354d81028c17d142"),
        ("client 0.1", "9dbd9ba8980beeb6"),
        ("quantity 0.5", "63684d26684726f9"),
    ],
)
def test_the_split_is_the_same_on_every_machine(name, want):
    """Pinned: a machine on which this differs trains on other data than the published runs."""
    assert digest(SPLITS[name](Y, N, 0)) == want


def test_iid_sizes_differ_by_one_at_most_and_labels_are_even():
    parts = iid()(Y, N, 0)
    assert {len(p) for p in parts} == {len(Y) // N, len(Y) // N + 1}
    assert label_skew(label_counts(Y, parts)) < label_skew(label_counts(Y, shards(2)(Y, N, 0))) / 4


def test_iid_with_a_size_allows_more_devices_than_samples():
    parts = iid(20)(np.zeros(30, int), 500, 0)
    assert [len(p) for p in parts] == [20] * 500
    drawn = np.bincount(
        np.concatenate(parts), minlength=30
    )  # each sample 10000 / 30 times on average
    assert abs(drawn - 10000 / 30).max() < 4.5 * np.sqrt(10000 / 30)


@pytest.mark.parametrize("s", [1, 2, 3])
@pytest.mark.parametrize("n", [5, 10, 40])
def test_shards_hold_s_labels_and_one_more_where_a_block_crosses_labels(n, s):
    parts = shards(s)(Y, n, 0)
    blocks = np.array_split(np.sort(Y), n * s)
    crossings = sorted((len(np.unique(b)) - 1 for b in blocks), reverse=True)
    labels = np.array([len(np.unique(Y[p])) for p in parts])
    assert (labels <= s + sum(crossings[:s])).all()
    assert labels.sum() <= n * s + 9  # 10 labels have 9 borders in the sorted list
    sizes = np.array([len(p) for p in parts])
    assert sizes.max() - sizes.min() <= s


def test_shards_by_hand():
    """8 samples of 4 labels in 4 blocks of one label each: two labels at each of 2 devices."""
    y = np.array([3, 1, 0, 2, 2, 0, 1, 3])
    for seed in range(5):
        a, b = (set(y[p]) for p in shards(2)(y, 2, seed))
        assert len(a) == len(b) == 2 and a | b == {0, 1, 2, 3}


def test_large_alpha_per_class_is_even():
    """Shares tend to 1/n: counts within 1 of n_k / n, but for the floor at either cut."""
    for n in (4, 10, 16):
        counts = label_counts(Y, dirichlet(1e8)(Y, n, 1))
        assert np.abs(counts - np.bincount(Y) / n).max() <= 1 + 0.05
        assert label_skew(counts) < 10 * n / len(Y)
    y = np.repeat(np.arange(10), 20_000)
    assert label_skew(label_counts(y, dirichlet(1e8)(y, 10, 1))) < 1e-3


def test_tiny_alpha_per_class_gives_each_class_to_one_device():
    for seed in range(5):
        counts = label_counts(Y, dirichlet(1e-6)(Y, 10, seed))
        strangers = counts.sum(0) - counts.max(0)  # samples that filled empty devices
        empty_before = 10 - len(np.unique(counts.argmax(0)))
        assert strangers.sum() == empty_before
    y = np.repeat(np.arange(10), 50)  # on 2 devices none stays empty, and no class is divided
    counts = label_counts(y, dirichlet(1e-6)(y, 2, 0))
    assert set(counts.ravel()) == {0, 50}


def test_tiny_alpha_per_client_gives_one_class_while_its_pool_lasts():
    y = np.repeat(np.arange(10), 1000)  # 50 devices of 200: a pool serves five
    counts = label_counts(y, dirichlet(1e-6, per="client")(y, 50, 0))
    assert (counts.sum(1) == 200).all()
    pools = np.full(10, 1000)
    for row in counts:
        if (row > 0).sum() > 1:  # a second class only where the first ran out at this device
            assert (pools - row == 0)[row > 0].sum() >= (row > 0).sum() - 1
        pools = pools - row
    assert ((counts > 0).sum(1)[:10] == 1).all()  # too few devices to empty a pool by accident


def test_sizes_per_client_differ_by_one_at_most():
    sizes = [len(p) for p in dirichlet(0.1, per="client")(Y, 100, 0)]
    assert set(sizes) <= {14, 15} and sum(sizes) == 1437


@pytest.mark.parametrize("build", [dirichlet, quantity])
@pytest.mark.parametrize("alpha", [0.5, 5.0])
def test_shares_have_the_moments_of_the_dirichlet(build, alpha):
    """n shares of Dir(alpha 1): mean 1/n, variance (1/n)(1 - 1/n) / (n alpha + 1)."""
    n, size, draws = 4, 3000, 2000
    y = np.zeros(size, int)
    share = np.array([[len(p) for p in build(alpha)(y, n, s)] for s in range(draws)]) / size
    variance = (1 / n) * (1 - 1 / n) / (n * alpha + 1)
    edge = 1 / size  # of the floor, and of filling the empty
    for i in range(n):
        s = share[:, i]
        assert s.mean() == pytest.approx(1 / n, abs=4 * np.sqrt(variance / draws) + edge)
        error = np.sqrt((((s - s.mean()) ** 4).mean() - s.var() ** 2) / draws)
        assert s.var() == pytest.approx(variance, abs=4 * error + edge)
    covariance = np.cov(share.T)[~np.eye(n, dtype=bool)]  # shares sum to 1
    np.testing.assert_allclose(covariance, -variance / (n - 1), atol=0.15 * variance)


def test_shares_per_client_have_the_moments_of_the_dirichlet():
    """q ~ Dir(alpha C p): mean p, variance p (1 - p) / (alpha C + 1), plus E[q (1 - q)] / m."""
    y, alpha, m, draws = np.repeat([0, 1, 2], [150, 90, 60]), 1.0, 30, 300
    p, total = np.array([0.5, 0.3, 0.2]), alpha * 3
    split = dirichlet(alpha, per="client")
    counts = [
        label_counts(y, split(y, 10, s))[:2] for s in range(draws)
    ]  # before any pool is empty
    share = np.concatenate(counts) / m
    of_q = p * (1 - p) / (total + 1)
    variance = of_q + (p * (1 - p) - of_q) / m
    assert np.abs(share.mean(0) - p).max() < 4 * np.sqrt(variance.max() / (2 * draws))
    np.testing.assert_allclose(share.var(0), variance, rtol=0.15)


def test_smaller_alpha_is_stronger_skew():
    for per in ("class", "client"):
        skew = [
            np.mean([label_skew(label_counts(Y, dirichlet(a, per)(Y, N, s))) for s in range(3)])
            for a in (100, 1, 0.1, 0.01)
        ]
        assert skew == sorted(skew) and skew[0] < 0.5 and skew[-1] > 1.3


def test_quantity_skews_sizes_and_not_labels():
    y = np.tile(np.arange(5), 4000)
    parts = quantity(0.5)(y, 8, 1)
    sizes = np.array([len(p) for p in parts])
    assert sizes.max() > 2 * np.median(sizes)
    assert label_skew(label_counts(y, parts)) < 0.1


def test_label_counts_and_skew_by_hand():
    """p = (1/2, 1/2); devices of 3 and 1 samples: |2/3 - 1/2| 2 = 1/3 and |0 - 1/2| 2 = 1."""
    y = np.array([0, 1, 0, 1])
    counts = label_counts(y, [np.array([0, 1, 2]), np.array([3])])
    np.testing.assert_array_equal(counts, [[2, 1], [0, 1]])
    assert label_skew(counts) == pytest.approx(3 / 4 * 1 / 3 + 1 / 4)
    assert label_skew(np.array([[5, 5], [1, 1]])) == 0
    assert label_skew(np.eye(10) * 7) == pytest.approx(2 * (1 - 1 / 10))  # one class each, of 10


def test_an_empty_device_takes_one_sample_from_the_largest():
    y = np.zeros(60, int)
    sizes = np.array([len(p) for p in dirichlet(1e-9)(y, 6, 0)])  # all at one, before
    assert sorted(sizes) == [1, 1, 1, 1, 1, 55]


@pytest.mark.parametrize("alpha", [0, -1, float("nan")])
@pytest.mark.parametrize("build", [dirichlet, quantity])
def test_alpha_must_be_above_0(build, alpha):
    with pytest.raises(UsageError, match="alpha"):
        build(alpha)


def test_wrong_arguments_are_refused():
    with pytest.raises(UsageError, match='expected "class" or "client"'):
        dirichlet(1.0, per="device")
    with pytest.raises(UsageError, match="at least one shard"):
        shards(0)
    with pytest.raises(UsageError, match="needs 2000 samples"):
        shards(2)(Y, 1000, 0)
    for split in (iid(), dirichlet(1.0), dirichlet(1.0, per="client"), quantity(1.0)):
        with pytest.raises(UsageError, match="6 devices but only 5 samples"):
            split(np.array([0, 1, 0, 1, 0]), 6, 0)


@pytest.mark.parametrize("devices", [(3, 4), (0,), (1, 2, 3, 4)])
def test_tied_classes_are_at_their_devices_only(devices):
    parts = tied((8, 9), devices)(Y, 5, 0)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(Y)))
    counts = label_counts(Y, parts)
    others = np.setdiff1d(np.arange(5), devices)
    assert (counts[others, 8:] == 0).all() and (counts[devices, :8] == 0).all()
    for group in (list(devices), others):
        assert np.ptp(counts[group].sum(1)) <= 1
    other = tied((8, 9), devices)(Y, 5, 1)
    assert not any(np.array_equal(a, b) for a, b in zip(parts, other, strict=True))


def test_devices_with_tied_classes_can_hold_as_much_of_the_rest_as_the_others():
    parts = tied((8, 9), (3, 4), alone=False)(Y, 5, 0)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(Y)))
    counts = label_counts(Y, parts)
    assert (counts[:3, 8:] == 0).all() and np.ptp(counts[:, :8].sum(1)) <= 1
    assert np.ptp(counts[3:, 8:].sum(1)) <= 1


@pytest.mark.parametrize("devices", [(), (5,), (0, 0), (-1, 2), (0, 1, 2, 3, 4)])
def test_some_but_not_all_devices_can_hold_tied_classes(devices):
    with pytest.raises(UsageError, match="some, not all"):
        tied((8, 9), devices)(Y, 5, 0)


@pytest.mark.parametrize("common", [0.0, 0.5, 1.0])
def test_drawn_streams_are_everybodys_in_part(common):
    """Of 200 draws the common ones come from all samples, the others from one shard of 1/n."""
    parts = drawn(common, 200)(Y, N, 0)
    own = shards(1)(Y, N, 0)
    assert [len(p) for p in parts] == [200] * N
    k = round(200 * common)
    for part, shard in zip(parts, own, strict=True):
        assert np.isin(part[k:], shard).all()
        if k:
            assert not np.isin(part[:k], shard).all() and len(set(Y[part[:k]])) == 10
    hit = np.bincount(np.concatenate([p[:k] for p in parts]), minlength=len(Y)) > 0
    expected = 1 - np.exp(-N * k / len(Y))  # of so many uniform draws, +- 1 %
    assert hit.mean() == pytest.approx(expected, abs=0.03)
    other = drawn(common, 200)(Y, N, 1)
    assert not any(np.array_equal(a, b) for a, b in zip(parts, other, strict=True))


@pytest.mark.parametrize("common", [-0.1, 1.5])
def test_a_share_is_from_0_to_1(common):
    with pytest.raises(UsageError, match="from 0 to 1"):
        drawn(common, 10)


def test_everything_is_everywhere():
    parts = everything()(Y, 3, 0)
    assert len(parts) == 3 and all((p == np.arange(len(Y))).all() for p in parts)


# ---- natural-looking splits ----------------------------------------------------------------------


def test_a_split_by_contexts_is_the_split_of_them():
    contexts = np.random.default_rng(0).integers(12, size=len(Y))
    parts = by(contexts, dirichlet(0.05))(Y, N, 3)
    expected = dirichlet(0.05)(contexts, N, 3)
    assert all(np.array_equal(a, b) for a, b in zip(parts, expected, strict=True))
    assert label_skew(label_counts(contexts, parts)) > 1 > label_skew(label_counts(Y, parts))
    with pytest.raises(UsageError, match="one each"):
        by(contexts[1:], iid())(Y, N, 0)


def test_a_redrawn_split_is_another_of_the_same_kind():
    first, other = dirichlet(0.1)(Y, N, 0), redrawn(dirichlet(0.1))(Y, N, 0)
    third = redrawn(dirichlet(0.1), 2)(Y, N, 0)
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(third, other, strict=True))


def test_given_groups():
    groups = np.array([2, 0, 0, 1, 2, 2])
    parts = given(groups)(np.zeros(6), 3, 0)
    assert [list(p) for p in parts] == [[1, 2], [3], [0, 4, 5]]
    for wrong in (groups[1:], groups + 1, np.minimum(groups, 1)):
        with pytest.raises(UsageError, match="number the groups"):
            given(wrong)(np.zeros(6), 3, 0)


@pytest.mark.parametrize("n", [10, 20])
def test_mixed_gives_every_device_a_little_of_each_class(n):
    parts = mixed(0.2, shards(2))(Y, n, 0)
    counts = label_counts(Y, parts)
    assert counts.min() >= round(0.2 * np.bincount(Y).min()) // n >= 1
    rare = np.sort(counts, 1)[:, : 10 - 4]  # two shards touch four classes at most
    assert rare.max() <= -(-round(0.2 * np.bincount(Y).max()) // n)
    assert label_skew(counts) < label_skew(label_counts(Y, shards(2)(Y, n, 0)))


def test_mixed_at_its_ends():
    counts = label_counts(Y, mixed(1.0, shards(1))(Y, 7, 0))
    assert (counts.max(0) - counts.min(0) <= 1).all()
    parts, other = mixed(0.0, shards(1))(Y, 7, 0), label_counts(Y, shards(1)(Y, 7, 0))
    assert ((label_counts(Y, parts) > 0).sum(1) <= 3).all() and other.sum() == len(Y)
    with pytest.raises(UsageError, match="0 to 1"):
        mixed(1.5, iid())


@pytest.mark.parametrize("s", [1, 2])
def test_blocks_have_log_normal_shares(s):
    sizes = np.array([[len(p) for p in blocks(0.8, s)(Y, 20, seed)] for seed in range(200)])
    spread = np.log(sizes).std(1, ddof=1)
    assert abs(spread.mean() - 0.8) < 4 * spread.std() / np.sqrt(200) + 0.02  # floors
    sizes = [len(p) for p in blocks(0, s)(Y, 20, 0)]
    assert max(sizes) - min(sizes) <= s


@pytest.mark.parametrize("sigma", [0, 1.5])
def test_blocks_hold_neighbouring_labels(sigma):
    parts = sorted(
        (np.sort(Y[p]) for p in blocks(sigma)(Y, 20, 0)), key=lambda v: tuple(v[[0, -1]])
    )
    assert (np.diff(np.concatenate([v for v in parts if len(v) > 1])) >= 0).all()
    few = [len(np.unique(Y[p])) for p in blocks(0, 2)(Y, 20, 0)]
    assert max(few) <= 4 and sum(few) / 20 > 1.5
    for wrong in ((-1, 1), (1, 0)):
        with pytest.raises(UsageError, match="at least 1"):
            blocks(*wrong)


def test_cells_of_a_map():
    points = np.random.default_rng(0).normal(size=(500, 2)) ** 3
    assert (places(points, np.inf) == 0).all()
    assert (np.bincount(places(points, 1)) == 1).all()
    number = places(points, 20)
    sizes = np.bincount(number)
    assert sizes.max() <= 20 and sizes.min() >= 1 and sizes.sum() == 500
    boxes = [(points[number == c].min(0), points[number == c].max(0)) for c in range(len(sizes))]
    for i, (low, high) in enumerate(boxes):  # no cell reaches into another
        for other_low, other_high in boxes[:i]:
            assert (high < other_low).any() or (other_high < low).any()
    corners = np.array([[0, 0], [0, 1], [1, 0], [1, 1.0]])
    assert sorted(places(corners, 2)) == [0, 1, 2, 3]
    assert (places(np.ones((5, 2)), 2) == 0).all()  # one place cannot be cut


# ---- styles and streams --------------------------------------------------------------------------


def test_one_style_of_each_class_is_an_iid_split():
    for n in (1, 7, 20):
        parts, plain = styled(np.zeros(len(Y), int))(Y, n, 4), iid()(Y, n, 4)
        assert all(np.array_equal(a, b) for a, b in zip(parts, plain, strict=True))


@pytest.mark.parametrize("n", [4, 12, 20])
def test_styles_leave_labels_as_in_an_iid_split_and_part_the_fine_labels(n):
    style = np.random.default_rng(0).integers(3, size=len(Y))
    parts, plain = styled(style)(Y, n, 1), iid()(Y, n, 1)
    counts = label_counts(Y, parts)
    np.testing.assert_array_equal(counts, label_counts(Y, plain))
    fine = 3 * Y + style
    held = label_counts(fine, parts).reshape(n, 10, 3) > 0
    # three styles of a class lie side by side on n devices: two borders, at most, are shared
    assert held.sum((0, 2)).max() <= n + 2
    assert label_skew(label_counts(fine, parts)) > 1.05 > label_skew(label_counts(fine, plain))


def test_styles_on_as_many_devices_each_as_they_fill_are_apart():
    """Two classes with three styles of 20 samples and 6 devices, of 10 of each class: one style
    each; the fine labels' skew is greatest, 2 (1 - 1/3)."""
    y, style = np.repeat([0, 1], 60), np.tile(np.repeat([0, 1, 2], 20), 2)
    even = [np.concatenate([np.arange(i, 60, 6), np.arange(60 + i, 120, 6)]) for i in range(6)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("survey_lib.partition._iid", lambda y, n, *key: even)
        parts = styled(style)(y, 6, 0)
    fine = label_counts(3 * y + style, parts)
    assert ((fine > 0).sum(1) == 2).all() and label_skew(fine) == pytest.approx(4 / 3)


def test_styles_are_one_each():
    with pytest.raises(UsageError, match="expected one each"):
        styled([0, 1])(Y, 3, 0)


def test_a_persistent_order_has_the_samples_of_an_iid_split():
    for r in (0.0, 0.1, 1.0):
        parts, plain = persistent(r)(Y, N, 2), iid()(Y, N, 2)
        for a, b in zip(parts, plain, strict=True):
            np.testing.assert_array_equal(np.sort(a), np.sort(b))
            changes = (np.diff(Y[a]) != 0).sum()
            if r == 1:
                assert changes == len(np.unique(Y[a])) - 1  # class by class
            elif r == 0:  # as long as there are others
                most = np.bincount(Y[a]).max()
                assert changes >= len(a) - 1 - most


@pytest.mark.parametrize("r", [0.1, 0.7])
def test_a_stream_stays_with_probability_r_and_else_jumps_anywhere(r):
    y, size = np.repeat(np.arange(10), 30), 20_000
    (part,) = persistent(r, size)(y, 1, 0)
    label = y[part]
    stays = label[1:] == label[:-1]
    error = np.sqrt(r * (1 - r) / size)
    assert stays.mean() == pytest.approx(r, abs=4 * error)
    step = (np.diff(label) % 10)[~stays]
    share = np.bincount(step, minlength=10)[1:] / len(step)
    assert np.abs(share - 1 / 9).max() < 4.5 * np.sqrt(1 / 9 * 8 / 9 / len(step))
    assert np.abs(np.bincount(part, minlength=300) / size - 1 / 300).max() < 0.004


def test_a_stream_that_never_jumps_is_of_one_class():
    for seed in range(5):
        for part in persistent(1.0, 100)(Y, 3, seed):
            assert len(np.unique(Y[part])) == 1 and len(part) == 100
    with pytest.raises(UsageError, match="0 to 1"):
        persistent(1.1)


def test_shuffled_is_the_same_split_in_another_order():
    plain = dirichlet(0.1)(Y, N, 0)
    for a, b in zip(shuffled(dirichlet(0.1))(Y, N, 0), plain, strict=True):
        np.testing.assert_array_equal(np.sort(a), np.sort(b))
        assert len(b) < 20 or not np.array_equal(a, b)


@pytest.mark.parametrize("split", [iid(), shards(2), dirichlet(0.1)])
@pytest.mark.parametrize("share", [0.0, 1 / 3])
def test_what_is_kept_back_is_of_all_classes_and_the_rest_is_split_as_ever(split, share):
    parts = kept_back(split, share)(Y, N, 3)
    held = np.concatenate(parts)
    assert len(held) == len(set(held)) and min(len(p) for p in parts) >= 1
    count, left = np.bincount(Y), np.bincount(Y[held])
    assert (count - left == np.floor(share * count)).all()
    rest = np.sort(held)
    assert all((rest[p] == q).all() for p, q in zip(split(Y[rest], N, 3), parts, strict=True))
    again = np.sort(np.concatenate(kept_back(split, share)(Y, N, 4)))
    assert (share > 0) == (not np.array_equal(rest, again))


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_kept_back_wants_a_share(share):
    with pytest.raises(UsageError, match="share"):
        kept_back(iid(), share)


def test_lacking():
    """Every device lacks so many labels, each label as many devices."""
    y = np.arange(600) % 10
    parts = lacking(4)(y, 10, 3)
    counts = np.array([np.bincount(y[p], minlength=10) for p in parts])
    assert ((counts == 0).sum(1) == 4).all() and ((counts == 0).sum(0) == 4).all()
    assert (counts[counts > 0] == 10).all() and len(np.unique(np.concatenate(parts))) == 600
    other = lacking(4)(y, 10, 4)
    assert any(set(a) != set(b) for a, b in zip(parts, other, strict=True))
    [alone] = lacking(4)(y, 1, 3)
    assert len(alone) == 360
    for missing in (-1, 10):
        with pytest.raises(UsageError, match="expected 0 to 9 labels"):
            lacking(missing)(y, 10, 3)
