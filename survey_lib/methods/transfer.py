"""Knowledge transfer from a teacher's hidden layers, and a study of its ways."""

import itertools
from copy import copy
from functools import lru_cache, partial
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from survey_lib.methods.distillation import Teacher, distil, kd_logits
from survey_lib.models import Network
from survey_lib.training import Task, cross_entropy, local_sgd, schedule, train, work

TEACHER = Teacher()


def features(network: Network, x: Tensor, images: Tensor) -> list[Tensor]:
    """What leaves each ReLU of the model x (d,) for images (b, ...), and last the logits (b, C)."""
    parameters, h, found = iter(network.views(x)), images, []
    for layer in network.module:
        own = {name: next(parameters) for name, _ in layer.named_parameters()}
        h = functional_call(layer, own, (h,)) if own else layer(h)
        if isinstance(layer, nn.ReLU):
            found.append(h)
    return [*found, h]


@lru_cache(maxsize=32)
def _trained(teacher, data, seed, dtype):
    """The teacher as kd_logits trains it: its network and its model."""
    task = Task(data, n=1, network=teacher.network, seed=seed, dtype=dtype)
    how = dict(E=teacher.epochs, B=teacher.B, eta=teacher.eta, seed=("teacher", seed))
    return task.network, train(task, [0], task.init(), **how)[0]


@torch.no_grad()
def lessons(task: Task, teacher: Teacher) -> list[Tensor]:
    """(N, ...) each: the trained teacher's `features` of device 0's samples, in their rows."""
    own = torch.from_numpy(task.rows(0))
    found = features(*_trained(teacher, task.data, task.seed, task.dtype), task.x[own])
    return [f.new_zeros(len(task.y), *f.shape[1:]).index_copy_(0, own, f) for f in found]


# ---- the hint of FitNets -----------------------------------------------------------------------


def fitnet_hint(
    task, world, *, K, B, eta, stage_1, eta_1, layers=(1, 1), teacher=TEACHER, T=4.0, a=0.9,
    seed=0
):  # fmt: skip
    """FitNets: first the student's lower layers learn to predict the teacher's hidden layer, then
    all of it learns from labels and outputs. Romero et al., ICLR 2015, Algorithm 1.

    Stage 1, `stage_1` rounds of K steps of eta_1: v = (the layers of x up to the guided one, r), r
    an affine regressor, on 1/2 ||u_h - r(v_g)||^2. layers = (h, g): the teacher's hint layer and
    the student's guided one, counted from 0. Stage 2: r is dropped, kd_logits with T and a.
    The server sends u_h and the outputs for the device's samples, once: 4 (|u_h| + C) n_i B, and no
    outputs if a = 0. Until they have arrived, the device trains on hard labels.
    The paper's weight of the soft loss falls during stage 2; here it stays. stage_1 = 0 is
    kd_logits, but for the bytes.
    """
    taught, x, since = lessons(task, teacher), task.init(), None
    hint, outputs = taught[layers[0]].flatten(1), taught[-1]
    loss = partial(distil, teacher=outputs, T=T, a=a) if a > 0 else cross_entropy
    guide, shared = guided(task, layers[1], hint.shape[1])
    for r in itertools.count():
        yield x
        if since is None:
            own = task.rows(0)
            sent = (hint[own], outputs[own]) if a > 0 else hint[own]
            since = r if len(world.broadcast([0], sent)) else None
            v = torch.cat([x[:shared], guide.init()[shared:]])
        on, how = world.online([0]), dict(K=K, B=B, seed=(seed, r))
        if len(on) and since is not None and r < since + stage_1:
            near = partial(apart, wanted=hint)
            v = local_sgd(guide, world, on, v, eta=eta_1, loss=near, **how)[0]
            x = torch.cat([v[:shared], x[shared:]])
        elif len(on):
            goal = cross_entropy if since is None else loss
            x = local_sgd(task, world, on, x, eta=eta, loss=goal, **how)[0]
        world.barrier(on)


