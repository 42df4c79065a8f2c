"""STU-Net, the residual U-Net whose weights do not depend on the strides, under nnU-Net's calling convention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from nnunet_pretrain.networks.adapter import DeepSupervisionSwitch

NEGATIVE_SLOPE = 1e-2


class ResidualBlock(nn.Module):
    """norm(conv(leaky(norm(conv(x))))) + shortcut(x), then leaky.

    The shortcut is a strided 1x1x1 convolution where the block changes the width, and the identity elsewhere.

    Args:
        features_in: Channels of the input.
        features: Channels of the output.
        kernel_size: Kernel of both convolutions, one odd number per axis.
        stride: Stride of the first convolution, or None for a block with an identity as its shortcut.
    """

    def __init__(
        self, features_in: int, features: int, kernel_size: Sequence[int], stride: Sequence[int] | None
    ) -> None:
        super().__init__()
        kernel = _triple(kernel_size)
        padding = _triple([(size - 1) // 2 for size in kernel])
        step = _triple(stride or (1, 1, 1))
        self.conv1 = nn.Conv3d(features_in, features, kernel, step, padding)
        self.norm1 = nn.InstanceNorm3d(features, affine=True)
        self.conv2 = nn.Conv3d(features, features, kernel, 1, padding)
        self.norm2 = nn.InstanceNorm3d(features, affine=True)
        self.conv3 = None if stride is None else nn.Conv3d(features_in, features, 1, step)
        self.nonlin = nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to (batch, channels, *axes)."""
        y = self.norm2(self.conv2(self.nonlin(self.norm1(self.conv1(x)))))
        return self.nonlin(y + (x if self.conv3 is None else self.conv3(x)))


class NearestUpsampling(nn.Module):
    """Nearest-neighbour up-sampling and a 1x1x1 convolution, which commute; the convolution comes first as cheaper.

    Args:
        features_in: Channels of the input.
        features: Channels of the output.
        scale: Factor per axis.
    """

    def __init__(self, features_in: int, features: int, scale: Sequence[int]) -> None:
        super().__init__()
        self.conv = nn.Conv3d(features_in, features, 1)
        self.scale = tuple(float(factor) for factor in scale)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer to (batch, channels, *axes)."""
        return interpolate(self.conv(x), scale_factor=list(self.scale), mode="nearest")


class STUNet(nn.Module):
    """STU-Net (Huang et al., arXiv 2304.06716), written from its published description.

    A U-Net with residual blocks in encoder and decoder. Its published sizes have 6 stages of 3x3x3 kernels with
    features d * [1, 2, 4, 8, 16, 16]: S (d = 16, one block per stage), B (32, one), L (64, two), H (96, three). Weights
    are named as in its published files. Convolutions start as nnU-Net's (He et al., ICCV 2015).

    Args:
        input_channels: Channels of the image; nnU-Net gives it.
        num_classes: Output channels; nnU-Net gives it.
        n_stages: Number of resolutions.
        features_per_stage: Channels of each stage.
        kernel_sizes: Kernel of each stage, one odd number per axis.
        strides: Downsampling of each stage, one number per axis; the first is all ones.
        n_blocks_per_stage: Residual blocks of each stage, in the encoder and at that resolution in the decoder.
        deep_supervision: Whether to return all outputs; nnU-Net gives it and switches it later.

    Raises:
        ValueError: The lists differ in length.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        n_stages: int,
        features_per_stage: Sequence[int],
        kernel_sizes: Sequence[Sequence[int]],
        strides: Sequence[Sequence[int]],
        n_blocks_per_stage: Sequence[int],
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        lengths = {len(features_per_stage), len(kernel_sizes), len(strides), len(n_blocks_per_stage)}
        if lengths != {n_stages}:
            raise ValueError(f"STUNet with {n_stages} stages needs as many entries in each list, got {lengths}")
        self.decoder = DeepSupervisionSwitch(deep_supervision)
        features = list(features_per_stage)
        self.conv_blocks_context = nn.ModuleList(
            _stage(features[s - 1] if s else input_channels, features[s], kernel_sizes[s], strides[s], depth)
            for s, depth in enumerate(n_blocks_per_stage)
        )
        upwards = range(n_stages - 2, -1, -1)
        self.upsample_layers = nn.ModuleList(
            NearestUpsampling(features[s + 1], features[s], strides[s + 1]) for s in upwards
        )
        self.conv_blocks_localization = nn.ModuleList(
            _stage(2 * features[s], features[s], kernel_sizes[s], (1, 1, 1), n_blocks_per_stage[s]) for s in upwards
        )
        self.seg_outputs = nn.ModuleList(nn.Conv3d(features[s], num_classes, 1) for s in upwards)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Applies the network.

        Args:
            x: Images, (batch, channels, *axes).

        Returns:
            Logits (batch, classes, *axes), or with deep supervision the list of them, the finest first.
        """
        skips = []
        for stage in self.conv_blocks_context:
            x = stage(x)
            skips.append(x)
        outputs = []
        finest = len(self.seg_outputs) - 1
        for d, (upsample, stage, head) in enumerate(
            zip(self.upsample_layers, self.conv_blocks_localization, self.seg_outputs, strict=True)
        ):
            x = stage(torch.cat((upsample(x), skips[-d - 2]), 1))
            if self.decoder.deep_supervision or d == finest:
                outputs.append(head(x))
        return outputs[::-1] if self.decoder.deep_supervision else outputs[-1]

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Initialises a layer as nnU-Net does; nnU-Net applies it to every module."""
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _stage(
    features_in: int, features: int, kernel_size: Sequence[int], stride: Sequence[int], depth: int
) -> nn.Sequential:
    first = ResidualBlock(features_in, features, kernel_size, stride)
    return nn.Sequential(first, *(ResidualBlock(features, features, kernel_size, None) for _ in range(depth - 1)))


def _triple(values: Sequence[int]) -> tuple[int, int, int]:
    z, y, x = values
    return int(z), int(y), int(x)
