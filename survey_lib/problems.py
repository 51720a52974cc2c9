"""Problems that are no classification by one shared model, with the interface of a Task.

A problem has n devices, d parameters, dtype, sizes (n,), init() -> (d,), evaluate(X (m, d)) ->
(accuracy (m,), loss (m,)) and guess, the accuracy of a run that diverged; what is not defined is
NaN. Where every device has an optimum of its own, row i of X belongs to device i.
"""

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F

from survey_lib.data import Data, load
from survey_lib.errors import UsageError
from survey_lib.models import logistic
from survey_lib.streams import stream, uniform
from survey_lib.training import Task


class Averaging:
    """n devices hold Gaussian vectors, `start` (n, d), and want their mean; loss: the squared
    distance to it. Boyd et al., IEEE Trans. Inf. Theory 2006."""

    guess = np.nan

    def __init__(self, *, n: int = 16, d: int = 40, seed: int = 0, dtype=torch.float64):
        self.n, self.d, self.dtype, self.sizes = n, d, dtype, np.ones(n, int)
        draws = stream(seed, "averaging").standard_normal((n, d))
        self.start = torch.from_numpy(draws).to(dtype)

    def init(self) -> Tensor:
        """(d,): zeros; the devices begin at `start`."""
        return torch.zeros(self.d, dtype=self.dtype)

    def evaluate(self, X: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """(NaN, squared distance to the mean of the start), each (m,)."""
        error = (X - self.start.mean(0)).square().sum(1)
        return np.full(len(X), np.nan), error.numpy()


class Personal:
    """A problem in which each device has a target of its own: row i of X is judged on device i, a
    single model on all of them."""

    def _rows(self, X: Tensor) -> Tensor:
        """(n, d): the model that each device uses."""
        if len(X) not in (1, self.n):
            raise UsageError(f"{len(X)} models for {self.n} devices; expected one, or one each")
        return X.expand(self.n, -1)

    def _pooled(self, X, *values):
        """The values (n,) of each device, or their mean where all used one model."""
        return tuple(v if len(X) == self.n else v.mean(keepdims=True) for v in values)


class ClusteredMeans(Personal):
    """n devices estimate the mean of their own distribution, with an unequal number of samples.

    Device i belongs to one of two clusters: its position in the plane is near the cluster's centre,
    its target (d,) is +apart / 2 or -apart / 2 in every coordinate, and it has sizes[0] or sizes[1]
    samples, by chance, with Gaussian noise of standard deviation `noise` around the target. start
    (n, d): the devices' sample means. W (n, n): similarity exp(-distance^2 / (2 width^2)) of
    positions, 0 where below 0.01. loss: squared error to the device's own target. After the mean
    estimation of Vanhaesebrouck et al., AISTATS 2017.
    """

    guess = np.nan

    def __init__(
        self,
        *,
        n: int = 100,
        d: int = 2,
        apart: float = 2.0,
        noise: float = 6.0,
        few: int = 1,
        many: int = 100,
        width: float = 0.15,
        seed: int = 0,
        dtype=torch.float64,
    ):
        self.n, self.d, self.dtype = n, d, dtype
        rng = stream(seed, "clustered means")
        side = np.where(rng.permutation(n) % 2, 1.0, -1.0)
        place = rng.normal(0, 0.25, (n, 2)) + 0.5 * np.stack([side, 0 * side], 1)
        self.sizes = np.where(rng.permutation(n) % 2, many, few)
        target = np.repeat(apart / 2 * side[:, None], d, 1)
        mean = target + noise * rng.standard_normal((n, d)) / np.sqrt(self.sizes)[:, None]
        self.target, self.start = (torch.from_numpy(v).to(dtype) for v in (target, mean))
        near = np.exp(-((place[:, None] - place) ** 2).sum(-1) / (2 * width**2))
        self.W = torch.from_numpy(np.where(near < 0.01, 0, near)).to(dtype).fill_diagonal_(0)

    def init(self) -> Tensor:
        """(d,): zeros; the devices begin at `start`."""
        return torch.zeros(self.d, dtype=self.dtype)

    def evaluate(self, X: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """(NaN, squared error to the own target), each (m,)."""
        error = (self._rows(X) - self.target).square().sum(1).numpy()
        return self._pooled(X, np.full(self.n, np.nan), error)


class LinearAgents(Personal, Task):
    """n devices learn to tell two classes apart, each with a direction of its own and few samples.

    Device i's direction lies in the plane of the first two of p coordinates, at a uniform angle
    phi_i. It has 1 to `most` samples (1 to 20 in the paper), uniform in [-1, 1]^p; the class says
    on which side a sample lies, and is wrong with probability `flip`. Softmax regression from zero.
    W (n, n): similarity exp((cos(phi_i - phi_j) - 1) / sigma), 0 where below 0.1. accuracy: on 100
    samples of the own distribution. Vanhaesebrouck et al., AISTATS 2017.
    """

    def __init__(
        self,
        *,
        n: int = 100,
        p: int = 50,
        most: int = 20,
        flip: float = 0.05,
        sigma: float = 0.1,
        seed: int = 0,
        dtype=torch.float32,
    ):
        rng = stream(seed, "linear agents")
        phi, sizes = rng.uniform(0, 2 * np.pi, n), rng.integers(1, most + 1, n)
        side = torch.from_numpy(np.stack([np.cos(phi), np.sin(phi)], 1)).float()
        drawn = {}
        for part, who in {"train": np.repeat(np.arange(n), sizes), "test": np.arange(n)}.items():
            who = np.repeat(who, 100) if part == "test" else who
            x = torch.from_numpy(rng.uniform(-1, 1, (len(who), p))).float()
            wrong = torch.from_numpy(rng.random(len(who)) < flip * (part == "train"))
            drawn[part] = x, (((x[:, :2] * side[who]).sum(1) > 0) ^ wrong).long()
        (x, y), (x_test, y_test) = drawn["train"], drawn["test"]
        own = np.split(np.arange(len(y)), np.cumsum(sizes)[:-1])
        data = Data("linear agents", x, y, x_test, y_test, 2, "")
        how = dict(n=n, partition=lambda y, n, seed: own, network=logistic(), dtype=dtype)
        super().__init__(data, seed=seed, **how)
        near = np.exp((np.cos(phi[:, None] - phi) - 1) / sigma)
        self.W = torch.from_numpy(np.where(near < 0.1, 0, near)).to(dtype).fill_diagonal_(0)

    def init(self) -> Tensor:
        """(d,): zeros."""
        return torch.zeros(self.d, dtype=self.dtype)

    def evaluate(self, X: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Accuracy and mean cross-entropy of row i on device i's own test data, each (m,)."""
        W, b = self.network.views(self._rows(X))
        z = torch.baddbmm(b[:, None], self.x_test.view(self.n, 100, -1), W.mT)
        y = self.y_test.view(self.n, 100)
        right = (z.argmax(-1) == y).double().mean(1).numpy()
        loss = F.cross_entropy(z.mT, y, reduction="none").double().mean(1).numpy()
        return self._pooled(X, right, loss)


class OneFeature:
    """Linear regression, y = theta x + N(0, noise^2), of which device i sees the i-th of n features
    only: its inputs x are 0 but for entry i, N(0, 1). theta ~ N(0, I). New observations in every
    round, B per device. informed: a device that sees all features, while the others see none.

    candidates (2, d): theta and -theta; divergence (n,): the KL divergence of a round's observation
    under the second from the first. loss: excess squared error on inputs N(0, I), ||X -
    theta||^2; accuracy: 1 - loss / ||theta||^2. After Lalitha et al., arXiv 1901.11173, 2019.
    """

    guess = 0.0

    def __init__(
        self,
        *,
        n: int = 8,
        B: int = 1,
        noise: float = 1.0,
        informed: int | None = None,
        seed: int = 0,
        dtype=torch.float64,
    ):
        self.n = self.d = n
        self.B, self.noise, self.seed, self.dtype, self.sizes = B, noise, seed, dtype, np.ones(n)
        self.seen = torch.eye(n, dtype=dtype)
        if informed is not None:
            self.seen = torch.zeros(n, n, dtype=dtype)
            self.seen[informed] = 1
        theta = torch.from_numpy(stream(seed, "one feature").standard_normal(n)).to(dtype)
        self.theta, self.candidates = theta, torch.stack([theta, -theta])
        self.divergence = B * self.seen @ (2 * theta).square() / (2 * noise**2)

    def init(self) -> Tensor:
        """(d,): zeros."""
        return torch.zeros(self.d, dtype=self.dtype)

    def observe(self, chosen, r: int) -> tuple[Tensor, Tensor]:
        """(k, B, d), (k, B): inputs and outputs of the chosen devices in round r."""
        draws = stream(self.seed, "observations", r).standard_normal((self.n, self.B, self.d + 1))
        draws = torch.from_numpy(draws[chosen]).to(self.dtype)
        A = draws[..., :-1] * self.seen[chosen][:, None]
        return A, A @ self.theta + self.noise * draws[..., -1]

    def evaluate(self, X: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """(explained share, excess squared error) of the models X (m, d), each (m,)."""
        error = (X - self.theta).square().sum(1).double()
        return (1 - error / self.theta.square().sum()).numpy(), error.numpy()


class Ranking:
    """n devices with `per` training samples each learn to score a digit of 5 and above (the upper
    half of the labels) higher than the others: x theta, from zero, by the pairwise logistic loss
    f(theta; a, b) = [a is upper, b is not] log(1 + exp((b - a) theta)).

    x (n, per, d), upper (n, per), 1 or 0: the observations. loss: of all training pairs, (1 / N^2)
    sum f; accuracy: AUC on the test data, ties count half. flops: of a gradient. The AUC problem of
    Colin et al., ICML 2016.
    """

    guess = 0.5

    def __init__(
        self,
        data: str = "digits",
        *,
        n: int = 64,
        per: int = 1,
        seed: int = 0,
        dtype=torch.float32,
    ):
        whole = load(data)
        rows = stream(seed, "ranking").permutation(len(whole.y))[: n * per]
        if len(rows) < n * per:
            raise UsageError(f"{n} devices with {per} samples each, but there are {len(whole.y)}")
        self.x = whole.x[rows].to(dtype).view(n, per, -1)
        self.upper = (whole.y[rows] >= whole.classes // 2).to(dtype).view(n, per)
        self.n, self.d, self.dtype, self.sizes = n, self.x.shape[2], dtype, np.full(n, per)
        self.x_test = whole.x_test.flatten(1).to(dtype)
        self.upper_test = (whole.y_test >= whole.classes // 2).numpy()
        self.flops = 8.0 * per * self.d

    def init(self) -> Tensor:
        """(d,): zeros."""
        return torch.zeros(self.d, dtype=self.dtype)

    def gradient(self, chosen, X: Tensor, a) -> Tensor:
        """(k, d): of the mean of f at X (k, d) over the pairs of the chosen devices' observations
        with those of the devices a (k,)."""
        own, other = self.x[chosen], self.x[a]
        gap = (other * X[:, None]).sum(-1)[:, None] - (own * X[:, None]).sum(-1)[..., None]
        ranked = self.upper[chosen][..., None] * (1 - self.upper[a])[:, None]
        slope = torch.sigmoid(gap) * ranked  # (k, own, others)
        total = slope.sum(1)[..., None] * other - slope.sum(2)[..., None] * own
        return total.sum(1) / slope.shape[1] ** 2

    def held(self, i: int) -> tuple[Tensor, Tensor]:
        """The observations of device i: (per, d), (per,)."""
        return self.x[i], self.upper[i]

    def evaluate(self, X: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """(test AUC, pairwise logistic loss on all training pairs), each (m,)."""
        rank = rankdata((X @ self.x_test.T).numpy(), axis=1)
        P = self.upper_test.sum()
        above = rank[:, self.upper_test].sum(1) - P * (P + 1) / 2
        scores, upper = X @ self.x.flatten(0, 1).T, self.upper.flatten() > 0
        gap = scores[:, None, ~upper] - scores[:, upper, None]
        loss = F.softplus(gap).sum((1, 2)).double() / len(upper) ** 2
        return above / (P * (len(self.upper_test) - P)), loss.numpy()


class Rows:
    """n workers share the rows a_i of A (m, d) and b (m,); they want the x of least f(x) = mean_i
    h(a_i^T x, b_i) + mu / 2 ||x||^2, from zero. Each draws its rows from all of them.

    A subclass says what `slope` = dh / dz is, and sets A, b, mu, best (d,), the minimum, and least,
    f there. loss: f(x) - least; accuracy: 1 - ||x - best|| / ||best||. flops: of a row's gradient.
    """

    guess = np.nan

    def __init__(self, A: Tensor, b: Tensor, *, n: int, mu: float):
        self.A, self.b, self.n, self.mu, self.d, self.dtype = A, b, n, mu, A.shape[1], A.dtype
        self.sizes, self.flops = np.full(n, len(b)), 4.0 * A.shape[1]

    def init(self) -> Tensor:
        """(d,): zeros."""
        return torch.zeros(self.d, dtype=self.dtype)

    def gradient(self, X: Tensor, rows: Tensor) -> Tensor:
        """(k, d): of the mean over rows (k, B) at X (k, d)."""
        A = self.A[rows]  # (k, B, d)
        slope = self.slope((A @ X[..., None])[..., 0], self.b[rows]) / rows.shape[1]
        return (slope[:, None] @ A)[:, 0] + self.mu * X

    def sampled(self, chosen, X: Tensor, *, B: int = 1, seed: list) -> Tensor:
        """(k, d): `gradient` on B random rows each, drawn by the worker and its key in `seed`."""
        drawn = zip(chosen, seed, strict=True)
        draws = [uniform(np.arange(B), "rows", key, int(i)) for i, key in drawn]
        draws = np.array(draws).reshape(-1, B)
        return self.gradient(X, torch.from_numpy((draws * len(self.b)).astype(int)))

    def evaluate(self, X: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """(1 - relative distance to the minimum, f(x) - min f) of the models X (m, d), each
        (m,)."""
        error = (X - self.best).norm(dim=1) / self.best.norm()
        return (1 - error).numpy(), (self.objective(X) - self.least).numpy()


class LinearSystem(Rows):
    """A consistent linear system A x = b: Gaussian rows, of length 1. To draw them with the same
    probability is then to draw them in proportion to ||a_i||^2. spread: the k-th column is divided
    by spread^(k / (d - 1)) before the rows are normalised: 1, well-conditioned. f(x) = mean_i
    (a_i^T x - b_i)^2 / 2."""

    def __init__(self, *, n: int = 16, m: int = 200, d: int = 50, spread: float = 1.0, seed=0):
        rng = stream(seed, "linear system")
        A = rng.standard_normal((m, d)) / spread ** np.linspace(0, 1, d)
        A = torch.from_numpy(A / np.linalg.norm(A, axis=1, keepdims=True))
        x = torch.from_numpy(rng.standard_normal(d))
        super().__init__(A, A @ x, n=n, mu=0.0)
        self.best, self.least = torch.linalg.pinv(A) @ self.b, 0.0  # x itself, or the shortest

    def slope(self, z: Tensor, b: Tensor) -> Tensor:
        """d/dz of (z - b)^2 / 2."""
        return z - b

    def objective(self, X: Tensor) -> Tensor:
        """(m,): f."""
        return (X @ self.A.T - self.b).square().mean(1) / 2


class LogisticPool(Rows):
    """Logistic regression of the lower half of the labels (a digit below 5) against the upper, with
    a constant feature and mu / 2 ||x||^2: smooth and convex."""

    def __init__(self, data: str = "digits", *, n: int = 1, mu: float = 1e-3, seed: int = 0):
        whole = load(data)
        images = whole.x.flatten(1).double()
        A = torch.cat([images, torch.ones(len(images), 1, dtype=images.dtype)], 1)
        b = torch.where(whole.y < whole.classes // 2, 1.0, -1.0).double()
        super().__init__(A, b, n=n, mu=mu)
        x, pool, ridge = self.init()[None], torch.arange(len(b))[None], mu * torch.eye(self.d)
        for _ in range(20):  # Newton's method
            p = torch.sigmoid(self.A @ x[0])
            H = (self.A.T * (p * (1 - p))) @ self.A / len(b) + ridge
            x = x - torch.linalg.solve(H, self.gradient(x, pool)[0])
        self.best, self.least = x[0], self.objective(x).item()

    def slope(self, z: Tensor, b: Tensor) -> Tensor:
        """d/dz of log(1 + exp(-b z))."""
        return -b * torch.sigmoid(-b * z)

    def objective(self, X: Tensor) -> Tensor:
        """(m,): f."""
        each = F.softplus(-self.b * (X @ self.A.T))
        return each.mean(1) + self.mu / 2 * X.square().sum(1)


class Quadratics(Task):
    """Device i minimises f_i(x) = 1/2 (x - e_i)^T H_i (x - e_i), with exact gradients, from zero.

    H (n, d, d), symmetric and positive definite, and e (n, d); by default random ones: e_i ~ N(0,
    I), H_i = A_i A_i^T / d + I / 2 with Gaussian A_i. sizes (n,): f_i counts as so many samples,
    all alike, and an epoch in batches of B is ceil(sizes_i / B) steps. best (d,): the minimum of
    sum_i p_i f_i. loss: ||x - best||; accuracy: 1 - loss / ||best||. aim (d,): a point, the
    distance to which is noted as `to_aim`.
    """

    guess = np.nan

    def __init__(
        self,
        *,
        n: int = 5,
        d: int = 4,
        H: Tensor | None = None,
        e: Tensor | None = None,
        sizes: tuple[int, ...] | None = None,
        aim: Tensor | None = None,
        seed: int = 0,
        dtype=torch.float64,
    ):
        if e is None:
            rng = stream(seed, "quadratics")
            A, e = (torch.from_numpy(rng.standard_normal((n, d, m))) for m in (d, 1))
            H, e = A @ A.mT / d + torch.eye(d) / 2, e[..., 0]
        self.H, self.e, self.aim = H.to(dtype), e.to(dtype), aim
        n, d = e.shape
        sizes = np.ones(n, int) if sizes is None else np.asarray(sizes)
        x = torch.cat([self.H, self.e[..., None]], -1).repeat_interleave(torch.as_tensor(sizes), 0)
        y = torch.zeros(len(x), dtype=torch.long)
        own = np.split(np.arange(len(x)), np.cumsum(sizes)[:-1])
        data = Data("quadratics", x, y, x, y, 2, "")
        how = dict(n=n, partition=lambda y, n, seed: own, network=logistic(), dtype=dtype)
        super().__init__(data, seed=seed, **how)
        self.network, self.d = _Value(d), d
        self.best = self.stops(eta=1.0, K=1)

    def init(self) -> Tensor:
        """(d,): zeros."""
        return torch.zeros(self.d, dtype=self.dtype)

    def stops(self, *, eta: float, K, mu: float = 0.0, weight=None) -> Tensor:
        """(d,): the fixed point of FedAvg with K full steps, one number or one per device, on all
        devices: (sum_i p_i Q_i)^-1 sum_i p_i Q_i e_i, Q_i = eta sum_{k < K_i} (I - eta (H_i + mu
        I))^k H_i. K = 1: the optimum, for any eta. mu: FedProx. weight (n,), instead of p: that of
        FedNova is p_i / K_i."""
        eye, p = torch.eye(self.d, dtype=self.dtype), self.p if weight is None else weight
        bent = self.H + mu * eye
        power = [
            torch.linalg.matrix_power(eye - eta * h, int(k))
            for h, k in zip(bent, np.broadcast_to(K, self.n), strict=True)
        ]
        Q = torch.linalg.solve(bent, eye - torch.stack(power)) @ self.H * p[:, None, None]
        return torch.linalg.solve(Q.sum(0), (Q @ self.e[..., None]).sum(0))[:, 0]

    def evaluate(self, X: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """(1 - relative distance, distance) of the models X (m, d) to the optimum, each (m,)."""
        error = (X - self.best).norm(dim=1)
        return (1 - error / self.best.norm()).numpy(), error.numpy()

    def details(self, X: Tensor) -> dict[str, float]:
        """What `run` notes beside: to_aim, the distance of the mean model to the aim."""
        return {} if self.aim is None else dict(to_aim=(X.mean(0) - self.aim).norm().item())


class _Value:
    """In place of a Network: a sample is (H | e), and the cross-entropy of the logits has the
    gradient of f = 1/2 (x - e)^T H (x - e): they are 2 (c - f), c = f, and 0; both classes then
    have probability 1/2, and the slope of the loss in the first logit is -1/2."""

    by_hand, layers = None, ()

    def __init__(self, d):
        self.d, self.flops = d, 2 * d * d

    @torch.enable_grad()
    def track(self, X: Tensor, samples: Tensor) -> tuple[Tensor, list[Tensor]]:
        """As `Network.track`: logits (k, B, 2) of the models X (k, d) for samples (k, B, d, d + 1),
        and X."""
        X = X.detach().requires_grad_()
        apart = (X[:, None] - samples[..., -1])[..., None]  # (k, B, d, 1)
        f = (apart.mT @ samples[..., :-1] @ apart)[..., 0, 0] / 2
        return torch.stack([2 * (f.detach() - f), torch.zeros_like(f)], -1), [X]


class LinearTeacher:
    """A linear teacher `teacher` (d,), which decides by the sign of w* . x, and x (N, d), samples
    for its student. sample: (rng, m, d) -> (w*, m samples), see methods/linear_distillation.py.

    loss: the angle between the model and the teacher, rad, pi / 2 for w = 0. accuracy: 1 - the
    transfer risk P[(w* . x)(w . x) < 0], of `tests` samples of their own, a tie counts half;
    exact: the risk is angle / pi, as it is for isotropic data. Angles below 1e-7 are 0.
    """

    n, guess, dtype = 1, 0.5, torch.float64

    def __init__(
        self,
        sample,
        *,
        d: int = 20,
        samples: int = 40,
        tests: int = 5000,
        exact: bool = False,
        seed: int = 0,
    ):
        self.teacher, x = sample(stream(seed, "linear teacher"), samples + tests, d)
        self.x, self.x_test = x[:samples], x[samples:]
        self.d, self.exact, self.sizes = x.shape[1], exact, np.array([samples])

    def init(self) -> Tensor:
        """(d,): zeros."""
        return torch.zeros(self.d, dtype=self.dtype)

    def evaluate(self, X: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """(1 - transfer risk, angle to the teacher) of the models X (m, d), each (m,)."""
        u, v = F.normalize(X, dim=1), F.normalize(self.teacher, dim=0)
        angle = 2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1))
        angle = torch.where(X.any(1), angle, torch.pi / 2)
        angle = torch.where(angle < 1e-7, 0.0, angle)
        agree = (self.x_test @ X.T).sign() * (self.x_test @ self.teacher).sign()[:, None]
        risk = angle / torch.pi if self.exact else (1 - agree).mean(0) / 2
        return (1 - risk).numpy(), angle.numpy()
