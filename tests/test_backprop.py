"""Gradients by hand equal autograd's, over networks, shapes, models at once, and ties."""

import pytest
import torch
from conftest import close
from torch import nn
from torch.func import functional_call

from survey_lib.backprop import backward, forward, layers_by_hand, output_shape
from survey_lib.models import Network, cnn, logistic, mlp


def deep(shape, classes):
    """Windows that are not square, padding, an odd size to pool, pooling without ReLU, ReLU without
    pooling, convolution after convolution, two linear layers."""
    body = nn.Sequential(
        nn.Conv2d(shape[0], 3, (2, 3), padding=(1, 2)),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 1),
        nn.Conv2d(4, 2, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(2, 5, (3, 1)),
        nn.ReLU(),
        nn.MaxPool2d((2, 2)),
        nn.Flatten(),
    )
    features = body(torch.zeros(1, *shape)).shape[1]
    return nn.Sequential(*body, nn.Linear(features, 6), nn.ReLU(), nn.Linear(6, classes))


def first_pooled(shape, classes):
    """No parameters before the pooling, and a ReLU right after Flatten."""
    size = shape[0] * (shape[1] // 2) * (shape[2] // 2)
    return nn.Sequential(
        nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(1), nn.ReLU(), nn.Linear(size, classes)
    )


def relu_first(shape, classes):
    """What ReLU must not change are the data themselves."""
    return nn.Sequential(nn.Flatten(1), nn.ReLU(), nn.Linear(7, classes))


CASES = {
    "logistic": (logistic(), (1, 4, 3)),
    "vectors": (mlp(5), (7,)),
    "mlp": (mlp(9, 5), (2, 4, 3)),
    "cnn": (cnn(3, 4), (1, 8, 8)),
    "cnn odd": (cnn(3, 4), (2, 9, 11)),
    "cnn large": (cnn(2, 3), (1, 28, 26)),
    "deep": (deep, (2, 9, 12)),
    "deep odd": (deep, (1, 13, 11)),
    "first pooled": (first_pooled, (2, 5, 4)),
    "relu first": (relu_first, (7,)),
}


def both(name, k, B, numbers):
    """{parameter: gradient (k, ...)} by hand and by autograd of the module itself, model by
    model."""
    build, shape = CASES[name]
    network, rng = Network(build, shape, 4), torch.Generator().manual_seed(k + 10 * B)
    module, layers = build(shape, 4).double(), network.by_hand
    X = numbers(torch.randn(k, network.d, generator=rng, dtype=torch.float64) / 2)
    images = torch.randn(k, B, *shape, generator=rng, dtype=torch.float64)
    images, delta = numbers(images), torch.randn(k, B, 4, generator=rng, dtype=torch.float64)
    before, want, logits = images.clone(), [], []
    for x, own, slope in zip(X, images, delta, strict=True):
        p = [v.clone().requires_grad_() for v in network.views(x)]
        z = functional_call(module, dict(zip(network.names, p, strict=True)), (own,))
        logits.append(z.detach())
        want.append(torch.autograd.grad(z, p, slope))
    views = [v.flatten(2).mT if v.dim() == 5 else v for v in network.views(X)]
    W, b = views[0::2], views[1::2]
    z, kept = forward(layers, W, b, images)
    close(z, torch.stack(logits), atol=1e-10)
    got = [None] * len(views)
    for j, left, right, slope in backward(layers, W, kept, delta):
        got[2 * j], got[2 * j + 1] = left @ right, slope
    assert torch.equal(images, before)
    want = [torch.stack(v) for v in zip(*want, strict=True)]
    want = [v.flatten(2).mT if v.dim() == 5 else v for v in want]
    return got, want


def wild(numbers):
    return numbers


def tied(numbers):
    """Small integers, so that windows have several largest entries, of unlike patches."""
    return numbers.round()


@pytest.mark.parametrize("numbers", [wild, tied])
@pytest.mark.parametrize(("k", "B"), [(1, 1), (1, 5), (3, 1), (4, 6)])
@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_autograd(name, k, B, numbers):
    got, want = both(name, k, B, numbers)
    for a, b in zip(got, want, strict=True):
        close(a, b, atol=1e-10)
    assert want[-1].abs().max() > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_shapes_of_outputs(name):
    build, shape = CASES[name]
    images = torch.zeros(2, *shape)
    for layer in build(shape, 4):
        images, shape = layer(images), output_shape(layer, shape)
        assert images.shape[1:] == shape


def of(*layers):
    return nn.Sequential(*layers, nn.Flatten(1), nn.Linear(8, 2))


OTHERS = {
    "stride": of(nn.Conv2d(1, 2, 3, stride=2)),
    "dilation": of(nn.Conv2d(1, 2, 3, dilation=2)),
    "groups": of(nn.Conv2d(2, 2, 3, groups=2)),
    "padding by name": of(nn.Conv2d(1, 2, 3, padding="same")),
    "padding mode": of(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")),
    "no bias": of(nn.Conv2d(1, 2, 3, bias=False)),
    "pool of 3": of(nn.MaxPool2d(3)),
    "overlapping pool": of(nn.MaxPool2d(2, stride=1)),
    "padded pool": of(nn.MaxPool2d(2, padding=1)),
    "pool that rounds up": of(nn.MaxPool2d(2, ceil_mode=True)),
    "mean pool": of(nn.AvgPool2d(2)),
    "tanh": of(nn.Tanh()),
    "norm": of(nn.GroupNorm(1, 1)),
    "linear before flatten": of(nn.Linear(4, 4)),
    "partial flatten": nn.Sequential(nn.Flatten(2), nn.Linear(8, 2)),
    "no flatten": nn.Sequential(nn.Linear(8, 2)),
    "no last bias": nn.Sequential(nn.Flatten(1), nn.Linear(8, 2, bias=False)),
    "no linear layer last": nn.Sequential(nn.Flatten(1), nn.Linear(8, 2), nn.ReLU()),
    "subclass": of(type("Own", (nn.ReLU,), {})()),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_cannot_be_done_is_left_to_autograd(name):
    assert layers_by_hand(OTHERS[name]) is None
    assert layers_by_hand(of(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2)))
