"""The glossary as a page: each term with its meaning, and which notebooks and tables use it."""

import json
import re
from pathlib import Path

from survey_lib.tables import TABLES
from survey_lib.tables.claims import CLAIMS
from survey_lib.tables.glossary import TERMS


def glossary(notebooks: Path) -> str:
    """The terms as Markdown, by alphabet, for a file in results/ beside the folder `notebooks`."""
    texts, lines = _texts(notebooks), []
    for term in TERMS:
        used = [place for place, text in texts.items() if found(term.english, text)]
        cells = (f"**{term.english}**", term.chinese, term.meaning, ", ".join(used) or "library")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        [
            "# Glossary 术语表",
            "",
            "The field's terms as the survey and the notebooks use them. 综述与笔记本所用的术语。",
            "",
            "| term | 中文 | meaning | used in |",
            "|---|---|---|---|",
            *lines,
            "",
        ]
    )


def found(english: str, text: str) -> bool:
    """Whether a term, or a word that begins with it, stands in a text."""
    words = r"[\s-]+".join(map(re.escape, re.split(r"[\s-]+", english)))
    return re.search(rf"(?<![\w-]){words}", text, re.IGNORECASE) is not None


def _texts(notebooks):
    """{link: text} of the prose of the notebooks, and of the tables with their claims."""
    texts = {}
    for path in sorted(notebooks.glob("[0-9][0-9]_*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        prose = ("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        texts[f"[{path.stem[:2]}](../notebooks/{path.name})"] = "\n".join(prose)
    for number, table in TABLES.items():
        said = [v for row in table.rows for v in (row.says, *row.cells.values())]
        said += [claim.text for (where, _), claim in CLAIMS.items() if where == number]
        texts[f"[table {number}](tables/table{number}.md)"] = "\n".join([table.title, *said])
    return texts
