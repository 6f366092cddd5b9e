"""Sources that are damaged, incomplete or hostile end in one line that names the place."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_tools.check.check import check_data
from data_tools.convert import ConvertConfig, convert
from data_tools.sources.base import ReadOptions
from data_tools.sources.detect import read_source
from dnnlib.archives import safe_name
from dnnlib.console import UserError
from tests.data_tools import scenes
from tests.data_tools.scenes import Scene, orbit
from training.data import files as source_files
from training.data.dataset import ImageDataset
from training.data.files import DataFiles, shown
from training.data.scene import fit_dataset_scene


def refused(words: str, path: Path, **options: Any) -> None:
    """The source is refused in one line with these words."""
    with pytest.raises(UserError, match=words) as caught:
        read_source(path, options=ReadOptions(**options))
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------------
# Archives and folders


def test_what_is_no_archive(tmp_path: Path):
    refused("does not exist", tmp_path / "none")
    for name, content in {
        "empty.zip": b"",
        "text.zip": b"hello",
        "cut.zip": b"PK\x03\x04" + bytes(40),
    }.items():
        (tmp_path / name).write_bytes(content)
        refused("nor a whole ZIP", tmp_path / name)
    (tmp_path / "folder").mkdir()
    refused("is empty", tmp_path / "folder")
    zipfile.ZipFile(tmp_path / "nothing.zip", "w").close()
    refused("is empty", tmp_path / "nothing.zip")


def test_every_cut_of_an_archive_is_refused(tmp_path: Path):
    source = scenes.write_labels(Scene(orbit(2)), tmp_path / "in")
    whole = tmp_path / "whole.zip"
    with zipfile.ZipFile(whole, "w") as archive:
        for path in sorted(source.rglob("*.*")):
            archive.write(path, path.relative_to(source))
    data = whole.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.99):
        (tmp_path / "cut.zip").write_bytes(data[: int(len(data) * share)])
        refused("nor a whole ZIP", tmp_path / "cut.zip")


def test_damage_inside_an_archive_names_the_member(tmp_path: Path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("dataset.json", b"x" * 1000)
    path.write_bytes(path.read_bytes().replace(b"xxxx", b"yyyy", 1))
    refused("dataset.json cannot be read", path)


@pytest.mark.parametrize(
    "name", ["../a.png", "/etc/a.png", "a/../../b.png", "C:\\a.png", "..\\a.png"]
)
def test_members_that_climb_out_are_refused(name: str, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")
    refused("leads out of the archive", tmp_path / "a.zip")


def test_members_of_the_same_name(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("b.png", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("b.png", b"2")
    refused(r"b\.png twice", tmp_path / "a.zip")


def test_members_that_unpack_to_gigabytes_are_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("dataset.json", bytes(100 << 20))
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda *_: pytest.fail("was unpacked"))
    refused("unpacks to 100 MB", tmp_path / "a.zip")
    with open(tmp_path / "large.csv", "wb") as file:
        file.truncate(2 << 30)
    refused("unpacks to 2048 MB", tmp_path / "large.csv")
    assert source_files.MAX_FILE_BYTES < 2 << 30


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")
def test_names_that_are_not_utf8(tmp_path: Path):
    """They are read like others, and shown with escapes."""
    source = tmp_path / "in"
    source.mkdir()
    scene = Scene(orbit(1))
    name = os.fsdecode(b"p\xff\xe4.png")
    (source / name).write_bytes(scene.png(0))
    assert DataFiles(source).read(name) == scene.png(0)
    assert shown(name) == "p\\udcff\\udce4.png"
    refused("1 picture without cameras", source)


def test_links_in_a_circle_and_hidden_files(tmp_path: Path):
    source = scenes.write_labels(Scene(orbit(2)), tmp_path / "in")
    (source / "pics" / "loop").symlink_to(source)
    (source / ".hidden").mkdir()
    (source / ".hidden" / "dataset.json").write_text("{")
    (source / "Thumbs.db").touch()
    assert DataFiles(source).names == ["dataset.json", "pics/p0.png", "pics/p1.png"]
    assert len(read_source(source).frames) == 2


def test_folder_with_very_many_files(tmp_path: Path):
    """Names only: nothing but the listed pictures is opened."""
    source = scenes.write_transforms(Scene(orbit(2)), tmp_path / "in")
    for index in range(20_000):
        os.link(source / "train" / "r_0.png", source / "train" / f"x{index}.png")
    assert len(read_source(source).frames) == 2
    assert len(DataFiles(source).names) == 20_003


@given(st.text(alphabet="ab./\\:C\0", max_size=12))
def test_safe_names_stay_below(name: str):
    safe = safe_name(name)
    if safe is not None:
        root = os.path.normpath("/elsewhere/folder")
        assert os.path.normpath(os.path.join(root, safe)).startswith(root)
        assert safe == safe_name(safe)


# --------------------------------------------------------------------------------------------------
# Lists of cameras


def changed(
    write: Callable[[Scene, Path], Path], listing: str, folder: Path, change: Callable[[Any], Any]
) -> Path:
    """A good source whose JSON list has been changed."""
    source = write(Scene(orbit(3)), folder)
    content = json.loads((source / listing).read_text())
    change(content)
    (source / listing).write_text(json.dumps(content))
    return source


def set_at(*path: Any) -> Callable[[Any], None]:
    """Puts the last of `path` at the place that the others lead to; without a value (...) the place
    is removed.
    """

    def change(content: Any) -> None:
        *way, last, value = path
        for step in way:
            content = content[step]
        if value is ...:
            del content[last]
        else:
            content[last] = value

    return change


LABEL_DAMAGE = {
    "26 numbers": (set_at("labels", 1, 1, [1.0] * 26), "label 1 .* has 26 numbers instead of 25"),
    "null": (set_at("labels", 2, 1, None), "label 2 .* has None instead of 25"),
    "text": (set_at("labels", 0, 1, 3, "x"), "label 0 .* not a number"),
    "nan": (set_at("labels", 0, 1, 3, float("nan")), "NaN"),
    "outside": (set_at("labels", 1, 0, "../p.png"), "outside of"),
    "absolute": (set_at("labels", 1, 0, "/p.png"), "outside of"),
    "missing": (set_at("labels", 1, 0, "pics/none.png"), "p1.png has no label"),
    "no labels": (set_at("labels", []), "no camera labels"),
    "number": (set_at("labels", 0, 7), "instead of .NAME"),
    "skewed": (set_at("labels", 0, 1, 0, 5.0), "not orthonormal"),
    "last row": (set_at("labels", 0, 1, 14, 5.0), "last row"),
}


@pytest.mark.parametrize("kind", LABEL_DAMAGE)
def test_damaged_labels(kind: str, tmp_path: Path):
    change, words = LABEL_DAMAGE[kind]
    refused(words, changed(scenes.write_labels, "dataset.json", tmp_path / "in", change))


def test_left_handed_labels(tmp_path: Path):
    def negate_right(content: Any) -> None:
        for index in (0, 4, 8):
            content["labels"][0][1][index] *= -1

    refused(
        "determinant -1",
        changed(scenes.write_labels, "dataset.json", tmp_path / "in", negate_right),
    )


TRANSFORM_DAMAGE = {
    "no frames": (set_at("frames", []), "lists no frames"),
    "frame": (set_at("frames", 0, 3), "frame 0 is 3"),
    "no path": (set_at("frames", 0, "file_path", ...), "frame 0 has no file_path"),
    "climbs": (set_at("frames", 0, "file_path", "../x.png"), "outside of"),
    "missing": (set_at("frames", 0, "file_path", "x.png"), "no such picture"),
    "no matrix": (set_at("frames", 1, "transform_matrix", ...), "frame 1 .* transform_matrix"),
    "ragged": (set_at("frames", 1, "transform_matrix", 0, [1.0]), "frame 1 .* transform_matrix"),
    "no focal": (
        lambda content: [content.pop(key) for key in ("fl_x", "fl_y")],
        "neither fl_x, fl_y, camera_angle_x, camera_angle_y",
    ),
    "focal text": (set_at("fl_x", "wide"), "fl_x is 'wide'"),
    "size": (set_at("w", 0), "above 0"),
    "fisheye": (set_at("camera_model", "OPENCV_FISHEYE"), "no pinhole"),
}


@pytest.mark.parametrize("kind", TRANSFORM_DAMAGE)
def test_damaged_transforms(kind: str, tmp_path: Path):
    change, words = TRANSFORM_DAMAGE[kind]
    refused(words, changed(scenes.write_transforms, "transforms.json", tmp_path / "in", change))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"frames": 3}'])
def test_lists_that_are_no_json(text: str, tmp_path: Path):
    for name in ("dataset.json", "transforms.json"):
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        (folder / name).write_text(text)
        refused(name, folder)
    (folder / "transforms.json").write_bytes(b"{\xff\xfe")
    refused("not UTF-8", folder)


def test_lens_distortion_is_said(tmp_path: Path):
    source = changed(scenes.write_transforms, "transforms.json", tmp_path / "in", set_at("k1", 0.1))
    assert any("distortion" in note for note in read_source(source).notes)


def test_parts_of_a_scene_are_joined_and_a_whole_list_wins(tmp_path: Path):
    source = scenes.write_transforms(Scene(orbit(3)), tmp_path / "in")
    content = json.loads((source / "transforms.json").read_text())
    for part, frames in (("train", content["frames"][:2]), ("test", content["frames"][1:])):
        listing = json.dumps({**content, "frames": frames})
        (source / f"transforms_{part}.json").write_text(listing)
    assert len(read_source(source).frames) == 3
    (source / "transforms.json").unlink()
    assert len(read_source(source).frames) == 3  # the one in both parts once
    assert len(read_source(source / "transforms_test.json").frames) == 2


def test_a_result_kept_inside_its_source_is_not_taken_for_it(tmp_path: Path):
    source = scenes.write_transforms(Scene(orbit(3)), tmp_path / "in")
    scenes.write_labels(Scene(orbit(2)), source / "made")
    assert read_source(source).kind == "transforms"
    assert len(read_source(source / "made").frames) == 2
    assert len(read_source(source, "labels").frames) == 2


def test_damaged_srn_folders(tmp_path: Path):
    source = scenes.write_srn(Scene(orbit(4)), tmp_path / "in")
    pose = source / "object0" / "pose" / "000000.txt"
    good = pose.read_text()
    pose.write_text("1 2 3")
    refused(r"000000\.txt holds 3 numbers", source)
    pose.write_text(good.replace(" ", " x", 1))
    refused("no usable number", source)
    pose.write_text(good)
    (source / "object1" / "intrinsics.txt").write_text("150\n")
    refused(r"object1/intrinsics\.txt is not of the form", source)
    (source / "object1" / "intrinsics.txt").unlink()
    refused(r"object1/intrinsics\.txt is missing", source)
    pose.unlink()
    refused("has no pose", source)


def test_srn_lens_of_each_picture(tmp_path: Path):
    source = scenes.write_srn(Scene(orbit(2)), tmp_path / "in")
    (source / "object0" / "intrinsics").mkdir()
    matrix = np.eye(4)
    matrix[:2, :3] = [[99, 1, 30], [0, 88, 20]]
    (source / "object0" / "intrinsics" / "000000.txt").write_text(
        "\n".join(" ".join(map(str, row)) for row in matrix.tolist())
    )
    first, second = read_source(source).frames
    expected = np.array([[99 / 96, 1 / 96, 30 / 96], [0, 88 / 80, 20 / 80], [0, 0, 1]])
    np.testing.assert_allclose(first.lens.matrix(96, 80), expected)
    assert second.lens.fx == 150


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column file"),
        ("file,yaw\n", "no column pitch"),
        ("file,yaw,pitch,focal\n", "no column radius.*--radius"),
        ("file,yaw,pitch,radius,focal\n", "lists no pictures"),
        ("file,yaw,pitch,radius,focal\nnone.png,0,0,1,1\n", "line 2: there is no picture"),
        ("file,yaw,pitch,radius,focal\n../a.png,0,0,1,1\n", "outside of"),
        ("file,yaw,pitch,radius,focal\na.png,0,0,1\n", "line 2 has 4 values instead of 5"),
        ("file,yaw,pitch,radius,focal\na.png,x,0,1,1\n", "line 2: yaw is 'x'"),
        ("file,yaw,pitch,radius,focal\na.png,,0,1,1\n", "line 2: yaw"),
        ("file,yaw,pitch,radius,focal\na.png,0,0,-1,1\n", "above 0"),
        ("file,yaw,pitch,radius,focal\na.png,0,0,inf,1\n", "radius is 'inf'"),
    ],
)
def test_damaged_tables(text: str, words: str, tmp_path: Path):
    scenes.write_pictures(Scene(orbit(1)), tmp_path, ["a.png"])
    (tmp_path / "t.csv").write_text(text)
    refused(words, tmp_path)
    (tmp_path / "u.csv").write_text(text)
    refused("holds 2 CSV files", tmp_path)


def test_pictures_without_cameras_are_refused_with_advice(tmp_path: Path):
    scenes.write_pictures(Scene(orbit(2)), tmp_path, ["a.png", "b/c.png"])
    refused("2 pictures without cameras", tmp_path)
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "IMG_1.HEIC").touch()
    refused(r"1 \.heic file cannot be read", tmp_path / "only")


# --------------------------------------------------------------------------------------------------
# COLMAP


def test_largest_of_several_models_is_taken(tmp_path: Path):
    pytest.importorskip("pycolmap")
    source = scenes.write_colmap(Scene(orbit(5)), tmp_path / "in", binary=False)
    small = source / "sparse" / "1"
    small.mkdir()
    (small / "cameras.txt").write_text((source / "sparse/0/cameras.txt").read_text())
    (small / "images.txt").write_text(
        "\n".join((source / "sparse/0/images.txt").read_text().splitlines()[:3]) + "\n"
    )
    opened = read_source(source)
    assert len(opened.frames) == 5
    assert any("sparse/1" in note for note in opened.notes)


def test_damaged_colmap_models(tmp_path: Path):
    pytest.importorskip("pycolmap")
    source = scenes.write_colmap(Scene(orbit(3)), tmp_path / "in", binary=True)
    images = source / "sparse" / "0" / "images.bin"
    good = images.read_bytes()
    for bad in (
        b"",
        good[:30],
        good[:-20],
        np.random.RandomState(0).bytes(2000),
        struct.pack("<Q", 1 << 60) + good[8:],
    ):
        images.write_bytes(bad)
        refused("damaged|no registered pictures", source)
    images.write_bytes(good)
    cameras = images.with_name("cameras.bin")
    good_cameras = cameras.read_bytes()
    for bad in (
        b"",
        good_cameras[:-5],
        struct.pack("<Q", 1 << 60) + good_cameras[8:],
        struct.pack("<Q", 0),
    ):
        cameras.write_bytes(bad)
        refused("damaged", source)
    cameras.write_bytes(good_cameras)
    (source / "images" / "sub" / "im1.png").unlink()
    refused(r"im1\.png is not there", source)
    images.write_bytes(good.replace(b"sub/im0.png", b"sub/im\xff.png"))
    refused("not UTF-8", source)
    images.write_bytes(good.replace(b"sub/im0.png", b"../im00.png"))
    refused("outside of|is not there", source)


def test_models_that_the_library_itself_writes(tmp_path: Path):
    """Newer ones hold rigs, frames and points too."""
    pycolmap = pytest.importorskip("pycolmap")
    source = scenes.write_colmap(Scene(orbit(3)), tmp_path / "in", binary=False)
    before = read_source(source).frames
    model = source / "sparse" / "0"
    (model / "points3D.txt").write_text("")
    reconstruction = pycolmap.Reconstruction(model)
    for path in model.iterdir():
        path.unlink()
    reconstruction.write_binary(model)
    assert (model / "rigs.bin").exists()
    for one, two in zip(before, read_source(source).frames, strict=True):
        assert one.name == two.name
        np.testing.assert_allclose(one.cam2world, two.cam2world, atol=1e-12)


def test_lenses_that_are_no_pinholes(tmp_path: Path):
    pytest.importorskip("pycolmap")
    source = scenes.write_colmap(Scene(orbit(3)), tmp_path / "in", binary=False)
    cameras = source / "sparse" / "0" / "cameras.txt"
    cameras.write_text("1 SIMPLE_RADIAL 96 80 150 48 40 0.1\n")
    assert any("distortion" in note for note in read_source(source).notes)
    cameras.write_text("1 OPENCV_FISHEYE 96 80 150 150 48 40 0 0 0 0\n")
    refused("OPENCV_FISHEYE is no pinhole", source)


def test_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = scenes.write_colmap(Scene(orbit(3)), tmp_path / "in", binary=False)
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    refused(r"open-eg3d\[colmap\]", source)


def test_frames_say_what_they_should(tmp_path: Path):
    """World-to-camera and OpenGL matrices in dataset.json, read with the options that `check`
    suggests.
    """
    cameras = orbit(3)
    ways: list[tuple[Any, Any]] = [
        ("world2cam", "opengl"),
        ("world2cam", "opencv"),
        ("cam2world", "opengl"),
    ]
    for poses, axes in ways:
        stored = cameras @ scenes.OPENGL if axes == "opengl" else cameras
        stored = np.linalg.inv(stored) if poses == "world2cam" else stored
        scene = Scene(cameras)
        source = scenes.write_labels(scene, tmp_path / f"{poses}{axes}")
        labels = [
            [f"pics/p{index}.png", scenes.label_of(matrix, scene.intrinsics)]
            for index, matrix in enumerate(stored)
        ]
        (source / "dataset.json").write_text(json.dumps({"labels": labels}))
        frames = read_source(
            source, options=ReadOptions(poses=poses, camera_axes=axes, intrinsics="pixels")
        ).frames
        for frame, matrix in zip(frames, cameras, strict=True):
            np.testing.assert_allclose(frame.cam2world, matrix, atol=1e-12)
            np.testing.assert_allclose(
                frame.lens.matrix(*scene.size), scenes.normalised(scene), atol=1e-12
            )


# --------------------------------------------------------------------------------------------------
# Anything at all


ODD: st.SearchStrategy[Any] = st.sampled_from(
    [
        None,
        True,
        "",
        "x",
        "../a",
        [],
        {},
        [[]],
        -1,
        0,
        1e300,
        -1e300,
        float("nan"),
        float("inf"),
        10**400,
        "\ud800",
        "a\0b",
    ]
)


def places_in(content: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Ways to every value in nested JSON."""
    items = (
        list(content.items())
        if isinstance(content, dict)
        else list(enumerate(content))
        if isinstance(content, list)
        else []
    )
    return [(*way, key) for key, _ in items] + [
        deeper for key, value in items for deeper in places_in(value, (*way, key))
    ]


