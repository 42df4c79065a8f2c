"""Scores of one predicted case: overlap, surface agreement, and structures seen where there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_pretrain.training.surface_distance import surface_dice

LabelMap = npt.NDArray[np.integer[Any]]
Score = dict[str, float | bool | None]


@dataclass(frozen=True)
class Outputs:
    """What is scored.

    Attributes:
        ids: Output (label or region) to the ids it unites.
        ignore: Id of voxels that are left out, or None.
    """

    ids: Mapping[str, tuple[int, ...]]
    ignore: int | None


def outputs_of(dataset_json: Mapping[str, Any]) -> Outputs:
    """Returns a dataset's outputs: its labels or regions, without background and `ignore`."""
    ids = {
        name: tuple(int(i) for i in (value if isinstance(value, (list, tuple)) else [value]))
        for name, value in dataset_json["labels"].items()
        if name != "ignore"
    }
    foreground = {name: members for name, members in ids.items() if set(members) != {0}}
    return Outputs(foreground, dataset_json["labels"].get("ignore"))


def score_case(
    reference: LabelMap, prediction: LabelMap, spacing_mm: Sequence[float], outputs: Outputs, nsd_mm: float
) -> dict[str, Score]:
    """Scores one case.

    Args:
        reference: Reference label map, shape (X, Y, Z).
        prediction: Predicted label map of the same shape.
        spacing_mm: Voxel size along each axis.
        outputs: What is scored.
        nsd_mm: Tolerance of the surface Dice in mm.

    Returns:
        For each output `Dice` and `NSD` (0 to 1; None if reference and prediction are empty, 0 if one is),
        `reference_ml`, `FP_ml` (volume predicted outside the reference) and `false_positive`: whether anything is
        predicted in a case without the structure, None in a case that has it. Ignored voxels count nowhere.

    Raises:
        ValueError: The shapes differ.
    """
    if reference.shape != prediction.shape:
        raise ValueError(f"reference and prediction have shapes {reference.shape} and {prediction.shape}")
    ignored = None if outputs.ignore is None else reference == outputs.ignore
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    scores: dict[str, Score] = {}
    for name, ids in outputs.ids.items():
        truth, found = np.isin(reference, ids), np.isin(prediction, ids)
        if ignored is not None:
            truth, found = truth & ~ignored, found & ~ignored
        volume, wrong = int(truth.sum()), int((found & ~truth).sum())
        total = volume + int(found.sum())
        nsd = surface_dice(truth, found, spacing_mm, nsd_mm, ignored)
        scores[name] = {
            "Dice": 2 * int((truth & found).sum()) / total if total else None,
            "NSD": nsd if np.isfinite(nsd) else None,
            "reference_ml": volume * voxel_ml,
            "FP_ml": wrong * voxel_ml,
            "false_positive": wrong > 0 if volume == 0 else None,
        }
    return scores


@dataclass(frozen=True)
class CaseToScore:
    """One case with all that another process needs to score it.

    Attributes:
        name: Case name.
        reference: File of the reference label map.
        prediction: File of the predicted one.
        outputs: What is scored.
        nsd_mm: Tolerance of the surface Dice in mm.
        reader: Name of nnU-Net's reader for both files.
    """

    name: str
    reference: Path
    prediction: Path
    outputs: Outputs
    nsd_mm: float
    reader: str


def score_files(case: CaseToScore) -> tuple[str, dict[str, Score]]:
    """Returns the case's name and its scores (`score_case`).

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The two have different shapes.
    """
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    for what, path in (("reference", case.reference), ("prediction", case.prediction)):
        if not path.is_file():
            raise FileNotFoundError(f"the {what} {path} is missing; restore it and run the study again")
    reader = recursive_find_reader_writer_by_name(case.reader)()
    reference, properties = reader.read_seg(str(case.reference))
    prediction, _ = reader.read_seg(str(case.prediction))
    spacing = [float(size) for size in properties["spacing"]]
    try:
        return case.name, score_case(reference[0], prediction[0], spacing, case.outputs, case.nsd_mm)
    except ValueError as error:
        raise ValueError(f"case {case.name}: {error}; look at {case.reference} and {case.prediction}") from None
