"""One run of a study: its plans, its training by nnU-Net's own command, and its scores on the unseen cases."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_pretrain.checkpoints.reading import read_checkpoint
from nnunet_pretrain.files import write_json
from nnunet_pretrain.folders import command_environment, nnunet_folder
from nnunet_pretrain.planning.settings import SETTINGS_KEY, Fold, PretrainSettings
from nnunet_pretrain.study.arms import Arm, settings_of
from nnunet_pretrain.study.bases import Base
from nnunet_pretrain.study.design import IMAGES_TS, Cases, Run, StudyOptions
from nnunet_pretrain.study.processes import Children
from nnunet_pretrain.study.task import Task, Trained

_UNFINISHED = ("checkpoint_latest.pth", "checkpoint_best.pth")


@dataclass(frozen=True)
class Study:
    """All that the runs of a study share.

    Attributes:
        options: What the user asked for.
        task: What is trained and scored.
        dataset: Name of the target.
        folder: Where results go.
        cases: Who is what.
        arms: Name to arm, with the base it starts from.
    """

    options: StudyOptions
    task: Task
    dataset: str
    folder: Path
    cases: Cases
    arms: Mapping[str, tuple[Arm, Base]]

    def result_file(self, run: Run) -> Path:
        """Where the result of a run is kept; if it is there, the run is done."""
        return self.folder / "runs" / f"{run.key}.json"

    def plans_name(self, run: Run) -> str:
        """Name of a run's plans."""
        return f"{self.arms[run.arm][1].transfer}__study_{run.key}"

    def fold(self, run: Run) -> Path:
        """Where nnU-Net keeps a run."""
        configuration = self.arms[run.arm][1].configuration
        model = f"{self.task.trainer}__{self.plans_name(run)}__{configuration}"
        return nnunet_folder("nnUNet_results") / self.dataset / model / "fold_0"

    def trained(self, run: Run) -> Trained:
        """What is scored of a run."""
        return Trained(self.options, self.dataset, self.cases, self.plans_name(run), self.fold(run))

    def environment(self) -> dict[str, str]:
        """Variables of nnU-Net's commands: the caller's, and what lets them find our trainers."""
        environment = {**os.environ, **command_environment()}
        environment.setdefault("nnUNet_def_n_proc", str(self.options.num_processes))
        if self.options.device == "cpu" and self.options.jobs > 1:
            # nnU-Net takes as many threads as there are cores for each run; they must not wait by spinning.
            environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        return environment


def do_run(study: Study, run: Run, children: Children) -> None:
    """Trains, predicts and scores, and writes the result; continues what an interruption left.

    Raises:
        ValueError: A command failed, or another run lies where this one belongs.
    """
    plans = write_plans(study, run)
    log = study.folder / "logs" / f"{run.key}.txt"
    fold = study.fold(run)
    _check_same_run(fold, plans)
    children.run(train_command(study, run), log, study.environment())
    if study.options.test == IMAGES_TS:
        children.run(_predict_command(study, run), log, study.environment())
    logged = read_checkpoint(fold / "checkpoint_final.pth")["logging"]
    times = zip(logged["epoch_start_timestamps"], logged["epoch_end_timestamps"], strict=True)
    result = {
        "arm": run.arm,
        "seed": run.seed,
        "number_of_cases": len(run.train),
        "train": list(run.train),
        "settings": {key: value for key, value in plans[SETTINGS_KEY].items() if key != "folds"},
        "scores": study.task.scores(study.trained(run)),
        study.task.curve: [float(value) if math.isfinite(value) else None for value in logged["mean_fg_dice"]],
        "train_seconds": float(sum(end - start for start, end in times)),
    }
    write_json(study.result_file(run), result)


def write_plans(study: Study, run: Run) -> dict[str, Any]:
    """Writes the plans of a run: those of its arm, with the seed, and with its cases as the only fold."""
    arm, base = study.arms[run.arm]
    plans = base.plans_of(arm, study.dataset)
    settings = settings_of(arm, plans)
    settings = PretrainSettings.model_validate(
        {
            **settings.model_dump(),
            "training": {**settings.training.model_dump(), "seed": run.seed},
            "folds": (Fold(train=run.train, val=study.cases.monitored),),
        }
    )
    plans["plans_name"] = study.plans_name(run)
    plans[SETTINGS_KEY] = settings.model_dump(mode="json", exclude_none=True)
    write_json(nnunet_folder("nnUNet_preprocessed") / study.dataset / f"{plans['plans_name']}.json", plans)
    return plans


def train_command(study: Study, run: Run) -> list[str]:
    """Returns nnU-Net's training command; it goes on from what is there."""
    arm, base = study.arms[run.arm]
    command = ["nnUNetv2_train", study.dataset, base.configuration, "0", "-tr", study.task.trainer]
    command += ["-p", study.plans_name(run), "-device", study.options.device]
    fold = study.fold(run)
    if (fold / "checkpoint_final.pth").is_file():
        return [*command, "--val"]
    if any((fold / name).is_file() for name in _UNFINISHED):
        return [*command, "--c"]
    if arm.stock_weights:
        return [*command, "-pretrained_weights", str(study.options.checkpoint.expanduser().absolute())]
    return command


def _predict_command(study: Study, run: Run) -> list[str]:
    images = nnunet_folder("nnUNet_raw") / study.dataset / IMAGES_TS
    model = ["-d", study.dataset, "-c", study.arms[run.arm][1].configuration, "-f", "0", "-tr", study.task.trainer]
    files = ["-i", str(images), "-o", str(study.fold(run) / IMAGES_TS), "-p", study.plans_name(run)]
    return ["nnUNetv2_predict", *files, *model, "-device", study.options.device, "-npp", "1", "-nps", "1"]


def _check_same_run(fold: Path, plans: Mapping[str, Any]) -> None:
    """Refuses to continue a run of other settings.

    Raises:
        ValueError: The checkpoint there was made with other settings or cases.
    """
    for name in ("checkpoint_final.pth", *_UNFINISHED):
        if (fold / name).is_file():
            then = read_checkpoint(fold / name)["init_args"]["plans"]
            differing = [key for key in (SETTINGS_KEY, "configurations") if then.get(key) != plans[key]]
            if differing:
                raise ValueError(
                    f"{fold / name} is of a run with other {' and '.join(differing)} than this study's; "
                    f"delete {fold.parent}, or choose another -n"
                )
            return
