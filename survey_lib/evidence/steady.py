"""What a round of a pipeline costs once it is full."""

import itertools
from collections.abc import Iterable

import numpy as np
import pandas as pd

from survey_lib.cutting import chain, equal_counts, place, slowest
from survey_lib.pipeline import balanced, endless, one_f_one_b, split
from survey_lib.spread import shuffled
from survey_lib.streams import stream
from survey_lib.world import World


def steady(history: pd.DataFrame, column: str = "clock") -> float:
    """The mean increase of a column that adds up, per round, over the second half of a run: the
    filling of a pipeline at its beginning does not count."""
    later = history[history["round"] >= history["round"].iloc[-1] / 2]
    span = later["round"].iloc[-1] - later["round"].iloc[0]
    return float((later[column].iloc[-1] - later[column].iloc[0]) / span)


def until_near(runs: pd.DataFrame, label: str, share: float = 0.05) -> float:
    """The round from which a search is within `share` of the seconds that it ends with, the mean
    over its seeds; runs: histories with the seconds of the best found so far."""
    seeds = [h for _, h in runs[runs["label"] == label].groupby("seed")]
    near = [h["round"][h["seconds"] <= (1 + share) * h["seconds"].iloc[-1]].min() for h in seeds]
    return float(np.mean(near))


def period(world, stages, B: int, devices=None, rounds: int = 40) -> float:
    """Seconds a mini-batch of an asynchronous pipeline that is full, from its timetable alone."""
    steps = endless(world, stages, B, schedule=one_f_one_b, devices=devices)
    home = (world.clock for e, _ in steps if (e.what, e.stage) == ("B", 0))
    clock = list(itertools.islice(home, rounds + 1))
    return (clock[-1] - clock[rounds // 2]) / (rounds - rounds // 2)


def cut_study(networks: dict, links: Iterable, speeds, B: int = 32) -> pd.DataFrame:
    """Seconds a mini-batch of the full pipeline, simulated, by network, link, order of the devices
    (a seed) and how it was cut: at random, equal numbers of layers, equal FLOPs, dynamic
    programming in the order of the devices and in the best order; `planned` by the slowest stage or
    message."""
    rows = []
    for (name, network), link, seed in itertools.product(networks.items(), links, range(3)):

        def world(link=link, seed=seed):
            return World(len(speeds), link=link, spread=shuffled(*speeds), seed=seed)

        layers, everybody = chain(network, B), range(len(speeds))
        K, L = len(speeds), len(layers)
        drawn = 1 + np.sort(stream("random cuts", seed, L).choice(L - 1, K - 1, replace=False))
        plans = {
            "random": (tuple(drawn.tolist()), everybody),
            "equal layers": (equal_counts(L, K), everybody),
            "equal FLOPs": (balanced(network, K), everybody),
            "DP": place(layers, world(), everybody)[1:],
            "DP, best order": place(layers, world(), everybody, any_order=True)[1:],
        }
        for how, (cuts, devices) in plans.items():
            found = dict(
                network=name,
                link=link,
                seed=seed,
                cut=how,
                planned=slowest(layers, world(), cuts, devices),
                simulated=period(world(), split(network, cuts), B, devices),
            )
            rows.append(found)
    return pd.DataFrame(rows)
