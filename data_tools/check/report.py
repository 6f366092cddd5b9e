"""What a check found, for people and for machines."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from dnnlib.numbers import counted
from training.data.files import convert_command

Level = Literal["error", "warning"]
LEVELS: tuple[Level, ...] = ("error", "warning")
SHOWN_ITEMS = 5
SHOWN_FILES = 50  # of files that cannot be read: these have to be found one by one
BINS = 9
BAR = 40


@dataclass(frozen=True)
class Finding:
    """One kind of problem.

    Attributes:
        level: errors stop training; warnings are likely mistakes. code: a short name for programs.
        message: what is wrong. items: the files or labels concerned. mend: what to do, "" where the
            message says it.
        options: of `dataset_tool.py convert` that mend it.
    """

    level: Level
    code: str
    message: str
    items: tuple[str, ...] = ()
    mend: str = ""
    options: str = ""


@dataclass
class Report:
    """Findings and a summary of plain values."""

    source: str
    findings: list[Finding] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)

    def add(
        self,
        level: Level,
        code: str,
        message: str,
        items: tuple[str, ...] = (),
        mend: str = "",
        options: str = "",
    ) -> None:
        """Note a finding."""
        self.findings.append(Finding(level, code, message, items, mend, options))

    def of(self, level: Level) -> list[Finding]:
        """Findings of one level."""
        return [finding for finding in self.findings if finding.level == level]

    def ok(self, strict: bool = False) -> bool:
        """Whether the data can be trained on; with `strict` also whether nothing looks odd."""
        return not (self.findings if strict else self.of("error"))

    def to_json(self) -> str:
        """All of it; names that are not UTF-8 are escaped."""
        findings = {
            f"{level}s": [_plain(finding) for finding in self.of(level)] for level in LEVELS
        }
        return json.dumps(
            {"source": self.source, "ok": self.ok(), **findings, "summary": self.summary}, indent=1
        )

    def to_text(self) -> str:
        """A page to read: summary, then errors, then warnings, each with its mend."""
        lines = [self.source, *_summary_lines(self.summary), ""]
        for level in LEVELS:
            for finding in self.of(level):
                lines += _finding_lines(finding)
        wanted = {finding.options for finding in self.findings if finding.options}
        options = sorted(
            one for one in wanted if not any(one != other and one in other for other in wanted)
        )
        if options:
            lines += ["", "mend: " + convert_command(self.source, " ".join(options))]
        errors, warnings = len(self.of("error")), len(self.of("warning"))
        lines.append(
            f"{counted(errors, 'error')}, {counted(warnings, 'warning')}"
            if self.findings
            else "no problems found"
        )
        return "\n".join(lines)


def _plain(finding: Finding) -> dict[str, Any]:
    return {key: value for key, value in asdict(finding).items() if key != "level"}


def _finding_lines(finding: Finding) -> list[str]:
    lines = [
        f"{finding.level}: {finding.message}"
        + (f" ({len(finding.items)}):" if finding.items else "")
    ]
    limit = SHOWN_FILES if finding.code == "unreadable" else SHOWN_ITEMS
    lines += [f"    {item}" for item in finding.items[:limit]]
    if len(finding.items) > limit:
        lines.append(f"    and {len(finding.items) - limit} more")
    if finding.mend:
        lines.append(f"    -> {finding.mend}")
    return lines


def statistics(values: np.ndarray) -> dict[str, Any]:
    """Range, median and histogram of finite values (M,)."""
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        return {
            "min": low,
            "median": low,
            "max": high,
            "edges": [low, high],
            "counts": [len(values)],
        }
    counts, edges = np.histogram(values, BINS)
    return {
        "min": low,
        "median": float(np.median(values)),
        "max": high,
        "edges": edges.tolist(),
        "counts": counts.tolist(),
    }


def _summary_lines(summary: dict[str, Any]) -> list[str]:
    lines = [
        f"  {name.replace('_', ' '):<12} {_value_text(value)}"
        for name, value in summary.items()
        if not isinstance(value, dict)
    ]
    for name, value in summary.items():
        if isinstance(value, dict) and "counts" in value:
            lines += _histogram_lines(name.replace("_", " "), value)
        elif isinstance(value, dict):
            lines.append(
                f"  {name.replace('_', ' '):<12} "
                + ", ".join(f"{key}: {count}" for key, count in value.items())
            )
    return lines


def _value_text(value: Any) -> str:
    if isinstance(value, list):
        return (
            "(" + ", ".join(_value_text(item) for item in value) + ")"
            if value and isinstance(value[0], float)
            else str(len(value))
        )
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _histogram_lines(name: str, value: dict[str, Any]) -> list[str]:
    title = f"  {name:<12} {value['min']:.4g} .. {value['max']:.4g}, median {value['median']:.4g}"
    if len(value["counts"]) == 1:
        return [title]
    edges, counts = value["edges"], value["counts"]
    return [title] + [
        f"    {low:>9.4g} .. {high:<9.4g} {'#' * -(-count * BAR // max(counts)):<{BAR}} {count}"
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]
