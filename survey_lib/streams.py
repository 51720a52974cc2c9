"""Random numbers keyed by what they are for: no draw depends on the order of other draws."""

import hashlib

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # the odd number nearest 2^64 / golden ratio


def stream(*key) -> np.random.Generator:
    """The generator that belongs to `key`, for example `stream(seed, "batch", r, i)`.

    Equal keys give equal numbers on every machine; unlike keys are independent. Nested tuples
    are allowed and stand for themselves: `stream((0, 3), "batch")`.
    """
    digest = hashlib.blake2b(repr(_plain(key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def _plain(key):
    """`key` with NumPy scalars as plain Python values, whose repr does not depend on versions."""
    if isinstance(key, tuple | list):
        return tuple(_plain(k) for k in key)
    return key.item() if isinstance(key, np.generic) else key


def salt(*key) -> np.uint64:
    """What stands for `key` in `words`."""
    digest = hashlib.blake2b(repr(_plain(key)).encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def words(ids: np.ndarray, salts: np.uint64 | np.ndarray) -> np.ndarray:
    """One random uint64 per id, which depends on its salt and that id only: many keyed draws at
    once. salts: from `salt`, or other words; one, or one per id.

    The mixing function is SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
    """
    z = np.asarray(ids).astype(np.uint64) * GOLDEN + salts
    return _mix(_mix(z))  # twice: ids are consecutive


def _mix(z):
    """z, in place."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z ^= z >> np.uint64(shift)
        z *= np.uint64(factor)
    z ^= z >> np.uint64(31)
    return z


def uniform(ids: np.ndarray, *key) -> np.ndarray:
    """One uniform number in (0, 1) per id, which depends on the key and that id only."""
    z = words(ids, salt(*key))
    return ((z >> np.uint64(12)).astype(float) + 0.5) * 2.0**-52  # one bit more would round up to 1


def permutations(words: np.ndarray, sizes: np.ndarray, first: int) -> np.ndarray:
    """(m, first): row j begins with the first numbers of a random permutation of 0 .. sizes[j] - 1,
    which depends on words[j] and sizes[j] only; what follows them is -1.

    words (m,): from `words`. The permutation sorts the numbers SplitMix64 draws from words[j].
    """
    out = np.full((len(sizes), first), -1)
    number, octave = np.uint64(2**32 - 1), np.frexp(sizes)[1]
    for some in np.unique(octave):  # sizes within a factor of two: little padding
        rows = np.flatnonzero(octave == some)
        n = sizes[rows, None]
        position = np.arange(n.max(), dtype=np.uint64)
        z = _mix(words[rows, None] + (position + np.uint64(1)) * GOLDEN)
        z = z & ~number | position  # 32 random bits, and who drew them
        z[position >= n] = 2**64 - 1
        width = min(first, z.shape[1])
        if width < z.shape[1]:
            z.partition(width - 1)
        found = np.sort(z[:, :width]) & number
        out[rows, :width] = np.where(position[:width] < n, found.astype(int), -1)
    return out


def attempts(u, p):
    """(m,) how many sendings until one arrives, each lost with probability p, from uniform numbers
    u: geometric, at most 100."""
    with np.errstate(divide="ignore"):
        p = np.clip(p, 1e-300, 1 - 1e-16)
        return np.minimum(1 + np.floor(np.log(u) / np.log(p)), 100).astype(int)
