"""Converting one image: three slices of a volume, and a label map that is the same in all of them."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from nnunet_pretrain.conversion.natural_images.coco import draw
from nnunet_pretrain.conversion.natural_images.decoding import Decoded, as_volume, decode
from nnunet_pretrain.conversion.natural_images.listing import Photograph
from nnunet_pretrain.conversion.natural_images.masks import MaskLabels, laid_on, read_mask, stored_ids
from nnunet_pretrain.conversion.volume import write_nifti
from nnunet_pretrain.files import written_atomically

RULES_VERSION = 2
"""Raised whenever conversion gives another result for the same input, so that older cases are redone."""

# nnU-Net's readers count in LPS: without turning, x and y of an image run against NIfTI's.
_AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Rules:
    """What is made of every image.

    Attributes:
        storage: `volumes` or `originals`.
        class_ids: Stored id of every class; empty for masks.
        masks: What the values of masks mean; None for classes.
    """

    storage: str
    class_ids: dict[str, int] = field(default_factory=dict)
    masks: MaskLabels | None = None

    def of(self, photograph: Photograph) -> str:
        """Returns what the result for an image depends on, beside its files."""
        if self.masks is None:
            return f"{RULES_VERSION} {self.storage} class {self.class_ids[photograph.label]}"
        table = zlib.crc32(repr((self.masks.structures, sorted(self.masks.ids.items()))).encode())
        return f"{RULES_VERSION} {self.storage} masks {table:08x} {zlib.crc32(photograph.drawing or b''):08x}"

    def outputs(self, case: str) -> list[str]:
        """Returns the files of a case, relative to the dataset."""
        image, label = f"imagesTr/{case}_0000.nii.gz", f"labelsTr/{case}.nii.gz"
        if self.storage == "volumes":
            return [image, label]
        return [label] if self.masks is not None else []


def read_image(
    photograph: Photograph, root: Path, rules: Rules
) -> tuple[Decoded, npt.NDArray[np.uint16] | None, tuple[str, ...]]:
    """Returns an image, the stored ids of its pixels if it has a mask, and notes.

    Args:
        photograph: Which.
        root: Folder of the originals.
        rules: What its mask means.

    Raises:
        ValueError: The image or its mask cannot be used.
    """
    if photograph.fault:
        raise ValueError(f"{photograph.file} {photograph.fault}")
    image, masks = decode(root / photograph.file), rules.masks
    if masks is None:
        return image, None, image.notes
    try:
        if photograph.mask is None:
            ids = draw(photograph.drawing or b"", masks.ids, masks.ignore_id)
        else:
            ids = stored_ids(read_mask(root / photograph.mask), masks)
        ids, notes = laid_on(ids, image)
    except ValueError as error:
        raise ValueError(f"{photograph.file}: {error}") from None
    return image, ids, (*image.notes, *notes)


def write_image(
    photograph: Photograph, folder: Path, rules: Rules, image: Decoded, ids: npt.NDArray[np.uint16] | None
) -> None:
    """Writes the files of a case: the image as three slices, and its label map, the same in all three.

    Args:
        photograph: Which.
        folder: Folder of the dataset.
        rules: Which files to write.
        image: The image.
        ids: Shape (height, width), stored ids of its pixels, or None if it has one class.

    Raises:
        OSError: A file cannot be written.
    """
    volume = as_volume(image.rgb) if rules.storage == "volumes" else None
    for name in rules.outputs(photograph.case):
        if name.startswith("imagesTr"):
            voxels: npt.NDArray[Any] | None = volume
        else:
            voxels = _label_map(photograph, rules, image.rgb.shape[:2], ids)
        assert voxels is not None
        with written_atomically(folder / name) as temporary:
            write_nifti(temporary, voxels.transpose(2, 1, 0), _AFFINE)


def statistics(rgb: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """Returns mean and standard deviation of all values of an image, exactly, by counting them."""
    counts = np.asarray(Image.fromarray(rgb).histogram(), dtype=np.int64).reshape(3, 256).sum(axis=0)
    values = np.arange(256)
    mean = float(counts @ values / counts.sum())
    return mean, math.sqrt(float(counts @ (values - mean) ** 2 / counts.sum()))


def _label_map(
    photograph: Photograph, rules: Rules, shape: tuple[int, ...], ids: npt.NDArray[np.uint16] | None
) -> npt.NDArray[Any]:
    """Returns a label map of shape (3, height, width), in the smallest type that holds all stored ids."""
    highest = max(rules.class_ids.values(), default=0) if rules.masks is None else rules.masks.ignore_id
    dtype = np.uint8 if highest < 256 else np.uint16
    if ids is None:
        return np.full((3, *shape), rules.class_ids[photograph.label], dtype)
    return np.broadcast_to(ids.astype(dtype), (3, *shape))
