"""Views: fixed per device, of strength 0 nothing at all, and each changes its own factor only."""

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import rotate

from survey_lib.data import load
from survey_lib.errors import UsageError
from survey_lib.views import names, noisy, renamed, rotated

DATA = load("digits")
X, Y = DATA.x[:60], DATA.y[:60]
NOTHING = {
    "noise": noisy(0.0),
    "no turn": rotated(0.0),
    "no turn of its own": rotated(0.0, None),
    "no turn, mixed": rotated(0.0, 4, mixed=True),
    "no swap": renamed(0),
    "one group": renamed(None, 1),
}
IMAGES = {"noise": noisy(0.5), "turned": rotated(45), "turned by an own angle": rotated(45, None)}
IMAGES["mixed"] = rotated(45, 4, mixed=True)
NAMES = {"renamed": renamed(), "two swaps": renamed(2), "four groups": renamed(None, 4)}


@pytest.mark.parametrize("name", NOTHING)
def test_strength_0_is_the_identity_bit_for_bit(name):
    for i in range(5):
        x, y = NOTHING[name](X, Y, i, 5, 10, 0)
        assert torch.equal(x, X) and torch.equal(y, Y)


@pytest.mark.parametrize("name", IMAGES | NAMES)
def test_a_view_is_fixed_per_device_and_alters_nothing_in_place(name):
    view, before = (IMAGES | NAMES)[name], (X.clone(), Y.clone())
    seen = [view(X, Y, i, 5, 10, 3) for i in range(5)]
    for i in (4, 0, 2):  # in any order
        again = view(X, Y, i, 5, 10, 3)
        assert all(torch.equal(a, b) for a, b in zip(seen[i], again, strict=True))
    assert torch.equal(X, before[0]) and torch.equal(Y, before[1])
    other = view(X, Y, 1, 5, 10, 4)
    same = name == "turned"  # its angles are not drawn
    assert same == all(torch.equal(a, b) for a, b in zip(seen[1], other, strict=True))


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_camera_leaves_the_labels(name, dtype):
    for i in range(1, 4):
        x, y = IMAGES[name](X.to(dtype), Y, i, 5, 10, 0)
        assert torch.equal(y, Y) and x.shape == X.shape and x.dtype == dtype
        assert not torch.equal(x, X.to(dtype))


@pytest.mark.parametrize("name", NAMES)
def test_names_leave_the_images(name):
    x, y = NAMES[name](X, Y, 1, 5, 10, 0)
    assert x is X and not torch.equal(y, Y) and y.dtype == Y.dtype


@pytest.mark.parametrize("name", NAMES)
def test_names_keep_the_histogram_of_balanced_classes_only(name):
    """What a class gains another loses: 6 of each stay 6 of each; 1, 2, ..., 10 do not stay."""
    classes = torch.arange(10)
    uneven = classes.repeat_interleave(classes + 1)
    for y, same in ((classes.repeat(6), True), (uneven, False)):
        seen = torch.cat([NAMES[name](X, y, i, 5, 10, 0)[1] for i in range(5)])
        count = seen.bincount(minlength=10)
        assert torch.equal(count, 5 * y.bincount(minlength=10)) == same
        assert count.sum() == 5 * len(y)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_group_has_other_names_for_all_classes(classes):
    for group in (1, 2):
        for seed in range(20):
            new = names(classes, group, seed)
            assert sorted(new.tolist()) == list(range(classes))
            assert (new != torch.arange(classes)).all()
    assert torch.equal(names(classes, 0, 7), torch.arange(classes))


@pytest.mark.parametrize("swaps", [0, 1, 3, 5])
def test_so_many_pairs_are_exchanged_and_the_rest_stays(swaps):
    new = names(10, 1, 0, swaps=swaps)
    assert (new == torch.arange(10)).sum() == 10 - 2 * swaps
    assert torch.equal(new[new], torch.arange(10))  # twice is nothing


