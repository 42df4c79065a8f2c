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
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from workspace import claim, command, epochs_of, session, set_environment

from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.folders import leaf
from nnunet_pretrain.phantom.domains import write_phantom_domain
from nnunet_pretrain.planning.domain_network import branched
from nnunet_pretrain.planning.domain_plans import CONFIGURATION, plans_of_domain
from nnunet_pretrain.planning.settings import (
    DOMAIN_PLANS,
    SETTINGS_KEY,
    DomainNumbers,
    DomainSettings,
    PretrainSettings,
    transfer_plans_names,
)
from nnunet_pretrain.study.report import write_report
from nnunet_pretrain.study.segmentation import SEGMENTATION
from nnunet_pretrain.study.statistics import running_median
from nnunet_pretrain.study.summary import CONTROL, by_cell, mean_curve
from nnunet_pretrain.study.tables import table, with_interval
from nnunet_pretrain.study.task import Cell


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
    "small": Scale(
        spacing_mm=9,
        cases=12,
        target_cases=20,
        test_cases=8,
        fractions=(0.1, 0.3, 1),
        seeds=3,
        starts=tuple(MEMBERS),
        network={"patch_size": [24, 32, 32], "base_features": 8},
        pretraining={**epochs_of(12, 75, 6, 6), "oversample_foreground_percent": 0.5},
        transfer={**epochs_of(20, 15, 2, 20), "warmup_epochs": 2},
        timed=(((24, 32, 32), (16, 32, 64)), ((48, 64, 64), (16, 32, 64, 128))),
        pairs=21,
    ),
    "large": Scale(
        spacing_mm=3,
        cases=40,
        target_cases=40,
        test_cases=20,
        fractions=(0.05, 0.1, 0.2, 0.4, 1),
        seeds=3,
        starts=STARTS,
        network={"patch_size": [64, 64, 64], "base_features": 32, "max_features": 256},
        pretraining={**epochs_of(60, 250, 24, 10), "oversample_foreground_percent": 0.5, "initial_lr": 1e-3},
        transfer={**epochs_of(100, 50, 10, 20), "warmup_epochs": 5, "initial_lr": 1e-3},
        timed=(((64, 64, 64), (32, 64, 128, 256, 320)), ((128, 128, 128), (32, 64, 128, 256, 320, 320))),
        pairs=51,
    ),
}


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
        check_equal(work, starts[0], start)
    print(f"{session(arguments.device)}\n")
    print(evidence(work, folders, scale.target_cases, scale.spacing_mm))


def check_equal(work: Path, first: str, start: str) -> None:
    """Makes sure that the control of the first study is also that of another.

    Raises:
        ValueError: Their plans differ in a number.
    """
    one, other = (_numbers(work, name) for name in (first, start))
    differing = [key for key in one if one[key] != other[key]]
    if differing:
        raise ValueError(f"the plans of '{first}' and '{start}' differ in {', '.join(differing)}; arms must share them")


def _numbers(work: Path, start: str) -> dict[str, Any]:
    """Returns all that decides the control's training: its plans, without their names."""
    name = transfer_plans_names(f"{start}-target")[1]
    plans = read_json(work / "nnUNet_preprocessed" / TARGET / f"{name}.json")
    configuration = plans["configurations"][CONFIGURATION]
    del plans["plans_name"], configuration["data_identifier"]
    settings = plans.pop(SETTINGS_KEY)
    return {**plans, "configurations": configuration, **{key: settings.get(key) for key in ("training", "fine_tuning")}}


def evidence(work: Path, folders: Mapping[str, Path], pool: int, nsd_mm: float) -> str:
    """Joins several studies to one, an arm for every start, and writes its report to `evidence` in the work folder.

    Args:
        work: The work folder.
        folders: Start to its study's folder.
        pool: Number of labelled cases that 100 % stands for.
        nsd_mm: Tolerance of the surface Dice in mm.

    Returns:
        The tables, in Markdown.
    """
    together, results = work / "evidence", []
    for start, folder in folders.items():
        for path in sorted((folder / "runs").glob("[!.]*.json")):
            result = read_json(path)
            arm = CONTROL if result["arm"] == "scratch-target" else start
            results.append({**result, "arm": arm})
            write_json(together / "runs" / path.name.replace(result["arm"], arm, 1), results[-1])
    cells = by_cell(results)
    return "\n\n".join([write_report(together, pool, nsd_mm), epochs_table(cells), gain_table(cells)])


