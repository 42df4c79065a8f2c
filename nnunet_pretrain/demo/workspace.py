"""Where the demo's files lie, and what its datasets and runs are called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nnunet_pretrain.folders import NNUNET_VARIABLES, TRAINER_VARIABLE, trainer_search_path

PRETRAINING = "Dataset900_AbdomenMerged"
TARGET = "Dataset901_Target"
CONFIGURATION = "3d_fullres"
PRETRAIN = ("nnUNetTrainerPretrain", "nnUNetPretrainPlans")
ARMS = {
    "pre-trained": ("nnUNetTrainerTransfer", "nnUNetTransferPlans"),
    "from scratch": ("nnUNetTrainerTransfer", "nnUNetTransferPlans__scratch"),
}
# The target's own label set: coarser than the pre-training's, and complete.
TARGET_LABELS = {
    "liver": ("liver", "liver_tumor", "hepatic_vessel"),
    "kidneys": ("kidney_left", "kidney_right", "kidney_tumor", "kidney_cyst"),
    "spleen": ("spleen",),
    "stomach": ("stomach",),
    "great_vessels": ("aorta", "postcava"),
    "pancreas": ("pancreas", "pancreas_tumor"),
}
TARGET_SEEDS = {"train": (9001, 9002), "val": (9003, 9004), "test": (9005, 9006, 9007, 9008)}


@dataclass(frozen=True)
class Workspace:
    """Folders of a demo.

    Attributes:
        root: The folder the user gave.
    """

    root: Path

    def sources(self, name: str) -> Path:
        """Folder of a source."""
        return self.root / "sources" / name

    def raw(self, dataset: str) -> Path:
        """Raw dataset."""
        return self.root / "nnUNet_raw" / dataset

    def fold(self, dataset: str, run: tuple[str, str], fold: str) -> Path:
        """Results of a run."""
        return self.root / "nnUNet_results" / dataset / f"{run[0]}__{run[1]}__{CONFIGURATION}" / f"fold_{fold}"

    def predictions(self, name: str) -> Path:
        """Predictions of an arm."""
        return self.root / "predictions" / name.replace(" ", "_")

    def environment(self, device: str) -> dict[str, str]:
        """Variables nnU-Net's commands need here."""
        folders = {variable: str(self.root / variable) for variable in NNUNET_VARIABLES}
        small = {"nnUNet_n_proc_DA": "2", "nnUNet_def_n_proc": "2"}
        return {
            **folders,
            **small,
            **({} if device == "cuda" else {"nnUNet_compile": "f"}),
            TRAINER_VARIABLE: trainer_search_path(),
        }
