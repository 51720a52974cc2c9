"""Local training: by hand as by autograd and plain torch; who visits what; lazy training."""

import itertools

import numpy as np
import pytest
import torch
from conftest import autograd, close, small
from torch import nn
from torch.nn import functional as F

from survey_lib import training
from survey_lib.backprop import layers_by_hand
from survey_lib.data import Data
from survey_lib.errors import UsageError
from survey_lib.models import cnn, logistic, mlp
from survey_lib.training import InFlight, Task, cross_entropy, gradients, local_sgd, schedule, work
from survey_lib.world import World

SIZES = (1, 2, 5, 8, 13, 20)  # ragged; 1 and 2 are less than a batch


def ragged(y, n, *key):
    """A partition: device i holds SIZES[i % 6] samples."""
    ends = np.cumsum([SIZES[i % 6] for i in range(n)])
    return np.split(np.arange(ends[-1]), ends[:-1])


def random_task(network, *, n=6, dtype=torch.float64, shape=(1, 4, 3), classes=4, seed=0):
    """Random images and labels on ragged devices."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(120, *shape, generator=rng, dtype=torch.float64)
    y = torch.randint(classes, (120,), generator=rng)
    data = Data("random", x[:100], y[:100], x[100:], y[100:], classes, "")
    return Task(data, n=n, partition=ragged, network=network, seed=seed, dtype=dtype)


def normal(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def both_ways(task, run):
    """What `run` gives on the path by hand and on the path by autograd."""
    by_hand = run()
    assert task.network.by_hand
    task.network.by_hand = None
    return by_hand, run()


def tanh(shape, classes):
    """A network for the path by autograd."""
    size = int(np.prod(shape))
    return nn.Sequential(nn.Flatten(1), nn.Linear(size, 6), nn.Tanh(), nn.Linear(6, classes))


NETWORKS = {"logistic": logistic(), "one": mlp(7), "two": mlp(9, 5), "wide": mlp(3, 11, 6)}
HOW_LONG = {
    "epochs": dict(B=4, E=3),
    "an epoch number each": dict(B=4, E=[2, 0, 3, 1, 1, 2]),
    "steps": dict(B=4, K=7),
    "a step number each": dict(B=3, K=[5, 1, 0, 9, 9, 2]),
    "one by one": dict(B=1, K=6),
    "full batch": dict(B=None, K=4),
    "full batch epochs": dict(B=None, E=3),
    "wide batch": dict(B=50, E=2),
}


@pytest.mark.parametrize("how", HOW_LONG)
@pytest.mark.parametrize("name", NETWORKS)
def test_path_by_hand_equals_autograd(name, how):
    task = random_task(NETWORKS[name])
    k, d = len(SIZES), task.d
    starts = {"one": task.init(), "each": task.init() + 0.1 * normal(k, d)}
    corrections = {"none": None, "one": 0.1 * normal(d), "each": 0.1 * normal(k, d)}
    for (x, c), mu in itertools.product(
        itertools.product(starts.values(), corrections.values()), (0.0, 0.3)
    ):
        task.network.by_hand = layers_by_hand(task.network.module)
        a, b = both_ways(
            task,
            lambda x=x, c=c, mu=mu: training.train(
                task, np.arange(k), x, eta=0.2, correct=c, mu=mu, seed=("s", 1), **HOW_LONG[how]
            ),
        )
        close(a, b, atol=1e-10)
    assert (a - x).abs().max() > 1e-3


@pytest.mark.parametrize("how", HOW_LONG)
@pytest.mark.parametrize(("network", "shape"), [(cnn(3, 4), (1, 8, 9)), (cnn(2, 3), (2, 20, 21))])
def test_convolutions_by_hand_equal_autograd(network, shape, how):
    task = random_task(network, shape=shape)
    task.x.mul_(2).round_()  # windows with several largest entries
    correct = 0.1 * normal(6, task.d)
    a, b = both_ways(
        task,
        lambda: training.train(
            task,
            np.arange(6),
            task.init(),
            eta=0.2,
            correct=correct,
            mu=0.3,
            seed=1,
            **HOW_LONG[how],
        ),
    )
    close(a, b, atol=1e-10)
    assert (a - task.init()).abs().max() > 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_path_by_hand_equals_autograd_in_single_precision(name):
    task = random_task(NETWORKS[name], dtype=torch.float32)
    correct = 0.1 * normal(6, task.d, dtype=torch.float32)
    a, b = both_ways(
        task,
        lambda: training.train(
            task, np.arange(6), task.init(), eta=0.1, B=4, E=3, correct=correct, mu=0.1, seed=0
        ),
    )
    assert a.dtype == torch.float32
    close(a, b, atol=1e-5)


def test_losses_see_samples_and_members_alike_on_both_paths():
    """A loss that knows sample and device; the devices' order by steps is not their own order."""
    task = random_task(mlp(5))
    per_sample, per_member = 0.5 + normal(100).abs(), torch.tensor([1.0, 0.2, 3.0, 0.5, 0.0, 2.0])

    def loss(z, y, rows, members):
        assert (y == task.y[rows])[rows >= 0].all() and len(members) == len(z)
        scale = per_sample[rows] * per_member[members][:, None]
        return cross_entropy(z, y, rows, members) * scale[..., None]

    chosen = np.array([3, 0, 5, 4, 1, 2])
    a, b = both_ways(
        task,
        lambda: training.train(
            task, chosen, task.init(), eta=0.2, B=4, K=[2, 5, 1, 4, 3, 6], loss=loss, seed=0
        ),
    )
    close(a, b, atol=1e-10)
    close(a[4], task.init())  # its member's factor is 0
    assert (a - task.init()).abs().amax(1)[[0, 1, 2, 3, 5]].min() > 1e-3


