"""Classification on real nnU-Net training: planned, trained, continued, applied to images, and studied."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from classification_targets import CLASSES, write_csv, write_pretrained, write_target
from nnunet_runs import nnunet_folders, stop_at, variables_set

from nnunet_pretrain.checkpoints.branches import ordinary
from nnunet_pretrain.checkpoints.inspection import describe, read_card
from nnunet_pretrain.checkpoints.portable import imports_of
from nnunet_pretrain.checkpoints.reading import read_checkpoint
from nnunet_pretrain.classification.classify import classify
from nnunet_pretrain.classification.metrics import all_metrics
from nnunet_pretrain.classification.plan_classification import TRAINER, plan_classification
from nnunet_pretrain.cli import main
from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.preprocessing.preprocess import preprocess
from nnunet_pretrain.study import StudyOptions, run_study
from nnunet_pretrain.transfer.export import export
from nnunet_pretrain.transfer.plan_transfer import PlanOptions

pytestmark = pytest.mark.slow
CASES, EPOCHS = 20, 5
TRAINING = {"num_epochs": EPOCHS, "num_iterations_per_epoch": 12, "optimizer": "AdamW", "initial_lr": 0.02, "seed": 1}


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A planned and preprocessed target with two kinds of lesions; the environment points to it."""
    root = tmp_path_factory.mktemp("classification")
    with variables_set(nnunet_folders(root, nnUNet_n_proc_DA="0")) as patch:
        raw = root / "nnUNet_raw/Dataset011_Nodules"
        rows = write_target(raw, CASES)
        write_csv(raw / "classification.csv", rows)
        preset = root / "short.json"
        write_json(preset, {"description": "short", "transfer": {**TRAINING, "save_every": 1}})
        pretrained = write_pretrained(root / "pretrained")
        patch.setenv("nnUNet_n_proc_DA", "1")  # nnU-Net's planner
        lines = []
        options = PlanOptions(11, pretrained, preset=str(preset), num_processes=1)
        planned = plan_classification(options, batch_size=8, report=lines.append)
        patch.setenv("nnUNet_n_proc_DA", "0")
        preprocess(11, planned.transfer.stem, device="cpu", num_processes=1, report=lines.append)
        yield SimpleNamespace(root=root, raw=raw, preset=preset, pretrained=pretrained, planned=planned, lines=lines)


def train(target, plans, stop_after=None, resume=False, step_name="train_step", only_validate=False):
    """Trains fold 0 in this process, and stops as if by a signal after some steps; returns the trainer."""
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    trainer = get_trainer_from_args("11", "3d_fullres", 0, TRAINER, plans, resume, torch.device("cpu"))
    maybe_load_checkpoint(trainer, resume, only_validate)
    stop_at(trainer, step_name, stop_after)
    if stop_after is not None:
        with pytest.raises(SystemExit):
            trainer.run_training()
    elif not only_validate:
        trainer.run_training()
    return trainer


@pytest.fixture(scope="module")
def trained(target):
    """The trainer of a finished run, validated."""
    trainer = train(target, target.planned.transfer.stem)
    trainer.perform_actual_validation()
    return trainer


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_plans_name_the_classifier_and_the_control_differs_in_the_start_only(target):
    plans, control = read_json(target.planned.transfer), read_json(target.planned.scratch)
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    assert architecture["network_class_name"] == "nnunet_pretrain.networks.classifier.Classifier"
    settings = plans["nnunet_pretrain"]
    assert settings["classification"]["classes"] == list(CLASSES)
    assert settings["classification"]["lesions"] == ["nodule"]
    assert not settings["training"]["deep_supervision"]
    assert len(settings["folds"]) == 5
    assert settings.pop("transfer")["parts"] == "encoder"
    assert "checkpoint" not in control["nnunet_pretrain"].pop("transfer")
    assert plans.pop("plans_name") != control.pop("plans_name")
    assert plans == control
    assert target.planned.report.share("encoder") == 1.0
    assert "classes: 10 bright, 10 dark, in 20 cases" in target.lines
    assert not [line for line in target.lines if line.startswith("initialised")]  # of the segmentation


