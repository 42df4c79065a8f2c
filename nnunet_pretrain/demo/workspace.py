"""Where the demo's files lie, and what its datasets and runs are called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nnunet_pretrain.files import read_json
from nnunet_pretrain.folders import NNUNET_VARIABLES, command_environment
from nnunet_pretrain.planning import PRETRAIN_PLANS, transfer_plans_names

# The sources the demo imitates, and the orientations their cases are stored in.
SOURCES = {"BTCV": ("RAS", "LPS"), "KiTS23": ("IPL",), "AbdomenAtlas1.1": ("RAS", "LPS")}
PRETRAINING = "Dataset900_AbdomenMerged"
TARGET = "Dataset901_Target"
CONFIGURATION = "3d_fullres"
PRETRAIN = ("nnUNetTrainerPretrain", PRETRAIN_PLANS)
ARMS = {
    arm: ("nnUNetTrainerTransfer", plans)
    for arm, plans in zip(("pre-trained", "from scratch"), transfer_plans_names("AbdomenMerged"), strict=True)
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


def dataset_id(dataset: str) -> str:
    """Returns the number of a dataset's name, as nnU-Net's -d takes it."""
    return dataset.removeprefix("Dataset").partition("_")[0]


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

    def preprocessed(self, dataset: str) -> Path:
        """Preprocessed dataset, where its plans lie."""
        return self.root / "nnUNet_preprocessed" / dataset

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
            **command_environment(),
        }


def target_dice(predictions: Path) -> dict[str, float]:
    """Reads the mean Dice of each of the target's labels from what nnUNetv2_evaluate_folder wrote."""
    mean = read_json(predictions / "summary.json")["mean"]
    return {name: mean[str(i)]["Dice"] for i, name in enumerate(TARGET_LABELS, start=1)}
