"""From paired measurements to a verdict, by rule."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from survey_lib.errors import UsageError
from survey_lib.tables.schema import Claim

VERDICTS = ("supported", "partly", "inconclusive", "contradicted")


@dataclass(frozen=True)
class Effect:
    """A paired effect with its 95 % interval, in the claim's unit (a factor for ratios), and the
    verdict."""

    effect: float
    low: float
    high: float
    seeds: int
    verdict: str


def judge(claim: Claim, method: Mapping[int, float], baseline: Mapping[int, float]) -> Effect:
    """The verdict on a claim from one value per seed of the method and of its baseline.

    Effect: the mean over seeds of method - baseline, or of log(method / baseline); interval: paired
    t, 95 %. In the claimed direction: supported if the whole interval lies beyond the least effect;
    partly if it lies beyond zero; contradicted if it lies on the other side of zero; else
    inconclusive. A least effect below zero is a margin and takes the place of zero.
    """
    seeds = sorted(method)
    if seeds != sorted(baseline):
        raise UsageError(
            f"{claim.method}: seeds {seeds}, but {sorted(baseline)} of the baseline; "
            "run both on the same"
        )
    if len(seeds) < 2:
        raise UsageError(
            f"{claim.method}: a spread needs 2 seeds or more, there is {len(seeds)}; use SEEDS=0-4"
        )
    a, b = (np.array([v[s] for s in seeds], float) for v in (method, baseline))
    if claim.effect == "ratio" and not ((a > 0) & (b > 0)).all():
        raise UsageError(
            f"{claim.method}: a ratio needs values above 0, found {a.min()} and {b.min()}"
        )
    gap = np.log(a / b) if claim.effect == "ratio" else a - b
    if not np.isfinite(gap).all():
        raise UsageError(
            f"{claim.method}: a value is not finite (did a run diverge?): {a} against {b}"
        )
    mean, error = gap.mean(), gap.std(ddof=1) / np.sqrt(len(gap))
    half = stats.t.ppf(0.975, len(gap) - 1) * error
    least = np.log(claim.least) if claim.effect == "ratio" else claim.least
    low, high = sorted((claim.direction * (mean - half), claim.direction * (mean + half)))
    if low > least or (error == 0 and low >= least):
        verdict = "supported"
    elif low > min(0.0, least):
        verdict = "partly"
    elif high < min(0.0, least):
        verdict = "contradicted"
    else:
        verdict = "inconclusive"
    scale = np.exp if claim.effect == "ratio" else float
    return Effect(
        float(scale(mean)),
        float(scale(mean - half)),
        float(scale(mean + half)),
        len(seeds),
        verdict,
    )
