"""From photographs to a prediction on a 3D target, by a user's commands; the networks are tiny and learn nothing.

The target is anisotropic, and its coarse axis is the last one of its images.
"""

import json
import sys
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from nnunet_runs import SPAWNED_TRAINING, nnunet_folders, run, script, shorten, variables_set

from nnunet_pretrain.checkpoints.reading import read_checkpoint
from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.networks.parts import unaliased
from nnunet_pretrain.phantom.coloured_shapes import write_coloured_shapes
from nnunet_pretrain.phantom.domains import write_phantom_domain
from nnunet_pretrain.planning.plan import extract_fingerprint, planned_by_preset
from nnunet_pretrain.planning.preset import load_preset

pytestmark = pytest.mark.slow

TARGET = "Dataset027_Target"
LABELS = {"liver": ("liver", "liver_tumor", "hepatic_vessel"), "spleen": ("spleen",)}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A segmentation of shapes, pre-trained for a planned target, and the transfer of its network."""
    root = tmp_path_factory.mktemp("shapes")
    environment = nnunet_folders(root)
    ours = script("nnunet_pretrain")
    write_phantom_domain(root / "nnUNet_raw" / TARGET, "t1", LABELS, range(4), [4], [5], spacing_mm=(14.0, 9.0, 9.0))
    plans = root / "nnUNet_preprocessed" / TARGET / "nnUNetPlans.json"
    with variables_set(environment):
        extract_fingerprint(TARGET, 1)
        write_json(plans, planned_by_preset(TARGET, load_preset("tiny"), "nnUNetPlans"))
    write_coloured_shapes(root / "images", "segmentation", 10, 48)
    made = ["-d", "920", "-n", "Shapes", "--task", "segmentation", "--storage", "originals"]
    run([ours, "convert_2d", root / "images", *made, "--labels", root / "images/labels.json"], environment)
    run([ours, "plan_2d", "-d", "920", "--target-plans", "27", "--preset", "tiny"], environment)
    shorten(root / "nnUNet_preprocessed/Dataset920_Shapes/nnUNetVDTPlans.json", warmup_epochs=0, val_share=0.2)
    train = [sys.executable, "-c", SPAWNED_TRAINING, "-device", "cpu"]
    log = run(
        [*train, "920", "3d_fullres", "all", "-tr", "nnUNetTrainerVDTSegmentation", "-p", "nnUNetVDTPlans"], environment
    )
    model = root / "nnUNet_results/Dataset920_Shapes/nnUNetTrainerVDTSegmentation__nnUNetVDTPlans__3d_fullres"
    checkpoint = model / "fold_all/checkpoint_final.pth"
    wanted = ["-d", "27", "-c", checkpoint, "--write-weights", root / "stock.pth"]
    planned = run([ours, "plan_transfer", *wanted], environment)
    for name in ("nnUNetTransferPlans_Shapes", "nnUNetTransferPlans_Shapes__scratch"):
        shorten(plans.with_name(f"{name}.json"), num_epochs=1, warmup_epochs=0)
    run([ours, "preprocess", "-d", "27", "-p", "nnUNetTransferPlans_Shapes"], environment)
    return SimpleNamespace(
        root=root, environment=environment, train=train, log=log, checkpoint=checkpoint, planned=planned, plans=plans
    )


def encoder_of(path):
    weights = read_checkpoint(path)["network_weights"]
    return {unaliased(name): tensor for name, tensor in weights.items() if name.startswith("encoder.")}


def test_the_target_is_what_makes_it_hard(shapes):
    planned = read_json(shapes.plans)
    assert planned["transpose_forward"] == [2, 0, 1]
    strides = planned["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["strides"]
    assert len({stride[0] for stride in strides}) == 2  # some along depth, some not
    natural = read_json(shapes.checkpoint.parents[1] / "plans.json")["configurations"]["3d_fullres"]
    assert [stride[1:] for stride in natural["architecture"]["arch_kwargs"]["strides"]] == [s[1:] for s in strides]
    assert {stride[0] for stride in natural["architecture"]["arch_kwargs"]["strides"]} == {1}


def test_the_pretraining_ends_with_stock_nnunets_validation_of_originals(shapes):
    summary = read_json(shapes.checkpoint.parent / "validation/summary.json")
    assert len(summary["metric_per_case"]) == 2
    predicted = sorted((shapes.checkpoint.parent / "validation").glob("*.nii.gz"))
    assert [nib.load(path).shape for path in predicted] == [(48, 48, 3)] * 2
    assert "waiting for data" in shapes.log


def test_the_transfer_takes_the_plans_the_network_was_made_for(shapes):
    assert "nnUNetPlans" in shapes.planned
    transfer = read_json(shapes.plans.with_name("nnUNetTransferPlans_Shapes.json"))
    own, stock = transfer["configurations"]["3d_fullres"], read_json(shapes.plans)["configurations"]["3d_fullres"]
    assert own["architecture"]["arch_kwargs"]["strides"] == stock["architecture"]["arch_kwargs"]["strides"]
    assert (own["spacing"], own["patch_size"]) == (stock["spacing"], stock["patch_size"])
    assert own["normalization_schemes"] == stock["normalization_schemes"]


def test_the_file_for_stock_nnunet_has_the_encoder_to_the_bit_and_is_trained_from(shapes):
    content = torch.load(shapes.root / "stock.pth", weights_only=False)["network_weights"]
    written = {unaliased(name): tensor for name, tensor in content.items() if name.startswith("encoder.")}
    learned = encoder_of(shapes.checkpoint)
    assert written.keys() == learned.keys()
    assert all(torch.equal(written[name], learned[name]) for name in learned)
    stock = [
        "import torch, sys",
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer",
        "from nnunetv2.run.run_training import get_trainer_from_args",
        "from nnunetv2.run.load_pretrained_weights import load_pretrained_weights",
        "name = 'nnUNetTransferPlans_Shapes__scratch'",
        "trainer = get_trainer_from_args('27', '3d_fullres', 0, 'nnUNetTrainer', name, device=torch.device('cpu'))",
        "trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 2, 1",
        "trainer.initialize()",
        "load_pretrained_weights(trainer.network, sys.argv[1])",
        "trainer.run_training()",
    ]
    log = run([sys.executable, "-c", "; ".join(stock), shapes.root / "stock.pth"], shapes.environment)
    assert "Training done." in log


def test_the_target_is_trained_and_predicted(shapes):
    command = [*shapes.train, "27", "3d_fullres", "0", "-tr", "nnUNetTrainerTransfer"]
    log = run([*command, "-p", "nnUNetTransferPlans_Shapes"], shapes.environment)
    assert "Transfer report:" in log
    model = shapes.root / f"nnUNet_results/{TARGET}/nnUNetTrainerTransfer__nnUNetTransferPlans_Shapes__3d_fullres"
    report = json.loads((model / "fold_0/transfer_report.json").read_text(encoding="utf-8"))
    of_encoder = {entry["status"] for entry in report["tensors"] if entry["part"] == "encoder"}
    assert of_encoder == {"loaded"}
    inflated = [entry for entry in report["tensors"] if ".transpconvs." in entry["name"] and entry["reason"]]
    assert any("stride 1x2x2 to 2x2x2" in entry["reason"] for entry in inflated)
    images = shapes.root / "nnUNet_raw" / TARGET / "imagesTs"
    predict = [script("nnUNetv2_predict"), "-i", images, "-o", shapes.root / "out", "-d", "27", "-c", "3d_fullres"]
    chosen = ["-f", "0", "-tr", "nnUNetTrainerTransfer", "-p", "nnUNetTransferPlans_Shapes"]
    run([*predict, *chosen, "-device", "cpu", "-npp", "1", "-nps", "1"], shapes.environment)
    [image] = images.glob("*_0000.nii.gz")
    [found] = (shapes.root / "out").glob("*.nii.gz")
    assert nib.load(found).shape == nib.load(image).shape
    np.testing.assert_allclose(nib.load(found).affine, nib.load(image).affine, atol=1e-4)
