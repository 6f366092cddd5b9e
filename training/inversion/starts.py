"""Cameras of pictures that come without: several starts over the checkpoint's own range."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from dnnlib.console import UserError
from training.cameras import CameraSummary, cameras_of
from training.inversion.encoder import Encoded
from training.inversion.latents import (
    Fit,
    LatentSettings,
    LatentStatistics,
    OnStep,
    fit_latents,
)
from training.inversion.objective import Objective
from training.inversion.pose import angle_between, describe_pose
from training.networks.generator import Generator

PITCHES = 5  # tried at each yaw with the mean latent, without a gradient
DISTINCT = 10.0  # degrees from which poses are two answers and not one


def find_camera(
    generator: Generator,
    objective: Objective,
    statistics: LatentStatistics,
    settings: LatentSettings,
    encoded: Encoded | None = None,
    *,
    seconds: float | None = None,
    on_step: OnStep = lambda *_: None,
    seed: int = 0,
) -> tuple[Tensor, dict[str, Any]]:
    """Camera (1, 25) of one picture, and what the starts came to: their poses and losses; `sure`
    is by what share the best loss is below that of the best other answer, `spread` how many
    degrees the good starts are apart.

    Args:
        encoded: What an encoder says: its camera is one more start, its latents are that of all.

    Raises:
        UserError: if the checkpoint knows no cameras to start from.
    """
    if not generator.cameras:
        raise UserError(
            "the network knows no cameras, so that none can be found; give the camera's label"
        )
    cameras = cameras_of(generator)
    quick = dataclasses.replace(settings, steps=settings.start_steps)
    starts = start_labels(generator, objective, statistics, cameras, settings)
    w = statistics.mean[None, None]
    if encoded is not None:
        starts, w = torch.cat([encoded.labels, starts]), encoded.ws.mean(1, keepdim=True)
    share = None if seconds is None else seconds / len(starts)
    fits = []
    for index, c in enumerate(starts):

        def tell(_: str, done: float, loss: float, index: int = index) -> None:
            on_step("camera", (index + done) / len(starts), loss)

        fits.append(
            fit_latents(
                generator,
                objective,
                statistics,
                w,
                c[None],
                quick,
                moves_cameras=True,
                seconds=share,
                on_step=tell,
                seed=seed,
            )
        )
    fits.sort(key=lambda fit: fit.loss)
    return fits[0].labels, _outcome(fits, cameras)


@torch.no_grad()
def start_labels(
    generator: Generator,
    objective: Objective,
    statistics: LatentStatistics,
    cameras: CameraSummary,
    settings: LatentSettings,
) -> Tensor:
    """Labels (starts, 25): yaws over the range, each with the pitch at which the mean latent is
    nearest to the picture.
    """
    ws = statistics.mean.expand(1, generator.num_ws, -1)
    planes = generator.planes(ws)
    chosen = []
    for c in cameras.grid(settings.starts, PITCHES).to(ws).split(PITCHES):
        losses = torch.cat([objective(generator.render(planes, ws, one)) for one in c.split(1)])
        chosen.append(c[losses.argmin()])
    return torch.stack(chosen)


def _outcome(fits: list[Fit], cameras: CameraSummary) -> dict[str, Any]:
    """Plain values of fits, the best first."""
    best = fits[0]
    away = [angle_between(best.labels[0], fit.labels[0], cameras) for fit in fits]
    others = [fit.loss for fit, angle in zip(fits, away, strict=True) if angle > DISTINCT]
    near = [angle for angle in away if angle <= DISTINCT]
    return {
        "starts": [
            {**describe_pose(fit.labels[0], cameras), "loss": round(fit.loss, 5)} for fit in fits
        ],
        "sure": round(1 - best.loss / max(min(others), 1e-12), 4) if others else 1.0,
        "spread": round(math.sqrt(sum(angle**2 for angle in near) / len(near)), 3),
    }
