"""Training while the data change."""

from collections.abc import Callable

import numpy as np

from survey_lib.drift import Memory, whole
from survey_lib.methods.server_sync import fedavg


def fedavg_on_stream(
    task,
    world,
    *,
    memory: Memory = whole,
    alarm: Callable[[list[float]], bool] | None = None,
    stop: float = np.inf,
    seed=0,
    **fedavg_arguments,
):
    """FedAvg on data that come in, of which the devices keep what `memory` says.

    task: drift.Drifting. Between the rounds m samples come in on each device. Who is on tests the
    newest model on them, which takes a forward pass, and keeps of all its samples what `memory`
    says. alarm: told of the losses in these tests, whether the data have changed: then the device
    keeps the newest samples only, and its losses begin anew. After `stop` rounds the model is
    frozen: devices test it, and nobody trains. Bytes: FedAvg's. Yields how many samples a device
    holds, and the share of the devices that gave an alarm.
    memory=whole without alarm is FedAvg on data that grow, and so is a window of all rounds.
    """
    losses, alarms = [[] for _ in range(task.n)], 0
    for r, x in enumerate(fedavg(task, world, seed=seed, **fedavg_arguments)):
        while True:
            yield x, {"held": task.sizes.mean(), "alarms": alarms / task.n}
            on, held, alarms = world.online(), list(task.held), 0
            world.compute(on, task.m * task.network.flops)
            for i, loss in zip(on, task.incoming(x)[on], strict=True):
                losses[i].append(loss)
                held[i] = memory(held[i], task.m, seed)
                if alarm is not None and alarm(losses[i]):
                    held[i], losses[i], alarms = held[i][-task.m :], [], alarms + 1
            task.hold(held)
            if r < stop:
                break
            world.barrier(on)
