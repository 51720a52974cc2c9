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


def kept_back(partition: Partition, share: float) -> Partition:
    """The partition of what is left when a share of the samples, alike of each class and at random,
    goes to no device."""
    if not 0 <= share < 1:
        raise UsageError(f"kept_back(share={share}): a share is a number from 0 to below 1")
    return partial(_kept_back, partition=partition, share=share)


def trimmed(partition: Partition, share: float) -> Partition:
    """The partition of which every device gives up a share of its samples, to nobody."""
    return partial(_trimmed, partition=partition, share=share)


def lacking(missing: int) -> Partition:
    """Every device lacks so many labels, each label as many devices, and those that have it share
    its samples evenly."""
    return partial(_lacking, missing=missing)


def everything() -> Partition:
    """Every device holds all samples: learners that draw from one pool."""
    return _everything


def styled(style) -> Partition:
    """As many samples of each class at each device as in an IID split, but of one style only, or of
    two where a style runs out. style (N,): of each sample, an integer. One style per class: `iid()`
    itself."""
    return partial(_styled, style=np.asarray(style))


def persistent(r: float, size: int | None = None) -> Partition:
    """Correlated streams: the label of a device's next sample is with probability r that of the
    last, else any other alike. Without `size` the samples of an IID split, in such an order, as
    long as there are others left; with it, so many draws with replacement from all samples, of
    which r = 1 / classes makes each independent of the last, and r = 1 takes one class."""
    if not 0 <= r <= 1:
        raise UsageError(f"persistent(r={r}): a probability is a number from 0 to 1")
    return partial(_persistent, r=r, size=size)


def _lacking(y, n, *key, missing):
    if not 0 <= missing < len(np.unique(y)):
        raise UsageError(f"lacking({missing}): expected 0 to {len(np.unique(y)) - 1} labels")
    rng, labels, parts = stream("lacking", *key), np.unique(y), [[] for _ in range(n)]
    order = np.resize(rng.permutation(labels), n * missing).reshape(n, missing)
    for c in labels:
        there = np.flatnonzero((order != c).all(1))
        rows = rng.permutation(np.flatnonzero(y == c))
        for i, own in zip(there, np.array_split(rows, max(1, len(there))), strict=False):
            parts[i].append(own)
    return fill([np.concatenate([np.zeros(0, int), *p]) for p in parts])


def _kept_back(y, n, *key, partition, share):
    rng, rest = stream("kept back", *key), np.ones(len(y), bool)
    for k in np.unique(y):
        own = rng.permutation(np.flatnonzero(y == k))
        rest[own[: int(share * len(own))]] = False
    rest = np.flatnonzero(rest)
    return [rest[part] for part in partition(y[rest], n, *key)]


def _trimmed(y, n, *key, partition, share):
    parts = partition(y, n, *key)
    return [
        stream("trimmed", i, *key).permutation(p)[int(share * len(p)) :]
        for i, p in enumerate(parts)
    ]


def shuffled(of: Partition) -> Partition:
    """The partition `of`, the samples of each device in random order."""
    return partial(_shuffled, of=of)


def by(contexts, split: Partition) -> Partition:
    """`split` by contexts (N,), integers, instead of labels: with `dirichlet`, households that see
    some contexts more than others, and with them some labels, some looks, and unlike amounts."""
    return partial(_by, contexts=np.asarray(contexts), split=split)


def given(groups) -> Partition:
    """Device i holds group i: groups (N,) are 0 to n - 1 for n devices."""
    return partial(_given, groups=np.asarray(groups))


def redrawn(split: Partition, draw: int = 1) -> Partition:
    """`split`, drawn independently of itself at the same seed."""
    return partial(_redrawn, split=split, draw=draw)


def mixed(common: float, split: Partition) -> Partition:
    """A share `common` of each class is dealt to all devices in equal parts, the rest as in
    `split`: a little of every class everywhere, if there is enough of it."""
    if not 0 <= common <= 1:
        raise UsageError(f"mixed(common={common}): a share is a number from 0 to 1")
    return partial(_mixed, common=common, split=split)


def blocks(sigma: float, s: int = 1) -> Partition:
    """Unlike amounts of few classes: sorted by label and cut in n s blocks, s for each device, as
    large as its log-normal share says; sigma: standard deviation of the shares' logarithm, 0:
    `shards`."""
    if not sigma >= 0 or s < 1:
        raise UsageError(f"blocks(sigma={sigma}, s={s}): sigma must be 0 or more, s at least 1")
    return partial(_blocks, sigma=sigma, s=s)


def places(points, most: float) -> np.ndarray:
    """(N,): the number of the cell in which each of the points (N, 2) lies, on a map that is cut in
    four again and again until no cell holds more than `most` points, unless in one place. Hsu et
    al., ECCV 2020, make devices of places on earth so."""
    points = np.asarray(points, float)
    number, count = np.zeros(len(points), int), 0
    todo = [(np.arange(len(points)), points.min(0), points.max(0))]
    while todo:
        rows, low, high = todo.pop()
        if len(rows) <= most or (points[rows] == points[rows[0]]).all():
            number[rows], count = count, count + 1
            continue
        middle = (low + high) / 2
        upper = points[rows] > middle
        for quarter in ((False, False), (False, True), (True, False), (True, True)):
            part = rows[(upper == quarter).all(1)]
            if len(part):
                bounds = np.where(quarter, middle, low), np.where(quarter, high, middle)
                todo.append((part, *bounds))
    return number


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