def guided(task: Task, g: int, width: int) -> tuple[Task, int]:
    """A task for the network's layers up to the g-th and an affine map to `width` numbers, and how
    many parameters it shares with the whole."""
    layer = task.network.layers[g]

    def build(shape, classes):
        lower = task.network.build(shape, task.classes)[: layer.modules.stop]
        flat = any(isinstance(module, nn.Flatten) for module in lower)
        return nn.Sequential(
            *lower, *[nn.Flatten()] * (not flat), nn.Linear(layer.activation, width)
        )

    guide = copy(task)
    guide.network = Network(build, task.network.shape, width)
    guide.d = guide.network.d
    return guide, layer.params.stop


def apart(z, y, rows, members, *, wanted) -> Tensor:
    """dL/dz of 1/2 ||wanted - z||^2; wanted (N, h)."""
    return z - wanted[rows]


# ---- attention and relations -------------------------------------------------------------------


def _compared(task, world, *, keep, compare, K, B, eta, teacher=TEACHER, T=4.0, a=0.0, seed=0):
    """Training with compare(keep(own features), keep(the teacher's)) added to the loss (1 - a) CE +
    a T^2 KL, by autograd.

    keep: `features` -> [(b, ...)]; compare: two such -> a number. The server sends what is kept for
    the device's samples, once, and until then the device trains on hard labels.
    """
    taught, x, arrived = lessons(task, teacher), task.init(), False
    kept = keep(taught)
    loss = partial(distil, teacher=taught[-1], T=T, a=a) if a > 0 else cross_entropy
    value = partial(_value, task, loss=loss, keep=keep, compare=compare, kept=kept)
    for r in itertools.count():
        yield x
        if not arrived:
            sent = tuple(v[task.rows(0)] for v in (*kept, *taught[-1:] * (a > 0)))
            arrived = len(world.broadcast([0], sent)) > 0
        on, how = world.online([0]), dict(K=K, B=B, eta=eta, seed=(seed, r))
        if len(on) and arrived:
            x = descend(task, world, x, value, **how)
        elif len(on):
            x = local_sgd(task, world, on, x, **how)[0]
        world.barrier(on)


def _value(task, x, rows, *, loss, keep, compare, kept):
    """A number with the gradient of the mean of `loss` over the samples `rows`, and of compare."""
    found, y = features(task.network, x, task.x[rows]), task.y[rows]
    slope = loss(found[-1].detach()[None], y[None], rows[None], torch.zeros(1).long())[0]
    return (slope * found[-1]).sum() / len(y) + compare(keep(found), [v[rows] for v in kept])


def descend(task, world, x, value, *, K, B, eta, seed) -> Tensor:
    """(d,): x after K steps of device 0 on value(x, rows), the loss on a batch, by autograd."""
    world.compute([0], work(task, [0], K=K, B=B))
    for rows in schedule(task, [0], B=B, K=K, seed=seed)[0][0]:
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(value(x, rows[rows >= 0]), x)
        x = x - eta * slope
    return x.detach()


def attention_transfer(task, world, *, beta=1000.0, **how):
    """Attention transfer: the student's spatial maps become like the teacher's.
    Zagoruyko, Komodakis, ICLR 2017, section 3.1.

    Loss: CE + beta sum_l of the mean of (Q_l - the teacher's Q_l)^2 over samples and positions, as
    in the public benchmark code of Tian et al.; the paper takes norms, not their squares. Down,
    once: 4 B per sample, layer and position, whatever the width.
    Pairs of layers need maps of the same size. A dense layer is one position, which says nothing.
    """
    compare = partial(_maps_apart, beta=beta)
    yield from _compared(task, world, keep=attention, compare=compare, **how)


def attention(found: list[Tensor]) -> list[Tensor]:
    """(b, positions) each: Q = F / ||F||, F = mean_c A_c^2, of the feature maps A (b, c, h, w)."""
    return [
        F.normalize(h.flatten(2).square().mean(1) if h.dim() > 2 else h.square().mean(1, True))
        for h in found[:-1]
    ]


def _maps_apart(own, wanted, *, beta):
    return beta * sum((q - t).square().mean() for q, t in zip(own, wanted, strict=True))


