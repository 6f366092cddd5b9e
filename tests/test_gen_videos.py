"""gen_videos.py: the command itself, in this process and as a process that is interrupted."""

from __future__ import annotations

import json
import math
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import gen_videos
from media.pictures.grids import seed_latent, to_uint8
from open_eg3d import load_generator
from tests.media.videos.test_videos import read_gif, read_mp4
from tests.released_layout import Layout, write_snapshot
from tests.tiny import PATIENCE, Ended, call, finish, start, tiny_config
from training.cameras import orbit_pose, pack_label, pinhole_intrinsics
from training.checkpoints.checkpoint import Checkpoint, save_checkpoint
from training.data.scene import CameraSummary, cameras_of
from training.networks.generator import Generator

SIZE = 32


def write_network(path: Path, yaws: float = 0.6) -> Path:
    """A tiny model with random weights whose data have yaws to either side."""
    config = tiny_config("rendering.density_gain=40.0")
    torch.manual_seed(0)
    poses = orbit_pose(torch.linspace(-yaws, yaws, 41), torch.linspace(-0.1, 0.3, 41), 2.7)
    cameras = CameraSummary.from_labels(pack_label(poses, pinhole_intrinsics(3.0)))
    save_checkpoint(
        path,
        Checkpoint(
            config=config, G_ema=Generator(config.model).state_dict(), cameras=cameras.to_dict()
        ),
    )
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("network") / "ckpt.pkl")


def run(network: Path, outdir: Path, *arguments: str) -> Ended:
    return call(gen_videos.main, "--network", network, "--outdir", outdir, *arguments)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_video_a_seed_in_both_formats(network: Path, tmp_path: Path) -> None:
    done = run(
        network, tmp_path, "--seeds", "3,1", "--frames", "6", "--fps", "10", "--formats", "mp4,gif"
    ).assert_done()
    assert names(tmp_path) == ["seed0001.gif", "seed0001.mp4", "seed0003.gif", "seed0003.mp4"]
    assert [Path(line).name for line in done.out.splitlines()] == [
        "seed0003.mp4",
        "seed0003.gif",
        "seed0001.mp4",
        "seed0001.gif",
    ]
    frames, about = read_mp4(tmp_path / "seed0003.mp4")
    assert len(frames) == 6
    assert about["fps"] == 10
    assert frames[0].shape == (SIZE, SIZE, 3)


@torch.no_grad()
def test_frames_are_the_generators(network: Path, tmp_path: Path) -> None:
    options = [
        "--seeds",
        "4",
        "--frames",
        "5",
        "--formats",
        "gif",
        "--fps",
        "10",
        "--camera",
        "wobble",
        "--yaw-swing",
        "30",
        "--pitch",
        "5",
    ]
    run(network, tmp_path, *options, "--trunc", "0.5").assert_done()
    frames, _ = read_gif(tmp_path / "seed0004.gif")
    generator = load_generator(network)
    cameras = cameras_of(generator)
    ws = generator.mapping(seed_latent(4, generator.z_dim), cameras.frontal_label()[None], 0.5)
    for frame, degrees in zip(frames, [0, 30, 0, -30, 0], strict=True):
        c = cameras.label(cameras.yaw + math.radians(degrees), math.radians(5))[None]
        expected = to_uint8(generator.synthesis(ws, c).image)[0].astype(int)
        assert np.abs(frame - expected).mean() < 3  # 256 colours
    np.testing.assert_array_equal(frames[0], frames[-1])


def test_still_camera(network: Path, tmp_path: Path) -> None:
    run(network, tmp_path, "--seeds", "0", "--frames", "5", "--camera", "still").assert_done()
    frames, _ = read_mp4(tmp_path / "seed0000.mp4")
    assert len(frames) == 5
    assert max(np.abs(frame.astype(int) - frames[0]).max() for frame in frames) <= 2  # after H.264


