"""Plans for a target: how much of them is the checkpoint's, and how much the target's own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnunet_pretrain.checkpoints.card import channel_names
from nnunet_pretrain.checkpoints.natural_images import natural_images_of
from nnunet_pretrain.networks.planned import PLANNED_NETWORKS, total_stride
from nnunet_pretrain.planning.existing_plans import ExistingPlans, resolved
from nnunet_pretrain.planning.plan import planned_by_preset
from nnunet_pretrain.planning.preset import Preset
from nnunet_pretrain.planning.settings import SETTINGS_KEY
from nnunet_pretrain.transfer.memory import MIN_BATCH
from nnunet_pretrain.transfer.options import Keep

RESIDUAL_PLANNER = "nnUNetPlannerResEncM"
_RELATIONS = ("inherits_from", "next_stage")
"""What a configuration says of others, which these plans do not have."""

_PER_STAGE = ("features_per_stage", "n_conv_per_stage", "n_blocks_per_stage")


def target_plans(
    name: str,
    checkpoint: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
    keep: Keep,
    preset: Preset,
    plans_name: str,
    existing: ExistingPlans | None = None,
) -> dict[str, Any]:
    """Makes the plans of a transfer.

    Args:
        name: Target dataset, whose fingerprint is extracted.
        checkpoint: Checkpoint in nnU-Net v2's form.
        dataset_json: The target's.
        fingerprint: The target's.
        keep: `pretrained` takes network, spacing, patch, batch and intensities of known channels from the checkpoint.
            `target` lets nnU-Net plan the target, and takes from the checkpoint what decides the widths and blocks of
            the network.
        preset: Recipe for `target`.
        plans_name: Name of the plans.
        existing: For `target`, plans to take instead of letting nnU-Net plan.

    Returns:
        Plans with one configuration, the checkpoint's. Images are read as those of the pre-training were, so that
        patients lie the same way round; with existing plans, and after natural images, as the target's plans say.

    Raises:
        ValueError: The checkpoint does not say what is to be kept, or nnU-Net plans no such configuration.
    """
    source = checkpoint["init_args"]["plans"]
    configuration = checkpoint["init_args"]["configuration"]
    chosen = resolved(source, configuration)
    reader = source.get("image_reader_writer")
    if keep == "pretrained":
        plans = _as_pretrained(name, source, chosen, dataset_json, fingerprint)
    elif existing is None:
        plans = planned_by_preset(name, _with_planner(preset, chosen), plans_name)
        if configuration not in plans["configurations"]:
            raise ValueError(
                f"nnU-Net plans {list(plans['configurations'])} for {name}, but the checkpoint was trained with "
                f"{configuration}; plan with --keep pretrained"
            )
        chosen = _as_target(resolved(plans, configuration), chosen)
    else:
        plans = {key: copy.deepcopy(value) for key, value in existing.plans.items() if key != SETTINGS_KEY}
        planned = {key: value for key, value in existing.chosen.items() if key not in _RELATIONS}
        chosen = _as_target(copy.deepcopy(planned), chosen)
    if existing is not None or natural_images_of(checkpoint) is not None:
        reader = plans["image_reader_writer"]
    chosen["data_identifier"] = f"{plans_name}_{configuration}"
    return {
        **plans,
        "dataset_name": name,
        "plans_name": plans_name,
        "image_reader_writer": reader_for(reader, dataset_json),
        "configurations": {configuration: chosen},
    }


def _as_pretrained(
    name: str,
    source: Mapping[str, Any],
    chosen: dict[str, Any],
    dataset_json: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
) -> dict[str, Any]:
    if chosen.get("spacing") is None or chosen.get("patch_size") is None:
        raise ValueError(
            "the checkpoint does not say at which spacing or patch it was trained, so they cannot be kept; "
            "plan with --keep target"
        )
    chosen["batch_size"] = chosen["batch_size"] or MIN_BATCH
    forward = source["transpose_forward"] or [0, 1, 2]
    plans = {key: copy.deepcopy(value) for key, value in source.items() if key != SETTINGS_KEY}
    return {
        **plans,
        "transpose_forward": forward,
        "transpose_backward": source["transpose_backward"] or [0, 1, 2],
        "original_median_spacing_after_transp": np.median(fingerprint["spacings"], 0)[forward].tolist(),
        "original_median_shape_after_transp": [
            round(size) for size in np.median(fingerprint["shapes_after_crop"], 0)[forward].tolist()
        ],
        "configurations": {},
    }


def keep_intensities(
    plans: dict[str, Any],
    configuration: str,
    pretrained: tuple[str, ...],
    dataset_json: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
) -> list[str]:
    """Gives every target channel the checkpoint's normalisation if it had a channel of that name, in place.

    Other channels get nnU-Net's scheme for their name and the target's own intensities. A single channel is taken to
    be the checkpoint's single channel whatever it is called.

    Returns:
        What the user should know.
    """
    from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

    target = channel_names(dataset_json)
    chosen = plans["configurations"][configuration]
    known = {channel.lower(): i for i, channel in enumerate(pretrained)}
    if len(target) == len(pretrained) == 1:
        known[target[0].lower()] = 0
    if chosen["normalization_schemes"] is None:
        known = {}
    schemes, masks, properties, notes = [], [], {}, []
    old = plans["foreground_intensity_properties_per_channel"]
    for i, channel in enumerate(target):
        place = known.get(channel.lower())
        if place is None:
            schemes.append(get_normalization_scheme(channel).__name__)
            masks.append(False)
            properties[str(i)] = fingerprint["foreground_intensity_properties_per_channel"][str(i)]
            notes.append(
                f"channel '{channel}' is unknown to the checkpoint, it is normalised by the target's own numbers"
            )
        else:
            schemes.append(chosen["normalization_schemes"][place])
            masks.append((chosen["use_mask_for_norm"] or [False] * len(pretrained))[place])
            properties[str(i)] = old[str(place)]
            if channel.lower() != pretrained[place].lower():
                notes.append(f"channel '{channel}' is taken to be '{pretrained[place]}', and normalised as that")
    chosen["normalization_schemes"], chosen["use_mask_for_norm"] = schemes, masks
    plans["foreground_intensity_properties_per_channel"] = properties
    return notes


def _with_planner(preset: Preset, chosen: Mapping[str, Any]) -> Preset:
    """Returns the preset without spacing and window, and with a planner for the checkpoint's kind of network."""
    residual = chosen["architecture"]["network_class_name"].endswith("ResidualEncoderUNet")
    planner = preset.planner
    if residual != ("ResEnc" in planner):
        planner = RESIDUAL_PLANNER if residual else "ExperimentPlanner"
    return preset.model_copy(update={"planner": planner, "architecture": None, "spacing_mm": None, "window_hu": None})


