import numpy as np
import pytest
import torch
from conftest import (
    Deaf,
    Quadratic,
    autograd,
    batches,
    close,
    leaves,
    models,
    quadratic_sgd,
    same_data,
    small,
    values,
)

from survey_lib.errors import UsageError
from survey_lib.evidence.run import reach, run
from survey_lib.methods.server_sync import fedavg, fedsgd, mean, partial_work, sample
from survey_lib.models import mlp
from survey_lib.partition import dirichlet, iid, quantity, shards
from survey_lib.presets import Device, Link
from survey_lib.training import Task, local_sgd, train
from survey_lib.world import World

PARTITIONS = [iid(), shards(1), dirichlet(0.3), quantity(0.5)]


# ---- fedsgd ------------------------------------------------------------------------------------


@pytest.mark.parametrize("partition", PARTITIONS)
def test_fedsgd_of_all_devices_is_gradient_descent_on_the_pooled_data(partition):
    task = small(partition=partition)
    x = task.init()
    for found in models(fedsgd, 4, task=task, S=task.n, eta=0.7):
        close(found, x)
        x = x - 0.7 * autograd(task, x, task.order)


@pytest.mark.parametrize("S", [1, 3, 6])
def test_averaging_gradients_is_averaging_models_after_one_full_batch_step(S):
    task = small(partition=dirichlet(0.3))
    a = models(fedsgd, task=task, S=S, eta=0.5)
    b = models(fedavg, task=task, S=S, eta=0.5, B=None, E=1)
    c = models(fedavg, task=task, S=S, eta=0.5, B=None, K=1)
    close(a, b)
    close(a, c)


# ---- fedavg ------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [None, mlp(7)])
def test_fedavg_of_one_device_is_minibatch_sgd(network):
    task = small(n=1, samples=43, network=network)
    found = models(fedavg, 2, task=task, S=1, B=10, E=2, eta=0.2)
    x = task.init()
    for r in range(2):
        assert torch.equal(
            train(task, [0], found[r], eta=0.2, B=10, E=2, seed=(0, r))[0], found[r + 1]
        )
        visits = batches(task, 0, (0, r), B=10, E=2)
        assert [len(b) for b in visits] == [10, 10, 10, 10, 3] * 2  # E ceil(n_i / B) steps
        for epoch in (visits[:5], visits[5:]):
            assert sorted(torch.cat(epoch).tolist()) == sorted(task.order)
        for b in visits:
            x = x - 0.2 * autograd(task, x, b)
        close(found[r + 1], x)


def test_devices_with_the_same_data_and_batches_are_one_device():
    many, one = (small(n=n, partition=same_data) for n in (5, 1))
    how = dict(B=None, E=3, eta=0.3)
    close(models(fedavg, task=many, S=5, **how), models(fedavg, task=one, S=1, **how))


def test_mean_weighs_by_samples_and_keeps_copies():
    rows = torch.tensor([[1.0, 5.0], [4.0, -1.0]])
    # (3 * 1 + 1 * 4) / 4 and (3 * 5 - 1) / 4
    close(mean(rows, np.array([3, 1])), torch.tensor([7 / 4, 14 / 4]))
    x = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    close(mean(x.expand(7, -1), np.arange(1, 8)), x)


def test_fedavg_on_a_quadratic_by_hand():
    """H_i = h_i I: K steps give y_i = e_i + (1 - eta h_i)^K (x - e_i). From x = 0, h = (1, 2),
    e = (1, -1), K = 2, eta = 1/2: y_1 = 1 - 1/4 = 3/4, y_2 = -1; sizes 3 and 1: 5/16."""
    H = torch.tensor([[[1.0]], [[2.0]]], dtype=torch.float64)
    e = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    task = Quadratic(H, e, sizes=[3, 1])
    found = models(fedavg, 1, task=task, S=2, B=None, K=2, eta=0.5, local=quadratic_sgd)
    close(found[1], torch.tensor([5 / 16], dtype=torch.float64))


