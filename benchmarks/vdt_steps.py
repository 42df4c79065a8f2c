"""Training steps on natural images and on a 3D target, side by side: the part of `vdt.py` that `--study speed` runs."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from domain_steps import BATCH, LABELS, STOCK, Steps, made_up, time_row

from nnunet_pretrain.conversion.natural_images.index import INDEX, ImageIndex, NaturalImage
from nnunet_pretrain.networks.classifier import classifier_architecture
from nnunet_pretrain.planning.domain_plans import CONFIGURATION, plans_of_domain
from nnunet_pretrain.planning.settings import (
    SETTINGS_KEY,
    ClassificationSettings,
    NaturalImageSettings,
    PretrainSettings,
)
from nnunet_pretrain.study.tables import table

Shape = tuple[int, int, int]

SEGMENTATION, CLASSIFICATION = "nnUNetTrainerVDTSegmentation", "nnUNetTrainerVDTClassification"
SAME = "stock nnU-Net, same network and patch 3 deep"
PAIRS = ((SEGMENTATION, SAME), (SEGMENTATION, STOCK), (CLASSIFICATION, STOCK), (SAME, STOCK))
"""What is timed against what; STOCK trains the 3D target."""

CLASSES = tuple(f"class{i:04d}" for i in range(1000))


def plans_of(arm: str, target: Shape, natural: Shape, features: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns plans and dataset.json of an arm.

    Args:
        arm: Whose.
        target: Patch of the 3D target.
        natural: Patch of the natural images, with as many voxels.
        features: Features per stage of the network all arms share.
    """
    plans, dataset_json = made_up(1, target, tuple(features))
    plans = plans_of_domain(plans, "domain0")
    ids = range(1, LABELS + 1)
    dataset_json = {
        "channel_names": dataset_json["channel_names"],
        "labels": {"background": 0, **{f"label{i}": i for i in ids}},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    if arm == STOCK:
        return plans, dataset_json
    plans = copy.deepcopy(plans)
    configuration = plans["configurations"][CONFIGURATION]
    configuration["patch_size"] = list(natural)
    strides = configuration["architecture"]["arch_kwargs"]["strides"]
    configuration["architecture"]["arch_kwargs"]["strides"] = [[1, *stride[1:]] for stride in strides]
    if arm == SAME:
        return plans, dataset_json
    task: Any = "segmentation" if arm == SEGMENTATION else "classification"
    settings = PretrainSettings(
        natural_images=NaturalImageSettings(task=task, storage="volumes", target=("target", "plans", CONFIGURATION))
    )
    if arm == CLASSIFICATION:
        configuration["architecture"] = classifier_architecture(configuration["architecture"], len(CLASSES), True)
        classes = ClassificationSettings(classes=CLASSES, crop="image")
        training = settings.training.model_copy(update={"deep_supervision": False})
        settings = settings.model_copy(update={"classification": classes, "training": training})
    plans[SETTINGS_KEY] = settings.model_dump(mode="json", exclude_none=True)
    return plans, dataset_json


def steps_of(work: Path, arm: str, target: Shape, natural: Shape, features: Sequence[int], device: str) -> Steps:
    """Returns the training steps of an arm on one made-up batch."""
    from nnunet_pretrain.trainers import nnunet_pretrain_trainers
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    plans, dataset_json = plans_of(arm, target, natural, features)
    # nnU-Net looks at the endings of the preprocessed files when it is initialised.
    data = work / "nnUNet_preprocessed" / plans["dataset_name"] / "made_up" / "none.b2nd"
    data.parent.mkdir(parents=True, exist_ok=True)
    data.touch()
    plans["continue_training"] = False  # as nnU-Net's command does
    trainer_class = getattr(nnunet_pretrain_trainers, arm, nnUNetTrainer)
    trainer = trainer_class(plans, CONFIGURATION, 0, dataset_json, torch.device(device))
    torch.manual_seed(0)
    trainer.initialize()
    patch = target if arm == STOCK else natural
    batch: dict[str, Any] = {"data": torch.randn(BATCH, 1, *patch), "keys": [f"case{i}" for i in range(BATCH)]}
    if arm == CLASSIFICATION:
        rows = [NaturalImage(case, f"{case}.png", CLASSES[0], "", 64, 64, 0.0, 1.0, "") for case in batch["keys"]]
        ImageIndex.from_rows(rows).write(data.parents[1] / INDEX)
    else:
        full = torch.randint(0, LABELS + 1, (BATCH, 1, *patch), dtype=torch.int16)
        scales = trainer._get_deep_supervision_scales()
        batch["target"] = [full[:, :, :: round(1 / z), :: round(1 / y), :: round(1 / x)] for z, y, x in scales]
    return Steps(trainer, [batch])


def speed(work: Path, sizes: Sequence[tuple[Shape, Shape, tuple[int, ...]]], pairs: int, device: str) -> None:
    """Prints step times.

    Args:
        work: Folder the trainers write to.
        sizes: Patch of the target, patch of the natural images, and features of each stage.
        pairs: Pairs of steps per comparison.
        device: cpu or cuda.
    """
    if device == "cuda":
        os.environ["nnUNet_compile"] = "t"  # as stock
    rows = []
    for target, natural, features in sizes:
        size = f"{'x'.join(map(str, natural))} for {'x'.join(map(str, target))}, {len(features)} stages"
        arms = {arm: steps_of(work, arm, target, natural, features, device) for arm in {a for p in PAIRS for a in p}}
        for steps in arms.values():
            steps.warm_up()
        rows += [[size, *time_row(arms, *pair, pairs)] for pair in PAIRS]
    ratios = [f"ratio of {clock} time, median (quartiles)" for clock in ("wall", "CPU")]
    print(table(["patch", "step", "against", "ms, both", *ratios], rows))
