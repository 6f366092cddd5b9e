"""Released snapshots: every weight and every setting arrives, and what our networks cannot do is
refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dnnlib.console import UserError
from tests.released_layout import (
    CORRECTED_AXES,
    RELEASED_AXES,
    SUPERRESOLUTIONS,
    Builder,
    Call,
    Layout,
    Ref,
    rule_tensor,
    write_pickle,
    write_snapshot,
)
from training.checkpoints.checkpoint import build_discriminator, build_generator
from training.checkpoints.released.interop import LICENCE_NOTE, Weights, read_released_snapshot
from training.config.settings import (
    DiscriminatorConfig,
    GeneratorConfig,
    ModelConfig,
    RenderingConfig,
    SuperResolutionConfig,
)

SHARED_SNAPSHOT = Path(__file__).parents[5] / "shared" / "interop" / "snapshot_layout_128.pkl"


def read(tmp_path: Path, layout: Layout, **options: Any) -> Weights:
    return read_released_snapshot(write_snapshot(tmp_path / "snapshot.pkl", layout, **options))


def assert_rule(weights: Weights) -> None:
    """Every tensor is what the rule says for its name, and all networks are there."""
    for state in (weights.G, weights.D, weights.G_ema):
        assert state
        for name, value in state.items():
            if not name.endswith("resample_filter"):
                assert torch.equal(value, rule_tensor(name, tuple(value.shape))), name


@pytest.mark.parametrize("superresolution", SUPERRESOLUTIONS)
def test_every_superresolution_class(tmp_path: Path, superresolution: str) -> None:
    weights = read(tmp_path, Layout(superresolution=superresolution))
    resolution, input_resolution, channels, _ = SUPERRESOLUTIONS[superresolution]
    assert weights.config.resolution == resolution
    assert weights.config.superresolution == SuperResolutionConfig(
        kind="standard",
        channels=channels,
        input_resolution=input_resolution,
        antialias=superresolution != "SuperresolutionHybridDeepfp32",
        noise_mode="none",
        use_noise=True,
        conv_clamp=256.0,
    )
    assert_rule(weights)
    for module in (build_generator(weights), build_discriminator(weights)):
        for name, value in module.state_dict().items():
            if not name.endswith("resample_filter"):
                assert torch.equal(value, rule_tensor(name, tuple(value.shape))), name


def test_settings_come_from_the_states(tmp_path: Path) -> None:
    layout = Layout(
        z_dim=10,
        w_dim=14,
        mapping_layers=3,
        plane_resolution=32,
        plane_channels=6,
        channel_base=256,
        channel_max=20,
        discriminator_channel_base=640,
        discriminator_channel_max=9,
        discriminator_mapping_layers=5,
        decoder_hidden=11,
        use_noise=False,
        backbone_clamp=128,
        superresolution_clamp=None,
        discriminator_clamp=64,
        mbstd_group_size=2,
        disc_c_noise=0.5,
        neural_rendering_resolution=128,
        plane_axes=CORRECTED_AXES,
        rendering={
            "c_gen_conditioning_zero": True,
            "c_scale": 0.5,
            "superresolution_noise_mode": "random",
            "sr_antialias": False,
            "depth_resolution": 64,
            "depth_resolution_importance": 32,
            "ray_start": 0.1,
            "ray_end": 2.6,
            "box_warp": 1.6,
            "white_back": True,
            "avg_camera_radius": 1.7,
            "avg_camera_pivot": [0, 0, 0],
        },
    )
    weights = read(tmp_path, layout)
    config = weights.config
    assert config.generator == GeneratorConfig(
        z_dim=10,
        w_dim=14,
        mapping_layers=3,
        pose_conditioning=False,
        c_scale=0.5,
        plane_resolution=32,
        plane_channels=6,
        channel_base=256,
        channel_max=20,
        use_noise=False,
        conv_clamp=128.0,
        decoder_hidden=11,
    )
    assert config.superresolution == SuperResolutionConfig(
        channels=(128, 64),
        input_resolution=64,
        antialias=False,
        noise_mode="random",
        use_noise=False,
        conv_clamp=None,
    )
    assert config.rendering == RenderingConfig(
        resolution=128,
        depth_resolution=64,
        depth_resolution_importance=32,
        ray_start=0.1,
        ray_end=2.6,
        box_warp=1.6,
        background=(1.0, 1.0, 1.0),
        plane_axes="corrected",
        fine_sampling="released",
        density_gain=1.0,
    )
    assert config.discriminator == DiscriminatorConfig(
        channel_base=640,
        channel_max=9,
        mapping_layers=5,
        mbstd_group_size=2,
        conv_clamp=64.0,
        c_noise=0.5,
    )
    assert weights.cameras == {"radius": 1.7, "pivot": [0.0, 0.0, 0.0], "focal": 131.25 / 128}
    assert weights.source == "released"
    assert build_generator(weights).cameras == weights.cameras
    build_discriminator(weights)


def test_absent_settings(tmp_path: Path) -> None:
    """White background, pose scale and camera may be missing, and what that means is fixed by the
    format.
    """
    rendering = {
        "c_scale": None,
        "white_back": None,
        "avg_camera_radius": None,
        "avg_camera_pivot": None,
        "ray_start": "auto",
        "ray_end": "auto",
    }
    weights = read(tmp_path, Layout(rendering=rendering, plane_axes=None))
    assert weights.config.generator.c_scale == 0
    assert weights.config.generator.pose_conditioning
    assert weights.config.rendering.background is None
    assert weights.config.rendering.ray_start == "auto"
    assert weights.config.rendering.ray_end == "auto"
    assert weights.config.rendering.plane_axes == "released"
    assert weights.cameras is None


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        (Layout(frozen=True), {}),
        (Layout(label_std=True), {}),
        (Layout(easy_dict=True), {}),
        (Layout(), {"location": "cuda:0"}),
        (Layout(), {"protocol": 3, "numpy_module": "numpy.core.multiarray"}),
        (Layout(), {"protocol": 5}),
        (Layout(module_src="raise SystemExit('this text was run')"), {}),
    ],
)
def test_variants_read_the_same(tmp_path: Path, layout: Layout, options: dict[str, Any]) -> None:
    plain, weights = read(tmp_path, Layout()), read(tmp_path, layout, **options)
    assert weights.config == plain.config
    assert weights.cameras == plain.cameras
    assert_rule(weights)
    for name in ("G", "D", "G_ema"):
        assert list(getattr(weights, name)) == list(getattr(plain, name))
    build_generator(weights)
    build_discriminator(weights)


@pytest.fixture
def snapshot_128(tmp_path: Path) -> Path:
    """The file that ships with the interoperability numbers where it is at hand, else one written
    here with the same content.
    """
    if SHARED_SNAPSHOT.exists():
        return SHARED_SNAPSHOT
    layout = Layout(
        z_dim=512,
        w_dim=512,
        plane_resolution=256,
        channel_base=1024,
        channel_max=16,
        discriminator_channel_base=1024,
        discriminator_channel_max=16,
        discriminator_mapping_layers=8,
        discriminator_clamp=None,
        decoder_hidden=64,
        rendering={"depth_resolution_importance": 48},
    )
    return write_snapshot(tmp_path / "snapshot_layout_128.pkl", layout)


def test_the_given_snapshot(snapshot_128: Path) -> None:
    weights = read_released_snapshot(snapshot_128)
    assert_rule(weights)
    assert weights.config == ModelConfig(
        resolution=128,
        generator=GeneratorConfig(channel_base=1024, channel_max=16),
        superresolution=SuperResolutionConfig(channels=(128, 64), input_resolution=64),
        rendering=RenderingConfig(plane_axes="released", fine_sampling="released"),
        discriminator=DiscriminatorConfig(channel_base=1024, channel_max=16, conv_clamp=None),
    )
    assert weights.cameras == {"radius": 2.7, "pivot": [0.0, 0.0, 0.2], "focal": 4.2647}
    generator, discriminator = build_generator(weights), build_discriminator(weights)
    assert torch.equal(
        generator.backbone.mapping.w_avg, rule_tensor("backbone.mapping.w_avg", (512,))
    )
    assert torch.equal(discriminator.state_dict()["b4.out.bias"], rule_tensor("b4.out.bias", (16,)))


def test_files_with_fewer_networks(tmp_path: Path) -> None:
    builder = Builder(Layout())
    only_average = read_released_snapshot(
        write_pickle(tmp_path / "a.pkl", {"G_ema": builder.generator()})
    )
    assert (only_average.G, only_average.D) == (None, None)
    build_generator(only_average)
    only_plain = read_released_snapshot(
        write_pickle(tmp_path / "b.pkl", {"G": builder.generator(), "D": None})
    )
    assert only_plain.G_ema is None
    build_generator(only_plain)
    with pytest.raises(UserError, match="no discriminator"):
        build_discriminator(only_plain)


def test_channel_settings_that_are_not_stated(tmp_path: Path) -> None:
    """Then they follow from the blocks' widths."""
    snapshot = Builder(Layout(channel_base=200, channel_max=30, plane_resolution=64)).snapshot()
    for name in ("G", "G_ema"):
        module(snapshot, f"{name}.backbone.synthesis")["_init_kwargs"] = {}
    config = read_released_snapshot(write_pickle(tmp_path / "s.pkl", snapshot)).config.generator
    widths = [min(config.channel_base // size, config.channel_max) for size in (4, 8, 16, 32, 64)]
    assert widths == [30, 25, 12, 6, 3]


def test_licence_note_appears_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from training.checkpoints.released.interop import _print_licence_note

    _print_licence_note.cache_clear()
    for _ in range(2):
        read(tmp_path, Layout())
    assert capfd.readouterr().err == LICENCE_NOTE + "\n"


# --------------------------------------------------------------------------------------------------
# What is refused


def module(snapshot: dict[str, Any], path: str) -> dict[str, Any]:
    """State of the module at a dotted path of a snapshot that is about to be written."""
    first, *rest = path.split(".")
    call: Call = snapshot[first]
    for name in rest:
        call = state_of(call)["_modules"][name]
    return state_of(call)


def state_of(call: Call) -> dict[str, Any]:
    return call.state if call.state is not None else call.args[0]["state"]


def refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], layout: Layout | None = None
) -> str:
    """The one line that a changed snapshot is answered with."""
    snapshot = Builder(layout or Layout()).snapshot()
    change(snapshot)
    with pytest.raises(UserError) as caught:
        read_released_snapshot(write_pickle(tmp_path / "changed.pkl", snapshot))
    message = str(caught.value)
    assert message.isprintable()
    assert "changed.pkl" in message
    return message