def test_interpolation_in_a_grid_with_panels(network: Path, tmp_path: Path) -> None:
    options = [
        "--seeds",
        "0-5",
        "--interpolate",
        "--grid",
        "3x1",
        "--show",
        "image,raw,depth,normals",
        "--size",
        "16",
        "--frames",
        "7",
    ]
    run(network, tmp_path, *options, "--formats", "gif").assert_done()
    assert names(tmp_path) == ["interpolation.gif"]
    frames, _ = read_gif(tmp_path / "interpolation.gif")
    assert frames[0].shape == (16, 3 * 4 * 16, 3)
    np.testing.assert_array_equal(frames[0], frames[-1])
    cells = [
        np.concatenate([frame[:, cell * 64 : cell * 64 + 16] for cell in range(3)], axis=1)
        for frame in (frames[0], frames[3])
    ]
    assert np.abs(cells[0].astype(int) - cells[1]).mean() > 1


def test_a_format_named_twice_is_written_once(network: Path, tmp_path: Path) -> None:
    run(network, tmp_path, "--seeds", "0", "--frames", "1", "--formats", "gif,gif").assert_done()
    assert names(tmp_path) == ["seed0000.gif"]


def test_grid_of_identities(network: Path, tmp_path: Path) -> None:
    run(
        network,
        tmp_path,
        "--seeds",
        "0-3",
        "--grid",
        "2x2",
        "--frames",
        "2",
        "--camera",
        "still",
        "--formats",
        "gif",
    ).assert_done()
    (tmp_path / "grid.gif").rename(tmp_path / "all.gif")
    run(
        network, tmp_path, "--seeds", "2", "--frames", "1", "--camera", "still", "--formats", "gif"
    ).assert_done()
    grid, alone = (
        read_gif(tmp_path / name)[0][0].astype(int) for name in ("all.gif", "seed0002.gif")
    )
    assert np.abs(grid[SIZE:, :SIZE] - alone).mean() < 3


def test_poses_from_a_file(network: Path, tmp_path: Path) -> None:
    (tmp_path / "poses.json").write_text(json.dumps([{"yaw": yaw} for yaw in (0, 10, 20)]))
    run(
        network, tmp_path / "out", "--seeds", "0", "--camera", str(tmp_path / "poses.json")
    ).assert_done()
    assert len(read_mp4(tmp_path / "out" / "seed0000.mp4")[0]) == 3
    refused = run(
        network,
        tmp_path / "out",
        "--seeds",
        "0",
        "--camera",
        str(tmp_path / "poses.json"),
        "--frames",
        "4",
    )
    refused.assert_refused(2, "--frames")


def test_more_samples_a_ray_come_nearer_to_the_truth(network: Path, tmp_path: Path) -> None:
    pictures = {}
    for factor in ("1", "4", "32"):
        options = [
            "--seeds",
            "0",
            "--frames",
            "1",
            "--camera",
            "still",
            "--show",
            "raw",
            "--formats",
            "gif",
            "--ray-samples",
            factor,
        ]
        run(network, tmp_path / factor, *options).assert_done()
        pictures[factor] = read_gif(tmp_path / factor / "seed0000.gif")[0][0].astype(float)
    errors = [np.abs(pictures[factor] - pictures["32"]).mean() for factor in ("1", "4")]
    assert errors[1] < errors[0] / 2


def test_the_camera_is_the_checkpoints(tmp_path: Path) -> None:
    """A model of things seen from all around is looked at from all around, one of faces from the
    front.
    """
    for name, yaws in (("faces", 0.6), ("cars", math.pi)):
        generator = load_generator(write_network(tmp_path / f"{name}.pkl", yaws))
        options = call(
            gen_videos.main,
            "--network",
            tmp_path / f"{name}.pkl",
            "--seeds",
            "0",
            "--frames",
            "9",
            "--outdir",
            tmp_path / name,
        )
        options.assert_done()
        frames, _ = read_mp4(tmp_path / name / "seed0000.mp4")
        cameras = cameras_of(generator)
        with torch.no_grad():
            ws = generator.mapping(seed_latent(0, generator.z_dim), cameras.frontal_label()[None])
            behind = to_uint8(
                generator.synthesis(
                    ws, cameras.label(cameras.yaw + math.pi, cameras.pitch)[None]
                ).image
            )[0]
        error = np.abs(frames[4].astype(int) - behind).mean()
        assert error < 6 if name == "cars" else error > 8


