"""Graphs (networkx), mixing matrices and their spectral gap."""

import networkx as nx
import torch
from torch import Tensor

from survey_lib.errors import UsageError


def metropolis(graph: nx.Graph) -> Tensor:
    """(n, n) Metropolis-Hastings weights: W[i, j] = 1 / (1 + max(deg_i, deg_j)) on edges, the rest
    on the diagonal. Symmetric and doubly stochastic on every graph."""
    graph = nx.convert_node_labels_to_integers(graph)
    W = torch.zeros(len(graph), len(graph), dtype=torch.float64)
    for i, j in graph.edges:
        W[i, j] = W[j, i] = 1 / (1 + max(graph.degree[i], graph.degree[j]))
    return (W + torch.diag(1 - W.sum(1))).float()


def ring(n: int) -> Tensor:
    """Cycle of n devices; gap 2/3 (1 - cos(2 pi / n))."""
    return metropolis(nx.cycle_graph(n) if n > 2 else nx.path_graph(n))


def torus(n: int) -> Tensor:
    """k x n/k grid with wrap-around, as square as n allows; gap 2/5 (1 - cos(2 pi / longer))."""
    k = max(k for k in range(1, int(n**0.5) + 1) if n % k == 0)
    if k < 3:
        raise UsageError(
            f"torus({n}): no grid with both sides 3 or more; use 9, 12, 16, ... devices"
        )
    return metropolis(nx.grid_2d_graph(k, n // k, periodic=True))


def complete(n: int) -> Tensor:
    """Everybody with everybody: W = J."""
    return metropolis(nx.complete_graph(n))


def star(n: int) -> Tensor:
    """One hub; gap 1 / n."""
    return metropolis(nx.star_graph(n - 1))


def random_regular(n: int, degree: int = 4, seed: int = 0) -> Tensor:
    """A random connected graph in which every device has `degree` neighbours."""
    for s in range(100):
        graph = nx.random_regular_graph(degree, n, seed=1000 * seed + s)
        if nx.is_connected(graph):
            return metropolis(graph)
    raise UsageError(f"no connected {degree}-regular graph of {n} devices found; raise the degree")


def hypercube(n: int) -> Tensor:
    """n = 2^k devices, neighbours differ in one bit; gap 2 / (1 + log2 n)."""
    if n & (n - 1) or n < 2:
        raise UsageError(f"hypercube({n}): n must be a power of two")
    return metropolis(nx.hypercube_graph(n.bit_length() - 1))


def spectral_gap(W: Tensor) -> float:
    """1 - ||W - J||_2, J the matrix of 1/n."""
    return 1 - float(torch.linalg.matrix_norm(W.double() - 1 / len(W), 2))


def heard(W: Tensor, arrived: Tensor) -> Tensor:
    """The mixing that took place: where j's message did not arrive (arrived[i, j] False), i uses
    its own model in its place. Rows still sum to 1; columns need not."""
    kept = W * arrived
    kept = kept - torch.diag(kept.diagonal())
    return kept + torch.diag(1 - kept.sum(1))
