"""One encoder and a branch per domain, trained by nnU-Net's command: what is learnt, kept, resumed and validated."""

import copy
import json
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nnunet_runs import DOMAINS, nnunet_folders, run, same, stop_at

from nnunet_pretrain.checkpoints.reading import read_checkpoint
from nnunet_pretrain.files import read_json, write_json

pytestmark = pytest.mark.slow
PLANS = "nnUNetDomainPlans"


def test_every_domain_is_drawn_reported_and_scored_by_its_own_branch(domains):
    fold = domains.model / "fold_all"
    progress = read_json(fold / "training_progress.json")
    assert [entry["epoch"] for entry in progress] == [0, 1]
    for entry in progress:
        assert entry["cases_seen"].keys() == entry["pseudo_dice"].keys() == entry["train_loss_by_source"].keys()
        assert list(entry["pseudo_dice"]) == list(DOMAINS)
        assert all(np.isfinite(loss) for loss in entry["train_loss_by_source"].values())
        for name, (_, labels, _) in DOMAINS.items():
            assert list(entry["pseudo_dice"][name]) == [f"{name}__{label}" for label in labels]
    first, last = (entry["train_loss_by_source"] for entry in (progress[0], progress[-1]))
    assert all(last[name] < first[name] for name in DOMAINS), (first, last)
    assert "Branch Dataset007_MR: 3 cases at 14, 9, 9 mm" in domains.logs["train"]


def test_the_final_validation_is_per_domain_with_the_domains_own_ids(domains):
    validation = domains.model / "fold_all/validation"
    summary = read_json(validation / "summary.json")
    assert list(summary["per_source"]) == list(DOMAINS)
    for name, (_, labels, _) in DOMAINS.items():
        assert list(summary["per_source"][name]["mean"]) == [f"{name}__{label}" for label in labels]
        (prediction,) = validation.glob(f"{name}__*.nii.gz")
        predicted = np.unique(np.asarray(nib.load(prediction).dataobj))
        assert predicted.max() <= len(labels)
        reference = nib.load(domains.root / f"nnUNet_preprocessed/Dataset910_Many/gt_segmentations/{prediction.name}")
        assert reference.shape == nib.load(prediction).shape
    card = read_checkpoint(domains.checkpoint)["init_args"]["nnunet_pretrain"]["card"]
    assert list(card["validation"]["per_source"]) == list(DOMAINS)


@pytest.fixture
def trainer(domains, tmp_path, monkeypatch):
    """Makes trainers in this process, on plans whose settings are changed; nnU-Net starts no process for them."""
    for variable, value in domains.environment.items():
        monkeypatch.setenv(variable, value)
    shutil.copytree(domains.root / "nnUNet_preprocessed", tmp_path / "nnUNet_preprocessed")
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "nnUNet_preprocessed"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    plans = tmp_path / "nnUNet_preprocessed/Dataset910_Many" / f"{PLANS}.json"

    def make(results, *, resume=False, batches="domain", **training):
        from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

        monkeypatch.setenv("nnUNet_results", str(tmp_path / results))
        content = read_json(plans)
        content["nnunet_pretrain"]["training"].update(training)
        content["nnunet_pretrain"]["domains"]["batches"] = batches
        write_json(plans, content)
        arguments = ("910", "3d_fullres", "all", "nnUNetTrainerDomains", PLANS, resume, torch.device("cpu"))
        made = get_trainer_from_args(*arguments)
        maybe_load_checkpoint(made, resume, False)
        return made

    return make


def state_of(trainer, domain):
    """Weights and optimiser state of a domain's branch, as copies."""
    found = {}
    for name, parameter in trainer.network.named_parameters():
        if name.startswith(f"branches.{domain}."):
            found[name] = (parameter.detach().clone(), copy.deepcopy(trainer.optimizer.state[parameter]))
    assert found
    return found


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_a_step_of_one_domain_leaves_the_other_branches_bit_identical(trainer, optimizer):
    made = trainer("isolation", optimizer=optimizer, weight_decay=0.1)
    made.on_train_start()
    made.on_epoch_start()
    made.on_train_epoch_start()
    order = list(made.dataloader_train.order)
    assert set(order) == set(DOMAINS)
    made.dataloader_train.order = iter([*DOMAINS, "Dataset007_MR"])
    for _ in DOMAINS:
        made.train_step(next(made.dataloader_train))
    before = {domain: state_of(made, domain) for domain in DOMAINS}
    encoder = made.network.encoder.state_dict()["stages.0.0.convs.0.conv.weight"].clone()
    batch = next(made.dataloader_train)
    assert {str(case).split("__")[0] for case in batch["keys"]} == {"Dataset007_MR"}
    made.train_step(batch)
    after = {domain: state_of(made, domain) for domain in DOMAINS}
    assert same(before["Dataset003_CT"], after["Dataset003_CT"])
    assert same(before["Dataset009_Inverted"], after["Dataset009_Inverted"])
    assert not same(before["Dataset007_MR"], after["Dataset007_MR"])
    assert not torch.equal(encoder, made.network.encoder.state_dict()["stages.0.0.convs.0.conv.weight"])
    made.on_train_end()


