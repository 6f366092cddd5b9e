"""All settings: dataclasses, their JSON form, and what is declared with each field.

Default, range, choices and help text of a setting stand on its field and nowhere else: command-line
options, `--set`, the checks of runs and of files, and docs/settings.md read them there. A
`ModelConfig` describes the two networks and the scene they render; a `Config` adds data, training
and augmentation. Defaults are the published ones (EG3D, supplement section "Implementation
details").
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from dnnlib.console import UserError, brief

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Alpha = Literal["ignore", "composite", "judge"]
LONGEST_VALUE = 100  # characters of a value in an error message


@dataclass(frozen=True)
class About:
    """What is declared with a setting besides its type and default.

    Attributes:
        lowest, highest: ends of the range of a number, or of each number of a list.
        lowest_included, highest_included: whether the ends belong to it.
        power_of_two: whether only powers of two will do.
        option: Option of train.py that changes the setting.
        metavar: How help texts show the option's value.
    """

    help: str
    lowest: float | None = None
    lowest_included: bool = True
    highest: float | None = None
    highest_included: bool = True
    power_of_two: bool = False
    option: str | None = None
    metavar: str | None = None

    @property
    def range(self) -> str:
        """The range in words; empty if any number will do."""
        if self.power_of_two:
            return f"a power of two from {self.lowest:g} to {self.highest:g}"
        low = None if self.lowest is None else _words(self.lowest)
        high = None if self.highest is None else _words(self.highest)
        if low is not None and high is not None:
            return f"from {low} to {'' if self.highest_included else 'below '}{high}"
        if low is not None:
            return f"{'at least' if self.lowest_included else 'above'} {low}"
        return "" if high is None else f"{'at most' if self.highest_included else 'below'} {high}"

    def check(self, name: str, value: Any) -> None:
        """Raise a UserError that shows the range unless all numbers of `value` lie in it."""
        numbers = [
            number
            for number in (value if isinstance(value, tuple) else (value,))
            if isinstance(number, (int, float)) and not isinstance(number, bool)
        ]
        if not all(map(self._accepts, numbers)):
            is_list = isinstance(value, tuple)
            raise UserError(
                f"{name} is {list(value) if is_list else f'{value:g}'};"
                f" {'each number' if is_list else 'it'} must be {self.range or 'finite'}"
            )

    def _accepts(self, number: float) -> bool:
        low = -math.inf if self.lowest is None else self.lowest
        high = math.inf if self.highest is None else self.highest
        return (
            math.isfinite(number)
            and (low <= number if self.lowest_included else low < number)
            and (number <= high if self.highest_included else number < high)
            and not (self.power_of_two and int(number) & (int(number) - 1))
        )


def _words(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def setting(default: Any, help: str, **about: Any) -> Any:
    """A dataclass field with what `About` declares for it."""
    return field(default=default, metadata={"about": About(help, **about)})


def about_of(section: Any, name: str) -> About:
    """What is declared with field `name` of a section (class or instance)."""
    return section.__dataclass_fields__[name].metadata["about"]


@dataclass
class GeneratorConfig:
    """Mapping network, tri-plane backbone and decoder."""

    z_dim: int = setting(512, "Numbers of a latent z.", lowest=1)
    w_dim: int = setting(512, "Numbers of an intermediate latent w.", lowest=1)
    mapping_layers: int = setting(2, "Layers of the mapping network.", lowest=1, highest=64)
    mapping_lr_multiplier: float = setting(
        0.01, "Factor on the learning rate of the mapping network."
    )
    pose_conditioning: bool = setting(
        True, "Condition the mapping network on the camera.", option="--gen-pose-cond"
    )
    constant_embedding: bool = setting(
        True,
        "Without pose conditioning embed a label of zeros, as released networks do; false: the"
        " mapping network sees latents only.",
    )
    c_scale: float = setting(1.0, "Factor on the camera label before the mapping network.")
    plane_resolution: int = setting(
        256, "Side of a feature plane.", lowest=4, highest=4096, power_of_two=True
    )
    plane_channels: int = setting(32, "Channels of a feature plane.", lowest=1)
    channel_base: int = setting(
        32768, "Channels of a layer: this number / its resolution, at most channel_max.", lowest=1
    )
    channel_max: int = setting(512, "Most channels of a layer.", lowest=1)
    use_noise: bool = setting(True, "Add noise in the backbone's layers.")
    conv_clamp: float | None = setting(
        None,
        "Bound on the outputs of the backbone's convolutions; null = unbounded.",
        lowest=0,
        lowest_included=False,
    )
    decoder: str = setting("two_layer", "Decoder of features to densities and colours, by name.")
    decoder_colors: int | None = setting(
        None,
        "Channels of the decoder's colours; null = those of a plane, or 3 without"
        " super-resolution.",
        lowest=3,
    )
    decoder_hidden: int = setting(64, "Hidden units of the decoder.", lowest=1)


@dataclass
class SuperResolutionConfig:
    """Network from the feature image to the final image."""

    kind: str = setting(
        "standard",
        "standard: layers as StyleGAN2 has them; alias_free: as StyleGAN3 has them; none: the"
        " rendering is the picture.",
    )
    channels: tuple[int, ...] | None = setting(
        None, "Channels of each block; null = the published ones for the resolution.", lowest=1
    )
    input_resolution: int | None = setting(
        None,
        "Pixels of the feature image that it takes; null = min(128, resolution / 2).",
        lowest=1,
        highest=4096,
    )
    antialias: bool = setting(
        True, "Filter where the feature image is resized to input_resolution."
    )
    noise_mode: Literal["none", "const", "random"] = setting("none", "Noise in the layers.")
    use_noise: bool = setting(True, "Give the layers parameters for noise.")
    conv_clamp: float | None = setting(
        256.0,
        "Bound on the outputs of the convolutions; null = unbounded.",
        lowest=0,
        lowest_included=False,
    )


@dataclass
class RenderingConfig:
    """Scene and volume rendering. Lengths are in world units, colours in [0, 1]."""

    resolution: int = setting(
        64,
        "Resolution of the neural rendering, in pixels; with a fade at its end.",
        lowest=4,
        highest=4096,
        option="--nrr-final",
    )
    depth_resolution: int = setting(
        48, "Samples per ray of the first pass.", lowest=2, highest=4096
    )
    depth_resolution_importance: int = setting(
        48, "Samples per ray that the second pass adds.", lowest=0, highest=4096
    )
    ray_start: float | Literal["auto"] = setting(
        2.25, "Distance from the camera where rays begin; auto: where they enter the box.", lowest=0
    )
    ray_end: float | Literal["auto"] = setting(
        3.3,
        "Distance where rays end; auto: where they leave the box.",
        lowest=0,
        lowest_included=False,
    )
    box_warp: float = setting(
        1.0, "Side of the cube that the planes span.", lowest=0, lowest_included=False
    )
    background: tuple[float, float, float] | None = setting(
        None, "Red, green and blue behind the object; null = no background.", lowest=0, highest=1
    )
    alpha: Alpha = setting(
        "ignore",
        "Of pictures with alpha: composite: D sees reals and fakes over the same random colours;"
        " judge: it sees alpha, too; ignore: such pictures are refused.",
        option="--alpha",
    )
    plane_axes: Literal["corrected", "released"] = setting(
        "corrected", "Axes of the third plane: z and y, or those of released networks."
    )
    length_unit: Literal["world", "box"] = setting(
        "world",
        "Unit in which densities count, and cameras are told to networks; with box a scene in any"
        " unit gives the same pictures, world is that of released networks.",
    )
    first_pass: Literal["full", "quarter"] = setting(
        "full",
        "full: every ray is sampled in both passes, and all samples count; quarter: the first pass"
        " at a quarter of the resolution tells where the surface is, and the second's samples lie"
        " there.",
    )
    fine_sampling: str = setting(
        "interval", "How the second pass draws samples; released: as released networks do."
    )
    fine_offsets: Literal["independent", "stratified", "systematic"] = setting(
        "independent",
        "Random numbers of the second pass: each its own, one per equal part, or one shift of all.",
    )
    density_gain: float = setting(1.0, "Factor on the decoder's density.")

    @property
    def unit(self) -> float:
        """World length of the unit in which densities count."""
        return 1.0 if self.length_unit == "world" else self.box_warp


@dataclass
class DiscriminatorConfig:
    """Discriminator."""

    kind: str = setting(
        "dual",
        "dual: judges the final picture and the rendering together; single: the final picture"
        " alone.",
    )
    channel_base: int = setting(
        32768, "Channels of a layer: this number / its resolution, at most channel_max.", lowest=1
    )
    channel_max: int = setting(512, "Most channels of a layer.", lowest=1)
    mapping_layers: int = setting(
        8, "Layers of the network that maps the camera label.", lowest=1, highest=64
    )
    mapping_lr_multiplier: float = setting(
        0.01, "Factor on the learning rate of the network that maps the camera label."
    )
    mbstd_group_size: int = setting(4, "Samples per group of the minibatch statistics.", lowest=1)
    conv_clamp: float | None = setting(
        256.0,
        "Bound on the outputs of the convolutions; null = unbounded.",
        lowest=0,
        lowest_included=False,
    )
    c_noise: float = setting(
        0.0, "Noise on the camera label, in standard deviations over the batch.", lowest=0
    )


@dataclass
class ModelConfig:
    """Everything that fixes the networks' parameters and what they compute."""

    resolution: int = setting(
        512, "Size of the final image, in pixels: that of the data.", lowest=1, highest=4096
    )
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    superresolution: SuperResolutionConfig = field(default_factory=SuperResolutionConfig)
    rendering: RenderingConfig = field(default_factory=RenderingConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)


