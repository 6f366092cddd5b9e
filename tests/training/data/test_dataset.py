"""Opening, checking, reading and ordering of training pictures."""

import io
import json
import os
import pickle
import signal
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import training.data.dataset
from dnnlib.console import UserError
from training.cameras import mirror_label, orbit_pose, pack_label, pinhole_intrinsics
from training.data.dataset import ImageDataset, to_float
from training.data.order import ItemOrder, epoch_order, read_batches, training_batches

COUNT = 6


def encode(pixels, mode="RGB", kind="PNG", **options):
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def png(width, height, bit_depth, colour_type, rows):
    """A PNG written by hand, for kinds that Pillow does not write."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def pixels_of(index, size=32):
    return np.random.default_rng(index).integers(0, 256, (size, size, 3), dtype=np.uint8)


def name_of(index):
    return f"{index // 4:05d}/img{index:08d}.png"


def good_files(size=32):
    return {name_of(index): encode(pixels_of(index, size)) for index in range(COUNT)}


def good_labels():
    yaw, pitch = torch.linspace(-0.5, 0.5, COUNT), torch.linspace(-0.2, 0.2, COUNT)
    labels = pack_label(orbit_pose(yaw, pitch, 2.7), pinhole_intrinsics(3.1)).tolist()
    return [[name_of(index), label] for index, label in enumerate(labels)]


def write(path, files, labels, compression=zipfile.ZIP_STORED):
    """A data set as a ZIP if `path` ends in .zip, else as a folder; `labels` may be the text of
    dataset.json.
    """
    text = labels if isinstance(labels, str) else json.dumps({"labels": labels})
    files = {**files, "dataset.json": text.encode()}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    return path


def refusal(action, *fragments):
    """Run `action`; it must raise a one-line UserError that says all of `fragments`."""
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message
    return message


@pytest.fixture
def good(tmp_path):
    return write(tmp_path / "good.zip", good_files(), good_labels())


@pytest.fixture
def from_files(monkeypatch):
    """Read pictures from their files although they would fit into memory."""
    monkeypatch.setattr(training.data.dataset, "IN_MEMORY_BYTES", 0)


# --------------------------------------------------------------------------------------------------
# Good data


@pytest.mark.parametrize("kind", ["folder", "stored.zip", "deflated.zip"])
def test_pictures_and_labels_come_back_exactly(tmp_path, kind):
    compression = zipfile.ZIP_DEFLATED if kind.startswith("deflated") else zipfile.ZIP_STORED
    path = write(tmp_path / kind, good_files(), good_labels()[::-1], compression)
    dataset = ImageDataset(path)
    assert (len(dataset), dataset.resolution, dataset.name) == (
        COUNT,
        32,
        kind.removesuffix(".zip"),
    )
    assert dataset.file_names == [name_of(index) for index in range(COUNT)]
    expected = torch.tensor([label for _, label in good_labels()])
    assert dataset.labels.dtype == torch.float32
    assert torch.equal(dataset.labels, expected)
    for index in range(COUNT):
        image, label = dataset[index]
        assert image.dtype == torch.uint8
        assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels_of(index))
        assert torch.equal(label, expected[index])


def test_items_end_where_the_data_ends(good):
    dataset = ImageDataset(good)
    with pytest.raises(IndexError):
        dataset[COUNT]
    assert torch.equal(dataset[-1][0], dataset[COUNT - 1][0])


def test_names_that_are_no_utf8(tmp_path):
    """File systems have them; they count in the key, and the short name can be written
    everywhere.
    """
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    keys = []
    for name in (b"\xe9.png", b"\xe8.png"):
        (folder / os.fsdecode(name)).write_bytes(encode(pixels_of(0)))
        dataset = ImageDataset(folder, needs_labels=False)
        assert dataset.name == "caf_"
        assert dataset.file_names == [os.fsdecode(name)]
        keys.append(dataset.key)
        (folder / os.fsdecode(name)).unlink()
    assert keys[0] != keys[1]


@pytest.mark.parametrize("preload", [False, True])
def test_mirror_doubles_the_data_with_flipped_pictures_and_cameras(good, preload):
    plain, mirrored = ImageDataset(good), ImageDataset(good, mirror=True)
    if preload:
        mirrored.preload()
    assert len(mirrored) == 2 * COUNT
    assert len(mirrored.labels) == 2 * COUNT
    for index in range(COUNT):
        image, label = plain[index]
        assert torch.equal(mirrored[index][0], image)
        assert torch.equal(mirrored[COUNT + index][0], image[:, :, torch.arange(31, -1, -1)])
        assert torch.equal(mirrored[COUNT + index][1], mirror_label(label))
    images, labels = mirrored.read([1, COUNT + 1, COUNT + 5, 0])
    assert torch.equal(images, torch.stack([mirrored[i][0] for i in (1, COUNT + 1, COUNT + 5, 0)]))
    assert torch.equal(labels, mirrored.labels[[1, COUNT + 1, COUNT + 5, 0]])
    assert torch.equal(mirrored[1][0], plain[1][0]), (
        "reading a mirrored item must not change what is kept"
    )


def replaced(**contents):
    """Good files with picture 2 replaced by one named img.SUFFIX, and its label renamed."""
    ((suffix, content),) = contents.items()
    files, labels = good_files(), good_labels()
    del files[name_of(2)]
    files[f"00000/img.{suffix}"] = content
    labels[2][0] = f"00000/img.{suffix}"
    return files, labels


def test_grey_bilevel_and_palette_pictures_become_rgb_exactly(tmp_path):
    grey = pixels_of(2)[:, :, 0]
    cases = {
        "grey": (encode(grey, "L"), np.repeat(grey[:, :, None], 3, axis=2)),
        "bilevel": (
            encode(grey > 99, "1"),
            np.repeat((grey > 99)[:, :, None] * np.uint8(255), 3, axis=2),
        ),
    }
    palette = Image.fromarray(pixels_of(2)).quantize(16)
    file = io.BytesIO()
    palette.save(file, "PNG")
    colours = np.array(palette.getpalette()).reshape(-1, 3).astype(np.uint8)
    cases["palette"] = (file.getvalue(), colours[np.array(palette)])
    for kind, (content, expected) in cases.items():
        files, labels = replaced(png=content)
        dataset = ImageDataset(write(tmp_path / kind, files, labels))
        index = dataset.file_names.index("00000/img.png")
        assert np.array_equal(dataset[index][0].permute(1, 2, 0).numpy(), expected), kind


def test_jpeg_and_webp(tmp_path):
    smooth = np.broadcast_to(np.linspace(40, 200, 32)[:, None, None], (32, 32, 3)).astype(np.uint8)
    for suffix, content, tolerance in (
        ("webp", encode(smooth, kind="WEBP", lossless=True), 0),
        ("jpg", encode(smooth, kind="JPEG", quality=95), 4),
        ("JPEG", encode(smooth, kind="JPEG", quality=95), 4),
    ):
        files, labels = replaced(**{suffix: content})
        dataset = ImageDataset(write(tmp_path / suffix, files, labels))
        image = dataset[dataset.file_names.index(f"00000/img.{suffix}")][0].permute(1, 2, 0).numpy()
        assert np.abs(image.astype(int) - smooth).max() <= tolerance


def test_depth_maps_masks_and_hidden_files_do_not_disturb(tmp_path):
    files = good_files()
    files["depth/00000/img00000000.png"] = encode(np.zeros((32, 32), np.uint16), "I;16")
    files["mask/00000/img00000000.png"] = encode(np.zeros((16, 16), np.uint8), "L")
    files["__MACOSX/._img.png"] = files[".DS_Store"] = files["00000/._img.png"] = b"?"
    files["readme.txt"] = b"hello"
    for path in (tmp_path / "folder", tmp_path / "data.zip"):
        assert ImageDataset(write(path, files, good_labels())).file_names == sorted(good_files())


def test_labelled_pictures_in_a_folder_named_mask_count(tmp_path):
    files = {"mask/" + name: content for name, content in good_files().items()}
    path = write(
        tmp_path / "data.zip", files, [["mask/" + name, label] for name, label in good_labels()]
    )
    assert len(ImageDataset(path)) == COUNT


def test_labels_as_an_object_and_with_backslashes(tmp_path, good):
    as_object = json.dumps(
        {"labels": {name.replace("/", "\\"): label for name, label in good_labels()}}
    )
    assert torch.equal(
        ImageDataset(write(tmp_path / "object.zip", good_files(), as_object)).labels,
        ImageDataset(good).labels,
    )


def test_whole_numbers_are_numbers(tmp_path):
    labels = [
        [name, [1, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 3, 0, 0, 0, 1, 2, 0, 0.5, 0, 2, 0.5, 0, 0, 1]]
        for name, _ in good_labels()
    ]
    assert ImageDataset(write(tmp_path / "data.zip", good_files(), labels)).labels[0, 11] == 3


def test_key_follows_the_content(tmp_path, good):
    key = ImageDataset(good).key
    assert key == ImageDataset(write(tmp_path / "copy.zip", good_files(), good_labels())).key
    files, labels = good_files(), good_labels()
    files[name_of(3)] = encode(pixels_of(99))
    labels[0][1][3] += 0.5
    others = [
        ImageDataset(good, mirror=True).key,
        ImageDataset(write(tmp_path / "picture.zip", files, good_labels())).key,
        ImageDataset(write(tmp_path / "label.zip", good_files(), labels)).key,
    ]
    assert len({key, *others}) == 4


def test_unchecked_opening_gives_the_same(good):
    checked, unchecked = ImageDataset(good), ImageDataset(good, check=False)
    assert (checked.key, checked.resolution, checked.file_names) == (
        unchecked.key,
        unchecked.resolution,
        unchecked.file_names,
    )


@pytest.mark.parametrize("kind", ["folder", "data.zip"])
def test_a_pickled_copy_reads_the_same(tmp_path, kind):
    dataset = ImageDataset(write(tmp_path / kind, good_files(), good_labels()))
    dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy.read(range(COUNT))[0], dataset.read(range(COUNT))[0])


def test_to_float_is_the_networks_range():
    values = to_float(torch.arange(256, dtype=torch.uint8))
    assert values.dtype == torch.float32
    assert torch.allclose(
        values.double(), torch.linspace(-1, 1, 256, dtype=torch.float64), atol=1e-6
    )
    assert (values[0], values[255]) == (-1, 1)


# --------------------------------------------------------------------------------------------------
# Bad data: each one refused in one line that says what, where and what to do


def test_missing_path(tmp_path):
    refusal(lambda: ImageDataset(tmp_path / "no.zip"), "no.zip", "does not exist", "check the path")


def test_empty_folder_and_zip(tmp_path):
    (tmp_path / "folder").mkdir()
    zipfile.ZipFile(tmp_path / "empty.zip", "w").close()
    for name in ("folder", "empty.zip"):
        refusal(
            lambda name=name: ImageDataset(tmp_path / name), name, "is empty", "must hold pictures"
        )


def test_something_else_than_a_zip(tmp_path, good):
    (tmp_path / "text.zip").write_text("hello")
    (tmp_path / "zero.zip").write_bytes(b"")
    (tmp_path / "cut.zip").write_bytes(good.read_bytes()[:-300])
    (tmp_path / "picture.png").write_bytes(encode(pixels_of(0)))
    for name in ("text.zip", "zero.zip", "cut.zip", "picture.png"):
        refusal(
            lambda name=name: ImageDataset(tmp_path / name),
            name,
            "neither a folder nor a whole ZIP",
            "name the folder of the pictures" if name == "picture.png" else "cut off",
        )


def test_no_label_file(tmp_path):
    path = write(tmp_path / "data", good_files(), good_labels())
    (path / "dataset.json").unlink()
    refusal(lambda: ImageDataset(path), "no dataset.json", "docs/training.md")


def test_label_file_one_folder_down(tmp_path):
    path = write(tmp_path / "data" / "ffhq", good_files(), good_labels()).parent
    refusal(
        lambda: ImageDataset(path),
        "no dataset.json",
        "ffhq/dataset.json",
        "must start at its folder",
    )


def test_no_pictures(tmp_path):
    refusal(
        lambda: ImageDataset(write(tmp_path / "data", {"a.bmp": b"?"}, good_labels())),
        "no pictures",
        "PNG, JPEG or WebP",
    )


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1, 2]", "3", '"labels"', "\x00", "[" * 100_000],
    ids=["empty", "open", "list", "number", "text", "nul", "deep"],
)
def test_broken_label_file(tmp_path, text):
    refusal(
        lambda: ImageDataset(write(tmp_path / "data.zip", good_files(), text)),
        "data.zip: dataset.json",
        "JSON of the form",
    )


@pytest.mark.parametrize("text", ["{}", '{"labels": null}', '{"labels": []}', '{"labels": 5}'])
def test_label_file_without_labels(tmp_path, text):
    refusal(
        lambda: ImageDataset(write(tmp_path / "data.zip", good_files(), text)),
        "dataset.json has no camera labels",
        "25 numbers",
    )


def changed_label(change):
    def damage(files, labels):  # noqa: ARG001
        labels[3][1] = change(list(labels[3][1]))

    return damage


def put(values):
    """A label with the numbers at the given places replaced."""

    def change(label):
        for place, value in values.items():
            label[place] = value
        return label

    return changed_label(change)


def transformed(function):
    """A label whose 4x4 matrix goes through `function`."""
    return changed_label(
        lambda label: function(np.array(label[:16]).reshape(4, 4)).flatten().tolist() + label[16:]
    )


def other_file(make):
    def damage(files, labels):  # noqa: ARG001
        files[name_of(3)] = make()

    return damage


def remove(what):
    def damage(files, labels):
        del {"files": files, "labels": labels}[what][{"files": name_of(3), "labels": 3}[what]]

    return damage


def rename_labels(files, labels):  # noqa: ARG001
    for index, entry in enumerate(labels):
        entry[0] = f"other{index}.png"


LABEL = "label 3 (00000/img00000003.png)"
FILE = "00000/img00000003.png"
SHEAR = np.eye(4) + 0.01 * np.eye(4, k=1) * np.array([1, 1, 0, 0])
DAMAGES = {
    "26 numbers": (
        changed_label(lambda label: [*label, 1.0]),
        (LABEL, "26 numbers instead of 25", "9 of the intrinsics"),
    ),
    "24 numbers": (changed_label(lambda label: label[:-1]), (LABEL, "24 numbers instead of 25")),
    "no numbers": (changed_label(lambda _: None), (LABEL, "has None instead of 25")),
    "a number as text": (put({7: "0.5"}), (LABEL, "'0.5'", "not a number")),
    "null number": (put({7: None}), (LABEL, "'None'", "not a number")),
    "NaN": (put({3: float("nan")}), (LABEL, "NaN or infinite", "leave the picture out")),
    "infinite": (put({24: float("-inf")}), (LABEL, "NaN or infinite")),
    "beyond float32": (put({3: 1e60}), (LABEL, "NaN or infinite")),
    "huge whole number": (put({3: 10**500}), (LABEL, "NaN or infinite")),
    "last row": (put({12: 0.5}), (LABEL, "last row is not 0 0 0 1", "camera-to-world")),
    "transposed": (transformed(np.transpose), (LABEL, "transposed", "row by row")),
    "scaled": (
        transformed(lambda m: m @ np.diag([1.01, 1.01, 1.01, 1])),
        (LABEL, "not orthonormal", "scale and shear"),
    ),
    "sheared": (transformed(lambda m: m @ SHEAR), (LABEL, "not orthonormal")),
    "zero rotation": (
        transformed(lambda m: m * np.array([0, 0, 0, 1.0])),
        (LABEL, "not orthonormal"),
    ),
    "determinant -1": (
        transformed(lambda m: m @ np.diag([-1.0, 1, 1, 1])),
        (LABEL, "determinant -1", "x right, y down, z forward"),
    ),
    "pixel intrinsics": (
        put({16: 100.0, 20: 100.0, 18: 16.0, 21: 16.0}),
        (LABEL, "look like pixels", "divide them by the image size"),
    ),
    "pixel focal": (put({16: 2000.0, 20: 2000.0}), (LABEL, "look like pixels", "focal 2000 2000")),
    "pixel centre": (put({21: 16.0}), (LABEL, "look like pixels", "centre 0.5 16")),
    "negative centre": (put({18: -0.1}), (LABEL, "principal point outside", "lie in 0..1")),
    "zero focal": (
        put({20: 0.0}),
        (LABEL, "focal length that is not above 0", "units of the image size"),
    ),
    "negative focal": (put({16: -3.1}), (LABEL, "focal length that is not above 0")),
    "last row of intrinsics": (put({24: 0.0}), (LABEL, "not of the form fx s cx", "row by row")),
    "transposed intrinsics": (
        put({18: 0.0, 21: 0.0, 22: 0.5, 23: 0.5}),
        (LABEL, "not of the form fx s cx"),
    ),
    "picture without label": (
        remove("labels"),
        (FILE, "has no label", "add its 25 numbers", "--skip-bad"),
    ),
    "label without picture": (
        remove("files"),
        (LABEL, "is for a picture that is not there", "remove the label"),
    ),
    "labels for other names": (rename_labels, (name_of(0), "has no label", "5 more like it")),
    "name twice": (lambda _, labels: labels.append(labels[3]), (FILE, "twice", "keep one")),
    "entry of three": (
        lambda _, labels: labels[3].append(1),
        ("label 3 is", "instead of [NAME, [25 numbers]]"),
    ),
    "name is a number": (
        lambda _, labels: labels.__setitem__(3, [3, labels[3][1]]),
        ("label 3 is", "instead of [NAME"),
    ),
    "mixed sizes": (
        other_file(lambda: encode(pixels_of(3, 64))),
        (FILE, "64x64", name_of(0) + " is 32x32", "one size"),
    ),
    "not square": (
        other_file(lambda: encode(pixels_of(3)[:16])),
        (FILE, "32x16, not square", "crop"),
    ),
    "no power of two": (
        other_file(lambda: encode(pixels_of(3, 48))),
        (FILE, "48x48", "power of two", "resize"),
    ),
    "too small": (other_file(lambda: encode(pixels_of(3, 16))), (FILE, "16x16", "32 to 1024")),
    "RGBA": (
        other_file(lambda: encode(pixels_of(3), "RGBA")),
        (FILE, "alpha", "plain background", "RGB"),
    ),
    "grey with alpha": (other_file(lambda: encode(pixels_of(3), "LA")), (FILE, "alpha")),
    "WebP with alpha": (
        other_file(lambda: encode(pixels_of(3)[:, :, [0, 1, 2, 2]], None, "WEBP", exact=True)),
        (FILE, "alpha"),
    ),
    "transparent colour": (
        other_file(lambda: encode(pixels_of(3), transparency=(1, 2, 3))),
        (FILE, "alpha"),
    ),
    "16-bit grey": (
        other_file(lambda: encode(np.zeros((32, 32), np.uint16), "I;16")),
        (FILE, "more than 8 bits", "8-bit RGB"),
    ),
    "16-bit RGB": (
        other_file(lambda: png(32, 32, 16, 2, (b"\0" + bytes(32 * 6)) * 32)),
        (FILE, "more than 8 bits", "8-bit RGB"),
    ),
    "16-bit grey and alpha": (
        other_file(lambda: png(32, 32, 16, 4, (b"\0" + bytes(32 * 4)) * 32)),
        (FILE, "more than 8 bits"),
    ),
    "CMYK": (
        other_file(lambda: encode(pixels_of(3), "CMYK", "JPEG")),
        (FILE, "colour mode CMYK", "RGB"),
    ),
    "bomb": (
        other_file(lambda: png(60_000, 60_000, 8, 2, b"")),
        (FILE, "is larger than", "make it smaller"),
    ),
    "large bomb": (
        other_file(lambda: png(12_000, 12_000, 8, 2, b"")),
        (FILE, "is larger than", "make it smaller"),
    ),
    "not a picture": (
        other_file(lambda: b"hello"),
        (FILE, "cannot be read", "make this file again"),
    ),
    "empty picture": (other_file(lambda: b""), (FILE, "cannot be read")),
    "another format": (
        other_file(lambda: encode(pixels_of(3), kind="GIF")),
        (FILE, "is a GIF file, whatever its name", "convert --source"),
    ),
}


@pytest.mark.parametrize("container", ["folder", "data.zip"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_on_opening(tmp_path, damage, container):
    change, fragments = DAMAGES[damage]
    files, labels = good_files(), good_labels()
    change(files, labels)
    path = write(tmp_path / container, files, labels)
    refusal(lambda: ImageDataset(path), str(path), *fragments)


def test_small_errors_of_rounding_are_no_damage(tmp_path):
    files, labels = good_files(), good_labels()
    noise = np.random.default_rng(0).uniform(-2e-4, 2e-4, (COUNT, 3, 3))
    for (_, label), error in zip(labels, noise, strict=True):
        matrix = np.array(label[:16]).reshape(4, 4)
        matrix[:3, :3] += error
        label[:16] = matrix.flatten().tolist()
    assert len(ImageDataset(write(tmp_path / "data.zip", files, labels))) == COUNT


def test_unreadable_zip_entries(tmp_path, good):
    content = bytearray(good.read_bytes())
    place = content.find(b"PK\x01\x02")
    while place >= 0:
        content[place + 8] |= 1  # "encrypted" in the flags of a central directory entry
        place = content.find(b"PK\x01\x02", place + 4)
    (tmp_path / "locked.zip").write_bytes(content)
    refusal(lambda: ImageDataset(tmp_path / "locked.zip"), "locked.zip: dataset.json", "encrypted")


def cut(content):
    return content[: len(content) // 2]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("container", ["folder", "data.zip"])
def test_a_cut_off_picture_is_named_when_it_is_decoded(tmp_path, kind, container):
    files, labels = good_files(64), good_labels()
    files[name_of(3)] = cut(encode(pixels_of(3, 64), kind=kind))
    dataset = ImageDataset(write(tmp_path / container, files, labels))
    assert dataset[2][0].shape == (3, 64, 64)
    for action in (
        lambda: dataset[3],
        dataset.preload,
        lambda: next(training_batches(dataset, COUNT)),
    ):
        refusal(action, FILE, "cannot be read", "make this file again")


def test_a_cut_off_webp_is_refused_on_opening(tmp_path):
    files = good_files(64)
    files[name_of(3)] = cut(encode(pixels_of(3, 64), kind="WEBP"))
    refusal(
        lambda: ImageDataset(write(tmp_path / "data.zip", files, good_labels())),
        FILE,
        "cannot be read",
        "make this file again",
    )


def test_damaged_bytes_in_a_zip_are_noticed(tmp_path):
    content = bytearray(write(tmp_path / "data.zip", good_files(64), good_labels()).read_bytes())
    content[content.find(encode(pixels_of(3, 64))) + 8000] ^= 1
    (tmp_path / "damaged.zip").write_bytes(content)
    dataset = ImageDataset(tmp_path / "damaged.zip")
    refusal(lambda: dataset[3], "damaged.zip: " + FILE, "CRC")


def test_a_picture_exchanged_during_use(tmp_path):
    path = write(tmp_path / "data", good_files(), good_labels())
    dataset = ImageDataset(path)
    (path / FILE).write_bytes(encode(pixels_of(3, 64)))
    refusal(lambda: dataset[3], FILE, "64 pixels wide instead of 32")
    (path / FILE).unlink()
    refusal(lambda: dataset[3], FILE, "cannot be read")


# --------------------------------------------------------------------------------------------------
# Order

SIZES = st.integers(1, 40)
SEEDS = st.integers(-3, 2**40)


@given(SIZES, SEEDS, st.integers(0, 200), st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_any_split_of_the_stream_gives_the_same_sequence(size, seed, first, counts):
    whole = ItemOrder(size, seed).items(first, sum(counts))
    starts = np.cumsum([first, *counts[:-1]])
    parts = [
        ItemOrder(size, seed).items(int(start), count)
        for start, count in zip(starts, counts, strict=True)
    ]
    assert np.array_equal(np.concatenate(parts), whole)


@given(SIZES, SEEDS, st.integers(0, 5), st.integers(1, 4))
def test_every_item_comes_once_an_epoch(size, seed, epoch, epochs):
    stream = ItemOrder(size, seed).items(epoch * size, epochs * size).reshape(epochs, size)
    assert np.array_equal(np.sort(stream, axis=1), np.tile(np.arange(size), (epochs, 1)))


def test_epochs_and_seeds_differ():
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_order_is_uniform():
    """Each of the 6 orders of 3 items comes about equally often: in 600 draws six standard
    deviations are 55.
    """
    orders = [tuple(epoch_order(3, 0, epoch)) for epoch in range(600)]
    assert len(set(orders)) == 6
    assert all(abs(orders.count(order) - 100) < 55 for order in set(orders))


def test_order_never_changes():
    """Runs that were started earlier must go on with their order: these numbers may not change."""
    assert ItemOrder(8, 0).items(0, 16).tolist() == [6, 3, 5, 0, 7, 2, 1, 4, 3, 1, 0, 4, 5, 6, 7, 2]


@pytest.fixture(scope="module")
def shared_dataset(tmp_path_factory):
    return ImageDataset(
        write(tmp_path_factory.mktemp("shared") / "data.zip", good_files(), good_labels()),
        mirror=True,
    )


@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(1, 3), SEEDS, st.integers(0, 30))
def test_ranks_share_the_global_batches(shared_dataset, world_size, share, seed, start):
    batch = world_size * share
    options = {"world_size": world_size, "seed": seed, "start_image": start}
    streams = [
        training_batches(shared_dataset, batch, rank=rank, **options) for rank in range(world_size)
    ]
    for step in range(4):
        indices = ItemOrder(len(shared_dataset), seed).items(start + step * batch, batch)
        for rank, stream in enumerate(streams):
            images, labels = next(stream)
            expected = shared_dataset.read(indices[rank::world_size])
            assert torch.equal(images, expected[0])
            assert torch.equal(labels, expected[1])


def test_a_batch_that_does_not_divide_is_refused(good):
    with pytest.raises(ValueError, match="not a multiple"):
        training_batches(ImageDataset(good), 7, world_size=2)


# --------------------------------------------------------------------------------------------------
# Loading


def take(stream, count):
    batches = [next(stream) for _ in range(count)]
    stream.close()
    return torch.cat([images for images, _ in batches]), torch.cat(
        [labels for _, labels in batches]
    )


def assert_no_children():
    assert not torch.multiprocessing.active_children()


def test_memory_files_and_workers_give_the_same_batches(good, monkeypatch):
    options: dict[str, Any] = {"batch": 4, "seed": 3, "start_image": 17}
    in_memory = take(training_batches(ImageDataset(good, mirror=True), **options), 9)
    monkeypatch.setattr(training.data.dataset, "IN_MEMORY_BYTES", 0)
    for workers in (0, 1, 2):
        from_file = take(
            training_batches(ImageDataset(good, mirror=True), workers=workers, **options), 9
        )
        assert all(torch.equal(a, b) for a, b in zip(in_memory, from_file, strict=True))
    assert_no_children()


def test_small_data_is_read_once(tmp_path):
    path = write(tmp_path / "data", good_files(), good_labels())
    stream = training_batches(ImageDataset(path), 4, workers=2)
    for file in path.rglob("*.png"):
        file.unlink()
    assert take(stream, 5)[0].shape == (20, 3, 32, 32)


def test_a_later_start_goes_on_exactly(good, from_files):  # noqa: ARG001
    dataset = ImageDataset(good)
    images, labels = take(training_batches(dataset, 4, seed=1, workers=2), 8)
    later = take(training_batches(dataset, 4, seed=1, start_image=12, workers=1), 5)
    assert torch.equal(later[0], images[12:])
    assert torch.equal(later[1], labels[12:])


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_in_workers_keep_their_one_line(tmp_path, from_files, workers):  # noqa: ARG001
    files = good_files()
    files[name_of(3)] = cut(files[name_of(3)])
    dataset = ImageDataset(write(tmp_path / "data.zip", files, good_labels()))
    refusal(
        lambda: take(training_batches(dataset, COUNT, workers=workers), 1),
        "data.zip: " + FILE,
        "cannot be read",
        "make this file again",
    )
    assert_no_children()


def test_a_finite_reading_ends_and_leaves_no_process(good):
    dataset = ImageDataset(good)
    parts = np.array_split(np.arange(COUNT), 4)
    images = torch.cat([images for images, _ in read_batches(dataset, parts, workers=2)])
    assert torch.equal(images, dataset.read(range(COUNT))[0])
    assert_no_children()


@pytest.mark.waits
def test_a_worker_that_dies_is_reported(good, monkeypatch):
    dataset = ImageDataset(good)
    monkeypatch.setattr(dataset, "read_stored", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    refusal(
        lambda: next(read_batches(dataset, [np.arange(2)], workers=1)),
        "process that reads pictures died",
        "--workers 0",
    )
    assert_no_children()


@pytest.mark.waits
def test_workers_leave_signals_to_the_parent(good, from_files):  # noqa: ARG001
    stream = training_batches(ImageDataset(good), 4, workers=1)
    next(stream)
    (worker,) = torch.multiprocessing.active_children()
    assert worker.pid is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
    assert take(stream, 20)[0].shape[0] == 80
    assert_no_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_touches_no_random_state(good, from_files, workers):  # noqa: ARG001
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    take(training_batches(ImageDataset(good), 4, workers=workers), 3)
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])


def test_reading_ahead_is_bounded(good):
    """Two batches a worker, no more, wait for the reader."""
    drawn = []

    def indices():
        for number in range(1000):
            drawn.append(number)
            yield np.array([number % COUNT])

    stream = read_batches(ImageDataset(good), indices(), workers=2)
    for step in range(1, 6):
        next(stream)
        assert len(drawn) <= step + 4
    stream.close()
    assert_no_children()


# --------------------------------------------------------------------------------------------------
# Broken pictures that are left out


def damaged_set(path, *kinds):
    """The good set with pictures 3, 4, ... broken: "cut" off in the middle, "empty", or "text"."""
    files = good_files()
    for index, kind in enumerate(kinds, start=3):
        content = files[name_of(index)]
        files[name_of(index)] = {
            "cut": content[: len(content) // 2],
            "empty": b"",
            "text": b"hello",
        }[kind]
    return write(path, files, good_labels())


@pytest.mark.parametrize("kind", ["cut", "empty", "text"])
def test_a_broken_picture_is_replaced_by_the_next_one(tmp_path, kind, capsys):
    """With its label; also mirrored, and decoded at once or later."""
    path = damaged_set(tmp_path / "data.zip", kind, kind)
    for preload in (False, True):
        dataset, whole = (
            ImageDataset(path, mirror=True, max_broken=2),
            ImageDataset(write(tmp_path / "g.zip", good_files(), good_labels()), True),
        )
        if preload:
            dataset.preload()
        images, labels = dataset.read([2, 3, 4, 5, COUNT + 3])
        expected_images, expected_labels = whole.read([2, 5, 5, 5, COUNT + 5])
        assert torch.equal(images, expected_images)
        assert torch.equal(labels, expected_labels)
        assert sorted(dataset.broken) == [3, 4]
        said = capsys.readouterr().err
        assert [said.count(f"left out: {path}: {name_of(index)}") for index in (2, 3, 4, 5)] == [
            0,
            1,
            1,
            0,
        ]


def test_the_last_picture_is_replaced_by_the_first(tmp_path):
    files = good_files()
    files[name_of(COUNT - 1)] = b""
    dataset = ImageDataset(write(tmp_path / "data.zip", files, good_labels()), max_broken=1)
    assert torch.equal(dataset[COUNT - 1][0], dataset[0][0])


@pytest.mark.parametrize("kind", ["cut", "text"])
def test_more_broken_pictures_than_allowed_are_refused_by_name(tmp_path, kind):
    path = damaged_set(tmp_path / "data.zip", kind, kind)
    refusal(
        lambda: ImageDataset(path, max_broken=1).preload(),
        name_of(4),
        "cannot be read",
        "limit of 1",
        "data.max_broken",
    )
    refusal(lambda: ImageDataset(path).preload(), name_of(3), "cannot be read")


def test_a_set_without_any_readable_picture_is_refused(tmp_path):
    path = damaged_set(tmp_path / "data.zip", *(["cut"] * (COUNT - 3)))
    assert len(ImageDataset(path, max_broken=100).read([5, 4])[0]) == 2
    files = dict.fromkeys(good_files(), b"")
    refusal(
        lambda: ImageDataset(write(tmp_path / "none.zip", files, good_labels()), max_broken=100),
        "cannot be read",
    )


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_leave_out_the_same_pictures(tmp_path, from_files, workers, capsys):  # noqa: ARG001
    path = damaged_set(tmp_path / "data.zip", "cut", "cut")
    dataset = ImageDataset(path, max_broken=2)
    images, labels = take(training_batches(dataset, 4, seed=1, workers=workers), 6)
    order = ItemOrder(COUNT, 1).items(0, 24)
    order = np.where((order == 3) | (order == 4), 5, order)
    expected_images, expected_labels = ImageDataset(path).read(order)
    assert torch.equal(images, expected_images)
    assert torch.equal(labels, expected_labels)
    assert capsys.readouterr().err.count("left out: ") == 2
    few = ImageDataset(path, max_broken=1)
    refusal(
        lambda: take(training_batches(few, 4, seed=1, workers=workers), 6),
        "cannot be read",
        "limit of 1",
    )
    assert_no_children()


def test_other_faults_are_never_left_out(tmp_path):
    """What is not damaged but wrong, such as another size or an alpha channel, is refused all the
    same.
    """
    files = good_files()
    files[name_of(3)] = encode(pixels_of(3, 64))
    refusal(
        lambda: ImageDataset(write(tmp_path / "data.zip", files, good_labels()), max_broken=5),
        FILE,
        "64x64 but",
    )
