"""Asynchronous methods that mind staleness: sasgd, paflm, aso_fed."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from conftest import autograd, batches, close, leaves, models, same_data, small, values

from survey_lib.evidence.run import area, final, run
from survey_lib.methods.server_async import (
    aso_fed,
    at_random,
    attention,
    constant,
    lazy,
    paflm,
    polynomial,
    reciprocal,
    sasgd,
)
from survey_lib.methods.server_sync import fedavg
from survey_lib.models import mlp
from survey_lib.partition import dirichlet, iid, quantity
from survey_lib.presets import Device, Link
from survey_lib.tasks import Instalments
from survey_lib.training import Task, train, work
from survey_lib.world import World, exponential, loguniform

INSTANT = Link(0.0, np.inf, np.inf)
FLOPS = 2 * 2 * 64 * 10  # of a sample: forward and backward, 2 per multiply-add, 64 x 10


def device(speed=1e6):
    return Device(speed, 1e9, 1, 2, 1.5, "test")


def unequal(y, n, *key):
    """A partition: device i holds 10 + 5 i samples."""
    ends = np.cumsum(10 + 5 * np.arange(n))
    return np.split(np.arange(ends[-1]), ends[:-1])


def column(found, name):
    return [extra[name] for _, extra in found[1:]]


def inside(generator, rounds, *names):
    """The values of a method and, after each, copies of some of its local variables."""
    for value in itertools.islice(generator, rounds + 1):
        state = generator.gi_frame.f_locals
        yield value, *(state[name].clone() for name in names)


# ---- sasgd -------------------------------------------------------------------------------------


def test_reciprocal_by_hand():
    assert [reciprocal(d) for d in (0, 1, 2, 4)] == [1, 1, 1 / 2, 1 / 4]
    assert pickle.loads(pickle.dumps(reciprocal)) is reciprocal


@pytest.mark.parametrize("c", [1, 3])
@pytest.mark.parametrize("s", [reciprocal, constant(), polynomial(0.5)])
def test_sasgd_step_by_step(c, s):
    """x <- x - (1/c) sum alpha_0 s(t - tau) g with every g taken at once where its device pulls:
    only the order of the visits is taken from the world."""
    task, setting = small(partition=quantity(1.0)), dict(spread=loguniform(10), seed=1)
    how = dict(alpha_0=0.3, B=7, c=c, s=s)
    found = values(sasgd, 12, task=task, world=World(6, **setting), **how)
    x, t, k, held, stale, g, tau = task.init(), 0, 0, [], [], {}, {}
    for i, j in World(6, **setting).arrivals(x, x, work(task, np.arange(6), B=7, K=1)):
        if i is not None:
            held.append(0.3 * s(t - tau[i]) * g[i])
            stale.append(t - tau[i])
            k += 1
        if len(held) == c:
            x, t = x - sum(held) / c, t + 1
            close(found[t][0], x)
            assert found[t][1]["staleness"] == pytest.approx(np.mean(stale))
            held, stale = [], []
        if t == 12:
            break
        g[j], tau[j] = autograd(task, x, batches(task, j, (0, k), B=7, K=1)[0]), t
    assert t == 12


@pytest.mark.parametrize("s", [reciprocal, constant()])
def test_one_learner_is_sgd(s):
    """Staleness is 0 throughout, and does not modulate."""
    task = small(n=1, samples=45)
    found = values(sasgd, 6, task=task, alpha_0=0.3, B=7, s=s)
    x = task.init()
    for t, (model, extra) in enumerate(found):
        close(model, x)
        assert extra == {"staleness": 0}
        x = x - 0.3 * autograd(task, x, batches(task, 0, (0, t), B=7, K=1)[0])


def test_in_turns_every_gradient_is_n_minus_1_versions_stale():
    found = values(sasgd, 30, task=small(n=5, partition=same_data), alpha_0=0.1, B=7)
    assert column(found, "staleness") == [0, 1, 2, 3, 4] + [4] * 25


def test_staleness_with_n_gradients_a_version():
    """Equal learners arrive one after the other. The first version is that of hardsync; but all
    but the last of them pull before it is made, so that from then on (n - 1) / n is the mean."""
    task = small(n=5, samples=150, partition=same_data)
    found = values(sasgd, 4, task=task, alpha_0=0.3, B=7, c=5)
    assert column(found, "staleness") == pytest.approx([0, 4 / 5, 4 / 5, 4 / 5])
    hardsync = models(fedavg, 1, task=task, S=5, K=1, B=7, eta=0.3)
    close(found[1][0], hardsync[1])


def test_hardsync_is_sgd_with_all_batches_in_one():
    task = small(n=4, samples=120, partition=iid())
    x = task.init()
    for r, model in enumerate(models(fedavg, 4, task=task, S=4, K=1, B=6, eta=0.3)):
        close(model, x)
        rows = np.concatenate([batches(task, i, (0, r), B=6, K=1)[0] for i in range(4)])
        assert len(rows) == 24
        x = x - 0.3 * autograd(task, x, rows)


@pytest.mark.parametrize("how", [dict(jitter=exponential()), dict(spread=loguniform(8))])
def test_mean_staleness_is_n_minus_1_whatever_the_speeds(how):
    """The k-th visit of a device that pulls as it pushes is stale by the arrivals of others since
    its last one. So the staleness of device i adds up to T_i - k_i, T_i its last arrival of N, k_i
    its visits; all in all sum_i T_i - N, at most n N - N."""
    task, world = small(n=6, partition=same_data), World(6, link=INSTANT, device=device(), **how)
    last, order = {}, []
    for i, _ in World(6, link=INSTANT, device=device(), **how).arrivals(0, 0, 7.0 * FLOPS):
        if i is not None:
            order.append(i)
            last[i] = len(order)
        if len(order) == 300:
            break
    found = values(sasgd, 300, task=task, world=world, alpha_0=0.01, B=7)
    assert sum(column(found, "staleness")) == sum(last.values()) - 300
    assert 4.7 < np.mean(column(found, "staleness")) <= 5


def test_bytes_and_time_of_a_gradient():
    task = small(n=1, samples=40, dtype=torch.float32)
    world = World(1, device=device(), link=Link(0.01, 1e4, 2e4))
    values(sasgd, 5, task=task, world=world, alpha_0=0.1, B=7)
    assert world.up[0] == world.down[0] == 5 * 4 * task.d
    visit = 0.01 + 4 * task.d / 2e4 + 7 * FLOPS / 1e6 + 0.01 + 4 * task.d / 1e4
    assert world.clock == pytest.approx(5 * visit, rel=1e-12)
    assert world.messages == 10


def test_learners_that_leave_are_not_waited_for():
    task = small(n=4, partition=same_data)
    calm = World(4)
    values(sasgd, 4, task=task, world=calm, alpha_0=0.1, B=7)
    world = World(4, churn=leaves(2, 1.5 * calm.clock))
    found = values(sasgd, 40, task=task, world=world, alpha_0=0.1, B=7)
    assert column(found, "staleness")[:4] == [0, 1, 2, 3]
    assert column(found, "staleness")[-20:] == [2] * 20
    assert world.up[2] == 4 * 2 * task.d  # one gradient, 8 B a number
    lossy = World(4, loss=0.3)
    again = values(sasgd, 40, task=task, world=lossy, alpha_0=0.1, B=7)
    assert len(again) == 41 and lossy.up.sum() > world.up.sum()  # lost messages are sent again


@pytest.mark.slow
def test_claim_staleness_aware_survives_where_plain_fails():
    gains = []
    for seed in range(3):
        accuracy = []
        for s in (reciprocal, constant()):
            task = Task(n=32, network=mlp(64), seed=seed)
            world = World(32, link=INSTANT, jitter=exponential(), seed=seed)
            how = dict(alpha_0=0.4, B=8, s=s, seed=seed)
            accuracy.append(final(run(sasgd, task, world, rounds=1500, every=1500, **how)))
        gains.append(accuracy[0] - accuracy[1])
    assert min(gains) > 0.2, gains


# ---- paflm -------------------------------------------------------------------------------------


def test_the_lazy_rule_by_hand():
    """||g||^2 = 25 against ||moved||^2 / (alpha^2 Omega m^2) = 4 / (0.25 Omega m^2)."""
    g, moved = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])
    for m in (2, 4):
        edge = 4 / (0.25 * 25 * m**2)  # doubling m divides the threshold, and the edge, by 4
        assert lazy(1.01 * edge)(g, moved, 0.5, m)
        assert not lazy(0.99 * edge)(g, moved, 0.5, m)
    assert edge == pytest.approx(0.04)
    flip = torch.tensor([1, 0])
    assert lazy(0.05)(g[flip], moved[flip], 0.5, 4) and not lazy(0.03)(g[flip], moved[flip], 0.5, 4)


def test_a_still_model_lets_everything_pass():
    g, still = torch.tensor([1e-6, 0.0]), torch.zeros(2)
    assert lazy(1e-9)(g, still, 0.1, 100)
    assert not lazy(1e9)(still, still, 0.1, 100)  # but nothing is not sent


def test_random_suppression_sends_its_share():
    rule, q, N = at_random(0.3), 0.3, 4000
    found = np.mean([rule(None, None, 0.1, 5, "key", k) for k in range(N)])
    assert abs(found - q) < 4 * np.sqrt(q * (1 - q) / N)
    assert all(at_random(1.0)(None, None, 0.1, 5, k) for k in range(100))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("send", [lazy(0.003), at_random(0.4), at_random(1.0)])
def test_paflm_step_by_step(send, keep):
    """Every gradient is taken at once where its device begins, at x - alpha (what it has not sent);
    x <- x - alpha (n_i / mean n) (1 + staleness)^-1/2 (its sum of gradients)."""
    task, setting = small(partition=quantity(1.0)), dict(spread=loguniform(5), seed=1)
    world = World(6, **setting)
    how = dict(alpha=0.1, B=7, send=send, keep=keep)
    found = values(paflm, 60, task=task, world=world, **how)
    x, t, visit, sent = task.init(), 0, 0, []
    unsent = torch.zeros(6, task.d, dtype=torch.float64)
    computed_at, now, before, tau, passed = {}, {}, {}, {}, {}

    def up(i):
        unsent[i] += autograd(
            task, computed_at[i][0], batches(task, i, computed_at[i][1], **one)[0]
        )
        passed[i] = send(unsent[i], now[i] - before[i], 0.1, 6, 0, i, visit)
        return unsent[i] if passed[i] else 0.0

    one = dict(B=7, K=1)
    twin = World(6, **setting)
    for i, j in twin.arrivals(x, up, work(task, np.arange(6), **one)):
        if i is not None:
            visit += 1
            sent.append(float(passed[i]))
            if passed[i]:
                weight = task.sizes[i] / task.sizes.mean() / np.sqrt(1 + t - tau[i])
                x, t = x - 0.1 * weight * unsent[i], t + 1
            if passed[i] or not keep:
                unsent[i] = 0
            close(found[visit][0], x, 1e-11)
            assert found[visit][1] == {"sent": sent[-1]}
        if visit == 60:
            break
        before[j], now[j], tau[j] = now.get(j, x), x, t
        computed_at[j] = x - 0.1 * unsent[j], (0, visit)
    assert (twin.up == world.up).all() and twin.clock == world.clock
    everything = send.keywords.get("share") == 1
    assert np.mean(sent) == 1 if everything else 0.1 < np.mean(sent) < 0.9


def test_threshold_0_is_asynchronous_sgd_with_the_same_weights():
    how = dict(task=small(partition=quantity(1.0)), alpha=0.1, B=7)
    close(
        models(paflm, 30, send=lazy(np.inf), **how), models(paflm, 30, send=at_random(1.0), **how)
    )


def test_dual_weights_are_1_for_a_device_alone():
    task = small(n=1, samples=45)
    x = task.init()
    for t, model in enumerate(models(paflm, 5, task=task, alpha=0.3, B=7, send=at_random(1.0))):
        close(model, x)
        x = x - 0.3 * autograd(task, x, batches(task, 0, (0, t), B=7, K=1)[0])


def test_a_device_that_sends_nothing_goes_on_training():
    """Nobody sends: the server's model stays, and what a device will send is its own SGD."""
    task = small(n=1, samples=45)
    steps = paflm(task, World(1), alpha=0.3, B=7, send=at_random(0.0))
    y = task.init()
    for t, ((x, extra), unsent) in enumerate(inside(steps, 5, "g")):
        assert torch.equal(x, task.init()) and extra == {"sent": 0}
        close(x - 0.3 * unsent[0], y)
        y = y - 0.3 * autograd(task, y, batches(task, 0, (0, t), B=7, K=1)[0])


