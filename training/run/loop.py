"""The training loop: batches in, ticks and snapshots out, stop and resume without loss."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dnnlib.console import UserError, counter
from dnnlib.numbers import counted
from torch_utils.determinism import use_deterministic_algorithms
from torch_utils.devices import Uploader
from torch_utils.distributed.collectives import any_process, rank, world_size
from torch_utils.distributed.processes import StopSignals
from torch_utils.memory import keep_freed_memory
from torch_utils.precision import use_full_fp32
from training.cameras import CameraSummary
from training.checkpoints.checkpoint import Checkpoint, Weights, load_state
from training.config.settings import Config, DataConfig
from training.config.sizes import rendering_resolution
from training.data.balance import balance_copies, balance_weights
from training.data.dataset import ImageDataset, alpha_background, to_float
from training.data.order import training_batches
from training.data.shards import open_images
from training.gan.health import (
    MOST_WATCHED,
    CollapseWatch,
    JudgedReals,
    RealsWatch,
    collapse_warning,
    reals_near_one_camera,
)
from training.gan.trainer import Trainer
from training.networks.growth import grow_state
from training.run.folder import Curves, RunFolder
from training.run.messages import expected_images, memory_gib, speed_line, start_lines, tick_line
from training.run.saving import SnapshotWriter, is_finite, snapshot_name

STEPS_TO_JUDGE = 10  # after which the speed is told
COLLAPSE_TOLD_FROM = 2.0  # kimg; before that all seeds look alike, as nothing is learnt yet


@dataclass
class SnapshotState:
    """What functions that look at a run are given at its snapshots."""

    trainer: Trainer
    dataset: ImageDataset
    cameras: CameraSummary
    run_dir: Path
    resolution: int  # of the neural rendering at this moment
    checkpoint: Path | None  # is being written there; None at the start, before anything is trained
    writer: Curves
    log: Callable[[str], None] = print  # shows a line and keeps it in the run's log; in process 0
    is_stopping: Callable[[], bool] = lambda: False  # whether this process was told to stop


Callback = Callable[[SnapshotState], None]


@dataclass
class RunOptions:
    """How a run is carried out, apart from what it computes."""

    run_dir: Path
    device: torch.device
    resume: Checkpoint | None = None
    init_from: Weights | None = None
    time_limit: float | None = None  # seconds
    callbacks: tuple[Callback, ...] = ()  # called in process 0
    metrics: tuple[Callback, ...] = ()  # called in all processes; read the checkpoint


def run_training(config: Config, options: RunOptions) -> None:
    """Train until `config.training.kimg`, a signal or the time limit; the last state is always
    saved.

    Raises:
        UserError: for bad data or settings, a full disk, or a run that diverged.
    """
    started = time.monotonic()
    use_full_fp32(tf32=config.training.precision == "tf32")
    torch.backends.cudnn.benchmark = True  # shapes stay the same for thousands of steps
    if config.training.deterministic and options.device.type == "cuda":
        use_deterministic_algorithms()
    keep_freed_memory()
    with StopSignals() as stop:
        dataset = open_dataset(config)
        trainer = Trainer(config, camera_labels(config.data, dataset.labels), options.device)
        is_resumed = options.resume is not None
        processes = options.resume.rng.get("processes") if options.resume else None
        if options.resume is not None:
            trainer.load_state_dict(vars(options.resume))
        growth = initialise(trainer, options.init_from) if options.init_from is not None else ""
        options.resume = options.init_from = None  # their memory is not needed any more
        try:
            with RunFolder(options.run_dir, config, trainer.progress.kimg) as folder:
                if growth:
                    folder.log(f"Blocks that are not as in --init-from: {growth}")
                if processes not in (None, world_size()):
                    folder.log(
                        f"The run had {counted(processes, 'process', 'processes')} so far and has"
                        f" {world_size()} now: it goes on with the same data and random numbers,"
                        " equal up to rounding, no longer bit for bit"
                    )
                _Run(config, options, dataset, trainer, folder, stop, started, is_resumed).execute()
        except torch.OutOfMemoryError as error:
            raise UserError(
                "out of GPU memory; choose a smaller --batch-gpu, or a smaller --nrr-final"
            ) from error
        except OSError as error:
            raise UserError(
                f"cannot write to {options.run_dir}: {error.strerror or error}; free some space and"
                " resume"
            ) from error


def open_dataset(config: Config) -> ImageDataset:
    """The training data. What fits into memory is decoded at once, so that a damaged picture shows
    before a run has begun.

    Raises:
        UserError: for bad data, or pictures of another size than the model's.
    """
    dataset = open_images(
        config.data.path,
        mirror=config.data.mirror,
        check=rank() == 0,
        max_broken=config.data.max_broken,
        background=alpha_background(config.model.rendering),
    )
    if dataset.resolution != config.model.resolution:
        sizes = f"{dataset.resolution} pixels, the model makes {config.model.resolution}"
        raise UserError(
            f"data {dataset.path} has pictures of {sizes}; train with the data the model was"
            " made for"
        )
    if config.data.held_out >= len(dataset.file_names):
        raise UserError(
            f"data.held_out {config.data.held_out}: there are {len(dataset.file_names)} pictures,"
            " and some must be left to train on"
        )
    if dataset.fits_memory:
        dataset.preload()
    return dataset


def sampling_weights(data: DataConfig, dataset: ImageDataset) -> np.ndarray | None:
    """How often each item of `dataset` is shown an epoch (M,); None = once."""
    if data.rebalance <= 1 and not data.held_out:
        return None
    weights = np.ones(len(dataset))
    if data.rebalance > 1:
        weights = balance_weights(dataset.labels, data.rebalance_bins, data.rebalance)
    if data.held_out:
        pictures = len(dataset.file_names)
        weights[np.arange(len(dataset)) % pictures >= pictures - data.held_out] = 0
    return weights


def camera_labels(data: DataConfig, labels: Tensor) -> Tensor:
    """Labels (K, 25) that the cameras of fakes are drawn from: distributed over yaws as the real
    ones that are shown.
    """
    if data.rebalance <= 1:
        return labels
    return labels.repeat_interleave(
        torch.from_numpy(balance_copies(labels, data.rebalance_bins, data.rebalance)), dim=0
    )


def watch_collapse(
    dataset: ImageDataset, cameras: CameraSummary, device: torch.device
) -> CollapseWatch:
    """A watch at the mean camera, with the reals nearest to it."""
    c = cameras.frontal_label()
    reals, _ = dataset.read(reals_near_one_camera(dataset.labels, c).numpy())
    return CollapseWatch(c.to(device), to_float(reals))


def watch_held_out(dataset: ImageDataset, config: Config, device: torch.device) -> RealsWatch:
    """A watch on the last pictures, which are held out, and on as many of the first."""
    held_out, last = config.data.held_out, len(dataset.file_names)
    count = min(held_out, last - held_out, MOST_WATCHED)
    parts = (dataset.read_stored(np.arange(first, first + count)) for first in (0, last - count))
    known, others = (JudgedReals(to_float(images), labels) for images, labels in parts)
    group, alpha = config.model.discriminator.mbstd_group_size, config.model.rendering.alpha
    return RealsWatch(known, others, group, device, alpha == "judge")


def initialise(trainer: Trainer, weights: Weights) -> str:
    """Take the weights of another run, and nothing else. The networks may have more blocks, or
    fewer; returns a line on these.

    Raises:
        UserError: with the list of names if they do not fit.
    """
    growth = {}
    for network, state in (
        ("G", weights.G or weights.G_ema),
        ("G_ema", weights.G_ema or weights.G),
        ("D", weights.D),
    ):
        if state is not None:
            grown = grow_state(getattr(trainer, network), state)
            load_state(getattr(trainer, network), grown.state, f"--init-from: {network}")
            growth[network] = grown.describe()
    return "; ".join(
        f"{name}: {growth[network]}"
        for network, name in (("G", "generator"), ("D", "discriminator"))
        if growth.get(network)
    )


@dataclass
class _Run:
    """The loop itself, with what its parts share."""

    config: Config
    options: RunOptions
    dataset: ImageDataset
    trainer: Trainer
    folder: RunFolder
    stop: StopSignals
    started: float  # seconds of the monotonic clock
    is_resumed: bool

    def __post_init__(self) -> None:
        self.cameras = CameraSummary.from_labels(self.dataset.labels)
        self.collapse: CollapseWatch | None = None  # in process 0, which alone tells of it
        if rank() == 0:
            self.collapse = watch_collapse(self.dataset, self.cameras, self.options.device)
        self.reals: RealsWatch | None = None
        if rank() == 0 and self.config.data.held_out:
            self.reals = watch_held_out(self.dataset, self.config, self.options.device)
        self.snapshots = SnapshotWriter(self.config.snapshot, self.folder.log)
        self.saved_at = self.trainer.progress.images if self.is_resumed else -1
        self.tick_images = self.trainer.progress.images
        self.tick_time = time.monotonic()

    def execute(self) -> None:
        """Train to the end, or until told to stop."""
        progress, total = self.trainer.progress, round(self.config.training.kimg * 1000)
        if not self.is_resumed:
            self._tell_start()
            self._call_all(None)
        elif progress.images >= total:
            self.folder.log(
                f"The run has all of its {progress.kimg:g} kimg; a larger --kimg goes on"
            )
        try:
            reason = self._train(total)
        except UserError:
            self.snapshots.wait()  # what is being written must not be lost
            raise
        if progress.images != self.tick_images:
            self._tick()
        self._save()
        self.snapshots.finish()
        if reason and progress.images < total:
            self.folder.log(
                f"{reason} at {progress.kimg:.3f} kimg; go on with: python train.py --resume"
                f" {shlex.quote(str(self.folder.path))}"
            )

    def _tell_start(self) -> None:
        """Log what the run has."""
        folder = self.folder.path
        for line in start_lines(self.config, self.dataset, self.cameras, self.trainer, folder):
            self.folder.log(line)

    def _train(self, total: int) -> str | None:
        """Take steps up to `total` images. Returns why it ended, if before."""
        progress, batch = self.trainer.progress, self.config.training.batch
        batches = training_batches(
            self.dataset,
            batch,
            rank=rank(),
            world_size=world_size(),
            seed=self.config.training.seed,
            start_image=progress.images,
            workers=self.config.data.workers,
            weights=sampling_weights(self.config.data, self.dataset),
        )
        uploader = Uploader(self.options.device)
        start, began = progress.images, time.monotonic()
        bar = counter("Training", total, "img", initial=start, disable=rank() != 0)
        reason = None
        try:
            while progress.images < total and reason is None:
                images, labels = uploader.send(*self._next(batches))
                skipped = progress.skipped
                self.trainer.step(to_float(images), labels)
                done, seconds = progress.images - start, time.monotonic() - began
                if (left := self._seconds_left()) is not None:
                    bar.total = expected_images(progress.images, done, seconds, left, total)
                bar.update(batch)
                if done == STEPS_TO_JUDGE * batch and progress.images < total:
                    images_left = total - progress.images
                    self.folder.log(speed_line(done, seconds, images_left, left))
                self._tell_skipped(skipped)
                self._maintain()
                reason = self._stop_reason()
        finally:
            bar.close()
            batches.close()
        return reason

    def _next(self, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The next batch. A picture that turns out to be damaged, in whichever process, must not
        cost what was trained so far.
        """
        problem: UserError | None = None
        try:
            batch = next(batches)
        except UserError as error:
            problem = error
        if not self._any(problem is not None):
            return batch
        if self.trainer.progress.steps:
            self._tick()
            self._save()
            self.snapshots.wait()
        raise problem or UserError("another process cannot read its pictures")

    def _any(self, value: bool) -> bool:
        """Whether `value` is true in any process."""
        return any_process(value)

    def _tell_skipped(self, before: int) -> None:
        """Log updates that the last step left out."""
        progress = self.trainer.progress
        if progress.skipped > before:
            phases = ", ".join(
                f"{phase} ({count} in a row)"
                for phase, count in progress.bad_steps.items()
                if count
            )
            self.folder.log(
                f"warning: skipped at {progress.kimg:.3f} kimg, loss or gradient not finite:"
                f" {phases}"
            )

    def _seconds_left(self) -> float | None:
        """Seconds to the time limit, if there is one."""
        limit = self.options.time_limit
        return None if limit is None else self.started + limit - time.monotonic()

    def _stop_reason(self) -> str | None:
        left = self._seconds_left()
        is_late = left is not None and self._any(left < 0)
        if self.stop.agreed():
            return f"Stopped by {self.stop.received or 'another process'}"
        return "Time limit reached" if is_late else None

    def _maintain(self) -> None:
        """Tick and snapshot where they are due."""
        self.snapshots.poll()
        options, images = self.config.snapshot, self.trainer.progress.images
        tick_size = max(round(options.tick_kimg * 1000), 1)
        if images // tick_size == self.tick_images // tick_size:
            return
        self._tick()
        snap_size = tick_size * options.snap_ticks
        is_due = (
            snap_size and images // snap_size != (images - self.config.training.batch) // snap_size
        )
        if is_due:
            self._save()
        elif self.snapshots.is_behind:
            self._write_checkpoint()

    def _tick(self) -> None:
        """Statistics since the last tick."""
        now, progress = time.monotonic(), self.trainer.progress
        skipped = progress.skipped
        self.trainer.count_skipped()
        self._tell_skipped(skipped)
        values = {name: value["mean"] for name, value in self.trainer.statistics.collect().items()}
        speed = (progress.images - self.tick_images) / max(now - self.tick_time, 1e-9)
        if self.collapse is not None:
            values |= self.collapse.look(self.trainer.G_ema)
        if self.reals is not None:
            values |= self.reals.look(self.trainer.D, self.trainer.schedule)
        values["Progress/skipped_updates"] = progress.skipped
        values |= {
            "Progress/images_per_second": speed,
            "Progress/seconds": now - self.started,
            **memory_gib(self.options.device),
        }
        self.folder.record(progress.kimg, values)
        self.folder.log(tick_line(progress.kimg, values))
        warning = collapse_warning(values) if self.collapse is not None else None
        if warning and progress.kimg >= COLLAPSE_TOLD_FROM:
            self.folder.log(warning)
        # what looks at the networks takes its time, which is not the training's
        self.tick_images, self.tick_time = progress.images, time.monotonic()

    def _save(self) -> None:
        """Begin to write a checkpoint, unless this state has one, and call what looks at it."""
        images = self.trainer.progress.images
        self.snapshots.wait()
        if images != self.saved_at:
            path = self._write_checkpoint()
            self.saved_at = images
            if not self._any(path is None):
                self._call_all(path)
        elif self.snapshots.is_behind:
            self._write_checkpoint()

    def _write_checkpoint(self) -> Path | None:
        """Begin to write a checkpoint in process 0; returns where, or None in that process if the
        weights are not worth keeping.
        """
        images = self.trainer.progress.images
        path = self.folder.path / snapshot_name(images)
        if rank() != 0:
            return path
        state = self.trainer.state_dict()
        if not is_finite(state):
            self.folder.log(
                f"warning: {path.name} not written: weights are not finite at {images / 1000:.3f}"
                " kimg"
            )
            return None
        seeds = {"seed": self.config.training.seed, "images": images, "processes": world_size()}
        self.snapshots.submit(
            path, Checkpoint(config=self.config, rng=seeds, cameras=self.cameras.to_dict(), **state)
        )
        return path

    def _resolution_now(self) -> int:
        return rendering_resolution(self.config, self.trainer.progress.images)

    def _call_all(self, checkpoint: Path | None) -> None:
        """Call what looks at a state of the run."""
        state = SnapshotState(
            self.trainer,
            self.dataset,
            self.cameras,
            self.folder.path,
            self._resolution_now(),
            checkpoint,
            self.folder.writer,
            self.folder.log,
            lambda: self.stop.received is not None,
        )
        for callback in self.options.callbacks if rank() == 0 else ():
            self._call(callback, state)
        if self.options.metrics:
            # they read the file in every process; to ask all of them lets them wait for it, too
            self.snapshots.wait()
            is_missing = self._any(self.snapshots.is_behind)
            for metric in () if is_missing else self.options.metrics:
                self._call(metric, state)
        self.tick_time = time.monotonic()

    def _call(self, callback: Callback, state: SnapshotState) -> None:
        """Call one. A full disk costs what it writes, not the run."""
        try:
            callback(state)
        except OSError as error:
            self.folder.warn(f"cannot write to {self.folder.path}: {error.strerror or error}")
        except UserError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            self.folder.warn(str(error))
