import itertools

import numpy as np
import pytest
import torch
from conftest import batches, close, leaves, models, small, values
from torch.nn import functional as F

from survey_lib.channel import analog, digital
from survey_lib.evidence.run import final, run
from survey_lib.methods.distillation import federated_distillation_fd, local_only
from survey_lib.methods.federated_distillation import (
    averages,
    cfd,
    coded,
    faug,
    fd_wireless_hfd,
    gaussian,
    held_labels,
    leaked,
    mean_samples,
)
from survey_lib.methods.personal_models import public_rows
from survey_lib.methods.server_sync import fedavg
from survey_lib.models import cnn, mlp
from survey_lib.partition import dirichlet, lacking
from survey_lib.soft_labels import decode, number, points, quantise
from survey_lib.tasks import Mixed, redealt
from survey_lib.training import Task, train
from survey_lib.world import World

C, D, N = 10, 64, 6
HOW = dict(K=4, B=8, eta=0.2)


def lacks(n=N, missing=4, **how):
    return small(n, partition=lacking(missing), **{"samples": 40 * n} | how)


def mixed(**how):
    how = dict(n=4, samples=120, networks=(mlp(5), cnn(2, 3)), dtype=torch.float64) | how
    return Mixed("digits", **how)


def state(method, task, world, rounds, **how):
    steps = method(task, world, **how)
    for _ in itertools.islice(steps, rounds + 1):
        pass
    return steps.gi_frame.f_locals


# ---- faug --------------------------------------------------------------------------------------


def test_after_augmentation_all_labels_are_equally_frequent():
    task, world = lacks(), World(N)
    data = state(faug, task, world, 1, **HOW)["data"]
    before, after = held_labels(task, range(N)), held_labels(data, range(N))
    assert ((before == 0).sum(1) == 4).all()
    assert (after == before.max(1, keepdims=True)).all()
    for i in range(N):  # the own samples are all there, and none of another's
        own = data.rows(i)
        assert (own[: len(task.rows(i))] == task.rows(i)).all()
        assert (own[len(task.rows(i)) :] >= len(task.y)).all()
    assert torch.equal(data.x[: len(task.x)], task.x)
    assert torch.equal(data.x_test, task.x_test)


def test_generated_samples_look_like_their_label():
    """A network trained on all data knows most of them, and they are in the range of pixels."""
    task = lacks(n=10, samples=600)
    data = state(faug, task, World(10), 1, **HOW)["data"]
    x, y = data.x[len(task.x) :], data.y[len(task.y) :]
    assert len(y) > 400 and x.min() >= 0 and x.max() <= 1
    whole = Task(n=1, dtype=torch.float64, network=mlp(32))
    judge = train(whole, [0], whole.init(), E=15, B=20, eta=0.2, seed=0)[0]
    right = (whole.logits(judge, x).argmax(1) == y).double().mean()
    assert right > 0.7, right
    assert len(x.flatten(1).unique(dim=0)) == len(x)


def test_the_generator_by_hand():
    """Two classes on a line along (1, 1): means, one direction, standard deviations 1 and 2."""
    e = torch.tensor([1.0, 1.0]).double() / 2**0.5
    steps = torch.tensor([-1.0, 0, 1]).double()[:, None]
    x = torch.cat([steps * e, 2 * steps * e + 10])
    y = torch.tensor([0, 0, 0, 1, 1, 1])
    (mean, U, s), draw = gaussian(x, y, 3, q=1)
    close(mean, torch.tensor([[0.0, 0], [10, 10], [0, 0]]).double())
    close(U.abs(), e.abs()[None])
    close(s, torch.tensor([[1.0], [2.0], [0.0]]).double())
    drawn = draw(torch.ones(2000, dtype=torch.long), np.random.default_rng(0)) - 10
    close(drawn[:, 0], drawn[:, 1], 1e-9)
    assert drawn.max() <= 2 * e[0] + 1e-9  # not beyond the seeds
    assert (drawn @ e < 2 * 2**0.5).all() and (drawn @ e).mean() < 0.1


