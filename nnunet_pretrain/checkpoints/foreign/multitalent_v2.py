"""MultiTalent v2: one nnU-Net v2 network with a head per dataset, converted to one head for all structures."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnunet_pretrain.checkpoints.foreign.file import ForeignFile
from nnunet_pretrain.checkpoints.foreign.v2_form import Origin
from nnunet_pretrain.checkpoints.reading import EXTRAS_KEY
from nnunet_pretrain.checkpoints.unpickling import shown
from nnunet_pretrain.labels.synonyms import match, normalised

FORMAT = "MultiTalent v2"
_HEAD = re.compile(r"decoder\.seg_layers\.([^.]+)\.(\d+)\.(weight|bias)")
_STEM = re.compile(r"((?:decoder\.)?encoder\.stem)s?\.([^.]+)\.(convs\..*)")


@dataclass(frozen=True)
class DatasetHead:
    """The head of one dataset.

    Attributes:
        dataset: The dataset's id, as in the names of its tensors.
        rows: Row of each class to its name; a row that is none of them is the background's or an ignored one.
        sigmoid: Whether its outputs are regions, so that there is no row for the background.
        named: Whether the names come from the file.
    """

    dataset: str
    rows: Mapping[int, str]
    sigmoid: bool
    named: bool


def recognises(file: ForeignFile) -> bool:
    """Says whether the file is an nnU-Net v2 checkpoint with a head per dataset."""
    return "init_args" in file.content and file.has(_HEAD.pattern)


def convert(file: ForeignFile) -> dict[str, Any]:
    """Makes one softmax head of all datasets' heads; everything else is nnU-Net v2's already.

    A softmax does not change when the same number is added to all logits. So each dataset's background row can be
    subtracted from its rows, after which all datasets share a background row of 0: with weights w_c of class c and w_0
    of its dataset's background, the new rows are w_c - w_0 and 0. Among the classes of one dataset and background,
    probabilities are exactly those of that dataset's head; between classes of several datasets they are a combination
    nobody trained.
    """
    origin = Origin(FORMAT, ["one head was made of all datasets' heads: each class minus its dataset's background"])
    arguments = file.v2_arguments("plans")
    weights = _with_one_stem(file, origin)
    heads = _heads(file.weights, arguments, origin)
    chosen = _chosen(heads, origin)
    state = {name: tensor for name, tensor in weights.items() if not _HEAD.fullmatch(name)}
    levels = sorted({int(found[2]) for found in map(_HEAD.fullmatch, weights) if found})
    for level in levels:
        for kind in ("weight", "bias"):
            state[f"decoder.seg_layers.{level}.{kind}"] = _combined(weights, chosen, level, kind)
    labels = {"background": 0} | {name: i for i, (_, _, name) in enumerate(chosen, 1)}
    channels = _channels(arguments.get("dataset_json"), heads, state)
    if not any(head.named for head in heads):
        origin.unknown.append("labels")
    origin.notes.append(f"trained by {shown(str(file.content.get('trainer_name', 'an unnamed trainer')))}")
    arguments["plans"] = copy.deepcopy(arguments["plans"])
    arguments["dataset_json"] = {"channel_names": channels, "labels": labels, "file_ending": ".nii.gz"}
    arguments[EXTRAS_KEY] = {**arguments.get(EXTRAS_KEY, {}), "origin": origin.as_dict()}
    return {
        **file.content,
        "network_weights": state,
        "init_args": arguments,
        "trainer_name": "nnUNetTrainer",
    }


def _with_one_stem(file: ForeignFile, origin: Origin) -> dict[str, Tensor]:
    """Keeps the first dataset's stem where every dataset has its own."""
    weights: dict[str, Tensor] = {}
    first: str | None = None
    for name, tensor in file.weights.items():
        found = _STEM.fullmatch(name)
        if found is None:
            weights[name] = tensor
            continue
        if first is None:
            first = found[2]
            origin.notes.append(f"every dataset has a stem of its own; that of dataset {first} was taken")
        if found[2] == first:
            weights[f"{found[1]}.{found[3]}"] = tensor
        else:
            origin.unmapped[file.names[name]] = f"stem of dataset {found[2]}; that of dataset {first} was taken"
    return weights


