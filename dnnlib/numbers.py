"""Limits of the numbers that people type."""

from __future__ import annotations

MAX_SEED = 2**32 - 1  # the largest that numpy's RandomState takes
LARGEST = 1e30  # of numbers that networks compute with


def finite(text: str) -> float:
    """Number from text; ValueError for anything else, infinities, NaN and what float32 cannot hold
    included.
    """
    number = float(text)
    if not abs(number) < LARGEST:
        raise ValueError(text)
    return number


def counted(count: int, one: str, many: str = "") -> str:
    """A number with the noun that goes with it: 1 picture, 2 pictures."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def significant(number: float, digits: int = 9) -> float:
    """Rounded to so many digits, wherever the point is; nine tell all numbers of fp32 apart."""
    return float(f"{number:.{digits}g}")
