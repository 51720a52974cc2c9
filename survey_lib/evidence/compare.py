"""A reader's own method beside the survey's: same scenes, same tuning, same rule of verdict."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd
import torch

from survey_lib.errors import UsageError
from survey_lib.evidence import ledger, scenes
from survey_lib.evidence.lab import Lab, Verdict
from survey_lib.evidence.run import Case
from survey_lib.evidence.verdict import judge
from survey_lib.tables import find
from survey_lib.tables.schema import Claim
from survey_lib.world import World

YOURS = "yours"


@dataclass(frozen=True)
class Comparison:
    """runs: histories of all methods, columns scene, family, label, seed and what `run` measures;
    `report.atlas` and `report.ranking` take them. lines: a row per scene in the ledger's columns,
    with "yours" for the table and the scene for the row. verdicts: by scene. They are the reader's
    and enter no published ledger."""

    runs: pd.DataFrame
    lines: pd.DataFrame
    verdicts: dict[str, Verdict]


def compare(
    lab: Lab,
    method: Callable,
    arguments: dict,
    *,
    claim: Claim,
    value: Callable[[pd.DataFrame], float],
    against: Iterable[str],
    steps: tuple[float, ...] = (0.1, 0.3, 0.9),
    target: float | None = None,
    share: float = 1.0,
    arrivals: bool = False,
) -> Comparison:
    """Run `method` and the survey's methods named in `against` in the scenes of the map, and judge
    the reader's own claim in each.

    method: a generator function over (task, world, *, eta, seed, ...); arguments: all of them but
    eta and seed. claim: its method and baseline are names, the baseline's one of `against`. value:
    one run's history -> the claim's metric. The step size eta of every method, own or not, is the
    best of `steps` on the same seeds, which no evidence uses; runs are paired by seed, as many as
    the claim says where the lab has them. target: the accuracy that the metric waits for, so that
    runs which never got there are counted and shown. share: of each scene's virtual time. arrivals:
    the method yields per arrival, not per round. UsageError says what is wrong with a method before
    anything is run at length.
    """
    name, family = method.__name__, {}
    for kind, methods in scenes.ways().items():
        family |= {m.__name__: (kind, m, known) for m, known in methods.items()}
    against = list(dict.fromkeys(against))
    if find(name) or name in family:
        raise UsageError(f"{name} is a method of the survey; give yours a name of its own")
    if unknown := [a for a in against if a not in family]:
        raise UsageError(f"{', '.join(unknown)}: not on the map; there are {', '.join(family)}")
    if claim.method != name or claim.baseline not in against:
        raise UsageError(
            f"the claim is about {claim.method} against {claim.baseline}; expected {name} against "
            f"one of {', '.join(against)}"
        )
    how = dict(share=share, events=(*scenes.EVENTS, *([name] if arrivals else [])))
    for scene in scenes.SCENES:
        first = scenes.case(method, arguments, scene, data=lab.data(), **how)
        check(first.but(eta=steps[0]))
    chosen = [*(family[a] for a in against), (YOURS, method, dict(arguments))]
    tuned = scenes.best_steps(lab, chosen, steps, name=name, **how)
    runs = scenes.in_all(lab, chosen, tuned, lab.seeds[: claim.seeds], **how)
    verdicts = {s: _verdict(claim, runs[runs["scene"] == s], value, target) for s in scenes.SCENES}
    where = dict(dataset=lab.data(), scale=lab.scale, notebook=lab.notebook)
    fleet = {
        s: ledger.devices(scenes.case(method, arguments, s, data=lab.data())) for s in verdicts
    }
    lines = [
        ledger.entry(YOURS, s, claim, v.effect, devices=fleet[s], **where)
        for s, v in verdicts.items()
    ]
    return Comparison(runs, pd.DataFrame(lines, columns=ledger.COLUMNS), verdicts)


def _verdict(claim, runs, value, target):
    pair, missed = [], []
    for label in (claim.method, claim.baseline):
        seeds = {int(s): h for s, h in runs[runs["label"] == label].groupby("seed")}
        scale = 100 if claim.unit == "points" else 1
        pair.append({s: scale * float(value(h)) for s, h in seeds.items()})
        best = [h["accuracy"].max() for h in seeds.values()]
        missed.append(0 if target is None else sum(b < target for b in best))
    return Verdict(claim, judge(claim, *pair), *pair, tuple(missed))


def check(case: Case, rounds: int = 3) -> None:
    """UsageError, with what to do, if the case's method breaks the contract of a method in its
    first rounds: what it takes, what it yields, that it leaves it alone, that time passes, that a
    second run gives the same bits, that it survives a world in which no message arrives."""
    name = case.method.__name__
    known = inspect.signature(case.method).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in known.values())
    lacking = [k for k in ("eta", "seed") if k not in known and not free]
    if lacking or len(known) < 2:
        raise UsageError(
            f"{name} takes ({', '.join(known)}); expected (task, world, *, ..., eta, seed=0): add "
            f"{', '.join(lacking) or 'task, world'}"
        )
    first, again = _models(case, rounds), _models(case, rounds)
    if not all(torch.equal(a, b) for a, b in zip(first, again, strict=True)):
        raise UsageError(
            f"{name}: two runs with one seed differ; draw from survey_lib.streams.stream(seed, r), "
            "not from a global generator, and keep no state outside the function"
        )
    _models(case, rounds, loss=1.0, retry=False)


def _models(case, rounds, **changes):
    """The first rounds + 1 models of a run with a seed that no evidence uses, each looked at.
    changes: of the case's world."""
    name, task = case.method.__name__, case.problem(**case.task, seed=1000)
    world = World(**{"n": task.n} | case.world | changes, seed=1000)
    yielded, copies, r = [], [], 0
    try:
        made = case.method(task, world, **case.arguments, seed=1000)
        if not hasattr(made, "__next__"):
            raise UsageError(
                f"{name} returned {type(made).__name__}; a method is a generator: `yield x` once "
                "per round, before the round's work"
            )
        for r, value in zip(range(rounds + 1), made, strict=False):
            x = value[0] if isinstance(value, tuple) else value
            _look(name, x, r, task)
            if any(not torch.equal(a, b) for a, b in zip(yielded, copies, strict=True)):
                raise UsageError(
                    f"{name} changed in place what it had yielded, in round {r}; write x = x + ... "
                    "in place of x += ..., and yield X.clone() if rows of X are assigned"
                )
            yielded.append(x)
            copies.append(x.clone())
    except UsageError:
        raise
    except Exception as error:
        said = f"{name} raised {type(error).__name__} after round {r}: {error}"
        raise UsageError(
            f"{said}; run it alone with evidence.run(...) to see the line, and mind that fewer "
            "devices than were asked may have answered"
        ) from error
    if len(copies) <= rounds:
        raise UsageError(
            f"{name} ended after {len(copies)} models; loop for ever (`for r in itertools.count()`)"
            ": the runner stops it"
        )
    if world.clock == 0:
        raise UsageError(
            f"{name}: no virtual time passed in {rounds} rounds; train with local_sgd or gradients "
            "and send with world.broadcast, gather or exchange, which cost time and bytes"
        )
    return copies


def _look(name, x, r, task):
    """UsageError unless x is a finite model, or one per row, in the task's precision."""
    want = f"expected a tensor of shape ({task.d},), or (k, {task.d}) of one model per row"
    if not torch.is_tensor(x):
        raise UsageError(f"{name} yields {type(x).__name__} in round {r}; {want}")
    if x.dim() not in (1, 2) or x.shape[-1] != task.d or not len(x):
        raise UsageError(
            f"{name} yields shape {tuple(x.shape)} in round {r}; {want}: begin with task.init(), "
            "average over the devices with .mean(0) or server_sync.mean"
        )
    if x.dtype != task.dtype:
        raise UsageError(f"{name} yields {x.dtype} in round {r}; convert with .to(task.dtype)")
    if not torch.isfinite(x).all():
        raise UsageError(
            f"{name}: the model is not finite in round {r}; lower the step size, and where nobody "
            "answered (`if len(up):`) keep the model as it is"
        )
