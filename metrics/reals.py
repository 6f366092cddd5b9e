"""Real pictures to compare with, and a cache of what has been computed from them."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dnnlib.console import UserError
from dnnlib.files import atomic_write, cache_dir
from metrics.detectors import Detector
from metrics.processes import WorkerGroup

STATISTICS_VERSION = 1  # raised whenever the cached numbers would come out differently
_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


def no_traits() -> tuple[None, tuple[str, ...]]:
    """Traits of pictures for which none are known."""
    return None, ()


@dataclass(frozen=True)
class RealImages:
    """A set of real pictures.

    Attributes:
        count, resolution: number of pictures, pixels per side.
        key: text that changes whenever the pictures do.
        read: indices (N,) to uint8 pictures (N, 3, H, W).
        labels: cameras (count, 25), where known.
        read_depth: indices to true depths (N, 1, H, W) in world units along the rays, 0 where there
            is nothing; None = no depth maps.
        traits: reads true traits (count, T), float64, where known, and their names.
        name: for messages. names: of the pictures; where there are more pictures, the rest are
            their mirror images.
        details: what else belongs into the protocol.
    """

    count: int
    resolution: int
    key: str
    read: Callable[[np.ndarray], Tensor]
    labels: Tensor | None = None
    read_depth: Callable[[np.ndarray], Tensor] | None = None
    name: str = "data"
    names: tuple[str, ...] = ()
    traits: Callable[[], tuple[Tensor | None, tuple[str, ...]]] = no_traits
    details: dict[str, Any] = field(default_factory=dict)

    def chosen(self, count: int | None) -> np.ndarray:
        """Indices of the pictures to compare with: all, or the first `count` of a fixed random
        order (neighbours may show one object).
        """
        if count is None:
            return np.arange(self.count)
        return np.random.RandomState(0).permutation(self.count)[:count]

    def unseen(self, count: int, is_full: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Indices of `count` pictures that can stand in for fakes, and of those to compare them
        with: the `chosen` ones, or nearly all others. No picture of the one has its mirror image in
        the other. Both are empty where there are fewer than `count`.
        """
        order = self.chosen(self.count)
        kept, rest = np.split(order, [-count if is_full else count])
        if is_full:
            kept, rest = rest, kept
        twins = (rest + len(self.names)) % self.count  # itself, where nothing is mirrored
        apart = rest[~np.isin(twins, kept)]
        unseen, compared = (kept, apart) if is_full else (apart[:count], kept)
        enough = min(len(unseen), len(compared)) >= count
        return (unseen, compared) if enough else (order[:0], order[:0])


def cached_arrays(
    key: dict[str, Any], team: WorkerGroup, compute: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Arrays that `compute` makes, kept in the cache under all that they depend on.

    All processes of `team` call this, and `compute`, which gives each of them the whole result.
    """
    text = json.dumps(key, sort_keys=True)
    path = cache_dir() / "metrics" / (hashlib.sha256(text.encode()).hexdigest()[:32] + ".npz")
    arrays = _read_entry(path, text)
    if team.agree(arrays is not None) and arrays is not None:
        return arrays
    arrays = compute()
    if team.rank == 0:
        _write_entry(path, text, arrays)
    return arrays


def _read_entry(path: Path, text: str) -> dict[str, np.ndarray] | None:
    """Arrays of a cache entry; None if there is none, or its checksums show damage."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        if str(arrays.pop("key")) != text:
            raise ValueError("it belongs to other data")
    except _DAMAGE as error:
        print(
            f"warning: cached statistics {path} are damaged ({error}); computing them again",
            file=sys.stderr,
        )
        return None
    return arrays


def _write_entry(path: Path, text: str, arrays: dict[str, np.ndarray]) -> None:
    """Keep arrays. A full disk costs the next run some time, not this one its result."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays, key=np.array(text))
    try:
        with atomic_write(path) as file:
            file.write(buffer.getbuffer())
    except UserError as error:
        print(f"warning: statistics of the real pictures are not kept: {error}", file=sys.stderr)


def software() -> dict[str, str]:
    """Versions that change features in their last digits."""
    return {"torch": torch.__version__, "statistics": str(STATISTICS_VERSION)}


def real_protocol(reals: RealImages, used: int, detector: Detector | None = None) -> dict[str, Any]:
    """What belongs into the protocol of a comparison with `used` reals, by a feature network where
    there is one.
    """
    return {
        "reals": used,
        "data_pictures": reals.count,
        "data_hash": reals.key,
        **reals.details,
        **(detector.protocol if detector else {}),
    }