def test_bytes_of_gradients_and_of_notices():
    task, world = small(n=1, samples=45), World(1)
    found = values(paflm, 40, task=task, world=world, alpha=0.3, B=7, send=at_random(0.3))
    sent = sum(column(found, "sent"))
    assert 0 < sent < 40
    assert world.up[0] == sent * 8 * task.d + (40 - sent) * 8
    assert world.down[0] == 40 * 8 * task.d


def test_a_larger_omega_sends_more_and_none_falls_silent():
    """Where nobody sends, the model does not move, and the threshold falls to 0."""
    shares = []
    for Omega in (1e-9, 0.1, 1.0):
        task, world = small(n=8, samples=240), World(8)
        found = values(paflm, 240, task=task, world=world, alpha=0.1, B=None, send=lazy(Omega))
        shares.append(np.mean(column(found, "sent")))
        assert sum(column(found, "sent")[-40:]) > 0
    assert 0.2 < shares[0] < shares[1] - 0.2 < shares[2] - 0.4


def test_paflm_under_churn_and_loss():
    task = small(n=5, partition=same_data)
    how = dict(alpha=0.1, B=7, send=lazy(0.003))
    calm, lossy = World(5), World(5, loss=0.3)
    a = values(paflm, 60, task=task, world=calm, **how)
    b = values(paflm, 60, task=task, world=lossy, **how)
    assert lossy.clock > calm.clock and len(b) == 61
    assert 0 < sum(column(b, "sent")) < 60 and 0 < sum(column(a, "sent")) < 60
    gone = World(5, churn=leaves(1, 1.2 * calm.clock / 60))
    steps = paflm(task, gone, **how)
    found = list(inside(steps, 60, "g"))
    assert gone.up[1] <= 8 * task.d and gone.up[0] > 8 * task.d
    assert torch.isfinite(found[-1][0][0]).all()
    assert torch.equal(found[30][1][1], found[60][1][1])  # nothing of device 1 comes any more


