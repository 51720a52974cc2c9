import itertools
from functools import partial

import numpy as np
import pytest
import torch
from conftest import (
    Deaf,
    Quadratic,
    batches,
    close,
    models,
    quadratic_sgd,
    same_data,
    small,
    values,
)

from survey_lib.errors import UsageError
from survey_lib.evidence.run import final, run
from survey_lib.methods.non_iid import (
    accumulated,
    by_size,
    clients,
    fedavgm,
    fedir,
    fednova,
    fedprox,
    fedvc,
    importance,
    momentum,
    reweighted_sgd,
    scaffold,
)
from survey_lib.methods.server_sync import fedavg, fedsgd, mean, partial_work, sample
from survey_lib.models import mlp
from survey_lib.partition import blocks, dirichlet, given, iid, mixed, quantity, shards, tied
from survey_lib.tasks import ExcessLoss
from survey_lib.training import (
    Task,
    batch_gradients,
    cross_entropy,
    gradients,
    local_sgd,
    train,
    work,
)
from survey_lib.world import World, loguniform

eye, tensor = (partial(f, dtype=torch.float64) for f in (torch.eye, torch.tensor))


def states(method, rounds, task, world=None, **how):
    """The local variables x, c, c_i of a scaffold run before each round."""
    steps = method(task, world or World(task.n), **how)
    for _ in itertools.islice(steps, rounds + 1):
        yield {k: steps.gi_frame.f_locals[k].clone() for k in ("x", "c", "c_i")}


# ---- scaffold ----------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", [{}, dict(loss=0.3), dict(loss=0.3, churn=(0.05, 0.05))])
@pytest.mark.parametrize("S", [2, 6])
def test_c_is_the_mean_of_the_c_i(trouble, S):
    task = small(partition=quantity(0.5))
    how = dict(S=S, B=8, E=2, eta_l=0.2, eta_g=0.7)
    moved = 0
    for state in states(scaffold, 25, task, World(6, **trouble), **how):
        close(state["c"], state["c_i"].mean(0))
        moved += state["c"].abs().sum() > 0
    assert moved > 10


def test_a_lost_upload_keeps_the_old_c_i():
    task = small()
    deaf = [1, 4]
    how = dict(S=6, B=8, K=3, eta_l=0.2)
    *_, state = states(scaffold, 3, task, Deaf(6, deaf), **how)
    assert (state["c_i"][deaf] == 0).all()
    assert (state["c_i"][[0, 2, 3, 5]] != 0).any(1).all()
    close(state["c"], state["c_i"].mean(0))


def test_a_round_by_hand():
    """Quadratics f_i = h_i/2 (x - e_i)^2 with h = (1, 3), e = (1, -1), x = 0, K = 2, eta_l = 1/4.
    Round 1, c = 0: y_1 = 1 - (3/4)^2 = 7/16; y_2 = -(1 - (1/4)^2) = -15/16; x = -1/4;
    c_i = (x - y_i) / (K eta_l): c_1 = -7/8, c_2 = 15/8, c = 1/2.
    Round 2, device 1: steps with y - 1 - c_1 + c = y + 3/8: y <- 3/4 y - 3/32: -9/32, -39/128;
    device 2: 3 (y + 1) - 15/8 + 1/2 = 3 y + 13/8: y <- y/4 - 13/32: -15/32, -67/128; x = -53/128;
    dc_1 = (-1/4 + 39/128) 2 - 1/2 = -25/64."""
    H, e = torch.tensor([[[1.0]], [[3.0]]]).double(), torch.tensor([[1.0], [-1.0]]).double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("survey_lib.methods.non_iid.local_sgd", quadratic_sgd)
        _, one, two = states(scaffold, 2, Quadratic(H, e), S=2, B=None, K=2, eta_l=0.25)
    close(one["x"], torch.tensor([-1 / 4]).double())
    close(one["c_i"], torch.tensor([[-7 / 8], [15 / 8]]).double())
    close(one["c"], torch.tensor([1 / 2]).double())
    close(two["x"], torch.tensor([-53 / 128]).double())
    close(two["c_i"][0], torch.tensor([-7 / 8 - 25 / 64]).double())


def test_c_i_is_the_mean_of_the_gradients_seen():
    """Option II: c_i+ = c_i - c + (x - y_i) / (steps eta_l), steps of the device's own."""
    task = small(partition=quantity(0.5))
    zero, first, second = states(scaffold, 2, task, S=6, B=8, E=2, eta_l=0.2)
    for i in range(6):
        for before, after, r in ((zero, first, 0), (first, second, 1)):
            y, seen = before["x"], []
            for b in batches(task, i, (0, r), B=8, E=2):
                g = mean_gradient(task, y, b)
                seen.append(g)
                y = y - 0.2 * (g - before["c_i"][i] + before["c"])
            close(after["c_i"][i], torch.stack(seen).mean(0))
    assert len(set(task.steps(np.arange(6), B=8, E=2))) > 1
    close((first["c_i"] - first["c"]).sum(0), torch.zeros(task.d).double())  # they cancel


def mean_gradient(task, x, rows):
    """Softmax regression by hand: dL/dW = (softmax(W u + b) - onehot(y)) u^T, averaged."""
    u, y = task.x[rows].flatten(1), task.y[rows]
    W, b = x[:-10].view(10, 64), x[-10:]
    z = torch.softmax(u @ W.T + b, 1) - eye(10)[y]
    return torch.cat([(z.T @ u / len(y)).flatten(), z.mean(0)])


