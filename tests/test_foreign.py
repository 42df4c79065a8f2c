"""Checkpoints of other programs become nnU-Net v2's: same function, every tensor accounted for, nothing guessed."""

import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from foreign_networks import (
    GenericUNet,
    nnssl_checkpoint,
    plain_unet,
    randomised,
    suprem_checkpoint,
    text_head,
    v1_model,
    v1_plans,
    v1_stage,
    v2_checkpoint,
    write_pickle,
)
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_pretrain.checkpoints.foreign import genesis, nnssl, nnunet_v1, stunet, suprem
from nnunet_pretrain.checkpoints.foreign.file import foreign_file
from nnunet_pretrain.checkpoints.foreign.key_table import KeyTable
from nnunet_pretrain.checkpoints.inspection import describe, read_card
from nnunet_pretrain.checkpoints.pretrained import converted, read_pretrained
from nnunet_pretrain.checkpoints.safetensors_file import write_safetensors
from nnunet_pretrain.labels.synonyms import match
from nnunet_pretrain.networks.genesis_unet import GenesisUNet
from nnunet_pretrain.networks.stunet import STUNet

ISOTROPIC = {"pools": [[2, 2, 2], [2, 2, 2]], "kernels": [[3, 3, 3]] * 3}
ANISOTROPIC = {"pools": [[1, 2, 2], [2, 2, 2]], "kernels": [[1, 3, 3], [3, 3, 3], [3, 3, 3]]}
FLAT = {"pools": [[2, 2], [2, 1]], "kernels": [[3, 3]] * 3}
SMALL_STUNET = {
    "n_stages": 3,
    "features_per_stage": [4, 8, 8],
    "kernel_sizes": [[3, 3, 3]] * 3,
    "strides": [[1, 1, 1], [2, 2, 2], [1, 1, 2]],
    "n_blocks_per_stage": [2, 2, 2],
}


def saved(path, content):
    torch.save(content, path)
    return path


def origin_of(checkpoint):
    return checkpoint["init_args"]["nnunet_pretrain"]["origin"]


def configuration_of(checkpoint):
    return PlansManager(checkpoint["init_args"]["plans"]).get_configuration(checkpoint["init_args"]["configuration"])


def built(checkpoint, strict=True, deep_supervision=True):
    """The network nnU-Net builds from the plans, with the checkpoint's weights."""
    arguments = checkpoint["init_args"]
    chosen = configuration_of(checkpoint)
    labels = LabelManager(arguments["dataset_json"]["labels"], arguments["dataset_json"].get("regions_class_order"))
    network = get_network_from_plans(
        chosen.network_arch_class_name,
        chosen.network_arch_init_kwargs,
        chosen.network_arch_init_kwargs_req_import,
        len(arguments["dataset_json"]["channel_names"]),
        labels.num_segmentation_heads,
        deep_supervision=deep_supervision,
    )
    network.load_state_dict(checkpoint["network_weights"], strict=strict)
    return network.eval()


def wrapped(weights, prefix="module."):
    return OrderedDict((prefix + name, tensor) for name, tensor in weights.items())


def accounted(checkpoint, source, table, prefix=""):
    """Asserts that every tensor is converted or left out with a reason, never both, and that names come back."""
    unmapped = origin_of(checkpoint)["unmapped"]
    back = table.to_origin(checkpoint["network_weights"])
    assert {prefix + name for name in back.values()} | set(unmapped) >= set(source)
    assert not {prefix + name for name in back.values()} & set(unmapped)
    assert all(unmapped.values())
    forth = table.to_v2([name.removeprefix(prefix) for name in source if name not in unmapped])
    assert len(forth) == len(source) - len(unmapped)
    assert table.to_origin(forth.values()) == {v2: name for name, v2 in forth.items()}


def v1_file(tmp_path, shape, **arguments):
    features = {"features": [4, 6, 8]}
    network = randomised(GenericUNet(**{"inputs": 1, "outputs": 3, **features, **shape, **arguments}))
    return network, saved(tmp_path / "any_name.bin", v1_model(network.state_dict()))


