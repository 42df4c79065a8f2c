"""Progress of a pre-training for its user: a JSON file with one entry per epoch, and a figure of every source."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunet_pretrain.files import written_atomically

Dice = npt.NDArray[np.float64]

WIDTH = 16.0
PANEL_HEIGHT, CELL_HEIGHT, CELL_WIDTH = 1.75, 0.27, 0.62
TOP, GAP, MARGIN, NAMES_LEFT = 0.55, 0.55, 0.45, 2.4
MAX_POINTS, MAX_LETTERS = 120, 36
LINE_STYLES = ("-", "--", ":", "-.")


class EpochProgress(TypedDict):
    """What is known after an epoch. Plain values, so that it can be stored in a checkpoint and written as JSON.

    Attributes:
        epoch: Number of the epoch, from 0.
        lr: Learning rate at the start of the epoch.
        train_loss: Mean training loss.
        val_loss: Mean validation loss.
        mean_dice: Mean pseudo Dice of the groups, 0 to 1; NaN or None if no group had a voxel.
        ema_dice: Its exponential moving average, by which nnU-Net chooses the best checkpoint.
        seconds: Wall time of the epoch.
        waiting_share: Share of the epoch's time, 0 to 1, in which the device waited for data.
        cases_seen: Number of different training cases seen since the start, per source.
        pseudo_dice: Source to group to pseudo Dice, 0 to 1. A group that the source cannot decide is left out; NaN or
            None if it had no voxel in the epoch.
    """

    epoch: int
    lr: float
    train_loss: float
    val_loss: float
    mean_dice: float | None
    ema_dice: float | None
    seconds: float
    waiting_share: float
    cases_seen: dict[str, int]
    pseudo_dice: dict[str, dict[str, float | None]]


class DomainProgress(EpochProgress, total=False):
    """What is known after an epoch of a network with branches.

    Attributes:
        train_loss_by_source: Domain to the mean training loss of its branch; None if no step drew it.
    """

    train_loss_by_source: dict[str, float | None]


def write_progress_json(path: Path, entries: Sequence[EpochProgress]) -> None:
    """Writes `training_progress.json`, atomically: a list with one line per epoch, null where a number is not finite.

    Numbers keep six digits.
    """
    lines = ",\n".join(json.dumps(_jsonable(entry)) for entry in entries)
    with written_atomically(path) as temporary:
        temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


@mpl.rc_context(mpl.rcParamsDefault)  # nnU-Net's own figure leaves seaborn's grids and sizes behind
def plot_progress(
    path: Path,
    entries: Sequence[EpochProgress],
    groups: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
) -> None:
    """Draws the pseudo Dice: curves of every source, and a table of the latest values, whose columns are the legend.

    Args:
        path: PNG file, written atomically.
        entries: All epochs so far.
        groups: Groups in the order of columns and colours, e.g. `LabelSetTable.groups`; otherwise in order of
            appearance. Give them, so that colours stay the same from epoch to epoch and from run to run.
        sources: Sources in the order of panels and rows; otherwise in order of appearance.
    """
    found = [entry["pseudo_dice"] for entry in entries]
    rows = list(sources or dict.fromkeys(source for dice in found for source in dice))
    columns = list(groups or dict.fromkeys(group for dice in found for own in dice.values() for group in own))
    dice, decidable = _as_array(found, rows, columns)
    latest, styles = _latest(dice), group_styles(columns)
    table = latest[-1] if entries else np.full(decidable.shape, np.nan)
    across = min(len(rows), 5 if len(rows) > 8 else 4) or 1
    table_height = (len(rows) + 1) * CELL_HEIGHT
    names_below = 0.5 + 0.056 * max((len(_short(name)) for name in columns), default=0)  # they stand at 45 degrees
    height = TOP + math.ceil(len(rows) / across) * (PANEL_HEIGHT + GAP) + GAP + table_height + names_below
    figure = Figure(figsize=(WIDTH, height))
    _title(figure, entries)
    # The mean is over the latest values, for it must not jump with the groups an epoch happens to meet.
    lines = np.concatenate([dice, _mean(latest, 2)[:, :, None]], axis=2)
    epochs, curves = _decimated(np.array([entry["epoch"] for entry in entries], dtype=float), lines)
    width = min((WIDTH - MARGIN) / across - MARGIN, 7.0)
    for index, source in enumerate(rows):
        left = MARGIN + index % across * (width + MARGIN)
        bottom = height - TOP - (index // across + 1) * (PANEL_HEIGHT + GAP) + GAP * 0.6
        panel = _axes(figure, left, bottom, width, PANEL_HEIGHT)
        _panel(panel, source, epochs, curves[:, index], table[index], decidable[index], styles)
    if rows and columns:
        cell = min(CELL_WIDTH, (WIDTH - NAMES_LEFT - MARGIN) / (len(columns) + 1))
        below = _axes(figure, NAMES_LEFT, names_below, cell * (len(columns) + 1), table_height)
        _table(below, table, decidable, rows, columns, styles, fontsize=8 if cell > 0.38 else 7)
    with written_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Adds axes at a place given in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def group_styles(groups: Sequence[str]) -> list[dict[str, Any]]:
    """Gives each group a colour and a line style of its own, up to 40 groups."""
    palette = mpl.color_sequences["tab10"]
    return [
        {"color": palette[i % len(palette)], "linestyle": LINE_STYLES[i // len(palette) % len(LINE_STYLES)]}
        for i in range(len(groups))
    ]


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _short(name: str) -> str:
    return name if len(name) <= MAX_LETTERS else f"{name[: MAX_LETTERS - 1]}…"


def _as_array(
    found: Sequence[Mapping[str, Mapping[str, float | None]]], rows: list[str], columns: list[str]
) -> tuple[Dice, npt.NDArray[np.bool_]]:
    """Returns the Dice by epoch, source and group, NaN where there is none, and which sources decide which groups."""
    dice = np.full((len(found), len(rows), len(columns)), np.nan)
    decidable = np.zeros(dice.shape[1:], dtype=bool)
    row_of, column_of = ({name: i for i, name in enumerate(names)} for names in (rows, columns))
    for epoch, by_source in enumerate(found):
        for source, by_group in by_source.items():
            for group, value in by_group.items():
                if source in row_of and group in column_of:
                    place = row_of[source], column_of[group]
                    decidable[place] = True
                    dice[(epoch, *place)] = np.nan if value is None else value
    return dice, decidable


def _mean(dice: Dice, axis: int) -> Dice:
    """Averages the values there are; NaN where there are none."""
    there = np.isfinite(dice)
    with np.errstate(invalid="ignore"):
        return np.where(there, dice, 0).sum(axis) / there.sum(axis)


def _decimated(epochs: Dice, dice: Dice) -> tuple[Dice, Dice]:
    """Averages over neighbouring epochs, so that a panel has no more points than it can show."""
    if len(epochs) <= MAX_POINTS:
        return epochs, dice
    bins = np.array_split(np.arange(len(epochs)), MAX_POINTS)
    return np.array([epochs[b].mean() for b in bins]), np.stack([_mean(dice[b], 0) for b in bins])


def _latest(dice: Dice) -> Dice:
    """Returns for each epoch the last values there are up to then: not every epoch meets a voxel of each group."""
    epochs = np.arange(len(dice))[:, None, None]
    last = np.maximum.accumulate(np.where(np.isfinite(dice), epochs, 0), axis=0)
    return np.take_along_axis(dice, last, axis=0)


def _title(figure: Figure, entries: Sequence[EpochProgress]) -> None:
    text = "Pseudo Dice per source"
    if entries:
        last = entries[-1]
        text += f" after epoch {last['epoch']}"
        if last["mean_dice"] is not None and math.isfinite(last["mean_dice"]):
            text += f": mean {last['mean_dice']:.3f}"
    top = 1 - 0.25 / figure.get_size_inches()[1]
    figure.text(MARGIN / WIDTH, top, text, fontsize=13, fontweight="bold", va="center")
    hint = "Over epochs; black: mean of the source's groups; colours and dashes: under the table."
    figure.text(1 - MARGIN / WIDTH, top, hint, fontsize=9, color="0.35", ha="right", va="center")


def _panel(
    axes: Axes,
    source: str,
    epochs: Dice,
    curves: Dice,
    latest: Dice,
    decidable: npt.NDArray[np.bool_],
    styles: Sequence[Mapping[str, Any]],
) -> None:
    """Draws a source's curves, shape (epochs, groups and mean); `latest` and `decidable` have the shape (groups,)."""
    for values, style in zip(curves.T, styles, strict=False):
        _curve(axes, epochs, values, linewidth=1.1, **style)
    number = int(decidable.sum())
    if number > 1:
        _curve(axes, epochs, curves[:, -1], linewidth=2, color="black", zorder=3)
    mean = float(_mean(latest, 0))
    text = f"mean {mean:.2f}" if math.isfinite(mean) else "no values yet"
    axes.set_title(_short(source), fontsize=9, fontweight="bold", loc="left", pad=3)
    axes.set_title(f"{text}, {number} group{'s' * (number != 1)}", fontsize=8, loc="right", pad=3, color="0.35")
    axes.set_ylim(-0.02, 1.02)
    if len(epochs):
        axes.set_xlim(epochs[0] - 0.5, max(epochs[-1], epochs[0] + 5) + 0.5)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", ".5", "", "1"])
    axes.tick_params(labelsize=7, length=2, pad=2)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _curve(axes: Axes, epochs: Dice, values: Dice, **style: Any) -> None:
    there = np.isfinite(values)
    if there.any():
        axes.plot(epochs[there], values[there], marker="o" if there.sum() == 1 else None, markersize=3.5, **style)