def only(per_member):
    """A projection: member i moves along the entries of per_member (k, d) that are not 0."""
    return lambda G, members: G * per_member[members]


@pytest.mark.parametrize("how", HOW_LONG)
@pytest.mark.parametrize("name", NETWORKS)
def test_projected_path_by_hand_equals_autograd(name, how):
    """P_i g_i + c_i + mu (y - x); the devices' order by steps is not their own order."""
    task, k = random_task(NETWORKS[name]), len(SIZES)
    P = only((normal(k, task.d) > 0).double() * torch.arange(1, k + 1)[:, None])
    for correct, mu in ((None, 0.0), (0.1 * normal(k, task.d), 0.3)):
        task.network.by_hand = layers_by_hand(task.network.module)
        a, b = both_ways(
            task,
            lambda c=correct, mu=mu: training.train(
                task,
                np.arange(k),
                task.init(),
                eta=0.1,
                correct=c,
                mu=mu,
                project=P,
                seed=("s", 1),
                **HOW_LONG[how],
            ),
        )
        close(a, b, atol=1e-10)
    assert (a - task.init()).abs().max() > 1e-3


@pytest.mark.parametrize("network", [mlp(7, 5), cnn(2, 3), tanh])
def test_a_projection_that_keeps_everything_changes_nothing(network):
    task = random_task(network, shape=(1, 8, 8))
    how = dict(eta=0.2, B=4, K=[5, 1, 0, 9, 9, 2], correct=0.1 * normal(task.d), mu=0.3, seed=0)
    plain = training.train(task, np.arange(6), task.init(), **how)
    kept = training.train(task, np.arange(6), task.init(), project=only(torch.ones(6, 1)), **how)
    close(kept, plain, atol=1e-12)


@pytest.mark.parametrize("network", [mlp(7, 5), cnn(2, 3), tanh])
def test_projected_training_of_one_device_equals_a_plain_loop(network):
    """y <- y - eta (P g(y) + c + mu (y - x)), P a dense matrix, over the same batches."""
    task = random_task(network, shape=(1, 8, 8))
    x, c, P = task.init(), 0.1 * normal(task.d), normal(task.d, task.d) / task.d**0.5
    y = x.clone()
    rows, _, steps = schedule(task, [4], B=5, E=2, seed=9)
    for t in range(steps[0]):
        g = autograd(task, y, rows[0, t][rows[0, t] >= 0])
        y = y - 0.15 * (P @ g + c + 0.4 * (y - x))
    how = dict(eta=0.15, B=5, E=2, correct=c, mu=0.4, seed=9)
    got = training.train(task, [4], x, project=lambda G, members: G @ P.T, **how)[0]
    close(got, y, atol=1e-10)


