"""How unlike the data of the devices are, factor by factor, and two skews that only time shows.

The joint law of device i is P_i(x, y) = P_i(y) P_i(x | y) = P_i(x) P_i(y | x). Kairouz et al.,
Foundations and Trends in Machine Learning 14(1-2), 2021, section 3.1, name the ways in which it
differs between devices; a statistic here belongs to one factor. counts (n, classes): samples of
each class at each device, see partition.label_counts.
"""

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata

from survey_lib.churn import Churn
from survey_lib.partition import label_skew
from survey_lib.streams import stream

FACTORS = {  # of noniid_statistics: what each stands for
    "labels": "P_i(y): mean L1 distance of a device's label histogram from the whole",
    "features": "P_i(x|y): share of the features' variance within a class that is between devices",
    "concept": "P_i(y|x): how much more alike near samples of one device are named than of two",
    "amounts": "n_i: Gini coefficient",
    "order": "dependence: correlation of a device's label with its next one",
    "test": "train against test: AUC of telling them apart",
}


# ---- labels ------------------------------------------------------------------------------------


def entropy(counts: np.ndarray) -> np.ndarray:
    """(...): -sum_k p_k ln p_k of counts (..., classes), in nats."""
    p = counts / counts.sum(-1, keepdims=True)
    return -(p * np.log(np.where(p > 0, p, 1))).sum(-1)


def label_entropy(counts: np.ndarray) -> float:
    """Mean over samples of their device's label entropy H(q_i), in nats: 0 if each device has one
    class."""
    return float(counts.sum(1) @ entropy(counts) / counts.sum())


def label_information(counts: np.ndarray) -> float:
    """I(device; label) = H(p) - sum_i p_i H(q_i) in nats, the Jensen-Shannon divergence of the
    devices' label histograms: 0 if all are alike, H(p) if each device has one class."""
    return float(entropy(counts.sum(0)) - label_entropy(counts))


# ---- amounts -----------------------------------------------------------------------------------


def gini(sizes) -> float:
    """Gini coefficient, half the relative mean difference: 0 if equal, 1 - 1/n if one has all."""
    v, n = np.sort(np.asarray(sizes, float)), len(sizes)
    return float((2 * np.arange(1, n + 1) - n - 1) @ v / (n * v.sum()))


def effective_devices(sizes) -> float:
    """1 / sum_i p_i^2: how many devices of equal size would weigh as evenly."""
    p = np.asarray(sizes) / np.sum(sizes)
    return float(1 / (p @ p))


# ---- features, names, order, test --------------------------------------------------------------


def principal(x: np.ndarray, m: int = 10) -> np.ndarray:
    """(N, m): scores of x (N, d) on its m first principal components."""
    x = x - x.mean(0)
    return x @ np.linalg.eigh(x.T @ x)[1][:, ::-1][:, :m]


def between_devices(f: np.ndarray, y: np.ndarray, device: np.ndarray) -> float:
    """tr(S_B) / tr(S_T) of features f (N, m): the share of their variance within a class that lies
    between the means of devices, by unbiased variances (adjusted R^2): 0 on average if they see
    alike, however many of them hold the class, and 1 if each sees one image of it."""
    classes = np.unique(y, return_inverse=True)[1]
    both = np.unique(classes * (device.max() + 1) + device, return_inverse=True)[1]
    within, total = (
        ((f - _means(f, group)) ** 2).sum() / (len(f) - 1 - group.max())
        for group in (both, classes)
    )
    return float(1 - within / total)


def _means(f, group):
    """(N, m): the mean of f over each row's group."""
    size = np.maximum(1, np.bincount(group))
    sums = [np.bincount(group, column) for column in f.T]
    return (np.stack(sums, 1) / size[:, None])[group]


def nearest(f: np.ndarray, k: int) -> np.ndarray:
    """(N, k): the k other rows that are nearest to each row of f."""
    square = (f**2).sum(1)
    D = square - 2 * f @ f.T  # squared distances, but for what is the same along a row
    np.fill_diagonal(D, np.inf)
    return np.argpartition(D, k - 1, 1)[:, :k]


