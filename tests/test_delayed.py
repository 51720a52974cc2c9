"""Delays and the steps that bear them: AsySG, delayed mirror descent, asynchronous Kaczmarz."""

from itertools import islice

import numpy as np
import pytest
import torch
from conftest import Deaf, close, models, small, values

from survey_lib.errors import UsageError
from survey_lib.methods.delayed import (
    async_linear_systems,
    asysg_con,
    delayed_mirror_descent,
    sync_linear_systems,
)
from survey_lib.methods.server_async import constant, sasgd
from survey_lib.presets import Device, Link
from survey_lib.problems import LinearSystem, LogisticPool
from survey_lib.streams import uniform
from survey_lib.training import batch_gradients
from survey_lib.world import World, exponential

CHIP = Device(1e8, 1e9, 1, 2, 3, "")
AT_ONCE = Link(0.0, np.inf, np.inf)
B = 8


def fleet(n, **how):
    """Equal devices that deliver in turn, unless `jitter` is given."""
    return World(n, device=CHIP, link=AT_ONCE, **how)


def run(method, task, steps, world=None, **how):
    """(models (steps + 1, d), delays)."""
    found = values(method, steps, task=task, world=world or fleet(task.n), **how)
    return torch.stack([x for x, _ in found]), [e["delay"] for _, e in found[1:]]


def moved(averages):
    """The points (T + 1, d) of which the averages are yielded; the first is the start."""
    t = torch.arange(len(averages))[:, None]
    return torch.cat([averages[:1], t[1:] * averages[1:] - (t[1:] - 1) * averages[:-1]])


def in_turn(n, x, steps, server):
    """Points (steps + 1, d) when n equal devices deliver in turn. server(i, k, x, sent) -> x: the
    gradient number k of device i, which began at `sent` after so many gradients."""
    sent, begun, out = [x] * n, [0] * n, [x]
    for k in range(steps):
        i = k % n
        x = server(i, begun[i], x, sent[i])
        out.append(x)
        sent[i], begun[i] = x, k + 1
    return torch.stack(out)


# ---- AsySG ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "M"), [(1, 1), (4, 1), (4, 3)])
def test_consistent_reads_are_asynchronous_sgd(n, M):
    how = dict(task=small(n), rounds=9, B=B)
    expected = models(sasgd, world=fleet(n), alpha_0=M * 0.2, s=constant(), c=M, **how)
    close(models(asysg_con, world=fleet(n), gamma=0.2, M=M, **how), expected)


def test_one_device_adds_up_m_gradients_at_the_same_model():
    task, gamma, M = small(1), 0.1, 3
    x = [task.init()]
    for k in range(4):
        keys = [[(0, M * k + m)] for m in range(M)]
        x.append(
            x[k] - gamma * sum(batch_gradients(task, [0], x[k][None], B=B, seed=v)[0] for v in keys)
        )
    found, delays = run(asysg_con, task, 4, gamma=gamma, M=M, B=B)
    close(found, torch.stack(x))
    assert set(delays) == {0.0}


def test_the_delay_of_devices_in_turn():
    _, delays = run(asysg_con, small(5), 12, gamma=0.1, B=B)
    assert delays == [0, 1, 2, 3, *[4] * 8]
    _, delays = run(asysg_con, small(5), 9, gamma=0.1, B=B, M=5)  # all began one update before
    assert delays[0] == 0 and all(0 < d <= 1 for d in delays[1:])
    _, delays = run(asysg_con, small(8), 1500, world=fleet(8, jitter=exponential()), gamma=0.0, B=1)
    delays = np.array(delays[50:])  # geometric: mean n - 1, variance n (n - 1)
    assert abs(delays.mean() - 7) < 4 * np.sqrt(56 / len(delays))


@pytest.mark.parametrize("tau", [0, 1, 2, 10])
def test_the_step_at_which_a_delay_diverges(tau):
    """x_{k+1} = x_k - gamma (x_{k - tau} - x*): stable if and only if gamma < 2 sin(pi / (2 (2 tau
    + 1)))."""
    limit = 2 * np.sin(np.pi / (2 * (2 * tau + 1)))
    task = LinearSystem(n=tau + 1, m=1, d=1)
    steps = 300 * (tau + 1)
    for factor, holds in ((0.97, True), (1.03, False)):
        x, _ = run(asysg_con, task, steps, gamma=factor * limit, B=1)
        constant_step = dict(L=1 / (factor * limit), eta=0.0, B=1)
        z = moved(run(delayed_mirror_descent, task, steps, **constant_step)[0])
        for points in (x, z):
            error = (points - task.best).abs()[-2 * tau - 5 :].max() / task.best.abs()
            assert (error < 0.2).all() if holds else (error > 5).all()


