"""Options of the command lines that measure."""

from __future__ import annotations

from cli.settings import setting_options
from cli.values import Parsed
from metrics.names import parse_metrics
from training.config.settings import METRIC_FILES


class Metrics(Parsed):
    """Names of metrics, separated by commas; with `may_be_none` also the word none."""

    name = "names"

    def __init__(self, may_be_none: bool = False) -> None:
        self.may_be_none = may_be_none

    def parse(self, text: str) -> tuple[str, ...]:
        """Checked names."""
        names = tuple(name.strip() for name in text.split(",") if name.strip())
        if self.may_be_none and names == ("none",):
            return ()
        parse_metrics(names)
        return names


# which networks of others metrics use
metric_network_options = setting_options(
    *(f"snapshot.{name}" for name in ("detector", *METRIC_FILES))
)
