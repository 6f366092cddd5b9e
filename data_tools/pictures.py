"""One picture on its way into a data set: decoded, turned upright, put on a background, cropped,
resized, encoded (no torch in here).

The camera follows: intrinsics are given for the result, whatever was cut off or squeezed.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps

from data_tools.sources.base import Array, Lens
from dnnlib.console import UserError
from training.data.files import DataFiles, errors_named
from training.data.pictures import open_picture

Background = tuple[int, int, int] | Literal["none", "random", "keep"]

MASK_FOLDER = "mask"
KEPT_AS_THEY_ARE = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
GREY_MODES = ("1", "L", "LA", "La")
ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")
KNOWN_MODES = (*ALPHA_MODES, "1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV")
PROFILE_MODES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}
QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
PNG_LEVEL = 1  # level 6 takes three times as long for a tenth less
ASPECT_TOLERANCE = 0.01


@dataclass(frozen=True)
class PictureOptions:
    """What becomes of every picture.

    Attributes:
        resolution: side in pixels. crop: the middle square is cut out; else the whole picture is
            squeezed into a square.
        background: what shows through transparent pixels; "none" refuses them, "keep" leaves them
            transparent, and takes alpha from mask/NAME beside opaque pictures. seed: of random
            backgrounds.
        upright: whether cameras belong to pictures turned as EXIF says; None = whichever
            orientation has the lens's proportions.
    """

    resolution: int
    crop: bool = True
    background: Background = "none"
    seed: int = 0
    upright: bool | None = None


@dataclass(frozen=True)
class PictureJob:
    """A picture to convert: its place in the result, its file and its lens."""

    index: int
    name: str
    lens: Lens


@dataclass(frozen=True, eq=False)
class Converted:
    """The file's bytes with the ending of its format, normalised intrinsics (3, 3), and whether the
    picture was enlarged.
    """

    data: bytes
    suffix: str
    intrinsics: Array
    enlarged: bool


def convert_picture(
    context: tuple[DataFiles, PictureOptions], job: PictureJob
) -> Converted | UserError:
    """Convert one picture. A bad one comes back as the error that names it, so that the caller may
    go on with the others.
    """
    files, options = context
    try:
        data = files.read(job.name)
        mask = files.find(f"{MASK_FOLDER}/{job.name}") if options.background == "keep" else None
        if mask is not None:
            data = with_mask(data, files.read(mask), files.where(job.name), files.where(mask))
        return _convert(data, job, options, files.where(job.name))
    except UserError as error:
        return error


def with_mask(data: bytes, mask: bytes, where: str, where_mask: str) -> bytes:
    """PNG of a picture whose alpha is a grey picture of the same size.

    Raises:
        UserError: if it has another size, or either cannot be read.
    """
    with errors_named(where):
        image = to_rgb(open_picture(data, where), None, where)
    with errors_named(where_mask):
        alpha = open_picture(mask, where_mask).convert("L")
    if alpha.size != image.size:
        raise UserError(
            f"{where_mask} is {alpha.width}x{alpha.height} but its picture is"
            f" {image.width}x{image.height}; make masks of the pictures' size"
        )
    image.putalpha(alpha)
    return encode_png(image)


def _convert(data: bytes, job: PictureJob, options: PictureOptions, where: str) -> Converted:
    stored = open_picture(data, where)
    with errors_named(where):
        stored.load()  # to its end, also where the file's bytes are kept
        return _convert_opened(stored, data, job, options, where)


def _convert_opened(
    stored: ImageFile.ImageFile, data: bytes, job: PictureJob, options: PictureOptions, where: str
) -> Converted:
    turned = turn_upright(stored, job.lens, options.upright)
    if problem := job.lens.contradiction(*turned.size):
        raise UserError(f"{where} {problem}")
    keeps = options.background == "keep"
    image = to_rgb(turned, _background(options, job.index), where, keeps)
    left, top, width, height = _crop(image.size, options.crop)
    intrinsics = crop_intrinsics(
        job.lens.matrix(*image.size), image.size, (left, top, width, height)
    )
    side = options.resolution
    enlarged = min(width, height) < side
    if image.size == (side, side) and (suffix := _kept_suffix(stored, image.mode)):
        return Converted(data, suffix, intrinsics, enlarged)
    if (width, height) != (side, side) or image.size != (width, height):
        image = image.resize(
            (side, side), Image.Resampling.LANCZOS, box=(left, top, left + width, top + height)
        )
    return Converted(encode_png(image), ".png", intrinsics, enlarged)


def turn_upright(image: ImageFile.ImageFile, lens: Lens, upright: bool | None) -> Image.Image:
    """The picture as its camera was calibrated: turned as EXIF says, or as stored.

    Programs differ in whether they heed EXIF. Where a quarter turn matters, the size that the lens
    refers to tells which.
    """
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if upright is None:
        upright = True
        if orientation in QUARTER_TURNS and lens.size:
            fits_stored = (
                abs(lens.size[0] / lens.size[1] - image.width / image.height) < ASPECT_TOLERANCE
            )
            upright = not fits_stored
    return ImageOps.exif_transpose(image) if upright and orientation != 1 else image


def to_rgb(
    image: Image.Image,
    background: tuple[int, int, int] | None,
    where: str,
    keeps_alpha: bool = False,
) -> Image.Image:
    """8-bit sRGB, transparent parts on `background`; with `keeps_alpha` RGBA, whatever it was.

    Raises:
        UserError: if there are transparent pixels and no background, or the kind of pixels is
            unknown.
    """
    profile, key = image.info.get("icc_profile"), image.info.get("transparency")
    alpha = None
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        image = Image.fromarray((values.astype(np.uint32) * 255 // 65535).astype(np.uint8))
        alpha = None if key is None else Image.fromarray(np.uint8(255) * (values != key))
    elif image.mode not in KNOWN_MODES:
        raise UserError(f"{where} has pixels of mode {image.mode}; save it as 8-bit RGB")
    elif image.mode in ALPHA_MODES or key is not None:
        image = image.convert("LA" if image.mode in GREY_MODES else "RGBA")
        alpha = image.getchannel("A")
    if profile:
        image = _to_srgb(image, profile)
    if keeps_alpha:
        image = image.convert("RGB")
        image.putalpha(alpha or 255)
        return image
    if alpha is None or alpha.getextrema()[0] == 255:
        return image if image.mode == "RGB" else image.convert("RGB")
    if background is None:
        raise UserError(
            f"{where} has transparent parts; choose what shows through: --background white, black,"
            " R,G,B or random, or keep for training with --alpha"
        )
    result = Image.new("RGB", image.size, background)
    result.paste(image, mask=alpha)
    return result


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Colours of another space, such as the Display P3 of phones, as sRGB; a profile of no use
    counts as none.
    """
    try:
        space = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = PROFILE_MODES.get(space.profile.xcolor_space.strip())
        if (
            mode
            and (mode == "L") <= (image.mode in GREY_MODES)
            and ((mode == "CMYK") == (image.mode == "CMYK"))
        ):
            converted = ImageCms.profileToProfile(
                image.convert(mode), space, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
            image = converted or image
    except (ImageCms.PyCMSError, OSError, ValueError):
        pass
    return image.convert("RGB")


def _background(options: PictureOptions, index: int) -> tuple[int, int, int] | None:
    if options.background == "random":
        red, green, blue = np.random.default_rng((options.seed, index)).integers(0, 256, 3).tolist()
        return red, green, blue
    return None if isinstance(options.background, str) else options.background


def _crop(size: tuple[int, int], crop: bool) -> tuple[int, int, int, int]:
    """Left, top, width and height of what is kept."""
    width, height = size
    side = min(size)
    return (
        ((width - side) // 2, (height - side) // 2, side, side) if crop else (0, 0, width, height)
    )


def crop_intrinsics(intrinsics: Array, size: Sequence[float], box: Sequence[float]) -> Array:
    """Normalised intrinsics (3, 3) of the part `box` = (left, top, width, height) of a picture of
    `size` = (width, height).
    """
    left, top, width, height = box
    to_pixels = np.diag([*size, 1.0])
    to_box = np.array([[1 / width, 0, -left / width], [0, 1 / height, -top / height], [0, 0, 1]])
    return to_box @ to_pixels @ intrinsics


def _kept_suffix(image: ImageFile.ImageFile, mode: str) -> str | None:
    """Ending of a file that can go into the data set byte for byte: plain 8 bits a channel of the
    wanted mode without a colour profile or EXIF.
    """
    plain = image.mode == mode and ";16" not in str(image.tile)
    extras = {"icc_profile", "exif", "transparency", "xmp", "XML:com.adobe.xmp"} & image.info.keys()
    return KEPT_AS_THEY_ARE.get(image.format or "") if plain and not extras else None


def encode_png(image: Image.Image) -> bytes:
    """PNG of an RGB or RGBA picture, little compressed: data sets are written once, disks are
    cheap.
    """
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def whole_picture(files: DataFiles, name: str) -> bytes | UserError:
    """A picture's file, decoded once to its end, or what is wrong with it."""
    try:
        data = files.read(name)
        _decoded(data, files.where(name))
        return data
    except UserError as error:
        return error


def mirror_picture(files: DataFiles, name: str) -> bytes | UserError:
    """PNG of the left-right mirrored picture, or what is wrong with it."""
    try:
        return encode_png(ImageOps.mirror(_decoded(files.read(name), files.where(name))))
    except UserError as error:
        return error


def _decoded(data: bytes, where: str) -> Image.Image:
    """An RGB picture of a data set, or an RGBA one if it has alpha."""
    image = open_picture(data, where)
    with errors_named(where):
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
