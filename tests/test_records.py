"""Citation metadata, the list of published files and REPRODUCING.md: made from one source each, in
step with it, and with what their formats ask for."""

import hashlib
import json
import re
import shutil
import tomllib

import pandas as pd
import pytest

from survey_lib.errors import UsageError
from survey_lib.evidence.cost import COLUMNS
from survey_lib.report import records
from survey_lib.reproduce import HERE, RESULTS

CFF = records.citation(HERE / "CITATION.cff")
PROJECT = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
DOI = CFF["references"][0]["doi"]


def load(name):
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def test_the_tracked_metadata_is_what_the_citation_gives():
    assert load(".zenodo.json") == records.zenodo(CFF), "run `make records`"
    assert load("codemeta.json") == records.codemeta(CFF, PROJECT), "run `make records`"


def test_all_three_name_the_same_work():
    zenodo, codemeta = load(".zenodo.json"), load("codemeta.json")
    assert CFF["title"] == zenodo["title"] == codemeta["name"]
    assert CFF["version"] == zenodo["version"] == codemeta["version"] == PROJECT["version"]
    assert codemeta["license"].endswith(f"/{CFF['license']}") and zenodo["license"] == "MIT"
    assert CFF["keywords"] == zenodo["keywords"] == codemeta["keywords"]
    names = [author["name"] for author in CFF["authors"]]
    assert names == [c["name"] for c in zenodo["creators"]]
    assert names == [a["name"] for a in codemeta["author"]]
    assert str(CFF["date-released"]) == zenodo["publication_date"] == codemeta["datePublished"]
    assert zenodo["related_identifiers"][0]["identifier"] == DOI
    assert codemeta["referencePublication"]["@id"] == f"https://doi.org/{DOI}"


def test_each_has_the_fields_that_its_format_requires():
    assert CFF["cff-version"] == "1.2.0" and CFF["message"] and CFF["authors"] and CFF["title"]
    zenodo = load(".zenodo.json")
    for field in ("title", "description", "creators", "upload_type", "access_right", "license"):
        assert zenodo[field], field
    assert zenodo["upload_type"] == "software" and zenodo["access_right"] == "open"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", zenodo["publication_date"])
    assert set(zenodo["related_identifiers"][0]) >= {"identifier", "relation"}
    codemeta = load("codemeta.json")
    assert codemeta["@context"] == "https://doi.org/10.5063/schema/codemeta-2.0"
    assert codemeta["@type"] == "SoftwareSourceCode"
    assert codemeta["softwareRequirements"] == PROJECT["dependencies"]


def test_persons_are_written_as_each_format_wants_them():
    person = {"family-names": "Karimireddy", "given-names": "Sai Praneeth"}
    made = records.zenodo(CFF | {"authors": [person]})["creators"]
    assert made == [{"name": "Karimireddy, Sai Praneeth"}]
    (made,) = records.codemeta(CFF | {"authors": [person]}, PROJECT)["author"]
    assert made["@type"] == "Person" and made["name"] == "Sai Praneeth Karimireddy"


def test_a_citation_that_lacks_something_is_told(tmp_path):
    text = (HERE / "CITATION.cff").read_text().replace("license: MIT\n", "")
    (tmp_path / "CITATION.cff").write_text(text)
    with pytest.raises(UsageError, match="has no license; add it"):
        records.citation(tmp_path / "CITATION.cff")


# ---- RO-Crate -----------------------------------------------------------------------------------


def check(crate, folder):
    """What RO-Crate 1.1 asks for, and that the files are those of the folder."""
    assert crate["@context"][0] == "https://w3id.org/ro/crate/1.1/context"
    graph = crate["@graph"]
    entities = {entity["@id"]: entity for entity in graph}
    assert len(entities) == len(graph)
    head = entities[records.CRATE]
    assert head["@type"] == "CreativeWork" and head["about"] == {"@id": "./"}
    assert head["conformsTo"] == {"@id": "https://w3id.org/ro/crate/1.1"}
    root = entities["./"]
    assert root["@type"] == "Dataset" and root["name"] and root["description"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", root["datePublished"])
    for entity in graph:  # whatever is pointed at is there, but for the specification itself
        for key, value in entity.items():
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, dict) and key != "conformsTo":
                    assert one["@id"] in entities, (entity["@id"], key)
    assert {"name", "description"} <= set(entities[root["license"]["@id"]])
    assert entities[root["citation"]["@id"]]["@type"] == "ScholarlyArticle"
    assert all(entities[a["@id"]]["name"] for a in root["author"])
    listed = [part["@id"] for part in root["hasPart"]]
    there = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    assert sorted(listed) == sorted(set(there) - {records.CRATE})
    for name in listed:
        data, entity = (folder / name).read_bytes(), entities[name]
        assert entity["@type"] == "File" and entity["description"] and entity["encodingFormat"]
        assert entity["contentSize"] == str(len(data)), f"{name}: run `make records`"
        assert entity["sha256"] == hashlib.sha256(data).hexdigest(), f"{name}: run `make records`"