@pytest.mark.parametrize("swaps", [None, 1, 3, 5])
def test_the_ceiling_of_one_model_is_1_plus_f_over_2(swaps):
    """f: the share of classes that both groups name alike. An answer to an image is right in both
    groups if they agree, else in one of them at most, so in half of the cases."""
    first, second = names(10, 0, 0, swaps=swaps), names(10, 1, 0, swaps=swaps)
    f = (first == second).double().mean().item()
    right = [((answer == first) + 0.0 + (answer == second)) / 2 for answer in range(10)]
    assert torch.stack(right).amax(0).mean().item() == pytest.approx((1 + f) / 2)
    assert f == (0 if swaps is None else 1 - swaps / 5)


def test_noise_grows_from_none_to_sigma():
    """Of 60 x 64 draws the standard deviation is known to 1 / sqrt(2 x 3840), about 1 %."""
    for i in range(5):
        x, _ = noisy(0.8)(X, Y, i, 5, 10, 0)
        error = 0.8 * i / 4 / np.sqrt(2 * X.numel())
        assert (x - X).std().item() == pytest.approx(0.8 * i / 4, abs=4 * error + 1e-9)
    alone, _ = noisy(0.8)(X, Y, 0, 1, 10, 0)
    assert torch.equal(alone, X)


def test_groups_turn_by_equal_steps():
    for i in range(8):
        x, _ = rotated(90, 4)(X, Y, i, 8, 10, 0)
        assert torch.equal(x, rotated(90, 4)(X, Y, i % 4, 8, 10, 5)[0])
    turned, _ = rotated(90, 2)(X, Y, 1, 8, 10, 0)
    torch.testing.assert_close(turned, torch.rot90(X, 1, (2, 3)), rtol=0, atol=1e-5)


def test_angles_of_their_own_are_uniform():
    """An image that is bright on its right half only: where it points to says how it was turned."""
    grid = torch.linspace(-1, 1, 41)
    x = ((grid[None] ** 2 + grid[:, None] ** 2 < 1) & (grid > 0)).float()[None, None]
    angles = []
    for i in range(300):
        seen, _ = rotated(45, None)(x, Y[:1], i, 300, 10, 0)
        right, down = (seen[0, 0] * grid).sum().item(), (seen[0, 0] * grid[:, None]).sum().item()
        angles.append(np.degrees(np.arctan2(-down, right)))
    angles = np.array(angles)
    assert np.abs(angles).max() < 46 and len(np.unique(angles.round(3))) > 250
    spread = 90 / np.sqrt(12)
    assert angles.mean() == pytest.approx(0, abs=4 * spread / np.sqrt(300))
    assert angles.std() == pytest.approx(spread, rel=0.15)


def test_mixed_angles_are_those_of_the_groups():
    seen, _ = rotated(60, 3, mixed=True)(X, Y, 0, 5, 10, 0)
    turned = torch.stack([X, *(rotated(60, 3)(X, Y, g, 5, 10)[0] for g in (1, 2))])  # (3, m, ...)
    which = (seen == turned).flatten(2).all(2)
    assert which.any(0).all() and which.sum(1).min() >= 8  # of 60: 20 on average


def test_the_corners_are_black_where_black_is_not_0():
    x = X * 2 - 0.8
    seen, _ = rotated(45, 2)(x, Y, 1, 2, 10)
    assert seen.min() == pytest.approx(-0.8)
    straight = rotate(x, 45, fill=[-0.8])
    assert (seen[:, :, 0, 0] == straight[:, :, 0, 0]).all()


def test_wrong_views_are_refused():
    for wrong in (dict(groups=1), dict(groups=None, mixed=True)):
        with pytest.raises(UsageError, match="two groups or more"):
            rotated(45, **wrong)
    with pytest.raises(UsageError, match="fewer pairs"):
        renamed(6)(X, Y, 1, 2, 10)
