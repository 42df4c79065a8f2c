"""Names of cases and classes that nnU-Net and every file system take."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Sequence

from nnunet_pretrain.labels import BACKGROUND, IGNORE

LONGEST = 180
"""Characters of a case's name; with the endings of its files it must stay below the 255 of file systems."""


def case_names(files: Sequence[str]) -> list[str]:
    """Returns a name for every file: its path without suffix, in letters, digits, `-` and `_`, a folder's end as `__`.

    Where two files come to the same name, upper and lower case being the same, the later ones get a number.

    Args:
        files: Paths with forward slashes, sorted.
    """
    plain = [_plain(file) for file in files]
    taken = {name.lower() for name in plain}
    given: set[str] = set()
    next_number: dict[str, int] = {}
    names = []
    for name in plain:
        unique, number = name, next_number.get(name.lower(), 2)
        while unique.lower() in given or (unique != name and unique.lower() in taken):
            unique, number = f"{name}_{number}", number + 1
        given.add(unique.lower())
        next_number[name.lower()] = number
        names.append(unique)
    return names


def _plain(file: str) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]", "_", os.path.splitext(file)[0].replace("/", "__"))
    if len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(file.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{name[:LONGEST]}_{digest}"


def safe_classes(labels: Collection[str]) -> dict[str, str]:
    """Returns what each class is called, given that nnU-Net keeps two names for itself."""
    names = {}
    for label in sorted(labels):
        name = label
        while name.lower() in (BACKGROUND, IGNORE) or (name != label and name in labels):
            name = f"class_{name}"
        names[label] = name
    return names