def epochs_table(cells: Mapping[tuple[str, int], Cell]) -> str:
    """Returns the pseudo Dice at shares of the training: mean over seeds, running median of 5 epochs."""
    shares = (0.1, 0.25, 0.5, 0.75, 1.0)
    rows = []
    for (arm, number), cell in cells.items():
        curve = running_median(mean_curve(cell, SEGMENTATION.curve).tolist())
        places = [max(1, round(share * len(curve))) for share in shares]
        rows.append([arm, str(number), *(f"{curve[place - 1]:.3f} ({place})" for place in places)])
    heads = [f"pseudo Dice at {share:.0%} (epoch)" for share in shares]
    return table(["arm", "labelled cases", *heads], rows)


def gain_table(cells: Mapping[tuple[str, int], Cell]) -> str:
    """Returns the difference in Dice of all domains together to each of the other arms, paired by case and seed."""
    rows = []
    for (arm, number), cell in cells.items():
        together = cells.get(("all", number), {})
        seeds = sorted(set(together) & set(cell))
        if arm != "all" and seeds:
            found = SEGMENTATION.compare(together, cell, seeds, "Dice")
            gain = with_interval(found["difference"], signed=True)
            rows.append([f"all - {arm}", str(number), str(len(seeds)), gain, f"{found['p']:.2g}"])
    return table(["arms", "labelled cases", "seeds", "difference in Dice (95 % interval)", "p"], rows)


STOCK, LABEL_SETS = "stock nnU-Net", "stock network, label-set loss"
BRANCHES, LABELS, BATCH = (3, 8), 6, 2
PAIRS = (*((n, STOCK) for n in BRANCHES), (LABEL_SETS, STOCK), *((n, LABEL_SETS) for n in BRANCHES))
_UNET = "dynamic_network_architectures.architectures.unet.PlainConvUNet"


