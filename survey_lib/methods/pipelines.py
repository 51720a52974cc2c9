"""Model parallelism: a network cut into stages that sit on different devices."""

import itertools

from survey_lib.pipeline import fill_drain, micro_batches, one_by_one, plan, play, split


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
    """
    stages, sizes = split(task.network, cuts, task.dtype), micro_batches(B, M)
    x = task.init()  # (d,)
    for r in itertools.count():
        yield x
        events = plan(world, stages, schedule, sizes, devices=devices, rematerialise=rematerialise)
        world.replay(events)
        x = x - eta * play(stages, x, task.batch(B, seed, r), sizes, events)


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
