"""An encoder of any network with a linear layer on top, so that images or lesions are classified."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from nnunet_pretrain.networks.adapter import DeepSupervisionSwitch
from nnunet_pretrain.networks.locate import check_arguments, locate_network

CLASSIFIER = f"{__name__}.Classifier"
"""What plans call the network."""


class Classifier(nn.Module):
    """The encoder of a segmentation network, global average pooling, and one linear layer.

    This is how Med3D classifies nodules (Chen et al., arXiv 1904.00625: encoder, average pooling, 1x1x1 convolution).
    Weights of the encoder keep their names, `encoder.*`, so a transfer finds them; the linear layer is `head`.

    Args:
        input_channels: Channels of the image; nnU-Net gives it.
        num_classes: Outputs of the segmentation; nnU-Net gives it. Only the decoder, which is dropped, needs it.
        network: Dotted path of a network class with an `encoder`, such as nnU-Net's PlainConvUNet. The encoder returns
            its features or a list of them, the coarsest last, and says in `output_channels` how many they are.
        arguments: Arguments of that class beside those nnU-Net gives, JSON values.
        imported: Names of those arguments whose value is the dotted path of a module class.
        classes: Number of classes.
        strides: Downsampling of each stage; nnU-Net reads it from the plans.
        deep_supervision: nnU-Net gives it; a classifier has one output.
        normalised: Whether each pooled feature is normalised over the batch before the linear layer (batch norm
            without weights). Behind an instance norm the means of all images are much alike, and a linear layer sees
            hardly more than a constant; encoders with batch norm need none.

    Raises:
        ValueError: The class cannot be found or refuses its arguments, or has no such encoder.
    """

    encoder: Any

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        network: str,
        arguments: Mapping[str, Any],
        imported: Sequence[str],
        classes: int,
        strides: Sequence[Sequence[int]],
        deep_supervision: bool = False,
        normalised: bool = False,
    ) -> None:
        super().__init__()
        whole = _built(network, input_channels, num_classes, arguments, imported)
        encoder: Any = getattr(whole, "encoder", None)
        if not isinstance(encoder, nn.Module) or not hasattr(encoder, "output_channels"):
            raise ValueError(
                f"{network} has no encoder with `output_channels` that could be used alone; classify with a checkpoint "
                f"of PlainConvUNet, ResidualEncoderUNet or MedicalNet"
            )
        self._initialize = getattr(whole, "initialize", None)
        self.decoder = DeepSupervisionSwitch(False)  # nnU-Net switches it before a training
        self.encoder = encoder
        features = int(self.encoder.output_channels[-1])
        layer = nn.Linear(features, classes)
        self.head = nn.Sequential(nn.BatchNorm1d(features, affine=False), layer) if normalised else layer

    def forward(self, x: Tensor) -> Tensor:
        """Classifies images (batch, channels, *axes); returns logits (batch, classes)."""
        features = self.encoder(x)
        last = features[-1] if isinstance(features, (list, tuple)) else features
        return self.head(last.flatten(2).mean(2))

    def initialize(self, module: nn.Module) -> None:
        """Draws the initial weights of one module as the segmentation network does; nnU-Net applies it to all."""
        if self._initialize is not None:
            self._initialize(module)

    def head_names(self) -> tuple[str, ...]:
        """Returns the names of what belongs to the classes: weights, and statistics of the pooled features."""
        return tuple(f"head.{name}" for name in self.head.state_dict())

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Returns the number of values in the feature maps of one patch, by nnU-Net's own count."""
        return int(self.encoder.compute_conv_feature_map_size(input_size))


def inner_architecture(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the plans' entry of the network whose encoder a classifier has; that of other networks comes back."""
    if architecture["network_class_name"] != CLASSIFIER:
        return dict(architecture)
    given = architecture["arch_kwargs"]
    return {
        "network_class_name": given["network"],
        "arch_kwargs": given["arguments"],
        "_kw_requires_import": given["imported"],
    }


def classifier_architecture(architecture: Mapping[str, Any], classes: int, normalised: bool = False) -> dict[str, Any]:
    """Returns the plans' entry of a classifier with the encoder of a segmentation network, or of a classifier.

    Args:
        architecture: The plans' entry of the network.
        classes: Number of classes.
        normalised: See `Classifier`.
    """
    architecture = inner_architecture(architecture)
    arguments = {key: value for key, value in architecture["arch_kwargs"].items() if key != "deep_supervision"}
    given = {
        "network": architecture["network_class_name"],
        "arguments": copy.deepcopy(arguments),
        "imported": list(architecture["_kw_requires_import"]),
        "classes": classes,
        "strides": copy.deepcopy(arguments.get("strides", [])),
        **({"normalised": True} if normalised else {}),
    }
    return {"network_class_name": CLASSIFIER, "arch_kwargs": given, "_kw_requires_import": []}


def _built(
    path: str, input_channels: int, num_classes: int, arguments: Mapping[str, Any], imported: Sequence[str]
) -> nn.Module:
    given = {**arguments, "input_channels": input_channels, "num_classes": num_classes, "deep_supervision": False}
    for name in imported:
        if given.get(name) is not None:
            given[name] = locate_network(given[name])
    called = locate_network(path)
    check_arguments(path, called, given)
    whole: nn.Module = called(**given)
    return whole