@dataclass
class DataConfig:
    """Where the pictures come from."""

    path: str = setting(
        "",
        "ZIP or folder of the pictures; of several ZIPs: their folder, a pattern with *, or their"
        " names with | between.",
    )
    content: str = setting(
        "",
        "What the pictures were when the run began: their number, hashes of names, sizes and"
        " labels. Filled in by the program.",
    )
    mirror: bool = setting(
        False,
        "Also train on mirrored pictures, with mirrored cameras.",
        option="--mirror",
    )
    workers: int = setting(
        2, "Processes that read pictures, per training process.", lowest=0, option="--workers"
    )
    rebalance: float = setting(
        1.0,
        "Show pictures of rare yaws up to FACTOR times per epoch; 1 = every picture once.",
        lowest=1,
        option="--rebalance",
        metavar="FACTOR",
    )
    rebalance_bins: int = setting(
        9, "Equal parts of the range of yaws, between which rebalance balances.", lowest=1
    )
    held_out: int = setting(
        0,
        "The last N pictures are never trained on: every tick tells what D makes of them, beside"
        " what it makes of the others.",
        lowest=0,
    )
    poses: Literal["given", "repair"] = setting(
        "given",
        "Take the cameras of the pictures as they are, or, where they are known to be wrong, put"
        " them right while the model learns, by what it shows.",
        option="--poses",
    )
    pose_error_degrees: float = setting(
        5.0,
        "To be put right: by how much cameras are turned, at most (standard deviation).",
        lowest=0,
        lowest_included=False,
    )
    pose_error_distance: float = setting(
        0.05, "The same for their distance, as a share of it.", lowest=0, lowest_included=False
    )
    pose_error_shift: float = setting(
        0.03,
        "The same for the object's place in the picture, in picture widths.",
        lowest=0,
        lowest_included=False,
    )
    max_broken: int = setting(
        0, "Leave out up to N unreadable pictures.", lowest=0, option="--max-broken", metavar="N"
    )


