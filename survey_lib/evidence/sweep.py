"""Methods x seeds in parallel processes, each finished run kept in the store."""

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path

import joblib
import numpy as np
import pandas as pd

from survey_lib.errors import UsageError
from survey_lib.evidence import cluster
from survey_lib.evidence.cost import Costs, measured
from survey_lib.evidence.progress import Progress
from survey_lib.evidence.run import Case
from survey_lib.evidence.store import Store, canonical, write_atomic


def sweep(
    cases: dict[str, Case],
    seeds: Iterable[int],
    *,
    out: Path | str = "build",
    jobs: int = 1,
    title: str = "runs",
) -> pd.DataFrame:
    """The histories of all cases and seeds as one tidy frame with columns label, method, seed.

    Runs that the store under `out` has are read from there; the others run in `jobs` processes, or
    on the cluster that `make reproduce DASK=...` names, and are put into the store here, each as it
    finishes: workers need no common disk. The result depends on neither.
    """
    seeds, store, costs = list(seeds), Store(Path(out) / "runs"), Costs(out)
    if not seeds:
        raise UsageError("no seeds; give at least one, such as SEEDS=0-4")
    keys, found, missing = [], {}, {}
    with Progress(len(cases) * len(seeds), title, out) as progress:
        for label, case in cases.items():
            shared = describe(case, seeds[0])
            for seed in seeds:
                description = {**shared, "seed": seed}
                keys.append(store.key(description))
                found[keys[-1]] = store.get(keys[-1])
                if found[keys[-1]] is None and keys[-1] not in missing:
                    missing[keys[-1]] = (label, case, seed), description
                else:
                    progress.step()
        for key, history, cost in _run_all(missing, jobs, store.folder / "under-way"):
            store.put(key, missing[key][1], history)
            costs.add(key, missing[key][1], **cost)
            found[key] = history
            progress.step()
    costs.used(keys)
    return _tidy(cases, seeds, [found[key] for key in keys])


def keys(cases: dict[str, Case], seeds: Iterable[int]) -> list[str]:
    """Under which key the store keeps each run of all cases and seeds, in their order."""
    seeds, found = list(seeds), []
    for case in cases.values():
        shared = describe(case, seeds[0])
        found += [Store.key({**shared, "seed": seed}) for seed in seeds]
    return found


def stored(
    cases: dict[str, Case], seeds: Iterable[int], *, out: Path | str = "build"
) -> tuple[pd.DataFrame | None, dict[str, Case]]:
    """What `sweep` would read: its histories, or None where the store under `out` lacks any of
    them, and the runs that it lacks, each under its key. Nothing is run and nothing is written."""
    seeds, store = list(seeds), Store(Path(out) / "runs")
    names = keys(cases, seeds)
    found = [store.get(key) for key in names]
    each = [case for case in cases.values() for _ in seeds]
    lacks = {k: case for k, case, h in zip(names, each, found, strict=True) if h is None}
    return None if lacks else _tidy(cases, seeds, found), lacks


def _tidy(cases, seeds, histories):
    """One frame of the histories of all cases and seeds, in their order."""
    labels = [(label, case.method.__name__, s) for label, case in cases.items() for s in seeds]
    frames = [
        history.assign(label=label, method=method, seed=seed)
        for history, (label, method, seed) in zip(histories, labels, strict=True)
    ]
    return pd.concat(frames, ignore_index=True)


def _run_all(missing, jobs, marks):
    """(key, history, cost) of each run, in the order in which they finish."""
    if missing:
        with cluster.backend():
            afar = cluster.afar()  # no common disk; workers may join later, so all is sent at once
            where = dict(expected=cluster.identity()) if afar else dict(marks=marks)
            how = dict(pre_dispatch="all") if afar else {}
            work = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", **how)(
                joblib.delayed(_one)(key, *run, **where) for key, (run, _) in missing.items()
            )
            yield from work


def _one(key, label, case, seed, *, marks=None, expected=None):
    """One run, where it runs. marks: a folder that says what is under way in which process."""
    cluster.check(expected)
    if marks is not None:
        mark = marks / f"{os.getpid()}.json"
        entry = {"run": f"{label}, seed {seed}", "method": case.method.__name__}
        write_atomic(mark, json.dumps(entry))
    with measured() as cost:
        history = case.run(seed)
    if marks is not None:
        mark.unlink(missing_ok=True)
    return key, pd.DataFrame({c: history[c].tolist() for c in history}), cost  # as the store has it


def describe(case: Case, seed: int) -> dict:
    """All that a run depends on, for its key: sources, arguments, task, world, seed and the data's
    checksum."""
    from survey_lib.data import Data, load

    task = dict(case.task)
    if "data" in inspect.signature(case.problem).parameters:
        data = task.get("data", "digits")
        task["data"] = (data if isinstance(data, Data) else load(data)).checksum
    churn = case.world.get("churn")
    if isinstance(churn, str | Path):  # what is in the file, not its name
        churn = hashlib.sha256(Path(churn).read_bytes()).hexdigest()
    world = case.world | dict(churn=churn)
    parts = dict(method=case.method, run=Case.run, arguments=case.arguments, task=task, world=world)
    return canonical({**parts, "problem": case.problem, "until": case.until, "seed": seed})


def tune(
    case: Case,
    grid: dict[str, list],
    value: Callable[[pd.DataFrame], float],
    *,
    largest: bool = True,
    seeds: Iterable[int] = (1000, 1001),
    **how,
) -> tuple[Case, pd.DataFrame]:
    """The case with the best arguments of a grid, judged on seeds that no evidence uses, and the
    grid's values.

    Baselines and methods are tuned alike: same seeds, grids of equal size. Ties go to the earlier
    entry.
    """
    points = [dict(zip(grid, p, strict=True)) for p in product(*grid.values())]
    labels = [
        ", ".join(
            f"{k}={v}" if isinstance(v, int | float | str) else f"{k}[{i}]"
            for (k, v), i in zip(p.items(), index, strict=True)
        )
        for p, index in zip(points, product(*(range(len(v)) for v in grid.values())), strict=True)
    ]
    runs = sweep({s: case.but(**p) for s, p in zip(labels, points, strict=True)}, seeds, **how)
    scores = (
        runs.groupby(["label", "seed"], sort=False)
        .apply(value, include_groups=False)
        .fillna(-np.inf if largest else np.inf)  # diverged
        .groupby("label")
        .mean()
    )
    scores = scores.reindex(labels)
    best = int((scores if largest else -scores).to_numpy().argmax())
    table = pd.DataFrame(
        dict(
            setting=labels, value=scores.to_numpy(), chosen=[k == best for k in range(len(labels))]
        )
    )
    return case.but(**points[best]), table
