"""What a run's pictures and the files of its metrics are, wherever they lie: what has moved is
known again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from dnnlib.console import UserError
from dnnlib.files import is_url
from training.config.settings import METRIC_FILES, DataConfig, SnapshotConfig, about_of
from training.data.dataset import PLAIN_BACKGROUND, ImageDataset
from training.data.shards import open_images, shard_paths


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
    if not has_moved and not all(shard.exists() for shard in shard_paths(path) or [path]):
        raise UserError(f"the run's data {path} are not there any more; say where with --data")
    if not own.content:  # by an earlier version
        unknown = "the run did not keep what its data were, so they are not compared"
        return f"Data from {path} now; {unknown}" if has_moved else None
    # the content that is compared does not depend on alpha
    found = content_of(
        open_images(path, check=False, max_broken=wanted.max_broken, background=PLAIN_BACKGROUND)
    )
    differences = content_differences(own.content, found)
    if differences:
        named = f"{'--data' if has_moved else 'data'} {path}"
        raise UserError(
            f"{named} are not the data that the run began with: {differences}; start a new run"
            " from its weights with --init-from"
        )
    return f"The run's data are in {path} now" if has_moved else None


def metric_files(snapshot: SnapshotConfig) -> Iterator[tuple[str, Path]]:
    """Option and path of the files on this machine that metrics are told to use."""
    for name in METRIC_FILES:
        value = getattr(snapshot, name) or ()
        for file in (value,) if isinstance(value, str) else value:
            if not is_url(file):
                yield str(about_of(snapshot, name).option), Path(file)


def contents_of_files(snapshot: SnapshotConfig) -> tuple[str, ...]:
    """Option and SHA-256 of each of `metric_files` that is there."""
    return tuple(
        f"{option} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for option, path in metric_files(snapshot)
        if path.is_file()
    )


def notes_on_files(own: SnapshotConfig, wanted: SnapshotConfig) -> Iterator[str]:
    """A line on each file of a run that goes on with those of `wanted`, if it has moved.

    Raises:
        UserError: if one is not there, or is not the one that the run began with: figures before
            and after would not compare.
    """
    known = list(metric_files(own))
    for option, path in metric_files(wanted):
        began = [content for content in own.contents if content.startswith(f"{option} ")]
        if not began:  # by an earlier version, or not a file, or not asked for then
            continue
        if not path.is_file():
            raise UserError(
                f"the run's {option} {path} is not there any more; say where with {option}, or"
                " measure nothing with --metrics none"
            )
        found = f"{option} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        if found not in began:
            digests = " instead of ".join(
                text.rpartition(" ")[2][:12] for text in (found, began[0])
            )
            raise UserError(
                f"{option} {path} is not the file that the run began with: SHA-256 {digests}; start"
                " a new run from its weights with --init-from"
            )
        if (option, path) not in known:
            yield f"The run's {option} is {path} now"
