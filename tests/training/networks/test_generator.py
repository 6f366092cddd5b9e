"""The generator's methods against one another and against statements about cameras, settings and
gradients.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from open_eg3d import load_generator
from tests import references
from tests.operators import PATHS, on_path
from tests.released_layout import Layout, write_snapshot
from training.cameras import mirror_label, orbit_pose, pack_label, pinhole_intrinsics, unpack_label
from training.config.settings import (
    GeneratorConfig,
    ModelConfig,
    RenderingConfig,
    SuperResolutionConfig,
)
from training.networks.generator import Generator, GeneratorOutput, TriPlaneDecoder
from training.rendering import renderer, triplane
from training.rendering.rays import sample_rays


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def build(kind: Any = "standard", **generator: Any) -> Generator:
    """A generator of 32 pixels from planes of 16, with every parameter that starts at zero set to
    something.
    """
    sizes = {
        "z_dim": 6,
        "w_dim": 8,
        "plane_resolution": 16,
        "plane_channels": 4,
        "channel_base": 64,
        "channel_max": 8,
        "decoder_hidden": 8,
    }
    config = ModelConfig(resolution=32, generator=GeneratorConfig(**{**sizes, **generator}))
    config.superresolution = SuperResolutionConfig(channels=(6, 5))
    config.rendering = RenderingConfig(
        resolution=8, depth_resolution=6, depth_resolution_importance=6
    )
    config.superresolution.kind = kind
    G = Generator(config).eval()
    for name, parameter in G.named_parameters():
        if name.endswith("noise_strength") or (name.endswith("bias") and "fc" not in name):
            nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.3)
    nn.init.normal_(G.backbone.mapping.w_avg)
    return G


def cameras(*yaws: float, focal: float = 2.5) -> Tensor:
    return pack_label(
        orbit_pose(torch.tensor(yaws), 0.1, 2.7, (0.0, 0.0, 0.1)), pinhole_intrinsics(focal)
    )


def assert_same(first: GeneratorOutput, second: GeneratorOutput, tolerance: float = 0.0) -> None:
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


# --------------------------------------------------------------------------------------------------
# Shapes and parts


@pytest.mark.parametrize("resolution", [32, 64, 128, 256, 512, 1024])
@pytest.mark.parametrize("rendering_resolution", [32, 64, 128])
def test_published_shapes(resolution: int, rendering_resolution: int) -> None:
    with torch.device("meta"):
        G = Generator(ModelConfig(resolution=resolution))
        ws = G.mapping(torch.empty(2, 512), torch.empty(2, 25))
        assert ws.shape == (2, G.num_ws, 512) == (2, 14, 512)
        planes = G.planes(ws)
        assert planes.shape == (2, 3, 32, 256, 256)
        out = G.render(planes, ws, torch.empty(2, 25), rendering_resolution)
    assert out.image.shape == (2, 3, resolution, resolution)
    assert out.image_raw.shape == (2, 3, rendering_resolution, rendering_resolution)
    assert (
        out.image_depth.shape
        == out.alpha.shape
        == (2, 1, rendering_resolution, rendering_resolution)
    )


@pytest.mark.parametrize(("plane_resolution", "plane_channels"), [(32, 16), (64, 8), (512, 32)])
def test_other_plane_sizes(plane_resolution: int, plane_channels: int) -> None:
    with torch.device("meta"):
        G = Generator(
            ModelConfig(
                generator=GeneratorConfig(
                    plane_resolution=plane_resolution, plane_channels=plane_channels
                )
            )
        )
        planes = G.planes(torch.empty(1, G.num_ws, 512))
    assert planes.shape == (1, 3, plane_channels, plane_resolution, plane_resolution)


def test_plane_p_channel_k_is_output_channel_p_times_channels_plus_k() -> None:
    G, ws = build(), torch.randn(2, 6, 8)
    colors = G.backbone.synthesis(ws, "const")
    planes = G.planes(ws)
    for p in range(3):
        for k in range(4):
            assert torch.equal(planes[:, p, k], colors[:, 4 * p + k])


def test_decoder() -> None:
    decoder = TriPlaneDecoder(4, 6, 3)
    nn.init.normal_(decoder.get_parameter("net.0.bias"))
    nn.init.normal_(decoder.get_parameter("net.2.bias"))
    p = {name: value.detach().double().numpy() for name, value in decoder.named_parameters()}
    features = torch.randn(2, 7, 4) * 3
    hidden = np.logaddexp(
        0, references.linear(features.double().numpy(), p["net.0.weight"], p["net.0.bias"])
    )
    x = references.linear(hidden, p["net.2.weight"], p["net.2.bias"])
    densities, colors = decoder(features)
    np.testing.assert_allclose(densities.detach(), x[..., :1], atol=1e-5)
    np.testing.assert_allclose(
        colors.detach(), 1.002 / (1 + np.exp(-x[..., 1:])) - 0.001, atol=1e-5
    )


@pytest.mark.parametrize("plane_axes", ["corrected", "released"])
def test_sampled_points_are_raw_densities_and_unscaled_colours(plane_axes: Any) -> None:
    G, ws, points = build(), torch.randn(2, 6, 8), torch.rand(2, 30, 3) - 0.5
    G.rendering.plane_axes, G.rendering.box_warp, G.rendering.density_gain = plane_axes, 1.3, 2.0
    nn.init.constant_(G.decoder.get_parameter("net.2.bias"), -5)
    sigma, rgb = G.query(points, G.planes(ws))
    densities, colors = G.decoder(triplane.sample(G.planes(ws), points, 1.3, plane_axes))
    torch.testing.assert_close(sigma, densities * 2)
    torch.testing.assert_close(rgb, colors)
    assert sigma.shape == (2, 30, 1)
    assert rgb.shape == (2, 30, 4)
    assert sigma.max() < 0, "raw, before any softplus"


# --------------------------------------------------------------------------------------------------
# Methods agree with one another


def test_forward_is_mapping_then_planes_then_render() -> None:
    G, z, c = build(), torch.randn(2, 6), cameras(0.3, -0.8)
    ws = G.mapping(z, c, truncation_psi=0.6, truncation_cutoff=3)
    expected = G.synthesis(ws, c, 8)
    assert_same(G(z, c, truncation_psi=0.6, truncation_cutoff=3), expected)
    assert_same(G.render(G.planes(ws), ws, c), expected)


def test_the_raw_picture_is_the_volume_rendering_and_stays_it() -> None:
    """At the super-resolution's input size, where no resize protects it from being added to."""
    G, ws, c = build(), torch.randn(2, 6, 8), cameras(0.3, -0.8)
    with torch.no_grad():
        planes = G.planes(ws)
        out = G.render(planes, ws, c, 16)
        rays = renderer.render(
            planes, G.decoder, *sample_rays(*unpack_label(c), 16), G.rendering, deterministic=True
        )
    torch.testing.assert_close(
        out.image_raw, rays.features[..., :3].transpose(1, 2).reshape(2, 3, 16, 16)
    )
    torch.testing.assert_close(out.image_depth.flatten(), rays.depth.flatten())
    torch.testing.assert_close(out.alpha.flatten(), rays.alpha.flatten())


