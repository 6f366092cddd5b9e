"""Portraits by a plugged-in estimator through the real command, and what becomes of an estimator's
process that misbehaves.
"""

from __future__ import annotations

import csv
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

import dataset_tool
from data_tools.faces import mediapipe_process as face_process
from data_tools.faces.convert import FacesConfig, convert_faces
from data_tools.faces.pose import FACE_RADIUS, FacePose, face_label
from dnnlib.console import UserError
from tests.data_tools.scenes import read_result
from tests.tiny import PATIENCE, ROOT, Ended, call, environment, finish, start
from training.cameras import orbit_angles, unpack_label
from training.data.dataset import ImageDataset

# Finds discs: red ones are faces seen from yaw 0.3, pitch -0.1 and roll 0.2, blue ones frontal
# faces.
PLUGIN = """
import time
from dataclasses import replace
import numpy as np
from data_tools.faces.pose import FacePose

def discs(picture):
    for channel, angles in ((0, (0.3, -0.1, 0.2)), (2, (0.0, 0.0, 0.0))):
        y, x = np.nonzero((picture[..., channel] > 200) & (picture.astype(int).sum(-1) < 400))
        if len(x):
            center = (x.mean() + 0.5, y.mean() + 0.5)
            pose = FacePose.from_angles(*angles, center, 2 * np.sqrt(len(x) / np.pi))
            yield replace(pose, score=0.875) if channel == 0 else pose

def slow(picture):
    time.sleep(0.1)
    return discs(picture)

def broken(picture):
    return {}[1]

def overconfident(picture):
    return [replace(pose, score=1.5) for pose in discs(picture)]

def wrong(picture):
    return [(1, 2, 3)]

def mirrored(picture):
    return [FacePose(np.diag([-1.0, 1.0, 1.0]), (5.0, 5.0), 3.0)]

number = 3
"""
RED, BLUE = (255, 0, 0), (0, 0, 255)


def picture(
    *discs: tuple[tuple[int, int, int], float, float, float], size: tuple[int, int] = (400, 300)
) -> Image.Image:
    """Discs (colour, x, y, diameter) on grey."""
    y, x = np.indices(size[::-1]) + 0.5
    pixels = np.full((*size[::-1], 3), 128, dtype=np.uint8)
    for colour, left, top, diameter in discs:
        pixels[(x - left) ** 2 + (y - top) ** 2 < diameter**2 / 4] = colour
    return Image.fromarray(pixels)


def source(folder: Path, **pictures: Image.Image) -> Path:
    folder.mkdir()
    (folder.parent / "plugin.py").write_text(PLUGIN)
    for name, image in pictures.items():
        image.save(folder / f"{name}.png")
    return folder


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, from which the plug-in can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "plugin", raising=False)
    return tmp_path


def faces(*arguments: str | Path) -> Ended:
    """Run the command in this process."""
    return call(dataset_tool.main, "faces", "--resolution", "64", "--workers", "1", *arguments)


def test_a_plugged_in_estimator(plugin: Path) -> None:
    """The disc of one decimetre is in the middle of its portrait, 3/7 of it wide; labels are those
    of the poses.
    """
    folder = source(
        plugin / "in", a=picture((RED, 150, 120, 60)), b=picture(), c=picture((BLUE, 200, 150, 90))
    )
    command = (
        "faces",
        "--source",
        folder,
        "--dest",
        "faces.zip",
        "--resolution",
        "128",
        "--estimator",
        "plugin:discs",
    )
    done = finish(start("dataset_tool.py", *command, cwd=plugin)).assert_done()
    assert "wrote 2 portraits of 128 pixels to faces.zip, left out 1" in done.out
    assert [line for line in done.lines if "img" not in line] == [
        f"left out: {folder}: b.png: no face found"
    ]
    (_, red, red_label), (_, blue, blue_label) = read_result(plugin / "faces.zip")
    for pixels, colour in ((red, RED), (blue, BLUE)):
        y, x = np.nonzero(np.abs(pixels.astype(int) - colour).sum(-1) < 200)
        assert (x.mean() + 0.5, y.mean() + 0.5) == pytest.approx((64, 64), abs=0.5)
        assert len(x) == pytest.approx(np.pi / 4 * (128 * 3 / 7) ** 2, rel=0.03)
    np.testing.assert_allclose(
        red_label, face_label(FacePose.from_angles(0.3, -0.1, 0.2, (0, 0), 1)), atol=1e-6
    )
    yaw, pitch, radius = orbit_angles(unpack_label(torch.tensor(blue_label))[0])
    assert (float(yaw), float(pitch), float(radius)) == pytest.approx((0, 0, FACE_RADIUS), abs=1e-6)
    assert finish(start("dataset_tool.py", "check", "--source", plugin / "faces.zip")).status == 0


