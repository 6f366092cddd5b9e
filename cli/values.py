"""Kinds of values that several command lines take."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import click

from dnnlib.numbers import LARGEST, MAX_SEED, finite

MAX_SEEDS = 1_000_000


class Seeds(click.ParamType):
    """Seeds and ranges of seeds, ends included, in the order given: 0-10 or 1,5,7-9."""

    name = "seeds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:
        """List of different seeds."""
        if isinstance(value, list):
            return value
        seeds: dict[int, None] = {}
        for item in str(value).split(","):
            match = re.fullmatch(r"\s*(\d{1,10})\s*(?:-\s*(\d{1,10})\s*)?", item, re.ASCII)
            if not match:
                self.fail(
                    f"{item.strip()!r} is neither a seed nor a range; write 0-10 or 1,5,7-9",
                    param,
                    ctx,
                )
            first, last = int(match[1]), int(match[2] or match[1])
            if first > last:
                self.fail(
                    f"the range {item.strip()!r} runs backwards; write {last}-{first}", param, ctx
                )
            if last > MAX_SEED or last - first >= MAX_SEEDS:
                self.fail(
                    f"{item.strip()!r}: seeds go up to {MAX_SEED}, at most {MAX_SEEDS} at once",
                    param,
                    ctx,
                )
            seeds.update(dict.fromkeys(range(first, last + 1)))
        return list(seeds)


class FiniteRange(click.FloatRange):
    """A finite number in a range."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number."""
        number = super().convert(value, param, ctx)
        return (
            number
            if math.isfinite(number)
            else self.fail(f"{value!r} is not a finite number", param, ctx)
        )


class Commas(click.ParamType):
    """Values separated by commas."""

    def __init__(self, name: str, convert_one: Callable[[str], Any], expected: str) -> None:
        self.name, self.convert_one, self.expected = name, convert_one, expected

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[Any]:
        """List of at least one value."""
        try:
            return (
                value
                if isinstance(value, list)
                else [self.convert_one(item.strip()) for item in str(value).split(",")]
            )
        except ValueError:
            return self.fail(f"{value!r} is not a list of {self.expected}", param, ctx)


def some_of(name: str, *choices: str) -> Commas:
    """Some of `choices`, separated by commas."""

    def convert_one(text: str) -> str:
        if text not in choices:
            raise ValueError(text)
        return text

    return Commas(name, convert_one, ", ".join(choices))


class Edits(click.ParamType):
    """A direction and how many steps to go along it: hair=+2."""

    name = "edit"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        """(name, steps)."""
        if isinstance(value, tuple):
            return value
        name, _, steps = str(value).partition("=")
        try:
            if not name.strip():
                raise ValueError(value)
            return name.strip(), finite(steps)
        except ValueError:
            return self.fail(
                f"{value!r} is not of the form NAME=STEPS, such as hair=+2", param, ctx
            )

    @staticmethod
    def joined(edits: Sequence[tuple[str, float]]) -> dict[str, float]:
        """Steps by name; what is named twice adds up."""
        steps: dict[str, float] = {}
        for name, amount in edits:
            steps[name] = steps.get(name, 0.0) + amount
        return steps


class Finite(click.ParamType):
    """A finite number."""

    name = "number"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number."""
        try:
            return finite(str(value))
        except ValueError:
            return self.fail(f"{value!r} is not a number below {LARGEST:g}", param, ctx)
