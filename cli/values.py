"""Kinds of values that several command lines take."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import click

from dnnlib.numbers import LARGEST, MAX_SEED, finite

MAX_SEEDS = 1_000_000


class Parsed(click.ParamType):
    """What `parse` makes of an option's text; its ValueErrors say what is wrong with the text."""

    def parse(self, text: str) -> Any:
        """The value."""
        raise NotImplementedError

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value of a text; a default that is none stays as it is."""
        try:
            return self.parse(value) if isinstance(value, str) else value
        except ValueError as error:
            return self.fail(str(error), param, ctx)


class Seeds(Parsed):
    """Seeds and ranges of seeds, ends included, in the order given: 0-10 or 1,5,7-9."""

    name = "seeds"

    def parse(self, text: str) -> list[int]:
        """List of different seeds."""
        seeds: dict[int, None] = {}
        for item in map(str.strip, text.split(",")):
            match = re.fullmatch(r"(\d{1,10})\s*(?:-\s*(\d{1,10}))?", item, re.ASCII)
            if not match:
                raise ValueError(f"{item!r} is neither a seed nor a range; write 0-10 or 1,5,7-9")
            first, last = int(match[1]), int(match[2] or match[1])
            if first > last:
                raise ValueError(f"the range {item!r} runs backwards; write {last}-{first}")
            if last > MAX_SEED or last - first >= MAX_SEEDS:
                limits = f"seeds go up to {MAX_SEED}, at most {MAX_SEEDS} at once"
                raise ValueError(f"{item!r}: {limits}")
            seeds.update(dict.fromkeys(range(first, last + 1)))
        return list(seeds)


class FiniteRange(click.FloatRange):
    """A finite number in a range."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class Commas(Parsed):
    """At least one value, separated by commas."""

    def __init__(self, name: str, parse_one: Callable[[str], Any], expected: str) -> None:
        self.name, self.parse_one, self.expected = name, parse_one, expected

    def parse(self, text: str) -> list[Any]:
        """List of values."""
        try:
            return [self.parse_one(item.strip()) for item in text.split(",")]
        except ValueError:
            raise ValueError(f"{text!r} is not a list of {self.expected}") from None


def some_of(name: str, *choices: str) -> Commas:
    """Some of `choices`, separated by commas."""
    return Commas(name, lambda text: choices[choices.index(text)], ", ".join(choices))


class Edits(Parsed):
    """A direction and how many steps to go along it: hair=+2."""

    name = "edit"

    def parse(self, text: str) -> tuple[str, float]:
        """(name, steps)."""
        name, _, steps = text.partition("=")
        try:
            amount = finite(steps)
        except ValueError:
            name = ""
        if not name.strip():
            raise ValueError(f"{text!r} is not of the form NAME=STEPS, such as hair=+2")
        return name.strip(), amount

    @staticmethod
    def joined(edits: Sequence[tuple[str, float]]) -> dict[str, float]:
        """Steps by name; what is named twice adds up."""
        steps: dict[str, float] = {}
        for name, amount in edits:
            steps[name] = steps.get(name, 0.0) + amount
        return steps


class Finite(Parsed):
    """A finite number."""

    name = "number"

    def parse(self, text: str) -> float:
        """The number."""
        try:
            return finite(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a number below {LARGEST:g}") from None
