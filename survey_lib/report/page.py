"""The report page: all evidence on one page of HTML that needs nothing beside itself."""

import base64
import html
import math
import re
from collections import Counter
from hashlib import sha256
from importlib import resources
from pathlib import Path
from urllib.parse import quote

import nbformat
import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from survey_lib.errors import UsageError
from survey_lib.evidence.discoveries import sentence
from survey_lib.report.tables import claimed, elsewhere, summary
from survey_lib.report.text import NO_EVIDENCE, VERDICTS, effect_text, number
from survey_lib.tables import TABLES, claim, errata, references

WIDTH, EDGE = 240, 8  # of a drawn interval, in pixels
FIGURE = re.compile(
    r'<img src="(data:image/png;base64,[A-Za-z0-9+/=]+)" alt="([^"]*)"'
    r".*?<figcaption[^>]*>(.*?)</figcaption>",
    re.S,
)


def page(ledger: pd.DataFrame, manifest: dict, *, figures=(), books=(), citation: Path) -> str:
    """The page of a ledger: equal input gives equal bytes.

    manifest: what the evidence depends on. figures: HTML as `show` returns it. books: paths of the
    notebooks, whose sections the lines link to. citation: CITATION.cff.
    """
    headings = sections(books)
    cite = yaml.safe_load(Path(citation).read_text(encoding="utf-8"))
    tables = [_table(table, ledger, headings) for table in TABLES.values()]
    used = {n for table in TABLES.values() for row in table.rows for n in row.refs}
    bib = references()
    works = {n: _cited(bib[f"ref{n}"]) for n in sorted(used | {*ledger["ref"]}) if f"ref{n}" in bib}
    known = Counter(ledger["verdict"])
    style, script = (_file(f"page.{kind}") for kind in ("css", "js"))
    style = "\n".join([*_tones(), style])
    template = Environment(
        loader=PackageLoader("survey_lib", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    ).get_template("page.html")
    return template.render(
        style=style,
        script=script,
        hashes=[_digest(style), _digest(script)],
        verdicts={
            v: dict(name=v, symbol=VERDICTS[v][0], slug=slug(v), count=known[v]) for v in VERDICTS
        },
        tables=tables,
        total=len(ledger),
        fleets=sorted({*ledger["devices"]} - {""}),
        seeds=(int(ledger["seeds"].min()), int(ledger["seeds"].max())) if len(ledger) else (0, 0),
        figures=[_figure(figure) for figure in figures],
        errata=[
            (f"Table {table.number} and section {table.section}", table.errata)
            for table in TABLES.values()
            if table.errata
        ]
        + [("Elsewhere", errata.GENERAL)],
        chance=sentence(ledger).replace("`", ""),
        works=works,
        cite=cite,
        survey=cite["references"][0],
        manifest=_flat(manifest),
        scale=manifest.get("scale", ""),
    )


def sections(books) -> dict[tuple[str, str], str]:
    """By (notebook, method): the heading under which its claim is judged."""
    found = {}
    for path in books:
        heading = ""
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                heading = ([heading, *re.findall(r"^##+ (.*?)\s*$", cell.source, re.M)])[-1]
            for method in re.findall(r'lab\.(?:record|judge)\(\s*"(\w+)"', cell.source):
                found.setdefault((path.stem, method), heading)
    return found


def shown(png: Path, books) -> list[str]:
    """The figure in the file `png` as the notebooks show it, with its sentence and caption: a list
    of one, or of none where there is no such file or no notebook shows it."""
    if not png.exists():
        return []
    data = base64.b64encode(png.read_bytes()).decode()
    for path in books:
        cells = nbformat.read(path, as_version=4).cells
        outputs = [o for cell in cells for o in cell.get("outputs", [])]
        for text in (o.get("data", {}).get("text/html", "") for o in outputs):
            if data in text:
                return [text]
    return []


def slug(verdict: str) -> str:
    """A verdict as the name of a class."""
    return verdict.replace(" ", "-")


def drawn(line, least: float) -> dict:
    """Where an interval, the least effect and no effect lie on a bar of WIDTH pixels, and the same
    as a sentence. line: a line of the ledger. least: in the ledger's unit, in the claimed
    direction; factors have a logarithmic axis."""
    ratio = line.unit == "x"
    axis = (lambda v: math.log(max(v, 1e-300))) if ratio else float
    values = dict(
        low=line.ci_low, high=line.ci_high, effect=line.effect, least=least, none=1.0 * ratio
    )
    if not all(map(math.isfinite, values.values())):
        raise UsageError(f"{line.method}: {values} cannot be drawn; a ledger has finite numbers")
    at = {name: axis(value) for name, value in values.items()}
    left, right = min(at.values()), max(at.values())
    span = (right - left) or 1.0
    x = {
        name: round(EDGE + (WIDTH - 2 * EDGE) * (value - left) / span, 1)
        for name, value in at.items()
    }
    unit = "" if ratio else f" {line.unit}"
    sign = "x" if ratio else ""
    sentence = (
        f"{line.method}, {line.metric}, against {line.baseline}: "
        f"{effect_text(line.effect, line.ci_low, line.ci_high, line.unit)}; least effect "
        f"{sign}{number(least)}{unit}, no effect {sign}{values['none']:g}; {line.verdict}."
    )
    return x | dict(sentence=sentence)


def _table(table, ledger, headings):
    rows = [_row(table, row, ledger, headings) for row in table.rows]
    columns = list(zip(table.columns, table.columns_zh, strict=True))
    return dict(table=table, columns=columns, rows=rows, summary=summary(table, ledger))


def _row(table, row, ledger, headings):
    here = (ledger["table"] == table.number) & (ledger["row"] == row.number)
    known, lines = ledger[here], []
    for method in dict.fromkeys([*row.methods, *known["method"]]):
        for found in list(known[known["method"] == method].itertuples()) or [None]:
            place = None if found else elsewhere(table, row, method)
            lines.append(_line(method, found, place, headings))
    cells = [
        (column, row.cells.get(column, ""), row.cells_zh.get(column, ""))
        for column in table.columns
    ]
    return dict(row=row, id=f"t{table.number}-r{row.number}", cells=cells, lines=lines)


def _line(method, found, place, headings):
    """What the page shows of one method in one row: evidence, where else it is, or that there is
    none."""
    if found is None:
        verdict = "" if place else NO_EVIDENCE
        return dict(method=method, found=None, place=place, verdict=verdict)
    stated = claim(method, found.table)
    least = stated.least**stated.direction if found.unit == "x" else stated.least * stated.direction
    heading = headings.get((found.notebook, method), "")
    anchor = f"#{quote(heading.replace(' ', '-'))}" if heading else ""
    return dict(
        method=method,
        found=found,
        place=None,
        verdict=found.verdict,
        effect=effect_text(found.effect, found.ci_low, found.ci_high, found.unit),
        claimed=claimed(stated),
        bar=drawn(found, least),
        larger=stated.direction > 0,
        link=f"../notebooks/{found.notebook}.ipynb{anchor}",
        heading=heading or found.notebook,
        devices=found.devices,
        data=found.dataset if found.scale == "full" else f"{found.dataset} ({found.scale})",
    )


def _figure(text):
    source, alt, caption = FIGURE.search(text).groups()
    return dict(source=source, alt=html.unescape(alt), caption=html.unescape(caption))


def _cited(entry):
    """An entry of references.bib as who, title, where and the address of the work."""
    who = re.sub(" and ", "; ", entry["author"].replace(" and others", " et al"))
    house = next((entry[k] for k in ("journal", "booktitle", "howpublished") if k in entry), "")
    preprint = f"arXiv:{entry['eprint']}" if "eprint" in entry else ""
    where = filter(
        None, [preprint if house in ("", "arXiv") else house, entry.get("volume"), entry["year"]]
    )
    address = entry.get("url", "")
    if preprint:
        address = f"https://arxiv.org/abs/{entry['eprint']}"
    if "doi" in entry:
        address = f"https://doi.org/{quote(entry['doi'])}"
    return dict(who=who.rstrip("."), title=entry["title"], where=", ".join(where), address=address)


def _flat(value, name=""):
    """A manifest as (name, text) of every leaf."""
    if isinstance(value, dict):
        return [leaf for k in value for leaf in _flat(value[k], f"{name}, {k}" if name else k)]
    return [(name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))]


def _tones():
    """The verdicts' colours as rules of style."""
    return [f".{slug(v)} {{ --light: {colour}; }}" for v, (_, colour, _) in VERDICTS.items()]


def _file(name):
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(text):
    """What the page's own policy knows its style and script by: no other runs."""
    return f"sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}"
