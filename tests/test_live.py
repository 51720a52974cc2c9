"""Real processes give the simulated models, and send the bytes that the world counts."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.multiprocessing import ProcessRaisedException

from survey_lib import live
from survey_lib.errors import UsageError
from survey_lib.evidence import Case
from survey_lib.live.world import LiveWorld
from survey_lib.methods.gossip import allreduce_sgd, d_psgd
from survey_lib.methods.push_sum import sgp
from survey_lib.methods.server_sync import fedavg
from survey_lib.models import cnn, mlp
from survey_lib.partition import dirichlet
from survey_lib.topology import one_peer_exponential, ring
from survey_lib.training import local_sgd, train
from survey_lib.world import World

N, ROUNDS = 4, 5
TASK = dict(n=N, network=mlp(16), partition=dirichlet(0.5))
CASES = {
    "fedavg": Case(fedavg, dict(S=3, E=1, B=20, eta=0.1), task=TASK),
    "allreduce_sgd": Case(allreduce_sgd, dict(B=8, eta=0.1), task=TASK),
    "d_psgd": Case(d_psgd, dict(W=ring(N), B=8, eta=0.1), task=TASK),
    "sgp": Case(sgp, dict(A=one_peer_exponential(N), B=8, eta=0.1), task=TASK),
}


@pytest.fixture(scope="module")
def table():
    """One group of processes, a process per device and one for the server, runs all four."""
    return live.against_simulation(CASES, ROUNDS).set_index(["method", "node"])


@pytest.mark.slow
@pytest.mark.parametrize("method", CASES)
def test_models_are_the_simulated_ones(table, method):
    part = table.loc[method]
    compared = part.loc[["server"]] if method == "fedavg" else part
    assert len(compared) == (1 if method == "fedavg" else N)
    assert (compared["difference"] <= 1e-6).all()
    assert "server" in part.index or method != "fedavg"


@pytest.mark.slow
@pytest.mark.parametrize("method", CASES)
def test_bytes_are_the_simulated_ones(table, method):
    part = table.loc[method]
    assert (part["sent"] == part["simulated"]).all()
    assert part["sent"].sum() > 0
    if part["wire"].notna().all():  # framing: some bytes more, and never a second copy
        assert (part["wire"] >= part["sent"]).all()
        assert part["wire"].sum() < 1.3 * part["sent"].sum()


@pytest.mark.slow
def test_a_process_that_fails_is_named_and_nobody_waits_for_ever():
    broken = Case(d_psgd, dict(W=torch.ones(3, 3), B=8, eta=0.1), task=dict(n=2))
    with pytest.raises(ProcessRaisedException, match=r"W is \(3, 3\) but there are 2 devices"):
        live.start({"broken": broken}, 2)


def test_a_process_holds_its_own_data_only():
    task = live.OwnData(**TASK)
    task.rank = 2
    whole = live.Task(**TASK)
    assert (task.rows(2) == whole.rows(2)).all() and len(task.rows(2)) == whole.sizes[2]
    assert all(len(task.rows(i)) == 0 for i in (0, 1, 3))
    assert (task.sizes == whole.sizes).all(), "the shares are known"


@pytest.mark.parametrize("network", [mlp(8), cnn(2, 2)])
@pytest.mark.parametrize("how", [dict(E=2), dict(K=3)])
def test_devices_without_data_here_do_not_move(network, how):
    task, whole = (kind(n=N, network=network, samples=80) for kind in (live.OwnData, live.Task))
    task.rank, x = 1, task.init()
    found = local_sgd(task, World(N), np.arange(N), x, eta=0.1, B=8, seed=0, **how)
    expected = train(whole, np.arange(N), x, eta=0.1, B=8, seed=0, **how)
    for i in range(N):
        torch.testing.assert_close(found[i], expected[i] if i == 1 else x, rtol=0, atol=1e-7)


def test_what_live_processes_cannot_do_is_refused(monkeypatch):
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    world, X = LiveWorld(2), torch.zeros(2, 3)
    with pytest.raises(UsageError, match="wait for every exchange"):
        world.exchange(torch.ones(2, 2), X, overlap=1)
    with pytest.raises(UsageError, match="wait for everybody"):
        world.gather([0, 1], X, deadline=1.0)
    with pytest.raises(UsageError, match="ring of all devices"):
        world.allreduce([0, 1], X, "naive")
    with pytest.raises(UsageError, match="send tensors"):
        world.exchange(torch.ones(2, 2), (X, 3))


def test_totals_tell_framing_in_steps():
    """Some bytes more or less on the connections, as from run to run, change nothing."""
    row = dict(simulated=100, sent=100)
    table = pd.DataFrame(
        [
            dict(method="b", difference=1e-9, wire=104, **row),
            dict(method="b", difference=3e-9, wire=108, **row),
            dict(method="a", difference=np.nan, wire=99.0, **row),
            dict(method="a", difference=0.0, wire=100.0, **row),
            dict(method="c", difference=0.0, wire=np.nan, **row),
            dict(method="d", difference=0.0, wire=150, **row),
            dict(method="e", difference=0.0, wire=110, **row),
        ]
    )
    total = live.totals(table).set_index("method")
    assert list(total.index) == ["b", "a", "c", "d", "e"]
    found = ["below 10 %", "less than was sent", "not measured", "50 % or more", "below 25 %"]
    assert list(total["framing"]) == found
    assert total.loc["b"].drop("framing").to_dict() == dict(
        difference=3e-9, simulated=200, sent=200
    )
    more = live.totals(table.assign(wire=table["wire"] + table["wire"].lt(110)))
    assert more.drop(1)["framing"].equals(live.totals(table).drop(1)["framing"])
