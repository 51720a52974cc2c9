import itertools
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import batches, close, leaves, models, small, values
from torch.nn import functional as F

from survey_lib.methods.distillation import Teacher, kd_logits, student_hard_labels
from survey_lib.methods.transfer import (
    TECHNIQUES,
    Neighbours,
    _compared,
    _trained,
    apart,
    attention,
    attention_transfer,
    cosines,
    distances,
    embedding,
    factor_transfer_way,
    features,
    fitnet_hint,
    guided,
    lessons,
    relational_kd,
    relations_apart,
    sharma_edge_kt,
)
from survey_lib.models import cnn, logistic, mlp
from survey_lib.training import Task, batch_gradients
from survey_lib.world import World

C = 10
QUICK = Teacher(mlp(12, 8), epochs=2)
HOW = dict(K=3, B=8, eta=0.1)
FIT = dict(stage_1=2, eta_1=0.05, layers=(1, 0), teacher=QUICK)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def student(n=1, samples=40, network=None, **how):
    return small(n=n, samples=samples, network=network or mlp(6), **how)


# ---- hidden layers -----------------------------------------------------------------------------


@pytest.mark.parametrize("network", [logistic(), mlp(5), mlp(7, 4), cnn(2, 3)])
def test_features_end_in_the_logits(network):
    task = student(network=network)
    x, images = task.init(), task.x[:9]
    found = features(task.network, x, images)
    close(found[-1], task.network(x, images))
    assert all((h >= 0).all() and (h > 0).any() for h in found[:-1])
    if network == mlp(7, 4):
        W, b, V, c, *_ = task.network.views(x)
        first = (images.flatten(1) @ W.T + b).relu()
        close(found[0], first)
        close(found[1], (first @ V.T + c).relu())
    if network == cnn(2, 3):
        assert [h.shape for h in found] == [(9, 2, 8, 8), (9, 3, 4, 4), (9, C)]


def test_lessons_are_those_of_the_teacher_that_kd_logits_has():
    task = student()
    taught, own = lessons(task, QUICK), task.rows(0)
    assert [v.shape for v in taught] == [(1437, 12), (1437, 8), (1437, C)]
    close(taught[-1][own], QUICK.logits(task)[own])
    others = np.setdiff1d(np.arange(1437), own)
    assert all((v[others] == 0).all() for v in taught)  # the device's samples only


# ---- hints -------------------------------------------------------------------------------------


def hint_loss(task, v, shared, rows, wanted):
    """1/2 ||u_h - r(v_g)||^2, the mean over samples, and v_g of mlp's first hidden layer."""
    width = shared // 65
    W, b = v[:shared].split([64 * width, width])
    h = (task.x[rows].flatten(1) @ W.view(-1, 64).T + b).relu()
    R, c = v[shared:].split([width * wanted.shape[1], wanted.shape[1]])
    r = h @ R.view(-1, width).T + c
    return (wanted[rows] - r).square().sum(1).mean() / 2, h


def test_both_stages_by_autograd():
    """Stage 1 moves the guided layer and r only, stage 2 is kd_logits from there."""
    task = student()
    wanted = lessons(task, QUICK)[1]
    found = models(fitnet_hint, 4, task=task, T=2.0, a=0.7, **HOW, **FIT)
    guide, shared = guided(task, 0, 8)
    assert shared == 6 * 65 and guide.d == shared + 7 * 8
    x = task.init()
    v = torch.cat([x[:shared], guide.init()[shared:]])
    for r in range(2):
        for rows in batches(task, 0, (0, r), B=8, K=3):
            v = v.detach().requires_grad_()
            loss, _ = hint_loss(task, v, shared, rows, wanted)
            v = (v - 0.05 * torch.autograd.grad(loss, v)[0]).detach()
        x = torch.cat([v[:shared], x[shared:]])
        close(found[r + 1], x, 1e-10)
    outputs = lessons(task, QUICK)[-1]
    for r in range(2, 4):
        for rows in batches(task, 0, (0, r), B=8, K=3):
            x = x.detach().requires_grad_()
            z = task.network(x, task.x[rows])
            soft = F.kl_div(
                torch.log_softmax(z / 2, 1),
                torch.softmax(outputs[rows] / 2, 1),
                reduction="batchmean",
            )
            loss = 0.3 * F.cross_entropy(z, task.y[rows]) + 0.7 * 4 * soft
            x = (x - 0.1 * torch.autograd.grad(loss, x)[0]).detach()
        close(found[r + 1], x, 1e-10)


