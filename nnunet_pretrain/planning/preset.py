"""Presets: named recipes for planning and training, one JSON file each in plans/."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from nnunet_pretrain.files import read_json
from nnunet_pretrain.folders import leaf
from nnunet_pretrain.planning.settings import TrainingSettings
from nnunet_pretrain.validation import validated


class Network(BaseModel):
    """A network fitted to a fixed patch instead of to GPU memory.

    Attributes:
        patch_size: Patch in voxels, in the plans' axis order (coarsest axis first).
        batch_size: Patches per step.
        base_features: Feature maps of the first stage, doubled per stage.
        max_features: Most feature maps of a stage.
        min_edge: Smallest edge of a feature map in voxels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    patch_size: tuple[int, int, int]
    batch_size: int = Field(ge=2)
    base_features: int = Field(default=32, ge=1)
    max_features: int = Field(default=320, ge=1)
    min_edge: int = Field(default=4, ge=1)


class Preset(BaseModel):
    """A recipe.

    Attributes:
        description: One line for the user.
        planner: Name of one of nnU-Net's own planners.
        gpu_memory_gb: Memory target for the planner, or None for the planner's own.
        spacing_mm: Voxel spacing z, y, x to plan for, or None for nnU-Net's choice.
        network: A fixed patch and network for 3d_fullres, or None for the planner's.
        training: How to pre-train.
        transfer: How to train on the target.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str
    planner: str = "ExperimentPlanner"
    gpu_memory_gb: float | None = None
    spacing_mm: tuple[float, float, float] | None = None
    network: Network | None = None
    training: TrainingSettings = TrainingSettings()
    transfer: TrainingSettings = TrainingSettings(initial_lr=1e-3, warmup_epochs=10)


def preset_names() -> list[str]:
    """Returns the names of all presets."""
    return sorted(path.stem for path in leaf("plans").glob("*.json"))


def load_preset(name: str) -> Preset:
    """Reads and checks a preset.

    Raises:
        ValueError: There is no such preset, or its file is wrong.
    """
    path = leaf("plans") / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"unknown preset '{name}'; known are {', '.join(preset_names())}")
    return validated(Preset, read_json(path), str(path))
