"""What runs cost on this machine: kept beside the store, added up by section, and used to say
beforehand how long the rest will take.

OUT/cost holds runs.jsonl, a line per finished run, and per notebook a list of its sections. Nothing
in it is ever compared: the rest of OUT repeats bit for bit, costs do not.
"""

import hashlib
import importlib
import json
import os
import re
import sys
import time
from contextlib import contextmanager
from functools import cache, reduce
from pathlib import Path

import pandas as pd
import psutil
import torch

from survey_lib.evidence.store import Store, source_hash, versions, write_atomic
from survey_lib.tables import find

COLUMNS = "notebook section rows methods runs cpu_minutes mib disk_mib other_minutes".split() + [
    "calibration_s"
]


@contextmanager
def measured():
    """`with measured() as cost:` fills cost: CPU seconds of this thread, and the highest memory of
    the process (MiB) in between; where the system cannot tell that, the memory at the end."""
    cost, begin = {}, time.thread_time()
    linux = Path("/proc/self/clear_refs")
    if linux.exists():
        linux.write_text("5")  # forget the peak so far
    yield cost
    if linux.exists():
        status = Path("/proc/self/status").read_text()
        mib = int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) / 1024
    else:
        mib = psutil.Process().memory_info().rss / 2**20
    cost.update(seconds=round(time.thread_time() - begin, 4), mib=round(mib))


def calibrate() -> float:
    """CPU seconds of a fixed piece of work, about two: small matrix products, sorting, and plain
    Python, none of it this library's, so that two machines compare by it."""
    begin = time.thread_time()
    X = torch.arange(256 * 256).reshape(256, 256).remainder(7).float()
    for _ in range(1500):
        Y = X @ X
        Y.relu_().add_(1).flatten()[:20_000].sort()
    sum(k % 7 for k in range(10_000_000))
    return round(time.thread_time() - begin, 3)


class Costs:
    """The costs kept under `out`."""

    def __init__(self, out: Path | str):
        self.out, self.folder = Path(out), Path(out) / "cost"
        progress = os.environ.get("SURVEY_PROGRESS", "")
        self.notebook = Path(progress).stem  # "" outside the runner

    def _append(self, name, entry):
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / name, "a") as file:
            file.write(json.dumps(entry) + "\n")  # one write: lines of two processes do not mix

    def add(self, key: str, description: dict, seconds: float, mib: float) -> None:
        """Keep the cost of one finished run, and of which code it is the cost."""
        entry = dict(key=key, notebook=self.notebook, seconds=seconds, mib=mib)
        self._append("runs.jsonl", entry | {"code": _code(description)})

    def used(self, keys: list[str]) -> None:
        """Note that the cell under way in a notebook has used these runs."""
        if self.notebook and (cell := _cell()):
            self._append(f"{self.notebook}.jsonl", dict(cell=cell, keys=keys))

    def runs(self) -> pd.DataFrame:
        """The last cost of every run, by key: notebook, seconds of CPU, mib, code."""
        lines = _lines(self.folder / "runs.jsonl")
        frame = pd.DataFrame(lines, columns="key notebook seconds mib code".split())
        return frame.drop_duplicates("key", keep="last").set_index("key")

    def spent(self, notebook: str) -> float:
        """CPU seconds of all runs that the cells of a notebook have used so far, or when `make
        reproduce` ran it last; runs that came from the store count with what they once took."""
        keys = {k for entry in _lines(self.folder / f"{notebook}.jsonl") for k in entry["keys"]}
        runs = self.runs()
        return float(runs[runs.index.isin(keys)]["seconds"].sum())

    def stored(self) -> pd.DataFrame:
        """Those of `runs` that are in the store and whose code is as it was."""
        frame, store = self.runs(), Store(self.out / "runs")
        good = [
            store.path(key).exists() and all(map(_current, code))
            for key, code in frame["code"].items()
        ]
        return frame.loc[pd.Series(good, frame.index, dtype=bool)]

    def sections(self, notebook, name: str) -> None:
        """Keep what the sections of an executed notebook used, and the host seconds of each."""
        used = {}
        for entry in _lines(self.folder / f"{name}.jsonl"):
            used.setdefault(entry["cell"], []).extend(entry["keys"])
        found, heading = {}, "Beginning"
        for cell in notebook.cells:
            title = re.match(r"## (.*)", cell.source)
            if cell.cell_type == "markdown" and title:
                heading = title.group(1)
            if cell.cell_type != "code":
                continue
            part = found.setdefault(heading, dict(methods=[], keys=[], seconds=0.0))
            part["methods"] += re.findall(r'lab\.(?:record|judge)\(\s*"(\w+)"', cell.source)
            part["keys"] += used.get(cell.execution_count, [])
            part["seconds"] += _seconds(cell) if cell.execution_count not in used else 0.0
        write_atomic(self.folder / f"{name}.json", json.dumps(found, indent=1))

    def begin(self, names: list[str]) -> None:
        """Forget what cells these notebooks had; measure the machine."""
        for name in names:
            (self.folder / f"{name}.jsonl").unlink(missing_ok=True)
        seconds = calibrate()
        if self.calibration:
            seconds = min(seconds, self.calibration)  # the one that was disturbed least
        write_atomic(self.folder / "calibration", str(seconds))

    @property
    def calibration(self) -> float:
        """CPU seconds of the fixed piece of work on this machine; 0 if not measured yet."""
        file = self.folder / "calibration"
        return float(file.read_text()) if file.exists() else 0.0

    def table(self) -> pd.DataFrame:
        """A row per section that cost anything: a run that several sections use counts in the
        first. mib: the largest of its runs. disk_mib: of its runs in the store. other_minutes: host
        time of its cells without runs."""
        runs, seen, rows, store = self.runs(), set(), [], Store(self.out / "runs")
        for path in sorted(self.folder.glob("*.json")):
            for section, part in json.loads(path.read_text()).items():
                own = runs.loc[
                    [k for k in dict.fromkeys(part["keys"]) if k in runs.index and k not in seen]
                ]
                seen |= set(own.index)
                places = [
                    next((f"{t.number}, {r.number}" for t, r in find(m) if t.notebook == path.stem))
                    for m in part["methods"]
                ]
                files = [file for file in map(store.path, own.index) if file.exists()]
                row = dict(
                    notebook=path.stem,
                    section=section,
                    rows="; ".join(dict.fromkeys(places)),
                    methods="; ".join(part["methods"]),
                    runs=len(own),
                    cpu_minutes=own["seconds"].sum() / 60,
                    mib=own["mib"].max() if len(own) else 0,
                    disk_mib=sum(file.stat().st_size for file in files) / 2**20,
                    other_minutes=part["seconds"] / 60,
                    calibration_s=self.calibration,
                )
                rows.append(row)
        return pd.DataFrame(rows, columns=COLUMNS).round(4)