@dataclass
class TrainingConfig:
    """Losses, optimisers, schedules (kimg = thousands of real images shown to the
    discriminator).
    """

    batch: int = setting(32, "Samples per step, over all processes.", lowest=1, option="--batch")
    batch_gpu: int | None = setting(
        None,
        "Samples that a process handles at once; the rest is accumulated.  [default: all]",
        lowest=1,
        option="--batch-gpu",
    )
    kimg: float = setting(
        25000.0,
        "Length of the run in thousands of real images.",
        lowest=0,
        lowest_included=False,
        option="--kimg",
    )
    seed: int = setting(
        0, "Seed of everything random.", lowest=0, highest=2**63 - 1, option="--seed"
    )
    precision: Precision = setting(
        "fp32",
        "Of convolutions; tf32 is fp32 with faster products on CUDA."
        "  [default: fp16 on CUDA; heads on CPUs with bf16: bf16; else fp32]",
        option="--precision",
    )
    lr_generator: float = setting(
        0.0025, "Learning rate of the generator.", lowest=0, lowest_included=False
    )
    lr_discriminator: float = setting(
        0.002, "Learning rate of the discriminator.", lowest=0, lowest_included=False
    )
    lr_final: float = setting(
        1.0,
        "Factor on both learning rates at the end of schedule_kimg, reached along a cosine.",
        lowest=0,
        lowest_included=False,
    )
    gamma_final: float = setting(1.0, "The same for the penalties on D's slope.", lowest=0)
    schedule_kimg: float | None = setting(
        None, "Length of those two schedules, in kimg; null = that of the run.", lowest=0
    )
    beta1: float = setting(
        0.0, "Adam's decay of the mean gradient.", lowest=0, highest=1, highest_included=False
    )
    beta2: float = setting(
        0.99, "Adam's decay of the mean square.", lowest=0, highest=1, highest_included=False
    )
    adam_eps: float = setting(1e-8, "Adam's epsilon.", lowest=0, lowest_included=False)
    loss: str = setting(
        "logistic", "Adversarial loss: logistic, or relativistic (fakes and reals in pairs)."
    )
    gamma: float = setting(5.0, "Weight of the R1 penalty.", lowest=0, option="--gamma")
    gamma_fakes: float = setting(
        0.0, "Weight of the same penalty on fakes (R2); 0 = none.", lowest=0
    )
    penalty: Literal["gradient", "finite_difference"] = setting(
        "gradient",
        "How these penalties measure D's slope: by its gradient, or by its difference at pictures"
        " moved at random, without second derivatives.",
    )
    penalty_step: float = setting(
        0.01,
        "Standard deviation of that random move; pictures are from -1 to 1.",
        lowest=0,
        lowest_included=False,
    )
    d_reg_interval: int = setting(16, "Steps from one R1 penalty to the next.", lowest=1)
    g_reg_interval: int = setting(4, "Steps from one density regulariser to the next.", lowest=1)
    density_reg: float = setting(0.25, "Weight of the density regulariser.", lowest=0)
    density_reg_extent: float = setting(
        1.0,
        "Half the side of the cube from which the density regulariser draws points, in box sides.",
        lowest=0,
        lowest_included=False,
    )
    density_reg_distance: float = setting(
        0.004, "Distance of the points that the density regulariser compares, in box sides."
    )
    density_reg_points: int = setting(
        1000, "Points per sample that the density regulariser compares.", lowest=1
    )
    ema_kimg: float | None = setting(
        None,
        "Half-life of the generator's moving average; null = batch * 10 / 32.",
        lowest=0,
    )
    ema_rampup: float | None = setting(
        0.05,
        "Bound on the half-life, as a part of the images seen; null = no bound.",
        lowest=0,
    )
    blur_sigma: float = setting(
        10.0, "Blur of what the discriminator sees at the start, in pixels.", lowest=0
    )
    blur_fade_kimg: float | None = setting(
        None, "Length of the fade of the blur, in kimg; null = batch * 200 / 32.", lowest=0
    )
    swap_start: float = setting(
        1.0,
        "Probability of conditioning the mapping network on another sample's camera, at the start.",
        lowest=0,
        highest=1,
    )
    swap_final: float = setting(0.5, "The same after the fade.", lowest=0, highest=1)
    swap_fade_kimg: float = setting(
        1000.0, "Length of the fade from swap_start to swap_final, in kimg.", lowest=0
    )
    resolution_initial: int | None = setting(
        None,
        "Resolution of the neural rendering at the start; null = the same throughout.",
        lowest=4,
        highest=4096,
        option="--nrr-initial",
    )
    resolution_fade_kimg: float = setting(
        1000.0,
        "Length of the fade of that resolution, in kimg.",
        lowest=0,
        option="--nrr-fade-kimg",
    )
    deterministic: bool = setting(
        False,
        "The same bits each time on CUDA, too, and so exact resume there; slower.",
        option="--deterministic",
    )
    compile: bool = setting(
        False,
        "Compile the networks' forward passes: a minute at the start, a little faster then.",
        option="--compile",
    )
    shared_fakes: bool = setting(
        False, "One generator pass per step serves the main phases of both networks."
    )
    freeze_d: int = setting(
        0,
        "Highest-resolution discriminator layers that do not learn.",
        lowest=0,
        option="--freeze-d",
    )


