"""train.py as people run it: whole runs, going on, other people's weights, and everything that can be wrong."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from tests.released_layout import Call, Layout, write_pickle, write_snapshot
from tests.tiny import (
    BATCH,
    TINY_OPTIONS,
    Ended,
    call,
    differing,
    encode,
    finish,
    kimg,
    only_run,
    orbit_labels,
    pictures,
    start,
    state_in,
    write_dataset,
)
from training import run_folder
from training.checkpoint import Checkpoint, load_checkpoint, load_weights, save_checkpoint
from training.config import Config, from_dict
from training.launch import set_aside_later
from training.trainer import Trainer

ADA = ("--aug", "ada", "--p", "0.4", "--set", "augment.kimg=0.1")
RUN_OPTIONS = (*TINY_OPTIONS, *ADA)


def train_here(*arguments: str | Path) -> Ended:
    """The command in this process."""
    return call(train.main, *arguments)


def snapshot_in(run_dir: Path) -> Path:
    return sorted(run_dir.glob("network-snapshot-*.pkl"))[-1]


def files_below(folder: Path) -> dict[str, tuple[int, int]]:
    """All files with their sizes and times."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "blots.zip")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """Run folder and output of six undisturbed steps in a process of their own."""
    outdir = tmp_path_factory.mktemp("whole")
    ended = finish(start("train.py", "--data", data, "--outdir", outdir, *RUN_OPTIONS, "--kimg", kimg(6)))
    ended.assert_done()
    return only_run(outdir), ended


@pytest.fixture(scope="module")
def half(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of the first three of these steps; not to be changed."""
    outdir = tmp_path_factory.mktemp("half")
    train_here("--data", data, "--outdir", outdir, *RUN_OPTIONS, "--kimg", kimg(3)).assert_done()
    return only_run(outdir)


@pytest.fixture
def half_copy(half: Path, tmp_path: Path) -> Path:
    """A copy of that folder in an outdir of its own."""
    target = tmp_path / "runs" / half.name
    target.mkdir(parents=True)
    for path in half.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


# ---------------------------------------------------------------------------------------------------------------------
# What a run leaves


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
    health = {"Loss/G", "Loss/D", "Logits/real", "Logits/fake", "Gradients/norm_G", "Gradients/nonfinite_D", "Depth/spread", "Augment/p"}
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
    assert {"Loss/G", "Loss/D", "Loss/R1", "Logits/real", "Augment/p", "Progress/images_per_second"} <= set(tags["scalars"])
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
    assert not [name for name in os.listdir(run_dir) if name.endswith(".tmp") or name.startswith(".")]


# ---------------------------------------------------------------------------------------------------------------------
# Going on


def test_three_steps_and_three_more_are_six(whole: tuple[Path, Ended], half_copy: Path) -> None:
    ended = finish(start("train.py", "--resume", half_copy, "--kimg", kimg(6), "--gpus", "0"))
    ended.assert_done()
    assert str(half_copy) in ended.out
    assert not differing(state_in(half_copy), state_in(whole[0]))
    kept = load_checkpoint(snapshot_in(half_copy))
    assert kept.config == load_checkpoint(snapshot_in(whole[0])).config
    assert kept.augment["p"] != 0.4
    lines = [json.loads(line)["kimg"] for line in (half_copy / "stats.jsonl").read_text().splitlines()]
    assert lines == [0.004, 0.008, 0.012, 0.016, 0.02, 0.024]
    assert json.loads((half_copy / "training_options.json").read_text())["training"]["kimg"] == 0.024


@pytest.mark.parametrize("form", ["folder", "file", "latest"])
def test_ways_to_name_a_run(half_copy: Path, data: Path, form: str) -> None:
    named = {"folder": half_copy, "file": snapshot_in(half_copy), "latest": Path("latest")}[form]
    same = ["--data", str(data), *RUN_OPTIONS] if form == "latest" else []
    train_here("--resume", named, "--outdir", half_copy.parent, *same, "--kimg", kimg(4)).assert_done()
    assert load_checkpoint(snapshot_in(half_copy)).progress["images"] == 16
    assert os.listdir(half_copy.parent) == [half_copy.name]


