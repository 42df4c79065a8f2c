"""Trainer part: every checkpoint says what it was made of and how good it is."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import nnunet_pretrain
from nnunet_pretrain.checkpoints.durable import DurableTraining
from nnunet_pretrain.checkpoints.reading import EXTRAS_KEY, read_checkpoint
from nnunet_pretrain.conversion.duplicates import FINGERPRINTS
from nnunet_pretrain.files import read_json, written_atomically


def versions() -> dict[str, str]:
    """Returns the versions of what a training depends on."""
    packages = ("nnunetv2", "torch", "numpy", "dynamic-network-architectures", "batchgeneratorsv2")
    return {
        "nnunet_pretrain": nnunet_pretrain.__version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def git_commit() -> str | None:
    """Returns the commit of the checkout the package runs from, "-dirty" if changed; None for an installed package."""
    root = Path(nnunet_pretrain.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


class DescribedCheckpoints(DurableTraining):
    """Adds versions, commit, fingerprints of the images and validation per structure to every checkpoint.

    Label space, schemes, sources with licences and citations, plans and settings are in nnU-Net's own entries
    `init_args/dataset_json` and `init_args/plans`.
    """

    _facts: dict[str, Any] | None = None

    def checkpoint_extras(self) -> dict[str, Any]:
        """As the other parts, with the checkpoint's description under "card"."""
        if self._facts is None:
            path = Path(self.preprocessed_dataset_folder_base) / FINGERPRINTS
            self._facts = {
                "versions": versions(),
                "git_commit": git_commit(),
                "fingerprints": read_json(path) if path.is_file() else {},
            }
        card = {**self._facts, "pseudo_dice": self.pseudo_dice_by_group()}
        return {**super().checkpoint_extras(), "card": card}

    def pseudo_dice_by_group(self) -> dict[str, float]:
        """Returns the last epoch's pseudo Dice, group or structure to value; groups without voxels are left out."""
        logged = self.logger.local_logger.my_fantastic_logging["dice_per_class_or_region"]
        latest = zip(self.group_names(), logged[-1], strict=True) if logged else ()
        return {name: float(value) for name, value in latest if math.isfinite(value)}

    def group_names(self) -> list[str]:
        """Returns what nnU-Net's list of pseudo Dice stands for."""
        return [name for name in self.dataset_json["labels"] if name not in ("background", "ignore")]

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """As nnU-Net; then adds the final validation to checkpoint_final.pth."""
        super().perform_actual_validation(save_probabilities)
        final = Path(self.output_folder) / "checkpoint_final.pth"
        summary = Path(self.output_folder) / "validation" / "summary.json"
        if self.local_rank == 0 and final.is_file() and summary.is_file():
            add_validation(final, read_json(summary))


def add_validation(path: Path, summary: dict[str, Any]) -> None:
    """Writes the means of a final validation into a checkpoint's card."""
    checkpoint = read_checkpoint(path)
    card = checkpoint["init_args"].setdefault(EXTRAS_KEY, {}).setdefault("card", {})
    means = {key: value for key, value in summary.items() if key != "metric_per_case"}
    if json.dumps(card.get("validation")) == json.dumps(means):
        return  # a transfer planned from this file names its checksum
    card["validation"] = means
    with written_atomically(path) as temporary:
        torch.save(checkpoint, temporary)
