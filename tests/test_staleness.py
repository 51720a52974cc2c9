"""Penalties of age, step sizes from gradient statistics, momentum at asynchronous devices."""

from itertools import accumulate, islice

import numpy as np
import pytest
import torch
from conftest import close, models, small, values

from survey_lib.methods.server_async import constant, polynomial, sasgd
from survey_lib.methods.staleness import (
    chance,
    dana,
    dana_slim,
    deviation,
    exp_penalty,
    fasgd,
    geometric,
    magnitude,
)
from survey_lib.presets import Device, Link
from survey_lib.training import batch_gradients
from survey_lib.world import World, exponential

AT_ONCE = Link(0.0, np.inf, np.inf)
B = 8


def fleet(n, *speeds, **how):
    """Devices whose messages take no time; equal ones deliver in turn."""
    device = [Device(1e8 * v, 1e9, 1, 2, 3, "") for v in speeds or [1] * n]
    return World(n, device=device, link=AT_ONCE, **how)


def gradient(task, i, x, k, seed=0):
    """What device i computes at x when it is started after k gradients."""
    return batch_gradients(task, [i], x[None], B=B, seed=[(seed, k)])[0]


def in_turn(task, steps, server, start=lambda x: x):
    """Models (steps + 1, d) when equal devices deliver in turn. server(i, g, x, sent) -> x;
    start(x): what is sent."""
    n, x = task.n, task.init()
    sent, begun, out = [start(x)] * n, [0] * n, [x]
    for k in range(steps):
        i = k % n
        x = server(i, gradient(task, i, sent[i], begun[i]), x, sent[i])
        out.append(x)
        sent[i], begun[i] = start(x), k + 1
    return torch.stack(out)


# ---- exponential penalty -------------------------------------------------------------------------


def test_without_penalty_it_is_asynchronous_sgd():
    how = dict(task=small(4), rounds=12, B=B)
    plain = models(sasgd, world=fleet(4, 1, 2, 3, 5), alpha_0=0.3, s=constant(), **how)
    assert torch.equal(
        models(exp_penalty, world=fleet(4, 1, 2, 3, 5), eta=0.3, lam=1, **how), plain
    )


def test_lambda_0_takes_fresh_gradients_only():
    x = models(exp_penalty, rounds=9, task=small(3), world=fleet(3), eta=0.3, lam=0.0, B=B)
    assert not torch.equal(x[0], x[1])  # the first gradient of all is fresh, 0^0 = 1
    assert all(torch.equal(v, x[1]) for v in x[2:])
    alone = dict(task=small(1), rounds=5, eta=0.3, B=B)
    a, b = (models(exp_penalty, world=fleet(1), lam=lam, **alone) for lam in (0.0, 1.0))
    assert torch.equal(a, b)  # one device is never stale


def test_in_turn_it_has_a_constant_step_after_the_first_sweep():
    task, n, eta, lam = small(4), 4, 0.3, 0.7
    weights = iter([lam**d for d in range(n)] + [lam ** (n - 1)] * 8)

    def server(i, g, x, sent):
        return x - eta * next(weights) * g

    found = values(exp_penalty, 12, task=task, world=fleet(n), eta=eta, lam=lam, B=B)
    close(torch.stack([x for x, _ in found]), in_turn(task, 12, server))
    assert [e["weight"] for _, e in found[n + 1 :]] == [lam ** (n - 1)] * 8


def test_the_mean_weight_at_exponential_computing_times():
    """Each arrival is equally likely to be any device's: the age is geometric, P(d) = (1 - q) q^d
    with q = 1 - 1 / n, and the mean weight sum_d P(d) lam^d = (1 - q) / (1 - q lam)."""
    n, lam, visits = 8, 0.8, 3000
    world, task = fleet(n, jitter=exponential()), small(n)
    steps = exp_penalty(task, world, eta=0.0, lam=lam, B=1)
    weight = np.array([e["weight"] for _, e in islice(steps, 50, 50 + visits)])
    q = 1 - 1 / n
    error = weight.std() / np.sqrt(visits)
    assert abs(weight.mean() - (1 - q) / (1 - q * lam)) < 4 * error
    drawn = np.random.default_rng(0).geometric(1 - q, 20000) - 1
    weight = np.array([geometric(lam)(d) for d in drawn])
    assert abs(weight.mean() - (1 - q) / (1 - q * lam)) < 4 * weight.std() / np.sqrt(20000)