def relational_kd(task, world, *, w_d=25.0, w_a=50.0, **how):
    """RKD: the distances and angles between a batch's embeddings become like the teacher's.
    Park, Kim, Lu, Cho, CVPR 2019, equations 5 to 9.

    Loss: CE + w_d Huber of distances, each over their mean, + w_a Huber of the cosines of the
    angles of all triples; Huber losses are means over pairs and triples. Embedding: the last hidden
    layer, of any width. Down, once: the teacher's, 4 h n_i B.
    """
    compare = partial(relations_apart, w_d=w_d, w_a=w_a)
    yield from _compared(task, world, keep=embedding, compare=compare, **how)


def embedding(found: list[Tensor]) -> list[Tensor]:
    """[(b, h)]: the last hidden layer of `features`."""
    return [found[-2].flatten(1)]


def relations_apart(own, wanted, *, w_d, w_a) -> Tensor:
    """Huber losses of distances and of cosines between two sets of embeddings [(b, .)]."""
    (e,), (t,) = own, wanted
    loss = w_d * F.smooth_l1_loss(distances(e), distances(t))
    return loss + w_a * F.smooth_l1_loss(cosines(e), cosines(t))


def distances(e: Tensor) -> Tensor:
    """(b, b): ||e_i - e_j|| over the mean of those that are not 0."""
    d = torch.cdist(e, e, compute_mode="donot_use_mm_for_euclid_dist")
    return d / (d.sum() / (d > 0).sum().clamp(min=1)).clamp(min=1e-12)


def cosines(e: Tensor) -> Tensor:
    """(b, b, b): entry j, i, k is the cosine of the angle at e_j between e_i and e_k."""
    u = F.normalize(e[None] - e[:, None], dim=2)
    return u @ u.mT


class Neighbours(Task):
    """A Task that also tells, in `details`, how often a test sample's nearest neighbour among the
    others, in the last hidden layer of the first model, is of its class."""

    @torch.no_grad()
    def details(self, X: Tensor) -> dict[str, float]:
        """neighbour: that share."""
        (e,) = embedding(features(self.network, X[0], self.x_test))
        nearest = torch.cdist(e, e).fill_diagonal_(torch.inf).argmin(1)
        return dict(neighbour=(self.y_test[nearest] == self.y_test).double().mean().item())


# ---- the study ---------------------------------------------------------------------------------

TECHNIQUES = {
    "none": partial(kd_logits, a=0.0),
    "logits": kd_logits,
    "hint": partial(fitnet_hint, a=0.0),
    "both": fitnet_hint,
    "attention": attention_transfer,
    "relational": relational_kd,
}


def sharma_edge_kt(task, world, *, technique, **how):
    """A study of ways of transfer into students of several shapes: from the last layer, from a
    hidden one, or from both. Sharma, Biookaghazadeh, Li, Zhao, IEEE EDGE 2018; no algorithm box.

    technique: one of TECHNIQUES: "none" (hard labels), "logits" (kd_logits), "hint" (fitnet_hint
    whose stage 2 has labels alone), "both" (fitnet_hint), "attention", "relational". how: the
    technique's own arguments. All of them start the student at the same weights and draw the same
    batches.
    """
    yield from technique(task, world, **how)


def factor_transfer_way(frame: pd.DataFrame, value: str, factors: list[str]) -> pd.Series:
    """The share of the variance of `value` in a balanced grid that each factor, and each
    combination of factors ("a x b"), explains: eta^2 of the analysis of variance.

    The effect of a combination is its mean less the effects of all that it contains, and the grand
    mean; the sum of squares of effects over all runs is divided by the total, so that the shares of
    all combinations and of "rest", the spread within the cells, add up to 1.
    """
    grand = frame[value].mean()
    effects, left = {}, frame[value] - grand
    for size in range(1, len(factors) + 1):
        for names in combinations(factors, size):
            mean = frame.groupby(list(names))[value].transform("mean") - grand
            inner = [v for k, v in effects.items() if set(k) < set(names)]
            effects[names] = mean - sum(inner)
    left = left - sum(effects.values())
    shares = {" x ".join(k): np.square(v).sum() for k, v in effects.items()} | {
        "rest": np.square(left).sum()
    }
    return pd.Series(shares) / np.square(frame[value] - grand).sum()