@pytest.mark.parametrize(
    ("chunk", "wide"), [(1, 64), (2**21, 1), (2**21, 2), (250, 64), (2**30, 99)]
)
def test_projections_meet_their_own_device_in_every_chunk(chunk, wide, monkeypatch):
    """Member i moves entry i alone; whom a device trains beside does not matter."""
    task, chosen = random_task(mlp(7), n=11), np.arange(11)[::-1].copy()
    how = dict(eta=0.1, B=4, K=[3, 9, 1, 7, 5, 5, 2, 8, 0, 4, 6], seed=0)
    how["project"] = only(torch.eye(task.d, dtype=torch.float64)[-11:])
    Y = training.train(task, chosen, task.init(), **how)
    monkeypatch.setattr(training, "CHUNK", chunk)
    monkeypatch.setattr(training, "WIDE", wide)
    close(training.train(task, chosen, task.init(), **how), Y)
    moved = (Y != task.init())[:, -11:]
    trains = torch.tensor(how["K"]) > 0
    assert torch.equal(moved & ~torch.eye(11, dtype=bool), torch.zeros(11, 11, dtype=bool))
    assert torch.equal(Y[:, :-11], task.init()[:-11].expand(11, -1))
    assert torch.equal(moved.diagonal(), trains)


def test_projected_local_sgd_takes_the_same_time_and_projects():
    task, worlds = random_task(mlp(7)), (World(6), World(6))
    how, chosen = dict(eta=0.1, B=4, E=2, seed=0), np.array([5, 1, 3])
    frozen = only(torch.zeros(3, 1))
    Y = local_sgd(task, worlds[0], chosen, task.init(), project=frozen, **how)
    assert torch.equal(Y, task.init().expand(3, -1))
    local_sgd(task, worlds[1], chosen, task.init(), **how)
    np.testing.assert_array_equal(worlds[0].busy, worlds[1].busy)


def test_cross_entropy_is_the_derivative():
    z, y = normal(3, 5, 4).requires_grad_(), torch.arange(15).view(3, 5) % 4
    F.cross_entropy(z.view(-1, 4), y.view(-1), reduction="sum").backward()
    before = z.detach().clone()
    close(cross_entropy(z.detach(), y, None, None), z.grad)
    assert torch.equal(z.detach(), before)


@pytest.mark.parametrize(
    ("chunk", "wide"), [(1, 64), (2**21, 1), (2**21, 2), (250, 64), (2**30, 99)]
)
def test_chunks_do_not_matter(chunk, wide, monkeypatch):
    task = random_task(mlp(7), n=11)
    correct, X = 0.1 * normal(11, task.d), task.init() + normal(11, task.d)
    how = dict(eta=0.1, B=4, K=[3, 9, 1, 7, 5, 5, 2, 8, 0, 4, 6], correct=correct, mu=0.2, seed=0)
    chosen = np.arange(11)[::-1].copy()
    Y = training.train(task, chosen, X, **how)
    G = gradients(task, World(11), chosen, X, B=4, seed=0)
    monkeypatch.setattr(training, "CHUNK", chunk)
    monkeypatch.setattr(training, "WIDE", wide)
    close(training.train(task, chosen, X, **how), Y)
    close(gradients(task, World(11), chosen, X, B=4, seed=0), G)


@pytest.mark.parametrize("network", [mlp(7), cnn(2, 3), tanh])
def test_a_device_trains_alike_alone_and_in_any_cohort(network):
    task = random_task(network, n=8, shape=(1, 8, 8))
    X, c = task.init() + 0.1 * normal(8, task.d), 0.1 * normal(8, task.d)
    how = dict(eta=0.1, B=4, E=2, mu=0.1, seed=(0, 7))
    whole = training.train(task, np.arange(8), X, correct=c, **how)
    for chosen in ([3], [7, 3], [5, 3, 0, 1]):
        close(training.train(task, chosen, X[chosen], correct=c[chosen], **how), whole[chosen])


