"""The files of dataset_conversion/: what they say against an independent table, and whether their layouts are found."""

import json
import re
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import yaml

from nnunet_pretrain.conversion import find_source, known_sources
from nnunet_pretrain.conversion.catalogue import SCHEMA_FILE, source_json_schema
from nnunet_pretrain.conversion.layout import fill, find_cases
from nnunet_pretrain.conversion.reading import open_volume
from nnunet_pretrain.conversion.source import ungrouped
from nnunet_pretrain.folders import leaf
from nnunet_pretrain.labels import DEFAULT_SPACE, LabelSpace
from nnunet_pretrain.labels.structures import GROUPS, PART_OF, STRUCTURES, TOTALSEGMENTATOR_STRUCTURES
from nnunet_pretrain.phantom import generate_phantom
from nnunet_pretrain.phantom.datasets import label_as, write_phantom_source

NAMES = tuple(known_sources())
# Number of cases, prefix and label sets as the reference collection of facts has them: written once from its
# schemas.json, in which lesions were sided and `bone` was called bone_other. Do not make this file from the sources.
TABLE = json.loads((Path(__file__).parent / "data" / "label_sets.json").read_text(encoding="utf-8"))
SPACE = LabelSpace(name="everything", structures=(*DEFAULT_SPACE.structures, "uterus", "brain", "bone"))
FEMORA = {"femur_left", "femur_right"}

# Where a label set differs from the table's, beyond the two rules of `expected_sets`.
DEVIATIONS = {
    ("AbdomenAtlas1.1", "hepatic_vessel"): ({"hepatic_vessel"}, "a structure of its own here, a second label there"),
    ("MSD08", 1): (
        {"hepatic_vessel", "portal_vein_and_splenic_vein", "postcava"},
        "a structure of its own here; the liver around it is not one of its alternatives, then",
    ),
    ("TotalSegmentatorV2", "background"): (
        {"background", "bone", "celiac_trunk", "rectum", "uterus"},
        "without kidney_cyst: a cyst outside the kidney masks is accepted as noise, else no kidney could be scored",
    ),
    ("CT-ORG", 5): (
        {"background", "bone", *FEMORA},
        "the group bone names bones this space has not, which count as background",
    ),
}


def expected_sets(name):
    """Source id -> label set, and background's, from the table with two rules of this package applied."""
    source = find_source(name)
    raw = {str(raw_id): raw_id for raw_id in source.labels}
    sets = {raw.get(key, key): set(names) for key, names in TABLE[name]["sets"].items()}
    parts = {part: organs for part, organs in PART_OF.items() if part not in source.structures}
    # The table knows no hepatic vessels inside the liver: where a liver may be, so may they.
    if "hepatic_vessel" in parts:
        for label_set in sets.values():
            label_set |= {"hepatic_vessel"} if "liver" in label_set else set()
    # A lesion (or vessel) belongs to its organ: background cannot hide it where it cannot hide the organ. In the
    # table it can, and only the organ itself counts when an organ is told from background.
    for part, organs in parts.items():
        if not set(organs) & sets["background"]:
            sets["background"].discard(part)
    for (source_name, raw_id), (label_set, _) in DEVIATIONS.items():
        if source_name == name:
            assert sets[raw_id] != label_set, "no deviation any more"
            sets[raw_id] = set(label_set)
    return sets


@pytest.mark.parametrize("name", NAMES)
def test_label_sets_are_those_of_the_reference(name):
    scheme, stored = find_source(name).scheme(SPACE)
    expected = expected_sets(name)
    background = expected.pop("background")
    assert set(scheme.sets[0]) == background
    assert set(stored) == set(expected)
    for raw_id, stored_id in stored.items():
        if stored_id:
            assert set(scheme.sets[stored_id]) == expected[raw_id], raw_id
        else:  # outside this space; TotalSegmentator's bones, which the table unites to one, are too
            assert name == "TotalSegmentatorV2"
            assert expected[raw_id] in ({"background"}, {"bone"}), raw_id
            assert expected[raw_id] <= background


