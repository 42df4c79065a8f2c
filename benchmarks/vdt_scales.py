"""Sizes of the benchmark `vdt.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workspace import epochs_of


@dataclass(frozen=True)
class Scale:
    """Sizes of the benchmark.

    Attributes:
        spacing_mm: Voxel size of the target, and tolerance of the surface Dice.
        target_cases: Its labelled cases.
        test_cases: Its unseen cases.
        images: Coloured shapes per pretext.
        image_size: Their edge in pixels.
        fractions: Shares of the labelled cases.
        seeds: Repetitions.
        network: Entries of the preset's `network` that differ from preset `tiny`.
        patch_size: Height and width of patches of natural images.
        batch_sizes: Task to such patches per step.
        pretraining: Entries of its `training` that differ.
        transfer: Entries of its `transfer` that differ.
        timed: Patch of the target, patch of the natural images with as many voxels, and features per stage of the
            networks that are timed.
        pairs: Pairs of steps that are timed.
        readout_steps: Steps of a training that compares readouts.
    """

    spacing_mm: float
    target_cases: int
    test_cases: int
    images: int
    image_size: int
    fractions: tuple[float, ...]
    seeds: int
    network: dict[str, Any]
    patch_size: tuple[int, int]
    batch_sizes: dict[str, int]
    pretraining: dict[str, Any]
    transfer: dict[str, Any]
    timed: tuple[tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, ...]], ...]
    pairs: int
    readout_steps: int


SCALES = {
    "test": Scale(
        spacing_mm=12,
        target_cases=2,
        test_cases=1,
        images=24,
        image_size=32,
        fractions=(1,),
        seeds=1,
        network={"patch_size": [16, 16, 16], "base_features": 4},
        patch_size=(16, 16),
        batch_sizes={"segmentation": 2, "classification": 2},
        pretraining={**epochs_of(1, 3, 3, 1), "warmup_epochs": 0},
        transfer={**epochs_of(2, 2, 1, 1), "warmup_epochs": 1},
        timed=(((12, 16, 16), (3, 32, 32), (4, 8, 8)),),
        pairs=2,
        readout_steps=4,
    ),
    "small": Scale(
        spacing_mm=9,
        target_cases=20,
        test_cases=8,
        images=2000,
        image_size=64,
        fractions=(0.2, 0.4, 0.6, 0.8, 1),
        seeds=3,
        network={"patch_size": [24, 32, 32], "base_features": 8},
        patch_size=(48, 48),
        batch_sizes={"segmentation": 8, "classification": 32},
        pretraining={
            **epochs_of(12, 75, 8, 6),
            "val_share": 0.1,
            "mirror_axes": [2],
            "oversample_foreground_percent": 0.5,
        },
        transfer={**epochs_of(20, 15, 2, 20), "warmup_epochs": 2},
        timed=(((24, 32, 32), (3, 64, 128), (16, 32, 64)), ((48, 64, 64), (3, 256, 256), (16, 32, 64, 128))),
        pairs=21,
        readout_steps=200,
    ),
    "large": Scale(
        spacing_mm=3,
        target_cases=40,
        test_cases=20,
        images=60_000,
        image_size=160,
        fractions=(0.2, 0.4, 0.6, 0.8, 1),
        seeds=3,
        network={"patch_size": [64, 64, 64], "base_features": 32, "max_features": 256},
        patch_size=(128, 128),
        batch_sizes={"segmentation": 16, "classification": 64},
        pretraining={**epochs_of(100, 250, 24, 10), "val_share": 0.1, "mirror_axes": [2], "initial_lr": 1e-3},
        transfer={**epochs_of(100, 50, 10, 20), "warmup_epochs": 5, "initial_lr": 1e-3},
        timed=(
            ((48, 64, 64), (3, 256, 256), (32, 64, 128, 256, 320)),
            ((96, 128, 128), (3, 512, 1024), (32, 64, 128, 256, 320, 320)),
        ),
        pairs=51,
        readout_steps=1000,
    ),
}