def test_released_snapshots_of_larger_size(tmp_path: Path) -> None:
    rendering = {"depth_resolution": 6, "depth_resolution_importance": 6}
    path = write_snapshot(
        tmp_path / "released.pkl",
        Layout(plane_channels=4, neural_rendering_resolution=16, rendering=rendering),
    )
    run(
        path,
        tmp_path / "out",
        "--seeds",
        "0-1",
        "--frames",
        "3",
        "--show",
        "image,raw,depth,normals",
        "--grid",
        "1x2",
    ).assert_done()
    frames, _ = read_mp4(tmp_path / "out" / "grid.mp4")
    assert len(frames) == 3
    assert frames[0].shape == (256, 4 * 128, 3)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--grid", "3"], 2, "--grid"),
        (["--grid", "3x3", "--seeds", "0-7"], 2, "--grid"),
        (["--interpolate", "--seeds", "0"], 2, "--seeds"),
        (["--interpolate", "--grid", "2x1", "--seeds", "0-4"], 2, "--grid"),
        (["--show", "colour"], 2, "--show"),
        (["--formats", "avi"], 2, "--formats"),
        (["--formats", "gif", "--fps", "60"], 2, "--fps"),
        (["--size", "33"], 2, "--size"),
        (["--frames", "0"], 2, "--frames"),
        (["--trunc", "nan"], 2, "--trunc"),
        (["--ray-samples", "0"], 2, "--ray-samples"),
        (["--ray-samples", "nan"], 2, "--ray-samples"),
        (["--fps", "nan"], 2, "--fps"),
        (["--trunc", "1e300"], 2, "--trunc"),
        (
            ["--camera", "http://127.0.0.1:9/poses.json"],
            1,
            "cannot download http://127.0.0.1:9/poses.json",
        ),
        (["--camera", "spiral"], 1, "spiral"),
    ],
)
def test_wrong_values_are_one_line(
    network: Path, tmp_path: Path, arguments: list[str], status: int, words: str
) -> None:
    run(network, tmp_path / "out", *arguments).assert_refused(status, words)
    assert not list(tmp_path.iterdir()) or not names(tmp_path / "out")


def test_wrong_networks_and_places_are_one_line(network: Path, tmp_path: Path) -> None:
    (tmp_path / "text.pkl").write_text("not a network")
    run(tmp_path / "text.pkl", tmp_path / "out").assert_refused(1, "text.pkl")
    run(tmp_path / "none.pkl", tmp_path / "out").assert_refused(1, "none.pkl")
    run(network, tmp_path / "text.pkl", "--frames", "1").assert_refused(1, "text.pkl")


@pytest.mark.waits
def test_ctrl_c_leaves_a_file_that_plays(network: Path, tmp_path: Path) -> None:
    options: list[str | Path] = [
        "--network",
        network,
        "--seeds",
        "0",
        "--frames",
        "100000",
        "--outdir",
        tmp_path,
        "--formats",
        "mp4,gif",
    ]
    process = start("gen_videos.py", *options, "--size", "128")
    deadline = time.monotonic() + PATIENCE
    while not any(path.stat().st_size for path in tmp_path.glob(".*.mp4.*")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert ended.status == 130
    assert "Traceback" not in ended.err
    (said,) = [line for line in ended.lines if line.startswith("interrupted: ")]
    count = len(read_mp4(tmp_path / "seed0000.mp4")[0])
    assert f"the first {count} of 100000 frames" in said
    assert names(tmp_path) == ["seed0000.gif", "seed0000.mp4"]
    frames, delays = read_gif(tmp_path / "seed0000.gif")
    assert len(frames) <= count  # equal neighbours become one that is shown longer
    assert sum(delays) == pytest.approx((count - 1) * 1000 / 30, abs=30)
