"""Converting the label of one case into the merged label space, in the image's own geometry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import io_orientation, ornt_transform

from nnunet_pretrain.conversion.layout import CaseFiles
from nnunet_pretrain.files import written_atomically

AFFINE_TOLERANCE = 1e-3
"""Largest difference of two affine entries (mm and mm per voxel) that still counts as the same grid."""


@dataclass(frozen=True)
class Conversion:
    """What to do with one case.

    Attributes:
        files: The case's files.
        stored: Source id (or mask name) to stored id; ids that are stored as background may be listed.
        output: Label file to write.
    """

    files: CaseFiles
    stored: Mapping[int | str, int]
    output: Path


@dataclass(frozen=True)
class Converted:
    """What became of one case.

    Attributes:
        case: Name in the merged dataset.
        voxels: Stored id to voxel count.
        overlapping_voxels: Voxels that more than one mask claimed; the smaller structure got them.
    """

    case: str
    voxels: dict[int, int]
    overlapping_voxels: int


def convert_case(conversion: Conversion) -> Converted:
    """Writes the merged label map of one case.

    Raises:
        ValueError: A file is not a readable 3D NIfTI, image and label lie on different grids, or the label holds an
            id that is not in the source's label scheme.
    """
    files = conversion.files
    image = _load(files.image)
    if files.labels is not None:
        stored, overlap = _remap(files.labels, image, files.image, conversion.stored), 0
    else:
        stored, overlap = _paint_masks(files, image, conversion.stored)
    label = nib.Nifti1Image(stored, image.affine)
    label.header.set_xyzt_units("mm")
    with written_atomically(conversion.output) as temporary:
        nib.save(label, temporary)
    counts = np.bincount(stored.reshape(-1))
    return Converted(files.case, {int(i): int(counts[i]) for i in np.flatnonzero(counts)}, overlap)


def _load(path: Path) -> Any:
    try:
        image = nib.load(path)
    except (ImageFileError, OSError, EOFError) as error:
        raise ValueError(f"{path} is not readable as NIfTI: {error}") from None
    if len(image.shape) != 3:
        raise ValueError(f"{path} has shape {image.shape}, expected three dimensions")
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-9:
        raise ValueError(f"{path} has an unusable affine {image.affine.tolist()}; its header needs repair")
    return image


def _read_label(path: Path, image: Any, image_path: Path) -> npt.NDArray[Any]:
    """Reads a label or mask as integers on the image's grid, reoriented if it is stored in another orientation."""
    label = _load(path)
    turn = ornt_transform(io_orientation(label.affine), io_orientation(image.affine))
    if not np.array_equal(turn, [[0, 1], [1, 1], [2, 1]]):
        label = label.as_reoriented(turn)
    if label.shape != image.shape:
        raise ValueError(f"{path} has shape {label.shape}, expected {image.shape} as its image {image_path}")
    difference = np.abs(label.affine - image.affine).max()
    if difference > AFFINE_TOLERANCE:
        raise ValueError(
            f"{path} has affine {label.affine.round(4).tolist()}, expected {image.affine.round(4).tolist()} "
            f"as its image {image_path} (largest difference {difference:.4g}, allowed {AFFINE_TOLERANCE})"
        )
    try:
        values = np.asanyarray(label.dataobj)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} cannot be decompressed: {error}") from None
    if np.issubdtype(values.dtype, np.floating):
        rounded = np.rint(values)
        if not np.isfinite(values).all() or np.abs(values - rounded).max() > 1e-3:
            raise ValueError(f"{path} holds fractional or non-finite values, expected whole label ids")
        values = rounded.astype(np.int64)
    return values


def _remap(path: Path, image: Any, image_path: Path, stored: Mapping[int | str, int]) -> npt.NDArray[np.uint8]:
    values = _read_label(path, image, image_path)
    known = {0: 0, **{int(raw): stored_id for raw, stored_id in stored.items()}}
    highest = max(known)
    if values.min() < 0 or values.max() > highest:
        unknown = sorted(set(np.unique(values).tolist()) - set(known))
    else:
        present = np.flatnonzero(np.bincount(values.reshape(-1), minlength=highest + 1))
        unknown = sorted(set(present.tolist()) - set(known))
    if unknown:
        raise ValueError(f"{path} holds label ids {unknown}, expected only {sorted(known)} (the source's label scheme)")
    table = np.zeros(highest + 1, dtype=np.uint8)
    table[list(known)] = list(known.values())
    return table[values]


def _paint_masks(files: CaseFiles, image: Any, stored: Mapping[int | str, int]) -> tuple[npt.NDArray[np.uint8], int]:
    """Merges binary masks; where they overlap, the structure with fewer voxels wins."""
    masks: list[tuple[int, int, npt.NDArray[np.int64]]] = []
    for name, path in files.masks.items():
        if not stored[name]:
            continue
        values = _read_label(path, image, files.image)
        unknown = sorted(set(np.unique(values).tolist()) - {0, 1, 255})
        if unknown:
            raise ValueError(f"{path} holds values {unknown}, expected a binary mask")
        voxels = np.flatnonzero(values)
        masks.append((len(voxels), stored[name], voxels))
    merged = np.zeros(image.shape, dtype=np.uint8)
    painted, overlap = merged.reshape(-1), 0
    for _, stored_id, voxels in sorted(masks, key=lambda mask: -mask[0]):
        overlap += int(np.count_nonzero((painted[voxels] != 0) & (painted[voxels] != stored_id)))
        painted[voxels] = stored_id
    return merged, overlap
