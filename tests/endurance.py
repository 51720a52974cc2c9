"""`make endurance`: runs at quick scale that are killed, find damaged files, fill the disk or meet
each other must leave what an undisturbed run leaves, bit for bit."""

import argparse
import hashlib
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from survey_lib import fetch
from survey_lib.errors import DataError
from survey_lib.evidence.store import read_sealed

WAYS = ("truncate", "flip", "remove", "empty", "swap")


def tree(out) -> dict:
    """{path: SHA-256} of every file below `out`, what was measured of this machine apart."""
    files = [p for p in Path(out).rglob("*") if p.is_file() and "cost" not in p.parts]
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(files)
    }


def differences(found: dict, expected: dict) -> list[str]:
    """Names of the files that one tree lacks or has otherwise."""
    return [p for p in sorted(found | expected) if found.get(p) != expected.get(p)]


def start(command, out) -> subprocess.Popen:
    """`command --out OUT` in a process group of its own; what it says is added to OUT.log."""
    with open(f"{out}.log", "ab") as log:
        call = [*command, "--out", str(out)]
        return subprocess.Popen(call, stdout=log, stderr=log, start_new_session=True)


def said(out, last: int | None = 2000) -> str:
    """What the runs into `out` said, or the last characters of it (None: all)."""
    return Path(f"{out}.log").read_text(errors="replace")[-(last or 0) :]


def judged(code, out, whole) -> list[str]:
    """What is wrong with a run that ended: its exit code, and every file unlike the whole run's."""
    wrong = [f"{out}: exit code {code}: {said(out)}"] if code else []
    if names := differences(tree(out), whole):
        wrong.append(f"{out} differs from the undisturbed run in {', '.join(names[:5])}")
    return wrong


def kill(process, family: bool):
    """SIGKILL to the process group; with `family` also to kernels and workers, which have groups of
    their own: without, those go on writing for a while beside the next run."""
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for child in children if family else []:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            pass


def survive_kills(command, folder, whole, seconds, kills, draw, say=print) -> list[str]:
    """Kill runs at moments drawn from the first half of the `seconds` of a whole one and start them
    again, until `kills` are done; every run that ends is compared with `whole`. The faults."""
    done, faults = 0, []
    for k in range(4 * kills):
        if done == kills:
            break
        out, code = Path(folder) / f"killed{k}", None
        while code is None:
            process, moment = start(command, out), draw.uniform(0, seconds / 2)
            try:
                code = process.wait(20 * seconds if done == kills else moment)
            except subprocess.TimeoutExpired:
                if done == kills:
                    faults.append(f"{out}: hangs")
                    code = 1
                kill(process, family=done % 2 == 0)
                done += done < kills
                say(f"kill {done} of {kills}, after {moment:.1f} s")
        faults += judged(code, out, whole)
    return faults if done == kills else [*faults, f"only {done} of {kills} runs lived long enough"]


def damage(path: Path, way: str, draw, other: Path) -> None:
    """Truncate the file, flip one of its bits, remove it, empty it, or copy `other` over it."""
    body = path.read_bytes()
    at = draw.randrange(len(body))
    if way == "remove":
        return path.unlink()
    flipped = body[:at] + bytes([body[at] ^ 1 << draw.randrange(8)]) + body[at + 1 :]
    new = dict(truncate=body[:at], flip=flipped, empty=b"")
    path.write_bytes(new[way] if way in new else other.read_bytes())


def mend_damage(command, folder, whole, files, draw, say=print) -> list[str]:
    """Damage so many files of a finished build, at least one in each way, and run it again."""
    out = Path(folder) / "whole"
    there = [p for p in sorted(out.rglob("*")) if p.is_file() and p.stat().st_size]
    for k, path in enumerate(draw.sample(there, min(files, len(there)))):
        way = WAYS[k % len(WAYS)]
        others = [p for p in there if p.parent.parent == path.parent.parent and p.exists()]
        damage(path, way, draw, draw.choice(others))
    faults = judged(start(command, out).wait(), out, whole)
    say(f"{files} damaged files, one run: {'mended' if not faults else 'NOT mended'}")
    return faults


def refuse_damage(folder, times, draw, say=print) -> list[str]:
    """Damage copies of Fashion-MNIST's files: each is refused by its name, or reads the same."""
    home, faults = fetch.cache_dir() / "fashion-mnist", []
    if not all((home / f"{name}.gz").exists() for name in fetch.FASHION_MNIST):
        say(f"no Fashion-MNIST in {home}: its files are left out")
        return []
    contents, copy = fetch._read(home, {}), Path(folder) / "fashion-mnist"
    for _ in range(times):
        shutil.copytree(home, copy, dirs_exist_ok=True)
        path, other = (copy / f"{n}.gz" for n in draw.sample(list(fetch.FASHION_MNIST), 2))
        damage(path, way := draw.choice(WAYS), draw, other)
        missing = {}
        try:
            if fetch._read(copy, missing) != contents and path.name not in str(missing):
                faults.append(f"{way} of {path.name}: was used")
        except DataError as error:
            if str(path) not in str(error):
                faults.append(f"{way} of {path.name}: not named in {error}")
    say(f"{times} damaged data files: {'refused' if not faults else 'NOT refused'}")
    return faults


