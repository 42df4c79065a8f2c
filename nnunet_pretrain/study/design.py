"""What a study compares: options, test cases, nested subsets of labelled cases, and the runs that follow."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_pretrain.files import read_json
from nnunet_pretrain.folders import nnunet_folder

IMAGES_TS = "imagesTs"
FRACTIONS = (0.05, 0.1, 0.25, 0.5, 1.0)
TASKS = ("segmentation", "classification")


@dataclass(frozen=True)
class StudyOptions:
    """What to study.

    Attributes:
        dataset: Id or name of the target, in nnU-Net raw format.
        checkpoint: Pre-trained checkpoint.
        task: `segmentation`, or `classification` by the target's table of classes.
        fractions: Shares of the labelled cases to train with, each above 0 and at most 1.
        seeds: Number of repetitions; each has its own subsets, initial weights and draws.
        arms: Names of `ARMS`, or NAME=FILE for an arm of one's own; see `find_arm`.
        name: Name of the study, part of plans' and folders' names.
        preset: Preset for the training on the target; None means the one of the pre-training.
        branch: Domain whose branch is taken, from a checkpoint of many; None takes the encoder alone from such a one.
        test: Fold whose validation cases are the unseen ones, or `imagesTs` to score on imagesTs and labelsTs.
        exclude: Cases that must not be tested on, such as those that were in the pre-training.
        jobs: Runs at a time.
        device: Device for nnU-Net: cuda, cpu or mps.
        out: Folder for the results; None means nnUNet_results/<target>/study_<name>.
        num_processes: Worker processes for planning, preprocessing and the final validation.
        nsd_mm: Tolerance of the normalised surface Dice in mm.
        crop_mm: Edge of the patch around a lesion that is classified, in mm; None takes the patch of the plans.

    Raises:
        ValueError: An option is not possible.
    """

    dataset: int | str
    checkpoint: Path
    fractions: tuple[float, ...] = FRACTIONS
    seeds: int = 3
    arms: tuple[str, ...] = ("scratch", "pretrained")
    name: str = "study"
    preset: str | None = None
    test: str = "0"
    exclude: tuple[str, ...] = ()
    jobs: int = 1
    device: str = "cuda"
    out: Path | None = None
    num_processes: int = 2
    nsd_mm: float = 1.0
    task: str = "segmentation"
    branch: str | None = None
    crop_mm: float | None = None

    def __post_init__(self) -> None:
        """Refuses what cannot be studied."""
        if not self.fractions or not all(0 < fraction <= 1 for fraction in self.fractions):
            raise ValueError(f"--fractions must be above 0 and at most 1, got {list(self.fractions)}")
        if min(self.seeds, self.jobs, self.num_processes) < 1:
            raise ValueError(
                f"--seeds, --jobs and -np must be at least 1, got {self.seeds}, {self.jobs} and {self.num_processes}"
            )
        if not re.fullmatch(r"[A-Za-z0-9-]+", self.name):
            raise ValueError(f"-n must be letters, digits and '-', for it names folders; got '{self.name}'")
        if self.test != IMAGES_TS and not self.test.isdigit():
            raise ValueError(f"--test must be the number of a fold or '{IMAGES_TS}', got '{self.test}'")
        if self.device not in ("cuda", "cpu", "mps"):
            raise ValueError(f"-device must be cuda, cpu or mps, got '{self.device}'")
        if self.task not in TASKS:
            raise ValueError(f"--task must be {' or '.join(TASKS)}, got '{self.task}'")
        if self.crop_mm is not None and self.task != "classification":
            raise ValueError("--crop-mm must be left out, it is for lesions (--task classification)")
        if not self.arms:
            raise ValueError("--arms names no arm; name at least one")
        if not self.nsd_mm > 0:
            raise ValueError(f"the tolerance of the surface Dice must be positive, got {self.nsd_mm} mm")


@dataclass(frozen=True)
class Cases:
    """Who is what in every run of a study.

    Attributes:
        pool: Labelled cases the subsets are drawn from.
        monitored: Held-out cases on which nnU-Net computes its pseudo Dice during the training.
        test: Unseen cases that are scored: the monitored ones, or those of imagesTs.
    """

    pool: tuple[str, ...]
    monitored: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        arm: Name of the arm.
        seed: Seed of subset, initial weights and draws.
        train: The labelled cases it learns from.
    """

    arm: str
    seed: int
    train: tuple[str, ...]

    @property
    def key(self) -> str:
        """Name of the run in files and plans."""
        return f"{self.arm}_{len(self.train)}cases_s{self.seed}"


def find_cases(
    name: str, test: str, exclude: Sequence[str], folds: Sequence[Mapping[str, Sequence[str]]] | None = None
) -> Cases:
    """Decides which cases are tested on and which may be learned from.

    Args:
        name: Name of the target dataset, planned.
        test: Number of a fold of splits_final.json (without such a file: of nnU-Net's own five), or `imagesTs`.
        exclude: Cases never tested on. Those of the fold's validation cases join the pool.
        folds: Folds of the task, None for the dataset's.

    Raises:
        ValueError: There is no such fold, or nothing is left to test on or to learn from.
        FileNotFoundError: imagesTs has no labels.
    """
    folds = known_folds(name) if folds is None else folds
    number = 0 if test == IMAGES_TS else int(test)
    if number >= len(folds):
        raise ValueError(f"--test {number}: {name} has the folds 0 to {len(folds) - 1}")
    fold = folds[number]
    monitored = tuple(sorted(set(fold["val"]) - set(exclude)))
    pool = tuple(sorted((set(fold["train"]) | set(fold["val"])) - set(monitored)))
    tested = (
        tuple(case for case in _labelled_test_cases(name) if case not in exclude) if test == IMAGES_TS else monitored
    )
    for what, cases in (("held-out", monitored), ("test", tested), ("labelled", pool)):
        if not cases:
            raise ValueError(f"{name} has no {what} cases in fold {number} after leaving out {len(exclude)} cases")
    return Cases(pool, monitored, tested)


