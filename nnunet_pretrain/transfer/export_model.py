"""Export as a trained model of stock nnU-Net: the folder its prediction reads, or the zip its installer unpacks."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nnunet_pretrain.checkpoints.portable import build_network, imports_of, plain, portable, unknown_imports
from nnunet_pretrain.files import read_json, write_json, written_atomically

CHECKPOINT = "checkpoint_final.pth"
FINGERPRINT = "dataset_fingerprint.json"
STOCK_TRAINER = "nnUNetTrainer"

_CHANGING_PLANS = ("continue_training",)


def write_model_folder(
    results: Path, checkpoint: Mapping[str, Any], source: Path | None, trainer: str, overwrite: bool = False
) -> list[str]:
    """Writes a model as nnU-Net's training would have left it in its results folder, without the optimiser's state.

    Further folds of the same model go beside those that are there.

    Args:
        results: Folder to use as nnUNet_results; made if missing.
        checkpoint: A checkpoint in the form of nnU-Net v2.
        source: The file it was read from; what nnU-Net keeps beside such a file goes along. None if that tells of more
            than this model.
        trainer: Trainer name to write into it.
        overwrite: Whether to replace the same fold of the same model.

    Returns:
        Lines for the user.

    Raises:
        ValueError: Stock nnU-Net could not predict with it, or the fold or another model lies there already.
    """
    if results.exists() and not results.is_dir():
        raise ValueError(f"{results} is a file; name a folder, or end the name in .safetensors or .zip")
    content = portable(checkpoint)
    lines = check_predicts(content, trainer)
    relative = model_path(content, trainer)
    model, fold = results / relative.parent, results / relative
    if fold.exists() and not overwrite:
        raise ValueError(f"{fold} is there already; choose another folder, or replace it with --overwrite")
    if model.exists():
        _check_same_model(model, content)
    with _temporary_folder(results) as folder:
        _write_files(folder, content, source, trainer)
        _move_in(folder / relative.parent, model, relative.name)
    size = (fold / CHECKPOINT).stat().st_size / 1e6
    return [
        f"model written to {model} ({fold.name}, {size:.1f} MB; without the optimiser's state, so it cannot be "
        f"continued with --c)",
        *lines,
        f"next: nnUNetv2_predict_from_modelfolder -i IMAGES -o OUTPUT -m {model} -f {fold.name.removeprefix('fold_')}",
    ]


def write_model_zip(output: Path, checkpoint: Mapping[str, Any], source: Path | None, trainer: str) -> list[str]:
    """Writes the same files as a zip, as nnUNetv2_export_model_to_zip does.

    Args:
        output: The zip; replaced if it is there.
        checkpoint: A checkpoint in the form of nnU-Net v2.
        source: The file it was read from, or None.
        trainer: Trainer name to write into it.

    Returns:
        Lines for the user.

    Raises:
        ValueError: Stock nnU-Net could not predict with it.
    """
    content = portable(checkpoint)
    lines = check_predicts(content, trainer)
    with _temporary_folder(output.parent) as folder, written_atomically(output) as temporary:
        _write_files(folder, content, source, trainer)
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as zipped:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    zipped.write(path, path.relative_to(folder).as_posix())
    relative = model_path(content, trainer)
    return [
        "without the optimiser's state, so it cannot be continued with --c",
        *lines,
        f"next: nnUNetv2_install_pretrained_model_from_zip {output}, then: nnUNetv2_predict_from_modelfolder -i IMAGES "
        f"-o OUTPUT -m $nnUNet_results/{relative.parent.as_posix()} -f {relative.name.removeprefix('fold_')}",
    ]


def model_path(checkpoint: Mapping[str, Any], trainer: str) -> Path:
    """Returns where nnU-Net keeps a fold, relative to nnUNet_results.

    Raises:
        ValueError: A name in the checkpoint is no name of a folder.
    """
    arguments = checkpoint["init_args"]
    plans, fold = arguments["plans"], str(arguments["fold"])
    names = (plans["dataset_name"], trainer, plans["plans_name"], arguments["configuration"])
    for name in names:
        if not isinstance(name, str) or not name.strip(". ") or set(name) & set('/\\:\0*?"<>|'):
            raise ValueError(f"'{name!s:.100}' in the checkpoint is no name of a folder")
    if fold != "all" and not fold.isdecimal():
        raise ValueError(f"the checkpoint's fold is '{fold:.100}', expected a number or 'all'")
    return Path(names[0], "__".join(names[1:]), f"fold_{fold}")


def check_predicts(checkpoint: Mapping[str, Any], trainer: str) -> list[str]:
    """Checks that prediction with that trainer builds the network the weights belong to.

    Args:
        checkpoint: A checkpoint in the form of nnU-Net v2.
        trainer: Name of a trainer class.

    Returns:
        Lines for the user: what prediction needs beside stock nnU-Net.

    Raises:
        ValueError: The plans lack what preprocessing needs, or weights and network do not fit together.
    """
    _check_plans(checkpoint)
    chosen = _find_trainer(trainer)
    if chosen is None:
        raise ValueError(
            f"there is no trainer '{trainer}' in nnU-Net or in nnUNet_extTrainer; the default is {STOCK_TRAINER}, the "
            f"checkpoint's own is {checkpoint['trainer_name']}"
        )
    lines = []
    if not chosen.__module__.startswith("nnunetv2."):
        lines.append(f"prediction needs the trainer {trainer}, which stock nnU-Net does not have")
    packages = {path.partition(".")[0] for path in imports_of(checkpoint)}
    needed = sorted(packages - {"torch", "dynamic_network_architectures"})
    if needed:
        lines.append(f"prediction needs {' and '.join(needed)} installed: the network is not one of nnU-Net's")
    if unknown := unknown_imports(checkpoint):
        return [*lines, f"not checked: whether the weights fit the network, which is built from {', '.join(unknown)}"]
    _check_network(checkpoint, trainer, chosen)
    return lines


def _check_network(checkpoint: Mapping[str, Any], trainer: str, chosen: type) -> None:
    network = build_network(checkpoint, chosen)
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in checkpoint["network_weights"].items()}
    wrong = sorted(n for n in {*expected, *found} if expected.get(n) != found.get(n))
    own = checkpoint["trainer_name"]
    advice = f"; give --trainer {own}, if prediction may depend on it" if own != trainer else ""
    if wrong:
        shapes = [f"{n}: {found.get(n, 'missing')} in the file, {expected.get(n, 'missing')} expected" for n in wrong]
        raise ValueError(
            f"{trainer} builds another network than the weights are from, {len(wrong)} tensors differ: "
            f"{'; '.join(shapes[:3])}{advice}"
        )
    original = _find_trainer(own) if own != trainer else None
    if original is not None and str(build_network(checkpoint, original)) != str(network):
        raise ValueError(f"{own} builds another network than {trainer} from the same plans{advice}")


def _check_plans(checkpoint: Mapping[str, Any]) -> None:
    """Refuses plans that preprocessing cannot use."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    arguments = checkpoint["init_args"]
    plans, dataset_json = arguments["plans"], arguments["dataset_json"]
    chosen = PlansManager(plans).get_configuration(arguments["configuration"]).configuration
    missing = [key for key in ("spacing", "patch_size", "normalization_schemes") if not _complete(chosen.get(key))]
    statistics = plans.get("foreground_intensity_properties_per_channel") or {}
    for channel, scheme in enumerate(chosen.get("normalization_schemes") or ()):
        numbers = statistics.get(str(channel)) or {}
        keys = ("percentile_00_5", "percentile_99_5", "mean", "std") if scheme == "CTNormalization" else ()
        missing += [f"{key} of channel {channel}" for key in keys if numbers.get(key) is None]
    missing += [key for key in ("labels", "file_ending") if not dataset_json.get(key)]
    if missing:
        raise ValueError(
            f"a model folder must say how images are preprocessed, but the checkpoint does not know: "
            f"{', '.join(missing)}; export as .safetensors instead"
        )


