import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import leaves

from survey_lib import topology
from survey_lib.errors import Diverged, UsageError
from survey_lib.evidence import Case, area, at, final, judge, reach, run, store, sweep, tune
from survey_lib.evidence import ledger as ledgers
from survey_lib.evidence.lab import Lab, seed_list
from survey_lib.evidence.regret import regrets
from survey_lib.evidence.store import Store, canonical, source_hash, write_atomic
from survey_lib.evidence.sweep import describe
from survey_lib.methods.bayesian import FullGaussian, MeanField
from survey_lib.methods.gossip import d_psgd
from survey_lib.methods.non_iid import fedprox
from survey_lib.methods.server_sync import fedavg, fedsgd
from survey_lib.partition import dirichlet
from survey_lib.presets import Device
from survey_lib.problems import ClusteredMeans
from survey_lib.spread import loguniform
from survey_lib.tables import TABLES, Claim
from survey_lib.topology import complete, ring
from survey_lib.training import Task
from survey_lib.world import World

SMALL = Case(
    fedavg,
    dict(S=3, B=20, E=1, eta=0.1),
    task=dict(n=5, samples=100),
    until=dict(rounds=3),
)


def claim(**changes):
    given = dict(method="m", ref=1, text="t", baseline="b", metric="q", unit="points")
    return Claim(**given | dict(effect="difference", direction=1, least=1.0) | changes)


# ---- run ----------------------------------------------------------------------------------------


def test_history_has_a_row_per_evaluation_and_ends_at_the_limit():
    history = run(fedsgd, Task(n=4), World(4), rounds=7, every=3, S=2, eta=0.5)
    assert history["round"].tolist() == [0, 3, 6, 7]
    assert history["clock"].is_monotonic_increasing and history["bytes"].iloc[0] == 0


def test_run_ends_at_the_target_and_after_virtual_seconds():
    history = run(fedavg, Task(n=4), World(4), rounds=50, target=0.5, S=4, eta=0.1, B=10, E=1)
    assert history["accuracy"].iloc[-1] >= 0.5 > history["accuracy"].iloc[-2]
    timed = run(fedavg, Task(n=4), World(4), seconds=0.05, S=4, eta=0.1, B=10, E=1)
    assert timed["clock"].iloc[-1] >= 0.05 > timed["clock"].iloc[-2]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(), "say when to stop"),
        (dict(rounds=0), "at least 1"),
        (dict(rounds=1, etta=0.1), "no argument etta; it has S, eta, seed"),
        (dict(rounds=1, S=5, eta=0.1), "S = 5 devices a round, but there are 4"),
    ],
)
def test_run_refuses(arguments, message):
    with pytest.raises(UsageError, match=message):
        run(fedsgd, Task(n=4), World(4), **arguments)


def test_a_model_that_is_not_finite_is_refused_and_a_case_records_it_as_guessing():
    wild = dict(S=4, eta=1e30)
    with pytest.raises(Diverged, match="not finite after round . *; lower the step size"):
        run(fedsgd, Task(n=4), World(4), rounds=9, **wild)
    history = Case(fedsgd, wild, dict(n=4), until=dict(rounds=9)).run(0)
    assert history["round"].iloc[-1] == 9 and history["accuracy"].iloc[-1] == 0.1
    assert reach(history, 0.9, "clock") == np.inf > history["clock"].iloc[-1]  # not the soonest


def test_final_and_reach_by_hand():
    history = pd.DataFrame(
        dict(round=[0, 1, 2, 3], accuracy=[0.1, 0.5, 0.4, 0.6], clock=[0, 2, 4, 6])
    )
    assert final(history, last=2) == 0.5
    assert reach(history, 0.5) == 1 and reach(history, 0.55, "clock") == 6
    assert reach(history, 0.9) == 3  # never: the last value
    assert reach(history.assign(loss=1 - history["accuracy"]), 0.5, of="loss") == 1


# ---- store --------------------------------------------------------------------------------------


