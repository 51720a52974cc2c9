"""Distillation of a linear teacher into a linear student: what it converges to, and why.

A problem is problems.LinearTeacher. Data come from `gaussian`, `mixture`, `cone` or `digit_pair`; a
student is fitted by `least_norm`, `max_margin`, `gradient_descent` or `random_minimiser`.
"""

import itertools
from functools import partial

import numpy as np
import torch
from scipy.optimize import brentq, nnls
from scipy.special import betainc, betaincinv
from torch import Tensor
from torch.nn import functional as F

from survey_lib.data import load
from survey_lib.streams import stream


def linear_distillation(task, world, *, labels=None, fit=None, seed=0):
    """Linear distillation: a linear student learns a linear teacher from its soft labels.
    Phuong, Lampert, ICML 2019, section 3 (two classes, gradient flow from 0, cross-entropy).

    w (d,): the student, sigmoid(w . x). In round r the teacher w* labels the r-th sample x_r, y_r =
    sigmoid(w* . x_r), and the student is fitted anew to all samples X (d, n) that it has labels
    for: w_n = X (X^T X)^-1 X^T w*, the projection of w* on their span, w* itself from n = d on.
    labels: `soft` (default) or `hard`. fit: (X^T (n, d), y (n,), w, *key) -> w, default the limit
    of gradient flow from 0, `least_norm`, which knows w* from the labels only. Yields the number of
    `samples`, n, besides.
    Down: y_r, 8 B. A sample whose label is lost is not used.
    Keeps: the angle between w_n and w* never grows with n.
    """
    labels, fit = labels or soft, fit or least_norm
    w, known, y = task.init(), [], task.init().new_zeros(0)  # (d,), samples, (n,)
    for r in itertools.count():
        yield w, {"samples": len(known)}
        new = min(r, len(task.x) - 1)  # when all samples are known, the last is labelled again
        label = labels(task.x[new] @ task.teacher)[None]
        on = world.online([0])
        if len(world.broadcast(on, label)) and (new not in known):
            known, y = [*known, new], torch.cat([y, label])
            w = fit(task.x[known], y, w, seed, r)
            world.compute(on, 4.0 * len(known) * task.d)
        world.barrier(on)


def hard_labels(task, world, *, fit=None, seed=0):
    """The same student on the teacher's decisions, y_r = [w* . x_r > 0]. fit: default the direction
    that gradient descent tends to, `max_margin`: its length grows without end."""
    yield from linear_distillation(task, world, labels=hard, fit=fit or max_margin, seed=seed)


def factor_geometry(task, world, *, p, seed=0):
    """Factor 1, data geometry: the less of the data is far from the teacher's direction, the
    smaller the risk. Phuong, Lampert, ICML 2019, the bound on the transfer risk.

    Linear distillation that also yields `bound` >= the expected risk, see `risk_bound`. p: theta ->
    P[the angle between the lines of w* and x is theta or more], such as partial(beyond, d=d).
    """
    for w, extra in linear_distillation(task, world, seed=seed):
        yield w, extra | {"bound": risk_bound(p, extra["samples"])}


def factor_optimisation_bias(task, world, *, scale=1.0, layers=1, draws=200, seed=0):
    """Factor 2, optimisation bias: what other minimisers of the same loss would be worth.
    Phuong, Lampert, ICML 2019; deep linear networks as in section 3.3.

    W (draws, d): where gradient flow from so many random starts of length `scale` ends, see
    `random_minimiser`. All have the same training loss. scale = 0: linear distillation.
    """
    fit = partial(random_minimiser, scale=scale, layers=layers, draws=draws)
    for w, extra in linear_distillation(task, world, fit=fit, seed=seed):
        yield w.expand(draws, -1), extra


def factor_sample_size(task, world, *, seed=0, **how):
    """Factor 3, strong monotonicity: with more samples the angle to the teacher never grows, nor
    does the expected risk. Phuong, Lampert, ICML 2019. (The survey: size of the training set.)

    Linear distillation, whose samples are nested: round r + 1 has those of round r and one more. So
    w_n is a projection on growing subspaces. how: labels or fit, to see what others do.
    """
    yield from linear_distillation(task, world, seed=seed, **how)


# ---- labels and fits -----------------------------------------------------------------------------


def soft(z: Tensor) -> Tensor:
    """The probability of the upper class at the logit z."""
    return torch.sigmoid(z)


def hard(z: Tensor) -> Tensor:
    """1 or 0: the more probable class."""
    return (z > 0).to(z.dtype)


def least_norm(X: Tensor, y: Tensor, w: Tensor, *key) -> Tensor:
    """(d,): the shortest w whose logits X w are those of the soft labels y (n,), X (n, d)."""
    return torch.linalg.pinv(X) @ torch.logit(y)


def max_margin(X: Tensor, y: Tensor, w: Tensor, *key) -> Tensor:
    """(d,): the shortest w with +-X w >= 1 on the right side, which gradient descent on separable
    hard labels tends to in direction (Soudry et al., JMLR 2018): v / ||v||^2, where v is the point
    nearest to 0 in the convex hull of the rows of +-X."""
    A = ((2 * y - 1)[:, None] * X).numpy()
    big = 1e4 * np.linalg.norm(A)  # weight of the equation sum a = 1
    a, _ = nnls(np.vstack([A.T, big * np.ones(len(A))]), np.append(np.zeros(A.shape[1]), big))
    nearest = torch.from_numpy(a @ A)
    return nearest / nearest.square().sum()


