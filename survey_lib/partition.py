"""Who holds which samples: IID, label shards, Dirichlet, quantity skew, and how skewed a split is.

A partition is a function (y, n, *key) -> list of n index arrays, one per device, none empty. It is
made by the functions below, so that `dirichlet(0.1)` can stand in a table, a notebook or a key.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from survey_lib.errors import UsageError
from survey_lib.streams import stream

Partition = Callable[..., list[np.ndarray]]


def iid(size: int | None = None) -> Partition:
    """A random split in n nearly equal parts; with `size`, n independent draws of that many
    samples, so that there can be more devices than samples."""
    return partial(_iid, size=size)


def shards(s: int = 2) -> Partition:
    """Sort by label, cut in n s blocks, deal s blocks to each device. McMahan et al., AISTATS 2017,
    section 3."""
    if s < 1:
        raise UsageError(f"shards({s}): every device needs at least one shard; use shards(2)")
    return partial(_shards, s=s)


def dirichlet(alpha: float, per: str = "class") -> Partition:
    """Label skew by Dirichlet draws; smaller alpha, stronger skew.

    per="class": for each class k, pi_k ~ Dir(alpha 1_n) cuts its samples at floor(cumsum(pi_k)
    n_k); sizes vary (Yurochkin et al., ICML 2019; Li Q. et al., ICDE 2022). per="client": q_i ~
    Dir(alpha C p), p the class prior; each device draws the same number of samples; a class that
    runs out is removed and q_i renormalised (Hsu et al., arXiv 1909.06335; Dir(alpha p) there). A
    device left empty takes one sample from the largest device.
    """
    if not alpha > 0:
        raise UsageError(
            f"dirichlet(alpha={alpha}): alpha must be above 0; "
            "try 0.1 (strong skew) to 100 (nearly IID)"
        )
    if per not in ("class", "client"):
        raise UsageError(f'dirichlet(per="{per}"): expected "class" or "client"')
    return partial(_dirichlet_class if per == "class" else _dirichlet_client, alpha=alpha)


def quantity(alpha: float) -> Partition:
    """Quantity skew: sizes are Dir(alpha) shares, labels IID."""
    if not alpha > 0:
        raise UsageError(f"quantity(alpha={alpha}): alpha must be above 0; try 0.5")
    return partial(_quantity, alpha=alpha)


def drawn(common: float, size: int) -> Partition:
    """Streams: each device holds `size` draws with replacement, a share `common` of them from
    everybody's samples and the rest from a label shard of its own."""
    if not 0 <= common <= 1:
        raise UsageError(f"drawn(common={common}): a share is a number from 0 to 1")
    return partial(_drawn, common=common, size=size)


def tied(classes: tuple[int, ...], devices: tuple[int, ...], alone: bool = True) -> Partition:
    """Some classes are at the given devices only, which hold nothing else (alone=False: which hold
    as much of the rest as the others); both these samples and the rest are dealt IID."""
    how = dict(classes=tuple(classes), devices=tuple(devices))
    return partial(_tied, **how) if alone else partial(_tied, **how, alone=False)


def everything() -> Partition:
    """Every device holds all samples: learners that draw from one pool."""
    return _everything


def _everything(y, n, *key):
    return [np.arange(len(y))] * n


def _iid(y, n, *key, size=None):
    if size is None:
        return fill(np.array_split(stream("iid", *key).permutation(len(y)), n))
    return list(stream("iid", *key).integers(len(y), size=(n, size)))


def _shards(y, n, *key, s):
    if n * s > len(y):
        raise UsageError(
            f"shards({s}) for {n} devices needs {n * s} samples or more, there are {len(y)}"
        )
    rng = stream("shards", *key)
    order = rng.permutation(len(y))
    blocks = np.array_split(order[np.argsort(y[order], kind="stable")], n * s)
    return [
        np.concatenate([blocks[b] for b in row]) for row in rng.permutation(n * s).reshape(n, s)
    ]


