"""train.py --resume: exactly as if the run had never stopped, with the options that it began
with.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from tests.tiny import (
    BATCH,
    TINY_OPTIONS,
    Ended,
    differing,
    finish,
    kimg,
    only_run,
    orbit_labels,
    start,
    state_in,
    write_dataset,
)
from tests.train.runs import RUN_OPTIONS, files_below, snapshot_in, train_here
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.run.data_content import contents_of_files
from training.run.launch import set_aside_later
from training.run.saving import snapshot_name


def test_three_steps_and_three_more_are_six(whole: tuple[Path, Ended], half_copy: Path) -> None:
    ended = finish(start("train.py", "--resume", half_copy, "--kimg", kimg(6), "--gpus", "0"))
    ended.assert_done()
    assert str(half_copy) in ended.out
    assert not differing(state_in(half_copy), state_in(whole[0]))
    kept = load_checkpoint(snapshot_in(half_copy))
    assert kept.config == load_checkpoint(snapshot_in(whole[0])).config
    assert kept.augment["p"] != 0.4
    lines = [
        json.loads(line)["kimg"] for line in (half_copy / "stats.jsonl").read_text().splitlines()
    ]
    assert lines == [0.004, 0.008, 0.012, 0.016, 0.02, 0.024]
    assert (
        json.loads((half_copy / "training_options.json").read_text())["training"]["kimg"] == 0.024
    )


@pytest.mark.parametrize("form", ["folder", "file", "latest"])
def test_ways_to_name_a_run(half_copy: Path, data: Path, form: str) -> None:
    named = {"folder": half_copy, "file": snapshot_in(half_copy), "latest": Path("latest")}[form]
    same = ["--data", str(data), *RUN_OPTIONS] if form == "latest" else []
    train_here(
        "--resume", named, "--outdir", half_copy.parent, *same, "--kimg", kimg(4)
    ).assert_done()
    assert load_checkpoint(snapshot_in(half_copy)).progress["images"] == 16
    assert os.listdir(half_copy.parent) == [half_copy.name]


def test_latest_without_a_run_starts_one(data: Path, tmp_path: Path) -> None:
    train_here(
        "--resume",
        "latest",
        "--data",
        data,
        "--outdir",
        tmp_path / "runs",
        *TINY_OPTIONS,
        "--kimg",
        kimg(1),
    ).assert_done()
    assert load_checkpoint(snapshot_in(only_run(tmp_path / "runs"))).progress["images"] == BATCH


def test_a_file_called_latest_is_not_meant(
    half_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(half_copy.parent)
    Path("latest").write_text("my notes")
    ended = train_here(
        "--resume", "latest", "--outdir", half_copy.parent, "--dry-run"
    ).assert_done()
    assert json.loads(ended.out)["training"]["batch"] == BATCH


REFUSED: tuple[tuple[tuple[str, ...], str], ...] = (
    (("--cfg", "ffhq"), "--cfg"),
    (("--sizes", "published"), "--sizes"),
    (("--gamma", "3"), "--gamma"),
    (("--batch", "8"), "--batch"),
    (("--batch-gpu", "2"), "--batch-gpu"),
    (("--mirror",), "--mirror"),
    (("--aug", "noaug"), "--aug"),
    (("--p", "0.5"), "--p"),
    (("--target", "0.5"), "--target"),
    (("--seed", "1"), "--seed"),
    (("--freeze-d", "1"), "--freeze-d"),
    (("--gen-pose-cond",), "--gen-pose-cond"),
    (("--nrr-final", "16"), "--nrr-final"),
    (("--precision", "bf16"), "--precision"),
    (("--set", "rendering.depth_resolution=6"), "--set rendering.depth_resolution"),
    (("--set", "generator.w_dim=16"), "--set generator.w_dim"),
)


@pytest.mark.parametrize(("options", "named"), REFUSED)
def test_a_run_keeps_its_options(half: Path, options: tuple[str, ...], named: str) -> None:
    before = files_below(half)
    train_here("--resume", half, "--kimg", "1", *options).assert_refused(2, named, "--init-from")
    assert files_below(half) == before


def test_all_refused_options_are_named(half: Path) -> None:
    train_here("--resume", half, "--gamma", "3", "--seed", "4", "--tick", "1").assert_refused(
        2, "--gamma", "--seed"
    )


@pytest.mark.parametrize("count", [16, 20])
def test_other_data_are_refused(half: Path, tmp_path: Path, count: int) -> None:
    labels = orbit_labels(count, seed=1)
    names = [f"00000/img{i:08d}.png" for i in range(count)]
    other = write_dataset(
        tmp_path / "other.zip",
        count,
        labels=[[name, c.tolist()] for name, c in zip(names, labels, strict=True)],
    )
    difference = (
        "other labels" if count == 16 else "20 pictures instead of 16, other names, other sizes"
    )
    before = files_below(half)
    train_here("--resume", half, "--kimg", "1", "--data", other).assert_refused(
        1, str(other), difference, "--init-from"
    )
    assert files_below(half) == before


@pytest.mark.parametrize("form", ["zip", "folder"])
def test_data_that_have_moved_are_the_same_data(
    half_copy: Path, data: Path, tmp_path: Path, form: str
) -> None:
    moved = tmp_path / "moved"
    if form == "zip":
        shutil.copy(data, moved)
    else:
        zipfile.ZipFile(data).extractall(moved)
    options = ("--resume", half_copy, "--kimg", kimg(4))
    ended = train_here(*options, "--data", moved).assert_done()
    assert ended.out.count(f"The run's data are in {moved} now") == 1
    kept = load_checkpoint(snapshot_in(half_copy))
    assert kept.progress["images"] == 16
    assert kept.config.data.path == str(moved)


def test_data_that_are_gone(half_copy: Path, tmp_path: Path) -> None:
    source = load_checkpoint(snapshot_in(half_copy))
    source.config.data.path = str(tmp_path / "gone.zip")
    save_checkpoint(snapshot_in(half_copy), source)
    train_here("--resume", half_copy, "--kimg", "1").assert_refused(1, "gone.zip", "--data")
    here = write_dataset(tmp_path / "here.zip")  # the same pictures
    train_here("--resume", half_copy, "--kimg", kimg(4), "--data", here).assert_done()


def with_files(run_dir: Path, folder: Path) -> Path:
    """Let the run measure with a file of weights; its place. `pose` is no file."""
    weights = folder / "lpips.pth"
    weights.write_bytes(b"weights")
    source = load_checkpoint(snapshot_in(run_dir))
    snapshot = source.config.snapshot
    snapshot.metrics, snapshot.pose_model = ("relief2",), "mediapipe"
    snapshot.lpips_weights = (str(weights),)
    snapshot.contents = contents_of_files(snapshot)
    save_checkpoint(snapshot_in(run_dir), source)
    return weights


def test_files_of_metrics_may_move(half_copy: Path, tmp_path: Path) -> None:
    weights = with_files(half_copy, tmp_path)
    resume = ("--resume", half_copy, "--kimg", kimg(4), "--dry-run")
    assert "is" not in train_here(*resume).assert_done().err.split("Going on")[1].split()
    moved = weights.rename(tmp_path / "elsewhere.pth")
    gone = train_here(*resume)
    gone.assert_refused(1, f"--lpips-weights {weights}", "say where with --lpips-weights", "none")
    train_here(*resume, "--metrics", "none").assert_done()
    told = train_here(*resume, "--lpips-weights", moved).assert_done()
    assert told.err.count(f"The run's --lpips-weights is {moved} now") == 1
    config = json.loads(told.out)["snapshot"]
    digest = hashlib.sha256(b"weights").hexdigest()
    assert config["contents"] == [f"--lpips-weights {digest}"]
    moved.write_bytes(b"others")
    other = hashlib.sha256(b"others").hexdigest()
    difference = f"SHA-256 {other[:12]} instead of {digest[:12]}"
    train_here(*resume, "--lpips-weights", moved).assert_refused(1, difference, "--init-from")


def test_a_run_may_grow_but_not_shrink(half: Path) -> None:
    train_here("--resume", half, "--kimg", kimg(2)).assert_refused(2, "--kimg", "only grow")


@pytest.mark.parametrize(
    "options",
    [
        ("--tick", "1", "--snap", "9", "--workers", "0"),
        ("--seed", "0", "--batch", "4", "--aug", "ada"),
    ],
)
def test_options_that_may_be_given_again(half: Path, options: tuple[str, ...]) -> None:
    config = json.loads(train_here("--resume", half, *options, "--dry-run").assert_done().out)
    assert config["training"]["seed"] == 0


def test_weights_without_a_run_cannot_be_resumed(half: Path, tmp_path: Path) -> None:
    source = load_checkpoint(snapshot_in(half))
    only_weights = tmp_path / "network-snapshot-000000.pkl"
    save_checkpoint(only_weights, Checkpoint(config=source.config, G_ema=source.G_ema))
    train_here("--resume", only_weights).assert_refused(1, "--init-from")
    assert os.listdir(tmp_path) == [only_weights.name]


def test_a_damaged_newest_snapshot_costs_only_what_it_held(half_copy: Path) -> None:
    newest = half_copy / "network-snapshot-000001.pkl"
    newest.write_bytes(snapshot_in(half_copy).read_bytes()[:-1000])
    ended = train_here("--resume", half_copy, "--kimg", kimg(4)).assert_done()
    assert len(ended.lines) == 1
    assert ended.lines[0].startswith("warning: ")
    assert str(newest) in ended.lines[0]
    assert load_checkpoint(half_copy / snapshot_name(16)).progress["images"] == 16


def test_resuming_an_older_snapshot_sets_later_ones_aside(tmp_path: Path):
    older, later = (tmp_path / f"network-snapshot-00000{number}.pkl" for number in (1, 2))
    for path in (older, later):
        path.write_bytes(b"x")
    set_aside_later(older)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "network-snapshot-000001.pkl",
        "network-snapshot-000002.superseded",
    ]
