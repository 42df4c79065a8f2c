"""Copying pre-trained weights into a network, with a report of every tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor, nn

from nnunet_pretrain.networks.parts import Part, head_names, named_as_head, parts_of
from nnunet_pretrain.planning.settings import TransferSettings
from nnunet_pretrain.transfer.heads import combine_rows, describe_heads
from nnunet_pretrain.transfer.matching import check_classes, reason_missing, source_name, too_deep
from nnunet_pretrain.transfer.pretrained_network import NetworkFacts, PretrainedNetwork
from nnunet_pretrain.transfer.report import IgnoredTensor, Status, TensorReport, TransferReport
from nnunet_pretrain.transfer.rules import fit_channels, fit_kernel, fit_stride, fit_width

Fitted = tuple[Tensor | None, str]
"""What to load, None for nothing, and the rules that made it or the reason."""


def transfer_weights(
    network: nn.Module, target: NetworkFacts, pretrained: PretrainedNetwork, settings: TransferSettings
) -> TransferReport:
    """Copies pre-trained weights into a network in place, tensor by tensor, by the rules of docs/adaptation.md.

    Nothing is copied unless enough would be: the network is either transferred or untouched.

    Args:
        network: Target network, neither compiled nor wrapped; on the device "meta" the transfer is only planned.
        target: What the network is.
        pretrained: The pre-trained side.
        settings: What to take.

    Returns:
        The report.

    Raises:
        ValueError: The networks are of different kinds, an entry of `settings.heads` is unknown, too little of a part
            can be loaded (the message says why), or nothing changed.
    """
    check_classes(pretrained.facts, target)
    transfer = _Transfer(network, target, pretrained, settings)
    entries = transfer.entries()
    report = TransferReport(
        settings.checkpoint or "",
        settings.sha256 or "",
        tuple(entry for entry, _ in entries),
        tuple(transfer.ignored(entry for entry, _ in entries)),
        transfer.described_heads(),
        pretrained.notes,
    )
    if not settings.allow_partial:
        _refuse_partial(report, settings)
    with torch.no_grad():
        for entry, value in entries:
            if value is not None:
                transfer.targets[entry.name].copy_(value)
    if not transfer.planned:
        _refuse_unchanged(report)
    return report


class _Transfer:
    """One transfer, while it is worked out."""

    def __init__(
        self, network: nn.Module, target: NetworkFacts, pretrained: PretrainedNetwork, settings: TransferSettings
    ) -> None:
        self.target, self.pretrained, self.settings = target, pretrained, settings
        self.targets: dict[str, Tensor] = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        self.parts, self.heads = parts_of(network), head_names(network)
        self.planned = any(tensor.device.type == "meta" for tensor in self.targets.values())

    def entries(self) -> list[tuple[TensorReport, Tensor | None]]:
        """Returns for every tensor of the target what is said of it and what is loaded into it."""
        return [self._entry(name, tensor) for name, tensor in self.targets.items()]

    def described_heads(self) -> dict[str, str]:
        """Returns for every output of the target what it starts from."""
        names = self.target.outputs.names
        if self.settings.parts == "encoder":
            return dict.fromkeys(names, "initialised, only the encoder is transferred")
        sources = (source_name(name, self.pretrained.facts, self.target)[0] for name in self.heads)
        if not any(source in self.pretrained.weights for source in sources):
            return dict.fromkeys(names, "initialised, the checkpoint holds no head")
        return describe_heads(self.settings.heads, self.pretrained.facts.outputs, self.target.outputs)

    def _entry(self, name: str, start: Tensor) -> tuple[TensorReport, Tensor | None]:
        source, reason = source_name(name, self.pretrained.facts, self.target)
        part, shape = self.parts[name], tuple(start.shape)
        weight = self._weight(source)
        value: Tensor | None = None
        if self.settings.parts == "encoder" and part != "encoder":
            reason = "only the encoder is transferred"
        elif not reason and weight is None:
            reason = reason_missing(name, self.pretrained.facts)
        elif not reason and weight is not None:
            value, reason = self._fit(name, weight, start)
        if value is None or weight is None:
            return TensorReport(name, part, shape, "initialised", reason), None
        change = None if self.planned else float((value.to(start) - start).detach().float().norm())
        status: Status = "adapted" if reason else "loaded"
        values, source_values = self._counts(name, weight, start)
        sizes = (values, source_values, weight.numel())
        return TensorReport(name, part, shape, status, reason, source, *sizes, change), value

    def _weight(self, name: str) -> Tensor | None:
        weight = self.pretrained.weights.get(name)
        if weight is not None and self.planned:
            return torch.empty_like(weight, device="meta")
        return weight

    def _fit(self, name: str, weight: Tensor, start: Tensor) -> Fitted:
        if name in self.heads:
            return self._fit_head(name, weight, start)
        if weight.ndim != start.ndim:
            return None, _mismatch(weight, start)
        rules: list[str] = []
        steps: tuple[Callable[[str, Tensor, Tensor], Fitted], ...] = (
            self._fit_channels, self._fit_kernel, self._fit_width,
        )  # fmt: skip
        for step in steps:
            fitted, reason = step(name, weight, start)
            if fitted is None:
                return None, reason
            weight = fitted
            rules += [reason] if reason else []
        return (weight, "; ".join(rules)) if weight.shape == start.shape else (None, _mismatch(weight, start))

    def _fit_head(self, name: str, weight: Tensor, start: Tensor) -> Fitted:
        old, new = self.pretrained.facts.outputs, self.target.outputs
        rows = (len(old.names), len(new.names))
        if (weight.shape[0], start.shape[0]) != rows or weight.shape[1:] != start.shape[1:]:
            return None, f"{_mismatch(weight, start)}; heads take rows of the same features only"
        if not any(self.settings.heads.values()):
            return None, "no output shares its name with the checkpoint"
        made = combine_rows(weight, start, self.settings.heads, old, new, bias=start.ndim == 1)
        same = old == new and all(rows == (output,) for output, rows in self.settings.heads.items())
        complete = same and len(self.settings.heads) == len(new.names)
        return made, "" if complete else "rows by structure name"

    def _counts(self, name: str, weight: Tensor, start: Tensor) -> tuple[int, int]:
        """Returns how many values of the target come from the checkpoint, and how many of the checkpoint's are used."""
        if name in self.heads:
            rows = [self.settings.heads.get(output, ()) for output in self.target.outputs.names]
            used = len({row for taken in rows for row in taken})
            return sum(map(bool, rows)) * start[0].numel(), used * weight[0].numel()
        if not self.settings.allow_width or not weight.ndim:
            return start.numel(), weight.numel()
        axes = 1 if self._reads_image(name) else 2  # the image's channels have a rule of their own
        common = prod(min(a, b) for a, b in zip(weight.shape[:axes], start.shape[:axes], strict=True))
        return common * prod(start.shape[axes:]), common * prod(weight.shape[axes:])

    def _fit_channels(self, name: str, weight: Tensor, start: Tensor) -> Fitted:
        old, new = self.pretrained.facts.channels, self.target.channels
        takes_image = weight.ndim > 2 and (weight.shape[1], start.shape[1]) == (len(old), len(new))
        if [c.lower() for c in old] == [c.lower() for c in new] or not takes_image:
            return weight, ""
        if len(old) == len(new) == 1 or not self._reads_image(name):
            return weight, ""
        return fit_channels(weight, old, new), f"image channels {', '.join(old)} to {', '.join(new)}"

    def _reads_image(self, name: str) -> bool:
        """Whether a convolution with as many inputs as the image has channels is the first layer."""
        if self.target.num_stages is None:
            return self.parts[name] == "encoder"
        return name.endswith("conv.weight") and name.startswith(
            ("encoder.stem.convs.0.", "encoder.stages.0.0.convs.0.")
        )

    def _fit_kernel(self, name: str, weight: Tensor, start: Tensor) -> Fitted:
        old, new = tuple(weight.shape[2:]), tuple(start.shape[2:])
        if old == new or self.target.num_stages is None:
            return weight, ""
        transposed = ".transpconvs." in name
        try:
            fitted = fit_stride(weight, new) if transposed else fit_kernel(weight, new)
        except ValueError as error:
            return None, str(error)
        return fitted, f"{'stride' if transposed else 'kernel'} {_times(old)} to {_times(new)}"

    def _fit_width(self, name: str, weight: Tensor, start: Tensor) -> Fitted:
        if weight.shape == start.shape or not weight.ndim:
            return weight, ""
        if not self.settings.allow_width or self.target.num_stages is None:
            return None, f"{_mismatch(weight, start)}: another width"
        halves = name.startswith("decoder.stages.") and ".convs.0.conv.weight" in name
        return fit_width(weight, start, halves), f"width {_times(weight.shape[:2])} to {_times(start.shape[:2])}"

    def ignored(self, entries: Iterable[TensorReport]) -> list[IgnoredTensor]:
        """Returns what the checkpoint holds besides what the entries use."""
        used = {entry.source for entry in entries}
        return [
            IgnoredTensor(name, _part_in_checkpoint(name, self.parts), tuple(tensor.shape), self._why_ignored(name))
            for name, tensor in self.pretrained.weights.items()
            if name not in used
        ]

    def _why_ignored(self, name: str) -> str:
        if self.settings.parts == "encoder" and not name.startswith("encoder."):
            return "only the encoder is transferred"
        if too_deep(name, self.pretrained.facts, self.target):
            return "the target's network is less deep"
        if name in self.targets:
            return "does not fit the target's tensor of that name"
        return "the target has no such layer"


