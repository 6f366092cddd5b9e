"""Files that a page saves, as bytes."""

from __future__ import annotations

import dataclasses
import io
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from media.meshes.shapes import extract_mesh, save_mesh
from media.pictures.grids import Pictures, camera_grid
from media.pictures.panels import resize
from media.videos.files import open_video
from media.videos.paths import is_all_around
from media.viewer.view_renderer import Latents, View, ViewRenderer

VIDEO_FRAMES, VIDEO_FPS = 96, 24.0
FEWEST_VIDEO_PIXELS = 256  # per side; smaller pictures are enlarged, better than players do it
PROBES = 8  # frames from which the scale of depth is taken
SWAY = 0.6  # radians to either side where no camera of the data goes around
TEXTURE = 1024  # pixels per side


def png(picture: Pictures) -> bytes:
    """A picture (n, n, 3) as PNG."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def turntable(renderer: ViewRenderer, latents: Latents, view: View, kind: str) -> bytes:
    """An mp4 or gif that begins where it ends: once around where the data's cameras go around, else
    from side to side.
    """
    low, high = renderer.cameras.yaw_range
    phases = np.linspace(0, 2 * math.pi, VIDEO_FRAMES)
    yaws = (
        view.yaw + phases
        if is_all_around(renderer.cameras)
        else renderer.cameras.yaw + min(SWAY, (high - low) / 2) * np.sin(phases)
    )
    views = [dataclasses.replace(view, yaw=float(yaw)) for yaw in yaws]
    limits = (
        renderer.depth_limits(latents, views[:: VIDEO_FRAMES // PROBES])
        if view.kind == "depth"
        else None
    )

    def write(path: Path) -> None:
        with open_video(path, VIDEO_FPS) as video:
            for one in views:
                frame = renderer.render(latents, one, limits)
                video.add(resize(frame, max(FEWEST_VIDEO_PIXELS, len(frame) + len(frame) % 2)))

    return _bytes_of(kind, write)


def mesh(
    renderer: ViewRenderer, latents: Latents, kind: str, resolution: int, is_textured: bool
) -> bytes:
    """The head's surface in a file of that kind, with colours at its vertices or with a texture.

    Raises:
        UserError: if there is no surface.
    """
    _, planes = renderer.planes(latents)
    texture = TEXTURE if is_textured else None
    shape = extract_mesh(
        renderer.generator, planes, camera_grid(renderer.cameras), resolution, texture=texture
    )
    return _bytes_of(kind, lambda path: save_mesh(path, shape))


def _bytes_of(suffix: str, write: Callable[[Path], None]) -> bytes:
    """What a function writes into a file of that ending."""
    with tempfile.TemporaryDirectory(prefix="open-eg3d-") as folder:
        path = Path(folder) / f"head.{suffix}"
        write(path)
        return path.read_bytes()
