"""An inversion from its pictures to its result: camera, latents, tuned weights."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from dnnlib.console import UserError
from training.cameras import cameras_of
from training.inversion.latents import (
    LatentSettings,
    LatentStatistics,
    OnStep,
    fit_latents,
)
from training.inversion.objective import Objective
from training.inversion.pose import describe_pose
from training.inversion.pti import TuningSettings, tune_generator
from training.inversion.starts import find_camera
from training.networks.generator import Generator

Method = Literal["w", "w+", "pti"]
METHODS: tuple[Method, ...] = ("w", "w+", "pti")
# Shares of the seconds: to find cameras, and of the rest for latents where weights are tuned too.
CAMERA_SHARE, LATENT_SHARE = 0.25, 0.4


@dataclass(frozen=True)
class InversionSettings:
    """Settings of an inversion.

    Attributes:
        method: w (one latent), w+ (one per layer), pti (w+, then tuned weights).
        latents, tuning: Of the parts.
        seconds: Time for it all, after which it ends with what it has; None = all steps.
        seed: Of what is random.
    """

    method: Method = "pti"
    latents: LatentSettings = field(default_factory=LatentSettings)
    tuning: TuningSettings = field(default_factory=TuningSettings)
    seconds: float | None = None
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Inversion:
    """The identity in K pictures.

    Attributes:
        generator: Shows it; with pti a copy with weights of its own.
        ws: Its latents (1, num_ws, w_dim). labels: The pictures' cameras (K, 25).
        objective: The pictures and masks. method: What was done.
        losses: Means over the pictures: `loss`, `l1`, `psnr` (dB), and `perceptual`.
        poses: Of each picture: yaw, pitch, roll (degrees), distance, shift, focal; where the camera
            was not known also `starts`, `sure` and `spread` of `find_camera`.
        seconds: Time it took.
    """

    generator: Generator
    ws: Tensor
    labels: Tensor
    objective: Objective
    method: str
    losses: dict[str, float]
    poses: list[dict[str, Any]]
    seconds: float

    @torch.no_grad()
    def reconstruction(self) -> Tensor:
        """Pictures (K, 3, R, R) of the identity from the cameras of the given ones, in [-1, 1]."""
        return self.generator.synthesis(self.ws, self.labels).image.clamp(-1, 1)

    def entry(self, source: str = "") -> dict[str, Any]:
        """What a checkpoint keeps under the identity's name."""
        return {"ws": self.ws[0].cpu(), "camera": self.labels[0].cpu(), "source": source}


def invert_pictures(
    generator: Generator,
    objective: Objective,
    labels: Tensor | Sequence[Tensor | None] | None,
    settings: InversionSettings,
    *,
    optimise_pose: bool = False,
    on_step: OnStep = lambda *_: None,
) -> Inversion:
    """Find the identity that K pictures show.

    Args:
        labels: Their cameras (K, 25); None, for all or for some of them = not known, several starts
            look for them.
        optimise_pose: Optimise cameras even where all are known, from where they are.

    Raises:
        UserError: for an unknown method, or if no camera can be found.
    """
    if settings.method not in METHODS:
        raise UserError(f"unknown method {settings.method!r}; known are {', '.join(METHODS)}")
    started = time.monotonic()
    statistics = LatentStatistics.of(generator, settings.seed)
    known = [None] * len(objective) if labels is None else list(labels)
    budget, unknown = settings.seconds, [index for index, c in enumerate(known) if c is None]
    found: dict[int, dict[str, Any]] = {}
    for index in unknown:
        share = None if budget is None else budget * CAMERA_SHARE / len(unknown)
        c, found[index] = find_camera(
            generator,
            objective[index],
            statistics,
            settings.latents,
            seconds=share,
            on_step=on_step,
            seed=settings.seed,
        )
        known[index] = c[0]
    cameras = torch.stack([c.to(statistics.mean) for c in known if c is not None])
    rest = None if budget is None else budget - (time.monotonic() - started)
    is_tuned = settings.method == "pti"
    layers = 1 if settings.method == "w" else generator.num_ws
    fit = fit_latents(
        generator,
        objective,
        statistics,
        statistics.mean.expand(1, layers, -1),
        cameras,
        settings.latents,
        moves_cameras=optimise_pose or bool(unknown),
        seconds=None if rest is None else rest * (LATENT_SHARE if is_tuned else 1),
        on_step=on_step,
        seed=settings.seed,
    )
    if is_tuned:
        rest = None if budget is None else budget - (time.monotonic() - started)
        generator = tune_generator(
            generator,
            objective,
            statistics,
            fit.ws,
            fit.labels,
            settings.tuning,
            seconds=rest,
            on_step=on_step,
            seed=settings.seed,
        )
    return Inversion(
        generator,
        fit.ws,
        fit.labels,
        objective,
        settings.method,
        _losses(generator, objective, fit.ws, fit.labels),
        _poses(generator, fit.labels, found),
        time.monotonic() - started,
    )


@torch.no_grad()
def _losses(
    generator: Generator, objective: Objective, ws: Tensor, labels: Tensor
) -> dict[str, float]:
    out = generator.synthesis(ws, labels)
    values = {
        "loss": objective(out),
        "l1": objective.l1(out.image),
        "perceptual": objective.perceptual(objective.masked(out.image), objective.images),
        "psnr": objective.psnr(out.image),
    }
    return {name: float(value.mean()) for name, value in values.items()}


def _poses(
    generator: Generator, labels: Tensor, found: dict[int, dict[str, Any]]
) -> list[dict[str, Any]]:
    cameras = cameras_of(generator)
    return [{**describe_pose(c, cameras), **found.get(index, {})} for index, c in enumerate(labels)]


def plain_settings(settings: InversionSettings) -> dict[str, Any]:
    """Settings as plain values."""
    return dataclasses.asdict(settings)
