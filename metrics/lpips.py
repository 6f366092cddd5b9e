"""LPIPS, the perceptual distance of two pictures (Zhang et al., The Unreasonable Effectiveness of
Deep Features..., CVPR 2018), on VGG16.

Weights come from files as they are published: VGG16 of torchvision and the linear layers, or one
file with both, as torch-fidelity and the package lpips name them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dnnlib.console import UserError
from dnnlib.files import local_file
from metrics.weights import file_hash, published_file, read_weights

OPTION = "--lpips-weights"
URL_VGG16 = "https://download.pytorch.org/models/vgg16-397923af.pth"
URL_LINEAR = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-vgg16-lpips.pth"
)
# VGG16 (Simonyan & Zisserman 2015): channels of 3x3 convolutions, 0 = max pooling; features are
# taken before each pooling.
CHANNELS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)
# ImageNet's mean and deviation in -1..1, rounded as published
LPIPS_SHIFT, LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """Distance (N,) of pictures (N, 3, H, W) in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleList(_vgg_layers())
        self.linear = nn.ParameterList(
            [torch.zeros(1, width, 1, 1) for width in (64, 128, 256, 512, 512)]
        )

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Weighted squared differences of normalised features, means over the picture, summed."""
        both = zip(self._stages(first), self._stages(second), strict=True)
        parts = [
            (weight * (a - b).square()).sum(1).mean((1, 2))
            for weight, (a, b) in zip(self.linear, both, strict=True)
        ]
        return torch.stack(parts).sum(0)

    def _stages(self, images: Tensor) -> list[Tensor]:
        shift, scale = (
            images.new_tensor(values).reshape(1, 3, 1, 1) for values in (LPIPS_SHIFT, LPIPS_SCALE)
        )
        x, stages = (images - shift) / scale, []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                stages.append(_normalised(x))
            x = layer(x)
        return [*stages, _normalised(x)]


def _vgg_layers() -> list[nn.Module]:
    layers: list[nn.Module] = []
    width = 3
    for channels in CHANNELS:
        layers += (
            [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU()] if channels else [nn.MaxPool2d(2)]
        )
        width = channels or width
    return layers


def _normalised(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)


def load_lpips(paths: Sequence[str | Path], device: torch.device) -> tuple[LPIPS, str]:
    """The network and a text of its weights' hashes. Without `paths` the published files are
    fetched.

    Raises:
        UserError: if weights are missing or are not those of this network.
    """
    files = [local_file(path) for path in paths] or [
        published_file(url, OPTION) for url in (URL_VGG16, URL_LINEAR)
    ]
    state: dict[str, Tensor] = {}
    for file in files:
        for name, value in read_weights(file, OPTION).items():
            if own := _own_name(name):
                state[own] = value.reshape(1, -1, 1, 1) if own.startswith("linear") else value
    network = LPIPS()
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        texts = " and ".join(map(str, files))
        raise UserError(
            f"{OPTION} {texts}: not all of VGG16 and LPIPS' linear layers; give {OPTION} twice:"
            " vgg16-397923af.pth, weights-vgg16-lpips.pth"
        ) from error
    network.eval().requires_grad_(False).to(device)
    return network, "+".join(file_hash(file) for file in files)


def _own_name(name: str) -> str | None:
    """Our name of a published tensor; None where it is not needed (the classifier, copies)."""
    if match := re.fullmatch(r"(?:features|net\.slice[1-5])\.(\d+)\.(weight|bias)", name):
        return f"features.{match[1]}.{match[2]}"
    if match := re.fullmatch(r"lin([0-4])\.model\.1\.weight", name):
        return f"linear.{match[1]}"
    return None
