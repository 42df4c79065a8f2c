"""Normalised surface Dice: which share of two surfaces lies within a tolerance of the other one.

The measure is that of Nikolov et al., "Deep learning to achieve clinically applicable segmentation of head and neck
anatomy for radiotherapy", arXiv 1809.04430 (J Med Internet Res 2021): surface elements sit on the corners of voxels,
one in each cube of 2 x 2 x 2 voxels that a mask cuts, and weigh as much as their area.

Two things differ from the authors' package `surface-distance`, whose release 0.1 fails on an empty mask with NumPy 2
and knows no ignored voxels. The area of an element is the length of the vector of voxel faces cut in its cube, where
theirs comes from a table of triangles: exact for planes along the axes in both, 6 % too large for a ball of isotropic
voxels here, 9 % there; the surface Dice of smooth shapes differs by less than 0.015. And an element is looked for
among the positions within the tolerance, instead of computing distances everywhere: the same answer, 30 times faster.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]
Areas = npt.NDArray[np.float64]

ROUNDING = 1e-5
"""Relative excess over the tolerance that is still within it: voxel sizes in file headers are single precision."""


def surface_dice(
    reference: Mask,
    prediction: Mask,
    spacing_mm: Sequence[float],
    tolerance_mm: float = 1.0,
    ignored: Mask | None = None,
) -> float:
    """Returns the normalised surface Dice of two masks.

    Args:
        reference: Mask, shape (X, Y, Z).
        prediction: Mask of the same shape.
        spacing_mm: Voxel size along each array axis.
        tolerance_mm: Distance up to which surfaces count as equal.
        ignored: Voxels of unknown truth. Surface that touches them is never counted; the other surface may still
            be near it.

    Returns:
        A share between 0 and 1. NaN if both masks are empty or no surface can be counted, 0 if one mask is empty. The
        edge of the array is surface where a mask reaches it.

    Raises:
        ValueError: The shapes differ or are not three-dimensional, or tolerance or spacing is not positive.
    """
    _check(reference, prediction, spacing_mm, tolerance_mm, ignored)
    found = [reference.any(), prediction.any()]
    if not all(found):
        return 0.0 if any(found) else float("nan")
    steps = _offsets(spacing_mm, tolerance_mm * (1 + ROUNDING))
    margin = np.abs(steps).max(0)
    box = _bounding_box(reference | prediction)
    cropped = [np.pad(mask[box], [(m + 1, m + 1) for m in margin]) for mask in (reference, prediction)]
    surfaces = [_surface(mask) for mask in cropped]
    shifts = np.ravel_multi_index(tuple((steps + margin).T), surfaces[0].shape)
    shifts = shifts - np.ravel_multi_index(tuple(margin), surfaces[0].shape)
    unknown = None if ignored is None else _touching(_with_rim(ignored, box, margin + 1))
    near, total = 0.0, 0.0
    for mask, own, other in zip(cropped, surfaces, surfaces[::-1], strict=True):
        places = np.flatnonzero(own if unknown is None else own & ~unknown)
        areas = _areas(mask, places, own.shape, spacing_mm)
        total += float(areas.sum())
        near += float(areas[_is_near(places, other.reshape(-1), shifts)].sum())
    return near / total if total else float("nan")


def _check(
    reference: Mask, prediction: Mask, spacing_mm: Sequence[float], tolerance_mm: float, ignored: Mask | None
) -> None:
    shapes = {mask.shape for mask in (reference, prediction, ignored) if mask is not None}
    if len(shapes) != 1 or reference.ndim != 3 or len(spacing_mm) != 3:
        raise ValueError(f"expected 3D masks of one shape and 3 voxel sizes, got {sorted(shapes)} and {spacing_mm}")
    if not (tolerance_mm > 0 and min(spacing_mm) > 0):
        raise ValueError(f"tolerance and voxel size must be positive, got {tolerance_mm} mm and {spacing_mm} mm")


def _bounding_box(mask: Mask) -> tuple[slice, ...]:
    extents = (np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3))
    return tuple(slice(int(extent[0]), int(extent[-1]) + 1) for extent in extents)


def _with_rim(mask: Mask, box: tuple[slice, ...], rim: Indices) -> Mask:
    """Crops to a box and a rim around it; what lies outside the array is False."""
    wide = tuple(slice(max(s.start - r, 0), min(s.stop + r, n)) for s, r, n in zip(box, rim, mask.shape, strict=True))
    around = [(r - (s.start - w.start), r - (w.stop - s.stop)) for s, w, r in zip(box, wide, rim.tolist(), strict=True)]
    return np.pad(mask[wide], around)


def _cube_sums(mask: Mask) -> npt.NDArray[np.uint8]:
    """Counts the voxels of the mask in every cube of 2 x 2 x 2 voxels; the result is 1 smaller along each axis."""
    total = mask.view(np.uint8)
    total = total[1:] + total[:-1]
    total = total[:, 1:] + total[:, :-1]
    return total[:, :, 1:] + total[:, :, :-1]


def _surface(mask: Mask) -> Mask:
    return (_cube_sums(mask) - np.uint8(1)) < 7  # 0 wraps to 255: cubes that are neither empty nor full


def _touching(mask: Mask) -> Mask:
    return _cube_sums(mask) > 0


def _areas(mask: Mask, places: Indices, cubes: tuple[int, ...], spacing_mm: Sequence[float]) -> Areas:
    """Returns the area in mm2 of the surface elements at flat indices of the grid of cubes."""
    first = np.ravel_multi_index(np.unravel_index(places, cubes), mask.shape)
    voxels = mask.reshape(-1).view(np.uint8)
    corners: Indices = np.asarray(np.ravel_multi_index(tuple(np.indices((2, 2, 2)).reshape(3, 8)), mask.shape))
    patterns = np.zeros(len(places), dtype=np.uint8)
    for bit, corner in enumerate(corners):
        patterns |= voxels[first + corner] << np.uint8(bit)
    return _area_of_pattern(spacing_mm)[patterns]


def _area_of_pattern(spacing_mm: Sequence[float]) -> Areas:
    """Returns the area for each of the 256 patterns of a cube's corners: the length of the vector of cut faces."""
    corners = (np.arange(256)[:, None] >> np.arange(8) & 1).reshape(256, 2, 2, 2)
    squares = np.zeros(256)
    for axis, size in enumerate(spacing_mm):
        cut = np.abs(np.diff(corners, axis=axis + 1)).sum((1, 2, 3))
        squares += (cut / 4 * np.prod(spacing_mm) / size) ** 2
    return np.sqrt(squares)


def _offsets(spacing_mm: Sequence[float], tolerance_mm: float) -> Indices:
    """Returns the steps to all grid positions within the tolerance, nearest first, shape (N, 3)."""
    reach = [int(tolerance_mm / size) for size in spacing_mm]
    steps = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), axis=-1).reshape(-1, 3)
    distances = np.linalg.norm(steps * np.asarray(spacing_mm), axis=1)
    order = np.argsort(distances, kind="stable")
    return steps[order[distances[order] <= tolerance_mm]]


def _is_near(places: Indices, surface: Mask, shifts: Indices) -> Mask:
    """Tells for each place whether the surface has an element at one of the shifted places."""
    is_near = np.zeros(len(places), dtype=bool)
    missing = np.arange(len(places))
    for shift in shifts:
        hit = surface[places[missing] + shift]
        is_near[missing[hit]] = True
        missing = missing[~hit]
    return is_near
