"""Domains of phantoms: the same anatomy and labels, other images, the same for the same seed."""

import json

import nibabel as nib
import numpy as np
import pytest

from nnunet_pretrain.phantom import Appearance, generate_phantom
from nnunet_pretrain.phantom.domains import CONTRASTS, shown, write_phantom_domain

SMALL = {"spacing_mm": (9.0, 9.0, 9.0)}
LABELS = {"liver": ("liver", "liver_tumor"), "spleen": ("spleen",)}
TISSUES = {"air": -1000, "fat": -100, "fluid": 5, "muscle": 52, "liver": 110, "bone": 530}


@pytest.fixture(scope="module")
def phantom():
    return generate_phantom(3, appearance=Appearance(), **SMALL)


def levels(contrast):
    """The mean intensity of uniform tissues in images of one seed, in units of the brightest."""
    image = np.repeat(np.array(list(TISSUES.values()), np.int16), 1000).reshape(len(TISSUES), 10, 10, 10)
    means = np.mean([shown(image, contrast, seed).reshape(len(TISSUES), -1).mean(1) for seed in range(20)], axis=0)
    return dict(zip(TISSUES, means / means.max(), strict=True))


def test_ct_is_hu_and_inverted_is_its_mirror_image(phantom):
    np.testing.assert_array_equal(shown(phantom.image, "ct", 3), phantom.image)
    turned = shown(phantom.image, "inverted", 3)
    assert np.corrcoef(turned.ravel(), phantom.image.ravel())[0, 1] < -0.999


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_a_contrast_depends_on_nothing_but_its_seed(contrast, phantom):
    before = phantom.image.copy()
    image = shown(phantom.image, contrast, 3)
    assert (image.dtype, image.shape) == (np.int16, phantom.image.shape)
    np.testing.assert_array_equal(shown(phantom.image, contrast, 3), image)
    np.testing.assert_array_equal(phantom.image, before)
    other = shown(phantom.image, contrast, 4)
    assert np.array_equal(other, image) == (contrast in ("ct", "inverted"))


def test_tissues_have_another_order_in_each_contrast():
    t1, t2 = levels("t1"), levels("t2")
    assert t1["fat"] > t1["liver"] > t1["muscle"] > t1["fluid"] > t1["bone"] > t1["air"]
    assert t2["fluid"] > t2["fat"] > t2["liver"] > t2["muscle"] > t2["bone"] > t2["air"]
    orders = {tuple(sorted(TISSUES, key=levels(contrast).get)) for contrast in CONTRASTS if contrast != "inverted"}
    assert len(orders) == 3


@pytest.mark.parametrize("contrast", ["t1", "t2"])
def test_magnetic_contrasts_are_positive_and_have_a_smooth_bias_and_a_gain_per_image(contrast):
    uniform = np.full((24, 24, 24), 110, np.int16)
    images = [shown(uniform, contrast, seed).astype(float) for seed in range(8)]
    means = [image.mean() for image in images]
    assert max(means) / min(means) > 1.2  # arbitrary units
    for image in images:
        assert image.min() >= 0
        blocks = image.reshape(4, 6, 4, 6, 4, 6).mean((1, 3, 5)) / image.mean()
        assert 0.05 < blocks.std() < 0.4  # the field varies over the image
        steps = [np.abs(np.diff(blocks, axis=axis)).max() for axis in range(3)]
        assert max(steps) < np.ptp(blocks)  # and never jumps


def test_a_domain_differs_from_another_in_its_images_only(tmp_path):
    for contrast, kind in CONTRASTS.items():
        write_phantom_domain(tmp_path / contrast, contrast, LABELS, [1, 2], test=[3], **SMALL)
        dataset_json = json.loads((tmp_path / contrast / "dataset.json").read_text(encoding="utf-8"))
        assert dataset_json["channel_names"] == {"0": kind.channel}
        assert dataset_json["labels"] == {"background": 0, "liver": 1, "spleen": 2}
        assert dataset_json["numTraining"] == 2
    for name in ("labelsTr/case_0001", "labelsTr/case_0002", "labelsTs/case_0003"):
        labels = [np.asanyarray(nib.load(tmp_path / c / f"{name}.nii.gz").dataobj) for c in CONTRASTS]
        assert set(np.unique(labels[0])) == {0, 1, 2}
        assert all(np.array_equal(labels[0], other) for other in labels)
    images = {c: np.asanyarray(nib.load(tmp_path / c / "imagesTr/case_0001_0000.nii.gz").dataobj) for c in CONTRASTS}
    phantom = generate_phantom(1, **SMALL)
    assert all(np.array_equal(image, shown(phantom.image, c, 1)) for c, image in images.items())
    assert len({image.tobytes() for image in images.values()}) == len(CONTRASTS)


def test_an_unknown_contrast_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="unknown contrast 'pet'; known are ct, t1, inverted, t2"):
        write_phantom_domain(tmp_path / "x", "pet", LABELS, [1])
    assert not (tmp_path / "x").exists()
