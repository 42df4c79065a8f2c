"""What the network sees of a preprocessed case: the patch around a lesion, or the whole image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd  # type: ignore[import-untyped]
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from torch.nn.functional import interpolate

from nnunet_pretrain.classification.labels import Example
from nnunet_pretrain.classification.lesions import Box

Array = npt.NDArray[Any]

MAX_CACHED_BYTES = 256 << 20
"""Of resampled whole images, in every process that loads."""


def lesion_crop(data: Any, box: Box, size: Sequence[int], outside: int = 0) -> Array:
    """Cuts a patch around the middle of a lesion's box.

    Args:
        data: Preprocessed image or label map, shape (channels, Z, Y, X); need not be in memory.
        box: The lesion.
        size: Shape of the patch in voxels.
        outside: Value of voxels beyond the image.

    Returns:
        The patch, shape (channels, *size).
    """
    starts = [(low + high) // 2 - edge // 2 for (low, high), edge in zip(box, size, strict=True)]
    return np.asarray(crop_and_pad_nd(data, [[s, s + e] for s, e in zip(starts, size, strict=True)], outside))


def whole_image(data: Any, size: Sequence[int], nearest: bool = False) -> Array:
    """Resamples an image (channels, Z, Y, X) trilinearly, or a label map to the nearest voxel, to a shape."""
    image = torch.from_numpy(np.asarray(data[:]).astype(np.float32))[None]
    mode = {"mode": "nearest"} if nearest else {"mode": "trilinear", "align_corners": False}
    return interpolate(image, tuple(size), **mode)[0].numpy()


class ExampleImages:
    """A dataset of examples instead of cases, for nnU-Net's loader: its cases are already cut.

    The loader is told of one voxel of foreground, the middle, and centres every patch on it.

    Args:
        dataset: nnU-Net's preprocessed dataset.
        examples: Key to example.
        boxes: Key to the lesion's box, None for whole images.
        size: Shape of the patches in voxels.
        identifiers: Keys, repeated as often as they are to be drawn.
    """

    def __init__(
        self,
        dataset: nnUNetBaseDataset,
        examples: Mapping[str, Example],
        boxes: Mapping[str, Box] | None,
        size: Sequence[int],
        identifiers: Sequence[str] | npt.NDArray[np.str_] = (),
    ) -> None:
        self.dataset, self.examples, self.boxes, self.size = dataset, examples, boxes, tuple(size)
        self.identifiers = identifiers
        self._cache: dict[str, tuple[Array, Array]] = {}
        self._cached_bytes = 0

    def load_case(self, identifier: str) -> tuple[Array, Array, None, dict[str, Any]]:
        """Returns image (channels, Z, Y, X), label map (1, Z, Y, X), nothing of a cascade, and the middle voxel."""
        data, seg = self._images(str(identifier))
        middle = np.array([[0, *(edge // 2 for edge in data.shape[1:])]])
        return data, seg, None, {"class_locations": {1: middle}}

    def _images(self, key: str) -> tuple[Array, Array]:
        if key in self._cache:
            return self._cache[key]
        data, seg, _, _ = self.dataset.load_case(self.examples[key].case)
        if self.boxes is not None:
            return lesion_crop(data, self.boxes[key], self.size), lesion_crop(seg, self.boxes[key], self.size, -1)
        found = whole_image(data, self.size), whole_image(seg, self.size, nearest=True).astype(np.int16)
        size = sum(array.nbytes for array in found)
        if self._cached_bytes + size <= MAX_CACHED_BYTES:  # a whole image is slow to read for so few voxels
            self._cache[key], self._cached_bytes = found, self._cached_bytes + size
        return found
