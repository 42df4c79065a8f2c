"""Pre-training on natural images: what is drawn and held out, and short real trainings of both trainers."""

import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from natural_image_trees import save
from nnunet_runs import nnunet_folders, same, stop_at, variables_set
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ZScoreNormalization
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from small_photographs import (
    CLASSIFIER,
    LABELS,
    SEGMENTER,
    TEXTURES,
    always,
    log_of,
    planned,
    plans_with,
    trainer_of,
    write_shapes,
    write_textures,
)

from nnunet_pretrain.checkpoints.inspection import describe, read_card
from nnunet_pretrain.checkpoints.reading import read_checkpoint
from nnunet_pretrain.classification.resized_crops import ImageCrops
from nnunet_pretrain.conversion.natural_images.index import ImageIndex, NaturalImage
from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.training.natural_image_cases import CentredCases, FirstFailure
from nnunet_pretrain.training.original_images import OriginalImages

SHORT = {"num_epochs": 3, "num_iterations_per_epoch": 40, "num_val_iterations_per_epoch": 3}
BRIEF = {"num_epochs": 1, "num_iterations_per_epoch": 3, "num_val_iterations_per_epoch": 2}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Textures and shapes, each planned as originals and as volumes; the environment points to them."""
    root = tmp_path_factory.mktemp("vdt")
    with variables_set(nnunet_folders(root, nnUNet_n_proc_DA="0")):
        textures, shapes = write_textures(root / "textures", 96), write_shapes(root / "shapes", 30)
        plans = {
            "textures": planned(root, textures, 920, "classification", "originals", **SHORT),
            "texture volumes": planned(root, textures, 921, "classification", "volumes", **SHORT),
            "shapes": planned(root, shapes, 922, "segmentation", "originals", batch_size=4, **BRIEF),
            "shape volumes": planned(
                root, shapes, 923, "segmentation", "volumes", batch_size=4, **{**SHORT, "num_iterations_per_epoch": 25}
            ),
        }
        yield SimpleNamespace(root=root, plans=plans, textures=textures, shapes=shapes)


@pytest.fixture(scope="module")
def classified(photographs):
    """The trainer of a finished classification, validated."""
    trainer = trainer_of(920, CLASSIFIER, "nnUNetVDTPlans")
    trainer.run_training()
    trainer.perform_actual_validation()
    return trainer


def preprocessed(photographs, name):
    """Returns the folder of preprocessed cases that the plans name."""
    plans = read_json(photographs.plans[name])
    return photographs.plans[name].parent / plans["configurations"]["3d_fullres"]["data_identifier"]


def test_label_smoothing_is_the_published_formula(photographs):
    trainer = trainer_of(920, CLASSIFIER, "nnUNetVDTPlans")
    trainer.initialize()
    logits, truth = torch.randn(7, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    smoothed = 0.9 * torch.eye(4, dtype=torch.float64)[truth] + 0.1 / 4
    expected = -(smoothed * logits.log_softmax(1)).sum(1)
    assert trainer.loss(logits, truth).item() == pytest.approx(expected.mean().item())
    assert trainer.loss.label_smoothing == 0.1


def test_the_split_follows_the_data_the_settings_or_a_file(photographs, monkeypatch):
    base = photographs.plans["textures"].parent
    trainer = trainer_of(920, CLASSIFIER, "nnUNetVDTPlans")
    training, held_out = trainer.do_split()
    assert len(training) == 72
    assert Counter(case.partition("__")[0] for case in held_out) == dict.fromkeys(TEXTURES, 6)
    assert not set(training) & set(held_out)
    numbered = trainer_of(920, CLASSIFIER, "nnUNetVDTPlans", fold=2)
    assert len(numbered.do_split()[1]) == 19
    assert not (base / "splits_final.json").is_file()  # with a million images it would be large
    with pytest.raises(ValueError, match="choose one of 0 to 4"):
        trainer_of(920, CLASSIFIER, "nnUNetVDTPlans", fold=7).do_split()
    own = [{"train": training[:8], "val": held_out[:2]}]
    monkeypatch.setattr(numbered, "fold", 0)
    write_json(base / "splits_final.json", own)
    try:
        numbered.initialize()
        assert numbered.do_split() == (training[:8], held_out[:2])
    finally:
        (base / "splits_final.json").unlink()
    rows = [NaturalImage(f"c{i}", "", "dots", "val" if i % 3 == 0 else "train", 9, 9, 1.0, 1.0) for i in range(9)]
    split = trainer_of(920, CLASSIFIER, "nnUNetVDTPlans")
    monkeypatch.setattr(split, "index", ImageIndex.from_rows(rows))
    assert split.do_split()[1] == ["c0", "c3", "c6"]


def test_originals_have_the_values_and_labels_of_preprocessed_volumes(photographs):
    originals = OriginalImages(str(preprocessed(photographs, "shapes")))
    volumes = nnUNetDatasetBlosc2(str(preprocessed(photographs, "shape volumes")))
    assert originals.identifiers.tolist() == volumes.identifiers
    for case in volumes.identifiers[:6]:
        data, seg, previous, properties = originals.load_case(case)
        expected, expected_seg, _, expected_properties = volumes.load_case(case)
        np.testing.assert_allclose(data, expected[:], atol=1e-4)
        # nnU-Net marks what is black at the border by -1, and its augmentation turns that into 0.
        np.testing.assert_array_equal(seg, np.maximum(expected_seg[:], 0))
        assert previous is None
        assert data.dtype == np.float32
        rgb = originals.index.row(case)
        raw = data[0] * rgb.std + rgb.mean
        scheme = ZScoreNormalization(use_mask_for_norm=False, intensityproperties={})
        np.testing.assert_allclose(data[0], scheme.run(np.rint(raw)), atol=1e-4)
        for key in ("spacing", "shape_before_cropping", "shape_after_cropping_and_before_resampling", "sitk_stuff"):
            assert same(_plain(properties[key]), _plain(expected_properties[key])), key
        theirs = expected_properties["class_locations"]
        assert {k for k, v in theirs.items() if len(v)} == set(properties["class_locations"])
        for key, voxels in properties["class_locations"].items():
            found = seg[tuple(voxels.T)]
            assert np.isin(found, key).all()
            assert len(voxels) == np.isin(seg[0, 1], key).sum()


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [float(one) for one in value]


def test_crops_of_originals_and_of_volumes_are_the_same(photographs):
    failure = FirstFailure()
    originals = OriginalImages(str(preprocessed(photographs, "textures")))
    volumes = nnUNetDatasetBlosc2(str(preprocessed(photographs, "texture volumes")))
    for case in volumes.identifiers[::16]:
        for box in ((0, 0, 40, 48), (3, 5, 20, 30), (10, 4, 12, 7)):
            read = [ImageCrops(dataset, (3, 32, 32), lambda *_, b=box: b, failure) for dataset in (originals, volumes)]
            ours, theirs = (crops.image(case) for crops in read)
            assert ours.shape == theirs.shape == (1, 3, 32, 32)
            # Pillow rounds to whole grey levels, along each axis; torch does not.
            assert np.abs(ours - theirs).max() < 1.1 / originals.index.row(case).std


def test_a_patch_around_foreground_shows_all_three_slices(photographs):
    for name, cls in (("shape volumes", nnUNetDatasetBlosc2), ("shapes", OriginalImages)):
        cases = CentredCases(cls(str(preprocessed(photographs, name))), FirstFailure())
        manager = trainer_of(923, SEGMENTER, "nnUNetVDTPlans").label_manager
        loader = nnUNetDataLoader(cases, 4, (3, 32, 32), (3, 32, 32), manager, oversample_foreground_percent=1.0)
        for _ in range(5):
            for image in next(loader)["data"]:
                filled = [slice_.abs().sum() > 0 for slice_ in image[0]]
                assert all(filled)


@pytest.mark.parametrize("deep_supervision", [True, False])
@pytest.mark.parametrize(("dataset", "trainer"), [(920, CLASSIFIER), (922, SEGMENTER)])
def test_both_pipelines_run_at_depth_three_with_everything_switched_on(photographs, dataset, trainer, deep_supervision):
    name = {920: "textures", 922: "shapes"}[dataset]
    plans = plans_with(photographs.plans[name], f"deep{deep_supervision}", deep_supervision=deep_supervision, **BRIEF)
    made = trainer_of(dataset, trainer, plans)
    made.initialize()
    loader = made.get_dataloaders()[0].data_loader
    assert always(loader.transforms) >= (14 if trainer == SEGMENTER else 0)
    for _ in range(200 // loader.batch_size):
        batch = next(loader)
        assert batch["data"].shape[1:] == (1, 3, 32, 32)
        assert torch.isfinite(batch["data"]).all()
        if trainer == SEGMENTER:
            assert isinstance(batch["target"], list) == deep_supervision
            first = batch["target"][0] if deep_supervision else batch["target"]
            assert set(first.unique().tolist()) <= {0, 1, LABELS["ignore"]}
            assert first.shape[1:] == (1, 3, 32, 32)
        else:
            assert batch["target"].shape[1:] == (1, 1, 1, 1)


def test_classes_are_learned_and_scored_on_held_out_images(photographs, classified):
    summary = read_json(Path(classified.output_folder) / "validation/summary.json")
    assert summary["images"] == 24
    assert summary["metrics"]["top-1"]["value"] > 0.7  # chance: 0.25
    assert summary["metrics"]["top-1"]["low"] > 0.45
    assert summary["metrics"]["top-5"]["value"] == 1
    assert set(summary["per_class"]) == set(TEXTURES)
    logged = classified.logger.local_logger.my_fantastic_logging
    assert logged["mean_fg_dice"][-1] == summary["metrics"]["top-1"]["value"]  # the same 24 images
    assert logged["train_losses"][-1] < logged["train_losses"][0]
    text = log_of(classified)
    assert "96 original images under" in text
    assert "72 images to train on of 4 classes, 18 to 18 each" in text
    assert "960 images seen so far" in text
    assert "waiting for data: " in text
    assert "nnU-Net's log calls them Dice" in text
    card = read_checkpoint(Path(classified.output_folder) / "checkpoint_final.pth")
    own = card["init_args"]["nnunet_pretrain"]["card"]
    assert own["accuracy"]["top-1"] == logged["mean_fg_dice"][-1]
    assert own["validation"]["metrics"] == summary["metrics"]
    assert "validation     top-1" in describe(read_card(Path(classified.output_folder) / "checkpoint_final.pth"))


@pytest.mark.parametrize(("stop_after", "step"), [(57, "train_step"), (2, "validation_step")])
def test_an_interrupted_classification_continues_bit_for_bit(classified, tmp_path, monkeypatch, stop_after, step):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    first = trainer_of(920, CLASSIFIER, "nnUNetVDTPlans")
    stop_at(first, step, stop_after)
    with pytest.raises(SystemExit):
        first.run_training()
    again = trainer_of(920, CLASSIFIER, "nnUNetVDTPlans", resume=True)
    again.run_training()
    assert same(dict(again.network.state_dict()), dict(classified.network.state_dict()))
    ours, other = (t.logger.local_logger.my_fantastic_logging for t in (again, classified))
    assert all(same(ours[key], other[key]) for key in ("train_losses", "val_losses", "mean_fg_dice"))


def test_other_classes_are_not_continued(classified):
    checkpoint = read_checkpoint(Path(classified.output_folder) / "checkpoint_final.pth")
    checkpoint["init_args"]["plans"]["nnunet_pretrain"]["classification"]["classes"][0] = "spots"
    with pytest.raises(ValueError, match="was trained with the classes spots"):
        classified.check_continues(checkpoint, "it")


def test_masks_of_photographs_are_learned_from_volumes(photographs):
    trainer = trainer_of(923, SEGMENTER, "nnUNetVDTPlans")
    trainer.run_training()
    trainer.perform_actual_validation()
    summary = read_json(Path(trainer.output_folder) / "validation/summary.json")
    assert len(summary["metric_per_case"]) == 8
    assert summary["foreground_mean"]["Dice"] > 0.7
    assert "30 images, preprocessed." in log_of(trainer)


def test_the_grey_control_sees_grey_in_every_step_and_in_the_final_validation(photographs):
    trainer = trainer_of(922, SEGMENTER, "nnUNetVDTPlans__grey")
    seen = []
    trainer.initialize()
    trainer.network.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].detach().clone()))
    trainer.run_training()
    steps = len(seen)
    trainer.perform_actual_validation()
    assert steps == 5
    assert len(seen) > steps + 8  # mirrored
    for images in seen:
        torch.testing.assert_close(images[:, :, 0], images[:, :, 1])
        torch.testing.assert_close(images[:, :, 0], images[:, :, 2])
    assert np.isfinite(read_json(Path(trainer.output_folder) / "validation/summary.json")["foreground_mean"]["Dice"])
    assert "the luminance, three times" in log_of(trainer)


def test_the_grey_classifier_and_the_one_without_shuffling_train_on_volumes(photographs):
    grey, unshuffled = (trainer_of(921, CLASSIFIER, f"nnUNetVDTPlans__{arm}") for arm in ("grey", "unshuffled"))
    seen = {grey: [], unshuffled: []}
    for trainer in seen:
        trainer.num_epochs, trainer.num_iterations_per_epoch = 1, 2
        trainer.initialize()
        trainer.network.register_forward_hook(lambda _, inputs, __, t=trainer: seen[t].append(inputs[0].clone()))
        trainer.run_training()
        trainer.perform_actual_validation()
        assert len(seen[trainer]) == 2 + 3 + 3
    assert all(torch.equal(images[:, :, 0], images[:, :, 2]) for images in seen[grey])
    assert not any(torch.equal(images[:, :, 0], images[:, :, 2]) for images in seen[unshuffled])
    assert "always in the same order" in log_of(unshuffled)


def test_plans_of_another_task_or_kind_are_refused(photographs):
    with pytest.raises(ValueError, match=f"train with -tr {SEGMENTER}"):
        trainer_of(922, CLASSIFIER, "nnUNetVDTPlans").initialize()
    with pytest.raises(ValueError, match=f"train with -tr {CLASSIFIER}"):
        trainer_of(920, SEGMENTER, "nnUNetVDTPlans").initialize()
    plans = read_json(photographs.plans["shapes"])
    del plans["nnunet_pretrain"]["natural_images"]
    write_json(photographs.plans["shapes"].with_name("other.json"), {**plans, "plans_name": "other"})
    with pytest.raises(ValueError, match="are not for natural images"):
        trainer_of(922, SEGMENTER, "other").initialize()


def test_what_does_not_belong_together_is_found_before_the_first_step(photographs, tmp_path, monkeypatch):
    def refusal(change):
        trainer = trainer_of(920, CLASSIFIER, "nnUNetVDTPlans")
        change(trainer)
        with pytest.raises((ValueError, FileNotFoundError)) as found:
            trainer.run_training()
        return str(found.value)

    root = photographs.textures
    moved = root.with_name("moved")
    root.rename(moved)
    try:
        assert "the folder of the original images, does not exist here; mount it" in refusal(lambda trainer: None)
    finally:
        moved.rename(root)
    file = root / "dots/dots_001.png"
    file.rename(tmp_path / file.name)
    try:
        assert "1 of 96 files that were looked for do not exist, such as" in refusal(lambda trainer: None)
    finally:
        (tmp_path / file.name).rename(file)

    def other_storage(trainer):
        trainer.dataset_json["natural_images"]["storage"] = "volumes"

    assert "were made for other storage than dataset.json" in refusal(other_storage)

    def fewer(trainer):
        trainer.dataset_json["numTraining"] = 95

    assert "has 96 images, dataset.json 95 images" in refusal(fewer)


@pytest.mark.parametrize("processes", ["0", "2"])
def test_an_image_that_vanishes_or_changes_during_training_is_named(photographs, monkeypatch, processes):
    monkeypatch.setenv("nnUNet_n_proc_DA", processes)
    cases = [f"{name}__{name}_{number:03d}" for number, name in enumerate(TEXTURES)]
    folds = [{"train": cases, "val": cases[1:]}]
    plans = plans_with(photographs.plans["textures"], f"vanished{processes}", folds=folds)
    file, kept = photographs.textures / "cuts/cuts_000.png", photographs.root / "kept.png"
    trainer = trainer_of(920, CLASSIFIER, plans, fold=0)
    begin = trainer.on_train_epoch_start

    def spoil():
        shutil.move(file, kept)
        if processes == "2":
            save(file, np.zeros((30, 30, 3), np.uint8))
        begin()

    trainer.on_train_epoch_start = spoil
    try:
        with pytest.raises(ValueError, match=r"case 'cuts__cuts_000' could not be read: .*cuts_000\.png.*--c"):
            trainer.run_training()
    finally:
        shutil.move(kept, file)