def test_one_step_of_all_devices_is_gradient_descent_on_the_unweighted_mean():
    task = small(partition=quantity(0.5))
    found = models(scaffold, 5, task=task, S=6, B=None, K=1, eta_l=0.3)
    x = task.init()
    for x_r in found:
        close(x_r, x)
        x = x - 0.3 * gradients(task, World(6), np.arange(6), x, seed=0).mean(0)


def test_the_first_round_is_fedavg_for_equal_shares():
    task = small(partition=iid(20))
    how = dict(task=task, S=4, B=8, E=2)
    close(models(scaffold, 1, eta_l=0.2, **how), models(fedavg, 1, eta=0.2, **how))
    # eta_g scales the step of the server
    x, y = models(scaffold, 1, eta_l=0.2, **how)
    close(models(scaffold, 1, eta_l=0.2, eta_g=0.5, **how)[1], (x + y) / 2)


def test_scaffold_with_c_frozen_is_fedavg_with_equal_weights(monkeypatch):
    def uncorrected(*args, correct, **how):
        return local_sgd(*args, **how)

    monkeypatch.setattr("survey_lib.methods.non_iid.local_sgd", uncorrected)
    task = small(partition=iid(20))
    how = dict(task=task, S=4, B=8, E=2)
    close(models(scaffold, 4, eta_l=0.2, **how), models(fedavg, 4, eta=0.2, **how))


def test_equal_devices_need_no_correction():
    task = small(partition=same_data)
    how = dict(task=task, S=6, B=None, K=4)
    close(models(scaffold, 4, eta_l=0.3, **how), models(fedavg, 4, eta=0.3, **how))
    for state in states(scaffold, 4, task, S=6, B=None, K=4, eta_l=0.3):
        close(state["c_i"], state["c"].expand(6, -1))


@pytest.mark.parametrize("S", [3, 8])
def test_scaffold_finds_the_optimum_of_quadratics(on_quadratics, S):
    """x* = (mean H_i)^-1 mean H_i e_i, not weighted by samples; there c = 0, c_i = grad f_i(x*)."""
    task = Quadratic.random(8, sizes=np.arange(1, 9))
    how = dict(S=S, B=None, K=5, eta_l=0.03)
    *_, state = states(scaffold, 2000, task, **how)
    best = torch.linalg.solve(task.H.mean(0), (task.H @ task.e[..., None]).mean(0))[:, 0]
    close(state["x"], best, 1e-10)
    close(state["c"], torch.zeros(3).double(), 1e-9)
    close(state["c_i"], task.gradient(np.arange(8), best.expand(8, -1)), 1e-9)
    stopped = models(fedavg, 2000, task=task, S=8, B=None, K=5, eta=0.03, local=quadratic_sgd)[-1]
    assert (stopped - best).norm() > 1e-2


def test_scaffold_costs_twice_the_bytes_of_fedavg():
    task, worlds = small(), [World(6), World(6)]
    values(scaffold, 4, task=task, world=worlds[0], S=3, B=8, E=1, eta_l=0.1)
    values(fedavg, 4, task=task, world=worlds[1], S=3, B=8, E=1, eta=0.1)
    assert (worlds[0].up == 2 * worlds[1].up).all() and (worlds[0].down == 2 * worlds[1].down).all()
    assert worlds[0].up.sum() == worlds[0].down.sum() == 4 * 3 * 2 * task.d * 8
    assert worlds[0].messages == worlds[1].messages


# ---- fedprox -----------------------------------------------------------------------------------


def test_fedprox_without_penalty_and_stragglers_is_fedavg_bit_for_bit():
    task = small(partition=dirichlet(0.3))
    how = dict(task=task, S=3, B=8, E=3, eta=0.2)
    assert torch.equal(models(fedprox, 4, mu=0.0, **how), models(fedavg, 4, **how))


@pytest.mark.parametrize("mu", [0.1, 1.0])
def test_one_local_step_is_fedavg_for_every_penalty(mu):
    task = small(partition=dirichlet(0.3))
    how = dict(task=task, S=3, B=None, E=1, eta=0.2)
    close(models(fedprox, 4, mu=mu, **how), models(fedavg, 4, **how))
    how = dict(task=task, S=3, B=8, K=2, eta=0.2)
    assert (models(fedprox, 1, mu=mu, **how) - models(fedavg, 1, **how)).abs().max() > 1e-4


def test_local_steps_with_the_penalty():
    """y <- y - eta (g_i(y) + mu (y - x)), as in the authors' optimiser, x fixed for the round."""
    task, mu, eta = small(partition=dirichlet(0.3)), 0.5, 0.2
    found = models(fedprox, 1, task=task, mu=mu, S=6, B=8, E=2, eta=eta)
    Y = []
    for i in range(6):
        y = x = task.init()
        for b in batches(task, i, (0, 0), B=8, E=2):
            y = y - eta * (mean_gradient(task, y, b) + mu * (y - x))
        Y.append(y)
    close(found[1], mean(torch.stack(Y), task.sizes))


