"""The order in which a data set's items are trained on, and the processes that decode them
ahead.
"""

from __future__ import annotations

import functools
import itertools
import signal
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnnlib.console import UserError
from training.data.balance import epoch_items
from training.data.dataset import ImageDataset

WINDOW = 16  # shards whose pictures are mixed, of sets of several ZIPs


@functools.lru_cache(maxsize=4)
def epoch_order(dataset_size: int, seed: int, epoch: int) -> np.ndarray:
    """Random order (dataset_size,) of one epoch: a function of its arguments alone.

    RandomState, unlike numpy's newer generators, is promised never to change, so runs can be
    resumed after an upgrade.
    """
    bits = np.random.MT19937(np.random.SeedSequence([seed % (1 << 64), epoch]))
    order = np.random.RandomState(bits).permutation(dataset_size)
    order.setflags(write=False)
    return order


class ItemOrder:
    """The endless stream of items that shows every item once an epoch: a function of the arguments
    alone.

    With `weights` (dataset_size,), at least 1 each, an epoch is longer and shows items about as
    often as they say. With `shard_of` (dataset_size,), the number of each item's ZIP, an epoch goes
    through the ZIPs in random order and mixes the items of `WINDOW` of them at a time.
    """

    def __init__(
        self,
        dataset_size: int,
        seed: int,
        weights: np.ndarray | None = None,
        shard_of: np.ndarray | None = None,
    ) -> None:
        self.length = dataset_size if weights is None else round(float(weights.sum()))
        self.seed, self.weights, self.shard_of = seed, weights, shard_of
        self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)

    def items(self, first_image: int, count: int) -> np.ndarray:
        """Those number first_image .. first_image + count - 1 (count,)."""
        epochs, places = np.divmod(np.arange(first_image, first_image + count), self.length)
        return np.concatenate(
            [self._epoch(epoch)[places[epochs == epoch]] for epoch in map(int, np.unique(epochs))]
        )

    def _make_epoch(self, epoch: int) -> np.ndarray:
        """All items (length,) of one epoch."""
        items = epoch_order(self.length, self.seed, epoch)
        if self.weights is not None:
            items = epoch_items(self.weights, self.seed, epoch)[items]
        if self.shard_of is not None:
            places = np.argsort(epoch_order(int(self.shard_of.max()) + 1, self.seed, epoch))
            windows = places[self.shard_of[items]] // WINDOW
            items = items[np.argsort(windows, kind="stable")]
        return items


def training_batches(
    dataset: ImageDataset,
    batch: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    seed: int = 0,
    start_image: int = 0,
    workers: int = 0,
    weights: np.ndarray | None = None,
) -> Generator[tuple[Tensor, Tensor]]:
    """Endless batches for process `rank`: pictures (batch / world_size, 3, H, W), uint8, and labels
    (batch / world_size, 25).

    Each global batch of `batch` items is dealt out in turn, item i to process i % world_size. The
    order depends on `seed` and `start_image` only: starting at image n goes on exactly as a stream
    that has shown n images. Data sets of up to 512 MB are decoded once and kept; otherwise
    `workers` processes decode ahead (two batches each). Close the iterator to end them. `weights`
    (len(dataset),) are those of `ItemOrder`.

    Raises:
        UserError: if a picture cannot be decoded, with its file's name; also from a worker.
        ValueError: if `batch` is not a multiple of `world_size`.
    """
    if batch % world_size:
        raise ValueError(f"batch {batch} is not a multiple of {world_size} processes")
    if dataset.fits_memory:
        dataset.preload()
        workers = 0
    starts = itertools.count(start_image, batch)
    order = ItemOrder(len(dataset), seed, weights, dataset.shard_of)
    indices = (order.items(start, batch)[rank::world_size] for start in starts)
    return read_batches(dataset, indices, workers)


def read_batches(
    dataset: ImageDataset, index_batches: Iterable[np.ndarray], workers: int = 0
) -> Generator[tuple[Tensor, Tensor]]:
    """`dataset.read_stored` of each of `index_batches`, decoded ahead by `workers` processes,
    without touching any random state.

    Raises:
        UserError: if a picture cannot be decoded, with its file's name, or if a worker dies.
    """
    if not workers:
        yield from map(dataset.read_stored, index_batches)
        return
    batches = _start_workers(dataset, index_batches, workers)
    try:
        for item in batches:
            if isinstance(item, UserError):
                raise item
            images, labels, broken = item
            dataset.note_broken(broken)
            yield images, labels
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a process that reads pictures died, most likely for lack of (shared) memory; try"
            " --workers 0"
        ) from error
    finally:
        del batches  # ends the workers


def _start_workers(
    dataset: ImageDataset, index_batches: Iterable[np.ndarray], workers: int
) -> Iterator[Any]:
    loader = torch.utils.data.DataLoader(
        _BatchReader(dataset),
        batch_size=None,
        sampler=index_batches,
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=_leave_signals_to_parent,
        generator=torch.Generator(),  # else starting the workers draws from the global one
    )
    return iter(loader)


class _BatchReader(torch.utils.data.Dataset[Any]):
    """Reads whole batches; hands errors over as values, because a DataLoader would wrap the message
    in a traceback.
    """

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, indices: Any) -> Any:
        try:
            return *self.dataset.read_stored(indices), dict(self.dataset.broken)
        except UserError as error:
            return error


def _as_is(item: Any) -> Any:
    return item


def _leave_signals_to_parent(_: int) -> None:
    """Ctrl-C and a batch system's SIGTERM reach every process of the group; the parent still needs
    batches to finish its step.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
