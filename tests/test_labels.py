"""Label spaces, schemes and their tables."""

import json

import numpy as np
import pytest

from nnunet_pretrain.conversion import find_source, known_sources
from nnunet_pretrain.labels import DEFAULT_SPACE, LabelScheme, LabelSetTable, LabelSpace
from nnunet_pretrain.labels.structures import LESIONS


def table_of(*schemes, space=DEFAULT_SPACE):
    return LabelSetTable(space, schemes, {f"case{i}": i for i in range(len(schemes))})


def sets_of(source, space=DEFAULT_SPACE):
    """Source id -> label set as the scheme and the id map together say."""
    scheme, stored = find_source(source).scheme(space)
    return {raw: set(scheme.sets[stored_id]) for raw, stored_id in stored.items()}, set(scheme.sets[0])


def test_default_space_has_the_published_ids():
    names = dict(enumerate(DEFAULT_SPACE.names))
    assert [names[i] for i in (0, 1, 2, 5, 13, 19, 25)] == [
        "background", "aorta", "gall_bladder", "liver", "celiac_trunk", "hepatic_vessel", "rectum",
    ]  # fmt: skip
    assert [names[i] for i in range(26, 32)] == [
        "liver_tumor", "pancreas_tumor", "kidney_tumor", "kidney_cyst", "colon_tumor", "lung_tumor",
    ]  # fmt: skip
    assert DEFAULT_SPACE.ignore_id == 32


def test_btcv_organs_include_their_lesions_and_vessels():
    sets, background = sets_of("BTCV")
    assert sets[6] == {"liver", "liver_tumor", "hepatic_vessel"}
    assert sets[3] == {"kidney_left", "kidney_tumor", "kidney_cyst"}
    assert sets[1] == {"spleen"}
    assert background >= {"background", "duodenum", "colon", "lung_left", "lung_tumor"}
    assert not background & {"liver", "liver_tumor", "hepatic_vessel", "kidney_tumor", "aorta"}


def test_kits_kidney_is_stored_under_one_leaf_and_may_be_either_side():
    scheme, stored = find_source("KiTS23").scheme(DEFAULT_SPACE)
    assert stored == {1: 3, 2: 28, 3: 29}
    assert scheme.sets[3] == ("kidney_left", "kidney_right")
    assert scheme.sets[28] == ("kidney_tumor",)
    assert "liver" in scheme.sets[0]
    assert "kidney_cyst" not in scheme.sets[0]


def test_a_structure_outside_the_space_counts_as_background():
    scheme, stored = LabelScheme.from_source_labels(
        "AMOS", {14: ("bladder",), 15: ("prostate", "uterus")}, DEFAULT_SPACE
    )
    assert scheme.sets[stored[15]] == ("background", "prostate")
    assert "prostate" not in scheme.sets[0]
    decidable = table_of(scheme).decidable[0]
    assert decidable[stored[14]]
    assert not decidable[stored[15]]


def test_a_lesion_outside_the_space_counts_as_its_organ():
    space = LabelSpace(name="kidneys", structures=("kidney_left", "kidney_right", "liver"))
    scheme, stored = find_source("KiTS23").scheme(space)
    assert stored == {1: 1, 2: 1, 3: 1}
    assert scheme.sets[1] == ("kidney_left", "kidney_right")
    sets, background = sets_of("BTCV", space)
    assert sets[3] == {"kidney_left"}
    assert sets[6] == {"liver"}
    assert sets[1] == {"background"}  # spleen
    assert background == {"background"}


@pytest.mark.parametrize("name", known_sources())
def test_sets_cover_the_space_and_schemes_survive_json(name):
    scheme, _ = find_source(name).scheme(DEFAULT_SPACE)
    possible = {s for label_set in scheme.sets.values() for s in label_set}
    assert possible == set(DEFAULT_SPACE.names) - set(find_source(name).known_absent)
    assert LabelScheme.model_validate_json(scheme.model_dump_json()) == scheme
    assert LabelSpace.model_validate_json(DEFAULT_SPACE.model_dump_json()) == DEFAULT_SPACE


