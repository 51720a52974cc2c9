"""A model of its own for every device: messages between similar models, or a global one adapted."""

import itertools
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from survey_lib.errors import UsageError
from survey_lib.methods.server_sync import fedavg
from survey_lib.streams import stream
from survey_lib.tasks import kinds
from survey_lib.training import cross_entropy, gradients_on, local_sgd, schedule, work


def perfit_finetune(
    task,
    world,
    *,
    R,
    eta,
    B,
    E_p=5,
    K_p=None,
    eta_p=None,
    head=False,
    mu=0.0,
    seed=0,
    **fedavg_arguments,
):
    """PerFit by transfer: every device goes on training the global model on its own data alone.
    Wu Q., He K., Chen X., IEEE OJ-CS 2020, section IV; no algorithm box.

    R rounds of FedAvg, which yield x (d,); its arguments S, E or K, ... are passed on. Then
    E_p rounds, an epoch each in batches of B, which yield X (n, d), row i device i's own model; or
    K_p rounds of one step each, on all of a device's data. It then ends.
    eta_p: their step (default: eta / 2). head: only the last layer trains, the others keep their
    bits; the time is that of all layers. mu: pull towards the global model, mu / 2 ||x_i - x||^2.
    Down x once per device, 4d B, and nothing after that. E_p = 0 is FedAvg; R = 0 local
    training. A device that is off misses that round; one that x did not reach has x in its row, as
    before, and is sent it again.
    The stage before, in which a device hands its training to an edge server that it trusts, changes
    no model. A layer that aligns the features of two data sets, as in FedHealth, is left out.
    """
    how = dict(eta=eta, B=B, seed=seed, **fedavg_arguments)
    for r, x in enumerate(fedavg(task, world, **how)):  # (d,)
        yield x
        if r == R:
            break
    step = dict(E=1, B=B) if K_p is None else dict(K=1, B=None)
    step |= dict(eta=eta / 2 if eta_p is None else eta_p, mu=mu)
    if head:
        step |= dict(project=partial(_masked, mask=head_mask(task)))
    X, there = x.repeat(task.n, 1), np.zeros(task.n, bool)  # (n, d)
    for e in range(E_p if K_p is None else K_p):
        on, X = world.online(), X.clone()
        if not there[on].all():
            there[world.broadcast(on[~there[on]], x)] = True
        own = on[there[on]]
        pull = mu * (X[own] - x)  # mu alone pulls towards the start of this round
        key = (seed, "personal", e)
        X[own] = local_sgd(task, world, own, X[own], correct=pull, seed=key, **step)
        world.barrier(on)
        yield X


def head_mask(task) -> Tensor:
    """(d,): 1 for the parameters of the last layer, 0 for the others."""
    mask = torch.zeros(task.d, dtype=task.dtype)
    mask[task.network.layers[-1].params] = 1.0
    return mask


def _masked(G, members, *, mask):
    return G * mask


def perfit_meta(task, world, *, R, a, eta, B, steps=1, hessian=False, seed=0, **fedavg_arguments):
    """PerFit by meta-learning: a global model that is good after one step on the own data.
    Wu Q., He K., Chen X., IEEE OJ-CS 2020, section IV; by Per-FedAvg, Fallah, Mokhtari, Ozdaglar,
    NeurIPS 2020, Algorithm 1.

    FedAvg whose local steps are those of `meta_sgd`, for sum_i p_i F_i(x - a grad F_i(x)): R
    rounds, which yield x (d,). Then the devices take so many `steps` of a on all of their data,
    each yielding X (n, d), as in `perfit_finetune`. a, eta: the paper's alpha, beta.
    Messages as in FedAvg, then 4d B down. a = 0 is FedAvg on the second batches.
    """
    local = partial(meta_sgd, a=a, hessian=hessian)
    how = dict(R=R, eta=eta, B=B, local=local, seed=seed, **fedavg_arguments)
    yield from perfit_finetune(task, world, K_p=steps, eta_p=a, **how)


