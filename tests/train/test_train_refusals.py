"""Everything that can be wrong with options, data and checkpoints ends in one line and leaves
nothing.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.released_layout import Call, write_pickle, write_snapshot
from tests.tiny import TINY_OPTIONS, encode, finish, orbit_labels, pictures, start, write_dataset
from tests.train.runs import snapshot_in, train_here, write_bytes
from training.checkpoints.checkpoint import load_checkpoint, save_checkpoint

# --------------------------------------------------------------------------------------------------
# Options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--batch", "7", "--batch-gpu", "4"), ("--batch-gpu 4", "7")),
        (("--batch", "6"), ("--batch",)),
        (("--batch", "0"), ("--batch",)),
        (("--batch", "eight"), ("--batch", "eight")),
        (("--gpus", "8"), ("--gpus 8", "--gpus 0")),
        (("--gpus", "-1"), ("--gpus",)),
        (("--procs", "0"), ("--procs",)),
        (("--procs", "3", "--batch", "8"), ("--batch 8", "3")),
        (("--device", "tpu"), ("--device", "tpu")),
        (("--cfg", "cars"), ("--cfg", "cars")),
        (("--gamma", "-1"), ("--gamma",)),
        (("--gamma", "nan"), ("--gamma",)),
        (("--kimg", "0"), ("--kimg",)),
        (("--kimg", "inf"), ("--kimg",)),
        (("--minutes", "nan"), ("--minutes",)),
        (("--tick", "inf"), ("--tick",)),
        (("--snap", "-1"), ("--snap",)),
        (("--seed", "1" + 30 * "0"), ("--seed",)),
        (("--aug", "strong"), ("--aug", "strong")),
        (("--p", "1.5"), ("--p",)),
        (("--target", "2"), ("--target",)),
        (("--freeze-d", "-1"), ("--freeze-d",)),
        (("--nrr-initial", "2"), ("--nrr-initial",)),
        (("--nrr-fade-kimg", "-1"), ("--nrr-fade-kimg",)),
        (("--precision", "fp8"), ("--precision", "fp8")),
        (("--metrics", "fid"), ("--metrics", "fid")),
        (("--workers", "-1"), ("--workers",)),
        (("--set", "training.gama=3"), ("--set", "training.gama")),
        (("--set", "trainings.gamma=3"), ("--set", "trainings")),
        (("--set", "training.gamma=high"), ("--set", "training.gamma", "high")),
        (("--set", "training.gamma"), ("--set", "training.gamma")),
        (("--set", "training.d_reg_interval=0"), ("training.d_reg_interval",)),
        (("--set", "model.resolution=64"), ("model.resolution", "32")),
        (("--set", "augment.interval=0"), ("augment.interval",)),
        (("--no-such-option",), ("--no-such-option",)),
        (("--data",), ("--data",)),
        (("stray",), ("stray",)),
    ],
)
def test_wrong_option_values(
    data: Path, tmp_path: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    train_here("--data", data, "--outdir", tmp_path / "runs", *options).assert_refused(2, *words)
    assert os.listdir(tmp_path) == []


def test_a_wrong_option_in_a_process_of_its_own(data: Path, tmp_path: Path) -> None:
    ended = finish(
        start(
            "train.py",
            "--data",
            data,
            "--outdir",
            tmp_path / "runs",
            "--batch",
            "7",
            "--batch-gpu",
            "4",
        )
    )
    ended.assert_refused(2, "--batch-gpu")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "status", "expected"),
    [
        (("--aug", "fixed"), 2, ("--aug fixed", "--p")),
        (("--aug", "noaug", "--p", "0.3"), 2, ("--p 0.3", "--aug")),
        (("--resume", "https://example.invalid/network.pkl"), 1, ("--resume", "--init-from")),
    ],
)
def test_options_without_effect_are_refused(
    data: Path, tmp_path: Path, options: tuple[str, ...], status: int, expected: tuple[str, ...]
):
    result = train_here("--data", data, "--outdir", tmp_path / "runs", *TINY_OPTIONS, *options)
    result.assert_refused(status, *expected)
    assert not (tmp_path / "runs").exists()


# --------------------------------------------------------------------------------------------------
# Data

PICTURE = encode(pictures(1)[0])
NAME = "00000/img00000003.png"


def labels_with(change: Callable[[list[Any]], Any]) -> list[Any]:
    """Sixteen labels of which the fourth is changed."""
    labels = [[f"00000/img{i:08d}.png", c.tolist()] for i, c in enumerate(orbit_labels(16))]
    labels[3] = change(labels[3])
    return [label for label in labels if label is not None]


def with_numbers(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], Path]:
    labels = labels_with(lambda label: [label[0], change(np.array(label[1])).tolist()])
    return lambda path: write_dataset(path, labels=labels)


def changed_at(index: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(numbers: np.ndarray) -> np.ndarray:
        numbers[index] = value
        return numbers

    return change


def wide_picture() -> bytes:
    return encode(np.zeros((32, 48, 3), np.uint8))


def write_empty_zip(path: Path) -> Path:
    zipfile.ZipFile(path, "w").close()
    return path


WRONG_DATA: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "missing": (lambda path: path, ("does not exist",)),
    "empty file": (write_bytes(b""), ()),
    "empty zip": (write_empty_zip, ("empty",)),
    "not a zip": (write_bytes(b"these are no pictures" * 100), ("ZIP",)),
    "cut-off zip": (
        lambda path: write_bytes(write_dataset(path).read_bytes()[:-2000])(path),
        ("ZIP",),
    ),
    "truncated picture": (
        lambda path: write_dataset(path, files={NAME: PICTURE[: len(PICTURE) // 2]}),
        (NAME,),
    ),
    "no picture": (lambda path: write_dataset(path, files={NAME: b"no picture"}), (NAME,)),
    "mixed sizes": (
        lambda path: write_dataset(path, files={NAME: encode(pictures(1, 64)[0])}),
        (NAME, "64x64", "32x32"),
    ),
    "not square": (lambda path: write_dataset(path, files={NAME: wide_picture()}), (NAME, "48x32")),
    "26 numbers": (with_numbers(lambda numbers: np.append(numbers, 1)), (NAME, "26 numbers")),
    "NaN": (with_numbers(changed_at(0, np.nan)), (NAME, "NaN")),
    "determinant -1": (
        with_numbers(lambda n: n * np.array([-1, 1, 1, 1] * 3 + [1] * 13)),
        (NAME, "determinant -1"),
    ),
    "pixel intrinsics": (
        with_numbers(lambda n: n * np.array([1] * 16 + [32] * 6 + [1] * 3)),
        (NAME, "pixels"),
    ),
    "label missing": (
        lambda path: write_dataset(path, labels=labels_with(lambda _: None)),
        (NAME, "no label"),
    ),
    "other names": (
        lambda path: write_dataset(path, labels=labels_with(lambda label: ["other.png", label[1]])),
        ("label",),
    ),
    "no labels": (
        lambda path: write_dataset(path, files={"dataset.json": b"{}"}),
        ("dataset.json",),
    ),
    "labels no JSON": (
        lambda path: write_dataset(path, files={"dataset.json": b"25 numbers"}),
        ("dataset.json",),
    ),
}


@pytest.mark.parametrize("case", WRONG_DATA)
@pytest.mark.parametrize("cfg", ["auto", "shapenet"])
def test_wrong_data(tmp_path: Path, case: str, cfg: str) -> None:
    make, words = WRONG_DATA[case]
    path = make(tmp_path / "wrong.zip")
    before = os.listdir(tmp_path)
    ended = train_here(
        "--data", path, "--outdir", tmp_path / "runs", "--gpus", "0", "--cfg", cfg, "--batch", "4"
    )
    ended.assert_refused(1, str(path), *words)
    runs = tmp_path / "runs"
    assert not runs.exists() or os.listdir(runs) == []
    assert sorted(set(os.listdir(tmp_path)) - {"runs"}) == sorted(before)


def test_wrong_data_in_a_process_of_its_own(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "wrong.zip", files={NAME: PICTURE[: len(PICTURE) // 2]})
    ended = finish(start("train.py", "--data", path, "--outdir", tmp_path / "runs", *TINY_OPTIONS))
    ended.assert_refused(1, NAME)
    assert os.listdir(tmp_path / "runs") == []


# --------------------------------------------------------------------------------------------------
# Checkpoints


def hostile(path: Path) -> Path:
    """A pickle that would leave a mark if it were opened the usual way."""
    return write_pickle(path, {"G_ema": Call(os.mkdir, (str(path.parent / "mark"),))})


def hostile_zip(path: Path) -> Path:
    """The same in the form that torch.save writes."""

    class Marker:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(path.parent / "mark"),)

    torch.save({"format": Marker()}, path)
    return path


def foreign(path: Path) -> Path:
    torch.save({"model": torch.zeros(3)}, path)
    return path


def foreign_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "an archive of something")
    return path


WRONG_CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    "missing": lambda path: path,
    "empty": write_bytes(b""),
    "text": write_bytes(b"no checkpoint"),
    "foreign": foreign,
    "foreign zip": foreign_zip,
    "hostile": hostile,
    "hostile zip": hostile_zip,
}


@pytest.mark.parametrize("case", [*WRONG_CHECKPOINTS, "cut off", "cut off early"])
@pytest.mark.parametrize("option", ["--resume", "--init-from"])
def test_wrong_checkpoints(half: Path, data: Path, tmp_path: Path, case: str, option: str) -> None:
    path = tmp_path / "wrong.pkl"
    if case.startswith("cut off"):
        content = snapshot_in(half).read_bytes()
        path.write_bytes(content[: 50 if case == "cut off early" else len(content) * 2 // 3])
    else:
        WRONG_CHECKPOINTS[case](path)
    before = os.listdir(tmp_path)
    train_here(
        "--data", data, "--outdir", tmp_path / "runs", "--gpus", "0", "--batch", "4", option, path
    ).assert_refused(1, str(path))
    assert os.listdir(tmp_path) == before  # no run, and no mark


def test_a_hostile_checkpoint_in_a_process_of_its_own(data: Path, tmp_path: Path) -> None:
    path = hostile(tmp_path / "network-snapshot-000000.pkl")
    for option in ("--resume", "--init-from"):
        finish(
            start("train.py", "--data", data, "--outdir", tmp_path / "runs", option, path)
        ).assert_refused(1, str(path))
    assert os.listdir(tmp_path) == [path.name]


def test_a_released_snapshot_cannot_be_resumed(tmp_path: Path) -> None:
    path = write_snapshot(tmp_path / "released.pkl")
    train_here("--resume", path).assert_refused(1, str(path), "--init-from")


def test_a_folder_without_snapshots_cannot_be_resumed(tmp_path: Path) -> None:
    train_here("--resume", tmp_path).assert_refused(1, str(tmp_path), "network-snapshot")


def test_a_checkpoint_whose_settings_are_out_of_range(half: Path, tmp_path: Path) -> None:
    source = load_checkpoint(snapshot_in(half))
    source.config.training.g_reg_interval = 0
    path = tmp_path / "network-snapshot-000000.pkl"
    save_checkpoint(path, source)
    train_here("--resume", path).assert_refused(2, "training.g_reg_interval")


def test_a_checkpoint_whose_weights_do_not_fit(half: Path, data: Path, tmp_path: Path) -> None:
    source = load_checkpoint(snapshot_in(half))
    assert source.G is not None
    source.G["decoder.net.0.weight"] = torch.zeros(3, 3)
    path = tmp_path / "network-snapshot-000000.pkl"
    save_checkpoint(path, source)
    train_here("--resume", path).assert_refused(1, "decoder.net.0.weight")
    options = ("--data", data, "--outdir", tmp_path / "runs", "--gpus", "0", "--batch", "4")
    train_here(*options, "--init-from", path).assert_refused(1, "decoder.net.0.weight")
    assert os.listdir(tmp_path / "runs") == []
