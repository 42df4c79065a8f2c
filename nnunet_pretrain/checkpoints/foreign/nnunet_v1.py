"""nnU-Net v1: Generic_UNet is v2's PlainConvUNet under other names. So MultiTalent v1 and old TotalSegmentator."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from nnunet_pretrain.checkpoints.foreign.file import ForeignFile
from nnunet_pretrain.checkpoints.foreign.fit import fitted_exactly
from nnunet_pretrain.checkpoints.foreign.key_table import KeyTable
from nnunet_pretrain.checkpoints.foreign.nnunet_v1_plans import training_of
from nnunet_pretrain.checkpoints.foreign.v2_form import Origin, architecture, checkpoint

FORMAT = "nnU-Net v1 (Generic_UNet)"
_PLAIN = "dynamic_network_architectures.architectures.unet.PlainConvUNet"


def recognises(file: ForeignFile) -> bool:
    """Says whether the file holds a network of nnU-Net v1, also one that cannot be converted."""
    return file.has(r"conv_blocks_context\.\d+\.blocks\.\d+\.conv\.weight") or _is_fabians(file)


def _is_fabians(file: ForeignFile) -> bool:
    return file.has(r"encoder\.initial_conv\.weight")


def key_table(stages: int, last_conv: int) -> KeyTable:
    """Returns the names of Generic_UNet and of PlainConvUNet.

    Generic_UNet puts the last convolution of the bottleneck and of every decoder stage into a block of its own.

    Args:
        stages: Number of resolutions.
        last_conv: Position of that last convolution in v2's stage.
    """
    bottom, last = stages - 1, last_conv
    pairs = []
    for v1_part, part in (("conv", "conv"), ("instnorm", "norm")):
        v2_bottom = f"encoder.stages.{bottom}.0.convs"
        pairs += [
            (f"conv_blocks_context.{bottom}.1.blocks.0.{v1_part}.{{k}}", f"{v2_bottom}.{last}.{part}.{{k}}"),
            (f"conv_blocks_context.{bottom}.0.blocks.{{i}}.{v1_part}.{{k}}", f"{v2_bottom}.{{i}}.{part}.{{k}}"),
            (
                f"conv_blocks_context.{{s}}.blocks.{{i}}.{v1_part}.{{k}}",
                f"encoder.stages.{{s}}.0.convs.{{i}}.{part}.{{k}}",
            ),
            (
                f"conv_blocks_localization.{{d}}.1.blocks.0.{v1_part}.{{k}}",
                f"decoder.stages.{{d}}.convs.{last}.{part}.{{k}}",
            ),
            (
                f"conv_blocks_localization.{{d}}.0.blocks.{{i}}.{v1_part}.{{k}}",
                f"decoder.stages.{{d}}.convs.{{i}}.{part}.{{k}}",
            ),
        ]
    pairs += [
        ("tu.{d}.{k}", "decoder.transpconvs.{d}.{k}"),
        ("seg_outputs.{d}.{k}", "decoder.seg_layers.{d}.{k}"),
    ]
    return KeyTable(pairs)


def key_table_of(weights: Mapping[str, Tensor]) -> KeyTable:
    """Returns the table for the Generic_UNet whose tensors are given."""
    bottom = max(int(s) for s in _found(weights, r"conv_blocks_context\.(\d+)\..*"))
    return key_table(bottom + 1, len(_found(weights, rf"conv_blocks_context\.{bottom}\.0\.blocks\.(\d+)\..*")))


def convert(file: ForeignFile) -> dict[str, Any]:
    """Converts a Generic_UNet to PlainConvUNet, which then gives the same logits.

    Generic_UNet has no biases in its transposed convolutions and heads; they are 0 in v2.

    Raises:
        ValueError: The network is v1's residual one, or was built without transposed convolutions.
    """
    if _is_fabians(file):
        raise ValueError(
            f"{file.path} holds nnU-Net v1's residual network (FabiansUNet), which v2's ResidualEncoderUNet cannot "
            f"represent exactly: its shortcuts are strided 1x1x1 convolutions with norm where v2 pools first, it "
            f"projects also between stages of equal width, and its stem differs. Start from a Generic_UNet, or train "
            f"a ResidualEncoderUNet anew"
        )
    origin = Origin(FORMAT)
    renamed = key_table_of(file.weights).to_v2(file.weights)
    origin.leave_out(file, renamed, "PlainConvUNet has no such tensor")
    weights = {v2: file.weights[name] for name, v2 in renamed.items()}
    network = _architecture(weights, file, origin)
    weights = _with_zero_biases(_padded(weights, network["arch_kwargs"]["kernel_sizes"], origin), network)
    heads = network["arch_kwargs"]["n_stages"] - 2
    sizes = weights["encoder.stages.0.0.convs.0.conv.weight"].shape[1], _rows(weights, heads)
    training = training_of(file.read_sidecar(), sizes[1], _dimension(weights), origin.notes)
    if training.sigmoid and training.labels is None:
        origin.notes.append("its outputs are independent sigmoids; the file does not say which structures they are")
    state = fitted_exactly(network, weights, sizes, file.path)
    return checkpoint(file, origin, network, state, sizes, training)


def _found(weights: Mapping[str, Tensor], pattern: str) -> set[str]:
    return {found[1] for found in (re.fullmatch(pattern, name) for name in weights) if found}


def _rows(weights: Mapping[str, Tensor], head: int) -> int:
    return weights[f"decoder.seg_layers.{head}.weight"].shape[0]


def _dimension(weights: Mapping[str, Tensor]) -> int:
    return weights["encoder.stages.0.0.convs.0.conv.weight"].ndim - 2


def _architecture(weights: Mapping[str, Tensor], file: ForeignFile, origin: Origin) -> dict[str, Any]:
    """Derives the plans' entry from the shapes of tensors under v2's names."""
    stages = len(_found(weights, r"encoder\.stages\.(\d+)\..*"))
    ups = [weights.get(f"decoder.transpconvs.{d}.weight") for d in range(stages - 1)]
    strides = [list(up.shape[2:]) for up in reversed(ups) if up is not None]
    if len(strides) != stages - 1:
        raise ValueError(
            f"{file.path} holds a Generic_UNet without transposed convolutions, as old variants of nnU-Net v1 have; "
            f"PlainConvUNet always has them"
        )
    convs = [_convs(weights, rf"encoder\.stages\.{s}\.0\.convs\.(\d+)\.conv\.weight") for s in range(stages)]
    up_convs = [_convs(weights, rf"decoder\.stages\.{d}\.convs\.(\d+)\.conv\.weight") for d in range(stages - 1)]
    dimension = _dimension(weights)
    first = "encoder.stages.0.0.convs.0"
    norm = "BatchNorm" if f"{first}.norm.running_mean" in weights else "InstanceNorm"
    has_norm = f"{first}.norm.weight" in weights
    origin.notes.append("the activation is not in the file; LeakyReLU(0.01) was taken, as v1's trainers use")
    return architecture(
        _PLAIN,
        ("conv_op", "norm_op", "dropout_op", "nonlin"),
        n_stages=stages,
        features_per_stage=[weights[f"encoder.stages.{s}.0.convs.0.conv.weight"].shape[0] for s in range(stages)],
        conv_op=f"torch.nn.modules.conv.Conv{dimension}d",
        kernel_sizes=_kernels(weights, stages),
        strides=[[1] * dimension, *strides],
        n_conv_per_stage=convs,
        n_conv_per_stage_decoder=up_convs,
        conv_bias=f"{first}.conv.bias" in weights,
        norm_op=f"torch.nn.modules.{norm.lower()}.{norm}{dimension}d" if has_norm else None,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        dropout_op=None,
        dropout_op_kwargs=None,
        nonlin="torch.nn.LeakyReLU",
        nonlin_kwargs={"inplace": True},
    )


def _convs(weights: Mapping[str, Tensor], pattern: str) -> int:
    return len(_found(weights, pattern))


def _kernels(weights: Mapping[str, Tensor], stages: int) -> list[list[int]]:
    """Returns for every resolution the kernel that encoder and decoder both fit into."""
    kernels = []
    for s in range(stages):
        shapes = [weights[f"encoder.stages.{s}.0.convs.0.conv.weight"].shape[2:]]
        if s < stages - 1:
            shapes.append(weights[f"decoder.stages.{stages - 2 - s}.convs.0.conv.weight"].shape[2:])
        kernels.append([max(sizes) for sizes in zip(*shapes, strict=True)])
    return kernels


def _padded(weights: Mapping[str, Tensor], kernels: list[list[int]], origin: Origin) -> dict[str, Tensor]:
    """Surrounds kernels with zeros up to the size v2 uses at that resolution.

    v1 gives a decoder stage the kernel of the next coarser encoder stage, v2 that of its own resolution. A 1x3x3
    kernel inside a 3x3x3 one of zeros is the same convolution.
    """
    padded = dict(weights)
    for name, weight in weights.items():
        found = re.fullmatch(r"(encoder|decoder)\.stages\.(\d+)\..*conv\.weight", name)
        if found is None:
            continue
        stage = int(found[2]) if found[1] == "encoder" else len(kernels) - 2 - int(found[2])
        margins = [(new - old) // 2 for new, old in zip(kernels[stage], weight.shape[2:], strict=True)]
        if any(margins):
            padded[name] = pad(weight, [margin for margin in reversed(margins) for _ in range(2)])
            origin.notes.append(
                f"{name}: kernel {list(weight.shape[2:])} in zeros to {kernels[stage]}, which is the same function; v1 "
                f"uses another kernel in the decoder than in the encoder at this resolution"
            )
    return padded


def _with_zero_biases(weights: Mapping[str, Tensor], network: Mapping[str, Any]) -> dict[str, Tensor]:
    """Adds the biases that v2 has and v1 does not."""
    complete = dict(weights)
    for d in range(network["arch_kwargs"]["n_stages"] - 1):
        up, head = f"decoder.transpconvs.{d}", f"decoder.seg_layers.{d}"
        if network["arch_kwargs"]["conv_bias"]:
            complete.setdefault(f"{up}.bias", torch.zeros(weights[f"{up}.weight"].shape[1]))
        if f"{head}.weight" in weights:
            complete.setdefault(f"{head}.bias", torch.zeros(weights[f"{head}.weight"].shape[0]))
    return complete
