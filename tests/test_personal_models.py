"""Personal models: attention, fixed points, fine-tuning, meta-learning and distillation."""

import numpy as np
import pytest
import torch
from conftest import (
    Deaf,
    Quadratic,
    autograd,
    close,
    leaves,
    models,
    quadratic_gradients,
    quadratic_sgd,
    same_data,
    small,
    values,
)
from torch.nn import functional as F

from survey_lib.errors import UsageError
from survey_lib.methods import personal_models
from survey_lib.methods.distillation import local_only
from survey_lib.methods.personal_models import (
    by_cosine,
    by_distance,
    distil_sgd,
    fedamp,
    head_mask,
    hessian_times,
    heurfedamp,
    inside,
    meta_sgd,
    perfit_finetune,
    perfit_kd,
    perfit_meta,
    public_rows,
)
from survey_lib.methods.server_sync import fedavg
from survey_lib.models import logistic, mlp
from survey_lib.partition import dirichlet
from survey_lib.tasks import Mixed, OnDevices, RidgeSoftmax
from survey_lib.training import gradients_on, schedule
from survey_lib.world import World, loguniform

LOCAL = dict(E=2, B=8, eta=0.1)


class Missed(World):
    """A world in which what the server sends in its first so many messages never gets to some."""

    def __init__(self, n, missed, first=10**6, **how):
        super().__init__(n, **how)
        self.missed, self.first = missed, first

    def _down(self, *message):
        reached, self.first = super()._down(*message), self.first - 1
        return reached if self.first < 0 else reached[~np.isin(reached, self.missed)]


@pytest.fixture
def quadratic(monkeypatch):
    """The methods take their gradients, of all devices, from a Quadratic."""

    def rows(task, chosen, *, B=None, E=None, K=None, seed):
        k, steps = len(chosen), task.steps(chosen, E=E, K=K)
        return torch.zeros(k, int(steps.max()), 3, dtype=torch.long), None, steps

    def at(task, X, rows, weight):
        return quadratic_gradients(task, World(task.n), np.arange(task.n), X)

    monkeypatch.setattr(personal_models, "local_sgd", quadratic_sgd)
    monkeypatch.setattr(personal_models, "schedule", rows)
    monkeypatch.setattr(personal_models, "gradients_on", at)
    monkeypatch.setattr(personal_models, "work", lambda task, chosen, **how: np.ones(len(chosen)))


# ---- fine-tuning ---------------------------------------------------------------------------------


def test_no_personal_epochs_is_fedavg_and_ends():
    how = dict(S=3, **LOCAL)
    found = values(perfit_finetune, 9, E_p=0, R=2, **how)
    close(torch.stack(found), models(fedavg, 2, **how), atol=0)


def test_no_rounds_before_is_local_training():
    task = small(n=4, partition=dirichlet(0.5))
    _, *found = values(perfit_finetune, 9, task=task, R=0, K_p=5, eta_p=0.2, S=2, E=1, B=8, eta=0.1)
    assert len(found) == 5
    close(torch.stack(found), models(local_only, 5, task=task, K=1, B=None, eta=0.2)[1:], atol=1e-9)


def test_personal_models_go_on_from_the_global_one():
    """After the last round each device takes half the step on all of its data."""
    task = small(n=4, partition=dirichlet(0.5))
    *_, x, X = values(perfit_finetune, 9, task=task, R=2, K_p=1, S=4, E=1, B=8, eta=0.1)
    assert x.shape == (task.d,)
    own = [x - 0.05 * autograd(task, x, torch.from_numpy(task.rows(i))) for i in range(4)]
    close(X, torch.stack(own), atol=1e-9)


def test_frozen_layers_keep_their_bits():
    task = small(n=4, network=mlp(6))
    found = values(perfit_finetune, 9, task=task, R=2, head=True, S=4, **LOCAL)
    x, X, mask = found[2], found[-1], head_mask(task) > 0
    assert mask.sum() == 6 * 10 + 10
    assert torch.equal(X[:, ~mask], x[~mask].expand(4, -1))
    assert (X[:, mask] != x[mask]).any(1).all()


