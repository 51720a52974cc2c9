import itertools
from functools import partial

import numpy as np
import pytest
import torch
from conftest import batches, close, leaves, models, same_data, small, values
from torch.nn import functional as F

from survey_lib.evidence.run import final, run
from survey_lib.methods.codistillation import (
    codistillation,
    codistillation_shared_samples,
    fml,
    mean_logits,
    mean_outputs,
    nbytes,
    outputs,
    starts,
)
from survey_lib.methods.distillation import distil, local_only
from survey_lib.methods.server_sync import fedavg
from survey_lib.models import cnn, mlp
from survey_lib.partition import dirichlet
from survey_lib.tasks import Mixed, kinds
from survey_lib.training import Task, train
from survey_lib.world import World

C, N = 10, 6
HOW = dict(K=3, B=8, eta=0.2)


UNLIKE = mlp(5), mlp(9), cnn(2, 3)


def mixed(n=4, networks=UNLIKE, **how):
    return Mixed("digits", n=n, samples=120, networks=networks, dtype=torch.float64, **how)


def state(method, task, world, rounds, **how):
    """The local variables of a method after some rounds."""
    steps = method(task, world, **how)
    for _ in itertools.islice(steps, rounds + 1):
        pass
    return steps.gi_frame.f_locals


def soft_cross_entropy(z, target):
    return -(target * torch.log_softmax(z, -1)).sum(-1)


# ---- codistillation ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", [dict(alpha=0.0), dict(burn_in=99)])
def test_without_exchange_it_is_local_training_bit_for_bit(how):
    task, world = small(), World(N)
    found = models(codistillation, 4, task=task, world=world, **HOW, **how)
    assert torch.equal(found, models(local_only, 4, task=task, **HOW))
    assert world.totals()["bytes"] == 0 and world.clock > 0


def test_equal_models_shards_and_batches_stay_equal():
    """One sample each, so that every batch is the same; another's outputs are the own: no force but
    that towards a distribution, which at q = p is none."""
    task = small(n=2, partition=lambda y, n, *key: [np.arange(1)] * n)
    found = models(codistillation, 4, task=task, K=3, B=1, eta=0.1)
    assert torch.equal(found[:, 0], found[:, 1])
    assert not torch.equal(found[0], found[4])


@pytest.mark.parametrize("network", [None, mlp(5), cnn(2, 3)])
def test_codistillation_by_autograd(network):
    """The loss of Algorithm 1, with copies that are as old as the round."""
    task = small(n=3, samples=60, partition=dirichlet(0.5), network=network)
    how = dict(K=4, B=6, eta=0.3)
    found = models(codistillation, 4, task=task, alpha=0.7, burn_in=2, **how)
    Y = [task.init() for _ in range(3)]
    for r in range(4):
        copies = list(Y)
        for i in range(3):
            for b in batches(task, i, (0, r), K=4, B=6):
                x = Y[i].clone().requires_grad_()
                z = task.network(x, task.x[b])
                loss = F.cross_entropy(z, task.y[b])
                if r >= 2:
                    others = [task.network(copies[j], task.x[b]) for j in range(3) if j != i]
                    mean = torch.stack(others).softmax(-1).mean(0)
                    loss = loss + 0.7 * soft_cross_entropy(z, mean).mean()
                Y[i] = Y[i] - 0.3 * torch.autograd.grad(loss, x)[0]
        close(found[r + 1], torch.stack(Y), 1e-10)


def test_a_frozen_teacher_is_response_distillation():
    """Device 1 leaves after the first fetch. CE + alpha CE(q, p) has the gradient of (1 + alpha)
    [(1 - a) CE + a KL(q || p)], a = alpha / (1 + alpha): kd_logits with T = 1."""
    task, alpha = small(n=2, samples=80, network=mlp(8)), 0.5
    calm = World(2)
    models(codistillation, 1, task=task, world=calm, alpha=alpha, **HOW)
    world = World(2, churn=leaves(1, 0.99 * calm.clock))
    found = models(codistillation, 4, task=task, world=world, alpha=alpha, **HOW)
    x = found[1, 0]
    teacher = task.logits(task.init(), task.x)  # the copy fetched before the first round
    loss = partial(distil, teacher=teacher, T=1.0, a=alpha / (1 + alpha))
    for r in range(1, 4):
        how = HOW | dict(eta=HOW["eta"] * (1 + alpha))
        x = train(task, [0], x, loss=loss, seed=(0, r), **how)[0]
        close(found[r + 1, 0], x)
    assert (found[2:, 1] == found[1, 1]).all()


