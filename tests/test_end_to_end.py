"""Real nnU-Net from merged sources to a prediction on the target; the networks are tiny and learn nothing."""

import json
import math
import re
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from nnunet_runs import SPAWNED_TRAINING, run, script

from nnunet_pretrain.checkpoints.inspection import describe, read_card
from nnunet_pretrain.checkpoints.reading import read_checkpoint
from nnunet_pretrain.labels import DEFAULT_SPACE, LabelSetTable
from nnunet_pretrain.networks.parts import PARTS

pytestmark = pytest.mark.slow


def transfer_trainer(pretrained, monkeypatch, plans):
    """A trainer as nnUNetv2_train builds it, with its network and start, before the first step."""
    from nnunetv2.run.run_training import get_trainer_from_args

    for variable, value in pretrained.environment.items():
        monkeypatch.setenv(variable, value)
    trainer = get_trainer_from_args("901", "3d_fullres", 0, "nnUNetTrainerTransfer", plans, device=torch.device("cpu"))
    trainer.get_dataloaders = lambda: (None, None)  # the start is looked at, no batch is drawn
    trainer.on_train_start()
    return trainer


def test_stock_nnunet_accepts_the_merged_dataset(pretrained):
    assert "verify_dataset_integrity Done" in pretrained.logs["plan_and_preprocess"]
    assert "Error" not in pretrained.logs["plan_and_preprocess"]


def test_plans_name_only_what_stock_nnunet_has(pretrained):
    plans = json.loads((pretrained.model / "plans.json").read_text(encoding="utf-8"))
    configuration = plans["configurations"]["3d_fullres"]
    assert plans["plans_name"] == "nnUNetPretrainPlans"
    assert plans["label_manager"] == "LabelManager"
    assert plans["image_reader_writer"] == "NibabelIOWithReorient"
    assert configuration["preprocessor_name"] == "DefaultPreprocessor"
    assert configuration["data_identifier"] == "nnUNetPretrainPlans_3d_fullres"
    assert configuration["patch_size"] == [24, 32, 32]
    assert configuration["architecture"]["arch_kwargs"]["features_per_stage"] == [12, 24, 48, 48]


def test_pretraining_ran_under_spawn_and_validated_unseen_cases_on_groups(pretrained):
    assert "Training done." in pretrained.logs["train"]
    assert "Pseudo dice is given for: aorta" in pretrained.logs["train"]
    assert (
        "they will not be predicted: liver_tumor, pancreas_tumor, colon_tumor, lung_tumor" in pretrained.logs["train"]
    )
    validation = pretrained.model / "fold_all/validation"
    summary = json.loads((validation / "summary.json").read_text(encoding="utf-8"))
    by_scheme = {case["scheme"].split()[0]: set(case["metrics"]) for case in summary["metric_per_case"]}
    assert set(by_scheme) == {"BTCV", "KiTS23", "AbdomenAtlas1.1"}
    assert by_scheme["KiTS23"] == {"kidney_left+kidney_right", "kidney_tumor", "kidney_cyst"}
    assert "liver+hepatic_vessel" in by_scheme["BTCV"]
    assert not {"colon", "bladder"} & by_scheme["BTCV"]
    assert (validation / "summary_unannotated_as_absent.json").is_file()
    assert {source: found["cases"] for source, found in summary["per_source"].items()} == dict.fromkeys(by_scheme, 1)
    for found in summary["per_source"].values():
        assert all({"Dice", "NSD", "FP_ml"} <= set(metrics) for metrics in found["mean"].values())
    assert "Validation on KiTS23, 1 cases:" in pretrained.logs["train"]


def test_progress_is_told_by_source_and_structure(pretrained):
    fold = pretrained.model / "fold_all"
    progress = json.loads((fold / "training_progress.json").read_text(encoding="utf-8"))
    assert [entry["epoch"] for entry in progress] == [0, 1]
    assert set(progress[-1]["pseudo_dice"]) == {"BTCV", "KiTS23", "AbdomenAtlas1.1"}
    assert set(progress[-1]["pseudo_dice"]["KiTS23"]) == {"kidney_left+kidney_right", "kidney_tumor", "kidney_cyst"}
    assert 1 <= sum(progress[-1]["cases_seen"].values()) <= 3
    assert (fold / "progress_sources.png").stat().st_size > 10_000
    patches = [int(n) for n in re.findall(r"(\d+) patches, \d of 1 cases seen so far", pretrained.logs["train"])]
    assert sum(patches) == 2 * 3 * 2  # epochs, steps, batch
    assert "Waiting for data" in pretrained.logs["train"]


