"""Render the pictures of one session. Planes are kept while only the camera moves."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from media.pictures.grids import (
    PANELS,
    Pictures,
    map_seed,
    shade_depth,
    shade_normals,
    to_pictures,
)
from media.pictures.panels import shared_limits
from training.cameras import CameraSummary, cameras_of, pack_label, unpack_label
from training.networks.generator import Generator, GeneratorOutput

KINDS = PANELS


@dataclass(frozen=True)
class Latents:
    """Latents of the picture. Layers count from 0, the coarsest; angles are radians."""

    seed: int = 0
    identity: str | None = None  # named latents of the file, instead of the seed's
    edits: tuple[tuple[str, float], ...] = ()  # steps along directions of the file
    truncation_psi: float = 1.0
    truncation_cutoff: int | None = None
    other_seed: int = 1
    other_identity: str | None = None  # named latents instead of the other seed's
    blend: float = 0.0  # 0 = seed, 1 = other_seed
    style_seed: int | None = None  # None = no mixing
    style_layers: tuple[int, int] = (0, 0)  # first and last layer that get the style seed's latents
    # yaw and pitch given to the mapping network; None = the frontal pose
    conditioning: tuple[float, float] | None = None


@dataclass(frozen=True)
class View:
    """Camera and panel of the picture. The camera is on the data's orbit; zooming changes its focal
    length, because near and far limits are distances from the camera.
    """

    kind: str = "image"
    yaw: float = 0.0
    pitch: float = 0.0
    zoom: float = 1.0
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of camera and pivot, world units
    field_of_view: float | None = None  # degrees; None = the data's
    resolution: int | None = None  # of the neural rendering; None = the model's
    # per ray in the first pass, in the second in proportion; None = the model's
    samples: int | None = None


class ViewRenderer:
    """Renders one session's pictures of a generator that others use at the same time: its
    parameters are shared, settings are not.

    Args:
        tuned: By the name of an identity, the generator with weights of its own that shows it.
    """

    def __init__(self, generator: Generator, tuned: Mapping[str, Generator] | None = None) -> None:
        self.generator = copy.copy(generator)
        self.generator.config = copy.deepcopy(generator.config)
        self.tuned = {name: copy.copy(one) for name, one in (tuned or {}).items()}
        for one in self.tuned.values():
            one.config = self.generator.config
        self.cameras: CameraSummary = cameras_of(generator)
        self.device = next(generator.parameters()).device
        self._model_samples = (
            self.generator.rendering.depth_resolution,
            self.generator.rendering.depth_resolution_importance,
        )
        self._known: tuple[Latents, Tensor, Tensor] | None = None

    @property
    def resolution(self) -> int:
        """Pixels of the model's own neural rendering."""
        return self.generator.rendering.resolution

    @property
    def samples(self) -> int:
        """The model's own samples per ray in the first pass."""
        return self._model_samples[0]

    @property
    def field_of_view(self) -> float:
        """Vertical field of view of the data's cameras, degrees."""
        return math.degrees(2 * math.atan(0.5 / self.cameras.intrinsics[4]))

    @property
    def distance(self) -> float:
        """From the frontal camera to the pivot, world units."""
        position = unpack_label(self.cameras.frontal_label())[0][:3, 3]
        return float((position - torch.tensor(self.cameras.pivot)).norm())

    @torch.no_grad()
    def ws(self, latents: Latents) -> Tensor:
        """Latents (1, num_ws, w_dim): interpolated, mixed by layers, then edited."""
        ws = self._one(latents.identity, latents.seed, latents)
        if latents.blend:
            other = self._one(latents.other_identity, latents.other_seed, latents)
            ws = torch.lerp(ws, other, latents.blend)
        if latents.style_seed is not None:
            first, last = latents.style_layers
            layers = torch.arange(ws.shape[1], device=ws.device)[None, :, None]
            ws = torch.where(
                (layers >= first) & (layers <= last), self._map(latents.style_seed, latents), ws
            )
        for name, steps in latents.edits:
            ws = ws + steps * self.generator.directions[name].to(ws)
        return ws

    def _one(self, identity: str | None, seed: int, latents: Latents) -> Tensor:
        """Latents of an identity of the file, or of a seed."""
        if identity is None:
            return self._map(seed, latents)
        known = self.generator.latents[identity]["ws"][None].to(self.device)
        return self.generator.backbone.mapping.truncate(
            known, latents.truncation_psi, latents.truncation_cutoff
        )

    def _map(self, seed: int, latents: Latents) -> Tensor:
        pose = None if latents.conditioning is None else self.cameras.label(*latents.conditioning)
        return map_seed(
            self.generator, seed, latents.truncation_psi, latents.truncation_cutoff, pose
        )

    def shows(self, latents: Latents) -> Generator:
        """The generator that shows these latents: that of their first identity."""
        return self.tuned.get(latents.identity or "", self.generator)

    @torch.no_grad()
    def planes(self, latents: Latents) -> tuple[Tensor, Tensor]:
        """ws (1, num_ws, w_dim) and planes (1, 3, C, H, W), kept until other latents are asked
        for.
        """
        if self._known is None or self._known[0] != latents:
            ws = self.ws(latents)
            planes = self.shows(latents).planes(ws)
            fast = (
                planes.flatten(0, 1)
                .contiguous(memory_format=torch.channels_last)
                .unflatten(0, planes.shape[:2])
            )
            self._known = (latents, ws, fast)
        return self._known[1:]

    def label(self, view: View) -> Tensor:
        """Camera label (25,)."""
        cam2world, intrinsics = unpack_label(self.cameras.label(view.yaw, view.pitch))
        cam2world[:3, 3] += torch.tensor(view.shift)
        factor = view.zoom
        if view.field_of_view is not None:
            factor *= (
                0.5 / math.tan(math.radians(view.field_of_view) / 2) / self.cameras.intrinsics[4]
            )
        intrinsics = intrinsics.clone()
        intrinsics[:2] *= factor
        intrinsics[:2, 2] += 0.5 - 0.5 * factor  # zooms around the picture's middle
        return pack_label(cam2world, intrinsics)

    @torch.no_grad()
    def render(
        self, latents: Latents, view: View, limits: tuple[float, float] | None = None
    ) -> Pictures:
        """The picture (n, n, 3). `limits` are the depths that are white and darkest; none = the
        view's own.
        """
        c, out = self._output(latents, view)
        if view.kind == "depth":
            return shade_depth(out.image_depth, out.alpha, limits)[0]
        if view.kind == "normals":
            return shade_normals(self.shows(latents), self.planes(latents)[1], c, out)[0]
        return to_pictures(out.image if view.kind == "image" else out.image_raw)[0]

    @torch.no_grad()
    def depth_limits(self, latents: Latents, views: Sequence[View]) -> tuple[float, float] | None:
        """One scale of depth for some views."""
        return shared_limits(self._output(latents, view)[1] for view in views)

    def _output(self, latents: Latents, view: View) -> tuple[Tensor, GeneratorOutput]:
        ws, planes = self.planes(latents)
        self._set_samples(view.samples)
        c = self.label(view)[None].to(self.device)
        return c, self.shows(latents).render(planes, ws, c, view.resolution)

    def _set_samples(self, samples: int | None) -> None:
        coarse, fine = self._model_samples
        chosen = samples or coarse
        self.generator.config.rendering = dataclasses.replace(
            self.generator.rendering,
            depth_resolution=chosen,
            depth_resolution_importance=round(fine * chosen / coarse),
        )

    def background(self, kind: str) -> tuple[int, int, int]:
        """Colour, 0 to 255, around a picture in a window that is not square."""
        color = self.generator.rendering.background
        if kind not in ("image", "raw") or color is None:
            return (0, 0, 0)
        red, green, blue = (round(255 * value) for value in color)
        return (red, green, blue)


def letterbox(picture: Pictures, aspect: float, color: tuple[int, int, int]) -> Pictures:
    """A picture (n, n, 3) in the middle of one whose width is `aspect` times its height."""
    size = len(picture)
    height, width = (size, round(size * aspect)) if aspect >= 1 else (round(size / aspect), size)
    wide = np.empty((height, width, 3), np.uint8)
    wide[:] = color
    top, left = (height - size) // 2, (width - size) // 2
    wide[top : top + size, left : left + size] = picture
    return wide
