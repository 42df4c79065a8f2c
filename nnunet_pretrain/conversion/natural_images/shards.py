"""Converting images shard by shard: some hundred images share one record, which is written when all of them are done.

An image belongs to a shard by its name, so that further images leave the other shards alone.
"""

from __future__ import annotations

import json
import math
import os
import warnings
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nnunet_pretrain.conversion.engine import RECORDS
from nnunet_pretrain.conversion.natural_images.image import Rules, read_image, statistics, write_image
from nnunet_pretrain.conversion.natural_images.index import NaturalImage
from nnunet_pretrain.conversion.natural_images.listing import Photograph
from nnunet_pretrain.files import read_json, written_atomically

IMAGES_PER_SHARD = 256


@dataclass(frozen=True)
class Shard:
    """Images that share a record.

    Attributes:
        number: Its number, from 0.
        of: How many shards there are.
        photographs: Its images.
        folder: Folder of the dataset.
        root: Folder of the originals.
        rules: What to make of them.
        strict: Whether the first image that cannot be used ends it.
    """

    number: int
    of: int
    photographs: tuple[Photograph, ...]
    folder: Path
    root: Path
    rules: Rules
    strict: bool = False


@dataclass
class ShardResult:
    """What became of a shard.

    Attributes:
        rows: Its usable images.
        quarantined: Case and reason of the others.
        ids: Stored ids that occur in its masks.
        converted: How many images were converted now; the others were there and unchanged.
        bytes_read: Size of the originals.
        bytes_written: Size of the files made of them.
    """

    rows: list[NaturalImage] = field(default_factory=list)
    quarantined: dict[str, str] = field(default_factory=dict)
    ids: set[int] = field(default_factory=set)
    converted: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    def add(self, other: ShardResult) -> None:
        """Adds the counts of another shard, but not its rows, which may be millions."""
        self.quarantined.update(other.quarantined)
        self.ids |= other.ids
        self.converted += other.converted
        self.bytes_read += other.bytes_read
        self.bytes_written += other.bytes_written


def make_shards(
    photographs: Sequence[Photograph], make: Callable[[int, int, tuple[Photograph, ...]], Shard]
) -> list[Shard]:
    """Deals images out to shards.

    Args:
        photographs: The images.
        make: Makes a shard of its number, the number of shards and its images.
    """
    of = shards_for(len(photographs))
    dealt: dict[int, list[Photograph]] = defaultdict(list)
    for photograph in photographs:
        dealt[_shard_of(photograph.case, of)].append(photograph)
    return [make(number, of, tuple(dealt[number])) for number in sorted(dealt)]


def shards_for(count: int) -> int:
    """Returns the number of shards for a number of images: a power of two, so that it seldom changes."""
    return 1 << max(0, math.ceil(math.log2(max(1, count) / IMAGES_PER_SHARD)))


def record_path(folder: Path, number: int, of: int) -> Path:
    """Returns the record of a shard."""
    return folder / RECORDS / f"{number:06d}-of-{of:06d}.json"


def read_shard(path: Path) -> dict[str, dict[str, Any]]:
    """Returns what a record says of each of its cases; a damaged or missing record counts as empty."""
    try:
        images = read_json(path)["images"]
        return images if all(isinstance(entry, dict) for entry in images.values()) else {}
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def reshard(folder: Path, of: int) -> None:
    """Deals the records of a dataset out anew if their number has changed; those that fit are left alone."""
    others = [p for p in sorted((folder / RECORDS).glob("*-of-*.json")) if not p.stem.endswith(f"-of-{of:06d}")]
    dealt: dict[int, dict[str, dict[str, Any]]] = defaultdict(dict)
    for path in others:
        for case, entry in read_shard(path).items():
            dealt[_shard_of(case, of)][case] = entry
    for number, entries in dealt.items():
        path = record_path(folder, number, of)
        _write_shard(path, {**entries, **read_shard(path)})
    for path in others:
        path.unlink()


def convert_shard(shard: Shard) -> ShardResult:
    """Converts the images of a shard that are not there yet or have changed, and writes its record last.

    Raises:
        ValueError: Nothing can be written, or with `strict` an image cannot be used.
    """
    path = record_path(shard.folder, shard.number, shard.of)
    before, entries, result = read_shard(path), {}, ShardResult()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # decode has its own limit, and says so
        for photograph in shard.photographs:
            entry = before.get(photograph.case)
            if entry is None or not _holds(entry, photograph, shard):
                # Until it is written again, the dataset is incomplete.
                (shard.folder / "dataset.json").unlink(missing_ok=True)
                entry = _converted(photograph, shard)
                result.converted += "reason" not in entry
            entries[photograph.case] = entry
            _count(result, photograph, entry)
    if entries != before:
        _write_shard(path, entries)
    return result