@pytest.mark.parametrize("S", [2, 6])
def test_only_the_devices_that_answered_count(S):
    """The weights are n_i / n_S over S; all n in their place would shrink the model."""
    task = small(partition=quantity(0.5))
    chosen = sample(task.n, S, 0, 0)
    deaf = chosen[:1]
    Y = train(task, chosen, task.init(), eta=0.2, B=8, E=2, seed=(0, 0))
    w = torch.as_tensor(task.sizes[chosen] / task.sizes[chosen].sum())
    how = dict(task=task, S=S, B=8, E=2, eta=0.2)
    close(models(fedavg, 1, **how)[1], w @ Y)
    w = torch.as_tensor(task.sizes[chosen[1:]] / task.sizes[chosen[1:]].sum())
    close(models(fedavg, 1, world=Deaf(task.n, deaf), **how)[1], w @ Y[1:])


@pytest.mark.parametrize("method", [fedsgd, fedavg])
def test_lost_uploads_change_nothing(method):
    how = dict(S=3, eta=0.2) | (dict(B=8, E=1) if method is fedavg else {})
    world = Deaf(6, np.arange(6))
    found = models(method, world=world, **how)
    assert (found == found[0]).all()
    assert world.clock > 0
    assert world.up.sum() == 3 * 3 * found.shape[1] * 8  # lost ones were sent


@pytest.mark.parametrize("method", [fedsgd, fedavg])
def test_nobody_reached(method):
    how = dict(S=3, eta=0.2) | (dict(B=8, E=1) if method is fedavg else {})
    for world in (World(6, loss=1.0), World(1, loss=1.0)):
        task = small(n=world.n)
        found = models(method, task=task, world=world, **how | dict(S=min(3, task.n)))
        assert (found == found[0]).all()
        assert world.clock >= 3  # a server that reaches nobody waits before it tries again


