"""Vehicles that come and go, sent on errands one by one: what an errand costs, and who is chosen.

A selector is a function (state, *key) -> position of the vehicle chosen. state (k, 4): of the k
vehicles that are there and idle, the seconds of computing and of both messages at present rates,
the seconds until it leaves, and the quality of its last model (1 if there is none).
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from survey_lib.chain import Block, Entry, nbytes
from survey_lib.flows import weigh
from survey_lib.streams import stream
from survey_lib.world import World

FAR = 1e3  # s: a vehicle that stays for longer is one that stays


@dataclass(frozen=True)
class Cost:
    """What an errand costs, in seconds: its time, and kappa (1 - quality) for a model that arrived,
    or the penalty for none."""

    kappa: float = 2.0
    penalty: float = 5.0

    def __call__(self, seconds, arrived, quality):
        return seconds + np.where(arrived, self.kappa * (1 - quality), self.penalty)


def at_random(state: np.ndarray, *key) -> int:
    """Any of those that are there."""
    return int(stream("select", *key).integers(len(state)))


def greedy(state: np.ndarray, *key, cost: Cost = Cost()) -> int:  # noqa: B008
    """The least predicted cost, as if rates and quality stayed as they are."""
    seconds, left = state[:, :2].sum(1), state[:, 2]
    return int(cost(np.minimum(seconds, left), seconds < left, state[:, 3]).argmin())


@dataclass(frozen=True)
class Policy:
    """A trained selector: the actor's weights and biases."""

    actor: tuple[Tensor, ...]

    def __call__(self, state: np.ndarray, *key) -> int:
        return int(network(self.actor, features(state)).argmax())


def payloads(x: Tensor) -> tuple:
    """What is sent (down, up): the model x, with the two entries to approve and the last block, and
    with the new entry."""
    return (x, nbytes(2 * Entry.size + Block.size)), (x, nbytes(Entry.size))


def states(world, idle, down, up, flops, quality) -> np.ndarray:
    """(k, 4): the state of the idle vehicles, see above."""
    rate_up, rate_down = world.rates(idle)
    messages = 2 * world.latency[idle] + weigh(up) / np.minimum(rate_up, world.server[1])
    messages += weigh(down) / np.minimum(rate_down, world.server[0])
    left = world.leaves(idle) - world.clock
    return np.stack([flops[idle] / world.speed[idle], messages, left, quality[idle]], 1)


def errands(world, select, *, S, down, up, flops, quality, key):
    """S vehicles at work at once; whenever one is through, `select` sends the next.

    Yields (i, None) for each vehicle i that is sent out with `down`, and (i, (seconds, arrived))
    when its `up` is here or the server knows that none will come: the vehicle leaves, could not be
    reached, or its message was lost. If nobody is there, (None, (seconds, False)) once a second.
    flops, quality (n,): per vehicle; the latter may change between the yields.
    """
    due, begun = np.full(world.n, np.inf), np.zeros(world.n)
    away, arrives = np.zeros(world.n, bool), np.zeros(world.n, bool)
    for r in itertools.count():
        begin, idle = world.clock, world.online(np.flatnonzero(~away))
        state, left = states(world, idle, down, up, flops, quality), list(range(len(idle)))
        chosen = []
        while left and len(chosen) + away.sum() < S:
            chosen.append(left.pop(select(state[left], *key, r, len(chosen))))
        sent = idle[chosen]
        yield from ((int(i), None) for i in sent)
        if len(sent) or not away.any():
            got = world.broadcast(sent, down)
            world.compute(got, flops[got])
            times = world.uploads(got, [up] * len(got))
            due[sent], arrives[sent], begun[sent] = world.clock, False, begin
            until = np.minimum(world.leaves(got), world.due(got))
            due[got], arrives[got] = np.minimum(times, until), np.isfinite(times)
            away[sent] = True
        if away.any():
            i = int(np.where(away, due, np.inf).argmin())
            world.close([i], due[i])
            away[i] = False
            yield i, (due[i] - begun[i], bool(arrives[i]))
        else:
            yield None, (world.clock - begin, False)


# ---- learning to select --------------------------------------------------------------------------


def features(state: np.ndarray) -> Tensor:
    """(..., 4): the logarithms of the seconds, and the quality."""
    logs = np.log(np.clip(state[..., :3], 1e-3, FAR))
    return torch.from_numpy(np.concatenate([logs, state[..., 3:]], -1)).float()


def layers(inputs: int, *key, width: int = 64) -> list[Tensor]:
    """Weights and biases of an MLP inputs-width-width-1, uniform within 1 / sqrt(inputs)."""
    rng, found = stream("layers", *key), []
    for a, b in ((inputs, width), (width, width), (width, 1)):
        for shape in ((b, a), (b,)):
            found.append(torch.from_numpy(rng.uniform(-1, 1, shape) / a**0.5).float())
    return [w.requires_grad_() for w in found]


def network(weights, z: Tensor) -> Tensor:
    """(...): the output of the MLP at z (..., inputs)."""
    W1, b1, W2, b2, W3, b3 = weights
    return F.linear(F.linear(F.linear(z, W1, b1).relu(), W2, b2).relu(), W3, b3)[..., 0]


