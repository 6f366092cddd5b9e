"""Pictures with cameras from elsewhere, written as a data set that training reads."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from data_tools.pictures import (
    Background,
    Converted,
    PictureJob,
    PictureOptions,
    convert_picture,
)
from data_tools.sinks import Sink, check_dest, image_name, open_sink, write_labels
from data_tools.sources.base import Array, ReadOptions, Source, Unit
from data_tools.sources.detect import Format, read_source
from data_tools.world import place
from dnnlib.console import UserError, progress
from dnnlib.numbers import counted
from dnnlib.parallel import ordered_map
from training.data.labels import label_problems
from training.data.pictures import RESOLUTIONS, open_picture

DEFAULT_RADIUS = 2.7  # of the published face models; boxes then have a side of about 1


@dataclass(frozen=True)
class ConvertConfig:
    """Settings of `convert`.

    Attributes:
        resolution: side of the pictures; None = the largest of 32, 64, ..., 1024 that the first
            picture fills.
        crop: cut out the middle square; else squeeze the whole picture. Cameras are exact either
            way.
        background, seed: what shows through transparent pixels. kind: format of the source. read:
            how to read its numbers.
        up: the source's upward axis ("x" .. "-z", "nearest", "cameras"); None = as is usual for the
            format.
        recentre: put the point nearest to all viewing rays at `pivot` and the cameras at the median
            distance `radius` from it; None = if the source's world is arbitrary or a radius or
            pivot is given.
        skip_bad: leave out pictures that cannot be converted, instead of stopping at the first.
            workers: processes; 0 = one a core.
    """

    resolution: int | None = None
    crop: bool = True
    background: Background = "none"
    seed: int = 0
    kind: Format = "auto"
    read: ReadOptions = field(default_factory=ReadOptions)
    up: str | None = None
    recentre: bool | None = None
    radius: float | None = None
    pivot: tuple[float, float, float] | None = None
    skip_bad: bool = False
    workers: int = 0


@dataclass(eq=False)
class ConvertSummary:
    """What was done: number and side of the pictures, the source's format, the files left out, and
    one-line notes.
    """

    count: int
    resolution: int
    kind: str
    skipped: list[str]
    notes: list[str]


def convert(
    source: str | Path,
    dest: str | Path,
    config: ConvertConfig | None = None,
    *,
    overwrite: bool = False,
) -> ConvertSummary:
    """Write the pictures and cameras of `source` as a data set `dest` (a stored ZIP, or a folder if
    it does not end in .zip).

    The same input and settings give the same bytes, whatever the number of workers. `dest` appears
    only when complete.

    Raises:
        UserError: what is wrong with the source, which file or camera, and what to do; or that
            `dest` cannot be written.
    """
    config, dest = config or ConvertConfig(), Path(dest)
    check_dest(dest, overwrite, Path(source))
    opened = read_source(source, config.kind, replace(config.read, skip_bad=config.skip_bad))
    poses, notes = _placed(opened, config)
    resolution = config.resolution or _natural_resolution(opened, config.skip_bad)
    options = PictureOptions(
        resolution, config.crop, config.background, config.seed, opened.upright
    )
    written = _Written(opened, poses, config.skip_bad)
    with open_sink(dest, overwrite=overwrite) as sink:
        written.run(sink, options, config.workers)
        traits = opened.traits.of(written.sources, written.names) if opened.traits else None
        write_labels(sink, written.names, np.array(written.labels), traits)
    if written.enlarged:
        notes.append(
            f"enlarged: {counted(written.enlarged, 'picture')} of less than {resolution} pixels"
        )
    return ConvertSummary(len(written.names), resolution, opened.kind, written.skipped, notes)


def _placed(source: Source, config: ConvertConfig) -> tuple[Array, list[str]]:
    """Camera-to-world matrices (M, 4, 4) in the data set's world, and what to say about it."""
    poses = np.stack([frame.cam2world for frame in source.frames])
    # A CSV's radius and pivot say where its cameras stand, not where they shall be moved.
    asked = source.kind != "csv" and (config.radius is not None or config.pivot is not None)
    recentre = (source.arbitrary or asked) if config.recentre is None else config.recentre
    if asked and not recentre:
        raise UserError(
            "--radius and --pivot move the scene and do not go with --no-recentre; leave one of"
            " them out"
        )
    placement = place(
        poses,
        config.up or source.up,
        recentre=recentre,
        radius=config.radius or DEFAULT_RADIUS,
        pivot=config.pivot or (0.0, 0.0, 0.0),
    )
    notes = list(source.notes)
    if placement.up != "y":
        basis = "as the cameras stand" if placement.up == "cameras" else f"{placement.up} was up"
        notes.append(
            f"the world was turned to y up ({basis}{'' if config.up else '; --up says otherwise'})"
        )
    if recentre:
        shift = ", ".join(f"{value:.4g}" for value in placement.shift)
        notes.append(f"the world was scaled by {placement.scale:.6g} and then moved by ({shift})")
    return placement.apply(poses), notes


