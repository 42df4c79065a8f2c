"""What the network sees of a preprocessed case: the patch around a lesion, or the whole image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd  # type: ignore[import-untyped]
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from scipy import ndimage
from torch.nn.functional import interpolate
from tqdm import tqdm

from nnunet_pretrain.classification.labels import Example
from nnunet_pretrain.files import read_json, write_json

Array = npt.NDArray[Any]
Box = tuple[tuple[int, int], ...]
"""First and one past the last voxel along each axis."""

MAX_CACHED_BYTES = 256 << 20
"""Of resampled whole images, in every process that loads."""
_SHOWN = 5


def ids_of(lesion: str, dataset_json: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the ids of a label, or of all members of a region."""
    value = dataset_json["labels"][lesion]
    return tuple(int(i) for i in (value if isinstance(value, (list, tuple)) else [value]))


def lesion_boxes(seg: Array, ids: Sequence[int], components: bool) -> list[Box]:
    """Finds the lesions of one label.

    Args:
        seg: Label map, shape (Z, Y, X).
        ids: Ids of the label.
        components: Whether each connected component (26 neighbours) is a lesion, the largest first; otherwise all
            voxels together are one.

    Returns:
        Their boxes; none if no voxel has the label.
    """
    mask = np.isin(seg, ids)
    if not components:
        return [tuple((s.start, s.stop) for s in found) for found in ndimage.find_objects(mask.astype(np.uint8))]
    numbered, _ = ndimage.label(mask, np.ones((3,) * mask.ndim))
    sizes = np.bincount(numbered.ravel())[1:]
    boxes = ndimage.find_objects(numbered)
    return [tuple((s.start, s.stop) for s in boxes[i]) for i in np.argsort(-sizes, kind="stable")]


def find_boxes(
    dataset: nnUNetBaseDataset, examples: Sequence[Example], dataset_json: Mapping[str, Any], memory: Path
) -> dict[str, Box]:
    """Finds the lesions of a table in preprocessed label maps, once.

    Args:
        dataset: nnU-Net's preprocessed dataset.
        examples: Examples with lesions.
        dataset_json: The dataset's.
        memory: File that keeps what was found; a case whose preprocessed label map is newer is looked at again.

    Returns:
        Key of the example to its box.

    Raises:
        ValueError: A lesion has no voxels.
    """
    known: dict[str, Any] = read_json(memory) if memory.is_file() else {}
    wanted = sorted({(e.case, e.lesion or "", e.component is not None) for e in examples})
    found: dict[tuple[str, str, bool], list[Box]] = {}
    for case, lesion, components in tqdm(wanted, desc="Finding lesions", disable=len(wanted) < 100):
        name = f"{case} {lesion} {'components' if components else 'whole'}"
        changed = Path(dataset.source_folder, f"{case}_seg.b2nd")
        stamp = changed.stat().st_mtime_ns if changed.is_file() else 0
        if known.get(name, {}).get("changed") != stamp:
            seg = np.asarray(dataset.load_case(case)[1][0])
            boxes = lesion_boxes(seg, ids_of(lesion, dataset_json), components)
            known[name] = {"changed": stamp, "boxes": boxes}
        found[case, lesion, components] = [tuple(map(tuple, box)) for box in known[name]["boxes"]]
    write_json(memory, known)
    boxes_of = {}
    missing = []
    for example in examples:
        boxes = found[example.case, example.lesion or "", example.component is not None]
        number = (example.component or 1) - 1
        if number < len(boxes):
            boxes_of[example.key] = boxes[number]
        else:
            missing.append(f"{example.key} (there are {len(boxes)})")
    if missing:
        raise ValueError(
            f"{len(missing)} rows of the classification's table are about lesions without voxels in the preprocessed "
            f"label maps: {', '.join(missing[:_SHOWN])}; remove these rows, or correct the label maps and preprocess "
            f"again, then plan again"
        )
    return boxes_of


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
