"""Which tensor of a checkpoint belongs to which tensor of a target, and why some belong to none."""

from __future__ import annotations

import re

from nnunet_pretrain.networks.planned import PLANNED_NETWORKS
from nnunet_pretrain.transfer.pretrained_network import NetworkFacts


def check_classes(pretrained: NetworkFacts, target: NetworkFacts) -> None:
    """Refuses networks that do not compute the same function from the same weights.

    Raises:
        ValueError: The classes differ, or one is 2D and the other 3D.
    """
    if pretrained.class_name != target.class_name:
        reason = "no layer of one does what a layer of the other does"
        if {pretrained.class_name, target.class_name} == set(PLANNED_NETWORKS):
            reason = (
                "a residual block adds its input to its output, a plain one does not, so weights of one "
                "compute something else in the other even where shapes agree"
            )
        raise ValueError(
            f"the checkpoint's network is a {pretrained.class_name}, the target's a {target.class_name}: {reason}. "
            f"Plan the transfer with --keep pretrained, or the target with the checkpoint's kind of network"
        )
    dimensions = [_dimensions(side) for side in (pretrained, target)]
    if None not in dimensions and dimensions[0] != dimensions[1]:
        raise ValueError(
            f"the checkpoint's network has {dimensions[0]} spatial axes, the target's {dimensions[1]}; "
            f"choose the configuration of the checkpoint"
        )


def _dimensions(side: NetworkFacts) -> int | None:
    kernels = side.architecture["arch_kwargs"].get("kernel_sizes")
    return len(kernels[0]) if isinstance(kernels, (list, tuple)) and isinstance(kernels[0], (list, tuple)) else None


def source_name(name: str, pretrained: NetworkFacts, target: NetworkFacts) -> tuple[str, str]:
    """Returns the checkpoint's name for a tensor of the target.

    A residual block's skip has a pooling before its projection where the block has a stride, so the projection's number
    depends on each network's own strides.

    Encoder stages are counted from the finest resolution, so a deeper or shallower network keeps their numbers.
    Decoder stages are counted from the coarsest: stage d of a network with n encoder stages works at resolution level
    n - 2 - d (0 is the finest). They are matched by that level; by number, a decoder would get weights of another
    resolution as soon as the depths differ.

    Returns:
        The name, and "" or the reason why the checkpoint has no such stage.
    """
    skip = re.match(r"(encoder\.stages\.(\d+)\.blocks\.0\.skip\.)\d+(\..*)", name)
    if skip is not None and pretrained.num_stages is not None:
        return f"{skip[1]}{int(_strided(pretrained, int(skip[2])))}{skip[3]}", ""
    stage = re.match(r"(decoder\.(?:stages|transpconvs|seg_layers)\.)(\d+)(\..*)", name)
    if stage is None or pretrained.num_stages is None or target.num_stages is None:
        return name, ""
    level = target.num_stages - 2 - int(stage[2])
    place = pretrained.num_stages - 2 - level
    if place < 0:
        return name, f"the checkpoint's network is less deep, it has no decoder at resolution level {level}"
    return f"{stage[1]}{place}{stage[3]}", ""


def _strided(side: NetworkFacts, stage: int) -> bool:
    """Whether the first block of an encoder stage of nnU-Net's networks has a stride along any axis."""
    given = side.architecture["arch_kwargs"]
    strides = given.get("arguments", given)["strides"]
    if stage >= len(strides):
        return True
    return any(n != 1 for n in (strides[stage] if isinstance(strides[stage], (list, tuple)) else [strides[stage]]))


def reason_missing(name: str, pretrained: NetworkFacts) -> str:
    """Says why the checkpoint lacks a tensor of the target's encoder or decoder."""
    stage = re.match(r"encoder\.stages\.(\d+)\.", name)
    if stage and pretrained.num_stages is not None and int(stage[1]) >= pretrained.num_stages:
        return f"the checkpoint's network is less deep, it has no encoder stage {stage[1]}"
    if stage or name.startswith("decoder.stages"):
        return "the checkpoint's stage has fewer blocks"
    return "not in the checkpoint"


def too_deep(name: str, pretrained: NetworkFacts, target: NetworkFacts) -> bool:
    """Whether a tensor of the checkpoint lies in a stage that a less deep target does not have."""
    if pretrained.num_stages is None or target.num_stages is None:
        return False
    if stage := re.match(r"encoder\.stages\.(\d+)\.", name):
        return int(stage[1]) >= target.num_stages
    if stage := re.match(r"decoder\.(?:stages|transpconvs|seg_layers)\.(\d+)\.", name):
        return pretrained.num_stages - 2 - int(stage[1]) > target.num_stages - 2
    return False
