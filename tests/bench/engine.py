"""Local training of a cohort beside the plainest sequential loop, interleaved in one process;
memory of many devices. Prints medians of 5 rounds, client steps per second, and percent of this
machine's sgemm rate. One core."""

import statistics
import subprocess
import sys
import time

import numpy as np
import psutil
import torch
from torch import nn

from survey_lib.models import cnn, logistic, mlp
from survey_lib.partition import iid
from survey_lib.training import Task, train

ROUNDS, ETA = 5, 0.05
WORKLOADS = {  # network, devices, sampled, batch
    "MLP 784-200-10": (mlp(200), 100, 10, 20),
    "logistic": (logistic(), 1000, 100, 10),
    "CNN": (cnn(), 100, 10, 20),
}


def plain_loop(task, chosen, x, B, seed):
    """One nn.Module after another with torch.optim.SGD and slices of preloaded tensors."""
    module = task.network.build(task.network.shape, task.classes)
    shapes = dict(zip(task.network.names, task.network.views(x), strict=True))
    rng, loss, out = np.random.default_rng(seed), nn.CrossEntropyLoss(), []
    for i in chosen:
        module.load_state_dict(shapes)
        optimiser = torch.optim.SGD(module.parameters(), lr=ETA)
        order = torch.from_numpy(rng.permutation(task.rows(i)))
        for rows in order.split(B):
            optimiser.zero_grad()
            loss(module(task.x[rows]), task.y[rows]).backward()
            optimiser.step()
        out.append(torch.cat([p.detach().reshape(-1) for p in module.parameters()]))
    return torch.stack(out)


def sgemm() -> float:
    """FLOP/s of a 2048 x 2048 float32 product, best of 8."""
    a, b, best = torch.randn(2048, 2048), torch.randn(2048, 2048), np.inf
    for _ in range(8):
        begin = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - begin)
    return 2 * 2048**3 / best


def engine() -> None:
    peak = sgemm()
    print(f"sgemm {peak / 1e9:.0f} GFLOP/s on one core, torch {torch.__version__}")
    print("workload            loop s   ours s  ratio  steps/s  % sgemm  accuracies")
    for name, (network, n, S, B) in WORKLOADS.items():
        task = Task("fashion_mnist", n=n, network=network)
        x, seconds = task.init(), {"loop": [], "ours": []}
        chosen = np.arange(S)
        for r in range(ROUNDS + 1):
            begin = time.perf_counter()
            theirs = plain_loop(task, chosen, x, B, r)
            middle = time.perf_counter()
            ours = train(task, chosen, x, eta=ETA, B=B, E=1, seed=(0, r))
            if r:  # the first round warms up
                seconds["loop"].append(middle - begin)
                seconds["ours"].append(time.perf_counter() - middle)
        loop, mine = (statistics.median(s) for s in seconds.values())
        steps = task.steps(chosen, B=B, E=1).sum() / mine
        share = steps * 3 * task.network.flops * B / peak
        same = [task.evaluate(Y.mean(0, keepdim=True))[0][0] for Y in (theirs, ours)]
        speed = f"{loop:8.4f} {mine:8.4f} {loop / mine:6.2f} {steps:8.0f} {share:8.1%}"
        print(f"{name:16}  {speed}  {same[0]:.3f} {same[1]:.3f}")


def registered(n: int) -> None:
    """Memory (MB) of this process after 5 rounds of 100 out of n registered devices."""
    from survey_lib.methods.server_sync import fedavg
    from survey_lib.world import World

    task = Task("fashion_mnist", n=n, partition=iid(size=20), network=logistic())
    method = fedavg(task, World(n), S=100, B=10, E=1, eta=ETA)
    for _ in range(6):
        next(method)
    print(psutil.Process().memory_info().rss / 2**20)


def memory() -> None:
    used = {}
    for n in (1000, 100_000):
        call = [sys.executable, __file__, str(n)]
        used[n] = float(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
        print(f"{n:7} registered devices, 100 a round: {used[n]:.0f} MB")
    print(f"difference {used[100_000] - used[1000]:.0f} MB")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        registered(int(sys.argv[1]))
    else:
        engine()
        memory()
