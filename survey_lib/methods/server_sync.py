"""Synchronous training around a parameter server."""

import itertools

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from survey_lib.errors import UsageError
from survey_lib.streams import stream
from survey_lib.topology import complete
from survey_lib.training import cross_entropy, gradients, local_sgd, some


def sample(n: int, S: int, *key) -> np.ndarray:
    """(S,): S of n devices, drawn without replacement, in ascending order."""
    if not 0 < S <= n:
        raise UsageError(f"S = {S} devices a round, but there are {n}; choose S from 1 to {n}")
    return np.sort(stream("sample", *key).choice(n, S, replace=False))


def mean(rows: Tensor, weight) -> Tensor:
    """(d,): sum_i weight_i rows_i / sum_i weight_i. UsageError for no rows, which have no mean."""
    if not len(rows):
        raise UsageError("the mean of no models; where nobody answered (`if len(up):`) keep x")
    weight = torch.as_tensor(weight, dtype=rows.dtype)
    return (weight / weight.sum()) @ rows


def own(work, chosen):
    """E or K of the chosen devices: (k,) of one number per device, else as it is."""
    return np.asarray(work)[chosen] if np.ndim(work) else work


def follow(x, y, v):
    """FedAvg's next model is the average y of the devices' models. Server rules take the present
    model x, y and what the server remembers, v (0 at first), and return the next x and v."""
    return y, v


def fedsgd(task, world, *, S, eta, seed=0):
    """FedSGD: one full-batch gradient of each sampled device a round. McMahan et al., AISTATS 2017,
    section 2.

    x <- x - eta sum_i (n_i / n_S) grad F_i(x), n_S = the samples of the devices that answered.
    Per sampled device: down x = 4d B; up g_i = 4d B. S = n: a gradient step on the pooled data.
    """
    x = task.init()  # (d,)
    for r in itertools.count():
        yield x
        chosen = world.broadcast(sample(task.n, S, seed, r), x)
        G = gradients(task, world, chosen, x, seed=(seed, r))  # (k, d)
        up = world.gather(chosen, G)
        if len(up):
            x = x - eta * mean(some(G, up), task.sizes[chosen[up]])


def fedavg(
    task,
    world,
    *,
    S,
    B,
    eta,
    E=None,
    K=None,
    local=local_sgd,
    stragglers=0.0,
    keep=False,
    deadline=None,
    server=follow,
    seed=0,
):
    """FedAvg: average of models after local SGD. McMahan et al., AISTATS 2017, Algorithm 1.

    S of n devices a round, drawn without replacement; each runs E epochs (or K steps) of SGD in
    batches of B from x; x <- sum_i (n_i / n_S) y_i, n_S over the devices that answered (the
    paper's box divides by all n, which shrinks the model when S < n; its text takes the sampled).
    Per sampled device: down x = 4d B; up y_i = 4d B. E = 1, B = None (all samples) is FedSGD.
    E, K: a number, or one per device (n,). server: what it makes of the average, see `follow`.

    stragglers: share of the sampled devices that manage only 1 .. E - 1 epochs, drawn uniformly
    (Li et al., MLSys 2020, section 5.2); their work is dropped unless keep.
    deadline: s from the start of a round, after which what has not arrived is dropped; None: the
    server waits for everybody (Nishio, Yonetani, IEEE ICC 2019, call the limited one FedLim).
    """
    x, v = task.init(), 0.0  # (d,)
    for r in itertools.count():
        yield x
        chosen = world.broadcast(sample(task.n, S, seed, r), x)
        whole, steps = own(E, chosen), own(K, chosen)
        epochs = partial_work(whole, stragglers, chosen, seed, r) if stragglers else whole
        Y = local(task, world, chosen, x, eta=eta, B=B, E=epochs, K=steps, seed=(seed, r))  # (k, d)
        sent = np.flatnonzero(np.broadcast_to((epochs == whole) | keep, len(chosen)))
        if len(chosen) and not len(sent) and deadline is None:
            world.barrier(chosen)  # gather would wait for nobody
        chosen, Y = chosen[sent], some(Y, sent)
        up = world.gather(chosen, Y, deadline=deadline)
        if len(up):
            x, v = server(x, mean(some(Y, up), task.sizes[chosen[up]]), v)


def partial_work(E, share, chosen, *key) -> np.ndarray:
    """(k,): E epochs, one number or (k,), or for a share of the devices a number drawn uniformly
    from 1 .. E - 1."""
    if E is None or np.min(E, initial=2) < 2:
        raise UsageError(
            f"E = {E} epochs leave no part of the work to do; stragglers need E of 2 or more"
        )
    late = stream("stragglers", *key).permutation(len(chosen)) < round(share * len(chosen))
    each = zip(chosen, np.broadcast_to(E, len(chosen)), strict=True)
    return np.where(late, [stream("epochs", *key, int(i)).integers(1, e) for i, e in each], E)