@pytest.mark.parametrize("mu", [0.0, 0.5, 5.0])
@pytest.mark.parametrize("E", [1, 7, 2000])
def test_fixed_point_on_quadratics(on_quadratics, mu, E):
    """E steps from x: y_i = x - Q_i (x - e_i), Q_i = eta sum_{k < E} (I - eta (H_i + mu I))^k H_i,
    so x* = (sum p_i Q_i)^-1 sum p_i Q_i e_i; E -> infinity: Q_i -> (H_i + mu I)^-1 H_i."""
    task, eta = Quadratic.random(6, sizes=[1, 2, 3, 4, 5, 6]), 0.05
    p = torch.as_tensor(task.sizes / task.sizes.sum())[:, None, None]
    if E == 2000:
        Q = torch.linalg.solve(task.H + mu * eye(3), task.H)
    else:
        M = eye(3) - eta * (task.H + mu * eye(3))
        Q = eta * sum(torch.linalg.matrix_power(M, k) for k in range(E)) @ task.H
    expected = torch.linalg.solve((p * Q).sum(0), (p * (Q @ task.e[..., None])).sum(0))[:, 0]
    task.x0 = expected + 0.1
    how = dict(mu=mu, S=6, B=None, E=E, eta=eta)
    one = models(fedprox, 1, task=task, **how)
    contraction = eye(3) - (p * Q).sum(0)
    close(one[1] - expected, contraction @ (one[0] - expected), 1e-10)
    if E == 7:
        close(stop(fedprox, task, **how), expected, 1e-10)


def test_the_bias_falls_like_one_over_mu(on_quadratics):
    """With local solves to the end sum_i (H_i + mu I)^-1 H_i (x - e_i) = 0, and (H_i + mu I)^-1 =
    I / mu - H_i / mu^2 + ...: mu (x - x*) -> (sum_i H_i)^-1 sum_i H_i^2 (x* - e_i). Each of the 30
    steps of 1 / (L + mu) leaves a share of the error, L / (L + mu) at most."""
    task = Quadratic.random(6)
    L = float(torch.linalg.eigvalsh(task.H).max())
    best = torch.linalg.solve(task.H.mean(0), (task.H @ task.e[..., None]).mean(0))[:, 0]
    pull = (task.H @ task.H @ (best - task.e)[..., None]).mean(0)
    limit = torch.linalg.solve(task.H.mean(0), pull)[:, 0]
    assert limit.norm() > 1e-2
    for mu in (1e2, 1e3, 1e4):
        found = stop(fedprox, task, mu=mu, S=6, B=None, E=30, eta=1 / (L + mu))
        close(mu * (found - best), limit, 10 / mu * float(limit.norm()))


def test_a_huge_penalty_freezes_the_model(on_quadratics):
    task = Quadratic.random(6)
    L = float(torch.linalg.eigvalsh(task.H).max())
    moves = []
    for mu in (1e2, 1e4, 1e6):
        found = models(fedprox, 1, task=task, mu=mu, S=6, B=None, E=50, eta=1 / (L + mu))
        moves.append(float((found[1] - found[0]).norm()))
    assert moves[0] > 50 * moves[1] > 2500 * moves[2] > 0
    wild = models(fedprox, 1, task=task, mu=1e2, S=6, B=None, E=50, eta=2.1 / 1e2)
    assert wild[1].norm() > 10  # eta > 2 / (L + mu)


def test_fedprox_takes_in_partial_work():
    task, S, E, mu = small(partition=quantity(1.0)), 4, 4, 0.3
    how = dict(task=task, S=S, B=8, E=E, eta=0.2, stragglers=0.5)
    found = models(fedprox, 1, mu=mu, **how)
    chosen = sample(task.n, S, 0, 0)
    epochs = partial_work(E, 0.5, chosen, 0, 0)
    Y = train(task, chosen, task.init(), eta=0.2, B=8, E=epochs, mu=mu, seed=(0, 0))
    close(found[1], mean(Y, task.sizes[chosen]))
    include = models(fedavg, 3, keep=True, **how)
    assert torch.equal(models(fedprox, 3, mu=0.0, **how), include)


def test_fedprox_costs_the_bytes_of_fedavg():
    task, worlds = small(), [World(6), World(6)]
    how = dict(S=3, B=8, E=2, eta=0.1)
    values(fedprox, 4, task=task, world=worlds[0], mu=0.1, **how)
    values(fedavg, 4, task=task, world=worlds[1], **how)
    assert worlds[0].totals() == worlds[1].totals()


@pytest.mark.parametrize("mu", [0.1, 10.0])
def test_the_penalty_shrinks_the_distance_to_the_optimum_but_never_to_zero(on_quadratics, mu):
    """With local solves to the end; for mu = 0 it then stops at the weighted mean of the e_i."""
    task = Quadratic.random(6, sizes=[1, 2, 3, 4, 5, 6])
    p = torch.as_tensor(task.sizes / task.sizes.sum())[:, None, None]
    how = dict(S=6, B=None, E=1000, eta=0.05)
    free, held = stop(fedprox, task, mu=0.0, **how), stop(fedprox, task, mu=mu, **how)
    best = torch.linalg.solve((p * task.H).sum(0), (p * (task.H @ task.e[..., None])).sum(0))[:, 0]
    close(free, (p[..., 0] * task.e).sum(0))
    assert 1e-3 < (held - best).norm() < (free - best).norm()


# ---- work per device ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", [fedavg, fednova])
def test_each_device_may_have_work_of_its_own(method):
    task, K = small(partition=quantity(1.0)), (1, 2, 3, 4, 5, 6)
    found = models(method, 1, task=task, S=3, B=8, K=K, eta=0.2)
    chosen = sample(6, 3, 0, 0)
    tau = np.array(K)[chosen]
    Y = train(task, chosen, task.init(), eta=0.2, B=8, K=tau, seed=(0, 0))
    p, x = task.sizes[chosen], task.init()
    expected = mean(Y, p)
    if method is fednova:
        a = torch.as_tensor(tau).double()
        expected = x - mean(a, p) * mean((x - Y) / a[:, None], p)
    close(found[1], expected)
    alike = models(method, 3, task=task, S=3, B=8, K=(4,) * 6, eta=0.2)
    assert torch.equal(alike, models(method, 3, task=task, S=3, B=8, K=4, eta=0.2))
    alike = models(method, 3, task=task, S=3, B=8, E=(2,) * 6, eta=0.2)
    assert torch.equal(alike, models(method, 3, task=task, S=3, B=8, E=2, eta=0.2))