def _complete(value: Any) -> bool:
    return bool(value) and all(part is not None for part in value)


def _find_trainer(name: str) -> Any:
    """Returns a trainer class as stock prediction finds it, or None."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return recursive_find_trainer_class_by_name(name)
    except (RuntimeError, AssertionError):
        return None


def _check_same_model(model: Path, content: Mapping[str, Any]) -> None:
    """Refuses to put a fold beside those of another model."""
    for file, ours in (("plans.json", content["init_args"]["plans"]), ("dataset.json", _dataset_json(content))):
        there = read_json(model / file)
        if any(there.get(key) != ours.get(key) for key in {*there, *ours} - set(_CHANGING_PLANS)):
            raise ValueError(f"another model lies in {model}: its {file} differs; choose another folder")


def _dataset_json(content: Mapping[str, Any]) -> dict[str, Any]:
    return content["init_args"]["dataset_json"]


def _write_files(results: Path, content: Mapping[str, Any], source: Path | None, trainer: str) -> None:
    """Writes all files of a model below an empty folder."""
    fold = results / model_path(content, trainer)
    fold.mkdir(parents=True)
    torch.save({**content, "trainer_name": trainer}, fold / CHECKPOINT)
    write_json(fold.parent / "plans.json", content["init_args"]["plans"])
    write_json(fold.parent / "dataset.json", _dataset_json(content))
    if source is None:
        return
    if (source.parent.parent / FINGERPRINT).is_file():
        write_json(fold.parent / FINGERPRINT, plain(read_json(source.parent.parent / FINGERPRINT)))
    summary = source.parent / "validation" / "summary.json"
    if summary.is_file():
        write_json(fold / "validation" / summary.name, plain(read_json(summary)))
    if (source.parent / "progress.png").is_file():
        shutil.copyfile(source.parent / "progress.png", fold / "progress.png")


@contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    """Yields an empty folder on the same file system as `parent`, and removes it with what is left in it."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_in(made: Path, model: Path, fold: str) -> None:
    """Moves a finished model to its place, or its fold beside those that are there."""
    if not model.exists():
        model.parent.mkdir(exist_ok=True)
        made.rename(model)
        return
    if (model / fold).exists():
        (model / fold).rename(made / "replaced")
    (made / fold).rename(model / fold)
