"""How good probabilities of classes are, with intervals over cases.

Cases are the sample, so intervals come from resampling cases with all their examples (percentile bootstrap: Efron &
Tibshirani 1993), among cases with the same classes, so that draws have the same classes. A case that is the only one
with its classes would be in every draw, as if it were known for certain: such cases are drawn among each other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
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
MIN_SHARE = 0.9
"""Of the draws that must have a value; of the others the interval would say nothing."""

METHOD = (
    f"AUC: one class against the others (Mann-Whitney), mean over the classes there are. ECE: expected calibration "
    f"error of the most probable class, {BINS} bins of equal width (Guo et al., ICML 2017). Brier: sum over classes of "
    f"the squared error (Brier 1950). Intervals: 95 %, percentile bootstrap over cases, {DRAWS} draws (Efron & "
    f"Tibshirani 1993), among those with the same classes; cases that share theirs with no other are drawn among each "
    f"other. An interval is unknown (NaN) with one case, or if fewer than {MIN_SHARE:.0%} of the draws have a value."
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
        low: Lower end of the 95 % interval; NaN if it is unknown.
        high: Upper end; NaN if it is unknown.
        cases: Number of cases.
    """

    mean: float
    low: float
    high: float
    cases: int


def strata(cases: Sequence[str], truth: Indices) -> list[list[str]]:
    """Groups the cases that are drawn among each other.

    Args:
        cases: Case of each example.
        truth: Class of each example, shape (examples,).

    Returns:
        The cases with the same classes, and together those whose classes no other case has. If that is only one case,
        all cases are one group, for alone it would be in every draw.
    """
    classes: defaultdict[str, set[int]] = defaultdict(set)
    for case, found in zip(cases, truth.tolist(), strict=True):
        classes[case].add(found)
    alike: defaultdict[frozenset[int], list[str]] = defaultdict(list)
    for case, own in classes.items():
        alike[frozenset(own)].append(case)
    alone = [group[0] for group in alike.values() if len(group) == 1]
    if len(alone) == 1:
        return [list(classes)]
    return [*(group for group in alike.values() if len(group) > 1), *([alone] if alone else [])]


def resampled(cases: Sequence[str], truth: Indices, draws: int = DRAWS, seed: int = 0) -> Iterator[Indices]:
    """Draws cases with replacement within `strata`.

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
    groups = strata(cases, truth)
    for _ in range(draws):
        yield np.concatenate([members[group[i]] for group in groups for i in rng.integers(0, len(group), len(group))])


def interval(
    value: Callable[[Indices], float], cases: Sequence[str], truth: Indices, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Estimates a value and its interval.

    Args:
        value: From positions of examples to the value on them; NaN where it has none.
        cases: Case of each example.
        truth: Class of each example, shape (examples,).
        draws: Bootstrap draws; those without a value are left out.
        seed: Seed of the draws.

    Returns:
        Value and interval. The interval is unknown, NaN, with one case, or if fewer than `MIN_SHARE` of the draws have
        a value.
    """
    whole, number = value(np.arange(len(truth))), len(set(cases))
    found = np.array([value(chosen) for chosen in resampled(cases, truth, draws, seed)])
    found = found[np.isfinite(found)]
    if number < 2 or len(found) < max(1, MIN_SHARE * draws):
        return Interval(whole, float("nan"), float("nan"), number)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(whole, float(low), float(high), number)


def interval_text(metric: Mapping[str, float]) -> str:
    """Returns the interval of one of `all_metrics` for people to read."""
    if not np.isfinite([metric["low"], metric["high"]]).all():
        return "interval unknown: too few cases"
    return f"{metric['low']:.4f} to {metric['high']:.4f}"


def all_metrics(cases: Sequence[str], truth: Indices, probabilities: Values) -> dict[str, dict[str, Any]]:
    """Returns every metric with its interval, as plain values; NaN, in JSON as well, for what is unknown.

    Args:
        cases: Case of each example.
        truth: Class of each example, shape (examples,).
        probabilities: Shape (examples, classes).
    """

    def of(metric: Callable[[Indices, Values], float]) -> Callable[[Indices], float]:
        return lambda chosen: metric(truth[chosen], probabilities[chosen])

    found = {name: interval(of(metric), cases, truth) for name, metric in METRICS.items()}
    return {name: {"value": one.mean, "low": one.low, "high": one.high} for name, one in found.items()}
