"""The methods of server_sync that adapt what they send, or how often: gaia_asp, adaptive_tau."""

import itertools
import math

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
    losses,
    models,
    quadratic_gradients,
    same_data,
    small,
    values,
)

from survey_lib.methods import server_sync
from survey_lib.methods.gossip import allreduce_sgd, d_psgd
from survey_lib.methods.server_sync import (
    adaptive_tau,
    control,
    curvature,
    drift,
    fedavg,
    gaia_asp,
    gradients_and_losses,
    significant,
)
from survey_lib.models import mlp
from survey_lib.partition import dirichlet, iid, quantity, shards
from survey_lib.presets import Device, Link
from survey_lib.topology import complete, ring
from survey_lib.training import gradients, work
from survey_lib.world import World, exponential, loguniform

DEVICE = Device(1e6, 1e9, 1, 2, 1.5, "test")


class Drops(World):
    """A world in which some messages (exchange, receiver, sender) never arrive."""

    def __init__(self, n, lost, **how):
        super().__init__(n, **how)
        self.dropped, self.round = lost, 0

    def exchange(self, W, rows, **how):
        arrived = super().exchange(W, rows, **how)
        for r, i, j in self.dropped:
            if r == self.round:
                arrived[i, j] = False
        self.round += 1
        return arrived


# ---- messages of unlike sizes ------------------------------------------------------------------


def test_exchange_weighs_each_senders_message():
    """Each of 3 devices sends its own size to 2 others, at half its uplink each."""
    world, sizes = World(3, link=Link(0.1, 100.0, 1e9)), np.array([300.0, 0.0, 700.0])
    arrived = world.exchange(complete(3), torch.zeros(3, 9), sizes=sizes)
    assert torch.equal(arrived, ~torch.eye(3, dtype=torch.bool))
    np.testing.assert_allclose(world.up, 2 * sizes)
    np.testing.assert_allclose(world.down, sizes.sum() - sizes)
    assert world.clock == pytest.approx(0.1 + 2 * 700 / 100)


def test_exchange_weighs_each_link():
    """sizes[receiver, sender]; what no link carries does not count."""
    world, sizes = World(4, link=Link(0.0, 1e9, 1e9)), torch.arange(16.0).view(4, 4).numpy()
    world.exchange(ring(4), torch.zeros(4, 9), sizes=sizes)
    linked = sizes * ((ring(4) > 0) & ~torch.eye(4, dtype=torch.bool)).numpy()
    np.testing.assert_allclose(world.up, linked.sum(0))
    np.testing.assert_allclose(world.down, linked.sum(1))


def test_exchange_of_equal_sizes_is_that_of_rows():
    a, b = (World(5, loss=0.3, seed=2) for _ in range(2))
    rows = torch.zeros(5, 7)
    assert torch.equal(
        a.exchange(complete(5), rows), b.exchange(complete(5), rows, sizes=np.full(5, 28))
    )
    assert a.totals() == b.totals()


# ---- gaia_asp ----------------------------------------------------------------------------------


def pending(steps):
    """(n, d): for each site, what the others have yet to send to it."""
    A = steps.gi_frame.f_locals["A"].clone()
    A[range(len(A)), range(len(A))] = 0.0
    return A.sum(1)


def test_without_a_threshold_it_is_synchronous_sgd():
    task = small(n=5, samples=240, partition=dirichlet(0.3))
    X = models(gaia_asp, 8, task=task, theta=0.0, eta=0.4, B=7)
    close(X, models(allreduce_sgd, 8, task=task, eta=0.4, B=7)[:, None].expand_as(X))


