"""Camera summaries and scene settings from labels, on synthetic orbits."""

import io
import json
import math
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from dnnlib.console import UserError
from training.cameras import (
    FFHQ_FOCAL,
    CameraSummary,
    look_at_pose,
    orbit_pose,
    pack_label,
    pinhole_intrinsics,
)
from training.config.settings import RenderingConfig
from training.data.dataset import ImageDataset
from training.data.scene import apply_scene, fit_background, fit_dataset_scene, fit_scene

WHITE = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)


def orbit_labels(
    yaw, pitch, radius=2.7, focal=FFHQ_FOCAL, pivot=(0.0, 0.0, 0.0), center=(0.0, 0.0, 0.0)
):
    """Labels of cameras on a sphere around `center` that look at `pivot`."""
    yaw, pitch = torch.as_tensor(yaw).float(), torch.as_tensor(pitch).float()
    position = orbit_pose(yaw, pitch, radius)[..., :3, 3] + torch.tensor(center)
    return pack_label(look_at_pose(position, torch.tensor(pivot)), pinhole_intrinsics(focal))


def face_labels(count=500, **options):
    rng = np.random.default_rng(0)
    return orbit_labels(rng.normal(0, 0.25, count), rng.normal(0.05, 0.12, count), **options)


def full_orbit_labels(count=500, **options):
    """Cameras all over the sphere, as around an aeroplane."""
    rng = np.random.default_rng(0)
    return orbit_labels(
        rng.uniform(-math.pi, math.pi, count), np.arcsin(rng.uniform(-0.95, 0.95, count)), **options
    )


# --------------------------------------------------------------------------------------------------
# Summary


def test_faces_around_the_origin_that_look_at_a_pivot():
    """FFHQ: radius 2.7 around the origin, all looking at (0, 0, 0.2); distances to it lie between
    2.5 and 2.9.
    """
    labels = face_labels(pivot=(0.0, 0.0, 0.2))
    summary = CameraSummary.from_labels(labels)
    assert summary.pivot == pytest.approx((0, 0, 0.2), abs=1e-5)
    distances = np.linalg.norm(labels[:, [3, 7, 11]].double().numpy() - (0, 0, 0.2), axis=1)
    assert summary.radius == pytest.approx(np.median(distances), rel=1e-6)
    assert summary.intrinsics == pytest.approx((FFHQ_FOCAL, 0, 0.5, 0, FFHQ_FOCAL, 0.5, 0, 0, 1))


def test_angles_are_those_around_the_pivot():
    yaw, pitch = np.linspace(-0.6, 0.8, 141), np.linspace(-0.1, 0.3, 141)
    shift = (0.5, -1.0, 2.0)
    summary = CameraSummary.from_labels(orbit_labels(yaw, pitch, 1.7, pivot=shift, center=shift))
    assert summary.center == pytest.approx(shift, abs=1e-5)
    assert summary.radius == pytest.approx(1.7, rel=1e-5)
    assert (summary.yaw, summary.pitch) == pytest.approx((0.1, 0.1), abs=1e-5)
    assert summary.yaw_range == pytest.approx((-0.6 + 0.014, 0.8 - 0.014), abs=1e-4)
    assert summary.pitch_range == pytest.approx((-0.1 + 0.004, 0.3 - 0.004), abs=1e-4)


def test_a_few_misjudged_poses_widen_nothing():
    yaw = np.append(np.linspace(-0.5, 0.5, 999), 3.0)
    assert CameraSummary.from_labels(orbit_labels(yaw, np.zeros(1000))).yaw_range == pytest.approx(
        (-0.5, 0.5), abs=0.02
    )


def test_mean_yaw_crosses_the_back():
    """Cameras behind the object: yaws on both sides of 180 degrees average to 180, not to 0."""
    yaw = math.pi + np.linspace(-0.4, 0.4, 101)
    summary = CameraSummary.from_labels(orbit_labels(yaw, np.full(101, 0.2)))
    assert math.cos(summary.yaw) == pytest.approx(-1)
    assert summary.yaw_range[1] - summary.yaw_range[0] == pytest.approx(0.8 * 0.98, abs=1e-3)
    assert np.allclose(summary.frontal_label(), orbit_labels(math.pi, 0.2), atol=1e-4)


