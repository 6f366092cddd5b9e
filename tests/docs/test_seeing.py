"""The commands of the pages on videos, shapes and files run and write what the pages say; the
pictures are the shipped model's.
"""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path
from types import ModuleType

import click
import numpy as np
import pytest
from PIL import Image, ImageSequence

import gen_samples
import gen_videos
from tests.docs.test_docs import ROOT, blocks
from tests.test_gen_videos import write_network
from tests.tiny import call
from training.checkpoints import show as inspect

PAGES = ("videos.md", "shapes.md", "checkpoints.md")
MEDIA = ROOT / "docs" / "media"
# Smaller than on the page, so that it is quick; the last value of an option counts.
COMMANDS: dict[str, tuple[click.Command, list[str]]] = {
    "gen_videos.py": (gen_videos.main, ["--frames", "3"]),
    "gen_samples.py": (gen_samples.main, ["--shape-res", "24"]),
    "training.checkpoints.show": (inspect.main, []),
}
WRITTEN = {
    "glb": {"glb"},
    "obj": {"obj", "mtl", "png"},
    "ply": {"ply"},
    "stl": {"stl"},
    "mrc": {"mrc"},
}


def commands() -> list[str]:
    lines = [
        line
        for page in PAGES
        for code in blocks(ROOT / "docs" / page, "sh")
        for line in code.splitlines()
    ]
    return [
        line
        for line in lines
        if line.startswith("python ") and any(name in line for name in COMMANDS)
    ]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("seeing") / "ckpt.pkl")


@pytest.mark.parametrize("line", commands())
def test_command_runs(
    line: str, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ckpt.pkl").write_bytes(network.read_bytes())
    monkeypatch.chdir(tmp_path)
    words = [word for word in shlex.split(line, comments=True)[1:] if word != "-m"]
    command, smaller = COMMANDS[words[0]]
    texture = ["--texture", "64", "--seeds", "0"] if "--texture" in words else []
    call(command, *words[1:], *smaller, *texture).assert_done()
    kinds = (
        {path.suffix[1:] for path in (tmp_path / "out").iterdir()}
        if command is not inspect.main
        else set()
    )
    if "--shapes" in words:
        textured = "--texture" in words
        assert kinds == (
            WRITTEN[words[words.index("--shapes") + 1]]
            if textured
            else {words[words.index("--shapes") + 1]}
        )
    elif command is gen_videos.main:
        assert kinds == ({"mp4", "gif"} if "mp4,gif" in line else {"mp4"})


def test_there_are_commands_of_every_kind() -> None:
    assert {name for name in COMMANDS for line in commands() if name in line} == set(COMMANDS)
    assert len(commands()) >= 14


def test_pages_show_the_poses_that_are_read(network: Path, tmp_path: Path) -> None:
    (code,) = blocks(ROOT / "docs" / "videos.md", "json")
    (tmp_path / "poses.json").write_text(code)
    options: list[str | Path] = [
        "--network",
        network,
        "--outdir",
        tmp_path,
        "--seeds",
        "0",
        "--camera",
        tmp_path / "poses.json",
    ]
    call(gen_videos.main, *options).assert_done()
    assert (tmp_path / "seed0000.mp4").exists()


# --------------------------------------------------------------------------------------------------
# Pictures


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """docs/make_media.py, as `make docs-media` runs it."""
    spec = importlib.util.spec_from_file_location("make_media", ROOT / "docs" / "make_media.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["turn.gif", "walk.gif"])
def test_loops_are_short_and_closed(name: str) -> None:
    assert (MEDIA / name).stat().st_size < 1_500_000
    with Image.open(MEDIA / name) as file:
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(file)]
        assert file.info["loop"] == 0
    assert len(frames) > 20
    np.testing.assert_array_equal(frames[0], frames[-1])


def difference(first: Path, second: Path) -> float:
    with Image.open(first) as one, Image.open(second) as other:
        assert one.size == other.size
        return float(
            np.abs(
                np.asarray(one.convert("RGB"), dtype=float)
                - np.asarray(other.convert("RGB"), dtype=float)
            ).mean()
        )


def test_pictures_are_the_shipped_models(maker: ModuleType, tmp_path: Path) -> None:
    """If this fails: `make docs-media`."""
    maker.make_grid(maker.Model(maker.SHIPPED), tmp_path / "heads.png")
    assert difference(tmp_path / "heads.png", MEDIA / "heads.png") < 1


@pytest.mark.slow
def test_all_pictures_and_loops_can_be_made_again(maker: ModuleType, tmp_path: Path) -> None:
    maker.main(tmp_path)
    for path in tmp_path.iterdir():
        assert difference(path, MEDIA / path.name) < 1
        assert path.stat().st_size < 1_500_000
