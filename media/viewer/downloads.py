"""What a visitor takes home, as bytes."""

from __future__ import annotations

import dataclasses
import io
import math
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from media.shapes import extract_mesh, save_mesh
from media.strips import Pictures, camera_grid
from media.viewer.painter import Latents, Painter, View

TURNTABLE_FRAMES = 48
TURNTABLE_MILLISECONDS = 60  # a frame
SWAY = 0.6  # radians to either side where no camera of the data goes around


def png(picture: Pictures) -> bytes:
    """A picture (n, n, 3) as PNG."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def turntable(painter: Painter, latents: Latents, view: View) -> bytes:
    """A GIF that never ends: once around where the data's cameras go around, else from side to side."""
    low, high = painter.cameras.yaw_range
    phases = 2 * math.pi * np.arange(TURNTABLE_FRAMES) / TURNTABLE_FRAMES
    is_around = high - low > 2 * math.pi - 1e-6
    sway = min(SWAY, (high - low) / 2)
    yaws = view.yaw + phases if is_around else painter.cameras.yaw + sway * np.sin(phases)
    frames = [Image.fromarray(painter.paint(latents, dataclasses.replace(view, yaw=float(yaw)))) for yaw in yaws]
    palette = frames[0].quantize(256)  # one for all frames, so that still parts do not flicker
    first, *others = [frame.quantize(256, palette=palette) for frame in frames]
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=others, duration=TURNTABLE_MILLISECONDS, loop=0)
    return file.getvalue()


def mesh(painter: Painter, latents: Latents, kind: str, resolution: int) -> bytes:
    """The head's surface in a file of that kind.

    Raises:
        UserError: if there is no surface.
    """
    _, planes = painter.planes(latents)
    shape = extract_mesh(painter.generator, planes, camera_grid(painter.cameras), resolution)
    with tempfile.TemporaryDirectory(prefix="open-eg3d-") as folder:
        path = Path(folder) / f"head.{kind}"
        save_mesh(path, shape)
        return path.read_bytes()
