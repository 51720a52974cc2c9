import math
from math import prod

import numpy as np
import pytest
import torch
from conftest import batches, close, leaves, models, small, values
from torch.nn import functional as F

from survey_lib.errors import UsageError
from survey_lib.evidence.run import run
from survey_lib.methods.compact import (
    EarlyExits,
    discarded,
    exits_loss,
    knowledge_points,
    left,
    lottery_ticket,
    pruned,
    scan,
)
from survey_lib.methods.compact import leaves as leaves_at
from survey_lib.methods.distillation import Teacher, kd_logits, student_hard_labels
from survey_lib.models import Network, cnn, mlp
from survey_lib.training import train
from survey_lib.world import World

HOW = dict(K=3, B=8, eta=0.1)
QUICK = Teacher(mlp(12), epochs=2)


def one(network=None, **how):
    return small(n=1, samples=60, network=network or mlp(12, 6), **how)


def weights(task, x):
    return task.network.views(x)[0::2]


# ---- lottery_ticket ----------------------------------------------------------------------------


def test_the_first_round_is_dense_training():
    task = one()
    found = models(lottery_ticket, 1, task=task, **HOW)
    assert torch.equal(found[0], task.init())
    close(found[1], train(task, [0], task.init(), seed=(0, 0), **HOW)[0])


def test_pruned_weights_stay_exactly_zero_and_the_others_start_anew():
    task = one()
    found = models(lottery_ticket, 5, task=task, p=0.3, **HOW)
    mask = torch.ones(task.d, dtype=task.dtype)
    for r in range(1, 5):
        mask = mask * pruned(task, found[r], mask, 0.3)
        x = mask * task.init()
        for rows in batches(task, 0, (0, r), B=8, K=3):
            x = x.detach().requires_grad_()
            loss = F.cross_entropy(task.network(x, task.x[rows]), task.y[rows])
            x = (x - 0.1 * mask * torch.autograd.grad(loss, x)[0]).detach()
        close(found[r + 1], x, 1e-10)
        for w, m in zip(weights(task, found[r + 1]), weights(task, mask), strict=True):
            assert (w[m == 0] == 0).all() and (w[m == 1] != 0).all()


def test_each_round_leaves_a_share_of_the_weights():
    """(1 - p)^r of each hidden layer and (1 - p / 2)^r of the last, up to half a weight a round."""
    task, mask = one(), None
    mask = torch.ones(task.d, dtype=task.dtype)
    found = values(lottery_ticket, 8, task=task, **HOW)
    for r, (x, extra) in enumerate(found[1:]):
        sizes = [12 * 64, 6 * 12, 10 * 6]
        for W, size, share in zip(weights(task, mask), sizes, (0.8, 0.8, 0.9), strict=True):
            assert float(W.sum()) == pytest.approx(size * share**r, abs=0.5 / (1 - share))
        if r:
            assert found[r][1]["left"] == pytest.approx(left(task, mask))
        mask = mask * pruned(task, x, mask, 0.2)
        assert extra["left"] == pytest.approx(left(task, mask))
    assert found[0][1]["left"] == 1.0
    assert mask.sum() - sum(W.sum() for W in weights(task, mask)) == 12 + 6 + 10  # all biases


def test_the_smallest_weights_of_each_layer_go():
    task = one(mlp(2))
    x = torch.arange(1, task.d + 1, dtype=task.dtype) * (-1) ** torch.arange(task.d)
    mask = torch.ones_like(x)
    mask[:10] = 0  # gone before: do not count among the smallest again
    keep = pruned(task, x, mask, 0.25)
    gone = (keep == 0).nonzero()[:, 0].tolist()
    hidden = list(range(10, 10 + round(0.25 * 118)))
    last = 128 + 2  # the last layer's weights follow the first one's biases
    assert gone == hidden + list(range(last, last + round(0.125 * 20)))
    assert (pruned(task, x, mask, 0.0) == 1).all()


def test_the_control_has_the_same_masks_and_other_values():
    task = one()
    ticket = models(lottery_ticket, 4, task=task, **HOW)
    control = models(lottery_ticket, 4, task=task, redraw=True, **HOW)
    other = task.network.init(0, "redraw", task.seed, dtype=task.dtype)
    close(control[1], train(task, [0], other, seed=(0, 0), **HOW)[0])
    for a, b in zip(ticket[2:], control[2:], strict=True):
        for v, w in zip(weights(task, a), weights(task, b), strict=True):
            assert torch.equal(v == 0, w == 0) and (v == 0).any()
        assert (a != b).any()


