"""Multigrid in time: u_n+1 = Phi_n(u_n) for many n side by side, in blocks that correct each other
through a coarse chain. Falgout et al., SIAM J. Sci. Comput. 2014, with two levels."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from survey_lib.errors import UsageError
from survey_lib.jobs import Job, run_jobs
from survey_lib.pipeline import Event, resend
from survey_lib.training import Task

Step = Callable[..., Tensor]  # (layers n (J,), states (J, ...), step=size) -> the next states


def solve(
    push: Step, u: Tensor, N: int, c: int, h: float, iterations: int | None, relax: str = "FCF"
) -> Tensor:
    """(N + 1, ...): the states from u (...) on, u_n+1 = push(n, u_n).

    C-points are 0, c, 2c, ...; the coarse chain goes from one to the next by push with step c h, at
    the parameters of its first layer. An iteration: from all C-points at once, march c layers (F-
    and C-relaxation); with "FCF" once more from where that led; then, one after the other,
    U_j+1 = G(U_j) + march(old U_j) - G(old U_j). At the end, the states between are marched to.
    iterations=None: N layers one after the other. The first guess is the coarse chain's.
    """
    if relax not in ("F", "FCF") or N % c:
        raise UsageError(f'relax = "{relax}", c = {c}; use "F" or "FCF" and a divisor of {N}')
    if iterations is None:
        c, iterations = N, 0
    starts = torch.arange(0, N, c)

    def march(U):
        for k in range(c):
            U = push(starts + k, U)
        return U

    def coarse(j, V):
        return push(starts[j : j + 1], V[None], step=c * h)[0]

    U = [u]
    for j in range(N // c - 1):
        U.append(coarse(j, U[j]))
    U = torch.stack(U)  # at the beginning of each interval (J, ...)
    for _ in range(iterations):
        if relax == "FCF":
            U = torch.cat([u[None], march(U)[:-1]])
        ends, old = march(U), push(starts, U, step=c * h)
        V = [u]
        for j in range(N // c - 1):
            V.append(coarse(j, V[j]) + ends[j] - old[j])
        U = torch.stack(V)
    states = [U]
    for k in range(c):
        states.append(push(starts + k, states[-1]))
    inside = torch.stack(states[:c], 1).flatten(0, 1)  # (N, ...)
    return torch.cat([inside, states[-1][-1:]])


def timetable(world, on, body, c: int, iterations, relax: str, B: int, item: int) -> list[Event]:
    """When the devices `on` compute the states, and after them the adjoints, of a mini-batch of B:
    contiguous intervals, as even as possible; without iterations, layers one after the other. The
    gradient of a layer's weights counts as much as one of its passes. The last march takes it;
    without iterations, a device takes those of its layers when it has sent the adjoint on. Of the
    two coarse steps of a correction, the one from the old state waits for nobody."""
    width, J = body.weight.shape[-1], body.layers // c
    edges = np.linspace(0, J, min(len(on), J) + 1).round().astype(int)
    own = [b - a for a, b in pairwise(edges)]  # intervals of each device
    flops, size, jobs = 2.0 * B * width**2, B * width * item, []
    devices = [int(d) for d in on[: len(own)]]

    def add(what, order, k, layers, after):
        d = devices[order[k]]
        jobs.append(Job(what, d, flops * layers / world.speed[d], tuple(after)))
        return len(jobs) - 1

    def send(order, k, after):
        d, e = devices[order[k]], devices[order[k + 1]]
        latency, bandwidth = world.link(d, e)
        tries = resend(world, d, e)
        seconds = tries * (latency + size / bandwidth)
        jobs.append(Job("send", d, seconds, (after,), e, tries * size, tries=tries))
        return len(jobs) - 1

    def sweep(what, order, layers, before):
        """One device after the other; layers per interval."""
        done, came = [], ()
        for k in range(len(order)):
            done.append(add(what, order, k, layers * own[order[k]], (*before[k], *came)))
            came = (send(order, k, done[k]),) if k + 1 < len(order) else ()
        return [(j,) for j in done]

    def together(what, order, layers, before):
        """All at once, then each sends its last state to the next."""
        done = [add(what, order, k, layers * own[i], before[k]) for k, i in enumerate(order)]
        came = [(), *((send(order, k, done[k]),) for k in range(len(order) - 1))]
        return [(d, *m) for d, m in zip(done, came, strict=True)]

    before = [()] * len(own)
    for what, order in (("F", range(len(own))), ("B", range(len(own))[::-1])):
        before = [before[i] for i in order] if what == "B" else before
        if iterations is None:
            before = sweep(what, list(order), c, before)
            for k, i in enumerate(order if what == "B" else ()):  # the gradients of the weights
                add(what, list(order), k, c * own[i], before[k])
            continue
        before = sweep(what, list(order), 1, before)
        for _ in range(iterations):
            for _ in range(len(relax) - 1 if relax == "FCF" else 1):
                before = together(what, list(order), c, before)
            before = [
                (add(what, list(order), k, own[i], before[k][:1]), *before[k])
                for k, i in enumerate(order)
            ]  # from the old states
            before = sweep(what, list(order), 1, before)
        last = c * (1 + (what == "B"))
        before = [(add(what, list(order), k, last * own[i], before[k]),)
                  for k, i in enumerate(order)]  # fmt: skip
        if what == "F":  # the adjoints begin at the last state
            before = [(*before[k], before[-1][0]) for k in range(len(own))]
    return run_jobs(jobs)


def errors(build, data: str, *, c: int, seed: int = 0, samples: int = 50) -> pd.DataFrame:
    """The largest error of any state by iteration (FCF), of a network from models.residual at
    twice its initial weights, on some samples."""
    task = Task(data, n=1, network=build, seed=seed, dtype=torch.float64)
    body, (A, a, W, s, *_) = task.network.module[2], task.network.views(task.init())
    between = body.between.to(task.dtype)
    W, s = torch.einsum("nk,kij->nij", between, 2 * W), between @ s

    def push(n, u, step=body.h):
        return u + step * torch.tanh(u @ W[n].mT + s[n, None])

    u = task.x[:samples].flatten(1) @ A.T + a
    exact = solve(push, u, body.layers, c, body.h, None)
    rows = []
    for k in range(body.layers // c // 2):
        gap = (solve(push, u, body.layers, c, body.h, k) - exact).abs().max()
        rows.append(dict(iteration=k, error=float(gap), seed=seed))
    return pd.DataFrame(rows)
