"""Files that should do harm when they are read, and a program that reads them and says what happened."""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from hostile_parts import (
    Call,
    Entry,
    archive,
    array,
    checkpoint,
    entry_of_weights,
    name,
    number,
    numbers,
    numpy_type,
    saved,
    storage,
    tensor,
    text,
    zipped,
)


@dataclass(frozen=True)
class Hostile:
    """One file, and what its refusal must say."""

    name: str
    data: bytes
    says: str


def payloads(folder: Path) -> list[Hostile]:
    """Files that make a folder below `folder` when stock torch.load reads them."""

    def mark(of: str) -> str:
        return str(folder / f"ran-{of}")

    code = "__import__('os').mkdir({!r})"
    runs = {
        "os.mkdir": (r"(posix|nt)\.mkdir", Call(os.mkdir, mark("mkdir"))),
        "os.system": (r"(posix|nt)\.system", Call(os.system, f"mkdir {mark('system')}")),
        "eval": (r"__builtin__\.eval", Call(eval, code.format(mark("eval")))),
        "exec": (r"__builtin__\.exec", Call(exec, code.format(mark("exec")))),
        "subprocess": (
            r"(commands|subprocess)\.check_call",
            Call(subprocess.check_call, ["mkdir", mark("subprocess")]),
        ),
    }
    files = [
        Hostile(f"payload {run}", saved(checkpoint(x=call)), f"refused.*{says}") for run, (says, call) in runs.items()
    ]
    call = runs["os.mkdir"][1]
    nested = checkpoint(init_args={"plans": {"a": [{"b": ((call,),)}]}})
    objects = checkpoint(logging=np.array([call], dtype=object))
    return [
        *files,
        Hostile("payload nested", saved(nested), r"refused.*(posix|nt)\.mkdir"),
        Hostile("payload in object array", saved(objects), "refused.*numpy type O8"),
        Hostile("payload legacy", saved(checkpoint(x=call), legacy=True), "not readable.*before 1.6.*save it again"),
        Hostile("payload as key", saved({**checkpoint(), call: 1}), r"refused.*(posix|nt)\.mkdir"),
    ]


def programs() -> list[Hostile]:
    """Pickles that use the language for something else than data."""
    rebuild, ordered = name("torch._utils", "_rebuild_tensor_v2"), name("collections", "OrderedDict")
    found = {
        "import": (name("importlib", "import_module") + text("antigravity") + b"\x85R", r"importlib\.import_module"),
        "getattr": (name("builtins", "getattr") + ordered + text("fromkeys") + b"\x86R", r"builtins\.getattr"),
        "dotted name": (text("torch") + text("serialization.os.system") + b"\x93", r"torch\.serialization\.os\.system"),
        "attribute of a function": (
            text("torch._utils") + text("_rebuild_tensor_v2.__globals__") + b"\x93",
            r"_rebuild_tensor_v2\.__globals__",
        ),
        "split elsewhere": (text("torch") + text("_utils._rebuild_tensor_v2") + b"\x93", "it asks for torch._utils"),
        "name that is no text": (b"K\x01K\x02\x93", "by a name that is no text"),
        "name for the terminal": (name("os", "\x1b[2Jall is well"), r"os.\\x1b\[2Jall is well"),
        "INST": (b"(" + text("ls") + b"ios\nsystem\n", "operation INST"),
        "OBJ": (b"(" + name("torch", "device") + text("cpu") + b"o", "operation OBJ"),
        "NEWOBJ": (ordered + b")\x81", "operation NEWOBJ"),
        "EXT1": (b"\x82\x01", "operation EXT1"),
        "PERSID": (b"Pstorage\n", "operation PERSID"),
        "BYTEARRAY8": (b"\x96" + struct.pack("<Q", 1 << 40), "operation BYTEARRAY8"),
        "LONG4": (b"\x8b" + struct.pack("<i", 1 << 30), "operation LONG4"),
        "unknown operation": (b"\xfe", "unknown operation 0xfe"),
        "state of a function": (rebuild + b"}" + text("__code__") + b"Nsb", "sets the state of torch._utils._rebuild"),
        "state of a class": (ordered + b"}" + text("update") + b"Nsb", "sets the state of collections.OrderedDict"),
        "state of a dictionary": (b"}}" + text("a") + b"Nsb", "sets the state of a dict"),
        "attributes": (ordered + b")R}" + text("__class__") + b"Nsb", "sets attributes of a dictionary"),
        "call of a type": (name("numpy", "ndarray") + number(10**12) + b"\x85R", "calls numpy.ndarray"),
        "call of text": (text("print") + b")R", "calls a str"),
        "name as a value": (name("torch", "FloatStorage"), "has torch.FloatStorage where a value should be"),
        "bytearray bomb": (name("builtins", "bytearray") + number(10**12) + b"\x85R", r"builtins\.bytearray"),
        "bytes bomb": (name("builtins", "bytes") + number(10**12) + b"\x85R", "calls builtins.bytes with arguments"),
        "torch.Tensor bomb": (name("torch", "Tensor") + number(10**10) + b"\x85R", r"torch\.Tensor"),
        "huge memo index": (b"}r" + b"\xff" * 4 + b"a", "items are appended to a"),
        "memo before it is made": (b"j\xff\xff\xff\xff", "makes no sense"),
        "huge frame": (b"\x95" + struct.pack("<Q", 1 << 62), "a frame of"),
        "huge text": (b"\x8d" + struct.pack("<Q", 1 << 62) + b"abc", "ends too early"),
        "huge bytes": (b"\x8e" + struct.pack("<Q", 1 << 62) + b"abc", "ends too early"),
        "huge integer": (b"\x8a\xff" + b"\x7f" * 255, "an integer of 255 bytes"),
        "device": (name("torch", "device") + text("nowhere") + b"\x85R", "torch.device nowhere"),
        "sizes": (name("torch", "Size") + numbers(-1) + b"\x85R", "torch.Size of something else"),
        "encoding": (name("_codecs", "encode") + text("a") + text("zip") + b"\x86R", "encodes something else"),
    }
    return [_refused(what, value, says) for what, (value, says) in found.items()]