def test_stragglers_have_a_part_of_their_own_work():
    E = np.array([2, 3, 9, 9, 5, 2])
    found = partial_work(E, 0.5, np.arange(6), 0)
    assert (found < E).sum() == 3 and (found >= 1).all() and (found <= E).all()
    task = small()
    how = dict(task=task, S=4, B=8, eta=0.2, stragglers=0.5)
    assert torch.equal(models(fedavg, 3, E=(4,) * 6, **how), models(fedavg, 3, E=4, **how))
    with pytest.raises(UsageError, match="2 or more"):
        models(fedavg, 1, E=(4, 4, 1, 4, 4, 4), **how | dict(S=6))


# ---- fedavgm -----------------------------------------------------------------------------------


def test_fedavgm_without_momentum_is_fedavg_bit_for_bit():
    task = small(partition=dirichlet(0.3), dtype=torch.float32)
    how = dict(task=task, S=3, B=8, E=2, eta=0.2)
    assert torch.equal(models(fedavgm, 5, beta=0.0, **how), models(fedavg, 5, **how))


@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_momentum_of_a_constant_update_is_a_geometric_sum(beta):
    """x - y = delta in every round: v = delta (1 - beta^t) / (1 - beta)."""
    delta, x, v, t = torch.tensor([1.0, -2.0]).double(), torch.zeros(2).double(), 0.0, 12
    for _ in range(t):
        x, v = momentum(x, x - delta, v, beta=beta, eta_g=0.3)
    close(v, delta * (1 - beta**t) / (1 - beta))
    total = sum((1 - beta**s) / (1 - beta) for s in range(1, t + 1))
    close(x, -0.3 * total * delta)


@pytest.mark.parametrize("eta_g", [1.0, 0.5])
def test_one_full_step_of_all_devices_is_the_heavy_ball(eta_g):
    """x_{t+1} = x_t - eta_g eta grad F + beta (x_t - x_{t-1}), with the gradient of all data."""
    task, eta, beta = small(partition=quantity(0.5)), 0.3, 0.8
    how = dict(task=task, S=6, B=None, E=1, eta=eta)
    found = models(fedavgm, 6, beta=beta, eta_g=eta_g, **how)
    last = x = task.init()
    for x_t in found:
        close(x_t, x)
        G = batch_gradients(task, np.arange(6), x, seed=0)
        x, last = x - eta_g * eta * mean(G, task.sizes) + beta * (x - last), x


def test_the_mean_form_of_momentum_with_a_larger_step_is_the_same():
    """m <- beta m + (1 - beta) (x - y), x <- x - eta_g m / (1 - beta)."""
    task, beta, eta_g = small(), 0.9, 0.4
    how = dict(S=3, B=8, E=1, eta=0.2)
    found = models(fedavgm, 6, task=task, beta=beta, eta_g=eta_g, **how)
    x, m = task.init(), 0.0
    for r, x_r in enumerate(found):
        close(x_r, x)
        chosen = sample(6, 3, 0, r)
        Y = train(task, chosen, x, eta=0.2, B=8, E=1, seed=(0, r))
        m = beta * m + (1 - beta) * (x - mean(Y, task.sizes[chosen]))
        x = x - eta_g / (1 - beta) * m


def test_a_round_without_uploads_leaves_model_and_momentum():
    task = small()
    how = dict(task=task, S=6, B=8, E=1, eta=0.2)
    found = models(fedavgm, 3, world=Deaf(6, range(6)), beta=0.9, **how)
    assert torch.equal(found, task.init().expand(4, -1))


# ---- fednova -----------------------------------------------------------------------------------


def test_fednova_of_equally_many_steps_is_fedavg():
    how = dict(task=small(partition=dirichlet(0.2)), S=4, B=8, K=5, eta=0.2)
    close(models(fednova, 4, **how), models(fedavg, 4, **how))
    close(models(fednova, 4, mu=0.7, **how), models(fedprox, 4, mu=0.7, **how))
    how = dict(task=small(partition=iid(20)), S=4, B=8, E=2, eta=0.2)
    close(models(fednova, 4, **how), models(fedavg, 4, **how))


def test_fednova_of_one_full_step_is_fedsgd():
    task = small(partition=quantity(0.5))
    found = models(fednova, 4, task=task, S=4, B=None, K=1, eta=0.2)
    close(found, models(fedsgd, 4, task=task, S=4, eta=0.2))


K = (1, 2, 4, 8, 3, 7)


def stop(method, task, **how):
    """(d,): the fixed point of a round, x -> M x + c on quadratics, from rounds at 0 and at the
    unit vectors."""
    after = []
    for x in [torch.zeros(task.d).double(), *eye(task.d)]:
        task.x0 = x
        after.append(models(method, 1, task=task, **how)[1])
    c, M = after[0], torch.stack(after[1:], 1) - after[0][:, None]
    return torch.linalg.solve(eye(task.d) - M, c)


def shares(task):
    return torch.as_tensor(task.sizes / task.sizes.sum())[:, None, None]


