"""Which images are held out, what is shown of an image, and how answers are counted."""

from collections import Counter

import numpy as np
import pytest
import torch
from natural_image_trees import save
from PIL import Image

from nnunet_pretrain.classification.held_out_images import evenly_spread, share_of
from nnunet_pretrain.classification.resized_crops import centre_box, random_box
from nnunet_pretrain.classification.top_k import places, summary_of, wilson
from nnunet_pretrain.conversion.natural_images.decoding import decode
from nnunet_pretrain.conversion.natural_images.index import ImageIndex, NaturalImage
from nnunet_pretrain.files import write_json
from nnunet_pretrain.planning.preset import load_preset
from nnunet_pretrain.planning.settings import NaturalImageSettings
from nnunet_pretrain.training.natural_image_splits import hold_out_fold, hold_out_share
from nnunet_pretrain.training.original_images import OriginalImages


def test_random_boxes_lie_inside_and_have_the_areas_and_aspects_that_were_asked_for():
    np.random.seed(0)
    height, width = 300, 400
    boxes = np.array([random_box(height, width, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)])
    top, left, rows, columns = boxes.T
    assert (boxes >= 0).all()
    assert (top + rows <= height).all()
    assert (left + columns <= width).all()
    area, aspect = rows * columns / (height * width), columns / rows
    assert area.min() > 0.075
    assert area.max() <= 1.0
    assert aspect.min() > 0.74
    assert aspect.max() < 1.35
    # Parts of up to half the image fit whatever their aspect, so their areas are spread as they were drawn.
    assert abs(area[area < 0.5].mean() - 0.29) < 0.01
    assert abs(area[area < 0.5].std() - 0.42 / np.sqrt(12)) < 0.01
    assert abs(np.log(aspect[area < 0.4]).mean()) < 0.02
    assert abs((top[rows < 200] / (height - rows[rows < 200])).mean() - 0.5) < 0.03


@pytest.mark.parametrize("size", [(1, 1), (8, 300), (300, 8), (2, 3)])
def test_boxes_of_tiny_and_long_images_are_inside_and_not_empty(size):
    np.random.seed(0)
    for box in [random_box(*size, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(200)] + [centre_box(*size, (32, 48))]:
        top, left, rows, columns = box
        assert 0 <= top <= size[0] - rows
        assert 0 <= left <= size[1] - columns
        assert rows > 0
        assert columns > 0


def test_the_middle_has_the_aspect_of_the_patch():
    assert centre_box(256, 256, (224, 224)) == (16, 16, 224, 224)
    assert centre_box(100, 400, (50, 100)) == (6, 112, 88, 175)


def test_places_count_equal_logits_like_a_sort_would():
    logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [5.0, 5.0, 0.0]])
    assert places(logits, torch.tensor([2, 0, 2, 1])).tolist() == [1, 0, 2, 1]


def test_wilson_intervals_are_those_of_the_literature():
    # Newcombe, Statistics in Medicine 1998, table I.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    summary = summary_of(["a", "b", "c"], np.array([0, 0, 1]), np.array([0, 3, 7]))
    assert summary["metrics"]["top-1"]["value"] == pytest.approx(1 / 3)
    assert summary["metrics"]["top-5"]["value"] == pytest.approx(2 / 3)
    assert summary["per_class"] == {
        "a": {"images": 2, "top-1": 0.5, "top-5": 1.0},
        "b": {"images": 1, "top-1": 0.0, "top-5": 0.0},
    }


def test_a_share_of_every_class_is_held_out_always_the_same():
    labels = np.array(["many"] * 100 + ["few"] * 3 + ["one"])
    held_out = hold_out_share(labels, 0.1)
    assert Counter(labels[held_out].tolist()) == {"many": 10, "few": 1}
    np.testing.assert_array_equal(held_out, hold_out_share(labels, 0.1))
    assert not hold_out_share(labels, 0.0).any()
    assert Counter(labels[hold_out_share(labels, 0.99)].tolist()) == {"many": 99, "few": 2}


def test_folds_share_out_every_class_and_every_image_is_held_out_once():
    labels = np.array(["a"] * 52 + ["b"] * 13 + ["c"] * 5)
    folds = [hold_out_fold(labels, fold) for fold in range(5)]
    np.testing.assert_array_equal(np.sum(folds, 0), 1)
    for held_out in folds:
        assert held_out.sum() == 14
        counts = Counter(labels[held_out].tolist())
        assert counts["a"] in (10, 11)
        assert counts["b"] in (2, 3)
        assert counts["c"] == 1
    with pytest.raises(ValueError, match="there are 5"):
        hold_out_fold(labels, 5)


