"""Client steps per second of local training beside what one would use instead, on the same work.

Every measurement is a fresh process with one torch thread a core; all systems take turns, then the
next repeat begins, and medians are printed. Rows of one core are compared with rows of one core,
of two with two. On two cores Flower has two actors for one run; the plain loop and this library
make two runs of unlike seeds side by side, as a study over seeds does, and their steps add up.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from processes import BUILD, CALM, PEERS, ROOT, Failed, environment, measure, wait_until_calm
from work import PRINTED, WORKLOADS

from survey_lib.report.figures import PALETTE, styled

RESULTS = ROOT / "results"
OURS, LOOP, BOOKS, GAUGE = "survey_lib", "loop", "bookkeeping", "sgemm"
SYSTEMS = [LOOP, OURS, *PEERS]
FEDAVG = ["mlp", "logreg", "cnn"]
OFFERS = {peer: FEDAVG for peer in PEERS} | {"appfl": [*FEDAVG, "async"]}
TITLES = {
    "mlp": "FedAvg, MLP, 10 of 100 clients",
    "logreg": "FedAvg, logistic, 100 of 1000",
    "cnn": "FedAvg, small CNN, 10 of 100",
    "gossip": "D-PSGD, logistic, ring of 64",
    "async": "FedAsync, logistic, 1000 devices",
}
FLOPS = 2 * 2048**3  # of the matrix product that is the yardstick
COLUMNS = "workload system version cores median_s client_steps_per_s percent_sgemm accuracy".split()


def jobs(workloads, systems, cores) -> list[tuple[str, str, int]]:
    """(workload, system, cores) of one repeat, the yardstick first."""
    found = [(GAUGE, GAUGE, c) for c in cores]
    for c in cores:
        for w in workloads:
            for s in systems:
                if s not in PEERS or (w in OFFERS[s] and c == (2 if s == "flower" else 1)):
                    found.append((w, s, c))
    if OURS in systems and 1 in cores:
        found += [(w, BOOKS, 1) for w in workloads if w not in ("mlp", "cnn", "other")]
    return found


def collect(todo, repeats: int, wait: float) -> tuple[pd.DataFrame, dict]:
    """A row per measurement, and what could not be measured: {job: reason}. Each measurement that
    others disturbed is made once more at the end, where there is more than one repeat."""
    pythons, reasons, rows, failures = {}, {}, [], {}
    for system in dict.fromkeys(s for _, s, _ in todo):
        try:
            pythons[system] = environment(system)
        except Failed as error:
            reasons[system] = str(error)

    def once(job, repeat):
        workload, system, cores = job
        try:
            if system in reasons:
                raise Failed(reasons[system])
            wait_until_calm(wait)
            row = measure(pythons[system], *job, seed=repeat)
        except Failed as error:
            failures[job] = str(error)
            print(f"  {workload:7} {system:12} {error}", flush=True)
            return
        rows.append(dict(row, repeat=repeat))
        note = f"others used {row['foreign']:.2f} cores" if row["foreign"] > CALM else ""
        print(f"  {workload:7} {system:12} {cores} {row['seconds']:9.4f} s {note}", flush=True)

    for repeat in range(repeats):
        print(f"repeat {repeat + 1} of {repeats}", flush=True)
        for job in todo:
            if job not in failures:
                once(job, repeat)
    again = [row for row in rows if row["foreign"] > CALM] if repeats > 1 else []
    if again:
        print(f"{len(again)} measurements were disturbed and are made again", flush=True)
    for row in again:
        once((row["workload"], row["system"], row["cores"]), row["repeat"])
    return pd.DataFrame(rows), failures


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """Medians of each row over its n calm measurements; over all of them where n = 0."""
    rows, keys = [], ["workload", "system", "cores"]
    for key, group in frame.groupby(keys, sort=False):
        calm = group[group["foreign"] <= CALM]
        median = (calm if len(calm) else group)[["seconds", "start", "accuracy"]].median()
        version = group["version"].iloc[0]
        rows.append({**dict(zip(keys, key, strict=True)), **median, "n": len(calm)})
        rows[-1]["version"] = version
    return pd.DataFrame(rows)


def compare(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of systems, with speed, percent of sgemm, and how many times longer than this
    library a system takes on as many cores."""
    peak = FLOPS / table[table["system"] == GAUGE].set_index("cores")["seconds"]
    for cores, rate in peak.items():
        print(f"sgemm, {cores} core{'s' * (cores > 1)}: {rate / 1e9:.0f} GFLOP/s")
    table = table[~table["system"].isin([GAUGE, BOOKS])].copy()
    table["median_s"] = table["seconds"]
    steps = table["workload"].map({name: work.steps for name, work in WORKLOADS.items()})
    table["client_steps_per_s"] = steps / table["seconds"]
    step = {w: 3 * WORKLOADS[w].forward for w in table["workload"].unique()}
    rate = table["client_steps_per_s"] * table["workload"].map(step)
    table["percent_sgemm"] = 100 * rate / table["cores"].map(peak)
    ours = table[table["system"] == OURS].set_index(["workload", "cores"])["seconds"]
    rows = pd.MultiIndex.from_frame(table[["workload", "cores"]])
    table["times_ours"] = table["seconds"] / ours.reindex(rows).to_numpy()
    place = table["workload"].map(list(WORKLOADS).index)
    order = ["place", "cores", "seconds"]
    return table.assign(place=place).sort_values(order).drop(columns="place")


