"""A generator as a folder of safetensors: bit for bit there and back, readable by others, and bad
folders are one line each.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from dnnlib.console import UserError
from open_eg3d import load_generator
from tests.released_layout import Layout, write_snapshot
from tests.tiny import differing, orbit_labels, tiny_config
from training.cameras import CameraSummary
from training.checkpoints.checkpoint import build_generator, load_weights
from training.checkpoints.released.interop import Weights
from training.checkpoints.weights_folder import (
    CAMERAS_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    is_weights_folder,
    read_weights_folder,
    write_weights_folder,
)
from training.networks.generator import Generator


def tiny_weights() -> Weights:
    config = tiny_config("rendering.background=[1,0.1,1]", "superresolution.conv_clamp=null").model
    torch.manual_seed(0)
    state = Generator(config).state_dict()
    state["backbone.mapping.w_avg"] = torch.randn(8).to(torch.float32)
    return Weights(
        config, None, None, state, CameraSummary.from_labels(orbit_labels(9)).to_dict(), "ours"
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_weights_folder(tmp_path / "heads", tiny_weights())
    return tmp_path / "heads"


def test_bit_for_bit_there_and_back(folder: Path) -> None:
    expected, found = tiny_weights(), read_weights_folder(folder)
    assert found.config == expected.config
    assert (
        differing(
            {"G": expected.G_ema, "cameras": expected.cameras},
            {"G": found.G_ema, "cameras": found.cameras},
        )
        == []
    )
    assert list(found.G_ema or {}) != []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.0, 1e-42])
def test_odd_numbers_come_back(folder: Path, value: float) -> None:
    weights = tiny_weights()
    assert weights.G_ema is not None
    weights.G_ema["backbone.mapping.w_avg"].fill_(value)
    write_weights_folder(folder, weights)
    state = read_weights_folder(folder).G_ema or {}
    assert (
        state["backbone.mapping.w_avg"].view(torch.int32).tolist()
        == weights.G_ema["backbone.mapping.w_avg"].view(torch.int32).tolist()
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_dtypes_and_strides_come_back(folder: Path, dtype: torch.dtype) -> None:
    weights = tiny_weights()
    shared = torch.arange(12).reshape(3, 4).to(dtype)
    weights.G_ema = {
        "turned": shared.t(),
        "part": shared[1:, ::2],
        "whole": shared,
        "empty": shared[:0],
        "one": shared[0, 0],
    }
    write_weights_folder(folder, weights)
    state = read_weights_folder(folder).G_ema or {}
    assert {name: (tensor.dtype, tensor.tolist()) for name, tensor in state.items()} == {
        name: (dtype, tensor.tolist()) for name, tensor in weights.G_ema.items()
    }


def test_other_programs_read_it(folder: Path) -> None:
    state = safetensors.torch.load_file(folder / WEIGHTS_FILE)
    assert "superresolution.block0.conv0.weight" in state
    assert json.loads((folder / CONFIG_FILE).read_text())["model"]["generator"]["z_dim"] == 8


def test_the_same_pictures(folder: Path) -> None:
    assert is_weights_folder(folder)
    first, second = build_generator(tiny_weights()), load_generator(folder)
    z, c = torch.randn(1, first.z_dim), orbit_labels(1)
    assert torch.equal(first(z, c).image, second(z, c).image)
    assert load_weights(folder).source == "ours"


def test_released_snapshots(tmp_path: Path) -> None:
    weights = load_weights(write_snapshot(tmp_path / "released.pkl", Layout(plane_channels=4)))
    write_weights_folder(tmp_path / "folder", weights)
    found = read_weights_folder(tmp_path / "folder")
    assert found.config == weights.config
    assert (
        differing(
            {"G": weights.G_ema, "c": weights.cameras}, {"G": found.G_ema, "c": found.cameras}
        )
        == []
    )


def test_without_cameras(tmp_path: Path) -> None:
    weights = tiny_weights()
    weights.cameras = None
    write_weights_folder(tmp_path, weights)
    assert read_weights_folder(tmp_path).cameras is None
    assert not (tmp_path / CAMERAS_FILE).exists()


def test_a_folder_written_over_keeps_nothing_of_the_old_one(folder: Path) -> None:
    weights = tiny_weights()
    weights.cameras = {"radius": 1.0, "pivot": [0.0, 0.0, 0.0]}
    write_weights_folder(folder, weights)
    assert read_weights_folder(folder).cameras == weights.cameras


def test_a_write_that_fails_leaves_no_whole_looking_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save", fail)
    with pytest.raises(UserError, match="No space left"):
        write_weights_folder(folder, tiny_weights())
    assert not is_weights_folder(folder)
    with pytest.raises(UserError, match="is a folder; name a checkpoint file"):
        load_weights(folder)


def test_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no generator"):
        write_weights_folder(tmp_path, Weights(tiny_config().model, None, None, None, None, "ours"))


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_generator(folder)
    assert str(folder) in str(caught.value) or "generator" in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(folder: Path, **changes: Any) -> Path:
    """The folder with other entries in its config.json; `...` removes one."""
    content = {**json.loads((folder / CONFIG_FILE).read_text()), **changes}
    (folder / CONFIG_FILE).write_text(
        json.dumps({key: value for key, value in content.items() if value is not ...})
    )
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": ...}, "another program"),
        ({"format": {"name": "open-eg3d weights", "version": 2}}, "update the program"),
        ({"format": {"name": "open-eg3d weights", "version": "1"}}, "another program"),
        ({"model": ...}, "group of settings"),
        ({"model": {"resolution": 32, "layers": 3}}, "unknown setting 'layers'"),
        ({"model": {"generator": {"mapping_layers": 10**9}}}, "must be from 1 to 64"),
        ({"model": {"generator": {"z_dim": 10**9}}}, "z_dim is above"),
        ({"model": {"superresolution": {"input_resolution": -1}}}, "input_resolution"),
        ({"model": {"rendering": {"depth_resolution": 10**12}}}, "must be from 2 to 4096"),
        ({"cameras": [1]}, "wrong form"),
        ({"model": {"resolution": 64}}, "weights do not fit"),
    ],
)
def test_settings_that_are_wrong(folder: Path, changes: dict[str, Any], words: str) -> None:
    assert words in refused(changed(folder, **changes))


def test_missing_and_foreign_files(folder: Path) -> None:
    (folder / CONFIG_FILE).write_text("{")
    assert "not JSON" in refused(folder)
    (folder / CONFIG_FILE).write_text(json.dumps({"architectures": ["Bert"]}))
    assert "another program" in refused(folder)
    write_weights_folder(folder, tiny_weights())
    (folder / WEIGHTS_FILE).unlink()
    assert "missing" in refused(folder)