def test_the_store_returns_the_same_bits(tmp_path):
    store, history = Store(tmp_path), SMALL.run(0)
    store.put("ab" * 16, {"a": 1}, history)
    pd.testing.assert_frame_equal(store.get("ab" * 16), history, check_exact=True)


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_run_is_repeated_not_used(tmp_path, damage, capsys):
    first = sweep({"a": SMALL}, [0], out=tmp_path)
    (path,) = [p for p in (tmp_path / "runs").glob("*/*.json") if p.parent.name != "under-way"]
    body = path.read_bytes()
    broken = {
        "truncate": body[: len(body) // 2],
        "flip": body.replace(b"0.", b"1.", 1),
        "empty": b"",
    }
    path.write_bytes(broken[damage])
    pd.testing.assert_frame_equal(sweep({"a": SMALL}, [0], out=tmp_path), first)
    assert "damaged" in capsys.readouterr().out and path.read_bytes() == body


def test_a_finished_run_is_not_repeated(tmp_path, monkeypatch):
    first = sweep({"a": SMALL}, [0, 1], out=tmp_path)
    monkeypatch.setattr(Store, "put", lambda *a: pytest.fail("the run was repeated"))
    pd.testing.assert_frame_equal(sweep({"a": SMALL}, [0, 1], out=tmp_path), first)


def test_the_key_knows_every_part_of_a_run():
    keys = {
        "same": SMALL,
        "argument": SMALL.but(eta=0.2),
        "method": Case(fedsgd, SMALL.arguments, SMALL.task, SMALL.world, SMALL.until),
        "task": Case(fedavg, SMALL.arguments, SMALL.task | dict(n=6), SMALL.world, SMALL.until),
        "partition": Case(fedavg, SMALL.arguments, SMALL.task | dict(partition=dirichlet(0.1))),
        "other alpha": Case(fedavg, SMALL.arguments, SMALL.task | dict(partition=dirichlet(0.2))),
        "world": Case(fedavg, SMALL.arguments, SMALL.task, dict(loss=0.1), SMALL.until),
        "until": Case(fedavg, SMALL.arguments, SMALL.task, SMALL.world, dict(rounds=4)),
    }
    shelf = Store("unused")
    seen = [shelf.key(describe(c, 0)) for c in keys.values()] + [shelf.key(describe(SMALL, 1))]
    assert len(set(seen)) == len(seen)
    assert shelf.key(describe(SMALL.but(eta=0.1), 0)) == seen[0]


def test_the_source_hash_follows_calls_within_the_methods(monkeypatch):
    before = source_hash(fedprox), source_hash(fedsgd)
    old = store._source
    monkeypatch.setattr(store, "_source", lambda f: old(f) + "# changed" * (f is fedavg))
    source_hash.cache_clear()
    after = source_hash(fedprox), source_hash(fedsgd)
    source_hash.cache_clear()
    assert after[0] != before[0] and after[1] == before[1]  # fedprox calls fedavg, fedsgd does not


def test_a_method_typed_into_a_shell_has_a_key_that_follows_its_helpers():
    def typed(helper):
        space = {"__name__": "__main__"}
        exec(f"def helper(x): return {helper}\ndef method(task): yield helper(task)", space)
        return source_hash(space["method"])

    assert typed("x + 1") == typed("x + 1") != typed("x + 2")


def test_a_method_typed_into_a_shell_has_a_key_that_follows_its_values_and_classes():
    def typed(scale, step, base):
        space = {"__name__": "__main__", "torch": torch, "scale": scale}
        exec(
            f"""
class Base:
    def step(self): return {base}
class Rule(Base):
    @property
    def size(self): return {step}
def method(task): yield torch.relu(scale) * Rule().size * Rule().step()
""",
            space,
        )
        return source_hash(space["method"])

    same = typed(torch.ones(2), 1, 1)
    assert typed(torch.ones(2), 1, 1) == same
    assert len({same, typed(torch.zeros(2), 1, 1), typed([1], 1, 1), typed([2], 1, 1)}) == 4
    assert typed(torch.ones(2), 2, 1) != same != typed(torch.ones(2), 1, 2)


def test_the_key_follows_a_module_that_is_used_by_its_name(monkeypatch):
    reached, old = [], store._reach
    monkeypatch.setattr(store, "_reach", lambda names: reached.append(set(names)) or old(names))
    space = {"__name__": "__main__", "topology": topology, "np": np}
    exec("def method(task): yield np.sum(topology.ring(task.n))", space)
    source_hash(space["method"])
    assert reached == [{"survey_lib.topology"}]


def test_the_key_follows_the_code_of_objects_and_of_base_classes(monkeypatch):
    """A belief is an argument; what a personal problem is judged by stands in its base class."""

    def changed(value, what):
        before, old = canonical(value), store._source
        monkeypatch.setattr(store, "_source", lambda f: old(f) + "# changed" * (f is what))
        source_hash.cache_clear()
        after = canonical(value)
        monkeypatch.undo()
        source_hash.cache_clear()
        return before != after

    assert changed(FullGaussian(), FullGaussian) and not changed(MeanField(B=1), FullGaussian)

    class Base:
        pass

    class Derived(Base):
        pass

    assert changed(Derived, Base) and changed(Derived, Derived) and not changed(Base, Derived)
    reached, old = [], store._reach
    monkeypatch.setattr(store, "_reach", lambda names: reached.append(names) or old(names))
    source_hash.cache_clear()
    source_hash(ClusteredMeans)
    assert reached == [{"survey_lib.problems"}]  # Personal is there, all of it counts
    source_hash.cache_clear()


def test_what_a_nested_function_holds_is_in_its_key():
    def make(step):
        return lambda x: step * x

    assert canonical(make(1)) == canonical(make(1)) != canonical(make(2))
    with pytest.raises(TypeError, match="cannot be part of a run's key"):
        canonical(make(object()))


def test_a_changed_trace_is_another_world(tmp_path):
    trace = tmp_path / "churn.csv"
    write = partial(pd.DataFrame.to_csv, path_or_buf=trace, index=False)
    write(leaves(0, 1.0))
    case = Case(fedavg, SMALL.arguments, SMALL.task, dict(churn=str(trace)), SMALL.until)
    before = describe(case, 0)
    assert describe(case, 0) == before
    write(leaves(0, 2.0))
    assert describe(case, 0) != before


def test_canonical_tells_tensors_and_partials_apart():
    assert canonical(torch.eye(2)) != canonical(torch.ones(2, 2))
    assert canonical(torch.zeros(4)) != canonical(torch.zeros(4, dtype=torch.int32))
    assert canonical({1: 0}) != canonical({"1": 0})
    assert canonical(partial(fedavg, S=1)) != canonical(partial(fedavg, S=2))
    assert canonical(dirichlet(0.1)) == canonical(dirichlet(0.1)) != canonical(dirichlet(1.0))
    with pytest.raises(TypeError, match="cannot be part of a run's key"):
        canonical(object())


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = write_atomic(tmp_path / "a" / "f.txt", "old")
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError(28, "no space")))
    with pytest.raises(OSError):
        write_atomic(path, "new")
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


