"""The published evidence as it stands in the README, in both languages."""

import pandas as pd

from survey_lib.evidence.discoveries import LEVEL, corrected, sentence
from survey_lib.report.tables import summary, tally
from survey_lib.report.text import effect_text
from survey_lib.tables import TABLES

HEADS = (
    ("table", "method", "against", "metric", "effect [95 %]", "verdict"),
    ("表、行", "方法", "基线", "度量", "效应 [95 %]", "判定"),
)
VERDICTS = {  # in Chinese
    "supported": "成立",
    "partly": "部分成立",
    "contradicted": "相反",
    "inconclusive": "不能定论",
}


def evidence_markdown(frame: pd.DataFrame, chinese: bool = False) -> str:
    """A ledger as a short Markdown table, with a line per survey table and what chance has to do
    with it. chinese: all but what is compared, which stands as in the ledger."""
    rows = [f"| {' | '.join(HEADS[chinese])} |", "|---|---|---|---|---|---|"]
    for e in frame.itertuples():
        effect = effect_text(e.effect, *sorted((e.ci_low, e.ci_high)), e.unit)
        verdict = e.verdict
        if chinese:
            effect = effect.replace(" points", " 个百分点").replace(
                " for every seed", "（各种子皆同）"
            )
            verdict = VERDICTS[verdict]
        cells = (f"{e.table}, {e.row}", f"`{e.method}`", e.baseline, e.metric, effect)
        rows.append(f"| {' | '.join(cells)} | **{verdict}** |")
    counts = [f"- {(_tallied if chinese else summary)(t, frame)}" for t in TABLES.values()]
    return "\n".join([*rows, "", *counts, "", (_chance if chinese else sentence)(frame), ""])


def _tallied(table, frame):
    rows, methods, known = tally(table, frame)
    found = "，".join(f"{VERDICTS[v]} {known[v]}" for v in VERDICTS if known[v])
    return f"表 {table.number}：{len(table.rows)} 行中 {rows} 行有证据，{methods} 个方法：{found}"


def _chance(frame):
    n, supported, parts = len(frame), int((frame["verdict"] == "supported").sum()), []
    for verdict, count, lost in corrected(frame):
        names = f"（除 {'、'.join(lost)}）" if lost else ""
        parts.append(f"{VERDICTS[verdict]}的 {count} 条中的 {count - len(lost)} 条{names}")
    return (
        f"错误发现：假如没有任何效应大于有意义的最小效应，{n} 条论断中预计至多有 {LEVEL * n:.1f} 条"
        f"会因偶然而成立（单侧 {LEVEL:.1%}）；实际成立 {supported} 条。在同一水平上经 Benjamini 和 "
        f"Hochberg 校正后，仍保留{'；'.join(parts)}。"
    )
