"""Does a pre-training help on a target with few labels, how fast, and which of its parts does it?

One pre-training on three merged, partially labelled sources of phantoms in arterial and portal phase; one target of
another scanner and protocol (native phase, shifted and stretched HU, more noise and blur, all never seen in the
pre-training), with a label set of its own: united kidneys and vessels, a liver with all that lies in it, and two
structures that no source of the pre-training has in its label space (stomach, bladder). A third of the target's cases
end above the bladder. Everything after that is `nnunet_pretrain study`: equal plans, steps, schedule and subsets for
every arm, nnU-Net's own training command, scores on cases nobody trained on.

`--study fractions` compares with the control from scratch, `--study ablation` all arms at one fraction, against stock
`-pretrained_weights` too; `--study long` gives both arms four times the steps, so that the control converges. What is
done stays in the work folder and is not repeated.
Run `python benchmarks/transfer.py /tmp/transfer --study fractions --jobs 2`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from workspace import claim, command, epochs_of, parser_of_studies, set_environment

from nnunet_pretrain.conversion import find_source, merge
from nnunet_pretrain.conversion.merge import MergeOptions
from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.folders import leaf
from nnunet_pretrain.labels import LabelSpace
from nnunet_pretrain.phantom import Appearance
from nnunet_pretrain.phantom.datasets import write_phantom_source, write_phantom_target
from nnunet_pretrain.planning.settings import PRETRAIN_PLANS

SOURCES = {"BTCV": ("RAS", "LPS"), "KiTS23": ("IPL",), "AbdomenAtlas1.1": ("RAS", "LPS")}
STRUCTURES = (
    "liver", "hepatic_vessel", "spleen", "pancreas", "gall_bladder", "esophagus", "aorta", "postcava",
    "kidney_left", "kidney_right", "kidney_tumor", "kidney_cyst",
)  # fmt: skip
TARGET_LABELS = {
    "liver": ("liver", "liver_tumor", "hepatic_vessel"),
    "kidneys": ("kidney_left", "kidney_right", "kidney_tumor", "kidney_cyst"),
    "spleen": ("spleen",),
    "great_vessels": ("aorta", "postcava"),
    "stomach": ("stomach",),
    "bladder": ("bladder",),
}
PRETRAINING, TARGET = "Dataset900_Merged", "Dataset901_Target"
CONFIGURATION = "3d_fullres"
FIRST_SEED = {"sources": 30_000, "target": 60_000, "test": 61_000}
HELD_OUT = Appearance(phase="native", noise_hu=20, noise_grain=0.8, blur_mm=3, hu_scale=0.92, hu_shift=35)


@dataclass(frozen=True)
class Scale:
    """Sizes of the benchmark.

    Attributes:
        spacing_mm: Voxel size of all phantoms, and tolerance of the surface Dice.
        cases: Phantoms per source.
        target_cases: Labelled cases of the target.
        test_cases: Unseen cases of the target.
        fractions: Shares of the labelled cases.
        ablation: The share for the comparison of all arms.
        seeds: Repetitions.
        network: Entries of the preset's `network` that differ from preset `tiny`.
        pretraining: Entries of its `training` that differ.
        transfer: Entries of its `transfer` that differ.
        long: Entries that differ from those in the long study, in which the control has time to converge.
    """

    spacing_mm: float
    cases: int
    target_cases: int
    test_cases: int
    fractions: tuple[float, ...]
    ablation: float
    seeds: int
    network: dict[str, Any]
    pretraining: dict[str, Any]
    transfer: dict[str, Any]
    long: dict[str, Any]


SCALES = {
    "test": Scale(
        spacing_mm=9,
        cases=2,
        target_cases=4,
        test_cases=2,
        fractions=(0.5, 1),
        ablation=0.5,
        seeds=1,
        network={},
        pretraining=epochs_of(2, 3, 1, 1),
        transfer={**epochs_of(3, 2, 1, 1), "warmup_epochs": 1},
        long={**epochs_of(4, 2, 1, 1), "warmup_epochs": 1},
    ),
    # Preset tiny centres every patch of the pre-training on a structure; then background far away is never learned.
    "small": Scale(
        spacing_mm=8,
        cases=12,
        target_cases=20,
        test_cases=8,
        fractions=(0.1, 0.2, 0.4, 1),
        ablation=0.2,
        seeds=3,
        network={"patch_size": [16, 24, 24]},
        pretraining={**epochs_of(15, 100, 4, 5), "oversample_foreground_percent": 0.5},
        transfer={**epochs_of(24, 10, 2, 8), "warmup_epochs": 2},
        long={**epochs_of(40, 25, 2, 20), "warmup_epochs": 3},
    ),
    "large": Scale(
        spacing_mm=3,
        cases=40,
        target_cases=40,
        test_cases=20,
        fractions=(0.05, 0.1, 0.2, 0.4, 1),
        ablation=0.2,
        seeds=3,
        network={"patch_size": [64, 64, 64], "base_features": 32, "max_features": 256},
        pretraining={**epochs_of(40, 250, 20, 10), "oversample_foreground_percent": 0.5, "initial_lr": 1e-3},
        transfer={**epochs_of(50, 50, 10, 10), "warmup_epochs": 3, "initial_lr": 1e-3},
        long={**epochs_of(200, 50, 10, 20), "warmup_epochs": 10},
    ),
}


def preset_file(work: Path, study: str = "fractions") -> Path:
    """Returns where the benchmark's preset is."""
    return work / ("preset_long.json" if study == "long" else "preset.json")


