"""A foreign file as its origins see it: the state dict, wherever it lies in the file, under plain names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nnunet_pretrain.checkpoints.unpickling import shown

STATE_DICTS = ("network_weights", "state_dict", "net", "model", "model_state_dict")
"""Where files keep their state dict; a file may also be one."""


@dataclass(frozen=True)
class ForeignFile:
    """A file that is read, but not yet understood.

    Attributes:
        path: The file.
        content: What it holds.
        key: Which entry of it is the state dict; empty if the whole file is.
        weights: Tensors under their names without the prefixes of wrappers.
        names: Those names to the names in the file.
        read_sidecar: Returns the content of the `.pkl` that nnU-Net v1 writes beside a checkpoint, or None.
    """

    path: Path
    content: Mapping[str, Any]
    key: str
    weights: Mapping[str, Tensor]
    names: Mapping[str, str]
    read_sidecar: Callable[[], Any] = lambda: None

    def has(self, pattern: str) -> bool:
        """Says whether a tensor's whole name matches a regular expression."""
        expression = re.compile(pattern)
        return any(expression.fullmatch(name) for name in self.weights)

    def epoch(self) -> int:
        """Returns the number of finished epochs, 0 if the file does not say."""
        found = self.content.get("epoch", self.content.get("current_epoch", 0))
        return int(found) if isinstance(found, int | float) else 0

    def v2_arguments(self, *needed: str) -> dict[str, Any]:
        """Returns a copy of the entry `init_args` of a file that a fork of nnU-Net v2 wrote.

        Args:
            needed: Entries of it that must be dictionaries; nnU-Net would take a text for the path of a file.

        Raises:
            ValueError: It, or a needed entry, is no dictionary.
        """
        arguments = self.content.get("init_args")
        if not isinstance(arguments, dict) or not all(isinstance(arguments.get(key), dict) for key in needed):
            raise ValueError(f"{self.path} is no nnU-Net v2 checkpoint: init_args lacks {' or '.join(needed)}")
        return dict(arguments)

    def summary(self) -> str:
        """Describes the file for an error message."""
        where = f"entry '{self.key}'" if self.key else "file"
        first = ", ".join(shown(name) for name in list(self.names.values())[:5]) or "none"
        return f"top-level keys {_keys(self.content)}, {len(self.weights)} tensors in its {where}, first: {first}"


def foreign_file(path: Path, content: Any, read_sidecar: Callable[[], Any] = lambda: None) -> ForeignFile:
    """Finds the state dict in what a file holds.

    Raises:
        ValueError: The file holds no dictionary, or no state dict where one is expected.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected the dictionary of a checkpoint")
    for key in (*STATE_DICTS, ""):
        found = content.get(key) if key else content
        if isinstance(found, Mapping) and any(isinstance(value, Tensor) for value in found.values()):
            tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
            plain = {without_wrappers(name): name for name in tensors}
            if len(plain) != len(tensors):
                raise ValueError(f"{path} lists tensors both with and without the prefix of a wrapper; write it anew")
            weights = {name: tensors[original] for name, original in plain.items()}
            return ForeignFile(path, content, key, weights, plain, read_sidecar)
    raise ValueError(
        f"{path} holds no state dict: its top-level keys are {_keys(content)}, expected tensors there or in one of "
        f"{', '.join(STATE_DICTS)}"
    )


def _keys(content: Mapping[str, Any]) -> str:
    return ", ".join(shown(str(key)) for key in list(content)[:10]) or "none"


def without_wrappers(name: str) -> str:
    """Returns a tensor's name without what DistributedDataParallel and torch.compile put before it."""
    return re.sub(r"^(?:module\.|_orig_mod\.)+", "", name)
