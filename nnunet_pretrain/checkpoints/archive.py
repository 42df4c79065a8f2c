"""The zip archive that `torch.save` writes: one pickle, and one uncompressed entry per storage of tensors.

Python's `zipfile` reads the directory; what lies where is then checked here, so that every entry is a plain range of
bytes of the file, no two overlap, and a storage can be a slice of a memory map. A compressed entry is refused:
torch never writes one, and a small one can unfold to any size.
"""

from __future__ import annotations

import io
import mmap
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nnunet_pretrain.checkpoints.refusals import BrokenError, RefusedError, shown
from nnunet_pretrain.checkpoints.unpickling import Admitted

MAX_PICKLE_BYTES = 64 << 20
"""TotalSegmentator's longest log (4,000 epochs, 104 classes) takes 17 MB."""
MAX_DIRECTORY_BYTES = 4 << 20
MAX_ENTRIES = 40_000
_LOCAL_HEADER_BYTES = 30
_HARMLESS_FLAGS = 0x808  # sizes repeated behind the data; names in UTF-8


@dataclass(frozen=True)
class Entry:
    """Where an entry's bytes lie in the file."""

    offset: int
    size: int


@dataclass(frozen=True)
class Storage:
    """Values of one type that tensors are views of.

    Attributes:
        memory: Slice of the file's memory map.
        dtype: Type of the values.
    """

    memory: torch.UntypedStorage
    dtype: torch.dtype


class _Directory(io.BufferedReader):
    """The file as zipfile sees it: no single read can fill the memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = size if size is not None and size >= 0 else os.fstat(self.fileno()).st_size - self.tell()
        if wanted > MAX_DIRECTORY_BYTES:
            raise RefusedError(f"its zip directory has {wanted:,} bytes, a checkpoint's has a few thousand")
        return super().read(wanted)


class TorchArchive:
    """A checked archive.

    Args:
        path: The file.

    Raises:
        RefusedError: Something no `torch.save` writes: compressed, encrypted, overlapping or doubled entries.
        BrokenError: The file is cut off, or no torch checkpoint.
    """

    def __init__(self, path: Path) -> None:
        # One open file for all: a training may replace the path meanwhile. Private: the file is never written to.
        with _Directory(io.FileIO(path)) as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self._entries = _entries(file, self._data)
        self._check_kind()
        self.pickle = self._read("data.pkl", MAX_PICKLE_BYTES)
        self._map = torch.frombuffer(self._data, dtype=torch.uint8).untyped_storage()
        self._storages: dict[str, Storage] = {}

    def _check_kind(self) -> None:
        if "constants.pkl" in self._entries or any(name.startswith("code/") for name in self._entries):
            raise RefusedError("it is a TorchScript archive, which is a program; save the model's state_dict instead")
        if "data.pkl" not in self._entries:
            raise BrokenError(f"it is a zip archive without data.pkl; it has {shown(str(sorted(self._entries)[:5]))}")
        if "byteorder" in self._entries and self._read("byteorder", 16) != b"little":
            raise BrokenError("its numbers are in big-endian order; save it again on a little-endian machine")

    def _read(self, name: str, limit: int) -> bytes:
        entry = self._entries[name]
        if entry.size > limit:
            raise RefusedError(f"its entry {name} has {entry.size:,} bytes, at most {limit:,} are read")
        return self._data[entry.offset : entry.offset + entry.size]

    def storage(self, identifier: Any) -> Storage:
        """Returns what a persistent id ("storage", type, entry, device, number of values) stands for.

        The device is not looked at: everything is on the CPU.

        Raises:
            RefusedError: The id has another form, or names bytes that the file does not have.
        """
        if type(identifier) is not tuple or len(identifier) != 5 or identifier[0] != "storage":
            raise RefusedError("its pickle has a persistent id that is no torch storage")
        _, kind, key, _, values = identifier
        dtype = kind.value if type(kind) is Admitted else None
        if not isinstance(dtype, torch.dtype) or type(key) is not str or type(values) is not int or values < 0:
            raise RefusedError("its pickle has a persistent id that is no torch storage")
        found = self._storages.get(key)
        if found is None:
            found = self._storages[key] = Storage(self._memory(key, values * dtype.itemsize), dtype)
        if found.dtype != dtype or found.memory.nbytes() != values * dtype.itemsize:
            raise RefusedError(f"its storage {shown(key)} is given with two types or sizes")
        return found

    def _memory(self, key: str, size: int) -> torch.UntypedStorage:
        entry = self._entries.get(f"data/{key}")
        if entry is None or entry.size < size:
            held = "is not in the file" if entry is None else f"has {entry.size:,} bytes"
            raise RefusedError(f"its storage {shown(key)} should have {size:,} bytes and {held}")
        if not size:
            return torch.UntypedStorage(0)
        memory = self._map[entry.offset : entry.offset + size]
        # torch aligns to 64 bytes; other zip tools do not, and processors may not read numbers at odd places.
        return memory if entry.offset % 8 == 0 else memory.clone()


def _entries(file: io.BufferedReader, data: mmap.mmap) -> dict[str, Entry]:
    """Returns the entries' places by their names below the archive's one top folder."""
    with zipfile.ZipFile(file) as archive:
        infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
        end_of_data = archive.start_dir
    if not infos or len(infos) > MAX_ENTRIES or not 0 <= end_of_data <= len(data):
        raise RefusedError(f"its zip directory has {len(infos):,} entries, expected 1 to {MAX_ENTRIES:,}")
    top = infos[0].orig_filename.partition("/")[0] + "/"
    entries: dict[str, Entry] = {}
    end = 0
    for info in infos:
        name = info.orig_filename
        if not name.startswith(top) or "\0" in name or "\\" in name or ".." in name.split("/"):
            raise RefusedError(f"its entry {shown(name)} does not lie in the one folder of a checkpoint")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise RefusedError(f"its entry {shown(name)} is compressed, which torch.save never does")
        if info.flag_bits & ~_HARMLESS_FLAGS:
            raise RefusedError(f"its entry {shown(name)} is encrypted or of an unknown kind")
        if info.header_offset < end:
            raise RefusedError(f"its entry {shown(name)} overlaps the one before")
        entry = Entry(_data_offset(data, info), info.file_size)
        end = entry.offset + entry.size
        if end > end_of_data:
            raise BrokenError(f"its entry {shown(name)} ends at byte {end:,}, behind the end of the data")
        if name[len(top) :] in entries:
            raise RefusedError(f"its entry {shown(name)} is there twice")
        entries[name[len(top) :]] = entry
    return entries


def _data_offset(data: mmap.mmap, info: zipfile.ZipInfo) -> int:
    """Returns where an entry's bytes begin: behind a header of its own, whose length is only known there."""
    end = info.header_offset + _LOCAL_HEADER_BYTES
    header = data[info.header_offset : end]
    if len(header) < _LOCAL_HEADER_BYTES or header[:4] != b"PK\x03\x04":
        raise BrokenError(f"its entry {shown(info.orig_filename)} is not where the directory says")
    name_bytes, extra_bytes = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    name = data[end : end + name_bytes].decode("utf-8" if info.flag_bits & 0x800 else "cp437")
    if name != info.orig_filename:
        raise RefusedError(f"its entry {shown(info.orig_filename)} has a second name, {shown(name)}")
    return end + name_bytes + extra_bytes
