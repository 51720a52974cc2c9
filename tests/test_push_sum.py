"""Push-sum: no mass is lost, no bias is left, and the known methods that it reduces to."""

import itertools
from math import log, log2

import numpy as np
import pytest
import torch
from conftest import (
    Quadratic,
    autograd,
    batches,
    close,
    exact,
    leaves,
    losses,
    models,
    quadratic_gradients,
    small,
)

from survey_lib.evidence.run import run
from survey_lib.methods import push_sum
from survey_lib.methods.gossip import allreduce_sgd, d_psgd
from survey_lib.methods.push_sum import online_push_sum, osgp, sgp, subgradient_push
from survey_lib.models import logistic, mlp
from survey_lib.partition import dirichlet, drawn, shards
from survey_lib.presets import Device, Link
from survey_lib.tasks import LowerHalf, RidgeSoftmax
from survey_lib.topology import (
    by_receiver,
    complete,
    exponential,
    heard,
    one_peer_exponential,
    random_digraphs,
    symmetrised,
)
from survey_lib.training import work
from survey_lib.world import World

CHANGING = random_digraphs(8, out=2, rounds=12)
FIXED = random_digraphs(8, out=2, rounds=1, B=1)[0]
HOW = {  # the arguments of each method, A apart
    online_push_sum: dict(eta=0.3),
    subgradient_push: dict(p=0.3, power=0.5, B=7),
    sgp: dict(eta=0.3, B=7),
    osgp: dict(eta=0.3, B=7, tau=2),
}
each = pytest.mark.parametrize("method", HOW)


class Watched(World):
    """A world that keeps what it was asked to carry: the models, the weights, the pushes."""

    def __init__(self, n, lost=(), **how):
        super().__init__(n, **how)
        self.dropped, self.X, self.w, self.P = lost, [], [], []

    def exchange(self, A, rows, **how):
        arrived = super().exchange(A, rows, **how)
        for i, j in self.dropped:
            arrived[i, j] = False
        self.X.append(rows[0].clone())
        self.w.append(rows[1].clone())
        own = torch.eye(self.n, dtype=torch.bool)
        away = torch.where(arrived & ~own, A, 0.0)
        self.P.append(away + torch.diag(1 - away.sum(0)))
        return arrived


@pytest.fixture
def skewed():
    return small(n=8, samples=240, partition=dirichlet(0.3))


@pytest.fixture
def steps(monkeypatch):
    """The sums over the devices of all gradients that the methods took, one (d,) a round."""
    sums, plain = [], push_sum.gradients

    def watched(*a, **k):
        G = plain(*a, **k)
        sums.append(G.sum(0))
        return G

    monkeypatch.setattr(push_sum, "gradients", watched)
    return sums


@pytest.fixture
def on_quadratics(monkeypatch):
    monkeypatch.setattr(push_sum, "gradients", quadratic_gradients)


