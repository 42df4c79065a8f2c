"""Small folders of images as public datasets lay them out, and every kind of image file people keep."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (12, 16)  # height, width


def picture(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Returns an image without any symmetry, shape (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray | Image.Image, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)
    return path


def save_turned(path: Path, upright: np.ndarray, orientation: int = 6) -> Path:
    """Saves an image whose stored pixels have to be turned by 90 degrees, as of a camera held upright."""
    image = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
    exif = image.getexif()
    exif[0x0112] = orientation
    return save(path, image, exif=exif)


def palette(indices: np.ndarray) -> Image.Image:
    """Returns a palette image whose colours have nothing to do with its indices."""
    image = Image.fromarray(indices.astype(np.uint8)).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([value for i in range(256) for value in ((i * 37) % 256, (i * 91 + 5) % 256, 255 - i)])
    return image


def folders_per_class(root: Path, classes=("cat", "dog"), count: int = 3) -> Path:
    for number, name in enumerate(classes):
        for i in range(count):
            save(root / name / f"{name}_{i}.png", picture(10 * number + i))
    return root


def images_and_masks(root: Path, count: int = 3) -> Path:
    for i in range(count):
        save(root / "images" / f"a{i}.png", picture(i))
        mask = np.zeros(SIZE, np.uint8)
        mask[2:6, 3:9], mask[0, 0], mask[8:, 12:] = 1, 255, 7
        save(root / "masks" / f"a{i}.png", palette(mask))
    return root


def coco(root: Path) -> tuple[Path, dict]:
    """Writes two images with a polygon, both kinds of run lengths, a crowd, and a small object on a large one."""
    from pycocotools import mask as runs

    height, width = SIZE
    for i in range(2):
        save(root / "images" / f"{i}.png", picture(i))
    left = np.zeros(SIZE, np.uint8)
    left[:, :4] = 1
    corner = np.zeros(SIZE, np.uint8)
    corner[:3, 13:] = 1
    columns = [int(value) for value in left.T.reshape(-1)]
    assert columns == [1] * (4 * height) + [0] * ((width - 4) * height)
    compressed = runs.encode(np.asfortranarray(corner))
    compressed = {"size": compressed["size"], "counts": compressed["counts"].decode()}
    square = [[5, 2, 9, 2, 9, 8, 5, 8]]
    objects = [
        # The small one comes first: order in the file does not decide which is seen.
        {"category_id": 18, "segmentation": [[6, 4, 8, 4, 8, 6, 6, 6]], "iscrowd": 0},
        {"category_id": 3, "segmentation": square, "iscrowd": 0},
        {"category_id": 3, "segmentation": {"size": [height, width], "counts": [0, 48, 144]}, "iscrowd": 0},
        {"category_id": 18, "segmentation": compressed, "iscrowd": 1},
    ]
    content = {
        "images": [{"id": 70 + i, "file_name": f"{i}.png", "height": height, "width": width} for i in range(2)],
        "annotations": [{"id": 1 + i, "image_id": 70, **annotation} for i, annotation in enumerate(objects)],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "background"}],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "objects.json").write_text(json.dumps(content), encoding="utf-8")
    return root, content