def test_workers_do_not_change_the_result(plugin: Path) -> None:
    discs = {f"p{i:03d}": picture((RED, 100 + i, 150, 70)) for i in range(60)}
    folder = source(plugin / "in", **discs)
    results = []
    for workers in (1, 2):
        dest = plugin / f"{workers}.zip"
        convert_faces(folder, dest, FacesConfig(64, "plugin:discs", workers=workers))
        results.append(dest.read_bytes())
    assert results[0] == results[1]
    assert len(ImageDataset(plugin / "1.zip")) == 60


def test_several_faces(plugin: Path) -> None:
    folder = source(plugin / "in", a=picture((RED, 100, 150, 60), (BLUE, 210, 150, 40)))
    for pick, words, colour in (
        ("largest", "the largest one", RED),
        ("central", "the most central one", BLUE),
    ):
        done = faces(
            "--source",
            folder,
            "--dest",
            f"{pick}.zip",
            "--estimator",
            "plugin:discs",
            "--pick",
            pick,
        ).assert_done()
        assert any(
            f"1 picture shows several faces; {words} was taken" in line for line in done.lines
        )
        ((_, pixels, _),) = read_result(plugin / f"{pick}.zip")
        np.testing.assert_allclose(pixels[32, 32], colour, atol=3)


def test_rolled_heads_are_turned_upright_or_kept(plugin: Path) -> None:
    folder = source(plugin / "in", a=picture((RED, 200, 150, 60)))
    faces(
        "--source", folder, "--dest", "kept.zip", "--estimator", "plugin:discs", "--keep-roll"
    ).assert_done()
    ((_, _, label),) = read_result(plugin / "kept.zip")
    pose = FacePose.from_angles(0.3, -0.1, 0.2, (0, 0), 1)
    np.testing.assert_allclose(label[:16].reshape(4, 4)[:3, :3].T, pose.rotation, atol=1e-6)


def test_portraits_that_cannot_be_used(plugin: Path) -> None:
    """Cut off by the picture's edge, or small: listed with reasons, and no data set without any."""
    folder = source(
        plugin / "in", edge=picture((RED, 10, 150, 100)), small=picture((RED, 200, 150, 20))
    )
    options = (
        "--source",
        folder,
        "--dest",
        "o.zip",
        "--estimator",
        "plugin:discs",
        "--min-size",
        "60",
    )
    faces(*options).assert_refused(1, "no portrait in 2 pictures", "edge.png", "cuts off")
    picture((RED, 200, 150, 60)).save(folder / "good.png")
    done = faces(*options).assert_done()
    assert [line for line in done.lines if "small.png" in line and "47 pixels" in line]
    assert "wrote 1 portrait of" in done.out
    assert (plugin / "o.zip").exists()