@pytest.mark.parametrize(
    "world",
    [
        dict(),
        dict(loss=0.4),
        dict(churn=leaves(1, 0.02, 0.07)),
        dict(churn=leaves(1, 0.02)),
        dict(loss=0.3, retry=True),
    ],
)
@pytest.mark.parametrize("how", [dict(theta=0.3), dict(theta=0.02, decay=0.0)])
def test_an_update_is_late_but_not_lost(world, how):
    """A site's copy and what the others have yet to send to it add up to the same for all."""
    task = small(n=4, partition=shards(1))
    steps = gaia_asp(task, World(4, link=Link(0.004, 1e9, 1e9), **world), eta=0.5, B=7, **how)
    whole, waiting = next(steps), 0
    for X in itertools.islice(steps, 25):
        whole = X + pending(steps)
        close(whole, whole[:1].expand(4, -1), 1e-12)
        waiting += bool(pending(steps).abs().max() > 0)
    assert waiting == 25
    assert (whole - task.init()).abs().max() > 0.01


def far_from_zero(start):
    return torch.where(start < 0, start - 2.0, start + 2.0)


def test_an_infinite_threshold_sends_nothing():
    """Each site then does SGD alone with step eta / n."""
    task, world = small(n=5, samples=240), World(5)
    start = far_from_zero(task.init())
    task.init = lambda: start
    X = models(gaia_asp, 6, task=task, world=world, theta=math.inf, eta=0.5, B=7)
    assert world.totals()["bytes"] == 0
    close(X, models(d_psgd, 6, task=task, W=torch.eye(5), eta=0.1, B=7))


def test_parameters_that_start_at_zero_pass_the_filter():
    """After their first update they consist of nothing else: |a / x| = 1."""
    task, world = small(n=5, samples=240), World(5)
    bias = torch.arange(task.d) >= task.d - 10
    start = torch.where(bias, 0.0, far_from_zero(task.init()))
    task.init = lambda: start
    X = models(gaia_asp, 1, task=task, world=world, theta=0.99, decay=0.0, eta=0.5, B=7)
    assert world.totals()["bytes"] == 5 * 4 * 10 * (4 + 8)
    close(X[1][:, bias], X[1][:1, bias].expand(5, -1))
    assert (X[1][:, ~bias] - X[1][:1, ~bias]).abs().max() > 1e-4


def test_a_flush_makes_all_copies_equal():
    """decay = inf: theta in the first step, 0 from the second on."""
    X = models(gaia_asp, 3, task=small(n=5), theta=1e9, decay=math.inf, eta=0.5, B=7)
    apart = (X - X[:, :1]).abs().amax((1, 2))
    assert apart[1] > 1e-4
    close(apart[[0, 2, 3]], torch.zeros(3, dtype=torch.float64), 1e-14)


def slopes(monkeypatch, g):
    """Two or more sites with constant gradients g (n, d)."""
    g = torch.as_tensor(g, dtype=torch.float64)
    monkeypatch.setattr(server_sync, "gradients", quadratic_gradients)
    task = Quadratic(torch.zeros(*g.shape, g.shape[1], dtype=torch.float64), torch.zeros_like(g))
    task.gradient = lambda chosen, X: g[chosen]
    return task


def test_two_sites_by_hand(monkeypatch):
    """x = (1, 0.1), u_1 = (-0.1, 0.01), u_2 = (0, 0.04), threshold 0.12 / sqrt(t).

    t = 1, 0.12: copies (0.9, 0.11), (1, 0.14). Site 1: 0.1 / 0.9 and 0.01 / 0.11 stay below. Site
    2: 0.04 / 0.14 goes, so that site 1 has 0.15. t = 2, 0.085: (0.8, 0.16), and site 2 (1, 0.18).
    Site 1 has (-0.2, 0.02) to send: 0.2 / 0.8 and 0.02 / 0.16 go. Site 2: 0.04 / 0.18 goes.
    """
    task = slopes(monkeypatch, [[0.2, -0.02], [0.0, -0.08]])
    task.x0, world = torch.tensor([1.0, 0.1], dtype=torch.float64), World(2)
    X = models(gaia_asp, 2, task=task, world=world, theta=0.12, eta=1.0, B=None)
    close(X[1], torch.tensor([[0.9, 0.15], [1.0, 0.14]], dtype=torch.float64))
    close(X[2], torch.tensor([[0.8, 0.2], [0.8, 0.2]], dtype=torch.float64))
    np.testing.assert_allclose(world.up, [16, 2 * 12])  # both entries: two values, no index


