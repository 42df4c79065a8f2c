"""The form in which nnU-Net v2 writes checkpoints, made of what a foreign file says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from nnunet_pretrain.checkpoints.foreign.file import ForeignFile
from nnunet_pretrain.checkpoints.reading import EXTRAS_KEY
from nnunet_pretrain.networks.adapter import PREFIX, AdaptedNetwork

Labels = Mapping[str, int | list[int]]


@dataclass
class Training:
    """What a foreign file, or its documentation, says of how it was made. None is unknown.

    Attributes:
        spacing: Voxel spacing in mm, in the plans' axis order.
        patch_size: Patch in voxels, in the same order.
        batch_size: Patches per step.
        normalization: nnU-Net v2's normalisation scheme of each channel.
        use_mask: For each channel, whether it was normalised inside the body only.
        intensity: Channel number to the intensity statistics; only CTNormalization needs them.
        transpose_forward: nnU-Net's order of the image's axes.
        channels: Channel names.
        labels: Label names and ids, or regions; None names them class_1, class_2, ...
        regions_class_order: For regions, the id written for each output.
        sigmoid: Whether the outputs are independent; only used if there are no labels.
        reader: nnU-Net's image reader, which decides the orientation.
        dataset: Name of the dataset.
        plans: Name of the plans.
        mirror_axes: Axes mirrored in training, or None.
        sources: Name and citation of what it was trained on, as `merge` writes them.
    """

    spacing: Sequence[float] | None = None
    patch_size: Sequence[int] | None = None
    batch_size: int | None = None
    normalization: Sequence[str] | None = None
    use_mask: Sequence[bool] | None = None
    intensity: Mapping[str, Mapping[str, float]] | None = None
    transpose_forward: Sequence[int] | None = None
    channels: Sequence[str] | None = None
    labels: Labels | None = None
    regions_class_order: Sequence[int] | None = None
    sigmoid: bool = False
    reader: str = "SimpleITKIO"
    dataset: str = "unknown"
    plans: str = "unknown"
    mirror_axes: tuple[int, ...] | None = None
    sources: Sequence[Mapping[str, Any]] = ()


@dataclass
class Origin:
    """What became of a foreign file.

    Attributes:
        format: Name of the format for people.
        notes: What the user should know.
        unmapped: Name of a tensor in the file (or of one of its rows) to the reason why it was left out.
        unknown: What the file does not say.
    """

    format: str
    notes: list[str] = field(default_factory=list)
    unmapped: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    def leave_out(self, file: ForeignFile, renamed: Mapping[str, Any], reason: str) -> None:
        """Records every tensor of the file that was not renamed and not recorded yet."""
        for name, original in file.names.items():
            if name not in renamed:
                self.unmapped.setdefault(original, reason)

    def as_dict(self) -> dict[str, Any]:
        """Returns the record as it is kept under `init_args["nnunet_pretrain"]["origin"]`."""
        return {
            "format": self.format,
            "notes": list(self.notes),
            "unmapped": dict(self.unmapped),
            "unknown": list(self.unknown),
        }


def architecture(path: str, imported: Sequence[str] = (), **arguments: Any) -> dict[str, Any]:
    """Returns the plans' entry for a network."""
    return {"network_class_name": path, "arch_kwargs": arguments, "_kw_requires_import": list(imported)}


def adapted(
    network: str, arguments: Mapping[str, Any], stages: int, axis_order: Sequence[int] | None
) -> dict[str, Any]:
    """Returns the plans' entry for a network of another class that halves the image at every stage but the first."""
    return architecture(
        f"{AdaptedNetwork.__module__}.{AdaptedNetwork.__qualname__}",
        network=network,
        input_argument="in_channels",
        output_argument="out_channels",
        arguments=dict(arguments),
        imported_arguments=[],
        strides=[[1, 1, 1], *[[2, 2, 2] for _ in range(stages - 1)]],
        axis_order=None if axis_order is None else list(axis_order),
    )


