"""What followed federated distillation: augmentation, compressed labels, the wireless channel.

FD itself is in distillation.py. Networks may be unlike (problems.Mixed).
"""

import itertools
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from survey_lib.channel import analog
from survey_lib.methods.codistillation import (
    as_network,
    forward_flops,
    outputs,
    starts,
    trained,
)
from survey_lib.methods.distillation import bits, federated_distillation_fd, regularised
from survey_lib.methods.personal_models import public_rows
from survey_lib.partition import label_counts
from survey_lib.soft_labels import encode, number, points, quantise
from survey_lib.streams import stream
from survey_lib.tasks import kinds, redealt
from survey_lib.training import cross_entropy, gradients_on, schedule, train, work

# ---- augmentation --------------------------------------------------------------------------------


def faug(
    task,
    world,
    *,
    then=federated_distillation_fd,
    seeds=5,
    redundant=4,
    generator=None,
    seed=0,
    **arguments,
):
    """FAug: devices fill up the labels that they lack with samples from a common generator.
    Jeong et al., NeurIPS workshop MLPCD 2018, section 3; `then` trains, with its `arguments`.

    Before the first round a device names its target labels, those of which it has less than half of
    an equal share, and `redundant` others to hide them, and sends up to `seeds` samples of each;
    the server fits a generator to all these and sends it back; the device adds samples until it has
    as many of every label as of its most frequent one. generator: (x (m, D), y (m,), C) -> (what is
    sent, draw), default `gaussian`, in place of the paper's conditional GAN.
    Up: a bit per label, and 4D + 1 B a seed; down: the generator. Nobody lacks a label: no traffic.
    Yields `leakage`, how sure the server may be of a target label, see `leaked`: the paper presumes
    target labels that are rare, not absent; absent ones come without a seed, and are told by that.
    A device has no seed of a label that it lacks altogether; others send it as a redundant one. A
    label without seeds is not generated; who is off, or gets no generator, keeps what it has.
    """
    generator, rounds = generator or gaussian, then(task, world, **arguments, seed=seed)
    yield with_extra(next(rounds), leakage=0.0)
    on = world.online()
    held = held_labels(task, on)  # (k, C)
    target = held < held.sum(1, keepdims=True) / (2 * task.classes)
    able = target.any(1)
    on, held, target, data, leakage = on[able], held[able], target[able], task, 0.0
    if len(on):
        named = named_labels(target, held, on, redundant, seed)
        leakage = leaked(target, named, np.minimum(held, seeds))
        own = [some_of_each(task, i, f, seeds, seed) for i, f in zip(on, named, strict=True)]
        flags = bits(torch.from_numpy(named))
        sent = [(f, task.x[p], task.y[p].byte()) for f, p in zip(flags, own, strict=True)]
        up = world.gather(on, sent)
        pool = np.concatenate([np.zeros(0, int), *(own[k] for k in up)])
        if len(pool):
            payload, draw = generator(task.x[pool].flatten(1), task.y[pool], task.classes)
            got = np.isin(on, world.broadcast(on, payload))
            there = np.isin(np.arange(task.classes), task.y[pool])
            missing = (held.max(1, keepdims=True) - held) * there
            data = filled(task, on[got], missing[got], draw, seed)
            world.barrier(on)
    rounds = then(data, world, **arguments, seed=seed)
    next(rounds)
    for value in rounds:
        yield with_extra(value, leakage=leakage)


def with_extra(value, **more):
    """What a method yields, with further numbers beside the model."""
    X, extra = value if isinstance(value, tuple) else (value, {})
    return X, extra | more


def held_labels(task, chosen) -> np.ndarray:
    """(k, C): samples of each label at the chosen devices."""
    return label_counts(task.y, [task.rows(i) for i in chosen], task.classes)


def named_labels(target, held, on, redundant, seed) -> np.ndarray:
    """(k, C): the labels that each device names: its targets, and so many of the others that it
    has, by chance."""
    named = target.copy()
    for k, i in enumerate(on):
        others = np.flatnonzero(~target[k] & (held[k] > 0))
        named[k, stream("redundant", seed, int(i)).permutation(others)[:redundant]] = True
    return named


def leaked(target, named, sent) -> float:
    """How sure the server may be of a target label: the share of targets among the named labels
    that come with as many seeds, sent (k, C); mean over a device's targets, then over devices.

    If all come with as many, this is the paper's |target| / (|target| + |redundant|). It presumes
    target labels that are rare, not absent: one that comes without a seed, or with fewer than the
    others, is told by that, and no redundant label hides it. (k, C): target, within named.
    """
    alike = (sent[:, :, None] == sent[:, None]) & named[:, None]  # (k, C, C): c' as c
    share = (alike & target[:, None]).sum(2) / alike.sum(2).clip(min=1)  # (k, C)
    return float(((share * target).sum(1) / target.sum(1)).mean())