def test_full_orbits_have_the_full_range_and_the_front_at_yaw_zero():
    labels = full_orbit_labels()
    summary = CameraSummary.from_labels(labels)
    assert summary.yaw_range == (-math.pi, math.pi)
    assert summary.yaw == 0
    assert summary.pitch_range[0] < -1
    assert summary.pitch_range[1] > 1
    assert summary.radius == pytest.approx(2.7, rel=1e-5)


def test_label_repeats_the_datas_cameras():
    yaw, pitch = np.linspace(-0.6, 0.6, 20), np.linspace(-0.3, 0.2, 20)
    labels = orbit_labels(yaw, pitch, 1.7, 1.5, pivot=(0.1, 0.2, 0.3), center=(0.1, 0.2, 0.3))
    summary = CameraSummary.from_labels(labels)
    assert torch.allclose(
        summary.label(torch.from_numpy(yaw), torch.from_numpy(pitch)), labels, atol=1e-5
    )
    assert torch.allclose(summary.label(float(yaw[3]), float(pitch[3])), labels[3], atol=1e-5)


def test_frontal_label_is_the_mean_pose():
    labels = orbit_labels(np.linspace(-0.2, 0.6, 50), np.linspace(0, 0.2, 50))
    assert torch.allclose(
        CameraSummary.from_labels(labels).frontal_label(), orbit_labels(0.2, 0.1), atol=1e-5
    )


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_default_yaws_stay_in_the_datas_range(count):
    summary = CameraSummary.from_labels(face_labels())
    yaws = summary.default_yaws(count)
    assert len(yaws) == count
    assert all(summary.yaw_range[0] - 1e-9 <= yaw <= summary.yaw_range[1] + 1e-9 for yaw in yaws)
    assert np.all(np.diff(yaws) > 0)
    assert np.allclose(np.diff(yaws), np.diff(yaws).mean() if count > 1 else 0)


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_default_yaws_around_the_circle_are_even_and_start_nowhere_twice(count):
    yaws = np.array(CameraSummary.from_labels(full_orbit_labels()).default_yaws(count))
    gaps = np.diff(np.append(yaws, yaws[0] + 2 * math.pi))
    assert np.allclose(gaps, 2 * math.pi / count)
    assert np.allclose(yaws, -yaws[::-1])


def test_poses_are_the_datas_own_and_the_same_every_time():
    labels = face_labels(3000)
    poses = CameraSummary.from_labels(labels).poses
    assert poses.shape == (1000, 25)
    rows = {tuple(row) for row in labels.tolist()}
    assert all(tuple(row) in rows for row in poses.tolist())
    assert len({tuple(row) for row in poses.tolist()}) == 1000
    assert torch.equal(poses, CameraSummary.from_labels(labels).poses)
    assert torch.equal(CameraSummary.from_labels(labels[:7]).poses, labels[:7])


def test_poses_are_not_caught_in_the_datas_rhythm():
    """100 objects with the same 50 views each: all 50 views must be among the 1,000 poses."""
    views = orbit_labels(np.linspace(-3, 3, 50), np.zeros(50))
    poses = CameraSummary.from_labels(views.repeat(100, 1)).poses
    assert len({tuple(row) for row in poses.tolist()}) == 50


def test_one_single_pose_is_enough():
    summary = CameraSummary.from_labels(orbit_labels(0.3, 0.1)[None].repeat(4, 1))
    assert summary.radius == pytest.approx(2.7, rel=1e-5)
    assert torch.allclose(summary.frontal_label(), orbit_labels(0.3, 0.1), atol=1e-5)


def test_checkpoint_round_trip():
    summary = CameraSummary.from_labels(face_labels(pivot=(0.0, 0.0, 0.2)))
    file = io.BytesIO()
    torch.save({"cameras": summary.to_dict()}, file)
    file.seek(0)
    loaded = CameraSummary.from_dict(torch.load(file, weights_only=True)["cameras"])
    assert torch.equal(loaded.poses, summary.poses)
    for name, value in vars(summary).items():
        if name != "poses":
            assert getattr(loaded, name) == value, name
            assert type(getattr(loaded, name)) is type(value)


