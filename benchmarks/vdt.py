"""Is a 3D network that has learned from 2D images worth more on 3D images, and is it the depth made of colours?

Coloured shapes (classes of outlines, or masks of textures) and scikit-learn's digits are pre-trained by
nnUNetTrainerVDTClassification and nnUNetTrainerVDTSegmentation with the network of the target, a phantom CT with few
labelled cases. The pre-trainings of the shapes have two controls: `grey` repeats the luminance in all three slices,
`unshuffled` leaves red, green and blue in their order. Digits are grey by nature and need none. Then
`nnunet_pretrain study` trains the target from each of them and from scratch; all arms share plans, steps, schedule,
subsets and seeds, which is checked.

`--study long` trains on all labelled cases with four times the steps, also from the encoder of the masks alone.
`--study speed` times training steps of real trainers on equal made-up batches in alternating pairs (`vdt_steps.py`);
`--study readout` compares two readouts of the classifier (`vdt_readout.py`).
How fast images are read is measured by `natural_images.py`.
What is done stays in the work folder and is not repeated.
Run `python benchmarks/vdt.py /tmp/vdt --study transfer --jobs 2`.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from joined_studies import check_equal, epochs_table, gain_table, join
from vdt_readout import readout
from vdt_scales import SCALES, Scale
from vdt_steps import speed
from workspace import claim, command, parser_of_studies, session, set_environment

from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.folders import leaf
from nnunet_pretrain.phantom.coloured_shapes import write_coloured_shapes
from nnunet_pretrain.phantom.domains import write_phantom_domain
from nnunet_pretrain.planning.domain_plans import CONFIGURATION
from nnunet_pretrain.planning.plan import extract_fingerprint, planned_by_preset
from nnunet_pretrain.planning.preset import load_preset
from nnunet_pretrain.planning.settings import VDT_PLANS, transfer_plans_names
from nnunet_pretrain.study.summary import CONTROL
from nnunet_pretrain.study.tables import table

if TYPE_CHECKING:
    from nnunet_pretrain.study import StudyOptions

LABELS = {
    "liver": ("liver", "liver_tumor", "hepatic_vessel"),
    "kidneys": ("kidney_left", "kidney_right", "kidney_tumor", "kidney_cyst"),
    "spleen": ("spleen",),
    "aorta": ("aorta",),
}
TARGET, TARGET_PLANS = "Dataset940_PhantomCT", "nnUNetTinyPlans"
FIRST_SEED = {"target": 80_000, "test": 81_000}
LONGER = 4
VARIANTS = {"": "", "grey": "__grey", "unshuffled": "__unshuffled"}
"""What a pre-training is called beside its pretext, and the ending of its plans."""


@dataclass(frozen=True)
class Pretext:
    """What is learned from natural images.

    Attributes:
        dataset: Number and name of its dataset.
        task: Its task.
        variants: The pre-trainings: keys of VARIANTS.
    """

    dataset: tuple[int, str]
    task: str
    variants: tuple[str, ...]

    @property
    def trainer(self) -> str:
        """Name of its trainer."""
        return f"nnUNetTrainerVDT{self.task.title()}"

    @property
    def folder(self) -> str:
        """Name of its dataset as nnU-Net's folders have it."""
        return f"Dataset{self.dataset[0]:03d}_{self.dataset[1]}"


PRETEXTS = {
    "masks": Pretext((941, "Textures"), "segmentation", tuple(VARIANTS)),
    "classes": Pretext((942, "Shapes"), "classification", tuple(VARIANTS)),
    "digits": Pretext((943, "Digits"), "classification", ("",)),
}


def preset_file(work: Path, task: str = "segmentation") -> Path:
    """Returns where the preset for a task is; on the target they are alike."""
    return work / f"{task}.json"


def write_presets(work: Path, scale: Scale) -> None:
    """Writes preset `tiny` with the scale's numbers, once for each task."""
    for task, batch_size in scale.batch_sizes.items():
        preset = read_json(leaf("plans") / "tiny.json")
        for part, changes in (
            ("network", scale.network),
            ("natural_images", {"patch_size": scale.patch_size, "batch_size": batch_size}),
            ("training", scale.pretraining),
            ("transfer", scale.transfer),
        ):
            preset[part].update(changes)
        preset["training"]["seed"] = 1
        write_json(preset_file(work, task), {**preset, "description": "benchmarks/vdt.py"})