@pytest.mark.parametrize(
    ("shape", "image"),
    [
        (ISOTROPIC, (1, 1, 8, 8, 8)),
        (ANISOTROPIC, (1, 1, 8, 16, 16)),
        (FLAT, (2, 1, 16, 16)),
        ({**ISOTROPIC, "bias": False}, (1, 1, 8, 8, 8)),
        ({**ISOTROPIC, "count": 3}, (1, 1, 8, 8, 8)),
        ({**ISOTROPIC, "inputs": 2}, (1, 2, 8, 8, 8)),
        ({**ISOTROPIC, "norm": "BatchNorm"}, (2, 1, 8, 8, 8)),
    ],
)
def test_generic_unet_gives_the_same_logits_as_plainconvunet_on_every_output(tmp_path, shape, image):
    network, path = v1_file(tmp_path, shape)
    checkpoint = read_pretrained(path)
    network_v2 = built(checkpoint)
    assert type(network_v2).__name__ == "PlainConvUNet"
    x = torch.randn(image)
    with torch.no_grad():
        for expected, found in zip(network(x), network_v2(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    weights = network.state_dict()
    table = nnunet_v1.key_table_of(weights)
    forth = table.to_v2(weights)
    assert set(forth) == set(weights)
    assert table.to_origin(forth.values()) == {v2: name for name, v2 in forth.items()}
    accounted(checkpoint, weights, table)
    assert checkpoint["current_epoch"] == 1000


def test_a_full_size_generic_unet_has_98_tensors_and_292_names_in_v2():
    with torch.device("meta"):
        features = [32, 64, 128, 256, 320, 320]
        weights = GenericUNet(1, 105, features, [[2, 2, 2]] * 5, [[3, 3, 3]] * 6).state_dict()
    assert len(weights) == 98
    checkpoint = converted(foreign_file(Path("base.model"), v1_model(weights)))
    assert len(checkpoint["network_weights"]) == 292
    assert origin_of(checkpoint)["unmapped"] == {}


def test_generic_unets_tensors_are_the_files_own_and_not_copies(tmp_path):
    _, path = v1_file(tmp_path, ISOTROPIC)
    state = read_pretrained(path)["network_weights"]
    for alias in ("encoder.stages.0.0.convs.0.all_modules.0.weight", "decoder.encoder.stages.0.0.convs.0.conv.weight"):
        assert state[alias].data_ptr() == state["encoder.stages.0.0.convs.0.conv.weight"].data_ptr()
    zeros = {name for name, tensor in state.items() if name.startswith("decoder.") and not tensor.any()}
    assert zeros == {f"decoder.{part}.{d}.bias" for part in ("transpconvs", "seg_layers") for d in range(2)}


def test_a_kernel_grows_only_where_v1s_decoder_has_another_than_its_encoder(tmp_path):
    kernels = configuration_of(read_pretrained(v1_file(tmp_path, ANISOTROPIC)[1])).network_arch_init_kwargs
    assert kernels["kernel_sizes"] == [[3, 3, 3]] * 3
    assert kernels["strides"] == [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
    checkpoint = read_pretrained(v1_file(tmp_path, ANISOTROPIC)[1])
    grown = [note for note in origin_of(checkpoint)["notes"] if "in zeros to" in note]
    assert [note.split(":")[0] for note in grown] == [f"encoder.stages.0.0.convs.{i}.conv.weight" for i in range(2)]


def test_plans_beside_a_v1_file_say_what_it_does_not(tmp_path):
    _, path = v1_file(tmp_path, ISOTROPIC)
    bare = read_pretrained(path)
    assert set(origin_of(bare)["unknown"]) == {
        "spacing", "patch_size", "batch_size", "normalization", "intensity", "transpose", "channels", "labels",
    }  # fmt: skip
    assert configuration_of(bare).spacing is None
    assert bare["init_args"]["dataset_json"]["labels"] == {"background": 0, "class_1": 1, "class_2": 2}
    stages = {0: v1_stage([3, 3, 3], [8, 8, 8], []), 1: v1_stage([1.5, 1, 1], [16, 24, 24], ISOTROPIC["pools"])}
    write_pickle(tmp_path / "any_name.bin.pkl", v1_plans(stages))
    full = read_pretrained(path)
    chosen = configuration_of(full)
    assert (chosen.spacing, chosen.patch_size, chosen.batch_size) == ([1.5, 1, 1], [16, 24, 24], 2)
    assert chosen.normalization_schemes == ["CTNormalization"]
    intensity = full["init_args"]["plans"]["foreground_intensity_properties_per_channel"]["0"]
    assert (intensity["mean"], intensity["std"], intensity["percentile_00_5"]) == (60.5, 100.0, -300.0)
    assert full["init_args"]["dataset_json"]["channel_names"] == {"0": "CT"}
    assert full["init_args"]["plans"]["dataset_name"] == "Task123_Test"
    assert full["inference_allowed_mirroring_axes"] == (0, 1, 2)
    assert origin_of(full)["unknown"] == ["labels"]


@pytest.mark.parametrize("named", [True, False])
def test_sigmoid_outputs_of_multitalent_v1_become_regions(tmp_path, named):
    _, path = v1_file(tmp_path, ISOTROPIC)
    regions = {"regions": {"03_liver": (1, 2), "03_tumor": 2, "17_spleen": 3}} if named else {}
    stages = {0: v1_stage([1.5, 1, 1], [16, 16, 16], [])}
    plans = v1_plans(stages, "MultiTalent_Trainer_DDP", all_classes=[1, 2, 3], **regions)
    write_pickle(tmp_path / "any_name.bin.pkl", plans)
    dataset_json = read_pretrained(path)["init_args"]["dataset_json"]
    manager = LabelManager(dataset_json["labels"], dataset_json["regions_class_order"])
    assert manager.has_regions
    assert manager.num_segmentation_heads == 3
    names = ["03_liver", "03_tumor", "17_spleen"] if named else ["class_1", "class_2", "class_3"]
    assert [name for name in dataset_json["labels"] if name != "background"] == names


def test_v1s_residual_network_and_one_without_transposed_convolutions_are_refused(tmp_path):
    fabians = {"encoder.initial_conv.weight": torch.zeros(4, 1, 3, 3, 3)}
    with pytest.raises(ValueError, match=r"FabiansUNet.*strided 1x1x1.*v2 pools first.*stem differs"):
        read_pretrained(saved(tmp_path / "f.model", v1_model(fabians)))
    network, _ = v1_file(tmp_path, ISOTROPIC)
    weights = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("tu.")}
    with pytest.raises(ValueError, match="without transposed convolutions"):
        read_pretrained(saved(tmp_path / "u.model", v1_model(weights)))
    del weights["conv_blocks_context.0.blocks.0.conv.weight"]
    with pytest.raises(ValueError, match=r"looks like a checkpoint of nnU-Net v1|does not fit|without"):
        read_pretrained(saved(tmp_path / "b.model", v1_model(weights)))


def test_a_v1_tensor_of_another_shape_is_refused_by_name(tmp_path):
    network, _ = v1_file(tmp_path, ISOTROPIC)
    weights = network.state_dict() | {"seg_outputs.0.weight": torch.zeros(3, 5, 1, 1, 1), "extra.weight": torch.ones(1)}
    with pytest.raises(ValueError, match=r"does not fit the PlainConvUNet.*decoder.seg_layers.0.weight: shape \(3, 5"):
        read_pretrained(saved(tmp_path / "s.model", v1_model(weights)))
    weights["seg_outputs.0.weight"] = network.seg_outputs[0].weight.detach()
    checkpoint = read_pretrained(saved(tmp_path / "s.model", v1_model(weights)))
    assert origin_of(checkpoint)["unmapped"] == {"extra.weight": "PlainConvUNet has no such tensor"}


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


def nnssl_file(tmp_path, keep, prefix="", name="ResidualEncoderUNet", **changes):
    network_plan = plain_unet(residual=True)
    imported = network_plan["_kw_requires_import"]
    network = get_network_from_plans(*network_plan.values(), 1, 1, deep_supervision=False)
    weights = {prefix + key: value for key, value in randomised(network).state_dict().items() if keep(key)}
    content = nnssl_checkpoint(weights, name, {**network_plan["arch_kwargs"], **changes}, imported)
    return network, weights, saved(tmp_path / "nnssl.pth", content)


@pytest.mark.parametrize("encoder_only", [True, False])
def test_nnssl_gives_its_encoder_and_the_decoder_if_there_is_one_but_no_heads(tmp_path, encoder_only):
    network, weights, path = nnssl_file(tmp_path, lambda key: key.startswith("encoder.") or not encoder_only)
    checkpoint = read_pretrained(path)
    origin, state = origin_of(checkpoint), checkpoint["network_weights"]
    accounted(checkpoint, weights, nnssl.key_table("encoder.stages"))
    heads = {name for name in weights if ".seg_layers." in name}
    assert set(origin["unmapped"]) == heads
    assert bool(heads) is not encoder_only
    for name, tensor in network.state_dict().items():
        if name.startswith(("encoder.", "decoder.encoder.")) or (not encoder_only and ".seg_layers." not in name):
            assert torch.equal(state[name], tensor), name
        else:
            assert name not in state
    assert checkpoint["init_args"]["dataset_json"]["labels"] == {"background": 0}
    assert checkpoint["init_args"]["dataset_json"]["sources"][0]["citation"] == "Wald et al. (2024)"
    assert "spacing" in origin["unknown"]
    assert any("tensors of ResidualEncoderUNet are not in the file" in note for note in origin["notes"]) is encoder_only
    built(checkpoint, strict=False)


def test_nnssls_fixed_network_is_resenc_l_and_a_decoder_without_skips_is_left_out(tmp_path):
    arguments = nnssl._resenc_l()
    with torch.device("meta"):
        network = get_network_from_plans(*arguments.values(), 1, 1, allow_init=False, deep_supervision=False)
    assert sum(p.numel() for p in network.encoder.parameters()) == pytest.approx(90.3e6, rel=2e-3)
    weights = {"encoder.stem.convs.0.conv.weight": torch.ones(32, 1, 3, 3, 3)}
    weights["decoder.stages.0.convs.0.conv.weight"] = torch.ones(2, 2)
    checkpoint = read_pretrained(saved(tmp_path / "n.pth", nnssl_checkpoint(weights, "NoSkipResEncL")))
    assert "without skip connections" in origin_of(checkpoint)["unmapped"]["decoder.stages.0.convs.0.conv.weight"]
    assert set(checkpoint["network_weights"]) == {
        f"{before}encoder.stem.convs.0.{layer}.weight"
        for before in ("", "decoder.")
        for layer in ("conv", "all_modules.0")
    }


def test_nnssls_misfits_are_named_and_transformers_and_functions_refused(tmp_path):
    _, _, path = nnssl_file(tmp_path, lambda key: key.startswith("encoder."), features_per_stage=[4, 6, 10])
    unmapped = origin_of(read_pretrained(path))["unmapped"]
    assert re.search(
        r"shape \(8, 6, 3, 3, 3\), the network has \(10, 6", unmapped["encoder.stages.2.blocks.0.conv1.conv.weight"]
    )
    with pytest.raises(ValueError, match="PrimusM, which is not supported yet: only convolutional ones"):
        read_pretrained(saved(tmp_path / "p.pth", nnssl_checkpoint({"eva.pos_embed": torch.zeros(1)}, "PrimusM")))
    for changes, message in (
        ({"conv_op": "os.system"}, "wants conv_op=os.system; expected a class of torch.nn"),
        ({"conv_op": "torch.nn.modules.conv.math.sqrt"}, "is no network|is wrong"),
        ({"n_blocks_per_stage": [10**9] * 3}, "describes no U-Net"),
    ):
        with pytest.raises(ValueError, match=message):
            read_pretrained(nnssl_file(tmp_path, lambda key: True, **changes)[2])


def multitalent_file(tmp_path, labels, dataset_json):
    """A U-Net with one head per dataset, and per-dataset logits on an image."""
    architecture = plain_unet()
    network = randomised(get_network_from_plans(*architecture.values(), 1, 2, deep_supervision=True))
    body = {name: tensor for name, tensor in network.state_dict().items() if ".seg_layers." not in name}
    heads, generator = {}, torch.Generator().manual_seed(1)
    for dataset, classes in labels.items():
        for level, features in enumerate((6, 4)):
            heads[f"decoder.seg_layers.{dataset}.{level}.weight"] = torch.randn(
                classes, features, 1, 1, 1, generator=generator
            )
            heads[f"decoder.seg_layers.{dataset}.{level}.bias"] = torch.randn(classes, generator=generator)
    content = v2_checkpoint({**body, **heads}, architecture, dataset_json, "MultiTalent_trainer")
    image = torch.randn(1, 1, 8, 8, 8)

    def logits(dataset, level):
        single = get_network_from_plans(*architecture.values(), 1, labels[dataset], deep_supervision=True)
        chosen = {
            f"decoder.seg_layers.{i}.{k}": heads[f"decoder.seg_layers.{dataset}.{i}.{k}"]
            for i in range(2)
            for k in ("weight", "bias")
        }
        single.load_state_dict({**body, **chosen})
        return single.eval()(image)[1 - level]

    return saved(tmp_path / "mt.pth", content), logits, image


def test_multitalents_heads_become_one_with_the_same_probabilities_within_a_dataset(tmp_path):
    jsons = {
        "3": {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "liver_tumor": 2}},
        "7": {"channel_names": {"0": "CT"}, "labels": {"background": 0, "Pancreas": 1, "Liver": 2}},
    }
    path, logits, image = multitalent_file(tmp_path, {"3": 3, "7": 3, "9_0": 2, "9_1": 2}, jsons)
    checkpoint = read_pretrained(path)
    labels = checkpoint["init_args"]["dataset_json"]["labels"]
    assert labels == {
        "background": 0, "liver": 1, "liver_tumor": 2, "Pancreas": 3, "9_0_class_1": 4, "9_1_class_1": 5,
    }  # fmt: skip
    network = built(checkpoint)
    with torch.no_grad():
        for level, combined in enumerate(reversed(network(image))):
            for dataset, rows in (("3", [0, 1, 2]), ("9_0", [0, 4]), ("9_1", [0, 5])):
                expected = logits(dataset, level).softmax(1)
                torch.testing.assert_close(combined[:, rows].softmax(1), expected, rtol=0, atol=1e-5)
            pancreas = logits("7", level)
            torch.testing.assert_close(combined[:, 3] - combined[:, 0], pancreas[:, 1] - pancreas[:, 0])
    origin = origin_of(checkpoint)
    assert origin["unmapped"] == {"decoder.seg_layers.7.*[2]": "'Liver' was taken from dataset 3"}
    assert any("dataset 9_0, 9_1" in note for note in origin["notes"])
    assert origin["unknown"] == []


def test_multitalents_regions_keep_their_rows_and_only_the_first_stem_is_taken(tmp_path):
    jsons = {"Dataset003_X": {"labels": {"background": 0, "liver": [1, 2], "liver_tumor": 2}}}
    path, _, _ = multitalent_file(tmp_path, {"3": 2}, jsons)
    content = torch.load(path, weights_only=True)
    weights = content["network_weights"]
    head = weights["decoder.seg_layers.3.1.weight"]
    stems = {f"encoder.stem.{i}.convs.0.conv.weight": torch.full((4, 1, 3, 3, 3), float(i)) for i in (3, 7)}
    checkpoint = read_pretrained(saved(path, {**content, "network_weights": {**weights, **stems}}))
    made = checkpoint["network_weights"]
    assert torch.equal(made["decoder.seg_layers.1.weight"], torch.cat([torch.zeros_like(head[:1]), head]))
    assert made["encoder.stem.convs.0.conv.weight"].unique().tolist() == [3]
    assert origin_of(checkpoint)["unmapped"] == {
        "encoder.stem.7.convs.0.conv.weight": "stem of dataset 7; that of dataset 3 was taken"
    }


def test_multitalents_classes_without_names_are_numbered(tmp_path):
    path, _, _ = multitalent_file(tmp_path, {"3": 3}, [3])  # its datasets.json is a list of ids
    checkpoint = read_pretrained(path)
    assert checkpoint["init_args"]["dataset_json"]["labels"] == {"background": 0, "3_class_1": 1, "3_class_2": 2}
    assert origin_of(checkpoint)["unknown"] == ["labels"]
    assert checkpoint["init_args"]["dataset_json"]["channel_names"] == {"0": "channel_0"}


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
