"""Presets, plans and the settings our trainers read from them."""

from nnunet_pretrain.planning.plan import PRETRAIN_PLANS, plan
from nnunet_pretrain.planning.preset import Preset, load_preset, preset_names
from nnunet_pretrain.planning.settings import SETTINGS_KEY, PretrainSettings, TrainingSettings, TransferSettings

__all__ = [
    "PRETRAIN_PLANS",
    "SETTINGS_KEY",
    "Preset",
    "PretrainSettings",
    "TrainingSettings",
    "TransferSettings",
    "load_preset",
    "plan",
    "preset_names",
]
