"""The loop around the steps: ticks, snapshots, the run folder, stopping and going on."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dnnlib.console import UserError
from dnnlib.files import atomic_write
from tests.tiny import differing, tiny_config, write_dataset
from torch_utils.distributed.processes import StopSignals
from training.cameras import CameraSummary
from training.checkpoints.checkpoint import load_checkpoint, load_weights
from training.config.settings import Config, from_dict, to_dict
from training.gan.health import CollapseWatch
from training.gan.trainer import Trainer
from training.networks.generator import Generator
from training.run import loop
from training.run.folder import RunFolder, keep_lines_until
from training.run.loop import RunOptions, SnapshotState, initialise, run_training
from training.run.saving import snapshot_kimg, snapshot_name

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "blots.zip")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "00000-run"
    folder.mkdir()
    return folder


def configure(data: Path, steps: float, *assignments: str) -> Config:
    config = tiny_config(
        f"training.kimg={steps * 4 / 1000}",
        "snapshot.tick_kimg=0.004",
        "snapshot.snap_ticks=0",
        *assignments,
    )
    config.data.path = str(data)
    return config


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def images_in(path: Path) -> list[int]:
    return [round(line["kimg"] * 1000) for line in lines_of(path)]


# --------------------------------------------------------------------------------------------------
# Ticks and snapshots


class Watcher:
    """A callback that notes when it is called."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str | None]] = []

    def __call__(self, state: SnapshotState) -> None:
        self.seen.append(
            (state.trainer.progress.images, state.checkpoint.name if state.checkpoint else None)
        )
        torch.manual_seed(99)  # what a callback draws must not matter


@pytest.mark.parametrize(
    ("steps", "tick", "snap", "ticks", "snapshots"),
    [
        (10, 0.008, 2, [8, 16, 24, 32, 40], [16, 32, 40]),
        (4, 0.004, 0, [4, 8, 12, 16], [16]),
        (4, 0.006, 1, [8, 12, 16], [8, 12, 16]),  # ticks fall between batches
        (2.25, 1.0, 1, [12], [12]),  # a batch is never cut; the rest of a tick is told too
    ],
)
def test_when_ticks_and_snapshots_happen(
    data: Path,
    run_dir: Path,
    steps: float,
    tick: float,
    snap: int,
    ticks: list[int],
    snapshots: list[int],
) -> None:
    watcher = Watcher()
    config = configure(data, steps, f"snapshot.tick_kimg={tick}", f"snapshot.snap_ticks={snap}")
    run_training(config, RunOptions(run_dir, CPU, callbacks=(watcher,)))
    assert images_in(run_dir / "stats.jsonl") == ticks
    assert watcher.seen == [(0, None)] + [(images, snapshot_name(images)) for images in snapshots]


def test_what_looks_at_checkpoints_does_not_look_at_one_that_was_refused(
    data: Path, run_dir: Path
) -> None:
    def spoil(state: SnapshotState) -> None:
        if state.checkpoint is None:
            next(state.trainer.G_ema.parameters()).data.fill_(float("nan"))

    pictures, metrics = Watcher(), Watcher()
    options = RunOptions(run_dir, CPU, callbacks=(spoil, pictures), metrics=(metrics,))
    run_training(configure(data, 2), options)
    assert "not written: weights are not finite" in (run_dir / "log.txt").read_text()
    assert not list(run_dir.glob("*.pkl"))
    assert pictures.seen == metrics.seen == [(0, None)]


def test_snapshots_are_named_by_kimg() -> None:
    names = {0: "000000", 25_000_000: "025000", 25_000_032: "025000.032"}
    for images, name in names.items():
        assert snapshot_name(images) == f"network-snapshot-{name}.pkl"
        assert snapshot_kimg(f"x/{snapshot_name(images)}") == images / 1000


