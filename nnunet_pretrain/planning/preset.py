"""Presets: named recipes for planning and training, one JSON file each in plans/."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PositiveInt, field_validator, model_validator

from nnunet_pretrain.files import read_json
from nnunet_pretrain.folders import leaf
from nnunet_pretrain.networks.planned import total_stride
from nnunet_pretrain.planning.resampling import Resampling
from nnunet_pretrain.planning.settings import FineTuning, Ratios, Shares, TrainingSettings
from nnunet_pretrain.validation import validated


class Network(BaseModel):
    """The planner's network fitted to a fixed patch instead of to GPU memory.

    Attributes:
        patch_size: Patch in voxels, in the plans' axis order (coarsest axis first).
        batch_size: Patches per step.
        base_features: Feature maps of the first stage, doubled per stage.
        max_features: Most feature maps of a stage.
        min_edge: Smallest edge of a feature map in voxels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    patch_size: tuple[PositiveInt, PositiveInt, PositiveInt]
    batch_size: int = Field(ge=2)
    base_features: int = Field(default=32, ge=1)
    max_features: int = Field(default=320, ge=1)
    min_edge: int = Field(default=4, ge=1)


class Architecture(BaseModel):
    """Any importable network in place of the planner's; see `AdaptedNetwork`.

    Attributes:
        network: Dotted path of the class, such as "monai.networks.nets.SegResNet".
        input_argument: What the class calls the number of input channels.
        output_argument: What the class calls the number of output channels.
        arguments: Its other arguments.
        imported_arguments: Names of those arguments whose value is the dotted path of what is to be passed.
        strides: Downsampling z, y, x of each stage; the first is [1, 1, 1].
        patch_size: Patch in voxels, in the plans' axis order; divisible by the product of the strides.
        batch_size: Patches per step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: str
    input_argument: str = "in_channels"
    output_argument: str = "out_channels"
    arguments: dict[str, JsonValue] = {}
    imported_arguments: tuple[str, ...] = ()
    strides: tuple[tuple[PositiveInt, PositiveInt, PositiveInt], ...] = Field(min_length=1)
    patch_size: tuple[PositiveInt, PositiveInt, PositiveInt]
    batch_size: int = Field(ge=2)

    @model_validator(mode="after")
    def _fits(self) -> Architecture:
        if self.strides[0] != (1, 1, 1):
            raise ValueError(f"the first of the strides must be [1, 1, 1], got {list(self.strides[0])}")
        divisor = total_stride(self.strides)
        if any(edge % by for edge, by in zip(self.patch_size, divisor, strict=True)):
            raise ValueError(
                f"patch_size {list(self.patch_size)} must be divisible by {divisor}, the product of strides"
            )
        return self

    def arch_kwargs(self) -> dict[str, Any]:
        """Returns the arguments of `AdaptedNetwork`."""
        return self.model_dump(mode="json", exclude={"patch_size", "batch_size"})


class Domains(BaseModel):
    """How `plan_domains` lets many domains share an encoder.

    Attributes:
        branch: `unet` gives every domain the network's own decoder, `simple` Med3D's 1x1x1 convolution and up-sampling.
        batches: `domain` draws every batch from one domain, `mixed` from all of them.
        clip_percentiles: Percentiles of each image to clip its intensities to, or None for nnU-Net's own treatment.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    branch: Literal["unet", "simple"] = "unet"
    batches: Literal["domain", "mixed"] = "domain"
    clip_percentiles: tuple[float, float] | None = None

    @field_validator("clip_percentiles")
    @classmethod
    def _percentiles(cls, percentiles: tuple[float, float] | None) -> tuple[float, float] | None:
        if percentiles is not None and not 0 <= percentiles[0] < percentiles[1] <= 100:
            raise ValueError("expected [lower, upper] with 0 <= lower < upper <= 100")
        return percentiles