def test_batch_norms_see_the_samples_of_their_own_batch_only():
    """Also where the batches of other devices are larger."""

    def norm(shape, classes):
        plain = nn.BatchNorm2d(1, track_running_stats=False)
        return nn.Sequential(plain, nn.Flatten(1), nn.Linear(12, classes))

    task, chosen = random_task(norm), np.array([4, 2, 5])  # 13, 5 and 20 samples
    X = task.init() + 0.1 * normal(3, task.d)
    for B in (4, 5, None):  # ragged, ragged but for the first, ragged
        rows = schedule(task, chosen, B=B, K=1, seed=3)[0][:, 0]
        want = [autograd(task, x, r[r >= 0]) for x, r in zip(X, rows, strict=True)]
        close(training.batch_gradients(task, chosen, X, B=B, seed=3), torch.stack(want), 1e-10)


def test_nothing_handed_in_is_changed():
    task = random_task(mlp(7))
    for by_hand in (task.network.by_hand, None):
        task.network.by_hand = by_hand
        X, c, data = task.init().repeat(6, 1), normal(6, task.d), task.x.clone()
        kept = X.clone(), c.clone()
        training.train(task, np.arange(6), X, eta=0.1, B=4, E=2, correct=c, mu=0.1, seed=0)
        gradients(task, World(6), np.arange(6), X, B=4, seed=0)
        assert torch.equal(X, kept[0]) and torch.equal(c, kept[1]) and torch.equal(task.x, data)


@pytest.mark.parametrize("network", [logistic(), mlp(6, 5), cnn(2, 3), tanh])
def test_one_device_equals_a_plain_torch_loop(network):
    """SGD of torch on the loss + correct . y + mu/2 ||y - x||^2, over the same batches."""
    task = random_task(network, shape=(1, 8, 8))
    x, c, mu, eta = task.init(), 0.1 * normal(task.d), 0.4, 0.15
    rows, _, steps = schedule(task, [4], B=5, E=3, seed=9)
    model = task.network.build(task.network.shape, task.classes).double()
    nn.utils.vector_to_parameters(x.clone(), model.parameters())
    optimiser = torch.optim.SGD(model.parameters(), lr=eta)
    for t in range(steps[0]):
        batch = rows[0, t][rows[0, t] >= 0]
        optimiser.zero_grad()
        y = nn.utils.parameters_to_vector(model.parameters())
        loss = F.cross_entropy(model(task.x[batch]), task.y[batch])
        (loss + c @ y + mu / 2 * (y - x).square().sum()).backward()
        optimiser.step()
    want = nn.utils.parameters_to_vector(model.parameters()).detach()
    got = training.train(task, [4], x, eta=eta, B=5, E=3, correct=c, mu=mu, seed=9)[0]
    close(got, want, atol=1e-10)


def test_a_step_by_hand():
    """One sample h = (2, 1) of class 0, logistic regression from 0, eta = 1: softmax (1/2, 1/2),
    dL/dz = (-1/2, 1/2), dL/dW = dL/dz h^T, dL/db = dL/dz."""
    x = torch.tensor([[2.0, 1.0]])
    data = Data("one", x, torch.tensor([0]), x, torch.tensor([0]), 2, "")
    task = Task(data, n=1, network=logistic())
    y = training.train(task, [0], torch.zeros(6), eta=1.0, B=1, K=1, seed=0)[0]
    assert torch.equal(y, torch.tensor([1.0, 0.5, -1.0, -0.5, 0.5, -0.5]))


# ---- who visits which sample ---------------------------------------------------------------------


