"""export.py: the same pictures from a smaller file, and from a folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

import calc_metrics
import export
import gen_samples
import gen_videos
import train
from open_eg3d import load_discriminator, load_generator
from open_eg3d.exporting import FORMATS
from tests.released_layout import Layout, write_snapshot
from tests.tiny import (
    TINY_OPTIONS,
    call,
    differing,
    finish,
    kimg,
    orbit_labels,
    start,
    tiny_config,
    write_dataset,
)
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.gan.trainer import Trainer


@pytest.fixture
def network(tmp_path: Path) -> Path:
    trainer = Trainer(
        tiny_config("data.path=/some/where/heads.zip"), orbit_labels(8), torch.device("cpu")
    )
    state = trainer.state_dict()
    save_checkpoint(
        tmp_path / "run.pkl",
        Checkpoint(trainer.config, **state, cameras={"radius": 2.7, "pivot": (0.0, 0.0, 0.0)}),
    )
    return tmp_path / "run.pkl"


def test_the_same_pictures_from_a_smaller_file(network: Path, tmp_path: Path) -> None:
    dest = tmp_path / "small.pkl"
    ended = finish(start("export.py", "--network", network, "--dest", dest)).assert_done()
    assert str(dest) in ended.out
    assert dest.stat().st_size < network.stat().st_size / 2
    first, second = load_generator(network), load_generator(dest)
    z, c = torch.randn(1, first.z_dim), orbit_labels(1)
    assert torch.equal(first(z, c).image, second(z, c).image)
    assert first.cameras == second.cameras
    assert load_checkpoint(dest).config.data.path == "heads.zip"
    assert b"/some/where" not in dest.read_bytes()


def test_what_cannot_be_exported_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    bare = tmp_path / "bare.pkl"
    save_checkpoint(bare, Checkpoint(tiny_config()))
    for source, words in (
        (tmp_path / "text", "text"),
        (tmp_path / "none.pkl", "none.pkl"),
        (bare, "G_ema"),
    ):
        call(
            export.main, "--network", str(source), "--dest", str(tmp_path / "out.pkl")
        ).assert_refused(1, words)
        assert not (tmp_path / "out.pkl").exists()


def test_nothing_is_overwritten_unasked(network: Path, tmp_path: Path) -> None:
    dest = tmp_path / "other.pkl"
    dest.write_bytes(b"mine")
    call(export.main, "--network", str(network), "--dest", str(dest)).assert_refused(
        1, "exists already"
    )
    assert dest.read_bytes() == b"mine"
    call(
        export.main, "--network", str(network), "--dest", str(network), "--overwrite"
    ).assert_refused(1, "exists already")
    call(export.main, "--network", str(network), "--dest", str(dest), "--overwrite").assert_done()
    with pytest.raises(Exception, match="discriminator"):
        load_discriminator(dest)


def test_every_command_line_takes_a_folder(network: Path, tmp_path: Path) -> None:
    """From checkpoint to folder, from folder to checkpoint, and into the programs that load
    networks.
    """
    folder, back = tmp_path / "folder", tmp_path / "back.pkl"
    ended = call(export.main, "--network", network, "--dest", folder).assert_done()
    assert str(folder / "model.safetensors") in ended.out
    call(export.main, "--network", folder, "--dest", back).assert_done()
    pictures = []
    for path in (network, folder, back):
        assert (
            differing(
                dict(load_generator(network).state_dict()), dict(load_generator(path).state_dict())
            )
            == []
        )
        options = ("--seeds", "3", "--views", "0", "--outdir", tmp_path / "pictures")
        call(gen_samples.main, "--network", path, *options).assert_done()
        pictures.append((tmp_path / "pictures" / "seed0003.png").read_bytes())
    assert pictures[0] == pictures[1] == pictures[2]
    data = write_dataset(tmp_path / "data.zip")
    call(
        train.main,
        "--data",
        data,
        *TINY_OPTIONS,
        "--kimg",
        kimg(1),
        "--init-from",
        folder,
        "--dry-run",
    ).assert_done()
    ended = call(
        calc_metrics.main, "--network", folder, "--metrics", "consistency2", "--json"
    ).assert_done()
    assert re.search(r'"network_sha256": "[0-9a-f]{64}"', ended.out)


def test_formats_follow_the_name_or_the_option(tmp_path: Path) -> None:
    (tmp_path / "run.1").mkdir()
    names = {
        "a.pkl": "checkpoint",
        "a.pt": "checkpoint",
        "a": "safetensors",
        "run.1": "safetensors",
        "a.onnx": "onnx",
        "A.ONNX": "onnx",
    }
    for name, chosen in names.items():
        assert export.choose_format(tmp_path / name, None) == chosen
    assert export.choose_format(tmp_path / "a.pkl", "onnx") == "onnx"
    assert [path.name for path in FORMATS["onnx"].files(Path("x/heads.onnx"))] == [
        "heads.planes.onnx",
        "heads.image.onnx",
    ]
    assert FORMATS["onnx"].files(Path("x/heads")) == [
        Path("x/heads/planes.onnx"),
        Path("x/heads/image.onnx"),
    ]


def test_released_snapshots_export_too(tmp_path: Path) -> None:
    layout = Layout(
        plane_channels=4,
        neural_rendering_resolution=16,
        rendering={"depth_resolution": 6, "depth_resolution_importance": 6},
    )
    source = write_snapshot(tmp_path / "released.pkl", layout)
    expected = load_generator(source)
    for name in ("ours.pkl", "folder"):
        call(export.main, "--network", str(source), "--dest", str(tmp_path / name)).assert_done()
        found = load_generator(tmp_path / name)
        assert differing(dict(expected.state_dict()), dict(found.state_dict())) == []
        assert (found.config, found.cameras) == (expected.config, expected.cameras)


def test_folders_and_files_are_not_mixed_up(network: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    call(export.main, "--network", str(network), "--dest", str(tmp_path / "file")).assert_refused(
        1, "is a file"
    )
    refused = call(
        export.main, "--network", str(network), "--dest", str(tmp_path), "--format", "checkpoint"
    )
    refused.assert_refused(1, "is a folder")
    call(export.main, "--network", str(network), "--dest", str(tmp_path / "folder")).assert_done()
    call(export.main, "--network", str(network), "--dest", str(tmp_path / "folder")).assert_refused(
        1, "config.json exists already"
    )
    call(
        export.main, "--network", str(network), "--dest", str(tmp_path / "folder"), "--overwrite"
    ).assert_done()
    onto_itself = (
        "--network",
        str(tmp_path / "folder"),
        "--dest",
        str(tmp_path / "folder"),
        "--overwrite",
    )
    call(export.main, *onto_itself).assert_refused(1, "other than the source")
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.parametrize(
    "ending", ["glb", "PLY", "obj", "stl", "mrc", "png", "mp4", "gif", "safetensors"]
)
def test_a_name_of_another_kind_of_file_names_the_command(
    network: Path, tmp_path: Path, ending: str
) -> None:
    """The command that is named writes such a file."""
    named = tmp_path / "my heads.pkl"
    named.write_bytes(network.read_bytes())
    network, dest = named, tmp_path / f"all heads.{ending}"
    for more in ((), ("--format", "checkpoint")):
        refused = call(export.main, "--network", network, "--dest", dest, *more)
        refused.assert_refused(1, str(dest), str(network))
        assert not dest.exists()
    program, *options = shlex.split(refused.err.strip().partition("python ")[2])
    if ending != "safetensors":
        small = {"gen_samples.py": ["--seeds", "0"], "gen_videos.py": ["--seeds", "0"]}[program]
        options += [*small, "--outdir", str(tmp_path)]
    options += {"mp4": ["--frames", "2"], "gif": ["--frames", "2"]}.get(ending, [])
    options += ["--shape-res", "8", "--shape-level", "0"] if "--shapes" in options else []
    command = {"gen_samples.py": gen_samples, "gen_videos.py": gen_videos, "export.py": export}
    call(command[program].main, *options).assert_done()
    assert list(tmp_path.rglob(f"*.{ending.lower()}"))


def test_small_files_are_told_in_kilobytes(network: Path, tmp_path: Path) -> None:
    ended = call(export.main, "--network", network, "--dest", tmp_path / "folder").assert_done()
    size = (tmp_path / "folder" / "config.json").stat().st_size
    assert size < 1e5
    assert f"config.json, {size / 1e3:.3g} kB" in ended.out


def test_the_ending_says_what_splats_are_written(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def save(path: Path, _: object, kind: str) -> None:
        path.touch()
        written.append((path.name, kind))

    monkeypatch.setattr(export, "splats", lambda _, ws: ws)
    monkeypatch.setattr(export, "save_splats", save)
    (tmp_path / "out.ply").mkdir()
    for dest, named in (("a.splat", None), ("a.ply", "splat-ply"), ("out.ply", "splat-glb")):
        more = ("--format", named) if named else ()
        call(export.main, "--network", network, "--dest", tmp_path / dest, "--seeds", "1", *more)
    assert written == [("a.splat", "splat"), ("a.ply", "splat-ply"), ("seed0001.glb", "splat-glb")]
    for dest in ("b.splat", "b.pkl"):
        refused = call(
            export.main, "--network", network, "--dest", tmp_path / dest, "--format", "splat-ply"
        )
        refused.assert_refused(1, "files of splat-ply end in .ply")
        assert not (tmp_path / dest).exists()


def test_splats_of_several_heads_want_a_folder(network: Path, tmp_path: Path) -> None:
    """And one file of one head is never written over."""
    base = ("--network", network, "--format", "splat-glb", "--dest", tmp_path / "a.glb")
    call(export.main, *base, "--seeds", "1,2").assert_refused(1, "name a folder, or one of --seeds")
    (tmp_path / "a.glb").write_bytes(b"mine")
    call(export.main, *base, "--seeds", "1").assert_refused(1, "exists already")
    assert (tmp_path / "a.glb").read_bytes() == b"mine"
