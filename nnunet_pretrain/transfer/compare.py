"""Comparing a checkpoint with a target before anything is trained, and what to do about the differences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_pretrain.checkpoints.card import channel_names
from nnunet_pretrain.checkpoints.natural_images import natural_images_of
from nnunet_pretrain.transfer.memory import estimated_gb
from nnunet_pretrain.transfer.options import Keep
from nnunet_pretrain.transfer.pretrained_network import facts_of

FAR = 2.5
"""Spacings further apart than this factor are worth a plan of the target's own."""

SHARED = 0.5
"""Windows that share less of the narrower one are worth a plan of the target's own (see benchmarks/RESULTS.md)."""


@dataclass(frozen=True)
class Row:
    """One property, on both sides and in the plans.

    Attributes:
        what: Name of the property.
        pretrained: The checkpoint's value, in words.
        target: The target's own.
        planned: What the plans say.
    """

    what: str
    pretrained: str
    target: str
    planned: str


@dataclass(frozen=True)
class Comparison:
    """A checkpoint beside a target.

    Attributes:
        rows: The table.
        recommended: What to keep.
        reason: Why.
    """

    rows: tuple[Row, ...]
    recommended: Keep
    reason: str

    def lines(self) -> list[str]:
        """Returns the table and the recommendation as text."""
        table = [
            ("", "checkpoint", "target", "planned"),
            *((r.what, r.pretrained, r.target, r.planned) for r in self.rows),
        ]
        widths = [max(len(row[i]) for row in table) for i in range(4)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
        ]
        return [*lines, f"recommended: --keep {self.recommended}, because {self.reason}"]


def compare(
    checkpoint: Mapping[str, Any],
    plans: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
    images: Sequence[Path],
) -> Comparison:
    """Compares a checkpoint, a target and the plans made of both.

    Args:
        checkpoint: Checkpoint in nnU-Net v2's form.
        plans: Plans of the transfer.
        dataset_json: The target's.
        fingerprint: The target's.
        images: The target's training images, for their orientation.
    """
    source, configuration = checkpoint["init_args"]["plans"], checkpoint["init_args"]["configuration"]
    old = _facts(source, configuration, checkpoint["init_args"]["dataset_json"])
    new = _facts(plans, configuration, dataset_json)
    spacing = np.median(fingerprint["spacings"], 0)[plans["transpose_forward"]].tolist()
    own = channel_names(dataset_json)
    rows = [
        Row("spacing mm", _mm(old["spacing"]), f"median {_mm(spacing)}", _mm(new["spacing"])),
        Row("anisotropy", _anisotropy(old["spacing"]), _anisotropy(spacing), _anisotropy(new["spacing"])),
        Row("orientation", *_orientations(source, plans, images)),
        Row("channels", ", ".join(old["channels"]), ", ".join(own), ", ".join(own)),
        Row("normalisation", _schemes(old), _schemes_of(own), _schemes(new)),
        Row("window HU", _window(source), _window(fingerprint), _window(plans)),
        Row("patch", _times(old["patch_size"]), "", _times(new["patch_size"])),
        Row("patch mm", _extent(old), "", _extent(new)),
        Row("batch", str(old["batch_size"]), "", str(new["batch_size"])),
        Row("memory GB", _gb(old), "", _gb(new)),
    ]
    if natural_images_of(checkpoint) is not None:
        reason = "the checkpoint's spacing, patch and intensities are those of natural images"
        return Comparison(tuple(rows), "target", reason)
    return Comparison(tuple(rows), *_recommend(old, spacing, own, _shared_window(source, fingerprint)))


