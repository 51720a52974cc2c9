"""Personal models: closed forms, the algorithms event by event, and what a lost message changes."""

import itertools

import numpy as np
import pytest
import torch
from conftest import Quadratic, autograd, close, leaves, models, small, values

from survey_lib.errors import UsageError
from survey_lib.methods import personalised
from survey_lib.methods.gossip import allreduce_sgd
from survey_lib.methods.personalised import (
    Ends,
    collaborative_learning_admm,
    common_model,
    confidences,
    model_propagation,
    propagated,
)
from survey_lib.partition import quantity
from survey_lib.problems import ClusteredMeans
from survey_lib.topology import ring
from survey_lib.training import local_sgd
from survey_lib.world import World, lognormal, loguniform

ROUGH = dict(spread=loguniform(5), jitter=lognormal(0.5), loss=0.1, churn=(0.02, 0.005), link="lte")
FORMS = pytest.mark.parametrize("asynchronous", [False, True])


def similarity(n, seed=0, links=0.6):
    """A random connected graph with random weights."""
    rng = torch.Generator().manual_seed(seed)
    W = torch.rand(n, n, generator=rng, dtype=torch.float64)
    W = W * (torch.rand(n, n, generator=rng) < links)
    W[torch.arange(n - 1), torch.arange(1, n)] = 0.5  # a path
    return W.triu(1) + W.triu(1).T