def _heads(weights: Mapping[str, Tensor], arguments: Mapping[str, Any], origin: Origin) -> list[DatasetHead]:
    datasets = {found[1]: found[2] for found in map(_HEAD.fullmatch, weights) if found}
    heads = []
    for dataset, level in datasets.items():
        rows = weights[f"decoder.seg_layers.{dataset}.{level}.weight"].shape[0]
        heads.append(_head(dataset, rows, _dataset_json(arguments, dataset)))
    unnamed = [head.dataset for head in heads if not head.named]
    if unnamed:
        origin.notes.append(
            f"the file does not name the classes of dataset {', '.join(unnamed)}: they are called by number"
        )
    return heads


def _head(dataset: str, rows: int, dataset_json: Mapping[str, Any] | None) -> DatasetHead:
    if dataset_json is not None:
        labels = {str(k): v for k, v in dataset_json["labels"].items() if k not in ("background", "ignore")}
        if any(isinstance(ids, (list, tuple)) and len(ids) > 1 for ids in labels.values()) and rows == len(labels):
            return DatasetHead(dataset, dict(enumerate(labels)), True, True)
        named = {int(ids[0] if isinstance(ids, (list, tuple)) else ids): name for name, ids in labels.items()}
        if sorted(named) == list(range(1, rows)):
            return DatasetHead(dataset, named, False, True)
    return DatasetHead(dataset, {row: f"{dataset}_class_{row}" for row in range(1, rows)}, False, False)


def _dataset_json(arguments: Mapping[str, Any], dataset: str) -> Mapping[str, Any] | None:
    """Finds a dataset's dataset.json among the trainer's arguments, by its id."""
    for found in arguments.values():
        if isinstance(found, Mapping):
            for key, value in found.items():
                if _same_id(str(key), dataset) and isinstance(value, Mapping) and "labels" in value:
                    return value
    return None


def _same_id(key: str, dataset: str) -> bool:
    named = re.fullmatch(r"Dataset(\d+)_.*", key)
    key = named[1] if named else key
    return key == dataset or (key.isdecimal() and dataset.isdecimal() and int(key) == int(dataset))


def _chosen(heads: list[DatasetHead], origin: Origin) -> list[tuple[DatasetHead, int, str]]:
    """Returns head, row and name of every class; the first dataset that has a structure gives its row."""
    owners: dict[str, str] = {}
    chosen = []
    for head in heads:
        for row, name in sorted(head.rows.items()):
            meaning = match(name) or normalised(name)
            if meaning in owners:
                origin.unmapped[f"decoder.seg_layers.{head.dataset}.*[{row}]"] = (
                    f"'{name}' was taken from dataset {owners[meaning]}"
                )
            else:
                owners[meaning] = head.dataset
                chosen.append((head, row, name))
    return chosen


def _combined(
    weights: Mapping[str, Tensor], chosen: list[tuple[DatasetHead, int, str]], level: int, kind: str
) -> Tensor:
    """Returns the weight or bias of one level's head: background first, then each class minus its own background.

    A sigmoid is a softmax against a logit of 0, so rows of region heads stay as they are.
    """
    rows = []
    for head, row, _ in chosen:
        tensor = weights[f"decoder.seg_layers.{head.dataset}.{level}.{kind}"]
        rows.append(tensor[row].clone() if head.sigmoid else tensor[row] - tensor[0])
    return torch.stack([torch.zeros_like(rows[0]), *rows])


def _channels(dataset_json: Any, heads: list[DatasetHead], weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Returns the channel names of the first dataset, or numbers if the file has none of as many."""
    first = next(tensor for name, tensor in weights.items() if name.startswith("encoder.") and tensor.ndim > 2)
    candidates = [dataset_json]
    if isinstance(dataset_json, Mapping):
        candidates += list(dataset_json.values())
    for found in candidates:
        names = found.get("channel_names") or found.get("modality") if isinstance(found, Mapping) else None
        if isinstance(names, Mapping) and len(names) == first.shape[1]:
            return {str(key): str(name) for key, name in names.items()}
    return {str(i): f"channel_{i}" for i in range(first.shape[1])}