def own_names(near: np.ndarray, y: np.ndarray, device: np.ndarray) -> float:
    """How much more often a sample has the label of one of its nearest others near (N, k) if this
    one is at the same device than if it is at another: 0 if P(y | x) is the same everywhere."""
    alike, own = y[near] == y[:, None], device[near] == device[:, None]
    return float(alike[own].mean() - alike[~own].mean()) if 0 < own.mean() < 1 else 0.0


def persistence(y: np.ndarray, device: np.ndarray) -> float:
    """Correlation of a label (one-hot, less the device's mean) with the device's next one; samples
    are sorted by device and come in this order."""
    z = (y[:, None] == np.unique(y)).astype(float)
    z -= _means(z, device)
    same = device[1:] == device[:-1]
    return float((z[1:] * z[:-1])[same].sum() / max((z[1:] ** 2)[same].sum(), 1e-300))


def auc(score: np.ndarray, there: np.ndarray) -> float:
    """Probability that a sample that is `there` scores higher than one that is not; ties half."""
    P, N = there.sum(), (~there).sum()
    return float((rankdata(score)[there].sum() - P * (P + 1) / 2) / (P * N))


def told_apart(near: np.ndarray, test: np.ndarray) -> float:
    """AUC of the share of test samples among a sample's nearest others `near` (N, k): 1/2 if train
    and test cannot be told apart."""
    return auc(test[near].mean(1), test)


