"""Copying pre-trained weights into a network, with a report of every tensor."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nnunet_pretrain.networks.adapter import AdaptedNetwork

HEADS = ".seg_layers."


@dataclass(frozen=True)
class TensorReport:
    """What became of one tensor of the network.

    Attributes:
        name: Name in the network.
        shape: Its shape.
        status: loaded, initialised (a head: it belongs to the target's own classes) or missing.
        reason: Why it was not loaded.
    """

    name: str
    shape: tuple[int, ...]
    status: Literal["loaded", "initialised", "missing"]
    reason: str = ""


@dataclass(frozen=True)
class TransferReport:
    """What a transfer loaded.

    Attributes:
        checkpoint: Source of the weights.
        sha256: Its checksum.
        tensors: One entry per parameter or buffer; nnU-Net's second names for the same tensor are left out.
        unused: Names in the checkpoint that the network does not have.
    """

    checkpoint: str
    sha256: str
    tensors: tuple[TensorReport, ...]
    unused: tuple[str, ...]

    def count(self, status: str) -> int:
        """Returns the number of tensors with a status."""
        return sum(tensor.status == status for tensor in self.tensors)

    @property
    def loaded_share(self) -> float:
        """Share of the values outside the heads that were loaded, 0 to 1."""
        sizes = {status: 0 for status in ("loaded", "missing")}
        for tensor in self.tensors:
            if tensor.status in sizes:
                sizes[tensor.status] += torch.Size(tensor.shape).numel()
        return sizes["loaded"] / max(1, sum(sizes.values()))

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as plain values for JSON, the totals first."""
        totals = {status: self.count(status) for status in ("loaded", "initialised", "missing")}
        return {**totals, "loaded_share": self.loaded_share, **asdict(self)}

    def __str__(self) -> str:
        """One line for the log."""
        return (
            f"{self.count('loaded')} tensors loaded, {self.count('initialised')} initialised (heads), "
            f"{self.count('missing')} missing, {len(self.unused)} unused; "
            f"{self.loaded_share:.1%} of the values outside the heads come from {self.checkpoint}"
        )


def transfer_weights(
    network: nn.Module, weights: Mapping[str, Tensor], checkpoint: str, sha256: str, min_loaded_share: float
) -> TransferReport:
    """Copies every tensor of equal name and shape except the heads, in place.

    Nothing is copied unless enough would be: the network is either transferred or untouched.

    Args:
        network: Target network, neither compiled nor wrapped.
        weights: State dict of the source.
        checkpoint: Where the weights come from, for the report.
        sha256: Checksum of that file, for the report.
        min_loaded_share: Smallest share of the values outside the heads that must be loadable.

    Returns:
        The report.

    Raises:
        ValueError: Less than `min_loaded_share` can be loaded; the message names the first mismatches.
    """
    targets = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    heads = network.head_names() if isinstance(network, AdaptedNetwork) else ()
    entries = tuple(_report(name, tensor, weights, heads) for name, tensor in targets.items())
    known = set(network.state_dict())
    report = TransferReport(checkpoint, sha256, entries, tuple(sorted(set(weights) - known)))
    if report.loaded_share < min_loaded_share:
        reasons = [f"{entry.name}: {entry.reason}" for entry in entries if entry.status == "missing"]
        raise ValueError(
            f"only {report.loaded_share:.1%} of the values outside the heads can be loaded from {checkpoint}, "
            f"expected at least {min_loaded_share:.0%}; first mismatches: {'; '.join(reasons[:3])}; "
            f"plan the transfer anew with `nnunet_pretrain plan_transfer`"
        )
    with torch.no_grad():
        for entry in entries:
            if entry.status == "loaded":
                targets[entry.name].copy_(weights[entry.name])
    return report


def _report(name: str, tensor: Tensor, weights: Mapping[str, Tensor], heads: Collection[str]) -> TensorReport:
    shape = tuple(tensor.shape)
    if HEADS in name or name in heads:
        return TensorReport(name, shape, "initialised", "head of the target's own classes")
    if name not in weights:
        return TensorReport(name, shape, "missing", "not in the checkpoint")
    if tuple(weights[name].shape) != shape:
        found = tuple(weights[name].shape)
        return TensorReport(name, shape, "missing", f"shape {found} in the checkpoint, {shape} expected")
    return TensorReport(name, shape, "loaded")
