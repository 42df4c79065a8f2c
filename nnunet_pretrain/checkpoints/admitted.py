"""Every name that a checkpoint's pickle may ask for, and the function of ours that it gets.

The names are those that nnU-Net's checkpoints (v2, v1 and its sidecars) hold: tensors, devices, numpy scalars and
numeric arrays, ordered dictionaries. No function is torch's or numpy's own; each checks all of its arguments and
makes at most as many bytes as the file has.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from nnunet_pretrain.checkpoints.archive import Storage
from nnunet_pretrain.checkpoints.refusals import RefusedError, shown
from nnunet_pretrain.checkpoints.unpickling import Admitted

MAX_TENSORS = 100_000
MAX_DIMENSIONS = 16
MAX_EXTENT = 1 << 31
_STORAGES = {
    "Bool": torch.bool, "Byte": torch.uint8, "Char": torch.int8, "Short": torch.int16, "Int": torch.int32,
    "Long": torch.int64, "Half": torch.float16, "BFloat16": torch.bfloat16, "Float": torch.float32,
    "Double": torch.float64,
}  # fmt: skip
_NUMBERS = re.compile(r"b1|[iu][1248]|f[248]")
_TEXT = re.compile(r"U[1-9][0-9]{0,3}")


class _NumpyType:
    """What a pickle gets for a numpy.dtype: the type behind an object that it cannot change."""

    __slots__ = ("dtype",)

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        if type(code) is not str:
            raise RefusedError("it has a numpy type that is not given by name")
        if not (_NUMBERS.fullmatch(code) or _TEXT.fullmatch(code)):
            raise RefusedError(f"it has the numpy type {shown(code)}, which is neither a number nor a short text")
        self.dtype = np.dtype(f"<{code}")


class _Maker:
    """Builds the values of one file, within what the file may make.

    Arrays and scalars copy bytes of the pickle, so that all of them together have no more bytes than it.

    Args:
        size: Length of the pickle in bytes.
    """

    def __init__(self, size: int) -> None:
        self._bytes, self._tensors = size, MAX_TENSORS

    def _spend(self, size: int) -> None:
        self._bytes -= size
        if self._bytes < 0:
            raise RefusedError("it makes more bytes of arrays and scalars than its pickle has")

    def tensor(
        self,
        storage: Any,
        offset: Any,
        shape: Any,
        stride: Any,
        requires_grad: Any = False,
        hooks: Any = None,
        metadata: Any = None,
    ) -> torch.Tensor:
        """Returns a view of a storage; it never requires a gradient."""
        self._tensors -= 1
        if self._tensors < 0:
            raise RefusedError(f"it has more than {MAX_TENSORS:,} tensors")
        if hooks or metadata or type(requires_grad) is not bool:
            raise RefusedError("it has a tensor with hooks or metadata")
        if type(storage) is not Storage or not _is_shape(shape) or not _are_sizes(stride) or not _are_sizes((offset,)):
            raise RefusedError("it has a tensor whose storage, offset, shape or strides are malformed")
        if len(shape) != len(stride):
            raise RefusedError("it has a tensor with other numbers of sizes and strides")
        if math.prod(shape) == 0:
            return torch.empty(shape, dtype=storage.dtype)
        values = storage.memory.nbytes() // storage.dtype.itemsize
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        if last >= values or math.prod(shape) > values or any(step > values for step in stride):
            raise RefusedError(
                f"it has a tensor of shape {tuple(shape)}, which is larger than its storage of {values:,} values"
            )
        return torch.empty(0, dtype=storage.dtype).set_(storage.memory, offset, shape, stride)

    def encoded(self, text: Any, encoding: Any) -> bytes:
        """Returns what protocol 2 writes for bytes: text with one character per byte."""
        if type(text) is not str or encoding != "latin1":
            raise RefusedError("it encodes something else than bytes")
        self._spend(len(text))
        return text.encode("latin1")

    def scalar(self, kind: Any, data: Any) -> Any:
        """Returns a numpy number, truth value or text."""
        if type(kind) is not _NumpyType or type(data) is not bytes or len(data) != kind.dtype.itemsize:
            raise RefusedError("it has a numpy scalar of another size than its type's")
        self._spend(len(data))
        return np.frombuffer(data, kind.dtype)[0]

    def fill_array(self, array: np.ndarray, state: Any) -> None:
        """Gives an array its shape and values: (version, shape, type, in Fortran's order, bytes)."""
        if type(state) is not tuple or len(state) != 5 or state[0] != 1:
            raise RefusedError("it has a numpy array of an unknown form")
        _, shape, kind, fortran, data = state
        if type(kind) is not _NumpyType or kind.dtype.kind == "U" or type(data) is not bytes:
            raise RefusedError("it has a numpy array of something else than numbers")
        if not _is_shape(shape):
            raise RefusedError("it has a numpy array of a malformed or huge shape")
        if math.prod(shape) * kind.dtype.itemsize != len(data):
            raise RefusedError(f"it has a numpy array of shape {tuple(shape)}, but {len(data):,} bytes of values")
        self._spend(len(data))
        array.__setstate__((1, shape, kind.dtype, bool(fortran), data))  # type: ignore[arg-type]


def admitted(size: int) -> tuple[dict[tuple[str, str], Any], dict[type, Callable[[Any, Any], None]]]:
    """Returns what the names in a pickle stand for, and what may be given a state, for `Unpickling`.

    Args:
        size: Length of the pickle in bytes.
    """
    maker = _Maker(size)
    calls: dict[str, Callable[..., Any]] = {
        "collections.OrderedDict": _ordered_dict,
        "torch._utils._rebuild_tensor_v2": maker.tensor,
        "torch._utils._rebuild_parameter": _parameter,
        "torch.device": _device,
        "torch.Size": _size,
        "numpy.dtype": _NumpyType,
        "_codecs.encode": maker.encoded,
        "__builtin__.bytes": _no_bytes,
        "builtins.bytes": _no_bytes,
    }
    for core in ("numpy.core", "numpy._core"):
        calls[f"{core}.multiarray.scalar"] = maker.scalar
        calls[f"{core}.multiarray._reconstruct"] = _empty_array
    names: dict[str, Any] = {name: Admitted(name, call) for name, call in calls.items()}
    names["numpy.ndarray"] = Admitted("numpy.ndarray", value=np.ndarray)
    for prefix, dtype in _STORAGES.items():
        names[f"torch.{prefix}Storage"] = Admitted(f"torch.{prefix}Storage", value=dtype)
        names[str(dtype)] = dtype
    split = {(name.rpartition(".")[0], name.rpartition(".")[2]): found for name, found in names.items()}
    states: dict[type, Callable[[Any, Any], None]] = {
        OrderedDict: _set_metadata,
        _NumpyType: _check_numpy_type,
        np.ndarray: maker.fill_array,
    }
    return split, states


def _are_sizes(values: Any) -> bool:
    if type(values) not in (tuple, torch.Size):
        return False
    return all(type(value) is int and 0 <= value < MAX_EXTENT**2 for value in values)


def _is_shape(shape: Any) -> bool:
    """Whether this is a shape, whose product is small even without the sizes that are 0."""
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        return False
    return math.prod(max(1, size) for size in shape) <= MAX_EXTENT


def _ordered_dict() -> OrderedDict:
    return OrderedDict()


def _set_metadata(target: OrderedDict, state: Any) -> None:
    """Keeps what a state dict knows about the versions of its modules; load_state_dict looks at it."""
    if type(state) is not dict or list(state) != ["_metadata"] or type(state["_metadata"]) not in (dict, OrderedDict):
        raise RefusedError("it sets attributes of a dictionary")
    target._metadata = state["_metadata"]  # type: ignore[attr-defined]


def _parameter(tensor: Any, requires_grad: Any, hooks: Any) -> torch.Tensor:
    """Returns the tensor of a parameter."""
    if type(tensor) is not torch.Tensor or hooks:
        raise RefusedError("it has a parameter that is no tensor, or has hooks")
    return tensor


def _device(kind: Any, index: Any = None) -> torch.device:
    if type(kind) is not str or not (index is None or (type(index) is int and 0 <= index < 128)):
        raise RefusedError("it has a torch.device of an unknown form")
    try:
        return torch.device(kind) if index is None else torch.device(kind, index)
    except RuntimeError:
        raise RefusedError(f"it has the torch.device {shown(kind)}, which torch does not know") from None


def _size(values: Any) -> torch.Size:
    if not _are_sizes(values):
        raise RefusedError("it has a torch.Size of something else than sizes")
    return torch.Size(values)


def _no_bytes() -> bytes:
    return b""


def _check_numpy_type(kind: _NumpyType, state: Any) -> None:
    """Checks the second half of a numpy.dtype: (version, byte order, no parts, fields or names, ...)."""
    if type(state) is not tuple or len(state) < 5 or state[1] not in ("<", "|", "=") or state[2:5] != (None,) * 3:
        raise RefusedError("it has a numpy type with parts, or numbers in big-endian order")


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    if type(kind) is not Admitted or kind.value is not np.ndarray or shape != (0,) or code != b"b":
        raise RefusedError("it has a numpy array of an unknown form")
    return np.empty(0, np.int8)
