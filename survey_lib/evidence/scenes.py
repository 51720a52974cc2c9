"""The map of the design space: all methods of tables 1 and 2 on one task, in three scenes."""

import pandas as pd

from survey_lib import selection_policy, topology
from survey_lib.compression import top_k
from survey_lib.evidence.run import Case
from survey_lib.evidence.store import write_atomic
from survey_lib.methods import (
    bayesian,
    compressed_updates,
    gossip,
    gossip_async,
    gossip_rounds,
    personalised,
    push_sum,
    selection,
    server_async,
    server_sync,
    stragglers,
    vehicles,
)
from survey_lib.models import mlp
from survey_lib.partition import dirichlet
from survey_lib.world import lognormal, loguniform

N = 16  # devices
_CHIP = dict(device="microcontroller")
SCENES = {  # name: (world, virtual seconds, seconds of a round with a deadline)
    "equal devices on a LAN": (_CHIP | dict(link="lan"), 1.5, 0.3),
    "uneven devices, Wi-Fi and LTE": (
        _CHIP | dict(link=["wifi", "lte"] * 8, spread=loguniform(10), jitter=lognormal(0.3)),
        20.0,
        2.0,
    ),
    "unstable: 10 % loss, churn": (
        _CHIP | dict(link="wifi", spread=loguniform(3), loss=0.1, churn=(4.0, 1.0)),
        4.0,
        0.5,
    ),
}
ABSENT = {  # method: why it is not on the map
    "choco_gossip": "averages vectors, trains nothing",
    "gossip_dual_averaging_pairwise": "ranks pairs, is no classifier of ten classes",
    "asysg_con": "is a method of table 3",
}
STEP = dict(  # what is tuned, if it is not eta
    sasgd="alpha_0", paflm="alpha", subgradient_push="p", p2p_fl_bayes="precision"
)
EVENTS = ("fedasync", "sasgd", "paflm", "aso_fed", "ad_psgd", "gosgd")  # a yield is no round


def ways() -> dict[str, dict]:
    """Family -> {method: its arguments but for the step size}."""
    torus, peers = topology.torus(N), topology.one_peer_exponential(N)
    batch, local = dict(B=8), dict(E=1, B=10)
    return {
        "synchronous server": {
            server_sync.fedsgd: dict(S=N),
            server_sync.fedavg: dict(S=N, **local),
            server_sync.adaptive_tau: dict(B=10, phi=0.00025),
            stragglers.backup_workers: dict(b=2, **batch),
            selection.fedcs: dict(S=N, **local),
            selection.safa: dict(C=0.5, **local),
        },
        "fewer bytes": {
            server_sync.gaia_asp: dict(theta=0.2, **batch),
            compressed_updates.structured_lowrank: dict(rank=8, S=N, **local),
            compressed_updates.structured_random_mask: dict(
                p=0.25, S=N, average=compressed_updates.plain, **local
            ),
            compressed_updates.sketched_updates: dict(S=N, **local),
        },
        "asynchronous server": {
            server_async.fedasync: local,
            server_async.sasgd: batch,
            server_async.paflm: dict(send=server_async.lazy(1.0), **batch),
            server_async.aso_fed: local,
            stragglers.k_sync_async: dict(K=4, **batch),
            stragglers.adasync: dict(K_0=2, interval=0.1, **batch),
            vehicles.drl_node_selection: dict(select=selection_policy.greedy, S=8, **local),
        },
        "all-reduce": {gossip.allreduce_sgd: batch},
        "gossip": {
            gossip.d_psgd: dict(W=torus, **batch),
            gossip.choco_sgd: dict(W=torus, Q=top_k(0.05), gamma=0.2, **batch),
            gossip_async.ad_psgd: dict(W=torus, **batch),
            gossip_async.gosgd: dict(p=0.1, **batch),
            gossip_async.gossiping_sgd: batch,
            gossip_rounds.gossipgrad: batch,
            gossip_rounds.segmented_gossip: dict(segments=10, R=2, **local),
            bayesian.p2p_fl_bayes: dict(W=torus, belief=bayesian.MeanField(rho=0.5, **batch)),
            personalised.model_propagation: dict(W=torus, alpha=0.9, K=200, B=10),
            personalised.collaborative_learning_admm: dict(W=torus, mu=50.0, K=2, **batch),
        },
        "push-sum": {
            push_sum.online_push_sum: dict(A=peers),
            push_sum.subgradient_push: dict(A=peers, power=0.0, **batch),
            push_sum.sgp: dict(A=peers, **batch),
            push_sum.osgp: dict(A=peers, **batch),
        },
    }


