"""The survey's tables with the evidence beside each cell, as HTML, CSV, Markdown and LaTeX."""

import html as web
import math
import re
from collections import Counter
from numbers import Number
from pathlib import Path

import pandas as pd
from IPython.display import HTML

from survey_lib.errors import UsageError
from survey_lib.evidence.store import write_atomic
from survey_lib.report.text import NO_EVIDENCE, VERDICTS, effect_text, interval, number, plus_minus
from survey_lib.tables import TABLES, find
from survey_lib.tables.claims import CLAIMS

EVIDENCE = ["method", "measured effect", "verdict", "baseline", "seeds", "dataset"]
LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {c: f"{{{c}}}" for c in "[]*"}  # "\\ [" is a length
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {c: f"{LATEX.get(c, c)}\\allowbreak{{}}" for c in "_/"}  # an id may be longer than a cell
LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$"}


CHINESE = re.compile(r"[\u2e80-\u9fff\uff00-\uffef][\u2e80-\u9fff\uff00-\uffef“”]*")
ZH = r"""% \newcommand{\zh}[1]{#1} before this shows the Chinese terms (XeLaTeX, package ctex)
\providecommand{\zh}[1]{}
"""


def survey_table(table, ledger: pd.DataFrame) -> pd.DataFrame:
    """The table as the survey prints it, with a line per row and method for what was measured, or
    where else it was. After an English heading or cell stands the Chinese term of the survey's
    text, where it has one."""
    lines = []
    for row in table.rows:
        known = _lines_of(ledger, table, [row])
        terms = getattr(row, "cells_zh", {})
        cells = [f"{row.cells.get(c, '')} {terms.get(c, '')}".strip() for c in table.columns]
        if not getattr(row, "in_table", True):
            cells[0] = f"{cells[0]} (in the text only)".strip()
        for method in dict.fromkeys([*row.methods, *known.method]) or [""]:
            for found in list(known[known.method == method].itertuples()) or [None]:
                place = None if found else elsewhere(table, row, method)
                lines.append([*cells, method, *_evidence(found, place, table)])
                cells = [""] * len(cells)  # shown once per row
    terms = getattr(table, "columns_zh", [""] * len(table.columns))
    columns = [f"{c} (survey)" if c in EVIDENCE else c for c in table.columns]
    columns = [f"{c} {zh}".strip() for c, zh in zip(columns, terms, strict=True)]
    return pd.DataFrame(lines, columns=[*columns, *EVIDENCE])


def own_lines(lines: pd.DataFrame) -> pd.DataFrame:
    """The lines of a reader's own method, as `compare` makes them, in the form of the tables."""
    rows = [[e.table, e.row, e.method, *_evidence(e, None, None)] for e in lines.itertuples()]
    return pd.DataFrame(rows, columns=["table", "scene", *EVIDENCE])


def summary(table, ledger: pd.DataFrame) -> str:
    """One line: how many rows of the table have evidence, and which verdicts came out."""
    rows, methods, known = tally(table, ledger)
    text = f"Table {table.number}: {rows} of {len(table.rows)} rows with evidence"
    if not known:
        return text
    claims = f", {known.total()} claims" if known.total() != methods else ""
    verdicts = ", ".join(f"{known[v]} {v}" for v in VERDICTS if known[v])
    return f"{text}, {methods} method{'s' if methods > 1 else ''}{claims}: {verdicts}"


def tally(table, ledger: pd.DataFrame) -> tuple[int, int, Counter]:
    """Of a table: rows with evidence, methods in the ledger, and how many lines of each verdict."""
    known = _lines_of(ledger, table, table.rows)
    there = set(zip(ledger.table.astype(str), ledger.row.astype(str), strict=True))
    have = [
        any((*map(str, place),) in there for place in _places(table, row)) for row in table.rows
    ]
    return sum(have), len(known[["row", "method"]].drop_duplicates()), Counter(known.verdict)


def outcomes(ledger: pd.DataFrame) -> pd.DataFrame:
    """The ledger for readers: where a claim stands, what it says, what came out."""
    effect = [effect_text(e.effect, e.ci_low, e.ci_high, e.unit) for e in ledger.itertuples()]
    columns = ["table", "row", "method", "claim", "baseline", "metric"]
    return ledger[columns].assign(effect=effect, verdict=ledger["verdict"])


def counts(ledger: pd.DataFrame) -> pd.DataFrame:
    """How many lines of each table have which verdict, and all together."""
    verdicts = [v for v in VERDICTS if v != NO_EVIDENCE]
    found = pd.crosstab(ledger["table"], ledger["verdict"])
    found = found.reindex(index=sorted(TABLES), columns=verdicts, fill_value=0)
    found.loc["all"] = found.sum()
    return found.assign(all=found.sum(axis=1)).rename_axis("table").rename_axis("", axis=1)


