"""Released snapshots: their weights by name, and the settings that make our networks compute what
theirs do.

Nothing in such a file is executed (see `training.checkpoints.released.unpickler`); sizes come from
the tensors, settings from the modules' states. A setting that our networks do not have is an error
and never silently ignored.
"""

from __future__ import annotations

import functools
import math
import os
import re
import sys
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from dnnlib.console import UserError
from training.cameras import FFHQ_FOCAL, LABEL_SIZE, SRN_CARS_FOCAL
from training.checkpoints.released.snapshot_modules import Part, Settings, is_number
from training.checkpoints.released.unpickler import read_pickle
from training.config.settings import (
    DiscriminatorConfig,
    GeneratorConfig,
    ModelConfig,
    RenderingConfig,
    SuperResolutionConfig,
)

MAPPING_LR_MULTIPLIER = 0.01
LICENCE_NOTE = (
    "note: weights released by others stay under their own licence, and converting them does not"
    " change that"
)

# Planes by the pair of world coordinates that span them: x = 0, y = 1, z = 2.
PLANE_AXES: dict[tuple[tuple[int, int], ...], Literal["released", "corrected"]] = {
    ((0, 1), (0, 2), (2, 0)): "released",
    ((0, 1), (0, 2), (2, 1)): "corrected",
}


@dataclass
class Weights:
    """Networks as they come from a file: settings and tensors by parameter name."""

    config: ModelConfig
    G: dict[str, Tensor] | None
    D: dict[str, Tensor] | None
    G_ema: dict[str, Tensor] | None
    cameras: dict[str, Any] | None  # radius, pivot and what else is known of the training cameras
    source: Literal["ours", "released"]
    latents: dict[str, Any] = field(default_factory=dict)
    directions: dict[str, Tensor] = field(default_factory=dict)
    encoder: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class SuperResolutionClass:
    """What one of the released super-resolution classes fixes."""

    resolution: int
    channels: tuple[int, ...]
    input_resolution: int = 128
    antialias: bool | None = None  # none = the snapshot says


SUPERRESOLUTION_CLASSES = {
    "SuperresolutionHybrid8XDC": SuperResolutionClass(512, (256, 128)),
    "SuperresolutionHybrid8X": SuperResolutionClass(512, (128, 64)),
    "SuperresolutionHybrid4X": SuperResolutionClass(256, (128, 64)),
    "SuperresolutionHybrid2X": SuperResolutionClass(128, (128, 64), input_resolution=64),
    "SuperresolutionHybridDeepfp32": SuperResolutionClass(256, (128, 64), antialias=False),
}


