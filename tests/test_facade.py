"""The facade that other people's programs import."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import open_eg3d
from dnnlib.console import UserError
from open_eg3d.opening import open_generator
from tests.released_layout import Layout, write_snapshot
from training.cameras import orbit_pose, pack_label, pinhole_intrinsics
from training.checkpoints.checkpoint import Checkpoint, save_checkpoint
from training.checkpoints.released.interop import Weights, read_released_snapshot
from training.config.settings import Config

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rendering = {"depth_resolution": 6, "depth_resolution_importance": 6}
    layout = Layout(plane_channels=4, neural_rendering_resolution=16, rendering=rendering)
    return write_snapshot(tmp_path_factory.mktemp("facade") / "released.pkl", layout)


def write_ours(path: Path, weights: Weights) -> Path:
    checkpoint = Checkpoint(
        Config(model=weights.config),
        G=weights.G,
        D=weights.D,
        G_ema=weights.G_ema,
        cameras=weights.cameras,
    )
    save_checkpoint(path, checkpoint)
    return path


def test_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert open_eg3d.__version__ == project["version"]


def test_documented_use(released: Path) -> None:
    G, D = open_eg3d.load_generator(released), open_eg3d.load_discriminator(str(released))
    for module in (G, D):
        assert not module.training
        assert all(
            not parameter.requires_grad and parameter.device.type == "cpu"
            for parameter in module.parameters()
        )
    z = torch.randn(2, 16)
    c = pack_label(
        orbit_pose(torch.tensor([0.2, -0.3]), 0.1, 2.7, (0, 0, 0.2)), pinhole_intrinsics(4.2647)
    )
    ws = G.mapping(z, c, truncation_psi=1, truncation_cutoff=None)
    planes = G.planes(ws, noise_mode="const")
    assert planes.shape == (2, 3, 4, 16, 16)
    out = G.synthesis(ws, c, neural_rendering_resolution=16, noise_mode="const", deterministic=True)
    again = G.render(planes, ws, c, neural_rendering_resolution=16, deterministic=True)
    assert out.image.shape == (2, 3, 128, 128)
    assert out.image_raw.shape == (2, 3, 16, 16)
    assert out.image_depth.shape == (2, 1, 16, 16)
    assert torch.equal(out.image, again.image)
    sigma, rgb = G.query(torch.zeros(2, 5, 3), G.planes(ws, noise_mode="const"))
    assert sigma.shape == (2, 5, 1)
    assert rgb.shape == (2, 5, 4)
    assert D(out.image, out.image_raw, c).shape == (2, 1)


def test_methods_are_differentiable(released: Path) -> None:
    G, D = open_eg3d.load_generator(released), open_eg3d.load_discriminator(released)
    z = torch.randn(1, 16, requires_grad=True)
    c = pack_label(orbit_pose(0.2, 0.1, 2.7, (0, 0, 0.2)), pinhole_intrinsics(4.2647))[
        None
    ].requires_grad_()
    out = G.synthesis(G.mapping(z, c), c)
    for gradient in torch.autograd.grad(D(out.image, out.image_raw, c).sum(), [z, c]):
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


def test_settings_are_live(released: Path) -> None:
    G = open_eg3d.load_generator(released)
    ws, points = torch.randn(1, G.num_ws, 24), torch.rand(1, 50, 3) - 0.5
    assert G.rendering.plane_axes == "released"
    before = G.query(points, G.planes(ws))[0]
    G.rendering.plane_axes = "corrected"
    assert not torch.allclose(G.query(points, G.planes(ws))[0], before)


def test_ours_and_released_give_the_same_networks(released: Path, tmp_path: Path) -> None:
    ours = write_ours(tmp_path / "ours.pkl", read_released_snapshot(released))
    for load in (open_eg3d.load_generator, open_eg3d.load_discriminator):
        first, second = load(released), load(ours)
        assert first.config == second.config
        state = second.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in first.state_dict().items())
    assert open_eg3d.load_generator(ours).cameras == {
        "radius": 2.7,
        "pivot": [0.0, 0.0, 0.2],
        "focal": 4.2647,
    }


def test_the_average_is_preferred(released: Path, tmp_path: Path) -> None:
    weights = read_released_snapshot(released)
    assert weights.G is not None
    weights.G = {name: value * 0 for name, value in weights.G.items()}
    G = open_eg3d.load_generator(write_ours(tmp_path / "ours.pkl", weights))
    assert G.backbone.synthesis.get_parameter("b4.const").abs().sum() > 0
    weights.G_ema = None
    G = open_eg3d.load_generator(write_ours(tmp_path / "ours.pkl", weights))
    assert G.backbone.synthesis.get_parameter("b4.const").abs().sum() == 0


def test_loading_changes_no_global_state(released: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
    open_eg3d.load_generator(released)
    assert torch.equal(torch.rand(3), expected)
    assert (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()) == before


def test_the_allocator_is_changed_only_where_asked(
    released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("open_eg3d.files.keep_freed_memory", lambda: asked.append(True))
    for load in (open_eg3d.load_generator, open_eg3d.load_discriminator):
        load(released)
        assert not asked
        load(released, reuse_memory=True)
        assert asked.pop()
    open_generator(released, torch.device("cpu"))
    assert asked


def test_bad_files(tmp_path: Path) -> None:
    for load in (open_eg3d.load_generator, open_eg3d.load_discriminator):
        with pytest.raises(UserError, match=r"none\.pkl"):
            load(tmp_path / "none.pkl")


def test_nothing_runs_when_loaded_in_a_fresh_process(tmp_path: Path) -> None:
    """Source text in the file would leave a mark; the process has no warnings and one line to
    say.
    """
    marker = tmp_path / "executed"
    source = f"open({str(marker)!r}, 'w').close()"
    path = write_snapshot(tmp_path / "s.pkl", Layout(plane_channels=4, module_src=source))
    code = (
        f"import open_eg3d; open_eg3d.load_generator({str(path)!r});"
        f" open_eg3d.load_discriminator({str(path)!r})"
    )
    command, environment = (
        [sys.executable, "-W", "error", "-c", code],
        {**os.environ, "PYTHONPATH": str(ROOT)},
    )
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "licence" in result.stderr
    assert result.stdout == ""
    assert not marker.exists()
