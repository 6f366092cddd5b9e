"""Settings: JSON round trip, `section.field=value`, errors that name the place."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from dnnlib.console import UserError
from training.config.settings import (
    Config,
    ModelConfig,
    RenderingConfig,
    config_sections,
    declared_settings,
    differences,
    from_dict,
    set_option,
    to_dict,
)


def changed() -> Config:
    """A config in which settings of every type differ from their defaults."""
    config = Config()
    config.model.resolution = 128
    config.model.generator.pose_conditioning = False
    config.model.generator.conv_clamp = 256.0
    config.model.superresolution.channels = (128, 64)
    config.model.superresolution.conv_clamp = None
    config.model.rendering.ray_start = "auto"
    config.model.rendering.ray_end = 2.5
    config.model.rendering.background = (1.0, 0.5, 0.0)
    config.model.rendering.plane_axes = "released"
    config.data.path = "faces=1.zip"
    config.training.batch_gpu = 4
    config.snapshot.metrics = ("fid50k_full", "kid50k_full")
    return config


@pytest.mark.parametrize("config", [Config(), changed()])
def test_round_trip_through_json(config: Config) -> None:
    again = from_dict(Config, json.loads(json.dumps(to_dict(config), allow_nan=False)))
    assert again == config
    assert differences(again, config) == []


def test_settings_that_are_not_named_keep_their_default() -> None:
    model = from_dict(ModelConfig, {"rendering": {"box_warp": 2}})
    assert model == ModelConfig(rendering=RenderingConfig(box_warp=2.0))
    assert isinstance(model.rendering.box_warp, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"model": {"resolutoin": 64}},
            "config.model: unknown setting 'resolutoin'; known are resolution, generator",
        ),
        ({"model": 3}, "config.model: expected a group of settings, found 3"),
        ({"training": {"batch": "8"}}, "config.training.batch: '8' is not a whole number"),
        ({"training": {"batch": 8.5}}, "config.training.batch: 8.5 is not a whole number"),
        ({"training": {"batch": True}}, "config.training.batch: True is not a whole number"),
        ({"training": {"batch": None}}, "config.training.batch: None is not a whole number"),
        ({"training": {"gamma": "much"}}, "config.training.gamma: 'much' is not a number"),
        ({"training": {"gamma": False}}, "config.training.gamma: False is not a number"),
        ({"data": {"mirror": 1}}, "config.data.mirror: 1 is not true or false"),
        (
            {"model": {"rendering": {"plane_axes": "fixed"}}},
            "plane_axes: 'fixed' is not one of 'corrected', 'released'",
        ),
        (
            {"model": {"rendering": {"ray_start": "near"}}},
            "ray_start: 'near' is not a number or 'auto'",
        ),
        ({"model": {"rendering": {"background": [1, 1]}}}, "background: .* is not a list of 3"),
        ({"model": {"superresolution": {"channels": [64, "a"]}}}, "channels: .* is not a list"),
        ([], "config: expected a group of settings"),
    ],
)
def test_wrong_values_are_refused_with_their_place(values: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        from_dict(Config, values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "section", "field", "value"),
    [
        ("rendering.depth_resolution=24", "rendering", "depth_resolution", 24),
        ("training.gamma=1", "training", "gamma", 1.0),
        ("training.lr_generator=1e-3", "training", "lr_generator", 1e-3),
        ("rendering.ray_start=auto", "rendering", "ray_start", "auto"),
        ("rendering.ray_start=0.1", "rendering", "ray_start", 0.1),
        ("rendering.background=[1, 0.5, 0]", "rendering", "background", (1.0, 0.5, 0.0)),
        ("rendering.background=null", "rendering", "background", None),
        ("superresolution.channels=[32,16]", "superresolution", "channels", (32, 16)),
        ("data.mirror=true", "data", "mirror", True),
        ("data.path=a=b.zip", "data", "path", "a=b.zip"),
        ('augment.mode="ada"', "augment", "mode", "ada"),
        ("augment.mode=ada", "augment", "mode", "ada"),
        ("model.resolution=64", "model", "resolution", 64),
    ],
)
def test_set_option(assignment: str, section: str, field: str, value: Any) -> None:
    config = Config()
    set_option(config, assignment)
    found = getattr(config_sections(config)[section], field)
    assert found == value
    assert type(found) is type(value)
    assert set(differences(config, Config())) <= {f"{section}.{field}"}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("gamma=1", "'gamma=1' is not of the form section.field=value"),
        ("training.gamma", "not of the form section.field=value"),
        ("", "not of the form section.field=value"),
        ("trainign.gamma=1", "unknown section 'trainign'; known are .*training"),
        ("training.gama=1", "unknown setting 'training.gama'; section training has .*gamma"),
        ("model.generator=1", "unknown setting 'model.generator'; section model has resolution$"),
        ("training.batch=many", "training.batch: 'many' is not a whole number"),
        ("training.batch=8.0", "training.batch: 8.0 is not a whole number"),
        ("rendering.background=white", "rendering.background: 'white' is not a list of 3"),
        (
            "rendering.length_unit=",
            "rendering.length_unit: '' is not one of 'world', 'box'",
        ),
        ("training.kimg=1" + "0" * 400, "training.kimg: "),
        ("training.kimg=1" + "0" * 5000, "training.kimg: "),
        ("training.kimg=" + "[" * 100_000, "training.kimg: "),
    ],
)
def test_set_option_refuses(assignment: str, message: str) -> None:
    config = Config()
    with pytest.raises(UserError, match=message):
        set_option(config, assignment)
    assert config == Config()


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("training.d_reg_interval=0", "is 0; it must be at least 1"),
        ("training.gamma=-1", "is -1; it must be at least 0"),
        ("training.beta2=1", "is 1; it must be from 0 to below 1"),
        ("training.kimg=0", "is 0; it must be above 0"),
        ("generator.plane_resolution=48", "is 48; it must be a power of two from 4 to 4096"),
        ("rendering.background=[0,2,0]", "is .0.0, 2.0, 0.0.; each number must be from 0 to 1"),
        ("superresolution.channels=[4,0]", "is .4, 0.; each number must be at least 1"),
    ],
)
def test_set_option_shows_the_range(assignment: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^{assignment.partition('=')[0]} {message}$"):
        set_option(Config(), assignment)


def test_names_of_before() -> None:
    """`nrr_*` in files, and after --set."""
    values = to_dict(Config())
    del values["training"]["resolution_initial"], values["training"]["resolution_fade_kimg"]
    values["training"] |= {"nrr_initial": 32, "nrr_final": 128, "nrr_fade_kimg": 2.0}
    values["model"]["rendering"]["resolution"] = 48  # was that of the moment
    again = from_dict(Config, values)
    config = Config()
    config.training.resolution_initial, config.training.resolution_fade_kimg = 32, 2.0
    config.model.rendering.resolution = 128
    assert again == config
    assert "nrr_final" in values["training"]  # the caller's own is left as it is
    named = Config()
    for assignment in ("nrr_initial=32", "nrr_final=128", "nrr_fade_kimg=2"):
        set_option(named, f"training.{assignment}")
    assert named == config
    with pytest.raises(UserError, match=r"config.model.rendering.resolution: 'big' is not a whole"):
        from_dict(Config, {"training": {"nrr_final": "big"}})


def test_every_setting_is_declared_with_its_help() -> None:
    declared = declared_settings()
    names = {
        f"{name}.{item.name}"
        for name, section in config_sections(Config()).items()
        for item in dataclasses.fields(section)
        if not dataclasses.is_dataclass(getattr(section, item.name))
    }
    assert set(declared) == names
    for name, (_, default, about) in declared.items():
        assert about.help.endswith((".", "]", "...")), name
        about.check(name, default)  # a default lies in its own range


def test_every_setting_can_be_reached_by_name_and_survives_its_own_json() -> None:
    config = changed()
    again = Config()
    for name, section in config_sections(config).items():
        for item in dataclasses.fields(section):
            value = getattr(section, item.name)
            if not dataclasses.is_dataclass(value):
                set_option(again, f"{name}.{item.name}={json.dumps(value)}")
    assert again == config


def test_differences_name_the_settings() -> None:
    assert differences(Config(), Config()) == []
    names = [
        "model.resolution",
        "generator.pose_conditioning",
        "generator.conv_clamp",
        "superresolution.channels",
        "superresolution.conv_clamp",
        "rendering.ray_start",
        "rendering.ray_end",
        "rendering.background",
        "rendering.plane_axes",
        "data.path",
        "training.batch_gpu",
        "snapshot.metrics",
    ]
    assert sorted(differences(Config(), changed())) == sorted(names)
    assert differences(changed(), Config()) == differences(Config(), changed())


def test_configs_share_nothing() -> None:
    first = Config()
    first.model.rendering.box_warp = 9.0
    assert Config().model.rendering.box_warp == 1.0
