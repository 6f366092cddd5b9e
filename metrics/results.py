"""Results for people, for programs and for TensorBoard."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from dnnlib.console import UserError
from dnnlib.files import atomic_write, make_dir
from metrics.options import MetricResult


class ScalarWriter(Protocol):
    """TensorBoard's writer, or anything with its methods."""

    def add_scalar(self, name: str, value: float, images: int, /) -> object:
        """Show a number."""

    def flush(self) -> object:
        """Write what is still buffered."""


def as_json(result: MetricResult, **more: Any) -> str:
    """One line of JSON: metric, results (null where not finite), seconds, protocol, and `more`."""
    values = {
        name: value if math.isfinite(value) else None for name, value in result.values.items()
    }
    line = {
        "metric": result.name,
        "results": values,
        "seconds": round(result.seconds, 3),
        "protocol": result.protocol,
        **more,
    }
    return json.dumps(line, allow_nan=False)


def as_text(result: MetricResult) -> str:
    """Lines for people: the values, then the protocol."""
    width = max(map(len, result.values)) + 2
    values = "\n".join(f"{name:<{width}}{value:.6g}" for name, value in result.values.items())
    protocol = "; ".join(
        f"{name.replace('_', ' ')} {_short(value)}"
        for name, value in result.protocol.items()
        if value is not None
    )
    return f"{values}\n  [{protocol}]"


def as_line(result: MetricResult) -> str:
    """The values in one line."""
    return "  ".join(f"{name} {value:.6g}" for name, value in result.values.items())


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text[:16] if len(text) in (64, 129) else text  # hashes


def append_results(folder: Path, results: Iterable[MetricResult], **more: Any) -> None:
    """Append each result to metric-<name>.jsonl in `folder`, as whole lines.

    Raises:
        UserError: if that is not possible.
    """
    make_dir(folder)
    for result in results:
        path = folder / f"metric-{result.name}.jsonl"
        try:
            # one write of one line at the file's end: programs that append at once do not mix
            with open(path, "ab", buffering=0) as file:
                file.write((as_json(result, **more) + "\n").encode())
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror or error}; choose another --outdir"
            ) from error


def read_results(path: Path) -> list[dict[str, Any]]:
    """Lines of a metric-<name>.jsonl; incomplete ones are left out.

    Raises:
        UserError: if the file cannot be read.
    """
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    lines = []
    for text in texts:
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("results"), dict):
                lines.append(line)
    return lines


def drop_later_results(folder: Path, kimg: float) -> None:
    """Drop what was measured of a run after `kimg`, where it goes on from there.

    Raises:
        UserError: if a file cannot be written.
    """
    for path in folder.glob("metric-*.jsonl"):
        lines = read_results(path)
        kept = [
            line
            for line in lines
            if not (isinstance(line.get("kimg"), (int, float)) and line["kimg"] > kimg)
        ]
        if len(kept) < len(lines):
            with atomic_write(path) as file:
                file.write("".join(json.dumps(line) + "\n" for line in kept).encode())


def show_in_tensorboard(writer: ScalarWriter, results: Iterable[MetricResult], images: int) -> None:
    """Scalars Metrics/<value> at step = images the network was trained with."""
    for result in results:
        for name, value in result.values.items():
            writer.add_scalar(f"Metrics/{name}", value, images)
    writer.flush()
