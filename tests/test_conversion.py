"""Merging: what the ids become, where the voxels lie, and what is refused."""

import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
from nnunet_runs import SMALL, SOURCES

from nnunet_pretrain.conversion import MergeOptions, Source, find_source, merge
from nnunet_pretrain.conversion.convert import convert_case
from nnunet_pretrain.conversion.layout import CaseFiles, find_cases
from nnunet_pretrain.conversion.record import Conversion
from nnunet_pretrain.labels import DEFAULT_SPACE, LabelSetTable
from nnunet_pretrain.phantom import STRUCTURES, generate_phantom
from nnunet_pretrain.phantom.datasets import write_phantom_source

AFFINE = np.diag([1.5, 1.5, 3.0, 1.0])


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def array_of(path):
    return np.asanyarray(nib.load(path).dataobj)


def dataset_json(folder):
    return json.loads((folder / "dataset.json").read_text(encoding="utf-8"))


def own_source(labels, **more):
    """A source of the test's own, with masks if its ids are names."""
    kind = {"masks": "{case}/{mask}.nii.gz"} if isinstance(next(iter(labels)), str) else {"labels": "l{case}.nii.gz"}
    facts = {"name": "Own", "title": "t", "prefix": "OWN", "licence": "l", "citation": "c", "labels": labels}
    return Source.model_validate({**facts, "layouts": [{"images": "i{case}.nii.gz", **kind}], **more})


@pytest.fixture
def copied(sources, tmp_path):
    """A copy of the sources that a test may spoil."""
    shutil.copytree(sources, tmp_path / "copied")
    return tmp_path / "copied"


@pytest.mark.parametrize("processes", [1, 2])
def test_merged_voxels_may_be_what_the_phantom_truly_is(nnunet, sources, processes):
    """The heart of it: for every voxel, the true structure is in the label set of (stored id, scheme)."""
    folder = merge(900, "Merged", [(name, sources / name) for name in SOURCES], MergeOptions(num_processes=processes))
    content = dataset_json(folder)
    table = LabelSetTable.from_dataset_json(content)
    truth_of = np.array([0, *(DEFAULT_SPACE.id_of(s) for s in STRUCTURES)])
    assert content["numTraining"] == len(content["dataset"]) == 6
    for position, (name, prefix) in enumerate(zip(SOURCES, ("BTCV", "KI23", "AA11"), strict=True)):
        for index in range(2):
            seed = 10 * position + index
            case = f"{prefix}_{seed:04d}"
            stored = array_of(folder / "labelsTr" / f"{case}.nii.gz")
            orientation = "".join(nib.aff2axcodes(nib.load(content["dataset"][case]["images"][0]).affine))
            truth = truth_of[generate_phantom(seed, spacing_mm=(9.0, 9.0, 9.0), orientation=orientation).labels]
            sets = table.schemes[table.scheme_of_case[case]].sets
            for stored_id in np.unique(stored):
                found = {DEFAULT_SPACE.names[i] for i in np.unique(truth[stored == stored_id])}
                assert found <= set(sets[stored_id]), (name, stored_id)
            assert len(np.unique(stored)) > 2


def test_images_are_referenced_and_labels_keep_their_geometry(nnunet, sources):
    folder = merge(900, "Merged", [("kits23", sources / "KiTS23")])
    entry = dataset_json(folder)["dataset"]["KI23_0010"]
    image, label = nib.load(entry["images"][0]), nib.load(folder / entry["label"])
    assert entry["images"] == [str(sources / "KiTS23/dataset/case_0010/imaging.nii.gz")]
    assert nib.aff2axcodes(label.affine) == ("I", "P", "L")
    assert np.array_equal(label.affine, image.affine)
    assert label.shape == image.shape
    assert (entry["source"], entry["scheme"]) == ("KiTS23", "KiTS23")
    assert not (folder / "imagesTr").exists()


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("imagesTr/img{}.nii.gz", "labelsTr/label{}.nii.gz"),
        ("imagesTr/img{}_0000.nii.gz", "labelsTr/img{}.nii.gz"),
    ],
)
def test_btcv_is_found_in_images_tr_too(nnunet, tmp_path, images, labels):
    array = np.zeros((4, 4, 4), np.int16)
    array[0], array[1] = 6, 3
    save(tmp_path / "b" / images.format("0007"), array)
    save(tmp_path / "b" / labels.format("0007"), array)
    stored = array_of(merge(900, "M", [("BTCV", tmp_path / "b")]) / "labelsTr/BTCV_0007.nii.gz")
    assert [stored[i, 0, 0] for i in range(3)] == [5, 3, 0]


