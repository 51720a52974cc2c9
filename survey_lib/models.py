"""Small networks seen as flat vectors, their layer profile, and their split into stages."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from survey_lib.backprop import layers_by_hand, output_shape
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


def transformer(width: int = 32, *, heads: int = 4, blocks: int = 4, patch: int = 2) -> Build:
    """Transformer encoder over patches of the image: embedding with learnt positions, blocks of
    self-attention and an MLP of 4 times the width with layer norm before each, and a linear layer
    on the mean of the tokens. Each block is one layer."""
    return _Transformer(width, heads, blocks, patch)


def residual(width: int = 16, layers: int = 32, *, knots: int = 3, h: float = 0.25) -> Build:
    """Linear layer, so many residual layers u + h tanh(W_n u + b_n), linear layer. W_n and b_n are
    interpolated between `knots` ones, so that they vary smoothly over n; as many knots as layers
    make them independent."""
    return _Residual(width, layers, knots, h)


def lenet(c1: int = 16, c2: int = 32, *, hidden: tuple[int, ...] = (512, 128)) -> Build:
    """The convolutions of cnn(), then an MLP: much work in the first layers, most of the parameters
    in the later ones."""
    return _Lenet(c1, c2, tuple(hidden))


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
class _Lenet:
    c1: int
    c2: int
    hidden: tuple[int, ...]

    def __call__(self, shape, classes):
        *body, head = _Cnn(self.c1, self.c2)(shape, classes)
        for a, b in pairwise((head.in_features, *self.hidden)):
            body += [nn.Linear(a, b), nn.ReLU()]
        return nn.Sequential(*body, nn.Linear((head.in_features, *self.hidden)[-1], classes))


@dataclass(frozen=True)
class _Transformer:
    width: int
    heads: int
    blocks: int
    patch: int

    def __call__(self, shape, classes):
        if len(shape) != 3 or shape[1] % self.patch or shape[2] % self.patch:
            raise UsageError(
                f"transformer() needs images (channels, height, width) of whole patches of "
                f"{self.patch} x {self.patch}, not {tuple(shape)}"
            )
        if self.width % self.heads:
            raise UsageError(f"width = {self.width} is not a multiple of heads = {self.heads}")
        body = [Block(self.width, self.heads) for _ in range(self.blocks)]
        return nn.Sequential(
            Patches(shape, self.patch, self.width), *body, Mean(), nn.Linear(self.width, classes)
        )


@dataclass(frozen=True)
class _Residual:
    width: int
    layers: int
    knots: int
    h: float

    def __call__(self, shape, classes):
        if not 1 <= self.knots <= self.layers:
            raise UsageError(f"knots = {self.knots}; choose from 1 to {self.layers} layers")
        body = Residual(self.width, self.layers, self.knots, self.h)
        first, last = nn.Linear(prod(shape), self.width), nn.Linear(self.width, classes)
        return nn.Sequential(nn.Flatten(1), first, body, last)


class Residual(nn.Module):
    """States (b, width) -> states after all residual layers.

    between (layers, knots): the share of each knot in each layer's weights.
    """

    def __init__(self, width, layers, knots, h):
        super().__init__()
        self.layers, self.h, bound = layers, h, width**-0.5
        self.weight = nn.Parameter(torch.empty(knots, width, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(knots, width).uniform_(-bound, bound))
        with torch.device("cpu"):
            at = torch.linspace(0, knots - 1, layers)[:, None]
            self.between = (1 - (at - torch.arange(knots)).abs()).clamp(min=0)

    def forward(self, u):
        between = self.between.to(u)
        weight = torch.einsum("nk,kij->nij", between, self.weight)
        for w, b in zip(weight, between @ self.bias, strict=True):
            u = u + self.h * torch.tanh(u @ w.T + b)
        return u


class Patches(nn.Module):
    """Images (b, c, h, w) -> tokens (b, patches, width)."""

    def __init__(self, shape, patch, width):
        super().__init__()
        self.patch, tokens = patch, shape[1] * shape[2] // patch**2
        self.embed = nn.Linear(shape[0] * patch**2, width)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, width))

    def forward(self, images):
        p = self.patch
        tokens = images.unfold(2, p, p).unfold(3, p, p)  # (b, c, rows, columns, p, p)
        tokens = tokens.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        return self.embed(tokens) + self.position


class Block(nn.Module):
    """Tokens (b, t, width) -> tokens: x + attention(norm x), then + MLP(norm x)."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        parts = self.attend(self.norm1(x)).unflatten(2, (3, self.heads, -1))  # (b, t, 3, heads, .)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)  # (b, heads, t, .) each
        share = torch.softmax(q @ k.mT / q.shape[3] ** 0.5, 3)
        x = x + self.mix((share @ v).transpose(1, 2).flatten(2))
        return x + self.down(torch.relu(self.up(self.norm2(x))))


