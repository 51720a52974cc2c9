"""Information is shared against skew: samples from the server, samples to the server, curvature."""

import itertools
from collections.abc import Callable
from copy import copy
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from survey_lib import presets
from survey_lib.backprop import backward, forward
from survey_lib.flows import weigh
from survey_lib.methods.selection import forecast, greedy
from survey_lib.methods.server_sync import fedavg, mean, sample
from survey_lib.streams import stream
from survey_lib.training import cross_entropy, gradients_on, local_sgd, schedule, train, work

SPEED = presets.device("edge_server").speed  # FLOP/s of the server, for which worlds have no figure


def shared_data(
    task,
    world,
    *,
    S,
    beta,
    B,
    eta,
    alpha=1.0,
    E=None,
    K=None,
    warm_up=0,
    speed=SPEED,
    own=False,
    private=True,
    seed=0,
):
    """Shared data: a small balanced set of the server's goes to every device, then FedAvg.
    Zhao et al., arXiv 1806.00582, 2018, section 4.

    The server owns G: |G| = beta |D| samples, |D| = sum_i n_i, evenly from the classes and from
    what no device holds (see partition.kept_back). Before the first round each device gets a random
    share alpha of it, and from then on holds n_i + alpha |G| samples, which also weigh it. If G has
    the classes' global shares, the distance of a device's from them shrinks by n_i / (n_i + alpha
    |G|). warm_up: epochs on G by which the server makes the first model, at `speed` FLOP/s.
    Bytes: once per device alpha |G| samples, each a byte a pixel and one for the label; FedAvg's
    per round. beta = 0 is FedAvg; alpha = 0 with warm_up is FedAvg from another start. A device
    that does not get its share, since it is off or the message lost, trains on its own samples.
    Controls: own=True: the extra samples are of the classes that the device has (twice where there
    are too few); private=False: devices train on what they got alone.
    """
    x, everybody = task.init(), np.arange(task.n)  # (d,)
    yield x
    pool = stream(seed, "pool").permutation(unheld(task))
    G = evenly(task.y.numpy(), pool, round(beta * task.sizes.sum()))
    if warm_up and len(G):
        how = dict(eta=eta, B=B, E=warm_up, seed=(seed, "warm up"))
        x, seconds = central(task, G, x, speed=speed, **how)
        world.close([], world.clock + seconds)
    parts, m = [task.rows(i) for i in everybody], round(alpha * len(G))
    if m:
        give = partial(own_classes, task, pool) if own else partial(part, G)
        gifts = [give(m, seed, i) for i in everybody]
        got = world.scatter(everybody, [packed(task, rows) for rows in gifts])
        world.barrier(got)
        for i in got:
            parts[i] = np.concatenate([parts[i], gifts[i]]) if private else gifts[i]
    rounds = fedavg(holding(task, parts, x), world, S=S, B=B, eta=eta, E=E, K=K, seed=seed)
    next(rounds)  # its start
    yield from rounds


def unheld(task) -> np.ndarray:
    """The training samples that no device holds."""
    return np.setdiff1d(np.arange(len(task.y)), task.order)


def evenly(y: np.ndarray, rows: np.ndarray, m: int, count: np.ndarray | None = None) -> np.ndarray:
    """Up to m of the samples `rows` with labels y[rows]: one after the other the first that is left
    of the class of which there are fewest, of those left; count (classes,): how many there are
    already."""
    classes = int(y.max()) + 1
    left = [list(rows[y[rows] == c][::-1]) for c in range(classes)]
    count, chosen = np.zeros(classes, int) if count is None else count.copy(), []
    while len(chosen) < m and any(left):
        c = min((c for c in range(classes) if left[c]), key=count.__getitem__)
        chosen.append(left[c].pop())
        count[c] += 1
    return np.array(chosen, int)


def part(G: np.ndarray, m: int, *key) -> np.ndarray:
    """m of the samples G, at random, as they stand."""
    return G[np.sort(stream("part", *key).permutation(len(G))[:m])]


def own_classes(task, pool: np.ndarray, m: int, seed, i: int) -> np.ndarray:
    """m samples of the pool whose classes device i has; if it has too few, some of them twice."""
    alike = pool[np.isin(task.y[pool], task.y[task.rows(i)])]
    return np.resize(alike, m) if len(alike) else alike


