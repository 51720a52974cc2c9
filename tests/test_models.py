"""Networks as functions of a flat vector equal torch's modules; the layer profile counts right."""

import pytest
import torch
from conftest import close
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from survey_lib.errors import UsageError
from survey_lib.models import Network, cnn, logistic, mlp


def three_norms(shape, classes):
    """A network of its own kind: no MLP, a norm without buffers, a layer without bias."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 6, 3, padding=1, bias=False),
        nn.GroupNorm(2, 6),
        nn.Tanh(),
        nn.Flatten(1),
        nn.Linear(6 * shape[1] * shape[2], classes),
    )


CASES = {
    "logistic": (logistic(), (1, 8, 8), 10),
    "mlp": (mlp(20, 7), (1, 5, 4), 3),
    "vectors": (mlp(9), (6,), 2),
    "cnn": (cnn(3, 5), (1, 8, 8), 10),
    "cnn of colours": (cnn(4, 6), (3, 28, 24), 5),
    "own": (three_norms, (2, 5, 6), 4),
}


def network_of(name):
    return Network(*CASES[name])


def images(name, b=11, dtype=torch.float64):
    return torch.randn(b, *CASES[name][1], generator=torch.Generator().manual_seed(3), dtype=dtype)


def plain(name, x):
    """The nn.Sequential itself, loaded with the parameters x."""
    build, shape, classes = CASES[name]
    module = build(shape, classes).to(x.dtype)
    nn.utils.vector_to_parameters(x, module.parameters())
    return module


def randomly(network, dtype=torch.float64):
    return torch.randn(network.d, generator=torch.Generator().manual_seed(5), dtype=dtype) / 3


@pytest.mark.parametrize(
    ("build", "shape", "classes", "d"),
    [
        (logistic(), (1, 28, 28), 10, 784 * 10 + 10),
        (mlp(200), (1, 28, 28), 10, 784 * 200 + 200 + 200 * 10 + 10),
        (mlp(64, 32), (1, 8, 8), 10, 64 * 64 + 64 + 64 * 32 + 32 + 32 * 10 + 10),
        # 28 -> 24 -> 12 -> 8 -> 4
        (cnn(), (1, 28, 28), 10, 16 * 25 + 16 + 32 * 16 * 25 + 32 + 32 * 16 * 10 + 10),
        # 8 -> 8 -> 4 -> 4 -> 2
        (cnn(3, 5), (1, 8, 8), 10, 3 * 9 + 3 + 5 * 3 * 9 + 5 + 5 * 4 * 10 + 10),
    ],
)
def test_number_of_parameters(build, shape, classes, d):
    network = Network(build, shape, classes)
    assert network.d == d == sum(p.numel() for p in build(shape, classes).parameters())
    assert network.init(0).shape == (d,)


@pytest.mark.parametrize("name", CASES)
def test_network_equals_the_module_with_the_same_parameters(name):
    network, batch = network_of(name), images(name)
    x = randomly(network).requires_grad_()
    module = plain(name, x.detach())
    got, want = network(x, batch), module(batch)
    close(got, want)
    weight = torch.randn(got.shape, generator=torch.Generator().manual_seed(7), dtype=got.dtype)
    (gradient,) = torch.autograd.grad((got * weight).sum(), x)
    (want * weight).sum().backward()
    close(gradient, nn.utils.parameters_to_vector([p.grad for p in module.parameters()]), 1e-10)


@pytest.mark.parametrize("name", ["cnn", "cnn of colours", "own"])
def test_output_depends_on_the_numbers_not_on_their_layout(name):
    network, batch = network_of(name), images(name, dtype=torch.float32)
    x = randomly(network, torch.float32)
    want = network(x, batch)
    by_channel = batch.to(memory_format=torch.channels_last)
    strided = torch.stack([batch, -batch], -1)[..., 0]
    assert strided.stride() != batch.stride()
    for other in (by_channel, strided, batch.flip(0).flip(0)):
        assert torch.equal(network(x, other), want)
    close(want, plain(name, x)(batch), atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_stages_compose_to_the_whole(name):
    network, batch = network_of(name), images(name)
    x, L = randomly(network), len(network.layers)
    whole = network(x, batch)
    for cut in range(1, L):
        out = batch
        for a, b in ((0, cut), (cut, L)):
            part = slice(network.layers[a].params.start, network.layers[b - 1].params.stop)
            out = network.stage(a, b)(x[part], out)
        close(out, whole)
    out = batch
    for s, layer in enumerate(network.layers):
        out = network.stage(s, s + 1)(x[layer.params], out)
        assert out[0].numel() == layer.activation
    close(out, whole)


@pytest.mark.parametrize("name", CASES)
def test_layers_tile_the_vector_and_the_modules(name):
    network = network_of(name)
    for field, end in (("params", network.d), ("modules", len(network.module))):
        spans = [getattr(layer, field) for layer in network.layers]
        assert spans[0].start == 0 and spans[-1].stop == end
        assert all(a.stop == b.start for a, b in zip(spans, spans[1:], strict=False))
    assert sum(layer.parameters for layer in network.layers) == network.d


def test_profile_of_an_mlp_by_hand():
    """6-4-3: 2 FLOPs a multiply-add; backward once for the weights, once for a needed input."""
    network = Network(mlp(4), (1, 2, 3), 3)
    first, last = network.layers
    assert (first.forward, first.backward) == (2 * 6 * 4, 2 * 6 * 4)
    assert (last.forward, last.backward) == (2 * 4 * 3, 2 * 2 * 4 * 3)
    assert network.flops == 2 * (6 * 4 + 4 * 3)
    assert (first.parameters, last.parameters) == (6 * 4 + 4, 4 * 3 + 3)
    assert (first.activation, last.activation) == (4, 3)
    assert (first.saved, last.saved) == (6 + 4, 4)  # the ReLU keeps its output
    assert [layer.name for layer in network.layers] == ["linear0", "linear1"]


def test_profile_of_a_cnn_by_hand():
    """28 x 28: the first 5x5 convolution gives 2 channels of 24 x 24, pooled 12 x 12; the
    second 3 of 8 x 8, pooled 4 x 4, of which the linear layer takes 3 * 16."""
    network = Network(cnn(2, 3), (1, 28, 28), 10)
    forward = [2 * 25 * 1 * 2 * 24 * 24, 2 * 25 * 2 * 3 * 8 * 8, 2 * 48 * 10]
    assert [layer.forward for layer in network.layers] == forward
    backward = [forward[0], 2 * forward[1], 2 * forward[2]]
    assert [layer.backward for layer in network.layers] == backward
    assert [layer.activation for layer in network.layers] == [2 * 12 * 12, 3 * 4 * 4, 10]
    assert [layer.parameters for layer in network.layers] == [52, 153, 490]
    assert network.flops == sum(forward)


@pytest.mark.parametrize("name", CASES)
def test_profile_is_what_torch_counts(name):
    network, module = network_of(name), plain(name, randomly(network_of(name)))
    batch = images(name, b=1)
    for layer in network.layers:
        with FlopCounterMode(display=False) as counter:
            batch = module[layer.modules](batch)
        assert layer.forward == counter.get_total_flops()
        assert layer.activation == batch.numel()
    assert [v for v, layer in CASES.items() if network_of(v).by_hand is None] == ["own"]


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("name", CASES)
def test_tracked_models_have_their_own_gradients(name, k):
    """The logits of k models and, by autograd, the gradients of their parameters."""
    network, rng = network_of(name), torch.Generator().manual_seed(1)
    X = torch.randn(k, network.d, generator=rng, dtype=torch.float64) / 3
    batch = torch.stack([images(name) * (i + 1) for i in range(k)])
    z, parameters = network.track(X, batch)
    weight = torch.randn(z.shape, generator=rng, dtype=z.dtype)
    found = torch.autograd.grad(z, parameters, weight)
    found = torch.cat([v.reshape(k, -1) for v in found], 1)
    for i in range(k):
        x = X[i].clone().requires_grad_()
        want = network(x, batch[i])
        close(z[i].detach(), want.detach())
        close(found[i], torch.autograd.grad(want, x, weight[i])[0], atol=1e-10)
    assert X.grad is None and not X.requires_grad


def test_a_tracked_model_follows_the_device_and_type_of_its_vector():
    network = network_of("own")
    for dtype in (torch.float64, torch.float32, torch.float64):
        x, batch = randomly(network, dtype), images("own", dtype=dtype)
        z, _ = network.track(x[None], batch[None])
        assert z.dtype == dtype
        close(z[0].detach(), network(x, batch), atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_views_share_memory_and_keep_the_order(name):
    network = network_of(name)
    X = torch.stack([randomly(network), -randomly(network)])
    for leading, x in ((2,), X), ((), X[0]):
        views = network.views(x)
        close(torch.cat([v.reshape(*leading, -1) for v in views], -1), x)
        assert [v.shape[len(leading) :] for v in views] == network.shapes
    network.views(X)[0][1].fill_(9.0)
    assert (X[1, : network.sizes[0]] == 9).all() and not (X[0, : network.sizes[0]] == 9).any()


@pytest.mark.parametrize("name", CASES)
def test_init_is_keyed_and_leaves_the_global_generator_alone(name):
    network = network_of(name)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    x = network.init(7, "x")
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    torch.rand(5)
    assert torch.equal(network.init(7, "x"), x)
    assert not torch.equal(network.init(8, "x"), x)
    assert x.dtype == torch.float32
    assert torch.equal(network.init(7, "x", dtype=torch.float64), x.double())


def test_init_is_the_modules_own():
    """nn.Linear draws weights and biases from U(-1 / sqrt(in), 1 / sqrt(in))."""
    network = Network(mlp(100), (1, 28, 28), 10)
    w, b, w2, _ = network.views(network.init(0))
    for part, fan_in in ((w, 784), (b, 784), (w2, 100)):
        bound = fan_in**-0.5
        assert bound * 0.9 < part.abs().max() <= bound
        deviation = bound / 3**0.5  # of the uniform distribution
        assert part.std().item() == pytest.approx(deviation, rel=4 / part.numel() ** 0.5)


def test_wrong_shapes_and_buffers_are_refused():
    with pytest.raises(UsageError, match=r"use mlp\(\)"):
        Network(cnn(), (64,), 10)
    with pytest.raises(UsageError, match="batch norm"):
        Network(lambda s, c: nn.Sequential(nn.Linear(4, c), nn.BatchNorm1d(c)), (4,), 2)
