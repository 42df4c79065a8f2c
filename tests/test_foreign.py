"""Recognition of checkpoints by content, key tables both ways, cards of converted files, refusals."""

import pytest
import torch
from foreign_networks import (
    ISOTROPIC,
    SMALL_STUNET,
    built,
    origin_of,
    plain_unet,
    saved,
    suprem_checkpoint,
    v1_file,
    v1_model,
    v2_checkpoint,
    wrapped,
)
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_pretrain.checkpoints.foreign.key_table import KeyTable
from nnunet_pretrain.checkpoints.inspection import describe, read_card
from nnunet_pretrain.checkpoints.pretrained import read_pretrained
from nnunet_pretrain.checkpoints.safetensors_file import write_safetensors
from nnunet_pretrain.networks.stunet import STUNet


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_nnunet_v2_is_returned_as_it_is_but_for_the_prefixes_of_wrappers(tmp_path, prefix):
    architecture = plain_unet()
    weights = get_network_from_plans(*architecture.values(), 1, 2, deep_supervision=True).state_dict()
    dataset_json = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}}
    content = v2_checkpoint(wrapped(weights, prefix), architecture, dataset_json, "nnUNetTrainer_myOwn")
    checkpoint = read_pretrained(saved(tmp_path / "c.pth", content))
    assert list(checkpoint["network_weights"]) == list(weights)
    assert {k: v for k, v in checkpoint.items() if k != "network_weights"} == {
        k: v for k, v in content.items() if k != "network_weights"
    }
    built(checkpoint)
    card = read_card(tmp_path / "c.pth")
    assert (card.origin, card.spacing_mm, card.epoch, card.trainer) == ({}, (1.0, 1.0, 1.0), 7, "nnUNetTrainer_myOwn")
    assert "converted" not in describe(card)


def test_a_converted_checkpoint_survives_export_to_safetensors_and_is_recognised_there(tmp_path):
    network, path = v1_file(tmp_path, ISOTROPIC)
    checkpoint = read_pretrained(path)
    write_safetensors(tmp_path / "another.name", checkpoint)
    again = read_pretrained(tmp_path / "another.name")
    assert origin_of(again) == origin_of(checkpoint)
    image = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(built(again)(image)[0], network(image)[0], rtol=0, atol=1e-6)


def test_unknown_files_are_refused_and_the_error_says_what_they_hold(tmp_path):
    weights = {"features.0.weight": torch.zeros(2), "features.0.bias": torch.zeros(2)}
    for content, message in (
        (
            {"state_dict": weights, "hyper": 1},
            r"top-level keys state_dict, hyper, 2 tensors in its entry 'state_dict', fi",
        ),
        (
            weights,
            r"is not known: top-level keys features.0.weight.*known are nnU-Net v2, nnssl, MultiTalent v2, STU-Net",
        ),
        (
            {"a": 1},
            "holds no state dict: its top-level keys are a, expected tensors there or in one of network_weights",
        ),
        ([1, 2], "holds a list, expected the dictionary of a checkpoint"),
        ({"net": {"module.w": torch.zeros(1), "w": torch.zeros(1)}}, "both with and without the prefix"),
    ):
        with pytest.raises(ValueError, match=message):
            read_pretrained(saved(tmp_path / "x.pth", content))
    with pytest.raises(FileNotFoundError, match=r"gone.pth not found"):
        read_pretrained(tmp_path / "gone.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"nnssl_adaptation_plan": {}, "network_weights": {"w": torch.zeros(1)}}, "nnssl, but has not what that needs"),
        (suprem_checkpoint({"convInit.conv.weight": torch.zeros(1)}), "SuPreM, but has not what that needs"),
        (
            v1_model({"conv_blocks_context.0.blocks.0.conv.weight": torch.zeros(1)}),
            r"nnU-Net v1 \(Generic_UNet\), but has",
        ),
    ],
)
def test_files_that_lack_what_their_format_needs_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_pretrained(saved(tmp_path / "x.pth", content))


@pytest.mark.parametrize("arguments", [{"plans": "/etc/hostname"}, {"dataset_json": [3, 7]}, 5])
def test_a_fork_of_nnunet_v2_must_hold_its_plans_itself(tmp_path, arguments):
    dataset_json = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}}
    content = v2_checkpoint(STUNet(1, 2, **SMALL_STUNET).state_dict(), plain_unet(), dataset_json)
    changed = {**content["init_args"], **arguments} if isinstance(arguments, dict) else arguments
    del content["trainer_name"]
    with pytest.raises(ValueError, match="is no nnU-Net v2 checkpoint"):
        read_pretrained(saved(tmp_path / "x.pth", {**content, "init_args": changed}))


def test_key_tables_work_both_ways_and_refuse_what_cannot():
    table = KeyTable(
        [("a.{i}.last.{k}", "b.{i}.9.{k}"), ("a.{i}.{j}.{k}", "b.{i}.{j}.{k}"), ("c.{rest}", "d.e.{rest}")]
    )
    names = {"a.0.last.weight": "b.0.9.weight", "a.0.1.bias": "b.0.1.bias", "c.x.y.z": "d.e.x.y.z"}
    assert table.to_v2([*names, "a.0.x.y.z", "c"]) == names
    assert table.to_origin(names.values()) == {new: old for old, new in names.items()}
    with pytest.raises(ValueError, match="two tensors would get the same name"):
        table.to_v2(["a.0.last.weight", "a.0.9.weight"])
    with pytest.raises(ValueError, match="have different fields"):
        KeyTable([("a.{i}", "b.{j}")])


def test_cards_tell_the_origin_and_what_is_unknown(tmp_path):
    _, path = v1_file(tmp_path, ISOTROPIC)
    card = read_card(path)
    assert (card.spacing_mm, card.patch_size, card.normalization, dict(card.intensity)) == ((), (), (), {})
    assert card.parameters == sum(t.numel() for t in torch.load(path, weights_only=False)["state_dict"].values()) + 16
    text = describe(card)
    assert "converted from nnU-Net v1 (Generic_UNet)" in text
    assert "spacing        unknown, patch unknown" in text
    assert "unknown        spacing, patch_size" in text
    assert "channel 0      channel_0: unknown" in text
    weights = {
        "convInit.conv.weight": torch.zeros(16, 1, 3, 3, 3),
        "conv_final.2.conv.weight": torch.zeros(32, 16, 1, 1, 1),
    }
    card = read_card(saved(tmp_path / "s.pth", suprem_checkpoint({**weights, "other.weight": torch.zeros(1)})))
    assert card.origin["unmapped"] == {"SegResNet has no such tensor": 1}
    text = describe(card)
    assert "network        SegResNet" in text
    assert "CT: CTNormalization, clipped to -175 ... 250" in text
    assert "left out       1 x SegResNet has no such tensor" in text
