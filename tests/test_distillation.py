import itertools
from functools import partial

import numpy as np
import pytest
import torch
from conftest import autograd, batches, close, leaves, models, small, values
from torch.nn import functional as F

from survey_lib.evidence.run import final, run
from survey_lib.methods.distillation import (
    Teacher,
    bits,
    distil,
    federated_distillation_fd,
    kd_logits,
    leave_one_out,
    local_only,
    student_hard_labels,
)
from survey_lib.models import cnn, mlp
from survey_lib.partition import dirichlet
from survey_lib.training import Task, cross_entropy, train
from survey_lib.world import World

QUICK = Teacher(mlp(16), epochs=2)
C = 10


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient(z, y, teacher, T, a):
    """distil for one batch z (B, C)."""
    rows = torch.arange(len(z))[None]
    return distil(
        z[None], y[None], rows, torch.zeros(1, dtype=torch.long), teacher=teacher, T=T, a=a
    )[0]


# ---- the loss of kd_logits ---------------------------------------------------------------------


@pytest.mark.parametrize("T", [1.0, 2.0, 4.0, 20.0])
@pytest.mark.parametrize("a", [0.0, 0.3, 0.9, 1.0])
def test_distillation_gradient(T, a):
    """d/dz of (1 - a) CE(y, p(z, 1)) + a T^2 KL(p(teacher, T) || p(z, T)) by autograd."""
    z, teacher, y = randn(5, C), randn(5, C, seed=1), torch.arange(5)
    z.requires_grad_()
    log_p, q = torch.log_softmax(z / T, 1), torch.softmax(teacher / T, 1)
    soft = F.kl_div(log_p, q, reduction="sum") * T**2
    hard = F.cross_entropy(z, y, reduction="sum")
    (expected,) = torch.autograd.grad((1 - a) * hard + a * soft, z)
    found = gradient(z.detach(), y, teacher, T, a)
    close(found, expected)
    if a == 1:
        close(found, T * (torch.softmax(z.detach() / T, 1) - q))


def test_the_teachers_outputs_have_no_gradient():
    z = 3 * randn(5, C)
    close(gradient(z, torch.arange(5), z, 4.0, 1.0), torch.zeros(5, C).double())


def test_a_sure_teacher_at_temperature_1_is_a_label():
    z, y = randn(5, C), torch.tensor([3, 1, 4, 1, 5])
    sure = 1e3 * F.one_hot(y, C).double()
    close(gradient(z, y, sure, 1.0, 1.0), torch.softmax(z, 1) - F.one_hot(y, C))


def test_high_temperature_is_matching_of_logits():
    """T -> infinity: the gradient tends to (z - z_t) / C for zero-mean logits, error in 1/T."""
    z, t = (v - v.mean(1, keepdim=True) for v in (randn(5, C), randn(5, C, seed=1)))
    errors = [
        float((gradient(z, torch.arange(5), t, T, 1.0) - (z - t) / C).norm())
        for T in (1e2, 1e3, 1e4)
    ]
    assert errors[0] < 1e-2
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.1)


# ---- kd_logits ---------------------------------------------------------------------------------


def test_kd_trains_on_the_teachers_outputs():
    task = small(n=1, samples=40)
    how = dict(K=3, B=8, eta=0.2)
    outputs = QUICK.logits(task)
    found = models(kd_logits, 3, task=task, teacher=QUICK, T=2.0, a=0.7, **how)
    loss = partial(distil, teacher=outputs, T=2.0, a=0.7)
    x = task.init()
    for r in range(4):
        close(found[r], x)
        x = train(task, [0], x, loss=loss, seed=(0, r), **how)[0]
    assert outputs.shape == (len(task.x), C)


def test_the_teacher_is_trained_on_all_data_and_is_good():
    task = small(n=1, samples=40)
    teacher = Teacher(mlp(32), epochs=10)
    outputs = teacher.logits(task)
    assert (outputs.argmax(1) == task.y).double().mean() > 0.95
    assert teacher.logits(small(n=1, samples=30)) is outputs  # trained once for data and seed
    assert not torch.equal(teacher.logits(small(n=1, samples=40, seed=1)), outputs)


def test_without_soft_part_kd_is_training_on_labels_bit_for_bit():
    task, world = small(n=1, samples=40), World(1)
    how = dict(K=3, B=8, eta=0.2)
    hard = models(student_hard_labels, 3, task=task, world=world, **how)
    assert torch.equal(hard, models(kd_logits, 3, task=task, teacher=QUICK, a=0.0, **how))
    x = task.init()
    for r in range(4):
        assert torch.equal(hard[r], x)
        x = train(task, [0], x, seed=(0, r), **how)[0]
    assert world.totals()["bytes"] == 0 and world.clock > 0


