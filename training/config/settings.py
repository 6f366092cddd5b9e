"""All settings: dataclasses, presets and their JSON form. The one place where a default lives.

A `ModelConfig` describes the two networks and the scene they render; a `Config` adds data, training
and augmentation. Defaults are the published ones (EG3D, supplement section "Implementation
details").
"""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from dnnlib.console import UserError, brief

Precision = Literal["fp32", "bf16", "fp16"]
LONGEST_VALUE = 100  # characters of a value in an error message


@dataclass
class GeneratorConfig:
    """Mapping network, tri-plane backbone and decoder."""

    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 2
    mapping_lr_multiplier: float = 0.01
    pose_conditioning: bool = True  # off: the mapping network does not see the camera
    # without pose conditioning embed a label of zeros, as released networks do; off: latents only
    constant_embedding: bool = True
    c_scale: float = 1.0  # factor on the camera label before the mapping network
    plane_resolution: int = 256
    plane_channels: int = 32
    channel_base: int = 32768
    channel_max: int = 512
    use_noise: bool = True
    conv_clamp: float | None = None
    decoder: str = "two_layer"  # by its name in training.networks.generator.DECODERS
    decoder_hidden: int = 64


@dataclass
class SuperResolutionConfig:
    """Network from the feature image to the final image."""

    kind: str = "standard"  # by its name in training.networks.generator.SUPERRESOLUTIONS
    # one entry a block; none = the published channels for the resolution
    channels: tuple[int, ...] | None = None
    input_resolution: int | None = None  # none = min(128, resolution / 2)
    antialias: bool = True  # of the resize to the input resolution
    noise_mode: Literal["none", "const", "random"] = "none"
    use_noise: bool = True
    conv_clamp: float | None = 256.0


@dataclass
class RenderingConfig:
    """Scene and volume rendering. Lengths are in world units, colours in [0, 1]."""

    resolution: int = 64  # of the neural rendering, pixels
    depth_resolution: int = 48
    depth_resolution_importance: int = 48
    ray_start: float | Literal["auto"] = 2.25  # auto: where the ray enters the box
    ray_end: float | Literal["auto"] = 3.3
    box_warp: float = 1.0  # side of the cube the planes span
    # in which densities count, and cameras are told to networks. Released models: the world's. With
    # the box's, a scene in any unit gives the same pictures and losses
    length_unit: Literal["world", "box"] = "world"
    background: tuple[float, float, float] | None = None
    plane_axes: Literal["corrected", "released"] = "corrected"
    fine_sampling: str = "interval"  # by its name in training.rendering.sampling.FINE_SAMPLERS
    # random numbers of fine samples: each its own, one per equal part, or one shift of all
    fine_offsets: Literal["independent", "stratified", "systematic"] = "independent"
    density_gain: float = 1.0

    @property
    def unit(self) -> float:
        """World length of the unit in which densities count."""
        return 1.0 if self.length_unit == "world" else self.box_warp


@dataclass
class DiscriminatorConfig:
    """Discriminator."""

    kind: str = "dual"  # by its name in training.networks.discriminator.DISCRIMINATORS
    channel_base: int = 32768
    channel_max: int = 512
    mapping_layers: int = 8
    mapping_lr_multiplier: float = 0.01
    mbstd_group_size: int = 4
    conv_clamp: float | None = 256.0
    c_noise: float = 0.0  # noise on the camera label, in its standard deviations over the batch


@dataclass
class ModelConfig:
    """Everything that fixes the networks' parameters and what they compute."""

    resolution: int = 512  # of the final image, pixels
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    superresolution: SuperResolutionConfig = field(default_factory=SuperResolutionConfig)
    rendering: RenderingConfig = field(default_factory=RenderingConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)


