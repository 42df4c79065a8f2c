"""Grids of image and label: compared, turned into each other's axes, repaired where a source allows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_pretrain.conversion.volume import CHUNK_VOXELS, Grid, Volume, reoriented

AFFINE_TOLERANCE = 1e-3
"""Largest difference of two affine entries (mm and mm per voxel) that still counts as the same grid."""

SOFT_TISSUE_HU = (0.0, 200.0)
_SAMPLE = 200_000
_MIN_SHARE, _MIN_LEAD = 0.75, 0.05


@dataclass
class Alignment:
    """How the voxels of a case's labels come to lie on the image.

    Attributes:
        image: The image's grid.
        mode: A source's `label_geometry`.
        hu: The image, needed for `by_overlay` only.
        decisions: What was repaired or chosen, in words.
    """

    image: Grid
    mode: str = "strict"
    hu: npt.NDArray[Any] | None = None
    decisions: list[str] | None = None

    def chunks(self, label: Volume) -> Iterator[npt.NDArray[Any]]:
        """Yields a label's voxels in the image's order.

        Raises:
            ValueError: The grids differ and the source allows no repair, or no turn of the label fits the image.
        """
        if self.mode == "by_overlay":
            yield from _in_steps(self._turned_onto_soft_tissue(label))
            return
        codes = label.grid.axis_codes
        if codes == self.image.axis_codes:
            self._check(label, label.grid)
            yield from label.chunks()
            return
        if self._repairable(label):
            yield from label.chunks()
            return
        array = label.read()
        turned, grid = reoriented(array, label.grid, self.image)
        self._check(label, grid)
        yield from _in_steps(turned)

    def _repairable(self, label: Volume) -> bool:
        """Tells whether the label takes over the image's header, and notes it."""
        if self.mode != "from_image" or label.grid.shape != self.image.shape:
            return False
        self._note(f"{label.path.name}: header replaced by the image's")
        return True

    def _check(self, label: Volume, grid: Grid) -> None:
        if grid.shape != self.image.shape:
            raise ValueError(f"{label.path} has shape {grid.shape}, expected {self.image.shape} as its image")
        difference = float(np.abs(grid.affine - self.image.affine).max())
        if difference <= AFFINE_TOLERANCE or self._repairable(label):
            return
        raise ValueError(
            f"{label.path} has affine {grid.affine.round(4).tolist()}, expected "
            f"{self.image.affine.round(4).tolist()} as its image (largest difference {difference:.4g}, allowed "
            f"{AFFINE_TOLERANCE}); if only the header is wrong, set label_geometry: from_image in the source file"
        )

    def _turned_onto_soft_tissue(self, label: Volume) -> npt.NDArray[Any]:
        """Mirrors a label's array along every combination of axes and takes the one that lies on soft tissue."""
        assert self.hu is not None, "by_overlay needs the image"
        array = label.read()
        if array.shape != self.image.shape:
            raise ValueError(f"{label.path} has shape {array.shape}, expected {self.image.shape} as its image")
        labelled = np.argwhere(array > 0)
        if not len(labelled):
            return array
        labelled = labelled[:: max(1, len(labelled) // _SAMPLE)]
        shares = {flips: self._share_on_soft_tissue(labelled, flips) for flips in product((False, True), repeat=3)}
        ranked = sorted(shares, key=lambda flips: -shares[flips])
        best, second = shares[ranked[0]], shares[ranked[1]]
        if best < _MIN_SHARE or best - second < _MIN_LEAD:
            raise ValueError(
                f"{label.path} cannot be laid onto its image: of its voxels {best:.0%} lie on soft tissue in the best "
                f"mirroring and {second:.0%} in the second; expected at least {_MIN_SHARE:.0%} and a clear lead"
            )
        axes = tuple(axis for axis, flip in enumerate(ranked[0]) if flip)
        self._note(
            f"{label.path.name}: mirrored along array axes {axes} ({best:.0%} on soft tissue, next {second:.0%})"
        )
        return np.flip(array, axes) if axes else array

    def _share_on_soft_tissue(self, voxels: npt.NDArray[np.int64], flips: tuple[bool, ...]) -> float:
        mirrored = np.where(flips, np.array(self.image.shape) - 1 - voxels, voxels)
        values = self.hu[tuple(mirrored.T)]  # type: ignore[index]
        return float(np.mean((values >= SOFT_TISSUE_HU[0]) & (values <= SOFT_TISSUE_HU[1])))

    def _note(self, text: str) -> None:
        if self.decisions is not None:
            self.decisions.append(text)


def _in_steps(array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    flat = np.ravel(array, order="F")
    for start in range(0, len(flat), CHUNK_VOXELS):
        yield flat[start : start + CHUNK_VOXELS]
