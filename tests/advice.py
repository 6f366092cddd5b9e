"""Messages of the product that name an option, a command or a file, collected from its code, and
the tables that say which test does what they say.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tests.tiny import ROOT

NAMES_SOMETHING = re.compile(
    r"--[a-z][a-z-]+|\w+\.py\b|\bconvert \S|pip install|docs/\w|`[^`]+`|images/|OPEN_EG3D_\w+"
    r"|--logdir|\bmake [a-z]+\b(?= once)"
)
DECLARES = {"setting", "option", "Option", "setting_option"}  # their texts are help, not messages


def messages(paths: Iterable[Path]) -> dict[str, str]:
    """Texts in the code that advise something, docstrings and help aside; with the file."""
    found = {}
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        aside = {id(part) for node in _not_said(tree) for part in ast.walk(node)}
        for node in ast.walk(tree):
            if id(node) not in aside:
                text = text_of(node)
                if " " in text.strip() and NAMES_SOMETHING.search(text):
                    found[text] = str(path.relative_to(ROOT))
    return found


def _not_said(tree: ast.AST) -> Iterator[ast.AST]:
    """Parts whose texts are no message of their own: docstrings, help, pieces of f-strings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node
        elif isinstance(node, ast.JoinedStr):
            yield from node.values
        elif isinstance(node, ast.Call) and _name(node.func) in DECLARES:
            yield from node.args
            yield from (keyword.value for keyword in node.keywords)


def _name(function: ast.AST) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def text_of(node: ast.AST) -> str:
    """The text of a string, with {} for what is filled in; empty for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values
        )
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def check_table(said: Mapping[str, str], done_in: Mapping[str, str]) -> None:
    """Every message is done by a test that exists, and the table names no other message."""
    untested = [
        f"{name}: {text}"
        for text, name in said.items()
        if not any(part in text for part in done_in)
    ]
    assert untested == []
    stale = [part for part in done_in if not any(part in text for text in said)]
    assert stale == []
    for where in done_in.values():
        path, _, test = where.partition("::")
        assert f"def {test}" in (ROOT / path).read_text(encoding="utf-8"), where
