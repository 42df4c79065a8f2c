"""The figure of a study: its metrics against labelled cases, and the one logged while training against epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator, ScalarFormatter

from nnunet_pretrain.files import written_atomically
from nnunet_pretrain.study.summary import mean_curve
from nnunet_pretrain.study.task import Cell, Task

# Okabe and Ito's colours, which people with colour vision deficiencies tell apart (jfly.uni-koeln.de/color).
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
MARKERS = "osD^vPX*<>hd"
LINES = ("-", "--", ":")
COLUMNS, PANEL_INCHES = 3, (4.4, 3.4)


def write_figure(
    path: Path,
    entries: Sequence[Mapping[str, Any]],
    cells: Mapping[tuple[str, int], Cell],
    task: Task,
    nsd_mm: float,
) -> None:
    """Draws a study.

    Args:
        path: The picture, ending with .png.
        entries: What `summarise` returned.
        cells: Arm and number of labelled cases to the results of each seed.
        task: What was trained and scored.
        nsd_mm: Tolerance of the surface Dice in mm.
    """
    arms = list(dict.fromkeys(arm for arm, _ in cells))
    numbers = sorted({number for _, number in cells})
    shown = task.panels(nsd_mm)
    panels = len(shown) + len(numbers)
    columns = min(COLUMNS, panels)
    rows = -(-panels // columns)
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * columns, height * rows + 0.5), layout="constrained")
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(panels)]
    for panel, (metric, label) in zip(axes, shown, strict=False):
        _draw_labels(panel, entries, arms, metric)
        panel.set(xlabel="labelled cases", ylabel=label, title=f"{metric}, 95 % interval over cases")
    for panel, number in zip(axes[len(shown) :], numbers, strict=True):
        _draw_epochs(panel, cells, arms, number, task.curve)
        panel.set(title=f"{number} labelled cases", xlabel="epoch", ylabel=task.curve_label, ylim=(0, 1))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(arms), 4))
    with written_atomically(path) as temporary:
        figure.savefig(temporary, dpi=150)


def style_of(position: int) -> dict[str, Any]:
    """Returns colour, marker and line of the arm at a position; no two of the first 24 look alike."""
    return {
        "color": COLOURS[position % len(COLOURS)],
        "marker": MARKERS[position % len(MARKERS)],
        "linestyle": LINES[position // len(COLOURS) % len(LINES)],
        "linewidth": 1.6,
        "markersize": 5,
    }


def _draw_labels(axes: Axes, entries: Sequence[Mapping[str, Any]], arms: Sequence[str], metric: str) -> None:
    numbers = sorted({entry["number_of_cases"] for entry in entries})
    # Side by side, so that intervals of arms with equally many cases can be told apart; all within 15 percent.
    shift = min(1.03, 1.15 ** (1 / max(1, len(arms) - 1)))
    for position, arm in enumerate(arms):
        own = [entry for entry in entries if entry["arm"] == arm]
        mean, low, high = (np.array([entry[metric][key] for entry in own]) for key in ("mean", "low", "high"))
        places = np.array([e["number_of_cases"] for e in own]) * shift ** (position - (len(arms) - 1) / 2)
        errors = np.stack([mean - low, high - mean])
        axes.errorbar(places, mean, errors, label=arm, capsize=2.5, elinewidth=1, **style_of(position))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(numbers))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)


def _draw_epochs(axes: Axes, cells: Mapping[tuple[str, int], Cell], arms: Sequence[str], number: int, key: str) -> None:
    for position, arm in enumerate(arms):
        if (arm, number) in cells:
            curve = mean_curve(cells[arm, number], key)
            style = {**style_of(position), "marker": None if len(curve) > 1 else "o"}
            axes.plot(np.arange(1, len(curve) + 1), curve, **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