def test_the_published_crate_lists_the_published_files():
    check(load(f"results/{records.CRATE}"), RESULTS)


def test_a_crate_is_made_of_any_folder_twice_alike(tmp_path):
    (tmp_path / "tables").mkdir()
    for name in ("tables/table2.csv", "tables/errata.md", "evidence.csv", ".hidden.swp", "z.html"):
        (tmp_path / name).write_text(name)
    crate = records.crate(tmp_path, CFF)
    assert crate == records.crate(tmp_path, CFF)
    (tmp_path / ".hidden.swp").unlink()
    check(crate, tmp_path)
    said = {e["@id"]: e.get("description", "") for e in crate["@graph"]}
    assert said["tables/table2.csv"].startswith("Table 2: ") and "CSV" in said["tables/table2.csv"]
    assert "errata" in said["tables/errata.md"] and "ledger" in said["evidence.csv"]
    (tmp_path / "tables" / "table2.csv").write_text("other")
    with pytest.raises(AssertionError, match="make records"):
        check(crate, tmp_path)


def test_a_file_of_unknown_kind_is_told(tmp_path):
    (tmp_path / "run.exe").write_text("")
    with pytest.raises(UsageError, match="unknown kind; add .exe"):
        records.crate(tmp_path, CFF)


# ---- REPRODUCING.md -----------------------------------------------------------------------------


def test_reproducing_shows_the_published_costs():
    costs = pd.read_csv(RESULTS / "cost.csv", keep_default_na=False)
    assert records.costs_markdown(costs) in (HERE / "REPRODUCING.md").read_text(encoding="utf-8"), (
        "run `make records`"
    )


def test_reproducing_names_every_demand_and_only_what_is_there():
    text = (HERE / "REPRODUCING.md").read_text(encoding="utf-8")
    for demand in ("documented", "consistent", "complete", "exercisable", "verified and validated"):
        assert f"| *{demand}* |" in text, demand
    for badge in ("functional", "reusable", "Results reproduced"):
        assert re.search(rf"^## .*{badge}", text, re.M), badge
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (HERE / target).exists(), target
    for path in re.findall(r"`((?:tests|survey_lib|results)/[\w/.]*)`", text):
        assert (HERE / path).exists(), path
    targets = re.findall(r"^([a-z]+):", (HERE / "Makefile").read_text(), re.M)
    assert set(re.findall(r"`make (\w+)", text)) <= set(targets)


def costs(**columns):
    row = dict.fromkeys(COLUMNS, "") | dict(
        notebook="01_a", runs=3, cpu_minutes=4.0, mib=700, disk_mib=0.5, other_minutes=1.0
    )
    return pd.DataFrame([row | part for part in columns["rows"]])


def test_costs_go_to_their_table_and_the_rest_to_the_notebook():
    parts = [{"rows": "1, 3"}, {"rows": "2, text-1"}, {"rows": "2, 1", "mib": 900}, {"rows": ""}]
    lines = records.costs_markdown(costs(rows=parts)).splitlines()
    command = "`make reproduce ONLY=01`"
    assert lines[2:] == [
        f"| table 1 | {command} | 3 | 4.0 | 3.0 | 700 | 0.5 |",
        f"| table 2 | {command} | 6 | 8.0 | 6.0 | 900 | 1.0 |",
        f"| what else notebook 01 shows | {command} | 3 | 4.0 | 3.0 | 700 | 0.5 |",
        "| everything | `make reproduce` | 12 | 16.0 | 12.0 | 900 | 2.0 |",
    ]
    old = costs(rows=parts[:1]).drop(columns="disk_mib")
    assert "| 700 | not measured |" in records.costs_markdown(old)


def test_refreshing_changes_nothing_that_is_in_step(tmp_path):
    for name in ("CITATION.cff", "pyproject.toml", "REPRODUCING.md"):
        shutil.copy(HERE / name, tmp_path)
    shutil.copytree(RESULTS, tmp_path / "results")
    paths = records.refresh(tmp_path)
    assert [p.name for p in paths] == [".zenodo.json", "codemeta.json", records.CRATE]
    for path in [*paths, tmp_path / "REPRODUCING.md"]:
        assert path.read_bytes() == (HERE / path.relative_to(tmp_path)).read_bytes(), path
    (tmp_path / "REPRODUCING.md").write_text("no markers")
    with pytest.raises(UsageError, match="lacks the lines <!-- cost: begin -->"):
        records.refresh(tmp_path)
