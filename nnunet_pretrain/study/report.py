"""What a study leaves: results.json, results.csv, table.md and the figure."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_pretrain.files import read_json, write_json, written_atomically
from nnunet_pretrain.study.figure import write_figure
from nnunet_pretrain.study.statistics import MIN_CASES
from nnunet_pretrain.study.summary import Result, by_cell, summarise

COLUMNS = ("arm", "number_of_cases", "seed", "case", "output")
MEASURES = ("Dice", "NSD", "reference_ml", "FP_ml", "false_positive")


def write_report(folder: Path, pool: int, nsd_mm: float) -> str:
    """Writes the report on all runs of a study that are finished.

    Args:
        folder: The study's folder.
        pool: Number of labelled cases that 100 % stands for.
        nsd_mm: Tolerance of the surface Dice in mm.

    Returns:
        The tables, in Markdown.

    Raises:
        ValueError: No run is finished.
    """
    results = [read_json(path) for path in sorted((folder / "runs").glob("[!.]*.json"))]
    if not results:
        raise ValueError(f"no run in {folder / 'runs'} is finished; run the study again")
    entries = summarise(results, pool)
    write_json(folder / "results.json", _without_nan({"labelled_cases": pool, "nsd_mm": nsd_mm, "arms": entries}))
    write_csv(folder / "results.csv", results)
    text = tables(entries, nsd_mm)
    with written_atomically(folder / "table.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    write_figure(folder / "study.png", entries, by_cell(results), nsd_mm)
    return text


def _without_nan(value: Any) -> Any:
    """Returns a value with None for numbers that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_csv(path: Path, results: Iterable[Result]) -> None:
    """Writes one line for every run, test case and output; empty cells where there is no value."""
    with written_atomically(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *MEASURES])
        for result in results:
            run = [result[key] for key in COLUMNS[:3]]
            for case, outputs in result["scores"].items():
                for output, scores in outputs.items():
                    writer.writerow([*run, case, output, *(scores[measure] for measure in MEASURES)])


def tables(entries: Sequence[Mapping[str, Any]], nsd_mm: float) -> str:
    """Returns the tables of a study, in Markdown.

    Args:
        entries: What `summarise` returned.
        nsd_mm: Tolerance of the surface Dice in mm.
    """
    outputs = list(entries[0]["outputs"])
    measures = _table(
        [
            "arm", "labelled cases", "Dice (95 % interval)", "seeds", f"NSD at {nsd_mm:g} mm", "false positives",
            "Dice - scratch", "p", "scratch needs", "epochs to scratch's best",
        ],
        [_cells(entry) for entry in entries],
    )  # fmt: skip
    by_output = _table(
        ["arm", "labelled cases", *(f"Dice {name}" for name in outputs)],
        [[e["arm"], _share(e), *(_with_interval(e["outputs"][name]["Dice"]) for name in outputs)] for e in entries],
    )
    return "\n\n".join([measures, by_output, _notes(entries)])


def _notes(entries: Sequence[Mapping[str, Any]]) -> str:
    cases = max(entry["Dice"]["cases"] for entry in entries)
    few = f" With {cases} cases the test cannot reach 0.05; it takes {MIN_CASES}." if cases < MIN_CASES else ""
    return (
        f"Dice and NSD: mean over structures of a case, over seeds, then over {cases} unseen cases; a structure absent "
        f"from reference and prediction does not count, one that is absent from either counts 0. Intervals: bootstrap "
        f"over cases. Seeds: lowest and highest mean of a seed. False positives: share of cases without the structure "
        f"in which it is predicted. Dice - scratch: paired by case and seed, p of Wilcoxon's signed-rank test over "
        f"cases.{few} Scratch needs: fewest labelled cases of the control with that mean Dice. Epochs to scratch's "
        f"best: median over seeds of the first epoch whose pseudo Dice (running median of 5) reaches the control's "
        f"best, then the control's own epoch, and the share of both."
    )


def _cells(entry: Mapping[str, Any]) -> list[str]:
    dice, against = entry["Dice"], entry.get("against_scratch") or {}
    wrong = entry["false_positives"]
    compared = against.get("Dice")
    needs = entry.get("scratch_needs_cases", "")
    return [
        entry["arm"],
        _share(entry),
        _with_interval(dice),
        f"{dice['seed_min']:.3f} to {dice['seed_max']:.3f} (n = {len(entry['seeds'])})",
        _with_interval(entry["NSD"]),
        "no such case" if wrong["rate"] is None else f"{wrong['rate']:.0%} of {wrong['without']}, {wrong['ml']:.1f} ml",
        _with_interval(compared["difference"], signed=True) if compared else "",
        "" if not compared or math.isnan(compared["p"]) else f"{compared['p']:.2g}",
        "more" if needs is None else str(needs),
        _epochs(against.get("epochs_to_scratch_best", [])),
    ]


def _epochs(found: Sequence[Mapping[str, Any]]) -> str:
    """Returns the median over seeds; a seed in which the value is never reached counts as infinitely many epochs."""
    known = [seed for seed in found if seed["scratch"] is not None]
    if not known:
        return ""
    arm = float(np.median([math.inf if seed["arm"] is None else seed["arm"] for seed in known]))
    own = float(np.median([seed["scratch"] for seed in known]))
    return f"{arm:g} against {own:g} ({arm / own:.0%})" if math.isfinite(arm) else f"not reached, {own:g} by scratch"


def _share(entry: Mapping[str, Any]) -> str:
    return f"{entry['number_of_cases']} ({entry['fraction']:.0%})"


def _with_interval(estimate: Mapping[str, Any], signed: bool = False) -> str:
    if math.isnan(estimate["mean"]):
        return "none"
    sign = "+" if signed else ""
    return f"{estimate['mean']:{sign}.3f} ({estimate['low']:{sign}.3f} to {estimate['high']:{sign}.3f})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
