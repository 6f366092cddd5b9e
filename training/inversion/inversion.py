"""An inversion from its pictures to its result: camera, latents, tuned weights."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from dnnlib.console import UserError
from training.cameras import cameras_of
from training.inversion.encoder import Encoded, encode
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

Method = Literal["auto", "w", "w+", "pti", "encoder", "encoder+pti"]
METHODS: tuple[Method, ...] = get_args(Method)
ENCODER_SECONDS, ENCODER_PTI_SECONDS = 1.0, 20.0  # below which "auto" takes these methods
# Shares of the seconds: to find cameras, and of the rest for latents where weights are tuned too.
CAMERA_SHARE, LATENT_SHARE = 0.25, 0.4


@dataclass(frozen=True)
class InversionSettings:
    """Settings of an inversion.

    Attributes:
        method: w (one latent), w+ (one per layer), pti (w+, then tuned weights), encoder (what the
            file's encoder says at once), encoder+pti (that, then tuned weights), auto (by time).
        latents, tuning: Of the parts.
        seconds: Time for it all, after which it ends with what it has; None = all steps.
        seed: Of what is random.
    """

    method: Method = "auto"
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
        optimise_pose: Optimise cameras even where all are known, from where they are; an encoder
            is asked instead.

    Raises:
        UserError: for an unknown method, or if no camera can be found.
    """
    started = time.monotonic()
    method = chosen_method(generator, settings)
    encoded = encode(generator, objective.images)
    is_tuned = method.endswith("pti")

    def remaining(share: float = 1.0) -> float | None:
        """Share of the seconds that are left."""
        if settings.seconds is None:
            return None
        return share * (settings.seconds - (time.monotonic() - started))

    known = [None] * len(objective) if labels is None else list(labels)
    unknown = [index for index, c in enumerate(known) if c is None]
    found: dict[int, dict[str, Any]] = {}
    if encoded is not None and method.startswith("encoder"):
        ws = encoded.ws
        pairs = zip(known, encoded.labels, strict=True)
        asked = [said if c is None or optimise_pose else c.to(said) for c, said in pairs]
        cameras = torch.stack(asked)
    else:
        statistics = LatentStatistics.of(generator, settings.seed)
        share = remaining(CAMERA_SHARE / max(len(unknown), 1))
        for index in unknown:
            c, found[index] = find_camera(
                generator,
                objective[index],
                statistics,
                settings.latents,
                encoded and encoded[index],
                seconds=share,
                on_step=on_step,
                seed=settings.seed,
            )
            known[index] = c[0]
        cameras = torch.stack([c.to(statistics.mean) for c in known if c is not None])
        layers = 1 if method == "w" else generator.num_ws
        fit = fit_latents(
            generator,
            objective,
            statistics,
            _start(generator, objective, statistics, cameras, encoded, layers),
            cameras,
            settings.latents,
            moves_cameras=optimise_pose or bool(unknown),
            seconds=remaining(LATENT_SHARE if is_tuned else 1),
            on_step=on_step,
            seed=settings.seed,
        )
        ws, cameras = fit.ws, fit.labels
    if is_tuned:
        generator = tune_generator(
            generator,
            objective,
            LatentStatistics.of(generator, settings.seed),
            ws,
            cameras,
            settings.tuning,
            seconds=remaining(),
            on_step=on_step,
            seed=settings.seed,
        )
    return Inversion(
        generator,
        ws,
        cameras,
        objective,
        method,
        _losses(generator, objective, ws, cameras),
        _poses(generator, cameras, found),
        time.monotonic() - started,
    )


def chosen_method(generator: Generator, settings: InversionSettings) -> Method:
    """The method of settings; auto is the best one for the time given.

    Raises:
        UserError: for an unknown method, and for an encoder that the file does not hold.
    """
    method, seconds = settings.method, settings.seconds
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}; known are {', '.join(METHODS)}")
    if method.startswith("encoder") and not generator.encoder:
        raise UserError(
            "the network holds no encoder; train one with invert.py --train-encoder, or take"
            " another --method"
        )
    if method != "auto":
        return method
    if not generator.encoder or seconds is None or seconds >= ENCODER_PTI_SECONDS:
        return "pti"
    return "encoder" if seconds < ENCODER_SECONDS else "encoder+pti"


@torch.no_grad()
def _start(
    generator: Generator,
    objective: Objective,
    statistics: LatentStatistics,
    labels: Tensor,
    encoded: Encoded | None,
    layers: int,
) -> Tensor:
    """Latents (1, layers, w_dim) to start from: the mean, or the encoder's if these are nearer."""
    mean = statistics.mean.expand(1, generator.num_ws, -1)
    starts = [mean] if encoded is None else [mean, encoded.ws]
    losses = [
        float(objective(generator.render(generator.planes(ws), ws, labels)).mean()) for ws in starts
    ]
    best = starts[losses.index(min(losses))]
    return best if layers > 1 else best.mean(1, keepdim=True)


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
