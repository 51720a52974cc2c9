"""The asynchronous pipeline: which version of the weights a pass uses, against hand-made networks,
delayed SGD, and a loop of two real processes."""

import itertools
import os

import numpy as np
import pytest
import torch
from conftest import close, leaves, models, small, values
from torch.nn import functional as F

from survey_lib.errors import UsageError
from survey_lib.methods.pipelines import gpipe, one_f_one_b_flush, pipedream, spectrain
from survey_lib.models import cnn, mlp
from survey_lib.passes import Held, Passes, newest, predicted, stashed, vertical
from survey_lib.pipeline import endless, one_by_one, one_f_one_b, plan, play, split
from survey_lib.presets import Device, Link
from survey_lib.world import World

FREE = Link(0.0, np.inf, np.inf)
HIDDEN = (12, 14, 10)
CUTS = {1: (), 2: (2,), 4: (1, 2, 3)}
RULES = (stashed, newest, vertical, predicted)


def task(hidden=HIDDEN, **how):
    return small(1, network=mlp(*hidden), **how)


def serial(task, x, B, seed, m, part=slice(None)):
    """The gradient of the whole network at x on mini-batch m."""
    images, labels = task.batch(B, seed, m)
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(task.network(x, images), labels), x)[0]


def momentum_sgd(task, steps, *, eta, B, momentum=0.0, seed=0):
    x, v, out = task.init(), 0, []
    for m in range(steps + 1):
        out.append(x)
        v = momentum * v + serial(task, x, B, seed, m)
        x = x - eta * v
    return torch.stack(out)


def equal_stages(K):
    """A world on which every pass of every stage takes a second, however large the stage is."""
    return World(K, link=FREE)


# ---- which weights


@pytest.mark.parametrize("weights", RULES)
def test_one_stage_is_serial_sgd(weights):
    t, how = task(), dict(eta=0.2, B=14, seed=3, momentum=0.5)
    got = models(pipedream, 40, task=t, world=World(1), cuts=(), weights=weights, **how)
    close(got, momentum_sgd(t, 40, **how))
    assert (got[-1] - got[0]).abs().max() > 0.05


@pytest.mark.parametrize("weights", RULES)
def test_one_item_in_flight_is_serial_sgd(weights):
    t, how = task(), dict(eta=0.2, B=14)
    got = models(
        pipedream, 20, task=t, world=World(4), cuts=(1, 2, 3), schedule=one_by_one,
        weights=weights, **how
    )  # fmt: skip
    close(got, momentum_sgd(t, 20, **how))


def test_a_step_of_zero_makes_all_rules_equal_and_still():
    for weights in RULES:
        t = task()
        got = models(pipedream, 8, task=t, world=World(4), cuts=(1, 2, 3), weights=weights,
                     eta=0.0, B=8, momentum=0.9)  # fmt: skip
        assert torch.equal(got, t.init().expand(9, -1))


@pytest.mark.parametrize("K", CUTS)
def test_vertical_sync_is_delayed_sgd_bit_for_bit(K):
    """w(t + 1) = w(t) - eta grad f(w(max(0, t - K + 1))), each gradient by the synchronous
    executor."""
    t, B, eta, steps = task(), 8, 0.3, 80
    got = models(pipedream, steps, task=t, world=World(4), cuts=CUTS[K], eta=eta, B=B,
                 weights=vertical)  # fmt: skip
    stages, world = split(t.network, CUTS[K], t.dtype), World(4)
    events, w = plan(world, stages, one_f_one_b, [B]), [t.init()]
    for m in range(steps):
        g = play(stages, w[max(0, m - K + 1)], t.batch(B, 0, m), [B], events)
        w.append(w[m] - eta * g)
    assert torch.equal(got, torch.stack(w))
    assert (got[-1] - got[0]).abs().max() > 0.05


@pytest.mark.parametrize("network", [mlp(*HIDDEN), cnn(3, 4)])
def test_stashed_gradients_are_those_of_a_network_of_mixed_versions(network):
    """At stage k of K, mini-batch m meets version max(0, m - K + 1 + k) in both passes: the whole
    network, put together from these parts, has the gradient that every stage applies."""
    t, B, eta, steps = small(1, network=network), 8, 0.3, 25
    K = len(t.network.layers)
    cuts = tuple(range(1, K))
    w = models(pipedream, steps, task=t, world=World(4), cuts=cuts, eta=eta, B=B)
    for m in range(steps):
        mixed = torch.empty_like(w[0])
        for k, stage in enumerate(split(t.network, cuts, t.dtype)):
            mixed[stage.params] = w[max(0, m - K + 1 + k)][stage.params]
        close(w[m + 1], w[m] - eta * serial(t, mixed, B, 0, m))
    assert (w[-1] - w[0]).abs().max() > 0.05