def packed(task, rows) -> tuple[Tensor, Tensor]:
    """What is sent of samples: images, a byte a pixel, and labels, a byte each."""
    return (255 * task.x[rows].flatten(1).clamp(0, 1)).byte(), task.y[rows].byte()


def holding(task, parts: list[np.ndarray], x: Tensor | None = None):
    """A copy of the task in which len(parts) devices hold these training samples; x (d,): what it
    starts from."""
    task = copy(task)
    task.n, task.sizes = len(parts), np.array([len(rows) for rows in parts])
    task.order, task.offset = np.concatenate(parts), np.concatenate([[0], np.cumsum(task.sizes)])
    task.p = torch.as_tensor(task.sizes / task.sizes.sum(), dtype=task.dtype)
    if x is not None:
        task.init = x.clone
    return task


def central(task, rows, x, *, speed, eta, B, E=None, K=None, seed) -> tuple[Tensor, float]:
    """The model x (d,) trained on these samples by the server, and the seconds that it takes."""
    server, how = holding(task, [rows]), dict(B=B, E=E, K=K)
    y = train(server, [0], x, eta=eta, **how, seed=seed)[0]
    return y, work(server, [0], **how)[0] / speed


Permit = Callable[..., np.ndarray]  # (task, *key) -> devices


def anybody(k: int) -> Permit:
    """k random devices let the server have their data."""
    return partial(_anybody, k=k)


def covering(k: int, classes: int | None = None) -> Permit:
    """k devices let the server have their data, which are of all classes as far as k allows;
    classes: of so many at most."""
    return partial(_covering, k=k, classes=classes)


def _anybody(task, *key, k):
    return np.sort(stream("permit", *key).permutation(task.n)[:k])


def _covering(task, *key, k, classes=None):
    rng = stream("permit", *key)
    allowed = set(rng.permutation(task.classes)[:classes].tolist())
    held = {int(i): set(task.y[task.rows(i)].tolist()) for i in rng.permutation(task.n)}
    left, chosen, have = [i for i in held if held[i] <= allowed], [], set()
    while left and len(chosen) < k:  # the first of those that add most
        i = max(left, key=lambda j: len(held[j] - have))
        left.remove(i)
        chosen.append(i)
        have |= held[i]
    return np.sort(np.array(chosen, int))


def hybrid_fl(
    task,
    world,
    *,
    S,
    T_round,
    permit,
    m,
    B,
    eta,
    E=None,
    K=None,
    balanced=True,
    speed=SPEED,
    select=greedy,
    seed=0,
):
    """Hybrid-FL: FedCS, and a server that trains too, on data which few devices let it have.
    Yoshida et al., IEEE ICC 2020 (arXiv 1905.07210).

    x (d,); `gathered`: the samples at the server. A round: S random devices and those that permit
    report resources and how many samples of each class they may yet upload; as in `fedcs` some of
    the S are selected, train from x and upload one after the other. In the time that is left of
    T_round the permitting devices upload up to m samples, `evenly`: the class next of which the
    server has fewest (balanced=False: at random). x <- (sum n_i y_i + |gathered| y) / (sum n_i +
    |gathered|), where y is x trained on what the server had when the round began, B, E or K as
    theirs, at `speed` FLOP/s; the round lasts until it is through.
    Per device asked: down 8 B, up 32 + 8 classes B. Per device selected: down 4d B, sent once, up
    4d B. Per device that uploads data: down 8 classes B, up a byte a pixel and label. Yields how
    many updates were accepted, and samples and classes at the server.
    Nobody permits: FedCS. T_round too short for any: centralised SGD on the gathered set.
    permit: a function (task, key) -> devices, such as `covering(10)`.

    The paper's heuristics could not be checked; selection and order are our reading. A sample lost
    under way stays with its device. A lost upload is waited for as long as it would have taken.
    """
    x, willing, gathered = task.init(), permit(task, seed), np.zeros(0, int)  # (d,)
    yield x, {"accepted": 0, "gathered": 0, "classes": 0}
    for r in itertools.count():
        limit, how, key = world.clock + T_round, dict(B=B, E=E, K=K), (seed, r)
        polled = sample(task.n, S, *key)
        asked = world.broadcast(np.union1d(polled, willing), 0)
        reply = resources(task, world, asked, willing, gathered)
        told = world.gather(asked, reply)
        asked, reply = asked[told], reply[told].numpy()
        some, seconds = np.isin(asked, polled), forecast(task, world, asked, reply, x, **how)
        order = select(*(t[some] for t in seconds), limit - world.clock)
        begin, chosen = world.clock, asked[some][order]
        if len(chosen):
            chosen = world.broadcast(chosen, x, multicast=True)
        Y = local_sgd(task, world, chosen, x, eta=eta, **how, seed=key)  # (k, d)
        up = in_turn(world, chosen, Y, limit)
        rows, weight = Y[up], task.sizes[chosen[up]]
        if len(gathered):
            y, seconds = central(task, gathered, x, speed=speed, eta=eta, **how, seed=key)
            rows, weight = torch.cat([rows, y[None]]), np.append(weight, len(gathered))
        new = requested(task, world, asked, reply, gathered, m, balanced, limit, key)
        if len(gathered):
            world.close([], begin + seconds)
        x = mean(rows, weight) if len(rows) else x
        gathered = np.concatenate([gathered, new])
        classes = len(task.y[gathered].unique())
        yield x, {"accepted": len(up), "gathered": len(gathered), "classes": classes}


