"""Where the parts of a network go: planned from a profile, or searched for."""

import itertools

import numpy as np
import torch
from torch.nn import functional as F

from survey_lib.cutting import chain, layers_of, move, place
from survey_lib.methods.pipelines import pipedream
from survey_lib.passes import stashed
from survey_lib.streams import stream


def pipedream_partitioner(
    task, world, *, eta, B, momentum=0.0, weights=stashed, any_order=False, backup=None, seed=0
):
    """PipeDream on stages that are cut by profile and dynamic programming, anew when a device comes
    or goes. Harlap et al., arXiv 1806.03377, section 3.1, for unlike devices in a line.

    x (d,), its layers on the devices that `cutting.place` finds for those that are on: the slowest
    stage or message as fast as can be, the devices in their own order, or in the best one
    (any_order); some may get nothing. The profile is that of the layers: FLOPs / speed.
    The paper's machines are alike, and a stage may have several: `cutting.replicated` plans this.
    For devices that come and go, which the paper leaves open: in the new plan every layer is sent
    (4 B a parameter in float32) from the device that has it; training goes on from the model that
    was last through. backup: after so many mini-batches, every stage sends its weights to the next
    one's device, which does not hold it up. When a device in use leaves, all go back to the last
    backup (without one, or when all who had a layer of it are gone: to the first model).
    Mini-batches in flight are lost. That a device is gone is seen after a second.
    """
    x, profile = task.init(), chain(task.network, B, task.dtype.itemsize)
    first = saved = x
    owner, copies = {}, {}  # layer -> device that has it, devices that have its backup
    for attempt in itertools.count():
        there = world.online()
        if not len(there):
            yield x, {}
            world.barrier([])
            continue
        _, cuts, devices = place(profile, world, there, any_order=any_order)
        home = {j: devices[s] for j, s in enumerate(layers_of(cuts, len(profile)))}
        if not set(owner.values()) <= set(there):  # some weights are gone
            world.barrier([])  # until it is noticed
            left = {j: [i for i in copies[j] if i in there] for j in copies}
            whole = copies and all(left.values())
            x, owner = (saved, {j: left[j][0] for j in left}) if whole else (first, {})
        size = [task.dtype.itemsize * layer.parameters for layer in task.network.layers]
        move(world, [(owner[j], home[j], size[j]) for j in owner if owner[j] != home[j]])
        owner = home
        how = dict(cuts=cuts, devices=devices, eta=eta, B=B, momentum=momentum, weights=weights)
        again = (seed, attempt) if attempt else seed
        for m, value in enumerate(pipedream(task, world, start=x, seed=again, **how)):
            if m or not attempt:
                yield value
            x = value[0]
            if set(world.online()) != set(there):
                break
            if backup and m and m % backup == 0:
                saved, copies = x, backed_up(world, task, x, owner, devices)


def backed_up(world, task, x, owner: dict, devices) -> dict:
    """Every device sends the layers of x that it owns to the next one: layer -> the devices that
    now have it, its owner first; the next one only where the message arrives."""
    after, copies = dict(zip(devices, (*devices[1:], devices[0]), strict=True)), {}
    for j, i in owner.items():
        part = x[task.network.layers[j].params]
        sent = after[i] != i and world.send(i, after[i], part) < np.inf
        copies[j] = [i, after[i]] if sent else [i]
    return copies


def rl_placement(task, world, *, S=16, eta=0.1, average=0.9, entropy=0.01, fade=0.99, seed=0):
    """ColocRL: a policy learns placements from nothing but the measured time of a step.
    Mirhoseini et al., ICML 2017, section 3, with a table of logits for the policy.

    theta (d, n): group g goes to device j with probability softmax(theta_g)_j, independently of the
    others. Per update S placements P are drawn, each runs one step in the world, and its cost is
    R(P) = sqrt(seconds); gradient of E[R]: (1/S) sum_s (R(P_s) - b) grad log pi(P_s), with b an
    exponential average (`average`) of R; Adam with step eta. A bonus `entropy` on the entropy of
    the policy fades by `fade` per update. Placements that exceed the memory cost twice the largest
    time seen and are never the best. One S steps' time and messages per update.
    The paper's policy is a sequence-to-sequence network over descriptions of the groups, with
    several controllers, and drops what failed after some updates: a dozen groups need none of this.
    Yields the best placement measured so far (at first: all on device 0), its seconds without noise
    and the share of the policy's mass on its likeliest choices.
    """
    theta = torch.zeros(task.d, task.n, dtype=task.dtype)
    moments, b, worst = [torch.zeros_like(theta)] * 2, None, 0.0
    best, value = task.init(), np.inf
    for r in itertools.count(1):
        sure = torch.softmax(theta, 1).max(1).values.mean()
        yield best, {"seconds": task.seconds(world, best), "sure": float(sure)}
        pi = torch.softmax(theta, 1)
        draws = torch.from_numpy(stream(seed, "placement", r).random((S, task.d, 1)))
        P = (draws > pi.cumsum(1)).sum(2).clamp(max=task.n - 1)  # (S, d)
        times = np.array([task.measure(world, p, r, k) for k, p in enumerate(P.tolist())])
        worst = max(worst, times[np.isfinite(times)].max(initial=0.0))
        R = torch.from_numpy(np.sqrt(np.where(np.isfinite(times), times, 2 * max(worst, 1e-9))))
        if times.min() < value:
            best, value = P[times.argmin()].to(task.dtype), times.min()
        b = R.mean() if b is None else b
        theta, moments = adam(theta, score(pi, P, R - b, entropy * fade**r), moments, eta, r)
        b = average * b + (1 - average) * R.mean()


