"""Modules of a released snapshot as the unpickler leaves them: attributes read with checks,
children, tensors by dotted name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from dnnlib.console import UserError
from training.checkpoints.released.pickle_machine import Stub

MAX_MODULES = 5000  # a 1024-pixel generator has about 150
MAX_CHILDREN = 500  # of one module, tensors likewise
MAX_DEPTH = 16
# a statistic that the released training kept beside the weights
DROPPED_BUFFERS = {"dataset_label_std"}


class Settings:
    """A dict of the file whose values are checked as they are read. Errors name `where`."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, dict):
            raise UserError(f"{where} has no settings")
        self.values: Mapping[str, Any] = values
        self.where = where

    def get(self, key: str, check: Callable[[Any], bool], kind: str, default: Any = ...) -> Any:
        """Value of `key`, which must pass `check`; `default` where it is absent."""
        value = self.values.get(key, default)
        if value is ...:
            raise UserError(f"{self.where} lacks {key}")
        if value is not default and not check(value):
            raise UserError(f"{self.where}: {key} is {_show(value)}, expected {kind}")
        return value

    def whole(self, key: str, low: int, high: int, default: Any = ...) -> int:
        """A whole number in [low, high]."""
        return self.get(
            key,
            lambda v: type(v) is int and low <= v <= high,
            f"a whole number from {low} to {high}",
            default,
        )

    def number(self, key: str, default: Any = ...) -> float:
        """A finite number."""
        return float(self.get(key, is_number, "a finite number", default))

    def flag(self, key: str, default: Any = ...) -> bool:
        """True or false."""
        return self.get(key, lambda v: type(v) is bool, "true or false", default)

    def fixed(self, key: str, expected: Any) -> None:
        """Refuse any value of `key` but `expected`, which is what our networks do; absent is
        fine.
        """
        self.get(
            key,
            lambda v: type(v) in (int, float, bool, str) and v == expected,
            f"{expected!r}, the only one supported",
            expected,
        )


class Part(Settings):
    """One module of the file: its class, its attributes, and what lies inside."""

    def __init__(self, module: Any, where: str) -> None:
        if not isinstance(module, Stub):
            raise UserError(f"{where} is no network module")
        super().__init__(module.state, where)
        self.class_name = module.name.name

    def require_class(self, name: str) -> None:
        """Refuse another class: it would compute something else from the same weights."""
        if self.class_name != name:
            raise UserError(
                f"{self.where} is of class {self.class_name[:60]!r}; only {name} is supported"
            )

    def children(self) -> dict[str, Part]:
        """Modules directly inside, by name."""
        modules = self.get("_modules", _is_group, "a group of modules", {})
        return {
            _check_name(name): Part(module, f"{self.where}.{name}")
            for name, module in modules.items()
            if module is not None
        }

    def child(self, path: str) -> Part:
        """The module at a dotted path."""
        part = self
        for name in path.split("."):
            inner = part.children()
            if name not in inner:
                raise UserError(f"{part.where} has no module {name}")
            part = inner[name]
        return part

    def walk(self) -> Iterator[tuple[str, Part]]:
        """This module (named "") and all inside it with their dotted names."""
        waiting, seen = [("", self, 0)], 0
        while waiting:
            name, part, depth = waiting.pop()
            seen += 1
            if seen > MAX_MODULES or depth > MAX_DEPTH:
                raise UserError(
                    f"{self.where} has more modules inside one another than any network"
                )
            yield name, part
            waiting += [
                (f"{name}.{key}".lstrip("."), inner, depth + 1)
                for key, inner in reversed(part.children().items())
            ]

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by dotted name."""
        return {
            f"{name}.{key}".lstrip("."): value
            for name, part in self.walk()
            for key, value in part.own_tensors().items()
        }

    def own_tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers of this module alone, frozen layers' included (those are stored
        among the buffers).
        """
        found: dict[str, Tensor] = {}
        for group in ("_parameters", "_buffers"):
            for key, value in self.get(group, _is_group, "a group of tensors", {}).items():
                if isinstance(value, Tensor) and key not in DROPPED_BUFFERS:
                    found[_check_name(key)] = value
                elif value is not None and not isinstance(value, Tensor):
                    raise UserError(f"{self.where}: {_check_name(key)} is no tensor")
        return found

    def shape(self, path: str, dims: int) -> torch.Size:
        """Shape of the tensor at a dotted path; it must have `dims` dimensions."""
        module, _, name = path.rpartition(".")
        part = self.child(module) if module else self
        tensor = part.own_tensors().get(name)
        if tensor is None or tensor.ndim != dims:
            raise UserError(f"{part.where} lacks a tensor {name} of {dims} dimensions")
        return tensor.shape


def _is_group(value: Any) -> bool:
    return isinstance(value, dict) and len(value) <= MAX_CHILDREN


def _check_name(name: Any) -> str:
    """A module's or tensor's name, which error messages may then show."""
    if not isinstance(name, str) or not re.fullmatch(r"\w{1,60}", name, re.ASCII):
        raise UserError("a module or tensor in it has a name that is none")
    return name


def is_number(value: Any) -> bool:
    """A finite number of ordinary size; true and false are none."""
    return type(value) in (int, float) and abs(value) < 1e30


def _show(value: Any) -> str:
    """A short text for a value of the file, which may be anything."""
    return (
        repr(value)[:60]
        if isinstance(value, (str, float, bool)) or is_number(value)
        else f"of type {type(value).__name__}"
    )