# ---- aso_fed -----------------------------------------------------------------------------------


PLAIN = dict(lam=0.0, beta=0.0, newest=True, copies=False, dynamic=False)  # local SGD


def corrected(task, i, x, g, h, seed, *, rate, eta, lam, beta, newest, **how):
    """The device's steps one by one, with gradients by autograd: (y, g, h)."""
    y = x
    for rows in batches(task, i, seed, **how):
        s = autograd(task, y, rows) + lam * (y - x)
        y = y - rate * eta * (s - g + h)
        h = beta * h + (1 - beta) * (s if newest else g)
        g = s
    return y, g, h


@pytest.mark.parametrize("newest", [True, False])
@pytest.mark.parametrize("copies", [True, False])
def test_aso_fed_step_by_step(newest, copies):
    task, setting = small(partition=quantity(1.0)), dict(spread=loguniform(10), seed=1)
    how, own = dict(E=2, B=9), dict(eta=0.02, lam=0.5, beta=0.3, newest=newest)
    steps = aso_fed(task, World(6, **setting), copies=copies, **how, **own)
    found = list(inside(steps, 40, "rate"))
    x, t, share = task.init(), 0, task.sizes / task.sizes.sum()
    zero = torch.zeros_like(x)
    g, h = dict.fromkeys(range(6), zero), dict.fromkeys(range(6), zero)
    y, new, tau, waits, rates = dict.fromkeys(range(6), x), {}, {}, {i: [] for i in range(6)}, set()
    for i, j in World(6, **setting).arrivals(x, x, work(task, np.arange(6), **how)):
        if i is not None:
            x, t = x + share[i] * (new[i] - y[i]), t + 1
            if copies:
                y[i] = new[i]
            waits[i].append(t - tau[i])
            (model, extra), rate = found[t]
            close(model, x, 1e-11)
            assert extra["staleness"] == t - 1 - tau[i]
            assert rate[i].item() == pytest.approx(max(1, np.log(np.mean(waits[i]))))
            rates.add(round(rate[i].item(), 3))
        if t == 40:
            break
        rate = max(1, np.log(np.mean(waits[j]))) if waits[j] else 1
        if not copies:
            y[j] = x
        new[j], g[j], h[j] = corrected(task, j, x, g[j], h[j], (0, t), rate=rate, **how, **own)
        tau[j] = t
    assert len(rates) > 3 and 1.0 in rates


