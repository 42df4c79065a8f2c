"""MedicalNet: the network computes what plain functions compute, and its files are read whole or refused."""

import math
import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from foreign_networks import accounted, built, configuration_of, origin_of, randomised, saved, wrapped
from nnunet_runs import SMALL, TARGET_LABELS
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn
from torch.nn import functional

from nnunet_pretrain.checkpoints.foreign import medicalnet
from nnunet_pretrain.checkpoints.inspection import describe, read_card
from nnunet_pretrain.checkpoints.pretrained import read_pretrained
from nnunet_pretrain.files import read_json
from nnunet_pretrain.networks.adapter import AdaptedNetwork
from nnunet_pretrain.networks.medicalnet import STRIDES, DilatedResNet, MedicalNet, ZeroShortcut
from nnunet_pretrain.networks.parts import layers_of
from nnunet_pretrain.networks.trial import try_network
from nnunet_pretrain.phantom.datasets import write_phantom_target
from nnunet_pretrain.planning.preset import load_preset
from nnunet_pretrain.planning.settings import PretrainSettings, TransferSettings
from nnunet_pretrain.transfer.plan_transfer import PlanOptions, plan_transfer
from nnunet_pretrain.transfer.pretrained_network import facts_of, pretrained_network
from nnunet_pretrain.transfer.weights import transfer_weights

PATH = "nnunet_pretrain.networks.medicalnet.MedicalNet"
COUNTS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
LAYERS = ((1, 1), (2, 1), (1, 2), (1, 4))  # stride and dilation, as published


def published(depth, shortcut, width=4, channels=1, counters=True):
    """A state dict with the names and shapes of the published files, and random values."""
    generator = torch.Generator().manual_seed(depth)
    weights = {}

    def convolution(name, inputs, outputs, kernel):
        scale = math.sqrt(2 / (inputs * kernel**3))
        weights[f"{name}.weight"] = torch.randn(outputs, inputs, *[kernel] * 3, generator=generator) * scale

    def norm(name, features):
        for key in ("weight", "bias", "running_mean", "running_var"):
            weights[f"{name}.{key}"] = torch.rand(features, generator=generator) + 0.5
        if counters:
            weights[f"{name}.num_batches_tracked"] = torch.tensor(7 + depth)

    convolution("conv1", channels, width, 7)
    norm("bn1", width)
    inputs = width
    for layer, count in enumerate(COUNTS[depth]):
        inner = width * 2**layer
        outputs = inner * (4 if depth >= 50 else 1)
        kernels = ((inner, 1), (inner, 3), (outputs, 1)) if depth >= 50 else ((inner, 3), (outputs, 3))
        for b in range(count):
            block, features = f"layer{layer + 1}.{b}", inputs
            for i, (made, kernel) in enumerate(kernels, 1):
                convolution(f"{block}.conv{i}", features, made, kernel)
                norm(f"{block}.bn{i}", made)
                features = made
            if shortcut == "B" and b == 0 and (LAYERS[layer][0] != 1 or inputs != outputs):
                convolution(f"{block}.downsample.0", inputs, outputs, 1)
                norm(f"{block}.downsample.1", outputs)
            inputs = outputs
    return weights


def released(weights, depth=10):
    """What MedicalNet's code writes: the weights of DataParallel, with the head of the fine-tuning."""
    head = {"conv_seg.0.weight": torch.zeros(8, 4, 2, 2, 2), "conv_seg.6.weight": torch.zeros(2, 4, 1, 1, 1)}
    return {"ecpoch": 3, "epoch": 41, "state_dict": wrapped({**weights, **head}), "optimizer": {"state": {}}}


