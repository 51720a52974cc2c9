"""Data sets: what is used is what was asked for, undamaged; no test here needs a network."""

import errno
import gzip
import hashlib
import shutil
import threading

import numpy as np
import pytest
import torch
from torchvision import datasets

from survey_lib import data, fetch
from survey_lib.errors import DataError, UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache and no system folder; both ways to download refuse until a test says else."""

    def offline(work):
        raise OSError("no network in tests")

    monkeypatch.setenv("SURVEY_LIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "SYSTEM", tmp_path / "system")
    monkeypatch.setattr(fetch, "_by_torchvision", offline)
    monkeypatch.setattr(fetch, "_by_apt", offline)
    return tmp_path / "cache"


@pytest.fixture
def small(monkeypatch):
    """Four small files in the place of the four of Fashion-MNIST, and their recorded sums."""
    contents = {name: name.encode() * 50 for name in fetch.FASHION_MNIST}
    for name, content in contents.items():
        monkeypatch.setitem(fetch.FASHION_MNIST, name, hashlib.sha256(content).hexdigest())
    return contents


def put(folder, contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    return folder


def brings(contents):
    """A way to download that brings these files."""
    return lambda work: put(work / "raw", contents)


def npz(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def blobs(n=40, classes=4):
    """n examples of 3 features, `classes` labels in turn."""
    draw = np.random.default_rng(0)
    return draw.normal(5, 2, (n, 3)), np.arange(n) % classes


# digits


def test_digits_shape_range_and_split():
    d = data.load("digits")
    assert d.x.shape == (1437, 1, 8, 8) and d.x_test.shape == (360, 1, 8, 8)
    assert d.x.dtype == torch.float32 and d.y.dtype == torch.int64
    assert d.x.min() == 0 and d.x.max() == 1 and d.classes == 10
    # stratified: each class has a fifth of its images in the test part, to one image
    counts, test = torch.cat([d.y, d.y_test]).bincount(), d.y_test.bincount()
    assert ((test - counts / 5).abs() <= 1).all()


def test_digits_are_read_once_and_leave_global_random_state_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    data._digits.cache_clear()
    assert data.load() is data.load("digits")
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_changed_digits_are_refused(monkeypatch):
    data._digits.cache_clear()
    monkeypatch.setattr(data, "DIGITS", "0" * 64)
    with pytest.raises(DataError, match="expected 0000.*requirements.lock"):
        data.load("digits")


# Fashion-MNIST: the four ways


def test_cache_folder_comes_first(cache, small):
    put(cache / "fashion-mnist", small)
    put(fetch.SYSTEM, {name: b"other" for name in small})  # would be refused if it were read
    assert fetch.fashion_mnist_files() == small


def test_system_folder_comes_second_and_is_not_copied(cache, small):
    put(fetch.SYSTEM, small)
    assert fetch.fashion_mnist_files() == small
    assert not cache.exists()


def test_torchvision_comes_third_and_fills_the_cache(cache, small, monkeypatch):
    monkeypatch.setattr(fetch, "_by_torchvision", brings(small))
    assert fetch.fashion_mnist_files() == small
    assert {p.stem for p in (cache / "fashion-mnist").iterdir()} == set(small)
    assert not (cache / "fashion-mnist.partial").exists()


def test_apt_comes_fourth(cache, small, monkeypatch, capsys):
    monkeypatch.setattr(fetch, "_by_apt", brings(small))
    assert fetch.fashion_mnist_files() == small
    first, second = capsys.readouterr().err.splitlines()
    assert "torchvision" in first and "apt-get" in second


def test_a_missing_file_is_fetched_and_the_others_stay(cache, small, monkeypatch):
    put(cache / "fashion-mnist", dict(list(small.items())[1:]))
    monkeypatch.setattr(fetch, "_by_torchvision", brings(small))
    assert fetch.fashion_mnist_files() == small


def test_nothing_to_be_had_names_the_four_ways_and_leaves_nothing(cache, small):
    with pytest.raises(DataError) as caught:
        fetch.fashion_mnist_files()
    said = str(caught.value)
    for part in (cache / "fashion-mnist", fetch.SYSTEM, "torchvision's download", "apt-get"):
        assert str(part) in said
    assert said.count("no network in tests") == 2 and "SCALE=quick" in said
    assert "\n" not in said
    assert [p.name for p in cache.iterdir() if p.suffix != ".lock"] == []


@pytest.mark.parametrize("where", ["cache", "system"])
@pytest.mark.parametrize("damage", ["truncated", "other content", "not gzip", "empty"])
def test_a_damaged_file_is_refused_and_kept(cache, small, monkeypatch, where, damage):
    folder = put(cache / "fashion-mnist" if where == "cache" else fetch.SYSTEM, small)
    path = folder / f"{list(small)[2]}.gz"
    whole = path.read_bytes()
    bad = {
        "truncated": whole[:-9],
        "other content": gzip.compress(b"other"),
        "not gzip": b"<html>not found</html>",
        "empty": b"",
    }[damage]
    path.write_bytes(bad)

    def never(work):
        raise AssertionError("nothing else is tried")

    monkeypatch.setattr(fetch, "_by_torchvision", never)
    with pytest.raises(DataError) as caught:
        fetch.fashion_mnist_files()
    assert str(path) in str(caught.value) and "remove this file" in str(caught.value)
    assert fetch.FASHION_MNIST[list(small)[2]] in str(caught.value)
    assert path.read_bytes() == bad


def test_no_flipped_bit_or_missing_end_changes_a_figure(cache, small):
    """Of a .gz file, some bits (a date, a flag) do not matter; the content is the recorded one."""
    path = put(cache / "fashion-mnist", small) / f"{list(small)[0]}.gz"
    body = path.read_bytes()
    flipped = [
        body[:k] + bytes([body[k] ^ 1 << b]) + body[k + 1 :]
        for k in range(len(body))
        for b in range(8)
    ]
    refused = 0
    for bad in flipped + [body[:k] for k in range(len(body))]:
        path.write_bytes(bad)
        try:
            assert fetch.fashion_mnist_files() == small
        except DataError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 4 * len(body)


def test_a_damaged_cache_is_refused_even_where_another_file_is_missing(cache, small):
    folder = put(cache / "fashion-mnist", small)
    (folder / f"{list(small)[0]}.gz").unlink()
    (folder / f"{list(small)[1]}.gz").write_bytes(b"x")
    with pytest.raises(DataError, match="damaged"):
        fetch.fashion_mnist_files()


def test_a_damaged_download_is_not_taken(cache, small, monkeypatch):
    bad = {**small, list(small)[3]: b"other"}
    monkeypatch.setattr(fetch, "_by_torchvision", brings(bad))
    with pytest.raises(DataError, match="torchvision's download: .* is damaged"):
        fetch.fashion_mnist_files()
    assert not (cache / "fashion-mnist").exists()


def test_what_a_killed_download_left_is_not_read(cache, small):
    put(cache / "fashion-mnist.partial" / "torchvision", small)
    with pytest.raises(DataError, match="could not be had"):
        fetch.fashion_mnist_files()


def test_two_at_once_fetch_once(cache, small, monkeypatch):
    calls, got = [], []

    def slow(work):
        calls.append(work)
        threading.Event().wait(0.2)
        return put(work / "raw", small)

    monkeypatch.setattr(fetch, "_by_torchvision", slow)
    threads = [
        threading.Thread(target=lambda: got.append(fetch.fashion_mnist_files())) for _ in range(3)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert got == [small] * 3 and len(calls) == 1


def test_a_cache_that_cannot_be_written_is_a_data_error(tmp_path, small, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SURVEY_LIB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match="SURVEY_LIB_CACHE"):
        fetch.fashion_mnist_files()


def test_apt_uses_lists_of_its_own_and_unpacks(tmp_path, small, monkeypatch):
    monkeypatch.undo()  # the real _by_apt, with commands that do nothing but note themselves
    ran = []

    def command(words, folder, fail=True):
        ran.append(words)
        if "download" in words:
            (folder / f"{fetch.PACKAGE}_1_all.deb").write_bytes(b"")
        return "done"

    monkeypatch.setattr(fetch, "_command", command)
    monkeypatch.setattr(fetch.shutil, "which", lambda name: name)
    work = tmp_path / "a folder"
    work.mkdir()
    folder = fetch._by_apt(work)
    update, download, unpack = ran
    assert update[-1] == "update" and download[-2:] == ["download", fetch.PACKAGE]
    assert f"Dir::State::lists={work}/lists" in update and (work / "lists").is_dir()
    assert unpack[:2] == ["dpkg-deb", "-x"] and folder.is_relative_to(unpack[-1])


def test_apt_is_refused_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    with pytest.raises(DataError, match="no apt-get"):
        fetch._by_apt(tmp_path)


def test_a_command_that_fails_says_its_last_line(tmp_path):
    words = ["sh", "-c", "echo first; echo last >&2; exit 3"]
    assert fetch._command(words, tmp_path, fail=False) == "last"
    with pytest.raises(DataError, match="sh failed: last"):
        fetch._command(words, tmp_path)


def test_real_fashion_mnist(monkeypatch):
    monkeypatch.undo()  # the real folders, but no way to download
    monkeypatch.setattr(fetch, "_by_torchvision", lambda work: work)
    monkeypatch.setattr(fetch, "_by_apt", lambda work: work)
    folders = (fetch.cache_dir() / "fashion-mnist", fetch.SYSTEM)
    files = [f"{name}.gz" for name in fetch.FASHION_MNIST]
    if not any(all((folder / f).exists() for f in files) for folder in folders):
        pytest.skip(
            f"Fashion-MNIST is in neither {folders[0]} nor {folders[1]}: its real files are not "
            "tested here; survey_lib.data.load('fashion_mnist') fetches them"
        )
    d = data.load("FashionMNIST")
    assert d is data.load("fashion_mnist")
    assert d.x.shape == (60000, 1, 28, 28) and d.x_test.shape == (10000, 1, 28, 28)
    assert d.y.bincount().tolist() == [6000] * 10 and d.y_test.bincount().tolist() == [1000] * 10
    assert abs(d.x.mean()) < 1e-3 and abs(d.x.std() - 1) < 1e-3


# torchvision sets


class Tiny(datasets.VisionDataset):
    """A stand-in for a torchvision set: 12 RGB images to train and 4 to test, 2 classes."""

    downloads = 0
    sizes = (4,)

    def __init__(self, root, train=True, download=False):
        super().__init__(root)
        self.n = 12 if train else 4
        if download:
            type(self).downloads += 1
            (self.path(root)).write_bytes(bytes(range(12)))
        self.pixels = self.path(root).read_bytes()

    @staticmethod
    def path(root):
        return fetch.Path(root) / "pixels.bin"

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i >= self.n:
            raise IndexError(i)
        size = self.sizes[i % len(self.sizes)]
        return np.full((size, size, 3), self.pixels[i], np.uint8) * np.uint8([1, 2, 3]), i % 2


@pytest.fixture
def tiny(monkeypatch):
    """Registered as torchvision's CIFAR10; no call reaches the true one."""
    fresh = type("CIFAR10", (Tiny,), {"downloads": 0})
    monkeypatch.setattr(datasets, "CIFAR10", fresh)
    return fresh


