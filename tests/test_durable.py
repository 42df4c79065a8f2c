"""Interruptions, crashes and divergence, on real nnU-Net training in one process."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunet_runs import same, shorten, stop_at

from nnunet_pretrain.checkpoints.reading import read_checkpoint

pytestmark = pytest.mark.slow
PLANS = "nnUNetDurablePlans"
EPOCHS, STEPS, VALIDATION_STEPS = 6, 2, 2


@pytest.fixture(scope="module")
def data(pretrained, tmp_path_factory):
    """A copy of the merged, preprocessed dataset with plans of six short epochs."""
    root = tmp_path_factory.mktemp("durable")
    shutil.copytree(pretrained.root / "nnUNet_preprocessed", root / "nnUNet_preprocessed")
    folder = root / "nnUNet_preprocessed/Dataset900_Merged"
    plans = json.loads((folder / "nnUNetPretrainPlans.json").read_text(encoding="utf-8"))
    plans["plans_name"] = PLANS
    (folder / f"{PLANS}.json").write_text(json.dumps(plans))
    lengths = {
        "num_epochs": EPOCHS,
        "num_iterations_per_epoch": STEPS,
        "num_val_iterations_per_epoch": VALIDATION_STEPS,
    }
    shorten(folder / f"{PLANS}.json", **lengths, save_every=1, seed=3)
    return root, pretrained.environment


@pytest.fixture
def train(data, tmp_path, monkeypatch):
    """Trains in this process, and stops as if by a signal after a given number of steps; returns the fold's folder."""
    root, environment = data
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("nnUNet_preprocessed", str(root / "nnUNet_preprocessed"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")

    def run(results, *, stop_after=None, resume=False, validation=False):
        monkeypatch.setenv("nnUNet_results", str(tmp_path / results))
        from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

        arguments = ("900", "3d_fullres", "all", "nnUNetTrainerPretrain", PLANS, resume, torch.device("cpu"))
        trainer = get_trainer_from_args(*arguments)
        maybe_load_checkpoint(trainer, resume, False)
        step_name = "validation_step" if validation else "train_step"
        stop_at(trainer, step_name, stop_after)
        if stop_after is None:
            trainer.run_training()
        else:
            with pytest.raises(SystemExit) as stopped:
                trainer.run_training()
            assert stopped.value.code == 128 + signal.SIGTERM
        return Path(trainer.output_folder), trainer

    return run


def uninterrupted(train, found=[]):  # noqa: B006 - one run serves all tests
    """Returns the folder of a run without interruptions."""
    if not found:
        folder, _ = train("straight")
        found.append(folder)
    return found[0]


def comparable(checkpoint):
    """Returns what must not depend on interruptions: all but wall-clock times and folders."""
    extras = checkpoint["init_args"]["nnunet_pretrain"]
    timeless = [
        {k: v for k, v in e.items() if k not in ("seconds", "waiting_share")} for e in extras["progress"]["epochs"]
    ]
    logging = {key: value for key, value in checkpoint["logging"].items() if "timestamps" not in key}
    rest = {key: checkpoint[key] for key in ("network_weights", "optimizer_state", "current_epoch", "_best_ema")}
    return {**rest, "logging": logging, "progress": timeless, "seen": extras["progress"]["seen"], **extras["resume"]}


@pytest.mark.parametrize(
    ("stop_after", "validation"),
    [(3 * STEPS, False), (3 * STEPS + 1, False), (2 * VALIDATION_STEPS + 1, True)],
    ids=["between epochs", "within an epoch", "within a validation"],
)
def test_an_interrupted_run_continues_bit_for_bit(train, stop_after, validation):
    straight = uninterrupted(train)
    folder, _ = train("parts", stop_after=stop_after, validation=validation)
    interrupted = read_checkpoint(folder / "checkpoint_latest.pth")
    assert interrupted["current_epoch"] < EPOCHS
    train("parts", resume=True)
    final = "checkpoint_final.pth"
    expected, found = (comparable(read_checkpoint(f / final)) for f in (straight, folder))
    for key in expected:
        assert same(expected[key], found[key]), key
    assert len(expected["progress"]) == EPOCHS
    progress = json.loads((folder / "training_progress.json").read_text(encoding="utf-8"))
    assert [entry["epoch"] for entry in progress] == list(range(EPOCHS))
    assert (folder / "progress_sources.png").stat().st_size > 10_000


def test_a_loss_that_is_not_finite_stops_with_the_names_of_the_cases(train, monkeypatch):
    _, trainer = train("nan", stop_after=STEPS + 1)
    before = (Path(trainer.output_folder) / "checkpoint_latest.pth").read_bytes()
    trainer._stop_signal = None
    trainer._losses = []
    batch = next(trainer.dataloader_train)
    batch["data"][1, :, :2] = float("nan")
    with pytest.raises(FloatingPointError, match=r"the loss became nan in epoch 1, step 1, with the cases") as error:
        trainer.train_step(batch)
    for case in batch["keys"]:
        assert str(case) in str(error.value)
    assert f"{int((~torch.isfinite(batch['data'][1])).sum())} not finite" in str(error.value)
    assert (Path(trainer.output_folder) / "checkpoint_latest.pth").read_bytes() == before


def written(file):
    """Returns when a file was written, 0 without one."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def test_kill_9_leaves_a_checkpoint_that_loads(data, tmp_path):
    root, environment = data
    results = tmp_path / "results"
    environment = {
        **os.environ,
        **environment,
        "nnUNet_preprocessed": str(root / "nnUNet_preprocessed"),
        "nnUNet_results": str(results),
        "nnUNet_n_proc_DA": "0",
    }
    command = [Path(sys.executable).with_name("nnUNetv2_train"), "900", "3d_fullres", "all", "-device", "cpu"]
    command += ["-tr", "nnUNetTrainerPretrain", "-p", PLANS, "--c"]
    latest = results / f"Dataset900_Merged/nnUNetTrainerPretrain__{PLANS}__3d_fullres/fold_all/checkpoint_latest.pth"
    random = np.random.default_rng(0)
    finished = 0
    for _ in range(2):
        started = written(latest)
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and written(latest) == started:
            time.sleep(0.02)
        time.sleep(random.uniform(0, 0.5))
        process.kill()
        process.wait()
        checkpoint = read_checkpoint(latest if latest.is_file() else latest.with_name("checkpoint_final.pth"))
        assert checkpoint["current_epoch"] > finished
        finished = checkpoint["current_epoch"]


def test_a_checkpoint_of_another_label_space_is_refused(train, data):
    folder, _ = train("other", stop_after=STEPS)
    file = data[0] / "nnUNet_preprocessed/Dataset900_Merged/dataset.json"
    original = file.read_text(encoding="utf-8")
    content = json.loads(original)
    labels = {name: i for name, i in content["labels"].items() if name != "rectum"}
    content["labels"] = {name: position for position, name in enumerate(labels)}
    file.write_text(json.dumps(content))
    try:
        with pytest.raises(ValueError, match=r"checkpoint_latest.pth was trained with other labels.*plan_transfer"):
            train("other", resume=True)
    finally:
        file.write_text(original)
    assert folder.is_dir()