def labels(task, rows) -> np.ndarray:
    """(classes,): how many of the samples are of each class."""
    return np.bincount(task.y[rows], minlength=task.classes)


def resources(task, world, asked, willing, gathered) -> Tensor:
    """(k, 4 + classes): speed, B/s up and down, samples, and how many of each class the device may
    upload that are not gathered yet."""
    offers = [labels(task, np.setdiff1d(task.rows(i), gathered)) * (i in willing) for i in asked]
    known = world.speed, world.bandwidth_up, world.bandwidth_down, task.sizes
    known = np.stack([v[asked] for v in known], 1)
    return torch.from_numpy(np.hstack([known, np.reshape(offers, (-1, task.classes))]))


def requested(task, world, asked, reply, gathered, m, balanced, limit, key) -> np.ndarray:
    """The samples that arrive of the up to m that the server asks for, as many as are due before
    `limit`."""
    offers = reply[:, 4:].any(1)
    held = {i: np.setdiff1d(task.rows(i), gathered) for i in asked[offers]}
    pool, first = np.unique(np.concatenate([np.zeros(0, int), *held.values()]), return_index=True)
    owner = np.repeat(np.flatnonzero(offers), [len(own) for own in held.values()])[first]
    shuffled = stream("data", *key).permutation(pool)
    count = labels(task, gathered)
    rows = evenly(task.y.numpy(), shuffled, m, count) if balanced else shuffled[:m]
    owner = owner[np.searchsorted(pool, rows)]
    request = [torch.from_numpy(labels(task, rows[owner == k])) for k in range(len(asked))]
    ready = 2 * world.latency[asked[owner]] + weigh(request[:1]) / reply[owner, 2]
    each = weigh(packed(task, rows[:1])) / np.minimum(reply[owner, 1], world.server[1])
    due = world.clock + np.maximum.accumulate(ready) + np.cumsum(each) < limit
    rows, owner = rows[due], owner[due]
    some = np.unique(owner)
    if not len(some):
        return rows
    got = world.scatter(asked[some], [request[k] for k in some])
    parts = [rows[asked[owner] == i] for i in got]
    arrived = in_turn(world, got, [packed(task, own) for own in parts], limit)
    return np.concatenate([np.zeros(0, int), *(parts[k] for k in arrived)])


def in_turn(world, chosen, payload, limit) -> np.ndarray:
    """Positions of the devices whose uploads, one after the other, arrive by `limit`; one that
    fails is waited for as long as it would take."""
    if not len(chosen):
        return chosen
    times = world.uploads(chosen, payload, serial=True)
    world.close(chosen, min(limit, world.due(chosen).max()))
    return np.flatnonzero(times <= world.clock)


