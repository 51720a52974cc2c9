"""Problems: what they measure, and their closed forms."""

import itertools

import numpy as np
import pytest
import torch
from conftest import autograd, close

from survey_lib.errors import UsageError
from survey_lib.evidence.run import run
from survey_lib.methods.server_sync import fedavg
from survey_lib.models import logistic
from survey_lib.partition import dirichlet, shards
from survey_lib.problems import (
    ClusteredMeans,
    Instalments,
    LinearAgents,
    LinearSystem,
    LogisticPool,
    LowerHalf,
    OneFeature,
    OnTraining,
    Recall,
    RidgeSoftmax,
    Stationarity,
)
from survey_lib.training import InFlight, Task, batch_gradients, gradients, local_sgd, train
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


# ---- data that come in -------------------------------------------------------------------------


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


def test_clustered_means_have_targets_of_their_own():
    task = ClusteredMeans(n=30, d=3, apart=4.0, few=2, many=50, seed=1)
    assert (
        task.W.shape == (30, 30) and torch.equal(task.W, task.W.T) and not task.W.diagonal().any()
    )
    assert (task.W[task.W > 0] >= 0.01).all() and task.W.max() <= 1
    assert sorted(task.sizes) == 15 * [2] + 15 * [50]
    assert sorted(task.target[:, 0].tolist()) == 15 * [-2.0] + 15 * [2.0]
    assert torch.equal(task.target, task.target[:, :1].expand(-1, 3))
    alike = (task.target @ task.target.T > 0).double()
    assert (task.W * alike).sum() > 0.9 * task.W.sum()  # neighbours are mostly of one cluster
    X = task.target + torch.arange(30.0)[:, None]
    assert task.evaluate(X)[1] == pytest.approx(3 * np.arange(30) ** 2)  # row i on device i
    assert task.evaluate(task.init()[None])[1] == pytest.approx([3 * 2**2])  # one model: on all
    with pytest.raises(UsageError, match="2 models for 30"):
        task.evaluate(X[:2])


def test_the_error_of_a_sample_mean_is_noise_over_samples():
    """d noise^2 / samples in expectation; its square's sd is sqrt(2 / d) of that."""
    task = ClusteredMeans(n=2000, d=4, noise=3.0, few=1, many=9, seed=5)
    error = task.evaluate(task.start)[1]
    for m in (1, 9):
        own = error[task.sizes == m]
        wanted = 4 * 3.0**2 / m
        assert abs(own.mean() - wanted) < 4 * wanted * np.sqrt(2 / 4 / len(own))


def test_linear_agents_have_directions_of_their_own():
    how = dict(n=20, p=6, most=8, seed=2, dtype=torch.float64)
    clean, task = LinearAgents(flip=0.0, **how), LinearAgents(flip=0.3, **how)
    assert task.sizes.min() >= 1 and task.sizes.max() <= 8 and len(set(task.sizes)) > 4
    assert task.x_test.shape == (20 * 100, 6) and task.d == 2 * 7 and not task.init().any()
    wrong = (clean.y != task.y).double().mean().item()
    assert abs(wrong - 0.3) < 4 * np.sqrt(0.3 * 0.7 / len(task.y))
    assert torch.equal(clean.y_test, task.y_test) and torch.equal(clean.x, task.x)
    X = torch.zeros(20, task.d, dtype=torch.float64)
    for i in range(20):  # the direction that fits the device's test labels
        x, y = task.x_test.view(20, 100, 6)[i], 2.0 * task.y_test.view(20, 100)[i] - 1
        angles = torch.linspace(0, 2 * torch.pi, 720, dtype=torch.float64)
        side = torch.stack([angles.cos(), angles.sin()])
        best = ((x[:, :2] @ side) * y[:, None] > 0).double().mean(0).argmax()
        X[i, 6:8] = side[:, best]  # class 1
    accuracy, _ = task.evaluate(X)
    assert accuracy.min() >= 0.99  # a line through the origin parts them
    rows = clean.x[:, :2] * X[np.repeat(np.arange(20), task.sizes), 6:8]
    assert ((rows.sum(1) > 0) == (clean.y == 1)).double().mean() > 0.95
    cosine = X[:, 6:8] @ X[:, 6:8].T
    near = torch.exp((cosine - 1) / 0.1).fill_diagonal_(0)
    near = torch.where(near < 0.1, 0, near)
    assert (near - task.W).abs().median() < 0.02 and (
        (near > 0) == (task.W > 0)
    ).double().mean() > 0.9


