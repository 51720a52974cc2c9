"""Real processes in place of the simulated world: the same method source runs in each of them."""

import os
import socket
import struct

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from survey_lib.errors import UsageError

TCP_INFO, BYTES_SENT = 11, 200  # Linux: option of a socket, and where it keeps the bytes sent


class LiveWorld:
    """This process is device `rank` of n, and rank n the server; torch.distributed is initialised.

    Every process runs the same method on tensors of all devices, of which only its own row (and the
    server's model, at the server) counts: a move sends that row and writes what arrives into the
    rows of the others, in place. So a method needs no change, if it mixes the very tensors that it
    sends. Everybody is on and nothing is lost; time is not simulated.

    up: bytes of the tensors that this process sent. messages: how many.
    """

    def __init__(self, n: int):
        self.n, self.rank, self.up, self.messages = n, dist.get_rank(), 0, 0
        self.clock, self.speed = 0.0, np.ones(n)

    def online(self, chosen=None) -> np.ndarray:
        return np.arange(self.n) if chosen is None else np.asarray(chosen, dtype=int)

    def compute(self, chosen, flops) -> None:
        pass

    def barrier(self, chosen) -> None:
        pass

    def broadcast(self, chosen, payload) -> np.ndarray:
        """The server sends its payload to the chosen devices, which overwrite theirs."""
        for part in _parts(payload):
            if self.rank == self.n:
                self._move([(int(i), part) for i in chosen], [])
            elif self.rank in chosen:
                self._move([], [(self.n, part)])
        return np.asarray(chosen, dtype=int)

    def gather(self, chosen, payload, **limits) -> np.ndarray:
        """The chosen devices send their rows to the server, which overwrites its own."""
        if any(v for v in limits.values()):
            raise UsageError(f"{limits}: live processes wait for everybody")
        for part in _parts(payload):
            if self.rank == self.n:
                self._move([], [(int(i), part[k]) for k, i in enumerate(chosen)])
            elif self.rank in chosen:
                self._move([(self.n, part[list(chosen).index(self.rank)])], [])
        return np.arange(len(chosen))

    def exchange(self, W: Tensor, rows, *, overlap: int = 0) -> Tensor:
        """Each device sends its row to those who hear it, and overwrites the rows it hears."""
        if overlap:
            raise UsageError(f"overlap = {overlap}: live processes wait for every exchange")
        if W.shape != (self.n, self.n):
            raise UsageError(f"W is {tuple(W.shape)} but there are {self.n} devices")
        links = (W != 0).fill_diagonal_(False)
        if self.rank == self.n:  # a server has no part in this
            return links
        hear, heard = links[self.rank].nonzero().ravel(), links[:, self.rank].nonzero().ravel()
        for part in _parts(rows):
            self._move(
                [(int(j), part[self.rank]) for j in heard], [(int(j), part[j]) for j in hear]
            )
        return links

    def allreduce(self, chosen, rows: Tensor, algorithm: str = "ring") -> Tensor:
        """(d,): the sum of all rows, by a ring: reduce-scatter, then all-gather."""
        if algorithm != "ring" or len(chosen) != self.n:
            raise UsageError(
                f'algorithm="{algorithm}": live processes know the ring of all devices'
            )
        n, me = self.n, self.rank
        if me == n:
            return rows.sum(0)
        block = [part.clone() for part in rows[me].tensor_split(n)]
        for s in range(n - 1):  # the partial sum of block me - s goes on to the successor
            b = (me - s - 1) % n
            before = torch.empty_like(block[b])
            self._move([((me + 1) % n, block[(me - s) % n])], [((me - 1) % n, before)])
            block[b] = before + block[b]
        for s in range(n - 1):  # and now the whole sums
            self._move(
                [((me + 1) % n, block[(me + 1 - s) % n])], [((me - 1) % n, block[(me - s) % n])]
            )
        return torch.cat(block)

    def _move(self, out, into):
        """Send (to, tensor) and receive (from, tensor), all at one instant; wait for all."""
        buffers = [
            (view, torch.empty_like(view, memory_format=torch.contiguous_format))
            for _, view in into
        ]
        work = [dist.irecv(b, j) for (j, _), (_, b) in zip(into, buffers, strict=True)]
        work += [dist.isend(t.contiguous(), j) for j, t in out]
        for w in work:
            w.wait()
        for view, buffer in buffers:
            view.copy_(buffer)
        self.up += sum(t.nbytes for _, t in out)
        self.messages += len(out)


def _parts(payload) -> tuple[Tensor, ...]:
    """The tensors of a payload, each of a dimension that can be written into."""
    parts = payload if isinstance(payload, tuple | list) else (payload,)
    if not all(isinstance(part, Tensor) for part in parts):
        raise UsageError("live processes send tensors; put plain numbers into one")
    return tuple(parts)


def wire_bytes() -> int | None:
    """Bytes that this process's TCP connections have sent so far, framing included; None where the
    system does not say (it takes Linux)."""
    total = 0
    try:
        for name in os.listdir("/proc/self/fd"):
            try:
                with socket.socket(fileno=os.dup(int(name))) as s:
                    if s.type == socket.SOCK_STREAM and s.family in (
                        socket.AF_INET,
                        socket.AF_INET6,
                    ):
                        info = s.getsockopt(socket.IPPROTO_TCP, TCP_INFO, 232)
                        total += struct.unpack_from("Q", info, BYTES_SENT)[0]
            except OSError:  # no socket, or closed meanwhile
                continue
    except (FileNotFoundError, struct.error):
        return None
    return total