def fedcurv(task, world, *, S, lam, B, eta, E=None, K=None, seed=0):
    """FedCurv: local training may move least what matters most to the others, by their Fisher
    information. Shoham et al., NeurIPS workshop on federated learning, 2019 (arXiv 1910.07796).

    Device i minimises F_i(y) + lam sum_{j != i} (y - y_j)^T diag(I_j) (y - y_j) over the devices j
    heard in the last round: y_j its model then, I_j the `fisher` diagonal there. With u_j = I_j,
    v_j = I_j y_j and their sums U, V this adds 2 lam ((U - u_i) y - (V - v_i)) to the gradient. x
    <- sum n_i y_i / sum n_i as in FedAvg. Server: x, U, V (d,); rows u, v (n, d): what of them is
    each device's own, which it keeps itself: it is told whether its answer came.
    Per device: down (x, U, V) = 12d B, up (y_i, u_i, v_i) = 12d B: three times FedAvg, for any n;
    and one more pass over its samples. The first round has no pull. lam = 0, and one device alone,
    is FedAvg. 2 lam eta max(U) < 2, or the steps diverge.
    Two public implementations square the mean gradient of a batch, which is less by about B, so
    that their lam depends on B; one averages u_j where the paper has their sum.
    """
    x = task.init()  # (d,)
    u, v = torch.zeros(2, task.n, len(x), dtype=x.dtype)  # (n, d) each
    for r in itertools.count():
        yield x
        U, V = u.sum(0), v.sum(0)
        chosen = world.broadcast(sample(task.n, S, seed, r), (x, U, V))
        pull = 2 * lam * (U - u[chosen]), 2 * lam * (V - v[chosen])
        Y = pulled_sgd(task, world, chosen, x, *pull, eta=eta, B=B, E=E, K=K, seed=(seed, r))
        world.compute(chosen, work(task, chosen, B=B, E=1))
        fresh = fisher(task, chosen, Y)  # (k, d)
        up = world.gather(chosen, (Y, fresh, fresh * Y))
        if len(up):
            heard = chosen[up]
            x = mean(Y[up], task.sizes[heard])
            u, v = torch.zeros_like(u), torch.zeros_like(v)
            u[heard], v[heard] = fresh[up], (fresh * Y)[up]


def pulled_sgd(task, world, chosen, x, A, b, *, eta, B, E=None, K=None, seed) -> Tensor:
    """(k, d): `local_sgd` with A y - b added to the gradient, A and b (k, d)."""
    if not (A.any() or b.any()):
        return local_sgd(task, world, chosen, x, eta=eta, B=B, E=E, K=K, seed=seed)
    world.compute(chosen, work(task, chosen, B=B, E=E, K=K))
    rows, weight, steps = schedule(task, chosen, B=B, E=E, K=K, seed=seed)
    order = np.argsort(-steps, kind="stable")  # the longest first: those at work are a prefix
    rows, weight, A, b = (v[order] for v in (rows, weight, A, b))
    Y = x.repeat(len(order), 1)
    for k in range(steps.max(initial=0)):
        m = (steps > k).sum()
        g = gradients_on(task, Y[:m], rows[:m, k], weight[:m, k])
        Y[:m] -= eta * (g + A[:m] * Y[:m] - b[:m])
    return Y[np.argsort(order)]


def fisher(task, chosen, Y) -> Tensor:
    """(k, d): the diagonal of the empirical Fisher information: over each device's samples the mean
    of the squared gradient of log p(y | x), at its model, Y (k, d)."""
    layers, out = task.network.by_hand, torch.zeros_like(Y)
    if len(chosen) and layers and not any(isinstance(layer, nn.Conv2d) for layer in layers):
        rows, weight, _ = schedule(task, chosen, K=1, seed=0)  # (k, 1, B): all samples, 1 / n_i
        seen, (W, b) = rows[:, 0].clamp(min=0), (task.network.views(Y)[j::2] for j in (0, 1))
        W, b = [w.contiguous() for w in W], [v.contiguous() for v in b]
        z, kept = forward(layers, W, b, task.x[seen])
        delta = cross_entropy(z, task.y[seen], seen, None) * weight[:, 0, :, None].sqrt()
        squares = task.network.views(out)
        for j, left, right, _ in backward(layers, W, kept, delta):  # a sample's slope: left x right
            squares[2 * j].copy_(left.square() @ right.square())
            squares[2 * j + 1].copy_(left.square().sum(2))
        return out
    for i, y, own in zip(chosen, Y, out, strict=True):
        for rows in torch.from_numpy(task.rows(i)).split(100):
            g = gradients_on(task, y.expand(len(rows), -1), rows[:, None], y.new_ones(len(rows), 1))
            own += g.square().sum(0) / task.sizes[i]
    return out