def _facts(plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    chosen = dict(PlansManager(dict(plans)).get_configuration(configuration).configuration)
    return {**chosen, "channels": channel_names(dataset_json), "facts": facts_of(plans, configuration, dataset_json)}


def _recommend(
    old: Mapping[str, Any], spacing: Sequence[float], channels: Sequence[str], shared_window: float
) -> tuple[Keep, str]:
    """Returns what to keep, and the reason."""
    if old["spacing"] is None or old["patch_size"] is None:
        return "target", "the checkpoint does not say at which spacing and patch it was trained"
    schemes = set(_schemes_of(channels).split(", "))
    if len(old["spacing"]) != len(spacing):
        return "pretrained", "a 2D network sees slices at the checkpoint's spacing"
    if old["normalization_schemes"] and ("CTNormalization" in old["normalization_schemes"]) != (
        "CTNormalization" in schemes
    ):
        return "target", (
            f"the checkpoint was trained with {_schemes(old)}, which does not suit the channels {', '.join(channels)}"
        )
    factors = [max(a / b, b / a) for a, b in zip(spacing, old["spacing"], strict=True)]
    worst = int(np.argmax(factors))
    if factors[worst] > FAR:
        return "target", (
            f"the target's spacing of {spacing[worst]:.3g} mm is {factors[worst]:.1f} times away from the checkpoint's "
            f"{old['spacing'][worst]:.3g} mm along axis {worst}: resampling would invent or lose detail"
        )
    if "CTNormalization" in schemes and shared_window < SHARED:
        return "target", (
            f"the windows of checkpoint and target share only {shared_window:.0%} of the narrower one: the "
            f"checkpoint's would clip what tells the target's structures apart"
        )
    return "pretrained", (
        "spacing and normalisation are close enough, and the whole network then works as it was trained"
    )


def _shared_window(source: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> float:
    """Returns the part of the narrower intensity window that the other one covers, the least over all channels."""
    key, shares = "foreground_intensity_properties_per_channel", [1.0]
    for old, new in zip((source.get(key) or {}).values(), fingerprint[key].values(), strict=False):
        if old and new:
            (low, high), (other_low, other_high) = ((w["percentile_00_5"], w["percentile_99_5"]) for w in (old, new))
            shared = max(0.0, min(high, other_high) - max(low, other_low))
            shares.append(shared / max(1e-6, min(high - low, other_high - other_low)))
    return min(shares)


def _mm(spacing: Sequence[float] | None) -> str:
    return "unknown" if spacing is None else " x ".join(f"{mm:.3g}" for mm in spacing)


def _anisotropy(spacing: Sequence[float] | None) -> str:
    return "unknown" if spacing is None else f"{max(spacing) / min(spacing):.2g}"


def _times(sizes: Sequence[int] | None) -> str:
    return "unknown" if sizes is None else " x ".join(map(str, sizes))


def _extent(side: Mapping[str, Any]) -> str:
    if side["spacing"] is None or side["patch_size"] is None:
        return "unknown"
    return " x ".join(f"{p * mm:.0f}" for p, mm in zip(side["patch_size"], side["spacing"], strict=True))


def _gb(side: Mapping[str, Any]) -> str:
    if side["patch_size"] is None or side["batch_size"] is None:
        return "unknown"
    gb = estimated_gb(side["facts"], side["patch_size"], side["batch_size"])
    return "unknown" if gb is None else f"{gb:.2g}"


def _schemes(side: Mapping[str, Any]) -> str:
    return ", ".join(side["normalization_schemes"] or ("unknown",))


def _schemes_of(channels: Sequence[str]) -> str:
    from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

    return ", ".join(get_normalization_scheme(channel).__name__ for channel in channels)


def _window(side: Mapping[str, Any]) -> str:
    """Returns the 0.5 and 99.5 percentiles of the foreground, where nnU-Net clips a CT, per channel."""
    properties = side.get("foreground_intensity_properties_per_channel") or {}
    return (
        ", ".join(
            f"{numbers['percentile_00_5']:.0f} to {numbers['percentile_99_5']:.0f}" if numbers else "unknown"
            for numbers in properties.values()
        )
        or "unknown"
    )


def _orientations(source: Mapping[str, Any], plans: Mapping[str, Any], images: Sequence[Path]) -> tuple[str, str, str]:
    stored: Counter[str] = Counter()
    for path in images:
        if path.name.endswith((".nii", ".nii.gz")):
            import nibabel as nib

            stored["".join(nib.aff2axcodes(nib.load(path).affine))] += 1
    own = ", ".join(f"{code} {count}" for code, count in stored.most_common()) or "as stored"
    return _turned(source.get("image_reader_writer")), own, _turned(plans["image_reader_writer"])


def _turned(reader: str | None) -> str:
    if not reader:
        return "unknown"
    return "RAS (turned)" if reader.endswith("WithReorient") else "as stored"
