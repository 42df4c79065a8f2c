"""A small picture of one case: CT and labels, an axial and a coronal cut side by side."""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_pretrain.conversion.volume import Grid
from nnunet_pretrain.files import sha256_of, written_atomically
from nnunet_pretrain.labels import LabelSpace

WINDOW_HU = (-160.0, 240.0)
HEIGHT = 300
"""Height of a cut in pixels."""

_OPACITY = 0.5
_HUE_STEP = 0.595  # near the golden ratio; chosen so that an organ and its tumour differ most


def colour(stored_id: int, space: LabelSpace) -> tuple[int, int, int]:
    """Returns the colour of a stored id, far from those of its neighbours in the space; `ignore` is white."""
    if stored_id == space.ignore_id:
        return 255, 255, 255
    hue, bright = (stored_id * _HUE_STEP) % 1.0, (1.0, 0.8, 0.65)[stored_id % 3]
    r, g, b = colorsys.hsv_to_rgb(hue, 0.9 if stored_id % 2 else 0.6, bright)
    return int(255 * r), int(255 * g), int(255 * b)


def draw_case(
    path: Path, hu: npt.NDArray[np.int16], labels: npt.NDArray[np.uint8], grid: Grid, space: LabelSpace
) -> str:
    """Draws a case as radiologists see it (patient's right on the left).

    Args:
        path: PNG to write.
        hu: The image, axes as stored.
        labels: Stored ids on the same grid.
        grid: The grid.
        space: The label space.

    Returns:
        The SHA-256 of the picture.
    """
    from PIL import Image

    turn = [int(np.flatnonzero(grid.orientation[:, 0] == axis)[0]) for axis in range(3)]
    flips = tuple(slice(None, None, -1 if grid.orientation[axis, 1] < 0 else 1) for axis in turn)
    image, label = hu.transpose(turn)[flips], labels.transpose(turn)[flips]
    spacing = [grid.spacing[axis] for axis in turn]
    palette = np.array([(0, 0, 0), *(colour(i, space) for i in range(1, space.ignore_id + 1))], np.uint8)
    cuts: list[Any] = []
    for axis, (across, up) in ((2, (0, 1)), (1, (0, 2))):
        index = _busiest(label, axis)
        cut = _blended(np.take(image, index, axis), np.take(label, index, axis), palette)
        picture = Image.fromarray(np.ascontiguousarray(cut.transpose(1, 0, 2)[::-1, ::-1]))
        ratio = (label.shape[across] * spacing[across]) / (label.shape[up] * spacing[up])
        cuts.append(picture.resize((max(1, min(4 * HEIGHT, round(HEIGHT * ratio))), HEIGHT), Image.Resampling.BILINEAR))
    joined = Image.new("RGB", (sum(cut.width for cut in cuts) + 4, HEIGHT))
    joined.paste(cuts[0], (0, 0))
    joined.paste(cuts[1], (cuts[0].width + 4, 0))
    with written_atomically(path) as temporary:
        joined.save(temporary, format="PNG")
    return sha256_of(path)


def _busiest(labels: npt.NDArray[np.uint8], axis: int) -> int:
    """Returns the cut with most different labels, and among those most labelled voxels, seen on a coarse raster."""
    coarse = tuple(slice(None) if a == axis else slice(None, None, max(1, labels.shape[a] // 96)) for a in range(3))
    cuts = np.moveaxis(labels[coarse], axis, 0)
    return int(np.argmax([len(np.unique(cut)) + np.count_nonzero(cut) / cut.size for cut in cuts]))


def _blended(
    cut: npt.NDArray[np.int16], label: npt.NDArray[np.uint8], palette: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint8]:
    low, high = WINDOW_HU
    grey = np.clip((cut.astype(np.float32) - low) / (high - low), 0, 1) * 255
    rgb = np.repeat(grey[:, :, None], 3, axis=2)
    mixed = np.where((label > 0)[:, :, None], (1 - _OPACITY) * rgb + _OPACITY * palette[label], rgb)
    return mixed.astype(np.uint8)
