"""Two real processes: PyTorch's own pipelines, an asynchronous pipeline with messages of its own,
and layers split by their width, against what the simulated methods compute."""

import os

import pytest
import torch
import torch.distributed as dist
from conftest import close, models
from torch import nn
from torch.nn import functional as F

from survey_lib.methods.layer_parallel import megatron_tensor_parallel
from survey_lib.methods.pipelines import pipedream
from survey_lib.models import mlp
from survey_lib.pipeline import (
    fill_drain,
    micro_batches,
    one_f_one_b,
    plan,
    play,
    split,
)
from survey_lib.training import Task
from survey_lib.world import World

CUT, M, STEPS, HOW = 2, 4, 6, dict(eta=0.2, B=16)
MOMENTA = (0.0, 0.9)


def problem():
    return Task("digits", n=2, network=mlp(24, 20, 16), dtype=torch.float64)


def worker(rank, folder):
    """One of two processes: everything below, into a file."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    out = pytorch_pipelines(rank)
    out |= {momentum: asynchronous(rank, momentum) for momentum in MOMENTA}
    out["tensor"] = tensor_parallel(rank)
    torch.save(out, f"{folder}/{rank}")
    dist.destroy_process_group()


def pytorch_pipelines(rank):
    """The gradients of this stage by both of PyTorch's synchronous schedules."""
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

    task, out = problem(), {}
    net, x, (images, labels) = task.network, task.init(), task.batch(16, 0, 0)
    stage = split(net, (CUT,), torch.float64)[rank]
    modules = (
        net.layers[stage.layers.start].modules.start,
        net.layers[stage.layers.stop - 1].modules.stop,
    )
    for kind in (ScheduleGPipe, Schedule1F1B):
        module = net.build(net.shape, net.classes)[slice(*modules)].double()
        nn.utils.vector_to_parameters(x[stage.params].clone(), module.parameters())
        there = PipelineStage(module, rank, 2, torch.device("cpu"))
        schedule = kind(there, M, loss_fn=F.cross_entropy)
        schedule.step(images) if rank == 0 else schedule.step(target=labels)
        out[kind.__name__] = torch.cat([p.grad.flatten() for p in module.parameters()])
    return out


def asynchronous(rank, momentum):
    """(d_s,): the weights of this stage after STEPS mini-batches of PipeDream's 1F1B. Autograd
    holds on to the weights of the forward pass: that is weight stashing."""
    task, sent = problem(), []
    stages = split(task.network, (CUT,), torch.float64)
    w = task.init()[stages[rank].params]
    v, kept = torch.zeros_like(w), {}
    width = stages[0].output_bytes // 8
    for what, m in mine(rank):
        images, labels = task.batch(HOW["B"], 0, m)
        message = torch.empty(HOW["B"], width, dtype=torch.float64)
        if what == "F":
            leaf, a = w.detach().requires_grad_(), images
            if rank:
                dist.recv(message, 0, tag=2 * m)
                a = message.requires_grad_()
            z = stages[rank].call(leaf, a)
            kept[m] = leaf, a, F.cross_entropy(z, labels) if rank else z
            if rank == 0:
                sent.append((z.detach(), dist.isend(z.detach(), 1, tag=2 * m)))
        else:
            leaf, a, z = kept.pop(m)
            if rank:
                g, da = torch.autograd.grad(z, (leaf, a))
                sent.append((da, dist.isend(da, 0, tag=2 * m + 1)))
            else:
                dist.recv(message, 1, tag=2 * m + 1)
                (g,) = torch.autograd.grad(z, leaf, message)
            v = momentum * v + g
            w = w - HOW["eta"] * v
    for _, request in sent:
        request.wait()
    return w


def mine(rank):
    """The operations of a stage, in its order, up to the STEPS-th backward pass."""
    done = 0
    for tick in one_f_one_b(2, STEPS):
        for s, what, m in tick:
            if s == rank:
                yield what, m
                done += what == "B"
    assert done == STEPS


class Copy(torch.autograd.Function):
    """Megatron's f: nothing forward, the sum over the processes backward."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        g = g.contiguous().clone()
        dist.all_reduce(g)
        return g


class Sum(torch.autograd.Function):
    """Megatron's g: the sum over the processes forward, nothing backward."""

    @staticmethod
    def forward(ctx, z):
        z = z.clone()
        dist.all_reduce(z)
        return z

    @staticmethod
    def backward(ctx, g):
        return g


def tensor_parallel(rank):
    """The weights of this process after STEPS steps: it never holds the other half."""
    task = problem()
    own = [v.detach().clone().requires_grad_() for v in halves(task, task.init(), rank)]
    for r in range(STEPS):
        (X, labels), last = task.batch(HOW["B"], 0, r), len(own) - 4
        X = X.flatten(1)
        for k in range(0, len(own), 4):
            A, a, W, b = own[k : k + 4]
            X = Sum.apply(F.relu(Copy.apply(X) @ A.T + a) @ W.T) + b
            X = X if k == last else F.relu(X)
        g = torch.autograd.grad(F.cross_entropy(X, labels), own)
        own = [
            (v - HOW["eta"] * dv).detach().requires_grad_() for v, dv in zip(own, g, strict=True)
        ]
    return [v.detach() for v in own]


def halves(task, x, rank):
    """Of each block: half of A's rows and of its bias, half of W's columns, all of the bias b."""
    views = task.network.views(x)
    out = []
    for k in range(0, len(views), 4):
        A, a, W, b = views[k : k + 4]
        half = slice(0, len(A) // 2) if rank == 0 else slice(len(A) // 2, None)
        out += [A[half], a[half], W[:, half], b]
    return out


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The files of both processes, which are started once."""
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(worker, (str(folder),), nprocs=2)
    return [torch.load(folder / str(rank)) for rank in range(2)]


@pytest.mark.slow
def test_gradients_of_gpipe_and_1f1b(found):
    task = problem()
    x, batch = task.init(), task.batch(16, 0, 0)
    y = x.clone().requires_grad_()
    want = torch.autograd.grad(F.cross_entropy(task.network(y, batch[0]), batch[1]), y)[0]
    stages, sizes = split(task.network, (CUT,), torch.float64), micro_batches(16, M)
    for name, schedule in {"ScheduleGPipe": fill_drain, "Schedule1F1B": one_f_one_b}.items():
        theirs = torch.cat([part[name] for part in found])
        close(theirs, want, atol=1e-14)
        ours = play(stages, x, batch, sizes, plan(World(2), stages, schedule, sizes))
        close(theirs, ours, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("momentum", MOMENTA)
def test_weights_of_an_asynchronous_pipeline(found, momentum):
    how = dict(cuts=(CUT,), momentum=momentum, **HOW)
    x = models(pipedream, STEPS, task=problem(), world=World(2), **how)
    close(torch.cat([part[momentum] for part in found]), x[-1], atol=1e-12)
    assert (x[-1] - x[0]).abs().max() > 0.01


@pytest.mark.slow
def test_weights_of_a_tensor_parallel_network(found):
    task = problem()
    x = models(megatron_tensor_parallel, STEPS, task=task, world=World(2), **HOW)
    for rank, part in enumerate(found):
        for theirs, ours in zip(part["tensor"], halves(task, x[-1], rank), strict=True):
            close(theirs, ours, atol=1e-12)
