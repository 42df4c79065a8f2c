"""The arms of a study: what each changes in the plans of the transfer, everything else being equal."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nnunet_pretrain.files import read_json
from nnunet_pretrain.planning.settings import PretrainSettings
from nnunet_pretrain.validation import validated

Changes = Mapping[str, Any]
Keep = Literal["pretrained", "target"]


def _no_changes(_: PretrainSettings) -> Changes:
    return {}


@dataclass(frozen=True)
class Arm:
    """One way to train on the target.

    Attributes:
        name: Name in files and tables.
        what: One line for the user.
        scratch: Whether it starts from the control's plans.
        keep: Which planning it uses: what `plan_transfer` does with the checkpoint by default, or the target's own.
        changes: From the settings of those plans to what differs, in the form of `PretrainSettings`; a given value
            replaces the one there.
        stock_weights: Whether the checkpoint is loaded by nnU-Net's own -pretrained_weights.
        checkpoint: A checkpoint to start from in place of the study's; see `study.checkpoints`.
    """

    name: str
    what: str
    scratch: bool = False
    keep: Keep = "pretrained"
    changes: Callable[[PretrainSettings], Changes] = _no_changes
    stock_weights: bool = False
    checkpoint: Path | None = None


def _heads_first(settings: PretrainSettings) -> Changes:
    return {"fine_tuning": {"heads_only_epochs": max(1, round(settings.training.num_epochs / 10))}}


def _low_lr(settings: PretrainSettings) -> Changes:
    return {"training": {"initial_lr": settings.training.initial_lr / 10}}


def always(changes: Changes) -> Callable[[PretrainSettings], Changes]:
    """Returns changes that do not depend on the settings they change."""
    return lambda _: changes


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("scratch", "the control: same plans, nothing pre-trained", scratch=True),
        Arm("pretrained", "the transfer as plan_transfer plans it"),
        Arm("encoder-only", "decoder and heads from the seed", changes=always({"transfer": {"parts": "encoder"}})),
        Arm("new-heads", "no head rows by name", changes=always({"transfer": {"heads": {}}})),
        Arm("no-warmup", "full learning rate from the start", changes=always({"training": {"warmup_epochs": 0}})),
        Arm("layer-decay", "0.8 per layer, heads to stem", changes=always({"fine_tuning": {"layer_decay": 0.8}})),
        Arm("frozen-encoder", "encoder never learns", changes=always({"fine_tuning": {"freeze_encoder": True}})),
        Arm("heads-first", "a tenth of the epochs for the heads alone", changes=_heads_first),
        Arm("low-lr", "a tenth of the learning rate", changes=_low_lr),
        Arm("keep-target", "weights adapted to the target's own plan", keep="target"),
        Arm("scratch-target", "the control of keep-target", scratch=True, keep="target"),
        Arm("stock-weights", "nnU-Net's own -pretrained_weights", scratch=True, stock_weights=True),
    )
}


def find_arm(text: str) -> Arm:
    """Returns the arm a user names.

    Args:
        text: A name of `ARMS`, or NAME=FILE for an arm that differs from the pretrained one: a .json file holds
            settings, such as {"fine_tuning": {"encoder_lr_factor": 0.1}}; any other file is a checkpoint to start from.

    Raises:
        ValueError: The name is unknown or not possible, or the file holds no settings.
        FileNotFoundError: The file is missing.
    """
    name, is_own, file = text.partition("=")
    if not is_own:
        if name not in ARMS:
            raise ValueError(f"unknown arm '{name}'; known are {', '.join(ARMS)}, and NAME=FILE for your own")
        return ARMS[name]
    if name in ARMS or not re.fullmatch(r"[A-Za-z0-9-]+", name):
        raise ValueError(f"arm '{name}': choose another name, of letters, digits and '-', that is not built in")
    path = Path(file).expanduser()
    if path.suffix.lower() != ".json":
        if not path.is_file():
            raise FileNotFoundError(f"arm '{name}': checkpoint {path} not found")
        return Arm(name, f"the pretrained arm with {path.name}", checkpoint=path.absolute())
    changes = read_json(path)
    validated(PretrainSettings, changes, str(path))
    if "preset" in changes or "folds" in changes or "seed" in changes.get("training", {}):
        raise ValueError(f"{path}: 'preset', 'folds' and 'training.seed' are the study's own; leave them out")
    return Arm(name, f"settings of {path.name}", changes=always(changes))


def settings_of(arm: Arm, plans: Mapping[str, Any]) -> PretrainSettings:
    """Returns the settings of an arm.

    Args:
        arm: The arm.
        plans: The plans it starts from: the transfer's, or its control's.

    Raises:
        ValueError: The arm asks for a setting that does not exist, or for an impossible value.
    """
    settings = PretrainSettings.from_plans(plans)
    values = settings.model_dump(mode="json")
    for section, changes in arm.changes(settings).items():
        values[section] = {**(values[section] or {}), **changes}
    changed = validated(PretrainSettings, values, f"arm '{arm.name}'")
    before = changed.training.warmup_epochs + changed.fine_tuning.heads_only_epochs
    if before >= changed.training.num_epochs:
        raise ValueError(
            f"arm '{arm.name}': warmup_epochs and heads_only_epochs take {before} of {changed.training.num_epochs} "
            f"epochs; lengthen the training, or leave the arm out"
        )
    return changed
