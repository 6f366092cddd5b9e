"""Conversion: dots in the pictures stay where the converted cameras see them; what is written, and
that nothing else is left.
"""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_tools.convert import ConvertConfig, convert
from data_tools.sources.base import ReadOptions
from dnnlib.console import UserError
from tests.data_tools import scenes
from tests.data_tools.scenes import WRITERS, Scene, dots, orbit, project, read_result, similarity
from training.data.dataset import ImageDataset

SUB_PIXEL = 0.1 / 64
NON_SQUARE = np.array([[170.0, 0, 50.0], [0, 150.0, 37.0], [0, 0, 1]])


def run(source: Path, dest: Path, **settings: Any) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Convert in this process; the result must also pass training's own check."""
    convert(source, dest, ConvertConfig(**{"resolution": 64, "workers": 1, **settings}))
    result = read_result(dest)
    assert len(ImageDataset(dest)) == len(result)
    return result


def assert_dots_agree(scene: Scene, result: list[tuple[str, np.ndarray, np.ndarray]]) -> None:
    """The dots' places in the pictures are those that the labels give for the dots, moved as the
    cameras were.
    """
    labels = np.stack([label for _, _, label in result])
    cam2world = labels[:, :16].reshape(-1, 4, 4)
    scale, rotation, shift = similarity(scene.cam2world[:, :3, 3], cam2world[:, :3, 3])
    moved = scale * scene.cam2world[:, :3, 3] @ rotation.T + shift
    np.testing.assert_allclose(cam2world[:, :3, 3], moved, atol=1e-6 * max(scale, 1))
    np.testing.assert_allclose(
        cam2world[:, :3, :3], rotation @ scene.cam2world[:, :3, :3], atol=1e-6
    )
    points = scale * scene.points @ rotation.T + shift
    for _, picture, label in result:
        expected = project(points, label[:16].reshape(4, 4), label[16:].reshape(3, 3))
        np.testing.assert_allclose(dots(picture), expected, atol=SUB_PIXEL)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("crop", [True, False])
def test_dots_stay_where_cameras_see_them(kind: str, crop: bool, tmp_path: Path):
    if kind.startswith("colmap"):
        pytest.importorskip("pycolmap")
    scene = Scene(orbit(6, up="z"))
    if kind != "srn":  # which knows one focal length only
        scene.intrinsics = NON_SQUARE
    result = run(WRITERS[kind](scene, tmp_path / "in"), tmp_path / "out.zip", crop=crop)
    assert len(result) == 6
    assert_dots_agree(scene, result)


@pytest.mark.parametrize("size", [(64, 64), (200, 120), (90, 151)])
def test_any_shape_of_picture(size: tuple[int, int], tmp_path: Path):
    intrinsics = np.array(
        [[1.5 * min(size), 3.0, 0.47 * size[0]], [0, 1.4 * min(size), 0.55 * size[1]], [0, 0, 1]]
    )
    scene = Scene(orbit(3, pitch=10), intrinsics=intrinsics, size=size)
    for crop in (True, False):
        assert_dots_agree(
            scene,
            run(
                scenes.write_labels(scene, tmp_path / f"in{crop}"),
                tmp_path / f"out{crop}",
                crop=crop,
            ),
        )


def test_field_of_view_alone_means_a_centred_camera_with_square_pixels(tmp_path: Path):
    scene = Scene(orbit(3, up="z"), intrinsics=np.array([[140.0, 0, 48], [0, 140, 40], [0, 0, 1]]))
    source = scenes.write_transforms(scene, tmp_path / "in", angle=True, bare_names=True)
    result = run(source, tmp_path / "out.zip")
    assert_dots_agree(scene, result)
    np.testing.assert_allclose(
        result[0][2][16:], [140 / 80, 0, 0.5, 0, 140 / 80, 0.5, 0, 0, 1], atol=1e-12
    )