@dataclass
class DataConfig:
    """Where the pictures come from."""

    path: str = ""
    mirror: bool = False  # also train on every picture's mirror image, with the mirrored camera
    workers: int = 2
    # show pictures of rare yaws up to so many times an epoch; 1 = every picture once
    rebalance: float = 1.0
    rebalance_bins: int = 9  # equal parts of the range of yaws
    max_broken: int = 0  # unreadable pictures that are left out before training stops


@dataclass
class TrainingConfig:
    """Losses, optimisers, schedules (kimg = thousands of real images shown to the
    discriminator).
    """

    batch: int = 32
    batch_gpu: int | None = None  # samples a process handles at once; none = all of its share
    kimg: float = 25000.0
    seed: int = 0
    precision: Precision = "fp32"
    lr_generator: float = 0.0025
    lr_discriminator: float = 0.002
    beta1: float = 0.0
    beta2: float = 0.99
    adam_eps: float = 1e-8
    loss: str = "logistic"  # of both networks, by its name in training.gan.loss.GAN_LOSSES
    gamma: float = 5.0  # R1 weight
    d_reg_interval: int = 16
    g_reg_interval: int = 4
    density_reg: float = 0.25
    density_reg_extent: float = 1.0  # half the side of the cube of its points, in box sides
    density_reg_distance: float = 0.004  # deviation of its pairs of points, in box sides
    density_reg_points: int = 1000
    ema_kimg: float | None = None  # half-life; none = batch * 10 / 32
    # half-life is at most this part of the images seen; none = no ramp
    ema_rampup: float | None = 0.05
    blur_sigma: float = 10.0  # pixels at the start
    blur_fade_kimg: float | None = None  # none = batch * 200 / 32
    swap_start: float = 1.0  # probability of conditioning the mapping on a neighbour's camera
    swap_final: float = 0.5
    swap_fade_kimg: float = 1000.0
    nrr_initial: int = 64  # neural rendering resolution at the start of the run ...
    nrr_final: int = 64  # ... and after the fade
    nrr_fade_kimg: float = 1000.0
    compile: bool = False  # torch.compile the networks' forward passes; R1 stays as it is
    shared_fakes: bool = False  # one generator forward serves both networks' main phases
    freeze_d: int = 0  # highest-resolution discriminator layers that do not learn


@dataclass
class AugmentConfig:
    """Adaptive discriminator augmentation (Karras et al. 2020, sections 2-3 and appendix B)."""

    mode: Literal["noaug", "ada", "fixed"] = "noaug"
    p: float = 0.0  # probability at the start; with `fixed` throughout
    target: float = 0.6  # mean sign of D(real) that ADA aims at
    interval: int = 4  # batches between adjustments
    kimg: float = 500.0  # thousands of images for p to go from 0 to 1


@dataclass
class SnapshotConfig:
    """What a run writes and when."""

    tick_kimg: float = 4.0
    snap_ticks: int = 50  # 0 = only at the end
    keep_last: int = 10  # newest checkpoints that stay; 0 = all
    keep_kimg: float = 1000.0  # of the others, the first of every so many kimg stays; 0 = none
    metrics: tuple[str, ...] = ()  # of every snapshot; docs/metrics.md
    # feature network of metrics whose name tells none
    detector: Literal["inception", "lite0"] = "inception"
    detector_weights: str | None = None  # file; none = the published ones
    lpips_weights: tuple[str, ...] = ()
    identity_model: str | None = None
    pose_model: str | None = None


@dataclass
class Config:
    """A whole training run. `preset` and `sizes` say where its settings came from
    (training/config/presets.py).
    """

    preset: str = "auto"
    sizes: str = "published"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    snapshot: SnapshotConfig = field(default_factory=SnapshotConfig)


