"""Annotations in the form of COCO: objects of each image as polygons or run lengths, drawn as one mask.

Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; run lengths go down the columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_pretrain.conversion.natural_images.names import safe_classes
from nnunet_pretrain.files import read_json

_KEYS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class CocoFile:
    """What a JSON of annotations says.

    Attributes:
        names: Name of every category by its id.
        drawings: For every image, by its file name, what `draw` takes: JSON, as it takes less memory than objects.
    """

    names: dict[int, str]
    drawings: dict[str, bytes]


def read_coco(path: Path) -> CocoFile:
    """Reads a JSON of annotations.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: It is no such file, or names an image or a category that it does not list.
    """
    content = read_json(path)
    missing = [key for key in _KEYS if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        raise ValueError(f"{path} is no COCO file of objects: it has no list of {' or '.join(missing)}")
    try:
        return _coco(content)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no COCO file of objects: {type(error).__name__} at {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _coco(content: Mapping[str, Any]) -> CocoFile:
    raw = {int(category["id"]): str(category["name"]) for category in content["categories"]}
    safe = safe_classes(set(raw.values()))
    objects: dict[Any, list[list[Any]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        category, image = int(annotation["category_id"]), annotation["image_id"]
        if category not in raw or image not in objects:
            raise ValueError(f"annotation {annotation.get('id')} is of category {category}, image {image}, not listed")
        objects[image].append([category, int(annotation.get("iscrowd", 0)), annotation["segmentation"]])
    drawings = {}
    for image in content["images"]:
        drawing = {"size": [int(image["height"]), int(image["width"])], "objects": objects.pop(image["id"])}
        name = str(image["file_name"])
        if name in drawings:
            raise ValueError(f"'images' lists {name} twice; make one entry of both, with the objects of both")
        drawings[name] = json.dumps(drawing, separators=(",", ":")).encode()
    return CocoFile({number: safe[name] for number, name in sorted(raw.items())}, drawings)


def check_installed() -> None:
    """Checks that what draws annotations is installed.

    Raises:
        ValueError: It is not.
    """
    try:
        import pycocotools.mask
    except ImportError:
        raise ValueError(
            "COCO annotations are drawn by the package 'pycocotools'; pip install \"nnunet-pretrain[coco]\""
        ) from None
    del pycocotools


def draw(drawing: bytes, ids: Mapping[int, int], ignore_id: int) -> npt.NDArray[np.uint16]:
    """Draws the objects of an image: crowds first, then the large ones, so that small ones stay visible on them.

    Args:
        drawing: One of `CocoFile.drawings`.
        ids: Stored id of every category.
        ignore_id: Stored id of crowds, in which single objects are not told apart.

    Returns:
        Shape (height, width).

    Raises:
        ValueError: An object cannot be drawn.
    """
    content = json.loads(drawing)
    height, width = content["size"]
    canvas = np.zeros((height, width), np.uint16)
    pixels = [
        (crowd, ids[category], _pixels(segmentation, height, width))
        for category, crowd, segmentation in content["objects"]
    ]
    areas = [int(np.count_nonzero(inside)) for _, _, inside in pixels]
    for position in sorted(range(len(pixels)), key=lambda i: (not pixels[i][0], -areas[i])):
        crowd, stored, inside = pixels[position]
        canvas[inside] = ignore_id if crowd else stored
    return canvas


def _pixels(segmentation: Any, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Returns which pixels an object covers, given as polygons, or as run lengths, compressed or not."""
    from pycocotools import mask

    try:
        if isinstance(segmentation, list):
            if not segmentation:
                raise ValueError("no polygon")
            runs = mask.merge(mask.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            runs = mask.frPyObjects(segmentation, height, width)
        else:
            runs = {"size": segmentation["size"], "counts": segmentation["counts"]}
        if list(runs["size"]) != [height, width]:
            raise ValueError(f"runs are of size {list(runs['size'])}")
        return np.asarray(mask.decode(runs), dtype=bool)
    except Exception as error:  # pycocotools raises bare exceptions
        raise ValueError(f"an annotated object cannot be drawn on {height} x {width} pixels: {error}") from None
