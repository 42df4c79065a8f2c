"""What a transfer needs to know of the two networks it connects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_pretrain.checkpoints.card import channel_names
from nnunet_pretrain.checkpoints.natural_images import natural_images_of
from nnunet_pretrain.checkpoints.reading import EXTRAS_KEY
from nnunet_pretrain.networks.parts import unaliased
from nnunet_pretrain.networks.planned import PLANNED_NETWORKS, planned_network
from nnunet_pretrain.planning.settings import SETTINGS_KEY
from nnunet_pretrain.transfer.heads import Outputs, outputs_of


@dataclass(frozen=True)
class NetworkFacts:
    """One side of a transfer, without its weights.

    Attributes:
        architecture: The plans' entry: network_class_name, arch_kwargs, _kw_requires_import.
        channels: Names of the image channels.
        outputs: What the output channels stand for.
    """

    architecture: Mapping[str, Any]
    channels: tuple[str, ...]
    outputs: Outputs

    @property
    def class_path(self) -> str:
        """Dotted path of the class that holds the weights: behind an adapter or a classifier, the wrapped one."""
        wrapped = self.architecture["arch_kwargs"].get("network")
        return str(wrapped or self.architecture["network_class_name"])

    @property
    def class_name(self) -> str:
        """Last part of `class_path`."""
        return self.class_path.rpartition(".")[2]

    @property
    def num_stages(self) -> int | None:
        """Number of encoder stages of a U-Net that nnU-Net plans, None for other networks."""
        if self.class_name not in PLANNED_NETWORKS:
            return None
        given = self.architecture["arch_kwargs"]
        return int(given.get("arguments", given)["n_stages"])  # a classifier keeps its network's arguments there

    def build(self, *, initialise: bool = False, deep_supervision: bool = False) -> Any:
        """Builds the network; see `planned_network`."""
        sizes = (len(self.channels), len(self.outputs.names))
        return planned_network(self.architecture, *sizes, initialise=initialise, deep_supervision=deep_supervision)


def network_without_memory(facts: NetworkFacts, deep_supervision: bool = False) -> nn.Module:
    """Builds a network as nnU-Net does, on the device "meta": it has names and shapes, and no values."""
    with torch.device("meta"):
        network: nn.Module = facts.build(deep_supervision=deep_supervision)
    return network


@dataclass(frozen=True)
class PretrainedNetwork:
    """The pre-trained side.

    Attributes:
        facts: What the network is.
        weights: Every tensor under one name; not read from the disk until used.
        notes: What a foreign file could not say.
    """

    facts: NetworkFacts
    weights: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()


def facts_of(plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any]) -> NetworkFacts:
    """Reads one side of a transfer from plans and dataset.json."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    chosen = PlansManager(dict(plans)).get_configuration(configuration)
    architecture = {
        "network_class_name": chosen.network_arch_class_name,
        "arch_kwargs": chosen.network_arch_init_kwargs,
        "_kw_requires_import": chosen.network_arch_init_kwargs_req_import,
    }
    classes = plans.get(SETTINGS_KEY, {}).get("classification", {}).get("classes")
    outputs = Outputs(tuple(classes)) if classes else outputs_of(dataset_json)
    return NetworkFacts(architecture, channel_names(dataset_json), outputs)


def pretrained_network(
    checkpoint: Mapping[str, Any], transpose_forward: Sequence[int] | None = None
) -> PretrainedNetwork:
    """Reads the pre-trained side from a checkpoint in nnU-Net v2's form.

    Args:
        checkpoint: The checkpoint; its tensors are not read from the disk.
        transpose_forward: Order in which the target's plans put the image axes. Where it is not the checkpoint's,
            the axes of all kernels are exchanged alike, which is exact. Kernels of natural images keep theirs: what
            was red, green and blue becomes the first axis of the target's patch, whatever that shows.

    Raises:
        ValueError: The order differs, and the network is none whose kernels alone know the axes.
    """
    arguments = checkpoint["init_args"]
    order = _axis_order(arguments["plans"].get("transpose_forward"), transpose_forward)
    notes = list(arguments.get(EXTRAS_KEY, {}).get("origin", {}).get("notes", ()))
    if order != (0, 1, 2) and natural_images_of(checkpoint) is not None:
        order = (0, 1, 2)
        notes.append("kernels were not turned: what was red, green and blue is the first axis of the target's patch")
    facts = facts_of(arguments["plans"], arguments["configuration"], arguments["dataset_json"])
    weights: dict[str, Tensor] = {}
    for name, tensor in checkpoint["network_weights"].items():
        turned = tensor.ndim == 5 and order != (0, 1, 2)
        weights.setdefault(unaliased(name), tensor.permute(0, 1, *(2 + axis for axis in order)) if turned else tensor)
    if order != (0, 1, 2):
        if facts.num_stages is None:
            raise ValueError(
                f"the target's plans put the image axes in another order than the checkpoint's, and a "
                f"{facts.class_name} cannot be turned; plan with --keep pretrained"
            )
        notes.append(f"kernels were turned to the target's order of axes ({', '.join(map(str, order))})")
    return PretrainedNetwork(facts, weights, tuple(notes))


def _axis_order(pretrained: Sequence[int] | None, target: Sequence[int] | None) -> tuple[int, ...]:
    """Returns for every axis of the target's patch the axis of the checkpoint's that shows the same direction."""
    if pretrained is None or target is None:
        return (0, 1, 2)
    return tuple(list(pretrained).index(axis) for axis in target)
