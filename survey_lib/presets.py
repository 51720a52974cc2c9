"""Devices and links to simulate, each figure with where it comes from.

Assumed throughout: half of a peak rate is sustained (the x 0.5 in the sources), float32 runs at
twice the rate of a float64 Linpack, and one way takes half a ping. Messages are resent by the
transport, so loss is 0 unless a link says otherwise. What a source calls "assumed" is in no source.
"""

from dataclasses import dataclass
from math import inf
from numbers import Real

from survey_lib.errors import UsageError


@dataclass(frozen=True)
class Device:
    """Powers are totals, in W: idle while it waits for others, radio while it sends or receives."""

    speed: float  # FLOP/s, sustained, float32
    memory: float  # bytes
    idle: float
    compute: float
    radio: float
    source: str

    def __post_init__(self):
        _check(self, ("speed", "memory"), lambda v: v > 0, "a number above 0")
        _check(self, ("idle", "compute", "radio"), lambda v: 0 <= v < inf, "W, 0 or more")


@dataclass(frozen=True)
class Link:
    """The access link of one device. up: away from the device; down: towards it."""

    latency: float  # s, one way
    up: float  # B/s
    down: float
    loss: float = 0.0  # probability that a message is lost
    source: str = ""

    def __post_init__(self):
        _check(self, ("latency",), lambda v: 0 <= v < inf, "seconds, 0 or more")
        _check(self, ("up", "down"), lambda v: v > 0, "B/s above 0")
        _check(self, ("loss",), lambda v: 0 <= v <= 1, "a probability from 0 to 1")


def _check(obj, names, holds, expected):
    for name in names:
        value = getattr(obj, name)
        if not isinstance(value, Real) or isinstance(value, bool) or not holds(value):
            raise UsageError(f"{type(obj).__name__}({name}={value!r}): {name} must be {expected}")


_SOURCES = {
    "microcontroller": (
        "STM32H7, 480 MHz, 1 MB SRAM (jishuzhan.net). speed: 6 cycles per multiply-add on a "
        "Cortex-M7 with Arm's libraries (systemonchips.com). compute: 105 mA in image capture "
        "(Nicla Vision data sheet) at 3.7 V. radio: 73 mA sending LoRa at 17 dBm (arduino-LoRa "
        "issue 77) at 3.7 V + idle. assumed: voltages; idle, compute / 10"
    ),
    "raspberry_pi": (
        "Raspberry Pi 4. speed: Linpack 11.9 GFLOP/s x 2; compute: 7.2 W meanwhile (both "
        "geerlingguy/top500-benchmark). idle: 540 mA at 5 V (an unsigned web table; others give "
        "1.3 to 3 W). assumed: the 4 GB model; radio, 1 W above idle"
    ),
    "phone": (
        "Pixel XL. speed: 14.8 and 10.9 GFLOP/s on a big and a little core (gemmlowp benchmark "
        "sheet) x 2 of each x 0.5. compute: most phones shed at most 3 W (petewarden.com, 2015). "
        "assumed: cores, 4 GB; idle; radio, 1 W above it"
    ),
    "jetson": (
        "Jetson Nano, 4 GB. speed: 472 GFLOP/s in float16 (spec tables on GitHub) x 0.5 for "
        "float32 x 0.5. compute: 10 W, mode MAXN (NVIDIA guide copied at xiaopingtou.net). idle: a "
        "robot project's estimate. assumed: float32 factor; radio, 1 W above it"
    ),
    "laptop": (
        "Framework 13, Ryzen AI 340, CPU only. speed: Linpack 88.8 GFLOP/s x 2; compute: 41.6 W "
        "meanwhile (both geerlingguy/top500-benchmark). idle and radio: 15 W, and 19 W in a Wi-Fi "
        "test, screen on, on a laptop of 2003 (codinghorror.com). assumed: 16 GB"
    ),
    "edge_server": (
        "NVIDIA T4, board alone. speed: peak 8.1 TFLOP/s (geektopia.es) x 0.5. memory and compute: "
        "16 GB, 70 W limit (NVIDIA T4 product brief). idle: 31 W with a model loaded "
        "(aws/sagemaker-huggingface-inference-toolkit pull 103). assumed: radio as idle"
    ),
    "cloud": (
        "NVIDIA A100 SXM 80 GB, board alone. speed: peak 19.5 TFLOP/s, no tensor cores, x 0.5; "
        "compute: 400 W limit (data sheet figures at glennklockwood.com). idle: 61 W (nvidia-smi "
        "in allenai/PeerRead issue 40). assumed: radio as idle"
    ),
    "lora": (
        "LoRaWAN EU868 DR5, SF7, 125 kHz: 5470 bit/s (data rates by region, RAKwireless docs). "
        "Duty cycle limits are left out. assumed: latency (preamble, header, gateway), loss"
    ),
    "lte": (
        "median 6 Mbit/s up, 13 down (Huang et al., MobiSys 2012, abstract); median ping 55 ms on "
        "LTE (Catchpoint, calendar.perfplanet.com, 2013)"
    ),
    "5g": (
        "global median 21.08 Mbit/s up, 166.13 down (Ookla, Q3 2021); latency 51 ms on T-Mobile US "
        "5G (Ookla, Q2 2023), taken as a ping"
    ),
    "wifi": (
        "802.11n at 150 Mbit/s, of which 60 % reach the IP layer (sts2u.com); ping 1 to 3 ms to an "
        "idle Wi-Fi 5 router (ipferret.com), 2 ms taken"
    ),
    "lan": "974 Mbit/s (forum.digital-stage.org); ping 0.1 to 0.5 ms, 0.2 taken (ipferret.com)",
    "wan": (
        "fixed broadband, global median 38.32 Mbit/s up, 83.95 down (Ookla, Q3 2023); round trip "
        "73 ms on one route from New York to a cloud, fastest provider (blog.hathora.dev)"
    ),
}