def mixing_alone(monkeypatch, X0, rounds, method, **how):
    """(rounds + 1, n, d): the models that mixing makes of X0, given through a first gradient."""
    pushes = iter([-X0] + [torch.zeros_like(X0)] * (rounds + 1))
    monkeypatch.setattr(push_sum, "gradients", lambda *a, **k: next(pushes))
    step = dict(p=1.0, B=None) if method is subgradient_push else dict(eta=1.0)
    if method in (sgp, osgp):
        step["B"] = None
    X = models(method, rounds + 1, task=Quadratic.random(*X0.shape), **step, **how)
    if method is subgradient_push:
        return torch.cat([X0[None], X[2:]])  # it combines first: X0 is there after round 1
    return torch.cat([X0[None], X[1:]])


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- mass --------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("trouble", ["none", "loss", "retry", "churn"])
def test_mass_is_conserved(method, trouble, skewed, steps):
    """sum w = n and sum x = n x0 - eta sum g at every round, with what is under way (tau > 0)."""
    how = {
        "none": {},
        "loss": dict(loss=0.3),
        "retry": dict(loss=0.3, retry=True),
        "churn": dict(churn=(0.3, 0.2)),
    }
    world = Watched(8, **how[trouble])
    X = models(method, 25, task=skewed, world=world, A=CHANGING, **HOW[method])
    tau, off = HOW[method].get("tau", 0), 0
    total = 8 * skewed.init()
    for r in range(25):
        stepped = method is subgradient_push  # there a step follows the exchange
        if not stepped:
            total = total - 0.3 * steps[r]
        moving = [P - torch.diag(P.diagonal()) for P in world.P[max(0, r - tau) : r]]
        late = slice(max(0, r - tau), r)
        moving = list(zip(moving, world.X[late], world.w[late], strict=True))
        weights = world.w[r].sum() + sum((P @ w).sum() for P, _, w in moving)
        vectors = world.X[r].sum(0) + sum((P @ x).sum(0) for P, x, _ in moving)
        assert weights.item() == pytest.approx(8, rel=1e-12)
        close(vectors, total, 1e-10)
        assert (world.w[r] > 0).all()
        off += int((world.P[r].diagonal() == 1).sum())
        if stepped:
            total = total - 0.3 / (r + 1) ** 0.5 * steps[r]
    assert (off > 0) == (trouble in ("loss", "churn"))
    assert torch.isfinite(X).all() and (world.w[-1] - 1).abs().max() > 0.01


@each
def test_the_weights_of_a_fixed_graph_tend_to_its_perron_vector(method, on_quadratics):
    """y -> n pi with A pi = pi; with tau what is resident tends to a share of it."""
    world = Watched(8)
    models(method, 200, task=Quadratic.random(8), world=world, A=FIXED, **HOW[method])
    values, vectors = torch.linalg.eig(FIXED.double())
    pi = vectors[:, values.real.argmax()].real
    pi = pi / pi.sum()
    w = world.w[-1]
    close(w / w.sum(), pi, 1e-6)
    assert pi.max() > 1.3 / 8
    if "tau" not in HOW[method]:
        close(w, 8 * pi, 1e-6)


@each
def test_mixing_alone_tends_to_the_mean(method, monkeypatch):
    """Changing digraphs of out-degree 2, 16 devices: the error falls geometrically."""
    X0 = normal(16, 5)
    A = random_digraphs(16, out=2, rounds=60)
    tau = dict(tau=2) if method is osgp else {}
    X = mixing_alone(monkeypatch, X0, 60, method, A=A, **tau)
    error = (X - X0.mean(0)).abs().amax((1, 2))
    assert error[1] > 0.5
    assert error[20] < (0.1 if tau else 1e-3) and error[60] < (1e-3 if tau else 1e-8)


@pytest.mark.parametrize("method", [online_push_sum, subgradient_push])
def test_without_the_weights_mixing_tends_to_another_mean(method, monkeypatch):
    """Row-stochastic W: W^t X0 -> 1 pi^T X0, with pi^T W = pi^T."""
    X0, W = normal(8, 5), by_receiver(FIXED).double()
    X = mixing_alone(monkeypatch, X0, 100, method, A=W, mix=heard)
    values, vectors = torch.linalg.eig(W.T)
    pi = vectors[:, values.real.argmax()].real
    pi = pi / pi.sum()
    close(X[-1], (pi @ X0).expand(8, -1), 1e-8)
    assert (X[-1] - X0.mean(0)).norm() / X0.mean(0).norm() > 0.1


