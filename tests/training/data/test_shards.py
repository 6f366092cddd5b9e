"""Data sets of several ZIPs: the same pictures as in one piece, in an order that stays near in the
files, resumed exactly; nothing in a process that reads grows with the set.
"""

from __future__ import annotations

import itertools
import pickle
import shutil
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dataset_tool
import training.data.dataset
from dnnlib import locks
from dnnlib.console import UserError
from tests.tiny import (
    TINY_OPTIONS,
    call,
    differing,
    encode,
    kimg,
    only_run,
    orbit_labels,
    pictures,
    state_in,
    write_dataset,
)
from tests.train.runs import train_here
from training.cameras import mirror_label
from training.data import shards
from training.data.dataset import ImageDataset
from training.data.order import WINDOW, ItemOrder, training_batches
from training.data.shards import ShardedDataset, index_path, open_images
from training.run.data_content import content_of

COUNTS = (3, 5, 4)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that knows nothing."""
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPEN_EG3D_OPS", "reference")  # of which none has to be compiled
    return tmp_path / "cache"


def write_shards(folder: Path, counts: tuple[int, ...] = COUNTS, compression: int = 0) -> Path:
    """ZIPs with different pictures and cameras."""
    folder.mkdir()
    for number, count in enumerate(counts):
        labels = orbit_labels(count, seed=number).tolist()
        names = [f"00000/img{i:08d}.png" for i in range(count)]
        plain = write_dataset(
            folder.parent / "plain.zip",
            count,
            labels=[list(pair) for pair in zip(names, labels, strict=True)],
            files={
                name: encode(picture)
                for name, picture in zip(names, pictures(count, seed=number), strict=True)
            },
        )
        with (
            zipfile.ZipFile(plain) as source,
            zipfile.ZipFile(folder / f"{number:03d}.zip", "w", compression) as dest,
        ):
            for name in source.namelist():
                with dest.open(name, "w") as file:
                    file.write(source.read(name))
    return folder


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("mirror", [False, True])
def test_shards_hold_what_their_zips_hold(tmp_path: Path, mirror: bool, compression: int) -> None:
    folder = write_shards(tmp_path / "set", compression=compression)
    parts = [ImageDataset(path) for path in sorted(folder.iterdir())]
    labels = torch.cat([part.labels for part in parts])
    images = torch.cat([part.read(range(len(part)))[0] for part in parts])
    if mirror:
        labels = torch.cat([labels, mirror_label(labels)])
        images = torch.cat([images, images.flip(-1)])
    dataset = open_images(folder, mirror=mirror)
    assert dataset.has_labels
    assert dataset.name == "set"
    assert dataset.resolution == parts[0].resolution
    assert torch.equal(dataset.labels, labels)
    for reader in (dataset, pickle.loads(pickle.dumps(dataset))):
        found = reader.read(range(len(dataset)))
        assert torch.equal(found[0], images)
        assert torch.equal(found[1], labels)
    names = [f"{part.path.stem}/{name}" for part in parts for name in part.file_names]
    assert list(dataset.file_names) == dataset.file_names[:] == names
    assert list(dataset.file_sizes) == [size for part in parts for size in part.file_sizes]


def test_ways_to_name_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_shards(tmp_path / "set")
    (folder / "readme.txt").write_text("hello")
    monkeypatch.chdir(tmp_path)
    keys = {
        open_images(path).key
        for path in (
            folder,
            str(folder / "*.zip"),
            "|".join(f"set/00{i}.zip" for i in range(3)),
            shards.absolute_data("set/00?.zip"),
        )
    }
    assert len(keys) == 1
    assert open_images("set/002.zip|set/001.zip").key not in keys
    assert not isinstance(open_images(folder / "000.zip"), ShardedDataset)


def test_a_set_that_moved_is_the_same_and_another_is_not(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set")
    content = content_of(open_images(folder))
    assert content_of(open_images(shutil.copytree(folder, tmp_path / "moved"))) == content
    (folder / "000.zip").unlink()
    assert content_of(open_images(folder)) != content


# --------------------------------------------------------------------------------------------------
# What goes wrong


def test_refusals(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set")
    write_dataset(folder / "large.zip", 4, 64)
    with pytest.raises(UserError, match=r"large.zip has pictures of 64 pixels, .*000.zip of 32"):
        open_images(folder)
    with pytest.raises(UserError, match=r"no file fits .*/x\*.zip"):
        open_images(tmp_path / "x*.zip")
    with pytest.raises(UserError, match=r"cannot read .*none.zip"):
        open_images(f"{folder}/000.zip|{folder}/none.zip")
    (tmp_path / "unpacked").mkdir()
    (tmp_path / "unpacked" / "a.png").write_bytes(encode(pictures(1)[0]))
    with pytest.raises(UserError, match=r"unpacked is a folder; each part .* must be a ZIP"):
        open_images(f"{folder}/000.zip|{tmp_path}/unpacked")
    with pytest.raises(UserError, match="name of a file is empty"):
        open_images(f"{folder}/000.zip|")


def test_shards_without_labels(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set")
    with zipfile.ZipFile(folder / "plain.zip", "w") as archive:
        archive.writestr("a.png", encode(pictures(1)[0]))
    assert not open_images(folder, needs_labels=False).has_labels
    with pytest.raises(UserError, match=r"plain.zip: no dataset.json"):
        open_images(folder)


def test_damage_is_found_when_a_picture_is_decoded(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set")
    shard = folder / "001.zip"
    content = bytearray(shard.read_bytes())
    place = content.find(b"IDAT") + 20
    content[place] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"001.zip: 00000/img00000000.png cannot be read.*CRC"):
        open_images(folder).read([3])
    tolerant = open_images(folder, max_broken=1)
    assert torch.equal(tolerant.read([3])[0], tolerant.read([4])[0])


def test_pictures_of_another_size_are_found_by_check(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set")
    large = {"00000/img00000001.png": encode(pictures(1, 64)[0])}
    shard = write_dataset(folder / "001.zip", 5, files=large)
    message = r"img00000001.png is 64 pixels wide .*`dataset_tool.py check` finds them"
    with pytest.raises(UserError, match=message):
        open_images(folder).read(range(8))
    checked = call(dataset_tool.main, "check", "--source", shard)
    assert checked.status == 1
    assert "img00000001.png is 64x64" in checked.out + checked.err


def test_a_shard_that_changed_is_indexed_anew(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set")
    before = open_images(folder)
    write_dataset(folder / "001.zip", 7)
    assert len(open_images(folder)) == len(before) + 2


def test_a_set_that_is_opened_again_shows_the_pictures_of_now(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set")
    open_images(folder).read(range(8))
    new = write_shards(tmp_path / "other", (3, 3)) / "000.zip"
    new.replace(folder / "001.zip")
    expected = ImageDataset(folder / "001.zip").read([0])
    found = open_images(folder).read([3])
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_a_shard_that_changes_in_use_is_refused(tmp_path: Path) -> None:
    """Labels are those of before: pictures of now would not belong to them."""
    folder = write_shards(tmp_path / "set")
    dataset = open_images(folder)
    (write_shards(tmp_path / "other", (5,)) / "000.zip").replace(folder / "001.zip")
    with pytest.raises(UserError, match=r"001.zip has changed since it was opened"):
        dataset.read([3])
    (folder / "002.zip").unlink()
    with pytest.raises(UserError, match=r"cannot read .*002.zip"):
        dataset.read([8])


def test_an_index_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_shards(tmp_path / "set")
    key = open_images(folder).key
    monkeypatch.setattr(shards, "_make_index", lambda *_, **__: pytest.fail("made again"))
    assert open_images(folder).key == key


def test_opening_looks_at_each_shard_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look is a round trip where files lie on another machine."""
    looks = []

    def look(shard: Path) -> Path:
        looks.append(shard)
        return index_path(shard)

    folder = write_shards(tmp_path / "set")
    monkeypatch.setattr(shards, "index_path", look)
    for _ in range(2):  # without indices, and with
        looks.clear()
        open_images(folder)
        assert sorted(looks) == sorted(folder.iterdir())