def gaia_asp(task, world, *, theta, eta, B, decay=0.5, seed=0):
    """Gaia: sites send each other only the parameters whose updates have become significant.
    Hsieh et al., NSDI 2017, Approximate Synchronous Parallel; rules as in the authors' code.

    Site g: its copy x_g (d,), row g of X (n, d); A[h, g] (d,): what g has yet to send to h. A step
    u_g = -(eta / n) grad F_g(x_g) goes to x_g at once and into A[:, g]. An entry leaves for h if
    |a / x_g| > theta_t = theta / t^decay, or if x_g is 0 there and a is not; h adds what it gets.
    decay = 0: a constant threshold. theta = 0: synchronous SGD with batch n B.
    To each other site: 4 B index and 4 B value an entry, or all of A[h, g], 4d B, if that is less.
    Keeps x_h + sum_{g != h} A[h, g] the same for all h: a small update is late, not lost. The paper
    has one accumulator a site, here one a pair: the same until a message is lost or a site is off,
    whose share waits for it. Selective barrier and mirror clock make updates arrive before the next
    step, as here; the threshold that follows the measured bandwidth is left out.
    """
    X = task.init().repeat(task.n, 1)  # (n, d)
    A = torch.zeros(task.n, task.n, task.d, dtype=X.dtype)  # the diagonal is never used
    W = complete(task.n)
    for t in itertools.count(1):
        yield X
        on, U = world.online(), torch.zeros_like(X)
        U[on] = -eta / task.n * gradients(task, world, on, X[on], B=B, seed=(seed, t - 1))
        X, A = X + U, A + U
        M, sizes = significant(A, X, theta / t**decay)
        M &= world.exchange(W, A, sizes=sizes)[..., None]
        X, A = X + (A * M).sum(1), A.masked_fill(M, 0.0)


def significant(A: Tensor, X: Tensor, theta: float) -> tuple[Tensor, np.ndarray]:
    """Which entries of the updates A (..., d) of the parameters X are sent (..., d), and the bytes
    (...,): those beyond theta times the parameter, or all of them where this takes fewer bytes."""
    M = (A != 0) & ((X == 0) | (A.abs() > theta * X.abs()))
    value = A.element_size()
    sizes, dense = M.sum(-1) * (4 + value), A.shape[-1] * value
    return M | (sizes >= dense)[..., None], sizes.clamp(max=dense).numpy()


def adaptive_tau(task, world, *, R, eta, phi=0.025, tau=None, tau_max=100, B=None, seed=0):
    """Adaptive aggregation: within a budget, as many local steps a round as a bound on the loss
    makes best. Wang S. et al., INFOCOM 2018; as in JSAC 37(6), 2019, and the authors' code.

    R: budget, s of the world's clock; a local step takes c s and an aggregation b s, both measured
    in each round. All devices take tau steps y_i <- y_i - eta g_i(y_i) from x; x <- sum_i (n_i /
    n_S) y_i over those that answered. They report F_i(x), and g_i(x), which is their first step;
    and, from their last y_i and on the same batch, beta_i = |g_i(y_i) - g_i(x)| / |y_i - x| and
    rho_i = |F_i(y_i) - F_i(x)| / |y_i - x|; the gradient at y_i counts to b. The next tau is that
    of `control`, at most 10 tau and tau_max; where R does not pay for it, what R pays for. At last
    they report F_i of the last x only, and the x of least loss is the result, yielded last.
    Per device: down (x, tau) = 4d + 8 B; up (y_i, F_i, g_i, beta_i, rho_i) = 8d + 24 B.
    tau: a fixed number, up (y_i, F_i) = 4d + 8 B; FedAvg with K = tau if B is None. phi: to be
    tuned; the authors' for an SVM and eta = 0.01. R is kept if it pays for the first round and the
    report after it, and c and b stay as they were. The code's rule for overflows is left out.
    """
    x, adapt, tau = task.init(), tau is None, tau or 1  # (d,)
    best, extra, c, b = (np.inf, 0, x), {}, 1e-9, 0.0  # loss, round, model; s, until measured
    last = torch.full((task.n, 2 * task.d + 1), torch.nan, dtype=x.dtype)  # y_i, g_i, F_i there
    for r in itertools.count():
        yield x, extra
        begin, chosen = world.clock, world.broadcast(np.arange(task.n), (x, float(tau)))
        free = world.ready[chosen]
        G, f = gradients_and_losses(task, world, chosen, x, B=B, seed=(seed, r))  # (k, d), (k,)
        if not tau:
            break
        Y = x - eta * G
        if tau > 1:
            Y = local_sgd(task, world, chosen, Y, eta=eta, B=B, K=tau - 1, seed=(seed, r, "on"))
        steps, report = (world.ready[chosen] - free).max(initial=0.0), (Y, f)
        if adapt:
            beta, rho = curvature(last[chosen], x, G, f)
            report = (Y, f, G, beta, rho)
            there = gradients_and_losses(task, world, chosen, Y, B=B, seed=(seed, r + 1))
            last = torch.full_like(last, torch.nan)
            last[chosen] = torch.cat([Y, there[0], there[1].to(x.dtype)[:, None]], 1)
        up = world.gather(chosen, report)
        if len(up):
            p = torch.as_tensor(task.sizes[chosen[up]])
            best = min(best, (mean(f[up], p).item(), r, x))
            x, c, b = mean(Y[up], p), steps / tau, world.clock - begin - steps
            extra = {"tau": tau, "train_loss": best[0]}
        left = R - world.clock - c - 2 * b  # s for steps; the last report may take c + b
        if adapt and len(up) and left > 0:
            bounds = G[up], beta[up], rho[up], p
            tau = control(tau, *bounds, limit=tau_max, R=R, c=c, b=b, eta=eta, phi=phi)
        tau = max(0, min(tau, int(left / c)))
    up = world.gather(chosen, f)
    if len(up):
        best = min(best, (mean(f[up], task.sizes[chosen[up]]).item(), r, x))
    yield best[2], extra | {"train_loss": best[0]}


