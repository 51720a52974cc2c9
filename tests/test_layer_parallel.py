"""Tensor and layer parallelism against serial training, closed forms and hand-made cases."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import close, leaves, models, small
from torch.nn import functional as F

from survey_lib import multigrid
from survey_lib.errors import UsageError
from survey_lib.methods.gossip import allreduce_sgd
from survey_lib.methods.layer_parallel import (
    megatron_tensor_parallel,
    mgrit_layer_parallel,
    shares,
)
from survey_lib.methods.pipelines import single_device
from survey_lib.models import Network, cnn, logistic, mlp, residual
from survey_lib.presets import Device, Link
from survey_lib.world import World

FREE = Link(0.0, np.inf, np.inf)


def serial(task, steps, *, eta, B, seed=0):
    return models(single_device, steps, task=task, world=World(1), eta=eta, B=B, seed=seed)


# ---- megatron_tensor_parallel


@pytest.mark.parametrize("p", [1, 2, 4])
@pytest.mark.parametrize("hidden", [(20,), (12, 14, 10)])
def test_any_split_is_serial_sgd(p, hidden):
    t, how = small(p, network=mlp(*hidden)), dict(eta=0.3, B=14, seed=2)
    want = serial(t, 20, **how)
    fleets = [World(p), World(p, device=[unequal(v) for v in (4e9, 3e9, 1e9, 1.5e9)[:p]])]
    for world in fleets:
        close(models(megatron_tensor_parallel, 20, task=t, world=world, **how), want)
    assert (want[-1] - want[0]).abs().max() > 0.05


def unequal(speed):
    return Device(speed, 1e9, 1.0, 2.0, 1.5, "assumed")


def test_shares():
    assert [(s.start, s.stop) for s in shares(8, [1.0, 1.0])] == [(0, 4), (4, 8)]
    assert [(s.start, s.stop) for s in shares(9, [2.0, 1.0])] == [(0, 6), (6, 9)]
    assert [(s.start, s.stop) for s in shares(2, [1.0, 1.0, 100.0])] == [(0, 0), (0, 0), (0, 2)]


def test_some_devices_may_get_nothing():
    t, how = small(3, network=mlp(5)), dict(eta=0.3, B=10)
    world = World(3, device=[unequal(v) for v in (1.0, 1.0, 1e9)])
    close(models(megatron_tensor_parallel, 5, task=t, world=world, **how), serial(t, 5, **how))


def test_rows_first_would_be_wrong():
    """relu(sum_i X_i A_i) is not sum_i relu(X_i A_i): split by inputs first, a block would need an
    all-reduce before its non-linearity."""
    rng = torch.Generator().manual_seed(0)
    X, A = (torch.randn(6, 6, generator=rng, dtype=torch.float64) for _ in range(2))
    whole = F.relu(X @ A)
    columns = torch.cat([F.relu(X @ A[:, p]) for p in shares(6, [1.0, 1.0])], 1)
    rows = sum(F.relu(X[:, p] @ A[p]) for p in shares(6, [1.0, 1.0]))
    close(columns, whole)
    assert (rows - whole).abs().max() > 0.1


@pytest.mark.parametrize("p", [2, 4])
def test_bytes_and_seconds_of_a_step(p):
    """Blocks 64-32-20 and 20-16-10, B = 8, numbers of 8 bytes: all-reduces of 20 B and 10 B forward
    and 20 B backward. A ring of p moves 2 (p - 1) / p of the payload per device, in 2 (p - 1) hops
    of a p-th; computing takes 2 B per multiply-add with a part of the weights, forward, and twice
    that backward, without dX of the first block."""
    t, B, steps = small(p, network=mlp(32, 20, 16)), 8, 3
    speed, latency, rate = 1e9, 0.001, 1e6
    world = World(p, device=unequal(speed), link=Link(latency, rate, rate))
    models(megatron_tensor_parallel, steps, task=t, world=world, eta=0.1, B=B)
    payload = [8 * B * w for w in (20, 10, 20)]
    assert world.up.tolist() == pytest.approx([steps * 2 * (p - 1) / p * sum(payload)] * p)
    fa, fw, ga, gw = 64 * 32, 32 * 20, 20 * 16, 16 * 10
    flops = 2 * B / p * (fa + fw + ga + gw + (2 * gw + 2 * ga) + (2 * fw + fa))
    hops = 2 * (p - 1)
    air = sum(hops * (latency + size / p / rate) for size in payload)
    assert world.clock == pytest.approx(steps * (flops / speed + air), rel=1e-9)


def test_one_device_sends_nothing():
    world = World(1)
    models(megatron_tensor_parallel, 3, task=small(1, network=mlp(9)), world=world, eta=0.1, B=8)
    assert world.totals()["bytes"] == world.messages == 0


def test_traffic_depends_on_the_batch_and_not_on_the_width():
    sent = {}
    for hidden, B in itertools.product((64, 512), (8, 16)):
        t = small(2, network=mlp(hidden))
        worlds = World(2), World(2)
        models(megatron_tensor_parallel, 1, task=t, world=worlds[0], eta=0.1, B=B)
        models(allreduce_sgd, 1, task=t, world=worlds[1], eta=0.1, B=B // 2)
        sent[hidden, B] = [w.up.sum() for w in worlds]
    tensor, data = (np.array([[sent[h, B][k] for B in (8, 16)] for h in (64, 512)]) for k in (0, 1))
    assert (tensor[0] == tensor[1]).all() and (tensor[:, 1] == 2 * tensor[:, 0]).all()
    assert (data[:, 0] == data[:, 1]).all() and (data[1] > 7 * data[0]).all()


def test_tensor_parallelism_under_churn_and_loss():
    t, how = small(3, network=mlp(9)), dict(eta=0.3, B=10)
    want = serial(t, 6, **how)
    world = World(3, churn=leaves(1, 0.0))
    close(models(megatron_tensor_parallel, 6, task=t, world=world, **how), want)
    assert world.busy[1] == 0 and world.busy[0] > 0
    world = World(3, loss=0.5)
    close(models(megatron_tensor_parallel, 6, task=t, world=world, **how), want)
    assert world.lost > 0
    trace = pd.concat([leaves(i, 0.0, 1.5) for i in range(3)])
    got = models(megatron_tensor_parallel, 8, task=t, world=World(3, churn=trace), **how)
    assert torch.equal(got[0], got[2]) and not torch.equal(got[2], got[3])


@pytest.mark.parametrize("build", [logistic(), mlp(8, 8), cnn(2, 3)])
def test_only_pairs_of_linear_layers(build):
    with pytest.raises(UsageError, match="odd number of hidden layers"):
        models(megatron_tensor_parallel, 1, task=small(1, network=build), eta=0.1, B=8)


# ---- multigrid


def dynamics(N, w=3, seed=0, scale=1.0, h=0.25):
    """u + h tanh(W_n u), with unlike W_n; and the states one after the other."""
    rng = torch.Generator().manual_seed(seed)
    W = scale * torch.randn(N, w, w, generator=rng, dtype=torch.float64)
    u = torch.randn(2, w, generator=rng, dtype=torch.float64)

    def push(n, v, step=h):
        return v + step * torch.tanh(v @ W[n].mT)

    states = [u]
    for n in range(N):
        states.append(push(torch.tensor([n]), states[-1][None])[0])
    return push, u, torch.stack(states), h


@pytest.mark.parametrize("relax", ["F", "FCF"])
def test_exact_after_so_many_iterations_and_not_before(relax):
    """N / c = 8 intervals. The first begins at the given state; an iteration of F makes the
    beginning of one more of them exact, one of FCF of two; the last march does the rest. So F takes
    7 iterations (8 without that march) and FCF 4."""
    push, u, want, h = dynamics(32)
    gain = len(relax) // 2 + 1
    for iterations in range(9):
        got = multigrid.solve(push, u, 32, 4, h, iterations, relax)
        gap = (got - want).abs().amax((1, 2))
        exact = min(8, 1 + gain * iterations)  # intervals
        assert gap[: 4 * exact].max() < 1e-13
        assert (gap.max() < 1e-13) == (exact == 8)


def test_one_block_per_layer_is_exact_after_one_iteration():
    push, u, want, h = dynamics(8)
    close(multigrid.solve(push, u, 8, 1, h, 1), want)
    close(multigrid.solve(push, u, 8, 1, h, 0), want)  # the coarse chain is the fine one
    close(multigrid.solve(push, u, 8, 4, h, None), want)


def test_an_iteration_by_hand():
    """Three intervals of 4 layers. The coarse chain goes on by 4 h at the weights of an interval's
    first layer. Its corrections cancel in the first interval, which leaves the march from u."""
    push, u, _, h = dynamics(12)

    def coarse(n, v):
        return push(torch.tensor([n]), v[None], step=4 * h)[0]

    def march(n, v):
        for k in range(n, n + 4):
            v = push(torch.tensor([k]), v[None])[0]
        return v

    guess = multigrid.solve(push, u, 12, 4, h, 0)
    close(guess[4], coarse(0, u))
    close(guess[8], coarse(4, guess[4]))
    once = multigrid.solve(push, u, 12, 4, h, 1, "F")
    close(once[4], march(0, u))
    close(once[8], coarse(4, once[4]) + march(4, guess[4]) - coarse(4, guess[4]))
    assert (once[8] - march(4, once[4])).abs().max() > 1e-6


def test_without_weights_nothing_moves():
    push, u, want, h = dynamics(8, scale=0.0)
    for relax in ("F", "FCF"):
        close(multigrid.solve(push, u, 8, 4, h, 1, relax), u.expand(9, -1, -1))
    close(want, u.expand(9, -1, -1))


def test_smooth_weights_are_what_it_lives_on():
    """Interpolated weights and a small step: each iteration gains far more than with independent
    weights of the same size."""
    gain = {}
    for knots, h in ((3, 0.25), (3, 1 / 16), (32, 0.25)):
        t = small(1, network=residual(16, 32, knots=knots, h=h))
        body, (A, a, W, s, *_) = t.network.module[2], t.network.views(t.init())
        between = body.between.double()
        W, s = torch.einsum("nk,kij->nij", between, 2 * W), between @ s

        def push(n, v, step=h, W=W, s=s):
            return v + step * torch.tanh(v @ W[n].mT + s[n, None])

        u = t.x[:20].flatten(1) @ A.T + a
        want = multigrid.solve(push, u, 32, 4, h, None)
        gap = [float((multigrid.solve(push, u, 32, 4, h, k) - want).abs().max()) for k in range(4)]
        gain[knots, h] = gap[2] / gap[0]
    assert gain[3, 0.25] < 0.2 and gain[3, 1 / 16] < 0.01 < gain[3, 0.25]
    assert gain[32, 0.25] > 2 * gain[3, 0.25]


def test_wrong_blocks():
    push, u, _, h = dynamics(8)
    for how in (dict(c=3), dict(relax="CFC")):
        with pytest.raises(UsageError, match='use "F" or "FCF" and a divisor of 8'):
            multigrid.solve(push, u, 8, how.get("c", 4), h, 1, how.get("relax", "F"))


# ---- mgrit_layer_parallel


def deep(n=4, knots=3):
    return small(n, network=residual(6, 16, knots=knots))


@pytest.mark.parametrize("knots", [1, 3, 16])
def test_exact_iterations_are_serial_training(knots):
    t, how = deep(knots=knots), dict(eta=0.1, B=10)
    want = serial(t, 8, **how)
    assert (want[-1] - want[0]).abs().max() > 0.05
    exact = [dict(iterations=None), dict(iterations=4, relax="F"), dict(iterations=2)]
    for one in exact:
        got = models(mgrit_layer_parallel, 8, task=t, world=World(4), c=4, **one, **how)
        close(got, want)
    got = models(mgrit_layer_parallel, 8, task=t, world=World(4), c=4, iterations=0, **how)
    assert (got - want).abs().max() > 1e-6


def test_interpolation():
    body = Network(residual(4, 5, knots=3), (1, 8, 8), 10).module[2]
    want = [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]]
    assert body.between.tolist() == want
    same = Network(residual(4, 5, knots=5), (1, 8, 8), 10).module[2]
    assert torch.equal(same.between, torch.eye(5))


def test_seconds_on_equal_devices_with_free_links():
    """p = 4 devices with an interval each of c = 4 layers, l seconds a layer. In the coarse sweep
    device k is through at (k + 1) l. An iteration takes each 2 c l of relaxation (FCF) and l for
    the coarse step from its old state, side by side, and l for the one from the new state: device
    0 needs nobody, and device k is still k l behind. So the last one is through at
    (p + i (2 c + 2)) l after i iterations, and c l later after its last march. Backward as much,
    and c l for the gradients of the weights. Serial: N l and N l, and c l for the gradients of the
    device that gets the adjoint last; the others have taken theirs meanwhile."""
    t, B, speed, c, p = deep(), 10, 1e6, 4, 4
    layer = 2 * B * 36 / speed
    for k in (0, 1, 2, 3):
        world, how = World(p, device=unequal(speed), link=FREE), dict(c=c, eta=0.1, B=B)
        models(mgrit_layer_parallel, 1, task=t, world=world, iterations=k, **how)
        once = p + k * (2 * c + 2) + c
        assert world.clock == pytest.approx((2 * once + c) * layer, rel=1e-9)
    world = World(p, device=unequal(speed), link=FREE)
    models(mgrit_layer_parallel, 1, task=t, world=world, c=c, iterations=None, eta=0.1, B=B)
    assert world.clock == pytest.approx((2 * 16 + c) * layer, rel=1e-9)
    assert world.busy == pytest.approx(3 * c * layer, rel=1e-9)  # each has done its part


@pytest.mark.parametrize("relax, each", [("F", 2), ("FCF", 3)])
def test_messages(relax, each):
    """Per border, pass and iteration: one state after each relaxation and one in the coarse
    correction; and one in the first sweep."""
    t, B, p, iterations = deep(), 10, 4, 2
    world = World(p)
    models(mgrit_layer_parallel, 1, task=t, world=world, c=4, iterations=iterations, relax=relax,
           eta=0.1, B=B)  # fmt: skip
    count = 2 * (p - 1) * (1 + iterations * each)
    assert world.messages == count and world.up.sum() == count * 8 * B * 6


def test_layer_parallelism_under_churn_and_loss():
    t, how = deep(), dict(c=4, iterations=1, eta=0.1, B=10)
    want = models(mgrit_layer_parallel, 5, task=t, world=World(4), **how)
    lossy = World(4, loss=0.4)
    assert torch.equal(models(mgrit_layer_parallel, 5, task=t, world=lossy, **how), want)
    assert lossy.lost > 0
    gone = World(4, churn=leaves(2, 0.0))
    assert torch.equal(models(mgrit_layer_parallel, 5, task=t, world=gone, **how), want)
    assert gone.busy[2] == 0
    with pytest.raises(UsageError, match="models.residual"):
        models(mgrit_layer_parallel, 1, task=small(2), world=World(2), **how)