@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_the_fixed_point_of_fednova(on_quadratics, mu):
    """tau steps from x: y_i = x - Q_i (x - e_i), Q_i = eta sum_{k < tau_i} (I - eta (H_i + mu
    I))^k H_i; x* = (sum p_i Q_i / a_i)^-1 sum p_i Q_i e_i / a_i, a_i = ||a_i||_1."""
    task, eta = Quadratic.random(6, sizes=[1, 2, 3, 4, 5, 6]), 0.1
    M, Q = eye(3) - eta * (task.H + mu * eye(3)), []
    for i, tau in enumerate(K):
        powers = sum(torch.linalg.matrix_power(M[i], k) for k in range(tau))
        a = sum((1 - eta * mu) ** k for k in range(tau))
        Q.append(eta * powers @ task.H[i] / a)
    Q = torch.stack(Q) * shares(task)
    expected = torch.linalg.solve(Q.sum(0), (Q @ task.e[..., None]).sum(0))[:, 0]
    how = dict(S=6, B=None, K=K, eta=eta, mu=mu)
    close(stop(fednova, task, **how), expected, 1e-10)
    task.x0 = expected
    close(models(fednova, 3, task=task, **how), expected.expand(4, -1), 1e-10)


def test_fedavg_tends_to_the_optimum_of_other_weights_and_fednova_to_the_true_one(on_quadratics):
    """As eta -> 0: argmin sum p_i tau_i F_i, and argmin sum p_i F_i; the gap falls like eta."""
    task = Quadratic.random(6, sizes=[1, 2, 3, 4, 5, 6])
    p, tau = shares(task), torch.tensor(K).double()[:, None, None]

    def optimum(w):
        return torch.linalg.solve((w * task.H).sum(0), (w * (task.H @ task.e[..., None])).sum(0))

    goals = {fedavg: optimum(p * tau)[:, 0], fednova: optimum(p)[:, 0]}
    assert (goals[fedavg] - goals[fednova]).norm() > 0.05
    for method, goal in goals.items():
        local = dict(local=quadratic_sgd) if method is fedavg else {}
        gaps = [
            float((stop(method, task, S=6, B=None, K=K, eta=eta, **local) - goal).norm())
            for eta in (1e-2, 1e-3, 1e-4)
        ]
        for large, little in itertools.pairwise(gaps):
            assert 8 < large / little < 12.5, (method, gaps)


def test_the_scalar_example(on_quadratics):
    """h = 1, e = (0, 1), p = (1/2, 1/2), tau = (1, 9), eta = 0.1: q_i = 1 - 0.9^tau_i; FedAvg stops
    at q_2 / (q_1 + q_2) = 0.8597, FedNova at (q_2 / 9) / (q_1 + q_2 / 9) = 0.405."""
    one = torch.ones(2, 1, 1).double()
    task = Quadratic(one, torch.tensor([[0.0], [1.0]]).double())
    how = dict(task=task, S=2, B=None, K=(1, 9), eta=0.1)
    q = 1 - 0.9**9
    found = models(fedavg, 300, local=quadratic_sgd, **how)[-1].item()
    assert found == pytest.approx(q / (0.1 + q), abs=1e-9) == pytest.approx(0.8597, abs=5e-5)
    found = models(fednova, 400, **how)[-1].item()
    assert found == pytest.approx(q / 9 / (0.1 + q / 9), abs=1e-9) == pytest.approx(0.405, abs=5e-4)


def test_with_a_large_step_fednova_ends_further_from_the_optimum_than_fedavg(on_quadratics):
    """As above with eta = 1/2, the optimum 1/2: q = 1/2 and 511/512. FedAvg stops at 511 / (256 +
    511), FedNova at 511 / (9 x 256 + 511)."""
    task = Quadratic(torch.ones(2, 1, 1).double(), tensor([[0.0], [1.0]]))
    how = dict(S=2, B=None, K=(1, 9), eta=0.5)
    plain = stop(fedavg, task, local=quadratic_sgd, **how).item()
    normalised = stop(fednova, task, **how).item()
    assert plain == pytest.approx(511 / 767) and normalised == pytest.approx(511 / 2815)
    assert abs(normalised - 1 / 2) > abs(plain - 1 / 2)


def test_with_equal_epochs_fednova_averages_raw_updates_and_makes_them_longer():
    """tau_i = c n_i: x - (n sum p_i^2) mean_i (x - y_i), over the n devices that answered."""
    split = given(np.repeat(np.arange(4), [8, 16, 24, 48]))
    task = small(4, samples=96, partition=split)
    x = task.init()
    Y = train(task, np.arange(4), x, eta=0.2, B=8, E=2, seed=(0, 0))
    p = task.sizes / task.sizes.sum()
    factor = 4 * (p**2).sum()
    assert factor > 1.3
    found = models(fednova, 1, task=task, S=4, B=8, E=2, eta=0.2)
    close(found[1], x - factor * (x - Y).mean(0))


