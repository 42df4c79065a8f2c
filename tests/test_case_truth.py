"""What a stored voxel may truly be: for every source, its own ids on its own layout, random label maps."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt
from nnunet_runs import SMALL
from test_sources import SPACE, TABLE, expected_sets

from nnunet_pretrain.conversion import MergeOptions, find_source, known_sources, merge
from nnunet_pretrain.conversion.layout import find_cases
from nnunet_pretrain.labels import DEFAULT_SPACE, LabelSetTable
from nnunet_pretrain.phantom import generate_phantom
from nnunet_pretrain.phantom.datasets import write_phantom_source

DATA = Path(__file__).parents[2] / "shared" / "data"
NAMES = sorted(known_sources())
# Patients without the lesions these sources exclude, whose labels lie on soft tissue by a clear lead at 9 mm.
SEEDS = {"NIH-Pancreas-CT": (38, 1), "CHAOS-CT": (1, 2)}


def array_of(path):
    return np.asanyarray(nib.load(path).dataobj)


def save(path, array, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def content_of(folder):
    return json.loads((folder / "dataset.json").read_text(encoding="utf-8"))


def random_labels(source, files, rng):
    """Overwrites a case's labels with random ids, some of them absent; returns the ids, background as 0."""
    image = nib.load(files.image)
    ids = [i for i in source.labels if rng.random() < 0.8]
    drawn = rng.integers(0, len(ids) + 1, image.shape)
    if files.labels is not None:
        save(files.labels, np.array([0, *ids], np.uint8)[drawn], image.affine)
    for name, path in files.masks.items():
        save(
            path,
            (drawn == ids.index(name) + 1).astype(np.uint8) if name in ids else 0 * drawn.astype(np.uint8),
            image.affine,
        )
    return np.array([0, *ids], dtype=object)[drawn]


@pytest.mark.parametrize("name", NAMES)
def test_random_label_maps_mean_what_the_reference_says(name, nnunet, tmp_path):
    source = find_source(name)
    root = tmp_path / "data"
    write_phantom_source(source, root, SEEDS.get(name, (1, 2)), ("RAS", "LPS"), **SMALL)
    cases = find_cases(source, root).cases
    by_overlay = source.label_geometry == "by_overlay"  # random labels cannot be laid onto an image
    truth = (
        {}
        if by_overlay
        else {f.case: random_labels(source, f, np.random.default_rng(5 + i)) for i, f in enumerate(cases)}
    )
    own = source.model_copy(update={"accept_cases": tuple(files.case for files in cases)})
    path = tmp_path / "own.json"
    path.write_text(json.dumps(own.model_dump(mode="json", exclude_defaults=True)))
    folder = merge(900, "M", [(str(path), root)], MergeOptions(space=SPACE, strict=True))
    content, expected = content_of(folder), expected_sets(name)
    assert len(content["dataset"]) == 2
    for case, entry in content["dataset"].items():
        sets = {int(i): set(s) for i, s in content["label_schemes"][entry["scheme"]].items()}
        stored = array_of(folder / "labelsTr" / f"{case}.nii.gz")
        if by_overlay:
            assert [sets[i] for i in np.unique(stored)[1:]] == [expected[1]]
            assert sets[0] == expected["background"]
            continue
        check_voxels(source, truth[case], stored, sets, expected)
    verify(folder)


def check_voxels(source, truth, stored, sets, expected):
    """Every (source id, stored id) pair that occurs yields the reference's label set."""
    for raw_id in set(truth.reshape(-1).tolist()):
        for stored_id in np.unique(stored[truth == raw_id]):
            if raw_id == 0 and stored_id == SPACE.ignore_id:
                assert source.holes_are_unknown  # noise has holes in organs
            elif raw_id != 0 and stored_id:
                assert sets[int(stored_id)] == expected[raw_id], raw_id
            elif raw_id != 0:
                assert expected[raw_id] <= {"background", "bone"}  # outside the space
    present = set(truth.reshape(-1).tolist())
    background = set(expected["background"])
    stored_of = source.scheme(SPACE)[1]
    for raw_id in source.may_be_unknown:
        if raw_id not in present and stored_of[raw_id] not in (0, SPACE.ignore_id):
            background |= expected[raw_id]
    for raw_id, structures in source.excludes_if_present.items():
        background -= set(structures) if raw_id in present else set()
    assert sets[0] == background


def verify(folder):
    """Stock nnU-Net accepts the dataset."""
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    verify_dataset_integrity(str(folder), 1)


def test_every_source_in_one_dataset_passes_stock_verification(nnunet, tmp_path):
    for name in NAMES:
        write_phantom_source(find_source(name), tmp_path / name, SEEDS.get(name, (3,))[:1], ("RAS",), **SMALL)
    lines = []
    folder = merge(900, "All", [(name, tmp_path / name) for name in NAMES], MergeOptions(num_processes=2), lines.append)
    content = content_of(folder)
    assert {source["name"] for source in content["sources"]} == set(TABLE)
    assert not (folder / "quarantine.json").exists(), lines
    assert len(content["dataset"]) == 22
    assert sorted(p.name for p in (folder / "imagesTr").iterdir()) == [  # DICOM only
        f"{case}_0000.nii.gz" for case in content["dataset"] if case.startswith(("CHAO", "NIHP"))
    ]
    assert any("images occur more than once" in line for line in lines)  # the same patient in most sources
    LabelSetTable.from_dataset_json(content)
    verify(folder)


