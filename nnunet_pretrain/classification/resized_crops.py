"""What a classifier of natural images sees of one: a random part, or the middle, resampled to the patch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate

from nnunet_pretrain.training.natural_image_cases import FirstFailure
from nnunet_pretrain.training.original_images import Box, BoxChoice, OriginalImages

TRIES = 10
CENTRE = 0.875
"""Share of the edges that is shown of images not learned from: 224 of 256, as usual for ImageNet."""


def random_box(height: int, width: int, area: Sequence[float], ratio: Sequence[float]) -> Box:
    """Draws a part of an image, of random area and aspect (Szegedy et al., CVPR 2015, section 6).

    Area is drawn uniformly, aspect uniformly in its logarithm. After ten parts that do not lie inside the image, the
    largest one in its middle is taken whose aspect is allowed. Draws come from numpy's global generator, whose state
    checkpoints keep.

    Args:
        height: Of the image in pixels.
        width: Of the image in pixels.
        area: Smallest and largest share of the image's area.
        ratio: Smallest and largest ratio of width to height.
    """
    for _ in range(TRIES):
        pixels = height * width * np.random.uniform(area[0], area[1])
        aspect = math.exp(np.random.uniform(math.log(ratio[0]), math.log(ratio[1])))
        rows, columns = round(math.sqrt(pixels / aspect)), round(math.sqrt(pixels * aspect))
        if 0 < rows <= height and 0 < columns <= width:
            top, left = np.random.randint(height - rows + 1), np.random.randint(width - columns + 1)
            return int(top), int(left), rows, columns
    rows = max(1, min(height, round(width / ratio[0])))
    columns = max(1, min(width, round(height * ratio[1])))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def centre_box(height: int, width: int, size: Sequence[int]) -> Box:
    """Returns the middle of an image: `CENTRE` of the largest part that has the aspect of a patch.

    Args:
        height: Of the image in pixels.
        width: Of the image in pixels.
        size: Height and width of the patch.
    """
    scale = CENTRE * min(height / size[0], width / size[1])
    rows, columns = (max(1, round(scale * edge)) for edge in size)
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def resized_volume(data: Any, choose: BoxChoice, size: Sequence[int]) -> npt.NDArray[np.float32]:
    """Cuts a part out of a preprocessed volume and resamples it, linearly and without aliasing, in plane.

    Args:
        data: Shape (1, D, Y, X); of an array on disk only the part is read.
        choose: From height and width to the part.
        size: Wanted depth, height and width.

    Returns:
        Shape (1, *size). nnU-Net crops what is zero all around, slices as well, so an image without any red, green or
        blue has fewer of them; zeros take their place, as in nnU-Net's loader.
    """
    top, left, height, width = choose(*data.shape[2:])
    part = torch.from_numpy(np.asarray(data[:, :, top : top + height, left : left + width], dtype=np.float32))
    slices = interpolate(part, tuple(size[1:]), mode="bilinear", antialias=True)
    if (lacking := size[0] - slices.shape[1]) > 0:
        slices = torch.nn.functional.pad(slices, (0, 0, 0, 0, lacking - lacking // 2, lacking // 2))
    resized: npt.NDArray[np.float32] = slices.numpy()
    return resized


class ImageCrops:
    """A dataset for nnU-Net's loader whose cases are parts of images, of the size of a patch.

    Args:
        dataset: The images.
        size: Depth, height and width of a patch.
        choose: From height and width of an image to the part that is shown.
        failure: Where a case that cannot be read is noted.
    """

    def __init__(self, dataset: Any, size: Sequence[int], choose: BoxChoice, failure: FirstFailure) -> None:
        self.dataset, self.size, self.choose, self.failure = dataset, tuple(size), choose, failure
        self.identifiers: npt.NDArray[np.str_] = np.asarray(dataset.identifiers, dtype=np.str_)

    def image(self, case: str) -> npt.NDArray[np.float32]:
        """Returns a part of an image, shape (1, *size)."""
        with self.failure.named(case):
            if isinstance(self.dataset, OriginalImages):
                return self.dataset.load_crop(case, self.choose, self.size[1:])
            return resized_volume(self.dataset.load_case(case)[0], self.choose, self.size)

    def load_case(self, identifier: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int8], None, dict[str, Any]]:
        """As nnU-Net's dataset; there is no label map, only a voxel in its place."""
        return self.image(str(identifier)), np.zeros((1, 1, 1, 1), np.int8), None, {"class_locations": {}}
