"""Does a converted case look like anatomy? Left and right, HU inside organs, voxel size.

What cannot be true is refused (and the case quarantined, unless the source's `accept_cases` names it); what is merely
rare is a warning in the report. The thresholds are proposals of this project, not taken from a dataset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nnunet_pretrain.conversion.volume import Grid
from nnunet_pretrain.labels import LabelSpace
from nnunet_pretrain.labels.structures import GROUPS, PAIRED, mirrored_name

SOFT_ORGANS = ("liver", "spleen", "kidney_left", "kidney_right", "pancreas")
USUAL_ORGAN_HU = (0.0, 250.0)
POSSIBLE_ORGAN_HU = (-50.0, 300.0)
USUAL_SPACING_MM = (0.3, 8.0)
MIN_VOLUME_ML = 5.0
"""Smaller pieces of an organ are not judged: they may be what the field of view left of it."""

_SAMPLE = 400_000


@dataclass(frozen=True)
class Sample:
    """Labelled voxels of a case, evenly drawn.

    Attributes:
        ids: Stored ids, shape (n,).
        hu: HU, shape (n,).
        right_mm: Position towards the patient's right in mm, shape (n,).
        share: Part of the labelled voxels that was drawn.
    """

    ids: npt.NDArray[np.uint8]
    hu: npt.NDArray[np.int16]
    right_mm: npt.NDArray[np.float64]
    share: float

    @classmethod
    def draw(cls, labels: npt.NDArray[np.uint8], hu: npt.NDArray[np.int16], grid: Grid, labelled: int) -> Sample:
        """Draws from the flat label map of a case (Fortran order) with `labelled` voxels that are not background."""
        step = max(1, labelled // _SAMPLE)
        words = labels[: len(labels) // 8 * 8].view(np.uint64)
        places = np.flatnonzero(words != 0)[::step]
        voxels = (places[:, None] * 8 + np.arange(8)).reshape(-1)
        voxels = voxels[labels[voxels] != 0]
        x, y, _ = grid.shape
        index = np.stack([voxels % x, voxels // x % y, voxels // (x * y)])
        right = grid.affine[0, :3] @ index + grid.affine[0, 3]
        return cls(labels[voxels], hu.reshape(-1, order="F")[voxels], right, len(voxels) / max(labelled, 1))

    def volume_ml(self, structure_id: int, voxel_ml: float) -> float:
        """Returns the estimated volume of a structure."""
        return float(np.count_nonzero(self.ids == structure_id)) / max(self.share, 1e-9) * voxel_ml


def check_spacing(grid: Grid, unit_spacing_is_faulty: bool) -> list[str]:
    """Returns warnings about the voxel size.

    Raises:
        ValueError: The spacing is exactly 1 mm in a source whose faulty headers look like that.
    """
    if unit_spacing_is_faulty and np.allclose(grid.spacing, 1.0, atol=1e-6):
        raise ValueError(
            "the spacing is exactly (1, 1, 1) mm, which in this source means that the header was lost; "
            "repair the file, or leave the case out"
        )
    low, high = USUAL_SPACING_MM
    if min(grid.spacing) < low or max(grid.spacing) > high:
        shown = " x ".join(f"{mm:.3g}" for mm in grid.spacing)
        return [f"unusual spacing {shown} mm, usual are {low:g} to {high:g} mm"]
    return []


def check_image(hu: npt.NDArray[np.int16]) -> list[str]:
    """Returns warnings about the range of HU."""
    low, high = int(hu.min()), int(hu.max())
    if low == high:
        return [f"every voxel is {low} HU"]
    warnings = [] if low <= -500 else [f"no air: the lowest voxel is {low} HU"]
    return warnings if high >= 300 else [*warnings, f"no bone: the highest voxel is {high} HU"]


def check_sides(sample: Sample, sets: Mapping[int, tuple[str, ...]], space: LabelSpace, voxel_ml: float) -> list[str]:
    """Checks that the liver lies right of the spleen, and right organs right of left ones.

    Args:
        sample: Voxels of the case.
        sets: Label sets of the case; ids that may be more than one side are not judged.
        space: The label space.
        voxel_ml: Volume of a voxel.

    Returns:
        Warnings; none so far.

    Raises:
        ValueError: A pair lies the wrong way round.
    """
    pairs = [("spleen", "liver"), *(GROUPS[group] for group in PAIRED)]
    for left, right in pairs:
        ids = [_single_id(name, sets, space) for name in (left, right)]
        if None in ids or any(sample.volume_ml(i, voxel_ml) < MIN_VOLUME_ML for i in ids if i is not None):
            continue
        places = [float(np.median(sample.right_mm[sample.ids == i])) for i in ids]
        if places[0] >= places[1]:
            raise ValueError(
                f"left and right are swapped: {left} lies {places[0] - places[1]:.0f} mm to the right of {right}; the "
                f"header is mirrored, or the labels are (if the patient is, name the case in accept_cases)"
            )
    return []


def check_organ_hu(sample: Sample, space: LabelSpace, voxel_ml: float) -> list[str]:
    """Returns warnings about organs with unusual HU.

    Raises:
        ValueError: No judged organ has possible HU: the labels do not lie on this image.
    """
    medians: dict[str, float] = {}
    for name in SOFT_ORGANS:
        if name in space.structures and sample.volume_ml(space.id_of(name), voxel_ml) >= MIN_VOLUME_ML:
            medians[name] = float(np.median(sample.hu[sample.ids == space.id_of(name)]))
    possible = [POSSIBLE_ORGAN_HU[0] <= hu <= POSSIBLE_ORGAN_HU[1] for hu in medians.values()]
    shown = ", ".join(f"{name} {hu:.0f}" for name, hu in medians.items())
    if medians and not any(possible):
        raise ValueError(
            f"the labels do not lie on the image: median HU {shown}, possible are {POSSIBLE_ORGAN_HU[0]:.0f} to "
            f"{POSSIBLE_ORGAN_HU[1]:.0f}"
        )
    return [
        f"unusual HU: median {hu:.0f} inside {name}, usual are {USUAL_ORGAN_HU[0]:.0f} to {USUAL_ORGAN_HU[1]:.0f}"
        for name, hu in medians.items()
        if not USUAL_ORGAN_HU[0] <= hu <= USUAL_ORGAN_HU[1]
    ]


def _single_id(structure: str, sets: Mapping[int, tuple[str, ...]], space: LabelSpace) -> int | None:
    """Returns a structure's id unless voxels of it may also be the other side."""
    if structure not in space.structures:
        return None
    other = mirrored_name(structure)
    stored_id = space.id_of(structure)
    found = sets.get(stored_id)
    return None if found is None or (other != structure and other in found) else stored_id
