import itertools

import numpy as np
import pytest
import torch
from conftest import Deaf, close, models, same_data, small, values

from survey_lib.errors import UsageError
from survey_lib.methods.downpour import (
    accrued,
    downpour,
    easgd,
    easgd_synchronous,
    pulled,
    sgd_momentum_nag,
    warming,
)
from survey_lib.methods.server_async import constant, sasgd
from survey_lib.training import batch_gradients, train
from survey_lib.world import World, exponential, loguniform

HOW = dict(B=8, eta=0.2)


def uneven(n=6, **how):
    return World(n, spread=loguniform(5), jitter=exponential(), **how)


# ---- downpour ----------------------------------------------------------------------------------


def test_one_replica_with_period_1_is_sgd_bit_for_bit():
    task = small(n=1)
    x = task.init()
    for t, found in enumerate(models(downpour, 6, task=task, **HOW)):
        assert torch.equal(found, x)
        x = x - 0.2 * batch_gradients(task, [0], x, B=8, seed=(0, t))[0]


def test_one_replica_that_pushes_seldom_is_sgd_too():
    task = small(n=1)
    x = task.init()
    for t, found in enumerate(models(downpour, 4, task=task, period=5, **HOW)):
        close(found, x)
        x = train(task, [0], x, K=5, seed=(0, t), **HOW)[0]


def test_period_1_is_asynchronous_sgd():
    a = models(downpour, 40, world=uneven(), **HOW)
    b = models(sasgd, 40, world=uneven(), alpha_0=0.2, s=constant(), B=8)
    close(a, b)


@pytest.mark.parametrize("period", [1, 4])
def test_replicas_that_share_a_stamp_and_batches_move_the_server_by_the_sum(period):
    """Equal devices with equal data fetch x at time 0 and push at one instant."""
    task = small(n=3, partition=same_data)
    found = models(downpour, 3, task=task, period=period, B=None, eta=0.2)
    one = accrued(task, [0], found[:1], eta=0.2, B=None, K=period, seed=0)[0]
    for k in range(4):
        close(found[k], found[0] - 0.2 * k * one)


def test_accrued_gradients_are_those_of_the_local_steps():
    task = small()
    x, chosen = task.init(), [1, 4]
    total = accrued(task, chosen, x.expand(2, -1), K=5, seed=3, **HOW)
    close(x - 0.2 * total, train(task, chosen, x, K=5, seed=3, **HOW))


def test_adagrad_by_hand_and_its_first_step():
    """The first push moves every parameter that has a gradient by eta; the squares only grow, so
    that the k-th move is at most eta, and eta / sqrt(k) where the gradients are equal."""
    task = small(n=1)
    how = dict(task=task, eta=0.01, B=None, adagrad=True, period=1)
    found = models(downpour, 5, **how)
    squares = 0
    for before, after in itertools.pairwise(found):
        g = batch_gradients(task, [0], before, seed=0)[0]
        squares = squares + g**2
        close(after, before - 0.01 * g / (squares.sqrt() + 1e-8))
    first = (found[1] - found[0]).abs()
    moved = batch_gradients(task, [0], found[0], seed=0)[0].abs() > 1e-4
    close(first[moved], torch.full_like(first[moved], 0.01), atol=1e-5)
    assert ((found[2:] - found[1:-1]).abs() <= 0.01).all()


def test_shards_without_delays_change_nothing():
    """The server's rule is elementwise: two halves of the model, each with its own accumulators,
    end where the whole does."""
    task = small(n=1)
    found = models(downpour, 6, task=task, eta=0.05, B=8, adagrad=True)
    halves = [slice(0, 100), slice(100, task.d)]
    x, squares = task.init(), [0, 0]
    for t in range(6):
        g = batch_gradients(task, [0], x, B=8, seed=(0, t))[0]
        parts = []
        for k, half in enumerate(halves):
            squares[k] = squares[k] + g[half] ** 2
            parts.append(x[half] - 0.05 * g[half] / (squares[k].sqrt() + 1e-8))
        x = torch.cat(parts)
        close(found[t + 1], x)