def test_a_copy_of_the_teacher_has_no_hint_left_to_follow():
    """Equal architecture, copied weights and r = identity: gradient 0."""
    task = student(network=mlp(12, 8))
    network, x = _trained(QUICK, task.data, task.seed, task.dtype)
    guide, shared = guided(task, 1, 8)
    v = torch.cat(
        [x[:shared], torch.eye(8, dtype=x.dtype).flatten(), torch.zeros(8, dtype=x.dtype)]
    )
    near = partial(apart, wanted=lessons(task, QUICK)[1])
    own = torch.from_numpy(task.rows(0))
    close(guide.network(v, task.x[own]), lessons(task, QUICK)[1][own], 1e-12)
    close(
        batch_gradients(guide, [0], v, loss=near, seed=0)[0], torch.zeros(guide.d).double(), 1e-12
    )
    away = v.clone()
    away[shared] += 0.1
    assert batch_gradients(guide, [0], away, loss=near, seed=0).norm() > 1e-3


def test_least_squares_is_the_best_regressor_of_a_fixed_student():
    """The hint loss has gradient 0 in r at the least-squares r, and is larger elsewhere."""
    task = student()
    wanted, own = lessons(task, QUICK)[1], torch.from_numpy(task.rows(0))
    guide, shared = guided(task, 0, 8)
    x = task.init()[:shared]
    _, h = hint_loss(task, torch.cat([x, torch.zeros(56).double()]), shared, own, wanted)
    A = torch.cat([h, torch.ones(len(h), 1).double()], 1)
    R = torch.linalg.lstsq(A, wanted[own], driver="gelsd").solution  # (7, 8)
    v = torch.cat([x, R[:-1].T.flatten(), R[-1]])
    slope = batch_gradients(guide, [0], v, loss=partial(apart, wanted=wanted), seed=0)[0]
    close(slope[shared:], torch.zeros(56).double(), 1e-10)
    least = hint_loss(task, v, shared, own, wanted)[0]
    for seed in range(5):
        other = v + torch.cat([torch.zeros(shared).double(), randn(56, seed=seed)])
        assert hint_loss(task, other, shared, own, wanted)[0] > least + 1e-6


def test_without_a_first_stage_it_is_kd_logits():
    task = student()
    how = dict(task=task, teacher=QUICK, T=2.0, a=0.7, **HOW)
    kd = models(kd_logits, 3, **how)
    assert torch.equal(models(fitnet_hint, 3, stage_1=0, eta_1=0.1, **how), kd)
    hard = models(student_hard_labels, 3, task=task, **HOW)
    assert torch.equal(models(fitnet_hint, 3, **how | dict(a=0.0, stage_1=0, eta_1=0.1)), hard)


def test_guided_layers_of_a_convolutional_student():
    """The guided layer's maps, pooled and flat, and the regressor behind them."""
    task = student(network=cnn(2, 3))
    for g, numbers in ((0, 2 * 4 * 4), (1, 3 * 2 * 2)):
        guide, shared = guided(task, g, 8)
        assert guide.d == shared + (numbers + 1) * 8
        x = task.init()
        v = torch.cat([x[:shared], guide.init()[shared:]])
        h = F.max_pool2d(features(task.network, x, task.x[:5])[g], 2).flatten(1)
        R, c = v[shared:].split([8 * numbers, 8])
        close(guide.network(v, task.x[:5]), h @ R.view(8, numbers).T + c)


# ---- attention ---------------------------------------------------------------------------------