def test_a_read_without_missing_updates_is_consistent():
    how = dict(task=small(3), rounds=10, gamma=0.1, B=B)
    a = models(asysg_con, world=fleet(3), **how)
    assert torch.equal(a, models(asysg_con, world=fleet(3), window=6, missed=0.0, **how))
    assert not torch.equal(a, models(asysg_con, world=fleet(3), window=6, missed=0.5, **how))


def test_a_read_that_misses_all_is_of_an_older_version():
    """One device that misses the last 3 updates: x_{k+1} = x_k - gamma g(x_{k-3})."""
    task, gamma, x = small(1), 0.1, [small(1).init()]
    for k in range(10):
        old = x[max(k - 3, 0)]
        x.append(x[-1] - gamma * batch_gradients(task, [0], old[None], B=B, seed=[(0, k)])[0])
    found, _ = run(asysg_con, task, 10, gamma=gamma, B=B, window=3, missed=1.0)
    close(found, torch.stack(x))


def test_so_many_coordinates_are_written():
    task = small(3)
    full = models(asysg_con, 6, task=task, world=fleet(3), gamma=0.1, B=None)
    x = models(asysg_con, 6, task=task, world=fleet(3), gamma=0.1, B=None, coordinates=40)
    changed = (x[1:] != x[:-1]).sum(1)
    assert (changed <= 40).all() and (changed > 20).all()  # some gradients are 0 at blank pixels
    where = x[1] != x[0]
    close(x[1][where], full[1][where])
    every = models(asysg_con, 6, task=task, world=fleet(3), gamma=0.1, B=None, coordinates=task.d)
    close(every, full)


# ---- delayed mirror descent ----------------------------------------------------------------------


def test_with_a_constant_step_both_are_sgd():
    task = small(1)
    out = [task.init()]
    for k in range(8):
        g = batch_gradients(task, [0], out[-1][None], B=B, seed=[(0, k)])[0]
        out.append(out[-1] - 0.2 * g)
    for dual in (False, True):
        found, _ = run(delayed_mirror_descent, task, 8, L=5.0, eta=0.0, B=B, dual=dual)
        close(moved(found), torch.stack(out), 1e-11)
        close(found[-1], torch.stack(out[1:]).mean(0))


@pytest.mark.parametrize("dual", [False, True])
def test_against_the_formulas_line_by_line(dual):
    """n = 4 workers in turn: tau = 3; the first 4 gradients are all at the start."""
    task, n, L, eta, R, sums = LogisticPool(n=4), 4, 4.0, 0.5, 0.3, [0.0, 0]

    def server(i, key, x, sent):
        g = task.sampled([i], sent[None], B=B, seed=[(0, key)])[0]
        sums[0], sums[1] = sums[0] + g, sums[1] + 1
        t = sums[1]
        if dual:
            point = -sums[0] / (L + eta * (t + 1 + 3) ** 0.5)
        else:
            point = x - g / (L + eta * (t + 3) ** 0.5)
        return point * min(1.0, R / point.norm().item())

    expected = in_turn(n, task.init(), 30, server)
    found, delays = run(delayed_mirror_descent, task, 30, L=L, eta=eta, R=R, B=B, dual=dual)
    close(moved(found), expected, 1e-11)
    assert delays == [0, 1, 2, *[3] * 27]
    length = moved(found).norm(dim=1)
    assert (length <= R + 1e-10).all() and (length > R - 1e-10).sum() > 5


def test_the_first_gradients_are_those_of_the_start():
    """x(2) .. x(n + 1) of dual averaging follow from n gradients at x(1) alone, each worker's on
    samples of its own."""
    task, n = LogisticPool(n=5), 5
    G = task.sampled(range(n), torch.zeros(n, task.d).double(), B=B, seed=[(0, 0)] * n)
    assert len(G.unique(dim=0)) == n
    found = moved(run(delayed_mirror_descent, task, n, L=3.0, eta=0.0, B=B, dual=True)[0])
    close(found[1:], -G.cumsum(0) / 3.0)


def test_it_learns_and_runs_on_a_task():
    task = LogisticPool(n=6)
    found, _ = run(delayed_mirror_descent, task, 1500, L=4.0, eta=1.0, B=4)
    gap = task.evaluate(found[[0, 150, 1500]])[1]
    assert gap[0] > 1.3 * gap[1] > 1.3**2 * gap[2] > 0
    x, _ = run(delayed_mirror_descent, small(3), 40, L=2.0, eta=0.1, B=B)
    assert small(3).evaluate(x[[0, -1]])[0][1] > 0.5


# ---- linear systems ------------------------------------------------------------------------------


def drawn(task, key, i=0):
    """The row that worker i draws by a key."""
    return int(uniform(np.arange(1), "rows", key, i)[0] * len(task.b))


def test_one_processor_is_randomised_kaczmarz():
    task = LinearSystem(n=1, m=20, d=5)
    x, delays = run(async_linear_systems, task, 40)
    for k in range(40):
        a, b = task.A[drawn(task, (0, k))], task.b[drawn(task, (0, k))]
        close(x[k + 1], x[k] - a * (a @ x[k] - b))
        close(a @ x[k + 1], b)
    assert set(delays) == {0}