def badge(verdict: str) -> HTML:
    """A verdict as a symbol and a word on a colour."""
    if verdict not in VERDICTS:
        raise UsageError(f"unknown verdict {verdict!r}; expected one of {', '.join(VERDICTS)}")
    symbol, colour, _ = VERDICTS[verdict]
    look = f"background:{colour};color:#FFFFFF;padding:1px 6px;border-radius:3px;white-space:nowrap"
    return HTML(f'<span style="{look}">{symbol} {verdict}</span>')


def verdict_html(verdict) -> str:
    """The paragraph under an experiment: claim, both means with their spread, effect, verdict."""
    claim, effect = verdict.claim, verdict.effect
    unit = "" if claim.effect == "ratio" and claim.unit == "x" else f" {claim.unit}"
    means = [
        plus_minus(*map(float, interval(list(v.values()))))
        for v in (verdict.values, verdict.baseline)
    ]
    span = effect_text(
        effect.effect,
        *sorted((effect.low, effect.high)),
        "x" if claim.effect == "ratio" else claim.unit,
    )
    measured = (
        f" Measured, {claim.metric}: {means[0]}{unit} against {means[1]}{unit} for "
        f"{claim.baseline} ({effect.seeds} seeds, mean \u00b1 95 %); effect {span}, "
        f"claimed {claimed(claim)}."
    )
    for who, count in zip((claim.method, claim.baseline), verdict.missed, strict=True):
        if count:
            measured += (
                f" {count} of {effect.seeds} runs of {who} never got to the target and count "
            )
            measured += "with what they had spent at the end."
    head = f"<b>{claim.method}</b>: {badge(effect.verdict).data} <i>{web.escape(claim.text)}</i>"
    return f'<p style="margin:8px 0px">{head}{web.escape(measured)}</p>'


def claimed(claim) -> str:
    """The direction and the least effect of a claim in words."""
    side, ratio = {1: "larger", -1: "smaller"}[claim.direction], claim.effect == "ratio"
    if (claim.least < 1) if ratio else (claim.least < 0):  # a margin
        other = {1: "smaller", -1: "larger"}[claim.direction]
        return f"at most {f'a factor {1 / claim.least:.3g}' if ratio else -claim.least} {other}"
    if ratio:
        return f"{side} by a factor {'of' if claim.least > 1 else 'above'} {number(claim.least)}"
    return f"{side} by {claim.least:g} {claim.unit} or more"


