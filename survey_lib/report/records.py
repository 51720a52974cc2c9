"""What archives, indexers and reviewers read, made from what there is once: CITATION.cff (how to
cite this), the files in results/ (what is published) and results/cost.csv (what it costs).

Everything here gives the same bytes for the same input; the date is that of CITATION.cff.
"""

import hashlib
import json
import tomllib
from pathlib import Path

import pandas as pd
import yaml

from survey_lib.errors import UsageError
from survey_lib.evidence.cost import COLUMNS
from survey_lib.evidence.store import write_atomic
from survey_lib.tables import TABLES

CRATE = "ro-crate-metadata.json"
FORMATS = {
    "bib": "application/x-bibtex",
    "csv": "text/csv",
    "html": "text/html",
    "json": "application/json",
    "md": "text/markdown",
    "png": "image/png",
    "svg": "image/svg+xml",
    "tex": "application/x-tex",
}
FILES = {
    "evidence.csv": "The ledger: one line per table, row and method, with claim, effect, verdict.",
    "cost.csv": "CPU minutes, memory and disk of each section of the notebooks, as measured.",
    "manifest.json": "What the figures depend on: settings, data by SHA-256, versions, machine.",
    "references.bib": "Every work that a row, a claim or an erratum rests on, as BibTeX.",
    "report.html": "The report: all tables with their evidence on one page.",
    "bench.csv": "Speed of local training beside other systems.",
    "scale.csv": "Seconds and memory against devices, cohort, nodes and arrivals.",
}


def refresh(here: Path) -> list[Path]:
    """Write all records of the project in `here`; returns their paths."""
    cff, project = citation(here / "CITATION.cff"), here / "pyproject.toml"
    project = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    costs = pd.read_csv(here / "results" / "cost.csv", keep_default_na=False)
    fill(here / "REPRODUCING.md", "cost", costs_markdown(costs))
    made = {
        ".zenodo.json": zenodo(cff),
        "codemeta.json": codemeta(cff, project),
        f"results/{CRATE}": crate(here / "results", cff),
    }
    return [
        write_atomic(here / name, json.dumps(what, indent=2, ensure_ascii=False) + "\n")
        for name, what in made.items()
    ]


