"""What a study leaves: results.json, results.csv, table.md and the figure."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from nnunet_pretrain.files import read_json, write_json, written_atomically
from nnunet_pretrain.study.figure import write_figure
from nnunet_pretrain.study.segmentation import SEGMENTATION
from nnunet_pretrain.study.summary import by_cell, summarise
from nnunet_pretrain.study.task import Task


def write_report(folder: Path, pool: int, nsd_mm: float, task: Task = SEGMENTATION) -> str:
    """Writes the report on all runs of a study that are finished.

    Args:
        folder: The study's folder.
        pool: Number of labelled cases that 100 % stands for.
        nsd_mm: Tolerance of the surface Dice in mm.
        task: What was trained and scored.

    Returns:
        The tables, in Markdown.

    Raises:
        ValueError: No run is finished.
    """
    results = [read_json(path) for path in sorted((folder / "runs").glob("[!.]*.json"))]
    if not results:
        raise ValueError(f"no run in {folder / 'runs'} is finished; run the study again")
    entries = summarise(results, pool, task)
    write_json(folder / "results.json", _without_nan({"labelled_cases": pool, "nsd_mm": nsd_mm, "arms": entries}))
    task.write_csv(folder / "results.csv", results)
    text = task.tables(entries, nsd_mm)
    with written_atomically(folder / "table.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    write_figure(folder / "study.png", entries, by_cell(results), task, nsd_mm)
    return text


def _without_nan(value: Any) -> Any:
    """Returns a value with None for numbers that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
