"""Run the notebooks headlessly, judge each run, write what they regenerate, compare it with what is
published."""

import json
import os
import platform
import re
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import zmq
from filelock import FileLock, Timeout
from papermill.engines import NBClientEngine, papermill_engines
from traitlets.config import Config

from survey_lib import data
from survey_lib.errors import UsageError
from survey_lib.evidence import cluster, cost, ledger, provenance, verification
from survey_lib.evidence.lab import SCALES, seed_list
from survey_lib.evidence.store import explained, mend, read_sealed, versions, write_atomic
from survey_lib.report import effects, records, summary, survey_table, write
from survey_lib.report.glossary import glossary
from survey_lib.report.page import page, shown
from survey_lib.report.readme import evidence_markdown
from survey_lib.tables import TABLES, bibliography, claim, errata

HERE = Path(__file__).parent.parent
NOTEBOOKS, RESULTS = HERE / "notebooks", HERE / "results"
READMES = HERE / "README.md", HERE / "README.zh-CN.md"
OVERVIEW = "00_overview"
OWN_SEEDS = "the scale's own"
BENCHES = ("bench.png", "scale.png")  # figures of `make bench` and `make scale`, not of a run
KERNEL = Config(
    KernelManager=dict(
        # nobody else on the machine can listen to it
        transport_encryption="auto" if zmq.has("curve") else "disabled",
        # a kernel whose workers hold its output does not end by itself
        shutdown_wait_time=1.0,
    )
)


