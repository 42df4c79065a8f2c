"""What of a recipe the network of a target can be trained with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from nnunet_pretrain.networks.trial import try_network
from nnunet_pretrain.planning.settings import TrainingSettings
from nnunet_pretrain.transfer.pretrained_network import facts_of


def supported(
    training: TrainingSettings,
    plans: Mapping[str, Any],
    configuration: str,
    dataset_json: Mapping[str, Any],
    report: Callable[[str], None],
) -> TrainingSettings:
    """Returns a preset's training, without deep supervision if the network has only one output.

    Args:
        training: The preset's.
        plans: Plans of the transfer.
        configuration: Configuration of the plans.
        dataset_json: The target's.
        report: Called with a line for the user if something was changed.
    """
    facts = facts_of(plans, configuration, dataset_json)
    strides = facts.architecture["arch_kwargs"].get("strides")
    if not training.deep_supervision or facts.num_stages is not None or strides is None:
        return training
    channels = (len(facts.channels), len(facts.outputs.names))
    try:
        try_network(
            partial(facts.build, deep_supervision=True),
            channels,
            plans["configurations"][configuration]["patch_size"],
            strides,
        )
    except ValueError:
        report(f"note: {facts.class_name} is trained without deep supervision, which it does not offer")
        return training.model_copy(update={"deep_supervision": False})
    return training
