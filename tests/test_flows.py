"""Flows that share links max-min fairly: closed forms, examples by hand, two algorithms."""

import numpy as np
import pytest
import torch

from survey_lib.errors import UsageError
from survey_lib.flows import SharedLink, _progressive, _star, finish_times, max_min, star, weigh
from survey_lib.streams import stream

inf = np.inf


def times(src, dst, size, start, up, down):
    """finish_times of lists of numbers."""
    as_floats = [np.asarray(a, float) for a in (size, start, up, down)]
    return finish_times(np.array(src), np.array(dst), *as_floats)


def random_star(key, m, ties=False):
    """m flows into one node: sizes, starts, caps and the node's capacity."""
    rng = stream("star", key)
    if ties:
        size, start, caps = (
            rng.integers(a, b, m).astype(float) for a, b in ((1, 4), (0, 3), (1, 4))
        )
        return float(rng.integers(1, 2 * m)), caps, size, start
    caps = rng.lognormal(0, 1.5, m)
    caps[rng.random(m) < 0.1] = inf
    start = rng.random(m) * rng.choice([0.0, 1.0, 5.0])
    return (
        caps[np.isfinite(caps)].sum() * rng.uniform(0.05, 1.2) + 0.1,
        caps,
        rng.lognormal(0, 2, m),
        start,
    )


def as_network(capacity, caps, size, start):
    """The same star as flows from nodes 0 .. m - 1 to node m."""
    m = len(size)
    up, down = np.append(caps, inf), np.append(np.full(m, inf), capacity)
    return np.arange(m), np.full(m, m), size, start, up, down


# ---- payloads ------------------------------------------------------------------------------------


def test_weigh():
    assert weigh(torch.zeros(3, 5)) == 60
    assert weigh(torch.zeros(3, 5, dtype=torch.float64)) == 120
    assert weigh(torch.zeros(7, dtype=torch.int32)) == 28
    assert weigh(torch.zeros(7, dtype=torch.bool)) == 7
    assert weigh(torch.zeros(0, 9)) == 0 == weigh(())
    assert weigh(1.5) == 8 == weigh(3)
    assert weigh(torch.zeros(100)[:2]) == 8  # a view: what it shows
    assert weigh(torch.zeros(1).expand(5)) == 20  # sent as 5 numbers
    nested = (torch.zeros(2), [torch.zeros(3, dtype=torch.uint8), 1, (2.0, torch.zeros(1))])
    assert weigh(nested) == 8 + (3 + 8 + (8 + 4))
    flags = np.arange(1000) % 3 == 0
    assert weigh(torch.from_numpy(np.packbits(flags))) == 125  # a bit each
    assert weigh(flags) == 1000 and weigh(np.zeros((3, 5))) == 120 and weigh(np.float32(1)) == 8
    assert weigh({"W": torch.zeros(3, 5), "b": np.zeros(5)}) == 100
    for nothing in ("a model", None, {1, 2}):
        with pytest.raises(UsageError, match="cannot be sent; send tensors, arrays, numbers"):
            weigh(nothing)


# ---- closed forms --------------------------------------------------------------------------------


@pytest.mark.parametrize("K", [1, 2, 7])
def test_equal_flows_of_a_star_share_its_capacity(K):
    """K sizes through capacity C take K size / C, unless each is held back by its own link."""
    size, C = 12.0, 3.0
    everyone, hub = np.arange(K), np.full(K, K)
    for own, want in ((inf, K * size / C), (1e9, K * size / C), (0.1, size / min(0.1, C / K))):
        into = times(everyone, hub, [size] * K, [0.5] * K, [own] * (K + 1), [inf] * K + [C])
        np.testing.assert_allclose(into, 0.5 + want, rtol=1e-14)
        out = times(hub, everyone, [size] * K, [0.5] * K, [inf] * K + [C], [own] * (K + 1))
        np.testing.assert_allclose(out, 0.5 + want, rtol=1e-14)


def test_no_flows_and_no_limits():
    assert times([], [], [], [], [1, 1], [1, 1]).shape == (0,)
    got = times([0, 0, 1], [1, 2, 2], [5, 6, 7], [1, 2, 3], [inf] * 3, [inf] * 3)
    np.testing.assert_array_equal(got, [1, 2, 3])


