"""Small networks seen as flat vectors, their layer profile, and their split into stages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from survey_lib.errors import UsageError
from survey_lib.streams import stream

Build = Callable[[Sequence[int], int], nn.Sequential]  # (input shape, classes) -> module


def mlp(*hidden: int) -> Build:
    """Multi-layer perceptron with ReLU between its layers: `mlp(200)` is 784-200-10 on
    Fashion-MNIST."""
    return _Mlp(hidden)


def logistic() -> Build:
    """Softmax regression: one linear layer."""
    return _Mlp(())


def cnn(c1: int = 16, c2: int = 32) -> Build:
    """Two 5x5 convolutions (3x3 below 20 pixels), each with ReLU and 2x2 max-pooling, and a linear
    layer."""
    return _Cnn(c1, c2)


@dataclass(frozen=True)
class _Mlp:
    hidden: tuple[int, ...]

    def __call__(self, shape, classes):
        layers = [nn.Flatten(1)]
        for a, b in pairwise((prod(shape), *self.hidden, classes)):
            layers += [nn.Linear(a, b), nn.ReLU()]
        return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class _Cnn:
    c1: int
    c2: int

    def __call__(self, shape, classes):
        if len(shape) != 3:
            raise UsageError(
                f"cnn() needs images (channels, height, width), not {tuple(shape)}; use mlp()"
            )
        k, pad = (5, 0) if min(shape[1:]) >= 20 else (3, 1)
        body = []
        for a, b in ((shape[0], self.c1), (self.c1, self.c2)):
            body += [nn.Conv2d(a, b, k, padding=pad), nn.ReLU(), nn.MaxPool2d(2)]
        body.append(nn.Flatten(1))
        height, width = ((s + 2 * pad - k + 1) // 2 for s in shape[1:])
        height, width = ((s + 2 * pad - k + 1) // 2 for s in (height, width))
        return nn.Sequential(*body, nn.Linear(self.c2 * height * width, classes))


@dataclass(frozen=True)
class Layer:
    """One layer with parameters and what follows it up to the next one; figures are per sample."""

    name: str
    modules: slice  # of the network's nn.Sequential
    params: slice  # of the flat vector
    forward: int  # FLOPs, 2 per multiply-add
    backward: int  # FLOPs: twice the forward, once where no input gradient is needed
    activation: int  # numbers that leave the layer
    saved: int  # numbers kept for the backward pass: the layer's input, and its output for ReLU

    @property
    def parameters(self) -> int:
        return self.params.stop - self.params.start


def _channels_last(images):
    """Images (b, channels, height, width) in the layout in which a CPU convolves fastest (1.4 times
    here). The strides are set outright, since one channel passes for either layout and is then
    taken for the slow one."""
    if images.dim() != 4:
        return images
    _, c, h, w = images.shape
    return images.contiguous(memory_format=torch.channels_last).as_strided(
        images.shape, (c * h * w, 1, c * w, c)
    )


class Network:
    """A network as a function of a flat vector: `network(x, images) -> logits`.

    build: from mlp(), logistic(), cnn(), or any function (shape, classes) -> nn.Sequential without
    buffers. d: number of parameters. dense: the (in, out) sizes where it is an MLP, else None.
    """

    def __init__(self, build: Build, shape: Sequence[int], classes: int):
        self.build, self.shape, self.classes = build, tuple(shape), classes
        with torch.device("meta"):
            self.module = build(self.shape, classes).to("meta")
        if any(True for _ in self.module.buffers()):
            raise UsageError(
                "a network with buffers (batch norm) has state outside its parameters; "
                "use a norm without"
            )
        self.names = [name for name, _ in self.module.named_parameters()]
        self.shapes = [p.shape for p in self.module.parameters()]
        self.sizes = [s.numel() for s in self.shapes]
        self.d = sum(self.sizes)
        self.dense = self._dense()
        self.layers = self._layers()
        self.flops = sum(layer.forward for layer in self.layers)  # forward, per sample

    def init(self, *key, dtype=torch.float32) -> Tensor:
        """(d,): the modules' own initialisation, drawn from the generator keyed by `key`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(stream("init", *key).integers(2**63)))
            module = self.build(self.shape, self.classes)
        return torch.cat([p.detach().reshape(-1) for p in module.parameters()]).to(dtype)

    def views(self, x: Tensor) -> list[Tensor]:
        """The parameters as views of x (..., d), each (..., *shape)."""
        parts = torch.split(x, self.sizes, dim=-1)
        return [p.view(*x.shape[:-1], *s) for p, s in zip(parts, self.shapes, strict=True)]

    def __call__(self, x: Tensor, images: Tensor) -> Tensor:
        """(b, classes): the logits of one model x (d,) for images (b, ...)."""
        parameters = dict(zip(self.names, self.views(x), strict=True))
        return functional_call(self.module, parameters, (_channels_last(images),))

    def stage(self, first: int, last: int) -> Callable[[Tensor, Tensor], Tensor]:
        """The layers first .. last - 1 as a function (their part of x, input) -> output."""
        chosen = self.layers[first:last]
        module = nn.Sequential(*self.module[chosen[0].modules.start : chosen[-1].modules.stop])
        shapes = [p.shape for p in module.parameters()]
        names = [name for name, _ in module.named_parameters()]

        def forward(x, inputs):
            parts = torch.split(x, [s.numel() for s in shapes])
            views = {k: p.view(s) for k, p, s in zip(names, parts, shapes, strict=True)}
            return functional_call(module, views, (_channels_last(inputs),))

        return forward

    def _dense(self):
        kinds = [type(m) for m in self.module]
        wanted = [nn.Flatten] + [nn.Linear, nn.ReLU] * len(kinds)
        plain = kinds == wanted[: len(kinds)] and kinds[-1] is nn.Linear
        if not plain or any(m.bias is None for m in self.module[1::2]):
            return None
        return [(m.in_features, m.out_features) for m in self.module[1::2]]

    def _layers(self):
        heads = [i for i, m in enumerate(self.module) if any(True for _ in m.parameters())]
        starts = [0, *heads[1:], len(self.module)]
        layers, offset, inputs = [], 0, torch.empty(1, *self.shape, device="meta")
        for number, (a, b) in enumerate(pairwise(starts)):
            part = self.module[a:b]
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                out = part(inputs)
            flops, size = counter.get_total_flops(), sum(p.numel() for p in part.parameters())
            relu = any(isinstance(m, nn.ReLU) for m in part)
            layers.append(
                Layer(
                    name=type(self.module[heads[number]]).__name__.lower() + str(number),
                    modules=slice(a, b),
                    params=slice(offset, offset + size),
                    forward=flops,
                    backward=flops * (1 if number == 0 else 2),
                    activation=out.numel(),
                    saved=inputs.numel() + relu * out.numel(),
                )
            )
            offset, inputs = offset + size, out
        return layers
