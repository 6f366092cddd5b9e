"""A CSV of pictures on an orbit: columns file, yaw, pitch, and where they vary radius, focal,
pivot_x, pivot_y, pivot_z.
"""

from __future__ import annotations

import csv
import io
import math
import posixpath
from collections import Counter

import torch

from data_tools.sources.base import Frame, Lens, ReadOptions, Source, number, skipping
from dnnlib.console import UserError
from training.cameras import orbit_pose
from training.data.files import DataFiles, shown

NEEDED = ("file", "yaw", "pitch")
OPTIONAL = ("radius", "focal", "pivot_x", "pivot_y", "pivot_z")


def find(files: DataFiles) -> list[str]:
    """Tables at the top."""
    return [name for name in files.names if name.lower().endswith(".csv") and "/" not in name]


def read(files: DataFiles, options: ReadOptions, table: str | None = None) -> Source:
    """Pictures in the order of the table, its file names relative to its own folder.

    A camera sits on the sphere around the origin and looks at the pivot. Focal lengths are in
    picture widths, pixels square.

    Raises:
        UserError: for missing columns, values that are no numbers, missing pictures.
    """
    tables = [table] if table else find(files)
    if len(tables) != 1:
        raise UserError(f"{files.path} holds {len(tables)} CSV files; name one of them as --source")
    columns, rows = _rows(files, tables[0], options)
    if not rows:
        raise UserError(f"{files.where(tables[0])} lists no pictures")
    source = Source("csv", files, [])
    for line, cells in rows:
        with skipping(source, options):
            where = f"{files.where(tables[0])}: line {line}"
            if len(cells) < len(columns) or any(cells[len(columns) :]):
                raise UserError(f"{where} has {len(cells)} values instead of {len(columns)}")
            row = dict(zip(columns, cells, strict=False))
            source.frames.append(_frame(row, where, files, tables[0], options))
    return source


def _rows(
    files: DataFiles, table: str, options: ReadOptions
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Names of the columns; line number and cells of every other line that is not empty."""
    text = files.text(table)
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=None), delimiter=delimiter, strict=True)
    try:
        stripped = ((reader.line_num, [cell.strip() for cell in row]) for row in reader)
        lines = [(line, row) for line, row in stripped if any(row)]
    except csv.Error as error:
        raise UserError(
            f"{files.where(table)} is no CSV: line {reader.line_num}: {error}"
        ) from error
    columns = [cell.lower() for cell in lines[0][1]] if lines else []
    if twice := {name for name, count in Counter(columns).items() if name and count > 1}:
        raise UserError(f"{files.where(table)} has two columns {min(twice)}; leave one out")
    wanted = [*NEEDED, *(name for name in ("radius", "focal") if getattr(options, name) is None)]
    if missing := [name for name in wanted if name not in columns]:
        hint = f"; or give --{missing[0]}" if missing[0] in OPTIONAL else ""
        raise UserError(
            f"{files.where(table)} has no column {missing[0]}; its first line must name"
            f" {', '.join(wanted)}{hint}"
        )
    return columns, lines[1:]


def _frame(
    row: dict[str, str], where: str, files: DataFiles, table: str, options: ReadOptions
) -> Frame:
    name = files.resolve(posixpath.dirname(table), row["file"], by=table)
    if not row["file"] or name not in files:
        raise UserError(
            f"{where}: there is no picture {shown(row['file'])!r}; add it or remove the line"
        )

    def value(column: str, default: float | None) -> float:
        return (
            number(row[column], f"{where}: {column}")
            if row.get(column)
            else number(default, f"{where}: {column}")
        )

    unit = 1.0 if options.angles == "radians" else math.pi / 180
    pivot = [
        value(f"pivot_{axis}", default)
        for axis, default in zip("xyz", options.pivot or (0, 0, 0), strict=True)
    ]
    radius, focal = value("radius", options.radius), value("focal", options.focal)
    if radius <= 0 or focal <= 0:
        raise UserError(f"{where}: radius and focal must be above 0, not {radius:g} and {focal:g}")
    yaw, pitch = value("yaw", None) * unit, value("pitch", None) * unit
    a, b, r = torch.tensor([yaw, pitch, radius], dtype=torch.float64)
    cam2world = orbit_pose(a, b, r, (pivot[0], pivot[1], pivot[2])).numpy()
    return Frame(name, cam2world, Lens(focal, unit="normalised"))