class Once(NBClientEngine):
    """papermill's engine, writing a notebook (megabytes) when it ends, in whatever way, instead of
    after each cell."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **kw):
        save, nb_man.save = nb_man.save, lambda **_: None
        try:
            return super().execute_managed_notebook(nb_man, kernel_name, **kw)
        finally:
            save()


papermill_engines.register("once", Once)


@dataclass(frozen=True)
class Settings:
    """What `make reproduce` is given. only: a prefix of notebook names, "" for all. seeds, dataset:
    "" for each scale's own. out: "" for build, build/quick, or build/DATASET. dask: the address of
    a scheduler whose cluster makes the runs, "" for this machine."""

    scale: str = "full"
    only: str = ""
    seeds: str = ""
    dataset: str = ""
    out: str = ""
    jobs: int = 0
    dask: str = ""

    def checked(self) -> "Settings":
        """The same with everything filled in; UsageError on what cannot be."""
        if self.scale not in SCALES:
            raise UsageError(
                f'SCALE="{self.scale}" is unknown; expected one of {", ".join(SCALES)}'
            )
        if self.seeds:
            if len(seed_list(self.seeds)) < 2:
                raise UsageError(
                    f'SEEDS="{self.seeds}": a spread needs two seeds or more; write 0-4'
                )
        if self.jobs < 0:
            raise UsageError(f"JOBS={self.jobs}; expected a number of processes, 1 or more")
        parts = [
            "build",
            *(["quick"] if self.scale == "quick" else []),
            *([Path(self.dataset).stem] if self.dataset else []),
        ]
        out, jobs = self.out or str(Path(*parts)), self.jobs or os.cpu_count() or 1
        dataset = (
            str(Path(self.dataset).absolute()) if self.dataset.endswith(".npz") else self.dataset
        )
        if self.dask:
            cluster.connect(self.dask)
        return replace(self, dataset=dataset, out=out, jobs=jobs)

    @property
    def publishable(self) -> bool:
        return self.scale == "full" and not self.seeds and not self.dataset


def notebooks(only: str = "") -> list[Path]:
    """The notebooks whose name begins with `only`."""
    every = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    chosen = [p for p in every if p.stem.startswith(only)]
    if not chosen:
        raise UsageError(
            f"ONLY={only} names no notebook; there are {', '.join(p.stem for p in every)}"
        )
    return chosen


def reproduce(settings: Settings) -> int:
    """Everything from the notebooks to the comparison; the exit code."""
    settings = settings.checked()
    paths, out = notebooks(settings.only), Path(settings.out).absolute()
    own = ["digits", "fashion_mnist"] if settings.scale == "full" else ["digits"]
    for name in [settings.dataset] if settings.dataset else own:
        data.load(name)
    lock = FileLock(out / ".lock")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=1)
    except Timeout:
        print(f"another run works in {out}; waiting until it is done", file=sys.stderr, flush=True)
        lock.acquire()
    except OSError as error:
        raise explained(error, out) from error
    with lock:
        for sentence in mend(out):
            print(sentence, file=sys.stderr)
        return _reproduce(paths, settings, out)


def _reproduce(paths, settings, out):
    minutes, failures = _run_all(paths, settings, out)
    frame = assemble(out, settings)
    save_costs(out)
    for table in TABLES.values():
        if table.notebook in minutes:
            spent = f"{minutes[table.notebook]:.1f} minutes (notebook {table.notebook[:2]})"
            print(f"{summary(table, frame)}; {spent}")
    for failure in failures:
        print(failure, file=sys.stderr)
    published = settings.publishable and (RESULTS / "evidence.csv").exists()
    return 1 if failures or (published and verify(out, settings.only)) else 0


def _run_all(paths, settings, out):
    """(minutes by notebook, failures): the notebooks side by side as far as there are processes."""
    for line in (out / "evidence").glob("*.json"):  # a line that no cell records any more must go
        if json.loads(read_sealed(line))["notebook"] in [p.stem for p in paths]:
            line.unlink()
    shutil.rmtree(out / "runs" / "under-way", ignore_errors=True)  # marks of runs killed before
    shutil.rmtree(out / "progress", ignore_errors=True)
    names, costs = [p.stem for p in paths], cost.Costs(out)
    workers = sum(cluster.connect(settings.dask).nthreads().values()) if settings.dask else 0
    try:
        costs.table(), costs.begin(names)
        plan = cost.Plan(costs, names, known_costs(out, settings), workers or settings.jobs)
    except Exception:  # whatever a damaged file leads to: nothing but the estimate rests on it
        print(f"{costs.folder} is damaged and removed: costs start anew", file=sys.stderr)
        shutil.rmtree(costs.folder)
        costs.begin(names)
        plan = cost.Plan(costs, names, known_costs(out, settings), workers or settings.jobs)
    print(plan.text(), file=sys.stderr, flush=True)
    side_by_side = min(settings.jobs, len(paths))
    # more processes than cores where several run: the longest ends up alone
    jobs = settings.jobs if side_by_side == 1 else -(-2 * settings.jobs // side_by_side)
    minutes, failures, done = {}, [], threading.Event()
    os.environ["SURVEY_RUNNER"] = "1"
    os.environ[cluster.ADDRESS] = settings.dask
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    with ThreadPoolExecutor(side_by_side + 1) as pool:
        watch = pool.submit(_watch, names, out, done, plan)

        def one(path):
            begin = time.monotonic()
            failure = execute(path, settings, out, jobs)
            minutes[path.stem] = (time.monotonic() - begin) / 60
            return failure

        try:
            last = [p for p in paths if p.stem == OVERVIEW]  # it reads what the others record
            for group in ([p for p in paths if p not in last], last):
                failures += [f for f in pool.map(one, group) if f]
        finally:
            done.set()
        watch.result()
    return minutes, failures


def execute(path: Path, settings: Settings, out: Path, jobs: int = 1) -> str:
    """Run one notebook; "" if it is whole, else one line that says what went wrong. The executed
    notebook is written to OUT/notebooks, or to OUT/failed when it is not whole."""
    parameters = dict(
        scale=settings.scale,
        seeds=settings.seeds,
        dataset=settings.dataset,
        out=str(out),
        jobs=jobs,
    )
    unknown = set(parameters) - set(papermill.inspect_notebook(str(path)))
    if unknown:
        return (
            f"{path.stem}: its parameters cell lacks {', '.join(sorted(unknown))}; add them there"
        )
    part, error = out / "progress" / f"{path.stem}.ipynb", ""
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            str(path),
            str(part),
            parameters,
            kernel_name="python3",
            cwd=str(path.parent),
            progress_bar=False,
            start_timeout=300,
            engine_name="once",
            config=KERNEL,
            extra_arguments=["--log-level=CRITICAL"],  # it logs the interrupt that ends it
        )
    except Exception as failure:  # a cell that raises, a kernel that dies, a disk that is full
        if isinstance(failure, OSError) and (told := explained(failure, part)) is not failure:
            part.unlink(missing_ok=True)  # half a notebook
            raise told from None
        said = str(failure).strip()
        error = said.splitlines()[-1] if said else type(failure).__name__
    if not part.exists():
        return f"{path.stem}: {error or 'nothing was written'}{_under_way(out)}"
    notebook = nbformat.read(part, as_version=4)
    fault = error or judge(notebook, path.stem)
    if not fault:
        cost.Costs(out).sections(notebook, path.stem)
    folder = "failed" if fault else "notebooks"
    write_atomic(
        out / folder / path.name, nbformat.writes(clean(notebook, keep_counts=bool(fault))) + "\n"
    )
    part.unlink()
    if not fault:
        (out / "failed" / path.name).unlink(missing_ok=True)
        return ""
    return f"{path.stem}: {fault}{_under_way(out)}; see {out / folder / path.name}"


def judge(notebook, name: str) -> str:
    """ "" if every code cell ran, in order, without error, and the closing sentinel is there; else
    what is wrong. A notebook whose kernel was killed looks complete otherwise."""
    cells = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
    for k, cell in enumerate(cells, 1):
        if any(o.output_type == "error" for o in cell.outputs):
            return f"cell {k} of {len(cells)} raised an error"
        if cell.execution_count != k:
            return f"cell {k} of {len(cells)} did not run; the kernel died"
    texts = [
        str(o.get("text", "")) + str(o.get("data", {}).get("text/plain", ""))
        for o in cells[-1].outputs
    ]
    if not any(f"{name}: finished" in t for t in texts):
        return "the last cell did not close the notebook; end it with lab.finish(...)"
    return ""


def _under_way(out):
    """Names the runs that were under way in processes that are gone."""
    found = []
    for mark in (out / "runs" / "under-way").glob("*.json"):
        if not Path(f"/proc/{mark.stem}").exists():
            found.append(json.loads(mark.read_text())["run"])
            mark.unlink()
    return f" (under way: {'; '.join(found)})" if found else ""


def clean(notebook, keep_counts=False):
    """Without what differs from run to run: dates, host seconds, execution counts, addresses of
    objects, warnings (they name paths), what papermill injected, the CPU seconds in the footer
    (`publish` puts those of the published cost.csv there)."""
    provenance.stamped(notebook)
    notebook.metadata.pop("papermill", None)
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    notebook.cells = [
        c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])
    ]
    for cell in notebook.cells:
        for key in ("papermill", "execution", "trusted"):
            cell.metadata.pop(key, None)
        if cell.metadata.get("tags") == []:
            cell.metadata.pop("tags")
        if "outputs" in cell and not keep_counts:
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            if "text/plain" in output.get("data", {}):
                output.data["text/plain"] = re.sub(" at 0x[0-9a-f]+", "", output.data["text/plain"])
        if cell.cell_type == "code" and not keep_counts:
            cell.execution_count = None
            for output in cell.outputs:
                if "execution_count" in output:
                    output["execution_count"] = None
    return notebook


def _watch(names, out, done, plan):
    """Every few seconds the time left of the whole, and what is under way."""
    seen = ""
    while not done.wait(5):
        parts = []
        for name in names:
            try:
                p = json.loads((out / "progress" / f"{name}.json").read_text())
            except (FileNotFoundError, json.JSONDecodeError):
                continue
            title = p["title"] if len(p["title"]) < 40 else p["title"][:37] + "..."
            if p["done"] < p["total"]:
                parts.append(f"{name[:2]} {title}: {p['done']} of {p['total']}")
        text = " | ".join(parts)
        if text and text != seen:
            print(f"{plan.left()}{text}", file=sys.stderr, flush=True)
            seen = text


def known_costs(out: Path, settings: Settings) -> pd.DataFrame:
    """The table of costs: per notebook of its last run into `out`, else as published if that is of
    the same settings."""
    files = [out / "cost" / "cost.csv", *([RESULTS / "cost.csv"] * settings.publishable)]
    found = pd.DataFrame(columns=cost.COLUMNS)
    for table in (pd.read_csv(f, keep_default_na=False) for f in files if f.exists()):
        other = table[~table["notebook"].isin(found["notebook"])]
        found = pd.concat([found, other], ignore_index=True) if len(found) else other
    return found


def save_costs(out: Path) -> None:
    """Write the table of costs: of this run's notebooks, and as before of those not run."""
    table = cost.Costs(out).table()
    write_atomic(out / "cost" / "cost.csv", table.to_csv(index=False, lineterminator="\n"))