def test_the_card_says_what_the_checkpoint_is(pretrained):
    card = read_card(pretrained.checkpoint)
    assert (card.trainer, card.epoch, card.dataset) == ("nnUNetTrainerPretrain", 2, "Dataset900_Merged")
    assert list(card.structures) == [*DEFAULT_SPACE.names, "ignore"]  # AbdomenAtlas has ignored holes in organs
    assert [source["name"] for source in card.sources] == ["BTCV", "KiTS23", "AbdomenAtlas1.1"]
    assert card.normalization == ("CTNormalization",)
    assert json.loads(run([script("nnunet_pretrain"), "inspect", pretrained.checkpoint, "--json"], {})) == json.loads(
        json.dumps(card.as_dict())
    )
    assert card.label_space == "abdomen31"
    assert card.settings["training"]["num_epochs"] == 2
    assert card.versions["nnunetv2"].startswith("2.8")
    assert card.fingerprints == 6
    content = read_checkpoint(pretrained.checkpoint)
    groups = LabelSetTable.from_dataset_json(content["init_args"]["dataset_json"]).groups
    last = zip(groups, content["logging"]["dice_per_class_or_region"][-1], strict=True)
    assert card.pseudo_dice == {group: value for group, value in last if np.isfinite(value)}
    assert card.pseudo_dice  # which groups an epoch of two batches meets is chance
    assert set(card.validation["per_source"]) == {"BTCV", "KiTS23", "AbdomenAtlas1.1"}
    text = describe(card)
    assert "KiTS23, 2 cases, licence: CC BY-NC-SA 4.0" in text
    assert "id 3 may be kidney_left, kidney_right" in text


def test_stock_predict_runs_the_pretrained_checkpoint(pretrained, tmp_path):
    images = pretrained.root / "nnUNet_raw/Dataset901_Target/imagesTs"
    command = [script("nnUNetv2_predict"), "-i", images, "-o", tmp_path, "-d", "900", "-c", "3d_fullres", "-f", "all"]
    command += ["-tr", "nnUNetTrainerPretrain", "-p", "nnUNetPretrainPlans", "-device", "cpu", "-npp", "1", "-nps", "1"]
    run(command, pretrained.environment)
    image, prediction = (nib.load(next(folder.glob("*.nii.gz"))) for folder in (images, tmp_path))
    assert prediction.shape == image.shape
    assert np.allclose(prediction.affine, image.affine)
    assert np.asanyarray(prediction.dataobj).max() < DEFAULT_SPACE.ignore_id


def test_a_model_zip_is_installed_elsewhere_and_predicts(pretrained, tmp_path):
    model = ["-d", "900", "-c", "3d_fullres", "-f", "all", "-tr", "nnUNetTrainerPretrain", "-p", "nnUNetPretrainPlans"]
    zipped = tmp_path / "model.zip"
    run([script("nnUNetv2_export_model_to_zip"), "-o", zipped, *model], pretrained.environment)
    elsewhere = {**pretrained.environment, "nnUNet_results": str(tmp_path / "results")}
    (tmp_path / "results").mkdir()
    run([script("nnUNetv2_install_pretrained_model_from_zip"), zipped], elsewhere)
    images, prediction = pretrained.root / "nnUNet_raw/Dataset901_Target/imagesTs", tmp_path / "prediction"
    command = [script("nnUNetv2_predict"), "-i", images, "-o", prediction, *model, "-device", "cpu"]
    run([*command, "-npp", "1", "-nps", "1"], elsewhere)
    assert len(list(prediction.glob("*.nii.gz"))) == 1
    references = pretrained.root / "nnUNet_raw/Dataset901_Target/labelsTs"
    evaluate = [script("nnUNetv2_evaluate_folder"), references, prediction, "-np", "1"]
    run([*evaluate, "-djfile", prediction / "dataset.json", "-pfile", prediction / "plans.json"], elsewhere)
    assert (prediction / "summary.json").is_file()


def test_transfer_plans_keep_the_checkpoints_numbers_and_the_targets_labels(pretrained):
    folder = pretrained.root / "nnUNet_preprocessed/Dataset901_Target"
    plans, scratch = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("nnUNetTransferPlans_Merged", "nnUNetTransferPlans_Merged__scratch")
    )
    source = read_checkpoint(pretrained.checkpoint)["init_args"]["plans"]
    for key in ("architecture", "spacing", "patch_size", "normalization_schemes"):
        assert plans["configurations"]["3d_fullres"][key] == source["configurations"]["3d_fullres"][key]
    assert plans["foreground_intensity_properties_per_channel"] == source["foreground_intensity_properties_per_channel"]
    assert plans["dataset_name"] == "Dataset901_Target"
    assert plans["nnunet_pretrain"]["transfer"]["checkpoint"] == str(pretrained.checkpoint)
    assert len(plans["nnunet_pretrain"]["transfer"]["sha256"]) == 64
    for content in (plans, scratch):
        del content["nnunet_pretrain"]["transfer"], content["plans_name"]
    assert plans == scratch


