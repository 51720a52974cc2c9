"""Shared samples, uploaded samples, shared curvature: reductions, closed forms, bytes, seconds."""

import itertools

import numpy as np
import pytest
import torch
from conftest import Deaf, Quadratic, autograd, close, leaves, models, small, values
from torch.nn import functional as F

from survey_lib.data import Data
from survey_lib.methods import sharing
from survey_lib.methods.selection import fedcs
from survey_lib.methods.server_sync import fedavg, mean, sample
from survey_lib.methods.sharing import (
    anybody,
    central,
    covering,
    evenly,
    fedcurv,
    fisher,
    holding,
    hybrid_fl,
    pulled_sgd,
    shared_data,
    unheld,
)
from survey_lib.models import cnn, logistic, mlp
from survey_lib.partition import dirichlet, kept_back, label_counts, shards
from survey_lib.presets import Link
from survey_lib.training import Task, train, work
from survey_lib.world import World, loguniform

HOW = dict(B=8, E=1, eta=0.2)
LINK = Link(latency=0.03, up=1e5, down=2e5)
N = 6


def one_class(n=N, share=1 / 3, **how):
    """A task of devices of about one class each; a share of the samples is kept back."""
    return small(n, partition=kept_back(shards(1), share), **how)


@pytest.fixture
def given(monkeypatch):
    """The tasks on which `shared_data` starts FedAvg."""
    tasks = []

    def spy(task, world, **how):
        tasks.append(task)
        yield from fedavg(task, world, **how)

    monkeypatch.setattr(sharing, "fedavg", spy)
    return tasks


# ---- shared data -------------------------------------------------------------------------------


def test_evenly_by_hand():
    """Labels 0 0 0 1 1 2: a class at a time, the lowest first, each while it lasts."""
    y = np.array([0, 0, 0, 1, 1, 2])
    rows = np.array([2, 0, 1, 4, 3, 5])
    assert evenly(y, rows, 4).tolist() == [2, 4, 5, 0]
    assert evenly(y, rows, 9).tolist() == [2, 4, 5, 0, 3, 1]  # all there are
    assert evenly(y, rows, 3, np.array([2, 0, 1])).tolist() == [4, 3, 5]
    assert evenly(y, rows, 0).tolist() == [] == evenly(y, rows[:0], 3).tolist()


@pytest.mark.parametrize("m", [1, 10, 37, 60])
def test_the_shared_set_is_balanced_and_nobody_has_it_yet(m):
    task = one_class()
    pool = unheld(task)
    assert len(pool) == len(task.y) - len(task.order) and not np.isin(pool, task.order).any()
    G = evenly(task.y.numpy(), pool, m)
    count = label_counts(task.y.numpy(), [G])[0]
    assert len(set(G)) == m == count.sum() and count.max() - count.min() <= 1
    assert np.isin(G, pool).all()


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("per_class", [1, 3])
def test_the_distance_of_a_device_shrinks_by_its_own_share(given, per_class, alpha):
    """G with the classes' global shares adds alpha |G| samples to n_i: q' - p = (q - p) n_i / (n_i
    + alpha |G|). For alpha = 1; of a part of G the sizes are as for alpha = 1."""
    x, y = torch.rand(360, 4, generator=torch.Generator().manual_seed(0)), torch.arange(360) % 6
    data = Data("even", x, y, x[:6], y[:6], 6, "")
    split = kept_back(dirichlet(0.3), 0.25)  # 45 of 60 a class remain
    task = Task(data, n=5, partition=split, network=logistic())
    beta = 6 * per_class / task.sizes.sum()
    list(itertools.islice(shared_data(task, World(5), S=2, beta=beta, alpha=alpha, **HOW), 2))
    assert (given[0].sizes == task.sizes + round(alpha * 6 * per_class)).all()
    before, after = (
        label_counts(y.numpy(), [t.rows(i) for i in range(5)]) for t in (task, given[0])
    )
    p = 1 / 6
    emd, shrunk = (np.abs(c / c.sum(1, keepdims=True) - p).sum(1) for c in (before, after))
    assert emd.min() > 0.05
    if alpha == 1:
        assert shrunk == pytest.approx(emd * task.sizes / (task.sizes + 6 * per_class))