def assemble(out: Path, settings: Settings) -> pd.DataFrame:
    """Write ledger, tables, manifest and report page from the evidence under `out`."""
    frame = ledger.read(out)
    ledger.save(frame, out / "evidence.csv")
    for number, table in TABLES.items():
        sets = ", ".join(sorted(set(frame[frame["table"] == number]["dataset"]))) or "none yet"
        title = f"{table.title} {table.title_zh}."
        caption = f"Table {number}. {title} Evidence at {settings.scale} scale; data: {sets}."
        write(survey_table(table, frame), out / "tables", f"table{number}", caption)
    write(errata.frame(), out / "tables", "errata", errata.CAPTION)
    write_atomic(out / "references.bib", bibliography())
    books = [out / "notebooks" / p.name for p in notebooks()]
    figures = shown(out / "figures" / "map.png", [p for p in books if p.exists()])
    if len(frame):
        said = f"All evidence at {settings.scale} scale: effects with 95 % intervals over seeds."
        every = effects(ledger.with_least(frame), name="evidence", out=out, caption=said)
        figures.append(every.data)
    write_atomic(out / "glossary.md", glossary(NOTEBOOKS))
    state = manifest(frame, settings)
    write_atomic(out / "manifest.json", json.dumps(state, indent=2) + "\n")
    inputs = dict(figures=figures, books=notebooks(), citation=HERE / "CITATION.cff")
    write_atomic(out / "report.html", page(frame, state, **inputs))
    shutil.rmtree(out / "progress", ignore_errors=True)
    return frame


