"""Planning a transfer: what a checkpoint gives a target, decided and shown before anything is trained."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_pretrain.checkpoints.branches import clip_lines, ordinary
from nnunet_pretrain.checkpoints.card import channel_names
from nnunet_pretrain.checkpoints.portable import imports_of
from nnunet_pretrain.checkpoints.pretrained import read_pretrained
from nnunet_pretrain.checkpoints.reading import EXTRAS_KEY
from nnunet_pretrain.files import read_json, sha256_of, write_json
from nnunet_pretrain.folders import dataset_name, nnunet_folder
from nnunet_pretrain.networks.locate import locate_network
from nnunet_pretrain.planning.plan import extract_fingerprint
from nnunet_pretrain.planning.preset import load_preset, recorded_name
from nnunet_pretrain.planning.settings import (
    SETTINGS_KEY,
    Fold,
    PretrainSettings,
    TransferSettings,
    transfer_plans_names,
)
from nnunet_pretrain.transfer.compare import Comparison, compare
from nnunet_pretrain.transfer.heads import describe_heads, match_heads, outputs_of
from nnunet_pretrain.transfer.leakage import find_leaked, folds_without, write_list
from nnunet_pretrain.transfer.memory import estimated_gb, fitted_batch
from nnunet_pretrain.transfer.options import PlanOptions, completed, existing_target_plans, kept
from nnunet_pretrain.transfer.pretrained_network import facts_of, network_without_memory, pretrained_network
from nnunet_pretrain.transfer.report import TransferReport
from nnunet_pretrain.transfer.stock_weights import check_output, write_stock_weights
from nnunet_pretrain.transfer.target_plans import keep_intensities, target_plans
from nnunet_pretrain.transfer.target_training import supported
from nnunet_pretrain.transfer.weights import transfer_weights

_ORIGIN_PRESETS = {"SuPreM": "suprem", "nnssl": "nnssl", "MultiTalent": "multitalent", "MedicalNet": "med3d_resnet18"}
"""Beginning of an origin's name to the preset that trains on the target as its authors do."""


@dataclass(frozen=True)
class PlannedTransfer:
    """A planned transfer.

    Attributes:
        transfer: Plans that start from the checkpoint.
        scratch: Plans of the control, equal in every number.
        configuration: Configuration to train.
        comparison: Checkpoint and target side by side.
        report: What would be loaded.
    """

    transfer: Path
    scratch: Path
    configuration: str
    comparison: Comparison
    report: TransferReport


def plan_transfer(options: PlanOptions, report: Callable[[str], None] = lambda line: None) -> PlannedTransfer:
    """Compares a checkpoint with a target and writes the plans of a transfer and of its control from scratch.

    Both plans share every number and the preprocessed data; only one names the checkpoint. So the two runs end up in
    separate result folders and differ in nothing but the start. The transfer is tried without data first.

    Args:
        options: What the user asks for.
        report: Called with one line for what the user should know.

    Raises:
        FileNotFoundError: Checkpoint or dataset is missing.
        ValueError: The checkpoint is unusable, has no such branch, does not fit, or too little of it would be loaded.
    """
    checkpoint = options.checkpoint.expanduser().absolute()
    if options.weights is not None:
        check_output(options.weights)
    whole = read_pretrained(checkpoint)
    _check_network(whole)
    keep, options = kept(options, whole), completed(options, whole, report)
    content = ordinary(whole, options.branch)
    for line in clip_lines(content):
        report(f"note: {line}")
    name = dataset_name(options.dataset)
    existing = existing_target_plans(options, name, content, report) if keep == "target" else None
    dataset_json = read_json(nnunet_folder("nnUNet_raw") / name / "dataset.json")
    extract_fingerprint(name, options.num_processes)
    folder = nnunet_folder("nnUNet_preprocessed") / name
    _copy_dataset_files(nnunet_folder("nnUNet_raw") / name, folder)
    fingerprint = read_json(folder / "dataset_fingerprint.json")
    plans_name, scratch_name = transfer_plans_names(options.name or default_name(content))
    preset_name = recorded_name(options.preset or _usual_preset(content, report))
    preset = load_preset(preset_name)
    configuration = content["init_args"]["configuration"]
    plans = target_plans(name, content, dataset_json, fingerprint, keep, preset, plans_name, existing)
    if keep == "pretrained":
        old_channels = channel_names(content["init_args"]["dataset_json"])
        for note in keep_intensities(plans, configuration, old_channels, dataset_json, fingerprint):
            report(f"note: {note}")
        _fit_batch(plans, configuration, content, dataset_json, fingerprint, options.gpu_memory_gb)
    settings = PretrainSettings(
        preset=preset_name,
        training=supported(preset.transfer, plans, configuration, dataset_json, report),
        fine_tuning=preset.fine_tuning,
        transfer=_transfer_settings(options, checkpoint, content, dataset_json),
        folds=_guard_leaks(name, whole, options, folder / f"leakage_{plans_name}.json", report),
    )
    comparison = compare(content, plans, dataset_json, fingerprint, _images(name))
    for line in comparison.lines():
        report(line)
    planned = try_transfer(content, plans, configuration, dataset_json, settings)
    for line in planned.lines():
        report(line)
    control = settings.model_copy(update={"transfer": TransferSettings()})
    made = {
        key: {**plans, "plans_name": key, SETTINGS_KEY: chosen.model_dump(mode="json", exclude_none=True)}
        for key, chosen in ((plans_name, settings), (scratch_name, control))
    }
    if options.weights is not None:
        write_stock_weights(options.weights, content, made[plans_name], configuration, dataset_json)
    for key, written in made.items():
        write_json(folder / f"{key}.json", written)
    paths = (folder / f"{plans_name}.json", folder / f"{scratch_name}.json")
    return PlannedTransfer(*paths, configuration, comparison, planned)


