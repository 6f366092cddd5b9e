"""What a session of the viewer sees, apart from the web."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dnnlib.console import UserError
from media.pictures.grids import seed_latent, shade_depth, shade_normals, to_pictures
from media.viewer.camera import aspect_of, bounded, orbit_of
from media.viewer.checkpoints import KEPT_MODELS, CheckpointFolder
from media.viewer.view_renderer import Latents, View, ViewRenderer, letterbox
from open_eg3d import load_generator
from tests.tiny import tiny_config
from training.cameras import CameraSummary
from training.checkpoints.checkpoint import Checkpoint, save_checkpoint
from training.networks.generator import Generator

ANYTHING: Any = (
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.text()
    | st.lists(st.floats(), max_size=4)
    | st.binary()
)


def tiny_generator(*assignments: str, seed: int = 3) -> Generator:
    torch.manual_seed(seed)
    generator = Generator(tiny_config(*assignments).model).eval().requires_grad_(False)
    output: Any = generator.decoder.net[2]
    output.bias[0] = 2.0
    generator.backbone.mapping.w_avg.normal_()
    generator.cameras = CameraSummary(
        2.7, (0.05, -0.1, 0.2), center=(0.0, 0.1, 0.0), yaw=0.1, pitch=-0.05
    ).to_dict()
    return generator


@pytest.fixture(scope="module")
def generator() -> Generator:
    return tiny_generator()


def test_pictures_are_the_generators(generator: Generator) -> None:
    renderer = ViewRenderer(generator)
    c = renderer.cameras.label(0.4, -0.2)[None]
    ws = generator.mapping(
        seed_latent(5, generator.z_dim), renderer.cameras.frontal_label()[None], 0.7, 2
    )
    out = generator.synthesis(ws, c, 12)
    wanted = {
        "image": to_pictures(out.image),
        "raw": to_pictures(out.image_raw),
        "depth": shade_depth(out.image_depth, out.alpha),
    }
    wanted["normals"] = shade_normals(generator, generator.planes(ws), c, out)
    latents = Latents(seed=5, truncation_psi=0.7, truncation_cutoff=2)
    for kind, pictures in wanted.items():
        picture = renderer.render(latents, View(kind, yaw=0.4, pitch=-0.2, resolution=12))
        assert np.abs(picture.astype(int) - pictures[0]).max() <= 1


def test_blending_ends_at_both_heads_and_mixing_takes_layers(generator: Generator) -> None:
    renderer = ViewRenderer(generator)
    first, second, style = (renderer.ws(Latents(seed=seed)) for seed in (1, 2, 3))
    assert torch.equal(renderer.ws(Latents(seed=1, other_seed=2, blend=1.0)), second)
    half = renderer.ws(Latents(seed=1, other_seed=2, blend=0.5))
    torch.testing.assert_close(half, (first + second) / 2)
    mixed = renderer.ws(Latents(seed=1, style_seed=3, style_layers=(2, 4)))
    for layer in range(generator.num_ws):
        assert torch.equal(mixed[:, layer], (style if 2 <= layer <= 4 else first)[:, layer])


def test_the_told_pose_reaches_the_mapping_network() -> None:
    generator = tiny_generator("generator.pose_conditioning=true")
    renderer = ViewRenderer(generator)
    told = renderer.ws(Latents(conditioning=(0.5, 0.1)))
    wanted = generator.mapping(
        seed_latent(0, generator.z_dim), renderer.cameras.label(0.5, 0.1)[None]
    )
    assert torch.equal(told, wanted)
    assert not torch.equal(told, renderer.ws(Latents()))


def test_one_visitors_samples_are_not_the_others(generator: Generator) -> None:
    before = dataclasses.replace(generator.rendering)
    first, second = ViewRenderer(generator), ViewRenderer(generator)
    view = View("raw", resolution=16)
    plain = second.render(Latents(), view)
    assert not np.array_equal(first.render(Latents(), dataclasses.replace(view, samples=9)), plain)
    assert np.array_equal(second.render(Latents(), view), plain)
    assert np.array_equal(first.render(Latents(), view), plain)
    assert generator.rendering == before
    assert next(first.generator.parameters()) is next(generator.parameters())


def test_planes_are_made_once_while_the_camera_moves(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer, calls = ViewRenderer(generator), []
    make = renderer.generator.planes

    def count_and_make(ws: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return make(ws)

    monkeypatch.setattr(renderer.generator, "planes", count_and_make)
    for yaw in (0.0, 0.1, 0.2):
        renderer.render(Latents(), View(yaw=yaw))
    assert len(calls) == 1
    renderer.render(Latents(seed=1), View())
    assert len(calls) == 2


# --------------------------------------------------------------------------------------------------
# Cameras


def test_the_lens_zooms_and_the_camera_stays(generator: Generator) -> None:
    renderer = ViewRenderer(generator)
    plain, zoomed = renderer.label(View(yaw=0.3)), renderer.label(View(yaw=0.3, zoom=2.0))
    assert torch.equal(plain, renderer.cameras.label(0.3, 0.0))
    assert torch.equal(plain[:16], zoomed[:16])
    torch.testing.assert_close(
        zoomed[[16, 18, 20, 21]], torch.stack([2 * plain[16], plain[18], 2 * plain[20], plain[21]])
    )
    same = renderer.label(View(yaw=0.3, field_of_view=renderer.field_of_view))
    torch.testing.assert_close(same, plain)
    assert renderer.label(View(field_of_view=90.0))[16] == pytest.approx(0.5)


def test_a_page_that_looks_from_an_orbits_camera_sees_from_there(generator: Generator) -> None:
    renderer = ViewRenderer(generator)
    pivot = np.array(renderer.cameras.pivot)
    for yaw, pitch, zoom in ((0.0, 0.0, 1.0), (1.2, 0.5, 2.0), (-3.0, -1.0, 0.5)):
        direction = np.array(
            [math.sin(yaw) * math.cos(pitch), math.sin(pitch), math.cos(yaw) * math.cos(pitch)]
        )
        shift = np.array([0.1, -0.2, 0.05])
        orbit = orbit_of(
            pivot + shift + direction * renderer.distance / zoom, pivot + shift, renderer
        )
        assert orbit is not None
        assert [orbit["yaw"], orbit["pitch"], orbit["zoom"]] == pytest.approx([yaw, pitch, zoom])
        assert orbit["shift"] == pytest.approx(shift)


@given(ANYTHING, ANYTHING)
def test_no_page_can_send_a_camera_that_breaks_a_picture(
    generator: Generator, position: Any, look_at: Any
) -> None:
    renderer = ViewRenderer(generator)
    for eye, target in (
        (position, look_at),
        ([position] * 3, (0.0, 0.0, 0.0)),
        (np.zeros(3), [look_at] * 3),
    ):
        orbit = orbit_of(eye, target, renderer)
        assert orbit is None or renderer.label(View(**orbit)).isfinite().all()
    assert 0.25 <= aspect_of(position, look_at) <= 4
    assert 3 <= bounded(position, 3, 5, 4) <= 5


@pytest.mark.parametrize("aspect", [0.25, 0.9, 1.0, 1.7, 4.0])
def test_letterboxes_have_the_windows_shape_and_the_picture_in_their_middle(aspect: float) -> None:
    picture = np.random.RandomState(0).randint(0, 255, (20, 20, 3)).astype(np.uint8)
    wide = letterbox(picture, aspect, (1, 2, 3))
    height, width, _ = wide.shape
    assert width / height == pytest.approx(aspect, rel=0.03)
    top, left = (height - 20) // 2, (width - 20) // 2
    assert np.array_equal(wide[top : top + 20, left : left + 20], picture)
    wide[top : top + 20, left : left + 20] = (1, 2, 3)
    assert (wide == (1, 2, 3)).all()


# --------------------------------------------------------------------------------------------------
# Checkpoints


def write_generator(path: Path, seed: int) -> Path:
    config = tiny_config()
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(
        path,
        Checkpoint(
            config,
            G_ema=Generator(config.model).state_dict(),
            cameras={"radius": 2.7, "pivot": (0, 0, 0)},
        ),
    )
    return path


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    write_generator(tmp_path / "secret.pkl", 0)
    inside = tmp_path / "inside"
    write_generator(inside / "first.pkl", 1)
    write_generator(inside / "runs" / "00000" / "second.pkl", 2)
    (inside / "notes.txt").write_text("not a checkpoint")
    (inside / "broken.pkl").write_text("hello")
    (inside / "link.pkl").symlink_to(tmp_path / "secret.pkl")
    (inside / "elsewhere").symlink_to(tmp_path)
    return CheckpointFolder(inside, load_generator)


def test_checkpoints_of_the_folder_are_listed_and_loaded(folder: CheckpointFolder) -> None:
    assert sorted(folder.names()) == ["broken.pkl", "first.pkl", "runs/00000/second.pkl"]
    first = folder.load("first.pkl")
    assert folder.load("first.pkl") is first
    second = folder.load("runs/00000/second.pkl")
    assert not torch.equal(first.decoder.net[0].weight, second.decoder.net[0].weight)
    assert len(folder._loaded) <= KEPT_MODELS


@pytest.mark.parametrize(
    "name",
    [
        "../secret.pkl",
        "link.pkl",
        "elsewhere/secret.pkl",
        "runs/../../secret.pkl",
        "notes.txt",
        "",
        ".",
        "/etc/passwd",
        "x\0.pkl",
        "first.pkl/",
    ],
)
def test_no_name_leads_out_of_the_folder(
    folder: CheckpointFolder, name: str, tmp_path: Path
) -> None:
    for attempt in (name, str(tmp_path / name)):
        with pytest.raises(UserError, match="no such checkpoint"):
            folder.load(attempt)


def test_a_broken_file_is_one_line(folder: CheckpointFolder) -> None:
    with pytest.raises(UserError, match=r"broken\.pkl"):
        folder.load("broken.pkl")


def test_without_a_folder_nothing_is_opened(tmp_path: Path) -> None:
    folder = CheckpointFolder(None, load_generator)
    assert folder.names() == []
    with pytest.raises(UserError, match="no such checkpoint"):
        folder.load(str(write_generator(tmp_path / "a.pkl", 0)))


def test_named_latents_and_directions_of_the_file() -> None:
    generator = tiny_generator()
    ws = torch.randn(generator.num_ws, generator.w_dim)
    step = torch.randn(generator.num_ws, generator.w_dim)
    generator.latents = {"ada": {"ws": ws, "camera": torch.zeros(25), "source": ""}}
    generator.directions = {"hair": step}
    renderer = ViewRenderer(generator)
    assert torch.equal(renderer.ws(Latents(identity="ada"))[0], ws)
    moved = renderer.ws(Latents(identity="ada", edits=(("hair", -2.0),)))[0]
    assert torch.equal(moved, ws - 2 * step)
    average = generator.backbone.mapping.w_avg.expand_as(ws)
    torch.testing.assert_close(renderer.ws(Latents(identity="ada", truncation_psi=0.0))[0], average)
    half = renderer.ws(Latents(identity="ada", other_seed=3, blend=0.5))[0]
    torch.testing.assert_close(half, (ws + renderer.ws(Latents(seed=3))[0]) / 2)
