"""Theory of federated averaging: fixed points, unbiased sampling, drift and its measurement."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
from conftest import Deaf, autograd, close, models, same_data, small, values

from survey_lib.evidence.run import run
from survey_lib.methods.convergence import (
    client_drift,
    degrees,
    fedavg_decay,
    local_gd,
    normalised_sent,
    parted,
    pooled,
    round_errors,
    updates_sent,
    weight_divergence,
    with_replacement,
    without_replacement,
)
from survey_lib.methods.non_iid import fednova, fedprox, scaffold
from survey_lib.methods.server_sync import fedavg, fedsgd, sample
from survey_lib.partition import dirichlet, iid, label_counts, label_skew, quantity, shards
from survey_lib.problems import Quadratics
from survey_lib.training import Task, train
from survey_lib.world import World

P = np.array([0.5, 0.3, 0.2])
double = partial(torch.tensor, dtype=torch.float64)


# ---- fedavg_decay: sampling --------------------------------------------------------------------


def test_scheme_one_is_unbiased():
    """All outcomes of 2 draws from 3 devices, each weighed by its probability: E[w_i] = p_i."""
    seen, weights = {}, [with_replacement(P, 2, seed) for seed in range(3000)]
    for w in weights:
        seen[tuple(w)] = seen.get(tuple(w), 0) + 1
    pairs = list(itertools.product(range(3), repeat=2))
    chance = {}
    for pair in pairs:
        w = tuple(np.bincount(pair, minlength=3) / 2)
        chance[w] = chance.get(w, 0) + P[list(pair)].prod()
    assert set(seen) == set(chance) and sum(chance.values()) == pytest.approx(1)
    assert sum(c * np.array(w) for w, c in chance.items()) == pytest.approx(P)
    for w, c in chance.items():
        assert abs(seen[w] / 3000 - c) < 4 * math.sqrt(c * (1 - c) / 3000)


def test_scheme_two_is_unbiased_and_a_plain_mean_is_not():
    """Each of the 3 sets of 2 devices is equally likely: E[(n / S) sum_S p_i y_i] = sum p_i y_i;
    the mean of a set renormalised by its own weights is off where the p_i differ."""
    sets = {tuple(without_replacement(P, 2, seed)) for seed in range(200)}
    assert len(sets) == 3 and all((np.array(w) > 0).sum() == 2 for w in sets)
    assert np.mean(list(sets), axis=0) == pytest.approx(P)
    third = np.mean([np.array(w) / sum(w) for w in sets], axis=0)
    plain = np.mean([(np.array(w) > 0) / 2 for w in sets], axis=0)
    assert np.abs(third - P).max() > 0.005 and np.abs(plain - P).max() > 0.1
    often = np.mean([without_replacement(P, 2, seed) for seed in range(3000)], axis=0)
    spread = np.std(list(sets), axis=0) / math.sqrt(3000)
    assert (np.abs(often - P) < 4 * spread).all()


@pytest.mark.parametrize("scheme", [with_replacement, without_replacement])
def test_a_round_is_the_weighted_move_of_the_devices_drawn(scheme):
    task, seed = small(partition=quantity(1.0)), 2
    w = scheme(task.sizes / task.sizes.sum(), 3, seed, 0)
    x, new = models(
        fedavg_decay, 1, task=task, S=3, K=2, eta=0.3, gamma=4.0, scheme=scheme, seed=seed
    )
    expected = x.clone()
    for i in np.flatnonzero(w):
        y = x
        for t in range(2):
            y = y - 0.3 * 4 / (4 + t) * autograd(task, y, task.rows(i))
        expected = expected + w[i] * (y - x)
    close(new, expected)


# ---- fedavg_decay: steps, fixed points ---------------------------------------------------------


@pytest.mark.parametrize("B", [None, 8])
def test_all_devices_at_a_fixed_step_is_fedavg(B):
    task = small(partition=quantity(1.0))
    how = dict(task=task, S=6, K=3, B=B, eta=0.3)
    a = models(fedavg_decay, 4, gamma=math.inf, scheme=without_replacement, **how)
    close(a, models(fedavg, 4, **how))


def test_the_step_decays_with_every_local_step():
    """One device, f = h/2 (x - e)^2: the error is multiplied by 1 - h eta_t, with the paper's
    eta_t = 2 / (h (gamma + t)): (gamma + t - 2) / (gamma + t), a product that telescopes."""
    task = Quadratics(H=double([[[4.0]]]), e=double([[1.0]]))
    gamma, K = 10.0, 3
    found = models(fedavg_decay, 5, task=task, S=1, K=K, eta=2 / (4.0 * gamma), gamma=gamma)
    for r, x in enumerate(found):
        t = r * K
        left = (gamma - 1) * (gamma - 2) / ((gamma + t - 1) * (gamma + t - 2))
        close(x - 1, double([-left]))


def test_a_decaying_step_finds_the_optimum_where_a_fixed_one_stops_short():
    """Distances fall like 1 / t."""
    task = Quadratics(seed=3)
    how = dict(task=task, S=5, K=5, eta=0.1, scheme=without_replacement)
    gaps = [(m - task.best).norm() for m in models(fedavg_decay, 160, gamma=40.0, **how)]
    assert gaps[160] < gaps[80] / 1.8 < gaps[40] / 3.2 and gaps[160] > gaps[80] / 2.3
    fixed = models(fedavg_decay, 100, gamma=math.inf, **how)[-1]
    close(fixed, task.stops(eta=0.1, K=5), 1e-10)
    assert (fixed - task.best).norm() > 10 * gaps[160]


@pytest.mark.parametrize("scheme", [with_replacement, without_replacement])
@pytest.mark.parametrize("trouble", [{}, dict(loss=0.3), dict(churn=(0.2, 0.2), loss=0.2)])
def test_only_what_arrives_moves_the_model(scheme, trouble):
    task = small()
    world = World(6, **trouble)
    how = dict(S=4, K=2, B=8, eta=0.2, gamma=20.0, scheme=scheme)
    found = models(fedavg_decay, 15, task=task, world=world, **how)
    assert torch.isfinite(found).all() and (found[-1] != found[0]).any()
    deaf = models(fedavg_decay, 3, task=task, world=Deaf(6, range(6)), **how)
    close(deaf, deaf[:1].expand_as(deaf), 0)


def test_a_lost_upload_leaves_the_others_their_weight():
    task = small(partition=iid(20))
    how = dict(task=task, S=6, K=2, eta=0.2, gamma=20.0, scheme=without_replacement)
    x, whole = models(fedavg_decay, 1, **how)
    parts = []
    for i in range(6):
        others = [j for j in range(6) if j != i]
        parts.append(models(fedavg_decay, 1, world=Deaf(6, others), **how)[1] - x)
    close(x + sum(parts), whole)


def test_bytes_of_fedavg_decay():
    """A device drawn twice trains and sends once."""
    task, world = small(), World(6)
    drawn = [with_replacement(task.sizes / task.sizes.sum(), 4, 0, r) for r in range(8)]
    once = sum(int((w > 0).sum()) for w in drawn)
    assert once < 8 * 4
    values(fedavg_decay, 8, task=task, world=world, S=4, K=1, eta=0.1, gamma=9.0)
    assert world.up.sum() == world.down.sum() == once * task.d * 8


# ---- local_gd ----------------------------------------------------------------------------------


def test_one_local_step_is_gradient_descent():
    task = small(partition=quantity(1.0))
    x = models(local_gd, 4, task=task, K=1, eta=0.4)
    for before, after in itertools.pairwise(x):
        g = torch.stack([autograd(task, before, task.rows(i)) for i in range(6)])
        close(after, before - 0.4 * g.mean(0))
    equal = small(partition=iid(25))
    close(
        models(local_gd, 4, task=equal, K=1, eta=0.4), models(fedsgd, 4, task=equal, S=6, eta=0.4)
    )


def test_equal_sizes_make_local_gd_fedavg():
    task = small(partition=iid(25))
    how = dict(task=task, K=4, eta=0.4)
    close(models(local_gd, 3, **how), models(fedavg, 3, S=6, B=None, **how))


def test_the_mean_moves_by_the_mean_gradient_at_every_local_step():
    """xbar_{t+1} = xbar_t - eta mean_i grad f_i(x_i), and V is 0 after the models are replaced."""
    task, eta = Quadratics(seed=1), 0.1
    found = values(local_gd, 2, task=task, K=3, eta=eta)
    X = task.init().repeat(5, 1)
    for value, V in zip(found[1:], (0, 1), strict=True):
        assert (X - X.mean(0)).norm() == 0 or V == 0
        for _ in range(3):
            G = (task.H @ (X - task.e)[..., None])[..., 0]
            middle, X = X.mean(0), X - eta * G
            close(X.mean(0), middle - eta * G.mean(0))
        assert value[1]["V"] == pytest.approx((X - X.mean(0)).square().sum(1).mean().item())
        X = X.mean(0).repeat(5, 1)
        close(value[0], X[0])


@pytest.mark.parametrize("K", [1, 7])
def test_devices_that_share_a_minimum_find_it_with_any_number_of_local_steps(K):
    e = double([[1.0, -2.0, 0.5, 3.0]]).expand(5, 4)
    task = Quadratics(H=Quadratics(seed=2).H, e=e)
    close(models(local_gd, 150, task=task, K=K, eta=0.15)[-1], e[0], 1e-8)
    unlike = Quadratics(seed=2)
    gap = (models(local_gd, 150, task=unlike, K=K, eta=0.15)[-1] - unlike.best).norm()
    assert gap < 1e-8 if K == 1 else gap > 1e-2


def test_v_is_zero_for_equal_devices_and_one_device():
    for task in (small(partition=same_data), small(n=1, samples=40)):
        for value in values(local_gd, 3, task=task, K=4, eta=0.3)[1:]:
            assert value[1]["V"] < 1e-28


def test_local_gd_costs_the_bytes_of_fedavg_and_survives_loss():
    task, worlds = small(), [World(6), World(6)]
    values(local_gd, 3, task=task, world=worlds[0], K=4, eta=0.1)
    values(fedavg, 3, task=task, world=worlds[1], S=6, B=None, K=4, eta=0.1)
    assert worlds[0].totals() == worlds[1].totals()
    x, new = models(local_gd, 1, task=task, world=Deaf(6, [1, 2]), K=2, eta=0.1)
    Y = train(task, [0, 3, 4, 5], x, eta=0.1, B=None, K=2, seed=0)
    close(new, Y.mean(0))


# ---- fixed points on quadratics: the methods as they are ---------------------------------------


def at(task, x):
    """The task, from x."""
    task.init = x.clone
    return task


@pytest.mark.parametrize("K", [2, 5, 25])
@pytest.mark.parametrize("a, b", [(1.0, 3.0), (2.0, 2.0)])
def test_two_scalar_quadratics(K, a, b):
    """f_1 = a/2 (x - 1)^2, f_2 = b/2 (x + 1)^2: FedAvg stops at (q_a - q_b) / (q_a + q_b) with
    q_h = 1 - (1 - eta h)^K, for its error is multiplied by 1 - (q_a + q_b) / 2 in a round. The
    optimum is (a - b) / (a + b), the same iff K = 1 or a = b. SCAFFOLD ends at the optimum."""
    eta = 0.1
    task = Quadratics(H=double([[[a]], [[b]]]), e=double([[1.0], [-1.0]]))
    best = double([(a - b) / (a + b)])
    close(task.best, best)
    how = dict(S=2, B=None, K=K)
    qa, qb = 1 - (1 - eta * a) ** K, 1 - (1 - eta * b) ** K
    stop = double([(qa - qb) / (qa + qb)])
    close(task.stops(eta=eta, K=K), stop)
    assert ((stop - best).abs() < 1e-9).all() == (a == b)
    for r, x in enumerate(models(fedavg, 5, task=task, eta=eta, **how)):
        close(x - stop, -stop * (1 - (qa + qb) / 2) ** r)
    close(models(fedavg, 1, task=at(task, best), S=2, B=None, K=1, eta=eta)[1], best)
    found = models(scaffold, 60, task=at(task, best + 1), eta_l=0.8 / K / max(a, b), **how)
    close(found[-1], best, 1e-10)


@pytest.mark.parametrize("S", [2, 5])
@pytest.mark.parametrize("K", [1, 5])
def test_scaffold_ends_at_the_optimum(S, K):
    task = Quadratics(seed=4)
    found = models(scaffold, 250, task=task, S=S, B=None, K=K, eta_l=0.3 / K)
    close(found[-1], task.best, 1e-10)


@pytest.mark.parametrize("method, mu", [(fedavg, 0.0), (fedprox, 0.7), (fednova, 0.0)])
def test_fixed_points(method, mu):
    """Devices take 1, 2, 4, 8 and 16 steps, or 6; a run stays at its fixed point, and comes nearer
    from elsewhere."""
    task, eta = Quadratics(seed=5, sizes=(1, 2, 3, 4, 5)), 0.05
    K = 6 if mu else np.array([1, 2, 4, 8, 16])
    p = double([1, 2, 3, 4, 5]) / 15
    weight = p / torch.as_tensor(K) if method is fednova else p
    stop = task.stops(eta=eta, K=K, mu=mu, weight=weight)
    how = dict(S=5, B=None, K=K, eta=eta) | (dict(mu=mu) if mu else {})
    found = models(method, 2, task=at(task, stop), **how)
    close(found, stop.expand_as(found))
    found = models(method, 40, task=at(task, stop + 1), **how)
    assert (found[-1] - stop).norm() < 0.01 * (found[0] - stop).norm()
    assert (stop - task.best).norm() > 0.01


def test_unequal_work_moves_fedavg_further_from_the_optimum_than_fednova():
    """Small steps: FedAvg minimises sum p_i K_i f_i, FedNova sum p_i f_i, but for terms in eta."""
    task, K = Quadratics(seed=5), np.array([1, 2, 4, 8, 16])
    p, K_i = task.p, torch.from_numpy(K)
    H, e = task.H, task.e[..., None]
    wrong = torch.linalg.solve(
        (H * (p * K_i)[:, None, None]).sum(0), (H @ e * (p * K_i)[:, None, None]).sum(0)
    )[:, 0]
    for eta in (1e-3, 1e-4, 1e-5):
        close(task.stops(eta=eta, K=K), wrong, 20 * eta)
        close(task.stops(eta=eta, K=K, weight=p / K_i), task.best, 20 * eta)
    assert (wrong - task.best).norm() > 0.1


# ---- client drift ------------------------------------------------------------------------------

METHODS = {
    "fedavg": (fedavg, {}, {}),
    "fedprox": (fedprox, dict(mu=0.3), {}),
    "scaffold": (scaffold, {}, dict(moved=updates_sent)),
    "fednova": (fednova, {}, dict(moved=partial(normalised_sent, eta=0.2))),
}


def drift_of(name, rounds=3, world=None, **how):
    """The plain run and the watched one, with the worlds in which they were."""
    method, more, moved = METHODS[name]
    task = small(partition=dirichlet(0.3))
    step = dict(eta_l=0.2) if name == "scaffold" else dict(eta=0.2)
    how = dict(S=4, B=8, K=3) | step | more | how
    worlds = [World(6, **(world or {})) for _ in range(2)]
    plain = models(method, rounds, task=task, world=worlds[0], **how)
    watched = values(client_drift, rounds, task=task, world=worlds[1], of=method, **moved, **how)
    return task, plain, watched, worlds


@pytest.mark.parametrize("world", [{}, dict(loss=0.3), dict(churn=(0.1, 0.1), loss=0.2)])
@pytest.mark.parametrize("name", METHODS)
def test_to_be_watched_changes_nothing(name, world):
    _, plain, watched, worlds = drift_of(name, 6, world)
    assert torch.equal(torch.stack([x for x, _ in watched]), plain)
    assert worlds[0].totals() == worlds[1].totals()
    assert all(np.isfinite(list(extra.values())).all() for _, extra in watched)
    assert watched[0][1] == {}


@pytest.mark.parametrize("name", METHODS)
def test_drift_is_that_of_the_local_models(name):
    """From the local training of the first round, done again."""
    task, plain, watched, _ = drift_of(name, 1, S=6)
    x, new = plain
    mu = 0.3 if name == "fedprox" else 0.0
    dy = train(task, np.arange(6), x, eta=0.2, B=8, K=3, mu=mu, seed=(0, 0)) - x
    p = torch.as_tensor(task.sizes / task.sizes.sum())
    middle = p @ dy
    extra = watched[1][1]
    assert extra["distance"] == pytest.approx((p @ dy.norm(dim=1) ** 2).sqrt().item())
    apart = (p @ (dy - middle).norm(dim=1) ** 2).sqrt() / middle.norm()
    assert extra["spread"] == pytest.approx(apart.item())
    u = new - x
    cosine = dy @ u / dy.norm(dim=1) / u.norm()
    assert extra["angle"] == pytest.approx(math.degrees(1) * (p @ cosine.arccos()).item())
    g = autograd(task, x, task.order)  # of the loss on all data
    cosine = -(g @ u) / g.norm() / u.norm()
    assert extra["descent"] == pytest.approx(math.degrees(cosine.arccos().item()))


def test_equal_devices_do_not_drift():
    task = small(partition=same_data)
    how = dict(of=fedavg, S=6, B=None, K=3, eta=0.2)
    for _, extra in values(client_drift, 3, task=task, **how)[1:]:
        assert extra["spread"] < 1e-13 and extra["angle"] < 1e-5 and extra["distance"] > 1e-3


def test_without_an_upload_there_is_nothing_to_see():
    how = dict(of=fedavg, S=6, B=None, K=3, eta=0.2)
    for _, extra in values(client_drift, 3, world=Deaf(6, range(6)), **how):
        assert extra == {}


def test_angles():
    a = double([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [-3.0, 0.0]])
    close(degrees(a, double([5.0, 0.0])), double([0.0, 90.0, 45.0, 180.0]))


def test_control_variates_turn_local_updates_to_the_global_one():
    task = Task("digits", n=10, partition=shards(1), seed=7)
    how = dict(S=10, K=20, B=None)
    seen = {}
    for name, method, more in (
        ("fedavg", fedavg, dict(eta=0.1)),
        ("scaffold", scaffold, dict(eta_l=0.1, moved=updates_sent)),
    ):
        found = run(client_drift, task, World(10), rounds=6, of=method, **how, **more)
        seen[name] = found["angle"].iloc[2:].mean()
    assert seen["scaffold"] < seen["fedavg"] - 20


# ---- parts of a round's error ------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [iid(25), quantity(1.0)])
def test_one_full_step_of_everybody_has_no_error(sizes):
    task = small(partition=sizes)
    for _, extra in values(round_errors, 3, task=task, S=6, K=1, B=None, eta=0.5)[1:]:
        assert max(extra.values()) < 1e-28


def test_each_part_is_of_its_source():
    """Without batches there is no noise, with everybody no sampling, with one step or equal devices
    no drift."""
    task, equal = small(partition=dirichlet(0.3)), small(partition=same_data)
    how = dict(S=3, K=4, B=8, eta=0.3)
    for change, on, zero in (
        ({}, task, ()),
        (dict(B=None), task, ("noise",)),
        (dict(S=6), task, ("sampling",)),
        (dict(K=1), task, ("drift",)),
        ({}, equal, ("sampling", "drift")),
        (dict(S=6, K=1), task, ("sampling", "drift")),
    ):
        found = values(round_errors, 2, task=on, **how | change)[1:]
        for _, extra in found:
            assert list(extra) == ["noise", "sampling", "drift", "total"]
            for part in ("noise", "sampling", "drift"):
                assert (extra[part] < 1e-26) == (part in zero), (change, part)


def test_parts_by_hand():
    """f_1 = 1/2 (x - 1)^2, f_2 = 3/2 (x + 1)^2, x = 0, eta = 1/4, K = 2, one device a round:
    y_1 = 7/16, y_2 = -15/16, mean -1/4; on all data f = 1/2 (f_1 + f_2), slope 2 x + 1: -1/4, then
    -3/8. drift = (1/8)^2, sampling = (11/16)^2, total = (13/16)^2 or (9/16)^2."""
    task = Quadratics(H=double([[[1.0]], [[3.0]]]), e=double([[1.0], [-1.0]]))
    first = sample(2, 1, 0, 0)[0]
    _, extra = values(round_errors, 1, task=task, S=1, K=2, B=None, eta=0.25)[1]
    total = (13 / 16) ** 2 if first == 0 else (9 / 16) ** 2
    expected = dict(noise=0.0, sampling=(11 / 16) ** 2, drift=1 / 64, total=total)
    assert extra == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("world", [{}, dict(loss=0.3), dict(churn=(0.1, 0.1))])
def test_measuring_errors_leaves_fedavg_as_it_is(world):
    task, worlds = small(partition=dirichlet(0.3)), [World(6, **world) for _ in range(2)]
    how = dict(task=task, S=3, K=4, B=8, eta=0.3)
    assert torch.equal(
        models(round_errors, 5, world=worlds[0], **how), models(fedavg, 5, world=worlds[1], **how)
    )
    assert worlds[0].totals() == worlds[1].totals()


def test_deviations_from_the_mean_cancel_and_do_not_see_a_shift():
    """sum p_i (y_i - ybar) = 0, so sum p_i ||y_i - ybar||^2 = sum p_i ||y_i||^2 - ||ybar||^2; and
    the spread times ||ybar|| is that of y_i + v. The p_i are those of the devices heard."""
    task, x, who = small(partition=dirichlet(0.3)), small().init(), np.array([0, 2, 3, 5])
    p = torch.as_tensor(task.sizes[who] / task.sizes[who].sum())
    dy = train(task, who, x, eta=0.2, B=8, K=3, seed=0) - x
    apart = (p @ dy.square().sum(1) - (p @ dy).square().sum()).item()
    for v in (0.0, 1.0):
        moved = dy + v
        spread = parted(task, x, p @ dy, who, moved)["spread"] * (p @ moved).norm().item()
        assert spread**2 == pytest.approx(apart)


# ---- weight divergence -------------------------------------------------------------------------


@pytest.mark.parametrize("split", [iid(), shards(1), dirichlet(0.1), quantity(0.5)])
def test_with_one_full_step_a_round_the_models_do_not_part(split):
    task = small(partition=split)
    for _, extra in values(weight_divergence, 5, task=task, E=1, B=None, eta=0.5):
        assert extra["divergence"] < 1e-14


def test_divergence_is_the_distance_from_sgd_on_everything():
    task = small(partition=shards(1), samples=120)
    found = values(weight_divergence, 2, task=task, E=1, B=5, eta=0.2)
    w = task.init()
    order = torch.from_numpy(task.order)
    assert found[0][1]["divergence"] == 0
    for r, (x, extra) in enumerate(found[1:]):
        whole = pooled(task)
        assert whole.steps([0], B=30, E=1) == task.steps([0], B=5, E=1) == 4
        assert sorted(whole.rows(0)) == sorted(order.tolist())
        w = train(whole, [0], w, eta=0.2, B=30, E=1, seed=(0, r, "whole"))[0]
        assert extra["divergence"] == pytest.approx(((x - w).norm() / w.norm()).item())
    close(torch.stack([x for x, _ in found]), models(fedavg, 2, task=task, S=6, E=1, B=5, eta=0.2))


def test_the_numbers_of_the_devices_do_not_matter():
    split = shards(1)

    def renamed(y, n, *key):
        return split(y, n, *key)[::-1]

    ends = []
    for partition in (split, renamed):
        task = small(partition=partition, samples=120)
        ends.append(values(weight_divergence, 3, task=task, E=2, B=None, eta=0.2)[-1])
    close(ends[0][0], ends[1][0])
    assert ends[0][1]["divergence"] == pytest.approx(ends[1][1]["divergence"])


def test_divergence_grows_with_the_skew():
    ends = []
    for split in (iid(), shards(2), shards(1)):
        task = Task("digits", n=10, partition=split, seed=1001)
        history = run(weight_divergence, task, World(10), rounds=3, E=1, B=10, eta=0.05)
        ends.append(history["divergence"].iloc[-1])
    assert ends[2] > 1.15 * ends[1] > 1.15 * 4 * ends[0] > 0


# ---- skew and FedAvg ---------------------------------------------------------------------------


def test_with_one_full_step_of_everybody_the_split_does_not_matter():
    """FedAvg is then gradient descent on the pooled data."""
    ends = []
    for alpha in (1e6, 1.0, 0.1, 1e-6):
        task = small(n=10, partition=dirichlet(alpha, per="client"), samples=None)
        ends.append(models(fedavg, 5, task=task, S=10, B=None, E=1, eta=0.5)[-1])
    close(torch.stack(ends), ends[0].expand(4, -1))


def test_the_ends_of_the_ladder():
    """alpha -> 0: one class per device while the pools last; alpha -> infinity: q_i = p up to the
    draw of 144 samples."""
    y = small(samples=None).y.numpy()
    counts = [label_counts(y, dirichlet(alpha, per="client")(y, 10, 0)) for alpha in (1e-6, 1e6)]
    assert (counts[0].max(1) / counts[0].sum(1) > 0.99).mean() >= 0.5
    assert label_skew(counts[0]) > 1.4 and label_skew(counts[1]) < 0.3
    assert all(set(c.sum(1)) <= {143, 144} for c in counts)
