"""A reader's own method: what compare() gives, and what it says to one with a mistake."""

import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from survey_lib.errors import UsageError
from survey_lib.evidence import Case, Lab, judge, ledger, reach, scenes
from survey_lib.evidence.compare import check, compare
from survey_lib.methods.server_sync import fedavg, mean
from survey_lib.models import logistic
from survey_lib.report import atlas, own_lines
from survey_lib.tables import Claim
from survey_lib.training import local_sgd

SOON = partial(reach, target=0.5, column="clock")


def first_answers(task, world, *, first, E, B, eta, seed=0):
    x = task.init()
    for r in itertools.count():
        yield x
        chosen = world.broadcast(np.arange(task.n), x)
        Y = local_sgd(task, world, chosen, x, eta=eta, B=B, E=E, seed=(seed, r))
        up = world.gather(chosen, Y, first=first)
        if len(up):
            x = mean(Y[up], task.sizes[chosen[up]])


def stated(method="first_answers", baseline="fedavg", **changes):
    words = dict(text="sooner", metric="virtual seconds to target accuracy", unit="s")
    how = dict(effect="ratio", direction=-1, least=1.1, seeds=2)
    return Claim(method=method, ref=0, baseline=baseline, **words | how | changes)


ARGUMENTS = dict(first=4, E=1, B=10)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    lab = Lab("99_your_method", out=tmp_path_factory.mktemp("out"))
    how = dict(claim=stated(), value=SOON, against=["fedavg", "d_psgd"], target=0.5, share=0.03)
    return lab, compare(lab, first_answers, ARGUMENTS, steps=(0.1, 0.3), **how)


def test_a_line_per_scene_that_says_yours(found):
    lab, result = found
    lines = result.lines
    assert list(lines.columns) == ledger.COLUMNS and list(lines["row"]) == list(scenes.SCENES)
    assert (lines["table"] == "yours").all() and (lines["method"] == "first_answers").all()
    assert (lines["seeds"] == 2).all() and lines["scale"].tolist() == ["quick"] * 3
    assert not (lab.out / "evidence").exists() and lab.ledger().empty  # nothing was published
    shown = own_lines(lines)
    assert shown["table"].tolist() == ["yours"] * 3
    assert shown["measured effect"].str.startswith("x").all()


def test_the_verdict_is_judges_on_runs_paired_by_seed(found):
    _, result = found
    scene = list(scenes.SCENES)[1]
    runs = result.runs[result.runs["scene"] == scene]
    pair = [
        {s: SOON(h) for s, h in runs[runs["label"] == label].groupby("seed")}
        for label in ("first_answers", "fedavg")
    ]
    assert sorted(pair[0]) == [0, 1]
    verdict = result.verdicts[scene]
    assert verdict.effect == judge(stated(), *pair) and verdict.values == pair[0]
    assert verdict.effect.effect == pytest.approx(result.lines["effect"][1], abs=0)


def test_all_are_tuned_alike_on_a_seed_of_their_own(found):
    lab, result = found
    (path,) = (lab.out / "tuning").glob("*.csv")
    lines = [line.split(",") for line in path.read_text().splitlines()[1:]]
    assert path.name == "99_your_method-first_answers.csv"
    for method in ("fedavg", "d_psgd", "first_answers"):
        mine = [line for line in lines if line[0] == method]
        assert [line[1] for line in mine] == ["0.1", "0.3"]
        assert [line[3] for line in mine].count("True") == 1
    assert set(result.runs["seed"]) == {0, 1}


def test_the_point_on_the_map_is_named_wherever_it_comes(found, tmp_path):
    _, result = found
    how = dict(target=0.5, name="map", caption="Test.", top=0)
    with_own = atlas(result.runs, own=("first_answers",), **how).data
    assert with_own.count("first_answers") > atlas(result.runs, **how).data.count("first_answers")


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(against=["fedsomething"]), "fedsomething: not on the map; there are fedsgd, fedavg"),
        (dict(against=["d_psgd"]), "expected first_answers against one of d_psgd"),
        (dict(claim=stated("other")), "the claim is about other against fedavg; expected first_"),
        (dict(method=fedavg), "fedavg is a method of the survey; give yours a name of its own"),
    ],
)
def test_a_wrong_call_says_what_to_do(changes, message, tmp_path):
    how = dict(method=first_answers, claim=stated(), value=SOON, against=["fedavg"]) | changes
    with pytest.raises(UsageError, match=message):
        compare(Lab("99_your_method", out=tmp_path), how.pop("method"), ARGUMENTS, **how)
    assert not list(tmp_path.rglob("*.json"))