@dataclass
class AugmentConfig:
    """Adaptive discriminator augmentation (Karras et al. 2020, sections 2-3 and appendix B)."""

    mode: Literal["noaug", "ada", "fixed"] = setting(
        "noaug", "Discriminator augmentation.", option="--aug"
    )
    p: float = setting(
        0.0,
        "Augmentation probability; with ada at the start.",
        lowest=0,
        highest=1,
        option="--p",
    )
    target: float = setting(
        0.6,
        "Mean sign of the discriminator on real pictures that ada aims at.",
        lowest=-1,
        highest=1,
        option="--target",
    )
    interval: int = setting(4, "Batches from one adjustment to the next.", lowest=1)
    kimg: float = setting(
        500.0,
        "Thousands of images in which ada takes p from 0 to 1.",
        lowest=0,
        lowest_included=False,
    )


# settings of `SnapshotConfig` that name files
METRIC_FILES = ("detector_weights", "lpips_weights", "identity_model", "pose_model")


@dataclass
class SnapshotConfig:
    """What a run writes and when."""

    tick_kimg: float = setting(
        4.0,
        "Thousands of images from one line of statistics to the next.",
        lowest=0,
        lowest_included=False,
        option="--tick",
    )
    snap_ticks: int = setting(
        50, "Ticks from one checkpoint to the next; 0 = only at the end.", lowest=0, option="--snap"
    )
    keep_last: int = setting(
        10, "Newest checkpoints that stay; 0 = all.", lowest=0, option="--keep"
    )
    keep_kimg: float = setting(
        1000.0,
        "Of the others, one stays per this many kimg; 0 = none.",
        lowest=0,
        option="--keep-every",
    )
    log: Literal["tensorboard", "wandb", "tensorboard,wandb", "none"] = setting(
        "tensorboard", "What shows curves and pictures, beside stats.jsonl.", option="--log"
    )
    metrics: tuple[str, ...] = setting(
        (),
        "Measured at every checkpoint, as by calc_metrics.py.",
        option="--metrics",
        metavar="none|A,B,...",
    )
    detector: Literal["inception", "lite0", "lite1"] = setting(
        "inception", "Feature network of metrics whose names tell none.", option="--detector"
    )
    detector_weights: str | None = setting(
        None,
        "Weights of the detector.  [default: the published ones]",
        option="--detector-weights",
        metavar="FILE|URL",
    )
    lpips_weights: tuple[str, ...] = setting(
        (),
        "Weights for ppl2_wend; may be given twice: VGG16, linear layers.",
        option="--lpips-weights",
        metavar="FILE|URL",
    )
    identity_model: str | None = setting(
        None,
        "ONNX face embedder for identity.",
        option="--identity-model",
        metavar="FILE|URL",
    )
    pose_model: str | None = setting(
        None,
        "Estimator for pose: ONNX, or one that `dataset_tool.py faces` takes.",
        option="--pose-model",
        metavar="FILE|URL|mediapipe",
    )
    contents: tuple[str, ...] = setting(
        (),
        "Option and SHA-256 of each of these files when the run began. Filled in by the program.",
    )


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


