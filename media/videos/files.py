"""Video files, written frame by frame: MP4 by ffmpeg (H.264, plays everywhere), GIF with one
palette for all frames.

A file gets its name when it is closed, and then holds all frames it was given; what failed leaves
nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

import imageio_ffmpeg
import numpy as np
from PIL import Image

from dnnlib.console import UserError
from dnnlib.files import atomic_write
from media.pictures.grids import Pictures

VIDEO_FORMATS = ("mp4", "gif")
CRF = 16  # constant quality of H.264: 0 lossless, 18 hardly to be told from it, 51 worst
MAX_GIF_FPS = 50  # players show shorter delays much slower
MIN_GIF_DELAY = 2  # hundredths of a second
PALETTE_FRAMES = 24  # of which the palette is made
PALETTE_PIXELS = 1 << 20  # of those that are looked at in all


class VideoWriter(Protocol):
    """Takes the frames of one video, all of one size (H, W, 3)."""

    def add(self, frame: Pictures) -> None:
        """Append a frame."""
        ...


@contextlib.contextmanager
def open_video(path: Path, fps: float) -> Iterator[VideoWriter]:
    """Writer of a new video in the format that the file's ending names, one of `VIDEO_FORMATS`;
    frames have even sides.

    Raises:
        UserError: if the file cannot be written.
    """
    with (
        atomic_write(path) as file,
        _mp4_writer(path, file, fps) if path.suffix == ".mp4" else _gif_writer(file, fps) as writer,
    ):
        yield writer


# --------------------------------------------------------------------------------------------------
# MP4


class Mp4Writer:
    """Pipes frames to an ffmpeg process, which starts with the first one.

    ffmpeg gets a session of its own: Ctrl-C in a terminal would reach it as well, and cut the file
    short before the last frames.
    """

    def __init__(self, path: Path, target: str, fps: float, log: IO[bytes]) -> None:
        self.path, self.target, self.fps, self.log = path, target, fps, log
        self.process: subprocess.Popen[bytes] | None = None

    def add(self, frame: Pictures) -> None:
        """Append a frame."""
        if self.process is None:
            command = mp4_command(self.target, frame.shape[1], frame.shape[0], self.fps)
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=self.log,
                stderr=self.log,
                start_new_session=True,
            )
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(frame.tobytes())
        except OSError as error:
            raise self._failure() from error

    def close(self) -> None:
        """Wait until the file is whole."""
        if self.process is None:
            return
        with contextlib.suppress(OSError):
            self.process.communicate()
        if self.process.returncode:
            raise self._failure()

    def kill(self) -> None:
        """End the process at once if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.communicate()

    def _failure(self) -> UserError:
        self.kill()
        self.log.seek(0)
        said = self.log.read().decode(errors="replace").strip().splitlines()
        return UserError(
            f"cannot write {self.path}: ffmpeg said: {said[-1] if said else 'nothing'}; free some"
            " space or choose another place"
        )


def mp4_command(target: str, width: int, height: int, fps: float) -> list[str]:
    """ffmpeg's arguments for raw RGB frames on its standard input.

    4:2:0 and the index in front are what browsers and phones play; colours are tagged, since
    players guess by size otherwise. One thread and no time stamps: the same frames give the same
    file.
    """
    source = [
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        f"{width}x{height}",
        "-r",
        f"{fps:g}",
        "-i",
        "-",
        "-an",
    ]
    colors = [
        "-vf",
        "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int",
        "-pix_fmt",
        "yuv420p",
    ]
    colors += [
        "-colorspace",
        "bt709",
        "-color_primaries",
        "bt709",
        "-color_trc",
        "iec61966-2-1",
        "-color_range",
        "tv",
    ]
    codec = ["-c:v", "libx264", "-crf", str(CRF), "-preset", "medium", "-threads", "1"]
    container = [
        "-fflags",
        "+bitexact",
        "-flags:v",
        "+bitexact",
        "-map_metadata",
        "-1",
        "-movflags",
        "+faststart",
        "-f",
        "mp4",
    ]
    return [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-y",
        "-v",
        "error",
        *source,
        *colors,
        *codec,
        *container,
        target,
    ]


@contextlib.contextmanager
def _mp4_writer(path: Path, file: IO[bytes], fps: float) -> Iterator[Mp4Writer]:
    with tempfile.TemporaryFile() as log:
        writer = Mp4Writer(path, file.name, fps, log)
        try:
            yield writer
            writer.close()
        finally:
            writer.kill()


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
        """Write the GIF, which repeats for ever."""
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
    """Hundredths of a second that each of `count` frames is shown.

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