def giants() -> list[Hostile]:
    """Small files that describe much, or describe it without end."""
    deep = 1_000_000
    laughs = b"(]" + b"".join(b"q%c](" % i + b"h%c" % i * 10 + b"e" for i in range(14)) + b"t"
    doubled = b"K\x00\x85" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(40))
    long_text = text("a" * 1_000_000) + b"q\x00]" + b"(" + b"h\x00" * 2_000 + b"e\x86"
    keys = b"}(" + b"".join(number(k * ((1 << 61) - 1)) + b"N" for k in range(1, 2_000)) + b"u"
    views = b"](" + tensor(0, (16,), (1,)) + b"q\x00" + b"h\x00" * 2_000 + b"e"
    found = {
        "billion laughs": (laughs, "unfolds to more than"),
        "billion laughs, tuples": (doubled, "unfolds to more than"),
        "long text, often": (long_text, "unfolds to more than"),
        "list within itself": (b"]q\x00h\x00a", "contains itself"),
        "dictionary within itself": (b"}q\x00" + text("a") + b"h\x00s", "contains itself"),
        "deep lists": (b"]" * 100_000 + b"a" * 99_999, "nested more than"),
        "deep tuples": (b"N" + b"\x85" * deep, "nested more than"),
        "deep key": (b"}N" + b"\x85" * deep + b"Ns", "key of the type tuple"),
        "wide shape": (name("torch", "Size") + doubled + b"\x85R", "torch.Size of something else"),
        "wide name of a type": (name("numpy", "dtype") + doubled + b"\x85R", "numpy type that is not given by name"),
        "wide shape of an array": (array((), doubled, b""), "something else than numbers"),
        "wide key": (b"}" + doubled + b"Ns", "key of the type tuple"),
        "colliding keys": (keys, "key of the type int"),
        "key that is a float": (b"}G" + bytes(8) + b"Ns", "key of the type float"),
        "many values": (b"]" * 1_000_000, "piles up more than"),
        "many marks": (b"(" * 1_000_000, "piles up more than"),
        "many operations": (b"]" + b"Na" * 5_100_000, "has more than 10,000,000 operations"),
        "same tensor, often": (views, "show the file's bytes"),
    }
    return [_refused(what, value, says) for what, (value, says) in found.items()]


