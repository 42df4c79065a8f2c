"""Planning a transfer: the checkpoint's architecture, spacing, patch and intensities, the target's own labels."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_pretrain.checkpoints.card import Card, card_of, channel_names
from nnunet_pretrain.checkpoints.reading import read_checkpoint
from nnunet_pretrain.files import read_json, sha256_of, write_json
from nnunet_pretrain.folders import dataset_name, nnunet_folder
from nnunet_pretrain.planning.plan import extract_fingerprint
from nnunet_pretrain.planning.preset import load_preset
from nnunet_pretrain.planning.settings import (
    SCRATCH_PLANS,
    SETTINGS_KEY,
    TRANSFER_PLANS,
    PretrainSettings,
    TransferSettings,
)


def plan_transfer(
    dataset: int | str,
    checkpoint: Path,
    preset: str | None = None,
    num_processes: int = 2,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[Path, Path, Card]:
    """Writes the plans of a transfer and of its control from scratch.

    Both plans share every number and the preprocessed data; only one names the checkpoint. So the two runs end up in
    separate result folders and differ in nothing but the start.

    Args:
        dataset: Id or name of the target, in nnU-Net raw format.
        checkpoint: Checkpoint of the pre-training.
        preset: Preset for the training on the target; None means the one of the pre-training, or default.
        num_processes: Worker processes for the target's fingerprint.
        report: Called with one line for what the user should know.

    Returns:
        The transfer plans, the control's plans, and the checkpoint's card.

    Raises:
        FileNotFoundError: Checkpoint or dataset is missing.
        ValueError: The checkpoint is unusable, or the target's channels differ from it in number.
    """
    checkpoint = checkpoint.expanduser().absolute()
    content = read_checkpoint(checkpoint)
    card = card_of(checkpoint, content)
    source_plans = content["init_args"]["plans"]
    chosen = preset or source_plans.get(SETTINGS_KEY, {}).get("preset", "default")
    training = load_preset(chosen).transfer
    name = dataset_name(dataset)
    dataset_json = read_json(nnunet_folder("nnUNet_raw") / name / "dataset.json")
    _check_channels(name, channel_names(dataset_json), card.channels, report)
    extract_fingerprint(name, num_processes)
    folder = nnunet_folder("nnUNet_preprocessed") / name
    _copy_dataset_files(nnunet_folder("nnUNet_raw") / name, folder)
    fingerprint = read_json(folder / "dataset_fingerprint.json")
    plans = _target_plans(name, source_plans, card.configuration, dataset_json, fingerprint)
    starts = {
        TRANSFER_PLANS: TransferSettings(checkpoint=str(checkpoint), sha256=sha256_of(checkpoint)),
        SCRATCH_PLANS: TransferSettings(),
    }
    for plans_name, start in starts.items():
        settings = PretrainSettings(preset=chosen, training=training, transfer=start)
        ours = {SETTINGS_KEY: settings.model_dump(mode="json", exclude_none=True)}
        write_json(folder / f"{plans_name}.json", {**plans, "plans_name": plans_name, **ours})
    return folder / f"{TRANSFER_PLANS}.json", folder / f"{SCRATCH_PLANS}.json", card


def _check_channels(
    name: str, target: tuple[str, ...], pretrained: tuple[str, ...], report: Callable[[str], None]
) -> None:
    if len(target) != len(pretrained):
        raise ValueError(
            f"{name} has the channels {list(target)}, the checkpoint was trained with {list(pretrained)}; "
            f"both need the same number"
        )
    if [channel.lower() for channel in target] != [channel.lower() for channel in pretrained]:
        report(
            f"note: the channels of {name} are called {list(target)}, those of the checkpoint {list(pretrained)}; "
            f"they are normalised as the checkpoint's"
        )


def _copy_dataset_files(raw: Path, preprocessed: Path) -> None:
    """Does what nnU-Net's planners do: its preprocessing and training read dataset.json and the splits there."""
    shutil.copyfile(raw / "dataset.json", preprocessed / "dataset.json")
    splits = raw / "splits_final.json"
    if splits.is_file() and not (preprocessed / splits.name).exists():
        shutil.copyfile(splits, preprocessed / splits.name)


def _target_plans(
    name: str, source: dict[str, Any], configuration: str, dataset_json: dict[str, Any], fingerprint: dict[str, Any]
) -> dict[str, Any]:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    # The resolved configuration, so that nothing it inherits from is left behind.
    chosen = copy.deepcopy(PlansManager(copy.deepcopy(source)).get_configuration(configuration).configuration)
    chosen["data_identifier"] = f"{TRANSFER_PLANS}_{configuration}"
    forward = source["transpose_forward"]
    return {
        **{key: copy.deepcopy(value) for key, value in source.items() if key != SETTINGS_KEY},
        "dataset_name": name,
        "original_median_spacing_after_transp": np.median(fingerprint["spacings"], 0)[forward].tolist(),
        "original_median_shape_after_transp": [
            round(size) for size in np.median(fingerprint["shapes_after_crop"], 0)[forward].tolist()
        ],
        "image_reader_writer": _reader(source["image_reader_writer"], dataset_json),
        "configurations": {configuration: chosen},
    }


def _reader(pretrained_reader: str, dataset_json: dict[str, Any]) -> str:
    """Returns the reader for the target: the checkpoint's, so that patients lie the same way round.

    A network that learned on images turned to RAS would otherwise see the target in whatever orientation it is stored.
    """
    from nnunetv2.imageio.reader_writer_registry import (
        determine_reader_writer_from_dataset_json,
        recursive_find_reader_writer_by_name,
    )

    reader = recursive_find_reader_writer_by_name(pretrained_reader)
    if dataset_json["file_ending"].lower() in reader.supported_file_endings:
        return pretrained_reader
    return determine_reader_writer_from_dataset_json(dataset_json, verbose=False).__name__
