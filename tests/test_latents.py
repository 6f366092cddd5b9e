"""--latents and --edit of the command lines: what a file holds, and what they refuse."""

from __future__ import annotations

import re
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from PIL import Image

import export
import gen_samples
import gen_videos
from cli.values import Edits
from dnnlib.console import UserError
from media.pictures.grids import to_pictures
from open_eg3d import load_generator, map_latents, seed_latents
from tests.tiny import call
from tests.training.checkpoints.test_identities import write
from tests.training.inversion.test_parts import make_generator
from training.cameras import cameras_of
from training.inversion.directions import (
    edit_latents,
    sefa_directions,
    supervised_directions,
)
from training.networks.generator import Generator


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("latents") / "ckpt.pkl")


def front(generator: Generator, ws: torch.Tensor) -> np.ndarray:
    c = cameras_of(generator).label(0.0, 0.0)[None]
    return to_pictures(generator.synthesis(ws, c).image)[0]


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        return np.asarray(file)


def samples(network: Path, outdir: Path, *options: str) -> set[str]:
    arguments = ("--network", network, "--outdir", outdir, "--views", "0", "--pitch", "0")
    call(gen_samples.main, *arguments, *options).assert_done()
    return {path.name for path in outdir.iterdir()}


def test_samples_of_named_latents(network: Path, tmp_path: Path) -> None:
    assert samples(network, tmp_path, "--latents", "all") == {"ada.png", "b-2.png"}
    generator = load_generator(network)
    ws = generator.latents["ada"]["ws"][None]
    np.testing.assert_array_equal(picture(tmp_path / "ada.png"), front(generator, ws))
    both = samples(network, tmp_path / "2", "--latents", "ada", "--seeds", "3")
    assert both == {"seed0003.png", "ada.png"}
    samples(network, tmp_path / "3", "--latents", "ada", "--trunc", "0")
    average = generator.backbone.mapping.w_avg.expand_as(ws)
    np.testing.assert_array_equal(picture(tmp_path / "3/ada.png"), front(generator, average))


def test_edits_move_along_directions(network: Path, tmp_path: Path) -> None:
    samples(network, tmp_path, "--latents", "ada", "--edit", "hair=+2", "--edit", "sefa1=-1")
    generator = load_generator(network)
    ws = generator.latents["ada"]["ws"][None]
    moved = ws + 2 * generator.directions["hair"] - sefa_directions(generator)["sefa1"]
    np.testing.assert_array_equal(picture(tmp_path / "ada.png"), front(generator, moved))
    samples(network, tmp_path, "--seeds", "5", "--edit", "hair=-1.5")
    ws = map_latents(generator, seed_latents(generator, 5)) - 1.5 * generator.directions["hair"]
    np.testing.assert_array_equal(picture(tmp_path / "seed0005.png"), front(generator, ws))


def test_shapes_videos_and_pages(network: Path, tmp_path: Path) -> None:
    shown = ("--latents", "all", "--edit", "hair=0.5")
    shape = ("--no-images", "--shapes", "mrc", "--shape-res", "16")
    assert samples(network, tmp_path / "a", *shown, *shape) == {"ada.mrc", "b-2.mrc"}
    video = ("--network", network, "--frames", "2", *shown)
    call(gen_videos.main, *video, "--outdir", tmp_path / "b").assert_done()
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"ada.mp4", "b-2.mp4"}
    grid = (*video, "--seeds", "1,2", "--grid", "2x2", "--outdir", tmp_path / "c")
    call(gen_videos.main, *grid).assert_done()
    walk = (*video, "--interpolate", "--outdir", tmp_path / "c")
    call(gen_videos.main, *walk).assert_done()
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"grid.mp4", "interpolation.mp4"}
    page = tmp_path / "page.html"
    call(export.main, "--network", network, *shown, "--seeds", "3", "--dest", page).assert_done()
    assert re.findall(r'"name": ?"([^"]+)"', page.read_text())[:3] == ["seed 3", "ada", "b-2"]


def test_what_is_not_there_is_one_line(network: Path, tmp_path: Path) -> None:
    bare = write(tmp_path / "bare.pkl", latents={}, directions={})
    out = ("--outdir", tmp_path / "out")
    for path, options, words in (
        (network, ("--latents", "eve"), ("no latents 'eve'", "ada, b-2")),
        (bare, ("--latents", "all"), ("no named latents", "invert.py")),
        (network, ("--edit", "age=1"), ("no direction 'age'", "hair", "sefa8")),
    ):
        for command in (gen_samples.main, gen_videos.main):
            call(command, "--network", path, *options, *out).assert_refused(1, *words)
    for text in ("hair", "=2", "hair=x", "hair=nan"):
        call(gen_samples.main, "--network", network, "--edit", text).assert_refused(2, "hair=+2")
    to_file = ("--network", network, "--latents", "all", "--dest", tmp_path / "x.pkl")
    call(export.main, *to_file).assert_refused(2, "--latents")
    two = ("--network", network, "--latents", "all", "--grid", "3x1")
    call(gen_videos.main, *two).assert_refused(2, "--latents names 2")