def _shuffled(y, n, *key, of):
    return [stream("shuffled", i, *key).permutation(p) for i, p in enumerate(of(y, n, *key))]


def _styled(y, n, *key, style):
    if len(style) != len(y):
        raise UsageError(f"{len(style)} styles for {len(y)} samples; expected one each")
    rng, dealt = stream("styles", *key), [[] for _ in range(n)]
    parts = _iid(y, n, *key)
    for k in np.unique(y):
        own = [part[y[part] == k] for part in parts]
        order = rng.permutation(n)
        rows = np.concatenate([own[i] for i in order])
        rows = rows[np.argsort(style[rows], kind="stable")]
        cuts = np.cumsum([len(own[i]) for i in order])
        for i, some in zip(order, np.split(rows, cuts[:-1]), strict=True):
            dealt[i].append(some)
    by_place = [np.concatenate(d) for d in dealt]
    return [
        b[np.argsort(np.argsort(y[p], kind="stable"))] for b, p in zip(by_place, parts, strict=True)
    ]


def _persistent(y, n, *key, r, size):
    rng, classes = stream("persistent", *key), np.unique(y)
    parts = []
    for part in _iid(y, n, *key) if size is None else [np.arange(len(y))] * n:
        pools = [rng.permutation(part[y[part] == k]) for k in classes]
        left = np.array([len(p) for p in pools])
        k, taken = rng.choice(len(classes), p=left / left.sum()), []
        for _ in range(size or len(part)):
            others = np.flatnonzero((left > 0) & (np.arange(len(classes)) != k))
            if len(others) and (not left[k] or (taken and rng.random() >= r)):
                k = rng.choice(others)
            if size is None:
                left[k] -= 1
            taken.append(pools[k][left[k] if size is None else rng.integers(left[k])])
        parts.append(np.array(taken))
    return parts


def _by(y, n, *key, contexts, split):
    if len(contexts) != len(y):
        raise UsageError(f"{len(contexts)} contexts for {len(y)} samples; expected one each")
    return split(contexts, n, *key)


def _given(y, n, *key, groups):
    if len(groups) != len(y) or not np.array_equal(np.unique(groups), np.arange(n)):
        raise UsageError(
            f"{len(groups)} samples in {len(np.unique(groups))} groups, but the task has {len(y)} "
            f"samples and {n} devices; number the groups from 0 and take as many devices"
        )
    return [np.flatnonzero(groups == i) for i in range(n)]


def _redrawn(y, n, *key, split, draw):
    return split(y, n, *key, "redrawn", draw)


def _mixed(y, n, *key, common, split):
    rng, shared, rest = stream("mixed", *key), [], []
    for k in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == k))
        cut = round(common * len(rows))
        shared.append(rows[:cut])
        rest.append(rows[cut:])
    shared, rest = np.concatenate(shared), np.concatenate(rest)
    parts = split(y[rest], n, *key) if len(rest) else [[]] * n
    order = rng.permutation(n)
    dealt = [shared[order[i] :: n] for i in range(n)]  # sorted by class: equally much of each
    return fill(
        [np.concatenate([a, rest[np.asarray(b, int)]]) for a, b in zip(dealt, parts, strict=True)]
    )


def _blocks(y, n, *key, sigma, s):
    rng = stream("blocks", *key)
    order = rng.permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    owner = rng.permutation(np.repeat(np.arange(n), s))
    share = np.exp(sigma * rng.standard_normal(n))[owner]
    cuts = np.floor(np.cumsum(share[:-1] / share.sum()) * len(y)).astype(int)
    parts = np.split(order, cuts)
    return fill([np.concatenate([parts[b] for b in np.flatnonzero(owner == i)]) for i in range(n)])


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


def label_counts(y, parts: list[np.ndarray], classes: int | None = None) -> np.ndarray:
    """(n, classes): how many samples of each class each device holds. classes: if y may lack the
    last."""
    classes = classes or int(y.max()) + 1
    counts = [np.bincount(y[p], minlength=classes) for p in parts]
    return np.array(counts, int).reshape(-1, classes)


def own_skew(counts: np.ndarray) -> np.ndarray:
    """(n,): ||p_i - p||_1 of each device's label histogram and that of all, from 0 to nearly 2."""
    p, q = counts / counts.sum(1, keepdims=True), counts.sum(0) / counts.sum()
    return np.abs(p - q).sum(1)


def label_skew(counts: np.ndarray) -> float:
    """Mean over samples of `own_skew`, from 0 (IID) to nearly 2: the "earth mover's distance" of
    Zhao et al., arXiv 1806.00582, which is the L1 distance of label histograms."""
    return float((counts.sum(1) / counts.sum()) @ own_skew(counts))