def some_of_each(task, i, labels, m, seed) -> np.ndarray:
    """Rows of at most m samples of each of the flagged labels (C,) of device i."""
    own = stream("seed samples", seed, int(i)).permutation(task.rows(i))
    y = task.y[own].numpy()
    chosen = [own[y == c][:m] for c in np.flatnonzero(labels)]
    return np.concatenate([np.zeros(0, int), *chosen])


def filled(task, chosen, missing, draw, seed):
    """The task in which the chosen devices have `missing` (k, C) drawn samples of each label
    besides."""
    x, y, parts = [task.x], [task.y], [task.rows(i) for i in range(task.n)]
    for i, m in zip(chosen, missing, strict=True):
        labels = torch.from_numpy(np.repeat(np.arange(task.classes), m))
        first = sum(len(v) for v in y)
        x.append(draw(labels, stream("generated", seed, int(i))).view(-1, *task.x.shape[1:]))
        y.append(labels)
        parts[i] = np.concatenate([parts[i], first + np.arange(len(labels))])
    return redealt(task, parts, torch.cat(x), torch.cat(y))


def gaussian(x: Tensor, y: Tensor, C: int, *, q: int = 10):
    """A generator by classes: x = the class mean + sum_k s_ck N(0, 1) u_k, u_k the first q
    principal directions of what is left of the seeds x (m, D) without their class means, s_ck the
    standard deviation of the class along them; within the range of the seeds. 4 (C D + q D + C q)
    B."""
    count = F.one_hot(y, C).to(x.dtype).T  # (C, m)
    size = count.sum(1, keepdim=True).clamp(min=1)
    mean = count @ x / size  # (C, D)
    rest = x - mean[y]
    U = torch.linalg.svd(rest, full_matrices=False).Vh[:q] if len(x) else x[:q]  # (q, D)
    s = (count @ (rest @ U.T).square() / (size - 1).clamp(min=1)).sqrt()  # (C, q)

    def draw(labels, rng):
        z = torch.from_numpy(rng.standard_normal((len(labels), len(U)))).to(x.dtype)
        return (mean[labels] + (z * s[labels]) @ U).clamp(x.min(), x.max())

    return (mean, U, s), draw


# ---- compressed labels of public data ------------------------------------------------------------


def cfd(
    task,
    world,
    *,
    K,
    B,
    eta,
    b_up=1,
    b_down=1,
    public=300,
    K_pub=None,
    dual=True,
    delta=True,
    private=False,
    seed=0,
):
    """CFD: devices exchange soft labels of public samples, quantised and coded.
    Sattler, Marban, Rischke, Samek, arXiv 2012.00632, 2020.

    Y (n, d): the devices' models, of any networks; x (d,): the server's, of the (first) device's
    network; G: `public` training samples that no device holds, unlabelled, known to all. A round:
    device i distils from the server's last labels of G (K_pub steps, default K), trains on its own
    data (K steps) and sends its outputs on G in b_up bits; the server distils x from the mean of
    those that arrive (K_pub steps), and sends back what x says of G in b_down bits (dual=False: the
    mean itself). Bits b: soft_labels.quantise; 32: as they are, 4 C |G| B.
    delta: only the changes against the last labels that the same receiver got, see
    soft_labels.encode: about h(p) + p log2(C - 1) bits for b = 1, p the share that changed.
    b = 32 without dual: plain distillation on public data. Every model keeps its state between
    rounds. Yields x; private: Y. The paper's choice of samples to label (active curation) is left
    out.
    """
    G, like = public_rows(task, public, seed), as_network(task, None)
    pub, server = (redealt(t, [G.numpy()] * task.n) for t in (task, like))
    Y, images, K_pub = starts(task), task.x[G], K_pub or K  # (n, d), (m, ...)
    x, how = Y[0, : like.d], dict(B=B, eta=eta)
    labels, got = Y.new_zeros(task.n, len(task.y), task.classes), np.zeros(task.n, bool)
    had_up, had_down = [None] * task.n, [None] * task.n  # numbers of the last labels of each device
    for r in itertools.count():
        yield Y if private else x
        on = world.online()
        told = on[got[on]]
        soft = partial(towards, target=labels[told])
        Y = trained(pub, world, told, Y, soft, K=K_pub, seed=(seed, r, "public"), **how)
        Y = trained(task, world, on, Y, cross_entropy, K=K, seed=(seed, r), **how)
        world.compute(on, forward_flops(task, on) * len(G))
        p = torch.softmax(outputs(task, on, Y[on], images.expand(len(on), *images.shape)), -1)
        sent, read, numbers = coded(p, b_up, [had_up[i] for i in on], delta)
        up = world.gather(on, sent)
        for k in up:
            had_up[on[k]] = numbers[k]
        if len(up):
            p = read[up].mean(0, keepdim=True)
            soft = partial(towards, target=torch.zeros_like(labels[:1]).index_copy(1, G, p))
            x = train(server, [0], x, loss=soft, K=K_pub, seed=(seed, r, "server"), **how)[0]
            p = torch.softmax(like.logits(x, images), -1)[None] if dual else p
            p, before = p.expand(len(on), -1, -1), [had_down[i] for i in on]
            sent, read, numbers = coded(p, b_down, before, delta)
            for i in world.scatter(on, sent):
                labels[i, G], had_down[i], got[i] = read[0], numbers[0], True
        elif not len(on):
            world.barrier(on)  # gather would wait for nobody


