"""Vehicles: errands, selectors, the learned policy, the ledger, verification."""

import itertools
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from conftest import close, leaves, models, small, values

from survey_lib.chain import GENESIS, Block, Entry, Ledger, fingerprint, nbytes
from survey_lib.flows import weigh
from survey_lib.methods.server_async import fedasync, polynomial
from survey_lib.methods.vehicles import drl_node_selection
from survey_lib.models import logistic
from survey_lib.presets import Device, Link
from survey_lib.selection_policy import (
    FAR,
    Cost,
    Policy,
    at_random,
    episode,
    errands,
    features,
    greedy,
    layers,
    payloads,
    states,
    train_policy,
    values_of,
    weights_of,
)
from survey_lib.streams import stream
from survey_lib.training import Task, train, work
from survey_lib.world import PATIENCE, World, loguniform

HOW = dict(select=at_random, S=3, B=8, eta=0.1)
CAR = Device(1e6, 1e9, idle=1.0, compute=3.0, radio=2.0, source="test")
CELL = Link(0.03, 2e4, 4e4, source="test")
TRAFFIC = dict(device=CAR, link=CELL, churn=(6.0, 6.0), fading=(0.2, 4.0, 4.0))
CHEAP = dict(n=10, S=2, d=1000, flops=np.array([2e5, 1e6]))


def sent_out(world, rounds, select=at_random, S=2, mbytes=0.01, flops=1e6, **how):
    """What `rounds` errands yield, without the beginnings, and the beginnings."""
    payload = nbytes(int(mbytes * 1e6))
    how = dict(quality=np.ones(world.n), key=(0,)) | how
    steps = errands(
        world, select, S=S, down=payload, up=payload, flops=np.full(world.n, flops), **how
    )
    begun, ended = [], []
    for i, end in steps:
        (begun if end is None else ended).append(i if end is None else (i, *end))
        if len(ended) == rounds:
            return ended, begun


# ---- the ledger ----------------------------------------------------------------------------------


def filled(count=12, rejected=(3, 7)):
    """A ledger of `count` random models, of which some were rejected; its models."""
    ledger, recorded = Ledger(), {}
    waiting = [ledger.parents(0, k) for k in range(3)]  # three vehicles are under way at once
    for k in range(count):
        x = torch.full((5,), float(k))
        ok = k not in rejected
        name = ledger.add(x, waiting.pop(0), k / count, accepted=ok)
        recorded[name] = x
        waiting.append(ledger.parents(1, k))
        if ok:
            ledger.merge(name, x / 2)
    return ledger, recorded


def test_the_entries_form_an_acyclic_graph_in_which_each_approves_two_earlier_ones():
    ledger, recorded = filled()
    assert len(ledger.entries) == 12 and len(ledger.blocks) == 10
    graph = nx.DiGraph((a, b) for a, e in ledger.entries.items() for b in e.parents)
    assert nx.is_directed_acyclic_graph(graph)
    assert nx.descendants(graph, list(recorded)[-1]) >= {GENESIS}
    names, twice = [GENESIS, *ledger.entries], 0
    for k, entry in enumerate(ledger.entries.values(), 1):
        assert len(entry.parents) == 2 and set(entry.parents) <= set(names[:k])
        twice += entry.parents == (GENESIS, GENESIS)
        assert entry.parents[0] != entry.parents[1] or entry.parents == (GENESIS, GENESIS)
    assert twice == 3  # those that left when there was nothing else
    approved = {p for e in ledger.entries.values() for p in e.parents}
    rejected = {list(recorded)[k] for k in (3, 7)}
    assert not approved & rejected and not {b.entry for b in ledger.blocks} & rejected
    assert set(ledger.tips) == set(ledger.approvable) - approved
    assert ledger.verify(recorded)


def test_parents_are_tips_as_long_as_there_are_two():
    ledger = Ledger()
    a, b, c = (ledger.add(torch.ones(k), (GENESIS,) * 2, 1.0, accepted=True) for k in (1, 2, 3))
    assert ledger.tips == [a, b, c]
    drawn = [frozenset(ledger.parents(k)) for k in range(60)]
    assert set(drawn) == {frozenset(p) for p in itertools.combinations((a, b, c), 2)}
    d = ledger.add(torch.ones(4), (a, b), 1.0, accepted=True)
    assert ledger.tips == [c, d]
    e = ledger.add(torch.ones(5), (c, d), 1.0, accepted=True)
    assert ledger.tips == [e] and ledger.parents(0) == (e, d)  # and the newest other entry