def test_a_small_update_that_goes_on_is_sent_in_the_end(monkeypatch):
    """1 in the first step, then 0.01 a step at a constant threshold of 4 %: after 1.05 / 25 ..."""
    task, world = slopes(monkeypatch, [[-0.02], [0.0]]), World(2)
    task.x0 = torch.ones(1, dtype=torch.float64)
    X = models(gaia_asp, 12, task=task, world=world, theta=0.045, decay=0.0, eta=1.0, B=None)
    # site 1 has 1 + 0.01 t; 0.05 / 1.05 is the first beyond 0.045, then again 0.05 / 1.1
    close(X[:, 1, 0], torch.tensor([1.0] * 5 + [1.05] * 5 + [1.1] * 3, dtype=torch.float64))


def test_what_a_lost_message_carried_comes_with_the_next(monkeypatch):
    g = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    task, how = slopes(monkeypatch, g), dict(theta=0.0, eta=0.3, B=None)
    lossy = models(gaia_asp, 3, task=task, world=Drops(3, [(0, 2, 0), (1, 2, 0)]), **how)
    clean = models(gaia_asp, 3, task=task, **how)
    close(lossy[:, :2], clean[:, :2])
    for t in (1, 2):
        close(lossy[t, 2], clean[t, 2] + t * 0.1 * g[0])  # without u_0 = -eta / 3 g_0, t times
    close(lossy[3], clean[3])


def test_a_site_that_was_off_catches_up(monkeypatch):
    g = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    task = slopes(monkeypatch, g)
    one = World(3)
    values(gaia_asp, 1, task=task, world=one, theta=0.0, eta=0.3, B=None)
    world = World(3, churn=leaves(1, 0.5 * one.clock, 2.5 * one.clock))
    X = models(gaia_asp, 5, task=task, world=world, theta=0.0, eta=0.3, B=None)
    assert torch.equal(X[2, 1], X[1, 1]) and not torch.equal(X[2, 0], X[1, 0])
    close(X[5], X[5, :1].expand(3, -1))
    steps = (X[5, 0] - X[0, 0]) / -0.1  # sum_g (steps of g) g_g
    worked = torch.linalg.lstsq(g.T, steps[:, None]).solution[:, 0]
    assert worked[1] < 4.5
    close(worked, torch.tensor([5.0, worked[1].round(), 5.0], dtype=torch.float64), 1e-9)


def test_the_filter():
    X = torch.tensor([1.0, -2.0, 0.0, 0.0, 4.0, 1.0] + 4 * [1.0], dtype=torch.float64)
    A = torch.tensor([0.19, 0.41, 1e-9, 0.0, -0.7, -0.21] + 4 * [0.0], dtype=torch.float64)
    for theta, sent in ((0.2, [1, 2, 5]), (math.inf, [2]), (0.0, [0, 1, 2, 4, 5])):
        M, nbytes = significant(A, X, theta)
        assert M.nonzero()[:, 0].tolist() == sent and nbytes == 12 * len(sent)
    rows = torch.zeros(4, 6)
    for k in range(4):
        rows[k, : k + 1] = 1.0
    M, nbytes = significant(rows, torch.zeros(6), 0.1)
    assert nbytes.tolist() == [8, 16, 24, 24]  # float32: 8 B an entry, 24 B the whole row
    assert M.sum(1).tolist() == [1, 2, 6, 6]
    assert significant(rows.double(), torch.zeros(6), 0.1)[1].tolist() == [12, 24, 36, 48]


def test_bytes_are_those_of_the_entries_sent(monkeypatch):
    sent = []

    def spy(A, X, theta):
        M, sizes = significant(A, X, theta)
        off = ~torch.eye(len(X), dtype=torch.bool)
        sent.append((theta, (12 * M.sum(-1)).clamp(max=8 * X.shape[1])[off].sum().item()))
        return M, sizes

    monkeypatch.setattr(server_sync, "significant", spy)
    task, world = small(n=4), World(4)
    values(gaia_asp, 6, task=task, world=world, theta=0.1, eta=0.3, B=7)
    assert [theta for theta, _ in sent] == pytest.approx([0.1 / t**0.5 for t in range(1, 7)])
    assert world.totals()["bytes"] == sum(nbytes for _, nbytes in sent)
    assert world.messages == 6 * 4 * 3
    assert len({nbytes for _, nbytes in sent}) == 6


