"""SuPreM (Li et al., ICLR 2024): SegResNet, Swin UNETR and a U-Net, pre-trained on AbdomenAtlas."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nnunet_pretrain.checkpoints.foreign.file import ForeignFile
from nnunet_pretrain.checkpoints.foreign.genesis import check_unet, unet_architecture
from nnunet_pretrain.checkpoints.foreign.key_table import KeyTable
from nnunet_pretrain.checkpoints.foreign.v2_form import Origin, Training, adapted, checkpoint
from nnunet_pretrain.labels.structures import ABDOMEN_ATLAS_STRUCTURES, PART_OF
from nnunet_pretrain.networks.adapter import PREFIX

FORMAT = "SuPreM"

SEGRESNET = KeyTable(
    [
        (f"{part}.{{rest}}", f"{PREFIX}{part}.{{rest}}")
        for part in ("convInit", "down_layers", "up_layers", "up_samples", "conv_final")
    ]
)
"""SuPreM's SegResNet is MONAI's."""

BACKBONE = KeyTable([("backbone.{rest}", f"{PREFIX}{{rest}}")])
"""Its Swin UNETR and U-Net lie behind the same prefix as networks in `AdaptedNetwork`."""

TEMPLATE = (
    *("spleen", "kidney_right", "kidney_left", "gall_bladder", "esophagus", "liver", "stomach", "aorta", "postcava"),
    *("portal_vein_and_splenic_vein", "pancreas", "adrenal_gland_right", "adrenal_gland_left", "duodenum"),
    *("hepatic_vessel", "lung_right", "lung_left", "colon", "intestine", "rectum", "bladder", "prostate"),
    *("femur_left", "femur_right", "celiac_trunk", "kidney_tumor", "liver_tumor", "pancreas_tumor"),
    *("hepatic_vessel_tumor", "lung_tumor", "colon_tumor", "kidney_cyst"),
)
"""Structure of each output of the released checkpoints, under our names."""

_WINDOW = {"percentile_00_5": -175.0, "percentile_99_5": 250.0, "mean": -175.0, "std": 425.0}
"""With these CTNormalization makes -175 to 250 HU to 0 to 1."""

_LIES_IN = {**PART_OF, "hepatic_vessel_tumor": ("liver",)}


def recognises(file: ForeignFile) -> bool:
    """Says whether the file is one of SuPreM's: a state dict under "net" with one of its three networks."""
    return file.key == "net" and _network_of(file) is not None


def _network_of(file: ForeignFile) -> str | None:
    patterns = {
        "SegResNet": r"convInit\.conv\.weight",
        "SwinUNETR": r"backbone\.swinViT\.patch_embed\.proj\.weight",
        "GenesisUNet": r"backbone\.down_tr64\.ops\.0\.conv1\.weight",
    }
    return next((name for name, pattern in patterns.items() if file.has(pattern)), None)


def convert(file: ForeignFile) -> dict[str, Any]:
    """Converts a SuPreM checkpoint to its network behind `AdaptedNetwork`.

    The networks saw arrays in x, y, z, and SwinUNETR's patch merging has no exact transposition, so the weights stay
    as they are and the plans carry the axis order.
    """
    name = _network_of(file)
    origin = Origin(f"{FORMAT} ({name})")
    table = SEGRESNET if name == "SegResNet" else BACKBONE
    renamed = table.to_v2(file.weights)
    head = "belongs to the text-conditioned head, which is no segmentation layer"
    origin.leave_out(file, renamed, f"{name} has no such tensor" if name == "SegResNet" else head)
    weights = {v2: file.weights[original] for original, v2 in renamed.items()}
    make = {"SegResNet": _segresnet, "SwinUNETR": _swin, "GenesisUNet": _unet}[str(name)]
    network, inputs, outputs, batch_size = make(weights, file, origin)
    labels, order = labels_of(outputs)
    origin.notes += [
        "its networks saw arrays in x, y, z; the plans turn nnU-Net's arrays (axis_order), the weights are unchanged",
        "spacing 1.5 mm, patch 96 and the window -175 to 250 HU are documented for SuPreM, not in the file",
        "its outputs are independent sigmoids; organs include their lesions and vessels",
    ]
    training = Training(
        spacing=[1.5, 1.5, 1.5],
        patch_size=[96, 96, 96],
        batch_size=batch_size,
        normalization=["CTNormalization"] * inputs,
        intensity={str(i): dict(_WINDOW) for i in range(inputs)},
        transpose_forward=[0, 1, 2],
        channels=["CT"] if inputs == 1 else None,
        labels=labels,
        regions_class_order=order,
        sigmoid=True,
        reader="NibabelIOWithReorient",
        dataset="AbdomenAtlas",
        plans="SuPreM",
    )
    return checkpoint(file, origin, network, weights, (inputs, outputs), training)


