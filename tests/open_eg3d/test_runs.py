"""Training and measuring from a program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import open_eg3d
from dnnlib.console import UserError
from tests.tiny import SETTINGS, write_dataset

TINY = {name: json.loads(value) for name, value in (item.split("=") for item in SETTINGS)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "faces.zip")


def test_a_run_from_a_notebook(data: Path, tmp_path: Path) -> None:
    config = open_eg3d.new_config(
        data,
        device="cpu",
        settings={**TINY, "training.batch": 4, "training.kimg": 0.008},
    )
    config.snapshot.tick_kimg = 0.004
    snapshot = open_eg3d.train(config, tmp_path / "runs", device="cpu")
    assert snapshot.parent.parent == tmp_path / "runs"
    assert (snapshot.parent / "log.txt").exists()
    G = open_eg3d.load_generator(snapshot)
    assert open_eg3d.load_checkpoint(snapshot).progress["images"] == 8
    views = open_eg3d.render(
        G, open_eg3d.map_latents(G, open_eg3d.seed_latents(G, 0)), open_eg3d.view_label(G)
    )
    assert views.image.isfinite().all()
    (result,) = open_eg3d.measure(G, ["relief2"])
    assert result.protocol["cameras"].startswith("16 poses in the checkpoint")


def test_what_was_chosen_from_the_data_is_told(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_eg3d.new_config(data, device="cpu")
    assert "Scene from the labels: box" in capsys.readouterr().out


def test_mistakes_are_one_line(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.zip"):
        open_eg3d.new_config(tmp_path / "none.zip")
    with pytest.raises(UserError, match="unknown preset 'dogs'; known are auto"):
        open_eg3d.new_config(data, "dogs")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"unknown setting 'training\.size'"):
        open_eg3d.new_config(data, settings={"training.size": 3})
    config = open_eg3d.new_config(data, device="cpu", settings=TINY)
    config.training.batch = 3
    with pytest.raises(UserError, match="--batch 3 does not divide"):
        open_eg3d.train(config, tmp_path, device="cpu", processes=2)
    with pytest.raises(UserError, match="no CUDA device"):
        open_eg3d.train(config, tmp_path, device="cuda" if not torch.cuda.is_available() else "mps")


def test_measuring_needs_data_that_fit(data: Path) -> None:
    G = open_eg3d.load_generator(open_eg3d.SHIPPED_MODEL)
    with pytest.raises(UserError, match="pictures of 32 pixels, the generator makes 64"):
        open_eg3d.measure(G, ["fid10_lite0"], data)
    with pytest.raises(UserError, match="fid10_lite0 compares with real pictures"):
        open_eg3d.measure(G, ["fid10_lite0"])
    with pytest.raises(UserError, match="unknown metric 'fid'"):
        open_eg3d.measure(G, ["fid"])