def test_a_linear_head_ends_at_the_same_minimum_from_any_start():
    task = RidgeSoftmax(n=3, partition=dirichlet(0.5), mu=0.5, dtype=torch.float64)
    how = dict(task=task, K_p=120, eta_p=0.2, head=True, S=3, E=1, B=32, eta=0.3)
    a, b = (values(perfit_finetune, 999, R=r, **how)[-1] for r in (0, 2))
    close(a, b, atol=1e-4)
    own = torch.stack([autograd(task, x, torch.from_numpy(task.rows(i))) for i, x in enumerate(a)])
    close(own + task.ridge * a, torch.zeros_like(a), atol=1e-4)
    assert (a - task.best).norm(dim=1).min() > 0.1


@pytest.mark.parametrize("lam", [0.0, 0.7, 50.0])
def test_pulled_to_the_global_model_it_ends_at_the_closed_form(quadratic, lam):
    """argmin F_i + lam / 2 ||w - x||^2 = (H_i + lam I)^-1 (H_i e_i + lam x)."""
    task = Quadratic.random(4)
    how = dict(S=4, E=3, B=None, eta=0.05, local=quadratic_sgd)
    eta_p = 1 / (task.H.diagonal(dim1=1, dim2=2).sum(1).max().item() + lam)
    found = values(perfit_finetune, 9999, task=task, R=3, K_p=400, eta_p=eta_p, mu=lam, **how)
    x, X, H = found[3], found[-1], task.H
    expected = torch.linalg.solve(H + lam * torch.eye(3), (H @ task.e[..., None])[..., 0] + lam * x)
    close(X, expected, atol=1e-6)
    if lam == 0:
        close(X, task.e, atol=1e-6)
    if lam == 50:
        assert (X - x).norm() < 0.1 * (task.e - x).norm()


def test_who_is_not_reached_keeps_the_global_model_and_is_sent_it_again():
    task = small(n=4)
    world = Missed(4, [2], first=3)  # both rounds and the first personal one
    found = values(perfit_finetune, 9, task=task, world=world, R=2, S=4, E_p=2, B=8, E=1, eta=1)
    x, first, second = found[2:]
    assert torch.equal(first[2], x) and not torch.equal(second[2], x)
    assert (first[[0, 1, 3]] != x).any(1).all()


def test_who_is_off_misses_the_epoch():
    task = small(n=3)
    how = dict(task=task, R=1, S=3, E=1, B=8, eta=0.1)
    calm = World(3)
    values(perfit_finetune, 1, world=calm, **how)
    world = World(3, churn=leaves(1, calm.clock + 1e-9))  # in the first epoch
    found = values(perfit_finetune, 4, world=world, **how)
    assert torch.equal(found[4][1], found[2][1]) and not torch.equal(found[2][1], found[1])
    alone = values(perfit_finetune, 4, **how)
    assert torch.equal(found[4][[0, 2]], alone[4][[0, 2]])
    assert np.isfinite(world.clock)


def test_bytes_of_fine_tuning():
    task, world = small(n=4, dtype=torch.float32), World(4)
    values(perfit_finetune, 99, task=task, world=world, R=3, S=2, **LOCAL)
    assert world.totals()["bytes"] == 3 * 2 * 8 * task.d + 4 * 4 * task.d


# ---- meta-learning -------------------------------------------------------------------------------


def halves(task, i, E, B, parts, seed):
    """The batches (D1, D2, ...) of each step of device i, by the definition: every so many sample
    of a batch of parts B."""
    rows, _, steps = schedule(task, [i], B=parts * B, E=E, seed=seed)
    steps = [[b[p::parts] for p in range(parts)] for b in rows[0, : steps[0]]]
    return [[p[p >= 0] for p in step] for step in steps]


def test_without_an_inner_step_it_is_sgd_on_the_second_batches():
    task = small(n=3, partition=dirichlet(0.5))
    x, seed = task.init(), (0, 1)
    Y = meta_sgd(task, World(3), np.arange(3), x, a=0.0, eta=0.1, B=5, E=2, seed=seed)
    for i in range(3):
        y = x
        for first, second in halves(task, i, 2, 5, 2, seed):
            y = y - 0.1 * autograd(task, y, second if len(second) else first)
        close(Y[i], y, atol=1e-10)


@pytest.mark.parametrize("parts", [2, 3])
def test_the_batches_of_a_step_are_disjoint_and_an_epoch_has_every_sample_once(parts):
    task = small(n=2)
    for i in range(2):
        step = [torch.cat(s) for s in halves(task, i, 1, 4, parts, (3, 4))]
        assert all(len(s) == len(s.unique()) for s in step)
        assert sorted(torch.cat(step).tolist()) == sorted(task.rows(i).tolist())


