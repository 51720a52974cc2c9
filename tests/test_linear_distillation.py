import itertools
from functools import partial

import numpy as np
import pytest
import torch
from conftest import close, leaves
from scipy import stats

from survey_lib.evidence.run import Case, run
from survey_lib.methods.linear_distillation import (
    beyond,
    cone,
    digit_pair,
    factor_geometry,
    factor_optimisation_bias,
    factor_sample_size,
    gaussian,
    gradient_descent,
    hard,
    hard_labels,
    least_norm,
    linear_distillation,
    max_margin,
    mixture,
    random_minimiser,
    risk_bound,
    soft,
)
from survey_lib.problems import LinearTeacher
from survey_lib.streams import stream
from survey_lib.world import World

D = 6


def problem(seed=0, **how):
    return LinearTeacher(gaussian, **{"d": D, "samples": 10, "exact": True, "seed": seed} | how)


def students(method=linear_distillation, rounds=10, *, task=None, world=None, **how):
    """[(w_n, extra)] for n = 0 .. rounds."""
    steps = method(task or problem(), world or World(1), **how)
    return list(itertools.islice(steps, rounds + 1))


def samples(n, seed=0, d=D):
    """X (n, d), the soft labels of a teacher, and the teacher."""
    task = problem(seed, d=d, samples=max(n, 1))
    return task.x[:n], soft(task.x[:n] @ task.teacher), task.teacher


def projector(X):
    """P onto the span of the rows, by an orthonormal basis."""
    Q, _ = torch.linalg.qr(X.T)
    return Q @ Q.T


# ---- where gradient flow ends ------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 6])
def test_the_limit_is_the_projection_of_the_teacher(n):
    """w_n = X^T (X X^T)^-1 X w*, from the labels alone; n = d: w* itself."""
    X, y, w = samples(n)
    close(least_norm(X, y, None), X.T @ torch.linalg.solve(X @ X.T, X @ w), 1e-12)
    close(least_norm(X, y, None), projector(X) @ w, 1e-12)
    if n == D:
        close(least_norm(X, y, None), w, 1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [2, 4, 9])
def test_gradient_descent_from_zero_gets_there(n, seed):
    X, y, w = samples(n, seed)
    found = gradient_descent(X, y, torch.zeros(D).double(), steps=4000)
    close(found, projector(X) @ w if n < D else w, 1e-10)


def test_a_start_outside_the_span_stays_in_the_end():
    """The limit is w_n + (I - P) w_0: the negative of the formula above."""
    X, y, w = samples(3)
    start = torch.arange(1.0, D + 1).double()
    found = gradient_descent(X, y, start, steps=4000)
    close(found, projector(X) @ w + start - projector(X) @ start, 1e-10)
    assert (found - projector(X) @ w).norm() > 1


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("scale", [0.3, 2.0])
def test_deep_linear_networks(layers, scale):
    """Descent from a balanced start ends where flow's invariant |v|^2 = a^2 says, but for an error
    that is proportional to the step."""
    X, y, _ = samples(3)
    end = random_minimiser(X, y, None, 0, scale=scale, layers=layers, draws=1)[0]
    start = torch.from_numpy(stream("start", 0).standard_normal((1, D)))[0]
    start *= scale / start.norm()
    errors = []
    for eta in (0.4, 0.2):
        found = gradient_descent(X, y, start, steps=round(900 / eta), eta=eta, layers=layers)
        close(X @ found, torch.logit(y), 1e-9)  # it fits the labels in any case
        errors.append(float((found - end).norm()))
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15) and errors[1] < 0.05


def test_max_margin():
    """By hand: of (1, 1) and -(1, -1), mirrored (1, -1), the separator is (1, 0)."""
    X, y = torch.tensor([[1.0, 1], [-1, 1]]).double(), torch.tensor([1.0, 0.0]).double()
    close(max_margin(X, y, None), torch.tensor([1.0, 0.0]).double(), 1e-8)
    for n in (1, 5, 20):
        X, y, w = samples(n, 1)
        margin = (2 * hard(X @ w) - 1) * (X @ max_margin(X, hard(X @ w), None))
        assert margin.min() == pytest.approx(1, abs=1e-6)
        best = max_margin(X, hard(X @ w), None)
        for delta in torch.eye(D).double():  # no shorter one separates as well
            for step in (1e-3, -1e-3):
                other = best + step * delta
                scale = 1 / ((2 * hard(X @ w) - 1) * (X @ other)).min()
                assert (scale * other).norm() > best.norm() - 1e-9


