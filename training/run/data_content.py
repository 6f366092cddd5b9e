"""What a run's pictures are, wherever they lie: a data set that has moved is known again."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dnnlib.console import UserError
from training.config.settings import DataConfig
from training.data.dataset import ImageDataset


def content_of(dataset: ImageDataset) -> str:
    """Number of pictures and hashes of their names, sizes in bytes and labels, as text."""
    names, count = dataset.file_names, len(dataset.file_names)
    parts = {
        "names": "\0".join(names).encode(errors="surrogatepass"),
        "sizes": " ".join(map(str, dataset.file_sizes)).encode(),
        "labels": dataset.labels[:count].numpy().tobytes(),
    }
    hashes = [f"{name} {hashlib.sha256(part).hexdigest()[:16]}" for name, part in parts.items()]
    return ", ".join([f"{count} pictures", *hashes])


def content_differences(own: str, found: str) -> str:
    """In what two data sets differ, in words; empty if in nothing."""
    pairs = zip(own.split(", "), found.split(", "), strict=False)
    words = [
        f"{new} instead of {old.split()[0]}" if "pictures" in old else f"other {new.split()[0]}"
        for old, new in pairs
        if old != new
    ]
    return ", ".join(words)


def note_on_data(own: DataConfig, wanted: DataConfig) -> str | None:
    """A line on the data of a run that goes on with those in `wanted.path`, if they have moved.

    Raises:
        UserError: if they are not there, or are not those that the run began with.
    """
    path, has_moved = Path(wanted.path), wanted.path != own.path
    if not has_moved and not path.exists():
        raise UserError(f"the run's data {path} are not there any more; say where with --data")
    if not own.content:  # by an earlier version
        unknown = "the run did not keep what its data were, so they are not compared"
        return f"Data from {path} now; {unknown}" if has_moved else None
    found = content_of(ImageDataset(path, check=False, max_broken=wanted.max_broken))
    differences = content_differences(own.content, found)
    if differences:
        named = f"{'--data' if has_moved else 'data'} {path}"
        raise UserError(
            f"{named} are not the data that the run began with: {differences}; start a new run"
            " from its weights with --init-from"
        )
    return f"The run's data are in {path} now" if has_moved else None
