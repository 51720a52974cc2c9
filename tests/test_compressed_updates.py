"""Structured and sketched updates: what is trained, what is sent, what the server makes of it."""

import itertools

import numpy as np
import pytest
import torch
from conftest import Deaf, batches, close, models, small
from torch.nn import functional as F

from survey_lib.compression import by_layer, identity, quantise, rotated, subsample
from survey_lib.errors import UsageError
from survey_lib.flows import weigh
from survey_lib.methods.compressed_updates import (
    frozen,
    gaussian,
    over_share,
    per_entry,
    plain,
    sketched_updates,
    structured_lowrank,
    structured_random_mask,
)
from survey_lib.methods.server_sync import fedavg
from survey_lib.models import cnn, logistic, mlp
from survey_lib.partition import dirichlet
from survey_lib.streams import stream
from survey_lib.training import local_sgd
from survey_lib.world import World

LOCAL = dict(S=4, E=2, B=8, eta=0.1)
ALL = dict(LOCAL, S=6)
AVERAGES = (plain, over_share, per_entry)
WITH = {
    structured_lowrank: dict(rank=3),
    structured_random_mask: dict(p=0.25),
    sketched_updates: dict(Q=subsample(0.25, rotated(quantise(2)))),
}
each = pytest.mark.parametrize("method", WITH)


class Listens(World):
    """A world that keeps what is sent to the server, and who sends it."""

    def __init__(self, n, **how):
        super().__init__(n, **how)
        self.heard = []

    def gather(self, chosen, payload):
        self.heard.append((chosen, payload))
        return super().gather(chosen, payload)


def eye(d1, rank, *key):
    return np.eye(d1, rank)


def matrices(task, X):
    """The weight matrices of models X (k, d)."""
    return [v.flatten(2) for v in task.network.views(X) if v.dim() > 2]


def first_step(method, task, world=None, **arguments):
    x = models(method, 1, task=task, world=world or World(task.n), **arguments)
    return x[1] - x[0]


def unequal(network, **how):
    return small(6, network=network, partition=dirichlet(0.5), **how)


# ---- all three -----------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("loss", [0.0, 0.5])
def test_uploads_that_arrive_are_weighted_by_samples(method, loss):
    """The mean over who answered is made of what each would give alone."""
    task, how = unequal(mlp(7)), dict(ALL, **WITH[method])
    if method is structured_random_mask:
        how["average"] = plain
    alone = []
    for i in range(6):
        deaf = [j for j in range(6) if j != i]
        alone.append(first_step(method, task, Deaf(6, deaf), **how))
    heard = [0, 2, 3, 5] if loss else range(6)
    world = Deaf(6, [1, 4]) if loss else World(6)
    weight = torch.as_tensor(task.sizes / task.sizes[heard].sum())
    want = sum(weight[i] * alone[i] for i in heard)
    close(first_step(method, task, world, **how), want)
    assert min(step.norm() for step in alone) > 1e-3


@each
def test_lost_uploads_change_nothing(method):
    x = models(method, 3, world=Deaf(6, range(6)), **LOCAL, **WITH[method])
    assert (x == x[0]).all()
    x = models(method, 3, world=World(6, loss=1.0), **LOCAL, **WITH[method])
    assert (x == x[0]).all()


@each
def test_the_accounts_are_those_of_the_payload(method):
    """Down a model to each sampled device, up what it sends, and seconds in proportion."""
    task = small(6, network=mlp(7), dtype=torch.float32)
    world = Listens(6)
    models(method, 3, task=task, world=world, **LOCAL, **WITH[method])
    up = sum(weigh(payload) for _, payload in world.heard)
    assert world.server_up == 3 * 4 * 4 * task.d
    assert world.up.sum() == world.server_down == up
    assert up < 0.5 * world.server_up
    assert all(weigh(payload) % len(chosen) == 0 for chosen, payload in world.heard)