# --------------------------------------------------------------------------------------------------
# JSON round trip


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dict of a config dataclass: numbers, strings, lists, None."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: type, values: Any, where: str = "config") -> Any:
    """Dataclass `kind` from a nested dict as `to_dict` makes it; settings that are not named keep
    their default.

    Raises:
        UserError: for unknown names and for values of the wrong type, with their place.
    """
    if not isinstance(values, dict):
        raise UserError(
            f"{where}: expected a group of settings, found {brief(values, LONGEST_VALUE)}"
        )
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(map(str, values)) - set(hints))
    if unknown:
        raise UserError(
            f"{where}: unknown setting {brief(unknown[0], LONGEST_VALUE)!r}; known are"
            f" {', '.join(hints)}"
        )
    return kind(
        **{name: _convert(hints[name], value, f"{where}.{name}") for name, value in values.items()}
    )


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` from JSON as the type `hint` says, or a UserError that names `where`."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if origin is Literal and value in choices:
        return value
    if origin in (typing.Union, types.UnionType):
        for choice in choices:
            try:
                return _convert(choice, value, where)
            except UserError:
                continue
    if (
        origin is tuple
        and isinstance(value, (list, tuple))
        and (choices[-1] is Ellipsis or len(choices) == len(value))
    ):
        return tuple(_convert(choices[0], item, where) for item in value)
    if hint is type(None) and value is None:
        return None
    if (
        hint is float
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) <= sys.float_info.max
    ):
        return float(value)
    if hint in (int, bool, str) and type(value) is hint:
        return value
    raise UserError(f"{where}: {_quoted(value)} is not {describe_type(hint)}")


def _quoted(value: Any) -> str:
    return (
        repr(brief(value, LONGEST_VALUE)) if isinstance(value, str) else brief(value, LONGEST_VALUE)
    )


def describe_type(hint: Any) -> str:
    """Words for a setting's type, for error messages."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, choices)) if len(choices) > 1 else repr(choices[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(choice) for choice in choices)
    if origin is tuple:
        return (
            f"a list of {choices[0].__name__}"
            if choices[-1] is Ellipsis
            else f"a list of {len(choices)} x {choices[0].__name__}"
        )
    names: dict[Any, str] = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        type(None): "null",
    }
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def set_option(config: Config, assignment: str) -> None:
    """Apply `section.field=value` (value in JSON, bare words count as strings), e.g.
    `rendering.depth_resolution=24`.

    Raises:
        UserError: if the section, the field or the value does not exist or fit.
    """
    name, separator, text = assignment.partition("=")
    section_name, dot, field_name = name.strip().rpartition(".")
    if not separator or not dot:
        raise UserError(f"{assignment!r} is not of the form section.field=value")
    sections = config_sections(config)
    if section_name not in sections:
        raise UserError(f"unknown section {section_name!r}; known are {', '.join(sections)}")
    section = sections[section_name]
    hints = typing.get_type_hints(type(section))
    if field_name not in hints or dataclasses.is_dataclass(hints[field_name]):
        known = ", ".join(key for key, hint in hints.items() if not dataclasses.is_dataclass(hint))
        raise UserError(f"unknown setting {name.strip()!r}; section {section_name} has {known}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # no JSON, or of absurd size or depth
        value = text.strip()
    setattr(section, field_name, _convert(hints[field_name], value, name.strip()))


def config_sections(config: Config) -> dict[str, Any]:
    """Sections by the names that `set_option` uses: those of the model stand beside those of the
    run.
    """
    sections: dict[str, Any] = {}
    for group in (config, config.model):
        for item in dataclasses.fields(group):
            value = getattr(group, item.name)
            if dataclasses.is_dataclass(value):
                sections[item.name] = value
    return sections


def differences(first: Config, second: Config) -> list[str]:
    """Names (`section.field`) of the settings in which two configs differ."""
    names = []
    others = config_sections(second)
    for section_name, section in config_sections(first).items():
        for item in dataclasses.fields(section):
            value = getattr(section, item.name)
            if not dataclasses.is_dataclass(value) and value != getattr(
                others[section_name], item.name
            ):
                names.append(f"{section_name}.{item.name}")
    return names
