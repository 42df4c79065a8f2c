"""Cells and tables in Markdown, as all tasks use them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

COMMON_NOTES = (
    "Scratch needs: fewest labelled cases of the control with that mean {metric}. Epochs to scratch's best: median "
    "over seeds of the first epoch whose {curve} (running median of 5) reaches the control's best, then the control's "
    "own epoch, and the share of both."
)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def share(entry: Mapping[str, Any]) -> str:
    """Returns an entry's number of labelled cases, with its fraction."""
    return f"{entry['number_of_cases']} ({entry['fraction']:.0%})"


def with_interval(estimate: Mapping[str, Any], signed: bool = False) -> str:
    """Returns an estimate with its interval, if there are cases enough for one."""
    if math.isnan(estimate["mean"]):
        return "none"
    sign = "+" if signed else ""
    if math.isnan(estimate["low"]):
        return f"{estimate['mean']:{sign}.3f} (too few cases for an interval)"
    return f"{estimate['mean']:{sign}.3f} ({estimate['low']:{sign}.3f} to {estimate['high']:{sign}.3f})"


def over_seeds(entry: Mapping[str, Any], metric: str) -> str:
    """Returns the lowest and highest value of a seed."""
    return f"{entry[metric]['seed_min']:.3f} to {entry[metric]['seed_max']:.3f} (n = {len(entry['seeds'])})"


def against_scratch(entry: Mapping[str, Any], metric: str) -> list[str]:
    """Returns four cells: the difference to the control, its p, the cases the control needs, and the epochs."""
    against = entry.get("against_scratch") or {}
    compared = against.get(metric)
    needs = entry.get("scratch_needs_cases", "")
    return [
        with_interval(compared["difference"], signed=True) if compared else "",
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