def test_small_faces_are_named_and_can_be_left_out(plugin: Path) -> None:
    folder = source(
        plugin / "in", good=picture((RED, 200, 150, 60)), small=picture((BLUE, 200, 150, 10))
    )
    options = ("--source", folder, "--dest", "o.zip", "--estimator", "plugin:discs", "--overwrite")
    done = faces(*options).assert_done()
    (line,) = [line for line in done.lines if "small.png" in line]
    assert "the face is small, 24 pixels were enlarged to 64; --min-size leaves" in line
    assert "wrote 2 portraits" in done.out
    assert "wrote 1 portrait of" in faces(*options, "--min-size", "32").assert_done().out
    refused = faces("--source", folder / "good.png", *options[2:], "--min-size", "500")
    refused.assert_refused(1, "no portrait in 1 picture;", "good.png", "--min-size asks for 500")
    assert "enlarged" not in refused.err  # 144 pixels are enough for 64


def test_the_table_says_where_portraits_come_from(plugin: Path) -> None:
    folder = source(plugin / "in", b=picture(), c=picture((BLUE, 200, 150, 60)))
    picture((RED, 190, 140, 70)).save(folder / 'a "b", c.png')
    faces("--source", folder, "--dest", "o", "--estimator", "plugin:discs").assert_done()
    with open(plugin / "o" / "faces.csv", newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert (first["source"], second["source"]) == ('a "b", c.png', "c.png")
    assert second["file"] == "00000/img00000001.png"
    assert (first["score"], second.pop("score")) == ("0.875", "")  # it need not say
    values = {key: float(value) for key, value in second.items() if key not in ("file", "source")}
    assert values == pytest.approx(
        {"faces": 1, "crop_x": 200, "crop_y": 150, "crop_side": 140, "crop_angle": 0, "yaw": 0,
         "pitch": 0}, abs=0.6
    )  # fmt: skip
    assert "-0.00" not in (*first.values(), *second.values())
    assert float(first["yaw"]) == pytest.approx(np.degrees(0.3), abs=0.1)
    assert len(ImageDataset(plugin / "o")) == 2


def test_one_photo_and_an_empty_folder(plugin: Path) -> None:
    folder = source(plugin / "in", a=picture((RED, 200, 150, 60)), b=picture())
    options = ("--dest", "o.zip", "--estimator", "plugin:discs")
    done = faces("--source", folder / "a.png", *options).assert_done()
    assert "wrote 1 portrait of" in done.out
    assert done.lines == [line for line in done.lines if "img" in line]
    (plugin / "empty").mkdir()
    refused = faces("--source", plugin / "empty", *options, "--overwrite")
    refused.assert_refused(1, "empty is empty; it must hold pictures")
    assert "cameras" not in refused.err


def test_phone_pictures_and_odd_files(plugin: Path) -> None:
    """EXIF turns pictures; transparent ones want a background; other files are passed over and
    said.
    """
    folder = source(plugin / "in")
    upright = picture((RED, 120, 100, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    upright.putalpha(128)
    upright.save(folder / "clear.png")
    (folder / "notes.txt").write_text("hello")
    options = ("--source", folder, "--dest", plugin / "o.zip", "--estimator", "plugin:discs")
    faces(*options).assert_refused(1, "clear.png", "--background")
    done = faces(*options, "--background", "black", "--skip-bad").assert_done()
    assert any("1 file is no picture that" in line and "notes.txt" in line for line in done.lines)
    (label,) = [
        label for _, pixels, label in read_result(plugin / "o.zip") if pixels[32, 32, 0] > 200
    ]
    np.testing.assert_allclose(
        label, face_label(FacePose.from_angles(0.3, -0.1, 0.2, (0, 0), 1)), atol=1e-6
    )


def test_large_pictures_are_estimated_small_and_cut_from_the_original(plugin: Path) -> None:
    folder = source(plugin / "in", a=picture((BLUE, 3000, 1500, 300), size=(5000, 3000)))
    faces(
        "--source", folder, "--dest", "o.zip", "--estimator", "plugin:discs", "--resolution", "256"
    ).assert_done()
    ((_, pixels, _),) = read_result(plugin / "o.zip")
    y, x = np.nonzero(np.abs(pixels.astype(int) - BLUE).sum(-1) < 200)
    assert (x.mean() + 0.5, y.mean() + 0.5) == pytest.approx((128, 128), abs=0.5)


# --------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--estimator", "nothing"), "--estimator"),
        (("--estimator", "no_such_module:f"), "no_such_module"),
        (("--estimator", "plugin:nothing"), "--estimator"),
        (("--estimator", "plugin:number"), "no function"),
        (("--resolution", "100"), "--resolution"),
        (("--pick", "all"), "--pick"),
        (("--background", "random"), "--background"),
        (("--min-size", "-1"), "--min-size"),
    ],
)
def test_wrong_options(options: tuple[str, str], word: str, plugin: Path) -> None:
    folder = source(plugin / "in", a=picture())
    faces("--source", folder, "--dest", "o.zip", *options).assert_refused(2, word)


def test_source_and_dest_are_needed() -> None:
    faces("--dest", "o.zip").assert_refused(2, "--source")
    faces("--source", "in").assert_refused(2, "--dest")
    faces("--setup", "--source", "in").assert_refused(2, "--dest")


def test_wrong_sources(plugin: Path) -> None:
    (plugin / "plugin.py").write_text(PLUGIN)
    estimator = ("--estimator", "plugin:discs")
    faces("--source", "none", "--dest", "o.zip", *estimator).assert_refused(
        1, "none does not exist"
    )
    (plugin / "empty").mkdir()
    faces("--source", "empty", "--dest", "o.zip", *estimator).assert_refused(1, "is empty")
    (plugin / "empty" / "a.txt").touch()
    faces("--source", "empty", "--dest", "o.zip", *estimator).assert_refused(1, "no pictures")
    (plugin / "cut.zip").write_bytes(b"PK")
    faces("--source", "cut.zip", "--dest", "o.zip", *estimator).assert_refused(1, "nor a whole ZIP")
    folder = source(plugin / "in", a=picture())
    faces("--source", folder, "--dest", folder, "--overwrite", *estimator).assert_refused(
        1, "the source itself"
    )


@pytest.mark.parametrize(
    ("damage", "words"), [(b"", "empty file"), (b"hello", "no PNG"), (None, "cannot be read")]
)
def test_damaged_pictures(damage: bytes | None, words: str, plugin: Path) -> None:
    """Refused by name, or left out by --skip-bad."""
    folder = source(plugin / "in", a=picture((RED, 200, 150, 60)), b=picture((RED, 200, 150, 60)))
    whole = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    options = ("--source", folder, "--dest", "o.zip", "--estimator", "plugin:discs")
    faces(*options).assert_refused(1, "b.png", words)
    assert not (plugin / "o.zip").exists()
    done = faces(*options, "--skip-bad").assert_done()
    assert [line for line in done.lines if line.startswith("left out: ") and "b.png" in line]


@pytest.mark.parametrize("function", ["broken", "wrong", "mirrored", "overconfident"])
def test_estimators_that_fail_are_named_with_the_picture(function: str, plugin: Path) -> None:
    folder = source(plugin / "in", a=picture((RED, 200, 150, 60)))
    faces(
        "--source", folder, "--dest", "o.zip", "--estimator", f"plugin:{function}"
    ).assert_refused(1, "a.png", f"plugin:{function}")


def test_missing_mediapipe_names_the_command(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(plugin / "cache"))
    folder = source(plugin / "in", a=picture())
    faces("--source", folder, "--dest", "o.zip").assert_refused(
        1, "not set up", "python dataset_tool.py faces --setup"
    )
    assert not (plugin / "o.zip").exists()


def test_a_setup_that_fails_leaves_nothing(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any registry there is nothing to install from."""
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(plugin / "cache"))
    for name, value in {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(plugin / "nothing"),
        "PIP_CONFIG_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(name, value)
    ended = faces("--setup")
    assert ended.status == 1
    assert "cannot install mediapipe's packages" in ended.lines[-1]
    assert list((plugin / "cache").iterdir()) == []


@pytest.mark.waits
def test_stopped_in_the_middle_nothing_is_left(plugin: Path) -> None:
    folder = source(
        plugin / "in", **{f"p{i:03d}": picture((RED, 200, 150, 60)) for i in range(150)}
    )
    out = plugin / "out"
    out.mkdir()
    command = [
        "faces",
        "--source",
        folder,
        "--dest",
        out / "o.zip",
        "--estimator",
        "plugin:slow",
        "--workers",
        "2",
        "--resolution",
        "256",
    ]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "dataset_tool.py"), *map(str, command)],
        cwd=plugin,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + PATIENCE
    while (
        sum(path.stat().st_size for path in out.iterdir()) < 1 << 14 and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    ended = finish(process)
    assert (ended.status, ended.err.splitlines()[-1]) == (130, "error: interrupted")
    assert list(out.iterdir()) == []
    assert psutil.wait_procs(children, timeout=PATIENCE)[1] == []


# --------------------------------------------------------------------------------------------------
# The process of an estimator

# Speaks the protocol without mediapipe: pictures 13 pixels wide kill it, 14 hang it, 15 are
# refused.
FAKE = """
import json, sys, time
print(json.dumps({"ready": True}), flush=True)
while line := sys.stdin.buffer.readline():
    size = json.loads(line)
    pixels = sys.stdin.buffer.read(3 * size["width"] * size["height"])
    if size["width"] == 13:
        print("Error: unlucky", file=sys.stderr)
        sys.exit(7)
    if size["width"] == 14:
        time.sleep(1000)
    face = [[i * 0.1 % 7, i * 0.7 % 5, i % 3] for i in range(478)]
    answer = {"error": "odd"} if size["width"] == 15 else {
        "faces": [face] * pixels[0], "scores": [0.75] * pixels[0]}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fake in mediapipe's place: a Python in the environment that all processes look for,
    which runs it instead.
    """
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path / "cache"))
    worker, python = tmp_path / "fake.py", face_process.environment_dir() / "bin" / "python"
    worker.write_text(FAKE)
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(worker))}\n")
    python.chmod(0o755)
    return worker


def blank(width: int, faces: int = 0) -> np.ndarray:
    return np.full((4, width, 3), faces, dtype=np.uint8)


@pytest.mark.waits
@pytest.mark.usefixtures("fake")
def test_a_process_that_dies_is_started_again() -> None:
    with face_process.mediapipe_estimator() as estimate:
        assert len(estimate(blank(5, 2))) == 2
        with pytest.raises(face_process.EstimatorDied, match="exit status 7: Error: unlucky"):
            estimate(blank(13))
        assert estimate(blank(5)) == []
        with pytest.raises(ValueError, match="odd"):
            estimate(blank(15))
        assert len(estimate(blank(5, 1))) == 1
        for _ in range(2):
            with pytest.raises(face_process.EstimatorDied):
                estimate(blank(13))
        with pytest.raises(UserError, match="3 pictures in a row"):
            estimate(blank(13))
    assert [
        child for child in psutil.Process().children() if "fake.py" in " ".join(child.cmdline())
    ] == []


@pytest.mark.waits
@pytest.mark.usefixtures("fake")
def test_a_process_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with face_process.mediapipe_estimator() as estimate:
        assert estimate(blank(5)) == []
        monkeypatch.setattr(face_process, "ANSWER_SECONDS", 0.5)
        with pytest.raises(face_process.EstimatorDied):
            estimate(blank(14))


@pytest.mark.waits
def test_a_process_that_does_not_start(fake: Path) -> None:
    fake.write_text("raise ImportError('no mediapipe here')")
    with pytest.raises(
        UserError,
        match=r"does not start \(exit status 1: ImportError: no mediapipe here\); set it up anew",
    ):
        face_process.MeshProcess()


@pytest.mark.waits
@pytest.mark.usefixtures("fake")
def test_a_picture_that_kills_the_process_is_listed(plugin: Path) -> None:
    folder = source(plugin / "in", deadly=picture(size=(13, 40)))
    faces("--source", folder, "--dest", "o.zip").assert_refused(
        1, "deadly.png", "the estimator died on it", "exit status 7"
    )
