"""What runs cost: attribution to sections, the estimate, and what is never compared."""

import json

import pandas as pd
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from survey_lib.evidence import Case, sweep
from survey_lib.evidence.cost import COLUMNS, Costs, Plan, measured, text
from survey_lib.evidence.store import Store
from survey_lib.methods.server_sync import fedavg

SMALL = Case(fedavg, dict(S=2, E=1, B=5, eta=0.1), task=dict(n=2), until=dict(rounds=2))


@pytest.fixture
def costs(tmp_path, monkeypatch):
    """Costs as in notebook 02 under the runner; the machine takes 2 s to calibrate."""
    monkeypatch.setenv("SURVEY_PROGRESS", str(tmp_path / "progress" / "02_data_parallel.json"))
    monkeypatch.setattr("survey_lib.evidence.cost.calibrate", lambda: 2.0)
    found = Costs(tmp_path)
    found.begin(["02_data_parallel"])
    return found


def test_memory_is_the_peak_in_between_and_not_before():
    def peak(megabytes):
        with measured() as cost:
            torch.ones(megabytes * 2**18)
        return cost["mib"]

    low, high, again = peak(1), peak(300), peak(1)
    assert 250 <= high - low <= 350 and abs(again - low) < 50


def test_costs_stand_beside_the_store_and_not_in_it(costs, tmp_path):
    sweep({"a": SMALL, "same": SMALL}, [0, 1], out=tmp_path)
    runs = costs.runs()
    assert len(runs) == 2 and (runs["seconds"] > 0).all() and (runs["mib"] > 50).all()
    files = list((tmp_path / "runs").rglob("*.json"))
    assert sorted(p.stem for p in files) == sorted(runs.index)
    assert not any("seconds" in p.read_text() or "mib" in p.read_text() for p in files)
    sweep({"a": SMALL}, [0, 1], out=tmp_path)
    assert costs.runs().equals(runs)  # nothing ran, so nothing new was measured


def test_a_line_cut_short_by_a_killed_process_is_left_out(costs, tmp_path):
    sweep({"a": SMALL}, [0], out=tmp_path)
    with open(tmp_path / "cost" / "runs.jsonl", "a") as file:
        file.write('{"key": "half')
    assert len(costs.runs()) == 1


def keep(costs, key, seconds, code=()):
    entry = dict(
        key=key, notebook="02_data_parallel", seconds=seconds, mib=100 * seconds, code=list(code)
    )
    costs._append("runs.jsonl", entry)


def test_a_section_has_the_runs_of_its_cells_and_a_shared_run_counts_once(costs):
    for key, seconds in (("a", 6), ("b", 12), ("c", 30)):
        keep(costs, key, seconds)
    for cell, keys in ((2, ["a"]), (2, ["b"]), (3, ["b", "c"])):
        costs._append("02_data_parallel.jsonl", dict(cell=cell, keys=keys))
    begin, end = "2020-01-01T00:00:00", "2020-01-01T00:00:30"
    stamps = {"iopub.status.busy": begin, "iopub.status.idle": end}
    sources = ["1", 'lab.record("fedasync")', "2", "plot()"]
    cells = [
        new_code_cell(s, execution_count=k, metadata=dict(execution=stamps))
        for k, s in enumerate(sources, 1)
    ]
    one, two = (new_markdown_cell(f"## {s}\n### part") for s in ("One", "Two"))
    costs.sections(
        new_notebook(cells=[cells[0], one, cells[1], two, *cells[2:]]), "02_data_parallel"
    )
    table = costs.table().set_index("section")
    assert table["runs"].to_dict() == {"Beginning": 0, "One": 2, "Two": 1}
    assert table["cpu_minutes"].to_dict() == {"Beginning": 0, "One": 0.3, "Two": 0.5}
    assert table["mib"].to_dict() == {"Beginning": 0, "One": 1200, "Two": 3000}
    assert table["other_minutes"].to_dict() == {"Beginning": 0.5, "One": 0, "Two": 0.5}
    assert table.loc["One", "rows"] == "3, 6" and table.loc["One", "methods"] == "fedasync"
    said = text(costs.table())
    assert "0.80       1.00      3000      3  TOTAL 02_data_parallel" in said


def known(**columns):
    """Published costs: 100 runs of 10 CPU minutes, 1 minute besides, on a machine that takes 1 s to
    calibrate."""
    row = dict.fromkeys(COLUMNS, "") | dict(
        notebook="02_data_parallel", runs=100, cpu_minutes=10, other_minutes=1, calibration_s=1.0
    )
    return pd.DataFrame([row | columns])


def test_the_estimate_is_scaled_by_the_calibration(costs):
    plan = Plan(costs, ["02_data_parallel"], known(), jobs=2)
    assert plan.seconds == 2 * (600 / 2 + 60)  # twice as slow, two processes
    assert plan.text() == (
        "about 12 min on this machine (2 processes); 0 of 100 runs are in the store"
    )
    assert plan.left() == "about 12 min left | "
    both = pd.concat([known(), known(notebook="03_non_iid", calibration_s=4.0)])
    plan = Plan(costs, ["02_data_parallel", "03_non_iid"], both, jobs=2)
    assert plan.seconds == (2 + 1 / 2) * 600 / 2 + 2 * 60  # the notebooks besides: side by side
    other = Plan(costs, ["03_other"], known(), jobs=2)
    assert other.text() == "no costs are known for these settings; 0 runs are in the store"
    assert other.left() == ""


def test_what_the_store_has_is_taken_off_unless_its_code_changed(costs, tmp_path):
    sweep({"a": SMALL}, [0, 1], out=tmp_path)
    assert len(costs.stored()) == 2
    entries = [json.loads(s) for s in (tmp_path / "cost" / "runs.jsonl").read_text().splitlines()]
    assert any("server_sync.fedavg:" in c for c in entries[0]["code"])
    Store(tmp_path / "runs").path(entries[1]["key"]).unlink()
    assert list(costs.stored().index) == [entries[0]["key"]]
    old = entries[0] | dict(code=["survey_lib.methods.server_sync.fedavg:" + 16 * "0"])
    costs._append("runs.jsonl", old)
    assert costs.stored().empty
    keep(costs, entries[0]["key"], 300)
    plan = Plan(costs, ["02_data_parallel"], known(), jobs=2)
    assert (plan.stored, plan.runs) == (1, 100)
    assert plan.seconds == (2 * 600 - 300) / 2 + 2 * 60


def test_time_left_follows_the_pace(costs, monkeypatch):
    clock = iter([1000.0, 1100.0, 1300.0])
    monkeypatch.setattr("survey_lib.evidence.cost.time.monotonic", lambda: next(clock))
    plan = Plan(costs, ["02_data_parallel"], known(), jobs=2)  # 1200 CPU seconds are missing
    assert plan.left() == "about 10 min left | "  # 720 s less the 100 that went by
    keep(costs, "x", 600)
    assert plan.left() == "about 5 min left | "  # half of it took 300 s
