"""A Dask cluster on loopback: the same bits as here, also when a worker dies; who is refused."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from survey_lib.__main__ import main
from survey_lib.errors import UsageError
from survey_lib.evidence import Case, cluster, sweep
from survey_lib.evidence.cost import Costs
from survey_lib.methods.server_sync import fedavg

CASES = {
    f"eta {eta}": Case(fedavg, dict(S=5, E=5, B=5, eta=eta), task=dict(n=5), until=dict(rounds=40))
    for eta in (0.01, 0.02)
}


def dask(command, folder, *more, **environment):
    call = [sys.executable, "-m", "distributed.cli.dask_" + command, "--no-dashboard", *more]
    call += ["--scheduler-file", str(folder / "scheduler.json")]
    return subprocess.Popen(
        call, cwd=folder, env=os.environ | environment, stderr=subprocess.DEVNULL
    )


def worker(folder, **environment):
    return dask("worker", folder, "--nthreads", "1", "--no-nanny", **environment)


@pytest.fixture
def scheduler(tmp_path):
    """(address, processes) of a scheduler on loopback; the processes in the list end with it."""
    processes = [dask("scheduler", tmp_path, "--host", "127.0.0.1", "--port", "0")]
    end = time.monotonic() + 60
    while not (tmp_path / "scheduler.json").exists() and time.monotonic() < end:
        time.sleep(0.1)
    yield json.loads((tmp_path / "scheduler.json").read_text())["address"], processes
    cluster.connect.cache_clear()
    for process in reversed(processes):
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_killed_worker_changes_no_bit_and_repeats_no_stored_run(scheduler, tmp_path, monkeypatch):
    address, processes = scheduler
    processes += [worker(tmp_path), worker(tmp_path)]
    here = sweep(CASES, range(6), out=tmp_path / "here")
    monkeypatch.setenv(cluster.ADDRESS, address)
    cluster.connect(address).wait_for_workers(2, timeout=60)
    kept, add = [], Costs.add

    def kill_after_three(self, key, *description, **cost):
        kept.append(key)
        if len(kept) == 3:
            os.kill(processes[1].pid, signal.SIGKILL)
        add(self, key, *description, **cost)

    monkeypatch.setattr(Costs, "add", kill_after_three)
    monkeypatch.setattr(sys.modules[sweep.__module__], "measured", None)  # nothing runs here
    there = sweep(CASES, range(6), out=tmp_path / "there")
    assert processes[1].wait(timeout=10) == -signal.SIGKILL and processes[2].poll() is None
    pd.testing.assert_frame_equal(there, here, check_exact=True)
    assert len(kept) == len(set(kept)) == 12
    stored = [
        {p.name: p.read_bytes() for p in (tmp_path / where / "runs").rglob("*.json")}
        for where in ("here", "there")
    ]
    assert stored[0] == stored[1] and len(stored[0]) == 12
    pd.testing.assert_frame_equal(sweep(CASES, range(6), out=tmp_path / "there"), here)
    assert len(kept) == 12  # the second time nothing ran


@pytest.mark.slow
def test_a_cluster_without_workers_and_one_with_another_package_are_refused(scheduler, tmp_path):
    address, processes = scheduler
    with pytest.raises(UsageError, match="has no worker; start some with `dask worker tcp:"):
        cluster.connect(address)
    package = tmp_path / "other" / "survey_lib"
    package.parent.mkdir()
    subprocess.run(["cp", "-r", str(cluster.ROOT), str(package)], check=True)
    with open(package / "errors.py", "a") as file:
        file.write("# edited\n")
    processes.append(worker(tmp_path, PYTHONPATH=str(package.parent)))
    with pytest.raises(UsageError, match=r"has survey_lib [0-9a-f]{16} instead of [0-9a-f]{16}; "):
        cluster.connect(address)


def test_a_worker_that_differs_is_refused_where_a_run_would_start():
    here = cluster.identity()
    cluster.check(here)
    with pytest.raises(UsageError, match=f"has torch {here['torch']} instead of 1.0; install"):
        cluster.check(here | {"torch": "1.0"})


def test_an_address_without_a_scheduler_is_one_line(capsys, tmp_path):
    command = ["reproduce", "--out", str(tmp_path), "--dask", "tcp://127.0.0.1:9"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "DASK=tcp://127.0.0.1:9: no scheduler answers there" in said
    assert main([*command[:-1], "nonsense://x"]) == 2
    assert "nonsense://x: no scheduler answers there" in capsys.readouterr().err