def test_flows_that_share_nothing_run_at_the_slower_end():
    got = times([0, 1], [2, 3], [10, 10], [0, 1], [2, 9, 1, 1], [1, 1, 5, 4])
    np.testing.assert_allclose(got, [10 / 2, 1 + 10 / 4])


def test_sending_and_receiving_do_not_hinder_each_other():
    got = times([0, 1], [1, 0], [10, 10], [0, 0], [1, 1], [1, 1])
    np.testing.assert_allclose(got, [10, 10])


def test_unequal_star_by_hand():
    """Capacity 6, own links 1, 3, 9 of sizes 2, 12, 12. Rates 1, 2.5, 2.5 until t = 2, when the
    first is through and the others have 7 left; then 3, 3: both are through at 2 + 7 / 3."""
    got = times([0, 1, 2], [3, 3, 3], [2, 12, 12], [0, 0, 0], [1, 3, 9, 1], [1, 1, 1, 6])
    np.testing.assert_allclose(got, [2, 2 + 7 / 3, 2 + 7 / 3], rtol=1e-14)


def test_a_flow_is_capped_and_freed_as_others_come_and_go():
    """Capacity 4; a (cap 3, size 10) alone at 3; b (no cap, size 4) comes at 1, when a has 7 left:
    2 each; b is through at 3, a has 3 left and is through at 4."""
    got = times([0, 1], [2, 2], [10, 4], [0, 1], [3, inf, inf], [inf, inf, 4])
    np.testing.assert_allclose(got, [4, 3], rtol=1e-14)


def test_staggered_starts_by_hand():
    """Capacity 1, sizes 2, 2, 2 from 0, 1, 2. Alone: 1 left at 1; halves: 1/2 and 3/2 left at 2;
    thirds: the first is through at 3.5, the others have 1 and 3/2 left; halves: 5.5; alone: 6."""
    for to in (3, 4):  # into one node, and out of one
        ends = ([0, 1, 2], [3] * 3) if to == 3 else ([3] * 3, [0, 1, 2])
        got = times(*ends, [2, 2, 2], [0, 1, 2], [inf] * 3 + [1], [inf] * 3 + [1])
        np.testing.assert_allclose(got, [3.5, 5.5, 6], rtol=1e-14)


def test_a_gap_without_flows_is_idle():
    got = times([0, 1], [2, 2], [2, 3], [0, 10], [inf] * 3, [1, 1, 1])
    np.testing.assert_allclose(got, [2, 13])


def test_two_hops_by_hand():
    """a: 0 -> 2, b: 0 -> 3, c: 1 -> 3; uplink of 0 is 4, downlink of 3 is 2, else no limit. The
    downlink of 3 is the tightest: b, c at 1 each; a takes the other 3 of the uplink. Sizes 6, 4, 8:
    a is through at 2; b, c stay at 1, b is through at 4; c has 4 left, at 2: through at 6."""
    up, down = [4, inf, inf, inf], [inf, inf, inf, 2]
    got = times([0, 0, 1], [2, 3, 3], [6, 4, 8], [0, 0, 0], up, down)
    np.testing.assert_allclose(got, [2, 4, 6], rtol=1e-12)
    # c from t = 1: a, b at 2 until then, have 4, 2 left; then 3, 1: 1 + 4 / 3 and 3; c has 6 left
    got = times([0, 0, 1], [2, 3, 3], [6, 4, 8], [0, 0, 1], up, down)
    np.testing.assert_allclose(got, [1 + 4 / 3, 3, 3 + 6 / 2], rtol=1e-12)


def test_flows_without_limits_beside_limited_ones():
    """Two pairs that cross limited links in two hops, and one flow that meets no limit at all."""
    got = times(
        [0, 0, 1, 1, 2],
        [3, 4, 3, 4, 5],
        [1] * 5,
        [0, 0, 0, 0, 7],
        [1, 1] + [inf] * 4,
        [inf] * 3 + [1, 1, inf],
    )
    np.testing.assert_allclose(got, [2, 2, 2, 2, 7])


# ---- paths ---------------------------------------------------------------------------------------