def test_the_classes_are_learned_and_scored_on_unseen_cases(target, trained):
    folder = Path(trained.output_folder)
    summary, rows = read_json(folder / "validation/summary.json"), rows_of(folder / "validation/probabilities.csv")
    assert {row["case"] for row in rows} == set(trained.settings.folds[0].val)
    assert list(rows[0]) == ["case", "lesion", "class", "p_bright", "p_dark"]
    truth = np.array([CLASSES.index(row["class"]) for row in rows])
    probabilities = np.array([[float(row[f"p_{name}"]) for name in CLASSES] for row in rows])
    expected = all_metrics([row["case"] for row in rows], truth, probabilities)
    for name, one in summary["metrics"].items():
        assert one["value"] == pytest.approx(expected[name]["value"], abs=1e-5)
    assert summary["metrics"]["AUC"]["value"] > 0.9
    assert summary["metrics"]["accuracy"]["value"] > 0.7
    log = trained.logger.local_logger.my_fantastic_logging
    assert log["train_losses"][-1] < 0.8 * log["train_losses"][0]
    assert len(log["mean_fg_dice"]) == EPOCHS
    assert (folder / "transfer_report.json").is_file()
    final = read_checkpoint(folder / "checkpoint_final.pth")
    card = final["init_args"]["nnunet_pretrain"]["card"]
    assert card["validation"]["metrics"] == summary["metrics"]
    assert set(card["auc"]) == set(CLASSES)
    assert "nnUNetTrainerClassification" in describe(read_card(folder / "checkpoint_final.pth"))


def test_a_classifier_gives_its_encoder_to_a_segmentation_and_is_no_model_of_stock_nnunet(trained, tmp_path):
    checkpoint = Path(trained.output_folder) / "checkpoint_final.pth"
    with pytest.raises(ValueError, match="a classifier gives no label maps"):
        export(checkpoint, tmp_path / "model")
    encoder = ordinary(read_checkpoint(checkpoint))
    assert imports_of(encoder)[0].endswith("PlainConvUNet")
    assert any(name.startswith("encoder.") for name in encoder["network_weights"])
    assert "auc" in describe(read_card(checkpoint)).lower()


def test_the_loader_draws_classes_alike_and_centres_lesions(target, trained):
    keys = [str(key) for _ in range(40) for key in next(trained.dataloader_train)["keys"]]
    share = np.mean([trained.examples[key].label == "bright" for key in keys])
    assert 0.4 < share < 0.6
    for batch, _ in zip(trained.dataloader_val, range(len(trained.dataloader_val)), strict=False):
        for key, image in zip(batch["keys"], batch["data"], strict=True):
            middle = float(image[0, 7:9, 7:9, 7:9].mean())
            assert (middle > 1) == (trained.examples[key].label == "bright")


@pytest.mark.parametrize(("stop_after", "step"), [(17, "train_step"), (2, "validation_step")])
def test_an_interrupted_run_continues_bit_for_bit(target, trained, tmp_path, monkeypatch, stop_after, step):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    plans = target.planned.transfer.stem
    train(target, plans, stop_after, step_name=step)
    again = train(target, plans, resume=True)
    for name, weight in again.network.state_dict().items():
        assert torch.equal(weight, trained.network.state_dict()[name]), name
    ours, other = (t.logger.local_logger.my_fantastic_logging for t in (again, trained))
    assert all(ours[key] == other[key] for key in ("train_losses", "val_losses", "mean_fg_dice"))


def test_classify_gives_the_probabilities_of_the_validation(target, trained, tmp_path, capsys):
    model, out = Path(trained.output_folder).parent, tmp_path / "out.csv"
    arguments = ["classify", "-i", str(target.raw / "imagesTr"), "-o", str(out), "-m", str(model), "-device", "cpu"]
    assert main([*arguments, "--lesions", str(target.raw / "labelsTr")]) == 0
    found = {row["case"]: row for row in rows_of(out)}
    assert len(found) == CASES
    for row in rows_of(Path(trained.output_folder) / "validation/probabilities.csv"):
        for name in CLASSES:
            assert float(found[row["case"]][f"p_{name}"]) == pytest.approx(float(row[f"p_{name}"]), abs=2e-6)
    assert "class" not in next(iter(found.values()))
    assert main(arguments) == 2
    assert "give their label maps with --lesions" in capsys.readouterr().err
    images = tmp_path / "images"
    images.mkdir()
    lesions = target.raw / "labelsTr"
    with pytest.raises(FileNotFoundError, match="name them as in imagesTr"):
        classify(images, out, model, lesions=lesions, device="cpu")
    (images / "new_0000.nii.gz").symlink_to(target.raw / "imagesTr/case_00_0000.nii.gz")
    with pytest.raises(FileNotFoundError, match=r"lacks the label maps new\.nii\.gz"):
        classify(images, out, model, lesions=lesions, device="cpu")
    with pytest.raises(FileNotFoundError, match=r"for the folds \['3'\]; it has 0"):
        classify(images, out, model, folds=["3"], lesions=lesions, device="cpu")
    with pytest.raises(FileNotFoundError, match="give the folder of a trained model"):
        classify(images, out, tmp_path, lesions=lesions, device="cpu")
    (images / "new_0001.nii.gz").touch()
    (images / "other_0001.nii.gz").touch()
    with pytest.raises(FileNotFoundError, match=r"lacks other_0000\.nii\.gz"):
        classify(images, out, model, lesions=lesions, device="cpu")


