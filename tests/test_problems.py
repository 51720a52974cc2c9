"""Problems: what they measure, and their closed forms."""

import numpy as np
import pytest
import torch
from conftest import close

from survey_lib.errors import UsageError
from survey_lib.problems import (
    ClusteredMeans,
    LinearAgents,
    LinearSystem,
    LogisticPool,
    OneFeature,
    Quadratics,
)
from survey_lib.training import gradients, local_sgd, train
from survey_lib.world import World


def gradients_at(task, x):
    """(d,): the gradient of sum_i p_i f_i as the devices see it."""
    return task.p @ gradients(task, World(task.n), np.arange(task.n), x, seed=0)


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
    """Of 20 rows, 4000 draws: 200 each, within 4 standard deviations of 13.8; by key and worker."""
    system = LinearSystem(n=2, m=20, d=20)
    system.A, system.b = torch.eye(20).double(), -torch.ones(20).double()
    X = torch.zeros(4000, 20).double()
    keys = [(5, k) for k in range(4000)]
    by_key = system.sampled([0] * 4000, X, B=1, seed=keys)
    by_worker = system.sampled(range(4000), X, B=1, seed=keys[:1] * 4000)
    for G in (by_key, by_worker):
        assert (G.sum(1) == 1).all() and ((G.sum(0) - 200).abs() < 4 * 13.8).all()
    assert torch.equal(by_key[7:9], system.sampled([0, 0], X[:2], seed=keys[7:9]))
    assert system.sampled([], X[:0], seed=[]).shape == (0, 20)


def test_a_linear_system_is_consistent_and_as_hard_as_asked():
    easy, hard = (LinearSystem(m=60, d=10, spread=s, seed=3) for s in (1.0, 30.0))
    for system in (easy, hard):
        close(system.A.norm(dim=1), torch.ones(60).double())
        close(system.A @ system.best, system.b)
    assert torch.linalg.cond(hard.A) > 10 * torch.linalg.cond(easy.A)


def some(task, m, seed=0):
    """(m, d): random models."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(m, task.d, dtype=task.dtype, generator=rng)