def _part_in_checkpoint(name: str, parts: Mapping[str, Part]) -> Part:
    """Returns the part of a tensor the target may not have."""
    if name in parts:
        return parts[name]
    if named_as_head(name) or name.startswith("head."):  # the latter is a classifier's
        return "heads"
    return "decoder" if name.startswith(("decoder.", "up", "conv_blocks_localization")) else "encoder"


def _refuse_partial(report: TransferReport, settings: TransferSettings) -> None:
    wanted: tuple[Part, ...] = ("encoder",) if settings.parts == "encoder" else ("encoder", "decoder")
    for part in wanted:
        shares = (report.share(part), report.used_share(part))
        if any(t.part == part for t in report.tensors) and max(shares) < settings.min_loaded_share:
            reasons = [f"{t.name}: {t.reason}" for t in report.tensors if t.part == part and t.status == "initialised"]
            raise ValueError(
                f"{shares[0]:.1%} of the target's {part} would come from {report.checkpoint}, which is {shares[1]:.1%} "
                f"of the checkpoint's {part}; expected at least {settings.min_loaded_share:.0%} of one of them. "
                f"{len(reasons)} tensors get nothing, first: {'; '.join(reasons[:3])}. Plan with --keep pretrained, "
                f"or allow it with --allow-partial"
            )


def _refuse_unchanged(report: TransferReport) -> None:
    moved = [t for t in report.tensors if t.status != "initialised" and t.l2_change]
    if not moved and any(t.status != "initialised" for t in report.tensors):
        raise ValueError(
            f"no value of the network differs from what it was before loading {report.checkpoint}; "
            f"the weights were already there, or the checkpoint holds untrained ones"
        )


def _mismatch(weight: Tensor, start: Tensor) -> str:
    return f"shape {_times(weight.shape)} in the checkpoint, {_times(start.shape)} in the target"


def _times(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
