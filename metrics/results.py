"""Results for people, for programs and for TensorBoard."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnnlib.console import UserError
from dnnlib.files import make_dir
from metrics.evaluate import MetricResult

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def as_json(result: MetricResult, **more: Any) -> str:
    """One line of JSON: metric, results, seconds, protocol, and whatever `more` says. What is not finite becomes null."""
    values = {name: value if math.isfinite(value) else None for name, value in result.values.items()}
    line = {"metric": result.name, "results": values, "seconds": round(result.seconds, 3), "protocol": result.protocol, **more}
    return json.dumps(line, allow_nan=False)


def as_text(result: MetricResult) -> str:
    """Lines for people: the values, then the protocol."""
    width = max(map(len, result.values)) + 2
    values = "\n".join(f"{name:<{width}}{value:.6g}" for name, value in result.values.items())
    protocol = "; ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in result.protocol.items() if value is not None)
    return f"{values}\n  [{protocol}]"


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
            # One write of one line at the end of the file: two programs that append at once do not mix.
            with open(path, "ab", buffering=0) as file:
                file.write((as_json(result, **more) + "\n").encode())
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}; choose another --outdir") from error


def show_in_tensorboard(writer: SummaryWriter, results: Iterable[MetricResult], images: int) -> None:
    """Scalars Metrics/<value> at step = images the network was trained with."""
    for result in results:
        for name, value in result.values.items():
            writer.add_scalar(f"Metrics/{name}", value, images)
    writer.flush()
