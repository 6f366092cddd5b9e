"""Whether settings make sense, before anything is built from them: one line for the first that does
not.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from dnnlib.console import UserError
from training.config.settings import Config, ModelConfig, config_sections
from training.config.sizes import block_sizes, is_power_of_two, plan_blocks

LEAST_TIGHT_SAMPLES = 4


def check_config(config: Config, processes: int) -> None:
    """Check the settings of a run with that many processes.

    Raises:
        UserError: naming the first setting that is out of range or does not go with the others.
    """
    check_ranges(config)
    check_batch(config, processes)
    check_sizes(config.model)
    if config.model.rendering.alpha == "judge" and config.augment.mode != "noaug":
        raise UserError(
            "augmentation knows colours alone, and --alpha judge shows alpha beside them; choose"
            " --alpha composite, or --aug noaug"
        )
    initial = config.training.resolution_initial
    if config.model.superresolution.kind == "none" and initial is not None:
        raise UserError(
            "superresolution.kind=none renders pictures at their size throughout; leave"
            " --nrr-initial out, or begin with smaller pictures and go on by --init-from"
        )
    if config.training.penalty == "finite_difference" and config.model.discriminator.c_noise > 0:
        raise UserError(
            "training.penalty=finite_difference would measure the noise of"
            " discriminator.c_noise; choose training.penalty=gradient, or"
            " discriminator.c_noise=0"
        )


def check_ranges(config: Config) -> None:
    """Raise a UserError for a number that is not finite or outside the range of its setting."""
    for name, section in config_sections(config).items():
        check_section(name, section)
    near, far = config.model.rendering.ray_start, config.model.rendering.ray_end
    if near != "auto" and far != "auto" and near >= far:
        raise UserError(
            f"rendering.ray_start {near} and ray_end {far}: rays must start before they end"
        )

    count = config.model.rendering.depth_resolution_importance
    if config.model.rendering.first_pass == "quarter" and count < LEAST_TIGHT_SAMPLES:
        raise UserError(
            f"rendering.depth_resolution_importance {count}: with rendering.first_pass=quarter a"
            f" ray has these samples alone; choose {LEAST_TIGHT_SAMPLES} or more"
        )


def check_section(name: str, section: Any) -> None:
    """The same for the settings of one section of that name."""
    for item in dataclasses.fields(section):
        if "about" in item.metadata:
            item.metadata["about"].check(f"{name}.{item.name}", getattr(section, item.name))


def check_batch(config: Config, processes: int) -> None:
    """Raise a UserError unless the batch divides into processes, micro-batches and groups of the
    minibatch statistics.
    """
    batch, micro, group = (
        config.training.batch,
        config.training.batch_gpu,
        config.model.discriminator.mbstd_group_size,
    )
    if batch < 1 or batch % processes:
        raise UserError(
            f"--batch {batch} does not divide among {processes} processes; choose a multiple of"
            f" {processes}"
        )
    share = batch // processes
    if micro is not None and (micro < 1 or share % micro):
        raise UserError(
            f"--batch-gpu {micro} does not divide the {share} samples of a process; choose a"
            f" divisor of {share}"
        )
    step = micro or share
    if step % min(group, step):
        raise UserError(
            f"a micro-batch of {step} does not divide into the {group} samples of the minibatch"
            f" statistics; choose --batch or --batch-gpu as a multiple of {group}, or --set"
            " discriminator.mbstd_group_size=1"
        )


def group_note(config: Config, processes: int) -> str | None:
    """A line to tell if micro-batches are too small for whole groups of the minibatch statistics,
    which changes what is computed.
    """
    batch, group = config.training.batch, config.model.discriminator.mbstd_group_size
    step = config.training.batch_gpu or batch // processes
    if step >= min(group, batch):
        return None
    return (
        f"Minibatch statistics over groups of {step} samples instead of {min(group, batch)}, as"
        " many as a process handles at once (--batch, --batch-gpu): results are not those of"
        " larger micro-batches"
    )


def rendering_note(config: Config) -> str | None:
    """A line to tell if super-resolution is given less than what is rendered, so that the picture
    lacks detail that the rendering has.
    """
    if config.model.superresolution.kind == "none":
        return None
    finest, (taken, _) = (
        config.model.rendering.resolution,
        block_sizes(config.model.resolution, config.model.superresolution.input_resolution),
    )
    if finest <= taken:
        return None
    factor = config.model.resolution // finest
    is_possible = factor * finest == config.model.resolution and is_power_of_two(factor)
    return (
        f"Rendering at {finest} pixels, of which super-resolution takes {taken}: the discriminator"
        f" can tell fakes by that. Choose --nrr-final {taken}"
        + (f", or --set superresolution.input_resolution={finest}" if is_possible else "")
    )


def check_sizes(model: ModelConfig) -> None:
    """Raise a UserError if the sizes of the networks' layers do not go with one another."""
    widths = (
        ("generator", model.generator.channel_base, model.generator.plane_resolution),
        ("discriminator", model.discriminator.channel_base, model.resolution),
    )
    for section, channel_base, resolution in widths:
        if channel_base < resolution:
            raise UserError(
                f"{section}.channel_base {channel_base} leaves no channels at {resolution} pixels;"
                f" choose {resolution} or more"
            )
    colors, features = model.generator.decoder_colors, model.generator.plane_channels
    if model.superresolution.kind != "none" and colors not in (None, features):
        raise UserError(
            f"generator.decoder_colors {colors}: super-resolution takes the {features} of"
            " generator.plane_channels; leave it out, or choose superresolution.kind=none"
        )
    if model.superresolution.kind == "none":
        if model.rendering.resolution != model.resolution:
            raise UserError(
                f"superresolution.kind=none renders pictures at their size, {model.resolution}, not"
                f" at {model.rendering.resolution}; leave rendering.resolution out"
            )
        return
    start = model.superresolution.input_resolution or model.resolution
    if model.resolution % start or not is_power_of_two(model.resolution // start):
        raise UserError(
            f"superresolution.input_resolution {start}: doubling it never gives the"
            f" {model.resolution} pixels of the pictures"
        )
    try:
        plan_blocks(model)
    except ValueError as error:
        raise UserError(str(error)) from error