@pytest.mark.parametrize("name", ["cifar10", "CIFAR10", "cifar_10"])
def test_a_torchvision_set_is_standardised_by_its_training_part(tiny, name):
    d = data.load(name)
    assert d.x.shape == (12, 3, 4, 4) and d.x_test.shape == (4, 3, 4, 4) and d.classes == 2
    assert torch.allclose(d.x.mean((0, 2, 3)), torch.zeros(3), atol=1e-6)
    assert torch.allclose(d.x.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-6)
    assert d.x_test.mean() < -0.5  # its pixels are the four darkest, by the same mean and sd


def test_a_torchvision_set_is_downloaded_once_and_checked_again(tiny, cache):
    first = data.load("cifar10")
    data._torchvision.cache_clear()
    assert data.load("cifar10").checksum == first.checksum
    assert tiny.downloads == 2  # train and test part, the first time only
    path = cache / "torchvision" / "CIFAR10" / "pixels.bin"
    path.write_bytes(bytes(range(1, 13)))
    data._torchvision.cache_clear()
    with pytest.raises(DataError, match="CIFAR10 is damaged.*remove this folder"):
        data.load("cifar10")
    assert path.exists()


@pytest.mark.parametrize("damage", ["not text", "empty", "another's"])
def test_a_damaged_record_of_a_torchvision_set_is_refused(tiny, cache, damage):
    data.load("cifar10")
    record = cache / "torchvision" / "CIFAR10" / "sha256"
    record.write_bytes({"not text": b"\xff" * 64, "empty": b"", "another's": b"0" * 64}[damage])
    data._torchvision.cache_clear()
    with pytest.raises(DataError, match="CIFAR10 is damaged.*remove this folder"):
        data.load("cifar10")