@pytest.mark.parametrize("width", [4, 64])
def test_kd_bytes_are_sent_once(width):
    """4 C n_i, whatever the student."""
    task = small(n=3, samples=100, network=mlp(width), dtype=torch.float32)
    world = World(3)
    values(kd_logits, 5, task=task, world=world, teacher=QUICK, K=2, B=8, eta=0.1)
    assert list(world.down) == [4 * C * task.sizes[0], 0, 0]
    assert world.up.sum() == 0 and world.messages == 1


def test_until_the_outputs_arrive_the_device_has_its_labels():
    task = small(n=1, samples=40)
    how = dict(task=task, K=3, B=8, eta=0.2)
    hard = models(student_hard_labels, 4, **how)
    assert torch.equal(models(kd_logits, 4, world=World(1, loss=1.0), teacher=QUICK, **how), hard)
    late = next(
        s for s in range(50) if World(1, loss=0.5, seed=s).broadcast([0], hard[0]).size == 0
    )
    world = World(1, loss=0.5, seed=late)
    found = models(kd_logits, 10, world=world, teacher=QUICK, **how)
    assert torch.equal(found[1], hard[1])
    assert (found[4] != hard[4]).any()
    assert world.messages > 1


# ---- federated_distillation_fd -----------------------------------------------------------------


def test_fd_without_regulariser_is_local_training():
    task = small(partition=dirichlet(0.3))
    how = dict(task=task, K=5, B=8, eta=0.2)
    local = models(local_only, 4, **how)
    close(models(federated_distillation_fd, 4, gamma=0.0, **how), local)
    for i in range(6):
        alone = train(task, [i], task.init(), K=5, B=8, eta=0.2, seed=(0, 0))[0]
        close(local[1, i], alone)


@pytest.mark.parametrize("gamma", [0.1, 1.0])
@pytest.mark.parametrize("network", [None, mlp(5), cnn(2, 3)])
@pytest.mark.parametrize("K, B", [(4, 6), (1, 3)])  # (1, 3): who has a class changes every round
def test_fd_by_autograd(gamma, network, K, B):
    """Algorithm 1 device by device: CE(p, y) + gamma CE(p, Fhat_y), outputs taken on the way."""
    task = small(n=4, samples=60, partition=dirichlet(0.3), network=network)
    how = dict(K=K, B=B, eta=0.3)
    found = models(federated_distillation_fd, 5, task=task, gamma=gamma, **how)
    Y, Fhat = [task.init() for _ in range(4)], [{} for _ in range(4)]
    for r in range(5):
        means = []
        for i in range(4):
            seen = {}
            for b in batches(task, i, (0, r), B=B, K=K):
                x = Y[i].clone().requires_grad_()
                log_p = torch.log_softmax(task.network(x, task.x[b]), 1)
                loss = 0
                for row, label in zip(log_p, task.y[b].tolist(), strict=True):
                    loss = loss - row[label] / len(b)
                    if label in Fhat[i]:
                        loss = loss - gamma * (Fhat[i][label] * row).sum() / len(b)
                    seen.setdefault(label, []).append(row.detach().exp())
                Y[i] = Y[i] - how["eta"] * torch.autograd.grad(loss, x)[0]
            means.append({k: torch.stack(v).mean(0) for k, v in seen.items()})
        close(found[r + 1], torch.stack(Y), 1e-10)
        for i in range(4):
            for label in range(C):
                others = [m[label] for j, m in enumerate(means) if j != i and label in m]
                Fhat[i].pop(label, None)
                if others:
                    Fhat[i][label] = torch.stack(others).mean(0)


def fd_state(task, world, rounds, **how):
    """target, known and what was sent, after some rounds."""
    steps = federated_distillation_fd(task, world, **how)
    for _ in itertools.islice(steps, rounds + 1):
        pass
    return steps.gi_frame.f_locals


def test_averages_and_targets_are_distributions():
    task = small(partition=dirichlet(0.3))
    state = fd_state(task, World(6), 3, K=5, B=8, eta=0.2)
    held = state["count"] > 0
    close(state["mean"].sum(-1), held.double())
    close(state["target"].sum(-1), state["known"].double())
    assert held.any() and not held.all()
    for i in range(6):  # exactly what device i visited in the last round
        seen = torch.cat(batches(task, i, (0, 2), K=5, B=8))
        assert torch.equal(held[i], torch.bincount(task.y[seen], minlength=C) > 0)
        close(state["count"][i], torch.bincount(task.y[seen], minlength=C).double())


