"""Folds in which every class can be trained on and tested."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from nnunet_pretrain.classification.labels import Example, cases_by_class, classes_by_case
from nnunet_pretrain.planning.settings import Fold

FOLDS = 5
FOLD_SEED = 12345
TRIES = 20
"""Orders of the cases that are tried for every number of folds."""
_SHOWN = 5


def stratified_folds(examples: Sequence[Example], seed: int = FOLD_SEED) -> tuple[Fold, ...]:
    """Splits the cases into folds in which every class has its share.

    There are five folds, or as many as the rarest class has cases. If then a fold is not `usable` in whatever order
    the cases are dealt, there are fewer folds, at last more.

    Args:
        examples: The rows of a checked table.
        seed: Seed of the shuffling.

    Raises:
        ValueError: No usable folds were found; the message names the class that was in the way most often.
    """
    classes, members = classes_by_case(examples), cases_by_class(examples)
    most = min(FOLDS, len(classes))
    first = min(most, *(len(cases) for cases in members.values()))
    lacking: Counter[str] = Counter()
    for number in (*range(first, 1, -1), *range(first + 1, most + 1)):
        for attempt in range(TRIES):
            held_out = _dealt(classes, number, np.random.default_rng(seed + attempt))
            folds = tuple(
                Fold(train=tuple(sorted(set(classes) - set(val))), val=tuple(sorted(val))) for val in held_out
            )
            if not (found := [name for fold in folds for name in _lacking(fold.train, fold.val, examples)]):
                return folds
            lacking.update(found)
    name = min(lacking, key=lambda name: (-lacking[name], name))
    cases = sorted(members[name])
    more = f" and {len(cases) - _SHOWN} more" if len(cases) > _SHOWN else ""
    raise ValueError(
        f"no {FOLDS} or fewer folds were found that all have every class to train on and two classes held out; most "
        f"often the class '{name}' was in the way, which is in the cases {', '.join(cases[:_SHOWN])}{more}: add cases "
        f"of it, unite it with another class, or write folds into splits_final.json"
    )


def usable(training: Sequence[str], validation: Sequence[str], examples: Sequence[Example]) -> bool:
    """Tells whether a fold has every class to train on, and at least two held out.

    Args:
        training: Cases to train on.
        validation: Cases held out.
        examples: The rows of the table.
    """
    return not _lacking(training, validation, examples)


def _lacking(training: Sequence[str], validation: Sequence[str], examples: Sequence[Example]) -> list[str]:
    """Returns the classes that are not trained on; if there are all, but fewer than two held out, the others."""
    inside = set(training), set(validation)
    seen, held_out = ({e.label for e in examples if e.case in part} for part in inside)
    every = {e.label for e in examples}
    return sorted(every - seen) or (sorted(every - held_out) if len(held_out) < 2 else [])


def _dealt(classes: Mapping[str, frozenset[str]], number: int, rng: np.random.Generator) -> list[list[str]]:
    """Deals cases out by iterative stratification (Sechidis et al., ECML PKDD 2011): the rarest class first.

    A case goes to the fold with the fewest cases of that class, of several to the one with the fewest of the case's
    other classes, then to the one with the fewest cases, then to any.

    Args:
        classes: Case to its classes.
        number: Number of folds.
        rng: Draws the order of the cases, and among folds that are alike.

    Returns:
        The cases of each fold.
    """
    left = [sorted(classes)[i] for i in rng.permutation(len(classes))]
    folds: list[list[str]] = [[] for _ in range(number)]
    counts: list[Counter[str]] = [Counter() for _ in range(number)]
    while left:
        remaining = Counter(name for case in left for name in classes[case])
        rarest = min(remaining, key=lambda name: (remaining[name], name))
        for case in [case for case in left if rarest in classes[case]]:
            others = classes[case] - {rarest}
            loads = [
                (own[rarest], sum(own[name] for name in others), len(fold), float(rng.random()))
                for own, fold in zip(counts, folds, strict=True)
            ]
            chosen = loads.index(min(loads))
            folds[chosen].append(case)
            counts[chosen].update(classes[case])
        left = [case for case in left if rarest not in classes[case]]
    return folds
