"""Planning a transfer: the checkpoint's architecture, spacing, patch and intensities, the target's own labels."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_pretrain.checkpoints.card import Card, card_of
from nnunet_pretrain.checkpoints.reading import read_checkpoint
from nnunet_pretrain.files import read_json, sha256_of, write_json
from nnunet_pretrain.folders import dataset_name, nnunet_folder
from nnunet_pretrain.planning.plan import extract_fingerprint
from nnunet_pretrain.planning.preset import load_preset
from nnunet_pretrain.planning.settings import SETTINGS_KEY, PretrainSettings, TransferSettings

TRANSFER_PLANS = "nnUNetTransferPlans"
SCRATCH_PLANS = "nnUNetTransferPlans__scratch"


def plan_transfer(
    dataset: int | str, checkpoint: Path, preset: str | None = None, num_processes: int = 2
) -> tuple[Path, Path, Card]:
    """Writes the plans of a transfer and of its control from scratch.

    Both plans share every number and the preprocessed data; only one names the checkpoint. So the two runs end up in
    separate result folders and differ in nothing but the start.

    Args:
        dataset: Id or name of the target, in nnU-Net raw format.
        checkpoint: Checkpoint of the pre-training.
        preset: Preset for the training on the target; None means the one of the pre-training, or default.
        num_processes: Worker processes for the target's fingerprint.

    Returns:
        The transfer plans, the control's plans, and the checkpoint's card.

    Raises:
        FileNotFoundError: Checkpoint or dataset is missing.
        ValueError: The checkpoint is unusable, or the target's channels differ from it in number.
    """
    checkpoint = checkpoint.expanduser().absolute()
    content = read_checkpoint(checkpoint)
    card = card_of(checkpoint, content)
    name = dataset_name(dataset)
    target_json = nnunet_folder("nnUNet_raw") / name / "dataset.json"
    dataset_json = read_json(target_json)
    channels = tuple((dataset_json.get("channel_names") or dataset_json.get("modality")).values())
    if len(channels) != len(card.channels):
        raise ValueError(
            f"{name} has the channels {list(channels)}, the checkpoint was trained with {list(card.channels)}; "
            f"both need the same number"
        )
    source_plans = content["init_args"]["plans"]
    if preset is None:
        preset = source_plans.get(SETTINGS_KEY, {}).get("preset", "default")
    chosen = load_preset(preset)
    extract_fingerprint(name, num_processes)
    folder = nnunet_folder("nnUNet_preprocessed") / name
    plans = _target_plans(
        name, source_plans, card.configuration, dataset_json, read_json(folder / "dataset_fingerprint.json")
    )
    # nnU-Net's preprocessing and training read the dataset.json beside the plans.
    shutil.copyfile(target_json, folder / "dataset.json")
    splits = target_json.with_name("splits_final.json")
    if splits.is_file() and not (folder / splits.name).exists():
        shutil.copyfile(splits, folder / splits.name)  # as nnU-Net's planners do
    paths = []
    for plans_name, start in (
        (TRANSFER_PLANS, TransferSettings(checkpoint=str(checkpoint), sha256=sha256_of(checkpoint))),
        (SCRATCH_PLANS, TransferSettings()),
    ):
        settings = PretrainSettings(preset=preset, training=chosen.transfer, transfer=start)
        paths.append(folder / f"{plans_name}.json")
        content = {**plans, "plans_name": plans_name, SETTINGS_KEY: settings.model_dump(mode="json", exclude_none=True)}
        write_json(paths[-1], content)
    return paths[0], paths[1], card


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
