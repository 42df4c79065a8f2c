"""Trying a network before hours of preprocessing are spent on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn


def try_network(
    build: Callable[[], nn.Module],
    channels: tuple[int, int],
    patch_size: Sequence[int],
    strides: Sequence[Sequence[int]] | None,
) -> None:
    """Applies a network to an empty batch and compares the result with what nnU-Net's loss expects.

    The batch has no memory and nothing is computed, unless the network cannot do without.

    Args:
        build: Makes the network.
        channels: Input and output channels.
        patch_size: Patch in voxels.
        strides: With deep supervision, the downsampling of each stage: one output per stage except the coarsest is
            expected. None without deep supervision: one output of the patch's size is expected.

    Raises:
        ValueError: The network fails on such a patch, or its outputs have other shapes.
    """
    scales = [[1] * len(patch_size)] if strides is None else np.cumprod(strides, axis=0)[:-1].tolist()
    expected = [(2, channels[1], *(p // s for p, s in zip(patch_size, scale, strict=True))) for scale in scales]
    result = _applied(build, (2, channels[0], *patch_size))
    found = [tuple(tensor.shape) for tensor in (result if isinstance(result, list) else [result])]
    if found != expected:
        remedy = 'set "deep_supervision" to false for training and transfer, or ' if len(found) < len(expected) else ""
        raise ValueError(
            f"the network gives outputs of shape {found} (batch, classes, voxels) for a patch of {list(patch_size)}, "
            f"expected {expected}; {remedy}correct its arguments, strides or patch_size"
        )


def try_classifier(build: Callable[[], nn.Module], channels: int, classes: int, patch_size: Sequence[int]) -> None:
    """Applies a classifier to an empty batch, as `try_network`.

    Args:
        build: Makes the network.
        channels: Channels of the image.
        classes: Number of classes: a logit of each is expected.
        patch_size: Patch in voxels.

    Raises:
        ValueError: The network fails on such a patch, or gives something else.
    """
    result = _applied(build, (2, channels, *patch_size))
    found = [tuple(tensor.shape) for tensor in (result if isinstance(result, list) else [result])]
    if found != [(2, classes)]:
        raise ValueError(f"the classifier gives outputs of shape {found} (batch, classes), expected {[(2, classes)]}")


def _applied(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> Tensor | list[Tensor]:
    for device in ("meta", "cpu"):
        network = build()
        try:
            with torch.no_grad():
                return network.to(device)(torch.zeros(shape, device=device))
        except Exception as error:
            failure = error  # on the meta device it may be the device's own
    raise ValueError(f"the network fails on a patch of {list(shape[2:])}: {failure}") from failure