def test_first_order_step_by_hand():
    task = small(n=1)
    x = task.init()
    Y = meta_sgd(task, World(1), [0], x, a=0.3, eta=0.1, B=6, K=1, seed=7)
    rows, _, _ = schedule(task, [0], B=12, K=1, seed=7)
    inner = x - 0.3 * autograd(task, x, rows[0, 0, ::2])
    close(Y[0], x - 0.1 * autograd(task, inner, rows[0, 0, 1::2]), atol=1e-10)


def test_hessian_step_is_the_gradient_through_the_inner_step():
    """With D3 = D1 = D2, all samples: the gradient of F(y - a grad F(y)) by autograd twice."""
    task = small(n=1, samples=30)
    x, own = task.init(), torch.from_numpy(task.rows(0))

    def loss(v):
        return F.cross_entropy(task.network(v, task.x[own]), task.y[own])

    leaf = x.clone().requires_grad_()
    inner = leaf - 0.4 * torch.autograd.grad(loss(leaf), leaf, create_graph=True)[0]
    exact = torch.autograd.grad(loss(inner), leaf)[0]
    rows, weight = own[None], torch.full((1, 30), 1 / 30, dtype=x.dtype)
    G = gradients_on(task, inner.detach()[None], rows, weight)
    found = G - 0.4 * hessian_times(task, x[None], G, rows, weight)
    close(found[0], exact, atol=1e-8)
    assert (exact - G[0]).norm() > 0.05 * exact.norm()


def test_hessian_step_uses_the_third_batch():
    task = small(n=1)
    x = task.init()
    Y = meta_sgd(task, World(1), [0], x, a=0.3, eta=0.1, B=6, K=1, hessian=True, seed=7)
    rows, _, _ = schedule(task, [0], B=18, K=1, seed=7)
    D = [rows[0, 0, p::3] for p in range(3)]
    inner = x - 0.3 * autograd(task, x, D[0])
    g = autograd(task, inner, D[1])
    H = torch.autograd.functional.hvp(
        lambda v: F.cross_entropy(task.network(v, task.x[D[2]]), task.y[D[2]]), x, g
    )[1]
    close(Y[0], x - 0.1 * (g - 0.3 * H), atol=1e-8)


@pytest.mark.parametrize("hessian", [False, True])
def test_fixed_points_on_quadratics(quadratic, hessian):
    """One step a round: x = (sum M_i)^-1 sum M_i e_i with M_i = H_i (I - a H_i), first order, or
    (I - a H_i) H_i (I - a H_i), the optimum; they differ."""
    task, a = Quadratic.random(5), 0.1
    inner = torch.eye(3) - a * task.H
    first, exact = task.H @ inner, inner @ task.H @ inner

    def optimum(M):
        return torch.linalg.solve(M.sum(0), (M @ task.e[..., None]).sum(0))[:, 0]

    how = dict(R=600, a=a, eta=0.2, S=5, K=1, B=None, hessian=hessian, steps=0)
    *_, x = values(perfit_meta, 999, task=task, **how)
    close(x, optimum(exact if hessian else first), atol=1e-8)
    gap = (optimum(first) - optimum(exact)).norm()
    assert 1e-3 < gap < (optimum(task.H) - optimum(exact)).norm()


def test_the_first_order_fixed_point_errs_in_proportion_to_a(quadratic):
    """H_i (I - a H_i) and (I - a H_i) H_i (I - a H_i) differ by a H_i^2 (I - a H_i)."""
    task, gaps = Quadratic.random(5), []
    for a in (2e-3, 1e-3):
        how = dict(task=task, R=90, a=a, eta=0.4, S=5, K=1, B=None, steps=0)
        first, exact = (values(perfit_meta, 999, hessian=h, **how)[-1] for h in (False, True))
        gaps.append((first - exact).norm().item())
    assert gaps[1] > 1e-4 and gaps[0] / gaps[1] == pytest.approx(2, rel=0.02)


def test_adapted_models_are_one_step_of_a_on_all_own_data():
    task = small(n=3, partition=dirichlet(0.5))
    *_, x, X = values(perfit_meta, 9, task=task, R=2, a=0.2, S=3, E=1, B=4, eta=0.1)
    own = [x - 0.2 * autograd(task, x, torch.from_numpy(task.rows(i))) for i in range(3)]
    close(X, torch.stack(own), atol=1e-9)


