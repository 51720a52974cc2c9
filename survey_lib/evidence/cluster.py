"""A Dask cluster to run sweeps on: joins it, and refuses workers whose results could differ."""

import hashlib
import os
import platform
from contextlib import nullcontext
from functools import cache

import joblib
from joblib._dask import DaskDistributedBackend  # importable without dask

from survey_lib.errors import UsageError
from survey_lib.evidence.store import ROOT, versions

ADDRESS = "SURVEY_DASK"  # the environment variable that names the scheduler


@cache
def identity() -> dict:
    """What decides the bits of a run on this machine: Python, libraries, kind of machine, and the
    package's sources."""
    digest = hashlib.sha256()
    for path in sorted(ROOT.rglob("*.py")):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **versions(), "survey_lib": digest.hexdigest()[:16]}


def refusal(name: str, there: dict, here: dict) -> str:
    """ "" if a worker's identity is the driver's, else why it is refused."""
    other = [f"{k} {there.get(k)} instead of {v}" for k, v in here.items() if there.get(k) != v]
    return (
        f"{name} has {', '.join(other)}; install the same package and requirements.lock there"
        if other
        else ""
    )


def check(expected: dict | None) -> None:
    """Called where a run is to start: a worker that joined late is refused as well."""
    if expected and (why := refusal(f"worker {platform.node()}", identity(), expected)):
        raise UsageError(why)


@cache
def connect(address: str):
    """A client of the scheduler at `address`, all of whose workers are fit; UsageError otherwise,
    within seconds."""
    try:
        from distributed import Client
    except ImportError:
        raise UsageError(
            f'DASK={address} needs dask and distributed; pip install "survey-lib[cluster]"'
        ) from None
    try:
        client = Client(address, timeout=5, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"DASK={address}: no scheduler answers there ({type(error).__name__}); start one with "
            "`dask scheduler` and give the tcp://host:port that it prints"
        ) from None
    try:
        client.wait_for_workers(1, timeout=10)
    except TimeoutError:
        client.close()
        raise UsageError(
            f"DASK={address}: the scheduler has no worker; start some with "
            f"`dask worker {address} --nthreads 1`"
        ) from None
    found = client.run(identity, on_error="return")
    faults = []
    for name, there in found.items():
        if isinstance(there, dict):
            faults.append(refusal(f"worker {name}", there, identity()))
        else:
            faults.append(f"worker {name} cannot load this survey_lib: {there!r}")
    if faults := [f for f in faults if f]:
        client.close()
        raise UsageError(f"DASK={address}: {'; '.join(faults)}")
    return client


class Workers(DaskDistributedBackend):
    """joblib's backend, but a cluster that has one worker so far is used as well: joblib would run
    everything in this process."""

    def effective_n_jobs(self, n_jobs):
        return max(2, super().effective_n_jobs(n_jobs))


def backend():
    """The context in which joblib runs a sweep: the cluster that the environment names, or this
    machine."""
    address = os.environ.get(ADDRESS)
    return joblib.parallel_config(Workers(client=connect(address))) if address else nullcontext()


def afar() -> bool:
    """Whether runs go to a Dask cluster, ours or one that the caller chose by
    `joblib.parallel_config("dask")`."""
    return isinstance(joblib.parallel.get_active_backend()[0], DaskDistributedBackend)
