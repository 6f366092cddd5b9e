"""The settings of a run: those of a new one from its preset, its data and what was asked for, and
what one that goes on must keep.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dnnlib.console import UserError
from dnnlib.tables import look_up
from torch_utils.devices import has_fast_bf16
from training.checkpoints.checkpoint import load_weights
from training.config.checks import check_config
from training.config.presets import LAPTOP_MAX_RESOLUTION, PresetName, Sizes, make_config, r1_gamma
from training.config.settings import (
    Config,
    ModelConfig,
    Precision,
    differences,
    set_option,
)
from training.config.sizes import block_sizes, is_power_of_two
from training.data.dataset import Colour, ImageDataset, alpha_background
from training.data.scene import apply_scene, fit_dataset_scene
from training.gan.loss import GAN_LOSSES
from training.networks.shapes import check_networks
from training.run.data_content import content_of, contents_of_files

# settings and sections that may change; data may move, their content is compared
FREE_ON_RESUME = ("data.path", "data.workers", "data.max_broken", "training.kimg", "snapshot.")
FINE_TUNING_ADA_KIMG = 100.0
FP16_CLAMP = 256.0
OF_DATA = 0  # in the place of a resolution that is not said
FEW_PICTURES = 2000  # mirrored ones counted


@dataclass(frozen=True)
class RunData:
    """The pictures of a new run; `dataset` is None if they have yet to be made."""

    path: Path
    resolution: int
    dataset: ImageDataset | None = None

    @classmethod
    def of(cls, dataset: ImageDataset) -> RunData:
        """Those of a data set."""
        return cls(dataset.path, dataset.resolution, dataset)

    @property
    def name(self) -> str:
        """A short name for run folders."""
        return self.dataset.name if self.dataset else self.path.stem


@dataclass(frozen=True)
class RunRequest:
    """What a new run is asked to be.

    Attributes:
        preset, sizes: as in training/config/presets.py; no sizes = those that suit device and data.
        init_from: file or address whose networks and scene to take.
        assignments: `section.field=value`, which go before all else.
        fades: the rendering resolution goes from that of the preset, or of the networks taken over,
            to the one that was assigned, unless a start was assigned too.
        base: settings to start from in the place of a preset and of the defaults of a device; its
            model.resolution may be `OF_DATA`.
    """

    preset: PresetName | None = None
    sizes: Sizes | None = None
    init_from: str | None = None
    assignments: Sequence[str] = ()
    fades: bool = False
    base: Config | None = None


def asked_background(assignments: Sequence[str], base: Config | None = None) -> Colour | None:
    """`background` of the data of a run with these settings (`section.field=value`) on top of
    `base`: what data are opened with before the run's own settings can be made.

    Raises:
        UserError: for settings that do not exist or fit.
    """
    asked = copy.deepcopy(base or Config())
    for assignment in assignments:
        set_option(asked, assignment)
    return alpha_background(asked.model.rendering)


def new_config(request: RunRequest, data: RunData, device: str) -> tuple[Config, list[str]]:
    """Settings of a new run on a kind of device, and lines to tell about choices that were made for
    the user.

    Raises:
        UserError: for a wrong assignment, and networks that cannot be taken over.
    """
    given = {assignment.partition("=")[0].strip() for assignment in request.assignments}
    if request.base is not None:
        config, notes = copy.deepcopy(request.base), [f"Settings of preset {request.base.preset}"]
        config.model.resolution = config.model.resolution or data.resolution
        given |= {"training.gamma", "rendering.resolution"}
        if "training.precision" not in given:
            given |= {"superresolution.conv_clamp", "discriminator.conv_clamp"}
    else:
        config, notes = _preset_config(request, data, device)
    initial = config.model.rendering.resolution
    for assignment in request.assignments:
        set_option(config, assignment)
    if request.fades and config.training.resolution_initial is None:
        config.training.resolution_initial = initial
    config.data.path = str(data.path.resolve())
    config.data.content = content_of(data.dataset) if data.dataset else ""
    config.snapshot.contents = contents_of_files(config.snapshot)
    settle(config, given)
    if config.model.rendering.alpha != "ignore" and data.dataset and not data.dataset.has_alpha:
        raise UserError(
            f"{data.path}: the first picture has no transparent parts, which --alpha is about;"
            " leave --alpha out, or make the data again by dataset_tool.py convert --background"
            " keep"
        )
    notes.append(f"Precision {precision_note(config.training.precision, device)}")
    if data.dataset and config.augment.mode == "noaug" and request.init_from is None:
        notes += few_pictures_note(len(data.dataset.file_names) * (1 + config.data.mirror))
    return config, notes


def few_pictures_note(count: int) -> list[str]:
    """A line where a discriminator without augmentation will soon know the pictures by heart
    (Karras et al. 2020a, StyleGAN2-ADA, figure 1).
    """
    if count >= FEW_PICTURES:
        return []
    return [
        f"Few pictures ({count}): the discriminator will learn them by heart, and then fakes get"
        " worse; --aug ada puts that off, --init-from a trained model needs fewer"
    ]


def _preset_config(request: RunRequest, data: RunData, device: str) -> tuple[Config, list[str]]:
    """Settings that preset, sizes, weights to start from and the device suggest, with lines."""
    preset = request.preset or "auto"
    is_small = device != "cuda" and data.resolution <= LAPTOP_MAX_RESOLUTION
    sizes: Sizes = request.sizes or (
        "laptop" if preset.startswith("heads") or is_small else "published"
    )
    config = make_config(preset, data.resolution, sizes)
    notes = [f"Preset {preset} with {sizes} sizes (--sizes)"]
    if request.init_from:
        fine_tune(config, request.init_from)
        notes = [
            f"Preset {preset}; networks and scene from {request.init_from}, fine-tuning schedules"
        ]
    elif preset == "auto":
        notes += _fit_scene(config, data)
    config.training.precision = default_precision(device, preset)
    return config, notes


def _fit_scene(config: Config, data: RunData) -> list[str]:
    """Read the scene from the labels and pictures; returns lines about it."""
    if data.dataset is None:
        raise UserError(
            "--cfg auto reads the scene from the pictures, and the built-in heads have yet to be"
            " rendered; leave --cfg or --dry-run out"
        )
    fit = fit_dataset_scene(data.dataset)
    apply_scene(config.model.rendering, fit)
    return [
        f"Scene from the labels: box {fit.box_warp:.3g}, background {fit.background}",
        *fit.notes,
    ]


def fine_tune(config: Config, init_from: str) -> None:
    """Networks and scene of another run; no EMA ramp, no blur, full pose swapping at once, faster
    adaptation of augmentation.

    Raises:
        UserError: if they cannot be read, or make pictures that doubling does not bring to the
            size of the data.
    """
    weights = load_weights(init_from)
    resolution, made = config.model.resolution, weights.config.resolution
    if resolution % made or not is_power_of_two(resolution // made):
        raise UserError(
            f"--init-from {init_from} makes pictures of {made} pixels, the data have {resolution};"
            " resize the data to that size, or to 2, 4, 8, ... times that size"
        )
    config.model = enlarged(weights.config, resolution)
    training = config.training
    training.ema_rampup = None
    training.blur_sigma = 0.0
    training.swap_start = training.swap_final
    config.augment.kimg = FINE_TUNING_ADA_KIMG


def enlarged(model: ModelConfig, resolution: int) -> ModelConfig:
    """The same networks for larger pictures: more blocks after what super-resolution takes now, and
    before what the discriminator sees now.
    """
    larger = copy.deepcopy(model)
    options = larger.superresolution
    options.input_resolution, _ = block_sizes(model.resolution, options.input_resolution)
    larger.resolution = resolution
    if options.channels:
        _, sizes = block_sizes(resolution, options.input_resolution)
        options.channels += options.channels[-1:] * (len(sizes) - len(options.channels))
    if options.kind == "none":
        larger.rendering.resolution = resolution
    return larger


def default_precision(device: str, preset: PresetName) -> Precision:
    """fp16 on CUDA; on CPUs that compute bf16 in hardware bf16 for the built-in heads; else
    fp32.
    """
    if device == "cuda":
        return "fp16"
    is_heads = preset.startswith("heads")
    return "bf16" if is_heads and device == "cpu" and has_fast_bf16(device) else "fp32"


def precision_note(precision: Precision, device: str) -> str:
    """The precision of a run, and whether another suits the GPU better."""
    if device != "cuda" or precision == "bf16" or not has_fast_bf16(device):
        return f"{precision} (--precision)"
    return (
        f"{precision}; this GPU computes bf16 as fast as fp16, and nothing overflows in it:"
        " --precision bf16 is recommended, tf32 where fp32 would be chosen"
    )


def settle(config: Config, given: set[str]) -> None:
    """Settings that follow from others, but for those that were given, as `section.field`."""
    training, model = config.training, config.model
    if config.preset == "auto" and "training.gamma" not in given:
        training.gamma = r1_gamma(model.resolution, training.batch)
    if training.schedule_kimg is None and (training.lr_final, training.gamma_final) != (1, 1):
        training.schedule_kimg = training.kimg  # which may grow when the run goes on
    if model.rendering.alpha != "ignore":
        model.rendering.background = alpha_background(model.rendering)
    superresolution = model.superresolution
    if (
        "superresolution.input_resolution" in given
        and "superresolution.channels" not in given
        and superresolution.channels
    ):
        _, sizes = block_sizes(model.resolution, superresolution.input_resolution)
        superresolution.channels = superresolution.channels[-1:] * len(sizes)
    if superresolution.kind == "none":
        settle_strict(config, given)
    elif training.resolution_initial is not None and "rendering.resolution" not in given:
        model.rendering.resolution = training.resolution_initial
    if training.precision == "fp16":
        for name, section in (
            ("superresolution", model.superresolution),
            ("discriminator", model.discriminator),
        ):
            if f"{name}.conv_clamp" not in given:
                section.conv_clamp = section.conv_clamp or FP16_CLAMP


def settle_strict(config: Config, given: set[str]) -> None:
    """What follows where the rendering is the picture, but for what was given."""
    model = config.model
    if "training.resolution_initial" not in given:
        config.training.resolution_initial = None
    if "rendering.resolution" not in given:
        model.rendering.resolution = model.resolution
    if "discriminator.kind" not in given:
        model.discriminator.kind = "single"
    if "generator.decoder_colors" not in given:
        model.generator.decoder_colors = 3


def check_run(config: Config, processes: int) -> None:
    """Check the settings of a run with that many processes, and that they describe networks.

    Raises:
        UserError: naming the first setting that is out of range or does not go with the others.
    """
    check_config(config, processes)
    look_up(GAN_LOSSES, config.training.loss, "training.loss")
    check_networks(config.model)


def changes_refused_on_resume(own: Config, wanted: Config) -> list[str]:
    """Names (`section.field`) of settings that differ though a run must keep them when it goes
    on.
    """
    return [name for name in differences(own, wanted) if not name.startswith(FREE_ON_RESUME)]
