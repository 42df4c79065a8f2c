"""Photographs that are easily told apart, converted and planned, for short trainings on a CPU."""

from pathlib import Path

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from natural_datasets import target_architecture, write_target_plans
from natural_image_trees import save

from nnunet_pretrain.conversion.natural_images.convert import NaturalImageOptions, convert_2d
from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.phantom.coloured_shapes import coloured_shapes
from nnunet_pretrain.planning.plan_2d import plan_2d
from nnunet_pretrain.preprocessing.preprocess import preprocess

TEXTURES = ("cuts", "dots", "holes", "lines")
CLASSIFIER, SEGMENTER = "nnUNetTrainerVDTClassification", "nnUNetTrainerVDTSegmentation"
LABELS = {"background": 0, "shape": 1, "ignore": 2}
TRAINING = {"optimizer": "AdamW", "initial_lr": 1e-2, "weight_decay": 1e-4, "warmup_epochs": 0, "seed": 1}
TRAINING |= {"save_every": 1, "val_share": 0.25, "mirror_axes": [2]}


def texture(name, rng, size):
    """Returns an image (height, width, 3) of a coloured ground with grain and something on it that is the class.

    What it is differs in shape and in being brighter or darker than the ground; colours and places do not tell.
    """
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    pattern = np.zeros(size, bool)
    for _ in range(6):
        top, left = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        pattern |= np.hypot(y - top, x - left) < rng.uniform(3, 5)
    if name in ("lines", "cuts"):
        pattern = (y + rng.uniform(0, 12)) % 12 < 3
    ground = rng.uniform(90, 160, 3)
    other = ground + rng.uniform(40, 90, 3) * (1 if name in ("dots", "lines") else -1)
    image = np.where(pattern[..., None], other, ground) + rng.normal(0, 4, (*size, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def write_textures(root, count):
    """Writes a folder per texture, of JPEG and PNG files of several sizes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        name = TEXTURES[number % len(TEXTURES)]
        size = (40 + 3 * (number % 3), 52 - 4 * (number % 2))
        suffix, options = (("png", {}), ("jpg", {"quality": 95}))[number // len(TEXTURES) % 2]
        save(root / name / f"{name}_{number:03d}.{suffix}", texture(name, rng, size), **options)
    return root


def write_shapes(root, count):
    """Writes images of a bright coloured disc with masks; a corner of every fifth image is not annotated."""
    for number in range(count):
        rng = np.random.default_rng((7, number))
        image, mask = coloured_shapes(rng, ["disc"], 40)
        mask = (mask > 0).astype(np.uint8)
        image = np.where(mask[..., None] > 0, 255 - image // 4, image // 2)
        if number % 5 == 0:
            mask[:6, :6] = LABELS["ignore"]
        save(root / "images" / f"shape_{number:03d}.png", image.astype(np.uint8))
        save(root / "masks" / f"shape_{number:03d}.png", mask)
    write_json(root / "labels.json", LABELS)
    return root


def planned(root, images, dataset, task, storage, patch_size=(32, 32), batch_size=8, area=(0.5, 1.0), **training):
    """Converts and plans a folder of images, and preprocesses volumes; returns the plans file."""
    if not (root / "nnUNet_preprocessed/Dataset027_Target").is_dir():
        architecture = target_architecture(strides="isotropic")
        architecture["arch_kwargs"]["features_per_stage"] = [8, 16, 16]
        write_target_plans(root, architecture)
    labels = images / "labels.json"
    options = NaturalImageOptions(storage=storage, labels=labels if labels.is_file() else None, num_processes=1)
    convert_2d(images, dataset, f"{task.title()}{storage.title()}", task, options)
    natural = {"patch_size": list(patch_size), "batch_size": batch_size, "crop_area": list(area)}
    preset = root / f"preset_{dataset}.json"
    write_json(preset, {"description": "short", "natural_images": natural, "training": {**TRAINING, **training}})
    path = plan_2d(dataset, 27, preset=str(preset), num_processes=1)
    if storage == "volumes":
        preprocess(dataset, path.stem, device="cpu", num_processes=1)
    return path


def plans_with(path, name, folds=None, **changes):
    """Writes a copy of plans with other training settings, or folds of their own; returns its name."""
    plans = {**read_json(path), "plans_name": name}
    plans["nnunet_pretrain"]["training"].update(changes)
    if folds is not None:
        plans["nnunet_pretrain"]["folds"] = folds
    write_json(path.with_name(f"{name}.json"), plans)
    return name


def trainer_of(dataset, trainer, plans, fold="all", resume=False):
    """Returns nnU-Net's trainer on the CPU, with the latest checkpoint if it is to continue."""
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    made = get_trainer_from_args(str(dataset), "3d_fullres", fold, trainer, plans, resume, torch.device("cpu"))
    maybe_load_checkpoint(made, resume, False)
    return made


def log_of(trainer):
    """Returns what the training wrote into its log."""
    return Path(trainer.log_file).read_text(encoding="utf-8")


def always(transform):
    """Sets every probability inside a transform to 1; returns how many there were."""
    number = 0
    for name, value in vars(transform).items():
        if name == "apply_probability" or name.startswith("p_"):
            setattr(transform, name, 1)
            number += 1
        elif isinstance(value, BasicTransform):
            number += always(value)
        elif isinstance(value, list):
            number += sum(always(one) for one in value if isinstance(one, BasicTransform))
    return number
