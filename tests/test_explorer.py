"""The explorer: it answers from the store, offers what is missing, and runs it only when asked."""

import re
from functools import partial

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from survey_lib import reproduce as runner
from survey_lib.errors import UsageError
from survey_lib.evidence import Case, Lab
from survey_lib.evidence.sweep import keys, stored
from survey_lib.methods.server_sync import fedavg
from survey_lib.report import curves
from survey_lib.report.explorer import Explorer, explorer

SETUP = """
from survey_lib.evidence import Case, Lab
from survey_lib.methods.server_sync import fedavg
from survey_lib.report import curves
from survey_lib.report.explorer import explorer
lab = Lab("01_small", scale="quick", seeds="0-1", out=out, jobs=1)
few = dict(data="digits", n=5, samples=60)
runs = lab.sweep({"eta": Case(fedavg, dict(S=5, E=1, B=5, eta=0.1), few, until=dict(rounds=2))})
"""
SHOWN = """
explored = explorer(
    lab,
    dict(eta=(0.1, 0.2), x=("round", "bytes")),
    lambda eta: {"eta": Case(fedavg, dict(S=5, E=1, B=5, eta=eta), few, until=dict(rounds=2))},
    curves,
    name="try",
)
explored
"""
CHOICES = dict(eta=(0.1, 0.2), x=("round", "bytes"))


def eta_case(eta):
    few = dict(data="digits", n=5, samples=60)
    return {"eta": Case(fedavg, dict(S=5, E=1, B=5, eta=eta), few, until=dict(rounds=2))}


@pytest.fixture
def lab(tmp_path):
    """With the runs of eta = 0.1 in its store."""
    found = Lab("01_small", scale="quick", seeds="0-1", out=tmp_path / "out", jobs=1)
    found.sweep(eta_case(0.1))
    return found


def files(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def explored(lab, **how):
    return Explorer(
        lab, CHOICES, **(dict(cases=eta_case, figure=curves) | how), seeds=[0, 1], name="try"
    )


def test_stored_reads_what_sweep_wrote_and_writes_nothing(lab):
    before = files(lab.out)
    history, lacks = stored(eta_case(0.1), [0, 1], out=lab.out)
    assert not lacks and history.equals(lab.sweep(eta_case(0.1)))
    both = eta_case(0.1) | {"other": eta_case(0.2)["eta"]}
    history, lacks = stored(both, [0, 1], out=lab.out)
    assert history is None and list(lacks) == keys({"o": both["other"]}, [0, 1])
    assert {p: t for p, t in files(lab.out).items() if "runs" in p.parts} == {
        p: t for p, t in before.items() if "runs" in p.parts
    }


def test_choices_go_to_the_figure_or_to_the_cases(lab):
    found = explored(lab)
    assert found.drawn == {"x"} and found.chosen() == dict(eta=0.1, x="round")
    assert "over round" in found.picture().data and "eta: 0.1; x: round." in found.picture().data
    found.menus["x"].value = "bytes"
    assert "data sent by all devices" in found.frame.value and found.said.value == ""


def test_a_missing_point_is_offered_with_its_seconds_and_not_run(lab):
    found, before = explored(lab), files(lab.out)
    found.menus["eta"].value = "0.2"
    assert re.match(r"2 of the 2 runs .* stored: about \d+ s, once workers run", found.said.value)
    assert found.frame.value == "" and found.button.layout.display is None
    assert files(lab.out) == before
    (lab.out / "cost" / "runs.jsonl").unlink()
    assert "unknown time" in found.offer()


def test_the_button_runs_it_and_what_was_seen_comes_back_without_a_run(lab):
    found = explored(lab)
    found.menus["eta"].value = "0.2"
    found.button.click()
    assert "<figure" in found.frame.value and found.said.value == ""
    assert found.button.layout.display == "none" and not found.button.disabled
    after = files(lab.out / "runs")
    found.menus["eta"].value = "0.1"
    found.menus["eta"].value = "0.2"
    assert "eta: 0.2" in found.frame.value and files(lab.out / "runs") == after


def test_a_run_that_fails_says_why_and_can_be_asked_for_again(lab):
    def broken(eta):
        return {"eta": eta_case(eta)["eta"].but(S=5 if eta == 0.1 else 99)}

    found = explored(lab, cases=broken)
    found.menus["eta"].value = "0.2"
    found.button.click()
    assert "99" in found.said.value and found.frame.value == ""
    assert found.button.layout.display is None and not found.button.disabled


def test_a_choice_without_values_is_refused(lab):
    with pytest.raises(UsageError, match="explorer try: no values for eta; give one or more"):
        Explorer(lab, dict(eta=()), eta_case, curves, [0, 1], "try")


def test_under_the_runner_there_is_the_picture_alone(lab, monkeypatch):
    monkeypatch.setenv("SURVEY_RUNNER", "1")
    shown = partial(explorer, lab, cases=eta_case, figure=curves, name="try")
    assert shown(CHOICES).data == shown(CHOICES).data and "<figure" in shown(CHOICES).data
    missing = shown(dict(eta=(0.2,)))
    assert missing.data.startswith("<p>2 of the 2 runs") and "<figure" not in missing.data


# ---- a real kernel ------------------------------------------------------------------------------

ANSWERS = """
import pathlib
box, store = explored, pathlib.Path(out, "runs")
menus, said, button, log, frame = box.children
eta, x = menus.children
before = sorted(store.rglob("*.json"))
x.set_state({"index": 1})  # what a browser sends
assert "data sent by all devices" in frame.value and said.value == "", said.value
eta.set_state({"index": 1})
assert "not stored: about" in said.value and not frame.value, said.value
assert button.layout.display is None and sorted(store.rglob("*.json")) == before
button._handle_button_msg(button, {"event": "click"}, [])
assert "<figure" in frame.value and button.layout.display == "none", said.value
assert len(sorted(store.rglob("*.json"))) == len(before) + 2
"answered"
"""


def kernel(tmp_path, *cells):
    book = new_notebook(cells=[new_code_cell(f"out = {str(tmp_path / 'out')!r}")])
    book.cells += [new_code_cell(source) for source in (SETUP, *cells)]
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    return book


@pytest.mark.slow
def test_in_a_kernel_the_menus_answer_and_the_button_runs(tmp_path):
    book = kernel(tmp_path, SHOWN, ANSWERS)
    first, box = book.cells[2].outputs
    assert "<figure" in first.data["text/html"]
    assert "application/vnd.jupyter.widget-view+json" in box.data
    assert "answered" in book.cells[3].outputs[-1].data["text/plain"]


@pytest.mark.slow
def test_in_a_headless_run_the_notebook_keeps_the_picture_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("SURVEY_RUNNER", "1")
    one, two = (runner.clean(kernel(tmp_path, SHOWN)) for _ in range(2))
    assert one.cells[2].outputs == two.cells[2].outputs and len(one.cells[2].outputs) == 1
    assert "<figure" in one.cells[2].outputs[0].data["text/html"]
    assert "widget" not in nbformat.writes(one)
