"""The runner: what it refuses, how it judges a notebook, and what survives a killed process."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from survey_lib import reproduce as runner
from survey_lib.__main__ import main
from survey_lib.errors import UsageError
from survey_lib.tables import TABLES
from survey_lib.tables.claims import CLAIMS

PARAMETERS = 'scale = "full"\nseeds = ""\ndataset = ""\nout = "../build"\njobs = 1'
RUNS = """
from survey_lib.evidence import Case, Lab, final
from survey_lib.methods.server_sync import fedavg
lab = Lab("01_small", scale=scale, seeds=seeds, dataset=dataset, out=out, jobs=jobs)
runs = lab.sweep({f"eta {k}": Case(fedavg, dict(S=5, E=5, B=5, eta=0.01 * k), task=dict(n=5),
                                   until=dict(rounds=40)) for k in range(1, 5)})
"""


def book(*sources, name="01_small", parameters=PARAMETERS, sentinel=True):
    cells = [
        new_markdown_cell("# Small"),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
    ]
    cells += [new_code_cell(s) for s in sources]
    if sentinel:
        cells.append(new_code_cell(f'"{name}: finished, 0 methods with evidence"'))
    kernel = dict(name="python3", language="python", display_name="Python 3")
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "results")
    (tmp_path / "notebooks").mkdir()

    def add(notebook, name="01_small"):
        nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")
        return tmp_path

    return add


def quick(out, **changes):
    return runner.Settings(**dict(scale="quick", out=str(out), jobs=1) | changes)


# ---- judging ------------------------------------------------------------------------------------


def executed(counts=(1, 2, 3), outputs=()):
    notebook = book("1 + 1")
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    for cell, count in zip(cells, counts, strict=True):
        cell.execution_count = count
    text = {"text/plain": "'01_small: finished, 0 methods with evidence'"}
    cells[-1].outputs = [new_output("execute_result", text, execution_count=3)]
    cells[1].outputs = list(outputs)
    return notebook


def test_a_whole_notebook_passes():
    assert runner.judge(executed(), "01_small") == ""


@pytest.mark.parametrize(
    "notebook, fault",
    [
        (executed(counts=(1, None, None)), "cell 2 of 3 did not run"),
        (executed(counts=(1, 2, 7)), "cell 3 of 3 did not run"),
        (
            executed(outputs=[new_output("error", ename="E", evalue="", traceback=[])]),
            "raised an error",
        ),
    ],
)
def test_a_broken_notebook_does_not(notebook, fault):
    assert fault in runner.judge(notebook, "01_small")


def test_the_sentinel_must_be_the_notebooks_own():
    assert "did not close" in runner.judge(executed(), "02_other")


def test_clean_leaves_nothing_that_differs_between_runs():
    notebook = executed()
    notebook.metadata["papermill"] = {"start_time": "now"}
    notebook.cells[1].metadata["execution"] = {"iopub.execute_input": "now"}
    notebook.cells.insert(2, new_code_cell("jobs = 2", metadata={"tags": ["injected-parameters"]}))
    said = {"text/plain": "<survey_lib.evidence.lab.Verdict at 0x7f04d1f69610>"}
    notebook.cells[1].outputs = [new_output("execute_result", said, execution_count=1)]
    text = nbformat.writes(runner.clean(notebook))
    assert (
        "lab.Verdict>" in text
        and "now" not in text
        and "jobs = 2" not in text
        and '"execution_count": 3' not in text
    )


def test_the_overview_runs_after_all_others(folder, tmp_path, monkeypatch):
    names, order = ["00_overview", "01_small", "02_fine"], []
    for name in names:
        folder(book("1", name=name), name)
    for name in ("SURVEY_RUNNER", runner.cluster.ADDRESS):
        monkeypatch.setenv(name, "")  # restored afterwards
    monkeypatch.setattr(runner.cost, "calibrate", lambda: 1.0)
    monkeypatch.setattr(runner, "execute", lambda path, *_: order.append(path.stem) or "")
    out = tmp_path / "out"
    minutes, failures = runner._run_all(runner.notebooks(), quick(out, jobs=2).checked(), out)
    assert sorted(order) == sorted(minutes) == names and not failures
    assert order[-1] == "00_overview"


def test_a_run_without_evidence_has_its_page_all_the_same(folder, tmp_path):
    folder(book("1"))
    frame = runner.assemble(tmp_path / "out", quick(tmp_path / "out").checked())
    page = (tmp_path / "out" / "report.html").read_text()
    assert frame.empty and "no evidence yet" in page and "evidence at quick scale" in page


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_notebook_that_cannot_be_written_is_told_in_one_line(
    folder, tmp_path, monkeypatch, capsys, number
):
    """Half a notebook is no reason for a traceback."""

    def half(source, part, *_, **how):
        Path(part).write_text('{"cells": [')
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(runner.papermill, "execute_notebook", half)
    folder(book("1"))
    code = main(["reproduce", "--scale", "quick", "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    full = number == errno.ENOSPC
    assert code == (1 if full else 2) and "Traceback" not in said and "01_small.ipynb" in said
    assert ("free some and run again" if full else "give a folder that can be written") in said
    assert not list((tmp_path / "out").rglob("01_small.ipynb"))


# ---- running ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_notebook_without_a_parameter_is_refused(folder, tmp_path, capsys):
    folder(book("1", parameters='scale = "full"\nseeds = ""'))
    assert runner.reproduce(quick(tmp_path / "out")) == 1
    assert "its parameters cell lacks dataset, jobs, out" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_kernel_is_named_and_the_others_go_on(folder, tmp_path, capsys):
    kill = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    mark = (
        "import json, os, pathlib\np = pathlib.Path(out, 'runs', 'under-way')\n"
        "p.mkdir(parents=True)\n"
        "_ = (p / f'{os.getpid()}.json').write_text(json.dumps({'run': 'fedavg, seed 3'}))"
    )
    folder(book(mark, kill, "1"))
    folder(book("2", name="02_fine"), "02_fine")
    assert runner.reproduce(quick(tmp_path / "out")) == 1
    said = capsys.readouterr().err
    assert "01_small: " in said and "under way: fedavg, seed 3" in said and "02_fine" not in said
    assert (tmp_path / "out" / "notebooks" / "02_fine.ipynb").exists()
    assert (tmp_path / "out" / "failed" / "01_small.ipynb").exists()
    assert not (tmp_path / "out" / "notebooks" / "01_small.ipynb").exists()


@pytest.mark.slow
def test_a_cell_that_raises_or_a_missing_sentinel_fails(folder, tmp_path, capsys):
    folder(book("raise ValueError('the reason')"))
    folder(book("1", name="02_open", sentinel=False), "02_open")
    assert runner.reproduce(quick(tmp_path / "out")) == 1
    said = capsys.readouterr().err
    assert (
        "01_small: ValueError: the reason" in said
        and "02_open: the last cell did not close" in said
    )


PROGRAM = """
import pathlib, sys
from survey_lib import reproduce as r
r.NOTEBOOKS = pathlib.Path(sys.argv[1])
sys.exit(r.reproduce(r.Settings(scale="quick", seeds="0-2", out=sys.argv[2], jobs=1)))
"""


def tree(out):
    """Every file of a build by its bytes, the store's bookkeeping and the costs apart."""
    apart = {"under-way", "cost"}
    files = [p for p in Path(out).rglob("*") if p.is_file() and not apart & set(p.parts)]
    return {str(p.relative_to(out)): p.read_bytes() for p in files if p.name != "manifest.json"}


