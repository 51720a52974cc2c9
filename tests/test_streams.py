"""Keyed random numbers: equal keys agree, unlike keys are independent, and so are all draws."""

import hashlib
import itertools

import numpy as np
import pytest

from survey_lib.streams import attempts, permutations, salt, stream, uniform, words

KEYS = [(), (0,), (1,), (0, 0), (0, "batch"), ("batch", 0), (0, "batch", 1), ("0",), (0.0,), (-1,)]


def test_equal_keys_give_equal_numbers():
    for key in KEYS:
        np.testing.assert_array_equal(stream(*key).random(50), stream(*key).random(50))
        np.testing.assert_array_equal(uniform(np.arange(9), *key), uniform(np.arange(9), *key))


def test_unlike_keys_give_unlike_numbers():
    for draw in (lambda key: stream(*key).random(4), lambda key: uniform(np.arange(4), *key)):
        seen = {tuple(draw(key)) for key in KEYS}
        assert len(seen) == len(KEYS)


def test_numpy_scalars_tuples_and_lists_stand_for_their_values():
    want = stream((3, 7), "batch", 2).random(4)
    np.testing.assert_array_equal(stream((np.int64(3), 7), "batch", np.int32(2)).random(4), want)
    np.testing.assert_array_equal(stream([3, 7], np.str_("batch"), 2).random(4), want)
    assert not (stream(3, 7, "batch", 2).random(4) == want).any()  # nesting is part of the key


def test_numbers_are_the_same_on_every_machine():
    """Pinned: a machine or NumPy version that differs would change every result."""
    integers = [499, 218, 724, 336, 119, 761]
    uniforms = [0.8912399361111675, 0.10209478472345535, 0.5156075683805786]
    np.testing.assert_array_equal(stream(0, "batch", 1).integers(1000, size=6), integers)
    np.testing.assert_allclose(uniform(np.arange(3), 0, "speed"), uniforms, rtol=0, atol=1e-15)


def test_streams_leave_the_global_generator_alone():
    np.random.seed(5)  # noqa: NPY002
    want = np.random.random(3)  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    stream("a").random(10)
    uniform(np.arange(10), "a")
    np.testing.assert_array_equal(np.random.random(3), want)  # noqa: NPY002


def test_neighbouring_streams_are_uncorrelated():
    X = np.stack([stream(0, "batch", r, i).random(400) for r in range(8) for i in range(8)])
    off = np.corrcoef(X)[np.triu_indices(64, 1)]
    assert np.abs(off).max() < 5 / np.sqrt(400)
    assert off.std() == pytest.approx(1 / np.sqrt(400), rel=0.1)


def test_uniform_is_uniform():
    m = 400_000
    u = uniform(np.arange(m), 3, "down", 17)
    assert 0 < u.min() and u.max() < 1
    sd = np.sqrt(1 / 12)  # of a uniform number; the fourth central moment is 1 / 80
    assert u.mean() == pytest.approx(1 / 2, abs=4 * sd / np.sqrt(m))
    assert u.var() == pytest.approx(1 / 12, abs=4 * np.sqrt((1 / 80 - 1 / 144) / m))
    counts = np.bincount((u * 256).astype(int), minlength=256)
    chi2 = ((counts - m / 256) ** 2 / (m / 256)).sum()
    assert abs(chi2 - 255) < 4 * np.sqrt(2 * 255)
    low_bits = np.bincount((u * 2**40).astype(np.int64) % 16, minlength=16)
    assert ((low_bits - m / 16) ** 2 / (m / 16)).sum() < 15 + 5 * np.sqrt(30)


@pytest.mark.parametrize("lag", [1, 2, 3, 20, 1000])
def test_uniform_of_neighbouring_ids_is_uncorrelated(lag):
    u = uniform(np.arange(200_000), 0, "jitter", 1)
    assert abs(np.corrcoef(u[:-lag], u[lag:])[0, 1]) < 4 / np.sqrt(len(u))


def test_uniform_of_neighbouring_keys_is_uncorrelated():
    U = np.stack([uniform(np.arange(20_000), 0, "down", r) for r in range(12)])
    off = np.corrcoef(U)[np.triu_indices(12, 1)]
    assert np.abs(off).max() < 4.5 / np.sqrt(20_000)


def test_uniform_depends_on_its_own_id_only():
    whole = uniform(np.arange(1000), 4)
    some = stream("which").permutation(1000)[:100]
    np.testing.assert_array_equal(uniform(some, 4), whole[some])
    np.testing.assert_array_equal(uniform(some.astype(np.int32), 4), whole[some])
    assert uniform(np.array([10**12]), 4)[0] != uniform(np.array([10**12 + 1]), 4)[0]


