"""From the results of all runs to the numbers a study reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from nnunet_pretrain.study.statistics import (
    Values,
    compare,
    epochs_to_best,
    equivalent_cases,
    estimate,
    mean_over_seeds,
    spread_over_seeds,
)

CONTROL = "scratch"

Result = Mapping[str, Any]
Cell = dict[int, Result]
"""Seed to result: the runs of one arm with one number of labelled cases."""


def by_cell(results: Iterable[Result]) -> dict[tuple[str, int], Cell]:
    """Groups results by arm and number of labelled cases; the control first, then in order of appearance."""
    results = sorted(results, key=lambda r: (r["arm"] != CONTROL, r["number_of_cases"], r["seed"]))
    arms = list(dict.fromkeys(result["arm"] for result in results))
    cells: dict[tuple[str, int], Cell] = {}
    for result in sorted(results, key=lambda r: (arms.index(r["arm"]), r["number_of_cases"])):
        cells.setdefault((result["arm"], result["number_of_cases"]), {})[result["seed"]] = result
    return cells


def values_of(cell: Cell, metric: str, seeds: Sequence[int], output: str | None = None) -> Values:
    """Returns one value per seed and case, NaN where there is none.

    Args:
        cell: Runs of one arm with one number of cases.
        metric: `Dice` or `NSD`.
        seeds: Which seeds, in this order.
        output: One output, or None for the mean over the outputs that have a value.

    Returns:
        Array of shape (seeds, test cases).
    """

    def value(scores: Mapping[str, Mapping[str, Any]]) -> float:
        chosen = [scores[output]] if output else list(scores.values())
        found = [score[metric] for score in chosen if score[metric] is not None]
        return float(np.mean(found)) if found else float("nan")

    return np.array([[value(scores) for _, scores in sorted(cell[s]["scores"].items())] for s in seeds])


def false_positives(cell: Cell, output: str | None = None) -> dict[str, float | int | None]:
    """Returns how often something is predicted in a case without the structure, over cases, outputs and seeds."""
    found = [
        score
        for result in cell.values()
        for scores in result["scores"].values()
        for name, score in scores.items()
        if output in (None, name) and score["false_positive"] is not None
    ]
    return {
        "without": len(found),
        "rate": float(np.mean([score["false_positive"] for score in found])) if found else None,
        "ml": float(np.mean([score["FP_ml"] for score in found])) if found else None,
    }


def mean_curve(cell: Cell) -> Values:
    """Returns the pseudo Dice per epoch, averaged over seeds."""
    curves = [[np.nan if v is None else v for v in result["pseudo_dice"]] for result in cell.values()]
    longest = max(map(len, curves))
    padded = np.array([[*curve, *[np.nan] * (longest - len(curve))] for curve in curves], dtype=np.float64)
    return mean_over_seeds(padded)


def summarise(results: Iterable[Result], pool: int) -> list[dict[str, Any]]:
    """Returns one entry per arm and number of labelled cases.

    Args:
        results: Results of runs.
        pool: Number of labelled cases that 100 % stands for.
    """
    cells = by_cell(results)
    dice = {key: _score(cell, "Dice") for key, cell in cells.items()}
    control = {number: dice[arm, number]["mean"] for arm, number in cells if arm == CONTROL}
    entries = []
    for (arm, number), cell in cells.items():
        names = next(iter(next(iter(cell.values()))["scores"].values()))
        entry: dict[str, Any] = {
            "arm": arm,
            "number_of_cases": number,
            "fraction": number / pool,
            "seeds": sorted(cell),
            "Dice": dice[arm, number],
            "NSD": _score(cell, "NSD"),
            "false_positives": false_positives(cell),
            "train_seconds": float(np.mean([result["train_seconds"] for result in cell.values()])),
            "outputs": {
                name: {
                    "Dice": _score(cell, "Dice", name),
                    "NSD": _score(cell, "NSD", name),
                    "false_positives": false_positives(cell, name),
                }
                for name in names
            },
        }
        if arm != CONTROL and control:
            entry["scratch_needs_cases"] = equivalent_cases(control, dice[arm, number]["mean"])
        if arm != CONTROL and (CONTROL, number) in cells:
            entry["against_scratch"] = _against(cell, cells[CONTROL, number])
        entries.append(entry)
    return entries


def _score(cell: Cell, metric: str, output: str | None = None) -> dict[str, Any]:
    values = values_of(cell, metric, sorted(cell), output)
    low, high = spread_over_seeds(values)
    return {**asdict(estimate(values)), "seed_min": low, "seed_max": high}


def _against(cell: Cell, control: Cell) -> dict[str, Any]:
    """Compares with the control, seed by seed and case by case."""
    seeds = sorted(set(cell) & set(control))
    if not seeds:
        return {}
    pairs: Callable[[str], dict[str, Any]] = lambda metric: asdict(  # noqa: E731
        compare(values_of(cell, metric, seeds), values_of(control, metric, seeds))
    )
    epochs = []
    for seed in seeds:
        curve, reference = cell[seed]["pseudo_dice"], control[seed]["pseudo_dice"]
        own, of_control = epochs_to_best(curve, reference)
        epochs.append({"seed": seed, "arm": own, "scratch": of_control, "of": len(reference)})
    return {"seeds": seeds, "Dice": pairs("Dice"), "NSD": pairs("NSD"), "epochs_to_scratch_best": epochs}
