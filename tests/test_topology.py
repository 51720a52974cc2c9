"""Mixing matrices: stochastic, spectral gaps in closed form, what is heard under loss."""

from math import cos, log2, pi

import networkx as nx
import numpy as np
import pytest
import torch
from conftest import close

from survey_lib.errors import UsageError
from survey_lib.topology import (
    at_round,
    by_receiver,
    complete,
    delivered,
    erdos_renyi,
    exponential,
    gallery,
    heard,
    hypercube,
    links,
    mask,
    metropolis,
    one_peer_exponential,
    one_peer_hypercube,
    perron,
    pushed,
    random_digraphs,
    random_regular,
    relabelled,
    ring,
    spectral_gap,
    star,
    symmetrised,
    torus,
    watts_strogatz,
)

GRAPHS = {
    "ring": ring(9),
    "pair": ring(2),
    "torus": torus(12),
    "complete": complete(7),
    "star": star(8),
    "regular": random_regular(14, 4, seed=3),
    "hypercube": hypercube(8),
    "path": metropolis(nx.path_graph(6)),
    "two parts": metropolis(nx.disjoint_union(nx.cycle_graph(3), nx.path_graph(4))),
    "random": metropolis(nx.gnp_random_graph(15, 0.3, seed=1)),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_mixing_is_symmetric_and_doubly_stochastic(name):
    W = GRAPHS[name]
    n = len(W)
    assert torch.equal(W, W.T)
    assert (W >= 0).all() and (W.diagonal() > 0).all()
    close(W.sum(0), torch.ones(n), atol=1e-6)
    close(W @ torch.ones(n), torch.ones(n), atol=1e-6)


def test_metropolis_by_hand():
    """Path 0 - 1 - 2 - 3: degrees 1, 2, 2, 1, so that every edge has weight 1 / (1 + 2)."""
    third = 1 / 3
    W = [[2 * third, third, 0, 0], [third, third, third, 0], [0, third, third, third]]
    close(metropolis(nx.path_graph(4)), torch.tensor([*W, [0, 0, third, 2 * third]]), atol=1e-7)
    # star of 4: the hub has degree 3, so that every edge has weight 1 / 4
    want = torch.tensor([[1, 1, 1, 1], [1, 3, 0, 0], [1, 0, 3, 0], [1, 0, 0, 3]]) / 4
    close(star(4), want, atol=1e-7)
    close(complete(5), torch.full((5, 5), 0.2), atol=1e-7)
    close(ring(1), torch.ones(1, 1))


@pytest.mark.parametrize(
    ("W", "gap"),
    [(ring(n), 2 / 3 * (1 - cos(2 * pi / n))) for n in (3, 4, 5, 8, 20, 64)]
    + [(torus(k * k), 2 / 5 * (1 - cos(2 * pi / k))) for k in (3, 4, 5, 8)]
    + [(torus(3 * k), 2 / 5 * (1 - cos(2 * pi / k))) for k in (4, 5)]
    + [(hypercube(n), 2 / (1 + log2(n))) for n in (2, 4, 8, 32)]
    + [(star(n), 1 / n) for n in (3, 5, 16)]
    + [(complete(n), 1) for n in (2, 5, 16)],
)
def test_spectral_gap_has_its_closed_form(W, gap):
    assert spectral_gap(W) == pytest.approx(gap, abs=2e-7)


def test_gap_of_a_graph_in_two_parts_is_zero():
    assert spectral_gap(GRAPHS["two parts"]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("n", [16, 25, 36])
def test_the_denser_graph_mixes_faster(n):
    gaps = [spectral_gap(W) for W in (ring(n), torus(n), complete(n))]
    assert gaps == sorted(gaps) and gaps[0] < gaps[1] < gaps[2]


def test_gap_bounds_what_one_mixing_leaves():
    X = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    W = ring(9).double()
    left = (W @ X - X.mean(0)).norm() / (X - X.mean(0)).norm()
    assert left <= 1 - spectral_gap(W) + 1e-7
    slowest = torch.linalg.eigh(W)[1][:, -2:-1]  # the bound is met by the second eigenvector
    assert (W @ slowest).norm() == pytest.approx(1 - spectral_gap(W), abs=1e-7)


def test_random_regular_has_the_degree_and_is_keyed():
    W = random_regular(14, 4, seed=3)
    assert ((W > 0).sum(1) == 5).all()
    assert nx.is_connected(nx.from_numpy_array(W.numpy()))
    assert torch.equal(W, random_regular(14, 4, seed=3))
    assert not torch.equal(W, random_regular(14, 4, seed=4))


@pytest.mark.parametrize(
    ("build", "n"), [(torus, 7), (torus, 8), (torus, 2), (hypercube, 6), (hypercube, 1)]
)
def test_sizes_without_such_a_graph_are_refused(build, n):
    with pytest.raises(UsageError, match=rf"^{build.__name__}\({n}\)"):
        build(n)


def test_no_connected_graph_is_an_error():
    with pytest.raises(UsageError, match="raise the degree"):
        random_regular(10, 1)


@pytest.mark.parametrize("build", [one_peer_exponential, one_peer_hypercube])
@pytest.mark.parametrize("n", [1, 2, 5, 8, 12, 16])
def test_one_partner_a_round(build, n):
    W = build(n)
    assert len(W) == max(1, (n - 1).bit_length())
    for V in W:
        assert torch.equal(V.sum(0), torch.ones(n)) and torch.equal(V.sum(1), torch.ones(n))
        assert ((V != 0).sum(1) <= 2).all()
        if build is one_peer_hypercube:
            assert torch.equal(V, V.T)
    if n & (n - 1) == 0:
        assert torch.equal(torch.linalg.multi_dot([*W, torch.eye(n)]), torch.full((n, n), 1 / n))


def test_a_missing_partner_of_the_cube_is_skipped():
    """5 = 4 + 1 devices: 4 swaps with nobody but 0, in round 2, where 1, 2, 3 have no partner."""
    W = one_peer_hypercube(5)
    alone = torch.tensor([[False] * 4 + [True]] * 2 + [[False, True, True, True, False]])
    assert torch.equal(W.diagonal(dim1=1, dim2=2) == 1, alone)
    assert W[2, 0, 4] == W[2, 4, 0] == W[0, 2, 3] == W[1, 1, 3] == 0.5


def test_relabelled_orders_are_random_and_keep_what_a_schedule_does():
    W = one_peer_exponential(8)
    rotating = relabelled(W, 8, seed=1)
    assert rotating.shape == (24, 8, 8)
    for k in range(0, 24, 3):
        block = rotating[k : k + 3]
        assert torch.equal(torch.linalg.multi_dot([*block]), torch.full((8, 8), 1 / 8))
        assert sorted(map(float, block.flatten())) == sorted(map(float, W.flatten()))
    partners = {tuple(V.fill_diagonal_(0).argmax(1).tolist()) for V in rotating.clone()[::3]}
    assert len(partners) > 4
    assert torch.equal(rotating, relabelled(W, 8, seed=1))
    assert not torch.equal(rotating, relabelled(W, 8, seed=2))


def test_symmetrised_by_hand():
    """0 -> 1 -> 2 -> 1 and 3 alone: links 0 - 1 - 2, degrees 1, 2, 1, 0."""
    A = torch.eye(4)
    A[1, 0] = A[2, 1] = A[1, 2] = 1
    third = 1 / 3
    W = [[2 * third, third, 0, 0], [third, third, third, 0], [0, third, 2 * third, 0], [0, 0, 0, 1]]
    close(symmetrised(A / A.sum(0)), torch.tensor(W), atol=1e-7)


def test_symmetrised_digraphs_use_every_link_both_ways():
    A = random_digraphs(9, out=2, rounds=6)
    W = symmetrised(A)
    assert W.shape == A.shape
    assert torch.equal(W != 0, (A != 0) | (A != 0).mT)
    assert torch.equal(W, W.mT) and (W.diagonal(dim1=1, dim2=2) > 0).all()
    close(W.sum(1), torch.ones(6, 9), atol=1e-6)
    close(symmetrised(ring(5)), ring(5), atol=1e-7)


def test_by_receiver_weighs_what_is_heard_alike():
    A = random_digraphs(9, out=2, rounds=6)
    W = by_receiver(A)
    assert torch.equal(W != 0, A != 0)
    close(W.sum(2), torch.ones(6, 9), atol=1e-6)
    assert all((row[row > 0] == row.max()).all() for V in W for row in V)
    assert (W.sum(1) - 1).abs().max() > 0.1
    assert torch.equal(by_receiver(A[0]), W[0])


@pytest.mark.parametrize("name", GRAPHS)
def test_heard_equals_W_when_all_arrive(name):
    W = GRAPHS[name]
    n = len(W)
    close(heard(W, torch.ones(n, n, dtype=torch.bool)), W, atol=1e-6)
    close(heard(W, torch.zeros(n, n, dtype=torch.bool)), torch.eye(n))


def test_heard_keeps_row_sums_and_moves_lost_weight_to_oneself():
    W = random_regular(14, 4, seed=3).double()
    arrived = torch.rand(14, 14, generator=torch.Generator().manual_seed(1)) < 0.5
    M = heard(W, arrived)
    close(M.sum(1), torch.ones(14, dtype=torch.float64))
    off = ~torch.eye(14, dtype=torch.bool)
    assert torch.equal(M[off], torch.where(arrived, W, 0.0)[off])
    assert (M >= -1e-15).all()


def test_heard_by_hand():
    """Ring of 3, weights 1/3; device 0 misses 1, device 2 both: columns no longer sum to 1."""
    arrived = torch.tensor([[False, False, True], [True, False, True], [False, False, False]])
    want = torch.tensor([[2, 0, 1], [1, 1, 1], [0, 0, 3]]) / 3
    close(heard(ring(3), arrived), want, atol=1e-7)


def test_gap_of_mixings_that_change():
    for W in (ring(8), torus(16), complete(5)):
        rho = float(torch.linalg.matrix_norm(W.double() - 1 / len(W), 2))
        assert spectral_gap(W) == pytest.approx(1 - rho, abs=1e-6)
        same = W.repeat(4, 1, 1)  # a symmetric W: ||W^T - J|| = rho^T
        assert spectral_gap(same) == pytest.approx(spectral_gap(W), abs=1e-4)
    assert spectral_gap(one_peer_exponential(16)) == pytest.approx(1, abs=1e-3)
    half = one_peer_exponential(12)  # not a power of two: the product keeps about 0.21
    assert (1 - spectral_gap(half)) ** len(half) == pytest.approx(0.21, abs=0.02)
    assert 0.05 < spectral_gap(random_digraphs(16)) < 0.9


@pytest.mark.parametrize("n", [16, 64])
def test_the_gallery_is_doubly_stochastic(n):
    for name, W in gallery(n).items():
        ones = torch.ones(W.shape[:-1])
        close(W.sum(-1), ones, atol=1e-5)
        close(W.sum(-2), ones, atol=1e-5)
        assert 0 < spectral_gap(W) <= 1 + 1e-6, name


@pytest.mark.parametrize(("n", "expected"), [(16, 0.4), (32, 1 / 3), (64, 2 / 7)])
def test_exponential_graphs(n, expected):
    """2 / (1 + log2 n), and a period of one-peer rounds is the exact mean."""
    W, rounds = exponential(n), one_peer_exponential(n).double()
    assert spectral_gap(W) == pytest.approx(expected, abs=1e-6)
    assert not torch.equal(W, W.T)
    product = torch.linalg.multi_dot(list(rounds))
    assert torch.equal(product, torch.full((n, n), 1 / n, dtype=torch.float64))
    assert ((rounds != 0).sum(2) == 2).all() and ((rounds != 0).sum(1) == 2).all()


def test_random_digraphs_push_all_mass_and_reach_everybody():
    A = random_digraphs(12, out=1, rounds=16, B=4, seed=3)
    assert A.shape == (16, 12, 12) and len({a.numpy().tobytes() for a in A}) == 16
    close(A.sum(1), torch.ones(16, 12), atol=1e-6)
    assert ((A != 0).sum(1) == 2).all() and (A.diagonal(dim1=1, dim2=2) == 0.5).all()
    for group in A.split(4):
        assert nx.is_strongly_connected(
            nx.from_numpy_array(group.sum(0).T.numpy(), create_using=nx.DiGraph)
        )
    with pytest.raises(UsageError, match="choose 1 to 11"):
        random_digraphs(12, out=12)


def test_random_graphs_are_connected_and_seeded():
    for draw in (erdos_renyi, watts_strogatz):
        assert torch.equal(draw(16, seed=1), draw(16, seed=1))
        assert not torch.equal(draw(16, seed=1), draw(16, seed=2))
        assert spectral_gap(draw(32)) > 0.01
    assert abs(float((watts_strogatz(64) != 0).sum()) - 64 * 5) == 0  # k = 4 and itself


def test_pushed_keeps_the_mass_where_a_message_is_lost():
    A, arrived = random_digraphs(6, rounds=4)[0], torch.ones(6, 6, dtype=torch.bool)
    arrived[2, 1] = arrived[4, 3] = False
    found = pushed(A, arrived)
    close(found.sum(0), torch.ones(6), atol=1e-6)
    assert found[2, 1] == found[4, 3] == 0
    close(found[1, 1], A[1, 1] + A[2, 1], atol=1e-6)
    close(pushed(A, torch.ones(6, 6, dtype=torch.bool)), A, atol=1e-6)


def test_at_round_comes_round_again():
    W = one_peer_exponential(8)
    assert torch.equal(at_round(W, 4), W[1]) and torch.equal(at_round(W[0], 7), W[0])


def test_perron_weights():
    """v = v W; for equal weights on an undirected graph v is proportional to 1 + degree."""
    W = by_receiver(star(8))
    v = perron(W)
    torch.testing.assert_close(v @ W, v)
    torch.testing.assert_close(v, torch.tensor([8.0] + 7 * [2.0]) / 22)
    torch.testing.assert_close(perron(star(8)), torch.full((8,), 1 / 8))
    cycle = torch.eye(3).roll(1, 0)  # periodic: its powers never settle
    torch.testing.assert_close(perron(cycle), torch.full((3,), 1 / 3))
    A = random_digraphs(6).sum(0).T.double()
    A = A / A.sum(1, keepdim=True)
    settled = torch.linalg.matrix_power(A, 200)
    torch.testing.assert_close(perron(A).expand(6, -1), settled)


# ---- sparse --------------------------------------------------------------------------------------

BUILDERS = {
    "ring": (ring, {}),
    "torus": (torus, {}),
    "hypercube": (hypercube, {}),
    "random regular": (random_regular, dict(seed=2)),
    "Erdős-Rényi": (erdos_renyi, dict(seed=2)),
    "small world": (watts_strogatz, dict(seed=2)),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_sparse_is_dense_with_its_zeros_left_out(name):
    build, how = BUILDERS[name]
    dense, W = build(16, **how), build(16, sparse=True, **how)
    assert W.is_sparse and W._nnz() < 16**2 and not dense.is_sparse
    assert torch.equal(W.to_dense(), dense)
    i, j = links(W)
    assert set(zip(i, j, strict=True)) == set(zip(*links(dense), strict=True))
    assert len(i) == int((dense != 0).sum() - (dense.diagonal() != 0).sum()) and (i != j).all()
    lost = np.arange(len(i)) % 3 == 0  # every third message
    arrived = [mask(V, i[~lost], j[~lost]) for V in (dense, W)]
    assert torch.equal(arrived[1].to_dense(), arrived[0]) and arrived[0].sum() == (~lost).sum()
    for rule in (heard, pushed, delivered):
        close(rule(W, arrived[1]).to_dense(), rule(dense, arrived[0]), 1e-7)
    assert spectral_gap(W) == pytest.approx(spectral_gap(dense))


def test_what_was_delivered():
    """A row keeps its own weight and those of whom it heard: 1/3 + 1/3 where one of two is lost."""
    W = ring(4)
    arrived = mask(W, np.array([0, 1, 1]), np.array([1, 0, 2]))
    want = torch.eye(4) / 3
    want[0, 1] = want[1, 0] = want[1, 2] = 1 / 3
    close(delivered(W, arrived), want, 1e-7)
