"""Pictures of a merge's report: volumes of every label, and small copies of the pictures of the cases."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_pretrain.conversion.report_facts import Volume

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 5
PANELS = 40
"""Panels in one figure; a large label space gets several figures."""

THUMBNAIL_WIDTH = 720
_JPEG_QUALITY = 82
_BINS = 20
_MAX_NAME = 36
_PALETTE = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8833")
"""Colours of sources; Paul Tol's bright scheme and an orange, distinguishable without red or green too."""
_OTHERS, _OTHERS_COLOUR = "other sources", "#999999"


def thumbnail(path: Path) -> bytes:
    """Returns a small JPEG of a picture, to be embedded."""
    from PIL import Image

    with Image.open(path) as picture:
        small = picture.convert("RGB")
    if small.width > THUMBNAIL_WIDTH:
        size = THUMBNAIL_WIDTH, max(1, round(small.height * THUMBNAIL_WIDTH / small.width))
        small = small.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def source_colours(found: Mapping[str, Sequence[Volume]]) -> dict[str, str]:
    """Gives the sources with most volumes a colour each, and all others one in common."""
    counts = Counter(volume.source for volumes in found.values() for volume in volumes)
    names = sorted(counts, key=lambda name: (-counts[name], name))
    colours = dict(zip(names, _PALETTE, strict=False))
    return {**colours, _OTHERS: _OTHERS_COLOUR} if len(names) > len(_PALETTE) else colours


def draw_volumes(
    found: Mapping[str, Sequence[Volume]], marked: Mapping[str, Collection[str]]
) -> Iterator[tuple[str, Figure]]:
    """Draws a histogram per label, stacked by source, over a logarithmic axis.

    Args:
        found: Label to volumes.
        marked: Label to cases to mark.

    Yields:
        Names and figures, one after the other so that each can be closed.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    colours = source_colours(found)
    labels = list(found)
    for number, start in enumerate(range(0, len(labels), PANELS), start=1):
        shown = labels[start : start + PANELS]
        rows = -(-len(shown) // COLUMNS)
        height = 1.55 * rows + 0.5
        figure = Figure(figsize=(12, height))
        axes = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
        for axis, label in zip(axes, shown, strict=False):
            _draw_label(axis, label, found[label], marked.get(label, ()), colours)
        for axis in axes[len(shown) :]:
            axis.set_axis_off()
        handles = [Patch(color=colour, label=_short(name)) for name, colour in colours.items()]
        look: dict[str, Any] = {"fontsize": 8, "frameon": False, "handlelength": 1.3, "columnspacing": 1.2}
        figure.legend(handles=handles, loc="upper center", ncols=len(handles), **look)
        figure.subplots_adjust(0.02, 0.3 / height, 0.99, 1 - 0.85 / height, wspace=0.16, hspace=0.85)
        yield f"volumes-{number}", figure


def _draw_label(
    axis: Any, label: str, volumes: Sequence[Volume], marked: Collection[str], colours: Mapping[str, str]
) -> None:
    logs = np.log10([volume.ml for volume in volumes])
    low, high = float(logs.min()), float(logs.max())
    margin = max(0.05, 0.06 * (high - low))
    bins = np.linspace(low - margin, high + margin, _BINS + 1)
    of_colour = np.array([colours.get(volume.source, _OTHERS_COLOUR) for volume in volumes])
    stacks = [colour for colour in colours.values() if (of_colour == colour).any()]
    counts, _, _ = axis.hist([logs[of_colour == colour] for colour in stacks], bins=bins, stacked=True, color=stacks)
    most = int(np.max(counts))
    axis.axvline(float(np.median(logs)), color="black", linewidth=0.8, linestyle="--")
    outlying = [log for log, volume in zip(logs, volumes, strict=True) if volume.case in marked]
    axis.plot(outlying, [1.12 * most] * len(outlying), "v", color="#cc0000", markersize=4, clip_on=False, zorder=3)
    axis.set_xlim(bins[0], bins[-1])
    axis.set_ylim(0, 1.12 * most)
    axis.set_yticks([most])
    _label_ends(axis, low, high)
    axis.tick_params(labelsize=7, length=2, pad=1.5)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(
        f"{_short(label)}\nn = {len(volumes)}, median {ml_text(float(10 ** np.median(logs)))} ml", fontsize=8, pad=6
    )


def _label_ends(axis: Any, low: float, high: float) -> None:
    """Writes the smallest and the largest volume below an axis of log10 volumes."""
    ends = [low, high] if high > low else [low]
    axis.set_xticks(ends, [ml_text(10**end) for end in ends])
    if high > low:
        for text, side in zip(axis.get_xticklabels(), ("left", "right"), strict=True):
            text.set_horizontalalignment(side)


def _short(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…"


def ml_text(volume: float) -> str:
    """Returns a volume in ml with about three digits."""
    return f"{volume:,.0f}" if volume >= 100 else f"{volume:.3g}"
