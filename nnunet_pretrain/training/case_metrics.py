"""Comparison of one predicted label map with its partially labelled reference.

One rule decides what is counted for a group k with label set S_k, in training as in the final validation:

- A voxel labelled k is a hit if its predicted structure is in S_k, else it is missed.
- A predicted voxel belongs to group k if its structure is in S_k and either the voxel is a hit of k, or the structure
  is not in the voxel's own label set. The latter is a false positive of every group that holds the structure.

So a structure that a source does not annotate is never wrong on background, what two groups share is never held
against the other, and nothing is wrong on `ignore`. This module needs no torch: worker processes start fast.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from scipy.ndimage import find_objects

from nnunet_pretrain.training.surface_distance import surface_dice

LabelMap = npt.NDArray[np.integer[Any]]
Affine = npt.NDArray[np.float64]
Box = tuple[slice, ...]

SAME_GRID_VOXELS = 0.5
"""Largest distance between the corners of two grids that still count as the same, in voxels.

Less than that is how readers round a header; a turned, shifted or other case is further away.
"""

SLAB_VOXELS = 1 << 22
"""Voxels compared at a time; a whole CT at once would need gigabytes."""


@dataclass(frozen=True)
class CaseFiles:
    """One case to evaluate, with all that another process needs for it.

    Attributes:
        name: Case name.
        reference: File of the reference label map.
        prediction: File of the predicted label map.
        member: Label set of each stored id of the case's scheme, shape (stored ids, channels).
        decided: Stored id to group name, for decidable ids.
        tolerance_mm: Tolerance of the normalised surface Dice.
    """

    name: str
    reference: Path
    prediction: Path
    member: npt.NDArray[np.bool_]
    decided: Mapping[int, str]
    tolerance_mm: float


def counts_per_id(pairs: Any, member: Any) -> tuple[Any, Any, Any]:
    """Turns numbers of voxels per pair of ids into counts per stored id, by the rule above; for NumPy and torch.

    Args:
        pairs: Number of voxels with each stored and predicted id, shape (..., stored ids, channels).
        member: The stored ids' label sets, of the same shape.

    Returns:
        True positives, false positives and false negatives, each of shape (..., stored ids).
    """
    inside = pairs * member
    hit, wrong = inside.sum(-1), (pairs - inside).sum(-2)
    return hit, (wrong[..., None, :] * member).sum(-1), pairs.sum(-1) - hit


def evaluate_case(case: CaseFiles) -> tuple[str, dict[str, dict[str, float]]]:
    """Returns the case's name and the metrics of each decided group.

    Raises:
        ValueError: A file cannot be read or holds no ids of the dataset, or the two do not lie on the same grid.
    """
    reference, affine = _read(case.reference, case.member.shape[0] - 1)
    prediction, other_affine = _read(case.prediction, case.member.shape[1] - 1)
    _check_grid(case, reference.shape[::-1], prediction.shape[::-1], affine, other_affine)
    pairs, hit, wrong = _compare(reference, prediction, case.member)
    counts = counts_per_id(pairs, case.member)
    unknown = case.member.all(1) & (pairs.sum(1) > 0)
    reference_boxes, wrong_boxes = (find_objects(ids, max(case.member.shape)) for ids in (reference, wrong))
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    metrics = {}
    for stored_id, group in case.decided.items():
        tp, fp, fn = (float(values[stored_id]) for values in counts)
        label_set = case.member[stored_id]
        box = _around([reference_boxes[stored_id - 1], *(wrong_boxes[c - 1] for c in np.flatnonzero(label_set))])
        nsd = float("nan")
        if box is not None:
            masks = reference[box] == stored_id, (hit[box] == stored_id) | label_set[wrong[box]]
            ignored = unknown[reference[box]] if unknown.any() else None
            nsd = surface_dice(*masks, voxel_sizes(affine)[::-1], case.tolerance_mm, ignored)
        metrics[group] = {**_overlap(tp, fp, fn), "NSD": nsd, "FP_ml": fp * voxel_ml}
    return case.name, metrics


def _compare(
    reference: LabelMap, prediction: LabelMap, member: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], LabelMap, LabelMap]:
    """Compares two label maps voxel by voxel, in slabs to save memory.

    Returns:
        The number of voxels of each pair of ids, shape (T, C); a map of the stored ids where the prediction is inside
        the voxel's label set; and a map of the predicted ids where it is not. Both maps are 0 elsewhere.
    """
    num_ids, channels = member.shape
    stored, predicted = np.indices((num_ids, channels)).astype(reference.dtype)
    hit_of, wrong_of = np.where(member, stored, 0).ravel(), np.where(member, 0, predicted).ravel()
    counts = np.zeros(num_ids * channels, dtype=np.int64)
    hit, wrong = np.empty_like(reference), np.empty_like(reference)
    flat = [array.reshape(-1) for array in (reference, prediction, hit, wrong)]
    for start in range(0, reference.size, SLAB_VOXELS):
        stored, predicted, hit_part, wrong_part = (array[start : start + SLAB_VOXELS] for array in flat)
        pairs = stored.astype(np.intp) * channels + predicted
        counts += np.bincount(pairs, minlength=counts.size)
        hit_part[:], wrong_part[:] = hit_of[pairs], wrong_of[pairs]
    return counts.reshape(num_ids, channels), hit, wrong


def _read(path: Path, last_id: int) -> tuple[LabelMap, Affine]:
    """Reads a label map with its axes reversed, as it lies in the file, and the affine of the axes not reversed."""
    try:
        image = nib.load(path)
        array = np.asanyarray(image.dataobj)
    except (ImageFileError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}); write the file again") from None
    whole = np.issubdtype(array.dtype, np.integer) or bool((array == np.rint(array)).all())
    if array.ndim != 3 or not whole or array.min() < 0 or array.max() > last_id:
        raise ValueError(
            f"{path}: expected a 3D label map with the dataset's ids 0-{last_id}, found shape {array.shape} and "
            f"values {array.min()} to {array.max()}; is it from another dataset?"
        )
    dtype = np.uint8 if last_id < 2**8 else np.uint16
    return np.ascontiguousarray(array.T, dtype=dtype), np.asarray(image.affine, dtype=np.float64)


def _check_grid(
    case: CaseFiles,
    shape: Sequence[int],
    other_shape: Sequence[int],
    affine: Affine,
    other_affine: Affine,
) -> None:
    files = f"{case.reference} and {case.prediction}"
    if shape != other_shape:
        raise ValueError(f"{files} have shapes {shape} and {other_shape}; expected one shape, predict the case again")
    corners = np.stack(np.meshgrid(*((0, size) for size in shape), [1])).reshape(4, -1)
    distance = np.linalg.norm(((affine - other_affine) @ corners)[:3], axis=0).max()
    if not distance <= SAME_GRID_VOXELS * voxel_sizes(affine).min():
        raise ValueError(
            f"{files} lie {distance:.3g} mm apart (affines {affine.round(4).tolist()} and "
            f"{other_affine.round(4).tolist()}); expected one grid, predict the case again"
        )


def _around(boxes: Iterable[Box | None]) -> Box | None:
    """Returns the box around boxes, one voxel wider where the array goes on, or None without any."""
    found = [box for box in boxes if box is not None]
    if not found:
        return None
    return tuple(
        slice(max(min(side.start for side in sides) - 1, 0), max(side.stop for side in sides) + 1)
        for sides in zip(*found, strict=True)
    )


def _overlap(tp: float, fp: float, fn: float) -> dict[str, float]:
    union = tp + fp + fn
    return {
        "Dice": 2 * tp / (tp + union) if union else float("nan"),
        "IoU": tp / union if union else float("nan"),
        "TP": tp,
        "FP": fp,
        "FN": fn,
        "n_pred": tp + fp,
        "n_ref": tp + fn,
    }
