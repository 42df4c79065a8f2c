"""From natural images to 3D targets: the encoder to the bit, the decoder exactly, and the target's own plans."""

import shutil

import pytest
import torch
from classification_targets import write_target
from natural_datasets import (
    NARROW,
    STRIDES,
    TARGET,
    natural_checkpoint,
    target_architecture,
    write_natural_images,
    write_target_plans,
)
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from small_checkpoints import INTENSITY, bits, same_weights
from torch import nn
from torch.nn import functional

from nnunet_pretrain.checkpoints.branches import ordinary
from nnunet_pretrain.checkpoints.inspection import describe, read_card
from nnunet_pretrain.checkpoints.natural_images import natural_images_of
from nnunet_pretrain.checkpoints.pretrained import read_pretrained
from nnunet_pretrain.cli import main
from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.networks.planned import planned_network
from nnunet_pretrain.planning.settings import TransferSettings
from nnunet_pretrain.transfer.export import export
from nnunet_pretrain.transfer.plan_transfer import PlanOptions, plan_transfer
from nnunet_pretrain.transfer.pretrained_network import facts_of, pretrained_network
from nnunet_pretrain.transfer.weights import transfer_weights

TARGET_LABELS = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "nodule": 1, "vessel": 2}}
TARGETS = [
    ("segmentation", "isotropic", (0, 1, 2)),
    ("segmentation", "mixed", (2, 0, 1)),
    ("segmentation", "flat", (1, 0, 2)),
    ("segmentation", "along depth only", (2, 0, 1)),
    ("classification", "isotropic", (1, 0, 2)),
]
TWO_CHANNELS = {
    "channel_names": {"0": "CT", "1": "PET"},
    "labels": {"background": 0, "nodule": 1, "vessel": 2, "bone": 3},
}


def planned_checkpoint(root, architecture, task="segmentation", transpose=(0, 1, 2), **options):
    """Writes a target's plans, and a checkpoint of natural images with its network; returns that and the plans."""
    path = write_target_plans(root, architecture, transpose)
    write_natural_images(root, task, "volumes")
    return natural_checkpoint(root, preset="tiny", **options), read_json(path)


def transferred(file, plans, **settings):
    """Loads a checkpoint into a newly drawn network of the target; returns both networks and the report."""
    content = read_pretrained(file)
    arguments = content["init_args"]
    architecture = arguments["plans"]["configurations"]["3d_fullres"]["architecture"]
    old = planned_network(architecture, 1, len(arguments["dataset_json"]["labels"]))
    old.load_state_dict(content["network_weights"])
    target = facts_of(plans, "3d_fullres", TARGET_LABELS)
    torch.manual_seed(5)
    new = target.build(initialise=True)
    source = pretrained_network(ordinary(content), plans["transpose_forward"])
    return old, new, transfer_weights(new, target, source, TransferSettings(**settings))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("task", "strides", "transpose"), TARGETS)
def test_the_encoder_is_loaded_to_the_bit_whatever_the_targets_strides_and_axes(
    nnunet, residual, task, strides, transpose
):
    file, plans = planned_checkpoint(nnunet, target_architecture(residual, strides), task, transpose)
    old, new, report = transferred(file, plans, parts="encoder" if task == "classification" else "all")
    mine = {t.name: t.source for t in report.tensors if t.part == "encoder"}
    assert {t.status for t in report.tensors if t.part == "encoder"} == {"loaded"}
    weights = dict(old.named_parameters())
    assert {bits(weights[source]) == bits(new.get_parameter(name)) for name, source in mine.items()} == {True}
    assert set(mine.values()) == {name for name, _ in old.named_parameters() if name.startswith("encoder.")}
    turned = any("kernels were not turned" in note for note in report.notes)
    assert turned == (transpose != (0, 1, 2))
    if strides != "along depth only":  # there a residual block's projection has another number
        new.encoder.load_state_dict(old.encoder.state_dict(), strict=True)
    with torch.no_grad():
        for depth in (3, 16, 48):
            assert all(torch.isfinite(skip).all() for skip in new.encoder(torch.randn(1, 1, depth, 16, 16)))
        for depth in (16, 48):
            assert new(torch.randn(1, 1, depth, 16, 16)).shape == (1, 3, depth, 16, 16)


def test_on_three_slices_the_encoder_computes_what_it_learned(nnunet):
    file, plans = planned_checkpoint(nnunet, target_architecture(strides="flat"), "classification")
    old, new, _ = transferred(file, plans, parts="encoder")
    image = torch.randn(1, 1, 3, 32, 32)
    for wanted, found in zip(old.encoder(image), new.encoder(image), strict=True):
        assert torch.equal(wanted, found)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("strides", ["isotropic", "mixed", "flat"])