def test_every_tensor_is_the_checkpoints_and_differs_from_scratch(pretrained, monkeypatch):
    transferred = transfer_trainer(pretrained, monkeypatch, "nnUNetTransferPlans_Merged")
    scratch = transfer_trainer(pretrained, monkeypatch, "nnUNetTransferPlans_Merged__scratch")
    weights = read_checkpoint(pretrained.checkpoint)["network_weights"]
    control = scratch.network.state_dict()
    report = json.loads((pretrained.root / "nnUNet_results/Dataset901_Target").glob(
        "nnUNetTrainerTransfer__nnUNetTransferPlans_Merged__3d_fullres/fold_0/transfer_report.json"
    ).__next__().read_text(encoding="utf-8"))  # fmt: skip
    assert {part: found["share_of_target"] for part, found in report["parts"].items()} == dict.fromkeys(PARTS, 1.0)
    assert report["ignored"] == []
    heads = {entry["name"] for entry in report["tensors"] if entry["status"] == "adapted"}
    loaded = {entry["name"] for entry in report["tensors"] if entry["status"] == "loaded"}
    assert loaded | heads == {name for name, _ in transferred.network.named_parameters()}
    assert heads == {name for name in loaded | heads if ".seg_layers." in name}
    labels = read_checkpoint(pretrained.checkpoint)["init_args"]["dataset_json"]["labels"]
    for name, tensor in transferred.network.state_dict().items():
        if ".seg_layers." in name:  # background, liver, kidneys
            assert torch.equal(tensor[1], weights[name][labels["liver"]]), name
            kidneys = weights[name][[labels["kidney_left"], labels["kidney_right"]]].mean(0)
            assert torch.allclose(tensor[2], kidneys + (math.log(2) if tensor.ndim == 1 else 0)), name
        else:
            assert torch.equal(tensor, weights[name]), name
        assert not torch.equal(tensor, control[name]), name


def test_transfer_trains_predicts_and_continues_without_the_source(pretrained, tmp_path):
    train = [sys.executable, "-c", SPAWNED_TRAINING, "901", "3d_fullres", "0", "-device", "cpu"]
    train += ["-tr", "nnUNetTrainerTransfer", "-p", "nnUNetTransferPlans_Merged"]
    first = run(train, pretrained.environment)
    assert re.search(r"encoder +\d+ +0 +0 +0 +100.0% +100.0%", first)
    hidden = pretrained.checkpoint.with_suffix(".hidden")
    pretrained.checkpoint.rename(hidden)
    try:
        again = run([*train, "--c"], pretrained.environment)
    finally:
        hidden.rename(pretrained.checkpoint)
    assert "the pre-trained weights are not loaded again" in again
    images = pretrained.root / "nnUNet_raw/Dataset901_Target/imagesTs"
    command = [script("nnUNetv2_predict"), "-i", images, "-o", tmp_path, "-d", "901", "-c", "3d_fullres", "-f", "0"]
    command += [
        "-tr",
        "nnUNetTrainerTransfer",
        "-p",
        "nnUNetTransferPlans_Merged",
        "-device",
        "cpu",
        "-npp",
        "1",
        "-nps",
        "1",
    ]
    run(command, pretrained.environment)
    assert [path.name for path in tmp_path.glob("*.nii.gz")] == ["case_0082.nii.gz"]


def test_a_changed_checkpoint_is_refused(pretrained, monkeypatch):
    from nnunet_pretrain.planning import TransferSettings

    trainer = transfer_trainer(pretrained, monkeypatch, "nnUNetTransferPlans_Merged__scratch")
    with pytest.raises(ValueError, match=r"has sha256 \w+, but the transfer was planned with abc"):
        trainer._load_pretrained(TransferSettings(checkpoint=str(pretrained.checkpoint), sha256="abc"))


def test_a_dataset_without_schemes_is_refused_before_training(pretrained, monkeypatch):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    for variable, value in pretrained.environment.items():
        monkeypatch.setenv(variable, value)
    plans = json.loads((pretrained.model / "plans.json").read_text(encoding="utf-8"))
    dataset_json = json.loads((pretrained.model / "dataset.json").read_text(encoding="utf-8"))
    del dataset_json["label_schemes"]
    trainer_class = recursive_find_trainer_class_by_name("nnUNetTrainerPretrain")
    trainer = trainer_class(
        {**plans, "continue_training": False, "plans_name": "Other"}, "3d_fullres", 0, dataset_json, torch.device("cpu")
    )
    with pytest.raises(
        ValueError, match="make the dataset with `nnunet_pretrain merge`, or train it with nnUNetTrainer"
    ):
        trainer.initialize()
    plans["nnunet_pretrain"]["training"]["epochs"] = 3
    with pytest.raises(ValueError, match=r"unknown key 'training.epochs'; the keys there are optimizer, initial_lr"):
        trainer_class(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