def test_without_shared_data_it_is_fedavg():
    for how in (dict(beta=0.0), dict(beta=0.2, alpha=0.0)):
        worlds = (
            World(N, link=LINK, spread=loguniform(4)),
            World(N, link=LINK, spread=loguniform(4)),
        )
        a = models(shared_data, task=one_class(), world=worlds[0], S=3, **how, **HOW)
        b = models(fedavg, task=one_class(), world=worlds[1], S=3, **HOW)
        assert torch.equal(a, b) and worlds[0].totals() == worlds[1].totals()


def test_after_a_warm_up_it_is_fedavg_from_there():
    """G of 0.2 |D| samples, 2 epochs of it by a server of 1 GFLOP/s, then nothing is shared."""
    task = one_class()
    world, plain = World(N, link=LINK), World(N, link=LINK)
    how = dict(S=3, beta=0.2, alpha=0.0, warm_up=2, speed=1e9)
    a = models(shared_data, task=task, world=world, **how, **HOW)
    G = evenly(
        task.y.numpy(),
        sharing.stream(0, "pool").permutation(unheld(task)),
        round(0.2 * task.sizes.sum()),
    )
    alone = Task("digits", n=1, network=logistic(), dtype=torch.float64)
    alone = holding(alone, [G])
    x = train(alone, [0], task.init(), eta=0.2, B=8, E=2, seed=(0, "warm up"))[0]
    task.init = x.clone
    b = models(fedavg, task=task, world=plain, S=3, **HOW)
    assert torch.equal(a[1:], b[1:]) and not torch.equal(a[0], b[0])
    assert world.clock == pytest.approx(plain.clock + work(alone, [0], B=8, E=2)[0] / 1e9)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_samples_are_sent_once_and_a_round_costs_what_fedavg_costs(alpha):
    task, world = one_class(), World(N, link=LINK)
    m, size = round(alpha * round(0.2 * task.sizes.sum())), 64 + 1
    steps = shared_data(task, world, S=3, beta=0.2, alpha=alpha, **HOW)
    next(steps)
    for r in range(1, 4):
        next(steps)
        model = 8 * task.d  # float64
        assert world.server_up == N * m * size + 3 * r * model
        assert world.up.sum() == 3 * r * model


def test_all_have_their_share_before_the_first_round():
    """Handing it out takes latency 0.03 s and m 65 B at 2e5 B/s; then FedAvg's first round."""
    task, world, plain = one_class(), World(N, link=LINK), World(N, link=LINK)
    m = round(0.2 * task.sizes.sum())
    values(shared_data, 1, task=task, world=world, S=N, beta=0.2, B=8, K=2, eta=0.2)
    values(fedavg, 1, task=task, world=plain, S=N, B=8, K=2, eta=0.2)
    assert world.clock == pytest.approx(0.03 + m * 65 / 2e5 + plain.clock)


def test_controls_hold_other_samples(given):
    """own: as many more, of the device's classes; private=False: the shared ones alone."""
    task = one_class()
    y, how = task.y.numpy(), dict(S=3, beta=0.1, **HOW)
    m = round(0.1 * task.sizes.sum())
    for own, private in ((False, True), (True, True), (False, False)):
        list(itertools.islice(shared_data(task, World(N), own=own, private=private, **how), 2))
        for i in range(N):
            before, rows = task.rows(i), given[-1].rows(i)
            extra = rows[len(before) :] if private else rows
            assert not private or (rows[: len(before)] == before).all()
            assert len(extra) == m == len(set(extra)) and np.isin(extra, unheld(task)).all()
            classes = set(y[before]) if own else set(range(10))
            assert set(y[extra]) == classes if m >= 10 or own else set(y[extra]) <= classes
    few = one_class(share=0.05)  # of each class fewer than are asked for
    how = dict(S=3, beta=0.5, own=True, **HOW)
    list(itertools.islice(shared_data(few, World(N), **how), 2))
    assert (given[-1].sizes == few.sizes + round(0.5 * few.sizes.sum())).all()


def test_a_device_without_its_share_trains_on_its_own_samples(given):
    task, m = one_class(), round(0.1 * one_class().sizes.sum())
    world = World(N, link=LINK, churn=leaves(2, 0.0, 0.5))
    list(itertools.islice(shared_data(task, world, S=N, beta=0.1, **HOW), 3))
    assert (given[0].sizes - task.sizes == m * (np.arange(N) != 2)).all()
    assert (given[0].rows(2) == task.rows(2)).all()
    lossy = World(N, loss=0.5, seed=1)
    list(itertools.islice(shared_data(task, lossy, S=N, beta=0.1, **HOW), 3))
    more = given[1].sizes - task.sizes
    assert set(more) == {0, m}


