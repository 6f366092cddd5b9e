"""Pictures of a data set as training reads them: kinds, sizes, decoding. Needs no torch."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import IO, TypeVar

import numpy as np
from PIL import Image, ImageFile, features

from dnnlib.console import UserError, progress
from training.data.files import (
    LABEL_FILE,
    BrokenFile,
    DataFiles,
    UnfitPicture,
    convert_command,
    errors_named,
)

T = TypeVar("T")

FORMATS = ("PNG", "JPEG", "WEBP")
OTHER_FORMATS = ("BMP", "TIFF", "GIF", *(("AVIF",) if features.check("avif") else ()))
HEIF_BRANDS = (b"heic", b"heix", b"mif1", b"msf1", b"hevc")
RESOLUTIONS = (32, 64, 128, 256, 512, 1024)
LOSSLESS_MODES = ("1", "L", "P", "RGB")  # pictures that become RGB without losing anything
ALPHA_MODES = ("RGBA", "LA")  # and those that become RGBA
LONG_SCAN = 20_000  # pictures whose check takes long enough for a progress bar
LARGEST_PICTURE = 64 << 20  # bytes of a file; a picture of the largest size takes 3 MB unpacked
# the largest cameras of phones have 108 million by default, and each copy takes four bytes a pixel
MOST_PIXELS = 128_000_000


def open_picture(source: bytes | IO[bytes], where: str) -> ImageFile.ImageFile:
    """A picture of whatever format, whose header has been read: of a file's bytes or a stream.

    Raises:
        UserError: naming `where`, if it is none, is absurdly large, or holds several pictures.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    formats = (*FORMATS, *OTHER_FORMATS)
    with errors_named(where, Image.DecompressionBombError), warnings.catch_warnings():
        # Pillow warns of damage, which it then refuses, and of what phones take
        warnings.simplefilter("ignore")
        start = file.read(12)
        file.seek(0)
        if not start:
            raise BrokenFile(
                f"{where} cannot be read: it is an empty file; copy or make this file again"
            )
        if start[4:8] == b"ftyp" and start[8:] in HEIF_BRANDS:
            raise BrokenFile(f"{where} is HEIC, which is not read here; save it as JPEG or PNG")
        try:
            image = Image.open(file, formats=formats)
        except Image.DecompressionBombError as error:
            raise _too_large(where, 2 * (Image.MAX_IMAGE_PIXELS or 0)) from error
        except Image.UnidentifiedImageError as error:
            raise BrokenFile(
                f"{where} cannot be read: it is no {', '.join(formats)} file; copy or make this"
                " file again"
            ) from error
    if image.width * image.height > MOST_PIXELS:
        raise _too_large(where, MOST_PIXELS)
    # Phones write several JPEGs into one MPO file, the first of which is the picture.
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise UserError(
            f"{where} is animated or has several pages; save the one that you want as PNG"
        )
    return image


def _too_large(where: str, most: int) -> UserError:
    return UserError(f"{where} is larger than {most:,} pixels; leave it out or make it smaller")


def decode_picture(file: IO[bytes], where: str, with_alpha: bool = False) -> np.ndarray:
    """Pixels (H, W, 3), uint8, of a picture file; grey and palette pictures become RGB. With alpha
    (H, W, 4), straight; opaque where the file has none.

    Raises:
        UserError: that names `where`, if the file is damaged or of a kind that `ImageDataset`
            refuses.
    """
    with errors_named(where), open_picture(file, where) as image:
        _check_kind(image, where, with_alpha)
        return np.array(image.convert("RGBA" if with_alpha else "RGB"))


def _check_kind(image: ImageFile.ImageFile, where: str, with_alpha: bool) -> None:
    """Refuse what cannot become 8-bit RGB without loss, alpha unless it is wanted, and sizes no
    network has.
    """
    if image.format not in (*FORMATS, "MPO"):
        raise UnfitPicture(f"{where} is a {image.format} file, whatever its name; save it as PNG")
    # Pillow shows a 16-bit colour PNG as plain RGB; only the decoder's raw mode tells.
    if image.mode.startswith(("I", "F")) or ";16" in str(image.tile):
        raise UnfitPicture(f"{where} has more than 8 bits a channel; save it as 8-bit RGB")
    if not with_alpha and (image.mode.endswith(("A", "a")) or "transparency" in image.info):
        raise UnfitPicture(
            f"{where} has an alpha channel; put it on a plain background and save it as RGB, or"
            " train with --alpha composite",
            "--background white",
        )
    if image.mode not in (*LOSSLESS_MODES, *(ALPHA_MODES if with_alpha else ())):
        raise UnfitPicture(f"{where} has colour mode {image.mode}; save it as RGB")
    size = f"{image.width}x{image.height}"
    if image.width != image.height:
        raise UnfitPicture(f"{where} is {size}, not square; crop it")
    if image.width not in RESOLUTIONS:
        raise UnfitPicture(
            f"{where} is {size}; the size must be a power of two from 32 to 1024: resize it"
        )


def check_pictures(
    files: DataFiles,
    names: Sequence[str],
    note_broken: Callable[[dict[int, str]], None],
    with_alpha: bool = False,
) -> int:
    """Resolution that all pictures share; reads headers only (0.03 ms a picture). Unreadable ones
    are handed to `note_broken`; of labelled ones it is said which command mends them.
    """
    first, resolution = "", 0
    is_labelled = files.find(LABEL_FILE) is not None
    for index, name in enumerate(long_loop(names, len(names) > LONG_SCAN, "Checking pictures")):
        where = files.where(name)
        try:
            width = _header_width(files, name, where, with_alpha)
        except BrokenFile as error:
            mend = ""
            if is_labelled and isinstance(error, UnfitPicture):
                mend = f": {convert_command(files.path, error.options)}"
            note_broken({index: f"{error}{mend}"})
            continue
        first, resolution = first or name, resolution or width
        if width != resolution:
            sizes = f"{width}x{width} but {first} is {resolution}x{resolution}"
            mend = f": {convert_command(files.path)}" if is_labelled else ""
            raise UserError(f"{where} is {sizes}; make all pictures one size{mend}")
    return resolution


def _header_width(files: DataFiles, name: str, where: str, with_alpha: bool) -> int:
    with errors_named(where), files.open(name) as file, open_picture(file, where) as image:
        _check_kind(image, where, with_alpha)
        return image.width


def long_loop(items: Sequence[T], is_long: bool, description: str) -> Iterable[T]:
    """The items, with a progress bar if going through them takes long."""
    return progress(items, description, unit="img") if is_long else items
