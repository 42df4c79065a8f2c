"""Export: a checkpoint in the forms others can use, chosen by the output's name.

- `model.safetensors`: weights and card in a file that can hold no code; transfers start from it.
- a folder, or `model.zip`: a trained model of stock nnU-Net; anyone predicts with it without this package.
- `model.pth` with `form="nnssl"`: what nnU-Net's own fine-tuning (`nnUNetv2_preprocess_like_nnssl`) starts from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from nnunet_pretrain.checkpoints.pretrained import read_pretrained
from nnunet_pretrain.checkpoints.reading import EXTRAS_KEY
from nnunet_pretrain.checkpoints.safetensors_file import write_safetensors
from nnunet_pretrain.transfer.export_model import write_model_folder, write_model_zip
from nnunet_pretrain.transfer.export_nnssl import write_nnssl

Form = Literal["safetensors", "model_dir", "zip", "nnssl"]

_FORMS: dict[str, Form] = {".safetensors": "safetensors", ".zip": "zip"}
_NO_FOLDERS = (".pth", ".pt", ".ckpt", ".bin", ".model", ".pkl", ".onnx", ".gz", ".tar")


def export(
    checkpoint: Path,
    output: Path,
    *,
    encoder_only: bool = False,
    trainer: str = "nnUNetTrainer",
    form: Form | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Writes a checkpoint in another form, atomically; every weight keeps its bits.

    Args:
        checkpoint: Any pre-trained file this package reads.
        output: What to write; a model folder goes into the folder of this name, as into nnUNet_results.
        encoder_only: Whether to leave out decoder and heads.
        trainer: Trainer that stock prediction looks up by name; only for a model folder or its zip.
        form: What to write; None takes it from the output's ending.
        overwrite: Whether to replace what is there.

    Returns:
        Lines for the user: what was written, what it lacks, and how to use it.

    Raises:
        FileNotFoundError: The checkpoint is missing.
        ValueError: The checkpoint is unreadable or unsafe, cannot be used in that form, or the output exists.
    """
    form = form or _form_of(output)
    if encoder_only and form in ("model_dir", "zip"):
        raise ValueError(
            "a model folder without decoder cannot predict; export the encoder as a .safetensors file or for nnssl"
        )
    if form != "model_dir":
        _check_free(output, overwrite)
    content = read_pretrained(checkpoint)
    try:
        return [*_write(form, content, checkpoint, output, encoder_only, trainer, overwrite), *_origin_lines(content)]
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        raise ValueError(
            f"{checkpoint} could not be exported ({reason}); either its plans or dataset.json are not whole, or "
            f"{output} cannot be written"
        ) from error


def _write(
    form: Form,
    content: Mapping[str, Any],
    checkpoint: Path,
    output: Path,
    encoder_only: bool,
    trainer: str,
    overwrite: bool,
) -> list[str]:
    if form == "model_dir":
        return write_model_folder(output, content, checkpoint, trainer, overwrite)
    if form == "zip":
        lines = write_model_zip(output, content, checkpoint, trainer)
    elif form == "nnssl":
        lines = write_nnssl(output, content, encoder_only)
    else:
        write_safetensors(output, content, encoder_only)
        lines = [f"next: nnunet_pretrain plan_transfer -d TARGET -c {output}{' --encoder-only' * encoder_only}"]
    return [f"written to {output} ({output.stat().st_size / 1e6:.1f} MB)", *lines]


def _form_of(output: Path) -> Form:
    ending = output.suffix.lower()
    if ending in _NO_FOLDERS:
        raise ValueError(
            f"{output}: a {ending} file is written with --nnssl only; otherwise end the name in .safetensors or .zip, "
            f"or name a folder"
        )
    return _FORMS.get(ending, "model_dir")


def _check_free(output: Path, overwrite: bool) -> None:
    if output.is_dir():
        raise ValueError(f"{output} is a folder; name a file")
    if output.exists() and not overwrite:
        raise ValueError(f"{output} is there already; choose another name, or replace it with --overwrite")


def _origin_lines(content: Mapping[str, Any]) -> list[str]:
    """Returns what a converted checkpoint does not know."""
    origin = content["init_args"].get(EXTRAS_KEY, {}).get("origin")
    if not origin:
        return []
    lines = [f"converted from {origin.get('format', 'another format')}"]
    if origin.get("unknown"):
        lines.append(f"not known from that file: {', '.join(map(str, origin['unknown']))}")
    return lines
