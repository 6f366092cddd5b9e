"""Pictures of every kind become 8-bit RGB, turned and cut as their cameras say; damaged and hostile
ones end in one line.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

import dataset_tool
import train
from data_tools.faces.photos import open_photo
from data_tools.pictures import (
    Converted,
    PictureJob,
    PictureOptions,
    convert_picture,
    crop_intrinsics,
    mirror_picture,
    to_rgb,
)
from data_tools.sources.base import Lens
from dnnlib.console import UserError
from tests.tiny import call, orbit_labels
from training.data.files import DataFiles
from training.data.pictures import decode_picture, open_picture

WIDE = Lens(1.0, 1.0, 0.5, 0.5, unit="normalised")


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return (
        np.random.RandomState(seed)
        .randint(0, 256, (height, width, channels))
        .astype(np.uint8)
        .squeeze()
    )


def converted(
    tmp_path: Path, data: bytes, lens: Lens = WIDE, name: str = "a.png", **options: Any
) -> Converted:
    """The result of one picture; its error is raised."""
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    result = convert_picture(
        (DataFiles(folder), PictureOptions(**{"resolution": 32, **options})),
        PictureJob(0, name, lens),
    )
    if isinstance(result, UserError):
        raise result
    return result


def pixels(result: Converted) -> np.ndarray:
    image = Image.open(io.BytesIO(result.data))
    assert image.mode == "RGB"
    return np.asarray(image)


def test_plain_picture_of_the_right_size_is_kept_byte_for_byte(tmp_path: Path):
    data = encoded(Image.fromarray(noise(32, 32)))
    assert converted(tmp_path, data).data == data
    jpeg = encoded(Image.fromarray(noise(32, 32)), "JPEG")
    result = converted(tmp_path, jpeg)
    assert (result.data, result.suffix) == (jpeg, ".jpg")


def test_crop_is_the_middle(tmp_path: Path):
    array = noise(61, 32)
    np.testing.assert_array_equal(
        pixels(converted(tmp_path, encoded(Image.fromarray(array)))), array[:, 14:46]
    )


def test_resize_is_antialiased(tmp_path: Path):
    """A fine checkerboard becomes grey, not a pattern."""
    board = ((np.indices((512, 512)).sum(0) % 2) * 255).astype(np.uint8)
    inner = pixels(converted(tmp_path, encoded(Image.fromarray(board))))[4:-4, 4:-4].astype(int)
    assert np.abs(inner - 127.5).max() < 4


@given(
    st.tuples(*[st.floats(0.5, 5)] * 2, *[st.floats(0.2, 0.8)] * 2, st.floats(-0.2, 0.2)),
    st.tuples(st.integers(2, 4000), st.integers(2, 4000)),
    st.tuples(*[st.floats(0, 0.4)] * 4),
)
def test_intrinsics_of_a_crop_show_the_same_point_of_the_scene(lens: Any, size: Any, margins: Any):
    fx, fy, cx, cy, skew = lens
    width, height = size
    box = (
        margins[0] * width,
        margins[1] * height,
        (1 - margins[0] - margins[2]) * width,
        (1 - margins[1] - margins[3]) * height,
    )
    full = np.array([[fx, skew, cx], [0, fy, cy], [0, 0, 1]])
    point = np.array([0.3, -0.2, 1.7])
    u, v, w = full @ point
    in_pixels = np.array([u / w * width, v / w * height])
    u, v, w = crop_intrinsics(full, size, box) @ point
    np.testing.assert_allclose(
        np.array([u / w * box[2] + box[0], v / w * box[3] + box[1]]),
        in_pixels,
        rtol=1e-9,
        atol=1e-9,
    )


# --------------------------------------------------------------------------------------------------
# Kinds of pixels


def test_grey_palette_and_one_bit(tmp_path: Path):
    grey = noise(32, 32, 1)
    np.testing.assert_array_equal(
        pixels(converted(tmp_path, encoded(Image.fromarray(grey)))),
        np.repeat(grey[..., None], 3, 2),
    )
    palette = Image.fromarray(noise(32, 32)).quantize(16)
    np.testing.assert_array_equal(
        pixels(converted(tmp_path, encoded(palette))), np.asarray(palette.convert("RGB"))
    )
    bits = Image.fromarray(grey > 100)
    np.testing.assert_array_equal(
        pixels(converted(tmp_path, encoded(bits)))[..., 0], (grey > 100) * 255
    )


def test_sixteen_bits(tmp_path: Path):
    values = np.random.RandomState(0).randint(0, 65536, (32, 32)).astype(np.uint16)
    result = pixels(converted(tmp_path, encoded(Image.fromarray(values))))
    assert np.abs(result[..., 0] - values / 257.0).max() <= 1
    assert np.ptp(result, axis=2).max() == 0


def test_cmyk(tmp_path: Path):
    image = Image.fromarray(np.full((32, 32, 3), (200, 30, 60), np.uint8)).convert("CMYK")
    result = pixels(converted(tmp_path, encoded(image, "JPEG", quality=100), name="a.jpg"))
    assert np.abs(result.astype(int) - (200, 30, 60)).max() <= 4


def test_floats_are_refused(tmp_path: Path):
    image = Image.fromarray(np.zeros((32, 32), np.float32))
    with pytest.raises(UserError, match="pixels of mode F"):
        converted(tmp_path, encoded(image, "TIFF"))


def test_colours_of_another_space_become_srgb(tmp_path: Path):
    """XYZ stands for any other space; the expected values come from the colour engine's own
    transform.
    """
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    image = Image.fromarray(noise(32, 32))
    same = pixels(converted(tmp_path, encoded(image, icc_profile=profile.tobytes())))
    assert np.abs(same.astype(int) - np.asarray(image)).max() <= 1
    broken = pixels(converted(tmp_path, encoded(image, icc_profile=b"no profile")))
    np.testing.assert_array_equal(broken, np.asarray(image))


# --------------------------------------------------------------------------------------------------
# Transparency


def test_background_shows_through_in_proportion(tmp_path: Path):
    array = noise(32, 32, 4)
    result = pixels(converted(tmp_path, encoded(Image.fromarray(array)), background=(10, 200, 90)))
    alpha = array[..., 3:] / 255
    assert (
        np.abs(result - (array[..., :3] * alpha + np.array((10, 200, 90)) * (1 - alpha))).max() <= 1
    )


def test_edges_of_cut_out_objects_get_no_halo(tmp_path: Path):
    """Red on transparent black, made smaller on white: a pixel is between red and white, never
    darker.
    """
    array = np.zeros((256, 256, 4), np.uint8)
    disc = np.hypot(*(np.indices((256, 256)) - 127.5)) < 90
    array[disc] = 255, 0, 0, 255
    result = pixels(
        converted(tmp_path, encoded(Image.fromarray(array)), background=(255, 255, 255))
    )
    assert result[..., 0].min() >= 253


def test_transparency_needs_a_background_only_where_there_is_some(tmp_path: Path):
    array = noise(32, 32, 4)
    with pytest.raises(UserError, match="--background"):
        converted(tmp_path, encoded(Image.fromarray(array)))
    array[..., 3] = 255
    np.testing.assert_array_equal(
        pixels(converted(tmp_path, encoded(Image.fromarray(array)))), array[..., :3]
    )


def test_palette_and_grey_with_transparency(tmp_path: Path):
    image = Image.fromarray(np.zeros((32, 32), np.uint8)).convert("P")
    assert (
        pixels(converted(tmp_path, encoded(image, transparency=0), background=(1, 2, 3)))
        == (1, 2, 3)
    ).all()
    grey = Image.merge("LA", [Image.new("L", (32, 32), 100), Image.new("L", (32, 32), 0)])
    assert (pixels(converted(tmp_path, encoded(grey), background=(1, 2, 3))) == (1, 2, 3)).all()


def test_random_backgrounds_differ_by_picture_and_repeat_by_seed(tmp_path: Path):
    (tmp_path / "t.png").write_bytes(encoded(Image.new("RGBA", (32, 32))))
    files = DataFiles(tmp_path)

    def colour(index: int, seed: int) -> tuple[int, ...]:
        result = convert_picture(
            (files, PictureOptions(32, background="random", seed=seed)),
            PictureJob(index, "t.png", WIDE),
        )
        assert isinstance(result, Converted)
        (only,) = np.unique(pixels(result).reshape(-1, 3), axis=0)
        return tuple(only.tolist())

    colours = [colour(index, seed) for index in range(10) for seed in (0, 1)]
    assert len(set(colours)) == 20
    assert colour(3, 1) == colours[7]


# --------------------------------------------------------------------------------------------------
# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_phone_pictures_are_turned_upright(orientation: int, tmp_path: Path):
    """Against the meaning of the tag: where row 0 and column 0 of the stored picture are seen (EXIF
    2.3, 4.6.4).
    """
    shown = noise(40, 32)
    stored = {
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.swapaxes(0, 1),
        6: shown.swapaxes(0, 1)[::-1],
        7: shown.swapaxes(0, 1)[::-1, ::-1],
        8: shown.swapaxes(0, 1)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(pixels(converted(tmp_path, data)), shown[:, 4:36])


@pytest.mark.parametrize(
    ("size", "turned"), [((40, 32), False), ((32, 40), True), ((320, 400), True), (None, True)]
)
def test_size_of_the_camera_tells_whether_exif_was_heeded(size: Any, turned: bool, tmp_path: Path):
    stored = noise(40, 32)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(stored), exif=exif)
    lens = Lens(50.0, 50.0, 12.0, 20.0, size=size)
    result = converted(tmp_path, data, lens)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(pixels(result), upright[4:36] if turned else stored[:, 4:36])


def test_data_sets_are_read_as_training_reads_them(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 3
    array = noise(32, 32)
    np.testing.assert_array_equal(
        pixels(converted(tmp_path, encoded(Image.fromarray(array), exif=exif), upright=False)),
        array,
    )


OTHER_KINDS: dict[str, tuple[str | bytes, str, int]] = {
    "a BMP called PNG": ("BMP", "is a BMP file, whatever its name; save it as PNG", 0),
    "a TIFF called PNG": ("TIFF", "is a TIFF file, whatever its name; save it as PNG", 0),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(99), "is HEIC, which is not read here; save it", 1),
    "a web page": (b"<!DOCTYPE html>", "it is no PNG, JPEG", 1),
    "nothing": (b"", "it is an empty file; copy or make", 1),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_every_command_names_what_a_file_is(kind: str, tmp_path: Path):
    """In the same words; what convert reads, it mends as training's advice says."""
    content, words, status = OTHER_KINDS[kind]
    picture = Image.fromarray(noise(32, 32))
    data = content if isinstance(content, bytes) else encoded(picture, content)
    source = tmp_path / "data"
    source.mkdir()
    (source / "a.png").write_bytes(data)
    label = orbit_labels(1)[0].tolist()
    (source / "dataset.json").write_text(json.dumps({"labels": [["a.png", label]]}))
    training = ("--data", source, "--outdir", tmp_path, "--device", "cpu", "--dry-run")
    refused = call(train.main, *training)
    refused.assert_refused(1, words)
    assert "<_io" not in refused.err
    assert ("convert --source" in refused.err) == (status == 0)
    tool = dataset_tool.main
    ended = call(tool, "convert", "--source", source, "--dest", tmp_path / "o.zip")
    assert ended.status == status
    if status:
        assert words in ended.err
        with pytest.raises(UserError, match=re.escape(words)):
            open_photo(data, "a.png")
    assert call(tool, "check", "--source", source, "--workers", "1").status == 1


