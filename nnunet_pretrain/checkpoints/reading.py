"""Reading checkpoints without running what they contain.

Stock nnU-Net unpickles checkpoints freely. Here a file is data: an interpreter of our own (`unpickling`) builds what
nnU-Net's checkpoints hold (`admitted`) from an archive that was checked first (`archive`), and refuses everything else
by name. Tensors stay on disk until they are used.
"""

from __future__ import annotations

import stat
import struct
import zipfile
from collections import OrderedDict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_pretrain.checkpoints.admitted import admitted
from nnunet_pretrain.checkpoints.archive import MAX_PICKLE_BYTES, TorchArchive
from nnunet_pretrain.checkpoints.refusals import BrokenError, RefusedError, shown
from nnunet_pretrain.checkpoints.unpickling import Unpickling

EXTRAS_KEY = "nnunet_pretrain"
"""Where in a checkpoint's `init_args` our trainers keep what nnU-Net has no entry for."""

MAX_NODES = 2_000_000
"""TotalSegmentator's longest log (4,000 epochs, 104 classes) has half a million."""
MAX_DEPTH = 64
MAX_VIEWS = 16
"""How often the tensors may show the file's bytes; nnU-Net lists one tensor under up to four names."""

_REMEDY = "open it once with a torch you trust it to, and save it again with torch.save"
_LEGACY_MAGIC = b"\x80\x02\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
_MALFORMED = (
    BrokenError, NotImplementedError, EOFError, OSError, struct.error, MemoryError, RecursionError,
    ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RuntimeError,
)  # fmt: skip


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint; tensors stay on disk until they are used, and on the CPU.

    Args:
        path: File written by an nnU-Net trainer.

    Returns:
        The checkpoint's dictionary.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is not a torch checkpoint, holds more than data, or is no nnU-Net checkpoint.
    """
    return checked_checkpoint(path, _read(path, plain_pickle=False))


def checked_checkpoint(path: Path, checkpoint: Any) -> dict[str, Any]:
    """Returns what `read_file` read, if it is a checkpoint of nnU-Net v2.

    Args:
        path: The file, for the messages.
        checkpoint: Its content.

    Raises:
        ValueError: An entry that every reader relies on is missing or of another type.
    """
    if not isinstance(checkpoint, dict) or not all(type(key) is str for key in checkpoint):
        found = "one whose keys are no text" if isinstance(checkpoint, dict) else _kind(checkpoint)
        raise ValueError(f"{path} is no nnU-Net v2 checkpoint: it should hold a dictionary, it holds {found}")
    missing = [key for key in ("network_weights", "init_args", "trainer_name") if key not in checkpoint]
    if missing:
        found = shown(str(list(checkpoint)[:10]))
        raise ValueError(f"{path} is no nnU-Net v2 checkpoint: it lacks {missing}, it has {found}")
    _check_entries(path, checkpoint)
    return checkpoint


def read_file(path: Path) -> Any:
    """Reads any file of `torch.save`, or a plain pickle such as the sidecar of an nnU-Net v1 model, as data.

    Args:
        path: Zip file of torch >= 1.6, or pickle of protocol 2 or later.

    Returns:
        What was saved. Tensors are on the CPU, on disk until they are used, and require no gradient; parameters are
        tensors.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is broken, or holds anything but tensors, numbers, text and containers of them.
    """
    return _read(path, plain_pickle=True)


def _read(path: Path, plain_pickle: bool) -> Any:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"checkpoint {path} not found") from None
    if not stat.S_ISREG(mode):
        raise ValueError(
            f"{path} is not readable as a torch checkpoint: it is a folder, a pipe or a device; give the file itself"
        )
    try:
        return _content(path, plain_pickle)
    except RefusedError as error:
        raise ValueError(f"{path} was refused, nothing in it was run: {_one_line(error)}") from None
    except zipfile.BadZipFile as error:
        reason = f"{_one_line(error)}; it may be cut off, copy or save it again"
        raise ValueError(f"{path} is not readable as a torch checkpoint: {reason}") from None
    except _MALFORMED as error:
        raise ValueError(f"{path} is not readable as a torch checkpoint: {_one_line(error)}") from None


def _content(path: Path, plain_pickle: bool) -> Any:
    """Reads what the file's first bytes say it is."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(b"PK\x03\x04"):
        archive = TorchArchive(path)
        content = Unpickling(archive.pickle, *admitted(len(archive.pickle)), archive.storage).run()
    elif start.startswith(_LEGACY_MAGIC) or start[257:262] == b"ustar":
        raise BrokenError(f"it is in the form of torch before 1.6, which cannot be checked; {_REMEDY}")
    elif plain_pickle and start.startswith(b"\x80"):
        if size > MAX_PICKLE_BYTES:
            raise RefusedError(f"its pickle has {size:,} bytes, at most {MAX_PICKLE_BYTES:,} are read")
        content = Unpickling(path.read_bytes(), *admitted(size)).run()
    else:
        kind = "a plain pickle" if start.startswith(b"\x80") else f"no zip archive, it begins with {start[:8]!r}"
        raise BrokenError(f"it is {kind}" if start else "it is empty")
    _check_extent(content, size)
    return content