def test_the_decoder_is_inflated_so_that_its_outputs_repeat_along_depth(nnunet, strides, residual):
    file, plans = planned_checkpoint(nnunet, target_architecture(residual, strides))
    old, new, report = transferred(file, plans)
    assert report.share("decoder") == report.used_share("decoder") == 1
    for level, (before, after) in enumerate(zip(old.decoder.transpconvs, new.decoder.transpconvs, strict=True)):
        image = torch.randn(1, before.in_channels, 3, 4, 4)
        depth = STRIDES[strides][-1 - level][0]
        assert torch.equal(after(image), before(image).repeat_interleave(depth, 2))
    for before, after in zip(old.decoder.stages, new.decoder.stages, strict=True):
        assert same_weights(before.state_dict(), after.state_dict())
    adapted = {t.name for t in report.tensors if t.status == "adapted" and t.part == "decoder"}
    assert len(adapted) == sum(stride[0] > 1 for stride in STRIDES[strides])


def test_full_kernels_become_the_targets_exactly_for_images_constant_along_depth(nnunet):
    file, plans = planned_checkpoint(nnunet, target_architecture(kernels=NARROW), full_kernels=True)
    old, new, report = transferred(file, plans)
    collapsed = [t.name for t in report.tensors if "kernel 3x3x3 to 1x3x3" in t.reason]
    assert any(name.startswith("encoder.") for name in collapsed)
    assert any(name.startswith("decoder.") for name in collapsed)
    for name in collapsed:
        before, after = old.get_parameter(name), new.get_parameter(name)
        image = torch.randn(1, before.shape[1], 1, 8, 8).expand(-1, -1, 5, -1, -1)
        wanted = functional.conv3d(image.double(), before.double())
        found = functional.conv3d(image.double(), after.double())
        assert torch.allclose(found[:, :, 1:4], wanted, atol=1e-6)
    for network in (old, new):  # the norms' statistics would see the border
        for module in network.modules():
            if isinstance(module, nn.InstanceNorm3d):
                module.register_forward_hook(lambda _, inputs, output: inputs[0])
    image = torch.randn(1, 1, 1, 16, 16).expand(-1, -1, 12, -1, -1)
    wanted, found = (network.encoder.stages[0](image)[:, :, 4:8] for network in (old, new))
    assert torch.allclose(wanted, found, rtol=1e-4, atol=1e-5 * float(wanted.detach().abs().max()))


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A raw target of five small CT images, whose axes its plans put in another order."""
    root = tmp_path_factory.mktemp("vdt")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (root / variable).mkdir()
            patch.setenv(variable, str(root / variable))
        raw = root / "nnUNet_raw" / TARGET
        write_target(raw, 5)
        for image in sorted((raw / "imagesTr").iterdir()):
            shutil.copyfile(image, str(image).replace("_0000", "_0001"))
        write_json(raw / "dataset.json", {**read_json(raw / "dataset.json"), **TWO_CHANNELS})
        stock = write_target_plans(root, target_architecture(True, "isotropic"), (2, 0, 1))
        plans = read_json(stock)
        two = {"normalization_schemes": ["CTNormalization"] * 2, "use_mask_for_norm": [False] * 2}
        plans["configurations"]["3d_fullres"].update(two)
        plans["foreground_intensity_properties_per_channel"]["1"] = dict(INTENSITY)
        write_json(stock, plans)
        yield root


def options(file, **further):
    return PlanOptions(27, file, num_processes=1, preset="tiny", **further)


def test_the_target_keeps_the_plans_the_network_was_made_for(target):
    write_natural_images(target, "classification")
    file, lines = natural_checkpoint(target), []
    planned = plan_transfer(options(file), lines.append)
    stock, plans = (read_json(planned.transfer.with_name(name)) for name in ("nnUNetPlans.json", planned.transfer.name))
    wanted, found = (p["configurations"]["3d_fullres"] for p in (stock, plans))
    assert {key for key in wanted if found[key] != wanted[key]} == {"data_identifier"}
    for key in ("transpose_forward", "image_reader_writer", "foreground_intensity_properties_per_channel"):
        assert plans[key] == stock[key]
    settings = plans["nnunet_pretrain"]
    assert (settings["transfer"]["parts"], settings["preset"]) == ("encoder", "tiny")
    assert "natural_images" not in settings
    assert planned.report.share("encoder") == planned.report.used_share("encoder") == 1
    assert planned.comparison.recommended == "target"
    said = "\n".join(lines)
    assert "note: the checkpoint classifies: only its encoder is taken" in said
    assert "note: the target is planned as nnUNetPlans, 3d_fullres, of Dataset027_Target" in said
    assert "it saw natural images only" in said
    assert "kernels were not turned" in said


def test_the_photographs_plan_is_never_kept(target, capsys):
    write_natural_images(target, "classification")
    file = natural_checkpoint(target)
    assert main(["plan_transfer", "-d", "27", "-c", str(file), "--keep", "pretrained"]) == 2
    assert "are those of photographs; plan with --keep target" in capsys.readouterr().err


@pytest.mark.parametrize("wanted", [{"keep": "pretrained"}, {}, {"heads": {"nodule": ("cat",)}}])
def test_what_does_not_go_together_is_refused(target, wanted):
    write_natural_images(target, "classification")
    file = natural_checkpoint(target)
    other = write_target_plans(target, name="nnUNetOtherPlans", dataset_name="Dataset028_Other")
    plans = {} if "heads" in wanted else {"target_plans": other}
    try:
        with pytest.raises(
            ValueError, match=r"are those of photographs|but the target is Dataset027_Target|has no heads"
        ):
            plan_transfer(options(file, **wanted, **plans))
    finally:
        other.unlink()


def test_without_those_plans_nnunet_plans_the_target_anew(target):
    write_natural_images(target, "segmentation", "volumes")
    file, lines = natural_checkpoint(target), []
    stock = target / f"nnUNet_preprocessed/{TARGET}/nnUNetPlans.json"
    content = stock.read_text(encoding="utf-8")
    stock.unlink()
    try:
        planned = plan_transfer(options(file, name="anew"), lines.append)
    finally:
        stock.write_text(content, encoding="utf-8")
    assert any("is not there; the target is planned anew" in line for line in lines)
    plans = read_json(planned.transfer)
    chosen = plans["configurations"]["3d_fullres"]
    assert chosen["normalization_schemes"] == ["CTNormalization", "ZScoreNormalization"]
    assert max(stride[0] for stride in chosen["architecture"]["arch_kwargs"]["strides"]) > 1
    assert plans["image_reader_writer"] == "SimpleITKIO"
    assert planned.report.share("encoder") > 0


def test_stock_nnunet_loads_what_is_written_for_other_classes_and_channels(target, tmp_path):
    write_natural_images(target, "segmentation", "volumes")
    file = natural_checkpoint(target)
    planned = plan_transfer(options(file, name="stock", weights=tmp_path / "stock.pth"))
    assert planned.report.share("decoder") == 1
    network = planned_network(target_architecture(True, "isotropic"), 2, 4, initialise=True)
    load_pretrained_weights(network, str(tmp_path / "stock.pth"))
    weights = read_pretrained(file)["network_weights"]
    stem = "encoder.stem.convs.0.conv.weight"
    for name, tensor in network.named_parameters():
        if name.startswith(("encoder.", "decoder.stages.")) and name != stem:
            assert bits(tensor) == bits(weights[name]), name
    image = torch.randn(1, 1, 8, 8, 8)
    both = functional.conv3d(image.expand(1, 2, 8, 8, 8), network.get_parameter(stem))
    assert torch.allclose(both, functional.conv3d(image, weights[stem]), atol=1e-5)


def test_a_classifier_of_photographs_is_still_known_when_only_its_encoder_is_left(nnunet, tmp_path):
    file, plans = planned_checkpoint(nnunet, target_architecture(), "classification")
    export(file, tmp_path / "photos.safetensors")
    for path in (file, tmp_path / "photos.safetensors"):
        content = read_pretrained(path)
        found = natural_images_of(ordinary(content))
        assert found is not None
        assert (found.task, found.target) == ("classification", (TARGET, "nnUNetPlans", "3d_fullres"))
    _, _, report = transferred(tmp_path / "photos.safetensors", plans, parts="encoder")
    assert report.share("encoder") == 1


def test_inspect_says_what_the_network_has_seen(nnunet):
    file, _ = planned_checkpoint(nnunet, target_architecture(), "classification")
    said = describe(read_card(file))
    assert "trained on     natural images, classification, read from volumes; slices: red, green and blue, in" in said
    assert "random order\n                 with the network of nnUNetPlans, 3d_fullres, of Dataset027_Target" in said
    content = torch.load(file, weights_only=True)
    content["init_args"]["plans"]["nnunet_pretrain"]["natural_images"].update(slices="grey", shuffle_depth=False)
    labels = {"background": 0, **{f"class{i}": i for i in range(1, 1001)}}
    content["init_args"]["dataset_json"]["labels"] = labels
    torch.save(content, file)
    said = describe(read_card(file))
    assert "slices: grey repeated three times, in this order" in said
    assert "9 class9, ... (1001 in all)" in said
    content["init_args"]["plans"]["nnunet_pretrain"]["natural_images"]["slices"] = "infrared"
    torch.save(content, file)
    with pytest.raises(ValueError, match=r"natural_images.*slices.*infrared"):
        describe(read_card(file))
