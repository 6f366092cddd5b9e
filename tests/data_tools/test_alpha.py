"""Pictures with alpha on their way into a data set, and what training reads of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dataset_tool
import train
from data_tools.check.check import check_data, odd_alpha
from data_tools.heads.dataset import HeadsConfig, generate_heads
from data_tools.mirror import mirror
from dnnlib.console import UserError
from tests.tiny import TINY_OPTIONS, call, encode, kimg, only_run, write_dataset
from training.data.dataset import ImageDataset, lay_over, to_float
from training.data.shards import open_images
from training.gan.loss import Schedule, real_pictures

COUNT, SIZE = 8, 32
Make = Callable[[int], np.ndarray]


def cut_out(index: int) -> np.ndarray:
    """A disc of smooth colours with a soft edge on nothing, (SIZE, SIZE, 4)."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    alpha = np.clip((0.35 - np.hypot(x - 0.5, y - 0.5)) * 8 + 0.5, 0, 1)
    colours = [200 * x + 30, 255 - 100 * y, np.full_like(x, 20 + 20 * index)]
    return np.stack([*colours, 255 * alpha], axis=-1).round().astype(np.uint8)


def write_data(path: Path, make: Make = cut_out) -> Path:
    """A data set in a folder."""
    dataset = ImageDataset(write_dataset(path.with_suffix(".zip"), COUNT, SIZE))
    for index, name in enumerate(dataset.file_names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(encode(make(index)))
    (path / "dataset.json").write_bytes(dataset.files.read("dataset.json"))
    return path


def stored(path: Path) -> np.ndarray:
    """Pictures (N, H, W, 4) as training reads them."""
    dataset = ImageDataset(path, background=(0.0, 0.0, 0.0))
    return dataset.read_stored(range(len(dataset)))[0].permute(0, 2, 3, 1).numpy()


# --------------------------------------------------------------------------------------------------
# Reading


def test_alpha_is_refused_unless_it_is_wanted(tmp_path: Path) -> None:
    path = write_data(tmp_path / "data")
    with pytest.raises(UserError, match="--alpha composite"):
        ImageDataset(path)
    expected = np.stack([cut_out(index) for index in range(COUNT)])
    np.testing.assert_array_equal(stored(path), expected)


@pytest.mark.parametrize("is_in_memory", [False, True])
def test_colours_alone_lie_over_the_background(is_in_memory: bool, tmp_path: Path) -> None:
    background = (0.2, 0.4, 1.0)
    dataset = ImageDataset(write_data(tmp_path / "data"), mirror=True, background=background)
    if is_in_memory:
        dataset.preload()
    images, labels = dataset.read([3, COUNT + 3])
    alpha = cut_out(3)[..., 3:] / 255
    expected = cut_out(3)[..., :3] * alpha + np.array(background) * 255 * (1 - alpha)
    assert np.abs(images[0].permute(1, 2, 0).numpy() - expected).max() <= 0.51
    assert images[1].equal(images[0].flip(-1))
    assert not labels[0].equal(labels[1])
    assert dataset.has_alpha


def test_opaque_pictures_have_full_alpha_and_the_same_colours(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "data.zip", COUNT, SIZE)
    plain, wanted = ImageDataset(path), ImageDataset(path, background=(1.0, 1.0, 1.0))
    assert not wanted.has_alpha
    assert wanted.read([2])[0].equal(plain.read([2])[0])
    assert (wanted.read_stored([2])[0][:, 3] == 255).all()
    assert wanted.key == plain.key


def test_a_data_set_in_several_zips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path / "cache"))
    folder = write_data(tmp_path / "data")
    (tmp_path / "parts").mkdir()
    mirror(folder, tmp_path / "parts" / "a.zip", workers=1)
    parts = open_images(tmp_path / "parts", background=(0.5, 0.5, 0.5))
    whole = ImageDataset(folder, background=(0.5, 0.5, 0.5))
    assert parts.read_stored([1, 5])[0].equal(whole.read_stored([1, 5])[0])
    assert parts.read([1, 5])[0].equal(whole.read([1, 5])[0])


