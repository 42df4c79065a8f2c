"""Where the lesions of a case lie: found and numbered on its own label map, looked at in its preprocessed image.

Whoever wrote the table counted lesions on the label maps they gave. Resampling changes their sizes, and can unite or
lose them, so lesions are never counted on preprocessed label maps: only their boxes are carried over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from scipy import ndimage
from tqdm import tqdm

from nnunet_pretrain.classification.labels import Example
from nnunet_pretrain.files import read_json, write_json

Array = npt.NDArray[Any]
Box = tuple[tuple[int, int], ...]
"""First and one past the last voxel along each axis."""

LABEL_MAPS = "gt_segmentations"
"""Folder of the label maps as they were given; nnU-Net's preprocessing and ours copy them there."""
_SHOWN = 5


def ids_of(lesion: str, dataset_json: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the ids of a label, or of all members of a region."""
    value = dataset_json["labels"][lesion]
    return tuple(int(i) for i in (value if isinstance(value, (list, tuple)) else [value]))


def lesion_boxes(seg: Array, ids: Sequence[int], components: bool) -> list[Box]:
    """Finds the lesions of one label.

    Args:
        seg: Label map, shape (Z, Y, X).
        ids: Ids of the label.
        components: Whether each connected component (26 neighbours) is a lesion, the one with most voxels first, of
            equally large ones the one whose first voxel comes first; otherwise all voxels together are one.

    Returns:
        Their boxes; none if no voxel has the label.
    """
    mask = np.isin(seg, ids)
    found = ndimage.find_objects(mask.astype(np.uint8))
    if not found:
        return []
    offset = [s.start for s in found[0]]
    if not components:
        return [_shifted(found[0], [0] * mask.ndim)]
    numbered, _ = ndimage.label(mask[found[0]], np.ones((3,) * mask.ndim))  # the rest of a large map takes long
    sizes = np.bincount(numbered.ravel())[1:]
    boxes = ndimage.find_objects(numbered)
    return [_shifted(boxes[i], offset) for i in np.argsort(-sizes, kind="stable")]


def _shifted(slices: Sequence[slice], offset: Sequence[int]) -> Box:
    return tuple((s.start + by, s.stop + by) for s, by in zip(slices, offset, strict=True))


def preprocessed_box(box: Box, transpose: Sequence[int], properties: Mapping[str, Any], shape: Sequence[int]) -> Box:
    """Carries a box over to the preprocessed image, as nnU-Net's preprocessor did: transpose, crop, resample.

    Args:
        box: On the label map as its reader returns it.
        transpose: transpose_forward of the plans.
        properties: What the preprocessor noted of the case.
        shape: Of the preprocessed image, (Z, Y, X).

    Returns:
        The smallest box of whole voxels that contains it, as far as it lies in the image, else the nearest voxel.
    """
    moved = []
    cropped = properties["shape_after_cropping_and_before_resampling"]
    for axis, (start, _), old, new in zip(transpose, properties["bbox_used_for_cropping"], cropped, shape, strict=True):
        low, high = (int(edge) - int(start) for edge in box[axis])
        first = min(max(low * int(new) // int(old), 0), int(new) - 1)
        last = min(-(-high * int(new) // int(old)), int(new))
        moved.append((first, max(last, first + 1)))
    return tuple(moved)


def read_label_map(path: Path, plans: Any, properties: Mapping[str, Any]) -> Array:
    """Reads a label map as nnU-Net's preprocessor does, without transposing it.

    Args:
        path: The file.
        plans: nnU-Net's plans manager, which knows the reader.
        properties: What the preprocessor noted of the case.

    Returns:
        Shape (Z, Y, X), in the reader's order of axes.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Its shape is not that of the image that was preprocessed.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} not found; lesions are found on the label maps as they were given, which preprocessing copies "
            f"there: preprocess again with `nnunet_pretrain preprocess`"
        )
    seg = np.asarray(plans.image_reader_writer_class().read_seg(str(path))[0])[0]
    given = tuple(seg.shape[axis] for axis in plans.transpose_forward)
    expected = tuple(int(edge) for edge in properties["shape_before_cropping"])
    if given != expected:
        raise ValueError(
            f"{path} has the shape {given}, the image that was preprocessed had {expected} (axes as in the plans); "
            f"preprocess again with the label map that belongs to the image"
        )
    return seg


