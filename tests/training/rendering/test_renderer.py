"""The whole volume renderer against a float64 loop, closed forms and symmetries."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import references
from training.cameras import mirror_label, orbit_pose, pack_label, pinhole_intrinsics, unpack_label
from training.config.settings import RenderingConfig
from training.rendering import renderer
from training.rendering.rays import box_limits, sample_rays
from training.rendering.renderer import RenderedRays

AXES = {"corrected": [(0, 1), (0, 2), (2, 1)], "released": [(0, 1), (0, 2), (2, 0)]}
MODES = list(AXES)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def settings(**changes: Any) -> RenderingConfig:
    return dataclasses.replace(
        RenderingConfig(depth_resolution=8, depth_resolution_importance=8), **changes
    )


def toy_decoder(features: Tensor) -> tuple[Tensor, Tensor]:
    return 6 * features[..., :1] + 2, torch.sigmoid(features[..., 1:])


def toy_planes(batch: int = 1, size: int = 6) -> Tensor:
    return torch.randn(batch, 3, 5, size, size, dtype=torch.float64) * 2


def constant_decoder(features: Tensor) -> tuple[Tensor, Tensor]:
    """Density 3 and the colour (0.1, 0.2, 0.3, 0.4) everywhere."""
    return torch.full_like(features[..., :1], 3.0), torch.tensor(
        [0.1, 0.2, 0.3, 0.4], dtype=features.dtype
    ).expand(*features.shape[:-1], 4)


def cameras(*angles: tuple[float, float], focal: float = 2.0) -> Tensor:
    yaw, pitch = torch.tensor(angles, dtype=torch.float64).unbind(-1)
    return pack_label(
        orbit_pose(yaw, pitch, 2.7, (0.0, 0.0, 0.1)), pinhole_intrinsics(focal).double()
    )


def render(
    planes: Tensor,
    c: Tensor,
    config: RenderingConfig,
    resolution: int = 5,
    decoder: Any = toy_decoder,
) -> RenderedRays:
    return renderer.render(
        planes, decoder, *sample_rays(*unpack_label(c), resolution), config, deterministic=True
    )


def assert_same(first: RenderedRays, second: RenderedRays, **tolerance: float) -> None:
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, **tolerance)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------
# Against a loop over one ray's samples


def decode_loop(
    planes: np.ndarray, point: np.ndarray, config: RenderingConfig
) -> tuple[float, np.ndarray]:
    q = point * 2 / config.box_warp
    features = np.mean(
        [
            references.bilinear(planes[p], q[a], q[b])
            for p, (a, b) in enumerate(AXES[config.plane_axes])
        ],
        axis=0,
    )
    return config.density_gain * (6 * features[0] + 2), 1 / (1 + np.exp(-features[1:]))


def ray_loop(
    planes: np.ndarray,
    origin: np.ndarray,
    direction: np.ndarray,
    near: float,
    far: float,
    config: RenderingConfig,
) -> tuple:
    count = config.depth_resolution
    depths = np.array([near + (i + 0.5) * (far - near) / (count - 1) for i in range(count)])
    densities = np.array([decode_loop(planes, origin + d * direction, config)[0] for d in depths])
    weights = references.interval_weights(depths, densities)
    fine = references.importance_depths(
        depths, weights, config.depth_resolution_importance, config.fine_sampling
    )
    depths = np.sort(np.concatenate([depths, fine]))
    samples = [decode_loop(planes, origin + d * direction, config) for d in depths]
    weights = references.interval_weights(depths, np.array([density for density, _ in samples]))
    color = sum(w * (samples[i][1] + samples[i + 1][1]) / 2 for i, w in enumerate(weights))
    depth = sum(w * (depths[i] + depths[i + 1]) / 2 for i, w in enumerate(weights)) / weights.sum()
    if config.background is not None:
        color = color + (1 - weights.sum()) * np.array([*config.background, 1.0])
    return color * 2 - 1, depth, weights.sum()


@pytest.mark.parametrize("plane_axes", MODES)
@pytest.mark.parametrize("fine_sampling", ["interval", "released"])
@pytest.mark.parametrize("background", [None, (1.0, 1.0, 1.0), (0.3, 0.6, 0.62)])
def test_equals_the_loop(plane_axes: str, fine_sampling: str, background: Any) -> None:
    config = settings(
        plane_axes=plane_axes,
        fine_sampling=fine_sampling,
        background=background,
        box_warp=1.2,
        density_gain=1.5,
    )
    planes, c = toy_planes(2), cameras((0.3, 0.2), (-1.0, 0.4))
    origins, directions = sample_rays(*unpack_label(c), 2)
    result = render(planes, c, config, resolution=2)
    for n in range(2):
        for r in range(4):
            expected = ray_loop(
                planes[n].numpy(),
                origins[n, r].numpy(),
                directions[n, r].numpy(),
                2.25,
                3.3,
                config,
            )
            for value, reference in zip(result, expected, strict=True):
                np.testing.assert_allclose(value[n, r], np.atleast_1d(reference), rtol=1e-9)


# --------------------------------------------------------------------------------------------------
# Closed forms


@pytest.mark.parametrize("fine", [0, 8])
@pytest.mark.parametrize("background", [None, (0.5, 0.25, 1.0)])
def test_box_of_constant_density(fine: int, background: Any) -> None:
    """With `auto` limits a ray's samples cover exactly its way through the box, whatever the
    counts.
    """
    config = settings(
        ray_start="auto", ray_end="auto", depth_resolution_importance=fine, background=background
    )
    origins = torch.tensor(
        [[[0.0, 0.0, 2.7], [2.0, 2.0, 2.0], [0.2, 0.1, 0.0], [0.0, 0.0, -2.7], [0.8, 0.0, 2.7]]]
    ).double()
    directions = torch.tensor(
        [[[0.0, 0, -1], [-(3**-0.5)] * 3, [1.0, 0, 0], [0.0, 0, -1], [0.0, 0, -1]]]
    ).double()
    # through, along the diagonal, from inside, behind, beside
    lengths = torch.tensor([1.0, 3**0.5, 0.3, 0.0, 0.0]).double()
    result = renderer.render(
        torch.zeros(1, 3, 4, 4, 4).double(),
        constant_decoder,
        origins,
        directions,
        config,
        deterministic=True,
    )
    alpha = 1 - torch.exp(-references.softplus(2) * lengths)
    torch.testing.assert_close(result.alpha[0, :, 0], alpha)
    fill = torch.tensor([0.0] * 4 if background is None else [*background, 1.0]).double()
    expected = alpha[:, None] * torch.tensor([0.1, 0.2, 0.3, 0.4]) + (1 - alpha[:, None]) * fill
    torch.testing.assert_close(result.features[0], expected * 2 - 1, atol=1e-7, rtol=0)


@pytest.mark.parametrize(("ray_start", "ray_end"), [(2.0, 3.5), ("auto", "auto")])
def test_ball_of_constant_density(ray_start: Any, ray_end: Any) -> None:
    center, radius, sigma = torch.tensor([0.08, -0.05, 0.06]).double(), 0.3, references.softplus(3)

    def ball(features: Tensor) -> tuple[Tensor, Tensor]:
        position, is_inside_planes = features[..., [0, 1, 3]], features[..., 2:3] > 0.999
        is_ball = ((position - center).norm(dim=-1, keepdim=True) < radius) & is_inside_planes
        return torch.where(is_ball, 4.0, -1e4), position

    config = settings(
        depth_resolution=256, depth_resolution_importance=256, ray_start=ray_start, ray_end=ray_end
    )
    c = cameras((0.3, 0.2), (2.0, -0.3), focal=3.0)
    origins, directions = sample_rays(*unpack_label(c), 8)
    result = render(
        coordinate_planes(128, 1.0).expand(2, -1, -1, -1, -1), c, config, resolution=8, decoder=ball
    )
    along = ((center - origins) * directions).sum(-1)
    distance = (origins + along[..., None] * directions - center).norm(dim=-1)
    seen = distance < radius * 0.95
    assert seen.sum() > 10
    half_chord = (radius**2 - distance[seen] ** 2).sqrt()
    transmittance = torch.exp(-sigma * 2 * half_chord)
    depth = (
        along[seen] - half_chord + 1 / sigma - 2 * half_chord * transmittance / (1 - transmittance)
    )
    torch.testing.assert_close(result.alpha[seen][:, 0], 1 - transmittance, atol=0.02, rtol=0)
    torch.testing.assert_close(result.depth[seen][:, 0], depth, atol=0.02, rtol=0)
    assert torch.all(result.alpha[distance > radius * 1.05] < 1e-9)


@pytest.mark.parametrize("ray_start", [2.25, "auto"])
def test_background_of_empty_space(ray_start: Any) -> None:
    def empty(features: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(features[..., :1], -1e4), features

    config = settings(
        ray_start=ray_start,
        ray_end="auto" if ray_start == "auto" else 3.3,
        background=(0.2, 0.5, 0.9),
    )
    result = render(toy_planes(), cameras((0.1, 0.1)), config, decoder=empty)
    expected = torch.tensor([0.2, 0.5, 0.9, 1, 1]).double() * 2 - 1
    torch.testing.assert_close(result.features, expected.expand(1, 25, 5), atol=1e-6, rtol=0)
    assert torch.all(result.alpha == 0)
    if ray_start != "auto":
        largest = 2.25 + 7.5 * (3.3 - 2.25) / 7
        torch.testing.assert_close(result.depth, torch.full((1, 25, 1), largest).double())


@pytest.mark.parametrize(("ray_start", "ray_end"), [("auto", 2.5), (3.1, "auto")])
@pytest.mark.parametrize("fine", [0, 8])
def test_one_constant_and_one_automatic_limit(ray_start: Any, ray_end: Any, fine: int) -> None:
    """A ray that leaves the box before it starts, or enters it after it ends, sees nothing."""
    config = settings(ray_start=ray_start, ray_end=ray_end, depth_resolution_importance=fine)
    origins, directions = sample_rays(*unpack_label(cameras((0.7, 0.5))), 16)
    box_near, box_far, hit = box_limits(origins, directions, config.box_warp)
    length = (2.5 - box_near if ray_start == "auto" else box_far - 3.1).clamp(min=0) * hit
    assert torch.any((length == 0) & hit)
    result = renderer.render(
        torch.zeros(1, 3, 4, 4, 4).double(),
        constant_decoder,
        origins,
        directions,
        config,
        deterministic=True,
    )
    torch.testing.assert_close(result.alpha, 1 - torch.exp(-references.softplus(2) * length))


# --------------------------------------------------------------------------------------------------
# Symmetries


def flipped(planes: Tensor, p: int, *along: str) -> Tensor:
    return planes[:, p].flip([{"width": -1, "height": -2}[name] for name in along])


@pytest.mark.parametrize("plane_axes", MODES)
def test_mirrored_camera_and_planes_give_the_mirrored_picture(plane_axes: str) -> None:
    """x runs along the width of planes 0 and 1, and along the height of the released plane 2."""
    planes, c = toy_planes(2), cameras((0.4, 0.1), (-0.7, -0.2))
    c[:, 16:] += torch.tensor([0.3, 0.1, 0.07, 0, -0.2, -0.03, 0, 0, 0])
    plane_2 = flipped(planes, 2, "height") if plane_axes == "released" else planes[:, 2]
    mirrored = torch.stack(
        [flipped(planes, 0, "width"), flipped(planes, 1, "width"), plane_2], dim=1
    )
    config = settings(plane_axes=plane_axes)
    picture = render(planes, c, config)
    expected = RenderedRays(
        *(value.unflatten(1, (5, 5)).flip(2).flatten(1, 2) for value in picture)
    )
    assert_same(render(mirrored, mirror_label(c), config), expected)


def turned_camera(c: Tensor, rotation: Tensor) -> Tensor:
    world = torch.eye(4, dtype=torch.float64)
    world[:3, :3] = rotation
    cam2world, intrinsics = unpack_label(c)
    return pack_label(world @ cam2world, intrinsics)


def test_a_quarter_turn_of_camera_and_world_changes_nothing() -> None:
    """World point (x, y, z) goes to (z, y, -x): planes 0 and 2 change places, plane 1 turns."""
    planes, c = toy_planes(), cameras((0.4, 0.1))
    rotation = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]]).double()
    turned = torch.stack(
        [planes[:, 2], planes[:, 1].transpose(-1, -2).flip(-2), flipped(planes, 0, "width")], dim=1
    )
    for limits in ({}, {"ray_start": "auto", "ray_end": "auto"}):
        config = settings(**limits)
        assert_same(render(turned, turned_camera(c, rotation), config), render(planes, c, config))


@pytest.mark.parametrize("plane_axes", MODES)
def test_a_half_turn_of_camera_and_world_changes_nothing(plane_axes: str) -> None:
    planes, c, config = toy_planes(), cameras((0.4, 0.1)), settings(plane_axes=plane_axes)
    plane_2 = (
        flipped(planes, 2, "width", "height")
        if plane_axes == "released"
        else flipped(planes, 2, "width")
    )
    turned = torch.stack(
        [flipped(planes, 0, "width"), flipped(planes, 1, "width", "height"), plane_2], dim=1
    )
    assert_same(
        render(turned, turned_camera(c, torch.diag(torch.tensor([-1.0, 1, -1]).double())), config),
        render(planes, c, config),
    )


def coordinate_planes(size: int, box: float) -> Tensor:
    """Planes from which features 0, 1, 3 of a point (corrected axes) are its x, y, z; feature 2 is
    one inside.
    """
    ramp = 3 * ((torch.arange(size, dtype=torch.float64) + 0.5) / size * 2 - 1) * box / 2
    planes = torch.zeros(1, 3, 4, size, size, dtype=torch.float64)
    planes[:, 0, 0], planes[:, 0, 1], planes[:, 1, 3] = ramp, ramp[:, None], ramp[:, None]
    planes[:, :, 2] = 1
    return planes


def test_any_motion_of_camera_and_field_changes_nothing() -> None:
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    rotation, shift = rotation * torch.linalg.det(rotation), torch.tensor([0.3, -0.2, 0.5]).double()

    def field(position: Tensor) -> tuple[Tensor, Tensor]:
        blob = 8 - 40 * (position - torch.tensor([0.1, 0.0, -0.1])).square().sum(-1, keepdim=True)
        return blob, torch.sin(5 * position)

    motion = torch.eye(4, dtype=torch.float64)
    motion[:3, :3], motion[:3, 3] = rotation, shift
    c, config, planes = (
        cameras((0.4, 0.1), (2.0, -0.3)),
        settings(box_warp=10.0),
        coordinate_planes(16, 10.0).expand(2, -1, -1, -1, -1),
    )
    cam2world, intrinsics = unpack_label(c)
    still = render(planes, c, config, decoder=lambda f: field(f[..., [0, 1, 3]]))
    moved = render(
        planes,
        pack_label(motion @ cam2world, intrinsics),
        config,
        decoder=lambda f: field((f[..., [0, 1, 3]] - shift) @ rotation),
    )
    assert_same(moved, still)


# --------------------------------------------------------------------------------------------------
# Samples and rays do not know each other


@pytest.mark.parametrize("limits", [{}, {"ray_start": "auto", "ray_end": "auto", "box_warp": 0.7}])
@pytest.mark.parametrize("background", [None, (1.0, 1.0, 1.0)])
def test_a_batch_equals_its_samples_and_rays(limits: dict[str, Any], background: Any) -> None:
    """With wide pictures of a small box, so that under `auto` some rays miss, and one camera looks
    away from it.
    """
    config, planes = settings(background=background, **limits), toy_planes(3)
    c = cameras((0.3, 0.1), (1.2, -0.4), (0.0, 0.0), focal=1.2)
    c[2, 2], c[2, 10] = -c[2, 2], -c[2, 10]
    origins, directions = sample_rays(*unpack_label(c), 6)
    together = renderer.render(planes, toy_decoder, origins, directions, config, deterministic=True)
    if limits:
        hits = together.alpha[..., 0] > 0
        assert [bool(hits[0].any()), bool(hits[0].all()), bool(hits[2].any())] == [
            True,
            False,
            False,
        ]
    for n in range(3):
        alone = renderer.render(
            planes[n : n + 1],
            toy_decoder,
            origins[n : n + 1],
            directions[n : n + 1],
            config,
            deterministic=True,
        )
        assert_same(alone, RenderedRays(*(value[n : n + 1] for value in together)))
    for r in range(0, 36, 5):
        ray = slice(r, r + 1)
        alone = renderer.render(
            planes, toy_decoder, origins[:, ray], directions[:, ray], config, deterministic=True
        )
        assert_same(alone, RenderedRays(*(value[:, ray] for value in together)))


def test_a_ray_that_misses_reports_a_depth_of_its_own() -> None:
    config = settings(ray_start="auto", ray_end="auto")
    origins = torch.tensor([[[2.0, 0.0, 3.0], [2.0, 0.0, 30.0]]]).double()
    directions = torch.tensor([[[0.0, 0.0, -1.0], [0.0, 0.0, -1.0]]]).double()
    depth = renderer.render(
        toy_planes(), toy_decoder, origins, directions, config, deterministic=True
    ).depth.flatten()
    torch.testing.assert_close(depth[1] - depth[0], torch.tensor(27.0).double())


# --------------------------------------------------------------------------------------------------
# Settings, decoders, gradients


def test_a_researchers_decoder_fits_in_a_few_lines() -> None:
    network = torch.nn.Sequential(
        torch.nn.Linear(5, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)
    ).double()

    def decoder(features: Tensor) -> tuple[Tensor, Tensor]:
        x = network(features)
        return x[..., 3:], x[..., :3].sigmoid()

    result = renderer.render(
        toy_planes(2), decoder, *sample_rays(*unpack_label(cameras((0, 0), (1, 0))), 4), settings()
    )
    assert [tuple(value.shape) for value in result] == [(2, 16, 3), (2, 16, 1), (2, 16, 1)]
    result.features.sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0
        for parameter in network.parameters()
    )


def test_density_gain_scales_the_raw_density() -> None:
    planes, points = toy_planes(), torch.rand(1, 20, 3, dtype=torch.float64) - 0.5
    plain, colors = renderer.query(planes, points, toy_decoder, settings())
    gained, same_colors = renderer.query(planes, points, toy_decoder, settings(density_gain=5.0))
    torch.testing.assert_close(gained, plain * 5)
    assert torch.equal(colors, same_colors)


def test_memory_format_of_the_planes_does_not_matter() -> None:
    planes, c = toy_planes(2).float(), cameras((0.3, 0.1), (1.2, -0.4)).float()
    channels_last = planes.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    assert_same(render(channels_last, c, settings()), render(planes, c, settings()))


def test_random_samples_differ_and_average_to_the_same_picture() -> None:
    planes, rays = toy_planes(), sample_rays(*unpack_label(cameras((0.3, 0.1))), 4)
    config = settings(depth_resolution=24, depth_resolution_importance=24)
    fixed = renderer.render(planes, toy_decoder, *rays, config, deterministic=True)
    assert_same(
        renderer.render(planes, toy_decoder, *rays, config, deterministic=True),
        fixed,
        atol=0,
        rtol=0,
    )
    drawn = [renderer.render(planes, toy_decoder, *rays, config) for _ in range(100)]
    assert not torch.equal(drawn[0].features, drawn[1].features)
    torch.testing.assert_close(
        torch.stack([d.features for d in drawn]).mean(0), fixed.features, atol=0.03, rtol=0
    )
    torch.testing.assert_close(
        torch.stack([d.depth for d in drawn]).mean(0), fixed.depth, atol=0.02, rtol=0
    )


@pytest.mark.parametrize("limits", [{}, {"ray_start": "auto", "ray_end": "auto"}])
def test_gradients_of_a_single_pass(limits: dict[str, Any]) -> None:
    config = settings(
        depth_resolution_importance=0, depth_resolution=5, background=(0.1, 0.2, 0.3), **limits
    )
    planes = toy_planes(size=4).requires_grad_()
    origins, directions = (
        ray[:, ::3].clone().requires_grad_()
        for ray in sample_rays(*unpack_label(cameras((0.3, 0.1), focal=4.0)), 3)
    )

    def pictures(planes: Tensor, origins: Tensor, directions: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            renderer.render(planes, toy_decoder, origins, directions, config, deterministic=True)
        )

    assert torch.autograd.gradcheck(pictures, (planes, origins, directions))


def test_gradients_of_two_passes_are_finite_where_rays_miss() -> None:
    planes, c = toy_planes().requires_grad_(), cameras((0.0, 0.0), focal=1.2).requires_grad_()
    result = render(planes, c, settings(ray_start="auto", ray_end="auto"), resolution=7)
    assert (result.alpha == 0).any()
    assert math.isfinite(result.features.sum().item())
    for value in result:
        gradients = torch.autograd.grad(value.sum(), (planes, c), retain_graph=True)
        assert all(gradient.isfinite().all() for gradient in gradients)