@each
def test_it_learns(method):
    task = small(4, samples=1000, network=mlp(20), dtype=torch.float32)
    how = dict(LOCAL, **WITH[method])
    if method is structured_random_mask:
        how |= dict(average=plain, eta=0.4)
    x = models(method, 15, task=task, **how)
    accuracy, _ = task.evaluate(x[[0, -1]])
    assert accuracy[1] > 0.75 > 0.4 > accuracy[0]


@each
def test_a_run_that_diverges_yields_what_is_not_finite(method):
    """It must not fail on the way: the run reports it."""
    x = models(method, 6, task=small(6, network=mlp(7)), **dict(LOCAL, eta=1e200), **WITH[method])
    assert not torch.isfinite(x[-1]).all()


# ---- low rank ------------------------------------------------------------------------------------


def trained_by_factors(task, i, x, rank, *, E, B, eta, seed):
    """What device i makes of x: B of each matrix, and the biases, trained by autograd, with A
    fixed; the longer side of a matrix first."""
    shapes, parts, rebuild = task.network.shapes, [], []
    for layer, (shape, w) in enumerate(zip(shapes, task.network.views(x), strict=True)):
        if len(shape) == 1:
            parts.append(w.clone())
            rebuild.append(lambda p: p)
            continue
        rows, columns = shape[0], shape[1:].numel()
        A = torch.from_numpy(gaussian(max(rows, columns), rank, 0, 0, i, layer))
        parts.append(torch.zeros(rank, min(rows, columns), dtype=x.dtype))
        turn = rows < columns
        rebuild.append(
            lambda p, A=A, w=w, turn=turn: w + ((A @ p).T if turn else A @ p).reshape(w.shape)
        )
    parts = [p.requires_grad_() for p in parts]

    def model():
        return torch.cat([f(p).reshape(-1) for f, p in zip(rebuild, parts, strict=True)])

    for batch in batches(task, i, seed, E=E, B=B):
        F.cross_entropy(task.network(model(), task.x[batch]), task.y[batch]).backward()
        for p in parts:
            p.data -= eta * p.grad
            p.grad = None
    return model().detach(), [p.detach() for p in parts]


@pytest.mark.parametrize("network", [logistic(), mlp(7, 5), cnn(2, 3)])
def test_low_rank_trains_one_factor_from_zero(network):
    """The server's step and each device's message equal explicit training of B by autograd; the
    conv net goes device by device, the others by hand."""
    task, world = unequal(network, seed=1), Listens(6)
    got = first_step(structured_lowrank, task, world, rank=3, **ALL)
    chosen, (_, *sent) = world.heard[0]
    how = dict(E=2, B=8, eta=0.1, seed=(0, 0))
    want = torch.zeros(task.d, dtype=torch.float64)
    for i in chosen:
        y, parts = trained_by_factors(task, int(i), task.init(), 3, **how)
        want += task.p[i] * (y - task.init())
        before = task.network.views(task.init())
        for b, part, old in zip(sent, parts, before, strict=True):
            close(b[i], part if part.dim() > 1 else part - old, atol=1e-9)
    close(got, want, atol=1e-10)
    assert got.norm() > 1e-2


def test_a_devices_update_has_the_rank_and_their_mean_has_more():
    task, rank = unequal(mlp(12)), 3
    alone = first_step(structured_lowrank, task, Deaf(6, range(1, 6)), rank=rank, **ALL)
    together = first_step(structured_lowrank, task, rank=rank, **ALL)
    full = first_step(fedavg, task, Deaf(6, range(1, 6)), **ALL)
    for H, least, most in ((alone, rank, rank), (together, rank + 1, 12), (full, rank + 1, 12)):
        for h in matrices(task, H[None]):
            assert least <= torch.linalg.matrix_rank(h[0], rtol=1e-9) <= most


@pytest.mark.parametrize("network", [logistic(), mlp(9)])
def test_all_of_the_rank_and_no_rotation_is_fedavg(network):
    """A = I of rank d1 = 64; of the matrix 10 x 9 the longer side is shorter, and it goes whole."""
    task = unequal(network)
    a = models(structured_lowrank, 4, task=task, rank=64, factor=eye, **LOCAL)
    close(a, models(fedavg, 4, task=task, **LOCAL), atol=1e-12)