def test_linear_agents_judge_each_model_on_its_own_data():
    task = LinearAgents(n=5, p=4, seed=1, dtype=torch.float64)
    X = torch.randn(5, task.d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    accuracy, loss = task.evaluate(X)
    for i in range(5):
        z, y = task.logits(X[i], task.x_test[100 * i : 100 * i + 100]), task.y_test[100 * i :][:100]
        assert accuracy[i] == pytest.approx((z.argmax(1) == y).double().mean().item())
        assert loss[i] == pytest.approx(torch.nn.functional.cross_entropy(z, y).item())
    assert [len(v) for v in task.evaluate(X[:1])] == [1, 1]
    z = task.logits(X[0], task.x_test)
    assert task.evaluate(X[:1])[0][0] == pytest.approx(
        (z.argmax(1) == task.y_test).double().mean().item()
    )
    for i in range(5):
        assert len(task.rows(i)) == task.sizes[i]
    again = LinearAgents(n=5, p=4, seed=2)
    assert not torch.equal(again.W, task.W.float())


def test_ridge_reaches_local_training_too():
    """One full-batch step of local training is a step along the gradient, ridge included."""
    task = RidgeSoftmax(n=3, mu=0.3, dtype=torch.float64)
    X = torch.randn(3, task.d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    G = gradients(task, World(3), np.arange(3), X, seed=0)
    Y = train(task, np.arange(3), X, eta=0.2, B=None, K=1, mu=0.7, seed=0)
    torch.testing.assert_close(Y, X - 0.2 * G, rtol=0, atol=1e-12)


@pytest.mark.parametrize("informed", [None, 2])
def test_one_feature_shows_each_device_its_own(informed):
    """y - a theta is N(0, noise^2); KL of two Gaussians s apart: s^2 / (2 noise^2), on average over
    inputs; within 4 standard errors."""
    task = OneFeature(n=5, B=3, noise=0.5, informed=informed)
    A, y = zip(*(task.observe(np.arange(5), r) for r in range(1000)), strict=True)
    A, y = torch.cat(A, 1), torch.cat(y, 1)  # (5, 3000, 5), (5, 3000)
    assert ((A != 0).all(1) == (task.seen != 0)).all()
    assert ((A == 0).all(1) == (task.seen == 0)).all()
    error = y - A @ task.theta
    assert abs(float(error.square().mean()) / 0.25 - 1) < 4 * (2 / error.numel()) ** 0.5
    gap = A @ (task.candidates[0] - task.candidates[1])
    KL = gap.square() / (2 * 0.25)
    measured, spread = 3 * KL.mean(1), 3 * KL.std(1) / 3000**0.5
    assert ((measured - task.divergence).abs() <= 4 * spread).all()
    some = task.observe([1, 4], 7)
    whole = task.observe(np.arange(5), 7)
    assert all(torch.equal(part, all_[[1, 4]]) for part, all_ in zip(some, whole, strict=True))
    accuracy, loss = task.evaluate(torch.stack([task.init(), task.theta, 2 * task.theta]))
    assert accuracy == pytest.approx([0, 1, 0])
    assert loss == pytest.approx(float(task.theta.square().sum()) * np.array([1, 0, 1]))


@pytest.mark.parametrize("problem", [LinearSystem(m=20, d=6, spread=3.0), LogisticPool()])
def test_rows_have_the_gradient_of_their_objective(problem):
    """By autograd, for some rows and for all; the minimum is where it vanishes."""
    X = torch.randn(2, problem.d, generator=torch.Generator().manual_seed(0)).double()
    pool = torch.arange(len(problem.b)).expand(2, -1)
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(problem.objective(x).sum(), x)
    close(problem.gradient(X, pool), slope)
    rows = torch.tensor([[3, 3, 7], [0, 1, 2]])
    one = torch.stack([problem.gradient(X, rows[:, [j]]) for j in range(3)]).mean(0)
    close(problem.gradient(X, rows), one)
    close(problem.gradient(problem.best[None], pool[:1])[0], torch.zeros(problem.d).double(), 1e-6)
    accuracy, loss = problem.evaluate(torch.stack([problem.init(), problem.best, *X]))
    assert accuracy[:2] == pytest.approx([0, 1]) and loss[1] == pytest.approx(0, abs=1e-12)
    assert (loss[[0, 2, 3]] > 1e-3).all()


def test_rows_are_drawn_alike():
    """Of 20 rows, 4000 draws: 200 each, within 4 standard deviations of 13.8; by key."""
    system = LinearSystem(n=2, m=20, d=20)
    system.A, system.b = torch.eye(20).double(), -torch.ones(20).double()
    X = torch.zeros(4000, 20).double()
    G = system.sampled([0] * 4000, X, B=1, seed=[(5, k) for k in range(4000)])
    assert (G.sum(1) == 1).all() and ((G.sum(0) - 200).abs() < 4 * 13.8).all()
    assert torch.equal(G[:3], system.sampled([1] * 3, X[:3], seed=[(5, k) for k in range(3)]))
    assert system.sampled([], X[:0], seed=[]).shape == (0, 20)


def test_a_linear_system_is_consistent_and_as_hard_as_asked():
    easy, hard = (LinearSystem(m=60, d=10, spread=s, seed=3) for s in (1.0, 30.0))
    for system in (easy, hard):
        close(system.A.norm(dim=1), torch.ones(60).double())
        close(system.A @ system.best, system.b)
    assert torch.linalg.cond(hard.A) > 10 * torch.linalg.cond(easy.A)


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