def test_every_source_of_the_table_is_there():
    assert set(NAMES) == set(TABLE)
    assert len({source.prefix.lower() for source in known_sources().values()}) == len(NAMES)
    assert len({name.lower() for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_source_says_what_it_is_and_where_it_comes_from(name):
    source = find_source(name)
    assert (source.cases, source.prefix) == (TABLE[name]["cases"], TABLE[name]["prefix"])
    assert all((source.title, source.licence, source.url, source.citation, source.confidence, source.orientation))
    assert re.search(r"et al\., .+, .*\d{4}$", source.citation)
    assert source.confidence.endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_every_structure_named_is_known(name):
    source = find_source(name)
    structures = {*STRUCTURES, *TOTALSEGMENTATOR_STRUCTURES}
    assert set(source.structures) <= {*structures, *GROUPS, "ignore"}
    assert set(source.also_background) <= {*structures, *GROUPS}
    assert set(source.known_absent) <= structures
    assert {s for named in source.excludes_if_present.values() for s in named} <= structures
    annotated = {*ungrouped(source.structures), *PART_OF}
    assert set(ungrouped(source.also_background)) <= annotated  # all else is background's anyway


@pytest.mark.parametrize("name", NAMES)
def test_cases_left_out_are_named_as_the_layout_names_them(name):
    source = find_source(name)
    expressions = [_placeholders(layout.images).get("case") or "[^/]+" for layout in source.layouts]
    for case, reason in source.exclude_cases.items():
        assert any(re.fullmatch(expression, case) for expression in expressions), case
        assert reason


def test_schema_file_is_that_of_the_model():
    written = (leaf("dataset_conversion") / SCHEMA_FILE).read_text(encoding="utf-8")
    assert written == json.dumps(source_json_schema(), indent=2) + "\n", f"write {SCHEMA_FILE} anew"


@pytest.mark.parametrize("path", sorted(leaf("dataset_conversion").glob("*.yaml")), ids=lambda path: path.stem)
def test_source_files_fit_the_schema_editors_use(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# yaml-language-server: $schema={SCHEMA_FILE}\n")
    content = json.loads(json.dumps(yaml.safe_load(text)))  # keys of JSON are strings
    jsonschema.Draft202012Validator(json.loads((path.parent / SCHEMA_FILE).read_text(encoding="utf-8"))).validate(
        content
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_phantom_written_as_the_source_lies_on_disk_is_found(name, tmp_path):
    source = find_source(name)
    (case,) = write_phantom_source(source, tmp_path, [3], spacing_mm=(9.0, 9.0, 9.0))
    found = find_cases(source, tmp_path)
    assert (found.faulty, found.excluded, found.passed_over) == ({}, {}, 0)
    (files,) = found.cases
    assert files.case == f"{source.prefix}_{case}"
    assert set(files.masks) == (set(source.labels) if source.layouts[0].masks else set())
    assert all(path.stat().st_size for path in files.inputs)
    assert not [path for path in tmp_path.rglob(".*") if path.name.startswith(".partial")]


def test_phantom_cases_are_none_a_source_leaves_out(tmp_path):
    source = find_source("NIH-Pancreas-CT")
    (case,) = write_phantom_source(source, tmp_path, [7], spacing_mm=(12.0, 12.0, 12.0))  # 0007 is left out
    assert case == "00007"
    with pytest.raises(ValueError, match="AMOS22: no case id for seed 500 fits"):
        write_phantom_source(find_source("AMOS22"), tmp_path, [500])


def test_stacks_of_slices_hold_the_phantom_and_labels_are_twisted_as_in_the_source(tmp_path):
    phantom = generate_phantom(3, spacing_mm=(9.0, 9.0, 9.0), orientation="LPS")
    for name, axes in (("NIH-Pancreas-CT", (1,)), ("CHAOS-CT", (1, 2))):
        source = find_source(name)
        write_phantom_source(source, tmp_path / name, [3], spacing_mm=(9.0, 9.0, 9.0))
        (files,) = find_cases(source, tmp_path / name).cases
        image = open_volume(files.image)
        assert np.array_equal(image.read(), phantom.image)
        assert np.allclose(image.grid.affine, phantom.affine, atol=1e-4)
        label = open_volume(files.labels, image.grid)
        assert np.allclose(label.grid.affine, phantom.affine, atol=1e-4)  # it does not say how it is twisted
        labelled = label.read() > 0
        assert labelled.any()
        assert np.array_equal(np.flip(labelled, axes), label_as(source, phantom)[1])


LAYOUTS = [(name, position) for name in NAMES for position in range(len(find_source(name).layouts))]


@pytest.mark.parametrize(("name", "position"), LAYOUTS, ids=[f"{name}-{position}" for name, position in LAYOUTS])
def test_every_layout_is_found(name, position, tmp_path):
    source = find_source(name)
    layout = source.layouts[position]
    parts = _placeholders(layout.images).get("part", "").split("|")
    for number, part in enumerate(parts):
        values = {"case": f"003{number}", "part": part, "mask": str(next(iter(source.labels)))}
        _touch(tmp_path, layout.images, layout.image_format == "dicom", values)
        _touch(tmp_path, layout.labels or layout.masks, layout.label_format == "png", values)
    found = find_cases(source, tmp_path)
    assert not found.faulty
    assert len(found.cases) == len(parts)


@pytest.mark.parametrize(
    ("name", "files", "cases", "passed_over"),
    [
        ("AMOS22", ["amos22/{i,l}Tr/amos_0001", "amos22/{i,l}Va/amos_0507", "amos22/imagesTs/amos_0002"], ["0001"], 0),
        ("WORD", ["WORD-V0.1.0/{i,l}Tr/word_0002", "WORD-V0.1.0/imagesTs/word_0003"], ["0002"], 1),
        ("MSD09", ["Task09_Spleen/{i,l}Tr/spleen_2", "Task09_Spleen/imagesTr/._spleen_2",
                   "Task09_Spleen/imagesTs/spleen_1"], ["2"], 0),
        ("MSD03", ["imagesTr/liver_10_0000", "imagesTr/liver_1_0000", "labelsTr/liver_10", "labelsTr/liver_1"],
         ["1", "10"], 0),
        ("AbdomenCT-1K", ["AbdomenCT-1K-ImagePart1/Case_00001_0000", "AbdomenCT-1K-ImagePart3/Case_01062_0000",
                          "AbdomenCT-1K-ImagePart3/Case_01061_0000", "Mask/Case_00001", "Mask/Case_01062"],
         ["00001", "01062"], 1),
        ("AbdomenAtlas1.1", ["BDMAP_00000001/ct", "BDMAP_00000001/segmentations/liver",
                             "BDMAP_00009262/segmentations/liver"], ["00000001"], 1),
    ],
)  # fmt: skip
def test_what_else_lies_in_a_publication_is_left_alone(name, files, cases, passed_over, tmp_path):
    for file in files:
        for kind in ("images", "labels") if "{i,l}" in file else ("",):
            _touch(tmp_path, f"{file.replace('{i,l}', kind)}.nii.gz", False, {})
    source = find_source(name)
    found = find_cases(source, tmp_path)
    assert [files.case for files in found.cases] == [f"{source.prefix}_{case}" for case in cases]
    assert (found.faulty, found.excluded, found.passed_over) == ({}, {}, passed_over)


def test_labels_of_withdrawn_cases_are_no_fault(tmp_path):
    labels = "TCIA_pancreas_labels-02-05-2017/label{}.nii.gz"
    (tmp_path / "Pancreas-CT/PANCREAS_0001/study/series").mkdir(parents=True)
    for case in ("0001", "0025", "0070"):
        _touch(tmp_path, labels.format(case), False, {})
    found = find_cases(find_source("NIH-Pancreas-CT"), tmp_path)
    assert [files.case for files in found.cases] == ["NIHP_0001"]
    assert set(found.excluded) == {"NIHP_0025", "NIHP_0070"}
    assert not found.faulty


def _placeholders(template):
    return dict(re.findall(r"\{(\w+)(?::([^{}]+))?\}", template))


def _touch(root, template, is_folder, values):
    path = root / fill(template, **values).replace("*", "_0000")
    path = path / "slice" if is_folder else path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
