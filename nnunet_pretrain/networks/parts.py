"""Which part of a network a weight belongs to, and how deep it lies: for transfer reports and learning rates."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from torch import nn

from nnunet_pretrain.networks.adapter import PREFIX, AdaptedNetwork
from nnunet_pretrain.networks.classifier import Classifier

Part = Literal["encoder", "decoder", "heads"]
PARTS: tuple[Part, ...] = ("encoder", "decoder", "heads")

# Beginnings of the names of encoder weights, by class. nnU-Net's own networks say it in the name.
_ENCODERS: dict[str, tuple[str, ...]] = {
    "SegResNet": ("convInit.", "down_layers."),
    "SegResNetDS": ("encoder.",),
    "SwinUNETR": ("swinViT.", "encoder"),
    "UNETR": ("vit.", "encoder"),
    "GenesisUNet": ("down_tr",),
    "STUNet": ("conv_blocks_context.",),
}
_HEADS = (".seg_layers.", "seg_outputs.")
_STAGE = re.compile(
    r"(?:(?:stages|transpconvs|conv_blocks_context|conv_blocks_localization)\.|\bencoder\.layer)(\d+)\."
)


def unaliased(name: str) -> str:
    """Returns the one name of a weight that nnU-Net's state dicts list under several.

    A decoder lists its encoder once more, and a convolution block lists its layers once more as `all_modules`: there
    the first is the convolution, and the only other one with weights is the norm.
    """
    name = re.sub(r"^((?:module\.|_orig_mod\.)*)decoder\.encoder\.", r"\1encoder.", name)
    return re.sub(r"\.all_modules\.(\d+)\.", lambda found: ".conv." if found[1] == "0" else ".norm.", name)


def head_names(network: nn.Module) -> frozenset[str]:
    """Returns the names of the parameters that belong to the classes."""
    if isinstance(network, (AdaptedNetwork, Classifier)):
        return frozenset(network.head_names())
    return frozenset(name for name, _ in network.named_parameters() if named_as_head(name))


def named_as_head(name: str) -> bool:
    """Whether a weight's name alone says that it belongs to the classes, as in nnU-Net's networks and STU-Net."""
    return any(head in name for head in _HEADS)


def parts_of(network: nn.Module) -> dict[str, Part]:
    """Returns the part of every parameter and buffer.

    What is no head and lies in no encoder is decoder. In a network of an unknown class, everything but the heads
    counts as encoder.
    """
    heads = head_names(network)
    wrapped = network.backbone if isinstance(network, AdaptedNetwork) else network
    prefixes = _ENCODERS.get(type(wrapped).__name__)
    if prefixes is None:
        prefixes = ("encoder.",) if hasattr(wrapped, "encoder") and hasattr(wrapped, "decoder") else ("",)

    def part(name: str) -> Part:
        if name in heads:
            return "heads"
        return "encoder" if name.removeprefix(PREFIX).startswith(prefixes) else "decoder"

    return {name: part(name) for name in _names(network)}


def layers_of(network: nn.Module) -> dict[str, int]:
    """Returns how far every parameter lies from the input, in layers.

    A layer is a stage of nnU-Net's networks (the stem counts with the first one; the decoder's stages follow the
    encoder's; all heads come last), one of MedicalNet's four layers or its stem, and in others a child of the network.
    """
    parts = parts_of(network)
    ranks: dict[tuple[int, int], list[str]] = {}
    children: dict[str, int] = {}
    for name in _names(network):
        stage = _STAGE.search(name)
        child = name.removeprefix(PREFIX).split(".")[0]
        within = int(stage[1]) if stage else 0 if ".stem." in name else children.setdefault(child, len(children))
        place = PARTS.index(parts[name])
        ranks.setdefault((place, 0 if parts[name] == "heads" else within), []).append(name)
    return {name: layer for layer, key in enumerate(sorted(ranks)) for name in ranks[key]}


def _names(network: nn.Module) -> Iterable[str]:
    yield from (name for name, _ in network.named_parameters())
    yield from (name for name, _ in network.named_buffers())