def test_the_norm_of_a_by_formula_is_that_of_the_vector():
    """Momentum: the gradient of step k moves the model by 1 + rho + ... + rho^(tau - 1 - k) of it;
    the penalty: what step k did has shrunk by (1 - eta mu)^(tau - 1 - k) in the end."""
    for tau in range(1, 51):
        for rho in (0.0, 0.5, 0.9):
            a = [sum(rho**j for j in range(tau - k)) for k in range(tau)]
            assert accumulated(tau, rho=rho) == pytest.approx(sum(a), rel=1e-12)
        for pull in (0.0, 0.01, 0.3, 1.0):
            a = [(1 - pull) ** (tau - 1 - k) for k in range(tau)]
            assert accumulated(tau, pull=pull) == pytest.approx(sum(a), rel=1e-12)
    tau = np.arange(1, 51)
    np.testing.assert_array_equal(accumulated(tau), tau)
    for small_one in (dict(rho=1e-9), dict(pull=1e-6)):
        np.testing.assert_allclose(accumulated(tau, **small_one), tau, rtol=1e-4)
    with pytest.raises(UsageError, match="one at a time"):
        accumulated(3, rho=0.5, pull=0.1)


@pytest.mark.parametrize("pull", [0.0, 0.25])
def test_a_constant_gradient_moves_the_model_by_the_norm_of_a(pull):
    """y - x = -eta ||a||_1 g, with f_i linear: H = 0 has gradient 0, so e is put far away."""
    far = 1e8
    task = Quadratic(torch.full((1, 1, 1), 1 / far).double(), torch.full((1, 1), far).double())
    eta = 0.1
    y = quadratic_sgd(task, World(1), [0], task.init(), eta=eta, B=None, K=7, mu=pull / eta)
    assert y.item() == pytest.approx(eta * float(accumulated(7, pull=pull)), rel=1e-6)


def test_fednova_sends_one_number_more_than_fedavg():
    task = small(dtype=torch.float32)
    a, b = World(6), World(6)
    values(fednova, 4, task=task, world=a, S=3, B=8, E=1, eta=0.1)
    values(fedavg, 4, task=task, world=b, S=3, B=8, E=1, eta=0.1)
    assert a.down.sum() == b.down.sum() == 4 * 3 * 4 * task.d
    assert a.up.sum() == 4 * 3 * (4 * task.d + 4) and a.messages == b.messages


def test_fednova_weighs_who_answered():
    task, heard = small(partition=quantity(1.0)), [0, 2, 3, 5]
    found = models(fednova, 1, task=task, world=Deaf(6, [1, 4]), S=6, B=8, K=K, eta=0.2)
    Y = train(task, heard, task.init(), eta=0.2, B=8, K=np.array(K)[heard], seed=(0, 0))
    x, p, a = task.init(), task.sizes[heard], torch.tensor(K).double()[heard]
    close(found[1], x - mean(a, p) * mean((x - Y) / a[:, None], p))


# ---- fedvc -------------------------------------------------------------------------------------


def test_virtual_clients_hold_samples_of_their_device():
    task, drawn = small(partition=quantity(1.0)), np.array([0, 1, 1, 2, 3, 4, 5])
    virtual = clients(task, drawn, 20, 0, 7)
    assert (virtual.sizes == 20).all() and virtual.n == 7
    assert (virtual.steps(np.arange(7), B=8, E=3) == 9).all()  # ceil(20 / 8) steps an epoch
    sets = [virtual.rows(j) for j in range(7)]
    for i, rows in zip(drawn, sets, strict=True):
        assert np.isin(rows, task.rows(i)).all()
        assert len(np.unique(rows)) == 20 if task.sizes[i] >= 20 else len(np.unique(rows)) < 20
    assert (task.sizes >= 20).any() and (task.sizes < 20).any()
    assert not np.array_equal(np.sort(sets[1]), np.sort(sets[2]))  # drawn twice: not the same
    again = clients(task, drawn, 20, 0, 8)
    assert not np.array_equal(np.sort(sets[1]), np.sort(again.rows(1)))  # nor in the next round
    assert task.n == 6 and len(task.order) == 150  # the task itself is as it was
    whole = clients(task, drawn, None, 0)
    assert all(np.array_equal(whole.rows(j), task.rows(i)) for j, i in enumerate(drawn))


def test_devices_are_drawn_in_proportion_to_their_samples():
    task = small(partition=quantity(1.0))
    draws = np.concatenate([by_size(task, 5, r) for r in range(2000)])
    p = task.sizes / task.sizes.sum()
    count = np.bincount(draws, minlength=6)
    z = (count - 10000 * p) / np.sqrt(10000 * p * (1 - p))
    assert p.sum() == pytest.approx(1) and np.abs(z).max() < 4
    assert len(by_size(task, 50, 0)) == 50  # with replacement


def test_samples_of_large_devices_are_visited_equally_often():
    """S (n_i / n) (size / n_i) = S size / n visits a round of each sample of the devices with n_i
    >= size; standard errors from the rounds."""
    task, size, S, rounds = small(partition=quantity(1.0)), 15, 4, 3000
    count = np.zeros((rounds, 6))
    for r in range(rounds):
        drawn = by_size(task, S, r)
        virtual = clients(task, drawn, size, r)
        for j, i in enumerate(drawn):
            count[r, i] += np.isin(virtual.rows(j), task.rows(i)[:5]).sum() / 5
    big = task.sizes >= size
    assert big.sum() >= 3
    error = count.std(0) / np.sqrt(rounds)
    assert (np.abs(count.mean(0) - S * size / 150)[big] < 4 * error[big]).all()


def test_fedvc_with_equal_devices_is_fedavg_drawn_with_replacement():
    """size = n_i and full batches: the mean of the drawn devices' models, as often as drawn."""
    task = small(partition=iid(25))
    found = models(fedvc, 3, task=task, S=4, size=25, B=None, E=2, eta=0.3)
    x = task.init()
    for r, x_r in enumerate(found):
        close(x_r, x)
        drawn = by_size(task, 4, 0, r)
        Y = train(task, np.arange(6), x, eta=0.3, B=None, E=2, seed=0)
        x = Y[drawn].mean(0)
    assert any(len(np.unique(by_size(task, 4, 0, r))) < 4 for r in range(3))