def test_paths_by_hand():
    """Node 0 sends to 1, 2, 3 and 4 sends to 3; links of 6 in and out, sizes 6. Paths of 1: no link
    is filled. Paths of 2: the uplink of 0 is, exactly. Paths of 3: it gives 2 to each, and 3 -> 3
    has 3. Paths of 9: 2 each, and 4 the rest of 3's downlink."""
    for path, want in ((1, [6] * 4), (2, [3] * 4), (3, [3, 3, 3, 2]), (9, [3, 3, 3, 1.5])):
        ends = np.array([0, 0, 0, 4]), np.array([1, 2, 3, 3])
        got = finish_times(
            *ends, np.full(4, 6.0), np.zeros(4), np.full(5, 6.0), np.full(5, 6.0), path
        )
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_a_path_frees_the_link_for_others_later():
    """Uplink 4, paths of 3, sizes 6 and 6 from 0 and 1: alone at 3 until 1; 2 each until 2.5, when
    the first is through; the second has 3 left, at 3: through at 3.5."""
    links = np.array([4.0, inf, inf])
    for dst in ([1, 2], [1, 1]):
        args = np.array([0, 0]), np.array(dst), np.array([6.0, 6.0]), np.array([0.0, 1.0])
        got = finish_times(*args, links, np.full(3, inf), 3.0)
        np.testing.assert_allclose(got, [2.5, 3.5], rtol=1e-12)


@pytest.mark.parametrize("key", range(20))
def test_a_path_is_a_third_link(key):
    """Shortcut and star agree with progressive filling; far below all links and above them."""
    rng = stream("path", key)
    m, n = int(rng.integers(2, 25)), int(rng.integers(2, 7))
    src, dst = rng.integers(0, n, m), rng.integers(0, n, m)
    size, start = rng.lognormal(0, 1, m), rng.random(m)
    up, down = rng.lognormal(1, 1, n), rng.lognormal(1, 1, n)
    path = float(rng.choice([0.01, 0.3, 1.0, 100.0]))
    got = finish_times(src, dst, size, start, up, down, path)
    np.testing.assert_allclose(got, _progressive(src, dst, size, start, up, down, path), rtol=1e-9)
    assert (got >= start + size / path * (1 - 1e-12)).all()
    if path == 0.01:  # far below every link
        np.testing.assert_allclose(got, start + size / path, rtol=1e-12)
    if path == 100.0:  # above all
        wide = finish_times(src, dst, size, start, up, down)
        np.testing.assert_allclose(got, wide, rtol=1e-9)


# ---- rates ---------------------------------------------------------------------------------------


def test_max_min_textbook_example():
    """Four links and five flows of two links each, filled by hand.

    Links A 1, B 3, C 2, D 10; flows AB, AC, BC, BD, CD. Shares: A 1/2, B 3/3, C 2/3, D 10/2, so
    that AB = AC = 1/2. B has 5/2 left for 2, C has 3/2 for 2: BC = CD = 3/4. B has 7/4 left for BD.
    """
    links = np.array([[0, 0, 1, 1, 2], [1, 2, 2, 3, 3]])
    rates = max_min(links, np.array([1.0, 3.0, 2.0, 10.0]))
    np.testing.assert_allclose(rates, [1 / 2, 1 / 2, 3 / 4, 7 / 4, 3 / 4], rtol=1e-14)


@pytest.mark.parametrize("key", range(20))
def test_max_min_is_feasible_and_every_flow_has_a_bottleneck(key):
    """The definition: a flow crosses a full link on which nobody is faster."""
    rng = stream("max_min", key)
    n, m = 6, 25
    links = np.stack([rng.integers(n, size=m), n + rng.integers(n, size=m)])
    capacity = rng.lognormal(0, 1, 2 * n)
    rates = max_min(links, capacity)
    load = np.bincount(links.ravel(), np.tile(rates, 2), minlength=2 * n)
    assert (load <= capacity * (1 + 1e-12)).all()
    full = load >= capacity * (1 - 1e-9)
    fastest = np.array([max(rates[(links == e).any(0)], default=0) for e in range(2 * n)])
    bottleneck = full[links] & (rates >= fastest[links] * (1 - 1e-9))
    assert bottleneck.any(0).all()


