"""What fails while reading one picture's camera stops the import, or with --skip-bad is left out
and listed with the reason: in every format. Numbers that contradict each other are named.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dataset_tool
import train
from data_tools.convert import ConvertConfig, convert
from data_tools.sources.base import Lens, ReadOptions
from data_tools.sources.detect import read_source
from dnnlib.console import UserError
from tests.data_tools import scenes
from tests.data_tools.scenes import OPENGL, WRITERS, Scene, orbit
from tests.tiny import call
from training.data.dataset import ImageDataset

COUNT = 6


def write_csv(scene: Scene, folder: Path) -> Path:
    scenes.write_pictures(scene, folder, [f"p{index}.png" for index in range(len(scene))])
    lines = [f"p{index}.png,{index * 5},0,2.7,1.5" for index in range(len(scene))]
    (folder / "t.csv").write_text("\n".join(["file,yaw,pitch,radius,focal", *lines]) + "\n")
    return folder


FORMATS: dict[str, Callable[[Scene, Path], Path]] = {**WRITERS, "csv": write_csv}


def edit_json(folder: Path, change: Callable[[Any], None]) -> None:
    (path,) = folder.glob("*.json")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def set_number(kind: str, folder: Path, value: float) -> None:
    """Puts a number into the pose of picture 1."""
    if kind == "labels":
        edit_json(folder, lambda content: content["labels"][1][1].__setitem__(3, value))
    elif kind.startswith("transforms"):
        edit_json(
            folder,
            lambda content: content["frames"][1]["transform_matrix"][0].__setitem__(3, value),
        )
    elif kind == "srn":
        path = folder / "object0" / "pose" / "000001.txt"
        path.write_text(" ".join([*path.read_text().split()[:3], str(value), *["0"] * 11, "1"]))
    elif kind == "csv":
        edit_text(folder / "t.csv", "p1.png,5,", f"p1.png,{value},")
    elif kind == "colmap-text":
        path = folder / "sparse" / "0" / "images.txt"
        lines = path.read_text().splitlines()
        line = next(i for i, line in enumerate(lines) if "im1.png" in line)
        words = lines[line].split()
        lines[line] = " ".join([*words[:5], str(value), *words[6:]])
        path.write_text("\n".join(lines) + "\n")


def edit_text(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def no_matrix(kind: str, folder: Path) -> None:
    if kind == "labels":
        edit_json(folder, lambda content: content["labels"][1].__setitem__(1, []))
    elif kind.startswith("transforms"):
        edit_json(folder, lambda content: content["frames"][1].pop("transform_matrix"))
    elif kind == "srn":
        (folder / "object0" / "pose" / "000001.txt").write_text("")
    elif kind == "csv":
        edit_text(folder / "t.csv", "p1.png,5,0,2.7,1.5", "p1.png,5")


def picture(folder: Path, index: int) -> Path:
    return sorted(folder.rglob("*.png"))[index]


FAULTS: dict[str, tuple[Callable[[str, Path], Any], str, set[str]]] = {
    "missing picture": (
        lambda _, folder: picture(folder, 1).unlink(),
        "not there|no such picture|no picture",
        {"srn"},  # whose pictures are what is there
    ),
    "damaged picture": (
        lambda _, folder: picture(folder, 1).write_bytes(picture(folder, 1).read_bytes()[:300]),
        "cannot be read",
        set(),
    ),
    "first picture damaged": (
        lambda _, folder: picture(folder, 0).write_bytes(b"hello"),
        "cannot be read",
        set(),
    ),
    "NaN": (
        lambda kind, folder: set_number(kind, folder, math.nan),
        "NaN or infinite|no usable number",
        {"colmap-binary"},
    ),
    "no matrix": (
        no_matrix,
        "instead of|no 4x4 matrix|fewer values",
        {"colmap-text", "colmap-binary"},
    ),
    "no pose file": (
        lambda _, folder: (folder / "object0" / "pose" / "000001.txt").unlink(),
        "has no pose",
        set(FORMATS) - {"srn"},
    ),
    "no lens": (
        lambda _, folder: (folder / "object0" / "intrinsics.txt").unlink(),
        "is missing",
        set(FORMATS) - {"srn"},
    ),
}
CASES = [
    (kind, fault)
    for fault, (_, _, without) in FAULTS.items()
    for kind in FORMATS
    if kind not in without
]


@pytest.mark.parametrize(("kind", "fault"), CASES)
def test_bad_pictures_are_left_out_and_listed(kind: str, fault: str, tmp_path: Path):
    if kind.startswith("colmap"):
        pytest.importorskip("pycolmap")
    damage, words, _ = FAULTS[fault]
    source = FORMATS[kind](Scene(orbit(COUNT, yaw=40)), tmp_path / "in")
    damage(kind, source)
    with pytest.raises(UserError, match=words) as caught:
        convert(source, tmp_path / "o.zip", ConvertConfig(workers=1))
    assert "\n" not in str(caught.value)
    run = call(
        dataset_tool.main,
        *("convert", "--source", source, "--dest", tmp_path / "o.zip"),
        *("--skip-bad", "--workers", "1"),
    ).assert_done()
    left_out = [line for line in run.err.splitlines() if line.startswith("left out: ")]
    lost = COUNT // 2 if fault == "no lens" else 1
    assert len(left_out) >= lost
    assert str(caught.value).partition(" (1 more")[0] in left_out[0]
    assert len(ImageDataset(tmp_path / "o.zip")) == COUNT - lost
    assert f"left out {len(left_out)}" in run.out


def test_all_pictures_bad(tmp_path: Path):
    source = scenes.write_transforms(Scene(orbit(3)), tmp_path / "in")
    for path in source.rglob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match=r"no pictures that can be used; the first left out: .*r_0"):
        convert(source, tmp_path / "o.zip", ConvertConfig(workers=1, skip_bad=True))


def twice(kind: str, folder: Path) -> None:
    """Picture 0 is listed again in the place of picture 1, with the camera of that one."""
    if kind.startswith("transforms"):
        edit_json(
            folder,
            lambda content: content["frames"][1].update(
                file_path=content["frames"][0]["file_path"]
            ),
        )
    elif kind == "csv":
        edit_text(folder / "t.csv", "p1.png", "p0.png")
    elif kind == "labels":
        edit_json(folder, lambda content: content["labels"][1].__setitem__(0, "pics/p0.png"))
    else:
        edit_text(folder / "sparse" / "0" / "images.txt", "im1.png", "im0.png")


@pytest.mark.parametrize("kind", ["labels", "transforms", "csv", "colmap-text"])
def test_a_picture_with_two_cameras_is_named(kind: str, tmp_path: Path):
    if kind.startswith("colmap"):
        pytest.importorskip("pycolmap")
    source = FORMATS[kind](Scene(orbit(COUNT, yaw=40)), tmp_path / "in")
    twice(kind, source)
    options = ("convert", "--source", source, "--dest", tmp_path / "o.zip", "--workers", "1")
    call(dataset_tool.main, *options).assert_refused(
        1, "p1.png has no label" if kind == "labels" else "twice"
    )
    run = call(dataset_tool.main, *options, "--skip-bad").assert_done()
    assert "twice" in run.err
    assert len(ImageDataset(tmp_path / "o.zip")) == COUNT - 1


def test_a_frame_that_is_listed_again_is_taken_once(tmp_path: Path):
    """As where transforms_val.json repeats frames of transforms_test.json."""
    source = scenes.write_transforms(Scene(orbit(COUNT)), tmp_path / "in")
    edit_json(source, lambda content: content["frames"].append(content["frames"][2]))
    assert len(read_source(source).frames) == COUNT


@pytest.mark.parametrize("kind", ["transforms", "csv", "colmap-binary", "srn"])
def test_pictures_that_no_camera_is_for_are_told(kind: str, tmp_path: Path):
    if kind.startswith("colmap"):
        pytest.importorskip("pycolmap")
    source = FORMATS[kind](Scene(orbit(COUNT, yaw=40)), tmp_path / "in")
    assert not any("without a camera" in note for note in read_source(source).notes)
    scenes.write_pictures(Scene(orbit(2)), source / "more", ["a.PNG", "b.png"])
    (note,) = [note for note in read_source(source).notes if "without a camera" in note]
    assert "(2), such as more/a.PNG" in note


CSV_FAULTS = {
    "two columns": (
        "file,yaw,pitch,radius,focal",
        "file,yaw,pitch,radius,focal,yaw",
        "two columns yaw",
    ),
    "more values": ("p1.png,5,0,2.7,1.5", "p1,a.png,5,0,2.7,1.5", "6 values instead of 5"),
    "an open quote": ("p1.png", '"p1.png', "is no CSV"),
    "returns alone": ("\n", "\r", ""),
    "empty values after the last column": ("0,2.7,1.5", "0,2.7,1.5,,", ""),
}


@pytest.mark.parametrize("fault", CSV_FAULTS)
def test_tables_of_other_forms(fault: str, tmp_path: Path):
    source = write_csv(Scene(orbit(COUNT)), tmp_path / "in")
    before, after, words = CSV_FAULTS[fault]
    table = source / "t.csv"
    table.write_bytes(table.read_bytes().replace(before.encode(), after.encode()))
    if words:
        with pytest.raises(UserError, match=words):
            read_source(source)
    else:
        assert len(read_source(source).frames) == COUNT


def test_numbers_in_pixels_are_not_advised_to_be_divided(tmp_path: Path):
    source = scenes.write_transforms(Scene(orbit(2)), tmp_path / "in", per_frame=True)
    edit_json(source, lambda content: content["frames"][1].update(cx=9999))
    with pytest.raises(UserError, match=r"do not fit it .*; correct its camera in the source"):
        convert(source, tmp_path / "o.zip", ConvertConfig(workers=1))


# --------------------------------------------------------------------------------------------------
# COLMAP models

IMAGE_FAULTS: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "a camera that is not there": (lambda words: [*words[:8], "99", *words[9:]], "of camera 99"),
    "a line cut off": (lambda words: words[:5], "it needs 9 numbers and a name"),
    "no rotation": (lambda words: [words[0], *"0000", *words[5:]], "NaN or infinite"),
    "a word for a number": (lambda words: ["x", *words[1:]], "no usable number"),
}


@pytest.mark.parametrize("fault", IMAGE_FAULTS)
def test_one_bad_image_of_a_model_can_be_left_out(fault: str, tmp_path: Path):
    pytest.importorskip("pycolmap")
    source = scenes.write_colmap(Scene(orbit(COUNT)), tmp_path / "in", binary=False)
    change, words = IMAGE_FAULTS[fault]
    path = source / "sparse" / "0" / "images.txt"
    lines = path.read_text().splitlines()
    place = next(place for place, line in enumerate(lines) if "im1.png" in line)
    lines[place] = " ".join(change(lines[place].split()))
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=words):
        read_source(source)
    skipped = read_source(source, options=ReadOptions(skip_bad=True))
    assert len(skipped.frames) == COUNT - 1
    assert re.search(words, skipped.left_out[0])


def test_the_same_for_binary_models(tmp_path: Path):
    pytest.importorskip("pycolmap")
    source = scenes.write_colmap(Scene(orbit(COUNT)), tmp_path / "in", binary=True)
    path = source / "sparse" / "0" / "images.bin"
    data = bytearray(path.read_bytes())
    struct.pack_into("<i", data, 8 + 60, 99)
    path.write_bytes(data)
    with pytest.raises(UserError, match="of camera 99, which the model does not have"):
        read_source(source)
    assert len(read_source(source, options=ReadOptions(skip_bad=True)).frames) == COUNT - 1


def test_points_and_empty_lines_may_be_missing_or_there(tmp_path: Path):
    """Without a line of points after each image every second one was lost."""
    pytest.importorskip("pycolmap")
    source = scenes.write_colmap(Scene(orbit(COUNT)), tmp_path / "in", binary=False)
    path = source / "sparse" / "0" / "images.txt"
    wanted = [frame.cam2world for frame in read_source(source).frames]
    text = path.read_text()
    for changed in (
        text.replace("\n\n", "\n"),
        text.replace("\n\n", "\n1.5 2.5 -1 3 4 7\n"),
        "\ufeff" + text.replace("\n", "\r\n"),
    ):
        path.write_bytes(changed.encode())
        frames = read_source(source).frames
        np.testing.assert_allclose([frame.cam2world for frame in frames], wanted)
    edit_text(source / "sparse" / "0" / "cameras.txt", "# a comment", "\ufeff# a comment")
    assert len(read_source(source).frames) == COUNT
    edit_text(source / "sparse" / "0" / "cameras.txt", "PINHOLE 96 80", "PINHOLE 0 0")
    with pytest.raises(UserError, match="a width or height of 0"):
        read_source(source)


# --------------------------------------------------------------------------------------------------
# Names in COLMAP models


@pytest.mark.parametrize("name", ["my photo.png", "a  b.png", "50%25 é#.png"])
def test_names_with_blanks_in_text_models(name: str, tmp_path: Path):
    pytest.importorskip("pycolmap")
    source = scenes.write_colmap(Scene(orbit(3)), tmp_path / "in", binary=False)
    (source / "images" / "sub" / "im1.png").rename(source / "images" / "sub" / name)
    edit_text(source / "sparse" / "0" / "images.txt", "im1.png", name)
    assert sorted(frame.name for frame in read_source(source).frames) == sorted(
        f"images/sub/{one}" for one in ("im0.png", name, "im2.png")
    )


def test_one_missing_picture_of_a_model_is_named(tmp_path: Path):
    """The first, too: the others tell where pictures are. Without any, the advice helps."""
    pytest.importorskip("pycolmap")
    source = scenes.write_colmap(Scene(orbit(3)), tmp_path / "in", binary=True)
    (source / "images" / "sub" / "im0.png").unlink()
    with pytest.raises(UserError, match=r"im0\.png is not there; add the picture or remove it"):
        read_source(source)
    (source / "images").rename(source / "elsewhere")
    with pytest.raises(UserError, match="put the pictures into images/"):
        read_source(source)
    scenes.write_pictures(
        Scene(orbit(3)), source / "sparse" / "images", [f"sub/im{index}.png" for index in range(3)]
    )
    assert len(read_source(source).frames) == 3


# --------------------------------------------------------------------------------------------------
# Contradictions

MATRIX = (orbit(1)[0] @ OPENGL).tolist()
SIDE = Scene(orbit(1)).size


def lens_of(tmp_path: Path, shared: dict[str, Any], own: dict[str, Any]) -> Lens:
    folder = tmp_path / "in"
    scenes.write_pictures(Scene(orbit(1)), folder, ["a.png"])
    frame = {"file_path": "a.png", "transform_matrix": MATRIX, **own}
    (folder / "transforms.json").write_text(json.dumps({**shared, "frames": [frame]}))
    return read_source(folder).frames[0].lens


def angle(focal: float, side: int) -> float:
    return 2 * math.atan(side / 2 / focal)


@pytest.mark.parametrize(
    ("shared", "own", "focal"),
    [
        ({"fl_x": 100}, {"camera_angle_x": angle(150, 96)}, (150, 150)),
        ({"camera_angle_x": angle(100, 96)}, {"fl_x": 150}, (150, 150)),
        ({"fl_x": 100, "fl_y": 100}, {"fl_x": 150}, (150, 150)),
        ({"fl_y": 150}, {}, (150, 150)),
        ({}, {"camera_angle_y": angle(150, 80)}, (150, 150)),
        ({"camera_angle_x": angle(150, 96), "camera_angle_y": angle(120, 80)}, {}, (150, 120)),
        ({"fl_x": 150, "camera_angle_x": angle(150, 96), "w": 96, "h": 80}, {}, (150, 150)),
    ],
)
def test_the_nearest_level_gives_the_focal_length(
    shared: dict[str, Any], own: dict[str, Any], focal: Any, tmp_path: Path
):
    lens = lens_of(tmp_path, shared, own)
    matrix = lens.matrix(*SIDE)
    np.testing.assert_allclose([matrix[0, 0] * 96, matrix[1, 1] * 80], focal, rtol=1e-9)
    assert lens.contradiction(*SIDE) is None


@pytest.mark.parametrize(
    ("shared", "words"),
    [
        (
            {"fl_x": 150, "camera_angle_x": angle(100, 96)},
            "camera_angle_x of 0.895.* fl_x gives 0.619",
        ),
        (
            {"fl_x": 150, "fl_y": 150, "camera_angle_y": 1.0},
            "camera_angle_y of 1 .* fl_y gives 0.52",
        ),
        ({"fl_x": 150, "w": 60, "h": 80}, "is 96x80 but its camera is for 60x80 pixels"),
        ({"camera_angle_x": 4.0}, "camera_angle_x is 4; it must be an angle in radians"),
        ({"camera_angle_x": 1.0, "camera_angle_y": 40.0}, "camera_angle_y is 40; it must be"),
    ],
)
def test_numbers_that_contradict_each_other_are_named(
    shared: dict[str, Any], words: str, tmp_path: Path
):
    scenes.write_pictures(Scene(orbit(1)), tmp_path / "in", ["a.png"])
    frame = {"file_path": "a.png", "transform_matrix": MATRIX}
    (tmp_path / "in" / "transforms.json").write_text(json.dumps({**shared, "frames": [frame]}))
    with pytest.raises(UserError, match=words):
        convert(tmp_path / "in", tmp_path / "o.zip", ConvertConfig(recentre=False, workers=1))


def test_a_value_given_twice_in_one_object_is_named(tmp_path: Path):
    lens_of(tmp_path, {"fl_x": 150}, {})
    edit_text(tmp_path / "in" / "transforms.json", '{"fl_x": 150', '{"fl_x": 150, "fl_x": 160')
    with pytest.raises(UserError, match="it holds 'fl_x' twice"):
        read_source(tmp_path / "in")


# --------------------------------------------------------------------------------------------------
# check says what training says


def checked_and_trained(cameras: np.ndarray, tmp_path: Path, *options: str) -> tuple[str, str]:
    """What check prints, and what a dry run of training says."""
    lens = np.array([[96.0, 0, 32], [0, 96, 32], [0, 0, 1]])
    source = scenes.write_labels(Scene(cameras, intrinsics=lens, size=(64, 64)), tmp_path / "data")
    check = call(dataset_tool.main, "check", "--source", source, "--workers", "1", *options)
    arguments = ("--data", source, "--outdir", tmp_path, "--device", "cpu", "--dry-run")
    run = call(train.main, *arguments, *options)
    return check.out, run.out + run.err


def test_parallel_sliding_cameras(tmp_path: Path):
    cameras = np.tile(np.diag([1.0, -1.0, -1.0, 1.0]), (8, 1, 1))
    cameras[:, 0, 3], cameras[:, 2, 3] = np.linspace(-3, 3, 8), 2.7
    check, trained = checked_and_trained(cameras, tmp_path)
    assert "warning" in check
    said = [
        part
        for part in ("miss their common point", "do not look at a common point")
        if part in trained
    ]
    assert said
    assert all(part in check for part in said)


def test_cameras_that_look_outward_and_the_advice(tmp_path: Path):
    """The message's own advice works: check names the mistake, a preset's scene trains."""
    outward = orbit(8, yaw=40) @ OPENGL
    check, trained = checked_and_trained(outward, tmp_path)
    assert "do not look at a common point in front of them" in trained
    assert "do not look at a common point in front of them" in check
    assert "--camera-axes opengl" in check
    for preset in ("ffhq", "afhq", "shapenet"):
        data = tmp_path / "data"
        call(
            train.main,
            *(
                "--data",
                data,
                "--outdir",
                tmp_path,
                "--device",
                "cpu",
                "--dry-run",
                "--cfg",
                preset,
            ),
        ).assert_done()


def test_an_object_far_away_and_the_advice(tmp_path: Path):
    cameras = orbit(8, yaw=40, target=(9.0, 0, 0))
    check, trained = checked_and_trained(cameras, tmp_path)
    assert "convert --recentre" in trained
    assert "--recentre" in check
    mended = tmp_path / "mended.zip"
    convert(tmp_path / "data", mended, ConvertConfig(recentre=True, workers=1))
    run = call(train.main, "--data", mended, "--outdir", tmp_path, "--device", "cpu", "--dry-run")
    assert "the cameras look at" not in run.assert_done().out + run.err
    larger = call(
        train.main,
        *("--data", tmp_path / "data", "--outdir", tmp_path, "--device", "cpu", "--dry-run"),
        *("--set", "rendering.box_warp=77.5"),
    ).assert_done()
    assert "77.5" in larger.out
