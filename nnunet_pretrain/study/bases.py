"""What the runs of a study share: plans and preprocessed data, one for each way of planning the target."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from nnunet_pretrain.files import read_json
from nnunet_pretrain.folders import nnunet_folder
from nnunet_pretrain.preprocessing.preprocess import preprocess
from nnunet_pretrain.study.arms import Arm, Keep
from nnunet_pretrain.study.design import StudyOptions
from nnunet_pretrain.study.task import Task

Report = Callable[[str], None]

_WORKERS = "nnUNet_n_proc_DA"


@dataclass(frozen=True)
class Base:
    """A planned transfer.

    Attributes:
        transfer: Name of its plans.
        scratch: Name of the control's plans.
        configuration: The configuration both have.
    """

    transfer: str
    scratch: str
    configuration: str

    def plans_of(self, arm: Arm, dataset: str) -> dict[str, Any]:
        """Reads the plans an arm starts from."""
        name = self.scratch if arm.scratch else self.transfer
        plans: dict[str, Any] = read_json(nnunet_folder("nnUNet_preprocessed") / dataset / f"{name}.json")
        return plans


def plan_base(options: StudyOptions, task: Task, keep: Keep, report: Report) -> Base:
    """Plans the transfer and its control as the task does."""
    from nnunet_pretrain.transfer.plan_transfer import PlanOptions

    wanted = PlanOptions(
        dataset=options.dataset,
        checkpoint=options.checkpoint,
        name=options.name if keep == "pretrained" else f"{options.name}-target",
        preset=options.preset,
        branch=options.branch,
        keep=None if keep == "pretrained" else keep,
        num_processes=options.num_processes,
    )
    with _at_least_one_worker():
        planned = task.plan(options, wanted, report)
    return Base(planned.transfer.stem, planned.scratch.stem, planned.configuration)


@contextmanager
def _at_least_one_worker() -> Iterator[None]:
    """Hides nnUNet_n_proc_DA=0: nnU-Net's planner takes it for a number of threads, which torch refuses to be 0."""
    before = os.environ.get(_WORKERS)
    if before == "0":
        os.environ[_WORKERS] = "1"
    try:
        yield
    finally:
        if before == "0":
            os.environ[_WORKERS] = before


def plan_bases(
    options: StudyOptions, task: Task, arms: list[Arm], known: dict[str, Any], report: Report
) -> dict[Keep, Base]:
    """Plans what the arms need and no earlier call of the study planned.

    Args:
        options: The study.
        task: Its task.
        arms: Its arms.
        known: Bases an earlier call remembered, as `remembered` gave them.
        report: Called with lines for the user.
    """
    bases: dict[Keep, Base] = {}
    for arm in arms:
        if arm.keep not in bases:
            old = known.get(arm.keep)
            bases[arm.keep] = Base(**old) if old else plan_base(options, task, arm.keep, report)
    return bases


def remembered(bases: dict[Keep, Base]) -> dict[str, dict[str, str]]:
    """Returns bases as plain values."""
    return {keep: asdict(base) for keep, base in bases.items()}


def preprocess_bases(options: StudyOptions, dataset: str, bases: dict[Keep, Base], report: Report) -> None:
    """Preprocesses the target once for each base; what is there is left alone."""
    device = options.device if options.device in ("cuda", "cpu") else None
    for base in bases.values():
        preprocess(
            dataset, base.transfer, (base.configuration,), device, num_processes=options.num_processes, report=report
        )


def leaked_cases(dataset: str, bases: dict[Keep, Base]) -> tuple[str, ...]:
    """Returns the cases of the target that were in the pre-training, as `plan_transfer` found them."""
    folder = nnunet_folder("nnUNet_preprocessed") / dataset
    lists = [folder / f"leakage_{base.transfer}.json" for base in bases.values()]
    return tuple(sorted({entry["case"] for path in lists if path.is_file() for entry in read_json(path)["cases"]}))