def test_entries_and_blocks_have_the_size_that_they_say():
    name = fingerprint(torch.ones(2))
    assert len(name) == len(Entry(name, (name, name), 0.5).name) == 32
    assert Entry.size == 104 and Block.size == 96
    down, up = payloads(torch.zeros(650))
    assert weigh(down) == 4 * 650 + 2 * 104 + 96 and weigh(up) == 4 * 650 + 104


def test_any_alteration_is_detected():
    ledger, recorded = filled()
    names, models_ = list(recorded), dict(recorded)
    assert ledger.verify(recorded)
    models_[names[4]] = models_[names[4]].clone()
    models_[names[4]][2] += 1e-6
    assert not ledger.verify(models_)
    assert not ledger.verify({bytes(range(32)): torch.ones(2)})  # never recorded

    def altered(change):
        other, _ = filled()
        change(other)
        return not other.verify()

    def entry(k, **how):
        def change(other):
            other.entries[names[k]] = replace(other.entries[names[k]], **how)

        return change

    def renamed(other):
        """An altered entry under the name that it should have then."""
        kept = list(other.entries.values())
        kept[4] = replace(kept[4], quality=1.0)
        other.entries = {e.name: e for e in kept}

    def block(k, **how):
        def change(other):
            other.blocks[k] = replace(other.blocks[k], **how)

        return change

    for k in (0, 5, 11):
        assert altered(entry(k, quality=0.99)) and altered(entry(k, model=fingerprint(b"x")))
        assert altered(entry(k, parents=(names[k], GENESIS)))
    assert altered(renamed)
    for k in (0, 5, -1):
        assert altered(block(k, model=fingerprint(b"x"))) and altered(block(k, entry=names[1]))
        assert altered(lambda other, k=k: other.blocks.pop(k))
    assert altered(lambda other: other.blocks.reverse())
    assert altered(lambda other: other.entries.pop(names[2]))
    assert not altered(lambda other: None)


# ---- errands -------------------------------------------------------------------------------------


def test_an_errand_takes_as_long_as_its_state_says():
    """Download 10 kB at 4e4 B/s, 1 MFLOP at 1e6 FLOP/s, upload at 2e4 B/s, two latencies."""
    world = World(3, device=CAR, link=CELL)
    ended, begun = sent_out(world, 5, S=1)
    assert [i for i, *_ in ended] == begun[:5]
    for _, seconds, arrived in ended:
        assert arrived and seconds == pytest.approx(0.03 + 0.25 + 1.0 + 0.03 + 0.5)
    assert world.clock == pytest.approx(5 * 1.81)
    payload = nbytes(10_000)
    state = states(
        world, np.array([2, 0]), payload, payload, np.full(3, 1e6), np.array([0.5, 1, 0.7])
    )
    np.testing.assert_allclose(state, [[1.0, 0.81, np.inf, 0.7], [1.0, 0.81, np.inf, 0.5]])


def test_so_many_are_at_work_at_once_and_the_next_leaves_when_one_is_through():
    world = World(6, device=CAR, link=CELL, spread=loguniform(4), record=True)
    ended, begun = sent_out(world, 20, S=3)
    assert len(begun) == 22  # three at first, then one for each but the last
    bars = world.gantt()
    for now in np.linspace(0.1, 0.9 * world.clock, 50):
        assert bars[(bars["start"] <= now) & (now < bars["end"])]["device"].nunique() <= 3
    under = set()
    for i in begun[:3]:
        under.add(i)
    for (i, *_), j in zip(ended, begun[3:], strict=False):
        under.remove(i)
        assert j not in under
        under.add(j)


@pytest.mark.parametrize("select", [at_random, greedy, Policy(tuple(layers(4, 0)))])
def test_only_vehicles_that_are_there_and_idle_are_sent(select):
    world = World(8, **TRAFFIC, seed=3)
    payload, at_work, absent = nbytes(10_000), set(), 0
    how = dict(S=3, down=payload, up=payload, flops=np.full(8, 1e6), quality=np.ones(8), key=(0,))
    with torch.no_grad():
        for i, end in itertools.islice(errands(world, select, **how), 200):
            if end is None:
                assert i not in at_work and world.leaves([i])[0] > world.clock
                absent += np.isinf(world.leaves(np.arange(8))).sum()
                at_work.add(i)
            elif i is not None:
                at_work.remove(i)
    assert absent > 100


