"""Checkpoints of classifiers: what they are to a segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunet_pretrain.networks.classifier import CLASSIFIER, inner_architecture
from nnunet_pretrain.planning.settings import SETTINGS_KEY


def is_classifier(checkpoint: Mapping[str, Any]) -> bool:
    """Tells whether a checkpoint is of a network that classifies."""
    return _architecture(checkpoint).get("network_class_name") == CLASSIFIER


def _architecture(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    arguments = checkpoint["init_args"]
    chosen = arguments["plans"].get("configurations", {}).get(arguments["configuration"], {})
    return chosen.get("architecture") or {}


def without_classifier(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the checkpoint of a classifier as one of the network whose encoder it has; others come back as they are.

    Its weights are the encoder's and the classifier's head, so a transfer finds an encoder and no decoder.

    Args:
        checkpoint: A checkpoint in the form of nnU-Net v2.
    """
    if not is_classifier(checkpoint):
        return dict(checkpoint)
    arguments = checkpoint["init_args"]
    plans, configuration = arguments["plans"], arguments["configuration"]
    settings = {key: value for key, value in plans.get(SETTINGS_KEY, {}).items() if key != "classification"}
    configurations = {
        **plans["configurations"],
        configuration: {
            **plans["configurations"][configuration],
            "architecture": inner_architecture(_architecture(checkpoint)),
        },
    }
    made = {**plans, "configurations": configurations, SETTINGS_KEY: settings}
    return {**checkpoint, "init_args": {**arguments, "plans": made}}
