"""Graphs (networkx), mixing matrices and their spectral gap.

A mixing matrix is dense, or sparse (torch, COO), which for a few links each costs less from some
hundred devices on: `ring(4096, sparse=True)`. `W @ X`, `heard`, `pushed`, `delivered`, `at_round`
and `World.exchange` take either.
"""

from math import log

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from survey_lib.errors import UsageError
from survey_lib.streams import stream


def metropolis(graph: nx.Graph, sparse: bool = False) -> Tensor:
    """(n, n) Metropolis-Hastings weights: W[i, j] = 1 / (1 + max(deg_i, deg_j)) on edges, the rest
    on the diagonal. Symmetric and doubly stochastic on every graph."""
    n, graph = len(graph), nx.convert_node_labels_to_integers(graph)
    i, j = torch.tensor(list(graph.edges), dtype=torch.long).reshape(-1, 2).T
    i, j = torch.cat([i, j]), torch.cat([j, i])
    degree = torch.bincount(i, minlength=n)
    return _filled(i, j, 1 / (1 + torch.maximum(degree[i], degree[j]).double()), n, sparse).float()


def _filled(i, j, weight, n, sparse=True):
    """(n, n): the weights (m,) at (i, j), and on the diagonal what each row lacks to 1."""
    away, diagonal = i != j, torch.arange(n)
    i, j, weight = i[away], j[away], weight[away]
    own = 1 - torch.zeros(n, dtype=weight.dtype).index_add_(0, i, weight)
    i, j = torch.cat([i, diagonal]), torch.cat([j, diagonal])
    W = _sparse(i, j, torch.cat([weight, own]), n).coalesce()
    return W if sparse else W.to_dense()


def _sparse(i, j, values, n):
    return torch.sparse_coo_tensor(torch.stack([i, j]), values, (n, n), check_invariants=False)


def ring(n: int, sparse: bool = False) -> Tensor:
    """Cycle of n devices; gap 2/3 (1 - cos(2 pi / n))."""
    return metropolis(nx.cycle_graph(n) if n > 2 else nx.path_graph(n), sparse)