def test_without_versions_the_backward_pass_meets_the_newest_weights():
    """Two layers on two stages. Stage 0 does F0 F1 B0 F2 B1 ..., stage 1 F0 B0 F1 B1 ...: stage 1
    is never stale, and the weights of stage 0 change between F1 and B1. By hand, with biases left
    as they are: h = relu(X W0^T + b0), dz = softmax - onehot, dh = dz W1 (W1 of the forward pass,
    which is stage 1's newest), dW0 = (dh 1[h > 0])^T X. At stage 0 no pass needs its own W0, so
    that stashing and no stashing agree for two stages of one layer each."""
    t, how = task((12,)), dict(eta=0.3, B=8)
    a, b = (
        models(pipedream, 12, task=t, world=World(2), cuts=(1,), weights=weights, **how)
        for weights in (newest, stashed)
    )
    close(a, b)
    three = dict(task=task(), world=World(3), cuts=(1, 2), **how)
    a, b = (models(pipedream, 12, weights=weights, **three) for weights in (newest, stashed))
    assert (a - b).abs().max() > 1e-5


def test_a_backward_pass_with_other_weights_by_hand():
    """z = W2 relu(W1 x): with W1, W2 forward and V2 backward, dL/dW2 = dz^T h with the old h, and
    dL/dh = dz V2; the stage before applies it to its old input."""
    t = task((5, 6))
    stages = split(t.network, (1,), t.dtype)  # 64-5 | 5-6-10
    x, (images, labels) = t.init(), t.batch(4, 0, 0)
    other = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    passes = Passes(stages)
    passes.enter(0, images, labels)
    for s in (0, 1):
        passes.forward(s, 0, x[stages[s].params])
    got = [passes.backward(s, 0, other[stages[s].params]) for s in (1, 0)]

    (W0, b0, W1, b1, W2, b2), (_, _, V1, _, V2, _) = (t.network.views(v) for v in (x, other))
    inputs = images.flatten(1)
    h0 = (inputs @ W0.T + b0).relu()
    h1 = (h0 @ W1.T + b1).relu()
    dz = (torch.softmax(h1 @ W2.T + b2, 1) - F.one_hot(labels, 10)) / 4
    d1 = dz @ V2 * (h1 > 0)
    d0 = d1 @ V1 * (h0 > 0)
    parts = [d1.T @ h0, d1.sum(0), dz.T @ h1, dz.sum(0)]
    close(got[0], torch.cat([v.flatten() for v in parts]))
    close(got[1], torch.cat([(d0.T @ inputs).flatten(), d0.sum(0)]))


def test_prediction_without_momentum_repeats_the_last_gradient():
    """Stage 0 of 4 forwards with w - ahead eta g_last; the last stage is never ahead backward."""
    t = task()
    stage = split(t.network, (), t.dtype)[0]
    own = Held(stage, 0, t.init(), 0.1, 0.0, {})
    g = torch.randn(t.d, generator=torch.Generator().manual_seed(1), dtype=t.dtype)
    own.step(0, g)
    close(predicted(own, "F", 1, 3), t.init() - 0.1 * g - 3 * 0.1 * g)
    close(predicted(own, "F", 1, 0), own.w)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_prediction_is_exact_for_a_constant_gradient(momentum):
    """At the fixed point v = g / (1 - momentum) every step is eta v: s steps later the weights are
    w - s eta v. Without momentum that is so from the first step on."""
    t = task()
    own = Held(split(t.network, (), t.dtype)[0], 0, t.init(), 0.1, momentum, {})
    g = torch.ones(t.d, dtype=t.dtype)
    own.v = g / (1 - momentum)
    seen = [predicted(own, "F", 0, s) for s in range(5)]
    for s in range(5):
        close(own.w, seen[s])
        own.step(s, g)


