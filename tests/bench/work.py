"""What every system of the benchmark does, and how it is timed."""

import sys
import time
from dataclasses import dataclass
from math import prod

import numpy as np
import psutil
from torch import nn

from survey_lib.models import Build, Network, cnn, logistic, mlp
from survey_lib.training import Task

ETA = 0.05  # step size
ALPHA, A = 0.6, 0.5  # FedAsync: the mixing weight is ALPHA (staleness + 1)^-A
ARRIVALS = 2000  # of the asynchronous fleet, timed as one round


@dataclass(frozen=True)
class Work:
    """Fashion-MNIST split evenly at random over n devices, of which S train at once on batches of B
    for one epoch, or one step; so many timed rounds after one to warm up."""

    name: str
    method: str  # fedavg, d_psgd or fedasync
    network: Build
    n: int
    S: int
    B: int
    rounds: int = 10
    one_step: bool = False

    def task(self, seed: int) -> Task:
        return Task("fashion_mnist", n=self.n, network=self.network, seed=seed)

    @property
    def forward(self) -> int:
        """FLOPs of a step's forward pass."""
        return self.B * Network(self.network, (1, 28, 28), 10).flops

    @property
    def visits(self) -> int:
        """Local trainings a round."""
        return ARRIVALS if self.method == "fedasync" else self.S

    @property
    def steps(self) -> int:
        """SGD steps a round."""
        return self.visits * (1 if self.one_step else 60_000 // self.n // self.B)


def _tanh(shape, classes):
    """A network that takes the path by autograd, and is as large as the MLP."""
    wide = nn.Linear(prod(shape), 200)
    return nn.Sequential(nn.Flatten(), wide, nn.Tanh(), nn.Linear(200, classes))


WORKLOADS = {
    work.name: work
    for work in (
        Work("mlp", "fedavg", mlp(200), n=100, S=10, B=20),
        Work("logreg", "fedavg", logistic(), n=1000, S=100, B=10),
        Work("cnn", "fedavg", cnn(), n=100, S=10, B=20),
        Work("gossip", "d_psgd", logistic(), n=64, S=64, B=20, rounds=200, one_step=True),
        Work("async", "fedasync", logistic(), n=1000, S=1000, B=10, rounds=1),
        Work("other", "fedavg", _tanh, n=100, S=10, B=20),
    )
}
PRINTED = {"other"}  # the path by autograd: is compared with the plain loop, not published


class Meter:
    """Seconds of each round. A system calls `mark` at the end of every round. The first one is not
    timed; after it the process says that it is ready and waits for a line, so that processes that
    are to run side by side begin together."""

    def __init__(self, rounds: int):
        self.rounds, self.ends, self.usage = rounds, [], []

    def mark(self) -> None:
        if not self.ends:
            self.start = time.time() - psutil.Process().create_time()
            print("\nBENCH ready", flush=True)
            sys.stdin.readline()
            self.usage.append(_usage())
        self.ends.append(time.perf_counter())
        if len(self.ends) == self.rounds + 1:
            self.usage.append(_usage())

    def report(self) -> dict:
        """seconds: of each round. start: from the process's start to the end of the first round, s.
        own, machine: CPU seconds of this process with its children, and of the whole machine,
        during the timed rounds."""
        if len(self.usage) < 2:
            raise RuntimeError(f"{len(self.ends)} rounds were run, expected {self.rounds} + 1")
        own, machine = np.subtract(self.usage[1], self.usage[0])
        seconds = np.diff(self.ends[: self.rounds + 1])
        return dict(seconds=seconds.tolist(), start=self.start, own=own, machine=machine)


def busy() -> float:
    """CPU seconds that this machine has worked since it started."""
    times = psutil.cpu_times()._asdict()
    return sum(times.get(k, 0.0) for k in ("user", "nice", "system", "irq", "softirq", "steal"))


def _usage():
    own, me = 0.0, psutil.Process()
    for process in (me, *me.children(recursive=True)):
        try:
            own += sum(process.cpu_times()[:2])  # user, system
        except psutil.NoSuchProcess:
            pass
    return own, busy()
