"""Reading nnU-Net checkpoints without running what they contain.

Stock nnU-Net unpickles checkpoints freely. Here torch's restricted unpickler reads them; it is told of the numpy
scalars that nnU-Net's log holds, and refuses everything else by name.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

EXTRAS_KEY = "nnunet_pretrain"
"""Where in a checkpoint's `init_args` our trainers keep what nnU-Net has no entry for."""


def _numpy_scalar_types() -> list[Any]:
    """What numpy scalars and small arrays are pickled as, under the names of numpy 1 and 2."""
    multiarray = np._core.multiarray if hasattr(np, "_core") else np.core.multiarray  # type: ignore[attr-defined]
    types: list[Any] = [np.dtype, np.ndarray]
    for function in (multiarray.scalar, multiarray._reconstruct):
        types += [(function, f"{core}.multiarray.{function.__name__}") for core in ("numpy._core", "numpy.core")]
    scalars = (np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.uint8, np.bool_)
    return types + sorted({type(np.dtype(scalar)) for scalar in scalars}, key=repr)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint; tensors stay on disk until they are used, and on the CPU.

    Args:
        path: File written by an nnU-Net trainer.

    Returns:
        The checkpoint's dictionary.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is not a torch checkpoint, holds objects that may run code, or is no nnU-Net checkpoint.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} not found")
    try:
        with torch.serialization.safe_globals(_numpy_scalar_types()):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} was refused, nothing in it was run: {reason:.300}") from None
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not readable as a torch checkpoint: {' '.join(str(error).split()):.300}") from None
    missing = [key for key in ("network_weights", "init_args", "trainer_name") if key not in checkpoint]
    if missing:
        raise ValueError(f"{path} is no nnU-Net v2 checkpoint: it lacks {missing}, it has {list(checkpoint)[:10]}")
    return checkpoint