# --------------------------------------------------------------------------------------------------
# Bad files


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with a few bytes of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


GOOD = encoded(Image.fromarray(noise(64, 64)))
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is an empty file"),
    "text": (b"hello", "is no PNG, JPEG"),
    "cut": (GOOD[: len(GOOD) // 2], "cannot be read"),
    "header only": (GOOD[:20], "cannot be read"),
    "flipped bits": (
        GOOD[:200] + bytes(b ^ 255 for b in GOOD[200:260]) + GOOD[260:],
        "cannot be read",
    ),
    "bomb": (png_claiming(30_000, 30_000), "is larger than"),
    "short pixels": (png_claiming(2000, 2000), "cannot be read"),
    "animated": (
        encoded(
            Image.new("RGB", (32, 32)),
            "GIF",
            save_all=True,
            append_images=[Image.new("RGB", (32, 32), "red")],
        ),
        "animated",
    ),
    "animated WebP": (
        encoded(
            Image.new("RGB", (32, 32)),
            "WEBP",
            save_all=True,
            append_images=[Image.new("RGB", (32, 32), "red")],
        ),
        "animated",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_named_in_one_line(kind: str, tmp_path: Path):
    data, words = BAD[kind]
    with pytest.raises(UserError, match=words) as caught:
        converted(tmp_path, data)
    assert "a.png" in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=20))
def test_damage_anywhere_ends_in_a_picture_or_one_line(place: int, damage: bytes):
    data = GOOD[:place] + damage + GOOD[place + len(damage) :]
    try:
        image = open_picture(data, "x")
    except UserError:
        return
    try:
        assert to_rgb(image, (0, 0, 0), "x").mode == "RGB"
    except (UserError, OSError, SyntaxError, ValueError):
        return


def test_several_jpegs_of_a_phone_in_one_file_are_one_picture(tmp_path: Path):
    first, second = Image.fromarray(noise(32, 32)), Image.fromarray(noise(32, 32, seed=1))
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(pixels(converted(tmp_path, data, name="a.jpg")), expected)


def test_mirror_image(tmp_path: Path):
    array = noise(32, 32)
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(array)))
    (tmp_path / "b.png").write_bytes(b"")
    files = DataFiles(tmp_path)
    data = mirror_picture(files, "a.png")
    assert isinstance(data, bytes)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), array[:, ::-1])
    assert isinstance(mirror_picture(files, "b.png"), UserError)


