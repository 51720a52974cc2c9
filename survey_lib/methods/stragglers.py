"""Stragglers: step with the gradients that are there first instead of waiting for all of them."""

import itertools

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from survey_lib.errors import UsageError
from survey_lib.training import InFlight, work


def backup_workers(task, world, *, b, B, eta, seed=0):
    """Sync-SGD with backup workers: the b slowest of n workers are not waited for, step by step.
    Chen, Pan, Monga, Bengio, Jozefowicz, arXiv 1604.00981, 2016 (Sync-Opt).

    x <- x - (eta / N) (the first N = n - b gradients at x); what comes later is dropped, so that no
    gradient is stale. This is the rule K-sync with K = N, whose messages and bytes it has; b = 0 is
    synchronous SGD. eta multiplies the mean: scaling it with N is left to the caller.
    """
    if not 0 <= b < task.n:
        raise UsageError(f"b = {b} backups among {task.n} workers; choose b from 0 to {task.n - 1}")
    yield from k_sync_async(task, world, K=task.n - b, rule="K-sync", B=B, eta=eta, seed=seed)


def k_sync_async(task, world, *, K, rule="K-async", B, eta, seed=0):
    """The server steps when K minibatch gradients are there. Dutta, Wang, Joshi, IEEE JSAIT 2021.

    x <- x - (eta / K) (sum of K gradients, each at the x that its device began with). rule:
    "K-sync": those of the first K devices; the others are cancelled and all begin at the new x.
    "K-batch-sync": the first K of anybody, a device giving one after the other at the same x; then
    all are cancelled.
    "K-async": those of the first K devices; these begin at the new x, the others go on at theirs.
    "K-batch-async": any K; who has finished one begins another at once, at the server's present x.
    K = n with K-sync is synchronous SGD, K = 1 with either async rule asynchronous SGD.

    Server: x (d,), version t; device i: the x_i (d,) that it began with, of version tau_i. Yields
    per update, with K and the mean staleness t - tau_i of the gradients used: 0 in the sync rules.
    K may be a function of x. Per gradient: down x = 4d B; up g_i = 4d B; what is cancelled has cost
    energy, and the part of the upload that was sent. The paper has computing times only, no
    messages: here a device is sent x for every gradient, and uploads that began at different times
    do not share a finite link of the server. Where fewer than K gradients can arrive, the server
    takes those; a device whose upload was lost begins anew after the update.
    """
    if rule not in ("K-sync", "K-batch-sync", "K-async", "K-batch-async"):
        raise UsageError(
            f'rule = "{rule}"; expected "K-sync", "K-async", or "K-batch-" with either'
        )
    batch, cancel = "batch" in rule, rule.endswith("-sync")
    x, X = task.init(), torch.zeros(task.n, task.d, dtype=task.dtype)  # (d,), (n, d): each device's
    flight, flops = InFlight(task, B=B, K=1, eta=1.0), work(task, np.arange(task.n), B=B, K=1)
    due, away = np.full(task.n, np.inf), np.zeros(task.n, bool)  # arrival (s), under way?
    tau, drawn, staleness = np.zeros(task.n, int), np.zeros(task.n, int), []
    for t in itertools.count():
        wanted = K(x) if callable(K) else K
        if not 0 < wanted <= (np.inf if batch else task.n):
            raise UsageError(f"K = {wanted} of {task.n} devices; choose K from 1 to {task.n}")
        yield x, {"staleness": float(np.mean(staleness or 0)), "K": wanted}
        used, staleness, idle = [], [], np.flatnonzero(~away)
        while len(used) < wanted:
            idle = world.broadcast(idle, x)
            world.compute(idle, flops[idle])
            for i in idle:
                flight.start(i, x, (seed, int(drawn[i])))  # y_i = x - g_i, on i's next batch
            X[idle], tau[idle], away[idle] = x, t, True
            due[idle] = world.uploads(idle, X[idle])
            drawn[idle] += 1
            first = np.argsort(due, kind="stable")[: 1 if batch else wanted]
            idle = first[np.isfinite(due[first])]
            world.close(idle, due[idle].max(initial=0.0))
            used += [X[i] - flight.result(i) for i in idle]
            staleness += list(t - tau[idle])
            due[idle], away[idle] = np.inf, False
            if len(idle) < len(first):  # nothing else will arrive
                break
        stop = np.flatnonzero(away if cancel else away & np.isinf(due))  # cancelled, or lost
        given_up = world.due(stop).max(initial=0.0)
        world.close(stop, world.clock if len(used) == wanted else given_up)
        due[stop], away[stop] = np.inf, False
        if used:
            x = x - eta * torch.stack(used).mean(0)


def adasync(task, world, *, K_0, interval, rule="K-async", probe=256, B, eta, seed=0):
    """AdaSync: K grows as the loss falls, from many fast updates to few precise ones. Dutta, Wang,
    Joshi, IEEE JSAIT 2021.

    At the start of every `interval` of virtual seconds the server evaluates the loss F(x) on a
    fixed probe of samples, in no time, and takes the K of `synchronicity` for F(x_0) / F(x); K
    never falls. All else is `k_sync_async`. The rules for K and their rounding are those of a
    public implementation (in which K may fall again); the paper's box was not at hand.
    """
    images, labels = task.batch(min(probe, len(task.order)), seed, "probe")
    K, end = K_0, interval

    def F(x):
        return cross_entropy(task.logits(x, images), labels).item()

    F_0 = F(task.init())

    def adapted(x):
        nonlocal K, end
        if world.clock >= end:
            end = interval * (world.clock // interval + 1)
            ratio = F_0 / max(F(x), 1e-9)
            if ratio > 1:
                K = max(K, synchronicity(K_0, ratio, task.n, rule))
        return K

    yield from k_sync_async(task, world, K=adapted, rule=rule, B=B, eta=eta, seed=seed)


def synchronicity(K_0: int, ratio: float, n: int, rule: str = "K-async") -> int:
    """The K that balances updates made and noise when the loss has fallen to F_0 / ratio, given
    that K_0 did at F_0: it minimises F (seconds per update) + constant / K.

    Seconds per update are taken as proportional to K, for K-async an upper bound: K = K_0
    sqrt(ratio). In K-sync with exponential times they are about log(n / (n - K)): K^2 / (n - K) =
    ratio K_0^2 / (n - K_0). Rounded to the nearest, at most n.
    """
    K = K_0 * np.sqrt(ratio)
    if rule == "K-sync" and K_0 < n:
        a = ratio * K_0**2 / (n - K_0)
        K = (np.sqrt(a**2 + 4 * a * n) - a) / 2
    return round(min(n, K))
