"""What becomes of slow devices: how time passes for the fleet, and what is known of their data."""

from dataclasses import replace

import numpy as np
import torch

from survey_lib.presets import Device, device
from survey_lib.training import work


def watched(task, world, *, of, classes, **arguments):
    """The method `of`, which says besides, after each round: recall, the share of the test samples
    of `classes` that the model finds among all classes (the mean over the models, if there are
    several); and of all devices' time so far the shares working (they compute, or data is on the
    air; a computation counts when it begins), waiting (in a round that they take part in) and
    left_out (the rest)."""
    there = torch.isin(task.y_test, torch.tensor(classes))
    images, labels = task.x_test[there], task.y_test[there]
    for value in of(task, world, **arguments):
        X, extra = value if isinstance(value, tuple) else (value, {})
        found = [(task.logits(x, images).argmax(1) == labels) for x in X.reshape(-1, task.d)]
        recall = torch.stack(found).double().mean().item()
        spent = max(world.n * world.clock, 1e-300)
        working, waiting = (world.busy + world.radio).sum() / spent, world.wait.sum() / spent
        shares = dict(working=working, waiting=waiting)
        shares |= dict(left_out=max(0.0, 1 - working - waiting))
        yield X, extra | dict(recall=recall) | shares


def paced(task, seconds, **how) -> list[Device]:
    """Microcontrollers whose speed is such that the work of device i, see training.work, takes
    seconds[i]."""
    kind, flops = device("microcontroller"), work(task, np.arange(task.n), **how)
    return [replace(kind, speed=float(f / s)) for f, s in zip(flops, seconds, strict=True)]
