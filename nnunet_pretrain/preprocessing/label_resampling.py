"""Label resampling that gives nnU-Net's own label maps, voxel by voxel, in a fraction of the time.

nnU-Net's default (batchgenerators' `resize_segmentation` at order 1) interpolates the indicator of every label
linearly and gives a voxel the label with the largest sum of weights. A voxel whose neighbours all carry one label gets
that label; arithmetic is needed only where labels meet. There, weights and sums are formed in the order and precision
of `scipy.ndimage.zoom`, so that ties are ties here too: they go to the nearest neighbour's label if it is among the
best, else to the smallest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.preprocessing.resampling.default_resampling import (
    determine_do_sep_z_and_axis,
    resample_data_or_seg_to_shape,
)

Labels = npt.NDArray[np.signedinteger[Any]]

_CHUNK = 1 << 15  # voxels decided at a time, so that their scores stay in the cache


class _Axis(NamedTuple):
    """Where the voxels of a resized axis are sampled.

    Attributes:
        neighbours: Shape (2, new), index of the neighbour before and behind.
        weights: Shape (2, new), linear weights of both.
        nearest: Shape (new,), index of the nearest neighbour.
    """

    neighbours: npt.NDArray[np.intp]
    weights: npt.NDArray[np.float64]
    nearest: npt.NDArray[np.intp]


def resample_labels(
    seg: npt.NDArray[Any],
    new_shape: Sequence[int] | npt.NDArray[Any],
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    is_seg: bool = True,
    order: int = 1,
    order_z: int = 0,
    force_separate_z: bool | None = False,
    separate_z_anisotropy_threshold: float = ANISO_THRESHOLD,
) -> npt.NDArray[Any]:
    """Resamples a label map exactly as nnU-Net's `resample_data_or_seg_to_shape`, whose arguments it takes.

    What it does not know how to do faster is left to that function: other orders, labels that are no small integers,
    and an installation where a comparison of both on small maps finds a difference.

    Args:
        seg: Label map, axes channel, x, y, z in the plans' order.
        new_shape: Voxels along the last three axes.
        current_spacing: Voxel size of `seg` in mm.
        new_spacing: Voxel size of the result in mm.
        is_seg: Must be true to be done here.
        order: Spline order; 1 is done here.
        order_z: Spline order along the coarse axis where it is resampled separately; 0 is done here.
        force_separate_z: Whether the coarse axis is resampled separately; None decides by anisotropy.
        separate_z_anisotropy_threshold: Anisotropy above which it is.

    Returns:
        The resampled label map, of the type of `seg`; `seg` itself if its shape is right already.
    """
    labels = _small_integers(seg) if is_seg and order == 1 and order_z == 0 and min(new_shape) > 0 else None
    if labels is None or not agrees_with_nnunet():
        return resample_data_or_seg_to_shape(
            seg,
            new_shape,
            current_spacing,
            new_spacing,
            is_seg,
            order,
            order_z,
            force_separate_z,
            separate_z_anisotropy_threshold,
        )
    shape = tuple(int(n) for n in new_shape)
    if labels.shape[1:] == shape:
        return seg
    separate, axis = determine_do_sep_z_and_axis(
        force_separate_z, current_spacing, new_spacing, separate_z_anisotropy_threshold
    )
    coarse_axis = int(axis) if separate else None
    return np.stack([_resample(channel, shape, coarse_axis) for channel in labels]).astype(seg.dtype, copy=False)


def resize_labels(labels: Labels, new_shape: Sequence[int]) -> Labels:
    """Resizes a label map exactly as batchgenerators' `resize_segmentation` at order 1.

    Args:
        labels: Label map with any number of axes, of a signed integer type whose least value is no label.
        new_shape: Voxels along each axis.

    Returns:
        The resized label map, of the same type.
    """
    axes = [_sampling(old, new) if old != new else None for old, new in zip(labels.shape, new_shape, strict=True)]
    undecided = labels.dtype.type(np.iinfo(labels.dtype).min)
    result = labels
    # Shrinking axes come first: the later ones then have less to do.
    for axis in sorted(range(labels.ndim), key=lambda a: new_shape[a] / labels.shape[a]):
        if (sampling := axes[axis]) is not None:
            before, behind = (np.take(result, neighbour, axis=axis) for neighbour in sampling.neighbours)
            np.copyto(before, undecided, where=before != behind)
            result = before
    flat = np.ascontiguousarray(result).reshape(-1)
    open_voxels = np.flatnonzero(flat == undecided)
    for start in range(0, len(open_voxels), _CHUNK):
        part = open_voxels[start : start + _CHUNK]
        flat[part] = _decide(labels, axes, np.unravel_index(part, tuple(new_shape)))
    return flat.reshape(new_shape)


@lru_cache(maxsize=1)
def agrees_with_nnunet() -> bool:
    """Tells whether the installed nnU-Net resamples some small label maps as this module does.

    Releases of batchgenerators before 0.25.5 decide otherwise where labels meet; future ones may, too.
    """
    random = np.random.default_rng(0)
    cases = [((6, 5, 8), (3, 9, 4)), ((4, 6, 6), (8, 12, 7)), ((5, 7, 3), (5, 3, 6)), ((3, 2, 9), (14, 14, 12))]
    for spacing in ((1.0, 1.0, 1.0), (4.0, 1.0, 1.0)):
        for old, new in cases:
            seg = random.integers(-1, 4, (1, *old)).astype(np.int16)
            theirs = resample_data_or_seg_to_shape(seg, new, spacing, spacing, True, 1, 0, None)
            coarse_axis = 0 if spacing[0] > ANISO_THRESHOLD else None
            if not np.array_equal(_resample(seg[0], new, coarse_axis), theirs[0]):
                return False
    return True


def _resample(labels: Labels, new_shape: tuple[int, ...], coarse_axis: int | None) -> Labels:
    """Resizes a volume; along a coarse axis, if there is one, by the nearest slice."""
    if coarse_axis is None:
        return resize_labels(labels, new_shape)
    in_plane = list(new_shape)
    in_plane[coarse_axis] = labels.shape[coarse_axis]
    resized = resize_labels(labels, in_plane)
    nearest = _sampling(labels.shape[coarse_axis], new_shape[coarse_axis]).nearest
    return np.take(resized, nearest, axis=coarse_axis)


def _small_integers(seg: npt.NDArray[Any]) -> Labels | None:
    """Returns the labels as the smallest integers that leave a value free, or None if they are no such integers."""
    if seg.size == 0 or not np.isfinite(low := seg.min()) or not np.isfinite(high := seg.max()):
        return None
    for kind in (np.int8, np.int16):
        if np.iinfo(kind).min < low and high <= np.iinfo(kind).max:
            labels: Labels = np.ascontiguousarray(seg).astype(kind)
            return labels if seg.dtype.kind in "iub" or np.array_equal(labels, seg) else None
    return None


def _sampling(old: int, new: int) -> _Axis:
    """Returns where an axis is sampled: scipy's `zoom` with `grid_mode` and mode `nearest`, step by step.

    Beyond the outermost voxel both neighbours are that voxel, each with its weight.
    """
    position = (np.arange(new) + 0.5) * (old / new) - 0.5
    before = np.floor(position)
    weight = 1.0 - (position - before)
    indices = np.clip(np.stack([before, before + 1, np.floor(position + 0.5)]), 0, old - 1).astype(np.intp)
    return _Axis(indices[:2], np.stack([weight, 1.0 - weight]), indices[2])


def _decide(labels: Labels, axes: Sequence[_Axis | None], voxels: tuple[npt.NDArray[np.intp], ...]) -> Labels:
    """Returns the labels of voxels whose neighbours differ.

    Args:
        labels: The label map to sample.
        axes: How each of its axes is sampled; None where its size stays.
        voxels: Indices into the result, one array per axis.
    """
    corners, weights = [], []
    for sides in product(*((0, 1) if axis is not None else (0,) for axis in axes)):  # scipy's order of summation
        index, weight = list(voxels), np.ones(1)
        for dimension, (axis, side) in enumerate(zip(axes, sides, strict=True)):
            if axis is not None:
                index[dimension] = axis.neighbours[side][voxels[dimension]]
                weight = weight * axis.weights[side][voxels[dimension]]
        corners.append(labels[tuple(index)])
        weights.append(weight)
    nearest = labels[tuple(v if a is None else a.nearest[v] for a, v in zip(axes, voxels, strict=True))]
    scores = np.zeros((len(corners), len(nearest)))
    for score, label in zip(scores, corners, strict=True):
        for other, weight in zip(corners, weights, strict=True):
            score += weight * (other == label)
    best = scores.max(axis=0)
    smallest = np.full_like(nearest, np.iinfo(nearest.dtype).max)
    nearest_is_best = np.zeros(len(nearest), bool)
    for score, label in zip(scores, corners, strict=True):
        is_best = score == best
        np.minimum(smallest, label, out=smallest, where=is_best)
        nearest_is_best |= is_best & (label == nearest)
    return np.where(nearest_is_best, nearest, smallest)
