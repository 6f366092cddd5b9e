"""Training runs small enough for tests: data sets, networks of a few channels, and ways to call the
command line.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dnnlib.console import run_cli
from training.cameras import orbit_pose, pack_label, pinhole_intrinsics
from training.checkpoints.checkpoint import load_checkpoint
from training.config.settings import Config, set_option

ROOT = Path(__file__).parents[1]
RESOLUTION, BATCH = 32, 4
# Seconds until something that does not come is a failure; a busy machine takes its time.
PATIENCE = 300.0

# Both networks together train a step in about 0.1 s. Noise is on, so that generators have buffers
# worth copying.
SETTINGS = (
    "generator.z_dim=8",
    "generator.w_dim=8",
    "generator.plane_resolution=16",
    "generator.plane_channels=4",
    "generator.channel_base=64",
    "generator.channel_max=8",
    "generator.decoder_hidden=8",
    "generator.use_noise=true",
    "superresolution.channels=[4,4]",
    "superresolution.input_resolution=16",
    "rendering.resolution=8",
    "rendering.depth_resolution=4",
    "rendering.depth_resolution_importance=4",
    "discriminator.channel_base=128",
    "discriminator.channel_max=8",
    "discriminator.mapping_layers=2",
    "training.density_reg_points=50",
    "training.blur_sigma=2",
)
_PLAIN_OPTIONS = [
    "--gpus",
    "0",
    "--cfg",
    "shapenet",
    "--batch",
    "4",
    "--tick",
    "0.004",
    "--precision",
    "fp32",
]
TINY_OPTIONS = (*_PLAIN_OPTIONS, *(text for setting in SETTINGS for text in ("--set", setting)))


def kimg(steps: int) -> str:
    """Value of --kimg for so many steps."""
    return str(steps * BATCH / 1000)


def orbit_labels(count: int, seed: int = 0) -> Tensor:
    """Camera labels (count, 25) around the front of an object at the origin."""
    random = np.random.RandomState(seed)
    poses = [
        orbit_pose(random.uniform(-0.5, 0.5), random.uniform(-0.2, 0.2), 2.0) for _ in range(count)
    ]
    return torch.stack([pack_label(pose.float(), pinhole_intrinsics(2.5)) for pose in poses])


def pictures(count: int, resolution: int = RESOLUTION, seed: int = 0) -> np.ndarray:
    """Smooth random colours (count, resolution, resolution, 3), uint8."""
    random = np.random.RandomState(seed)
    blots = random.randint(0, 256, (count, 4, 4, 3)).astype(np.uint8)
    return np.stack(
        [
            np.asarray(
                Image.fromarray(blot).resize((resolution, resolution), Image.Resampling.BILINEAR)
            )
            for blot in blots
        ]
    )


def write_dataset(
    path: Path,
    count: int = 16,
    resolution: int = RESOLUTION,
    labels: Any = None,
    files: dict[str, bytes] | None = None,
) -> Path:
    """Write a ZIP of pictures and labels; `files` replaces or adds members, `labels` the content of
    dataset.json.
    """
    members = {
        f"00000/img{i:08d}.png": encode(picture)
        for i, picture in enumerate(pictures(count, resolution))
    }
    if labels is None:
        labels = [[name, c.tolist()] for name, c in zip(members, orbit_labels(count), strict=True)]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {
            **members,
            "dataset.json": json.dumps({"labels": labels}).encode(),
            **(files or {}),
        }.items():
            archive.writestr(name, content)
    return path


def encode(picture: np.ndarray) -> bytes:
    """PNG of a picture."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def tiny_config(*assignments: str) -> Config:
    """Settings of a tiny run, changed by assignments `section.field=value`."""
    config = Config()
    config.model.resolution = RESOLUTION
    base = ("training.batch=4", "training.kimg=1")
    for assignment in (*SETTINGS, *base, *assignments):
        set_option(config, assignment)
    return config


# --------------------------------------------------------------------------------------------------
# The command line


@dataclass
class Ended:
    """What a command left behind."""

    status: int
    out: str
    err: str
    lines: list[str] = field(init=False)  # of stderr, without progress bars

    def __post_init__(self) -> None:
        parts = self.err.replace("\x1b[A", "").replace("\r", "\n").split("\n")
        bar = re.compile(r": +\d+%\|.*\|.*\[|\d+\w+ \[.*(/s|s/\w+|\?\w+)")
        self.lines = [part for part in parts if part.strip() and not bar.search(part)]

    def assert_refused(self, status: int, *words: str) -> None:
        """One line on stderr that begins with `error:` and has all `words`, and that exit
        status.
        """
        assert "Traceback" not in self.err + self.out, self.err
        assert self.lines[-1:] == [line for line in self.lines if line.startswith("error: ")], (
            self.err
        )
        assert len(self.lines) == 1, self.err
        missing = [word for word in words if word not in self.lines[0]]
        assert not missing, f"{missing} not in {self.lines[0]}"
        assert self.status == status, f"status {self.status}: {self.lines[0]}"

    def assert_done(self) -> Ended:
        """Exit status 0."""
        assert self.status == 0, self.err + self.out
        return self


def call(command: click.Command, *arguments: str | Path) -> Ended:
    """Run a command line in this process, as `run_cli` does."""
    out, err, argv, status = io.StringIO(), io.StringIO(), sys.argv, 0
    sys.argv = ["command", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run_cli(command)
    except SystemExit as stop:
        status = -1 if not isinstance(stop.code, int) else stop.code
    finally:
        sys.argv = argv
    return Ended(status, out.getvalue(), err.getvalue())


def environment(**extra: str) -> dict[str, str]:
    """Environment of a subprocess that computes with one thread."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **extra}


def start(
    script: str, *arguments: str | Path, cwd: Path | None = None, **extra: str
) -> subprocess.Popen[str]:
    """Start one of the command lines as a process of its own."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = PATIENCE) -> Ended:
    """Wait for a process to end by itself."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return Ended(process.returncode, out, err)


# --------------------------------------------------------------------------------------------------
# Checkpoints


def tensors_of(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All leaves of nested dicts and lists, by name."""
    items: Sequence[tuple[Any, Any]] | None = None
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, (list, tuple)):
        items = list(enumerate(value))
    if items is None:
        yield name, value
        return
    for key, item in items:
        yield from tensors_of(item, f"{name}.{key}")


def differing(first: Any, second: Any) -> list[str]:
    """Names of the leaves in which two nested states are not the same bit for bit."""
    left, right = dict(tensors_of(first)), dict(tensors_of(second))
    assert left.keys() == right.keys()

    def same(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, Tensor) else a == b

    return [name for name in left if not same(left[name], right[name])]


def state_in(run_dir: Path) -> dict[str, Any]:
    """What the newest snapshot of a run folder holds, apart from its settings."""
    state = dict(vars(load_checkpoint(sorted(run_dir.glob("network-snapshot-*.pkl"))[-1])))
    del state["config"]
    return state


def only_run(outdir: Path) -> Path:
    """The one run folder in `outdir`."""
    (folder,) = outdir.iterdir()
    return folder