def case(
    method, arguments: dict, scene: str, *, data: str, share: float = 1.0, events=EVENTS
) -> Case:
    """A method in a scene, for a `share` of its virtual time; it stops at an accuracy of 0.92.
    events: names of the methods whose yield is an arrival, no round."""
    world, seconds, limit = SCENES[scene]
    name, seconds = method.__name__, share * seconds
    own = dict(adaptive_tau=dict(R=seconds), safa=dict(deadline=limit), fedcs=dict(T_round=limit))
    often = (50, 10_000) if name in events else (10, 1_000)
    until = dict(seconds=seconds, target=0.92, every=often[0], rounds=often[1])
    task = dict(data=data, n=N, network=mlp(32), partition=dirichlet(0.5))
    return Case(method, arguments | own.get(name, {}), task, world, until)


def chart(lab, *, steps=(0.1, 0.3, 0.9), seeds=3, share: float = 1.0) -> pd.DataFrame:
    """Histories of all ways in all scenes, with columns scene, family and label. The step size (of
    p2p_fl_bayes the precision of its prior, a hundred times that) is tuned for each method in the
    first scene, on seeds that no evidence uses, and kept; the values are under OUT/tuning."""
    chosen = [(f, m, a) for f, methods in ways().items() for m, a in methods.items()]
    tuned = best_steps(lab, chosen, steps, share=share, name="map")
    return in_all(lab, chosen, tuned, lab.seeds[:seeds], share=share)


def best_steps(lab, chosen: list, steps, *, name: str, share: float = 1.0, events=EVENTS) -> dict:
    """{method: {its step size's name: the best of `steps` in the first scene}}, on seeds that no
    evidence uses. chosen: (family, method, arguments) of each; the values are under OUT/tuning."""
    data, home = lab.data(), next(iter(SCENES))
    tuned = {m: {_knob(m): _scale(m) * steps[0]} for _, m, _ in chosen}
    if len(steps) > 1:
        grid = {
            f"{method.__name__}|{step}": case(
                method, arguments, home, data=data, share=share, events=events
            ).but(**{_knob(method): _scale(method) * step})
            for _, method, arguments in chosen
            for step in steps
        }
        runs = lab.sweep(grid, seeds=lab.tuning_seeds())
        value = runs.groupby(["label", "seed"], sort=False).apply(_worth, include_groups=False)
        table = value.groupby("label", sort=False).mean().rename("value").reset_index()
        table[["method", "step"]] = table["label"].str.split("|", expand=True)
        best = table.loc[table.groupby("method", sort=False)["value"].idxmax()]
        best = dict(zip(best["method"], best["step"].astype(float), strict=True))
        tuned = {m: {_knob(m): _scale(m) * best[m.__name__]} for m in tuned}
        table["chosen"] = table["method"].map(best) == table["step"].astype(float)
        table = table[["method", "step", "value", "chosen"]]
        write_atomic(lab.out / "tuning" / f"{lab.notebook}-{name}.csv", table.to_csv(index=False))
    return tuned


def in_all(lab, chosen: list, tuned: dict, seeds, *, share=1.0, events=EVENTS) -> pd.DataFrame:
    """Histories of the chosen methods in all scenes, with columns scene, family and label."""
    cases = {
        f"{scene}|{family}|{method.__name__}": case(
            method, arguments, scene, data=lab.data(), share=share, events=events
        ).but(**tuned[method])
        for scene in SCENES
        for family, method, arguments in chosen
    }
    runs = lab.sweep(cases, seeds=seeds)
    runs[["scene", "family", "label"]] = runs["label"].str.split("|", expand=True)
    runs["step"] = runs["label"].map(
        {m.__name__: how[_knob(m)] / _scale(m) for m, how in tuned.items()}
    )
    return runs


def relatives(charted, scene: str, family: str, step="tuned", **how) -> dict[str, Case]:
    """A family's methods in a scene as `chart` ran them; step: "tuned", or one for all of them."""
    steps = dict(zip(charted["label"], charted["step"], strict=True))
    return {
        m.__name__: case(m, arguments, scene, **how).but(
            **{_knob(m): _scale(m) * (steps[m.__name__] if step == "tuned" else step)}
        )
        for m, arguments in ways()[family].items()
    }


def _knob(method):
    return STEP.get(method.__name__, "eta")


def _scale(method):
    return 100 if method.__name__ == "p2p_fl_bayes" else 1


def _worth(history):
    """The larger the better: the best accuracy, and where it is the same, the time left."""
    return history["accuracy"].max() - 1e-3 * history["clock"].iloc[-1]
