"""train.py --poses repair, and the data set with better cameras that dataset_tool.py poses makes
of it.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path

import pytest
import torch

import dataset_tool
from tests.tiny import TINY_OPTIONS, call, kimg, only_run
from tests.train.runs import snapshot_in, train_here
from training.checkpoints.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    outdir = tmp_path_factory.mktemp("runs")
    options = ("--poses", "repair", *TINY_OPTIONS, "--kimg", kimg(2))
    train_here("--data", data, "--outdir", outdir, *options).assert_done()
    return snapshot_in(only_run(outdir))


def test_a_run_keeps_what_it_knows_of_cameras(run: Path) -> None:
    kept = load_checkpoint(run)
    assert kept.config.data.poses == "repair"
    assert set(kept.poses) >= {"network", "optimizer", "moments", "cameras", "pool", "summary"}
    told = [json.loads(line) for line in (run.parent / "stats.jsonl").read_text().splitlines()]
    assert {"Poses/opinion_degrees", "Poses/labels_degrees", "Poses/gain"} <= set(told[-1])


def test_better_cameras_are_written(run: Path, data: Path, tmp_path: Path) -> None:
    trusted = load_checkpoint(run)
    trusted.poses["moments"] = torch.tensor([[0.0], [1.0], [0.0]]).repeat(1, 6)
    save_checkpoint(tmp_path / "trusted.pkl", trusted)
    dest = tmp_path / "repaired.zip"
    done = call(dataset_tool.main, "poses", "--from", tmp_path / "trusted.pkl", "--dest", dest)
    done.assert_done()
    assert "wrote 16 images" in done.out
    with zipfile.ZipFile(data) as before, zipfile.ZipFile(dest) as after:
        assert before.namelist() == after.namelist()
        names = [name for name in before.namelist() if name != "dataset.json"]
        assert all(before.read(name) == after.read(name) for name in names)
        old, new = (json.loads(file.read("dataset.json"))["labels"] for file in (before, after))
    assert [name for name, _ in old] == [name for name, _ in new]
    moved = torch.tensor([c for _, c in new]) - torch.tensor([c for _, c in old])
    assert bool((moved[:, :12].abs().sum(1) > 0).all())
    assert not moved[:, 12:].any()
    call(dataset_tool.main, "check", "--source", dest).assert_done()
    train_here("--data", dest, *TINY_OPTIONS, "--dry-run").assert_done()


def test_what_cannot_be_put_right(run: Path, half: Path, tmp_path: Path) -> None:
    dest = tmp_path / "out.zip"
    words = ("poses", "--dest", dest, "--from")
    refused = call(dataset_tool.main, *words, snapshot_in(half))
    refused.assert_refused(1, "has put no cameras right; train with --poses repair")
    damaged = dataclasses.replace(load_checkpoint(run), poses={"network": 1})
    save_checkpoint(tmp_path / "damaged.pkl", damaged)
    call(dataset_tool.main, *words, tmp_path / "damaged.pkl").assert_refused(1, "section poses")
    call(dataset_tool.main, *words, tmp_path / "gone.pkl").assert_refused(1, "gone.pkl")
    assert not dest.exists()
    dest.write_bytes(b"mine")
    call(dataset_tool.main, *words, run).assert_refused(1, "already exists")
    assert dest.read_bytes() == b"mine"


def test_a_run_keeps_its_choice(run: Path) -> None:
    again = train_here("--resume", run, "--kimg", kimg(3), "--poses", "given")
    again.assert_refused(2, "--poses")
    train_here("--resume", run, "--kimg", kimg(3)).assert_done()
