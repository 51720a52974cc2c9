"""Slow devices keep their part: tiers of equal speed, late updates merged, parts of the model."""

import itertools
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from survey_lib.errors import UsageError
from survey_lib.methods.server_sync import mean, sample
from survey_lib.streams import stream
from survey_lib.training import gradients, local_sgd, train, work

Correction = Callable[[Tensor, Tensor], Tensor]  # (g, moved), rows (k, d) -> rows (k, d)
Choice = Callable[..., np.ndarray]  # (how far each neuron moved (h,), q, *key) -> q neurons


def tifl(
    task,
    world,
    *,
    m,
    S,
    B,
    eta,
    E=None,
    K=None,
    interval=10,
    p=None,
    credits=np.inf,
    sync_rounds=1,
    T_max=np.inf,
    seed=0,
):
    """TiFL: the devices of a round are drawn from one of m tiers of equal speed. Chai, Ali, Zawad
    et al., HPDC 2020.

    First all devices do sync_rounds rounds of FedAvg's work, which change no model; `tiering` sorts
    them by mean latency into m equal tiers. Round r: a tier j is drawn with probability p_j among
    those with credits left and loses one; S of its devices (all, if it has fewer) do a round of
    FedAvg. p = None, the adaptive policy: p_j = 1 / m at first; after rounds 0, I, 2 I, ... (I:
    interval) all devices report the accuracy of x on their own data, A_j is the mean over tier j,
    and unless that of the tier just drawn has risen since the last report, p becomes `by_rank`. p
    (m,): a static policy; (1, 0, ...) is "fast", equal entries are "uniform". credits: how often a
    tier may be drawn, a number or one per tier; with none left, training ends.

    Per device of a round, and of a profiling round: down x = 4d B; up y_i = 4d B. Per device of a
    report: down x = 4d B; up 8 B. Yields the tier drawn. m = 1 is FedAvg after the profiling.
    T_max: s after which a profiling round ends; who never answers is left out for good.
    The paper evaluates after every round, on test data of each tier; here devices test on the
    samples that they train on, and only when A_j is used.
    """
    x, tiers, A = task.init(), [], np.zeros(m)  # (d,)
    adaptive, p = p is None, np.full(m, 1 / m) if p is None else np.asarray(p)
    credits, j = np.array(np.broadcast_to(credits, m), float), 0
    for r in itertools.count():
        yield x, {"tier": float(j)}
        if not sum(map(len, tiers)):  # at first, and while nobody has answered
            seconds = profile(task, world, x, sync_rounds, T_max, B=B, E=E, K=K)
            tiers = tiering(seconds, m)
        may = p * (credits > 0) * (np.array([len(t) for t in tiers]) > 0)
        if may.any():
            j = stream(seed, "tier", r).choice(m, p=may / may.sum())
        elif sum(map(len, tiers)):
            return
        else:
            continue
        credits[j] -= 1
        drawn = tiers[j][sample(len(tiers[j]), min(S, len(tiers[j])), seed, r)]
        chosen = world.broadcast(drawn, x)
        Y = local_sgd(task, world, chosen, x, eta=eta, B=B, E=E, K=K, seed=(seed, r))  # (k, d)
        up = world.gather(chosen, Y)
        if len(up):
            x = mean(Y[up], task.sizes[chosen[up]])
        if adaptive and r % interval == 0:
            before, A = A, reports(task, world, x, tiers, A)
            if r and A[j] <= before[j]:
                p = by_rank(A, credits > 0)


def profile(task, world, x, rounds, T_max, *, B, E, K) -> np.ndarray:
    """(n,) s: mean latency of each device's answer in a round of FedAvg, of which nothing is used;
    T_max in a round without one, or what that round took; inf for who never answered."""
    total, answers = np.zeros(task.n), np.zeros(task.n, int)
    for _ in range(rounds):
        begin, chosen = world.clock, world.broadcast(np.arange(task.n), x)
        world.compute(chosen, work(task, chosen, B=B, E=E, K=K))
        times = world.uploads(chosen, x.expand(len(chosen), -1))
        last = world.due(chosen).max(initial=world.clock)
        world.close(chosen, min(last, begin + T_max))
        took = np.full(task.n, min(T_max, world.clock - begin))
        there = np.isfinite(times) & (times <= begin + T_max)
        took[chosen[there]] = times[there] - begin
        answers[chosen[there]] += 1
        total += took
    return np.where(answers > 0, total / rounds, np.inf)


