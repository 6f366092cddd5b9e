"""gen_samples.py: the parser of seeds, and the command itself, where it matters in a process of its
own.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import mrcfile
import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import gen_samples
from cli.values import Seeds
from media.pictures.grids import seed_latent, to_pictures
from open_eg3d import SHIPPED_MODEL, load_generator
from tests.tiny import PATIENCE, Ended, call, finish, start
from training.cameras import CameraSummary, cameras_of, orbit_pose, pack_label, pinhole_intrinsics
from training.checkpoints.checkpoint import Checkpoint, save_checkpoint
from training.config.presets import HEADS_BACKGROUND
from training.config.settings import Config
from training.networks.generator import Generator

COMMAND = Path(gen_samples.__file__)
SIZE = 32
LEVEL = 15.0  # the densities of the tiny model reach from about 6 to 28


# --------------------------------------------------------------------------------------------------
# Options


def parse(text: str) -> list[int]:
    return Seeds().convert(text, None, None)


def test_seeds_of_the_documentation():
    assert parse("0-10") == list(range(11))
    assert parse("1,5,7-9") == [1, 5, 7, 8, 9]
    assert parse(" 3 , 4 - 5 ") == [3, 4, 5]
    assert parse("4,2-4,2") == [4, 2, 3]
    assert parse("4294967295") == [2**32 - 1]


seed_ranges = st.tuples(st.integers(0, 10**6), st.integers(0, 50)).map(
    lambda pair: (pair[0], pair[0] + pair[1])
)


@given(st.lists(seed_ranges, min_size=1, max_size=8))
def test_any_list_of_ranges_parses_to_its_seeds(ranges: list[tuple[int, int]]):
    text = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
    seeds = parse(text)
    assert set(seeds) == {seed for first, last in ranges for seed in range(first, last + 1)}
    assert len(set(seeds)) == len(seeds)
    assert seeds[0] == ranges[0][0]


@given(st.text(max_size=12))
def test_any_text_is_seeds_or_a_bad_parameter(text: str):
    try:
        seeds = parse(text)
    except click.BadParameter:
        return
    assert seeds
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize(
    "text", ["5-1", "x", "", "1,", "-3", "1-2-3", "1.5", "4294967296", "0-99999999", "٣"]
)
def test_wrong_seeds_are_refused(text: str):
    with pytest.raises(click.BadParameter):
        parse(text)


def test_the_latent_of_a_seed_is_numpys():
    np.testing.assert_array_equal(
        seed_latent(7, 5), np.random.RandomState(7).randn(1, 5).astype(np.float32)
    )


def test_cameras_without_a_summary_look_at_the_box():
    model = Config().model
    model.resolution, model.generator.channel_base, model.generator.plane_resolution = SIZE, 64, 16
    model.rendering.box_warp, model.rendering.ray_start, model.rendering.ray_end = 1.6, 1.0, 3.0
    cameras = cameras_of(Generator(model))
    assert cameras.radius == 2.0
    assert cameras.pivot == (0, 0, 0)
    assert cameras.radius / cameras.intrinsics[0] == pytest.approx(1.6 / 1.2)  # visible width


# --------------------------------------------------------------------------------------------------
# The command


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights and a decoder that makes a density of both signs."""
    config = Config()
    model = config.model
    model.resolution = SIZE
    model.generator.z_dim = model.generator.w_dim = 16
    (
        model.generator.channel_base,
        model.generator.plane_resolution,
        model.generator.plane_channels,
    ) = 512, 32, 8
    model.superresolution.channels = (8, 8)
    (
        model.rendering.resolution,
        model.rendering.depth_resolution,
        model.rendering.depth_resolution_importance,
    ) = 16, 8, 8
    model.rendering.density_gain = 40.0
    torch.manual_seed(0)
    generator = Generator(model)
    yaw, pitch = torch.linspace(-0.6, 0.6, 9), torch.linspace(-0.1, 0.3, 9)
    cameras = CameraSummary.from_labels(
        pack_label(orbit_pose(yaw, pitch, 2.7), pinhole_intrinsics(3.0))
    )
    path = tmp_path_factory.mktemp("network") / "ckpt.pkl"
    save_checkpoint(
        path, Checkpoint(config=config, G_ema=generator.state_dict(), cameras=cameras.to_dict())
    )
    return path