# ---- hybrid ------------------------------------------------------------------------------------


def nobody(t_UD, t_UL, t_dist, T):
    """Selects no device."""
    return np.zeros(0, int)


HYBRID = dict(S=4, T_round=50.0, permit=covering(3), m=6, **HOW)


@pytest.fixture
def arrived(monkeypatch):
    """The samples that arrive at the server, a list per round."""
    found = []

    def spy(*how):
        found.append(requested(*how).tolist())
        return np.array(found[-1], int)

    requested = sharing.requested
    monkeypatch.setattr(sharing, "requested", spy)
    return found


def who(task, seed=0, permit=HYBRID["permit"]):
    return permit(task, seed)


@pytest.mark.parametrize("T_round", [np.inf, 60.0, 0.5])
@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_if_nobody_permits_it_is_fedcs(T_round, loss):
    how = dict(task=small(), S=4, T_round=T_round, **HOW)
    edge = dict(link=LINK, spread=loguniform(5), loss=loss)
    a = values(hybrid_fl, 6, world=World(N, **edge), permit=anybody(0), m=5, **how)
    b = values(fedcs, 6, world=World(N, **edge), **how)
    assert [e["accepted"] for _, e in a] == [e["accepted"] for _, e in b]
    for (x, extra), (y, _) in zip(a, b, strict=True):
        assert torch.equal(x, y) and extra["gathered"] == extra["classes"] == 0
    if T_round == np.inf and not loss:
        close(a[-1][0], models(fedavg, 6, task=small(), S=4, **HOW)[-1])


def test_if_all_upload_and_nobody_trains_it_is_sgd_on_all_data():
    """The first round gathers everything; then the server trains, an epoch a round."""
    task = small()
    how = dict(S=4, T_round=np.inf, permit=anybody(N), m=1000, select=nobody, **HOW)
    found = values(hybrid_fl, 4, task=task, **how)
    assert [e["gathered"] for _, e in found] == [0, 150, 150, 150, 150]
    assert torch.equal(found[1][0], found[0][0])
    order, x = [], task.init()

    def spy(task, world, asked, *how):
        order.append(requested(task, world, asked, *how))
        return order[-1]

    requested, sharing.requested = sharing.requested, spy
    try:
        values(hybrid_fl, 1, task=task, **how)
    finally:
        sharing.requested = requested
    assert sorted(order[0]) == sorted(task.order)
    for r in range(1, 4):
        x = train(holding(task, [order[0]]), [0], x, eta=0.2, B=8, E=1, seed=(0, r))[0]
        assert torch.equal(found[r + 1][0], x)


def test_the_average_by_hand(arrived):
    """Round 2: sum n_i y_i over the selected, and the server's y on what came in round 1."""
    task = small(partition=dirichlet(0.5))
    found = values(hybrid_fl, 2, task=task, **HYBRID)
    x, chosen = found[1][0], sample(N, 4, 0, 1)
    Y = train(task, chosen, x, eta=0.2, B=8, E=1, seed=(0, 1))
    rows = np.array(arrived[0])
    y, _ = central(task, rows, x, speed=1.0, eta=0.2, B=8, E=1, seed=(0, 1))
    weight = torch.tensor([*task.sizes[chosen], 6.0], dtype=task.dtype)
    close(found[2][0], weight @ torch.cat([Y, y[None]]) / weight.sum())
    assert found[1][1] == dict(accepted=4, gathered=6, classes=len(set(task.y[rows].tolist())))
    assert found[2][1]["gathered"] == 12


def test_uploads_are_of_the_permitting_and_each_sample_goes_once(arrived):
    task = small(partition=shards(2))
    values(hybrid_fl, 40, task=task, world=World(N, loss=0.15), **HYBRID)
    rows = [row for some in arrived for row in some]
    theirs = np.concatenate([task.rows(i) for i in who(task)])
    assert len(rows) == len(set(rows)) and set(rows) <= set(theirs)
    assert any(len(some) < 6 for some in arrived[:5])  # some were lost
    assert set(rows) == set(theirs)  # and came later


