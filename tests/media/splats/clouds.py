"""Clouds of Gaussians that tests are made of, and what judges them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from media.splats.splats import Splats
from training.cameras import CameraSummary, pinhole_intrinsics

CAMERAS = CameraSummary(
    2.7, (0.0, 0.0, 0.0), intrinsics=tuple(pinhole_intrinsics(3.1).flatten().tolist())
)
JUDGES = Path(sys.prefix) / "splat-judges" / "node_modules"  # where `make` installs them


def ball(count: int = 3000, radius: float = 0.3) -> Splats:
    """A ball of flat Gaussians in many colours, unlike from all six sides."""
    step = np.arange(count) + 0.5  # Fibonacci's sphere
    height, angle = 1 - 2 * step / count, np.pi * (1 + 5**0.5) * step
    flat = np.sqrt(1 - height**2)
    normals = torch.tensor(np.stack([flat * np.cos(angle), height, flat * np.sin(angle)], 1))
    x, y, z = normals.float().unbind(-1)
    turns = torch.stack([1 + z, -y, x, torch.zeros_like(z)], dim=-1)
    scale = radius * (4 * np.pi / count) ** 0.5
    return Splats(
        normals.float() * radius * torch.tensor([1.0, 1.2, 0.9]),
        scale * torch.tensor([0.8, 0.6, 0.2]).repeat(count, 1),
        torch.nn.functional.normalize(turns, dim=-1),
        torch.linspace(0.3, 0.99, count),
        0.5
        + 0.4 * normals.float() * torch.tensor([1.0, 1.0, -1.0])
        + 0.05 * (7 * x[:, None]).sin(),
    )


def convert(source: Path, dest: Path) -> Path:
    """`source` as PlayCanvas' splat-transform writes it to `dest`."""
    program = JUDGES / "@playcanvas" / "splat-transform" / "bin" / "cli.mjs"
    node = Path(sys.prefix) / "bin" / "node"
    done = subprocess.run(
        [node, program, "-q", "-w", source, dest], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return dest
