"""What the benchmark compares: sources, arms and sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).with_name("sources")
REST = ("stomach", "pancreas", "aorta", "postcava", "bladder")


@dataclass(frozen=True)
class Design:
    """Who labels what, and what is scored.

    Attributes:
        partial: Partially labelled sources, files of sources/ without ending.
        complete: The source that labels all of it.
        structures: Label space.
        scored: What is scored to the structures it unites; the same for every arm.
        arms: Arms that are run unless others are named.
    """

    partial: tuple[str, ...]
    complete: str
    structures: tuple[str, ...]
    scored: dict[str, tuple[str, ...]]
    arms: tuple[str, ...]


_ORGANS = ("liver", "spleen", "kidney_left", "kidney_right", *REST)
_SIDED = (*_ORGANS, "kidney_tumor", "kidney_cyst")

DESIGNS = {
    # No source tells the sides, so none can be learned: the union of both kidneys is scored.
    "issue": Design(
        partial=("liver_spleen", "kidneys", "rest"),
        complete="complete",
        structures=_ORGANS,
        scored={
            "liver": ("liver",),
            "spleen": ("spleen",),
            "kidneys": ("kidney_left", "kidney_right"),
            **{name: (name,) for name in REST},
        },
        # Where sets do not overlap, exclusive hits are all hits.
        arms=("complete", "label_set", "sigmoid", "missing", "leaf", "marginalized", "no_dice"),
    ),
    # Label sets that overlap: sides are known in one source, lesions in another.
    "sides": Design(
        partial=("liver_spleen", "kidney_lesions", "rest_sided"),
        complete="complete_sided",
        structures=_SIDED,
        scored={name: (name,) for name in _SIDED},
        arms=("complete", "label_set", "exclusive", "leaf", "marginalized", "no_dice"),
    ),
}


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        title: Name in the tables.
        trainer: Trainer class.
        complete: Whether it trains on complete labels.
    """

    title: str
    trainer: str
    complete: bool = False


ARMS = {
    "complete": Arm("complete labels (upper bound)", "nnUNetTrainerPretrain", complete=True),
    "label_set": Arm("label-set loss (summed probabilities)", "nnUNetTrainerPretrain"),
    "sigmoid": Arm("masked sigmoid, MultiTalent", "nnUNetTrainerArmSigmoid"),
    "clip": Arm("masked sigmoid, CLIP-Driven", "nnUNetTrainerArmClip"),
    "missing": Arm("missing = background", "nnUNetTrainerArmMissingIsBackground"),
    "exclusive": Arm("label-set, exclusive hits", "nnUNetTrainerArmExclusiveHits"),
    "leaf": Arm("label-set, leaf-Dice", "nnUNetTrainerArmLeafDice"),
    "marginalized": Arm("label-set, marginalised Dice", "nnUNetTrainerArmMarginalizedDice"),
    "no_dice": Arm("label-set, no Dice", "nnUNetTrainerArmNoDice"),
}


@dataclass(frozen=True)
class Scale:
    """Sizes of a run.

    Attributes:
        spacing_mm: Voxel size of the phantoms.
        cases: Training phantoms per source.
        test_cases: Unseen phantoms with complete labels.
        steps: Training steps.
        steps_per_epoch: Steps between two looks at the held-out cases.
        patch_size: Patch in voxels, z y x.
        features_per_stage: Feature maps of each stage.
        strides: Strides of each stage; the first is 1.
        phase: Contrast phase of all phantoms, or None for random phase, noise and blur.
        training: Entries of the plans' training settings that differ from preset `tiny`.
    """

    spacing_mm: float
    cases: int
    test_cases: int
    steps: int
    steps_per_epoch: int
    patch_size: tuple[int, ...]
    features_per_stage: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    phase: str | None = None
    training: dict[str, Any] = field(default_factory=dict)


# Preset tiny centres every patch on a structure the source labels. Then no patch shows what surrounds the others, and
# background far from them is never learned; every second patch of nnU-Net's is drawn anywhere.
_FOREGROUND = {"oversample_foreground_percent": 0.33}

SCALES = {
    # On a CPU 8 features cost half of what 12 do, and 12 as much as 16. One contrast phase, because with random ones
    # the upper bound itself had not found every structure after 1200 steps.
    "small": Scale(
        spacing_mm=8.0,
        cases=8,
        test_cases=8,
        steps=2000,
        steps_per_epoch=200,
        patch_size=(24, 32, 32),
        features_per_stage=(8, 16, 32, 32),
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (1, 2, 2)),
        phase="portal",
        training=_FOREGROUND,
    ),
    "large": Scale(
        spacing_mm=3.0,
        cases=24,
        test_cases=16,
        steps=10000,
        steps_per_epoch=250,
        patch_size=(64, 64, 64),
        features_per_stage=(32, 64, 128, 256, 256),
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
        training={**_FOREGROUND, "initial_lr": 1e-3},
    ),
}
FIRST_SEED = {"train": 20_000, "test": 90_000}