def test_more_rank_than_any_matrix_has_is_fedavg():
    task = unequal(mlp(9))
    a = models(structured_lowrank, 4, task=task, rank=65, **LOCAL)
    close(a, models(fedavg, 4, task=task, **LOCAL), atol=1e-12)


@pytest.mark.parametrize(
    ("network", "rank", "numbers"),
    [
        (logistic(), 3, 3 * 10 + 10),  # 10 x 64: the side of 64 shrinks to the rank
        (mlp(20), 3, 3 * 20 + 20 + 3 * 10 + 10),  # 20 x 64 and 10 x 20
        (mlp(20), 30, 30 * 20 + 20 + 200 + 10),  # the second one has no side of 30
        (cnn(2, 3), 4, 4 * 2 + 2 + 4 * 3 + 3 + 4 * 10 + 10),  # 2 x 9, 3 x 18, 10 x 12
    ],
)
def test_low_rank_sends_its_factor_the_biases_and_a_seed(network, rank, numbers):
    """4 rank d2 + 8 bytes, and what is sent in full."""
    task, world = small(6, network=network, dtype=torch.float32), World(6)
    models(structured_lowrank, 2, task=task, world=world, rank=rank, **LOCAL)
    assert world.up.sum() == 2 * 4 * (4 * numbers + 8)


def test_factors_keep_the_mean_step():
    """E[A A^T] = I, for any rank: draws of 6 x 2 in mean, with their standard errors."""
    A = torch.from_numpy(np.stack([gaussian(6, 2, "mean", i) for i in range(5000)]))
    P = A @ A.mT
    error = (P.mean(0) - torch.eye(6)) / (P.std(0) / 5000**0.5)
    assert error.abs().max() < 4


def test_fresh_factors_leave_the_subspace_and_a_frozen_one_does_not():
    """frozen: every update of a matrix is A B with one A, so that their sum has its rank too."""
    task, ranks = unequal(mlp(12)), {}
    for factor in (frozen, gaussian):
        x = models(structured_lowrank, 4, task=task, rank=2, factor=factor, **LOCAL)
        moved = matrices(task, (x[-1] - x[0])[None])
        ranks[factor] = [int(torch.linalg.matrix_rank(h[0], rtol=1e-9)) for h in moved]
    assert ranks[frozen] == [2, 2] and min(ranks[gaussian]) > 2


def test_low_rank_without_a_rank_is_refused():
    with pytest.raises(UsageError, match="rank = 0"):
        models(structured_lowrank, 1, rank=0, **LOCAL)


# ---- random mask ---------------------------------------------------------------------------------


@pytest.mark.parametrize("average", AVERAGES)
def test_a_full_mask_is_fedavg(average):
    """To round-off: FedAvg averages models, this method their changes."""
    task = unequal(mlp(7))
    a = models(structured_random_mask, 4, task=task, p=1.0, average=average, **LOCAL)
    close(a, models(fedavg, 4, task=task, **LOCAL), atol=1e-12)


@pytest.mark.parametrize("average", AVERAGES)
def test_a_device_changes_no_entry_outside_its_mask(average):
    """One device alone: what moves is its mask, a fresh one each round, and others' are unlike."""
    task, rounds, p = unequal(mlp(7)), 5, 0.25
    how = dict(ALL, p=p, average=average)
    kept = {}
    for i in (1, 4):
        deaf = [j for j in range(6) if j != i]
        x = models(structured_random_mask, rounds, task=task, world=Deaf(6, deaf), **how)
        kept[i] = [set(torch.nonzero(s).flatten().tolist()) for s in x.diff(dim=0)]
    size = round(p * task.d)
    for i, found in kept.items():
        for r, moved in enumerate(found):
            mask = stream("mask", 0, r, i).permutation(task.d)[:size]
            assert moved <= set(mask.tolist())  # the receiver draws it again from the seed
            assert len(moved) > size / 3  # dead pixels and units do not move
    for a, b in itertools.combinations(kept[1] + kept[4], 2):
        assert len(a & b) < 0.6 * size


