"""Who takes part: devices selected before training by their resources, or after it by arrival."""

import itertools
import math

import numpy as np
import torch

from survey_lib.flows import weigh
from survey_lib.methods.server_sync import mean, sample
from survey_lib.training import local_sgd, work


def greedy(t_UD, t_UL, t_dist, T: float) -> np.ndarray:
    """Positions of the devices whose answers fit in T seconds, in the order of their uploads.
    Nishio, Yonetani, IEEE ICC 2019, Algorithm 3: a heuristic for as many as possible.

    t_UD, t_UL, t_dist (k,): seconds of update, of upload and of the download at the device's own
    rate. The model is multicast at the slowest rate, T_dist(S) = max_S t_dist; all train at once;
    one uploads after the other, so that Theta <- max(Theta, t_UD) + t_UL from Theta = 0. Next is
    whoever adds the least time to T_dist(S) + Theta; it is taken if the sum stays below T.
    """
    left, S, Theta, T_dist = list(range(len(t_UL))), [], 0.0, 0.0

    def added(k):
        return max(0.0, t_dist[k] - T_dist) + t_UL[k] + max(0.0, t_UD[k] - Theta)

    while left:
        k = min(left, key=added)
        left.remove(k)
        after, dist = max(Theta, t_UD[k]) + t_UL[k], max(T_dist, t_dist[k])
        if dist + after < T:
            S, Theta, T_dist = [*S, k], after, dist
    return np.array(S, dtype=int)


def everybody(t_UD, t_UL, t_dist, T: float) -> np.ndarray:
    """All positions, in the order in which they are ready to upload, whether in time or not."""
    return np.argsort(t_UD, kind="stable")


def fedcs(task, world, *, S, T_round, B, eta, E=None, K=None, select=greedy, seed=0):
    """FedCS: only devices whose answers are due in time are asked to train.
    Nishio, Yonetani, IEEE ICC 2019, Protocol 2 and Algorithm 3.

    S random devices report their resources; `greedy` selects and orders some of them; these get x
    (d,) by multicast, train, and upload one after another: x <- sum n_i y_i / sum n_i as in FedAvg.
    T_round, s: the length of a round, request included; what is not there by then is discarded.
    Per device asked: down 8 B, up 32 B (speed, two link rates, n_i; latencies show in the
    exchange). Per device selected: down 4d B, which the server sends once, and up 4d B. The
    forecast knows neither jitter nor fading nor failures; averaging takes no time. Where nobody
    fits, the round passes. Yields how many updates were accepted. T_round = inf, where nothing can
    fail, is FedAvg. select=everybody is FedAvg with a deadline on the same channel.
    """
    x = task.init()  # (d,)
    yield x, {"accepted": 0}
    for r in itertools.count():
        begin = world.clock
        asked = world.broadcast(sample(task.n, S, seed, r), 0)
        known = (world.speed, world.bandwidth_up, world.bandwidth_down, task.sizes)
        reply = torch.as_tensor(np.stack(known, 1)[asked])  # (k, 4)
        told = world.gather(asked, reply)
        asked, reply = asked[told], reply[told].numpy()
        seconds = forecast(task, world, asked, reply, x, B=B, E=E, K=K)
        order = select(*seconds, begin + T_round - world.clock)
        chosen = world.broadcast(asked[order], x, multicast=True)
        Y = local_sgd(task, world, chosen, x, eta=eta, B=B, E=E, K=K, seed=(seed, r))  # (k, d)
        left = max(0.0, begin + T_round - world.clock)
        arrived = world.gather(chosen, Y, deadline=left, serial=True)
        if len(arrived):
            x = mean(Y[arrived], task.sizes[chosen[arrived]])
        yield x, {"accepted": len(arrived)}


