"""What a run says about itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny import tiny_config, write_dataset
from training.config.settings import Precision
from training.data.dataset import ImageDataset
from training.data.scene import CameraSummary
from training.gan.trainer import Trainer
from training.run import settings
from training.run.messages import COLUMNS, expected_images, speed_line, start_lines, tick_line


def test_the_start(tmp_path: Path) -> None:
    dataset = ImageDataset(write_dataset(tmp_path / "blots.zip"), mirror=True)
    trainer = Trainer(tiny_config(), dataset.labels, torch.device("cpu"))
    cameras = CameraSummary.from_labels(dataset.labels)
    folder = tmp_path / "runs" / "00000-run"
    data, networks, steps, place, columns = start_lines(
        trainer.config, dataset, cameras, trainer, folder
    )
    assert "16 pictures of 32 pixels, each also mirrored; cameras with yaw -" in data
    assert data.endswith("at distance 2")
    learned = sum(parameter.numel() for parameter in trainer.G.parameters())
    assert f"Generator: {learned:,} parameters; discriminator: " in networks
    assert steps == "Steps: 4 pictures each, 250 per kimg, 250 for all 1 kimg"
    assert str(folder) in place
    assert place.endswith(f"tensorboard --logdir {tmp_path / 'runs'}")
    assert all(f"{label} {meaning}" in columns for label, _, _, meaning in COLUMNS)


def test_columns_of_a_tick_are_those_of_the_legend() -> None:
    line = tick_line(1.5, {name: 1.0 for _, name, _, _ in COLUMNS})
    assert line.startswith("kimg     1.500  G  1.000  D  1.000")
    assert [label for label, *_ in COLUMNS if label not in line] == []


@pytest.mark.parametrize(
    ("limit", "end"),
    [(None, "0:10:00 for the rest"), (60.0, "0:01:00 until the time limit"), (1e6, "for the rest")],
)
def test_the_speed_of_the_first_steps(limit: float | None, end: str) -> None:
    line = speed_line(images=40, seconds=4.0, left=6000, limit=limit)
    assert line.startswith("Speed so far: 10.0 images per second, 0:01:40 per kimg, ")
    assert line.endswith(end)


def test_a_time_limit_ends_a_run_before_its_images_do() -> None:
    assert expected_images(images=140, done=40, seconds=4.0, left=60, total=25_000) == 740
    assert expected_images(images=140, done=40, seconds=4.0, left=60, total=500) == 500
    assert expected_images(images=140, done=40, seconds=4.0, left=-1, total=500) == 140


@pytest.mark.parametrize(
    ("precision", "device", "has_bf16", "words"),
    [
        ("fp16", "cuda", True, "--precision bf16 is recommended, tf32"),
        ("fp16", "cuda", False, "fp16 (--precision)"),
        ("bf16", "cuda", True, "bf16 (--precision)"),
        ("fp32", "cpu", True, "fp32 (--precision)"),
    ],
)
def test_bf16_is_recommended_on_gpus_that_have_it(
    precision: Precision,
    device: str,
    has_bf16: bool,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settings, "has_fast_bf16", lambda _: has_bf16)
    assert words in settings.precision_note(precision, device)
