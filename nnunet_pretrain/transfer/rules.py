"""Rules that fit one pre-trained tensor into a target of another shape; each says when it keeps the function exactly.

docs/adaptation.md shows the formulas. Convolution weights have the shape (out, in, *kernel), transposed ones
(in, out, *kernel); kernels of convolutions have odd sizes and are centred (padding (k - 1) / 2, as in nnU-Net).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def fit_kernel(weight: Tensor, kernel: Sequence[int]) -> Tensor:
    """Fits a centred kernel to another size along each axis.

    Larger: the new taps are 0, so the output stays the same for every input. Smaller: the taps that fall away are added
    to the nearest ones kept (for k -> 1 this is the sum over the axis), so the output stays the same, away from the
    border, for every input that is constant along the axis. A mean instead of the sum, as in nnssl's loader, would
    shrink such an output to 1 / k.

    Args:
        weight: (out, in, *kernel).
        kernel: Wanted kernel sizes.

    Raises:
        ValueError: A size is even, so that there is no centre.
    """
    for axis, size in enumerate(kernel, start=2):
        found = weight.shape[axis]
        if found % 2 != size % 2:
            raise ValueError(f"a kernel of {found} has no common centre with one of {size}")
        if size > found:
            edge = (size - found) // 2
            shape = [edge if a == axis else n for a, n in enumerate(weight.shape)]
            zeros = weight.new_zeros(shape)
            weight = torch.cat([zeros, weight, zeros], axis)
        elif size < found:
            edge = (found - size) // 2
            before, kept, after = weight.split([edge, size, edge], axis)
            kept = kept.clone()
            kept.narrow(axis, 0, 1).add_(before.sum(axis, keepdim=True))
            kept.narrow(axis, size - 1, 1).add_(after.sum(axis, keepdim=True))
            weight = kept
    return weight


def fit_stride(weight: Tensor, stride: Sequence[int]) -> Tensor:
    """Fits a transposed convolution whose kernel equals its stride, as in nnU-Net's decoders, to another stride.

    Longer (1 -> 2): every tap is repeated; the output is the former one, repeated along the axis: exact. Shorter
    (2 -> 1): the mean of the taps; the output is the mean of the voxels that were made of one: exact wherever these
    were equal.

    Args:
        weight: (in, out, *stride).
        stride: Wanted strides.

    Raises:
        ValueError: Neither of two strides divides the other.
    """
    for axis, size in enumerate(stride, start=2):
        found = weight.shape[axis]
        if size % found == 0:
            weight = weight.repeat_interleave(size // found, axis)
        elif found % size == 0:
            weight = weight.unflatten(axis, (size, found // size)).mean(axis + 1)
        else:
            raise ValueError(f"a stride of {found} cannot be turned into {size}")
    return weight


def fit_channels(weight: Tensor, pretrained: Sequence[str], target: Sequence[str]) -> Tensor:
    """Fits the first layer to other image channels, by their names (upper and lower case are alike).

    A channel of the same name keeps its weights; one the pre-training did not have starts with zeros, so that at first
    the output does not depend on it; one the target lacks falls away, which is exact where it was 0, the mean of a
    normalised image. If no name matches, every target channel gets the sum over the pre-trained channels, divided by
    the number of target channels: the output stays the same for channels that all show the same image. With one
    pre-trained and one target channel this is a plain copy.

    Args:
        weight: (out, in, ...), in as many as `pretrained`.
        pretrained: Names of the channels of the pre-training.
        target: Names of the target's channels.
    """
    known = {name.lower(): i for i, name in enumerate(pretrained)}
    places = [known.get(name.lower()) for name in target]
    if len(pretrained) == len(target) == 1:
        return weight
    if all(place is None for place in places):
        mean = weight.sum(1, keepdim=True) / len(target)
        return mean.repeat(1, len(target), *[1] * (weight.ndim - 2))
    zeros = torch.zeros_like(weight[:, :1])
    return torch.cat([zeros if place is None else weight[:, place : place + 1] for place in places], 1)


def fit_width(weight: Tensor, start: Tensor, halves: bool = False) -> Tensor:
    """Puts the channels both layers have into a layer of another width; the others keep their initial values.

    This keeps no function: the layer's inputs and outputs are cut or mixed with new ones. It is done only when asked.

    Args:
        weight: Pre-trained tensor.
        start: The target's initial tensor, of the same shape but for the first one or two axes.
        halves: Whether axis 1 holds two groups of channels of equal size (a decoder's up-sampled channels, then those
            of the skip connection), which are matched apart.

    Returns:
        A tensor of the target's shape.
    """
    if halves:
        pairs = zip(weight.chunk(2, 1), start.chunk(2, 1), strict=True)
        return torch.cat([fit_width(part, initial) for part, initial in pairs], 1)
    fitted = start.detach().clone()
    common = tuple(slice(min(a, b)) for a, b in zip(weight.shape[:2], start.shape[:2], strict=True))
    fitted[common] = weight[common].to(fitted.dtype)
    return fitted