def test_a_device_with_one_sample_uses_it_twice():
    task = small(n=2, partition=lambda y, n, *key: [np.arange(1), np.arange(1, 20)])
    x = task.init()
    Y = meta_sgd(task, World(2), [0, 1], x, a=0.3, eta=0.1, B=6, E=1, seed=0)
    own = torch.from_numpy(task.rows(0))
    inner = x - 0.3 * autograd(task, x, own)
    close(Y[0], x - 0.1 * autograd(task, inner, own), atol=1e-10)


def test_meta_steps_cost_the_samples_they_visit():
    task = small(n=2, samples=48)
    slow, fast, exact = World(2), World(2), World(2)
    meta_sgd(task, slow, [0, 1], task.init(), a=0.1, eta=0.1, B=4, E=1, seed=0)
    meta_sgd(task, fast, [0, 1], task.init(), a=0.1, eta=0.1, B=4, K=1, seed=0)
    meta_sgd(task, exact, [0, 1], task.init(), a=0.1, eta=0.1, B=4, E=1, hessian=True, seed=0)
    np.testing.assert_allclose(slow.busy, 3 * fast.busy)  # 24 samples, 8 a step
    np.testing.assert_allclose(exact.busy, 4 / 3 * slow.busy)  # a third of them counts twice


# ---- attention -----------------------------------------------------------------------------------


def cloud(n=7, d=4, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("how", [dict(sigma=0.3), dict(sigma=1.0), dict(sigma=5.0, alpha=0.5)])
def test_attention_by_distance(how):
    xi = by_distance(cloud(), **how)
    close(xi.sum(1), torch.ones(7, dtype=xi.dtype))
    close(xi, xi.T)
    assert (xi >= 0).all()
    if "alpha" not in how:
        assert xi.diagonal().min().item() == pytest.approx(1 / 7)


def test_attention_by_hand():
    """Models 0, 1, 3: squared distances 1, 9, 4, median 4; sigma = 1 / 4 in medians: kernels
    e^-1, e^-9, e^-4; the middle one attends most, with a share of 2 / 3."""
    W, e = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64), np.exp
    c = 2 / 3 / (e(-1) + e(-4))
    off = torch.tensor([[0, e(-1), e(-9)], [e(-1), 0, e(-4)], [e(-9), e(-4), 0]]) * c
    close(by_distance(W, sigma=0.25), off + torch.diag(1 - off.sum(1)))
    off = 0.3 * off / c / 0.25 * torch.tensor([[0, e(-3), e(-27)], [e(-3), 0, e(-12)], [0, 0, 0]])
    off[2] = torch.tensor([off[0, 2], off[1, 2], 0])  # sigma = 1 / 4 outright: kernels e^-4 z
    close(by_distance(W, sigma=0.25, alpha=0.3), off + torch.diag(1 - off.sum(1)))


def test_too_large_an_alpha_is_refused_and_the_limit_named():
    W = cloud()
    with pytest.raises(UsageError, match="at most") as error:
        by_distance(W, sigma=5.0, alpha=50.0)
    limit = float(str(error.value).split("1 / ")[1].split()[0])
    by_distance(W, sigma=5.0, alpha=0.99 / limit)
    with pytest.raises(UsageError):
        by_distance(W, sigma=5.0, alpha=1.01 / limit)


def test_limits_of_sigma():
    W, eye = cloud(), torch.eye(7, dtype=torch.float64)
    close(by_distance(W, sigma=1e9, alpha=1.0), eye, atol=1e-8)
    close(by_distance(W, sigma=1e-3, alpha=1.0), eye, atol=1e-8)
    close(by_distance(W, sigma=1e9, alpha=1e9 / 7), torch.full_like(eye, 1 / 7), atol=1e-7)
    close(by_distance(W, sigma=1e9), torch.full_like(eye, 1 / 7), atol=1e-7)


@pytest.mark.parametrize("attention", [by_distance, by_cosine])
def test_attention_of_equal_models_and_of_one(attention):
    xi = attention(torch.ones(3, 2, dtype=torch.float64), 1.0)
    close(xi, torch.full_like(xi, 1 / 3))
    close(attention(torch.ones(1, 2), 1.0), torch.ones(1, 1))
    assert attention(torch.ones(0, 2), 1.0).shape == (0, 0)