# ---- adaptive_tau: the rule --------------------------------------------------------------------


def test_drift_of_local_steps():
    t = np.arange(60)
    h = drift(t, 0.05, 1.3, 0.7)
    assert h[:2] == pytest.approx([0, 0], abs=1e-15)
    assert (np.diff(h[1:]) > 0).all()
    np.testing.assert_allclose(drift(t, 0.05, 1.3, 7 * 0.7)[2:], 7 * h[2:], rtol=1e-9)
    assert h[2] == pytest.approx(0.7 * 1.3 * 0.05**2)  # delta / beta (2 e + e^2) - 2 delta eta
    assert (drift(t, 0.05, 1e-5, 0.0) == 0).all()


def rule(tau=10, *, delta, beta=1.0, rho=1.0, limit=100, R=300.0, c=1.0, b=10.0, eta=0.05, phi=0.1):
    """`control` of two devices of equal weight whose gradients lie delta from their mean."""
    G = torch.tensor([[1.0 + delta, 0.0], [1.0 - delta, 0.0]], dtype=torch.float64)
    same = torch.ones(2, dtype=torch.float64)
    how = dict(limit=limit, R=R, c=c, b=b, eta=eta, phi=phi)
    return control(tau, G, beta * same, rho * same, same, **how)


def test_free_aggregation_leaves_one_local_step():
    assert rule(delta=0.2, b=0.0) == 1
    assert rule(delta=0.0, b=1e-6) == 100


def test_equal_gradients_leave_the_most_local_steps():
    assert rule(delta=0.0) == 100
    assert rule(3, delta=0.0) == 30
    assert rule(delta=0.0, limit=17) == 17


def test_more_local_steps_where_aggregation_is_dear_and_data_are_alike():
    dear = [rule(delta=0.2, b=b) for b in (0.1, 1.0, 10.0, 100.0)]
    unlike = [rule(delta=delta) for delta in (0.01, 0.1, 1.0, 10.0)]
    assert dear == sorted(set(dear)) and unlike == sorted(set(unlike), reverse=True)


def test_the_rule_by_hand():
    """R = 100, c = 2, b = 6, eta = 0.5, beta = 1, delta = 0.2, rho = 0.1, phi = 0.1: h(1) = 0,
    h(2) = 0.2 (1.5^2 - 1) - 0.2 = 0.05, h(3) = 0.2 (1.5^3 - 1) - 0.3 = 0.175, h(4) = 0.4125."""
    bound = {}
    for t, h in ((1, 0.0), (2, 0.05), (3, 0.175), (4, 0.4125)):
        T = 92 * t / (2 * t + 6)
        root = math.sqrt(1 + 4 * T**2 * 0.1 * 0.1 * 0.5 * h / t)
        bound[t] = (1 + root) / (2 * T * 0.5 * 0.1) + 0.1 * h
    best = min(bound, key=bound.get)
    assert 1 < best < 4
    how = dict(delta=0.2, rho=0.1, R=100.0, c=2.0, b=6.0, eta=0.5, phi=0.1, limit=4)
    assert rule(**how) == best


def test_who_remembers_nothing_does_not_count():
    """Weights 1, 3, 4: beta and rho are the means of the first two, delta of all three."""
    G = torch.tensor([[0.0], [2.0], [1.0]], dtype=torch.float64)
    beta, rho = torch.tensor([1.0, 2.0, math.nan]), torch.tensor([4.0, 8.0, math.nan])
    p = torch.tensor([1, 3, 4])
    how = dict(limit=100, R=300.0, c=1.0, b=10.0, eta=0.05, phi=0.01)
    found = control(9, G, beta.double(), rho.double(), p, **how)
    delta = (1 * 1.25 + 3 * 0.75 + 4 * 0.25) / 8  # the mean is 1.25
    assert found == rule(9, delta=delta, beta=1.75, rho=7.0, phi=0.01)
    assert 1 < found < 90
    assert control(9, G, beta * math.nan, rho, p, **how) == 9


