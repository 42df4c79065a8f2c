"""Record: what became of one case; the manifest of a merged dataset is the list of its records."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnunet_pretrain.conversion.fingerprint import Fingerprint
from nnunet_pretrain.conversion.layout import CaseFiles
from nnunet_pretrain.conversion.source import Source
from nnunet_pretrain.files import sha256_of
from nnunet_pretrain.labels import LabelScheme, LabelSpace

RULES_VERSION = 1
"""Raised whenever conversion gives another result for the same input, so that `--resume` redoes older cases."""


@dataclass(frozen=True)
class Conversion:
    """What to do with one case.

    Attributes:
        files: The case's files.
        source: Its source.
        space: The label space to store in.
        folder: Folder of the dataset (or of its unfinished copy).
        split_paired: Whether unsplit paired organs are split into left and right where that is safe.
        picture: Whether to draw the case for the report.
    """

    files: CaseFiles
    source: Source
    space: LabelSpace
    folder: Path
    split_paired: bool = False
    picture: bool = False

    @property
    def rules(self) -> str:
        """Digest of everything but the files that decides the result."""
        keys = {"name", "labels", "also_background", "known_absent", "unknown_if_absent", "unknown_beyond_extent"}
        keys |= {"excludes_if_present", "holes_are_unknown", "overlapping_masks", "label_geometry"}
        keys |= {"unit_spacing_is_faulty", "accept_cases", "aliases"}
        facts = [
            RULES_VERSION,
            self.source.model_dump(mode="json", include=keys),
            self.space.model_dump(mode="json"),
            self.split_paired,
            self.picture,
            sorted(self.files.masks),
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Record:
    """What became of one case.

    Attributes:
        case: Name in the merged dataset.
        source: Name of its source.
        rules: Digest of the rules it was converted by.
        inputs: File to size in bytes, modification time in ns and SHA-256, as they were read.
        quarantined: Why the case could not be converted, or None.
        scheme: Name and label sets of the case's scheme.
        decisions: What was repaired, split, or taken for unknown, in words.
        warnings: What looks unusual, in words.
        image: Path of the image, relative to the dataset if it was written there.
        shape: Voxels along each axis.
        spacing: Voxel size in mm.
        orientation: Direction of the axes, such as RAS.
        voxels: Stored id to voxel count.
        voxel_ml: Volume of a voxel.
        overlapping_voxels: Voxels that masks of several structures claimed.
        outputs: File below the dataset to SHA-256.
        fingerprint: Content fingerprint of the image.
    """

    case: str
    source: str
    rules: str
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    quarantined: str | None = None
    scheme: dict[str, Any] = field(default_factory=dict)
    decisions: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    image: str = ""
    shape: list[int] = field(default_factory=list)
    spacing: list[float] = field(default_factory=list)
    orientation: str = ""
    voxels: dict[str, int] = field(default_factory=dict)
    voxel_ml: float = 0.0
    overlapping_voxels: int = 0
    outputs: dict[str, str] = field(default_factory=dict)
    fingerprint: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Returns the record as JSON can hold it."""
        return asdict(self)

    @property
    def label_scheme(self) -> LabelScheme:
        """The case's label scheme."""
        return LabelScheme.model_validate(self.scheme)

    @property
    def content(self) -> Fingerprint:
        """The image's fingerprint."""
        return Fingerprint.from_dict(self.fingerprint)

    def still_holds(self, conversion: Conversion) -> bool:
        """Tells whether converting the case again would give the same files, and these are there.

        An input counts as unchanged if its size and modification time are, or else if its SHA-256 is. A record that
        makes no sense does not hold.
        """
        try:
            return self._holds(conversion)
        except (AttributeError, KeyError, TypeError):
            return False

    def _holds(self, conversion: Conversion) -> bool:
        if self.quarantined or self.rules != conversion.rules or f"labelsTr/{self.case}.nii.gz" not in self.outputs:
            return False
        if set(self.inputs) != {str(path) for path in read_files(conversion)}:
            return False
        if not all(_unchanged(Path(path), facts) for path, facts in self.inputs.items()):
            return False
        outputs = {conversion.folder / name: digest for name, digest in self.outputs.items()}
        return all(path.is_file() and sha256_of(path) == digest for path, digest in outputs.items())


def read_files(conversion: Conversion) -> list[Path]:
    """Returns the files of a case that a conversion reads: masks outside the label space are not."""
    files = conversion.files
    _, stored = conversion.source.scheme(conversion.space)
    masks = {name: path for name, path in files.masks.items() if stored[name]}
    return CaseFiles(files.case, files.image, files.labels, masks).inputs


def stat_of(path: Path) -> dict[str, Any]:
    """Returns size and modification time of a file, following links."""
    found = path.stat()
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns}


def _unchanged(path: Path, facts: dict[str, Any]) -> bool:
    if not path.is_file():
        return False
    now = stat_of(path)
    if now["size"] != facts["size"]:
        return False
    return bool(now["mtime_ns"] == facts["mtime_ns"] or sha256_of(path) == facts["sha256"])