@pytest.mark.parametrize("B", [1, 3, 4, 20, 99, None])
@pytest.mark.parametrize("E", [1, 3])
def test_E_epochs_visit_every_sample_E_times(B, E):
    task = random_task(logistic(), n=8)
    rows, weight, steps = schedule(task, np.arange(8), B=B, E=E, seed=0)
    for i in range(8):
        n = task.sizes[i]
        per_epoch = 1 if B is None else -(-n // B)
        assert steps[i] == E * per_epoch
        for e in range(E):
            epoch = rows[i, e * per_epoch : (e + 1) * per_epoch]
            assert sorted(epoch[epoch >= 0].tolist()) == sorted(task.rows(i).tolist())
        filled = (rows[i] >= 0).sum(1).tolist()
        full = n if B is None else min(B, n)
        assert filled[: steps[i]] == ([full] * (per_epoch - 1) + [n - full * (per_epoch - 1)]) * E
        assert not any(filled[steps[i] :])


@pytest.mark.parametrize(
    "how", [dict(B=4, E=2), dict(B=4, K=9), dict(B=None, K=2), dict(B=4, K=[1, 2, 3, 4, 5, 6])]
)
def test_weights_of_each_batch_are_equal_and_sum_to_1(how):
    task = random_task(logistic())
    rows, weight, steps = schedule(task, np.arange(6), seed=0, **how)
    assert rows.shape == weight.shape and weight.dtype == task.dtype
    batch = (rows >= 0).sum(-1, keepdim=True)
    close(weight, torch.where(rows >= 0, 1 / batch.clamp(min=1).double(), 0.0))
    taken = torch.arange(rows.shape[1]) < torch.as_tensor(steps)[:, None]
    close(weight.sum(-1), taken.double())


def test_padding_only_follows_the_samples():
    task = random_task(logistic())
    rows, _, _ = schedule(task, np.arange(6), B=4, E=2, seed=0)
    real = (rows >= 0).long()
    assert (real.diff(dim=-1) <= 0).all()


def test_whose_data_are_elsewhere_visits_nothing():
    """And the others visit what they visit anyway."""
    task = random_task(logistic())
    whole = schedule(task, np.arange(6), B=4, E=2, seed=0)
    own = task.rows
    task.rows = lambda i: own(i) if i != 5 else np.zeros(0, int)
    rows, weight, steps = schedule(task, np.arange(6), B=4, E=2, seed=0)
    np.testing.assert_array_equal(steps, whole[2])
    assert (rows[5] == -1).all() and not weight[5].any()
    assert torch.equal(rows[:5], whole[0][:5]) and torch.equal(weight[:5], whole[1][:5])


def test_steps_run_through_epochs_and_beyond():
    """K steps are the first K of as many epochs as it takes; 13 samples are 4, 4, 4, 1."""
    task = random_task(logistic())
    epochs = schedule(task, [4], B=4, E=3, seed=5)[0][0]
    for K in (1, 3, 4, 5, 9, 12):
        rows, _, steps = schedule(task, [4], B=4, K=K, seed=5)
        assert steps[0] == K and torch.equal(rows[0], epochs[:K])
    assert (epochs >= 0).sum(1).tolist() == [4, 4, 4, 1] * 3
    assert not torch.equal(epochs[:4], epochs[4:8])  # a fresh permutation


def test_batches_are_keyed_by_seed_and_device_only():
    task = random_task(logistic(), n=12)
    whole = schedule(task, np.arange(12), B=4, E=2, seed=(0, 3))[0]
    alone = schedule(task, [11], B=4, E=2, seed=(0, 3))[0][0]
    assert torch.equal(whole[11][: len(alone)], alone)
    assert not torch.equal(schedule(task, [11], B=4, E=2, seed=(0, 4))[0][0], alone)
    seeds = [(0, 4), (0, 3)]  # a list: one per device
    rows = schedule(task, [10, 11], B=4, E=2, seed=seeds)[0]
    assert torch.equal(rows[1][: len(alone)], alone)
    first = schedule(task, [10], B=4, E=2, seed=(0, 4))[0][0]
    assert torch.equal(rows[0][: len(first)], first)
    # devices of equal size and unlike key visit their samples in unlike order
    assert not torch.equal(whole[5] - task.rows(5)[0], whole[11] - task.rows(11)[0])


def test_batches_are_uniform():
    """Each of 5 samples is in the first batch of 2 with probability 2/5."""
    task, draws = random_task(logistic()), 3000
    first = [schedule(task, [2], B=2, K=1, seed=s)[0][0, 0] for s in range(draws)]
    share = np.bincount(torch.cat(first) - task.rows(2)[0], minlength=5) / draws
    assert np.abs(share - 0.4).max() < 4 * np.sqrt(0.4 * 0.6 / draws)


# ---- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [logistic(), mlp(8, 5), cnn(2, 3), tanh])
@pytest.mark.parametrize("B", [None, 4])
def test_gradients_equal_autograd_of_the_mean_loss(network, B):
    task = random_task(network, shape=(1, 8, 8))
    X = task.init() + 0.1 * normal(6, task.d)
    chosen = np.array([4, 0, 5, 2])
    rows = schedule(task, chosen, B=B, K=1, seed=3)[0][:, 0]
    want = [autograd(task, X[i], r[r >= 0]) for i, r in zip(chosen, rows, strict=True)]
    close(gradients(task, World(6), chosen, X[chosen], B=B, seed=3), torch.stack(want), 1e-10)
    same = gradients(task, World(6), chosen, X[0], B=B, seed=3)
    close(same[1], autograd(task, X[0], rows[1][rows[1] >= 0]), 1e-10)


@pytest.mark.parametrize("network", [mlp(8), cnn(2, 3), tanh])
def test_weighted_full_gradients_make_the_pooled_gradient(network):
    task = random_task(network, shape=(1, 8, 8))
    G = gradients(task, World(6), np.arange(6), task.init(), seed=0)
    close(task.p @ G, autograd(task, task.init(), torch.from_numpy(task.order)), 1e-10)


@pytest.mark.parametrize("network", [mlp(8), cnn(2, 3), tanh])
def test_one_step_is_a_step_along_the_gradient(network):
    task = random_task(network, shape=(1, 8, 8))
    x, chosen = task.init(), np.arange(6)
    G = gradients(task, World(6), chosen, x, B=4, seed=3)
    close(training.train(task, chosen, x, eta=0.3, B=4, K=1, seed=3), x - 0.3 * G)


# ---- work in the world ---------------------------------------------------------------------------


def test_work_is_that_of_the_samples_visited():
    """12-7-4: forward 2 (12 7 + 7 4), backward 2 12 7 in the first layer, 4 7 4 in the second."""
    task = random_task(mlp(7))
    forward, backward = 2 * (12 * 7 + 7 * 4), 2 * 12 * 7 + 4 * 7 * 4
    chosen = np.array([5, 0, 3, 4])
    for how in HOW_LONG.values():
        how = {k: v[:4] if isinstance(v, list) else v for k, v in how.items()}
        visited = (schedule(task, chosen, seed=0, **how)[0] >= 0).sum((1, 2)).numpy()
        np.testing.assert_array_equal(
            work(task, chosen, **how), visited * float(forward + backward)
        )
    assert work(task, [4], B=4, E=2)[0] == 2 * 13 * (forward + backward)
    assert work(task, [4], B=4, K=4)[0] == 13 * (forward + backward)  # 4 + 4 + 4 + 1


def test_local_sgd_is_train_and_takes_the_time_of_its_work():
    task = random_task(mlp(7))
    how, chosen = dict(B=4, E=[2, 1, 3]), np.array([5, 1, 3])
    world = World(6)
    Y = local_sgd(task, world, chosen, task.init(), eta=0.1, seed=0, **how)
    assert torch.equal(Y, training.train(task, chosen, task.init(), eta=0.1, seed=0, **how))
    seconds = np.zeros(6)
    seconds[chosen] = work(task, chosen, **how) / world.speed[chosen]
    np.testing.assert_allclose(world.busy, seconds, rtol=1e-12)
    gradients(task, world, chosen, task.init(), B=4, seed=0)
    seconds[chosen] += work(task, chosen, B=4, K=1) / world.speed[chosen]
    np.testing.assert_allclose(world.busy, seconds, rtol=1e-12)


@pytest.mark.parametrize("network", [mlp(7), cnn(2, 3), tanh])
def test_nobody_to_train_is_no_error(network):
    task = random_task(network, shape=(1, 8, 8))
    nobody, world = np.zeros(0, int), World(6)
    for how in (dict(B=4, E=1), dict(B=None, K=2)):
        got = local_sgd(
            task, world, nobody, task.init(), eta=0.1, correct=task.init(), seed=0, **how
        )
        assert got.shape == (0, task.d)
    assert gradients(task, world, nobody, task.init(), B=4, seed=0).shape == (0, task.d)
    assert not world.busy.any()


# ---- lazy training -------------------------------------------------------------------------------


@pytest.fixture
def cohorts(monkeypatch):
    """The devices of every call of train."""
    seen, train = [], training.train

    def counted(task, chosen, *args, **how):
        seen.append(list(chosen))
        return train(task, chosen, *args, **how)

    monkeypatch.setattr(training, "train", counted)
    return seen


@pytest.mark.parametrize("order", list(itertools.permutations((0, 2, 3, 5)))[::5])
def test_in_flight_equals_training_each_device_alone(order, cohorts):
    task = random_task(mlp(7))
    how = dict(eta=0.1, B=4, E=2, mu=0.1)
    X = {i: task.init() + 0.1 * normal(task.d, seed=i) for i in order}
    flight = InFlight(task, **how)
    for i in order:
        flight.start(i, X[i], (0, i))
    got = {i: flight.result(i) for i in order}
    assert cohorts == [[0, 2, 3, 5]]  # one cohort for one miss
    for i in order:
        want = training.train(task, [i], X[i], seed=(0, i), **how)[0]
        close(got[i], want)


def test_in_flight_trains_once_per_miss(cohorts):
    task = random_task(mlp(7))
    flight, x = InFlight(task, eta=0.1, B=4, K=2), task.init()
    for i in (0, 1, 2):
        flight.start(i, x, (0, i))
    flight.result(1)
    flight.start(1, x, (1, 1))  # noted after the cohort of 0, 1, 2
    flight.result(0), flight.result(2)
    assert cohorts == [[0, 1, 2]]
    flight.start(2, x, (2, 2))
    again = flight.result(1)
    assert cohorts == [[0, 1, 2], [1, 2]]
    close(again, training.train(task, [1], x, eta=0.1, B=4, K=2, seed=(1, 1))[0])


def test_in_flight_trains_those_that_wait_longest_and_no_more_than_a_chunk(cohorts, monkeypatch):
    monkeypatch.setattr(training, "WIDE", 3)
    task = random_task(mlp(7))
    how = dict(eta=0.1, B=4, K=2)
    flight, x = InFlight(task, **how), task.init()
    for i in (5, 0, 2, 4, 1):
        flight.start(i, x, (0, i))
    flight.start(0, x, (1, 0))  # begins anew, behind 1
    for i in (1, 5, 2, 4, 0):
        want = training.train(task, [i], x, seed=(int(i == 0), i), **how)[0]
        close(flight.result(i), want)
    assert [c for c in cohorts if len(c) > 1] == [[1, 2, 5], [0, 4]]


def test_in_flight_trains_all_before_the_data_change(cohorts, monkeypatch):
    monkeypatch.setattr(training, "WIDE", 2)
    task = random_task(mlp(7))
    flight, x = InFlight(task, eta=0.1, B=4, K=2), task.init()
    for i in (3, 1, 2):
        flight.start(i, x, 0)
    task.sizes = task.sizes.copy()
    flight.start(0, x, 0)
    assert [set(c) for c in cohorts] == [{1, 3}, {2}] and list(flight.noted) == [0]


def test_in_flight_a_second_start_replaces_the_first():
    task = random_task(mlp(7))
    how = dict(eta=0.1, B=4, K=2)
    x, later = task.init(), task.init() + 1
    want = training.train(task, [1], later, seed="b", **how)[0]
    for trained in (False, True):
        flight = InFlight(task, **how)
        flight.start(0, x, "c")
        flight.start(1, x, "a")
        if trained:
            flight.result(0)
        flight.start(1, later, "b")
        close(flight.result(1), want)


# ---- tasks ---------------------------------------------------------------------------------------


def test_task_splits_the_samples_it_was_given():
    task = Task("digits", n=7, samples=200, seed=3)
    assert task.sizes.sum() == len(task.order) == 200 == len(set(task.order))
    assert sorted(np.concatenate([task.rows(i) for i in range(7)])) == sorted(task.order)
    np.testing.assert_allclose(task.p, task.sizes / 200, rtol=1e-6)
    assert set(task.order) != set(Task("digits", n=7, samples=200, seed=4).order)
    assert len(Task("digits", n=7).order) == 1437
    again = Task("digits", n=7, samples=200, seed=3)
    np.testing.assert_array_equal(task.order, again.order)
    assert torch.equal(task.init(), again.init())
    assert task.d == len(task.init()) == 64 * 64 + 64 + 640 + 10


def test_pooled_batches_draw_without_replacement_from_the_devices_data():
    task = small(5, samples=60)
    x, y = task.batch(60, "all")
    rows = torch.from_numpy(np.sort(task.order))
    close(x.sum(0), task.x[rows].sum(0))
    assert torch.equal(y.sort()[0], task.y[rows].sort()[0])
    assert torch.equal(task.batch(8, 0, 1)[0], task.batch(8, 0, 1)[0])
    assert not torch.equal(task.batch(8, 0, 1)[0], task.batch(8, 0, 2)[0])


def test_evaluate_by_hand():
    """Two features that are the logits: accuracy 2 / 3, losses log(1 + e^-1), .., log(1 + e^3)."""
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    data = Data("three", x, torch.tensor([0, 1, 1]), x, torch.tensor([0, 1, 1]), 2, "")
    task = Task(data, n=1, network=logistic())
    pass_on, nothing = torch.tensor([1.0, 0, 0, 1, 0, 0]), torch.zeros(6)
    accuracy, loss = task.evaluate(torch.stack([pass_on, nothing]))
    np.testing.assert_allclose(accuracy, [2 / 3, 1 / 3])  # equal logits count as class 0
    want = np.mean([np.log1p(np.exp(-1)), np.log1p(np.exp(-2)), np.log1p(np.exp(3))])
    np.testing.assert_allclose(loss, [want, np.log(2)], rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 10**5, 5e7])