@pytest.mark.parametrize("n", [2, 4])
def test_codistillation_bytes(n):
    """4 d (n - 1) per fetch, up and down, whatever the steps between two fetches."""
    task = small(n=n, network=mlp(7), dtype=torch.float32)
    for K in (1, 5):
        world = World(n)
        values(codistillation, 5, task=task, world=world, K=K, B=8, eta=0.1, burn_in=2)
        assert (world.up == 3 * 4 * task.d * (n - 1)).all()
        assert (world.down == world.up).all()


def test_others_are_evaluated_on_own_samples():
    """Forward passes: once per own sample and other model, at most K B."""
    task = small(n=3, samples=60, network=mlp(7))
    for K, visits in ((1, 8), (50, 20)):
        worlds = [World(3), World(3)]
        values(codistillation, 1, task=task, world=worlds[0], K=K, B=8, eta=0.1)
        values(local_only, 1, task=task, world=worlds[1], K=K, B=8, eta=0.1)
        extra = (worlds[0].busy - worlds[1].busy) * worlds[0].speed
        np.testing.assert_allclose(extra, 2 * visits * task.network.flops, rtol=1e-6)


def test_lost_models_leave_older_copies():
    task = small(n=3, samples=60)
    found = models(codistillation, 3, task=task, world=World(3, loss=1.0), **HOW)
    assert torch.equal(found, models(local_only, 3, task=task, **HOW))

    class Once(World):
        def exchange(self, W, rows, **how):
            arrived = super().exchange(W, rows, **how)
            self.count = getattr(self, "count", 0) + 1
            return arrived if self.count == 1 else arrived & False

    after = state(codistillation, task, Once(3), 3, **HOW)
    assert (after["copies"][~torch.eye(3, dtype=torch.bool)] == task.init()).all()
    one_way = state(codistillation, task, World(3, churn=leaves(2, 0)), 2, **HOW)
    assert one_way["known"][:2, :2].sum() == 2 and not one_way["known"][2].any()
    assert not one_way["known"][:, 2].any()


def test_one_device_trains_alone():
    task = small(n=1, samples=40)
    alone = models(local_only, 3, task=task, **HOW)
    assert torch.equal(models(codistillation, 3, task=task, **HOW), alone)
    shared = models(codistillation_shared_samples, 3, task=task, shared=10, **HOW)
    assert torch.equal(shared, alone)


def test_unlike_networks_teach_each_other():
    """Outputs have the same shape; a model is sent without its zeros, and keeps them."""
    task, world = mixed(), World(4)
    Y = models(codistillation, 3, task=task, world=world, **HOW)
    sizes = np.array([part.d for i in range(4) for _, part in kinds(task, [i])])
    np.testing.assert_array_equal(nbytes(task), 8 * sizes)
    np.testing.assert_array_equal(world.up, 3 * 8 * sizes * 3)
    for i in range(4):
        assert (Y[:, i, sizes[i] :] == 0).all() and (Y[-1, i] != Y[0, i]).any()
    apart = models(local_only, 3, task=task, **HOW)
    assert (apart[-1] != Y[-1]).any(1).all()
    first, part = sizes[0], kinds(task, [0])[0][1]
    alone = train(part, [0], Y[0, 0, :first], seed=(0, 0), **HOW)[0]
    close(apart[1, 0, :first], alone)


def test_unlike_starts():
    task = small(n=3)
    found = starts(task, True, 5)
    assert (found[0] != found[1]).any() and (found[1] != found[2]).any()
    assert torch.equal(models(codistillation, 1, task=task, unlike=True, seed=5, **HOW)[0], found)
    assert torch.equal(starts(task), task.init().expand(3, -1))
    assert starts(mixed(), True).shape == mixed().start.shape


# ---- codistillation on shared samples ----------------------------------------------------------


