"""Tasks: what the devices hold, what they minimise and by what they are judged."""

import itertools

import numpy as np
import pytest
import torch
from conftest import autograd, close
from torch.nn import functional as F

from survey_lib.data import Data, load
from survey_lib.errors import UsageError
from survey_lib.evidence.run import run
from survey_lib.methods.server_sync import fedavg
from survey_lib.models import logistic, mlp
from survey_lib.partition import dirichlet, everything, iid, label_counts, shards, tied
from survey_lib.tasks import (
    ExcessLoss,
    Instalments,
    LowerHalf,
    Mixed,
    OnDevices,
    OnTraining,
    Recall,
    RidgeSoftmax,
    Stationarity,
    Styles,
    clusters,
    kinds,
    redealt,
)
from survey_lib.training import InFlight, Task, batch_gradients, gradients, local_sgd, train
from survey_lib.views import renamed, rotated
from survey_lib.world import World


@pytest.mark.parametrize("tested", [(8, 9), (0,)])
def test_recall_is_the_share_of_the_tested_classes_that_is_found(tested):
    """Weighted by their numbers, the recalls of all classes make up the accuracy."""
    how = dict(n=4, network=logistic(), seed=3)
    whole, part = Task(**how), Recall(tested=tested, **how)
    rest = Recall(tested=[k for k in range(10) if k not in tested], **how)
    assert torch.equal(part.init(), whole.init()) and (part.order == whole.order).all()
    X = torch.stack(
        [whole.init(), torch.randn(whole.d, generator=torch.Generator().manual_seed(0))]
    )
    there = torch.isin(whole.y_test, torch.tensor(tested))
    for k, name in enumerate(("accuracy", "loss")):
        share = there.double().mean().item()
        weighted = share * part.evaluate(X)[k] + (1 - share) * rest.evaluate(X)[k]
        assert weighted == pytest.approx(whole.evaluate(X)[k], rel=1e-6), name
    found = whole.logits(X[1], whole.x_test).argmax(1)
    wanted = (found == whole.y_test)[there].double().mean().item()
    assert part.evaluate(X)[0][1] == pytest.approx(wanted)


def test_lower_half_asks_for_the_upper_labels_from_zero():
    whole, half = Task(n=4, seed=3), LowerHalf(n=4, seed=3)
    assert torch.equal(half.y, (whole.y >= 5).long())
    assert torch.equal(half.y_test, (whole.y_test >= 5).long())
    assert torch.equal(half.x, whole.x) and half.classes == 2 and half.d == 2 * 65
    assert (half.init() == 0).all() and half.guess == 0.5
    by_half = LowerHalf(n=4, partition=shards(1))
    assert sorted(len(by_half.y[by_half.rows(i)].unique()) for i in range(4)) in (
        [1] * 4,
        [1, 1, 1, 2],
    )