def test_two_devices_by_hand(monkeypatch):
    """Device 0 sends half to 1, which sends nothing: w = (1/2, 3/2), x = (a / 2, a / 2 + b), z =
    (a, (a + 2 b) / 3); then w = (1/4, 7/4) and z = (a, (3 a + 4 b) / 7)."""
    a, b = normal(2, 3)
    A = torch.tensor([[0.5, 0.0], [0.5, 1.0]])
    once, twice = torch.stack([a, (a + 2 * b) / 3]), torch.stack([a, (3 * a + 4 * b) / 7])
    for method in (online_push_sum, sgp):
        X = mixing_alone(monkeypatch, torch.stack([a, b]), 2, method, A=A)
        close(X[1], once)
        close(X[2], twice)
    # with tau = 1 the halves of a are added a round later
    X = mixing_alone(monkeypatch, torch.stack([a, b]), 3, osgp, A=A, tau=1)
    close(X[1], torch.stack([a, b]))
    close(X[2], once)
    close(X[3], twice)
    # subgradient_push mixes its weights once before a and b are there: w = (1/2, 3/2), x = (a, b)
    X = mixing_alone(monkeypatch, torch.stack([a, b]), 2, subgradient_push, A=A)
    close(X[1], torch.stack([2 * a, (2 * a + 4 * b) / 7]))


@each
def test_a_lost_push_stays_with_its_sender(method, skewed):
    """The third of x and w that 3 sends to i; with tau = 1 it is missing at i a round later."""
    i = next(int(k) for k in FIXED[:, 3].nonzero().ravel() if k != 3)
    whole, short = Watched(8), Watched(8, lost=[(i, 3)])
    how = HOW[method] | (dict(tau=1) if method is osgp else {})
    X = models(method, 2, task=skewed, world=whole, A=FIXED, **how)
    Y = models(method, 2, task=skewed, world=short, A=FIXED, **how)
    moved = Y[1] * short.w[1][:, None] - X[1] * whole.w[1][:, None]
    third = torch.zeros(8, dtype=torch.float64)
    third[3], third[i] = 1 / 3, 0 if method is osgp else -1 / 3
    close(short.w[1] - whole.w[1], third, 1e-7)  # A is in single precision
    close(moved, third[:, None] * whole.X[0][3], 1e-7)
    assert whole.messages == short.messages


@pytest.mark.parametrize("method", [online_push_sum, subgradient_push, sgp])
def test_a_device_that_is_off_does_nothing(method, skewed):
    world = Watched(8, churn=leaves(5, 0))
    X = models(method, 6, task=skewed, world=world, A=CHANGING, **HOW[method])
    assert (X[:, 5] == skewed.init()).all()
    assert all(w[5] == 1 for w in world.w) and world.up[5] == world.down[5] == 0
    assert (X[-1] != skewed.init()).any(1).sum() == 7


@each
def test_one_device_is_sgd(method):
    task = small(n=1, samples=50)
    A = torch.ones(1, 1)
    how = dict(HOW[method])
    if method is subgradient_push:
        how |= dict(power=0.0)
    X = models(method, 6, task=task, world=World(1), A=A, **how)
    B = 1 if method is online_push_sum else 7
    x = models(allreduce_sgd, 6, task=task, eta=0.3, B=B)
    late = 1 if method is subgradient_push else 0  # z(1) is the start once more
    close(X[late:, 0], x[: 7 - late])


@each
def test_bytes(method):
    """(4 d + 4) B for every out-link, to nobody else."""
    task = small(n=8, dtype=torch.float32)
    world = World(8)
    models(method, 12, task=task, world=world, A=CHANGING, **HOW[method])
    links = (CHANGING != 0).sum(0).fill_diagonal_(0)
    np.testing.assert_array_equal(world.up, links.sum(0) * (4 * task.d + 4))
    np.testing.assert_array_equal(world.down, links.sum(1) * (4 * task.d + 4))
    assert world.messages == 12 * 16 and world.server_up == world.server_down == 0


