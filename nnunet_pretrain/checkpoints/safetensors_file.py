"""Checkpoints as safetensors files: tensors and a header of text, nothing that could run.

The header's metadata hold plans, dataset.json and card as JSON, so that the file alone is enough for a transfer. A
tensor that nnU-Net lists under several names is stored once, and read back as one tensor under all of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nnunet_pretrain.checkpoints.card import card_of
from nnunet_pretrain.checkpoints.portable import ENCODER_ONLY, encoder_weights, portable, without_aliases
from nnunet_pretrain.checkpoints.reading import EXTRAS_KEY
from nnunet_pretrain.files import written_atomically

FORMAT = "nnunet_pretrain 1"
"""What the metadata's entry "format" says; the number grows when older readers would misunderstand a file."""

_MAX_METADATA = 90_000_000
_MAX_JSON_VALUES = 1_000_000
_JSON_ENTRIES: dict[str, type | tuple[type, ...]] = {
    "plans": dict,
    "dataset_json": dict,
    "extras": dict,
    "names": dict,
    "inference_allowed_mirroring_axes": (list, type(None)),
    "fold": (int, str),
    "current_epoch": int,
}


def is_safetensors(path: Path) -> bool:
    """Tells from a file's first bytes whether it is meant as safetensors: a length, then a JSON object."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size


def write_safetensors(path: Path, checkpoint: Mapping[str, Any], encoder_only: bool = False) -> None:
    """Writes a checkpoint as a safetensors file, atomically; every value keeps its bits.

    Metadata, all text: `format`; `card`, `plans`, `dataset_json`, `extras` (what our trainers add, with the
    fingerprints of the training images), `names` (every name of nnU-Net's state dict to that of the stored tensor),
    `inference_allowed_mirroring_axes`, `fold` and `current_epoch` as JSON; `configuration` and `trainer_name`.

    Args:
        path: File to write.
        checkpoint: A checkpoint in the form of nnU-Net v2.
        encoder_only: Whether to leave out decoder and heads.

    Raises:
        ValueError: The checkpoint holds what the format cannot: a tensor of a rare type, or too much metadata.
    """
    content = portable(checkpoint)
    if encoder_only:
        content["network_weights"] = encoder_weights(content)
        content["init_args"][EXTRAS_KEY][ENCODER_ONLY] = True
    tensors, names = without_aliases(content["network_weights"])
    with written_atomically(path) as temporary:
        card = card_of(temporary, content).as_dict()
        del card["file"], card["size_mb"]
        metadata = _metadata(content, names, card)
        try:
            save_file(_separate(tensors), temporary, metadata=metadata)
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path} cannot be written as safetensors: {error}") from None


def _metadata(content: Mapping[str, Any], names: Mapping[str, str], card: Mapping[str, Any]) -> dict[str, str]:
    arguments = content["init_args"]
    values = {
        "card": card,
        "plans": arguments["plans"],
        "dataset_json": arguments["dataset_json"],
        "extras": arguments[EXTRAS_KEY],
        "names": names,
        "inference_allowed_mirroring_axes": content["inference_allowed_mirroring_axes"],
        "fold": arguments["fold"],
        "current_epoch": content["current_epoch"],
    }
    texts = {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}
    size = sum(len(text.encode()) for text in texts.values())
    if size > _MAX_METADATA:
        raise ValueError(
            f"plans, dataset.json and card have {size / 1e6:.0f} MB, a safetensors header holds "
            f"{_MAX_METADATA / 1e6:.0f} MB; export a model folder instead"
        )
    named = {"configuration": arguments["configuration"], "trainer_name": content["trainer_name"]}
    return {"format": FORMAT, **named, **texts}


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns contiguous tensors of which no two share memory, as the format demands."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        own = tensor.detach().contiguous()
        storage = own.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != own.numel() * own.element_size():
            own = own.clone()
        seen.add(own.untyped_storage().data_ptr())
        separate[name] = own
    return separate


def read_safetensors(path: Path) -> dict[str, Any]:
    """Reads what `write_safetensors` wrote; the tensors are mapped into memory, so their values are read when used.

    Args:
        path: The file.

    Returns:
        A checkpoint in the form of nnU-Net v2, without state of an optimiser.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is damaged, or no checkpoint of this package.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} not found")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = _checked(path, file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except (SafetensorError, OSError, RuntimeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not readable as safetensors: {' '.join(str(error).split()):.300}") from None
    names = metadata["names"]
    wrong = sorted(set(tensors) ^ set(names.values()))
    if wrong:
        raise ValueError(f"{path} is damaged: tensors and their names do not belong together, such as {wrong[0]:.100}")
    axes = metadata["inference_allowed_mirroring_axes"]
    return {
        "network_weights": {name: tensors[stored] for name, stored in names.items()},
        "current_epoch": metadata["current_epoch"],
        "init_args": {
            "plans": metadata["plans"],
            "configuration": metadata["configuration"],
            "fold": metadata["fold"],
            "dataset_json": metadata["dataset_json"],
            "device": torch.device("cpu"),
            EXTRAS_KEY: metadata["extras"],
        },
        "trainer_name": metadata["trainer_name"],
        "inference_allowed_mirroring_axes": None if axes is None else tuple(axes),
    }


def _checked(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Returns the metadata with their JSON read."""
    found = metadata.get("format", "")
    if found != FORMAT:
        raise ValueError(
            f"{path} is no checkpoint of `nnunet_pretrain export`: its format is '{found[:50]}', expected '{FORMAT}'. "
            f"Weights alone are not enough; plans and labels are needed too"
        )
    missing = [key for key in ("configuration", "trainer_name", *_JSON_ENTRIES) if key not in metadata]
    if missing:
        raise ValueError(f"{path} is damaged: its metadata lack {missing}")
    values: dict[str, Any] = {key: metadata[key] for key in ("configuration", "trainer_name")}
    for key, kind in _JSON_ENTRIES.items():
        text = metadata[key]
        if sum(map(text.count, ",[{")) > _MAX_JSON_VALUES:
            raise ValueError(f"{path} is refused: its {key} have more than {_MAX_JSON_VALUES:,} values")
        try:
            values[key] = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is damaged: its {key} are no JSON ({error!s:.100})") from None
        if not isinstance(values[key], kind):
            raise ValueError(f"{path} is damaged: its {key} are of type {type(values[key]).__name__}")
    if not all(isinstance(name, str) for name in values["names"].values()):
        raise ValueError(f"{path} is damaged: the name of a tensor is no text")
    return values
