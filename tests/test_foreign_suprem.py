"""SuPreM's three networks and Models Genesis: their axes, windows, labels, and heads where there are any."""

import pytest
import torch
from foreign_networks import (
    accounted,
    built,
    configuration_of,
    origin_of,
    randomised,
    saved,
    suprem_checkpoint,
    text_head,
    wrapped,
)
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_pretrain.checkpoints.foreign import genesis, suprem
from nnunet_pretrain.checkpoints.pretrained import read_pretrained
from nnunet_pretrain.labels.synonyms import match
from nnunet_pretrain.networks.genesis_unet import GenesisUNet


def monai_network(name, **arguments):
    return randomised(getattr(pytest.importorskip("monai.networks.nets"), name)(in_channels=1, **arguments))


def test_suprems_segresnet_keeps_its_head_and_sees_the_axes_it_learned_on(tmp_path):
    network = monai_network("SegResNet", out_channels=32, init_filters=8, blocks_down=[1, 2, 2, 4], blocks_up=[1, 1, 1])
    weights = wrapped(network.state_dict())
    assert len(weights) == 83
    checkpoint = read_pretrained(saved(tmp_path / "suprem.pth", suprem_checkpoint(weights)))
    accounted(checkpoint, weights, suprem.SEGRESNET, "module.")
    assert origin_of(checkpoint)["unmapped"] == {}
    arguments = configuration_of(checkpoint).network_arch_init_kwargs["arguments"]
    assert (arguments["init_filters"], arguments["blocks_down"], arguments["blocks_up"]) == (8, [1, 2, 2, 4], [1, 1, 1])
    image = torch.randn(1, 1, 8, 16, 24)  # z, y, x
    with torch.no_grad():
        expected = network(image.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)
        torch.testing.assert_close(built(checkpoint, deep_supervision=False)(image), expected)


def test_suprems_window_labels_and_reader_are_those_it_was_trained_with(tmp_path):
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization

    weights = {
        "convInit.conv.weight": torch.zeros(16, 1, 3, 3, 3),
        "conv_final.2.conv.weight": torch.zeros(32, 16, 1, 1, 1),
    }
    checkpoint = read_pretrained(saved(tmp_path / "suprem.pth", suprem_checkpoint(weights)))
    arguments = checkpoint["init_args"]
    properties = arguments["plans"]["foreground_intensity_properties_per_channel"]["0"]
    normalised = CTNormalization(False, properties).run(torch.tensor([-500.0, -175.0, 37.5, 250.0, 900.0]).numpy())
    assert normalised.tolist() == pytest.approx([0, 0, 0.5, 1, 1])
    chosen = configuration_of(checkpoint)
    assert (chosen.spacing, chosen.patch_size, chosen.batch_size) == ([1.5] * 3, [96] * 3, 16)
    assert arguments["plans"]["image_reader_writer"] == "NibabelIOWithReorient"
    labels, order = arguments["dataset_json"]["labels"], arguments["dataset_json"]["regions_class_order"]
    manager = LabelManager(labels, order)
    assert manager.has_regions
    assert manager.num_segmentation_heads == len(order) == 32
    assert labels["liver"] == [6, 15, 27, 29]
    assert labels["kidney_left"] == [3, 26, 32]
    names = [name for name in labels if name != "background"]
    assert names == list(suprem.TEMPLATE)
    assert {name for name in names if match(name) != name} == {"hepatic_vessel_tumor"}
    first = [ids[0] if isinstance(ids, list) else ids for name, ids in labels.items() if name != "background"]
    assert first == order


@pytest.mark.parametrize(("outputs", "names"), [(25, "aorta"), (7, None)])
def test_suprem_with_other_numbers_of_outputs(outputs, names):
    labels, order = suprem.labels_of(outputs)
    assert (labels is None) is (names is None)
    if labels is not None:
        assert next(iter(labels.items())) == ("background", 0)
        assert labels["aorta"] == 1
        assert labels["liver"] == [5, 19]
        assert len(order) == outputs


def test_suprems_swin_unetr_loads_all_but_its_head(tmp_path):
    network = monai_network("SwinUNETR", out_channels=32, feature_size=12)
    weights = wrapped({n: t for n, t in network.state_dict().items() if not n.startswith("out.")}, "module.backbone.")
    assert len(weights) == 157
    content = suprem_checkpoint({**weights, **text_head()})
    checkpoint = read_pretrained(saved(tmp_path / "swin.pth", content))
    accounted(checkpoint, content["net"], suprem.BACKBONE, "module.")
    assert set(origin_of(checkpoint)["unmapped"]) == set(text_head())
    network_v2 = built(checkpoint, strict=False)
    loaded = network_v2.state_dict()
    for name, tensor in weights.items():
        assert torch.equal(loaded[name.removeprefix("module.")], tensor)
    assert set(network_v2.head_names()) == set(loaded) - set(checkpoint["network_weights"])


def genesis_weights(network, prefix):
    return wrapped({n: t for n, t in network.state_dict().items() if not n.startswith("out_tr.")}, prefix)


def test_genesis_unet_has_the_published_size_and_is_read_from_suprem_and_from_models_genesis(tmp_path):
    with torch.device("meta"):
        published = GenesisUNet(1, 32)
    weights = genesis_weights(published, "")
    assert len(weights) == 104
    assert sum(p.numel() for n, p in published.named_parameters() if n in weights) == pytest.approx(19.07e6, rel=1e-3)
    network = randomised(GenesisUNet(1, 32, base_features=4))
    image = torch.randn(2, 1, 8, 16, 8)
    content = suprem_checkpoint({**genesis_weights(network, "module.backbone."), **text_head()})
    from_suprem = read_pretrained(saved(tmp_path / "unet.pth", content))
    accounted(from_suprem, content["net"], suprem.BACKBONE, "module.")
    assert any("always normalises with the statistics of the batch" in n for n in origin_of(from_suprem)["notes"])
    network_v2 = built(from_suprem, strict=False, deep_supervision=False)
    network_v2.backbone.out_tr = network.out_tr
    with torch.no_grad():
        expected = network(image.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)
        torch.testing.assert_close(network_v2(image), expected)
    whole = wrapped(network.state_dict())
    alone = read_pretrained(saved(tmp_path / "Genesis.pt", {"epoch": 5, "state_dict": whole}))
    accounted(alone, whole, genesis.KEY_TABLE, "module.")
    assert set(origin_of(alone)["unmapped"]) == {"module.out_tr.final_conv.weight", "module.out_tr.final_conv.bias"}
    assert alone["network_weights"].keys() == from_suprem["network_weights"].keys()
    del whole["module.up_tr64.up_conv.bias"]
    with pytest.raises(
        ValueError, match=r"does not fit the U-Net of Models Genesis: backbone.up_tr64.up_conv.bias: mis"
    ):
        read_pretrained(saved(tmp_path / "Genesis.pt", {"epoch": 5, "state_dict": whole}))


def test_genesis_unet_gives_every_weight_a_gradient():
    network = GenesisUNet(2, 3, base_features=2)
    network(torch.randn(2, 2, 8, 8, 8)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