def test_three_rows_of_the_table_are_one_recursion(skewed):
    """Online push-sum is SGP at batch 1 over any digraphs; subgradient-push mixes before it steps,
    which makes it SGP one round later where y = 1."""
    a = models(online_push_sum, 8, task=skewed, A=CHANGING, eta=0.3)
    b = models(sgp, 8, task=skewed, A=CHANGING, eta=0.3, B=1)
    close(a, b)
    A = torch.stack([exact(V) for V in symmetrised(CHANGING)])
    c = models(subgradient_push, 8, task=skewed, A=A, p=0.3, power=0.0, B=7)
    # its round t mixes with A_t what stepped in round t - 1
    close(c[1:], models(sgp, 8, task=skewed, A=A.roll(-1, 0), eta=0.3, B=7)[:8])


# ---- online_push_sum ---------------------------------------------------------------------------


def test_doubly_stochastic_push_sum_is_decentralised_online_gradient(skewed):
    A = exponential(8).double()
    world = Watched(8)
    X = models(online_push_sum, 12, task=skewed, world=world, A=A, eta=0.3)
    close(torch.stack(world.w), torch.ones(12, 8, dtype=torch.float64))
    close(X, models(d_psgd, 12, task=skewed, W=A, eta=0.3, B=1, adapt_first=True))


def test_without_links_everybody_learns_alone(skewed):
    world = World(8)
    X = models(online_push_sum, 5, task=skewed, world=world, A=torch.eye(8), eta=0.3)
    assert world.up.sum() == world.messages == 0
    for i in range(8):
        x = skewed.init()
        for t in range(5):
            close(X[t, i], x)
            x = x - 0.3 * autograd(skewed, x, batches(skewed, i, (0, t), B=1, K=1)[0])


@pytest.mark.parametrize("network", [logistic(), mlp(5)])
@pytest.mark.parametrize("dense", [True, False])
def test_online_loss_is_suffered_before_the_step(network, dense):
    """The loss of z_t on the sample of round t, the one that the gradient then uses."""
    task = small(n=8, samples=240, network=network)
    task.network.by_hand = task.network.by_hand if dense else None
    found = itertools.islice(online_push_sum(task, World(8), A=CHANGING, eta=0.5), 7)
    (Z, extra), *later = found
    assert extra == {}
    for t, (after, extra) in enumerate(later):
        own = losses(task, np.arange(8), Z, B=1, seed=(0, t))
        assert extra["online_loss"] == pytest.approx(own.mean().item(), rel=1e-12)
        Z = after


def test_who_is_off_suffers_nothing():
    task = LowerHalf(n=4, dtype=torch.float64)
    gone = World(4, churn=leaves(2, 0.0))
    Z, extra = next(itertools.islice(online_push_sum(task, gone, A=torch.eye(4), eta=0.5), 1, 2))
    assert extra["online_loss"] == pytest.approx(log(2))  # x = 0 gives either class 1/2
    assert gone.busy[2] == 0 and (Z[2] == 0).all()
    trace = leaves(0, 0.0)
    nobody = World(1, churn=trace)
    task = LowerHalf(n=1)
    found = list(itertools.islice(online_push_sum(task, nobody, A=torch.ones(1, 1), eta=0.5), 3))
    assert [extra for _, extra in found] == [{}] * 3


def test_average_online_loss_of_a_run():
    """One evaluation at the end has the mean over all rounds."""
    task = LowerHalf(n=8, partition=drawn(1.0, 50))
    A = random_digraphs(8, out=2)
    whole = run(online_push_sum, task, World(8), rounds=20, A=A, eta=0.1)
    end = run(online_push_sum, task, World(8), rounds=20, every=20, A=A, eta=0.1)
    assert end["online_loss"].iloc[-1] == pytest.approx(whole["online_loss"][1:].mean(), rel=1e-12)


# ---- subgradient_push --------------------------------------------------------------------------


