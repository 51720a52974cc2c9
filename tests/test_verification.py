"""The three classes of equality: what each tolerates on another machine, and no more."""

import math
import os
import subprocess
import sys

import pandas as pd
import pytest

from survey_lib.data import load
from survey_lib.evidence import ledger
from survey_lib.evidence.verification import (
    IMAGES,
    RELATIVE,
    TEST_IMAGES,
    compare,
    equality,
    report,
)
from survey_lib.tables.claims import CLAIMS

KINDS = ["exact", "platform", "statistical"]


def published():
    """A line of each class."""

    def line(table, row, method, unit, **figures):
        stated = CLAIMS[table, method]
        words = dict(claim=stated.text, baseline=stated.baseline, metric=stated.metric, unit=unit)
        where = dict(seeds=5, verdict="supported", dataset="digits", notebook="n")
        where |= dict(devices="raspberry pi", scale="full")
        return dict(table=table, row=row, ref=1, method=method) | words | figures | where

    half = dict(effect=0.5, ci_low=0.4, ci_high=0.6)
    lines = [
        line(2, "text-1", "allreduce_sgd", "x", effect=0.125, ci_low=0.125, ci_high=0.125),
        line(2, "8", "choco_sgd", "points", effect=4.0, ci_low=3.9, ci_high=4.1),
        line(2, "1", "d_psgd", "x", **half),
    ]
    return pd.DataFrame(lines, columns=ledger.COLUMNS)


def changed(row, **figures):
    frame = published()
    for column, value in figures.items():
        frame.loc[row, column] = value
    return frame


def test_the_class_of_a_line():
    lines = published().to_dict("records")
    assert [equality(e) for e in lines] == KINDS
    assert equality(lines[1] | dict(dataset="synthetic: linear agents")) == "statistical"
    assert equality(lines[1] | dict(metric="test AUC (mean node)")) == "statistical"


def test_exact_claims_are_those_that_no_training_decides():
    exact = {key for key, c in CLAIMS.items() if c.exact}
    counted = {
        key
        for key, c in CLAIMS.items()
        if c.unit in ("B", "s", "messages") and " to " not in c.metric
    }
    assert exact == counted - {(5, "rl_placement")}  # its policy is trained


def test_the_number_of_test_images():
    assert len(load("digits").y_test) == TEST_IMAGES["digits"]


@pytest.mark.parametrize("same", [True, False])
def test_equal_ledgers_are_reproduced(same):
    lines = compare(published(), published(), same)
    assert [e["class"] for e in lines] == KINDS
    assert all(e["ok"] and e["said"] == "" and e["deviation"] == 0 for e in lines)
    assert report(lines, same).startswith(
        "3 of 3 figures reproduced, largest deviation 0; compared"
    )


IMAGE = 100 / 360  # points
BYTE = 0.125 * (1 + 1e-6)


@pytest.mark.parametrize(
    "row, change, said",
    [
        (0, dict(effect=0.125 * (1 + RELATIVE / 2)), ""),
        (0, dict(effect=BYTE, ci_low=BYTE, ci_high=BYTE), "must be equal everywhere"),
        (0, dict(ci_high=BYTE), "ci_high 0.12500"),
        (1, dict(effect=4 + 0.99 * IMAGES * IMAGE, ci_low=4.7, ci_high=4.9), ""),
        (1, dict(effect=4 - 0.99 * IMAGES * IMAGE, ci_low=3.0, ci_high=3.4), ""),
        (1, dict(effect=4 + 1.01 * IMAGES * IMAGE), "3.03 test images apart; 3 are allowed"),
        (2, dict(effect=0.7, ci_low=0.59, ci_high=0.9), ""),
        (2, dict(effect=0.7, ci_low=0.61, ci_high=0.9), "apart from the published interval"),
        (2, dict(effect=0.3, ci_low=0.2, ci_high=0.39), "apart from the published interval"),
        (0, dict(verdict="partly"), "published as supported, here partly"),
        (1, dict(verdict="contradicted"), "published as supported, here contradicted"),
        (2, dict(verdict="inconclusive"), "published as supported, here inconclusive"),
    ],
)
def test_another_machine_tolerates_what_it_should_and_no_more(row, change, said):
    lines = compare(changed(row, **change), published(), same_machine=False)
    assert [e["ok"] for e in lines] == [not (said and k == row) for k in range(3)]
    assert (said in lines[row]["said"]) and (lines[row]["said"] == "") == (said == "")
    assert f"{3 - bool(said)} of 3 figures" in report(lines, False)


@pytest.mark.parametrize("row", range(3))
@pytest.mark.parametrize("column", ["effect", "ci_low", "ci_high", "seeds"])
def test_the_same_machine_tolerates_no_bit(row, column):
    value = published().loc[row, column]
    other = value + 1 if column == "seeds" else math.nextafter(value, 1)
    line = compare(changed(row, **{column: other}), published(), same_machine=True)[row]
    assert not line["ok"] and f"same machine and versions, but {column}" in line["said"]
    assert compare(changed(row, **{column: other}), published(), same_machine=False)[row]["ok"]


def test_tiny_factors_do_not_pass_as_equal():
    old = changed(2, effect=5e-14, ci_low=4e-14, ci_high=6e-14)
    new = changed(2, effect=5e-13, ci_low=4e-13, ci_high=6e-13)
    assert not compare(new, old, same_machine=False)[2]["ok"]


def test_missing_and_new_lines_are_told():
    fresh, old = published().drop(0), published().drop(2)
    lines = compare(fresh, old, same_machine=True)
    assert [e["method"] for e in lines] == ["allreduce_sgd", "choco_sgd", "d_psgd"]
    assert [e["ok"] for e in lines] == [False, True, False]
    assert "published, but has no evidence here" in lines[0]["said"] and lines[0]["fresh"] is None
    assert "none is published" in lines[2]["said"] and lines[2]["published"] is None
    assert "1 of 2 figures reproduced" in report(lines, True)


def test_the_largest_deviation_of_each_class_is_named():
    new = changed(1, effect=4 + 2 * IMAGE)
    new.loc[2, ["effect", "ci_low", "ci_high"]] = [0.6, 0.5, 0.7]
    said = report(compare(new, published(), False), False)
    # log(0.6 / 0.5) = 0.1823 against half of log(0.6 / 0.4) = 0.2027
    assert (
        "3 of 3 figures" in said and "2 test images (table 2, row 8, choco_sgd; platform)" in said
    )
    assert "0.899 half-widths of the interval (table 2, row 1, d_psgd; statistical)" in said


TRAINS = """
from survey_lib.evidence import Case
from survey_lib.methods.server_sync import fedavg
from survey_lib.partition import dirichlet
task = dict(n=16, partition=dirichlet(0.3))
case = Case(fedavg, dict(S=8, E=1, B=10, eta=0.1), task, {}, dict(rounds=20, every=20))
print(case.run(0)["accuracy"].iloc[-1])
"""


@pytest.mark.slow
def test_other_instructions_of_the_processor_stay_within_the_tolerance():
    """The same processor as an older one: other kernels, other orders of addition."""
    older = dict(ATEN_CPU_CAPABILITY="default", MKL_CBWR="COMPATIBLE")
    found = []
    for extra in ({}, older):
        call = [sys.executable, "-c", TRAINS]
        done = subprocess.run(call, env=os.environ | extra, capture_output=True, check=True)
        found.append(float(done.stdout))
    assert found[0] > 0.7 and abs(found[0] - found[1]) * TEST_IMAGES["digits"] <= IMAGES