def test_gradient_descent_on_hard_labels_tends_to_max_margin():
    X, _, w = samples(4)
    y, zero = hard(X @ w), torch.zeros(D).double()
    best = torch.nn.functional.normalize(max_margin(X, y, None), dim=0)
    gaps = []
    for steps in (100, 1000, 10000):  # in the logarithm of the steps only
        found = gradient_descent(X, y, zero, steps=steps)
        gaps.append(float((found / found.norm() - best).norm()))
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 0.7 * gaps[0]
    assert found.norm() > 2 * gradient_descent(X, y, zero, steps=100).norm()  # without end


# ---- linear_distillation -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_angle_to_the_teacher_never_grows(seed):
    task = problem(seed, d=20, samples=30)
    W = torch.stack([w for w, _ in students(rounds=30, task=task)])
    risk, angle = (1 - task.evaluate(W)[0]), task.evaluate(W)[1]
    assert (np.diff(angle) <= 1e-9).all() and (np.diff(risk) <= 1e-9).all()
    assert angle[0] == np.pi / 2 and risk[0] == 0.5
    assert risk[19] > 0 and (risk[20:] == 0).all()  # n = d: the teacher
    for n in (1, 7):  # cos = |P w*| / |w*|
        shadow = (projector(task.x[:n]) @ task.teacher).norm() / task.teacher.norm()
        assert np.cos(angle[n]) == pytest.approx(float(shadow), abs=1e-12)
    found = students(factor_sample_size, 30, task=task)
    assert all(torch.equal(a, b) for a, (b, _) in zip(W, found, strict=True))


def test_hard_labels_give_neither():
    """The angle grows with some samples, and n = d samples are not enough."""
    grown = 0
    for seed in range(5):
        task = problem(seed, d=20, samples=30)
        W = torch.stack([w for w, _ in students(hard_labels, 30, task=task)])
        angle = task.evaluate(W)[1]
        grown += (np.diff(angle) > 1e-3).sum()
        assert angle[20] > 0.2
    assert grown > 10


def test_the_student_knows_what_it_was_told():
    """w_n depends on the samples and the labels, not on the teacher."""
    task = problem()
    again = problem()
    again.teacher = task.teacher + 0.0
    labels = [soft(x @ task.teacher) for x in task.x]
    told = iter(labels)
    again.teacher = torch.full((D,), torch.nan).double()
    found = students(labels=lambda z: next(told), task=again)
    for (a, _), (b, _) in zip(students(task=task), found, strict=True):
        assert torch.equal(a, b)


def test_bytes_loss_and_absence():
    world = World(1)
    assert [e["samples"] for _, e in students(rounds=4, world=world)] == [0, 1, 2, 3, 4]
    assert world.down[0] == 4 * 8 and world.up[0] == 0 and world.clock > 0
    for world in (World(1, loss=1.0), World(1, churn=leaves(0, 0))):
        found = students(rounds=4, world=world)
        assert all(e["samples"] == 0 and not w.any() for w, e in found)
        assert world.clock > 0
    world = World(1, loss=0.5)
    found, task = students(rounds=10, world=world), problem()
    n = found[-1][1]["samples"]
    assert 1 <= n < 10
    reached = [a[1]["samples"] < b[1]["samples"] for a, b in itertools.pairwise(found)]
    X = task.x[:10][torch.tensor(reached)]
    close(found[-1][0], projector(X) @ task.teacher if n < D else task.teacher, 1e-9)


def test_more_rounds_than_samples():
    found = students(rounds=15)
    close(found[-1][0], problem().teacher, 1e-9)
    assert found[-1][1]["samples"] == 10


# ---- the three factors -------------------------------------------------------------------------


