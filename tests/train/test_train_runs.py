"""train.py as people run it: what whole runs leave behind, what options set, and data of its
own.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from tests.tiny import BATCH, Ended, differing, only_run, state_in, write_dataset
from tests.train.runs import snapshot_in, train_here
from training.checkpoints.checkpoint import load_checkpoint
from training.config.settings import Config, from_dict


def test_a_run_says_what_it_does(whole: tuple[Path, Ended]) -> None:
    run_dir, ended = whole
    assert run_dir.name == "00000-blots-shapenet-batch4"
    assert str(run_dir) in ended.out
    assert "CPU" in ended.out
    assert ended.out.count("kimg ") >= 6
    assert "img/s" in ended.err  # the progress bar
    assert "Traceback" not in ended.err + ended.out
    assert ended.lines == []


def test_options_round_trip(whole: tuple[Path, Ended], data: Path) -> None:
    run_dir, _ = whole
    options = from_dict(Config, json.loads((run_dir / "training_options.json").read_text()))
    assert options == load_checkpoint(snapshot_in(run_dir)).config
    assert options.data.path == str(data)
    assert (options.training.batch, options.training.kimg) == (BATCH, 0.024)
    assert (options.augment.mode, options.augment.p) == ("ada", 0.4)
    assert options.model.resolution == 32


def test_statistics_and_log(whole: tuple[Path, Ended]) -> None:
    run_dir, _ = whole
    lines = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    assert [line["kimg"] for line in lines] == [0.004, 0.008, 0.012, 0.016, 0.02, 0.024]
    health = {
        "Loss/G",
        "Loss/D",
        "Logits/real",
        "Logits/fake",
        "Gradients/norm_G",
        "Gradients/nonfinite_D",
        "Depth/spread",
        "Augment/p",
    }
    assert all(health <= set(line) for line in lines)
    assert "Loss/R1" in lines[0]
    assert "Loss/R1" not in lines[1]
    assert all(line["Gradients/nonfinite_D"] == 0 for line in lines)
    log = (run_dir / "log.txt").read_text().splitlines()
    assert sum(line.startswith("kimg") for line in log) == 6
    assert f"Saved {snapshot_in(run_dir)}" in log


def test_tensorboard_has_scalars_and_pictures(whole: tuple[Path, Ended]) -> None:
    run_dir, _ = whole
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    assert {
        "Loss/G",
        "Loss/D",
        "Loss/R1",
        "Logits/real",
        "Augment/p",
        "Progress/images_per_second",
    } <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("Loss/G")] == [4, 8, 12, 16, 20, 24]
    assert {"reals", "fakes", "raw", "depth", "yaw"} <= set(tags["images"])


def test_pictures_of_a_run(whole: tuple[Path, Ended]) -> None:
    run_dir, _ = whole
    sizes = {path.name: Image.open(path).size for path in run_dir.glob("*.png")}
    grid = (8 * 32, 4 * 32)
    assert sizes["reals.png"] == (8 * 32, 2 * 32)  # of the sixteen there are
    assert sizes["fakes-000000.png"] == sizes["raw-000000.png"] == sizes["depth-000000.png"] == grid
    width, height = sizes["yaw-000000.png"]
    assert width % 32 == height % 32 == 0
    assert width >= 3 * height  # colour, raw and depth side by side


def test_nothing_temporary_stays(whole: tuple[Path, Ended]) -> None:
    run_dir, _ = whole
    assert not [
        name for name in os.listdir(run_dir) if name.endswith(".tmp") or name.startswith(".")
    ]


# --------------------------------------------------------------------------------------------------
# Dry run


def test_a_dry_run_prints_settings_and_leaves_nothing(data: Path, tmp_path: Path) -> None:
    ended = train_here(
        "--data", data, "--outdir", tmp_path / "runs", "--gpus", "0", "--batch", "8", "-n"
    ).assert_done()
    config = from_dict(Config, json.loads(ended.out))
    assert config.training.batch == 8
    assert config.training.gamma == pytest.approx(0.0002 * 32**2 / 8)
    assert config.model.resolution == 32
    assert config.model.rendering.ray_start == "auto"
    assert config.model.rendering.box_warp == pytest.approx(1.2 * 2.0 / 2.5, rel=1e-3)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "section", "field", "expected"),
    [
        (("--batch", "4"), "training", "gamma", 0.0002 * 32**2 / 4),
        (("--batch", "4", "--gamma", "2"), "training", "gamma", 2.0),
        (("--cfg", "ffhq"), "training", "gamma", 1.0),
        (("--cfg", "afhq"), "training", "swap_final", 0.8),
        (("--batch", "16", "--batch-gpu", "4"), "training", "batch_gpu", 4),
        (("--kimg", "0.5"), "training", "kimg", 0.5),
        (("--seed", "9"), "training", "seed", 9),
        (("--freeze-d", "3"), "training", "freeze_d", 3),
        (("--precision", "bf16"), "training", "precision", "bf16"),
        (("--precision", "tf32"), "training", "precision", "tf32"),
        (("--nrr-initial", "16"), "model.rendering", "resolution", 16),
        (("--nrr-initial", "16", "--nrr-final", "24"), "training", "resolution_initial", 16),
        (("--nrr-initial", "16", "--nrr-final", "24"), "model.rendering", "resolution", 24),
        (("--nrr-final", "24"), "training", "resolution_initial", 32),
        (("--nrr-final", "24"), "model.rendering", "resolution", 24),
        (("--nrr-fade-kimg", "2.5"), "training", "resolution_fade_kimg", 2.5),
        (("--mirror",), "data", "mirror", True),
        (("--workers", "3"), "data", "workers", 3),
        (("--aug", "fixed", "--p", "0.2"), "augment", "p", 0.2),
        (("--aug", "ada", "--target", "0.7"), "augment", "target", 0.7),
        (("--gen-pose-cond",), "model.generator", "pose_conditioning", True),
        (("--cfg", "ffhq", "--no-gen-pose-cond"), "model.generator", "pose_conditioning", False),
        (("--tick", "0.5"), "snapshot", "tick_kimg", 0.5),
        (("--snap", "0"), "snapshot", "snap_ticks", 0),
        (("--sizes", "published"), "model.generator", "channel_base", 32768),
        (("--set", "discriminator.c_noise=0.5"), "model.discriminator", "c_noise", 0.5),
        (("--gamma", "2", "--set", "training.gamma=3"), "training", "gamma", 3.0),
    ],
)
def test_options_set_what_they_say(
    data: Path, options: tuple[str, ...], section: str, field: str, expected: Any
) -> None:
    batch = () if "--batch" in options else ("--batch", "8")
    config = json.loads(
        train_here("--data", data, "--gpus", "0", *batch, *options, "-n").assert_done().out
    )
    for name in section.split("."):
        config = config[name]
    assert config[field] == expected


# --------------------------------------------------------------------------------------------------
# Built-in data


def test_without_data_the_built_in_heads_are_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def generate(path: Path, settings: Any) -> Path:
        assert (settings.count, settings.resolution) == (6000, 64)
        made.append(path)
        path.parent.mkdir(parents=True)
        return write_dataset(path, resolution=64)

    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("data_tools.heads.dataset.generate_heads", generate)
    # a dry run makes nothing
    before = json.loads(train_here("--gpus", "0", "-n").assert_done().out)
    assert made == []
    assert not (tmp_path / "cache").exists()
    for _ in range(2):
        train.chosen_data({"data": None, "config": None, "dry_run": False, "overrides": ()})
    ended = train_here("--gpus", "0", "-n").assert_done()
    assert len(made) == 1
    config = json.loads(ended.out)
    assert config["data"]["path"] == str(made[0])
    assert config["model"]["rendering"]["background"] == pytest.approx(
        [77 / 255, 153 / 255, 158 / 255]
    )
    assert config["training"]["gamma"] == 0.5
    assert config["data"].pop("content").startswith("16 pictures, names ")
    assert before["data"].pop("content") == ""
    assert before == config


def test_the_scene_of_heads_that_are_not_there_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path / "cache"))
    train_here("--gpus", "0", "--cfg", "auto", "-n").assert_refused(1, "--cfg auto", "rendered")


# --------------------------------------------------------------------------------------------------
# Settings from a file


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--cfg", "ffhq", "--precision", "fp16", "--set", "discriminator.conv_clamp=null"),
        ("--nrr-final", "24", "--nrr-initial", "8", "--aug", "ada"),
    ],
)
def test_a_run_starts_from_what_a_dry_run_printed(
    data: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    start = ("--data", data, "--gpus", "0", "--batch", "8")
    printed = train_here(*start, *options, "-n", "--json").assert_done()
    assert printed.err == ""
    file = tmp_path / "run.json"
    file.write_text(printed.out)
    again = train_here("--config", file, "--gpus", "0", "-n", "--json").assert_done()
    assert json.loads(again.out) == json.loads(printed.out)


def test_options_go_before_the_file(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text('{"training": {"gamma": 3, "seed": 7}, "model": {"resolution": 32}}')
    options = ("--data", data, "--gpus", "0", "--set", "training.gamma=4", "--batch", "8")
    config = json.loads(train_here("--config", file, *options, "-n").assert_done().out)
    assert config["training"]["gamma"] == 4
    assert config["training"]["seed"] == 7
    assert config["training"]["batch"] == 8
    assert config["data"]["path"] == str(data)


@pytest.mark.parametrize("content", ["{}", '{"model": {}}', '{"training": {"gamma": 3}}'])
def test_a_file_need_not_say_all(data: Path, tmp_path: Path, content: str) -> None:
    """The pictures say their size."""
    file = tmp_path / "run.json"
    file.write_text(content)
    options = ("--data", data, "--gpus", "0", "--batch", "8")
    config = json.loads(train_here("--config", file, *options, "-n").assert_done().out)
    assert config["model"]["resolution"] == 32


def test_a_run_from_a_file(whole: tuple[Path, Ended], tmp_path: Path) -> None:
    """The options that a run keeps make the same run again."""
    file = whole[0] / "training_options.json"
    ended = train_here("--config", file, "--gpus", "0", "--outdir", tmp_path).assert_done()
    assert "Settings of preset shapenet" in ended.out
    assert not differing(state_in(only_run(tmp_path)), state_in(whole[0]))


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ("{", (), ("--config", "not JSON")),
        ('{"preset": "cars"}', (), ("--config", "cars")),
        ('{"training": {"gama": 1}}', (), ("gama", "known are")),
        (
            '{"model": {"resolution": 32}, "training": {"gamma": -1}}',
            (),
            ("training.gamma is -1", "at least 0"),
        ),
        ("{}", ("--cfg", "ffhq"), ("--config", "--cfg")),
        ("{}", ("--resume", "latest"), ("--config", "--resume")),
        (None, (), ("--config", "No such file")),
    ],
)
def test_wrong_files_of_settings(
    data: Path,
    tmp_path: Path,
    content: str | None,
    options: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    file = tmp_path / "run.json"
    if content is not None:
        file.write_text(content)
    ended = train_here("--config", file, "--data", data, "--gpus", "0", *options, "-n")
    ended.assert_refused(ended.status, *words)
    assert ended.status in (1, 2)


def test_json_goes_with_a_dry_run(data: Path) -> None:
    train_here("--data", data, "--json").assert_refused(2, "--json", "--dry-run")


def test_the_command_is_a_click_command() -> None:
    assert isinstance(train.main, click.Command)
