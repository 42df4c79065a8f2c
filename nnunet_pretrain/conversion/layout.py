"""Finding the cases of a source on disk."""

from __future__ import annotations

import glob
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from nnunet_pretrain.conversion.source import Layout, Source


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case.

    Attributes:
        case: Name in the merged dataset.
        image: The CT.
        labels: The multi-label file, or None.
        masks: Mask name (as in the source's `labels`) to file, empty for multi-label sources.
    """

    case: str
    image: Path
    labels: Path | None
    masks: dict[str, Path]


def find_cases(source: Source, root: Path) -> list[CaseFiles]:
    """Finds all cases of a source and pairs images with labels.

    Args:
        source: The source.
        root: Folder the user gave.

    Returns:
        The cases in alphabetical order, without the source's excluded ones.

    Raises:
        FileNotFoundError: The folder is missing, nothing in it fits the source's layouts, or an image has no label
            (or a label no image, where the source does not say that this is so by publication).
        ValueError: A mask file is not in the source's label scheme.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"source {source.name}: folder {root} not found")
    for layout in source.layouts:
        images = {match["case"]: path for path, match in _matching(root, layout.images)}
        labels = _label_files(source, root, layout)
        if images or labels:
            return _pair(source, root, layout, images, labels)
    tried = "; ".join(f"{layout.images} with {layout.labels or layout.masks}" for layout in source.layouts)
    raise FileNotFoundError(f"source {source.name}: no case found in {root}; expected {tried}")


def _matching(root: Path, template: str) -> list[tuple[Path, dict[str, str]]]:
    """Returns the files that fit a template, with what stands for {case} and {mask}; hidden files never fit."""
    pattern = re.escape(template)
    for name in ("case", "mask"):
        field = re.escape("{" + name + "}")
        pattern = pattern.replace(field, f"(?P<{name}>[^/]+)", 1).replace(field, f"(?P={name})")
    wildcard = glob.escape(template).replace("{case}", "*").replace("{mask}", "*")
    found = []
    for name in sorted(glob.glob(wildcard, root_dir=root)):
        match = re.fullmatch(pattern, Path(name).as_posix())
        if match and (root / name).is_file():
            found.append((root / name, {"case": root.name, **match.groupdict()}))
    return found


def _label_files(source: Source, root: Path, layout: Layout) -> dict[str, dict[str, Path]]:
    """Returns the label files of each case: mask name to file, or "" to the multi-label file."""
    files: dict[str, dict[str, Path]] = defaultdict(dict)
    for path, match in _matching(root, layout.masks or layout.labels or ""):
        mask = source.aliases.get(match.get("mask", ""), match.get("mask", ""))
        if mask and mask not in source.labels:
            raise ValueError(
                f"source {source.name}: mask {path} is not in its label scheme; known masks are "
                f"{', '.join(map(str, source.labels))}; add it to the source file or move it away"
            )
        files[match["case"]][mask] = path
    return files


def _pair(
    source: Source, root: Path, layout: Layout, images: dict[str, Path], labels: dict[str, dict[str, Path]]
) -> list[CaseFiles]:
    unlabelled = sorted(set(images) - set(labels))
    if unlabelled:
        where = root / (layout.labels or layout.masks or "").replace("{case}", unlabelled[0])
        raise FileNotFoundError(
            f"source {source.name}: image without label: {images[unlabelled[0]]} "
            f"({len(unlabelled)} in all); expected {where}"
        )
    without_image = sorted(set(labels) - set(images))
    if without_image and not source.labels_without_image:
        label = next(iter(labels[without_image[0]].values()))
        raise FileNotFoundError(
            f"source {source.name}: label without image: {label} ({len(without_image)} in all); "
            f"expected {root / layout.images.replace('{case}', without_image[0])}"
        )
    return [
        CaseFiles(f"{source.prefix}_{case}", image, labels[case].get(""), {k: v for k, v in labels[case].items() if k})
        for case, image in sorted(images.items())
        if case not in source.exclude_cases
    ]
