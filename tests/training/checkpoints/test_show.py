"""training.checkpoints.show: costs counted by hand, settings, progress; checkpoints of ours and
released snapshots.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.released_layout import Layout, write_snapshot
from tests.tiny import ROOT, call, environment, tiny_config
from torch_utils.ops import library
from training.cameras import CameraSummary
from training.checkpoints import show as inspect
from training.checkpoints.checkpoint import Checkpoint, save_checkpoint
from training.checkpoints.released.interop import Weights
from training.checkpoints.weights_folder import write_weights_folder
from training.config.settings import ModelConfig
from training.networks.discriminator import Discriminator
from training.networks.generator import Generator
from training.networks.meter import Layer, measure_discriminator, measure_generator


def by_name(layers: list[Layer]) -> dict[str, Layer]:
    return {layer.name: layer for layer in layers}


@pytest.fixture(scope="module")
def published() -> dict[str, Layer]:
    """The published generator of 512 pixels."""
    return by_name(measure_generator(ModelConfig()))


# --------------------------------------------------------------------------------------------------
# Counts by hand


def test_a_modulated_convolution(published: dict[str, Layer]) -> None:
    """3x3, 512 to 256 channels at 128 pixels; the demodulation's product of styles and energies
    comes on top.
    """
    layer = published["backbone.synthesis.b128.conv1"]
    assert layer.output == [1, 256, 128, 128]
    assert layer.parameters == 256 * 256 * 9 + 256 + 1  # weight, bias, noise strength
    assert layer.multiply_adds == 256 * 256 * 9 * 128 * 128 + 256 * 256
    assert layer.output_bytes == 256 * 128 * 128 * 4
    assert layer.parameter_bytes == layer.parameters * 4


def test_an_upsampling_convolution_works_on_the_small_picture(published: dict[str, Layer]) -> None:
    layer = published["backbone.synthesis.b256.conv0"]
    assert layer.output == [1, 128, 256, 256]
    assert layer.multiply_adds == 256 * 128 * 9 * 128 * 128 + 256 * 128


def test_linear_layers(published: dict[str, Layer]) -> None:
    assert published["backbone.mapping.embed"].multiply_adds == 25 * 512
    assert published["backbone.mapping.fc0"].multiply_adds == 1024 * 512
    assert published["backbone.mapping.fc0"].parameters == 1024 * 512 + 512
    assert published["backbone.synthesis.b128.conv1.affine"].multiply_adds == 512 * 256


def test_colour_output(published: dict[str, Layer]) -> None:
    layer = published["backbone.synthesis.b256.torgb"]
    assert layer.output == [1, 96, 256, 256]
    assert layer.multiply_adds == 128 * 96 * 256 * 256


def test_the_decoder_runs_for_each_sample(published: dict[str, Layer]) -> None:
    samples = 64 * 64 * (48 + 48)
    assert published["decoder.net.0"].multiply_adds == samples * 32 * 64
    assert published["decoder.net.2"].multiply_adds == samples * 64 * 33
    assert published["decoder.net.0"].calls == 2


def test_rays_look_up_planes_and_sum_colours(published: dict[str, Layer]) -> None:
    samples = 64 * 64 * (48 + 48)
    look_ups = samples * 3 * 32 * 4
    sums = samples * 32
    rotations = 64 * 64 * 3 * 3
    assert published["(rays)"].multiply_adds == pytest.approx(look_ups + sums + rotations, rel=1e-4)


def test_rendering_resolution_scales_the_rays() -> None:
    small, large = (by_name(measure_generator(ModelConfig(), size)) for size in (32, 128))
    assert large["decoder.net.0"].multiply_adds == 16 * small["decoder.net.0"].multiply_adds
    assert large["backbone.synthesis.b64.conv0"] == small["backbone.synthesis.b64.conv0"]


def test_discriminator_by_hand() -> None:
    layers = by_name(measure_discriminator(ModelConfig()))
    assert layers["b512.fromrgb"].multiply_adds == 6 * 64 * 512 * 512
    assert layers["b512.conv0"].multiply_adds == 64 * 64 * 9 * 512 * 512
    assert layers["b512.conv1"].multiply_adds == 64 * 128 * 9 * 256 * 256
    assert layers["b512.skip"].multiply_adds == 64 * 128 * 256 * 256
    assert layers["b4.conv"].multiply_adds == 513 * 512 * 9 * 4 * 4
    assert layers["b4.fc"].multiply_adds == 512 * 16 * 512


def test_alias_free_layers_are_counted() -> None:
    config = ModelConfig()
    config.superresolution.kind = "alias_free"
    layers = measure_generator(config)
    assert (
        sum(layer.multiply_adds for layer in layers if layer.name.startswith("superresolution"))
        > 1e9
    )


@pytest.mark.parametrize("config", [ModelConfig(), tiny_config().model], ids=["published", "tiny"])
def test_no_parameter_is_missed(config: ModelConfig) -> None:
    with torch.device("meta"):
        networks: list[nn.Module] = [Generator(config), Discriminator(config)]
    for network, layers in zip(
        networks, (measure_generator(config), measure_discriminator(config)), strict=True
    ):
        assert sum(layer.parameters for layer in layers) == sum(
            value.numel() for value in network.parameters()
        )
        assert len({layer.name for layer in layers}) == len(layers)


def test_counts_agree_with_torchs_own() -> None:
    """PyTorch's counter of floating point operations, two a multiply-add, on products of
    matrices.
    """
    config = tiny_config().model
    with torch.device("meta"), library.path("reference"), torch.no_grad():
        discriminator = Discriminator(config)
        with FlopCounterMode(display=False) as counter:
            discriminator(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 8, 8), torch.zeros(1, 25))
    products = sum(
        count
        for name, count in counter.get_flop_counts()["Global"].items()
        if str(name) in ("aten.mm", "aten.addmm", "aten.bmm")
    )
    linear = [layer for layer in measure_discriminator(config) if layer.kind == "FullyConnected"]
    assert products == 2 * sum(layer.multiply_adds for layer in linear)


# --------------------------------------------------------------------------------------------------
# The command


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config("training.kimg=25", "training.gamma=3")
    networks = {"G_ema": Generator(config.model), "D": Discriminator(config.model)}
    states = {name: network.state_dict() for name, network in networks.items()}
    checkpoint = Checkpoint(
        config, {"images": 12500, "steps": 3125, "bad_steps": {"G": 0, "D": 2}}, **states
    )
    checkpoint.augment = {"p": 0.25}
    checkpoint.optimizers = {"G": {"step": 1}}
    checkpoint.cameras = CameraSummary(
        radius=2.5, pivot=(0.0, 0.0, 0.1), poses=torch.zeros(7, 25)
    ).to_dict()
    path = tmp_path_factory.mktemp("inspect") / "ckpt.pkl"
    save_checkpoint(path, checkpoint)
    return path


def as_json(network: Path, *arguments: str) -> dict:
    return json.loads(
        call(inspect.main, "--network", network, "--json", *arguments).assert_done().out
    )


def test_json_of_ours(ours: Path) -> None:
    found = as_json(ours)
    assert found["source"] == "ours"
    assert found["bytes"] == ours.stat().st_size
    assert found["progress"] == {
        "kimg": 12.5,
        "of_kimg": 25.0,
        "steps": 3125,
        "skipped_in_a_row": {"D": 2},
        "augment_p": 0.25,
    }
    assert found["config"]["training"]["gamma"] == 3
    assert found["config"]["model"]["resolution"] == 32
    assert found["can_resume"] is True
    assert set(found["networks"]) == {"G_ema", "D"}
    assert found["cameras"]["radius"] == 2.5
    assert found["cameras"]["poses"] == 7
    layer = found["generator"]["layers"][1]
    assert set(layer) == {
        "name",
        "kind",
        "output",
        "parameters",
        "parameter_bytes",
        "multiply_adds",
        "output_bytes",
        "calls",
    }
    for part in ("generator", "discriminator"):
        for name, value in found[part]["total"].items():
            assert value == sum(layer[name] for layer in found[part]["layers"])


def test_table_for_people(ours: Path) -> None:
    out = call(inspect.main, "--network", ours).assert_done().out
    assert "Progress: kimg 12.5, of_kimg 25, steps 3125" in out
    assert "* training.gamma = 3" in out
    assert "  training.lr_generator = 0.0025" in out
    row = next(
        line for line in out.splitlines() if line.startswith("superresolution.block1.conv1 ")
    )
    cells = row.split()
    assert cells[1:3] == ["SynthesisLayer", "1x4x32x32"]
    assert cells[3] == f"{4 * 4 * 9 + 4 + 1}"
    assert cells[4] == f"{4 * 4 * 9 * 32 * 32 + 16:,}"
    assert "Once an identity: " in out
    assert "Training can go on from it." in out


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_cameras_in_any_unit(tmp_path: Path, unit: float) -> None:
    """What is but rounding is told as 0, and not as -0."""
    cameras = CameraSummary(2.7 * unit, (0.0, -1e-7 * unit, 0.2 * unit)).to_dict()
    save_checkpoint(tmp_path / "a.pkl", Checkpoint(tiny_config(), cameras=cameras))
    out = call(inspect.main, "--network", tmp_path / "a.pkl").assert_done().out
    assert f"radius {2.7 * unit:.4g}, pivot (0, 0, {0.2 * unit:.4g})" in out


def test_a_folder_of_weights(tmp_path: Path) -> None:
    """Where a network is named a folder does as well."""
    model = tiny_config().model
    weights = Weights(model, None, None, Generator(model).state_dict(), None, "ours")
    write_weights_folder(tmp_path / "heads", weights)
    out = call(inspect.main, "--network", tmp_path / "heads").assert_done().out
    assert re.match(r".*heads: folder of weights, [\d.]+ [kM]B\n", out)
    assert "training.kimg" not in out
    found = json.loads(call(inspect.main, "--network", tmp_path / "heads", "--json").out)
    assert found["bytes"] == sum(file.stat().st_size for file in (tmp_path / "heads").iterdir())
    refused = call(inspect.main, "--network", tmp_path / "heads" / "model.safetensors")
    refused.assert_refused(1, "name the folder")


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (999.7, "1 kB"), (1234567, "1.23 MB"), (999_960_000, "1 GB")],
)
def test_units(number: float, text: str) -> None:
    assert inspect.in_units(number, "B") == text


def test_released_snapshots(tmp_path: Path) -> None:
    path = write_snapshot(tmp_path / "released.pkl", Layout(plane_channels=4))
    found = as_json(path)
    assert found["source"] == "released"
    assert found["progress"] == {}
    assert found["can_resume"] is False
    assert set(found["config"]) == {"model"}
    layers = {layer["name"]: layer for layer in found["generator"]["layers"]}
    assert (
        layers["superresolution.block1.conv0"]["multiply_adds"] == 128 * 64 * 9 * 64 * 64 + 128 * 64
    )
    assert layers["superresolution.block1.conv0"]["output"] == [1, 64, 128, 128]
    out = call(inspect.main, "--network", path).assert_done().out
    assert "released snapshot" in out
    assert "training.gamma" not in out
    assert "rendering.plane_axes" in out


def test_rendering_resolution_of_the_command(ours: Path) -> None:
    small, large = (
        {
            layer["name"]: layer["multiply_adds"]
            for layer in as_json(ours, "--nrr", size)["generator"]["layers"]
        }
        for size in ("8", "16")
    )
    assert large["decoder.net.0"] == 4 * small["decoder.net.0"]


@pytest.mark.parametrize(
    ("name", "content"), [("none.pkl", None), ("text.pkl", "text"), ("empty.pkl", "")]
)
def test_wrong_files_are_one_line(tmp_path: Path, name: str, content: str | None) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    call(inspect.main, "--network", tmp_path / name).assert_refused(1, name)


def test_wrong_options_are_one_line(ours: Path) -> None:
    call(inspect.main, "--network", ours, "--nrr", "0").assert_refused(2, "--nrr")
    call(inspect.main).assert_refused(2, "--network")


def test_as_a_module(ours: Path) -> None:
    command = [sys.executable, "-m", "training.checkpoints.show", "--network", str(ours), "--json"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == as_json(ours)