def test_spectrain_is_pipedream_with_predicted_weights_and_momentum():
    t, how = task(), dict(cuts=(1, 2, 3), eta=0.02, B=8)
    a = models(spectrain, 10, task=t, world=World(4), **how)
    b = models(pipedream, 10, task=t, world=World(4), weights=predicted, momentum=0.9, **how)
    assert torch.equal(a, b)
    assert not torch.equal(a, models(pipedream, 10, task=t, world=World(4), momentum=0.9, **how))


# ---- staleness and versions


def steady(K, b=2.0, items=40, link=FREE):
    """[(what, k, i, ahead)] of a pipeline of K stages whose passes take 1 s and b s."""
    from types import SimpleNamespace

    stages = [SimpleNamespace(forward=1.0, backward=b, output_bytes=8)] * K
    device = Device(1.0, 1e9, 1.0, 2.0, 1.5, "assumed")
    world = World(K, device=device, link=link)
    steps = endless(world, stages, 1, schedule=one_f_one_b)
    out = []
    for e, ahead in steps:
        out.append((e.what, e.stage, e.item, ahead))
        if (e.what, e.stage, e.item) == ("B", 0, items):
            return out, world


@pytest.mark.parametrize("K", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("b", [1.0, 2.0])
def test_own_updates_between_forward_and_backward(K, b):
    """K - 1 - k in steady state, fewer for the first ones: min(i, K - 1 - k)."""
    updates, at = [0] * K, {}
    for what, k, i, _ in steady(K, b)[0]:
        if what == "F":
            at[k, i] = updates[k]
        else:
            assert updates[k] - at[k, i] == min(i, K - 1 - k)
            updates[k] += 1


@pytest.mark.parametrize("K", [1, 2, 4, 8])
def test_versions_alive(K):
    t = task((8,) * 7) if K == 8 else task()
    cuts = {8: tuple(range(1, 8))}.get(K) or CUTS[K]
    stages = split(t.network, cuts, t.dtype)
    most = {}
    for weights in RULES:
        seen, most[weights] = {}, [0] * K
        held = [Held(v, s, t.init()[v.params], 0.1, 0.0, seen) for s, v in enumerate(stages)]
        steps = endless(World(K), stages, 8, schedule=one_f_one_b)
        for e, ahead in itertools.islice(steps, 30 * K):
            own = held[e.stage]
            weights(own, e.what, e.item, ahead)
            most[weights][e.stage] = max(most[weights][e.stage], own.versions())
            if e.what == "B":
                own.step(e.item, torch.zeros_like(own.w))
    assert most[stashed] == [K - k for k in range(K)]
    assert most[vertical] == [K] * K
    assert most[newest] == most[predicted] == [1] * K


def test_updates_ahead():
    """Equal passes, K = 4: the paper's floor(k / 2) + K - k - 1 forward and floor(k / 2) backward
    agree at odd k and at k = 0 and count the mini-batch's own update at k = 2, which is not ahead
    of it. The first mini-batches have fewer ahead."""
    K = 4
    for what, k, i, ahead in steady(K, 1.0)[0]:
        paper = k // 2 + (K - k - 1 if what == "F" else 0)
        if K <= i < 36:
            assert ahead == paper - (k == 2)
        assert ahead <= paper
    assert all(ahead == 0 for *_, ahead in steady(1)[0])


@pytest.mark.parametrize("K", [2, 4])
@pytest.mark.parametrize("link", [FREE, Link(0.5, 8.0, 8.0)])
def test_ahead_is_what_really_happens(K, link):
    """Recounted from the operations themselves, whatever the link: updates of the stage after the
    pass began and before the mini-batch's backward pass at stage 0, without its own."""
    steps = steady(K, 2.0, link=link)[0]
    place = {v[:3]: j for j, v in enumerate(steps)}
    for j, (_, k, i, ahead) in enumerate(steps):
        if i > 34:
            continue
        home = place["B", 0, i]
        between = [v for v in steps[j + (steps[j][0] == "B") : home] if v[:2] == ("B", k)]
        count = sum(v[2] != i for v in between)
        # an update that began before the mini-batch was back may end after: it is not ahead
        assert count - 1 <= ahead <= count


# ---- time and bytes


@pytest.mark.parametrize("K", [1, 2, 4, 8])
def test_the_fill_is_paid_once(K):
    """Equal stages and free links: N mini-batches take (N + K - 1) (f + b) seconds until the last
    one is through; busy, (N + a bit)(f + b) each."""
    for N in (1, 7, 30):
        _, world = steady(K, 2.0, items=N - 1)
        assert world.clock == pytest.approx((N + K - 1) * 3.0, rel=1e-12)


def test_steady_period_is_the_slowest_stage():
    t, rng = task(), np.random.default_rng(0)
    stages = split(t.network, (1, 2, 3), t.dtype)
    work = np.array([v.forward + v.backward for v in stages]) * 8.0
    for _ in range(5):
        speed = rng.uniform(1e6, 4e6, 4)
        device = [Device(v, 1e9, 1.0, 2.0, 1.5, "assumed") for v in speed]
        world, clock = World(4, device=device, link=FREE), []
        for e, _ in endless(world, stages, 8, schedule=one_f_one_b):
            if (e.what, e.stage) == ("B", 0):
                clock.append(world.clock)
            if len(clock) == 101:
                break
        assert clock[100] - clock[50] == pytest.approx(50 * (work / speed).max(), rel=0.02)


def test_bytes_and_accounts():
    """Two messages a cut and mini-batch; what is charged until the clock is what lies before it."""
    t, B, N = task(), 16, 30
    link = Link(0.001, 2e6, 2e6)
    world = World(4, link=link, record=True)
    models(pipedream, N, task=t, world=world, cuts=(1, 2, 3), eta=0.1, B=B)
    per_batch = 2 * 8 * B * sum(HIDDEN)
    assert N * per_batch <= world.up.sum() <= (N + 3) * per_batch
    assert world.up.sum() == world.down.sum() and world.lost == 0
    assert N * 6 <= world.messages <= (N + 3) * 6
    bars = world.gantt()
    assert bars["end"].max() <= world.clock * (1 + 1e-12) and bars["start"].min() >= 0
    stages = split(t.network, (1, 2, 3), t.dtype)
    for d, stage in enumerate(stages):
        one = (stage.forward + stage.backward) * B / world.speed[d]
        assert N * one * (1 - 1e-9) <= world.busy[d] <= (N + 4) * one
    assert (world.busy + world.wait <= world.clock * (1 + 1e-9)).all()


def test_lost_messages_are_sent_again_and_change_no_order():
    t, how = task(), dict(cuts=(1, 2, 3), eta=0.1, B=8)
    calm, lossy = World(4), World(4, loss=0.3)
    a = models(pipedream, 30, task=t, world=calm, **how)
    b = models(pipedream, 30, task=t, world=lossy, **how)
    assert torch.equal(a, b)  # a stage keeps the order of its own operations
    assert lossy.clock > calm.clock and lossy.up.sum() > calm.up.sum()
    # 1 - 0.7^2 of all sendings are lost, which makes 1 / 0.49 sendings a message
    rate = lossy.lost / lossy.up.sum()
    sent = lossy.messages
    assert abs(rate - 0.51) < 5 * np.sqrt(0.51 * 0.49 / sent)


def test_a_device_that_is_off_holds_up_the_pipeline():
    t, how = task(), dict(cuts=(1,), eta=0.1, B=8)
    calm = World(2)
    a = models(pipedream, 10, task=t, world=calm, **how)
    begin = calm.clock / 2
    world = World(2, churn=leaves(1, begin, begin + 2.5))
    b = models(pipedream, 13, task=t, world=world, **how)
    pause = [j for j in range(13) if torch.equal(b[j], b[j + 1])]
    assert len(pause) == 3  # seconds until it is seen to be back
    assert torch.equal(torch.stack([x for j, x in enumerate(b) if j not in pause]), a)
    assert world.clock == pytest.approx(calm.clock + 3, rel=1e-9)
    for method in (gpipe, one_f_one_b_flush):
        world = World(2, churn=leaves(1, 0.0))
        got = models(method, 3, task=t, world=world, M=2, **how)
        assert torch.equal(got, t.init().expand(4, -1)) and world.clock == 3.0


# ---- memory


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_memory_by_formula(momentum):
    """K - k versions (the newest is one), gradient, momentum, and K - k saved activations."""
    t, B, K = task((128, 128, 128)), 16, 4
    stages = split(t.network, (1, 2, 3), t.dtype)
    P = np.array([v.parameter_bytes for v in stages])
    A = B * np.array([v.saved_bytes for v in stages])
    flight = K - np.arange(K)
    copies = {stashed: flight, vertical: K, newest: 1, predicted: 1}
    for weights, versions in copies.items():
        found = values(pipedream, 12, task=t, world=World(4), cuts=(1, 2, 3), eta=0.1, B=B,
                       weights=weights, momentum=momentum)  # fmt: skip
        expected = (versions + 1 + (momentum > 0)) * P + flight * A
        assert found[-1][1]["memory"] == expected.max()


def test_too_small_a_memory_is_named():
    t = task((128, 128, 128))
    how = dict(cuts=(1, 2, 3), eta=0.1, B=16)
    small_one = Device(1e9, 2.8e5, 1.0, 2.0, 1.5, "assumed")
    large = Device(1e9, 1e9, 1.0, 2.0, 1.5, "assumed")
    devices = [large, small_one, large, large]
    with pytest.raises(UsageError, match="stage 1 needs .* bytes are missing") as error:
        models(pipedream, 8, task=t, world=World(4, device=devices), **how)
    with pytest.raises(UsageError, match="stage 1 needs"):
        models(gpipe, 1, task=t, world=World(4, device=devices), M=4, **how)
    need, missing = (
        int(str(error.value).split(word)[0].split()[-1])
        for word in (" bytes and device", " bytes are missing")
    )
    assert missing == need - 2.8e5
    two = [Device(1e9, 6e5, 1.0, 2.0, 1.5, "assumed")] * 2  # stages share a device
    with pytest.raises(UsageError, match="device 1 has 600000"):
        models(gpipe, 1, task=t, world=World(2, device=two), M=4, devices=(0, 1, 1, 1), **how)


def test_peak_activations_of_both_flushed_schedules():
    t, B, M, K = task((128, 128, 128)), 32, 16, 4
    A = np.array([v.saved_bytes for v in split(t.network, (1, 2, 3), t.dtype)]) * B // M
    for method, held in ((gpipe, np.full(K, M)), (one_f_one_b_flush, K - np.arange(K))):
        found = values(method, 2, task=t, world=World(4), cuts=(1, 2, 3), eta=0.1, B=B, M=M)
        assert found[0][1] == {} and found[-1][1] == {"activations": (held * A).max()}


# ---- a loop of two real processes


def process(rank, folder, x, cut, batches, eta):
    """One stage with blocking messages in the order of its 1F1B list, stashing its weights."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    t = task()
    stage = split(t.network, (cut,), t.dtype)[rank]
    w, kept, waiting = x[stage.params].clone(), {}, []
    order = [(op, m) for tick in one_f_one_b(2, len(batches)) for s, op, m in tick if s == rank]
    width = HIDDEN[cut - 1]
    for op, m in order:
        images, labels = batches[m]
        if op == "F":
            own, a = w.clone().requires_grad_(), images
            if rank == 1:
                a = torch.empty(len(labels), width, dtype=t.dtype)
                dist.recv(a, 0)
                a.requires_grad_()
            out = stage.call(own, a)
            kept[m] = own, a, out
            if rank == 0:
                waiting.append(dist.isend(out.detach().contiguous(), 1))
        else:
            own, a, out = kept.pop(m)
            if rank == 1:
                g, da = torch.autograd.grad(F.cross_entropy(out, labels), (own, a))
                waiting.append(dist.isend(da.contiguous(), 0))
            else:
                back = torch.empty_like(out)
                dist.recv(back, 1)
                (g,) = torch.autograd.grad(out, own, back)
            w = w - eta * g
    for message in waiting:
        message.wait()
    torch.save(w, f"{folder}/w{rank}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_the_replay(tmp_path):
    t, B, N, eta, cut = task(), 8, 20, 0.2, 2
    batches = [t.batch(B, 0, m) for m in range(N)]
    torch.multiprocessing.spawn(process, (str(tmp_path), t.init(), cut, batches, eta), nprocs=2)
    theirs = torch.cat([torch.load(tmp_path / f"w{rank}") for rank in range(2)])
    ours = models(pipedream, N, task=t, world=World(2), cuts=(cut,), eta=eta, B=B)[-1]
    close(theirs, ours)
    assert (ours - t.init()).abs().max() > 0.05