# --------------------------------------------------------------------------------------------------
# Every check on every format and mode

# What Pillow writes of each: modes, and whether a profile and an orientation go with it.
KINDS: dict[str, tuple[str, ...]] = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"),
    "GIF": ("L", "P"),
}
ALL_KINDS = [(kind, mode) for kind, modes in KINDS.items() for mode in modes]
PROFILED = [one for one in ALL_KINDS if one[0] not in ("BMP", "GIF")]
LOSSLESS: dict[str, dict[str, Any]] = {
    "WEBP": {"lossless": True, "exact": True},
    "JPEG": {"quality": 100, "subsampling": 0},
}


def in_mode(mode: str, size: int = 32) -> Image.Image:
    """Smooth colours in a mode; opaque where it has transparency."""
    values = np.linspace(0, 255, size).astype(np.uint8)
    array = np.stack(np.broadcast_arrays(values, values[:, None], values[::-1]), axis=-1)
    if mode == "I;16":
        return Image.fromarray(array[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(array).convert(mode)


def half_cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize(("kind", "mode"), ALL_KINDS)
def test_cut_files_of_every_kind_are_refused(kind: str, mode: str, size: int, tmp_path: Path):
    """Also those that have the target size already and are kept byte for byte."""
    data = encoded(Image.fromarray(noise(size, size)).convert("RGB"), kind)
    if mode != "RGB":
        image = in_mode("I;16", size) if mode == "I;16" else Image.fromarray(noise(size, size))
        data = encoded(image if mode == "I;16" else image.convert(mode), kind)
    assert pixels(converted(tmp_path, data)).shape == (32, 32, 3)
    with pytest.raises(UserError, match=r"a\.png cannot be read") as caught:
        converted(tmp_path, half_cut(data))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "mode"), PROFILED)