def run(*arguments: str | Path) -> Ended:
    """The command in this process, which need not import everything again."""
    return call(gen_samples.main, *arguments)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_pictures_are_the_generators_and_the_same_twice(network: Path, tmp_path: Path):
    options = ("--network", network, "--seeds", "3,0-1", "--views", "-30,0,30", "--outdir")
    first = finish(start("gen_samples.py", *options, tmp_path / "a")).assert_done()
    run(*options, tmp_path / "b").assert_done()
    assert names(tmp_path / "a") == ["seed0000.png", "seed0001.png", "seed0003.png"]
    assert first.out.splitlines() == [
        str(tmp_path / "a" / f"seed{seed:04d}.png") for seed in (3, 0, 1)
    ]
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()

    generator = load_generator(network)
    cameras = CameraSummary.from_dict(generator.cameras or {})
    z = torch.from_numpy(np.random.RandomState(3).randn(1, 16)).float()
    ws = generator.mapping(z, cameras.frontal_label()[None])
    c = cameras.label(torch.tensor([-30.0, 0.0, 30.0]).deg2rad(), cameras.pitch)
    expected = np.concatenate(
        to_pictures(generator.synthesis(ws.expand(3, -1, -1), c).image), axis=1
    )
    picture = np.asarray(Image.open(tmp_path / "a" / "seed0003.png"))
    assert picture.shape == (SIZE, 3 * SIZE, 3)
    assert np.abs(picture.astype(int) - expected).max() <= 1


def test_rows_pitch_and_truncation(network: Path, tmp_path: Path):
    options: list[str | Path] = [
        "--network",
        network,
        "--seeds",
        "0-1",
        "--views",
        "10",
        "--pitch",
        "-5",
        "--nrr",
        "8",
    ]
    rows = "image,raw,depth,normals"
    run(*options, "--trunc", "0", "--rows", rows, "--outdir", tmp_path).assert_done()
    pictures = [np.asarray(Image.open(tmp_path / name)) for name in names(tmp_path)]
    assert pictures[0].shape == (4 * SIZE, SIZE, 3)
    np.testing.assert_array_equal(pictures[0], pictures[1])  # truncation 0: everyone is the average
    blocks = pictures[0][SIZE : 2 * SIZE].reshape(8, 4, 8, 4, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()  # raw has 8 x 8 pixels
    assert len(np.unique(pictures[0][:SIZE])) > 8


def test_transparent_pictures_are_the_others_over_their_background(tmp_path: Path):
    options = ("--network", SHIPPED_MODEL, "--seeds", "0", "--views", "-20,20", "--outdir")
    run(*options, tmp_path / "plain").assert_done()
    run(*options, tmp_path / "cut", "--transparent").assert_done()
    plain = np.asarray(Image.open(tmp_path / "plain" / "seed0000.png"), float)
    cut = np.asarray(Image.open(tmp_path / "cut" / "seed0000.png"), float)
    assert cut.shape == (64, 2 * 64, 4)
    alpha = cut[..., 3:] / 255
    assert 0.2 < (alpha > 0.5).mean() < 0.8
    over = cut[..., :3] * alpha + np.array(HEADS_BACKGROUND) * (1 - alpha)
    inside = (cut[..., :3] > 0) & (cut[..., :3] < 255)  # colours that were not clipped
    assert inside[alpha[..., 0] > 0.5].mean() > 0.9
    assert np.abs(over - plain)[inside].max() <= 2


def test_a_model_without_depth_has_no_wall(network: Path, tmp_path: Path):
    options = ("--network", network, "--seeds", "0", "--outdir", tmp_path, "--transparent")
    run(*options, "--remove-background").assert_refused(1, "--remove-background", "no wall")
    assert not names(tmp_path)


NOTE = "note: views leave the range of the training data"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), ()),
        (("--views", "-30,30"), ()),
        (("--views", "0,90"), ("yaws 0 to 90 degrees (training: -3",)),
        (("--views=-90,0", "--pitch", "60"), ("yaws -90 to 0", "pitches 60 to 60 degrees")),
    ],
)
def test_views_that_training_has_not_seen_are_named(
    network: Path, tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]
):
    files = ("--network", network, "--seeds", "0", "--outdir", tmp_path)
    ended = call(gen_samples.main, *files, *options).assert_done()
    assert (NOTE in ended.err) == bool(words)
    assert all(word in ended.err for word in words)


