"""From the results of all runs to the numbers a study reports."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from nnunet_pretrain.study.segmentation import SEGMENTATION
from nnunet_pretrain.study.statistics import Values, epochs_to_best, equivalent_cases, mean_over_seeds
from nnunet_pretrain.study.task import Cell, Result, Task

CONTROL = "scratch"


def by_cell(results: Iterable[Result]) -> dict[tuple[str, int], Cell]:
    """Groups results by arm and number of labelled cases; the control first, then in order of appearance."""
    results = sorted(results, key=lambda r: (r["arm"] != CONTROL, r["number_of_cases"], r["seed"]))
    arms = list(dict.fromkeys(result["arm"] for result in results))
    cells: dict[tuple[str, int], Cell] = {}
    for result in sorted(results, key=lambda r: (arms.index(r["arm"]), r["number_of_cases"])):
        cells.setdefault((result["arm"], result["number_of_cases"]), {})[result["seed"]] = result
    return cells


def mean_curve(cell: Cell, curve: str) -> Values:
    """Returns the task's metric per epoch, averaged over seeds."""
    curves = [[np.nan if v is None else v for v in result[curve]] for result in cell.values()]
    longest = max(map(len, curves))
    padded = np.array([[*one, *[np.nan] * (longest - len(one))] for one in curves], dtype=np.float64)
    return mean_over_seeds(padded)


def summarise(results: Iterable[Result], pool: int, task: Task = SEGMENTATION) -> list[dict[str, Any]]:
    """Returns one entry per arm and number of labelled cases.

    Args:
        results: Results of runs.
        pool: Number of labelled cases that 100 % stands for.
        task: What was trained and scored.
    """
    cells = by_cell(results)
    found = {key: {metric: task.score(cell, metric) for metric in task.metrics} for key, cell in cells.items()}
    main = task.metrics[0]
    control = {number: found[arm, number][main]["mean"] for arm, number in cells if arm == CONTROL}
    entries = []
    for (arm, number), cell in cells.items():
        entry: dict[str, Any] = {
            "arm": arm,
            "number_of_cases": number,
            "fraction": number / pool,
            "seeds": sorted(cell),
            **found[arm, number],
            "train_seconds": float(np.mean([result["train_seconds"] for result in cell.values()])),
            **task.details(cell),
        }
        if arm != CONTROL and control:
            entry["scratch_needs_cases"] = equivalent_cases(control, entry[main]["mean"])
        if arm != CONTROL and (CONTROL, number) in cells:
            entry["against_scratch"] = _against(cell, cells[CONTROL, number], task)
        entries.append(entry)
    return entries


def _against(cell: Cell, control: Cell, task: Task) -> dict[str, Any]:
    """Compares with the control, seed by seed and case by case."""
    seeds = sorted(set(cell) & set(control))
    if not seeds:
        return {}
    epochs = []
    for seed in seeds:
        curve, reference = cell[seed][task.curve], control[seed][task.curve]
        own, of_control = epochs_to_best(curve, reference)
        epochs.append({"seed": seed, "arm": own, "scratch": of_control, "of": len(reference)})
    compared = {metric: task.compare(cell, control, seeds, metric) for metric in task.metrics}
    return {"seeds": seeds, **compared, "epochs_to_scratch_best": epochs}