def test_a_ticket_needs_its_device():
    world = World(1, churn=leaves(0, 0, 1e3))
    found = values(lottery_ticket, 2, task=one(), world=world, **HOW)
    assert all(e["left"] == 1 and torch.equal(x, found[0][0]) for x, e in found)
    assert world.busy[0] == 0 and world.clock > 0
    calm, control = World(1), World(1)
    values(lottery_ticket, 3, task=one(), world=calm, **HOW)
    values(lottery_ticket, 3, task=one(), world=control, redraw=True, **HOW)
    assert calm.messages == control.messages == 0
    assert control.clock == pytest.approx(2 * calm.clock)  # two trainings a round


# ---- scan --------------------------------------------------------------------------------------


def exits(network=None, **how):
    how = dict(n=1, samples=60, network=network or mlp(6, 8, 5), dtype=torch.float64) | how
    return EarlyExits("digits", **how)


def test_exits_by_hand():
    task = exits()
    x, images = task.init(), task.x[:7]
    outputs, found = task.exits(x, images)
    assert len(outputs) == len(found) == 3 and all(z.shape == (7, 10) for z in outputs)
    assert all(f.shape == (7, 5) for f in found)
    close(outputs[-1], task.network(x[: task.network.d], images))
    W, b, *_ = task.network.views(x[: task.network.d])
    h = (images.flatten(1) @ W.T + b).relu()
    sizes = [3 * 6, 3, 6 * 3, 6, 5 * 6, 5, 10 * 5, 10]
    A, a, U, u, V, v, C, c = x[task.network.d :].split(
        [*sizes, task.d - task.network.d - sum(sizes)]
    )[:8]
    mask = torch.sigmoid((h @ A.view(3, 6).T + a).relu() @ U.view(6, 3).T + u)
    f = ((mask * h) @ V.view(5, 6).T + v).relu()
    close(found[0], f)
    close(outputs[0], f @ C.view(10, 5).T + c)
    assert task.d - task.network.d == sum(sizes) + 4 * 8 + 4 + 8 * 4 + 8 + 5 * 8 + 5 + 50 + 10


def test_exits_of_maps_see_them_pooled():
    """4 maps of 8 x 8, pooled to 2 x 2, stand in for 16 numbers; so do the deepest exit's."""
    task = exits(cnn(4, 6))
    assert task.shapes[0::2] == [(8, 16), (16, 8), (24, 16), (10, 24)]
    x, images = task.init(), task.x[:5]
    outputs, found = task.exits(x, images)
    assert [f.shape for f in found] == [(5, 24)] * 2
    close(outputs[-1], task.network(x[: task.network.d], images))
    maps = torch.relu(F.conv2d(images, *task.network.views(x[: task.network.d])[:2], padding=1))
    h = maps.unflatten(2, (2, 4)).unflatten(4, (2, 4)).mean((3, 5)).flatten(1)
    parts = x[task.network.d :].split([prod(s) for s in task.shapes])
    A, a, U, u, V, v, C, c = (p.view(s) for p, s in zip(parts, task.shapes, strict=True))
    f = ((torch.sigmoid((h @ A.T + a).relu() @ U.T + u) * h) @ V.T + v).relu()
    close(outputs[0], f @ C.T + c)


def test_one_exit_is_plain_training():
    task, plain = exits(mlp(6)), small(n=1, samples=60, network=mlp(6))
    assert task.d == plain.d and torch.equal(task.init(), plain.init())
    found = models(scan, 3, task=task, **HOW)
    close(found, models(student_hard_labels, 3, task=plain, **HOW), 1e-12)


def test_scan_moves_by_its_loss():
    """Written out: the deepest exit's outputs and features are constants for the others."""
    task, a, lam, T = exits(), 0.4, 0.03, 2.0
    found, x = models(scan, 2, task=task, a=a, lam=lam, T=T, **HOW), task.init()
    for r in range(2):
        for rows in batches(task, 0, (0, r), B=8, K=3):
            fixed, top = (v[-1] for v in task.exits(x, task.x[rows]))
            x = x.detach().requires_grad_()
            outputs, features = task.exits(x, task.x[rows])
            loss = F.cross_entropy(outputs[-1], task.y[rows])
            p = torch.softmax(fixed / T, 1)
            for z, f in zip(outputs[:-1], features[:-1], strict=True):
                log_q = torch.log_softmax(z / T, 1)
                loss = loss + a * T**2 * (p * (p.log() - log_q)).sum(1).mean()
                loss = loss - (1 - a) * torch.log_softmax(z, 1)[range(len(z)), task.y[rows]].mean()
                loss = loss + lam * ((f - top) ** 2).sum() / len(f)
            x = (x - 0.1 * torch.autograd.grad(loss, x)[0]).detach()
        close(found[r + 1], x, 1e-10)


