"""Foreground voxels for oversampling: what nnU-Net stores as `class_locations`, drawn from the same random numbers.

nnU-Net lists and sorts the coordinates of every voxel of a requested label. Here voxels are flat indices, background
is not sorted, and only the voxels that were drawn get coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor


def sample_class_locations(
    seg: npt.NDArray[Any],
    classes_or_regions: Sequence[Any],
    seed: int = 1234,
    min_num_samples: int = 10000,
    min_percent_coverage: float = 0.01,
) -> dict[int | tuple[int, ...], npt.NDArray[np.int64] | list[Any]]:
    """Draws voxels of every class, the same as nnU-Net's `_sample_foreground_locations`.

    Args:
        seg: Label map, axes channel, x, y, z.
        classes_or_regions: Labels, or groups of labels that count as one class.
        seed: Seed of the draw.
        min_num_samples: Voxels drawn per class if it has that many.
        min_percent_coverage: Least share (0 to 1) of a class's voxels that is drawn.

    Returns:
        Class to drawn voxels, shape (n, 4), columns as the axes of `seg`; an empty list for a class without voxels.
    """
    flat = _as_int16(seg)
    if flat is None:
        stock = DefaultPreprocessor._sample_foreground_locations
        drawn: dict[int | tuple[int, ...], Any] = stock(
            seg, classes_or_regions, seed, False, min_num_samples, min_percent_coverage
        )
        return drawn
    random = np.random.RandomState(seed)
    voxels = _VoxelsByLabel(flat)
    locations: dict[int | tuple[int, ...], npt.NDArray[np.int64] | list[Any]] = {}
    for wanted in classes_or_regions:
        is_region = isinstance(wanted, (tuple, list))
        labels = tuple(int(label) for label in wanted) if is_region else (int(wanted),)
        key = labels if is_region else labels[0]
        members = [found for label in labels if len(found := voxels[label])]
        total = sum(map(len, members))
        if not total:
            locations[key] = []
            continue
        count = max(min(min_num_samples, total), math.ceil(total * min_percent_coverage))
        picked = _pick(members, random.choice(total, count, replace=False))
        locations[key] = np.stack(np.unravel_index(picked, seg.shape), axis=1).astype(np.int64, copy=False)
    return locations


class _VoxelsByLabel:
    """Flat indices of the voxels of each label, ascending."""

    def __init__(self, flat: npt.NDArray[np.int16]) -> None:
        self._flat = flat
        foreground = np.flatnonzero(flat)
        labels = flat[foreground]
        order = np.argsort(labels, kind="stable")  # a radix sort, for 16 bits
        self._voxels = foreground[order]
        self._labels = labels[order]
        self._background: npt.NDArray[np.intp] | None = None

    def __getitem__(self, label: int) -> npt.NDArray[np.intp]:
        if label == 0:
            if self._background is None:
                self._background = np.flatnonzero(self._flat == 0)
            return self._background
        start, end = (int(np.searchsorted(self._labels, label, side)) for side in ("left", "right"))
        return self._voxels[start:end]


def _as_int16(seg: npt.NDArray[Any]) -> npt.NDArray[np.int16] | None:
    """Returns the labels as a flat array of 16-bit integers, or None if they are no such integers."""
    if seg.size == 0 or not -(1 << 15) <= seg.min() <= seg.max() < 1 << 15:
        return None
    flat = np.ascontiguousarray(seg).reshape(-1)
    labels = flat.astype(np.int16, copy=False)
    return labels if seg.dtype.kind in "iub" or np.array_equal(labels, flat) else None


def _pick(members: Sequence[npt.NDArray[np.intp]], numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """Returns the voxels at positions in the members put one after the other."""
    ends = np.cumsum([len(member) for member in members])
    owner = np.searchsorted(ends, numbers, side="right")
    picked = np.empty(len(numbers), np.intp)
    for position, member in enumerate(members):
        mine = owner == position
        picked[mine] = member[numbers[mine] - (ends[position] - len(member))]
    return picked
