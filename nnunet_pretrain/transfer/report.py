"""Transfer report: what became of every tensor in a transfer."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import prod, sqrt
from typing import Any, Literal

from nnunet_pretrain.networks.parts import PARTS, Part

Status = Literal["loaded", "adapted", "initialised"]


@dataclass(frozen=True)
class TensorReport:
    """What became of one tensor of the target network.

    Attributes:
        name: Name in the target.
        part: encoder, decoder or heads.
        shape: Its shape.
        status: loaded (as it is), adapted (by a rule), or initialised (left as the seed drew it).
        reason: The rules, or why nothing was loaded.
        source: Name in the checkpoint, empty if initialised.
        values: Number of the target's values that come from the checkpoint.
        source_values: Number of the checkpoint's values that found a place here.
        source_size: Number of values of that tensor in the checkpoint.
        l2_change: Euclidean distance between the values before and after, None if it was only planned.
    """

    name: str
    part: Part
    shape: tuple[int, ...]
    status: Status
    reason: str = ""
    source: str = ""
    values: int = 0
    source_values: int = 0
    source_size: int = 0
    l2_change: float | None = None


@dataclass(frozen=True)
class IgnoredTensor:
    """A tensor of the checkpoint that found no place.

    Attributes:
        name: Name in the checkpoint.
        part: Part of the network it would belong to.
        shape: Its shape.
        reason: Why.
    """

    name: str
    part: Part
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class TransferReport:
    """What a transfer loaded, or would load.

    Attributes:
        checkpoint: Source of the weights.
        sha256: Its checksum.
        tensors: One entry per parameter or buffer of the target; second names for the same tensor are left out.
        ignored: What the checkpoint holds besides.
        heads: Output of the target to what it starts from, in words.
        notes: What else the user should know, such as what a foreign file could not say.
    """

    checkpoint: str
    sha256: str
    tensors: tuple[TensorReport, ...]
    ignored: tuple[IgnoredTensor, ...]
    heads: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def count(self, status: str, part: Part | None = None) -> int:
        """Returns the number of the target's tensors with a status, in one part or in all."""
        return sum(t.status == status and part in (None, t.part) for t in self.tensors)

    def share(self, part: Part) -> float:
        """Returns the share, 0 to 1, of the target's values in a part that come from the checkpoint."""
        found = [t for t in self.tensors if t.part == part]
        return sum(t.values for t in found) / max(1, sum(prod(t.shape) for t in found))

    def used_share(self, part: Part) -> float:
        """Returns the share, 0 to 1, of the checkpoint's values in a part that found a place."""
        found = [t for t in self.tensors if t.part == part]
        sizes = sum(t.source_size for t in found) + sum(prod(t.shape) for t in self.ignored if t.part == part)
        return sum(t.source_values for t in found) / max(1, sizes)

    def l2_change(self, part: Part) -> float:
        """Returns the Euclidean distance a part has moved."""
        return sqrt(sum((t.l2_change or 0.0) ** 2 for t in self.tensors if t.part == part))

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as plain values for JSON, the totals first."""
        parts = {
            part: {
                **{status: self.count(status, part) for status in ("loaded", "adapted", "initialised")},
                "ignored": sum(t.part == part for t in self.ignored),
                "share_of_target": self.share(part),
                "share_of_checkpoint": self.used_share(part),
                "l2_change": self.l2_change(part),
            }
            for part in PARTS
        }
        return {"parts": parts, **asdict(self)}

    def lines(self) -> list[str]:
        """Returns the report as a short table for a terminal or log."""
        lines = [f"weights from {self.checkpoint}"]
        lines.append(f"{'':8} {'loaded':>7} {'adapted':>8} {'initial.':>9} {'ignored':>8}  of target  of checkpoint")
        for part in PARTS:
            counts = [self.count(status, part) for status in ("loaded", "adapted", "initialised")]
            ignored = sum(t.part == part for t in self.ignored)
            lines.append(
                f"{part:8} {counts[0]:7} {counts[1]:8} {counts[2]:9} {ignored:8} "
                f"{self.share(part):9.1%} {self.used_share(part):13.1%}"
            )
        lines += _grouped("adapted", [(t.reason, t.name) for t in self.tensors if t.status == "adapted"])
        lines += _grouped(
            "initialised",
            [(t.reason, t.name) for t in self.tensors if t.status == "initialised" and t.part != "heads"],
        )
        lines += _grouped("ignored", [(t.reason, t.name) for t in self.ignored if t.part != "heads"])
        lines += [f"output {name}: {how}" for name, how in self.heads.items()]
        return lines + [f"note: {note}" for note in self.notes]


def _grouped(what: str, entries: list[tuple[str, str]]) -> list[str]:
    """Returns one line per reason, with the number of tensors and the first of them."""
    by_reason: dict[str, list[str]] = {}
    for reason, name in entries:
        by_reason.setdefault(reason, []).append(name)
    return [
        f"{what}: {len(names)} tensors, {reason} ({names[0]}{', ...' if len(names) > 1 else ''})"
        for reason, names in by_reason.items()
    ]