def test_the_server_asks_for_the_class_it_has_least_of(arrived):
    """As long as every class is still on offer, its counts differ by one at most."""
    task = small(samples=600)
    values(hybrid_fl, 25, task=task, **HYBRID)
    theirs = label_counts(task.y.numpy(), [np.concatenate([task.rows(i) for i in who(task)])])[0]
    count, checked = np.zeros(10, int), 0
    for some in arrived:
        count += np.bincount(task.y[some], minlength=10)
        if (count < theirs).all():
            assert count.max() - count.min() <= 1
            checked += 1
    assert checked > 10
    arrived.clear()
    values(hybrid_fl, 8, task=task, balanced=False, **HYBRID)
    count = np.bincount(task.y[sum(arrived, [])], minlength=10)
    assert count.sum() == 48 and count.max() - count.min() > 1


@pytest.mark.parametrize("T_round", [0.25, 0.35, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_round_never_exceeds_its_time(T_round, seed, arrived):
    """Uploads of 5.2 kB take 0.05 s each; those that are due too late are not begun."""
    task = small(seed=seed)
    world = World(N, link=LINK, spread=loguniform(20), seed=seed)
    clocks, accepted = [0.0], []
    how = HYBRID | dict(T_round=T_round, S=N, m=40, seed=seed)
    for _, extra in itertools.islice(hybrid_fl(task, world, **how), 1, 8):
        clocks.append(world.clock)
        accepted.append(extra["accepted"])
    assert np.diff(clocks).max() <= T_round
    assert world.lost == 0  # nothing was cut short
    if T_round == 0.35:
        assert 0 < max(accepted) < N
        assert max(len(some) for some in arrived) <= 40


def test_time_that_is_left_limits_the_samples(arrived):
    """Nobody trains. After the request (0.03 s + 8 B down, then 0.03 s + 14 8 B up for three
    devices), a request of 80 B and 65 B a sample at 1e5 B/s remain for n samples."""
    task, world = small(), World(N, link=LINK)
    polled = 2 * 0.03 + 8 / 2e5 + 8 * 14 / 1e5
    for n in (3, 7):
        left = 2 * 0.03 + 80 / 2e5 + (n + 0.5) * 65 / 1e5
        how = HYBRID | dict(T_round=polled + left, m=20, select=nobody, permit=anybody(1))
        values(hybrid_fl, 1, task=task, world=World(N, link=LINK), **how)
        assert len(arrived[-1]) == n
    assert world.clock == 0


def test_bytes_of_a_round():
    """4 of 6 polled, and the permitting: 8 B down, 32 + 80 B up each; the model once down and 4
    times up; 80 B down to each that uploads, 65 B a sample up."""
    task, world = small(), World(N, link=LINK)
    values(hybrid_fl, 1, task=task, world=world, **HYBRID)
    asked = len(np.union1d(sample(N, 4, 0, 0), who(task)))
    uploaders = 3  # an IID device has some of each class
    model = 8 * task.d
    down = {8 * asked + model + 80 * k for k in range(1, uploaders + 1)}
    assert world.server_up in down
    assert world.up.sum() == world.server_down == 112 * asked + 4 * model + 6 * 65


def test_the_round_lasts_until_the_server_is_through():
    task = small()
    slow = [values_and_clock(task, speed) for speed in (1e15, 1e4)]
    (a, quick), (b, late) = slow
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))  # the same models, later
    flops = work(holding(task, [np.arange(6)]), [0], B=8, E=1)[0]
    assert late[1] == pytest.approx(quick[1])  # nothing gathered yet
    assert flops / 1e4 > quick[2] - quick[1]
    assert flops / 1e4 < late[2] - late[1] < flops / 1e4 + quick[2] - quick[1]


def values_and_clock(task, speed):
    world, found, clocks = World(N, link=LINK), [], []
    for x, _ in itertools.islice(hybrid_fl(task, world, speed=speed, **HYBRID), 3):
        found.append(x)
        clocks.append(world.clock)
    return found, clocks


@pytest.mark.parametrize("seed", range(5))
def test_covering_devices_have_all_classes(seed):
    task = Task("digits", n=100, partition=shards(2), network=logistic(), seed=seed)
    for k, classes in ((10, 10), (10, 4), (3, None), (100, None)):
        devices = covering(k, classes)(task, seed)
        held = {c for i in devices for c in task.y[task.rows(i)].tolist()}
        assert len(devices) == len(set(devices)) <= k and (np.diff(devices) > 0).all()
        assert len(held) <= (classes or 10)
        if k >= 10:
            assert len(held) == (classes or 10) and (len(devices) == k or classes)
    assert len(anybody(7)(task, seed)) == 7
    assert (anybody(7)(task, seed) != anybody(7)(task, seed + 1)).any()