def test_regular_digraphs_need_no_weights(skewed):
    """Every device hears as many as it sends to: y = 1, combine with 1 / degree, then adapt."""
    A, world = exponential(8).double(), Watched(8)
    X = models(subgradient_push, 6, task=skewed, world=world, A=A, p=0.3, power=0.0, B=7)
    close(torch.stack(world.w), torch.ones(6, 8, dtype=torch.float64))
    x = X[0]
    for t in range(6):
        z = A @ x
        close(X[t + 1], z)
        g = [autograd(skewed, z[i], batches(skewed, i, (0, t), B=7, K=1)[0]) for i in range(8)]
        x = z - 0.3 * torch.stack(g)


@pytest.mark.parametrize(("p", "t0", "power"), [(0.4, 0, 1.0), (2.0, 5, 1.0), (0.3, 2, 0.5)])
def test_steps(on_quadratics, p, t0, power):
    """One device on 1/2 (x - c)^2 from 0: x <- x - a(t) (x - c), a(t) = p / (t + t0)^power."""
    c = torch.tensor([[2.0]], dtype=torch.float64)
    task = Quadratic(torch.ones(1, 1, 1, dtype=torch.float64), c)
    how = dict(A=torch.ones(1, 1), p=p, t0=t0, power=power)
    X = models(subgradient_push, 5, task=task, **how)[:, 0, 0]
    x = 0.0
    for t in range(1, 5):
        x -= p / (t + t0) ** power * (x - 2.0)
        assert X[t + 1].item() == pytest.approx(x)


def test_weighted_average(on_quadratics):
    """sum_{s <= t} (s - 1) z(s) / (t (t - 1) / 2), z(1) at t = 1."""
    task = Quadratic.random(8, 4)
    Z = models(subgradient_push, 9, task=task, A=CHANGING, p=1.0)
    average = models(subgradient_push, 9, task=task, A=CHANGING, p=1.0, average=True)
    close(average[0], Z[0])
    close(average[1], Z[1])
    for t in range(2, 10):
        weighted = sum((s - 1) * Z[s] for s in range(1, t + 1)) / (t * (t - 1) / 2)
        close(average[t], weighted)


def test_quadratics_reach_the_mean_of_the_optima(on_quadratics):
    """f_i = 1/2 ||x - c_i||^2, a = 1 / t: every z_i tends to mean(c), the error as 1 / t."""
    C = normal(8, 3, seed=2)
    task = Quadratic(torch.eye(3, dtype=torch.float64).expand(8, 3, 3), C)
    Z = models(subgradient_push, 800, task=task, A=CHANGING, p=1.0)
    error = (Z - C.mean(0)).norm(dim=2).amax(1)
    assert error[1] > 0.5 and error[800] < 0.02
    slope = log(error[750:800].mean() / error[75:80].mean()) / log(10)
    assert -1.15 < slope < -0.85


def test_the_clock_has_exchange_and_step(skewed):
    """Rounds of L + s + C."""
    device, link = Device(1e7, 1e9, 1, 2, 1.5, "test"), Link(0.01, 1e5, 1e5)
    world = World(8, device=device, link=link)
    A = one_peer_exponential(8)
    models(subgradient_push, 5, task=skewed, world=world, A=A, p=0.3, B=7)
    C = work(skewed, [0], B=7, K=1)[0] / 1e7
    assert world.clock == pytest.approx(5 * (0.01 + 8 * (skewed.d + 1) / 1e5 + C))


def test_mixing_that_changes_is_better_corrected(on_quadratics):
    """On a fixed digraph without weights the models keep a bias that does not fall any more."""
    C = normal(8, 3, seed=2)
    task = Quadratic(torch.eye(3, dtype=torch.float64).expand(8, 3, 3), C)
    how = dict(task=task, p=1.0)
    fair = models(subgradient_push, 400, A=FIXED, **how)[-1]
    biased = models(subgradient_push, 400, A=by_receiver(FIXED), mix=heard, **how)[-1]
    a, b = ((Z - C.mean(0)).square().sum(1).mean() for Z in (fair, biased))
    assert a < 1e-3 and b > 20 * a


