"""How far renderings are from pictures: features that a network finds, plus L1 at three sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.networks.generator import GeneratorOutput

Perceptual = Callable[[Tensor, Tensor], Tensor]
"""Distance (N,) of two sets of pictures (N, 3, R, R) in [-1, 1], such as LPIPS."""

SCALES = (1, 2, 4)  # pictures are compared at 1, 1/2 and 1/4 of their size
RAW_WEIGHT = 0.5  # of the volume rendering, which meshes and web pages show
PERCEPTUAL_WEIGHT = 0.5


def gradient_distance(first: Tensor, second: Tensor) -> Tensor:
    """L1 (N,) between the horizontal and vertical differences of pictures (N, 3, R, R) at three
    sizes: what stands in for a feature network where none is at hand.
    """
    parts = []
    for scale in SCALES:
        difference = _smaller(first, scale) - _smaller(second, scale)
        parts += [difference.diff(dim=dim).abs().mean((1, 2, 3)) for dim in (2, 3)]
    return torch.stack(parts).sum(0)


@dataclass(frozen=True, eq=False)
class Objective:
    """Distance of renderings to K pictures; pixels outside of the masks count nothing.

    Attributes:
        images: (K, 3, R, R) in [-1, 1].
        masks: (K, 1, R, R) in [0, 1], 1 where the picture counts; None = everywhere.
        perceptual: Distance of pictures by their features.
    """

    images: Tensor
    masks: Tensor | None = None
    perceptual: Perceptual = gradient_distance

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Objective:
        """The objective of one of the pictures."""
        masks = None if self.masks is None else self.masks[index, None]
        return Objective(self.images[index, None], masks, self.perceptual)

    def to(self, device: torch.device) -> Objective:
        """The same on another device."""
        masks = None if self.masks is None else self.masks.to(device)
        return Objective(self.images.to(device), masks, self.perceptual)

    def masked(self, images: Tensor) -> Tensor:
        """Pictures (K, 3, R, R) that outside of the masks are the targets."""
        if self.masks is None:
            return images
        return self.images + self.masks * (images - self.images)

    def __call__(self, out: GeneratorOutput) -> Tensor:
        """Loss (K,) of the renderings of the pictures."""
        images = self.masked(out.image)
        loss = PERCEPTUAL_WEIGHT * self.perceptual(images, self.images) + self.l1(images)
        return loss + RAW_WEIGHT * self._raw(out.image_raw)

    def l1(self, images: Tensor) -> Tensor:
        """Mean absolute difference (K,) to pictures (K, 3, R, R), averaged over three sizes and
        the pixels that count.
        """
        difference = self.masked(images) - self.images
        parts = [_smaller(difference, scale).abs().mean((1, 2, 3)) for scale in SCALES]
        return torch.stack(parts).mean(0) / self._share()

    def _raw(self, image_raw: Tensor) -> Tensor:
        size = image_raw.shape[-2:]
        difference = image_raw - F.interpolate(self.images, size, mode="area")
        if self.masks is not None:
            difference = difference * F.interpolate(self.masks, size, mode="area")
        return difference.abs().mean((1, 2, 3)) / self._share()

    def _share(self) -> Tensor | float:
        """Share (K,) of the pixels that count."""
        return 1.0 if self.masks is None else self.masks.mean((1, 2, 3)).clamp(min=1e-6)

    def psnr(self, images: Tensor) -> Tensor:
        """Peak signal-to-noise ratio (K,) in dB of pictures (K, 3, R, R), over the pixels that
        count.
        """
        error = (self.masked(images.clamp(-1, 1)) - self.images).square().mean((1, 2, 3))
        return -10 * torch.log10((error / self._share() / 4).clamp(min=1e-10))


def _smaller(images: Tensor, scale: int) -> Tensor:
    return images if scale == 1 else F.avg_pool2d(images, scale)
