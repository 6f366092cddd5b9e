"""Video files, written frame by frame: MP4 (H.264, plays everywhere) and WebM (VP9, which holds
alpha) by imageio's ffmpeg, GIF by Pillow with one palette for all frames, which imageio's writers
do not offer.

A file gets its name when it is closed, and then holds all frames it was given; what failed leaves
nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

import imageio.v2 as imageio
import imageio_ffmpeg
import numpy as np
from PIL import Image

from dnnlib.console import UserError
from dnnlib.files import atomic_write
from media.pictures.grids import Pictures

VIDEO_FORMATS = ("mp4", "gif", "webm")
CRF = 16  # constant quality of H.264: 0 lossless, 18 hardly to be told from it, 51 worst
MAX_GIF_FPS = 50  # players slow shorter delays down
MIN_GIF_DELAY = 2  # hundredths of a second
PALETTE_FRAMES = 24  # of which the palette is made
PALETTE_PIXELS = 1 << 20  # of those that are looked at in all


class FrameWriter(Protocol):
    """Takes the frames of one video, all of one size (H, W, 3); of a WebM also (H, W, 4)."""

    def add(self, frame: Pictures) -> None:
        """Append a frame."""
        ...


@contextlib.contextmanager
def open_video(path: Path, fps: float) -> Iterator[FrameWriter]:
    """Writer of a new video in the format that the file's ending names, one of `VIDEO_FORMATS`;
    frames have even sides.

    Raises:
        UserError: if the file cannot be written.
    """
    with (
        atomic_write(path) as file,
        _gif_writer(file, fps)
        if path.suffix == ".gif"
        else _ffmpeg_writer(path, file, fps) as writer,
    ):
        yield writer


# --------------------------------------------------------------------------------------------------
# MP4 and WebM

# 4:2:0 and the index in front are what browsers and phones play; colours are tagged, since players
# guess by size otherwise. One thread and no time stamps: the same frames give the same file.
PLAIN = f"""-crf {CRF} -threads 1
    -vf scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int
    -colorspace bt709 -color_primaries bt709 -color_trc iec61966-2-1 -color_range tv
    -fflags +bitexact -flags:v +bitexact -map_metadata -1"""
CODECS = {
    ".mp4": ("libx264", "yuv420p", f"{PLAIN} -preset medium -movflags +faststart -f mp4".split()),
    # without a bit rate of 0, -crf would be a bound only
    ".webm": ("libvpx-vp9", "yuva420p", f"{PLAIN} -b:v 0 -f webm".split()),
}


class FfmpegWriter:
    """Encodes frames by ffmpeg, which runs beside this program and starts with the first frame.

    Ctrl-C in a terminal does not reach it: the file would end before the last frames.
    """

    def __init__(self, path: Path, target: str, fps: float) -> None:
        self.path, self.target, self.count = path, target, 0
        codec, pixels, options = CODECS[path.suffix]
        self.encoder = imageio.get_writer(
            target,
            format=path.suffix,  # the target is a temporary name
            mode="I",
            fps=fps,
            codec=codec,
            pixelformat=pixels,
            macro_block_size=1,
            ffmpeg_log_level="quiet",
            output_params=options,
        )

    def add(self, frame: Pictures) -> None:
        """Append a frame."""
        try:
            self.encoder.append_data(frame)
        except OSError as error:
            raise self._failure() from error
        self.count += 1

    def check(self) -> None:
        """End the file.

        Raises:
            UserError: if it does not hold all frames.
        """
        self.encoder.close()
        try:
            found = imageio_ffmpeg.count_frames_and_secs(self.target)[0] if self.count else 0
        except (OSError, RuntimeError):
            found = -1
        if found != self.count:
            raise self._failure()

    def _failure(self) -> UserError:
        return UserError(
            f"cannot write {self.path}: ffmpeg stopped before the end; free some space or choose"
            " another place"
        )


@contextlib.contextmanager
def _ffmpeg_writer(path: Path, file: IO[bytes], fps: float) -> Iterator[FfmpegWriter]:
    writer = FfmpegWriter(path, file.name, fps)
    with contextlib.closing(writer.encoder):
        yield writer
        writer.check()


# --------------------------------------------------------------------------------------------------
# GIF


class GifWriter:
    """Collects frames on the disk; the palette needs all of them."""

    def __init__(self, spool: IO[bytes], fps: float) -> None:
        self.spool, self.fps, self.count = spool, fps, 0
        self.shape: tuple[int, ...] = ()

    def add(self, frame: Pictures) -> None:
        """Append a frame."""
        self.shape = frame.shape
        self.count += 1
        self.spool.write(frame.tobytes())

    def frame(self, index: int) -> Pictures:
        """A frame again."""
        size = int(np.prod(self.shape))
        self.spool.seek(index * size)
        return np.frombuffer(self.spool.read(size), dtype=np.uint8).reshape(self.shape)

    def save(self, file: IO[bytes]) -> None:
        """Write the GIF, which repeats forever."""
        if not self.count:
            return
        palette = self._palette()
        frames = (
            Image.fromarray(self.frame(index)).quantize(palette=palette, dither=Image.Dither.NONE)
            for index in range(self.count)
        )
        delays = [10 * delay for delay in gif_delays(self.count, self.fps)]
        first = next(frames)
        first.save(
            file,
            format="GIF",
            save_all=True,
            append_images=frames,
            duration=delays,
            loop=0,
            optimize=False,
            disposal=1,
        )

    def _palette(self) -> Image.Image:
        """256 colours that serve all frames: a palette of each frame's own would flicker."""
        chosen = np.unique(np.linspace(0, self.count - 1, PALETTE_FRAMES).round().astype(int))
        stride = max(1, int(len(chosen) * np.prod(self.shape[:2]) / PALETTE_PIXELS))
        pixels = np.concatenate([self.frame(index).reshape(-1, 3)[::stride] for index in chosen])
        return Image.fromarray(pixels[None]).quantize(256, method=Image.Quantize.MEDIANCUT)


def gif_delays(count: int, fps: float) -> list[int]:
    """Hundredths of a second for which each of `count` frames is shown.

    The last frame of a loop is the first one again: the two share one frame's time, so that the
    picture does not pause there.
    """
    times = np.round(np.arange(count + 1) * 100 / fps).astype(int)
    delays = np.maximum(np.diff(times), MIN_GIF_DELAY)
    if count > 1:
        shared = int(delays[-1])
        delays[0], delays[-1] = (
            max(shared - shared // 2, MIN_GIF_DELAY),
            max(shared // 2, MIN_GIF_DELAY),
        )
    return [int(delay) for delay in delays]


@contextlib.contextmanager
def _gif_writer(file: IO[bytes], fps: float) -> Iterator[GifWriter]:
    with tempfile.TemporaryFile(dir=os.path.dirname(file.name)) as spool:
        writer = GifWriter(spool, fps)
        yield writer
        writer.save(file)