def manifest(frame: pd.DataFrame, settings: Settings) -> dict:
    """What the figures depend on: settings, data, versions, kind of machine."""
    names = sorted(set(frame["dataset"])) if len(frame) else []
    names = [name for name in names if not name.startswith("synthetic")]  # drawn from the seed
    return dict(
        scale=settings.scale,
        seeds=settings.seeds or OWN_SEEDS,
        data={name: data.load(settings.dataset or name).checksum for name in names},
        versions={"python": platform.python_version(), **versions()},
        notebooks=[p.stem for p in notebooks()],
    )


def verify(out: Path, only: str = "") -> int:
    """Compare `out` with the published results; prints one line per deviation and writes all of it
    to OUT/verification.json. The number of deviations."""
    for folder in (out, RESULTS):
        if not (folder / "evidence.csv").exists():
            raise UsageError(f"{folder / 'evidence.csv'} is not there; run `make reproduce` first")
    fresh, published = (ledger.load(folder / "evidence.csv") for folder in (out, RESULTS))
    fresh, published = (f[f["notebook"].str.startswith(only)] for f in (fresh, published))
    here, there = (json.loads((folder / "manifest.json").read_text()) for folder in (out, RESULTS))
    same = here["versions"] == there["versions"]
    lines = verification.compare(fresh, published, same)
    deviations = [e["said"] for e in lines if not e["ok"]]
    said = verification.report(lines, same)
    print("\n".join([*deviations, said]))
    record = dict(summary=said, same_machine=same, only=only, published_on=there, run_on=here)
    text = json.dumps({**record, "lines": lines}, indent=2, allow_nan=False)
    write_atomic(out / "verification.json", text + "\n")
    return len(deviations)


def publish(out: Path) -> None:
    """Make `out` the published results: ledger, tables, figures, manifest, the notebooks' outputs,
    the README's table, the records that are made from them."""
    if not (out / "manifest.json").exists():
        raise UsageError(f"{out} has no finished run; run `make reproduce` first")
    state = json.loads((out / "manifest.json").read_text())
    found = state["scale"], state["seeds"], set(state["data"])
    if found[:2] != ("full", OWN_SEEDS) or not found[2] <= {"digits", "fashion_mnist"}:
        raise UsageError(
            f"{out} holds {found[0]} results on {', '.join(found[2])}, seeds: {found[1]}; "
            "only full ones are published, on the scale's own seeds"
        )
    if failed := sorted(p.stem for p in (out / "failed").glob("*.ipynb")):
        raise UsageError(f"{out}: {', '.join(failed)} failed; run `make reproduce` again first")
    lines = ledger.load(out / "evidence.csv").itertuples()
    if few := [x.method for x in lines if x.seeds < claim(x.method, x.table).seeds]:
        raise UsageError(f"{', '.join(few)}: judged on fewer seeds than the claim asks for")
    missing = [p.stem for p in notebooks() if not (out / "notebooks" / p.name).exists()]
    if missing:
        raise UsageError(
            f"{out} lacks {', '.join(missing)}; run `make reproduce` without ONLY first"
        )
    for name in ("tables", "figures"):
        for file in (RESULTS / name).glob("*"):
            if file.name not in BENCHES:
                file.unlink()
        shutil.copytree(out / name, RESULTS / name, dirs_exist_ok=True)
    published = ("evidence.csv", "manifest.json", "report.html", "cost/cost.csv", "references.bib")
    for name in published:
        write_atomic(RESULTS / Path(name).name, (out / name).read_bytes())
    minutes = pd.read_csv(RESULTS / "cost.csv").groupby("notebook")["cpu_minutes"].sum()
    for path in notebooks():
        notebook = nbformat.read(out / "notebooks" / path.name, as_version=4)
        provenance.stamped(notebook, f"{60 * minutes.get(path.stem, 0):.0f}")
        write_atomic(path, nbformat.writes(notebook) + "\n")
    write_atomic(RESULTS / "glossary.md", glossary(NOTEBOOKS))
    update_readme()
    records.refresh(HERE)


def update_readme() -> None:
    """Put the published evidence between the markers of the README in both languages."""
    frame = ledger.load(RESULTS / "evidence.csv")
    for path in READMES:
        records.fill(path, "evidence", evidence_markdown(frame, chinese="zh" in path.name))
