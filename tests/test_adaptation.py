"""Every adaptation rule against what it promises, on real convolutions and real nnU-Net networks."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from nnunet_pretrain.networks.parts import PARTS, layers_of, parts_of, unaliased
from nnunet_pretrain.planning import TransferSettings
from nnunet_pretrain.transfer.heads import Outputs
from nnunet_pretrain.transfer.pretrained_network import NetworkFacts, PretrainedNetwork
from nnunet_pretrain.transfer.rules import fit_channels, fit_kernel, fit_stride, fit_width
from nnunet_pretrain.transfer.weights import transfer_weights

DNA = "dynamic_network_architectures.architectures.unet."


def constant_along(axis, *shape):
    """A random image that does not change along an axis."""
    line = list(shape)
    line[axis] = 1
    return torch.rand(line, dtype=torch.double).expand(shape)


@pytest.mark.parametrize("axis", [2, 3, 4])
@pytest.mark.parametrize(("old", "new"), [(3, 1), (5, 3), (5, 1), (7, 3)])
def test_a_smaller_kernel_gives_the_same_on_images_constant_along_the_axis(axis, old, new):
    weight = torch.randn(4, 2, 5, 5, 5, dtype=torch.double)
    weight = fit_kernel(weight, [old if a == axis else 3 for a in (2, 3, 4)])
    kernel = list(weight.shape[2:])
    image = constant_along(axis, 1, 2, 12, 12, 12)
    wanted = functional.conv3d(image, weight)
    kernel[axis - 2] = new
    found = functional.conv3d(image, fit_kernel(weight, kernel))
    assert torch.allclose(found.narrow(axis, 0, wanted.shape[axis]), wanted, atol=1e-12)


@pytest.mark.parametrize(("old", "new"), [((1, 3, 3), (3, 3, 3)), ((3, 3, 3), (5, 3, 7)), ((1, 1, 1), (3, 3, 3))])
def test_a_larger_kernel_gives_the_same_on_every_image(old, new):
    weight, image = torch.randn(4, 2, *old), torch.randn(1, 2, 9, 9, 9)
    wanted = functional.conv3d(image, weight, padding=[k // 2 for k in old])
    found = functional.conv3d(image, fit_kernel(weight, new), padding=[k // 2 for k in new])
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.equal(fit_kernel(fit_kernel(weight, new), old), weight)


def test_kernels_without_a_common_centre_are_refused():
    with pytest.raises(ValueError, match="a kernel of 2 has no common centre with one of 3"):
        fit_kernel(torch.zeros(1, 1, 2, 2, 2), (3, 2, 2))


def test_a_longer_stride_repeats_the_output_and_a_shorter_one_takes_its_mean():
    image = torch.randn(1, 3, 4, 4, 4, dtype=torch.double)
    flat, full = torch.randn(3, 2, 1, 2, 2).double(), torch.randn(3, 2, 2, 2, 2).double()
    found = functional.conv_transpose3d(image, fit_stride(flat, (2, 2, 2)), stride=2)
    wanted = functional.conv_transpose3d(image, flat, stride=(1, 2, 2))
    assert torch.equal(found, wanted.repeat_interleave(2, 2))
    found = functional.conv_transpose3d(image, fit_stride(full, (1, 2, 2)), stride=(1, 2, 2))
    wanted = functional.conv_transpose3d(image, full, stride=2)
    assert torch.allclose(found, wanted.unflatten(2, (4, 2)).mean(3), atol=1e-12)
    assert torch.equal(fit_stride(fit_stride(flat, (2, 2, 2)), (1, 2, 2)), flat)
    with pytest.raises(ValueError, match="a stride of 2 cannot be turned into 3"):
        fit_stride(full, (3, 2, 2))


def test_channels_of_the_same_name_keep_their_weights_and_new_ones_start_at_zero():
    weight, image = torch.randn(4, 2, 3, 3, 3), torch.randn(1, 2, 6, 6, 6)
    wanted = functional.conv3d(image, weight)
    fitted = fit_channels(weight, ("CT", "PET"), ("T1", "pet", "ct"))
    found = functional.conv3d(torch.stack([torch.randn(6, 6, 6), image[0, 1], image[0, 0]])[None], fitted)
    assert torch.allclose(found, wanted, atol=1e-5)
    fewer = fit_channels(weight, ("CT", "PET"), ("PET",))
    assert torch.equal(functional.conv3d(image[:, 1:], fewer), functional.conv3d(image[:, 1:], weight[:, 1:]))


@pytest.mark.parametrize(("old", "new"), list(itertools.product((1, 2, 3), (1, 2, 4))))
def test_channels_without_a_common_name_see_a_shared_image_alike(old, new):
    weight, image = torch.randn(4, old, 3, 3, 3).double(), torch.randn(1, 1, 6, 6, 6).double()
    fitted = fit_channels(weight, [f"a{i}" for i in range(old)], [f"b{i}" for i in range(new)])
    found = functional.conv3d(image.expand(1, new, 6, 6, 6), fitted)
    wanted = functional.conv3d(image.expand(1, old, 6, 6, 6), weight)
    assert torch.allclose(found, wanted, atol=1e-12)


def test_width_takes_the_common_channels_and_keeps_both_halves_of_a_decoder_apart():
    weight = torch.arange(8.0).reshape(2, 4)[..., None]
    start = torch.full((3, 6, 1), -1.0)
    assert fit_width(weight, start, halves=True)[..., 0].tolist() == [
        [0, 1, -1, 2, 3, -1],
        [4, 5, -1, 6, 7, -1],
        [-1] * 6,
    ]
    assert fit_width(torch.arange(4.0), torch.zeros(2)).tolist() == [0, 1]


def architecture(features=(4, 8, 8), strides=None, kernels=None, residual=False, blocks=None):
    """A tiny network of nnU-Net's, as plans name it."""
    stages = len(features)
    blocks = blocks or [1] * stages
    arguments = {
        "n_stages": stages,
        "features_per_stage": list(features),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": kernels or [[3, 3, 3]] * stages,
        "strides": strides or [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        ("n_blocks_per_stage" if residual else "n_conv_per_stage"): blocks,
        "n_conv_per_stage_decoder": [1] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    name = DNA + ("ResidualEncoderUNet" if residual else "PlainConvUNet")
    return {
        "network_class_name": name,
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
    }


def facts(channels=("CT",), outputs=("background", "liver", "spleen"), sigmoid=False, **kind):
    return NetworkFacts(architecture(**kind), channels, Outputs(outputs, sigmoid))


def build(side, seed=0):
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    torch.manual_seed(seed)
    made = side.architecture
    network = get_network_from_plans(
        made["network_class_name"],
        made["arch_kwargs"],
        made["_kw_requires_import"],
        len(side.channels),
        len(side.outputs.names),
        deep_supervision=True,
    )
    for tensor in network.parameters():  # nnU-Net's norms and biases start at 1 and 0, which hides mistakes
        torch.nn.init.normal_(tensor, std=0.3)
    return network


def pretrained_of(network, side):
    return PretrainedNetwork(side, {unaliased(name): tensor for name, tensor in network.state_dict().items()})


ALL = {name: (name,) for name in ("background", "liver", "spleen")}


def transferred(source, target, **settings):
    """Transfers between two freshly drawn networks; returns both and the report."""
    old, new = build(source, 1), build(target, 2)
    report = transfer_weights(new, target, pretrained_of(old, source), TransferSettings(**settings))
    return old, new, report


@pytest.mark.parametrize("residual", [False, True])
def test_the_same_network_gives_the_same_outputs_and_every_tensor_is_loaded(residual):
    side = facts(residual=residual)
    old, new, report = transferred(side, side, heads=ALL)
    image = torch.randn(1, 1, 16, 16, 16)
    for wanted, found in zip(old(image), new(image), strict=True):
        assert torch.equal(wanted, found)
    assert {t.status for t in report.tensors} == {"loaded"}
    assert [t.name for t in report.tensors] == [name for name, _ in new.named_parameters()]
    assert report.ignored == ()
    assert all(report.share(part) == report.used_share(part) == 1 for part in PARTS)
    assert all(report.l2_change(part) > 0 for part in ("encoder", "decoder", "heads"))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("old", "new"), [((4, 8, 16), (4, 8, 16, 16)), ((4, 8, 16, 16), (4, 8, 16))])
def test_another_depth_keeps_every_layer_at_its_resolution(residual, old, new):
    source, target = facts(features=old, residual=residual), facts(features=new, residual=residual)
    before, after, report = transferred(source, target, heads=ALL)
    levels = min(len(old), len(new)) - 1
    for level in range(levels):
        place = [len(features) - 2 - level for features in (old, new)]
        for name in ("stages.{}.convs.0.conv.weight", "transpconvs.{}.weight", "seg_layers.{}.bias"):
            a, b = (net.decoder.get_parameter(name.format(i)) for net, i in zip((before, after), place, strict=True))
            assert torch.equal(a, b), (name, level)
    skips = [net.encoder(torch.ones(1, 1, 16, 16, 16))[:levels] for net in (before, after)]
    for wanted, found in zip(*skips, strict=True):
        assert torch.equal(wanted, found)
    missing = [t for t in report.tensors if t.status == "initialised"]
    if len(new) > len(old):
        assert {t.reason for t in missing} == {
            "the checkpoint's network is less deep, it has no encoder stage 3",
            "the checkpoint's network is less deep, it has no decoder at resolution level 2",
        }
        assert report.used_share("decoder") == 1
        assert report.share("decoder") < 0.9
    else:
        assert missing == []
        assert {t.reason for t in report.ignored} == {"the target's network is less deep"}


def test_an_anisotropic_target_gives_the_isotropic_networks_outputs_on_flat_images():
    """Kernels k -> 1 and strides 2 -> 1 along z; the image does not change along z, away from whose border it holds."""
    source = facts(features=(4, 8, 8))
    target = facts(
        features=(4, 8, 8),
        kernels=[[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    )
    old, new, report = transferred(source, target, heads=ALL)
    rules = {t.reason for t in report.tensors if t.status == "adapted"}
    assert rules == {"kernel 3x3x3 to 1x3x3", "stride 2x2x2 to 1x2x2"}
    for network in (old, new):  # the norms' statistics would see the border
        for module in network.modules():
            if isinstance(module, nn.InstanceNorm3d):
                module.register_forward_hook(lambda _, inputs, output: inputs[0])
    first = [net.encoder.stages[0] for net in (old, new)]
    image = constant_along(2, 1, 1, 16, 8, 8).float()
    wanted, found = (stage(image) for stage in first)
    assert torch.allclose(wanted[:, :, 4:12], found[:, :, 4:12], atol=1e-5)


def test_more_channels_start_as_the_pretrained_network():
    source, target = facts(channels=("CT",)), facts(channels=("PET", "CT"))
    old, new, report = transferred(source, target, heads=ALL)
    image = torch.randn(1, 1, 16, 16, 16)
    both = torch.cat([torch.randn_like(image), image], 1)
    for wanted, found in zip(old(image), new(both), strict=True):
        assert torch.allclose(wanted, found, atol=1e-4)
    adapted = [t for t in report.tensors if t.status == "adapted"]
    assert [(t.name, t.reason) for t in adapted] == [
        ("encoder.stages.0.0.convs.0.conv.weight", "image channels CT to PET, CT")
    ]


def test_more_blocks_take_those_there_are():
    source, target = facts(residual=True, blocks=[1, 2, 2]), facts(residual=True, blocks=[1, 3, 4])
    _, _, report = transferred(source, target, heads=ALL)
    assert {t.reason for t in report.tensors if t.status == "initialised"} == {
        "the checkpoint's stage has fewer blocks"
    }
    assert report.used_share("encoder") == 1


def test_shares_count_only_what_came_from_the_checkpoint():
    side = facts()
    _, _, report = transferred(side, side, heads={"liver": ("liver",)})
    assert report.share("heads") == report.used_share("heads") == pytest.approx(1 / 3)
    wider = facts(features=(8, 8, 8))
    _, _, report = transferred(facts(features=(4, 8, 8)), wider, heads={}, allow_width=True, allow_partial=True)
    first = next(t for t in report.tensors if t.name == "encoder.stages.0.0.convs.0.conv.weight")
    assert (first.values, first.source_values, first.source_size) == (4 * 27, 4 * 27, 4 * 27)
    assert 0 < report.share("encoder") < report.used_share("encoder") == 1


def test_encoder_only_leaves_the_rest_to_the_seed():
    side = facts()
    old, new, report = transferred(side, side, parts="encoder", heads=ALL)
    untouched = build(side, 2)
    assert torch.equal(new.encoder.stages[2][0].convs[0].conv.weight, old.encoder.stages[2][0].convs[0].conv.weight)
    for name, tensor in new.decoder.named_parameters():
        if not name.startswith("encoder."):
            assert torch.equal(tensor, untouched.decoder.get_parameter(name)), name
    assert report.share("decoder") == report.share("heads") == 0
    assert {t.reason for t in report.ignored} == {"only the encoder is transferred"}
    assert set(report.heads.values()) == {"initialised, only the encoder is transferred"}


def test_another_width_is_refused_unless_asked_for():
    source, target = facts(features=(4, 8, 8)), facts(features=(6, 8, 8))
    with pytest.raises(ValueError, match=r"of the target's encoder would come .*: another width; .*--allow-partial"):
        transferred(source, target, heads=ALL)
    old, new, report = transferred(source, target, heads=ALL, allow_width=True)
    name = "decoder.stages.1.convs.0.conv.weight"
    wanted, found, start = old.get_parameter(name), new.get_parameter(name), build(target, 2).get_parameter(name)
    assert torch.equal(found[:4, :4], wanted[:, :4])
    assert torch.equal(found[:4, 6:10], wanted[:, 4:])
    assert torch.equal(found[4:], start[4:])
    assert {t.reason for t in report.tensors if t.name == name} == {"width 4x8 to 6x12"}


def test_networks_of_other_kinds_are_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"is a PlainConvUNet, .* a ResidualEncoderUNet: a residual block adds its"):
        transferred(facts(), facts(residual=True))
    flat = facts()
    flat.architecture["arch_kwargs"]["kernel_sizes"] = [[3, 3]] * 3
    with pytest.raises(ValueError, match="has 3 spatial axes, the target's 2"):
        transfer_weights(nn.Identity(), flat, pretrained_of(build(facts()), facts()), TransferSettings())


def test_too_little_is_refused_and_nothing_is_touched():
    side = facts()
    old, new = build(side, 1), build(side, 2)
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    renamed = PretrainedNetwork(side, {f"x.{n}": t for n, t in pretrained_of(old, side).weights.items()})
    with pytest.raises(ValueError, match=r"0.0% of the target's encoder would come from .* tensors get nothing"):
        transfer_weights(new, side, renamed, TransferSettings(heads=ALL))
    assert all(torch.equal(tensor, before[name]) for name, tensor in new.state_dict().items())
    report = transfer_weights(new, side, renamed, TransferSettings(heads=ALL, allow_partial=True))
    assert all(report.share(part) == 0 for part in ("encoder", "decoder", "heads"))
    assert {t.reason for t in report.ignored} == {"the target has no such layer"}


def test_a_transfer_that_changes_nothing_is_refused():
    side = facts()
    network = build(side, 1)
    with pytest.raises(ValueError, match="no value of the network differs from what it was"):
        transfer_weights(network, side, pretrained_of(network, side), TransferSettings(heads=ALL))


def test_a_planned_transfer_says_the_same_without_reading_a_value():
    source, target = facts(features=(4, 8, 16)), facts(features=(4, 8, 16, 16), channels=("PET", "CT"))
    _, _, done = transferred(source, target, heads=ALL)
    planned = transfer_weights(
        build(target, 2).to("meta"),
        target,
        pretrained_of(build(source, 1).to("meta"), source),
        TransferSettings(heads=ALL),
    )
    assert [(t.name, t.status, t.reason) for t in planned.tensors] == [
        (t.name, t.status, t.reason) for t in done.tensors
    ]
    assert planned.lines() == done.lines()


def test_second_names_are_turned_into_the_first():
    for side in (facts(), facts(residual=True)):
        network = build(side)
        names = {name for name, _ in network.named_parameters()}
        state = network.state_dict()
        assert {unaliased(name) for name in state} == names
        assert all(state[name].data_ptr() == state[unaliased(name)].data_ptr() for name in state)


def test_parts_and_layers_follow_the_way_of_the_image():
    network = build(facts(residual=True))
    parts, layers = parts_of(network), layers_of(network)
    order = ["encoder.stem.convs.0.conv.weight", "encoder.stages.0.blocks.0.conv1.conv.weight"]
    assert [layers[name] for name in order] == [0, 0]
    order = [
        "encoder.stages.0.blocks.0.conv1.conv.weight",
        "encoder.stages.2.blocks.0.conv1.conv.weight",
        "decoder.transpconvs.0.weight",
        "decoder.stages.1.convs.0.conv.weight",
        "decoder.seg_layers.0.weight",
    ]
    assert [layers[name] for name in order] == [0, 2, 3, 4, 5]
    assert [parts[name] for name in order] == ["encoder", "encoder", "decoder", "decoder", "heads"]