def noniid_statistics(task, world, *, redraws=20, keep=0.9, seed=0):
    """The statistics of FACTORS, and by how many standard deviations each exceeds what it is if the
    same samples are dealt to devices at random. Kairouz et al., section 3.1; nothing is trained.

    If the task has unseen devices, theirs are the test samples. Each device shows a random share
    `keep` of its samples, so that equal amounts vary too. A re-draw permutes the samples shown over
    the devices, of sizes as they are; for the amounts it takes the share `keep` of equal sizes; for
    the test it permutes who is test. So the floor of a finite sample is taken off. Features: the
    first 10 principal components; neighbours are near in them.
    Yields the initial model with: each factor, and "z " + factor.
    """
    rng = stream(seed, "shown")
    rows = [task.rows(i) for i in range(task.n)]
    draws = [rng.random(len(own)) for own in rows]
    shown = [own[(u < keep) | (u == u.min())] for own, u in zip(rows, draws, strict=True)]
    device = np.repeat(np.arange(task.n), [len(own) for own in shown])
    tests = getattr(task, "tests", [np.arange(len(task.y_test))])
    row, test = np.concatenate(shown), np.concatenate(tests[task.n :] or tests)
    y, N = task.y[row].numpy(), len(row)
    f = principal(torch.cat([task.x[row], task.x_test[test]]).flatten(1).double().numpy())
    is_test = np.arange(len(f)) >= N
    beside, near = nearest(f, 10), nearest(f[:N], 10)

    def measure(order, sizes, is_test):
        who = np.empty(N, int)
        who[order] = device  # of each sample
        counts = np.bincount(who * task.classes + y, minlength=task.n * task.classes)
        return dict(
            labels=label_skew(counts.reshape(task.n, -1)),
            features=between_devices(f[:N], y, who),
            concept=own_names(near, y, who),
            amounts=gini(sizes),
            order=persistence(y[order], device),
            test=told_apart(beside, is_test),
        )

    found = measure(np.arange(N), [len(own) for own in shown], is_test)
    equal = np.full(task.n, len(task.order) // task.n)
    again = pd.DataFrame(
        measure(rng.permutation(N), rng.binomial(equal, keep), rng.permutation(is_test))
        for _ in range(redraws)
    )
    z = (pd.Series(found) - again.mean()) / again.std()
    yield task.init(), found | {f"z {k}": float(v) for k, v in z.items()}


# ---- phenomena of time and of new devices ------------------------------------------------------


def availability(phase, *, period, a0=0.5, a1=0.5, slot, start=0.0, until, seed=0) -> pd.DataFrame:
    """When each device is off, as a trace for World(churn=...): in each slot of so many seconds
    from `start` on device i is on with probability a_i = a0 + a1 s(t / period + phase_i), s = 1 in
    the first half of a cycle and -1 in the second, t the middle of the slot since `start`. phase
    (n,): in cycles. a1 = 0: independent draws. Over whole cycles a device is on for a share a0,
    whatever a1 is."""
    begin = np.arange(start, until, slot)
    cycle = ((begin - start + slot / 2) / period + np.asarray(phase)[:, None]) % 1
    wave = np.where(cycle < 0.5, 1, -1)
    off = stream(seed, "availability").random(wave.shape) >= a0 + a1 * wave
    device, k = np.nonzero(off)
    return pd.DataFrame(dict(device=device, start=begin[k], end=begin[k] + slot))


def dependence(task, world, *, of, cycle, a0=0.5, a1=0.5, cycles=100, seed=0, **arguments):
    """The method `of` where who is online depends on the labels, in a cycle as of day and night.
    Kairouz et al., section 3.1: independence is violated.

    Devices most of whose samples are of the lower half of the classes are on in the first half of
    a cycle of so many seconds, the others in the second: `availability` with phases 0 and 1/2 and a
    slot for each half, the first of which begins a twentieth of a cycle early, so that none ends
    where a tenth does; the world's own churn is replaced. a1 = 0: the same devices, on as often,
    but at any time. cycles: how many there are; after them all are on.
    """
    labels = np.array([task.y[task.rows(i)].double().mean().item() for i in range(task.n)])
    phase = np.where(labels < (task.classes - 1) / 2, 0.0, 0.5)
    how = dict(period=cycle, slot=cycle / 2, start=-cycle / 20, until=cycles * cycle)
    world.off = Churn(availability(phase, **how, a0=a0, a1=a1, seed=seed), seed)
    yield from of(task, world, **arguments, seed=seed)


def amplitude(history: pd.DataFrame, period: int, cycles: int, column: str = "accuracy") -> float:
    """Amplitude of the Fourier component at `period` rounds of a column over the last so many
    cycles of a run that is evaluated in every round: a sin(2 pi r / period) gives a."""
    v = history[column].to_numpy()[-period * cycles :]
    return float(2 * abs(np.fft.rfft(v)[cycles]) / len(v))


def reweighed(z: torch.Tensor, old, new) -> torch.Tensor:
    """Logits z (..., C), learned where the classes have probabilities `old` (C,), for where they
    have `new` but look as before: P(k | x) new_k / old_k, normalised (Bayes' rule)."""
    return z + torch.as_tensor(np.log(new) - np.log(old), dtype=z.dtype)


def train_test_shift(task, world, *, of, seed=0, **arguments):
    """The method `of`, tested at devices that train and at devices that do not: the difference is
    the participation gap. Kairouz et al., section 3.1: the data set shifts.

    A task such as problems.OnDevices(unseen=...), whose `accuracy` is of new samples of the devices
    that train and `unseen` of the others. Besides the model of `of`: corrected, the accuracy of the
    unseen devices if each has its logits `reweighed` for its own labels, as often as it holds them
    and once more.
    """
    held = task.held + 1.0
    old, own = held[: task.n].sum(0), held[task.n :]
    old, own = old / old.sum(), own / own.sum(1, keepdims=True)
    for x in of(task, world, **arguments, seed=seed):
        right = []
        for rows, new in zip(task.tests[task.n :], own, strict=True):
            z = reweighed(task.logits(x, task.x_test[rows]), old, new)
            right.append((z.argmax(1) == task.y_test[rows]).double().mean().item())
        yield x, dict(corrected=float(np.mean(right)))
