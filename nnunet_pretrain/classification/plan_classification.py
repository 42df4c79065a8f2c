"""Planning a classification: a transfer of the encoder, with a linear layer in place of decoder and heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnunet_pretrain.checkpoints.branches import ordinary
from nnunet_pretrain.checkpoints.pretrained import read_pretrained
from nnunet_pretrain.classification.folds import stratified_folds, usable
from nnunet_pretrain.classification.labels import (
    TABLE,
    Example,
    classes_of,
    read_table,
    write_examples,
)
from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.folders import dataset_name, nnunet_folder
from nnunet_pretrain.networks.classifier import classifier_architecture
from nnunet_pretrain.networks.planned import total_stride
from nnunet_pretrain.planning.settings import (
    SETTINGS_KEY,
    ClassificationSettings,
    Fold,
    PretrainSettings,
    TransferSettings,
)
from nnunet_pretrain.transfer.leakage import SPLITS, moved_to_training
from nnunet_pretrain.transfer.memory import estimated_gb
from nnunet_pretrain.transfer.plan_transfer import PlannedTransfer, PlanOptions, default_name, plan_transfer
from nnunet_pretrain.transfer.pretrained_network import facts_of, network_without_memory, pretrained_network
from nnunet_pretrain.transfer.weights import transfer_weights

TRAINER = "nnUNetTrainerClassification"
MAX_BATCH = 32
_SUFFIX = "Classification"

Report = Callable[[str], None]


def plan_classification(
    options: PlanOptions,
    crop_mm: float | None = None,
    batch_size: int | None = None,
    report: Report = lambda line: None,
) -> PlannedTransfer:
    """Plans how a pre-trained encoder learns classes of images or lesions, and the control from scratch.

    The classes stand in a table beside the target's dataset.json (`classification.labels.read_table`). Everything else
    is planned by `plan_transfer`, whose plans are then rewritten for a classifier.

    Args:
        options: As for `plan_transfer`; only the encoder is taken whatever `parts` says, and `heads` are none.
        crop_mm: Edge of the patch around a lesion in mm, rounded up to what the network can divide; None takes the
            patch of the plans.
        batch_size: Examples per step; None fits it to the memory of the segmentation, at most `MAX_BATCH`.
        report: Called with one line for what the user should know.

    Returns:
        The plans, and what would be loaded.

    Raises:
        FileNotFoundError: Checkpoint, dataset or table is missing.
        ValueError: As `plan_transfer`, or the table is wrong or has no usable folds, or the network has no encoder of
            its own, or is 2D.
    """
    name = dataset_name(options.dataset)
    raw = nnunet_folder("nnUNet_raw") / name
    dataset_json = read_json(raw / "dataset.json")
    examples = read_table(raw, dataset_json, _cases(raw, dataset_json))
    content = read_pretrained(options.checkpoint.expanduser().absolute())
    classification = _settings(examples)
    _check_numbers(crop_mm, batch_size, classification)
    own_name = options.name or f"{default_name(content)}_{_SUFFIX}"
    wanted = replace(options, name=own_name, parts="encoder", heads={}, exclude_leaked=False)
    lines: list[str] = []
    planned = plan_transfer(wanted, lines.append)
    of_segmentation = set(planned.report.lines())
    for line in lines:
        if line not in of_segmentation:
            report(line)
    plans = read_json(planned.transfer)
    _as_classifier(plans, planned.configuration, dataset_json, classification, crop_mm, batch_size)
    folds = _folds(planned.transfer, examples, options.exclude_leaked, report)
    settings = _with_classes(plans, classification, folds)
    plans[SETTINGS_KEY] = settings.model_dump(mode="json", exclude_none=True)
    assert settings.transfer is not None
    facts = facts_of(plans, planned.configuration, dataset_json)
    pretrained = pretrained_network(ordinary(content, settings.transfer.branch), plans["transpose_forward"])
    loaded = transfer_weights(network_without_memory(facts), facts, pretrained, settings.transfer)
    for line in [*_described(plans, planned.configuration, examples), *loaded.lines()]:
        report(line)
    control = settings.model_copy(update={"transfer": TransferSettings()})
    write_examples(planned.transfer.parent / f"{TABLE}.json", examples)
    for path, chosen in ((planned.transfer, settings), (planned.scratch, control)):
        ours = {SETTINGS_KEY: chosen.model_dump(mode="json", exclude_none=True)}
        write_json(path, {**plans, "plans_name": path.stem, **ours})
    return replace(planned, report=loaded)


def _cases(raw: Path, dataset_json: Mapping[str, Any]) -> list[str]:
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    return list(get_filenames_of_train_images_and_targets(str(raw), dict(dataset_json)))


def _settings(examples: Sequence[Example]) -> ClassificationSettings:
    lesions = tuple(sorted({example.lesion for example in examples if example.lesion is not None}))
    return ClassificationSettings(
        classes=classes_of(examples),
        crop="lesion" if lesions else "image",
        lesions=lesions,
        components=any(example.component is not None for example in examples),
    )


def _check_numbers(crop_mm: float | None, batch_size: int | None, classification: ClassificationSettings) -> None:
    if crop_mm is not None and not (0 < crop_mm < math.inf):
        raise ValueError(f"--crop-mm must be a positive length in mm, got {crop_mm}")
    if crop_mm is not None and classification.crop == "image":
        raise ValueError("--crop-mm is for lesions, and the table names none: whole images are resampled to the patch")
    if batch_size is not None and batch_size < 2:
        raise ValueError(f"--batch-size must be at least 2, got {batch_size}")


def _as_classifier(
    plans: dict[str, Any],
    configuration: str,
    dataset_json: Mapping[str, Any],
    classification: ClassificationSettings,
    crop_mm: float | None,
    batch_size: int | None,
) -> None:
    """Puts the classifier into plans of a segmentation, in place."""
    chosen = plans["configurations"][configuration]
    if len(chosen["patch_size"]) != 3 or chosen.get("previous_stage"):
        raise ValueError(
            f"configuration '{configuration}' is 2D or a cascade; classify with the checkpoint of a 3D configuration "
            f"that needs no other one"
        )
    segmentation = facts_of(plans, configuration, dataset_json)
    memory = estimated_gb(segmentation, chosen["patch_size"], chosen["batch_size"])
    voxels = math.prod(chosen["patch_size"]) * chosen["batch_size"]
    chosen["architecture"] = classifier_architecture(chosen["architecture"], len(classification.classes))
    facts = facts_of(plans, configuration, dataset_json)
    network_without_memory(facts)  # refuses networks without an encoder
    if crop_mm is not None:
        strides = chosen["architecture"]["arch_kwargs"]["strides"]
        chosen["patch_size"] = patch_of(crop_mm, chosen["spacing"], strides)
    each = estimated_gb(facts, chosen["patch_size"], 1)
    fitting = voxels / math.prod(chosen["patch_size"]) if memory is None or each is None else memory / each
    chosen["batch_size"] = batch_size or max(chosen["batch_size"], min(MAX_BATCH, int(fitting)))


def patch_of(crop_mm: float, spacing: Sequence[float], strides: Sequence[Sequence[int]]) -> list[int]:
    """Returns the smallest patch that shows so many mm along each axis.

    Args:
        crop_mm: Edge in mm.
        spacing: Voxel size in mm along each axis.
        strides: Downsampling of each stage; every edge is divisible by their product, and has at least two voxels of
            the coarsest features: over fewer, instance norms would leave nothing to tell apart.
    """
    return [by * max(2, math.ceil(crop_mm / mm / by)) for by, mm in zip(total_stride(strides), spacing, strict=True)]


def _folds(plans: Path, examples: Sequence[Example], exclude_leaked: bool, report: Report) -> tuple[Fold, ...] | None:
    """Returns folds for the plans, or None to use splits_final.json."""
    splits, leakage = plans.with_name(SPLITS), plans.with_name(f"leakage_{plans.stem}.json")
    leaked = {entry["case"] for entry in read_json(leakage)["cases"]} if exclude_leaked and leakage.is_file() else set()
    own = splits.is_file() and all(usable(fold["train"], fold["val"], examples) for fold in read_json(splits))
    if own:
        return moved_to_training(leaked, read_json(splits)) if leaked else None
    folds = stratified_folds(examples)
    if splits.is_file():
        report(f"note: a fold of {splits} lacks a class; the plans get {len(folds)} folds that share out every class")
    return moved_to_training(leaked, [fold.model_dump() for fold in folds])


def _with_classes(
    plans: Mapping[str, Any], classification: ClassificationSettings, folds: tuple[Fold, ...] | None
) -> PretrainSettings:
    settings = PretrainSettings.from_plans(plans)
    training = settings.training.model_copy(update={"deep_supervision": False})
    return settings.model_copy(update={"training": training, "classification": classification, "folds": folds})


def _described(plans: Mapping[str, Any], configuration: str, examples: Sequence[Example]) -> list[str]:
    """Returns what is classified, and what the network sees of it."""
    chosen = plans["configurations"][configuration]
    classes = {name: sum(e.label == name for e in examples) for name in classes_of(examples)}
    patch = " x ".join(map(str, chosen["patch_size"]))
    extent = " x ".join(f"{n * mm:.0f}" for n, mm in zip(chosen["patch_size"], chosen["spacing"], strict=True))
    seen = f"{patch} voxels ({extent} mm) around each lesion" if examples[0].lesion else f"whole images as {patch}"
    counts = ", ".join(f"{count} {name}" for name, count in classes.items())
    cases = len({example.case for example in examples})
    return [f"classes: {counts}, in {cases} cases", f"seen: {seen}, {chosen['batch_size']} per step"]
