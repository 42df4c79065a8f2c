"""What nnU-Net v1's plans say, in the words of v2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from nnunet_pretrain.checkpoints.foreign.v2_form import Labels, Training
from nnunet_pretrain.checkpoints.unpickling import shown

_SCHEMES = {
    "CT": "CTNormalization",
    "CT2": "ZScoreNormalization",
    "nonCT": "ZScoreNormalization",
    "noNorm": "NoNormalization",
}
_STATISTICS = {
    "max": "mx",
    "mean": "mean",
    "median": "median",
    "min": "mn",
    "percentile_00_5": "percentile_00_5",
    "percentile_99_5": "percentile_99_5",
    "std": "sd",
}
_STAGE_ARGUMENT = 5
"""Position of the stage among the arguments of v1's trainers, which the sidecar keeps under "init"."""


def training_of(sidecar: Any, outputs: int, dimension: int, notes: list[str]) -> Training:
    """Reads the `.pkl` that nnU-Net v1 writes beside a checkpoint.

    Args:
        sidecar: Its content, or None if there is none.
        outputs: Output channels of the network.
        dimension: 2 or 3.
        notes: What the user should know is added here.

    Returns:
        What is known; everything else is None.
    """
    plans = sidecar.get("plans") if isinstance(sidecar, Mapping) else None
    if not isinstance(plans, Mapping):
        notes.append("no plans lie beside the file (its .pkl), so spacing, intensities and label names are unknown")
        return Training(dataset="unknown", plans="nnUNetV1Plans")
    trainer = str(sidecar.get("name", ""))
    if trainer:
        notes.append(f"trained by nnU-Net v1's {shown(trainer)}")
    labels, order = _labels(plans, outputs, notes)
    stage = _stage(sidecar, plans)
    patch_size = _numbers(stage.get("patch_size"))
    schemes = plans.get("normalization_schemes")
    modalities = plans.get("modalities") or plans.get("dataset_properties", {}).get("modalities")
    masks = plans.get("use_mask_for_norm")
    return Training(
        spacing=_last(_numbers(stage.get("current_spacing")), dimension),
        patch_size=_last(patch_size, dimension),
        batch_size=None if stage.get("batch_size") is None else int(stage["batch_size"]),
        normalization=None if schemes is None else _normalization(_values(schemes), notes),
        use_mask=None if masks is None else [bool(mask) for mask in _values(masks)],
        intensity=_intensity(plans),
        transpose_forward=_numbers(plans.get("transpose_forward")),
        channels=None if modalities is None else [str(name) for name in _values(modalities)],
        labels=labels,
        regions_class_order=order,
        sigmoid=_is_sigmoid(sidecar, plans, outputs),
        dataset=_dataset(sidecar),
        plans="nnUNetV1Plans",
        mirror_axes=None if "nomirror" in trainer.lower() else tuple(range(dimension)),
    )


def pools_of(sidecar: Any) -> list[list[int]] | None:
    """Returns the downsampling after each stage but the last, or None if there are no plans."""
    plans = sidecar.get("plans") if isinstance(sidecar, Mapping) else None
    pools = _stage(sidecar, plans).get("pool_op_kernel_sizes") if isinstance(plans, Mapping) else None
    return None if pools is None else [[int(p) for p in pool] for pool in pools]


def _stage(sidecar: Mapping[str, Any], plans: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the plans of the resolution the network was trained at."""
    stages = plans.get("plans_per_stage") or {}
    stages = dict(enumerate(stages)) if isinstance(stages, Sequence) else dict(stages)
    arguments = sidecar.get("init") or ()
    named = arguments[_STAGE_ARGUMENT] if len(arguments) > _STAGE_ARGUMENT else None
    if named in stages:
        return stages[named]
    return stages[max(stages)] if stages else {}


def _labels(plans: Mapping[str, Any], outputs: int, notes: list[str]) -> tuple[Labels | None, list[int] | None]:
    regions = plans.get("regions")
    if not isinstance(regions, Mapping) or len(regions) != outputs:
        return None, None
    notes.append("its outputs are independent sigmoids, one per region")
    labels: dict[str, int | list[int]] = {"background": 0}
    for name, ids in regions.items():
        listed = [int(i) for i in (ids if isinstance(ids, Sequence) else (ids,))]
        labels[str(name)] = listed if len(listed) > 1 else listed[0]
    if not any(isinstance(ids, list) for ids in labels.values()):
        first = next(name for name in labels if name != "background")
        labels[first] = [labels[first], labels[first]]  # type: ignore[list-item]
    return labels, [ids[0] if isinstance(ids, list) else ids for name, ids in labels.items() if name != "background"]


def _is_sigmoid(sidecar: Mapping[str, Any], plans: Mapping[str, Any], outputs: int) -> bool:
    """Says whether the outputs are regions: v1's softmax has one output more than there are classes."""
    classes = plans.get("all_classes")
    return "multitalent" in str(sidecar.get("name", "")).lower() or (classes is not None and len(classes) == outputs)


def _normalization(schemes: Sequence[Any], notes: list[str]) -> list[str]:
    if "CT2" in schemes:
        notes.append("v1's scheme CT2 clips before the z-score of each image; v2 has none that clips: ZScore was taken")
    unknown = [str(scheme) for scheme in schemes if scheme not in _SCHEMES]
    if unknown:
        notes.append(f"unknown normalisation {shown(', '.join(unknown))}: ZScoreNormalization was taken")
    return [_SCHEMES.get(str(scheme), "ZScoreNormalization") for scheme in schemes]


def _intensity(plans: Mapping[str, Any]) -> dict[str, dict[str, float]] | None:
    found = plans.get("dataset_properties", {}).get("intensityproperties")
    if not isinstance(found, Mapping):
        return None
    return {
        str(channel): {new: float(values[old]) for new, old in _STATISTICS.items() if values.get(old) is not None}
        for channel, values in found.items()
        if isinstance(values, Mapping)
    }


def _dataset(sidecar: Mapping[str, Any]) -> str:
    """Returns the task's name, which is in the folder of the preprocessed data."""
    for argument in sidecar.get("init") or ():
        for part in PurePath(str(argument).replace("\\", "/")).parts:
            if part.startswith("Task"):
                return part
    return "unknown"


def _values(content: Any) -> list[Any]:
    """Returns the values of a list or of a dictionary by channel."""
    return [content[key] for key in sorted(content)] if isinstance(content, Mapping) else list(content)


def _numbers(values: Any) -> list[Any] | None:
    return None if values is None else np.asarray(values).tolist()


def _last(values: list[Any] | None, dimension: int) -> list[Any] | None:
    return None if values is None else values[-dimension:]
