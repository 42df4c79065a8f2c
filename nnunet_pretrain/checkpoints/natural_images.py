"""Checkpoints of networks that were trained on natural images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunet_pretrain.planning.settings import SETTINGS_KEY, NaturalImageSettings
from nnunet_pretrain.validation import validated


def natural_images_of(checkpoint: Mapping[str, Any]) -> NaturalImageSettings | None:
    """Returns how a checkpoint's network was shown natural images, None if it was not.

    Args:
        checkpoint: A checkpoint in the form of nnU-Net v2; that of a classifier may be reduced to its encoder.

    Raises:
        ValueError: What it says of that is not possible.
    """
    return natural_settings(checkpoint["init_args"]["plans"].get(SETTINGS_KEY))


def natural_settings(settings: Mapping[str, Any] | None) -> NaturalImageSettings | None:
    """Returns what plans' settings, as plain values, say of natural images, None if nothing.

    Raises:
        ValueError: It is not possible.
    """
    found = (settings or {}).get("natural_images")
    if found is None:
        return None
    return validated(NaturalImageSettings, found, f"the checkpoint's plans, key '{SETTINGS_KEY}.natural_images'")