def coded(p: Tensor, b: int, before: list, delta: bool):
    """The labels p (k, m, C) in b bits: what is sent, a message each; what is read (k, m, C); and
    their numbers (k, m). before: the numbers that each receiver has, or None."""
    if b == 32:
        return list(p), p, [None] * len(p)
    q, C = quantise(p, b), p.shape[-1]
    numbers, N = number(q) if len(q) else np.zeros((0, p.shape[1]), int), points(b, C)
    sent = [
        torch.frombuffer(bytearray(encode(own, old if delta else None, N)), dtype=torch.uint8)
        for own, old in zip(numbers, before, strict=True)
    ]
    return sent, q.to(p.dtype) / (2**b - 1), numbers


def towards(z, y, rows, members, *, target):
    """dL/dz of CE(target, softmax(z)), target (k, N, C) by device and training sample."""
    return torch.softmax(z, -1) - target[members[:, None], rows.clamp(min=0)]


# ---- the wireless channel ------------------------------------------------------------------------


def fd_wireless_hfd(
    task,
    world,
    *,
    K,
    B,
    eta,
    gamma=1.0,
    hybrid=True,
    channel=analog,
    uses=1000,
    snr_db=10.0,
    seed=0,
):
    """HFD: devices learn the outputs for the mean sample of every class, over a noisy channel.
    Ahn, Simeone, Kang, IEEE PIMRC 2019 (the pairs: as the authors' arXiv 2002.01337 tells them).

    Y (n, d), models of any networks. Offline: up the mean sample of each class that the device has,
    and its counts, 4 C (D + 1) B; down their mean over all data, xbar (C, D), 4 C D B.
    A round: K steps on CE(own batch) + gamma mean_l CE(s_l, F(xbar_l)), F the softmax outputs; then
    up F_i(xbar_l) for the classes that the device has, and a 1 for each of these, m = C (C + 1)
    numbers, through `channel` (channel.py) in T = `uses` channel uses at signal-to-noise ratio
    snr_db; the server divides the sum by the count, clips and normalises: s_l, sent to all.
    hybrid=False: FD over the same channel: mean outputs by class while training pull the own
    samples of the class, and a device takes its own part out of the sum; without noise this is
    federated_distillation_fd. gamma = 0 is local training.
    World: bytes of the coded numbers, analogue ones as they are, and the links' time, not the
    channel's; its uses so far are yielded as `uses`. The downlink is free of noise. Entries that
    the uses were too few for stay what they were. Who missed the mean samples trains alone.
    """
    C, Y, snr = task.classes, starts(task), 10 ** (snr_db / 10)  # (n, d)
    heard, own = Y.new_zeros(C * (C + 1)), Y.new_zeros(task.n, C * (C + 1))  # sum; each one's part
    target, known = Y.new_zeros(task.n, C, C), torch.zeros(task.n, C, dtype=torch.bool)
    data, able = None, np.zeros(task.n, bool)
    for r in itertools.count():
        yield Y, {"uses": r * uses}
        on, how = world.online(), dict(K=K, B=B, eta=eta, seed=(seed, r))
        if hybrid and not able.any():
            data, able = mean_samples(task, world, on)
            on = world.online()
        told = dict(target=target[on], known=known[on], gamma=gamma)
        if hybrid:
            Y = paired_sgd(data, world, on, Y, **told, **how)
            world.compute(on, forward_flops(task, on) * C)
            images = data.x[len(task.y) :]
            images = images.expand(len(on), *images.shape)
            mean = torch.softmax(outputs(task, on, Y[on], images), -1)  # (k, C, C)
            has = torch.from_numpy((held_labels(task, on) > 0) & able[on, None])
        else:
            total, count = Y.new_zeros(len(on), C, C), Y.new_zeros(len(on), C)
            loss = partial(regularised, **told, total=total, count=count)
            Y = trained(task, world, on, Y, loss, **how)
            mean, has = total / count.clamp(min=1)[..., None], count > 0
        has = has.to(Y.dtype)
        V = torch.cat([(mean * has[..., None]).flatten(1), has], 1)  # (k, m)
        sent, read, noise = channel(V, uses, snr, seed, r)
        up, there = world.gather(on, sent), ~noise.isnan()
        if len(up):
            heard = torch.where(there, read[up].sum(0) + noise, heard)
            own = torch.where(there, 0.0, own)
            own[on[up]] = torch.where(there, read[up], own[on[up]])
        reached = world.broadcast(on, heard)
        s, clear = averages(heard - (0.0 if hybrid else 1.0) * own[reached], C)
        target[reached] = torch.where(clear[..., None], s, target[reached])
        has_means = torch.from_numpy(able[reached] | (not hybrid))  # (k,)
        known[reached] = clear & has_means[:, None]