def slope(task, **how):
    x = task.init().requires_grad_()
    (g,) = torch.autograd.grad(exits_loss(task, x, torch.from_numpy(task.rows(0)), **how), x)
    return g


def test_the_teacher_learns_from_labels_alone():
    """No gradient of the KL or of the features reaches the deepest classifier, nor the layers
    behind the last early exit; the shared layers feel them."""
    task = exits()
    last = task.network.layers[-2].params  # the third hidden layer, behind both early exits
    deep = slice(last.start, task.network.d)
    labels = slope(task, a=0.0, lam=0.0, T=3.0)
    for how in (dict(a=0.5, lam=0.0), dict(a=0.0, lam=0.5), dict(a=1.0, lam=1.0)):
        taught = slope(task, T=3.0, **how)
        close(taught[deep], labels[deep])
        assert (taught[: last.start] - labels[: last.start]).abs().max() > 1e-4


def test_without_teaching_it_is_deep_supervision():
    """a = lam = 0: the sum of all exits' cross-entropies."""
    task = exits()
    x, rows = task.init().requires_grad_(), torch.from_numpy(task.rows(0))
    loss = sum(F.cross_entropy(z, task.y[rows]) for z in task.exits(x, task.x[rows])[0])
    (g,) = torch.autograd.grad(loss, x)
    close(slope(task, a=0.0, lam=0.0, T=3.0), g)


def test_thresholds():
    z = torch.log(
        torch.tensor([[[0.9, 0.1], [0.6, 0.4]], [[0.5, 0.5], [0.2, 0.8]], [[0.5, 0.5]] * 2])
    )
    assert leaves_at(z, 0.0).tolist() == [0, 0]  # the first exit only
    assert leaves_at(z, 0.7).tolist() == [0, 1]
    assert leaves_at(z, 0.85).tolist() == [0, 2]
    assert leaves_at(z, 1.01).tolist() == [2, 2]  # the last exit only


def test_what_a_cascade_costs_and_finds():
    task = exits()
    a, b, c = task.flops().tolist()
    heads = [2 * (6 * 3 * 2 + 6 * 5 + 50), 2 * (8 * 4 * 2 + 8 * 5 + 50)]
    assert a == 2 * 64 * 6 + heads[0]
    assert b == a + 2 * 6 * 8 + heads[1]
    assert c == b + 2 * 8 * 5 + 2 * 50
    x = task.init()
    task.thresholds = (0.0, 1.01)
    found = task.details(x[None])
    assert found["flops at 0"] == a and found["flops at 1.01"] == c
    assert found["accuracy at 0"] == found["exit 1"]
    assert (
        found["accuracy at 1.01"] == found["exit 3"] == pytest.approx(task.evaluate(x[None])[0][0])
    )
    right = (task.exits(x, task.x_test)[0][1].argmax(1) == task.y_test).double().mean()
    assert found["exit 2"] == pytest.approx(float(right))


def test_scan_learns_sends_nothing_and_waits_for_its_device():
    task, world = exits(), World(1)
    history = run(scan, task, world, rounds=3, **HOW, seed=0)
    assert history["loss"].iloc[-1] < history["loss"].iloc[0] and "exit 2" in history
    assert world.messages == 0 and world.clock > 0
    away = World(1, churn=leaves(0, 0, 1e3))
    found = models(scan, 2, task=task, world=away, **HOW)
    assert (found == found[0]).all() and away.clock > 0
    with pytest.raises(UsageError, match="EarlyExits"):
        next(scan(one(), World(1), **HOW))


# ---- knowledge_points --------------------------------------------------------------------------


def linear(a):
    """An MLP whose hidden layer's first unit is a . x + 50, never cut off by its ReLU, and whose
    others are constant."""
    network = Network(mlp(3), (1, 8, 8), 10)
    x = network.init(0, dtype=torch.float64)
    W, b, *_ = network.views(x)
    W.zero_()
    W[0], b[:] = a, 50.0
    return network, x


