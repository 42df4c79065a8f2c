"""Finding the cases of a source on disk."""

from __future__ import annotations

import glob
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_pretrain.conversion.source import PLACEHOLDER, Layout, Source


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case.

    Attributes:
        case: Name in the merged dataset.
        image: The CT; the folder of its slices for DICOM.
        labels: The multi-label file (the folder of its slices for PNG), or None.
        masks: Mask name (as in the source's `labels`) to file, empty for multi-label sources.
    """

    case: str
    image: Path
    labels: Path | None
    masks: dict[str, Path] = field(default_factory=dict)

    @property
    def inputs(self) -> list[Path]:
        """Every file of the case, slices of a stack one by one, in a fixed order."""
        paths = [
            self.image,
            *([self.labels] if self.labels else []),
            *(self.masks[name] for name in sorted(self.masks)),
        ]
        return [file for path in paths for file in (files_below(path) if path.is_dir() else [path])]


@dataclass(frozen=True)
class FoundCases:
    """What lies in a source's folder.

    Attributes:
        cases: Complete cases in alphabetical order, without the excluded ones.
        faulty: Case to the reason why it cannot be converted.
        excluded: Case to the reason given in the source.
        passed_over: Number of images without label, or labels without image, that belong to the publication.
    """

    cases: list[CaseFiles]
    faulty: dict[str, str]
    excluded: dict[str, str]
    passed_over: int = 0


def files_below(folder: Path) -> list[Path]:
    """Returns the files anywhere below a folder, hidden ones left out, in alphabetical order."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def fill(template: str, **values: str) -> str:
    """Fills the placeholders of a layout template."""
    return PLACEHOLDER.sub(lambda match: values[match[1]], template)


def find_cases(source: Source, root: Path) -> FoundCases:
    """Finds all cases of a source and pairs images with labels.

    Args:
        source: The source.
        root: Folder the user gave.

    Raises:
        FileNotFoundError: The folder is missing, or nothing in it fits the source's layouts.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"source {source.name}: folder {root} not found")
    half: _Pairing | None = None
    for layout in source.layouts:
        images = _matching(root, layout.images, folders=layout.image_format == "dicom")
        taken = {path for path, _ in images}  # {case}.nii.gz beside {case}_ct.nii.gz would match images too
        labels = _matching(root, layout.masks or layout.labels or "", folders=layout.label_format == "png")
        labels = [found for found in labels if found[0] not in taken]
        if images and labels:
            return _Pairing(source, root, layout, images, labels).run()
        if images or labels:
            half = half or _Pairing(source, root, layout, images, labels)
    if half is not None:
        return half.run()
    tried = "; ".join(map(str, source.layouts))
    raise FileNotFoundError(f"source {source.name}: no case found in {root}; expected {tried}")


Found = list[tuple[Path, dict[str, str]]]


def _matching(root: Path, template: str, folders: bool = False) -> Found:
    """Returns the files (or folders) that fit a template, with what its placeholders stand for.

    Hidden files never fit. What is there under a fitting name but cannot be a file (a folder, a broken or circular
    link) is returned too, so that its case is reported.
    """
    pattern, wildcard, position, seen = "", "", 0, set()
    for match in PLACEHOLDER.finditer(template):
        name, expression = match[1], match[2] or "[^/]+"
        text = template[position : match.start()]
        pattern += _literal(text) + (f"(?P={name})" if name in seen else f"(?P<{name}>{expression})")
        wildcard += _globbed(text) + "*"
        position = match.end()
        seen.add(name)
    pattern += _literal(template[position:])
    wildcard += _globbed(template[position:])
    found = []
    for name in sorted(glob.glob(wildcard, root_dir=root)):
        fitting = re.fullmatch(pattern, Path(name).as_posix())
        if fitting and (not folders or (root / name).is_dir()):
            found.append((root / name, {"case": root.name, "part": "", **fitting.groupdict()}))
    return found


def _literal(text: str) -> str:
    return "[^/]*".join(re.escape(piece) for piece in text.split("*"))


def _globbed(text: str) -> str:
    return "*".join(glob.escape(piece) for piece in text.split("*"))


class _Pairing:
    """Pairs the images and labels of one layout by case and part."""

    def __init__(self, source: Source, root: Path, layout: Layout, images: Found, labels: Found) -> None:
        self.source, self.root, self.layout = source, root, layout
        self.images, self.faulty = self._by_case(images), dict[str, str]()
        self.labels: dict[tuple[str, str], dict[str, Path]] = defaultdict(dict)
        for path, match in labels:
            mask = source.aliases.get(match.get("mask", ""), match.get("mask", ""))
            if mask and mask not in source.labels:
                self.faulty[match["case"]] = (
                    f"mask {path} is not in the label scheme of {source.name}; known masks are "
                    f"{', '.join(map(str, source.labels))}; add it to the source file or move it away"
                )
            self.labels[match["case"], match["part"]][mask] = path

    @staticmethod
    def _by_case(found: Found) -> dict[tuple[str, str], Path]:
        return {(match["case"], match["part"]): path for path, match in found}

    def run(self) -> FoundCases:
        layout, source, passed_over = self.layout, self.source, 0
        cases: dict[str, CaseFiles] = {}
        excluded: dict[str, str] = {}
        for key in sorted({*self.images, *self.labels}):
            case, part = key
            if case in source.exclude_cases:
                excluded[self._name(case)] = source.exclude_cases[case]
            elif case in self.faulty:
                continue
            elif key not in self.labels:
                if source.images_without_label:
                    passed_over += 1
                    continue
                template = layout.labels or layout.masks or ""
                where = self.root / fill(template, case=case, part=part, mask="*")
                self.faulty[case] = f"image without label: {self.images[key]}; expected {where}"
            elif key not in self.images:
                if source.labels_without_image:
                    passed_over += 1
                    continue
                label = next(iter(self.labels[key].values()))
                where = self.root / fill(layout.images, case=case, part=part)
                self.faulty[case] = f"label without image: {label}; expected {where}"
            elif self._name(case) in cases:
                other = cases[self._name(case)].image
                self.faulty[case] = f"{other} and {self.images[key]} would both become {self._name(case)}; rename one"
            else:
                masks = {name: path for name, path in self.labels[key].items() if name}
                files = CaseFiles(self._name(case), self.images[key], self.labels[key].get(""), masks)
                cases[files.case] = files
        faulty = {self._name(case): reason for case, reason in sorted(self.faulty.items())}
        complete = [cases[case] for case in sorted(cases) if case not in faulty]
        return FoundCases(complete, faulty, excluded, passed_over)

    def _name(self, case: str) -> str:
        return f"{self.source.prefix}_{re.sub(r'[^A-Za-z0-9._-]', '_', case)}"
