"""Presets have the published numbers."""

from __future__ import annotations

import copy

import pytest

from training.config.checks import check_config
from training.config.presets import PresetName, Sizes, make_config
from training.config.settings import Config, differences
from training.networks.generator import Generator
from training.run.settings import settle


@pytest.mark.parametrize(
    ("preset", "gamma", "swap_final", "pose_conditioning"),
    [("ffhq", 1.0, 0.5, True), ("afhq", 5.0, 0.8, True), ("shapenet", 0.3, 0.5, False)],
)
@pytest.mark.parametrize("sizes", ["published", "laptop"])
def test_regularisation_of_the_published_data_sets(
    preset: PresetName, gamma: float, swap_final: float, pose_conditioning: bool, sizes: Sizes
) -> None:
    config = make_config(preset, 128, sizes)
    assert config.training.gamma == gamma
    assert (
        config.training.swap_start,
        config.training.swap_final,
        config.training.swap_fade_kimg,
    ) == (1.0, swap_final, 1000.0)
    assert config.model.generator.pose_conditioning is pose_conditioning
    assert config.training.density_reg == 0.25


@pytest.mark.parametrize("preset", ["ffhq", "afhq"])
def test_scene_of_faces(preset: PresetName) -> None:
    config = make_config(preset, 512, "published")
    scene = config.model.rendering
    assert (scene.ray_start, scene.ray_end, scene.box_warp) == (2.25, 3.3, 1.0)
    assert (scene.depth_resolution, scene.depth_resolution_importance) == (48, 48)
    assert scene.background is None
    assert (scene.plane_axes, scene.fine_sampling) == ("corrected", "interval")


@pytest.mark.parametrize(
    ("preset", "base", "sizes", "size"),
    [("heads128-strict", "heads", "laptop", 128), ("ffhq256-strict", "ffhq", "published", 256)],
)
def test_strict_presets_change_how_pictures_are_made_alone(
    preset: PresetName, base: PresetName, sizes: Sizes, size: int
) -> None:
    config = make_config(preset, size, sizes)
    changed = set(differences(config, make_config(base, size, sizes)))
    assert changed - {"rendering.depth_resolution_importance"} == {
        "superresolution.kind",
        "discriminator.kind",
        "generator.decoder_colors",
        "rendering.resolution",
        "rendering.first_pass",
        "rendering.depth_resolution",
    }
    settled = copy.deepcopy(config)
    settle(settled, set())
    assert not differences(settled, config)
    check_config(config, 1)
    step = 1.1 / (config.model.rendering.depth_resolution - 1)
    assert step <= 2 / config.model.generator.plane_resolution


def test_scene_of_cars() -> None:
    scene = make_config("shapenet", 128, "published").model.rendering
    assert (scene.ray_start, scene.ray_end, scene.box_warp) == (0.1, 2.6, 1.6)
    assert (scene.depth_resolution, scene.depth_resolution_importance) == (64, 64)
    assert scene.background == (1.0, 1.0, 1.0)


def test_published_training_numbers() -> None:
    config = make_config("ffhq", 512, "published")
    training, generator = config.training, config.model.generator
    assert (training.batch, training.lr_generator, training.lr_discriminator) == (32, 0.0025, 0.002)
    assert (training.beta1, training.beta2, training.adam_eps) == (0.0, 0.99, 1e-8)
    assert (
        training.blur_sigma,
        training.blur_fade_kimg,
        training.ema_kimg,
        training.ema_rampup,
    ) == (10.0, None, None, 0.05)
    assert (training.resolution_initial, training.resolution_fade_kimg) == (None, 1000.0)
    assert training.shared_fakes is False
    assert training.kimg == 25_000
    assert (generator.z_dim, generator.w_dim, generator.mapping_layers) == (512, 512, 2)
    assert (generator.plane_resolution, generator.plane_channels) == (256, 32)
    assert (generator.channel_base, generator.channel_max, generator.decoder_hidden) == (
        32768,
        512,
        64,
    )
    assert config.model.discriminator.mapping_layers == 8
    assert (config.augment.target, config.augment.interval, config.augment.kimg) == (0.6, 4, 500.0)


@pytest.mark.parametrize(
    ("resolution", "batch", "gamma"),
    [(32, 8, 0.0256), (64, 8, 0.1024), (64, 16, 0.0512), (256, 32, 0.4096), (512, 32, 1.6384)],
)
def test_gamma_without_a_preset_follows_picture_and_batch(
    resolution: int, batch: int, gamma: float
) -> None:
    config = make_config("auto", resolution, "published")
    config.training.batch = batch
    settle(config, given=set())
    assert config.training.gamma == pytest.approx(gamma)


@pytest.mark.parametrize(
    ("preset", "sizes", "embeds"),
    [
        ("auto", "laptop", False),
        ("auto", "published", False),
        ("heads", "laptop", False),
        ("shapenet", "laptop", False),
        ("shapenet", "published", True),  # as released
        ("ffhq", "laptop", True),  # conditioned on the pose
    ],
)
def test_mapping_networks_without_pose_conditioning_see_latents_alone(
    preset: PresetName, sizes: Sizes, embeds: bool
) -> None:
    config = make_config(preset, 64, sizes)
    assert hasattr(Generator(config.model).backbone.mapping, "embed") is embeds
    config.model.generator.pose_conditioning = True  # --gen-pose-cond
    assert hasattr(Generator(config.model).backbone.mapping, "embed")


def test_heads_keep_their_background() -> None:
    config = make_config("heads", 64, "laptop")
    assert config.model.rendering.background == pytest.approx((77 / 255, 153 / 255, 158 / 255))
    assert config.model.rendering.ray_start == config.model.rendering.ray_end == "auto"
    assert config.model.generator.pose_conditioning is False


def test_presets_do_not_share_what_they_change() -> None:
    first = make_config("shapenet", 64, "laptop")
    first.model.rendering.box_warp = 9
    assert make_config("shapenet", 64, "laptop").model.rendering.box_warp == 1.6
    assert Config().model.rendering.box_warp == 1.0
