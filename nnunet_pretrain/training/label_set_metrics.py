"""Overlap, surface agreement and false-positive volume on partially labelled references.

What counts for which group is said in `nnunet_pretrain.training.case_metrics`; only decidable groups
(`LabelSetTable.decidable`) are counted.

Shapes: B samples, V voxels, T stored ids, C channels (background and structures), G groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nnunetv2.configuration import default_num_processes
from torch import Tensor

from nnunet_pretrain.conversion.engine import run_all
from nnunet_pretrain.labels import LabelSetTable
from nnunet_pretrain.training.case_metrics import CaseFiles, counts_per_id, evaluate_case
from nnunet_pretrain.training.label_sets import LabelSets

COUNTS = ("tp", "fp", "fn")
"""Names of what `hard_counts` returns, in its order."""

Counts = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]


def hard_counts_by_sample(sets: LabelSets, prediction_BV: Tensor, rows_BV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Counts voxels of a decided segmentation per sample and group.

    Args:
        sets: The dataset's label sets.
        prediction_BV: Predicted ids, shape (B, V).
        rows_BV: Encoded reference (`LabelSets.encode`), shape (B, V); a sample has one scheme.

    Returns:
        True positives, false positives and false negatives, each of shape (B, G), in double precision (single on
        Apple's GPUs). All 0 for groups that the sample's scheme cannot decide.
    """
    samples, channels = len(rows_BV), sets.member.shape[-1]
    schemes = rows_BV[:, 0].long() // sets.num_ids
    # Numbers each (sample, stored id, predicted id); a histogram is all that the rest needs.
    first_row = (torch.arange(samples, device=rows_BV.device) - schemes) * sets.num_ids
    pairs = (rows_BV.long() + first_row[:, None]) * channels + prediction_BV
    pairs = torch.bincount(pairs.flatten(), minlength=samples * sets.num_ids * channels)
    counts = counts_per_id(pairs.view(samples, sets.num_ids, channels), sets.member[schemes])
    # Single precision counts only to 2**24, and a CT has more voxels; Apple's GPUs have nothing better.
    dtype = torch.float32 if rows_BV.device.type == "mps" else torch.float64
    groups = sets.group_of_id[schemes]
    column = groups.where(groups >= 0, sets.num_groups)  # one column more takes the undecidable ids
    empty = torch.zeros(samples, sets.num_groups + 1, dtype=dtype, device=rows_BV.device)
    tp, fp, fn = (empty.scatter_add(1, column, values.to(dtype))[:, : sets.num_groups] for values in counts)
    return tp, fp, fn


