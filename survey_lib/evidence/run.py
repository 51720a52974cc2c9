"""Drive one method to an end, evaluating what it yields."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch

from survey_lib.errors import Diverged, UsageError
from survey_lib.training import Task
from survey_lib.world import World


def run(
    method: Callable,
    task: Task,
    world: World,
    *,
    rounds: int | None = None,
    seconds: float | None = None,
    nbytes: float | None = None,
    target: float | None = None,
    every: int = 1,
    **arguments,
) -> pd.DataFrame:
    """The history of one run, a row per evaluation.

    Ends after so many rounds (yields after the first), virtual seconds, bytes sent by all, or at a
    target accuracy, whichever comes first. Columns: round, clock (s), bytes, bytes_busiest,
    messages, joules; accuracy and loss on the test data (mean over the models), worst (the worst
    model's accuracy), averaged (of the mean model), and what the method yields besides, as the mean
    since the last row. A model that is not finite raises Diverged, with the history so far.
    """
    if rounds is None and seconds is None and nbytes is None:
        raise UsageError("say when to stop: rounds=..., seconds=... of virtual time, or nbytes=...")
    if rounds is not None and rounds < 1 or every < 1:
        raise UsageError(f"rounds = {rounds}, every = {every}; both must be at least 1")
    known = inspect.signature(method).parameters
    unknown = [
        a
        for a in arguments
        if a not in known and not any(p.kind is p.VAR_KEYWORD for p in known.values())
    ]
    if unknown:
        names = [k for k, p in known.items() if p.kind is p.KEYWORD_ONLY]
        raise UsageError(
            f"{method.__name__} has no argument {', '.join(unknown)}; it has {', '.join(names)}"
        )
    if world.n != task.n:
        raise UsageError(
            f"the task has {task.n} devices, the world {world.n}; build both for the same number"
        )
    rows, extras, r, models = [], [], 0, None

    def evaluate():
        X = models if models.dim() == 2 else models[None]
        if not torch.isfinite(X).all():
            note = (
                f"{method.__name__}: the model is not finite after round {r}; lower the step size"
            )
            raise Diverged(note, pd.DataFrame(rows))
        accuracy, loss = task.evaluate(X)
        averaged = task.evaluate(X.mean(0, keepdim=True))[0] if len(X) > 1 else accuracy
        besides = {k: float(np.mean([e[k] for e in extras if k in e])) for k in extras[-1]}
        extras.clear()
        measured = dict(
            accuracy=accuracy.mean(),
            worst=accuracy.min(),
            averaged=averaged.mean(),
            loss=loss.mean(),
        )
        if hasattr(task, "details"):
            measured |= task.details(X)  # such as each device's accuracy, see problems.OnDevices
        rows.append(dict(round=r, **world.totals(), **measured, **besides))

    for r, value in enumerate(method(task, world, **arguments)):
        if hasattr(task, "reveal"):
            task.reveal(world.clock)  # data that came in, see problems.Instalments
        models, extra = value if isinstance(value, tuple) else (value, {})
        extras.append(extra)
        over = r == rounds or (seconds is not None and world.clock >= seconds)
        over = over or (nbytes is not None and world.totals()["bytes"] >= nbytes)
        if over or r % every == 0:
            evaluate()
            if over or (target is not None and rows[-1]["accuracy"] >= target):
                break
    if extras:  # the method ended by itself between two evaluations
        evaluate()
    return pd.DataFrame(rows).astype({"round": int})


@dataclass(frozen=True)
class Case:
    """A run but for its seed: a method with its arguments, how to build task and world, and when to
    stop. problem: the class that `task` is for, Task or one of problems.py."""

    method: Callable
    arguments: dict = field(default_factory=dict)
    task: dict = field(default_factory=dict)
    world: dict = field(default_factory=dict)
    until: dict = field(default_factory=dict)
    problem: type = Task

    def run(self, seed: int) -> pd.DataFrame:
        """Task, world and method with this seed. A run that diverges ends there; its last row has
        the accuracy of guessing and a column `diverged`, which other runs do not have."""
        task = self.problem(**self.task, seed=seed)
        world = World(**{"n": task.n} | self.world, seed=seed)
        try:
            history = run(self.method, task, world, **self.until, **self.arguments, seed=seed)
        except Diverged as error:
            history = error.args[1]
            lost = dict.fromkeys(("accuracy", "worst", "averaged"), task.guess)
            end = dict(
                round=self.until.get("rounds", int(history["round"].iloc[-1]) + 1), **world.totals()
            )
            end |= lost | dict(diverged=1.0)
            history = pd.concat([history, pd.DataFrame([end])], ignore_index=True)
        return history

    def but(self, **arguments) -> "Case":
        """The same case with some arguments of the method changed."""
        return replace(self, arguments={**self.arguments, **arguments})


def final(history: pd.DataFrame, column: str = "accuracy", last: int = 1) -> float:
    """Mean of a column over the last evaluations of a run."""
    return float(history[column].tail(last).mean())


def reach(
    history: pd.DataFrame, target: float, column: str = "round", of: str = "accuracy"
) -> float:
    """The first value of `column` at which the accuracy is at the target (of="loss": the loss is
    down to it); the run's last value if it never is, which flatters whoever did not arrive: a claim
    to arrive sooner is then understated by its baseline. inf for a run that diverged, which would
    be the soonest to end."""
    if "diverged" in history and history["diverged"].iloc[-1] == 1:
        return np.inf
    sign = -1 if of == "loss" else 1
    there = history[sign * history[of] >= sign * target]
    return float((there if len(there) else history.tail(1))[column].iloc[0])


def at(history: pd.DataFrame, when: float, column: str = "accuracy", by: str = "clock") -> float:
    """The last value of `column` until `by` (seconds, bytes, rounds) is at `when`."""
    return float(history.loc[history[by] <= when, column].iloc[-1])


def area(history: pd.DataFrame, until: float, column: str = "accuracy", by: str = "clock") -> float:
    """The mean of `column` over `by` from 0 to `until`, each value holding until the next."""
    edges = np.append(history[by].clip(upper=until), until)
    return float((history[column] * np.diff(edges)).sum() / until)


def per_round(history: pd.DataFrame, column: str = "clock") -> float:
    """What a round costs: the last value of a column that adds up, divided by the rounds."""
    return float(history[column].iloc[-1] / history["round"].iloc[-1])
