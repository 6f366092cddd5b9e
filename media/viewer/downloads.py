"""Files that a page saves, as bytes."""

from __future__ import annotations

import dataclasses
import io
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.interpolate import CubicHermiteSpline

from dnnlib.console import UserError
from media.meshes.shapes import extract_mesh, save_mesh
from media.pictures.grids import Pictures
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
    return _video(renderer, latents, views, kind)


def camera_path(keys: Sequence[View], frames: int = VIDEO_FRAMES) -> list[View]:
    """Views from the first key to the last through those between, evenly in time and smoothly: a
    cubic spline with the slopes of Catmull and Rom. Yaws take the shorter way; what else a view
    holds is the first key's.
    """
    yaws = np.unwrap([key.yaw for key in keys])
    numbers = np.array(
        [
            [yaw, key.pitch, math.log(key.zoom), *key.shift]
            for yaw, key in zip(yaws, keys, strict=True)
        ]
    )
    times = np.arange(len(keys))
    spline = CubicHermiteSpline(times, numbers, np.gradient(numbers, axis=0))
    return [
        dataclasses.replace(
            keys[0], yaw=yaw, pitch=pitch, zoom=math.exp(zoom), shift=(right, up, near)
        )
        for yaw, pitch, zoom, right, up, near in spline(np.linspace(0, times[-1], frames)).tolist()
    ]


def path_video(
    renderer: ViewRenderer, latents: Latents, view: View, keys: Sequence[View], kind: str
) -> bytes:
    """An mp4 or gif of `camera_path`, with the panel and pixels of `view`.

    Raises:
        UserError: for fewer than two keys.
    """
    if len(keys) < 2:
        raise UserError("a path takes at least two keyframes: turn the head, then add another")
    own = {name: getattr(view, name) for name in ("kind", "resolution", "samples", "field_of_view")}
    keys = [dataclasses.replace(key, **own) for key in keys]
    return _video(renderer, latents, camera_path(keys), kind)


def _video(renderer: ViewRenderer, latents: Latents, views: Sequence[View], kind: str) -> bytes:
    """The pictures of all views as an mp4 or gif."""
    limits = (
        renderer.depth_limits(latents, views[:: VIDEO_FRAMES // PROBES])
        if views[0].kind == "depth"
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
        renderer.shows(latents), planes, renderer.cameras.grid(), resolution, texture=texture
    )
    return _bytes_of(kind, lambda path: save_mesh(path, shape))


def _bytes_of(suffix: str, write: Callable[[Path], None]) -> bytes:
    """What a function writes into a file of that ending."""
    with tempfile.TemporaryDirectory(prefix="open-eg3d-") as folder:
        path = Path(folder) / f"head.{suffix}"
        write(path)
        return path.read_bytes()