def tiering(seconds, m: int) -> list[np.ndarray]:
    """m tiers of nearly equal size, the fastest first: the devices with finite `seconds` (n,)."""
    order = np.argsort(seconds, kind="stable")
    return [np.sort(t) for t in np.array_split(order[: np.isfinite(seconds).sum()], m)]


def reports(task, world, x, tiers, A) -> np.ndarray:
    """(m,): mean accuracy of x on the data of each tier's devices; A_j where none of them is
    heard."""
    chosen = world.broadcast(np.sort(np.concatenate(tiers)), x)
    world.compute(chosen, task.sizes[chosen] * task.network.flops)
    right = np.full(task.n, np.nan)
    for i in chosen:
        rows = task.rows(i)
        right[i] = (task.logits(x, task.x[rows]).argmax(1) == task.y[rows]).double().mean()
    up = chosen[world.gather(chosen, torch.from_numpy(right[chosen]))]
    heard = [np.intersect1d(t, up) for t in tiers]
    return np.array([right[t].mean() if len(t) else a for t, a in zip(heard, A, strict=True)])


def by_rank(A, left) -> np.ndarray:
    """(m,) probabilities: of the k tiers with credits `left`, the one with the c-th lowest accuracy
    A has (k - c + 1) / (k (k + 1) / 2), the others 0. As in a public implementation."""
    k, p = left.sum(), np.zeros(len(A))
    worst = np.flatnonzero(left)[np.argsort(np.asarray(A)[left], kind="stable")]
    p[worst] = np.arange(k, 0, -1) / (k * (k + 1) / 2)
    return p


def outer(g: Tensor, moved: Tensor) -> Tensor:
    """g (g^T moved): the Hessian as the outer product of the gradient. Parallel to g: a correction
    of its length, not of its direction."""
    return g * (g * moved).sum(-1, keepdim=True)


def diagonal(g: Tensor, moved: Tensor) -> Tensor:
    """g * g * moved: its diagonal only. Zheng et al., ICML 2017 (DC-ASGD)."""
    return g * g * moved


def hfl_adsgd(
    task,
    world,
    *,
    S,
    deadline,
    B,
    eta,
    E=None,
    K=None,
    lambda_0=0.5,
    lambda_H=1.0,
    correct: Correction = outer,
    seed=0,
):
    """Hybrid federated learning with AD-SGD: a synchronous round for who is on time; what comes
    late is corrected and merged with less weight. Li, Qu, Tang, Lu, arXiv 2102.06329, 2021.

    Round t: those of S sampled devices that are not still at work get x_t (d,) and train; after
    `deadline` s, or when all have answered, the server takes their updates Delta_i = x_t - y_i and
    all late ones that have come in since, begun at version t - tau with the gradient g_i of all the
    device's samples there:
    Delta'_i = Delta_i + eta lambda_H H_i (x_t - x_(t - tau)), H_i = g_i g_i^T (`outer`);
    x_(t+1) = sum_i n_i (x_t - lambda_i Delta'_i) / sum_i n_i, lambda_i = lambda_0 exp(-tau) for
    late ones and 1 for the others.

    Server: x and the old versions that are still in use, here rows of X (n, d); D, G (n, d): what
    is under way. Per device: down x = 4d B; up Delta_i = 4d B, of who will be late (Delta_i, g_i) =
    8d B, for which it computes g_i after training. Yields how many late updates were merged and
    their share of all weights n_i lambda_i. Without stragglers it is FedAvg; lambda_H = 0 merges
    raw late updates. With lambda_0 = 0 they count nothing, but their n_i still damps the step.
    The paper was read in its abstract only; the merge follows an unofficial implementation, which
    damps the updates that are on time by lambda_0, too.
    """
    x, n, extra = task.init(), task.n, {"late": 0, "share": 0.0}  # (d,)
    X, D, G = (torch.zeros(n, task.d, dtype=x.dtype) for _ in range(3))
    tau, away, arrive = np.zeros(n, int), np.zeros(n, bool), np.full(n, np.inf)
    for t in itertools.count():
        yield x, extra
        limit, asked = world.clock + deadline, sample(n, S, seed, t)
        chosen = world.broadcast(asked[~away[asked]], x)
        Y = local_sgd(task, world, chosen, x, eta=eta, B=B, E=E, K=K, seed=(seed, t))  # (k, d)
        X[chosen], D[chosen], tau[chosen], away[chosen] = x, x - Y, t, True
        arrive[chosen] = world.uploads(chosen, D[chosen])
        late = chosen[world.due(chosen) > limit]
        if len(late):
            G[late] = gradients(task, world, late, x, seed=(seed, t))
            arrive[late] = world.uploads(late, (D[late], G[late]))
        finish = world.due(np.arange(n))  # (n,) s, also of what will not arrive
        idle = not len(chosen) and away.any()  # then the next late update ends the round
        soon = finish[away].min() if idle else finish[chosen].max(initial=0.0)
        end = max(world.clock, min(limit, soon))
        done = np.flatnonzero(away & (finish <= end))
        here, away[done] = done[np.isfinite(arrive[done])], False
        world.close(done, end)
        age, extra = t - tau[here], {"late": 0, "share": 0.0}
        if len(here):
            weight = torch.as_tensor(np.where(age, lambda_0 * np.exp(-age), 1.0)).to(x.dtype)
            step = D[here] + eta * lambda_H * correct(G[here], x - X[here])
            x = x - mean(weight[:, None] * step, task.sizes[here])
            power = weight.numpy() * task.sizes[here]
            share = power[age > 0].sum() / max(power.sum(), 1e-300)
            extra = {"late": np.count_nonzero(age), "share": share}


