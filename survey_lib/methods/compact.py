"""Small networks: winning tickets, early exits that teach themselves, and what a hidden layer
knows."""

import itertools
from functools import partial
from math import log, prod

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from survey_lib.data import Data
from survey_lib.errors import UsageError
from survey_lib.methods.distillation import kd_logits
from survey_lib.methods.transfer import descend, features
from survey_lib.streams import stream
from survey_lib.training import Task, local_sgd


def lottery_ticket(task, world, *, K, B, eta, p=0.2, redraw=False, seed=0):
    """Lottery tickets: train, remove the smallest weights, start again from the first values of the
    others. Frankle, Carbin, ICLR 2019, section 1 and strategy 1 of its appendix B.

    Each round trains theta_0 * mask K steps on device 0 and yields the result x (d,), and then
    prunes each layer's smallest |x| by the share p of those left, the output layer by p / 2. So
    round 1 is dense training, round r + 1 has (1 - p)^r of the hidden layers' weights. Biases stay.
    redraw: yields the control, trained with the same masks from other initial values.
    Pruned weights stay exactly 0. Nothing is sent. Yields besides the share of weights left.
    """
    starts = [task.init()]
    if redraw:
        starts.append(task.network.init(seed, "redraw", task.seed, dtype=task.dtype))
    x, mask = starts[0], torch.ones(task.d, dtype=task.dtype)
    for r in itertools.count():
        yield x, dict(left=left(task, mask))
        on = world.online([0])
        if len(on):
            how = dict(K=K, B=B, eta=eta, project=partial(_masked, mask=mask), seed=(seed, r))
            trained = [local_sgd(task, world, on, mask * theta, **how)[0] for theta in starts]
            x, mask = trained[-1], mask * pruned(task, trained[0], mask, p)
        world.barrier(on)


def _masked(G, members, *, mask):
    return G * mask


def pruned(task, x: Tensor, mask: Tensor, p: float) -> Tensor:
    """(d,): 0 for the share p of the smallest weights of each layer among those that mask has left,
    p / 2 of the last layer's, 1 for all others."""
    keep = torch.ones_like(mask)
    W, size, there = (task.network.views(v)[0::2] for v in (keep, x.abs(), mask))
    for j, (w, a, m) in enumerate(zip(W, size, there, strict=True)):
        here = m.flatten().nonzero()[:, 0]
        share = p / 2 if j == len(W) - 1 else p
        smallest = a.flatten()[here].argsort()[: round(share * len(here))]
        w.view(-1)[here[smallest]] = 0
    return keep


def left(task, mask: Tensor) -> float:
    """The share of weights, without biases, that the mask leaves."""
    W = task.network.views(mask)[0::2]
    return float(sum(w.sum() for w in W) / sum(w.numel() for w in W))


# ---- early exits -------------------------------------------------------------------------------


