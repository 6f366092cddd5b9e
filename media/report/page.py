"""A report about a model as one HTML page that loads nothing: numbers, curves and pictures, given
as plain data.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from media.pictures.grids import Pictures, data_uri
from media.report.charts import COLOURS, Chart, draw_chart

LONG_HASH = re.compile(r"[0-9a-f+]{41,}")  # shown by its ends, whole as a tooltip


@dataclass(frozen=True)
class Figure:
    """One metric: values by name, and the protocol they hold for."""

    name: str
    values: Mapping[str, float | None]
    protocol: Mapping[str, Any]
    explanation: str = ""


@dataclass(frozen=True)
class Shown:
    """A picture (H, W, 3) with words: `alt` for those who cannot see it, `caption` beneath it."""

    picture: Pictures
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Block:
    """Part of a section: pictures, one wide or several in rows of `columns`."""

    pictures: Sequence[Shown]
    columns: int = 1
    heading: str = ""
    text: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with words, curves and pictures.

    Attributes:
        frame: address of another page that is shown within.
        links: addresses by words. commands: lines for a terminal.
    """

    title: str
    text: str = ""
    charts: Sequence[Chart] = ()
    blocks: Sequence[Block] = ()
    frame: str = ""
    links: Mapping[str, str] = field(default_factory=dict)
    commands: Sequence[str] = ()


@dataclass(frozen=True)
class Report:
    """All of a page. `facts`: name and value, shown beneath the title."""

    title: str
    facts: Mapping[str, str]
    figures: Sequence[Figure]
    sections: Sequence[Section] = field(default_factory=list)


def report_page(report: Report) -> str:
    """The page as text."""
    sections = [
        ("Numbers", _numbers(report.figures)),
        *((section.title, _section(section)) for section in report.sections),
    ]
    names = [f"part{index}" for index in range(len(sections))]
    links = "".join(
        f'<a href="#{name}">{html.escape(title)}</a>'
        for name, (title, _) in zip(names, sections, strict=True)
    )
    body = "".join(
        f'<section id="{name}"><h2>{html.escape(title)}</h2>{content}</section>'
        for name, (title, content) in zip(names, sections, strict=True)
    )
    title = html.escape(report.title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon"'
        f' href="data:,"><style>{STYLE}</style></head>'
        f"<body><header><h1>{title}</h1>{_facts(report.facts)}<nav>{links}</nav></header>"
        f"<main>{body}</main></body></html>\n"
    )


# --------------------------------------------------------------------------------------------------
# Parts


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{_value(value)}</dd></div>"
        for name, value in facts.items()
    )
    return f'<dl class="facts">{rows}</dl>'


def _numbers(figures: Sequence[Figure]) -> str:
    common = _common(figures)
    rows = "".join(_figure_rows(figure, common) for figure in figures)
    shared = _protocol(common)
    table = (
        "<table class='numbers'><thead><tr><th>Metric</th><th>Value</th><th>Protocol of this"
        f" metric</th></tr></thead>{rows}</table>"
    )
    return (
        f"{table}<h3>Protocol, the same for all metrics that an entry applies to</h3>{shared}"
        if shared
        else table
    )


def _common(figures: Sequence[Figure]) -> dict[str, Any]:
    """Entries that at least two protocols have, and that are the same in all that have them."""
    found: dict[str, list[Any]] = {}
    for figure in figures:
        for name, value in figure.protocol.items():
            found.setdefault(name, []).append(value)
    fewest = min(2, len(figures))
    return {
        name: values[0]
        for name, values in found.items()
        if len(values) >= fewest and all(value == values[0] for value in values)
    }


def _figure_rows(figure: Figure, common: Mapping[str, Any]) -> str:
    own = {name: value for name, value in figure.protocol.items() if name not in common}
    cell = (
        "<td class='own'"
        f" rowspan='{len(figure.values)}'>"
        f"<p>{html.escape(figure.explanation)}</p>{_protocol(own)}</td>"
    )
    rows = []
    for index, (name, value) in enumerate(figure.values.items()):
        text = "not defined" if value is None else f"{value:.5g}"
        rows.append(
            f"<tr><th scope='row'>{html.escape(name)}</th><td"
            f" class='value'>{text}</td>{'' if index else cell}</tr>"
        )
    return f"<tbody>{''.join(rows)}</tbody>"


def _protocol(entries: Mapping[str, Any]) -> str:
    items = "".join(
        f"<div><dt>{html.escape(name.replace('_', ' '))}</dt><dd>{_value(value)}</dd></div>"
        for name, value in entries.items()
        if value is not None
    )
    return f'<dl class="protocol">{items}</dl>' if items else ""


def _value(value: Any) -> str:
    text = (
        f"{value:g}"
        if isinstance(value, float)
        else {True: "yes", False: "no"}[value]
        if isinstance(value, bool)
        else str(value)
    )
    if not LONG_HASH.fullmatch(text):
        return html.escape(text)
    return (
        "<code"
        f' title="{html.escape(text, quote=True)}">'
        f"{html.escape(text[:16])}…{html.escape(text[-8:])}</code>"
    )