class Declared(NamedTuple):
    """A setting as it is declared."""

    hint: Any
    default: Any
    about: About


@functools.cache
def declared_settings() -> dict[str, Declared]:
    """All settings by their names `section.field`, in the order of declaration."""
    found = {}
    for section_name, section in config_sections(Config()).items():
        hints = typing.get_type_hints(type(section))
        for item in dataclasses.fields(section):
            if "about" in item.metadata:
                found[f"{section_name}.{item.name}"] = Declared(
                    hints[item.name], item.default, item.metadata["about"]
                )
    return found


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
    if kind is Config:
        values = with_names_of_today(values)
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


# Fields of before, of section training, and where they stand now.
RENAMED = {
    "training.nrr_initial": "training.resolution_initial",
    "training.nrr_final": "rendering.resolution",
    "training.nrr_fade_kimg": "training.resolution_fade_kimg",
}


def with_names_of_today(values: dict[str, Any]) -> dict[str, Any]:
    """The nested dict of a `Config`, in which settings that had other names before have
    today's.

    `training.nrr_final` was the final resolution of the neural rendering and `rendering.resolution`
    that of the moment; the latter follows from the former, the fade and the images seen.
    """
    training, model = values.get("training"), values.get("model", {})
    rendering = model.get("rendering", {}) if isinstance(model, dict) else None
    if not isinstance(training, dict) or not isinstance(rendering, dict):
        return values  # refused where it is read
    old = {name: training[name] for name in training if f"training.{name}" in RENAMED}
    if not old:
        return values
    training = {name: value for name, value in training.items() if name not in old}
    if "nrr_final" in old:
        model = {**model, "rendering": {**rendering, "resolution": old.pop("nrr_final")}}
    for name, value in old.items():
        training[RENAMED[f"training.{name}"].partition(".")[2]] = value
    return {**values, "training": training, "model": model}


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


