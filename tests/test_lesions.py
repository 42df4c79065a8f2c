"""Lesions are numbered on the label maps as they were given, and found in the preprocessed images."""

import csv
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from classification_targets import RESAMPLING
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from small_checkpoints import checkpoint, save_as_trained

from nnunet_pretrain.classification import lesions
from nnunet_pretrain.classification.classify import classify
from nnunet_pretrain.classification.crops import lesion_crop
from nnunet_pretrain.classification.inference import probabilities_of
from nnunet_pretrain.classification.labels import Example
from nnunet_pretrain.classification.lesions import find_boxes, lesion_boxes, preprocessed_box
from nnunet_pretrain.files import read_json
from nnunet_pretrain.networks.classifier import classifier_architecture

CASE, SHAPE = "case_0", (36, 40, 44)  # along x, y, z
BLOCK, PLATE, THREAD = 1, 2, 3  # by size: the thickest in z, a little smaller and on whole slices, hardly anything
PLACES = {
    BLOCK: ((8, 12), (10, 15), (10, 14)),  # 80 voxels; its slices are not those of the coarse grid
    PLATE: ((22, 27), (24, 29), (25, 28)),  # 75 voxels; exactly one coarse slice
    THREAD: ((14, 16), (30, 31), (34, 35)),  # 2 voxels; none is left on the coarse grid
}
EMPTY = ((2, 36), (3, 40), (4, 43))  # all outside is zero in the image


def target(root, transpose, spacing=(1.0, 1.0, 3.0)):
    """Writes and preprocesses a case with three lesions on a grid of 1 mm, with voxels of 3 mm along one axis.

    Every lesion has the same label; the preprocessed label map beside it tells them apart.
    """
    content = checkpoint()
    content["init_args"]["dataset_json"] = {
        "channel_names": {"0": "CT"}, "labels": {"background": 0, "nodule": 1}, "file_ending": ".nii.gz"
    }  # fmt: skip
    plans = content["init_args"]["plans"]
    plans["transpose_forward"], plans["transpose_backward"] = transpose, np.argsort(transpose).tolist()
    zyx = spacing[::-1]
    chosen = plans["configurations"]["3d_fullres"]
    chosen.update(RESAMPLING, spacing=[zyx[axis] for axis in transpose], batch_dice=False)
    manager = PlansManager(plans)
    rng = np.random.default_rng(0)
    image, kinds = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.uint8)
    inside = tuple(slice(*edges) for edges in EMPTY)
    image[inside] = rng.normal(60, 5, image[inside].shape)
    for kind, place in PLACES.items():
        kinds[tuple(slice(*edges) for edges in place)] = kind
        image[kinds == kind] = 100 + 50 * kind
    base = root / "nnUNet_preprocessed"
    for name, array in (("images/case_0_0000", image), ("kinds/case_0", kinds), ("gt_segmentations/case_0", kinds > 0)):
        path = base / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array.astype(np.float32), np.eye(4)), path)
    configuration = manager.get_configuration("3d_fullres")
    made = SimpleNamespace(base=base, plans=manager, content=content, configuration=configuration)
    made.dataset_json = content["init_args"]["dataset_json"]
    made.folder = base / configuration.data_identifier
    made.folder.mkdir()
    preprocess(made)
    return made


def preprocess(made):
    preprocessor = made.configuration.preprocessor_class(verbose=False)
    files = [str(made.base / "images/case_0_0000.nii.gz")]
    given = str(made.base / "gt_segmentations/case_0.nii.gz")
    arguments = made.plans, made.configuration, made.dataset_json
    for old in made.folder.iterdir():
        old.unlink()
    preprocessor.run_case_save(str(made.folder / CASE), files, given, *arguments)
    names = {**made.dataset_json, "labels": {"background": 0, "block": 1, "plate": 2, "thread": 3}}
    made.kinds = preprocessor.run_case(files, str(made.base / "kinds/case_0.nii.gz"), *arguments[:2], names)[1][0]
    made.dataset = nnUNetDatasetBlosc2(str(made.folder), [CASE])


def examples(components=(1, 2, 3)):
    return [Example(CASE, "ab"[number % 2], "nodule", number) for number in components]


def boxes_of(made, wanted=None):
    found = find_boxes(made.dataset, wanted or examples(), made.plans, made.dataset_json, made.base)
    return [found[example.key] for example in wanted or examples()]


