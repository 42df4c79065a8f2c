"""Preprocessing a dataset: the files stock `nnUNetv2_preprocess` writes, sooner, and without starting over."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_pretrain.conversion.engine import run_all
from nnunet_pretrain.files import read_json, written_atomically
from nnunet_pretrain.folders import dataset_name, nnunet_folder
from nnunet_pretrain.preprocessing.case import CaseInput, Recipe, is_complete, labels_of, make_case, remove_others

_NAMED_FAULTS = 5


def preprocess(
    dataset: int | str,
    plans_name: str = "nnUNetPlans",
    configurations: Sequence[str] = ("3d_fullres",),
    device: str | None = None,
    num_processes: int = 2,
    overwrite: bool = False,
    report: Callable[[str], None] = print,
) -> list[Path]:
    """Preprocesses a dataset for stock training; cases that are there and up to date are left alone.

    Each worker process reads, resamples and writes a whole case, so that the device, the CPU and the disk are busy with
    different cases, and at most `num_processes` cases are in memory.

    Args:
        dataset: Id or name of a dataset in nnUNet_raw.
        plans_name: Plans in nnUNet_preprocessed, without `.json`.
        configurations: Configurations of the plans.
        device: `cuda` or `cpu`, used where the plans resample with torch; None takes the GPU if there is one.
        num_processes: Worker processes; each has a case in memory, and one in GPU memory if there is a GPU.
        overwrite: Whether to make all cases again.
        report: Called with lines for the user.

    Returns:
        The data folders, one per configuration.

    Raises:
        ValueError: A configuration is not in the plans, there is no such device, `num_processes` is not positive, or
            cases could not be made (after all others are).
        FileNotFoundError: The dataset, its plans or nnU-Net's folders are missing.
    """
    if num_processes < 1:
        raise ValueError(f"-np must be at least 1, got {num_processes}")
    name = dataset_name(dataset)
    base = nnunet_folder("nnUNet_preprocessed") / name
    plans = _read_planned(base / f"{plans_name}.json", name)
    dataset_json = _read_planned(base / "dataset.json", name)
    unknown = [c for c in configurations if c not in plans["configurations"]]
    if unknown or not configurations:
        raise ValueError(
            f"{base / plans_name}.json has no configuration {' or '.join(map(repr, unknown)) or 'to make'}; "
            f"it has {', '.join(plans['configurations'])}"
        )
    device = chosen_device(device)
    cases = _cases(nnunet_folder("nnUNet_raw") / name, dataset_json)
    folders, faults = [], []
    for configuration in configurations:
        recipe = _recipe(base, plans, configuration, dataset_json, device, num_processes)
        faults += _preprocess_configuration(recipe, configuration, cases, num_processes, overwrite, report)
        folders.append(recipe.folder)
    if faults:
        rest = f"; and {len(faults) - _NAMED_FAULTS} more" if len(faults) > _NAMED_FAULTS else ""
        raise ValueError(
            f"{len(faults)} cases could not be preprocessed, all others are; correct or remove them, then run the "
            f"command again: {'; '.join(faults[:_NAMED_FAULTS])}{rest}"
        )
    _copy_labels(cases, base / "gt_segmentations", dataset_json["file_ending"])
    return folders


def chosen_device(device: str | None) -> str:
    """Returns the device to use: what was asked for, or the GPU if there is one.

    Raises:
        ValueError: The device is unknown, or not there.
    """
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cuda or cpu, got '{device}'")
    if device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: torch finds no GPU here; use --device cpu, or install torch for your GPU")
    return device


def _read_planned(path: Path, name: str) -> dict[str, Any]:
    """Reads a file that planning writes."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} not found; plan first: `nnunet_pretrain plan -d {name}` for a merged dataset, `nnunet_pretrain "
            f"plan_transfer` for a target, or nnUNetv2_plan_experiment"
        )
    content: dict[str, Any] = read_json(path)
    return content


def _cases(raw: Path, dataset_json: dict[str, Any]) -> list[CaseInput]:
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    files = get_filenames_of_train_images_and_targets(str(raw), dataset_json)
    if not files:
        raise ValueError(f"{raw} holds no training cases; expected imagesTr and labelsTr, or 'dataset' in dataset.json")
    return [CaseInput(case, tuple(files[case]["images"]), files[case]["label"]) for case in sorted(files)]


def _recipe(
    base: Path,
    plans: dict[str, Any],
    configuration: str,
    dataset_json: dict[str, Any],
    device: str,
    num_processes: int,
) -> Recipe:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    resolved = PlansManager(plans).get_configuration(configuration)
    threads = max(1, (os.cpu_count() or 1) // num_processes)
    # What is not read by the workers is not sent to them.
    sent = {key: value for key, value in plans.items() if key != "configurations"}
    folder = base / resolved.data_identifier
    return Recipe(sent, resolved.configuration, labels_of(dataset_json), folder, device, threads)


def _preprocess_configuration(
    recipe: Recipe,
    name: str,
    cases: Sequence[CaseInput],
    num_processes: int,
    overwrite: bool,
    report: Callable[[str], None],
) -> list[str]:
    """Makes what is missing of a configuration and returns what is wrong with the cases that could not be made."""
    remove_others(recipe, (files.case for files in cases))
    digest = recipe.digest
    missing = [files for files in cases if overwrite or not is_complete(recipe, files, digest)]
    report(f"{name}: {len(missing)} of {len(cases)} cases to make, in {recipe.folder}")
    results = run_all(
        partial(make_case, recipe),
        missing,
        num_processes=num_processes,
        what=f"Preprocessing {name}",
        done=len(cases) - len(missing),
    )
    faults = []
    try:
        for fault in results:
            if fault is not None:
                faults.append(fault)
    except ValueError:  # make_case raises none: a worker process is gone
        raise ValueError(
            "a worker process died, most likely for lack of memory; run the command again with a smaller -np, "
            "finished cases are kept"
        ) from None
    return faults


def _copy_labels(cases: Sequence[CaseInput], folder: Path, file_ending: str) -> None:
    """Copies the label maps that are newer than their copies, as stock does, for validation without the raw data."""
    for files in cases:
        copy, label = folder / f"{files.case}{file_ending}", Path(files.label)
        if copy.is_file() and copy.stat().st_mtime_ns >= label.stat().st_mtime_ns:
            continue
        with written_atomically(copy) as temporary:
            shutil.copy2(label, temporary)