def test_profiles_are_applied_in_every_kind(kind: str, mode: str, tmp_path: Path):
    """RGB profile with red and green exchanged: so are they in the result."""
    if mode in ("CMYK",):
        pytest.skip("a profile of RGB means nothing for CMYK")
    image = in_mode(mode)
    options = LOSSLESS.get(kind, {})
    plain = pixels(converted(tmp_path, encoded(image, kind, **options)))
    profile = exchanged_profile()
    result = pixels(converted(tmp_path, encoded(image, kind, icc_profile=profile, **options)))
    expected = plain[..., [1, 0, 2]]
    assert np.abs(result.astype(int) - expected).mean() < 3
    if plain[..., 0].std() and not np.array_equal(plain[..., 0], plain[..., 1]):
        assert np.abs(result.astype(int) - plain).mean() > 20


def exchanged_profile() -> bytes:
    """sRGB with the tags of red and green exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack_from(">I", profile, 128)[0]
    for index in range(count):
        at = 132 + 12 * index
        name = bytes(profile[at : at + 4])
        other = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ", b"rTRC": b"gTRC", b"gTRC": b"rTRC"}
        profile[at : at + 4] = other.get(name, name)
    return bytes(profile)


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGBA"), ("PNG", "LA"), ("TIFF", "RGBA")])
def test_profiles_leave_transparency_alone(kind: str, mode: str, tmp_path: Path):
    image = in_mode(mode)
    alpha = Image.fromarray(np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1)))
    image.putalpha(alpha)
    data = encoded(image, kind, icc_profile=exchanged_profile())
    result = pixels(converted(tmp_path, data, background=(0, 0, 0))).astype(float)
    expected = (
        np.asarray(image.convert("RGB"))[..., [1, 0, 2]] * (np.asarray(alpha) / 255)[..., None]
    )
    assert np.abs(result - expected).mean() < 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_orientation_is_heeded_in_every_format(kind: str, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 3
    image = in_mode("RGB")
    options = LOSSLESS.get(kind, {})
    plain = pixels(converted(tmp_path, encoded(image, kind, **options)))
    turned = pixels(converted(tmp_path, encoded(image, kind, exif=exif, **options)))
    assert np.abs(turned.astype(int) - plain[::-1, ::-1]).mean() < 3


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "L"), ("PNG", "P"), ("PNG", "RGB"), ("PNG", "I;16"), ("GIF", "P")]
)
def test_a_transparent_colour_needs_a_background(kind: str, mode: str, tmp_path: Path):
    image = in_mode(mode)
    key = image.getpixel((0, 0))
    data = encoded(image, kind, transparency=key)
    with pytest.raises(UserError, match=r"transparent parts; choose .* --background"):
        converted(tmp_path, data)
    result = pixels(converted(tmp_path, data, background=(9, 200, 7)))
    assert result[0, 0].tolist() == [9, 200, 7]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF"])
def test_several_pictures_in_one_file_of_every_format(kind: str, tmp_path: Path):
    other = Image.new("RGB", (32, 32), "red")
    data = encoded(in_mode("RGB"), kind, save_all=True, append_images=[other])
    with pytest.raises(UserError, match="animated or has several pages"):
        converted(tmp_path, data)
    if kind in ("PNG", "WEBP"):
        with pytest.raises(UserError, match="animated"):
            decode_picture(io.BytesIO(data), "a")


def test_a_size_that_contradicts_the_picture_is_named(tmp_path: Path):
    data = encoded(Image.fromarray(noise(80, 60)))
    with pytest.raises(UserError, match="is 80x60 but its camera is for 60x80 pixels"):
        converted(tmp_path, data, lens=Lens(100.0, 100.0, 30.0, 40.0, size=(60, 80)))
    for size in ((80, 60), (800, 600), (161, 120)):
        converted(tmp_path, data, lens=Lens(100.0, size=size))