@pytest.mark.parametrize("method", [downpour, easgd])
def test_bytes_a_visit(method):
    task, world = small(), World(6, spread=loguniform(5))
    steps = method(task, world, period=3, **HOW)
    for _ in itertools.islice(steps, 21):
        pass
    model = 8 * task.d  # double precision
    # 20 uploads are there; each device has fetched once more at most, the last one's is to come
    assert world.server_down >= 20 * model and world.server_down % model == 0
    assert (world.up <= world.down).all() and world.down.sum() <= (20 + 6) * model


# ---- easgd -------------------------------------------------------------------------------------


def test_an_exchange_conserves_and_the_rest_moves_by_gradients_alone(monkeypatch):
    """Sum of the learners and the centre: after every learner has made k periods it has changed by
    eta times the sum of all gradients, whoever met the centre when."""
    task = small(n=4)
    sums = []
    original = pulled

    def watched(task, chosen, X, **how):
        out = original(task, chosen, X, **how)
        sums.append((out[:, 0] - X[:, 1]).sum(0))  # what the steps moved
        return out

    monkeypatch.setattr("survey_lib.methods.downpour.pulled", watched)
    world = uneven(4)
    steps = easgd(task, world, beta=2.0, period=2, **HOW)
    x = next(steps)
    for _ in range(13):
        x = next(steps)
    frame = steps.gi_frame.f_locals
    X, flight = frame["X"], frame["flight"]
    ready = sum((y[0] - X[i] for i, y in flight.done.items()), torch.zeros(task.d).double())
    close(X.sum(0) + ready + x, 5 * task.init() + sum(sums), atol=1e-10)


def test_beta_0_leaves_the_centre_and_beta_n_swaps():
    task = small(n=3)
    still = models(easgd, 8, task=task, world=uneven(3), beta=0.0, **HOW)
    assert (still == still[0]).all()
    found = models(easgd, 6, task=task, world=World(3), beta=3.0, period=2, B=None, eta=0.2)
    # equal devices arrive 0, 1, 2 at one instant: the centre becomes 0's model, then 1's, then 2's
    Y = train(task, [0, 1, 2], task.init(), K=2, B=None, eta=0.2, seed=0)
    close(found[1:4], Y)


def test_two_variables_on_a_quadratic():
    """One learner, alpha = beta = 1/2, an exchange every step. With x_i, x and gradients g at x_i
    before the exchange: (x_i, x) <- ((x_i + x) / 2 - eta g(x_i), (x_i + x) / 2)."""
    task = small(n=1)
    found = models(easgd, 6, task=task, beta=0.5, period=1, B=None, eta=0.3)
    x = y = task.init()
    y = y - 0.3 * batch_gradients(task, [0], y, seed=0)[0]
    for centre in found[1:]:
        g = batch_gradients(task, [0], y, seed=0)[0]
        y, x = (y + x) / 2 - 0.3 * g, (y + x) / 2
        close(centre, x)


def test_a_synchronous_round_with_beta_1_and_no_step_gives_the_mean():
    task = small(n=4)
    steps = easgd_synchronous(task, World(4), eta=0.0, B=8, beta=1.0)
    next(steps)
    X = steps.gi_frame.f_locals["X"]
    X += torch.randn(X.shape, generator=torch.Generator().manual_seed(0), dtype=X.dtype)
    mean = X.mean(0)
    close(next(steps), mean)


def test_a_synchronous_round_by_hand_and_a_lost_upload_pulls_nobody():
    task = small(n=3)
    world = Deaf(3, [1])
    found = models(easgd_synchronous, 3, task=task, world=world, beta=0.9, B=None, eta=0.2)
    x, X = task.init(), task.init().repeat(3, 1)
    for centre in found:
        close(centre, x)
        E = 0.3 * (X - x)
        E[1] = 0
        X, x = X - E - 0.2 * batch_gradients(task, [0, 1, 2], X, seed=0), x + E.sum(0)