def default_name(checkpoint: Mapping[str, Any]) -> str:
    """Returns the name of a transfer the user did not name: that of the pre-training's dataset, or of its origin."""
    arguments = checkpoint["init_args"]
    origin = arguments.get(EXTRAS_KEY, {}).get("origin", {}).get("format")
    dataset = str(arguments["plans"].get("dataset_name") or origin or "checkpoint")
    return re.sub(r"[^A-Za-z0-9]+", "_", re.sub(r"^Dataset\d+_", "", dataset)).strip("_")


def _usual_preset(checkpoint: Mapping[str, Any], report: Callable[[str], None]) -> str:
    """Returns the preset of the pre-training, or the one that does what the checkpoint's authors do."""
    arguments = checkpoint["init_args"]
    origin = arguments.get(EXTRAS_KEY, {}).get("origin", {}).get("format", "")
    usual = next((preset for start, preset in _ORIGIN_PRESETS.items() if origin.startswith(start)), "default")
    named = str(arguments["plans"].get(SETTINGS_KEY, {}).get("preset", usual))
    if named.endswith(".json") and not Path(named).is_file():
        report(f"note: the pre-training's preset {named} is not here; the target is trained by '{usual}'")
        return usual
    return named


def _check_network(checkpoint: Mapping[str, Any]) -> None:
    """Refuses plans that name something else than network classes, before nnU-Net calls what they name."""
    for path in imports_of(checkpoint):
        locate_network(path)


def _transfer_settings(
    options: PlanOptions, checkpoint: Path, content: Mapping[str, Any], dataset_json: Mapping[str, Any]
) -> TransferSettings:
    old, new = outputs_of(content["init_args"]["dataset_json"]), outputs_of(dataset_json)
    heads = {**(match_heads(old, new) if options.parts == "all" else {}), **options.heads}
    describe_heads(heads, old, new)
    return TransferSettings(
        checkpoint=str(checkpoint),
        sha256=sha256_of(checkpoint),
        branch=options.branch,
        parts=options.parts,
        heads=heads,
        allow_partial=options.allow_partial,
        allow_width=options.allow_width,
    )


def try_transfer(
    content: Mapping[str, Any],
    plans: Mapping[str, Any],
    configuration: str,
    dataset_json: Mapping[str, Any],
    settings: PretrainSettings,
) -> TransferReport:
    """Works a transfer out on networks without memory.

    Args:
        content: The checkpoint of an ordinary network (`ordinary`).
        plans: Plans of the target.
        configuration: Configuration of the plans.
        dataset_json: The target's.
        settings: How it is trained, with a transfer.

    Raises:
        ValueError: The networks are of different kinds, or too little of the checkpoint fits.
    """
    facts = facts_of(plans, configuration, dataset_json)
    network = network_without_memory(facts, settings.training.deep_supervision)
    assert settings.transfer is not None
    pretrained = pretrained_network(content, plans["transpose_forward"])
    return transfer_weights(network, facts, pretrained, settings.transfer)


def _fit_batch(
    plans: dict[str, Any],
    configuration: str,
    content: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
    gpu_memory_gb: float | None,
) -> None:
    """Fits the batch to the memory asked for; without one, only what grew is made up for."""
    chosen = plans["configurations"][configuration]
    arguments = content["init_args"]
    old = facts_of(arguments["plans"], configuration, arguments["dataset_json"])
    memory = gpu_memory_gb or estimated_gb(old, chosen["patch_size"], chosen["batch_size"])
    if memory is None or len(chosen["spacing"]) != 3:
        return
    spacing = [chosen["spacing"][list(plans["transpose_forward"]).index(axis)] for axis in range(3)]
    shapes = [
        [n * mm / wanted for n, mm, wanted in zip(shape, spacings, spacing, strict=True)]
        for shape, spacings in zip(fingerprint["shapes_after_crop"], fingerprint["spacings"], strict=True)
    ]
    fitted = fitted_batch(facts_of(plans, configuration, dataset_json), chosen, memory, shapes)
    if fitted is not None:
        chosen["batch_size"] = fitted if gpu_memory_gb else min(fitted, chosen["batch_size"])


def _guard_leaks(
    name: str,
    content: Mapping[str, Any],
    options: PlanOptions,
    path: Path,
    report: Callable[[str], None],
) -> tuple[Fold, ...] | None:
    """Warns of target cases the pre-training has seen, and returns folds without them in validation if asked for."""
    leakage = find_leaked(name, content, options.num_processes)
    for line in leakage.lines():
        report(line)
    if not leakage.cases:
        return None
    write_list(leakage, path)
    report(f"the whole list: {path}")
    if options.exclude_leaked:
        return folds_without(name, leakage)
    report("--exclude-leaked keeps them out of every validation")
    return None


def _images(name: str) -> list[Path]:
    """Returns the first channel's image of every training case of a raw dataset."""
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    files = get_filenames_of_train_images_and_targets(str(nnunet_folder("nnUNet_raw") / name))
    return [Path(entry["images"][0]) for entry in files.values()]


def _copy_dataset_files(raw: Path, preprocessed: Path) -> None:
    """Does what nnU-Net's planners do: its preprocessing and training read dataset.json and the splits there."""
    shutil.copyfile(raw / "dataset.json", preprocessed / "dataset.json")
    splits = raw / "splits_final.json"
    if splits.is_file() and not (preprocessed / splits.name).exists():
        shutil.copyfile(splits, preprocessed / splits.name)
