"""One encoder for many domains, one branch for each: Med3D's network, around any network with encoder and decoder.

Med3D (Chen et al., arXiv 1904.00625) gives every dataset a branch of its own behind a shared encoder; a branch sees the
features of its dataset only. Its branch is a 1x1x1 convolution and up-sampling; with `unet` a branch is a whole decoder
with skip connections, as nnU-Net has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from nnunet_pretrain.networks.planned import planned_network, total_stride

Features = Tensor | list[Tensor]
Route = str | tuple[str, ...]


def branch_key(domain: str) -> str:
    """Returns what a domain's branch is called in a state dict, where names must not hold dots."""
    return domain.replace(".", "_")


class SimpleBranch(nn.Module):
    """Med3D's branch: a 1x1x1 convolution on the encoder's last features, and trilinear up-sampling to image size.

    Args:
        features: Channels of the features.
        num_classes: Output channels.
        scale: Down-sampling of the features along each axis.
    """

    def __init__(self, features: int, num_classes: int, scale: Sequence[int]) -> None:
        super().__init__()
        self.deep_supervision = False  # nnU-Net sets it; there is one output only
        self.scale = [float(factor) for factor in scale]
        self.seg_layers = nn.ModuleList([nn.Conv3d(features, num_classes, 1)])

    def forward(self, features: Features) -> Tensor:
        """Returns logits (batch, classes, *axes) of the encoder's features, the coarsest last."""
        coarsest = features[-1] if isinstance(features, (list, tuple)) else features
        return interpolate(self.seg_layers[0](coarsest), scale_factor=self.scale, mode="trilinear", align_corners=False)


class SimpleBranchNetwork(nn.Module):
    """The encoder of a network with Med3D's simple branch: what one domain of a `BranchedNetwork` is alone.

    Args:
        input_channels: Channels of the image; nnU-Net gives it.
        num_classes: Output channels; nnU-Net gives it.
        network_class_name: Dotted path of the network whose encoder it is.
        arch_kwargs: Arguments of that network.
        imported: Names of those arguments that are dotted paths.
        strides: Down-sampling of each stage; nnU-Net reads it from the plans.
        deep_supervision: Ignored, there is one output.

    Raises:
        ValueError: The network has no encoder of its own.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        network_class_name: str,
        arch_kwargs: Mapping[str, Any],
        imported: Sequence[str],
        strides: Sequence[Sequence[int]],
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        inner = {"network_class_name": network_class_name, "arch_kwargs": arch_kwargs, "_kw_requires_import": imported}
        whole = planned_network(inner, input_channels, num_classes, initialise=not _on_meta(), deep_supervision=None)
        self.encoder: nn.Module = whole.encoder
        self.decoder = _simple_branch(whole, num_classes, strides)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (batch, classes, *axes) of images (batch, channels, *axes)."""
        logits: Tensor = self.decoder(self.encoder(x))
        return logits


class AllBranches:
    """What nnU-Net's trainer sets as `network.decoder.deep_supervision`, for all branches; adds no weights.

    Args:
        branches: The branches.
    """

    def __init__(self, branches: nn.ModuleDict) -> None:
        self._branches = branches

    @property
    def deep_supervision(self) -> bool:
        """Whether the branches return all their outputs or the finest."""
        return any(branch.deep_supervision for branch in self._branches.values())

    @deep_supervision.setter
    def deep_supervision(self, enabled: bool) -> None:
        branches: list[Any] = list(self._branches.values())
        for branch in branches:
            branch.deep_supervision = enabled


