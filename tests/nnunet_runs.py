"""What the tests that run real nnU-Net share: sizes, sources, and how commands are called."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_pretrain.folders import NNUNET_VARIABLES, TRAINER_VARIABLE, leaf

SMALL = {"spacing_mm": (9.0, 9.0, 9.0)}
SOURCES = ("BTCV", "KiTS23", "AbdomenAtlas1.1")
TARGET_LABELS = {"liver": ("liver", "liver_tumor", "hepatic_vessel"), "kidneys": ("kidney_left", "kidney_right")}
DOMAINS = {
    "Dataset003_CT": ("ct", {"liver": ("liver",), "spleen": ("spleen",)}, (9.0, 9.0, 9.0)),
    "Dataset007_MR": ("t1", {"kidneys": ("kidney_left", "kidney_right"), "liver": ("liver",)}, (9.0, 9.0, 14.0)),
    "Dataset009_Inverted": ("inverted", {"liver": ("liver",)}, (8.0, 8.0, 8.0)),
}


def nnunet_folders(root, trainers=None, **variables):
    """Makes nnU-Net's folders below a root; returns the variables of commands that work there."""
    environment = {variable: str(root / variable) for variable in NNUNET_VARIABLES}
    for folder in environment.values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    return {**environment, TRAINER_VARIABLE: str(trainers or leaf("trainers")), **variables}


@contextmanager
def variables_set(environment):
    """Sets variables of this process for a while."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in environment.items():
            patch.setenv(variable, value)
        yield patch


def run(command, environment):
    """Runs a command as a user would and returns its output; fails with that output."""
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-20_000:]}"
    return done.stdout + done.stderr


def script(name):
    """Returns the path of a console script beside the running Python."""
    return Path(sys.executable).with_name(name)


def shorten(plans_file, **training):
    """Makes a plan's training short."""
    plans = json.loads(plans_file.read_text(encoding="utf-8"))
    plans["nnunet_pretrain"]["training"].update(
        {"num_epochs": 2, "num_iterations_per_epoch": 3, "num_val_iterations_per_epoch": 2, "seed": 7, **training}
    )
    plans_file.write_text(json.dumps(plans))


def same(a, b):
    """Compares nested checkpoints bit by bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and np.isnan(a):
        return np.isnan(b)
    return a == b


def stop_at(trainer, step_name, number):
    """Lets a trainer of this process be told to stop, as by SIGTERM, at the begin of a step, counted from 1."""
    step, done = getattr(trainer, step_name), [0]

    def stopping_step(batch):
        done[0] += 1
        if done[0] == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(batch)

    setattr(trainer, step_name, stopping_step)


SPAWNED_TRAINING = (
    "import multiprocessing, sys; multiprocessing.set_start_method('spawn'); "
    "from nnunetv2.run.run_training import run_training_entry; run_training_entry()"
)
