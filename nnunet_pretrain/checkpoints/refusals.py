"""Why a file is not read, in words that a file cannot choose."""

from __future__ import annotations


class RefusedError(Exception):
    """The content is not what checkpoints hold; the message says what was met."""


class BrokenError(Exception):
    """The file ends early or makes no sense; the message says where."""


def shown(value: object) -> str:
    """Returns a value from a file fit for one line of a terminal: no control characters, at most 120 characters.

    Args:
        value: Text, or a value that `read_file` returned; the text of what was not checked yet may be endless.
    """
    line = str(value)[:120]
    return line if line.isprintable() else ascii(line)
