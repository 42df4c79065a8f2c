"""What a merge is made of: datasets in nnU-Net raw format, merged datasets, chosen label spaces, a Dask cluster."""

import json

import nibabel as nib
import numpy as np
import pytest
from nnunet_runs import SMALL

from nnunet_pretrain.cli import main
from nnunet_pretrain.conversion import MergeOptions, find_source, merge
from nnunet_pretrain.conversion.catalogue import load_source
from nnunet_pretrain.conversion.choose_space import choose_space
from nnunet_pretrain.labels import DEFAULT_SPACE, LabelSetTable
from nnunet_pretrain.labels.synonyms import match
from nnunet_pretrain.phantom.datasets import write_phantom_source, write_phantom_target


def content_of(folder):
    return json.loads((folder / "dataset.json").read_text(encoding="utf-8"))


def array_of(path):
    return np.asanyarray(nib.load(path).dataobj)


@pytest.fixture
def raw(nnunet):
    """An ordinary nnU-Net dataset with names of its own."""
    labels = {
        "Liver": ("liver", "liver_tumor", "hepatic_vessel"),
        "IVC": ("postcava",),
        "kidneys": ("kidney_left", "kidney_right"),
    }
    write_phantom_target(nnunet / "nnUNet_raw/Dataset027_X", labels, [1, 2], [], [], **SMALL)
    return nnunet / "nnUNet_raw"


def rename(raw, **names):
    path = raw / "Dataset027_X/dataset.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["labels"] = {names.get(name, name): i for name, i in content["labels"].items()}
    path.write_text(json.dumps(content))


def test_an_nnunet_dataset_is_a_source_by_its_label_names(raw):
    folder = merge(900, "M", [("Dataset027_X", None)])
    content = content_of(folder)
    sets = content["label_schemes"]["Dataset027_X"]
    assert sets["7"] == ["postcava"]
    assert set(sets["3"]) == {"kidney_left", "kidney_right", "kidney_tumor", "kidney_cyst"}
    assert "spleen" in sets["0"]
    original = array_of(raw / "Dataset027_X/labelsTr/case_0001.nii.gz")
    stored = array_of(folder / "labelsTr/D027_case_0001.nii.gz")
    assert np.array_equal(stored, np.array([0, 5, 7, 3], np.uint8)[original])


def test_an_unmatched_label_name_is_an_error_with_the_nearest_names(raw, capsys):
    rename(raw, IVC="postcave")
    assert main(["merge", "-d", "900", "-n", "M", "--source", "Dataset027_X"]) == 2
    error = capsys.readouterr().err
    assert "'postcave' (nearest: postcava" in error
    assert "new_source Dataset027_X" in error
    assert not (raw / "Dataset900_M").exists()


def test_new_source_writes_a_starter_that_works_once_it_is_filled_in(raw, tmp_path, capsys):
    rename(raw, IVC="big vessel")
    path = tmp_path / "mine.yaml"
    assert main(["new_source", "27", "-o", str(path)]) == 0
    assert "1 label names match no structure: big vessel" in capsys.readouterr().out
    text = path.read_text(encoding="utf-8")
    assert "# 2: ?" in text
    path.write_text(text.replace("# 2: ?", "2: postcava"))
    assert load_source(path).labels == {1: ("liver",), 2: ("postcava",), 3: ("kidney",)}
    merge(900, "M", [(str(path), raw / "Dataset027_X")], MergeOptions(strict=True))
    assert main(["new_source", "27", "-o", str(path)]) == 2
    assert "exists; choose another file" in capsys.readouterr().err


def test_convert_makes_one_dataset_and_merging_the_results_equals_merging_the_sources(nnunet, sources, capsys):
    names = ("BTCV", "KiTS23", "AbdomenAtlas1.1")
    for number, name in enumerate(names, start=901):
        assert main(["convert", name, str(sources / name), "-d", str(number), "-np", "1"]) == 0
    assert (nnunet / "nnUNet_raw/Dataset903_AbdomenAtlas1_1").is_dir() or (
        nnunet / "nnUNet_raw/Dataset903_AbdomenAtlas1"
    ).is_dir()
    made = sorted(path.name for path in (nnunet / "nnUNet_raw").iterdir())
    at_once = merge(910, "A", [(name, sources / name) for name in names])
    in_two = merge(911, "B", [(name, None) for name in made])
    one, two = (LabelSetTable.from_dataset_json(content_of(folder)) for folder in (at_once, in_two))
    assert set(one.scheme_of_case) == set(two.scheme_of_case)
    for case in one.scheme_of_case:
        assert np.array_equal(
            array_of(at_once / f"labelsTr/{case}.nii.gz"), array_of(in_two / f"labelsTr/{case}.nii.gz")
        )
        sets = [{i: set(s) for i, s in t.schemes[t.scheme_of_case[case]].sets.items()} for t in (one, two)]
        assert sets[0] == sets[1], case


