"""The check: everything that training refuses is an error, all errors are listed, good data pass,
pictures and JSON are written.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from data_tools.check.check import check_data
from data_tools.check.draw_cameras import draw_checked, draw_contact, draw_world
from data_tools.check.report import Report
from data_tools.convert import ConvertConfig, convert
from data_tools.sources.base import ReadOptions
from dnnlib.console import UserError
from tests.data_tools import scenes
from tests.data_tools.scenes import OPENGL, Scene, orbit, project
from tests.data_tools.test_pictures import exchanged_profile
from training.data.dataset import ImageDataset

ROOT = Path(__file__).resolve().parents[3]
HEADS = ROOT / "tests" / "data" / "heads64.zip"
COUNT = 8


def good_set(folder: Path, cam2world: np.ndarray | None = None) -> Path:
    """A folder that training reads without a word."""
    cameras = orbit(COUNT, yaw=40) if cam2world is None else cam2world
    scene = Scene(
        cameras, intrinsics=np.array([[96.0, 0, 32], [0, 96, 32], [0, 0, 1]]), size=(64, 64)
    )
    return scenes.write_labels(scene, folder)


def found(report: Report) -> list[tuple[str, str]]:
    return [(finding.level, finding.code) for finding in report.findings]


def check(source: Path, **options: Any) -> Report:
    return check_data(source, workers=1, **options)[0]


@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
def test_numbers_are_told_without_the_noise_of_rounding(tmp_path: Path, scale: float) -> None:
    """At any scale: 0 and not 5.9e-16, and edges that differ."""
    cameras = orbit(COUNT, yaw=40)
    cameras[:, :3, 3] *= scale * (1 + np.arange(COUNT) / COUNT)[:, None]
    text = check(good_set(tmp_path, cameras)).to_text()
    assert "looks at     (0, 0, 0)" in text
    assert not re.search(r"e-1\d|-0(\.0*)?\b(?!\.)", text)
    radii = text.partition("  radius")[2].partition("  distance")[0]
    edges = re.findall(r"\n {4,}(\S+) \.\. ", radii)
    assert len(edges) == len(set(edges)) > 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return good_set(tmp_path / "set")


def test_heads_of_the_repository_pass():
    report = check(HEADS)
    assert found(report) == []
    assert report.ok(strict=True)
    summary = report.summary
    assert (summary["pictures"], summary["labels"], summary["resolution"], summary["sizes"]) == (
        200,
        200,
        64,
        {"64x64": 200},
    )
    assert summary["unreadable"] == summary["duplicates"] == []
    dataset = ImageDataset(HEADS)
    x, y, z = dataset.labels[:, [3, 7, 11]].double().numpy().T
    yaw = np.degrees(np.arctan2(x, z))
    assert (summary["yaw"]["min"], summary["yaw"]["max"]) == pytest.approx(
        (yaw.min(), yaw.max()), abs=1e-4
    )
    assert summary["yaw"]["counts"] == np.histogram(yaw, 9)[0].tolist()
    assert summary["pitch"]["max"] == pytest.approx(np.degrees(np.arcsin(y / 2.7)).max(), abs=1e-4)
    assert summary["radius"]["median"] == pytest.approx(2.7, abs=1e-6)
    assert summary["focal"]["median"] == pytest.approx(3.1, abs=1e-6)
    assert summary["looks_at"] == pytest.approx([0, 0, 0], abs=1e-6)
    assert "no problems found" in report.to_text()


def test_presets_are_compared():
    assert found(check(HEADS, preset="heads")) == []
    assert found(check(HEADS, preset="shapenet")) == [("warning", "scale")]


# --------------------------------------------------------------------------------------------------
# Errors: one way of damage each


def edit_labels(folder: Path, change: Callable[[list[Any]], Any]) -> None:
    path = folder / "dataset.json"
    content = json.loads(path.read_text())
    labels = change(content["labels"]) or content["labels"]
    path.write_text(json.dumps({"labels": labels}))


def write_list(text: str) -> Callable[[Path], None]:
    """Puts another text into dataset.json."""

    def damage(folder: Path) -> None:
        (folder / "dataset.json").write_text(text)

    return damage


def put(index: int, place: int, value: Any) -> Callable[[Path], None]:
    """Sets one number of one label."""

    def damage(folder: Path) -> None:
        edit_labels(folder, lambda labels: labels[index][1].__setitem__(place, value))

    return damage


def relabel(change: Callable[[list[Any]], Any]) -> Callable[[Path], None]:
    return lambda folder: edit_labels(folder, change)


def replace_picture(make: Callable[[Image.Image], bytes | None]) -> Callable[[Path], None]:
    """Puts other bytes into picture 2; None removes it."""

    def damage(folder: Path) -> None:
        path = folder / "pics" / "p2.png"
        data = make(Image.open(path))
        path.unlink()
        if data is not None:
            path.write_bytes(data)

    return damage


def png(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def all_matrices(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def edit(labels: list[Any]) -> None:
        for label in labels:
            label[1][:16] = change(np.array(label[1][:16]).reshape(4, 4)).ravel().tolist()

    return relabel(edit)


def all_intrinsics(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def edit(labels: list[Any]) -> None:
        for label in labels:
            label[1][16:] = change(np.array(label[1][16:]).reshape(3, 3)).ravel().tolist()

    return relabel(edit)


ERRORS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no list": (lambda folder: (folder / "dataset.json").unlink(), "no-labels"),
    "no json": (write_list("{"), "no-labels"),
    "null": (write_list('{"labels": null}'), "no-labels"),
    "26 numbers": (relabel(lambda labels: labels[1][1].append(1.0)), "length"),
    "no numbers": (relabel(lambda labels: labels[1].__setitem__(1, None)), "length"),
    "entry": (relabel(lambda labels: labels[1].append(1)), "entry"),
    "text": (put(1, 0, "a"), "not-a-number"),
    "true": (put(1, 0, True), "not-a-number"),
    "nan": (put(1, 0, float("nan")), "label"),
    "infinite": (put(1, 3, float("inf")), "label"),
    "last row": (put(1, 12, 1.0), "label"),
    "shear": (put(1, 0, 3.0), "label"),
    "transposed": (all_matrices(lambda m: m.T), "label"),
    "left-handed": (all_matrices(lambda m: m @ np.diag([1, 1, -1, 1])), "label"),
    "pixels": (all_intrinsics(lambda k: np.diag([64, 64, 1]) @ k), "intrinsics-in-pixels"),
    "no focal": (put(1, 16, 0.0), "label"),
    "centre": (put(1, 18, -0.5), "label"),
    "form": (put(1, 24, 2.0), "label"),
    "twice": (relabel(lambda labels: labels.append(labels[0])), "label-twice"),
    "no label": (relabel(lambda labels: labels[:-1]), "no-label"),
    "no picture": (replace_picture(lambda _: None), "no-picture"),
    "empty": (replace_picture(lambda _: b""), "unreadable"),
    "text file": (replace_picture(lambda _: b"hello"), "unreadable"),
    "size": (replace_picture(lambda image: png(image.resize((32, 32)))), "sizes"),
    "not square": (replace_picture(lambda image: png(image.resize((64, 32)))), "picture"),
    "no power of two": (replace_picture(lambda image: png(image.resize((48, 48)))), "picture"),
    "alpha": (replace_picture(lambda image: png(image.convert("RGBA"))), "picture"),
    "16 bits": (
        replace_picture(lambda _: png(Image.fromarray(np.zeros((64, 64), np.uint16)))),
        "picture",
    ),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_is_found_and_training_agrees(kind: str, folder: Path):
    damage, code = ERRORS[kind]
    damage(folder)
    report = check(folder)
    assert ("error", code) in found(report)
    assert not report.ok()
    with pytest.raises(UserError):
        ImageDataset(folder)


def test_damage_that_only_decoding_shows(folder: Path):
    """Training opens such a set and stops later; the check names the file at once."""
    path = folder / "pics" / "p3.png"
    path.write_bytes(path.read_bytes()[:-60])
    ImageDataset(folder)
    report = check(folder)
    assert found(report) == [("error", "unreadable")]
    assert report.summary["unreadable"][0].startswith("pics/p3.png ")


def test_all_problems_are_listed_not_only_the_first(folder: Path):
    for kind in ("26 numbers", "empty"):
        ERRORS[kind][0](folder)
    put(4, 3, float("nan"))(folder)
    put(5, 16, -1.0)(folder)
    edit_labels(folder, lambda labels: labels.append(["../x.png", [0.0] * 25]))
    (folder / "extra.png").write_bytes(png(Image.new("RGB", (64, 64))))
    (folder / "small.jpg").write_bytes(png(Image.new("RGB", (32, 32))))
    report = check(folder)
    codes = [code for _, code in found(report)]
    assert sorted(codes) == [
        "label",
        "label",
        "length",
        "no-label",
        "outside",
        "sizes",
        "unreadable",
    ]
    listed = {finding.code: finding.items for finding in report.findings}
    assert listed["no-label"] == ("extra.png", "pics/p1.png", "small.jpg")
    assert listed["unreadable"][0].startswith("pics/p2.png cannot be read: it is an empty file")
    text = report.to_text()
    assert all(
        word in text
        for word in ("label 1", "label 4", "label 5", "extra.png", "7 errors, 0 warnings")
    )
    assert json.loads(report.to_json())["errors"][0]["code"] == "length"


def test_nothing_to_check(tmp_path: Path):
    for name, content in {"a.zip": b"", "b.zip": b"PK"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="nor a whole ZIP"):
            check(tmp_path / name)
    with pytest.raises(UserError, match="does not exist"):
        check(tmp_path / "none")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "dataset.json").write_text("{}")
    with pytest.raises(UserError, match="no pictures"):
        check(tmp_path / "dir")


# --------------------------------------------------------------------------------------------------
# Warnings


WARNINGS: dict[str, tuple[Callable[[Path], None], str, dict[str, Any]]] = {
    "OpenGL axes": (
        all_matrices(lambda m: m @ OPENGL),
        "opengl-axes",
        {"read": ReadOptions(camera_axes="opengl")},
    ),
    "world to camera": (
        all_matrices(np.linalg.inv),
        "world2cam",
        {"read": ReadOptions(poses="world2cam")},
    ),
    "z up": (
        all_matrices(
            lambda m: np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]) @ m
        ),
        "up",
        {"up": "z"},
    ),
    "scale": (
        all_matrices(lambda m: m * np.array([[1, 1, 1, 20.0]] * 3 + [[1, 1, 1, 1]])),
        "scale",
        {"radius": 2.7},
    ),
    "far off": (
        all_matrices(lambda m: m + 2.0 * np.eye(4)[[0]].T @ np.eye(4)[[3]]),
        "off-centre",
        {"recentre": True, "radius": 2.7},
    ),
}


@pytest.mark.parametrize("kind", WARNINGS)
def test_usual_mistakes_are_named_and_the_mend_mends(kind: str, folder: Path, tmp_path: Path):
    before = {tuple(label[:16]) for _, _, label in scenes.read_result(folder)}
    damage, code, settings = WARNINGS[kind]
    damage(folder)
    report = check(folder)
    # training finds no scene where the cameras look away from the object
    looks_away = code in ("opengl-axes", "world2cam")
    assert found(report) == [("warning", code)] + [("error", "scene")] * looks_away
    assert report.ok() == (not looks_away)
    assert not report.ok(strict=True)
    finding = report.findings[0]
    assert finding.options
    assert finding.options in report.to_text()
    convert(folder, tmp_path / "mended.zip", ConvertConfig(workers=1, **settings))
    assert found(check(tmp_path / "mended.zip")) == []
    after = np.array(
        sorted(tuple(label[:16]) for _, _, label in scenes.read_result(tmp_path / "mended.zip"))
    )
    np.testing.assert_allclose(after, np.array(sorted(before)), atol=1e-6)


def test_middle_written_as_zero(folder: Path):
    all_intrinsics(lambda k: k - np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]))(folder)
    assert found(check(folder)) == [("warning", "principal-point")]


def test_mend_of_intrinsics_in_pixels(folder: Path, tmp_path: Path):
    ERRORS["pixels"][0](folder)
    (finding,) = check(folder).findings
    assert finding.options == "--intrinsics pixels"
    with pytest.raises(UserError, match="--intrinsics pixels"):
        convert(folder, tmp_path / "o.zip", ConvertConfig(workers=1))
    convert(
        folder, tmp_path / "o.zip", ConvertConfig(workers=1, read=ReadOptions(intrinsics="pixels"))
    )
    assert found(check(tmp_path / "o.zip")) == []


def test_same_picture_with_two_cameras(folder: Path):
    shutil.copy(folder / "pics" / "p1.png", folder / "pics" / "p5.png")
    report = check(folder)
    assert found(report) == [("warning", "duplicates")]
    assert report.summary["duplicates"] == [["pics/p1.png", "pics/p5.png"]]


def test_same_picture_with_the_same_camera_is_a_repetition(folder: Path):
    shutil.copy(folder / "pics" / "p1.png", folder / "pics" / "p5.png")
    edit_labels(folder, lambda labels: labels[5].__setitem__(1, labels[1][1]))
    report = check(folder)
    assert found(report) == []
    assert report.summary["repeated"] == 1


def test_orientation_that_training_does_not_heed(folder: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    replace_picture(lambda image: png(image, exif=exif))(folder)
    assert found(check(folder)) == [("warning", "exif")]


def test_colours_that_training_does_not_heed(folder: Path, tmp_path: Path):
    """A profile of another space is told, and the advice mends it; that of sRGB is no matter."""
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    replace_picture(lambda image: png(image, icc_profile=plain))(folder)
    assert found(check(folder)) == []
    replace_picture(lambda image: png(image, icc_profile=exchanged_profile()))(folder)
    assert found(check(folder)) == [("warning", "profile")]
    convert(folder, tmp_path / "mended.zip", ConvertConfig(workers=1))
    assert found(check(tmp_path / "mended.zip")) == []


# --------------------------------------------------------------------------------------------------
# Reports and pictures


@pytest.mark.slow
def test_workers_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("data_tools.check.check.JOBS_PER_WORKER", 10)
    source = good_set(tmp_path / "set", orbit(40, yaw=40))
    (source / "pics" / "p7.png").write_bytes(b"")
    assert check_data(source, workers=2)[0].to_json() == check(source).to_json()


def test_many_problems_are_cut_short_in_text_only(folder: Path):
    all_intrinsics(lambda k: -k)(folder)
    report = check(folder)
    assert "and 3 more" in report.to_text()
    assert len(json.loads(report.to_json())["errors"][0]["items"]) == COUNT


def test_picture_of_the_cameras(folder: Path, tmp_path: Path):
    _, data = check_data(folder, workers=1)
    paths = draw_checked(data, tmp_path / "pictures")
    assert [path.name for path in paths] == ["cameras.png", "contact.png"]
    for path in paths:
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 200
    labels = np.stack(list(data.labels.values()))
    assert np.asarray(draw_world(labels, 1.0)).std() > 5
    with_more = np.asarray(draw_world(labels, 2.0)).astype(int) - np.asarray(
        draw_world(labels, 1.0)
    ).astype(int)
    assert np.abs(with_more).max() > 50


def test_axes_on_the_contact_sheet_are_where_the_camera_sees_them(folder: Path):
    """The tip of each axis, by a projection of its own, has the axis's colour in the first tile."""
    _, data = check_data(folder, workers=1)
    box = 0.9
    sheet = np.asarray(draw_contact(data, box)).astype(int)
    label = data.labels[data.pictures[0]]
    side = sheet.shape[1] // 6
    for axis in range(3):
        places = project(
            np.eye(3)[axis] * box / 3 * np.linspace(0.4, 0.9, 6)[:, None],
            label[:16].reshape(4, 4),
            label[16:].reshape(3, 3),
        )
        columns, rows = np.floor(places * side).astype(int).T
        colours = sheet[rows, columns]
        assert (colours.argmax(1) == axis).mean() > 0.8, axis


def test_cameras_that_see_nothing_of_the_box_can_be_drawn(folder: Path, tmp_path: Path):
    all_matrices(lambda m: m @ OPENGL)(folder)
    (folder / "pics" / "p0.png").write_bytes(b"")
    _, data = check_data(folder, workers=1)
    assert len(draw_checked(data, tmp_path)) == 2


def test_archive_and_folder_are_the_same(folder: Path, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted(folder.rglob("*.*")):
            archive.write(path, path.relative_to(folder))
    first, second = check(folder), check(tmp_path / "set.zip")
    assert first.summary == second.summary