# ---- one algorithm against another ---------------------------------------------------------------


def one_link_after_another(links, capacity, path):
    """Max-min rates by the textbook: the link with the least share is filled, again and again."""
    m = links.shape[1]
    rate, left, open_ = np.full(m, path), capacity.astype(float), np.ones(m, bool)
    while open_.any():
        count = np.bincount(links[:, open_].ravel(), minlength=len(left))
        share = np.where(count, left / np.maximum(count, 1), inf)
        e = int(np.argmin(share))
        now = open_ & ((links == e).any(0) if share[e] < path else True)
        rate[now] = min(share[e], path)
        for f in np.flatnonzero(now):
            left[links[:, f]] -= rate[f]
        left, open_ = np.maximum(left, 0.0), open_ & ~now
    return rate


def anew_at_every_event(src, dst, size, start, up, down, path):
    """The fluid itself: all rates anew whenever a flow begins or ends."""
    links, capacity = np.stack([src, dst + len(up)]), np.concatenate([up, down])
    left, finish, now = size.astype(float), np.full(len(size), -1.0), start.min()
    while (finish < 0).any():
        active = np.flatnonzero((finish < 0) & (start <= now))
        coming = start[start > now].min(initial=inf)
        rate = one_link_after_another(links[:, active], capacity, path)
        step = min((left[active] / rate).min(initial=inf), coming - now)
        left[active] = np.where(np.isinf(rate), 0.0, left[active] - np.minimum(rate, 1e9) * step)
        now = coming if step == coming - now else now + step
        finish[active[left[active] <= 1e-12 * size[active]]] = now
    return finish


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("key", range(25))
def test_progressive_filling_is_the_fluid(key, ties):
    """Ends that leave slower flows as they are, on random networks; sizes, starts, capacities of a
    few values, so that many things happen at once, or of any."""
    rng = stream("fluid", key)
    m, n = int(rng.integers(2, 30)), int(rng.integers(2, 8))
    src, dst = rng.integers(0, n, m), rng.integers(0, n, m)
    if ties:
        size, start = rng.integers(1, 4, m) * 1.0, rng.integers(0, 3, m) * 1.0
        up, down = rng.choice([1.0, 2.0, inf], n), rng.choice([1.0, 2.0, 4.0], n)
    else:
        size, start = rng.lognormal(0, 1, m), rng.random(m)
        up, down = rng.lognormal(1, 1, n), rng.lognormal(1, 1, n)
    for path in (inf, 0.7):
        how = src, dst, size, start, up, down, path
        want = anew_at_every_event(*how)
        np.testing.assert_allclose(_progressive(*how), want, rtol=1e-9)
        np.testing.assert_allclose(finish_times(*how), want, rtol=1e-9)


def test_a_star_in_closed_form_is_the_shared_link():
    caps, size = np.array([1.0, 2.0, 5.0]), np.array([3.0, 9.0, 1.0])
    start, same = np.array([0.0, 1.0, 0.5]), np.ones(3)
    for capacity in (8.0, 100.0):  # enough for all at once
        np.testing.assert_allclose(star(capacity, caps, size, start), start + size / caps)
        np.testing.assert_allclose(_star(capacity, caps, size, start), start + size / caps)
    for capacity in (0.5, 2.9):  # equals
        want = _star(capacity, same, 4 * same, 7 * same)
        np.testing.assert_allclose(star(capacity, same, 4 * same, 7 * same), want, rtol=1e-14)
    for k in range(3):  # all but one equal
        some = [same.copy(), 4 * same, 7 * same]
        some[k][1] *= 0.5
        np.testing.assert_allclose(star(1.2, *some), _star(1.2, *some), rtol=1e-14)


@pytest.mark.parametrize("ties", [False, True])
def test_shared_link_equals_progressive_filling(ties):
    for key in range(60):
        capacity, caps, size, start = random_star(key, 2 + key % 25, ties)
        want = _progressive(*as_network(capacity, caps, size, start))
        np.testing.assert_allclose(_star(capacity, caps, size, start), want, rtol=1e-11)
        np.testing.assert_allclose(
            finish_times(*as_network(capacity, caps, size, start)), want, rtol=1e-11
        )