def write_preset(work: Path, scale: Scale) -> None:
    """Writes preset `tiny` with the scale's numbers."""
    preset = read_json(leaf("plans") / "tiny.json")
    for part, changes in (("network", scale.network), ("training", scale.pretraining), ("transfer", scale.transfer)):
        preset[part].update(changes)
    preset["training"]["seed"] = 1
    write_json(preset_file(work), {**preset, "description": "benchmarks/transfer.py"})
    preset["transfer"].update(scale.long)
    write_json(preset_file(work, "long"), {**preset, "description": "benchmarks/transfer.py, long"})


def draw_sources(work: Path, scale: Scale) -> list[tuple[str, Path]]:
    """Draws the phantoms of the pre-training, each with a look of its own; returns sources and folders."""
    spacing = (scale.spacing_mm,) * 3
    for position, (name, orientations) in enumerate(SOURCES.items()):
        for i in range(scale.cases):
            seed = FIRST_SEED["sources"] + 1000 * position + i
            rng = np.random.default_rng(seed)
            look = Appearance(
                phase=str(rng.choice(["arterial", "portal"])),
                noise_hu=float(rng.uniform(5, 14)),
                blur_mm=float(rng.uniform(0.6, 2)),
                hu_scale=float(rng.uniform(0.99, 1.01)),
                hu_shift=float(rng.uniform(-5, 5)),
            )
            orientation = (orientations[i % len(orientations)],)
            folder = work / "sources" / name
            write_phantom_source(find_source(name), folder, [seed], orientation, spacing_mm=spacing, appearance=look)
    return [(name, work / "sources" / name) for name in SOURCES]


def draw_target(work: Path, scale: Scale) -> None:
    """Draws the target; every third case ends above the bladder."""
    train = list(range(FIRST_SEED["target"], FIRST_SEED["target"] + scale.target_cases))
    test = list(range(FIRST_SEED["test"], FIRST_SEED["test"] + scale.test_cases))
    folder = work / "nnUNet_raw" / TARGET
    look = {"spacing_mm": (scale.spacing_mm,) * 3, "orientation": "LPS", "appearance": HELD_OUT}
    # Fold 0 holds out the unseen cases. The second call leaves the images of the first alone.
    write_phantom_target(folder, TARGET_LABELS, train[2::3], test[1::3], [], **look, field_of_view="upper")
    write_phantom_target(folder, TARGET_LABELS, train, test, [], **look)


def checkpoint_file(work: Path) -> Path:
    """Returns where nnU-Net leaves the pre-training."""
    model = work / "nnUNet_results" / PRETRAINING / f"nnUNetTrainerPretrain__{PRETRAIN_PLANS}__{CONFIGURATION}"
    return model / "fold_all" / "checkpoint_final.pth"


def prepare(work: Path, scale: Scale, device: str) -> None:
    """Draws, merges, plans, preprocesses and pre-trains, once."""
    write_preset(work, scale)
    draw_target(work, scale)
    if checkpoint_file(work).is_file():
        return
    if not (work / "nnUNet_preprocessed" / PRETRAINING / f"{PRETRAIN_PLANS}.json").is_file():
        sources = draw_sources(work, scale)
        space = LabelSpace(name="benchmark", structures=STRUCTURES)
        number, name = PRETRAINING.removeprefix("Dataset").split("_")
        merge(int(number), name, sources, MergeOptions(space=space, overwrite=True, strict=True), print)
        # nnU-Net's planner takes the number of worker processes for that of threads.
        command(["nnunet_pretrain", "plan", "-d", number, "--preset", preset_file(work)], nnUNet_n_proc_DA="1")
    command(["nnunet_pretrain", "preprocess", "-d", PRETRAINING, "-p", PRETRAIN_PLANS, "-c", CONFIGURATION])
    latest = checkpoint_file(work).with_name("checkpoint_latest.pth")
    train = ["nnUNetv2_train", PRETRAINING, CONFIGURATION, "all", "-tr", "nnUNetTrainerPretrain", "-p", PRETRAIN_PLANS]
    started = time.monotonic()
    command([*train, "-device", device, *(["--c"] if latest.is_file() else [])])
    print(f"pre-training: {time.monotonic() - started:.0f} s", flush=True)


def study(work: Path, scale: Scale, arguments: argparse.Namespace) -> Path:
    """Runs one of the three studies."""
    from nnunet_pretrain.study import StudyOptions, run_study
    from nnunet_pretrain.study.arms import ARMS

    pair = ("scratch", "pretrained")
    # The arms of the ablation are further arms at one fraction of the first study, so they share its folder.
    name, fractions, arms = {
        "fractions": ("fewlabels", scale.fractions, pair),
        "ablation": ("fewlabels", (scale.ablation,), tuple(ARMS)),
        "long": ("long", (0.1, 0.4), pair),
    }[arguments.study]
    return run_study(
        StudyOptions(
            dataset=TARGET,
            checkpoint=checkpoint_file(work),
            name=name,
            preset=str(preset_file(work, arguments.study)),
            fractions=fractions,
            seeds=arguments.seeds or scale.seeds,
            arms=tuple(arguments.arms or arms),
            jobs=arguments.jobs,
            device=arguments.device,
            num_processes=4 if arguments.device == "cuda" else 1,
            nsd_mm=scale.spacing_mm,
        )
    )


def main() -> None:
    """Prepares what is missing and runs a study."""
    parser = parser_of_studies(__doc__, ("fractions", "prepare", "ablation", "long"), SCALES)
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="instead of the study's")
    arguments = parser.parse_args()
    work, scale = arguments.work.absolute(), SCALES[arguments.scale]
    set_environment(work, arguments.device)
    claim(work, {"scale": asdict(scale), "appearance": asdict(HELD_OUT), "structures": STRUCTURES})
    prepare(work, scale, arguments.device)
    if arguments.study != "prepare":
        study(work, scale, arguments)


if __name__ == "__main__":
    main()
