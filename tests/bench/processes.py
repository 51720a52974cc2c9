"""One measurement in fresh processes, each peer in an environment of its own."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from work import busy

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "bench"
PEERS = {  # what is installed: the versions that are compared
    "flower": ["flwr[simulation]==1.41.0", "ray==2.55.1"],
    "pfl": ["pfl[pytorch]==0.6.0"],
    "fluke": ["fluke-fl==0.8.1"],
    "fedlab": ["fedlab==1.3.0"],
    "appfl": ["appfl==1.12.0"],
}
SHARED = ["torch", "torchvision", "numpy"]  # as here, for all
CALM, TICKS = 0.25, 0.05  # cores that others may use; s that coarse clocks make of nothing
LIMIT = 300  # s that a process may take
SETTINGS = {  # one thread each; nobody calls home
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class Failed(RuntimeError):
    """A system could not be installed or run; the message says why."""


def environment(system: str) -> Path:
    """The interpreter for a system. A peer's is made where it is not there yet; this environment
    shows through it, so that torch is the same one, and stored once."""
    if system not in PEERS:
        return Path(sys.executable)
    home, fixed = BUILD / system, [f"{p}=={importlib.metadata.version(p)}" for p in SHARED]
    python, stamp, wanted = home / "bin" / "python", home / "installed", PEERS[system] + fixed
    if stamp.exists() and stamp.read_text().split() == wanted:
        return python
    print(f"{system}: installing {' '.join(PEERS[system])}", flush=True)
    _install([sys.executable, "-m", "venv", "--clear", "--without-pip", home])
    site = sysconfig.get_path("purelib", "venv", {"base": home, "platbase": home})
    below = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(ROOT)])
    Path(site, "below.pth").write_text("\n".join(below) + "\n")
    (home / "fixed.txt").write_text("\n".join(fixed) + "\n")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _install([*pip, "--constraint", home / "fixed.txt", *PEERS[system]])
    stamp.write_text("\n".join(wanted) + "\n")
    return python


def _install(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"not installed: {_reason(done.stderr or done.stdout)}")


def measure(python: Path, workload: str, system: str, cores: int, seed: int) -> dict:
    """One row: as many runs side by side as cores; a peer has one run that uses them all."""
    copies = 1 if system in PEERS else cores
    runs = [Process(python, workload, system, seed + 1000 * copy) for copy in range(copies)]
    try:
        for run in runs:
            run.read("ready")
        for run in runs:
            run.go()
        found = [json.loads(run.read("{")) for run in runs]
    finally:
        for run in runs:
            run.end()
    seconds = np.array([f["seconds"] for f in found])  # (copies, rounds)
    each = seconds.min(1) if system == "sgemm" else np.median(seconds, 1)
    foreign = np.mean([f["machine"] for f in found]) - sum(f["own"] for f in found)
    foreign = max(0.0, foreign - TICKS) / seconds.sum(1).mean()
    return dict(
        workload=workload,
        system=system,
        cores=cores,
        seconds=1 / (1 / each).sum(),  # two runs do two rounds in the time of one
        foreign=foreign,  # cores that others used meanwhile
        start=np.mean([f["start"] for f in found]),
        accuracy=np.mean([f["accuracy"] or np.nan for f in found]),
        version=found[0]["version"],
    )


class Process:
    """`measure.py` under way. What it has to say are lines that begin with BENCH."""

    def __init__(self, python: Path, *arguments):
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [python, HERE / "measure.py", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=os.environ | SETTINGS,
            start_new_session=True,
        )
        self.timer = threading.Timer(LIMIT, self._kill)
        self.timer.start()

    def read(self, begins: str) -> str:
        for line in self.process.stdout:
            if line.startswith("BENCH " + begins):
                return line.removeprefix("BENCH ")
        self.log.seek(0)
        late = self.process.wait() == -signal.SIGKILL
        raise Failed(f"not run: {f'killed after {LIMIT} s' if late else _reason(self.log.read())}")

    def go(self) -> None:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """Waits for it and its children, which Ray takes a while to stop; then kills them."""
        self.timer.cancel()
        try:
            self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            pass
        self._kill()
        self.process.communicate()
        self.log.close()

    def _kill(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _reason(text: str) -> str:
    """The last line of a log that says what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return ([line for line in lines if "rror" in line] or lines or ["no output"])[-1][:200]


def wait_until_calm(limit: float) -> None:
    """Until others leave this machine alone for half a second; at most `limit` s."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        before, began = busy(), time.monotonic()
        time.sleep(0.5)
        if (busy() - before) / (time.monotonic() - began) < CALM:
            return
