"""Profiles of torchvision's networks as chains of blocks, without their weights: for cutting and
placing alone."""

from functools import cache
from itertools import pairwise
from math import prod

import numpy as np
import torch
from torch import nn

from survey_lib.cutting import Chain
from survey_lib.errors import UsageError


def _vgg16(net):
    convs = [i for i, m in enumerate(net.features) if isinstance(m, nn.Conv2d)]
    blocks = [net.features[a:b] for a, b in pairwise([*convs, len(net.features)])]
    head = [i for i, m in enumerate(net.classifier) if isinstance(m, nn.Linear)]
    dense = [net.classifier[a:b] for a, b in pairwise([*head, len(net.classifier)])]
    dense[0] = nn.Sequential(net.avgpool, nn.Flatten(1), *dense[0])
    return blocks + dense


def _resnet50(net):
    stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
    stages = (net.layer1, net.layer2, net.layer3, net.layer4)
    head = nn.Sequential(net.avgpool, nn.Flatten(1), net.fc)
    return [stem, *(block for stage in stages for block in stage), head]


def _mobilenet_v3(net):
    return [*net.features, nn.Sequential(net.avgpool, nn.Flatten(1), *net.classifier)]


NETWORKS = {  # name: (torchvision's, how it is cut into blocks)
    "vgg16": ("vgg16", _vgg16),
    "resnet50": ("resnet50", _resnet50),
    "mobilenet_v3": ("mobilenet_v3_large", _mobilenet_v3),
}


@cache
def profile(name: str, B: int = 1, size: int = 224) -> Chain:
    """The chain of a torchvision network for B images of size x size pixels, in float32: FLOPs from
    torch's counter (backward: twice the forward, once in the first block), saved: the outputs of
    all its modules."""
    from torch.utils.flop_counter import FlopCounterMode
    from torchvision import models

    if name not in NETWORKS:
        raise UsageError(f"no profile {name!r}: use one of {', '.join(NETWORKS)}")
    torchvision_name, cut = NETWORKS[name]
    with torch.device("meta"):
        blocks = cut(getattr(models, torchvision_name)().eval())
    images, rows, saved = torch.empty(1, 3, size, size, device="meta"), [], []
    for number, block in enumerate(blocks):
        saved.clear()
        hooks = [
            m.register_forward_hook(lambda m, i, out: saved.append(out.numel()))
            for m in block.modules()
            if not list(m.children())
        ]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            images = block(images)
        for hook in hooks:
            hook.remove()
        forward = counter.get_total_flops()
        weights = sum(p.numel() for p in block.parameters())
        numbers = B * prod(images.shape)
        backward = forward * (1 if number == 0 else 2)
        rows.append((B * forward, B * backward, 4 * numbers, 4 * weights, 4 * B * sum(saved)))
    names = tuple(f"{type(block).__name__.lower()}{i}" for i, block in enumerate(blocks))
    return Chain(*np.array(rows, float).T, names)
