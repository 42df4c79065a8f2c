"""Telling from the folder of a dataset of natural images how it is laid out."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from nnunet_pretrain.conversion.natural_images.layout import (
    NAME,
    Classes,
    Images,
    Layout,
    Masks,
    PartName,
    find_layout,
    known_layouts,
)
from nnunet_pretrain.conversion.natural_images.listing import is_image, visible

PARTS: dict[str, PartName | None] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": None,
    "testing": None,
}
"""What folders of parts are called; None for those that are left out."""

FOLDER_PER_CLASS = "folder_per_class"
IMAGES_AND_MASKS = "images_and_masks"
COCO = "coco"


def choose_layout(root: Path, task: str, wanted: str | None, report: Callable[[str], None]) -> Layout:
    """Returns the layout of a folder.

    Args:
        root: The folder.
        task: `classification` or `segmentation`.
        wanted: A layout's name or file, or None to recognise it by what lies there.
        report: Called with a line that says which was chosen, and lines on what is left out.

    Raises:
        FileNotFoundError: The layout file is missing.
        ValueError: The layout is unknown or not for this task, or the folder is like no layout, or like several.
    """
    layout = find_layout(wanted) if wanted else _recognised(root)
    if layout is None:
        layout = _folder_per_class(root, report) if task == "classification" else _with_masks(root, report)
        report(f"layout: {layout.name} ({layout.title})")
    else:
        report(
            f"layout: {layout.name}, {'as asked for' if wanted else 'recognised by ' + ', '.join(layout.recognised_by)}"
        )
    if task not in layout.tasks:
        raise ValueError(
            f"layout {layout.name} has no {task}, only {layout.tasks[0]}; use --task {layout.tasks[0]}, "
            f"or say with --layout FILE.yaml where the labels are"
        )
    return layout


def _recognised(root: Path) -> Layout | None:
    found = [
        layout
        for layout in known_layouts().values()
        if layout.recognised_by and all(next(root.glob(path), None) for path in layout.recognised_by)
    ]
    if len(found) > 1:
        raise ValueError(
            f"{root} looks like {' and '.join(layout.name for layout in found)}; choose one of them with --layout"
        )
    return found[0] if found else None


def _folder_per_class(root: Path, report: Callable[[str], None]) -> Layout:
    folders = _folders(root)
    parts = _part_folders(root, report) if _is_split(root, folders) else {}
    if not parts:
        _refuse_what_is_no_class(root, folders)
    if not parts:
        label = "^(?P<class>[^/]+)/"
        images: tuple[Images, ...] = (Images(images="*/**/*"),)
        title = "a folder per class"
    else:
        others = [name for name in folders if name.lower() not in PARTS]
        if others:
            report(f"folders beside {', '.join(parts)} are left out: {', '.join(others[:5])}")
        label = f"^(?:{'|'.join(parts)})/(?P<class>[^/]+)/"
        images = tuple(Images(images=f"{name}/**/*", part=part) for name, part in parts.items())
        title = f"a folder per class in {' and '.join(parts)}"
    return Layout(name=FOLDER_PER_CLASS, title=title, classification=Classes(parts=images, label=label))


def _is_split(root: Path, folders: list[str]) -> bool:
    """Tells whether folders are parts, not classes: one is called train, and it holds folders and no images."""
    train = [name for name in folders if PARTS.get(name.lower()) == "train"]
    return bool(train) and bool(_folders(root / train[0])) and not _images_directly_in(root / train[0])


def _refuse_what_is_no_class(root: Path, folders: list[str]) -> None:
    """Raises ValueError where folders are rather parts of a dataset, or images and their masks, than classes."""
    names = {name.lower() for name in folders}
    if {"images", "masks"} <= names:
        raise ValueError(
            f"{root} holds images/ and masks/, expected a folder per class; use --task segmentation, or give a folder "
            f"whose subfolders are classes"
        )
    words = {name: set(re.split(r"[^a-z]+", name.lower())) & set(PARTS) for name in folders}
    parts = [name for name in folders if words[name]]
    if len(set().union(*words.values())) > 1 and any(_folders(root / name) for name in parts):
        loose = [root / name for name in parts if _images_directly_in(root / name)]
        raise ValueError(
            f"{', '.join(parts)} in {root} look like parts of a dataset, not like classes"
            f"{f', but images lie directly in {loose[0]}' if loose else ''}; expected a folder per class in train/ and "
            f"val/ and nothing beside these folders; sort or remove what does not belong there, or say with "
            f"--layout FILE.yaml where the classes are"
        )


def _with_masks(root: Path, report: Callable[[str], None]) -> Layout:
    if not (root / "images").is_dir():
        raise ValueError(
            f"{root} holds no folder 'images'; expected images/ and masks/ with files of the same names (each may hold "
            f"train/ and val/), or images/ and one JSON of COCO annotations; or say with --layout where they lie: "
            f"{', '.join(known_layouts())}, or your own FILE.yaml"
        )
    if (root / "masks").is_dir():
        split = any(PARTS.get(name.lower()) == "train" for name in _common_folders(root / "images", root / "masks"))
        names = _part_folders(root / "images", report) if split else {}
        if split:
            _report_what_is_in_no_part(root / "images", report)
        parts = tuple(
            Images(images=f"images/{name}/**/*", mask=f"masks/{name}/{NAME}.*", part=part)
            for name, part in names.items()
        )
        whole = (Images(images="images/**/*", mask=f"masks/{NAME}.*"),)
        return Layout(name=IMAGES_AND_MASKS, title="images/ and masks/", segmentation=Masks(parts=parts or whole))
    found = [path for folder in (root, root / "annotations") for path in sorted(folder.glob("[!.]*.json"))]
    if len(found) != 1:
        names_found = ", ".join(path.name for path in found) or "none"
        raise ValueError(
            f"{root} holds images/ but no masks/; then one JSON of COCO annotations is expected there or in "
            f"annotations/, found: {names_found}; say with --layout FILE.yaml which belongs to which images"
        )
    path = found[0].relative_to(root).as_posix()
    segmentation = Masks(parts=(Images(images="images/**/*", coco=path),))
    return Layout(name=COCO, title=f"images/ and {path}", segmentation=segmentation)


def _report_what_is_in_no_part(folder: Path, report: Callable[[str], None]) -> None:
    others = [f"{name}/" for name in _folders(folder) if name.lower() not in PARTS]
    others += ["images that lie directly there"] if _images_directly_in(folder) else []
    if others:
        report(f"left out, as {folder} is split into parts: {', '.join(others[:5])}")


def _folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if visible(path.name) and path.is_dir())


def _common_folders(first: Path, second: Path) -> list[str]:
    return sorted(set(_folders(first)) & set(_folders(second)))


def _images_directly_in(folder: Path) -> bool:
    return any(is_image(path.name) and not path.is_dir() for path in folder.iterdir())


def _part_folders(folder: Path, report: Callable[[str], None]) -> dict[str, PartName]:
    """Returns the folders that are parts; those of a test set are named to the user and left out."""
    names = [name for name in _folders(folder) if name.lower() in PARTS]
    tests = [name for name in names if PARTS[name.lower()] is None]
    if tests:
        report(f"left out as a test set: {', '.join(str(folder / name) for name in tests)}")
    parts = {name: PARTS[name.lower()] for name in names}
    return {name: part for name, part in parts.items() if part is not None}