PLURALS: dict[Any, str] = {int: "whole numbers", float: "numbers", str: "texts"}


def describe_type(hint: Any) -> str:
    """Words for a setting's type, for error messages."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, choices)) if len(choices) > 1 else repr(choices[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(choice) for choice in choices)
    if origin is tuple:
        return (
            f"a list of {PLURALS[choices[0]]}"
            if choices[-1] is Ellipsis
            else f"a list of {len(choices)} {PLURALS[choices[0]]}"
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
    name = RENAMED.get(name.strip(), name.strip())
    section_name, dot, field_name = name.rpartition(".")
    if not separator or not dot:
        raise UserError(f"{assignment!r} is not of the form section.field=value")
    sections = config_sections(config)
    if section_name not in sections:
        raise UserError(f"unknown section {section_name!r}; known are {', '.join(sections)}")
    section = sections[section_name]
    hints = typing.get_type_hints(type(section))
    if field_name not in hints or dataclasses.is_dataclass(hints[field_name]):
        known = ", ".join(key for key, hint in hints.items() if not dataclasses.is_dataclass(hint))
        raise UserError(f"unknown setting {name!r}; section {section_name} has {known}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # no JSON, or of absurd size or depth
        value = text.strip()
    converted = _convert(hints[field_name], value, name)
    about_of(section, field_name).check(name, converted)
    setattr(section, field_name, converted)


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
