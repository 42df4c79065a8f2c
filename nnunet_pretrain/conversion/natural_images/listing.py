"""Finding the images of a dataset: which there are, and of each its class or its mask."""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from nnunet_pretrain.conversion.natural_images.coco import CocoFile, read_coco
from nnunet_pretrain.conversion.natural_images.layout import NAME, Classes, Images, Layout, Masks, fixed_folder
from nnunet_pretrain.conversion.natural_images.names import case_names, safe_classes

_KINDS = "jpg jpeg jpe jfif png bmp gif tif tiff webp ppm pgm pbm pnm jp2 j2k tga mpo avif"
SUFFIXES = frozenset(f".{kind}" for kind in _KINDS.split())
"""Endings of files that are taken for images, in lower case."""

_NAMED = 5


class Photograph(NamedTuple):
    """One image to convert.

    Attributes:
        case: Name of its case.
        file: Its path below the root, with forward slashes.
        label: Its class, or empty.
        part: `train`, `val` or empty.
        mask: Path of its mask below the root, or None.
        drawing: Its annotated objects as JSON (see `coco`), or None.
        fault: Why it cannot be used, as far as names tell; else empty.
    """

    case: str
    file: str
    label: str = ""
    part: str = ""
    mask: str | None = None
    drawing: bytes | None = None
    fault: str = ""


@dataclass
class Listing:
    """What lies in a dataset's folder.

    Attributes:
        photographs: Its images, sorted by file.
        classes: Names of all classes, sorted; empty for masks.
        values: Name of every value of a mask, or of every category; None if nothing names them.
        remarks: Lines for the user: what is left out.
    """

    photographs: list[Photograph]
    classes: list[str] = field(default_factory=list)
    values: dict[int, str] | None = None
    remarks: list[str] = field(default_factory=list)


def visible(name: str) -> bool:
    """Tells whether a file or folder counts: it is not hidden, and no leftover of an archive made on a Mac."""
    return not name.startswith(".") and name != "__MACOSX"


def is_image(name: str) -> bool:
    """Tells by its ending whether a file is taken for an image."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def list_photographs(root: Path, layout: Layout, task: str) -> Listing:
    """Lists the images of a folder.

    Args:
        root: The folder.
        layout: How it is laid out.
        task: `classification` or `segmentation`.

    Raises:
        ValueError: There are fewer than two images or classes, a class has none, or an annotation file is not usable.
        FileNotFoundError: There is no image at all, or a file that the layout names is missing.
    """
    found = layout.classification if task == "classification" else layout.segmentation
    assert found is not None, "choose_layout checks the task"
    walk = _Walk(root)
    rows = [row for part in _present(root, found.parts, walk) for row in walk.images(part)]
    if not rows:
        raise FileNotFoundError(
            f"no image of layout {layout.name} in {root}; expected {' or '.join(p.images for p in found.parts)}, "
            f"ending in one of {', '.join(sorted(SUFFIXES))}"
        )
    rows.sort(key=lambda row: row.file)
    listing = _classified(rows, found, walk) if isinstance(found, Classes) else _masked(rows, found, walk)
    names = case_names([row.file for row in listing.photographs])
    listing.photographs = [row._replace(case=case) for row, case in zip(listing.photographs, names, strict=True)]
    listing.remarks = [*walk.remarks, *listing.remarks]
    if len(listing.photographs) < 2:
        raise ValueError(f"{root} holds {len(listing.photographs)} image, expected at least 2")
    return listing


def _present(root: Path, parts: Sequence[Images], walk: _Walk) -> list[Images]:
    """Returns the parts whose folder is there; people fetch the small part of a large dataset."""
    there = [part for part in parts if (root / part.folder).is_dir()]
    missing = [part.folder for part in parts if part not in there]
    if missing and there:
        walk.remarks.append(f"not there, and so left out: {', '.join(missing)}")
    return there


class _Walk:
    """Reads the folders of a dataset and remembers what it left out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.remarks: list[str] = []
        self.folders: set[str] = set()
        self.values: dict[int, str] = {}

    def files(self, folder: str) -> Iterator[str]:
        """Yields the visible files below a folder, relative to the root; follows links, but none in circles."""
        seen: set[str] = set()
        for path, folders, names in os.walk(self.root / folder, onerror=_refuse, followlinks=True):
            real = os.path.realpath(path)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(filter(visible, folders))
            relative = Path(path).relative_to(self.root).as_posix()
            prefix = "" if relative == "." else f"{relative}/"
            self.folders.update(f"{prefix}{name}/" for name in folders)
            yield from (prefix + name for name in names if visible(name))

    def images(self, part: Images) -> Iterator[Photograph]:
        """Yields the images of a part, with their masks or drawings."""
        if part.coco is not None:
            yield from self._annotated(part, read_coco(self.root / part.coco))
            return
        listed = self._listed(part)
        masks = _MaskFinder(self, part.mask) if part.mask else None
        for file in self._matching(part):
            name = _name_below(file, part.folder)
            if listed is None or listed.pop(name, None) is not None:
                mask, fault = masks.find(name) if masks else (None, "")
                yield Photograph("", file, part=part.part, mask=mask, fault=fault)
        for name in listed or ():
            fault = f"is listed in {part.names} but lies not in {part.folder}"
            yield Photograph("", f"{part.folder}/{name}", part=part.part, fault=fault)
        if masks and listed is None and masks.unused:
            some = ", ".join(sorted(masks.unused)[:_NAMED])
            self.remarks.append(f"{len(masks.unused)} masks belong to no image and are left out: {some}")

    def _matching(self, part: Images) -> Iterator[str]:
        pattern, others, elsewhere = re.compile(_expression(part.images)), Counter[str](), []
        for file in self.files(part.folder):
            if not is_image(file):
                others[PurePosixPath(file).suffix.lower() or "(none)"] += 1
            elif pattern.fullmatch(file):
                yield file
            else:
                elsewhere.append(file)
        where = part.folder or "the folder"
        if others:
            kinds = ", ".join(f"{suffix} {count}" for suffix, count in others.most_common(_NAMED))
            self.remarks.append(f"{others.total()} files in {where} do not end like images and are left out: {kinds}")
        if elsewhere:
            some = ", ".join(sorted(elsewhere)[:_NAMED])
            self.remarks.append(f"{len(elsewhere)} images in {where} do not lie at {part.images}: {some}")

    def _listed(self, part: Images) -> dict[str, bool] | None:
        if part.names is None:
            return None
        path = self.root / part.names
        if not path.is_file():
            raise FileNotFoundError(f"{path} not found; the layout takes the names of the images from it")
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        return {line.split()[0]: True for line in lines if line.strip()}

    def _annotated(self, part: Images, coco: CocoFile) -> Iterator[Photograph]:
        if self.values and self.values != coco.names:
            raise ValueError(f"{self.root / str(part.coco)} names other categories than the files before it")
        self.values = coco.names
        on_disk = set(self._matching(part))
        for name, drawing in coco.drawings.items():
            file = posixpath.normpath(posixpath.join(part.folder, name))
            if file.startswith(("/", "../")):
                raise ValueError(f"{self.root / str(part.coco)} names the image '{name}', which is not in {self.root}")
            on_disk.discard(file)
            yield Photograph("", file, part=part.part, drawing=drawing)
        if on_disk:
            some = ", ".join(sorted(on_disk)[:_NAMED])
            self.remarks.append(f"{len(on_disk)} images are not named by {part.coco} and are left out: {some}")