def html(frame: pd.DataFrame, caption: str | None = None) -> HTML:
    """`frame` with inline styles only; a column `verdict` shows badges."""
    heads, lines, right = _texts(_flat(frame))

    def cell(tag, j, text, look):
        if tag == "td" and heads[j] == "verdict" and text in VERDICTS:
            text = badge(text).data
        else:
            text = CHINESE.sub(r'<span lang="zh-CN">\g<0></span>', web.escape(text))
        side = "right" if right[j] else "left"
        return f'<{tag} style="padding:4px 8px;text-align:{side};{look}">{text}</{tag}>'

    def line(tag, texts, look):
        return f"<tr>{''.join(cell(tag, j, text, look) for j, text in enumerate(texts))}</tr>"

    title = (
        f'<caption style="caption-side:top;text-align:left">{web.escape(caption or "")}</caption>'
    )
    body = "\n".join(line("td", texts, "vertical-align:top") for texts in lines)
    return HTML(
        '<div style="overflow-x:auto">'
        '<table style="border-collapse:collapse;table-layout:auto;margin:8px 0px">'
        f"{title if caption else ''}\n"
        f"<thead>{line('th', heads, 'border-bottom:1px solid #888888')}</thead>\n"
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def write(frame: pd.DataFrame, folder, stem: str, caption: str) -> list[Path]:
    """`frame` as STEM.csv, .md, .tex (booktabs) and .html in `folder`; returns the paths."""
    frame = _flat(frame)
    texts = {
        "csv": frame.to_csv(index=False, lineterminator="\n"),
        "md": _markdown(*_texts(frame), caption),
        "tex": ZH + _latex(*_texts(frame), caption, stem),
        "html": html(frame, caption).data + "\n",
    }
    return [write_atomic(Path(folder) / f"{stem}.{kind}", text) for kind, text in texts.items()]


def _markdown(heads, lines, right, caption):
    def clean(text):
        text = re.sub(r"([\\`*_{}\[\]|~$#])", r"\\\1", " ".join(text.split()))
        return web.escape(text, quote=False)

    rule = ["---:" if r else "---" for r in right]
    rows = [[*map(clean, heads)], rule, *([*map(clean, line)] for line in lines)]
    return "\n".join([clean(caption), "", *(f"| {' | '.join(row)} |" for row in rows), ""])


def _latex(heads, lines, right, caption, stem):
    """A longtable as wide as the line, its columns as wide as their words and texts need. Under
    XeLaTeX or LuaLaTeX it takes any letters; Chinese ones show where the font has them."""

    def clean(text):
        text = "".join(LATEX.get(c, c) for c in " ".join(text.split()))
        return CHINESE.sub(r"\\zh{\g<0>}", text)

    def row(texts):
        return " & ".join(map(clean, texts)) + r" \\"

    caption = re.sub(r"^Table \d+\. ", "", caption)  # LaTeX numbers tables itself
    need = [_need(column) for column in zip(heads, *lines, strict=True)]
    share = [math.floor(1e4 * n / sum(need)) / 1e4 for n in need]  # together at most 1
    columns = "".join(
        rf">{{\{'raggedleft' if r else 'raggedright'}\arraybackslash}}"
        rf"p{{\dimexpr {n:.4f}\linewidth-2\tabcolsep}}"
        for r, n in zip(right, share, strict=True)
    )
    head = f"\\toprule\n{row(heads)}\n\\midrule\n"
    return (
        "% needs \\usepackage{array,booktabs,longtable}; made for a page in landscape\n"
        "{\\scriptsize\\setlength{\\tabcolsep}{2pt}\n"
        f"\\begin{{longtable}}{{{columns}}}\n"
        f"\\caption{{{clean(caption)}}}\\label{{tab:{stem}}}\\tabularnewline\n"
        f"{head}\\endfirsthead\n{head}\\endhead\n\\bottomrule\n\\endfoot\n"
        + "".join(f"{row(line)}\n" for line in lines)
        + "\\end{longtable}}\n"
    )


def _need(column) -> float:
    """The width that a column of texts needs: its longest word, or more for long texts."""
    words = (len(w) for text in column for w in re.split(r"[\s_/-]+", text))
    return max(3, max(words), 2.5 * math.sqrt(max(map(len, column))))


def _lines_of(ledger, table, rows):
    """The ledger's lines for these rows of the table."""
    wanted = ledger.row.astype(str).isin([str(row.number) for row in rows])
    return ledger[wanted & (ledger.table.astype(str) == str(table.number))]


def _places(table, row):
    """(table, row) of what this row rests on."""
    others = [elsewhere(table, row, method) for method in row.methods]
    return [(table.number, row.number), *filter(None, others)]


def elsewhere(table, row, method) -> tuple[int, str] | None:
    """(table, row) where a method that this row names too is measured; None if here or nowhere."""
    places = [(t.number, r.number) for t, r in find(method) if (t.number, method) in CLAIMS]
    own = [place for place in places if str(place[0]) == str(table.number)]
    first = (own or places or [None])[0]
    return None if first and (*map(str, first),) == (str(table.number), str(row.number)) else first


def _evidence(found, place, table) -> list:
    """The last cells of a line: measured effect, verdict, baseline, seeds, dataset."""
    if place:
        where = "" if str(place[0]) == str(table.number) else f"table {place[0]}, "
        return [f"see {where}row {place[1]}".replace("row text", "text"), "", "", "", ""]
    if found is None:
        return ["", NO_EVIDENCE, "", "", ""]
    effect = effect_text(found.effect, found.ci_low, found.ci_high, found.unit)
    scale = "" if found.scale == "full" else f" ({found.scale})"
    return [effect, found.verdict, found.baseline, int(found.seeds), f"{found.dataset}{scale}"]


def _flat(frame):
    """`frame` with a named index as columns and plain column names."""
    frame = frame.reset_index() if any(frame.index.names) else frame
    names = [
        " ".join(map(str, c)).strip() if isinstance(c, tuple) else str(c) for c in frame.columns
    ]
    return frame.set_axis(names, axis=1)


def _texts(frame):
    """Column names, lines of cell texts, and which columns hold numbers only."""
    lines = list(frame.itertuples(index=False, name=None))
    texts = [[_cell(value) for value in line] for line in lines]
    right = []
    for j in range(frame.shape[1]):
        filled = [line[j] for line, text in zip(lines, texts, strict=True) if text[j]]
        right.append(bool(filled) and all(isinstance(v, Number) for v in filled))
    return list(frame.columns), texts, right


def _cell(value) -> str:
    if value is None or (pd.api.types.is_scalar(value) and pd.isna(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if not 1e4 <= abs(value) < 1e7 else f"{value:.0f}"
    return str(value)
