"""Tables, figures and listings, made from tidy DataFrames and the ledger alone."""

from survey_lib.report.atlas import atlas, ranking, turns
from survey_lib.report.figures import (
    bars,
    boxes,
    bubbles,
    curves,
    effects,
    gantt,
    heat,
    points,
    show,
)
from survey_lib.report.source import show_source
from survey_lib.report.tables import (
    badge,
    counts,
    html,
    outcomes,
    own_lines,
    summary,
    survey_table,
    verdict_html,
    write,
)

__all__ = [
    "atlas", "badge", "bars", "boxes", "bubbles", "counts", "curves", "effects", "gantt", "heat",
    "html", "outcomes", "own_lines", "points", "ranking", "show", "show_source", "summary",
    "survey_table", "turns", "verdict_html", "write",
]  # fmt: skip
