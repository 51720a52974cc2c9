"""How a device sees its samples: images through its own camera, classes by its own names.

A view is a function (x, y, i, n, classes, *key) -> (x, y): what device i of n makes of the images x
(m, c, h, w) and labels y (m,). It is made by the functions below, so that `rotated(45, 4)` can
stand in a table, a notebook or a key. It is fixed per device, not drawn anew in each epoch, which
would be augmentation.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from survey_lib.errors import UsageError
from survey_lib.streams import stream

View = Callable[..., tuple[Tensor, Tensor]]


def noisy(sigma: float) -> View:
    """Device i adds Gaussian noise of standard deviation sigma i / (n - 1): from none to sigma. Li
    Q. et al., ICDE 2022, section IV-B, where it is the variance that grows with i / n."""
    return partial(_noisy, sigma=sigma)


def rotated(most: float, groups: int | None = 4, mixed: bool = False) -> View:
    """Device i turns its images by (i mod groups) / (groups - 1) of `most` degrees; groups = None:
    by an angle of its own, uniform from -most to most. mixed: each image by the angle of a random
    group, so that the images are as hard, but the devices alike."""
    if groups is not None and groups < 2 or groups is None and mixed:
        raise UsageError(f"rotated(groups={groups}): two groups or more, else all see alike")
    how = dict(most=most, groups=groups)
    return partial(_rotated, **how, mixed=True) if mixed else partial(_rotated, **how)


def renamed(swaps: int | None = None, groups: int = 2) -> View:
    """Device i names the classes as its group i mod groups does: group 0 as they are, every other
    with `swaps` pairs of names exchanged, or (None) by a permutation that keeps none."""
    return partial(_renamed, swaps=swaps, groups=groups)


def turned(x: Tensor, angle: float) -> Tensor:
    """The images x (m, c, h, w) turned by so many degrees; what comes in at the corners is black,
    the least value of any of them."""
    if not angle or not len(x):
        return x
    from torchvision.transforms import InterpolationMode  # seconds, which few processes need
    from torchvision.transforms.functional import rotate

    return rotate(x, angle, InterpolationMode.BILINEAR, fill=[x.min().item()] * x.shape[1])


def names(classes: int, group: int, *key, swaps: int | None = None) -> Tensor:
    """(classes,): what each class is called in a group, see `renamed`."""
    order = stream("names", group, *key).permutation(classes)
    new = torch.arange(classes)
    if group and swaps is None:
        new[order] = torch.from_numpy(order).roll(1)  # one cycle through all classes
    elif group:
        if not 0 <= 2 * swaps <= classes:
            raise UsageError(f"renamed(swaps={swaps}): {classes} classes have fewer pairs")
        pairs = torch.from_numpy(order[: 2 * swaps]).view(-1, 2)
        new[pairs] = pairs.flip(1)
    return new


def _noisy(x, y, i, n, classes, *key, sigma):
    size = sigma * i / max(1, n - 1)
    if size == 0:
        return x, y
    noise = stream("noise", i, *key).standard_normal(x.shape)
    return x + size * torch.from_numpy(noise).to(x.dtype), y


def _rotated(x, y, i, n, classes, *key, most, groups, mixed=False):
    if mixed:
        group = stream("groups", i, *key).integers(groups, size=len(x))
        seen = x.clone()
        for g in range(groups):
            seen[group == g] = turned(x[group == g], most * g / (groups - 1))
        return seen, y
    if groups is None:
        angle = float(stream("angle", i, *key).uniform(-most, most))
    else:
        angle = most * (i % groups) / (groups - 1)
    return turned(x, angle), y


def _renamed(x, y, i, n, classes, *key, swaps, groups):
    return x, names(classes, i % groups, *key, swaps=swaps)[y]
