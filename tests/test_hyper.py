import itertools

import numpy as np
import pytest
import torch
from conftest import close, models, small, values
from torch.nn.functional import cosine_similarity

from survey_lib.errors import UsageError
from survey_lib.methods.hyper import fedsa, scaled
from survey_lib.methods.server_async import constant, fedasync, polynomial
from survey_lib.partition import quantity
from survey_lib.training import train, work
from survey_lib.world import World, loguniform

HOW = dict(B=10, eta=0.2)


def uneven(**how):
    return World(6, spread=loguniform(10), **how)


def test_never_leaving_stage_1_is_fedasync_with_a_constant_weight():
    a = models(fedsa, 40, world=uneven(), E_1=2, a_1=0.4, window=np.inf, **HOW)
    how = dict(alpha=0.4, s=constant(), rho=0.0, E=2)
    # the bytes of a visit differ by 12 and 8, on which the order of arrivals does not hang here
    close(a, models(fedasync, 40, world=uneven(), **how, **HOW))


def test_stage_2_without_cosine_on_equal_devices_is_fedasync_with_a_polynomial_weight():
    how = dict(first=False, similar=False, E_1=2, a_2=0.3, local=constant())
    a = models(fedsa, 40, **how, **HOW)
    b = models(fedasync, 40, alpha=0.3, s=polynomial(0.5), rho=0.0, E=2, **HOW)
    close(a, b)


def test_local_steps_are_scaled_and_cut_short_device_by_device():
    task = small(partition=quantity(1.0))
    X = task.init().repeat(3, 1) + torch.arange(3.0)[:, None]
    E, rate = np.array([1, 2, 3, 4, 5, 6]), torch.linspace(0.1, 1, 6, dtype=task.dtype)
    chosen = [4, 0, 3]
    found = scaled(task, chosen, X, E=E, rate=rate, seed=7, **HOW)
    for k, i in enumerate(chosen):
        how = dict(E=int(E[i]), eta=0.2 * rate[i].item(), B=10, seed=7)
        close(found[k], train(task, [i], X[k], **how)[0])


def test_every_step_of_stage_2():
    """From the order of the visits alone: epochs by speed, steps by the last staleness, weights by
    staleness and likeness."""
    task, world = small(partition=quantity(1.0)), uneven()
    found = values(fedsa, 30, task=task, world=world, first=False, E_1=4, a_2=0.5, **HOW)
    world = uneven()
    seconds = np.array([work(task, [i], B=10, E=1)[0] / world.speed[i] for i in range(6)])
    E = [int(min(4, max(1, np.round(4 * seconds.min() / t)))) for t in seconds]
    assert min(E) == 1 and max(E) == 4
    flops = np.array([work(task, [i], B=10, E=E[i])[0] for i in range(6)])
    x, t, sent, y, tau, last, updates = task.init(), 0, {}, {}, {}, {}, []
    visits = world.arrivals((x, torch.zeros(3)), (x, 0), flops)
    for i, j in visits:
        if i is not None:
            staleness = t - tau[i]
            updates.append(y[i] - sent[i])
            mean = sum(updates[-10:]) / len(updates[-10:])
            a = 0.5 * (staleness + 1) ** -0.5 * max(0, cosine_similarity(updates[-1], mean, 0))
            assert 0 <= a <= 0.5
            x, t = (1 - a) * x + a * y[i], t + 1
            last[i] = staleness
            close(found[t][0], x)
            assert found[t][1] == {"staleness": staleness, "stage": 2}
        if t == 30:
            break
        step = 0.2 * (last[j] + 1) ** -0.5 if j in last else 0.2
        y[j] = train(task, [j], x, E=E[j], B=10, eta=step, seed=(0, t))[0]
        sent[j], tau[j] = x, t


def test_it_changes_over_once_the_probe_stalls():
    how = dict(world=uneven(), E_1=1, a_1=0.5, window=5)
    stages = [v[1]["stage"] for v in values(fedsa, 200, **how, **HOW)]
    assert stages[0] == 1 and stages[-1] == 2
    assert all(a <= b for a, b in itertools.pairwise(stages))
    still = [v[1]["stage"] for v in values(fedsa, 12, world=uneven(), window=5, B=10, eta=0.0)]
    assert still.index(2) == 7  # 5 arrivals after the first loss, and one to be told


def test_bytes_a_visit():
    task, world = small(), World(6, spread=loguniform(5))
    for _ in itertools.islice(fedsa(task, world, **HOW), 21):
        pass
    assert world.server_down % (8 * task.d + 8) == 0 and world.server_up % (8 * task.d + 12) == 0


def test_a_weight_beyond_1_is_refused():
    with pytest.raises(UsageError, match="a_2 = 1.5 is a mixing weight"):
        values(fedsa, 1, a_2=1.5, **HOW)
