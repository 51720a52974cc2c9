"""Problems: what they measure, and their closed forms."""

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
from survey_lib.problems import (
    ClusteredMeans,
    LinearAgents,
    LinearSystem,
    LogisticPool,
    OneFeature,
    Quadratics,
)
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


def test_quadratics_have_exact_gradients_and_closed_forms():
    """H_i (x - e_i), also in batches, with all sizes; local steps (I - eta H)^K (x - e) + e."""
    task = Quadratics(n=4, d=3, sizes=(1, 4, 2, 3), seed=2)
    on, rng = np.arange(4), torch.Generator().manual_seed(0)
    X = torch.randn(4, 3, dtype=torch.float64, generator=rng)
    wanted = torch.stack([H @ (x - e) for H, x, e in zip(task.H, X, task.e, strict=True)])
    for B in (None, 1, 2):
        close(gradients(task, World(4), on, X, B=B, seed=1), wanted)
        close(
            local_sgd(task, World(4), on[:1], X[0], B=B, K=1, eta=0.1, seed=0)[0],
            X[0] - 0.1 * wanted[0],
        )
    close(task.p, torch.tensor([1, 4, 2, 3]).double() / 10)
    assert (task.steps(on, B=1, E=2) == [2, 8, 4, 6]).all()
    Y = train(task, on, X, B=1, E=2, eta=0.1, mu=0.5, correct=task.e, seed=0)
    for i, K in enumerate((2, 8, 4, 6)):
        y = X[i]
        for _ in range(K):
            y = y - 0.1 * (task.H[i] @ (y - task.e[i]) + task.e[i] + 0.5 * (y - X[i]))
        close(Y[i], y)


def test_the_optimum_of_quadratics():
    """sum_i p_i H_i (x - e_i) = 0; equal curvatures: the mean of the e_i, wherever FedAvg stops."""
    task = Quadratics(n=4, d=3, sizes=(1, 4, 2, 3), seed=2, aim=torch.ones(3).double())
    close(gradients_at(task, task.best), torch.zeros(3).double())
    accuracy, loss = task.evaluate(torch.stack([task.best, task.init()]))
    norm = task.best.norm().item()
    assert loss == pytest.approx([0, norm]) and accuracy == pytest.approx([1, 0])
    assert task.details(task.init()[None])["to_aim"] == pytest.approx(3**0.5)
    assert Quadratics(seed=2).details(Quadratics(seed=2).init()[None]) == {}
    alike = Quadratics(H=task.H[:1].expand(4, 3, 3), e=task.e, sizes=(1, 4, 2, 3))
    for K in (1, 5, 500):
        close(alike.stops(eta=0.1, K=K), alike.p @ task.e)
    assert (torch.linalg.eigvalsh(task.H) > 0.5).all() and not torch.equal(
        Quadratics(seed=1).e, Quadratics(seed=2).e
    )


def test_where_fedavg_stops_on_quadratics():
    """K = 1: at the optimum. K -> infinity: at the mean of the devices' own optima. Small steps:
    x - x* = eta (K - 1) / 2 Hbar^-1 sum p_i H_i^2 (x* - e_i) + O(eta^2). mu -> infinity: x*."""
    task = Quadratics(seed=3, sizes=(2, 1, 1, 3, 1))
    for eta in (0.01, 0.2):
        close(task.stops(eta=eta, K=1), task.best)
    close(task.stops(eta=0.1, K=3000), task.p @ task.e, 1e-10)
    bent = torch.linalg.solve(
        torch.tensordot(task.p, task.H, 1),
        task.p @ (task.H @ task.H @ (task.best - task.e)[..., None])[..., 0],
    )
    errors = []
    for eta in (1e-3, 1e-4, 1e-5):
        off = task.stops(eta=eta, K=4) - task.best
        errors.append(((off - eta * 1.5 * bent).norm() / off.norm()).item())
    assert errors[0] < 0.05 and errors[1] < errors[0] / 9 and errors[2] < errors[1] / 9
    gaps = [(task.stops(eta=1e-5, K=10**6, mu=mu) - task.best).norm() for mu in (10, 100, 1000)]
    assert gaps[0] > 5 * gaps[1] > 40 * gaps[2] > 0


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


# ---- tests of their own --------------------------------------------------------------------------


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


# ---- styles --------------------------------------------------------------------------------------


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


# ---- other data for a task -----------------------------------------------------------------------


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
