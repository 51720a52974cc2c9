"""The survey's six tables as data: cells, references, claims and errata.

Every row names its method functions by their ids; `find` goes the other way.
"""

import functools
import re
from collections.abc import Iterable
from importlib import resources

from survey_lib.errors import UsageError
from survey_lib.tables import table1, table2, table3, table4, table5, table6
from survey_lib.tables.schema import Claim, Erratum, Row, Table

__all__ = [
    "TABLES",
    "Claim",
    "Erratum",
    "Row",
    "Table",
    "bibliography",
    "claim",
    "find",
    "reference",
    "references",
    "table",
]

TABLES: dict[int, Table] = {
    module.TABLE.number: module.TABLE for module in (table1, table2, table3, table4, table5, table6)
}


def table(number: int) -> Table:
    """The survey's table of that number."""
    if number not in TABLES:
        raise UsageError(f"there is no table {number!r}; the survey has tables {_known(TABLES)}")
    return TABLES[number]


def find(method: str) -> list[tuple[Table, Row]]:
    """Every place where a method stands, in the survey's order; empty if it stands nowhere."""
    return [(t, row) for t in TABLES.values() for row in t.rows if method in row.methods]


def claim(method: str, table: int | None = None) -> Claim:
    """The claim that a method is measured against in a table; default: in the first that has
    one."""
    from survey_lib.tables.claims import CLAIMS  # here, so that the tables load without the claims

    tables = sorted(TABLES) if table is None else [table]
    found = [CLAIMS[number, method] for number in tables if (number, method) in CLAIMS]
    if not found:
        names = sorted(name for number, name in CLAIMS if number in tables)
        where = "" if table is None else f" in table {table}"
        raise UsageError(
            f"there is no claim for {method!r}{where}; there are claims for {_known(names)}"
        )
    return found[0]


def reference(number: int) -> dict[str, str]:
    """The entry of references.bib for a number of the survey's reference list."""
    entries = references()
    if f"ref{number}" not in entries:
        numbers = sorted(int(key[3:]) for key in entries if re.fullmatch(r"ref\d+", key))
        raise UsageError(f"references.bib has no number {number!r}; it has {_known(numbers)}")
    return entries[f"ref{number}"]


def references() -> dict[str, dict[str, str]]:
    """All entries of references.bib by key: "ref41" by the survey's number, others by name.

    Each entry holds its fields and its "type" (article, inproceedings, ...).
    """
    return {key: dict(fields) for key, fields in _entries().items()}


def bibliography() -> str:
    """The text of references.bib."""
    return resources.files(__name__).joinpath("references.bib").read_text(encoding="utf-8")


def _known(ids: Iterable[object]) -> str:
    return ", ".join(str(i) for i in ids)


@functools.cache
def _entries() -> dict[str, dict[str, str]]:
    entries: dict[str, dict[str, str]] = {}
    for line in bibliography().splitlines():
        if start := re.fullmatch(r"@(\w+)\{(\w+),", line):
            kind, key = start.groups()
            if key in entries:
                raise UsageError(f"references.bib has {key} twice; keep one entry")
            entries[key] = fields = {"type": kind}
        elif field := re.fullmatch(r"  (\w+) = \{(.*)\},", line):
            name, value = field.groups()
            # a second pair of braces keeps the capitals of a title in BibTeX
            value = value[1:-1] if value[:1] == "{" and value[-1:] == "}" else value
            fields[name] = value.replace(r"\_", "_")
        elif line not in ("", "}") and not line.startswith("%"):
            raise UsageError(f"references.bib: cannot read {line!r}; write one field per line")
    return entries