# ---- sweep and tune -----------------------------------------------------------------------------


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_bits(tmp_path):
    cases = {"a": SMALL, "b": SMALL.but(eta=0.3)}
    one = sweep(cases, [0, 1], out=tmp_path / "one", jobs=1)
    two = sweep(dict(reversed(cases.items())), [1, 0], out=tmp_path / "two", jobs=2)
    order = ["label", "seed", "round"]
    one, two = (f.sort_values(order).reset_index(drop=True) for f in (one, two))
    pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_no_seeds_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no seeds"):
        sweep({"a": SMALL}, [], out=tmp_path)


def test_tune_takes_the_best_and_records_the_grid(tmp_path):
    best, table = tune(SMALL, dict(eta=[1e-6, 0.1, 1e30]), final, out=tmp_path)
    assert best.arguments["eta"] == 0.1 and table["chosen"].tolist() == [False, True, False]
    worst, _ = tune(SMALL, dict(eta=[1e-6, 0.1]), final, largest=False, out=tmp_path)
    assert worst.arguments["eta"] == 1e-6


@pytest.mark.parametrize("value", [partial(final, column="loss"), partial(reach, target=0.3)])
def test_tune_does_not_take_what_diverges(tmp_path, value):
    best, _ = tune(SMALL, dict(eta=[0.1, 1e30]), value, largest=False, out=tmp_path)
    assert best.arguments["eta"] == 0.1


# ---- verdict ------------------------------------------------------------------------------------


def values(*numbers):
    return dict(enumerate(numbers))


def test_interval_by_hand():
    # differences 1, 2, 3: mean 2, sd 1; t(0.975, 2) = 4.30265, / sqrt(3) = 2.48414
    effect = judge(claim(), values(1.0, 2.0, 3.0), values(0.0, 0.0, 0.0))
    assert effect.effect == 2
    np.testing.assert_allclose([effect.low, effect.high], [2 - 2.48414, 2 + 2.48414], atol=1e-5)
    assert effect.verdict == "inconclusive"