@pytest.mark.parametrize("lost", ["sha256", "pixels.bin"])
def test_a_torchvision_set_that_lost_a_file_is_fetched_again_or_refused(tiny, cache, lost):
    first = data.load("cifar10")
    (cache / "torchvision" / "CIFAR10" / lost).unlink()
    data._torchvision.cache_clear()
    if lost == "pixels.bin":
        with pytest.raises(DataError, match="could not be had.*remove .*CIFAR10 and run again"):
            data.load("cifar10")
        shutil.rmtree(cache / "torchvision" / "CIFAR10")
    assert data.load("cifar10").checksum == first.checksum and tiny.downloads == 4


def test_a_full_cache_says_to_make_room_and_leaves_nothing(tiny, cache, small, monkeypatch):
    def full(*given, **how):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetch, "_by_torchvision", full)
    monkeypatch.setattr(fetch, "_by_apt", lambda work: pytest.fail("no other way is tried"))
    monkeypatch.setattr(tiny, "path", full)
    for ask in (fetch.fashion_mnist_files, lambda: data.load("cifar10")):
        with pytest.raises(DataError, match="cannot write to .*No space left.*make room there or"):
            ask()
    left = {p.name for p in cache.rglob("*") if p.suffix != ".lock"}
    assert left == {"torchvision"}


