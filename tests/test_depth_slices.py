"""Augmentation at depth 3: order of the slices, grey control, and nnU-Net's own transforms made safe."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform, blur_dimension
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from small_photographs import always

from nnunet_pretrain.training.depth_slices import (
    LUMINANCE,
    DepthShuffle,
    GreySlices,
    InPlane,
    for_slices,
    grey_slices,
    safe_in_depth,
)

PATCH = (3, 32, 48)
SCALES = [[1, 1, 1], [1, 0.5, 0.5], [1, 0.25, 0.25]]
pytestmark = pytest.mark.usefixtures("one_thread")


def stock(scales=None, dummy=True, **more):
    """Returns nnU-Net's list of training transforms for a patch of three slices."""
    rotation = (-np.pi, np.pi)
    return nnUNetTrainer.get_training_transforms(PATCH, rotation, scales, (1, 2), dummy, [False], **more)


def marked(shape=PATCH):
    """Returns an image and the same as a label map, with a square in another corner of every slice."""
    seg = torch.zeros((1, *shape), dtype=torch.int16)
    y, x = shape[1] // 4, shape[2] // 4
    for slice_number, (top, left) in enumerate(((y, x), (2 * y, 2 * x), (y, 2 * x))):
        seg[0, slice_number, top : top + y, left : left + x] = 1
    return seg.float(), seg


def test_all_six_orders_occur_alike_and_only_depth_is_permuted():
    np.random.seed(0)
    image = torch.arange(3.0)[None, :, None, None] * 1000 + torch.arange(20.0).reshape(1, 1, 4, 5)
    image = torch.cat([image, -image])
    seg = torch.arange(3, dtype=torch.int16).reshape(1, 3, 1, 1).expand(1, 3, 4, 5)
    found = Counter()
    for _ in range(1200):
        result = DepthShuffle()(image=image.clone(), segmentation=seg.clone())
        order = result["segmentation"][0, :, 0, 0].tolist()
        found[tuple(order)] += 1
        assert torch.equal(result["image"], image[:, order])
        assert torch.equal(result["segmentation"], seg[:, order])
    assert set(found) == set(permutations(range(3)))
    assert max(abs(number - 200) for number in found.values()) < 5 * np.sqrt(200)


def test_the_order_follows_numpys_generator_and_not_torchs():
    image = torch.arange(3.0).reshape(1, 3, 1, 1)
    torch.manual_seed(0)
    found = []
    for _ in range(20):
        torch.manual_seed(0)  # as in the forked workers of nnU-Net
        found.append(tuple(DepthShuffle()(image=image)["image"].flatten().tolist()))
    assert len(set(found)) > 1


def test_grey_slices_are_the_luminance_of_the_three_colours():
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3))
    image = torch.from_numpy(rgb.transpose(2, 0, 1)[None].astype(np.float32))
    expected = rgb @ np.array([0.299, 0.587, 0.114])
    grey = GreySlices()(image=image)["image"]
    for number in range(3):
        np.testing.assert_allclose(grey[0, number].numpy(), expected, rtol=1e-5)
    # Weights that add up to 1 give the same z-scores before and after.
    scores = grey_slices((image - 100) / 50)
    np.testing.assert_allclose(scores.numpy(), (grey.numpy() - 100) / 50, atol=1e-5)
    assert sum(LUMINANCE) == pytest.approx(1)


def test_stock_blur_fails_at_depth_three_and_ours_is_the_same_in_every_slice():
    image, _ = marked()
    blur = GaussianBlurTransform((0.5, 1.0), False, False, p_per_channel=1)
    with pytest.raises(RuntimeError, match="Padding size"):
        blur(image=image.clone())
    torch.manual_seed(0)
    safe = safe_in_depth(GaussianBlurTransform((0.8, 0.8), False, False, p_per_channel=0.5))
    assert isinstance(safe, InPlane)
    results = [safe(image=image.clone())["image"] for _ in range(200)]
    changed = [result for result in results if not torch.equal(result, image)]
    assert 70 < len(changed) < 130
    expected = torch.cat([blur_dimension(blur_dimension(image[:, d], 0.8, 0), 0.8, 1) for d in range(3)])[None]
    for result in changed:
        torch.testing.assert_close(result, expected)


