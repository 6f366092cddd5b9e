"""Convolutions that look at pictures, for networks that say something about them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

GROUPS = 8


def halving_layers(channels: Sequence[int]) -> nn.Sequential:
    """Layers from pictures (N, 3, R, R) to features (N, channels[-1] * (R / 2^K)^2), which halve
    the size K = len(channels) times and have so many channels at each.
    """
    layers: list[nn.Module] = []
    for before, after in zip((3, *channels), channels, strict=False):
        layers += [nn.Conv2d(before, after, 4, 2, 1), nn.GroupNorm(GROUPS, after), nn.SiLU()]
        layers += [nn.Conv2d(after, after, 3, 1, 1), nn.GroupNorm(GROUPS, after), nn.SiLU()]
    return nn.Sequential(*layers, nn.Flatten())
