"""Photos as people have them given to train.py: refused at once, with the command that mends them;
what that command writes is trained on.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dataset_tool
from tests.data_tools import scenes
from tests.data_tools.faces.test_convert import PLUGIN, RED, picture
from tests.data_tools.scenes import Scene, orbit
from tests.tiny import call
from tests.train.runs import train_here

LENS = np.array([[96.0, 0, 32], [0, 96, 32], [0, 0, 1]])


def labelled(folder: Path, size: tuple[int, int] = (64, 64)) -> Path:
    lens = LENS * [[size[0] / 64], [size[1] / 64], [1]]
    return scenes.write_labels(Scene(orbit(6, yaw=40), intrinsics=lens, size=size), folder)


def with_picture(change: Callable[[Image.Image], Image.Image]) -> Callable[[Path], Path]:
    """A good data set but for one picture."""

    def write(folder: Path) -> Path:
        source = labelled(folder)
        path = source / "pics" / "p1.png"
        change(Image.open(path)).save(path)
        return source

    return write


def sixteen_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


PHOTOS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "landscape": (lambda folder: labelled(folder, (96, 64)), "96x64, not square"),
    "portrait": (lambda folder: labelled(folder, (48, 80)), "48x80, not square"),
    "no power of two": (lambda folder: labelled(folder, (100, 100)), "100x100; the size must be"),
    "too small": (lambda folder: labelled(folder, (20, 20)), "20x20; the size must be"),
    "too large": (lambda folder: labelled(folder, (1100, 1100)), "1100x1100; the size must be"),
    "several sizes": (with_picture(lambda image: image.resize((32, 32))), "make all pictures one"),
    "transparent": (with_picture(lambda image: image.convert("RGBA")), "an alpha channel"),
    "16 bits": (with_picture(sixteen_bits), "more than 8 bits"),
    "cameras of NeRF": (lambda path: scenes.write_transforms(Scene(orbit(6)), path), "no dataset"),
    "cameras of COLMAP": (
        lambda path: scenes.write_colmap(Scene(orbit(6)), path, binary=False),
        "no dataset.json",
    ),
}


def command_in(line: str) -> list[str]:
    """Arguments for dataset_tool.py of the command at the end of an error."""
    return shlex.split(line.strip().partition("python dataset_tool.py ")[2])


@pytest.mark.parametrize("case", PHOTOS)
def test_the_command_that_is_named_mends(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, words = PHOTOS[case]
    source = make(tmp_path / "my photos")
    refused = train_here("--data", source, "--outdir", "runs")
    refused.assert_refused(1, words)
    command = command_in(refused.err)
    assert command[0] == "convert"
    call(dataset_tool.main, *command, "--workers", "1").assert_done()
    train_here("--data", command[command.index("--dest") + 1], "--dry-run").assert_done()
    assert not Path("runs").exists()


def test_portraits_without_cameras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plugin.py").write_text(PLUGIN)
    Path("family album").mkdir()
    for index in range(4):
        picture((RED, 190 + index, 140, 70)).save(f"family album/{index}.jpg", quality=95)
    shutil.make_archive("portraits", "zip", "family album")  # the name that is advised is taken
    for given, dest in (("portraits.zip", "portraits2.zip"), ("family album", "portraits.zip")):
        refused = train_here("--data", given)
        refused.assert_refused(1, "no dataset.json", "photos")
        command = command_in(refused.err)
        assert command[0] == "faces"
        # convert says the same
        told = call(dataset_tool.main, "convert", "--source", given, "--dest", "x.zip")
        told.assert_refused(1, "4 pictures without cameras")
        assert command_in(told.err) == command
        own = ("--estimator", "plugin:discs", "--workers", "1", "--overwrite")
        call(dataset_tool.main, *command, *own).assert_done()
        train_here("--data", dest, "--dry-run").assert_done()
    # one photo instead of a folder of them
    train_here("--data", "family album/0.jpg").assert_refused(1, "0.jpg", "name the folder")