def labels_of(outputs: int) -> tuple[dict[str, int | list[int]] | None, list[int] | None]:
    """Returns nnU-Net's regions for SuPreM's outputs: 32 in the released files, 25 with AbdomenAtlas 1.1.

    Output i is id i + 1. An organ's region has the ids of what lies in it, because SuPreM's organs include them; later
    ids are written over earlier ones, and parts come after their organ.

    Args:
        outputs: Number of outputs.

    Returns:
        Labels and the order of ids, or None for both with another number of outputs.
    """
    orders: tuple[tuple[str, ...], ...] = (TEMPLATE, ABDOMEN_ATLAS_STRUCTURES)
    names = next((order for order in orders if len(order) == outputs), None)
    if names is None:
        return None, None
    labels: dict[str, int | list[int]] = {"background": 0}
    for i, name in enumerate(names, 1):
        parts = [j for j, part in enumerate(names, 1) if name in _LIES_IN.get(part, ())]
        labels[name] = [i, *parts] if parts else i
    return labels, list(range(1, outputs + 1))


def _segresnet(
    weights: Mapping[str, Tensor], file: ForeignFile, origin: Origin
) -> tuple[dict[str, Any], int, int, int]:
    first, head = weights[f"{PREFIX}convInit.conv.weight"], weights[f"{PREFIX}conv_final.2.conv.weight"]
    down = _blocks(weights, "down_layers")
    arguments = {
        "spatial_dims": 3,
        "init_filters": first.shape[0],
        "blocks_down": down,
        "blocks_up": _blocks(weights, "up_layers"),
    }
    network = adapted("monai.networks.nets.SegResNet", arguments, len(down), [2, 1, 0])
    return network, first.shape[1], head.shape[0], 16


def _blocks(weights: Mapping[str, Tensor], part: str) -> list[int]:
    """Returns the number of residual blocks at each level."""
    pattern = re.compile(rf"{re.escape(PREFIX)}{part}\.(\d+)\.\d+\.conv1\.conv\.weight")
    levels = [int(found[1]) for found in map(pattern.fullmatch, weights) if found]
    return [levels.count(level) for level in sorted(set(levels))]


def _swin(weights: Mapping[str, Tensor], file: ForeignFile, origin: Origin) -> tuple[dict[str, Any], int, int, int]:
    first = weights[f"{PREFIX}swinViT.patch_embed.proj.weight"]
    arguments = {"spatial_dims": 3, "feature_size": first.shape[0]}
    network = adapted("monai.networks.nets.SwinUNETR", arguments, 6, [2, 1, 0])
    return network, first.shape[1], _outputs(file, origin), 2


def _unet(weights: Mapping[str, Tensor], file: ForeignFile, origin: Origin) -> tuple[dict[str, Any], int, int, int]:
    network, inputs = unet_architecture(weights)
    outputs = _outputs(file, origin)
    check_unet(network, weights, (inputs, outputs), file)
    origin.notes.append(
        "SuPreM's U-Net always normalises with the statistics of the batch, also when predicting; here batch norm is "
        "the ordinary one, which predicts with the running statistics in the file"
    )
    return network, inputs, outputs, 8


def _outputs(file: ForeignFile, origin: Origin) -> int:
    """Returns the number of structures of the text-conditioned head, which has a row of text features for each."""
    origin.notes.append("it has no segmentation layer: the head starts anew")
    embedding = file.weights.get("organ_embedding")
    return len(TEMPLATE) if embedding is None else embedding.shape[0]
