"""Masks of natural images: reading their values, naming them, and laying them on their image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from nnunet_pretrain.conversion.natural_images.decoding import Decoded, turned
from nnunet_pretrain.files import read_json
from nnunet_pretrain.labels import BACKGROUND, IGNORE

_HIGHEST = 65535
_NAMED = 10
_LOOKED_AT = 24


@dataclass(frozen=True)
class MaskLabels:
    """What the values of masks mean.

    Attributes:
        structures: Names of the structures; stored ids are 1, 2, ... in this order.
        ids: Stored id of every known value.
    """

    structures: tuple[str, ...]
    ids: dict[int, int]

    @property
    def ignore_id(self) -> int:
        """Stored id of pixels that are not scored, one above that of the last structure."""
        return len(self.structures) + 1

    @classmethod
    def of_values(cls, values: Mapping[int, str]) -> MaskLabels:
        """Numbers structures by the lowest of their values.

        Args:
            values: Name of every value; `background` and `ignore`, in any case, have their own meaning.

        Raises:
            ValueError: No name is that of a structure.
        """
        values = {value: _kept_spelling(name) for value, name in values.items()}
        names = dict.fromkeys(name for _, name in sorted(values.items()) if name not in (BACKGROUND, IGNORE))
        if not names:
            raise ValueError(f"no value of the masks is a structure: {dict(values)}")
        stored = {BACKGROUND: 0, **{name: i for i, name in enumerate(names, start=1)}, IGNORE: len(names) + 1}
        return cls(tuple(names), {value: stored[name] for value, name in values.items()})

    def dataset_labels(self, ignored: bool) -> dict[str, int]:
        """Returns `labels` of dataset.json.

        Args:
            ignored: Whether some mask has pixels that are not scored.
        """
        labels = {BACKGROUND: 0, **{name: i for i, name in enumerate(self.structures, start=1)}}
        return {**labels, IGNORE: self.ignore_id} if ignored else labels


def _kept_spelling(name: str) -> str:
    """Returns a name; those nnU-Net keeps for itself are known in any case."""
    return name.lower() if name.lower() in (BACKGROUND, IGNORE) else name


def read_label_names(path: Path) -> dict[int, str]:
    """Reads a JSON of names and their values, {"background": 0, "cat": [1, 2], "ignore": 255}.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: It is not of that form, or names a value twice.
    """
    content = read_json(path)
    names: dict[int, str] = {}
    example = 'expected names and values such as {"background": 0, "cat": 1, "ignore": 255}'
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds a {type(content).__name__}, {example}")
    for name, values in content.items():
        for value in values if isinstance(values, list) else [values]:
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _HIGHEST:
                raise ValueError(f"{path} gives '{name}' the value {value!r}, {example}; colours are not supported")
            if value in names:
                raise ValueError(f"{path} names value {value} twice, '{names[value]}' and '{name}'")
            names[value] = name
    return names


def read_mask(path: Path) -> npt.NDArray[np.integer[Any]]:
    """Reads the values of a mask; of a palette image the indices, never the colours they stand for.

    Returns:
        Shape (height, width), as stored.

    Raises:
        ValueError: The file is no such mask.
    """
    try:
        with path.open("rb") as file, Image.open(file) as image:  # not by its path, see `decode`
            mode, size = image.mode, image.size
            limit = Image.MAX_IMAGE_PIXELS
            pixels = np.asarray(image) if limit is None or size[0] * size[1] <= limit else None
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"mask {path} cannot be read: {' '.join(str(error).split())}") from None
    if pixels is None:
        raise ValueError(f"mask {path} claims {size[0]} x {size[1]} pixels, more than are safe to read")
    if mode in ("RGB", "RGBA", "LA", "PA"):
        pixels = _one_channel(pixels, path, has_alpha=mode != "RGB")
    elif mode not in ("1", "L", "P", "I") and not mode.startswith("I;16"):
        raise ValueError(f"mask {path} is of mode {mode}; expected one whole number per pixel")
    return pixels.astype(np.uint8) if mode == "1" else pixels


def _one_channel(pixels: npt.NDArray[Any], path: Path, has_alpha: bool) -> npt.NDArray[Any]:
    colours = pixels[..., :-1] if has_alpha else pixels
    if (colours != colours[..., :1]).any() or (has_alpha and (pixels[..., -1] != 255).any()):
        raise ValueError(
            f"mask {path} stores colours; expected one number per pixel (palette or grey), and --labels with colours "
            f"is not supported: save the masks as numbers first"
        )
    return colours[..., 0]


def stored_ids(values: npt.NDArray[np.integer[Any]], labels: MaskLabels) -> npt.NDArray[np.uint16]:
    """Turns the values of a mask into stored ids.

    Raises:
        ValueError: A value has no name; the message says which.
    """
    if values.dtype.itemsize > 2 and (values.min() < 0 or values.max() > _HIGHEST):
        raise ValueError(f"mask holds values from {values.min()} to {values.max()}, expected 0 to {_HIGHEST}")
    table = np.full(_HIGHEST + 1, _HIGHEST, np.uint16)
    table[list(labels.ids)] = list(labels.ids.values())
    ids = table[values]
    if ids.max() == _HIGHEST:
        unknown = np.unique(values[ids == _HIGHEST]).tolist()
        raise ValueError(f"mask holds values without a name: {_some(unknown)}; known are {_some(sorted(labels.ids))}")
    return ids


def laid_on(ids: npt.NDArray[np.uint16], image: Decoded) -> tuple[npt.NDArray[np.uint16], tuple[str, ...]]:
    """Lays a mask on its image, turning it along where it was drawn on the pixels as they are stored.

    Args:
        ids: Shape (height, width).
        image: The image, upright.

    Returns:
        Shape (height, width) of the image, and notes.

    Raises:
        ValueError: The sizes differ, or nothing tells whether the mask was drawn before the image was turned.
    """
    upright = image.rgb.shape[:2]
    stored = upright[::-1] if image.orientation >= 5 else upright
    if ids.shape not in (upright, stored):
        raise ValueError(f"mask has {ids.shape[1]} x {ids.shape[0]} pixels, its image {upright[1]} x {upright[0]}")
    if image.orientation == 1:
        return ids, ()
    if upright == stored:
        raise ValueError(
            "EXIF turns the image, and its size does not tell whether the mask was drawn before or after; "
            "save the image without that tag"
        )
    if ids.shape == upright:
        return ids, ()
    return turned(ids, image.orientation).astype(np.uint16), ("mask turned along",)


def values_in(paths: Sequence[Path]) -> list[int]:
    """Returns the values that occur in some of the masks.

    Raises:
        ValueError: None of those looked at can be read; the message is that of the first.
    """
    some = paths[:: max(1, len(paths) // _LOOKED_AT)][:_LOOKED_AT]
    values: set[int] = set()
    faults = []
    for path in some:
        try:
            values.update(np.unique(read_mask(path)).tolist())
        except ValueError as error:
            faults.append(str(error))
    if faults and not values:
        raise ValueError(faults[0])
    return sorted(values)


def _some(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:_NAMED])) + (f", ... ({len(values)})" if len(values) > _NAMED else "")
