"""Checkpoints of classifiers: what they are to a segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunet_pretrain.networks.classifier import CLASSIFIER, inner_architecture
from nnunet_pretrain.planning.settings import SETTINGS_KEY


def without_classifier(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the checkpoint of a classifier as one of the network whose encoder it has; others come back as they are.

    Its weights are the encoder's and the classifier's head, so a transfer finds an encoder and no decoder.

    Args:
        checkpoint: A checkpoint in the form of nnU-Net v2.
    """
    arguments = checkpoint["init_args"]
    plans, configuration = arguments["plans"], arguments["configuration"]
    chosen = plans.get("configurations", {}).get(configuration, {})
    architecture = chosen.get("architecture") or {}
    if architecture.get("network_class_name") != CLASSIFIER:
        return dict(checkpoint)
    settings = {key: value for key, value in plans.get(SETTINGS_KEY, {}).items() if key != "classification"}
    configurations = {
        **plans["configurations"],
        configuration: {**chosen, "architecture": inner_architecture(architecture)},
    }
    made = {**plans, "configurations": configurations, SETTINGS_KEY: settings}
    return {**checkpoint, "init_args": {**arguments, "plans": made}}