@pytest.mark.parametrize("method, size", [(fedsgd, {}), (fedavg, dict(B=10, E=2))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bytes(method, size, dtype):
    task, S, rounds = small(dtype=dtype), 4, 5
    world = World(task.n)
    values(method, rounds, task=task, world=world, S=S, eta=0.1, **size)
    model = task.d * task.init().element_size()
    assert world.up.sum() == world.down.sum() == rounds * S * model
    assert world.server_up == world.server_down == rounds * S * model
    assert world.messages == rounds * 2 * S
    visits = np.bincount(np.concatenate([sample(task.n, S, 0, r) for r in range(rounds)]))
    assert (world.up == visits * model).all()


def test_time_of_a_round():
    """Down, E epochs, up; the slowest of the sampled devices decides."""
    task = small(n=3, samples=100)  # sizes 34, 33, 33
    device = Device(1e6, 1e9, 1, 2, 1.5, "test")
    world = World(3, device=device, link=Link(0.01, 1e4, 2e4))
    values(fedavg, 4, task=task, world=world, S=3, B=10, E=2, eta=0.1)
    flops = 2 * 34 * 2 * 2 * 64 * 10  # E epochs, forward and backward, 2 per multiply-add, 64 x 10
    model = 8 * task.d
    seconds = 0.01 + model / 2e4 + flops / 1e6 + 0.01 + model / 1e4
    assert world.clock == pytest.approx(4 * seconds, rel=1e-12)


def test_sample():
    draws = np.stack([sample(10, 4, 0, r) for r in range(500)])
    assert (np.diff(draws, axis=1) > 0).all()  # without replacement, ascending
    share = np.bincount(draws.ravel(), minlength=10) / 500
    assert np.abs(share - 0.4).max() < 4 * (0.4 * 0.6 / 500) ** 0.5
    for S in (0, 11):
        with pytest.raises(UsageError, match="there are 10; choose S from 1 to 10"):
            sample(10, S, 0)


# ---- stragglers --------------------------------------------------------------------------------


def test_partial_work():
    epochs = np.stack([partial_work(5, 0.5, np.arange(10), 0, r) for r in range(400)])
    assert ((epochs < 5).sum(1) == 5).all()
    late = epochs[epochs < 5]
    assert set(late) == {1, 2, 3, 4}
    assert np.abs(np.bincount(late)[1:] / len(late) - 1 / 4).max() < 0.05
    assert 0.4 < (epochs < 5).mean(0).min()  # nobody is spared
    assert (partial_work(5, 0.0, np.arange(10), 0) == 5).all()
    assert (partial_work(5, 1.0, np.arange(10), 0) < 5).all()
    for E in (None, 1):
        with pytest.raises(UsageError, match="2 or more"):
            partial_work(E, 0.5, np.arange(10), 0)


@pytest.mark.parametrize("include", [False, True])
def test_stragglers_are_dropped_or_included(include):
    task, S, E = small(partition=quantity(1.0)), 4, 4
    world = World(task.n)
    how = dict(S=S, B=8, E=E, eta=0.2, stragglers=0.5, keep=include)
    found = models(fedavg, 2, task=task, world=world, **how)
    x = task.init()
    for r in range(2):
        close(found[r], x)
        chosen = sample(task.n, S, 0, r)
        epochs = partial_work(E, 0.5, chosen, 0, r)
        Y = train(task, chosen, x, eta=0.2, B=8, E=epochs, seed=(0, r))
        kept = np.arange(S) if include else np.flatnonzero(epochs == E)
        x = mean(Y[kept], task.sizes[chosen[kept]])
    sent = S if include else S // 2
    assert world.up.sum() == 2 * sent * task.d * 8
    assert world.down.sum() == 2 * S * task.d * 8


def test_a_straggler_does_the_first_epochs_of_its_full_work():
    task = small(partition=quantity(1.0))
    epochs = np.array([1, 3])
    Y = train(task, [0, 1], task.init(), eta=0.2, B=8, E=epochs, seed=(0, 0))
    for i, e in enumerate(epochs):
        close(Y[i], train(task, [i], task.init(), eta=0.2, B=8, E=int(e), seed=(0, 0))[0])


def test_a_round_of_stragglers_alone_keeps_the_model_and_takes_time():
    world = World(6)
    how = dict(S=3, B=8, E=2, eta=0.2, stragglers=1.0)
    found = models(fedavg, world=world, **how)
    assert (found == found[0]).all()
    assert world.clock > 0


def test_no_stragglers_is_the_plain_round_bit_for_bit():
    how = dict(S=3, B=8, E=2, eta=0.2)
    plain = models(fedavg, **how)
    assert torch.equal(plain, models(fedavg, stragglers=0.0, keep=True, **how))
    assert torch.equal(plain, models(fedavg, local=local_sgd, **how))


def test_a_device_that_goes_off_during_a_round_does_not_count():
    task = small(n=2)
    quiet = World(2)
    values(fedavg, 1, task=task, world=quiet, S=2, B=8, E=2, eta=0.2)
    world = World(2, churn=leaves(1, quiet.clock / 2))
    found = models(fedavg, 2, task=task, world=world, S=2, B=8, E=2, eta=0.2)
    alone = train(task, [0], task.init(), eta=0.2, B=8, E=2, seed=(0, 0))[0]
    close(found[1], alone)
    close(found[2], train(task, [0], alone, eta=0.2, B=8, E=2, seed=(0, 1))[0])


# ---- claims ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_claim_local_epochs_save_rounds():
    for seed in range(3):
        rounds = {}
        for method, how in (
            (fedsgd, dict(eta=1.0)),
            (fedavg, dict(B=10, E=5, eta=0.2)),
        ):
            task = Task(n=20, seed=seed)
            history = run(
                method, task, World(20, seed=seed), rounds=60, target=0.93, S=10, seed=seed, **how
            )
            rounds[method] = reach(history, 0.93)
        assert 3 * rounds[fedavg] <= rounds[fedsgd], (seed, rounds)