def test_steps_add_up() -> None:
    assert Edits.joined([("a", 1.0), ("b", 2.0), ("a", -0.5)]) == {"a": 0.5, "b": 2.0}
    assert Edits().convert("hair=+2", None, None) == ("hair", 2.0)
    with pytest.raises(click.BadParameter):
        Edits().convert("hair=+2x", None, None)


# --------------------------------------------------------------------------------------------------
# Directions


def test_sefa_is_the_eigenvectors_of_the_style_layers() -> None:
    """Against numpy's singular vectors of the layers found by their parameters' names."""
    generator = make_generator()
    directions = sefa_directions(generator, 3)
    assert list(directions) == ["sefa1", "sefa2", "sefa3"]
    weights = [
        value.numpy() / np.sqrt(value.shape[1])
        for name, value in generator.backbone.synthesis.state_dict().items()
        if name.endswith("affine.weight")
    ]
    _, sizes, vectors = np.linalg.svd(np.concatenate(weights).astype(np.float64))
    assert sizes[0] > sizes[1] > sizes[2]
    for direction, vector in zip(directions.values(), vectors, strict=False):
        assert direction.shape == (generator.num_ws, generator.w_dim)
        assert torch.equal(direction[:1].expand_as(direction), direction)
        unit = direction[0].double().numpy() / np.linalg.norm(direction[0])
        assert abs(unit @ vector) == pytest.approx(1, abs=1e-5)


def test_double_precision_is_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """MPS has no float64: what becomes double has been moved to the CPU just before."""
    to_cpu, double = torch.Tensor.cpu, torch.Tensor.double
    moved: list[int] = []

    def cpu(tensor: torch.Tensor) -> torch.Tensor:
        found = to_cpu(tensor)
        moved.append(id(found))
        return found

    def checked(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point() and tensor.dtype != torch.float64:
            assert id(tensor) in moved[-1:], "float64 where a tensor may be on MPS"
        return double(tensor)

    generator = make_generator()
    w = map_latents(generator, torch.randn(20, generator.z_dim))[:, 0]
    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    monkeypatch.setattr(torch.Tensor, "double", checked)
    sefa_directions(generator, 2)
    supervised_directions(generator, w, {"hair": list(range(20))})
    assert moved


def test_a_sefa_step_is_a_deviation_of_latents() -> None:
    generator = make_generator()
    w = map_latents(generator, torch.randn(4000, generator.z_dim))[:, 0]
    for direction in sefa_directions(generator, 2).values():
        length = float(direction[0].norm())
        spread = float((w @ (direction[0] / length)).std())
        assert length == pytest.approx(spread, rel=0.1)


def test_supervised_directions_change_their_own_trait_alone() -> None:
    """Scores that are linear in w, one of them also in the other's direction."""
    generator = make_generator()
    w = map_latents(generator, torch.randn(600, generator.z_dim))[:, 0]
    slopes = torch.randn(generator.w_dim, 2, generator=torch.Generator().manual_seed(1))
    slopes[:, 1] += 0.5 * slopes[:, 0]
    values = w @ slopes
    noisy = values + 0.05 * values.std(0) * torch.randn(600, 2)
    scores = {"hair": (100 * noisy[:, 0] + 7).tolist(), "age": noisy[:, 1].tolist()}
    directions = supervised_directions(generator, w, scores)
    for index, (name, direction) in enumerate(directions.items()):
        changes = (direction[0] @ slopes) / values.std(0)
        assert changes[index] == pytest.approx(1, abs=0.1), name
        assert abs(changes[1 - index]) < 0.1, name
    ws = w[:1, None].expand(-1, generator.num_ws, -1)
    generator.directions = directions
    torch.testing.assert_close(
        edit_latents(generator, ws, {"hair": 2.0}), ws + 2 * directions["hair"]
    )
    with pytest.raises(UserError, match="too few for 2 traits"):
        supervised_directions(generator, w[:19], {name: [0.0] * 19 for name in scores})
    with pytest.raises(UserError, match="all scores of x are the same"):
        supervised_directions(generator, w, {"x": [1.0] * 600})