@pytest.mark.parametrize("transpose", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_lesions_keep_their_numbers_and_places_through_preprocessing(tmp_path, transpose):
    made = target(tmp_path, transpose)
    image, seg, _, properties = made.dataset.load_case(CASE)
    coarse = lesion_boxes(np.asarray(seg[0]), (1,), components=True)
    there = {kind: lesion_boxes(made.kinds, (kind,), components=False) for kind in PLACES}
    assert coarse == [*there[PLATE], *there[BLOCK]]  # the order of the preprocessed label map is another one
    assert there[THREAD] == []
    assert any(low for low, _ in properties["bbox_used_for_cropping"])
    boxes = boxes_of(made)
    for kind, box in zip((BLOCK, PLATE), boxes, strict=False):
        (real,) = there[kind]
        for (low, high), (first, last) in zip(box, real, strict=True):
            assert 0 <= first - low <= 1
            assert 0 <= high - last <= 1
    grey = np.asarray(image[0])  # the normalisation keeps the order of intensities
    for kind, box in zip((BLOCK, PLATE), boxes, strict=False):
        part = grey[tuple(slice(*edges) for edges in box)]
        assert part.max() > np.quantile(grey[made.kinds == 0], 0.999), kind
    expected = (10, 11), (27, 28), (12, 14)  # along z, y, x
    assert boxes[THREAD - 1] == tuple(expected[axis] for axis in transpose)


def test_all_voxels_of_a_label_are_one_lesion(tmp_path):
    made = target(tmp_path, [2, 0, 1])
    (whole,) = boxes_of(made, [Example(CASE, "a", "nodule")])
    parts = np.array(boxes_of(made))
    assert np.array_equal(np.array(whole), np.stack([parts[..., 0].min(0), parts[..., 1].max(0)], -1))


def test_boxes_are_found_once_and_again_when_label_map_or_image_change(tmp_path, monkeypatch):
    made = target(tmp_path, [2, 0, 1])
    read = []
    real = lesions.read_label_map
    monkeypatch.setattr(lesions, "read_label_map", lambda *args: read.append(1) or real(*args))
    first = boxes_of(made)
    assert boxes_of(made) == first
    assert len(read) == 1
    memory = made.base / f"lesions_{made.folder.name}.json"
    assert len(read_json(memory)) == 1
    given = made.base / "gt_segmentations/case_0.nii.gz"
    swapped = np.flip(np.asarray(nib.load(given).dataobj), 0)
    nib.save(nib.Nifti1Image(swapped.astype(np.float32), np.eye(4)), given)
    assert boxes_of(made) != first
    preprocess(made)
    boxes_of(made)
    assert len(read) == 3
    made.dataset_json["labels"]["nodule"] = 2
    with pytest.raises(ValueError, match=r"3 rows .* without voxels in .*: case_0 nodule 1 \(there are 0\)"):
        boxes_of(made)


def test_missing_and_unfitting_label_maps_are_refused(tmp_path):
    made = target(tmp_path, [0, 1, 2])
    with pytest.raises(ValueError, match=r"1 rows .* case_0 nodule 4 \(there are 3\)"):
        boxes_of(made, examples((1, 4)))
    given = made.base / "gt_segmentations/case_0.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((5, 6, 7), np.float32), np.eye(4)), given)
    with pytest.raises(ValueError, match=r"has the shape \(7, 6, 5\), the image .* had \(44, 40, 36"):
        boxes_of(made)
    given.unlink()
    with pytest.raises(FileNotFoundError, match=r"case_0\.nii\.gz not found; .* `nnunet_pretrain preprocess`"):
        boxes_of(made)


def test_boxes_outside_the_crop_become_the_nearest_voxel():
    properties = {
        "bbox_used_for_cropping": [[4, 24], [0, 10], [5, 15]],
        "shape_after_cropping_and_before_resampling": (20, 10, 10),
    }
    moved = preprocessed_box(((0, 3), (0, 2), (30, 33)), [2, 0, 1], properties, (10, 20, 10))
    assert moved == ((9, 10), (0, 6), (0, 1))
    whole = preprocessed_box(((0, 99), (0, 99), (0, 99)), [2, 0, 1], properties, (10, 20, 10))
    assert whole == ((0, 10), (0, 20), (0, 10))


def test_equally_large_components_have_a_fixed_order():
    seg = np.zeros((4, 9, 9), np.uint8)
    corners = [(3, 0, 0), (0, 6, 6), (0, 0, 6)]
    for z, y, x in corners:
        seg[z, y : y + 2, x : x + 2] = 1
    expected = sorted(corners)
    assert [tuple(low for low, _ in box) for box in lesion_boxes(seg, (1,), components=True)] == expected


def test_classify_numbers_lesions_on_the_label_maps_it_is_given(tmp_path):
    made = target(tmp_path, [2, 0, 1])
    arguments = made.content["init_args"]
    chosen = arguments["plans"]["configurations"]["3d_fullres"]
    chosen["architecture"] = classifier_architecture(chosen["architecture"], 2)
    classes = {"classes": ["a", "b"], "crop": "lesion", "lesions": ["nodule"], "components": True}
    arguments["plans"]["nnunet_pretrain"] = {"classification": classes}
    network = get_network_from_plans(*chosen["architecture"].values(), 1, 2, deep_supervision=False).eval()
    made.content["network_weights"] = network.state_dict()
    device, axes = arguments["device"], made.content["inference_allowed_mirroring_axes"]
    save_as_trained(tmp_path / "model", made.content)
    out, folders = tmp_path / "out.csv", (made.base / "images", made.base / "gt_segmentations")
    assert classify(folders[0], out, tmp_path / "model", lesions=folders[1], device="cpu") == 3
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["component"] for row in rows] == ["1", "2", "3"]
    data = made.dataset.load_case(CASE)[0]
    for row, box in zip(rows, boxes_of(made), strict=True):  # as in the training
        expected = probabilities_of(network, lesion_crop(data, box, chosen["patch_size"]), axes, device)
        assert [float(row["p_a"]), float(row["p_b"])] == pytest.approx(expected.tolist(), abs=2e-6)
    assert len({row["p_a"] for row in rows}) == 3