@pytest.mark.parametrize("limits", [(2.25, 3.3), ("auto", "auto")])
def test_a_batch_equals_its_samples(limits: Any) -> None:
    G, z, c = build(), torch.randn(3, 6), cameras(0.3, -0.8, 2.0, focal=1.3)
    G.rendering.ray_start, G.rendering.ray_end = limits
    together = G(z, c)
    if limits[0] == "auto":
        assert (together.alpha == 0).any(), "some rays miss"
    for n in range(3):
        assert_same(
            G(z[n : n + 1], c[n : n + 1]),
            GeneratorOutput(*(value[n : n + 1] for value in together)),
            1e-4,
        )


def test_deterministic_or_not() -> None:
    G, ws, c = build(), torch.randn(1, 6, 8), cameras(0.3)
    assert_same(G.synthesis(ws, c), G.synthesis(ws, c, deterministic=True))
    assert not torch.equal(G.synthesis(ws, c).image, G.synthesis(ws, c, deterministic=False).image)
    assert not torch.equal(
        G.synthesis(ws, c).image_raw, G.synthesis(ws, c, noise_mode="none").image_raw
    )


def test_mirrored_planes_and_camera_give_the_mirrored_rendering() -> None:
    G, ws, c = build(), torch.randn(2, 6, 8), cameras(0.4, -0.7)
    planes = G.planes(ws)
    mirrored = torch.stack([planes[:, 0].flip(-1), planes[:, 1].flip(-1), planes[:, 2]], dim=1)
    out, mirror = G.render(planes, ws, c), G.render(mirrored, ws, mirror_label(c))
    torch.testing.assert_close(mirror.image_raw, out.image_raw.flip(-1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mirror.image_depth, out.image_depth.flip(-1), atol=1e-4, rtol=1e-4)


def test_planes_of_any_memory_format_give_the_same_pictures() -> None:
    G, ws, c = build(), torch.randn(2, 6, 8), cameras(0.4, -0.7)
    planes = G.planes(ws).contiguous()
    channels_last = planes.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    assert not channels_last.is_contiguous()
    assert_same(G.render(channels_last, ws, c), G.render(planes, ws, c), 1e-5)
    points = torch.rand(2, 9, 3) - 0.5
    for a, b in zip(G.query(points, channels_last), G.query(points, planes), strict=True):
        torch.testing.assert_close(a, b)


# --------------------------------------------------------------------------------------------------
# Settings


def test_settings_take_effect_at_once_and_belong_to_one_generator() -> None:
    G, ws, c = build(), torch.randn(1, 6, 8), cameras(0.4)
    other, pictures = copy.deepcopy(G), [G.synthesis(ws, c).image_raw]
    changes = {
        "plane_axes": "released",
        "fine_sampling": "released",
        "background": (1.0, 1.0, 1.0),
        "density_gain": 5.0,
        "box_warp": 1.5,
    }
    for name, value in changes.items():
        assert value != getattr(G.rendering, name)
        setattr(G.rendering, name, value)
        pictures.append(G.synthesis(ws, c).image_raw)
        assert not torch.equal(pictures[-1], pictures[-2]), name
    assert torch.equal(other.synthesis(ws, c).image_raw, pictures[0])
    fresh = Generator(dataclasses.replace(other.config, rendering=G.rendering)).eval()
    fresh.load_state_dict(other.state_dict())
    assert torch.equal(fresh.synthesis(ws, c).image_raw, pictures[-1])


def test_the_caller_keeps_a_config_of_their_own() -> None:
    config = ModelConfig(resolution=32)
    with torch.device("meta"):
        G = Generator(config)
    config.rendering.resolution = 99
    assert G.rendering.resolution == 64
    assert G.config.rendering is G.rendering


def test_rendering_resolution_defaults_to_the_models_own() -> None:
    G, ws, c = build(), torch.randn(1, 6, 8), cameras(0.4)
    assert G.synthesis(ws, c).image_raw.shape[-1] == 8
    G.rendering.resolution = 12
    assert G.synthesis(ws, c).image_raw.shape[-1] == 12
    assert G.synthesis(ws, c, neural_rendering_resolution=4).image_raw.shape[-1] == 4


def test_pose_conditioning() -> None:
    z, c, other = torch.randn(2, 6), cameras(0.4, 0.2), cameras(-1.0, 0.9)
    G = build(pose_conditioning=False)
    assert torch.equal(G.mapping(z, c), G.mapping(z, other))
    assert torch.equal(G.mapping(z, c), G.backbone.mapping(z, torch.zeros(2, 25)))
    G = build(pose_conditioning=False, constant_embedding=False)
    assert "backbone.mapping.embed.weight" not in G.state_dict()
    assert torch.equal(G.mapping(z, c), G.backbone.mapping(z, None))
    G = build(c_scale=0.5)
    assert not torch.equal(G.mapping(z, c), G.mapping(z, other))
    torch.testing.assert_close(G.mapping(z, c), G.backbone.mapping(z, c * 0.5))


def test_the_running_mean_moves_only_when_asked() -> None:
    G, z, c = build(), torch.randn(2, 6), cameras(0.4, 0.2)
    before = G.backbone.mapping.w_avg.clone()
    G(z, c)
    assert torch.equal(G.backbone.mapping.w_avg, before)
    ws = G.mapping(z, c, update_w_avg=True)
    torch.testing.assert_close(G.backbone.mapping.w_avg, before.lerp(ws[:, 0].mean(0), 0.002))


@pytest.mark.parametrize("background", [None, (1.0, 1.0, 1.0), (0.3, 0.6, 0.62)])
def test_empty_space_shows_the_background(background: Any) -> None:
    G, ws = build(), torch.randn(1, 6, 8)
    G.rendering.background = background
    with torch.no_grad():
        G.decoder.get_parameter("net.2.weight")[0] = 0
        G.decoder.get_parameter("net.2.bias")[0] = -1e4
    raw = G.synthesis(ws, cameras(0.0)).image_raw
    expected = torch.tensor(background or (0.0, 0.0, 0.0)) * 2 - 1
    torch.testing.assert_close(raw, expected[:, None, None].expand(1, 3, 8, 8))


def test_the_kind_of_super_resolution_changes_the_picture_and_not_the_rendering() -> None:
    standard, alias_free = build(), build(kind="alias_free")
    shared = {
        name: value
        for name, value in standard.state_dict().items()
        if not name.startswith("superresolution.")
    }
    alias_free.load_state_dict(shared, strict=False)
    ws, c = torch.randn(1, 6, 8), cameras(0.4)
    first, second = standard.synthesis(ws, c), alias_free.synthesis(ws, c)
    assert first.image.shape == second.image.shape == (1, 3, 32, 32)
    assert not torch.equal(first.image, second.image)
    assert torch.equal(first.image_raw, second.image_raw)


def test_bf16_convolutions_stay_close() -> None:
    G, z, c = build(), torch.randn(2, 6), cameras(0.4, 0.2)
    expected = G(z, c)
    G.set_conv_dtype(torch.bfloat16, torch.bfloat16)
    result = G(z, c)
    assert result.image.dtype == result.image_raw.dtype == torch.float32
    for value, reference in zip(result, expected, strict=True):
        assert (value - reference).abs().max() < 0.1 * reference.abs().max()
    assert not torch.equal(result.image_raw, expected.image_raw)


# --------------------------------------------------------------------------------------------------
# A loaded generator


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    rendering = {"depth_resolution": 6, "depth_resolution_importance": 6}
    layout = Layout(plane_channels=4, neural_rendering_resolution=8, rendering=rendering)
    return load_generator(
        write_snapshot(tmp_path_factory.mktemp("generator") / "released.pkl", layout)
    )


def assert_depends(value: Tensor, *inputs: Tensor) -> None:
    for gradient in torch.autograd.grad(value.square().sum(), inputs, retain_graph=True):
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


def test_every_method_of_a_loaded_generator_is_differentiable(loaded: Generator) -> None:
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    z, c = (
        torch.randn(2, loaded.z_dim, requires_grad=True),
        cameras(0.2, -0.3, focal=4.0).requires_grad_(),
    )
    points = (torch.rand(2, 20, 3) - 0.5).requires_grad_()
    assert_depends(loaded.mapping(z, c, truncation_psi=0.7), z, c)
    ws = loaded.mapping(z, c).detach().requires_grad_()
    assert_depends(loaded.planes(ws), ws)
    for value in loaded.query(points, loaded.planes(ws)):
        assert_depends(value, points, ws)
    for value in loaded.synthesis(ws, c):
        assert_depends(value, ws, c)
    for value in loaded(z, c):
        assert_depends(value, z, c)
    planes = loaded.planes(ws).detach().requires_grad_()
    for value in loaded.render(planes, ws, c):
        assert_depends(value, planes, c)


def test_gradient_of_the_density_is_its_slope(loaded: Generator) -> None:
    ws = torch.randn(1, loaded.num_ws, loaded.w_dim)
    points, step = torch.rand(1, 50, 3) * 0.6 - 0.3, torch.randn(1, 50, 3) * 5e-4
    points = (points - step).requires_grad_()
    middle, _ = loaded.query(points, loaded.planes(ws))
    (slope,) = torch.autograd.grad(middle.sum(), points)
    with torch.no_grad():
        ahead, behind = (
            loaded.query(points + step, loaded.planes(ws))[0],
            loaded.query(points - step, loaded.planes(ws))[0],
        )
    same_side = torch.cosine_similarity(
        (ahead - behind).flatten(), 2 * (slope * step).sum(-1).flatten(), dim=0
    )
    assert same_side > 0.99


# --------------------------------------------------------------------------------------------------
# torch.compile


@pytest.mark.parametrize("kind", ["standard", "alias_free"])
@pytest.mark.parametrize("path", PATHS)
def test_compiles_without_graph_breaks_to_the_same_numbers(kind: str, path: str) -> None:
    torch.compiler.reset()
    G, c = build(kind), cameras(0.3, -0.2)
    with on_path(path):
        ws = G.mapping(torch.randn(2, G.z_dim), c)
        for module in (G.mapping, G.planes, G.synthesis):
            compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
            given: Any = (
                (torch.randn(2, G.z_dim), c)
                if module == G.mapping
                else (ws,)
                if module == G.planes
                else (ws, c)
            )
            expected, result = module(*given), compiled(*given)
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
        parameters = [
            p
            for name, p in G.named_parameters()
            if name.startswith(("superresolution", "decoder")) and name.endswith("weight")
        ]
        both: list[Any] = [G.synthesis, compiled]
        gradients = [torch.autograd.grad(f(ws, c).image.square().sum(), parameters) for f in both]
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)