def test_an_index_that_is_lost_is_made_again(tmp_path: Path, cache: Path) -> None:
    dataset = open_images(write_shards(tmp_path / "set"))
    for path in (cache / "shards").glob("*.npy"):
        path.unlink()
    assert dataset.read([3])[0].shape[0] == 1
    assert len(list(dataset.file_names)) == sum(COUNTS)


def test_of_several_processes_one_makes_the_indices(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_shards(tmp_path / "set")
    makers = []
    original = shards._make_index

    def make(max_broken: int, shard_and_index: tuple[Path, Path]) -> None:
        makers.append(threading.current_thread().name)
        original(max_broken, shard_and_index)

    monkeypatch.setattr(shards, "_make_index", make)
    (cache / "shards").mkdir(parents=True)
    other = threading.Thread(target=open_images, args=(folder,), name="other")
    with locks.hold(cache / "shards" / "lock", "is this test"):
        other.start()
        told = ""
        while "Waiting for another process that indexes shards" not in told:
            assert other.is_alive()
            told += capfd.readouterr().err
            time.sleep(0.01)
        for path in folder.iterdir():
            make(0, (path, index_path(path)))
    other.join()
    assert makers == ["MainThread"] * len(COUNTS)


def test_a_cache_without_locks_is_refused_and_another_one_helps(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_shards(tmp_path / "set")
    (cache / "shards" / "lock").mkdir(parents=True)  # cannot be opened as a file
    with pytest.raises(UserError, match="set OPEN_EG3D_CACHE to a writable folder"):
        open_images(folder)
    monkeypatch.setenv("OPEN_EG3D_CACHE", str(tmp_path / "writable"))
    assert len(open_images(folder)) == sum(COUNTS)


def test_many_shards_are_indexed_by_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARDS_PER_PROCESS", 1)
    folder = write_shards(tmp_path / "set")
    assert len(open_images(folder)) == sum(COUNTS)
    assert all(index_path(path).exists() for path in folder.iterdir())
    write_dataset(folder / "003.zip", labels=[])
    write_dataset(folder / "004.zip", labels=[])
    with pytest.raises(UserError, match=r"003.zip.* has no camera labels"):
        open_images(folder)


# --------------------------------------------------------------------------------------------------
# Order


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3 * WINDOW),
    seed=st.integers(-3, 2**40),
    epoch=st.integers(0, 3),
    mirrored=st.booleans(),
)
def test_an_epoch_shows_all_items_a_window_of_shards_at_a_time(
    sizes: list[int], seed: int, epoch: int, mirrored: bool
) -> None:
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    shard_of = np.tile(shard_of, 2) if mirrored else shard_of
    items = ItemOrder(len(shard_of), seed, shard_of=shard_of).items(
        epoch * len(shard_of), len(shard_of)
    )
    assert sorted(items) == list(range(len(shard_of)))
    shown, windows = shard_of[items], -(-len(sizes) // WINDOW)
    spans = [(shown == i).nonzero()[0] for i in range(len(sizes))]
    edges = [0]
    for _ in range(windows):
        members = {i for i in range(len(sizes)) if spans[i][0] >= edges[-1]}
        members = set(sorted(members, key=lambda i: spans[i][0])[:WINDOW])
        edges.append(edges[-1] + sum(len(spans[i]) for i in members))
    for begin, stop in itertools.pairwise(edges):
        assert len(set(shown[begin:stop])) <= WINDOW
    assert edges[-1] == len(items)


def test_order_is_random_in_and_between_windows() -> None:
    shard_of = np.repeat(np.arange(3 * WINDOW), 5)
    order = ItemOrder(len(shard_of), 0, shard_of=shard_of)
    epochs = order.items(0, 40 * len(shard_of)).reshape(40, -1)
    first_windows = {frozenset(shard_of[epoch[: 5 * WINDOW]]) for epoch in epochs}
    assert len(first_windows) == 40
    changes = (np.diff(shard_of[epochs]) != 0).mean()
    assert changes > 0.85  # of 80 items drawn at random, 4 in 79 neighbours share a shard


@given(st.integers(0, 200), st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_any_split_of_the_stream_gives_the_same(first: int, counts: list[int]) -> None:
    shard_of = np.repeat(np.arange(WINDOW + 3), 3)
    weights = 1 + (np.arange(len(shard_of)) % 3) / 2
    whole = ItemOrder(len(shard_of), 1, weights, shard_of).items(first, sum(counts))
    starts = np.cumsum([first, *counts[:-1]])
    parts = [
        ItemOrder(len(shard_of), 1, weights, shard_of).items(int(begin), count)
        for begin, count in zip(starts, counts, strict=True)
    ]
    assert np.array_equal(np.concatenate(parts), whole)


def test_order_of_shards_never_changes() -> None:
    """Runs that were started earlier must go on with their order: these numbers may not change."""
    shard_of = np.arange(WINDOW + 1)
    items = ItemOrder(len(shard_of), 0, shard_of=shard_of).items(0, len(shard_of))
    assert items.tolist() == [1, 11, 13, 8, 16, 0, 15, 3, 9, 5, 7, 6, 10, 12, 4, 2, 14]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_later_start_goes_on_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(training.data.dataset, "IN_MEMORY_BYTES", 0)
    dataset = open_images(write_shards(tmp_path / "set"))

    def take(start_image: int, count: int) -> torch.Tensor:
        stream = training_batches(dataset, 4, seed=1, start_image=start_image, workers=workers)
        images = torch.cat([next(stream)[0] for _ in range(count)])
        stream.close()
        return images

    assert torch.equal(take(12, 5), take(0, 8)[12:])


# --------------------------------------------------------------------------------------------------
# What a process that reads holds


def test_a_reader_keeps_few_shards_open(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    first = write_dataset(folder / "000.zip", 1)
    for number in range(1, 3 * WINDOW):
        shutil.copyfile(first, folder / f"{number:03d}.zip")
    dataset = open_images(folder)
    dataset.read(range(len(dataset)))
    assert shards._open_shard.cache_info().currsize == 2 * WINDOW
    assert len(pickle.dumps(dataset)) < 1000 * len(dataset)


# --------------------------------------------------------------------------------------------------
# The command line


def test_a_run_on_shards_resumes_exactly_though_they_moved(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set")
    first, *others = sorted(folder.iterdir())
    outdirs = [tmp_path / "whole", tmp_path / "half"]
    for outdir, steps in zip(outdirs, (4, 2), strict=True):
        options: list[str | Path] = ["--outdir", outdir, *TINY_OPTIONS, "--kimg", kimg(steps)]
        train_here("--data", first, *others, *options).assert_done()
    half = only_run(outdirs[1])
    refused = train_here("--resume", half, "--data", first, "--data", others[0], "--gpus", "0")
    refused.assert_refused(1, "8 pictures instead of 12")
    moved = shutil.move(folder, tmp_path / "moved")
    more = ["--kimg", kimg(4), "--gpus", "0"]
    train_here("--resume", half, *more).assert_refused(1, "say where with --data")
    train_here("--resume", half, *more, "--data", f"{moved}/*.zip").assert_done()
    assert not differing(state_in(half), state_in(only_run(outdirs[0])))


def test_stray_words_are_refused() -> None:
    refused = train_here("stray.zip", "--dry-run")
    refused.assert_refused(2, "unexpected extra argument (stray.zip)")
