"""Writing phantoms the way public datasets lie on disk, with a source's own ids and its own missing structures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

from nnunet_pretrain.conversion import Source
from nnunet_pretrain.files import write_json, written_atomically
from nnunet_pretrain.labels import DEFAULT_SPACE
from nnunet_pretrain.phantom.anatomy import STRUCTURES
from nnunet_pretrain.phantom.generator import PhantomCase, generate_phantom


def write_phantom_source(
    source: Source, root: Path, seeds: Iterable[int], orientations: Sequence[str] = ("RAS",), **options: Any
) -> list[str]:
    """Writes phantoms in the first layout of a source; cases that are there already are left alone.

    Args:
        source: The source to imitate: its ids, its files, and only the structures it annotates.
        root: Folder of the source.
        seeds: One case per seed.
        orientations: Storage orientations, used in turn.
        **options: Passed on to `generate_phantom`.

    Returns:
        The case ids, as the source would call them.
    """
    layout = source.layouts[0]
    cases = []
    for position, seed in enumerate(seeds):
        case = f"{seed:04d}"
        image = root / layout.images.format(case=case)
        if not image.is_file():
            phantom = generate_phantom(seed, orientation=orientations[position % len(orientations)], **options)
            labels = label_as(source, phantom)
            if layout.labels:
                merged = np.zeros(phantom.labels.shape, np.uint8)
                for raw_id, mask in labels.items():
                    merged[mask] = raw_id
                _save(merged, phantom.affine, root / layout.labels.format(case=case))
            else:
                for name, mask in labels.items():
                    path = root / str(layout.masks).format(case=case, mask=name)
                    _save(mask.astype(np.uint8), phantom.affine, path)
            _save(phantom.image, phantom.affine, image)  # last: its presence says that the case is complete
        cases.append(case)
    return cases


def label_as(source: Source, phantom: PhantomCase) -> dict[int | str, npt.NDArray[np.bool_]]:
    """Labels a phantom as a source would.

    Args:
        source: The source.
        phantom: The phantom with its complete truth.

    Returns:
        A mask for every source id (or mask name), empty ones too. A structure the source does not label is part of
        the organ it lies in, if the source labels that, and otherwise of no mask.
    """
    scheme, stored = source.scheme(DEFAULT_SPACE)
    masks = {raw_id: np.zeros(phantom.labels.shape, bool) for raw_id in source.labels}
    leaves = [(name, phantom.labels == i + 1) for i, name in enumerate(STRUCTURES) if (phantom.labels == i + 1).any()]
    unplaced = []
    for name, leaf in leaves:
        own = sorted((len(s), position) for position, s in enumerate(source.labels.values()) if name in s)
        if own:
            masks[list(source.labels)[own[0][1]]] |= leaf
        else:
            unplaced.append((name, leaf))
    for name, leaf in unplaced:
        owners = [raw_id for raw_id in source.labels if stored[raw_id] and name in scheme.sets[stored[raw_id]]]
        owners = [raw_id for raw_id in owners if masks[raw_id].any()]
        if owners:
            distance = np.stack([distance_transform_edt(~masks[raw_id]) for raw_id in owners])
            nearest = distance.argmin(axis=0)
            for position, raw_id in enumerate(owners):
                masks[raw_id] |= leaf & (nearest == position)
    return masks


def write_phantom_target(
    folder: Path,
    labels: Mapping[str, Sequence[str]],
    train: Iterable[int],
    val: Iterable[int],
    test: Iterable[int],
    **options: Any,
) -> None:
    """Writes a small, completely labelled target dataset in nnU-Net raw format.

    Args:
        folder: The dataset's folder, such as Dataset901_Target.
        labels: Label name to the structures it unites; ids follow the order.
        train: Seeds of the training cases.
        val: Seeds of the cases fold 0 validates on.
        test: Seeds of the held-out cases (imagesTs and, beside nnU-Net's format, labelsTs).
        **options: Passed on to `generate_phantom`.
    """
    train, val, test = list(train), list(val), list(test)
    for part, seeds in (("Tr", [*train, *val]), ("Ts", test)):
        for seed in seeds:
            image = folder / f"images{part}" / f"case_{seed:04d}_0000.nii.gz"
            if image.is_file():
                continue
            phantom = generate_phantom(seed, **options)
            united = np.zeros(phantom.labels.shape, np.uint8)
            for label_id, structures in enumerate(labels.values(), start=1):
                united[np.isin(phantom.labels, [STRUCTURES.index(s) + 1 for s in structures])] = label_id
            _save(united, phantom.affine, folder / f"labels{part}" / f"case_{seed:04d}.nii.gz")
            _save(phantom.image, phantom.affine, image)
    write_json(
        folder / "dataset.json",
        {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, **{name: i for i, name in enumerate(labels, start=1)}},
            "numTraining": len(train) + len(val),
            "file_ending": ".nii.gz",
            "description": "phantoms of nnunet-pretrain",
        },
    )
    names = {"train": [f"case_{s:04d}" for s in train], "val": [f"case_{s:04d}" for s in val]}
    write_json(folder / "splits_final.json", [names])


def _save(array: npt.NDArray[Any], affine: npt.NDArray[np.float64], path: Path) -> None:
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    with written_atomically(path) as temporary:
        nib.save(image, temporary)
