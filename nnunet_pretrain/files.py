"""Reading and atomic writing of small files, and checksums of large ones."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` and moves it there on success; leaves nothing behind on failure.

    The temporary name keeps the file's endings, because writers such as nibabel's choose the format by them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".partial-", suffix=f"-{path.name}")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private; a dataset is shared, so use the permissions an ordinary file would get.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically, indented, in the given key order."""
    with written_atomically(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is not JSON.
    """
    return _parsed(path, json.loads, "JSON")


def read_yaml(path: Path) -> Any:
    """Reads a YAML (or JSON) file.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is not YAML.
    """
    return _parsed(path, yaml.safe_load, "YAML")


def _parsed(path: Path, parse: Callable[[str], Any], form: str) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found")
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not readable as {form}: {' '.join(str(error).split())}") from None


def sha256_of(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
