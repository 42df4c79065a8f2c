"""nnU-Net's preprocessor with its slow parts replaced by faster ones of the same result.

Cropping, normalisation, the order of steps and the writing of files are nnU-Net's own code. Plans name nothing of
this: only `nnunet_pretrain preprocess` uses it, and `nnUNetv2_preprocess` with the same plans gives the same data.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_pretrain.preprocessing.class_locations import sample_class_locations
from nnunet_pretrain.preprocessing.image_reading import LEAN_READERS
from nnunet_pretrain.preprocessing.label_resampling import resample_labels

Resampler = Callable[..., Any]


class FastConfiguration(ConfigurationManager):
    """A configuration of plans whose resamplers are faster, with the plans' own arguments.

    Attributes:
        device: Where torch resamples images, if the plans resample them with torch; a `device` in the plans wins.
        num_threads: CPU threads of that; the number in the plans wins.
    """

    def __init__(self, configuration: dict[str, Any], device: str, num_threads: int) -> None:
        super().__init__(configuration)
        self.device = device
        self.num_threads = num_threads

    @property
    def resampling_fn_data(self) -> Resampler:
        """The plans' resampler for images; on the device if it is torch's."""
        planned: partial[Any] = super().resampling_fn_data
        if planned.func is not resample_torch_fornnunet:
            return planned
        settings = {"device": torch.device(self.device), "num_threads": self.num_threads, **planned.keywords}
        return partial(planned.func, **settings)

    @property
    def resampling_fn_seg(self) -> Resampler:
        """The plans' resampler for labels; for nnU-Net's default, the faster one with the same label maps."""
        planned: partial[Any] = super().resampling_fn_seg
        if planned.func is not resample_data_or_seg_to_shape:
            return planned
        return partial(resample_labels, **planned.keywords)


class FastPlans(PlansManager):
    """Plans whose reader is faster, if they name one of nnU-Net's that has a faster twin."""

    @property
    def image_reader_writer_class(self) -> type:
        """The reader, which gives the same arrays and properties as the plans' own."""
        planned: type = super().image_reader_writer_class
        return LEAN_READERS.get(planned, planned)


class FastPreprocessor(DefaultPreprocessor):
    """nnU-Net's preprocessor, which draws the same foreground voxels faster."""

    @staticmethod
    def _sample_foreground_locations(
        seg: Any,
        classes_or_regions: Any,
        seed: int = 1234,
        verbose: bool = False,
        min_num_samples: int = 10000,
        min_percent_coverage: float = 0.01,
    ) -> Any:
        return sample_class_locations(seg, classes_or_regions, seed, min_num_samples, min_percent_coverage)