@pytest.mark.parametrize("network", [logistic(), mlp(9, 5), cnn(2, 3), tanh])
def test_models_evaluated_at_once_are_as_if_alone(network, chunk, monkeypatch):
    """Accuracy and loss of each are those of its logits, in whatever parts they are taken."""
    task = random_task(network, shape=(1, 8, 8))
    task.x_test, task.y_test = task.x[:57], task.y[:57]
    monkeypatch.setattr(training, "CHUNK", chunk)
    X, data = task.init() + 0.3 * normal(5, task.d), task.x.clone()
    accuracy, loss = task.evaluate(X)
    for i, x in enumerate(X):
        z = task.network(x, task.x_test)
        assert accuracy[i] == (z.argmax(1) == task.y_test).double().mean()
        assert loss[i] == pytest.approx(F.cross_entropy(z, task.y_test).item(), rel=1e-12)
    assert torch.equal(task.x, data) and len(set(loss)) == 5
    assert [v.shape for v in task.evaluate(X[:0])] == [(0,), (0,)]


def test_logits_of_many_images_equal_those_of_few():
    task = small(2)
    images = task.x.repeat(4, 1, 1, 1)[:4500]  # more than two parts
    close(task.logits(task.init(), images)[4400:], task.logits(task.init(), images[4400:]))