def test_attention_knows_no_scale_and_no_order_of_channels():
    h = randn(4, 6, 5, 5).relu()
    (q,) = attention([h, randn(4, C)])
    assert q.shape == (4, 25)
    close(q.norm(dim=1), torch.ones(4).double())
    for scale in (1e-3, 7.0, -2.0):
        close(attention([scale * h, None])[0], q)
    close(attention([h[:, [3, 1, 5, 0, 2, 4]], None])[0], q)
    close(attention([h.repeat(1, 3, 1, 1), None])[0], q)  # nor their number
    assert (attention([h.flip(3), None])[0] - q).abs().max() > 1e-2  # but it knows places
    dense = attention([randn(4, 6), randn(4, C)])[0]
    close(dense, torch.ones(4, 1).double())


def test_attention_of_one_map_by_hand():
    """A = (3, 4) in one channel: F = (9, 16), Q = (9, 16) / sqrt(337)."""
    q = attention([torch.tensor([[[[3.0, 4.0]]]]).double(), None])[0]
    close(q, torch.tensor([[9.0, 16.0]]).double() / 337**0.5)


def test_attention_transfer_by_autograd():
    teacher = Teacher(cnn(4, 6), epochs=1)
    task = student(network=cnn(2, 3))
    found = models(attention_transfer, 2, task=task, beta=20.0, teacher=teacher, **HOW)
    taught, x = lessons(task, teacher), task.init()
    for r in range(2):
        for rows in batches(task, 0, (0, r), B=8, K=3):
            x = x.detach().requires_grad_()
            own, loss = features(task.network, x, task.x[rows]), 0
            for h, t in zip(own[:-1], taught[:-1], strict=True):
                Q, U = (v.square().mean(1).flatten(1) for v in (h, t[rows]))
                Q, U = Q / Q.norm(dim=1, keepdim=True), U / U.norm(dim=1, keepdim=True)
                loss = loss + 20 * (Q - U).square().mean()
            loss = loss + F.cross_entropy(own[-1], task.y[rows])
            x = (x - 0.1 * torch.autograd.grad(loss, x)[0]).detach()
        close(found[r + 1], x, 1e-10)


# ---- relations ---------------------------------------------------------------------------------


def rotation(d):
    return torch.linalg.qr(randn(d, d, seed=5))[0]


def test_relations_know_no_rotation_shift_or_scale():
    e = randn(7, 5)
    for scale in (0.1, 30.0):
        moved = scale * e @ rotation(5) + randn(5, seed=3)
        assert relations_apart([moved], [e], w_d=25.0, w_a=50.0) < 1e-20
    wide = torch.cat([e, torch.zeros(7, 9).double()], 1)
    assert relations_apart([wide], [e], w_d=25.0, w_a=50.0) < 1e-20  # nor the width
    assert relations_apart([e.abs()], [e], w_d=25.0, w_a=50.0) > 0.1


def test_relations_of_two_are_nothing():
    """One distance, over the mean: 1 for everybody; the angles of two points are 0."""
    a, b = randn(2, 5), randn(2, 3, seed=1)
    close(distances(a), torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double())
    assert relations_apart([a], [b], w_d=25.0, w_a=0.0) < 1e-20
    assert relations_apart([a], [b], w_d=0.0, w_a=50.0) < 1e-20


def test_relations_by_hand():
    """A 3-4-5 triangle: distances over their mean 4, and the cosines 4/5, 3/5 and 0 at its ends."""
    e = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]).double()
    close(distances(e), torch.tensor([[0.0, 3, 4], [3, 0, 5], [4, 5, 0]]).double() / 4)
    c = cosines(e)
    close(c[0, 1, 2], torch.tensor(0.0).double())
    close(c[1, 0, 2], torch.tensor(0.6, dtype=torch.float64))
    close(c[2, 0, 1], torch.tensor(0.8, dtype=torch.float64))
    line = torch.tensor([[0.0], [1.0], [2.0]]).double()
    gap = distances(line) - distances(e)  # all below 1: Huber is half the square
    expected = 25 * gap.square().mean() / 2
    assert relations_apart([line], [e], w_d=25.0, w_a=0.0) == pytest.approx(float(expected))


@pytest.mark.parametrize("e", [torch.zeros(3, 4), torch.ones(3, 4), torch.zeros(1, 4)])
def test_embeddings_that_coincide_have_a_gradient(e):
    """The root of 0 on the diagonal, and of dead layers: no slope rather than NaN."""
    e = e.double().requires_grad_()
    (slope,) = torch.autograd.grad(relations_apart([e], [randn(len(e), 6)], w_d=25.0, w_a=50.0), e)
    assert torch.isfinite(slope).all()


