"""Data sets as tensors: digits comes with scikit-learn, Fashion-MNIST is found or fetched, and any
other on request. What is used is what was asked for, undamaged, or an error says what to do."""

import functools
import hashlib
import inspect
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from survey_lib.errors import DataError, UsageError
from survey_lib.fetch import (
    FASHION_MNIST,
    cache_dir,
    fashion_mnist_files,
    full,
    one_line,
    socket_timeout,
    staging,
)

DIGITS = "9c22ca1110896520c3ce41616b94e56819b6fc2d20c1c9066979ea6497cd4773"
# torchvision sets that a train / test split does not make classification sets we can fetch
OTHERS = """CelebA CLEVRClassification ImageNet Imagenette Kinetics Kitti Middlebury2014Stereo
PhotoTour WIDERFace""".split()
KNOWN = (
    "digits, fashion_mnist, a torchvision classification set such as cifar10, "
    "or a file my.npz with x (n, ...) and y (n,)"
)


@dataclass(frozen=True, eq=False)
class Data:
    """A classification set: x (n, ...) float32, y (n,) int64 in 0..classes-1; the same for the test
    part. `checksum` is the SHA-256 of the raw content; a stored result is bound to it."""

    name: str
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int
    checksum: str


def load(name: str = "digits") -> Data:
    """The data set `name`, read once per process: `digits`, `fashion_mnist`, a torchvision
    classification set in snake or native case (`cifar10`, `CIFAR10`), or a path to an .npz file."""
    if not isinstance(name, str | os.PathLike):
        raise UsageError(f"the data set {name!r} is not a name; expected {KNOWN}")
    name = os.fspath(name)
    if name.lower().endswith(".npz"):
        path = Path(name).expanduser().resolve()
        if not path.is_file():
            raise UsageError(f"there is no file {name}; expected an .npz file with x and y")
        return _npz(path, path.stat().st_mtime_ns, path.stat().st_size)
    short = name.replace("_", "").lower()
    own = {"digits": _digits, "fashionmnist": _fashion_mnist}
    return own[short]() if short in own else _torchvision(_torchvision_class(name, short))