def boxes_in_image(
    seg: Array, ids: Sequence[int], components: bool, plans: Any, properties: Mapping[str, Any], shape: Sequence[int]
) -> list[Box]:
    """Finds the lesions of one label on the label map as it was given, and where they lie in the preprocessed image.

    Args:
        seg: What `read_label_map` returned.
        ids: Ids of the label.
        components: As for `lesion_boxes`.
        plans: nnU-Net's plans manager.
        properties: What the preprocessor noted of the case.
        shape: Of the preprocessed image, (Z, Y, X).

    Returns:
        Boxes in the preprocessed image, in the order of `lesion_boxes`.
    """
    boxes = lesion_boxes(seg, ids, components)
    return [preprocessed_box(box, plans.transpose_forward, properties, shape) for box in boxes]


def find_boxes(
    dataset: nnUNetBaseDataset,
    examples: Sequence[Example],
    plans: Any,
    dataset_json: Mapping[str, Any],
    base: Path,
) -> dict[str, Box]:
    """Finds the lesions of a table, once.

    What was found is kept in `lesions_FOLDER.json` beside the folder of preprocessed cases; a case whose label map or
    preprocessed files have changed since is looked at again.

    Args:
        dataset: nnU-Net's preprocessed dataset.
        examples: Examples with lesions.
        plans: nnU-Net's plans manager.
        dataset_json: The dataset's.
        base: The dataset's folder in nnUNet_preprocessed.

    Returns:
        Key of the example to its box in the preprocessed image.

    Raises:
        FileNotFoundError: The label map of a case is missing.
        ValueError: A lesion has no voxels, or a label map does not fit its image.
    """
    memory = base / f"lesions_{Path(dataset.source_folder).name}.json"
    known: dict[str, Any] = read_json(memory) if memory.is_file() else {}
    wanted: dict[str, set[tuple[str, bool]]] = {}
    for e in examples:
        wanted.setdefault(e.case, set()).add((e.lesion or "", e.component is not None))
    for case in tqdm(sorted(wanted), desc="Finding lesions", disable=len(wanted) < 100):
        _find_in_case(case, wanted[case], known, dataset, plans, dataset_json, base)
    write_json(memory, known)
    boxes_of, missing = {}, []
    for e in examples:
        boxes = known[_name(e.case, e.lesion or "", e.component is not None)]["boxes"]
        number = (e.component or 1) - 1
        if number < len(boxes):
            boxes_of[e.key] = tuple((int(low), int(high)) for low, high in boxes[number])
        else:
            missing.append(f"{e.key} (there are {len(boxes)})")
    if missing:
        raise ValueError(
            f"{len(missing)} rows of the classification's table are about lesions without voxels in the label maps: "
            f"{', '.join(missing[:_SHOWN])}; remove these rows, or correct the label maps and preprocess again, then "
            f"plan again"
        )
    return boxes_of


def _find_in_case(
    case: str,
    wanted: set[tuple[str, bool]],
    known: dict[str, Any],
    dataset: nnUNetBaseDataset,
    plans: Any,
    dataset_json: Mapping[str, Any],
    base: Path,
) -> None:
    """Puts the lesions of a case into what is known, unless they are there; its label map is read at most once."""
    label_map = base / LABEL_MAPS / f"{case}{dataset_json['file_ending']}"
    stamp = [_state(label_map), _state(Path(dataset.source_folder, f"{case}.pkl"))]
    seg = None
    for lesion, components in sorted(wanted):
        ids = ids_of(lesion, dataset_json)
        entry = {"changed": [*stamp, list(ids)]}
        name = _name(case, lesion, components)
        if known.get(name, {}).get("changed") == entry["changed"]:
            continue
        if seg is None:
            image, _, _, properties = dataset.load_case(case)
            seg = read_label_map(label_map, plans, properties)
        boxes = boxes_in_image(seg, ids, components, plans, properties, image.shape[1:])
        known[name] = {**entry, "boxes": boxes}


def _name(case: str, lesion: str, components: bool) -> str:
    return f"{case} {lesion} {'components' if components else 'whole'}"


def _state(path: Path) -> list[int]:
    """Returns size in bytes and time of last change in nanoseconds; nothing of a file that is not there."""
    return [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else []