def test_latest_without_a_run_starts_one(data: Path, tmp_path: Path) -> None:
    train_here("--resume", "latest", "--data", data, "--outdir", tmp_path / "runs", *TINY_OPTIONS, "--kimg", kimg(1)).assert_done()
    assert load_checkpoint(snapshot_in(only_run(tmp_path / "runs"))).progress["images"] == BATCH


def test_a_file_called_latest_is_not_meant(half_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(half_copy.parent)
    Path("latest").write_text("my notes")
    ended = train_here("--resume", "latest", "--outdir", half_copy.parent, "--dry-run").assert_done()
    assert json.loads(ended.out)["training"]["batch"] == BATCH


REFUSED: tuple[tuple[tuple[str, ...], str], ...] = (
    (("--cfg", "ffhq"), "--cfg"),
    (("--sizes", "published"), "--sizes"),
    (("--gamma", "3"), "--gamma"),
    (("--batch", "8"), "--batch"),
    (("--batch-gpu", "2"), "--batch-gpu"),
    (("--mirror",), "--mirror"),
    (("--aug", "noaug"), "--aug"),
    (("--p", "0.5"), "--p"),
    (("--target", "0.5"), "--target"),
    (("--seed", "1"), "--seed"),
    (("--freeze-d", "1"), "--freeze-d"),
    (("--gen-pose-cond",), "--gen-pose-cond"),
    (("--nrr-final", "16"), "--nrr-final"),
    (("--precision", "bf16"), "--precision"),
    (("--set", "rendering.depth_resolution=6"), "--set rendering.depth_resolution"),
    (("--set", "generator.w_dim=16"), "--set generator.w_dim"),
)


@pytest.mark.parametrize(("options", "named"), REFUSED)
def test_a_run_keeps_its_options(half: Path, options: tuple[str, ...], named: str) -> None:
    before = files_below(half)
    train_here("--resume", half, "--kimg", "1", *options).assert_refused(2, named, "--init-from")
    assert files_below(half) == before


def test_all_refused_options_are_named(half: Path) -> None:
    train_here("--resume", half, "--gamma", "3", "--seed", "4", "--tick", "1").assert_refused(2, "--gamma", "--seed")


def test_other_data_are_refused(half: Path, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other.zip")
    train_here("--resume", half, "--data", other).assert_refused(2, "--data")


def test_a_run_may_grow_but_not_shrink(half: Path) -> None:
    train_here("--resume", half, "--kimg", kimg(2)).assert_refused(2, "--kimg", "only grow")


@pytest.mark.parametrize("options", [("--tick", "1", "--snap", "9", "--workers", "0"), ("--seed", "0", "--batch", "4", "--aug", "ada")])
def test_options_that_may_be_given_again(half: Path, options: tuple[str, ...]) -> None:
    config = json.loads(train_here("--resume", half, *options, "--dry-run").assert_done().out)
    assert config["training"]["seed"] == 0


def test_weights_without_a_run_cannot_be_resumed(half: Path, tmp_path: Path) -> None:
    source = load_checkpoint(snapshot_in(half))
    only_weights = tmp_path / "network-snapshot-000000.pkl"
    save_checkpoint(only_weights, Checkpoint(config=source.config, G_ema=source.G_ema))
    train_here("--resume", only_weights).assert_refused(1, "--init-from")
    assert os.listdir(tmp_path) == [only_weights.name]


# ---------------------------------------------------------------------------------------------------------------------
# Signals


def wait_for(condition: Callable[[], bool], process: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_sigterm_saves_says_how_to_go_on_and_loses_nothing(data: Path, tmp_path: Path) -> None:
    outdir = tmp_path / "runs"
    process = start("train.py", "--data", data, "--outdir", outdir, *RUN_OPTIONS, "--snap", "0", "--kimg", "1000")
    wait_for(lambda: any(outdir.glob("*/stats.jsonl")), process)
    process.send_signal(signal.SIGTERM)
    ended = finish(process).assert_done()
    run_dir = only_run(outdir)
    assert f"python train.py --resume {run_dir}" in ended.out
    assert "SIGTERM" in ended.out
    steps = load_checkpoint(snapshot_in(run_dir)).progress["steps"]
    assert steps >= 1

    again = train_here("--resume", run_dir, "--minutes", "1e-9").assert_done()
    assert "Time limit" in again.out
    resumed = state_in(run_dir)
    assert resumed["progress"]["steps"] == steps + 1
    train_here("--data", data, "--outdir", tmp_path / "whole", *RUN_OPTIONS, "--kimg", kimg(steps + 1)).assert_done()
    assert not differing(resumed, state_in(only_run(tmp_path / "whole")))


def test_sigterm_before_the_run_begins_leaves_nothing(data: Path, tmp_path: Path) -> None:
    process = start("train.py", "--data", data, "--outdir", tmp_path / "runs", *RUN_OPTIONS, "--kimg", "1000")
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    ended = finish(process)
    assert ended.status == -signal.SIGTERM
    assert not (tmp_path / "runs").exists()


def test_sigterm_right_after_the_run_folder_appears(data: Path, tmp_path: Path) -> None:
    outdir = tmp_path / "runs"
    process = start("train.py", "--data", data, "--outdir", outdir, *RUN_OPTIONS, "--kimg", "1000")
    wait_for(lambda: outdir.exists() and any(outdir.iterdir()), process)
    process.send_signal(signal.SIGTERM)
    ended = finish(process)
    run_dir = only_run(outdir)
    if ended.status == 0:
        assert load_checkpoint(snapshot_in(run_dir)).progress["steps"] >= 0
    else:  # a moment before anything was written
        assert ended.status == -signal.SIGTERM
        assert os.listdir(run_dir) == []


def test_ctrl_c_is_no_error(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer._discriminator_main

    def interrupted(trainer: Trainer, *arguments: Any) -> None:
        if trainer.progress.steps == 1:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)  # an impatient person
        original(trainer, *arguments)

    monkeypatch.setattr(Trainer, "_discriminator_main", interrupted)
    ended = train_here("--data", data, "--outdir", tmp_path / "runs", *RUN_OPTIONS, "--kimg", "1000").assert_done()
    run_dir = only_run(tmp_path / "runs")
    assert "Stopped by SIGINT" in ended.out
    assert f"python train.py --resume {run_dir}" in ended.out
    assert load_checkpoint(snapshot_in(run_dir)).progress["steps"] == 2


def test_minutes(data: Path, tmp_path: Path) -> None:
    limit = ("--kimg", "1000", "--minutes", "0.0001")
    ended = train_here("--data", data, "--outdir", tmp_path / "runs", *TINY_OPTIONS, *limit).assert_done()
    run_dir = only_run(tmp_path / "runs")
    assert "Time limit reached" in ended.out
    assert f"--resume {run_dir}" in ended.out
    assert load_checkpoint(snapshot_in(run_dir)).progress["steps"] == 1


def test_two_processes_train_and_stop_together(data: Path, tmp_path: Path) -> None:
    outdir = tmp_path / "runs"
    process = start("train.py", "--data", data, "--outdir", outdir, *RUN_OPTIONS, "--procs", "2", "--kimg", "1000")
    wait_for(lambda: any(outdir.glob("*/stats.jsonl")), process)
    process.send_signal(signal.SIGTERM)  # to the parent alone, as batch systems do
    ended = finish(process).assert_done()
    assert "2 process(es)" in ended.out
    assert "Minibatch statistics over groups of 2 samples instead of 4" in ended.out
    assert "SIGTERM" in ended.out
    assert ended.out.count("Saved ") == 1
    state = state_in(only_run(outdir))
    assert state["progress"]["images"] == BATCH * state["progress"]["steps"] > 0
    assert all(bool(value.isfinite().all()) for name in ("G", "D", "G_ema") for value in state[name].values())


# ---------------------------------------------------------------------------------------------------------------------
# Weights of other runs


def check_fine_tuning(config: dict[str, Any]) -> None:
    training = config["training"]
    assert training["ema_rampup"] is None
    assert training["blur_sigma"] == 0
    assert training["swap_start"] == training["swap_final"]
    assert config["augment"]["kimg"] == 100


@pytest.mark.parametrize("way", [("--aug", "ada"), ("--set", "augment.mode=ada")])
def test_init_from_changes_what_fine_tuning_changes(half: Path, data: Path, way: tuple[str, str]) -> None:
    options = ("--data", data, "--gpus", "0", "--batch", "4", "--init-from", snapshot_in(half), "--cfg", "afhq", *way)
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


def check_same_parameters(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], but: tuple[str, ...] = ()) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not name.endswith(but) and not torch.equal(found[name], expected[name])] == []


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
    options = ("--data", data, "--outdir", tmp_path / "runs", "--gpus", "0", "--batch", "1", "--precision", "fp32", *STANDSTILL)
    small = ("--nrr-initial", "8", "--set", "training.density_reg_points=20")
    ended = train_here(*options, *small, "--init-from", snapshot, "--kimg", "0.001").assert_done()
    assert "Traceback" not in ended.err
    run_dir = only_run(tmp_path / "runs")
    check_fine_tuning(json.loads((run_dir / "training_options.json").read_text()))
    weights, state = load_weights(snapshot), state_in(run_dir)
    assert weights.G is not None
    kept = {name: value for name, value in state["G"].items() if name in weights.G}
    assert len(kept) > 80
    check_same_parameters(kept, {name: weights.G[name] for name in kept}, but=("w_avg", "resample_filter"))
    config = load_checkpoint(snapshot_in(run_dir)).config
    assert config.model.rendering.fine_sampling == "released"
    assert not mark.exists()


def test_two_stages(half: Path, data: Path, tmp_path: Path) -> None:
    options = ("--data", data, "--outdir", tmp_path, "--gpus", "0", "--batch", "4", "--tick", "0.004", "--snap", "1")
    stage = ("--init-from", snapshot_in(half), "--nrr-final", "16", "--nrr-fade-kimg", "0.016")
    train_here(*options, *stage, "--kimg", kimg(3)).assert_done()
    run_dir = only_run(tmp_path)

    def resolutions() -> list[float]:
        return [json.loads(line)["Schedule/resolution"] for line in (run_dir / "stats.jsonl").read_text().splitlines()]

    assert resolutions() == [8, 10, 12]
    assert load_checkpoint(snapshot_in(run_dir)).config.model.rendering.resolution == 14
    train_here("--resume", run_dir, "--kimg", kimg(6)).assert_done()
    assert resolutions() == [8, 10, 12, 14, 16, 16]
    assert load_checkpoint(snapshot_in(run_dir)).config.model.rendering.resolution == 16


def test_weights_for_other_pictures_are_refused(half: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "large.zip", count=4, resolution=64)
    options = ("--data", data, "--outdir", tmp_path / "runs", "--gpus", "0", "--init-from", snapshot_in(half))
    train_here(*options).assert_refused(1, "--init-from", "32 pixels", "64")
    assert not (tmp_path / "runs").exists()


def test_resume_and_init_from_exclude_each_other(half: Path) -> None:
    train_here("--resume", half, "--init-from", snapshot_in(half)).assert_refused(2, "--resume", "--init-from")


# ---------------------------------------------------------------------------------------------------------------------
# Dry run


def test_a_dry_run_prints_settings_and_leaves_nothing(data: Path, tmp_path: Path) -> None:
    ended = train_here("--data", data, "--outdir", tmp_path / "runs", "--gpus", "0", "--batch", "8", "-n").assert_done()
    config = from_dict(Config, json.loads(ended.out))
    assert config.training.batch == 8
    assert config.training.gamma == 5.0
    assert config.model.resolution == 32
    assert config.model.rendering.ray_start == "auto"
    assert config.model.rendering.box_warp == pytest.approx(1.2 * 2.0 / 2.5, rel=1e-3)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "section", "field", "expected"),
    [
        (("--batch", "4"), "training", "gamma", 10.0),
        (("--batch", "4", "--gamma", "2"), "training", "gamma", 2.0),
        (("--cfg", "ffhq"), "training", "gamma", 1.0),
        (("--cfg", "afhq"), "training", "swap_final", 0.8),
        (("--batch", "16", "--batch-gpu", "4"), "training", "batch_gpu", 4),
        (("--kimg", "0.5"), "training", "kimg", 0.5),
        (("--seed", "9"), "training", "seed", 9),
        (("--freeze-d", "3"), "training", "freeze_d", 3),
        (("--precision", "bf16"), "training", "precision", "bf16"),
        (("--nrr-initial", "16"), "training", "nrr_final", 16),
        (("--nrr-initial", "16", "--nrr-final", "24"), "training", "nrr_initial", 16),
        (("--nrr-initial", "16", "--nrr-final", "24"), "model.rendering", "resolution", 24),
        (("--nrr-fade-kimg", "2.5"), "training", "nrr_fade_kimg", 2.5),
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
def test_options_set_what_they_say(data: Path, options: tuple[str, ...], section: str, field: str, expected: Any) -> None:
    batch = () if "--batch" in options else ("--batch", "8")
    config = json.loads(train_here("--data", data, "--gpus", "0", *batch, *options, "-n").assert_done().out)
    for name in section.split("."):
        config = config[name]
    assert config[field] == expected


# ---------------------------------------------------------------------------------------------------------------------
# Wrong options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--batch", "7", "--batch-gpu", "4"), ("--batch-gpu 4", "7")),
        (("--batch", "6"), ("--batch",)),
        (("--batch", "0"), ("--batch",)),
        (("--batch", "eight"), ("--batch", "eight")),
        (("--gpus", "8"), ("--gpus 8", "--gpus 0")),
        (("--gpus", "-1"), ("--gpus",)),
        (("--procs", "0"), ("--procs",)),
        (("--procs", "3", "--batch", "8"), ("--batch 8", "3")),
        (("--device", "tpu"), ("--device", "tpu")),
        (("--cfg", "cars"), ("--cfg", "cars")),
        (("--gamma", "-1"), ("--gamma",)),
        (("--gamma", "nan"), ("--gamma",)),
        (("--kimg", "0"), ("--kimg",)),
        (("--kimg", "inf"), ("--kimg",)),
        (("--minutes", "nan"), ("--minutes",)),
        (("--tick", "inf"), ("--tick",)),
        (("--snap", "-1"), ("--snap",)),
        (("--seed", "1" + 30 * "0"), ("--seed",)),
        (("--aug", "strong"), ("--aug", "strong")),
        (("--p", "1.5"), ("--p",)),
        (("--target", "2"), ("--target",)),
        (("--freeze-d", "-1"), ("--freeze-d",)),
        (("--nrr-initial", "2"), ("--nrr-initial",)),
        (("--nrr-fade-kimg", "-1"), ("--nrr-fade-kimg",)),
        (("--precision", "fp8"), ("--precision", "fp8")),
        (("--metrics", "fid"), ("--metrics", "fid")),
        (("--workers", "-1"), ("--workers",)),
        (("--set", "training.gama=3"), ("--set", "training.gama")),
        (("--set", "trainings.gamma=3"), ("--set", "trainings")),
        (("--set", "training.gamma=high"), ("--set", "training.gamma", "high")),
        (("--set", "training.gamma"), ("--set", "training.gamma")),
        (("--set", "training.d_reg_interval=0"), ("training.d_reg_interval",)),
        (("--set", "model.resolution=64"), ("model.resolution", "32")),
        (("--set", "augment.interval=0"), ("augment.interval",)),
        (("--no-such-option",), ("--no-such-option",)),
        (("--data",), ("--data",)),
        (("stray",), ("stray",)),
    ],
)
def test_wrong_option_values(data: Path, tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]) -> None:
    train_here("--data", data, "--outdir", tmp_path / "runs", *options).assert_refused(2, *words)
    assert os.listdir(tmp_path) == []


