"""A CSV of pictures on an orbit: columns file, yaw, pitch, and where they vary radius, focal,
pivot_x, pivot_y, pivot_z.
"""

from __future__ import annotations

import csv
import io
import math
import posixpath

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
    rows = _rows(files, tables[0], options)
    if not rows:
        raise UserError(f"{files.where(tables[0])} lists no pictures")
    source = Source("csv", files, [])
    for line, row in rows:
        with skipping(source, options):
            where = f"{files.where(tables[0])}: line {line}"
            source.frames.append(_frame(row, where, files, tables[0], options))
    return source


def _rows(
    files: DataFiles, table: str, options: ReadOptions
) -> list[tuple[int, dict[str, str] | None]]:
    """Line number and values by column, of every line that is not empty; None = values are
    missing.
    """
    text = files.text(table)
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    try:
        lines = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise UserError(
            f"{files.where(table)} is no CSV: line {reader.line_num}: {error}"
        ) from error
    columns = [cell.strip().lower() for cell in lines[0][1]] if lines else []
    wanted = [*NEEDED, *(name for name in ("radius", "focal") if getattr(options, name) is None)]
    if missing := [name for name in wanted if name not in columns]:
        hint = f"; or give --{missing[0]}" if missing[0] in OPTIONAL else ""
        raise UserError(
            f"{files.where(table)} has no column {missing[0]}; its first line must name"
            f" {', '.join(wanted)}{hint}"
        )
    return [
        (
            line,
            None
            if len(row) < len(columns)
            else dict(zip(columns, (cell.strip() for cell in row), strict=False)),
        )
        for line, row in lines[1:]
    ]


def _frame(
    row: dict[str, str] | None, where: str, files: DataFiles, table: str, options: ReadOptions
) -> Frame:
    if row is None:
        raise UserError(f"{where} has fewer values than there are columns")
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
