"""Plans that split each layer over devices in a way of its own, how long a step takes, and the step
itself: the problem of the search in the SOAP space."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from survey_lib.errors import UsageError
from survey_lib.jobs import Job, run_jobs
from survey_lib.models import Build, lenet
from survey_lib.pipeline import Event, split
from survey_lib.training import Task


class Part(NamedTuple):
    """The share of a layer that a device computes: intervals within 0 .. 1."""

    device: int
    samples: tuple[float, float] = (0.0, 1.0)
    outputs: tuple[float, float] = (0.0, 1.0)


def overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0]))


class Splitting(Task):
    """How each layer of a network is split over n devices: a plan is a vector (d,) with a number
    per layer: j < n: all of it on device j; n: by samples (each device has all of the layer's
    weights); n + 1: by outputs (each has some of them), both in proportion to the speeds.

    B: samples of a mini-batch. network, data, seed: as in Task; every device has the images. d: the
    number of layers, and `parameters` that of the network. evaluate: NaN; the methods yield the
    seconds of a step.
    """

    guess = np.nan

    def __init__(self, data="digits", *, n: int = 4, network: Build | None = None, B: int = 64,
                 seed: int = 0, dtype=torch.float32):  # fmt: skip
        super().__init__(data, n=n, network=network or lenet(), seed=seed, dtype=dtype)
        self.B, self.parameters, self.d = B, self.d, len(self.network.layers)
        self.stages = split(self.network, range(1, self.d), dtype)
        self.weights = super().init()  # (parameters,)
        self.known = {}

    def init(self) -> Tensor:
        """(d,): data parallelism, every layer split by samples."""
        return torch.full((self.d,), float(self.n), dtype=self.dtype)

    def evaluate(self, X: Tensor) -> tuple[np.ndarray, np.ndarray]:
        return np.full(len(X), np.nan), np.full(len(X), np.nan)

    def parts(self, world, choice: int) -> list[Part]:
        """Who computes which part of a layer."""
        if not 0 <= choice < self.n + 2:
            raise UsageError(f"{choice} is no way to split a layer; choose 0 to {self.n + 1}")
        if choice < self.n:
            return [Part(int(choice))]
        edge = np.cumsum([0.0, *world.speed]) / world.speed.sum()
        spans = list(itertools.pairwise(edge.tolist()))
        name = "samples" if choice == self.n else "outputs"
        return [Part(i, **{name: span}) for i, span in enumerate(spans)]

    def missing(self, world, plan: Sequence) -> float:
        """Bytes of memory that the devices lack, for weights, gradient and saved activations."""
        held = np.zeros(self.n)
        for stage, choice in zip(self.stages, plan, strict=True):
            for device, samples, outputs in self.parts(world, int(choice)):
                mine = 2 * stage.parameter_bytes * (outputs[1] - outputs[0])
                held[device] += mine + self.B * stage.saved_bytes * (samples[1] - samples[0])
        return float(np.maximum(0.0, held - world.memory).sum())

    def step(self, world, plan: Sequence) -> list[Event]:
        """The timetable of a mini-batch: forward, backward, the sums of replicated gradients."""
        if len(plan) != self.d:
            raise UsageError(f"a plan of {len(plan)} for {self.d} layers; give one choice for each")
        return run_jobs(list(self._jobs(world, [self.parts(world, int(c)) for c in plan], plan)))

    def seconds(self, world, plan: Sequence) -> float:
        """Of a step; inf if it does not fit into the memory. Nothing passes in the world: this is
        the simulator that the search asks."""
        key = world, tuple(int(c) for c in plan)
        if key not in self.known:
            fits = not self.missing(world, plan)
            self.known[key] = max(e.end for e in self.step(world, plan)) if fits else np.inf
        return self.known[key]

    def _jobs(self, world, plan, choices) -> Iterator[Job]:
        number, F_, B_ = itertools.count(), {}, {}  # (layer, part) -> job

        def send(d, e, nbytes, after):
            latency, bandwidth = world.link(d, e)
            return Job("send", d, latency + nbytes / bandwidth, tuple(after), e, int(nbytes))

        def share(part):
            return overlap(part.samples, (0, 1)) * overlap(part.outputs, (0, 1))

        def between(layer, p, q):
            """Bytes of the outputs of part q of `layer` that part p, of the next one, needs."""
            common = overlap(p.samples, q.samples) * (q.outputs[1] - q.outputs[0])
            return 0 if p.device == q.device else self.B * self.stages[layer].output_bytes * common

        for k, parts in enumerate(plan):
            for p, part in enumerate(parts):
                after = []
                for q, source in enumerate(plan[k - 1] if k else ()):
                    nbytes = between(k - 1, part, source)
                    if nbytes:
                        yield send(source.device, part.device, nbytes, [F_[k - 1, q]])
                        after.append(next(number))
                    elif overlap(part.samples, source.samples):
                        after.append(F_[k - 1, q])
                flops = self.B * self.stages[k].forward * share(part)
                speed = world.speed[part.device]
                yield Job("F", part.device, flops / speed, tuple(after), item=k)
                F_[k, p] = next(number)
        last = self.d - 1
        loss = {p: [F_[last, p]] for p in range(len(plan[last]))}
        for (p, part), (q, source) in itertools.permutations(enumerate(plan[last]), 2):
            if nbytes := between(last, part, source):  # a softmax needs all outputs of its samples
                yield send(source.device, part.device, nbytes, [F_[last, q]])
                loss[p].append(next(number))
        arrived = {(last, p): after for p, after in loss.items()}
        for k in reversed(range(self.d)):
            for p, part in enumerate(plan[k]):
                flops = self.B * self.stages[k].backward * share(part)
                speed, after = world.speed[part.device], arrived[k, p]
                yield Job("B", part.device, flops / speed, (F_[k, p], *after), item=k)
                B_[k, p] = next(number)
            for q, source in enumerate(plan[k - 1] if k else ()):
                arrived[k - 1, q] = []
                for p, part in enumerate(plan[k]):  # the gradient of what went forward
                    if nbytes := between(k - 1, part, source):
                        yield send(part.device, source.device, nbytes, [B_[k, p]])
                        arrived[k - 1, q].append(next(number))
                    elif overlap(part.samples, source.samples):
                        arrived[k - 1, q].append(B_[k, p])
            if int(choices[k]) == self.n and self.n > 1:  # a ring sums the replicas' gradients
                size = self.stages[k].parameter_bytes / self.n
                came = [(B_[k, p],) for p in range(self.n)]
                for _ in range(2 * (self.n - 1)):
                    jobs = []
                    for i in range(self.n):
                        yield send(i, (i + 1) % self.n, size, came[i])
                        jobs.append(next(number))
                    came = [(jobs[i], jobs[i - 1]) for i in range(self.n)]

    def gradient(self, world, plan: Sequence, x: Tensor, batch) -> Tensor:
        """(parameters,): what a step by this plan computes, part by part: each part has its rows of
        the input and its rows of the weights, and returns its own share of the gradients; shares of
        the input's gradient and of replicated weights are summed."""
        images, labels = batch
        kept, a = [], images
        for stage, choice in zip(self.stages, plan, strict=True):
            outs = []
            for part in self.parts(world, int(choice)):
                rows = _rows(part.samples, len(a))
                own = a[rows].detach().requires_grad_(stage is not self.stages[0])
                views = self._views(stage, x)
                W, b = (v[_rows(part.outputs, len(v))].detach().requires_grad_() for v in views)
                if not (len(own) and len(W)):  # a share too small for one row
                    continue
                outs.append((part, rows, own, W, b, self._layer(stage, own, W, b)))
            by_samples = int(choice) == self.n
            a = torch.cat([out for *_, out in outs], 0 if by_samples else 1).detach()
            kept.append((stage, by_samples, outs))
        delta = (torch.softmax(a, 1) - F.one_hot(labels, a.shape[1])) / len(labels)
        g = torch.zeros_like(x)
        for stage, by_samples, outs in reversed(kept):
            dW, db = self._views(stage, g)
            sizes, back = [o.shape[0 if by_samples else 1] for *_, o in outs], None
            shares = delta.split(sizes, 0 if by_samples else 1)
            for (part, rows, own, W, b, out), d in zip(outs, shares, strict=True):
                inputs = (W, b, own)[: 2 + own.requires_grad]
                gW, gb, *da = torch.autograd.grad(out, inputs, d)
                chosen = _rows(part.outputs, len(dW))
                dW[chosen] += gW
                db[chosen] += gb
                if da:
                    back = torch.zeros(len(labels), *own.shape[1:]).to(x) if back is None else back
                    back[rows] += da[0]
            delta = back
        return g

    def _views(self, stage, x):
        """Weights and bias of a layer, as views of x."""
        k = 2 * self.stages.index(stage)
        return self.network.views(x)[k : k + 2]

    def _layer(self, stage, inputs, W, b):
        """A layer with some of its outputs: linear or convolution, and what follows it."""
        layer = self.network.layers[stage.layers.start]
        head, *rest = self.network.module[layer.modules]
        while not hasattr(head, "weight"):  # Flatten before the first linear layer
            inputs, (head, *rest) = head(inputs), rest
        if W.dim() == 4:
            out = F.conv2d(inputs, W, b, padding=head.padding)
        else:
            out = F.linear(inputs, W, b)
        for m in rest:
            out = m(out)
        return out


def _rows(interval, size) -> slice:
    return slice(*(round(v * size) for v in interval))