def test_a_vehicle_that_leaves_brings_nothing_and_is_missed_when_it_leaves():
    """An errand takes 1.81 s; device 0 leaves after 1 s, for 5 s."""
    world = World(1, device=CAR, link=CELL, churn=leaves(0, 1.0, 6.0))
    ended, begun = sent_out(world, 8, S=1)
    assert ended[0] == (0, 1.0, False)
    assert [e[:1] for e in ended[1:6]] == [(None,)] * 5  # asked each second whether one is there
    assert all(e[1] == PATIENCE for e in ended[1:6])
    assert ended[6][0] == 0 and ended[6][2] and ended[6][1] == pytest.approx(1.81)
    assert world.busy[0] == pytest.approx(0.72 + 2 * 1.0)  # until it left, and twice in full
    assert len(begun) == 3


def test_a_lost_message_ends_the_errand_when_it_should_be_there():
    world = World(2, device=CAR, link=CELL, loss=0.3, seed=1)
    ended, _ = sent_out(world, 60, S=1)
    took = {(round(s, 2), ok) for _, s, ok in ended}
    assert took == {(1.81, True), (1.81, False), (PATIENCE, False)}  # the last: not reached
    ended, _ = sent_out(World(2, device=CAR, link=CELL, crash=1.0), 5, S=2)
    assert not any(ok for *_, ok in ended)


# ---- selectors -----------------------------------------------------------------------------------


def test_cost_by_hand():
    cost = Cost(kappa=2.0, penalty=5.0)
    assert cost(3.0, True, 0.75) == 3.5 and cost(3.0, False, 0.75) == 8.0


def test_greedy_takes_the_least_predicted_cost():
    """Costs: 1 + 1 + 0; it leaves after 1.5 s, 1.5 + 5; 0.4 + 0.4 + 2 (1 - 0.3)."""
    state = np.array([[1.0, 1.0, np.inf, 1.0], [0.8, 0.8, 1.5, 1.0], [0.4, 0.4, 9.0, 0.3]])
    assert greedy(state) == 0 and greedy(state[1:]) == 1
    assert greedy(state, cost=Cost(kappa=0.0)) == 2
    assert greedy(state, cost=Cost(kappa=2.0, penalty=0.1)) == 1


def test_random_choice_is_uniform():
    drawn = np.bincount([at_random(np.zeros((4, 4)), 0, k) for k in range(4000)], minlength=4)
    assert (abs(drawn / 4000 - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)).all()


def test_features_are_finite_and_ordered():
    z = features(np.array([[0.0, 2.0, np.inf, 0.5]]))
    close(z, torch.tensor([[np.log(1e-3), np.log(2.0), np.log(FAR), 0.5]]).float(), 1e-6)


def test_the_policy_depends_neither_on_the_order_nor_on_the_number_of_vehicles():
    policy, rng = Policy(tuple(w.detach() for w in layers(4, 1))), stream("states")
    for _ in range(20):
        state = rng.exponential(size=(7, 4))
        order = rng.permutation(7)
        assert order[policy(state[order])] == policy(state)
        best = policy(state)
        others = np.delete(np.arange(7), best)[:3]
        assert policy(state[[best, *others]]) == 0


def test_action_and_critic_know_who_is_there():
    z, there = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)), torch.ones(2, 5)
    there[0, 3:] = 0
    there = there.bool()
    with torch.no_grad():
        a, Q = weights_of(layers(4, 0), z, there), values_of(layers(8, 0), z, there)
        close(a.sum(1), torch.ones(2), 1e-6)
        assert (a[0, 3:] == 0).all() and (Q[0, 3:] == 0).all() and (a[there] > 0).all()
        fewer = values_of(layers(8, 0), z[:1, :3], there[:1, :3])
        close(Q[0, :3], fewer[0], 1e-6)  # what is not there has no say


# ---- learning ------------------------------------------------------------------------------------


