"""Markdown tables of the benchmark's results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from partial_labels_arms.design import ARMS, Design

Results = Mapping[str, Sequence[Mapping[str, Any]]]


def print_tables(results: Results, design: Design) -> None:
    """Prints Dice and false-positive volume per arm, and Dice and false-positive volume per structure.

    Args:
        results: Arm to one result per seed, as `one_run.run` writes them.
        design: What was scored.
    """
    reference = results.get("complete")
    bound = statistics.mean(mean_dice(run) for run in reference) if reference else None
    print("\nMean over seeds (lowest to highest seed). A run's Dice: mean over structures of the mean over cases.\n")
    print("| arm | Dice | of upper bound | false positives, ml/case | of these outside any structure | training |")
    print("|---|---|---|---|---|---|")
    for arm, runs in results.items():
        dice = [mean_dice(run) for run in runs]
        share = f"{statistics.mean(dice) / bound:.1%}" if bound else ""
        volumes = [_spread([volume(run, key) for run in runs], 1) for key in ("fp_ml", "outside_ml")]
        seconds = statistics.mean(run["train_s"] for run in runs)
        cells = (ARMS[arm].title, _spread(dice, 3), share, *volumes, f"{seconds:.0f} s")
        print(f"| {' | '.join(cells)} |")
    _by_structure("Dice", results, design, structure_dice, 3)
    _by_structure("False positives, ml/case", results, design, _structure_volume, 1)


def structure_dice(run: Mapping[str, Any], name: str) -> float:
    """Returns the mean Dice over cases that have the structure or were said to."""
    values = [case[name]["dice"] for case in run["cases"].values() if case[name]["dice"] is not None]
    return statistics.mean(values) if values else float("nan")


def mean_dice(run: Mapping[str, Any]) -> float:
    """Returns the mean over structures of their Dice."""
    names = next(iter(run["cases"].values()))
    return statistics.mean(structure_dice(run, name) for name in names)


def volume(run: Mapping[str, Any], key: str) -> float:
    """Returns a volume summed over structures, mean over cases, in ml."""
    return statistics.mean(sum(scores[key] for scores in case.values()) for case in run["cases"].values())


def _structure_volume(run: Mapping[str, Any], name: str) -> float:
    return statistics.mean(case[name]["fp_ml"] for case in run["cases"].values())


def _by_structure(
    title: str, results: Results, design: Design, number: Callable[[Mapping[str, Any], str], float], digits: int
) -> None:
    print(f"\n| {title} | {' | '.join(design.scored)} |\n|---|{'---|' * len(design.scored)}")
    for arm, runs in results.items():
        cells = [f"{statistics.mean(number(run, name) for run in runs):.{digits}f}" for name in design.scored]
        print(f"| {ARMS[arm].title} | {' | '.join(cells)} |")


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
