"""Labels and foreground voxels are nnU-Net's own, voxel by voxel, also where labels tie."""

import inspect

import numpy as np
import pytest
from batchgenerators.augmentations.utils import resize_segmentation
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

from nnunet_pretrain.preprocessing import label_resampling
from nnunet_pretrain.preprocessing.class_locations import sample_class_locations
from nnunet_pretrain.preprocessing.fast_preprocessor import FastPreprocessor
from nnunet_pretrain.preprocessing.label_resampling import agrees_with_nnunet, resample_labels, resize_labels

SPACINGS = ((1.0, 1.0, 1.0), (5.0, 1.0, 1.0), (1.0, 5.0, 1.0), (1.0, 1.0, 5.0), (5.0, 5.0, 1.0))


def blobs(random, shape, labels):
    """Returns a map of boxes, which has surfaces, edges and corners where labels meet."""
    seg = np.zeros(shape, np.int16)
    for label in random.permutation(labels):
        low = [random.integers(0, n) for n in shape]
        seg[tuple(slice(a, a + random.integers(1, n + 1)) for a, n in zip(low, shape, strict=True))] = label
    return seg


def assert_as_nnunet(seg, new_shape, current, new, **settings):
    theirs = resample_data_or_seg_to_shape(seg, new_shape, current, new, is_seg=True, order=1, **settings)
    ours = resample_labels(seg, new_shape, current, new, is_seg=True, order=1, **settings)
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)
    return ours


def test_the_installed_nnunet_is_reproduced():
    assert agrees_with_nnunet()  # else everything here would compare nnU-Net with itself


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.int16, np.uint8])
@pytest.mark.parametrize("separate", [None, False, True])
def test_random_maps_any_factors(dtype, separate):
    random = np.random.default_rng([np.dtype(dtype).num, 0 if separate is None else 1 + separate])
    for _ in range(60):
        old, new = random.integers(1, 10, 3), random.integers(1, 15, 3)
        new[random.integers(3)] = old[random.integers(3)]
        seg = random.integers(0 if dtype is np.uint8 else -1, random.integers(1, 6), (1, *old)).astype(dtype)
        spacing = SPACINGS[random.integers(len(SPACINGS))]
        assert_as_nnunet(seg, new, spacing, (1.0, 1.0, 1.0), force_separate_z=separate)


@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 2, 2), (0.5, 0.5, 0.5), (1, 0.5, 0.5), (2, 0.5, 1), (4, 3, 1)])
def test_whole_factors_where_ties_are_everywhere(factor):
    random = np.random.default_rng(5)
    for _ in range(20):
        old = random.integers(1, 5, 3) * 2
        new = (old * factor).astype(int)
        for seg in (blobs(random, old, [1, 2, 3, 4]), random.integers(-1, 4, old)):
            assert_as_nnunet(seg[None].astype(np.float32), new, (1, 1, 1), (1, 1, 1), force_separate_z=None)


def test_organ_like_maps_with_many_labels():
    random = np.random.default_rng(6)
    seg = blobs(random, (24, 60, 52), np.arange(1, 30))[None]
    seg[:, :, :3] = -1
    for new, spacing in (((24, 33, 28), (1.5, 0.8, 0.8)), ((48, 41, 37), (3.0, 1.0, 1.0)), ((40, 33, 28), (6, 1, 1))):
        ours = assert_as_nnunet(seg, new, spacing, (1.5, 1.5, 1.5), force_separate_z=None)
        assert len(np.unique(ours)) > 15


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 5), (6, 1, 1)])
def test_axes_of_one_voxel_and_maps_of_one_label(shape):
    random = np.random.default_rng(7)
    for seg in (random.integers(0, 3, (1, *shape)), np.full((1, *shape), 2), np.zeros((1, *shape))):
        assert_as_nnunet(seg.astype(np.float32), (3, 4, 9), (1, 1, 1), (1, 1, 1), force_separate_z=None)