class EarlyExits(Task):
    """A Task whose network has an exit after each hidden layer but the last, which is in front of
    its own classifier, the deepest exit.

    An exit sees h, a dense layer, or maps pooled to 2 x 2: attention, sigmoid(A' relu(A h)) * h;
    features F as wide as the last hidden layer's h; a classifier. x (d,): the network's parameters,
    then those of the exits. accuracy: of the deepest exit; details: "exit s" of each, from 1, and
    for each sigma in `thresholds` "accuracy at sigma" and "flops at sigma" of a cascade.
    """

    thresholds = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)

    def __init__(self, data: str | Data = "digits", **how):
        super().__init__(data, **how)
        *widths, deep = [s[0] * (4 if len(s) > 2 else 1) for s in self.network.shapes[0:-2:2]]
        self.shapes = []
        for h in widths:
            for a, b in ((h, h // 2), (h // 2, h), (h, deep), (deep, self.classes)):
                self.shapes += [(b, a), (b,)]
        self.d += sum(prod(s) for s in self.shapes)

    def init(self) -> Tensor:
        """(d,): as torch initialises dense layers."""
        rng = stream(self.seed, "exits")
        bounds = [s[-1] ** -0.5 for s in self.shapes[0::2] for _ in range(2)]
        drawn = [rng.uniform(-b, b, prod(s)) for b, s in zip(bounds, self.shapes, strict=True)]
        drawn = np.concatenate([np.zeros(0), *drawn])
        return torch.cat([super().init(), torch.from_numpy(drawn).to(self.dtype)])

    def exits(self, x: Tensor, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (b, C) and features F (b, h) of every exit, the deepest last."""
        *hidden, z = features(self.network, x[: self.network.d], images)
        hidden = [F.adaptive_avg_pool2d(h, 2).flatten(1) if h.dim() > 2 else h for h in hidden]
        parts = torch.split(x[self.network.d :], [prod(s) for s in self.shapes])
        parts = iter([v.view(s) for v, s in zip(parts, self.shapes, strict=True)])
        outputs, found = [], []
        for h in hidden[:-1]:
            A, a, A2, a2, V, v, C, c = itertools.islice(parts, 8)
            mask = torch.sigmoid(F.linear(F.linear(h, A, a).relu(), A2, a2))
            found.append(F.linear(mask * h, V, v).relu())
            outputs.append(F.linear(found[-1], C, c))
        return [*outputs, z], [*found, *hidden[-1:]]

    def flops(self) -> Tensor:
        """(S,): of a sample that leaves at each exit, with all exits that it has tried."""
        heads = [2 * prod(s) for s in self.shapes[0::2]]
        heads = [sum(heads[i : i + 4]) for i in range(0, len(heads), 4)]
        *body, last, top = [layer.forward for layer in self.network.layers]
        cost = [a + b for a, b in zip(body, heads, strict=True)]
        return torch.tensor([*cost, last + top]).cumsum(0)

    def evaluate(self, X: Tensor):
        """Accuracy and loss of the deepest exit, each (m,)."""
        return super().evaluate(X[:, : self.network.d].contiguous())

    @torch.no_grad()
    def details(self, X: Tensor) -> dict[str, float]:
        """What `run` notes beside, of the first model."""
        z = torch.stack(self.exits(X[0], self.x_test)[0])
        right = (z.argmax(-1) == self.y_test).double().mean(1)
        found = {f"exit {s + 1}": v for s, v in enumerate(right.tolist())}
        for sigma in self.thresholds:
            at = leaves(z, sigma)
            named = z[at, torch.arange(len(at))].argmax(-1)
            found[f"accuracy at {sigma:g}"] = (named == self.y_test).double().mean().item()
            found[f"flops at {sigma:g}"] = self.flops()[at].double().mean().item()
        return found


def leaves(z: Tensor, sigma: float) -> Tensor:
    """(b,): the first exit whose largest softmax output is above sigma, else the last; z (S, b,
    C)."""
    sure = torch.softmax(z, -1).amax(-1) > sigma
    sure[-1] = True
    return sure.int().argmax(0)


def scan(task, world, *, K, B, eta, a=0.5, lam=6.4e-5, T=3.0, seed=0):
    """SCAN: the deepest exit of a network teaches the earlier ones.
    Zhang, Tan, Song, Chen, Bao, Ma, NeurIPS 2019, section 3.

    x (d,): an EarlyExits task's network and exits. Loss: CE of the deepest exit + sum over the
    others of (1 - a) CE + a T^2 KL(deepest || exit; T) + lam ||F_s - F_S||^2, the deepest exit's
    outputs and features taken as constants. T, and a for a KL of weight T^2, are the public code's.
    a = lam = 0 is deep supervision: every exit learns from labels alone. Nothing is sent.
    """
    if not hasattr(task, "exits"):
        raise UsageError("scan needs a network with exits; use EarlyExits as the problem")
    x, value = task.init(), partial(exits_loss, task, a=a, lam=lam, T=T)
    for r in itertools.count():
        yield x
        on = world.online([0])
        if len(on):
            x = descend(task, world, x, value, K=K, B=B, eta=eta, seed=(seed, r))
        world.barrier(on)


def exits_loss(task, x, rows, *, a, lam, T) -> Tensor:
    """SCAN's loss on the samples `rows`."""
    y = task.y[rows]
    (*outputs, deepest), (*found, top) = task.exits(x, task.x[rows])
    loss, soft = F.cross_entropy(deepest, y), torch.softmax(deepest.detach() / T, 1)
    for z, f in zip(outputs, found, strict=True):
        kl = F.kl_div(torch.log_softmax(z / T, 1), soft, reduction="batchmean")
        near = (f - top.detach()).square().sum(1).mean()
        loss = loss + (1 - a) * F.cross_entropy(z, y) + a * T**2 * kl + lam * near
    return loss


# ---- knowledge points --------------------------------------------------------------------------


def knowledge_points(task, world, *, layer=0, images=20, sigma=0.1, b=0.2, steps=60, seed=0, **how):
    """How many pixels a hidden layer of the student of kd_logits knows, and how far its weights
    have travelled. Cheng, Rao, Chen, Zhang, CVPR 2020, equations 1 to 6.

    H_i, `discarded`: the information that the layer discards of pixel i. A knowledge point is a
    pixel with (mean H of the background) - H_i > b; pixels brighter than their image's mean are
    foreground. Yields besides: foreground and background points per image, over the first `images`
    test images, and travel = sum_r ||x_r - x_{r-1}|| / ||x_0||, r counting rounds (the paper's
    epochs). b = 0.2 is the public code's. a = 0: the same of the student on hard labels.
    """
    pixels, last, travel = task.x_test[:images], None, 0.0
    front = (pixels.flatten(1) > pixels.flatten(1).mean(1, keepdim=True)).double()
    for x in kd_logits(task, world, seed=seed, **how):
        if last is None:
            last, start = x, x.norm()
        travel += float((x - last).norm() / start)
        H = discarded(task.network, x, pixels, layer=layer, sigma=sigma, steps=steps)
        point = ((H * (1 - front)).sum() / (1 - front).sum() - H > b).double()
        counts = [(point * part).sum(1).mean().item() for part in (front, 1 - front)]
        yield x, dict(zip(("foreground", "background"), counts, strict=True), travel=travel)
        last = x


def discarded(
    network, x: Tensor, images: Tensor, *, layer=0, sigma=0.1, steps=60, most=1.0
) -> Tensor:
    """(b, D): H_i = log sigma_i + log(2 pi e) / 2 of each pixel, sigma_i <= most the noise that a
    hidden layer h bears there.

    log sigma_i by gradient descent on E||h(X + sigma * eps) - h(X)||^2 / delta^2 - lambda sum_i log
    sigma_i, delta^2 the same for noise of variance 1 taken to 0, and lambda = 2 sigma^2 / D: a
    layer equally sensitive to all pixels bears `sigma`. Linear h(X) = a X: sigma_i = sigma
    ||a|| / (sqrt(D) |a_i|). eps: D orthogonal directions of length sqrt(D) and their opposites, for
    which this holds exactly; the paper draws them anew in each step.
    """
    D = images[0].numel()
    Q = np.linalg.qr(stream("directions", D).standard_normal((D, D)))[0] * D**0.5
    eps = torch.from_numpy(np.concatenate([Q, -Q])).to(x.dtype)  # (2 D, D)

    def change(s):
        moved = images.flatten(1)[:, None] + s.exp()[:, None] * eps
        h = features(network, x, moved.view(-1, *images.shape[1:]))[layer]
        still = features(network, x, images)[layer].flatten(1)
        return (h.view(len(images), 2 * D, -1) - still[:, None]).square().sum(2).mean(1)

    s = torch.full((len(images), D), log(1e-3), dtype=x.dtype)
    delta = change(s) / 1e-6  # (b,)
    lam = 2 * sigma**2 / D
    s = torch.full_like(s, log(sigma))
    for _ in range(steps):
        s = s.detach().requires_grad_()
        (g,) = torch.autograd.grad((change(s) / delta.clamp(min=1e-12)).sum(), s)
        s = (s + 0.25 * (1 - g / lam).clamp(-2, 2)).clamp(max=log(most))
    return s.detach().double() + 0.5 * log(2 * np.pi * np.e)
