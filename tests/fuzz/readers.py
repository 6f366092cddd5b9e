"""The readers that are fuzzed: each takes bytes, and anything but a UserError is a find."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

from data_tools.sources.detect import read_source
from dnnlib.console import UserError
from open_eg3d import load_generator
from tests.hostile.archives import good_checkpoint, good_folder, torch_archive
from tests.hostile.datasets import NAME, labels_text, picture, plain_zip, png, transforms
from tests.released_layout import Builder, Layout, write_pickle
from tests.tiny import write_dataset
from training.checkpoints.checkpoint import load_checkpoint, load_weights
from training.checkpoints.released.interop import convert_snapshot
from training.checkpoints.released.unpickler import read_pickle
from training.checkpoints.weights_folder import CONFIG_FILE, WEIGHTS_FILE, read_weights_folder
from training.data.dataset import ImageDataset

SMALL = Layout(
    z_dim=2,
    w_dim=2,
    channel_base=16,
    channel_max=2,
    plane_resolution=8,
    plane_channels=2,
    decoder_hidden=2,
)


class Readers:
    """Readers by name, with files to begin from; they write below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / f"input-{os.getpid()}"
        self.whole = good_folder(folder / "whole")
        load_generator(self.whole)  # what libraries import on first use takes seconds under atheris
        self.all: dict[str, Callable[[bytes], None]] = {
            "snapshot": self.snapshot,
            "checkpoint": self.checkpoint,
            "instructions": self.instructions,
            "safetensors": self.safetensors,
            "config": self.config,
            "labels": self.labels,
            "data": self.data,
            "picture": self.picture,
            "transforms": self.transforms,
        }

    def snapshot(self, content: bytes) -> None:
        """A released snapshot, to the settings and tensors."""
        self.file.write_bytes(content)
        convert_snapshot(read_pickle(self.file))

    def checkpoint(self, content: bytes) -> None:
        """A file of either kind, to a generator."""
        self.file.write_bytes(content)
        with contextlib.suppress(UserError):
            load_checkpoint(self.file)
        load_generator(self.file)

    def instructions(self, content: bytes) -> None:
        """The pickle of a checkpoint, in an archive whose checksums are right."""
        self.file.write_bytes(torch_archive(content))
        load_weights(self.file)

    def safetensors(self, content: bytes) -> None:
        """The weights of a folder."""
        (self.whole / WEIGHTS_FILE).write_bytes(content)
        read_weights_folder(self.whole)

    def config(self, content: bytes) -> None:
        """The settings of a folder."""
        good = self.whole / CONFIG_FILE
        before = good.read_bytes()
        try:
            good.write_bytes(content)
            load_generator(self.whole)
        finally:
            good.write_bytes(before)

    def labels(self, content: bytes) -> None:
        """dataset.json, read for training and for converting."""
        plain_zip(self.file, {"dataset.json": content, NAME: picture()})
        with contextlib.suppress(UserError):
            ImageDataset(self.file)[0]
        read_source(self.file)

    def data(self, content: bytes) -> None:
        """A whole archive."""
        self.file.write_bytes(content)
        dataset = ImageDataset(self.file)
        for index in range(min(len(dataset), 4)):
            dataset[index]

    def picture(self, content: bytes) -> None:
        """One picture."""
        plain_zip(self.file, {"dataset.json": labels_text(), NAME: content})
        ImageDataset(self.file)[0]

    def transforms(self, content: bytes) -> None:
        """A list of cameras of a source."""
        plain_zip(self.file, {"transforms.json": content, "a.png": picture()})
        read_source(self.file)

    def seeds(self, name: str) -> list[bytes]:
        """Whole files of a kind."""
        small = write_pickle(
            self.folder / "small.pkl",
            {"G_ema": Builder(SMALL).synthesis("s"), "n": [1.5, None, True, "x", (1, 2)]},
        )
        archive = good_checkpoint(self.folder / "checkpoint.pkl").read_bytes()
        with zipfile.ZipFile(io.BytesIO(archive)) as content:
            instructions = content.read(
                next(entry for entry in content.namelist() if entry.endswith("data.pkl"))
            )
        whole = good_folder(self.folder / "seeds")
        found = {
            "snapshot": [
                small.read_bytes(),
                write_pickle(self.folder / "s.pkl", [1, {"a": {2}}], protocol=2).read_bytes(),
            ],
            "checkpoint": [archive],
            "instructions": [instructions],
            "safetensors": [(whole / WEIGHTS_FILE).read_bytes()],
            "config": [(whole / CONFIG_FILE).read_bytes()],
            "labels": [labels_text(), b'{"labels": {"a": [1]}}'],
            "data": [write_dataset(self.folder / "data.zip", count=2).read_bytes()],
            "picture": [picture(), png(32, 32, mode=3, rows=bytes(33 * 32))],
            "transforms": [transforms()],
        }
        return found[name]