def test_fedvc_bytes_and_seconds():
    """A device that is drawn twice gets the model once, trains twice and sends two models; the
    others wait for it."""
    task, world = small(partition=quantity(0.5), dtype=torch.float32), World(6)
    values(fedvc, 1, task=task, world=world, S=6, size=20, B=8, E=3, eta=0.1)
    who, often = np.unique(by_size(task, 6, 0, 0), return_counts=True)
    assert often.max() > 1
    np.testing.assert_array_equal(world.down[who], 4 * task.d)
    np.testing.assert_array_equal(world.up[who], 4 * task.d * often)
    one = float(work(clients(task, [0], 20), [0], B=8, E=3)[0])
    np.testing.assert_allclose(world.busy[who], one * often / world.speed[who])
    others = np.setdiff1d(np.arange(6), who)
    assert (world.up[others] == 0).all() and (world.busy[others] == 0).all()


def test_fedvc_takes_the_plain_mean_of_who_answered():
    task = small(partition=quantity(1.0))
    drawn = by_size(task, 6, 0, 0)
    deaf = drawn[0]
    found = models(fedvc, 1, task=task, world=Deaf(6, [deaf]), S=6, size=20, B=8, eta=0.2)
    virtual = clients(task, drawn, 20, 0, 0)
    Y = train(virtual, np.arange(6), task.init(), eta=0.2, B=8, E=1, seed=(0, 0))
    assert 0 < (drawn == deaf).sum() < 6
    close(found[1], Y[drawn != deaf].mean(0))


def test_fedvc_with_momentum():
    task = small()
    how = dict(task=task, S=4, size=20, B=8, eta=0.2)
    found = models(fedvc, 2, server=partial(momentum, beta=0.5), **how)
    plain = models(fedvc, 1, **how)
    close(found[1], plain[1])
    drawn = by_size(task, 4, 0, 1)
    Y = train(
        clients(task, drawn, 20, 0, 1),
        np.arange(4),
        plain[1],
        **dict(eta=0.2, B=8, E=1),
        seed=(0, 1),
    )
    close(found[2], Y.mean(0) + 0.5 * (plain[1] - plain[0]))


@pytest.mark.parametrize(
    "trouble", [dict(loss=0.4), dict(spread=loguniform(8)), dict(churn=(0.01, 0.01))]
)
def test_fedvc_and_fedir_in_trouble(trouble):
    task = small(partition=blocks(1.0))
    for method, how in ((fedvc, dict(size=20)), (fedir, {})):
        world = World(6, **trouble)
        found = models(method, 20, task=task, world=world, S=4, B=8, E=1, eta=0.2, **how)
        assert torch.isfinite(found).all() and (found[-1] != found[0]).any()
        assert np.isfinite(world.clock)


# ---- fedir -------------------------------------------------------------------------------------


def test_fedir_on_equal_labels_is_fedavg():
    """q_i = p: all weights are 1."""
    task = small(n=4, partition=same_data)
    how = dict(task=task, S=2, B=8, E=2, eta=0.2)
    close(models(fedir, 4, **how), models(fedavg, 4, **how))


def test_the_mean_weight_is_the_share_of_the_classes_at_the_device():
    """sum_y q(y) p(y) / q(y) = p(classes with q > 0), 1 iff none is missing."""
    count = torch.tensor([[2, 2, 4], [5, 0, 5], [1, 0, 0]])
    p = tensor([0.5, 0.3, 0.2])
    w = importance(p, count)
    close(w, tensor([[2, 1.2, 0.4], [1, 0, 0.4], [0.5, 0, 0]]))
    q = count.double() / count.sum(1, keepdim=True)
    close((q * w).sum(1), tensor([1, 0.7, 0.5]))
    close(importance(p, count, clip=1.1)[0], tensor([1.1, 1.1, 0.4]))


def test_weighted_gradients_are_those_of_data_like_the_whole():
    """sum_y q(y) w(y) g(y) = sum_y p(y) g(y) with the mean gradients g(y) of the device's samples
    of class y; here on a device that has all classes."""
    task = small(n=3, partition=mixed(0.6, shards(1)))
    own = task.y[task.rows(1)]
    count = own.bincount(minlength=10)
    p, x = torch.linspace(1, 2, 10).double() / 15, task.init()
    assert (count > 0).all() and p.sum() == pytest.approx(1)
    weights = importance(p, count.expand(3, -1))
    y = reweighted_sgd(task, World(3), [1], x, weights=weights, eta=1.0, B=None, K=1, seed=0)
    rows = torch.from_numpy(task.rows(1))
    each = torch.stack([mean_gradient(task, x, rows[own == k]) for k in range(10)])
    close(x - y[0], p @ each)


def test_few_classes_held_evenly_only_shorten_the_step():
    """m of K classes, equally many of each, and uniform p: all weights are m / K."""
    rows = [np.flatnonzero(small().data.y.numpy() == k)[:10] for k in range(10)]
    split = partial(pairs, rows=np.stack(rows))
    task = Task("digits", n=5, partition=split, network=small().network.build, dtype=torch.float64)
    count = torch.stack([task.y[task.rows(i)].bincount(minlength=10) for i in range(5)])
    weights = importance(torch.full((10,), 0.1, dtype=torch.float64), count)
    close(weights, 0.2 * (count > 0).double())
    how = dict(B=None, K=1, seed=0)
    chosen, x = np.arange(5), task.init()
    a = reweighted_sgd(task, World(5), chosen, x, weights=weights, eta=1.0, **how)
    close(a, local_sgd(task, World(5), chosen, x, eta=0.2, **how))
    how = dict(task=task, S=3, B=4, E=2)
    close(models(fedir, 4, eta=1.0, **how), models(fedavg, 4, eta=0.2, **how))