def test_images_of_unlike_sizes_are_refused(tiny):
    tiny.sizes = (4, 5)
    with pytest.raises(UsageError, match="differ in size"):
        data.load("cifar10")


def test_a_download_that_fails_leaves_nothing(tiny, cache, monkeypatch):
    monkeypatch.setattr(tiny, "path", staticmethod(lambda root: fetch.Path("/nonexistent/x")))
    with pytest.raises(DataError, match="CIFAR10 could not be had.*network"):
        data.load("cifar10")
    assert [p.name for p in (cache / "torchvision").iterdir()] == ["CIFAR10.lock"]


@pytest.mark.parametrize("name", ["mnist99", "", "kitti", "celeba", "ImageFolder", "fake_data"])
def test_an_unknown_name_says_what_there_is(name):
    with pytest.raises(UsageError, match="digits, fashion_mnist, a torchvision.*my.npz"):
        data.load(name)


def test_a_name_that_is_no_text_is_refused():
    with pytest.raises(UsageError, match="digits"):
        data.load(3)


@pytest.mark.parametrize("name", ["MNIST", "kmnist", "QMNIST", "emnist", "svhn", "stl10", "usps"])
def test_known_torchvision_sets_are_found(name):
    assert data._torchvision_class(name, name.lower()).__name__.lower() == name.lower()


# npz files


def test_npz_is_split_standardised_and_recoded(tmp_path):
    x, y = blobs()
    d = data.load(npz(tmp_path / "my.npz", x=x, y=y * 10 - 5))  # labels -5, 5, 15, 25
    assert d.name == "my.npz" and d.classes == 4
    assert d.x.shape == (32, 3) and d.x_test.shape == (8, 3)
    assert d.y.bincount().tolist() == [8] * 4 and d.y_test.bincount().tolist() == [2] * 4
    assert abs(d.x.mean()) < 1e-6 and abs(d.x.std(correction=0) - 1) < 1e-6