def test_what_is_laid_over_is_what_training_lays_over(tmp_path: Path) -> None:
    """The arithmetic of whole numbers agrees with that of the networks' numbers."""
    dataset = ImageDataset(write_data(tmp_path / "data"), background=(0.0, 0.0, 0.0))
    images, _ = dataset.read_stored([0])
    background = (0.3, 0.6, 0.1)
    shown, _ = real_pictures(
        to_float(images), Schedule(SIZE, 0, 0), torch.tensor([background]) * 2 - 1
    )
    assert (shown - to_float(lay_over(images, background))).abs().max() < 0.51 / 127.5


# --------------------------------------------------------------------------------------------------
# Making


def test_convert_keeps_alpha_when_asked(tmp_path: Path) -> None:
    source = write_data(tmp_path / "in")
    command = ("convert", "--source", source, "--workers", "1", "--background", "keep", "--dest")
    call(dataset_tool.main, *command, tmp_path / "same.zip").assert_done()
    np.testing.assert_array_equal(stored(tmp_path / "same.zip"), stored(source))


def test_shrunk_pictures_have_no_fringe(tmp_path: Path) -> None:
    """Red on transparent green: no pixel becomes greener than its neighbours' alpha hides."""

    def disc(index: int) -> np.ndarray:
        pixels = cut_out(index).repeat(2, axis=0).repeat(2, axis=1)
        pixels[..., :3] = np.where(pixels[..., 3:] > 0, (255, 0, 0), (0, 255, 0))
        return pixels

    source = write_data(tmp_path / "in", disc)
    command = ("convert", "--source", source, "--workers", "1", "--background", "keep")
    small = ("--resolution", str(SIZE), "--dest", tmp_path / "small.zip")
    call(dataset_tool.main, *command, *small).assert_done()
    pixels = stored(tmp_path / "small.zip").astype(int)
    assert pixels.shape == (COUNT, SIZE, SIZE, 4)
    green = pixels[..., 1] * pixels[..., 3] / 255
    assert green.max() < 3
    assert ((pixels[..., 3] > 0) & (pixels[..., 3] < 255)).any()


def test_masks_beside_opaque_pictures_become_their_alpha(tmp_path: Path) -> None:
    source = write_data(tmp_path / "in", lambda index: cut_out(index)[..., :3])
    for index, name in enumerate(ImageDataset(source).file_names):
        (source / "mask" / name).parent.mkdir(parents=True, exist_ok=True)
        (source / "mask" / name).write_bytes(encode(cut_out(index)[..., 3]))
    command = ("convert", "--source", source, "--workers", "1", "--dest", tmp_path / "out.zip")
    call(dataset_tool.main, *command, "--background", "keep").assert_done()
    expected = np.stack([cut_out(index) for index in range(COUNT)])
    np.testing.assert_array_equal(stored(tmp_path / "out.zip"), expected)
    (source / "mask" / name).write_bytes(encode(cut_out(0)[:16, :16, 3]))
    refused = call(dataset_tool.main, *command, "--background", "keep", "--overwrite")
    refused.assert_refused(1, "mask/", "16x16", "32x32")


def test_mirrored_pictures_keep_alpha(tmp_path: Path) -> None:
    source = write_data(tmp_path / "in")
    mirror(source, tmp_path / "out.zip", workers=1)
    pixels = stored(tmp_path / "out.zip")
    np.testing.assert_array_equal(pixels[COUNT:], pixels[:COUNT, :, ::-1])


