"""Options of the command lines that measure."""

from __future__ import annotations

from typing import Any

import click

from cli.settings import setting_options
from metrics.names import parse_metrics
from training.config.settings import METRIC_FILES


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


# which networks of others metrics use
metric_network_options = setting_options(
    *(f"snapshot.{name}" for name in ("detector", *METRIC_FILES))
)
