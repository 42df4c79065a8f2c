"""Comparing converted tensors with the network they are for, which is built without memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_pretrain.networks.planned import planned_network


@dataclass(frozen=True)
class Fit:
    """How tensors fit a network.

    Attributes:
        state: Tensors that fit, under every name the network's state dict lists them by.
        misfits: Names that the network does not have, or has in another shape, to the reason.
        missing: Tensors of the network that are not given, each under its first name.
    """

    state: dict[str, Tensor]
    misfits: dict[str, str]
    missing: tuple[str, ...]


def fitted(network: Mapping[str, Any], weights: Mapping[str, Tensor], sizes: tuple[int, int]) -> Fit:
    """Fits tensors to a network of the plans, which must name only classes that are known to be networks or layers.

    Args:
        network: The plans' entry for the network.
        weights: Tensors under the network's names; aliases may be given or not.
        sizes: Input and output channels.
    """
    groups = _names_of_each_tensor(network, sizes)
    state: dict[str, Tensor] = {}
    missing = []
    for expected, names in groups:
        given = {name: weights[name] for name in names if name in weights}
        fits = {name: tensor for name, tensor in given.items() if tensor.shape == expected}
        if fits:
            first = next(iter(fits.values()))
            state |= {name: fits.get(name, first) for name in names}
        else:
            missing.append(names[0])
    shapes = {name: expected for expected, names in groups for name in names}
    misfits = {
        name: f"shape {tuple(tensor.shape)}, the network has {tuple(shapes[name])}"
        if name in shapes
        else "the network has no such tensor"
        for name, tensor in weights.items()
        if name not in shapes or tensor.shape != shapes[name]
    }
    return Fit(state, misfits, tuple(missing))


def fitted_exactly(
    network: Mapping[str, Any], weights: Mapping[str, Tensor], sizes: tuple[int, int], path: Path
) -> dict[str, Tensor]:
    """Fits tensors to a network all of whose tensors they must be.

    Raises:
        ValueError: A tensor has no place, or a place no tensor.
    """
    fit = fitted(network, weights, sizes)
    if fit.misfits or fit.missing:
        name = str(network["network_class_name"]).rpartition(".")[2]
        problems = [*(f"{name}: {why}" for name, why in fit.misfits.items()), *(f"{m}: missing" for m in fit.missing)]
        raise ValueError(
            f"{path} does not fit the {name} its tensors describe: {'; '.join(problems[:3])} "
            f"({len(problems)} in all); it was probably made by a changed version of the network"
        )
    return fit.state


def _names_of_each_tensor(network: Mapping[str, Any], sizes: tuple[int, int]) -> list[tuple[torch.Size, list[str]]]:
    with torch.device("meta"):
        built = planned_network(network, *sizes)
    groups: dict[int, tuple[torch.Size, list[str]]] = {}
    state = built.state_dict(keep_vars=True)  # keeps the tensors themselves, so that equal ones can be told
    for name, tensor in state.items():
        groups.setdefault(id(tensor), (tensor.shape, []))[1].append(name)
    return list(groups.values())
