"""What people give `convert_2d` by mistake, and what they would not notice if nobody told them."""

import json
import os

import natural_image_trees as trees
import numpy as np
import pytest
from PIL import Image, ImageOps
from small_photographs import planned, write_shapes

from nnunet_pretrain.cli import main
from nnunet_pretrain.conversion.natural_images.convert import NaturalImageOptions, convert_2d
from nnunet_pretrain.conversion.natural_images.decoding import decode
from nnunet_pretrain.conversion.natural_images.index import INDEX, ImageIndex
from nnunet_pretrain.conversion.natural_images.masks import MaskLabels, read_mask
from nnunet_pretrain.conversion.natural_images.names import case_names
from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.training.preflight import check_labels


def convert(root, task="classification", **options):
    """Converts a folder; returns what the user is told."""
    lines = []
    convert_2d(root, 920, "Photos", task, NaturalImageOptions(**{"num_processes": 1, **options}), lines.append)
    return lines


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_is_turned_once(tmp_path, orientation):
    stored = trees.picture(4)
    path = trees.save(tmp_path / "turned.tif", stored, tiffinfo={0x0112: orientation})
    image = Image.fromarray(stored)
    image.getexif()[0x0112] = orientation
    decoded = decode(path)
    assert (decoded.rgb == np.asarray(ImageOps.exif_transpose(image))).all()
    assert decoded.orientation == orientation


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_uncompressed_grey_tiff_is_turned_as_a_compressed_one(tmp_path, dtype):
    """Pillow maps such files into memory, with height and width exchanged, if it is given a path."""
    stored = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, (40, 50), dtype=dtype)
    plain = trees.save(tmp_path / "plain.tif", stored, tiffinfo={0x0112: 6})
    packed = trees.save(tmp_path / "packed.tif", stored, tiffinfo={0x0112: 6}, compression="tiff_lzw")
    assert decode(plain).rgb.shape == (50, 40, 3)
    assert (decode(plain).rgb == decode(packed).rgb).all()
    assert (read_mask(plain) == np.rot90(stored, -1)).all()


def wrong_task(root):
    trees.images_and_masks(root)


def stray_image(root):
    for part in ("train", "val", "test"):
        trees.folders_per_class(root / part)
    trees.save(root / "train" / "montage.png", trees.picture(1))


def archives_side_by_side(root):
    trees.folders_per_class(root / "ILSVRC2012_img_train")
    for number in range(3):
        trees.save(root / "ILSVRC2012_img_val" / f"{number}.png", trees.picture(number))


def validation_without_classes(root):
    trees.folders_per_class(root / "train")
    for number in range(3):
        trees.save(root / "val" / "images" / f"{number}.png", trees.picture(number))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (wrong_task, r"holds images/ and masks/.*use --task segmentation"),
        (stray_image, r"look like parts of a dataset.*images lie directly in .*train; expected a folder per class"),
        (archives_side_by_side, r"ILSVRC2012_img_train, ILSVRC2012_img_val in .* look like parts.*directly in .*_val"),
        (validation_without_classes, r"1 classes have images for validation and none to train on: images; sort"),
    ],
)
def test_folders_that_are_no_classes_are_refused(tmp_path, nnunet, make, message):
    make(tmp_path / "photos")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "photos")
    assert not any((nnunet / "nnUNet_raw").iterdir())


def test_classes_are_named_before_anything_is_converted(tmp_path, nnunet):
    lines = convert(trees.folders_per_class(tmp_path / "photos", classes="abcdefg", count=1))
    assert "7 classes: a, b, c, d, e, ..." in lines[:3]


def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path, nnunet, monkeypatch):
    root = trees.folders_per_class(tmp_path / "photos")
    convert(root)
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)  # the tests may run as root, who may read everything
    with pytest.raises(ValueError, match=r"photos/cat cannot be read: Permission denied"):
        convert(root)
    assert len(list((nnunet / "nnUNet_raw/Dataset920_Photos/imagesTr").iterdir())) == 6


def test_reserved_names_of_values_are_known_in_any_case():
    labels = MaskLabels.of_values({0: "Background", 1: "a", 7: "b", 255: "IGNORE"})
    assert labels.structures == ("a", "b")
    assert labels.ids == {0: 0, 1: 1, 7: 2, 255: 3}


