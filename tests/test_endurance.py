"""Killed, damaged, without space, two at once: small forms of `make endurance`."""

import errno
import os
import random
import shutil
import subprocess
import sys
import time

import endurance
import nbformat
import pandas as pd
import pytest
from filelock import FileLock
from nbformat.v4 import new_code_cell, new_notebook

from survey_lib.__main__ import main
from survey_lib.errors import DataError, UsageError
from survey_lib.evidence import Case, store, sweep
from survey_lib.evidence.store import Store, mend, read_sealed, write_atomic, write_sealed
from survey_lib.methods.server_sync import fedavg

SMALL = Case(fedavg, dict(S=2, E=1, B=20, eta=0.1), dict(n=3, samples=90), until=dict(rounds=2))
KEY, OTHER = "ab" * 16, "ac" * 16


def history(shift=0.0):
    return pd.DataFrame(dict(round=[0, 1, 2], accuracy=[0.1, 0.5 + shift, 1 / 3]))


@pytest.fixture
def shelf(tmp_path):
    """A store with two runs."""
    shelf = Store(tmp_path / "runs")
    shelf.put(KEY, {"seed": 0}, history())
    shelf.put(OTHER, {"seed": 1}, history(0.25))
    return shelf


# ---- damaged files ------------------------------------------------------------------------------


def test_a_flipped_bit_in_any_byte_and_every_shorter_file_is_found(shelf, capsys):
    path = shelf.path(KEY)
    body = path.read_bytes()
    for k in range(len(body)):
        path.write_bytes(body[:k] + bytes([body[k] ^ 1 << k % 8]) + body[k + 1 :])
        assert shelf.get(KEY) is None, f"bit {k % 8} of byte {k}"
    for length in range(len(body)):
        path.write_bytes(body[:length])
        assert shelf.get(KEY) is None, f"{length} of {len(body)} bytes"
    assert str(path) in capsys.readouterr().out
    path.write_bytes(body)
    pd.testing.assert_frame_equal(shelf.get(KEY), history(), check_exact=True)


def test_a_whole_file_of_another_run_is_found(shelf, capsys):
    shutil.copy(shelf.path(OTHER), shelf.path(KEY))
    assert shelf.get(KEY) is None and shelf.get(OTHER) is not None
    assert "damaged" in capsys.readouterr().out


def test_mend_removes_what_is_damaged_names_it_and_keeps_the_rest(tmp_path, shelf):
    good, bad = (tmp_path / "evidence" / f"1-1-{m}.json" for m in ("fedavg", "fedsgd"))
    for path in (good, bad):
        write_sealed(path, '{"effect": 0.25}')
    bad.write_bytes(bad.read_bytes().replace(b"0.25", b"0.75"))
    shelf.path(KEY).write_bytes(b"")
    said = mend(tmp_path)
    assert len(said) == 2 and str(shelf.path(KEY)) in said[1] and str(bad) in said[0]
    assert not bad.exists() and not shelf.path(KEY).exists()
    assert read_sealed(good) == '{"effect": 0.25}' and shelf.get(OTHER) is not None
    assert mend(tmp_path) == []


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(DataError, match="a.json cannot be read .*; remove it"):
        read_sealed(tmp_path / "a.json")


# ---- half-written files, full disks -------------------------------------------------------------


def test_only_a_dead_writers_half_is_removed(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    dead = tmp_path / "tables" / f".{gone.pid}-abc.tmp"
    alive = tmp_path / "tables" / f".{os.getpid()}-abc.tmp"
    dead.parent.mkdir()
    dead.write_text("half"), alive.write_text("half")
    assert mend(tmp_path) == [] and list(dead.parent.iterdir()) == [alive]


def test_a_killed_writer_leaves_what_mend_knows(tmp_path):
    code = """
import os, sys
from survey_lib.evidence import store
store.os.replace = lambda *a: os.kill(os.getpid(), 9)
store.write_atomic(sys.argv[1], "new")
"""
    path = write_atomic(tmp_path / "f.txt", "old")
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 2
    mend(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def full(monkeypatch):
    """A disk that is full after 100 more bytes; call it to make room."""
    true = os.fdopen

    class Half:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, data):
            self.file.write(data[:100])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.os, "fdopen", lambda *a: Half(true(*a)))
    return lambda: monkeypatch.setattr(store.os, "fdopen", true)


def test_a_full_disk_leaves_nothing_half_written_and_the_sweep_goes_on_later(tmp_path, full):
    with pytest.raises(
        OSError, match=r"No space left on device for \d+ bytes; free some"
    ) as caught:
        sweep({"a": SMALL}, [0, 1], out=tmp_path / "full")
    assert caught.value.errno == errno.ENOSPC and str(tmp_path) in str(caught.value.filename)
    assert not [p for p in (tmp_path / "full" / "runs").rglob("*") if p.is_file()]
    full()
    again = sweep({"a": SMALL}, [0, 1], out=tmp_path / "full")
    alone = sweep({"a": SMALL}, [0, 1], out=tmp_path / "alone")
    pd.testing.assert_frame_equal(again, alone, check_exact=True)
    assert endurance.tree(tmp_path / "full") == endurance.tree(tmp_path / "alone")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch, number):
    def refuse(*given):
        raise OSError(number, os.strerror(number), "there")

    monkeypatch.setattr(store.tempfile, "mkstemp", refuse)
    with pytest.raises(UsageError, match=r"cannot write .*f.txt \(.*\); give a folder .*OUT="):
        write_atomic(tmp_path / "f.txt", "new")


def test_a_file_in_the_way_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert main(["reproduce", "--scale", "quick", "--out", str(out)]) == 2
        said = capsys.readouterr().err
        assert f"cannot write {out}" in said and said.count("\n") == 1


