"""The tournament of table 4: every method that ends with one model for all, on every kind of skew
that Kairouz et al., Foundations and Trends in Machine Learning 14, 2021, section 3.1, tell apart,
at three degrees each. Li Q. et al., ICDE 2022, did the like and found no winner for all."""

from functools import partial

import numpy as np
import pandas as pd
import torch
from scipy.stats import friedmanchisquare, ttest_rel

from survey_lib.evidence.run import Case, final, reach
from survey_lib.methods import non_iid, server_sync, sharing
from survey_lib.models import mlp
from survey_lib.partition import dirichlet, iid, label_skew, quantity, shards, tied, trimmed
from survey_lib.skew import dependence, gini
from survey_lib.tasks import OnDevices, Styles
from survey_lib.training import Task, train
from survey_lib.views import noisy, renamed, rotated

N = 20  # devices, of which a quarter in each round
SHARING = "shared data"  # adds data, so it stands beside the others and wins nothing
STEPS = 0.03, 0.1, 0.3
SPARE = 0.02  # share of the samples that no device holds: what the server shares, where it does
METHODS = {  # name: (method, its arguments but for the step, the step's name)
    "FedAvg": (server_sync.fedavg, {}, "eta"),
    "FedAvgM": (non_iid.fedavgm, dict(beta=0.7), "eta"),
    "FedProx": (non_iid.fedprox, dict(mu=0.1), "eta"),
    "SCAFFOLD": (non_iid.scaffold, {}, "eta_l"),
    "FedNova": (non_iid.fednova, {}, "eta"),
    "FedVC": (non_iid.fedvc, dict(size=72), "eta"),
    "FedIR": (non_iid.fedir, dict(clip=10.0), "eta"),
    "FedCurv": (sharing.fedcurv, dict(lam=0.1), "eta"),
    SHARING: (sharing.shared_data, dict(beta=SPARE), "eta"),
}


