"""What a domain must be: 3D volumes, label maps on the same voxels, labels in nnU-Net's order, and foreground."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_pretrain.conversion.reading import is_nifti
from nnunet_pretrain.conversion.volume import SPACING_TOLERANCE, NiftiVolume
from nnunet_pretrain.labels import BACKGROUND, IGNORE

_THREADS = 8


def check_foreground(name: str, label_maps: Sequence[Path], ids: Sequence[int], reader: str) -> None:
    """Refuses a domain in whose label maps no voxel is foreground; usually the first map tells.

    Args:
        name: The domain.
        label_maps: Its label maps.
        ids: Ids of foreground.
        reader: Name of nnU-Net's reader.

    Raises:
        ValueError: All label maps are empty, or one cannot be read.
    """
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    rw = recursive_find_reader_writer_by_name(reader)()
    for path in label_maps:
        try:
            found = rw.read_seg(str(path))[0]
        except Exception as error:  # readers raise anything
            raise ValueError(f"{name}: {path} cannot be read: {' '.join(str(error).split())[:500]}") from error
        if np.isin(found, ids).any():
            return
    raise ValueError(
        f"domain {name} has no foreground: all its {len(label_maps)} label maps are empty; correct them or leave it out"
    )


def plain_labels(labels: Any, where: str) -> tuple[dict[str, int], tuple[str, ...]]:
    """Returns labels with one name per stored id; an id in regions is named by the regions that hold it.

    Args:
        labels: `labels` of a dataset.json, name to id or, for a region, to ids.
        where: What to call the dataset in messages.

    Returns:
        Name to id in ascending order, and notes for the user.

    Raises:
        ValueError: There are no labels in nnU-Net's form, ids are not 0 (background), 1, 2, ... with `ignore` last, or
            there is no structure.
    """
    try:
        regions = {
            name: [int(i) for i in (ids if isinstance(ids, (list, tuple)) else [ids])] for name, ids in labels.items()
        }
    except (AttributeError, TypeError, ValueError):
        raise ValueError(
            f"{where}: dataset.json must have 'labels' with names and ids such as "
            f'{{"background": 0, "liver": 1}}, got {labels}; a dataset of nnU-Net v1 or of the Medical Segmentation '
            f"Decathlon is turned into this form by nnUNetv2_convert_old_nnUNet_dataset or nnUNetv2_convert_MSD_dataset"
        ) from None
    ids = sorted({i for name, found in regions.items() for i in found})
    ignored = regions.get(IGNORE)
    if ids != list(range(len(ids))) or regions.get(BACKGROUND) != [0] or (ignored and ignored != [ids[-1]]):
        raise ValueError(
            f"{where}: labels must be background: 0 and then 1, 2, 3, ... without gaps, and 'ignore' the last if there "
            f"is one, got {dict(labels)}; renumber them in dataset.json and in the label maps"
        )
    holders = {i: [name for name, found in regions.items() if i in found and name != BACKGROUND] for i in ids[1:]}
    joined = {i: "_".join(names) for i, names in holders.items()}
    unique = {i: name if list(joined.values()).count(name) == 1 else f"{name}_{i}" for i, name in joined.items()}
    if not set(unique.values()) - {IGNORE}:
        raise ValueError(f"{where} has no foreground: its labels are {dict(labels)}; leave it out")
    plain = {BACKGROUND: 0, **{name: i for i, name in unique.items()}}
    if all(len(found) == 1 for found in regions.values()):
        return plain, ()
    return plain, (f"{where}: regions are taken apart into the ids they are stored as: {', '.join(plain)}",)


def check_geometry(name: str, cases: Sequence[tuple[Path, ...]]) -> None:
    """Refuses images and label maps that are not 3D or do not lie on the same voxels, by their headers.

    Args:
        name: The domain, for messages.
        cases: The files of each case, its label map last.

    Raises:
        ValueError: A file is not readable, not 3D, or lies on other voxels than its label map.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(lambda files: _check_case(name, files), cases):
            pass


def _check_case(name: str, files: tuple[Path, ...]) -> None:
    grids = {path: _grid(name, path) for path in files}
    shape, spacing = grids[files[-1]]
    for path, (other, mm) in grids.items():
        if len(other) != 3 or min(other) < 2:
            raise ValueError(
                f"{name}: {path} has shape {other}, expected a 3D volume of more than one slice; a domain of 2D images "
                f"cannot share an encoder with 3D ones: leave it out"
            )
        if other != shape or not np.allclose(mm, spacing, rtol=SPACING_TOLERANCE):
            raise ValueError(
                f"{name}: {path} has {other} voxels of {_mm(mm)} mm and its label map {shape} of {_mm(spacing)} mm; "
                f"correct the files or remove the case"
            )


def _grid(name: str, path: Path) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Returns shape and spacing of a file, from its header."""
    if is_nifti(path):
        try:
            volume = NiftiVolume(path)
            volume.close()
            volume.check_for_nnunet()
        except ValueError as error:
            raise ValueError(f"{name}: {error}; every member must be 3D; correct the file or leave it out") from None
        return volume.grid.shape, volume.grid.spacing
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(f"{name}: {path} is not readable: {str(error).strip().splitlines()[-1][:300]}") from None
    return tuple(reader.GetSize()), tuple(reader.GetSpacing())


def _mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{mm:.4g}" for mm in spacing)