def forecast(task, world, asked, reply, x, **how) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """t_UD, t_UL, t_dist (k,) for `greedy`: seconds from the end of the multicast of x to when the
    upload could begin, of the upload, and of the download, as the devices' replies (k, 4 or more;
    speed, B/s up and down) promise them."""
    speed, up, down = reply.T[:3]
    t_UD = work(task, asked, **how) / speed + 2 * world.latency[asked]
    return t_UD, weigh(x) / np.minimum(up, world.server[1]), weigh(x) / down


def safa(task, world, *, C, deadline, B, eta, L=5, E=None, K=None, seed=0):
    """SAFA: all devices train, the first to answer close the round, late answers count later.
    Wu, He, Lin, Mao et al., IEEE Trans. Computers 2021, with its Algorithm 1 (CFCFM).

    Server: x (d,), a cache with one entry per device (n, d), versions v (n,). Device i: a model X_i
    (d,), trained to Y_i. Round t: those that finished in round t - 1 and the deprecated, v_i < t -
    1 - L, get x; work of a deprecated one is thrown away and its entry becomes x. Who is idle
    trains from X_i. The round closes when q = ceil(C n) devices not picked last time have answered,
    when all have, or after `deadline` s. Picked are the first q to answer, those not picked last
    time before the others; their Y_i go into the cache, x <- sum_i (n_i / n) cache_i over all
    devices, then the other answers go in and count one round later.
    Bytes: down 4d per device that gets x, up 4d per answer. Yields the shares of all devices that
    were picked (EUR), got x (SR) and lost work to it (futile).
    L = 0: who missed a round gets x; L = inf: nobody is forced. C = 1 with equal devices is FedAvg.

    A device that has not answered when the round closes goes on and is heard in a later round. The
    authors' simulation has no such device: whoever does not crash is done in each round, whenever
    it closes, and a round that cannot meet its quota ends with its last answer, not at the
    deadline. L counts as in their code (their page: L + 1). A device that crashes or whose answer
    is lost begins again from X_i in the next round. The cache starts at the initial model; in their
    code all devices fill it in an epoch that no crash disturbs.
    """
    n, q, x = task.n, math.ceil(C * task.n), task.init()  # x (d,)
    X = x.repeat(n, 1)  # (n, d)
    cache, Y = X.clone(), X.clone()
    v, due = np.zeros(n, int), np.full(n, np.inf)  # due: s, when the answer arrives, inf: never
    away, picked = np.zeros(n, bool), np.zeros(n, bool)
    yield x, {"EUR": 0.0, "SR": 0.0, "futile": 0.0}
    for t in itertools.count(1):
        limit, old = world.clock + deadline, v < t - 1 - L
        futile, cache[old] = old & away, x
        world.close(np.flatnonzero(futile), world.clock)
        away &= ~futile
        fresh = np.flatnonzero(old | (v == t - 1))
        got = world.broadcast(fresh, x) if len(fresh) else fresh
        X[got], v[got] = x, t - 1
        idle = world.online(np.flatnonzero(~away))
        Y[idle] = local_sgd(task, world, idle, X[idle], eta=eta, B=B, E=E, K=K, seed=(seed, t - 1))
        due[idle], away[idle] = world.uploads(idle, Y[idle]), True
        on = np.flatnonzero(away)
        quota = np.sort(due[on[~picked[on]]])[q - 1 : q]  # empty if there are fewer than q
        end = min(limit, max(due[on], default=np.inf), *quota)
        order = on[np.lexsort((due[on], picked[on]))]
        order = order[due[order] <= end]
        P, Q = order[:q], order[q:]
        failed = on[np.isinf(due[on])]
        world.close(np.concatenate([P, Q, failed]), end)
        away[order] = away[failed] = False
        cache[P] = Y[P]
        x = task.p @ cache
        cache[Q] = Y[Q]
        X[order], v[order] = Y[order], t
        picked = np.isin(np.arange(n), P)
        yield x, {"EUR": len(P) / n, "SR": len(got) / n, "futile": futile.sum() / n}
