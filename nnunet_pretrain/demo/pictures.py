"""Pictures of CTs with overlaid label maps, and learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patches import Patch

WINDOW_HU = (-160.0, 240.0)


def canonical(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """Reads a NIfTI turned to RAS+.

    Returns:
        The array, axes (x to the right, y to the front, z up), and the voxel size in mm.
    """
    image = nib.as_closest_canonical(nib.load(path))
    return np.asanyarray(image.dataobj), np.asarray(image.header.get_zooms()[:3], dtype=float)


def colours(names: Sequence[str]) -> dict[str, Any]:
    """Gives each name a colour of its own, up to 38; further ones begin anew."""
    pairs = mpl.color_sequences["tab20"]
    palette = [*pairs[::2], *pairs[1::2], *mpl.color_sequences["tab20b"]]
    palette = [colour for colour in palette if np.ptp(colour) > 0.1]  # grey would look like the CT itself
    return {name: palette[i % len(palette)] for i, name in enumerate(names)}


def overlay(
    image: Path, label_maps: Mapping[str, Path | None], labels: Mapping[int, str], palette: Mapping[str, Any]
) -> Figure:
    """Draws an axial and a coronal slice of a CT, once per label map.

    Args:
        image: The CT.
        label_maps: Title of a column to label map, None for the CT alone.
        labels: Id to name, without background.
        palette: Name to colour.

    Returns:
        A figure with the axial slices above the coronal ones, seen as radiologists do (patient's right on the left).
    """
    volume, zooms = canonical(image)
    maps = {title: None if path is None else canonical(path)[0] for title, path in label_maps.items()}
    drawn = [m for m in maps.values() if m is not None]
    z, y = (_busiest(drawn, axis) for axis in (2, 1))
    figure, axes = plt.subplots(2, len(maps), figsize=(3.3 * len(maps), 6.6), squeeze=False)
    seen: set[int] = set()
    cuts: list[tuple[Any, float]] = [
        ((slice(None), slice(None), z), zooms[1] / zooms[0]),
        ((slice(None), y, slice(None)), zooms[2] / zooms[0]),
    ]
    for column, (title, label_map) in enumerate(maps.items()):
        for row, (cut, aspect) in enumerate(cuts):
            axis = axes[row, column]
            axis.imshow(_turned(volume[cut]), cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1], aspect=aspect)
            if label_map is not None:
                axis.imshow(_painted(_turned(label_map[cut]), labels, palette), aspect=aspect, interpolation="nearest")
                seen |= set(np.unique(label_map[cut]).tolist())
            axis.axis("off")
        axes[0, column].set_title(title, fontsize=10)
    handles = [Patch(color=palette[name], label=name) for i, name in labels.items() if i in seen]
    if handles:
        figure.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    figure.tight_layout(pad=0.4)
    return figure


def _busiest(label_maps: Sequence[npt.NDArray[Any]], axis: int) -> int:
    """Returns the slice that shows most labels, and among those most labelled voxels, in the first map."""
    moved = np.moveaxis(label_maps[0], axis, 0)
    return int(np.argmax([len(np.unique(cut)) + np.count_nonzero(cut) / cut.size for cut in moved]))


def _turned(cut: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Puts the patient's right on the left of the picture, front or head on top."""
    return cut.T[::-1, ::-1]


def _painted(cut: npt.NDArray[Any], labels: Mapping[int, str], palette: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    rgba = np.zeros((*cut.shape, 4))
    for label_id, name in labels.items():
        rgba[cut == label_id] = (*palette[name], 0.55)
    return rgba


def curves(runs: Mapping[str, Mapping[str, Sequence[float]]], title: str) -> Figure:
    """Draws training loss and pseudo Dice of several runs against epochs.

    Args:
        runs: Name of a run to nnU-Net's log (`train_losses`, `val_losses`, `mean_fg_dice`).
        title: Title of the figure.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
    for name, log in runs.items():
        line = left.plot(log["train_losses"], label=f"{name}, training")[0]
        left.plot(log["val_losses"], "--", color=line.get_color(), label=f"{name}, validation")
        right.plot(log["mean_fg_dice"], color=line.get_color(), label=name)
    for axis, label in ((left, "loss"), (right, "pseudo Dice (unseen cases)")):
        axis.set(xlabel="epoch", ylabel=label)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(title)
    figure.tight_layout()
    return figure
