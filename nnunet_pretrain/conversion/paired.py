"""Left and right of paired organs that a source labels with one id.

Splitting by connected components puts a kidney on the wrong side when the other one is missing, fused, or cut in two by
a tumour (as CLIP-Driven's converter does). So a split must pass every guard below; otherwise the id keeps its label set
{left, right}. The thresholds are proposals of this project.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nnunet_pretrain.conversion.volume import Grid
from nnunet_pretrain.labels.structures import GROUPS, PAIRED

BODY_HU = -300
MAX_OUTSIDE = 0.05
"""Largest share of a component on the other side of the midline, and of the organ in smaller pieces."""


@dataclass(frozen=True)
class Guard:
    """What both halves of a paired organ must satisfy.

    Attributes:
        min_ml: Least volume of a side; smaller components are fragments.
        max_ml: Largest volume of a side.
        apart_mm: Least distance of the centroids, left to right.
    """

    min_ml: float
    max_ml: float
    apart_mm: float


GUARDS = {
    "kidney": Guard(20, 1500, 60),
    "adrenal_gland": Guard(0.5, 60, 30),
    "lung": Guard(100, 6000, 60),
    "femur": Guard(10, 1000, 100),
}


def unsplit_group(structures: tuple[str, ...]) -> str | None:
    """Returns the group of a left and a right structure that a label set consists of, or None."""
    return next((group for group in PAIRED if set(GROUPS[group]) == set(structures)), None)


def find_sides(
    group: str, labels: npt.NDArray[np.uint8], organ_id: int, lesion_ids: Iterable[int], body: Body, grid: Grid
) -> tuple[npt.NDArray[np.bool_] | None, str]:
    """Decides which voxels of an unsplit organ are the right one.

    Args:
        group: Name of the group, such as kidney.
        labels: Stored ids, axes as in the image.
        organ_id: Id of the organ.
        lesion_ids: Ids of what lies in it; joined to the organ before its components are counted.
        body: Where the patient's middle is.
        grid: The image's grid.

    Returns:
        For each organ voxel (in the order of `np.nonzero`) whether it is the right one, or None where a guard fails;
        and the decision in words.
    """
    from scipy.ndimage import label as label_components

    guard, voxel_ml = GUARDS[group], grid.voxel_ml
    box, joined = _in_box(np.isin(labels, [organ_id, *lesion_ids]))
    components, _ = label_components(joined, np.ones((3, 3, 3)))
    sizes = np.bincount(components.reshape(-1))
    sizes[0] = 0
    large = np.flatnonzero(sizes * voxel_ml >= guard.min_ml)
    if len(large) != 2:
        return None, f"{group} not split: {len(large)} components of {guard.min_ml:g} ml or more, expected 2"
    volumes = sizes[large] * voxel_ml
    if volumes.max() > guard.max_ml:
        return None, f"{group} not split: a component has {volumes.max():.0f} ml, expected at most {guard.max_ml:g}"
    loose = 1 - sizes[large].sum() / sizes.sum()
    if loose > MAX_OUTSIDE:
        return None, f"{group} not split: {loose:.0%} of it lies in smaller pieces"
    places = [_right_mm(np.argwhere(components == i) + box, grid) for i in large]
    order = sorted((0, 1), key=lambda i: float(places[i].mean()))
    left, right = places[order[0]], places[order[1]]
    apart = float(right.mean() - left.mean())
    if apart < guard.apart_mm:
        return None, f"{group} not split: the components lie {apart:.0f} mm apart, expected {guard.apart_mm:g}"
    crossing = max(float(np.mean(left > body.middle_mm)), float(np.mean(right < body.middle_mm)))
    if crossing > MAX_OUTSIDE:
        return None, f"{group} not split: {crossing:.0%} of a component lies beyond the body's midline"
    organ = np.argwhere(labels == organ_id)
    side = components[tuple((organ - box).T)]
    nearer_right = _right_mm(organ, grid) > (left.mean() + right.mean()) / 2
    is_right = np.where(side == large[order[1]], True, np.where(side == large[order[0]], False, nearer_right))
    return is_right, f"{group} split: left {volumes[order[0]]:.0f} ml, right {volumes[order[1]]:.0f} ml"


@dataclass(frozen=True)
class Body:
    """The patient in the image.

    Attributes:
        middle_mm: Middle between the left and the right skin, towards the patient's right, in mm.
    """

    middle_mm: float

    @classmethod
    def find(cls, hu: npt.NDArray[np.int16], grid: Grid) -> Body:
        """Finds the body as everything denser than fat and lung."""
        step = tuple(max(1, n // 128) for n in hu.shape)
        body = np.argwhere(hu[:: step[0], :: step[1], :: step[2]] > BODY_HU) * step
        if not len(body):
            return cls(float(_right_mm(np.array([hu.shape]) / 2, grid)[0]))
        low, high = np.percentile(_right_mm(body, grid), (1, 99))
        return cls(float(low + high) / 2)


def _in_box(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Returns the first index along each axis of a mask's bounding box, and the mask in it."""
    spans = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        spans.append((int(hit[0]), int(hit[-1]) + 1) if len(hit) else (0, 0))
    return np.array([start for start, _ in spans]), mask[tuple(slice(*span) for span in spans)]


def _right_mm(voxels: npt.NDArray[np.float64] | npt.NDArray[np.int64], grid: Grid) -> npt.NDArray[np.float64]:
    result: npt.NDArray[np.float64] = voxels @ grid.affine[0, :3] + grid.affine[0, 3]
    return result
