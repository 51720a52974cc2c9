"""The same methods on real processes: torch.distributed (gloo), one process per device."""

import multiprocessing
import os
import tempfile
from datetime import timedelta
from itertools import islice

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

from survey_lib.evidence.run import Case
from survey_lib.live.world import LiveWorld, wire_bytes
from survey_lib.training import Task
from survey_lib.world import World

PATIENCE = timedelta(minutes=1)  # for a process that does not answer


class OwnData(Task):
    """A task of which this process holds the data of one device only (of none, at a server)."""

    rank = None

    def rows(self, i: int) -> np.ndarray:
        return super().rows(i) if i == self.rank else np.zeros(0, int)


def drive(case: Case, rounds: int, seed: int = 0) -> dict:
    """This process's part of a case, as one device (or as the server) of an initialised group.

    Under torchrun on several machines: init_process_group("gloo"), then drive(case, ...). Returns
    models (rounds + 1, d) of this device or the server, sent (bytes of tensors), wire (bytes on
    its TCP connections, or None) and messages.
    """
    task = OwnData(**case.task, seed=seed)
    task.rank, world = dist.get_rank(), LiveWorld(task.n)
    dist.barrier()
    models, before = [], wire_bytes()
    for value in islice(case.method(task, world, **case.arguments, seed=seed), rounds + 1):
        x = value[0] if isinstance(value, tuple) else value
        models.append((x if x.dim() == 1 else x[task.rank % task.n]).clone())
    wire = None if before is None else wire_bytes() - before
    dist.barrier()
    return dict(models=torch.stack(models), sent=world.up, wire=wire, messages=world.messages)


def start(cases: dict[str, Case], rounds: int, seed: int = 0) -> dict[str, list[dict]]:
    """All cases on processes of this machine, one per device and one for a server, started once:
    per case what `drive` returns, in the order of the ranks. They are forked from one process that
    has imported what they need, which takes seconds, and nothing else."""
    (n,) = {case.task["n"] for case in cases.values()}
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.set_forkserver_preload([__name__])
        how = dict(nprocs=n + 1, start_method="forkserver")
        start_processes(_process, (n + 1, folder, cases, rounds, seed), **how)
        found = [torch.load(f"{folder}/{rank}.pt") for rank in range(n + 1)]
    return {name: [part[name] for part in found] for name in cases}


def _process(rank, size, folder, cases, rounds, seed):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    meet = dist.FileStore(f"{folder}/meet", size)
    dist.init_process_group("gloo", store=meet, rank=rank, world_size=size, timeout=PATIENCE)
    found = {name: drive(case, rounds, seed) for name, case in cases.items()}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def against_simulation(cases: dict[str, Case], rounds: int = 5, seed: int = 0) -> pd.DataFrame:
    """Real processes beside the simulated world, a row per case and device (server: "server").

    Columns: method, node, difference (largest of any parameter in any round), simulated, sent
    (bytes), wire (bytes on the TCP connections, framing included).
    """
    found, rows = start(cases, rounds, seed), []
    for name, parts in found.items():
        case = cases[name]
        task = case.problem(**case.task, seed=seed)
        world = World(**{"n": task.n} | case.world, seed=seed)
        values = islice(case.method(task, world, **case.arguments, seed=seed), rounds + 1)
        X = torch.stack([v[0] if isinstance(v, tuple) else v for v in values])  # (rounds + 1, ...)
        for rank, part in enumerate(parts):
            server = rank == task.n
            if server and not world.server_up:
                continue
            expected = X if X.dim() == 2 else X[:, rank]
            gap = float((part["models"] - expected).abs().max())
            alone = world.server_up > 0 and not server  # a device of a server holds no global model
            simulated = world.server_up if server else world.up[rank]
            sent = dict(simulated=int(simulated), sent=part["sent"], wire=part["wire"])
            node = "server" if server else rank
            rows.append(dict(method=name, node=node, difference=np.nan if alone else gap, **sent))
    return pd.DataFrame(rows)


def totals(table: pd.DataFrame) -> pd.DataFrame:
    """A row per method of `against_simulation`: the largest difference, the bytes of all together,
    and framing, by how much more the connections carried. It is told in steps, since the system
    cuts the same messages into other segments each time."""
    by = table.groupby("method", sort=False)
    total = by.agg(dict(difference="max", simulated="sum", sent="sum")).reset_index()
    wire = by["wire"].apply(lambda w: w.sum(skipna=False)).to_numpy()
    steps = [-np.inf, 0, 0.1, 0.25, 0.5, np.inf]
    names = ["less than was sent", "below 10 %", "below 25 %", "below 50 %", "50 % or more"]
    framing = pd.cut(wire / total["sent"] - 1, steps, right=False, labels=names)
    return total.assign(framing=framing.astype(object).fillna("not measured"))
