"""The real thing: mediapipe set up by its command, on a photograph and on rendered heads with known
cameras.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest
import skimage.data
import torch
from PIL import Image

from benchmarks.faces import accuracy, errors, heads
from data_tools.faces.mediapipe_process import mediapipe_estimator
from tests.data_tools.scenes import read_result
from tests.tiny import Ended, finish, start
from training.cameras import orbit_angles, unpack_label

pytestmark = pytest.mark.slow
MOST_YAW, MOST_PITCH = 3.0, 5.0  # degrees, on average


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh cache in which `faces --setup` has made mediapipe's environment."""
    folder = tmp_path_factory.mktemp("cache")
    done = finish(
        start("dataset_tool.py", "faces", "--setup", OPEN_EG3D_CACHE=str(folder)), 900
    ).assert_done()
    assert "mediapipe is ready" in done.out
    assert [path.name for path in folder.iterdir()] == ["mediapipe-0.10.21"]
    return folder


def faces(cache: Path, source: Path, *options: str) -> Ended:
    command = (
        "faces",
        "--source",
        str(source),
        "--dest",
        str(source.parent / "faces.zip"),
        "--resolution",
        "256",
        "--overwrite",
        *options,
    )
    return finish(start("dataset_tool.py", *command, OPEN_EG3D_CACHE=str(cache)))


def angles(label: np.ndarray) -> tuple[float, float]:
    """Yaw and pitch, degrees."""
    yaw, pitch, _ = orbit_angles(unpack_label(torch.tensor(label))[0])
    return float(yaw.rad2deg()), float(pitch.rad2deg())


def write_photographs(folder: Path) -> None:
    folder.mkdir()
    astronaut = Image.fromarray(skimage.data.astronaut())
    astronaut.save(folder / "a-astronaut.png")
    astronaut.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "b-mirrored.png")
    astronaut.rotate(25, Image.Resampling.BICUBIC, expand=True).save(folder / "c-tilted.png")
    far = Image.new("RGB", (3000, 2000), (90, 120, 90))
    far.paste(astronaut, (1000, 300))
    far.save(folder / "d-far.jpg", quality=95)
    astronaut.crop((120, 0, 340, 250)).save(folder / "e-close.png")
    for name in ("chelsea", "coffee", "rocket"):
        Image.fromarray(getattr(skimage.data, name)()).save(folder / f"z-{name}.png")


def test_photographs(cache: Path, tmp_path: Path) -> None:
    """The astronaut looks almost straight into the camera; mirrored, tilted, far away or cut out
    closely, she is the same.
    """
    write_photographs(tmp_path / "photographs")
    done = faces(cache, tmp_path / "photographs", "--workers", "1").assert_done()
    assert "wrote 5 portraits of 256 pixels" in done.out
    left_out = [line for line in done.lines if line.startswith("left out: ")]
    assert [
        name in line for name, line in zip(("chelsea", "coffee", "rocket"), left_out, strict=True)
    ] == [True] * 3
    (_, first, label), *others = read_result(tmp_path / "faces.zip")
    yaw, pitch = angles(label)
    assert abs(yaw) < 8
    assert abs(pitch) < 10
    turned = [angles(other) for _, _, other in others]
    assert turned[0] == pytest.approx((-yaw, pitch), abs=2.5)
    for other in turned[1:]:
        assert other == pytest.approx((yaw, pitch), abs=2.5)
    mirrored, tilted, far = (pixels.astype(float) for _, pixels, _ in others[:3])
    middle = np.s_[64:192, 64:192]  # the face itself, whose crops differ by a pixel or two
    for same in (mirrored[:, ::-1], tilted, far):
        assert np.corrcoef(first[middle].ravel(), same[middle].ravel())[0, 1] > 0.9


def test_eyes_and_mouth_are_where_the_published_crops_have_them(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(cache))
    write_photographs(tmp_path / "photographs")
    faces(cache, tmp_path / "photographs", "--workers", "1").assert_done()
    portrait = read_result(tmp_path / "faces.zip")[0][1]
    with mediapipe_estimator() as estimate:
        estimate(np.ascontiguousarray(portrait))
        assert estimate._process is not None
        ((mesh, score),) = estimate._process.landmarks(np.ascontiguousarray(portrait))
    assert score is not None
    assert 0.5 < score <= 1
    places = mesh[[468, 473, 61, 291], :2] / 256
    eye, mouth = 0.31 * 300 / 700, 0.25 * 300 / 700
    expected = [(0.5 - eye, 0.376), (0.5 + eye, 0.376), (0.5 - mouth, 0.65), (0.5 + mouth, 0.65)]
    np.testing.assert_allclose(places, expected, atol=0.035)


def test_accuracy_on_rendered_heads(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other heads than those that the average face was measured on."""
    pictures, labels = heads(100, 256, seed=2026)
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(cache))
    with mediapipe_estimator() as estimate:
        yaw, pitch = accuracy(*errors(pictures, labels, estimate))
    assert yaw["found"] >= 98
    assert yaw["mean |error|"] < MOST_YAW
    assert pitch["mean |error|"] < MOST_PITCH
    assert [
        child
        for child in psutil.Process().children()
        if "mediapipe_worker" in " ".join(child.cmdline())
    ] == []
