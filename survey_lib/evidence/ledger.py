"""The ledger: one line of evidence per (table, row, method), and what is compared with the
published one."""

import json
from pathlib import Path

import pandas as pd

from survey_lib.errors import UsageError
from survey_lib.evidence.store import read_sealed, write_atomic, write_sealed
from survey_lib.evidence.verdict import Effect
from survey_lib.tables import TABLES, Row, Table, claim, find

COLUMNS = (
    "table row ref method claim baseline metric unit effect ci_low ci_high seeds verdict".split()
    + "dataset scale notebook".split()
)


def line(method: str, effect: Effect, *, dataset: str, scale: str, notebook: str) -> dict:
    """The ledger line of a method in the notebook's table."""
    table, row = place(method, notebook)
    stated = claim(method, table.number)
    return dict(
        table=table.number,
        row=row.number,
        ref=stated.ref,
        method=method,
        claim=stated.text,
        baseline=stated.baseline,
        metric=stated.metric,
        unit="x" if stated.effect == "ratio" else stated.unit,
        effect=effect.effect,
        ci_low=effect.low,
        ci_high=effect.high,
        seeds=effect.seeds,
        verdict=effect.verdict,
        dataset=dataset,
        scale=scale,
        notebook=notebook,
    )


def place(method: str, notebook: str) -> tuple[Table, Row]:
    """Where a method stands first in the notebook's tables."""
    for table, row in find(method):
        if table.notebook == notebook:
            return table, row
    raise UsageError(f"{method!r} stands in no table of notebook {notebook}")


def add(out: Path, entry: dict) -> None:
    """Keep one line under `out`; a line for the same table, row and method is replaced."""
    name = f"{entry['table']}-{entry['row']}-{entry['method']}.json"
    write_sealed(Path(out) / "evidence" / name, json.dumps(entry))


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


def compare(fresh: pd.DataFrame, published: pd.DataFrame, same_machine: bool) -> list[str]:
    """One sentence per deviation of a fresh ledger from the published one: a line that is missing
    or new, another verdict, an effect outside the published interval; on the same machine and
    versions, any other bit."""
    key = ["table", "row", "method"]
    both = published.merge(fresh, on=key, how="outer", suffixes=("", "_new"), indicator=True)
    deviations = []
    for entry in both.to_dict("records"):
        name = f"table {entry['table']}, row {entry['row']}, {entry['method']}"
        deviations += _deviation(name, entry, same_machine)
    return deviations


def _deviation(name, e, same_machine):
    if e["_merge"] == "left_only":
        return [f"{name}: published, but has no evidence here"]
    if e["_merge"] == "right_only":
        return [f"{name}: has evidence here, but none is published"]
    if e["verdict"] != e["verdict_new"]:
        return [f"{name}: published as {e['verdict']}, here {e['verdict_new']}"]
    slack = 1e-9 * max(1.0, abs(e["effect"]))
    if not e["ci_low"] - slack <= e["effect_new"] <= e["ci_high"] + slack:
        interval = f"[{e['ci_low']:.4g}, {e['ci_high']:.4g}]"
        return [f"{name}: effect {e['effect_new']:.4g}, outside the published interval {interval}"]
    if same_machine and any(
        e[c] != e[f"{c}_new"] for c in ("effect", "ci_low", "ci_high", "seeds")
    ):
        return [
            f"{name}: same machine and versions, but {e['effect_new']!r} instead of {e['effect']!r}"
        ]
    return []
