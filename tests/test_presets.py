from dataclasses import FrozenInstanceError, replace
from itertools import pairwise
from math import inf, nan

import pytest

from survey_lib.errors import UsageError
from survey_lib.presets import DEVICES, LINKS, Device, Link, device, link

TIERS = ["microcontroller", "raspberry_pi", "phone", "jetson", "laptop", "edge_server", "cloud"]


def test_names():
    assert list(DEVICES) == TIERS
    assert list(LINKS) == ["lora", "lte", "5g", "wifi", "lan", "wan"]


@pytest.mark.parametrize("preset", [*DEVICES.values(), *LINKS.values()])
def test_every_preset_has_a_source(preset):
    assert preset.source.strip()


def test_devices_are_ordered_and_plausible():
    for slow, fast in pairwise(TIERS):
        assert DEVICES[slow].speed < DEVICES[fast].speed, (slow, fast)
        assert DEVICES[slow].memory <= DEVICES[fast].memory, (slow, fast)
    for name, d in DEVICES.items():
        assert 0 < d.idle <= d.radio < d.compute, name
        assert 1e8 < d.speed / d.compute < 1e11, name  # FLOP/J


def test_links_are_ordered_and_plausible():
    speeds = [LINKS[name].up for name in ("lora", "lte", "5g", "wifi", "lan")]
    assert speeds == sorted(speeds)
    assert LINKS["lora"].up == pytest.approx(5470 / 8, rel=0.01)
    assert LINKS["lan"].up <= 1e9 / 8
    assert LINKS["lan"].latency < LINKS["wifi"].latency < LINKS["5g"].latency < LINKS["lte"].latency
    assert all(k.up <= k.down and k.loss < 1 for k in LINKS.values())


def test_lookup():
    assert device("phone") is DEVICES["phone"]
    assert link("5g") is LINKS["5g"]
    own, wire = replace(DEVICES["phone"], speed=1.0), Link(0, inf, inf)
    assert device(own) is own
    assert link(wire) is wire


@pytest.mark.parametrize("name", ["toaster", "", None, 3, ["phone"], LINKS["lan"]])
def test_unknown_device_lists_the_names(name):
    with pytest.raises(
        UsageError, match=r"^no Device .*microcontroller, raspberry_pi, .*cloud"
    ) as e:
        device(name)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["tin can", None, DEVICES["cloud"]])
def test_unknown_link_lists_the_names(name):
    with pytest.raises(UsageError, match=r"^no Link .*lora, lte, 5g, wifi, lan, wan") as e:
        link(name)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("value", [-1, nan, "fast", None, True])
@pytest.mark.parametrize("name", ["speed", "memory", "idle", "compute", "radio"])
def test_bad_device(name, value):
    with pytest.raises(UsageError, match=rf"^Device\({name}=.*: {name} must be"):
        replace(DEVICES["phone"], **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("latency", -1), ("latency", inf), ("up", 0), ("down", nan), ("loss", -0.1), ("loss", 1.1)],
)
def test_bad_link(name, value):
    with pytest.raises(UsageError, match=rf"^Link\({name}=.*: {name} must be"):
        replace(LINKS["lan"], **{name: value})


def test_bounds():
    assert Link(0, 1, 1, 1).loss == 1
    assert Device(1, 1, 0, 0, 0, "test").idle == 0
    for name in ("speed", "memory"):
        with pytest.raises(UsageError):
            replace(DEVICES["phone"], **{name: 0})


def test_frozen():
    with pytest.raises(FrozenInstanceError):
        DEVICES["phone"].speed = 1
