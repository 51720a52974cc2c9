"""Local training and evaluation elsewhere than on the CPU give the CPU's numbers, on the CPU."""

import gc

import numpy as np
import pytest
import torch
from conftest import small
from torch import nn

from survey_lib import device
from survey_lib.errors import UsageError
from survey_lib.models import cnn, mlp
from survey_lib.training import batch_gradients, cross_entropy, train

HERE = ["cpu:0"] + ["cuda"] * torch.cuda.is_available()


def tanh(shape, classes):
    return nn.Sequential(nn.Flatten(1), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, classes))


@pytest.mark.parametrize("where", HERE)
@pytest.mark.parametrize("network", [mlp(7), cnn(2, 3), tanh])
def test_numbers_do_not_depend_on_the_device(network, where, monkeypatch):
    """Also with a loss and a projection that hold tensors on the CPU, and corrections."""
    task, chosen = small(network=network), np.arange(6)
    scale, correct = torch.rand(len(task.y)), 0.1 * torch.randn(6, task.d, dtype=torch.float64)

    def loss(z, y, rows, members):
        return cross_entropy(z, y, rows, members) * scale[rows][..., None]

    def run():
        how = dict(eta=0.1, B=4, K=[3, 1, 2, 3, 3, 2], correct=correct, mu=0.1, seed=0)
        half = train(task, chosen, task.init(), project=lambda G, m: G * (m / 6)[:, None], **how)
        own, plain = (
            train(task, chosen, task.init(), loss=loss, **how),
            train(task, chosen, task.init(), **how),
        )
        G = batch_gradients(task, chosen, plain, B=5, seed=1)
        return half, own, plain, G, *(torch.from_numpy(v) for v in task.evaluate(plain))

    want = run()
    monkeypatch.setenv("SURVEY_DEVICE", where)
    for a, b in zip(run(), want, strict=True):
        assert a.device.type == "cpu"
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_data_are_copied_once_and_go_with_their_task(monkeypatch):
    """cpu:0 stands for another device: to torch it is not the one that tensors name."""
    monkeypatch.setenv("SURVEY_DEVICE", "cpu:0")
    data, kept = torch.arange(5.0), len(device._resident)
    there = device.resident(data)
    assert torch.equal(there, data) and device.resident(data) is there
    assert len(device._resident) == kept + 1
    monkeypatch.delenv("SURVEY_DEVICE")
    assert device.resident(data) is data and device.device() == torch.device("cpu")
    del data, there
    gc.collect()
    assert len(device._resident) == kept


@pytest.mark.parametrize("name", ["meta", "cuda:99", "toaster", ""])
def test_a_device_that_is_not_there_is_refused(name, monkeypatch):
    monkeypatch.setenv("SURVEY_DEVICE", name)
    with pytest.raises(UsageError, match=f"SURVEY_DEVICE={name}: .*; expected cpu, or cuda"):
        small().evaluate(torch.zeros(1, small().d, dtype=torch.float64))