def test_attention_by_cosine():
    W = cloud()
    xi = by_cosine(W, s=10.0)
    close(xi.sum(1), torch.ones(7, dtype=xi.dtype))
    close(xi.diagonal(), torch.full((7,), 1 / 7, dtype=xi.dtype))
    scaled = W * torch.arange(1, 8)[:, None]
    close(by_cosine(scaled, s=10.0), xi)
    flat = by_cosine(W, s=0.0, own=0.4)
    close(flat, 0.1 + 0.3 * torch.eye(7, dtype=xi.dtype))
    close(by_cosine(W, s=0.0) @ W, W.mean(0).expand(7, -1))
    close(by_cosine(W, s=5.0, own=1.0), torch.eye(7, dtype=xi.dtype))
    assert torch.isfinite(by_cosine(W, s=1e5)).all()


def test_cosines_by_hand_and_of_updates():
    """Directions 0, 90 and 180 degrees from the base: cosines 0 and -1 seen from the first."""
    base = torch.tensor([5.0, 5.0], dtype=torch.float64)
    W = base + torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    xi, e = by_cosine(W, s=2.0, own=0.5, base=base), np.exp(-2)
    close(xi[0], torch.tensor([1, 1 / (1 + e), e / (1 + e)], dtype=xi.dtype) / 2)
    close(xi[1], torch.tensor([1, 2, 1], dtype=xi.dtype) / 4)


def test_attention_inside_groups():
    xi = torch.tensor([[0.5, 0.1, 0.4], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]])
    assert inside(xi, np.array([0, 1, 0])) == pytest.approx((0.4 + 0.3) / 1.4)
    assert inside(torch.eye(4), np.array([0, 1, 0, 1])) == pytest.approx(1 / 3)  # 1 of 3 others


# ---- FedAMP --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method, how", [(fedamp, {}), (heurfedamp, dict(s=10.0))])
def test_without_pull_it_is_local_training(method, how):
    task = small(n=4, partition=dirichlet(0.5))
    how |= dict(K=3, B=8, eta=0.1)
    found = models(method, task=task, mu=0.0, **how)
    assert torch.equal(found, models(local_only, task=task, K=3, B=8, eta=0.1))


def test_no_attention_pulls_to_the_own_start():
    """xi_ii = 1 is local training if a round is one step; with more steps the pull to where the
    round began slows it, and the end is the same, each device's own optimum."""
    task = small(n=4, partition=dirichlet(0.5))
    how = dict(task=task, mu=0.5, s=1.0, own=1.0, B=8, eta=0.1)
    close(models(heurfedamp, K=1, **how), models(local_only, task=task, K=1, B=8, eta=0.1))
    slow = models(heurfedamp, K=5, **how)[1] - task.init()
    free = models(local_only, task=task, K=5, B=8, eta=0.1)[1] - task.init()
    assert (slow.norm(dim=1) < free.norm(dim=1)).all()


def test_no_cooperation_ends_at_the_own_optima(quadratic):
    task = Quadratic.random(4)
    for how in (dict(sigma=1e9, alpha=1.0), dict(sigma=1e-3, alpha=1e-3 / 5)):
        X = models(fedamp, 60, task=task, mu=0.5, K=60, B=None, eta=0.1, **how)[-1]
        close(X, task.e, atol=1e-6)


def test_everybody_alike_is_the_mean_and_a_proximal_step(quadratic):
    """sigma -> inf, alpha = sigma / n: u is the mean, w_i = (H_i + mu I)^-1 (H_i e_i + mu u)."""
    task, mu = Quadratic.random(4), 0.7
    how = dict(sigma=1e9, alpha=1e9 / 4, mu=mu, K=400, B=None, eta=0.1)
    X = models(fedamp, 4, task=task, **how)
    He = (task.H @ task.e[..., None])[..., 0]
    for before, after in zip(X[:-1], X[1:], strict=True):
        close(after, torch.linalg.solve(task.H + mu * torch.eye(3), He + mu * before.mean(0)), 1e-6)


