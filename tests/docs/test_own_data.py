"""Every command in own-data.md, run in the order of the page on small data."""

from __future__ import annotations

import json
import re
import shlex
import zipfile
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from tests.data_tools import scenes
from tests.data_tools.scenes import OPENGL, Scene, look_at, orbit, read_result, similarity
from tests.tiny import ROOT, TINY_OPTIONS, finish, kimg, start

PAGE = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """The page's command lines, in order."""
    lines = [
        line
        for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]
    assert all(line.startswith("python ") for line in lines)
    return lines


def prepare(folder: Path) -> None:
    """The sources that the page speaks of."""
    scenes.write_transforms(Scene(orbit(12, up="z", yaw=50), size=(140, 130)), folder / "scene")
    (table,) = re.findall(r"^```csv\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    photos = folder / "photos"
    scenes.write_pictures(
        Scene(orbit(2)), photos, [line.split(",")[0] for line in table.splitlines()[1:]]
    )
    (photos / "angles.csv").write_text(table)
    (folder / "portraits").mkdir()
    for name, picture in (
        ("a", skimage.data.astronaut()),
        ("b", skimage.data.astronaut()[:, ::-1]),
        ("c", skimage.data.coffee()),
    ):
        Image.fromarray(picture).save(folder / "portraits" / f"{name}.png")
    lens = np.array([[131.25, 0, 64], [0, 131.25, 64], [0, 0, 1]])
    scenes.write_srn(
        Scene(orbit(12, up="z", radius=1.3), intrinsics=lens, size=(128, 128)),
        folder / "cars_train",
    )
    lens = np.array([[200.0, 0, 64], [0, 200, 64], [0, 0, 1]])
    scene = Scene(orbit(12, up="z", target=(5, 0, 0)), np.array([5.0, 0, 0]), lens, (128, 128))
    right = scenes.write_labels(scene, folder / "right")
    entries = json.loads((right / "dataset.json").read_text())["labels"]
    for _, label in entries:
        label[:16] = (np.array(label[:16]).reshape(4, 4) @ OPENGL).ravel().tolist()
    with zipfile.ZipFile(folder / "wrong.zip", "w") as archive:
        archive.writestr("dataset.json", json.dumps({"labels": entries}))
        for name, _ in entries:
            archive.write(right / name, name)


@pytest.mark.slow
def test_commands_run_in_order(tmp_path: Path) -> None:
    prepare(tmp_path)
    for line in commands():
        program, *arguments = shlex.split(line)[1:]
        # Mediapipe's environment is made anew; what other commands keep is kept where it always is.
        cache = {"OPEN_EG3D_CACHE": str(tmp_path / "cache")} if arguments[0] == "faces" else {}
        if program == "train.py":
            arguments += [
                *TINY_OPTIONS,
                "--set",
                "superresolution.channels=[4,4,4]",
                "--cfg",
                "auto",
                "--kimg",
                kimg(1),
            ]
        finish(start(program, *arguments, cwd=tmp_path, **cache)).assert_done()
        if "check" in arguments:
            finish(start(program, *arguments, "--strict", cwd=tmp_path)).assert_done()
    assert {"cameras.png", "contact.png"} == {path.name for path in (tmp_path / "look").iterdir()}
    finish(
        start("dataset_tool.py", "check", "--source", "mended.zip", "--strict", cwd=tmp_path)
    ).assert_done()
    assert [pixels.shape for _, pixels, _ in read_result(tmp_path / "faces.zip")] == [
        (256, 256, 3)
    ] * 2


def value_noise(points: np.ndarray, seed: int) -> np.ndarray:
    """A solid texture (P, 3): smooth random colours at four scales."""
    colours = np.zeros((len(points), 3))
    for octave, frequency in enumerate((3.0, 7.0, 15.0, 31.0)):
        grid = np.random.RandomState(seed + octave).rand(32, 32, 32, 3)
        place = points * frequency
        low = np.floor(place).astype(int)
        part = place - low
        for corner in np.ndindex(2, 2, 2):
            weight = np.prod(np.where(np.array(corner) == 1, part, 1 - part), axis=1, keepdims=True)
            colours += weight * grid[tuple(((low + corner) % 32).T)] / 4
    return colours


def photograph(cam2world: np.ndarray, focal: float, side: int) -> Image.Image:
    """A ball on a table, both with a solid texture."""
    centres = (np.arange(side) + 0.5) / side - 0.5
    x, y = np.meshgrid(centres, centres)
    directions = (
        np.stack([x / focal, y / focal, np.ones_like(x)], axis=-1).reshape(-1, 3)
        @ cam2world[:3, :3].T
    )
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    origin = cam2world[:3, 3]
    b, c = directions @ origin, origin @ origin - 0.4**2
    root = np.sqrt(np.maximum(b**2 - c, 0))
    ball = np.where(b**2 > c, -b - root, np.inf)
    table = np.where(
        directions[:, 1] < -1e-6, (-0.4 - origin[1]) / np.minimum(directions[:, 1], -1e-6), np.inf
    )
    distance = np.minimum(ball, table)
    seen = np.isfinite(distance) & (distance < 8)
    colours = np.full((side * side, 3), 0.5)
    colours[seen] = value_noise(origin + directions[seen] * distance[seen, None] + 10, 0)
    contrast = np.clip((colours - 0.5) * 2.5 + 0.5, 0, 1)
    return Image.fromarray((contrast * 255).astype(np.uint8).reshape(side, side, 3))


@pytest.mark.slow
def test_from_photographs_to_cameras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's lines for COLMAP on rendered photographs: converted poses are the true ones, up to
    the choice of the world.
    """
    pytest.importorskip("pycolmap")
    angles, heights = np.radians(np.linspace(-60, 60, 16)), np.tile([0.5, 1.3], 8)
    places = np.stack([2 * np.sin(angles), heights, 2 * np.cos(angles)], axis=1)
    true = np.stack([look_at(place, np.zeros(3), np.array([0.0, 1, 0])) for place in places])
    (tmp_path / "scene" / "images").mkdir(parents=True)
    for index, cam2world in enumerate(true):
        photograph(cam2world, 1.3, 320).save(tmp_path / "scene" / "images" / f"{index:02d}.png")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```py\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    exec(compile(code, "documentation", "exec"), {})
    finish(start("dataset_tool.py", *shlex.split(commands()[0])[2:], cwd=tmp_path)).assert_done()
    result = read_result(tmp_path / "mydata.zip")
    assert len(result) == len(true)
    found = np.stack([label[:16].reshape(4, 4) for _, _, label in result])
    scale, rotation, shift = similarity(true[:, :3, 3], found[:, :3, 3])
    np.testing.assert_allclose(
        found[:, :3, 3], scale * true[:, :3, 3] @ rotation.T + shift, atol=0.03
    )
    np.testing.assert_allclose(found[:, :3, :3], rotation @ true[:, :3, :3], atol=0.03)
    assert rotation[1, 1] > 0.99
    assert np.median([label[16] for _, _, label in result]) == pytest.approx(1.3, rel=0.05)