def unlike(table: pd.DataFrame) -> list[str]:
    """The workloads whose final accuracies lie more than 2 points apart."""
    notes = []
    for workload, rows in table.groupby("workload", sort=False):
        if rows["accuracy"].max() - rows["accuracy"].min() > 0.02:
            who = ", ".join(f"{r.system} {r.accuracy:.3f}" for r in rows.itertuples())
            notes.append(f"{workload}: not the same work; accuracies {who}")
    return notes


@styled
def chart(table: pd.DataFrame, path: Path) -> None:
    """Client steps per second: a panel per workload, a bar per system and number of cores."""
    workloads = list(table["workload"].unique())
    lines = -(-(len(workloads) + 1) // 2)
    fig = Figure(figsize=(7, 2.1 * lines), layout="constrained")
    axes = fig.subplots(lines, 2).ravel()
    for ax, workload in zip(axes, workloads, strict=False):
        rows = table[table["workload"] == workload]
        rows = rows.sort_values(["cores", "client_steps_per_s"], ascending=[False, True])
        speed, two = rows["client_steps_per_s"].to_numpy(), (rows["cores"] == 2).to_numpy()
        names = rows["system"].replace({LOOP: "plain loop"}) + np.where(two, ", 2 cores", "")
        colours = [PALETTE[3 if s == OURS else 6] for s in rows["system"]]
        hatches = np.where(two, "//", "").tolist()
        bars = ax.barh(range(len(rows)), speed, color=colours, hatch=hatches, edgecolor="white")
        ax.bar_label(bars, [f"{v:,.0f}" for v in speed], padding=2, fontsize=8)
        ax.set_yticks(range(len(rows)), names, fontsize=8)
        ax.set_xscale("log")
        ax.set_xlim(10 ** np.floor(np.log10(speed.min())), speed.max() * 8)
        ax.set_title(TITLES[workload], fontsize=9, loc="left")
        ax.grid(axis="y", visible=False)
    for ax in axes[len(workloads) :]:
        ax.axis("off")
    note = "Client steps per second:\nlonger is faster (log scale).\n\nHatched: on two cores,"
    axes[-1].text(0.0, 0.5, f"{note}\nelse on one.", va="center", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=110, facecolor="white", metadata={"Software": None})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(WORKLOADS), help="workloads, by commas")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="systems, by commas")
    parser.add_argument("--cores", default="1,2" if os.cpu_count() > 1 else "1", help="1 or 1,2")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each row")
    parser.add_argument("--quick", action="store_true", help="one measurement of each row")
    parser.add_argument("--wait", type=float, default=30, help="s for others to stop, each time")
    given = parser.parse_args()
    given.only, given.systems = given.only.split(","), given.systems.split(",")
    given.cores = [int(c) for c in given.cores.split(",")]
    given.repeats = 1 if given.quick else given.repeats
    for wanted, known in ((given.only, WORKLOADS), (given.systems, SYSTEMS)):
        if unknown := set(wanted) - set(known):
            parser.error(f"no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    whole = (given.only, given.systems, given.cores) == (list(WORKLOADS), SYSTEMS, [1, 2])
    given.out = RESULTS if whole and not given.quick else BUILD  # a part is not published
    return given


def main() -> int:
    given = arguments()
    todo = jobs(given.only, given.systems, given.cores)
    frame, failures = collect(todo, given.repeats, given.wait)
    every = summarise(frame)
    table = compare(every)
    shown = [c for c in (*COLUMNS, "times_ours", "start", "n") if c != "version"]
    print(table[shown].round(4).to_string(index=False))
    for row in every[every["system"] == BOOKS].itertuples():
        visit = 1e3 * row.seconds / WORKLOADS[row.workload].visits
        print(f"bookkeeping, {row.workload}: {visit:.4f} ms a client visit")
    missing = [
        dict(workload=w, system=s, version=why, cores=c)
        for (w, s, c), why in failures.items()
        if not ((table["workload"] == w) & (table["system"] == s) & (table["cores"] == c)).any()
    ]
    digits = {"median_s": 5, "client_steps_per_s": 0, "percent_sgemm": 1, "accuracy": 4}
    published = table[~table["workload"].isin(PRINTED)]
    rows = pd.concat([published.round(digits), pd.DataFrame(missing)])
    given.out.mkdir(parents=True, exist_ok=True)
    rows[COLUMNS].to_csv(given.out / "bench.csv", index=False)
    chart(published, given.out / "figures" / "bench.png")
    print(f"wrote bench.csv and figures/bench.png in {given.out.relative_to(ROOT)}")
    notes = unlike(table)
    notes += [f"{w}: {s} was {why}" for (w, s, _), why in failures.items() if s not in PEERS]
    print("\n".join(notes))
    return 1 if notes else 0


if __name__ == "__main__":
    sys.exit(main())
