"""convert_2d: natural images of every kind become volumes of three slices, with a class or a mask."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import natural_image_trees as trees
import numpy as np
import pytest
import SimpleITK
from PIL import Image

from nnunet_pretrain.cli import main
from nnunet_pretrain.conversion.engine import RECORDS
from nnunet_pretrain.conversion.natural_images.convert import NaturalImageOptions, convert_2d
from nnunet_pretrain.conversion.natural_images.decoding import as_volume, decode
from nnunet_pretrain.conversion.natural_images.index import INDEX, NATURAL_KEY, ImageIndex, NaturalImage
from nnunet_pretrain.conversion.natural_images.layout import find_layout, known_layouts, load_layout
from nnunet_pretrain.conversion.natural_images.names import case_names
from nnunet_pretrain.conversion.natural_images.shards import record_path, shards_for
from nnunet_pretrain.files import read_json, write_json

LABELS = {"background": 0, "cat": 1, "bird": 7, "ignore": 255}


def convert(root, task="classification", lines=None, **options):
    options = NaturalImageOptions(**{"num_processes": 1, **options})
    return convert_2d(root, 920, "Photos", task, options, (lines if lines is not None else []).append)


def voxels(folder: Path, name: str) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(folder / name)))


def volume(folder: Path, case: str) -> np.ndarray:
    return voxels(folder, f"imagesTr/{case}_0000.nii.gz")


def label_map(folder: Path, case: str) -> np.ndarray:
    return voxels(folder, f"labelsTr/{case}.nii.gz")


def write_names(path: Path, names: dict) -> Path:
    write_json(path, names)
    return path


# ---- one image ------------------------------------------------------------------------------------------------------


def test_colours_become_slices(tmp_path, nnunet):
    root = trees.folders_per_class(tmp_path / "photos")
    folder = convert(root)
    rgb = np.asarray(Image.open(root / "dog" / "dog_1.png"))
    found = volume(folder, "dog__dog_1")
    assert found.dtype == np.uint8
    assert all((found[d, y, x] == rgb[y, x, d]) for d in range(3) for y in range(12) for x in range(16))
    image = SimpleITK.ReadImage(str(folder / "imagesTr" / "dog__dog_1_0000.nii.gz"))
    assert image.GetSpacing() == (1, 1, 1)
    assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert (label_map(folder, "dog__dog_1") == np.full((3, 12, 16), 2)).all()
    row = ImageIndex.read(folder / INDEX).row("dog__dog_1")
    assert (row.file, row.label, row.height, row.width, row.note) == ("dog/dog_1.png", "dog", 12, 16, "")
    assert row.mean == pytest.approx(rgb.mean(), abs=1e-3)
    assert row.std == pytest.approx(rgb.std(), abs=1e-3)


def grey_ramp() -> np.ndarray:
    return np.arange(12 * 16, dtype=np.uint8).reshape(12, 16)


def modes() -> dict[str, tuple[Image.Image, str, np.ndarray, str]]:
    """Returns an image of every mode: how it is saved, what it looks like, and what is noted."""
    rgb, ramp = trees.picture(1), grey_ramp()
    alpha = np.linspace(0, 255, 16).astype(np.uint8)[None].repeat(12, axis=0)
    over_white = (rgb * (alpha[..., None] / 255) + 255 * (1 - alpha[..., None] / 255)).round()
    ramp_white = (ramp * (alpha / 255) + 255 * (1 - alpha / 255)).round()[..., None].repeat(3, axis=2)
    bits, deep = ramp % 3 == 0, (ramp.astype(np.uint16) * 300) + 77
    ink = Image.fromarray(np.dstack([255 - rgb, np.zeros((12, 16), np.uint8)]), mode="CMYK")
    indexed = trees.palette(ramp)
    colours = np.asarray(indexed.getpalette(), np.uint8).reshape(256, 3)[ramp]
    clear = trees.palette(ramp)
    clear.info["transparency"] = 5
    see_through = colours.copy()
    see_through[ramp == 5] = 255
    with_alpha = Image.fromarray(np.dstack([rgb, alpha]))
    grey = lambda values: values[..., None].repeat(3, axis=2)  # noqa: E731
    return {
        "1": (Image.fromarray(bits), "png", grey(bits.astype(np.uint8) * 255), "grey"),
        "L": (Image.fromarray(ramp), "png", grey(ramp), "grey"),
        "LA": (Image.merge("LA", list(map(Image.fromarray, (ramp, alpha)))), "png", ramp_white, "grey; alpha on white"),
        "P": (indexed, "png", colours, "palette"),
        "P with transparency": (clear, "png", see_through, "palette; alpha on white"),
        "RGB": (Image.fromarray(rgb), "bmp", rgb, ""),
        "RGBA": (with_alpha, "png", over_white, "alpha on white"),
        "CMYK": (ink, "tif", rgb, "CMYK"),
        "I;16": (Image.fromarray(deep), "png", grey((deep / 257).round()), "grey; 16 bit"),
        "I;16B": (Image.fromarray(deep.astype(">u2")), "tif", grey((deep / 257).round()), "grey; 16 bit"),
        "I": (Image.fromarray(deep.astype(np.int32)), "tif", grey((deep / 257).round()), "grey; 16 bit"),
        "animated": (Image.fromarray(ramp), "gif", grey(ramp), "palette; first of 3 frames"),
    }


@pytest.mark.parametrize("mode", modes())
def test_every_mode_becomes_8_bit_colours(tmp_path, mode):
    image, suffix, expected, note = modes()[mode]
    more = [Image.fromarray(np.full((12, 16), value, np.uint8)) for value in (9, 99)]
    options = {"save_all": True, "append_images": more} if mode == "animated" else {}
    decoded = decode(trees.save(tmp_path / f"image.{suffix}", image, **options))
    assert decoded.rgb.dtype == np.uint8
    assert decoded.rgb.shape == (12, 16, 3)
    assert np.abs(decoded.rgb.astype(int) - expected).max() <= 1
    if "alpha" not in note:
        assert (decoded.rgb == expected).all()
    assert "; ".join(decoded.notes) == note


def test_jpeg_of_luma_and_chroma_and_of_ink(tmp_path):
    smooth = np.linspace(0, 200, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    for mode in ("YCbCr", "CMYK"):
        path = trees.save(tmp_path / f"{mode}.jpg", Image.fromarray(smooth).convert(mode), quality=100, subsampling=0)
        assert np.abs(decode(path).rgb.astype(int) - smooth).max() <= 6
    stored = trees.save(tmp_path / "tiff.tif", Image.fromarray(smooth).convert("YCbCr"))
    assert np.abs(decode(stored).rgb.astype(int) - smooth).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations_are_those_of_pillow(tmp_path, orientation):
    from PIL import ImageOps

    image = Image.fromarray(trees.picture(4))
    exif = image.getexif()
    exif[0x0112] = orientation
    path = trees.save(tmp_path / "turned.png", image, exif=exif)
    decoded = decode(path)
    with Image.open(path) as stored:
        assert (decoded.rgb == np.asarray(ImageOps.exif_transpose(stored))).all()
    assert decoded.notes == (() if orientation == 1 else ("rotated by EXIF",))


def test_small_jpeg_is_never_smaller_than_needed(tmp_path):
    path = trees.save_turned(tmp_path / "large.jpg", np.asarray(Image.fromarray(trees.picture(1)).resize((600, 400))))
    assert decode(path).rgb.shape == (400, 600, 3)
    assert decode(path, smallest=(90, 150)).rgb.shape == (100, 150, 3)
    assert decode(path, smallest=(101, 10)).rgb.shape == (200, 300, 3)
    assert decode(path, smallest=(401, 601)).rgb.shape == (400, 600, 3)


def test_volume_is_contiguous():
    rgb = trees.picture(3)
    slices = as_volume(rgb)
    assert slices.flags.c_contiguous
    assert (slices == rgb.transpose(2, 0, 1)).all()


# ---- images that cannot be used -------------------------------------------------------------------------------------


def bad_files(folder: Path) -> dict[str, str]:
    """Writes images that cannot be used; returns name and what the reason must say."""
    good = trees.save(folder / "good.jpg", trees.picture(1, (64, 64)))
    (folder / "cut.jpg").write_bytes(good.read_bytes()[:700])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("<html>not found</html>", encoding="utf-8")
    (folder / "link.jpg").symlink_to(folder / "gone.jpg")
    trees.save(folder / "tiny.png", trees.picture(1, (7, 30)))
    trees.save(folder / "float.tif", np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20))
    trees.save(folder / "deep.tif", np.full((20, 20), 70000, np.int32))
    trees.save(folder / "negative.tif", np.full((20, 20), -1, np.int32))
    # A PNG that claims 20000 x 20000 pixels in a few bytes.
    bomb = bytearray(trees.save(folder / "bomb.png", trees.picture(1)).read_bytes())
    import struct
    import zlib

    bomb[16:24] = struct.pack(">II", 20000, 20000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bytes(bomb[12:29])))
    (folder / "bomb.png").write_bytes(bytes(bomb))
    return {
        "cut.jpg": "cut off or damaged",
        "empty.jpg": "is empty",
        "text.jpg": "is no image",
        "link.jpg": "link to nothing",
        "tiny.png": "has 30 x 7 pixels",
        "float.tif": "mode F",
        "deep.tif": "values from 70000 to 70000",
        "negative.tif": "values from -1",
        "bomb.png": "claims",
    }


def test_bad_images_are_quarantined_with_a_reason_and_the_rest_is_converted(tmp_path, nnunet, capsys):
    root = trees.folders_per_class(tmp_path / "photos")
    reasons = bad_files(root / "cat")
    arguments = ["convert_2d", str(root), "-d", "920", "-n", "Photos", "--task", "classification", "-np", "1"]
    assert main(arguments) == 1
    folder = nnunet / "nnUNet_raw" / "Dataset920_Photos"
    quarantine = read_json(folder / "quarantine.json")
    assert set(quarantine) == {f"cat__{name.split('.')[0]}" for name in reasons}
    for name, reason in reasons.items():
        assert reason in quarantine[f"cat__{name.split('.')[0]}"], name
    assert read_json(folder / "dataset.json")["numTraining"] == 7
    assert len(list((folder / "imagesTr").iterdir())) == len(list((folder / "labelsTr").iterdir())) == 7
    printed = capsys.readouterr().out
    assert "7 images, 2 classes, 9 quarantined" in printed
    assert "next: nnunet_pretrain plan_2d -d 920" in printed
    for name in reasons:
        (root / "cat" / name).unlink()
    assert main(arguments) == 0
    assert not (folder / "quarantine.json").exists()


def test_a_disk_that_takes_nothing_ends_the_run_and_quarantines_nothing(tmp_path, nnunet):
    root = trees.folders_per_class(tmp_path / "photos")
    folder = convert(root)
    shutil.rmtree(folder / "labelsTr")
    (folder / "labelsTr").write_text("in the way", encoding="utf-8")
    with pytest.raises(ValueError, match=r"cannot write case .*make room, then run the command again"):
        convert(root)
    assert not (folder / "dataset.json").exists()
    (folder / "labelsTr").unlink()
    assert read_json(convert(root) / "dataset.json")["numTraining"] == 6


def test_strict_stops_at_the_first_bad_image(tmp_path, nnunet):
    root = trees.folders_per_class(tmp_path / "photos")
    (root / "dog" / "empty.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.png is empty .*leave out --strict"):
        convert(root, strict=True)
    assert not (nnunet / "nnUNet_raw" / "Dataset920_Photos" / "dataset.json").exists()
    convert(root)
    with pytest.raises(ValueError, match="--strict"):
        convert(root, strict=True)


# ---- classes --------------------------------------------------------------------------------------------------------


def test_dataset_json_of_classes(tmp_path, nnunet):
    root = trees.folders_per_class(tmp_path / "photos", ("dog", "ignore", "Background", "cat"))
    content = read_json(convert(root) / "dataset.json")
    assert content["labels"] == {"background": 0, "cat": 1, "class_Background": 2, "class_ignore": 3, "dog": 4}
    assert content[NATURAL_KEY] == {
        "task": "classification",
        "storage": "volumes",
        "root": str(root),
        "classes": ["cat", "class_Background", "class_ignore", "dog"],
        "layout": "folder_per_class",
    }
    assert content["channel_names"] == {"0": "natural image"}
    assert content["overwrite_image_reader_writer"] == "SimpleITKIO"
    assert "dataset" not in content


def test_nnunet_takes_both_kinds_of_volumes_and_reads_them_back(tmp_path, nnunet):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    root = trees.folders_per_class(tmp_path / "photos")
    folder = convert(root)
    verify_dataset_integrity(str(folder), num_processes=1)
    image, properties = SimpleITKIO().read_images([str(folder / "imagesTr" / "cat__cat_0_0000.nii.gz")])
    assert image.shape == (1, 3, 12, 16)
    assert list(properties["spacing"]) == [1, 1, 1]
    assert (image[0] == as_volume(np.asarray(Image.open(root / "cat" / "cat_0.png")))).all()
    shutil.rmtree(folder)
    masks = trees.images_and_masks(tmp_path / "masks")
    verify_dataset_integrity(str(convert(masks, "segmentation", labels=write_names(tmp_path / "l.json", LABELS))), 1)


def test_parts_are_recognised_and_a_test_set_is_left_out(tmp_path, nnunet):
    root = tmp_path / "photos"
    for part in ("train", "Validation", "test"):
        trees.folders_per_class(root / part, count=2)
    lines = []
    index = ImageIndex.read(convert(root, lines=lines) / INDEX)
    assert sorted(zip(index.cases.tolist(), index.parts.tolist(), index.labels.tolist(), strict=True))[:3] == [
        ("Validation__cat__cat_0", "val", "cat"),
        ("Validation__cat__cat_1", "val", "cat"),
        ("Validation__dog__dog_0", "val", "dog"),
    ]
    assert len(index) == 8
    assert any("left out as a test set" in line and str(root / "test") in line for line in lines)
    assert "8 images, 2 classes (4 train, 4 val), 0 quarantined" in lines


def test_a_class_may_be_called_train(tmp_path, nnunet):
    root = trees.folders_per_class(tmp_path / "photos", ("bus", "train"))
    assert read_json(convert(root) / "dataset.json")[NATURAL_KEY]["classes"] == ["bus", "train"]


def test_what_is_no_image_is_counted_and_hidden_files_are_not(tmp_path, nnunet):
    root = trees.folders_per_class(tmp_path / "photos")
    (root / "cat" / "notes.txt").write_text("x", encoding="utf-8")
    (root / "cat" / ".hidden.png").write_bytes(b"x")
    trees.save(root / "__MACOSX" / "x.png", trees.picture(1))
    trees.save(root / "cover.png", trees.picture(1))
    lines = []
    index = ImageIndex.read(convert(root, lines=lines) / INDEX)
    assert len(index) == 6
    assert any("1 files in the folder do not end like images" in line and ".txt 1" in line for line in lines)
    assert any("1 images in the folder do not lie at" in line and "cover.png" in line for line in lines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: shutil.rmtree(root / "dog"), "holds 1 class"),
        (lambda root: (root / "bird").mkdir(), "1 classes have no image: bird"),
        (lambda root: [path.write_bytes(b"") for path in (root / "dog").iterdir()], "no image that can be used: dog"),
        (lambda root: [shutil.rmtree(root / name) for name in ("cat", "dog")], "no image of layout"),
    ],
)
def test_too_few_classes_or_images_are_refused(tmp_path, nnunet, change, message):
    root = trees.folders_per_class(tmp_path / "photos")
    change(root)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        convert(root)


def test_case_names_are_safe_unique_and_always_the_same():
    files = [
        "a/b c.png",
        "a/b.c.png",
        "a/b_c.jpg",
        "a/b_c.png",
        "a/b_c_2.png",
        "A/b_c.png",
        "ä.png",
        "x" * 300 + ".png",
    ]
    names = case_names(sorted(files))
    assert names == case_names(sorted(files))
    assert len({name.lower() for name in names}) == len(files)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") for name in names)
    assert max(map(len, names)) < 200
    assert case_names(["train/n01/n01_1.JPEG"]) == ["train__n01__n01_1"]


def test_colliding_names_keep_their_own_images(tmp_path, nnunet):
    root = trees.folders_per_class(tmp_path / "photos", count=1)
    trees.save(root / "cat" / "x.png", trees.picture(31))
    trees.save(root / "cat" / "x.bmp", trees.picture(32))
    folder = convert(root)
    index = ImageIndex.read(folder / INDEX)
    for case in ("cat__x", "cat__x_2"):
        rgb = np.asarray(Image.open(root / index.row(case).file))
        assert (volume(folder, case) == rgb.transpose(2, 0, 1)).all()


def test_originals_write_no_volumes(tmp_path, nnunet):
    root = trees.folders_per_class(tmp_path / "photos")
    lines = []
    folder = convert(root, storage="originals", lines=lines)
    assert sorted(path.name for path in folder.iterdir()) == ["dataset.json", INDEX, RECORDS]
    assert read_json(folder / "dataset.json")[NATURAL_KEY]["storage"] == "originals"
    assert len(ImageIndex.read(folder / INDEX)) == 6
    assert any("nothing needs to be preprocessed" in line for line in lines)


# ---- masks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["volumes", "originals"])
def test_masks_stand_on_all_slices_with_consecutive_ids(tmp_path, nnunet, storage):
    root, labels = trees.images_and_masks(tmp_path / "photos"), write_names(tmp_path / "labels.json", LABELS)
    folder = convert(root, "segmentation", labels=labels, storage=storage)
    raw = np.asarray(Image.open(root / "masks" / "a1.png"))
    assert set(np.unique(raw)) == {0, 1, 7, 255}
    expected = np.select([raw == 1, raw == 7, raw == 255], [1, 2, 3], 0)
    found = label_map(folder, "images__a1")
    assert (found == np.stack([expected] * 3)).all()
    content = read_json(folder / "dataset.json")
    assert content["labels"] == {"background": 0, "cat": 1, "bird": 2, "ignore": 3}
    assert "classes" not in content[NATURAL_KEY]
    assert (folder / "imagesTr").is_dir() == (storage == "volumes")
    assert ImageIndex.read(folder / INDEX).row("images__a1").label == ""


def test_ignore_is_a_label_only_where_it_occurs(tmp_path, nnunet):
    root = trees.images_and_masks(tmp_path / "photos")
    for path in (root / "masks").iterdir():
        trees.save(path, np.full(trees.SIZE, 7, np.uint8))
    folder = convert(root, "segmentation", labels=write_names(tmp_path / "labels.json", LABELS))
    assert read_json(folder / "dataset.json")["labels"] == {"background": 0, "cat": 1, "bird": 2}


@pytest.mark.parametrize("kind", ["1", "L", "P", "I;16", "grey as RGB"])
def test_masks_of_every_kind_give_their_numbers(tmp_path, nnunet, kind):
    root = trees.images_and_masks(tmp_path / "photos", count=2)
    values = (grey_ramp() % 2).astype(np.uint8)
    images = {
        "1": Image.fromarray(values.astype(bool)),
        "L": Image.fromarray(values),
        "P": trees.palette(values),
        "I;16": Image.fromarray(values.astype(np.uint16) * 300),
        "grey as RGB": Image.fromarray(values[..., None].repeat(3, axis=2)),
    }
    for path in (root / "masks").iterdir():
        trees.save(path, images[kind])
    labels = write_names(tmp_path / "labels.json", {"background": 0, "cat": [1, 300]})
    assert (label_map(convert(root, "segmentation", labels=labels), "images__a0") == values).all()


def test_nothing_names_the_values_of_masks(tmp_path, nnunet):
    root = trees.images_and_masks(tmp_path / "photos")
    with pytest.raises(ValueError, match=r"values 0, 1, 7, 255; name all values with --labels"):
        convert(root, "segmentation")


def test_masks_of_colours_are_refused(tmp_path, nnunet):
    root = trees.images_and_masks(tmp_path / "photos")
    for path in (root / "masks").iterdir():
        trees.save(path, trees.picture(5))
    with pytest.raises(ValueError, match=r"stores colours.*not supported"):
        convert(root, "segmentation", labels=write_names(tmp_path / "labels.json", LABELS))


def test_bad_masks_are_quarantined(tmp_path, nnunet):
    root = trees.images_and_masks(tmp_path / "photos", count=7)
    masks = root / "masks"
    trees.save(masks / "a0.png", np.full(trees.SIZE, 9, np.uint8))
    trees.save(masks / "a1.png", np.zeros((16, 12), np.uint8))
    (masks / "a2.png").unlink()
    shutil.copy(masks / "a3.png", masks / "a3.gif")
    (masks / "a4.png").write_bytes(b"x")
    trees.save(masks / "orphan.png", np.zeros(trees.SIZE, np.uint8))
    lines: list[str] = []
    folder = convert(root, "segmentation", lines, labels=write_names(tmp_path / "labels.json", LABELS))
    reasons = {case[-1]: reason for case, reason in read_json(folder / "quarantine.json").items()}
    assert set(reasons) == set("01234")
    assert "values without a name: 9; known are 0, 1, 7, 255" in reasons["0"]
    assert "mask has 12 x 16 pixels, its image 16 x 12" in reasons["1"]
    assert "has no mask at masks/a2.*" in reasons["2"]
    assert "has several masks" in reasons["3"]
    assert "cannot be read" in reasons["4"]
    assert any("1 masks belong to no image" in line for line in lines)


def test_mask_of_a_turned_image_fits_whether_it_was_drawn_before_or_after(tmp_path, nnunet):
    root = trees.images_and_masks(tmp_path / "photos", count=2)
    upright = np.asarray(Image.open(root / "masks" / "a0.png"))
    for name in ("a0", "a1", "square"):
        trees.save_turned(root / "images" / f"{name}.png", trees.picture(1, (16, 16) if name == "square" else (12, 16)))
    trees.save(root / "masks" / "a1.png", trees.palette(np.rot90(upright)))
    trees.save(root / "masks" / "square.png", np.zeros((16, 16), np.uint8))
    folder = convert(root, "segmentation", labels=write_names(tmp_path / "labels.json", LABELS))
    index = ImageIndex.read(folder / INDEX)
    assert (volume(folder, "images__a0") == trees.picture(1).transpose(2, 0, 1)).all()
    assert (label_map(folder, "images__a0") == label_map(folder, "images__a1")).all()
    assert label_map(folder, "images__a1").shape == (3, 12, 16)
    assert index.row("images__a0").note == "rotated by EXIF"
    assert index.row("images__a1").note == "rotated by EXIF; mask turned along"
    assert "before or after" in read_json(folder / "quarantine.json")["images__square"]


def test_parts_of_images_and_masks(tmp_path, nnunet):
    root = tmp_path / "photos"
    for part in ("train", "val"):
        for i in range(2):
            trees.save(root / "images" / part / f"{i}.jpg", trees.picture(i))
            trees.save(root / "masks" / part / f"{i}.png", np.eye(*trees.SIZE, dtype=np.uint8))
    labels = write_names(tmp_path / "labels.json", {"background": 0, "line": 1})
    index = ImageIndex.read(convert(root, "segmentation", labels=labels) / INDEX)
    assert list(zip(index.cases.tolist(), index.parts.tolist(), strict=True)) == [
        (f"images__{part}__{i}", part) for part in ("train", "val") for i in range(2)
    ]


# ---- COCO -----------------------------------------------------------------------------------------------------------


def test_coco_objects_are_drawn_small_on_large_and_crowds_are_ignored(tmp_path, nnunet):
    root, _ = trees.coco(tmp_path)
    folder = convert(root, "segmentation")
    content = read_json(folder / "dataset.json")
    assert content["labels"] == {"background": 0, "class_background": 1, "dog": 2, "ignore": 3}
    assert content[NATURAL_KEY]["layout"] == "coco"
    expected = np.zeros(trees.SIZE, np.uint8)
    expected[:, :4] = 1
    expected[2:8, 5:9] = 1
    expected[4:6, 6:8] = 2
    expected[:3, 13:] = 3
    assert (label_map(folder, "images__0") == np.stack([expected] * 3)).all()
    assert not label_map(folder, "images__1").any()


def test_changed_annotations_redo_only_their_image(tmp_path, nnunet):
    root, content = trees.coco(tmp_path)
    folder = convert(root, "segmentation")
    before = (folder / "labelsTr" / "images__0.nii.gz").stat().st_mtime_ns
    content["annotations"].append({**content["annotations"][0], "id": 9, "image_id": 71})
    write_json(root / "annotations" / "objects.json", content)
    lines: list[str] = []
    convert(root, "segmentation", lines)
    assert any(line.startswith("1 converted now") for line in lines)
    assert (folder / "labelsTr" / "images__0.nii.gz").stat().st_mtime_ns == before
    assert (label_map(folder, "images__1") == 2).sum() == 3 * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("categories"), "no list of categories"),
        (lambda c: c["annotations"][0].update(category_id=99), "category 99"),
        (lambda c: c["annotations"][0].pop("image_id"), "KeyError at 'image_id'"),
    ],
)
def test_unusable_coco_files_are_refused(tmp_path, nnunet, change, message):
    root, content = trees.coco(tmp_path)
    change(content)
    write_json(root / "annotations" / "objects.json", content)
    with pytest.raises(ValueError, match=message):
        convert(root, "segmentation")


def test_undrawable_objects_and_missing_images_are_quarantined(tmp_path, nnunet):
    root, content = trees.coco(tmp_path)
    for number in (2, 3, 4):
        shutil.copy(root / "images" / "0.png", root / "images" / f"{number}.png")
        content["images"].append({"id": number, "file_name": f"{number}.png", "height": 12, "width": 16})
    content["annotations"] += [
        {"image_id": 2, "category_id": 3, "segmentation": []},
        {"image_id": 3, "category_id": 3, "segmentation": {"size": [3, 3], "counts": [0, 9]}},
    ]
    (root / "images" / "4.png").unlink()
    trees.save(root / "images" / "unnamed.png", trees.picture(1))
    write_json(root / "annotations" / "objects.json", content)
    lines: list[str] = []
    quarantine = read_json(convert(root, "segmentation", lines) / "quarantine.json")
    assert set(quarantine) == {"images__2", "images__3", "images__4"}
    assert "cannot be drawn" in quarantine["images__2"]
    assert "size [3, 3]" in quarantine["images__3"]
    assert "does not exist" in quarantine["images__4"]
    assert any("1 images are not named by annotations/objects.json" in line for line in lines)


# ---- known datasets -------------------------------------------------------------------------------------------------


def pascal(root: Path) -> None:
    for name in ("2007_1", "2007_2", "2007_3"):
        trees.save(root / "JPEGImages" / f"{name}.jpg", trees.picture(1))
        trees.save(root / "SegmentationClass" / f"{name}.png", trees.palette(np.full(trees.SIZE, 255)))
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_1\n2007_9\n", encoding="utf-8")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_3\n", encoding="utf-8")


def ade(root: Path) -> None:
    for part in ("training", "validation"):
        trees.save(root / "images" / part / f"ADE_{part}_1.jpg", trees.picture(1))
        trees.save(root / "annotations" / part / f"ADE_{part}_1.png", np.full(trees.SIZE, 150, np.uint8))


def pet(root: Path) -> None:
    for name in ("great_pyrenees_1", "great_pyrenees_12", "Bengal_2"):
        trees.save(root / "images" / f"{name}.jpg", trees.picture(1))
        mask = np.full(trees.SIZE, 2, np.uint8)
        mask[:4], mask[4] = 1, 3
        trees.save(root / "annotations" / "trimaps" / f"{name}.png", mask)


def imagenet(root: Path) -> None:
    for part in ("train", "val"):
        for wnid in ("n01440764", "n01443537"):
            trees.save(root / part / wnid / f"{wnid}_{part}_1.JPEG", trees.picture(1), format="JPEG")


def coco2017(root: Path) -> None:
    trees.coco(root)
    (root / "images").rename(root / "val2017")
    (root / "annotations" / "objects.json").rename(root / "annotations" / "instances_val2017.json")


@pytest.mark.parametrize(
    ("make", "name", "task", "cases", "parts", "label"),
    [
        (pascal, "pascal_voc2012", "segmentation", ["JPEGImages__2007_1", "JPEGImages__2007_3"], ["train", "val"], 21),
        (
            ade,
            "ade20k",
            "segmentation",
            ["images__training__ADE_training_1", "images__validation__ADE_validation_1"],
            ["train", "val"],
            150,
        ),
        (pet, "oxford_iiit_pet", "segmentation", ["images__Bengal_2", "images__great_pyrenees_1"], ["", ""], 1),
        (pet, "oxford_iiit_pet", "classification", ["images__Bengal_2", "images__great_pyrenees_1"], ["", ""], 1),
        (
            imagenet,
            "imagenet",
            "classification",
            ["train__n01440764__n01440764_train_1", "train__n01443537__n01443537_train_1"],
            ["train", "train"],
            1,
        ),
        (coco2017, "coco2017", "segmentation", ["val2017__0", "val2017__1"], ["val", "val"], 1),
    ],
)
def test_known_datasets_are_recognised(tmp_path, nnunet, make, name, task, cases, parts, label):
    root = tmp_path / "photos"
    root.mkdir()
    make(root)
    folder = convert(root, task)
    content, index = read_json(folder / "dataset.json"), ImageIndex.read(folder / INDEX)
    assert content[NATURAL_KEY]["layout"] == name
    assert content["citation"] == find_layout(name).citation
    assert index.cases.tolist()[:2] == cases
    assert index.parts.tolist()[:2] == parts
    assert label_map(folder, cases[0])[2, 0, 0] == label
    if name == "pascal_voc2012":
        assert read_json(folder / "quarantine.json") == {
            "JPEGImages__2007_9": "JPEGImages/2007_9 is listed in ImageSets/Segmentation/train.txt "
            "but lies not in JPEGImages"
        }
        assert content["labels"]["ignore"] == 21
    if task == "segmentation" and name == "oxford_iiit_pet":
        assert content["labels"] == {"background": 0, "pet": 1, "ignore": 2}
        assert (np.unique(label_map(folder, cases[0])) == [0, 1, 2]).all()
    if task == "classification" and name == "oxford_iiit_pet":
        assert content[NATURAL_KEY]["classes"] == ["Bengal", "great_pyrenees"]


def test_layout_files_are_complete_and_a_users_own_is_read(tmp_path, nnunet):
    assert set(known_layouts()) == {"ade20k", "coco2017", "imagenet", "oxford_iiit_pet", "pascal_voc2012"}
    for layout in known_layouts().values():
        assert layout.citation
        assert layout.licence
        assert layout.url
        assert layout.recognised_by
    trees.save(tmp_path / "photos" / "red-1.png", trees.picture(1))
    trees.save(tmp_path / "photos" / "blue-1.png", trees.picture(2))
    own = tmp_path / "own.yaml"
    own.write_text(
        "name: own\nclassification:\n  parts: [{images: '*'}]\n  label: '^(?P<class>[a-z]+)-'\n", encoding="utf-8"
    )
    content = read_json(convert(tmp_path / "photos", layout=str(own)) / "dataset.json")
    assert content[NATURAL_KEY]["classes"] == ["blue", "red"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x", "classification', 'segmentation' or both"),
        ("name: x\nclasification: 1", "unknown key 'clasification'"),
        ("name: x\nclassification: {parts: [{images: a/*}], label: abc}", "no group"),
        ("name: x\nsegmentation: {parts: [{images: a/*}]}", "either 'mask' or 'coco'"),
        ("name: x\nsegmentation: {parts: [{images: ../a/*, mask: 'b/{name}.png'}]}", "must lie below"),
        ("name: [", "not readable as YAML"),
    ],
)
def test_faulty_layout_files_are_refused(tmp_path, text, message):
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_layout(path)


# ---- going on -------------------------------------------------------------------------------------------------------


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "imagesTr").iterdir()}


def test_a_second_run_redoes_nothing_and_a_changed_image_only_itself(tmp_path, nnunet):
    root, lines = trees.folders_per_class(tmp_path / "photos"), []
    folder = convert(root)
    before = stamps(folder)
    convert(root, lines=lines)
    assert stamps(folder) == before
    assert any(line.startswith("0 converted now") for line in lines)
    trees.save(root / "cat" / "cat_1.png", trees.picture(77))
    convert(root)
    assert [name for name, stamp in stamps(folder).items() if stamp != before[name]] == ["cat__cat_1_0000.nii.gz"]
    assert (volume(folder, "cat__cat_1") == trees.picture(77).transpose(2, 0, 1)).all()


def test_lost_outputs_are_made_again_and_gone_images_lose_theirs(tmp_path, nnunet):
    root = trees.folders_per_class(tmp_path / "photos")
    folder = convert(root)
    (folder / "labelsTr" / "cat__cat_0.nii.gz").unlink()
    (folder / "imagesTr" / ".partial-x-cat__cat_0_0000.nii.gz").write_bytes(b"half")
    (root / "dog" / "dog_2.png").unlink()
    convert(root)
    assert sorted(stamps(folder)) == [
        f"{name}__{name}_{i}_0000.nii.gz" for name, n in (("cat", 3), ("dog", 2)) for i in range(n)
    ]
    assert (label_map(folder, "cat__cat_0") == 1).all()
    assert len(list((folder / "labelsTr").iterdir())) == 5
    assert read_json(folder / "dataset.json")["numTraining"] == len(ImageIndex.read(folder / INDEX)) == 5


def test_further_images_leave_the_others_alone_also_when_the_number_of_shards_changes(tmp_path, nnunet, monkeypatch):
    from nnunet_pretrain.conversion.natural_images import shards

    root = trees.folders_per_class(tmp_path / "photos", count=4)
    monkeypatch.setattr(shards, "IMAGES_PER_SHARD", 4)
    folder = convert(root)
    before, records = stamps(folder), sorted(path.name for path in (folder / RECORDS).glob("*-of-*"))
    assert {name.split("-of-")[1] for name in records} == {"000002.json"}
    for i in range(9):
        trees.save(root / "cat" / f"more_{i}.png", trees.picture(i))
    lines = []
    convert(root, lines=lines)
    assert any(line.startswith("9 converted now") for line in lines)
    assert {name: stamp for name, stamp in stamps(folder).items() if name in before} == before
    assert {path.name.split("-of-")[1] for path in (folder / RECORDS).glob("*-of-*")} == {"000008.json"}


def test_number_of_shards():
    assert [shards_for(count) for count in (0, 1, 256, 257, 513, 1_281_167)] == [1, 1, 1, 2, 4, 8192]


def test_a_damaged_record_is_made_again(tmp_path, nnunet):
    root = trees.folders_per_class(tmp_path / "photos")
    folder = convert(root)
    record_path(folder, 0, 1).write_text('{"images": {"cat__cat_0": ', encoding="utf-8")
    lines = []
    convert(root, lines=lines)
    assert any(line.startswith("6 converted now") for line in lines)


def test_a_killed_run_goes_on_where_it_was(tmp_path, nnunet):
    root = tmp_path / "photos"
    for name in ("cat", "dog"):
        trees.folders_per_class(root, (name,), count=1)
        for i in range(700):
            shutil.copy(root / name / f"{name}_0.png", root / name / f"copy_{i}.png")
    command = [sys.executable, "-m", "nnunet_pretrain", "convert_2d", str(root), "-d", "920", "-n", "Photos"]
    process = subprocess.Popen(
        [*command, "--task", "classification", "-np", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    folder = nnunet / "nnUNet_raw" / "Dataset920_Photos"
    deadline = time.monotonic() + 600
    while not list((folder / RECORDS).glob("[0-9]*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "dataset.json").exists()
    lines: list[str] = []
    convert(root, lines=lines)
    converted = next(int(line.split()[0]) for line in lines if "converted now" in line)
    assert 0 < converted < 1402
    assert read_json(folder / "dataset.json")["numTraining"] == len(list((folder / "imagesTr").iterdir())) == 1402
    assert not list(folder.rglob(".partial-*"))


def test_two_processes_give_the_same_as_one(tmp_path, nnunet, monkeypatch):
    from nnunet_pretrain.conversion.natural_images import shards

    monkeypatch.setattr(shards, "IMAGES_PER_SHARD", 2)
    root = trees.folders_per_class(tmp_path / "photos")
    contents = []
    for processes in (1, 2):
        folder = convert(root, num_processes=processes)
        contents.append(
            {
                path.name: path.read_bytes()
                for path in folder.rglob("*")
                if path.parent.name != RECORDS and path.is_file()
            }
        )
        shutil.rmtree(folder)
    assert contents[0] == contents[1]


def test_another_use_of_the_same_folder_is_refused(tmp_path, nnunet):
    root = trees.folders_per_class(tmp_path / "photos")
    folder = convert(root)
    with pytest.raises(ValueError, match="made with --storage volumes, not originals"):
        convert(root, storage="originals")
    other = trees.folders_per_class(tmp_path / "others", ("a", "b"))
    with pytest.raises(ValueError, match="none of which is in"):
        convert(other)
    moved = root.rename(tmp_path / "moved")
    before, lines = stamps(folder), []
    convert(moved, lines=lines)
    assert stamps(folder) == before
    assert read_json(folder / "dataset.json")[NATURAL_KEY]["root"] == str(moved)
    shutil.rmtree(folder / RECORDS)
    with pytest.raises(ValueError, match="not made by `nnunet_pretrain convert_2d`"):
        convert(moved)


# ---- the index ------------------------------------------------------------------------------------------------------


def test_index_reads_what_it_wrote(tmp_path):
    rows = [
        NaturalImage(
            f"case_{i}", f'folder, "{i}"/ä\udcff.jpg', "dög" if i % 2 else "", "val", 375, 500 + i, 99.5, 60.25, n
        )
        for i, n in enumerate(["", "grey; 16 bit", "grey"])
    ]
    ImageIndex.from_rows(reversed(rows)).write(tmp_path / INDEX)
    index = ImageIndex.read(tmp_path / INDEX)
    assert list(index) == rows
    assert index.cases.tolist() == [row.case for row in rows]
    assert index.labels.tolist() == ["", "dög", ""]
    assert index.shapes.tolist() == [[375, 500], [375, 501], [375, 502]]
    assert index.row("case_1") == rows[1]
    assert "case_2" in index
    for unknown in ("case_", "case_3", "a longer name than all of them"):
        assert unknown not in index
        with pytest.raises(ValueError, match="not in the index"):
            index.row(unknown)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,file\n", "has the columns case,file"),
        ("case,file,class,part,height,width,mean,std,note\na,b,c,,x,5,1,1,\n", "around line 2.*invalid literal"),
        ("case,file,class,part,height,width,mean,std,note\na,b\n", "2 fields"),
        ("case,file,class,part,height,width,mean,std,note\n" + 2 * "a,b,c,,9,9,1,1,\n", "stands twice"),
    ],
)
def test_damaged_index_is_refused(tmp_path, text, message):
    (tmp_path / INDEX).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        ImageIndex.read(tmp_path / INDEX)
    with pytest.raises(FileNotFoundError, match="convert_2d"):
        ImageIndex.read(tmp_path / "nothing.csv")


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/nowhere"], "is not a folder"),
        (["{}", "--layout", "nothing"], "unknown layout 'nothing'"),
        (["{}", "--layout", "ade20k"], "has no classification"),
        (["{}", "--layout", "{}/own.yaml"], "not found"),
        (["{}", "--labels", "{}/labels.json"], "leave it out"),
        (["{}", "-np", "0"], "-np must be at least 1"),
        (["{}", "-n", "a b"], "dataset name"),
        (["{}", "-d", "1000"], "between 1 and 999"),
    ],
)
def test_user_errors_are_one_line(tmp_path, nnunet, capsys, arguments, message):
    root = trees.folders_per_class(tmp_path / "photos")
    words = [word.format(root) for word in arguments]
    words += [w for option, w in (("-d", "-d=920"), ("-n", "-n=Photos")) if option not in words]
    assert main(["convert_2d", *words, "--task", "classification"]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected names and values"),
        ({"background": 0, "cat": [1, [0, 0, 0]]}, "colours are not supported"),
        ({"background": 0, "cat": 0}, "names value 0 twice"),
        ({"background": 0, "ignore": 1}, "no value of the masks is a structure"),
    ],
)
def test_faulty_names_of_values_are_refused(tmp_path, nnunet, content, message):
    root = trees.images_and_masks(tmp_path / "photos")
    with pytest.raises(ValueError, match=message):
        convert(root, "segmentation", labels=write_names(tmp_path / "labels.json", content))


def test_help_and_missing_pycocotools(tmp_path, nnunet, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        main(["convert_2d", "--help"])
    assert "--storage" in capsys.readouterr().out
    root, _ = trees.coco(tmp_path)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(ValueError, match=r'pip install "nnunet-pretrain\[coco\]"'):
        convert(root, "segmentation")


def test_ids_of_a_thousand_classes_are_written_in_16_bits(tmp_path, nnunet):
    from nnunet_pretrain.conversion.natural_images.image import Rules, write_image
    from nnunet_pretrain.conversion.natural_images.listing import Photograph

    rules = Rules("volumes", {f"class{i}": i for i in range(1, 1001)})
    path = trees.save(tmp_path / "a.png", trees.picture(1))
    write_image(Photograph("a", "a.png", "class1000"), tmp_path, rules, decode(path), None)
    found = label_map(tmp_path, "a")
    assert found.dtype == np.uint16
    assert (found == 1000).all()