def _dirichlet_class(y, n, *key, alpha):
    rng = stream("dirichlet", *key)
    cuts = []
    for k in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == k))
        share = rng.dirichlet(np.full(n, alpha))
        cuts.append(np.split(rows, np.floor(np.cumsum(share[:-1]) * len(rows)).astype(int)))
    return fill([np.concatenate(parts) for parts in zip(*cuts, strict=True)])


def _dirichlet_client(y, n, *key, alpha):
    rng = stream("dirichlet client", *key)
    labels, count = np.unique(y, return_counts=True)
    pools = [list(rng.permutation(np.flatnonzero(y == k))) for k in labels]
    prior, parts = count / len(y), []
    for i in range(n):
        q = rng.dirichlet(alpha * len(labels) * prior)
        part = []
        for _ in range((i + 1) * len(y) // n - i * len(y) // n):
            left = np.array([len(p) > 0 for p in pools])
            q = np.where(left, q, 0.0)
            if q.sum() <= 0:  # the rest underflowed: renormalised it is a Dirichlet draw again
                q[left] = rng.dirichlet((alpha * len(labels) * prior)[left])
            k = rng.choice(len(labels), p=q / q.sum())
            part.append(pools[k].pop())
        parts.append(np.array(part))
    return fill(parts)


def _quantity(y, n, *key, alpha):
    rng = stream("quantity", *key)
    share = rng.dirichlet(np.full(n, alpha))
    return fill(
        np.split(rng.permutation(len(y)), np.floor(np.cumsum(share[:-1]) * len(y)).astype(int))
    )


def _drawn(y, n, *key, common, size):
    rng, k = stream("drawn", *key), round(common * size)
    return [
        np.concatenate([rng.integers(len(y), size=k), rng.choice(own, size - k)])
        for own in _shards(y, n, *key, s=1)
    ]


def _tied(y, n, *key, classes, devices, alone=True):
    others = [i for i in range(n) if i not in devices]
    if not 0 < len(devices) == n - len(others) < n:
        raise UsageError(
            f"tied(devices={devices}): expected some, not all, of the devices 0 to {n - 1}"
        )
    rng, there, parts = stream("tied", *key), np.isin(y, classes), [[] for _ in range(n)]
    rest = others if alone else range(n)
    for rows, at in ((np.flatnonzero(there), devices), (np.flatnonzero(~there), rest)):
        for i, part in zip(at, np.array_split(rng.permutation(rows), len(at)), strict=True):
            parts[i].append(part)
    return fill([np.concatenate(p) for p in parts])


def fill(parts):
    """The parts, none empty: an empty one takes the last sample of the largest."""
    sizes = np.array([len(p) for p in parts])
    for i in np.flatnonzero(sizes == 0):
        j = int(sizes.argmax())
        if sizes[j] < 2:
            raise UsageError(
                f"{len(parts)} devices but only {sizes.sum()} samples; "
                "use fewer devices or iid(size=...)"
            )
        parts[i], parts[j] = parts[j][-1:], parts[j][:-1]
        sizes[i], sizes[j] = 1, sizes[j] - 1
    return parts


def label_counts(y: np.ndarray, parts: list[np.ndarray]) -> np.ndarray:
    """(n, classes): how many samples of each class each device holds."""
    classes = int(y.max()) + 1
    return np.stack([np.bincount(y[p], minlength=classes) for p in parts])


def label_skew(counts: np.ndarray) -> float:
    """Mean over samples of ||p_i - p||_1, from 0 (IID) to nearly 2: the "earth mover's distance" of
    Zhao et al., arXiv 1806.00582, which is the L1 distance of label histograms."""
    p, q = counts / counts.sum(1, keepdims=True), counts.sum(0) / counts.sum()
    return float((counts.sum(1) / counts.sum()) @ np.abs(p - q).sum(1))