@pytest.mark.parametrize("batches", ["domain", "mixed"])
def test_an_interrupted_training_continues_bit_for_bit(trainer, batches):
    numbers = {"num_epochs": 2, "num_iterations_per_epoch": 4, "num_val_iterations_per_epoch": 2, "save_every": 1}

    def finish(made):
        made.run_training()
        return read_checkpoint(Path(made.output_folder) / "checkpoint_final.pth")

    straight = finish(trainer("straight", batches=batches, **numbers))
    stopped = trainer("parts", batches=batches, **numbers)
    stop_at(stopped, "train_step", 6)
    with pytest.raises(SystemExit):
        stopped.run_training()
    found = finish(trainer("parts", resume=True, batches=batches, **numbers))
    for key in ("network_weights", "optimizer_state"):
        assert same(straight[key], found[key]), key
    progress, continued = (
        [
            {key: value for key, value in entry.items() if key not in ("seconds", "waiting_share")}
            for entry in checkpoint["init_args"]["nnunet_pretrain"]["progress"]["epochs"]
        ]
        for checkpoint in (straight, found)
    )
    for entry in (*progress, *continued):
        entry["cases_seen"] = None  # counts of a begun epoch restart
    assert same(progress, continued)


def test_data_of_stock_preprocessing_and_plans_of_other_domains_are_refused(trainer):
    made = trainer("refused")
    folder = Path(made.preprocessed_dataset_folder)
    case = next(folder.glob("Dataset007_MR__*.pkl"))
    case.write_bytes(case.read_bytes() + b"0")  # not the file that was made
    with pytest.raises(ValueError, match=r"1 of 9 cases .* were not made for their domain .* not with nnUNetv2_prep"):
        made.on_train_start()
    made = trainer("others")
    made.dataset_json = json.loads(json.dumps(made.dataset_json).replace("Dataset003_CT", "Dataset004_CT"))
    with pytest.raises(ValueError, match=r"have the domains Dataset003_CT, .* but the dataset has Dataset004_CT"):
        made.initialize()


TRAINER = '''
import hashlib

import torch

from nnunet_pretrain.trainers.nnunet_pretrain_trainers import nnUNetTrainerDomains


class nnUNetTrainerOfTest(nnUNetTrainerDomains):
    """Tells what each process drew and what it ended with."""

    def on_train_start(self):
        super().on_train_start()
        self.drawn = []

    def train_step(self, batch):
        self.drawn.append((self.route_of(batch["keys"]), hashlib.sha256(batch["data"].numpy().tobytes()).hexdigest()))
        return super().train_step(batch)

    def on_train_end(self):
        super().on_train_end()
        told = {"drawn": self.drawn, "weights": self.network.module.state_dict()}
        torch.save(told, f"{self.output_folder}/rank{self.local_rank}.pt")
'''


def test_two_processes_meet_the_same_domain_in_each_step_and_stay_equal(domains, tmp_path):
    shutil.copytree(domains.root / "nnUNet_preprocessed", tmp_path / "nnUNet_preprocessed")
    plans = tmp_path / "nnUNet_preprocessed/Dataset910_Many" / f"{PLANS}.json"
    content = read_json(plans)
    content["nnunet_pretrain"]["training"].update(num_epochs=1, num_iterations_per_epoch=5)
    write_json(plans, content)
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers/trainer_of_test.py").write_text(TRAINER, encoding="utf-8")
    environment = nnunet_folders(tmp_path, tmp_path / "trainers", nnUNet_n_proc_DA="0", nnUNet_def_n_proc="1")
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "nnunet_pretrain.train"]
    training = ["910", "3d_fullres", "all", "-device", "cpu", "-tr", "nnUNetTrainerOfTest", "-p", PLANS]
    run([sys.executable, *many, *training], environment)
    (fold,) = tmp_path.glob("nnUNet_results/*/nnUNetTrainerOfTest*/fold_all")
    first, second = (torch.load(fold / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert [domain for domain, _ in first["drawn"]] == [domain for domain, _ in second["drawn"]]
    assert {domain for domain, _ in first["drawn"]} == set(DOMAINS)
    assert not {drawn for _, drawn in first["drawn"]} & {drawn for _, drawn in second["drawn"]}
    final = read_checkpoint(fold / "checkpoint_final.pth")["network_weights"]
    for name, values in final.items():
        assert torch.equal(values, first["weights"][name])
        assert torch.equal(values, second["weights"][name])
    assert list(read_json(fold / "validation/summary.json")["per_source"]) == list(DOMAINS)