@pytest.mark.parametrize("B", [None, 3])
def test_ridge_gradients_have_mu_x(B):
    """Autograd of the cross-entropy over the same batch, and mu x."""
    task = RidgeSoftmax(n=5, partition=dirichlet(0.5), mu=0.3, dtype=torch.float64)
    plain = Task(n=5, partition=dirichlet(0.5), network=logistic(), dtype=torch.float64)
    X = torch.randn(5, task.d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    on, how = np.arange(5), dict(B=B, seed=7)
    G = gradients(task, World(5), on, X, **how)
    close(G, gradients(plain, World(5), on, X, **how) + 0.3 * X)
    if B is None:
        close(G[2], autograd(plain, X[2], task.rows(2)) + 0.3 * X[2])


@pytest.mark.parametrize("mu", [0.05, 0.5])
def test_ridge_minimum_is_where_the_mean_gradient_is_zero(mu):
    task = RidgeSoftmax(n=4, partition=dirichlet(0.5), mu=mu, dtype=torch.float64)
    G = gradients(task, World(4), np.arange(4), task.best, seed=0)
    close(G.mean(0), torch.zeros(task.d, dtype=torch.float64), 1e-5)
    assert G.norm(dim=1).min() > 0.1  # and no device's own minimum
    X = torch.stack([task.init(), task.best, 1.1 * task.best])
    accuracy, error = task.evaluate(X)
    assert error == pytest.approx([1, 0, 0.01]) and accuracy == pytest.approx(1 - error)


@pytest.mark.parametrize("samples", [None, 120])
@pytest.mark.parametrize("mu", [0.03, 0.3])
def test_the_excess_loss_is_zero_at_the_minimum_alone(mu, samples):
    """There the gradient of sum_i p_i f_i is zero; who holds what does not matter."""
    how = dict(n=4, mu=mu, samples=samples, seed=5)
    task, other = (ExcessLoss(partition=p, **how) for p in (dirichlet(0.5), shards(1)))
    assert task.least == other.least
    x = task.init()
    for _ in range(40):  # Newton's method
        G = gradients_at(task, x)
        if G.norm() < 1e-12:
            break
        H = torch.autograd.functional.jacobian(lambda x: objective_slope(task, x), x)
        x = x - torch.linalg.solve(H, G)
    accuracy, excess = task.evaluate(torch.stack([x, task.init(), 1.1 * x]))
    assert abs(excess[0]) < 1e-12 and excess[2] > 1e-4 and (accuracy == 1 - excess).all()
    assert excess[1] == pytest.approx(np.log(10) - task.least)


def gradients_at(task, x):
    """(d,): the gradient of sum_i p_i f_i as the devices see it."""
    return task.p @ gradients(task, World(task.n), np.arange(task.n), x, seed=0)


def objective_slope(task, x):
    """(d,): the same by hand, for a second derivative."""
    u = task.x[task.order].flatten(1)
    z = torch.softmax(u @ x[:-10].view(10, -1).T + x[-10:], 1)
    z = (z - torch.eye(10).double()[task.y[task.order]]) / len(u)
    return torch.cat([(z.T @ u).flatten(), z.sum(0)]) + task.ridge * x


def stream_of(instalments=4, every=10.0, **how):
    how = dict(n=5, samples=103, partition=dirichlet(0.5), network=logistic()) | how
    return Instalments(instalments=instalments, every=every, dtype=torch.float64, **how)


def test_on_training_the_loss_is_that_of_the_samples_that_the_devices_hold():
    task = OnTraining("digits", n=3, samples=90, network=logistic(), dtype=torch.float64)
    x = task.init() + 0.01
    z = task.network(x, task.data.x.double()[task.order])
    loss = torch.nn.functional.cross_entropy(z, task.data.y[task.order])
    assert len(task.order) == 90 and task.evaluate(x[None])[1][0] == pytest.approx(loss.item())


def test_data_come_in_by_instalments():
    task, whole = stream_of(), Task(n=5, samples=103, partition=dirichlet(0.5), network=logistic())
    held = {i: [] for i in range(5)}
    for seconds, part in ((0, 1), (9.9, 1), (10, 2), (29.9, 3), (30, 4), (1e9, 4)):
        task.reveal(seconds)
        assert (task.sizes == np.ceil(whole.sizes * part / 4)).all() and task.sizes.min() > 0
        assert task.p.numpy() == pytest.approx(task.sizes / task.sizes.sum())
        for i in range(5):
            rows = task.rows(i).tolist()
            assert len(rows) == task.sizes[i] and rows[: len(held[i])] == held[i]  # what came stays
            held[i] = rows
    for i in range(5):
        assert sorted(held[i]) == sorted(whole.rows(i))
    assert [held[i] for i in range(5)] != [whole.rows(i).tolist() for i in range(5)]  # shuffled
    assert (stream_of().rows(0) == held[0][: len(stream_of().rows(0))]).all()


def test_one_instalment_is_all_of_the_data():
    assert stream_of(1).sizes.sum() == 103
    assert (stream_of(7).sizes * 7 >= stream_of(1).sizes).all()  # rounded up


@pytest.mark.parametrize("wrong", [dict(instalments=0), dict(every=0.0), dict(every=-1.0)])
def test_wrong_instalments_are_refused(wrong):
    with pytest.raises(UsageError, match="instalments"):
        stream_of(**wrong)


@pytest.mark.parametrize("compute", [None, batch_gradients])
def test_a_device_under_way_does_not_see_what_comes_in(compute):
    task, twin = stream_of(), stream_of()
    how = dict(B=4) if compute else dict(B=4, E=2, eta=0.1)
    flight, x = InFlight(task, compute, **how), task.init()
    for order in ((0, 1, 2), (2, 1, 0)):
        flight.start(0, x, "a")
        flight.start(2, x, "a")
        task.reveal(task.every)
        flight.start(1, x, "b")
        got = {i: flight.result(i) for i in order}
        twin.reveal(0.0)
        old = (compute or train)(twin, [0, 2], x, seed="a", **how)
        twin.reveal(task.every)
        new = (compute or train)(twin, [1], x, seed="b", **how)
        for i, want in ((0, old[0]), (2, old[1]), (1, new[0])):
            close(got[i], want)
        task.reveal(0.0)


def test_a_round_sees_the_data_that_were_there_when_it_began():
    seen = []

    def local(task, world, chosen, x, **how):
        seen.append((world.clock, task.sizes.copy()))
        return local_sgd(task, world, chosen, x, **how)

    task, world = stream_of(every=0.008), World(5)
    run(fedavg, task, world, rounds=12, S=5, B=4, E=1, eta=0.1, local=local)
    for clock, sizes in seen:
        part = min(4, 1 + clock // 0.008)
        assert (sizes == np.ceil(task.held * part / 4)).all()
    assert len(seen) == 12 and 3 <= len({sizes.sum() for _, sizes in seen}) <= 4
    clocks = [clock for clock, _ in seen]
    assert all(a < b for a, b in itertools.pairwise(clocks))


def test_ridge_reaches_local_training_too():
    """One full-batch step of local training is a step along the gradient, ridge included."""
    task = RidgeSoftmax(n=3, mu=0.3, dtype=torch.float64)
    X = torch.randn(3, task.d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    G = gradients(task, World(3), np.arange(3), X, seed=0)
    Y = train(task, np.arange(3), X, eta=0.2, B=None, K=1, mu=0.7, seed=0)
    torch.testing.assert_close(Y, X - 0.2 * G, rtol=0, atol=1e-12)


def test_stationarity_measures_the_gradient_of_all_samples():
    task = Stationarity(n=3, network=logistic(), dtype=torch.float64)
    assert (task.sizes == len(task.y)).all()
    X = torch.stack([task.init(), 2 * task.init()])
    G = torch.stack([autograd(task, x, torch.arange(len(task.y))) for x in X])
    close(task.gradient(X), G)
    accuracy, loss = task.evaluate(X)
    assert loss == pytest.approx(G.square().sum(1).numpy())
    assert accuracy == pytest.approx(Task.evaluate(task, X)[0])


def test_the_constants_of_a_run():
    """Smoothness: the greatest eigenvalue of the Hessian. Variance: within 4 standard errors of
    that of drawn batches. Along a run: the greatest."""
    task = Stationarity(n=1, network=logistic(), dtype=torch.float64)
    x = task.init()
    z = task.x.flatten(1)
    z = torch.cat([z, torch.ones(len(z), 1)], 1)
    p = torch.softmax(task.logits(x, task.x), 1)
    S = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    H = torch.einsum("nij,na,nb->iajb", S, z, z).reshape(650, 650) / len(z)
    top = torch.linalg.eigvalsh(H)[-1].item()
    assert task.smoothness(x[None], steps=100).item() == pytest.approx(top, rel=1e-3)
    G = batch_gradients(task, [0] * 400, x.expand(400, -1), B=8, seed=list(range(400)))
    error = (G - task.gradient(x[None])).square().sum(1)
    variance = task.variance(x, 8)
    assert abs(error.mean() - variance) < 4 * error.std() / 20
    loss = torch.nn.functional.cross_entropy(task.logits(x, task.x), task.y).item()
    X = torch.stack([x, 3 * x])
    L, greatest = task.smoothness(X).max().item(), max(task.variance(v, 8) for v in X)
    assert greatest > variance or L > top
    assert task.constants(X, B=8) == pytest.approx((loss, L, greatest))


def test_unlike_networks_are_padded_and_tested_on_their_own():
    how = dict(n=5, partition=dirichlet(0.5), samples=200, seed=3)
    task = Mixed(networks=(logistic(), mlp(12)), **how)
    single = [OnDevices(network=network, **how) for network in (logistic(), mlp(12))]
    assert task.d == single[1].d and task.start.shape == (5, task.d)
    for i in range(5):
        part = single[i % 2]
        assert torch.equal(task.start[i], F.pad(part.init(), (0, task.d - part.d)))
    accuracy, loss = task.evaluate(task.start)
    for i in range(5):
        expected = single[i % 2].evaluate(single[i % 2].init()[None])
        assert accuracy[i] == expected[0][i]
        assert loss[i] == pytest.approx(expected[1][i], rel=1e-5)
    assert task.details(task.start)["device 4"] == accuracy[4]
    assert np.isnan(task.evaluate(task.start[:1])).all()
    with pytest.raises(UsageError, match="start"):
        task.init()


def test_devices_by_kind_of_network():
    task = Mixed(networks=(mlp(3), mlp(5), mlp(9)), n=7, samples=150)
    found = kinds(task, np.array([6, 1, 3, 4]))
    assert [part.d for _, part in found] == [task.parts[0].d, task.parts[1].d]
    assert [some.tolist() for some, _ in found] == [[0, 2], [1, 3]]
    plain = Task(n=4, samples=100)
    [(some, part)] = kinds(plain, np.array([3, 1]))
    assert part is plain and some.tolist() == [0, 1]
    assert kinds(plain, []) == kinds(task, []) == []


def some(task, m, seed=0):
    """(m, d): random models."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(m, task.d, dtype=task.dtype, generator=rng)


@pytest.mark.parametrize("split", [iid(), dirichlet(0.1), shards(1), tied((8, 9), (0, 3))])
def test_devices_are_tested_in_proportion_to_what_they_hold(split):
    """Every test image of a class that somebody holds is at one device, which has its share of the
    class within 1, but for the samples that fill empty tests."""
    task = OnDevices(n=5, partition=split, seed=2)
    rows = np.concatenate(task.tests)
    assert len(rows) == len(np.unique(rows)) == 360 and min(map(len, task.tests)) > 0
    tested = label_counts(task.y_test.numpy(), task.tests)
    wanted = task.held / task.held.sum(0) * np.bincount(task.y_test)
    assert np.abs(tested - wanted).max() <= 1
    assert (tested[task.held == 0] == 0).all()
    np.testing.assert_array_equal(task.held.sum(1), task.sizes)


def test_of_a_class_that_nobody_holds_there_is_no_test():
    y = OnDevices().data.y.numpy()
    split = lambda y, n, *key: list(np.array_split(np.flatnonzero(y < 7), n))  # noqa: E731
    task = OnDevices(n=3, partition=split)
    assert y.max() == 9 and sorted(np.unique(task.y_test[np.concatenate(task.tests)])) == [
        *range(7)
    ]


def test_each_device_judges_its_row_and_one_model_is_judged_by_all():
    task = OnDevices(n=5, partition=dirichlet(0.5), dtype=torch.float64, network=logistic())
    X = some(task, 5)
    accuracy, loss = task.evaluate(X)
    for i, rows in enumerate(task.tests):
        z, y = task.network(X[i], task.x_test[rows]), task.y_test[rows]
        assert accuracy[i] == pytest.approx((z.argmax(1) == y).double().mean().item())
        assert loss[i] == pytest.approx(torch.nn.functional.cross_entropy(z, y).item())
    one = task.evaluate(X[2:3])
    for a, b in zip(one, task.evaluate(X[2].repeat(5, 1)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    assert one[0].shape == (5,)
    with pytest.raises(UsageError, match="expected one, or one each"):
        task.evaluate(X[:3])


def test_on_one_device_it_is_a_task():
    how = dict(n=1, network=logistic(), seed=3)
    task, plain = OnDevices(**how), Task(**how)
    X = some(task, 1)
    for a, b in zip(task.evaluate(X), plain.evaluate(X), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert torch.equal(task.init(), plain.init()) and (task.rows(0) == plain.rows(0)).all()


def test_details_are_the_worst_tenth_the_unseen_and_each_device():
    task = OnDevices(n=12, unseen=3, partition=dirichlet(0.5), network=logistic())
    for X in (some(task, 1), some(task, 12)):
        accuracy, found = task.evaluate(X)[0], task.details(X)
        assert [found[f"device {i}"] for i in range(12)] == list(accuracy)
        assert found["worst_tenth"] == pytest.approx(np.sort(accuracy)[:2].mean())  # of 12
        if len(X) > 1:
            assert np.isnan(found["unseen"])  # none of the models is theirs
            continue
        z = [task.network(X[0], task.x_test[rows]).argmax(1) for rows in task.tests[12:]]
        right = [
            (a == task.y_test[rows]).double().mean().item()
            for a, rows in zip(z, task.tests[12:], strict=True)
        ]
        assert found["unseen"] == pytest.approx(np.mean(right))
    assert "unseen" not in OnDevices(n=4).details(some(OnDevices(n=4), 1))


def test_the_unseen_hold_data_that_nobody_trains_on():
    task = OnDevices(n=4, unseen=2, network=logistic(), samples=300)
    whole = Task(n=6, network=logistic(), samples=300)
    for i in range(4):
        np.testing.assert_array_equal(task.rows(i), whole.rows(i))
    assert task.n == len(task.sizes) == len(task.p) == 4 and task.p.sum().item() == pytest.approx(1)
    assert len(task.tests) == len(task.held) == 6
    with pytest.raises(UsageError, match="200 training samples"):
        task.batch(201, 0)
    history = run(fedavg, task, World(4), rounds=2, S=4, E=1, B=10, eta=0.1)
    assert {"unseen", "worst_tenth", "device 3"} <= set(history.columns)
    assert "device 4" not in history.columns
    assert history["accuracy"].iloc[-1] == pytest.approx(
        history[[f"device {i}" for i in range(4)]].iloc[-1].mean()
    )


def test_a_view_is_looked_through_in_training_and_in_the_test():
    how = dict(n=4, partition=dirichlet(0.5), seed=1)
    plain, seen = OnDevices(**how), OnDevices(**how, view=rotated(60))
    for i in range(4):
        np.testing.assert_array_equal(plain.tests[i], seen.tests[i])
        for own, x, y in ((seen.rows(i), "x", "y"), (seen.tests[i], "x_test", "y_test")):
            before, after = getattr(plain, x)[own], getattr(seen, x)[own]
            assert torch.equal(before, after) == (i == 0)  # turned by 0, 20, 40, 60 degrees
            assert torch.equal(after, rotated(60)(before, None, i, 4, 10)[0])
            assert torch.equal(getattr(plain, y)[own], getattr(seen, y)[own])
    assert torch.equal(plain.data.x, seen.data.x)  # the data set itself is not altered
    with pytest.raises(UsageError, match="in one way only"):
        OnDevices(n=4, partition=everything(), view=rotated(60))


def test_other_names_commute_with_the_split():
    how = dict(n=4, partition=dirichlet(0.5), seed=1)
    plain, seen = OnDevices(**how), OnDevices(**how, view=renamed())
    assert torch.equal(plain.x, seen.x)
    for i in range(4):
        np.testing.assert_array_equal(plain.rows(i), seen.rows(i))
        np.testing.assert_array_equal(plain.tests[i], seen.tests[i])
        alike = (plain.y == seen.y)[seen.rows(i)]
        assert alike.all() if i % 2 == 0 else not alike.any()
        np.testing.assert_array_equal(np.sort(plain.held[i]), np.sort(seen.held[i]))


def test_styles_keep_the_labels_of_an_iid_split():
    part, whole = Styles(n=10, seed=2), Styles(n=10, seed=2, mixed=True)
    assert torch.equal(part.y, whole.y) and torch.equal(part.x, whole.x)
    assert torch.equal(part.init(), whole.init())
    for task in (part, whole):
        rows = [task.rows(i) for i in range(10)]
        np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(1437))
    counts = [label_counts(t.y.numpy(), [t.rows(i) for i in range(10)]) for t in (part, whole)]
    np.testing.assert_array_equal(*counts)
    fine = 3 * part.y.numpy() + part.style
    held = [(label_counts(fine, [t.rows(i) for i in range(10)]) > 0).sum() for t in (part, whole)]
    assert held[0] <= 10 * (10 + 2) and held[1] > 200


def test_one_style_is_an_iid_split_and_a_subset_is_the_usual_one():
    one = Styles(n=6, styles=1, samples=300, seed=4)
    plain = Task(n=6, samples=300, seed=4)
    assert (one.style == 0).all() and len(one.y) == 300
    assert torch.equal(one.x[one.order], plain.x[plain.order])
    assert torch.equal(one.y[one.order], plain.y[plain.order])


def test_clusters_are_within_classes():
    rng = np.random.default_rng(0)
    y, place = rng.integers(3, size=300), rng.integers(2, size=300)
    found = clusters(y[:, None] * 5.0 + 100.0 * place[:, None] + rng.normal(size=(300, 1)), y, 2)
    for c in range(3):
        same = found[y == c] == place[y == c]
        assert same.all() or not same.any()
    assert (clusters(np.zeros((2, 1)), np.array([0, 1]), 4) == 0).all()  # one sample, one style


def test_super_classes_of_fashion_mnist():
    """Tops are 0 2 4 6, shoes 5 7 9, the rest 1 3 8; what was a class is a style."""
    digits = load("digits")
    fake = Data("fashion_mnist", *(getattr(digits, k) for k in "x y x_test y_test".split()), 10, "")
    task = Styles(fake, n=12, seed=0)
    assert task.classes == 3 and task.guess == pytest.approx(1 / 3)
    for k, fine in enumerate(((0, 2, 4, 6), (5, 7, 9), (1, 3, 8))):
        assert set(np.unique(task.style[task.y == k])) == set(fine)
        assert (torch.isin(digits.y_test, torch.tensor(fine)) == (task.y_test == k)).all()


def test_redealt():
    """Other holders, other samples; test data, network and the task itself stay as they were."""
    task = Task(n=3, samples=60, network=mlp(4), seed=1)
    order, same = task.order.copy(), redealt(task, [task.rows(i) for i in range(3)])
    assert all((same.rows(i) == task.rows(i)).all() for i in range(3))
    assert torch.equal(same.p, task.p) and torch.equal(same.init(), task.init())
    x = torch.cat([task.x, torch.ones_like(task.x[:2])])
    y = torch.cat([task.y, torch.tensor([3, 4])])
    parts = [np.array([0, 1, 2]), np.array([len(y) - 1]), np.array([5, len(y) - 2])]
    new = redealt(task, parts, x, y)
    assert list(new.sizes) == [3, 1, 2] and new.p.tolist() == pytest.approx([1 / 2, 1 / 6, 1 / 3])
    assert all((new.rows(i) == parts[i]).all() for i in range(3))
    assert torch.equal(new.y[new.rows(1)], torch.tensor([4])) and new.x_test is task.x_test
    assert (task.order == order).all() and len(task.x) == len(x) - 2
    G = batch_gradients(new, [1], new.init(), seed=0)[0].double()
    close(G, autograd(new, new.init(), parts[1]).double(), 1e-6)


def test_redealt_networks_of_unlike_devices():
    task = Mixed(n=4, samples=80, networks=(logistic(), mlp(5)), seed=1)
    parts = [np.arange(i, i + 3) for i in range(4)]
    new = redealt(task, parts)
    for some, part in kinds(new, np.arange(4)):
        assert all((part.rows(i) == parts[i]).all() for i in some)
    for some, part in kinds(task, np.arange(4)):
        assert all((part.rows(i) == task.rows(i)).all() for i in some)
    assert (new.evaluate(new.start)[0] == task.evaluate(task.start)[0]).all()  # tests are theirs