class _MaskFinder:
    """Finds masks by the names of their images."""

    def __init__(self, walk: _Walk, template: str) -> None:
        self.template = template
        stem, self.suffix = os.path.splitext(template)
        self.stem = stem
        self.by_stem: dict[str, list[str]] = {}
        for file in walk.files(fixed_folder(template)):
            name, suffix = os.path.splitext(file)
            if is_image(file) and self.suffix in (".*", suffix):
                self.by_stem.setdefault(name, []).append(file)
        self.unused = set(self.by_stem)

    def find(self, name: str) -> tuple[str | None, str]:
        """Returns the mask of an image, or why there is none."""
        stem = self.stem.replace(NAME, name)
        self.unused.discard(stem)
        found = self.by_stem.get(stem, [])
        if len(found) == 1:
            return found[0], ""
        return None, f"has no mask at {stem}{self.suffix}" if not found else f"has several masks: {', '.join(found)}"


def _refuse(error: OSError) -> None:
    """Raises what `os.walk` would pass over in silence, as if the folder were empty."""
    raise ValueError(
        f"{error.filename} cannot be read: {error.strerror}; correct that, or give a folder without it"
    ) from error


def _classified(rows: Sequence[Photograph], found: Classes, walk: _Walk) -> Listing:
    pattern = re.compile(found.label)
    own = [pattern.search(row.file) for row in rows]
    # A folder that would be a class, had it an image, is a mistake that must not pass unseen.
    folders = {match["class"] for match in map(pattern.search, walk.folders) if match}
    labels = [match["class"] if match else "" for match in own]
    without = [row.file for row, label in zip(rows, labels, strict=True) if not label]
    if without:
        walk.remarks.append(f"{len(without)} images are in no class and are left out: {', '.join(without[:_NAMED])}")
    empty = sorted(folders - set(labels))
    if empty:
        raise ValueError(
            f"{len(empty)} classes have no image: {', '.join(empty[:_NAMED])}; remove or fill their folders"
        )
    learned = {label for row, label in zip(rows, labels, strict=True) if row.part == "train"}
    unlearned = sorted(set(labels) - learned - {""}) if learned else []
    if unlearned:
        raise ValueError(
            f"{len(unlearned)} classes have images for validation and none to train on: "
            f"{', '.join(unlearned[:_NAMED])}; sort these images into the folders of their classes, or take them away"
        )
    names = safe_classes(set(labels) - {""})
    if len(names) < 2:
        raise ValueError(
            f"{walk.root} holds {len(names)} class ({', '.join(names) or 'none'}), expected at least 2: a folder of "
            f"images for each, or these in train/ and val/"
        )
    labelled = [row._replace(label=names[label]) for row, label in zip(rows, labels, strict=True) if label]
    return Listing(labelled, classes=sorted(names.values()))


def _masked(rows: Sequence[Photograph], found: Masks, walk: _Walk) -> Listing:
    values = walk.values if found.is_coco else found.values
    return Listing(list(_once(rows)), values=values)


def _once(rows: Iterable[Photograph]) -> Iterator[Photograph]:
    """Yields each file once; of an image in two parts the first counts."""
    last = None
    for row in rows:
        if row.file != last:
            yield row
        last = row.file


def _name_below(file: str, folder: str) -> str:
    below = file[len(folder) + 1 :] if folder else file
    return os.path.splitext(below)[0]


def _expression(pattern: str) -> str:
    """Turns a pattern of paths into a regular expression."""
    pieces = {"**/": "(?:[^/]+/)*", "*": "[^/]*"}
    return "".join(pieces.get(piece, re.escape(piece)) for piece in re.split(r"(\*\*/|\*)", pattern))