def pairs(y, n, *key, rows):
    return [rows[2 * i : 2 * i + 2].ravel() for i in range(n)]


def test_fedir_costs_the_counts_and_the_shares_once():
    """4 B a class up and 4 B a class down, of every device, in the first round."""
    task = small(dtype=torch.float32)
    a, b = World(6), World(6)
    values(fedir, 3, task=task, world=a, S=3, B=8, E=1, eta=0.1)
    values(fedavg, 3, task=task, world=b, S=3, B=8, E=1, eta=0.1)
    np.testing.assert_array_equal(a.up - b.up, 40)
    np.testing.assert_array_equal(a.down - b.down, 40)
    assert a.messages - b.messages == 12 and a.clock > b.clock


def test_who_is_not_heard_does_not_count_and_who_does_not_hear_weights_alike():
    task, seen = small(partition=dirichlet(0.5)), {}

    def spy(task, world, chosen, x, *, weights, **how):
        seen["weights"] = weights
        return reweighted_sgd(task, world, chosen, x, weights=weights, **how)

    class Mute(Deaf):
        def broadcast(self, chosen, payload, **how):
            reached = super().broadcast(chosen, payload, **how)
            return reached[reached != 3] if payload.numel() == 10 else reached

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("survey_lib.methods.non_iid.reweighted_sgd", spy)
        models(fedir, 1, task=task, world=Mute(6, [1]), S=6, B=8, E=1, eta=0.1)
    count = torch.stack([task.y[task.rows(i)].bincount(minlength=10) for i in range(6)])
    heard = count[[0, 2, 3, 4, 5]].sum(0).double()
    expected = importance(heard / heard.sum(), count)
    expected[3] = 1.0
    close(seen["weights"], expected)


def test_the_weight_multiplies_the_slope_of_a_sample():
    task = small()
    weights = torch.arange(60).view(6, 10).double()
    z, y = (
        torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(0)).double(),
        torch.tensor([[0, 4, 9], [1, 1, 7]]),
    )
    slopes = {}

    def catch(task, world, chosen, x, *, loss):
        slopes["found"] = loss(z, y, None, torch.tensor([1, 0]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("survey_lib.methods.non_iid.local_sgd", catch)
        reweighted_sgd(task, World(6), np.array([2, 5]), task.init(), weights=weights)
    w = torch.tensor([[50, 54, 59], [21, 21, 27]]).double()  # rows 5 and 2
    close(slopes["found"], w[..., None] * cross_entropy(z, y, None, None))


# ---- claims ------------------------------------------------------------------------------------


def accuracy(method, partition, seed, rounds=30, **how):
    task = Task(n=20, partition=partition, seed=seed)
    history = run(method, task, World(20, seed=seed), rounds=rounds, seed=seed, B=16, **how)
    return final(history, last=5)


@pytest.mark.slow
def test_claim_label_skew_costs_accuracy():
    lost = []
    for seed in range(3):
        how = dict(S=5, E=5, eta=0.1)
        lost.append(
            accuracy(fedavg, iid(), seed, **how) - accuracy(fedavg, dirichlet(0.1), seed, **how)
        )
    assert min(lost) > 0, lost


@pytest.mark.slow
def test_claim_control_variates_help_under_label_skew():
    gains = []
    for seed in range(3):
        how = dict(partition=dirichlet(0.1), seed=seed, S=5, E=5)
        gains.append(accuracy(scaffold, eta_l=0.1, **how) - accuracy(fedavg, eta=0.1, **how))
    assert np.mean(gains) > 0, gains


@pytest.mark.slow
def test_claim_partial_work_is_worth_including():
    gains = []
    for seed in range(3):
        how = dict(partition=shards(2), seed=seed, S=10, E=10, eta=0.1, stragglers=0.9)
        gains.append(accuracy(fedprox, mu=0.1, **how) - accuracy(fedavg, **how))
    assert np.mean(gains) > 0, gains


@pytest.mark.slow
def test_claim_normalised_averaging_ends_nearer_the_optimum():
    K = (2,) * 10 + (20,) * 10
    partition = tied(tuple(range(5)), tuple(range(10)))
    for seed in range(3):
        task, ends = ExcessLoss(partition=partition, seed=seed, dtype=torch.float32), []
        for method in (fednova, fedavg):
            history = run(
                method, task, World(20), rounds=30, seed=seed, S=20, B=None, K=K, eta=0.1, every=30
            )
            ends.append(final(history, column="loss"))
        assert 0 < ends[0] < ends[1] / 2


@pytest.mark.slow
def test_claim_virtual_clients_are_steadier():
    spread = []
    for seed in range(3):
        task = Task(n=50, partition=blocks(1.5, 4), network=mlp(32), seed=seed)
        how = dict(rounds=40, seed=seed, S=5, E=3, B=10, eta=0.3)
        histories = run(fedvc, task, World(50), size=27, **how), run(fedavg, task, World(50), **how)
        spread.append([h["accuracy"].tail(20).std() for h in histories])
    a, b = np.log(spread).mean(0)
    assert a < b, spread