def test_heads_with_alpha_are_those_before_a_colour(tmp_path: Path) -> None:
    options: dict[str, Any] = {"count": 2, "resolution": 32, "workers": 1}
    plain = ImageDataset(generate_heads(tmp_path / "plain.zip", HeadsConfig(**options)))
    behind = tuple(value / 255 for value in HeadsConfig().background)
    path = generate_heads(tmp_path / "cut.zip", HeadsConfig(**options, alpha=True))
    assert len(behind) == 3
    cut = ImageDataset(path, background=behind)
    alpha = cut.read_stored([0, 1])[0][:, 3]
    assert alpha.min() == 0
    assert alpha.max() == 255
    assert ((alpha > 0) & (alpha < 255)).any()
    difference = cut.read([0, 1])[0].int() - plain.read([0, 1])[0].int()
    assert difference.abs().max() <= 1


# --------------------------------------------------------------------------------------------------
# Checking


def premultiplied(index: int) -> np.ndarray:
    pixels = cut_out(index).astype(float)
    pixels[..., :3] *= pixels[..., 3:] / 255
    return pixels.astype(np.uint8)


def with_alpha(value: Callable[[np.ndarray], np.ndarray]) -> Make:
    def make(index: int) -> np.ndarray:
        pixels = cut_out(index)
        pixels[..., 3] = value(pixels[..., 3])
        return pixels

    return make


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (cut_out, None),
        (with_alpha(lambda alpha: alpha * 0), "empty-alpha"),
        (with_alpha(lambda alpha: alpha * 0 + 255), "opaque-alpha"),
        (with_alpha(lambda alpha: np.where(alpha > 127, 255, 0)), "hard-alpha"),
        (premultiplied, "premultiplied"),
    ],
)
def test_odd_alpha_is_named(make: Make, code: str | None, tmp_path: Path) -> None:
    report, _ = check_data(write_data(tmp_path / "data", make), workers=1)
    codes = {finding.code for finding in report.findings}
    assert codes & {"empty-alpha", "opaque-alpha", "hard-alpha", "premultiplied"} == (
        {code} if code else set()
    )
    assert report.ok()
    assert report.summary["with_alpha"] == COUNT
    assert odd_alpha(make(0)) == ((code,) if code else ())


# --------------------------------------------------------------------------------------------------
# Training


def test_train_reads_alpha_and_goes_on(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    options: tuple[str | Path, ...] = (
        "--data",
        data,
        "--outdir",
        tmp_path / "runs",
        *TINY_OPTIONS,
        "--alpha",
        "judge",
    )
    held_out = ("--set", "data.held_out=2")
    call(train.main, *options, *held_out, "--kimg", kimg(1)).assert_done()
    run = only_run(tmp_path / "runs")
    resume = ("--resume", run, "--outdir", tmp_path / "runs")
    call(train.main, *resume, "--kimg", kimg(2)).assert_done()
    assert (run / "reals.png").exists()
    assert Image.open(run / "reals.png").mode == "RGB"
    assert len(list(run.glob("network-snapshot-*.pkl"))) >= 2


def test_alpha_is_asked_of_data_that_have_it(tmp_path: Path) -> None:
    opaque = write_dataset(tmp_path / "opaque.zip", COUNT, SIZE)
    options: tuple[str | Path, ...] = (
        *TINY_OPTIONS,
        "--outdir",
        tmp_path / "runs",
        "--dry-run",
        "--data",
    )
    refused = call(train.main, *options, opaque, "--alpha", "composite")
    refused.assert_refused(1, "no transparent parts", "leave --alpha out", "--background keep")
    call(train.main, *options, opaque).assert_done()
    cut = write_data(tmp_path / "cut")
    call(train.main, *options, cut).assert_refused(1, "train with --alpha composite")
    call(train.main, *options, cut, "--alpha", "composite").assert_done()
    judged = call(train.main, *options, cut, "--alpha", "judge", "--aug", "ada")
    judged.assert_refused(2, "--alpha composite", "--aug noaug")
    call(train.main, *options, cut, "--alpha", "composite", "--aug", "ada").assert_done()
    call(train.main, *options, cut, "--alpha", "judge", "--aug", "noaug").assert_done()