def tensors() -> list[Hostile]:
    """Tensors and arrays that are not where they say."""
    long_state = b"N" + b"(" + text("a") + b"t}"
    number_type = numpy_type("f8")
    scalar = name("numpy.core.multiarray", "scalar")
    found = {
        "storage larger than its entry": (tensor(0, (17,), (1,), storage(values=17)), "should have 68 bytes"),
        "storage larger than the file": (tensor(0, (1,), (1,), storage(values=10**15)), "should have 4,000,000,000"),
        "storage of 2^100 values": (tensor(0, (1,), (1,), storage(values=2**100)), "should have"),
        "negative storage": (tensor(0, (1,), (1,), storage(values=-1)), "persistent id that is no torch storage"),
        "storage elsewhere": (tensor(0, (1,), (1,), storage("../../etc/passwd")), "is not in the file"),
        "storage that is no data": (tensor(0, (1,), (1,), storage("../data.pkl")), "is not in the file"),
        "storage of a function": (storage(kind=name("torch", "device")), "persistent id that is no torch storage"),
        "persistent id, other": (text("storage") + b"Q", "persistent id that is no torch storage"),
        "two sizes": (b"]" + storage() + b"a" + storage(values=8) + b"a", "given with two types or sizes"),
        "stride 0": (tensor(0, (10**6, 10**6), (0, 0)), "offset, shape or strides are malformed"),
        "stride 0, smaller": (tensor(0, (10**6,), (0,)), "larger than its storage"),
        "beyond its storage": (tensor(8, (3, 3), (3, 1)), "larger than its storage"),
        "large stride": (tensor(0, (1, 2), (2**61, 1)), "larger than its storage"),
        "negative stride": (tensor(4, (2,), (-1,)), "offset, shape or strides are malformed"),
        "negative offset": (tensor(-1, (2,), (1,)), "offset, shape or strides are malformed"),
        "negative size": (tensor(0, (-2,), (1,)), "offset, shape or strides are malformed"),
        "huge and empty": (tensor(0, (0, 2**62), (1, 1)), "offset, shape or strides are malformed"),
        "many dimensions": (tensor(0, (1,) * 10_000, (1,) * 10_000), "offset, shape or strides are malformed"),
        "hooks": (tensor(0, (2,), (1,), hooks=b"}K\x01Ns"), "hooks or metadata"),
        "tensor of text": (tensor(0, (2,), (1,), of=text("0")), "offset, shape or strides are malformed"),
        "array made huge": (array((2,), number_type, bytes(16), first=(10**12,)), "numpy array of an unknown form"),
        "array of huge shape": (array((10**12,), number_type, bytes(16)), "malformed or huge shape"),
        "array of other shape": (array((2, 1000), number_type, bytes(16)), r"shape \(2, 1000\), but 16 bytes"),
        "array of objects": (array((2,), numpy_type("O8"), bytes(16)), "numpy type O8"),
        "array of text": (array((2,), numpy_type("U2"), bytes(16)), "something else than numbers"),
        "void type": (numpy_type("V1000000000"), "numpy type V1000000000"),
        "huge text type": (numpy_type("U999999999"), "numpy type U999999999"),
        "type with parts": (numpy_type("f8", long_state), "numpy type with parts"),
        "scalar of another size": (scalar + number_type + b"C\x01a\x86R", "another size than its type's"),
    }
    copied = name("_codecs", "encode") + text("a" * 10_000) + text("latin1") + b"\x86q\x00R"
    often = b"](" + copied + (name("_codecs", "encode") + b"h\x00R") * 1_000 + b"e"
    found["bytes copied often"] = (often, "more bytes of arrays and scalars than its pickle")
    return [_refused(what, value, says) for what, (value, says) in found.items()]