@pytest.mark.parametrize("key", range(10))
def test_a_star_turned_round_takes_as_long(key):
    capacity, caps, size, start = random_star(key, 12)
    src, dst, _, _, up, down = as_network(capacity, caps, size, start)
    out = finish_times(dst, src, size, start, down, up)
    np.testing.assert_allclose(out, finish_times(src, dst, size, start, up, down), rtol=1e-12)


@pytest.mark.parametrize("key", range(30))
def test_shared_link_never_exceeds_its_capacity_and_serves_every_byte(key):
    """Between events each rate is min(cap, level) and their sum <= capacity; no byte is lost."""
    capacity, caps, size, start = random_star(100 + key, 15)
    link, served, last = SharedLink(capacity), np.zeros(15), 0.0
    order = list(np.argsort(start, kind="stable"))
    through = set()
    while order or link.flows:
        coming = start[order[0]] if order else inf
        now = min(coming, link.next_time())
        present = list(link.flows)
        rates = np.array([min(caps[j], link.level) for j in present])
        if present:
            assert rates.sum() <= capacity * (1 + 1e-9)
            assert rates.sum() >= min(capacity, caps[present].sum()) * (1 - 1e-9)  # and none idle
            served[present] += rates * (now - last)
        last = now
        if coming <= link.next_time():
            j = order.pop(0)
            link.add(now, int(j), size[j], caps[j])
        else:
            time, j = link.pop()
            assert time == now and j not in through
            through.add(j)
    np.testing.assert_allclose(served, size, rtol=1e-9)
    assert len(through) == 15 and link.next_time() == inf


def test_a_link_serves_the_same_flow_again_and_again():
    """3 devices, capacity 1; each sends 1 byte again as soon as the last is through."""
    link, ends = SharedLink(1.0), []
    for j in range(3):
        link.add(0.0, j, 1.0, inf)
    for _ in range(30):
        time, j = link.pop()
        ends.append((round(time, 9), j))
        link.add(time, j, 1.0, inf)
    assert ends == [(3.0 * (1 + k // 3), k % 3) for k in range(30)]


@pytest.mark.parametrize("key", range(15))
def test_general_flows_end_no_sooner_than_their_links_allow(key):
    """Random two-hop flows: no flow beats its own links, no link carries more than its capacity,
    and the order of the flows does not matter."""
    rng = stream("general", key)
    n, m = 5, 18
    src, dst = rng.integers(n, size=m), rng.integers(n, size=m)
    size, start = rng.lognormal(0, 1, m), rng.random(m) * (key % 3)
    up, down = rng.lognormal(0, 1, n), rng.lognormal(0, 1, n)
    end = finish_times(src, dst, size, start, up, down)
    assert (end >= start + size / np.minimum(up[src], down[dst]) * (1 - 1e-9)).all()
    for capacity, at in ((up, src), (down, dst)):
        for node in range(n):
            flows = at == node
            for t in end[flows]:  # what is through by t fits between the first start and t
                done = flows & (end <= t)
                assert size[done].sum() <= capacity[node] * (t - start[flows].min()) * (1 + 1e-9)
    order = rng.permutation(m)
    again = finish_times(src[order], dst[order], size[order], start[order], up, down)
    np.testing.assert_allclose(again, end[order], rtol=1e-9)


def test_scaling_sizes_and_capacities():
    """Twice the bytes at twice the rate take as long; twice the bytes alone take twice as long."""
    capacity, caps, size, start = random_star(7, 20)
    star = as_network(capacity, caps, size, 0 * start)
    end = finish_times(*star)
    src, dst, size, start, up, down = star
    np.testing.assert_allclose(finish_times(src, dst, 2 * size, start, 2 * up, 2 * down), end)
    np.testing.assert_allclose(finish_times(src, dst, 2 * size, start, up, down), 2 * end)


def test_a_large_star_is_quick_and_exact():
    """20 000 equal flows with own links: all run at C / m, through together."""
    m = 20_000
    star = as_network(5.0, np.full(m, 1.0), np.full(m, 3.0), np.zeros(m))
    np.testing.assert_allclose(finish_times(*star), 3 * m / 5, rtol=1e-9)
