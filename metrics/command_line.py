"""Options that the command lines which measure have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from metrics.names import DETECTORS, parse_metrics

F = TypeVar("F", bound=Callable[..., Any])


class Metrics(click.ParamType):
    """Names of metrics, separated by commas; with `may_be_none` also the word none."""

    name = "names"

    def __init__(self, may_be_none: bool = False) -> None:
        self.may_be_none = may_be_none

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Checked names."""
        if isinstance(value, tuple):
            return value
        names = tuple(name.strip() for name in str(value).split(",") if name.strip())
        if self.may_be_none and names == ("none",):
            return ()
        try:
            parse_metrics(names)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return names


def metric_network_options(command: F) -> F:
    """Add the options that say which networks of others metrics use."""
    for option in reversed(
        (
            click.option(
                "--detector",
                type=click.Choice(DETECTORS),
                help="Network of fid, kid, pr, is.  [default: inception]",
            ),
            click.option(
                "--detector-weights",
                metavar="FILE|URL",
                help="Its weights.  [default: the published ones]",
            ),
            click.option(
                "--lpips-weights",
                multiple=True,
                metavar="FILE|URL",
                help="Weights for ppl2_wend; may be given twice: VGG16, linear layers.",
            ),
            click.option(
                "--identity-model", metavar="FILE|URL", help="ONNX face embedder for identity."
            ),
            click.option(
                "--pose-model",
                metavar="FILE|URL|mediapipe",
                help="Estimator for pose: ONNX, or one that `dataset_tool.py faces` takes.",
            ),
        )
    ):
        command = option(command)
    return command