def test_the_reward_is_minus_the_accounted_cost():
    """Without exploration, an episode's rewards are those of the same errands done again."""
    actor, cost, key = layers(4, 2), Cost(), (0, 0)
    how = dict(CHEAP, flipped=0.3, cost=cost, decisions=25)
    made = episode(TRAFFIC, actor, 0.0, how.pop("n"), *how.values(), key)
    world, rng = World(10, **TRAFFIC, seed=("episode", *key)), stream("episode", *key)
    found = np.where(rng.random(10) < 0.3, 0.05, rng.uniform(0.3, 0.9))
    quality, order, costs = np.ones(10), [], {}
    down, up = payloads(torch.zeros(1000))
    setting = dict(S=2, down=down, up=up, flops=rng.choice(CHEAP["flops"], 10), quality=quality)
    policy, at_work = Policy(tuple(w.detach() for w in actor)), {}

    def select(state, *key):
        order.append(features(state))
        return policy(state)

    sent = itertools.count()
    for i, end in itertools.islice(errands(world, select, **setting, key=key), 60):
        if end is None:
            at_work[i] = next(sent)
        elif i is not None:
            quality[i] = found[i] if end[1] else quality[i]
            costs[at_work[i]] = float(cost(*end, quality[i]))
    decisions = iter(enumerate(order))
    assert len(made) >= 20
    for z, there, _, reward, *_ in made:  # in order, but for those that were still under way
        k = next(k for k, seen in decisions if torch.equal(seen, z[there]))
        assert float(reward) == pytest.approx(-costs[k])


