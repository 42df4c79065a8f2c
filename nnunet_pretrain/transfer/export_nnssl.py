"""Export with an adaptation plan as nnssl writes it, from which nnU-Net's own fine-tuning takes the encoder.

nnU-Net's `nnUNetv2_preprocess_like_nnssl` and `nnUNetv2_train_pretrained` are newer than 2.8.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nnunet_pretrain.checkpoints.card import channel_names
from nnunet_pretrain.checkpoints.portable import encoder_weights, portable
from nnunet_pretrain.files import written_atomically

# Class to (module with the stem, its first convolution under both names); see dynamic_network_architectures' unet.py.
_STEMS = {
    "PlainConvUNet": (
        "encoder.stages.0",
        ("encoder.stages.0.0.convs.0.conv", "encoder.stages.0.0.convs.0.all_modules.0"),
    ),
    "ResidualEncoderUNet": ("encoder.stem", ("encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0")),
}

_NNUNET = (
    "Isensee, F., Jaeger, P. F., Kohl, S. A., Petersen, J., & Maier-Hein, K. H. (2021). nnU-Net: a self-configuring "
    "method for deep learning-based biomedical image segmentation. Nature Methods, 18(2), 203-211."
)
_KEPT_PLANS = (
    "dataset_name",
    "plans_name",
    "original_median_spacing_after_transp",
    "image_reader_writer",
    "transpose_forward",
    "transpose_backward",
    "experiment_planner_used",
)


def write_nnssl(output: Path, checkpoint: Mapping[str, Any], encoder_only: bool = False) -> list[str]:
    """Writes weights, adaptation plan and citations, in plain values that torch reads with `weights_only=True`.

    Args:
        output: The .pth file; replaced if it is there.
        checkpoint: A checkpoint in the form of nnU-Net v2.
        encoder_only: Whether to leave out decoder and heads, which nnU-Net does not take from such files anyway.

    Returns:
        Lines for the user.

    Raises:
        ValueError: The network is not one that nnssl's plans can name.
    """
    content = portable(checkpoint)
    plan = adaptation_plan(content)
    weights = encoder_weights(content) if encoder_only else content["network_weights"]
    absent = [f"{key}.weight" for key in plan["keys_to_in_proj"] if f"{key}.weight" not in weights]
    if absent:
        raise ValueError(f"the checkpoint lacks {absent}, which nnU-Net's fine-tuning looks for")
    written = {
        "network_weights": dict(weights),
        "nnssl_adaptation_plan": plan,
        "citations": citations(content["init_args"]["dataset_json"]),
    }
    with written_atomically(output) as temporary:
        torch.save(written, temporary)
    chosen = next(iter(plan["pretrain_plan"]["configurations"].values()))
    lines = ["nnU-Net takes encoder and stem from it; decoder and heads start anew there"]
    if "CTNormalization" in chosen["normalization_schemes"]:
        lines.append(
            "note: it was trained with CTNormalization; nnUNetv2_preprocess_like_nnssl always uses z-scores, so prefer "
            "nnUNetv2_plan_like_dynamic, which keeps the target's own normalisation"
        )
    return lines


def adaptation_plan(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nnssl's description of a pre-trained network: how to build it, and where its stem and encoder are.

    Args:
        checkpoint: A portable checkpoint.

    Raises:
        ValueError: The network is neither a PlainConvUNet nor a ResidualEncoderUNet, or its patch is unknown.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    arguments = checkpoint["init_args"]
    plans, configuration = arguments["plans"], arguments["configuration"]
    chosen = PlansManager(plans).get_configuration(configuration)
    name = chosen.network_arch_class_name.rpartition(".")[2]
    if name not in _STEMS:
        raise ValueError(f"nnssl's plans name {' or '.join(_STEMS)}, the checkpoint's network is {name}")
    if not chosen.patch_size:
        raise ValueError("nnssl's plans recommend a patch, which the checkpoint does not know; export as .safetensors")
    stem, projections = _STEMS[name]
    keep = ("spacing", "patch_size", "normalization_schemes", "use_mask_for_norm", "data_identifier")
    kept = {key: chosen.configuration.get(key) for key in (*keep, "preprocessor_name")}
    return {
        "architecture_plans": {
            "arch_class_name": name,
            "arch_kwargs": dict(chosen.network_arch_init_kwargs),
            "arch_kwargs_requiring_import": list(chosen.network_arch_init_kwargs_req_import),
        },
        "pretrain_plan": {
            **{key: plans.get(key) for key in _KEPT_PLANS},
            "configurations": {configuration: kept},
        },
        "pretrain_num_input_channels": len(channel_names(arguments["dataset_json"])),
        "recommended_downstream_patchsize": list(chosen.patch_size),
        "key_to_encoder": "encoder.stages",
        "key_to_stem": stem,
        "keys_to_in_proj": projections,
        "key_to_lpe": None,
    }


def citations(dataset_json: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns what to cite, as nnU-Net prints it at the start of a fine-tuning."""
    datasets = [
        {"type": "Pretraining Dataset", "name": str(source["name"]), "apa_citations": [str(source["citation"])]}
        for source in dataset_json.get("sources", ())
        if source.get("citation")
    ]
    return [{"type": "Framework", "name": "nnU-Net", "apa_citations": [_NNUNET]}, *datasets]
