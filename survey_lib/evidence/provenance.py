"""What the figures of a notebook come from: commit, versions, seeds, data, machine, CPU time."""

import platform
import re
import subprocess
from itertools import groupby
from pathlib import Path

import pandas as pd

from survey_lib.data import load
from survey_lib.evidence.cost import Costs
from survey_lib.evidence.store import ROOT, versions

CPU = "CPU seconds of its runs"
ELSEWHERE = "see make cost"  # what stands in a notebook in place of figures that differ each time
NO_GIT = "not under git"


class Finished(str):
    """The closing sentence of a notebook; shows itself with its provenance below."""

    def __new__(cls, sentence: str, rows: dict[str, str]):
        self = super().__new__(cls, sentence)
        self.rows = rows
        return self

    def _repr_html_(self) -> str:
        from survey_lib.report import html

        return html(pd.DataFrame(self.rows.items(), columns=["provenance", ""]), str(self)).data


def rows(lab) -> dict[str, str]:
    """What a notebook's footer says, line by line. No date, no name of a host, no path."""
    library = dict(versions())
    kind = [library.pop("machine"), library.pop("simd"), library.pop("gpu", "")]
    library = {"python": platform.python_version(), **library}
    lines = lab.ledger()
    names = sorted(set(lines[lines["notebook"] == lab.notebook]["dataset"]))
    sums = {
        name: load(lab.dataset or name).checksum
        for name in names
        if not name.startswith("synthetic")  # drawn from the seed
    }
    return {
        "commit of the code": commit(),
        "versions": ", ".join(f"{name} {version}" for name, version in library.items()),
        "scale and seeds": f"{lab.scale}, {_spans(lab.used or lab.seeds)}",
        "data (SHA-256)": ", ".join(f"{name} {s[:16]}" for name, s in sums.items()) or "none",
        "machine": ", ".join(filter(None, kind)),
        CPU: f"{Costs(lab.out).spent(lab.notebook):.0f}",
    }


def commit(here: Path = ROOT.parent) -> str:
    """The last commit that touched the library's code, "with changes" where files differ from it;
    "not under git" where the project is not the top of a repository."""

    def git(*arguments):
        call = ["git", "-C", str(here), *arguments]
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != Path(here).resolve():
            return NO_GIT  # an installed copy inside somebody else's repository
        last = git("log", "-1", "--format=%H", "--", ROOT.name)[:12]
        changed = git("status", "--porcelain", "--", ROOT.name)
    except (OSError, subprocess.CalledProcessError):
        return NO_GIT
    if not last:
        return NO_GIT
    return f"{last} with changes" if changed else last


def stamped(notebook, seconds: str = ELSEWHERE):
    """The notebook with `seconds` as the CPU time of its footer."""
    for output in (o for cell in notebook.cells for o in cell.get("outputs", [])):
        page = output.get("data", {}).get("text/html", "")
        if CPU in page:
            output.data["text/html"] = re.sub(
                rf"({CPU}</td><td[^>]*>)[^<]*", rf"\g<1>{seconds}", page
            )
    return notebook


def _spans(numbers) -> str:
    """ "0-9, 1000" of the numbers 0 to 9 and 1000."""
    groups = groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])
    runs = [[n for _, n in group] for _, group in groups]
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)
