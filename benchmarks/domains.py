"""Is an encoder that has learned from many domains worth more on one it has not seen, and what does a branch cost?

Three phantom domains (CT, T1-like, inverted CT) with label sets and spacings of their own are pre-trained together by
`nnUNetTrainerDomains`, one branch each, and each of them alone with as many steps. The target is a fourth domain
(T2-like) with a spacing of its own, label sets that unite structures differently, and one that no domain labels. Every
start gives its encoder; decoder and heads are those of the control from scratch with the same seed. Everything after
the pre-training is `nnunet_pretrain study` with the target's own plan (arms scratch-target and keep-target), so all
arms share plans, steps, schedule, subsets and seeds; this is checked. The start `all-t1-branch` also takes the decoder
and the heads of the T1-like domain, by `nnunet_pretrain export --branch`.

`--study speed` times training steps of real trainers on equal made-up batches, in alternating pairs: stock nnU-Net;
the same network with the label-set loss (`nnUNetTrainerPretrain` on a dataset of one scheme); and a domain's step with
3 and with 8 branches, which take turns. It also counts the bytes of weights, momentum and gradients after a step on
every branch, and the peak a step allocates beyond weights and momentum.
What is done stays in the work folder and is not repeated.
Run `python benchmarks/domains.py /tmp/domains --study transfer --jobs 2`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from domain_scales import SCALES, Scale
from domain_steps import speed
from joined_studies import check_equal, epochs_table, gain_table, join
from workspace import claim, command, parser_of_studies, session, set_environment

from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.folders import leaf
from nnunet_pretrain.phantom.domains import write_phantom_domain
from nnunet_pretrain.planning.domain_plans import CONFIGURATION
from nnunet_pretrain.planning.settings import (
    DOMAIN_PLANS,
    transfer_plans_names,
)
from nnunet_pretrain.study.summary import CONTROL


@dataclass(frozen=True)
class Domain:
    """A dataset of phantoms.

    Attributes:
        contrast: How it shows them; see `CONTRASTS`.
        spacing: Voxel size along x, y, z, in units of the scale's.
        labels: Label to the structures it unites.
    """

    contrast: str
    spacing: tuple[float, float, float]
    labels: dict[str, tuple[str, ...]]


LIVER = ("liver", "liver_tumor", "hepatic_vessel")
KIDNEYS = ("kidney_left", "kidney_right", "kidney_tumor", "kidney_cyst")
DOMAINS = {
    "Dataset911_CT": Domain(
        "ct", (0.9, 0.9, 1.1), {"liver": LIVER, "kidneys": KIDNEYS, "spleen": ("spleen",), "aorta": ("aorta",)}
    ),
    "Dataset912_T1": Domain(
        "t1", (1.0, 1.0, 1.2), {"stomach": ("stomach",), "colon": ("colon", "colon_tumor"), "liver": LIVER}
    ),
    "Dataset913_Inverted": Domain(
        "inverted",
        (1.1, 1.1, 1.1),
        {
            "lungs": ("lung_left", "lung_right"),
            "postcava": ("postcava",),
            "kidneys": KIDNEYS,
            "femurs": ("femur_left", "femur_right"),
        },
    ),
}
TARGET = "Dataset914_T2"
TARGET_DOMAIN = Domain(
    "t2",
    (1.0, 1.0, 1.1),
    {
        "liver": LIVER,
        "kidneys": KIDNEYS,
        "spleen": ("spleen",),
        "great_vessels": ("aorta", "postcava"),
        "bladder": ("bladder",),
    },
)
UNLABELLED_ELSEWHERE = "bladder"

ALONE = {f"{domain.contrast}-alone": name for name, domain in DOMAINS.items()}
MEMBERS = {"all": tuple(DOMAINS), **{start: (name,) for start, name in ALONE.items()}}
"""Start to the domains it is pre-trained on."""
BRANCH, BRANCH_OF = "all-t1-branch", "Dataset912_T1"
STARTS = (*MEMBERS, BRANCH)

TRAINER = "nnUNetTrainerDomains"
FIRST_SEED = {"domains": 40_000, "target": 70_000, "test": 71_000}


def preset_file(work: Path) -> Path:
    """Returns where the benchmark's preset is."""
    return work / "preset.json"


def write_preset(work: Path, scale: Scale) -> None:
    """Writes preset `tiny` with the scale's numbers."""
    preset = read_json(leaf("plans") / "tiny.json")
    for part, changes in (("network", scale.network), ("training", scale.pretraining), ("transfer", scale.transfer)):
        preset[part].update(changes)
    preset["training"]["seed"] = 1
    write_json(preset_file(work), {**preset, "description": "benchmarks/domains.py"})


def draw(work: Path, scale: Scale) -> None:
    """Draws the domains and the target, of different patients each; what is there is left alone."""
    for position, (name, domain) in enumerate(DOMAINS.items()):
        first = FIRST_SEED["domains"] + 1000 * position
        _draw(work, scale, name, domain, range(first, first + scale.cases))
    train = range(FIRST_SEED["target"], FIRST_SEED["target"] + scale.target_cases)
    # Fold 0 holds out the unseen cases.
    _draw(work, scale, TARGET, TARGET_DOMAIN, train, range(FIRST_SEED["test"], FIRST_SEED["test"] + scale.test_cases))


def _draw(work: Path, scale: Scale, name: str, domain: Domain, train: range, val: range = range(0)) -> None:
    spacing = tuple(factor * scale.spacing_mm for factor in domain.spacing)
    folder = work / "nnUNet_raw" / name
    write_phantom_domain(folder, domain.contrast, domain.labels, train, val, spacing_mm=spacing, orientation="LPS")


