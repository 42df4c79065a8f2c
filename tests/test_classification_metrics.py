"""Metrics of a classification against their definitions, and their intervals."""

import json
import re

import numpy as np
import pytest
from classification_targets import made_up

from nnunet_pretrain.classification.metrics import (
    DRAWS,
    accuracy,
    all_metrics,
    auc,
    auc_by_class,
    balanced_accuracy,
    brier,
    calibration_error,
    interval,
    interval_text,
    resampled,
    strata,
)
from nnunet_pretrain.files import read_json, write_json


def brute_force_auc(positive, negative):
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in positive for b in negative]
    return sum(pairs) / len(pairs)


def test_auc_counts_pairs():
    truth, probabilities = made_up()
    probabilities = probabilities.round(1)  # ties
    expected = [brute_force_auc(p[truth == i], p[truth != i]) for i, p in enumerate(probabilities.T)]
    assert auc_by_class(truth, probabilities).tolist() == pytest.approx(expected)
    assert auc(truth, probabilities) == pytest.approx(np.mean(expected))
    without = auc_by_class(truth[truth > 0], probabilities[truth > 0])
    assert np.isnan(without[0])
    assert auc(truth[truth > 0], probabilities[truth > 0]) == pytest.approx(np.mean(without[1:]))
    assert np.isnan(auc(np.zeros(3, int), probabilities[:3]))


def test_accuracy_calibration_and_brier():
    truth = np.array([0, 0, 0, 1])
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    assert accuracy(truth, p) == 0.75
    assert balanced_accuracy(truth, p) == pytest.approx((2 / 3 + 1) / 2)
    # Two bins: none up to 0.5, all above; mean confidence 0.75.
    assert calibration_error(truth, p, 2) == pytest.approx(0.0)
    # Ten bins, closed above: each example alone but for rounding.
    assert calibration_error(truth, p, 10) == pytest.approx((0.1 + 0.2 + 0.7 + 0.4) / 4)
    assert brier(truth, p) == pytest.approx(2 * (0.01 + 0.04 + 0.49 + 0.16) / 4)


def test_resampling_keeps_classes_and_whole_cases():
    cases = ["a", "a", "b", "c", "d", "d"]
    truth = np.array([0, 1, 0, 0, 0, 1])
    for chosen in resampled(cases, truth, 50):
        names = [cases[i] for i in chosen]
        assert set(truth[chosen]) == {0, 1}
        assert names.count("a") % 2 == 0
        assert names.count("a") + names.count("d") == 4
        assert names.count("b") + names.count("c") == 2


def test_intervals_agree_with_hanley_and_mcneil():
    truth, p = made_up(200, 2, 3)
    found = interval(lambda chosen: auc(truth[chosen], p[chosen]), [str(i) for i in range(200)], truth)
    a, n = found.mean, 100
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    error = np.sqrt((a * (1 - a) + (n - 1) * (q1 - a * a) + (n - 1) * (q2 - a * a)) / n**2)
    assert found.low < a < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert found.cases == 200
    doubled = interval(lambda chosen: auc(truth[chosen], p[chosen]), [str(i // 4) for i in range(200)], truth)
    assert doubled.cases == 50
    every = all_metrics([str(i) for i in range(200)], truth, p)
    assert list(every) == ["AUC", "accuracy", "balanced_accuracy", "ECE", "Brier"]
    assert all(one["low"] <= one["high"] for one in every.values())


def of_auc(truth, p):
    return lambda chosen: auc(truth[chosen], p[chosen])


def test_cases_that_are_the_only_ones_with_their_classes_are_drawn_among_each_other():
    cases = ["a", "a", "b", "c", "d", "d", "e"]
    truth = np.array([0, 1, 0, 0, 1, 2, 2])
    assert strata(cases, truth) == [["b", "c"], ["a", "d", "e"]]
    counts = [[[cases[i] for i in chosen].count(case) for case in "ade"] for chosen in resampled(cases, truth, 200)]
    assert all(a / 2 + d / 2 + e == 3 for a, d, e in counts)
    assert {e for _, _, e in counts} == {0, 1, 2, 3}
    assert strata(cases[:4], truth[:4]) == [["a", "b", "c"]]  # a alone would be in every draw
    assert strata(["a", "b"], np.array([0, 0])) == [["a", "b"]]


def test_intervals_have_a_width_when_every_case_has_other_classes():
    rng = np.random.default_rng(5)
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]  # six cases of lesions, no two with the same classes
    cases = [f"c{number}" for number, _ in enumerate(pairs) for _ in range(2)]
    truth = np.array(pairs).reshape(-1)
    logits = rng.normal(size=(12, 4)) + np.eye(4)[truth]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for name, one in all_metrics(cases, truth, p).items():
        assert one["high"] - one["low"] > 0.02, name


def test_an_interval_is_unknown_where_too_few_draws_have_a_value(tmp_path):
    truth, p = np.array([0, 0, 0, 1]), np.array([[0.8, 0.2], [0.7, 0.3], [0.4, 0.6], [0.3, 0.7]])
    cases = ["a", "b", "c", "d"]
    drawn = [auc(truth[chosen], p[chosen]) for chosen in resampled(cases, truth, DRAWS)]
    assert 0.6 < np.isfinite(drawn).mean() < 0.75  # without d, or with nothing else, there is none
    found = interval(of_auc(truth, p), cases, truth)
    assert found.mean == 1.0
    assert np.isnan([found.low, found.high]).all()
    every = all_metrics(cases, truth, p)
    assert interval_text(every["AUC"]) == "interval unknown: too few cases"
    assert re.fullmatch(r"0\.\d{4} to 1\.0000", interval_text(every["accuracy"]))
    write_json(tmp_path / "summary.json", every)
    assert "NaN" in (tmp_path / "summary.json").read_text(encoding="utf-8")  # as nnU-Net writes what has no value
    assert json.dumps(read_json(tmp_path / "summary.json")) == json.dumps(every)
    of_one_case = all_metrics(["a"] * 4, truth, p)
    assert of_one_case["accuracy"]["value"] == 0.75
    assert all(np.isnan([metric["low"], metric["high"]]).all() for metric in of_one_case.values())


def test_a_few_draws_without_a_value_do_not_matter():
    truth, p = made_up(8, 2, 1)
    names = [str(i) for i in range(8)]
    calls = iter(range(10**6))

    def sometimes(chosen):
        return float("nan") if next(calls) % 20 == 5 else accuracy(truth[chosen], p[chosen])

    found = interval(sometimes, names, truth)
    assert found.low <= found.mean <= found.high
