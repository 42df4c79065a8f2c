"""Training by several processes: devices, equal gradients, and real runs of two processes on the CPU (gloo)."""

import io
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunet_runs import nnunet_folders, run
from process_gradients import gradients, gradients_of_process
from torch import distributed as dist
from torch import multiprocessing

from nnunet_pretrain import train
from nnunet_pretrain.checkpoints.reading import read_checkpoint
from nnunet_pretrain.folders import TRAINER_VARIABLE, leaf
from nnunet_pretrain.training.distributed import device_of_process


@pytest.mark.parametrize("shares", [([0], [1]), ([0, 1], [2])], ids=["1+1", "2+1"])
def test_gradients_are_those_of_one_process_with_the_whole_batch(shares, tmp_path):
    size = sum(map(len, shares))
    mixtures = [[1, 2, 0], [0, 0, 1], [2, 1, 3], [3, 1, 3]]
    examples = [(schemes[:size], batch_dice) for schemes in mixtures for batch_dice in (True, False)]
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    multiprocessing.spawn(gradients_of_process, (shares, examples, store.port, tmp_path), nprocs=len(shares))
    processes = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(len(shares))]
    for number, (schemes, batch_dice) in enumerate(examples):
        loss, expected = gradients(schemes, slice(None), batch_dice, False)
        assert np.mean([process["found"][number][0] for process in processes]) == pytest.approx(loss, abs=1e-9)
        for process in processes:
            for ours, theirs in zip(process["found"][number][1], expected, strict=True):
                assert torch.allclose(ours, theirs, rtol=0, atol=1e-9), (schemes, batch_dice)
    assert [process["gpu"] for process in processes] == [0, 1]
    assert processes[0]["seed"] == 7
    assert processes[1]["seed"] != 7


def test_device_is_the_number_on_the_machine_not_the_rank(monkeypatch):
    """Second machine of two with four GPUs each: the process with rank 6 has its machine's third GPU."""
    monkeypatch.setenv("RANK", "6")
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert device_of_process(torch.device("cuda")) == torch.device("cuda", 2)
    assert device_of_process(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "two")
    with pytest.raises(ValueError, match="LOCAL_RANK must be the number"):
        device_of_process(torch.device("cuda"))


TRAINER = '''
import hashlib
import json

import torch
from torch.nn.parallel import DistributedDataParallel

from nnunet_pretrain.trainers.nnunet_pretrain_trainers import nnUNetTrainerPretrain


class nnUNetTrainerOfTest(nnUNetTrainerPretrain):
    """Tells what each process drew and what it ended with."""

    def on_train_start(self):
        super().on_train_start()
        self.drawn = []

    def train_step(self, batch):
        self.drawn.append(hashlib.sha256(batch["data"].numpy().tobytes()).hexdigest())
        return super().train_step(batch)

    def on_train_end(self):
        super().on_train_end()
        wrapped = isinstance(self.network, DistributedDataParallel)
        torch.save(
            {
                "drawn": self.drawn,
                "torch_seed": torch.initial_seed(),
                "batch_size": self.batch_size,
                "wrapped": wrapped,
                "is_ddp": self.is_ddp,
                "folder": self.output_folder_base,
                "weights": (self.network.module if wrapped else self.network).state_dict(),
            },
            f"{self.output_folder}/rank{self.local_rank}.pt",
        )
'''


@pytest.fixture
def workspace(pretrained, tmp_path):
    """The pre-training's preprocessed data under plans of their own, with empty results and a trainer that tells."""
    preprocessed = tmp_path / "nnUNet_preprocessed" / "Dataset900_Merged"
    shutil.copytree(pretrained.root / "nnUNet_preprocessed/Dataset900_Merged", preprocessed)
    plans = json.loads((preprocessed / "nnUNetPretrainPlans.json").read_text(encoding="utf-8"))
    plans["plans_name"] = "nnUNetManyPlans"

    def change(batch_size=2, **training):
        plans["configurations"]["3d_fullres"]["batch_size"] = batch_size
        plans["nnunet_pretrain"]["training"].update(training)
        (preprocessed / "nnUNetManyPlans.json").write_text(json.dumps(plans), encoding="utf-8")

    change(num_epochs=1, warmup_epochs=0, num_iterations_per_epoch=2, num_val_iterations_per_epoch=1, seed=7)
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers/trainer_of_test.py").write_text(TRAINER, encoding="utf-8")
    environment = nnunet_folders(tmp_path, tmp_path / "trainers", nnUNet_n_proc_DA="0", nnUNet_def_n_proc="1")
    model = tmp_path / "nnUNet_results/Dataset900_Merged/nnUNetTrainerOfTest__nnUNetManyPlans__3d_fullres"
    return SimpleNamespace(environment=environment, change=change, model=model, fold=model / "fold_all")


def command(*arguments, processes=None):
    """A training command, with torchrun if the number of processes is given."""
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes else []
    training = ["-m", "nnunet_pretrain.train", "900", "3d_fullres", "all", "-device", "cpu"]
    return [sys.executable, *many, *training, "-tr", "nnUNetTrainerOfTest", "-p", "nnUNetManyPlans", *arguments]