def test_slices_alone_and_equal_shapes():
    random = np.random.default_rng(8)
    for _ in range(30):
        seg = random.integers(-1, 4, random.integers(1, 12, 2)).astype(np.int8)
        new = tuple(random.integers(1, 14, 2))
        np.testing.assert_array_equal(resize_labels(seg, new), resize_segmentation(seg, new, 1))
    seg = random.integers(0, 4, (1, 4, 5, 6)).astype(np.float32)
    assert assert_as_nnunet(seg, (4, 5, 6), (1, 1, 1), (1, 1, 1), force_separate_z=None) is seg


@pytest.mark.parametrize("values", [[0, 40000], [0, 0.5, 1], [-128, 3], [-32768, 0], [0, 127, 128, 255]])
def test_unusual_label_values(values):
    random = np.random.default_rng(9)
    seg = random.choice(np.asarray(values, np.float32), (1, 5, 6, 7))
    assert_as_nnunet(seg, (8, 4, 7), (1, 1, 1), (1, 1, 1), force_separate_z=False)


@pytest.mark.parametrize("settings", [{"order": 0}, {"order": 3}, {"order": 1, "order_z": 1}])
def test_other_orders_are_nnunets(settings):
    seg = np.random.default_rng(10).integers(0, 3, (1, 4, 6, 6)).astype(np.float32)
    arguments = (seg, (8, 4, 9), (5.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    theirs = resample_data_or_seg_to_shape(*arguments, is_seg=True, force_separate_z=None, **settings)
    np.testing.assert_array_equal(resample_labels(*arguments, is_seg=True, force_separate_z=None, **settings), theirs)


def test_where_the_installation_decides_otherwise_nnunets_function_is_used(monkeypatch):
    seg = np.random.default_rng(11).integers(0, 3, (1, 4, 6, 6)).astype(np.float32)
    monkeypatch.setattr(label_resampling, "_decide", lambda labels, axes, voxels: np.full_like(voxels[0], 9))
    agrees_with_nnunet.cache_clear()
    try:
        assert not agrees_with_nnunet()
        assert_as_nnunet(seg, (7, 5, 9), (1, 1, 1), (1, 1, 1), force_separate_z=None)
    finally:
        agrees_with_nnunet.cache_clear()


def assert_same_locations(ours, theirs):
    assert list(ours) == list(theirs)
    for key, expected in theirs.items():
        assert type(ours[key]) is type(expected)
        if len(expected):
            assert ours[key].dtype == expected.dtype
            np.testing.assert_array_equal(ours[key], expected)


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.int16])
@pytest.mark.parametrize(("least", "share"), [(10000, 0.01), (5, 0.01), (5, 0.4)])
def test_class_locations_are_nnunets(dtype, least, share):
    random = np.random.default_rng(12)
    classes = [1, 2, (3, 4), [5, 1], 9, (8, 9), [-1, 0, 1, 2, 3, 4, 5]]
    for background in (0.0, 0.5, 0.97, 1.0):
        seg = random.integers(-1, 6, (1, *random.integers(1, 25, 3))).astype(dtype)
        seg[random.random(seg.shape) < background] = 0
        theirs = DefaultPreprocessor._sample_foreground_locations(
            seg, classes, min_num_samples=least, min_percent_coverage=share
        )
        ours = sample_class_locations(seg, classes, min_num_samples=least, min_percent_coverage=share)
        assert_same_locations(ours, theirs)


def test_class_locations_of_unusual_labels_and_seeds():
    seg = np.random.default_rng(13).choice(np.asarray([0, 0.5, 1, 40000], np.float32), (1, 6, 7, 8))
    for classes in ([1], [1, (1, 40000)], [3]):
        theirs = DefaultPreprocessor._sample_foreground_locations(seg, classes, seed=3)
        assert_same_locations(sample_class_locations(seg, classes, seed=3), theirs)


def test_the_override_takes_nnunets_arguments():
    ours, theirs = (
        inspect.signature(kind._sample_foreground_locations) for kind in (FastPreprocessor, DefaultPreprocessor)
    )
    assert [(p.name, p.default) for p in ours.parameters.values()] == [
        (p.name, p.default) for p in theirs.parameters.values()
    ]
