"""Writing a volume slice by slice: as a DICOM series, or as PNG masks."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_RESCALE_INTERCEPT = -1024


def write_dicom_series(
    hu: npt.NDArray[np.int16], affine: npt.NDArray[np.float64], folder: Path, patient: str, below: str = ""
) -> None:
    """Writes a CT as one DICOM series, a file per slice along the last axis; the folder appears complete or not at all.

    Args:
        hu: The CT in HU; its first axis becomes columns, its second rows.
        affine: Voxel index to RAS+ mm, with axes at right angles.
        folder: Folder to make.
        patient: Patient id; the series' UIDs depend on nothing else.
        below: Folders between it and the slices, such as `study/series`.
    """
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / below).mkdir(parents=True)
    lps = _RAS_TO_LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    axes = lps[:3, :3] / spacing
    common = {
        "0008|0016": "1.2.840.10008.5.1.4.1.1.2",  # CT image storage
        "0008|0020": "20000101",  # unless given, today: the same phantom would be other bytes tomorrow
        "0008|0030": "000000",
        "0008|0060": "CT",
        "0010|0020": patient,
        "0018|0050": _decimal(spacing[2]),
        "0020|000d": _uid(patient, "study"),
        "0020|000e": _uid(patient, "series"),
        "0020|0037": "\\".join(_decimal(value) for value in (*axes[:, 0], *axes[:, 1])),
        "0020|0052": _uid(patient, "frame"),
        "0028|1052": str(_RESCALE_INTERCEPT),
        "0028|1053": "1",
    }
    for index in range(hu.shape[2]):
        tags = {
            **common,
            "0008|0018": _uid(patient, "slice", str(index)),
            "0020|0013": str(index + 1),
            "0020|0032": "\\".join(_decimal(value) for value in (lps @ (0, 0, index, 1))[:3]),
        }
        _write_slice(hu[:, :, index], partial / below / f"{index + 1:06d}.dcm", tuple(spacing[:2]), tags)
    partial.replace(folder)


def write_png_stack(mask: npt.NDArray[np.bool_], folder: Path, stem: str) -> None:
    """Writes a mask as PNG slices along its last axis, 0 and 255, numbered from 000; the first axis becomes columns."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(mask.shape[2]):
        _write_slice(mask[:, :, index].astype(np.uint8) * np.uint8(255), folder / f"{stem}{index:03d}.png")


def _write_slice(
    array: npt.NDArray[Any], path: Path, spacing: tuple[float, ...] = (1.0, 1.0), tags: dict[str, str] | None = None
) -> None:
    import SimpleITK

    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(spacing)
    for tag, value in (tags or {}).items():
        image.SetMetaData(tag, value)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    writer.Execute(image)


def _decimal(value: float) -> str:
    """Returns a number as a DICOM decimal string, which has at most 16 characters."""
    return f"{value:.8g}"


def _uid(*names: str) -> str:
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '/'.join(('nnunet-pretrain phantom', *names))).int}"
