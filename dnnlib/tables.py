"""Tables of choices by name, to which users may add their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from dnnlib.console import UserError, brief

T = TypeVar("T")


def look_up(table: Mapping[str, T], name: str, setting: str) -> T:
    """The entry of `table` that `setting` names.

    Raises:
        UserError: if there is none, with those that there are.
    """
    if name not in table:
        raise UserError(f"{setting} is {brief(name)!r}; known are {', '.join(table)}")
    return table[name]