def hard_counts(sets: LabelSets, prediction_BV: Tensor, rows_BV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Counts voxels of a decided segmentation per group.

    Args:
        sets: The dataset's label sets.
        prediction_BV: Predicted ids, shape (B, V).
        rows_BV: Encoded reference (`LabelSets.encode`), shape (B, V).

    Returns:
        True positives, false positives and false negatives per group, each of shape (G,).
    """
    tp, fp, fn = hard_counts_by_sample(sets, prediction_BV, rows_BV)
    return tp.sum(0), fp.sum(0), fn.sum(0)


def counts_of_case(sets: LabelSets, scheme: int, reference: npt.NDArray[Any], prediction: npt.NDArray[Any]) -> Counts:
    """Counts of one case from two label maps of equal shape; see `hard_counts`."""
    rows = sets.encode(torch.from_numpy(reference.astype(np.int64)).reshape(1, 1, -1), torch.tensor([scheme]))
    prediction_v = torch.from_numpy(prediction.astype(np.int64)).reshape(1, -1)
    tp, fp, fn = (counts.cpu().numpy() for counts in hard_counts(sets, prediction_v, rows[:, 0]))
    return tp, fp, fn


def evaluate_folder(
    table: LabelSetTable,
    cases: Iterable[str],
    references: Path,
    predictions: Path,
    file_ending: str,
    *,
    sources: Mapping[str, str] | None = None,
    num_processes: int = default_num_processes,
    nsd_tolerance_mm: float = 1.0,
    progress: str = "Evaluating",
) -> dict[str, Any]:
    """Evaluates predicted label maps on decidable groups only, cases in parallel.

    Args:
        table: The dataset's label sets.
        cases: Case names.
        references: Folder of the reference label maps, `<case><file_ending>`.
        predictions: Folder of the predicted ones.
        file_ending: File ending of both, of a format that nibabel reads.
        sources: Source of each case; without it the summary has no `per_source`.
        num_processes: Worker processes; 1 works in this one.
        nsd_tolerance_mm: Tolerance of the normalised surface Dice.
        progress: Text of the progress bar.

    Returns:
        A summary in the shape of nnU-Net's summary.json, with group names in place of ids: `foreground_mean`, `mean`
        per group, `metric_per_case`, and `per_source` with `cases`, `foreground_mean` and `mean` of each source. A
        group has Dice, IoU and NSD (0 to 1), FP_ml (volume of false positives in ml), and the voxel counts TP, FP,
        FN, n_pred and n_ref. If a group is absent from reference and prediction, Dice, IoU and NSD are NaN and do
        not enter the mean; if it is absent from one of them, they are 0. FP_ml is a number for every case whose
        scheme decides the group, and its mean is over all of these.

    Raises:
        FileNotFoundError: A label map is missing.
        ValueError: A case has no scheme or no source, a file cannot be read or holds ids outside the dataset's, or
            reference and prediction do not lie on the same grid.
    """
    per_case = evaluate_cases(
        table,
        cases,
        references,
        predictions,
        file_ending,
        sources=sources,
        num_processes=num_processes,
        nsd_tolerance_mm=nsd_tolerance_mm,
        progress=progress,
    )
    return summary_of(per_case, table.groups, nsd_tolerance_mm)


def evaluate_cases(
    table: LabelSetTable,
    cases: Iterable[str],
    references: Path,
    predictions: Path,
    file_ending: str,
    *,
    sources: Mapping[str, str] | None,
    num_processes: int,
    nsd_tolerance_mm: float,
    progress: str,
) -> list[dict[str, Any]]:
    """Returns the entries `metric_per_case` of `evaluate_folder`, whose arguments it takes."""
    names = list(cases)
    schemes = table.scheme_indices(names).tolist()
    if missing := [name for name in names if sources is not None and name not in sources]:
        raise ValueError(f"no source in dataset.json for {len(missing)} cases, the first is '{missing[0]}'")
    work = [
        CaseFiles(
            name=name,
            reference=_existing(Path(references) / f"{name}{file_ending}", "reference"),
            prediction=_existing(Path(predictions) / f"{name}{file_ending}", "prediction"),
            member=table.member[scheme],
            decided={i: table.groups[group] for i, group in enumerate(table.group_of_id[scheme]) if group >= 0},
            tolerance_mm=nsd_tolerance_mm,
        )
        for name, scheme in zip(names, schemes, strict=True)
    ]
    metrics = dict(run_all(evaluate_case, work, num_processes=num_processes, what=progress))
    return [
        {
            "reference_file": str(case.reference),
            "prediction_file": str(case.prediction),
            "case": case.name,
            **({"source": sources[case.name]} if sources is not None else {}),
            "scheme": table.schemes[scheme].name,
            "metrics": metrics[case.name],
        }
        for case, scheme in zip(work, schemes, strict=True)
    ]


def summary_of(per_case: Sequence[Mapping[str, Any]], groups: Sequence[str], nsd_tolerance_mm: float) -> dict[str, Any]:
    """Returns the summary `evaluate_folder` describes, of cases that are evaluated.

    Args:
        per_case: Entries of `evaluate_cases`.
        groups: All groups, in their order.
        nsd_tolerance_mm: Tolerance of the normalised surface Dice.
    """
    summary = {**_means(per_case, groups), "nsd_tolerance_mm": nsd_tolerance_mm}
    if per_case and all("source" in case for case in per_case):
        summary["per_source"] = _means_per_source(per_case, groups)
    return {**summary, "metric_per_case": list(per_case)}


def _existing(file: Path, what: str) -> Path:
    if not file.is_file():
        raise FileNotFoundError(f"the {what} {file} is missing; restore it and run the validation again")
    return file


def _means_per_source(per_case: Sequence[Mapping[str, Any]], groups: Sequence[str]) -> dict[str, Any]:
    by_source: dict[str, list[Mapping[str, Any]]] = {}
    for case in per_case:
        by_source.setdefault(case["source"], []).append(case)
    return {source: {"cases": len(own), **_means(own, groups)} for source, own in by_source.items()}


def _means(per_case: Sequence[Mapping[str, Any]], groups: Sequence[str]) -> dict[str, Any]:
    """Averages over the cases that decide a group, and then over groups."""
    rows = {group: [case["metrics"][group] for case in per_case if group in case["metrics"]] for group in groups}
    mean = {group: _mean(metrics) for group, metrics in rows.items() if metrics}
    return {"foreground_mean": _mean(list(mean.values())), "mean": mean}


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    means = {}
    for key in rows[0] if rows else {}:
        values = [row[key] for row in rows if not np.isnan(row[key])]
        means[key] = float(np.mean(values)) if values else float("nan")
    return means
