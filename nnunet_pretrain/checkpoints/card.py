"""Card: what a checkpoint knows about itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnunet_pretrain.checkpoints.reading import EXTRAS_KEY, read_checkpoint
from nnunet_pretrain.labels import SCHEMES_KEY, SPACE_KEY
from nnunet_pretrain.planning.settings import SETTINGS_KEY


@dataclass(frozen=True)
class Card:
    """What a checkpoint knows about itself.

    Attributes:
        file: The checkpoint.
        size_mb: Size of the file in megabytes.
        trainer: Name of the trainer class.
        dataset: Dataset it was trained on.
        plans: Name of its plans.
        configuration: Configuration, such as 3d_fullres.
        epoch: Number of finished epochs.
        network: Class of the network.
        parameters: Number of parameters, shared ones counted once.
        spacing_mm: Voxel spacing in the plans' axis order.
        patch_size: Patch in voxels, in the same order.
        channels: Input channel names.
        normalization: Normalisation scheme of each channel.
        intensity: Per channel, the intensity statistics CT normalisation uses.
        structures: Structure to id.
        label_schemes: Scheme to stored id to label set; empty if the labels were complete.
        sources: Name, cases, licence and citation of each source.
        label_space: Name of the label space; empty if the dataset was not merged.
        settings: How it was trained: the plans' entry "nnunet_pretrain".
        versions: Versions of the packages it was trained with.
        git_commit: Commit of the checkout it was trained with, None for an installed package.
        fingerprints: Number of training images whose content fingerprints the checkpoint holds.
        pseudo_dice: Group or structure to pseudo Dice in the last epoch.
        validation: Means of the final validation, overall and per source; empty before it has run.
    """

    file: str
    size_mb: float
    trainer: str
    dataset: str
    plans: str
    configuration: str
    epoch: int
    network: str
    parameters: int
    spacing_mm: tuple[float, ...]
    patch_size: tuple[int, ...]
    channels: tuple[str, ...]
    normalization: tuple[str, ...]
    intensity: Mapping[str, Mapping[str, float]]
    structures: Mapping[str, Any]
    label_schemes: Mapping[str, Mapping[str, list[str]]]
    sources: tuple[Mapping[str, Any], ...]
    label_space: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    git_commit: str | None = None
    fingerprints: int = 0
    pseudo_dice: Mapping[str, float] = field(default_factory=dict)
    validation: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Returns the card as plain values for JSON."""
        return asdict(self)


def read_card(path: Path) -> Card:
    """Reads the card of any nnU-Net v2 checkpoint.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is unreadable or unsafe, or its plans lack the configuration it was trained with.
    """
    return card_of(path, read_checkpoint(path))


def card_of(path: Path, checkpoint: Mapping[str, Any]) -> Card:
    """Builds the card of a checkpoint that is already read."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    arguments = checkpoint["init_args"]
    plans, dataset_json = arguments["plans"], arguments["dataset_json"]
    configuration = PlansManager(plans).get_configuration(arguments["configuration"])
    own = arguments.get(EXTRAS_KEY, {}).get("card", {})
    return Card(
        file=str(path),
        size_mb=round(path.stat().st_size / 1e6, 1),
        trainer=checkpoint["trainer_name"],
        dataset=plans["dataset_name"],
        plans=plans["plans_name"],
        configuration=arguments["configuration"],
        epoch=int(checkpoint.get("current_epoch", 0)),
        network=configuration.network_arch_init_kwargs.get("network", configuration.network_arch_class_name),
        parameters=count_parameters(checkpoint["network_weights"]),
        spacing_mm=tuple(round(float(s), 4) for s in configuration.spacing),
        patch_size=tuple(int(p) for p in configuration.patch_size),
        channels=channel_names(dataset_json),
        normalization=tuple(configuration.normalization_schemes),
        intensity=plans["foreground_intensity_properties_per_channel"],
        structures=dataset_json["labels"],
        label_schemes=dataset_json.get(SCHEMES_KEY, {}),
        sources=tuple(dataset_json.get("sources", ())),
        label_space=dataset_json.get(SPACE_KEY, ""),
        settings=plans.get(SETTINGS_KEY, {}),
        versions=own.get("versions", {}),
        git_commit=own.get("git_commit"),
        fingerprints=len(own.get("fingerprints", ())),
        pseudo_dice=own.get("pseudo_dice", {}),
        validation=own.get("validation", {}),
    )


def channel_names(dataset_json: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the input channels a dataset.json names, under nnU-Net's present key or its older one."""
    return tuple((dataset_json.get("channel_names") or dataset_json["modality"]).values())


def count_parameters(weights: Mapping[str, Any]) -> int:
    """Counts the values of a state dict; nnU-Net lists some tensors under several names, each is counted once."""
    unique = {(t.untyped_storage().data_ptr(), t.storage_offset(), tuple(t.shape)): t for t in weights.values()}
    return sum(math.prod(tensor.shape) for tensor in unique.values())


def describe(card: Card) -> str:
    """Returns the card as text for a terminal."""
    lines = [
        f"{card.file} ({card.size_mb} MB)",
        f"  trained by     {card.trainer}, {card.epoch} epochs, on {card.dataset}",
        f"  plans          {card.plans}, configuration {card.configuration}",
        f"  network        {card.network.rpartition('.')[2]}, {card.parameters:,} parameters",
        f"  spacing        {' x '.join(f'{s:g}' for s in card.spacing_mm)} mm, "
        f"patch {' x '.join(map(str, card.patch_size))} voxels",
    ]
    for i, (channel, scheme) in enumerate(zip(card.channels, card.normalization, strict=False)):
        numbers = card.intensity.get(str(i), {})
        clip = (
            f", clipped to {numbers['percentile_00_5']:.0f} ... {numbers['percentile_99_5']:.0f}, "
            f"mean {numbers['mean']:.0f}, standard deviation {numbers['std']:.0f}"
            if scheme == "CTNormalization"
            else ""
        )
        lines.append(f"  channel {i}      {channel}: {scheme}{clip}")
    lines.append(f"  structures     {', '.join(f'{i} {name}' for name, i in card.structures.items())}")
    lines += _describe_own(card)
    for source in card.sources:
        lines.append(f"  source         {source['name']}, {source['cases']} cases, licence: {source['licence']}")
        lines.append(f"                 cite: {source['citation']}")
    for scheme, sets in card.label_schemes.items():
        hidden = [structure for structure in sets["0"] if structure != "background"]
        lines.append(f"  scheme         {scheme}: not annotated: {', '.join(hidden) or 'nothing'}")
        coarse = {i: s for i, s in sets.items() if i != "0" and len(s) > 1}
        lines += [f"                 id {i} may be {', '.join(s)}" for i, s in coarse.items()]
    return "\n".join(lines)


def _describe_own(card: Card) -> list[str]:
    """Returns the lines about what only our trainers store."""
    lines = []
    if card.versions:
        commit = f", commit {card.git_commit}" if card.git_commit else ""
        lines.append(f"  made with      {', '.join(f'{k} {v}' for k, v in card.versions.items())}{commit}")
    if card.fingerprints:
        lines.append(f"  fingerprints   of {card.fingerprints} training images")
    if card.pseudo_dice:
        lines.append(f"  pseudo Dice    {', '.join(f'{k} {v:.3f}' for k, v in card.pseudo_dice.items())}")
    for source, found in card.validation.get("per_source", {}).items():
        dice = ", ".join(f"{group} {metrics['Dice']:.3f}" for group, metrics in found["mean"].items())
        lines.append(f"  validation     {source}, {found['cases']} cases, Dice: {dice}")
    return lines
