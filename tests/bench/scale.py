"""Time per round and peak memory as a simulation grows along four axes, each point measured in a
fresh process: writes results/scale.csv (axis, size, seconds, peak_mb) and results/figures/scale.png
with the slopes. One core; about two minutes. `scale.py AXIS SIZE` prints one point."""

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from survey_lib.report.figures import MARKERS, PALETTE, styled

RESULTS = Path(__file__).resolve().parents[2] / "results"
SIZES = {
    "registered devices": [10, 100, 1000, 10_000, 100_000, 1_000_000],
    "devices in a round": [10, 100, 1000, 10_000],
    "nodes of a gossip graph": [16, 64, 256, 1024, 4096],
    "arrivals": [1000, 10_000, 100_000, 1_000_000],
}
NOTES = {
    "registered devices": "at most 100 a round",
    "devices in a round": "FedAvg, all of them",
    "nodes of a gossip graph": "D-PSGD, 4 neighbours",
    "arrivals": "all of them, no training",
}
LEAST = {"registered devices": 100}  # sizes below take smaller rounds and are no part of the slope
BUDGET, ROUNDS = 3.0, 15  # s of CPU, and rounds, that a point takes at most


def point(axis: str, size: int) -> dict:
    """Median CPU seconds of a round (for arrivals: of all), and the peak memory of this process."""
    from survey_lib.methods.gossip import d_psgd
    from survey_lib.methods.server_sync import fedavg
    from survey_lib.models import logistic
    from survey_lib.partition import iid
    from survey_lib.topology import random_regular
    from survey_lib.training import Task
    from survey_lib.world import World, exponential

    if axis == "arrivals":
        visits = World(1000, jitter=exponential()).arrivals(np.zeros(1), np.zeros(1), 1e9)
        rounds = iter([lambda: next(itertools.islice(visits, size, None))])
    else:
        samples = 1 if axis == "registered devices" else 10
        task, world = Task(n=size, partition=iid(samples), network=logistic()), World(size)
        if axis == "nodes of a gossip graph":
            W = random_regular(size, sparse=True)
            models = d_psgd(task, world, W=W, B=10, eta=0.05)
        else:
            S = min(size, 100) if axis == "registered devices" else size
            models = fedavg(task, world, S=S, B=10, E=1, eta=0.05)
        next(models), next(models)  # the first round warms up
        rounds = itertools.repeat(lambda: next(models), ROUNDS)
    seconds = []
    for one in rounds:
        begin = time.process_time()
        one()
        seconds.append(time.process_time() - begin)
        if sum(seconds) > BUDGET:
            break
    return dict(axis=axis, size=size, seconds=float(np.median(seconds)), peak_mb=peak())


def peak() -> float:
    """Peak memory (MB) of this process. What getrusage tells counts the parent's before exec."""
    status = Path("/proc/self/status")
    if status.exists():
        kilobytes = next(s for s in status.read_text().splitlines() if s.startswith("VmHWM"))
        return round(int(kilobytes.split()[1]) / 2**10, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)


def measure(axis: str, size: int) -> dict:
    """`point` in a process of its own."""
    call = [sys.executable, __file__, axis, str(size)]
    found = json.loads(subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(f"{axis:24} {size:8} {found['seconds']:10.5f} s {found['peak_mb']:8.1f} MB", flush=True)
    return found


def slope(rows: pd.DataFrame) -> float:
    """Exponent b of seconds ~ size^b, by least squares on the logarithms."""
    rows = rows[rows["size"] >= LEAST.get(rows["axis"].iloc[0], 0)]
    return float(np.polyfit(np.log(rows["size"]), np.log(rows["seconds"]), 1)[0])


def each(rows: pd.DataFrame) -> float:
    """Bytes of memory that one more costs, from the smallest size to the largest."""
    return float(np.diff(rows["peak_mb"].iloc[[0, -1]])[0] * 2**20 / rows["size"].iloc[-1])


@styled
def chart(table: pd.DataFrame, path: Path) -> None:
    """Seconds and memory against the size, a line for each axis."""
    fig = Figure(figsize=(7, 4.3), layout="constrained")
    left, right = fig.subplots(1, 2)
    for k, (axis, rows) in enumerate(table.groupby("axis", sort=False)):
        style = dict(color=PALETTE[k], marker=MARKERS[k], markersize=4)
        name = f"{axis}, {NOTES[axis]}: slope {slope(rows):.2f}"
        left.loglog(rows["size"], rows["seconds"], label=name, **style)
        more = f"{max(0.0, each(rows)):.0f} B each"
        right.semilogx(rows["size"], rows["peak_mb"], label=more, **style)
    left.set(xlabel="size", ylabel="CPU seconds a round")
    right.set(xlabel="size", ylabel="peak memory, libraries included (MB)")
    right.set_ylim(0)
    for ax in (left, right):
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=7.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=110, facecolor="white", metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("axis", nargs="?", choices=SIZES)
    parser.add_argument("size", nargs="?", type=int)
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    if chosen.axis:
        print(json.dumps(point(chosen.axis, chosen.size)))
        return
    table = pd.DataFrame([measure(axis, n) for axis, sizes in SIZES.items() for n in sizes])
    chosen.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(chosen.out / "scale.csv", index=False, float_format="%.6g")
    chart(table, chosen.out / "figures" / "scale.png")
    for axis, rows in table.groupby("axis", sort=False):
        print(f"{axis:24} slope of seconds {slope(rows):5.2f}")


if __name__ == "__main__":
    main()
