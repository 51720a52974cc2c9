"""Figures from tidy DataFrames alone, as HTML: a PNG, a sentence with its numbers, a caption."""

import base64
import html
import io
import sys
from pathlib import Path
from textwrap import fill

import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib import style, ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from PIL import Image

from survey_lib.errors import UsageError
from survey_lib.evidence.store import write_atomic
from survey_lib.report.drawn import drawn
from survey_lib.report.text import VERDICTS, effect_text, interval, number, plus_minus

# seaborn's "colorblind" palette, without its yellow, which is too pale for a line
PALETTE = "#0173B2 #DE8F05 #029E73 #D55E00 #CC78BC #CA9161 #949494 #56B4E9 #FBAFE4".split()
MARKERS = "osD^vPX*<>"
DASHES = ["-", "--", "-.", (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2))]
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "figure.constrained_layout.h_pad": 0.06,
}
styled = style.context(["default", STYLE])  # the reader's own settings change no figure

UNIT = {"bytes": "B", "bytes_busiest": "B", "joules": "J"}
AXIS = {
    "clock": "virtual time (s)",
    "bytes": "data sent by all devices",
    "bytes_busiest": "data sent by the busiest device",
    "joules": "energy of all devices",
    "accuracy": "test accuracy",
    "worst": "accuracy (worst node)",
    "averaged": "accuracy (averaged model)",
}
SHARES = ("accuracy", "worst", "averaged", "share right")  # from 0 to 1
TINY = 1e-3  # a factor below is drawn at the edge of the figure, with an arrow
BEHIND = {"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 0.8}
DOING = {  # what: (colour, hatch, bottom, height); sending and receiving may overlap computing
    "compute": ("#0173B2", "", -0.4, 0.8),
    "F": ("#56B4E9", "", -0.4, 0.8),
    "B": ("#0173B2", "//", -0.4, 0.8),
    "update": ("#CC78BC", "..", -0.4, 0.8),
    "wait": ("#E6E6E6", "", -0.4, 0.8),
    "failed": ("#D55E00", "xx", -0.4, 0.8),
    "send": ("#DE8F05", "\\\\", 0.0, 0.4),
    "receive": ("#029E73", "++", -0.4, 0.4),
    "exchange": ("#CA9161", "\\\\", -0.4, 0.8),
}


@styled
def show(fig, name: str, alt: str, caption: str, out=None) -> HTML:
    """`fig` as HTML and, with `out`, as `out/figures/NAME.png`: equal figures give equal bytes."""
    texts = (text.get_text() for text in fig.findobj(Text))
    if foreign := [text for text in texts if any(ord(letter) >= 0x2E80 for letter in text)]:
        raise UsageError(f"figure {name}: {foreign[0]!r} has no Latin letters; label it in English")
    fig.set(dpi=110, facecolor="white")
    canvas, png = FigureCanvasAgg(fig), io.BytesIO()
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    image = image.quantize(128, dither=Image.Dither.NONE)  # a third the size
    image.save(png, format="PNG", optimize=True)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(fig)
    if out is not None:
        write_atomic(Path(out) / "figures" / f"{name}.png", png.getvalue())
    data = base64.b64encode(png.getvalue()).decode()
    return HTML(
        f'<figure style="margin:8px 0px"><img src="data:image/png;base64,{data}" '
        f'alt="{html.escape(alt)}" style="max-width:100%;height:auto">'
        f'<figcaption style="font-size:90%">{html.escape(caption)}</figcaption></figure>'
    )


@drawn
@styled
def curves(
    history, x="round", y="accuracy", *, target=None, name, caption, out=None, logx=False,
    logy=False, title=None, xlabel=None, ylabel=None
) -> HTML:  # fmt: skip
    """`y` over `x`, a line per label: mean over seeds with its 95 % band, each seed thin.

    The mean ends where the first seed ends: beyond, it would be one of fewer seeds.
    """
    fig, ax = _axes(7, 4.2)
    ylabel, said = ylabel or AXIS.get(y, y), []
    groups = history.replace([np.inf, -np.inf], np.nan).groupby("label", sort=False)
    for i, (label, runs) in enumerate(groups):
        seeds = _seeds(runs, x, y, logx)
        grid = _grid(seeds, x, logx)
        mean, half = interval([np.interp(grid, s.index, s) for s in seeds])
        look = {"color": PALETTE[i % len(PALETTE)]}
        for s in seeds:
            ax.plot(s.index, s, lw=0.6, alpha=0.3, **look)
        step = max(1, len(grid) // 8)
        every = (i * step // groups.ngroups, step)  # markers of unlike lines stand apart
        look |= {"marker": MARKERS[i % len(MARKERS)], "ls": DASHES[i % len(DASHES)]}
        if len(grid):
            band = [mean - half, mean + half]
            if y in SHARES:
                band = np.clip(band, 0, 1)
            ax.fill_between(grid, *band, color=look["color"], alpha=0.18, lw=0)
        ax.plot(grid, mean if len(grid) else [], lw=1.8, ms=5, markevery=every, label=label, **look)
        said.append(f"{label} {_ending(runs, seeds, y)}{_reaching(seeds, x, y, target)}")
    if target is not None:
        ax.axhline(target, color="#555555", lw=1, ls=(0, (2, 2)), label=f"target {target:g}")
    xlabel = xlabel or AXIS.get(x, x)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title, xscale="log" if logx else "linear")
    ax.set(yscale="log" if logy else "linear")
    if x in UNIT:
        ax.xaxis.set_major_formatter(ticker.EngFormatter(UNIT[x]))
    _legend(fig)
    alt = f"{_first(ylabel)} over {xlabel}. {'; '.join(said)}. (Mean ± 95 % half-width.)"
    return show(fig, name, alt, caption, out)


@drawn
@styled
def effects(rows, name, caption, out=None) -> HTML:
    """Forest plot of ledger lines, a panel per unit: interval, least effect that matters, verdict.

    rows: method, effect, ci_low, ci_high, least, unit, verdict. Factors (unit "x", or a column
    `kind` that says "ratio") have a log axis around 1. `least` counts in the claimed direction:
    a column `direction` of -1 mirrors it.
    """
    if "kind" in rows:
        rows = rows.assign(unit=rows.unit.mask(rows.kind == "ratio", "x"))
    panels = list(rows.groupby("unit", sort=False))
    fig = Figure(figsize=(7, 0.7 + 0.3 * len(rows) + 0.65 * len(panels)), layout="constrained")
    heights = [len(lines) + 0.6 for _, lines in panels]
    grid = fig.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for ax, (unit, lines) in zip(grid[:, 0], panels, strict=True):
        _forest(ax, lines, unit)
    handles = [
        Line2D([], [], color="#333333", lw=2, label="effect with 95 % interval", marker="o"),
        Line2D([], [], color="#333333", ls="", marker="|", ms=12, mew=1.5, label="least effect"),
        Line2D([], [], color="#333333", lw=1, ls=":", label="no effect"),
    ]
    _legend(fig, handles=handles)
    said = (f"{r.method} {_effect(r)}, {r.verdict}" for r in rows.itertuples())
    return show(fig, name, f"Effects with 95 % intervals: {'; '.join(said)}.", caption, out)


def _forest(ax, lines, unit):
    for i, r in enumerate(lines.itertuples()):
        (_, colour, marker), text = VERDICTS[r.verdict], f"{_effect(r)}\n{r.verdict}"
        if unit == "x" and r.effect < TINY:
            r, marker = r._replace(effect=TINY, ci_low=TINY, ci_high=TINY), "<"
        ax.plot([r.ci_low, r.ci_high], [i, i], color=colour, lw=2.2, solid_capstyle="butt")
        ax.plot(r.effect, i, color=colour, marker=marker, ms=8, mec="white", mew=0.6)
        least, direction = float(getattr(r, "least", np.nan)), getattr(r, "direction", 1)
        least = least**direction if unit == "x" else least * direction
        ax.plot(least, i, color="#333333", marker="|", ms=13, mew=1.5)
        side = {"xycoords": ax.get_yaxis_transform(), "va": "center", "color": colour}
        ax.annotate(text, (1.02, i), fontsize=8, **side)
    if unit == "x":
        ax.set_xscale("log")
        values = lines[["effect", "ci_low", "ci_high"]].stack().clip(lower=TINY)
        span = values.max() / values.min()
        ax.xaxis.set_major_locator(
            ticker.LogLocator(subs=(1,) if span > 100 else (1, 2, 5), numticks=12)
            if span > 6
            else ticker.MaxNLocator(6, steps=[1, 2, 5, 10])
        )
        ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f"x{v:g}"))
        ax.xaxis.set_minor_locator(ticker.NullLocator())
    ax.axvline(1 if unit == "x" else 0, color="#333333", lw=1, ls=":", zorder=0)
    ax.set_yticks(range(len(lines)), lines.method)
    ax.set(ylim=(len(lines) - 0.4, -0.6))
    ax.set_xlabel("method / baseline" if unit == "x" else f"method - baseline ({unit})")
    ax.grid(axis="y", visible=False)