def moved_most(moved, q: int, *key) -> np.ndarray:
    """Half of the q neurons are those that moved most in the device's last cycle, the others are
    drawn among the rest."""
    order = stream("neurons", *key).permutation(len(moved))
    order = order[np.argsort(-moved[order], kind="stable")]
    rest = stream("others", *key).permutation(order[q // 2 :])
    return np.concatenate([order[: q // 2], rest[: q - q // 2]])


def at_random(moved, q: int, *key) -> np.ndarray:
    """q neurons, drawn anew in each cycle."""
    return stream("neurons", *key).permutation(len(moved))[:q]


def always_the_same(moved, q: int, *key) -> np.ndarray:
    """The first q neurons: a smaller network that never changes."""
    return np.arange(q)


def elfish(
    task,
    world,
    *,
    S,
    B,
    eta,
    E=None,
    K=None,
    p=None,
    choose: Choice = moved_most,
    rescale=False,
    seed=0,
):
    """ELFISH: a slow device trains a share of the hidden neurons, others in each cycle. Xu, Yang,
    Xiong, Yang, Chen, arXiv 1912.01684, 2019; later versions are called Helios (DAC 2021).

    FedAvg in which device i keeps q = p_i h of the h neurons of each hidden layer, those of
    `choose`; the others are silent, forwards and backwards. So it starts from M_i x, M_i (d,)
    masking the weights and biases of the others, and gets y_i. The server averages each parameter
    over those who trained it: x_j <- sum_i n_i M_ij y_ij / sum_i n_i M_ij, x_j where nobody did.
    p: shares (n,) or one for all; None: those of `keep_pace`, worked out beforehand, at no cost.
    rescale: while it trains, a device multiplies what leaves a hidden layer by h / q, as if all
    neurons were there.

    Device i keeps moved_i (h,), the sum of |y_i - x| over each neuron's weights in its last cycle,
    0 for those it did not train. Per sampled device: down x = 4d B; up 4 B per trained parameter
    and, where p_i < 1, 1 bit per hidden neuron, in whole bytes. It computes for as long as the
    smaller network takes. p = 1 is FedAvg. Needs a dense network with hidden layers.
    The paper was read in its abstract only: that neurons rotate and that the aggregation recovers
    all of them is said there; the rule of `moved_most` and the weights n_i are reconstructed.
    """
    x, h, n = task.init(), hidden(task.network), task.n  # (d,), (layers,)
    p = keep_pace(task, world, B=B, E=E, K=K) if p is None else np.broadcast_to(p, n)
    q = np.maximum(1, np.round(np.asarray(p)[:, None] * h)).astype(int)  # (n, layers)
    moved = np.zeros((n, h.sum()))
    for r in itertools.count():
        yield x
        chosen = world.broadcast(sample(n, S, seed, r), x)
        each = [keep(h, q[i], moved[i], choose, seed, r, int(i)) for i in chosen]
        kept = np.array(each, bool).reshape(len(chosen), h.sum())
        M = masks(task.network, kept)  # (k, d)
        world.compute(chosen, cost(task.network, q[chosen]) * work(task, chosen, B=B, E=E, K=K))
        P = M * gains(task.network, q[chosen]) if rescale else M.to(x.dtype)
        Y = train(task, chosen, P * x, eta=eta, B=B, E=E, K=K, seed=(seed, r)) / P.clamp(min=1)
        moved[chosen] = movement(task.network, (Y - M * x).abs())
        sent = [(y[m], bits(a)) for y, m, a in zip(Y, M, kept, strict=True)]
        up = world.gather(chosen, sent)
        if len(up):
            weight = M[up] * torch.as_tensor(task.sizes[chosen[up]], dtype=x.dtype)[:, None]
            total = weight.sum(0)
            x = torch.where(total > 0, (weight * Y[up]).sum(0) / total.clamp(min=1), x)


def hidden(network) -> np.ndarray:
    """(layers,) neurons of each hidden layer of a dense network with ReLU."""
    sizes = [m.out_features for m in network.module if isinstance(m, nn.Linear)]
    dense = all(isinstance(m, nn.Flatten | nn.Linear | nn.ReLU) for m in network.module)
    if not dense or len(sizes) < 2:
        raise UsageError("elfish silences neurons of hidden layers: use a network such as mlp(64)")
    return np.array(sizes[:-1])


def keep(h, q, moved, choose: Choice, *key) -> np.ndarray:
    """(hidden,) True for the neurons that a device keeps, q (layers,) of h (layers,)."""
    kept, first = np.zeros(h.sum(), bool), np.cumsum(h) - h
    for j, own in enumerate(np.split(moved, first[1:])):
        kept[first[j] + (choose(own, q[j], *key, j) if q[j] < h[j] else np.arange(h[j]))] = True
    return kept


def masks(network, kept) -> Tensor:
    """(k, d) True for the weights between neurons of which both, and biases of which the one, are
    among the `kept` (k, hidden); inputs and classes always are."""
    kept = torch.as_tensor(kept)
    layers = kept.split(hidden(network).tolist(), 1)
    inputs = kept.new_ones(len(kept), network.shapes[0][1])
    classes = kept.new_ones(len(kept), network.classes)
    pairs = pairwise((inputs, *layers, classes))
    return torch.cat([m for a, b in pairs for m in ((b[:, :, None] & a[:, None]).flatten(1), b)], 1)


def gains(network, q) -> Tensor:
    """(k, d): h / q for the weights that leave a hidden layer of which q (k, layers) of h neurons
    are kept, 1 for all other parameters."""
    G = torch.ones(len(q), network.d)
    for W, gain in zip(network.views(G)[2::2], (hidden(network) / q).T, strict=True):
        W *= torch.as_tensor(gain, dtype=G.dtype)[:, None, None]
    return G


def movement(network, U: Tensor) -> np.ndarray:
    """(k, hidden): the sum of U (k, d) over the weights into and out of each neuron, and its
    bias."""
    v = network.views(U)
    into = [w.sum(2) + b for w, b in zip(v[0:-2:2], v[1:-2:2], strict=True)]
    return torch.cat([a + w.sum(1) for a, w in zip(into, v[2::2], strict=True)], 1).numpy()


def bits(kept) -> Tensor:
    """Which neurons are kept, 8 to a byte; nothing if all are."""
    return torch.from_numpy(np.packbits(kept) if not kept.all() else np.zeros(0, np.uint8))


def cost(network, q) -> np.ndarray:
    """(k,): FLOPs of the smaller network with q (k, layers) hidden neurons over those of the whole
    one."""
    flops = [layer.forward + layer.backward for layer in network.layers]
    ends = np.pad(q / hidden(network), ((0, 0), (1, 1)), constant_values=1.0)  # (k, layers + 2)
    return (ends[:, :-1] * ends[:, 1:]) @ flops / sum(flops)


def keep_pace(task, world, target=None, *, B, E=None, K=None) -> np.ndarray:
    """(n,): the largest share of the neurons with which each device's cycle, from download to
    upload, takes no more than `target` seconds (None: those of the fastest with all neurons); one
    neuron of the widest layer if none is small enough. For devices alone on their links."""
    h, everyone = hidden(task.network), np.arange(task.n)
    share = np.arange(1, h.max() + 1) / h.max()  # (s,)
    q = np.maximum(1, np.round(share[:, None] * h)).astype(int)
    kept = np.concatenate([np.arange(w) < q[:, [j]] for j, w in enumerate(h)], 1)
    size = masks(task.network, kept).sum(1).numpy() * task.init().element_size()  # (s,) B
    mask = np.where(share < 1, -(-h.sum() // 8), 0)
    up, down = world.rates(everyone)
    seconds = cost(task.network, q) * (work(task, everyone, B=B, E=E, K=K) / world.speed)[:, None]
    seconds = seconds + (size + mask) / up[:, None] + size[-1] / down[:, None]
    seconds = seconds + 2 * world.latency[:, None]  # (n, s)
    target = seconds[:, -1].min() if target is None else target
    fits = seconds <= target * (1 + 1e-9)
    return share[np.maximum(0, fits.sum(1) - 1)]