def test_minimisers_have_one_loss_and_zero_scale_is_the_shortest():
    task = problem(d=20, samples=10)
    W = students(factor_optimisation_bias, 10, task=task, scale=3.0, draws=50)[-1][0]
    y, z = soft(task.x @ task.teacher), W @ task.x.T
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        z, y.expand(50, -1), reduction="none"
    )
    loss = loss.mean(1)
    assert (loss - loss[0]).abs().max() < 1e-12
    shortest = students(task=task)[-1][0]
    assert (W.norm(dim=1) > shortest.norm()).all()
    for layers in (1, 2, 3):
        same = students(factor_optimisation_bias, 10, task=task, scale=0.0, layers=layers, draws=3)
        close(same[-1][0], shortest.expand(3, -1), 1e-12)


def test_random_minimisers_are_where_descent_from_their_starts_ends():
    X, y, _ = samples(3)
    starts = torch.from_numpy(stream("start", 0).standard_normal((2, D)))
    starts *= 2 / starts.norm(dim=1, keepdim=True)
    ends = random_minimiser(X, y, None, 0, scale=2.0, draws=2)
    for start, end in zip(starts, ends, strict=True):
        close(gradient_descent(X, y, start, steps=1500), end, 1e-10)


def test_a_longer_start_is_worse():
    """The mean angle over random starts grows with their length: 50 tasks, 3 standard errors."""
    gaps = []
    for seed in range(50):
        task = problem(seed, d=20, samples=10)
        X, y = task.x, soft(task.x @ task.teacher)
        W = [random_minimiser(X, y, None, seed, scale=s, draws=20) for s in (0.0, 1.0, 10.0)]
        angle = [task.evaluate(w)[1].mean() for w in W]
        gaps.append(np.diff(angle))
    gaps = np.array(gaps)
    assert (gaps.mean(0) > 3 * gaps.std(0) / 50**0.5).all()


def test_with_enough_samples_the_start_is_forgotten():
    task = problem()
    W = students(factor_optimisation_bias, 8, task=task, scale=5.0, draws=4)[-1][0]
    close(W, task.teacher.expand(4, -1), 1e-9)


@pytest.mark.parametrize("most", [30, 44])
def test_in_a_narrow_cone_one_sample_is_enough(most):
    """angle(w*, x_1) + angle(w*, x) < 90 degrees: risk exactly 0."""
    for seed in range(5):
        task = LinearTeacher(cone(most), d=50, samples=1, tests=2000, seed=seed)
        assert task.evaluate(students(rounds=1, task=task)[-1][0][None])[0][0] == 1


def test_a_wide_cone_needs_many():
    task = LinearTeacher(cone(80), d=50, samples=50, seed=0)
    W = torch.stack([w for w, _ in students(rounds=50, task=task)])
    risk = 1 - task.evaluate(W)[0]
    assert risk[1] > 0.2 and risk[5] > 0.05 and risk[50] == 0


@pytest.mark.parametrize("d, most", [(3, 90), (20, 90), (50, 80), (50, 30), (5, 60)])
def test_angles_in_a_cone_follow_the_closed_form(d, most):
    """Kolmogorov-Smirnov of 4000 angles against 1 - p; no sample is outside."""
    w, x = cone(most)(np.random.default_rng(0), 4000, d)
    angle = np.arccos(((x @ w).abs() / x.norm(dim=1)).clamp(max=1).numpy())
    assert angle.max() <= np.radians(most) + 1e-6
    assert stats.kstest(angle, lambda t: 1 - beyond(t, d=d, most=most)).pvalue > 0.01
    assert beyond(0.0, d=d, most=most) == 1 and beyond(np.radians(most), d=d, most=most) == 0
    both = torch.sign(x @ w).mean()
    assert abs(both) < 3 / 4000**0.5
    rest = x - (x @ w)[:, None] * w  # no direction across w is preferred
    mean = (rest / rest.norm(dim=1, keepdim=True)).mean(0)
    assert mean.norm() < 4 / 4000**0.5


def test_a_cone_of_90_degrees_is_isotropic():
    """In 3 dimensions p(theta) = cos(theta), for the area of a cap."""
    theta = np.linspace(0, np.pi / 2, 7)
    np.testing.assert_allclose(beyond(theta, d=3), np.cos(theta), atol=1e-12)


