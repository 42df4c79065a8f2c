"""STU-Net, as its authors' fork of nnU-Net v1 (`.model`) and of v2.2 (`.pth`) write it."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nnunet_pretrain.checkpoints.foreign.file import ForeignFile
from nnunet_pretrain.checkpoints.foreign.fit import fitted_exactly
from nnunet_pretrain.checkpoints.foreign.key_table import KeyTable
from nnunet_pretrain.checkpoints.foreign.nnunet_v1_plans import pools_of, training_of
from nnunet_pretrain.checkpoints.foreign.v2_form import Origin, Training, architecture, checkpoint
from nnunet_pretrain.checkpoints.reading import EXTRAS_KEY
from nnunet_pretrain.checkpoints.unpickling import shown
from nnunet_pretrain.networks.stunet import STUNet

FORMAT = "STU-Net"
KEY_TABLE = KeyTable(
    [
        (name, name)
        for name in (
            "conv_blocks_context.{s}.{b}.{layer}.{k}",
            "upsample_layers.{d}.conv.{k}",
            "conv_blocks_localization.{d}.{b}.{layer}.{k}",
            "seg_outputs.{d}.{k}",
        )
    ]
)
"""Our STUNet names its tensors as the published files do."""

_PUBLISHED_STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 1, 2]]
_PUBLISHED_OUTPUTS = 105


def recognises(file: ForeignFile) -> bool:
    """Says whether the file holds an STU-Net."""
    return file.has(r"conv_blocks_context\.0\.0\.conv1\.weight") and file.has(r"upsample_layers\.\d+\.conv\.weight")


def convert(file: ForeignFile) -> dict[str, Any]:
    """Converts an STU-Net to our class of that name; all its tensors keep their names.

    What neither the file nor its `.pkl` says is taken from the description of the published weights, and noted.
    """
    origin = Origin(FORMAT)
    renamed = KEY_TABLE.to_v2(file.weights)
    origin.leave_out(file, renamed, "STUNet has no such tensor")
    weights = {v2: file.weights[name] for name, v2 in renamed.items()}
    finest = len({name.split(".")[1] for name in weights if name.startswith("seg_outputs.")}) - 1
    sizes = weights["conv_blocks_context.0.0.conv1.weight"].shape[1], weights[f"seg_outputs.{finest}.weight"].shape[0]
    if "init_args" in file.content:
        return _from_v2(file, origin, weights, sizes)
    sidecar = file.read_sidecar()
    pools = pools_of(sidecar)
    network = _architecture(weights, None if pools is None else [[1, 1, 1], *pools], origin)
    training = _published(sizes, origin) if pools is None else training_of(sidecar, sizes[1], 3, origin.notes)
    if training.labels is None:
        training.labels = _labels(sizes[1], origin)
    return checkpoint(file, origin, network, fitted_exactly(network, weights, sizes, file.path), sizes, training)


def _from_v2(
    file: ForeignFile, origin: Origin, weights: Mapping[str, Tensor], sizes: tuple[int, int]
) -> dict[str, Any]:
    """Keeps what nnU-Net v2 wrote and names our network in its plans."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    arguments = file.v2_arguments("plans", "dataset_json")
    plans, name = copy.deepcopy(arguments["plans"]), arguments["configuration"]
    configuration = PlansManager(plans).get_configuration(name).configuration
    strides = [list(stride) for stride in configuration["architecture"]["arch_kwargs"]["strides"]]
    network = _architecture(weights, strides, origin)
    origin.notes.append(f"trained by {shown(str(file.content.get('trainer_name', 'an unnamed trainer')))}")
    arguments["plans"] = {**plans, "configurations": {name: {**configuration, "architecture": network}}}
    arguments[EXTRAS_KEY] = {**arguments.get(EXTRAS_KEY, {}), "origin": origin.as_dict()}
    return {
        **file.content,
        "network_weights": fitted_exactly(network, weights, sizes, file.path),
        "init_args": arguments,
        "trainer_name": "nnUNetTrainer",
    }


def _architecture(weights: Mapping[str, Tensor], strides: list[list[int]] | None, origin: Origin) -> dict[str, Any]:
    stages = len({name.split(".")[1] for name in weights if name.startswith("conv_blocks_context.")})
    if strides is None:
        origin.notes.append(
            "its weights have the same shapes for all strides; those of the published networks were taken: 2 per axis, "
            "and 1, 1, 2 for the last stage"
        )
        strides = [*_PUBLISHED_STRIDES[:stages], *[[2, 2, 2]] * (stages - len(_PUBLISHED_STRIDES))]
    firsts = [weights[f"conv_blocks_context.{s}.0.conv1.weight"] for s in range(stages)]
    return architecture(
        f"{STUNet.__module__}.{STUNet.__qualname__}",
        n_stages=stages,
        features_per_stage=[first.shape[0] for first in firsts],
        kernel_sizes=[list(first.shape[2:]) for first in firsts],
        strides=[list(stride) for stride in strides[:stages]],
        n_blocks_per_stage=[
            sum(re.fullmatch(rf"conv_blocks_context\.{s}\.\d+\.conv1\.weight", name) is not None for name in weights)
            for s in range(stages)
        ],
    )


def _published(sizes: tuple[int, int], origin: Origin) -> Training:
    """Returns what is documented of the published weights (Huang et al., arXiv 2304.06716, and its repository)."""
    origin.notes.append(
        "spacing 1.5 mm, patch 128, batch 2 and the z-score of each image are not in the file; they are documented for "
        "the published STU-Nets"
    )
    return Training(
        spacing=[1.5, 1.5, 1.5],
        patch_size=[128, 128, 128],
        batch_size=2,
        normalization=["ZScoreNormalization"] * sizes[0],
        transpose_forward=[0, 1, 2],
        channels=["CT"] if sizes[0] == 1 else None,
        plans="nnUNetV1Plans",
        mirror_axes=(0, 1, 2),
    )


def _labels(outputs: int, origin: Origin) -> dict[str, int | list[int]] | None:
    """Returns the labels of the published networks: the structures of TotalSegmentator v1 in alphabetical order."""
    if outputs != _PUBLISHED_OUTPUTS:
        return None
    origin.notes.append(
        "label names are not in the file; with 105 outputs they are taken for TotalSegmentator v1's 104 structures in "
        "alphabetical order, as documented for the published STU-Nets"
    )
    return {name: i for i, name in enumerate(("background", *sorted(_totalsegmentator_v1())))}


def _totalsegmentator_v1() -> tuple[str, ...]:
    """Returns the structures of TotalSegmentator v1 (Wasserthal et al., Radiology: AI 2023), in no order."""
    single = """spleen gallbladder liver stomach aorta inferior_vena_cava portal_vein_and_splenic_vein pancreas
        esophagus trachea heart_myocardium pulmonary_artery brain small_bowel duodenum colon sacrum face urinary_bladder
        lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right lung_middle_lobe_right lung_lower_lobe_right"""
    paired = """kidney adrenal_gland heart_atrium heart_ventricle iliac_artery iliac_vena humerus scapula clavicula
        femur hip gluteus_maximus gluteus_medius gluteus_minimus autochthon iliopsoas"""
    return (
        *single.split(),
        *(f"{name}_{side}" for name in paired.split() for side in ("left", "right")),
        *(f"rib_{side}_{i}" for side in ("left", "right") for i in range(1, 13)),
        *(f"vertebrae_{part}{i}" for part, count in (("C", 7), ("T", 12), ("L", 5)) for i in range(1, count + 1)),
    )
