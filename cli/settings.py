"""Settings on the command line: options made from their declarations, and what was given."""

from __future__ import annotations

import functools
import json
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import click

from cli.values import FiniteRange
from dnnlib.console import UserError
from training.config.presets import PresetName, Sizes, make_config
from training.config.settings import Config, config_sections, declared_settings, set_option

F = TypeVar("F", bound=Callable[..., Any])


def parameter_of(option: str) -> str:
    """Name under which click hands over the value of an option."""
    return option.removeprefix("--").replace("-", "_")


# Option of train.py, as click hands it over -> setting that it changes.
SETTINGS = {
    parameter_of(declared.about.option): name
    for name, declared in declared_settings().items()
    if declared.about.option
}


def setting_option(name: str, **changes: Any) -> Callable[[F], F]:
    """The option that changes setting `section.field`, as it is declared there, or with other
    arguments of click.option.
    """
    declared = declared_settings()[name]
    about, kind = declared.about, _plain_type(declared.hint)
    assert about.option is not None
    default = None if "[default" in about.help else _default(name)
    text = about.help + (f"  [default: {default}]" if default is not None else "")
    names, arguments = about.option, dict[str, Any](default=None, help=text, metavar=about.metavar)
    if kind is bool:
        names += f"/--no-{about.option.removeprefix('--')}"
    elif kind is int:
        arguments["type"] = click.IntRange(about.lowest, about.highest)  # type: ignore[arg-type]
    elif kind is float:
        arguments["type"] = FiniteRange(
            about.lowest, about.highest, not about.lowest_included, not about.highest_included
        )
    elif typing.get_origin(kind) is Literal:
        arguments["type"] = click.Choice(typing.get_args(kind))
    elif typing.get_origin(kind) is tuple:
        arguments |= {"multiple": True, "default": ()}
    return click.option(names, **{**arguments, **changes})


def setting_options(*names: str) -> Callable[[F], F]:
    """The options of several settings, in this order."""

    def add(command: F) -> F:
        for name in reversed(names):
            command = setting_option(name)(command)
        return command

    return add


def _plain_type(hint: Any) -> Any:
    """The type of a setting that may also be null."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint


def _default(name: str) -> Any:
    """The default of a setting that is a number or a choice, unless presets disagree on it."""
    section, _, field = name.partition(".")
    values = {getattr(config_sections(config)[section], field) for config in _presets()}
    (value,) = values if len(values) == 1 else (None,)
    is_told = isinstance(value, (int, float, str)) and not isinstance(value, bool)
    return (f"{value:g}" if isinstance(value, float) else value) if is_told else None


@functools.cache
def _presets() -> list[Config]:
    return [
        make_config(preset, resolution, sizes)
        for preset in typing.get_args(PresetName)
        for sizes in typing.get_args(Sizes)
        for resolution in (64, 512)
    ]


# --------------------------------------------------------------------------------------------------
# What was given


def given_settings(options: Mapping[str, Any]) -> list[str]:
    """Assignments `section.field=value` for the options that were given on the command line, those
    of --set last.
    """
    assignments = [
        f"{SETTINGS[name]}={json.dumps(value)}"
        for name, value in options.items()
        if name in SETTINGS and value is not None
    ]
    return assignments + list(options["overrides"])


def option_name(setting: str, options: Mapping[str, Any]) -> str:
    """What a person typed to change `section.field`."""
    if setting == "data.path":
        return "--data"
    option = declared_settings()[setting].about.option
    given = option is not None and options[parameter_of(option)] is not None
    return option if given and option else f"--set {setting}"


def check_assignments(
    _: click.Context, __: click.Parameter, assignments: tuple[str, ...]
) -> tuple[str, ...]:
    """Refuse a --set that no run can follow."""
    for assignment in assignments:
        try:
            set_option(Config(), assignment)
        except UserError as error:
            raise click.BadParameter(str(error), param_hint="--set") from error
    return assignments
