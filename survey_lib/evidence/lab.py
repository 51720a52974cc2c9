"""What a notebook works with: its scale, seeds and folders, and the way from runs to the ledger."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from textwrap import shorten

import pandas as pd

from survey_lib.data import load
from survey_lib.errors import UsageError
from survey_lib.evidence import ledger, provenance
from survey_lib.evidence.provenance import Finished
from survey_lib.evidence.run import Case
from survey_lib.evidence.store import ROOT, write_atomic
from survey_lib.evidence.sweep import sweep, tune
from survey_lib.evidence.verdict import Effect, judge
from survey_lib.tables import claim
from survey_lib.tables.schema import Claim
from survey_lib.training import Task, train

SCALES = ("quick", "full")


def seed_list(text: str) -> list[int]:
    """Seeds from "0-4" or "0,1,7"."""
    try:
        seeds = []
        for part in str(text).split(","):
            first, _, last = part.partition("-")
            seeds += range(int(first), int(last or first) + 1)
    except ValueError:
        raise UsageError(f'SEEDS="{text}" is not a list of seeds; write 0-4 or 0,1,7') from None
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(
            f'SEEDS="{text}" names {"no seed" if not seeds else "a seed twice"}; write 0-4 or 0,1,7'
        )
    return seeds


class Lab:
    """One notebook's session.

    notebook: its name. scale: "quick" (digits, fewer seeds and rounds) or "full" (published).
    seeds: "" for the scale's own (0-2 quick, 0-9 full). dataset: "" for the experiments' own, or
    any name for data.load, which then replaces it everywhere. out: folder of the results. jobs:
    processes.
    """

    def __init__(self, notebook, *, scale="quick", seeds="", dataset="", out="../build", jobs=1):
        if scale not in SCALES:
            raise UsageError(f'SCALE="{scale}" is unknown; expected one of {", ".join(SCALES)}')
        self.notebook, self.scale, self.dataset, self.out, self.jobs = (
            notebook,
            scale,
            dataset,
            Path(out),
            int(jobs),
        )
        if "SURVEY_RUNNER" in os.environ:
            os.environ["SURVEY_PROGRESS"] = str(
                self.out.absolute() / "progress" / f"{notebook}.json"
            )
        self.seeds = seed_list(seeds or self.pick(quick="0-2", full="0-9"))
        self.used = set()  # the seeds of all runs so far
        self.cases = {}  # the cases of all sweeps so far, the last one at the end
        if self.jobs < 1:
            raise UsageError(f"JOBS={jobs}; at least one process is needed")

    def pick(self, *, quick, full):
        """One value for each scale."""
        return quick if self.scale == "quick" else full

    def few(self, k: int) -> list[int]:
        """The first k seeds, for a figure beside a claim; at quick scale the first alone."""
        return self.seeds[: self.pick(quick=1, full=k)]

    def tuning_seeds(self, k: int = 2) -> list[int]:
        """k seeds that no evidence uses, to tune on; at quick scale the first alone."""
        return list(range(1000, 1000 + self.pick(quick=1, full=k)))

    def data(self, full: str = "digits") -> str:
        """The data set of an experiment: the user's, else digits at quick scale and `full` at full
        scale."""
        return self.dataset or self.pick(quick="digits", full=full)

    def target(self, data: str, **known: float) -> float:
        """The target accuracy of an experiment: `known` for its data set; for a user's own data, 95
        % of what an MLP of 64 units reaches on all of it in 10 epochs."""
        return known.get(data) or 0.95 * _reference(data)

    def samples(self, wanted: int, data: str) -> int:
        """`wanted` training samples, or as many as the data set has."""
        return min(wanted, len(load(data).y))

    def sweep(self, cases: dict[str, Case], seeds=None) -> pd.DataFrame:
        """Histories of all cases over the seeds, with columns label, method, seed."""
        title = shorten(", ".join(cases), 60, placeholder=" ...")
        seeds = list(seeds or self.seeds)
        self.used.update(seeds)
        self.cases = {k: c for k, c in self.cases.items() if k not in cases} | cases
        return sweep(cases, seeds, out=self.out, jobs=self.jobs, title=title)

    def tune(
        self,
        name: str,
        case: Case,
        grid: dict,
        value: Callable,
        *,
        largest: bool = True,
        seeds: int = 2,
    ) -> Case:
        """The case with the best arguments of a grid, on seeds of their own; the grid is kept under
        OUT/tuning. seeds: how many; more where runs differ much. At quick scale every second value
        is tried, on one seed."""
        how = dict(out=self.out, jobs=self.jobs, title=f"tuning {name}")
        grid = {k: values[:: self.pick(quick=2, full=1)] for k, values in grid.items()}
        own = self.tuning_seeds(seeds)
        self.used.update(own)
        best, table = tune(case, grid, value, largest=largest, seeds=own, **how)
        write_atomic(self.out / "tuning" / f"{self.notebook}-{name}.csv", table.to_csv(index=False))
        return best

    def record(
        self,
        method: str,
        runs: pd.DataFrame,
        value: Callable,
        *,
        baseline: str,
        data: str,
        label: str = "",
        target: float | None = None,
    ) -> "Verdict":
        """The verdict on a method's claim, from the runs labelled `label` (default: the method)
        against those labelled `baseline`; its line goes into the ledger.

        value: one run's history -> the claim's metric. target: the accuracy that the metric waits
        for, so that runs which never got there are counted and shown.
        """
        values, missed = [], []
        for name in (label or method, baseline):
            chosen = runs[runs["label"] == name]
            if chosen.empty:
                known = sorted(runs["label"].unique())
                raise UsageError(f'no runs are labelled "{name}"; there are {known}')
            values.append({int(seed): float(value(h)) for seed, h in chosen.groupby("seed")})
            best = chosen.groupby("seed")["accuracy"].max()
            missed.append(0 if target is None else int((best < target).sum()))
        case = self.cases.get(label or method)
        return self.judge(method, *values, data, tuple(missed), case)

    def judge(
        self, method: str, values: dict, baseline: dict, data: str, missed=(0, 0), case=None
    ) -> "Verdict":
        """Like `record`, from one value per seed. case: whose devices; default: the last swept."""
        table, _ = ledger.place(method, self.notebook)
        stated = claim(method, table.number)
        scale = 100 if stated.unit == "points" else 1
        pair = [{s: scale * v for s, v in group.items()} for group in (values, baseline)]
        effect = judge(stated, *pair)
        dataset = Path(data).name if data.endswith(".npz") else data
        case = case or next(reversed(self.cases.values()), None)
        where = dict(dataset=dataset, devices=ledger.devices(case) if case else "")
        where |= dict(scale=self.scale, notebook=self.notebook)
        ledger.add(self.out, ledger.line(method, effect, **where))
        return Verdict(stated, effect, *pair, missed)

    def ledger(self) -> pd.DataFrame:
        """The ledger under OUT so far."""
        return ledger.read(self.out)

    def evidence(self) -> pd.DataFrame:
        """The ledger under OUT or, where that has no line yet, the published one."""
        own = self.ledger()
        return own if len(own) else ledger.load(ROOT.parent / "results" / "evidence.csv")

    def finish(self, rooms: list[str]) -> Finished:
        """The closing sentinel, with the notebook's provenance below it: raises unless every method
        of `rooms` has its line."""
        found = set(self.ledger()["method"])
        missing = [m for m in rooms if m not in found]
        if missing:
            raise UsageError(
                f"{self.notebook}: no evidence for {', '.join(missing)}; run the cells above"
            )
        sentence = f"{self.notebook}: finished, {len(rooms)} methods with evidence"
        return Finished(sentence, provenance.rows(self))


@cache
def _reference(data):
    task = Task(data, n=1, seed=1000)
    x = train(task, [0], task.init(), eta=0.1, B=20, E=10, seed=1000)
    return float(task.evaluate(x)[0][0])


class Verdict:
    """A claim, its effect and the values behind it; shows itself as a paragraph."""

    def __init__(self, stated: Claim, effect: Effect, values: dict, baseline: dict, missed):
        self.claim, self.effect, self.values, self.baseline = stated, effect, values, baseline
        self.missed = missed  # runs of the method and of the baseline that never got to the target

    def row(self) -> dict:
        """For the forest plot: method, effect, ci_low, ci_high, least, unit, verdict."""
        e, c = self.effect, self.claim
        unit = "x" if c.effect == "ratio" else c.unit
        least = c.least**c.direction if c.effect == "ratio" else c.least * c.direction
        low, high = sorted((e.low, e.high))
        return dict(
            method=c.method,
            least=least,
            unit=unit,
            effect=e.effect,
            ci_low=low,
            ci_high=high,
            verdict=e.verdict,
        )

    def __repr__(self) -> str:  # without its place in memory: a second run gives no diff
        return f"{self.claim.method}: {self.effect.verdict}"

    def _repr_html_(self) -> str:
        from survey_lib.report import verdict_html

        return verdict_html(self)
