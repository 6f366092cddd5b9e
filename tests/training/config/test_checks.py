"""Settings out of range are refused by name before anything is built."""

from __future__ import annotations

import copy
import re

import pytest

from dnnlib.console import UserError
from tests.tiny import tiny_config
from training.config.checks import check_batch, check_config, group_note, rendering_note
from training.config.presets import PRESETS, PresetName, Sizes, make_config
from training.config.settings import Config, set_option
from training.run.settings import check_run, settle


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("sizes", "resolutions"),
    [("laptop", (32, 64, 128)), ("published", (32, 64, 128, 256, 512, 1024))],
    ids=["laptop", "published"],
)
def test_presets_are_in_range(
    preset: PresetName, sizes: Sizes, resolutions: tuple[int, ...]
) -> None:
    for resolution in resolutions:
        config = make_config(preset, resolution, sizes)
        check_config(config, 1)
        assert rendering_note(config) is None


@pytest.mark.parametrize(
    "assignment",
    [
        "training.d_reg_interval=0",
        "training.g_reg_interval=-1",
        "training.lr_generator=-1",
        "training.beta2=1",
        "training.beta1=-0.1",
        "training.adam_eps=0",
        "training.gamma=NaN",
        "training.gamma=-1",
        "training.kimg=Infinity",
        "training.swap_start=1.5",
        "training.seed=-1",
        "training.density_reg_points=0",
        "training.density_reg_distance=NaN",
        "rendering.resolution=0",
        "training.blur_sigma=-1",
        "training.ema_kimg=-1",
        "training.freeze_d=-1",
        "augment.p=1.5",
        "augment.interval=0",
        "data.workers=-1",
        "snapshot.tick_kimg=0",
        "snapshot.snap_ticks=-1",
        "generator.z_dim=0",
        "generator.plane_resolution=48",
        "generator.channel_base=8",
        "generator.channel_max=0",
        "generator.conv_clamp=-1",
        "superresolution.input_resolution=24",
        "superresolution.input_resolution=64",
        "superresolution.channels=[4]",
        "discriminator.channel_base=16",
        "discriminator.mbstd_group_size=0",
        "rendering.depth_resolution=1",
        "rendering.box_warp=0",
        "rendering.ray_start=4",
        "rendering.background=[255,255,255]",
        "rendering.background=[0,-0.1,0]",
        "rendering.density_gain=NaN",
    ],
)
def test_a_setting_out_of_range_is_named(assignment: str) -> None:
    with pytest.raises(UserError) as raised:
        check_config(tiny_config(assignment), 1)
    message = str(raised.value)
    assert assignment.partition("=")[0] in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "assignment",
    [
        "rendering.ray_start=auto",
        "rendering.background=[0,0.5,1]",
        "rendering.depth_resolution_importance=0",
        "training.gamma=0",
        "training.ema_rampup=null",
        "training.beta1=0",
    ],
)
def test_the_ends_of_ranges_are_fine(assignment: str) -> None:
    check_config(tiny_config(assignment), 1)


@pytest.mark.parametrize("assignment", ["rendering.ray_start=-1", "rendering.ray_end=0"])
def test_rays_do_not_begin_or_end_behind_the_camera_where_the_other_end_is_that_of_the_box(
    assignment: str,
) -> None:
    other = "rendering.ray_end=auto" if "start" in assignment else "rendering.ray_start=auto"
    with pytest.raises(UserError, match=r"must be (at least|above) 0"):
        check_config(tiny_config(assignment, other), 1)


@pytest.mark.parametrize(
    ("batch", "batch_gpu", "group", "processes"),
    [
        (32, None, 4, 8),
        (8, 4, 4, 1),
        (8, 2, 4, 1),
        (2, None, 4, 1),
        (1, 1, 4, 1),
        (7, None, 1, 1),
        (7, 1, 4, 7),
        (16, 4, 4, 2),
    ],
)
def test_batches_that_divide(batch: int, batch_gpu: int | None, group: int, processes: int) -> None:
    check_batch(batch_config(batch, batch_gpu, group), processes)