def test_the_mean_squared_error_contracts_as_it_should():
    """E ||e_{k+1}||^2 = e^T (I - A^T A / m) e <= (1 - sigma_min^2 / ||A||_F^2) ||e||^2."""
    task = LinearSystem(n=1, m=30, d=6)
    e0 = task.best.square().sum().item()
    e = [
        (models(async_linear_systems, 1, task=task, seed=seed)[1] - task.best).square().sum().item()
        for seed in range(400)
    ]
    expected = e0 - (task.A @ task.best).square().mean().item()
    assert abs(np.mean(e) - expected) < 4 * np.std(e) / 20
    smallest = torch.linalg.svdvals(task.A)[-1].item()
    assert expected <= (1 - smallest**2 / 30) * e0 + 1e-12


def test_the_damped_update_by_hand():
    """Three processors in turn, omega = 1.5, theta = 0.4."""
    task = LinearSystem(n=3, m=20, d=5)

    def server(i, key, x, sent):
        a, b = task.A[drawn(task, (0, key), i)], task.b[drawn(task, (0, key), i)]
        return 0.6 * x + 0.4 * (sent - 1.5 * a * (a @ sent - b))

    expected = in_turn(3, task.init(), 20, server)
    found, delays = run(async_linear_systems, task, 20, omega=1.5, theta=0.4)
    close(found, expected)
    assert delays == [0, 1, *[2] * 18]


@pytest.mark.parametrize("method", [async_linear_systems, sync_linear_systems])
def test_a_solution_is_kept_and_the_row_space_is_not_left(method, monkeypatch):
    task = LinearSystem(n=4, m=10, d=30)  # fewer equations than unknowns
    x = models(method, 60, task=task, world=fleet(4), omega=1.3)
    outside = torch.eye(30).double() - torch.linalg.pinv(task.A) @ task.A
    assert x[-1].norm() > 0.1
    close(x @ outside, torch.zeros_like(x))
    monkeypatch.setattr(task, "init", lambda: task.best)
    x = models(method, 60, task=task, world=fleet(4), omega=1.3)
    close(x, task.best.expand(61, -1))


def test_orthogonal_rows_are_solved_when_each_was_drawn():
    task = LinearSystem(n=1, m=6, d=6)
    task.A = torch.linalg.qr(task.A)[0]
    task.b = task.A @ task.best
    x, _ = run(async_linear_systems, task, 60)
    rows = [drawn(task, (0, k)) for k in range(60)]
    last = next(k for k in range(60) if len(set(rows[: k + 1])) == 6)
    close(x[last + 1], task.best, 1e-10)
    assert (x[last] - task.best).norm() > 1e-3


def test_the_synchronous_method():
    """One processor: the asynchronous one. More: the mean; of those that answer."""
    one = LinearSystem(n=1, m=20, d=5)
    how = dict(task=one, omega=0.8, rounds=15)
    close(models(sync_linear_systems, **how), models(async_linear_systems, **how))
    task = LinearSystem(n=3, m=20, d=5)
    for world, heard in ((fleet(3), (0, 1, 2)), (Deaf(3, [1]), (0, 2))):
        x = models(sync_linear_systems, 4, task=task, world=world, omega=1.5)
        for r in range(4):
            rows = [drawn(task, (0, r), i) for i in heard]
            steps = [task.A[k] * (task.A[k] @ x[r] - task.b[k]) for k in rows]
            close(x[r + 1], x[r] - 1.5 * torch.stack(steps).mean(0))


def test_bytes_and_time():
    task = LinearSystem(n=4, m=20, d=5)
    world = fleet(4)
    run(async_linear_systems, task, 12, world=world)
    assert world.up.sum() == 12 * 8 * 5 and world.down.sum() == 15 * 8 * 5
    assert world.clock == pytest.approx(3 * task.flops / 1e8)
    world = fleet(4)
    list(islice(sync_linear_systems(task, world), 4))
    assert world.up.sum() == world.down.sum() == 3 * 4 * 8 * 5
    assert world.clock == pytest.approx(3 * task.flops / 1e8)


@pytest.mark.parametrize("method", [async_linear_systems, sync_linear_systems])
def test_it_converges_under_loss_and_uneven_speeds(method):
    task = LinearSystem(n=4, m=40, d=8)
    world = World(4, device=CHIP, link="wifi", loss=0.2, jitter=exponential())
    x = models(method, 1200 if method is async_linear_systems else 400, task=task, world=world)
    error = (x - task.best).norm(dim=1) / task.best.norm()
    assert error[-1] < 1e-4
    assert world.messages > 0 and np.isfinite(world.clock)


def test_a_linear_system_is_asked_for():
    for method in (async_linear_systems, sync_linear_systems):
        with pytest.raises(UsageError, match="LinearSystem"):
            next(iter(values(method, 1, task=small(2))))
