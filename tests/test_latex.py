"""The LaTeX of the tables and the bibliography: whole by its own rules, and by those of LaTeX where
it is installed."""

import re
import shutil
import subprocess

import pandas as pd
import pytest

from survey_lib import report
from survey_lib.evidence import ledger
from survey_lib.reproduce import RESULTS
from survey_lib.tables import TABLES, bibliography, errata

NASTY = "a<b> & 50%_{x} $y$ #1 | ~^\\ [z] \"q\" 'r' 训练 κ±½ –"
DOCUMENT = r"""\documentclass{article}
\usepackage[landscape,margin=15mm]{geometry}
\usepackage{array,booktabs,longtable}
\begin{document}
%s
\nocite{*}\bibliographystyle{plain}\bibliography{references}
\end{document}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The six tables with the published evidence, the errata, and one table of odd characters."""
    out, lines = tmp_path_factory.mktemp("tables"), ledger.load(RESULTS / "evidence.csv")
    for number, table in TABLES.items():
        frame = report.survey_table(table, lines)
        report.write(frame, out, f"table{number}", f"Table {number}. {table.title}")
    report.write(errata.frame(), out, "errata", errata.CAPTION)
    odd = pd.DataFrame({NASTY: ["", NASTY], "n": [1.5, None]})
    report.write(odd, out, "odd", NASTY)
    return out


STEMS = [*(f"table{number}" for number in TABLES), "errata", "odd"]


@pytest.mark.parametrize("stem", STEMS)
def test_braces_environments_and_columns_agree(folder, stem):
    text = (folder / f"{stem}.tex").read_text()
    frame = pd.read_csv(folder / f"{stem}.csv", keep_default_na=False)
    bare = re.sub(r"\\[{}\\]", "", re.sub(r"^%.*", "", text, flags=re.M))
    depth = 0
    for c in bare:
        depth += (c == "{") - (c == "}")
        assert depth >= 0
    assert depth == 0
    stack = []
    for what, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if what == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    shares = [float(s) for s in re.findall(r"\\dimexpr ([\d.]+)\\linewidth", text)]
    assert len(shares) == len(frame.columns) and sum(shares) == pytest.approx(1, abs=0.002)
    rows = re.findall(r"^(.+) \\\\$", text, re.M)
    assert len(rows) == len(frame) + 2  # the head stands twice: on the first page and on the others
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(frame.columns) - 1}
    body = re.sub(r"\\(textless|textgreater|textbar|textasciitilde|textasciicircum)\b", "", text)
    inside = body.partition(r"\endfoot")[2]
    assert not re.search(r"(?<!\\)[%#$~^](?!\\pm)", inside.replace(r"$\pm$", ""))


@pytest.mark.slow
def test_latex_takes_every_table_and_the_bibliography(folder):
    if not (shutil.which("latexmk") and shutil.which("xelatex")):
        pytest.skip("latexmk and xelatex are not installed")
    inputs = "\n".join(rf"\input{{{stem}}}" for stem in STEMS)
    (folder / "all.tex").write_text(DOCUMENT % inputs)
    (folder / "references.bib").write_text(bibliography())
    call = ["latexmk", "-xelatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert (folder / "all.pdf").stat().st_size > 10_000
    assert "warning$ -- 0" in (folder / "all.blg").read_text()
    log = (folder / "all.log").read_text(errors="replace")
    assert "Overfull" not in re.sub(r"(?s)\(\./odd\.tex.*", "", log)