def read_released_snapshot(path: str | os.PathLike[str]) -> Weights:
    """Networks, settings and camera of a snapshot in the released layout. Runs nothing in the file.

    Raises:
        UserError: if the file cannot be read, or describes something our networks cannot be set to.
    """
    content = read_pickle(path)
    try:
        weights = convert_snapshot(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    _print_licence_note()
    return weights


def convert_snapshot(content: Any) -> Weights:
    """`Weights` from the object graph of a released snapshot.

    Raises:
        UserError: as `read_released_snapshot`, without the file's name.
    """
    if not isinstance(content, dict):
        raise UserError("this pickle is no snapshot: it holds no networks")
    parts = {
        name: Part(content[name], name)
        for name in ("G", "D", "G_ema")
        if content.get(name) is not None
    }
    generator = parts.get("G_ema") or parts.get("G")
    if generator is None:
        raise UserError("this pickle is no snapshot: it holds neither G_ema nor G")
    generator.require_class("TriPlaneGenerator")
    config = generator_settings(generator)
    if "D" in parts:
        config.discriminator = discriminator_settings(parts["D"], config.resolution)
    states = {name: part.tensors() for name, part in parts.items()}
    for name, state in states.items():
        check_filters(state, name)
    return Weights(
        config,
        states.get("G"),
        states.get("D"),
        states.get("G_ema"),
        cameras(generator),
        "released",
    )


@functools.cache  # once is enough
def _print_licence_note() -> None:
    print(LICENCE_NOTE, file=sys.stderr)


# --------------------------------------------------------------------------------------------------
# Settings of the generator


def generator_settings(part: Part) -> ModelConfig:
    """All settings that a released generator implies; those of the discriminator keep their
    defaults.
    """
    part.fixed("c_dim", LABEL_SIZE)
    part.fixed("img_channels", 3)
    check_linear_layers(part)
    scene = Settings(
        part.get("rendering_kwargs", lambda v: isinstance(v, dict), "a group of settings"),
        f"{part.where}.rendering_kwargs",
    )
    superresolution, resolution = superresolution_settings(part.child("superresolution"), scene)
    if part.whole("img_resolution", 1, 4096) != resolution:
        raise UserError(
            f"{part.where}: its super-resolution is made for {resolution} pixels, but"
            " img_resolution is not"
        )
    return ModelConfig(
        resolution=resolution,
        generator=backbone_settings(part, scene),
        superresolution=superresolution,
        rendering=rendering_settings(part, scene),
    )


def backbone_settings(part: Part, scene: Settings) -> GeneratorConfig:
    """Mapping network, synthesis network and decoder."""
    synthesis = part.child("backbone.synthesis")
    w_dim, _ = part.shape("backbone.mapping.embed.weight", 2)
    _, features = part.shape("backbone.mapping.fc0.weight", 2)
    decoder_hidden, plane_channels = part.shape("decoder.net.0.weight", 2)
    widths = {
        resolution: synthesis.shape(f"b{resolution}.conv1.weight", 4)[0]
        for resolution in block_resolutions(synthesis)
    }
    channel_base, channel_max = channel_settings(synthesis, widths)
    return GeneratorConfig(
        z_dim=features - w_dim,
        w_dim=w_dim,
        mapping_layers=count_mapping_layers(part.child("backbone.mapping")),
        pose_conditioning=not scene.flag("c_gen_conditioning_zero"),
        c_scale=scene.number("c_scale", 0.0),
        plane_resolution=max(widths),
        plane_channels=plane_channels,
        channel_base=channel_base,
        channel_max=channel_max,
        use_noise=common_setting(synthesis, "use_noise"),
        conv_clamp=common_setting(synthesis, "conv_clamp"),
        decoder_hidden=decoder_hidden,
    )


def superresolution_settings(part: Part, scene: Settings) -> tuple[SuperResolutionConfig, int]:
    """Settings of the super-resolution and the size of its output."""
    kind = SUPERRESOLUTION_CLASSES.get(part.class_name)
    if kind is None:
        known = ", ".join(SUPERRESOLUTION_CLASSES)
        raise UserError(
            f"{part.where} is of the unknown class {part.class_name[:60]!r}; known are {known}"
        )
    part.fixed("input_resolution", kind.input_resolution)
    antialias = kind.antialias
    if antialias is None:
        antialias = (part if "sr_antialias" in part.values else scene).flag("sr_antialias")
    modes = ("none", "const", "random")
    return (
        SuperResolutionConfig(
            channels=kind.channels,
            input_resolution=kind.input_resolution,
            antialias=antialias,
            noise_mode=scene.get(
                "superresolution_noise_mode",
                lambda v: isinstance(v, str) and v in modes,
                f"one of {', '.join(modes)}",
            ),
            use_noise=common_setting(part, "use_noise"),
            conv_clamp=common_setting(part, "conv_clamp"),
        ),
        kind.resolution,
    )


def rendering_settings(part: Part, scene: Settings) -> RenderingConfig:
    """Scene and volume rendering."""
    scene.fixed("clamp_mode", "softplus")
    scene.fixed("disparity_space_sampling", False)
    scene.fixed("density_noise", 0)
    near, far = ray_limit(scene, "ray_start"), ray_limit(scene, "ray_end")
    if (near == "auto") != (far == "auto"):
        raise UserError(f"{scene.where}: only one of ray_start and ray_end is auto")
    return RenderingConfig(
        resolution=part.whole("neural_rendering_resolution", 1, 4096),
        depth_resolution=scene.whole("depth_resolution", 2, 4096),
        depth_resolution_importance=scene.whole("depth_resolution_importance", 0, 4096),
        ray_start=near,
        ray_end=far,
        box_warp=scene.number("box_warp"),
        background=(1.0, 1.0, 1.0) if scene.flag("white_back", False) else None,
        plane_axes=plane_axes(part.child("renderer")),
        fine_sampling="released",
        density_gain=1.0,
    )


def ray_limit(scene: Settings, key: str) -> float | Literal["auto"]:
    """Where rays start or end: a distance or the box."""
    if scene.values.get(key) == "auto":
        return "auto"
    return scene.number(key)


def plane_axes(renderer: Part) -> Literal["released", "corrected"]:
    """Which planes a renderer projects onto; its matrices A give plane coordinates as the first two
    of p A^-1.
    """
    axes = {**renderer.values, **renderer.own_tensors()}.get("plane_axes")
    if axes is None:
        return "released"
    if (
        isinstance(axes, Tensor)
        and axes.shape == (3, 3, 3)
        and axes.is_floating_point()
        and bool(axes.double().det().abs().gt(1e-6).all())
    ):
        projections = axes.double().inverse()[:, :, :2]  # (plane, world axis, plane coordinate)
        pairs = tuple((int(p[:, 0].argmax()), int(p[:, 1].argmax())) for p in projections)
        ideal = torch.stack([torch.eye(3, dtype=torch.float64)[:, list(pair)] for pair in pairs])
        if pairs in PLANE_AXES and torch.allclose(projections, ideal, atol=1e-5):
            return PLANE_AXES[pairs]
    raise UserError(f"{renderer.where}: plane_axes are neither the released nor the corrected ones")


def cameras(part: Part) -> dict[str, Any] | None:
    """Orbit radius and pivot of the training cameras, where the file has them."""
    scene = Settings(part.values["rendering_kwargs"], f"{part.where}.rendering_kwargs")
    if scene.values.get("avg_camera_radius") is None:
        return None

    def is_point(value: Any) -> bool:
        return isinstance(value, (list, tuple)) and len(value) == 3 and all(map(is_number, value))

    pivot = scene.get("avg_camera_pivot", is_point, "three numbers", [0, 0, 0])
    radius, box = scene.number("avg_camera_radius"), scene.number("box_warp")
    # The file does not tell the focal length. Of the two that released models were trained with,
    # the longer one is that of face data; where it would show less than half of the box, it must
    # have been the other.
    focal = FFHQ_FOCAL if radius / FFHQ_FOCAL > box / 2 else SRN_CARS_FOCAL
    return {"radius": radius, "pivot": [float(value) for value in pivot], "focal": focal}


# --------------------------------------------------------------------------------------------------
# Settings of the discriminator


def discriminator_settings(part: Part, resolution: int) -> DiscriminatorConfig:
    """All settings of a released dual discriminator for pictures of `resolution` pixels."""
    part.require_class("DualDiscriminator")
    part.fixed("c_dim", LABEL_SIZE)
    part.fixed("img_channels", 6)
    check_linear_layers(part)
    resolutions = block_resolutions(part)
    if max(resolutions) != resolution:
        raise UserError(
            f"{part.where} is made for {max(resolutions)} pixels, the generator for {resolution}"
        )
    widths = {
        size: part.shape("b4.conv.weight" if size == 4 else f"b{size}.conv0.weight", 4)[0]
        for size in resolutions
    }
    channel_base, channel_max = channel_settings(part, widths)
    statistics = part.child("b4.mbstd")
    statistics.fixed("num_channels", 1)
    return DiscriminatorConfig(
        channel_base=channel_base,
        channel_max=channel_max,
        mapping_layers=count_mapping_layers(part.child("mapping")),
        mbstd_group_size=statistics.whole("group_size", 1, 4096),
        conv_clamp=common_setting(part, "conv_clamp"),
        c_noise=part.number("disc_c_noise", 0.0),
    )


# --------------------------------------------------------------------------------------------------
# Both


def block_resolutions(part: Part) -> list[int]:
    """Resolutions of the blocks b4, b8, ..., in rising order and without gaps."""
    found = sorted(
        int(name[1:]) for name in part.children() if re.fullmatch(r"b[1-9]\d{0,3}", name)
    )
    if len(found) < 2 or found != [4 << step for step in range(len(found))]:
        raise UserError(f"{part.where} has no complete series of blocks b4, b8, ...")
    return found


def channel_settings(part: Part, widths: dict[int, int]) -> tuple[int, int]:
    """`channel_base` and `channel_max` that give `widths` by resolution: those the file states,
    else the smallest that fit.
    """
    defaults = GeneratorConfig()
    stated = part.values.get("_init_kwargs")
    stated = stated if isinstance(stated, dict) else {}
    wished = (
        stated.get("channel_base", defaults.channel_base),
        stated.get("channel_max", defaults.channel_max),
    )
    smallest = (
        max(width * resolution for resolution, width in widths.items()),
        max(widths.values()),
    )
    for base, maximum in (wished, smallest):
        if (
            type(base) is int
            and type(maximum) is int
            and all(min(base // r, maximum) == width for r, width in widths.items())
        ):
            return base, maximum
    raise UserError(
        f"{part.where}: no channel_base and channel_max give its blocks' widths"
        f" {list(widths.values())}"
    )


def count_mapping_layers(mapping: Part) -> int:
    """Number of layers fc0, fc1, ..., which must follow one another."""
    names = {name for name in mapping.children() if re.fullmatch(r"fc\d+", name)}
    if not names or names != {f"fc{index}" for index in range(len(names))}:
        raise UserError(f"{mapping.where} has no complete series of layers fc0, fc1, ...")
    return len(names)


def common_setting(part: Part, key: Literal["conv_clamp", "use_noise"]) -> Any:
    """The value of `key` that all layers inside share; skip branches of a discriminator have no
    clamp and do not count.
    """
    layers = [
        layer
        for name, layer in part.walk()
        if key in layer.values and name.rpartition(".")[2] != "skip"
    ]
    found: set[Any] = set()
    for layer in layers:
        found.add(
            layer.flag(key)
            if key == "use_noise"
            else None
            if layer.values[key] is None
            else layer.number(key)
        )
    if len(found) != 1:
        raise UserError(
            f"{part.where}: its layers do not agree on {key}"
            if found
            else f"{part.where}: no layer states {key}"
        )
    return found.pop()


def check_filters(state: dict[str, Tensor], where: str) -> None:
    """Refuse resampling filters other than the outer product of [1, 3, 3, 1] with itself, which our
    networks have built in.
    """
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    for name, value in state.items():
        if name.rpartition(".")[2] == "resample_filter" and (
            value.shape != (4, 4) or not torch.allclose(value.float(), taps.outer(taps))
        ):
            raise UserError(f"{where}.{name} is not the filter [1, 3, 3, 1]; not supported")


def check_linear_layers(part: Part) -> None:
    """Refuse learning-rate multipliers other than ours: they are part of what a fully connected
    layer computes.
    """
    for name, layer in part.walk():
        if layer.class_name == "FullyConnectedLayer":
            expected = MAPPING_LR_MULTIPLIER if re.search(r"mapping\.fc\d+$", name) else 1.0
            gain = expected / math.sqrt(layer.shape("weight", 2)[1] or 1)
            if not math.isclose(
                layer.number("weight_gain"), gain, rel_tol=1e-4
            ) or not math.isclose(layer.number("bias_gain"), expected):
                raise UserError(
                    f"{layer.where} has a learning-rate multiplier other than {expected}; not"
                    " supported"
                )