def test_images_per_second_do_not_count_the_time_of_what_looks_at_the_networks(
    data: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, look = [0.0], CollapseWatch.look

    def look_for_an_hour(watch: CollapseWatch, G: Generator) -> dict[str, float]:
        clock[0] += 3600
        return look(watch, G)

    def step(trainer: Trainer, images: torch.Tensor, c: torch.Tensor) -> None:
        clock[0] += 1
        take_step(trainer, images, c)

    take_step = Trainer.step
    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(CollapseWatch, "look", look_for_an_hour)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    run_training(configure(data, 3), RunOptions(run_dir, CPU))
    speeds = [line["Progress/images_per_second"] for line in lines_of(run_dir / "stats.jsonl")]
    assert speeds == [4, 4, 4]


def test_a_checkpoint_holds_what_the_contract_lists(data: Path, run_dir: Path) -> None:
    config = configure(
        data,
        2,
        "training.resolution_initial=8",
        "rendering.resolution=16",
        "training.resolution_fade_kimg=0.016",
    )
    run_training(config, RunOptions(run_dir, CPU))
    content = torch.load(run_dir / snapshot_name(8), weights_only=True)
    wanted = {
        "format",
        "config",
        "progress",
        "G",
        "D",
        "G_ema",
        "optimizers",
        "augment",
        "rng",
        "cameras",
    }
    assert set(content) == wanted
    assert content["progress"]["images"] == 8
    assert content["rng"] == {"seed": 0, "images": 8, "processes": 1}
    # the run's own settings; pictures are made with what the fade has reached
    assert content["config"]["model"]["rendering"]["resolution"] == 16
    assert load_weights(run_dir / snapshot_name(8)).config.rendering.resolution == 12
    assert content["config"]["training"] == to_dict(config)["training"]
    cameras = CameraSummary.from_dict(content["cameras"])
    assert cameras.radius == pytest.approx(2, abs=0.01)
    assert cameras.poses.shape == (16, 25)


def test_what_the_discriminator_makes_of_held_out_pictures_is_told(
    data: Path, run_dir: Path
) -> None:
    config = configure(data, 4, "snapshot.tick_kimg=0.008", "data.held_out=4")
    run_training(config, RunOptions(run_dir, CPU))
    lines = lines_of(run_dir / "stats.jsonl")
    assert len(lines) == 2
    for line in lines:
        assert 0 <= line["Reals/accuracy_held_out"] <= 1
        assert line["Reals/logits_held_out"] != line["Reals/logits_trained_on"]


def test_not_all_pictures_can_be_held_out(data: Path, run_dir: Path) -> None:
    config = configure(data, 4, "data.held_out=1000")
    with pytest.raises(UserError, match=r"held_out 1000: there are \d+ pictures"):
        run_training(config, RunOptions(run_dir, CPU))
    assert not (run_dir / "stats.jsonl").exists()


def test_speed_is_told(data: Path, run_dir: Path) -> None:
    run_training(configure(data, 1), RunOptions(run_dir, CPU))
    (line,) = lines_of(run_dir / "stats.jsonl")
    assert line["Progress/images_per_second"] > 0
    assert line["Memory/cpu_gib"] > 0.05
    log = (run_dir / "log.txt").read_text()
    for word in ("kimg", "img/s", "aug", "depth", "r1", "Saved"):
        assert word in log


# --------------------------------------------------------------------------------------------------
# Stopping


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    """Do something in the middle of step number `step`."""
    original = Trainer._judge_both

    def wrapper(trainer: Trainer, *arguments: Any) -> Any:
        if trainer.progress.steps == step:
            action()
        return original(trainer, *arguments)

    monkeypatch.setattr(Trainer, "_judge_both", wrapper)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_step_and_the_rest_follows(
    data: Path,
    tmp_path: Path,
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    options = ("augment.mode=ada", "augment.p=0.4", "augment.kimg=0.1")
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2, lambda: signal.raise_signal(number))
        run_training(configure(data, 6, *options), RunOptions(run_dir, CPU))
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    stopped = load_checkpoint(run_dir / snapshot_name(12))
    assert stopped.progress["images"] == 12
    last = (run_dir / "log.txt").read_text().splitlines()[-1]
    assert number.name in last
    assert f"python train.py --resume {run_dir}" in last

    run_training(configure(data, 6, *options), RunOptions(run_dir, CPU, resume=stopped))
    (tmp_path / "whole").mkdir()
    run_training(configure(data, 6, *options), RunOptions(tmp_path / "whole", CPU))
    resumed, whole = (
        vars(load_checkpoint(folder / snapshot_name(24)))
        for folder in (run_dir, tmp_path / "whole")
    )
    del resumed["config"], whole["config"]
    assert not differing(resumed, whole)
    assert images_in(run_dir / "stats.jsonl") == [4, 8, 12, 16, 20, 24]


def test_a_signal_before_the_first_step_is_not_lost(data: Path, run_dir: Path) -> None:
    run_training(
        configure(data, 5),
        RunOptions(run_dir, CPU, callbacks=(lambda _: signal.raise_signal(signal.SIGTERM),)),
    )
    (snapshot,) = run_dir.glob("*.pkl")
    assert 0 <= load_checkpoint(snapshot).progress["images"] <= 4


def test_signals_while_the_data_are_read_are_not_lost(
    data: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.open_dataset

    def reading(config: Config) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return original(config)

    monkeypatch.setattr(loop, "open_dataset", reading)
    run_training(configure(data, 5), RunOptions(run_dir, CPU))
    assert len(list(run_dir.glob("*.pkl"))) == 1
    assert "Stopped by SIGTERM" in (run_dir / "log.txt").read_text()


def test_signals_outside_the_main_thread_are_left_alone() -> None:
    seen: list[Any] = []

    def work() -> None:
        with StopSignals() as stop:
            seen.append(stop.agreed())

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_time_limit_saves_and_says_how_to_go_on(data: Path, run_dir: Path) -> None:
    run_training(configure(data, 100), RunOptions(run_dir, CPU, time_limit=1e-9))
    assert load_checkpoint(run_dir / snapshot_name(4)).progress["images"] == 4
    last = (run_dir / "log.txt").read_text().splitlines()[-1]
    assert "Time limit" in last
    assert f"--resume {run_dir}" in last


# --------------------------------------------------------------------------------------------------
# Going on


def test_a_finished_run_that_is_resumed_changes_nothing(data: Path, run_dir: Path) -> None:
    config = configure(data, 2)
    run_training(config, RunOptions(run_dir, CPU))
    path = run_dir / snapshot_name(8)
    before = path.stat().st_mtime_ns, (run_dir / "stats.jsonl").read_text()
    run_training(config, RunOptions(run_dir, CPU, resume=load_checkpoint(path)))
    assert (path.stat().st_mtime_ns, (run_dir / "stats.jsonl").read_text()) == before


def test_statistics_of_steps_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    kept = [{"kimg": 0.004, "x": 1}, {"kimg": 0.029, "x": 2}]
    path.write_text(
        "\n".join([*map(json.dumps, kept), '{"kimg": 0.033}', '{"kimg": 0.0', '"text"', "{}"])
    )
    keep_lines_until(path, 0.029)
    assert lines_of(path) == kept
    keep_lines_until(tmp_path / "absent.jsonl", 1)
    assert os.listdir(tmp_path) == ["stats.jsonl"]


def test_a_run_that_died_after_its_checkpoint_takes_those_steps_again(
    data: Path, run_dir: Path
) -> None:
    run_training(configure(data, 2), RunOptions(run_dir, CPU))
    checkpoint = load_checkpoint(run_dir / snapshot_name(8))
    with open(run_dir / "stats.jsonl", "a") as file:
        file.write('{"kimg": 0.012}\n{"kimg": 0.0')
    run_training(configure(data, 4), RunOptions(run_dir, CPU, resume=checkpoint))
    assert images_in(run_dir / "stats.jsonl") == [4, 8, 12, 16]
    assert all("Loss/G" in line for line in lines_of(run_dir / "stats.jsonl"))


def test_only_weights_come_from_another_run(data: Path, run_dir: Path) -> None:
    run_training(configure(data, 3, "augment.mode=ada", "augment.p=0.5"), RunOptions(run_dir, CPU))
    weights = load_weights(run_dir / snapshot_name(12))
    trainer = Trainer(configure(data, 3, "training.seed=7"), torch.eye(25), CPU)
    initialise(trainer, weights)
    for name in ("G", "D", "G_ema"):
        assert not differing(getattr(trainer, name).state_dict(), getattr(weights, name))
    state = trainer.state_dict()
    assert state["progress"]["images"] == 0
    assert state["optimizers"]["G"]["state"] == state["optimizers"]["D"]["state"] == {}
    assert state["augment"]["p"] == 0


def test_a_file_with_nothing_but_an_averaged_generator_starts_all_generators(data: Path) -> None:
    trainer, source = (
        Trainer(configure(data, 1, f"training.seed={seed}"), torch.eye(25), CPU) for seed in (0, 1)
    )
    before = {name: value.clone() for name, value in trainer.D.state_dict().items()}
    initialise(
        trainer,
        loop.Weights(trainer.config.model, None, None, source.G_ema.state_dict(), None, "ours"),
    )
    for name in ("G", "G_ema"):
        assert not differing(getattr(trainer, name).state_dict(), source.G_ema.state_dict())
    assert not differing(trainer.D.state_dict(), before)


# --------------------------------------------------------------------------------------------------
# Bad data and bad disks


def test_data_of_another_size_are_refused_before_anything_is_written(
    tmp_path: Path, run_dir: Path
) -> None:
    other = write_dataset(tmp_path / "other.zip", resolution=64)
    with pytest.raises(UserError, match=r"64 pixels, the model makes 32"):
        run_training(configure(other, 1), RunOptions(run_dir, CPU))
    assert os.listdir(run_dir) == []


def test_a_damaged_picture_shows_before_anything_is_written(tmp_path: Path, run_dir: Path) -> None:
    broken = write_dataset(tmp_path / "broken.zip")
    whole = write_dataset(tmp_path / "whole.zip", count=1)
    picture = zipfile.ZipFile(whole).read("00000/img00000000.png")
    write_dataset(broken, files={"00000/img00000009.png": picture[: len(picture) // 2]})
    with pytest.raises(UserError, match=r"img00000009.png cannot be read"):
        run_training(configure(broken, 1), RunOptions(run_dir, CPU))
    assert os.listdir(run_dir) == []


def test_a_picture_that_goes_bad_later_does_not_cost_the_run(
    data: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.training_batches

    def failing(*arguments: Any, **options: Any) -> Iterator[Any]:
        yield from itertools.islice(original(*arguments, **options), 3)
        raise UserError("data: img7.png cannot be read")

    monkeypatch.setattr(loop, "training_batches", failing)
    with pytest.raises(UserError, match=r"img7"):
        run_training(configure(data, 9), RunOptions(run_dir, CPU))
    assert load_checkpoint(run_dir / snapshot_name(12)).progress["images"] == 12


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_observer_that_meets_a_full_disk_does_not_end_the_run(
    data: Path, run_dir: Path, wrapped: bool
) -> None:
    def full(state: SnapshotState) -> None:
        if state.checkpoint and wrapped:
            with atomic_write(run_dir / "picture.png"):
                raise OSError(28, "No space left on device")
        if state.checkpoint:
            raise OSError(28, "No space left on device")

    run_training(configure(data, 1), RunOptions(run_dir, CPU, callbacks=(full,)))
    assert load_checkpoint(run_dir / snapshot_name(4)).progress["images"] == 4
    assert (run_dir / "log.txt").read_text().count("No space left on device") == 1


def test_an_observer_that_is_wrong_ends_the_run(data: Path, run_dir: Path) -> None:
    def wrong(_: SnapshotState) -> None:
        raise UserError("no such metric")

    with pytest.raises(UserError, match="no such metric"):
        run_training(configure(data, 1), RunOptions(run_dir, CPU, callbacks=(wrong,)))


def test_another_number_of_processes_is_told(data: Path, run_dir: Path) -> None:
    run_training(configure(data, 1), RunOptions(run_dir, CPU))
    checkpoint = load_checkpoint(run_dir / snapshot_name(4))
    assert "so far and has" not in (run_dir / "log.txt").read_text()
    checkpoint.rng["processes"] = 2
    run_training(configure(data, 2), RunOptions(run_dir, CPU, resume=checkpoint))
    log = (run_dir / "log.txt").read_text()
    assert "2 processes so far and has 1 now" in log
    assert "no longer bit for bit" in log


# --------------------------------------------------------------------------------------------------
# The run folder


def read_events(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def test_tensorboard_counts_images_exactly(run_dir: Path) -> None:
    with RunFolder(run_dir, tiny_config(), 0.0) as folder:
        for images in (8, 8008, 8024):  # 8008 / 1000 * 1000 is a little less than 8008
            folder.record(images / 1000, {"Loss/G": float(images)})
    scalars = read_events(run_dir).Scalars("Loss/G")
    assert [(event.step, event.value) for event in scalars] == [(8, 8), (8008, 8008), (8024, 8024)]


def test_options_are_written_as_json_that_can_be_read_back(run_dir: Path) -> None:
    config = tiny_config(
        "rendering.background=[0.25,0.5,1]", "training.ema_rampup=null", "rendering.ray_start=auto"
    )
    with RunFolder(run_dir, config, 0.0):
        pass
    assert from_dict(Config, json.loads((run_dir / "training_options.json").read_text())) == config
