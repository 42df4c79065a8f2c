"""Presets, plans and the settings our trainers read from them."""

from nnunet_pretrain.planning.plan import plan
from nnunet_pretrain.planning.preset import Preset, load_preset, preset_names
from nnunet_pretrain.planning.settings import (
    PRETRAIN_PLANS,
    SETTINGS_KEY,
    TRANSFER_PLANS,
    FineTuning,
    Fold,
    PretrainSettings,
    TrainingSettings,
    TransferSettings,
    transfer_plans_names,
)

__all__ = [
    "PRETRAIN_PLANS",
    "SETTINGS_KEY",
    "TRANSFER_PLANS",
    "FineTuning",
    "Fold",
    "Preset",
    "PretrainSettings",
    "TrainingSettings",
    "TransferSettings",
    "load_preset",
    "plan",
    "preset_names",
    "transfer_plans_names",
]