def test_label_values_survive_float_and_scaled_storage(tmp_path):
    values = np.arange(14, dtype=np.float32).reshape(1, 2, 7)
    image = save(tmp_path / "image.nii.gz", values)
    scaled = nib.Nifti1Image((values * 2).astype(np.int16), AFFINE)
    scaled.header.set_slope_inter(0.5, 0)
    nib.save(scaled, tmp_path / "scaled.nii.gz")
    _, stored = find_source("BTCV").scheme(DEFAULT_SPACE)
    expected = [stored.get(int(value), 0) for value in values.reshape(-1)]
    for label in (save(tmp_path / "float.nii.gz", values), tmp_path / "scaled.nii.gz"):
        convert_case(Conversion(CaseFiles("c", image, label), find_source("BTCV"), DEFAULT_SPACE, tmp_path))
        assert array_of(tmp_path / "labelsTr/c.nii.gz").reshape(-1).tolist() == expected


def test_a_label_stored_in_another_orientation_is_turned(tmp_path):
    values = np.arange(14, dtype=np.int16).reshape(1, 2, 7)
    image = save(tmp_path / "image.nii.gz", values)
    turned = nib.load(image).as_reoriented(nib.orientations.axcodes2ornt(("P", "L", "I")))
    nib.save(turned, tmp_path / "turned.nii.gz")
    files = CaseFiles("c", image, tmp_path / "turned.nii.gz")
    convert_case(
        Conversion(
            files, own_source({i: s for i, s in enumerate(DEFAULT_SPACE.names[1:14], 1)}), DEFAULT_SPACE, tmp_path
        )
    )
    assert np.array_equal(array_of(tmp_path / "labelsTr/c.nii.gz"), values)


def test_overlapping_masks_the_smaller_structure_wins(tmp_path):
    liver, vessel = np.zeros((2, 5, 5, 5), np.uint8)
    liver[:4] = 1
    vessel[3:, 2, 2] = 1
    masks = {"liver": save(tmp_path / "l.nii.gz", liver), "vessel": save(tmp_path / "v.nii.gz", vessel)}
    files = CaseFiles("c", save(tmp_path / "i.nii.gz", liver), None, masks)
    for rule, stored_there, ignored in (("smaller_wins", 19, None), ("ignore", DEFAULT_SPACE.ignore_id, 1)):
        source = own_source({"vessel": "hepatic_vessel", "liver": "liver"}, overlapping_masks=rule)
        record = convert_case(Conversion(files, source, DEFAULT_SPACE, tmp_path))
        assert array_of(tmp_path / "labelsTr/c.nii.gz")[3, 2, 2] == stored_there
        assert (record.overlapping_voxels, record.voxels["5"]) == (1, 99)
        assert record.voxels.get(str(DEFAULT_SPACE.ignore_id)) == ignored
        assert (DEFAULT_SPACE.ignore_id in record.label_scheme.sets) == bool(ignored)
        assert "masks overlapped in 1 voxels" in record.decisions[-1]


def test_a_missing_mask_is_unknown_and_so_is_an_empty_one_where_the_source_says_so(nnunet, copied):
    case = copied / "AbdomenAtlas1.1/BDMAP_0020/segmentations"
    before = dataset_json(merge(900, "A", [("AbdomenAtlas1.1", copied / "AbdomenAtlas1.1")]))
    assert "spleen" not in before["label_schemes"][before["dataset"]["AA11_0020"]["scheme"]]["0"]
    (case / "spleen.nii.gz").unlink()
    empty = nib.load(case / "liver.nii.gz")
    save(case / "liver.nii.gz", np.zeros(empty.shape, np.uint8), empty.affine)
    (case / "celiac_trunk.nii.gz").rename(case / "celiac_truck.nii.gz")  # the alias of older copies
    content = dataset_json(merge(901, "B", [("AbdomenAtlas1.1", copied / "AbdomenAtlas1.1")]))
    scheme = content["dataset"]["AA11_0020"]["scheme"]
    assert scheme.startswith("AbdomenAtlas1.1 without ")
    assert {"spleen", "liver"} <= set(content["label_schemes"][scheme]["0"])
    assert not {"5", "8"} & set(content["label_schemes"][scheme])
    LabelSetTable.from_dataset_json(content)