def with_settings(target, name, change):
    """Writes plans that differ, and returns their name."""
    plans = {**read_json(target.planned.transfer), "plans_name": name}
    change(plans)
    write_json(target.planned.transfer.with_name(f"{name}.json"), plans)
    return name


def test_whole_images_are_classified(target, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    table = target.planned.transfer.with_name("classification.json")
    before = table.read_text(encoding="utf-8")
    rows = [{**row, "lesion": None} for row in json.loads(before)][:14]

    def change(plans):
        plans["nnunet_pretrain"]["classification"].update(crop="image", lesions=[])
        plans["nnunet_pretrain"]["training"].update(num_epochs=1, num_iterations_per_epoch=2)

    try:
        write_json(table, rows)
        trainer = train(target, with_settings(target, "whole", change))
        trainer.perform_actual_validation()
    finally:
        table.write_text(before, encoding="utf-8")
    folder = Path(trainer.output_folder)
    expected = rows_of(folder / "validation/probabilities.csv")
    assert list(expected[0]) == ["case", "class", "p_bright", "p_dark"]
    assert {row["case"] for row in expected} < {row["case"] for row in rows}  # cases without a row are left out
    assert classify(target.raw / "imagesTr", tmp_path / "out.csv", folder.parent, device="cpu") == CASES
    found = {row["case"]: row for row in rows_of(tmp_path / "out.csv")}
    for row in expected:
        assert float(found[row["case"]]["p_dark"]) == pytest.approx(float(row["p_dark"]), abs=2e-6)
    with pytest.raises(ValueError, match="leave out --lesions"):
        classify(target.raw / "imagesTr", tmp_path / "o.csv", folder.parent, lesions=tmp_path, device="cpu")


def test_folds_without_a_class_other_plans_and_missing_lesions_are_refused(target, trained, monkeypatch, tmp_path):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    bright = [f"case_{i:02d}" for i in range(0, CASES, 2)]
    dark = [f"case_{i:02d}" for i in range(1, CASES, 2)]

    def one_class(plans):
        plans["nnunet_pretrain"]["folds"] = [{"train": bright, "val": dark}]

    with pytest.raises(ValueError, match="fold 0 has no dark to train on"):
        train(target, with_settings(target, "one_class", one_class))
    with pytest.raises(ValueError, match="classify nothing"):
        train(target, with_settings(target, "none", lambda plans: plans["nnunet_pretrain"].pop("classification")))

    def others(plans):
        plans["nnunet_pretrain"]["classification"]["classes"] = ["bright", "grey"]

    with pytest.raises(ValueError, match=r"other classes or lesions \(such as dark, grey\)"):
        train(target, with_settings(target, "others", others))
    table = target.planned.transfer.with_name("classification.json")
    before = table.read_text(encoding="utf-8")
    try:
        write_json(table, [{**row, "component": 2} for row in json.loads(before)])
        with pytest.raises(ValueError, match=r"20 rows .* without voxels .*case_\d\d nodule 2 \(there are 1\)"):
            train(target, target.planned.transfer.stem)
    finally:
        table.write_text(before, encoding="utf-8")


def test_a_study_compares_both_arms(target, tmp_path):
    lines = []
    options = {
        "dataset": 11,
        "checkpoint": target.pretrained,
        "task": "classification",
        "fractions": (0.5,),
        "seeds": 1,
        "name": "tiny",
        "preset": str(target.preset),
        "device": "cpu",
        "jobs": 2,
        "out": tmp_path / "out",
        "num_processes": 1,
    }
    folder = run_study(StudyOptions(**options), lines.append)
    entries = read_json(folder / "results.json")["arms"]
    assert [(entry["arm"], entry["number_of_cases"]) for entry in entries] == [("scratch", 8), ("pretrained", 8)]
    assert all(0 <= entry[metric]["mean"] <= 1 for entry in entries for metric in ("AUC", "accuracy", "ECE"))
    assert "AUC - scratch" in lines[-1]
    run = read_json(folder / "runs/pretrained_8cases_s0.json")
    assert len(run["AUC_by_epoch"]) == EPOCHS
    assert len({int(case[-2:]) % 2 for case in run["train"]}) == 2
    log = (folder / "logs/pretrained_8cases_s0.txt").read_text(encoding="utf-8")
    assert "Transfer report" in log
    with pytest.raises(ValueError, match="another --task: it has classification, now it is segmentation"):
        run_study(StudyOptions(**{**options, "task": "segmentation"}), lines.append)