def averages(v: Tensor, C: int) -> tuple[Tensor, Tensor]:
    """From sums v (k, C (C + 1)) of outputs by class, and of how many have the class, the mean
    outputs (k, C, C), clipped and normalised, and which of them there are."""
    sums, count = v[:, : C * C].unflatten(1, (C, C)).clamp(min=0), v[:, C * C :].round()
    size = sums.sum(-1, keepdim=True)
    return sums / size.clamp(min=1e-30), (count >= 1) & (size[..., 0] > 1e-6)


def mean_samples(task, world, on):
    """The offline phase: the task with the mean sample of each class as C samples more, zeros where
    there is none, and which devices know them (n,)."""
    held = torch.from_numpy(held_labels(task, on)).to(task.dtype)  # (k, C)
    rows = [torch.from_numpy(task.rows(i)) for i in on]
    flags = [F.one_hot(task.y[own], task.classes).to(task.dtype).T for own in rows]
    means = [f @ task.x[own].flatten(1) for f, own in zip(flags, rows, strict=True)]
    means = torch.stack(means or [held]) / held.clamp(min=1)[..., None]  # (k, C, D)
    world.compute(on, task.sizes[on] * float(task.x[0].numel()))
    up, able = world.gather(on, (means, held.float())), np.zeros(task.n, bool)
    means = (means[up] * (held[up] / held[up].sum(0).clamp(min=1))[..., None]).sum(0)
    if len(up):
        able[world.broadcast(on, means)] = True
    x = torch.cat([task.x, means.view(-1, *task.x.shape[1:])])
    y = torch.cat([task.y, torch.arange(task.classes)])
    return redealt(task, [task.rows(i) for i in range(task.n)], x, y), able


def paired_sgd(data, world, on, Y, target, known, *, gamma, K, B, eta, seed) -> Tensor:
    """Y (n, d) after K steps of the devices `on` on their own batches, and in each on the last C
    samples of the data, those that are known (k, C), towards target (k, C, C)."""
    Y, C = Y.clone(), data.classes
    first = len(data.y) - C
    for some, part in kinds(data, on):
        own, place = on[some], torch.as_tensor(some)
        each = work(part, own, K=1) / part.sizes[own]  # FLOPs of a sample
        world.compute(own, work(part, own, B=B, K=K) + each * K * C)
        rows, weight, _ = schedule(part, own, B=B, K=K, seed=seed)  # (k, K, B)
        pairs = first + torch.arange(C).expand(len(own), -1)
        worth = gamma / C * known[some].to(Y.dtype)
        loss = partial(on_pairs, target=target[place], first=first)
        X = Y[own, : part.d]
        for t in range(K):
            batch = torch.cat([rows[:, t], pairs], 1), torch.cat([weight[:, t], worth], 1)
            X = X - eta * gradients_on(part, X, *batch, loss)
        Y[own, : part.d] = X
    return Y


def on_pairs(z, y, rows, members, *, target, first):
    """dL/dz: of CE(target, softmax(z)) for the samples from `first` on, of CE(y, .) for others."""
    pair = torch.softmax(z, -1) - target[members[:, None], (rows - first).clamp(min=0)]
    return torch.where((rows >= first)[..., None], pair, cross_entropy(z, y, rows, members))