def test_a_wrong_option_in_a_process_of_its_own(data: Path, tmp_path: Path) -> None:
    ended = finish(start("train.py", "--data", data, "--outdir", tmp_path / "runs", "--batch", "7", "--batch-gpu", "4"))
    ended.assert_refused(2, "--batch-gpu")
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------------------------------------------------------------
# Wrong data

PICTURE = encode(pictures(1)[0])
NAME = "00000/img00000003.png"


def labels_with(change: Callable[[list[Any]], Any]) -> list[Any]:
    """Sixteen labels of which the fourth is changed."""
    labels = [[f"00000/img{i:08d}.png", c.tolist()] for i, c in enumerate(orbit_labels(16))]
    labels[3] = change(labels[3])
    return [label for label in labels if label is not None]


def with_numbers(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], Path]:
    labels = labels_with(lambda label: [label[0], change(np.array(label[1])).tolist()])
    return lambda path: write_dataset(path, labels=labels)


def changed_at(index: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(numbers: np.ndarray) -> np.ndarray:
        numbers[index] = value
        return numbers

    return change


def wide_picture() -> bytes:
    return encode(np.zeros((32, 48, 3), np.uint8))


def write_bytes(content: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(content)
        return path

    return write


def write_empty_zip(path: Path) -> Path:
    zipfile.ZipFile(path, "w").close()
    return path


WRONG_DATA: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "missing": (lambda path: path, ("does not exist",)),
    "empty file": (write_bytes(b""), ()),
    "empty zip": (write_empty_zip, ("empty",)),
    "not a zip": (write_bytes(b"these are no pictures" * 100), ("ZIP",)),
    "cut-off zip": (lambda path: write_bytes(write_dataset(path).read_bytes()[:-2000])(path), ("ZIP",)),
    "truncated picture": (lambda path: write_dataset(path, files={NAME: PICTURE[: len(PICTURE) // 2]}), (NAME,)),
    "no picture": (lambda path: write_dataset(path, files={NAME: b"no picture"}), (NAME,)),
    "mixed sizes": (lambda path: write_dataset(path, files={NAME: encode(pictures(1, 64)[0])}), (NAME, "64x64", "32x32")),
    "not square": (lambda path: write_dataset(path, files={NAME: wide_picture()}), (NAME, "48x32")),
    "26 numbers": (with_numbers(lambda numbers: np.append(numbers, 1)), (NAME, "26 numbers")),
    "NaN": (with_numbers(changed_at(0, np.nan)), (NAME, "NaN")),
    "determinant -1": (with_numbers(lambda n: n * np.array([-1, 1, 1, 1] * 3 + [1] * 13)), (NAME, "determinant -1")),
    "pixel intrinsics": (with_numbers(lambda n: n * np.array([1] * 16 + [32] * 6 + [1] * 3)), (NAME, "pixels")),
    "label missing": (lambda path: write_dataset(path, labels=labels_with(lambda _: None)), (NAME, "no label")),
    "other names": (lambda path: write_dataset(path, labels=labels_with(lambda label: ["other.png", label[1]])), ("label",)),
    "no labels": (lambda path: write_dataset(path, files={"dataset.json": b"{}"}), ("dataset.json",)),
    "labels no JSON": (lambda path: write_dataset(path, files={"dataset.json": b"25 numbers"}), ("dataset.json",)),
}


@pytest.mark.parametrize("case", WRONG_DATA)
@pytest.mark.parametrize("cfg", ["auto", "shapenet"])
def test_wrong_data(tmp_path: Path, case: str, cfg: str) -> None:
    make, words = WRONG_DATA[case]
    path = make(tmp_path / "wrong.zip")
    before = os.listdir(tmp_path)
    ended = train_here("--data", path, "--outdir", tmp_path / "runs", "--gpus", "0", "--cfg", cfg, "--batch", "4")
    ended.assert_refused(1, str(path), *words)
    runs = tmp_path / "runs"
    assert not runs.exists() or os.listdir(runs) == []
    assert sorted(set(os.listdir(tmp_path)) - {"runs"}) == sorted(before)


def test_wrong_data_in_a_process_of_its_own(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "wrong.zip", files={NAME: PICTURE[: len(PICTURE) // 2]})
    ended = finish(start("train.py", "--data", path, "--outdir", tmp_path / "runs", *TINY_OPTIONS))
    ended.assert_refused(1, NAME)
    assert os.listdir(tmp_path / "runs") == []


# ---------------------------------------------------------------------------------------------------------------------
# Wrong checkpoints


def hostile(path: Path) -> Path:
    """A pickle that would leave a mark if it were opened the usual way."""
    return write_pickle(path, {"G_ema": Call(os.mkdir, (str(path.parent / "mark"),))})


def hostile_zip(path: Path) -> Path:
    """The same in the form that torch.save writes."""

    class Marker:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(path.parent / "mark"),)

    torch.save({"format": Marker()}, path)
    return path


def foreign(path: Path) -> Path:
    torch.save({"model": torch.zeros(3)}, path)
    return path


def foreign_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "an archive of something")
    return path


WRONG_CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    "missing": lambda path: path,
    "empty": write_bytes(b""),
    "text": write_bytes(b"no checkpoint"),
    "foreign": foreign,
    "foreign zip": foreign_zip,
    "hostile": hostile,
    "hostile zip": hostile_zip,
}


@pytest.mark.parametrize("case", [*WRONG_CHECKPOINTS, "cut off", "cut off early"])
@pytest.mark.parametrize("option", ["--resume", "--init-from"])
def test_wrong_checkpoints(half: Path, data: Path, tmp_path: Path, case: str, option: str) -> None:
    path = tmp_path / "wrong.pkl"
    if case.startswith("cut off"):
        content = snapshot_in(half).read_bytes()
        path.write_bytes(content[: 50 if case == "cut off early" else len(content) * 2 // 3])
    else:
        WRONG_CHECKPOINTS[case](path)
    before = os.listdir(tmp_path)
    train_here("--data", data, "--outdir", tmp_path / "runs", "--gpus", "0", "--batch", "4", option, path).assert_refused(1, str(path))
    assert os.listdir(tmp_path) == before  # no run, and no mark


def test_a_hostile_checkpoint_in_a_process_of_its_own(data: Path, tmp_path: Path) -> None:
    path = hostile(tmp_path / "network-snapshot-000000.pkl")
    for option in ("--resume", "--init-from"):
        finish(start("train.py", "--data", data, "--outdir", tmp_path / "runs", option, path)).assert_refused(1, str(path))
    assert os.listdir(tmp_path) == [path.name]


def test_a_released_snapshot_cannot_be_resumed(tmp_path: Path) -> None:
    path = write_snapshot(tmp_path / "released.pkl")
    train_here("--resume", path).assert_refused(1, str(path), "--init-from")


def test_a_folder_without_snapshots_cannot_be_resumed(tmp_path: Path) -> None:
    train_here("--resume", tmp_path).assert_refused(1, str(tmp_path), "network-snapshot")


def test_a_damaged_newest_snapshot_costs_only_what_it_held(half_copy: Path) -> None:
    newest = half_copy / "network-snapshot-000001.pkl"
    newest.write_bytes(snapshot_in(half_copy).read_bytes()[:-1000])
    ended = train_here("--resume", half_copy, "--kimg", kimg(4)).assert_done()
    assert len(ended.lines) == 1
    assert ended.lines[0].startswith("warning: ")
    assert str(newest) in ended.lines[0]
    assert load_checkpoint(half_copy / "network-snapshot-000000.pkl").progress["images"] == 16


def test_a_checkpoint_whose_settings_are_out_of_range(half: Path, tmp_path: Path) -> None:
    source = load_checkpoint(snapshot_in(half))
    source.config.training.g_reg_interval = 0
    path = tmp_path / "network-snapshot-000000.pkl"
    save_checkpoint(path, source)
    train_here("--resume", path).assert_refused(2, "training.g_reg_interval")


def test_a_checkpoint_whose_weights_do_not_fit(half: Path, data: Path, tmp_path: Path) -> None:
    source = load_checkpoint(snapshot_in(half))
    assert source.G is not None
    source.G["decoder.net.0.weight"] = torch.zeros(3, 3)
    path = tmp_path / "network-snapshot-000000.pkl"
    save_checkpoint(path, source)
    train_here("--resume", path).assert_refused(1, "decoder.net.0.weight")
    options = ("--data", data, "--outdir", tmp_path / "runs", "--gpus", "0", "--batch", "4")
    train_here(*options, "--init-from", path).assert_refused(1, "decoder.net.0.weight")
    assert os.listdir(tmp_path / "runs") == []


# ---------------------------------------------------------------------------------------------------------------------
# Wrong places and full disks


def test_an_outdir_that_is_a_file(data: Path, tmp_path: Path) -> None:
    outdir = tmp_path / "runs"
    outdir.write_text("a file")
    train_here("--data", data, "--outdir", outdir, *TINY_OPTIONS).assert_refused(1, str(outdir))
    assert outdir.read_text() == "a file"


def test_an_outdir_that_cannot_be_written(data: Path, tmp_path: Path) -> None:
    outdir = Path("/proc/runs") if os.geteuid() == 0 else tmp_path  # root may write everywhere but there
    os.chmod(tmp_path, 0o500)
    try:
        train_here("--data", data, "--outdir", outdir / "here", *TINY_OPTIONS).assert_refused(1, str(outdir))
    finally:
        os.chmod(tmp_path, 0o700)
    assert os.listdir(tmp_path) == []


def test_a_run_folder_that_cannot_be_written(half_copy: Path) -> None:
    before = state_in(half_copy)
    (half_copy / "training_options.json").unlink()
    (half_copy / "training_options.json").mkdir()
    train_here("--resume", half_copy, "--kimg", kimg(4)).assert_refused(1, "training_options.json")
    assert not differing(state_in(half_copy), before)


def test_a_full_disk_keeps_the_last_snapshot(whole: tuple[Path, Ended], half_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state_in(half_copy)
    original = os.fsync

    def full(descriptor: int) -> None:
        if "network-snapshot" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        ended = train_here("--resume", half_copy, "--kimg", kimg(6))
    ended.assert_refused(1, "network-snapshot", "No space left on device")
    assert not [name for name in os.listdir(half_copy) if name.startswith(".")]
    assert not differing(state_in(half_copy), before)
    train_here("--resume", half_copy, "--kimg", kimg(6)).assert_done()
    assert not differing(state_in(half_copy), state_in(whole[0]))


def test_a_system_that_refuses_large_files(data: Path, tmp_path: Path) -> None:
    process = start("train.py", "--data", data, "--outdir", tmp_path / "runs", *TINY_OPTIONS, "--snap", "0", "--kimg", kimg(2))
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (150_000, 150_000))  # less than a checkpoint, more than the rest
    ended = finish(process)
    ended.assert_refused(1, "network-snapshot")
    names = os.listdir(only_run(tmp_path / "runs"))
    assert "stats.jsonl" in names
    assert not [name for name in names if name.startswith(".") or "network" in name]


def test_a_disk_that_is_full_for_tensorboard(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_folder.SummaryWriter, "add_scalar", full)
    ended = train_here("--data", data, "--outdir", tmp_path / "runs", *TINY_OPTIONS, "--kimg", kimg(3)).assert_done()
    run_dir = only_run(tmp_path / "runs")
    assert len((run_dir / "stats.jsonl").read_text().splitlines()) == 3
    assert ended.out.count("No space left on device") == 1
    assert load_checkpoint(snapshot_in(run_dir)).progress["steps"] == 3


# ---------------------------------------------------------------------------------------------------------------------
# Built-in data


def test_without_data_the_built_in_heads_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def generate(path: Path, settings: Any) -> None:
        assert (settings.count, settings.resolution) == (6000, 64)
        made.append(path)
        path.parent.mkdir(parents=True)
        write_dataset(path, resolution=64)

    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("data_tools.heads.generate_heads", generate)
    for _ in range(2):
        ended = train_here("--gpus", "0", "-n").assert_done()
    assert len(made) == 1
    config = json.loads(ended.out)
    assert config["data"]["path"] == str(made[0])
    assert config["model"]["rendering"]["background"] == pytest.approx([77 / 255, 153 / 255, 158 / 255])
    assert config["training"]["gamma"] == 0.5


def test_the_command_is_a_click_command() -> None:
    assert isinstance(train.main, click.Command)


@pytest.mark.parametrize(
    ("options", "status", "expected"),
    [
        (("--aug", "fixed"), 2, ("--aug fixed", "--p")),
        (("--aug", "noaug", "--p", "0.3"), 2, ("--p 0.3", "--aug")),
        (("--resume", "https://example.invalid/network.pkl"), 1, ("--resume", "--init-from")),
    ],
)
def test_options_without_effect_are_refused(data: Path, tmp_path: Path, options: tuple[str, ...], status: int, expected: tuple[str, ...]):
    result = call(train.main, "--data", str(data), "--outdir", str(tmp_path / "runs"), *TINY_OPTIONS, *options)
    result.assert_refused(status, *expected)
    assert not (tmp_path / "runs").exists()


def test_resuming_an_older_snapshot_sets_later_ones_aside(tmp_path: Path):
    older, later = (tmp_path / f"network-snapshot-00000{number}.pkl" for number in (1, 2))
    for path in (older, later):
        path.write_bytes(b"x")
    set_aside_later(older)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["network-snapshot-000001.pkl", "network-snapshot-000002.superseded"]