def _natural_resolution(source: Source, skip_bad: bool) -> int:
    """The largest resolution that training knows and the first picture fills; with `skip_bad`, the
    first that can be read.
    """
    files = source.files
    for frame in source.frames:
        try:
            side = min(open_picture(files.read(frame.name), files.where(frame.name)).size)
        except UserError:
            if not skip_bad:
                raise
        else:
            return max((size for size in RESOLUTIONS if size <= side), default=RESOLUTIONS[0])
    return RESOLUTIONS[0]  # whatever it is: no picture can be read, which converting says


class _Written:
    """The data set so far: names and labels of what has been written, and what was left out."""

    def __init__(self, source: Source, poses: Array, skip_bad: bool) -> None:
        self.source, self.poses, self.skip_bad = source, poses, skip_bad
        self.names: list[str] = []
        self.sources: list[str] = []
        self.labels: list[Array] = []
        self.skipped = list(source.left_out)
        self.enlarged = 0

    def run(self, sink: Sink, options: PictureOptions, workers: int) -> None:
        """Convert all pictures into `sink`.

        Raises:
            UserError: for the first bad picture or camera, or if none is left.
        """
        frames = self.source.frames
        jobs = (PictureJob(index, frame.name, frame.lens) for index, frame in enumerate(frames))
        results = ordered_map(
            convert_picture, (self.source.files, options), jobs, len(frames), workers
        )
        with contextlib.closing(results):
            for index, result in enumerate(
                progress(results, "Converting", total=len(frames), unit="img")
            ):
                try:
                    self._take(result, index, sink)
                except UserError as error:
                    if not self.skip_bad:
                        raise
                    self.skipped.append(str(error))
        if not self.names:
            raise UserError(
                f"{self.source.files.path}: no picture could be converted; the first:"
                f" {self.skipped[0]}"
            )

    def _take(self, result: Converted | UserError, index: int, sink: Sink) -> None:
        if isinstance(result, UserError):
            raise result
        label = np.concatenate([self.poses[index].ravel(), result.intrinsics.ravel()])
        frame = self.source.frames[index]
        self._check(label, frame.name, frame.lens.unit)
        name = image_name(len(self.names), result.suffix)
        sink.write(name, result.data)
        self.names.append(name)
        self.sources.append(frame.name)
        self.labels.append(label)
        self.enlarged += result.enlarged

    def _check(self, label: Array, name: str, unit: Unit) -> None:
        problem = next((text for bad, text in label_problems(label[None]) if bad.any()), None)
        if problem:
            fx, _, cx, _, fy, cy = label[16:22]
            if "pixels" in problem and self.source.kind == "labels":
                problem += " (--intrinsics pixels does so)"
            elif unit == "pixels":  # of the source: advice is for normalised numbers
                fault = problem.partition(";")[0].replace("look like pixels", "do not fit it")
                problem = f"{fault}; correct its camera in the source"
            raise UserError(
                f"{self.source.files.where(name)} " + problem.format(fx=fx, fy=fy, cx=cx, cy=cy)
            )
