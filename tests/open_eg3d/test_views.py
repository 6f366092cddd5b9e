"""Pictures, meshes and videos of a generator through the interface."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from torch import Tensor

import gen_samples
import open_eg3d
from dnnlib.console import UserError
from tests.tiny import call
from training.networks.generator import Generator


@pytest.fixture(scope="module")
def G() -> Generator:
    return open_eg3d.load_generator(open_eg3d.SHIPPED_MODEL)


@pytest.fixture(scope="module")
def ws(G: Generator) -> Tensor:
    return open_eg3d.map_latents(G, open_eg3d.seed_latents(G, [3, 8]), truncation_psi=0.8)


@pytest.fixture(scope="module")
def views(G: Generator, ws: Tensor) -> open_eg3d.Views:
    return open_eg3d.render(G, ws, open_eg3d.view_label(G, [-20.0, 0.0, 20.0]), normals=True)


def test_the_pictures_are_those_of_the_command_line(views: open_eg3d.Views, tmp_path: Path) -> None:
    """Seed 3 from three sides, as gen_samples.py writes it."""
    options = ["--seeds", "3", "--trunc", "0.8", "--views=-20,0,20", "--outdir", str(tmp_path)]
    network = ["--network", str(open_eg3d.SHIPPED_MODEL), "--device", "cpu"]
    assert call(gen_samples.main, *network, *options).status == 0
    strip = np.asarray(Image.open(tmp_path / "seed0003.png")).astype(int)
    ours = np.concatenate(list(views.pictures()[0]), axis=1)
    assert np.abs(ours - strip).max() <= 1  # rounding, in another batch


def test_shapes_and_ranges(views: open_eg3d.Views) -> None:
    assert views.labels.shape == (2, 3, 25)
    assert views.image.shape == views.image_raw.shape == (2, 3, 3, 64, 64)
    assert views.depth.shape == views.alpha.shape == (2, 3, 1, 64, 64)
    assert ((views.alpha >= 0) & (views.alpha <= 1)).all()
    for kind in ("image", "raw", "depth", "normals"):
        pictures = views.pictures(kind)
        assert pictures.shape == (2, 3, 64, 64, 3)
        assert pictures.dtype == np.uint8
        assert pictures.std() > 10


def test_normals_look_at_the_camera(views: open_eg3d.Views) -> None:
    """In the middle of a face from the front, mostly towards +z."""
    assert views.normals is not None
    middle = views.normals[:, 1, :, 28:36, 28:36]
    assert torch.allclose(middle.norm(dim=1), torch.ones(()), atol=1e-4)
    assert middle.mean(dim=(0, 2, 3))[2] > 0.6


def test_depth_is_the_distance_to_the_surface(views: open_eg3d.Views) -> None:
    """The camera stands 2.7 from the middle; a head is some 0.3 deep to either side."""
    depth = views.depth[:, :, 0, 28:36, 28:36]
    assert ((depth > 2.2) & (depth < 2.7)).all()


def test_batches_change_nothing(G: Generator, ws: Tensor, views: open_eg3d.Views) -> None:
    one = open_eg3d.render(G, ws[1:], views.labels[1], batch=1)
    assert torch.allclose(one.image[0], views.image[1], atol=1e-4)
    assert one.normals is None


def test_cameras_of_their_own(G: Generator, ws: Tensor, views: open_eg3d.Views) -> None:
    own = torch.stack([views.labels[0, :1], views.labels[1, 2:]])
    shown = open_eg3d.render(G, ws, own)
    assert torch.allclose(shown.image[1, 0], views.image[1, 2], atol=1e-4)
    single = open_eg3d.render(G, ws, views.labels[0, 0])
    assert single.image.shape == (2, 1, 3, 64, 64)


def test_latents(G: Generator, ws: Tensor) -> None:
    z = open_eg3d.seed_latents(G, 3)
    expected = np.random.RandomState(3).randn(1, G.z_dim)
    np.testing.assert_allclose(z.numpy(), expected, rtol=1e-6)
    from_numpy = open_eg3d.map_latents(G, expected, truncation_psi=0.8)
    assert torch.allclose(from_numpy, ws[:1], atol=1e-5)
    average = open_eg3d.map_latents(G, z, truncation_psi=0.0)
    assert torch.allclose(average[0, 0], G.backbone.mapping.w_avg)


def test_view_labels_are_those_of_the_training_data(G: Generator) -> None:
    cameras = open_eg3d.cameras_of(G)
    assert torch.equal(open_eg3d.view_label(G), cameras.frontal_label())
    turned = open_eg3d.view_label(G, yaw_degrees=30, pitch_degrees=-5)
    assert torch.equal(turned, cameras.label(math.radians(30), math.radians(-5)))


def test_mesh(G: Generator, ws: Tensor, tmp_path: Path) -> None:
    head = open_eg3d.mesh(G, ws[:1], resolution=40)
    assert head.is_watertight
    assert np.abs(head.vertices).max() < 0.6 * G.rendering.box_warp
    open_eg3d.save_mesh(tmp_path / "head.glb", head)
    read: Any = trimesh.load(tmp_path / "head.glb", force="mesh")
    assert len(read.faces) == len(head.faces)


def test_video(G: Generator, ws: Tensor, tmp_path: Path) -> None:
    path = open_eg3d.video(
        tmp_path / "heads.gif",
        G,
        ws,
        open_eg3d.camera_path(G, "wobble", 4, yaw_degrees=20),
        columns=2,
        panels=("image", "depth"),
        size=32,
        fps=10,
    )
    with Image.open(path) as film:
        assert film.size == (128, 32)
        assert getattr(film, "n_frames", 1) == 4


def test_a_walk_from_sample_to_sample(G: Generator, ws: Tensor, tmp_path: Path) -> None:
    still = open_eg3d.camera_path(G, "still", 3)
    path = open_eg3d.video(tmp_path / "walk.gif", G, ws, still, interpolate=True, size=32)
    with Image.open(path) as film:
        assert film.size == (32, 32)


def test_a_path_ends_where_it_begins(G: Generator) -> None:
    path = open_eg3d.camera_path(G, "wobble", 5, yaw_degrees=20)
    assert torch.equal(path[0], path[-1])
    yaw = open_eg3d.label_pose(path, open_eg3d.cameras_of(G).center).yaw_degrees
    assert torch.allclose(yaw, torch.tensor([0.0, 20.0, 0.0, -20.0, 0.0]), atol=0.1)


WRONG: dict[str, tuple[Callable[[Generator, Tensor], Any], str]] = {
    "seed": (
        lambda G, _: open_eg3d.seed_latents(G, [1, -2]),
        "seeds are whole numbers from 0 to 4294967295, not -2",
    ),
    "no seed": (lambda G, _: open_eg3d.seed_latents(G, []), "no seed is given"),
    "z": (
        lambda G, _: open_eg3d.map_latents(G, np.zeros(64)),
        r"z must have shape \(N, 64\), not \(64,\)",
    ),
    "labels": (
        lambda G, ws: open_eg3d.render(G, ws, torch.zeros(3, 16)),
        r"labels must have shape \(2, K, 25\), not \(2, 3, 16\)",
    ),
    "labels of other samples": (
        lambda G, ws: open_eg3d.render(G, ws, torch.zeros(3, 1, 25)),
        r"labels must have shape \(2, K, 25\), not \(3, 1, 25\)",
    ),
    "ws": (
        lambda G, ws: open_eg3d.render(G, ws[0], open_eg3d.view_label(G)),
        r"ws must have shape .*; a single one is ws\[None\]",
    ),
    "labels of NaN": (
        lambda G, ws: open_eg3d.render(G, ws, torch.full((25,), torch.nan)),
        "labels hold NaN or infinite numbers",
    ),
    "truncation as text": (
        lambda G, _: open_eg3d.map_latents(
            G, open_eg3d.seed_latents(G, [1]), truncation_psi=cast(float, "0.7")
        ),
        "truncation_psi must be a finite number, not '0.7'",
    ),
    "truncation of NaN": (
        lambda G, _: open_eg3d.map_latents(
            G, open_eg3d.seed_latents(G, [1]), truncation_psi=torch.nan
        ),
        "truncation_psi must be a finite number, not nan",
    ),
    "yaw as text": (
        lambda G, _: open_eg3d.view_label(G, yaw_degrees="left"),  # type: ignore[arg-type]
        "yaw_degrees must be degrees, numbers of one shape, not 'left'",
    ),
    "several meshes": (lambda G, ws: open_eg3d.mesh(G, ws), r"ws must have shape \(1, "),
    "path": (
        lambda G, _: open_eg3d.camera_path(G, "spiral"),
        "unknown camera path 'spiral'; known are circle",
    ),
    "ending": (
        lambda G, ws: open_eg3d.video("x.avi", G, ws),
        "cannot make x.avi .* endings are mp4, gif",
    ),
    "panels": (
        lambda G, ws: open_eg3d.video("x.gif", G, ws, panels=("shadow",)),
        "the panels shadow: .* panels image, raw, depth, normals",
    ),
    "export": (lambda G, _: open_eg3d.export(G, "x.pth"), "x.pth: .pth is no form of a generator"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_one_line(name: str, G: Generator, ws: Tensor) -> None:
    wrong, message = WRONG[name]
    with pytest.raises(UserError, match=message) as caught:
        wrong(G, ws)
    assert len(str(caught.value).splitlines()) == 1


def test_normals_that_were_not_asked_for(G: Generator, ws: Tensor) -> None:
    views = open_eg3d.render(G, ws[:1], open_eg3d.view_label(G))
    with pytest.raises(UserError, match=r"normals=True"):
        views.pictures("normals")
    with pytest.raises(UserError, match="no pictures of the kind 'sketch'"):
        views.pictures("sketch")


@pytest.mark.parametrize("name", ["copy.pkl", "folder", "page.html"])
def test_export(name: str, G: Generator, tmp_path: Path) -> None:
    written = open_eg3d.export(G, tmp_path / name, seeds=[0])
    assert written
    assert all(path.is_file() for path in written)
    if name != "page.html":
        again = open_eg3d.load_generator(tmp_path / name)
        assert all(
            torch.equal(value, again.state_dict()[key]) for key, value in G.state_dict().items()
        )
        assert again.cameras is not None
        assert torch.equal(again.cameras["poses"], open_eg3d.cameras_of(G).poses)