def test_one_draw_of_the_blur_holds_for_all_slices():
    same = torch.rand(1, 1, 32, 48).expand(1, 3, 32, 48)
    for _ in range(20):
        blurred = safe_in_depth(GaussianBlurTransform((0.5, 3.0), False, False, p_per_channel=1))(image=same.clone())
        assert torch.equal(blurred["image"][:, 0], blurred["image"][:, 1])
        assert torch.equal(blurred["image"][:, 0], blurred["image"][:, 2])


def test_blur_keeps_its_strength_and_probability():
    inside = [one.transform for one in stock().transforms if hasattr(one, "transform")]
    before = next(one for one in inside if isinstance(one, GaussianBlurTransform))
    made = for_slices(stock(), grey=False, shuffle=True)
    wrapped = next(one for one in made.transforms if isinstance(getattr(one, "transform", None), InPlane))
    after = wrapped.transform
    assert wrapped.apply_probability == 0.2
    assert after.p_per_channel == before.p_per_channel
    assert after.transform.blur_sigma == before.blur_sigma
    assert len(made.transforms) == len(stock().transforms) + 1


@pytest.mark.parametrize("scales", [None, SCALES])
@pytest.mark.parametrize("more", [{}, {"regions": [(1,), (1, 2)], "ignore_label": 3}])
def test_every_transform_runs_at_depth_three_and_keeps_slices_apart(scales, more):
    torch.manual_seed(1)
    np.random.seed(1)
    transforms = for_slices(stock(scales, **more), grey=False, shuffle=True)
    assert always(transforms) > 12
    seen = 0
    for _ in range(200):
        image, seg = marked()
        result = transforms(image=image, segmentation=seg)
        target = result["segmentation"][0] if scales else result["segmentation"]
        assert result["image"].shape == (1, *PATCH)
        assert torch.isfinite(result["image"]).all()
        if scales:
            shapes = [tuple(one.shape[1:]) for one in result["segmentation"]]
            assert shapes == [(3, 32, 48), (3, 16, 24), (3, 8, 12)]
        flat = torch.cat([result["image"][0].flatten(1), target[0].float().flatten(1)])
        likeness = torch.corrcoef(flat)[:3, 3:]
        if target[0].flatten(1).any(1).all():  # else a square has left the patch
            assert likeness.argmax(1).tolist() == [0, 1, 2]  # every slice still looks like its own label map
            seen += 1
    assert seen > 60


def test_without_shuffling_the_order_stays():
    transforms = for_slices(stock(), grey=False, shuffle=False)
    assert not [one for one in transforms.transforms if isinstance(one, DepthShuffle)]
    transforms = for_slices(stock(SCALES), grey=False, shuffle=True)
    names = [type(one).__name__ for one in transforms.transforms]
    assert names.index("Convert2DTo3DTransform") < names.index("DepthShuffle")
    assert names.index("DepthShuffle") == names.index("DownsampleSegForDSTransform") - 1


def test_the_grey_control_has_no_variation_along_depth_whatever_is_drawn():
    transforms = for_slices(stock(), grey=True, shuffle=True)
    always(transforms)
    image = marked()[0] + torch.arange(3.0).reshape(1, 3, 1, 1)
    for _ in range(50):
        result = transforms(image=image.clone(), segmentation=torch.zeros((1, *PATCH), dtype=torch.int16))["image"]
        assert torch.equal(result[:, 0], result[:, 1])
        assert torch.equal(result[:, 0], result[:, 2])
        assert result.std() > 0.01
