"""Parts of hostile files: operations of pickles and zip archives, put together byte by byte, as no writer does it."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Entry:
    """One zip entry; what is None is told truthfully."""

    name: str
    data: bytes
    method: int = 0
    size: int | None = None
    flags: int = 0
    local_name: str | None = None
    offset: int | None = None


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple:
        return self.function, self.arguments


def checkpoint(**extra: object) -> dict:
    """A small checkpoint as nnU-Net writes it, with further entries."""
    weights = OrderedDict(w=torch.arange(6.0), v=torch.ones(2, 3, dtype=torch.int64))
    return {"network_weights": weights, "init_args": {}, "trainer_name": "nnUNetTrainer", **extra}


def saved(content: object, legacy: bool = False) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def zipped(entries: list[Entry], directory_size: int | None = None) -> bytes:
    """A zip archive of entries as they are given."""
    body, directory = bytearray(), bytearray()
    for entry in entries:
        offset = len(body) if entry.offset is None else entry.offset
        size = len(entry.data) if entry.size is None else entry.size
        crc = zlib.crc32(entry.data)
        local = (entry.name if entry.local_name is None else entry.local_name).encode()
        common = struct.pack("<HHHHHIII", 20, entry.flags, entry.method, 0, 33, crc, len(entry.data), size)
        if entry.offset is None:
            body += b"PK\x03\x04" + common + struct.pack("<HH", len(local), 0) + local + entry.data
        name = entry.name.encode()
        directory += b"PK\x01\x02\x14\x00" + common + struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, offset) + name
    size = len(directory) if directory_size is None else directory_size
    end = struct.pack("<HHHHIIH", 0, 0, len(entries), len(entries), size, len(body), 0)
    return body + directory + b"PK\x05\x06" + end


def archive(program: bytes, *more: Entry, data: bytes = bytes(64)) -> bytes:
    """A torch archive with a pickle and one storage."""
    named = [("data.pkl", program), ("byteorder", b"little"), ("data/0", data), ("version", b"3\n")]
    return zipped([*(Entry(f"archive/{name}", content) for name, content in named), *more])


def text(content: str) -> bytes:
    """The operation for text."""
    return b"X" + struct.pack("<I", len(content.encode())) + content.encode()


def number(value: int) -> bytes:
    """The operation for an integer."""
    data = value.to_bytes(16, "little", signed=True)
    return b"\x8a\x10" + data


def name(module: str, attribute: str) -> bytes:
    """The operation for a name."""
    return f"c{module}\n{attribute}\n".encode()


def entry_of_weights(value: bytes) -> bytes:
    """A pickle of a checkpoint whose entry "x" some operations make."""
    head = pickle.dumps({"init_args": {}, "trainer_name": "t", "network_weights": {}}, 2)
    return head[:-1] + text("x") + value + b"s."


def storage(key: str = "0", values: int = 16, kind: bytes = name("torch", "FloatStorage")) -> bytes:
    """The operations for a storage."""
    return b"(" + text("storage") + kind + text(key) + text("cpu") + number(values) + b"tQ"


def numbers(*values: int) -> bytes:
    """The operations for a tuple of integers."""
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(offset: int, shape: tuple, stride: tuple, of: bytes | None = None, hooks: bytes = b"N") -> bytes:
    """The operations for a tensor."""
    arguments = (of or storage()) + number(offset) + numbers(*shape) + numbers(*stride) + b"\x89" + hooks
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def numpy_type(code: str, state: bytes = b"NNN") -> bytes:
    """The operations for a numpy.dtype."""
    made = name("numpy", "dtype") + text(code) + b"\x89\x88\x87R"
    return made + b"(K\x03" + text("<") + state + number(-1) + number(-1) + b"K\x00tb"


def array(shape: tuple, kind: bytes, data: bytes, first: tuple = (0,)) -> bytes:
    """The operations for a numpy array."""
    made = name("numpy._core.multiarray", "_reconstruct") + name("numpy", "ndarray") + numbers(*first) + b"C\x01b\x87R"
    return made + b"(K\x01" + numbers(*shape) + kind + b"\x89" + b"B" + struct.pack("<I", len(data)) + data + b"tb"
