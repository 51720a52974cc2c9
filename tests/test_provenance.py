"""The footer of a notebook: what it says, what is left out when it is kept."""

import subprocess

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from survey_lib import reproduce as runner
from survey_lib.data import load
from survey_lib.evidence import Case, Lab, final, provenance
from survey_lib.evidence.cost import Costs
from survey_lib.evidence.store import ROOT, versions
from survey_lib.methods.server_sync import fedavg

SMALL = Case(fedavg, dict(S=2, E=1, B=5, eta=0.1), task=dict(n=2), until=dict(rounds=2))


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    call = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(call, check=True, capture_output=True, text=True).stdout.strip()


def test_the_footer_says_what_the_figures_come_from(tmp_path, monkeypatch):
    before = dict(versions())
    monkeypatch.setenv("SURVEY_PROGRESS", str(tmp_path / "progress" / "01_architectures.json"))
    monkeypatch.setattr("survey_lib.evidence.cost._cell", lambda: 3)
    lab = Lab("01_architectures", out=tmp_path, seeds="0-1")
    lab.sweep({"a": SMALL})
    tuned = lab.tune("a", SMALL, dict(eta=[0.1]), final)
    assert tuned.arguments["eta"] == 0.1
    values = {0: 0.1, 1: 0.11}
    lab.judge("fedavg", values, {0: 1.0, 1: 1.0}, "digits")
    said = lab.finish(["fedavg"])
    assert said == "01_architectures: finished, 1 methods with evidence"
    rows = said.rows
    assert rows["scale and seeds"] == "quick, 0-1, 1000"
    assert rows["data (SHA-256)"] == f"digits {load('digits').checksum[:16]}"
    assert f"torch {before['torch']}" in rows["versions"]
    assert rows["machine"].startswith(f"{before['machine']}, {before['simd']}")
    spent = Costs(tmp_path).runs()["seconds"].sum()
    assert len(Costs(tmp_path).runs()) == 3 and Costs(tmp_path).spent(lab.notebook) == spent > 0
    assert rows[provenance.CPU] == f"{spent:.0f}"
    assert versions() == before  # they are part of the keys of runs
    page = said._repr_html_()
    assert said in page and all(value in page for value in rows.values())
    assert str(tmp_path) not in page


def test_synthetic_data_has_no_checksum_and_no_evidence_no_data(tmp_path):
    lab = Lab("01_architectures", out=tmp_path, seeds="0,2")
    assert lab.finish([]).rows["data (SHA-256)"] == "none"
    lab.judge("fedavg", {0: 0.1, 1: 0.11}, {0: 1.0, 1: 1.0}, "synthetic: pairs")
    rows = lab.finish(["fedavg"]).rows
    assert rows["data (SHA-256)"] == "none" and rows["scale and seeds"] == "quick, 0, 2"


def test_the_commit_is_the_last_one_of_the_code(tmp_path):
    assert provenance.commit(tmp_path) == "not under git"
    git(tmp_path, "init", "-q")
    assert provenance.commit(tmp_path) == "not under git"  # nothing committed
    code = tmp_path / ROOT.name
    code.mkdir()
    (code / "a.py").write_text("1")
    git(tmp_path, "add", "."), git(tmp_path, "commit", "-qm", "code")
    first = git(tmp_path, "rev-parse", "HEAD")[:12]
    assert provenance.commit(tmp_path) == first
    (tmp_path / "README.md").write_text("text")  # what is published changes nothing
    git(tmp_path, "add", "."), git(tmp_path, "commit", "-qm", "text")
    assert provenance.commit(tmp_path) == first
    (code / "a.py").write_text("2")
    assert provenance.commit(tmp_path) == f"{first} with changes"
    assert provenance.commit(code) == "not under git"  # not the top of the repository


def test_no_git_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance.commit(tmp_path) == "not under git"


@pytest.fixture
def notebook():
    page = provenance.Finished("01_a: finished", {"x": "1", provenance.CPU: "4321"})._repr_html_()
    data = {"text/plain": "'01_a: finished'", "text/html": page}
    output = new_output("execute_result", data, execution_count=1)
    other = new_output("display_data", {"text/html": "<p>4321 CPU seconds</p>"})
    return new_notebook(cells=[new_code_cell("lab.finish()", outputs=[output, other])])


def test_cpu_seconds_are_left_out_and_put_back(notebook):
    text = nbformat.writes(runner.clean(notebook))
    assert ">4321<" not in text and f">{provenance.ELSEWHERE}<" in text
    assert "<p>4321 CPU seconds</p>" in text  # nothing but the footer is touched
    assert text == nbformat.writes(runner.clean(notebook))
    assert ">99</td>" in nbformat.writes(provenance.stamped(notebook, "99"))


def test_a_footer_closes_a_notebook(notebook):
    notebook.cells[0].execution_count = 1
    assert runner.judge(notebook, "01_a") == ""
