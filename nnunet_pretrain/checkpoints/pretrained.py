"""Reading a pre-trained model of any origin, always in the form nnU-Net v2 writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunet_pretrain.checkpoints.foreign import genesis, medicalnet, multitalent_v2, nnssl, nnunet_v1, stunet, suprem
from nnunet_pretrain.checkpoints.foreign.file import ForeignFile, foreign_file, without_wrappers
from nnunet_pretrain.checkpoints.reading import checked_checkpoint, read_file
from nnunet_pretrain.checkpoints.refusals import shown
from nnunet_pretrain.checkpoints.safetensors_file import is_safetensors, read_safetensors

_ORIGINS = (nnssl, multitalent_v2, stunet, nnunet_v1, suprem, genesis, medicalnet)
_NATIVE = ("network_weights", "init_args", "trainer_name")


def read_pretrained(path: Path) -> dict[str, Any]:
    """Reads a checkpoint of nnU-Net v2, or of another program whose format is known, without running its content.

    The format is recognised by what the file holds, not by its name. Known are nnU-Net v2 (any trainer) and our
    safetensors export, nnU-Net v1 (Generic_UNet, so MultiTalent v1 and old TotalSegmentator), nnssl, MultiTalent v2,
    SuPreM, Models Genesis, STU-Net, and MedicalNet.

    Args:
        path: The file; beside a file of nnU-Net v1, its `.pkl` is read too.

    Returns:
        The dictionary of an nnU-Net v2 checkpoint. Tensors stay on disk until they are used, on the CPU. A converted
        one has `init_args["nnunet_pretrain"]["origin"]`: `format`, `notes`, `unmapped` (tensor in the file to the
        reason why it was left out) and `unknown` (what the file does not say, which is None in the plans).

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is unreadable or unsafe, its format is unknown, or its network cannot be represented.
    """
    if path.is_file() and is_safetensors(path):
        return read_safetensors(path)

    def sidecar() -> Any:
        beside = path.with_name(f"{path.name}.pkl")
        return read_file(beside) if beside.is_file() else None

    content = read_file(path)
    file = foreign_file(path, content, sidecar)
    if _origin_of(file) is None and all(key in file.content for key in _NATIVE):
        return _native(checked_checkpoint(path, content))
    return converted(file)


def converted(file: ForeignFile) -> dict[str, Any]:
    """Converts a file of a known origin to the form nnU-Net v2 writes.

    Raises:
        ValueError: Its format is unknown, its network cannot be represented, or something it needs is missing.
    """
    origin = _origin_of(file)
    if origin is None:
        known = ", ".join(["nnU-Net v2", *(origin.FORMAT for origin in _ORIGINS)])
        raise ValueError(f"the format of {file.path} is not known: {file.summary()}; known are {known}")
    try:
        return origin.convert(file)
    except (KeyError, IndexError, TypeError, AttributeError, RuntimeError, AssertionError) as error:
        raise ValueError(
            f"{file.path} looks like a checkpoint of {origin.FORMAT}, but has not what that needs "
            f"({type(error).__name__}: {shown(str(error))}): {file.summary()}"
        ) from error


def _origin_of(file: ForeignFile) -> Any:
    """Returns the module of the first origin that recognises a file, or None."""
    return next((origin for origin in _ORIGINS if origin.recognises(file)), None)


def _native(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Returns nnU-Net v2's own checkpoint as it is, but for prefixes that wrappers left in the names."""
    weights = checkpoint["network_weights"]
    plain = {without_wrappers(name): tensor for name, tensor in weights.items()}
    return checkpoint if list(plain) == list(weights) else {**checkpoint, "network_weights": plain}
