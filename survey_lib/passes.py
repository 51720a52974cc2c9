"""Forward and backward passes of a pipeline's stages, and which version of its weights a stage
uses in them."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F


class Passes:
    """The tensors between the operations of a pipeline's stages.

    A forward pass keeps what its backward pass needs: activations, not weights. A backward pass
    takes the weights of the forward pass, or others: dX = dY W^T with the weights W that it is
    given and the activations of the forward pass.
    """

    def __init__(self, stages):
        self.stages, self.inputs, self.kept, self.back, self.labels = stages, {}, {}, {}, {}

    def enter(self, m: int, images: Tensor, labels: Tensor, total: int | None = None) -> None:
        """Item m is there; its loss is the sum of its cross-entropies / total (default: mean)."""
        self.inputs[0, m], self.labels[m] = images, (labels, total or len(labels))

    def forward(self, s: int, m: int, w: Tensor, *, drop: bool = False) -> None:
        """Stage s with weights w (d_s,); drop: keep the input alone."""
        a = self.inputs.pop((s, m)).detach().requires_grad_(s > 0)
        now, out = self._run(s, m, w, a)
        self.inputs[s + 1, m] = out.detach()
        self.kept[s, m] = a if drop else (now, a, out)

    def again(self, s: int, m: int, w: Tensor) -> None:
        """The forward pass of a kept input."""
        a = self.kept[s, m]
        now, out = self._run(s, m, w, a)
        self.kept[s, m] = now, a, out

    def backward(self, s: int, m: int, w: Tensor | None = None) -> Tensor:
        """(d_s,): the gradient of stage s; w: other weights than the forward pass used."""
        now, a, out = self.kept.pop((s, m))
        if w is not None:
            now["w"] = w
        inputs = (now["leaf"], a)[: 1 + (s > 0)]
        dw, *da = torch.autograd.grad(out, inputs, self.back.pop((s, m), None))
        if s:
            self.back[s - 1, m] = da[0]
        if s == len(self.stages) - 1:
            del self.labels[m]
        return dw

    def _run(self, s, m, w, a):
        """The output, or the loss at the last stage, of a pass whose saved weights are looked up
        when they are needed. now: {"w": those weights, "leaf": what to differentiate by}."""
        leaf = w.detach().requires_grad_()
        own, now = leaf.untyped_storage().data_ptr(), {"w": w, "leaf": leaf}
        origin = leaf.storage_offset()

        def pack(t):
            if t.untyped_storage().data_ptr() != own:
                return t
            return t.shape, t.stride(), t.storage_offset() - origin

        def unpack(kept):
            if isinstance(kept, Tensor):
                return kept
            shape, stride, offset = kept
            return now["w"].as_strided(shape, stride, offset + now["w"].storage_offset())

        with saved_tensors_hooks(pack, unpack):
            out = self.stages[s].call(leaf, a)
            if s == len(self.stages) - 1:
                labels, total = self.labels[m]
                out = F.cross_entropy(out, labels, reduction="sum") / total
        return now, out


# ---- versions


class Held:
    """A stage's weights w (d_s,), momentum v (d_s,), the number of its updates, and what it keeps
    for its items in flight.

    seen: {item: updates of the first stage when the item passed it}, common to all stages.
    """

    def __init__(self, stage, s: int, w: Tensor, eta: float, momentum: float, seen: dict):
        self.stage, self.s, self.w, self.v, self.eta = stage, s, w, torch.zeros_like(w), eta
        self.momentum, self.seen, self.updates, self.used, self.past = momentum, seen, 0, {}, {}

    def step(self, m: int, g: Tensor) -> None:
        """v <- momentum v + g; w <- w - eta v; item m is through."""
        if self.past:
            self.past[self.updates] = self.w
        self.v = self.momentum * self.v + g
        self.w, self.updates = self.w - self.eta * self.v, self.updates + 1
        self.used.pop(m, None)

    def versions(self) -> int:
        """How many versions of the weights are there, the newest one included."""
        kept = [self.w, *self.past.values(), *self.used.values()]
        return len({id(w) for w in kept if w is not None})

    def nbytes(self, B: int) -> int:
        """Versions, gradient, momentum, and the saved activations of what is in flight."""
        copies = self.versions() + 1 + bool(self.momentum)
        return copies * self.stage.parameter_bytes + len(self.used) * B * self.stage.saved_bytes


Rule = Callable[[Held, str, int, int], Tensor]  # (stage, "F" or "B", item, ahead) -> weights


def stashed(own: Held, what: str, m: int, ahead: int) -> Tensor:
    """Weight stashing: forward with the newest weights, backward with the same."""
    return own.used.setdefault(m, own.w)


def newest(own: Held, what: str, m: int, ahead: int) -> Tensor:
    """No versions: each pass with what is there."""
    own.used[m] = None
    return own.w


def vertical(own: Held, what: str, m: int, ahead: int) -> Tensor:
    """Vertical sync: at every stage, the version that the item met at the first one."""
    if what == "F":
        t = own.seen.setdefault(m, own.updates)
        own.past[own.updates] = own.w
        for old in [v for v in own.past if v < t]:  # later items met later versions
            del own.past[old]
        own.used[m] = own.past[t]
    return own.used[m]


def predicted(own: Held, what: str, m: int, ahead: int) -> Tensor:
    """SpecTrain: the weights as they will be when the item is back at the first stage, if all
    updates until then (so many are ahead) go along the smoothed gradient: w - ahead eta v."""
    own.used[m] = None
    return own.w - ahead * own.eta * own.v