@pytest.mark.parametrize(
    "gaps, changes, verdict",
    [
        ((5.0, 5.1, 4.9), {}, "supported"),
        ((0.5, 0.51, 0.49), {}, "partly"),
        ((-2.0, -2.1, -1.9), {}, "contradicted"),
        ((2.0, -2.0, 0.1), {}, "inconclusive"),
        ((-5.0, -5.1, -4.9), dict(direction=-1), "supported"),
        ((-0.5, -0.51, -0.49), dict(least=-1.0), "supported"),  # no worse by more than 1
        ((-2.0, -2.01, -1.99), dict(least=-1.0), "contradicted"),
        ((-0.5, -2.0, 0.1), dict(least=-1.0), "inconclusive"),
        ((2.0, 2.0, 2.0), dict(least=2.0), "supported"),  # no spread at all
    ],
)
def test_verdict_rule(gaps, changes, verdict):
    base = values(50.0, 60.0, 70.0)
    method = {s: base[s] + g for s, g in enumerate(gaps)}
    assert judge(claim(**changes), method, base).verdict == verdict


def test_a_ratio_is_judged_on_the_log_and_reported_as_a_factor():
    effect = judge(
        claim(effect="ratio", direction=-1, least=2.0, unit="s"), values(1.0, 2.0), values(4.0, 8.0)
    )
    assert math.isclose(effect.effect, 0.25) and effect.verdict == "supported"


@pytest.mark.parametrize(
    "method, baseline, message",
    [
        ({0: 1.0}, {0: 1.0}, "2 seeds or more"),
        ({0: 1.0, 1: 1.0}, {0: 1.0, 2: 1.0}, "run both on the same"),
        ({0: 1.0, 1: math.nan}, {0: 1.0, 1: 1.0}, "not finite"),
    ],
)
def test_judge_refuses(method, baseline, message):
    with pytest.raises(UsageError, match=message):
        judge(claim(), method, baseline)


# ---- ledger and lab -----------------------------------------------------------------------------


def published():
    e = dict(
        table=1, row="1", ref=41, method="fedavg", claim="c", baseline="b", metric="m", unit="x"
    )
    e |= dict(effect=0.2, ci_low=0.1, ci_high=0.3, seeds=5, verdict="supported", dataset="digits")
    e |= dict(devices="raspberry pi", scale="full", notebook="01_architectures")
    return pd.DataFrame([e, e | dict(method="fedsgd")], columns=ledgers.COLUMNS)


def test_ledger_file_keeps_every_bit(tmp_path):
    frame = published()
    frame["effect"] = [0.1 + 0.2, 1 / 3]
    ledgers.save(frame, tmp_path / "evidence.csv")
    pd.testing.assert_frame_equal(ledgers.load(tmp_path / "evidence.csv"), frame, check_exact=True)


def test_lab_records_a_line_in_the_order_of_the_tables(tmp_path):
    lab = Lab("01_architectures", out=tmp_path)
    for method, ratio in (("fedavg", 0.1), ("fedsgd", 1.0)):
        lab.judge(method, values(ratio, ratio * 1.01), values(1.0, 1.0), "digits")
    frame = lab.ledger()
    assert (
        frame["method"].tolist() == ["fedsgd", "fedavg"] and list(frame.columns) == ledgers.COLUMNS
    )
    assert frame["verdict"].tolist() == ["supported", "supported"]
    assert json.loads(frame.to_json(orient="records"))[0]["row"] == "1"
    with pytest.raises(UsageError, match="no evidence for d_psgd"):
        lab.finish(["fedavg", "d_psgd"])
    assert lab.finish(["fedavg"]) == "01_architectures: finished, 1 methods with evidence"


def test_a_line_says_on_what_devices(tmp_path):
    own = Device(1e9, 1e9, 1.0, 2.0, 1.5, "assumed")
    worlds = {
        "raspberry pi": dict(link="lan"),
        "microcontroller": dict(device="microcontroller"),
        "phone, unequal": dict(device="phone", spread=loguniform(2)),
        "the experiment's own": dict(device=[own, own]),
        "the experiment's own and raspberry pi, unequal": dict(device=[own, "raspberry_pi"]),
        "several kinds, unequal": dict(device=["jetson", "laptop", "phone"]),
    }
    cases = {k: replace(SMALL, world=w) for k, w in worlds.items()}
    assert [ledgers.devices(c) for c in cases.values()] == list(worlds)
    lab = Lab("01_architectures", out=tmp_path, seeds="0-1")
    two = {"fedavg": cases["microcontroller"], "b": SMALL}
    runs = lab.sweep(two)
    lab.record("fedavg", runs, final, baseline="b", data="digits")
    lab.judge("fedsgd", values(1.0, 1.1), values(1.0, 1.0), "digits")
    assert list(lab.ledger()["devices"]) == ["raspberry pi", "microcontroller"]


