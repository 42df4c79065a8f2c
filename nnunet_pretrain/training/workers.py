"""Worker processes of nnU-Net's data loaders."""

from __future__ import annotations

from typing import Any

from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter


def stop_workers(loader: Any) -> None:
    """Stops the processes of a loader that will not be used any more; a loader without processes is left alone.

    Args:
        loader: What nnU-Net's `get_dataloaders` returns for training or validation.
    """
    if isinstance(loader, (MultiThreadedAugmenter, NonDetMultiThreadedAugmenter)):
        loader._finish()
