"""An interpreter for the part of the pickle language that checkpoints are written in.

A pickle is a program. Python's own interpreters run all of it: Python's `pickle.Unpickler` imports and calls whatever
the program names, and torch's `weights_only` one, which names what may be called, still lets `bytearray(10**12)`
take all memory. Here only the operations exist that Python's and torch's writers use for plain data; names lead to
functions of ours, never to an import; memory and time are limited, because every table is a Python dictionary filled
entry by entry (the C interpreter's memo is an array as long as the file asks for), and operations are counted.
"""

from __future__ import annotations

import gc
import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from nnunet_pretrain.checkpoints.refusals import BrokenError, RefusedError, shown

MAX_OPERATIONS = 10_000_000
"""TotalSegmentator's longest log (4,000 epochs, 104 classes) takes 6.7 million."""
MAX_STACK = 200_000
MAX_INT_BYTES = 32
MAX_KEY = 1 << 60
MAX_TUPLE_KEYS = 1_000
_CHUNK = 4_096
_UINT4 = struct.Struct("<I").unpack_from
_LONG_BINPUT, _BINGET, _LONG_BINGET, _TUPLE2 = b"rhj\x86"


class Admitted:
    """What a pickle gets for a name it asks for: a function of ours, behind an object without attributes.

    Args:
        name: Name in the pickle, such as "torch._utils._rebuild_tensor_v2".
        call: Builds the value; checks all of its arguments. None for names that are only arguments themselves.
        value: What the name stands for as an argument.
    """

    __slots__ = ("call", "name", "value")

    def __init__(self, name: str, call: Callable[..., Any] | None = None, value: Any = None) -> None:
        self.name, self.call, self.value = name, call, value


