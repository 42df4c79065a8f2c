"""Files of nnU-Net v1, nnssl and MultiTalent become nnU-Net v2's: same function, every tensor accounted for."""

import re
from pathlib import Path

import pytest
import torch
from foreign_networks import (
    ANISOTROPIC,
    FLAT,
    ISOTROPIC,
    GenericUNet,
    accounted,
    built,
    configuration_of,
    nnssl_checkpoint,
    origin_of,
    plain_unet,
    randomised,
    saved,
    v1_file,
    v1_model,
    v1_plans,
    v1_stage,
    v2_checkpoint,
    write_pickle,
)
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_pretrain.checkpoints.foreign import nnssl, nnunet_v1
from nnunet_pretrain.checkpoints.foreign.file import foreign_file
from nnunet_pretrain.checkpoints.pretrained import converted, read_pretrained


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
