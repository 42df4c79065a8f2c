"""Augmentation of volumes whose three slices are the red, green and blue of one photograph.

What lies beside what along depth has no meaning here, so nothing may mix slices, and their order is drawn anew for
every sample (VDT, arXiv 2201.01426: only then must a kernel treat them as it treats slices of a CT).
Shapes are (C, D, Y, X) as everywhere in nnU-Net's transforms, with D = 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from torch import Tensor

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601). Their sum is 1, so they serve for z-scores as for grey levels."""
FIRST = (1.0, 0.0, 0.0)


class DepthShuffle(BasicTransform):
    """Puts the slices of image and label map into the same random order; all orders are equally likely.

    The order comes from numpy's generator: nnU-Net's forked workers all start with the same state of torch's.
    """

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """Draws the order."""
        return {"order": torch.from_numpy(np.random.permutation(data_dict["image"].shape[1]))}

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        return img[:, params["order"]]

    def _apply_to_segmentation(self, segmentation: Tensor, **params: Any) -> Tensor:
        return segmentation[:, params["order"]]


class GreySlices(ImageOnlyTransform):
    """Gives all slices the same content: their weighted sum.

    Args:
        weights: One per slice; `LUMINANCE` makes a photograph grey, `FIRST` repeats the first slice.
    """

    def __init__(self, weights: Sequence[float] = LUMINANCE) -> None:
        super().__init__()
        self.weights = tuple(weights)

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        return grey_slices(img, self.weights)


class InPlane(ImageOnlyTransform):
    """Applies a transform of 2D images to the slices of a volume, with one draw for all of them.

    Args:
        transform: Transform of images (channels, Y, X) that treats all channels alike; the slices are its channels.
        p_per_channel: Probability of each channel of the volume to be transformed.
    """

    def __init__(self, transform: ImageOnlyTransform, p_per_channel: float = 1.0) -> None:
        super().__init__()
        self.transform, self.p_per_channel = transform, p_per_channel

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        for channel in range(len(img)):
            if torch.rand(1).item() < self.p_per_channel:
                img[channel] = self.transform(image=img[channel])["image"]
        return img


def grey_slices(image: Tensor, weights: Sequence[float] = LUMINANCE) -> Tensor:
    """Returns an image whose slices all are the weighted sum of its slices.

    Args:
        image: Shape (..., D, Y, X); a volume without exactly one slice per weight comes back as it is.
        weights: One per slice.
    """
    if image.shape[-3] != len(weights):
        return image
    factors = torch.tensor(weights, dtype=image.dtype, device=image.device).view(-1, 1, 1)
    return (image * factors).sum(-3, keepdim=True).expand_as(image).contiguous()


def safe_in_depth(transform: BasicTransform) -> BasicTransform:
    """Replaces what fails on three slices: nnU-Net's blur, whose reflected border is wider than the volume is deep.

    Args:
        transform: One of nnU-Net's, also inside `RandomTransform` and `ComposeTransforms`.

    Returns:
        The same, with every blur done in plane, as strong and as often as before.
    """
    if isinstance(transform, ComposeTransforms):
        return ComposeTransforms([safe_in_depth(one) for one in transform.transforms])
    if isinstance(transform, RandomTransform):
        return RandomTransform(safe_in_depth(transform.transform), transform.apply_probability)
    if isinstance(transform, GaussianBlurTransform):
        blur = GaussianBlurTransform(transform.blur_sigma, True, transform.synchronize_axes, p_per_channel=1)
        return InPlane(blur, transform.p_per_channel)
    return transform


def for_slices(stock: ComposeTransforms, grey: bool, shuffle: bool) -> ComposeTransforms:
    """Makes nnU-Net's augmentation fit for volumes of three colours.

    Args:
        stock: nnU-Net's list of transforms; it must rotate and scale in plane only ("dummy 2D").
        grey: Whether the slices are made grey before anything else. Noise, drawn for every voxel, would tell them
            apart again, so the first slice is repeated in the end.
        shuffle: Whether the slices come in random order. They do so after everything that acts on 3D images, and
            before label maps become a list of scales.
    """
    transforms = [safe_in_depth(transform) for transform in stock.transforms]
    last = [GreySlices(FIRST)] if grey else []
    last += [DepthShuffle()] if shuffle else []
    scales = (i for i, one in enumerate(transforms) if isinstance(one, DownsampleSegForDSTransform))
    end = next(scales, len(transforms))
    return ComposeTransforms([*([GreySlices()] if grey else []), *transforms[:end], *last, *transforms[end:]])
