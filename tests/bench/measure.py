"""One measurement in a fresh process: `measure.py WORKLOAD SYSTEM SEED`. The last line is JSON.
Here are the plain loops of torch, and this library; the peers are in peers.py."""

import heapq
import json
import sys
from dataclasses import replace
from importlib.metadata import version
from unittest import mock

import numpy as np
import torch
from torch import nn
from work import ALPHA, ETA, WORKLOADS, A, Meter

# ---- the plainest loops: one nn.Module after another, autograd, torch.optim.SGD ------------------


class Loop:
    """Local training as a tutorial writes it, on slices of preloaded tensors."""

    def __init__(self, work, task, seed):
        self.work, self.task, self.rng = work, task, np.random.default_rng(seed)
        self.module = task.network.build(task.network.shape, task.classes)
        self.loss = nn.CrossEntropyLoss()

    def visit(self, i, x):
        """(d,): device i's model after an epoch from x (d,)."""
        nn.utils.vector_to_parameters(x.clone(), self.module.parameters())
        optimiser = torch.optim.SGD(self.module.parameters(), lr=ETA)
        order = torch.from_numpy(self.rng.permutation(self.task.rows(i)))
        for rows in order.split(self.work.B):
            optimiser.zero_grad()
            self.loss(self.module(self.task.x[rows]), self.task.y[rows]).backward()
            optimiser.step()
        return nn.utils.parameters_to_vector(self.module.parameters()).detach()

    def fedavg(self, mark):
        x = self.task.init()
        for _ in range(self.work.rounds + 1):
            chosen = self.rng.choice(self.work.n, self.work.S, replace=False)
            x = torch.stack([self.visit(i, x) for i in chosen]).mean(0)
            mark()
        return x

    def d_psgd(self, mark):
        """D-PSGD on a ring: each device holds its own module."""
        n, x = self.work.n, self.task.init()
        modules = [
            self.task.network.build(self.task.network.shape, self.task.classes) for _ in range(n)
        ]
        for module in modules:
            nn.utils.vector_to_parameters(x.clone(), module.parameters())
        optimisers = [torch.optim.SGD(m.parameters(), lr=ETA) for m in modules]
        own = [self.task.rows(i) for i in range(n)]
        for _ in range(self.work.rounds + 1):
            for i in range(n):
                rows = torch.from_numpy(self.rng.choice(own[i], self.work.B, replace=False))
                optimisers[i].zero_grad()
                self.loss(modules[i](self.task.x[rows]), self.task.y[rows]).backward()
            with torch.no_grad():
                for copies in zip(*(m.parameters() for m in modules), strict=True):
                    P = torch.stack(copies)
                    for p, mixed in zip(
                        copies, (P + P.roll(1, 0) + P.roll(-1, 0)) / 3, strict=True
                    ):
                        p.copy_(mixed)
            for optimiser in optimisers:
                optimiser.step()
            mark()
        X = [nn.utils.parameters_to_vector(m.parameters()) for m in modules]
        return torch.stack(X).detach().mean(0)

    def fedasync(self, mark):
        """A heap of arrivals; a device trains when its result is due."""
        n, x = self.work.n, self.task.init()
        pace = self.rng.lognormal(sigma=0.5, size=n)  # s of a visit
        events = [(pace[i], i) for i in range(n)]
        heapq.heapify(events)
        held, version = [x] * n, [0] * n  # what each device received, and its number
        mark()
        for t in range(self.work.visits):
            now, i = heapq.heappop(events)
            a = ALPHA * (t - version[i] + 1) ** -A
            x = (1 - a) * x + a * self.visit(i, held[i])
            held[i], version[i] = x, t + 1
            heapq.heappush(events, (now + pace[i], i))
        mark()
        return x


def loop(work, task, mark, seed):
    return getattr(Loop(work, task, seed), work.method)(mark)


# ---- this library --------------------------------------------------------------------------------


def survey_lib(work, task, mark, seed):
    """The published methods, in a world that keeps its clock, bytes and joules."""
    from survey_lib.world import World, lognormal

    # computing takes most of a visit, as in the peers' clocks
    world = World(work.n, device="microcontroller", link="lan", spread=lognormal(0.5), seed=seed)
    if work.method == "fedavg":
        from survey_lib.methods.server_sync import fedavg

        method = fedavg(task, world, S=work.S, B=work.B, E=1, eta=ETA, seed=seed)
    elif work.method == "d_psgd":
        from survey_lib.methods.gossip import d_psgd
        from survey_lib.topology import ring

        method = d_psgd(task, world, W=ring(work.n), B=work.B, eta=ETA, seed=seed)
    else:
        from survey_lib.methods.server_async import fedasync, polynomial

        how = dict(alpha=ALPHA, s=polynomial(A), rho=0.0)
        method = fedasync(task, world, **how, E=1, B=work.B, eta=ETA, seed=seed)
    x = next(method)
    if work.method == "fedasync":
        mark()
        for _ in range(work.visits):
            x, _ = next(method)
        mark()
        return x
    for _ in range(work.rounds + 1):
        x = next(method)
        mark()
    return x if x.dim() == 1 else x.mean(0)


def bookkeeping(work, task, mark, seed):
    """This library with training replaced by nothing, on models of 20 parameters, whose averages
    cost nothing: what is left is the world, the sampling, and the loop around them."""

    def tiny(shape, classes):
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(1, classes))

    def untrained(task, chosen, x, **how):
        return x.expand(len(chosen), -1)

    def no_gradient(task, chosen, X, **how):
        return torch.zeros(1, 1).expand(len(chosen), task.d)

    task = replace(work, network=tiny).task(seed)
    with (
        mock.patch("survey_lib.training.train", untrained),
        mock.patch("survey_lib.training.batch_gradients", no_gradient),
    ):
        survey_lib(work, task, mark, seed)
    return torch.zeros(0)


def sgemm(mark):
    """Products of 2048 x 2048 float32 matrices, 2 * 2048^3 FLOPs each."""
    a, b, out = torch.randn(2048, 2048), torch.randn(2048, 2048), torch.empty(2048, 2048)
    for _ in range(11):
        torch.mm(a, b, out=out)
        mark()


OWN = {"loop": (loop, "torch"), "survey_lib": (survey_lib, "survey-lib")}
OWN["bookkeeping"] = (bookkeeping, "survey-lib")


def main(workload: str, system: str, seed: int) -> dict:
    torch.set_num_threads(1)
    if system == "sgemm":
        meter = Meter(10)
        sgemm(meter.mark)
        return meter.report() | dict(accuracy=None, version="")
    if system in OWN:
        run, package = OWN[system]
    else:
        import peers

        run, package = peers.PEERS[system]
    work = WORKLOADS[workload]
    task, meter = work.task(seed), Meter(work.rounds)
    torch.manual_seed(seed)
    x = run(work, task, meter.mark, seed)
    accuracy = task.evaluate(x.detach()[None])[0][0] if len(x) else None
    return meter.report() | dict(accuracy=accuracy, version=version(package))


if __name__ == "__main__":
    print("\nBENCH", json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))), flush=True)
