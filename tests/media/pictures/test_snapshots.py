"""Pictures of a run at its snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from media.pictures import snapshots
from media.pictures.snapshots import save_pictures
from tests.tiny import pictures, tiny_config, write_dataset
from training.cameras import CameraSummary
from training.data.dataset import ImageDataset
from training.gan.trainer import Trainer
from training.run.loop import SnapshotState


class Writer:
    """Notes what TensorBoard is given."""

    def __init__(self) -> None:
        self.images: dict[tuple[str, int], np.ndarray] = {}

    def add_image(self, tag: str, picture: np.ndarray, step: int, dataformats: str) -> None:
        assert dataformats == "HWC"
        self.images[tag, step] = picture


@pytest.fixture
def state(tmp_path: Path) -> SnapshotState:
    dataset = ImageDataset(write_dataset(tmp_path / "blots.zip", count=6))
    trainer = Trainer(tiny_config(), dataset.labels, torch.device("cpu"))
    cameras = CameraSummary.from_labels(dataset.labels)
    (tmp_path / "run").mkdir()
    return SnapshotState(trainer, dataset, cameras, tmp_path / "run", 8, None, cast(Any, Writer()))


def test_pictures_at_the_start_and_at_a_snapshot(state: SnapshotState) -> None:
    save_pictures(state)
    start = {path.name for path in state.run_dir.iterdir()}
    assert start == {
        "reals.png",
        "fakes-000000.png",
        "raw-000000.png",
        "depth-000000.png",
        "yaw-000000.png",
    }
    state.trainer.progress.images, state.checkpoint = (
        12_000,
        state.run_dir / "network-snapshot-000012.pkl",
    )
    save_pictures(state)
    later = {path.name for path in state.run_dir.iterdir()} - start
    assert later == {"fakes-000012.png", "raw-000012.png", "depth-000012.png", "yaw-000012.png"}
    writer = cast(Writer, state.writer)
    for kind in ("fakes", "raw", "depth", "yaw"):
        # The weights are the same, and so are latents and cameras: what changes in these pictures
        # is the network.
        assert np.array_equal(writer.images[kind, 0], writer.images[kind, 12_000])
        assert np.array_equal(
            np.asarray(Image.open(state.run_dir / f"{kind}-000012.png")),
            writer.images[kind, 12_000],
        )
    assert [step for kind, step in writer.images if kind == "reals"] == [0]


def test_reals_are_the_data(state: SnapshotState) -> None:
    grid = snapshots.real_grid(state)
    assert grid.shape == (32, 6 * 32, 3)
    tiles = grid.reshape(32, 6, 32, 3).swapaxes(0, 1)
    originals = pictures(6)
    assert sorted(
        next(i for i in range(6) if np.array_equal(tile, originals[i])) for tile in tiles
    ) == [0, 1, 2, 3, 4, 5]


def test_fakes_show_the_averaged_generator_at_the_resolution_of_the_moment(
    state: SnapshotState,
) -> None:
    asked: list[int] = []
    original = state.trainer.G_ema.render

    def render(*arguments: Any, **options: Any) -> Any:
        asked.append(arguments[3] if len(arguments) > 3 else options["neural_rendering_resolution"])
        return original(*arguments, **options)

    state.trainer.G_ema.render = render  # type: ignore[method-assign]
    state.resolution = 12
    before = snapshots.fake_grids(state)
    with torch.no_grad():
        for p in state.trainer.G.parameters():
            p.add_(1)
    after = snapshots.fake_grids(state)
    assert set(asked) == {12}
    assert set(before) == {"fakes", "raw", "depth"}
    for name in before:
        assert before[name].shape == (4 * 32, 8 * 32, 3)
        assert np.array_equal(before[name], after[name])
    raw_tile = before["raw"][:32, :32]
    assert len(np.unique(raw_tile.reshape(-1, 3), axis=0)) <= 12 * 12


def test_training_weights_keep_no_gradients_from_pictures(state: SnapshotState) -> None:
    save_pictures(state)
    assert all(p.grad is None and not p.requires_grad for p in state.trainer.G_ema.parameters())
    assert not state.trainer.G_ema.training
