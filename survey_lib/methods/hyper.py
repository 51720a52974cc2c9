"""Asynchronous training whose hyper-parameters follow the devices and the phase of training."""

from collections import deque

import numpy as np
import torch
from torch.nn.functional import cosine_similarity, cross_entropy

from survey_lib.errors import UsageError
from survey_lib.methods.server_async import polynomial
from survey_lib.training import InFlight, train, work


def scaled(task, chosen, X, *, E, rate, B, eta, seed):
    """(k, d): E[i] epochs of SGD of step eta rate[i] from X (k, d). E, rate: (n,)."""
    rate = rate[chosen, None]  # (k, 1)
    how = dict(eta=eta, B=B, E=E[chosen], seed=seed)
    return train(task, chosen, X, project=lambda G, members: G * rate[members], **how)


def fedsa(
    task,
    world,
    *,
    B,
    eta,
    E_1=5,
    a_1=0.6,
    a_2=0.3,
    s=polynomial(0.5),
    local=polynomial(0.5),
    similar=True,
    first=True,
    least=0.02,
    window=20,
    probe=256,
    seed=0,
):
    """FedSA: two stages, with epochs, steps and mixing weights by staleness and likeness.
    Chen, Mao, Ma, Future Generation Computer Systems 120, 2021: a RECONSTRUCTION.

    What is known of it (abstract and a summary by others): asynchronous, two stages, and
    hyper-parameters on devices and server that follow staleness and unlike data. All formulas
    below are ours.

    Server: x (d,), version t. Stage 1: every device runs E_1 epochs of step eta; on arrival
    x <- (1 - a_1) x + a_1 y. It ends when the loss on a fixed probe of training samples, which the
    server evaluates in no time, fell by less than the share `least` over the last `window`
    arrivals. Stage 2: device k is told E_k = E_1 t_min / t_k epochs, rounded and from 1 to E_1, for
    its seconds per epoch t_k, and the step eta local(tau_k), for the staleness tau_k of its last
    update; the server mixes with a_k = a_2 s(tau_k) max(0, cos(y - x_k, mean of the last 10
    updates)), where x_k is what k began from.
    Per visit: down x, E, step, version = 4d + 12 B; up y, n_k = 4d + 8 B. Yields per arrival the
    staleness and the stage. first=False: stage 2 from the start; window = inf: never.
    similar=False: no cosine. Stage 1 alone is FedAsync with a constant weight; stage 2 without
    cosine and with local = constant, on equal devices, FedAsync with weight a_2 s.
    """
    if not 0 <= a_2 <= 1:
        raise UsageError(f"a_2 = {a_2} is a mixing weight; expected 0 to 1")
    x, t, stage = task.init(), 0, 1 if first else 2  # (d,)
    images, labels = task.batch(min(probe, len(task.order)), seed, "probe")
    losses, updates, sent, tau = [], deque(maxlen=10), {}, {}
    everyone = np.arange(task.n)
    seconds = work(task, everyone, B=B, E=1) / world.speed  # t_k, (n,)
    fewer = np.clip(np.round(E_1 * seconds.min() / seconds), 1, E_1).astype(int)
    E, rate = np.full(task.n, E_1), torch.ones(task.n, dtype=x.dtype)  # (n,), (n,)
    if stage == 2:
        E[:] = fewer
    flops = work(task, everyone, B=B, E=E)
    flight = InFlight(task, scaled, E=E, rate=rate, B=B, eta=eta)
    yield x, {"staleness": 0, "stage": stage}
    for i, j in world.arrivals((x, torch.zeros(3)), (x, 0), flops):
        if i is not None:
            staleness, y = t - tau[i], flight.result(i)
            updates.append(y - sent[i])
            a, rate[i] = a_1, 1.0
            if stage == 2:
                likeness = cosine_similarity(updates[-1], torch.stack(list(updates)).mean(0), 0)
                a = a_2 * s(staleness) * (max(0.0, likeness.item()) if similar else 1.0)
                rate[i] = local(staleness)
            x, t = (1 - a) * x + a * y, t + 1
            yield x, {"staleness": staleness, "stage": stage}
            if stage == 1:
                losses.append(cross_entropy(task.logits(x, images), labels).item())
                far = len(losses) > window
                stage = 2 if far and losses[-1] > (1 - least) * losses[-1 - int(window)] else 1
        if stage == 2:
            E[j], flops[j] = fewer[j], work(task, [j], B=B, E=fewer[j])[0]
        flight.start(j, x, (seed, t))
        sent[j], tau[j] = x, t