def test_slow_devices_are_silenced():
    """A device 10 times slower than nine others is 90 versions old, they are about 9."""
    n, lam = 10, 0.9
    found = values(exp_penalty, 400, task=small(n), world=fleet(n, *[10] * 9, 1), eta=0.1, B=1)
    weight = np.array([e["weight"] for _, e in found[100:]])
    assert weight.min() == pytest.approx(lam**90, rel=0.2)
    assert np.median(weight) == pytest.approx(lam**9, rel=0.2)


# ---- FASGD ---------------------------------------------------------------------------------------


def ones(g, state):
    """A spread of 1 for all entries."""
    return torch.ones_like(g), ()


def hundredth(g, state):
    return torch.full_like(g, 0.01), ()


def repeated(rule, g, times):
    state = None
    for _ in range(times):
        v, state = rule(g, state)
    return v


def test_the_deviation_by_hand():
    """g = 2 from 0 with gamma = beta = 0.9: m = 0.4, b = 0.2, variance 0.4 - 0.04 = 0.36."""
    g = torch.tensor([2.0], dtype=torch.float64)
    sd = (0.36 + 1e-4) ** 0.5
    v, (m, b, again, k) = deviation()(g, None)
    close(torch.cat([m, b, v]), torch.tensor([0.4, 0.2, 0.1 * sd], dtype=torch.float64))
    assert torch.equal(v, again) and k == 1
    close(deviation(inverted=True)(g, None)[0], 0.1 / torch.tensor([sd], dtype=torch.float64))
    after, _ = deviation()(-g, (m, b, v, 1))  # m = 0.76, b = -0.02
    close(after, 0.9 * v + 0.1 * (torch.tensor([0.76 - 0.0004 + 1e-4])).double().sqrt(), 1e-8)
    v, state = magnitude()(g, None)
    close(v, torch.tensor([0.2 + 1e-3], dtype=torch.float64))
    close(magnitude()(-g, state)[0], torch.tensor([0.38 + 1e-3], dtype=torch.float64))


def test_a_constant_gradient_leaves_only_eps():
    g = torch.tensor([3.0, -0.1], dtype=torch.float64)
    for eps in (1e-4, 1e-2):
        close(repeated(deviation(eps=eps), g, 400), torch.full_like(g, eps**0.5), 1e-10)
        close(deviation(0, 0, eps)(g, None)[0], torch.full_like(g, eps**0.5))
        for times in (1, 3):  # with the correction from the first gradient on
            v = repeated(deviation(eps=eps, correct=True), g, times)
            close(v, torch.full_like(g, eps**0.5), 1e-8)


def test_printed_and_meant_form_agree_only_where_v_is_1():
    g = torch.tensor([3.0, -0.1], dtype=torch.float64)
    both = [deviation(0, 0, 1.0, inverted=flag)(g, None)[0] for flag in (False, True)]
    assert torch.equal(*both) and torch.equal(both[0], torch.ones_like(g))
    meant, printed = (deviation(inverted=flag)(g, None)[0] for flag in (False, True))
    assert (meant < 1).all() and (printed < meant).sum() == 0 and not torch.equal(meant, printed)


def test_without_deviation_it_is_staleness_aware_sgd():
    how = dict(task=small(4), rounds=12, B=B)
    a = models(fasgd, world=fleet(4, 1, 2, 3, 5), alpha=0.3, spread=ones, **how)
    close(a, models(sasgd, world=fleet(4, 1, 2, 3, 5), alpha_0=0.3, **how))


