"""The map of the design space: many methods on the same scenes, by what accuracy costs."""

import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib import ticker
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from survey_lib.evidence.run import reach
from survey_lib.report.drawn import drawn
from survey_lib.report.figures import AXIS, DASHES, PALETTE, UNIT, show, styled

COSTS = ("clock", "bytes_busiest", "joules")
SHORT = {"clock": "time", "bytes_busiest": "bytes", "joules": "energy"}
COLOURS = [PALETTE[k] for k in (0, 1, 2, 7, 4, 3)]  # families side by side stay apart


def costs(runs: pd.DataFrame, target: float) -> pd.DataFrame:
    """What the target accuracy costs, a row per scene, label and cost: the median over seeds, inf
    where most seeds never get there; and `accuracy`, the best that the median seed reaches."""
    rows = []
    for (scene, family, label), found in runs.groupby(["scene", "family", "label"], sort=False):
        seeds = [h for _, h in found.groupby("seed")]
        best = float(np.median([h["accuracy"].max() for h in seeds]))
        for cost in COSTS:
            spent = [
                reach(h, target, cost) if h["accuracy"].max() >= target else np.inf for h in seeds
            ]
            here = dict(scene=scene, family=family, label=label, cost=cost)
            rows.append(here | dict(value=float(np.median(spent)), accuracy=best))
    return pd.DataFrame(rows)


@drawn
@styled
def atlas(runs, *, target, name, caption, out=None, top=3, own=()) -> HTML:
    """Accuracy against time, bytes of the busiest node and energy, a row of panels per scene, a
    line per method in the colour of its family (mean over seeds); the `top` cheapest ways to the
    target are drawn bold and named, and with them those labelled in `own`, wherever they come.

    runs: histories with columns scene, family, label, seed.
    """
    scenes, families = (list(runs[c].unique()) for c in ("scene", "family"))
    table, said = costs(runs, target), []
    fig = Figure(figsize=(11, 3.3 * len(scenes) + 0.6), layout="constrained")
    grid = fig.subplots(len(scenes), len(COSTS), squeeze=False, sharey=True)
    for axes, scene in zip(grid, scenes, strict=True):
        for ax, cost in zip(axes, COSTS, strict=True):
            here = table[(table["scene"] == scene) & (table["cost"] == cost)]
            first = here[np.isfinite(here["value"])].nsmallest(top, "value", keep="first")
            mine = here[here["label"].isin(own) & ~here["label"].isin(first["label"])]
            chosen = [*first["label"], *mine["label"]]
            for label, found in runs[runs["scene"] == scene].groupby("label", sort=False):
                k = families.index(found["family"].iloc[0])
                x, y = _mean_line(found, cost)
                bold = dict(lw=2.2, zorder=3) if label in chosen else dict(lw=0.8, alpha=0.55)
                ax.plot(x, y, color=COLOURS[k % len(COLOURS)], ls=DASHES[k % len(DASHES)], **bold)
            names = [
                f"{rank}. {r.label}: {_amount(r.value, cost)}"
                for rank, r in enumerate(first.itertuples(), 1)
            ] + [f"{_place(here, r)}{r.label}: {_reached(r, cost)}" for r in mine.itertuples()]
            ax.text(0.02, 0.98, "\n".join(names), transform=ax.transAxes, va="top", fontsize=7.5)
            ax.axhline(target, color="#555555", lw=0.8, ls=(0, (2, 2)))
            ax.set(xscale="log", ylim=(0, 1.28), yticks=np.arange(0, 1.01, 0.2))
            ax.set_xlabel(AXIS[cost])
            if cost in UNIT:
                ax.xaxis.set_major_formatter(ticker.EngFormatter(UNIT[cost]))
            said.append(f"{scene}, {AXIS[cost]}: {'; '.join(names) or 'nobody'}")
        axes[0].set_ylabel(f"{scene}\ntest accuracy")
    look = [
        Line2D([], [], color=COLOURS[k % len(COLOURS)], ls=DASHES[k % len(DASHES)], label=family)
        for k, family in enumerate(families)
    ]
    fig.legend(handles=look, loc="outside lower center", ncols=min(len(look), 6))
    alt = f"Cheapest ways to an accuracy of {target:g}. {'. '.join(said)}."
    return show(fig, name, alt, caption, out)


def _place(here, r):
    return f"{(here['value'] < r.value).sum() + 1}. " if np.isfinite(r.value) else ""


def _reached(r, cost):
    return _amount(r.value, cost) if np.isfinite(r.value) else f"not there ({r.accuracy:.2f})"


def _amount(value, cost):
    return ticker.EngFormatter(UNIT.get(cost, "s"), places=1)(value)


def _mean_line(found, cost):
    """Mean accuracy over the cost where all seeds are, each value holding until the next."""
    seeds = [h[h[cost] > 0] for _, h in found.groupby("seed")]
    seeds = [h for h in seeds if len(h)]
    low = max((h[cost].iloc[0] for h in seeds), default=1.0)
    high = min((h[cost].iloc[-1] for h in seeds), default=0.0)
    if low > high:
        return [], []
    x = np.geomspace(low, high, 120)
    held = [
        h["accuracy"].to_numpy()[np.searchsorted(h[cost], x * (1 + 1e-12), "right") - 1]
        for h in seeds
    ]
    return x, np.mean(held, 0)


def ranking(runs: pd.DataFrame, target: float, scene: str) -> pd.DataFrame:
    """Every method's place in a scene for each cost, as a table to read: place, and what the target
    costs, or the best accuracy in brackets where it is not reached."""
    table = costs(runs[runs["scene"] == scene], target)
    rank = table.groupby("cost")["value"].rank(method="min")
    table["text"] = [
        f"{int(r)} · {_amount(v, c)}" if np.isfinite(v) else f"({a:.2f})"
        for r, v, c, a in zip(rank, table["value"], table["cost"], table["accuracy"], strict=True)
    ]
    wide = table.pivot(index=["family", "label"], columns="cost", values="text")
    rows = table[["family", "label"]].drop_duplicates()
    wide = wide.loc[[tuple(r) for r in rows.to_numpy()], list(COSTS)].reset_index()
    return wide.rename(columns={"label": "method"} | SHORT).rename_axis(columns=None)


def turns(runs: pd.DataFrame, target: float) -> pd.DataFrame:
    """Who is first in each scene and cost, and which place the same method takes in the others."""
    table = costs(runs, target)
    table["place"] = table.groupby(["scene", "cost"])["value"].rank(method="min")
    rows = []
    for (scene, cost), here in table.groupby(["scene", "cost"], sort=False):
        first = here.loc[here["value"].idxmin()]
        row = {"scene": scene, "cost": SHORT[cost], "first": first["label"]}
        for other in table["scene"].unique():
            there = table[(table["scene"] == other) & (table["cost"] == cost)]
            there = there[there["label"] == first["label"]].iloc[0]
            arrived = np.isfinite(there["value"])
            row[f"place: {other}"] = int(there["place"]) if arrived else "not there"
        rows.append(row)
    return pd.DataFrame(rows)
