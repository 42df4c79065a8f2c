"""Every kind of target, from plan_transfer over nnUNetv2_train to nnUNetv2_predict, with the stock commands."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nnunet_runs import SMALL, TARGET_LABELS, run, script, shorten

from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.phantom.datasets import write_phantom_target
from nnunet_pretrain.preprocessing.preprocess import preprocess
from nnunet_pretrain.transfer.plan_transfer import PlanOptions, plan_transfer

pytestmark = pytest.mark.slow


def change_json(raw, **entries):
    write_json(raw / "dataset.json", {**read_json(raw / "dataset.json"), **entries})


def change_labels(raw, change):
    for path in raw.glob("labels*/*.nii.gz"):
        label = nib.load(path)
        array = np.asanyarray(label.dataobj).copy()
        change(array)
        nib.save(nib.Nifti1Image(array, label.affine), path)


def two_channels(raw):
    for image in [*raw.glob("images*/*_0000.nii.gz")]:
        shutil.copyfile(image, image.with_name(image.name.replace("_0000", "_0001")))
    change_json(raw, channel_names={"0": "PET", "1": "CT"})


def regions(raw):
    change_json(
        raw,
        labels={"background": 0, "organs": [1, 2], "kidneys": [2]},
        regions_class_order=[1, 2],
    )


def ignore(raw):
    change_json(raw, labels={"background": 0, "liver": 1, "kidneys": 2, "ignore": 3})
    change_labels(raw, lambda array: array[: len(array) // 3].fill(3))


def preset(tmp_path, patch_size):
    tiny = json.loads((Path(__file__).parents[1] / "plans/tiny.json").read_text(encoding="utf-8"))
    tiny["network"]["patch_size"] = patch_size
    path = tmp_path / "own.json"
    path.write_text(json.dumps(tiny), encoding="utf-8")
    return str(path)


def two_channels_with_ignore(raw):
    two_channels(raw)
    ignore(raw)


KINDS = {
    "two channels ignore": {"change": two_channels_with_ignore, "adapted": {"image channels CT to PET, CT"}},
    "regions": {"change": regions},
    "single class anisotropic": {
        "labels": {"spleen": ("spleen",)},
        "spacing": (9.0, 9.0, 36.0),
        "keep": "target",
        "patch": [8, 32, 32],
        "adapted": {"kernel 3x3x3 to 1x3x3", "stride 2x2x2 to 1x2x2"},
    },
    "deeper": {"keep": "target", "patch": [32, 64, 64], "initialised": {"the checkpoint's network is less deep"}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_trains_and_predicts(pretrained, monkeypatch, tmp_path, kind):
    chosen = KINDS[kind]
    for variable, value in pretrained.environment.items():
        monkeypatch.setenv(variable, value)
    number = 910 + list(KINDS).index(kind)
    name = f"Dataset{number}_{kind.title().replace(' ', '')}"
    raw = pretrained.root / "nnUNet_raw" / name
    spacing = {"spacing_mm": chosen.get("spacing", SMALL["spacing_mm"])}
    write_phantom_target(raw, chosen.get("labels", TARGET_LABELS), [80], [81], [82], **spacing)
    chosen.get("change", lambda raw: None)(raw)
    planned = plan_transfer(
        PlanOptions(
            dataset=number,
            checkpoint=pretrained.checkpoint,
            keep=chosen.get("keep", "pretrained"),
            preset=preset(tmp_path, chosen["patch"]) if "patch" in chosen else None,
            num_processes=1,
        )
    )
    adapted = {rule for t in planned.report.tensors if t.part != "heads" for rule in t.reason.split("; ")}
    assert chosen.get("adapted", set()) <= adapted
    assert {t.reason.partition(",")[0] for t in planned.report.tensors if t.status == "initialised"} == chosen.get(
        "initialised", set()
    )
    shorten(planned.transfer, num_iterations_per_epoch=2, num_val_iterations_per_epoch=1)
    preprocess(number, planned.transfer.stem, [planned.configuration], "cpu", 1, False)
    environment = {**pretrained.environment, "nnUNet_n_proc_DA": "0"}
    model = ["-tr", "nnUNetTrainerTransfer", "-p", planned.transfer.stem]
    log = run([script("nnUNetv2_train"), number, "3d_fullres", "0", "-device", "cpu", *model], environment)
    assert "Transfer report:" in log
    predict = [script("nnUNetv2_predict"), "-i", raw / "imagesTs", "-o", tmp_path / "out", "-d", number, *model]
    run([*predict, "-c", "3d_fullres", "-f", "0", "-device", "cpu", "-npp", "1", "-nps", "1"], environment)
    image, prediction = (nib.load(next(f.glob("*.nii.gz"))) for f in (raw / "imagesTs", tmp_path / "out"))
    assert prediction.shape == image.shape
    assert np.asanyarray(prediction.dataobj).max() <= len(chosen.get("labels", TARGET_LABELS))
