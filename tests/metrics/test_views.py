"""Measures of 3D, on a round generator and on ones that only look right from one side."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dnnlib.console import UserError
from metrics.consistency import (
    STRICT_DEGREES,
    correspondence,
    jitter_sums,
    strict_consistency,
    turn_to_front,
    view_consistency,
)
from metrics.depth import compare_depths, depth_against_maps, relief, relief_of_points
from metrics.geometry import pixel_rays, points_of_depth, project, sample_at, view_angle
from metrics.identity import identity_similarity
from metrics.onnx_models import OnnxModel
from metrics.pose import camera_angles, pose_error
from metrics.processes import ALONE
from metrics.reals import RealImages
from metrics.speed import peak_memory, speed
from metrics.views import make_view
from tests.metrics.networks import write_onnx
from tests.metrics.scenes import FOCAL, ORBIT, Scene, draw_camera, sampler_of
from training.cameras import orbit_pose, pack_label, pinhole_intrinsics, unpack_label
from training.rendering.rays import sample_rays

COUNT, BATCH = 12, 5


def cameras(count: int, seed: int = 0) -> Tensor:
    random = np.random.RandomState(seed)
    return torch.stack([draw_camera(random) for _ in range(count)]).double()


# --------------------------------------------------------------------------------------------------
# Geometry


def skewed(count: int) -> Tensor:
    """Cameras with a principal point off the centre, different focal lengths and skew."""
    c = cameras(count)
    c[:, [16, 17, 18, 20, 21]] = torch.tensor([2.0, 0.1, 0.4, 3.0, 0.55], dtype=torch.float64)
    return c


def test_rays_are_those_of_the_renderer():
    c = skewed(3)
    _, expected = sample_rays(*unpack_label(c), 6)
    torch.testing.assert_close(pixel_rays(c, 6).flatten(2).transpose(1, 2), expected)


def test_a_point_projects_to_its_pixel():
    c = skewed(3)
    depth = torch.rand(3, 1, 8, 8, dtype=torch.float64) + 1
    position, distance = project(points_of_depth(depth, c), c)
    centres = (torch.arange(8).double() + 0.5) / 8
    for found, expected in (
        (position[:, 0], centres.expand(3, 8, 8)),
        (position[:, 1], centres[:, None].expand(3, 8, 8)),
        (distance, depth),
        (sample_at(depth, position), depth),
    ):  # labels are fp32: their axes are not quite orthogonal
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_points_behind_a_camera_have_negative_distance():
    c = cameras(1)
    behind = c[:, (3, 7, 11)] - 2 * c[:, (2, 6, 10)]
    assert float(project(behind[:, :, None, None], c)[1]) == pytest.approx(-2)


# --------------------------------------------------------------------------------------------------
# View consistency and relief


@pytest.fixture(scope="module")
def measured() -> dict[tuple[str, str], dict[str, float]]:
    kinds = [
        ("sphere", "world"),
        ("sphere", "screen"),
        ("card", "world"),
        ("card", "screen"),
        ("fixed_card", "world"),
    ]
    result = {}
    for kind in kinds:
        sampler = sampler_of(Scene(*kind))
        result[kind] = {
            **view_consistency(sampler, COUNT, BATCH, ALONE),
            **relief(sampler, COUNT, BATCH, ALONE),
        }
    return result


def test_a_round_generator_is_consistent(measured: dict[tuple[str, str], dict[str, float]]):
    values = measured["sphere", "world"]
    assert values["psnr_raw"] > 45
    assert values["psnr_image"] > 45
    assert values["share"] > 0.995
    assert values["seen"] > 0.7
    assert 5 < values["angle_degrees"] < 40


def test_a_texture_bound_to_the_screen_is_not(measured: dict[tuple[str, str], dict[str, float]]):
    for name in ("psnr_raw", "psnr_image"):
        assert measured["sphere", "screen"][name] < measured["sphere", "world"][name] - 20
    # its shape is right
    assert measured["sphere", "screen"]["share"] == measured["sphere", "world"]["share"]


@pytest.mark.parametrize("texture", ["world", "screen"])
def test_a_card_that_faces_the_camera_contradicts_itself(
    measured: dict[tuple[str, str], dict[str, float]], texture: str
):
    assert measured["card", texture]["share"] < 0.6


def test_cards_have_no_relief(measured: dict[tuple[str, str], dict[str, float]]):
    assert measured["sphere", "world"]["relief"] == pytest.approx(0.43, abs=0.04)
    for kind in (("card", "world"), ("card", "screen"), ("fixed_card", "world")):
        assert measured[kind]["relief"] < 0.01
    assert (
        measured["card", "world"]["depth_spread"]
        < 0.01 * measured["sphere", "world"]["depth_spread"]
    )
    # which alone would not have shown that it is flat
    assert measured["fixed_card", "world"]["share"] > 0.99


def test_strict_consistency_tells_what_sticks_to_the_picture():
    world, screen = (
        strict_consistency(sampler_of(Scene("sphere", texture)), 4, 3, ALONE)
        for texture in ("world", "screen")
    )
    before = 0.0
    for degrees in STRICT_DEGREES[::-1]:
        assert world[f"psnr_image_{degrees}"] > 45
        assert world[f"psnr_raw_{degrees}"] > 45
        assert world[f"share_{degrees}"] > 0.99
        # the further apart, the worse
        assert before < screen[f"psnr_image_{degrees}"] < world[f"psnr_image_{degrees}"] - 15
        before = screen[f"psnr_image_{degrees}"]
    assert world["psnr_jitter"] > 90  # the same rays, one pixel further
    assert screen["psnr_jitter"] < 45


def test_cameras_turn_by_the_angle_towards_the_front():
    c = cameras(6).float()
    for degrees in STRICT_DEGREES:
        turned = turn_to_front(c, math.radians(degrees))
        for one, other in zip(c, turned, strict=True):
            pitch = math.asin(float(-one[6]))
            expected = 2 * math.asin(math.sin(math.radians(degrees) / 2) * math.cos(pitch))
            assert view_angle(one, other) == pytest.approx(expected, abs=1e-3)
            yaw, new_yaw = (math.atan2(float(x[3]), float(x[11])) for x in (one, other))
            assert abs(new_yaw - yaw) == pytest.approx(math.radians(degrees), abs=1e-4)
            assert abs(new_yaw) < max(abs(yaw), math.radians(degrees)) + 1e-4
            assert float(other[7]) == pytest.approx(float(one[7]), abs=1e-6)
        assert turned[:, 16:].equal(c[:, 16:])


def test_jitter_is_of_the_interior_and_one_pixel():
    first = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    second = first.roll(1, dims=-1)
    error, count = jitter_sums(first, second).tolist()
    assert (error, count) == (0, 2 * 3 * 12 * 12)
    assert jitter_sums(first, first)[0] > 1


def test_relief_of_a_hemisphere():
    """Points even over the disc that a far camera sees: the variance of sqrt(R^2 - r^2) is R^2 /
    18, across the view it is R^2 / 4.
    """
    side = torch.linspace(-1, 1, 401, dtype=torch.float64)
    x, y = (axis.flatten() for axis in torch.meshgrid(side, side, indexing="ij"))
    inside = x * x + y * y < 1
    points = torch.stack([x, y, (1 - x * x - y * y).clamp(min=0).sqrt()], 1)[inside]
    turn, _ = torch.linalg.qr(torch.from_numpy(np.random.RandomState(0).randn(3, 3)))
    assert relief_of_points(points @ turn) == pytest.approx(math.sqrt(4 / 18), rel=0.01)


def test_hidden_surface_is_neither_confirmed_nor_contradicted():
    """Seen from the other side, a surface is hidden; seen through a hole, it is contradicted."""
    front, back = (
        pack_label(orbit_pose(yaw, 0.0, ORBIT), pinhole_intrinsics(FOCAL))[None].double()
        for yaw in (0.0, math.pi)
    )
    scene = Scene()
    views = [
        make_view(scene.render(torch.zeros(1, 1, 4, 1, 1), torch.zeros(1, 1, 4), c), c)
        for c in (front, back)
    ]
    _, confirmed, contradicted = correspondence(views[0], views[1], 32)
    assert confirmed.sum() == contradicted.sum() == 0
    views[1].solid[:], views[1].depth[:] = False, 5.0
    _, confirmed, contradicted = correspondence(views[0], views[1], 32)
    assert confirmed.sum() == 0
    assert contradicted.sum() == views[0].solid.sum()


def test_alpha_says_what_is_solid():
    class Solid(Scene):
        def render(self, *arguments: Any, **options: Any) -> Any:
            rendered = super().render(*arguments, **options)
            return rendered._replace(alpha=torch.ones_like(rendered.alpha))

    assert relief(sampler_of(Solid()), 2, 2, ALONE)["alpha"] == 1
    assert 0.3 < relief(sampler_of(Scene()), 2, 2, ALONE)["alpha"] < 0.8


def test_measures_do_not_depend_on_the_batch():
    sampler = sampler_of(Scene("card", "world"))
    for measure in (view_consistency, relief):
        first, second = (measure(sampler, 7, batch, ALONE) for batch in (1, 7))
        assert first == pytest.approx(second, rel=1e-9)


# --------------------------------------------------------------------------------------------------
# Depth against depth maps


def reals_of(scene: Scene, count: int = 20, resolution: int = 64) -> RealImages:
    """Pictures of a scene with true depths."""
    labels = cameras(count, 7).float()

    def read_depth(indices: np.ndarray) -> Tensor:
        c = labels[torch.from_numpy(indices)]
        out = scene.render(
            torch.zeros(len(c), 1, 4, 1, 1), torch.zeros(len(c), 1, 4), c, resolution
        )
        return torch.where(out.alpha > 0.5, out.image_depth, 0.0)

    return RealImages(count, resolution, "key", lambda _: torch.zeros(0), labels, read_depth)


def test_depth_maps_tell_round_from_flat():
    truth = reals_of(Scene())
    values = {
        shape: depth_against_maps(sampler_of(Scene(shape)), truth, 12, 5, ALONE)
        for shape in ("sphere", "card", "fixed_card")
    }
    assert values["sphere"]["depth_error"] < 0.01
    assert values["sphere"]["relief_ratio"] == pytest.approx(1, abs=0.05)
    assert values["sphere"]["overlap"] > 0.9
    assert values["sphere"]["depth_error_unscaled"] < 0.01
    for name in ("depth_error", "depth_error_unscaled"):
        assert values["card"][name] == pytest.approx(1, abs=0.01)
        assert values["fixed_card"][name] > 0.9
    assert values["card"]["relief_ratio"] < 0.01


def test_depth_error_by_hand():
    """Depths 1, 2, 3, 4 against themselves scaled and shifted, mirrored, and without any spread."""
    depth = torch.arange(1.0, 17.0, dtype=torch.float64).reshape(1, 1, 4, 4)
    solid = torch.ones_like(depth, dtype=torch.bool)
    for own, error, unscaled in (
        (depth * 3 + 5, 0, 4),
        (-depth + 40, 4, 4),
        (torch.full_like(depth, 2.0), 1, 1),
    ):
        sums = compare_depths(own, solid, depth)
        assert sums[:2].tolist() == pytest.approx([error, unscaled], abs=1e-9)
        assert sums[4:].tolist() == [16, 16, 1]
    few = solid.clone()
    few[..., 2:] = False
    # too few pixels to mean anything
    assert compare_depths(depth, few, depth).tolist() == [0, 0, 0, 0, 8, 16, 0]


def test_data_without_depth_maps_or_with_too_few():
    with pytest.raises(UserError, match="no depth maps"):
        depth_against_maps(
            sampler_of(Scene()), RealImages(9, 64, "key", lambda _: torch.zeros(0)), 4, 4, ALONE
        )
    with pytest.raises(UserError, match="only 20 pictures"):
        depth_against_maps(sampler_of(Scene()), reals_of(Scene()), 21, 4, ALONE)


# --------------------------------------------------------------------------------------------------
# Identity, pose, speed


def test_identity_of_a_plain_colour_is_kept_and_of_a_screen_is_not(tmp_path: Path):
    """The embedder is the mean colour: that of the round scene changes little as it turns, a random
    one changes.
    """

    class Whim(Scene):
        """Another colour from every camera."""

        def render(self, planes: Tensor, ws: Tensor, c: Tensor, *rest: Any, **options: Any) -> Any:
            rendered = super().render(planes, ws, c, *rest, **options)
            hue = (c[:, 3:4] * torch.tensor([90.0, 170.0, 260.0])).sin()[:, :, None, None]
            return rendered._replace(image=hue.expand_as(rendered.image))

    mean_colour = np.repeat(np.eye(3), 16, axis=0) / 16
    embedder = OnnxModel(write_onnx(tmp_path / "net.onnx", mean_colour), "--identity-model")
    kept = identity_similarity(sampler_of(Scene()), embedder, COUNT, BATCH, ALONE)
    lost = identity_similarity(sampler_of(Whim()), embedder, COUNT, BATCH, ALONE)
    assert kept["identity"] > 0.9
    assert lost["identity"] < 0.5
    assert lost["std"] > kept["std"]


def test_camera_angles_are_those_of_the_orbit():
    yaw, pitch = torch.tensor([0.3, -1.0, 3.0]), torch.tensor([0.2, 0.0, -0.4])
    found = camera_angles(pack_label(orbit_pose(yaw, pitch, ORBIT), pinhole_intrinsics(FOCAL)))
    torch.testing.assert_close(found, torch.stack([yaw, pitch], 1).double(), rtol=1e-5, atol=1e-5)


class Compass(Scene):
    """Pictures whose red is the yaw and whose green is the pitch, in units of pi."""

    def render(self, planes: Tensor, ws: Tensor, c: Tensor, *rest: Any, **options: Any) -> Any:
        rendered = super().render(planes, ws, c, *rest, **options)
        angles = camera_angles(c).float() / math.pi
        colours = torch.cat([angles, torch.zeros(len(c), 1)], 1)[:, :, None, None]
        return rendered._replace(image=colours.expand_as(rendered.image))


def test_pose_error_of_an_estimator_that_is_right_but_for_its_zero(tmp_path: Path):
    matrix = np.zeros((48, 3))
    matrix[:16, 0] = matrix[16:32, 1] = math.pi / 16
    right = pose_error(
        sampler_of(Compass()),
        OnnxModel(write_onnx(tmp_path / "a.onnx", matrix), "--pose-model"),
        COUNT,
        BATCH,
        ALONE,
    )
    assert right.pop("found") == 1
    assert max(right.values()) < 1e-3
    matrix[:16, 0] *= 0.5  # sees half of every yaw
    half = pose_error(
        sampler_of(Compass()),
        OnnxModel(write_onnx(tmp_path / "b.onnx", matrix), "--pose-model"),
        COUNT,
        BATCH,
        ALONE,
    )
    yaws = camera_angles(sampler_of(Compass()).cameras(0, COUNT))[:, 0]
    assert half["yaw_offset"] == pytest.approx(-math.degrees(yaws.mean() / 2), abs=0.3)
    assert half["yaw_error"] == pytest.approx(
        math.degrees((yaws / 2 - yaws.mean() / 2).abs().mean()), rel=0.05
    )
    assert half["pitch_error"] < 1e-3
    model = OnnxModel(write_onnx(tmp_path / "c.onnx", matrix[:, :1]), "--pose-model")
    with pytest.raises(UserError, match="yaw and pitch"):
        pose_error(sampler_of(Compass()), model, 1, 1, ALONE)


def test_speed_reports_both_ways_of_rendering():
    calls = []

    class Counting(Scene):
        def planes(self, ws: Tensor, noise_mode: Any = "const") -> Tensor:
            calls.append(len(ws))
            return super().planes(ws, noise_mode)

    values = speed(sampler_of(Counting()), frames=3)
    assert len(calls) == 1 + 1 + 5  # once, then for the memory and for every frame
    for kind in ("cached_planes", "every_frame"):
        assert values[f"frames_per_second_{kind}"] > 0


def test_memory_of_a_frame_is_what_it_takes():
    taken = peak_memory(lambda: torch.zeros(16 << 20).add_(1), torch.device("cpu"))
    if taken is None:
        pytest.skip("this system does not tell")
    assert 60 << 20 < taken < 90 << 20
