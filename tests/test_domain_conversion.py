"""Existing datasets become domains of one dataset: ids, schemes, channels, clipping, resuming, and what is refused."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
from small_domains import CT, MEMBERS, MR, NAME, THICK, change_description, voxels_of, write_members, write_volume

from nnunet_pretrain.cli import main
from nnunet_pretrain.conversion.clip import clip_folder, clip_image, clipped
from nnunet_pretrain.conversion.domain_checks import plain_labels
from nnunet_pretrain.conversion.domains import make_domains
from nnunet_pretrain.labels import LabelSetTable
from nnunet_pretrain.planning.domain_plans import dataset_json_of_domain, domain_tables


@pytest.fixture
def raw(nnunet):
    write_members(nnunet / "nnUNet_raw")
    return nnunet / "nnUNet_raw"


def make(members=(3, 7, 9), channels=("T1",), **options):
    lines = []
    options = {"num_processes": 1, "report": lines.append, **options}
    folder = make_domains(910, "Domains", members, channels, **options)
    return folder, read(folder / "dataset.json"), " ".join(lines)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def times(folder):
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}


def test_every_domain_keeps_its_own_ids_in_a_branch_of_its_own(raw):
    folder, content, said = make()
    assert content["labels"] == {
        "background": 0,
        "Dataset003_Ct__liver": 1,
        "Dataset003_Ct__spleen": 2,
        "Dataset007_Mr__whole": 3,
        "Dataset007_Mr__whole_core": 4,
        "Dataset009_Thick__heart_chamber": 5,
        "ignore": 6,
    }
    names = list(content["labels"])[:-1]
    assert content["label_schemes"][CT] == {"0": ["background", *names[3:]], "1": [names[1]], "2": [names[2]]}
    assert content["label_schemes"][MR]["6"] == names
    assert "regions are taken apart" in said
    assert content["domains"][MR] == {
        "labels": {"background": 0, "whole": 1, "whole_core": 2, "ignore": 3},
        "channel_names": {"0": "T1"},
        "file_ending": ".nii.gz",
    }
    assert content["sources"][0] == {
        "name": CT,
        "cases": 3,
        "licence": "CC BY 4.0",
        "citation": "Somebody et al.",
    }
    table = LabelSetTable.from_dataset_json(content)
    branches = domain_tables(content)
    for case, entry in content["dataset"].items():
        member, _, patient = case.partition("__")
        assert entry["source"] == entry["scheme"] == member == table.schemes[table.scheme_of_case[case]].name
        own = voxels_of(raw / member / f"labelsTr/{patient}.nii.gz")
        written = nib.load(folder / entry["label"])
        np.testing.assert_allclose(written.affine, nib.load(raw / member / f"labelsTr/{patient}.nii.gz").affine)
        stored = np.asarray(written.dataobj)
        channels = branches[member].stored_ids
        for channel, stored_id in enumerate(channels):
            np.testing.assert_array_equal(stored == stored_id, own == channel)
        np.testing.assert_array_equal(stored == 6, own == 3)  # only MR has an ignored id
        assert entry["images"] == [str(raw / member / f"imagesTr/{patient}_0000.nii.gz")]
    alone = dataset_json_of_domain(content, THICK, branches[THICK])
    assert (alone["labels"], alone["numTraining"]) == ({"background": 0, "heart chamber": 1}, 3)


def test_stock_nnunet_finds_nothing_wrong_with_the_dataset(raw, capfd):
    folder, content, _ = make()
    verify_dataset_integrity(str(folder), 2)
    assert "Error" not in capfd.readouterr().out
    folds = read(folder / "splits_final.json")
    assert len(folds) == 5
    assert sorted(case for fold in folds for case in fold["val"]) == sorted(content["dataset"])
    assert set(read(folder / "fingerprints.json")) == {c for c in content["dataset"] if not c.startswith(MR)}


def test_channels_are_chosen_by_name_or_become_cases(raw):
    with pytest.raises(ValueError, match=r"different channels \(.*T1, T2.*--channel NAME .*--channel ALL"):
        make(channels=())
    with pytest.raises(ValueError, match=r"Dataset007_Mr has the channels T1, T2, and none is called FLAIR or PD"):
        make(channels=("FLAIR", "PD"))
    _, content, _ = make(channels=("flair", "t2", "T1"))
    assert content["domains"][MR]["channel_names"] == {"0": "T2"}
    assert content["dataset"][f"{MR}__case0"]["images"][0].endswith("case0_0001.nii.gz")
    assert content["channel_names"] == {"0": "image"}
    folder, content, _ = make(channels=("ALL",))
    assert [c for c in content["dataset"] if c.startswith(f"{MR}__case1")] == [f"{MR}__case1__T1", f"{MR}__case1__T2"]
    assert [f"{MR}__case0__T1", f"{MR}__case0__T2"] in content["duplicate_groups"]  # of one patient
    one, other = (voxels_of(folder / f"labelsTr/{MR}__case1__{channel}.nii.gz") for channel in ("T1", "T2"))
    np.testing.assert_array_equal(one, other)
    for fold in read(folder / "splits_final.json"):
        assert (f"{MR}__case0__T1" in fold["val"]) == (f"{MR}__case0__T2" in fold["val"])
    _, content, _ = make(members=(MR,), channels=())
    assert content["channel_names"] == {"0": "T1", "1": "T2"}
    assert len(content["dataset"][f"{MR}__case0"]["images"]) == 2


def test_an_image_that_two_members_share_stays_in_one_fold(raw):
    for kind in ("imagesTr/case0_0000", "labelsTr/case0"):
        shutil.copyfile(raw / f"{CT}/{kind}.nii.gz", raw / f"{THICK}/{kind}.nii.gz")
    labels = voxels_of(raw / f"{THICK}/labelsTr/case0.nii.gz")
    write_volume(raw / f"{THICK}/labelsTr/case0.nii.gz", np.minimum(labels, 1), np.diag([1.0, 1.0, 1.2, 1.0]))
    _, content, said = make(members=(3, 9), channels=())
    assert content["duplicate_groups"] == [[f"{CT}__case0", f"{THICK}__case0"]]
    assert "1 images occur more than once" in said


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
def test_clipping_twice_is_clipping_once_and_keeps_the_type(dtype):
    image = np.random.default_rng(0).gamma(2, 20, (31, 17, 13)).astype(dtype)
    once = clipped(image, (0.5, 99.5))
    low, high = np.percentile(image.astype(np.float64), (0.5, 99.5), method="nearest")
    assert (once.dtype, once.min(), once.max()) == (image.dtype, low, high)
    inside = (image >= low) & (image <= high)
    assert 0.97 < inside.mean() < 1 or dtype == np.uint8
    np.testing.assert_array_equal(once[inside], image[inside])
    np.testing.assert_array_equal(clipped(once, (0.5, 99.5)), once)
    with pytest.raises(ValueError, match="not finite"):
        clipped(np.array([1.0, np.nan]), (0.5, 99.5))


@pytest.mark.parametrize("slope", [2.5, -2.5])
def test_a_scaled_header_stays_and_its_values_are_clipped(slope, tmp_path):
    stored = np.random.default_rng(1).gamma(2, 200, (20, 20, 20)).astype(np.int16)
    image = nib.Nifti1Image(stored, np.diag([0.5, 1, 2, 1]))
    image.header.set_slope_inter(slope, -7)
    image.header["descrip"] = b"as it was"
    nib.save(image, tmp_path / "a.nii.gz")
    assert nib.load(tmp_path / "a.nii.gz").dataobj.slope == slope
    clip_image(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", (5, 80))
    before, after = nib.load(tmp_path / "a.nii.gz"), nib.load(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(after.affine, before.affine)
    assert (after.get_data_dtype(), after.dataobj.slope, after.dataobj.inter) == (np.int16, slope, -7)
    assert after.header["descrip"] == before.header["descrip"]
    values = before.get_fdata()
    low, high = np.percentile(values, (5, 80), method="nearest")
    np.testing.assert_array_equal(after.get_fdata(), np.clip(values, low, high))


def test_images_to_predict_on_are_clipped_as_those_of_the_training(raw, tmp_path, capsys):
    folder, content, _ = make(clip=(0.5, 99.5))
    assert content["clip_percentiles"] == [0.5, 99.5]
    assert main(["clip", "-i", str(raw / CT / "imagesTr"), "-o", str(tmp_path / "out"), "-np", "1"]) == 0
    assert "3 images written" in capsys.readouterr().out
    for number in range(3):
        entry = content["dataset"][f"{CT}__case{number}"]
        assert entry["images"] == [f"imagesTr/{CT}__case{number}_0000.nii.gz"]
        written, predicted = folder / entry["images"][0], tmp_path / f"out/case{number}_0000.nii.gz"
        np.testing.assert_array_equal(voxels_of(written), voxels_of(predicted))
        original = nib.load(raw / CT / f"imagesTr/case{number}_0000.nii.gz")
        np.testing.assert_array_equal(nib.load(written).affine, original.affine)
        np.testing.assert_array_equal(voxels_of(written), clipped(np.asarray(original.dataobj), (0.5, 99.5)))
        assert voxels_of(written).max() < np.asarray(original.dataobj).max()
    fingerprints = read(folder / "fingerprints.json")
    make(clip=None)
    assert read(folder / "fingerprints.json") == fingerprints  # of the images as they were
    assert not list((folder / "imagesTr").glob("*"))


def test_other_formats_are_read_by_simpleitk_and_clipped_to_nifti(raw, tmp_path):
    for path in [*(raw / THICK).rglob("*.nii.gz")]:
        SimpleITK.WriteImage(SimpleITK.ReadImage(str(path)), str(path).replace(".nii.gz", ".nrrd"))
        path.unlink()
    change_description(raw / THICK, file_ending=".nrrd")
    assert make(members=(3, 9), channels=(), clip=(0.5, 99.5))[1]["domains"][THICK]["file_ending"] == ".nii.gz"
    folder, content, _ = make(members=(3, 9), channels=())
    alone = dataset_json_of_domain(content, THICK, domain_tables(content)[THICK])
    assert (content["file_ending"], alone["file_ending"]) == (".nii.gz", ".nrrd")
    assert content["overwrite_image_reader_writer"] == "SimpleITKIO"
    reader = recursive_find_reader_writer_by_name("SimpleITKIO")()
    entry = content["dataset"][f"{THICK}__case1"]
    image, of_image = reader.read_images(entry["images"])
    label, of_label = reader.read_seg(str(folder / entry["label"]))
    assert image.shape == label.shape
    np.testing.assert_allclose(of_image["spacing"], of_label["spacing"])
    assert sorted(np.unique(label)) == [0, 3]
    written = clip_folder(raw / THICK / "imagesTr", tmp_path / "clipped", num_processes=1)
    before = SimpleITK.ReadImage(str(raw / THICK / "imagesTr/case0_0000.nrrd"))
    after = SimpleITK.ReadImage(str(written[0]))
    assert after.GetPixelID() == before.GetPixelID()
    np.testing.assert_allclose(after.GetDirection(), before.GetDirection())
    expected = clipped(SimpleITK.GetArrayFromImage(before), (0.5, 99.5))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(after), expected)
    for path in [*(raw / CT).rglob("*.nii.gz")]:
        nib.save(nib.load(path), str(path).removesuffix(".gz"))
        path.unlink()
    change_description(raw / CT, file_ending=".nii")
    with pytest.raises(ValueError, match=r"no reader of nnU-Net reads .*\.nii.*\.nrrd.*convert them to \.nii\.gz"):
        make(members=(3, 9), channels=())


def test_a_second_call_redoes_only_what_changed(raw):
    folder, content, _ = make(clip=(0.5, 99.5))
    before = times(folder)
    _, again, said = make(clip=(0.5, 99.5))
    assert (again, times(folder)) == (content, before)
    assert "0 of 8 cases to convert" in said
    path = raw / CT / "labelsTr/case1.nii.gz"
    write_volume(path, np.flip(voxels_of(path), 0), nib.load(path).affine)
    (folder / f"labelsTr/{MR}__case0.nii.gz").unlink()
    _, _, said = make(clip=(0.5, 99.5))
    redone = {name for name, time in times(folder).items() if time != before[name]}
    assert {name.split("/")[1].split(".")[0].removesuffix("_0000") for name in redone} == {
        f"{CT}__case1",
        f"{MR}__case0",
    }
    assert "2 of 8 cases to convert" in said
    _, content, said = make(members=(9, 3), channels=())  # other ids, no clipping, one member less
    assert "6 of 6 cases to convert" in said
    assert content["labels"] == {
        "background": 0,
        "Dataset009_Thick__heart_chamber": 1,
        "Dataset003_Ct__liver": 2,
        "Dataset003_Ct__spleen": 3,
    }
    assert set(times(folder)) == {f"labelsTr/{case}.nii.gz" for case in content["dataset"]}


def test_a_case_that_cannot_be_converted_is_named_and_the_others_are_kept(raw):
    folder, _, _ = make()
    path = raw / CT / "labelsTr/case1.nii.gz"
    label = voxels_of(path).copy()
    label[0, 0, 0] = 9
    write_volume(path, label, nib.load(path).affine)
    damaged = raw / THICK / "imagesTr/case2_0000.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-400])
    with pytest.raises(
        ValueError, match=r"2 cases could not be converted.*stores \[9\.0\], unknown to its dataset\.json"
    ):
        make()
    assert not (folder / "dataset.json").exists()
    assert len(list((folder / "records").glob("*.json"))) == 6
    write_members(raw, CT, THICK)
    assert "6 of 8 cases to convert" in make()[2]
    assert (folder / "dataset.json").is_file()


def _one_slice(raw):
    for kind in ("imagesTr/case0_0000", "labelsTr/case0"):
        write_volume(raw / f"{CT}/{kind}.nii.gz", np.ones((20, 20, 1), np.uint8), np.eye(4))


def _empty(raw):
    for path in (raw / CT / "labelsTr").iterdir():
        write_volume(path, np.zeros_like(voxels_of(path)), nib.load(path).affine)


def _other_shape(raw):
    write_volume(raw / CT / "labelsTr/case2.nii.gz", np.ones((9, 9, 9), np.uint8), np.eye(4))


def _one_case(raw):
    for path in [*(raw / CT).rglob("case[12]*")]:
        path.unlink()


def _labels(**labels):
    return lambda raw: change_description(raw / CT, labels=labels)


BAD = {
    "one slice": (_one_slice, r"case0.*has shape \(20, 20, 1\), expected a 3D volume.*leave it out"),
    "natural images": (
        lambda raw: change_description(raw / CT, file_ending=".png"),
        r"Dataset003_Ct has files ending with '\.png', expected 3D.*convert stacks to \.nii\.gz, or leave it out",
    ),
    "two axes": (
        lambda raw: write_volume(raw / CT / "imagesTr/case0_0000.nii.gz", np.ones((5, 5), np.uint8), np.eye(4)),
        r"has shape \(5, 5\), expected three dimensions; every member must be 3D",
    ),
    "missing channel": (
        lambda raw: (raw / MR / "imagesTr/case1_0001.nii.gz").unlink(),
        r"Dataset007_Mr: case case1 has 1 images, expected one for each channel \(T1, T2\); add the missing ones",
    ),
    "missing label map": (
        lambda raw: (raw / CT / "labelsTr/case1.nii.gz").unlink(),
        r"labelsTr/case1\.nii\.gz of case case1 is missing; add it or remove the case",
    ),
    "one case": (_one_case, r"Dataset003_Ct has 1 case, and a domain needs at least 2.*leave it out"),
    "no label": (_labels(background=0), r"Dataset003_Ct has no foreground: its labels are .*; leave it out"),
    "only ignore": (_labels(background=0, ignore=1), r"Dataset003_Ct has no foreground"),
    "all empty": (_empty, r"domain Dataset003_Ct has no foreground: all its 3 label maps are empty"),
    "labels of nnU-Net v1": (
        _labels(**{"0": "background", "1": "liver"}),
        r"Dataset003_Ct: dataset.json must have 'labels' with names and ids .*nnUNetv2_convert_MSD_dataset",
    ),
    "no labels": (
        lambda raw: change_description(raw / CT, labels=None),
        r"Dataset003_Ct: dataset.json must have 'labels' .*, got None",
    ),
    "a gap": (_labels(background=0, liver=1, spleen=3), r"without gaps.*renumber them"),
    "ignore not last": (_labels(background=0, ignore=1, spleen=2), r"'ignore' the last"),
    "other shape": (_other_shape, r"case2_0000.*voxels of .* mm and its label map \(9, 9, 9\) of 1 x 1 x 1 mm"),
    "merged": (
        lambda raw: change_description(raw / CT, label_schemes={}),
        r"Dataset003_Ct is merged .*give it alone \(-d Dataset003_Ct, without --members\)",
    ),
    "id taken": (lambda raw: (raw / "Dataset910_Other").mkdir(), r"dataset id 910 is taken by .*Dataset910_Other"),
    "not ours": (lambda raw: shutil.copytree(raw / CT, raw / NAME), r"was not made by `nnunet_pretrain plan_domains`"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_members_are_refused_before_anything_is_written(what, raw):
    spoil, message = BAD[what]
    spoil(raw)
    before = sorted(path.relative_to(raw).as_posix() for path in raw.rglob("*"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make()
    assert sorted(path.relative_to(raw).as_posix() for path in raw.rglob("*")) == before


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ((3, 7, CT), r"member Dataset003_Ct is named twice; name every member once"),
        ((3, 44), r"no dataset with id 44"),
        ((3, "Dataset005_No"), r"dataset 'Dataset005_No' not found"),
    ],
)
def test_wrong_names_of_members_are_refused(members, message, raw):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make(members=members)
    assert not (raw / NAME).exists()


def test_ids_in_regions_are_named_by_the_regions_that_hold_them():
    regions = {"background": 0, "whole tumour": [1, 2, 3], "core": (2, 3), "enhancing": 3, "ignore": 4}
    plain, notes = plain_labels(regions, "Dataset001_X")
    assert plain == {
        "background": 0,
        "whole tumour": 1,
        "whole tumour_core": 2,
        "whole tumour_core_enhancing": 3,
        "ignore": 4,
    }
    assert len(notes) == 1
    alike, _ = plain_labels({"background": 0, "both": [1, 2]}, "Dataset001_X")
    assert alike == {"background": 0, "both_1": 1, "both_2": 2}
    assert plain_labels(MEMBERS[CT]["labels"], "X") == (MEMBERS[CT]["labels"], ())


def test_labels_that_would_be_called_alike_keep_names_of_their_own(raw):
    change_description(raw / CT, labels={"background": 0, "left lung": 1, "left-lung": 2})
    _, content, _ = make(members=(3,), channels=())
    assert list(content["labels"]) == ["background", f"{CT}__left_lung_1", f"{CT}__left_lung_2"]


def test_the_clip_verb_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no image; expected files ending with"):
        clip_folder(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="same folder"):
        clip_folder(tmp_path, tmp_path)
    with pytest.raises(ValueError, match="LOWER < UPPER"):
        clip_folder(tmp_path, tmp_path / "out", (99.0, 1.0))
    for name in ("a_0000.nii", "a_0000.nii.gz"):
        write_volume(tmp_path / "in" / name, np.ones((4, 4, 4), np.int16), np.eye(4))
    with pytest.raises(ValueError, match=r"would be written to a_0000\.nii\.gz"):
        clip_folder(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in/a_0000.nii.gz").unlink()
    (tmp_path / "in/b_0000.nii.gz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"1 of 2 images were left out: .*b_0000\.nii\.gz cannot be clipped"):
        clip_folder(tmp_path / "in", tmp_path / "out", num_processes=1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a_0000.nii.gz"]
