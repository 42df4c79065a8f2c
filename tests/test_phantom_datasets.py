"""Phantoms on disk carry a source's own ids and lack what the source lacks."""

import nibabel as nib
import numpy as np

from nnunet_pretrain.conversion import find_source
from nnunet_pretrain.phantom import STRUCTURES, generate_phantom
from nnunet_pretrain.phantom.datasets import label_as, write_phantom_source, write_phantom_target

SMALL = {"spacing_mm": (6.0, 6.0, 6.0)}


def mask_of(phantom, *names):
    return np.isin(phantom.labels, [STRUCTURES.index(name) + 1 for name in names])


def test_kits_knows_kidneys_tumours_and_cysts_only():
    phantom = generate_phantom(3, **SMALL)
    labels = label_as(find_source("KiTS23"), phantom)
    assert np.array_equal(labels[1], mask_of(phantom, "kidney_left", "kidney_right"))
    assert np.array_equal(labels[2], mask_of(phantom, "kidney_tumor"))
    assert np.array_equal(labels[3], mask_of(phantom, "kidney_cyst"))


def test_btcv_hides_lesions_in_the_organ_and_on_the_side_they_lie():
    seed = next(s for s in range(40) if mask_of(generate_phantom(s, **SMALL), "kidney_tumor").sum() > 3)
    phantom = generate_phantom(seed, **SMALL)
    labels = label_as(find_source("BTCV"), phantom)
    assert np.array_equal(labels[6], mask_of(phantom, "liver", "liver_tumor", "hepatic_vessel"))
    both = labels[2] | labels[3]
    assert np.array_equal(both, mask_of(phantom, "kidney_left", "kidney_right", "kidney_tumor", "kidney_cyst"))
    assert not (labels[2] & labels[3]).any()
    x = np.arange(phantom.labels.shape[0])[:, None, None] * np.ones(phantom.labels.shape)
    assert x[labels[3]].max() < x[labels[2]].min()  # RAS: the left kidney has the lower x
    assert not any((mask & mask_of(phantom, "bladder", "colon")).any() for mask in labels.values())


def test_files_of_masks_and_label_maps(tmp_path):
    write_phantom_source(find_source("AbdomenAtlas1.1"), tmp_path / "aa", [1], ("LPS",), **SMALL)
    case = tmp_path / "aa/BDMAP_0001"
    assert len(list((case / "segmentations").iterdir())) == 25
    image = nib.load(case / "ct.nii.gz")
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    liver = np.asanyarray(nib.load(case / "segmentations/liver.nii.gz").dataobj)
    expected = mask_of(generate_phantom(1, orientation="LPS", **SMALL), "liver", "liver_tumor")
    assert np.array_equal(liver.astype(bool), expected)
    before = (case / "ct.nii.gz").stat().st_mtime_ns
    write_phantom_source(find_source("AbdomenAtlas1.1"), tmp_path / "aa", [1], ("LPS",), **SMALL)
    assert (case / "ct.nii.gz").stat().st_mtime_ns == before


def test_target_is_an_nnunet_dataset_with_its_split(tmp_path):
    write_phantom_target(tmp_path / "Dataset901_T", {"spleen": ("spleen",)}, [1], [2], [3], **SMALL)
    files = sorted(str(p.relative_to(tmp_path / "Dataset901_T")) for p in tmp_path.rglob("*.nii.gz"))
    assert files == [
        "imagesTr/case_0001_0000.nii.gz", "imagesTr/case_0002_0000.nii.gz", "imagesTs/case_0003_0000.nii.gz",
        "labelsTr/case_0001.nii.gz", "labelsTr/case_0002.nii.gz", "labelsTs/case_0003.nii.gz",
    ]  # fmt: skip
    assert (tmp_path / "Dataset901_T/splits_final.json").is_file()
