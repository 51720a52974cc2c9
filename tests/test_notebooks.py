"""The tracked notebooks: their form, and the published outputs that they carry."""

import ast
import html as web
import json
import re

import nbformat
import pandas as pd
import pytest

from survey_lib.evidence import ledger, provenance
from survey_lib.report import counts, html, outcomes, survey_table
from survey_lib.report.readme import evidence_markdown
from survey_lib.reproduce import RESULTS, notebooks
from survey_lib.tables import TABLES
from survey_lib.tables.claims import CLAIMS

BOOKS = {p.stem: nbformat.read(p, as_version=4) for p in notebooks()}
WITHOUT_TABLE = {"00_overview", "99_your_method"}  # of no table, of all; a reader's own
each = pytest.mark.parametrize("name", BOOKS)


def code(name):
    return [c for c in BOOKS[name].cells if c.cell_type == "code"]


def shown(name):
    """The HTML outputs of a notebook."""
    outputs = [o for c in code(name) for o in c.outputs]
    return [o.data["text/html"] for o in outputs if "text/html" in o.get("data", {})]


def test_there_is_a_notebook_for_every_table():
    assert sorted(BOOKS.keys() - WITHOUT_TABLE) == sorted({t.notebook for t in TABLES.values()})


@each
def test_parameters_come_first_imports_second(name):
    first, second = code(name)[:2]
    assert first.metadata.tags == ["parameters"] and "import" not in first.source
    names = re.findall(r"^(\w+) =", first.source, re.M)
    assert names == ["scale", "seeds", "dataset", "out", "jobs"]
    later = "\n".join(c.source for c in code(name)[2:])
    assert "import" in second.source and not re.search(r"^\s*(import|from) ", later, re.M)


@each
def test_nothing_is_defined_or_installed_in_a_notebook(name):
    own = ["first_answers"] if name == "99_your_method" else []  # there the reader writes a method
    defined = re.findall(r"^\s*(?:def|class) (\w+)", "\n".join(c.source for c in code(name)), re.M)
    assert defined == own
    for cell in code(name):
        assert not re.search(r"!pip|%pip|sys\.path", cell.source)


@each
def test_it_closes_with_every_claimed_method_of_its_tables(name):
    rooms = re.search(r"rooms=\[(.*?)\]", code(name)[-1].source, re.S).group(1)
    claimed = [method for table, method in CLAIMS if TABLES[table].notebook == name]
    assert sorted(re.findall(r'"(\w+)"', rooms)) == sorted(claimed)


@each
def test_it_carries_the_published_outputs_without_dates_or_counts(name):
    text = re.sub(r"base64,[\w+/=]+", "", nbformat.writes(BOOKS[name]))
    assert "papermill" not in BOOKS[name].metadata
    assert not re.search(r'"execution_count": \d', text)
    assert not re.search(r"/tmp/|/root/|/home/|20\d\d-\d\d-\d\dT", text)
    for cell in code(name)[2:]:
        wants = isinstance(ast.parse(cell.source).body[-1], ast.Expr)  # ends with something to show
        assert cell.outputs or not wants, cell.source
        assert all(o.output_type not in ("error", "stream") for o in cell.outputs), cell.outputs


@each
def test_every_figure_has_a_sentence_with_numbers_and_needs_no_trust(name):
    pages = shown(name)
    figures = [p for p in pages if "<figure" in p]
    assert figures
    for figure in figures:
        alt = re.search(r'alt="([^"]+)"', figure).group(1)
        assert len(re.findall(r"\d", alt)) >= 3, alt
    assert not re.search(r"<style|<svg|<script|http-equiv", "".join(pages))


@each
def test_its_verdicts_are_the_published_ones(name):
    frame = ledger.load(RESULTS / "evidence.csv")
    lines = frame[frame["notebook"] == name]
    text = "".join(shown(name))
    for line in lines.itertuples():
        assert re.search(rf"<b>{line.method}</b>:.{{0,200}}{line.verdict}", text), line.method


@each
def test_it_ends_with_what_its_figures_come_from(name):
    pages = [o.get("data", {}).get("text/html", "") for o in code(name)[-1].outputs]
    if not any(provenance.CPU in page for page in pages):
        pytest.skip("published before notebooks had a footer")
    (page,) = pages
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", page)
    said = dict(zip(cells[::2], cells[1::2], strict=True))
    state = json.loads((RESULTS / "manifest.json").read_text())
    assert re.match(r"[0-9a-f]{12}|not under git", said["commit of the code"])
    for library in ("python", "torch", "numpy"):
        assert f"{library} {state['versions'][library]}" in said["versions"]
    for data, digits in re.findall(r"(\w+) ([0-9a-f]{16})", said["data (SHA-256)"]):
        assert state["data"][data].startswith(digits)
    costs = pd.read_csv(RESULTS / "cost.csv")
    seconds = 60 * costs[costs["notebook"] == name]["cpu_minutes"].sum()
    assert said[provenance.CPU] == f"{seconds:.0f}"


def test_the_overview_shows_the_published_ledger():
    frame = ledger.load(RESULTS / "evidence.csv")
    pages = shown("00_overview")
    assert html(counts(frame).reset_index()).data in pages
    for number, table in TABLES.items():
        caption = f"Table {number} as the survey prints it, with the evidence beside each row."
        assert html(survey_table(table, frame), caption).data in pages
    told = outcomes(frame)
    for verdict in ("contradicted", "inconclusive", "partly"):
        for line in told[told["verdict"] == verdict].itertuples():
            assert sum(web.escape(line.claim) in page for page in pages) == 1, line.method


def test_the_readme_shows_the_published_ledger():
    from survey_lib.reproduce import READMES

    frame = ledger.load(RESULTS / "evidence.csv")
    for path, chinese in zip(READMES, (False, True), strict=True):
        assert evidence_markdown(frame, chinese) in path.read_text()


def test_the_published_ledger_is_whole():
    frame = ledger.load(RESULTS / "evidence.csv")
    assert list(frame.columns) == ledger.COLUMNS
    assert sorted(zip(frame["table"], frame["method"], strict=True)) == sorted(CLAIMS)
    assert (frame["seeds"] >= 5).all() and (frame["scale"] == "full").all()
    for line in frame.itertuples():
        stated = CLAIMS[line.table, line.method]
        assert line.claim == stated.text and line.ref == stated.ref


@pytest.mark.slow
def test_the_readmes_own_method_runs(tmp_path, monkeypatch, capsys):
    from survey_lib.reproduce import HERE

    (code,) = re.findall(r"```python\n(.*?)```", (HERE / "README.md").read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    exec(code, {"__name__": "readme"})
    said = capsys.readouterr().out
    assert "half_step" in said and "fedavg" in said


def test_the_readers_own_method_enters_no_ledger():
    frame = ledger.load(RESULTS / "evidence.csv")
    assert "first_answers" not in set(frame["method"])
    assert "lab.record" not in "".join(c.source for c in code("99_your_method"))
    assert "yours" in "".join(shown("99_your_method"))