@pytest.mark.parametrize(
    ("listing", "write"),
    [("dataset.json", scenes.write_labels), ("transforms.json", scenes.write_transforms)],
)
@given(data=st.data())
def test_any_value_in_a_list_is_used_or_refused(
    listing: str, write: Any, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
):
    source = Path(tmp_path_factory.getbasetemp()) / f"odd-{listing}"
    if not source.exists():
        write(
            Scene(
                orbit(4),
                intrinsics=np.array([[64.0, 0, 16], [0, 64, 16], [0, 0, 1]]),
                size=(32, 32),
            ),
            source,
        )
        (source / "kept").write_text((source / listing).read_text())
    content = json.loads((source / "kept").read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places_in(content)), label="place")
        # a later change may go inside the value
        set_at(*place, copy.deepcopy(data.draw(ODD, label="value")))(content)
    (source / listing).write_text(json.dumps(content))
    dest = source.with_suffix(".zip")
    with contextlib.suppress(UserError):
        convert(source, dest, ConvertConfig(workers=1), overwrite=True)
        assert len(ImageDataset(dest))
    if listing == "dataset.json":
        try:
            report, _ = check_data(source, workers=1)
        except UserError:
            return
        json.loads(report.to_json())
        assert report.to_text().encode()
        assert report.ok() == opens(source)