def test_curvature_of_quadratics():
    """F = a/2 |x|^2 + s: beta = a; rho = |F(y) - F(x)| / |y - x|."""
    x, y = torch.tensor([1.0, 0.0]).double(), torch.tensor([[1.0, 2.0], [1.0, 0.0], [1.0, 0.0]])
    a = torch.tensor([3.0, 5.0, 5.0]).double()[:, None]
    y = y.double()
    last = torch.cat([y, a * y, a / 2 * y.square().sum(1, keepdim=True)], 1)
    last[2] = math.nan
    beta, rho = curvature(last, x, a * x, (a / 2)[:, 0])
    assert beta[:2].tolist() == pytest.approx([3.0, 1e-5])
    assert rho[:2].tolist() == pytest.approx([3 / 2 * (5 - 1) / 2, 0.0])
    assert beta[2].isnan() and rho[2].isnan()


@pytest.mark.parametrize("network", [None, mlp(7)])
@pytest.mark.parametrize("B", [None, 8])
def test_losses_come_with_the_gradients(network, B):
    task, a, b = small(partition=quantity(0.5), network=network), World(6), World(6)
    X = task.init() + 0.1 * torch.arange(4.0).double()[:, None]
    chosen, how = np.array([0, 2, 3, 5]), dict(B=B, seed=(0, 3))
    G, f = gradients_and_losses(task, a, chosen, X, **how)
    close(G, gradients(task, b, chosen, X, **how))
    assert (a.ready == b.ready).all() and a.clock == b.clock
    close(f, losses(task, chosen, X, **how))


# ---- adaptive_tau: the method ------------------------------------------------------------------


def costs(task, c=1.0, b=2.0, **how) -> World:
    """A world in which a full-batch step of the largest device takes c s and an aggregation b s."""
    device = Device(work(task, np.arange(task.n), K=1).max() / c, 1e9, 1, 2, 1.5, "test")
    return World(task.n, device=device, link=Link(b / 2, 1e15, 1e15), **how)


def run(task, world, R, **how):
    """(models, taus, train losses) of all yields."""
    found = list(adaptive_tau(task, world, R=R, **how))
    x = torch.stack([v[0] for v in found])
    return x, *([v[1][k] for v in found if k in v[1]] for k in ("tau", "train_loss"))


@pytest.mark.parametrize("partition", [iid(), shards(1), quantity(0.5)])
def test_one_local_step_a_round_is_gradient_descent(partition):
    task = small(partition=partition)
    x = task.init()
    for found in models(adaptive_tau, 5, task=task, R=1e9, tau=1, eta=0.7):
        close(found, x)
        x = x - 0.7 * autograd(task, x, task.order)


@pytest.mark.parametrize("tau", [2, 5])
def test_a_fixed_number_of_steps_is_fedavg(tau):
    how = dict(task=small(partition=dirichlet(0.3)), eta=0.3, B=None)
    close(
        models(adaptive_tau, 4, R=1e9, tau=tau, **how),
        models(fedavg, 4, S=6, K=tau, **how),
    )


def test_on_equal_data_it_takes_all_the_steps_allowed():
    """Two rounds of one step, the first of them without an estimate, then ten times as many."""
    task = small(n=4, partition=same_data)
    for limit, expected in ((100, [1, 1, 10, 100, 100]), (30, [1, 1, 10, 30, 30])):
        taus = run(task, costs(task), 420.0, eta=0.05, tau_max=limit)[1]
        assert taus[:5] == expected


