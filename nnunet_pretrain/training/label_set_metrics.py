"""Overlap of a segmentation with partially labelled references, by the same rule as the label-set loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nnunet_pretrain.labels import LabelSetTable
from nnunet_pretrain.training.label_set_loss import LabelSets

Counts = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]


def hard_counts(sets: LabelSets, prediction_BV: Tensor, rows_BV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Counts voxels of a decided segmentation per group.

    Args:
        sets: The dataset's label sets.
        prediction_BV: Predicted ids, shape (B, V).
        rows_BV: Encoded reference (`LabelSets.encode`), shape (B, V).

    Returns:
        True positives, false positives and false negatives per group, each of shape (G,). A prediction inside the
        voxel's own label set is right; any other is a false positive of every group it belongs to. So a structure
        the source does not annotate is never a false positive on background.
    """
    # Single precision counts only to 2**24, and a CT has more voxels; Apple's GPUs have nothing better.
    dtype = torch.float32 if rows_BV.device.type == "mps" else torch.float64
    inside = sets.member.flatten(0, 1)[rows_BV, prediction_BV]
    wrong = torch.zeros(len(rows_BV), sets.member.shape[-1], dtype=dtype, device=rows_BV.device)
    wrong.scatter_add_(1, prediction_BV, (~inside).to(dtype))
    hit, false_positive, count, schemes = sets.overlap_sums(inside.to(dtype), wrong, rows_BV)
    return (
        sets.per_group(hit, schemes),
        sets.per_group(false_positive, schemes),
        sets.per_group(count - hit, schemes),
    )


def counts_of_case(sets: LabelSets, scheme: int, reference: npt.NDArray[Any], prediction: npt.NDArray[Any]) -> Counts:
    """Counts of one case from two label maps of equal shape; see `hard_counts`."""
    rows = sets.encode(torch.from_numpy(reference.astype(np.int64)).reshape(1, 1, -1), torch.tensor([scheme]))
    prediction_v = torch.from_numpy(prediction.astype(np.int64)).reshape(1, -1)
    tp, fp, fn = (counts.cpu().numpy() for counts in hard_counts(sets, prediction_v, rows[:, 0]))
    return tp, fp, fn


def evaluate_folder(
    table: LabelSetTable, cases: Iterable[str], references: Path, predictions: Path, file_ending: str
) -> dict[str, Any]:
    """Evaluates predicted label maps on decidable groups only.

    Args:
        table: The dataset's label sets.
        cases: Case names.
        references: Folder of the reference label maps, `<case><file_ending>`.
        predictions: Folder of the predicted ones.
        file_ending: File ending of both.

    Returns:
        A summary in the shape of nnU-Net's summary.json, with group names in place of ids. A group that is absent
        from reference and prediction has Dice NaN and does not enter the mean.
    """
    sets = LabelSets(table)
    per_case: list[dict[str, Any]] = []
    for case in cases:
        files = references / f"{case}{file_ending}", predictions / f"{case}{file_ending}"
        reference, prediction = (np.asanyarray(nib.load(file).dataobj) for file in files)
        scheme = table.scheme_of_case[case]
        counts = counts_of_case(sets, scheme, reference, prediction)
        decided = set(table.group_of_id[scheme].tolist()) - {-1}
        metrics = {
            group: _metrics(*(float(values[i]) for values in counts))
            for i, group in enumerate(table.groups)
            if i in decided
        }
        per_case.append(
            {
                "reference_file": str(files[0]),
                "prediction_file": str(files[1]),
                "scheme": table.schemes[scheme].name,
                "metrics": metrics,
            }
        )
    mean = {
        group: _mean(case["metrics"][group] for case in per_case if group in case["metrics"]) for group in table.groups
    }
    mean = {group: metrics for group, metrics in mean.items() if metrics}
    return {"foreground_mean": _mean(mean.values()), "mean": mean, "metric_per_case": per_case}


def _metrics(tp: float, fp: float, fn: float) -> dict[str, float]:
    union = tp + fp + fn
    return {
        "Dice": 2 * tp / (tp + union) if union else float("nan"),
        "IoU": tp / union if union else float("nan"),
        "TP": tp,
        "FP": fp,
        "FN": fn,
        "n_pred": tp + fp,
        "n_ref": tp + fn,
    }


def _mean(metrics: Iterable[Mapping[str, float]]) -> dict[str, float]:
    rows = list(metrics)
    means = {}
    for key in rows[0] if rows else {}:
        values = [row[key] for row in rows if not np.isnan(row[key])]
        means[key] = float(np.mean(values)) if values else float("nan")
    return means