# ---- sgp, osgp ---------------------------------------------------------------------------------


def test_on_the_one_peer_graph_sgp_is_dpsgd(skewed):
    A, world = one_peer_exponential(8), Watched(8)
    X = models(sgp, 8, task=skewed, world=world, A=A, eta=0.3, B=7)
    assert (torch.stack(world.w) == 1).all()
    close(X, models(d_psgd, 8, task=skewed, W=A, eta=0.3, B=7, adapt_first=True))


def test_on_the_complete_graph_sgp_is_allreduce(skewed):
    X = models(sgp, 6, task=skewed, A=complete(8).double(), eta=0.3, B=7)
    close(X, models(allreduce_sgd, 6, task=skewed, eta=0.3, B=7)[:, None].expand_as(X))


@pytest.mark.parametrize("n", [4, 8, 16])
def test_the_one_peer_graph_averages_exactly_in_log2_n_rounds(n, monkeypatch):
    X0 = normal(n, 3)
    X = mixing_alone(monkeypatch, X0, 5, sgp, A=one_peer_exponential(n))
    rounds = int(log2(n))  # the first of them in the round of the step
    close(X[rounds], X0.mean(0).expand(n, -1), 1e-14)
    assert (X[rounds - 1] - X0.mean(0)).abs().max() > 0.1


def test_without_delay_osgp_is_sgp_bit_for_bit(skewed):
    how = dict(task=skewed, A=CHANGING, eta=0.3, B=7)
    worlds = World(8), World(8)
    a = models(sgp, 6, world=worlds[0], **how)
    b = models(osgp, 6, world=worlds[1], tau=0, **how)
    assert torch.equal(a, b) and worlds[0].totals() == worlds[1].totals()


@pytest.mark.parametrize("tau", [0, 1, 2, 4])
def test_resident_weight(tau, on_quadratics):
    """w = w / 2 + w / 2 of tau rounds ago, 1 of them in all: 1 / (1 + tau / 2)."""
    world, A = Watched(8), one_peer_exponential(8)
    models(osgp, 300, task=Quadratic.random(8), world=world, A=A, eta=0.1, B=None, tau=tau)
    close(world.w[-1], torch.full((8,), 1 / (1 + tau / 2), dtype=torch.float64), 1e-10)


@pytest.mark.parametrize("tau", [0, 1, 3])
@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_messages_one_by_one(tau, loss, on_quadratics):
    """The same from mailboxes: a message of round r is opened at the end of round r + tau."""
    task, A = Quadratic.random(8, 3), random_digraphs(8, out=2, rounds=5).double()
    world = Watched(8, loss=loss)
    found = models(osgp, 12, task=task, world=world, A=A, eta=0.1, B=None, tau=tau)
    x, w = list(task.init().repeat(8, 1)), [1.0] * 8
    mail = {}
    for r in range(12):
        for i in range(8):
            close(found[r, i], x[i] / w[i])
            x[i] = x[i] - 0.1 * task.gradient(np.array([i]), (x[i] / w[i])[None])[0]
        sent = list(zip(x, w, strict=True))
        for j in range(8):
            for i in range(8):
                share = world.P[r][i, j].item()
                if i == j:
                    x[j], w[j] = share * sent[j][0], share * sent[j][1]
                elif share:
                    letter = share * sent[j][0], share * sent[j][1]
                    mail.setdefault(r + tau, []).append((i, *letter))
        for i, dx, dw in mail.pop(r, []):
            x[i], w[i] = x[i] + dx, w[i] + dw