def behind_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns weights under the names they have in an `AdaptedNetwork`."""
    return {f"{PREFIX}{name}": tensor for name, tensor in weights.items()}


def checkpoint(
    file: ForeignFile,
    origin: Origin,
    network: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    sizes: tuple[int, int],
    training: Training,
) -> dict[str, Any]:
    """Makes the checkpoint nnU-Net v2 would have written.

    Args:
        file: The foreign file.
        origin: What became of it; what is unknown is added.
        network: The plans' entry for the network.
        weights: Tensors under the network's names.
        sizes: Input and output channels.
        training: What is known of the training.
    """
    inputs, outputs = sizes
    if training.intensity is None and training.normalization and "CTNormalization" not in training.normalization:
        training = replace(training, intensity={str(i): {} for i in range(inputs)})
    labels, order = _labels(training, outputs)
    dimension = _dimension(weights)
    configuration = "2d" if dimension == 2 else "3d_fullres"
    origin.unknown += _unknown(training)
    dataset_json: dict[str, Any] = {
        "channel_names": {str(i): name for i, name in enumerate(training.channels or _numbered("channel", inputs))},
        "labels": dict(labels),
        "file_ending": ".nii.gz",
    }
    if order is not None:
        dataset_json["regions_class_order"] = list(order)
    if training.sources:
        dataset_json["sources"] = [dict(source) for source in training.sources]
    return {
        "network_weights": dict(weights),
        "init_args": {
            "plans": _plans(network, training, configuration),
            "configuration": configuration,
            "fold": "all",
            "dataset_json": dataset_json,
            "device": torch.device("cpu"),
            EXTRAS_KEY: {"origin": origin.as_dict()},
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": training.mirror_axes,
        "current_epoch": file.epoch(),
    }


def _numbered(word: str, count: int, first: int = 0) -> list[str]:
    return [f"{word}_{i}" for i in range(first, first + count)]


def _labels(training: Training, outputs: int) -> tuple[Labels, Sequence[int] | None]:
    if training.labels is not None:
        return training.labels, training.regions_class_order
    if not training.sigmoid:
        return {"background": 0} | {name: i for i, name in enumerate(_numbered("class", outputs - 1, 1), 1)}, None
    # nnU-Net takes labels for regions when one of them is a list of two; [1, 1] is the region of id 1.
    regions: dict[str, int | list[int]] = {"background": 0}
    regions |= {name: [i, i] if i == 1 else i for i, name in enumerate(_numbered("class", outputs, 1), 1)}
    return regions, list(range(1, outputs + 1))


def _dimension(weights: Mapping[str, Tensor]) -> int:
    return max(2, max(tensor.ndim for tensor in weights.values()) - 2)


def _unknown(training: Training) -> list[str]:
    facts = {
        "spacing": training.spacing,
        "patch_size": training.patch_size,
        "batch_size": training.batch_size,
        "normalization": training.normalization,
        "intensity": training.intensity,
        "transpose": training.transpose_forward,
        "channels": training.channels,
        "labels": training.labels,
    }
    return [name for name, value in facts.items() if value is None]


def _plans(network: Mapping[str, Any], training: Training, configuration: str) -> dict[str, Any]:
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    forward = training.transpose_forward
    masks = training.use_mask
    if masks is None and training.normalization is not None:
        masks = [False] * len(training.normalization)
    return {
        "dataset_name": training.dataset,
        "plans_name": training.plans,
        "original_median_spacing_after_transp": _listed(training.spacing),
        "original_median_shape_after_transp": None,
        "image_reader_writer": training.reader,
        "transpose_forward": _listed(forward),
        "transpose_backward": None if forward is None else [list(forward).index(i) for i in range(len(forward))],
        "configurations": {
            configuration: {
                "data_identifier": f"{training.plans}_{configuration}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": training.batch_size,
                "patch_size": _listed(training.patch_size),
                "median_image_size_in_voxels": None,
                "spacing": _listed(training.spacing),
                "normalization_schemes": _listed(training.normalization),
                "use_mask_for_norm": _listed(masks),
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": resampling,
                "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
                "architecture": dict(network),
                "batch_dice": False,
            }
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": training.intensity,
    }


def _listed(values: Sequence[Any] | None) -> list[Any] | None:
    return None if values is None else list(values)
