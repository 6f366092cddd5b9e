"""train.py --init-from: weights of other runs, ours or released."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.released_layout import Layout, write_snapshot
from tests.tiny import kimg, only_run, state_in, tiny_config, write_dataset
from tests.train.runs import snapshot_in, train_here
from training.checkpoints.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from training.config.settings import Config, from_dict
from training.networks.generator import Generator


def check_fine_tuning(config: dict[str, Any]) -> None:
    training = config["training"]
    assert training["ema_rampup"] is None
    assert training["blur_sigma"] == 0
    assert training["swap_start"] == training["swap_final"]
    assert config["augment"]["kimg"] == 100


@pytest.mark.parametrize("way", [("--aug", "ada"), ("--set", "augment.mode=ada")])
def test_init_from_changes_what_fine_tuning_changes(
    half: Path, data: Path, way: tuple[str, str]
) -> None:
    options = (
        "--data",
        data,
        "--gpus",
        "0",
        "--batch",
        "4",
        "--init-from",
        snapshot_in(half),
        "--cfg",
        "afhq",
        *way,
    )
    config = json.loads(train_here(*options, "--dry-run").assert_done().out)
    check_fine_tuning(config)
    assert config["augment"]["mode"] == "ada"
    assert config["training"]["swap_final"] == 0.8
    assert config["training"]["gamma"] == 5.0
    source = load_checkpoint(snapshot_in(half)).config
    assert from_dict(Config, config).model == source.model


def test_what_fine_tuning_changes_can_be_set(half: Path, data: Path) -> None:
    options = ("--data", data, "--gpus", "0", "--batch", "4", "--init-from", snapshot_in(half))
    changes = ("--set", "training.blur_sigma=3", "--set", "augment.kimg=7")
    config = json.loads(train_here(*options, *changes, "--dry-run").assert_done().out)
    assert (config["training"]["blur_sigma"], config["augment"]["kimg"]) == (3, 7)


STANDSTILL = ("--set", "training.lr_generator=1e-30", "--set", "training.lr_discriminator=1e-30")


def check_same_parameters(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], but: tuple[str, ...] = ()
) -> None:
    assert found.keys() == expected.keys()
    assert [
        name
        for name in found
        if not name.endswith(but) and not torch.equal(found[name], expected[name])
    ] == []


def test_init_from_takes_weights_only(half: Path, data: Path, tmp_path: Path) -> None:
    source = load_checkpoint(snapshot_in(half))
    options = ("--data", data, "--outdir", tmp_path, "--gpus", "0", "--batch", "4", *STANDSTILL)
    train_here(*options, "--init-from", snapshot_in(half), "--kimg", kimg(1)).assert_done()
    state = state_in(only_run(tmp_path))
    assert state["progress"]["steps"] == 1
    assert source.G is not None
    assert source.D is not None
    check_same_parameters(state["G"], source.G, but=("w_avg",))
    check_same_parameters(state["D"], source.D)
    assert not torch.equal(state["G"]["backbone.mapping.w_avg"], source.G["backbone.mapping.w_avg"])


def test_a_released_snapshot_can_be_trained_on(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    source = f"open({str(mark)!r}, 'w').write('it ran')\n"
    few = {"depth_resolution": 4, "depth_resolution_importance": 4}
    snapshot = write_snapshot(tmp_path / "released.pkl", Layout(module_src=source, rendering=few))
    data = write_dataset(tmp_path / "large.zip", count=4, resolution=128)
    options = (
        "--data",
        data,
        "--outdir",
        tmp_path / "runs",
        "--gpus",
        "0",
        "--batch",
        "1",
        "--precision",
        "fp32",
        *STANDSTILL,
    )
    small = ("--nrr-initial", "8", "--set", "training.density_reg_points=20")
    ended = train_here(*options, *small, "--init-from", snapshot, "--kimg", "0.001").assert_done()
    assert "Traceback" not in ended.err
    run_dir = only_run(tmp_path / "runs")
    check_fine_tuning(json.loads((run_dir / "training_options.json").read_text()))
    weights, state = load_weights(snapshot), state_in(run_dir)
    assert weights.G is not None
    kept = {name: value for name, value in state["G"].items() if name in weights.G}
    assert len(kept) > 80
    check_same_parameters(
        kept, {name: weights.G[name] for name in kept}, but=("w_avg", "resample_filter")
    )
    config = load_checkpoint(snapshot_in(run_dir)).config
    assert config.model.rendering.fine_sampling == "released"
    assert not mark.exists()


def test_two_stages(half: Path, data: Path, tmp_path: Path) -> None:
    options = (
        "--data",
        data,
        "--outdir",
        tmp_path,
        "--gpus",
        "0",
        "--batch",
        "4",
        "--tick",
        "0.004",
        "--snap",
        "1",
    )
    stage = ("--init-from", snapshot_in(half), "--nrr-final", "16", "--nrr-fade-kimg", "0.016")
    train_here(*options, *stage, "--kimg", kimg(3)).assert_done()
    run_dir = only_run(tmp_path)

    def resolutions() -> list[float]:
        return [
            json.loads(line)["Schedule/resolution"]
            for line in (run_dir / "stats.jsonl").read_text().splitlines()
        ]

    assert resolutions() == [8, 10, 12]
    assert load_weights(snapshot_in(run_dir)).config.rendering.resolution == 14
    train_here("--resume", run_dir, "--kimg", kimg(6)).assert_done()
    assert resolutions() == [8, 10, 12, 14, 16, 16]
    assert load_weights(snapshot_in(run_dir)).config.rendering.resolution == 16


def test_weights_for_larger_pictures_are_refused(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "small.zip", count=4)
    config = tiny_config()
    config.model.resolution = 64
    save_checkpoint(
        tmp_path / "large.pkl", Checkpoint(config, G_ema=Generator(config.model).state_dict())
    )
    options = ("--data", data, "--outdir", tmp_path / "runs", "--gpus", "0")
    train_here(*options, "--init-from", tmp_path / "large.pkl").assert_refused(
        1, "--init-from", "64 pixels", "32", "resize the data"
    )
    assert not (tmp_path / "runs").exists()


def test_resume_and_init_from_exclude_each_other(half: Path) -> None:
    train_here("--resume", half, "--init-from", snapshot_in(half)).assert_refused(
        2, "--resume", "--init-from"
    )