@pytest.mark.parametrize("newest", [True, False])
def test_the_first_step_of_the_first_visit_is_sgd(newest):
    task = small(n=1, samples=20)
    how = dict(eta=0.3, B=7, K=1, lam=0.0, beta=0.0, newest=newest)
    x = models(aso_fed, 1, task=task, **how)
    close(x[1], train(task, [0], x[0], eta=0.3, B=7, K=1, seed=(0, 0))[0])


def test_without_its_corrections_a_visit_is_local_sgd():
    """Not only the first step: h - g is 0 from then on if h takes in the newest gradient."""
    task = small(n=1, samples=45)
    found = models(aso_fed, 4, task=task, eta=0.3, B=7, E=2, **PLAIN)
    close(found, models(fedavg, 4, task=task, S=1, eta=0.3, B=7, E=2))


def test_the_older_reading_follows_the_last_three_gradients():
    """beta = 0: steps along s_1, s_2 - s_1, s_3 - s_2 + s_1, s_4 - s_3 + s_2."""
    task, s = small(n=1, samples=40), []
    y, eta = task.init(), 0.3
    for rows in batches(task, 0, (0, 0), B=10, K=4):
        s.append(autograd(task, y, rows))
        older = [torch.zeros_like(y)] * 2 + s[:-1]
        y = y - eta * (s[-1] - older[-1] + older[-2] if len(s) > 1 else s[-1])
    how = dict(lam=0.0, beta=0.0, newest=False, dynamic=False)
    close(models(aso_fed, 1, task=task, eta=eta, B=10, K=4, **how)[1], y)