@pytest.mark.slow
def test_killed_at_any_instant_and_started_again_gives_the_same_build(tmp_path):
    nbformat.write(book(RUNS), tmp_path / "01_small.ipynb")

    def start(out):
        call = [sys.executable, "-c", PROGRAM, str(tmp_path), str(out)]
        return subprocess.Popen(
            call, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )

    assert start(tmp_path / "whole").wait() == 0
    for patience in (1, 4, 12):  # so many finished runs, then SIGKILL to everything
        process, runs = start(tmp_path / "killed"), tmp_path / "killed" / "runs"
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            if len(list(runs.glob("[0-9a-f][0-9a-f]/*.json"))) >= patience:
                break
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = {p: p.stat().st_mtime_ns for p in runs.glob("[0-9a-f][0-9a-f]/*.json")}
    assert len(before) >= 4
    assert start(tmp_path / "killed").wait() == 0
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())  # no finished run was repeated


@pytest.mark.slow
def test_two_at_once_do_not_damage_each_other(tmp_path):
    nbformat.write(book(RUNS), tmp_path / "01_small.ipynb")
    call = [sys.executable, "-c", PROGRAM, str(tmp_path), str(tmp_path / "both")]
    both = [
        subprocess.Popen(call, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [p.wait() for p in both] == [0, 0]
    alone = [*call[:-1], str(tmp_path / "alone")]
    assert subprocess.run(alone, capture_output=True).returncode == 0
    assert tree(tmp_path / "both") == tree(tmp_path / "alone")
    table = pd.read_csv(tmp_path / "alone" / "cost" / "cost.csv", keep_default_na=False)
    assert table["runs"].sum() == 12 and (table["mib"].max() > 50) and table["cpu_minutes"].sum()


# ---- the command line ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["reproduce", "--scale", "huge"], 'SCALE="huge" is unknown; expected one of quick, full'),
        (["reproduce", "--seeds", "0"], "a spread needs two seeds or more"),
        (["reproduce", "--seeds", "x"], "is not a list of seeds; write 0-4"),
        (["reproduce", "--only", "77"], "ONLY=77 names no notebook; there are 00_overview, 01"),
        (["reproduce", "--jobs", "-1"], "JOBS=-1; expected a number of processes"),
        (["reproduce", "--dataset", "nosuchset"], "nosuchset"),
        (["reproduce", "--dataset", "nosuch.npz"], "nosuch.npz"),
        (["verify", "--out", "nosuchfolder"], "run `make reproduce` first"),
        (["publish", "--out", "nosuchfolder"], "run `make reproduce` first"),
        (["show", "fedsomething"], '"fedsomething" is no method of the survey; there are ad_psgd'),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    left = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert not left


def test_list_and_show_print_every_method(capsys):
    assert main(["list"]) == 0
    assert "choco_sgd" in capsys.readouterr().out
    assert main(["show", "scaffold"]) == 0
    said = capsys.readouterr().out
    assert "Claim: Control variates" in said and "def scaffold(" in said
    claimed = {method for _, method in CLAIMS}
    for method in [m for t in TABLES.values() for m in t.methods if m not in claimed][:1]:
        assert main(["show", method]) == 0
        assert "not implemented yet" in capsys.readouterr().out


def test_a_full_disk_is_one_line(monkeypatch, capsys):
    def full(**settings):
        raise OSError(28, "No space left on device", "build/x")

    monkeypatch.setattr("survey_lib.__main__._reproduce", full)
    assert main(["reproduce"]) == 1
    assert "survey_lib: build/x: No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes", [dict(scale="quick"), dict(data={"cifar10": "x"}), dict(seeds="0-1")]
)
def test_only_full_default_runs_are_published(tmp_path, changes):
    state = dict(scale="full", data={"digits": "x"}, seeds=runner.OWN_SEEDS) | changes
    (tmp_path / "manifest.json").write_text(json.dumps(state))
    with pytest.raises(UsageError, match="only full ones are published"):
        runner.publish(tmp_path)


def test_what_failed_or_has_too_few_seeds_is_not_published(tmp_path):
    state = dict(scale="full", data={"digits": "x"}, seeds=runner.OWN_SEEDS)
    (tmp_path / "manifest.json").write_text(json.dumps(state))
    frame = runner.ledger.load(runner.RESULTS / "evidence.csv")
    frame.loc[frame["method"] == "d_psgd", "seeds"] = 4
    runner.ledger.save(frame, tmp_path / "evidence.csv")
    with pytest.raises(UsageError, match="^d_psgd: judged on fewer seeds"):
        runner.publish(tmp_path)
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / "02_data_parallel.ipynb").write_text("{}")
    with pytest.raises(UsageError, match="02_data_parallel failed; run `make reproduce`"):
        runner.publish(tmp_path)


