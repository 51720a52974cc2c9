"""Forward and backward passes by hand, of k models at once: what autograd does, without its cost.

Linear layers work on (k, B, features), convolutions on (k, channels, height, width, B): with the
batch innermost, the patches that a convolution multiplies are copied in long runs.
"""

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

aten = torch.ops.aten


def layers_by_hand(module: nn.Sequential) -> list[nn.Module] | None:
    """The layers of a network that this module can do, in the order in which it does them: any
    number of convolutions with ReLU and pooling, Flatten, linear layers with ReLU. Else None.

    A ReLU before a pooling comes after it here, which is the same on fewer numbers.
    """
    kinds = [type(layer) for layer in module]
    if kinds.count(nn.Flatten) != 1 or kinds[-1] is not nn.Linear:
        return None
    flat, layers = kinds.index(nn.Flatten), list(module)
    if not all(_can(layer, j < flat) for j, layer in enumerate(layers)):
        return None
    for j in range(len(layers) - 1):
        if kinds[j : j + 2] == [nn.ReLU, nn.MaxPool2d]:
            layers[j : j + 2] = layers[j + 1], layers[j]
    return layers


def _can(layer, before_flatten):
    kind = type(layer)
    if kind is nn.Flatten:
        return (layer.start_dim, layer.end_dim) == (1, -1)
    if kind is nn.Linear:
        return layer.bias is not None and not before_flatten
    if kind is nn.Conv2d:
        plain = (layer.stride, layer.dilation, layer.groups) == ((1, 1), (1, 1), 1)
        zeros = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        return plain and zeros and layer.bias is not None and before_flatten
    if kind is nn.MaxPool2d:
        halves = layer.kernel_size in (2, (2, 2)) and layer.stride in (2, (2, 2))
        plain = (layer.padding, layer.dilation, layer.ceil_mode) == (0, 1, False)
        return halves and plain and not layer.return_indices and before_flatten
    return kind is nn.ReLU


def output_shape(layer: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what a layer makes of one sample of a shape."""
    match layer:
        case nn.Linear():
            return (layer.out_features,)
        case nn.Flatten():
            return (prod(shape),)
        case nn.Conv2d():
            size = zip(shape[1:], layer.padding, layer.kernel_size, strict=True)
            return layer.out_channels, *(s + 2 * p - k + 1 for s, p, k in size)
        case nn.MaxPool2d():
            return shape[0], shape[1] // 2, shape[2] // 2
    return shape


def forward(layers, W: list[Tensor], b: list[Tensor], h: Tensor) -> tuple[Tensor, list]:
    """Logits (k, B, classes) of the inputs h (k, B, ...), and what `backward` needs of each layer.

    W, b: contiguous weights, (k, out, in) of linear layers and (k, channels x window, out) of
    convolutions, and biases (k, out).
    """
    kept, parameters = [], zip(W, b, strict=True)
    if type(layers[0]) is not nn.Flatten:
        h = h.permute(0, 2, 3, 4, 1).contiguous()
    for layer in layers:
        match layer:
            case nn.Linear():
                w, v = next(parameters)
                kept.append(h)
                h = torch.bmm(h, w.mT).add_(v.unsqueeze(1))  # faster than baddbmm
            case nn.Conv2d():
                w, v = next(parameters)
                patches, size = _patches(h, layer)
                kept.append((patches, h.shape))
                h = torch.bmm(w.mT, patches).add_(v.unsqueeze(2)).unflatten(2, size)
            case nn.ReLU():
                h = h.relu()
                kept.append(h)
            case nn.MaxPool2d():
                (h, across), size = _halve(h, 3), h.shape
                h, down = _halve(h, 2)
                kept.append((down, across, size))
            case nn.Flatten():
                kept.append(h.shape)
                h = h.flatten(2) if layer is layers[0] else h.flatten(1, 3).mT.contiguous()
    return h, kept


def backward(layers, W, kept, delta: Tensor) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """From delta = dL/d(logits) (k, B, classes), for each layer j with parameters, the last first:
    j, left (k, ., m) and right (k, m, .), of which dL/dW is the product, and dL/db (k, out). W[j]
    may be overwritten once its j is yielded."""
    j = len(W)
    for layer, was in zip(reversed(layers), reversed(kept), strict=True):
        if not j:
            return
        match layer:
            case nn.Linear():
                j, out = j - 1, delta
                delta = torch.bmm(out, W[j]) if j else None  # before W[j] changes
                yield j, out.mT, was, out.sum(1)
            case nn.Conv2d():
                j, out, (patches, shape) = j - 1, delta.flatten(2), was
                delta = _scatter(torch.bmm(W[j], out), shape, layer) if j else None
                yield j, patches, out.mT, out.sum(2)
            case nn.ReLU():
                delta = aten.threshold_backward(delta, was, 0)
            case nn.MaxPool2d():
                down, across, size = was
                delta = _double(_double(delta, down, 2, size), across, 3, size)
            case nn.Flatten():
                delta = delta.mT.reshape(was)


def _patches(h, layer):
    """(k, channels x window, positions x B) what each output of a convolution sees of h, and the
    (height, width, B) of its outputs."""
    if any(layer.padding):
        h = F.pad(h, (0, 0, *2 * layer.padding[1:], *2 * layer.padding[:1]))
    seen = h.unfold(2, layer.kernel_size[0], 1).unfold(3, layer.kernel_size[1], 1)
    seen = seen.permute(0, 1, 5, 6, 2, 3, 4)  # (k, channels, *window, height, width, B)
    return seen.flatten(4).flatten(1, 3), seen.shape[4:]


def _scatter(seen, shape, layer):
    """The sum (k, channels, height, width, B) of what `_patches` copied from each place."""
    (k, channels, height, width, B), (p, q), (m, n) = shape, layer.padding, layer.kernel_size
    rows, columns = height + 2 * p - m + 1, width + 2 * q - n + 1
    seen = seen.view(k, channels, m, n, rows, columns, B)
    part = seen.new_zeros(k, channels, m, rows, width + 2 * q, B)
    for j in range(n):
        part[..., j : j + columns, :] += seen[:, :, :, j]
    h = seen.new_zeros(k, channels, height + 2 * p, width + 2 * q, B)
    for i in range(m):
        h[:, :, i : i + rows] += part[:, :, i]
    return h[:, :, p : p + height, q : q + width]


def _halve(h, dim):
    """The larger of every two neighbours along `dim`, and by how much the second is larger."""
    half = h.shape[dim] // 2
    first, second = h.narrow(dim, 0, 2 * half).unflatten(dim, (half, 2)).unbind(dim + 1)
    return torch.maximum(first, second), second - first


def _double(delta, gap, dim, size):
    """`_halve` backwards: of two equals the first takes the slope, as in torch. An odd last one has
    none. size: the shape of what was pooled."""
    second = aten.threshold_backward(delta, gap, 0)
    delta = torch.stack([delta - second, second], dim + 1).flatten(dim, dim + 1)
    if delta.shape[dim] < size[dim]:
        delta = torch.cat([delta, torch.zeros_like(delta.narrow(dim, 0, 1))], dim)
    return delta