class Unpickling:
    """One run over one pickle.

    Args:
        data: The pickle, protocols 2 to 5.
        admitted: (module, name) to what it stands for; all other names are refused.
        states: Type to a function that sets the state of a value of exactly that type (pickle's BUILD).
        persistent: Returns what a persistent id stands for; None if the pickle may hold none.
    """

    def __init__(
        self,
        data: bytes,
        admitted: Mapping[tuple[str, str], Any],
        states: Mapping[type, Callable[[Any, Any], None]],
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self._data, self._at = data, 0
        self._admitted, self._states, self._persistent = admitted, states, persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._tuple_keys = 0

    def run(self) -> Any:
        """Returns what the pickle describes.

        Raises:
            RefusedError: It asks for more than data, or for too much of it.
            BrokenError: It ends early or makes no sense.
        """
        operations: list[Callable[[], None] | None] = [None] * 256
        for known in pickletools.opcodes:
            if known.name in _OPERATIONS:
                method, *arguments = _OPERATIONS[known.name]
                bound = getattr(self, method)
                operations[ord(known.code)] = partial(bound, *arguments) if arguments else bound
        # Many new containers and no garbage: looking for it in between would take a third of the time.
        collecting = gc.isenabled()
        gc.disable()
        try:
            return self._run(operations)
        finally:
            if collecting:
                gc.enable()

    def _run(self, operations: list[Callable[[], None] | None]) -> Any:
        for _ in range(MAX_OPERATIONS // _CHUNK):
            try:
                self._run_chunk(operations)
            except StopIteration:
                return self._stack.pop()
            except (LookupError, TypeError, ValueError, OverflowError, struct.error) as error:
                if self._at >= len(self._data):
                    raise BrokenError("its pickle ends too early") from None
                raise BrokenError(f"its pickle makes no sense at byte {self._at:,}: {error}") from None
            if len(self._stack) > MAX_STACK or len(self._marks) > MAX_STACK:
                raise RefusedError(f"its pickle piles up more than {MAX_STACK:,} values")
        raise RefusedError(f"its pickle has more than {MAX_OPERATIONS:,} operations")

    def _run_chunk(self, operations: list[Callable[[], None] | None]) -> None:
        """Runs some operations; the four that are half of all of them right here."""
        data, memo, stack = self._data, self._memo, self._stack
        for _ in range(_CHUNK):
            at = self._at
            code = data[at]
            if code == _LONG_BINPUT:
                self._at = at + 5
                memo[_UINT4(data, at + 1)[0]] = stack[-1]
            elif code == _BINGET:
                self._at = at + 2
                stack.append(memo[data[at + 1]])
            elif code == _LONG_BINGET:
                self._at = at + 5
                stack.append(memo[_UINT4(data, at + 1)[0]])
            elif code == _TUPLE2:
                self._at = at + 1
                last = stack.pop()
                stack[-1] = (stack[-1], last)
            else:
                self._at = at + 1
                operation = operations[code]
                if operation is None:
                    self._refuse_operation(code)
                else:
                    operation()

    def _refuse_operation(self, code: int) -> None:
        for known in pickletools.opcodes:
            if ord(known.code) == code:
                raise RefusedError(f"its pickle uses the operation {known.name}, which checkpoints do not need")
        raise BrokenError(f"its pickle has the unknown operation {code:#x} at byte {self._at - 1:,}")

    def _take(self, size: int) -> bytes:
        """Returns the next bytes; where the file has fewer, reading the next operation fails."""
        start, self._at = self._at, self._at + size
        return self._data[start : self._at]

    def _line(self) -> str:
        start, end = self._at, self._data.index(b"\n", self._at)
        self._at = end + 1
        return self._data[start:end].decode("utf-8")

    def _size(self, width: int) -> int:
        return int.from_bytes(self._take(width), "little")

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    # Frames of the file.

    def _proto(self) -> None:
        version = self._size(1)
        if version > 5:
            raise ValueError(f"unknown pickle protocol {version}")

    def _frame(self) -> None:
        size = self._size(8)
        if size > len(self._data) - self._at:
            raise IndexError(f"a frame of {size:,} bytes, {len(self._data) - self._at:,} left")

    def _stop(self) -> None:
        if len(self._stack) != 1 or self._marks or self._at != len(self._data):
            raise ValueError("it should end here with one value")
        raise StopIteration

    # Plain values; `width` is the number of bytes of the value or of its length.

    def _constant(self, value: bool | None) -> None:
        self._stack.append(value)

    def _unsigned(self, width: int) -> None:
        self._stack.append(self._size(width))

    def _signed(self) -> None:
        self._stack.append(int.from_bytes(self._take(4), "little", signed=True))

    def _long(self) -> None:
        size = self._size(1)
        if size > MAX_INT_BYTES:
            raise RefusedError(f"it holds an integer of {size} bytes")
        self._stack.append(int.from_bytes(self._take(size), "little", signed=True))

    def _float(self) -> None:
        self._stack.append(struct.unpack(">d", self._take(8))[0])

    def _text(self, width: int) -> None:
        self._stack.append(self._take(self._size(width)).decode("utf-8"))

    def _bytes(self, width: int) -> None:
        self._stack.append(self._take(self._size(width)))

    # Containers.

    def _mark(self) -> None:
        self._marks.append(len(self._stack))

    def _tuple(self) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _short_tuple(self, length: int) -> None:
        if length > len(self._stack):
            raise IndexError("a tuple of more values than there are")
        start = len(self._stack) - length
        items = tuple(self._stack[start:])
        del self._stack[start:]
        self._stack.append(items)

    def _empty(self, kind: type) -> None:
        self._stack.append(kind())

    def _append(self) -> None:
        self._extend([self._stack.pop()])

    def _appends(self) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise RefusedError(f"items are appended to a {shown(type(target).__name__)}")
        target += items

    def _setitem(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def _setitems(self) -> None:
        self._set(self._since_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) not in (dict, OrderedDict):
            raise RefusedError(f"entries are set in a {shown(type(target).__name__)}")
        if len(items) % 2:
            raise ValueError("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:
                self._check_key(key)
            target[key] = value

    def _check_key(self, key: Any) -> None:
        """Refuses keys whose hashing or comparing can take forever: nested tuples, numbers made to collide."""
        parts = key if type(key) is tuple else (key,)
        self._tuple_keys += type(key) is tuple
        plain = all(
            part is None or type(part) is str or (isinstance(part, int | np.integer) and abs(int(part)) < MAX_KEY)
            for part in parts
        )
        if not plain or len(parts) > 64 or self._tuple_keys > MAX_TUPLE_KEYS:
            raise RefusedError(f"a dictionary has a key of the type {shown(type(key).__name__)}")

    # References.

    def _put1(self) -> None:
        self._memo[self._size(1)] = self._stack[-1]

    def _memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    # What only checked functions of ours do.

    def _global(self) -> None:
        module, name = self._line(), self._line()
        self._stack.append(self._find(module, name))

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(self._find(module, name))

    def _find(self, module: Any, name: Any) -> Any:
        if type(module) is not str or type(name) is not str:
            raise RefusedError("its pickle asks for something by a name that is no text")
        if (module, name) not in self._admitted:
            raise RefusedError(f"it asks for {shown(f'{module}.{name}')}, which is no part of a checkpoint's data")
        return self._admitted[module, name]

    def _reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack[-1]
        if type(function) is not Admitted or function.call is None or type(arguments) is not tuple:
            called = function.name if type(function) is Admitted else f"a {shown(type(function).__name__)}"
            raise RefusedError(f"its pickle calls {called}")
        try:
            self._stack[-1] = function.call(*arguments)
        except TypeError:
            raise RefusedError(f"its pickle calls {function.name} with arguments no checkpoint has") from None

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if type(target) not in self._states:
            called = target.name if type(target) is Admitted else f"a {shown(type(target).__name__)}"
            raise RefusedError(f"its pickle sets the state of {called}")
        self._states[type(target)](target, state)

    def _persistent_id(self) -> None:
        if self._persistent is None:
            raise RefusedError("its pickle has persistent ids, but this is no torch checkpoint")
        self._stack[-1] = self._persistent(self._stack[-1])


_OPERATIONS: dict[str, tuple[Any, ...]] = {
    "PROTO": ("_proto",), "FRAME": ("_frame",), "STOP": ("_stop",),
    "NONE": ("_constant", None), "NEWTRUE": ("_constant", True), "NEWFALSE": ("_constant", False),
    "BININT1": ("_unsigned", 1), "BININT2": ("_unsigned", 2), "BININT": ("_signed",), "LONG1": ("_long",),
    "BINFLOAT": ("_float",),
    "SHORT_BINUNICODE": ("_text", 1), "BINUNICODE": ("_text", 4), "BINUNICODE8": ("_text", 8),
    "SHORT_BINBYTES": ("_bytes", 1), "BINBYTES": ("_bytes", 4), "BINBYTES8": ("_bytes", 8),
    "MARK": ("_mark",), "TUPLE": ("_tuple",), "EMPTY_TUPLE": ("_short_tuple", 0),
    "TUPLE1": ("_short_tuple", 1), "TUPLE3": ("_short_tuple", 3),
    "EMPTY_LIST": ("_empty", list), "APPEND": ("_append",), "APPENDS": ("_appends",),
    "EMPTY_DICT": ("_empty", dict), "SETITEM": ("_setitem",), "SETITEMS": ("_setitems",),
    "BINPUT": ("_put1",), "MEMOIZE": ("_memoize",),
    "GLOBAL": ("_global",), "STACK_GLOBAL": ("_stack_global",), "REDUCE": ("_reduce",), "BUILD": ("_build",),
    "BINPERSID": ("_persistent_id",),
}  # fmt: skip
