"""The 3D U-Net of Models Genesis, which SuPreM pre-trained too; plans name it through `AdaptedNetwork`."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn


class Convolution(nn.Module):
    """3x3x3 convolution, batch norm, ReLU.

    Args:
        features_in: Channels of the input.
        features: Channels of the output.
    """

    def __init__(self, features_in: int, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(features_in, features, 3, padding=1)
        self.bn1 = nn.BatchNorm3d(features)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer to (batch, channels, *axes)."""
        return torch.relu(self.bn1(self.conv1(x)))


class Transition(nn.Module):
    """Two convolutions; on the way up after a transposed convolution and the skip connection.

    Args:
        features_in: Channels of what the convolutions see.
        between: Channels between them.
        features: Channels of the output.
        upsampled: Channels that come from below, or None on the way down.
    """

    def __init__(self, features_in: int, between: int, features: int, upsampled: int | None = None) -> None:
        super().__init__()
        if upsampled is not None:
            self.up_conv = nn.ConvTranspose3d(upsampled, upsampled, 2, 2)
        self.ops = nn.Sequential(Convolution(features_in, between), Convolution(between, features))

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Applies the transition.

        Args:
            x: Features, (batch, channels, *axes).
            skip: On the way up, the encoder's features of twice the size.
        """
        if skip is not None:
            x = torch.cat((self.up_conv(x), skip), 1)
        return self.ops(x)


class GenesisUNet(nn.Module):
    """3D U-Net of Models Genesis (Zhou et al., MedIA 2021, arXiv 2004.07882), written from its published description.

    Four resolutions with 64, 128, 256 and 512 channels, max-pooling, transposed convolutions, batch norm. Weights are
    named as in its published files.

    Args:
        in_channels: Channels of the image.
        out_channels: Output channels.
        base_features: Channels of the very first convolution; all others follow from it.
    """

    def __init__(self, in_channels: int, out_channels: int, base_features: int = 32) -> None:
        super().__init__()
        f = base_features
        self.down_tr64 = Transition(in_channels, f, 2 * f)
        self.down_tr128 = Transition(2 * f, 2 * f, 4 * f)
        self.down_tr256 = Transition(4 * f, 4 * f, 8 * f)
        self.down_tr512 = Transition(8 * f, 8 * f, 16 * f)
        self.up_tr256 = Transition(24 * f, 8 * f, 8 * f, upsampled=16 * f)
        self.up_tr128 = Transition(12 * f, 4 * f, 4 * f, upsampled=8 * f)
        self.up_tr64 = Transition(6 * f, 2 * f, 2 * f, upsampled=4 * f)
        self.out_tr = nn.Sequential(OrderedDict(final_conv=nn.Conv3d(2 * f, out_channels, 1)))
        self.pool = nn.MaxPool3d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (batch, classes, *axes) of images (batch, channels, *axes); every edge divides by 8."""
        fine = self.down_tr64(x)
        middle = self.down_tr128(self.pool(fine))
        coarse = self.down_tr256(self.pool(middle))
        bottom = self.down_tr512(self.pool(coarse))
        x = self.up_tr64(self.up_tr128(self.up_tr256(bottom, coarse), middle), fine)
        return self.out_tr(x)
