"""The commands of docs/inversion.md run and write what the page says."""

from __future__ import annotations

import json
import shlex
import zipfile
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

import export
import gen_samples
import gen_videos
import invert
from open_eg3d import inverting, load_generator, map_latents, seed_latents
from tests.data_tools.faces.test_convert import PLUGIN, RED, picture
from tests.docs.test_docs import ROOT, blocks
from tests.tiny import call, encode, orbit_labels, pictures
from tests.training.checkpoints.test_identities import write

PAGE = ROOT / "docs" / "inversion.md"
# Smaller than on the page; the last value of an option counts.
COMMANDS: dict[str, tuple[click.Command, list[str]]] = {
    "invert.py": (invert.main, ["--steps", "1", "1", "--estimator", "plugin:discs"]),
    "gen_videos.py": (gen_videos.main, ["--frames", "2"]),
    "gen_samples.py": (gen_samples.main, []),
    "export.py": (export.main, []),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page's commands open."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inverting, "load_perceptual", lambda *_: (None, "none"))
    (tmp_path / "models").mkdir()
    network = write(tmp_path / "models" / "heads64.pkl")
    (tmp_path / "ckpt.pkl").write_bytes(network.read_bytes())
    (tmp_path / "plugin.py").write_text(PLUGIN)
    picture((RED, 200, 150, 50)).save("photo.jpg", quality=95)
    labels = orbit_labels(2).tolist()
    for name, pixels in zip(("photo.png", "more.png"), pictures(2, 48), strict=True):
        Image.fromarray(pixels).save(name)
    Image.fromarray(np.full((48, 48), 255, np.uint8)).save("mask.png")
    Path("label.json").write_text(json.dumps(labels[0]))
    entries = [["photo.png", labels[0]], ["more.png", labels[1]]]
    Path("poses.json").write_text(json.dumps({"labels": entries}))
    with zipfile.ZipFile("photos.zip", "w") as archive:
        archive.writestr("one.png", encode(np.asarray(picture((RED, 200, 150, 50)))))
    generator = load_generator("ckpt.pkl")
    w = map_latents(generator, seed_latents(generator, range(40)))[:, 0].tolist()
    rows = [f"{seed},{one[0]}" for seed, one in enumerate(w)]
    Path("scores.csv").write_text("\n".join(["seed,hair", *rows]))
    return tmp_path


def test_commands_run(folder: Path) -> None:
    lines = [line for code in blocks(PAGE, "sh") for line in code.splitlines()]
    assert len(lines) >= 11
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        command, smaller = COMMANDS[words[0]]
        if "--train-encoder" in words:
            smaller = ["--train-encoder", "2"]
        call(command, *words[1:], *([] if "--scores" in words else smaller)).assert_done()
    written = {path.name for path in (folder / "out").iterdir()}
    assert {"photo.pkl", "photo.png", "photo.json", "photo.mp4", "photo.html"} <= written
    assert {"ada.json", "one.json", "seed0003.png"} <= written
    assert list(load_generator(folder / "edited.pkl").directions) == ["hair"]
    assert load_generator(folder / "encoded.pkl").encoder


@pytest.mark.usefixtures("folder")
def test_the_page_tells_what_the_files_hold() -> None:
    call(
        invert.main, "--network", "ckpt.pkl", "photo.png", "--optimise-pose", "--seconds", "0"
    ).assert_done()
    (pose,) = json.loads(Path("out/photo.json").read_text())["poses"]
    page = PAGE.read_text(encoding="utf-8")
    for name in ("sure", "spread"):
        assert name in pose
        assert f"`{name}`" in page