def dataset_of(start: str) -> str:
    """Returns the name of the dataset a start is pre-trained on."""
    return f"Dataset{920 + list(MEMBERS).index(start)}_{start.title().replace('-', '')}"


def checkpoint_file(work: Path, start: str) -> Path:
    """Returns where the checkpoint of a start is."""
    if start == BRANCH:
        return work / f"{BRANCH}.safetensors"
    model = work / "nnUNet_results" / dataset_of(start) / f"{TRAINER}__{DOMAIN_PLANS}__{CONFIGURATION}"
    return model / "fold_all" / "checkpoint_final.pth"


def prepare(work: Path, scale: Scale, starts: Sequence[str], device: str) -> None:
    """Draws, plans, preprocesses and pre-trains, once."""
    write_preset(work, scale)
    draw(work, scale)
    for start in starts:
        if start in MEMBERS:
            pretrain(work, start, device)
    if BRANCH in starts and not checkpoint_file(work, BRANCH).is_file():
        pretrain(work, "all", device)
        files = ["-c", checkpoint_file(work, "all"), "-o", checkpoint_file(work, BRANCH)]
        command(["nnunet_pretrain", "export", *files, "--branch", BRANCH_OF])


def pretrain(work: Path, start: str, device: str) -> None:
    """Makes the checkpoint of a start, or what is missing of it."""
    checkpoint, dataset = checkpoint_file(work, start), dataset_of(start)
    if checkpoint.is_file():
        return
    if not (work / "nnUNet_preprocessed" / dataset / f"{DOMAIN_PLANS}.json").is_file():
        number, name = dataset.removeprefix("Dataset").split("_")
        words = ["nnunet_pretrain", "plan_domains", "-d", number, "-n", name, "--preset", preset_file(work)]
        # nnU-Net's planner takes the number of worker processes for that of threads.
        command([*words, "--members", *MEMBERS[start]], nnUNet_n_proc_DA="1")
    command(["nnunet_pretrain", "preprocess", "-d", dataset, "-p", DOMAIN_PLANS, "-c", CONFIGURATION])
    going_on = ["--c"] if checkpoint.with_name("checkpoint_latest.pth").is_file() else []
    started = time.monotonic()
    train = ["nnUNetv2_train", dataset, CONFIGURATION, "all", "-tr", TRAINER, "-p", DOMAIN_PLANS]
    command([*train, "-device", device, *going_on])
    print(f"pre-training {start}: {time.monotonic() - started:.0f} s", flush=True)


def study(work: Path, scale: Scale, starts: Sequence[str], arguments: argparse.Namespace) -> None:
    """Runs one study per start, the control in that of the first only, and prints one table of all."""
    from nnunet_pretrain.study import StudyOptions, run_study

    folders = {}
    for start in starts:
        folders[start] = run_study(
            StudyOptions(
                dataset=TARGET,
                checkpoint=checkpoint_file(work, start),
                name=start,
                preset=str(preset_file(work)),
                fractions=scale.fractions,
                seeds=arguments.seeds or scale.seeds,
                arms=("scratch-target", "keep-target") if start == starts[0] else ("keep-target",),
                jobs=arguments.jobs,
                device=arguments.device,
                num_processes=4 if arguments.device == "cuda" else 1,
                nsd_mm=scale.spacing_mm,
            )
        )
        controls = [transfer_plans_names(f"{name}-target")[1] for name in (starts[0], start)]
        check_equal(work / "nnUNet_preprocessed" / TARGET, *controls)
    print(f"{session(arguments.device)}\n")
    print(evidence(work, folders, scale.target_cases, scale.spacing_mm))


def evidence(work: Path, folders: Mapping[str, Path], pool: int, nsd_mm: float) -> str:
    """Joins the studies to one, an arm for every start, and writes its report to `evidence` in the work folder.

    Args:
        work: The work folder.
        folders: Start to its study's folder.
        pool: Number of labelled cases that 100 % stands for.
        nsd_mm: Tolerance of the surface Dice in mm.

    Returns:
        The tables, in Markdown.
    """
    parts = {folder: {"scratch-target": CONTROL, "keep-target": start} for start, folder in folders.items()}
    report, cells = join(work / "evidence", parts, pool, nsd_mm)
    return "\n\n".join([report, epochs_table(cells), gain_table(cells, "all")])


def main() -> None:
    """Prepares what is missing and runs a study."""
    parser = parser_of_studies(__doc__, ("transfer", "prepare", "speed"), SCALES)
    parser.add_argument("--starts", nargs="+", choices=STARTS, help="instead of the scale's")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of timed steps on the CPU")
    arguments = parser.parse_args()
    work, scale = arguments.work.absolute(), SCALES[arguments.scale]
    set_environment(work, arguments.device)
    domains = {name: asdict(domain) for name, domain in {**DOMAINS, TARGET: TARGET_DOMAIN}.items()}
    claim(work, {"scale": asdict(scale), "domains": domains})
    if arguments.study == "speed":
        torch.set_num_threads(arguments.threads)
        print(f"{session(arguments.device)}\n")
        speed(work, scale.timed, scale.pairs, arguments.device)
        return
    starts = tuple(arguments.starts or scale.starts)
    prepare(work, scale, starts, arguments.device)
    if arguments.study == "transfer":
        study(work, scale, starts, arguments)


if __name__ == "__main__":
    main()