def test_a_chosen_label_space(nnunet, sources, tmp_path, capsys):
    assert choose_space("liver, IVC,kidney", None, None).structures == (
        "liver",
        "postcava",
        "kidney_left",
        "kidney_right",
    )
    assert choose_space(None, "heart", None).structures == (*DEFAULT_SPACE.structures, "heart")
    assert len(choose_space(None, "TotalSegmentatorV2", None).structures) == 31 + 89 + 1  # and the brain
    own = tmp_path / "space.json"
    own.write_text('{"name": "mine", "structures": ["spleen", "liver"]}')
    assert choose_space(None, None, own).structures == ("spleen", "liver")
    with pytest.raises(ValueError, match=r"unknown structure 'livr'; the nearest names are: liver"):
        choose_space("livr", None, None)
    with pytest.raises(ValueError, match="exclude each other"):
        choose_space("liver", None, own)
    arguments = ["-d", "900", "-n", "M", "--source", f"AbdomenAtlas1.1={sources / 'AbdomenAtlas1.1'}", "-np", "1"]
    assert main(["merge", *arguments, "--structures", "spleen,liver"]) == 0
    content = content_of(nnunet / "nnUNet_raw/Dataset900_M")
    assert list(content["labels"])[:3] == ["background", "spleen", "liver"]
    capsys.readouterr()
    assert main(["merge", *arguments[:-2], "--structures", "brain", "--overwrite"]) == 2
    assert "annotates nothing of label space" in capsys.readouterr().err


def test_further_structures_of_totalsegmentator_can_be_appended(nnunet, tmp_path):
    source = find_source("TotalSegmentatorV2")
    write_phantom_source(source, tmp_path, [1], **SMALL)
    heart = tmp_path / "0001/segmentations/heart.nii.gz"
    old = nib.load(heart)
    array = np.zeros(old.shape, np.uint8)
    array[2:5, 2:5, 2:5] = 1
    nib.save(nib.Nifti1Image(array, old.affine), heart)
    space = choose_space(None, "heart,trachea", None)
    folder = merge(900, "M", [("TotalSegmentatorV2", tmp_path)], MergeOptions(space=space))
    stored = array_of(folder / "labelsTr/TSV2_0001.nii.gz")
    assert set(np.unique(stored[array > 0])) == {space.id_of("heart")}


def test_drop_duplicates_keeps_the_source_named_first(nnunet, tmp_path):
    for name in ("MSD09", "LiTS"):
        write_phantom_source(find_source(name), tmp_path / name, [1, 2] if name == "LiTS" else [1], **SMALL)
    pairs = [("LiTS", tmp_path / "LiTS"), ("MSD09", tmp_path / "MSD09")]
    content = content_of(merge(900, "Kept", pairs))
    assert content["duplicate_groups"] == [["LITS_0001", "MS09_0001"]]
    content = content_of(merge(901, "Dropped", pairs[::-1], MergeOptions(drop_duplicates=True)))
    assert sorted(content["dataset"]) == ["LITS_0002", "MS09_0001"]
    manifest = json.loads((nnunet / "nnUNet_raw/Dataset901_Dropped/manifest.json").read_text(encoding="utf-8"))
    assert manifest["dropped"] == {"LITS_0001": "same image as MS09_0001"}


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_dataset(nnunet, sources):
    distributed = pytest.importorskip("distributed")
    pairs = [("KiTS23", sources / "KiTS23")]
    here = merge(900, "Here", pairs)
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        there = merge(901, "There", pairs, MergeOptions(dask=cluster.scheduler_address))
    for path in sorted((here / "labelsTr").iterdir()):
        assert path.read_bytes() == (there / "labelsTr" / path.name).read_bytes()
    with pytest.raises(ValueError, match="no Dask scheduler answers"):
        merge(902, "Nowhere", pairs, MergeOptions(dask="tcp://127.0.0.1:9"))


def test_synonyms():
    same = {"postcava", "Inferior Vena Cava", "IVC", "inferior-vena-cava"}
    assert {match(name) for name in same} == {"postcava"}
    assert match("celiac_truck") == "celiac_trunk"
    assert match("Right Kidney") == match("kidney_r") == "kidney_right"
    assert match("Kidneys") == "kidney"
    assert [match(name) for name in ("tumor", "vessel", "cancer", "organ", "")] == [None] * 5
