"""Heads by structure name: which rows of a pre-trained head a target's outputs start from.

A segmentation layer has one row (a 1x1x1 convolution and a bias) per output. Rows can be copied wherever an output
means the same, which its name says: the synonym table of the conversion decides what is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import torch
from torch import Tensor

from nnunet_pretrain.labels import SCHEMES_KEY, LabelSetTable
from nnunet_pretrain.labels.structures import GROUPS
from nnunet_pretrain.labels.synonyms import match, normalised

BACKGROUND = "background"


@dataclass(frozen=True)
class Outputs:
    """What the output channels of a network stand for.

    Attributes:
        names: Name of each channel, in order; the background's is "background".
        sigmoid: Whether channels are independent (nnU-Net's regions) instead of one softmax.
        untaught: Names of channels that were never taught, such as structures no source annotates.
    """

    names: tuple[str, ...]
    sigmoid: bool = False
    untaught: frozenset[str] = frozenset()


def outputs_of(dataset_json: Mapping[str, Any]) -> Outputs:
    """Reads the outputs nnU-Net gives a network for a dataset."""
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    labels = dataset_json["labels"]
    manager = LabelManager(labels, dataset_json.get("regions_class_order"))
    named = {name: value for name, value in labels.items() if name != "ignore"}
    if manager.has_regions:
        return Outputs(tuple(name for name, value in named.items() if not _is_background(value)), True)
    ordered = tuple(sorted(named, key=lambda name: int(_one(named[name]))))
    untaught: Iterable[str] = ()
    if dataset_json.get(SCHEMES_KEY):
        untaught = LabelSetTable.from_dataset_json(dict(dataset_json)).untaught
    return Outputs(ordered, False, frozenset(untaught))


def _one(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) else value


def _is_background(value: Any) -> bool:
    return (list(value) if isinstance(value, (list, tuple)) else [value]) == [0]


def match_heads(pretrained: Outputs, target: Outputs) -> dict[str, tuple[str, ...]]:
    """Finds, for every output of the target, the pre-trained outputs it means, by name.

    Names are compared as the conversion does (synonyms, spelling, place of left and right); the name of a group, such
    as "kidneys", means all its structures if all of them are there. Names unknown to the table must be equal.

    Returns:
        Output of the target to pre-trained outputs; an output without any is left out.
    """
    known = {_meaning(name): name for name in pretrained.names if name not in pretrained.untaught}
    found: dict[str, tuple[str, ...]] = {}
    for name in target.names:
        meaning = _meaning(name)
        if meaning in known:
            found[name] = (known[meaning],)
        elif meaning in GROUPS and all(structure in known for structure in GROUPS[meaning]):
            found[name] = tuple(known[structure] for structure in GROUPS[meaning])
    return found


def _meaning(name: str) -> str:
    return match(name) or normalised(name)


def describe_heads(heads: Mapping[str, Sequence[str]], pretrained: Outputs, target: Outputs) -> dict[str, str]:
    """Says for every output of the target what it starts from.

    Raises:
        ValueError: `heads` names an output that the target or the checkpoint does not have.
    """
    unknown = sorted(set(heads) - set(target.names))
    if unknown:
        raise ValueError(f"the target has no output {', '.join(unknown)}; its outputs are {', '.join(target.names)}")
    said = {}
    for name in target.names:
        rows = heads.get(name, ())
        missing = [row for row in rows if row not in pretrained.names]
        if missing:
            raise ValueError(
                f"output '{name}' is to start from {', '.join(missing)}, which the checkpoint does not have; "
                f"its outputs are {', '.join(pretrained.names)}"
            )
        said[name] = f"from {' and '.join(rows)}" if rows else "initialised, the checkpoint has nothing of that name"
        if not rows and _is_free(name, pretrained, target):
            said[name] = "0, as a sigmoid's background has no row of its own"
    return said


def _is_free(name: str, pretrained: Outputs, target: Outputs) -> bool:
    return name == BACKGROUND and pretrained.sigmoid and not target.sigmoid


def combine_rows(
    weight: Tensor, start: Tensor, heads: Mapping[str, Sequence[str]], pretrained: Outputs, target: Outputs, bias: bool
) -> Tensor:
    """Makes a target's segmentation layer of a pre-trained one.

    With z the logits of the rows an output starts from:

    - one row: it is copied.
    - n rows: their mean, and the bias + log n. log(sum(exp(z))), the logit of "any of them", has this tangent where all
      z are equal, and is nowhere below it (Jensen).
    - from softmax to sigmoid: minus the background's row, since the logit of p against background is a difference.
    - from sigmoid to softmax: the background's row is 0, which is exact for one structure: sigmoid(z) is
      softmax(0, z).
    - none: the initial values stay.

    Args:
        weight: Pre-trained weight (outputs, features, ...) or bias (outputs).
        start: The target's initial one, in the same form.
        heads: As `match_heads` returns it.
        pretrained: Outputs of the pre-training.
        target: Outputs of the target.
        bias: Whether this is the bias.

    Returns:
        A tensor of the target's shape.
    """
    row_of = {name: i for i, name in enumerate(pretrained.names)}
    made = start.detach().clone()
    for i, name in enumerate(target.names):
        rows = [row_of[row] for row in heads.get(name, ())]
        if rows:
            value = weight[rows].to(made.dtype).mean(0)
            if bias:
                value = value + log(len(rows))
            if target.sigmoid and not pretrained.sigmoid and BACKGROUND in row_of:
                value = value - weight[row_of[BACKGROUND]]
            made[i] = value
        elif _is_free(name, pretrained, target) and any(heads.values()):
            made[i] = torch.zeros_like(made[i])
    return made