def set_attribute(path: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda snapshot: module(snapshot, path).update({key: value})


def remove(path: str, key: str, group: str | None = None) -> Callable[[dict[str, Any]], None]:
    return lambda snapshot: (
        module(snapshot, path)[group] if group else module(snapshot, path)
    ).pop(key)


def rename_class(path: str, name: str) -> Callable[[dict[str, Any]], None]:
    def change(snapshot: dict[str, Any]) -> None:
        first, *rest = path.split(".")
        call = snapshot[first]
        for part in rest:
            call = state_of(call)["_modules"][part]
        call.args[0]["class_name"] = name

    return change


@pytest.mark.parametrize(
    "key",
    [
        "c_gen_conditioning_zero",
        "superresolution_noise_mode",
        "depth_resolution",
        "ray_start",
        "box_warp",
    ],
)
def test_missing_scene_settings(tmp_path: Path, key: str) -> None:
    message = refused(tmp_path, lambda _: None, Layout(rendering={key: None}))
    assert message.endswith(f"G_ema.rendering_kwargs lacks {key}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("clamp_mode", "relu"),
        ("disparity_space_sampling", True),
        ("density_noise", 1.0),
        ("superresolution_noise_mode", "loud"),
        ("depth_resolution", 0),
        ("depth_resolution", 48.5),
        ("depth_resolution", 10**9),
        ("box_warp", "wide"),
        ("box_warp", float("nan")),
        ("ray_start", "auto"),
        ("ray_end", [3]),
        ("white_back", 1),
        ("c_scale", "one"),
        ("avg_camera_pivot", [0, 0]),
        pytest.param("depth_resolution", 10**5000, id="huge"),
    ],
)
def test_scene_settings_of_the_wrong_kind(tmp_path: Path, key: str, value: Any) -> None:
    assert key in refused(tmp_path, lambda _: None, Layout(rendering={key: value}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            rename_class("G_ema.superresolution", "SuperresolutionHybrid9X"),
            "unknown class 'SuperresolutionHybrid9X'; known are",
        ),
        (rename_class("G_ema", "Generator"), "only TriPlaneGenerator"),
        (rename_class("D", "DummyDualDiscriminator"), "only DualDiscriminator"),
        (set_attribute("G_ema", "img_resolution", 256), "made for 128 pixels"),
        (set_attribute("G_ema", "c_dim", 0), "c_dim"),
        (remove("G_ema", "neural_rendering_resolution"), "lacks neural_rendering_resolution"),
        (remove("G_ema", "rendering_kwargs"), "lacks rendering_kwargs"),
        (remove("G_ema", "decoder", "_modules"), "no module decoder"),
        (remove("G_ema.backbone.synthesis", "b8", "_modules"), "no complete series of blocks"),
        (remove("G_ema.backbone.mapping", "fc0", "_modules"), "fc0"),
        (remove("D", "b4", "_modules"), "no complete series of blocks"),
        (remove("D", "b128", "_modules"), "made for 64 pixels, the generator for 128"),
        (remove("D.b4", "mbstd", "_modules"), "no module mbstd"),
        (set_attribute("D.b4.mbstd", "num_channels", 2), "num_channels"),
        (set_attribute("D.b32.conv1", "conv_clamp", 3), "do not agree on conv_clamp"),
        (
            set_attribute("G_ema.superresolution.block1.torgb", "conv_clamp", None),
            "do not agree on conv_clamp",
        ),
        (
            set_attribute("G_ema.backbone.synthesis.b8.conv1", "use_noise", False),
            "do not agree on use_noise",
        ),
        (set_attribute("G_ema.superresolution", "input_resolution", 32), "input_resolution"),
        (set_attribute("G_ema.decoder.net.0", "bias_gain", 2), "learning-rate multiplier"),
        (
            set_attribute("G_ema.backbone.mapping.fc1", "weight_gain", 0.5),
            "learning-rate multiplier",
        ),
        (set_attribute("G_ema.renderer", "plane_axes", RELEASED_AXES.flip(0)), "plane_axes"),
        (set_attribute("G_ema.renderer", "plane_axes", -RELEASED_AXES), "plane_axes"),
        (set_attribute("G_ema.renderer", "plane_axes", RELEASED_AXES * 0), "plane_axes"),
        (set_attribute("G_ema.renderer", "plane_axes", RELEASED_AXES * 2), "plane_axes"),
        (set_attribute("G_ema.renderer", "plane_axes", "abc"), "plane_axes"),
        (set_attribute("G_ema", "_modules", None), "_modules"),
        (set_attribute("G_ema", "_modules", {"a\n\x1b[1m": 3}), "name"),
        (set_attribute("G", "_parameters", {"weight": 3}), "weight is no tensor"),
        (
            lambda s: module(s, "D")["_buffers"].update(resample_filter=torch.ones(4, 4)),
            "resample_filter",
        ),
        (lambda s: s.update(G_ema=3), "G_ema is no network module"),
        (lambda s: (s.pop("G"), s.pop("G_ema")), "neither G_ema nor G"),
    ],
)
def test_what_our_networks_cannot_be(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    assert words in refused(tmp_path, change)


@pytest.mark.parametrize(
    "content", [3, [], None, "G_ema", {}, {"G_ema": None}, Call(Ref("a", "b"))]
)
def test_pickles_that_are_no_snapshots(tmp_path: Path, content: Any) -> None:
    with pytest.raises(UserError, match="no snapshot"):
        read_released_snapshot(write_pickle(tmp_path / "x.pkl", content))


def test_modules_inside_themselves(tmp_path: Path) -> None:
    def change(snapshot: dict[str, Any]) -> None:
        state = module(snapshot, "G_ema.renderer")
        loop = Call(Ref("a", "Loop"), (), {"_modules": {}}, new=True)
        loop.state["_modules"]["inner"] = loop
        state["_modules"]["loop"] = loop

    assert "more modules inside one another" in refused(tmp_path, change)


def test_modules_that_double(tmp_path: Path) -> None:
    """Each level holds the next twice: few bytes, but 2^15 dotted names."""

    def change(snapshot: dict[str, Any]) -> None:
        inner = Call(Ref("a", "Leaf"), (), {}, new=True)
        for _ in range(15):
            inner = Call(Ref("a", "Twice"), (), {"_modules": {"a": inner, "b": inner}}, new=True)
        module(snapshot, "G_ema")["_modules"]["twice"] = inner

    assert "more modules" in refused(tmp_path, change)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    snapshot = Builder(Layout()).snapshot()
    state = module(snapshot, "G_ema.superresolution.block1.conv0")
    state["_parameters"]["weight"] = torch.zeros(3, 3)
    state["_parameters"]["extra"] = torch.zeros(3)
    del module(snapshot, "G_ema.decoder.net.0")["_parameters"]["bias"]
    weights = read_released_snapshot(write_pickle(tmp_path / "s.pkl", snapshot))
    with pytest.raises(UserError) as caught:
        build_generator(weights)
    message = str(caught.value)
    assert "1 missing: decoder.net.0.bias" in message
    assert "1 unexpected: superresolution.block1.conv0.extra" in message
    assert (
        "1 differing: superresolution.block1.conv0.weight (3x3 in the file, 64x128x3x3 here)"
        in message
    )


def plane_coordinates(points: Tensor, axes: Tensor) -> Tensor:
    """Reference for a renderer's projection: the first two of p A^-1, for every plane."""
    return torch.stack(
        [torch.linalg.solve(matrix.T.double(), points.double().T).T[:, :2] for matrix in axes]
    )


@pytest.mark.parametrize(("axes", "third"), [(RELEASED_AXES, [2, 0]), (CORRECTED_AXES, [2, 1])])
def test_test_layouts_axes_are_what_they_are_called(axes: Tensor, third: list[int]) -> None:
    points = torch.randn(5, 3)
    expected = torch.stack([points[:, [0, 1]], points[:, [0, 2]], points[:, third]]).double()
    torch.testing.assert_close(plane_coordinates(points, axes), expected)


def test_config_is_complete(tmp_path: Path) -> None:
    """A setting added to the model needs a decision here about what released models have."""
    config = read(tmp_path, Layout()).config
    known = {
        "resolution": 1,
        "generator": 16,
        "superresolution": 7,
        "rendering": 14,
        "discriminator": 8,
    }
    counts = {
        item.name: (
            len(dataclasses.fields(value))
            if dataclasses.is_dataclass(value := getattr(config, item.name))
            else 1
        )
        for item in dataclasses.fields(config)
    }
    assert counts == known
