"""Tables of numbers as pictures: a colour for how good, the number in it, a frame for the best."""

import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from survey_lib.errors import UsageError
from survey_lib.report.drawn import drawn
from survey_lib.report.figures import show, styled
from survey_lib.report.text import interval, number, plus_minus

FADE = LinearSegmentedColormap.from_list("fade", ["#56B4E9", "#FFFFFF", "#FBE3CC", "#DE8F05"])
SIGNS = LinearSegmentedColormap.from_list("signs", ["#56B4E9", "#FFFFFF", "#DE8F05"])


@drawn
@styled
def matrix(
    frame, *, rows, columns, value, name, caption, out=None, largest=True, scale=1.0, span=None,
    aside=(), signed=False
) -> HTML:  # fmt: skip
    """A cell for each of `rows` (one or two columns of the frame, the outer first) and `columns`:
    mean over seeds and half-width of its 95 % interval, in units of 1 / scale. The colour says how
    far the mean is behind the best of its row, white at half of `span` (default: the median); the
    best is framed. A cell some of whose seeds have no finite value shows how many have, and takes
    the colour of the last. aside: columns that stand beside and cannot be the best. signed: the
    colour says how far the mean is from 0 instead, blue on the good side, whole at `span` (default:
    the largest)."""
    rows = [rows] if isinstance(rows, str) else list(rows)
    if frame.duplicated([*rows, columns, "seed"]).any():
        raise UsageError(f"a cell of {', '.join(rows)} and {columns} has a seed twice")
    columns_, sign = list(dict.fromkeys(frame[columns])), 1 if largest else -1
    keys = list(dict.fromkeys(frame[rows].itertuples(index=False, name=None)))
    cells = {
        key: (found[value].to_numpy(dtype=float) * scale).round(9)  # no -1e-17
        for key, found in frame.groupby([*rows, columns], sort=False)
    }
    mean, rivals = np.full((len(keys), len(columns_)), np.nan), ~np.isin(columns_, list(aside))
    fig = Figure(
        figsize=(min(9.5, 2.2 + 0.72 * len(columns_)), 0.9 + 0.24 * len(keys)), layout="constrained"
    )
    ax, said = fig.subplots(), []
    for i, key in enumerate(keys):
        for j, column in enumerate(columns_):
            v = cells.get((*key, column), np.array([np.nan]))
            if np.isfinite(v).all():
                middle, half = interval(v) if len(v) > 1 else (v[0], np.nan)
                mean[i, j] = middle
                text = plus_minus(middle, half).replace("± ", "±")
            else:
                text = f"{np.isfinite(v).sum()} of {len(v)}"
            ax.text(j, i, text, ha="center", va="center", fontsize=6.5)
        found = np.where(np.isfinite(mean[i]) & rivals, sign * mean[i], -np.inf)
        if np.isfinite(found).any():
            best = int(found.argmax())
            ax.add_patch(_frame(best, i))
            said.append(f"{', '.join(map(str, key))}: {columns_[best]} {number(mean[i, best])}")
    top = np.where(np.isfinite(mean) & rivals, sign * mean, -np.inf).max(1, keepdims=True)
    lost = np.where(np.isfinite(top), top - sign * mean, np.nan).clip(min=0)
    some = lost[lost > 0]
    if signed:
        shade = 0.5 - sign * mean / (2 * (span or np.nanmax(np.abs(mean)) or 1.0))
    else:
        shade = lost / (span or (2 * float(np.median(some)) if len(some) else 1.0))
    shade, cmap = np.nan_to_num(shade, nan=1.0), SIGNS if signed else FADE
    ax.imshow(shade, cmap=cmap, vmin=0, vmax=1, aspect="auto")
    ax.set_xticks(range(len(columns_)), [str(c) for c in columns_], rotation=20, ha="right")
    ax.set_yticks(range(len(keys)), _names(keys), fontsize=7.5)
    ax.grid(False)
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    for i in range(1, len(keys)):
        if len(rows) > 1 and keys[i][0] != keys[i - 1][0]:
            ax.axhline(i - 0.5, color="#777777", lw=0.8)
    return show(fig, name, f"Best of each row: {'; '.join(said)}.", caption, out)


def _frame(j, i):
    return Rectangle((j - 0.47, i - 0.44), 0.94, 0.88, fill=False, ec="#000000", lw=1.2)


def _names(keys) -> list[str]:
    """Labels of the rows; an outer name that is that of the row above is not repeated."""
    names = pd.Series([" ".join(map(str, key[:-1])) for key in keys])
    names = names.where(names != names.shift(), "")
    return [f"{a}  {key[-1]}".strip() for a, key in zip(names, keys, strict=True)]
