"""The sampling function: fake i is the same picture in any batch and any process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from metrics.geometry import view_angle
from metrics.processes import CPU, WorkerGroup

# Streams of random numbers of one fake, besides its latent.
CAMERA_STREAM, SECOND_LATENT_STREAM, SECOND_CAMERA_STREAM = 1, 2, 3
NEAR_DRAWS = 16
# of a second camera; across much more, two views of a round object share no surface
NEAR_ANGLE = np.radians(40)


class Sampler(Protocol):
    """All that metrics of picture sets need."""

    @property
    def protocol(self) -> dict[str, Any]:
        """How the pictures come about, for the report; plain values."""
        ...

    def __call__(self, start: int, count: int) -> Tensor:
        """Fakes number start .. start + count - 1: uint8 pictures (count, 3, H, W)."""
        ...


class RenderOutput(Protocol):
    """Pictures of N views: `image` (N, 3, R, R) and `image_raw` (N, 3, r, r) in [-1, 1],
    `image_depth` (N, 1, r, r) along the ray in world units, `alpha` (N, 1, r, r) in [0, 1].
    """

    @property
    def image(self) -> Tensor: ...
    @property
    def image_raw(self) -> Tensor: ...
    @property
    def image_depth(self) -> Tensor: ...
    @property
    def alpha(self) -> Tensor: ...


class ViewModel(Protocol):
    """A scene that renders itself from any camera."""

    def planes(self, ws: Tensor, noise_mode: Any = ...) -> Tensor:
        """Tri-planes (N, 3, C, H, W) of latents ws (N, num_ws, w_dim), the same for all views."""
        ...

    def render(
        self,
        planes: Tensor,
        ws: Tensor,
        c: Tensor,
        neural_rendering_resolution: int | None = ...,
        deterministic: bool = ...,
    ) -> RenderOutput:
        """Views of the planes from camera labels c (N, 25)."""
        ...


class ViewGenerator(ViewModel, Protocol):
    """A `ViewModel` that makes its latents: a `Generator`, or anything shaped like it."""

    @property
    def z_dim(self) -> int: ...

    def mapping(
        self, z: Tensor, c: Tensor, truncation_psi: float = ..., truncation_cutoff: int | None = ...
    ) -> Tensor:
        """ws (N, num_ws, w_dim) of latents z (N, z_dim) conditioned on cameras c (N, 25)."""
        ...


CameraDraw = Callable[[np.random.RandomState], Tensor]
"""Draws one camera label (25,)."""


@dataclass
class GeneratorSampler:
    """Fakes of a generator: latent i is `numpy.random.RandomState(seed + i).randn(1, z_dim)`, its
    camera is drawn for it alone.

    Attributes:
        model, draw_camera, device: what renders, from where, where it computes.
        conditioning: camera (25,) that all latents are conditioned on; None = each on the camera it
            is seen from, as in the EG3D paper.
        seed: of fake 0. truncation_psi, truncation_cutoff, neural_rendering_resolution: as the
            generator takes them.
        has_random_noise: the model draws noise while rendering; pictures are then made one by one,
            each with its seed.
        details: what else belongs into the protocol (network, cameras, precision).
    """

    model: ViewGenerator
    draw_camera: CameraDraw
    device: torch.device = CPU
    conditioning: Tensor | None = None
    seed: int = 0
    truncation_psi: float = 1.0
    truncation_cutoff: int | None = None
    neural_rendering_resolution: int | None = None
    has_random_noise: bool = False
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def protocol(self) -> dict[str, Any]:
        """How the pictures come about."""
        return {
            "conditioning": "own camera" if self.conditioning is None else "fixed",
            "seed": self.seed,
            "truncation_psi": self.truncation_psi,
            "truncation_cutoff": self.truncation_cutoff,
            "neural_rendering_resolution": self.neural_rendering_resolution,
            **self.details,
        }

    def batches(
        self, count: int, batch: int, team: WorkerGroup, description: str
    ) -> Iterator[tuple[int, int]]:
        """This process's share of fakes 0..count-1 as (start, length), with a progress bar."""
        yield from team.shown_batches(count, 1 if self.has_random_noise else batch, description)

    def random(self, index: int, stream: int) -> np.random.RandomState:
        """Random numbers that belong to fake `index` alone."""
        return np.random.RandomState(
            np.random.MT19937(np.random.SeedSequence([self.seed + index, stream]))
        )

    def latents(self, start: int, count: int) -> Tensor:
        """z (count, z_dim)."""
        return self._normal([np.random.RandomState(self.seed + start + i) for i in range(count)])

    def second_latents(self, start: int, count: int) -> Tensor:
        """Other latents (count, z_dim), to which paths from `latents` lead."""
        return self._normal([self.random(start + i, SECOND_LATENT_STREAM) for i in range(count)])

    def _normal(self, randoms: list[np.random.RandomState]) -> Tensor:
        rows = [random.randn(self.model.z_dim) for random in randoms]
        return torch.from_numpy(np.stack(rows)).float().to(self.device)

    def cameras(self, start: int, count: int, stream: int = CAMERA_STREAM) -> Tensor:
        """Labels (count, 25) that the fakes are seen from."""
        draws = [self.draw_camera(self.random(start + i, stream)) for i in range(count)]
        return torch.stack(draws).float().to(self.device)

    def second_cameras(self, start: int, count: int) -> Tensor:
        """Other labels (count, 25): the first of 16 draws that looks within 40 degrees of the first
        camera, else the nearest of them.
        """
        firsts = self.cameras(start, count).cpu()
        seconds = [
            self._near(first, self.random(start + i, SECOND_CAMERA_STREAM))
            for i, first in enumerate(firsts)
        ]
        return torch.stack(seconds).float().to(self.device)

    def _near(self, first: Tensor, random: np.random.RandomState) -> Tensor:
        candidates = []
        for _ in range(NEAR_DRAWS):
            camera = self.draw_camera(random)
            angle = view_angle(first, camera)
            if 0 < angle <= NEAR_ANGLE:
                return camera
            # the same camera again would compare a picture with itself
            candidates.append((angle or np.inf, camera))
        return min(candidates, key=lambda candidate: candidate[0])[1]

    @torch.no_grad()
    def ws(self, z: Tensor, c: Tensor) -> Tensor:
        """Latents (N, L, w_dim) of z (N, z_dim) that are to be seen from c (N, 25)."""
        condition = c if self.conditioning is None else self.conditioning.to(c).expand(len(c), -1)
        return self.model.mapping(z, condition, self.truncation_psi, self.truncation_cutoff)

    @torch.no_grad()
    def render(
        self, ws: Tensor, c: Tensor, start: int, planes: Tensor | None = None
    ) -> RenderOutput:
        """Views (N) of ws from c (N, 25) for fakes start, start + 1, ..."""
        planes = self.model.planes(ws) if planes is None else planes
        with torch.random.fork_rng(
            devices=[self.device] if self.device.type == "cuda" else [],
            enabled=self.has_random_noise,
        ):
            if self.has_random_noise:
                torch.manual_seed(self.seed + start)
            return self.model.render(
                planes, ws, c, self.neural_rendering_resolution, deterministic=True
            )

    def __call__(self, start: int, count: int) -> Tensor:
        """Fakes start .. start + count - 1 as uint8 pictures (count, 3, H, W)."""
        return self.pictures(start, count)

    def pictures(self, start: int, count: int, stream: int = CAMERA_STREAM) -> Tensor:
        """Fakes, each conditioned on its camera, as uint8 pictures (count, 3, H, W) from there or
        from a camera that is drawn from another stream.
        """
        if self.has_random_noise and count > 1:
            return torch.cat([self.pictures(start + i, 1, stream) for i in range(count)])
        ws = self.ws(self.latents(start, count), self.cameras(start, count))
        return to_pixels(self.render(ws, self.cameras(start, count, stream), start).image)


def to_pixels(images: Tensor) -> Tensor:
    """Pictures in [-1, 1] as uint8, rounded and clamped; NaN becomes 0."""
    return ((images.float() + 1) * 127.5).nan_to_num(nan=0.0).round().clamp(0, 255).to(torch.uint8)