def meta_sgd(task, world, chosen, x, *, a, eta, B, E=None, K=None, hessian=False, seed) -> Tensor:
    """(k, d): like `local_sgd`, but each step follows the gradient after an inner step of a:

    y <- y - eta (I - a Hess F_i(y; D3)) g_i(y - a g_i(y; D1); D2); without `hessian` the first
    order only, I in place of the bracket. D1, D2, D3: disjoint batches of B, which fill an epoch
    together; at its end they are smaller, and what is left empty is replaced by D1.
    """
    parts = 3 if hessian else 2
    how = dict(B=B and parts * B, E=E, K=K)
    world.compute(chosen, work(task, chosen, **how) * (4 / 3 if hessian else 1))
    rows, _, steps = schedule(task, chosen, **how, seed=seed)  # (k, T, parts B)
    Y, steps = x.expand(len(chosen), -1), torch.as_tensor(steps)[:, None]  # (k, d)
    for t in range(rows.shape[1]):
        D = [_batch(task, rows[:, t], p, parts) for p in range(parts)]
        G = gradients_on(task, Y - a * gradients_on(task, Y, *D[0]), *D[1])
        if hessian:
            G = G - a * hessian_times(task, Y, G, *D[2])
        Y = torch.where(t < steps, Y - eta * G, Y)
    return Y


def _batch(task, rows, p, parts):
    """Every so many column of rows (k, m) from the p-th, and the weights of these samples."""
    own = rows[:, p::parts]
    if own.shape[1] < (width := rows[:, ::parts].shape[1]):
        own = F.pad(own, (0, width - own.shape[1]), value=-1)
    own = torch.where((own < 0).all(1, keepdim=True), rows[:, ::parts], own)
    real = (own >= 0).to(task.dtype)
    return own, real / real.sum(1, keepdim=True).clamp(min=1)


def hessian_times(task, X, V, rows, weight) -> Tensor:
    """(k, d): Hessian of each model's loss on its samples times V (k, d), by central differences of
    the gradient over a length of eps^(1/3), where rounding and curvature err alike."""
    h = torch.finfo(X.dtype).eps ** (1 / 3) / V.norm(dim=1, keepdim=True).clamp(min=1e-30)
    ahead, behind = (gradients_on(task, X + s * h * V, rows, weight) for s in (1, -1))
    return (ahead - behind) / (2 * h)


def fedamp(
    task,
    world,
    *,
    mu,
    eta,
    B,
    E=None,
    K=None,
    sigma=1.0,
    alpha=None,
    attention=None,
    from_message=False,
    groups=None,
    seed=0,
):
    """FedAMP: devices are sent a mixture of the models like theirs, and stay near it.
    Huang Y. et al., AAAI 2021, Algorithm 1.

    X (n, d): the devices' models, the paper's w_i; W (n, d): the server's copies of them. A round
    of all devices: u_i = sum_j xi_ij w_j with xi = `by_distance`(W, sigma, alpha), or attention(W);
    then w_i <- argmin F_i(w) + mu / 2 ||w - u_i||^2, approached in E epochs or K steps from w_i
    (from_message: from u_i). mu: the paper's lambda / alpha_k.
    Per device: down u_i = 4d B; up w_i = 4d B. Only devices that are on are attended to.
    A fixed point with alpha and sigma given has grad F_i(w_i) + lambda sum_j A'(||w_i - w_j||^2)
    (w_i - w_j) = 0, lambda = mu alpha, so sum_i grad F_i(w_i) = 0. The paper's objective, sum_i F_i
    + lambda sum_{i<j} A, has twice that pull: the u_i of its algorithm lacks the factor 2 of the
    derivative of a square, and minimises the objective with lambda / 2.
    mu = 0 is local training. alpha = sigma / n, sigma -> inf: u_i is the mean of all models. Public
    codes differ: one begins at u_i, one at w_i and pulls by the norm, not its square.
    groups: yield the share of attention that goes `inside` the groups i mod so many.
    """
    attention = attention or partial(by_distance, sigma=sigma, alpha=alpha)
    X = W = task.init().repeat(task.n, 1)  # (n, d)
    extra = {}
    for r in itertools.count():
        yield X, extra
        on = world.online()
        xi = attention(W[on])  # (k, k)
        extra = {} if groups is None else {"inside": inside(xi, on % groups)}
        U = xi @ W[on]
        reached = world.scatter(on, list(U))
        U, X, W = U[np.isin(on, reached)], X.clone(), W.clone()
        start = U if from_message else X[reached]
        pull = dict(mu=mu, correct=mu * (start - U))  # mu (y - u_i)
        how = dict(eta=eta, B=B, E=E, K=K, seed=(seed, r))
        X[reached] = local_sgd(task, world, reached, start, **pull, **how)
        up = reached[world.gather(reached, X[reached])]
        W[up] = X[up]


