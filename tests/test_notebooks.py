"""The tracked notebooks: their form, and the published outputs that they carry."""

import ast
import html as web
import re

import nbformat
import pytest

from survey_lib.evidence import ledger
from survey_lib.report import counts, html, outcomes, survey_table
from survey_lib.reproduce import RESULTS, notebooks
from survey_lib.tables import TABLES
from survey_lib.tables.claims import CLAIMS

BOOKS = {p.stem: nbformat.read(p, as_version=4) for p in notebooks()}
each = pytest.mark.parametrize("name", BOOKS)


def code(name):
    return [c for c in BOOKS[name].cells if c.cell_type == "code"]


def shown(name):
    """The HTML outputs of a notebook."""
    outputs = [o for c in code(name) for o in c.outputs]
    return [o.data["text/html"] for o in outputs if "text/html" in o.get("data", {})]


def test_there_is_a_notebook_for_every_table():
    assert {t.notebook for t in TABLES.values()} <= set(BOOKS)


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
    for cell in code(name):
        assert not re.search(r"^\s*(def|class) |!pip|%pip|sys\.path", cell.source, re.M)


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
    from survey_lib.reproduce import HERE, evidence_markdown

    assert evidence_markdown() in (HERE / "README.md").read_text()


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