def computed(weights, x, depth):
    """The features of the four layers, by plain functions that look at nothing but the tensors."""

    def norm(name, y):
        numbers = (weights[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(y, *numbers)

    y = functional.relu(norm("bn1", functional.conv3d(x, weights["conv1.weight"], stride=2, padding=3)))
    y = functional.max_pool3d(y, 3, 2, 1)
    features = []
    for layer, count in enumerate(COUNTS[depth]):
        for b in range(count):
            stride, dilation = (LAYERS[layer][0] if b == 0 else 1), LAYERS[layer][1]
            block, z = f"layer{layer + 1}.{b}", y
            convolutions = [name for name in weights if re.fullmatch(rf"{block}\.conv\d\.weight", name)]
            strided = 1 if len(convolutions) == 3 else 0
            for i, name in enumerate(convolutions):
                wide = weights[name].shape[-1] == 3
                options = {"stride": stride if i == strided else 1, "dilation": dilation if wide else 1}
                z = functional.conv3d(z, weights[name], padding=dilation if wide else 0, **options)
                z = norm(f"{block}.bn{i + 1}", z)
                z = functional.relu(z) if i + 1 < len(convolutions) else z
            short = y
            if f"{block}.downsample.0.weight" in weights:
                short = functional.conv3d(y, weights[f"{block}.downsample.0.weight"], stride=stride)
                short = norm(f"{block}.downsample.1", short)
            elif short.shape != z.shape:
                short = functional.avg_pool3d(short, 1, stride)
                zeros = torch.zeros(z.shape[0], z.shape[1] - short.shape[1], *z.shape[2:])
                short = torch.cat([short, zeros], 1)
            y = functional.relu(z + short)
        features.append(y)
    return features


@pytest.mark.parametrize(("depth", "shortcut", "millions"), [(10, "B", 14.36), (18, "A", 32.99), (50, "B", 46.16)])
def test_the_encoder_has_the_published_size(depth, shortcut, millions):
    with torch.device("meta"):
        encoder = DilatedResNet(1, depth, shortcut)
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize(("depth", "shortcut"), [(10, "B"), (18, "A"), (34, "A"), (50, "B")])
def test_the_encoder_computes_what_plain_functions_compute(depth, shortcut):
    weights = published(depth, shortcut)
    encoder = DilatedResNet(1, depth, shortcut, features=4).eval()
    encoder.load_state_dict(weights)
    image = torch.randn(2, 1, 16, 24, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = encoder(image), computed(weights, image, depth)
    shapes = [(4, 4, 6, 8), (8, 2, 3, 4), (16, 2, 3, 4), (32, 2, 3, 4)]
    wider = 4 if depth == 50 else 1
    assert [tuple(features.shape) for features in found] == [(2, wider * c, *edges) for c, *edges in shapes]
    assert encoder.output_channels == [wider * c for c, *_ in shapes]
    assert [math.prod(axis) for axis in zip(*encoder.strides, strict=True)] == [8, 8, 8]
    for ours, plain in zip(found, expected, strict=True):
        assert plain.std() > 1e-3
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_the_gradient_passes_through_a_shortcut_of_type_a():
    x = torch.randn(1, 2, 4, 4, 4, requires_grad=True)
    y = ZeroShortcut(2, 5, 2)(x)
    torch.testing.assert_close(y[:, :2], x[:, :, ::2, ::2, ::2])
    assert y.shape == (1, 5, 2, 2, 2)
    assert not y[:, 2:].any()
    y.sum().backward()
    assert x.grad.sum() == 2 * 8
    network = MedicalNet(1, 2, depth=18, shortcut="A", features=4)
    for name, module in network.encoder.named_modules():
        if re.fullmatch(r"layer\d\.\d\.bn2", name):  # only the shortcuts are left
            nn.init.zeros_(module.weight)
    network(torch.randn(2, 1, 16, 16, 16)).square().mean().backward()
    assert network.encoder.conv1.weight.grad.abs().max() > 0


def test_it_is_a_network_for_nnunets_plans():
    arguments = {"depth": 10, "shortcut": "B", "strides": [list(stride) for stride in STRIDES], "features": 4}
    network = get_network_from_plans(PATH, arguments, [], 2, 3, deep_supervision=False)
    network.decoder.deep_supervision = False  # as nnU-Net's trainer and predictor do
    image = torch.randn(2, 2, 16, 8, 24)
    logits = network(image)
    assert logits.shape == (2, 3, 16, 8, 24)
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    layers = layers_of(network)
    assert [layers[f"encoder.{name}.weight"] for name in ("conv1", "layer1.0.conv1", "layer4.0.bn1")] == [0, 1, 4]
    assert layers["decoder.seg_layers.0.weight"] == 5


def test_convolutions_start_as_in_the_released_code():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = DilatedResNet(1, 10, "B", features=32)
    for name in ("conv1", "layer3.0.conv2", "layer4.0.downsample.0"):
        weight = encoder.get_submodule(name).weight
        fan_out = weight.shape[0] * math.prod(weight.shape[2:])
        assert float(weight.detach().std()) == pytest.approx(math.sqrt(2 / fan_out), rel=0.03)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 11}, "depth must be one of 10, 18, 34, 50, got 11"),
        ({"shortcut": "C"}, "shortcut must be 'A' or 'B', .*got 'C'"),
        ({"strides": [[1, 1, 1], [1, 2, 2]]}, r"strides are fixed: they must be \[\[1, 1, 1\], \[2, 2, 2\]"),
        ({"deep_supervision": True}, 'no deep supervision; set "deep_supervision" to false'),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MedicalNet(1, 2, **{"depth": 10, "shortcut": "B", "features": 2, **arguments})


def test_a_patch_must_divide_by_eight():
    with pytest.raises(ValueError, match=r"edges divisible by 8, got a patch of \(16, 12, 8\)"):
        MedicalNet(1, 2, 10, "B", features=2)(torch.zeros(1, 1, 16, 12, 8))


@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize(("depth", "shortcut"), [(10, "B"), (18, "A"), (34, "A"), (50, "B")])
def test_a_published_file_is_read_tensor_by_tensor(tmp_path, depth, shortcut, prefix):
    weights = published(depth, shortcut)
    content = released(weights)
    if not prefix:  # a bare state dict, as other tools write it
        content = {**weights, "fc.weight": torch.zeros(3, 8), "fc.bias": torch.zeros(3)}
    path = saved(tmp_path / "any_name.pth", content)
    checkpoint = read_pretrained(path)
    arguments = configuration_of(checkpoint).network_arch_init_kwargs
    assert (arguments["depth"], arguments["shortcut"], arguments["features"]) == (depth, shortcut, 4)
    found = checkpoint["network_weights"]
    assert set(found) == {f"encoder.{name}" for name in weights}
    assert all(torch.equal(found[f"encoder.{name}"], tensor) for name, tensor in weights.items())
    accounted(checkpoint, content["state_dict"] if prefix else content, medicalnet.KEY_TABLE, prefix)
    origin = origin_of(checkpoint)
    left_out = {"module.conv_seg.0.weight", "module.conv_seg.6.weight"} if prefix else {"fc.weight", "fc.bias"}
    assert set(origin["unmapped"]) == left_out
    assert {"spacing", "patch_size", "normalization", "intensity", "transpose"} <= set(origin["unknown"])
    assert checkpoint["current_epoch"] == (41 if prefix else 0)
    network = built(checkpoint, strict=False, deep_supervision=False)
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        expected = computed(weights, image, depth)[-1]
        torch.testing.assert_close(network.encoder(image)[-1], expected, rtol=1e-4, atol=1e-5)


def test_files_of_old_torch_lack_only_counters(tmp_path):
    weights = published(10, "B", counters=False)
    checkpoint = read_pretrained(saved(tmp_path / "old.pth", released(weights)))
    assert set(checkpoint["network_weights"]) == {f"encoder.{name}" for name in weights}
    assert any(note.startswith("12 counters of batches") for note in origin_of(checkpoint)["notes"])


def changed(depth, shortcut, remove="", **shapes):
    weights = published(depth, shortcut)
    kept = {name: tensor for name, tensor in weights.items() if not (remove and re.match(remove, name))}
    return {**kept, **{name.replace("__", "."): torch.zeros(shape) for name, shape in shapes.items()}}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            changed(10, "B", r"layer4\.0\.bn2\.weight"),
            r"depth 10 and shortcut type B .*4\.0\.bn2\.weight: missing",
        ),
        (changed(10, "B", r"layer2\.0\.downsample"), r"layer2\.0\.downsample\.0\.weight: missing.*\(5 in all\)"),
        (
            changed(18, "A", layer2__0__downsample__0__weight=(8, 4, 1, 1, 1)),
            r"depth 18 and shortcut type B .*layer2\.0\.downsample\.1\.weight: missing",
        ),
        (changed(10, "B", bn2__weight=(4,)), r"bn2\.weight: the network has no such tensor"),
        (changed(18, "A", layer1__1__conv3__weight=(4, 4, 1, 1, 1)), r"layer1\.1\.conv3\.weight: the network has no"),
        (
            changed(10, "B", layer3__0__conv2__weight=(16, 16, 1, 3, 3)),
            r"layer3\.0\.conv2\.weight: shape \(16, 16, 1, 3, 3\), the network has \(16, 16, 3, 3, 3\)",
        ),
        (
            changed(18, "A", r"layer4\.1"),
            r"\(2, 2, 2, 1\) basic blocks .*expected one of the depths 10, 18",
        ),
    ],
)
def test_a_file_that_does_not_fit_wholly_is_refused_with_the_tensors(tmp_path, weights, message):
    with pytest.raises(ValueError, match=message):
        read_pretrained(saved(tmp_path / "x.pth", released(weights)))