def archives() -> list[Hostile]:
    """Zip archives that no torch.save writes."""
    good = entry_of_weights(b"N")
    megabyte = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = [megabyte.compress(bytes(1 << 20)) + megabyte.flush(zlib.Z_FULL_FLUSH) for _ in range(2)][1]
    bomb = Entry("archive/data.pkl", block * 2_048 + b"\x03\x00", method=8, size=2 << 30)
    entry = Entry("archive/data/1", bytes(64))
    flood = [Entry(f"a/{i:05}", b"") for i in range(41_000)]
    long_names = [Entry(f"a/{i:0100}", b"") for i in range(41_000)]
    found = {
        "zip bomb": (zipped([bomb]), "data.pkl is compressed"),
        "zip bomb called stored": (zipped([replace(bomb, method=0)]), "data.pkl is compressed"),
        "compressed storage": (archive(good, replace(bomb, name="archive/data/1")), "data/1 is compressed"),
        "other compression": (archive(good, replace(entry, method=14)), "data/1 is compressed"),
        "overlapping": (archive(good, replace(entry, offset=0, local_name="")), "overlaps the one before"),
        "twice": (archive(good, Entry("archive/data.pkl", good)), "data.pkl is there twice"),
        "encrypted": (archive(good, replace(entry, flags=1)), "encrypted"),
        "two names": (archive(good, replace(entry, local_name="archive/data/2")), "has a second name"),
        "path upwards": (archive(good, replace(entry, name="archive/../../x")), "one folder"),
        "absolute path": (archive(good, replace(entry, name="/etc/passwd")), "one folder"),
        "other folder": (archive(good, replace(entry, name="other/data/1")), "one folder"),
        "behind the end": (archive(good, replace(entry, offset=1 << 30)), "not where the directory says"),
        "huge directory": (zipped([entry], directory_size=1 << 31), "not readable"),
        "many entries": (zipped(flood), "41,000 entries"),
        "large directory": (zipped(long_names), "its zip directory has 6,068,000 bytes"),
        "no pickle": (zipped([entry]), "without data.pkl"),
        "TorchScript": (archive(good, Entry("archive/constants.pkl", b"")), "TorchScript archive"),
        "big-endian": (
            zipped([Entry("a/data.pkl", good), Entry("a/byteorder", b"big")]), "big-endian order"
        ),
        "two pickles": (archive(good + good), "should end here"),
        "list": (archive(b"\x80\x02]."), "should hold a dictionary, it holds a value of the type list"),
        "no keys": (archive(b"\x80\x02}."), "it lacks"),
        "weights that are none": (saved(checkpoint(network_weights={"a": 1})), "network_weights/a is a value of the"),
        "weights in a list": (saved(checkpoint(network_weights=[])), "network_weights is a value of the type list"),
        "arguments in a list": (saved(checkpoint(init_args=[])), "init_args is a value of the type list"),
        "plans in a list": (saved(checkpoint(init_args={"plans": []})), "init_args/plans is a value of the type list"),
        "trainer that is no text": (saved(checkpoint(trainer_name=3)), "trainer_name is a value of the type int"),
    }  # fmt: skip
    return [Hostile(what, data, says) for what, (data, says) in found.items()]


def broken() -> list[Hostile]:
    """Files that are cut off, or something else."""
    whole = saved(checkpoint())
    found = {f"cut at {share}%": (whole[: len(whole) * share // 100], "not readable") for share in (1, 20, 50, 80, 99)}
    program = archive(entry_of_weights(b"N")[:40])
    return [
        *(Hostile(what, data, says) for what, (data, says) in found.items()),
        Hostile("cut pickle", program, "not readable.*ends too early"),
        Hostile("empty", b"", "not readable.*it is empty"),
        Hostile("wrong magic", b"PX" + whole[2:], "not readable.*it begins with"),
        Hostile("text", b"weights\n", "not readable.*it begins with"),
        Hostile("plain pickle", pickle.dumps(checkpoint()["init_args"]), "not readable.*plain pickle"),
        Hostile("tar", bytes(257) + b"ustar" + bytes(500), "not readable.*before 1.6.*save it again"),
        Hostile("legacy", saved(checkpoint(), legacy=True), "not readable.*before 1.6.*save it again"),
    ]


def corpus(folder: Path) -> list[Hostile]:
    """All files; payloads make folders below `folder`."""
    return [*payloads(folder), *programs(), *giants(), *tensors(), *archives(), *broken()]


def _refused(what: str, value: bytes, says: str) -> Hostile:
    return Hostile(what, archive(entry_of_weights(value)), says)


def largest_memory_mb() -> float:
    """The most memory this process has had; the system's call for it also knows that of the process before exec."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text(encoding="ascii").partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def read_all(folder: Path) -> dict[str, dict]:
    """Reads every file of a folder; returns what was raised, and by how much the process's largest memory grew."""
    from nnunet_pretrain.checkpoints.reading import read_checkpoint

    read_checkpoint(folder / "good.pth")
    outcomes: dict[str, dict] = {}
    for path in sorted(folder.glob("*.pth")):
        before = largest_memory_mb()
        try:
            read_checkpoint(path)
            said = "read"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        outcomes[path.stem] = {"said": said, "grown_mb": largest_memory_mb() - before}
    return outcomes


if __name__ == "__main__":
    sys.stdout.write(json.dumps(read_all(Path(sys.argv[1]))))