def test_averages():
    Z = torch.randn(3, 4, C, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    close(mean_outputs(Z), sum(torch.softmax(z, -1) for z in Z) / 3)
    close(mean_logits(Z), torch.softmax(sum(Z) / 3, -1))
    close(mean_logits(Z[:1]), mean_outputs(Z[:1]))
    product = Z.softmax(-1).log().mean(0).exp()  # the normalised geometric mean
    close(mean_logits(Z), product / product.sum(-1, keepdim=True))


def test_with_common_data_and_fresh_copies_it_is_codistillation():
    """Everybody holds the same 40 samples and shares them all: equal targets, equal updates."""
    task = small(n=3, partition=same_data)
    how = dict(task=task, alpha=0.6, **HOW)
    found = models(codistillation_shared_samples, 4, shared=120, average=mean_outputs, **how)
    close(found, models(codistillation, 4, **how))
    other = models(codistillation_shared_samples, 4, shared=120, **how)
    assert (other[-1] - found[-1]).abs().max() > 1e-9  # the mean of logits is another target


@pytest.mark.parametrize("size", [12, 60])
def test_shared_bytes(size):
    """Once 4 D + 1 a sample, up in proportion to the data, down the others'; then 4 C |S| a round
    up and down."""
    task, world = small(n=3, samples=150, network=mlp(4), dtype=torch.float32), World(3)
    values(codistillation_shared_samples, 5, task=task, world=world, shared=size, burn_in=1, **HOW)
    own, one = size // 3, 4 * 64 + 1
    np.testing.assert_array_equal(world.up, own * one + 4 * 4 * C * size)
    np.testing.assert_array_equal(world.down, (size - own) * one + 4 * 4 * C * size)


@pytest.mark.parametrize("n, rounds", [(2, 1), (2, 4), (3, 4)])
def test_cross_over_of_bytes(n, rounds):
    """A checkpoint goes straight to each peer: n (n - 1) 4 d B an exchange. Outputs go up to a
    server and down again: 2 n 4 C |S|. So they break even at |S| = (n - 1) d / (2 C). Disclosed
    samples, 4 D + 1 B, go up once and down to all but their owner: n |S| (4 D + 1) in all."""
    task = small(n=n, samples=600, network=mlp(8), dtype=torch.float32)
    outputs_alone = (n - 1) * task.d / (2 * C)
    even = (n - 1) * 4 * task.d * rounds / (8 * C * rounds + 4 * 64 + 1)
    assert even < outputs_alone and even != int(even)

    def total(method, **how):
        world = World(n)
        values(method, rounds, task=task, world=world, **HOW, **how)
        return world.totals()["bytes"]

    checkpoints = total(codistillation)
    assert checkpoints == rounds * n * (n - 1) * 4 * task.d
    below, above = (
        total(codistillation_shared_samples, shared=int(even) + more) for more in (0, 1)
    )
    assert below < checkpoints < above


def test_shared_samples_are_trained_on_by_all():
    task = small(n=3, samples=60, partition=dirichlet(0.3))
    after = state(codistillation_shared_samples, task, World(3), 1, shared=30, **HOW)
    rows, data = after["rows"], after["data"]
    assert len(rows) == 30
    for i in range(3):
        held = data.rows(i)
        assert set(held) == set(task.rows(i)) | set(rows) and len(set(held)) == len(held)
        assert set(rows) & set(task.rows(i))  # everybody discloses
    assert set(rows) <= set(task.order)
    close(after["target"][:, rows].sum(-1), torch.ones(3, 30).double())
    assert after["taught"][:, rows].all() and after["taught"].sum() == 90


def test_targets_on_shared_samples_by_autograd():
    task = small(n=2, samples=40)
    found = models(codistillation_shared_samples, 2, task=task, shared=20, alpha=0.8, **HOW)
    after = state(codistillation_shared_samples, task, World(2), 0, shared=20, **HOW)
    after = state(codistillation_shared_samples, task, World(2), 1, shared=20, alpha=0.8, **HOW)
    rows, data, Y = after["rows"], after["data"], [task.init(), task.init()]
    for r in range(2):
        others = [task.logits(Y[1 - i], task.x).softmax(-1) for i in range(2)]
        for i in range(2):
            for b in batches(data, i, (0, r), K=3, B=8):
                x = Y[i].clone().requires_grad_()
                z = task.network(x, task.x[b])
                pull = soft_cross_entropy(z, others[i][b]) * torch.tensor(np.isin(b, rows))
                loss = F.cross_entropy(z, task.y[b]) + 0.8 * pull.mean()
                Y[i] = Y[i] - 0.2 * torch.autograd.grad(loss, x)[0]
        close(found[r + 1], torch.stack(Y), 1e-10)


def test_lost_samples_and_averages():
    task = small(n=3, samples=60)
    lost = models(
        codistillation_shared_samples, 3, task=task, world=World(3, loss=1.0), shared=30, **HOW
    )
    assert torch.equal(lost, models(local_only, 3, task=task, **HOW))
    away = World(3, churn=leaves(2, 0))
    after = state(codistillation_shared_samples, task, away, 2, shared=20, **HOW)
    assert not set(after["rows"]) & set(task.rows(2)) and not after["taught"][2].any()
    assert away.up[2] == away.down[2] == 0 and after["taught"][:2].any(1).all()


# ---- fml ---------------------------------------------------------------------------------------


def test_fml_by_autograd():
    """Both losses on each batch, the other's outputs held fixed, both stepped at once."""
    task = small(n=2, samples=40, network=mlp(5))
    how = dict(task=task, alpha=0.3, beta=0.6, meme=mlp(7), **HOW)
    shared = state(fml, task, World(2), 0, **{k: v for k, v in how.items() if k != "task"})
    meme = shared["shared"].network
    P, x = [task.init(), task.init()], meme.init(task.seed, dtype=torch.float64)
    private, server = models(fml, 3, **how), models(fml, 3, private=False, **how)
    for r in range(3):
        close(private[r], torch.stack(P), 1e-10)
        close(server[r], x, 1e-10)
        M = []
        for i in range(2):
            m = x
            for b in batches(task, i, (0, r), K=3, B=8):
                p, own = P[i].clone().requires_grad_(), m.clone().requires_grad_()
                z_p, z_m = task.network(p, task.x[b]), meme(own, task.x[b])
                pairs = ((z_p, z_m, 0.3), (z_m, z_p, 0.6))
                losses = [
                    a * F.cross_entropy(z, task.y[b])
                    + (1 - a)
                    * F.kl_div(
                        F.log_softmax(z, -1), other.detach().softmax(-1), reduction="batchmean"
                    )
                    for z, other, a in pairs
                ]
                P[i] = P[i] - 0.2 * torch.autograd.grad(losses[0], p)[0]
                m = m - 0.2 * torch.autograd.grad(losses[1], own)[0]
            M.append(m)
        x = sum(M) / 2


def test_with_beta_1_memes_are_fedavg_and_with_alpha_1_private_models_are_local():
    """To round-off: the steps are taken by another path."""
    task = small()  # equal shares
    close(
        models(fml, 4, task=task, beta=1.0, private=False, **HOW),
        models(fedavg, 4, task=task, S=N, **HOW),
        1e-10,
    )
    close(
        models(fml, 4, task=task, alpha=1.0, **HOW), models(local_only, 4, task=task, **HOW), 1e-10
    )


def test_equal_models_have_no_divergence():
    """In the first step of a round with p = m, L_p has alpha and L_m beta times the gradient."""
    task = small(n=2, samples=40)
    how = dict(task=task, K=1, B=None, eta=0.2)
    local = models(local_only, 1, **how)[1] - task.init()
    close(models(fml, 1, alpha=0.3, **how)[1] - task.init(), 0.3 * local)
    mean = local.mean(0)
    close(models(fml, 1, beta=0.6, private=False, **how)[1] - task.init(), 0.6 * mean)


@pytest.mark.parametrize("networks", [(mlp(4),), (mlp(4), mlp(40))])
def test_fml_bytes_are_those_of_the_meme(networks):
    task = mixed(networks=networks)
    world = World(4)
    values(fml, 3, task=task, world=world, meme=mlp(6), **HOW)
    d = 64 * 6 + 6 + 60 + 10
    assert (world.up == 3 * 8 * d).all() and (world.down == world.up).all()
    plain, averaged, same = World(N), World(N), small(dtype=torch.float32)
    values(fml, 3, task=same, world=plain, **HOW)
    values(fedavg, 3, task=same, world=averaged, S=N, **HOW)
    assert (plain.up == 3 * 4 * 650).all()
    assert (plain.up == averaged.up).all() and (plain.down == averaged.down).all()


def test_fml_takes_the_first_of_unlike_networks_as_meme():
    task = mixed()
    x = models(fml, 2, task=task, private=False, **HOW)
    assert x.shape[1] == task.parts[0].d
    close(x[0], task.start[0, : task.parts[0].d])
    P = models(fml, 2, task=task, **HOW)
    assert torch.equal(P[0], task.start) and (P[2] != P[0]).any(1).all()


def test_who_gets_no_shared_model_trains_alone():
    task = small()
    lost = World(N, loss=1.0)
    assert torch.equal(
        models(fml, 3, task=task, world=lost, **HOW), models(local_only, 3, task=task, **HOW)
    )
    still = models(fml, 3, task=task, world=World(N, loss=1.0), private=False, **HOW)
    assert (still == still[0]).all()
    away = World(N, churn=leaves(2, 0))
    P = models(fml, 3, task=task, world=away, **HOW)
    assert (P[:, 2] == P[0, 2]).all() and (P[-1, 3] != P[0, 3]).any()
    assert away.up[2] == away.down[2] == away.busy[2] == 0


def test_outputs_of_unlike_networks():
    task = mixed()
    images = task.x[:6].expand(4, *task.x[:6].shape)
    Z = outputs(task, np.arange(4), task.start, images)
    for i in range(4):
        _, part = kinds(task, [i])[0]
        close(Z[i], part.network(task.start[i, : part.d], task.x[:6]))


# ---- claims ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_claim_two_models_are_better_than_one():
    gains = []
    for seed in range(3):
        task = Task(n=2, samples=200, network=mlp(32), seed=seed)
        how = dict(K=100, B=16, eta=0.1, seed=seed, rounds=8, every=8)
        accuracy = [
            final(run(m, task, World(2, seed=seed), **how)) for m in (codistillation, local_only)
        ]
        gains.append(accuracy[0] - accuracy[1])
    assert np.mean(gains) > 0.005, gains