def test_training_is_deterministic_and_leaves_global_random_numbers_alone():
    how = dict(CHEAP, episodes=4)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, c = (train_policy(TRAFFIC, **how, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(v, w) for v, w in zip(a.actor, b.actor, strict=True))
    assert not torch.equal(a.actor[0], c.actor[0])
    assert not any(w.requires_grad for w in a.actor)
    assert [w.shape[0] for w in a.actor] == [64, 64, 64, 64, 1, 1]


def test_the_learned_policy_costs_less_than_random_choice():
    traffic = TRAFFIC | dict(spread=loguniform(8))
    policy = train_policy(traffic, **CHEAP, episodes=40)
    cost, means = Cost(), {at_random: [], policy: []}
    for select, found in means.items():
        for seed in range(4):
            world = World(10, **traffic, seed=seed)
            ended, _ = sent_out(world, 60, select=select, mbytes=0.004)
            found.append(np.mean([cost(s, ok, 1.0) for i, s, ok in ended if i is not None]))
    gain = np.subtract(means[at_random], means[policy])
    assert gain.mean() > 3 * gain.std(ddof=1) / 2 and gain.mean() > 0.15 * np.mean(means[at_random])


# ---- training models -----------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [None, loguniform(4)])
def test_all_permanent_honest_and_selected_is_fedasync(spread):
    """Equal links without limit, so that the bytes of entries do not change the order."""
    link = replace(CELL, up=np.inf, down=np.inf)
    worlds = [World(4, device=CAR, link=link, spread=spread) for _ in range(2)]
    how = dict(B=8, eta=0.1, s=polynomial(0.5))
    alike = HOW | how | dict(S=4, probe=0, a_0=0.6)
    a = models(drl_node_selection, 14, task=small(n=4), world=worlds[0], **alike)
    b = models(fedasync, 14, task=small(n=4), world=worlds[1], alpha=0.6, rho=0.0, **how)
    close(a, b)
    assert worlds[0].clock == pytest.approx(worlds[1].clock)


def test_a_merge_by_hand():
    """x <- (1 - a) x + a y, a = a_0 q (1 + tau)^(-1/2); the second of two has tau = 1."""
    task, ledger = small(), Ledger()
    found = values(drl_node_selection, 2, task=task, **HOW | dict(S=2, least=0.0, ledger=ledger))
    images, labels = task.batch(min(200, len(task.order)), 0, "probe")
    x, entries = task.init(), list(ledger.entries.values())
    for tau, (value, extra) in enumerate(found[1:]):
        Y = train(task, np.arange(task.n), task.init(), B=8, E=1, eta=0.1, seed=(0, 0))
        (y,) = [y for y in Y if fingerprint(y) == entries[tau].model]
        q = (task.logits(y, images).argmax(1) == labels).double().mean().item()
        assert entries[tau].quality == q and 0 < q < 1
        a = 0.6 * q * (1 + tau) ** -0.5
        x = (1 - a) * x + a * y
        close(value, x)
        assert ledger.blocks[tau].model == fingerprint(value)
        assert extra["wasted"] == extra["rejected"] == 0
    assert ledger.verify()


def test_bytes_and_cost_by_hand():
    """Equal vehicles that stay: with S = 2, ten errands were sent out and nine are through."""
    task = small()
    world, d = World(task.n, device=CAR, link=CELL), 8 * task.d  # float64
    ledger, cost = Ledger(), Cost(kappa=2.0)
    found = values(
        drl_node_selection, 9, task=task, world=world, **HOW | dict(S=2, ledger=ledger, cost=cost)
    )
    assert world.server_up == world.down.sum() == 10 * (d + 304)
    assert world.server_down == world.up.sum() == 9 * (d + 104)
    flops = work(task, np.arange(task.n), B=8, E=1)
    assert len(set(flops)) == 1
    seconds = 0.06 + (d + 304) / 4e4 + flops[0] / 1e6 + (d + 104) / 2e4
    for (_, extra), entry in zip(found[1:], ledger.entries.values(), strict=True):
        assert extra["cost"] == pytest.approx(seconds + 2.0 * (1 - entry.quality))


def test_wasted_work_changes_nothing_and_costs_the_penalty():
    """Device 0 leaves for good within its errand; device 1 stays."""
    task = small(n=2)
    world = World(2, device=CAR, link=CELL, churn=leaves(0, 0.1))
    ledger = Ledger()
    found = values(
        drl_node_selection, 4, task=task, world=world, **HOW | dict(S=2, probe=0, ledger=ledger)
    )
    assert found[1][1] == {"cost": pytest.approx(0.1 + 5.0), "wasted": 1.0, "rejected": 0.0}
    assert torch.equal(found[1][0], found[0][0]) and len(ledger.entries) == 3
    assert all(extra["wasted"] == 0 for _, extra in found[2:])


def honest_and_flipped(ledger=None, **how):
    """Device 0 of four sends -y; easy data, so that a model of one epoch is a good one."""
    task = Task(n=4, samples=1436, network=logistic(), dtype=torch.float64)
    world = World(4, device=CAR, link=CELL)
    arguments = HOW | dict(S=4, eta=0.5, flipped=(0,), ledger=ledger) | how
    return task, values(drl_node_selection, 24, task=task, world=world, **arguments)


def test_verification_keeps_flipped_models_out():
    ledger = Ledger()
    task, found = honest_and_flipped(ledger)
    rejected = [extra["rejected"] for _, extra in found[1:]]
    assert rejected == [1.0, 0.0, 0.0, 0.0] * 6  # equal vehicles come in turn
    for (before, _), (after, _), no in zip(found, found[1:], rejected, strict=False):
        assert torch.equal(before, after) == bool(no)
    bad = [name for k, name in enumerate(ledger.entries) if k % 4 == 0]
    assert not set(bad) & set(ledger.approvable) and len(ledger.blocks) == 18 and ledger.verify()
    settings = (dict(flipped=(0, 1)), dict(flipped=()), dict(flipped=(0, 1), probe=0))
    ends = torch.stack([honest_and_flipped(**how)[1][-1][0] for how in settings])
    verified, clean, unverified = task.evaluate(ends)[0]
    assert verified > clean - 0.03 and unverified < clean - 0.05


def test_the_quality_that_was_found_is_what_the_selector_sees():
    seen = []

    def select(state, *key):
        seen.append(state[:, 3])
        return 0

    ledger = Ledger()
    honest_and_flipped(ledger, select=select, S=1)
    first = list(ledger.entries.values())[0].quality
    assert (seen[0] == 1).all() and seen[1][0] == first < 0.1 and (seen[1][1:] == 1).all()


def test_a_lost_upload_leaves_no_entry():
    ledger = Ledger()
    world = World(6, device=CAR, link=CELL, loss=0.4)
    found = values(drl_node_selection, 40, world=world, task=small(n=6), **HOW, ledger=ledger)
    lost = sum(extra["wasted"] for _, extra in found)
    assert 10 < lost < 36 and len(ledger.entries) == 40 - lost and ledger.verify()