def curvature(last: Tensor, x: Tensor, G: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    """beta_i and rho_i (k,) in float64 of devices that remember y, g(y), F(y) in rows of `last`
    (k, 2d + 1) and find g(x) = G (k, d), F(x) = f (k,) at x; NaN if they remember nothing."""
    y, g, F_y = last.split([len(x), len(x), 1], 1)
    apart = (y - x).norm(dim=1).double()
    moved = (apart > 1e-10) | apart.isnan()  # else the floor 1e-5 for beta, and rho = 0
    beta = torch.where(moved, (g - G).norm(dim=1) / apart, 0.0).clamp(min=1e-5)
    return beta, torch.where(moved, (F_y[:, 0] - f).abs() / apart, 0.0)


def control(tau, G, beta, rho, p, *, limit, R, c, b, eta, phi) -> int:
    """The tau' in 1 .. min(10 tau, limit) of the least bound

    [1 + sqrt(1 + 4 T^2 phi rho eta h(tau') / tau')] / (2 T eta phi) + rho h(tau'), where T =
    (R - b - c) tau' / (c tau' + b) is how many steps R pays for, with rho, beta and delta =
    |g_i - g| as means with weights p (k,) of the devices; tau itself if nobody knows beta, rho.
    """
    known = ~beta.isnan()
    if not known.any():
        return tau
    beta, rho = (mean(v[known], p[known]).item() for v in (beta, rho))
    delta = mean((G - mean(G, p)).norm(dim=1), p).item()
    t = np.arange(1, min(10 * tau, limit) + 1)
    T, h = (R - b - c) * t / (c * t + b), drift(t, eta, beta, delta)
    root = np.sqrt(1 + 4 * T**2 * phi * rho * eta * h / t)
    return int(t[((1 + root) / (2 * T * eta * phi) + rho * h).argmin()])


def drift(t, eta, beta, delta):
    """h(t) = delta / beta ((1 + eta beta)^t - 1) - delta eta t: how far t local steps lead at most
    from those on all data together, 0 for t = 1."""
    return np.maximum(0.0, delta / beta * ((1 + eta * beta) ** t - 1) - delta * eta * t)


def gradients_and_losses(task, world, chosen, X, *, B, seed) -> tuple[Tensor, Tensor]:
    """`gradients` (k, d), and the losses (k,) in float64 of the same batches, which cost nothing
    beside them."""
    found = torch.zeros(len(chosen), dtype=torch.float64)

    def loss(z, y, rows, members):
        each = F.cross_entropy(z.mT, y, reduction="none") * (rows >= 0)  # (m, B)
        found[members] = (each.sum(1) / (rows >= 0).sum(1)).double()
        return cross_entropy(z, y, rows, members)

    return gradients(task, world, chosen, X, B=B, loss=loss, seed=seed), found