@pytest.mark.parametrize("copies", [True, False])
def test_a_sweep_from_one_model_is_fedavg(copies):
    """K steps of B cost all devices the same, so that each delivers once before any does again."""
    task = small(n=5, samples=100, partition=unequal)
    how = dict(K=3, B=10)
    found = models(aso_fed, 5, task=task, eta=0.2, **PLAIN | dict(copies=copies), **how)
    close(found[5], models(fedavg, 1, task=task, S=5, eta=0.2, **how)[1])


@pytest.mark.parametrize("world", [dict(), dict(churn=leaves(2, 0.02)), dict(loss=0.3)])
def test_the_model_is_the_weighted_mean_of_the_copies(world):
    task = small(n=5, samples=100, partition=unequal)
    setting = dict(spread=loguniform(10)) | world
    steps = aso_fed(task, World(5, **setting), copies=True, eta=0.05, B=7, E=2)
    for (x, _), y in inside(steps, 40, "y"):
        close(x, task.p @ y)
    assert (y - x).norm(dim=1).min() > 1e-3


def test_a_device_that_leaves_keeps_its_share_of_the_copies():
    task = small(n=4, partition=same_data)
    calm = World(4)
    values(aso_fed, 4, task=task, world=calm, eta=0.1, B=7, E=1)
    world = World(4, churn=leaves(2, 1.5 * calm.clock))
    steps = aso_fed(task, world, copies=True, eta=0.1, B=7, E=1)
    Y = torch.stack([y for _, y in inside(steps, 40, "y")])
    assert (Y[8:, 2] == Y[8, 2]).all() and (Y[40, 1] != Y[8, 1]).any()
    assert world.up[2] == 8 * task.d


@pytest.mark.parametrize("network", [None, mlp(5, 4)])
def test_attention(network):
    task = small(**({} if network is None else dict(network=network)))
    x = task.init()
    W = task.network.views(x)[0]
    out, fan = W.shape
    a = task.network.views(attention(task.network, x))[0] / W
    close(a.sum(1), torch.ones(out, dtype=torch.float64))
    i, j = 1, 2
    assert a[i, j].item() == pytest.approx((W[i, j].abs().exp() / W[i].abs().exp().sum()).item())
    assert 0.5 / fan < a.min() and a.max() < 2 / fan  # nearly equal weights: all shrink by fan
    rest = attention(task.network, x)[W.numel() :]
    assert torch.equal(rest, x[W.numel() :])
    close(attention(task.network, x, rescale=True)[: W.numel()], fan * (a * W).flatten())
    equal = torch.cat([0.3 * W.sign().flatten(), x[W.numel() :]])
    close(attention(task.network, equal, rescale=True), equal)


def test_the_feature_layer_is_applied_to_every_new_model():
    """Zero steps: x_t is the first model after t times the feature layer."""
    task = small(n=2)
    x = task.init()
    how = dict(eta=0.0, copies=False, feature=attention)
    for found in models(aso_fed, 5, task=task, B=7, E=1, **how):
        close(found, x)
        x = attention(task.network, x)