class Mean(nn.Module):
    """Tokens (b, t, width) -> their mean (b, width)."""

    def forward(self, x):
        return x.mean(1)


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
    buffers. d: number of parameters. by_hand: the layers for backprop.py, where it can do them all
    (mlp, logistic, cnn and their like), else None.
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
        self.by_hand, self._modules = layers_by_hand(self.module), {}
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

    @torch.enable_grad()
    def track(self, X: Tensor, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The logits (k, B, classes) of the models X (k, d) for images (k, B, ...), and what they
        are to be differentiated by: the parameters. A single model is a module that looks at X, as
        long as there is no other call."""
        if len(X) > 1:
            parameters = [v.detach().requires_grad_() for v in self.views(X)]
            call = partial(functional_call, self.module)
            return vmap(call)(dict(zip(self.names, parameters, strict=True)), images), parameters
        if X.device not in self._modules:
            module = deepcopy(self.module).to_empty(device=X.device)
            self._modules[X.device] = module, list(module.parameters())
        module, parameters = self._modules[X.device]
        for p, v in zip(parameters, self.views(X[0]), strict=True):
            p.data = v
        return module(_channels_last(images[0]))[None], parameters

    def stage(self, first: int, last: int) -> Callable[[Tensor, Tensor], Tensor]:
        """The layers first .. last - 1 as a function (their part of x, input) -> output."""
        chosen = self.layers[first:last]
        part = self.module[chosen[0].modules.start : chosen[-1].modules.stop]
        module, places = deepcopy(nn.Sequential(*part)), []
        for m in module.modules():  # its parameters become plain attributes, set at each call:
            for name, p in list(m._parameters.items()):  # functional_call takes several times as
                if p is not None:  # long as a small layer
                    places.append((m, name, p.shape))
                    del m._parameters[name]
        sizes = [shape.numel() for _, _, shape in places]

        def forward(x, inputs):
            for (m, name, shape), w in zip(places, torch.split(x, sizes), strict=True):
                m.__dict__[name] = w.view(shape)
            return module(_channels_last(inputs))

        return forward

    def _forward(self, part, shape):
        """The shape of what some modules make of a sample of a shape, and their FLOPs."""
        if not self.by_hand:  # ask torch, which takes a second to start on "meta"
            from torch.utils.flop_counter import FlopCounterMode

            with FlopCounterMode(display=False) as counter, torch.no_grad():
                out = part(torch.empty(1, *shape, device="meta"))
            return out.shape[1:], counter.get_total_flops()
        flops = 0
        for layer in part:
            shape = output_shape(layer, shape)
            if hasattr(layer, "weight"):
                flops += 2 * prod(shape) * layer.weight[0].numel()
        return shape, flops

    def _layers(self):
        heads = [i for i, m in enumerate(self.module) if any(True for _ in m.parameters())]
        starts = [0, *heads[1:], len(self.module)]
        layers, offset, inputs = [], 0, self.shape
        for number, (a, b) in enumerate(pairwise(starts)):
            part = self.module[a:b]
            out, flops = self._forward(part, inputs)
            size = sum(p.numel() for p in part.parameters())
            relu = any(isinstance(m, nn.ReLU) for m in part)
            layers.append(
                Layer(
                    name=type(self.module[heads[number]]).__name__.lower() + str(number),
                    modules=slice(a, b),
                    params=slice(offset, offset + size),
                    forward=flops,
                    backward=flops * (1 if number == 0 else 2),
                    activation=prod(out),
                    saved=prod(inputs) + relu * prod(out),
                )
            )
            offset, inputs = offset + size, out
        return layers
