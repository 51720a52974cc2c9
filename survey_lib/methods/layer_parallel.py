"""Layers split over devices: each of them by its width, or many of them side by side in depth."""

import itertools

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from survey_lib import multigrid
from survey_lib.errors import UsageError
from survey_lib.models import Residual


def megatron_tensor_parallel(task, world, *, eta, B, seed=0):
    """Megatron-LM's tensor parallelism: the two layers of a block are split over the devices, the
    first by its outputs and the second by its inputs. Shoeybi et al., arXiv 1909.08053, section 3.

    x (d,): an MLP with an even number of linear layers, in blocks X -> act(X A) B. Device i has
    A_i, the columns of A, and B_i, the rows of B, in proportion to the devices' speeds; it computes
    Z_i = act(X A_i) B_i for all B samples, and Z = sum_i Z_i by one all-reduce (g: all-reduce
    forward, nothing backward). The gradient of X is the sum over the devices too (f: nothing
    forward, all-reduce backward), but for the first block, whose input needs none. B's bias is
    added once, after the sum. Per block of input width v and output width w: all-reduces of 4Bw B
    forward and 4Bv B backward; no weights are ever sent.
    Keeps the model of serial SGD to round-off for any widths; one device sends nothing. A round has
    only the devices that are on: the weights of those that leave are taken to be there, as if every
    device kept a copy. Lost messages are sent again.
    """
    linear = [m for m in task.network.module if isinstance(m, nn.Linear)]
    if task.network.by_hand is None or len(task.network.layers) != len(linear) or len(linear) % 2:
        raise UsageError(
            f"{len(linear)} linear layers of {len(task.network.layers)}; tensor parallelism splits "
            "an MLP in pairs of layers: use mlp() with an odd number of hidden layers"
        )
    x = task.init()  # (d,)
    for r in itertools.count():
        yield x
        on = world.online()
        if not len(on):
            world.barrier(on)
            continue
        X, labels = task.batch(B, seed, r)
        views = task.network.views(x)
        blocks = [views[k : k + 4] for k in range(0, len(views), 4)]  # A, a, B, b of each
        X, kept = X.flatten(1), []
        for A, a, W, b in blocks:
            parts = shares(len(A), world.speed[on])
            world.compute(on, _flops(parts, B, X.shape[1], len(W)))
            H = [F.relu(X @ A[p].T + a[p]) for p in parts]
            Z = torch.stack([h @ W[:, p].T for h, p in zip(H, parts, strict=True)])  # (p, B, w)
            kept.append((X, H, parts))
            X = world.allreduce(on, Z.flatten(1)).view(B, -1) + b
            X = X if W is blocks[-1][2] else F.relu(X)
        delta, G = (torch.softmax(X, 1) - F.one_hot(labels, X.shape[1]).to(X.dtype)) / B, []
        for k in reversed(range(len(blocks))):
            (A, _, W, _), (X, H, parts) = blocks[k], kept[k]
            v, w = X.shape[1], len(W)
            world.compute(on, _flops(parts, B, v, w, w, *[v] * (k > 0)))
            D = [delta @ W[:, p] * (h > 0) for h, p in zip(H, parts, strict=True)]
            dA, da = torch.cat([v.T @ X for v in D]), torch.cat([v.sum(0) for v in D])
            dW = torch.cat([delta.T @ h for h in H], 1)
            G = [dA.flatten(), da, dW.flatten(), delta.sum(0), *G]
            if k:
                dX = torch.stack([v @ A[p] for v, p in zip(D, parts, strict=True)])  # (p, B, v)
                delta = world.allreduce(on, dX.flatten(1)).view(B, -1) * (X > 0)
        world.barrier(on)
        x = x - eta * torch.cat(G)


def shares(width: int, speed) -> list[slice]:
    """The parts of a width for devices of these speeds, in proportion to them."""
    edge = np.round(np.cumsum(np.concatenate([[0], speed])) / np.sum(speed) * width).astype(int)
    return [slice(a, b) for a, b in itertools.pairwise(edge.tolist())]


def _flops(parts, B, *widths):
    """(p,) FLOPs by device of B products with matrices from or to its part."""
    return np.array([2.0 * B * (p.stop - p.start) * sum(widths) for p in parts])


def mgrit_layer_parallel(task, world, *, c, iterations, eta, B, relax="FCF", seed=0):
    """Layer-parallel training: the layers of a residual network are computed side by side, by
    multigrid in time. Guenther, Ruthotto, Schroder, Cyr, Gauger, SIAM J. Math. Data Sci. 2020.

    x (d,): a network from models.residual, u_n+1 = u_n + h F(u_n; theta_n), n = 0 .. N - 1, as
    forward Euler. The devices that are on hold intervals of c layers each, in order. Both passes,
    the states and their adjoints (the gradient by u_n, which runs backward), are solved by so many
    iterations of `multigrid.solve`, from a coarse sweep; relax: "FCF" as in the paper, or "F"
    (parareal). Per iteration and border: one state, 4Bw B, after each relaxation and one in the
    coarse correction, both ways. iterations=None: layer after layer, exactly.
    N / c iterations of "F" are exact, and half as many of "FCF" (rounded up).
    The paper keeps the states of the last step as a first guess; with fresh mini-batches there is
    nothing to keep. Too few iterations give gradients with an error. Lost messages are sent again.
    """
    body = find_residual(task.network)
    N, h, item = body.layers, body.h, task.dtype.itemsize
    x, between, known = task.init(), body.between.to(task.dtype), {}  # (d,), (N, knots)
    for r in itertools.count():
        yield x
        on = world.online()
        if not len(on):
            world.barrier(on)
            continue
        if tuple(on) not in known or world.loss.any() or world.fading:
            how = (body, c, iterations, relax, B, item)
            known = {tuple(on): multigrid.timetable(world, on, *how)}
        world.replay(known[tuple(on)])
        images, labels = task.batch(B, seed, r)
        A, a, knots, shifts, C, b = task.network.views(x)
        W, s = torch.einsum("nk,kij->nij", between, knots), between @ shifts  # (N, w, w), (N, w)

        def push(n, u, step=h, W=W, s=s):  # layers n (J,) on states u (J, B, w)
            return u + step * torch.tanh(u @ W[n].mT + s[n, None])

        X = images.flatten(1)
        u = multigrid.solve(push, X @ A.T + a, N, c, h, iterations, relax)  # (N + 1, B, w)
        slope = 1 - torch.tanh(u[:-1] @ W.mT + s[:, None]).square()  # (N, B, w)
        z = u[-1] @ C.T + b
        delta = (torch.softmax(z, 1) - F.one_hot(labels, z.shape[1]).to(z.dtype)) / B

        def pull(m, v, step=h, W=W, slope=slope):  # backward: layer N - 1 - m
            n = N - 1 - m
            return v + step * (v * slope[n]) @ W[n]

        v = multigrid.solve(pull, delta @ C, N, c, h, iterations, relax).flip(0)  # (N + 1, B, w)
        back = h * v[1:] * slope
        dW, ds = back.mT @ u[:-1], back.sum(1)
        knots, shifts = torch.einsum("nk,nij->kij", between, dW), between.T @ ds
        parts = v[0].T @ X, v[0].sum(0), knots, shifts, delta.T @ u[-1], delta.sum(0)
        x = x - eta * torch.cat([g.flatten() for g in parts])


def find_residual(network):
    """The residual body of a network from models.residual."""
    body = network.module[2] if len(network.module) == 4 else None
    if not isinstance(body, Residual):
        raise UsageError("layer-parallel training takes networks from models.residual")
    return body