def heurfedamp(task, world, *, s, own=None, updates=False, **fedamp_arguments):
    """HeurFedAMP: FedAMP with attention by the cosine of models, for deep networks.
    Huang Y. et al., AAAI 2021, section "HeurFedAMP".

    xi = `by_cosine`(W, s, own): s, the paper's sigma, is the scale of the cosines, own = xi_ii
    (default: 1 / n). updates: cosines of w_i - w_0 in place of w_i, w_0 the common start, near
    which all w_i point the same way. own = 1 pulls each device to where its round began.
    """
    base = task.init() if updates else 0.0
    attention = partial(by_cosine, s=s, own=own, base=base)
    yield from fedamp(task, world, attention=attention, **fedamp_arguments)


def by_distance(W: Tensor, sigma: float, alpha: float | None = None) -> Tensor:
    """(k, k): xi_ij = alpha A'(||w_i - w_j||^2), A(z) = 1 - exp(-z / sigma), and xi_ii so that rows
    sum to 1. alpha=None: sigma counts in medians of the squared distances, and alpha is so large
    that xi_ii is at least 1 / k, and 1 / k for the device that the others attend to most."""
    z, n = torch.cdist(W, W, compute_mode="donot_use_mm_for_euclid_dist").square(), len(W)
    if alpha is None and n > 1:
        off = z[~torch.eye(n, dtype=torch.bool)]
        near = torch.exp(-z / (sigma * off.median()).clamp(min=1e-30)).fill_diagonal_(0)
        xi = (1 - 1 / n) * near / near.sum(1).max().clamp(min=1e-30)
    else:
        xi = ((alpha or 0) / sigma * torch.exp(-z / sigma)).fill_diagonal_(0)
    if (xi.sum(1) > 1 + 1e-6).any():
        most = (xi.sum(1).max() / (alpha or 1)).item()
        raise UsageError(
            f"alpha = {alpha} makes xi_ii negative; it is to be 1 / {most:.3g} at most"
        )
    return xi + torch.diag(1 - xi.sum(1))


def by_cosine(W: Tensor, s: float, own: float | None = None, base: Tensor | float = 0.0) -> Tensor:
    """(k, k): xi_ii = own (default: 1 / k), and xi_ij = (1 - own) exp(s cos(w_i - base, w_j -
    base)) / sum_{h != i} of the same."""
    n, own = len(W), 1 / max(1, len(W)) if own is None else own
    if n < 2:
        return torch.eye(n, dtype=W.dtype)
    unit = F.normalize(W - base, dim=1)
    share = torch.softmax((s * unit @ unit.T).fill_diagonal_(-torch.inf), 1)
    return (1 - own) * share + own * torch.eye(n, dtype=W.dtype)


def inside(xi: Tensor, group: np.ndarray) -> float:
    """The share of the attention xi (k, k) on others that stays within the groups (k,); what there
    is when nobody attends to others: that of equal attention."""
    same = torch.from_numpy(group[:, None] == group)
    others = 1 - torch.eye(len(xi), dtype=xi.dtype)
    weight = xi * others if (xi * others).sum() > 0 else others
    return ((weight * same).sum() / weight.sum().clamp(min=1e-30)).item()