def _section(section: Section) -> str:
    parts = [f"<p>{html.escape(section.text)}</p>"] if section.text else []
    if section.frame:
        title, address = (html.escape(text, quote=True) for text in (section.title, section.frame))
        parts.append(f'<iframe src="{address}" title="{title}" loading="lazy"></iframe>')
    if section.links:
        links = (
            f'<a href="{html.escape(address, quote=True)}">{html.escape(words)}</a>'
            for words, address in section.links.items()
        )
        parts.append(f"<nav>{''.join(links)}</nav>")
    if section.commands:
        parts.append(f"<pre>{html.escape(chr(10).join(section.commands))}</pre>")
    if section.charts:
        parts.append('<div class="charts">' + "".join(map(_chart, section.charts)) + "</div>")
    return "".join([*parts, *map(_block, section.blocks)])


def _chart(chart: Chart) -> str:
    legend = ""
    if len(chart.lines) > 1:
        keys = "".join(
            f'<span class="key s{index % COLOURS}">{html.escape(name)}</span>'
            for index, name in enumerate(chart.lines)
        )
        legend = f'<span class="legend">{keys}</span>'
    caption = f"<b>{html.escape(chart.title)}</b>{legend}"
    return f"<figure><figcaption>{caption}</figcaption>{draw_chart(chart)}</figure>"


def _block(block: Block) -> str:
    heading = f"<h3>{html.escape(block.heading)}</h3>" if block.heading else ""
    text = f"<p>{html.escape(block.text)}</p>" if block.text else ""
    tiles = "".join(map(_picture, block.pictures))
    return f'{heading}{text}<div class="tiles" style="--columns:{block.columns}">{tiles}</div>'


def _picture(shown: Shown) -> str:
    height, width = shown.picture.shape[:2]
    caption = f"<figcaption>{html.escape(shown.caption)}</figcaption>" if shown.caption else ""
    alt = html.escape(shown.alt, quote=True)
    return (
        f'<figure><img src="{data_uri(shown.picture)}" alt="{alt}" width="{width}"'
        f' height="{height}">{caption}</figure>'
    )


STYLE = """
:root { color-scheme: light dark; --ink: #1d2433; --soft: #5b6577; --paper: #f6f7f9;
  --card: #ffffff; --edge: #dde2ea;
  --c0: #2563c9; --c1: #d0541b; --c2: #128a61; --c3: #8a3fb3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7ebf2; --soft: #9aa6ba; --paper: #12161d;
  --card: #1b212b; --edge: #303a49;
  --c0: #6ea3ff; --c1: #ff9a62; --c2: #4fd0a0; --c3: #cf93f2; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.55 system-ui,
  -apple-system, "Segoe UI", Roboto, sans-serif; }
header, main { max-width: 1080px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 36px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 14px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 0 0 10px; }
h3 { font-size: 15px; margin: 22px 0 8px; }
p { margin: 0 0 14px; color: var(--soft); max-width: 78ch; }
nav { display: flex; flex-wrap: wrap; gap: 6px 18px; padding: 14px 0 4px; }
a { color: var(--c0); text-decoration: none; } a:hover { text-decoration: underline; }
section { background: var(--card); border: 1px solid var(--edge); border-radius: 10px;
  padding: 22px 24px; margin: 18px 0; }
dl { margin: 0; } dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.facts, .protocol { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr));
  gap: 8px 22px; }
.facts dt, .protocol dt { font-size: 12px; } .protocol { font-size: 13px; }
.own .protocol { grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); margin-top: 4px; }
code { font: 12.5px ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
table { border-collapse: collapse; width: 100%; } .numbers { display: block; overflow-x: auto; }
.numbers thead th { font-size: 12px; font-weight: 500; color: var(--soft); text-align: left;
  border: 0; padding-top: 0; }
th, td { text-align: left; vertical-align: top; padding: 7px 18px 7px 0; }
tbody { border-top: 1px solid var(--edge); } tbody th { font-weight: 500; white-space: nowrap; }
.value { font-size: 17px; font-weight: 650; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
.own p { margin: 0; } .own { width: 100%; font-size: 13px; color: var(--soft); }
  .own dd { color: var(--ink); }
figure { margin: 0; min-width: 0; } figcaption { font-size: 12.5px; color: var(--soft);
  overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr));
  gap: 20px 26px; }
.charts figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 2px 12px;
  } .charts b { color: var(--ink); }
svg { display: block; width: 100%; height: auto; } .axis { fill: var(--soft); font-size: 14px; }
  .rule { stroke: var(--edge); }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.s0 { --c: var(--c0); } .s1 { --c: var(--c1); } .s2 { --c: var(--c2); } .s3 { --c: var(--c3); }
.line { stroke: var(--c); } .dot { fill: var(--c); } .legend { display: flex; gap: 12px; }
.key::before { content: ""; display: inline-block; width: 12px; height: 3px; margin: 0 5px 3px 0;
  background: var(--c); }
.tiles { display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); gap: 10px;
  margin-bottom: 12px; }
iframe { width: 100%; height: 560px; border: 1px solid var(--edge); border-radius: 6px; }
pre { overflow-x: auto; font: 12.5px/1.7 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
img { display: block; width: 100%; height: auto; border-radius: 4px; background: var(--edge); }
@media (max-width: 640px) { header, main { padding: 0 12px; } section { padding: 16px 14px; }
  .numbers td, .numbers th { padding-right: 10px; } }
@media print { section { break-inside: avoid; } nav { display: none; } }
"""