class Steps:
    """Training steps of a trainer on made-up batches; a network with branches takes them in turns.

    Args:
        trainer: An initialised trainer.
        batches: One batch per domain, as nnU-Net's loader makes them.
    """

    def __init__(self, trainer: Any, batches: Sequence[dict[str, Any]]) -> None:
        self.trainer, self.batches, self.done = trainer, batches, 0
        trainer.on_train_epoch_start()

    def __call__(self) -> None:
        """Does one step; on a GPU, until it is over."""
        self.trainer.train_step(self.batches[self.done % len(self.batches)])
        self.done += 1
        if self.trainer.device.type == "cuda":
            torch.cuda.synchronize()

    def warm_up(self) -> None:
        """Does one step on every branch, and two more."""
        for _ in range(len(self.batches) + 2):
            self()

    def bytes(self) -> dict[str, int]:
        """Returns what is held after a step on every branch, and the peak beyond it during a step."""
        self.warm_up()
        parameters = list(self.trainer.network.parameters())
        state = [value for entry in self.trainer.optimizer.state.values() for value in entry.values()]
        held = {
            "weights": _bytes(parameters),
            "momentum": _bytes([value for value in state if torch.is_tensor(value)]),
            "gradients": _bytes([parameter.grad for parameter in parameters if parameter.grad is not None]),
        }
        return {**held, "peak": peak_bytes(self)}


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def peak_bytes(steps: Steps) -> int:
    """Returns the most bytes of tensors a step holds beyond those before it, gradients not being among them."""
    for _ in range(2):  # a first profile misses what was allocated before it
        steps.trainer.optimizer.zero_grad(set_to_none=True)
        if steps.trainer.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            steps()
            peak = torch.cuda.max_memory_allocated() - before
            continue
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            steps()
        events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        held = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def made_up(
    branches: int, patch: tuple[int, int, int], features: tuple[int, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns plans and dataset.json of domains that are alike, one case each; the network is nnU-Net's U-Net."""
    stages, domains = len(features), [f"domain{i}" for i in range(branches)]
    kwargs = {
        "n_stages": stages, "features_per_stage": list(features), "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages, "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)],
        "n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1), "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None, "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip
    unet = {
        "network_class_name": _UNET,
        "arch_kwargs": kwargs,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    numbers = DomainNumbers(
        spacing=(1, 1, 1),
        normalization_schemes=("ZScoreNormalization",),
        use_mask_for_norm=(False,),
        foreground_intensity_properties_per_channel={},
    )
    settings = PretrainSettings(domains=DomainSettings(numbers=dict.fromkeys(domains, numbers)))
    configuration = {
        "data_identifier": "made_up", "preprocessor_name": "DefaultPreprocessor", "batch_size": BATCH,
        "patch_size": list(patch), "spacing": [1, 1, 1], "batch_dice": False,
        "normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False],
        "architecture": branched(unet, dict.fromkeys(domains, LABELS + 1), "unet"),
    }  # fmt: skip
    plans = {
        "dataset_name": f"Dataset930_MadeUp{branches}", "plans_name": DOMAIN_PLANS,
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "image_reader_writer": "NibabelIOWithReorient",
        "configurations": {CONFIGURATION: configuration},
        SETTINGS_KEY: settings.model_dump(mode="json", exclude_none=True),
    }  # fmt: skip
    return plans, made_up_labels(domains)


def made_up_labels(domains: Sequence[str]) -> dict[str, Any]:
    """Returns the dataset.json of domains with as many labels each, all different, and one case each."""
    ids = {d: range(1 + i * LABELS, 1 + (i + 1) * LABELS) for i, d in enumerate(domains)}
    name = {number: f"label{number}" for own in ids.values() for number in own}
    return {
        "channel_names": {"0": "image"},
        "labels": {"background": 0, **{label: number for number, label in name.items()}},
        "label_space": "domains",
        "label_schemes": {
            d: {
                "0": ["background", *(name[number] for number in name if number not in own)],
                **{str(number): [name[number]] for number in own},
            }
            for d, own in ids.items()
        },
        "dataset": {d: {"source": d, "scheme": d} for d in domains},
        "numTraining": len(domains),
        "file_ending": ".nii.gz",
    }


def steps_of(work: Path, arm: str | int, patch: tuple[int, int, int], features: tuple[int, ...], device: str) -> Steps:
    """Returns the steps of an arm: STOCK, LABEL_SETS, or a number of branches."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from trainers.nnunet_pretrain_trainers import nnUNetTrainerDomains, nnUNetTrainerPretrain

    branches = arm if isinstance(arm, int) else 1
    plans, dataset_json = made_up(branches, patch, features)
    if arm in (STOCK, LABEL_SETS):
        plans = plans_of_domain(plans, "domain0")
    # nnU-Net looks at the endings of the preprocessed files when it is initialised.
    data = work / "nnUNet_preprocessed" / plans["dataset_name"] / "made_up" / "none.b2nd"
    data.parent.mkdir(parents=True, exist_ok=True)
    data.touch()
    kinds = {STOCK: nnUNetTrainer, LABEL_SETS: nnUNetTrainerPretrain}
    plans["continue_training"] = False  # as nnU-Net's command does
    trainer = kinds.get(arm, nnUNetTrainerDomains)(plans, CONFIGURATION, 0, dataset_json, torch.device(device))
    torch.manual_seed(0)
    trainer.initialize()
    scales = trainer._get_deep_supervision_scales()
    return Steps(trainer, [batch_of(i, patch, scales) for i in range(branches)])


def batch_of(domain: int, patch: tuple[int, int, int], scales: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Returns a batch of a domain: noise, and slabs of its labels with background between."""
    slabs = torch.arange(patch[0]) * (2 * LABELS + 1) // patch[0]
    ids = torch.where(slabs % 2 == 1, slabs // 2 + 1 + domain * LABELS, 0).to(torch.int16)
    full = ids[None, None, :, None, None].expand(BATCH, 1, *patch)
    targets = [full[:, :, :: round(1 / z), :: round(1 / y), :: round(1 / x)].contiguous() for z, y, x in scales]
    noise = torch.randn(BATCH, 1, *patch, generator=torch.Generator().manual_seed(0))
    return {"data": noise, "target": targets, "keys": [f"domain{domain}"] * BATCH}


Times = tuple[float, float]
"""Milliseconds on the wall clock and of CPU time."""


def paired_ms(one: Callable[[], None], other: Callable[[], None], pairs: int) -> list[tuple[Times, Times]]:
    """Returns the times of two steps that alternate; which is the first of a pair changes with every pair."""
    times = []
    for number in range(pairs):
        taken: dict[int, Times] = {}
        for place in (0, 1) if number % 2 else (1, 0):
            wall, cpu = time.perf_counter(), time.process_time()
            (one, other)[place]()
            taken[place] = ((time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3)
        times.append((taken[0], taken[1]))
    return times


def speed(work: Path, scale: Scale, device: str) -> None:
    """Prints step times and memory."""
    if device == "cuda":
        os.environ["nnUNet_compile"] = "t"  # as stock
    times, memory = [], []
    for patch, features in scale.timed:
        size = f"{'x'.join(map(str, patch))}, {len(features)} stages"
        arms = {arm: steps_of(work, arm, patch, features, device) for arm in (STOCK, LABEL_SETS, *BRANCHES)}
        for steps in arms.values():
            steps.warm_up()
        times += [[size, *time_row(arms, *pair, scale.pairs)] for pair in PAIRS]
        held = {arm: steps.bytes() for arm, steps in arms.items()}
        memory += memory_rows(held, arms[BRANCHES[0]], size)
    ratios = [f"ratio of {clock} time, median (quartiles)" for clock in ("wall", "CPU")]
    print(table(["patch", "step", "against", "ms, both", *ratios], times), end="\n\n")
    print(table(["patch", "network", "weights, MB", "momentum, MB", "gradients, MB", "peak of a step, MB"], memory))


def time_row(arms: Mapping[str | int, Steps], one: str | int, other: str | int, pairs: int) -> list[str]:
    """Times two arms against each other."""
    times = paired_ms(arms[one], arms[other], pairs)
    walls = [(first[0], second[0]) for first, second in times]
    cells = [" and ".join(f"{statistics.median(column):.1f}" for column in zip(*walls, strict=True))]
    for clock in (0, 1):
        ratios = [first[clock] / second[clock] for first, second in times]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        cells.append(f"{middle:.3f} ({low:.3f} to {high:.3f})")
    return [_called(one), _called(other), *cells]


def _called(arm: str | int) -> str:
    return f"domain, {arm} branches" if isinstance(arm, int) else arm


def memory_rows(held: Mapping[str | int, Mapping[str, int]], steps: Steps, size: str) -> list[list[str]]:
    """Returns a row per arm, one with the growth per further branch, and one with the size of a branch."""
    few, many = BRANCHES
    rows = [[size, _called(arm), *(f"{value / 1e6:.3f}" for value in found.values())] for arm, found in held.items()]
    growth = {key: (held[many][key] - held[few][key]) / (many - few) for key in held[few]}
    rows.append([size, "each further branch", *(f"{value / 1e6:.3f}" for value in growth.values())])
    own = _bytes(list(next(iter(steps.trainer.network.branches.values())).parameters()))
    return [*rows, [size, "parameters of a branch", f"{own / 1e6:.3f}", "", "", ""]]


def main() -> None:
    """Prepares what is missing and runs a study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--study", choices=("prepare", "transfer", "speed"), default="transfer")
    parser.add_argument("--scale", choices=sorted(SCALES), default="small")
    parser.add_argument("--starts", nargs="+", choices=STARTS, help="instead of the scale's")
    parser.add_argument("--seeds", type=int, help="instead of the scale's")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of timed steps on the CPU")
    parser.add_argument("-device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    work, scale = arguments.work.absolute(), SCALES[arguments.scale]
    set_environment(work, arguments.device)
    domains = {name: asdict(domain) for name, domain in {**DOMAINS, TARGET: TARGET_DOMAIN}.items()}
    claim(work, {"scale": asdict(scale), "domains": domains})
    if arguments.study == "speed":
        torch.set_num_threads(arguments.threads)
        print(f"{session(arguments.device)}\n")
        speed(work, scale, arguments.device)
        return
    starts = tuple(arguments.starts or scale.starts)
    prepare(work, scale, starts, arguments.device)
    if arguments.study == "transfer":
        study(work, scale, starts, arguments)


if __name__ == "__main__":
    main()