def known_folds(name: str) -> list[dict[str, list[str]]]:
    """Returns the folds of a dataset's splits_final.json, or nnU-Net's own five.

    Raises:
        ValueError: The file names unknown cases, or there are too few cases.
    """
    from nnunetv2.utilities.crossval_split import generate_crossval_split
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    path = nnunet_folder("nnUNet_preprocessed") / name / "splits_final.json"
    raw = nnunet_folder("nnUNet_raw") / name
    cases = sorted(get_filenames_of_train_images_and_targets(str(raw), read_json(raw / "dataset.json")))
    if not path.is_file():
        if len(cases) < 5:
            raise ValueError(f"{name} has {len(cases)} cases, nnU-Net's five folds need 5; write folds into {path}")
        return [{part: list(map(str, names)) for part, names in f.items()} for f in generate_crossval_split(cases)]
    folds: list[dict[str, list[str]]] = read_json(path)
    unknown = sorted({case for fold in folds for names in fold.values() for case in names} - set(cases))
    if unknown:
        raise ValueError(f"{path} names {len(unknown)} cases that {raw} does not have, such as '{unknown[0]}'")
    return folds


def _labelled_test_cases(name: str) -> tuple[str, ...]:
    raw = nnunet_folder("nnUNet_raw") / name
    ending = read_json(raw / "dataset.json")["file_ending"]
    cases = tuple(sorted(path.name.removesuffix(ending) for path in (raw / "labelsTs").glob(f"[!.]*{ending}")))
    if not cases:
        raise FileNotFoundError(f"--test {IMAGES_TS}: no labels *{ending} in {raw / 'labelsTs'}; name a fold instead")
    missing = [case for case in cases if not (raw / IMAGES_TS / f"{case}_0000{ending}").is_file()]
    if missing:
        raise FileNotFoundError(f"{raw / IMAGES_TS} has no image of {len(missing)} cases, such as '{missing[0]}'")
    return cases


def number_of_cases(fraction: float, pool: int) -> int:
    """Returns how many of the pool's cases a fraction is: rounded up, at least one."""
    return max(1, math.ceil(fraction * pool - 1e-9))  # 0.1 * 30 is a little more than 3


def subset(
    pool: Sequence[str], seed: int, number: int, classes: Mapping[str, frozenset[str]] | None = None
) -> tuple[str, ...]:
    """Returns the labelled cases of a seed: the first of one order of the pool, so that subsets are nested.

    Args:
        pool: All labelled cases.
        seed: Seed of the order.
        number: How many.
        classes: Classes of every case, which the order shares out (`shared_out`); None for a permutation.
    """
    order = np.random.default_rng(seed).permutation(len(pool))
    drawn = [pool[i] for i in order]
    return tuple(sorted((drawn if classes is None else shared_out(drawn, classes)[0])[:number]))


def shared_out(cases: Sequence[str], classes: Mapping[str, frozenset[str]]) -> tuple[list[str], int]:
    """Puts cases into an order in which classes come in their shares, beginning with one case for every class.

    Args:
        cases: Cases in random order.
        classes: Classes of every case.

    Returns:
        The order, and how many cases it takes to have all classes.
    """
    groups: dict[frozenset[str], list[str]] = {}
    for case in cases:
        groups.setdefault(classes[case], []).append(case)
    place = {case: (i + 0.5) / len(group) for group in groups.values() for i, case in enumerate(group)}
    even = sorted(cases, key=place.__getitem__)
    first: list[str] = []
    seen: set[str] = set()
    for case in even:
        if not classes[case] <= seen:
            first.append(case)
            seen |= classes[case]
    return [*first, *(case for case in even if case not in set(first))], len(first)


def design_runs(
    pool: Sequence[str],
    fractions: Iterable[float],
    seeds: int,
    arms: Sequence[str],
    classes: Mapping[str, frozenset[str]] | None = None,
) -> list[Run]:
    """Returns all runs: every arm learns from the same subsets; fractions with equally many cases are one.

    Args:
        pool: All labelled cases.
        fractions: Shares of them.
        seeds: Number of seeds.
        arms: Names of the arms.
        classes: Classes of every case, None if there are none. Every subset has all of them, so a fraction that is too
            small for that becomes a larger one.
    """
    least = 1
    if classes is not None:
        orders = [[pool[i] for i in np.random.default_rng(s).permutation(len(pool))] for s in range(seeds)]
        least = max(shared_out(order, classes)[1] for order in orders)
    numbers = sorted({max(least, number_of_cases(fraction, len(pool))) for fraction in fractions})
    return [
        Run(arm, seed, subset(pool, seed, number, classes))
        for seed in range(seeds)
        for number in numbers
        for arm in arms
    ]


def results_folder(options: StudyOptions, name: str) -> Path:
    """Returns the folder of a study of the dataset with this name."""
    default = nnunet_folder("nnUNet_results") / name / f"study_{options.name}"
    return (options.out.expanduser() if options.out else default).absolute()


def plain(value: Any) -> Any:
    """Returns a value as JSON gives it back: lists for tuples."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value