def test_intrinsics_of_a_crop_in_closed_form(tmp_path: Path):
    """96x80: the middle 80 columns begin at 8; the size of the result plays no role."""
    scene = Scene(orbit(1), intrinsics=np.array([[150.0, 4, 47], [0, 160, 41], [0, 0, 1]]))
    for resolution in (32, 128):
        label = run(
            scenes.write_labels(scene, tmp_path / f"i{resolution}"),
            tmp_path / f"o{resolution}",
            resolution=resolution,
        )[0][2]
        np.testing.assert_allclose(
            label[16:], [150 / 80, 4 / 80, 39 / 80, 0, 2, 41 / 80, 0, 0, 1], rtol=1e-12, atol=1e-15
        )


def test_pictures_of_another_size_than_the_cameras_speak_of(tmp_path: Path):
    """As NeRF data with pictures made smaller after the cameras were found."""
    scene = Scene(orbit(4, up="z"))
    source = scenes.write_transforms(scene, tmp_path / "in")
    content = json.loads((source / "transforms.json").read_text())
    for key in ("fl_x", "fl_y", "cx", "cy", "w", "h"):
        content[key] *= 10
    (source / "transforms.json").write_text(json.dumps(content))
    assert_dots_agree(scene, run(source, tmp_path / "out.zip"))


# --------------------------------------------------------------------------------------------------
# The world


@pytest.mark.parametrize("up", ["y", "z", "-y", "-z", "x", "-x"])
def test_upward_axis_is_found_or_given(up: str, tmp_path: Path):
    scene = Scene(orbit(12, up=up, yaw=180, pitch=40))
    source = scenes.write_transforms(scene, tmp_path / "in")
    guessed = run(source, tmp_path / "guessed.zip")
    told = run(source, tmp_path / "told.zip", up=up)
    for (_, _, first), (_, _, second) in zip(guessed, told, strict=True):
        np.testing.assert_array_equal(first, second)
        right, down = first[[0, 4, 8]], first[[1, 5, 9]]
        assert abs(right[1]) < 1e-9
        assert down[1] < -0.7
    assert_dots_agree(scene, guessed)


def test_front_of_a_z_up_world_is_minus_y(tmp_path: Path):
    """As docs/cameras.md says: (x, y, z) -> (x, z, -y)."""
    scene = Scene(orbit(5, up="z", yaw=20))
    result = run(
        scenes.write_transforms(scene, tmp_path / "in"), tmp_path / "out.zip", recentre=False
    )
    positions = np.stack([label[[3, 7, 11]] for _, _, label in result])
    x, y, z = scene.cam2world[:, :3, 3].T
    np.testing.assert_allclose(positions, np.stack([x, z, -y], axis=1), atol=1e-12)


@pytest.mark.parametrize("kind", ["transforms", "colmap-binary"])
def test_recentred_and_rescaled(kind: str, tmp_path: Path):
    if kind.startswith("colmap"):
        pytest.importorskip("pycolmap")
    target = np.array([11.0, -7.0, 4.0])
    scene = Scene(orbit(9, up="-y", radius=31.0, target=target, yaw=30), target=target, spread=3.0)
    result = run(
        WRITERS[kind](scene, tmp_path / "in"),
        tmp_path / "out.zip",
        radius=1.9,
        pivot=(0.0, 0.1, 0.2),
    )
    poses = np.stack([label[:16].reshape(4, 4) for _, _, label in result])
    offsets = np.array([0, 0.1, 0.2]) - poses[:, :3, 3]
    np.testing.assert_allclose(np.linalg.norm(offsets, axis=1), 1.9, atol=1e-6)
    np.testing.assert_allclose(np.cross(offsets, poses[:, :3, 2]), 0, atol=1e-6)
    assert (poses[:, 1, 1] < 0).all()
    assert_dots_agree(scene, result)