@pytest.mark.parametrize(
    ("name", "undecidable"),
    [
        ("BTCV", set()),
        ("KiTS23", set()),
        ("AbdomenAtlas1.1", {"prostate", "femur_left", "femur_right"}),
        ("TotalSegmentatorV2", {"kidney_cyst", "colon"}),
    ],
)
def test_what_a_source_annotates_stays_decidable(name, undecidable):
    scheme, _ = find_source(name).scheme(DEFAULT_SPACE)
    everything = LabelScheme(name="all", sets={i: (structure,) for i, structure in enumerate(DEFAULT_SPACE.names)})
    decidable = table_of(scheme, everything).decidable[0]
    assert {DEFAULT_SPACE.names[i] for i in scheme.sets if i and not decidable[i]} == undecidable


def test_ignore_may_be_everything():
    scheme, stored = LabelScheme.from_source_labels("Mine", {1: ("liver",), 9: ("ignore",)}, DEFAULT_SPACE)
    assert stored[9] == DEFAULT_SPACE.ignore_id
    assert scheme.sets[DEFAULT_SPACE.ignore_id] == DEFAULT_SPACE.names
    assert "spleen" in scheme.sets[0]  # ignore does not annotate the spleen
    table = table_of(scheme)
    assert table.decidable[0].tolist() == [i == 5 for i in range(33)]


def test_a_missing_annotation_moves_into_background():
    scheme, _ = find_source("BTCV").scheme(DEFAULT_SPACE)
    without = scheme.with_unknown([5], "BTCV without liver", DEFAULT_SPACE)
    assert 5 not in without.sets
    assert set(without.sets[0]) == set(scheme.sets[0]) | {"liver", "liver_tumor", "hepatic_vessel"}


def test_two_sets_do_not_share_a_representative():
    labels = {1: ("kidney_left", "kidney_right"), 2: ("kidney_left",)}
    _, stored = LabelScheme.from_source_labels("Mine", labels, DEFAULT_SPACE)
    assert stored == {1: 4, 2: 3}
    _, stored = LabelScheme.from_source_labels("Mine", {**labels, 3: ("kidney_right",)}, DEFAULT_SPACE)
    assert stored == {1: DEFAULT_SPACE.ignore_id, 2: 3, 3: 4}  # nothing else is true of id 1


@pytest.mark.parametrize("name", sorted(known_sources()))
@pytest.mark.parametrize("left_out", [LESIONS, (*LESIONS, "hepatic_vessel"), ("hepatic_vessel", "kidney_left")])
def test_every_source_fits_smaller_spaces(name, left_out):
    """What a smaller space cannot tell apart is called by the organ's name, and never by a wrong one."""
    space = LabelSpace(name="small", structures=tuple(s for s in DEFAULT_SPACE.structures if s not in left_out))
    source = find_source(name)
    scheme, stored = source.scheme(space)
    for raw_id, structures in source.label_sets.items():
        nearest = {n for s in structures if s != "ignore" for n in space.nearest(s, among=structures)}
        assert nearest <= set(scheme.sets[stored[raw_id]]), raw_id
    if "liver" in source.structures and "kidney_left" in space.structures:
        assert set(scheme.sets[space.id_of("liver")]) <= {"liver", *LESIONS, "hepatic_vessel"}


def test_groups_are_named_after_their_label_sets():
    table = table_of(*(find_source(name).scheme(DEFAULT_SPACE)[0] for name in ("BTCV", "KiTS23", "AbdomenAtlas1.1")))
    both_kidneys = "kidney_left+kidney_right"
    expected = {"liver+hepatic_vessel", "liver", "kidney_left+kidney_tumor+kidney_cyst", both_kidneys}
    assert expected <= set(table.groups)
    kits = table.group_of_id[1]
    assert [table.groups[i] for i in kits[kits >= 0]] == [both_kidneys, "kidney_tumor", "kidney_cyst"]