def test_without_lacking_labels_there_is_no_traffic():
    def even(y, n, *key):
        parts = [[] for _ in range(n)]
        for label in np.unique(y):
            for i, rows in enumerate(np.array_split(np.flatnonzero(y == label)[: 3 * n], n)):
                parts[i].append(rows)
        return [np.concatenate(p) for p in parts]

    task, worlds = small(partition=even, samples=600), [World(N), World(N)]
    found = models(faug, 3, task=task, world=worlds[0], **HOW)
    plain = models(federated_distillation_fd, 3, task=task, world=worlds[1], **HOW)
    assert torch.equal(found, plain)
    assert worlds[0].totals() == worlds[1].totals()


def rare(few):
    """A partition: device i has `few` samples of the labels i, i + 1, i + 2, i + 3 and 20 of each
    of the others."""

    def split(y, n, *key):
        parts, order = [[] for _ in range(n)], [list(np.flatnonzero(y == c)) for c in range(C)]
        for i in range(n):
            for c in range(C):
                m = few if (c - i) % C < 4 else 20
                parts[i] += [order[c].pop() for _ in range(m)]
        return [np.array(p) for p in parts]

    return split


@pytest.mark.parametrize("redundant, leakage", [(0, 1.0), (2, 4 / 6), (4, 0.5), (99, 0.4)])
@pytest.mark.parametrize("few, seeds", [(2, 2), (3, 1), (5, 5)])
def test_leakage(few, seeds, redundant, leakage):
    """Rare labels, of which there are as many seeds as of others: targets / (targets + redundant
    labels), 1 without any, 4 / 10 if all ten are named."""
    task = small(partition=rare(few), samples=1400)
    found = values(faug, 2, task=task, redundant=redundant, seeds=seeds, **HOW)
    assert found[0][1]["leakage"] == 0
    assert found[2][1]["leakage"] == pytest.approx(leakage)


@pytest.mark.parametrize("redundant", [0, 2, 4, 99])
@pytest.mark.parametrize("few", [0, 2])
def test_targets_that_come_with_fewer_seeds_are_not_hidden(few, redundant):
    """The flags of the targets and the seeds of the redundant labels only, or two of the targets
    and five of others: the server reads the targets off."""
    task = small(partition=rare(few), samples=1400)
    found = values(faug, 2, task=task, redundant=redundant, seeds=5, **HOW)
    assert found[2][1]["leakage"] == 1
    if not few:
        assert values(faug, 2, task=lacks(), redundant=redundant, **HOW)[2][1]["leakage"] == 1


def test_leakage_by_hand():
    """Device 0: targets 0, without a seed, and 1, with one as the redundant labels 2, 3 have: (1 +
    1/3) / 2 = 2/3. Device 1: targets 0, 1 with two seeds as the redundant label 2 has: 2/3; label
    3 is redundant with one seed, and hides neither. Device 2: its target is all it names: 1."""
    target = np.array([[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 1]]).astype(bool)
    named = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 1]]).astype(bool)
    sent = np.array([[0, 1, 1, 1, 1], [2, 2, 2, 1, 2], [0, 2, 2, 2, 1]])
    for k, by_hand in enumerate((2 / 3, 2 / 3, 1.0)):
        some = slice(k, k + 1)
        assert leaked(target[some], named[some], sent[some]) == pytest.approx(by_hand)
    assert leaked(target, named, sent) == pytest.approx(7 / 9)


def test_faug_bytes():
    """Up 2 B of flags and 4 D + 1 B a seed, once; down 4 (C D + q D + C q)."""
    task = lacks(dtype=torch.float32)
    worlds = [World(N), World(N)]
    values(faug, 3, task=task, world=worlds[0], seeds=3, redundant=2, **HOW)
    values(federated_distillation_fd, 3, task=task, world=worlds[1], **HOW)
    np.testing.assert_array_equal(worlds[0].up - worlds[1].up, 2 + 2 * 3 * (4 * D + 1))
    np.testing.assert_array_equal(worlds[0].down - worlds[1].down, 4 * (C * D + 10 * D + C * 10))