def _as_target(planned: dict[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Puts the checkpoint's network into the target's configuration, with the target's depth, strides and kernels."""
    kept = copy.deepcopy(chosen["architecture"])
    old, new = kept["arch_kwargs"], planned["architecture"]["arch_kwargs"]
    if not kept["network_class_name"].endswith(
        PLANNED_NETWORKS
    ):  # a network nnU-Net cannot plan keeps its shape and patch
        return {
            **planned,
            "architecture": kept,
            "patch_size": chosen["patch_size"] or _divisible(planned["patch_size"], old["strides"]),
            "batch_size": chosen["batch_size"] or planned["batch_size"],
        }
    stages = int(new["n_stages"])
    for key in _PER_STAGE:
        if key in old:
            old[key] = _fitted(old[key], stages)
    old["n_conv_per_stage_decoder"] = _fitted(old["n_conv_per_stage_decoder"], stages - 1)
    old.update(n_stages=stages, strides=new["strides"], kernel_sizes=new["kernel_sizes"])
    return {**planned, "architecture": kept}


def _divisible(patch_size: Sequence[int], strides: Sequence[Sequence[int]]) -> list[int]:
    """Returns a patch with every edge rounded up to what the network's strides divide."""
    return [-(-int(edge) // by) * by for edge, by in zip(patch_size, total_stride(strides), strict=True)]


def _fitted(per_stage: Any, length: int) -> list[int]:
    values = list(per_stage) if isinstance(per_stage, (list, tuple)) else [per_stage]
    return [*values, *[values[-1]] * length][:length]


def reader_for(pretrained_reader: str | None, dataset_json: Mapping[str, Any]) -> str:
    """Returns the reader for the target: the checkpoint's, so that patients lie the same way round.

    A network that learned on images turned to RAS would otherwise see the target in whatever orientation it is stored.
    """
    from nnunetv2.imageio.reader_writer_registry import (
        determine_reader_writer_from_dataset_json,
        recursive_find_reader_writer_by_name,
    )

    if not pretrained_reader:
        return str(determine_reader_writer_from_dataset_json(dict(dataset_json), verbose=False).__name__)
    reader = recursive_find_reader_writer_by_name(pretrained_reader)
    if dataset_json["file_ending"].lower() in reader.supported_file_endings:
        return pretrained_reader
    return str(determine_reader_writer_from_dataset_json(dict(dataset_json), verbose=False).__name__)