# ---- curvature ---------------------------------------------------------------------------------


@pytest.mark.parametrize("S", [N, 3])
def test_without_weight_fedcurv_is_fedavg_at_three_times_the_bytes(S):
    edge = dict(link=LINK, spread=loguniform(4), loss=0.2)
    ours, plain = World(N, **edge), World(N, **edge)
    task = small(partition=dirichlet(0.5))
    a = models(fedcurv, 5, task=task, world=ours, S=S, lam=0.0, **HOW)
    b = models(fedavg, 5, task=task, world=plain, S=S, **HOW)
    assert torch.equal(a, b)
    assert (ours.up == 3 * plain.up).all() and (ours.down == 3 * plain.down).all()
    assert ours.busy.sum() == pytest.approx(2 * plain.busy.sum())  # E = 1, and a pass for I


def test_one_device_alone_has_no_pull():
    a = models(fedcurv, 5, task=small(1), S=1, lam=5.0, **HOW)
    assert torch.equal(a, models(fedavg, 5, task=small(1), S=1, **HOW))
    two = models(fedcurv, 5, task=small(2), S=2, lam=5.0, **HOW)
    assert not torch.equal(two, models(fedavg, 5, task=small(2), S=2, **HOW))


def others(n=4, seed=0):
    """A task, models y_j (n, d) and curvatures I_j (n, d) of its devices."""
    task, rng = small(n), torch.Generator().manual_seed(seed)
    y, info = (torch.rand(n, task.d, generator=rng, dtype=task.dtype) for _ in range(2))
    return task, y, info


def test_the_pull_is_the_gradient_of_the_sum_over_the_others():
    """One full step on F_i(y) + lam sum_{j != i} (y - y_j)^T diag(I_j) (y - y_j), by autograd."""
    (task, y, info), lam, eta = others(), 0.3, 0.05
    v = info * y
    A, b = 2 * lam * (info.sum(0) - info), 2 * lam * (v.sum(0) - v)
    x, on = task.init() + 0.1, np.arange(4)
    Y = pulled_sgd(task, World(4), on, x, A, b, eta=eta, B=None, K=1, seed=0)
    for i in range(4):
        z = x.clone().requires_grad_()
        pull = lam * sum(((z - y[j]) ** 2 * info[j]).sum() for j in range(4) if j != i)
        g = autograd(task, x, task.rows(i)) + torch.autograd.grad(pull, z)[0]
        close(Y[i], x - eta * g, 1e-10)
    same = info * y[0]  # all devices were at y_0: nothing pulls there
    b, how = 2 * lam * (same.sum(0) - same), dict(eta=eta, B=None, K=1, seed=0)
    close(pulled_sgd(task, World(4), on, y[0], A, b, **how), train(task, on, y[0], **how))


def test_devices_of_unequal_work_each_take_their_steps():
    """In one cohort as alone: numbers of epochs and batches differ."""
    task, y, info = others()
    task = holding(task, [task.rows(i)[: 10 * (i + 1)] for i in range(4)])
    A, b, x, how = info, y, task.init(), dict(eta=0.1, B=4, E=2, seed=3)
    Y = pulled_sgd(task, World(4), np.arange(4), x, A, b, **how)
    for i in range(4):
        alone = pulled_sgd(task, World(4), np.array([i]), x, A[i : i + 1], b[i : i + 1], **how)
        close(Y[i], alone[0])


def test_fisher_of_a_softmax_layer_in_closed_form():
    """d/dW_cd log p = (p_c - [y = c]) x_d, d/db_c = p_c - [y = c]: squared per sample."""
    task = small(3)
    x = task.init()
    X = torch.stack([x, x + 0.1, 2 * x])
    found = fisher(task, np.arange(3), X)
    for i in range(3):
        own = task.rows(i)
        images, y = task.x[own].flatten(1), task.y[own]
        p = torch.softmax(task.network(X[i], task.x[own]), 1)
        square = (p - F.one_hot(y, 10)).square()
        want = torch.cat([(square.T @ images.square()).flatten(), square.sum(0)]) / len(own)
        close(found[i], want)
        assert found[i].sum() > 5 * (autograd(task, X[i], own) ** 2).sum()  # not of the mean