def test_held_out_images_are_spread_over_all_classes_and_shared_among_processes():
    cases = np.array([f"c{i:03d}" for i in range(100)])
    assert evenly_spread(cases, 200).tolist() == cases.tolist()
    chosen = [int(case[1:]) for case in evenly_spread(cases, 10)]
    assert (chosen[0], chosen[-1], len(chosen)) == (0, 99, 10)
    assert set(np.diff(chosen)) == {11}
    shares = [share_of(cases[:7], process, 3) for process in range(3)]
    assert [len(share) for share in shares] == [3, 3, 3]
    assert set(np.concatenate(shares).tolist()) == set(cases[:7].tolist())


@pytest.mark.parametrize(
    ("key", "bounds", "message"),
    [
        ("crop_area", [-1, 1], "0 < smallest <= largest"),
        ("crop_area", [0.5, 2], "at most 1"),
        ("crop_ratio", [0, 1], "0 < smallest <= largest"),
        ("crop_ratio", [2, 1], "0 < smallest <= largest"),
    ],
)
def test_parts_that_cannot_be_drawn_are_refused_in_plans_and_presets(tmp_path, key, bounds, message):
    plans = {"task": "classification", "storage": "originals", "target": ["D", "P", "C"], key: bounds}
    with pytest.raises(ValueError, match=message):
        NaturalImageSettings.model_validate(plans)
    write_json(tmp_path / "mine.json", {"description": "of the test", "natural_images": {key: bounds}})
    with pytest.raises(ValueError, match=message):
        load_preset(str(tmp_path / "mine.json"))


def originals_of_one(folder, path, height, width, mean=0.0, std=1.0):
    """Returns a dataset of one image; without mean and deviation its intensities stay as they are."""
    row = NaturalImage("large", path.name, "a", "", height, width, mean, std)
    ImageIndex.from_rows([row]).write(folder / "natural_images.csv")
    natural = {"root": str(path.parent), "task": "classification"}
    facts = {"natural_images": natural, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", facts)
    return OriginalImages(str(folder / "none"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("axis", [0, 1])
def test_a_reduced_jpeg_is_cut_where_the_whole_one_is(tmp_path, orientation, axis):
    """Brightness tells the place: 1 per 5 pixels."""
    place = np.mgrid[0:1025, 0:1027][axis] / 5
    image = Image.fromarray(place.round().astype(np.uint8))
    exif = image.getexif()
    exif[0x0112] = orientation
    path = save(tmp_path / "p/large.jpg", image, exif=exif, quality=100)
    height, width = decode(path).rgb.shape[:2]
    dataset = originals_of_one(tmp_path, path, height, width)
    for box in ((height - 256, width - 512, 256, 512), (0, 0, 256, 512)):
        crop = dataset.load_crop("large", lambda height, width, box=box: box, (32, 64))[0]
        whole = dataset.load_crop("large", lambda height, width, box=box: box, (256, 512))[0]
        expected = torch.nn.functional.interpolate(torch.from_numpy(whole)[None], (32, 64), mode="area")[0].numpy()
        shift_in_pixels = 5 * np.abs((crop - expected)[:, 1:-1, 1:-1].mean())
        # Of the original; rounding of brightness makes 1.5, and it would be 7 if the last row counted as a whole one.
        assert shift_in_pixels < 2


def test_a_smaller_copy_of_an_original_is_refused(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8))
    path = save(tmp_path / "p/large.jpg", image)
    dataset = originals_of_one(tmp_path, path, 400, 600)
    with pytest.raises(ValueError, match=r"has 50 x 75 pixels at 1/4 of its size, when the .* had 400 x 600"):
        dataset.load_crop("large", lambda height, width: (0, 0, height, width), (50, 60))


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size_with_the_same_result(tmp_path):
    y, x = np.mgrid[0:600, 0:800] / 100
    rgb = np.stack([np.sin(y + x), np.sin(y - x), np.cos(2 * x)], 2) * 100 + 128
    path = save(tmp_path / "p/large.jpg", rgb.astype(np.uint8), quality=95)
    dataset = originals_of_one(tmp_path, path, 600, 800, float(rgb.mean()), float(rgb.std()))
    crop = dataset.load_crop("large", lambda height, width: (100, 200, 400, 500), (64, 80))
    whole = dataset.load_crop("large", lambda height, width: (100, 200, 400, 500), (400, 500))
    expected = torch.nn.functional.interpolate(torch.from_numpy(whole[0])[None], (64, 80), mode="area")[0].numpy()
    assert np.abs(crop[0] - expected).max() < 0.15
    assert np.abs(crop[0] - expected).mean() < 0.02