def test_the_fixed_point_of_the_algorithm(quadratic):
    task, sigma, alpha, mu = Quadratic.random(5), 4.0, 0.8, 0.6
    how = dict(sigma=sigma, alpha=alpha, mu=mu, K=150, B=None, eta=0.15)
    X = models(fedamp, 150, task=task, **how)[-1]
    apart = X[:, None] - X  # w_i - w_j
    slope = torch.exp(-apart.square().sum(-1) / sigma) / sigma
    pull = (slope[..., None] * apart).sum(1)
    gradient = task.gradient(np.arange(5), X)
    close(gradient + mu * alpha * pull, torch.zeros_like(X), atol=1e-9)
    close(gradient.sum(0), torch.zeros(3, dtype=X.dtype), atol=1e-9)
    assert pull.norm(dim=1).min() > 0.01
    # the stated objective has the gradient below: its lambda is half of mu alpha here
    W = X.clone().requires_grad_()
    z = (W[:, None] - W).square().sum(-1)
    penalty = (1 - torch.exp(-z / sigma)).triu(1).sum()
    close(gradient + mu * alpha / 2 * torch.autograd.grad(penalty, W)[0], 0 * X, atol=1e-9)


def test_equal_devices_do_not_influence_each_other():
    task = small(n=4, partition=same_data)
    how = dict(task=task, K=1, B=None, eta=0.1)
    alone = models(local_only, **how)
    for way in (False, True):  # with one step a round the pull, to the own start, is 0
        close(models(fedamp, mu=0.3, from_message=way, **how), alone)
    how = how | dict(K=2)
    for found in (models(fedamp, mu=0.3, **how), models(heurfedamp, s=10.0, mu=0.3, **how)):
        close(found, found[:, :1].expand_as(found))
        W = found[1]
        close(by_distance(W, 1.0) @ W, W)


def test_groups_are_found(quadratic):
    """Optima of the odd devices far from those of the even ones."""
    task = Quadratic.random(8)
    task.e = task.e / 5 + torch.where(torch.arange(8) % 2 > 0, 2.0, -2.0)[:, None]
    how = dict(task=task, mu=1.0, K=5, B=None, eta=0.1, groups=2)
    shares = [extra["inside"] for _, extra in values(fedamp, 30, sigma=0.1, **how)[1:]]
    assert shares[0] == pytest.approx(3 / 7) and shares[-1] > 0.999
    *_, (_, extra) = values(fedamp, 30, sigma=1e3, **how)
    assert extra["inside"] == pytest.approx(3 / 7, abs=0.01)


def test_first_two_rounds_by_hand(quadratic):
    """Two devices in one dimension, H = 1, e = 1 and -1, one step of 1 / 2 and mu = 1. Round 1:
    from 0 to 1/2 and -1/2. alpha = None: u is the mean, 0. Round 2: 1/2 - 1/2 (-1/2 + 1/2) = 1/2;
    from the message 0 - 1/2 (-1) = 1/2."""
    task = Quadratic(torch.ones(2, 1, 1).double(), torch.tensor([[1.0], [-1.0]]).double())
    for way in (False, True):
        how = dict(mu=1.0, K=1, B=None, eta=0.5, from_message=way)
        X = models(fedamp, 2, task=task, **how)
        close(X[:, 0, 0], torch.tensor([0, 0.5, 0.5], dtype=X.dtype))
        close(X[:, 0], -X[:, 1])


def test_a_lost_upload_leaves_the_servers_copy_behind(quadratic):
    """As above, but nothing of device 1 arrives: u = (1/2 + 0) / 2 = 1/4 for both in round 2, so
    1/2 - 1/2 (-1/2 + 1/4) = 5/8, and -1/2 - 1/2 (1/2 - 3/4) = -3/8."""
    task = Quadratic(torch.ones(2, 1, 1).double(), torch.tensor([[1.0], [-1.0]]).double())
    how = dict(mu=1.0, K=1, B=None, eta=0.5)
    X = models(fedamp, 2, task=task, world=Deaf(2, [1]), **how)
    close(X[2, :, 0], torch.tensor([5 / 8, -3 / 8], dtype=X.dtype))


def test_a_lost_message_keeps_the_model(quadratic):
    task = Quadratic.random(3)
    how = dict(task=task, mu=1.0, K=2, B=None, eta=0.1)
    X = models(fedamp, 2, world=Missed(3, [1], first=1), **how)
    assert torch.equal(X[1, 1], X[0, 1]) and not torch.equal(X[2, 1], X[0, 1])
    assert (X[1, [0, 2]] != X[0, [0, 2]]).any(1).all()


