"""Starting points for runs: published recipes, and sizes that a laptop trains.

A preset is a scene with its regularisation (EG3D, supplement); sizes are chosen apart from it,
because the published ones need GPUs. `auto` reads the scene from the camera labels
(training/data/scene.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from training.config.settings import (
    Config,
    DiscriminatorConfig,
    GeneratorConfig,
    SuperResolutionConfig,
)
from training.config.sizes import block_sizes

PresetName = Literal[
    "auto", "ffhq", "afhq", "shapenet", "heads", "heads128-strict", "ffhq256-strict"
]
Sizes = Literal["published", "laptop"]
PRESETS: tuple[str, ...] = get_args(PresetName)

LAPTOP_MAX_RESOLUTION = 128
# smallest picture whose super-resolution takes the published 64 pixels
PUBLISHED_RENDERING = 2 * 64
# The scene of the built-in heads, which data_tools/heads/dataset.py renders.
HEADS_FOCAL, HEADS_RADIUS = 3.1, 2.7
# never white: eyes of its colour teach a GAN to drill holes through the head
HEADS_BACKGROUND = (77, 153, 158)


def make_config(preset: PresetName, resolution: int, sizes: Sizes) -> Config:
    """Settings of `preset` for pictures of `resolution` pixels."""
    config = Config(preset=preset, sizes=sizes)
    config.model.resolution = resolution
    if sizes == "laptop":
        use_laptop_sizes(config)
    elif resolution < PUBLISHED_RENDERING:
        render_all_pixels(config)
    scenes: dict[str, Callable[[Config], None]] = {
        "auto": _auto,
        "ffhq": _ffhq,
        "afhq": _afhq,
        "shapenet": _shapenet,
        "heads": _heads,
        "heads128-strict": _heads_strict,
        "ffhq256-strict": _ffhq_strict,
    }
    scenes[preset](config)
    return config


def use_laptop_sizes(config: Config) -> None:
    """Networks, sample counts and schedules with which two CPU cores train pictures of up to 128
    pixels in under an hour.
    """
    model, training = config.model, config.training
    model.generator = GeneratorConfig(
        z_dim=64,
        w_dim=128,
        plane_resolution=64,
        plane_channels=16,
        channel_base=3072,
        channel_max=128,
        use_noise=False,
        decoder_hidden=32,
    )
    render = min(32, model.resolution)
    blocks = len(block_sizes(model.resolution, render)[1])
    model.superresolution = SuperResolutionConfig(
        channels=(32,) * blocks, input_resolution=render, use_noise=False, conv_clamp=None
    )
    model.discriminator = DiscriminatorConfig(
        channel_base=2048, channel_max=256, mapping_layers=2, conv_clamp=None
    )
    model.rendering.depth_resolution = model.rendering.depth_resolution_importance = 16
    model.rendering.resolution = render
    model.rendering.density_gain = 5.0
    model.rendering.fine_offsets = "systematic"
    training.batch = 8
    training.kimg = 200.0
    training.ema_kimg = 1.0
    training.blur_sigma, training.blur_fade_kimg = 2.0, 5.0
    training.shared_fakes = True
    config.snapshot.tick_kimg, config.snapshot.snap_ticks = 1.0, 5


def render_all_pixels(config: Config) -> None:
    """Render pictures too small for the published rendering at their own size, so that
    super-resolution drops no detail.
    """
    model = config.model
    model.rendering.resolution = model.superresolution.input_resolution = model.resolution


def r1_gamma(resolution: int, batch: int) -> float:
    """R1 weight by the size of the picture and of the batch (Karras et al. 2020a, StyleGAN2-ADA,
    appendix C).
    """
    return 0.0002 * resolution**2 / batch


def _leave_camera_out_of_mapping(config: Config) -> None:
    """Map latents alone.

    The embedding of a label of zeros is its bias. Scaled to unit second moment, it becomes at the
    first update a constant of full strength beside the latent, in which the latent drowns: all
    seeds come to look alike.
    """
    config.model.generator.pose_conditioning = config.model.generator.constant_embedding = False


def _auto(config: Config) -> None:
    config.model.rendering.length_unit = "box"
    # Whether poses go with looks (smiles towards the camera) is not known; where they do,
    # --gen-pose-cond helps.
    _leave_camera_out_of_mapping(config)


def _ffhq(config: Config) -> None:
    config.training.gamma = 1.0


def _afhq(config: Config) -> None:
    config.training.gamma = 5.0
    config.training.swap_final = 0.8


def _shapenet(config: Config) -> None:
    rendering = config.model.rendering
    rendering.ray_start, rendering.ray_end, rendering.box_warp = 0.1, 2.6, 1.6
    rendering.background = (1.0, 1.0, 1.0)
    samples = 64 if config.sizes == "published" else 24
    rendering.depth_resolution = rendering.depth_resolution_importance = samples
    if config.sizes == "published":
        config.model.generator.pose_conditioning = False
    else:
        _leave_camera_out_of_mapping(config)
    config.training.gamma = 0.3
    # published in world units, of which the box has 1.6
    config.training.density_reg_extent = 1 / rendering.box_warp
    config.training.density_reg_distance = 0.004 / rendering.box_warp


def _heads(config: Config) -> None:
    """The built-in heads (dataset_tool.py heads)."""
    rendering, training = config.model.rendering, config.training
    # Beside the box one plane of three still has features: rays that leave it at the sides see
    # specks there, which nothing holds in check.
    rendering.ray_start = rendering.ray_end = "auto"
    rendering.depth_resolution = rendering.depth_resolution_importance = 12
    red, green, blue = HEADS_BACKGROUND
    rendering.background = (red / 255, green / 255, blue / 255)
    _leave_camera_out_of_mapping(config)
    training.gamma = 0.5
    training.density_reg = 0.1


def render_strictly(config: Config, samples: int) -> None:
    """Show the rendering itself, at full size, with so many samples per ray near the surface. The
    first pass steps no farther than two texels of the planes.
    """
    model, training = config.model, config.training
    model.superresolution.kind = "none"
    model.discriminator.kind = "single"
    model.generator.decoder_colors = 3
    rendering = model.rendering
    rendering.resolution, training.resolution_initial = model.resolution, None
    rendering.first_pass = "quarter"
    rendering.depth_resolution = round(0.6 * model.generator.plane_resolution)
    rendering.depth_resolution_importance = samples


def _heads_strict(config: Config) -> None:
    _heads(config)
    render_strictly(config, 12)


def _ffhq_strict(config: Config) -> None:
    _ffhq(config)
    render_strictly(config, 16)
