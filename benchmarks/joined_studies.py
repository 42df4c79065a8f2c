"""Several studies of one target as one: arms of all under names of their own, in one report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.planning.domain_plans import CONFIGURATION
from nnunet_pretrain.planning.settings import SETTINGS_KEY
from nnunet_pretrain.study.report import write_report
from nnunet_pretrain.study.segmentation import SEGMENTATION
from nnunet_pretrain.study.statistics import running_median
from nnunet_pretrain.study.summary import by_cell, mean_curve
from nnunet_pretrain.study.tables import table, with_interval
from nnunet_pretrain.study.task import Cell

Cells = Mapping[tuple[str, int], Cell]


def join(together: Path, parts: Mapping[Path, Mapping[str, str]], pool: int, nsd_mm: float) -> tuple[str, Cells]:
    """Joins studies and writes the report of all their arms.

    Args:
        together: Folder for the report.
        parts: Folder of a study to its arms and the names they get; the control is called `scratch`.
        pool: Number of labelled cases that 100 % stands for.
        nsd_mm: Tolerance of the surface Dice in mm.

    Returns:
        The tables in Markdown, and all runs by arm and number of labelled cases.
    """
    results = []
    for folder, names in parts.items():
        for path in sorted((folder / "runs").glob("[!.]*.json")):
            result = read_json(path)
            arm = names[result["arm"]]
            results.append({**result, "arm": arm})
            write_json(together / "runs" / path.name.replace(result["arm"], arm, 1), results[-1])
    return write_report(together, pool, nsd_mm), by_cell(results)


def epochs_table(cells: Cells) -> str:
    """Returns the pseudo Dice at shares of the training: mean over seeds, running median of 5 epochs."""
    shares = (0.1, 0.25, 0.5, 0.75, 1.0)
    rows = []
    for (arm, number), cell in cells.items():
        curve = running_median(mean_curve(cell, SEGMENTATION.curve).tolist())
        places = [max(1, round(share * len(curve))) for share in shares]
        rows.append([arm, str(number), *(f"{curve[place - 1]:.3f} ({place})" for place in places)])
    heads = [f"pseudo Dice at {share:.0%} (epoch)" for share in shares]
    return table(["arm", "labelled cases", *heads], rows)


def gain_table(cells: Cells, of: str) -> str:
    """Returns the difference in Dice of one arm to each of the others, paired by case and seed."""
    rows = []
    for (arm, number), cell in cells.items():
        own = cells.get((of, number), {})
        seeds = sorted(set(own) & set(cell))
        if arm != of and seeds:
            found = SEGMENTATION.compare(own, cell, seeds, "Dice")
            gain = with_interval(found["difference"], signed=True)
            rows.append([f"{of} - {arm}", str(number), str(len(seeds)), gain, f"{found['p']:.2g}"])
    return table(["arms", "labelled cases", "seeds", "difference in Dice (95 % interval)", "p"], rows)


def check_equal(preprocessed: Path, first: str, other: str) -> None:
    """Makes sure that the control of one study is also that of another.

    Args:
        preprocessed: Folder of the target in nnUNet_preprocessed.
        first: Name of the plans of one control.
        other: Name of the plans of the other.

    Raises:
        ValueError: They differ in a number.
    """
    one, two = (_numbers(preprocessed / f"{name}.json") for name in (first, other))
    differing = [key for key in one if one[key] != two[key]]
    if differing:
        raise ValueError(f"{first} and {other} differ in {', '.join(differing)}; arms must share them")


def _numbers(path: Path) -> dict[str, Any]:
    """Returns all that decides a control's training: its plans, without their names."""
    plans = read_json(path)
    configuration = plans["configurations"][CONFIGURATION]
    del plans["plans_name"], configuration["data_identifier"]
    settings = plans.pop(SETTINGS_KEY)
    return {**plans, "configurations": configuration, **{key: settings.get(key) for key in ("training", "fine_tuning")}}