def test_released_snapshots_give_radius_and_pivot_only():
    summary = CameraSummary.from_dict({"radius": 2.7, "pivot": [0, 0, 0.2]})
    expected = pack_label(
        orbit_pose(0.3, 0.1, 2.7, (0.0, 0.0, 0.2)), pinhole_intrinsics(FFHQ_FOCAL)
    )
    assert torch.allclose(summary.label(0.3, 0.1), expected, atol=1e-6)
    assert torch.allclose(summary.frontal_label()[16:], expected[16:])
    assert summary.poses.shape == (0, 25)
    assert summary.default_yaws(3)[1] == pytest.approx(0)
    assert (
        CameraSummary.from_dict({"radius": 1.7, "pivot": [0, 0, 0], "focal": 1.025}).intrinsics[4]
        == 1.025
    )


@pytest.mark.parametrize(
    "values",
    [
        {"radius": 2.7},
        {"radius": "far", "pivot": [0, 0, 0]},
        {"radius": 2.7, "pivot": [0, 0]},
        {"radius": 2.7, "pivot": [0, 0, 0], "colour": 3},
        {"radius": 2.7, "pivot": [0, 0, 0], "poses": torch.zeros(4, 24)},
        {"radius": 2.7, "pivot": [0, 0, 0], "poses": None},
        {"radius": 2.7, "pivot": [0, 0, 0], "focal": None},
    ],
)
def test_a_damaged_summary_is_refused(values):
    with pytest.raises(
        UserError, match=r"^the checkpoint's camera summary is damaged .*take another checkpoint"
    ):
        CameraSummary.from_dict(values)


# --------------------------------------------------------------------------------------------------
# Scene


def test_box_is_a_fifth_larger_than_the_visible_width():
    fit = fit_scene(
        orbit_labels(np.linspace(-3, 3, 40), np.linspace(-0.3, 0.5, 40), radius=1.3, focal=1.025),
        WHITE,
    )
    assert fit.box_warp == pytest.approx(1.2 * 1.3 / 1.025, rel=1e-5)
    assert fit.background == (1, 1, 1)
    assert fit.notes == []


def ffhq_labels(pivot_z):
    """Cameras of the published face models."""
    random = np.random.RandomState(0)
    yaw, pitch = torch.from_numpy(random.normal(0, (0.3, 0.15), (500, 2)).T)
    return pack_label(
        orbit_pose(yaw, pitch, 2.7, (0.0, 0.0, pivot_z)), pinhole_intrinsics(4.2647).double()
    ).float()


@pytest.mark.parametrize(
    "labels",
    [
        full_orbit_labels(radius=1.7, focal=2.0),
        face_labels(pivot=(0.0, 0.0, 0.1)),
        ffhq_labels(0.175),
        ffhq_labels(0.2),
    ],
    ids=["aeroplanes", "faces", "portraits", "ffhq"],
)
def test_ordinary_data_needs_no_notes(labels):
    fit = fit_scene(labels, WHITE)
    assert fit.notes == []
    assert fit.box_warp == pytest.approx(1.2 * fit.cameras.radius / float(labels[0, 16]), rel=1e-5)


def test_apply_scene_sets_what_was_fitted_and_nothing_else():
    rendering = RenderingConfig(depth_resolution=7, background=(0.0, 0.0, 0.0))
    fit = fit_scene(face_labels(), noisy_border(40))
    apply_scene(rendering, fit)
    expected = RenderingConfig(
        depth_resolution=7, background=None, box_warp=fit.box_warp, ray_start="auto", ray_end="auto"
    )
    assert rendering == expected


def test_an_object_far_from_the_origin_is_noted():
    (note,) = fit_scene(face_labels(pivot=(0.0, 5.0, 0.0), center=(0.0, 5.0, 0.0)), WHITE).notes
    assert "look at (" in note
    assert ", 5," in note
    assert "box of side 0.76" in note
    assert "convert --recentre` moves them" in note


def test_cameras_that_look_past_each_other_are_noted():
    labels = face_labels()
    rng = np.random.default_rng(1)
    labels[:, [3, 7, 11]] += torch.from_numpy(rng.normal(0, 0.5, (len(labels), 3))).float()
    assert any(
        "miss their common point" in note and "are the poses right" in note
        for note in fit_scene(labels, WHITE).notes
    )