def gradient_descent(X, y, w, *key, steps: int, eta=None, layers: int = 1) -> Tensor:
    """(d,): so many steps on the mean cross-entropy, beginning at w; eta: default 4 n /
    lambda_max(X^T X), which is 1 / L, L the greatest curvature that the loss can have in w; one
    layer descends at every step below 2 / L. layers = N > 1: w = a^(N-1) v, a deep linear network
    of width 1 whose other weights a begin equal, and balanced, a = |v|; wider networks with
    balanced weights have rank 1 and follow the same flow."""
    eta = eta or 4 * len(X) / torch.linalg.matrix_norm(X, 2).item() ** 2
    a = w.norm() ** (1 / layers) if layers > 1 else 1.0
    v = F.normalize(w, dim=0) * a if layers > 1 else w
    for _ in range(steps):
        lift = a ** (layers - 1)
        g = (torch.sigmoid(lift * (X @ v)) - y) @ X / len(X)  # dL / dw
        v, a = v - eta * lift * g, a - eta * a ** (layers - 2) * (g @ v) if layers > 1 else 1.0
    return a ** (layers - 1) * v


def random_minimiser(X, y, w, *key, scale: float, layers: int = 1, draws: int = 200) -> Tensor:
    """(draws, d): the ends of gradient flow on soft labels from random starts w_0 of length
    `scale`: the shortest minimiser w_n, and what the data do not see of the start.

    One layer: w_n + (I - P) w_0. N layers, w = a_1 ... a_N-1 v with |v| = a_j at first: w_n + c (I
    - P) v_0, |v_0| = scale^(1 / N), where c = a_1 ... a_N-1 in the end, which the flow's invariant
    |v|^2 = a_j^2 gives: c^(2 / (N-1)) = |w_n|^2 / c^2 + |(I - P) v_0|^2.
    """
    shortest = least_norm(X, y, w)
    start = torch.from_numpy(stream("start", *key).standard_normal((draws, X.shape[1])))
    start = F.normalize(start, dim=1) * scale ** (1 / layers)
    rest = start - start @ (torch.linalg.pinv(X) @ X)
    if layers == 1:
        return shortest + rest
    a, b, q = shortest.square().sum().item(), rest.square().sum(1).tolist(), 2 / (layers - 1)
    c = [brentq(lambda c, e=e: c**q - a / c**2 - e, 1e-9, 1e9, xtol=1e-15) for e in b]
    return shortest + torch.tensor(c, dtype=X.dtype)[:, None] * rest


# ---- the bound -----------------------------------------------------------------------------------


def risk_bound(p, n: int) -> float:
    """min over beta of p(beta) + p(pi / 2 - beta)^n >= the expected risk with n samples.

    For w_n is no farther from w* than any line of a sample is. If one of them is nearer than pi / 2
    - beta, and the line of a new x nearer than beta, then w_n and x are less than pi / 2 apart on
    the right side. All samples are farther with probability p(pi / 2 - beta)^n, x with p(beta).
    """
    beta = np.linspace(0, np.pi / 2, 181)
    return float(np.min(p(beta) + p(np.pi / 2 - beta) ** n))


def beyond(theta, *, d: int, most: float = 90.0):
    """P[the angle between the lines of w* and x is theta (rad) or more] in a `cone(most)`; 90: of
    isotropic data. The squared sine of the angle is a Beta((d - 1) / 2, 1 / 2) variable."""
    shares = [betainc((d - 1) / 2, 0.5, np.sin(t) ** 2) for t in (theta, np.radians(most))]
    return np.clip(1 - shares[0] / shares[1], 0.0, 1.0)


# ---- data: (rng, m, d) -> (the teacher (d,), of length 1; m samples (m, d)) ----------------------


def gaussian(rng, m: int, d: int) -> tuple[Tensor, Tensor]:
    """Isotropic: x ~ N(0, I)."""
    w = torch.from_numpy(rng.standard_normal(d))
    return w / w.norm(), torch.from_numpy(rng.standard_normal((m, d)))


def mixture(margin: float):
    """Two classes a margin apart: x = N(0, I), moved away from the teacher's boundary by half of
    it."""
    return partial(_mixture, margin=margin)


def cone(most: float):
    """Directions of x uniform among those within `most` degrees of +w* or -w*; length of N(0,
    I)."""
    return partial(_cone, most=most)


def digit_pair(a: int, b: int):
    """Images of two digits in their first d principal components, whitened; the teacher is the
    direction of a logistic regression on the training images, as long as 1."""
    return partial(_digit_pair, pair=(a, b))


def _mixture(rng, m, d, *, margin):
    w, x = gaussian(rng, m, d)
    return w, x + margin / 2 * torch.sign(x @ w)[:, None] * w


def _cone(rng, m, d, *, most):
    w, x = gaussian(rng, m, d)
    whole = betainc((d - 1) / 2, 0.5, np.sin(np.radians(most)) ** 2)
    sine = torch.from_numpy(betaincinv((d - 1) / 2, 0.5, whole * rng.random(m)) ** 0.5)[:, None]
    along = x @ w
    across = F.normalize(x - along[:, None] * w, dim=1)
    axis = (1 - sine**2).sqrt() * torch.sign(along)[:, None] * w
    return w, x.norm(dim=1, keepdim=True) * (axis + sine * across)


def _digit_pair(rng, m, d, *, pair):
    whole = load("digits")
    x, y = torch.cat([whole.x, whole.x_test]), torch.cat([whole.y, whole.y_test])
    there = torch.isin(y, torch.tensor(pair))
    x, y = x[there].flatten(1).double(), (y[there] == pair[0]).double()
    U, S, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    x = U[:, :d] * len(x) ** 0.5
    w = gradient_descent(x, y, torch.zeros(d, dtype=x.dtype), steps=300)
    return w / w.norm(), x[torch.from_numpy(rng.permutation(len(x)))]