def fill(path: Path, name: str, text: str) -> None:
    """Put `text` between the markers of that name in a Markdown file."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise UsageError(f"{path} lacks the lines {begin} and {end}; put them back where it goes")
    write_atomic(path, f"{before}{begin}\n{text}{end}{after}")


# ---- how to cite --------------------------------------------------------------------------------


def citation(path: Path) -> dict:
    """CITATION.cff as read; UsageError where it lacks what the other forms need."""
    cff = yaml.safe_load(path.read_text(encoding="utf-8"))
    wanted = "title abstract version license authors keywords references date-released".split()
    missing = [field for field in wanted if not cff.get(field)]
    if missing:
        raise UsageError(f"{path} has no {', '.join(missing)}; add it, all records are made of it")
    return cff


def zenodo(cff: dict) -> dict:
    """.zenodo.json: the metadata of a deposit."""
    survey = _survey(cff)
    article = {"relation": "isSupplementTo", "resource_type": "publication-article"}
    return {
        "title": cff["title"],
        "upload_type": "software",
        "description": cff["abstract"].strip(),
        "creators": [{"name": _inverted(author)} for author in cff["authors"]],
        "publication_date": str(cff["date-released"]),
        "access_right": "open",
        "license": cff["license"],
        "version": cff["version"],
        "keywords": cff["keywords"],
        "language": "eng",
        "related_identifiers": [{"identifier": survey["doi"], "scheme": "doi", **article}],
    }


def codemeta(cff: dict, project: dict) -> dict:
    """codemeta.json, version 2.0. project: the table of that name in pyproject.toml."""
    return {
        "@context": "https://doi.org/10.5063/schema/codemeta-2.0",
        "@type": "SoftwareSourceCode",
        "name": cff["title"],
        "identifier": project["name"],
        "description": cff["abstract"].strip(),
        "version": cff["version"],
        "license": _license(cff),
        "author": [_agent(author) for author in cff["authors"]],
        "datePublished": str(cff["date-released"]),
        "keywords": cff["keywords"],
        "programmingLanguage": "Python",
        "runtimePlatform": f"CPython {project['requires-python']}",
        "softwareRequirements": project["dependencies"],
        "referencePublication": _article(cff) | {"author": _people(_survey(cff))},
    }


# ---- what is published --------------------------------------------------------------------------


def crate(folder: Path, cff: dict) -> dict:
    """The RO-Crate 1.1 of the published results: every file under `folder` with its size in bytes
    and SHA-256, the licence, the authors, and the survey."""
    paths = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    paths = [p for p in paths if p != CRATE and not any(s[0] == "." for s in p.split("/"))]
    authors = [_agent(a) | {"@id": f"#author-{k}"} for k, a in enumerate(cff["authors"], 1)]
    people = [p | {"@id": f"#survey-{k}"} for k, p in enumerate(_people(_survey(cff)), 1)]
    article = _article(cff) | {"author": _ids(people)}
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": f"Published results of: {cff['title']}",
        "description": (
            "The survey's tables with the measured evidence beside each cell, the ledger that they "
            f"are made from, figures, errata, references and costs. {cff['abstract'].strip()}"
        ),
        "datePublished": str(cff["date-released"]),
        "version": cff["version"],
        "license": {"@id": _license(cff)},
        "author": _ids(authors),
        "keywords": ", ".join(cff["keywords"]),
        "citation": {"@id": article["@id"]},
        "hasPart": [{"@id": path} for path in paths],
    }
    head = {
        "@id": CRATE,
        "@type": "CreativeWork",
        "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
        "about": {"@id": "./"},
    }
    terms = {
        "@id": _license(cff),
        "@type": "CreativeWork",
        "name": f"{cff['license']} licence",
        "description": f"The terms that SPDX lists as {cff['license']}; see the file LICENSE.",
    }
    files = [_file(folder, path) for path in paths]
    return {
        "@context": [
            "https://w3id.org/ro/crate/1.1/context",
            {"sha256": "http://schema.org/sha256"},
        ],
        "@graph": [head, root, *files, terms, *authors, article, *people],
    }


def _file(folder, path):
    data, (stem, _, kind) = (folder / path).read_bytes(), Path(path).name.rpartition(".")
    if kind not in FORMATS:
        raise UsageError(f"{folder / path}: a file of unknown kind; add .{kind} to FORMATS")
    return {
        "@id": path,
        "@type": "File",
        "name": Path(path).name,
        "description": _description(path, stem, kind),
        "encodingFormat": FORMATS[kind],
        "contentSize": str(len(data)),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _description(path, stem, kind):
    as_kind = {"csv": "CSV", "md": "Markdown", "tex": "LaTeX", "html": "HTML"}.get(kind, kind)
    if path.startswith("tables/") and stem == "errata":
        return f"The errata found in the survey, as {as_kind}."
    for number, table in TABLES.items():
        if path.startswith("tables/") and stem == f"table{number}":
            return f"Table {number}: {table.title}, with the evidence beside each cell; {as_kind}."
    if path.startswith("figures/"):
        return f"A figure of the notebooks and the report: {stem.replace('_', ' ')}."
    return FILES.get(path, f"A published file: {path}.")


def _survey(cff):
    return cff["references"][0]


def _license(cff):
    return f"https://spdx.org/licenses/{cff['license']}"


def _inverted(author):
    parts = [author.get("family-names"), author.get("given-names")]
    return author.get("name") or ", ".join(filter(None, parts))


def _agent(author):
    if "name" in author:  # an entity, as CITATION.cff calls it
        return {"@type": "Organization", "name": author["name"]}
    names = {"givenName": author.get("given-names"), "familyName": author.get("family-names")}
    names = {key: value for key, value in names.items() if value}
    return {"@type": "Person", **names, "name": " ".join(names.values())}


def _people(reference):
    return [_agent(author) for author in reference["authors"]]


def _article(cff):
    survey = _survey(cff)
    return {
        "@id": f"https://doi.org/{survey['doi']}",
        "@type": "ScholarlyArticle",
        "name": survey["title"],
        "isPartOf": f"{survey['journal']} {survey['volume']}({survey['issue']})",
        "pagination": f"{survey['start']}-{survey['end']}",
        "datePublished": str(survey["year"]),
    }


def _ids(entities):
    return [{"@id": entity["@id"]} for entity in entities]


# ---- what it costs ------------------------------------------------------------------------------


def costs_markdown(costs: pd.DataFrame) -> str:
    """The table of costs (evidence/cost.py) by table of the survey and by what else a notebook has,
    as Markdown. Minutes on two processes: half of the CPU time, and the time of the other cells."""
    costs = costs.reindex(columns=COLUMNS)  # one published before a column was there lacks it
    first = costs["rows"].astype(str).str.extract(r"^(\d+), ")[0]
    lines = [
        "| what | command | runs | CPU min | min on two processes | MiB a process | MiB on disk |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]

    def line(what, command, part):
        cpu, other = part["cpu_minutes"].sum(), part["other_minutes"].sum()
        disk = pd.to_numeric(part["disk_mib"]).sum(min_count=1)
        figures = [
            f"{part['runs'].sum():.0f}",
            f"{cpu:.1f}",
            f"{cpu / 2 + other:.1f}",
            f"{part['mib'].max():.0f}" if part["runs"].sum() else "none",
            "not measured" if pd.isna(disk) else f"{disk:.1f}",
        ]
        lines.append(f"| {' | '.join([what, command, *figures])} |")

    for notebook, part in costs.groupby("notebook"):
        command = f"`make reproduce ONLY={notebook[:2]}`"
        for number in sorted(first[part.index].dropna().unique(), key=int):
            line(f"table {number}", command, part[first[part.index] == number])
        line(f"what else notebook {notebook[:2]} shows", command, part[first[part.index].isna()])
    line("everything", "`make reproduce`", costs)
    return "\n".join([*lines, ""])