def test_cameras_that_look_outwards_are_refused():
    labels = full_orbit_labels()
    labels[:, [1, 5, 9, 2, 6, 10]] *= -1  # half a turn around the picture's horizontal axis
    with pytest.raises(
        UserError, match=r"do not look at a common point in front of them; .*check.*--cfg ffhq"
    ):
        fit_scene(labels, WHITE)


# --------------------------------------------------------------------------------------------------
# Background


def noisy_border(spread, level=(77, 153, 158), count=4):
    """Pictures of a colour with uniform noise of at most +-spread levels, and a random object
    inside.
    """
    rng = np.random.default_rng(0)
    pixels = np.array(level) + rng.integers(-spread, spread + 1, (count, 32, 32, 3))
    pixels[:, 4:-4, 4:-4] = rng.integers(0, 256, (count, 24, 24, 3))
    return torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize("level", [(255, 255, 255), (0, 0, 0), (77, 153, 158)])
def test_plain_backgrounds_come_out_exactly(level):
    assert fit_background(noisy_border(0, level)) == pytest.approx(
        [value / 255 for value in level], abs=1e-12
    )


def test_noise_within_the_tolerance_leaves_the_colour():
    assert fit_background(noisy_border(4)) == pytest.approx(
        [77 / 255, 153 / 255, 158 / 255], abs=1.01 / 255
    )


@pytest.mark.parametrize("spread", [6, 40])
def test_more_noise_is_no_plain_background(spread):
    assert fit_background(noisy_border(spread)) is None


def test_nine_tenths_of_the_border_must_agree():
    """A border of 32 x 32 has 124 pixels: 12 of another colour are few enough, 13 are not; so with
    the other colour's share.
    """
    images = noisy_border(0, (255, 255, 255), count=1)
    images[0, :, 0, :12] = 30
    assert fit_background(images) == (1, 1, 1)
    images[0, :, 0, 12] = 30
    assert fit_background(images) is None


def test_the_share_counts_over_all_pictures():
    images = noisy_border(0, (255, 255, 255), count=20)
    images[:2] = 30
    assert fit_background(images) == (1, 1, 1)
    images[2] = 30
    assert fit_background(images) is None


def test_all_channels_must_agree_at_once():
    """Each channel alone agrees on 95 %, all three together only on 85 %."""
    images = noisy_border(0, (100, 100, 100), count=20)
    for channel in range(3):
        images[channel, channel] = 200
    assert fit_background(images) is None


def test_a_colour_between_two_levels_is_found():
    """Levels 100 and 106, half each: all agree with 103 within the tolerance, though the median is
    3 away from it.
    """
    images = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
    images[:, :, :, 16:] = 106
    background = fit_background(images)
    assert background is not None
    assert all(100 <= value * 255 <= 106 for value in background)


@pytest.mark.parametrize("unit", [1e-9, 1e-6, 1e6])
def test_a_scene_is_fitted_in_any_unit(unit):
    labels = face_labels()
    plain = fit_scene(labels, WHITE).box_warp
    for index in (3, 7, 11):
        labels[:, index] *= unit
    assert fit_scene(labels, WHITE).box_warp == pytest.approx(plain * unit, rel=1e-3)


def test_scene_of_a_data_set(tmp_path):
    labels = orbit_labels(np.linspace(-0.5, 0.5, 6), np.zeros(6), radius=2.7, focal=3.1)
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for index, picture in enumerate(noisy_border(1, count=6)):
            file = io.BytesIO()
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "PNG")
            archive.writestr(f"img{index}.png", file.getvalue())
        archive.writestr(
            "dataset.json",
            json.dumps(
                {"labels": [[f"img{i}.png", label] for i, label in enumerate(labels.tolist())]}
            ),
        )
    plain, mirrored = (
        fit_dataset_scene(ImageDataset(tmp_path / "data.zip", mirror=mirror))
        for mirror in (False, True)
    )
    assert plain.box_warp == pytest.approx(1.2 * 2.7 / 3.1, rel=1e-5)
    assert plain.background == pytest.approx([77 / 255, 153 / 255, 158 / 255], abs=1.01 / 255)
    assert mirrored.background == plain.background
    assert mirrored.cameras.poses.shape == (12, 25)
    assert mirrored.cameras.yaw == pytest.approx(0, abs=1e-5)
