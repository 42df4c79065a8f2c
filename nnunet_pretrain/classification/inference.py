"""Probabilities of classes: how they are computed, and the table they are written to."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from nnunet_pretrain.classification.labels import Example
from nnunet_pretrain.files import written_atomically


def autocast_on(device: torch.device) -> AbstractContextManager[Any]:
    """Returns nnU-Net's precision on a device: mixed on GPUs, full elsewhere."""
    return torch.autocast("cuda") if device.type == "cuda" else nullcontext()


@torch.no_grad()
def probabilities_of(
    network: nn.Module, image: npt.NDArray[Any], mirror_axes: Sequence[int] | None, device: torch.device
) -> npt.NDArray[np.float64]:
    """Returns the probabilities of the classes, averaged over all mirrorings as nnU-Net's predictor averages logits.

    Args:
        network: The classifier, in evaluation mode.
        image: Shape (channels, Z, Y, X).
        mirror_axes: Axes of the patch to mirror, None for no mirroring.
        device: Where the network is.

    Returns:
        Shape (classes,), in float64; their sum is 1.
    """
    x = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None].to(device)
    axes = tuple(mirror_axes or ())
    flips = [chosen for number in range(len(axes) + 1) for chosen in combinations(axes, number)]
    with autocast_on(device):
        logits = [network(torch.flip(x, [axis + 2 for axis in flip]) if flip else x)[0] for flip in flips]
    found: npt.NDArray[np.float64] = torch.stack(logits).double().softmax(1).mean(0).cpu().numpy()
    return found


def write_probabilities(
    path: Path,
    classes: Sequence[str],
    examples: Sequence[Example],
    probabilities: Iterable[Sequence[float]],
    with_class: bool,
) -> None:
    """Writes a table: case, for lesions lesion and component, if wanted the true class, and p_CLASS for every class.

    Args:
        path: The file, CSV; it is complete or as before.
        classes: Names of the classes, in the order of the probabilities.
        examples: One per row.
        probabilities: Shape (examples, classes).
        with_class: Whether the true class is known.
    """
    lesions = [name for name in ("lesion", "component") if any(getattr(e, name) is not None for e in examples)]
    columns = ["case", *lesions, *(["class"] if with_class else [])]
    with written_atomically(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, *(f"p_{name}" for name in classes)])
        for example, found in zip(examples, probabilities, strict=True):
            values = [getattr(example, "label" if name == "class" else name) for name in columns]
            writer.writerow([*("" if v is None else v for v in values), *(f"{p:.6f}" for p in found)])
