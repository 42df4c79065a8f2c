"""Folds of a classification: every class can be trained on and tested in each, or the table is refused."""

from itertools import combinations

import numpy as np
import pytest

from nnunet_pretrain.classification.folds import stratified_folds, usable
from nnunet_pretrain.classification.labels import Example, cases_by_class


def test_folds_share_out_every_class():
    examples = [Example(f"c{i}", "rare" if i < 6 else "common") for i in range(40)]
    folds = stratified_folds(examples)
    assert len(folds) == 5
    assert sorted(case for fold in folds for case in fold.val) == sorted(example.case for example in examples)
    for fold in folds:
        assert not set(fold.train) & set(fold.val)
        assert sum(int(case[1:]) < 6 for case in fold.val) in (1, 2)
        assert len(fold.val) == 8
    assert len(stratified_folds(examples[4:])) == 2  # two cases of the rare class
    assert stratified_folds(examples) == folds


def table(classes):
    """Returns rows for cases with several lesions each, from case to classes."""
    return [
        Example(case, name, "nodule", number)
        for case, names in classes.items()
        for number, name in enumerate(sorted(names), 1)
    ]


def assert_good(folds, examples):
    cases = sorted({example.case for example in examples})
    assert sorted(case for fold in folds for case in fold.val) == cases
    for fold in folds:
        assert sorted([*fold.train, *fold.val]) == cases
        assert usable(fold.train, fold.val, examples)


def test_a_class_that_shares_its_cases_is_not_held_out_as_a_whole():
    rows = {"c1": "bz", "c2": "cd", "c3": "z", "c4": "b", "c5": "b", "c6": "c", "c7": "c", "c8": "d", "c9": "d"}
    examples = table(rows)
    for seed in range(20):
        folds = stratified_folds(examples, seed)
        assert len(folds) == 2
        assert_good(folds, examples)


def test_more_folds_are_made_where_fewer_would_hold_out_a_whole_class():
    examples = table({"c1": "ab", "c2": "ac", "c3": "bc"})  # one of two halves would have both cases of a class
    folds = stratified_folds(examples)
    assert len(folds) == 3
    assert_good(folds, examples)


def test_a_table_without_usable_folds_is_refused_by_class():
    cases = [f"c{i}" for i in range(6)]
    pairs = {f"{first}{second}": (first, second) for first, second in combinations(cases, 2)}
    examples = table({case: [name for name, pair in pairs.items() if case in pair] for case in cases})
    with pytest.raises(ValueError, match=r"most often the class 'c\dc\d' was .* in the cases c\d, c\d: add"):
        stratified_folds(examples)  # six cases that all need a fold of their own


def test_usable_folds_have_every_class_to_train_on_and_two_held_out():
    examples = table({"c1": "ab", "c2": "ab", "c3": "a", "c4": "b"})
    assert usable(["c1", "c3"], ["c2", "c4"], examples)
    assert usable(["c1"], ["c3", "c4"], examples)
    assert not usable(["c3"], ["c1", "c2"], examples)
    assert not usable(["c1", "c2"], ["c3"], examples)


@pytest.mark.parametrize("seed", range(300))
def test_folds_of_made_up_tables_are_usable(seed):
    rng = np.random.default_rng(seed)
    names = list("abcdef")[: rng.integers(2, 7)]
    most = int(rng.integers(1, 4))
    drawn = {
        f"c{i:02d}": rng.choice(names, min(len(names), int(rng.integers(1, most + 1))), replace=False).tolist()
        for i in range(rng.integers(4, 40))
    }
    members = cases_by_class(table(drawn))
    examples = [example for example in table(drawn) if len(members[example.label]) > 1]
    if len({example.label for example in examples}) < 2:
        return  # such a table is refused before
    folds = stratified_folds(examples, seed)
    assert 2 <= len(folds) <= 5
    assert_good(folds, examples)
    assert stratified_folds(examples, seed) == folds