@drawn
@styled
def bars(
    frame, x, y, hue=None, *, name, caption, out=None, ylabel=None, ref=None, logy=False
) -> HTML:
    """`y` per `x` and `hue`: mean with 95 % interval beside a dot per row of `frame`, a seed."""
    fig, ax = _axes(7, 3.8)
    xs = list(frame[x].unique())
    hues = list(frame[hue].unique()) if hue else [None]
    gap, said = 0.8 / len(hues), []
    for i, h in enumerate(hues):
        colour, marker = PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)]
        for j, where in enumerate(xs):
            chosen = frame[(frame[x] == where) & (frame[hue] == h if hue else True)]
            values = chosen[y].replace([np.inf, -np.inf], np.nan).dropna()
            if values.empty:
                continue
            mean, half = interval(values)
            at = j + (i - (len(hues) - 1) / 2) * gap
            dots = np.full(len(values), at - 0.16 * gap)
            ax.plot(dots, values, ls="", marker=".", ms=7, color=colour, alpha=0.5, mew=0)
            label = h if h not in ax.get_legend_handles_labels()[1] else "_"
            mark = {"marker": marker, "ms": 6, "ls": "", "capsize": 3, "color": colour}
            reach = np.full((2, 1), 0 if np.isnan(half) else half)
            if y in SHARES:  # as far as a share can be
                reach = np.minimum(reach, [[mean], [1 - mean]])
            ax.errorbar(at + 0.08 * gap, mean, reach, label=label, **mark)
            said.append(f"{where}{f', {h}' if hue else ''}: {plus_minus(mean, half)}")
    if ref is not None:
        ax.axhline(ref, color="#555555", lw=1, ls=(0, (2, 2)), label=f"reference {ref:g}")
    ax.set_xticks(
        range(len(xs)),
        [fill(str(where), max(9, 80 // len(xs)), break_long_words=False) for where in xs],
    )
    ax.set(xlabel="" if x == "label" else x, ylabel=ylabel or AXIS.get(y, y))
    ax.set(yscale="log" if logy else "linear")
    ax.grid(axis="x", visible=False)
    _legend(fig)
    alt = f"{_first(ylabel or AXIS.get(y, y))} by {x}. {'; '.join(said)}. (Mean ± 95 % half-width.)"
    return show(fig, name, alt, caption, out)


@drawn
@styled
def points(frame, x, y, *, label, hue, name, caption, out=None, xlabel=None, ylabel=None) -> HTML:
    """`y` against `x` on log axes, a panel per `hue` and in it a point per `label` (mean over the
    rows of `frame` with its 95 % interval), named beside it."""
    panels = list(frame.groupby(hue, sort=False))
    fig = Figure(figsize=(max(6, 5.2 * len(panels)), 4.4), layout="constrained")
    axes = fig.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    xlabel, ylabel, said = xlabel or AXIS.get(x, x), ylabel or AXIS.get(y, y), []
    for i, (ax, (h, part)) in enumerate(zip(axes, panels, strict=True)):
        look = {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)]}
        groups = [(who, rows[x].mean(), *interval(rows[y])) for who, rows in part.groupby(label)]
        for j, (who, at, mean, half) in enumerate(sorted(groups, key=lambda g: (g[2], g[1]))):
            ax.errorbar(at, mean, 0 if np.isnan(half) else half, ms=6, ls="", capsize=2, **look)
            side = (
                {"xytext": (7, -3), "ha": "left"} if j % 2 else {"xytext": (-7, -3), "ha": "right"}
            )
            ax.annotate(who, (at, mean), fontsize=7.5, textcoords="offset points", **side)
            said.append(f"{who}, {h} (at {number(at)}): {plus_minus(mean, half)}")
        ax.set(xlabel=xlabel, xscale="log", yscale="log", title=h)
        ax.margins(x=0.22)
    axes[0].set_ylabel(ylabel)
    alt = f"{_first(ylabel)} against {xlabel}. {'; '.join(said)}. (Mean ± 95 % half-width.)"
    return show(fig, name, alt, caption, out)


@drawn
@styled
def gantt(timeline, name, caption, out=None, unit="s") -> HTML:
    """Who did what when: device, start, end, what (a key of DOING) and, if you like, `text`."""
    if unknown := set(timeline.what) - set(DOING):
        raise UsageError(f"gantt knows {', '.join(DOING)}, but not {', '.join(sorted(unknown))}")
    devices = sorted(timeline.device.unique(), key=lambda d: (isinstance(d, str), d))
    fig, ax = _axes(7, 1.3 + 0.34 * len(devices))
    for what, (colour, hatch, bottom, height) in DOING.items():
        for device, spans in timeline[timeline.what == what].groupby("device"):
            box = (devices.index(device) + bottom, height)
            look = {"facecolor": colour, "hatch": hatch, "edgecolor": "white", "lw": 0.5}
            ax.broken_barh(np.c_[spans.start, spans.end - spans.start], box, **look)
    for r in timeline.itertuples() if "text" in timeline else ():
        place = ((r.start + r.end) / 2, devices.index(r.device))
        ax.text(*place, r.text, ha="center", va="center", fontsize=7, bbox=BEHIND)
    begin, end = timeline.start.min(), timeline.end.max()
    ax.set_yticks(range(len(devices)), [str(device) for device in devices])
    ax.set(xlabel=f"virtual time ({unit})", xlim=(begin, end), ylim=(len(devices) - 0.4, -0.6))
    ax.grid(axis="y", visible=False)
    done = [w for w in DOING if w in set(timeline.what)]
    look = {"edgecolor": "white"}
    boxes = [Patch(fc=DOING[w][0], hatch=DOING[w][1], label=w, **look) for w in done]
    _legend(fig, handles=boxes, columns=8)
    share = {str(d): _busy(timeline[timeline.device == d]) / (end - begin) for d in devices}
    if len(share) > 12:  # too many to read out: the least and the most busy one
        ends = min(share, key=share.get), max(share, key=share.get)
        share = {f"{d} ({how})": share[d] for d, how in zip(ends, ("least", "most"), strict=True)}
    said = ", ".join(f"{device} {100 * part:.0f} %" for device, part in share.items())
    span = f"{number(end - begin)} {unit}"
    alt = f"Gantt chart of {len(devices)} devices. Makespan {span}; busy: {said}."
    return show(fig, name, alt, caption, out)


def _busy(spans) -> float:
    """Time in which a device computes, sends or receives; overlaps count once."""
    total, until = 0.0, -np.inf
    spans = spans[~spans.what.isin(["wait", "failed"])].sort_values("start")
    for r in spans.itertuples():
        total += max(0.0, r.end - max(r.start, until))
        until = max(until, r.end)
    return total


@drawn
@styled
def heat(counts, name, caption, out=None, xlabel="class", ylabel="device") -> HTML:
    """Samples of each class (columns) on each device (rows): areas of dots, numbers if they fit."""
    n, c = counts.shape
    fig, ax = _axes(max(3.5, min(7, 1.4 + 0.5 * c)), max(1.6, min(9, 0.9 + 0.36 * n)))
    values = counts.to_numpy(dtype=float)
    i, j = np.nonzero(values > 0)
    top = values.max() if len(i) else 1.0
    ax.scatter(j, i, s=420 * values[i, j] / top * min(1, 14 / n), color="#56B4E9", lw=0)
    if n * c <= 200:
        for a, b in zip(i, j, strict=True):
            ax.text(b, a, number(values[a, b]), ha="center", va="center", fontsize=7)
    ax.set_xticks(range(c), [str(k) for k in counts.columns])
    rows = range(0, n, max(1, n // 20))
    ax.set_yticks(rows, [str(counts.index[k]) for k in rows])
    ax.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.6, c - 0.4), ylim=(n - 0.4, -0.6))
    size, held = values.sum(1), (values > 0).sum(1)
    alt = (
        f"{n} devices and {c} classes, {number(values.sum())} samples: "
        f"{number(size.min())} to {number(size.max())} per device, of "
        f"{held.min()} to {held.max()} classes (median {number(np.median(held))})."
    )
    return show(fig, name, alt, caption, out)


@drawn
@styled
def bubbles(splits, name, caption, out=None, notes=None, columns=4) -> HTML:
    """Samples of each class (columns) on each device (rows) as areas of dots, a panel per split.

    splits: {title: counts (n, classes)}. notes: {title: what to write beneath it}.
    """
    rows, said = -(-len(splits) // columns), []
    deep = max(len(counts) for counts in splits.values())
    fig = Figure(figsize=(2.4 * columns, rows * (0.9 + 0.1 * deep)), layout="constrained")
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(splits) :]:
        ax.remove()
    for ax, (title, counts) in zip(axes, splits.items(), strict=False):
        values, note = np.asarray(counts, float), (notes or {}).get(title, "")
        i, j = np.nonzero(values > 0)
        ax.scatter(j, i, s=60 * values[i, j] / values.max(), color=PALETTE[0], alpha=0.7, lw=0)
        n, c = values.shape
        ax.set(xlim=(-0.7, c - 0.3), ylim=(n - 0.3, -0.7), xticks=range(0, c, max(1, c // 5)))
        ax.set_title(f"{title}\n{note}" if note else title, fontsize=8)
        ax.set_yticks(range(0, n, max(1, n // 4)))
        said.append(f"{title}: {note.replace(chr(10), ', ')}" if note else title)
    fig.supxlabel("class", fontsize=9)
    fig.supylabel("device", fontsize=9)
    alt = f"Samples per device and class in {len(splits)} splits. {'; '.join(said)}."
    return show(fig, name, alt, caption, out)


@drawn
@styled
def boxes(frame, x, y, *, panel, name, caption, out=None, xlabel=None, columns=2) -> HTML:
    """Distributions of `x`, a panel per `panel` and in it a row per `y`: a dot per row of `frame`,
    the quartiles as a box with the median, and whiskers to the 5th and 95th percentile."""
    panels, said = list(frame.groupby(panel, sort=False)), []
    names, lines = list(frame[y].unique()), -(-len(panels) // columns)
    size = (4.2 * columns, lines * (0.9 + 0.32 * len(names)))
    fig = Figure(figsize=size, layout="constrained")
    axes = fig.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for ax in axes[len(panels) :]:
        ax.remove()
    for ax, (title, part) in zip(axes, panels, strict=False):
        for j, who in enumerate(names):
            values = part.loc[part[y] == who, x].dropna().to_numpy()
            if not len(values):
                continue
            colour = PALETTE[j % len(PALETTE)]
            low, first, middle, third, high = np.percentile(values, (5, 25, 50, 75, 95))
            spread = 0.3 * (np.arange(len(values)) * 0.618 % 1 - 0.5)  # side by side, no chance
            ax.plot(values, j + spread, ls="", marker=".", ms=4, color=colour, alpha=0.35, mew=0)
            ax.plot([low, high], [j, j], color=colour, lw=1.2)
            box = {"height": 0.56, "left": first, "fill": False, "edgecolor": colour, "lw": 1.4}
            ax.barh(j, third - first, **box)
            ax.plot([middle, middle], [j - 0.28, j + 0.28], color=colour, lw=2.4)
            said.append(f"{title}, {who}: {number(middle)} ({number(low)} to {number(high)})")
        ax.use_sticky_edges = False  # else boxes at 1 are cut by the frame
        ax.set_title(title)
        ax.set_yticks(range(len(names)), [str(who) for who in names])
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.grid(axis="y", visible=False)
    label = xlabel or AXIS.get(x, x)
    fig.supxlabel(label, fontsize=9)
    alt = f"{_first(label)} by {y}: median (5th to 95th percentile). {'; '.join(said)}."
    return show(fig, name, alt, caption, out)


def _axes(width, height):
    fig = Figure(figsize=(width, height), layout="constrained")
    return fig, fig.subplots()


def _legend(fig, handles=None, columns=4):
    """A legend below the axes, what is not a method last; none where it would be empty."""
    handles = handles or fig.axes[0].get_legend_handles_labels()[0]
    handles = sorted(handles, key=lambda h: str(h.get_label()).startswith(("target", "reference")))
    if handles:
        longest = max(len(str(h.get_label())) for h in handles)
        fit = max(1, int(13 * fig.get_figwidth()) // (longest + 6))  # entries that fit side by side
        ncols = min(len(handles), columns, fit)
        fig.legend(handles=handles, loc="outside lower center", ncols=ncols)


def _first(text):
    return text[:1].upper() + text[1:]


def _effect(r):
    return effect_text(r.effect, r.ci_low, r.ci_high, r.unit)


def _seeds(runs, x, y, logx) -> list[pd.Series]:
    """Finite values of y by x, a series per seed that has any; of equal x the last counts."""
    series = (s.dropna(subset=[x, y]).groupby(x)[y].last() for _, s in runs.groupby("seed"))
    return [s for s in (s[s.index > 0] if logx else s for s in series) if len(s)]


def _grid(seeds, x, logx) -> np.ndarray:
    """Points at which all seeds have values, given or between two given ones."""
    low = max((s.index[0] for s in seeds), default=1)
    high = min((s.index[-1] for s in seeds), default=0)
    if low > high:
        return np.zeros(0)
    if x != "round":
        return np.geomspace(low, high, 160) if logx else np.linspace(low, high, 160)
    rounds = np.unique(np.concatenate([s.index for s in seeds]))
    return rounds[(rounds >= low) & (rounds <= high)]


def _ending(runs, seeds, y) -> str:
    lost = int(runs.groupby("seed")[y].apply(lambda values: values.isna().iloc[-1]).sum())
    tail = f", {lost} without a finite end" if lost else ""
    if not seeds:
        return "has no finite value"
    n = runs.seed.nunique()
    count = f"{n} seeds" if n > 1 else "one seed"
    return f"ends at {plus_minus(*interval([s.iloc[-1] for s in seeds]))} ({count}{tail})"


def _reaching(seeds, x, y, target) -> str:
    """When the median seed gets to the target; seeds that never do count as infinitely late."""
    if target is None or not seeds:
        return ""
    there = [s.index[s <= target if y == "loss" else s >= target] for s in seeds]
    when = np.median([index[0] if len(index) else np.inf for index in there])
    count = f"{sum(len(index) > 0 for index in there)} of {len(seeds)} seeds"
    if not np.isfinite(when):
        return f", reaches {target:g} in {count}"
    at = f"at round {when:g}" if x == "round" else f"after {_quantity(when, x)}"
    return f", reaches {target:g} {at} (median; {count})"


def _quantity(value, x) -> str:
    return ticker.EngFormatter(UNIT[x])(value) if x in UNIT else f"{number(value)} s"