def test_help_has_a_short_name():
    assert "--network" in call(gen_samples.main, "-h").assert_done().out


def test_shapes_are_written_in_the_world_of_the_model(network: Path, tmp_path: Path):
    options: list[str | Path] = [
        "--network",
        network,
        "--seeds",
        "0",
        "--no-images",
        "--shape-res",
        "24",
        "--outdir",
        tmp_path,
    ]
    for kind in ("glb", "mrc"):
        done = run(*options, "--shapes", kind, "--shape-level", str(LEVEL)).assert_done()
        assert done.out.strip() == str(tmp_path / f"seed0000.{kind}")
    assert names(tmp_path) == ["seed0000.glb", "seed0000.mrc"]
    mesh = trimesh.load_mesh(tmp_path / "seed0000.glb")
    assert mesh.is_watertight
    with mrcfile.open(tmp_path / "seed0000.mrc") as volume:
        density, generator = volume.data.copy(), load_generator(network)
    with torch.no_grad():
        cameras = CameraSummary.from_dict(generator.cameras or {})
        ws = generator.mapping(seed_latent(0, 16), cameras.frontal_label()[None])
        at_vertices, _ = generator.query(
            torch.tensor(mesh.vertices[None], dtype=torch.float32), generator.planes(ws)
        )
        centre, _ = generator.query(torch.full((1, 1, 3), 0.5 / 24), generator.planes(ws))
    assert density[12, 12, 12] == pytest.approx(float(centre), rel=1e-3, abs=1e-3)
    on_cut = np.abs(mesh.vertices).max(axis=1) > 0.44  # or on the border of the cameras' view
    assert (~on_cut).sum() > 50
    found = at_vertices.numpy()[0, ~on_cut, 0]
    assert found.min() > LEVEL - 1
    assert np.median(found) == pytest.approx(LEVEL, abs=0.1)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--seeds", "5-1"], 2, "--seeds"),
        (["--seeds", "x"], 2, "--seeds"),
        (["--views", "left"], 2, "--views"),
        (["--rows", "colours"], 2, "--rows"),
        (["--trunc", "nan"], 2, "--trunc"),
        (["--no-images"], 2, "--shapes"),
        (["--shapes", "fbx"], 2, "--shapes"),
        (["--shapes", "ply", "--texture", "64"], 2, "--texture"),
        (
            ["--no-images", "--shapes", "ply", "--shape-res", "16", "--shape-level", "1e9"],
            1,
            "--shape-level",
        ),
    ],
)
def test_wrong_values_are_one_line(
    network: Path, tmp_path: Path, arguments: list[str], status: int, words: str
):
    done = run("--network", network, "--outdir", tmp_path / "out", *arguments)
    done.assert_refused(status, words)
    assert not list(tmp_path.rglob("seed*"))


def test_missing_options_and_wrong_files_are_one_line(network: Path, tmp_path: Path):
    (tmp_path / "text.pkl").write_text("not a network")
    (tmp_path / "file").write_text("")
    finish(start("gen_samples.py", "--seeds", "0")).assert_refused(2, "--network")
    cases: list[tuple[list[str | Path], int, str]] = [
        (["--network", tmp_path / "none.pkl", "--outdir", tmp_path / "out"], 1, "none.pkl"),
        (["--network", tmp_path / "text.pkl", "--outdir", tmp_path / "out"], 1, "text.pkl"),
        (["--network", network, "--outdir", tmp_path / "file"], 1, "file"),
    ]
    for arguments, status, words in cases:
        run(*arguments).assert_refused(status, words)


@pytest.mark.waits
def test_interruption_leaves_whole_files_only(network: Path, tmp_path: Path):
    command = [
        sys.executable,
        COMMAND,
        "--network",
        network,
        "--seeds",
        "0-99999",
        "--shapes",
        "ply",
        "--shape-res",
        "16",
    ]
    command += ["--shape-level", LEVEL, "--outdir", tmp_path]
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + PATIENCE
    while len(list(tmp_path.glob("*.ply"))) < 3:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert all(name.startswith("seed") for name in names(tmp_path))
    for path in tmp_path.glob("*.png"):
        Image.open(path).load()
    for path in tmp_path.glob("*.ply"):
        assert len(trimesh.load_mesh(path).faces)