def _shard_of(case: str, of: int) -> int:
    return zlib.crc32(case.encode()) % of


def _write_shard(path: Path, entries: dict[str, dict[str, Any]]) -> None:
    with written_atomically(path) as temporary:
        temporary.write_text(json.dumps({"images": entries}, separators=(",", ":")), encoding="utf-8")


def _inputs(photograph: Photograph, shard: Shard) -> list[list[int]]:
    """Returns size and time of the files of an image that are there; reading it says what is wrong with the others."""
    paths = [shard.root / name for name in (photograph.file, photograph.mask) if name]
    return [_stat(path) for path in paths if path.exists()]


def _stat(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _facts(photograph: Photograph, shard: Shard) -> dict[str, Any]:
    """Returns what the record of a finished image must say.

    Raises:
        OSError: A file is missing.
    """
    outputs = [_stat(shard.folder / name) for name in shard.rules.outputs(photograph.case)]
    inputs = _inputs(photograph, shard)
    return {"file": photograph.file, "rules": shard.rules.of(photograph), "inputs": inputs, "outputs": outputs}


def _holds(entry: dict[str, Any], photograph: Photograph, shard: Shard) -> bool:
    """Tells whether an image is there as it would be made now; those that could not be used are tried again."""
    if "reason" in entry or photograph.fault:
        return False
    try:
        facts = _facts(photograph, shard)
    except OSError:
        return False
    return all(entry.get(key) == value for key, value in facts.items()) and len(entry.get("row", ())) == 5


def _converted(photograph: Photograph, shard: Shard) -> dict[str, Any]:
    """Converts one image and returns its entry, which names the reason if it cannot be used."""
    try:
        inputs = _inputs(photograph, shard)  # as they are before they are read
        image, ids, notes = read_image(photograph, shard.root, shard.rules)
    except Exception as error:  # one damaged file among thousands must not end the run
        known = isinstance(error, (ValueError, OSError))
        reason = " ".join((str(error) if known else f"unexpected {type(error).__name__}: {error}").split())
        if shard.strict:
            raise ValueError(f"{reason}; correct or remove it, or leave out --strict") from None
        for name in Rules("volumes").outputs(photograph.case):
            (shard.folder / name).unlink(missing_ok=True)
        return {"reason": reason}
    try:
        write_image(photograph, shard.folder, shard.rules, image, ids)
        facts = _facts(photograph, shard)
    except OSError as error:
        raise ValueError(
            f"cannot write case {photograph.case}: {error}; make room, then run the command again: it goes on from here"
        ) from None
    mean, std = statistics(image.rgb)
    row = [*image.rgb.shape[:2], mean, std, "; ".join(notes)]
    return {
        **facts,
        "inputs": inputs,
        "row": row,
        "ids": [] if ids is None else np.flatnonzero(np.bincount(ids.ravel())).tolist(),
    }


def _count(result: ShardResult, photograph: Photograph, entry: dict[str, Any]) -> None:
    """Adds an image to the result of its shard."""
    if "reason" in entry:
        result.quarantined[photograph.case] = entry["reason"]
        return
    case, file, label, part = photograph[:4]
    result.rows.append(NaturalImage(case, file, label, part, *entry["row"]))
    result.ids.update(entry["ids"])
    result.bytes_read += entry["inputs"][0][0]
    result.bytes_written += sum(size for size, _ in entry["outputs"])


def surplus(folder: Path, photographs: Sequence[Photograph], shards: Sequence[Shard]) -> list[Path]:
    """Returns the files that belong to no image: of cases that are gone, or half written."""
    rules, cases, found = shards[0].rules, {photograph.case for photograph in photographs}, []
    for part, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        if (folder / part).is_dir():
            with os.scandir(folder / part) as entries:
                names = [entry.name for entry in entries]
            for name in names:
                case = name.removesuffix(ending)
                if case not in cases or f"{part}/{name}" not in rules.outputs(case):
                    found.append(folder / part / name)
    records = {record_path(folder, shard.number, shard.of) for shard in shards}
    return found + [path for path in (folder / RECORDS).glob("*-of-*") if path not in records]
