"""STU-Net: its published sizes, nnU-Net's calling convention, and both forms of its files."""

import pytest
import torch
from foreign_networks import (
    SMALL_STUNET,
    accounted,
    built,
    configuration_of,
    origin_of,
    plain_unet,
    randomised,
    saved,
    v1_model,
    v1_plans,
    v1_stage,
    v2_checkpoint,
    wrapped,
    write_pickle,
)
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunet_pretrain.checkpoints.foreign import stunet
from nnunet_pretrain.checkpoints.pretrained import read_pretrained
from nnunet_pretrain.networks.stunet import STUNet


@pytest.mark.parametrize(
    ("width", "depth", "parameters", "tensors"),
    [(16, 1, 14.597e6, 130), (32, 1, 58.263e6, 130), (64, 2, 440.303e6, 218), (96, 3, 1457.326e6, 306)],
)
def test_stunet_has_the_published_sizes(width, depth, parameters, tensors):
    with torch.device("meta"):
        network = STUNet(
            1,
            105,
            n_stages=6,
            features_per_stage=[width * k for k in (1, 2, 4, 8, 16, 16)],
            kernel_sizes=[[3, 3, 3]] * 6,
            strides=[[1, 1, 1], *[[2, 2, 2]] * 4, [1, 1, 2]],
            n_blocks_per_stage=[depth] * 6,
        )
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(parameters, abs=500)
    assert len(network.state_dict()) == tensors
    assert set(stunet.KEY_TABLE.to_v2(network.state_dict())) == set(network.state_dict())


def test_stunet_learns_under_nnunets_calling_convention():
    path = f"{STUNet.__module__}.STUNet"
    network = get_network_from_plans(path, SMALL_STUNET, [], 1, 3, deep_supervision=True)
    assert all(not module.bias.any() for module in network.modules() if isinstance(module, nn.Conv3d))
    image = torch.randn(2, 1, 8, 8, 16)
    outputs = network(image)
    assert [tuple(output.shape) for output in outputs] == [(2, 3, 8, 8, 16), (2, 3, 4, 4, 8)]
    sum(output.square().mean() for output in outputs).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    network.decoder.deep_supervision = False
    torch.testing.assert_close(network(image), outputs[0])
    with pytest.raises(ValueError, match="STUNet with 4 stages needs as many entries"):
        STUNet(1, 3, **{**SMALL_STUNET, "n_stages": 4})


def test_stunets_upsampling_is_nearest_and_then_a_convolution():
    network = randomised(STUNet(1, 3, **SMALL_STUNET))
    layer, x = network.upsample_layers[0], torch.randn(1, 8, 4, 4, 2)
    torch.testing.assert_close(layer(x), layer.conv(nn.functional.interpolate(x, scale_factor=[1, 1, 2])))


def test_stunet_is_read_from_both_of_its_forms(tmp_path):
    network = randomised(STUNet(1, 4, **SMALL_STUNET))
    weights, image = network.state_dict(), torch.randn(1, 1, 8, 8, 8)
    v1 = read_pretrained(saved(tmp_path / "base_ep4k.model", v1_model(wrapped(weights))))
    assert configuration_of(v1).spacing == [1.5, 1.5, 1.5]
    assert configuration_of(v1).normalization_schemes == ["ZScoreNormalization"]
    assert any("documented for the published STU-Nets" in note for note in origin_of(v1)["notes"])
    assert origin_of(v1)["unknown"] == ["labels"]
    dataset_json = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "spleen": 2, "aorta": 3}}
    planned = plain_unet()
    planned["arch_kwargs"]["strides"] = SMALL_STUNET["strides"]
    content = v2_checkpoint(weights, planned, dataset_json, "STUNetTrainer_base_ft")
    v2 = read_pretrained(saved(tmp_path / "checkpoint_final.pth", content))
    assert v2["init_args"]["dataset_json"] == dataset_json
    assert configuration_of(v2).network_arch_init_kwargs == SMALL_STUNET
    assert any("STUNetTrainer_base_ft" in note for note in origin_of(v2)["notes"])
    for checkpoint, prefix in ((v1, "module."), (v2, "")):
        accounted(checkpoint, wrapped(weights, prefix), stunet.KEY_TABLE, prefix)
        assert checkpoint["trainer_name"] == "nnUNetTrainer"
    with torch.no_grad():
        torch.testing.assert_close(built(v2, deep_supervision=False)(image), network(image))
    stages = {0: v1_stage([2, 2, 2], [16, 16, 16], SMALL_STUNET["strides"][1:])}
    write_pickle(tmp_path / "base_ep4k.model.pkl", v1_plans(stages, "STUNetTrainer_base"))
    planned = read_pretrained(tmp_path / "base_ep4k.model")
    assert configuration_of(planned).spacing == [2, 2, 2]
    with torch.no_grad():
        torch.testing.assert_close(built(planned, deep_supervision=False)(image), network(image))


def test_stunet_with_105_outputs_has_totalsegmentators_names_in_order(tmp_path):
    path = saved(tmp_path / "s.model", v1_model(STUNet(1, 105, **SMALL_STUNET).state_dict()))
    labels = read_pretrained(path)["init_args"]["dataset_json"]["labels"]
    names = list(labels)[1:]
    assert len(names) == 104
    assert names == sorted(names)
    assert (names[0], names[-1]) == ("adrenal_gland_left", "vertebrae_T9")
    assert labels["liver"] == names.index("liver") + 1