def opens(source: Path) -> bool:
    """Whether training takes the data set and finds a scene."""
    try:
        fit_dataset_scene(ImageDataset(source))
    except UserError:
        return False
    return True


@pytest.mark.slow
def test_a_hundred_thousand_files_in_one_folder(tmp_path: Path) -> None:
    """Links to one picture: listed, opened as a data set, and read from, all without one call a
    file that searches the folder.
    """
    folder = tmp_path / "many"
    folder.mkdir()
    label = scenes.label_of(orbit(1)[0], np.array([[2.0, 0, 0.5], [0, 2, 0.5], [0, 0, 1]]))
    names = [f"{index:06d}.png" for index in range(100_000)]
    for index, name in enumerate(names):
        if index % 10_000 == 0:  # file systems limit the links to one file
            base = tmp_path / f"{index}.png"
            Image.new("RGB", (32, 32)).save(base)
        os.link(base, folder / name)
    (folder / "dataset.json").write_text(json.dumps({"labels": [[name, label] for name in names]}))
    files = DataFiles(folder)
    assert len(files.names) == 100_001
    assert len(read_source(folder).frames) == 100_000
    dataset = ImageDataset(folder)
    assert len(dataset) == 100_000
    assert dataset.read([99_999])[0].shape == (1, 3, 32, 32)