def test_npz_with_its_own_test_part_keeps_it(tmp_path):
    x, y = blobs()
    path = npz(tmp_path / "my.npz", x=x[:30], y=y[:30], x_test=x[30:], y_test=y[30:])
    d = data.load(path)
    assert len(d.x) == 30 and d.y_test.tolist() == y[30:].tolist()
    expected = (x[30:] - x[:30].mean()) / x[:30].std()
    assert torch.allclose(d.x_test, torch.tensor(expected).float())


def test_a_changed_npz_is_read_anew(tmp_path):
    x, y = blobs()
    first = data.load(npz(tmp_path / "my.npz", x=x, y=y))
    assert data.load(tmp_path / "my.npz") is first
    second = data.load(npz(tmp_path / "my.npz", x=np.tile(x, 2), y=y))
    assert second.checksum != first.checksum and second.x.shape == (32, 6)


X, Y = blobs()
BAD = {
    "no y": (dict(x=X), "needs x and y"),
    "half a test part": (dict(x=X, y=Y, x_test=X), "needs x and y"),
    "lengths": (dict(x=X, y=Y[1:]), "do not fit"),
    "flat x": (dict(x=X[:, 0], y=Y), "do not fit"),
    "y of two columns": (dict(x=X, y=np.stack([Y, Y], 1)), "do not fit"),
    "unlike test part": (dict(x=X, y=Y, x_test=X[:, :2], y_test=Y), "do not fit"),
    "text": (dict(x=X.astype(str), y=Y), "finite numbers"),
    "complex": (dict(x=X * 1j, y=Y), "complex"),
    "y not integer": (dict(x=X, y=Y + 0.5), "float64"),
    "objects": (dict(x=X.astype(object), y=Y), "cannot be read"),
    "not finite": (dict(x=np.where(X > 8, np.nan, X), y=Y), "not finite"),
    "few": (dict(x=X[:9], y=Y[:9]), "10 or more"),
    "one class": (dict(x=X, y=Y * 0), "2 or more"),
    "new class in the test part": (dict(x=X, y=Y, x_test=X, y_test=Y + 1), "all of y_test"),
    "single of a class": (dict(x=X, y=np.where(np.arange(40) == 0, 9, Y)), "cannot be split"),
    "constant": (dict(x=X * 0, y=Y), "standard deviation"),
    "overflow": (dict(x=X * 1e300, y=Y), "standard deviation"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_npz_is_refused_in_one_line(tmp_path, case):
    arrays, why = BAD[case]
    with pytest.raises(UsageError, match=f"my.npz: .*{why}") as caught:
        data.load(npz(tmp_path / "my.npz", **arrays))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_npz(tmp_path):
    path = tmp_path / "my.npz"
    with pytest.raises(UsageError, match="no file"):
        data.load(str(path))
    whole = tmp_path / "whole.npz"
    npz(whole, x=X, y=Y)
    for content in (b"", b"text", whole.read_bytes()[:-40]):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="cannot be read"):
            data.load(str(path))


def test_a_flipped_bit_in_any_byte_of_an_npz_is_refused_or_changes_nothing(tmp_path):
    path = tmp_path / "my.npz"
    npz(path, x=X[:12, :1], y=Y[:12], x_test=X[12:16, :1], y_test=Y[12:16])
    body, first = path.read_bytes(), data.load(path)
    refused = 0
    for k in range(len(body)):
        data._npz.cache_clear()
        path.write_bytes(body[:k] + bytes([body[k] ^ 1 << k % 8]) + body[k + 1 :])
        try:
            assert data.load(path).checksum == first.checksum, f"bit {k % 8} of byte {k}"
        except UsageError:
            refused += 1
    assert refused > len(body) / 2  # the rest are dates and the like


def test_importing_data_loads_neither_torchvision_nor_sklearn():
    import subprocess
    import sys

    code = "import sys, survey_lib.data; print({'torchvision', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
