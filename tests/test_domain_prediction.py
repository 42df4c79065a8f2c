"""A real training of branches: with each exported one, stock nnU-Net predicts what the whole network did."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from nnunet_runs import DOMAINS, run, script

from nnunet_pretrain.checkpoints.inspection import describe, read_card
from nnunet_pretrain.folders import TRAINER_VARIABLE
from nnunet_pretrain.transfer.export import export

PLANS = "nnUNetDomainPlans"


@pytest.mark.slow
def test_stock_nnunet_predicts_with_each_branch_what_the_final_validation_predicted(domains, tmp_path):
    raw = domains.root / "nnUNet_raw/Dataset910_Many"
    cases = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))["dataset"]
    validation = domains.checkpoint.parent / "validation"
    predicted = {path.name.removesuffix(".nii.gz"): path for path in validation.glob("*.nii.gz")}
    assert {cases[case]["source"] for case in predicted} == set(DOMAINS)
    card = read_card(domains.checkpoint)
    assert set(card.domains) == set(card.validation["per_source"]) == set(DOMAINS)
    assert "Dataset007_MR, 3 cases, licence: not stated" in describe(card)
    for domain in ("Dataset003_CT", "Dataset007_MR"):
        lines = export(domains.checkpoint, tmp_path / "models", branch=domain)
        assert "clip --percentiles 0.5 99.5" in lines[-1]
        held_out = [case for case in predicted if cases[case]["source"] == domain]
        (tmp_path / domain).mkdir()
        for case in held_out:
            shutil.copyfile(raw / cases[case]["images"][0], tmp_path / domain / f"{case}_0000.nii.gz")
        model = tmp_path / f"models/{domain}/nnUNetTrainer__{PLANS}__3d_fullres"
        files = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
        assert files == {"plans.json", "dataset.json", "fold_all/checkpoint_final.pth"}
        out = tmp_path / f"{domain}_predicted"
        predict = [script("nnUNetv2_predict_from_modelfolder"), "-i", tmp_path / domain, "-o", out, "-m", model]
        environment = {**domains.environment, TRAINER_VARIABLE: ""}
        run([*predict, "-f", "all", "-device", "cpu", "-npp", "1", "-nps", "1"], environment)
        for case in held_out:
            wanted, found = nib.load(predicted[case]), nib.load(out / f"{case}.nii.gz")
            assert np.array_equal(np.asanyarray(found.dataobj), np.asanyarray(wanted.dataobj))
            assert np.array_equal(found.affine, wanted.affine)
            assert len(np.unique(np.asanyarray(found.dataobj))) > 1, "nothing predicted would compare nothing"
        written = torch.load(model / "fold_all/checkpoint_final.pth", weights_only=True)
        assert written["inference_allowed_mirroring_axes"] == (0,)
