"""The lean readers give the arrays and properties of nnU-Net's, whatever the orientation and type of a file."""

import nibabel as nib
import numpy as np
import pytest

from nnunet_pretrain.preprocessing.image_reading import LEAN_READERS, _read_one


@pytest.mark.parametrize("stored", ["RAS", "LPS", "PIR", "ASL", "oblique"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.uint16, np.int32, np.float32, np.float64, np.int64])
def test_readers_give_what_nnunets_give(tmp_path, stored, dtype):
    random = np.random.default_rng(3)
    affine = np.diag([0.7, 0.8, 2.5, 1.0])
    if stored == "oblique":
        affine[:3, :3] = np.linalg.qr(np.eye(3) + 0.1 * random.random((3, 3)))[0] * [0.7, -0.8, 2.5]
    affine[:3, 3] = random.normal(0, 100, 3)
    image = nib.Nifti1Image(random.integers(0, 200, (5, 7, 9)).astype(dtype), affine, dtype=dtype)
    if stored != "oblique":
        turn = nib.orientations.ornt_transform(*map(nib.orientations.axcodes2ornt, ("RAS", stored)))
        image = image.as_reoriented(turn)
    assert_readers_agree(image, tmp_path)
    left_to_nnunet = _read_one([str(tmp_path / "image.nii.gz")], reorient=True) is None
    assert left_to_nnunet == (dtype is np.int64)


def assert_same(ours, theirs):
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


def assert_same_facts(ours, theirs):
    assert ours["spacing"] == theirs["spacing"]
    assert [type(mm) for mm in ours["spacing"]] == [float] * 3
    assert list(ours) == list(theirs)
    assert list(ours["nibabel_stuff"]) == list(theirs["nibabel_stuff"])
    for key, affine in theirs["nibabel_stuff"].items():
        assert_same(ours["nibabel_stuff"][key], affine)


def assert_readers_agree(image, folder):
    for ending in (".nii.gz", ".nii"):
        path = str(folder / f"image{ending}")
        nib.save(image, path)
        for theirs, ours in LEAN_READERS.items():
            (data, facts), (expected, expected_facts) = ours().read_images([path]), theirs().read_images([path])
            assert_same(data, expected)
            assert_same_facts(facts, expected_facts)
            assert_same(ours().read_seg(path)[0], expected)


def test_readers_leave_scaled_and_several_images_and_errors_to_nnunet(tmp_path):
    scaled = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    scaled.header.set_slope_inter(0.37, -1024)
    assert_readers_agree(scaled, tmp_path)
    for theirs, ours in LEAN_READERS.items():
        paths = [str(tmp_path / "image.nii")] * 2
        assert_same(ours().read_images(paths)[0], theirs().read_images(paths)[0])
        (tmp_path / "broken.nii.gz").write_bytes((tmp_path / "image.nii.gz").read_bytes()[:60])
        with pytest.raises((OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError)):
            ours().read_images([str(tmp_path / "broken.nii.gz")])