def test_the_feature_layer_shrinks_and_its_rescaled_form_grows_without_end():
    """By about the number of inputs each time; rescaled, the largest weight of each unit grows."""
    task = small(n=1)
    first = largest = task.network.views(task.init())[0].abs().amax(1)
    shrunk = grown = task.init()
    for _ in range(3):
        shrunk, grown = (
            attention(task.network, shrunk),
            attention(task.network, grown, rescale=True),
        )
        now = task.network.views(grown)[0].abs().amax(1)
        assert (now > 1.03 * largest).all()
        largest = now
    rest = task.network.views(shrunk)[0].abs().amax(1) / first
    assert (rest < (1.5 / 64) ** 3).all()


def test_bytes_of_a_visit_are_two_models():
    world = World(1)
    task = small(n=1, samples=20, dtype=torch.float32)
    values(aso_fed, 6, task=task, world=world, eta=0.1, B=7, E=1)
    assert world.up[0] == world.down[0] == 6 * 4 * task.d and world.messages == 12


def test_it_learns_from_the_data_that_have_come_in():
    """One device, 40 samples in 4 instalments, one per visit: the visits are local SGD on 10, 20,
    30, 40 and again 40 samples, and take as long as their samples."""
    how = dict(n=1, samples=40, dtype=torch.float64)
    one = work(Task(**how), [0], B=7, E=1)[0] / 4  # FLOPs of 10 samples
    world = World(1, device=device(one), link=INSTANT)  # 1 s for 10 samples
    task = Instalments(**how, instalments=4, every=1.0)
    rows, order = [], task.order.copy()
    plain = dict(eta=0.1, B=7, E=1)
    steps = aso_fed(task, world, **PLAIN, **plain)
    x, clock = task.init(), []
    for k, (model, _) in enumerate(itertools.islice(steps, 6)):
        close(model, x, 1e-10)
        task.reveal(world.clock)
        clock.append(world.clock)
        rows.append(len(task.rows(0)))
        whole = Task(**how)
        whole.order, whole.sizes = order[: rows[-1]], np.array([rows[-1]])
        whole.offset = np.array([0, rows[-1]])
        x = train(whole, [0], x, seed=(0, k), **plain)[0]
    assert rows == [10, 20, 40, 40, 40, 40]
    assert clock == pytest.approx([0, 1, 3, 7, 11, 15])


def test_weights_follow_the_samples_that_have_come_in():
    """Two devices of 9 and 20 samples, in 10 instalments, each rounded up: 1 and 2 of them first,
    2 and 4 from 1 s on, ... 7 and 14 from 6 s on."""

    def parts(y, n, *key):
        return [np.arange(9), np.arange(9, 29)]

    task = Instalments(
        n=2, partition=parts, dtype=torch.float64, network=mlp(5), instalments=10, every=1.0
    )
    steps = aso_fed(task, World(2), copies=True, eta=0.1, B=7, K=1)
    x, before = task.init(), task.init().repeat(2, 1)
    for r, ((model, _), y) in enumerate(inside(steps, 6, "y")):
        share = task.sizes / task.sizes.sum()
        x = x + torch.as_tensor(share, dtype=x.dtype) @ (y - before)  # one of them moved
        close(model, x)
        before = y
        task.reveal(float(r))
    assert task.sizes.tolist() == [7, 14]


@pytest.mark.slow
def test_claim_streams_are_learnt_faster_than_by_waiting():
    """In the reading of a public implementation; word for word the claim does not hold."""
    gains, public = [], dict(eta=0.1, newest=True, copies=False)
    for seed in range(3):
        found = []
        for method, how in ((aso_fed, public), (fedavg, dict(S=20, eta=0.8))):
            split = dict(partition=dirichlet(0.3), instalments=10, every=0.05)
            task = Instalments(n=20, **split, seed=seed)
            setting = dict(device="microcontroller", link="lan", spread=loguniform(10))
            world = World(20, **setting, seed=seed)
            history = run(method, task, world, seconds=0.5, every=5, E=1, B=10, seed=seed, **how)
            found.append(area(history, 0.5))
        gains.append(found[0] - found[1])
    assert min(gains) > 0.02, gains