def text(table: pd.DataFrame) -> str:
    """The table of costs for a terminal, with a total per notebook."""
    if table.empty:
        return "no costs are known yet; run `make reproduce` first"
    lines = ["   CPU min  other min  peak MiB   runs  section"]

    def line(t, name):
        figures = f"{t['cpu_minutes'].sum():10.2f} {t['other_minutes'].sum():10.2f}"
        lines.append(f"{figures} {t['mib'].max():9.0f} {t['runs'].sum():6.0f}  {name}")

    for notebook, part in table.groupby("notebook"):
        for k in part.index:
            methods = part["methods"][k]
            line(part.loc[[k]], part["section"][k] + (f" ({methods})" if methods else ""))
        line(part, f"TOTAL {notebook}\n")
    line(table, "TOTAL")
    return "\n".join(lines)


class Plan:
    """How long the notebooks named will take, and how much of it is left.

    known: a table of costs of the same runs, from this machine or another. jobs: processes. The
    work is the CPU time of the runs that the store lacks, shared by the processes, and the time of
    the other cells.
    """

    def __init__(self, costs: Costs, names: list[str], known: pd.DataFrame, jobs: int):
        self.costs, self.jobs, self.begin = costs, jobs, time.monotonic()
        stored = costs.stored()
        stored = stored[stored["notebook"].isin(names)]
        known = known[known["notebook"].isin(names)]
        pace = 60 * costs.calibration / known["calibration_s"].astype(float)  # (rows,) s a minute
        self.stored, self.runs = len(stored), max(int(known["runs"].sum()), len(stored))
        self.cpu = max(0.0, (pace * known["cpu_minutes"]).sum() - stored["seconds"].sum())
        self.cpu *= self.runs > self.stored
        other = (pace * known["other_minutes"]).groupby(known["notebook"]).sum()
        self.seconds = self.cpu / jobs + max(other.max(), other.sum() / jobs) if len(known) else 0
        file = costs.folder / "runs.jsonl"
        self.offset = file.stat().st_size if file.exists() else 0

    def text(self) -> str:
        there = f"{self.stored} of {self.runs} runs are in the store"
        if not self.seconds:
            return f"no costs are known for these settings; {self.stored} runs are in the store"
        return f"about {_clock(self.seconds)} on this machine ({self.jobs} processes); {there}"

    def left(self) -> str:
        """The time left of the whole, by the pace so far once there is one; "" if unknown."""
        spent = time.monotonic() - self.begin
        fresh = _lines(self.costs.folder / "runs.jsonl", self.offset)
        done = sum(e["seconds"] for e in fresh)
        if self.cpu and done > 0.05 * self.cpu:
            left = spent * max(0.0, self.cpu / done - 1)
        else:
            left = max(0.0, self.seconds - spent)
        return f"about {_clock(left)} left | " if self.seconds else ""


def _clock(seconds):
    short = f"{max(10, round(seconds, -1)):.0f} s"
    return f"{round(seconds / 60)} min" if seconds >= 90 else short


def _lines(path, offset=0):
    """The entries of a file from `offset`; one cut short by a killed process is left out."""
    found = []
    for line in path.read_bytes()[offset:].splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _cell():
    """The number of the notebook's cell under way, 0 outside a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return len(shell.user_ns["In"]) - 1 if shell else 0


def _seconds(cell):
    """Host seconds of an executed cell."""
    stamps = cell.metadata.get("execution", {})
    begin, end = (pd.to_datetime(stamps.get(f"iopub.status.{k}")) for k in ("busy", "idle"))
    return 0.0 if begin is None or end is None else (end - begin).total_seconds()


def _code(description):
    """The functions and classes of survey_lib in a run's description, each with its hash, and the
    versions."""
    named = re.findall(r'"(survey_lib[\w.]*:[0-9a-f]{16})"', json.dumps(description))
    return [*sorted(set(named)), f"versions:{_versions()}"]


def _versions():
    return hashlib.sha256(json.dumps(versions(), sort_keys=True).encode()).hexdigest()[:16]


@cache
def _current(named):
    """Whether a function is still as it was when its run was made."""
    name, _, digest = named.partition(":")
    if name == "versions":
        return digest == _versions()
    parts = name.split(".")
    for k in range(len(parts) - 1, 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:k]))
            return source_hash(reduce(getattr, parts[k:], module)) == digest
        except (ImportError, AttributeError):
            continue
    return False
