"""Generators that are formulas, with the facade's interface: a round one, and two that only look
right from one side.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metrics.geometry import pixel_rays, project
from metrics.sampling import GeneratorSampler
from training.cameras import orbit_pose, pack_label, pinhole_intrinsics

RADIUS, ORBIT, FOCAL = 0.4, 2.7, 3.0
FAR = 3.3
BACKGROUND = (0.3, 0.6, 0.62)


class Rendered(NamedTuple):
    image: Tensor
    image_raw: Tensor
    image_depth: Tensor
    alpha: Tensor


class Scene:
    """A textured sphere at the origin; the latents are the texture.

    `shape`: sphere, card (a disc through the origin that turns with the camera) or fixed_card (one
    that stands still). `texture`: world (sticks to the surface) or screen (sticks to the picture).
    """

    z_dim = 4

    def __init__(
        self, shape: str = "sphere", texture: str = "world", size: int = 64, raw: int = 32
    ) -> None:
        self.shape, self.texture, self.size, self.raw = shape, texture, size, raw

    def mapping(
        self,
        z: Tensor,
        c: Tensor,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
    ) -> Tensor:
        assert c.shape == (len(z), 25)
        assert truncation_cutoff is None
        return z[:, None] * truncation_psi

    def planes(self, ws: Tensor, noise_mode: Any = "const") -> Tensor:
        assert noise_mode == "const"
        return ws[:, :, :, None, None]

    def render(
        self,
        planes: Tensor,
        ws: Tensor,
        c: Tensor,
        neural_rendering_resolution: int | None = None,
        deterministic: bool = True,
    ) -> Rendered:
        assert deterministic
        assert len(ws) == len(c)
        texture = planes[:, 0, :, 0, 0].double()
        raw, depth, alpha = self._picture(texture, c, neural_rendering_resolution or self.raw)
        image, _, _ = self._picture(texture, c, self.size)
        return Rendered(image, raw, depth, alpha)

    def _picture(self, texture: Tensor, c: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
        c = c.double()
        origins, directions = (
            c[:, (3, 7, 11)][:, :, None, None].expand(-1, -1, size, size),
            pixel_rays(c, size),
        )
        depth, hit = self._surface(c, origins, directions)
        points = origins + depth * directions
        place = (
            points
            if self.texture == "world"
            else torch.cat([project(points, c)[0] - 0.5, torch.zeros_like(depth)], 1)
        )
        colour = (place * 6 + texture[:, :3, None, None]).sin() * 0.5
        background = torch.tensor(BACKGROUND, dtype=torch.float64)[None, :, None, None] * 2 - 1
        return (
            torch.where(hit, colour, background).float(),
            torch.where(hit, depth, FAR).float(),
            hit.float(),
        )

    def _surface(self, c: Tensor, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        along = (origins * directions).sum(1, keepdim=True)
        if self.shape == "sphere":
            square = along.square() - origins.square().sum(1, keepdim=True) + RADIUS**2
            return -along - square.clamp(min=0).sqrt(), square > 0
        normal = (
            torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(len(c), 3)
            if self.shape == "fixed_card"
            else -c[:, [2, 6, 10]]
        )
        normal = normal[:, :, None, None]
        depth = -(origins * normal).sum(1, keepdim=True) / (directions * normal).sum(
            1, keepdim=True
        )
        return depth, (origins + depth * directions).norm(dim=1, keepdim=True) < RADIUS


def draw_camera(random: np.random.RandomState) -> Tensor:
    """A camera of the orbit within 30 degrees of the front."""
    yaw, pitch = np.radians(random.uniform(-30, 30)), np.radians(random.uniform(-15, 15))
    return pack_label(orbit_pose(yaw, pitch, ORBIT).float(), pinhole_intrinsics(FOCAL))


def sampler_of(scene: Any, **options: Any) -> GeneratorSampler:
    """Its sampling function."""
    return GeneratorSampler(scene, draw_camera, **options)


class Linear(Scene):
    """Pictures that are one latent number everywhere, so that path lengths are known."""

    def render(self, planes: Tensor, ws: Tensor, c: Tensor, *rest: Any, **options: Any) -> Any:
        rendered = super().render(planes, ws, c, *rest, **options)
        return rendered._replace(image=planes[:, 0, :1].double().expand(-1, 3, 512, 512))


def squared(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared difference (N,) of pictures, in place of a perceptual distance."""
    assert first.shape[-1] == 256  # larger pictures are averaged down
    return (first - second).square().mean((1, 2, 3))