def torus(n: int, sparse: bool = False) -> Tensor:
    """k x n/k grid with wrap-around, as square as n allows; gap 2/5 (1 - cos(2 pi / longer))."""
    k = max(k for k in range(1, int(n**0.5) + 1) if n % k == 0)
    if k < 3:
        raise UsageError(
            f"torus({n}): no grid with both sides 3 or more; use 9, 12, 16, ... devices"
        )
    return metropolis(nx.grid_2d_graph(k, n // k, periodic=True), sparse)


def complete(n: int) -> Tensor:
    """Everybody with everybody: W = J."""
    return metropolis(nx.complete_graph(n))


def star(n: int) -> Tensor:
    """One hub; gap 1 / n."""
    return metropolis(nx.star_graph(n - 1))


def random_regular(n: int, degree: int = 4, seed: int = 0, sparse: bool = False) -> Tensor:
    """A random connected graph in which every device has `degree` neighbours."""
    return _connected(lambda s: nx.random_regular_graph(degree, n, seed=s), seed, sparse)


def hypercube(n: int, sparse: bool = False) -> Tensor:
    """n = 2^k devices, neighbours differ in one bit; gap 2 / (1 + log2 n)."""
    if n & (n - 1) or n < 2:
        raise UsageError(f"hypercube({n}): n must be a power of two")
    return metropolis(nx.hypercube_graph(n.bit_length() - 1), sparse)


def erdos_renyi(n: int, seed: int = 0, sparse: bool = False) -> Tensor:
    """Each pair linked with probability 2 ln n / n, drawn again until connected."""
    share = min(1.0, 2 * log(n) / n)
    return _connected(lambda s: nx.gnp_random_graph(n, share, seed=s), seed, sparse)


def watts_strogatz(
    n: int, k: int = 4, p: float = 0.3, seed: int = 0, sparse: bool = False
) -> Tensor:
    """Small world: a ring of k neighbours whose links are rewired with probability p."""
    return _connected(lambda s: nx.watts_strogatz_graph(n, k, p, seed=s), seed, sparse)


def _connected(draw, seed, sparse):
    for s in range(1000):
        graph = draw(1000 * seed + s)
        if nx.is_connected(graph):
            return metropolis(graph, sparse)
    raise UsageError("no connected graph found in 1000 draws; raise the degree")


def exponential(n: int) -> Tensor:
    """Static exponential graph, directed: device i hears i - 2^k, k = 0 .. log2 n - 1, and itself,
    all with equal weight. Circulant, hence doubly stochastic; gap 2 / (1 + log2 n) where n is a
    power of two."""
    return one_peer_exponential(n, share=1.0).sum(0).add(torch.eye(n)).div(_hops(n) + 1)


def one_peer_exponential(n: int, share: float = 0.5) -> Tensor:
    """(log2 n, n, n): in round r each device hears one other, 2^(r mod log2 n) before it. The
    product of log2 n rounds is J where n is a power of two. Assran et al., ICML 2019, section 2."""
    eye = torch.eye(n)
    return torch.stack([(1 - share) * eye + share * eye.roll(2**k, 0) for k in range(_hops(n))])


def one_peer_hypercube(n: int) -> Tensor:
    """(log2 n, n, n): in round r each device averages with the one whose number differs in bit r
    mod log2 n, if there is one. The product of log2 n rounds is J where n is a power of two."""
    W, devices = torch.eye(n).repeat(_hops(n), 1, 1), torch.arange(n)
    for k, V in enumerate(W):
        i = devices[(devices ^ 2**k) < n]
        V[i, i] = V[i, i ^ 2**k] = 0.5
    return W


def relabelled(W: Tensor, times: int, seed: int = 0) -> Tensor:
    """(times T, n, n): the rounds of W (T, n, n), `times` times over, each time with the devices in
    another random order."""
    rng, n = stream(seed, "relabelled"), W.shape[1]
    orders = (torch.from_numpy(rng.permutation(n)) for _ in range(times))
    return torch.cat([W[:, order][:, :, order] for order in orders])


def _hops(n):
    return max(1, (n - 1).bit_length())


def random_digraphs(n: int, out: int = 2, rounds: int = 64, B: int = 4, seed: int = 0) -> Tensor:
    """(rounds, n, n): push matrices of random directed graphs that change every round: device j
    keeps 1 / (out + 1) and sends as much to each of `out` others. Column-stochastic only. The links
    of any B rounds from a multiple of B together connect everybody with everybody.
    """
    if not 0 < out < n:
        raise UsageError(f"out = {out} links from each of {n} devices; choose 1 to {n - 1}")
    found, rng = [], stream(seed, "digraphs", n, out)
    while len(found) < rounds:
        group = torch.eye(n).repeat(B, 1, 1)
        for A in group:
            for j in range(n):
                A[rng.permutation(np.delete(np.arange(n), j))[:out], j] = 1
        links = nx.from_numpy_array(group.sum(0).T.numpy(), create_using=nx.DiGraph)
        if nx.is_strongly_connected(links):
            found += list(group / (out + 1))
    return torch.stack(found[:rounds])


def symmetrised(A: Tensor) -> Tensor:
    """Metropolis weights on the links of A, each used both ways; (T, n, n) round by round."""
    if A.dim() == 3:
        return torch.stack([symmetrised(V) for V in A])
    links = ((A != 0) | (A != 0).T).fill_diagonal_(False)
    return metropolis(nx.from_numpy_array(links.int().numpy()))


def by_receiver(A: Tensor) -> Tensor:
    """Row-stochastic weights on the links of A: each device weighs all that it hears, itself
    included, alike."""
    links = (A != 0).float()
    return links / links.sum(-1, keepdim=True)


def at_round(W: Tensor, r: int) -> Tensor:
    """(n, n): W itself, or the matrix of round r where W is (T, n, n) and comes round again."""
    return W if W.dim() == 2 else W[r % len(W)]


def spectral_gap(W: Tensor, rounds: int = 8) -> float:
    """The spectral gap of W, or that of a round on average over the first few rounds of W (T, n,
    n): 1 - ||P - p 1^T||_2^(1 / T), P = W_T ... W_1 and p the mean of its columns, 1 / n where W is
    doubly stochastic."""
    W = W.to_dense() if W.is_sparse else W
    steps = [V / V.sum(0) for V in (W.double() if W.dim() == 3 else W.double()[None])[:rounds]]
    product = steps[0]
    for V in steps[1:]:
        product = V @ product
    rho = float(torch.linalg.matrix_norm(product - product.mean(1, keepdim=True), 2))
    return 1 - rho ** (1 / len(steps))


def perron(W: Tensor) -> Tensor:
    """(n,): the left eigenvector v = v W of a connected row-stochastic W, entries summing to 1: the
    weight of each device in what repeated mixing tends to. 1 / n where W is doubly stochastic."""
    V, ones = (W / W.sum(1, keepdim=True)).double(), torch.ones(len(W), dtype=torch.float64)
    return torch.linalg.solve((torch.eye(len(W)) - V + 1).T, ones).to(W.dtype)


def gallery(n: int) -> dict[str, Tensor]:
    """The doubly stochastic topologies on n devices, n a power of two, by name."""
    return {
        "ring": ring(n),
        "torus": torus(n),
        "hypercube": hypercube(n),
        "exponential": exponential(n),
        "one-peer exponential": one_peer_exponential(n),
        "random 4-regular": random_regular(n),
        "Erdős-Rényi": erdos_renyi(n),
        "small world": watts_strogatz(n),
        "complete": complete(n),
        "star": star(n),
    }


def links(W: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(i, j): each i that hears another device j, row by row."""
    if W.is_sparse:
        W = W.coalesce()
        i, j = W.indices()[:, W.values() != 0].numpy()
    else:
        i, j = np.nonzero(W.numpy())
    return i[i != j], j[i != j]


def mask(W: Tensor, i: np.ndarray, j: np.ndarray) -> Tensor:
    """(n, n): True at those (i, j), which are `links` of W; in W's layout, with all its entries."""
    if W.is_sparse:
        W, n = W.coalesce(), len(W)
        at, found = W.indices(), torch.zeros(W._nnz(), dtype=torch.bool)
        found[np.searchsorted((at[0] * n + at[1]).numpy(), i * n + j)] = True
        return _sparse(*at, found, n)
    found = torch.zeros(W.shape, dtype=torch.bool)
    found[i, j] = True
    return found


def delivered(W: Tensor, arrived: Tensor) -> Tensor:
    """W without the links whose message did not arrive; everybody has its own."""
    if not W.is_sparse:
        return W * (arrived | torch.eye(len(W), dtype=torch.bool))
    i, j, weight = _there(W, arrived, own=True)
    return _sparse(i, j, weight, len(W)).coalesce()


def _there(W, arrived, own=False):
    """(i, j, weights) of the entries of a sparse W whose message arrived, and of the diagonal."""
    W, there = W.coalesce(), arrived.coalesce().values()
    i, j = W.indices()
    there = there | (i == j) if own else there
    return i[there], j[there], W.values()[there]


def heard(W: Tensor, arrived: Tensor) -> Tensor:
    """The mixing that took place: where j's message did not arrive (arrived[i, j] False), i uses
    its own model in its place. Rows still sum to 1; columns need not."""
    if W.is_sparse:
        return _filled(*_there(W, arrived), len(W))
    kept = W * arrived
    kept = kept - torch.diag(kept.diagonal())
    return kept + torch.diag(1 - kept.sum(1))


def pushed(A: Tensor, arrived: Tensor) -> Tensor:
    """The pushes that took place: what j could not deliver to i (arrived[i, j] False) it keeps, as
    an acknowledgement tells it. Columns still sum to 1, so that no mass is lost."""
    return heard(A.T, arrived.T).T
