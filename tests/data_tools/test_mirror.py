"""Data sets with mirror images and with rare views repeated."""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_tools.mirror import copied_order, mirror, rebalance
from dnnlib.console import UserError
from tests.data_tools import scenes
from tests.data_tools.scenes import Scene, dots, orbit, project, read_result
from tests.tiny import orbit_labels
from training.data.dataset import ImageDataset

LENS = np.array([[96.0, 2, 30], [0, 92, 35], [0, 0, 1]])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return scenes.write_labels(
        Scene(orbit(5, yaw=40), intrinsics=LENS, size=(64, 64)), tmp_path / "in"
    )


@pytest.mark.parametrize("dest", ["out.zip", "out"])
def test_dots_stay_where_mirrored_cameras_see_them(dest: str, source: Path, tmp_path: Path):
    done = mirror(source, tmp_path / dest, workers=1)
    assert (done.before, done.after) == (5, 10)
    result = read_result(tmp_path / dest)
    points = Scene(orbit(5, yaw=40)).points
    for index, (_, picture, label) in enumerate(result):
        seen = points * ((1, 1, 1) if index < 5 else (-1, 1, 1))  # the world mirrored at x = 0
        expected = project(seen, label[:16].reshape(4, 4), label[16:].reshape(3, 3))
        np.testing.assert_allclose(dots(picture), expected, atol=0.1 / 64)


def test_same_as_mirroring_while_training(source: Path, tmp_path: Path):
    mirror(source, tmp_path / "out.zip", workers=1)
    written, on_the_fly = ImageDataset(tmp_path / "out.zip"), ImageDataset(source, mirror=True)
    assert len(written) == len(on_the_fly) == 10
    for index in range(10):
        for one, two in zip(written[index], on_the_fly[index], strict=True):
            assert one.equal(two)


def test_originals_are_copied_byte_for_byte(source: Path, tmp_path: Path):
    Image.open(source / "pics" / "p1.png").save(source / "pics" / "p1.jpg", quality=60)
    (source / "pics" / "p1.png").unlink()
    (source / "dataset.json").write_text(
        (source / "dataset.json").read_text().replace("p1.png", "p1.jpg")
    )
    mirror(source, tmp_path / "out.zip", workers=1)
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.read("00000/img00000001.jpg") == (source / "pics" / "p1.jpg").read_bytes()
        assert "00000/img00000006.png" in archive.namelist()


def test_damaged_picture_leaves_nothing(source: Path, tmp_path: Path):
    path = source / "pics" / "p3.png"
    path.write_bytes(path.read_bytes()[:-50])
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"p3\.png"):
        mirror(source, tmp_path / "out" / "x.zip", workers=1)
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(UserError, match="already exists"):
        mirror(source, source)
    with pytest.raises(UserError, match="the source itself"):
        mirror(source, source, overwrite=True)


def test_rare_yaws_are_repeated(tmp_path: Path):
    """30 frontal views, 6 from the right and 1 from the left, in three bins: 30, 24 and 4 with a
    factor of 4.
    """
    yaws = (
        [0.01 * index for index in range(30)] + [1.0 + 0.01 * index for index in range(6)] + [-0.7]
    )
    up = np.array([0.0, 1, 0])
    cameras = np.stack(
        [scenes.look_at(2.0 * np.array([np.sin(a), 0.1, np.cos(a)]), np.zeros(3), up) for a in yaws]
    )
    scene = Scene(
        cameras, size=(32, 32), intrinsics=np.array([[40.0, 0, 16], [0, 40, 16], [0, 0, 1]])
    )
    source = scenes.write_labels(scene, tmp_path / "in")
    done = rebalance(source, tmp_path / "out.zip", bins=3, factor=4)
    assert (done.before, done.after) == (37, 30 + 24 + 4)
    result = read_result(tmp_path / "out.zip")
    counts = Counter(label.tobytes() for _, _, label in result)
    originals = ImageDataset(source).labels.double().numpy()
    assert set(counts) == {label.tobytes() for label in originals}
    assert Counter(counts.values()) == {1: 30, 4: 7}
    again = rebalance(source, tmp_path / "again.zip", bins=3, factor=4)
    assert again == done
    assert (tmp_path / "again.zip").read_bytes() == (tmp_path / "out.zip").read_bytes()


def test_order_of_copies():
    assert copied_order(np.array([1, 3, 2])).tolist() == [0, 1, 2, 1, 2, 1]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pictures_that_are_kept_are_decoded_to_the_end(kind: str, tmp_path: Path) -> None:
    """A picture cut in half has a whole header; copying it would hide the damage."""
    name = f"a.{kind.lower()}"
    pixels = np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    data = file.getvalue()
    with zipfile.ZipFile(tmp_path / "cut.zip", "w") as archive:
        archive.writestr(name, data[: len(data) // 2])
        archive.writestr(
            "dataset.json", json.dumps({"labels": [[name, orbit_labels(1)[0].tolist()]]})
        )
    for make in (mirror, rebalance):
        with pytest.raises(UserError, match=rf"{name} cannot be read"):
            make(tmp_path / "cut.zip", tmp_path / "o.zip")
        assert not (tmp_path / "o.zip").exists()
