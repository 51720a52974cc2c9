"""Schedules side by side: who is idle when, and what each stage must hold."""

import itertools

import numpy as np
import pandas as pd
import torch

from survey_lib.passes import Held, newest, predicted, stashed, vertical
from survey_lib.pipeline import (
    bubble,
    endless,
    fill_drain,
    micro_batches,
    one_by_one,
    one_f_one_b,
    peak_memory,
    plan,
    split,
    timetable,
)
from survey_lib.world import World

RULES = (stashed, vertical, newest, predicted)


def charts(K: int, M: int, f: float = 1.0, b: float = 2.0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two mini-batches on K equal stages with free links, by schedule: bars for report.gantt, with
    the idle times as bars of their own, and the idle share of each, counted and by formula.

    A forward pass of a mini-batch takes f s per stage, its backward pass b; GPipe and 1F1B with
    flush split it into M micro-batches. PipeDream does as many mini-batches as M micro-batches.
    """
    drawn = {
        "naive": (one_by_one, 1, 2, 1.0, bubble(K, 1)),
        "GPipe": (fill_drain, M, 2, 1 / M, bubble(K, M)),
        "1F1B, flush": (one_f_one_b, M, 2, 1 / M, bubble(K, M)),
        "PipeDream": (one_f_one_b, M, 1, 1.0, bubble(K, M)),
    }
    bars, rows = [], []
    for name, (schedule, items, rounds, part, formula) in drawn.items():
        times = np.full((2, K, items), [[[f * part]], [[b * part]]])
        events = timetable(schedule(K, items), *times)
        span = max(e.end for e in events)
        for r, s in itertools.product(range(rounds), range(K)):
            until = 0.0
            for e in [e for e in events if e.device == s] + [None]:
                start, end = (span, span) if e is None else (e.start, e.end)
                lane = f"{name}, {s}"
                if start > until:
                    bars.append((lane, r * span + until, r * span + start, "wait"))
                if e is not None:
                    bars.append((lane, r * span + start, r * span + end, e.what))
                until = end
        busy = sum(e.end - e.start for e in events)
        rows.append(
            {
                "schedule": name,
                "items in the pipeline": items,
                "idle share, counted": 1 - busy / (K * span),
                "idle share, formula": formula,
                "seconds a mini-batch": span / (items if part == 1.0 and items > 1 else 1),
            }
        )
    return pd.DataFrame(bars, columns=["device", "start", "end", "what"]), pd.DataFrame(rows)


def memory(network, cuts, B: int, M: int, momentum: bool = False) -> pd.DataFrame:
    """The peak memory of each stage, kB, by schedule and rule: weights and their versions,
    gradient, momentum, saved activations; counted while the operations are replayed."""
    stages, rows = split(network, cuts), []
    K, own = len(stages), np.array([v.parameter_bytes for v in stages])
    for name, schedule, m, how in (
        ("naive", one_by_one, 1, {}),
        ("GPipe", fill_drain, M, {}),
        ("GPipe, re-materialised", fill_drain, M, {"rematerialise": True}),
        ("1F1B, flush", one_f_one_b, M, {}),
    ):
        sizes = micro_batches(B, m)
        peak = peak_memory(stages, sizes, plan(World(K), stages, schedule, sizes, **how))
        rows += [(name, s, n / 1e3) for s, n in enumerate(peak + momentum * own)]
    for rule in RULES:
        seen, peak, x = {}, [0] * K, torch.zeros(network.d)
        held = [Held(v, s, x[v.params], 0.0, float(momentum), seen) for s, v in enumerate(stages)]
        for e, ahead in itertools.islice(
            endless(World(K), stages, B, schedule=one_f_one_b), 12 * K * K
        ):
            stage = held[e.stage]
            rule(stage, e.what, e.item, ahead)
            peak[e.stage] = max(peak[e.stage], stage.nbytes(B))
            if e.what == "B":
                stage.step(e.item, torch.zeros_like(stage.w))
        rows += [(f"PipeDream, {rule.__name__}", s, n / 1e3) for s, n in enumerate(peak)]
    return pd.DataFrame(rows, columns=["schedule", "stage", "memory (kB)"])