def test_a_step_by_hand():
    task, alpha = small(2), 0.01
    rule, states = deviation(), [None]

    def server(i, g, x, sent):
        v, states[0] = rule(g, states[0])
        age = [0, 1, 1, 1, 1][len(taken)]
        taken.append(i)
        return x - alpha / max(age, 1) * g / v

    taken = []
    expected = in_turn(task, 5, server)
    close(models(fasgd, 5, task=task, world=fleet(2), alpha=alpha, B=B), expected)
    code = dict(spread=magnitude(), s=polynomial(1.0))
    other = models(fasgd, 5, task=task, world=fleet(2), alpha=alpha, B=B, **code)
    assert not torch.equal(other[1], expected[1])


def test_skipping_with_probability_0_is_fasgd():
    how = dict(task=small(4), rounds=12, alpha=0.01, B=B)
    a = models(fasgd, world=fleet(4), **how)
    assert torch.equal(a, models(fasgd, world=fleet(4), c_fetch=1e-300, c_push=1e-300, **how))


@pytest.mark.parametrize("what", ["fetch", "push"])
def test_transfers_are_made_as_often_as_they_should_be(what):
    """v = 0.01 throughout; c = 0.0303 makes 1 / (1 + c / 0.0101) = 1 / 4. The first visit of each
    of 4 devices, of which vbar is not 0.01 yet, does not count."""
    c, visits = 0.0303, 2000
    assert chance(c, 0.01) == pytest.approx(0.25)
    steps = fasgd(small(4), fleet(4), alpha=1e-9, B=1, spread=hundredth, **{f"c_{what}": c})
    made = np.array([e[f"{what}ed"] for _, e in islice(steps, visits)])
    assert abs(made[9:].mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / visits)


def test_a_skipped_push_applies_the_last_gradient_again():
    """One device whose pushes are all skipped but for the first: g_0 again, ever older."""
    task, alpha, world = small(1), 0.1, fleet(1)
    x = models(fasgd, 5, task=task, world=world, alpha=alpha, B=B, c_push=1e30, spread=ones)
    weights = [0, *accumulate([1, 1, 1 / 2, 1 / 3, 1 / 4])]
    g = gradient(task, 0, x[0], 0)
    close(x, torch.stack([x[0] - alpha * w * g for w in weights]))
    d = 8 * task.d
    assert world.up.sum() == d + 4 * 8  # one gradient, four notices
    assert world.down.sum() == 5 * (d + 8)


def test_a_skipped_fetch_keeps_the_old_model():
    task, alpha = small(1), 0.1
    found = values(fasgd, 4, task=task, world=fleet(1), alpha=alpha, B=B, c_fetch=1e30, spread=ones)
    x = [task.init()]
    for k, weight in enumerate([1, 1, 1 / 2, 1 / 3]):
        x.append(x[-1] - alpha * weight * gradient(task, 0, x[0], k))
    close(torch.stack([v for v, _ in found]), torch.stack(x))
    assert [e["staleness"] for _, e in found] == [0, 0, 1, 2, 3]
    assert [e["fetched"] for _, e in found[1:]] == [1, 0, 0, 0]


def test_bytes_of_a_gradient():
    task, world = small(3, dtype=torch.float32), fleet(3)
    values(fasgd, 6, task=task, world=world, alpha=0.01, B=B)
    assert world.up.sum() == 6 * 4 * task.d and world.down.sum() == 8 * 4 * task.d
    for method in (dana, dana_slim):
        world = fleet(3)
        values(method, 6, task=task, world=world, eta=0.01, B=B)
        assert world.up.sum() == 6 * 4 * task.d and world.down.sum() == 8 * 4 * task.d


# ---- DANA ----------------------------------------------------------------------------------------

RULES = {
    "DANA": dict(own=True, ahead=True),
    "Multi-ASGD": dict(own=True, ahead=False),
    "NAG-ASGD": dict(own=False, ahead=True),
    "heavy ball": dict(own=False, ahead=False),
}


@pytest.mark.parametrize("rule", RULES)
def test_without_momentum_all_are_asynchronous_sgd(rule):
    how = dict(task=small(4), rounds=12, B=B)
    plain = models(sasgd, world=fleet(4, 1, 2, 3, 5), alpha_0=0.3, s=constant(), **how)
    found = models(dana, world=fleet(4, 1, 2, 3, 5), eta=0.3, gamma=0.0, **RULES[rule], **how)
    assert torch.equal(found, plain)


