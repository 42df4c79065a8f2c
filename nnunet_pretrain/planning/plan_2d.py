"""Planning a pre-training on natural images with the network of a 3D target (VDT, arXiv 2201.01426)."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_pretrain.conversion.engine import run_all
from nnunet_pretrain.conversion.natural_images.index import INDEX, NATURAL_KEY, ImageIndex
from nnunet_pretrain.files import read_json, write_json, written_atomically
from nnunet_pretrain.folders import dataset_name, nnunet_folder
from nnunet_pretrain.networks.classifier import classifier_architecture
from nnunet_pretrain.networks.planned import planned_network
from nnunet_pretrain.networks.trial import try_classifier, try_network
from nnunet_pretrain.planning.existing_plans import CONFIGURATION, ExistingPlans, find_plans
from nnunet_pretrain.planning.natural_plans import (
    GREY_PLANS,
    UNSHUFFLED_PLANS,
    depth_preserving,
    fingerprint,
    fitted_batch,
    fitted_patch,
    natural_plans,
)
from nnunet_pretrain.planning.plan import hand_on_folds
from nnunet_pretrain.planning.preset import NaturalImages, load_preset, recorded_name
from nnunet_pretrain.planning.resampling import use_torch_resampling
from nnunet_pretrain.planning.settings import (
    SETTINGS_KEY,
    VDT_PLANS,
    ClassificationSettings,
    NaturalImageSettings,
    PretrainSettings,
    TrainingSettings,
)
from nnunet_pretrain.validation import validated

PRESETS = {"classification": "vdt", "segmentation": "vdt_segmentation"}
"""Task of the images to the preset that is used where none is named."""

_CONTROLS: dict[str, dict[str, Any]] = {
    VDT_PLANS: {},
    GREY_PLANS: {"slices": "grey"},
    UNSHUFFLED_PLANS: {"shuffle_depth": False},
}

Report = Callable[[str], None]


@dataclass(frozen=True)
class _Images:
    """The dataset that is planned: its name, dataset.json and index, and what dataset.json says of its images."""

    name: str
    dataset_json: Mapping[str, Any]
    index: ImageIndex
    facts: Mapping[str, Any]


def plan_2d(
    dataset: int | str,
    target_plans: str | Path,
    configuration: str = CONFIGURATION,
    preset: str | None = None,
    full_kernels: bool = False,
    num_processes: int = 2,
    report: Report = lambda line: None,
) -> Path:
    """Writes nnUNetVDTPlans.json and two controls: a 3D target's network, for natural images.

    The network is the target's in stages, features, kernels and blocks, and has no stride along depth. The controls
    share network, patch and preprocessed images; in nnUNetVDTPlans__grey the three slices are the image's luminance,
    in nnUNetVDTPlans__unshuffled their order is always red, green, blue.

    Args:
        dataset: Id or name of a dataset made by `convert_2d`.
        target_plans: Plans of the 3D target; see `find_plans`.
        configuration: Configuration of those plans.
        preset: Name of a preset, or path of one's own, ending with .json; None takes `vdt` for classes of images and
            `vdt_segmentation` for masks.
        full_kernels: Whether kernels of depth 1 are trained 3 deep; a transfer sums them up again.
        num_processes: Worker processes that link or copy masks.
        report: Called with lines for the user.

    Returns:
        The plans file of the pre-training; its controls lie beside it.

    Raises:
        FileNotFoundError: The dataset, its index, the target's plans or nnU-Net's folders are missing.
        ValueError: The dataset was not made by `convert_2d`, or preset, target or network cannot be used for it.
    """
    images = _read_images(dataset)
    recipe = recorded_name(preset or PRESETS.get(images.facts["task"], "vdt"))
    chosen = load_preset(recipe)
    target = find_plans(target_plans, configuration)
    settings = _settings(images, target, recipe, chosen.training, chosen.natural_images)
    architecture = depth_preserving(target.architecture, full_kernels)
    patch_size = fitted_patch(chosen.natural_images.patch_size, architecture["arch_kwargs"]["strides"])
    batch_size = chosen.natural_images.batch_size or fitted_batch(patch_size, target.voxels)
    outputs = _outputs(images.dataset_json)
    _try_segmentation(architecture, patch_size, outputs, settings.training.deep_supervision)
    for line in _described(architecture, patch_size, batch_size, target):
        report(line)
    if settings.classification is not None:
        classes = len(settings.classification.classes)
        architecture = classifier_architecture(architecture, classes, normalised=True)
        try_classifier(partial(planned_network, architecture, 1, outputs), 1, classes, patch_size)
    reader = str(images.dataset_json.get("overwrite_image_reader_writer", "SimpleITKIO"))
    plans = natural_plans(images.name, reader, images.index, architecture, patch_size, batch_size)
    if chosen.resampling == "torch":
        plans = use_torch_resampling(plans)
    _write_data(images, num_processes, report)
    folder = nnunet_folder("nnUNet_preprocessed") / images.name
    for name, changes in _CONTROLS.items():
        assert settings.natural_images is not None
        own = settings.model_copy(update={"natural_images": settings.natural_images.model_copy(update=changes)})
        entry = own.model_dump(mode="json", exclude_none=True)
        write_json(folder / f"{name}.json", {**plans, "plans_name": name, SETTINGS_KEY: entry})
    return folder / f"{VDT_PLANS}.json"


def _read_images(dataset: int | str) -> _Images:
    """Reads what `convert_2d` wrote."""
    name = dataset_name(dataset)
    raw = nnunet_folder("nnUNet_raw") / name
    dataset_json = read_json(raw / "dataset.json")
    facts = dataset_json.get(NATURAL_KEY)
    if not isinstance(facts, dict) or facts.get("task") not in PRESETS:
        raise ValueError(
            f"{name} is no dataset of natural images: its dataset.json has no '{NATURAL_KEY}'; make one of a folder of "
            f"images with `nnunet_pretrain convert_2d`, or plan 3D images with `nnunet_pretrain plan`"
        )
    index = ImageIndex.read(raw / INDEX)
    if not len(index):
        raise ValueError(f"{raw / INDEX} lists no image; run `nnunet_pretrain convert_2d` again")
    return _Images(name, dataset_json, index, facts)


def _settings(
    images: _Images, target: ExistingPlans, recipe: str, training: TrainingSettings, shown: NaturalImages
) -> PretrainSettings:
    """Returns the plans' settings of the pre-training."""
    where = f"dataset.json of {images.name}, key '{NATURAL_KEY}'"
    values = {
        "task": images.facts["task"],
        "storage": images.facts.get("storage"),
        "target": target.identity,
        **shown.model_dump(include={"label_smoothing", "crop_area", "crop_ratio"}),
    }
    classification = None
    if images.facts["task"] == "classification":
        # balance 0: every image is as likely as any other, as in the released pre-training
        classes = {"classes": images.facts.get("classes"), "crop": "image", "balance": 0}
        classification = validated(ClassificationSettings, classes, where)
        training = training.model_copy(update={"deep_supervision": False})
    return PretrainSettings(
        preset=recipe,
        training=training,
        classification=classification,
        natural_images=validated(NaturalImageSettings, values, where),
    )