def test_what_a_linear_layer_discards():
    """sigma_i = sigma ||a|| / (sqrt(D) |a_i|): proportional to 1 / |a_i|, within the budget."""
    a = torch.linspace(0.2, 1.5, 64, dtype=torch.float64) * (-1) ** torch.arange(64)
    network, x = linear(a)
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    H = discarded(network, x, images, sigma=0.02)
    s = 0.02 * a.norm() / 8 / a.abs()
    assert s.max() < 1
    close(H, (s.log() + 0.5 * math.log(2 * math.pi * math.e)).expand(2, -1), 1e-9)
    spent = (
        a**2 * (H[0] - 0.5 * math.log(2 * math.pi * math.e)).exp() ** 2
    ).sum() / a.square().sum()
    assert float(spent) == pytest.approx(0.02**2, rel=1e-6)


def test_an_unseen_pixel_is_discarded_up_to_the_cap():
    a = torch.ones(64, dtype=torch.float64)
    a[7] = 0
    network, x = linear(a)
    H = discarded(network, x, torch.zeros(1, 1, 8, 8).double(), sigma=0.02, most=0.5)[0]
    s = (H - 0.5 * math.log(2 * math.pi * math.e)).exp()
    assert float(s[7]) == pytest.approx(0.5)
    seen = torch.arange(64) != 7
    close(s[seen], torch.full((63,), 0.02 * (63 / 64) ** 0.5).double(), 1e-9)


def test_the_scale_of_a_layer_does_not_matter():
    task = one(mlp(9))
    x, images = task.init(), task.x_test[:3]
    wide = x.clone()
    for v in task.network.views(wide)[:2]:
        v *= 7
    close(discarded(task.network, wide, images), discarded(task.network, x, images), 1e-9)


def test_discarded_has_converged():
    """So many steps suffice for a layer that is bent by its ReLU."""
    task = one(mlp(9))
    x = train(task, [0], task.init(), K=50, B=8, eta=0.1, seed=0)[0]
    few, many = (discarded(task.network, x, task.x_test[:3], steps=s) for s in (60, 300))
    close(few, many, 1e-2)


def test_points_are_counted_and_travel_adds_up():
    task = one(mlp(9))
    how = dict(teacher=QUICK, a=0.7, T=2.0, **HOW)
    found = values(knowledge_points, 4, task=task, images=3, **how)
    kd = models(kd_logits, 4, task=task, **how)
    assert torch.equal(torch.stack([x for x, _ in found]), kd)
    steps = (kd[1:] - kd[:-1]).norm(dim=1) / kd[0].norm()
    for r, (x, extra) in enumerate(found):
        assert extra["travel"] == pytest.approx(float(steps[:r].sum()))
        H, pixels = discarded(task.network, x, task.x_test[:3]), task.x_test[:3].flatten(1)
        background = []
        for i in range(3):
            background += [float(H[i, k]) for k in range(64) if pixels[i, k] <= pixels[i].mean()]
        counts = dict(foreground=0, background=0)
        for i in range(3):
            for k in range(64):
                if np.mean(background) - H[i, k] > 0.2:
                    bright = pixels[i, k] > pixels[i].mean()
                    counts["foreground" if bright else "background"] += 1
        for name, count in counts.items():
            assert extra[name] == pytest.approx(count / 3)


def test_points_without_teacher_are_those_of_hard_labels():
    task = one(mlp(9))
    found = values(knowledge_points, 2, task=task, images=2, a=0.0, **HOW)
    hard = models(student_hard_labels, 2, task=task, **HOW)
    assert torch.equal(torch.stack([x for x, _ in found]), hard)


def test_points_of_a_linear_layer_by_hand(monkeypatch):
    """H_i = const - log |a_i|: a point weighs over e^b times the background's geometric mean. Here
    the background weighs 1; of the foreground, one pixel in two weighs 1.3 and the others 1.1:
    e^0.2 = 1.22 leaves the former, e^0.05 = 1.05 all and e^0.3 = 1.35 none."""
    task = one(mlp(3))
    image = task.x_test[:1].flatten()
    front = (image > image.mean()).nonzero().flatten()
    a = torch.ones(64, dtype=torch.float64)
    a[front], a[front[::2]] = 1.1, 1.3
    _, x = linear(a)
    monkeypatch.setattr(task, "init", lambda: x)
    for b, by_hand in ((0.2, len(front[::2])), (0.05, len(front)), (0.3, 0)):
        how = dict(teacher=QUICK, images=1, sigma=0.02, b=b, **HOW)
        (_, extra), *_ = values(knowledge_points, 0, task=task, **how)
        assert extra == dict(foreground=by_hand, background=0, travel=0)