def test_storage_orientation_does_not_matter(nnunet, tmp_path):
    phantom = generate_phantom(4, spacing_mm=(8.0, 9.0, 10.0))
    labels = np.array([0, *range(1, 32)], np.uint8)[np.minimum(phantom.labels, 31)]
    angle = np.deg2rad(8)
    oblique = np.eye(4)
    oblique[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    source = find_source("AbdomenAtlas1.0").model_dump(mode="json", exclude_defaults=True)
    source |= {"layouts": [{"images": "i/{case}.nii.gz", "labels": "l/{case}.nii.gz"}], "holes_are_unknown": []}
    source["labels"] = {DEFAULT_SPACE.id_of(s): s for s in source["labels"]}
    labels[~np.isin(labels, list(source["labels"]))] = 0
    (tmp_path / "own.json").write_text(json.dumps(source))
    for name, codes, turned in (("a", "RAS", 0), ("b", "LPS", 0), ("c", "IPL", 0), ("d", "PSR", 1)):
        affine = oblique @ phantom.affine if turned else phantom.affine
        for kind, array in (("i", phantom.image), ("l", labels)):
            stored = nib.Nifti1Image(array, affine)
            turn = nib.orientations.ornt_transform(nib.io_orientation(affine), axcodes2ornt(tuple(codes)))
            (tmp_path / kind).mkdir(exist_ok=True)
            nib.save(stored.as_reoriented(turn), tmp_path / kind / f"{name}.nii.gz")
    folder = merge(900, "M", [(str(tmp_path / "own.json"), tmp_path)])
    merged = [nib.as_closest_canonical(nib.load(p)) for p in sorted((folder / "labelsTr").iterdir())]
    assert len(merged) == 4
    assert len(np.unique(merged[0].dataobj)) > 8
    for other in merged[1:]:
        assert np.array_equal(np.asanyarray(other.dataobj), np.asanyarray(merged[0].dataobj))
    (group,) = content_of(folder)["duplicate_groups"]
    assert len(group) == 4  # and the fingerprint sees through all of it


def test_tubes_that_stop_early_are_unknown_in_background(nnunet, tmp_path):
    source = find_source("FLARE22")
    write_phantom_source(source, tmp_path, [1, 2], **SMALL)
    first, second = find_cases(source, tmp_path).cases
    label = nib.load(first.labels)
    array = np.array(label.dataobj)
    array[array == 5] = 0
    array[3, 3, :] = 5  # an aorta through all slices
    save(first.labels, array, label.affine)
    content = content_of(merge(900, "M", [("FLARE22", tmp_path)]))
    sets = [content["label_schemes"][content["dataset"][files.case]["scheme"]]["0"] for files in (first, second)]
    assert "aorta" not in sets[0]
    assert "aorta" in sets[1]
    assert "esophagus" in sets[0]


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the real files beside the project")
def test_a_real_case_of_117_masks_converts_to_exactly_its_masks(nnunet):
    source = find_source("TotalSegmentatorV2")
    root = DATA / "totalsegmentator_masks"
    folder = merge(900, "M", [("TotalSegmentatorV2", root)], MergeOptions(strict=True))
    (label,) = (folder / "labelsTr").iterdir()
    stored, mapping = array_of(label), source.scheme(DEFAULT_SPACE)[1]
    masks = {name: array_of(root / "segmentations" / f"{name}.nii.gz") > 0 for name in mapping}
    assert sum(mask.any() for mask in masks.values()) == 40
    painted = sum((masks[name].astype(int) for name in masks if mapping[name]), np.zeros(stored.shape, int))
    assert np.array_equal(stored > 0, painted > 0)
    for name, stored_id in mapping.items():
        if stored_id:
            assert (stored[masks[name] & (painted == 1)] == stored_id).all(), name
    verify(folder)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the real files beside the project")
def test_a_real_amos_label_survives(nnunet, tmp_path):
    original = nib.load(DATA / "amos_label/amos_0001.nii.gz")
    array = np.asanyarray(original.dataobj)
    (tmp_path / "labelsTr").mkdir()
    (tmp_path / "labelsTr/amos_0001.nii.gz").symlink_to(DATA / "amos_label/amos_0001.nii.gz")
    save(tmp_path / "imagesTr/amos_0001.nii.gz", (array * 8).astype(np.int16), original.affine)
    folder = merge(900, "M", [("AMOS22", tmp_path)], MergeOptions(strict=True))
    stored, mapping = array_of(folder / "labelsTr/AMOS_0001.nii.gz"), find_source("AMOS22").scheme(DEFAULT_SPACE)[1]
    back = np.zeros(256, np.uint8)
    back[[mapping[i] for i in mapping]] = list(mapping)
    assert np.array_equal(back[stored], array)
    assert np.array_equal(nib.load(folder / "labelsTr/AMOS_0001.nii.gz").affine, original.affine)
