"""Export: a checkpoint in the forms others can use, chosen by the output's name.

- `model.safetensors`: weights and card in a file that can hold no code; transfers start from it.
- a folder, or `model.zip`: a trained model of stock nnU-Net; anyone predicts with it without this package.
- `model.pth` with `form="nnssl"`: what nnU-Net's own fine-tuning (`nnUNetv2_preprocess_like_nnssl`) starts from.

A checkpoint of many branches is written whole (safetensors only), or as the ordinary model of one of its domains.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from nnunet_pretrain.checkpoints.branches import branch_names, clip_lines, is_branched, ordinary, with_records
from nnunet_pretrain.checkpoints.classifiers import is_classifier
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
    branch: str | None = None,
    encoder_only: bool = False,
    trainer: str = "nnUNetTrainer",
    form: Form | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Writes a checkpoint in another form, atomically; every weight keeps its bits.

    Args:
        checkpoint: Any pre-trained file this package reads.
        output: What to write; a model folder goes into the folder of this name, as into nnUNet_results.
        branch: Domain whose branch is written with the encoder, from a checkpoint of many branches; its name, or the
            number of its dataset.
        encoder_only: Whether to leave out decoder and heads.
        trainer: Trainer that stock prediction looks up by name; only for a model folder or its zip.
        form: What to write; None takes it from the output's ending.
        overwrite: Whether to replace what is there.

    Returns:
        Lines for the user: what was written, what it lacks, and how to use it.

    Raises:
        FileNotFoundError: The checkpoint is missing.
        ValueError: The checkpoint is unreadable or unsafe, has no such branch, cannot be used in that form, or the
            output exists.
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
        chosen = _chosen(content, form, branch, encoder_only)
        source = None if is_branched(content) else checkpoint
        lines = _write(form, chosen, source, output, encoder_only, trainer, overwrite)
        return [*lines, *_origin_lines(chosen), *clip_lines(chosen)]
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        raise ValueError(
            f"{checkpoint} could not be exported ({reason}); either its plans or dataset.json are not whole, or "
            f"{output} cannot be written"
        ) from error


def _chosen(content: Mapping[str, Any], form: Form, branch: str | None, encoder_only: bool) -> Mapping[str, Any]:
    """Returns what is written of a checkpoint: of one with many branches a branch, the encoder, or all of it."""
    if is_classifier(content) and branch is None:
        if form != "safetensors":
            raise ValueError(
                "a classifier gives no label maps, so stock nnU-Net cannot predict with it; use `nnunet_pretrain "
                "classify`, or export it as .safetensors to start a transfer from its encoder"
            )
        return content
    if branch is not None or not is_branched(content):
        return ordinary(content, branch)
    if form in ("model_dir", "zip"):
        raise ValueError(
            f"stock nnU-Net predicts with one branch; choose it with --branch: {', '.join(branch_names(content))}"
        )
    return ordinary(content) if encoder_only or form == "nnssl" else with_records(content)


def _write(
    form: Form,
    content: Mapping[str, Any],
    source: Path | None,
    output: Path,
    encoder_only: bool,
    trainer: str,
    overwrite: bool,
) -> list[str]:
    if form == "model_dir":
        return write_model_folder(output, content, source, trainer, overwrite)
    if form == "zip":
        lines = write_model_zip(output, content, source, trainer)
    elif form == "nnssl":
        lines = write_nnssl(output, content, encoder_only)
    else:
        write_safetensors(output, content, encoder_only)
        options = " --encoder-only" * encoder_only + " --branch NAME" * is_branched(content)
        lines = [f"next: nnunet_pretrain plan_transfer -d TARGET -c {output}{options}"]
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
