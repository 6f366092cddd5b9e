"""Options of train.py are what the settings declare."""

from __future__ import annotations

import typing
from typing import Literal

import click
import pytest

import calc_metrics
import train
from cli.settings import SETTINGS, option_name, setting_option
from training.config.settings import declared_settings


def options_of(command: click.Command) -> dict[str, click.Option]:
    return {str(param.name): param for param in command.params if isinstance(param, click.Option)}


@pytest.mark.parametrize("parameter", SETTINGS)
def test_every_option_is_the_declared_one(parameter: str) -> None:
    option, declared = options_of(train.main)[parameter], declared_settings()[SETTINGS[parameter]]
    assert declared.about.option in option.opts
    assert option.help is not None
    assert option.help.startswith(declared.about.help.partition("  [")[0])
    if isinstance(option.type, (click.IntRange, click.FloatRange)):
        about = declared.about
        assert (option.type.min, option.type.max) == (about.lowest, about.highest)
        assert option.type.min_open != about.lowest_included
        assert option.type.max_open != about.highest_included
    if isinstance(option.type, click.Choice) and typing.get_origin(declared.hint) is Literal:
        assert tuple(option.type.choices) == typing.get_args(declared.hint)


def test_options_of_two_commands_are_one() -> None:
    train_options, metric_options = options_of(train.main), options_of(calc_metrics.main)
    for name in ("detector", "detector_weights", "lpips_weights", "identity_model", "pose_model"):
        assert train_options[name].help == metric_options[name].help


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("augment.target", "[default: 0.6]"),
        ("snapshot.keep_last", "[default: 10]"),
        ("training.gamma", None),  # presets disagree
        ("training.batch_gpu", "[default: all]"),
    ],
)
def test_defaults_are_told_where_all_presets_agree(name: str, default: str | None) -> None:
    @click.command()
    @setting_option(name)
    def command() -> None: ...

    (option,) = options_of(command).values()
    assert option.help is not None
    assert option.help.count("[default") == (default is not None)
    assert default is None or option.help.endswith(default)
    assert option.default is None or "UNSET" in repr(option.default)


def test_what_a_person_typed() -> None:
    given = dict.fromkeys(SETTINGS)
    assert option_name("rendering.resolution", given) == "--set rendering.resolution"
    assert option_name("rendering.resolution", {**given, "nrr_final": 8}) == "--nrr-final"
    assert option_name("generator.w_dim", given) == "--set generator.w_dim"
    assert option_name("data.path", given) == "--data"