def test_taus_follow_data_and_costs():
    """More steps for data alike than for one label a device, and the dearer aggregation is."""
    mean = {}
    for split in (iid(), shards(1)):
        task = small(n=5, partition=split)
        for b in (1.0, 10.0):
            taus = run(task, costs(task, b=b), 300.0, eta=0.1, phi=1e-3)[1]
            mean[split.func.__name__, b] = np.mean(taus[2:-2])
    for b in (1.0, 10.0):
        assert mean["_iid", b] > mean["_shards", b]
    for split in ("_iid", "_shards"):
        assert mean[split, 10.0] > mean[split, 1.0]


@pytest.mark.parametrize("R", [20.0, 57.3, 100.0])
@pytest.mark.parametrize("how", [dict(), dict(tau=1), dict(tau=4), dict(tau=7, B=8)])
def test_the_budget_is_kept_and_used(R, how):
    """What is left would not pay for a step, an aggregation and the last report, b more."""
    task = small(n=3, samples=60)
    world = costs(task, b=3.0)
    c = how.get("B", 20) / 20
    x, taus, _ = run(task, world, R, eta=0.1, **how)
    assert world.clock <= R + 1e-6
    b = 3.0 if "tau" in how else 3.0 + c  # its second gradient
    assert world.clock > R - 2 * c - 2 * b - 1e-6
    assert len(x) == len(taus) + 1


def test_budget_of_unlike_devices_is_kept_too():
    """The slowest device sets c."""
    task = small(n=4, partition=quantity(0.5))
    for how in (dict(), dict(tau=3)):
        world = World(4, device=DEVICE, link=Link(0.2, 1e5, 1e5), spread=loguniform(4))
        run(task, world, 20.0, eta=0.1, **how)
        assert 18.0 < world.clock <= 20.0


def test_the_last_round_is_cut_to_what_is_left():
    """c = 1, b = 3: rounds of 10 steps end at 13, 26; of 43 s then 7 are for the last report and
    the round's own aggregation: 10 steps again, till 39, and 4 s for the report."""
    task = small(n=3, samples=60)
    for R, expected in ((43.0, [10, 10, 10]), (42.0, [10, 10, 9]), (34.0, [10, 10, 1])):
        taus = run(task, costs(task, b=3.0), R + 1e-3, eta=0.1, tau=10)[1]
        assert taus[:-1] == expected
    assert run(task, costs(task, b=3.0), 33.5, eta=0.1, tau=10)[1][:-1] == [10, 10]


def test_costs_are_measured(monkeypatch):
    """c: a step of the slower device. b: both latencies, both messages, and the second gradient."""
    seen = []
    monkeypatch.setattr(server_sync, "control", lambda tau, *_, **how: seen.append(how) or 3)
    task = small(n=2, samples=40, partition=same_data)
    world = World(2, device=DEVICE, link=Link(0.25, 1e4, 2e4))
    values(adaptive_tau, 4, task=task, world=world, R=1e6, eta=0.1)
    c = work(task, [0], K=1)[0] / 1e6
    air = (8 * task.d + 8) / 2e4 + (16 * task.d + 24) / 1e4
    for how in seen:
        assert how["c"] == pytest.approx(c) and how["b"] == pytest.approx(0.5 + air + c)
    assert len(seen) == 4


def test_bytes_of_reports():
    for tau, up in ((None, 16 * 650 + 24), (3, 8 * 650 + 8)):
        task, world = small(n=3, samples=60), World(3)
        steps = adaptive_tau(task, world, R=1e9, eta=0.1, tau=tau)
        list(itertools.islice(steps, 5))
        np.testing.assert_allclose(world.up, 4 * up)
        np.testing.assert_allclose(world.down, 4 * (8 * 650 + 8))
    list(adaptive_tau(task, world := World(3), R=world.clock, eta=0.1, tau=3))
    assert (world.up - 8) % up == pytest.approx(0)  # the last report is one number