def _check_extent(content: Any, file_size: int) -> None:
    """Refuses what is small in the file and endless to walk through; what is met twice counts twice.

    Raises:
        RefusedError: Too many values, too deep (or within itself), or something that is no data.
    """
    nodes, tensor_bytes = 0, 0
    levels = [iter((content,))]
    while levels:
        for node in levels[-1]:
            nodes += 1
            if isinstance(node, str | bytes):
                nodes += len(node) >> 6
            elif isinstance(node, torch.Tensor):
                tensor_bytes += node.numel() * node.element_size()
            elif isinstance(node, np.ndarray):
                nodes += node.nbytes >> 3
            elif (parts := _parts(node)) is not None:
                levels.append(parts)
                break
        else:
            levels.pop()
        if len(levels) > MAX_DEPTH:
            raise RefusedError(f"its content is nested more than {MAX_DEPTH} deep, or contains itself")
        if nodes > MAX_NODES:
            raise RefusedError(f"its content unfolds to more than {MAX_NODES:,} values")
        if tensor_bytes > MAX_VIEWS * file_size:
            raise RefusedError(f"its tensors show the file's bytes more than {MAX_VIEWS} times")


def _parts(node: Any) -> Any:
    """Returns an iterator over what a container holds, None for a plain value."""
    kind = type(node)
    if kind is dict:
        return chain(node, node.values())
    if kind is OrderedDict:
        return chain(node, node.values(), vars(node).values())
    if kind is list or kind is tuple:
        return iter(node)
    if node is None or isinstance(node, bool | int | float | np.generic | torch.device | torch.dtype | torch.Size):
        return None
    raise RefusedError(f"it has {shown(getattr(node, 'name', kind.__name__))} where a value should be")


def _check_entries(path: Path, checkpoint: dict[str, Any]) -> None:
    """Checks the types of the entries that every reader of a checkpoint relies on."""
    weights, arguments, trainer = (checkpoint[key] for key in ("network_weights", "init_args", "trainer_name"))
    expected: list[tuple[str, Any, type, str]] = [("trainer_name", trainer, str, "text")]
    expected += [("init_args", arguments, dict, "a dictionary"), ("network_weights", weights, dict, "a dictionary")]
    if isinstance(arguments, dict):
        inner = [(key, arguments.get(key, {})) for key in ("plans", "dataset_json", EXTRAS_KEY)]
        expected += [(f"init_args/{key}", value, dict, "a dictionary") for key, value in inner]
    if isinstance(weights, dict):
        expected += [(f"network_weights/{name}", value, torch.Tensor, "a tensor") for name, value in weights.items()]
    for name, value, kind, called in expected:
        if not isinstance(value, kind):
            raise ValueError(f"{path} is no nnU-Net v2 checkpoint: {shown(name)} is {_kind(value)}, expected {called}")
    if not all(type(name) is str for name in weights):
        raise ValueError(f"{path} is no nnU-Net v2 checkpoint: network_weights has names that are no text")


def _kind(value: Any) -> str:
    return f"a value of the type {type(value).__name__}"


def _one_line(error: BaseException) -> str:
    text = " ".join(f"{error}".split()) or type(error).__name__
    return text[:300] if text.isprintable() else ascii(text)[:300]