@pytest.mark.parametrize("d, most", [(3, 60), (3, 90), (5, 75)])
def test_the_bound_holds(d, most):
    """For every beta and n: mean risk over 300 draws <= p(beta) + p(pi / 2 - beta)^n + 3 errors."""
    risks = []
    for seed in range(300):
        task = LinearTeacher(cone(most), d=d, samples=8, tests=200, seed=seed)
        W = torch.stack([w for w, _ in students(rounds=8, task=task)])
        risks.append(1 - task.evaluate(W)[0])
    risks = np.array(risks)
    mean, error = risks.mean(0), risks.std(0) / 300**0.5
    p = partial(beyond, d=d, most=most)
    for n in range(1, 9):
        beta = np.linspace(0, np.pi / 2, 50)
        assert (mean[n] <= p(beta) + p(np.pi / 2 - beta) ** n + 3 * error[n] + 1e-9).all()
        assert risk_bound(p, n) <= risk_bound(p, n - 1)
    if most == 60:
        assert risk_bound(p, 8) < 0.2  # it says something


def test_factor_geometry_yields_the_bound():
    task, p = LinearTeacher(cone(60), d=3, samples=5, tests=10), partial(beyond, d=3, most=60)
    found = students(factor_geometry, 5, task=task, p=p)
    assert [e["bound"] for _, e in found] == [risk_bound(p, n) for n in range(6)]
    assert found[0][1]["bound"] == 1
    lossy = students(factor_geometry, 5, task=task, p=p, world=World(1, loss=1.0))
    assert all(e["bound"] == 1 for _, e in lossy)


# ---- data and problem --------------------------------------------------------------------------


def test_risk_of_isotropic_data_is_the_angle():
    """angle / pi against 5000 samples: within 4 standard errors."""
    task, sampled = problem(d=20, samples=12), problem(d=20, samples=12, exact=False)
    W = torch.stack([w for w, _ in students(rounds=12, task=task)])
    exact, counted = (1 - t.evaluate(W)[0] for t in (task, sampled))
    assert (abs(exact - counted) < 4 * np.sqrt(exact * (1 - exact) / 5000) + 1e-9).all()


def test_evaluate_by_hand():
    task = problem(d=2, samples=1)
    task.teacher = torch.tensor([1.0, 0.0]).double()
    W = torch.tensor([[2.0, 0], [0, 1], [-1, 0], [1, 1], [0, 0]]).double()
    risk, angle = task.evaluate(W)
    np.testing.assert_allclose(angle, np.pi * np.array([0, 0.5, 1, 0.25, 0.5]), atol=1e-12)
    np.testing.assert_allclose(1 - risk, [0, 0.5, 1, 0.25, 0.5], atol=1e-12)
    assert task.guess == 0.5 and task.init().shape == (2,)


def test_mixture_has_a_margin():
    w, x = mixture(2.0)(np.random.default_rng(0), 500, 5)
    _, plain = gaussian(np.random.default_rng(0), 500, 5)
    assert (x @ w).abs().min() >= 1
    close((x @ w).abs(), (plain @ w).abs() + 1)
    close(x - (x @ w)[:, None] * w, plain - (plain @ w)[:, None] * w)


def test_digit_pair():
    """Whitened principal components, and a teacher that tells the two digits apart."""
    w, x = digit_pair(3, 8)(np.random.default_rng(0), 100, 20)
    again, other = digit_pair(3, 8)(np.random.default_rng(1), 100, 20)
    assert x.shape[1] == 20 and len(x) > 300
    close(x.T @ x / len(x), torch.eye(20).double(), 1e-9)
    close(w, again)
    assert not torch.equal(x, other)
    task = LinearTeacher(digit_pair(3, 8), d=20, samples=40)
    assert len(task.x) == 40 and len(task.x_test) == len(x) - 40


def test_runs_repeat_and_differ_by_seed():
    case = Case(linear_distillation, {}, dict(sample=gaussian), {}, dict(rounds=5), LinearTeacher)
    a, b, c = case.run(0), case.run(0), case.run(1)
    assert a.equals(b) and not a.equals(c)
    assert list(a["samples"]) == [0, 1, 2, 3, 4, 5]


# ---- claims ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_claim_soft_labels_are_enough_from_d_samples_on():
    for seed in range(3):
        how = dict(rounds=20, seed=seed)
        a, b = (
            run(m, LinearTeacher(gaussian, exact=True, seed=seed), World(1), **how)["accuracy"]
            for m in (linear_distillation, hard_labels)
        )
        assert a.iloc[-1] == 1 and b.iloc[-1] < 0.9
