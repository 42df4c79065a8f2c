"""Sizes of the benchmark `domains.py`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from workspace import epochs_of


@dataclass(frozen=True)
class Scale:
    """Sizes of the benchmark.

    Attributes:
        spacing_mm: Unit of the domains' spacings, and tolerance of the surface Dice.
        cases: Phantoms per domain.
        target_cases: Labelled cases of the target.
        test_cases: Unseen cases of the target.
        fractions: Shares of the labelled cases.
        seeds: Repetitions.
        starts: What the target is trained from, beside the control.
        network: Entries of the preset's `network` that differ from preset `tiny`.
        pretraining: Entries of its `training` that differ.
        transfer: Entries of its `transfer` that differ.
        timed: Patches and features per stage of the networks that are timed.
        pairs: Pairs of steps that are timed.
    """

    spacing_mm: float
    cases: int
    target_cases: int
    test_cases: int
    fractions: tuple[float, ...]
    seeds: int
    starts: tuple[str, ...]
    network: dict[str, Any]
    pretraining: dict[str, Any]
    transfer: dict[str, Any]
    timed: tuple[tuple[tuple[int, int, int], tuple[int, ...]], ...]
    pairs: int


SMALL = Scale(
    spacing_mm=9,
    cases=12,
    target_cases=20,
    test_cases=8,
    fractions=(0.1, 0.3, 1),
    seeds=3,
    starts=("all", "ct-alone", "t1-alone", "inverted-alone"),
    network={"patch_size": [24, 32, 32], "base_features": 8},
    pretraining={**epochs_of(12, 75, 6, 6), "oversample_foreground_percent": 0.5},
    transfer={**epochs_of(20, 15, 2, 20), "warmup_epochs": 2},
    timed=(((24, 32, 32), (16, 32, 64)), ((48, 64, 64), (16, 32, 64, 128))),
    pairs=21,
)

SCALES = {
    "test": Scale(
        spacing_mm=12,
        cases=2,
        target_cases=2,
        test_cases=1,
        fractions=(1,),
        seeds=1,
        starts=("all", "ct-alone"),
        network={"patch_size": [16, 16, 16], "base_features": 4},
        pretraining={**epochs_of(1, 3, 3, 1), "warmup_epochs": 0},
        transfer={**epochs_of(2, 2, 1, 1), "warmup_epochs": 1},
        timed=(((16, 16, 16), (4, 8, 8)),),
        pairs=2,
    ),
    "small": SMALL,
    "long": replace(  # three times the pre-training, four times the training
        SMALL,
        fractions=(0.1, 1),
        starts=("all", "t1-alone"),
        pretraining={**SMALL.pretraining, **epochs_of(36, 75, 6, 6)},
        transfer={**SMALL.transfer, **epochs_of(20, 60, 2, 5)},
    ),
    "large": Scale(
        spacing_mm=3,
        cases=40,
        target_cases=40,
        test_cases=20,
        fractions=(0.05, 0.1, 0.2, 0.4, 1),
        seeds=3,
        starts=("all", "ct-alone", "t1-alone", "inverted-alone", "all-t1-branch"),
        network={"patch_size": [64, 64, 64], "base_features": 32, "max_features": 256},
        pretraining={**epochs_of(60, 250, 24, 10), "oversample_foreground_percent": 0.5, "initial_lr": 1e-3},
        transfer={**epochs_of(100, 50, 10, 20), "warmup_epochs": 5, "initial_lr": 1e-3},
        timed=(((64, 64, 64), (32, 64, 128, 256, 320)), ((128, 128, 128), (32, 64, 128, 256, 320, 320))),
        pairs=51,
    ),
}
