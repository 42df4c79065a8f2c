"""The dilated 3D ResNet of Med3D, whose weights MedicalNet published, under nnU-Net's calling convention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from nnunet_pretrain.networks.branches import SimpleBranch

OUTPUT_STRIDE = 8
"""Down-sampling of the encoder's last features along every axis."""

STRIDES = ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
"""The same in nnU-Net's form."""

BLOCKS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
}
"""Depth to the number of blocks in each of the four layers."""

BOTTLENECK_FROM = 50
"""The least depth whose blocks are bottlenecks."""


class ZeroShortcut(nn.Module):
    """Shortcut of type A: the input at every `stride`-th voxel, and zeros in the channels it lacks.

    It has no weights. In the released code no gradient passes through it; here it does.

    Args:
        features_in: Channels of the input.
        features: Channels of the output.
        stride: Step along every axis.
    """

    def __init__(self, features_in: int, features: int, stride: int) -> None:
        super().__init__()
        self.missing, self.stride = features - features_in, stride

    def forward(self, x: Tensor) -> Tensor:
        """Applies the shortcut to (batch, channels, *axes)."""
        s = self.stride
        return pad(x[:, :, ::s, ::s, ::s], (0, 0, 0, 0, 0, 0, 0, self.missing))


class BasicBlock(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)) with two 3x3x3 convolutions.

    Args:
        features_in: Channels of the input.
        width: Channels of the convolutions; the output has `expansion` times as many.
        stride: Stride of the first convolution.
        dilation: Dilation of both convolutions.
        downsample: The shortcut.
    """

    expansion = 1

    def __init__(self, features_in: int, width: int, stride: int, dilation: int, downsample: nn.Module) -> None:
        super().__init__()
        self.conv1 = _convolution(features_in, width, 3, stride, dilation)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = _convolution(width, width, 3, 1, dilation)
        self.bn2 = nn.BatchNorm3d(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to (batch, channels, *axes)."""
        y = torch.relu_(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu_(y + self.downsample(x))


class Bottleneck(nn.Module):
    """As `BasicBlock`, with a 3x3x3 convolution between two of 1x1x1.

    Args:
        features_in: Channels of the input.
        width: Channels of the first two convolutions; the output has `expansion` times as many.
        stride: Stride of the 3x3x3 convolution.
        dilation: Dilation of the 3x3x3 convolution.
        downsample: The shortcut.
    """

    expansion = 4

    def __init__(self, features_in: int, width: int, stride: int, dilation: int, downsample: nn.Module) -> None:
        super().__init__()
        self.conv1 = _convolution(features_in, width, 1)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = _convolution(width, width, 3, stride, dilation)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = _convolution(width, self.expansion * width, 1)
        self.bn3 = nn.BatchNorm3d(self.expansion * width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to (batch, channels, *axes)."""
        y = torch.relu_(self.bn1(self.conv1(x)))
        y = torch.relu_(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu_(y + self.downsample(x))


class DilatedResNet(nn.Module):
    """Encoder of Med3D (Chen et al., arXiv 1904.00625), written from the description of the released network.

    A 3D ResNet whose last two layers are dilated (2 and 4) instead of strided, so that the features of three of its
    four layers have an eighth of the image's resolution. Weights are named as in the published files. Convolutions
    start as in the released code (He et al., ICCV 2015, by the number of outputs).

    Args:
        input_channels: Channels of the image.
        depth: 10, 18, 34 or 50.
        shortcut: Where a block changes resolution or width, `A` is a `ZeroShortcut` and `B` a 1x1x1 convolution with
            batch norm. Published are A for depths 18 and 34, B for 10 and 50.
        features: Channels of the first convolution; the layers have 1, 2, 4 and 8 times as many, and bottlenecks four
            times that.

    Attributes:
        output_channels: Channels of each layer's features.
        strides: Down-sampling of each layer, per axis, relative to the one before it; the first relative to the image.

    Raises:
        ValueError: There is no such depth or shortcut.
    """

    def __init__(self, input_channels: int, depth: int, shortcut: str, features: int = 64) -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise ValueError(f"depth must be one of {', '.join(map(str, BLOCKS))}, got {depth!r}")
        if shortcut not in ("A", "B"):
            raise ValueError(f"shortcut must be 'A' or 'B', as the published weights need it, got {shortcut!r}")
        block = Bottleneck if depth >= BOTTLENECK_FROM else BasicBlock
        widths = [features * 2**i for i in range(4)]
        self.output_channels = [width * block.expansion for width in widths]
        self.strides = [[step] * 3 for step in (4, 2, 1, 1)]
        self.conv1 = _convolution(input_channels, features, 7, 2)
        self.bn1 = nn.BatchNorm3d(features)
        self.maxpool = nn.MaxPool3d(3, 2, 1)
        inputs = [features, *self.output_channels[:-1]]
        layers = [
            _layer(block, inputs[i], widths[i], BLOCKS[depth][i], stride, dilation, shortcut)
            for i, (stride, dilation) in enumerate(((1, 1), (2, 1), (1, 2), (1, 4)))
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> list[Tensor]:
        """Computes the features of an image.

        Args:
            x: Images, (batch, channels, *axes); every edge divides by 8.

        Returns:
            The features of the four layers, (batch, output_channels[i], *axes): the first have a quarter of the
            image's resolution, the others an eighth.

        Raises:
            ValueError: An edge does not divide by 8.
        """
        edges = tuple(x.shape[2:])
        if any(edge % OUTPUT_STRIDE for edge in edges):
            raise ValueError(
                f"MedicalNet needs edges divisible by {OUTPUT_STRIDE}, got a patch of {edges}; correct patch_size in "
                f"the plans"
            )
        x = self.maxpool(torch.relu_(self.bn1(self.conv1(x))))
        found = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            found.append(x)
        return found


class MedicalNet(nn.Module):
    """The dilated 3D ResNet with Med3D's branch, a 1x1x1 convolution and up-sampling: a network for nnU-Net's plans.

    There is no skip connection, so structures of few voxels are beyond it; see `DilatedResNet` and `SimpleBranch`.

    Args:
        input_channels: Channels of the image; nnU-Net gives it.
        num_classes: Output channels; nnU-Net gives it.
        depth: As `DilatedResNet`.
        shortcut: As `DilatedResNet`.
        strides: nnU-Net reads it from the plans; it must be [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]] or None.
        features: As `DilatedResNet`.
        deep_supervision: nnU-Net gives it; it must be off, because there is one output.

    Raises:
        ValueError: An argument is not possible.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        depth: int,
        shortcut: str,
        strides: Sequence[Sequence[int]] | None = None,
        features: int = 64,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if strides is not None and tuple(tuple(stride) for stride in strides) != STRIDES:
            wanted = [list(stride) for stride in STRIDES]
            raise ValueError(f"MedicalNet's strides are fixed: they must be {wanted}, got {list(strides)}")
        if deep_supervision:
            raise ValueError(
                'MedicalNet has one output and no deep supervision; set "deep_supervision" to false in the preset or '
                "the plans, or train with nnUNetTrainerNoDeepSupervision"
            )
        self.encoder = DilatedResNet(input_channels, depth, shortcut, features)
        self.decoder = SimpleBranch(self.encoder.output_channels[-1], num_classes, [OUTPUT_STRIDE] * 3)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (batch, classes, *axes) of images (batch, channels, *axes); every edge divides by 8."""
        return self.decoder(self.encoder(x))


def _convolution(features_in: int, features: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv3d:
    padding = dilation * (kernel // 2)
    return nn.Conv3d(features_in, features, kernel, stride, padding, dilation, bias=False)


def _layer(
    block: type[BasicBlock | Bottleneck],
    features_in: int,
    width: int,
    count: int,
    stride: int,
    dilation: int,
    shortcut: str,
) -> nn.Sequential:
    features = width * block.expansion
    downsample: nn.Module = nn.Identity()
    if (features_in, stride) != (features, 1):
        convolution = nn.Conv3d(features_in, features, 1, stride, bias=False)
        downsample = (
            nn.Sequential(convolution, nn.BatchNorm3d(features))
            if shortcut == "B"
            else ZeroShortcut(features_in, features, stride)
        )
    rest = (block(features, width, 1, dilation, nn.Identity()) for _ in range(count - 1))
    return nn.Sequential(block(features_in, width, stride, dilation, downsample), *rest)
