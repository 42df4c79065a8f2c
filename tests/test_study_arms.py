"""Arms of a study that start from another checkpoint: what they take, what is refused, and what is excluded."""

import shutil

import pytest
import torch
from classification_targets import write_target
from natural_datasets import (
    TARGET,
    natural_checkpoint,
    target_architecture,
    write_natural_images,
    write_target_plans,
)

from nnunet_pretrain.checkpoints.pretrained import read_pretrained
from nnunet_pretrain.conversion.fingerprint import read_fingerprint
from nnunet_pretrain.files import read_json, sha256_of, write_json
from nnunet_pretrain.planning.settings import PretrainSettings, TransferSettings
from nnunet_pretrain.study import StudyOptions, run_study
from nnunet_pretrain.study.arms import find_arm, settings_of
from nnunet_pretrain.study.bases import Base
from nnunet_pretrain.study.checkpoints import leaked_in, read_checkpoints, with_checkpoints

NAME = "nnUNetTransferPlans_study"


@pytest.fixture
def study(nnunet):
    """A study's base on a small target, planned from a checkpoint of masks of natural images, and that checkpoint."""
    stock = write_target_plans(nnunet)
    write_target(nnunet / "nnUNet_raw" / TARGET, 2)
    folder = nnunet / "nnUNet_preprocessed" / TARGET
    shutil.copyfile(nnunet / f"nnUNet_raw/{TARGET}/dataset.json", folder / "dataset.json")
    write_natural_images(nnunet, "segmentation", "volumes")
    first = natural_checkpoint(nnunet, preset="tiny")
    start = TransferSettings(checkpoint=str(first), sha256=sha256_of(first), heads={"background": ("background",)})
    plans = {
        **read_json(stock),
        "nnunet_pretrain": PretrainSettings(transfer=start).model_dump(mode="json", exclude_none=True),
    }
    write_json(folder / f"{NAME}.json", plans)
    options = StudyOptions(27, first, num_processes=1)
    return {"pretrained": Base(NAME, f"{NAME}__scratch", "3d_fullres")}, options, nnunet


def started(study, *texts):
    """Returns the arms with what they start from, and what was said of them."""
    bases, options, _ = study
    lines, arms = [], [find_arm(text) for text in texts]
    return with_checkpoints(arms, read_checkpoints(arms), bases, options, TARGET, lines.append), lines


def test_an_arm_starts_from_its_own_checkpoint_and_differs_in_nothing_else(study):
    bases, options, root = study
    grey = natural_checkpoint(root, seed=4, preset="tiny")
    (pretrained, own), lines = started(study, "pretrained", f"grey={grey}")
    plans = bases["pretrained"].plans_of(own, TARGET)
    first, second = (settings_of(arm, plans) for arm in (pretrained, own))
    assert (own.name, own.scratch, own.keep, own.stock_weights) == ("grey", False, "pretrained", False)
    assert second.transfer.checkpoint == str(grey)
    assert second.transfer.sha256 == sha256_of(grey) != first.transfer.sha256 == sha256_of(options.checkpoint)
    same = {"checkpoint": first.transfer.checkpoint, "sha256": first.transfer.sha256}
    assert second.model_copy(update={"transfer": second.transfer.model_copy(update=same)}) == first
    assert lines == [f"arm 'grey' starts from {grey}: encoder and decoder, 100.0% of the former"]


def test_a_classifier_gives_its_encoder_beside_a_whole_network(study):
    bases, _, root = study
    write_natural_images(root, "classification", "volumes")
    classifier = natural_checkpoint(root, seed=5, preset="tiny")
    (arm,), lines = started(study, f"classes={classifier}")
    transfer = settings_of(arm, bases["pretrained"].plans_of(arm, TARGET)).transfer
    assert (transfer.parts, transfer.heads) == ("encoder", {})
    assert "the encoder, 100.0%" in lines[0]


def test_a_changed_file_is_another_arm(study):
    bases, _, root = study
    file = natural_checkpoint(root, seed=4, preset="tiny")

    def settings():
        (arm,), _ = started(study, f"grey={file}")
        return settings_of(arm, bases["pretrained"].plans_of(arm, TARGET)).transfer

    before = settings()
    assert settings() == before
    shutil.copyfile(natural_checkpoint(root, seed=6, preset="tiny"), file)
    assert settings().sha256 != before.sha256


def test_checkpoints_that_cannot_be_used_are_refused_by_name(study, tmp_path):
    _, _, root = study
    with pytest.raises(FileNotFoundError, match=r"arm 'grey': checkpoint .*none.pth not found"):
        started(study, f"grey={tmp_path / 'none.pth'}")
    (tmp_path / "text.pth").write_text("no checkpoint", encoding="utf-8")
    with pytest.raises(ValueError, match=r"text.pth"):
        started(study, f"grey={tmp_path / 'text.pth'}")
    write_target_plans(root, target_architecture(residual=True))
    residual = natural_checkpoint(root, seed=7, preset="tiny")
    with pytest.raises(ValueError, match=r"arm 'grey': the checkpoint's network is a ResidualEncoderUNet"):
        started(study, f"grey={residual}")
    wide = target_architecture()
    wide["arch_kwargs"]["features_per_stage"] = [8, 16, 16]
    write_target_plans(root, wide)
    with pytest.raises(ValueError, match=r"arm 'grey': 0.0% of the target's encoder"):
        started(study, f"grey={natural_checkpoint(root, seed=8, preset='tiny')}")
    with pytest.raises(ValueError, match="choose another name"):
        find_arm(f"scratch={residual}")


def test_cases_that_an_arms_checkpoint_has_seen_are_named(study, tmp_path):
    _, _, root = study
    image = root / "nnUNet_raw" / TARGET / "imagesTr/case_01_0000.nii.gz"
    content = torch.load(natural_checkpoint(root, seed=4, preset="tiny"), weights_only=True)
    card = {"fingerprints": {"theirs": read_fingerprint(image).as_dict()}}
    content["init_args"]["nnunet_pretrain"] = {"card": card}
    content["init_args"]["dataset_json"]["numTraining"] = 1
    torch.save(content, tmp_path / "seen.pth")
    lines = []
    own = {"seen": read_pretrained(tmp_path / "seen.pth"), "first": read_pretrained(study[1].checkpoint)}
    assert leaked_in(own, TARGET, 1, lines.append) == {"case_01"}
    assert lines[0].startswith("arm 'seen': WARNING, leakage: 1 training cases")
    assert "natural images only" in lines[1]


def test_nnunets_own_loader_is_refused_for_natural_images_before_anything_is_planned(study):
    _, options, root = study
    with pytest.raises(ValueError, match=r"arm 'stock-weights': .* no strides along depth"):
        run_study(StudyOptions(27, options.checkpoint, arms=("stock-weights",), device="cpu", out=root / "out"))
    assert not (root / "out").exists()
