"""Which natural images are held out: the same ones on every machine, and some of every class."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FOLDS = 5
SEED = 12345
"""nnU-Net's own seed for what must not change between runs."""

Positions = npt.NDArray[np.int64]


def hold_out_share(labels: npt.NDArray[np.str_], share: float) -> npt.NDArray[np.bool_]:
    """Holds out a share of the images of every class.

    Args:
        labels: Class of each image, shape (n,); all alike where images have masks instead.
        share: Share of each class; a class with more than one image gives at least one and keeps at least one.

    Returns:
        Whether each image is held out, shape (n,).
    """
    place, sizes = _places(labels)
    number = np.clip(np.rint(share * sizes), 1 if share else 0, np.maximum(sizes - 1, 0))
    return place < number


def hold_out_fold(labels: npt.NDArray[np.str_], fold: int) -> npt.NDArray[np.bool_]:
    """Holds out one of five folds, in each of which every class has its share, to within one image.

    Args:
        labels: Class of each image, shape (n,).
        fold: Number of the fold, 0 to 4.

    Returns:
        Whether each image is held out, shape (n,).

    Raises:
        ValueError: There is no such fold.
    """
    if not 0 <= fold < FOLDS:
        raise ValueError(f"fold {fold} was asked for, there are {FOLDS}: choose one of 0 to {FOLDS - 1}, or `all`")
    order = _shuffled_by_class(labels)
    place = np.empty(len(labels), np.int64)
    place[order] = np.arange(len(labels))  # goes on from class to class, so that folds are equally large as well
    return place % FOLDS == fold


def _places(labels: npt.NDArray[np.str_]) -> tuple[Positions, Positions]:
    """Returns each image's place in the random order of its class, and the size of that class."""
    order = _shuffled_by_class(labels)
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    place, size = np.empty(len(labels), np.int64), np.empty(len(labels), np.int64)
    place[order] = np.arange(len(labels)) - np.repeat(starts, sizes)
    size[order] = np.repeat(sizes, sizes)
    return place, size


def _shuffled_by_class(labels: npt.NDArray[np.str_]) -> Positions:
    codes = np.unique(labels, return_inverse=True)[1].reshape(-1)
    order: Positions = np.lexsort((np.random.default_rng(SEED).random(len(labels)), codes)).astype(np.int64)
    return order