DEVICES: dict[str, Device] = {  # speed, memory, idle, compute, radio
    "microcontroller": Device(1.6e8, 1e6, 0.04, 0.39, 0.31, _SOURCES["microcontroller"]),
    "raspberry_pi": Device(2.4e10, 4e9, 2.7, 7.2, 3.7, _SOURCES["raspberry_pi"]),
    "phone": Device(2.6e10, 4e9, 0.3, 3.0, 1.3, _SOURCES["phone"]),
    "jetson": Device(1.2e11, 4e9, 1.9, 10.0, 2.9, _SOURCES["jetson"]),
    "laptop": Device(1.8e11, 1.6e10, 15.0, 41.6, 19.0, _SOURCES["laptop"]),
    "edge_server": Device(4.0e12, 1.6e10, 31.0, 70.0, 31.0, _SOURCES["edge_server"]),
    "cloud": Device(9.7e12, 8e10, 61.0, 400.0, 61.0, _SOURCES["cloud"]),
}

LINKS: dict[str, Link] = {  # latency, up, down, loss
    "lora": Link(0.05, 680.0, 680.0, 0.1, _SOURCES["lora"]),
    "lte": Link(0.0275, 7.5e5, 1.6e6, 0.0, _SOURCES["lte"]),
    "5g": Link(0.0255, 2.6e6, 2.1e7, 0.0, _SOURCES["5g"]),
    "wifi": Link(0.001, 1.1e7, 1.1e7, 0.0, _SOURCES["wifi"]),
    "lan": Link(1e-4, 1.2e8, 1.2e8, 0.0, _SOURCES["lan"]),
    "wan": Link(0.0365, 4.8e6, 1.05e7, 0.0, _SOURCES["wan"]),
}


def device(name: str | Device) -> Device:
    """A preset by name; a Device is handed through."""
    return _find(name, DEVICES, Device)


def link(name: str | Link) -> Link:
    """A preset by name; a Link is handed through."""
    return _find(name, LINKS, Link)


def _find(name, presets, kind):
    if isinstance(name, str) and name in presets:
        return presets[name]
    if not isinstance(name, kind):
        raise UsageError(f"no {kind.__name__} {name!r}: use one of {', '.join(presets)}")
    return name
