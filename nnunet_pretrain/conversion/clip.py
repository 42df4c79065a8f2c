"""Clipping every image to percentiles of its own intensities, as Med3D does before it normalises.

Med3D (Chen et al., arXiv 1904.00625) clips each volume to its 0.5 and 99.5 percentiles. nnU-Net has no such step and
finds no normalisation outside its own package, so it is done on files: at once for the training images, and by
`nnunet_pretrain clip` for images to predict on.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_pretrain.conversion.engine import run_all
from nnunet_pretrain.conversion.reading import is_nifti
from nnunet_pretrain.files import written_atomically

PERCENTILES = (0.5, 99.5)
ENDING = ".nii.gz"
ENDINGS = (ENDING, ".nii", ".nrrd", ".mha", ".gipl")
"""What nnU-Net's readers of 3D images read."""

_NAMED_FAULTS = 5


def ending_of(name: str) -> str | None:
    """Returns the ending of an image's file name, or None if no reader of 3D images takes it."""
    return next((ending for ending in ENDINGS if name.lower().endswith(ending)), None)


def clipped(voxels: npt.NDArray[Any], percentiles: tuple[float, float]) -> npt.NDArray[Any]:
    """Clips an array to percentiles of all its values.

    The percentiles are values that occur (the nearest in rank), so that integers stay integers and clipping twice is
    clipping once.

    Args:
        voxels: Intensities, any shape.
        percentiles: Lower and upper percentile, 0 to 100.

    Returns:
        An array of the same shape and type.

    Raises:
        ValueError: The array is empty, or a value is not finite.
    """
    if not voxels.size or (voxels.dtype.kind == "f" and not np.isfinite(voxels).all()):
        raise ValueError("it is empty, or holds voxels that are not finite numbers; nnU-Net cannot train on them")
    low, high = np.percentile(voxels, percentiles, method="nearest")
    return np.clip(voxels, low, high).astype(voxels.dtype, copy=False)


def clip_image(image: Path, target: Path, percentiles: tuple[float, float] = PERCENTILES) -> None:
    """Writes an image whose intensities are clipped; its geometry and its type of number stay.

    Args:
        image: The image, one volume.
        target: Where to write it, ending with .nii.gz; written atomically.
        percentiles: Lower and upper percentile, 0 to 100.

    Raises:
        ValueError: The image cannot be read, or cannot be clipped.
    """
    try:
        with written_atomically(target) as temporary:
            (_clip_nifti if is_nifti(image) else _clip_other)(image, temporary, percentiles)
    except Exception as error:  # readers raise anything
        raise ValueError(f"{image} cannot be clipped: {' '.join(str(error).split())[:500]}") from error


def clip_folder(
    folder: Path, target: Path, percentiles: tuple[float, float] = PERCENTILES, num_processes: int = 2
) -> list[Path]:
    """Clips every image of a folder, for prediction with a network that was trained on clipped images.

    Args:
        folder: Images named as nnU-Net wants them (case_0000.nii.gz).
        target: Folder for the clipped images, of the same names with the ending .nii.gz.
        percentiles: Lower and upper percentile, 0 to 100.
        num_processes: Worker processes.

    Returns:
        The files written.

    Raises:
        ValueError: Input and output are one folder, two images would get one name, or some cannot be clipped (after
            all others are).
        FileNotFoundError: The folder is missing or holds no image.
    """
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ValueError(f"--percentiles must be LOWER UPPER with 0 <= LOWER < UPPER <= 100, got {percentiles}")
    if folder.resolve() == target.resolve():
        raise ValueError(f"input and output are the same folder {folder}; name another one with -o")
    images = sorted(p for p in folder.iterdir() if p.is_file() and ending_of(p.name)) if folder.is_dir() else []
    if not images:
        raise FileNotFoundError(f"{folder} holds no image; expected files ending with {', '.join(ENDINGS)}")
    names = {image: image.name[: -len(ending_of(image.name) or "")] + ENDING for image in images}
    twice = [name for name, times in Counter(names.values()).items() if times > 1]
    if twice:
        raise ValueError(f"several images in {folder} would be written to {twice[0]}; keep one of them")
    jobs = [Clipping(image, target / name, percentiles) for image, name in names.items()]
    faults = [fault for fault in run_all(clip_or_say_why, jobs, num_processes=num_processes, what="clipping") if fault]
    if faults:
        raise ValueError(f"{len(faults)} of {len(jobs)} images were left out: {'; '.join(faults[:_NAMED_FAULTS])}")
    return [job.target for job in jobs]


@dataclass(frozen=True)
class Clipping:
    """One image to clip.

    Attributes:
        image: What to read.
        target: What to write.
        percentiles: Lower and upper percentile.
    """

    image: Path
    target: Path
    percentiles: tuple[float, float] = PERCENTILES


def clip_or_say_why(clipping: Clipping) -> str | None:
    """Clips an image; returns None, or why it cannot be clipped."""
    try:
        clip_image(clipping.image, clipping.target, clipping.percentiles)
    except ValueError as error:
        return str(error)
    return None


def _clip_nifti(image: Path, target: Path, percentiles: tuple[float, float]) -> None:
    """Clips the numbers as stored; the header, with its scaling, stays."""
    import nibabel

    loaded: Any = nibabel.load(image)
    stored = np.asarray(loaded.dataobj.get_unscaled())
    slope, inter = loaded.dataobj.slope, loaded.dataobj.inter
    if slope < 0:  # the stored order is the opposite one
        percentiles = (100 - percentiles[1], 100 - percentiles[0])
    written = type(loaded)(clipped(stored, percentiles), loaded.affine, loaded.header)
    if (slope, inter) != (1, 0):
        written.header.set_slope_inter(slope, inter)
    nibabel.save(written, target)


def _clip_other(image: Path, target: Path, percentiles: tuple[float, float]) -> None:
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    loaded = SimpleITK.ReadImage(str(image))
    written = SimpleITK.GetImageFromArray(clipped(SimpleITK.GetArrayFromImage(loaded), percentiles))
    written.CopyInformation(loaded)
    SimpleITK.WriteImage(written, str(target), True)
