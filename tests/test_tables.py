"""The survey as data: complete, consistent, and every reference resolves."""

import pickle
import re
import sys
import types
from pathlib import Path

import pytest

import survey_lib
from survey_lib.errors import UsageError
from survey_lib.tables import (
    TABLES,
    bibliography,
    claim,
    errata,
    find,
    reference,
    references,
    table,
)
from survey_lib.tables.schema import SURE, Claim, Erratum, Row, Table, cells

# table: rows as printed, works named in the text only, methods of the printed rows, all methods
COUNTS = {
    1: (9, 3, 16, 17),
    2: (9, 1, 16, 17),
    3: (9, 5, 13, 19),
    4: (6, 0, 29, 29),
    5: (5, 1, 6, 10),
    6: (4, 0, 20, 20),
}
every_table = pytest.mark.parametrize("t", TABLES.values(), ids=lambda t: f"table{t.number}")


def a_claim(**changed):
    fields = dict(
        method="fedavg",
        ref=41,
        text="fewer rounds",
        baseline="fedsgd",
        metric="rounds to the target",
        unit="rounds",
        effect="ratio",
        direction=-1,
        least=3.0,
    )
    return Claim(**(fields | changed))


def a_row(**changed):
    fields = dict(
        number="1", cells={"A": "a"}, cells_zh={}, refs=(41,), methods=("fedavg",), says="so"
    )
    return Row(**(fields | changed))


def a_table(**changed):
    fields = dict(
        number=9,
        title="t",
        title_zh="",
        section="2",
        notebook="n",
        columns=("A",),
        columns_zh=("",),
        rows=(a_row(),),
        errata=(),
    )
    return Table(**(fields | changed))


def test_row_and_method_counts():
    found = {}
    for number, t in TABLES.items():
        printed = [row for row in t.rows if row.in_table]
        in_rows = sum(len(row.methods) for row in printed)
        found[number] = (len(printed), len(t.rows) - len(printed), in_rows, len(t.methods))
    assert found == COUNTS
    assert len({m for t in TABLES.values() for m in t.methods}) == 106


@every_table
def test_rows_are_numbered_in_order_and_the_text_rows_follow(t):
    printed = [row.number for row in t.rows if row.in_table]
    named = [row.number for row in t.rows if not row.in_table]
    assert printed == [str(i + 1) for i in range(len(printed))]
    assert named == [f"text-{i + 1}" for i in range(len(named))]
    assert [row.number for row in t.rows] == printed + named


@every_table
def test_cells_fit_the_columns_and_say_which_works_they_cite(t):
    assert t.columns[-1] == "Reference"
    for row in t.rows:
        if not row.in_table:
            assert row.cells == {}
            continue
        assert tuple(row.cells) == t.columns and all(row.cells.values())
        # "[96–97,99]" names 96, 97, 99
        cited = []
        for part in row.cells["Reference"].strip("[]").split(","):
            first, *last = (int(n) for n in re.split("[-–]", part))
            cited += range(first, (last or [first])[0] + 1)
        assert row.refs == tuple(cited)


@every_table
def test_a_method_stands_in_one_printed_row_of_a_table(t):
    ids = [m for row in t.rows if row.in_table for m in row.methods]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", m) for m in t.methods)
    assert all(row.methods for row in t.rows)


@every_table
def test_every_reference_resolves_and_can_be_found(t):
    for row in t.rows:
        for number in row.refs:
            entry = reference(number)
            assert entry["author"] and entry["title"] and re.fullmatch(r"\d{4}", entry["year"])
            assert {"doi", "eprint", "url", "note"} & set(entry), number


def test_references_are_read_whole():
    entries = references()
    assert entries["survey"]["doi"] == "10.13374/j.issn2095-9389.2022.09.26.004"
    assert reference(41)["eprint"] == "1602.05629"
    assert reference(41)["title"].startswith("Communication-efficient learning")
    for key, entry in entries.items():
        assert ("eprint" in entry) == (entry.get("archivePrefix") == "arXiv"), key
        assert re.fullmatch(r"\d{4}\.\d{4,5}", entry.get("eprint", "0000.0000")), key
        assert not any("{" in value or "}" in value for value in entry.values()), key
        if not re.fullmatch(r"survey|ref\d+", key):
            assert entry["note"].startswith("not in the survey's list"), key
    assert reference(122)["author"].split(" and ")[1] == "Pereyra, G."


def test_references_are_handed_out_as_copies():
    references()["ref41"]["title"] = "changed"
    reference(41)["title"] = "changed"
    assert reference(41)["title"] != "changed"


def test_errata_are_complete_and_none_is_from_memory():
    assert {number for number, _ in errata.errata()} == {None, *TABLES}
    for _, erratum in errata.errata():
        for text in (erratum.place, erratum.stands, erratum.really, erratum.source):
            assert text.strip()
            assert not re.search("recall|pilot|not checked", text, re.IGNORECASE), text


def test_works_that_errata_call_missing_are_in_the_bibliography():
    eprints = {entry.get("eprint") for entry in references().values()}
    for _, erratum in errata.errata():
        for number in re.findall(r"arXiv (\d{4}\.\d{5})", erratum.stands + erratum.really):
            assert number in eprints, number


