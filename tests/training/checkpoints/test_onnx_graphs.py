"""The generator as ONNX graphs, run by onnxruntime beside PyTorch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from dnnlib.console import UserError
from tests.released_layout import Layout, write_snapshot
from tests.tiny import orbit_labels, tiny_config
from training.checkpoints.checkpoint import build_generator, load_weights
from training.checkpoints.onnx_graphs import (
    OPSET,
    write_image_graph,
    write_mapping_graph,
    write_planes_graph,
    write_synthesis_graph,
)
from training.networks.generator import Generator

# Sums in another order; running products as running sums of logarithms.
TOLERANCE = 2e-5


def random_generator(*settings: str) -> Generator:
    """A generator with a surface to see and a mean latent that truncation has something to do
    with.
    """
    torch.manual_seed(1)
    generator = Generator(tiny_config("rendering.density_gain=30", *settings).model)
    generator.backbone.mapping.w_avg.normal_()
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            nn.init.constant_(parameter, 0.3)
    return generator.eval().requires_grad_(False)


def run(path: Path, *inputs: Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    results: Any = session.run(
        None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    )
    return list(results)


def assert_close(found: list[np.ndarray], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == tuple(other.shape)
        np.testing.assert_allclose(
            one, other.numpy(), atol=TOLERANCE * float(other.abs().max()), rtol=0
        )


def test_latent_and_pose_to_planes(tmp_path: Path) -> None:
    generator = random_generator("generator.pose_conditioning=true", "generator.c_scale=1")
    write_planes_graph(tmp_path / "planes.onnx", generator)
    onnx.checker.check_model(str(tmp_path / "planes.onnx"), full_check=True)
    assert onnx.load(tmp_path / "planes.onnx").opset_import[0].version == OPSET
    seen = []
    for psi, count in ((1.0, 1), (0.6, 2), (0.0, 5)):
        z, c = torch.randn(count, generator.z_dim), orbit_labels(count)
        ws = generator.mapping(z, c, truncation_psi=psi)
        found = run(tmp_path / "planes.onnx", z, c, torch.tensor(psi))
        assert_close(found, [generator.planes(ws), ws])
        seen.append(found[0])
    assert np.abs(seen[0] - seen[1][:1]).max() > 0.01


def test_its_two_halves(tmp_path: Path) -> None:
    generator = random_generator("generator.pose_conditioning=true", "generator.c_scale=1")
    write_mapping_graph(tmp_path / "mapping.onnx", generator)
    write_synthesis_graph(tmp_path / "synthesis.onnx", generator)
    for count in (1, 3):
        z, c = torch.randn(count, generator.z_dim), orbit_labels(count)
        ws = generator.mapping(z, c)
        assert_close(run(tmp_path / "mapping.onnx", z, c), [ws])
        assert_close(run(tmp_path / "synthesis.onnx", ws), [generator.planes(ws)])


VARIANTS: list[tuple[int | None, tuple[str, ...]]] = [
    (None, ()),
    (
        None,
        (
            "rendering.ray_start=auto",
            "rendering.ray_end=auto",
            "rendering.background=[1,0.5,0]",
            "superresolution.kind=alias_free",
        ),
    ),
    (
        4,
        (
            "rendering.depth_resolution_importance=0",
            "rendering.plane_axes=released",
            "superresolution.antialias=false",
        ),
    ),
]


@pytest.mark.parametrize(
    ("resolution", "settings"), VARIANTS, ids=["default", "auto-limits", "one-pass"]
)
def test_planes_and_camera_to_picture(
    tmp_path: Path, resolution: int | None, settings: tuple[str, ...]
) -> None:
    generator = random_generator(*settings)
    write_image_graph(tmp_path / "image.onnx", generator, resolution)
    graph = onnx.load(tmp_path / "image.onnx").graph
    assert [item.name for item in graph.input] == ["planes", "ws", "c"]
    assert [item.name for item in graph.output] == ["image", "image_raw", "image_depth"]
    for c in orbit_labels(3, seed=4).split([1, 2]):
        ws = generator.mapping(torch.randn(len(c), generator.z_dim), c)
        planes = generator.planes(ws)
        expected = generator.render(planes, ws, c, resolution)
        assert expected.image_raw.shape[-1] == (resolution or generator.rendering.resolution)
        assert float(expected.alpha.max()) > 0.5
        found = run(tmp_path / "image.onnx", planes, ws, c)
        assert_close(found, [expected.image, expected.image_raw, expected.image_depth])


@pytest.mark.slow
def test_released_snapshots(tmp_path: Path) -> None:
    layout = Layout(
        plane_channels=4,
        neural_rendering_resolution=16,
        rendering={"depth_resolution": 6, "depth_resolution_importance": 6},
    )
    generator = build_generator(load_weights(write_snapshot(tmp_path / "released.pkl", layout)))
    write_planes_graph(tmp_path / "planes.onnx", generator)
    write_image_graph(tmp_path / "image.onnx", generator)
    z, c = torch.randn(1, generator.z_dim), orbit_labels(1)
    ws = generator.mapping(z, c, truncation_psi=0.7)
    planes, found_ws = run(tmp_path / "planes.onnx", z, c, torch.tensor(0.7))
    assert_close([planes, found_ws], [generator.planes(ws), ws])
    expected = generator.render(torch.from_numpy(planes), torch.from_numpy(found_ws), c)
    found = run(tmp_path / "image.onnx", torch.from_numpy(planes), torch.from_numpy(found_ws), c)
    assert_close(found, [expected.image, expected.image_raw, expected.image_depth])


def test_what_the_exporter_refuses_is_one_line(tmp_path: Path) -> None:
    generator = random_generator()

    def unknown_to_onnx(features: Tensor) -> tuple[Tensor, Tensor]:
        return torch.linalg.svd(features)[0][..., :1], features

    generator.decoder.forward = unknown_to_onnx
    with pytest.raises(UserError, match="does not take this network") as caught:
        write_image_graph(tmp_path / "image.onnx", generator)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_without_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"pip install 'open-eg3d\[onnx\]'"):
        write_planes_graph(tmp_path / "planes.onnx", random_generator())