def test_a_masked_device_runs_sgd_on_its_entries():
    """y <- y - eta m * g(y), by autograd, over the same batches."""
    task, p = unequal(mlp(7)), 0.25
    deaf = [0, 1, 3, 4, 5]
    got = first_step(structured_random_mask, task, Deaf(6, deaf), p=p, average=plain, **ALL)
    m = torch.zeros(task.d, dtype=torch.float64)
    m[stream("mask", 0, 0, 2).permutation(task.d)[: round(p * task.d)]] = 1
    y = task.init()
    for batch in batches(task, 2, (0, 0), E=2, B=8):
        z = y.clone().requires_grad_()
        F.cross_entropy(task.network(z, task.x[batch]), task.y[batch]).backward()
        y = y - 0.1 * m * z.grad
    close(got, y - task.init(), atol=1e-10)


def test_a_mask_costs_its_values_and_a_seed():
    task = small(6, dtype=torch.float32)
    for p, kept in ((0.25, 162), (1 / 16, 41), (1e-9, 1), (1.0, 650)):
        world = World(6)
        models(structured_random_mask, 2, task=task, world=world, p=p, **LOCAL)
        assert world.up.sum() == 2 * 4 * (4 * kept + 8)


def test_averages_by_hand():
    """Two devices with 1 and 3 samples; they train the entries 0, 1 and 1, 2 of 4."""
    H = torch.tensor([[4.0, 8.0, 0.0, 0.0], [0.0, 4.0, 8.0, 0.0]])
    M = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]])
    weight = np.array([1, 3])
    close(plain(H, M, weight), torch.tensor([1.0, 5.0, 6.0, 0.0]))
    close(over_share(H, M, weight), torch.tensor([2.0, 10.0, 12.0, 0.0]))
    close(per_entry(H, M, weight), torch.tensor([4.0, 5.0, 8.0, 0.0]))


