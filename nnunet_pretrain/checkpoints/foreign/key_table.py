"""Two-way tables of tensor names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


class KeyTable:
    """Renames tensors by pairs of patterns, in both directions; the first pair that fits a name counts.

    A field in braces stands for one part of a name, between dots; `{rest}` for any number of parts. Both patterns of a
    pair have the same fields.

    Args:
        pairs: Pattern of the origin's name and pattern of nnU-Net v2's.

    Raises:
        ValueError: The patterns of a pair have different fields.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        for origin, v2 in pairs:
            if sorted(_fields(origin)) != sorted(_fields(v2)):
                raise ValueError(f"'{origin}' and '{v2}' have different fields")
        self._forth = [(_expression(origin), v2) for origin, v2 in pairs]
        self._back = [(_expression(v2), origin) for origin, v2 in pairs]

    def to_v2(self, names: Iterable[str]) -> dict[str, str]:
        """Returns the origin's names and nnU-Net v2's; names without a pair are left out."""
        return _renamed(names, self._forth)

    def to_origin(self, names: Iterable[str]) -> dict[str, str]:
        """Returns nnU-Net v2's names and the origin's; names without a pair are left out."""
        return _renamed(names, self._back)


def _renamed(names: Iterable[str], rules: list[tuple[re.Pattern[str], str]]) -> dict[str, str]:
    renamed: dict[str, str] = {}
    for name in names:
        for expression, pattern in rules:
            if found := expression.fullmatch(name):
                renamed[name] = pattern.format(**found.groupdict())
                break
    if len(set(renamed.values())) != len(renamed):
        raise ValueError(f"two tensors would get the same name, among {sorted(renamed)[:6]}")
    return renamed


def _fields(pattern: str) -> list[str]:
    return re.findall(r"{(\w+)}", pattern)


def _expression(pattern: str) -> re.Pattern[str]:
    text = re.escape(re.sub(r"{(\w+)}", r"<\1>", pattern))
    return re.compile(re.sub(r"<(\w+)>", lambda m: f"(?P<{m[1]}>{'.+' if m[1] == 'rest' else '[^.]+'})", text))