class NaturalImages(BaseModel):
    """How `plan_2d` shows 2D natural images to a 3D network.

    Attributes:
        patch_size: Height and width of a patch in pixels, rounded up to what the target's network divides; the depth
            is that of RGB, 3.
        batch_size: Patches per step, or None for as many voxels as a step of the target has.
        label_smoothing: See `NaturalImageSettings`.
        crop_area: See `NaturalImageSettings`.
        crop_ratio: See `NaturalImageSettings`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    patch_size: tuple[PositiveInt, PositiveInt] = (224, 224)
    batch_size: int | None = Field(default=None, ge=2)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    crop_area: Shares = (0.08, 1.0)
    crop_ratio: Ratios = (3 / 4, 4 / 3)


class Preset(BaseModel):
    """A recipe.

    Attributes:
        description: One line for the user.
        planner: Name of one of nnU-Net's own planners.
        gpu_memory_gb: Memory target for the planner, or None for the planner's own.
        spacing_mm: Voxel spacing z, y, x to plan for, or None for nnU-Net's choice.
        window_hu: CT intensities in Hounsfield units that become 0 and 1, clipped beyond; None means nnU-Net's own
            normalisation.
        network: A fixed patch and network for 3d_fullres, or None for the planner's.
        architecture: A network of another class for 3d_fullres, or None.
        resampling: nnU-Net's default resampler for images and logits, or its faster torch one.
        training: How to pre-train.
        transfer: How to train on the target.
        fine_tuning: What is frozen on the target, and how fast each part learns.
        domains: How many domains share an encoder.
        natural_images: How 2D images are shown to a 3D network.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str
    planner: str = "ExperimentPlanner"
    gpu_memory_gb: float | None = Field(default=None, gt=0)
    spacing_mm: tuple[float, float, float] | None = None
    window_hu: tuple[float, float] | None = None
    network: Network | None = None
    architecture: Architecture | None = None
    resampling: Resampling = "nnunet"
    training: TrainingSettings = TrainingSettings()
    transfer: TrainingSettings = TrainingSettings(initial_lr=1e-3, warmup_epochs=10)
    fine_tuning: FineTuning = FineTuning()
    domains: Domains = Domains()
    natural_images: NaturalImages = NaturalImages()

    @field_validator("spacing_mm")
    @classmethod
    def _positive(cls, spacing: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
        if spacing is not None and not all(0 < s < math.inf for s in spacing):
            raise ValueError("expected three positive numbers")
        return spacing

    @field_validator("window_hu")
    @classmethod
    def _ascending(cls, window: tuple[float, float] | None) -> tuple[float, float] | None:
        if window is not None and not -math.inf < window[0] < window[1] < math.inf:
            raise ValueError("expected [lower, upper] in Hounsfield units with lower < upper")
        return window

    @model_validator(mode="after")
    def _one_network(self) -> Preset:
        if self.network is not None and self.architecture is not None:
            raise ValueError("give either 'network' (nnU-Net's, fitted to a patch) or 'architecture', not both")
        return self


def preset_names() -> list[str]:
    """Returns the names of all presets."""
    return sorted(path.stem for path in leaf("plans").glob("*.json"))


def preset_file(name: str) -> Path:
    """Returns the file of a preset: of that name in plans/, or the user's own if the name ends with .json.

    Raises:
        ValueError: There is no such preset.
    """
    path = Path(name).expanduser().absolute() if name.endswith(".json") else leaf("plans") / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"unknown preset '{name}'; known are {', '.join(preset_names())}, or a path to a .json file")
    return path


def recorded_name(name: str) -> str:
    """Returns how plans name a preset: a recipe by its name, the user's own file by its whole path."""
    return str(preset_file(name)) if name.endswith(".json") else name


def load_preset(name: str) -> Preset:
    """Reads and checks a preset.

    Args:
        name: Name in plans/, or path of a file of the same form, ending with .json.

    Raises:
        ValueError: There is no such preset, or its file is wrong.
    """
    path = preset_file(name)
    return validated(Preset, read_json(path), str(path))
