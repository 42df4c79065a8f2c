"""Content fingerprints of all images of a target, kept so that the next transfer need not read them again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nnunet_pretrain.conversion.duplicates import FINGERPRINTS, dataset_fingerprints
from nnunet_pretrain.conversion.engine import run_all
from nnunet_pretrain.conversion.fingerprint import Fingerprint, read_fingerprint
from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.folders import nnunet_folder

CACHE = "fingerprints_target.json"
"""File beside the target's plans with the fingerprints of its images."""

Place = Literal["training", "test"]


@dataclass(frozen=True)
class TargetImage:
    """One image file of a target.

    Attributes:
        case: Its case.
        place: Whether it lies in imagesTr or imagesTs.
        path: The file.
    """

    case: str
    place: Place
    path: Path


def target_fingerprints(
    name: str, num_processes: int
) -> tuple[dict[Place, dict[tuple[str, str], Fingerprint]], dict[str, str]]:
    """Returns the fingerprints of a target's images; those of files that did not change come from `CACHE`.

    Args:
        name: Name of the target.
        num_processes: Worker processes.

    Returns:
        For training and test, (case, file name) to fingerprint, every channel by itself; and case to the reason why an
        image of it could not be read.

    Raises:
        FileNotFoundError: An image is missing.
    """
    raw, cache = nnunet_folder("nnUNet_raw") / name, nnunet_folder("nnUNet_preprocessed") / name / CACHE
    found: dict[Place, dict[tuple[str, str], Fingerprint]] = {"training": {}, "test": {}}
    images = list(_test_images(raw))
    if (raw / FINGERPRINTS).is_file():
        found["training"] = {(case, ""): content for case, content in dataset_fingerprints(name, num_processes).items()}
    else:
        images = [*_training_images(raw), *images]
    stored = _read_cache(cache)
    stamps = {image: _stamp(image.path) for image in images}
    new = [image for image, stamp in stamps.items() if stored.get(str(image.path), {}).get("stamp") != stamp]
    unread = {}
    if new:
        for image, content, reason in run_all(_fingerprint, new, num_processes=num_processes, what=f"reading {name}"):
            if content is None:
                unread[image.case] = reason
                stored.pop(str(image.path), None)
            else:
                stored[str(image.path)] = {"stamp": stamps[image], **content}
        write_json(cache, stored)
    for image in images:
        if str(image.path) in stored:
            content = stored[str(image.path)]
            found[image.place][image.case, image.path.name] = Fingerprint.from_dict(content)
    return found, unread


def _training_images(raw: Path) -> Iterator[TargetImage]:
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    for case, files in sorted(get_filenames_of_train_images_and_targets(str(raw)).items()):
        yield from (TargetImage(case, "training", Path(path)) for path in files["images"])


def _test_images(raw: Path) -> Iterator[TargetImage]:
    ending = read_json(raw / "dataset.json")["file_ending"]
    for path in sorted((raw / "imagesTs").glob(f"*_????{ending}")):
        yield TargetImage(path.name[: -len(ending) - len("_0000")], "test", path)


def _stamp(path: Path) -> list[int]:
    """Returns size in bytes and time of last change in nanoseconds."""
    if not path.exists():
        raise FileNotFoundError(f"image {path} not found")
    return [path.stat().st_size, path.stat().st_mtime_ns]


def _read_cache(path: Path) -> dict[str, dict[str, Any]]:
    """Returns the cached fingerprints; a damaged cache counts as missing."""
    try:
        content = read_json(path)
        whole = {file: entry for file, entry in content.items() if Fingerprint.from_dict(entry).voxels}
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return whole


def _fingerprint(image: TargetImage) -> tuple[TargetImage, dict[str, str] | None, str]:
    """Reads one image; runs in other processes."""
    try:
        return image, read_fingerprint(image.path).as_dict(), ""
    except (ValueError, OSError) as error:
        return image, None, " ".join(str(error).split())[:300]