class BranchedNetwork(nn.Module):
    """A shared encoder and one branch per domain. Which branches work is told by `route` before each pass.

    A branch that is not on the route takes no part in the pass: it gets no gradient, not even of zeros.

    Args:
        input_channels: Channels of the image; nnU-Net gives it.
        num_classes: Ignored; nnU-Net gives the number of all structures, the branches have their own.
        network_class_name: Dotted path of a network with `encoder` and `decoder`; decoder(encoder(x)) is its output.
        arch_kwargs: Arguments of that network.
        imported: Names of those arguments that are dotted paths.
        branches: Domain to the output channels of its branch, background included.
        branch: `unet` gives each domain the network's own decoder, `simple` Med3D's branch.
        strides: Down-sampling of each stage; nnU-Net reads it from the plans.
        deep_supervision: Whether the branches return all outputs; nnU-Net gives it and switches it later.

    Attributes:
        route: The domain of the whole batch, or one domain per sample; None refuses every pass.

    Raises:
        ValueError: The network has no encoder and decoder of its own, or two domains would share a name.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        network_class_name: str,
        arch_kwargs: Mapping[str, Any],
        imported: Sequence[str],
        branches: Mapping[str, int],
        branch: str,
        strides: Sequence[Sequence[int]],
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if len({branch_key(domain) for domain in branches}) < len(branches):
            raise ValueError(f"domains must differ in more than '.' and '_', got {list(branches)}")
        self.route: Route | None = None
        inner = {"network_class_name": network_class_name, "arch_kwargs": arch_kwargs, "_kw_requires_import": imported}
        supervised = deep_supervision if branch == "unet" else None
        made: dict[str, nn.Module] = {}
        for domain, classes in branches.items():
            whole = planned_network(
                inner, input_channels, classes, initialise=not _on_meta(), deep_supervision=supervised
            )
            own = _decoder(whole, network_class_name) if branch == "unet" else _simple_branch(whole, classes, strides)
            if not made:
                self.encoder: nn.Module = whole.encoder
            made[branch_key(domain)] = own
        self.branches = nn.ModuleDict(made)
        self.decoder = AllBranches(self.branches)

    @torch.compiler.disable(recursive=False)  # encoder and branches are compiled alone, not once for every route
    def forward(self, x: Tensor) -> Any:
        """Applies the encoder, and the branches of the route.

        Args:
            x: Images, (batch, channels, *axes).

        Returns:
            For a route of one domain its logits (batch, classes, *axes), with deep supervision the list of them, the
            finest first. For one domain per sample, a dict from each domain on the route to that for its samples.

        Raises:
            ValueError: There is no route, or it names another number of samples.
        """
        if self.route is None:
            raise ValueError(
                "this network has one branch per domain and cannot know which one is asked for; write the model of one "
                "domain with `nnunet_pretrain export -c CHECKPOINT -o FOLDER --branch DOMAIN` and predict with that"
            )
        features = self.encoder(x)
        if isinstance(self.route, str):
            return self.branches[branch_key(self.route)](features)
        if len(self.route) != len(x):
            raise ValueError(f"the route names {len(self.route)} domains for a batch of {len(x)}")
        return {
            domain: self.branches[branch_key(domain)](_samples(features, places_on(self.route, domain)))
            for domain in dict.fromkeys(self.route)
        }


def places_on(route: tuple[str, ...], domain: str) -> list[int]:
    """Returns which samples of a batch belong to a domain."""
    return [place for place, other in enumerate(route) if other == domain]


def _samples(features: Features, places: list[int]) -> Features:
    if isinstance(features, (list, tuple)):
        return [level[places] for level in features]
    return features[places]


def inner_architecture(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the plans' entry of the network that was taken apart, from the arguments of one made of its parts."""
    return {
        "network_class_name": arguments["network_class_name"],
        "arch_kwargs": arguments["arch_kwargs"],
        "_kw_requires_import": arguments["imported"],
    }


def _on_meta() -> bool:
    """Whether networks are made without memory at the moment, so that there is nothing to initialise."""
    return torch.empty(0).is_meta


def _decoder(whole: Any, name: str) -> nn.Module:
    """Takes the decoder of a network without the encoder that nnU-Net's decoders list once more."""
    decoder = getattr(whole, "decoder", None)
    if not isinstance(decoder, nn.Module) or not hasattr(whole, "encoder"):
        raise ValueError(
            f"{name} cannot be shared between domains: it must have an `encoder` and a `decoder`, both modules, and "
            f"its output must be decoder(encoder(x)); choose another network, such as nnU-Net's"
        )
    if isinstance(getattr(decoder, "encoder", None), nn.Module):
        del decoder.encoder
    return decoder


def _simple_branch(whole: Any, classes: int, strides: Sequence[Sequence[int]]) -> SimpleBranch:
    if not hasattr(whole, "encoder") or not hasattr(whole.encoder, "output_channels"):
        raise ValueError(
            f"{type(whole).__name__} has no encoder with `output_channels`, which a simple branch needs; choose "
            f"another network, such as nnU-Net's"
        )
    branch = SimpleBranch(whole.encoder.output_channels[-1], classes, total_stride(strides))
    initialise = getattr(whole, "initialize", None)
    if initialise is not None and not _on_meta():
        branch.apply(initialise)
    return branch