def can_mount() -> bool:
    """Whether an ordinary user may mount a file system in a namespace of their own here."""
    try:
        return subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


FULL = """
mkdir "$1" && mount -t tmpfs -o size=$2 none "$1" || exit 9
shift 2
"$@"; echo "first exit code $?"
cp -r "$OUT/." "$OUT.first"
mount -o remount,size=2g "$OUT" && "$@"; echo "second exit code $?"
cp -r "$OUT/." "$OUT.second"
"""


def survive_a_full_disk(command, out, whole, size, say=print) -> list[str]:
    """A run into a file system of `size` bytes fails in one clear line and leaves nothing half
    written; with space it goes on to the same build. The faults."""
    call = ["unshare", "-rm", "sh", "-c", FULL, "sh", out, size, *command, "--out", out]
    with open(f"{out}.log", "wb") as log:
        env = {**os.environ, "OUT": str(out)}
        subprocess.run([*map(str, call)], stdout=log, stderr=log, env=env)
    text, first, second = said(out, None), Path(f"{out}.first"), Path(f"{out}.second")
    faults = []
    if "first exit code 1" not in text or "free some and run again" not in text:
        faults.append(f"{out} with {size} bytes: no clear refusal: {said(out)}")
    if "Traceback" in text:
        faults.append(f"{out} with {size} bytes: a traceback: {said(out)}")
    faults += [f"{p}: left behind" for p in first.rglob("*.tmp")]
    for path in [*first.glob("runs/??/*.json"), *first.glob("evidence/*.json")]:
        try:
            read_sealed(path)
        except DataError as error:
            faults.append(str(error))
    code = 0 if "second exit code 0" in text else 1
    faults += judged(code, second, whole) if not code else [f"{out}: not resumed: {said(out)}"]
    say(f"disk full at {size} bytes: {'survived' if not faults else 'NOT survived'}")
    return faults


def share(command, out, whole, say=print) -> list[str]:
    """Two runs into one folder: the second waits and says so, both end well. The faults."""
    both = [start(command, out) for _ in range(2)]
    codes = [p.wait() for p in both]
    faults = judged(max(codes), out, whole)
    if "another run works in" not in said(out, None):
        faults.append(f"{out}: the run that waits does not say so")
    say(f"two runs at once: {'agree' if not faults else 'do NOT agree'}")
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="build/endurance", help="emptied first")
    parser.add_argument("--only", default="", help="a prefix of notebook names")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    given = parser.parse_args()
    draw, folder = random.Random(given.seed), Path(given.out).absolute()
    print(f"seed {given.seed}; an undisturbed run first", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "survey_lib", "reproduce", "--scale", "quick"]
    command += ["--only", given.only, "--jobs", str(given.jobs)]
    begin = time.monotonic()
    if start(command, folder / "whole").wait():
        sys.exit(f"the undisturbed run failed: {said(folder / 'whole')}")
    seconds, whole = time.monotonic() - begin, tree(folder / "whole")
    size = sum(p.stat().st_size for p in (folder / "whole").rglob("*") if p.is_file())
    begin, steps, total = time.monotonic(), [], given.kills + 8

    def say(text):
        steps.append(text)
        left = (time.monotonic() - begin) / len(steps) * max(total - len(steps), 0)
        print(f"{text}; about {left / 60:.0f} minutes left", flush=True)

    print(f"took {seconds:.0f} s", flush=True)
    kills = survive_kills(command, folder, whole, seconds, given.kills, draw, say)
    mends = [mend_damage(command, folder, whole, 20, draw, say) for _ in range(3)]
    data = refuse_damage(folder, 40, draw, say)
    sizes = [int(size * f) for f in (0.05, draw.uniform(0.1, 0.5), 0.9)] if can_mount() else []
    full = [survive_a_full_disk(command, folder / f"full{s}", whole, s, say) for s in sizes]
    two = share(command, folder / "two", whole, say)
    faults = [*kills, *sum(mends, []), *data, *sum(full, []), *two]
    for fault in faults:
        print(fault, file=sys.stderr)
    survived = given.kills if not kills else f"not all (seed {given.seed})"
    print(
        f"{survived} of {given.kills} kills survived, {sum(not m for m in mends)} of 3 damaged "
        f"builds mended, damaged data {'NOT ' * bool(data)}refused, {sum(not f for f in full)} of "
        f"{len(full)} full disks survived, two at once {'do NOT ' * bool(two)}agree; "
        f"{len(faults)} faults"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