def test_averages_in_mean():
    """Of k = 3 updates G seen through masks of share p: plain has mean p mean(G), over_share
    mean(G), and per_entry mean(G) times the chance that anybody has the entry, 1 - (1 - p)^3."""
    d, p, draws = 8, 0.25, 4000
    G = torch.randn(3, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    M = torch.zeros(draws, 3, d, dtype=torch.float64)
    order = torch.from_numpy(stream("draws").random((draws, 3, d))).argsort(-1)
    M.scatter_(2, order[..., : int(p * d)], 1.0)
    factor = {plain: p, over_share: 1.0, per_entry: 1 - (1 - p) ** 3}
    for average, expected in factor.items():
        found = torch.stack([average(G * m, m, np.ones(3)) for m in M])
        error = (found.mean(0) - expected * G.mean(0)) / (found.std(0) / draws**0.5)
        assert error.abs().max() < 4


@pytest.mark.parametrize("p", [1 / 2, 1 / 4, 1 / 8])
def test_normalised_averages_overshoot_where_devices_finish_their_work(p):
    """All devices minimise (sum_j y_j - 1)^2 / 2 from 0 to the end, each over its mask alone: y = m
    / (p d), of sum 1. The plain mean has sum 1 as well and is optimal. The two others have
    sum 1 / p: a distance of 1 / p - 1 times the one at the start, and for p < 1/2 they diverge.
    After one step of size eta, y = eta m, it is the other way round: they move as one device that
    trains all entries does, to the sum eta d, and the plain mean p-fold.
    """
    d, k = 64, 200
    order = torch.from_numpy(stream("overshoot").random((k, d))).argsort(1)
    M = torch.zeros(k, d, dtype=torch.float64).scatter_(1, order[:, : int(p * d)], 1.0)
    for H, whole in ((M / (p * d), 1 / p), (0.001 * M, 0.001 * d)):
        for average, share in ((plain, p), (over_share, 1.0), (per_entry, 1.0)):
            total = average(H, M, np.ones(k)).sum().item()
            assert total == pytest.approx(share * whole, rel=1e-9)


@pytest.mark.parametrize("p", [0, -0.5, 1.2, float("nan")])
def test_a_share_outside_0_to_1_is_refused(p):
    with pytest.raises(UsageError, match="p = "):
        models(structured_random_mask, 1, p=p, **LOCAL)


# ---- sketches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("Q", [identity, subsample(1.0), rotated(identity)])
def test_a_sketch_that_loses_nothing_is_fedavg(Q):
    task = unequal(mlp(7))
    a = models(sketched_updates, 4, task=task, Q=Q, **LOCAL)
    close(a, models(fedavg, 4, task=task, **LOCAL), atol=1e-12)


def test_the_server_averages_what_it_decodes():
    """x + sum_i (n_i / n) Q(y_i - x), layer by layer."""
    task, Q = unequal(mlp(7)), subsample(0.25, quantise(2))
    x = task.init()
    Y = local_sgd(task, World(6), np.arange(6), x, E=2, B=8, eta=0.1, seed=(0, 0))
    decoded = by_layer(task.network.sizes, Q)(Y - x, 0, 0)[1]
    close(first_step(sketched_updates, task, Q=Q, **ALL), task.p @ decoded)
    close(first_step(sketched_updates, task, **ALL), task.p @ decoded)  # the default


def test_a_sketchs_step_is_unbiased():
    """Over 400 draws of the codec, for one cohort, layer by layer."""
    task, Q = unequal(mlp(3)), subsample(0.5, rotated(quantise(1)))
    H = torch.randn(6, task.d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    Q = by_layer(task.network.sizes, Q)
    steps = torch.stack([task.p @ Q(H, s)[1] for s in range(400)])
    error = (steps.mean(0) - task.p @ H) / (steps.std(0) / 400**0.5)
    assert error.abs().max() < 4.5  # 235 entries


@pytest.mark.parametrize(
    ("Q", "nbytes"),
    [  # 64-20-10: layers of 1280, 20, 200 and 10 entries
        (identity, 4 * 1510),
        (subsample(0.25), 8 + 4 * (320 + 5 + 50 + 2)),
        (quantise(1), 4 * 8 + 160 + 3 + 25 + 2),
        (quantise(4), 4 * 8 + 640 + 10 + 100 + 5),
        (rotated(quantise(1)), 8 + 4 * 8 + 256 + 4 + 32 + 2),  # 2048, 32, 256, 16
        (subsample(0.25, quantise(2)), 8 + 4 * 8 + 80 + 2 + 13 + 1),
        (subsample(0.25, rotated(quantise(2))), 8 + 4 * 8 + 128 + 2 + 16 + 1),  # 512, 8, 64, 2
    ],
)
def test_a_sketch_sends_codes_ranges_and_one_seed(Q, nbytes):
    task, world = small(6, network=mlp(20), dtype=torch.float32), World(6)
    models(sketched_updates, 2, task=task, world=world, Q=Q, **LOCAL)
    assert world.up.sum() == 2 * 4 * nbytes


def test_small_uploads_close_the_round_sooner():
    """Equal devices on an uplink of 1 kB/s: the rounds differ by the bytes saved alone."""
    task, clocks = small(4, network=mlp(20), dtype=torch.float32), {}
    for method, how in ((fedavg, {}), (sketched_updates, dict(Q=quantise(1)))):
        world = World(4)
        world.bandwidth_up = np.full(4, 1000.0)
        models(method, 2, task=task, world=world, **LOCAL, **how)
        clocks[method] = world.clock
    saved = 2 * (4 * 1510 - (4 * 8 + 160 + 3 + 25 + 2)) / 1000
    assert clocks[fedavg] - clocks[sketched_updates] == pytest.approx(saved, rel=1e-9)


def test_the_defaults_are_gaussian_factors_and_averages_per_entry():
    task = unequal(mlp(7))
    for method, how, more in (
        (structured_lowrank, dict(rank=3), dict(factor=gaussian)),
        (structured_random_mask, dict(p=0.25), dict(average=per_entry)),
    ):
        a = models(method, 2, task=task, **LOCAL, **how)
        assert torch.equal(a, models(method, 2, task=task, **LOCAL, **how, **more))
