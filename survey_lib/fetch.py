"""Finding and fetching what comes with no package: nothing half fetched or damaged is used."""

import contextlib
import errno
import gzip
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

from survey_lib.errors import DataError

SYSTEM = Path("/usr/share/datasets/fashion-mnist")  # where the Debian package puts its files
PACKAGE = "dataset-fashion-mnist"
TIMEOUT = 30  # s without an answer, after which a download is given up
# SHA-256 of each file's *decompressed* content: the .gz files differ in their headers (name, date)
# between the publisher's and Debian's copies, the content does not.
FASHION_MNIST = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def cache_dir() -> Path:
    """The folder for downloads: $SURVEY_LIB_CACHE, else the user's cache folder of this system."""
    import platformdirs

    chosen = os.environ.get("SURVEY_LIB_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("survey_lib"))


def fashion_mnist_files() -> dict:
    """{file name: decompressed, verified content}, from the first of four ways that has it."""
    home, said = cache_dir() / "fashion-mnist", {}
    if raw := _read(home, said) or _read(SYSTEM, said):
        return raw
    with staging(home) as partial:
        if raw := _read(home, said):  # another process fetched it while this one waited
            return raw
        ways = {"torchvision's download": _by_torchvision, f"apt-get download {PACKAGE}": _by_apt}
        for way, fetch in ways.items():
            print(f"Fashion-MNIST: trying {way} (30 MB, once)", file=sys.stderr)
            work = Path(tempfile.mkdtemp(dir=partial))
            try:
                folder = fetch(work)
                if not (raw := _read(folder, said, way)):
                    continue
            except Exception as error:  # whatever a download says, the next way is tried
                if full(error):
                    raise
                said[way] = one_line(error)
                continue
            home.mkdir(exist_ok=True)
            for name in FASHION_MNIST:
                os.replace(folder / f"{name}.gz", home / f"{name}.gz")
            return raw
    tried = "; ".join(f"{way}: {what}" for way, what in said.items())
    raise DataError(
        f"Fashion-MNIST could not be had. Tried {tried}. Put the four files "
        f"{{train,t10k}}-{{images-idx3,labels-idx1}}-ubyte.gz into {home}, "
        "or use SCALE=quick, which needs none of them"
    )


def _read(folder: Path, said: dict, way: str = "") -> dict | None:
    """The four contents, or None with a word in `said` if a file is missing. Damage is an error."""
    paths = {name: folder / f"{name}.gz" for name in FASHION_MNIST}
    if missing := [p.name for p in paths.values() if not p.exists()]:
        said[way or str(folder)] = "has no " + ", ".join(missing)
    raw = {n: _verified(p, FASHION_MNIST[n]) for n, p in paths.items() if p.exists()}
    return None if missing else raw


def _verified(path: Path, sha256: str) -> bytes:
    try:
        content = gzip.decompress(path.read_bytes())
        what = f"content of SHA-256 {hashlib.sha256(content).hexdigest()}"
    except (OSError, EOFError, zlib.error) as error:
        content, what = None, one_line(error)
    if what.endswith(sha256):
        return content
    raise DataError(
        f"{path} is damaged and was not used: {what}, expected content of SHA-256 {sha256}; "
        "remove this file and run again, which fetches it anew"
    )


def _by_torchvision(work: Path) -> Path:
    from torchvision.datasets import FashionMNIST

    with socket_timeout():
        FashionMNIST(str(work), download=True)
    return work / "FashionMNIST" / "raw"


def _by_apt(work: Path) -> Path:
    """Debian's package, without root and with package lists of our own."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise DataError("this system has no apt-get")
    for part in ("lists/partial", "cache/archives/partial"):
        (work / part).mkdir(parents=True)
    options = """-q -o Dir::State={0} -o Dir::State::lists={0}/lists -o Dir::Cache={0}/cache
        -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=1
        -o Acquire::http::Timeout={1} -o Acquire::https::Timeout={1}"""
    apt = ["apt-get", *(option.format(work, TIMEOUT) for option in options.split())]
    updated = _command([*apt, "update"], work, fail=False)  # one dead list need not matter
    try:
        _command([*apt, "download", PACKAGE], work)
    except DataError as error:
        raise DataError(f"{error} (update: {updated})") from error
    (deb,) = work.glob(f"{PACKAGE}_*.deb")
    _command(["dpkg-deb", "-x", str(deb), str(work / "unpacked")], work)
    return work / "unpacked" / SYSTEM.relative_to("/")


def _command(words: list, folder: Path, fail: bool = True) -> str:
    """Run a command, 10 min at most; the last line it wrote. A failure is an error if `fail`."""
    done = subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=20 * TIMEOUT,
    )
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
    if done.returncode and fail:
        raise DataError(f"{words[0]} failed: {last}")
    return last


@contextlib.contextmanager
def staging(target: Path):
    """An empty folder beside `target`, for one process at a time. What is whole is moved from it
    by os.replace; what a killed download left in it is thrown away and never read."""
    from filelock import FileLock

    partial = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(target.name + ".lock")):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                yield partial
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"cannot write to {target.parent} ({one_line(error)}); "
            f"{'make room there or ' * full(error)}set SURVEY_LIB_CACHE to another folder"
        ) from error


def full(error: Exception) -> bool:
    """Whether it says that a disk is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def socket_timeout():
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def one_line(error: Exception) -> str:
    """An error's text on one line of bounded length."""
    return " ".join(str(error).split())[:200] or type(error).__name__