def test_relational_kd_moves_by_its_loss():
    task = student()
    found = models(relational_kd, 2, task=task, teacher=QUICK, **HOW)
    taught, x = lessons(task, QUICK), task.init()
    for r in range(2):
        for rows in batches(task, 0, (0, r), B=8, K=3):
            x = x.detach().requires_grad_()
            own = features(task.network, x, task.x[rows])
            loss = F.cross_entropy(own[-1], task.y[rows])
            loss = loss + relations_apart([own[-2]], [taught[-2][rows]], w_d=25.0, w_a=50.0)
            x = (x - 0.1 * torch.autograd.grad(loss, x)[0]).detach()
        close(found[r + 1], x, 1e-10)


def test_neighbours():
    """Recomputed sample by sample; a model that sees nothing finds the first other sample."""
    task = Neighbours("digits", n=1, samples=40, network=mlp(6), dtype=torch.float64)
    x = task.init()
    e = embedding(features(task.network, x, task.x_test))[0]
    right = 0
    for i in range(len(e)):
        d = (e - e[i]).square().sum(1)
        d[i] = torch.inf
        right += bool(task.y_test[d.argmin()] == task.y_test[i])
    assert task.details(x[None])["neighbour"] == pytest.approx(right / len(e))
    blind = torch.where(task.y_test[1:] == task.y_test[0], 1.0, 0.0).sum() + (
        task.y_test[1] == task.y_test[0]
    )
    assert task.details(0 * x[None])["neighbour"] == pytest.approx(float(blind) / len(e))


# ---- what all have in common -------------------------------------------------------------------

ARGUMENTS = {
    "none": {},
    "logits": dict(teacher=QUICK),
    "hint": FIT,
    "both": FIT,
    "attention": dict(teacher=Teacher(mlp(12), epochs=2)),
    "relational": dict(teacher=QUICK),
}
NUMBERS = dict(none=0, logits=C, hint=8, both=8 + C, attention=1, relational=8)  # per sample


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_bytes_are_sent_once(technique):
    """4 B for each number that is compared, for each sample of the device."""
    task, world = student(n=3, samples=100, dtype=torch.float32), World(3)
    values(
        sharma_edge_kt,
        4,
        task=task,
        world=world,
        technique=TECHNIQUES[technique],
        **HOW,
        **ARGUMENTS[technique],
    )
    assert list(world.down) == [4 * NUMBERS[technique] * task.sizes[0], 0, 0]
    assert world.up.sum() == 0 and world.messages == (technique != "none")


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_all_start_alike_and_have_labels_until_they_are_taught(technique):
    task = student()
    how = dict(task=task, technique=TECHNIQUES[technique], **HOW, **ARGUMENTS[technique])
    hard = models(student_hard_labels, 6, task=task, **HOW)
    assert torch.equal(models(sharma_edge_kt, 0, **how)[0], task.init())
    assert torch.equal(models(sharma_edge_kt, 6, world=World(1, loss=1.0), **how), hard)
    if technique != "none":
        seeds = (
            s for s in range(50) if not len(World(1, loss=0.5, seed=s).broadcast([0], hard[0]))
        )
        found = models(sharma_edge_kt, 6, world=World(1, loss=0.5, seed=next(seeds)), **how)
        assert torch.equal(found[1], hard[1])
        if technique != "attention":  # of a dense layer: one position
            assert (found[6] - hard[6]).abs().max() > 1e-6


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_device_that_is_off_does_nothing(technique):
    world = World(1, churn=leaves(0, 0, 1e3))
    found = models(
        sharma_edge_kt,
        2,
        task=student(),
        world=world,
        technique=TECHNIQUES[technique],
        **HOW,
        **ARGUMENTS[technique],
    )
    assert (found == found[0]).all() and world.busy[0] == world.down[0] == 0 and world.clock > 0


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_the_first_round_on_a_slow_device_takes_longer(technique):
    clocks = []
    for seed in range(2):
        world = World(1)
        world.speed = world.speed / (1 + 9 * seed)
        values(
            sharma_edge_kt,
            1,
            task=student(),
            world=world,
            technique=TECHNIQUES[technique],
            **HOW,
            **ARGUMENTS[technique],
        )
        clocks.append(world.busy[0])
    assert clocks[1] == pytest.approx(10 * clocks[0]) and clocks[0] > 0