def _outputs(dataset_json: Mapping[str, Any]) -> int:
    """Returns the number of outputs nnU-Net gives a segmentation network of the dataset."""
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    manager = LabelManager(dataset_json["labels"], dataset_json.get("regions_class_order"))
    return int(manager.num_segmentation_heads)


def _try_segmentation(
    architecture: Mapping[str, Any], patch_size: list[int], outputs: int, deep_supervision: bool
) -> None:
    """Tries the whole network, whose encoder a classifier has."""
    build = partial(planned_network, architecture, 1, outputs, deep_supervision=deep_supervision)
    strides = architecture["arch_kwargs"]["strides"] if deep_supervision else None
    try_network(build, (1, outputs), patch_size, strides)


def _described(
    architecture: Mapping[str, Any], patch_size: list[int], batch_size: int, target: ExistingPlans
) -> list[str]:
    """Returns lines on network, patch and batch, beside the target's."""
    given, name = architecture["arch_kwargs"], architecture["network_class_name"].rpartition(".")[2]
    voxels = math.prod(patch_size) * batch_size
    kernels = _joined(given["kernel_sizes"])
    theirs = _joined(target.architecture["arch_kwargs"]["kernel_sizes"])
    return [
        f"network of {target}: {name}, {given['n_stages']} stages, features {given['features_per_stage']}",
        f"  kernels {kernels}{'' if kernels == theirs else f' (target: {theirs})'}",
        f"  strides {_joined(given['strides'])} (target: {_joined(target.architecture['arch_kwargs']['strides'])})",
        f"  patch {_times(patch_size)}, batch {batch_size}: {voxels:,} voxels per step "
        f"(target: {_times(target.chosen['patch_size'])}, batch {target.chosen['batch_size']}, {target.voxels:,})",
    ]


def _joined(sizes: Any) -> str:
    return " ".join(_times(one) for one in sizes)


def _times(sizes: Any) -> str:
    return "x".join(map(str, sizes))


def _write_data(images: _Images, num_processes: int, report: Report) -> None:
    """Puts what training reads beside the plans: dataset.json, index, fingerprint, folds, and masks of originals."""
    raw, folder = (nnunet_folder(kind) / images.name for kind in ("nnUNet_raw", "nnUNet_preprocessed"))
    for name in ("dataset.json", INDEX):
        with written_atomically(folder / name) as temporary:
            shutil.copyfile(raw / name, temporary)
    made = fingerprint(images.index)
    write_json(folder / "dataset_fingerprint.json", made)
    if len(made["spacings"]) < len(images.index):
        report(f"  the fingerprint lists {len(made['spacings'])} of {len(images.index):,} images, evenly spread")
    hand_on_folds(images.name)
    if images.facts["task"] == "segmentation" and images.facts["storage"] == "originals":
        _hand_on_masks(raw / "labelsTr", folder / "gt_segmentations", images, num_processes)


def _hand_on_masks(masks: Path, copies: Path, images: _Images, num_processes: int) -> None:
    """Links the masks beside the plans, or copies them to another disk; those that are up to date stay."""
    ending = images.dataset_json["file_ending"]
    names = {f"{case}{ending}": None for case in images.index.cases.tolist()}
    copies.mkdir(exist_ok=True)
    for path in copies.iterdir():
        if path.name not in names:
            path.unlink()
    for _ in run_all(_hand_on, [(masks / n, copies / n) for n in names], num_processes=num_processes, what="Masks"):
        pass


def _hand_on(files: tuple[Path, Path]) -> None:
    """Links or copies one mask; runs in other processes."""
    mask, copy = files
    if not mask.is_file():
        raise FileNotFoundError(f"{mask} is missing; run `nnunet_pretrain convert_2d` again")
    if copy.is_file():
        old, new = copy.stat(), mask.stat()
        if (old.st_size, old.st_mtime_ns) == (new.st_size, new.st_mtime_ns):
            return
        copy.unlink()
    try:
        os.link(mask, copy)
    except OSError:  # another disk, or one without links
        with written_atomically(copy) as temporary:
            shutil.copy2(mask, temporary)
