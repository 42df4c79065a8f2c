"""What plans for natural images say: a 3D target's network without strides along depth, and the images' own numbers.

VDT (arXiv 2201.01426) shows a 3D network the red, green and blue of an image as three slices. No stride acts along
depth, so all three reach the last stage; weights of convolutions do not depend on strides, so the target's network,
with its own, takes them as they are.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnunet_pretrain.conversion.natural_images.index import ImageIndex
from nnunet_pretrain.networks.planned import total_stride
from nnunet_pretrain.planning.existing_plans import CONFIGURATION
from nnunet_pretrain.planning.settings import VDT_PLANS

SLICES = 3
"""Depth of a patch: red, green and blue."""

GREY_PLANS = f"{VDT_PLANS}__grey"
UNSHUFFLED_PLANS = f"{VDT_PLANS}__unshuffled"

MIN_BATCH = 2
LISTED = 1000
"""So many images at most are listed in the fingerprint."""

_BRIGHTEST = 255.0
_NORMAL_99_5 = 2.5758
"""A normal distribution's 99.5 percentile, in standard deviations."""

Architecture = Mapping[str, Any]


def depth_preserving(architecture: Architecture, full_kernels: bool = False) -> dict[str, Any]:
    """Returns a 3D network with every stride along depth 1, and everything else as it is.

    Args:
        architecture: The plans' entry of a network that `find_plans` admits; axis 0 becomes the depth.
        full_kernels: Whether kernels of depth 1 become 3 deep. A transfer sums them up again, which is exact for
            images that do not change along depth (docs/adaptation.md).
    """
    made = copy.deepcopy(dict(architecture))
    given = made["arch_kwargs"]
    given["strides"] = [[1, y, x] for _, y, x in given["strides"]]
    if full_kernels:
        given["kernel_sizes"] = [[3 if z == 1 else z, y, x] for z, y, x in given["kernel_sizes"]]
    return made


def fitted_patch(size: Sequence[int], strides: Sequence[Sequence[int]]) -> list[int]:
    """Returns the patch, depth first.

    Args:
        size: Height and width in pixels; each is rounded up to what the strides divide, and to two voxels of the
            coarsest features: over fewer, instance norms would leave little to tell apart.
        strides: Downsampling of each stage.
    """
    return [SLICES, *(by * max(2, math.ceil(n / by)) for n, by in zip(size, total_stride(strides)[1:], strict=True))]


def fitted_batch(patch_size: Sequence[int], voxels: int) -> int:
    """Returns the largest batch with at most so many voxels, at least `MIN_BATCH`."""
    return max(MIN_BATCH, voxels // math.prod(patch_size))


def intensities(index: ImageIndex) -> dict[str, float]:
    """Returns the intensities of all images in the form of nnU-Net's fingerprint, without reading an image.

    Mean and standard deviation are those of all values of all slices, pooled from the index (variance: the mean of
    std² + mean², less the pooled mean²). The others need the images: the range is that of 8 bits, the median is the
    mean, and the percentiles are those of a normal distribution. nnU-Net's z-score uses none of these numbers.
    """
    sizes = index.shapes.astype(np.float64).prod(1)
    mean = float(np.average(index.means, weights=sizes))
    square = float(np.average(index.stds**2 + index.means**2, weights=sizes))
    std = math.sqrt(max(0.0, square - mean**2))
    low, high = (min(max(mean + sign * _NORMAL_99_5 * std, 0.0), _BRIGHTEST) for sign in (-1, 1))
    percentiles = {"percentile_00_5": low, "percentile_99_5": high}
    return {"max": _BRIGHTEST, "mean": mean, "median": mean, "min": 0.0, **percentiles, "std": std}


def fingerprint(index: ImageIndex) -> dict[str, Any]:
    """Returns nnU-Net's fingerprint of the dataset, from the index; it lists at most `LISTED` images, evenly spread.

    Sizes are those of whole images: the index does not know what nnU-Net crops off.
    """
    rows = np.unique(np.linspace(0, len(index) - 1, min(len(index), LISTED)).round().astype(int))
    return {
        "spacings": [[1.0, 1.0, 1.0]] * len(rows),
        "shapes_after_crop": [[SLICES, *shape] for shape in index.shapes[rows].tolist()],
        "foreground_intensity_properties_per_channel": {"0": intensities(index)},
        "median_relative_size_after_cropping": 1.0,
    }


def natural_plans(
    name: str, reader: str, index: ImageIndex, architecture: Architecture, patch_size: Sequence[int], batch_size: int
) -> dict[str, Any]:
    """Returns plans with one configuration, in nnU-Net's form.

    Args:
        name: The dataset.
        reader: nnU-Net's reader for its files.
        index: Its images.
        architecture: The plans' entry of the network, a classifier or not.
        patch_size: Depth, height and width.
        batch_size: Images per step.
    """
    middle = [SLICES, *(float(n) for n in np.median(index.shapes, 0))]
    configuration = {
        "data_identifier": f"{VDT_PLANS}_{CONFIGURATION}",  # the controls', too: the images are the same
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": batch_size,
        "patch_size": list(patch_size),
        "median_image_size_in_voxels": middle,
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],  # one mean and deviation for all slices, whatever the target
        "use_mask_for_norm": [False],
        **_stock_resampling(),
        "architecture": dict(architecture),
        "batch_dice": True,  # as in nnU-Net's 2D plans: one image rarely shows many structures
    }
    return {
        "dataset_name": name,
        "plans_name": VDT_PLANS,
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [round(n) for n in middle],
        "image_reader_writer": reader,
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {CONFIGURATION: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": intensities(index)},
    }


def _stock_resampling() -> dict[str, Any]:
    """Returns the resamplers of nnU-Net's default planner; at a spacing of 1 they have nothing to do."""
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    planner = object.__new__(ExperimentPlanner)  # its __init__ would look for the files of millions of images
    data, data_kwargs, seg, seg_kwargs = planner.determine_resampling()
    probabilities, probabilities_kwargs = planner.determine_segmentation_softmax_export_fn()
    return {
        "resampling_fn_data": data.__name__,
        "resampling_fn_seg": seg.__name__,
        "resampling_fn_data_kwargs": data_kwargs,
        "resampling_fn_seg_kwargs": seg_kwargs,
        "resampling_fn_probabilities": probabilities.__name__,
        "resampling_fn_probabilities_kwargs": probabilities_kwargs,
    }