def test_elastic_momentum_by_hand():
    task = small(n=1)
    x = task.init()
    X = torch.stack([x + 0.5, x, torch.full_like(x, 0.1)])[None]
    Y, v = pulled(task, [0], X, eta=0.2, B=None, K=2, momentum=0.5, seed=0)[0]
    w = 0.05 - 0.2 * batch_gradients(task, [0], x + 0.5 + 0.05, seed=0)[0]
    y = x + w
    w = 0.5 * w - 0.2 * batch_gradients(task, [0], y + 0.5 * w, seed=0)[0]
    close(Y, y + w)
    close(v, w)


# ---- momentum ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["classical", "nesterov", "bengio"])
def test_without_momentum_it_is_sgd(form):
    task = small(n=1)
    close(
        models(sgd_momentum_nag, 5, task=task, mu=0.0, form=form, **HOW),
        models(downpour, 5, task=task, **HOW),
    )


def test_bengios_form_is_nesterovs_at_the_point_ahead():
    """theta + mu v of Nesterov's form is the x of Bengio's, at every step."""
    task = small(n=1)
    steps = sgd_momentum_nag(task, World(1), mu=0.9, form="nesterov", **HOW)
    ahead = [x + 0.9 * steps.gi_frame.f_locals["v"] for x in itertools.islice(steps, 12)]
    close(torch.stack(ahead), models(sgd_momentum_nag, 11, task=task, mu=0.9, form="bengio", **HOW))


@pytest.mark.parametrize("form, nesterov", [("classical", False), ("bengio", True)])
def test_the_library_agrees(form, nesterov):
    task = small(n=1)
    found = models(sgd_momentum_nag, 8, task=task, mu=0.9, form=form, **HOW)
    x = task.init().requires_grad_()
    sgd = torch.optim.SGD([x], lr=0.2, momentum=0.9, nesterov=nesterov)
    for t, model in enumerate(found):
        close(model, x.detach())
        x.grad = batch_gradients(task, [0], x.detach(), B=8, seed=(0, t))[0]
        sgd.step()


def constant_gradient(task, world, chosen, X, **how):
    return torch.full((1, task.d), 2.0, dtype=task.dtype)


def test_a_constant_gradient_drives_the_velocity_to_eta_g_over_1_minus_mu(monkeypatch):
    monkeypatch.setattr("survey_lib.methods.downpour.gradients", constant_gradient)
    found = models(sgd_momentum_nag, 200, task=small(n=1), mu=0.9, **HOW)
    close(found[-2] - found[-1], torch.full_like(found[0], 0.2 * 2 / 0.1), atol=1e-6)


@pytest.mark.parametrize("mu", [0.0, 0.5, 0.9])
def test_the_heavy_ball_is_stable_up_to_2_times_1_plus_mu(mu, monkeypatch):
    """f = h/2 x^2 with h = 1: x_(t+1) = (1 + mu - eta) x_t - mu x_(t-1), whose roots lie inside the
    unit circle iff 0 < eta < 2 (1 + mu)."""
    monkeypatch.setattr(
        "survey_lib.methods.downpour.gradients", lambda task, world, chosen, X, **how: X[None]
    )
    sizes = []
    for factor in (0.97, 1.03):
        how = dict(mu=mu, eta=factor * 2 * (1 + mu), B=8)
        found = models(sgd_momentum_nag, 2000, task=small(n=1), **how)
        sizes.append(found[-1].abs().max().item())
    assert sizes[0] < 1e-3 and not sizes[1] < 1e3


def test_the_schedule_by_hand():
    mu = warming(0.99)
    assert [mu(0), mu(249), mu(250), mu(750)] == [0.5, 0.5, 0.75, 0.875]
    assert mu(250 * 100) == 0.99
    for t in (0, 500, 3333):
        assert mu(t) == pytest.approx(min(1 - 2 ** (-1 - np.log2(t // 250 + 1)), 0.99))
    task = small(n=1)
    a = models(sgd_momentum_nag, 5, task=task, mu=warming(0.9), **HOW)
    close(a, models(sgd_momentum_nag, 5, task=task, mu=0.5, **HOW))


def test_an_unknown_form_is_refused():
    with pytest.raises(UsageError, match='form = "heavy"; expected "classical"'):
        values(sgd_momentum_nag, 1, mu=0.9, form="heavy", **HOW)
