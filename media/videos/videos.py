"""Videos of identities: the camera moves, the latent moves, or both.

The planes of an identity are computed once while only the camera moves. Frames are rendered one at
a time and deterministically, so that the same camera and latent give the same picture, bit for bit,
wherever in a video they come.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from media import PictureModel
from media.pictures.grids import Pictures, tile
from media.pictures.panels import render_panels, resize, shared_limits
from media.pictures.transparency import transparent_views, wall_distance
from media.videos.files import open_video
from media.videos.paths import latent_loop, loop_times

PROBES = 8  # frames that are rendered beforehand to find the scale of depth


@dataclass
class Identity:
    """One cell of a video: latents `keys` (K, num_ws, w_dim) that it passes through; one key stays
    as it is.
    """

    generator: PictureModel
    keys: Tensor
    kept: tuple[Tensor, Tensor] | None = None  # planes and ws that do not change
    curve: Callable[[float], Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.curve = latent_loop(self.keys)

    def at(self, time: float) -> tuple[Tensor, Tensor]:
        """Planes (1, 3, C, H, W) and ws (1, num_ws, w_dim) at a time of the loop, 0 to 1."""
        if self.kept is not None:
            return self.kept
        with torch.no_grad():
            ws = self.curve(time)
            found = self.generator.planes(ws, noise_mode="const"), ws
        if len(self.keys) == 1:
            self.kept = found
        return found


@dataclass
class VideoWriter:
    """Renders the frames of a video and writes them to files.

    Attributes:
        cells: Latents (K, num_ws, w_dim) of each identity, row by row.
        labels: Camera (F, 25) of each frame.
        columns: Cells in a row.
        panels: Kinds of pictures side by side in a cell, of `PANELS`.
        size: Pixels of a panel's side; none = the final picture's.
        transparent: Frames are (H, W, 4), of the final picture alone, straight colours and alpha.
        remove_background: Also without what the model paints behind the object.
    """

    generator: PictureModel
    cells: Sequence[Tensor]
    labels: Tensor
    columns: int = 1
    panels: Sequence[str] = ("image",)
    neural_rendering_resolution: int | None = None
    size: int | None = None
    transparent: bool = False
    remove_background: bool = False
    identities: list[Identity] = field(init=False)

    def __post_init__(self) -> None:
        self.identities = [Identity(self.generator, keys) for keys in self.cells]

    def frames(self) -> Iterator[Pictures]:
        """The frames (H, W, 3) in order; with alpha (H, W, 4)."""
        nothing = [None] * len(self.cells)
        limits = self._depth_limits() if "depth" in self.panels else nothing
        walls = self._walls() if self.remove_background else nothing
        for time, c in zip(loop_times(len(self.labels)), self.labels.split(1), strict=True):
            shown = [
                self._cut_out(identity, time, c, wall)
                if self.transparent
                else self._cell(identity, time, c, scale)
                for identity, scale, wall in zip(self.identities, limits, walls, strict=True)
            ]
            yield tile(np.stack(shown), len(shown) // self.columns, self.columns)

    def write(
        self,
        paths: Sequence[Path],
        fps: float,
        bar: tqdm,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> int:
        """Write the video to each of `paths` (formats by their endings); returns the number of
        frames written.

        Args:
            bar: Progress bar, advanced by one per frame.
            should_stop: Asked after each frame; the files are then closed early, and are whole.

        Raises:
            UserError: if a file cannot be written; none of `paths` is touched then.
        """
        written = 0
        with contextlib.ExitStack() as stack:
            writers = [stack.enter_context(open_video(path, fps)) for path in paths]
            for frame in self.frames():
                for writer in writers:
                    writer.add(frame)
                written += 1
                bar.update()
                if should_stop():
                    break
        return written

    def _cell(
        self, identity: Identity, time: float, c: Tensor, limits: tuple[float, float] | None
    ) -> Pictures:
        planes, ws = identity.at(time)
        pictures = render_panels(
            self.generator,
            planes,
            ws,
            c.to(ws),
            self.panels,
            self.neural_rendering_resolution,
            limits,
        )
        size = self.size or pictures[self.panels[0]].shape[0]
        return np.concatenate([resize(picture, size) for picture in pictures.values()], axis=1)

    def _cut_out(self, identity: Identity, time: float, c: Tensor, wall: float | None) -> Pictures:
        view = (*identity.at(time), c, self.neural_rendering_resolution)
        (picture,) = transparent_views(self.generator, *view, wall)
        return resize(picture, self.size or len(picture))

    def _probes(self) -> list[int]:
        """Numbers of a few frames."""
        count = len(self.labels)
        return np.unique(np.linspace(0, count - 1, PROBES).round().astype(int)).tolist()

    def _walls(self) -> list[float | None]:
        """Of each cell where the wall behind it begins, from its first latent."""
        cameras = self.labels[self._probes()]
        return [
            wall_distance(
                self.generator, *identity.at(0), cameras, self.neural_rendering_resolution
            )
            for identity in self.identities
        ]

    @torch.no_grad()
    def _depth_limits(self) -> list[tuple[float, float] | None]:
        """Of each cell, from a few of its frames."""
        chosen = self._probes()
        times = loop_times(len(self.labels))
        found = []
        for identity in self.identities:
            states = ((index, *identity.at(times[index])) for index in chosen)
            outputs = (
                self.generator.render(
                    planes,
                    ws,
                    self.labels[index : index + 1].to(ws),
                    self.neural_rendering_resolution,
                )
                for index, planes, ws in states
            )
            found.append(shared_limits(outputs))
        return found


@contextlib.contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """At the first Ctrl-C, make the yielded function return true instead of ending the program; a
    second one ends it as usual.
    """
    asked = threading.Event()
    usual = signal.getsignal(signal.SIGINT)

    def request_stop(_number: int, _frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, request_stop)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, usual)