def test_an_empty_mask_is_absent_in_a_source_that_was_built_complete(nnunet, tmp_path):
    source = find_source("TotalSegmentatorV2")
    for case, masks in (("s1", ("liver", "spleen", "prostate")), ("s2", ("liver",))):
        write_phantom_source(source, tmp_path, [int(case[1])], **SMALL)
        written = tmp_path / f"000{case[1]}"
        for mask in (written / "segmentations").iterdir():
            if mask.name.removesuffix(".nii.gz") in masks:
                old = nib.load(mask)
                save(mask, np.zeros(old.shape, np.uint8), old.affine)
    (tmp_path / "0002/segmentations/spleen.nii.gz").unlink()
    content = dataset_json(merge(900, "T", [("TotalSegmentatorV2", tmp_path)]))
    sets = {case: content["label_schemes"][entry["scheme"]] for case, entry in content["dataset"].items()}
    assert not {"liver", "spleen"} & set(sets["TSV2_0001"]["0"])
    assert "spleen" in sets["TSV2_0002"]["0"]
    assert "liver" not in sets["TSV2_0002"]["0"]


def test_masks_without_image_are_passed_over_where_published_so(nnunet, copied):
    (copied / "AbdomenAtlas1.1/BDMAP_0020/ct.nii.gz").unlink()
    folder = merge(900, "M", [("AbdomenAtlas1.1", copied / "AbdomenAtlas1.1")])
    assert list(dataset_json(folder)["dataset"]) == ["AA11_0021"]


def test_excluded_cases_are_left_out(tmp_path):
    source = find_source("TotalSegmentatorV2")
    for case in ("s0091", "s0092"):
        save(tmp_path / case / "ct.nii.gz", np.zeros((2, 2, 2), np.int16))
        save(tmp_path / case / "segmentations/liver.nii.gz", np.zeros((2, 2, 2), np.uint8))
    assert [files.case for files in find_cases(source, tmp_path).cases] == ["TSV2_s0091"]


def test_images_beside_labels_are_not_taken_for_labels(tmp_path):
    for name in ("a.nii.gz", "a_ct.nii.gz", "b.nii.gz", "b_ct.nii.gz"):
        save(tmp_path / name, np.zeros((2, 2, 2), np.int16))
    source = own_source({1: "liver"}, layouts=[{"images": "{case}_ct.nii.gz", "labels": "{case}.nii.gz"}])
    found = find_cases(source, tmp_path)
    assert ([files.case for files in found.cases], found.faulty) == (["OWN_a", "OWN_b"], {})


def test_a_users_own_source_file(nnunet, tmp_path, sources):
    own = tmp_path / "mine.yaml"
    own.write_text(
        "name: Mine\ntitle: my data\nprefix: MINE\nlicence: none\ncitation: none\n"
        "layouts: [{images: 'dataset/case_{case}/imaging.nii.gz', labels: 'dataset/case_{case}/segmentation.nii.gz'}]\n"
        "labels: {1: [kidney_left, kidney_right], 2: [kidney_left, kidney_right], 3: ignore}\n"
    )
    content = dataset_json(merge(900, "M", [(str(own), sources / "KiTS23")]))
    assert content["labels"]["ignore"] == 32
    assert content["label_schemes"]["Mine"]["32"] == list(DEFAULT_SPACE.names)
    assert set(content["dataset"]) == {"MINE_0010", "MINE_0011"}


def spoil_shape(root):
    save(root / "KiTS23/dataset/case_0011/segmentation.nii.gz", np.zeros((3, 3, 3), np.uint8))


def spoil_affine(root):
    path = root / "KiTS23/dataset/case_0011/segmentation.nii.gz"
    label = nib.load(path)
    save(path, np.array(label.dataobj), label.affine + np.diag([0, 0, 0.01, 0]))


def spoil_id(root):
    path = root / "KiTS23/dataset/case_0011/segmentation.nii.gz"
    array = np.array(nib.load(path).dataobj)
    array[0, 0, 0] = 7
    save(path, array, nib.load(path).affine)


