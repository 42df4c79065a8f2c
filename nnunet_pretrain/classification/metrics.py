"""How good probabilities of classes are, with intervals over cases.

Cases are the sample, so intervals come from resampling cases with all their examples (percentile bootstrap: Efron &
Tibshirani 1993), among cases with the same classes, so that every draw has every class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

Values = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

BINS = 15
"""Of the calibration error, as in Guo et al., ICML 2017."""
DRAWS = 2_000
LEVEL = 0.95

METHOD = (
    f"AUC: one class against the others (Mann-Whitney), mean over classes. ECE: expected calibration error of the most "
    f"probable class, {BINS} bins of equal width (Guo et al., ICML 2017). Brier: sum over classes of the squared error "
    f"(Brier 1950). Intervals: 95 %, percentile bootstrap over cases among those with the same classes, {DRAWS} draws "
    f"(Efron & Tibshirani 1993)."
)


def auc_by_class(truth: Indices, probabilities: Values) -> Values:
    """Returns the area under the ROC curve of each class against all others.

    It is the share of pairs (one of the class, one of the others) in which the one of the class has the higher
    probability; ties count half (Hanley & McNeil 1982).

    Args:
        truth: Class of each example, shape (examples,).
        probabilities: Shape (examples, classes).

    Returns:
        Shape (classes,); NaN for a class that no or every example has.
    """
    found = np.full(probabilities.shape[1], np.nan)
    for i in range(probabilities.shape[1]):
        inside = truth == i
        positive, negative = int(inside.sum()), int((~inside).sum())
        if positive and negative:
            ranks = rankdata(probabilities[:, i])
            found[i] = (ranks[inside].sum() - positive * (positive + 1) / 2) / (positive * negative)
    return found


def auc(truth: Indices, probabilities: Values) -> float:
    """Returns the mean of `auc_by_class` over the classes that have a value, NaN if none has."""
    found = auc_by_class(truth, probabilities)
    return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")


def accuracy(truth: Indices, probabilities: Values) -> float:
    """Returns the share of examples whose most probable class is right; arguments as in `auc_by_class`."""
    return float((probabilities.argmax(1) == truth).mean())


def balanced_accuracy(truth: Indices, probabilities: Values) -> float:
    """Returns the mean over classes of the share of their examples that are right (Brodersen et al., ICPR 2010)."""
    right = probabilities.argmax(1) == truth
    return float(np.mean([right[truth == i].mean() for i in np.unique(truth)]))


def calibration_error(truth: Indices, probabilities: Values, bins: int = BINS) -> float:
    """Returns the expected calibration error of the most probable class (Guo et al., ICML 2017).

    That is the mean over examples of |accuracy - mean probability| of the bin the example's probability lies in, with
    bins of equal width, closed above.
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    error = np.bincount(place, right - confidence, bins)  # count * (accuracy - mean probability)
    return float(np.abs(error).sum() / len(truth))


def brier(truth: Indices, probabilities: Values) -> float:
    """Returns the mean over examples of the sum over classes of the squared error, 0 to 2 (Brier 1950)."""
    return float(((probabilities - np.eye(probabilities.shape[1])[truth]) ** 2).sum(1).mean())


METRICS: dict[str, Callable[[Indices, Values], float]] = {
    "AUC": auc,
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "ECE": calibration_error,
    "Brier": brier,
}


@dataclass(frozen=True)
class Interval:
    """A value with its bootstrap interval.

    Attributes:
        mean: The value.
        low: Lower end of the 95 % interval.
        high: Upper end.
        cases: Number of cases.
    """

    mean: float
    low: float
    high: float
    cases: int


def resampled(cases: Sequence[str], truth: Indices, draws: int = DRAWS, seed: int = 0) -> Iterator[Indices]:
    """Draws cases with replacement among those with the same classes.

    Args:
        cases: Case of each example.
        truth: Class of each example, shape (examples,).
        draws: Number of draws.
        seed: Seed of the draws.

    Yields:
        Positions of the examples of the drawn cases.
    """
    rng = np.random.default_rng(seed)
    members = {case: np.flatnonzero(np.array(cases) == case) for case in dict.fromkeys(cases)}
    strata: defaultdict[tuple[int, ...], list[str]] = defaultdict(list)
    for case, positions in members.items():
        strata[tuple(np.unique(truth[positions]).tolist())].append(case)
    for _ in range(draws):
        yield np.concatenate(
            [members[group[i]] for group in strata.values() for i in rng.integers(0, len(group), len(group))]
        )


def interval(
    value: Callable[[Indices], float], cases: Sequence[str], truth: Indices, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Estimates a value and its interval.

    Args:
        value: From positions of examples to the value on them.
        cases: Case of each example.
        truth: Class of each example, shape (examples,).
        draws: Bootstrap draws.
        seed: Seed of the draws.
    """
    found = np.array([value(chosen) for chosen in resampled(cases, truth, draws, seed)])
    found = found[np.isfinite(found)]
    whole = value(np.arange(len(truth)))
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(found) else (np.nan, np.nan)
    return Interval(whole, float(low), float(high), len(set(cases)))


def all_metrics(cases: Sequence[str], truth: Indices, probabilities: Values) -> dict[str, dict[str, Any]]:
    """Returns every metric with its interval, as plain values.

    Args:
        cases: Case of each example.
        truth: Class of each example, shape (examples,).
        probabilities: Shape (examples, classes).
    """

    def of(metric: Callable[[Indices, Values], float]) -> Callable[[Indices], float]:
        return lambda chosen: metric(truth[chosen], probabilities[chosen])

    found = {name: interval(of(metric), cases, truth) for name, metric in METRICS.items()}
    return {name: {"value": one.mean, "low": one.low, "high": one.high} for name, one in found.items()}
