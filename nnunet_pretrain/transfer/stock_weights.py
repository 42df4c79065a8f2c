"""A transfer as a file that stock nnU-Net's `-pretrained_weights` accepts.

Stock nnU-Net demands every tensor but the heads' in the target's own shapes. So the target's whole network is written:
what the checkpoint gives, fitted by the rules of docs/adaptation.md, and initial values for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nnunet_pretrain.checkpoints.portable import plain
from nnunet_pretrain.checkpoints.reading import EXTRAS_KEY
from nnunet_pretrain.files import write_json, written_atomically
from nnunet_pretrain.planning.settings import PretrainSettings
from nnunet_pretrain.transfer.pretrained_network import facts_of, pretrained_network
from nnunet_pretrain.transfer.report import TransferReport
from nnunet_pretrain.transfer.weights import transfer_weights

DEFAULT_SEED = 0
"""Seed of what the checkpoint does not give, where the preset has none."""


def check_output(path: Path) -> None:
    """Refuses a name under which the weights cannot be written, before anything is planned.

    Raises:
        ValueError: It does not end in .pth, or is there already.
    """
    if path.suffix != ".pth":
        raise ValueError(f"{path}: nnU-Net's -pretrained_weights takes a .pth file; end the name in .pth")
    if path.exists() or report_path(path).exists():
        raise ValueError(f"{path} or its report {report_path(path).name} is there already; choose another name")


def report_path(path: Path) -> Path:
    """Returns where the transfer report of a file of weights lies."""
    return path.with_name(f"{path.stem}_report.json")


def write_stock_weights(
    path: Path,
    checkpoint: Mapping[str, Any],
    plans: Mapping[str, Any],
    configuration: str,
    dataset_json: Mapping[str, Any],
) -> TransferReport:
    """Writes the target's whole network after the transfer, and the transfer report beside it.

    Args:
        path: The .pth file.
        checkpoint: The pre-trained checkpoint of an ordinary network.
        plans: Plans of the transfer, with its settings.
        configuration: Configuration of the plans.
        dataset_json: The target's.

    Returns:
        The transfer report.

    Raises:
        ValueError: Too little of the checkpoint fits, or the transfer changed nothing.
    """
    settings = PretrainSettings.from_plans(plans)
    assert settings.transfer is not None
    seed = DEFAULT_SEED if settings.training.seed is None else settings.training.seed
    target = facts_of(plans, configuration, dataset_json)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = target.build(initialise=True)
    pretrained = pretrained_network(checkpoint, plans["transpose_forward"])
    report = transfer_weights(network, target, pretrained, settings.transfer)
    content = {
        "network_weights": network.state_dict(),
        "current_epoch": 0,
        "init_args": {
            "plans": plain(plans),
            "configuration": configuration,
            "fold": "all",
            "dataset_json": plain({key: value for key, value in dataset_json.items() if key != "dataset"}),
            "device": torch.device("cpu"),
            EXTRAS_KEY: {"transfer_report": plain(report.as_dict()), "seed": seed},
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": None,
    }
    with written_atomically(path) as temporary:
        torch.save(content, temporary)
    write_json(report_path(path), {"seed": seed, **report.as_dict()})
    return report