def test_leave_one_out():
    mean, has = (
        randn(5, C, C).softmax(-1),
        torch.rand(5, C, generator=torch.Generator().manual_seed(0)) < 0.5,
    )
    has[:, 0], has[1:, 0] = True, False  # class 0: device 0 alone
    has[:, 1], has[:, 2] = False, True  # class 1: nobody, class 2: all
    mean = mean * has[..., None]
    others, known = leave_one_out(mean, has)
    M = has.sum(0)
    for i in range(5):
        for k in range(C):
            rest = [j for j in range(5) if j != i and has[j, k]]
            assert known[i, k] == bool(rest)
            if has[i, k] and rest:  # (M - 1) Fhat + Fbar = the total
                close((M[k] - 1) * others[i, k] + mean[i, k], mean[:, k].sum(0))
            if rest:
                close(others[i, k], mean[rest, k].mean(0))
    assert not known[0, 0] and known[1:, 0].all() and not known[:, 1].any()


def test_a_label_of_one_device_only_is_not_regularised():
    """Two devices with five classes each: no class has a second owner, so FD is local training."""

    def halves(y, n, *key):
        return [np.flatnonzero(y < 5), np.flatnonzero(y >= 5)]

    for task in (small(n=2, partition=halves), small(n=1)):
        how = dict(task=task, K=5, B=8, eta=0.2)
        close(models(federated_distillation_fd, 3, gamma=1.0, **how), models(local_only, 3, **how))


def test_bits():
    flags = torch.zeros(2, C, dtype=torch.bool)
    flags[0, [0, 3, 9]] = flags[1, 8] = True
    assert bits(flags).tolist() == [[1 + 8, 2], [0, 1]]
    assert bits(flags).dtype == torch.uint8


@pytest.mark.parametrize("width", [4, 64])
def test_fd_bytes_do_not_depend_on_the_model(width):
    """4 C^2 and a bit per class, up and down."""
    task = small(network=mlp(width), dtype=torch.float32)
    world = World(6)
    values(federated_distillation_fd, 3, task=task, world=world, K=2, B=8, eta=0.1)
    assert (world.up == 3 * (4 * C * C + 2)).all()
    assert (world.down == world.up).all()


def test_lost_targets_leave_the_old_ones():
    task = small()
    how = dict(K=5, B=8, eta=0.2)
    world = World(6, loss=1.0)
    close(
        models(federated_distillation_fd, 3, task=task, world=world, **how),
        models(local_only, 3, task=task, **how),
    )
    assert world.clock > 0

    class Mute(World):
        def scatter(self, chosen, payloads):
            reached = super().scatter(chosen, payloads)
            return reached[reached != 2]

    state = fd_state(task, Mute(6), 2, **how)
    assert not state["known"][2].any() and state["known"][[0, 1, 3, 4, 5]].any(1).all()


@pytest.mark.parametrize("method", [federated_distillation_fd, local_only])
def test_a_device_that_is_off_does_nothing(method):
    world = World(6, churn=leaves(2, 0))
    Y = models(method, 3, world=world, K=2, B=8, eta=0.1)
    assert (Y[:, 2] == Y[0, 2]).all() and (Y[-1, 3] != Y[0, 3]).any()
    assert world.up[2] == world.down[2] == world.busy[2] == 0


def test_local_only_sends_nothing():
    task, world = small(), World(6)
    found = models(local_only, 2, task=task, world=world, K=1, B=None, eta=0.2)
    assert world.messages == world.totals()["bytes"] == 0 and world.clock > 0
    close(found[1, 3], task.init() - 0.2 * autograd(task, task.init(), task.rows(3)))


def test_cross_entropy_is_the_hard_part():
    z, y = randn(1, 5, C), torch.arange(5)[None]
    close(cross_entropy(z, y, None, None), torch.softmax(z, -1) - F.one_hot(y, C))


# ---- claims ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_claim_soft_labels_help_a_student_with_50_samples():
    gains = []
    for seed in range(3):
        task = Task(n=1, samples=50, network=mlp(16), seed=seed)
        accuracy = []
        for method, how in ((kd_logits, dict(teacher=Teacher(mlp(64)))), (student_hard_labels, {})):
            how = dict(K=20, B=16, eta=0.1, seed=seed) | how
            history = run(method, task, World(1, seed=seed), rounds=50, every=50, **how)
            accuracy.append(final(history))
        gains.append(accuracy[0] - accuracy[1])
    assert min(gains) > 0 and np.mean(gains) > 0.02, gains


@pytest.mark.slow
def test_claim_exchanging_outputs_is_better_than_training_alone():
    gains = []
    for seed in range(3):
        task = Task(n=10, samples=600, partition=dirichlet(0.3), seed=seed)
        accuracy = []
        for method in (federated_distillation_fd, local_only):
            world = World(10, seed=seed)
            how = dict(K=20, B=16, eta=0.1, seed=seed)
            accuracy.append(final(run(method, task, world, rounds=20, every=20, **how)))
        gains.append(accuracy[0] - accuracy[1])
    assert np.mean(gains) > 0, gains
