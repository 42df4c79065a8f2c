"""The held-out images of a classification, in order, read ahead by threads while the network is at work."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform

from nnunet_pretrain.classification.resized_crops import ImageCrops

AHEAD = 3
"""Batches that are read while one is used."""

Cases = Sequence[str] | npt.NDArray[np.str_]


def evenly_spread(cases: npt.NDArray[np.str_], number: int) -> npt.NDArray[np.str_]:
    """Returns so many cases at equal distances, all if there are not more.

    Cases are sorted, so those of one class often lie together; the first ones would be of few classes.
    """
    return cases[np.linspace(0, len(cases) - 1, number).round().astype(int)] if number < len(cases) else cases


def share_of(cases: Cases, process: int, processes: int) -> npt.NDArray[np.str_]:
    """Returns the cases of one of several processes.

    All get equally many, because they take their steps together: the first cases come twice if need be.
    """
    each = ceil(len(cases) / processes)
    return np.resize(np.asarray(cases, dtype=np.str_), each * processes)[process::processes]


class HeldOutImages:
    """Batches of images in their order, over and over; the last batch of a round may be smaller.

    Args:
        images: The images.
        cases: Those to show.
        batch_size: Images per batch.
        transforms: Applied to each image.
        threads: Threads that read ahead; 0 reads when asked.
    """

    def __init__(
        self, images: ImageCrops, cases: Cases, batch_size: int, transforms: BasicTransform, threads: int = 0
    ) -> None:
        self.images, self.transforms, self.threads = images, transforms, threads
        self._chunks = [cases[i : i + batch_size] for i in range(0, len(cases), batch_size)]
        self._round: Iterator[dict[str, Any]] | None = None

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        batch = next(self._round, None) if self._round is not None else None
        if batch is None:
            self._round = self._batches()
            batch = next(self._round)
        return batch

    def restart(self) -> None:
        """Begins with the first batch again."""
        self._round = None

    def _batches(self) -> Iterator[dict[str, Any]]:
        if not self.threads:
            for chunk in self._chunks:
                yield _batch(chunk, [self._image(case) for case in chunk])
            return
        waiting: deque[tuple[Cases, list[Future[torch.Tensor]]]] = deque()
        with ThreadPoolExecutor(self.threads) as pool:
            for chunk in self._chunks:
                waiting.append((chunk, [pool.submit(self._image, case) for case in chunk]))
                if len(waiting) > AHEAD:
                    chunk, images = waiting.popleft()
                    yield _batch(chunk, [image.result() for image in images])
            for chunk, images in waiting:
                yield _batch(chunk, [image.result() for image in images])

    def _image(self, case: str) -> torch.Tensor:
        image: torch.Tensor = self.transforms(image=torch.from_numpy(self.images.image(str(case))))["image"]
        return image


def _batch(chunk: Cases, images: list[torch.Tensor]) -> dict[str, Any]:
    return {"data": torch.stack(images), "keys": np.asarray(chunk)}
