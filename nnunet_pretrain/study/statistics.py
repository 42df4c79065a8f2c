"""Statistics over test cases and seeds: bootstrap intervals, paired comparison, and how fast an arm learns.

Test cases are the sample: a study says what to expect on further patients. So intervals come from resampling cases
(percentile bootstrap: Efron & Tibshirani 1993), after averaging a case's values over the seeds; the spread over seeds
is given beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import wilcoxon

Values = npt.NDArray[np.float64]

DRAWS = 10_000
LEVEL = 0.95
SMOOTHING = 5
"""Epochs of the running median."""

MIN_CASES = 6
"""With fewer differences the smallest p of the signed-rank test, 2 / 2**n, is above 0.05."""


@dataclass(frozen=True)
class Estimate:
    """A mean over cases with its bootstrap interval.

    Attributes:
        mean: Mean over cases of the mean over seeds.
        low: Lower end of the 95 % interval.
        high: Upper end.
        cases: Number of cases with a value.
    """

    mean: float
    low: float
    high: float
    cases: int


@dataclass(frozen=True)
class Comparison:
    """An arm against another one on the same cases with the same seeds.

    Attributes:
        difference: Mean difference.
        p: Two-sided p of Wilcoxon's signed-rank test over cases.
        can_be_significant: Whether there are enough cases for p < 0.05.
    """

    difference: Estimate
    p: float
    can_be_significant: bool


def mean_over_seeds(values: Values) -> Values:
    """Averages over seeds within each case.

    Args:
        values: Shape (seeds, cases), NaN where there is no value.

    Returns:
        The cases' means, shape (cases,), NaN where no seed has a value.
    """
    there = np.isfinite(values)
    number = there.sum(0)
    total = np.where(there, values, 0.0).sum(0)
    return np.divide(total, number, out=np.full(len(number), np.nan), where=number > 0)


def estimate(values: Values, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Estimates a mean over cases.

    Args:
        values: Shape (seeds, cases), NaN where there is no value.
        draws: Bootstrap draws.
        seed: Seed of the draws.

    Returns:
        Mean and percentile interval; NaN without any value.
    """
    by_case = mean_over_seeds(values)
    by_case = by_case[np.isfinite(by_case)]
    if not len(by_case):
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    rng = np.random.default_rng(seed)
    means = by_case[rng.integers(0, len(by_case), (draws, len(by_case)))].mean(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(by_case.mean()), float(low), float(high), len(by_case))


def compare(values: Values, control: Values, draws: int = DRAWS, seed: int = 0) -> Comparison:
    """Compares an arm with a control, paired by case and seed.

    Args:
        values: Shape (seeds, cases), NaN where there is no value.
        control: The same of the control.
        draws: Bootstrap draws.
        seed: Seed of the draws.

    Returns:
        The mean of the arm minus the control, and the test over cases (Wilcoxon 1945; NaN without any pair).
    """
    differences = mean_over_seeds(values - control)
    differences = differences[np.isfinite(differences)]
    p = float("nan")
    if len(differences):
        p = float(wilcoxon(differences).pvalue) if np.any(differences != 0) else 1.0
    return Comparison(estimate(values - control, draws, seed), p, int((differences != 0).sum()) >= MIN_CASES)


def spread_over_seeds(values: Values) -> tuple[float, float]:
    """Returns the smallest and largest mean of a seed; values have shape (seeds, cases), NaN where there is none."""
    means = mean_over_seeds(values.T)
    means = means[np.isfinite(means)]
    return (float(means.min()), float(means.max())) if len(means) else (float("nan"), float("nan"))


def running_median(curve: Sequence[float | None]) -> Values:
    """Smooths a curve by the median of five epochs, of fewer towards the ends.

    The window is always symmetric, so that a rising curve is neither delayed nor hurried, as the moving average of
    nnU-Net's progress plot would.

    Args:
        curve: One value per epoch, None or NaN where there is none.
    """
    values = np.array([np.nan if value is None else value for value in curve], dtype=np.float64)
    smooth = np.full(len(values), np.nan)
    for i in range(len(values)):
        reach = min(SMOOTHING // 2, i, len(values) - 1 - i)
        window = values[i - reach : i + reach + 1]
        window = window[np.isfinite(window)]
        if len(window):
            smooth[i] = np.median(window)
    return smooth


def epochs_to_best(curve: Sequence[float | None], control: Sequence[float | None]) -> tuple[int | None, int | None]:
    """Counts the epochs an arm needs to reach the best smoothed pseudo Dice of a control.

    Args:
        curve: Pseudo Dice per epoch.
        control: The same of the control.

    Returns:
        Epochs of the arm, and of the control itself; None if the value is never reached.
    """
    smooth, reference = running_median(curve), running_median(control)
    if not np.isfinite(reference).any():
        return None, None
    best = np.nanmax(reference)
    first = [np.flatnonzero(values >= best) for values in (smooth, reference)]
    arm, own = (int(found[0]) + 1 if len(found) else None for found in first)
    return arm, own


def equivalent_cases(control: Mapping[int, float], value: float) -> int | None:
    """Returns the smallest number of labelled cases with which the control's mean reaches a value, None if none."""
    return min((number for number, mean in control.items() if mean >= value), default=None)
