"""Numbers, effects and verdicts as text, the same in figures and tables."""

import math

import numpy as np
from scipy.special import stdtrit

NO_EVIDENCE = "no evidence yet"
VERDICTS = {  # verdict: (symbol, colour on white, marker)
    "supported": ("✓", "#00664A", "o"),
    "partly": ("◐", "#015A8C", "D"),
    "contradicted": ("✗", "#A84300", "X"),
    "inconclusive": ("?", "#5F5F5F", "s"),
    NO_EVIDENCE: ("–", "#7A7A7A", "_"),
}


def interval(values) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the first axis and half-width of its 95 % t-interval (NaN for one value)."""
    values = np.asarray(values, dtype=float)
    n = len(values)
    if n < 2:
        mean = values.mean(0) if n else np.full(values.shape[1:], np.nan)
        return mean, np.full_like(mean, np.nan)
    return values.mean(0), stdtrit(n - 1, 0.975) * values.std(0, ddof=1) / math.sqrt(n)


def number(value: float, digits: int = 3) -> str:
    """`value` with that many significant digits, without an exponent where it stays readable."""
    if not math.isfinite(value):
        return "not finite"
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"


def decimals(width: float) -> int | None:
    """Decimals that give `width` two significant digits; None where it has no size."""
    if not (math.isfinite(width) and width > 0):
        return None
    return min(6, max(0, 1 - math.floor(math.log10(width))))


def plus_minus(mean: float, half: float) -> str:
    """`0.812 ± 0.011`, both with as many decimals as the half-width deserves."""
    d = decimals(half)
    if 0 < half < 1e-5 and abs(mean) < 1e-3:  # below the decimals that are printed
        power = math.floor(math.log10(max(abs(mean), half)))
        return f"({plus_minus(mean / 10**power, half / 10**power)})e{power:03d}"
    return number(mean) if d is None else f"{mean:.{d}f} ± {half:.{d}f}"


def effect_text(effect: float, low: float, high: float, unit: str) -> str:
    """`x5.1 [4.2, 6.3]` for a factor (unit "x"), `+2.3 [1.1, 3.5] points` for a difference."""
    ratio = unit == "x"
    before, after = ("x", "") if ratio else ("", f" {unit}".rstrip())
    sign = "" if ratio else "+"
    d = decimals((high - low) / 2)
    if not math.isfinite(effect):
        return "not finite"
    if math.isclose(low, high, rel_tol=1e-9):
        return f"{before}{effect:{sign}.3g} for every seed{after}"
    if d is None:
        return f"{before}{effect:{sign}.3g} (no interval){after}"
    if ratio and 0 < effect < 1e-4:
        return f"x{effect:.1e} [{low:.1e}, {high:.1e}]"
    if ratio and low > 0:
        d = max(d, decimals(low))
    return f"{before}{effect:{sign}.{d}f} [{low:.{d}f}, {high:.{d}f}]{after}"