@pytest.mark.parametrize("eta", [0.2, 30.0])
@pytest.mark.parametrize("tau", [None, 4])
def test_the_best_model_seen_is_the_result(eta, tau):
    task = small(n=3, samples=60)
    x, _, reported = run(task, costs(task), 60.0, eta=eta, tau=tau)
    full = [losses(task, np.arange(3), y).mean().item() for y in x[:-1]]
    assert reported == pytest.approx(
        [min(full[: r + 1]) for r in range(len(full) - 1)] + [min(full)]
    )
    assert torch.equal(x[-1], x[int(np.argmin(full))])
    assert (full[1] > full[0]) == (eta > 1)  # such steps overshoot


def test_estimates_use_one_batch_for_both_models(monkeypatch):
    """The gradient at y_i is taken on the first batch of the next round, where that at x is."""
    seen = []
    task = small(n=3, samples=90)

    def spy(tau, G, beta, rho, p, **how):
        seen.append((G, beta, rho))
        return 2

    monkeypatch.setattr(server_sync, "control", spy)
    steps = adaptive_tau(task, World(3), R=1e9, eta=0.3, B=8)
    x0, x1, x2 = (next(steps)[0] for _ in range(3))
    assert seen[0][1].isnan().all()
    for i in range(3):
        first, then = (batches(task, i, (0, r), B=8, K=1)[0] for r in range(2))
        y = x0 - 0.3 * autograd(task, x0, first)  # tau = 1 in the first round
        g, there = autograd(task, x1, then), autograd(task, y, then)
        close(seen[1][0][i], g)
        close(seen[1][1][i], (there - g).norm() / (y - x1).norm(), 1e-9)
        F = [torch.nn.functional.cross_entropy(task.network(v, task.x[then]), task.y[then])
             for v in (y, x1)]  # fmt: skip
        close(seen[1][2][i], (F[0] - F[1]).abs() / (y - x1).norm(), 1e-9)


def test_estimates_of_the_round_before_only(monkeypatch):
    """A device that was off, and one not heard, in the round before."""
    seen = []
    spy = lambda tau, G, beta, *_, **how: seen.append(beta.isnan().tolist()) or 1  # noqa: E731
    monkeypatch.setattr(server_sync, "control", spy)
    task = small(n=3, samples=60)
    world = costs(task, churn=leaves(1, 3.9, 7.9))
    values(adaptive_tau, 4, task=task, world=world, R=1e9, eta=0.1)  # rounds of 4 s
    assert seen == [[True] * 2, [False] * 2, [False, True, False], [False] * 3]
    seen.clear()
    values(adaptive_tau, 2, task=task, world=Deaf(3, [2]), R=1e9, eta=0.1)
    assert seen == [[True] * 2, [False] * 2]


def test_a_lost_report_changes_nothing():
    task = small(n=3, samples=60, partition=quantity(0.5))
    x = models(adaptive_tau, 1, task=task, world=Deaf(3, [1]), R=1e9, eta=0.3)
    rows = np.concatenate([task.rows(i) for i in (0, 2)])
    close(x[1], x[0] - 0.3 * autograd(task, x[0], rows))
    world = Deaf(3, [0, 1, 2], link=Link(0.5, 1e15, 1e15))
    found = list(adaptive_tau(task, world, R=10.0, eta=0.3))
    assert all(torch.equal(v[0], task.init()) for v in found)
    assert world.clock < 12


def test_noise_in_the_costs_does_not_stop_it():
    task = small(n=4, samples=80)
    world = costs(task, jitter=exponential(), loss=0.2, churn=(20.0, 5.0), seed=3)
    x, taus, reported = run(task, world, 200.0, eta=0.2)
    assert torch.isfinite(x).all() and reported[-1] < reported[0]
    assert 180 < world.clock < 400 and len(taus) > 5


def test_alone_it_is_gradient_descent_in_longer_and_longer_rounds():
    task = small(n=1, samples=40)
    x, taus, _ = run(task, costs(task), 150.0, eta=0.1)
    assert taus[:4] == [1, 1, 10, 100] or taus[:3] == [1, 1, 10]
    y = task.init()
    for found, tau in zip(x[1:-1], taus, strict=False):
        for _ in range(tau):
            y = y - 0.1 * autograd(task, y, task.rows(0))
        close(found, y, 1e-10)
