"""How many verdicts would come by chance, and which do not survive the correction for that.

Each verdict rests on a one-sided paired t-test at LEVEL = 2.5 %, one side of the 95 % interval:
*supported* on the effect against the least effect, *partly* on the effect against zero (or the
margin), *contradicted* on the other side of that. With a hundred claims some pass by chance;
Benjamini and Hochberg's procedure keeps the expected share of those among the verdicts of a kind
at the level. It holds for independent tests and for such as lean the same way; claims that share
seeds or a baseline lean the same way or not at all, so far as we know: this is not proved.
"""

import numpy as np
import pandas as pd
from scipy import stats

from survey_lib.tables import claim

LEVEL = 0.025
FLAT = 1e-9  # half-widths below this, relative to the effect (on the log scale of 1): no spread
DISCOVERIES = ("supported", "partly", "contradicted")


def discoveries(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per ledger line, in its order, with the test that its verdict rests on: table, row,
    method, verdict, t (may be infinite), p, adjusted (p after the correction over all lines, as if
    each had been tried for this verdict) and survives (adjusted is at most LEVEL). An inconclusive
    line has the test that it failed, of being supported, and never survives."""
    found = frame[["table", "row", "method", "verdict"]].reset_index(drop=True)
    for column in ("t", "p", "adjusted"):
        found[column] = np.nan
    if found.empty:
        return found.assign(survives=pd.Series(dtype=bool))
    for verdict in DISCOVERIES:
        t, p = tests(frame, verdict)
        adjusted = stats.false_discovery_control(p, method="bh")
        rests = found["verdict"] == verdict
        rests |= (found["verdict"] == "inconclusive") & (verdict == "supported")
        found.loc[rests, ["t", "p", "adjusted"]] = np.column_stack([t, p, adjusted])[rests]
    survives = (found["adjusted"] <= LEVEL) & (found["verdict"] != "inconclusive")
    return found.assign(survives=survives)


def tests(frame: pd.DataFrame, verdict: str) -> tuple[np.ndarray, np.ndarray]:
    """t and p (each of shape (lines,)) of the one-sided test that would give every line this
    verdict, recovered from effect, interval and seeds: with h the half-width and q the 97.5 % point
    of t with seeds - 1 degrees of freedom, the standard error is h / q. Ratios count on the log
    scale. A line without any spread has p = 0 or 1: chance has no part in it."""
    stated = [claim(m, t) for m, t in zip(frame["method"], frame["table"], strict=True)]
    ratio = np.array([c.effect == "ratio" for c in stated])
    direction = np.array([c.direction for c in stated], float)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high, mean = (
            np.where(ratio, np.log(frame[c].to_numpy(float)), frame[c].to_numpy(float))
            for c in ("ci_low", "ci_high", "effect")
        )
        least = np.array([np.log(c.least) if c.effect == "ratio" else c.least for c in stated])
        half, gap = np.abs(high - low) / 2, direction * mean
        bar = least if verdict == "supported" else np.minimum(0.0, least)
        beyond = bar - gap if verdict == "contradicted" else gap - bar
        freedom = frame["seeds"].to_numpy(float) - 1
        t = beyond / (half / stats.t.ppf(0.975, freedom))
    flat = half <= FLAT * np.maximum(1.0, np.abs(mean))
    reached = beyond >= -FLAT if verdict == "supported" else beyond > FLAT  # as in judge
    t = np.where(flat, np.where(reached, np.inf, -np.inf), t)
    t = np.where(np.isnan(t), -np.inf, t)
    return t, stats.t.sf(t, freedom)


def sentence(frame: pd.DataFrame) -> str:
    """The false discoveries of a ledger in words, for the README, `list` and the report page."""
    if frame.empty:
        return "False discoveries: no evidence yet."
    n, supported, parts = len(frame), int((frame["verdict"] == "supported").sum()), []
    for verdict, count, lost in corrected(frame):
        kept = str(count - len(lost)) if lost else "all"
        names = f" (not {', '.join(lost)})" if lost else ""
        parts.append(f"{kept} of {count} {verdict}{names}")
    return (
        f"False discoveries: if no effect were larger than the least that matters, at most "
        f"{LEVEL * n:.1f} of {n} claims would be expected to be supported by chance (one-sided "
        f"{LEVEL:.1%}); {supported} are. After the correction of Benjamini and Hochberg at "
        f"the same level remain {'; '.join(parts) or 'none'}."
    )


def corrected(frame: pd.DataFrame) -> list[tuple[str, int, list[str]]]:
    """For each verdict that there is: how many lines have it, and which do not survive."""
    found, parts = discoveries(frame), []
    for verdict in DISCOVERIES:
        here = found[found["verdict"] == verdict]
        lost = [f"`{e.method}` ({e.table}, {e.row})" for e in here[~here["survives"]].itertuples()]
        parts += [(verdict, len(here), lost)] if len(here) else []
    return parts