def skews() -> dict[str, dict[str, dict]]:
    """{kind: {degree: what differs from a Case of IID data}}, each kind from mild to strong."""

    def split(partition):
        return dict(task=dict(partition=trimmed(partition, SPARE)))

    def seen(view):
        return dict(task=split(iid())["task"] | dict(view=view), problem=OnDevices)

    def styles(k):
        return dict(task=dict(styles=k, spare=SPARE), problem=Styles)

    halves = tied((0, 1, 2, 3, 4), tuple(range(N // 2)))
    return {
        "none": {"IID": split(iid())},
        "P(y): labels": {f"Dir({a:g})": split(dirichlet(a, per="client")) for a in (1.0, 0.3, 0.1)},
        "P(y): classes": {f"{s} shard{'s' * (s > 1)}": split(shards(s)) for s in (3, 2, 1)},
        "P(x): angle": {f"to {a}°": seen(rotated(a)) for a in (30, 60, 90)},
        "P(x): noise": {f"to sd {s:g}": seen(noisy(s)) for s in (0.25, 0.5, 1.0)},
        "P(x|y): styles": {
            f"{k} a class": dict(task=dict(styles=k, spare=SPARE), problem=Styles)
            for k in (2, 4, 8)
        },
        "P(y|x): names": {f"{k} of 5 pairs": seen(renamed(k)) for k in (1, 2, 4)},
        "amounts": {f"Dir({a:g})": split(quantity(a)) for a in (2.0, 0.5, 0.2)},
        "who is online": {f"tie {a:g}": split(halves) | dict(tie=a) for a in (0.0, 0.25, 0.5)},
    }


def cases(data: str, rounds: int, cycle: float, mild=True) -> dict[tuple[str, str, str], Case]:
    """(kind, degree, method) -> the case, but for its step. cycle: seconds of the cycle in which
    devices come and go where that is the skew. mild=False: the strongest degree of each kind."""
    until, local = dict(rounds=rounds, every=2), dict(S=N // 4, E=5, B=10)
    found = {}
    for kind, degrees in skews().items():
        for degree, how in list(degrees.items())[0 if mild else -1 :]:
            task = dict(data=data, n=N, network=mlp(32)) | how["task"]
            for name, (method, own, _) in METHODS.items():
                arguments = local | own
                if "tie" in how:
                    arguments |= dict(of=method, a1=how["tie"], cycle=cycle)
                    method = dependence
                problem = how.get("problem", Task)
                found[kind, degree, name] = Case(method, arguments, task, {}, until, problem)
    return found


def play(lab, data: str, rounds: int, cycle: float, target: float, seeds) -> pd.DataFrame:
    """Every method on every skew, each with the best of the same STEPS, found on seeds of its own
    by the accuracy at the end; at quick scale the middle one, and of each kind the strongest. A row
    per kind, degree, method and seed: step; accuracy, mean of the last three evaluations; bytes
    until the target, inf where it is not reached."""
    last, mild = partial(final, last=3), lab.pick(quick=False, full=True)
    known, steps = cases(data, rounds, cycle, mild), lab.pick(quick=STEPS[1:2], full=STEPS)
    tried = {
        "; ".join((*key, f"{eta:g}")): case.but(**{METHODS[key[2]][2]: eta})
        for key, case in known.items()
        for eta in steps
    }
    runs = lab.sweep(tried, seeds=lab.tuning_seeds())
    value = runs.groupby(["label", "seed"]).apply(last, include_groups=False)
    value = value.groupby("label").mean()
    names = ["; ".join(key) for key in known]
    best = [max((f"{name}; {eta:g}" for eta in steps), key=value.get) for name in names]
    runs, rows = lab.sweep({label: tried[label] for label in best}, seeds=seeds), []
    for (label, seed), h in runs.groupby(["label", "seed"], sort=False):
        *key, eta = label.split("; ")
        there = h["accuracy"].max() >= target
        spent = reach(h, target, "bytes") if there else np.inf
        rows.append((*key, seed, float(eta), last(h), spent))
    return pd.DataFrame(rows, columns="kind degree method seed step accuracy bytes".split())


def entrants(known: dict, played: pd.DataFrame, world: str, step="tuned") -> dict[str, Case]:
    """Every method in one world, "kind, degree": with the step that `play` found for it there, or
    all with the same. known: `cases`."""
    steps = {(f"{e.kind}, {e.degree}", e.method): e.step for e in played.itertuples()}
    return {
        name: case.but(**{METHODS[name][2]: steps[world, name] if step == "tuned" else step})
        for (kind, degree, name), case in known.items()
        if f"{kind}, {degree}" == world
    }


def winners(played: pd.DataFrame) -> pd.DataFrame:
    """Who wins each world, shared data aside, and how sure that is: by how many points over the
    next, the p-value of that difference (paired t over seeds), and in how many of the seeds the
    winner is first."""
    rows = []
    own = played[played["method"] != SHARING]
    for world, found in own.groupby(["kind", "degree"], sort=False):
        wide = found.pivot(index="seed", columns="method", values="accuracy")
        first, second = wide.mean().nlargest(2).index
        gap = wide[first] - wide[second]
        p = ttest_rel(wide[first], wide[second]).pvalue if gap.std() > 0 else 1.0
        won = int((wide[first] >= wide.max(axis=1)).sum())
        ahead = round(100 * gap.mean(), 6) + 0.0  # a tie is 0, not -2e-15
        rows.append((*world, first, second, ahead, p, f"{won} of {len(wide)}"))
    names = "kind degree winner next points_ahead p seeds_won".split()
    return pd.DataFrame(rows, columns=names)


def behind(played: pd.DataFrame) -> pd.DataFrame:
    """Points of accuracy that each method (columns) is behind the best of the same world (rows), of
    means over seeds and shared data aside: 0 for the winner."""
    own = played[played["method"] != SHARING]
    mean = own.groupby(["kind", "degree", "method"], sort=False)["accuracy"].mean().unstack()
    return 100 * mean.rsub(mean.max(axis=1), axis=0)


def standing(played: pd.DataFrame, seen: pd.DataFrame) -> pd.DataFrame:
    """How good it is to take one method everywhere: mean rank over the worlds (1 is best), mean and
    largest number of points behind the best, worlds within a point of it; and of a selector that
    takes what is best in that other world whose `seen` (see `glimpses`) is nearest."""
    lost = behind(played)
    ranks, seen = lost.rank(axis=1), seen.loc[lost.index]
    scaled = (seen - seen.mean()) / seen.std().replace(0, 1)
    far = np.linalg.norm(scaled.to_numpy()[:, None] - scaled.to_numpy(), axis=-1)
    np.fill_diagonal(far, np.inf)
    nearest = seen.index[far.argmin(1)]
    picked = [lost.loc[w, lost.loc[v].idxmin()] for w, v in zip(seen.index, nearest, strict=True)]
    table = dict(
        mean_rank=ranks.mean(),
        mean_behind=lost.mean(),
        most_behind=lost.max(),
        within_a_point=(lost <= 1).sum(),
    )
    own = pd.Series(picked)
    choice = [np.nan, own.mean(), own.max(), int((own <= 1).sum())]
    frame = pd.DataFrame(table).sort_values("mean_behind")
    frame.loc["chosen by what is seen"] = choice
    return frame.rename_axis("method").reset_index()


def friedman(played: pd.DataFrame) -> float:
    """p-value of Friedman's test that the methods rank alike over the worlds."""
    return float(friedmanchisquare(*behind(played).to_numpy().T).pvalue)


def glimpses(data: str, seeds) -> pd.DataFrame:
    """What a server may see of a world (rows) before it chooses a method, mean over seeds: skew of
    the devices' label counts, the Gini coefficient of their sizes, and the mean cosine between
    their first updates."""
    rows, index = [], []
    for kind, degrees in skews().items():
        for degree, how in degrees.items():
            problem, found = how.get("problem", Task), []
            for seed in seeds:
                task = problem(data=data, n=N, network=mlp(32), **how["task"], seed=seed)
                y = [task.y[task.rows(i)] for i in range(N)]
                counts = torch.stack([v.bincount(minlength=task.classes) for v in y]).numpy()
                x = task.init()
                U = train(task, range(N), x, eta=0.1, B=10, E=1, seed=(seed, "glimpse")) - x
                U = U / U.norm(dim=1, keepdim=True)
                cosine = ((U.sum(0) @ U.sum(0) - N) / (N * (N - 1))).item()
                found.append((label_skew(counts), gini(task.sizes), cosine))
            rows.append(np.mean(found, axis=0))
            index.append((kind, degree))
    names = pd.MultiIndex.from_tuples(index, names=["kind", "degree"])
    return pd.DataFrame(rows, names, ["label skew", "Gini of sizes", "cosine of updates"])