@pytest.mark.parametrize("lam", [0.0, 2.0])
@pytest.mark.parametrize("rule", RULES)
def test_against_the_formulas_line_by_line(rule, lam):
    """The sum over explicit momenta, n = 3 devices in turn."""
    task, eta, gamma, how = small(3), 0.1, 0.9, RULES[rule]
    v = [torch.zeros(task.d, dtype=task.dtype)] * (3 if how["own"] else 1)

    def server(i, g, x, sent):
        k = i if how["own"] else 0
        v[k] = gamma * v[k] + g + lam * g * g * (x - sent)
        return x - eta * v[k]

    def start(x):
        return x - eta * gamma * sum(v) if how["ahead"] else x

    expected = in_turn(task, 15, server, start)
    found = models(dana, 15, task=task, world=fleet(3), eta=eta, gamma=gamma, lam=lam, B=B, **how)
    close(found, expected)


def test_one_device_is_nesterov_momentum():
    """DANA-Slim is torch's form of it, evaluated at the look-ahead point; DANA-Zero the classical
    one, v <- gamma v + g(x - eta gamma v), x <- x - eta v."""
    task, eta, gamma = small(1), 0.1, 0.9
    X = task.init().clone()
    optimiser = torch.optim.SGD([X], lr=eta, momentum=gamma, nesterov=True)
    x, v, ahead, zero = task.init(), 0, [X.clone()], [task.init()]
    for k in range(10):
        X.grad = gradient(task, 0, X, k)
        optimiser.step()
        ahead.append(X.clone())
        v = gamma * v + gradient(task, 0, x - eta * gamma * v, k)
        x = x - eta * v
        zero.append(x)
    how = dict(rounds=10, task=task, eta=eta, gamma=gamma, B=B)
    close(models(dana_slim, world=fleet(1), **how), torch.stack(ahead))
    close(models(dana, world=fleet(1), **how), torch.stack(zero))


def test_slim_is_zero_seen_ahead():
    """X = x - eta gamma sum_j v_j at every step; v_i = (x_before - x_after) / eta of i's steps."""
    n, eta, gamma, steps = 3, 0.1, 0.9, 15
    how = dict(rounds=steps, task=small(n), eta=eta, gamma=gamma, B=B)
    x, X = models(dana, world=fleet(n), **how), models(dana_slim, world=fleet(n), **how)
    v = torch.zeros(n, x.shape[1], dtype=x.dtype)
    for k in range(steps):
        v[k % n] = (x[k] - x[k + 1]) / eta
        close(X[k + 1], x[k + 1] - eta * gamma * v.sum(0), 1e-10)


def test_the_gap_of_plain_asynchronous_sgd():
    """x is what the server has, and the gradient was computed at x of n - 1 versions before."""
    n, task = 3, small(3)
    found = values(dana, 9, task=task, world=fleet(n), eta=0.3, gamma=0.0, B=B)
    x = [v for v, _ in found]
    for k in range(n, 9):
        gap = (x[k] - x[k - n + 1]).norm().item() / task.d**0.5
        assert found[k + 1][1]["gap"] == pytest.approx(gap)
        assert found[k + 1][1]["staleness"] == n - 1
    assert found[1][1]["gap"] == 0.0


def test_looking_ahead_closes_the_gap():
    """Where all gradients are the same, the estimate is the place: without momentum of its own each
    device finds the server where it was told that it would be, but for the new gradients."""
    n, eta, gamma = 4, 0.01, 0.9
    gaps = {}
    for rule, how in RULES.items():
        found = values(dana, 80, task=small(n), world=fleet(n), eta=eta, gamma=gamma, B=B, **how)
        gaps[rule] = np.mean([e["gap"] for _, e in found[20:]])
    assert gaps["DANA"] < gaps["Multi-ASGD"] and gaps["DANA"] < gaps["heavy ball"]
    assert gaps["DANA"] < gaps["NAG-ASGD"]