def test_what_no_source_stores_is_in_no_set_but_ignore():
    """Otherwise nothing would tell liver tumour from liver, and a network could call every liver a tumour."""
    own = {1: ("liver",), 2: ("spleen",), 9: ("ignore",)}
    scheme, _ = LabelScheme.from_source_labels("Mine", own, DEFAULT_SPACE)
    assert "liver_tumor" in scheme.sets[5]  # the scheme says what is true
    table = table_of(scheme)
    assert set(table.untaught) == set(DEFAULT_SPACE.structures) - {"liver", "spleen"}
    assert table.member[0, 5].nonzero()[0].tolist() == [5]
    assert table.member[0, 0].nonzero()[0].tolist() == [0]
    assert table.member[0, DEFAULT_SPACE.ignore_id].all()
    lits, _ = LabelScheme.from_source_labels("LiTS", {1: ("liver",), 2: ("liver_tumor",)}, DEFAULT_SPACE)
    both = table_of(scheme, lits)
    assert both.member[0, 5].nonzero()[0].tolist() == [5, 26]
    assert both.member[1, 5].nonzero()[0].tolist() == [5]


def test_what_every_background_may_hide_is_taken_at_face_value():
    """Otherwise "femur" would be as right as "background" everywhere."""
    partly = ("femur_left",)
    word, _ = LabelScheme.from_source_labels("WORD", {15: partly, 1: ("liver",)}, DEFAULT_SPACE, also_background=partly)
    complete, _ = LabelScheme.from_source_labels("TS", {75: partly}, DEFAULT_SPACE)
    other, _ = LabelScheme.from_source_labels("KiTS", {1: ("liver",)}, DEFAULT_SPACE)
    femur = DEFAULT_SPACE.id_of("femur_left")
    assert "femur_left" in word.sets[0]
    assert table_of(word, other).member[:, 0, femur].tolist() == [False, True]
    assert table_of(word, other).decidable[0, femur]
    assert table_of(word, complete).member[:, 0, femur].tolist() == [True, False]
    assert not table_of(word, complete).decidable[0, femur]


def test_table_reads_a_dataset_json_and_names_what_is_wrong():
    scheme, _ = find_source("KiTS23").scheme(DEFAULT_SPACE)
    content = {
        "labels": DEFAULT_SPACE.dataset_labels(),
        "label_schemes": {"KiTS23": {str(i): list(s) for i, s in scheme.sets.items()}},
        "dataset": {"a": {"scheme": "KiTS23"}},
    }
    table = LabelSetTable.from_dataset_json(json.loads(json.dumps(content)))
    assert table.schemes == (scheme,)
    assert np.array_equal(table.scheme_indices(["a", "a"]), [0, 0])
    with pytest.raises(ValueError, match="case 'b' has no label scheme"):
        table.scheme_indices(["b"])
    with pytest.raises(ValueError, match="names label scheme 'BTCV', expected one of"):
        LabelSetTable.from_dataset_json({**content, "dataset": {"a": {"scheme": "BTCV"}}})
    with pytest.raises(ValueError, match="no 'label_schemes'"):
        LabelSetTable.from_dataset_json({"labels": content["labels"]})


@pytest.mark.parametrize(
    ("structures", "message"),
    [((), "at least one"), (("liver", "liver"), "more than once"), (("background",), "must not be listed")],
)
def test_bad_label_spaces_are_refused(structures, message):
    with pytest.raises(ValueError, match=message):
        LabelSpace(name="bad", structures=structures)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({1: ("aorta",)}, "id 0 must contain 'background'"),
        ({0: ("background",), 1: ()}, "must hold each structure once"),
        ({0: ("background",), 1: ("liver",)}, r"must contain \['aorta'\]"),
        ({0: ("background",), 1: ("aorta", "wing")}, r"\['wing'\] not in label space"),
        ({0: ("background",), 77: ("aorta",)}, "id 77 is outside"),
        ({0: ("background",), 32: ("aorta",)}, "id 32 must contain"),
    ],
)
def test_bad_schemes_are_refused(sets, message):
    with pytest.raises(ValueError, match=message):
        LabelScheme(name="bad", sets=sets).check(DEFAULT_SPACE)