def test_points_are_per_cent(tmp_path):
    lab = Lab("03_non_iid", out=tmp_path)
    verdict = lab.judge("label_dirichlet", values(0.80, 0.81), values(0.90, 0.91), "digits")
    assert math.isclose(verdict.effect.effect, -10) and verdict.row()["least"] == -3


@pytest.mark.parametrize(
    "text, seeds", [("0-4", [0, 1, 2, 3, 4]), ("1,5", [1, 5]), ("0-1,7", [0, 1, 7])]
)
def test_seed_list(text, seeds):
    assert seed_list(text) == seeds


def test_a_method_that_ends_by_itself_is_evaluated_at_its_end():
    def three(task, world, *, seed=0):
        for r in range(3):
            yield task.init() + r, {"r": r}

    task = Task(n=2, samples=40)
    history = run(three, task, World(2), rounds=99, every=10)
    assert list(history["round"]) == [0, 2] and list(history["r"]) == [0.0, 1.5]
    assert list(run(three, task, World(2), rounds=99, every=2)["round"]) == [0, 2]


def test_values_without_a_name_are_tuned_one_by_one(tmp_path):
    """Matrices, partials, partitions have no short name: each is run all the same."""
    case = Case(d_psgd, dict(B=8, eta=0.5), dict(n=4), until=dict(rounds=2))
    grid = dict(W=[ring(4), complete(4)])
    best, table = tune(case, grid, final, seeds=[0, 1], out=tmp_path)
    assert list(table["setting"]) == ["W[0]", "W[1]"] and table["value"].nunique() == 2
    assert torch.equal(best.arguments["W"], grid["W"][int(table["value"].argmax())])


def test_at_and_area_by_hand():
    history = pd.DataFrame(dict(clock=[0.0, 1.0, 4.0], accuracy=[0.1, 0.5, 0.9]))
    assert at(history, 3.9) == 0.5 and at(history, 4.0) == 0.9
    assert area(history, 4.0) == pytest.approx((1 * 0.1 + 3 * 0.5) / 4)
    assert area(history, 2.0) == pytest.approx((1 * 0.1 + 1 * 0.5) / 2)
    assert area(history, 6.0) == pytest.approx((1 * 0.1 + 3 * 0.5 + 2 * 0.9) / 6)


@pytest.mark.parametrize("text", ["", "x", "4-0", "1,1"])
def test_seed_list_refuses(text):
    with pytest.raises(UsageError, match="write 0-4 or 0,1,7"):
        seed_list(text)


def test_figures_beside_a_claim_take_one_seed_at_quick_scale(tmp_path):
    assert Lab("x", scale="quick", out=tmp_path).few(3) == [0]
    assert Lab("x", scale="full", out=tmp_path).few(3) == [0, 1, 2]


def test_lab_refuses_an_unknown_scale():
    with pytest.raises(UsageError, match='SCALE="big" is unknown; expected one of quick, full'):
        Lab("01_architectures", scale="big")


def test_every_claim_has_a_place_in_its_notebooks_table():
    from survey_lib.tables.claims import CLAIMS

    for table, method in CLAIMS:
        assert any(method in row.methods for row in TABLES[table].rows), method


def test_regrets_by_hand():
    """Of a 2, b 4, c 3 in one case and a 10, b 5, c 4 in the other, a and b fixed."""
    last = {"u; a": 2.0, "u; b": 4.0, "u; c": 3.0, "v; a": 10.0, "v; b": 5.0, "v; c": 4.0}
    runs = [(label, 7, loss) for label, end in last.items() for loss in (9.0, end)]
    found = regrets(pd.DataFrame(runs, columns=["label", "seed", "loss"]), "loss", ["a", "b"])
    assert found.index.tolist() == [("u", 7), ("v", 7)]
    assert found.loc["u", 7].to_dict() == {"a": 0.0, "b": 1.0, "c": 0.5}
    assert found.loc["v", 7].to_dict() == {"a": 1.0, "b": 0.0, "c": pytest.approx(-0.2)}
