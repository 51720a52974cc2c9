"""The survey as data: what a table, a row, a claim and an erratum consist of.

A claim is written down before it is measured. A row keeps the survey's own words in its cells and
its argument in ours, so that a reader can tell what was printed from what we say about it.
"""

import math
from dataclasses import dataclass

from survey_lib.errors import UsageError

EFFECTS = ("difference", "ratio")
SURE = ("checked", "second-hand", "argued")


def cells(columns: tuple[str, ...], *values: str) -> dict[str, str]:
    """Cells in the order of the columns; an empty value means that the survey prints none."""
    if len(values) != len(columns):
        raise UsageError(f"{len(values)} cells for {len(columns)} columns {columns}; give one each")
    return {column: value for column, value in zip(columns, values, strict=True) if value}


@dataclass(frozen=True)
class Claim:
    """What a method is said to do, in a form that a measurement can contradict.

    effect: "difference" (method - baseline, in `unit`) or "ratio" (method / baseline, judged on
    the log). direction: +1 if the claim says that the method's value is larger, -1 if smaller.
    least: the least effect that matters, a difference above 0 or a factor above 1; below 0, or a
    factor below 1, it is the margin of a claim to be no worse. ref: the survey's reference number.
    seeds: of the evidence, at least; at full scale most experiments have ten.
    exact: no training decides the figure (bytes, messages, virtual seconds of a schedule), so that
    it is the same on every machine.
    """

    method: str
    ref: int
    text: str
    baseline: str
    metric: str
    unit: str
    effect: str
    direction: int
    least: float
    seeds: int = 5
    exact: bool = False

    def __post_init__(self) -> None:
        for field in ("method", "text", "baseline", "metric", "unit"):
            if not getattr(self, field).strip():
                raise UsageError(f"claim of {self.method!r}: {field} is empty; say what it is")
        who = f"claim of {self.method!r}"
        if self.effect not in EFFECTS:
            raise UsageError(f"{who}: effect is {self.effect!r}; use one of {EFFECTS}")
        if self.direction not in (1, -1):
            raise UsageError(f"{who}: direction is {self.direction!r}; use +1 (larger) or -1")
        if not math.isfinite(self.least) or (self.effect == "ratio" and self.least <= 0):
            raise UsageError(f"{who}: least is {self.least!r}; use a finite {self.effect}")
        if self.seeds < 2:
            raise UsageError(f"{who}: seeds is {self.seeds!r}; an interval needs 2 or more")


@dataclass(frozen=True)
class Row:
    """One row of a table, or ("text-1", ...) works that the section names outside the table.

    cells: word for word as printed, in English; cells that the print merges are repeated.
    cells_zh: the Chinese term of the section's text for a cell, where it has one: the survey
    prints its table bodies in English only. says: the survey's argument in our own words.
    """

    number: str
    cells: dict[str, str]
    cells_zh: dict[str, str]
    refs: tuple[int, ...]
    methods: tuple[str, ...]
    says: str

    def __post_init__(self) -> None:
        if not self.number.removeprefix("text-").isdecimal():
            raise UsageError(f"row number is {self.number!r}; use '1', '2', ... or 'text-1', ...")
        if len(set(self.methods)) < len(self.methods):
            raise UsageError(f"row {self.number}: a method stands twice in {self.methods}")
        if not self.refs or not self.says.strip():
            raise UsageError(f"row {self.number}: a row needs references and the survey's argument")

    @property
    def in_table(self) -> bool:
        """Whether the survey prints this row in its table."""
        return not self.number.startswith("text-")


@dataclass(frozen=True)
class Erratum:
    """Where the survey and a work it cites, or the survey and itself, disagree.

    sure: "checked" (read in the work's text, abstract or code, or in the survey itself),
    "second-hand" (read in somebody else's account of it), "argued" (follows by reasoning).
    """

    place: str
    stands: str
    really: str
    source: str
    sure: str

    def __post_init__(self) -> None:
        for field in ("place", "stands", "really", "source"):
            if not getattr(self, field).strip():
                raise UsageError(f"erratum at {self.place!r}: {field} is empty; say what it is")
        if self.sure not in SURE:
            raise UsageError(f"erratum at {self.place!r}: sure is {self.sure!r}; use one of {SURE}")


@dataclass(frozen=True)
class Table:
    """One table of the survey. `title` is as printed, misprints included.

    columns_zh: the Chinese term of the section's text for a heading, "" where it has none.
    """

    number: int
    title: str
    title_zh: str
    section: str
    notebook: str
    columns: tuple[str, ...]
    columns_zh: tuple[str, ...]
    rows: tuple[Row, ...]
    errata: tuple[Erratum, ...]

    def __post_init__(self) -> None:
        who = f"table {self.number}"
        if len(self.columns_zh) != len(self.columns):
            raise UsageError(f"{who}: columns_zh needs {len(self.columns)} entries, '' where none")
        numbers = [row.number for row in self.rows]
        if len(set(numbers)) < len(numbers):
            raise UsageError(f"{who}: a row number stands twice in {numbers}")
        for row in self.rows:
            if tuple(row.cells) != (self.columns if row.in_table else ()):
                raise UsageError(f"{who}, row {row.number}: cells {tuple(row.cells)} do not fit")
            if not set(row.cells_zh) <= set(self.columns):
                raise UsageError(f"{who}, row {row.number}: cells_zh has unknown columns")

    @property
    def methods(self) -> tuple[str, ...]:
        """Every method of the table once, in the order of its rows."""
        return tuple(dict.fromkeys(m for row in self.rows for m in row.methods))
