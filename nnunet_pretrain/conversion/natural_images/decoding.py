"""Reading one photograph, of any kind people keep, as upright red, green and blue of 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

SMALLEST_EDGE = 8
"""Pixels; a smaller image shows nothing, and no network of several strides can take it."""

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WHITE = (255, 255, 255)
_GREY = ("1", "L", "LA", "La")
_DIRECT = ("RGBX", "CMYK", "YCbCr", "HSV")


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image as it is used.

    Attributes:
        rgb: Shape (height, width, 3), uint8, upright.
        notes: What was special about the file, such as `grey` or `rotated by EXIF`.
        orientation: EXIF's number of how the stored pixels were turned to be upright; 1 if they were not.
        reduction: By how much less detail was read than the file has: 1, 2, 4 or 8. Every pixel then stands for so many
            along each axis, the last stored row and column for less.
    """

    rgb: npt.NDArray[np.uint8]
    notes: tuple[str, ...] = ()
    orientation: int = 1
    reduction: int = 1


def decode(path: Path, smallest: tuple[int, int] | None = None) -> Decoded:
    """Reads an image.

    Grey is repeated in all three colours, transparency is laid on white, 16 bits are rounded to 8, of several frames
    the first is taken, and the pixels are turned as the file's EXIF says.

    Args:
        path: The file.
        smallest: Height and width that are needed at least. A JPEG is then read at 1/2, 1/4 or 1/8 of its size, which
            takes a fraction of the time, as long as both edges stay at least that long.

    Raises:
        ValueError: The image cannot be used; the text says why.
    """
    try:
        # By its path, Pillow would map an uncompressed TIFF into memory, with edges exchanged if it is turned.
        with path.open("rb") as file, Image.open(file) as image:
            return _decoded(image, smallest)
    except _UnusableError as error:
        raise ValueError(f"{path} {error}") from None
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{path} {_why_unreadable(path, error)}") from None


def as_volume(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Makes the three colours of an image three slices.

    Args:
        rgb: Shape (height, width, 3).

    Returns:
        Shape (3, height, width), contiguous, with `volume[d, y, x] == rgb[y, x, d]`.
    """
    return np.ascontiguousarray(rgb.transpose(2, 0, 1))


def mirrored_axes(orientation: int) -> tuple[bool, bool]:
    """Tells whether the last stored rows, and the last stored columns, come first upright (after a transpose, if any).

    EXIF says where row 0 and column 0 lie; a transpose puts both into their places.

    Args:
        orientation: EXIF's number, 1 to 8.
    """
    return orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)


def turned(pixels: npt.NDArray[np.generic], orientation: int) -> npt.NDArray[np.generic]:
    """Turns stored pixels upright.

    Args:
        pixels: Shape (height, width).
        orientation: EXIF's number, 1 to 8.
    """
    if orientation in (5, 6, 7, 8):
        pixels = pixels.T
    rows, columns = mirrored_axes(orientation)
    if rows:
        pixels = pixels[::-1]
    if columns:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


class _UnusableError(ValueError):
    """The image is whole, but not one that can be used."""


def _decoded(image: Image.Image, smallest: tuple[int, int] | None) -> Decoded:
    width, height = image.size
    if min(width, height) < SMALLEST_EDGE:
        raise _UnusableError(f"has {width} x {height} pixels; both edges must have at least {SMALLEST_EDGE}")
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise _UnusableError(
            f"claims {width} x {height} pixels, more than the {Image.MAX_IMAGE_PIXELS} that are safe to read"
        )
    frames = getattr(image, "n_frames", 1)
    orientation, notes = _orientation(image)
    if smallest is not None:
        rows, columns = smallest if orientation < 5 else smallest[::-1]
        image.draft(image.mode, (columns, rows))
    reduction = next(by for by in (1, 2, 4, 8) if ceil(width / by) == image.size[0])
    rgb, colour_notes = _as_rgb(image)
    if orientation != 1 and image.format != "TIFF":  # Pillow turns these itself
        rgb = rgb.transpose(_TURNS[orientation])
    notes = [*colour_notes, *notes]
    if frames > 1:
        notes.append(f"first of {frames} frames")
    return Decoded(np.asarray(rgb), tuple(notes), orientation, reduction)


def _orientation(image: Image.Image) -> tuple[int, list[str]]:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # cameras and editors write broken EXIF, beside which the pixels are whole
        return 1, ["EXIF not readable"]
    return (orientation, ["rotated by EXIF"]) if orientation in _TURNS else (1, [])


def _as_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Returns the image in mode RGB, and notes."""
    mode = image.mode
    notes = ["16 bit"] if _has_16_bits(image) else []
    if mode == "I" or mode.startswith("I;16"):
        return _from_16_bits(image).convert("RGB"), ["grey", "16 bit"]
    if mode in _GREY:
        notes.insert(0, "grey")
    elif mode in ("P", "PA"):
        notes.insert(0, "palette")
    elif mode in _DIRECT:
        return image.convert("RGB"), [mode, *notes]
    elif mode not in ("RGB", "RGBA", "RGBa"):
        kind = "fractions (mode F), whose range is not known" if mode == "F" else f"pixels of mode {mode}"
        raise _UnusableError(f"holds {kind}; save it as 8-bit RGB")
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or _has_transparency(image):
        return _on_white(image), [*notes, "alpha on white"]
    return (image if mode == "RGB" else image.convert("RGB")), notes


def _has_16_bits(image: Image.Image) -> bool:
    """Tells whether Pillow reads 16 bits per colour as 8, as it does with colour PNG."""
    return any(";16" in str(tile[3]) for tile in image.tile) if hasattr(image, "tile") else False


def _has_transparency(image: Image.Image) -> bool:
    palette = getattr(image, "palette", None)
    return "transparency" in image.info or (image.mode == "P" and palette is not None and palette.mode == "RGBA")


def _on_white(image: Image.Image) -> Image.Image:
    colours = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)).convert("RGBA")
    white = Image.new("RGBA", colours.size, (*_WHITE, 255))
    return Image.alpha_composite(white, colours).convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    least, most = int(values.min()), int(values.max())
    if least < 0 or most > 65535:
        raise _UnusableError(
            f"holds values from {least} to {most}, outside the 0 to 65535 of 16 bits; save it as 8-bit RGB"
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _why_unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "is a link to nothing" if path.is_symlink() else "does not exist"
    if isinstance(error, Image.DecompressionBombError):
        return f"claims more pixels than are safe to read: {error}"
    if isinstance(error, IsADirectoryError):
        return "is a folder"
    if isinstance(error, PermissionError):
        return "may not be read; change its permissions"
    if path.is_file() and path.stat().st_size == 0:
        return "is empty (0 bytes)"
    if isinstance(error, UnidentifiedImageError):
        return "is no image, or its beginning is damaged"
    return f"is cut off or damaged: {' '.join(str(error).split()) or type(error).__name__}"
