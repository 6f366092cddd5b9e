"""Built-in heads: the data set against its format, the command, and the archive in the
repository.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dataset_tool
from data_tools.heads import dataset as heads
from data_tools.heads.basis import BASIS_FILE, load_basis
from data_tools.heads.dataset import (
    HeadsConfig,
    generate_heads,
    image_name,
    random_labels,
    render_head,
)
from data_tools.heads.make_basis import build_basis, write_basis
from data_tools.heads.person import build_head, head_mesh, random_person
from dnnlib.console import UserError
from tests.tiny import PATIENCE, call
from training.cameras import orbit_angles, pinhole_intrinsics, unpack_label

pytest.importorskip("embreex")

ROOT = Path(__file__).resolve().parents[3]
ARCHIVE = ROOT / "tests" / "data" / "heads64.zip"


def project(point: np.ndarray, cam2world: np.ndarray, focal: float, resolution: int) -> np.ndarray:
    """Pixel coordinates (column, row; centres of pixels at whole numbers) by the textbook pinhole
    formula.
    """
    x, y, z = np.linalg.inv(cam2world)[:3] @ np.append(point, 1)
    return np.array([focal * x / z + 0.5, focal * y / z + 0.5]) * resolution - 0.5


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        return {name: archive.read(name) for name in archive.namelist()}


def picture(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)))


def test_number_of_workers_does_not_change_a_byte(tmp_path: Path):
    one = generate_heads(tmp_path / "one.zip", HeadsConfig(count=7, resolution=32, workers=1))
    three = generate_heads(tmp_path / "three.zip", HeadsConfig(count=7, resolution=32, workers=3))
    assert one.read_bytes() == three.read_bytes()
    other = generate_heads(
        tmp_path / "other.zip", HeadsConfig(count=7, resolution=32, workers=1, seed=1)
    )
    assert contents(one)[image_name(0)] != contents(other)[image_name(0)]


def test_folder_holds_what_the_archive_holds(tmp_path: Path):
    config = HeadsConfig(count=3, resolution=16, workers=1)
    packed = contents(generate_heads(tmp_path / "a.zip", config))
    folder = generate_heads(tmp_path / "a", config)
    plain = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert plain == packed
    assert sorted(packed) == [*(image_name(index) for index in range(3)), "dataset.json"]


def test_depth_and_mask_belong_to_the_picture(tmp_path: Path):
    files = contents(
        generate_heads(
            tmp_path / "d.zip", HeadsConfig(count=2, resolution=32, workers=1, depth=True)
        )
    )
    labels = json.loads(files["dataset.json"])["labels"]
    assert [name for name, _ in labels] == [image_name(0), image_name(1)]
    for name, _ in labels:
        image, depth, mask = (
            picture(files[name]),
            picture(files[f"depth/{name}"]),
            picture(files[f"mask/{name}"]),
        )
        assert image.shape == (32, 32, 3)
        assert depth.dtype == np.uint16
        assert set(np.unique(mask)) == {0, 255}
        np.testing.assert_array_equal(depth > 0, mask == 255)
        distances = depth[depth > 0] * heads.DEPTH_UNIT
        reach = np.abs(distances - heads.HEADS_RADIUS).max()
        assert reach < heads.HEADS_BOX / 2
        is_background = (image == heads.HEADS_BACKGROUND).all(axis=-1)
        assert not (is_background & (mask == 255)).any()


def test_landmarks_of_the_head_project_onto_the_eyes():
    head = head_mesh((0, 5))
    assert np.abs(head.vertices).max() <= heads.HEADS_BOX / 2
    assert head.colours.shape == head.vertices.shape
    assert 0 <= head.colours.min() <= head.colours.max() <= 1
    label = random_labels(0, 5, 1)[0].double().numpy()
    image = render_head(head, label, HeadsConfig(resolution=256)).image.astype(int)
    for side in ("left", "right"):
        column, row = (
            project(
                head.landmarks[f"{side}_pupil"], label[:16].reshape(4, 4), heads.HEADS_FOCAL, 256
            )
            .round()
            .astype(int)
        )
        assert image[row, column].max() < 60
    assert head.landmarks["left_eye"][0] > 0 > head.landmarks["right_eye"][0]


def test_existing_destination_is_kept_unless_told(tmp_path: Path):
    config = HeadsConfig(count=1, resolution=8, workers=1)
    (tmp_path / "a.zip").write_bytes(b"precious")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "precious").touch()
    for name in ("a.zip", "b"):
        with pytest.raises(UserError, match="--overwrite"):
            generate_heads(tmp_path / name, config)
    assert (tmp_path / "a.zip").read_bytes() == b"precious"
    with pytest.raises(UserError, match="no data set"):
        generate_heads(tmp_path / "b", config, overwrite=True)
    assert (tmp_path / "b" / "precious").exists()
    (tmp_path / "b" / "dataset.json").touch()
    generate_heads(tmp_path / "b", config, overwrite=True)
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["00000", "dataset.json"]


@pytest.mark.parametrize("name", ["x.zip", "x"])
def test_interruption_leaves_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = heads._render_identity

    def interrupted(config: HeadsConfig, identity: int):
        if identity == 2:
            raise KeyboardInterrupt
        return real(config, identity)

    monkeypatch.setattr(heads, "_render_identity", interrupted)
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(KeyboardInterrupt):
        generate_heads(target / name, HeadsConfig(count=8, resolution=8, workers=1))
    assert list(target.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("count", 0),
        ("resolution", 48),
        ("resolution", 0),
        ("resolution", 2048),
        ("views_per_identity", 0),
        ("background", (0, 0, 256)),
        ("supersampling", 4),
        ("seed", -1),
    ],
)
def test_impossible_settings_are_named(setting: str, value: Any, tmp_path: Path):
    with pytest.raises(UserError, match=setting):
        generate_heads(tmp_path / "x.zip", HeadsConfig(**{setting: value}))


def test_damaged_head_model_is_one_line(tmp_path: Path):
    (tmp_path / "model.npz").write_bytes(b"not an archive")
    for name in ("model.npz", "gone.npz"):
        with pytest.raises(UserError, match="install the program again"):
            load_basis(tmp_path / name)


# The command


def run_tool(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "dataset_tool.py"), *arguments]
    return subprocess.run(
        command,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=PATIENCE,
    )


def test_command_writes_the_archive(tmp_path: Path):
    done = run_tool(
        "heads",
        "--dest",
        str(tmp_path / "h.zip"),
        "--count",
        "3",
        "--resolution",
        "16",
        "--background",
        "10,20,30",
        "--workers",
        "2",
    )
    assert done.returncode == 0, done.stderr
    files = contents(tmp_path / "h.zip")
    assert (picture(files[image_name(2)])[0, 0] == (10, 20, 30)).all()
    assert len(files) == 4


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--resolution", "48"),
        ("--background", "1,2"),
        ("--background", "1,2,300"),
        ("--count", "0"),
        ("--seed", "-1"),
        ("--views-per-identity", "x"),
    ],
)
def test_wrong_options_exit_2_and_are_named(option: str, value: str, tmp_path: Path):
    ended = call(dataset_tool.main, "heads", "--dest", tmp_path / "x.zip", option, value)
    ended.assert_refused(2, option)


def test_missing_package_is_one_line(tmp_path: Path):
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'embreex' else find(name, *rest)\n"
    )
    environment = {"PYTHONPATH": str(tmp_path / "blocked")}
    done = run_tool("heads", "--dest", str(tmp_path / "x.zip"), **environment)
    assert done.returncode == 1
    assert "pip install 'open-eg3d[heads]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x.zip").exists()


def test_existing_file_is_one_line(tmp_path: Path):
    (tmp_path / "x.zip").write_bytes(b"precious")
    ended = call(dataset_tool.main, "heads", "--dest", tmp_path / "x.zip")
    ended.assert_refused(1, "--overwrite")


# The 200 pictures that lie in the repository


def test_archive_in_the_repository():
    assert ARCHIVE.stat().st_size < 1_500_000
    files = contents(ARCHIVE)
    labels = json.loads(files["dataset.json"])["labels"]
    assert [name for name, _ in labels] == [image_name(index) for index in range(200)]
    assert len(files) == 201
    c = torch.tensor([label for _, label in labels], dtype=torch.float64)
    assert c.shape == (200, 25)
    assert c.isfinite().all()
    cam2world, intrinsics = unpack_label(c)
    rotation = cam2world[:, :3, :3]
    torch.testing.assert_close(
        rotation @ rotation.mT, torch.eye(3).double().expand(200, 3, 3), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        torch.linalg.det(rotation), torch.ones(200).double(), atol=1e-6, rtol=0
    )
    assert (cam2world[:, 3] == torch.tensor([0, 0, 0, 1])).all()
    torch.testing.assert_close(
        intrinsics, pinhole_intrinsics(heads.HEADS_FOCAL).double().expand(200, 3, 3)
    )
    yaw, pitch, radius = orbit_angles(cam2world)
    torch.testing.assert_close(radius, torch.full((200,), heads.HEADS_RADIUS).double())
    assert 40 < yaw.rad2deg().abs().max() <= 45.001
    assert 17 < pitch.rad2deg().abs().max() <= 20.001
    # The optical axis passes through the pivot.
    torch.testing.assert_close(
        cam2world[:, :3, 3] + radius[:, None] * cam2world[:, :3, 2],
        torch.zeros(200, 3).double(),
        atol=1e-5,
        rtol=0,
    )


def test_pictures_in_the_repository():
    files = contents(ARCHIVE)
    images = np.stack([picture(files[image_name(index)]) for index in range(200)])
    assert images.shape == (200, 64, 64, 3)
    assert images.dtype == np.uint8
    background = (images == heads.HEADS_BACKGROUND).all(axis=-1)
    assert background[:, 0, 0].all()
    assert background[:, 0, -1].all()
    # A margin around the head, and the head in the middle of the frame.
    assert background[:, 0].mean() > 0.97
    assert not background[:, 24:40, 26:38].any()
    assert len(np.unique(images.reshape(200, -1), axis=0)) == 200


# The head model


def test_heads_are_those_of_the_repository():
    basis = load_basis()
    files = contents(ARCHIVE)
    labels = json.loads(files["dataset.json"])["labels"]
    for identity in range(2):
        head = build_head(
            basis, random_person(basis, np.random.default_rng((0, identity, heads.HEAD_STREAM)))
        )
        name, label = labels[2 * identity]
        image = render_head(head, np.array(label), HeadsConfig()).image.astype(int)
        assert np.abs(image - picture(files[name])).max() <= 3
        large = render_head(head, np.array(label), HeadsConfig(resolution=512)).image.astype(int)
        pose = np.array(label[:16]).reshape(4, 4)
        distance, nearest = min(
            (np.linalg.norm(head.landmarks[f"{side}_pupil"] - pose[:3, 3]), side)
            for side in ("left", "right")
        )
        column, row = (
            project(head.landmarks[f"{nearest}_pupil"], pose, heads.HEADS_FOCAL, 512)
            .round()
            .astype(int)
        )
        assert distance < heads.HEADS_RADIUS
        assert large[row - 2 : row + 3, column - 2 : column + 3].max(axis=-1).min() < 70


@pytest.mark.slow
def test_the_head_model_is_cut_out_of_the_body(tmp_path: Path):
    """Downloads nothing, but writes a gigabyte into a cache of its own."""
    anny_paths = pytest.importorskip("anny.paths")
    anny_paths.set_anny_cache_path(tmp_path / "anny")
    write_basis(tmp_path / "again.npz", build_basis())
    again, shipped = np.load(tmp_path / "again.npz"), np.load(BASIS_FILE)
    assert set(again) == set(shipped)
    for name in shipped:
        if shipped[name].dtype.kind == "f":
            np.testing.assert_allclose(again[name], shipped[name], rtol=1e-5, atol=1e-8)
        else:
            np.testing.assert_array_equal(again[name], shipped[name])