def test_a_2d_resnet_is_none_and_one_of_videos_is_noted(tmp_path):
    flat = {name: tensor[..., 0] if tensor.ndim == 5 else tensor for name, tensor in published(18, "A").items()}
    with pytest.raises(ValueError, match=r"the format of .* is not known.*Models Genesis, MedicalNet"):
        read_pretrained(saved(tmp_path / "flat.pth", flat))
    video = read_pretrained(saved(tmp_path / "video.pth", published(18, "A", channels=3)))
    assert any("takes 3 channels and that of the published files 1" in note for note in origin_of(video)["notes"])
    assert len(video["init_args"]["dataset_json"]["channel_names"]) == 3


def test_inspect_describes_it(tmp_path):
    path = saved(tmp_path / "resnet_18.pth", released(published(18, "A")))
    text = describe(read_card(path))
    for line in (
        "converted from MedicalNet",
        "network        MedicalNet, ",
        "spacing        unknown, patch unknown",
        "left out       2 x head of the released fine-tuning, which new tasks start anew",
    ):
        assert line in text


@pytest.mark.slow
def test_it_is_transferred_to_a_target(nnunet, tmp_path):
    raw = nnunet / "nnUNet_raw/Dataset940_Target"
    write_phantom_target(raw, TARGET_LABELS, [80], [81], [], **SMALL)
    weights = published(18, "A")
    path = saved(tmp_path / "resnet_18_23dataset.pth", released(weights))
    options = PlanOptions(dataset=940, checkpoint=path, preset="med3d_resnet18", num_processes=1)
    with pytest.raises(ValueError, match=r"does not say at which spacing or patch .*plan with --keep target"):
        plan_transfer(options)
    made = plan_transfer(replace(options, keep="target"))
    assert made.comparison.recommended == "target"
    plans = read_json(made.transfer)
    settings = PretrainSettings.from_plans(plans)
    dataset_json = read_json(raw / "dataset.json")
    target = facts_of(plans, made.configuration, dataset_json)
    network = get_network_from_plans(*target.architecture.values(), 1, 3, deep_supervision=False)
    head = {name: t.clone() for name, t in network.state_dict().items() if not name.startswith("encoder.")}
    pretrained = pretrained_network(read_pretrained(path), plans["transpose_forward"])
    report = transfer_weights(network, target, pretrained, settings.transfer)
    state = network.state_dict()
    assert all(torch.equal(state[f"encoder.{name}"], tensor) for name, tensor in weights.items())
    assert all(torch.equal(state[name], tensor) for name, tensor in head.items())
    assert report.count("loaded", "encoder") == len(weights)
    assert (report.count("adapted"), report.count("initialised", "encoder"), report.ignored) == (0, 0, ())
    assert set(report.heads.values()) == {"initialised, the checkpoint holds no head"}
    assert report.share("encoder") == made.report.share("encoder") == 1


def test_the_first_layer_is_fitted_to_more_channels(tmp_path):
    weights = published(10, "B")
    content = read_pretrained(saved(tmp_path / "x.pth", weights))
    arguments = content["init_args"]
    dataset_json = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "lesion": 1}}
    target = facts_of(arguments["plans"], arguments["configuration"], dataset_json)
    network = randomised(get_network_from_plans(*target.architecture.values(), 2, 2, deep_supervision=False))
    transfer_weights(network, target, pretrained_network(content), TransferSettings())
    image = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        found = network.encoder.conv1(image.repeat(1, 2, 1, 1, 1))
        torch.testing.assert_close(found, functional.conv3d(image, weights["conv1.weight"], stride=2, padding=3))


def test_the_preset_builds_it():
    preset = load_preset("med3d_resnet18")
    assert preset.architecture.network == PATH
    build = partial(AdaptedNetwork, 1, 4, **preset.architecture.arch_kwargs())
    try_network(build, (1, 4), preset.architecture.patch_size, None)
    assert not preset.training.deep_supervision
    assert not preset.transfer.deep_supervision
    assert preset.domains.clip_percentiles == (0.5, 99.5)