# ---- clocks, two at once ------------------------------------------------------------------------


def test_clocks_and_time_zones_do_not_matter(tmp_path, monkeypatch):
    first = sweep({"a": SMALL}, [0, 1], out=tmp_path)
    for k, path in enumerate((tmp_path / "runs").rglob("*.json")):
        os.utime(path, [(0, 0), (4e9, 4e9)][k % 2])
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    try:
        monkeypatch.setattr(Store, "put", lambda *a: pytest.fail("a run was repeated"))
        pd.testing.assert_frame_equal(sweep({"a": SMALL}, [0, 1], out=tmp_path), first)
    finally:
        monkeypatch.undo()
        time.tzset()


CASES = {f"eta {k}": SMALL.but(eta=0.01 * k) for k in range(1, 6)}
SWEEPS = """
import sys
from survey_lib.evidence import sweep
from test_endurance import CASES
input()
sweep(CASES, [0, 1], out=sys.argv[1]).to_csv(sys.argv[2], index=False)
"""


@pytest.mark.slow
def test_two_sweeps_at_once_give_the_same_bits_and_no_damaged_file(tmp_path):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def ready(out, name):
        call = [sys.executable, "-c", SWEEPS, str(tmp_path / out), str(tmp_path / name)]
        return subprocess.Popen(call, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env)

    both = [ready("both", "one.csv"), ready("both", "two.csv")]
    for process in both:  # each waits for its line once it has imported all: they set off together
        process.stdin.write(b"\n")
        process.stdin.close()
    sweep(CASES, [0, 1], out=tmp_path / "alone").to_csv(tmp_path / "alone.csv", index=False)
    assert [p.wait() for p in both] == [0, 0]
    one, two, alone = ((tmp_path / f"{n}.csv").read_bytes() for n in ("one", "two", "alone"))
    assert one == two == alone and len(list((tmp_path / "both").glob("runs/??/*.json"))) == 10
    assert endurance.tree(tmp_path / "both") == endurance.tree(tmp_path / "alone")
    assert mend(tmp_path / "both") == []


# ---- whole runs of a small notebook -------------------------------------------------------------

PARAMETERS = 'scale = "full"\nseeds = ""\ndataset = ""\nout = "../build"\njobs = 1'
RUNS = """
from survey_lib.evidence import Case, Lab, final
from survey_lib.methods.server_sync import fedavg, fedsgd
lab = Lab("01_architectures", scale=scale, seeds=seeds, dataset=dataset, out=out, jobs=jobs)
case = Case(fedavg, dict(S=5, E=4, B=5, eta=0.01), task=dict(n=5), until=dict(rounds=30))
fast = lab.tune("fedavg", case, dict(eta=[0.01, 0.1]), final)
"""
RECORD = """
runs = lab.sweep({"fedavg": fast, "slow": case, "slower": case.but(eta=0.001)})
value = lambda history: 1 / final(history)
lab.record("fedavg", runs, value, baseline="slower", data="digits")
"""
PROGRAM = """
import pathlib, sys
from survey_lib import reproduce
from survey_lib.__main__ import main
reproduce.NOTEBOOKS = pathlib.Path(sys.argv[1])
sys.exit(main(["reproduce", "--scale", "quick", "--jobs", "1", *sys.argv[2:]]))
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(command, folder, tree, seconds) of an undisturbed run of a notebook of 17 runs."""
    folder = tmp_path_factory.mktemp("endurance")
    cells = [new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
    cells += [new_code_cell(s) for s in (RUNS, RECORD, 'lab.finish(["fedavg"])')]
    kernel = dict(name="python3", language="python", display_name="Python 3")
    nbformat.write(
        new_notebook(cells=cells, metadata={"kernelspec": kernel}),
        folder / "01_architectures.ipynb",
    )
    command, begin = [sys.executable, "-c", PROGRAM, str(folder)], time.monotonic()
    code = endurance.start(command, folder / "whole").wait()
    assert code == 0, endurance.said(folder / "whole")
    return command, folder, endurance.tree(folder / "whole"), time.monotonic() - begin


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bits(small):
    command, folder, whole, seconds = small
    assert endurance.survive_kills(command, folder, whole, seconds, 2, random.Random(1)) == []
    process = endurance.start(command, folder / "unlike")
    endurance.kill(process, family=True)
    assert endurance.judged(-9, folder / "unlike", whole) != []  # the comparison can fail


@pytest.mark.slow
def test_damaged_files_of_a_build_are_mended_by_the_next_run(small):
    command, folder, whole, _ = small
    assert endurance.mend_damage(command, folder, whole, 25, random.Random(2)) == []


@pytest.mark.slow
@pytest.mark.skipif(not endurance.can_mount(), reason="this system does not let users mount")
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_space(small):
    command, folder, whole, _ = small
    size = sum(p.stat().st_size for p in (folder / "whole").rglob("*") if p.is_file())
    assert endurance.survive_a_full_disk(command, folder / "full", whole, size // 2) == []


@pytest.mark.slow
def test_a_run_that_waits_says_so(small):
    command, folder, whole, _ = small
    out = folder / "waits"
    out.mkdir()
    with FileLock(out / ".lock"):
        process = endurance.start(command, out)
        end = time.monotonic() + 60
        while "another run works in" not in endurance.said(out) and time.monotonic() < end:
            time.sleep(0.1)
        assert "waiting until it is done" in endurance.said(out) and process.poll() is None
        assert list(out.iterdir()) == [out / ".lock"]
        endurance.kill(process, family=True)


def test_a_damaged_data_file_is_refused_or_reads_the_same(tmp_path):
    assert endurance.refuse_damage(tmp_path, 3, random.Random(3), say=lambda text: None) == []