def spoil_bytes(root):
    path = root / "KiTS23/dataset/case_0011/segmentation.nii.gz"
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_shape, r"case_0011/segmentation.nii.gz has shape \(3, 3, 3\), expected \(\d+, \d+, \d+\)"),
        (spoil_affine, "case_0011/segmentation.nii.gz has affine .* expected .* as its image"),
        (spoil_id, r"case_0011/segmentation.nii.gz holds label ids \[7\], expected only \[0, 1, 2, 3\]"),
        (spoil_bytes, "case_0011/segmentation.nii.gz (cannot be inflated|is not readable)"),
        (lambda r: (r / "KiTS23/dataset/case_0011/segmentation.nii.gz").unlink(), "image without label: .*case_0011"),
        (lambda r: (r / "KiTS23/dataset/case_0011/imaging.nii.gz").unlink(), "label without image: .*case_0011"),
        (
            lambda r: save(r / "AbdomenAtlas1.1/BDMAP_0020/segmentations/wing.nii.gz", np.zeros((2, 2, 2), np.uint8)),
            "wing.nii.gz is not in the label scheme",
        ),
        (
            lambda r: save(r / "AbdomenAtlas1.1/BDMAP_0020/segmentations/liver.nii.gz", np.zeros((2, 2, 2), np.uint8)),
            r"liver.nii.gz has shape \(2, 2, 2\)",
        ),
    ],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_faulty_case_is_quarantined_or_stops_a_strict_merge(nnunet, copied, spoil, message, processes):
    spoil(copied)
    pairs = [("KiTS23", copied / "KiTS23"), ("AbdomenAtlas1.1", copied / "AbdomenAtlas1.1")]
    folder = merge(900, "Merged", pairs, MergeOptions(num_processes=processes))
    quarantined = json.loads((folder / "quarantine.json").read_text(encoding="utf-8"))
    ((case, reason),) = quarantined.items()
    assert re.search(message, reason)
    assert len(dataset_json(folder)["dataset"]) == 3
    assert case not in dataset_json(folder)["dataset"]
    assert not (folder / "labelsTr" / f"{case}.nii.gz").exists()
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=message):
        merge(900, "Merged", pairs, MergeOptions(num_processes=processes, strict=True))
    assert not folder.exists()


def test_a_source_that_is_not_there_stops_the_merge(nnunet, copied):
    shutil.rmtree(copied / "KiTS23/dataset")
    with pytest.raises(FileNotFoundError, match=r"no case found in .*KiTS23; expected"):
        merge(900, "M", [("KiTS23", copied / "KiTS23")])
    with pytest.raises(FileNotFoundError, match=r"folder .*nowhere not found"):
        merge(900, "M", [("KiTS23", copied / "nowhere")])
    assert list((nnunet / "nnUNet_raw").iterdir()) == []


def test_an_existing_dataset_is_replaced_only_on_demand_and_only_by_a_complete_one(nnunet, copied):
    pairs = [("KiTS23", copied / "KiTS23")]
    folder = merge(900, "Merged", pairs)
    before = (folder / "dataset.json").read_bytes()
    with pytest.raises(ValueError, match="exists; choose another -d, replace it with --overwrite"):
        merge(900, "Merged", pairs)
    with pytest.raises(ValueError, match=r"dataset id 900 is taken by .*Dataset900_Merged"):
        merge(900, "Other", pairs, MergeOptions(overwrite=True))
    spoil_id(copied)
    with pytest.raises(ValueError, match="holds label ids"):
        merge(900, "Merged", pairs, MergeOptions(overwrite=True, strict=True))
    assert (folder / "dataset.json").read_bytes() == before
    shutil.rmtree(copied / "KiTS23/dataset/case_0011")
    merge(900, "Merged", pairs, MergeOptions(overwrite=True))
    assert dataset_json(folder)["numTraining"] == 1
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((900, "M", [("nosuch", ".")]), "unknown source 'nosuch'; known are AbdomenAtlas1.0, AbdomenAtlas1.1"),
        ((0, "M", []), "between 1 and 999, got 0"),
        ((900, "", []), "dataset name must consist of"),
        ((900, "M", []), "nothing to merge"),
    ],
)
def test_bad_arguments(nnunet, arguments, message):
    with pytest.raises(ValueError, match=message):
        merge(*arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("colour: red", "unknown key 'colour'; the keys there are name, title"),
        ("labels: {0: liver}", "id 0 is background"),
        ("labels: {liver: liver}", "labels must be keyed by integer ids"),
        ("layouts: [{images: a}]", "either 'labels' or 'masks'"),
        ("prefix: 'a b'", "prefix: .*got 'a b'"),
    ],
)
def test_bad_source_files_say_what_is_wrong(tmp_path, change, message):
    path = tmp_path / "bad.yaml"
    good = {
        "name": "Mine", "title": "t", "prefix": "M", "licence": "l", "citation": "c",
        "layouts": "[{images: 'i{case}', labels: 'l{case}'}]", "labels": "{1: liver}",
    }  # fmt: skip
    key, _, value = change.partition(": ")
    path.write_text("\n".join(f"{k}: {v}" for k, v in {**good, key: value}.items()))
    with pytest.raises(ValueError, match=message):
        find_source(str(path))
