"""Model parallelism: a network cut into stages that sit on different devices."""

import itertools

import torch

from survey_lib.passes import Held, Passes, predicted, stashed
from survey_lib.pipeline import (
    endless,
    fill_drain,
    micro_batches,
    must_fit,
    on_devices,
    one_by_one,
    one_f_one_b,
    peak_memory,
    plan,
    play,
    split,
)


def gpipe(
    task, world, *, cuts, M, eta, B, rematerialise=False, schedule=fill_drain, devices=None, seed=0
):
    """GPipe: micro-batches through a pipeline, one update for all. Huang et al., NeurIPS 2019.

    Stage s holds its own layers of x (d,), on devices[s] (default: device s), and nothing else.
    Per cut of width w, whatever M: activations forward and gradients back, 8Bw B in float32.
    cuts: layers that begin a new stage; M: micro-batches of a mini-batch of B samples, which may
    differ by one sample; rematerialise: a stage keeps its input only and computes its forward again
    before its backward (off here, so that its cost can be seen); schedule: of pipeline.py.
    Keeps the gradient of serial SGD: g = sum_m (n_m / B) g_m. M = 1 is naive model parallelism;
    without a cut it is gradient accumulation. The backward passes take the last micro-batch first.
    Lost messages are sent again; while a stage's device is off, a second passes and nothing is
    done. Yields beside x the peak of saved activations, bytes of the busiest stage.
    """
    stages, sizes = split(task.network, cuts, task.dtype), micro_batches(B, M)
    devices, x, extra = on_devices(world, stages, devices), task.init(), {}  # x (d,)
    for r in itertools.count():
        yield x, extra
        if len(world.online(devices)) < len(devices):
            world.barrier([])
            continue
        events = plan(world, stages, schedule, sizes, devices=devices, rematerialise=rematerialise)
        need = peak_memory(stages, sizes, events)
        must_fit(world, devices, need)
        world.replay(events)
        x = x - eta * play(stages, x, task.batch(B, seed, r), sizes, events)
        extra = {"activations": max(need - [2 * stage.parameter_bytes for stage in stages])}


def one_f_one_b_flush(task, world, **how):
    """1F1B with flush: GPipe whose stages take backward passes as soon as they can.
    Narayanan et al., ICML 2021 (PipeDream-Flush), and Fan et al., PPoPP 2021 (DAPPLE).

    State, messages and gradient as GPipe. Stage k of K holds at most min(M, K - k) micro-batches
    instead of M; with equal stages and free links a mini-batch takes as long as GPipe's.
    """
    yield from gpipe(task, world, schedule=one_f_one_b, **how)


def naive_layerwise_mp(task, world, *, cuts, eta, B, devices=None, seed=0):
    """Naive layer-wise model parallelism: one mini-batch in flight, one device at work at a time.
    Mayer and Jacobsen, ACM Computing Surveys 53(1), 2020.

    Stage s holds its own layers of x (d,), on devices[s] (default: device s), and nothing else.
    Per cut of width w: activations forward and gradients back, 8Bw B in float32.
    Keeps the model of serial SGD to round-off, at any cut. This is GPipe with one micro-batch.
    """
    yield from gpipe(
        task, world, cuts=cuts, M=1, eta=eta, B=B, schedule=one_by_one, devices=devices, seed=seed
    )


def single_device(task, world, *, eta, B, device=0, seed=0):
    """Serial SGD on one device, the baseline of model parallelism: one stage, no messages."""
    yield from naive_layerwise_mp(task, world, cuts=(), eta=eta, B=B, devices=(device,), seed=seed)


def pipedream(
    task,
    world,
    *,
    cuts,
    eta,
    B,
    momentum=0.0,
    weights=stashed,
    schedule=one_f_one_b,
    devices=None,
    start=None,
    seed=0,
):
    """PipeDream: mini-batches follow each other through the pipeline without a flush, and a stage
    updates its weights after each of its own backward passes. Harlap et al., arXiv 1806.03377,
    sections 3.2 and 3.3; Narayanan et al., SOSP 2019.

    Stage k of K holds its own part of x (d,), on devices[k], its momentum and the versions that its
    mini-batches in flight, at most K - k, have met. Per mini-batch and cut of width w: activations
    forward and gradients back, 8Bw B in float32, and never weights. v <- momentum v + g;
    w <- w - eta v, on the newest weights. weights, of passes.py, says which ones a pass uses:
      stashed   w(t+1) = w(t) - eta grad f(w_0(t-K+1), w_1(t-K+2), ..., w_K-1(t)): forward with
                the newest, backward with the same. At most K - k versions at stage k.
      vertical  w(t+1) = w(t) - eta grad f(w(t-K+1)), one version for all stages, bit for bit
                delayed SGD; up to K versions at every stage.
      newest    no versions: the backward pass meets other weights than its forward pass did.
    start: the first model (default: the task's). Not here: replicated stages (1F1B-RR), whose
    planning is in cutting.py. One stage is serial SGD, and so is schedule=one_by_one.
    Yields x with the updates of the same mini-batches in all stages, when one is through at the
    first stage, and the memory of the fullest stage in bytes. Lost messages are sent again; while a
    stage's device is off, the pipeline stands still.
    """
    stages = split(task.network, cuts, task.dtype)
    devices, x, seen = on_devices(world, stages, devices), task.init(), {}  # x (d,)
    x = x if start is None else start
    held = [Held(v, s, x[v.params], eta, momentum, seen) for s, v in enumerate(stages)]
    passes, later, extra, need = Passes(stages), {}, {}, [0] * len(held)
    yield x, extra
    for step in endless(world, stages, B, schedule=schedule, devices=devices):
        if step is None:
            yield x, extra
            continue
        (_, _, _, what, m, _, _, s, _), ahead = step
        own, w = held[s], weights(held[s], what, m, ahead)
        if what == "F":
            if s == 0:
                passes.enter(m, *task.batch(B, seed, m))
            passes.forward(s, m, w)
            need[s] = max(need[s], own.nbytes(B))
            must_fit(world, devices, need)
            extra = {"memory": max(need)}
        else:
            own.step(m, passes.backward(s, m, w))
            later.setdefault(m, torch.empty_like(x))[stages[s].params] = own.w
            if s == 0:
                x = later.pop(m)
                seen.pop(m, None)
                yield x, extra


def spectrain(task, world, *, momentum=0.9, **how):
    """SpecTrain: PipeDream's pipeline that computes with predicted weights instead of stashed ones.
    Chen, Yang, Cheng, arXiv 1809.02839, section 4.

    A pass that is `ahead` updates of its stage before its mini-batch is back at the first stage
    uses w - ahead eta v; the gradient goes to w itself. So both passes of a mini-batch, at all
    stages, aim at the weights of one moment. One copy of the weights and the momentum.
    The paper counts `ahead` by a formula for passes of equal length, floor(k/2) + K - k - 1 and
    floor(k/2) at stage k; here it is read off the timetable. Its v counts the gradient
    (1 - momentum) times, so that its step is our eta / (1 - momentum).
    With eta = 0 or one stage it is SGD with momentum; with momentum 0 the prediction repeats the
    last gradient.
    """
    yield from pipedream(task, world, momentum=momentum, weights=predicted, **how)
