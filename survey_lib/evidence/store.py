"""Finished runs on disk, each under a key made of everything that it depends on."""

import ast
import errno
import functools
import hashlib
import importlib.metadata
import inspect
import json
import marshal
import os
import platform
import tempfile
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch

import survey_lib
from survey_lib.device import device
from survey_lib.errors import DataError, UsageError

ROOT = Path(survey_lib.__file__).parent


def write_atomic(path: Path, content: str | bytes) -> Path:
    """Write a file so that it is there whole or not at all."""
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # named after its writer, so that `mend` knows a dead one's
        handle, temporary = tempfile.mkstemp(".tmp", f".{os.getpid()}-", path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise explained(error, path, len(data)) from None
        raise
    return path


def explained(error: OSError, path: Path, size: int = 0) -> Exception:
    """An error in writing `size` bytes (0: not known) to `path`, with what to do about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        need = "No space left on device" + (f" for {size} bytes" if size else "")
        return OSError(
            error.errno, f"{need}; free some and run again, finished runs are kept", path
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return UsageError(
            f"cannot write {path} ({error.strerror}); give a folder that can be written (OUT=...)"
        )
    return error


def write_sealed(path: Path, body: str) -> Path:
    """Write a file that `read_sealed` knows to be whole, unchanged and under its own name."""
    return write_atomic(path, f"{_seal(path, body.encode())}\n{body}")


def read_sealed(path: Path) -> str:
    """What `write_sealed` wrote there; DataError if the file is damaged or another's copy."""
    try:
        seal, _, body = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); remove it, run again"
        ) from error
    if seal.decode(errors="replace") != _seal(path, body):
        raise DataError(f"{path} is damaged and was not used; remove it and run again")
    return body.decode()


def _seal(path: Path, body: bytes) -> str:
    return hashlib.sha256(path.name.encode() + b"\n" + body).hexdigest()


def mend(out: Path) -> list[str]:
    """Remove below `out` what killed processes left half-written, and every damaged run and ledger
    line; a sentence for each of the latter. Only what is whole is read after that."""
    for temporary in out.rglob(".*-*.tmp"):
        writer = temporary.name[1:].partition("-")[0]
        if not (writer.isdigit() and psutil.pid_exists(int(writer))):
            temporary.unlink(missing_ok=True)
    said = []
    for path in sorted([*out.glob("runs/??/*.json"), *out.glob("evidence/*.json")]):
        try:
            read_sealed(path)
        except FileNotFoundError:
            pass
        except DataError:
            path.unlink()
            said.append(f"{path} is damaged and was removed; running its notebook makes it anew")
    return said


def canonical(value):
    """`value` as JSON-able data that says all that matters of it: the arguments of a run become
    part of its key."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Tensor | np.ndarray):
        array = np.ascontiguousarray(value)
        return {
            "array": [str(array.dtype), *array.shape],
            "sha256": hashlib.sha256(array.tobytes()).hexdigest()[:16],
        }
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, pd.DataFrame):
        columns = [canonical(value.iloc[:, k]) for k in range(value.shape[1])]
        return {"index": canonical(value.index), "columns": columns}
    if isinstance(value, pd.Series | pd.Index):
        bits = pd.util.hash_pandas_object(value).to_numpy().tobytes()
        return {
            "series": [canonical(value.name), str(value.dtype)],
            "sha256": hashlib.sha256(bits).hexdigest()[:16],
        }
    if isinstance(value, dict):
        plain = {k if isinstance(k, str) else f"{type(k).__name__} {k}": k for k in value}
        return {name: canonical(value[k]) for name, k in plain.items()}
    if isinstance(value, tuple | list):
        return [canonical(v) for v in value]
    if isinstance(value, functools.partial):
        return {
            "call": canonical(value.func),
            "args": canonical(value.args),
            "with": canonical(value.keywords),
        }
    if is_dataclass(value) and not inspect.isclass(value):
        held = {f.name: canonical(getattr(value, f.name)) for f in fields(value)}
        return {canonical(type(value)): held}
    if inspect.isfunction(value) or inspect.isclass(value):
        name = f"{value.__module__}.{value.__qualname__}:{source_hash(value)}"
        cells = getattr(inspect.unwrap(value), "__closure__", None) or ()
        held = [cell.cell_contents for cell in cells]
        return {name: canonical(held)} if held else name
    raise TypeError(
        f"{value!r} cannot be part of a run's key; use numbers, tensors, functions or partials"
    )


@cache
def source_hash(function) -> str:
    """Hash of the source of a function or class and of everything in survey_lib that it reaches:
    within the methods, and what is typed into a notebook, function by function, so that a change to
    one method reruns that method only; elsewhere, whole modules."""
    digest, todo, seen = hashlib.sha256(), [function], set()
    modules = set()
    while todo:
        f = inspect.unwrap(todo.pop())
        if f in seen:
            continue
        seen.add(f)
        home = _home(f)
        if home.startswith("survey_lib") and not home.startswith("survey_lib.methods"):
            modules.add(home)
            continue
        digest.update(_source(f).encode())
        for name, target in _targets(f):
            ours = _home(target).startswith("survey_lib")
            if inspect.isfunction(target) or inspect.isclass(target):
                todo += [target] if ours or _home(target) == home else []
            elif isinstance(target, functools.partial) or is_dataclass(target) or _plain(target):
                digest.update(json.dumps([name, canonical(target)]).encode())
            elif ours:  # a module, or a callable object of one
                modules.add(_home(target))
    for name in sorted(modules | _reach(modules)):
        digest.update(_module_file(name).read_bytes())
    return digest.hexdigest()[:16]


def _plain(value):
    return not callable(value) and not inspect.ismodule(value)


def _home(f):
    return getattr(inspect.getmodule(f), "__name__", "__main__")  # typed into a shell: no module


def _source(f):
    try:
        return inspect.getsource(f)
    except (OSError, TypeError):  # typed into a shell: there is no file
        return "".join(marshal.dumps(code).hex() for code in _codes(f))


def _codes(f):
    """The code of a function, or that of a class's methods and properties."""
    if not inspect.isclass(f):
        return [f.__code__]
    parts = [(m.fget, m.fset) if isinstance(m, property) else (m,) for m in vars(f).values()]
    parts = [getattr(m, "__func__", m) for part in parts for m in part]  # of static methods, too
    return [inspect.unwrap(m).__code__ for m in parts if inspect.isfunction(m)]


