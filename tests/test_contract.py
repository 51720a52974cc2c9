"""What every method promises, whatever it does."""

import inspect
import itertools
import random

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import leaves

from survey_lib import training
from survey_lib.compression import top_k
from survey_lib.methods import (
    bayesian,
    codistillation,
    compact,
    compressed_updates,
    convergence,
    delayed,
    distillation,
    downpour,
    drifting,
    federated_distillation,
    gossip,
    gossip_async,
    gossip_rounds,
    hyper,
    layer_parallel,
    linear_distillation,
    non_iid,
    pairwise,
    personal_models,
    personalised,
    pipelines,
    placement,
    push_sum,
    selection,
    server_async,
    server_sync,
    sharing,
    slow_devices,
    staleness,
    stragglers,
    transfer,
    vehicles,
)
from survey_lib.models import mlp
from survey_lib.partition import dirichlet
from survey_lib.selection_policy import at_random
from survey_lib.tables.claims import CLAIMS
from survey_lib.topology import complete, one_peer_exponential, ring
from survey_lib.training import Task
from survey_lib.world import World, loguniform

MODULES = (
    bayesian,
    codistillation,
    compact,
    compressed_updates,
    convergence,
    delayed,
    distillation,
    downpour,
    federated_distillation,
    drifting,
    gossip,
    gossip_async,
    gossip_rounds,
    hyper,
    layer_parallel,
    linear_distillation,
    non_iid,
    pairwise,
    personal_models,
    personalised,
    pipelines,
    placement,
    push_sum,
    selection,
    server_async,
    server_sync,
    sharing,
    slow_devices,
    staleness,
    stragglers,
    transfer,
    vehicles,
)
N, ROUNDS = 5, 4
LOCAL = dict(K=3, B=8, eta=0.1)
TAUGHT = dict(teacher=distillation.Teacher(mlp(8), epochs=1), **LOCAL)
HINT = dict(stage_1=2, eta_1=0.05, layers=(0, 0), **TAUGHT)
HYBRID = dict(T_round=0.1, m=5, E=1, B=8, eta=0.1)
METHODS = {  # name: (arguments for n devices, one model per device?)
    "fedsgd": (lambda n: dict(S=min(n, 3), eta=0.3), False),
    "fedavg": (lambda n: dict(S=min(n, 3), E=2, B=8, eta=0.1), False),
    "gaia_asp": (lambda n: dict(theta=0.1, B=8, eta=0.1), True),
    "adaptive_tau": (lambda n: dict(R=1e6, B=8, eta=0.1), False),
    "allreduce_sgd": (lambda n: dict(B=8, eta=0.1), False),
    "d_psgd": (lambda n: dict(W=mixing(n), B=8, eta=0.1), True),
    "choco_sgd": (lambda n: dict(W=mixing(n), Q=top_k(0.1), gamma=0.2, B=8, eta=0.1), True),
    "p2p_fl_bayes": (lambda n: dict(W=mixing(n), belief=bayesian.MeanField(8), precision=32), True),
    "ad_psgd": (lambda n: dict(W=mixing(n), B=8, eta=0.1), True),
    "gosgd": (lambda n: dict(p=1.0, B=8, eta=0.1), True),
    "gossiping_sgd": (lambda n: dict(B=8, eta=0.1), True),
    "gossipgrad": (lambda n: dict(B=8, eta=0.1), True),
    "segmented_gossip": (lambda n: dict(segments=4, R=min(2, n - 1), E=1, B=8, eta=0.1), True),
    "backup_workers": (lambda n: dict(b=n // 4, B=8, eta=0.3), False),
    "k_sync_async": (lambda n: dict(K=min(n, 2), B=8, eta=0.3), False),
    "adasync": (lambda n: dict(K_0=1, interval=0.01, B=8, eta=0.3), False),
    "fedasync": (lambda n: dict(E=1, B=8, eta=0.1), False),
    "sasgd": (lambda n: dict(alpha_0=0.3, B=8), False),
    "paflm": (lambda n: dict(alpha=0.3, send=server_async.at_random(1.0), B=8), False),
    "aso_fed": (lambda n: dict(E=1, B=8, eta=0.1), False),
    "fedavg_decay": (lambda n: dict(S=min(n, 3), K=3, B=8, eta=0.1, gamma=9.0), False),
    "local_gd": (lambda n: dict(K=3, eta=0.3), False),
    "client_drift": (lambda n: dict(of=server_sync.fedavg, S=min(n, 3), **LOCAL), False),
    "round_errors": (lambda n: dict(S=min(n, 3), **LOCAL), False),
    "weight_divergence": (lambda n: dict(E=2, B=8, eta=0.1), False),
    "scaffold": (lambda n: dict(S=min(n, 3), E=2, B=8, eta_l=0.1), False),
    "fedprox": (lambda n: dict(mu=0.1, S=min(n, 3), E=2, B=8, eta=0.1, stragglers=0.3), False),
    "fedavgm": (lambda n: dict(S=min(n, 3), E=2, B=8, eta=0.1), False),
    "fednova": (lambda n: dict(S=min(n, 3), E=2, B=8, eta=0.1), False),
    "fedvc": (lambda n: dict(S=3, size=20, B=8, eta=0.1), False),
    "fedir": (lambda n: dict(S=min(n, 3), E=2, B=8, eta=0.1), False),
    "naive_layerwise_mp": (lambda n: dict(cuts=(1,), B=16, eta=0.1), False),
    "gpipe": (lambda n: dict(cuts=(1,), M=4, B=16, eta=0.1), False),
    "one_f_one_b_flush": (lambda n: dict(cuts=(1,), M=4, B=16, eta=0.1), False),
    "pipedream": (lambda n: dict(cuts=(1,), B=16, eta=0.1), False),
    "spectrain": (lambda n: dict(cuts=(1,), B=16, eta=0.1), False),
    "pipedream_partitioner": (lambda n: dict(B=16, eta=0.1), False),
    "megatron_tensor_parallel": (lambda n: dict(B=16, eta=0.1), False),
    "single_device": (lambda n: dict(B=16, eta=0.1), False),
    "kd_logits": (lambda n: dict(teacher=distillation.Teacher(mlp(8), epochs=1), **LOCAL), False),
    "student_hard_labels": (lambda n: LOCAL, False),
    "federated_distillation_fd": (lambda n: LOCAL, True),
    "local_only": (lambda n: LOCAL, True),
    "fedcs": (lambda n: dict(S=min(n, 3), T_round=0.1, E=2, B=8, eta=0.1), False),
    "safa": (lambda n: dict(C=0.4, deadline=0.1, E=2, B=8, eta=0.1), False),
    "structured_lowrank": (lambda n: dict(rank=3, S=min(n, 3), E=2, B=8, eta=0.1), False),
    "structured_random_mask": (lambda n: dict(p=0.25, S=min(n, 3), E=2, B=8, eta=0.1), False),
    "sketched_updates": (lambda n: dict(S=min(n, 3), E=2, B=8, eta=0.1), False),
    "online_push_sum": (lambda n: dict(A=one_peer_exponential(n), eta=0.1), True),
    "subgradient_push": (lambda n: dict(A=one_peer_exponential(n), p=0.3, B=8), True),
    "sgp": (lambda n: dict(A=one_peer_exponential(n), B=8, eta=0.1), True),
    "osgp": (lambda n: dict(A=one_peer_exponential(n), tau=2, B=8, eta=0.1), True),
    "model_propagation": (lambda n: dict(W=mixing(n), alpha=0.7, **LOCAL), True),
    "collaborative_learning_admm": (lambda n: dict(W=mixing(n), mu=1.0, **LOCAL), True),
    "common_model": (lambda n: LOCAL, False),
    "downpour": (lambda n: dict(B=8, eta=0.1), False),
    "easgd": (lambda n: dict(B=8, eta=0.1, period=2), False),
    "easgd_synchronous": (lambda n: dict(B=8, eta=0.1), False),
    "sgd_momentum_nag": (lambda n: dict(B=8, eta=0.1, mu=0.5), False),
    "fedsa": (lambda n: dict(B=8, eta=0.1, E_1=2), False),
    "tifl": (lambda n: dict(m=min(n, 2), S=2, E=2, B=8, eta=0.1), False),
    "hfl_adsgd": (lambda n: dict(S=n, deadline=0.003, E=2, B=8, eta=0.1), False),
    "elfish": (lambda n: dict(S=min(n, 3), E=2, B=8, eta=0.1), False),
    "exp_penalty": (lambda n: dict(eta=0.3, B=8), False),
    "fasgd": (lambda n: dict(alpha=0.02, B=8, c_fetch=0.001, c_push=0.001), False),
    "dana": (lambda n: dict(eta=0.1, B=8), False),
    "dana_slim": (lambda n: dict(eta=0.1, B=8), False),
    "asysg_con": (lambda n: dict(gamma=0.3, B=8, window=2), False),
    "delayed_mirror_descent": (lambda n: dict(L=2.0, eta=0.1, B=8), False),
    "shared_data": (lambda n: dict(S=min(n, 3), beta=0.1, E=1, B=8, eta=0.1), False),
    "hybrid_fl": (lambda n: dict(S=min(n, 3), permit=sharing.anybody(2), **HYBRID), False),
    "fedcurv": (lambda n: dict(S=min(n, 3), lam=0.1, E=1, B=8, eta=0.1), False),
    "perfit_finetune": (lambda n: dict(R=30, S=min(n, 3), E=2, B=8, eta=0.1), False),
    "perfit_meta": (lambda n: dict(R=30, a=0.1, S=min(n, 3), E=2, B=4, eta=0.1), False),
    "fedamp": (lambda n: dict(mu=0.1, E=2, B=8, eta=0.1), True),
    "heurfedamp": (lambda n: dict(s=100.0, mu=0.1, E=2, B=8, eta=0.1), True),
    "perfit_kd": (lambda n: dict(public=50, **LOCAL), True),
    "codistillation": (lambda n: LOCAL, True),
    "codistillation_shared_samples": (lambda n: dict(shared=20, **LOCAL), True),
    "fml": (lambda n: LOCAL, True),
    "faug": (lambda n: LOCAL, True),
    "fitnet_hint": (lambda n: HINT, False),
    "attention_transfer": (lambda n: TAUGHT, False),
    "relational_kd": (lambda n: TAUGHT, False),
    "sharma_edge_kt": (lambda n: dict(technique=transfer.fitnet_hint, **HINT), False),
    "lottery_ticket": (lambda n: LOCAL, False),
    "knowledge_points": (lambda n: dict(images=2, steps=5, **TAUGHT), False),
    "cfd": (lambda n: dict(public=30, **LOCAL), False),
    "fd_wireless_hfd": (lambda n: dict(uses=500, **LOCAL), True),
    "drl_node_selection": (lambda n: dict(select=at_random, S=min(n, 3), B=8, eta=0.1), False),
}
SILENT = {"sgd_momentum_nag", "local_only", "single_device", "student_hard_labels"}
SILENT |= {"pipedream_partitioner"}  # so small a network is fastest on one device
SILENT |= {"lottery_ticket"}
SENT_ONCE = {"kd_logits", "fitnet_hint", "attention_transfer", "relational_kd", "sharma_edge_kt"}
SENT_ONCE |= {"knowledge_points"}  # what a teacher knows of the device's samples
FULL_BATCHES = {"fedsgd", "local_gd"}
COMBINES_FIRST = {
    "subgradient_push",
    "easgd_synchronous",
}  # its first round mixes equal models, which changes none
ON_TWO_DEVICES = {"naive_layerwise_mp", "gpipe", "one_f_one_b_flush", "pipedream", "spectrain"}
SENT_AGAIN = {"fedasync", "sasgd", "paflm", "aso_fed", "downpour", "easgd", "fedsa"}
SENT_AGAIN |= {"exp_penalty", "fasgd", "dana", "dana_slim"}
SENT_AGAIN |= {"asysg_con", "delayed_mirror_descent"}
NOT_METHODS = {"label_dirichlet", "real_world_splits"}  # a partition of the data
NOT_METHODS |= {"feature_skew", "concept_shift", "concept_drift_style", "quantity_skew"}
NOT_METHODS |= {
    "noniid_statistics",
    "dependence",
    "train_test_shift",
}  # in skew.py, no method's own
NOT_METHODS |= {"scaffold_theory", "hsu_degradation"}  # scaffold on Quadratics, fedavg by skew
NOT_METHODS |= {"factor_transfer_way"}  # an analysis of variance
OWN_PROBLEM = {  # no Task: Averaging; Ranking, whose loss is of pairs; LinearSystem
    "async_linear_systems",
    "sync_linear_systems",
    "choco_gossip",
    "gossip_dual_averaging_pairwise",
    "gossip_dual_averaging_async",
    "scan",  # compact.EarlyExits: a network with exits
    "fedavg_on_stream",  # drift.Drifting: data that come in
    # LinearTeacher: a linear student of a teacher that is known
    "linear_distillation",
    "hard_labels",
    "factor_geometry",
    "factor_optimisation_bias",
    "factor_sample_size",
    # placing.Placing: which device computes what; mgrit needs models.residual
    "rl_placement",
    "random_placement",
    "greedy_placement",
    "mgrit_layer_parallel",
    "soap_mcmc",  # plans.Splitting: how each layer is split
    "pure_plan",
}


def mixing(n):
    return ring(n) if n > 2 else complete(n)


def find(name):
    return next(getattr(m, name) for m in MODULES if hasattr(m, name))


def build(n=N, **world):
    task = Task(n=n, partition=dirichlet(0.5), samples=40 * n, network=mlp(6))
    return task, World(n, **{"spread": loguniform(4)} | world)


def drive(name, rounds=ROUNDS, n=N, **world):
    """(values, task, world) after some rounds."""
    task, world = build(n, **world)
    steps = find(name)(task, world, **METHODS[name][0](n))
    return list(itertools.islice(steps, rounds + 1)), task, world


def model(value):
    return value[0] if isinstance(value, tuple) else value


def check(found, name, task):
    per_device = METHODS[name][1]
    for value in found:
        X = model(value)
        assert X.shape == ((task.n, task.d) if per_device else (task.d,))
        assert X.dtype == task.dtype
        assert torch.isfinite(X).all()
        if isinstance(value, tuple):
            _, extra = value
            assert all(isinstance(k, str) and np.isfinite(v) for k, v in extra.items())


each = pytest.mark.parametrize("name", METHODS)


def test_every_method_is_here():
    public = {
        name
        for m in MODULES
        for name, f in vars(m).items()
        if inspect.isgeneratorfunction(f) and f.__module__ == m.__name__ and name[0] != "_"
    }
    assert public == set(METHODS) | OWN_PROBLEM
    assert {method for _, method in CLAIMS} - NOT_METHODS <= public
    for name in public:
        arguments = list(inspect.signature(find(name)).parameters.values())
        assert [p.name for p in arguments[:2]] == ["task", "world"]
        assert all(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in arguments[2:]), name
        assert find(name).__doc__


@each
def test_it_starts_at_the_initial_model_and_moves(name):
    found, task, _ = drive(name)
    check(found, name, task)
    first = task.init().expand(task.n, -1) if METHODS[name][1] else task.init()
    assert torch.equal(model(found[0]), first)
    for before, after in itertools.pairwise(found[1:] if name in COMBINES_FIRST else found):
        assert not torch.equal(model(before), model(after))


@each
def test_same_bits_twice(name):
    a, _, world = drive(name)
    b, _, again = drive(name)
    for one, other in zip(a, b, strict=True):
        assert torch.equal(model(one), model(other))
        assert not isinstance(one, tuple) or one[1] == other[1]
    assert world.totals() == again.totals()


@each
def test_another_seed_gives_other_models(name):
    task, world = build()
    arguments = METHODS[name][0](N)
    steps = find(name)(task, world, seed=1, **arguments)
    other = list(itertools.islice(steps, 4))
    if name not in FULL_BATCHES:  # only who is sampled changes
        first = 2 if name in COMBINES_FIRST else 1
        assert not torch.equal(model(other[first]), model(drive(name)[0][first]))


@each
def test_clock_and_bytes_advance(name):
    task, world = build()
    last = world.totals()
    for r, _ in enumerate(find(name)(task, world, **METHODS[name][0](N))):
        now = world.totals()
        if r == 0:
            assert now == last, "nothing happens before the first model"
        else:
            assert now["clock"] > last["clock"] and now["joules"] > last["joules"]
            if name in SILENT:
                assert now["bytes"] == now["messages"] == 0
            elif name in SENT_ONCE:
                assert now["bytes"] > 0
            else:
                assert now["bytes"] > last["bytes"]
        last = now
        if r == ROUNDS:
            break
    assert np.isfinite(list(last.values())).all()


@each
def test_what_was_yielded_is_not_altered_later(name):
    task, world = build()
    kept, copies = [], []
    for value in itertools.islice(find(name)(task, world, **METHODS[name][0](N)), 6):
        kept.append(value)
        copies.append((model(value).clone(), dict(value[1]) if isinstance(value, tuple) else None))
    for value, (x, extra) in zip(kept, copies, strict=True):
        assert torch.equal(model(value), x)
        assert extra is None or value[1] == extra


@each
def test_evaluating_between_rounds_changes_nothing(name):
    clean = drive(name)[0]
    task, world = build()
    for value, expected in zip(find(name)(task, world, **METHODS[name][0](N)), clean, strict=False):
        task.evaluate(model(value).reshape(-1, task.d))
        assert torch.equal(model(value), model(expected))


@each
def test_global_random_state_is_untouched_and_unused(name):
    clean = drive(name)[0]
    torch.manual_seed(12345)
    random.seed(12345)
    np.random.seed(12345)  # noqa: NPY002
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    found = drive(name)[0]
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    assert torch.equal(before[0], after[0]) and before[1] == after[1]
    assert (before[2][1] == after[2][1]).all() and before[2][2:] == after[2][2:]
    assert torch.equal(model(found[-1]), model(clean[-1]))


@each
@pytest.mark.parametrize("retry", [False, True])
def test_it_survives_message_loss(name, retry):
    found, task, world = drive(name, 25, loss=0.2, retry=retry)
    check(found, name, task)
    assert world.clock > 0 and np.isfinite(world.clock)


@each
def test_it_survives_a_device_that_leaves_for_good(name):
    """Device 0 goes off within the second round."""
    _, _, calm = drive(name, 1)
    found, task, world = drive(name, 8, churn=leaves(0, 1.2 * calm.clock))
    check(found, name, task)
    if name not in ON_TWO_DEVICES | {"single_device"}:
        assert np.isfinite(world.clock)


@each
def test_it_survives_when_everybody_is_away_for_a_while(name):
    _, _, calm = drive(name, 1)
    trace = [leaves(i, 1.2 * calm.clock, 3 + 2 * calm.clock) for i in range(N)]
    trace = pd.concat(trace)
    found, task, world = drive(name, 12, churn=trace)
    check(found, name, task)
    assert not torch.equal(model(found[-1]), model(found[1]))
    assert np.isfinite(list(world.totals().values())).all()


@each
def test_nobody_can_be_reached(name):
    if name in SENT_AGAIN:
        pytest.skip("lost messages are sent again until they arrive")
    found, task, world = drive(name, 3, loss=1.0)
    check(found, name, task)
    assert world.clock > 0


@each
def test_one_device(name):
    if name in ON_TWO_DEVICES:
        pytest.skip("needs a device for each stage")
    found, task, world = drive(name, n=1)
    check(found, name, task)
    assert not torch.equal(model(found[0]), model(found[-1]))
    assert world.clock > 0


@each
def test_the_size_of_a_batch_of_devices_does_not_matter(name, monkeypatch):
    found, _, world = drive(name)
    monkeypatch.setattr(training, "WIDE", 1)
    single, _, again = drive(name)
    for a, b in zip(found, single, strict=True):
        torch.testing.assert_close(model(a), model(b), rtol=0, atol=1e-5)
    assert world.totals() == again.totals()


@each
def test_wrong_arguments_are_refused(name):
    task, world = build()
    with pytest.raises(TypeError):
        next(find(name)(task, world, **METHODS[name][0](N), surprise=1))
