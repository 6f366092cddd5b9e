"""Whether settings make sense, before anything is built from them: one line for the first that does
not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from dnnlib.console import UserError
from training.config.settings import Config, config_sections
from training.gan.augment_adaptation import check_settings as check_augmentation
from training.networks.discriminator import make_discriminator
from training.networks.generator import Generator
from training.networks.superresolution import block_sizes

Limit = tuple[Callable[[Any], bool], str]


def is_power_of_two(value: int) -> bool:
    """Whether a positive `value` is 1, 2, 4, ..."""
    return value & (value - 1) == 0


ONE_OR_MORE: Limit = (lambda value: value >= 1, "at least 1")
NOT_NEGATIVE: Limit = (lambda value: value >= 0, "at least 0")
POSITIVE: Limit = (lambda value: value > 0, "above 0")
PROBABILITY: Limit = (lambda value: 0 <= value <= 1, "from 0 to 1")
DECAY: Limit = (lambda value: 0 <= value < 1, "from 0 to below 1")
SEED: Limit = (lambda value: 0 <= value < 1 << 63, "from 0 to below 2^63")
PLANE_SIZE: Limit = (lambda value: value >= 4 and is_power_of_two(value), "a power of two from 4")

# Fields that stand in two sections, such as channel_max, mean the same in both. Not listed: any
# value does, or another check knows better.
LIMITS: dict[str, Limit] = {
    **dict.fromkeys(
        (
            "z_dim",
            "w_dim",
            "mapping_layers",
            "plane_channels",
            "channel_base",
            "channel_max",
            "decoder_hidden",
        ),
        ONE_OR_MORE,
    ),
    **dict.fromkeys(
        (
            "mbstd_group_size",
            "d_reg_interval",
            "g_reg_interval",
            "density_reg_points",
            "input_resolution",
        ),
        ONE_OR_MORE,
    ),
    **dict.fromkeys(
        ("resolution", "nrr_initial", "nrr_final", "rebalance", "rebalance_bins"), ONE_OR_MORE
    ),
    **dict.fromkeys(
        (
            "blur_sigma",
            "blur_fade_kimg",
            "swap_fade_kimg",
            "nrr_fade_kimg",
            "ema_kimg",
            "ema_rampup",
        ),
        NOT_NEGATIVE,
    ),
    **dict.fromkeys(
        (
            "gamma",
            "density_reg",
            "freeze_d",
            "c_noise",
            "workers",
            "max_broken",
            "snap_ticks",
            "depth_resolution_importance",
        ),
        NOT_NEGATIVE,
    ),
    **dict.fromkeys(("keep_last", "keep_kimg"), NOT_NEGATIVE),
    **dict.fromkeys(
        (
            "lr_generator",
            "lr_discriminator",
            "adam_eps",
            "kimg",
            "tick_kimg",
            "box_warp",
            "conv_clamp",
        ),
        POSITIVE,
    ),
    **dict.fromkeys(("swap_start", "swap_final"), PROBABILITY),
    **dict.fromkeys(("beta1", "beta2"), DECAY),
    "depth_resolution": (lambda value: value >= 2, "at least 2"),
    "plane_resolution": PLANE_SIZE,
    "seed": SEED,
}


def check_config(config: Config, processes: int) -> None:
    """Check the settings of a run with that many processes.

    Raises:
        UserError: naming the first setting that is out of range or does not go with the others.
    """
    check_ranges(config)
    check_augmentation(config.augment)
    check_batch(config, processes)
    check_networks(config)


def check_ranges(config: Config) -> None:
    """Raise a UserError for a number that is not finite or outside the range of its setting."""
    for name, value in _numbers(config):
        test, expected = LIMITS.get(name.rpartition(".")[2], (math.isfinite, "a finite number"))
        if not math.isfinite(value) or not test(value):
            raise UserError(f"{name} is {value:g}; it must be {expected}")
    rendering = config.model.rendering
    near, far = rendering.ray_start, rendering.ray_end
    if (
        (near != "auto" and near < 0)
        or (far != "auto" and far <= 0)
        or (near != "auto" and far != "auto" and near >= far)
    ):
        raise UserError(
            f"rendering.ray_start {near} and ray_end {far}: rays must start before they end, and"
            " not behind the camera"
        )
    if rendering.background is not None and not all(
        0 <= channel <= 1 for channel in rendering.background
    ):
        raise UserError(
            f"rendering.background is {list(rendering.background)}; its red, green and blue must be"
            " from 0 to 1"
        )


def _numbers(config: Config) -> Iterator[tuple[str, float]]:
    """All settings that are numbers, as `section.field` and value."""
    for section_name, section in config_sections(config).items():
        for item in dataclasses.fields(section):
            value = getattr(section, item.name)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                yield f"{section_name}.{item.name}", value


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
    finest, (taken, _) = (
        config.training.nrr_final,
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


def check_networks(config: Config) -> None:
    """Raise a UserError if the settings describe no networks; shapes only, no memory is asked
    for.
    """
    model = config.model
    widths = (
        (model.generator.channel_base, model.generator.plane_resolution),
        (model.discriminator.channel_base, model.resolution),
    )
    for section, (channel_base, resolution) in zip(
        ("generator", "discriminator"), widths, strict=True
    ):
        if channel_base < resolution:
            raise UserError(
                f"{section}.channel_base {channel_base} leaves no channels at {resolution} pixels;"
                f" choose {resolution} or more"
            )
    start = model.superresolution.input_resolution or model.resolution
    if model.resolution % start or not is_power_of_two(model.resolution // start):
        raise UserError(
            f"superresolution.input_resolution {start}: doubling it never gives the"
            f" {model.resolution} pixels of the pictures"
        )
    try:
        with torch.device("meta"):
            Generator(model)
            make_discriminator(model)
    except (ArithmeticError, AssertionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"the model's settings describe no network: {' '.join(str(error).split())[:200]}"
        ) from error