def _targets(f):
    """(name, value) of the globals that a function or class refers to, nested functions included,
    the functions and classes behind its default arguments, and what a class is derived from."""
    codes, names = _codes(f), set()
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        codes += [c for c in code.co_consts if inspect.iscode(c)]
    space = f.__globals__ if hasattr(f, "__globals__") else vars(inspect.getmodule(f))
    found = [(name, space.get(name)) for name in sorted(names)]
    defaults = [
        *(getattr(f, "__defaults__", None) or ()),
        *(getattr(f, "__kwdefaults__", None) or {}).values(),
    ]
    for default in defaults:
        default = default.func if isinstance(default, functools.partial) else default
        found.append(("", type(default) if is_dataclass(default) else default))
    return found + [(base.__name__, base) for base in getattr(f, "__mro__", ())[1:]]


def _module_file(name):
    path = ROOT.joinpath(*name.split(".")[1:])
    return path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"


@cache
def _imports(name):
    found = set()
    for node in ast.walk(ast.parse(_module_file(name).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("survey_lib"):
            inner = {f"{node.module}.{a.name}" for a in node.names}
            found |= {
                m if ROOT.joinpath(*m.split(".")[1:]).with_suffix(".py").exists() else node.module
                for m in inner
            }
    return found


def _reach(modules):
    """The modules and all modules of survey_lib that they import, methods left out (they count by
    function)."""
    todo, seen = list(modules), set()
    while todo:
        name = todo.pop()
        if name not in seen and not name.startswith("survey_lib.methods"):
            seen.add(name)
            todo += _imports(name)
    return seen


@cache
def versions() -> dict:
    """What else decides the bits of a run: library versions and the kind of machine."""
    libraries = {
        name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy", "networkx")
    }
    cuda = device().type == "cuda"
    gpu = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda} if cuda else {}
    return {
        **libraries,
        "machine": platform.machine(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        **gpu,
    }


class Store:
    """A folder of finished runs. No pickle is read back; a file that is damaged, or that belongs
    to another key, counts as missing and is replaced."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    @staticmethod
    def key(description: dict) -> str:
        text = json.dumps([description, versions()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> pd.DataFrame | None:
        try:
            return pd.DataFrame(json.loads(read_sealed(self.path(key)))["history"])
        except FileNotFoundError:
            return None
        except DataError:
            print(f"{self.path(key)} is damaged; the run is repeated and the file replaced")
            return None

    def put(self, key: str, description: dict, history: pd.DataFrame) -> None:
        columns = {c: history[c].tolist() for c in history}
        write_sealed(self.path(key), json.dumps({"run": description, "history": columns}))