class Means:
    """Devices with given local models `start` (n, d), numbers of samples and similarity."""

    dtype = torch.float64

    def __init__(self, start, sizes, W):
        self.start, self.sizes, self.W = torch.as_tensor(start, dtype=self.dtype), sizes, W
        self.sizes, (self.n, self.d) = np.asarray(sizes), self.start.shape

    @staticmethod
    def random(n=7, d=3, seed=0, sizes=None):
        start = torch.randn(
            n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
        return Means(start, 1 + 3 * np.arange(n) if sizes is None else sizes, similarity(n, seed))

    def init(self):
        return torch.zeros(self.d, dtype=self.dtype)


class Spy(World):
    """A world that keeps what was swapped, with whom, and whether it arrived."""

    def __init__(self, *args, **how):
        super().__init__(*args, **how)
        self.swaps = []

    def swap(self, i, j, payload, **how):
        ok = super().swap(i, j, payload, **how)
        self.swaps.append((i, j, ok))
        return ok


class Drops(World):
    """A world in which the messages of a round from src to dst never arrive."""

    def __init__(self, n, src, dst, **how):
        super().__init__(n, **how)
        self.dropped = src, dst

    def transfer(self, src, dst, nbytes, **how):
        ok = super().transfer(src, dst, nbytes, **how)
        return ok & ~((src == self.dropped[0]) & (dst == self.dropped[1]))


# ---- model_propagation -------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.2, 0.9])
def test_the_closed_form_is_the_minimum(alpha):
    """(D - W + mu D C) X = mu D C th: where the gradient of the objective is 0."""
    task, mu = Means.random(), (1 - alpha) / alpha
    c, D = confidences(task), torch.diag(task.W.sum(1))
    DC = D @ torch.diag(c)
    direct = torch.linalg.solve(D - task.W + mu * DC, mu * DC @ task.start)
    close(propagated(task.W, c, task.start, alpha), direct)
    X = direct.requires_grad_()
    apart = (X[:, None] - X).square().sum(-1)  # each pair counts twice
    fit = (D.diagonal() * c) @ (X - task.start).square().sum(1)
    (slope,) = torch.autograd.grad((task.W * apart).sum() / 4 + mu / 2 * fit, X)
    close(slope, torch.zeros_like(slope))


@FORMS
@pytest.mark.parametrize("confidence", [True, False])
def test_both_forms_end_at_the_closed_form(asynchronous, confidence):
    task = Means.random(sizes=[3, 9, 10, 5, 7, 10, 2])
    how = dict(alpha=0.6, confidence=confidence, asynchronous=asynchronous)
    rounds = 2500 if asynchronous else 250
    found = values(model_propagation, rounds, task=task, **how)[-1]
    c = confidences(task) if confidence else torch.ones(7, dtype=torch.float64)
    close(found, propagated(task.W, c, task.start, 0.6), 1e-10)


def test_two_devices_by_hand():
    """alpha = 1/2, c = (1, 1/2): x_0 = x_1 / 2 and x_1 = (2 x_0 + 1) / 3."""
    task = Means([[0.0], [1.0]], [4, 2], torch.tensor([[0, 3.0], [3, 0]], dtype=torch.float64))
    found = models(model_propagation, 60, task=task, alpha=0.5)
    close(found[0, :, 0], torch.tensor([0, 1.0], dtype=torch.float64))
    close(found[1, :, 0], torch.tensor([1 / 2, 1 / 3], dtype=torch.float64))
    close(found[2, :, 0], torch.tensor([1 / 6, 2 / 3], dtype=torch.float64))
    close(found[-1, :, 0], torch.tensor([1 / 4, 1 / 2], dtype=torch.float64))


@FORMS
def test_limits(asynchronous):
    task, c = Means.random(), confidences(Means.random())
    how = dict(task=task, asynchronous=asynchronous)
    close(values(model_propagation, 20, alpha=0.0, **how)[-1], task.start, 1e-14)
    close(propagated(task.W, c, task.start, 1e-12), task.start, 1e-10)
    D, P = task.W.sum(1), task.W / task.W.sum(1, keepdim=True)
    alike = propagated(task.W, c, task.start, 1 - 1e-9)  # all agree, on a weighted mean
    close(alike, ((D * c) @ task.start / (D @ c)).expand(7, -1), 1e-6)
    task.start = task.start[:1].repeat(7, 1)
    close(values(model_propagation, 20, alpha=0.7, **how)[-1], task.start)
    task, c[2] = Means.random(), 1e-12
    X = propagated(task.W, c, task.start, 0.5)
    close(X[2], P[2] @ X, 1e-10)


def test_confidence_counts_samples():
    task = Means.random()
    equal = Means(task.start, np.full(7, 5), task.W)
    plain = models(model_propagation, 5, task=task, alpha=0.6, confidence=False)
    assert torch.equal(plain, models(model_propagation, 5, task=equal, alpha=0.6))
    assert (plain[-1] - models(model_propagation, 5, task=task, alpha=0.6)[-1]).abs().max() > 0.01


def test_it_smooths_the_models_that_a_task_trains():
    task, W = small(n=6, partition=quantity(1.0)), similarity(6)
    how = dict(K=4, B=8, eta=0.3)
    X = models(model_propagation, 3, task=task, W=W, alpha=0.7, seed=5, **how)
    th = local_sgd(task, World(6), np.arange(6), task.init(), seed=(5, "local"), **how)
    close(X[0], task.init().expand(6, -1))
    P, c, Y = W / W.sum(1, keepdim=True), confidences(task)[:, None], th
    for r in range(3):
        Y = (0.7 * P @ Y + 0.3 * c * th) / (0.7 + 0.3 * c)
        close(X[r + 1], Y)
    gossip = models(
        model_propagation, 1, task=task, W=W, alpha=0.7, seed=5, asynchronous=True, **how
    )
    assert (gossip[1] == th).all(1).sum() == 4  # two devices have met


def test_bytes():
    task = Means.random(d=5)
    world, gossip, degree = World(7), Spy(7), (task.W > 0).sum(1).numpy()
    values(model_propagation, 4, task=task, world=world, alpha=0.5)
    assert (world.up == 4 * degree * 5 * 8).all() and (world.down == world.up).all()
    assert world.server_up == world.server_down == 0
    values(model_propagation, 40, task=task, world=gossip, alpha=0.5, asynchronous=True)
    assert gossip.totals()["bytes"] == 40 * 2 * 5 * 8 and gossip.messages == 80
    assert all(task.W[i, j] > 0 for i, j, _ in gossip.swaps)


@pytest.mark.parametrize("rough", [{}, ROUGH])
def test_gossip_event_by_event(rough):
    """The swaps that took place, replayed with one copy per link in a dictionary."""
    task, world = Means.random(d=2), Spy(7, **rough, seed=3)
    how = dict(task=task, world=world, alpha=0.8, asynchronous=True)
    found = models(model_propagation, 400, **how)
    P, c = task.W / task.W.sum(1, keepdim=True), confidences(task)
    X = list(task.start)
    copy = {(i, j): X[i] for i in range(7) for j in range(7) if task.W[i, j] > 0}
    assert len(world.swaps) == 400 and (not rough or not all(ok for *_, ok in world.swaps))
    for r, (i, j, ok) in enumerate(world.swaps):
        if ok:
            copy[i, j], copy[j, i] = X[j], X[i]
            for a in (i, j):
                mean = sum(P[a, k] * copy[a, k] for k in range(7) if task.W[a, k] > 0)
                X[a] = (0.8 * mean + 0.2 * c[a] * task.start[a]) / (0.8 + 0.2 * c[a])
        close(found[r + 1], torch.stack(X))


def test_a_lost_message_of_a_round_counts_as_the_own_model():
    task = Means.random()
    found = models(model_propagation, 1, task=task, world=Drops(7, 1, 0), alpha=0.6)
    P, c, th = task.W / task.W.sum(1, keepdim=True), confidences(task)[:, None], task.start
    P[0, 0], P[0, 1] = P[0, 1].clone(), 0
    close(found[1], (0.6 * P @ th + 0.4 * c * th) / (0.6 + 0.4 * c))


@FORMS
def test_without_messages_the_local_models_stay(asynchronous):
    task = Means.random()
    how = dict(alpha=0.6, asynchronous=asynchronous)
    close(models(model_propagation, 30, task=task, world=World(7, loss=1), **how)[-1], task.start)
    alone = Means.random(n=1)
    assert torch.equal(values(model_propagation, 5, task=alone, **how)[-1], alone.start)


def test_a_device_without_neighbours_keeps_its_model():
    task = Means.random()
    task.W[3] = task.W[:, 3] = 0
    X = models(model_propagation, 9, task=task, alpha=0.6)
    close(X[:, 3], task.start[3].expand(10, -1))
    close(propagated(task.W, confidences(task), task.start, 0.6)[3], task.start[3])


def test_a_device_without_neighbours_does_not_hold_up_the_gossip():
    """It wakes once a second, while the others swap."""
    task, world = Means.random(), Spy(7, device="raspberry_pi", link="wifi")
    task.W[3] = task.W[:, 3] = 0
    X = models(model_propagation, 300, task=task, world=world, alpha=0.6, asynchronous=True)
    assert len(world.swaps) > 290 and not any(3 in (i, j) for i, j, _ in world.swaps)
    close(X[:, 3], task.start[3].expand(301, -1))


def test_a_device_that_comes_late_trains_when_it_is_there():
    task, W = small(n=4), similarity(4)
    world = World(4, churn=leaves(2, 0, 1e-9))
    X = models(model_propagation, 2, task=task, world=world, W=W, alpha=0.5, K=2, B=8)
    assert torch.equal(X[1, 2], task.init()) and not torch.equal(X[1, 1], task.init())
    th = local_sgd(task, World(4), [2], task.init(), K=2, B=8, eta=0.1, seed=(0, "local"))[0]
    c, P = confidences(task)[2], W[2] / W[2].sum()
    heard = P @ torch.where(torch.arange(4)[:, None] == 2, th, X[1])
    close(X[2, 2], (0.5 * heard + 0.5 * c * th) / (0.5 + 0.5 * c))


def test_wrong_arguments():
    task = Means.random()
    for bad in (task.W.triu(), -task.W, task.W[:3, :3]):
        with pytest.raises(UsageError, match="W is"):
            values(model_propagation, 1, task=task, W=bad, alpha=0.5)
    with pytest.raises(UsageError, match="alpha"):
        values(model_propagation, 1, task=task, alpha=1.0)


# ---- collaborative_learning_admm ---------------------------------------------------------------


@pytest.fixture
def ends(monkeypatch):
    """Gradients of a Quadratic; the list of the ADMM variables of each run."""
    kept = []

    class Kept(Ends):
        def __init__(self, *args):
            super().__init__(*args)
            kept.append(self)

    def rows(task, on, *, K, **how):
        index = torch.as_tensor(np.array(on))
        return index[:, None, None].expand(-1, K, 1), torch.ones(len(on), K, 1), None

    monkeypatch.setattr(personalised, "Ends", Kept)
    monkeypatch.setattr(personalised, "schedule", rows)
    monkeypatch.setattr(
        personalised, "gradients_on", lambda task, X, rows, share: task.gradient(rows[:, 0], X)
    )
    monkeypatch.setattr(personalised, "work", lambda task, on, **how: np.ones(len(on)))
    return kept


def joint(task, W, mu):
    """2 (D - W) X + mu D C H (X - e) = 0, solved as one linear system."""
    n, d = task.e.shape
    D, c = W.sum(1), confidences(task)
    A = torch.kron(2 * (torch.diag(D) - W), torch.eye(d, dtype=W.dtype))
    M = torch.block_diag(*(mu * D * c)[:, None, None] * task.H)
    return torch.linalg.solve(A + M, M @ task.e.flatten()).view(n, d)


@FORMS
@pytest.mark.parametrize("rho", [0.5, 2.0])
def test_quadratic_losses_end_at_the_joint_optimum(ends, asynchronous, rho):
    task, W = Quadratic.random(5, 2, sizes=[4, 9, 6, 3, 8]), similarity(5)
    how = dict(W=W, mu=0.8, rho=rho, K=2, eta=0.3, asynchronous=asynchronous)
    X = values(collaborative_learning_admm, 1800 if asynchronous else 600, task=task, **how)[-1]
    close(X, joint(task, W, 0.8), 1e-6)
    (end,), (i, j) = ends, ends[0].links  # copies equal originals and z
    for held, true in ((end.y, X[j]), (end.own, X[i]), (end.other, X[j])):
        close(held, true, 1e-6)


def test_with_quadratic_confidence_it_is_model_propagation_of_twice_the_mu(ends):
    """Smoothness counts 1/2 in model propagation and 1 here; with the same mu they differ."""
    alpha, means = 0.6, Means.random(n=5, d=2, sizes=[4, 9, 6, 3, 8])
    task = Quadratic(
        torch.eye(2, dtype=torch.float64).repeat(5, 1, 1), means.start, sizes=means.sizes
    )
    target = propagated(means.W, confidences(means), means.start, alpha)
    for factor in (2, 1):
        how = dict(W=means.W, mu=factor * (1 - alpha) / alpha, K=1, eta=1.0)
        X = values(collaborative_learning_admm, 300, task=task, **how)[-1]
        if factor == 2:
            close(X, target, 1e-9)
        else:
            assert (X - target).abs().max() > 0.01


@FORMS
def test_the_duals_of_both_ends_sum_to_zero(ends, asynchronous):
    task, W = Quadratic.random(5, 2), similarity(5)
    how = dict(W=W, mu=0.8, K=1, eta=0.3, asynchronous=asynchronous)
    steps = collaborative_learning_admm(task, World(5, loss=0.2), **how)
    for _ in itertools.islice(steps, 40):
        close(ends[0].lam_own + ends[0].lam_other[ends[0].back], torch.zeros_like(ends[0].y))
        assert torch.equal(ends[0].own, ends[0].other[ends[0].back])
    assert ends[0].lam_own.abs().max() > 0.01


def test_two_devices_of_admm_by_hand(ends):
    """W = rho = 1, mu = 2, f = (x - e)^2 / 2, from z = lam = 0: the augmented Lagrangian
    (x - y)^2 / 2 + (x - e)^2 + x^2 / 2 + y^2 / 2 has its minimum at x = 4 e / 7, y = x / 2."""
    one = torch.ones(2, 1, 1, dtype=torch.float64)
    task = Quadratic(one, torch.tensor([[1.0], [-1]], dtype=torch.float64))
    W = torch.tensor([[0, 1.0], [1, 0]], dtype=torch.float64)
    steps = collaborative_learning_admm(task, World(2), W=W, mu=2.0, K=1, eta=1.0)
    X = list(itertools.islice(steps, 3))
    close(X[1][:, 0], torch.tensor([4.0, -4], dtype=torch.float64) / 7)
    end = ends[0]  # after the second round; of the first, z_0 = (x_0 + y_10) / 2 = (4 - 2) / 14
    z, lam = 1 / 7, (4 - 1) / 7  # lam_own = x - z
    z_other, lam_other = -1 / 7, 2 / 7 + 1 / 7
    v = (z - lam + (z_other - lam_other) / 2) / 1.5  # weights rho and W rho / (W + rho) = 1/2
    close(X[2][0, 0], torch.tensor((1 + 0.75 * v) / 1.75, dtype=torch.float64))
    assert end.back.tolist() == [1, 0]


def test_a_step_minimises_over_the_model_and_all_copies():
    """The slope of the augmented Lagrangian of every device is 0 after the step."""
    W, rho, mu, n = similarity(6, seed=2), 0.7, 1.3, 6
    rng = torch.Generator().manual_seed(1)
    th = torch.randn(n, 2, dtype=torch.float64, generator=rng)
    end = Ends(W, th, rho)
    names = ("own", "other", "lam_own", "lam_other")
    for name in names:
        setattr(end, name, torch.randn(end.y.shape, dtype=torch.float64, generator=rng))
    k = (end.weight() / (mu * W.sum(1)))[:, None]
    X = (th + k * end.target()) / (1 + k)  # for L_i = ||x - th_i||^2 / 2
    end.copy(X, np.arange(n))
    X, y, (i, _) = X.requires_grad_(), end.y.requires_grad_(), end.links
    x, (own, other, lam_own, lam_other) = X[i], (getattr(end, name) for name in names)
    value = (end.w * (x - y).square()).sum() / 2
    value = value + mu / 2 * (W.sum(1) @ (X - th).square().sum(1))
    for held, z, lam in ((x, own, lam_own), (y, other, lam_other)):
        value = value + (lam * (held - z)).sum() + rho / 2 * (held - z).square().sum()
    for slope in torch.autograd.grad(value, (X, y)):
        close(slope, torch.zeros_like(slope))


def test_admm_bytes_and_time():
    task, W = small(n=5), similarity(5)
    how, model = dict(W=W, mu=1.0, K=2, B=8, eta=0.1), task.d * 8
    world, gossip, degree = World(5), Spy(5), (W > 0).sum(1).numpy()
    values(collaborative_learning_admm, 3, task=task, world=world, **how)
    assert (world.up == 3 * degree * 4 * model).all() and (world.down == world.up).all()
    values(collaborative_learning_admm, 20, task=task, world=gossip, asynchronous=True, **how)
    assert gossip.totals()["bytes"] == 20 * 2 * 4 * model and gossip.messages == 40
    assert len({(i, j) for i, j, _ in gossip.swaps}) > 5
    assert gossip.busy.sum() > 0 and gossip.clock > 0


@pytest.mark.parametrize("way", [(0, 1), (1, 0)])
def test_a_link_that_lost_a_message_stays_as_it_is(ends, way):
    task, W = Quadratic.random(4, 2, x0=torch.ones(2, dtype=torch.float64)), torch.ones(4, 4)
    how = dict(W=W.double(), mu=1.0, K=1, eta=0.3)
    values(collaborative_learning_admm, 3, task=task, world=Drops(4, *way), **how)
    end, (i, j) = ends[0], ends[0].links
    lost = np.flatnonzero(i + j == 1)
    assert len(lost) == 2
    assert (end.own[lost] == 1).all() and (end.other[lost] == 1).all()
    assert (end.lam_own[lost] == 0).all() and (end.lam_other[lost] == 0).all()
    rest = np.flatnonzero(i + j != 1)
    assert (end.own[rest] != 1).all() and (end.lam_own[rest] != 0).all()


@FORMS
def test_one_device_takes_gradient_steps(asynchronous):
    task = small(n=1)
    how = dict(W=torch.zeros(1, 1), mu=1.0, K=2, eta=0.3, asynchronous=asynchronous)
    found, x = models(collaborative_learning_admm, 3, task=task, **how), task.init()
    for r in range(3):
        for _ in range(2):
            x = x - 0.3 * autograd(task, x, task.rows(0))
        close(found[r + 1, 0], x)


def test_a_device_that_is_off_does_nothing(ends):
    task, W = Quadratic.random(4, 2), similarity(4, links=1.0)
    how = dict(W=W, mu=1.0, K=1, eta=0.3)
    world = World(4, churn=leaves(1, 0))
    X = models(collaborative_learning_admm, 400, task=task, world=world, **how)
    assert (X[:, 1] == 0).all() and world.up[1] == world.down[1] == 0
    assert (X[-1, 0] - X[-2, 0]).norm() < 1e-9  # the others go on to a fixed point


@pytest.mark.parametrize("method", [model_propagation, collaborative_learning_admm])
def test_both_survive_a_rough_world_without_rounds(method):
    task, W = small(n=5), similarity(5)
    own = dict(alpha=0.7) if method is model_propagation else dict(mu=1.0)
    how = dict(W=W, K=2, B=8, eta=0.1, asynchronous=True) | own
    a, b = (models(method, 60, task=task, world=World(5, **ROUGH), **how) for _ in range(2))
    assert torch.equal(a, b) and torch.isfinite(a).all()
    assert (a[-1] != task.init()).any(1).all()
    gone = World(5, churn=leaves(0, 0.05))
    assert torch.isfinite(models(method, 60, task=task, world=gone, **how)).all()


# ---- common_model ------------------------------------------------------------------------------


def test_the_common_model_is_the_mean_by_samples():
    problem = ClusteredMeans(n=10, seed=2)
    found = values(common_model, 2, task=problem)
    mean = torch.from_numpy(problem.sizes / problem.sizes.sum()) @ problem.start
    close(found[1], mean)
    close(found[2], mean)
    off = values(common_model, 1, task=problem, world=World(10, churn=leaves(3, 0)))[1]
    p = torch.from_numpy(problem.sizes * (np.arange(10) != 3)).double()
    close(off, p @ problem.start / p.sum())


def test_one_step_of_the_common_model_is_allreduce_sgd():
    task = small(n=5, samples=100)  # equally many samples
    a = models(common_model, 3, task=task, K=1, B=7, eta=0.3)
    close(a, models(allreduce_sgd, 3, task=task, B=7, eta=0.3))


def test_a_mixing_matrix_serves_as_similarity():
    """Its diagonal does not count: on a ring, P is 1/2 for both neighbours."""
    task = Means.random(sizes=[2] * 7)
    found = models(model_propagation, 1, task=task, W=ring(7), alpha=0.5)
    th = task.start
    close(found[1], (th + (th.roll(1, 0) + th.roll(-1, 0)) / 2) / 2, 1e-7)