def test_the_table_of_errata_has_each_once_with_what_it_says():
    frame = errata.frame()
    assert tuple(frame.columns) == errata.COLUMNS
    assert len(frame) == len(frame.drop_duplicates()) == len(errata.errata())
    assert len(frame) == sum(len(t.errata) for t in TABLES.values()) + len(errata.GENERAL)
    assert set(frame["how sure"]) == set(SURE)
    assert frame[frame["table"] == ""]["place"].tolist() == [e.place for e in errata.GENERAL]


def test_every_numbered_work_that_an_erratum_names_is_one_of_the_surveys_126():
    for _, erratum in errata.errata():
        for text in (erratum.place, erratum.stands, erratum.really, erratum.source):
            for part in re.findall(r"\[([\d,–-]+)\]", text):
                assert all(1 <= int(n) <= 126 for n in re.findall(r"\d+", part)), text


def test_every_line_of_the_ledger_and_every_claim_resolves_to_a_citable_work():
    from survey_lib.evidence import ledger
    from survey_lib.reproduce import RESULTS
    from survey_lib.tables.claims import CLAIMS

    lines = ledger.load(RESULTS / "evidence.csv")
    cited = {*lines["ref"], *(stated.ref for stated in CLAIMS.values())}
    cited |= {number for t in TABLES.values() for row in t.rows for number in row.refs}
    for number in sorted(cited):
        entry = reference(int(number))
        assert {"doi", "eprint", "url"} & set(entry) or "no DOI" in entry["note"], number
        if "doi" in entry:
            assert re.fullmatch(r"10\.\d{4,9}/\S+", entry["doi"]), number


def test_every_entry_has_an_author_a_title_and_a_year_and_balanced_braces():
    for key, entry in references().items():
        assert entry["author"] and entry["title"] and re.fullmatch(r"\d{4}", entry["year"]), key
    for entry in re.split(r"\n(?=@)", bibliography())[1:]:
        assert entry.count("{") == entry.count("}") and entry.rstrip().endswith("\n}"), entry


def test_every_arxiv_number_in_the_library_is_in_the_bibliography():
    known = bibliography()
    for path in Path(survey_lib.__file__).parent.rglob("*.py"):
        found = re.findall(r"(?i)arxiv[ :]+(\d{4}\.\d{4,5})", path.read_text())
        assert all(number in known for number in found), (path.name, found)


def test_find_gives_every_place_of_a_method():
    assert [(t.number, row.number) for t, row in find("fedavg")] == [(1, "1"), (1, "text-3")]
    assert [(t.number, row.number) for t, row in find("sasgd")] == [(1, "6"), (3, "7")]
    assert find("no_such_method") == []


def test_unknown_numbers_are_usage_errors_that_name_the_known():
    assert table(4).notebook == "03_non_iid"
    with pytest.raises(UsageError, match=r"no table 7.*1, 2, 3, 4, 5, 6"):
        table(7)
    with pytest.raises(UsageError, match=r"no number 999.*38, 40, 41"):
        reference(999)


def test_claim_looks_a_method_up(monkeypatch):
    module = types.ModuleType("survey_lib.tables.claims")
    module.CLAIMS = {(1, "fedavg"): a_claim()}
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert claim("fedavg") == claim("fedavg", 1) == a_claim()
    with pytest.raises(UsageError, match=r"no claim for 'sasgd'.*fedavg"):
        claim("sasgd")
    with pytest.raises(UsageError, match=r"no claim for 'fedavg' in table 3"):
        claim("fedavg", 3)


@pytest.mark.parametrize(
    "changed",
    [
        {"effect": "percent"},
        {"direction": 0},
        {"direction": 2},
        {"least": 0.0},  # no factor is 0 or below
        {"least": -2.0},
        {"least": float("nan")},
        {"effect": "difference", "least": float("inf")},
        {"seeds": 1},
        {"baseline": " "},
        {"method": ""},
    ],
)
def test_a_claim_that_cannot_be_judged_is_refused(changed):
    with pytest.raises(UsageError):
        a_claim(**changed)


def test_a_claim_may_carry_a_margin_of_being_no_worse():
    assert a_claim(effect="difference", least=-0.5, direction=1).seeds == 5
    assert a_claim(effect="ratio", least=1 / 1.5).least < 1


def test_every_claim_is_about_a_method_of_a_table_and_a_work_of_the_list():
    from survey_lib.tables.claims import CLAIMS

    for (number, method), stated in CLAIMS.items():
        assert stated.method == method and method in TABLES[number].methods, method
        assert reference(stated.ref), method


@pytest.mark.parametrize(
    "make",
    [
        lambda: a_row(number="row 1"),
        lambda: a_row(methods=("fedavg", "fedavg")),
        lambda: a_row(refs=()),
        lambda: a_row(says=" "),
        lambda: cells(("A", "B"), "a"),
        lambda: Erratum("row 1", "this", "that", "[41]", sure="maybe"),
        lambda: Erratum("row 1", "this", "", "[41]", sure="checked"),
        lambda: a_table(rows=(a_row(), a_row())),
        lambda: a_table(rows=(a_row(cells={}),)),
        lambda: a_table(rows=(a_row(number="text-1"),)),
        lambda: a_table(rows=(a_row(cells_zh={"B": "b"}),)),
        lambda: a_table(columns_zh=()),
    ],
)
def test_schema_refuses_what_does_not_fit(make):
    with pytest.raises(UsageError):
        make()


def test_tables_travel_to_other_processes():
    assert pickle.loads(pickle.dumps(TABLES)) == TABLES
