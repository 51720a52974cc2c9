"""A Gaussian multiple-access channel: all devices send at once, the server hears their sum.

In each of T uses of the channel a round the server receives sum_i x_i + z, z ~ N(0, N0), from k
devices, each of which has the energy P T; snr = P / N0. The devices want the server to know the sum
of their vectors v_i (m,). A scheme is a function (V (k, m), uses, snr, *key) -> (what is sent, with
k leading rows; what each vector adds to the server's estimate of the sum, (k, m); its noise, (m,),
NaN where the uses were not enough for the entry). Ahn, Simeone, Kang, IEEE PIMRC 2019.
"""

import numpy as np
import torch
from torch import Tensor

from survey_lib.streams import stream


def analog(V: Tensor, uses: int, snr: float, *key) -> tuple[Tensor, Tensor, Tensor]:
    """Over the air: device i sends g v_i as it is, r = floor(T / m) times, and the channel adds.

    The gain is the same for all, g = sqrt(P T / r) / max_i ||v_i||, so that nobody spends more than
    P T; the mean of the r receptions over g is the sum with noise of variance N0 max ||v||^2 / (P
    T) per entry, whatever r. If T < m, T entries are sent, drawn anew in each round.
    """
    k, m = V.shape
    there = some_entries(m, uses, *key)
    size = torch.where(there, V, 0.0).norm(dim=1).amax() if k else V.new_zeros(())
    z = torch.from_numpy(stream("channel", *key).standard_normal(m)).to(V.dtype)
    noise = z * size / np.sqrt(max(uses, 1) * snr)
    return V[:, there], V, torch.where(there, noise, torch.nan)


def digital(V: Tensor, uses: int, snr: float, *key) -> tuple[Tensor, Tensor, Tensor]:
    """Bits: device after device, T / k uses each, R = T / (2 k) log2(1 + k snr) bits without error,
    floor(R / m) bits for each entry, from 0 to 1; of 32 bits, the number itself. If R < m, one bit
    for each of R entries, drawn anew in each round."""
    k, m = V.shape
    R = capacity(uses, snr, k)
    there = some_entries(m, R, *key)
    b = int(min(R / m, 32)) if there.all() else 1
    sent = V[:, there]
    if b == 32:
        return sent, V, torch.zeros(m, dtype=V.dtype)
    code = (sent.clamp(0, 1).double() * (2**b - 1)).round()
    read = V.clone()
    read[:, there] = (code / (2**b - 1)).to(V.dtype)
    packed = torch.zeros(k, -(-int(there.sum()) * b // 8), dtype=torch.uint8)
    return packed, read, torch.where(there, 0.0, torch.nan).to(V.dtype)


def capacity(uses: int, snr: float, k: int) -> float:
    """R: whole bits that each of k devices can send without error, see `digital`."""
    return np.floor(uses / (2 * max(k, 1)) * np.log2(1 + k * snr))


def some_entries(m: int, T: float, *key) -> Tensor:
    """(m,): which T of m entries are sent, all if they are no more; drawn, the same for all."""
    there = torch.ones(m, dtype=torch.bool)
    if T < m:
        order = stream("entries", *key).permutation(m)
        there[torch.from_numpy(order[int(T) :])] = False
    return there
