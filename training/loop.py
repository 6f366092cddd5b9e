"""The training loop: batches in, ticks and snapshots out, stop and resume without loss."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dnnlib.console import UserError
from dnnlib.files import atomic_write
from torch_utils.distributed import is_distributed, rank, sum_over_processes, world_size
from torch_utils.memory import keep_freed_memory
from torch_utils.precision import use_full_fp32
from torch_utils.processes import StopSignals
from training.balance import balance_copies, balance_weights
from training.checkpoint import Checkpoint, Weights, load_state, save_checkpoint
from training.config import Config, DataConfig, to_dict
from training.dataset import IN_MEMORY_BYTES, ImageDataset, to_float, training_batches
from training.loss import schedule_at
from training.scene import CameraSummary
from training.trainer import Trainer

OPTIONS_FILE = "training_options.json"
STATS_FILE = "stats.jsonl"
LOG_FILE = "log.txt"


@dataclass
class SnapshotState:
    """What functions that look at a run are given at its snapshots."""

    trainer: Trainer
    dataset: ImageDataset
    cameras: CameraSummary
    run_dir: Path
    resolution: int  # of the neural rendering at this moment
    checkpoint: Path | None  # None at the start, before anything is trained
    writer: SummaryWriter | None  # in process 0
    log: Callable[[str], None] = print  # shows a line and keeps it in the run's log; in process 0
    is_stopping: Callable[[], bool] = lambda: False  # whether this process was told to stop


Observer = Callable[[SnapshotState], None]


@dataclass
class RunOptions:
    """How a run is carried out, apart from what it computes."""

    run_dir: Path
    device: torch.device
    resume: Checkpoint | None = None
    init_from: Weights | None = None
    time_limit: float | None = None  # seconds
    observers: tuple[Observer, ...] = ()  # called in process 0
    measures: tuple[Observer, ...] = ()  # called in all processes


def run_training(config: Config, options: RunOptions) -> None:
    """Train until `config.training.kimg`, a signal or the time limit; the last state is always saved.

    Raises:
        UserError: for bad data or settings, a full disk, or a run that diverged.
    """
    started = time.monotonic()
    use_full_fp32()
    keep_freed_memory()
    with StopSignals() as stop:
        dataset = open_dataset(config)
        cameras = CameraSummary.from_labels(dataset.labels)
        trainer = Trainer(config, camera_labels(config.data, dataset.labels), options.device)
        is_resumed = options.resume is not None
        if options.resume is not None:
            trainer.load_state_dict(vars(options.resume))
        elif options.init_from is not None:
            initialise(trainer, options.init_from)
        options.resume = options.init_from = None  # their memory is not needed any more
        try:
            with RunFolder(options.run_dir, config, trainer.progress.kimg) as folder:
                _Run(config, options, dataset, cameras, trainer, folder, stop, started, is_resumed).execute()
        except torch.OutOfMemoryError as error:
            raise UserError("out of GPU memory; choose a smaller --batch-gpu, or a smaller --nrr-final") from error
        except OSError as error:
            raise UserError(f"cannot write to {options.run_dir}: {error.strerror or error}; free some space and resume") from error


def open_dataset(config: Config) -> ImageDataset:
    """The training data. What fits into memory is decoded at once, so that a damaged picture shows before a run has begun.

    Raises:
        UserError: for bad data, or pictures of another size than the model's.
    """
    dataset = ImageDataset(config.data.path, mirror=config.data.mirror, check=rank() == 0, max_broken=config.data.max_broken)
    if dataset.resolution != config.model.resolution:
        sizes = f"{dataset.resolution} pixels, the model makes {config.model.resolution}"
        raise UserError(f"data {dataset.path} has pictures of {sizes}; train with the data the model was made for")
    if dataset.pixel_bytes <= IN_MEMORY_BYTES:
        dataset.preload()
    return dataset


def sampling_weights(data: DataConfig, labels: Tensor) -> np.ndarray | None:
    """How often each item with `labels` (M, 25) is shown an epoch (M,); None = once."""
    return balance_weights(labels, data.rebalance_bins, data.rebalance) if data.rebalance > 1 else None


def camera_labels(data: DataConfig, labels: Tensor) -> Tensor:
    """Labels (K, 25) that the cameras of fakes are drawn from: distributed over yaws as the real ones that are shown."""
    if data.rebalance <= 1:
        return labels
    return labels.repeat_interleave(torch.from_numpy(balance_copies(labels, data.rebalance_bins, data.rebalance)), dim=0)


def initialise(trainer: Trainer, weights: Weights) -> None:
    """Take the weights of another run, and nothing else.

    Raises:
        UserError: with the list of names if they do not fit.
    """
    for network, state in (("G", weights.G or weights.G_ema), ("D", weights.D), ("G_ema", weights.G_ema or weights.G)):
        if state is not None:
            load_state(getattr(trainer, network), state, f"--init-from: {network}")


def snapshot_name(images: int) -> str:
    """File name of the checkpoint after `images` images."""
    return f"network-snapshot-{images // 1000:06d}.pkl"


class RunFolder:
    """Files of a run: options, log, statistics, TensorBoard events. Only process 0 writes."""

    def __init__(self, path: Path, config: Config, resumed_kimg: float) -> None:
        self.path = path
        self.active = rank() == 0
        if not self.active:
            return
        with atomic_write(path / OPTIONS_FILE) as file:
            file.write(json.dumps(to_dict(config), indent=2).encode())
        keep_lines_until(path / STATS_FILE, resumed_kimg)

    def __enter__(self) -> RunFolder:
        if self.active:
            self._thread_hook, threading.excepthook = threading.excepthook, leave_disk_errors
            self.writer = SummaryWriter(str(self.path))
        return self

    def __exit__(self, *_: object) -> None:
        if self.active:
            with contextlib.suppress(OSError):  # a disk that is full has been told of already
                self.writer.close()
            threading.excepthook = self._thread_hook

    def log(self, line: str) -> None:
        """Show a line and append it to the log."""
        if self.active:
            tqdm.write(line)
            self._append(LOG_FILE, line)

    def record(self, kimg: float, values: dict[str, float]) -> None:
        """Append one line of statistics and show it in TensorBoard (step = images)."""
        if self.active:
            self._append(STATS_FILE, json.dumps({"kimg": kimg, **values}))
            for name, value in values.items():
                self.writer.add_scalar(name, value, round(kimg * 1000))
            self.writer.flush()

    def _append(self, name: str, line: str) -> None:
        try:
            with open(self.path / name, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self.path / name}: {error.strerror or error}; free some space and resume") from error


def leave_disk_errors(problem: threading.ExceptHookArgs) -> None:
    """Report what ends a thread, but for disk errors: TensorBoard's writing thread hands those to the next call of its writer."""
    if not isinstance(problem.exc_value, OSError):
        threading.__excepthook__(problem)