def weights_of(actor, z: Tensor, there: Tensor) -> Tensor:
    """(B, n): the actor's action, softmax of the scores of the vehicles that are there."""
    return network(actor, z).masked_fill(~there, -torch.inf).softmax(-1)


def values_of(critic, z: Tensor, there: Tensor) -> Tensor:
    """(B, n): what each vehicle is worth; the critic's Q is their mean, weighted by the action. It
    sees the vehicle and the mean of those that are there."""
    around = (z * there[..., None]).sum(1, keepdim=True) / there.sum(1)[:, None, None]
    return network(critic, torch.cat([z, around.expand_as(z)], -1)).masked_fill(~there, 0.0)


def train_policy(
    world: dict,
    *,
    n: int,
    S: int,
    d: int,
    flops: np.ndarray,
    flipped: float = 0.1,
    cost: Cost = Cost(),  # noqa: B008
    episodes: int = 300,
    decisions: int = 20,
    updates: int = 4,
    gamma: float = 0.9,
    soft: float = 0.01,
    replay: int = 2000,
    B: int = 32,
    step: float = 3e-3,
    seed: int = 0,
) -> Policy:
    """Deep deterministic policy gradient (Lillicrap et al., ICLR 2016) on the cost of errands.

    An episode is so many errands of n vehicles in a `world` of its own, S at work at once, without
    any learning of models of d parameters: an errand computes one of `flops`, drawn per vehicle,
    and brings a model of quality 0.05 (a share `flipped` of the vehicles) or of a level that is
    drawn per episode from 0.3 to 0.9. Reward: minus the cost. Actor, critic: MLPs 64-64. The action
    is a weight per vehicle, softmax of the actor's scores; carried out, rounded, is the one largest
    after Gumbel noise, which shrinks to nothing over the episodes. One actor scores all vehicles,
    so the policy depends neither on their number nor on their order; the critic's Q is linear in
    the action. Replay of 2000 transitions, `updates` batches of B an episode, Adam.
    """
    actor, critic = layers(4, seed, "actor"), layers(8, seed, "critic")
    slow = [[w.detach().clone() for w in net] for net in (actor, critic)]
    optimisers = [torch.optim.Adam(net, lr=step) for net in (actor, critic)]
    memory = []  # the newest transitions, see episode
    for e in range(episodes):
        noise = 1 - e / episodes
        found = episode(world, actor, noise, n, S, d, flops, flipped, cost, decisions, (seed, e))
        memory = (memory + found)[-replay:]
        rng = stream(seed, "replay", e)
        for _ in range(updates):
            batch = [memory[k] for k in rng.integers(len(memory), size=B)]
            parts = [torch.stack(part) for part in zip(*batch, strict=True)]
            z, there, a, reward, z_next, there_next = parts
            with torch.no_grad():
                later = weights_of(slow[0], z_next, there_next)
                later = (later * values_of(slow[1], z_next, there_next)).sum(1)
            Q = values_of(critic, z, there)
            loss = F.mse_loss(Q.gather(1, a[:, None])[:, 0], reward + gamma * later)
            descend(optimisers[1], loss)
            descend(optimisers[0], -(weights_of(actor, z, there) * Q.detach()).sum(1).mean())
            for old, new in zip(slow, (actor, critic), strict=True):
                for w, v in zip(old, new, strict=True):
                    w.lerp_(v.detach(), soft)
    return Policy(tuple(w.detach() for w in actor))


def descend(optimiser, loss) -> None:
    """One step."""
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def episode(world, actor, noise, n, S, d, flops, flipped, cost, decisions, key) -> list:
    """The transitions of an episode: z (n, 4), which of its rows are there (n,), the one chosen,
    reward; z and there of the next decision."""
    world, rng = World(n, **world, seed=("episode", *key)), stream("episode", *key)
    found = np.where(rng.random(n) < flipped, 0.05, rng.uniform(0.3, 0.9))
    quality, made, of = np.ones(n), [], {}  # made: [z, there, action, reward]

    @torch.no_grad()
    def explore(state, *key):
        z, there = torch.zeros(n, 4), torch.arange(n) < len(state)
        z[: len(state)] = features(state)
        scores = network(actor, z[: len(state)]) + noise * torch.from_numpy(
            stream("explore", *key).gumbel(size=len(state))
        )
        made.append([z, there, scores.argmax(), None])
        return int(made[-1][2])

    down, up = payloads(torch.zeros(d))
    how = dict(S=S, down=down, up=up, flops=rng.choice(flops, n), quality=quality, key=key)
    sent = itertools.count()
    for i, ended in errands(world, explore, **how):
        if ended is None:
            of[i] = next(sent)
        elif i is not None:
            seconds, arrived = ended
            quality[i] = found[i] if arrived else quality[i]
            reward = -float(cost(seconds, arrived, quality[i]))
            made[of[i]][3] = torch.tensor(reward)
        if len(made) > decisions:
            break
    pairs = itertools.pairwise(made)
    return [(*now, *after[:2]) for now, after in pairs if now[3] is not None]