def test_without_seeds_of_a_label_it_is_not_generated():
    """Nobody names a redundant label, and lacking ones are not there: nothing can be learned."""
    task, worlds = lacks(), [World(N), World(N)]
    found = models(faug, 3, task=task, world=worlds[0], redundant=0, **HOW)
    assert torch.equal(found, models(federated_distillation_fd, 3, task=task, **HOW))
    assert (worlds[0].up > 0).all()


def test_seeds_are_training_samples_of_the_device():
    task = lacks()
    found = state(faug, task, World(N), 1, **HOW)
    for i, own in zip(found["on"], found["own"], strict=True):
        assert set(own) <= set(task.rows(i))
        counts = np.bincount(task.y[own], minlength=C)
        assert counts.max() <= 5 and (counts > 0).sum() == 4  # the redundant ones


def test_faug_in_front_of_fedavg():
    task = lacks()
    found = models(faug, 3, task=task, then=fedavg, S=N, **HOW)
    assert found.shape == (4, task.d)
    wireless = values(faug, 2, task=task, then=fd_wireless_hfd, uses=300, **HOW)
    assert wireless[2][1] == {"uses": 600, "leakage": 1.0}
    data = state(faug, task, World(N), 1, then=fedavg, S=N, **HOW)["data"]
    close(found, models(fedavg, 3, task=data, S=N, **HOW))


def test_devices_that_get_no_generator_keep_what_they_have():
    task = lacks()
    plain = dict(task=task, **HOW)
    lost = models(faug, 3, world=World(N, loss=1.0), **plain)
    close(lost, models(local_only, 3, **plain))
    away = World(N, churn=leaves(2, 0))
    data = state(faug, task, away, 2, **HOW)["data"]
    assert (data.rows(2) == task.rows(2)).all() and len(data.rows(3)) > len(task.rows(3))
    assert away.up[2] == away.down[2] == 0


# ---- cfd ---------------------------------------------------------------------------------------


def autograd_step(task, x, rows, target, eta):
    x = x.clone().requires_grad_()
    log_p = torch.log_softmax(task.network(x, task.x[rows]), -1)
    (g,) = torch.autograd.grad(-(target * log_p).sum(-1).mean(), x)
    return x.detach() - eta * g


@pytest.mark.parametrize("b, dual", [(32, True), (32, False), (1, True), (2, True), (8, False)])
def test_cfd_by_autograd(b, dual):
    task, m = small(n=3, samples=60, partition=dirichlet(0.5)), 20
    G, hard = public_rows(task, m, 0), F.one_hot(task.y, C).double()
    how = dict(K=2, B=8, eta=0.3)
    found = models(cfd, 3, task=task, public=m, b_up=b, b_down=b, dual=dual, K_pub=3, **how)
    Y, x, labels = [task.init()] * 3, task.init(), None

    def read(p):
        return p if b == 32 else quantise(p, b).double() / (2**b - 1)

    for r in range(3):
        close(found[r], x, 1e-10)
        said = []
        for i in range(3):
            y = Y[i]
            if labels is not None:
                y = on_public(task, G, y, labels, i, (0, r, "public"))
            for batch in batches(task, i, (0, r), K=2, B=8):
                y = autograd_step(task, y, batch, hard[batch], 0.3)
            Y[i] = y
            said.append(read(task.logits(y, task.x[G]).softmax(-1)))
        mean = sum(said) / 3
        x = on_public(task, G, x, mean, 0, (0, r, "server"))
        labels = read(task.logits(x, task.x[G]).softmax(-1)) if dual else read(mean)
    close(found[3], x, 1e-10)


def on_public(task, G, x, target, i, key):
    """Three steps on batches of 8 of the public samples, as device i draws them."""
    table = torch.zeros(len(task.y), C).double().index_copy(0, G, target)
    for batch in batches(redealt(task, [G.numpy()] * 3), i, key, K=3, B=8):
        x = autograd_step(task, x, batch, table[batch], 0.3)
    return x