def keep_lines_until(path: Path, kimg: float) -> None:
    """Drop statistics of steps after `kimg`, which a resumed run takes again."""
    if not path.exists():
        return
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _line_kimg(line) <= kimg]
    with atomic_write(path) as file:
        file.write("".join(line + "\n" for line in lines).encode())


def _line_kimg(line: str) -> float:
    try:
        return float(json.loads(line)["kimg"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


class _Run:
    """The loop itself, with what its parts share."""

    def __init__(
        self,
        config: Config,
        options: RunOptions,
        dataset: ImageDataset,
        cameras: CameraSummary,
        trainer: Trainer,
        folder: RunFolder,
        stop: StopSignals,
        started: float,
        is_resumed: bool,
    ) -> None:
        self.config, self.options, self.dataset, self.cameras = config, options, dataset, cameras
        self.trainer, self.folder, self.stop, self.started = trainer, folder, stop, started
        self.is_resumed = is_resumed
        self.saved_at = trainer.progress.images if is_resumed else -1
        self.tick_images = trainer.progress.images
        self.tick_time = time.monotonic()

    def execute(self) -> None:
        """Train to the end, or until told to stop."""
        progress, total = self.trainer.progress, round(self.config.training.kimg * 1000)
        if not self.is_resumed:
            self._observe(None)
        elif progress.images >= total:
            self.folder.log(f"The run has all of its {progress.kimg:g} kimg; a larger --kimg goes on")
        batches = training_batches(
            self.dataset,
            self.config.training.batch,
            rank=rank(),
            world_size=world_size(),
            seed=self.config.training.seed,
            start_image=progress.images,
            workers=self.config.data.workers,
            weights=sampling_weights(self.config.data, self.dataset.labels),
        )
        reason = None
        bar = tqdm(
            total=total, initial=progress.images, unit="img", desc="Training", disable=rank() != 0, dynamic_ncols=True, mininterval=1
        )
        try:
            while progress.images < total and reason is None:
                images, labels = self._next(batches)
                self.trainer.step(to_float(images), labels)
                bar.update(self.config.training.batch)
                self._maintain()
                reason = self._stop_reason()
        finally:
            bar.close()
            batches.close()
        if progress.images != self.tick_images:
            self._tick()
        self._save()
        if reason and progress.images < total:
            self.folder.log(f"{reason} at {progress.kimg:.3f} kimg; go on with: python train.py --resume {self.folder.path}")

    def _next(self, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The next batch. A picture that turns out to be damaged must not cost what was trained so far."""
        try:
            return next(batches)
        except UserError:
            if self.trainer.progress.steps:
                self._save()
            raise

    def _stop_reason(self) -> str | None:
        limit = self.options.time_limit
        is_late = limit is not None and time.monotonic() - self.started > limit
        if limit is not None and is_distributed():
            is_late = bool(sum_over_processes(torch.tensor(float(is_late), device=self.options.device)) > 0)
        if self.stop.agreed(self.options.device):
            return f"Stopped by {self.stop.received or 'another process'}"
        return "Time limit reached" if is_late else None

    def _maintain(self) -> None:
        """Tick and snapshot where they are due."""
        options, images = self.config.snapshot, self.trainer.progress.images
        tick_size = max(round(options.tick_kimg * 1000), 1)
        if images // tick_size == self.tick_images // tick_size:
            return
        self._tick()
        snap_size = tick_size * options.snap_ticks
        if snap_size and images // snap_size != (images - self.config.training.batch) // snap_size:
            self._save()

    def _tick(self) -> None:
        """Statistics since the last tick."""
        now, progress = time.monotonic(), self.trainer.progress
        values = {name: value["mean"] for name, value in self.trainer.statistics.collect().items()}
        speed = (progress.images - self.tick_images) / max(now - self.tick_time, 1e-9)
        values |= {"Progress/images_per_second": speed, "Progress/seconds": now - self.started, **memory_gib(self.options.device)}
        self.folder.record(progress.kimg, values)
        self.folder.log(tick_line(progress.kimg, values))
        self.tick_images, self.tick_time = progress.images, now

    def _save(self) -> None:
        """Write a checkpoint, unless this state has one, and let the observers look at it."""
        progress = self.trainer.progress
        if progress.images == self.saved_at:
            return
        path = self.folder.path / snapshot_name(progress.images)
        if rank() == 0:
            state = self.trainer.state_dict()
            seeds = {"seed": self.config.training.seed, "images": progress.images}
            self.trainer.G_ema.rendering.resolution = self._resolution_now()
            config = dataclasses.replace(self.config, model=self.trainer.G_ema.config)
            save_checkpoint(path, Checkpoint(config=config, rng=seeds, cameras=self.cameras.to_dict(), **state))
            self.folder.log(f"Saved {path}")
        self.saved_at = progress.images
        self._observe(path)

    def _resolution_now(self) -> int:
        return schedule_at(self.config.training, self.trainer.progress.images).resolution

    def _observe(self, checkpoint: Path | None) -> None:
        writer = self.folder.writer if rank() == 0 else None
        state = SnapshotState(
            self.trainer,
            self.dataset,
            self.cameras,
            self.folder.path,
            self._resolution_now(),
            checkpoint,
            writer,
            self.folder.log,
            lambda: self.stop.received is not None,
        )
        for observer in (*(self.options.observers if rank() == 0 else ()), *self.options.measures):
            observer(state)
        self.tick_time = time.monotonic()


def memory_gib(device: torch.device) -> dict[str, float]:
    """Memory this process holds, in GiB."""
    values = {"Memory/cpu_gib": psutil.Process().memory_info().rss / 2**30}
    if device.type == "cuda":
        values["Memory/gpu_peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return values


def tick_line(kimg: float, values: dict[str, float]) -> str:
    """One line for people about a tick."""
    shown = (
        ("G", "Loss/G", "6.3f"),
        ("D", "Loss/D", "6.3f"),
        ("real", "Logits/real", "6.2f"),
        ("fake", "Logits/fake", "6.2f"),
        ("r1", "Loss/R1", "8.3g"),
        ("depth", "Depth/spread", "6.3f"),
        ("aug", "Augment/p", "5.3f"),
        ("GiB", "Memory/cpu_gib", "5.2f"),
        ("img/s", "Progress/images_per_second", "6.1f"),
    )
    return f"kimg {kimg:9.3f}  " + "  ".join(f"{label} {values[name]:{style}}" for label, name, style in shown if name in values)
