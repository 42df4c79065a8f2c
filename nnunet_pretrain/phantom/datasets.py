"""Writing phantoms the way public datasets lie on disk, with a source's own ids and its own missing structures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

from nnunet_pretrain.conversion import Source
from nnunet_pretrain.conversion.layout import fill
from nnunet_pretrain.conversion.source import PLACEHOLDER, Layout
from nnunet_pretrain.files import write_json, written_atomically
from nnunet_pretrain.labels import DEFAULT_SPACE
from nnunet_pretrain.labels.structures import PART_OF
from nnunet_pretrain.phantom.anatomy import STRUCTURES
from nnunet_pretrain.phantom.generator import PhantomCase, generate_phantom
from nnunet_pretrain.phantom.stacks import write_dicom_series, write_png_stack


def write_phantom_source(
    source: Source, root: Path, seeds: Iterable[int], orientations: Sequence[str] = ("RAS",), **options: Any
) -> list[str]:
    """Writes phantoms in the first layout of a source; cases that are there already are left alone.

    Args:
        source: The source to imitate: its ids, its files, its twisted labels, and only the structures it annotates.
        root: Folder of the source.
        seeds: One case per seed.
        orientations: Storage orientations, used in turn; DICOM series are LPS, as scanners write them.
        **options: Passed on to `generate_phantom`.

    Returns:
        The case ids, as the source would call them.

    Raises:
        ValueError: The source's layout allows no case id for a seed.
    """
    layout = source.layouts[0]
    cases = []
    for position, seed in enumerate(seeds):
        names = _placeholders(source, seed)
        image = root / _filled(layout.images, **names)
        if not image.exists():
            orientation = "LPS" if layout.image_format == "dicom" else orientations[position % len(orientations)]
            phantom = generate_phantom(seed, orientation=orientation, **options)
            _write_labels(source, root, names, phantom)
            _write_image(layout, image, names["case"], phantom)  # last: its presence says that the case is complete
        cases.append(names["case"])
    return cases


def label_as(source: Source, phantom: PhantomCase) -> dict[int | str, npt.NDArray[np.bool_]]:
    """Labels a phantom as a source would.

    Args:
        source: The source.
        phantom: The phantom with its complete truth.

    Returns:
        A mask for every source id (or mask name), empty ones too. A structure the source does not label, or believes
        no patient to have, is part of the organ it lies in, if the source labels that, and otherwise of no mask.
    """
    label_sets = source.label_sets
    scheme, stored = source.scheme(DEFAULT_SPACE)
    masks = {raw_id: np.zeros(phantom.labels.shape, bool) for raw_id in label_sets}
    leaves = [(name, phantom.labels == i + 1) for i, name in enumerate(STRUCTURES) if (phantom.labels == i + 1).any()]
    unplaced = []
    for name, leaf in leaves:
        own = sorted((len(s), position) for position, s in enumerate(label_sets.values()) if name in s)
        if own:
            masks[list(label_sets)[own[0][1]]] |= leaf
        else:
            unplaced.append((name, leaf))
    for name, leaf in unplaced:
        wanted = {name, *(PART_OF.get(name, ()) if name in source.known_absent else ())}
        owners = [raw_id for raw_id in label_sets if stored[raw_id] and wanted & set(scheme.sets[stored[raw_id]])]
        owners = [raw_id for raw_id in owners if masks[raw_id].any()]
        if owners:
            distance = np.stack([distance_transform_edt(~masks[raw_id]) for raw_id in owners])
            nearest = distance.argmin(axis=0)
            for position, raw_id in enumerate(owners):
                masks[raw_id] |= leaf & (nearest == position)
    return masks


def _placeholders(source: Source, seed: int) -> dict[str, str]:
    """Returns what the placeholders of a source's first layout stand for in the case of a seed."""
    expressions = dict(PLACEHOLDER.findall(source.layouts[0].images))
    for case in (f"{seed:04d}", f"{seed:05d}"):
        if re.fullmatch(expressions.get("case") or "[^/]+", case) and case not in source.exclude_cases:
            return {"case": case, "part": expressions.get("part", "").split("|")[0]}
    raise ValueError(f"source {source.name}: no case id for seed {seed} fits {source.layouts[0].images}")


def _filled(template: str, **names: str) -> str:
    return fill(template, **names).replace("*", "1")


def _write_labels(source: Source, root: Path, names: Mapping[str, str], phantom: PhantomCase) -> None:
    layout, masks = source.layouts[0], label_as(source, phantom)
    if layout.masks:
        for name, mask in masks.items():
            path = root / _filled(layout.masks, **names, mask=str(name))
            _save(mask.astype(np.uint8), phantom.affine, path)
        return
    merged = np.zeros(phantom.labels.shape, np.uint8)
    for raw_id, mask in masks.items():
        merged[mask] = raw_id
    path = root / _filled(str(layout.labels), **names)
    if layout.label_format == "png":  # as in CHAOS: slices from the wrong end, upside down
        write_png_stack(merged[:, ::-1, ::-1] > 0, path, f"{source.structures[0]}_GT_")
    elif source.label_geometry == "by_overlay":  # as in NIH Pancreas-CT: upside down, while the header denies it
        _save(merged[:, ::-1], phantom.affine, path)
    else:
        _save(merged, phantom.affine, path)


def _write_image(layout: Layout, path: Path, case: str, phantom: PhantomCase) -> None:
    if layout.image_format == "dicom":
        of_patient = "{case" in PurePosixPath(layout.images).name  # TCIA sorts a patient's folder by study and series
        write_dicom_series(phantom.image, phantom.affine, path, case, "study/series" if of_patient else "")
    else:
        _save(phantom.image, phantom.affine, path)


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
    write_shown_target(folder, "CT", lambda image, seed: image, labels, train, val, test, **options)


def write_shown_target(
    folder: Path,
    channel: str,
    show: Callable[[npt.NDArray[np.int16], int], npt.NDArray[Any]],
    labels: Mapping[str, Sequence[str]],
    train: Iterable[int],
    val: Iterable[int],
    test: Iterable[int],
    **options: Any,
) -> None:
    """As `write_phantom_target`, with other images.

    Args:
        folder: As there.
        channel: Name of the image channel.
        show: Makes the image to store of a phantom's HU and its seed; labels are not concerned.
        labels: As there.
        train: As there.
        val: As there.
        test: As there.
        **options: As there.
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
            _save(show(phantom.image, seed), phantom.affine, image)
    write_json(
        folder / "dataset.json",
        {
            "channel_names": {"0": channel},
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
