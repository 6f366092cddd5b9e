"""The page as one file: the parts in `page/`, the scene and the planes, all inline."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dnnlib.files import atomic_write
from media.avatar.scene import Head

PAGE = Path(__file__).parent / "page"
# each uses only what stands before it
SCRIPTS = ("planes.js", "camera.js", "renderer.js", "controls.js", "app.js")
SHADERS = ("render.frag", "enlarge.frag", "screen.vert")


def save_page(path: str | os.PathLike[str], scene: dict[str, Any], heads: Sequence[Head]) -> int:
    """Write the page; returns its size in bytes.

    Raises:
        UserError: if the file cannot be written.
    """
    page = assemble(scene, heads).encode()
    with atomic_write(path) as file:
        file.write(page)
    return len(page)


def assemble(scene: dict[str, Any], heads: Sequence[Head]) -> str:
    """The page's text."""
    values = {**scene, "heads": [head.values for head in heads]}
    parts = {
        "title": html.escape(str(scene["title"])),
        "style": _read("style.css"),
        "shaders": "\n".join(
            script_element(_read(name), kind="text/plain", name=name) for name in SHADERS
        ),
        "scene": value_element(values, "scene"),
        "planes": "\n".join(
            script_element(head.data, kind="text/plain", name=f"planes-{index}")
            for index, head in enumerate(heads)
        ),
        "scripts": "\n".join(script_element(_read(name)) for name in SCRIPTS),
    }
    page = _read("index.html")
    for name, text in parts.items():
        page = page.replace(f"<!-- {name} -->", text)
    return page


def _read(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def script_element(text: str, kind: str | None = None, name: str | None = None) -> str:
    """A script element around `text`, in which no tag may end it."""
    attributes = "".join(
        f' {key}="{value}"' for key, value in (("type", kind), ("id", name)) if value
    )
    return f"<script{attributes}>{text}</script>"


def value_element(value: Any, name: str) -> str:
    """An element that holds JSON in which no text can end it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return script_element(text, kind="application/json", name=name)