@pytest.mark.parametrize("network", [mlp(5), mlp(6, 4), cnn(2, 3)])
def test_fisher_of_a_network_by_autograd(network):
    """Devices of unequal size, one with two parts of samples."""
    task = small(3, samples=170, network=network)
    task = holding(task, [task.order[:7], task.order[7:120], task.order[120:]])
    X = task.init() + 0.1 * torch.randn(3, task.d, generator=torch.Generator().manual_seed(0))
    found = fisher(task, np.array([2, 1]), X[[2, 1]])
    for i, ours in zip((2, 1), found, strict=True):
        want = sum(autograd(task, X[i], [row]).square() for row in task.rows(i)) / task.sizes[i]
        close(ours, want)


class Ear(World):
    """Notes what the server broadcasts."""

    def broadcast(self, chosen, payload, **how):
        self.__dict__.setdefault("heard", []).append(payload)
        return super().broadcast(chosen, payload, **how)


class DeafEar(Ear, Deaf):
    pass


def test_the_sums_are_of_those_heard_in_the_last_round(monkeypatch):
    task, seen = small(), []

    def spy(task, chosen, Y):
        seen.append((chosen, Y, fisher(task, chosen, Y)))
        return seen[-1][2]

    monkeypatch.setattr(sharing, "fisher", spy)
    world = DeafEar(N, [1, 4])
    models(fedcurv, 4, task=task, world=world, S=3, lam=0.1, **HOW)
    (x, U, V), later = world.heard[0], world.heard[1:]
    assert (U == 0).all() and (V == 0).all() and torch.equal(x, task.init())
    last = (U, V)
    for (chosen, Y, info), (x, U, V) in zip(seen, later, strict=False):
        up = ~np.isin(chosen, [1, 4])
        if up.any():
            last = info[up].sum(0), (info * Y)[up].sum(0)
            close(x, mean(Y[up], task.sizes[chosen[up]]))
        close(U, last[0])
        close(V, last[1])


def exact(task, world, chosen, x, A, b, **how):
    """Local minima on quadratics: (H_i + diag(A_i)) y = H_i e_i + b_i."""
    world.compute(chosen, 1e6)
    H, e = task.H[chosen], task.e[chosen]
    return torch.linalg.solve(H + torch.diag_embed(A), (H @ e[..., None])[..., 0] + b)


@pytest.mark.parametrize("lam", [0.1, 1.0, 10.0])
def test_on_diagonal_quadratics_it_ends_where_a_linear_system_says(monkeypatch, lam):
    """H_i = I_i diagonal. At rest (H_i + 2 lam sum_{j != i} H_j) y_i - 2 lam sum_{j != i} H_j y_j
    = H_i e_i for all i, entry by entry. Nearer to the optimum than FedAvg's mean e_i, not there."""
    monkeypatch.setattr(sharing, "work", lambda *a, **how: 1e6)
    monkeypatch.setattr(sharing, "pulled_sgd", exact)
    bias = []
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        h = 0.2 + 2 * torch.rand(4, 3, generator=rng, dtype=torch.float64)
        e = torch.randn(4, 3, generator=rng, dtype=torch.float64)
        M = -2 * lam * h.T[:, None, :].repeat(1, 4, 1)  # (d, n, n): row i, column j: -2 lam h_j
        M.diagonal(dim1=1, dim2=2).copy_((h + 2 * lam * (h.sum(0) - h)).T)
        rest = torch.linalg.solve(M, (h * e).T)  # (d, n)
        best = (h * e).sum(0) / h.sum(0)
        bias.append([(rest.mean(1) - best).norm(), (e.mean(0) - best).norm()])
        if seed == 0:
            task = Quadratic(torch.diag_embed(h), e)
            monkeypatch.setattr(sharing, "fisher", lambda task, chosen, Y, h=h: h[chosen])
            how = dict(world=World(4), S=4, lam=lam, B=None, K=1, eta=1)
            x = models(fedcurv, {0.1: 60, 1: 300, 10: 1000}[lam], task=task, **how)[-1]
            close(x, rest.mean(1), 1e-8)
    ours, plain = torch.tensor(bias).mean(0)
    assert 1e-4 < ours < plain
