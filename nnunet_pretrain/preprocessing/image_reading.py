"""nnU-Net's two nibabel readers, with a lean way for the usual file: one NIfTI volume of plain, unscaled voxels.

nnU-Net lets nibabel inflate with zlib and convert to float64 before it converts to float32. Here ISA-L inflates and
voxels become float32 at once, which gives the same numbers for these types. Any other file is left to nnU-Net.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.orientations import apply_orientation, io_orientation
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient

from nnunet_pretrain.conversion.volume import NiftiVolume

Images = tuple[npt.NDArray[np.float32], dict[str, Any]]


class LeanNibabelIO(NibabelIO):
    """NibabelIO, sooner."""

    def read_images(self, image_fnames: Sequence[str]) -> Images:
        """Reads images as nnU-Net's reader does; axes channel, z, y, x."""
        return _read_one(image_fnames, reorient=False) or super().read_images(image_fnames)


class LeanNibabelIOWithReorient(NibabelIOWithReorient):
    """NibabelIOWithReorient, sooner."""

    def read_images(self, image_fnames: Sequence[str]) -> Images:
        """Reads images as nnU-Net's reader does, turned to RAS; axes channel, z, y, x."""
        return _read_one(image_fnames, reorient=True) or super().read_images(image_fnames)


LEAN_READERS: dict[type, type] = {NibabelIO: LeanNibabelIO, NibabelIOWithReorient: LeanNibabelIOWithReorient}


def _read_one(files: Sequence[str], reorient: bool) -> Images | None:
    """Reads a single plain volume, or returns None if the files are anything else."""
    if len(files) != 1:
        return None
    try:
        stored = nibabel.load(files[0])
        volume = NiftiVolume(Path(files[0]))
    except (ValueError, OSError, nibabel.filebasedimages.ImageFileError):
        return None
    with_int64 = volume.dtype.kind in "iu" and volume.dtype.itemsize > 4  # rounded twice by nnU-Net
    if volume.scaling is not None or with_int64 or stored.shape != volume.grid.shape:
        volume.close()
        return None
    try:
        volume.check_for_nnunet()
        voxels = volume.read()
    except ValueError:
        return None
    facts: dict[str, Any] = {"original_affine": stored.affine}
    if reorient:
        turn = io_orientation(stored.affine)
        # nibabel works out the header of the turned image on an image that takes no memory.
        stored = type(stored)(np.broadcast_to(np.zeros(1, volume.dtype), stored.shape), stored.affine, stored.header)
        stored = stored.as_reoriented(turn)
        facts["reoriented_affine"] = stored.affine
        voxels = apply_orientation(voxels, turn)
    data = voxels.transpose((2, 1, 0))[None].astype(np.float32, order="C")
    return data, {"nibabel_stuff": facts, "spacing": [float(mm) for mm in stored.header.get_zooms()[::-1]]}