@pytest.mark.parametrize(
    ("batch", "batch_gpu", "group", "processes", "named"),
    [
        (7, 4, 4, 1, "--batch-gpu 4"),
        (7, None, 4, 1, "--batch"),  # 7 samples are no groups of 4
        (8, 6, 4, 1, "--batch-gpu 6"),
        (12, 6, 4, 1, "--batch-gpu"),
        (8, 0, 4, 1, "--batch-gpu 0"),
        (0, None, 4, 1, "--batch 0"),
        (8, None, 4, 3, "--batch 8"),
        (8, 8, 4, 2, "--batch-gpu 8"),
    ],
)
def test_batches_that_do_not(
    batch: int, batch_gpu: int | None, group: int, processes: int, named: str
) -> None:
    with pytest.raises(UserError, match=named):
        check_batch(batch_config(batch, batch_gpu, group), processes)


@pytest.mark.parametrize(
    ("batch", "batch_gpu", "processes", "group"),
    [
        (8, None, 1, None),
        (8, 4, 1, None),
        (2, None, 1, None),
        (32, None, 8, None),
        (8, 2, 1, 2),
        (4, None, 2, 2),
        (8, 1, 2, 1),
    ],
)
def test_groups_smaller_than_asked_for_are_told(
    batch: int, batch_gpu: int | None, processes: int, group: int | None
) -> None:
    note = group_note(batch_config(batch, batch_gpu, 4), processes)
    assert (
        (note is None)
        if group is None
        else (note is not None and f"over groups of {group} samples instead of 4" in note)
    )


@pytest.mark.parametrize(
    ("rendering", "given", "is_told"),
    [(16, 16, False), (8, 16, False), (32, 16, True), (32, 32, False), (17, None, True)],
)
def test_rendering_finer_than_super_resolution_takes_is_told(
    rendering: int, given: int | None, is_told: bool
) -> None:
    config = tiny_config("superresolution.channels=null", f"rendering.resolution={rendering}")
    config.model.superresolution.input_resolution = given
    note = rendering_note(config)
    assert (note is not None) == is_told
    assert note is None or f"--nrr-final {given or 16}" in note


@pytest.mark.parametrize(("finest", "advice"), [(64, 2), (48, 1), (128, 1)])
def test_what_the_note_on_rendering_advises_works(finest: int, advice: int) -> None:
    note = rendering_note(laptop_config(f"rendering.resolution={finest}"))
    assert note is not None
    found = re.findall(r"--(?:nrr-final \d+|set [a-z_.]+=\d+)", note)
    assert len(found) == advice
    for option in found:
        assignment = option.removeprefix("--set ").replace("--nrr-final ", "rendering.resolution=")
        config = laptop_config(f"rendering.resolution={finest}", assignment)
        check_config(config, 1)
        assert rendering_note(config) is None


def laptop_config(*assignments: str) -> Config:
    config = make_config("auto", 64, "laptop")
    for assignment in assignments:
        set_option(config, assignment)
    settle(config, {assignment.partition("=")[0] for assignment in assignments})
    return config


@pytest.mark.parametrize(
    "setting",
    [
        "training.loss",
        "generator.decoder",
        "rendering.fine_sampling",
        "superresolution.kind",
        "discriminator.kind",
    ],
)
def test_names_that_no_table_has_are_refused_with_those_that_it_has(setting: str) -> None:
    with pytest.raises(UserError, match=f"{setting} is 'magic'; known are [a-z_]+"):
        check_run(tiny_config(f"{setting}=magic"), 1)


def batch_config(batch: int, batch_gpu: int | None, group: int) -> Config:
    config = tiny_config(f"discriminator.mbstd_group_size={group}")
    config.training.batch, config.training.batch_gpu = batch, batch_gpu
    return config


def test_differences_of_noisy_judgements_are_refused_and_the_advice_works() -> None:
    config = tiny_config("training.penalty=finite_difference", "discriminator.c_noise=0.5")
    with pytest.raises(UserError, match="would measure the noise"):
        check_config(config, 1)
    for advice in ("training.penalty=gradient", "discriminator.c_noise=0"):
        changed = copy.deepcopy(config)
        set_option(changed, advice)
        check_config(changed, 1)


def test_schedules_keep_their_length_where_a_run_grows() -> None:
    config = tiny_config("training.kimg=100", "training.lr_final=0.1")
    settle(config, set())
    assert config.training.schedule_kimg == 100
    plain = tiny_config("training.kimg=100")
    settle(plain, set())
    assert plain.training.schedule_kimg is None