@pytest.mark.parametrize("b_up, b_down", [(32, 32), (1, 1), (1, 32), (8, 2)])
def test_cfd_bytes(b_up, b_down):
    """Without delta coding: 4 C m or, behind 2 bytes, m log2 N bits, whatever the network."""

    def size(b):
        return 4 * C * 30 if b == 32 else 2 + -(-(points(b, C) ** 30 - 1).bit_length() // 8)

    for width in (4, 30):
        task, world = small(network=mlp(width), dtype=torch.float32), World(N)
        values(
            cfd, 3, task=task, world=world, public=30, b_up=b_up, b_down=b_down, delta=False, **HOW
        )
        assert (world.up == 3 * size(b_up)).all() and (world.down == 3 * size(b_down)).all()
    assert size(1) == 2 + 13  # 30 log2(10) = 99.7 bits


def test_delta_coding_changes_bytes_only():
    task, worlds = small(network=mlp(8)), [World(N), World(N)]
    how = dict(task=task, public=60, **HOW | dict(K=20))
    a = models(cfd, 8, world=worlds[0], **how)
    b = models(cfd, 8, world=worlds[1], delta=False, **how)
    assert torch.equal(a, b)
    assert (worlds[0].up < worlds[1].up).all() and (worlds[0].down < worlds[1].down).all()


def test_what_is_sent_can_be_read():
    p = torch.softmax(3 * torch.randn(2, 40, C, generator=torch.Generator().manual_seed(0)), -1)
    old = number(quantise(p.roll(1, 1), 2))
    sent, read, numbers = coded(p, 2, [old[0], None], True)
    for k, before in enumerate((old[0], None)):
        assert (decode(bytes(sent[k].tolist()), before, points(2, C), 40) == numbers[k]).all()
    close(read, quantise(p, 2).float() / 3)
    sent, read, _ = coded(p, 32, [None, None], True)
    assert torch.equal(read, p) and torch.equal(torch.stack(sent), p)


def test_public_samples_are_nobodys():
    task = small()
    G = public_rows(task, 50, 3)
    assert not set(G.tolist()) & set(task.order.tolist()) and len(set(G.tolist())) == 50


def test_cfd_keeps_receivers_apart():
    """A device that misses labels is sent changes against what it has."""

    class Mute(World):
        def scatter(self, chosen, payloads):
            reached = super().scatter(chosen, payloads)
            self.count = getattr(self, "count", 0) + 1
            return reached[reached != 2] if self.count == 2 else reached

    task = small()
    after = state(cfd, task, Mute(N), 2, public=30, **HOW)
    first = state(cfd, task, World(N), 1, public=30, **HOW)
    assert (after["had_down"][2] == first["had_down"][2]).all()
    assert (after["had_down"][3] != first["had_down"][3]).any()
    assert torch.equal(after["labels"][2], first["labels"][2])


def test_cfd_without_messages():
    task = small()
    x = models(cfd, 3, task=task, world=World(N, loss=1.0), public=30, **HOW)
    assert (x == x[0]).all()
    after = state(cfd, task, World(N, loss=1.0), 3, public=30, **HOW)
    assert torch.equal(after["Y"], models(local_only, 3, task=task, **HOW)[-1])
    away = World(N, churn=leaves(2, 0))
    after = state(cfd, task, away, 3, public=30, **HOW)
    assert (after["Y"][2] == task.init()).all() and away.up[2] == away.down[2] == 0


def test_cfd_of_unlike_networks():
    task = mixed()
    x = models(cfd, 3, task=task, public=40, **HOW)
    assert x.shape == (4, task.parts[0].d) and (x[3] != x[0]).any()
    after = state(cfd, task, World(4), 3, public=40, **HOW)
    assert (after["Y"][1, task.parts[1].d :] == 0).all()


# ---- fd_wireless_hfd ---------------------------------------------------------------------------


@pytest.mark.parametrize("channel", [analog, digital])
def test_without_noise_fd_is_fd(channel):
    task = small(partition=dirichlet(0.3))
    how = dict(task=task, gamma=0.7, **HOW)
    free = dict(hybrid=False, channel=channel, snr_db=np.inf, uses=200)
    close(
        models(fd_wireless_hfd, 5, **free, **how),
        models(federated_distillation_fd, 5, **how),
        1e-10,
    )


@pytest.mark.parametrize("hybrid", [True, False])
def test_without_weight_it_is_local_training(hybrid):
    task = small(partition=dirichlet(0.3))
    found = models(fd_wireless_hfd, 3, task=task, gamma=0.0, hybrid=hybrid, **HOW)
    close(found, models(local_only, 3, task=task, **HOW), 1e-10)


@pytest.mark.parametrize("network", [None, mlp(5), cnn(2, 3)])
def test_hfd_by_autograd(network):
    """Device by device; the pairs are those of the round before."""
    task = small(n=3, samples=60, partition=dirichlet(0.3), network=network)
    found = models(fd_wireless_hfd, 4, task=task, gamma=0.6, snr_db=np.inf, **HOW)
    y = task.y[task.order]
    held = [label for label in range(C) if (y == label).any()]
    means = torch.stack([task.x[task.order][y == label].mean(0) for label in held])
    Y, s = [task.init()] * 3, None
    for r in range(4):
        close(found[r], torch.stack(Y), 1e-10)
        told = []
        for i in range(3):
            for b in batches(task, i, (0, r), K=4, B=8):
                x = Y[i].clone().requires_grad_()
                loss = F.cross_entropy(task.network(x, task.x[b]), task.y[b])
                if s is not None:
                    log_p = torch.log_softmax(task.network(x, means), -1)
                    loss = loss - 0.6 / C * (s * log_p).sum()
                Y[i] = Y[i] - 0.2 * torch.autograd.grad(loss, x)[0]
            told.append(task.logits(Y[i], means).softmax(-1))
        has = torch.from_numpy(held_labels(task, range(3))[:, held] > 0).double()
        s = (has[..., None] * torch.stack(told)).sum(0) / has.sum(0)[:, None]
    close(found[4], torch.stack(Y), 1e-10)


def test_mean_samples():
    task, world = small(partition=dirichlet(0.3), dtype=torch.float32), World(N)
    data, able = mean_samples(task, world, np.arange(N))
    y = task.y[task.order]
    for label in range(C):
        mean = task.x[task.order][y == label].mean(0)
        close(data.x[len(task.x) + label], mean, 1e-6)
    assert able.all() and (data.sizes == task.sizes).all()
    assert (world.up == 4 * C * (D + 1)).all() and (world.down == 4 * C * D).all()
    away, able = mean_samples(task, World(N, loss=1.0), np.arange(N))
    assert not able.any() and (away.x[len(task.x) :] == 0).all()


def test_hfd_bytes_and_channel_uses():
    task, world = small(dtype=torch.float32), World(N)
    found = values(fd_wireless_hfd, 3, task=task, world=world, uses=500, **HOW)
    m = C * (C + 1)
    assert (world.up == 4 * C * (D + 1) + 3 * 4 * m).all()
    assert (world.down == 4 * C * D + 3 * 4 * m).all()
    assert [extra["uses"] for _, extra in found] == [0, 500, 1000, 1500]
    coarse = World(N)
    values(fd_wireless_hfd, 3, task=task, world=coarse, hybrid=False, channel=digital, **HOW)
    b = int(1000 / 12 * np.log2(1 + 60)) // m  # 10 dB, six devices
    assert b == 4 and (coarse.up == 3 * np.ceil(b * m / 8)).all()


def test_noise_spoils_targets():
    task = small(partition=dirichlet(0.3))
    gaps = []
    clean = state(fd_wireless_hfd, task, World(N), 3, snr_db=np.inf, **HOW)["target"]
    for snr in (30.0, 10.0, -10.0):
        noisy = state(fd_wireless_hfd, task, World(N), 3, snr_db=snr, **HOW)
        assert (noisy["target"] >= 0).all()
        close(noisy["target"].sum(-1), noisy["known"].double())
        gaps.append(float((noisy["target"] - clean).abs().max()))
    assert gaps[0] < gaps[1] < gaps[2]


def test_averages_by_hand():
    """Class 0: two devices; class 1: a sum below 0 is clipped; class 2: nobody has it."""
    sums = torch.tensor([[0.5, 1.5, 0.0], [2.0, -0.5, 0.0], [0.0, 0.0, 0.0]])
    v = torch.cat([sums.flatten(), torch.tensor([2.3, 1.0, 0.4])])[None]
    s, clear = averages(v, 3)
    assert clear.tolist() == [[True, True, False]]
    close(s[0, 0], torch.tensor([0.25, 0.75, 0.0]))
    close(s[0, 1], torch.tensor([1.0, 0.0, 0.0]))


def test_few_uses_keep_what_was_heard():
    task = small(partition=dirichlet(0.3))
    after = [
        state(fd_wireless_hfd, task, World(N), r, uses=10, snr_db=np.inf, **HOW)["heard"]
        for r in (1, 2, 3)
    ]
    changed = [int((a != b).sum()) for a, b in itertools.pairwise(after)]
    assert all(0 < c <= 10 for c in changed)
    none = models(fd_wireless_hfd, 3, task=task, uses=0, **HOW)
    close(none, models(local_only, 3, task=task, **HOW), 1e-10)


def test_hfd_loss_and_absence():
    task = small(partition=dirichlet(0.3))
    lost = models(fd_wireless_hfd, 3, task=task, world=World(N, loss=1.0), **HOW)
    close(lost, models(local_only, 3, task=task, **HOW), 1e-10)
    away = World(N, churn=leaves(2, 0))
    Y = models(fd_wireless_hfd, 3, task=task, world=away, **HOW)
    assert (Y[:, 2] == Y[0, 2]).all() and away.up[2] == away.down[2] == 0
    later = World(N, churn=leaves(2, 0, 1e-4))  # it comes back without the mean samples
    after = state(fd_wireless_hfd, task, later, 4, snr_db=np.inf, **HOW)
    assert not after["able"][2] and (after["V"][2] == 0).all()
    assert (after["Y"][2] != task.init()).any()
    assert (after["V"][3] != 0).any()


def test_who_misses_the_mean_samples_trains_alone():
    """Device 2 loses the first broadcast, that of the mean samples, and hears all targets."""

    class Misses(World):
        first = True

        def broadcast(self, chosen, payload, **how):
            reached = super().broadcast(chosen, payload, **how)
            lost, self.first = 2 if self.first else -1, False
            return reached[reached != lost]

    task = small(partition=dirichlet(0.3))
    Y = models(fd_wireless_hfd, 4, task=task, world=Misses(N), snr_db=np.inf, **HOW)
    alone = models(local_only, 4, task=task, **HOW)
    close(Y[:, 2], alone[:, 2], 1e-10)
    others = np.arange(N) != 2
    assert (Y[-1, others] != alone[-1, others]).any(1).all()
    after = state(fd_wireless_hfd, task, Misses(N), 4, snr_db=np.inf, **HOW)
    assert after["target"][2].any() and not after["known"][2].any()


def test_wireless_unlike_networks():
    task = mixed(partition=dirichlet(0.5))
    for hybrid in (True, False):
        Y = models(fd_wireless_hfd, 2, task=task, hybrid=hybrid, **HOW)
        assert torch.equal(Y[0], task.start) and (Y[2] != Y[0]).any(1).all()
        assert (Y[:, 1, task.parts[1].d :] == 0).all()


# ---- claims ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_claim_shared_means_repair_unlike_data():
    gains = []
    for seed in range(3):
        task = Task(n=10, samples=600, network=mlp(32), partition=dirichlet(0.3), seed=seed)
        how = dict(K=20, B=16, eta=0.2, seed=seed, rounds=10, every=10)
        accuracy = [
            final(run(fd_wireless_hfd, task, World(10, seed=seed), hybrid=h, **how))
            for h in (True, False)
        ]
        gains.append(accuracy[0] - accuracy[1])
    assert min(gains) > 0.1, gains


@pytest.mark.slow
def test_claim_generated_samples_help_where_labels_lack():
    gains = []
    for seed in range(3):
        task = Task(n=10, samples=600, network=mlp(32), partition=lacking(4), seed=seed)
        how = dict(K=20, B=16, eta=0.2, seed=seed, rounds=10, every=10)
        accuracy = [
            final(run(m, task, World(10, seed=seed), **how))
            for m in (faug, federated_distillation_fd)
        ]
        gains.append(accuracy[0] - accuracy[1])
    assert min(gains) > 0.1, gains