def test_only_devices_that_are_on_are_attended_to():
    task = small(n=4, partition=dirichlet(0.5))
    world = World(4, churn=leaves(3, 0.0))
    how = dict(task=task, mu=0.5, K=2, B=8, eta=0.1)
    X = models(fedamp, 4, world=world, **how)
    assert torch.equal(X[:, 3], task.init().expand(5, -1))
    U = by_distance(X[1][:3], 1.0) @ X[1][:3]
    step = personal_models.local_sgd(
        task, World(4), np.arange(3), X[1][:3], K=2, B=8, eta=0.1, mu=0.5,
        correct=0.5 * (X[1][:3] - U), seed=(0, 1),
    )  # fmt: skip
    close(X[2][:3], step)


def test_bytes_of_fedamp():
    task, world = small(n=4, dtype=torch.float32), World(4)
    values(fedamp, 3, task=task, world=world, mu=0.1, **LOCAL)
    assert world.totals()["bytes"] == 3 * 4 * 8 * task.d


# ---- distillation --------------------------------------------------------------------------------

KD = dict(K=3, B=8, eta=0.1, public=50)


def test_without_distillation_it_is_local_training():
    task = small(n=4, partition=dirichlet(0.5))
    close(
        models(perfit_kd, task=task, gamma=0.0, **KD),
        models(local_only, task=task, K=3, B=8, eta=0.1),
    )
    free = models(perfit_kd, task=task, gamma=1.0, **KD)
    local = models(local_only, task=task, K=3, B=8, eta=0.1)
    close(free[1], local[1])  # no consensus yet
    assert (free[2] - local[2]).norm() > 1e-3


def test_public_samples_are_nobodys():
    task = small(n=4)
    rows = public_rows(task, 200, 0)
    assert len(rows.unique()) == 200 and not np.isin(rows, task.order).any()
    with pytest.raises(UsageError, match="samples="):
        public_rows(small(samples=1437), 1, 0)


def slope(z, c, T):
    place = torch.arange(len(z))
    rows, members = torch.arange(len(z))[None], torch.tensor([0])
    how = dict(c=c[None], place=place, T=T)
    return personal_models._with_consensus(
        z[None], torch.zeros(1, len(z)).long(), rows, members, **how
    )[0]


def test_slope_is_that_of_the_divergence():
    z, c = cloud(5, 10, seed=1), cloud(5, 10, seed=2)
    for T in (1.0, 3.0):
        leaf = z.clone().requires_grad_()
        p, q = torch.softmax(c / T, 1), torch.log_softmax(leaf / T, 1)
        divergence = T**2 * (p * (p.log() - q)).sum()
        close(slope(z, c, T), torch.autograd.grad(divergence, leaf)[0])
    close(slope(z, z, 2.0), torch.zeros_like(z))


def test_hot_divergence_is_the_squared_difference():
    """T -> inf: T^2 KL -> ||centred difference||^2 / (2 C), whose slope is the difference / C."""
    z, c = cloud(5, 10, seed=1), cloud(5, 10, seed=2)
    apart = (z - z.mean(1, keepdim=True)) - (c - c.mean(1, keepdim=True))
    close(slope(z, c, 1e5), apart / 10, atol=1e-5)


def test_equal_devices_agree_with_themselves():
    """The consensus of equal models is their own output; as long as they take the first step from
    there they feel no pull, whatever gamma is."""
    task = small(n=3, partition=same_data)
    how = dict(task=task, K=1, B=None, eta=0.1, public=50)
    close(models(perfit_kd, 4, gamma=5.0, **how), models(perfit_kd, 4, gamma=0.0, **how))


def test_one_step_by_hand():
    task = small(n=2)
    x, G = task.init(), public_rows(task, 6, 0)
    c = cloud(6, 10)[None].repeat(2, 1, 1)
    c[1] = torch.nan  # has heard nothing
    how = dict(eta=0.1, B=None, E=None, K=1, gamma=0.7, T=2.0, seed=(0, 0))
    Y = distil_sgd(task, World(2), np.arange(2), x, G, c, **how)
    own = [autograd(task, x, torch.from_numpy(task.rows(i))) for i in range(2)]
    leaf = x.clone().requires_grad_()
    q = torch.log_softmax(task.network(leaf, task.x[G]) / 2, 1)
    p = torch.softmax(c[0] / 2, 1)
    pull = torch.autograd.grad(4 * (p * (p.log() - q)).sum(1).mean(), leaf)[0]
    close(Y[0], x - 0.1 * (own[0] + 0.7 * pull), atol=1e-10)
    close(Y[1], x - 0.1 * own[1], atol=1e-10)