def prepare_target(work: Path, scale: Scale) -> Path:
    """Draws the target and plans it as an ordinary dataset, once; returns its plans."""
    folder, cases = work / "nnUNet_raw" / TARGET, {"target": scale.target_cases, "test": scale.test_cases}
    path = work / "nnUNet_preprocessed" / TARGET / f"{TARGET_PLANS}.json"
    if not path.is_file():
        seeds = [range(FIRST_SEED[part], FIRST_SEED[part] + number) for part, number in cases.items()]
        write_phantom_domain(folder, "ct", LABELS, *seeds, spacing_mm=(scale.spacing_mm,) * 3, orientation="LPS")
        workers, os.environ["nnUNet_n_proc_DA"] = os.environ["nnUNet_n_proc_DA"], "1"  # the planner's threads
        extract_fingerprint(TARGET, 1)
        write_json(path, planned_by_preset(TARGET, load_preset(str(preset_file(work))), TARGET_PLANS))
        os.environ["nnUNet_n_proc_DA"] = workers
    return path


def write_images(folder: Path, name: str, scale: Scale) -> None:
    """Writes the images of a pretext."""
    if name != "digits":
        task: Any = PRETEXTS[name].task
        return write_coloured_shapes(folder, task, scale.images, scale.image_size)
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (image, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / f"digit{digit}" / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        enlarged = Image.fromarray((image * 255 / 16).round().astype("uint8")).resize(
            (32, 32), Image.Resampling.BICUBIC
        )
        enlarged.save(path)
    return None


def start_of(name: str, variant: str) -> str:
    """Returns what a pre-training is called in the tables."""
    return f"{name}-{variant}" if variant else name


def checkpoint_file(work: Path, name: str, variant: str) -> Path:
    """Returns where the checkpoint of a pre-training is."""
    pretext = PRETEXTS[name]
    model = f"{pretext.trainer}__{VDT_PLANS}{VARIANTS[variant]}__{CONFIGURATION}"
    return work / "nnUNet_results" / pretext.folder / model / "fold_all" / "checkpoint_final.pth"


def pretrain(work: Path, name: str, scale: Scale, target_plans: Path, device: str) -> None:
    """Makes the checkpoints of a pretext, or what is missing of them."""
    pretext, images = PRETEXTS[name], work / "images" / name
    number, short = pretext.dataset
    if not (work / "nnUNet_preprocessed" / pretext.folder / f"{VDT_PLANS}.json").is_file():
        write_images(images, name, scale)
        labels = ["--labels", images / "labels.json"] if pretext.task == "segmentation" else []
        words = ["nnunet_pretrain", "convert_2d", images, "-d", number, "-n", short, "--task", pretext.task]
        command([*words, "--storage", "volumes", *labels])
        words = ["nnunet_pretrain", "plan_2d", "-d", number, "--target-plans", target_plans]
        command([*words, "--preset", preset_file(work, pretext.task)], nnUNet_n_proc_DA="1")
    command(["nnunet_pretrain", "preprocess", "-d", number, "-p", VDT_PLANS])
    for variant in pretext.variants:
        checkpoint = checkpoint_file(work, name, variant)
        if checkpoint.is_file() and (checkpoint.parent / "validation" / "summary.json").is_file():
            continue
        going_on = ["--c"] if checkpoint.with_name("checkpoint_latest.pth").is_file() else []
        going_on = ["--val"] if checkpoint.is_file() else going_on
        started = time.monotonic()
        words = ["nnUNetv2_train", number, CONFIGURATION, "all", "-tr", pretext.trainer]
        command([*words, "-p", VDT_PLANS + VARIANTS[variant], "-device", device, *going_on])
        print(f"pre-training {start_of(name, variant)}: {time.monotonic() - started:.0f} s", flush=True)


def pretext_table(work: Path, names: Sequence[str]) -> str:
    """Returns how well each pretext was learned, on images that were held out."""
    rows = []
    for name in names:
        for variant in PRETEXTS[name].variants:
            summary = read_json(checkpoint_file(work, name, variant).parent / "validation" / "summary.json")
            if PRETEXTS[name].task == "segmentation":
                found = f"Dice {summary['foreground_mean']['Dice']:.3f}"
            else:
                top = summary["metrics"]["top-1"]
                found = f"top-1 {top['value']:.3f} ({top['low']:.3f} to {top['high']:.3f})"
            rows.append([start_of(name, variant), found])
    return table(["pre-training", "held-out images"], rows)


def study(work: Path, scale: Scale, names: Sequence[str], arguments: argparse.Namespace) -> None:
    """Runs one study per pretext, the control in that of the first only, and prints one table of all."""
    from nnunet_pretrain.study import run_study

    parts: dict[Path, dict[str, str]] = {}
    for name in names:
        further = [variant for variant in PRETEXTS[name].variants if variant]
        arms = ["pretrained", *(f"{variant}={checkpoint_file(work, name, variant)}" for variant in further)]
        own_arms = tuple([CONTROL, *arms] if name == names[0] else arms)
        preset, start = preset_file(work), checkpoint_file(work, name, "")
        folder = run_study(_study_options(name, start, preset, scale.fractions, own_arms, scale, arguments))
        preprocessed = work / "nnUNet_preprocessed" / TARGET
        check_equal(preprocessed, transfer_plans_names(names[0])[1], transfer_plans_names(name)[1])
        own = {variant: start_of(name, variant) for variant in further}
        parts[folder] = {CONTROL: CONTROL, "pretrained": name, **own}
    print(f"{session(arguments.device)}\n\n{pretext_table(work, names)}\n")
    report, cells = join(work / "evidence", parts, scale.target_cases, scale.spacing_mm)
    gains = [gain_table(cells, name) for name in names]
    print("\n\n".join([report, epochs_table(cells), *gains]))


def _study_options(
    name: str,
    checkpoint: Path,
    preset: Path,
    fractions: tuple[float, ...],
    arms: tuple[str, ...],
    scale: Scale,
    arguments: argparse.Namespace,
) -> StudyOptions:
    from nnunet_pretrain.study import StudyOptions  # not sooner: nnU-Net reads its folders when it is imported

    return StudyOptions(
        dataset=TARGET,
        checkpoint=checkpoint,
        name=name,
        preset=str(preset),
        fractions=fractions,
        seeds=arguments.seeds or scale.seeds,
        arms=arms,
        jobs=arguments.jobs,
        device=arguments.device,
        num_processes=4 if arguments.device == "cuda" else 1,
        nsd_mm=scale.spacing_mm,
    )


def long_study(work: Path, scale: Scale, arguments: argparse.Namespace) -> None:
    """Trains on all labelled cases with LONGER times the steps, also from encoders alone."""
    from nnunet_pretrain.study import run_study

    preset = read_json(preset_file(work))
    preset["transfer"]["num_iterations_per_epoch"] *= LONGER
    path = work / "long.json"
    write_json(path, preset)
    arms = (CONTROL, "pretrained", "encoder-only", f"classes={checkpoint_file(work, 'classes', '')}")
    run_study(_study_options("long", checkpoint_file(work, "masks", ""), path, (1.0,), arms, scale, arguments))


def main() -> None:
    """Prepares what is missing and runs a study."""
    parser = parser_of_studies(__doc__, ("transfer", "long", "prepare", "speed", "readout"), SCALES)
    parser.add_argument("--pretexts", nargs="+", choices=list(PRETEXTS), default=list(PRETEXTS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of timed steps on the CPU")
    arguments = parser.parse_args()
    work, scale = arguments.work.absolute(), SCALES[arguments.scale]
    set_environment(work, arguments.device)
    pretexts = {name: asdict(pretext) for name, pretext in PRETEXTS.items()}
    claim(work, {"scale": asdict(scale), "pretexts": pretexts, "labels": LABELS})
    if arguments.study in ("speed", "readout"):
        torch.set_num_threads(arguments.threads)
        print(f"{session(arguments.device)}\n")
        if arguments.study == "speed":
            speed(work, scale.timed, scale.pairs, arguments.device)
        else:
            readout(arguments.seeds or scale.seeds, scale.readout_steps, arguments.device)
        return
    write_presets(work, scale)
    target_plans = prepare_target(work, scale)
    for name in arguments.pretexts:
        pretrain(work, name, scale, target_plans, arguments.device)
    if arguments.study == "long":
        print(f"{session(arguments.device)}\n")
        long_study(work, scale, arguments)
    if arguments.study == "transfer":
        study(work, scale, arguments.pretexts, arguments)


if __name__ == "__main__":
    main()