def score(pi, P, advantage, entropy=0.0):
    """(d, n): the estimate of the gradient of E[R] - entropy H(pi) in the logits of pi (d, n), from
    placements P (S, d) and their R - b (S,): mean of (R - b) (onehot(P) - pi), and the entropy's
    own gradient, pi (log pi + H)."""
    chosen = F.one_hot(P, pi.shape[1]).to(pi.dtype)  # (S, d, n)
    log = pi.clamp(min=1e-300).log()
    own = pi * (log - (pi * log).sum(1, keepdim=True))
    return (advantage[:, None, None] * (chosen - pi)).mean(0) + entropy * own


def adam(theta, g, moments, eta, t, decay=(0.9, 0.999)):
    """Step t (from 1) of Adam: (theta, moments). Kingma and Ba, ICLR 2015."""
    m, v = (a * old + (1 - a) * new for a, old, new in zip(decay, moments, (g, g * g), strict=True))
    mean, square = m / (1 - decay[0] ** t), v / (1 - decay[1] ** t)
    return theta - eta * mean / (square.sqrt() + 1e-8), [m, v]


def random_placement(task, world, *, S=16, seed=0):
    """Random search: S random placements per round are measured, the best one is kept."""
    best, value = task.init(), np.inf
    for r in itertools.count(1):
        yield best, {"seconds": task.seconds(world, best)}
        P = stream(seed, "placement", r).integers(task.n, size=(S, task.d))
        times = np.array([task.measure(world, p, r, k) for k, p in enumerate(P)])
        if times.min() < value:
            best, value = torch.from_numpy(P[times.argmin()]).to(task.dtype), times.min()


def greedy_placement(task, world, *, seed=0):
    """The rule of thumb: each group, in order, goes to the device that would be through with it
    first by the devices' nominal speeds, among those whose memory has room; no measurement.

    It takes a device as busy with the groups that it has, and links as free.
    """
    free, room = np.zeros(task.n), world.memory.copy()
    graph, found, through = task.graph, [], []
    for j in range(task.d):
        ready = max((through[a] for a, b in graph.edges if b == j), default=0.0)
        end = np.maximum(free, ready) + graph.forward[j] / world.speed
        end[room < graph.memory[j]] = np.inf
        d = int(end.argmin())
        free[d], room[d] = end[d], room[d] - graph.memory[j]
        found.append(d)
        through.append(end[d])
    yield task.init(), {"seconds": task.seconds(world, task.init())}
    best = torch.tensor(found, dtype=task.dtype)
    while True:
        task.measure(world, best)
        yield best, {"seconds": task.seconds(world, best)}


def soap_mcmc(task, world, *, beta=20.0, patience=100, seed=0):
    """FlexFlow's search in the SOAP space: Metropolis steps over the ways to split each layer, by
    simulated time. Jia, Zaharia, Aiken, MLSys 2019, section 6.

    S (d,): for each layer a device, or split by samples, or by outputs (plans.Splitting). A step
    draws a layer and a way for it at random; S* replaces S with probability min(1, exp(beta
    (cost(S) - cost(S*)) / cost of data parallelism)), so that beta is a pure number (if that does
    not fit into the memory, the first cost that does). The search
    starts at data parallelism, at the expert's plan (convolutions by samples, dense layers by
    outputs), then at random plans, each time until `patience` steps have brought nothing better.
    Asks a simulator only: no message, no time in the world. Plans that exceed the memory cost inf.
    The paper splits along every dimension and in every degree, attributes such as the height of an
    image too; here a layer has n + 2 ways. Yields the best plan so far, its seconds, and the
    seconds of the plan at which the search is.
    """
    data = [task.n] * task.d
    expert = [task.n + (len(shape) == 2) for shape in task.network.shapes[::2]]
    best = S = data
    unit, idle, starts = task.seconds(world, data), 0, 1
    rng = stream(seed, "soap")
    while True:
        now, lowest = (task.seconds(world, v) for v in (S, best))
        yield torch.tensor(best, dtype=task.dtype), {"seconds": lowest, "now": now}
        if idle == patience:
            random = rng.integers(task.n + 2, size=task.d).tolist()
            S, idle, starts = expert if starts == 1 else random, 0, starts + 1
        else:
            new = list(S)
            new[rng.integers(task.d)] = int(rng.integers(task.n + 2))
            before, after = task.seconds(world, S), task.seconds(world, new)
            unit = unit if unit < np.inf else after  # where data parallelism does not fit
            gain = 0.0 if before == after else (before - after) / unit
            S = new if accepted(gain, beta, rng.random()) else S
        better = task.seconds(world, S) < lowest
        best, idle = (S, 0) if better else (best, idle + 1)


def accepted(gain: float, beta: float, u: float) -> bool:
    """Metropolis: a step of this gain (below 0: a loss), for a uniform number u."""
    if gain >= 0 or beta == 0:
        return True
    return bool(u < np.exp(beta * gain))


def pure_plan(task, world, *, split=None, seed=0):
    """The pure plans: split="samples" is data parallelism; split="layers" the best of all ways to
    put every layer on one device, all of them on one included; None: the better of these two."""
    data, layers = [(task.n,) * task.d], itertools.product(range(task.n), repeat=task.d)
    plans = {"samples": data, "layers": layers, None: itertools.chain(data, layers)}[split]
    best = min(plans, key=lambda plan: task.seconds(world, plan))
    while True:
        yield torch.tensor(best, dtype=task.dtype), {"seconds": task.seconds(world, best)}
