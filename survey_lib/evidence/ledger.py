"""The ledger: one line of evidence per (table, row, method)."""

import json
from inspect import signature
from pathlib import Path

import pandas as pd

from survey_lib.errors import UsageError
from survey_lib.evidence.store import read_sealed, write_atomic, write_sealed
from survey_lib.evidence.verdict import Effect
from survey_lib.tables import TABLES, Claim, Row, Table, claim, find
from survey_lib.world import World

COLUMNS = (
    "table row ref method claim baseline metric unit effect ci_low ci_high seeds verdict".split()
    + "dataset devices scale notebook".split()
)


def line(method: str, effect: Effect, *, notebook: str, **where: str) -> dict:
    """The ledger line of a method in the notebook's table. where: dataset, devices and scale."""
    table, row = place(method, notebook)
    stated = claim(method, table.number)
    return entry(table.number, row.number, stated, effect, **where, notebook=notebook)


def entry(table, row: str, stated: Claim, effect: Effect, **where: str) -> dict:
    """A line in the ledger's columns. where: dataset, devices (see `devices`), scale, notebook."""
    return dict(
        table=table,
        row=row,
        ref=stated.ref,
        method=stated.method,
        claim=stated.text,
        baseline=stated.baseline,
        metric=stated.metric,
        unit="x" if stated.effect == "ratio" else stated.unit,
        effect=effect.effect,
        ci_low=effect.low,
        ci_high=effect.high,
        seeds=effect.seeds,
        verdict=effect.verdict,
        **where,
    )


def devices(case) -> str:
    """On what kind of device a Case runs: a preset's name, or the experiment's own, with
    "unequal" where not all are as fast."""
    given = case.world.get("device", signature(World).parameters["device"].default)
    each = given if isinstance(given, list | tuple) else [given]
    kinds = dict.fromkeys(d if isinstance(d, str) else "the experiment's own" for d in each)
    uneven = len(set(each)) > 1 or case.world.get("spread") is not None
    return ", ".join(["several kinds" if len(kinds) > 2 else " and ".join(kinds)]
                     + ["unequal"] * uneven).replace("_", " ")  # fmt: skip


def place(method: str, notebook: str) -> tuple[Table, Row]:
    """Where a method stands first in the notebook's tables."""
    for table, row in find(method):
        if table.notebook == notebook:
            return table, row
    raise UsageError(f"{method!r} stands in no table of notebook {notebook}")


def add(out: Path, kept: dict) -> None:
    """Keep one line under `out`; a line for the same table, row and method is replaced."""
    name = f"{kept['table']}-{kept['row']}-{kept['method']}.json"
    write_sealed(Path(out) / "evidence" / name, json.dumps(kept))


def read(out: Path) -> pd.DataFrame:
    """The ledger under `out` as kept so far, in the order of the tables, rows and methods."""
    lines = [json.loads(read_sealed(p)) for p in (Path(out) / "evidence").glob("*.json")]
    order = {(t.number, r.number, m): k for k, (t, r, m) in enumerate(_all())}
    lines.sort(key=lambda e: order[e["table"], e["row"], e["method"]])
    return pd.DataFrame(lines, columns=COLUMNS)


def load(path: Path) -> pd.DataFrame:
    """A ledger file, exactly as it was written."""
    types = dict(row=str, ref=int, table=int, seeds=int)
    return pd.read_csv(path, dtype=types, keep_default_na=False)


def save(ledger: pd.DataFrame, path: Path) -> None:
    write_atomic(path, ledger.to_csv(index=False, lineterminator="\n"))


def with_least(ledger: pd.DataFrame) -> pd.DataFrame:
    """The ledger with each claim's least effect, which counts in the claimed direction, as the
    forest plot wants them: columns `least` and `direction`."""
    claims = [claim(m, t) for m, t in zip(ledger["method"], ledger["table"], strict=True)]
    return ledger.assign(least=[c.least for c in claims], direction=[c.direction for c in claims])


def _all():
    return [(t, r, m) for t in TABLES.values() for r in t.rows for m in r.methods]