def test_training_learns():
    task = small(1, samples=1000)
    x = training.train(task, [0], task.init(), eta=0.2, B=20, E=10, seed=0)[0]
    accuracy, loss = task.evaluate(torch.stack([task.init(), x]))
    assert accuracy[1] > 0.9 > 0.4 > accuracy[0] and loss[1] < loss[0] / 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(n=0), "n = 0 devices"),
        (dict(n=-1), "n = -1 devices"),
        (dict(samples=1438), "samples = 1438"),
        (dict(samples=0), "samples = 0"),
        (dict(n=20, samples=19), "fewer devices"),
        (dict(n=2, partition=lambda y, n, *key: [np.arange(5), np.zeros(0, int)]), "some get none"),
    ],
)
def test_a_wrong_task_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        Task("digits", **arguments)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(B=0, E=1), "B = 0"),
        (dict(B=-3, K=1), "B = -3"),
        (dict(B=4, E=1, K=1), "either E .* or K"),
        (dict(B=4), "either E .* or K"),
    ],
)
def test_wrong_amounts_of_training_are_refused_before_anything_moves(how, message):
    task, world = random_task(logistic()), World(6)
    with pytest.raises(UsageError, match=message):
        local_sgd(task, world, [0, 1], task.init(), eta=0.1, seed=0, **how)
    assert not world.busy.any() and not world.ready.any()
    with pytest.raises(UsageError, match=message):
        training.train(task, [0, 1], task.init(), eta=0.1, seed=0, **how)


def test_a_pooled_batch_larger_than_the_data_is_refused():
    with pytest.raises(UsageError, match="B = 151, but there are 150"):
        small().batch(151)
