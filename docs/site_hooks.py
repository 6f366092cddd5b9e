"""Hooks of `make docs`: pages from outside of docs/, links between them, and the API reference."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "THIRD_PARTY.md": "third-party.md",
    "models/README.md": "models/index.md",
}
PACKAGES = ("open_eg3d", "training", "metrics", "media", "data_tools", "torch_utils", "dnnlib")
SOURCES = {page: source for source, page in PAGES.items()}


def reference_pages() -> dict[str, str]:
    """Markdown of a page for each folder of code, which lists its modules."""
    pages = {}
    for package in PACKAGES:
        for folder in sorted({path.parent for path in (ROOT / package).rglob("*.py")}):
            name = folder.relative_to(ROOT).as_posix()
            modules = sorted(path.stem for path in folder.glob("[!_]*.py"))
            blocks = [f"::: {name.replace('/', '.')}", *(f"::: {name}/{m}" for m in modules)]
            text = "\n\n".join([f"# {name}", *(block.replace("/", ".") for block in blocks)])
            pages[f"reference/{name.replace('/', '.')}.md"] = text
    return pages


def on_config(config: Any) -> None:
    """List the pages of the reference."""
    config.nav[-1]["Reference"] = sorted(reference_pages())


def on_files(files: Files, config: Any) -> None:
    """Add the pages that do not stand in docs/, and the pictures of models/README.md."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    for picture in (ROOT / "models").glob("*.png"):
        path = picture.relative_to(ROOT).as_posix()
        files.append(File.generated(config, path, abs_src_path=str(picture)))
    for page, text in reference_pages().items():
        files.append(File.generated(config, page, content=text))


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:  # noqa: ARG001 - mkdocs names it
    """Point links at pages of the site; links to code become the names of its files."""
    uri = page.file.src_uri
    source = SOURCES.get(uri, f"docs/{uri}")

    def replaced(match: re.Match[str]) -> str:
        text, target, anchor = match["text"], match["target"], match["anchor"] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        found = PAGES.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(found) is None:
            return f"`{path}`" if (ROOT / path).exists() else match[0]
        return f"[{text}]({os.path.relpath(found, posixpath.dirname(uri) or '.')}{anchor})"

    pattern = r"\[(?P<text>[^\]]*)\]\((?P<target>(?![a-z]+:)[^)\s#]+)(?P<anchor>#[^)\s]*)?\)"
    return re.sub(pattern, replaced, markdown)