def test_world_of_any_direction_is_turned_as_the_cameras_stand(tmp_path: Path):
    """COLMAP's worlds are turned by chance: afterwards cameras are level, and their mean direction
    is the front.
    """
    pytest.importorskip("pycolmap")
    turn = np.linalg.qr(np.random.RandomState(3).randn(3, 3))[0]
    turn *= np.sign(np.linalg.det(turn))
    cameras = orbit(15, yaw=40)
    cameras[:, :3] = turn @ cameras[:, :3]
    scene = Scene(cameras)
    scene.__class__ = type(
        "Turned", (Scene,), {"points": property(lambda self: Scene(self.cam2world).points)}
    )
    result = run(scenes.write_colmap(scene, tmp_path / "in", binary=False), tmp_path / "out.zip")
    poses = np.stack([label[:16].reshape(4, 4) for _, _, label in result])
    np.testing.assert_allclose(poses[:, 1, 0], 0, atol=1e-6)
    assert (poses[:, 1, 1] < -0.9).all()
    backward = -poses[:, :3, 2]
    assert abs(np.exp(1j * np.arctan2(backward[:, 0], backward[:, 2])).mean().imag) < 1e-6
    np.testing.assert_allclose(np.linalg.norm(poses[:, :3, 3], axis=1), 2.7, atol=1e-6)


def test_labels_are_carried_over_exactly(tmp_path: Path):
    scene = Scene(orbit(4), size=(64, 64))
    source = scenes.write_labels(scene, tmp_path / "in")
    result = run(source, tmp_path / "out.zip")
    entries = json.loads((source / "dataset.json").read_text())["labels"]
    assert [label.tolist() for _, _, label in result] == [label for _, label in entries]
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert [archive.read(name) for name, _, _ in result] == [
            scene.png(index) for index in range(4)
        ]


def test_cameras_that_look_apart_cannot_be_recentred(tmp_path: Path):
    outward = orbit(6) @ np.diag([-1.0, 1, -1, 1])
    with pytest.raises(UserError, match="do not look at a common point"):
        run(scenes.write_transforms(Scene(outward), tmp_path / "in"), tmp_path / "out.zip", up="y")


# --------------------------------------------------------------------------------------------------
# Tables


@pytest.mark.parametrize(
    ("delimiter", "angles"), [(",", "degrees"), (";", "radians"), ("\t", None)]
)
def test_table_of_orbit_poses(delimiter: str, angles: Any, tmp_path: Path):
    source = tmp_path / "in"
    cameras = orbit(1)
    scenes.write_pictures(Scene(cameras), source, ["a b.png"])
    unit = 1.0 if angles == "radians" else 180 / math.pi
    rows = [
        ["File", "yaw", "pitch", "radius", "focal", "pivot_z"],
        ["a b.png", str(0.5 * unit), str(-0.2 * unit), "3", "1.5", "0.2"],
    ]
    (source / "cameras.csv").write_bytes(
        b"\xef\xbb\xbf" + "\r\n".join(delimiter.join(row) for row in rows).encode() + b"\r\n"
    )
    ((_, _, label),) = run(source, tmp_path / "out.zip", read=ReadOptions(angles=angles))
    position = 3 * np.array(
        [math.sin(0.5) * math.cos(0.2), -math.sin(0.2), math.cos(0.5) * math.cos(0.2)]
    )
    expected = scenes.look_at(position, np.array([0, 0, 0.2]), np.array([0.0, 1, 0]))
    np.testing.assert_allclose(label[:16].reshape(4, 4), expected, atol=1e-12)
    # 96x80 is cut to 80x80: a focal length of 1.5 widths is 144 pixels.
    np.testing.assert_allclose(label[16:], [1.8, 0, 0.5, 0, 1.8, 0.5, 0, 0, 1], atol=1e-12)


def test_options_stand_in_for_columns(tmp_path: Path):
    source = tmp_path / "in"
    scenes.write_pictures(Scene(orbit(2)), source, ["a.png", "b.png"])
    (source / "list.csv").write_text("file,yaw,pitch,focal\na.png,10,0,2\nb.png,-10,0,\n")
    options = ReadOptions(radius=2.0, focal=3.0, pivot=(0.0, 0.0, 0.1))
    first, second = run(
        source / "list.csv", tmp_path / "out.zip", read=options, radius=2.0, pivot=(0.0, 0.0, 0.1)
    )
    np.testing.assert_allclose([first[2][16], second[2][16]], [2 * 1.2, 3 * 1.2])
    np.testing.assert_allclose(
        [np.linalg.norm(label[[3, 7, 11]]) for _, _, label in (first, second)], 2.0
    )