def perfit_kd(task, world, *, eta, B, E=None, K=None, gamma=1.0, T=2.0, public=134, seed=0):
    """PerFit by distillation: devices of unlike networks agree on the outputs for public data.
    Wu Q., He K., Chen X., IEEE OJ-CS 2020, section IV; as FedMD, Li, Wang, NeurIPS workshop 2019.

    X (n, d): the devices' models, of any networks (problems.Mixed: with zeros up to d). G: `public`
    training samples that no device holds, unlabelled, known to all; C classes. A round: training of
    E epochs or K steps on CE(own batch) + gamma T^2 KL(p(c, T) || p(z, T))(a batch of G), p(z, T) =
    softmax(z / T), c the consensus last heard; then up the logits on G, 4 C |G| B, and down their
    mean c over the devices that answered, as much; for any network.
    gamma = 0 is local training; so is the first round. FedMD trains on G and on the own data in
    turn, here each step has both; its first stage, training on labelled public data, is left out.
    A device that misses c keeps the one before.
    """
    G = public_rows(task, public, seed)
    first = getattr(task, "start", None)
    X = task.init().repeat(task.n, 1) if first is None else first  # (n, d)
    c = torch.full((task.n, len(G), task.classes), torch.nan, dtype=task.dtype)  # NaN: not heard
    for r in itertools.count():
        yield X
        on, X = world.online(), X.clone()
        Z = torch.zeros(len(on), len(G), task.classes, dtype=task.dtype)
        for some, part in kinds(task, on):
            own = on[some]
            how = dict(eta=eta, B=B, E=E, K=K, gamma=gamma, T=T, seed=(seed, r))
            X[own, : part.d] = distil_sgd(part, world, own, X[own, : part.d], G, c[own], **how)
            world.compute(own, len(G) * part.network.flops)
            Z[some] = torch.stack([part.logits(X[i, : part.d], task.x[G]) for i in own])
        up = world.gather(on, Z)
        if len(up):
            mean = Z[up].mean(0)
            c[world.broadcast(on, mean)] = mean
        else:
            world.barrier(on)


def public_rows(task, size: int, seed) -> Tensor:
    """(size,): training samples that no device holds."""
    free = np.setdiff1d(np.arange(len(task.y)), task.order)
    if len(free) < size:
        raise UsageError(
            f"{size} public samples, but the devices leave {len(free)} of {len(task.y)}; build the "
            f"task with samples={len(task.y) - size}"
        )
    return torch.from_numpy(np.sort(stream(seed, "public").permutation(free)[:size]))


def distil_sgd(task, world, chosen, x, G, c, *, eta, B, E, K, gamma, T, seed) -> Tensor:
    """(k, d): like `local_sgd`, with gamma T^2 KL to the consensus c (k, |G|, C) added, on a batch
    of the public samples G per step that is the same for all devices; without it where c is NaN."""
    how, heard = dict(B=B, E=E, K=K), ~c.isnan().flatten(1).any(1) & (gamma > 0)  # (k,)
    rows, weight, steps = schedule(task, chosen, **how, seed=seed)  # (k, T, B)
    size = min(B or len(G), len(G))
    each = work(task, chosen, K=1) / task.sizes[chosen]  # FLOPs of a sample
    world.compute(chosen, work(task, chosen, **how) + heard.numpy() * steps * size * each)
    place = torch.full((len(task.y),), -1)
    place[G] = torch.arange(len(G))
    draw, most = stream(*seed, "public batch"), rows.shape[1]
    order = [draw.permutation(len(G)) for _ in range(-(-most * size // len(G)))]
    order = G[np.concatenate([np.zeros(0, int), *order])[: most * size]].view(most, size)
    loss = partial(_with_consensus, c=c, place=place, T=T)
    Y = x.expand(len(chosen), -1)  # (k, d)
    both = gamma / size * heard[:, None].to(task.dtype).expand(-1, size)
    for t in range(most):
        batch = torch.cat([rows[:, t], order[t].expand(len(chosen), -1)], 1)
        g = gradients_on(task, Y, batch, torch.cat([weight[:, t], both], 1), loss)
        Y = torch.where(torch.as_tensor(t < steps)[:, None], Y - eta * g, Y)
    return Y


def _with_consensus(z, y, rows, members, *, c, place, T):
    """dL/dz: of T^2 KL to the consensus for public samples, of the cross-entropy for others."""
    at = place[rows.clamp(min=0)]
    target = torch.softmax(c[members[:, None], at.clamp(min=0)].nan_to_num() / T, -1)
    soft = T * (torch.softmax(z / T, -1) - target)
    return torch.where((at >= 0)[..., None], soft, cross_entropy(z, y, rows, members))