def test_no_technique_is_kd_logits_with_a_0():
    task = student()
    none = models(sharma_edge_kt, 3, task=task, technique=TECHNIQUES["none"], **HOW)
    assert torch.equal(none, models(kd_logits, 3, task=task, a=0.0, **HOW))


def test_nothing_compared_is_training_on_labels_or_outputs():
    task = student()
    how = dict(
        task=task, keep=embedding, compare=lambda own, wanted: 0 * own[0].sum(), teacher=QUICK
    )
    close(
        models(_compared, 3, **how, **HOW), models(student_hard_labels, 3, task=task, **HOW), 1e-12
    )
    soft = dict(T=2.0, a=0.7)
    kd = models(kd_logits, 3, task=task, teacher=QUICK, **soft, **HOW)
    close(models(_compared, 3, **how, **soft, **HOW), kd, 1e-12)


# ---- the analysis of variance ------------------------------------------------------------------


def grid(f, repeats=1):
    rows = itertools.product("abc", "uv", range(4), range(repeats))
    return pd.DataFrame([dict(way=w, shape=s, size=n, y=f(w, s, n, k)) for w, s, n, k in rows])


def test_shares_of_variance_add_up():
    rng = np.random.default_rng(0)
    shares = factor_transfer_way(
        grid(lambda *_: rng.standard_normal(), 3), "y", ["way", "shape", "size"]
    )
    assert shares.sum() == pytest.approx(1) and (shares >= 0).all() and len(shares) == 8
    assert shares["rest"] > 0.3  # 48 of 71 degrees of freedom
    alone = factor_transfer_way(
        grid(lambda *_: rng.standard_normal()), "y", ["way", "shape", "size"]
    )
    assert alone["rest"] == pytest.approx(0, abs=1e-12)


def test_shares_of_variance_by_hand():
    """y = 2 [shape = v] + 3 [way = a and shape = v]: 24 runs, effects by their orthogonality.

    Means: ways 2.5, 1, 1; shapes 0, 3; grand 1.5. way: 8 (1 + 1/4 + 1/4) = 12; shape: 24 (1.5)^2 =
    54; way x shape: residuals +-1 (a), -+1/2 (b, c), 4 runs each: 8 (1 + 1/4 + 1/4) = 12.
    """
    shares = factor_transfer_way(
        grid(lambda w, s, n, k: 2 * (s == "v") + 3 * (w == "a" and s == "v")),
        "y",
        ["way", "shape", "size"],
    )
    total = 12 + 54 + 12
    expected = {"way": 12 / total, "shape": 54 / total, "way x shape": 12 / total}
    for name, share in shares.items():
        assert share == pytest.approx(expected.get(name, 0), abs=1e-12), name


def test_whether_there_is_transfer_is_part_of_the_technique():
    rng = np.random.default_rng(1)
    frame = grid(lambda *_: rng.standard_normal())
    frame["any"] = frame["way"] != "a"
    part = factor_transfer_way(frame, "y", ["any"])["any"]
    assert 0 < part < factor_transfer_way(frame, "y", ["way"])["way"]


# ---- claims ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_claim_transfer_of_both_helps_a_shallow_student():
    gains = []
    for seed in range(3):
        task = Task(n=1, samples=100, network=mlp(16), seed=seed)
        how = dict(task=task, world=World(1, seed=seed), K=40, B=16, eta=0.1, seed=seed)
        both = dict(teacher=Teacher(mlp(64, 64), epochs=20), stage_1=3, eta_1=0.02, layers=(1, 0))
        pair = [("both", both), ("none", {})]
        ends = [
            models(sharma_edge_kt, 10, technique=TECHNIQUES[t], **how, **extra)[-1]
            for t, extra in pair
        ]
        accuracy = task.evaluate(torch.stack(ends))[0]
        gains.append(accuracy[0] - accuracy[1])
    assert np.mean(gains) > 0.02, gains
