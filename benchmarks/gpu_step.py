"""A training step in each precision: seconds, memory, and how often the host waits for the device.
A part of benchmarks.gpu_check.
"""

from __future__ import annotations

import time
import typing
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from tests.tiny import orbit_labels, tiny_config
from torch_utils.precision import use_full_fp32
from training.config.presets import make_config
from training.config.settings import Config, Precision
from training.gan.trainer import Trainer
from training.run.settings import settle

BATCH, STEPS = 4, 16  # so many steps have every lazy regulariser at its rate
PUBLISHED = 24.0  # seconds per kimg of the original implementation on eight V100
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")


def step_figures(device: torch.device) -> dict[str, dict[str, float]]:
    """By precision; FFHQ-512 at its published sizes on CUDA, tiny networks elsewhere."""
    try:
        return {name: measure(name, device) for name in typing.get_args(Precision)}
    finally:
        use_full_fp32()


def config_of(precision: Precision, device: torch.device) -> Config:
    """Settings of a run."""
    config = make_config("ffhq", 512, "published") if device.type == "cuda" else tiny_config()
    config.training.batch, config.training.precision = BATCH, precision
    config.augment.mode, config.augment.p = "ada", 0.2
    settle(config, set())
    return config


def measure(precision: Precision, device: torch.device) -> dict[str, float]:
    """Figures of one precision."""
    config = config_of(precision, device)
    use_full_fp32(tf32=precision == "tf32")
    resolution = config.model.resolution
    trainer = Trainer(config, orbit_labels(BATCH), device)
    batch = (
        torch.rand(BATCH, 3, resolution, resolution, device=device) * 2 - 1,
        trainer.camera_labels,
    )

    def seconds(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            trainer.step(*batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    first = seconds(1)
    steps = STEPS if device.type == "cuda" else 1
    spent = seconds(steps)
    figures = {
        "first step, s": first,
        "a step, ms": 1e3 * spent / steps,
        "kimg an hour": 3.6 * BATCH * steps / spent,
        "s/kimg": 1e3 * spent / (BATCH * steps),
        "s/kimg on eight V100, published": PUBLISHED,
        "waits a step": float(waits(lambda: trainer.step(*batch))),
    }
    trainer.count_skipped()
    figures["skipped updates"] = float(trainer.progress.skipped)
    if device.type == "cuda":
        figures["peak, GB"] = torch.cuda.max_memory_allocated(device) / 1e9
        torch.cuda.reset_peak_memory_stats(device)
    return figures


def waits(run: Callable[[], None]) -> int:
    """How often the host waits for CUDA meanwhile, as PyTorch's profiler sees it; it waits itself
    when it ends.
    """
    return _profiled_waits(run) - _profiled_waits(lambda: None)


def _profiled_waits(run: Callable[[], None]) -> int:
    kinds = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        kinds.append(ProfilerActivity.CUDA)
    with profile(activities=kinds) as seen:
        run()
    return sum(event.count for event in seen.key_averages() if event.key in WAITS)