# --------------------------------------------------------------------------------------------------
# Files


def test_number_of_workers_does_not_change_a_byte(tmp_path: Path):
    source = scenes.write_labels(Scene(orbit(40)), tmp_path / "in")
    for workers in (1, 3):
        convert(source, tmp_path / f"{workers}.zip", ConvertConfig(resolution=32, workers=workers))
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "3.zip").read_bytes()


def test_folder_holds_what_the_archive_holds(tmp_path: Path):
    source = scenes.write_labels(Scene(orbit(3)), tmp_path / "in")
    run(source, tmp_path / "a.zip")
    run(source, tmp_path / "b")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        packed = {name: archive.read(name) for name in archive.namelist()}
    plain = {
        path.relative_to(tmp_path / "b").as_posix(): path.read_bytes()
        for path in (tmp_path / "b").rglob("*")
        if path.is_file()
    }
    assert plain == packed


@pytest.mark.parametrize("kind", ["labels", "transforms", "srn", "colmap-binary"])
def test_archives_and_deeper_folders_are_read_like_folders(kind: str, tmp_path: Path):
    if kind.startswith("colmap"):
        pytest.importorskip("pycolmap")
    source = WRITERS[kind](Scene(orbit(4)), tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(source.rglob("*")):
            archive.write(path, Path("deep/er") / path.relative_to(source))
        archive.writestr("__MACOSX/deep/._dataset.json", b"\0")
    run(source, tmp_path / "1.zip")
    run(tmp_path / "in.zip", tmp_path / "2.zip")
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()


def test_resolution_is_what_the_first_picture_fills(tmp_path: Path):
    scene = Scene(orbit(1))
    assert (
        convert(
            scenes.write_labels(scene, tmp_path / "in"),
            tmp_path / "o.zip",
            ConvertConfig(workers=1),
        ).resolution
        == 64
    )


def test_enlarged_pictures_are_counted(tmp_path: Path):
    summary = convert(
        scenes.write_labels(Scene(orbit(2)), tmp_path / "in"),
        tmp_path / "o",
        ConvertConfig(resolution=128, workers=1),
    )
    assert any("2 pictures of less than 128" in note for note in summary.notes)


def test_bad_pictures_stop_or_are_left_out(tmp_path: Path):
    source = scenes.write_labels(Scene(orbit(4)), tmp_path / "in")
    (source / "pics" / "p1.png").write_bytes(b"")
    (source / "pics" / "p2.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"p1\.png cannot be read: it is an empty file"):
        run(source, tmp_path / "out.zip")
    summary = convert(
        source, tmp_path / "out.zip", ConvertConfig(resolution=32, workers=1, skip_bad=True)
    )
    assert summary.count == 2
    assert [reason.partition("pics/")[2][:6] for reason in summary.skipped] == ["p1.png", "p2.png"]
    assert [name for name, _, _ in read_result(tmp_path / "out.zip")] == [
        "00000/img00000000.png",
        "00000/img00000001.png",
    ]
    for index in (0, 3):
        (source / "pics" / f"p{index}.png").write_bytes(b"")
    with pytest.raises(UserError, match="no picture could be converted"):
        convert(
            source, tmp_path / "none.zip", ConvertConfig(resolution=32, workers=1, skip_bad=True)
        )
    assert not (tmp_path / "none.zip").exists()


@pytest.mark.parametrize("name", ["x.zip", "x"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
def test_interruption_leaves_nothing(
    name: str, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from data_tools import convert as module

    real = module.convert_picture

    def interrupted(context: Any, job: Any) -> Any:
        if job.index == 2:
            raise error
        return real(context, job)

    monkeypatch.setattr(module, "convert_picture", interrupted)
    source = scenes.write_labels(Scene(orbit(4)), tmp_path / "in")
    (tmp_path / "out").mkdir()
    with pytest.raises(error):
        convert(source, tmp_path / "out" / name, ConvertConfig(resolution=32, workers=1))
    assert list((tmp_path / "out").iterdir()) == []


def test_existing_destination_is_kept_unless_told(tmp_path: Path):
    source = scenes.write_labels(Scene(orbit(1)), tmp_path / "in")
    (tmp_path / "a.zip").write_bytes(b"precious")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "precious").touch()
    for name in ("a.zip", "b"):
        with pytest.raises(UserError, match="--overwrite"):
            convert(source, tmp_path / name)
    with pytest.raises(UserError, match="the source itself"):
        convert(source, source, overwrite=True)
    assert (tmp_path / "a.zip").read_bytes() == b"precious"
    (tmp_path / "b" / "dataset.json").touch()
    convert(source, tmp_path / "b", ConvertConfig(resolution=32), overwrite=True)
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["00000", "dataset.json"]


def test_overwriting_removes_nothing_but_a_data_set(tmp_path: Path):
    """Neither a folder of other files, nor one that holds the source, nor what is no file at
    all.
    """
    source = scenes.write_labels(Scene(orbit(1)), tmp_path / "project" / "in")
    project = tmp_path / "project"
    (project / "precious").touch()
    with pytest.raises(UserError, match="holds the source"):
        convert(source, project, overwrite=True)
    (project / "dataset.json").touch()
    with pytest.raises(UserError, match="holds the source"):
        convert(source, project, overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").touch()
    with pytest.raises(UserError, match="no data set"):
        convert(source, tmp_path / "other", overwrite=True)
    for name in ("pipe", "pipe.zip"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match="device or a pipe"):
            convert(source, tmp_path / name, overwrite=True)
        assert (tmp_path / name).is_fifo()
    assert all(
        path.exists() for path in (project / "precious", tmp_path / "other" / "precious", source)
    )


def test_settings_that_contradict_each_other(tmp_path: Path):
    source = scenes.write_labels(Scene(orbit(4)), tmp_path / "in")
    with pytest.raises(UserError, match="--no-recentre"):
        run(source, tmp_path / "o.zip", recentre=False, radius=2.0)
    with pytest.raises(UserError, match="--focal has no effect"):
        run(source, tmp_path / "o.zip", read=ReadOptions(focal=2.0))
    with pytest.raises(UserError, match="does not look like --format srn, but like labels"):
        run(source, tmp_path / "o.zip", kind="srn")


def test_file_formats(tmp_path: Path):
    """The same picture in many file formats gives the same data set within the formats' own
    losses.
    """
    scene = Scene(
        orbit(1), size=(64, 64), intrinsics=np.array([[120.0, 0, 32], [0, 120, 32], [0, 0, 1]])
    )
    picture = scene.picture(0)
    kinds: dict[str, dict[str, Any]] = {
        ".jpg": {"quality": 100, "subsampling": 0},
        ".webp": {"lossless": True},
        ".bmp": {},
        ".tif": {},
        ".png": {},
    }
    for suffix, options in kinds.items():
        source = tmp_path / suffix[1:]
        source.mkdir()
        file = io.BytesIO()
        picture.save(file, Image.registered_extensions()[suffix], **options)
        (source / f"a{suffix}").write_bytes(file.getvalue())
        (source / "c.csv").write_text(f"file,yaw,pitch,radius,focal\na{suffix},0,0,2,2\n")
        ((name, pixels, _),) = run(source, tmp_path / f"out{suffix[1:]}")
        assert np.abs(pixels.astype(int) - np.asarray(picture).astype(int)).max() <= (
            12 if suffix == ".jpg" else 0
        )
        assert name.endswith(suffix if suffix in (".jpg", ".webp", ".png") else ".png")