@pytest.fixture
def verified(tmp_path, monkeypatch, capsys):
    """verify() of the published ledger with changes: (deviations, what it printed, its record)."""
    results, out = tmp_path / "results", tmp_path / "out"
    if not (runner.RESULTS / "evidence.csv").exists():
        pytest.skip("nothing is published yet")
    shutil.copytree(runner.RESULTS, results)
    shutil.copytree(runner.RESULTS, out)
    monkeypatch.setattr(runner, "RESULTS", results)

    def verify(method=None, only="", **changes):
        frame = runner.ledger.load(results / "evidence.csv")
        for column, wrong in changes.items():
            frame.loc[frame["method"] == method, column] = wrong
        runner.ledger.save(frame, out / "evidence.csv")
        found = runner.verify(out, only)
        return found, capsys.readouterr().out, (out / "verification.json").read_text()

    return verify


def test_verify_records_that_all_is_reproduced_the_same_bytes_twice(verified):
    found, said, record = verified()
    lines = json.loads(record)["lines"]
    n = len(lines)
    assert found == 0 and n > 50 and all(e["ok"] and e["deviation"] == 0 for e in lines)
    assert f"{n} of {n} figures reproduced, largest deviation 0" in said
    assert json.loads(record)["summary"] == said.strip() and verified()[2] == record
    assert {"machine", "simd", "torch"} <= set(json.loads(record)["run_on"]["versions"])


@pytest.mark.parametrize(
    "method, column, wrong, told",
    [
        ("gaia_asp", "verdict", "unheard-of", "here unheard-of"),
        ("choco_sgd", "effect", 1e9, "test images apart; 3 are allowed"),
        ("sgp", "ci_low", 1e-9, "same machine and versions, but ci_low 1e-09 instead of"),
        ("allreduce_sgd", "effect", 0.126, "effect 0.126 instead of 0.125"),  # bytes
        ("fedavg", "seeds", 3, "but seeds 3 instead of"),
    ],
)
def test_verify_tells_a_flipped_verdict_figure_and_byte_count(
    method, column, wrong, told, verified
):
    found, said, record = verified(method, **{column: wrong})
    first, last = said.strip().split("\n")
    assert found == 1 and method in first and told in first
    n = len(json.loads(record)["lines"])
    assert f"{n - 1} of {n} figures reproduced" in last
    assert [e["said"] for e in json.loads(record)["lines"] if not e["ok"]] == [first]
    assert verified(method, only="05", **{column: wrong})[0] == 0  # another notebook's line
