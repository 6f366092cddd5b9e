"""A data set made larger from within: with the mirror image of every picture, or with rare views
repeated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from data_tools.pictures import mirror_picture, whole_picture
from data_tools.sinks import Sink, check_dest, image_name, open_sink, write_labels
from dnnlib.console import UserError, progress
from dnnlib.parallel import ordered_map
from training.cameras import mirror_label
from training.data.balance import balance_copies
from training.data.dataset import PLAIN_BACKGROUND, ImageDataset
from training.data.files import DataFiles
from training.data.traits import Traits, read_traits


@dataclass(frozen=True)
class Enlarged:
    """Numbers of pictures before and after."""

    before: int
    after: int


def mirror(
    source: str | Path, dest: str | Path, *, workers: int = 0, overwrite: bool = False
) -> Enlarged:
    """Write the data set `source` followed by all of its pictures mirrored left-right, with the
    mirrored cameras.

    The order is that of `ImageDataset(source, mirror=True)`. Originals are copied byte for byte,
    mirror images are PNG.

    Raises:
        UserError: if `source` is no whole data set, or `dest` exists or cannot be written.
    """
    dataset = _open(source, dest, overwrite)
    labels = dataset.labels.double()
    both = np.concatenate([labels.numpy(), mirror_label(labels).numpy()])
    names = dataset.file_names
    with open_sink(Path(dest), overwrite=overwrite) as sink:
        written = _copy(sink, dataset, range(len(names)), workers)
        for data in _made(mirror_picture, dataset, names, workers, "Mirroring"):
            written.append(image_name(len(written)))
            sink.write(written[-1], data)
        write_labels(sink, written, both, _traits(dataset, [*names, *names], written))
    return Enlarged(len(names), len(written))


def rebalance(
    source: str | Path,
    dest: str | Path,
    *,
    bins: int = 9,
    factor: float = 4.0,
    overwrite: bool = False,
) -> Enlarged:
    """Write the data set `source` with the pictures of rare yaws repeated (see
    `training.data.balance.balance_copies`).

    The originals come first, then the copies in the same order.

    Raises:
        UserError: as `mirror`.
    """
    dataset = _open(source, dest, overwrite)
    order = copied_order(balance_copies(dataset.labels, bins, factor))
    with open_sink(Path(dest), overwrite=overwrite) as sink:
        written = _copy(sink, dataset, order)
        names = [dataset.file_names[index] for index in order]
        traits = _traits(dataset, names, written)
        write_labels(sink, written, dataset.labels.double().numpy()[order], traits)
    return Enlarged(len(dataset), len(order))


def copied_order(copies: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the pictures to write, given how often each shall be there (M,): all once, then
    what more is wanted, in rounds.
    """
    rounds = [np.flatnonzero(copies > done) for done in range(int(copies.max()))]
    return np.concatenate(rounds)


def _open(source: str | Path, dest: str | Path, overwrite: bool) -> ImageDataset:
    check_dest(Path(dest), overwrite, Path(source))
    return ImageDataset(source, background=PLAIN_BACKGROUND)


def _traits(dataset: ImageDataset, names: list[str], written: list[str]) -> Traits | None:
    """Traits of pictures that are written under other names; a mirror image has its original's."""
    traits = read_traits(dataset.files)
    return traits.of(names, written) if traits else None


def _made(
    make: Callable[[DataFiles, str], bytes | UserError],
    dataset: ImageDataset,
    names: Sequence[str],
    workers: int,
    title: str,
) -> Iterator[bytes]:
    """`make` of all pictures, in order."""
    results = ordered_map(make, dataset.files, names, len(names), workers)
    with contextlib.closing(results):
        for data in progress(results, title, total=len(names), unit="img"):
            if isinstance(data, UserError):
                raise data
            yield data


def _copy(
    sink: Sink, dataset: ImageDataset, order: Sequence[int] | NDArray[np.int64], workers: int = 0
) -> list[str]:
    """Write pictures byte for byte; their new names."""
    names = [dataset.file_names[index] for index in order]
    written: list[str] = []
    for name, data in zip(
        names, _made(whole_picture, dataset, names, workers, "Copying"), strict=True
    ):
        written.append(image_name(len(written), PurePosixPath(name).suffix.lower()))
        sink.write(written[-1], data)
    return written
