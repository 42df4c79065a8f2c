"""Converting one case of a domain: its label map gets ids of the whole dataset, its images are clipped if asked for."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_pretrain.conversion.clip import clip_image
from nnunet_pretrain.conversion.domain_members import DomainCase
from nnunet_pretrain.conversion.engine import RECORDS
from nnunet_pretrain.conversion.fingerprint import as_hu, fingerprint
from nnunet_pretrain.conversion.reading import open_volume
from nnunet_pretrain.conversion.record import stat_of
from nnunet_pretrain.files import read_json, write_json, written_atomically

RULES_VERSION = 1
"""Raised whenever conversion gives another result for the same input, so that older cases are redone."""


@dataclass(frozen=True)
class Conversion:
    """What to do with one case of a domain.

    Attributes:
        case: Its files.
        folder: Folder of the dataset.
        stored: Stored id of each id of the member.
        reader: Name of nnU-Net's reader.
        clip: Percentiles to clip its images to, or None.
        is_ct: Whether its images are CT.
    """

    case: DomainCase
    folder: Path
    stored: tuple[int, ...]
    reader: str
    clip: tuple[float, float] | None
    is_ct: bool

    @property
    def record_path(self) -> Path:
        """The file that says the case is complete."""
        return self.folder / RECORDS / f"{self.case.case}.json"

    @property
    def label(self) -> str:
        """The label map it writes, relative to the dataset."""
        return f"labelsTr/{self.case.case}.nii.gz"

    @property
    def images(self) -> list[str]:
        """Its images: absolute paths, or relative ones of those it writes."""
        if self.clip is None:
            return [str(path) for path in self.case.images]
        return [f"imagesTr/{self.case.case}_{channel:04d}.nii.gz" for channel in range(len(self.case.images))]

    @property
    def outputs(self) -> list[str]:
        """The files it writes, relative to the dataset."""
        return [self.label, *(self.images if self.clip else [])]

    def facts(self) -> dict[str, Any]:
        """Returns what a record of the finished case must say, but for the fingerprint.

        Raises:
            OSError: A file is missing.
        """
        rules = [RULES_VERSION, self.stored, self.reader, self.clip, self.is_ct]
        return {
            "rules": hashlib.sha256(json.dumps(rules).encode()).hexdigest(),
            "inputs": {str(path): stat_of(path) for path in (*self.case.images, self.case.label)},
            "outputs": {name: stat_of(self.folder / name) for name in self.outputs},
        }

    def record(self) -> dict[str, Any] | None:
        """Returns the record of the case if it is complete and was made from these files by these rules."""
        try:
            record: dict[str, Any] = read_json(self.record_path)
            facts = self.facts()
            return record if all(record[key] == value for key, value in facts.items()) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def convert(job: Conversion) -> str | None:
    """Converts one case, its record last.

    Returns:
        None, or why the case could not be converted.
    """
    job.record_path.unlink(missing_ok=True)
    try:
        _write_label(job)
        content = _fingerprint(job)
        for image, target in zip(job.case.images, job.images, strict=True):
            if job.clip is not None:
                clip_image(image, job.folder / target, job.clip)
        record = job.facts()
    except Exception as error:  # one damaged file among thousands must not end the run
        known = isinstance(error, (ValueError, OSError))
        return f"case {job.case.case}: {error}" if known else f"case {job.case.case}: {type(error).__name__}: {error}"
    write_json(job.record_path, {**record, "fingerprint": content})
    return None


def _write_label(job: Conversion) -> None:
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    rw = recursive_find_reader_writer_by_name(job.reader)()
    voxels, properties = rw.read_seg(str(job.case.label))
    ids = np.unique(voxels)
    unknown = [float(i) for i in ids if i not in range(len(job.stored))]
    if unknown:
        raise ValueError(f"{job.case.label} stores {unknown[:5]}, unknown to its dataset.json; correct one of them")
    stored = np.array(job.stored, np.uint16)[voxels[0].astype(np.uint16)]
    with written_atomically(job.folder / job.label) as temporary:
        rw.write_seg(stored, str(temporary), properties)


def _fingerprint(job: Conversion) -> dict[str, str] | None:
    """Returns the content fingerprint of a case's first image, as it was before clipping.

    Fingerprints are of whole numbers. An image of fractions that is no CT would lose what makes it unlike others.
    """
    volume = open_volume(job.case.images[0])
    voxels = volume.read()
    whole = as_hu(voxels, str(volume.path))
    if not job.is_ct and voxels.dtype.kind == "f" and not np.array_equal(voxels, whole):
        return None
    return fingerprint(whole, volume.grid).as_dict()
