"""How often cases are drawn and structures centred on."""

from collections import Counter

import numpy as np
import pytest

from nnunet_pretrain.labels import LabelScheme, LabelSetTable, LabelSpace
from nnunet_pretrain.training.sampling import MAX_LIST, BalancedCases, case_weights, repeated, structure_weights

SPACE = LabelSpace(name="test", structures=("liver", "spleen", "pancreas"))
ALL = ("background", "liver", "spleen", "pancreas")


def cases_of(**sizes):
    cases = [f"{name}_{i}" for name, size in sizes.items() for i in range(size)]
    return cases, {case: case.partition("_")[0] for case in cases}


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_source_is_drawn_by_its_size_to_the_power_of_one_minus_alpha(alpha):
    cases, sources = cases_of(a=400, b=25, c=1)
    weights = case_weights(cases, sources, alpha)
    share = {name: sum(w for case, w in zip(cases, weights, strict=True) if sources[case] == name) for name in "abc"}
    expected = {name: size ** (1 - alpha) for name, size in {"a": 400, "b": 25, "c": 1}.items()}
    total = sum(expected.values())
    assert share == pytest.approx({name: value / total for name, value in expected.items()})


def test_the_list_a_loader_draws_from_realises_the_probabilities():
    cases, sources = cases_of(a=9000, b=131, c=20)
    weights = case_weights(cases, sources, 0.5)
    drawn = repeated(cases, weights)
    assert len(drawn) <= 1.1 * MAX_LIST
    counts = Counter(drawn.tolist())
    assert set(counts) == set(cases)
    realised = np.array([counts[case] for case in cases]) / len(drawn)
    assert realised == pytest.approx(weights, rel=0.03)
    assert repeated(cases, case_weights(cases, sources, 0.0)).tolist() == cases


def test_rarely_annotated_structures_are_centred_on_more_often():
    schemes = (
        LabelScheme(name="many", sets={0: ("background", "pancreas"), 1: ("liver",), 2: ("spleen",)}),
        LabelScheme(name="few", sets={0: ("background",), 1: ("liver",), 2: ("spleen",), 3: ("pancreas",)}),
    )
    cases, sources = cases_of(many=90, few=10)
    table = LabelSetTable(SPACE, schemes, {case: ("many", "few").index(sources[case]) for case in cases})
    weights = structure_weights(table, cases, case_weights(cases, sources, 0.0))
    assert weights == pytest.approx({1: 1.0, 2: 1.0, 3: 10.0})

    class Stored:
        def load_case(self, identifier):
            places = np.zeros((5, 4), dtype=int)
            annotated = {1: places, 2: places, 3: [] if identifier.startswith("many") else places, (-1, 0, 1): places}
            return "data", "seg", None, {"spacing": 1, "class_locations": annotated}

    np.random.seed(0)
    balanced = BalancedCases(Stored(), np.array(cases), weights)
    chosen = Counter()
    for _ in range(1200):
        data, seg, previous, properties = balanced.load_case("few_0")
        assert (data, seg, previous, properties["spacing"]) == ("data", "seg", None, 1)
        assert (-1, 0, 1) in properties["class_locations"]
        chosen.update(key for key in properties["class_locations"] if isinstance(key, int))
    assert chosen[3] / 1200 == pytest.approx(10 / 12, abs=0.05)
    assert chosen[1] / 1200 == pytest.approx(1 / 12, abs=0.03)
    keys = set(balanced.load_case("many_0")[3]["class_locations"])
    assert keys in ({1, (-1, 0, 1)}, {2, (-1, 0, 1)})
    untouched = BalancedCases(Stored(), np.array(cases)).load_case("few_0")[3]["class_locations"]
    assert set(untouched) == {1, 2, 3, (-1, 0, 1)}
