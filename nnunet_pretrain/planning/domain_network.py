"""The network of a dataset of domains in plans: an encoder of nnU-Net's or of a preset, and one branch per domain."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from nnunet_pretrain.networks.locate import check_arguments, locate_network
from nnunet_pretrain.networks.planned import planned_network, total_stride
from nnunet_pretrain.networks.trial import try_network
from nnunet_pretrain.planning.domain_plans import BRANCHED_NETWORK, CONFIGURATION, plans_of_domain
from nnunet_pretrain.planning.preset import Architecture, Preset

SIMPLE_STRIDE = 8
"""Greatest down-sampling of an encoder with simple branches, Med3D's; beyond it, small structures are lost."""

_GIVEN = ("input_channels", "num_classes")


def check_architecture(architecture: Architecture, preset: Preset) -> None:
    """Refuses a preset's network that cannot be shared between domains.

    Args:
        architecture: The network.
        preset: The preset it is of.

    Raises:
        ValueError: It cannot be built, taken apart into encoder and decoder, or be used with the preset's branches.
    """
    if (architecture.input_argument, architecture.output_argument) != _GIVEN:
        raise ValueError(
            f"{architecture.network} cannot be shared between domains: it must take {' and '.join(_GIVEN)} and have an "
            f"`encoder` and a `decoder`, as nnU-Net's networks; choose another preset"
        )
    if preset.domains.branch == "simple" and max(total_stride(architecture.strides)) > SIMPLE_STRIDE:
        raise ValueError(
            f"{architecture.network} has strides of {max(total_stride(architecture.strides))} in all, and simple "
            f'branches allow {SIMPLE_STRIDE}; give it fewer, or set "branch" to "unet"'
        )
    _try_architecture(architecture, preset)


def _try_architecture(architecture: Architecture, preset: Preset) -> None:
    """Refuses a network that cannot be built, or cannot be taken apart into encoder and decoder."""
    inner = planned_architecture(architecture)
    called = locate_network(architecture.network)
    check_arguments(
        architecture.network, called, {**dict.fromkeys(_GIVEN), **inner["arch_kwargs"], "deep_supervision": None}
    )
    deep_supervision = preset.training.deep_supervision and preset.domains.branch == "unet"
    channels = (1, 2)
    build = partial(planned_network, inner, *channels, deep_supervision=deep_supervision)
    network = build()
    if not all(isinstance(getattr(network, part, None), nn.Module) for part in ("encoder", "decoder")):
        raise ValueError(
            f"{architecture.network} has no `encoder` and `decoder` to share and to multiply; choose another preset"
        )
    try_network(build, channels, architecture.patch_size, architecture.strides if deep_supervision else None)


def planned_architecture(architecture: Architecture) -> dict[str, Any]:
    """Returns a preset's network as nnU-Net's plans name one."""
    strides = [list(stride) for stride in architecture.strides]
    return {
        "network_class_name": architecture.network,
        "arch_kwargs": {**architecture.arguments, "strides": strides},
        "_kw_requires_import": list(architecture.imported_arguments),
    }


def branched(inner: Mapping[str, Any], channels: Mapping[str, int], branch: str) -> dict[str, Any]:
    """Returns an architecture with one branch per domain behind the encoder of another.

    Args:
        inner: The other, as nnU-Net's plans name it.
        channels: Domain to output channels, background included.
        branch: `unet` or `simple`; see `Domains`.
    """
    arguments = _cut(inner["arch_kwargs"]) if branch == "simple" else inner["arch_kwargs"]
    return {
        "network_class_name": BRANCHED_NETWORK,
        "arch_kwargs": {
            "network_class_name": inner["network_class_name"],
            "arch_kwargs": arguments,
            "imported": list(inner["_kw_requires_import"]),
            "branches": dict(channels),
            "branch": branch,
            "strides": arguments["strides"],
        },
        "_kw_requires_import": [],
    }


def _cut(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of nnU-Net's U-Net without the stages beyond the stride that simple branches allow."""
    strides = arguments["strides"]
    stages = sum(max(total_stride(strides[: i + 1])) <= SIMPLE_STRIDE for i in range(len(strides)))
    if stages == len(strides):
        return dict(arguments)
    lengths = {"n_stages": stages, "n_conv_per_stage_decoder": stages - 1}
    cut: dict[str, Any] = {}
    for key, value in arguments.items():
        per_stage = isinstance(value, (list, tuple)) and len(value) >= len(strides) - 1
        cut[key] = value[: lengths.get(key, stages)] if per_stage else value
    return {**cut, "n_stages": stages}


def try_branch(plans: Mapping[str, Any], dataset_json: Mapping[str, Any], deep_supervision: bool) -> None:
    """Tries the network of the domain with most channels, as it is alone.

    Args:
        plans: Plans with settings for domains.
        dataset_json: The dataset's dataset.json.
        deep_supervision: Whether it will be trained so.

    Raises:
        ValueError: The network does not fit its patch.
    """
    shared = plans["configurations"][CONFIGURATION]["architecture"]["arch_kwargs"]
    domain, heads = max(shared["branches"].items(), key=lambda item: item[1])
    configuration = plans_of_domain(plans, domain)["configurations"][CONFIGURATION]
    channels = (len(dataset_json["channel_names"]), heads)
    build = partial(planned_network, configuration["architecture"], *channels, deep_supervision=deep_supervision)
    try_network(build, channels, configuration["patch_size"], shared["strides"] if deep_supervision else None)
