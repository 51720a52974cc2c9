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

from survey_lib.evidence.run import final, run
from survey_lib.methods.non_iid import fedprox, scaffold
from survey_lib.methods.server_sync import fedavg, mean, partial_work, sample
from survey_lib.partition import dirichlet, iid, quantity, shards
from survey_lib.training import Task, gradients, local_sgd, train
from survey_lib.world import World

eye = partial(torch.eye, dtype=torch.float64)


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
        close(models(fedprox, 1500, task=task, **how)[-1], expected, 1e-10)


def test_the_bias_falls_like_one_over_mu():
    task = Quadratic.random(6)
    best = torch.linalg.solve(task.H.mean(0), (task.H @ task.e[..., None]).mean(0))[:, 0]
    scaled = []
    for mu in (1e2, 1e3, 1e4):
        A = torch.linalg.solve(task.H + mu * eye(3), task.H)
        x = torch.linalg.solve(A.mean(0), (A @ task.e[..., None]).mean(0))[:, 0]
        scaled.append(mu * (x - best))
    assert scaled[0].norm() > 1e-2
    close(scaled[2], scaled[1], 1e-2 * float(scaled[1].norm()))


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