def test_what_lies_beside_the_parts_of_images_is_told(tmp_path, nnunet):
    root = tmp_path / "photos"
    for part in ("train", "val", "extra"):
        for kind in ("images", "masks"):
            for number in range(2):
                trees.save(root / kind / part / f"{number}.png", np.eye(*trees.SIZE, dtype=np.uint8))
    trees.save(root / "images" / "loose.png", trees.picture(1))
    write_json(tmp_path / "labels.json", {"background": 0, "line": 1})
    lines = convert(root, "segmentation", labels=tmp_path / "labels.json")
    assert any("split into parts: extra/, images that lie directly there" in line for line in lines)


def test_masks_of_other_names_are_said_to_be_missing(tmp_path, nnunet):
    root = trees.images_and_masks(tmp_path / "photos")
    for path in list((root / "masks").iterdir()):
        path.rename(path.with_stem(f"{path.stem}_mask"))
    with pytest.raises(ValueError, match=r"none of 3 images has a mask, such as images/a0.png: it has no mask at"):
        convert(root, "segmentation")


def coco_changed(root, change):
    root, content = trees.coco(root)
    change(content)
    (root / "annotations" / "objects.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def test_coco_with_an_image_twice_is_refused(tmp_path, nnunet):
    pytest.importorskip("pycocotools")
    twice = coco_changed(
        tmp_path / "twice", lambda content: content["images"].append({**content["images"][0], "id": 9})
    )
    with pytest.raises(ValueError, match=r"objects.json: 'images' lists 0.png twice"):
        convert(twice, "segmentation")


def test_paths_of_coco_are_resolved_and_stay_in_the_folder(tmp_path, nnunet):
    pytest.importorskip("pycocotools")

    def renamed(names):
        def change(content):
            for image, name in zip(content["images"], names, strict=True):
                image["file_name"] = name

        return change

    near = coco_changed(tmp_path / "near", renamed(["./0.png", "../images/1.png"]))
    assert not any("are left out" in line for line in convert(near, "segmentation"))
    index = ImageIndex.read(nnunet / "nnUNet_raw/Dataset920_Photos" / INDEX)
    assert [index.at(row).file for row in range(2)] == ["images/0.png", "images/1.png"]
    far = coco_changed(tmp_path / "far", renamed(["0.png", "../../near/images/1.png"]))
    with pytest.raises(ValueError, match=r"names the image '../../near/images/1.png', which is not in"):
        convert(far, "segmentation")


def test_many_names_without_letters_take_no_longer_than_others():
    files = [f"{chr(0x4E00 + number)}.png" for number in range(20_000)]
    names = case_names(files)
    assert names[:3] == ["_", "__2", "__3"]
    assert len(set(names)) == len(files)


@pytest.mark.parametrize("blocked", ["a file", "no folder"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, nnunet, capsys, blocked):
    root = trees.folders_per_class(tmp_path / "photos")
    (nnunet / "nnUNet_raw").rmdir()
    if blocked == "a file":
        (nnunet / "nnUNet_raw").touch()
    else:
        (nnunet / "nnUNet_raw").symlink_to(tmp_path / "photos/cat/cat_0.png")
    assert main(["convert_2d", str(root), "-d", "920", "-n", "Photos", "--task", "classification"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.slow
def test_volumes_preprocessed_with_other_labels_are_refused(nnunet):
    images = write_shapes(nnunet / "shapes", 4)
    plans = planned(nnunet, images, 922, "segmentation", "volumes")
    base = plans.parent
    (folder,) = base.glob("nnUNet*_3d_fullres")
    cases = [path.stem for path in folder.glob("*.pkl")]
    check_labels(folder, cases, read_json(base / "dataset.json"), "P")
    write_json(images / "labels.json", {"background": 0, "corner": 2, "shape": 1})
    options = NaturalImageOptions(labels=images / "labels.json", num_processes=1)
    raw = convert_2d(images, 922, "SegmentationVolumes", "segmentation", options)
    with pytest.raises(ValueError, match=r"4 of 4 cases .* other labels, such as .*; run `nnunet_pretrain preprocess"):
        check_labels(folder, cases, read_json(raw / "dataset.json"), "P")