@pytest.mark.parametrize(("tau", "second"), [(1, 2 / 3), (2, 2.0), (4, 2.0)])
def test_a_delay_does_not_change_the_pace(tau, second, monkeypatch):
    """The same gradient g everywhere. Sum x falls by n eta g a round and sum w is n, with what is
    under way: all models settle to moving by eta g, although z = x / w of a device jumps by more.
    In round 1 all weight is there; in round 2 a half of it, so that z moves by 2 eta g, of which
    arriving halves without it (tau = 1) leave 2/3."""
    g = normal(3)
    monkeypatch.setattr(push_sum, "gradients", lambda task, *a, **k: g.expand(8, 3))
    how = dict(task=Quadratic.random(8, 3), A=one_peer_exponential(8), eta=0.1, B=None)
    X = models(osgp, 300, tau=tau, **how)
    close(X[1] - X[0], (-0.1 * g).expand(8, 3))
    close(X[2] - X[1], (-0.1 * second * g).expand(8, 3))
    close(X[-1] - X[-2], (-0.1 * g).expand(8, 3), 1e-9)


@pytest.mark.parametrize("tau", [0, 1, 2, 4])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 4.0])
def test_round_time(tau, ratio, skewed):
    """Computing C and a message L + s = ratio C: C + L + s a round without overlap; with it an
    exchange ends when tau further rounds have computed, and uses the link for s of its time:
    max(C, s, (C + L + s) / (tau + 1))."""
    C, A = work(skewed, [0], B=7, K=1)[0] / 1e7, one_peer_exponential(8)
    L = 0.4 * ratio * C
    s = 0.6 * ratio * C
    link = Link(L, 8 * (skewed.d + 1) / s, np.inf)
    world = World(8, device=Device(1e7, 1e9, 1, 2, 1.5, "test"), link=link)
    models(osgp, 60, task=skewed, world=world, A=A, eta=0.1, B=7, tau=tau)
    want = max(C, s, (C + L + s) / (tau + 1))
    assert world.clock == pytest.approx(60 * want, rel=1e-9 if tau == 0 else 0.06)


def test_it_mixes_the_tensors_that_it_sends(skewed):
    """A world that overwrites the rows of others, as one process among real ones does."""

    class Wire(World):
        def exchange(self, A, rows, **how):
            arrived = super().exchange(A, rows, **how)
            x, w = rows
            x[1:], w[1:] = 7.0, 2.0
            return arrived

    A = complete(8).double()
    X = models(sgp, 2, task=skewed, world=Wire(8), A=A, eta=0.3, B=7)
    x = skewed.init() - 0.3 * autograd(
        skewed, skewed.init(), batches(skewed, 0, (0, 0), B=7, K=1)[0]
    )
    close(X[1, 0], (x + 7 * 7.0) / (1 + 7 * 2.0))
    close(X[0], skewed.init().expand(8, -1))


# ---- claims ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_claim_one_way_links_beat_learning_alone():
    ratios = []
    for seed in range(3):
        task = LowerHalf(n=32, partition=drawn(1.0, 400), seed=seed)
        lost = []
        for A, eta in ((random_digraphs(32, out=5), 0.2), (torch.eye(32), 0.05)):
            how = dict(rounds=200, every=200, A=A, eta=eta, seed=seed)
            lost.append(run(online_push_sum, task, World(32), **how)["online_loss"].iloc[-1])
        ratios.append(lost[1] / lost[0])
    assert min(ratios) > 1.1, ratios


@pytest.mark.slow
def test_claim_one_way_links_need_fewer_bytes():
    ratios = []
    for seed in range(3):
        task = RidgeSoftmax(n=16, partition=shards(1), mu=0.5, seed=seed)
        A, spent = random_digraphs(16, out=2), []
        for V in (A, symmetrised(A)):
            world = World(16, link=Link(0.001, np.inf, np.inf))
            how = dict(rounds=400, every=5, target=0.99, p=2.0, B=1, seed=seed)
            history = run(subgradient_push, task, world, A=V, **how)
            assert history["loss"].iloc[-1] < 0.01
            spent.append(history["bytes"].iloc[-1])
        ratios.append(spent[0] / spent[1])
    assert max(ratios) < 0.9, ratios
