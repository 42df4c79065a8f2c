"""What stands between nnU-Net's loader and a dataset of natural images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import Array
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

from nnunet_pretrain.training.depth_slices import grey_slices

_ROOM = 4000  # bytes


class FirstFailure:
    """Why a case could not be read, kept where the main process finds it when nnU-Net's worker processes are gone."""

    def __init__(self) -> None:
        self._text: Any = Array("c", _ROOM)

    @property
    def message(self) -> str:
        """The first failure of all processes; empty if there was none."""
        return bytes(self._text.value).decode("utf-8", "ignore")

    @contextmanager
    def named(self, case: str) -> Iterator[None]:
        """Turns any error while a case is read into one that names it.

        Raises:
            ValueError: The case could not be read.
        """
        try:
            yield
        except Exception as error:  # a damaged file can raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            message = f"case '{case}' could not be read: {reason}"
            with self._text.get_lock():
                if not self._text.value:
                    self._text.value = message.encode("utf-8", "replace")[: _ROOM - 1]
            raise ValueError(message) from error


class CentredCases:
    """A dataset whose foreground lies in the middle slice, so that a patch around it shows all three.

    nnU-Net's loader centres a patch on a voxel, along depth as well, and fills up what lies outside: around a voxel of
    the last slice, the patch would lose the first one.

    Args:
        dataset: The cases.
        failure: Where a case that cannot be read is noted.
    """

    def __init__(self, dataset: nnUNetBaseDataset, failure: FirstFailure) -> None:
        self.dataset, self.failure = dataset, failure
        # An array, because nnU-Net's loader makes one of a list for every batch.
        self.identifiers: npt.NDArray[np.str_] = np.asarray(dataset.identifiers, dtype=np.str_)

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """As the dataset's."""
        with self.failure.named(str(identifier)):
            data, seg, seg_previous, properties = self.dataset.load_case(str(identifier))
        locations = properties["class_locations"]
        if isinstance(locations, dict):  # of volumes; those of originals lie there already, and are looked for late
            locations = {key: _in_slice(found, data.shape[1] // 2) for key, found in locations.items()}
        return data, seg, seg_previous, {**properties, "class_locations": locations}


class GreyCases:
    """Makes the images of a dataset grey, for nnU-Net's predictor in the final validation of a grey control.

    Args:
        dataset_class: Class of the dataset.
        folder: Its folder.
        identifiers: The cases.
        arguments: Further arguments of the class.
    """

    def __init__(
        self, dataset_class: Callable[..., Any], folder: str, identifiers: Any = None, **arguments: Any
    ) -> None:
        self.dataset = dataset_class(folder, identifiers, **arguments)
        self.identifiers = self.dataset.identifiers

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """As the dataset's, with the luminance in every slice."""
        data, *rest = self.dataset.load_case(identifier)
        return (grey_slices(torch.from_numpy(np.asarray(data[:]))).numpy(), *rest)


def _in_slice(voxels: Any, number: int) -> Any:
    """Returns voxels (n, 4), columns channel, z, y, x, moved to one slice; an empty list stays one."""
    if len(voxels):
        voxels = np.array(voxels)
        voxels[:, 1] = number
    return voxels