@functools.lru_cache
def _digits() -> Data:
    """1797 images (1, 8, 8) in 0..1: 1437 to train and 360 to test, one fixed stratified split."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    parts = _split(images.astype(np.uint8).reshape(-1, 1, 8, 8), labels)
    found = _checksum(*parts)
    if found != DIGITS:
        raise DataError(
            f"scikit-learn's digits or its split changed: SHA-256 {found}, expected {DIGITS}; "
            "install the versions of requirements.lock"
        )
    x, y, x_test, y_test = parts
    return _data("digits", x / 16, y, x_test / 16, y_test, 10, found)


@functools.lru_cache
def _fashion_mnist() -> Data:
    """60,000 images (1, 28, 28) to train, 10,000 to test; mean 0.2860 becomes 0, sd 0.3530 1."""
    raw = fashion_mnist_files()
    arrays = [
        np.frombuffer(raw[name], np.uint8, offset=16 if "images" in name else 8)
        for name in FASHION_MNIST
    ]
    x, x_test = (_standardised(a.reshape(-1, 1, 28, 28), [0.2860], [0.3530]) for a in arrays[::2])
    checksum = hashlib.sha256("".join(FASHION_MNIST.values()).encode()).hexdigest()
    return _data("fashion_mnist", x, arrays[1], x_test, arrays[3], 10, checksum)


def _torchvision_class(name: str, short: str) -> type:
    from torchvision import datasets

    native = {c.lower(): c for c in datasets.__all__ if c not in OTHERS}.get(short, "")
    cls = getattr(datasets, native, None)
    accepts = inspect.signature(cls).parameters if cls else {}
    split = getattr(accepts.get("split"), "default", None)
    if not ("train" in accepts or split in ("train", "trainval") or native == "EMNIST"):
        raise UsageError(f"there is no data set {name!r}; expected {KNOWN}")
    return cls


@functools.lru_cache
def _torchvision(cls: type) -> Data:
    """A set of equally large images (channels, height, width), standardised per channel."""
    root = cache_dir() / "torchvision" / cls.__name__
    record = root / "sha256"  # written last: a folder that has it is whole
    if not record.is_file():
        with staging(root) as partial:
            if not record.is_file():
                print(f"{cls.__name__}: trying torchvision's download (once)", file=sys.stderr)
                with socket_timeout():
                    parts = _torchvision_parts(cls, partial, download=True)
                (partial / "sha256").write_text(_checksum(*parts))
                shutil.rmtree(root, ignore_errors=True)  # what is there is not whole
                os.replace(partial, root)
    x, y, x_test, y_test = parts = _torchvision_parts(cls, root, download=False)
    found, expected = _checksum(*parts), record.read_text(errors="replace").strip()
    if found != expected:
        raise DataError(
            f"{root} is damaged and was not used: SHA-256 {found}, expected {expected}; "
            "remove this folder and run again, which fetches it anew"
        )
    counts = [np.bincount(x[:, c].ravel(), minlength=256) for c in range(x.shape[1])]
    levels = np.arange(256) / 255
    mean = [c @ levels / c.sum() for c in counts]
    sd = [np.sqrt(c @ (levels - m) ** 2 / c.sum()) for c, m in zip(counts, mean, strict=True)]
    x, x_test = _standardised(x, mean, sd), _standardised(x_test, mean, sd)
    name = cls.__name__.lower()
    return _data(name, x, y, x_test, y_test, int(max(y.max(), y_test.max())) + 1, found)


def _torchvision_parts(cls: type, root: Path, download: bool) -> list:
    """[x, y, x_test, y_test] as uint8 (n, channels, height, width) and int64 (n,)."""
    accepts = inspect.signature(cls).parameters
    parts = []
    for train in (True, False):
        if cls.__name__ == "EMNIST":
            part = {"split": "balanced", "train": train}
        elif "train" in accepts:
            part = {"train": train}
        else:
            part = {"split": accepts["split"].default if train else "test"}
        try:
            items = cls(str(root), download=download, **part)
            images, labels = zip(*((np.asarray(im), lab) for im, lab in items), strict=True)
        except Exception as error:  # a download, its format, a library it lacks: all kinds
            if full(error):
                raise
            remedy = "it needs a network once" if download else f"remove {root} and run again"
            raise DataError(
                f"torchvision's {cls.__name__} could not be had: {one_line(error)}; {remedy}"
            ) from error
        shapes = sorted({image.shape for image in images})
        if len(shapes) > 1:
            raise UsageError(
                f"the images of {cls.__name__} differ in size, {shapes[0]} to {shapes[-1]}; "
                "bring them to one size and load them from an .npz file with x and y"
            )
        x = np.stack(images)
        x = x[:, None] if x.ndim == 3 else np.moveaxis(x, 3, 1)
        parts += [np.ascontiguousarray(x), np.array(labels, np.int64)]
    return parts


@functools.lru_cache
def _npz(path: Path, modified: int, size: int) -> Data:
    """A user's file: x (n, ...) numeric, y (n,) integer; x_test and y_test or a fixed stratified
    80 / 20 split. Labels become 0..classes-1, features are standardised over the train part."""

    def refuse(why):
        raise UsageError(f"{path.name}: {why}; expected x (n, ...) finite numbers, y (n,) integers")

    try:
        with np.load(path, allow_pickle=False) as file:
            keys = [k for k in ("x", "y", "x_test", "y_test") if k in file.files]
            parts = [file[k] for k in keys]
    except Exception as error:  # NumPy, zipfile and zlib: each has kinds of its own
        refuse(f"cannot be read ({one_line(error)})")
    if len(keys) not in (2, 4) or keys[:2] != ["x", "y"]:
        refuse(f"has {keys}, needs x and y, or x, y, x_test and y_test")
    for x, y in zip(parts[::2], parts[1::2], strict=True):
        if x.ndim < 2 or y.shape != x.shape[:1] or x.shape[1:] != parts[0].shape[1:] or not x.size:
            refuse(f"x of shape {x.shape} and y of shape {y.shape} do not fit")
        if x.dtype.kind not in "fiub" or y.dtype.kind not in "iub":
            refuse(f"x is {x.dtype} and y is {y.dtype}")
        if not np.isfinite(x).all():
            refuse("x has values that are not finite")
    if len(parts[0]) < 10:
        refuse(f"has {len(parts[0])} examples, needs 10 or more")
    values = np.unique(parts[1])
    if len(values) < 2 or not np.isin(parts[-1], values).all():
        refuse(f"y has the classes {values[:5].tolist()}: needs 2 or more, and all of y_test")
    checksum = _checksum(*parts)
    try:
        parts = parts if len(parts) == 4 else _split(*parts)
    except ValueError as error:
        refuse(f"cannot be split 80 / 20 ({one_line(error)})")
    x, y, x_test, y_test = parts
    x, x_test = x.astype(np.float64), x_test.astype(np.float64)
    with np.errstate(all="ignore"):
        mean, sd = x.mean(), x.std()
    if not 0 < sd < np.inf:
        refuse(f"x has a standard deviation of {sd}")
    y, y_test = np.searchsorted(values, y), np.searchsorted(values, y_test)
    x, x_test = (x - mean) / sd, (x_test - mean) / sd
    return _data(path.name, x, y, x_test, y_test, len(values), checksum)


def _split(x, y) -> list:
    """[x, y, x_test, y_test]: one fixed stratified split, four fifths to train."""
    from sklearn.model_selection import train_test_split

    x, x_test, y, y_test = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
    return [x, y, x_test, y_test]


def _standardised(images: np.ndarray, mean: list, sd: list) -> Tensor:
    """uint8 (n, channels, height, width) as float32 (value / 255 - mean) / sd, per channel."""
    x = torch.from_numpy(images.astype(np.float32)).div_(255)
    shape = (1, -1, 1, 1)
    return x.sub_(torch.tensor(mean).float().view(shape)).div_(torch.tensor(sd).float().view(shape))


def _checksum(*arrays: np.ndarray) -> str:
    """SHA-256 over shapes, types and little-endian contents: the same on every machine."""
    digest = hashlib.sha256()
    for a in arrays:
        a = np.ascontiguousarray(a, a.dtype.newbyteorder("<"))
        digest.update(f"{a.dtype.str}{a.shape}".encode() + a.tobytes())
    return digest.hexdigest()


def _data(name, x, y, x_test, y_test, classes, checksum) -> Data:
    x, x_test = (torch.as_tensor(a, dtype=torch.float32) for a in (x, x_test))
    y, y_test = (torch.from_numpy(np.asarray(a).astype(np.int64)) for a in (y, y_test))
    return Data(name, x, y, x_test, y_test, classes, checksum)
