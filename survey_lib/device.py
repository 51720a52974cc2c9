"""Where local training and evaluation compute: on the CPU, or where SURVEY_DEVICE says.

Methods do not notice: models, and losses and projections of their own, stay on the CPU; `train`,
`gradients_on` and `evaluate` move models there and back. Only the data stay there.
"""

import os
from functools import cache

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from survey_lib.errors import UsageError

# a GPU rounds as a CPU does, and in the same way in every run
torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
_resident = WeakTensorKeyDictionary()


def device() -> torch.device:
    """The device that the environment variable SURVEY_DEVICE names; without it, the CPU."""
    return _usable(os.environ.get("SURVEY_DEVICE", "cpu"))


@cache
def _usable(name):
    try:
        torch.ones(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"SURVEY_DEVICE={name}: torch cannot compute there ({str(error).splitlines()[0]}); "
            "expected cpu, or cuda on a machine that has such a device"
        ) from None
    return torch.device(name)


def resident(data: Tensor) -> Tensor:
    """`data` on the device: copied there once, and kept for as long as `data` is there."""
    where = device()
    if data.device == where:
        return data
    if data not in _resident:
        _resident[data] = data.to(where)
    return _resident[data]
