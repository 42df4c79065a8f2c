"""Top-1 and top-5: how often the right class is the most probable one, or among the five most probable ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch
from scipy.stats import norm
from torch import Tensor

from nnunet_pretrain.classification.metrics import LEVEL

TOP = {"top-1": 1, "top-5": 5}
METHOD = (
    "top-k: share of images whose class is among the k with the largest logits. Intervals: 95 %, Wilson (JASA 1927), "
    "one image per trial."
)


def places(logits: Tensor, truth: Tensor) -> Tensor:
    """Returns how many classes come before the right one; of equal logits, the first class comes first.

    Args:
        logits: Shape (images, classes).
        truth: Class of each image, shape (images,).

    Returns:
        Shape (images,); 0 means that the right class is the most probable one.
    """
    own = logits.gather(1, truth[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < truth[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(1)


def wilson(right: int, number: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share (Wilson 1927).

    Args:
        right: How many were right.
        number: How many there were, at least 1.
    """
    z = float(norm.ppf((1 + LEVEL) / 2))
    share = right / number
    middle = (share + z * z / (2 * number)) / (1 + z * z / number)
    half = z * math.sqrt(share * (1 - share) / number + z * z / (4 * number * number)) / (1 + z * z / number)
    return max(0.0, middle - half), min(1.0, middle + half)


def summary_of(classes: Sequence[str], truth: npt.NDArray[Any], found: npt.NDArray[Any]) -> dict[str, Any]:
    """Puts a validation together.

    Args:
        classes: Names of the classes.
        truth: Class of each image, shape (images,).
        found: What `places` says of each image, shape (images,).

    Returns:
        Top-1 and top-5 with their intervals, and both of every class that has images; plain values.
    """
    metrics = {}
    for name, k in TOP.items():
        right = int((found < k).sum())
        low, high = wilson(right, len(found))
        metrics[name] = {"value": right / len(found), "low": low, "high": high}
    per_class = {
        name: {"images": int(own.sum()), **{top: float((found[own] < k).mean()) for top, k in TOP.items()}}
        for name, own in ((name, truth == i) for i, name in enumerate(classes))
        if own.any()
    }
    return {"images": len(found), "metrics": metrics, "method": METHOD, "per_class": per_class}