def _table(
    axes: Axes,
    latest: Dice,
    decidable: npt.NDArray[np.bool_],
    rows: Sequence[str],
    columns: Sequence[str],
    styles: Sequence[Mapping[str, Any]],
    fontsize: float,
) -> None:
    """Draws the latest Dice of each source and group, and the means of rows and columns."""
    body = np.concatenate([latest, _mean(latest, 0)[None]])
    values = np.concatenate([body, _mean(body, 1)[:, None]], axis=1)
    shown = np.ones(values.shape, dtype=bool)
    shown[:-1, :-1], shown[-1, :-1] = decidable, decidable.any(axis=0)
    axes.imshow(np.where(shown, 1.0, np.nan), cmap=ListedColormap(["0.93"]), aspect="auto")
    axes.imshow(values, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for row, column in np.argwhere(shown).tolist():
        value = values[row, column]
        text = f"{value:.2f}".removeprefix("0") if np.isfinite(value) else "?"
        colour = "white" if value < 0.6 else "black"
        axes.text(column, row, text, color=colour, fontsize=fontsize, ha="center", va="center")
    axes.set_yticks(range(len(rows) + 1), [*map(_short, rows), "mean"], fontsize=8)
    axes.set_xticks(
        range(len(columns) + 1), [*map(_short, columns), "mean"], fontsize=8, rotation=45, ha="right", va="top"
    )
    axes.tick_params(length=0, pad=3)
    axes.tick_params(axis="x", pad=14)
    for column, style in enumerate([*styles, {"color": "black", "linestyle": "-"}]):
        below = len(rows) + 0.5 + 0.42
        width = 1.7 if column < len(styles) else 2.5
        axes.plot([column - 0.42, column + 0.42], [below, below], linewidth=width, clip_on=False, **style)
    axes.set_xlim(-0.5, len(columns) + 0.5)
    axes.set_ylim(len(rows) + 0.5, -0.5)
    axes.axhline(len(rows) - 0.5, color="white", linewidth=3)
    axes.axvline(len(columns) - 0.5, color="white", linewidth=3)
    axes.spines[:].set_visible(False)
    axes.set_title(
        "Latest pseudo Dice. Empty: the source cannot decide it; ?: not a voxel met yet", fontsize=9, loc="left"
    )
