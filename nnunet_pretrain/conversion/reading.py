"""Opening an image or label of any kind: NIfTI, DICOM series, PNG stacks, and what else SimpleITK reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_pretrain.conversion.layout import files_below
from nnunet_pretrain.conversion.volume import ArrayVolume, Grid, NiftiVolume, Volume
from nnunet_pretrain.files import sha256_of

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SLICE_TOLERANCE = 0.02  # of the slice distance: rounding in DICOM headers stays below it, a missing slice does not


def is_nifti(path: Path) -> bool:
    """Tells whether a path is a NIfTI file by its name."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def open_volume(path: Path, like: Grid | None = None) -> Volume:
    """Opens a volume; of a NIfTI only the header is read.

    Args:
        path: A file, or the folder of a DICOM series or of PNG slices.
        like: Grid of the image, which a stack of PNG slices takes over.

    Raises:
        ValueError: The volume is not readable.
    """
    if is_nifti(path):
        return NiftiVolume(path)
    if path.is_dir():
        files = files_below(path)
        if files and all(file.suffix.lower() == ".png" for file in files):
            return _png_stack(path, files, like)
        return _dicom_series(path, files)
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    return _itk_volume(path)


def _itk() -> Any:
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


def _itk_volume(path: Path) -> ArrayVolume:
    itk = _itk()
    try:
        image = itk.ReadImage(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path} is not readable: {_last_line(error)}") from None
    return _from_itk(path, image, [path])


def _dicom_series(folder: Path, files: list[Path]) -> ArrayVolume:
    itk = _itk()
    series: dict[str, tuple[str, ...]] = {}
    for parent in sorted({file.parent for file in files}):
        for uid in itk.ImageSeriesReader.GetGDCMSeriesIDs(str(parent)):
            series[uid] = itk.ImageSeriesReader.GetGDCMSeriesFileNames(str(parent), uid)
    if len(series) != 1:
        raise ValueError(f"{folder} holds {len(series)} DICOM series, expected one; move the others away")
    names = next(iter(series.values()))
    _check_slices(folder, names, itk)
    reader = itk.ImageSeriesReader()
    reader.SetFileNames(names)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise ValueError(f"{folder} is not readable as DICOM: {_last_line(error)}") from None
    return _from_itk(folder, image, [Path(name) for name in names])


def _check_slices(folder: Path, names: tuple[str, ...], itk: Any) -> None:
    """Refuses a series with a missing or doubled slice: the reader would only warn and squeeze the patient."""
    reader, places = itk.ImageFileReader(), []
    for name in names:
        reader.SetFileName(name)
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise ValueError(f"{name} is not readable as DICOM: {_last_line(error)}") from None
        places.append(reader.GetOrigin())
    steps = np.linalg.norm(np.diff(np.array(places), axis=0), axis=1)
    if len(steps) and (steps.min() <= 0 or np.ptp(steps) > _SLICE_TOLERANCE * float(np.median(steps)) + 1e-3):
        raise ValueError(
            f"{folder}: slices are {steps.min():.3f} to {steps.max():.3f} mm apart, expected one distance; "
            f"a slice is missing or doubled"
        )


def _from_itk(path: Path, image: Any, files: list[Path]) -> ArrayVolume:
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(
            f"{path} has {image.GetDimension()} axes and {image.GetNumberOfComponentsPerPixel()} values per voxel, "
            f"expected a plain 3D volume"
        )
    array = _itk().GetArrayFromImage(image).transpose(2, 1, 0)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    grid = Grid(array.shape, _LPS_TO_RAS @ affine)
    if abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ValueError(f"{path} has an unusable direction or spacing; its header needs repair")
    return ArrayVolume(path, grid, {file: sha256_of(file) for file in files}, array)


def _png_stack(folder: Path, files: list[Path], like: Grid | None) -> ArrayVolume:
    """Reads PNG slices in the order of the numbers in their names.

    Every value above 0 is 1, for masks come as 0/1 and as 0/255.
    """
    itk = _itk()
    files = sorted(files, key=lambda file: [(len(n), n) for n in re.findall(r"\d+", file.name)])
    slices: list[npt.NDArray[np.uint8]] = []
    for file in files:
        try:
            array = itk.GetArrayFromImage(itk.ReadImage(str(file)))
        except RuntimeError as error:
            raise ValueError(f"{file} is not readable as PNG: {_last_line(error)}") from None
        if array.ndim != 2 or (slices and array.T.shape != slices[0].shape):
            raise ValueError(f"{file} has shape {array.shape}, expected grey slices of one size")
        slices.append((array.T > 0).astype(np.uint8))
    stack = np.stack(slices, axis=2)
    grid = Grid(stack.shape, np.eye(4) if like is None else like.affine)
    return ArrayVolume(folder, grid, {file: sha256_of(file) for file in files}, stack)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1][:300]