def unshifted(w, s):
    """The v with w = v ^ (v >> s), for s of a third of the word or less: three rounds suffice."""
    v = w
    for _ in range(64 // s):
        v = w ^ (v >> s)
    return v


def id_of(word, salt):
    """The id whose 64-bit word under the two rounds of SplitMix64 is `word`: each step undone."""
    z, modulus = word, 2**64
    for add in (0, salt):
        z = unshifted(z, 31) * pow(0x94D049BB133111EB, -1, modulus) % modulus
        z = unshifted(z, 27) * pow(0xBF58476D1CE4E5B9, -1, modulus) % modulus
        z = (unshifted(z, 30) - add) % modulus
    return z * pow(0x9E3779B97F4A7C15, -1, modulus) % modulus


@pytest.mark.parametrize("word", [2**64 - 1, 2**64 - 2**11, 2**63, 2**11, 0])
def test_uniform_stays_inside_the_unit_interval_at_the_extremes(word):
    """The mixing is a bijection of words; run backwards it finds the id whose word is extreme."""
    salt = int.from_bytes(hashlib.blake2b(b"('edge',)", digest_size=8).digest(), "little")
    (u,) = uniform(np.array([id_of(word, salt)], np.uint64), "edge")
    assert u == pytest.approx(word / 2**64, abs=1e-15)
    assert 0 < u < 1


# ---- permutations ------------------------------------------------------------------------------


def test_words_depend_on_their_own_id_and_salt_only():
    ids, salts = np.array([5, 0, 7, 5]), np.array([salt(k) for k in "abca"])
    whole = words(ids, salts)
    assert whole.dtype == np.uint64 and len(set(whole)) == 3 and whole[0] == whole[3]
    for i, s, word in zip(ids, salts, whole, strict=True):
        assert words(np.array([i]), s)[0] == word
    np.testing.assert_array_equal(words(ids, salt("a")), words(ids, np.full(4, salt("a"))))
    assert list(ids) == [5, 0, 7, 5] and list(salts) == [salt(k) for k in "abca"]


SIZES = np.array([1, 2, 3, 0, 4, 64, 65, 100, 7, 0, 1000])


@pytest.mark.parametrize("first", [0, 1, 5, 64, 1000, 1200])
def test_permutations_begin_with_different_numbers_below_their_size(first):
    out = permutations(words(np.arange(len(SIZES)), salt("p")), SIZES, first)
    assert out.shape == (len(SIZES), first) and out.dtype == int
    for row, n in zip(out, SIZES, strict=True):
        k = min(n, first)
        assert len(set(row[:k])) == k and (row[:k] < n).all() and (row[:k] >= 0).all()
        assert (row[k:] == -1).all()


def test_permutations_depend_on_their_own_word_and_size_only():
    key = words(np.arange(len(SIZES)), salt("p"))
    whole = permutations(key, SIZES, 1000)
    for first in (1, 3, 70):
        np.testing.assert_array_equal(permutations(key, SIZES, first), whole[:, :first])
    for some in ([4], [10, 0, 6], [3], [9, 3]):
        found = permutations(key[some], SIZES[some], 1000)
        np.testing.assert_array_equal(found, whole[some])
    assert permutations(key[:0], SIZES[:0], 3).shape == (0, 3)


def test_permutations_are_the_same_on_every_machine():
    found = permutations(words(np.arange(2), salt(0, "batch")), np.array([6, 9]), 9)
    np.testing.assert_array_equal(
        found, [[0, 1, 2, 3, 5, 4, -1, -1, -1], [6, 0, 5, 7, 3, 8, 1, 4, 2]]
    )


def chi2(counts):
    """Of counts that should be equal, in standard deviations from its mean."""
    expected = counts.sum() / counts.size
    df = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - df) / np.sqrt(2 * df)


@pytest.mark.parametrize("by", ["id", "salt"])
@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_permutations_are_uniform(n, by):
    """All n! of them, over the ids of one salt, and over the salts of one id."""
    m = 60_000
    salts = np.array([salt(k) for k in range(m)]) if by == "salt" else salt("u")
    key = words(np.zeros(m, int) if by == "salt" else np.arange(m), salts)
    found = permutations(key, np.full(m, n), n)
    number = found @ n ** np.arange(n)
    every = [sum(v * n**k for k, v in enumerate(p)) for p in itertools.permutations(range(n))]
    counts = np.array([(number == v).sum() for v in every])
    assert counts.sum() == m and abs(chi2(counts)) < 4


def test_long_permutations_have_every_number_everywhere_alike():
    """Number by place; and, as the digits of a batch, which pairs come first."""
    m, n = 40_000, 23
    found = permutations(words(np.arange(m), salt("long")), np.full(m, n), n)
    places = np.stack([np.bincount(found[:, k], minlength=n) for k in range(n)])
    assert abs(chi2(places)) < 5
    pairs = np.bincount(found[:, 0] * n + found[:, 1], minlength=n * n).reshape(n, n)
    assert abs(chi2(pairs[~np.eye(n, dtype=bool)])) < 4


def test_permutations_of_neighbours_and_of_epochs_are_uncorrelated():
    device = words(np.arange(40), salt(0, "batch"))
    rows = [permutations(words(np.full(40, e), device), np.full(40, 500), 500) for e in range(3)]
    off = np.corrcoef(np.concatenate(rows))[np.triu_indices(120, 1)]
    assert np.abs(off).max() < 5 / np.sqrt(500)
    assert off.std() == pytest.approx(1 / np.sqrt(500), rel=0.1)


def test_attempts_by_hand():
    """j or more sendings where u < p^(j - 1); at most 100."""
    for p in (0.5, 0.1):
        for j in (1, 2, 3, 7):
            inside = np.array([p**j * (1 + 1e-9), p ** (j - 1) * (1 - 1e-9)])
            assert list(attempts(inside, p)) == [j, j]
    u = np.array([0.9, 0.4, 0.2])
    assert list(attempts(u, np.array([0.0, 0.5, 0.5]))) == [1, 2, 3]  # a probability each
    assert list(attempts(u, 0.0)) == [1, 1, 1] and list(attempts(u, 1.0)) == [100, 100, 100]
    assert attempts(u, 0.5).dtype.kind == "i"


@pytest.mark.parametrize("p", [0.05, 0.6])
def test_attempts_are_geometric(p):
    m = 100_000
    tries = attempts(uniform(np.arange(m), "tries"), p)
    assert tries.mean() == pytest.approx(1 / (1 - p), abs=4 * np.sqrt(p / m) / (1 - p))
    for j in (2, 3):
        assert (tries >= j).mean() == pytest.approx(p ** (j - 1), abs=2 / np.sqrt(m))
