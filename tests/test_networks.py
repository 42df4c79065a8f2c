"""Networks of any class under nnU-Net's calling convention."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunet_pretrain.networks.adapter import PREFIX, AdaptedNetwork
from nnunet_pretrain.networks.locate import locate
from nnunet_pretrain.networks.trial import try_network

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
MONAI = {
    "SegResNet": ({"init_filters": 8, "blocks_down": [1, 1, 1, 1]}, [[1, 1, 1], *[[2, 2, 2]] * 3]),
    "SwinUNETR": ({"feature_size": 12}, [[1, 1, 1], *[[2, 2, 2]] * 5]),
}


class TwoScales(nn.Module):
    """Returns two scales, packed as asked for, or nothing."""

    def __init__(self, in_channels, out_channels, packing):
        super().__init__()
        self.fine, self.coarse = nn.Conv3d(in_channels, out_channels, 1), nn.Conv3d(in_channels, out_channels, 1)
        self.packing = packing

    def forward(self, x):
        fine, coarse = self.fine(x), self.coarse(nn.functional.avg_pool3d(x, 2))
        return {
            "list": [fine, coarse],
            "tuple": (fine, coarse),
            "dict": {"fine": fine, "coarse": coarse},
            "nested": ((None, [fine]), {"coarse": coarse}),
            "none": None,
            "one": fine,
        }[self.packing]


class Crooked(nn.Module):
    """Two scales whose kernel differs along every axis."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, (1, 3, 5), padding=(0, 1, 2))

    def forward(self, x):
        return [self.conv(x), self.conv(x[:, :, ::2, ::2, ::2])]


class BranchesOnValues(TwoScales):
    """Cannot run without real numbers."""

    def forward(self, x):
        return self.fine(x) if x.sum() < 1 else self.coarse(x)


