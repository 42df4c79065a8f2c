"""The classification of photographs by two processes: they validate one network, the one that is saved."""

import sys

import pytest
import torch
from nnunet_runs import nnunet_folders, run, variables_set
from small_photographs import planned, write_textures

from nnunet_pretrain.checkpoints.reading import read_checkpoint
from nnunet_pretrain.files import read_json, write_json

pytestmark = pytest.mark.slow

TRAINER = '''
import torch

from nnunet_pretrain.trainers.nnunet_pretrain_trainers import nnUNetTrainerVDTClassification


class nnUNetTrainerOfTest(nnUNetTrainerVDTClassification):
    """Tells with which weights and running statistics each process validates."""

    def perform_actual_validation(self, save_probabilities=False):
        torch.save(self.network.module.state_dict(), f"{self.output_folder}/rank{self.local_rank}.pt")
        super().perform_actual_validation(save_probabilities)
'''


def test_two_processes_validate_the_network_that_is_saved(tmp_path):
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers/trainer_of_test.py").write_text(TRAINER, encoding="utf-8")
    environment = nnunet_folders(tmp_path, tmp_path / "trainers", nnUNet_n_proc_DA="0", nnUNet_def_n_proc="1")
    numbers = {"num_epochs": 1, "num_iterations_per_epoch": 3, "num_val_iterations_per_epoch": 1}
    with variables_set(environment):
        images = write_textures(tmp_path / "textures", 16)
        plans = planned(tmp_path, images, 920, "classification", "originals", batch_size=4, **numbers)
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "nnunet_pretrain.train"]
    training = ["920", "3d_fullres", "all", "-device", "cpu", "-tr", "nnUNetTrainerOfTest", "-p", plans.stem]
    run([sys.executable, *many, *training], environment)
    (fold,) = tmp_path.glob("nnUNet_results/*/nnUNetTrainerOfTest*/fold_all")
    saved = read_checkpoint(fold / "checkpoint_final.pth")["network_weights"]
    statistics = [name for name in saved if name.endswith("running_mean")]
    assert statistics
    for rank in range(2):
        validated = torch.load(fold / f"rank{rank}.pt", weights_only=True)
        assert all(torch.equal(validated[name], values) for name, values in saved.items()), rank
    assert read_json(fold / "validation/summary.json")["images"] == 4
    content = read_json(plans)
    content["configurations"]["3d_fullres"]["batch_size"] = 3
    write_json(plans, content)
    with pytest.raises(
        AssertionError, match="2 processes share a batch of 3 images, and each needs two; start at most"
    ):
        run([sys.executable, *many, *training], environment)
