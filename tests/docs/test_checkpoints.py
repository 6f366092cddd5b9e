"""The exports of checkpoints.md, run one after the other as a reader would."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

import export
import gen_samples
from open_eg3d import load_generator
from tests.hostile.archives import good_checkpoint
from tests.released_layout import Layout, write_snapshot
from tests.tiny import ROOT, call, differing
from training.checkpoints.weights_folder import FILES, IDENTITIES_FILE


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good_checkpoint(tmp_path / "ckpt.pkl")
    layout = Layout(
        plane_channels=4,
        neural_rendering_resolution=16,
        rendering={"depth_resolution": 6, "depth_resolution_importance": 6},
    )
    write_snapshot(tmp_path / "released.pkl", layout)
    page = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    lines = [
        line
        for code in re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        for line in code.splitlines()
    ]
    lines = [line for line in lines if line.startswith("python export.py ")]
    assert len(lines) >= 5
    for line in lines:
        ended = call(export.main, *shlex.split(line, comments=True)[2:]).assert_done()
        assert [
            line for line in ended.lines if not line.startswith("note: weights released by others")
        ] == []
    call(gen_samples.main, "--network", "heads", "--seeds", "0-3").assert_done()
    first = dict(load_generator("ckpt.pkl").state_dict())
    for name in ("small.pkl", "heads", "again.pkl"):
        assert differing(first, dict(load_generator(name).state_dict())) == []
    assert {path.name for path in (tmp_path / "heads").iterdir()} == {*FILES} - {IDENTITIES_FILE}
    assert sorted(path.name for path in tmp_path.glob("*.onnx")) == [
        "heads.image.onnx",
        "heads.planes.onnx",
    ]
    assert len(list((tmp_path / "out").glob("seed*.png"))) == 4
    assert (
        torch.load("ours.pkl", weights_only=True)["G_ema"].keys()
        >= load_generator("released.pkl").state_dict().keys()
    )