@pytest.mark.parametrize("networks", [(mlp(8),), (mlp(8), mlp(64)), (logistic(), mlp(20))])
def test_traffic_does_not_depend_on_the_networks(networks):
    task = Mixed(n=4, networks=networks, samples=150)
    world = World(4)
    values(perfit_kd, 3, task=task, world=world, **KD)
    assert world.totals()["bytes"] == 3 * 4 * 2 * 4 * 10 * 50


def test_unlike_networks_train_as_they_would_alone():
    how = dict(n=4, samples=150, partition=dirichlet(0.5), dtype=torch.float64)
    task = Mixed(networks=(mlp(4), mlp(9)), **how)
    X = models(perfit_kd, task=task, gamma=0.0, **KD)
    for k, hidden in enumerate((4, 9)):
        alone = OnDevices(network=mlp(hidden), **how)
        Y = models(local_only, task=alone, K=3, B=8, eta=0.1)
        close(X[:, k::2, : alone.d], Y[:, k::2])
        assert (X[:, k::2, alone.d :] == 0).all()
    assert (models(perfit_kd, task=task, **KD)[2] != X[2]).any(1).all()


def test_who_misses_the_consensus_trains_alone():
    task = small(n=3)
    X = models(perfit_kd, 3, task=task, world=Missed(3, [1]), **KD)
    alone = models(local_only, task=task, K=3, B=8, eta=0.1)
    close(X[:, 1], alone[:, 1])
    assert (X[2, [0, 2]] - alone[2, [0, 2]]).norm(dim=1).min() > 1e-3


def test_the_consensus_is_that_of_those_who_answered():
    """Device 1 is not heard: what devices 0 and 2 hear is the mean of their own outputs."""
    task = small(n=3)
    X = models(perfit_kd, 2, task=task, world=Deaf(3, [1]), **KD)
    G = public_rows(task, 50, 0)
    c = torch.stack([task.logits(X[1, i], task.x[G]) for i in (0, 2)]).mean(0).expand(3, -1, -1)
    how = dict(eta=0.1, B=8, E=None, K=3, gamma=1.0, T=2.0, seed=(0, 1))
    close(X[2], distil_sgd(task, World(3), np.arange(3), X[1], G, c, **how))


def test_time_of_distillation():
    """A step on 8 own samples and 8 public ones takes twice one on own samples, and the outputs for
    50 public samples a forward pass each."""
    task, busy = small(n=3, network=mlp(5)), {}
    for r in (1, 2):
        world = World(3, link="lan")
        values(perfit_kd, r, task=task, world=world, **KD)
        busy[r] = world.busy * world.speed
    alone = World(3)
    values(local_only, 1, task=task, world=alone, K=3, B=8, eta=0.1)
    train, outputs = alone.busy * alone.speed, 50 * task.network.flops
    np.testing.assert_allclose(busy[1], train + outputs)
    np.testing.assert_allclose(busy[2] - busy[1], 2 * train + outputs)


@pytest.mark.parametrize(
    "method, how",
    [
        (perfit_finetune, dict(R=3, S=4, **LOCAL)),
        (perfit_meta, dict(R=3, S=4, a=0.1, steps=3, hessian=True, **LOCAL)),
        (heurfedamp, dict(s=10.0, updates=True, mu=0.1, **LOCAL)),
        (perfit_kd, KD),
    ],
)
@pytest.mark.parametrize("n", [1, 4])
def test_loss_churn_and_unequal_speeds(method, how, n):
    task = small(n=n, network=mlp(5), dtype=torch.float32)
    how = how | (dict(S=n) if "S" in how else {})
    world = World(n, loss=0.3, churn=(0.5, 0.2), spread=loguniform(8))
    found = values(method, 8, task=task, world=world, **how)
    last = found[-1][0] if isinstance(found[-1], tuple) else found[-1]
    assert last.shape == (n, task.d) and torch.isfinite(last).all()
    assert np.isfinite(world.clock) and world.clock > 0