# ---- methods with a mistake: variations of one that is right ------------------------------------


def right(task, world, *, eta, wrong=lambda task, x, r: x, careful=len, seed=0):
    x = task.init()
    for r in itertools.count():
        x = wrong(task, x, r)
        yield x
        chosen = world.broadcast(np.arange(task.n), x)
        Y = local_sgd(task, world, chosen, x, eta=eta, B=10, K=1, seed=(seed, r))
        up = world.gather(chosen, Y)
        if careful(up):
            x = mean(Y[up], task.sizes[chosen[up]])


def in_place(task, world, *, eta, seed=0):
    x = task.init()
    for _ in itertools.count():
        yield x
        x += eta
        world.compute(np.arange(task.n), 1e6)


def ends(task, world, *, eta, seed=0):
    for _, x in zip(range(2), right(task, world, eta=eta, seed=seed), strict=False):
        yield x


def idle(task, world, *, eta, seed=0):
    while True:
        yield task.init()


def global_draws(task, world, *, eta, seed=0):
    for x in right(task, world, eta=eta, seed=seed):
        yield x + torch.rand(len(x))


def returns(task, world, *, eta, seed=0):
    return task.init()


def seedless(task, world, *, eta):
    yield task.init()


def averages_nobody(task, world, *, eta, seed=0):
    yield from right(task, world, eta=eta, careful=lambda up: True, seed=seed)


def waits_for_nobody(task, world, *, eta, seed=0):
    for _ in right(task, world, eta=eta, seed=seed):
        yield torch.zeros(0, task.d).mean(0)


def case(method, **arguments):
    task = dict(n=4, samples=100, network=logistic())
    return Case(method, dict(eta=0.1) | arguments, task)


@pytest.mark.parametrize(
    "method, message",
    [
        (lambda task, x, r: x[:-1], r"yields shape \(649,\) in round 0; expected .*\(650,\)"),
        (lambda task, x, r: x.expand(2, 2, -1), r"yields shape \(2, 2, 650\) in round 0"),
        (lambda task, x, r: x.double(), "torch.float64 in round 0; convert with .to"),
        (lambda task, x, r: x.numpy(), "yields ndarray in round 0; expected a tensor"),
        (lambda task, x, r: x / (r - 1) if r else x, "not finite in round 1; lower the step size"),
        (lambda task, x, r: x @ x[:3] if r == 2 else x, "raised RuntimeError after round 1: "),
        (in_place, "changed in place what it had yielded, in round 1; write x = x"),
        (ends, "ended after 2 models; loop for ever"),
        (idle, "no virtual time passed in 3 rounds; train with"),
        (global_draws, "two runs with one seed differ; draw from"),
        (returns, "returned Tensor; a method is a generator"),
        (seedless, "takes .task, world, eta.; .* add seed"),
        (waits_for_nobody, "not finite in round 0; .*where nobody answered"),
        (averages_nobody, "the mean of no models; where nobody answered"),
        (first_answers, "raised TypeError after round 0: .*missing 3 required"),
    ],
)
def test_a_mistake_is_named_with_what_to_do(method, message):
    wrong = method.__name__ == "<lambda>"
    with pytest.raises(UsageError, match=message):
        check(case(right, wrong=method) if wrong else case(method))


def test_what_is_right_passes():
    check(case(right))
    check(case(first_answers, first=2, E=1, B=10))
    check(case(fedavg, S=4, E=1, B=10))  # and so does the survey's
    check(replace(case(right), world=dict(loss=0.2, retry=True)))