class NoMonai:
    """An importer that finds no monai, with the error Python gives for a package that is not installed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "monai":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


def two_scales(packing, classes=3, deep_supervision=False, **arguments):
    return AdaptedNetwork(
        1,
        classes,
        network=f"{__name__}.TwoScales",
        arguments={"packing": packing},
        deep_supervision=deep_supervision,
        **arguments,
    )


def monai(name, classes=3, **changes):
    pytest.importorskip("monai")
    arguments, strides = MONAI[name]
    return AdaptedNetwork(
        1,
        classes,
        network=f"monai.networks.nets.{name}",
        arguments={"spatial_dims": 3, **arguments, **changes},
        strides=strides,
    )


@pytest.mark.parametrize("packing", ["list", "tuple", "dict", "nested"])
def test_deep_supervision_switches_between_the_first_output_and_all(packing):
    network, image = two_scales(packing), torch.randn(2, 1, 8, 8, 8)
    trainer = SimpleNamespace(is_ddp=False, network=network)
    torch.testing.assert_close(network(image), network.backbone.fine(image))
    nnUNetTrainer.set_deep_supervision_enabled(trainer, True)
    fine, coarse = network(image)
    torch.testing.assert_close(fine, network.backbone.fine(image))
    assert coarse.shape == (2, 3, 4, 4, 4)
    nnUNetTrainer.set_deep_supervision_enabled(trainer, False)
    assert network(image).shape == (2, 3, 8, 8, 8)


def test_a_network_with_one_output_gives_a_list_of_one_under_deep_supervision():
    (output,) = two_scales("one", deep_supervision=True)(torch.randn(2, 1, 8, 8, 8))
    assert output.shape == (2, 3, 8, 8, 8)


@pytest.mark.parametrize("order", [[2, 1, 0], [1, 2, 0]])
def test_with_an_axis_order_the_network_sees_turned_images_and_gives_outputs_turned_back(order):
    network = AdaptedNetwork(
        1,
        3,
        network=f"{__name__}.Crooked",
        strides=[[1, 1, 1], [2, 2, 2]],
        deep_supervision=True,
        axis_order=order,
    )
    image = torch.randn(2, 1, 4, 8, 16)
    forth, back = [0, 1, *(axis + 2 for axis in order)], [0, 1, *(order.index(axis) + 2 for axis in range(3))]
    expected = [output.permute(back) for output in network.backbone(image.permute(forth))]
    for found, output in zip(network(image), expected, strict=True):
        assert found.shape == output.shape
        torch.testing.assert_close(found, output)
    assert not torch.allclose(network(image)[0], network.backbone(image)[0])
    network.decoder.deep_supervision = False
    torch.testing.assert_close(network(image), expected[0])
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(image), expected[0])


def test_with_an_axis_order_strides_and_patches_stay_in_nnunets_order():
    strides = [[1, 1, 1], [1, 2, 4]]
    network = AdaptedNetwork(1, 3, network=f"{__name__}.Crooked", strides=strides, axis_order=[2, 1, 0])
    assert network(torch.zeros(1, 1, 3, 4, 4)).shape == (1, 3, 3, 4, 4)
    with pytest.raises(ValueError, match=r"needs edges divisible by \(1, 2, 4\), got a patch of \(4, 2, 1\)"):
        network(torch.zeros(1, 1, 4, 2, 1))
    with pytest.raises(ValueError, match=r"axis_order must hold each axis once, such as \[2, 1, 0\], got \[2, 2, 0\]"):
        AdaptedNetwork(1, 3, network=f"{__name__}.Crooked", axis_order=[2, 2, 0])
    with pytest.raises(ValueError, match=r"axis_order \[2, 1, 0\] is for 3 axes, got an array of shape \(1, 1, 4, 4\)"):
        AdaptedNetwork(1, 3, network="torch.nn.Conv2d", arguments={"kernel_size": 1}, axis_order=[2, 1, 0])(
            torch.zeros(1, 1, 4, 4)
        )


def test_weights_keep_their_names_behind_one_prefix():
    network = two_scales("list")
    assert set(network.state_dict()) == {PREFIX + name for name in network.backbone.state_dict()}


def test_it_compiles_in_one_piece_and_follows_the_switch():
    network, image = two_scales("list", strides=STRIDES), torch.randn(1, 1, 8, 8, 8)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(image), network(image))
    nnUNetTrainer.set_deep_supervision_enabled(SimpleNamespace(is_ddp=False, network=compiled), True)
    assert [tuple(output.shape) for output in compiled(image)] == [(1, 3, 8, 8, 8), (1, 3, 4, 4, 4)]


def test_nnunets_own_network_built_through_the_adapter_is_the_same_network():
    arguments = {
        "n_stages": 3,
        "features_per_stage": [4, 8, 8],
        "conv_op": "torch.nn.Conv3d",
        "kernel_sizes": 3,
        "strides": [1, 2, 2],
        "n_conv_per_stage": 1,
        "n_conv_per_stage_decoder": 1,
        "norm_op": "torch.nn.InstanceNorm3d",
        "nonlin": "torch.nn.LeakyReLU",
    }
    path = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    imported = ["conv_op", "norm_op", "nonlin"]
    own = get_network_from_plans(path, arguments, imported, 1, 3, deep_supervision=True)
    adapted = get_network_from_plans(
        f"{AdaptedNetwork.__module__}.AdaptedNetwork",
        json.loads(
            json.dumps(
                {
                    "network": path,
                    "input_argument": "input_channels",
                    "output_argument": "num_classes",
                    "arguments": {**arguments, "deep_supervision": True},
                    "imported_arguments": imported,
                    "strides": STRIDES,
                }
            )
        ),
        [],
        1,
        3,
        deep_supervision=True,
    )
    adapted.load_state_dict({PREFIX + name: weight for name, weight in own.state_dict().items()})
    image = torch.randn(1, 1, 16, 16, 16)
    for theirs, ours in zip(own(image), adapted(image), strict=True):
        torch.testing.assert_close(ours, theirs)
    adapted.decoder.deep_supervision = False
    torch.testing.assert_close(adapted(image), own(image)[0])


def test_heads_are_the_weights_that_depend_on_the_classes_and_asking_draws_no_random_numbers():
    network = two_scales("list")
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert set(network.head_names()) == set(network.state_dict())
    assert torch.rand(1) == expected


@pytest.mark.parametrize(
    ("name", "head"),
    [("SegResNet", "backbone.conv_final.2.conv."), ("SwinUNETR", "backbone.out.conv.conv.")],
)
def test_monai_networks_give_every_weight_a_gradient_and_know_their_head(name, head):
    network = monai(name)
    output = network(torch.randn(2, 1, 32, 32, 64))
    assert output.shape == (2, 3, 32, 32, 64)
    output.square().sum().backward()
    without = [weight for weight, parameter in network.named_parameters() if parameter.grad is None]
    assert not without  # DistributedDataParallel refuses parameters that are never used
    assert network.head_names() == (f"{head}weight", f"{head}bias")
    assert set(monai(name, classes=4).state_dict()) == set(network.state_dict())


@pytest.mark.parametrize(
    ("name", "size", "tensors", "parameters"),
    [
        ("SegResNet", {"init_filters": 16, "blocks_down": [1, 2, 2, 4], "blocks_up": [1, 1, 1]}, 81, 4.70e6),
        ("SwinUNETR", {"feature_size": 48}, 157, 62.19e6),
    ],
)
def test_suprems_backbones_have_as_many_tensors_as_its_published_files(name, size, tensors, parameters):
    pytest.importorskip("monai")
    network = AdaptedNetwork(1, 32, network=f"monai.networks.nets.{name}", arguments=size)
    assert len(set(network.state_dict()) - set(network.head_names())) == tensors
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(parameters, rel=1e-3)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.Net", "needs the package 'nowhere', which is not installed: install the package that provides"),
        ("torch.nn.nets.Net", r"'torch.nn.nets.Net' is wrong: there is no module 'torch.nn.nets'"),
        ("torch.nn.Conv3D", r"module 'torch.nn' has no 'Conv3D'; near it are \['Conv3d'"),
        ("torch.nn.functional.relu", "is no network: expected a class derived from torch.nn.Module, found <function"),
        ("UNet", "is no dotted path; expected one such as 'monai.networks.nets.SegResNet'"),
    ],
)
def test_a_wrong_path_is_refused(path, message):
    with pytest.raises(ValueError, match=message):
        AdaptedNetwork(1, 2, network=path)


def test_without_monai_the_error_says_what_to_install(monkeypatch):
    for module in [name for name in sys.modules if name.partition(".")[0] == "monai"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [NoMonai, *sys.meta_path])
    with pytest.raises(ValueError, match=r"needs the package 'monai', .*: pip install \"nnunet-pretrain\[monai\]\""):
        locate("monai.networks.nets.SegResNet")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arguments": {"kernel": 3}}, "torch.nn.Conv3d has no argument 'kernel'; its arguments are in_channels, out_"),
        ({}, "torch.nn.Conv3d needs the argument 'kernel_size'; given are in_channels, out_channels"),
        ({"arguments": {"in_channels": 2}}, "nnU-Net gives in_channels; remove it from the arguments"),
        ({"input_argument": "channels"}, "torch.nn.Conv3d has no argument 'channels'"),
        (
            {"arguments": {"kernel_size": 3, "groups": 2}},
            r"Conv3d\(in_channels=1, .*\) failed: in_channels must be div",
        ),
        ({"imported_arguments": ["kernel_size"]}, "'kernel_size' is to be imported, but the arguments are"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdaptedNetwork(1, 2, network="torch.nn.Conv3d", **arguments)


def test_patches_that_do_not_divide_and_outputs_without_tensors_are_refused():
    with pytest.raises(ValueError, match=r"needs edges divisible by \(4, 4, 4\), got a patch of \(8, 8, 6\)"):
        two_scales("list", strides=STRIDES)(torch.zeros(1, 1, 8, 8, 6))
    with pytest.raises(ValueError, match="TwoScales returned no tensor"):
        two_scales("none")(torch.zeros(1, 1, 8, 8, 8))


def test_a_trial_accepts_what_nnunet_can_train():
    try_network(lambda: two_scales("list"), (1, 3), (8, 8, 8), None)
    try_network(lambda: two_scales("list", deep_supervision=True), (1, 3), (8, 8, 8), STRIDES)
    branching = {"network": f"{__name__}.BranchesOnValues", "arguments": {"packing": "one"}}
    try_network(lambda: AdaptedNetwork(1, 3, **branching), (1, 3), (8, 8, 8), None)


def test_a_trial_refuses_outputs_of_other_shapes_and_networks_that_fail():
    with pytest.raises(ValueError, match=r"gives outputs of shape \[\(2, 3, .* set \"deep_supervision\" to false"):
        try_network(lambda: two_scales("one", deep_supervision=True), (1, 3), (8, 8, 8), STRIDES)
    unpadded = {"network": "torch.nn.Conv3d", "arguments": {"kernel_size": 3}}
    with pytest.raises(ValueError, match=r"\(2, 3, 6, 6, 6\)\] .* expected \[\(2, 3, 8, 8, 8\)\]; correct its arg"):
        try_network(lambda: AdaptedNetwork(1, 3, **unpadded), (1, 3), (8, 8, 8), None)
    with pytest.raises(ValueError, match=r"the network fails on a patch of \[2, 2, 2\]: .*[Kk]ernel size"):
        try_network(lambda: AdaptedNetwork(1, 3, **unpadded), (1, 3), (2, 2, 2), None)
