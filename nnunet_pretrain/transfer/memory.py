"""GPU memory a training needs, by nnU-Net's own estimate, and the batch that fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from nnunet_pretrain.transfer.pretrained_network import NetworkFacts, network_without_memory

# nnU-Net's reference (ExperimentPlanner): so many feature map values of one patch, in batches of 2, fill 8 GB.
_REFERENCE_VALUES, _REFERENCE_GB, _REFERENCE_BATCH = 560_000_000, 8.0, 2
MIN_BATCH = 2
_COVERED = 0.05
"""nnU-Net: a batch covers at most this share of all voxels of the dataset."""


def estimated_gb(facts: NetworkFacts, patch_size: Sequence[int], batch_size: int) -> float | None:
    """Estimates the GPU memory of a training as nnU-Net's planner does, from the size of all feature maps.

    Returns:
        Gigabytes, or None for networks nnU-Net cannot estimate, or 2D ones.
    """
    if facts.num_stages is None or len(patch_size) != 3:
        return None
    return _values(facts, patch_size) / _REFERENCE_VALUES * _REFERENCE_GB * batch_size / _REFERENCE_BATCH


def _values(facts: NetworkFacts, patch_size: Sequence[int]) -> float:
    """Returns the number of values in all feature maps of one patch, as nnU-Net's planner counts them."""
    network: Any = network_without_memory(facts)
    return float(network.compute_conv_feature_map_size(tuple(patch_size)))


def fitted_batch(
    facts: NetworkFacts, configuration: Mapping[str, Any], memory_gb: float, shapes: Sequence[Sequence[float]]
) -> int | None:
    """Returns the largest batch for a memory, by nnU-Net's rules: at least 2, at most 5 % of the dataset's voxels.

    Args:
        facts: The network.
        configuration: Configuration of the plans, with spacing and patch.
        memory_gb: GPU memory in gigabytes.
        shapes: Shapes of the target's cases in voxels at the configuration's spacing.

    Returns:
        Patches per step, or None if nnU-Net cannot estimate the network.
    """
    patch = configuration["patch_size"]
    per_patch = estimated_gb(facts, patch, 1)
    if per_patch is None:
        return None
    covered = round(_COVERED * sum(prod(shape) for shape in shapes) / prod(patch))
    return max(MIN_BATCH, min(round(memory_gb / per_patch), covered))
