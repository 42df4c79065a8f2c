"""Networks as plans name them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

PLANNED_NETWORKS = ("PlainConvUNet", "ResidualEncoderUNet")
"""The U-Nets of nnU-Net's planners, whose names and topology we know."""


def planned_network(
    architecture: Mapping[str, Any],
    channels: int,
    outputs: int,
    *,
    initialise: bool = False,
    deep_supervision: bool | None = False,
) -> Any:
    """Builds a network as nnU-Net does from plans.

    Args:
        architecture: The plans' entry: network_class_name, arch_kwargs, _kw_requires_import.
        channels: Channels of the image.
        outputs: Output channels.
        initialise: Whether the network draws its initial values as it does in nnU-Net.
        deep_supervision: Whether it returns all outputs; None leaves that to the class.
    """
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    return get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        channels,
        outputs,
        allow_init=initialise,
        deep_supervision=deep_supervision,
    )


def total_stride(strides: Sequence[Sequence[int]]) -> list[int]:
    """Returns the product of the stages' strides along each axis: what every edge of a patch must be divisible by."""
    return [math.prod(axis) for axis in zip(*strides, strict=True)]
