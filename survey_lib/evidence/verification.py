"""A fresh ledger beside the published one: which figures are reproduced, in one of three senses.

On the same kind of machine with the same versions every figure repeats bit for bit. Elsewhere a
line must have the same verdict, and its class says how far its figures may move:

- exact: bytes, messages, virtual seconds of schedules, which no training decides (`Claim.exact`):
  equal. RELATIVE leaves room for the last digits of the logarithm and the mean, no more.
- platform: differences of accuracy on a data set's test images. Another order of additions moves
  a sample across the border now and then: at most IMAGES test images, as a mean over the runs.
- statistical: all else (rounds, seconds or bytes until a target is reached, losses, errors): the
  two intervals overlap.
"""

import math

import pandas as pd

from survey_lib.tables.claims import CLAIMS

RELATIVE, IMAGES = 1e-9, 3
TEST_IMAGES = {"digits": 360, "fashion_mnist": 10_000}  # of the data sets that are published
MEASURES = dict(exact="relative", platform="test images", statistical="half-widths of the interval")
KEY, FIGURES = ["table", "row", "method"], ["effect", "ci_low", "ci_high"]


def equality(line: dict) -> str:
    """The class of a ledger line: "exact", "platform" or "statistical"."""
    stated = CLAIMS.get((line["table"], line["method"]))
    if stated and stated.exact:
        return "exact"
    share = line["unit"] == "points" and "accuracy" in line["metric"]
    return "platform" if share and line["dataset"] in TEST_IMAGES else "statistical"


def compare(fresh: pd.DataFrame, published: pd.DataFrame, same_machine: bool) -> list[dict]:
    """A dict per line of either ledger, in the published order, then what is new.

    Keys: table, row, method; class; unit; measure and deviation of the effect in it (see MEASURES);
    published and fresh, each a dict of effect, ci_low, ci_high, seeds, verdict, or None where the
    line is missing; ok; said: "" or what deviates, as a sentence.
    """
    lines = [
        {tuple(e[k] for k in KEY): e for e in f.to_dict("records")} for f in (fresh, published)
    ]
    return [
        _line(key, lines[1].get(key), lines[0].get(key), same_machine)
        for key in dict.fromkeys([*lines[1], *lines[0]])
    ]


def _line(key, old, new, same_machine):
    kind = equality(old or new)
    deviation, said = None, ""
    if old is None:
        said = "has evidence here, but none is published"
    elif new is None:
        said = "published, but has no evidence here"
    else:
        deviation = _deviation(old, new, kind)
        said = _difference(old, new, kind, deviation, same_machine)
    name = f"table {key[0]}, row {key[1]}, {key[2]}"
    kept = [*FIGURES, "seeds", "verdict"]
    return {
        **dict(zip(KEY, key, strict=True)),
        "class": kind,
        "unit": (old or new)["unit"],
        "measure": MEASURES[kind],
        "deviation": deviation,
        "published": old and {k: old[k] for k in kept},
        "fresh": new and {k: new[k] for k in kept},
        "ok": not said,
        "said": said and f"{name}: {said}",
    }


def _deviation(old, new, kind):
    """How far the effect moved, in the measure of its class (of exact figures: the worst one)."""
    if kind == "exact":
        pairs = [(old[k], new[k]) for k in FIGURES]
        return max(0.0 if a == b else abs(a - b) / max(abs(a), abs(b)) for a, b in pairs)
    if kind == "platform":
        return abs(new["effect"] - old["effect"]) / 100 * TEST_IMAGES[old["dataset"]]
    scale = math.log if old["unit"] == "x" else float
    low, high, before, after = (scale(e) for e in (*_span(old), old["effect"], new["effect"]))
    return abs(after - before) / max((high - low) / 2, RELATIVE * max(1.0, abs(before)))


def _difference(old, new, kind, deviation, same_machine):
    """ "" or what a line deviates in, the gravest first."""
    if old["verdict"] != new["verdict"]:
        return f"published as {old['verdict']}, here {new['verdict']}"
    if kind == "exact" and deviation > RELATIVE:
        worst = next(k for k in FIGURES if not math.isclose(old[k], new[k], rel_tol=RELATIVE))
        return f"{worst} {new[worst]!r} instead of {old[worst]!r}, which must be equal everywhere"
    (low, high), (down, up) = _span(old), _span(new)
    slack = RELATIVE * max(abs(old["effect"]), 0.0 if old["unit"] == "x" else 1.0)
    apart = down > high + slack or up < low - slack
    if apart and kind == "statistical":
        return f"[{down:.4g}, {up:.4g}], apart from the published interval [{low:.4g}, {high:.4g}]"
    if kind == "platform" and deviation > IMAGES:
        moved = f"effect {new['effect']:.4g} instead of {old['effect']:.4g}"
        return f"{moved}, {deviation:.3g} test images apart; {IMAGES} are allowed"
    if same_machine:
        for k in (*FIGURES, "seeds"):
            if old[k] != new[k]:
                return f"same machine and versions, but {k} {new[k]!r} instead of {old[k]!r}"
    return ""


def _span(line):
    return sorted((line["ci_low"], line["ci_high"]))


def report(lines: list[dict], same_machine: bool) -> str:
    """One line: how many of the published figures are reproduced, the largest deviation of each
    class, and what was asked for."""
    old = [e for e in lines if e["published"]]
    parts = []
    for kind, measure in MEASURES.items():
        here = [e for e in old if e["class"] == kind and e["deviation"] is not None]
        if any(e["deviation"] for e in here):
            e = max(here, key=lambda e: e["deviation"])
            parts.append(
                f"{e['deviation']:.3g} {measure} (table {e['table']}, row {e['row']}, "
                f"{e['method']}; {kind})"
            )
    how = (
        "bit for bit (same versions and kind of machine)"
        if same_machine
        else f"by class (another machine): {', '.join(_count(old, kind) for kind in MEASURES)}"
    )
    reproduced = f"{sum(e['ok'] for e in old)} of {len(old)} figures reproduced"
    return f"{reproduced}, largest deviation {', '.join(parts) or '0'}; compared {how}"


def _count(lines, kind):
    return f"{sum(e['class'] == kind for e in lines)} {kind}"