@pytest.mark.slow
def test_two_processes_train_one_network(workspace):
    log = run(command(processes=2), workspace.environment)
    first, second = (torch.load(workspace.fold / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    for process in (first, second):
        assert process["wrapped"]
        assert process["is_ddp"]
        assert process["batch_size"] == 1
        assert process["folder"] == str(workspace.model)
    assert len(first["drawn"]) == 2
    assert not set(first["drawn"]) & set(second["drawn"])
    assert first["torch_seed"] != second["torch_seed"]
    weights = read_checkpoint(workspace.fold / "checkpoint_final.pth")["network_weights"]
    for name, values in weights.items():
        assert torch.equal(values, first["weights"][name])
        assert torch.equal(values, second["weights"][name])
    assert json.loads((workspace.model / "plans.json").read_text(encoding="utf-8"))["plans_name"] == "nnUNetManyPlans"
    assert "rank 1: predicting" in log
    assert len(list(workspace.fold.glob("training_log_*.txt"))) == 1
    predictions = {path.name for path in workspace.fold.glob("validation/*.nii.gz")}
    assert len(predictions) == log.count("predicting ") > 1

    (workspace.fold / "checkpoint_final.pth").rename(workspace.fold / "checkpoint_latest.pth")
    workspace.change(num_epochs=2)
    log = run(command("--c", "--val_best", processes=2), workspace.environment)
    assert "Epoch 1" in log
    assert "Epoch 0" not in log
    assert read_checkpoint(workspace.fold / "checkpoint_final.pth")["current_epoch"] == 2

    shutil.rmtree(workspace.fold / "validation")
    log = run(command("--val"), workspace.environment)  # one process goes on with what two have made
    assert "Epoch" not in log
    assert {path.name for path in workspace.fold.glob("validation/*.nii.gz")} == predictions
    assert (workspace.fold / "validation/summary.json").is_file()


@pytest.mark.slow
def test_of_all_processes_one_says_what_the_user_must_change(workspace):
    workspace.change(batch_size=1)
    done = subprocess.run(
        command(processes=2),
        env={**os.environ, **workspace.environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 1  # torchrun's own
    told = [line for line in done.stderr.splitlines() if line.startswith("nnunet_pretrain.train: ")]
    assert len(told) == 1
    assert "error: 2 processes share one batch" in told[0]
    assert "start at most 1 processes, or raise batch_size" in told[0]
    assert done.stderr.count("Traceback (most recent call last)") == 1  # torchrun's own
    assert "exitcode  : 2" in done.stderr  # of the first; torchrun may stop the other before it ends by itself


WRONG = {
    "fold": (["900", "3d_fullres", "first"], "fold must be a number or 'all', got 'first'"),
    "both": (["900", "3d_fullres", "all", "--c", "--val"], "--c and --val exclude each other"),
    "gpus": (["900", "3d_fullres", "0", "-num_gpus", "2"], "-num_gpus needs -device cuda, got cpu"),
    "dataset": (["905", "3d_fullres", "all"], "Could not find a dataset with the ID 905"),
    "trainer": (["900", "3d_fullres", "all", "-tr", "nnUNetTrainerNobodys"], "requested nnunet trainer"),
    "plans": (["900", "3d_fullres", "all", "-p", "nnUNetPlansLost"], "nnUNetPlansLost.json not found; make them"),
    "configuration": (["900", "4d", "all"], "has no configuration '4d', only 3d_fullres"),
    "unfinished": (["900", "3d_fullres", "0", "--val"], "fold_0/checkpoint_final.pth not found; --val needs"),
    "weights": (["900", "3d_fullres", "0", "-pretrained_weights", "lost.pth"], "lost.pth not found"),
}


@pytest.fixture
def planned(nnunet):
    """A dataset that has been planned, but not preprocessed; and no torchrun around."""
    folder = nnunet / "nnUNet_preprocessed/Dataset900_Merged"
    folder.mkdir()
    plans = {"plans_name": "nnUNetPlans", "configurations": {"3d_fullres": {}}}
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans), encoding="utf-8")
    threads = torch.get_num_threads()
    yield nnunet
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", WRONG)
def test_a_user_error_is_one_line_and_exit_code_2(name, planned, monkeypatch, capsys):
    monkeypatch.setenv(TRAINER_VARIABLE, "")
    arguments, message = WRONG[name]
    assert train.main([*arguments, "-device", "cpu"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("nnunet_pretrain.train: error: ")
    assert message in lines[0]


class Writes(io.RawIOBase):
    """An output that remembers what each system call would have written."""

    def __init__(self):
        self.written = []

    def writable(self):
        return True

    def write(self, data):
        self.written.append(bytes(data))
        return len(data)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_processes_of_torchrun_write_whole_lines(stream, planned, monkeypatch):
    output = Writes()
    for variable in train.TORCHRUN_VARIABLES:
        monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    monkeypatch.setenv(TRAINER_VARIABLE, "")
    monkeypatch.setattr(sys, stream, io.TextIOWrapper(output, encoding="utf-8", write_through=True))  # python -u
    assert train.main(["905", "3d_fullres", "all", "-device", "cpu"]) == 2
    print("rank 1:", "predicting", "a case", file=getattr(sys, stream))
    assert output.written[-1] == b"rank 1: predicting a case\n"


def test_half_of_torchruns_variables_is_a_user_error(planned, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train.main(["900", "3d_fullres", "all", "-device", "cpu"]) == 2
    assert "RANK is set, but not LOCAL_RANK" in capsys.readouterr().err


def test_our_trainers_are_found_beside_those_of_the_user(planned, monkeypatch, capsys):
    monkeypatch.setenv(TRAINER_VARIABLE, "/theirs")
    assert train.main(["900", "3d_fullres", "0", "-tr", "nnUNetTrainerPretrain", "-device", "cpu", "--val"]) == 2
    assert "checkpoint_final.pth not found" in capsys.readouterr().err  # the trainer was found
    assert os.environ[TRAINER_VARIABLE].split(os.pathsep) == [str(leaf("trainers")), "/theirs"]
