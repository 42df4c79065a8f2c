"""Card: what a checkpoint knows about itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnunet_pretrain.checkpoints.branches import DOMAIN, branch_names, branch_weights, domain_records, encoder_of
from nnunet_pretrain.checkpoints.reading import EXTRAS_KEY
from nnunet_pretrain.labels import SCHEMES_KEY, SPACE_KEY
from nnunet_pretrain.planning.settings import SETTINGS_KEY, PretrainSettings


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
        spacing_mm: Voxel spacing in the plans' axis order; empty if a foreign file does not say it.
        patch_size: Patch in voxels, in the same order; empty if a foreign file does not say it.
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
        origin: Of a converted checkpoint, its format, notes, what is unknown, and how many of its tensors (or rows of
            heads) were left out for which reason; empty for nnU-Net v2's own.
        encoder_parameters: Number of parameters of the encoder that all domains share; 0 for an ordinary network.
        domains: Domain to its labels, channels, spacing_mm, normalization, parameters (of its branch) and pseudo_dice;
            empty for an ordinary network.
        branch_of: Of a checkpoint taken from one with many branches, the domain's name (None for the encoder alone),
            the dataset and domains of that training, and the percentiles to which images are clipped beforehand.
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
    origin: Mapping[str, Any] = field(default_factory=dict)
    encoder_parameters: int = 0
    domains: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    branch_of: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Returns the card as plain values for JSON."""
        return asdict(self)


def card_of(path: Path, checkpoint: Mapping[str, Any]) -> Card:
    """Builds the card of a checkpoint that is already read."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    arguments = checkpoint["init_args"]
    plans, dataset_json = arguments["plans"], arguments["dataset_json"]
    configuration = PlansManager(plans).get_configuration(arguments["configuration"])
    extras = arguments.get(EXTRAS_KEY, {})
    own = extras.get("card", {})
    domains = _domains(checkpoint)
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
        spacing_mm=tuple(round(float(s), 4) for s in configuration.spacing or ()),
        patch_size=tuple(int(p) for p in configuration.patch_size or ()),
        channels=channel_names(dataset_json),
        normalization=tuple(configuration.normalization_schemes or ()),
        intensity=plans["foreground_intensity_properties_per_channel"] or {},
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
        origin=_origin(extras.get("origin")),
        encoder_parameters=count_parameters(encoder_of(checkpoint)) if domains else 0,
        domains=domains,
        branch_of=extras.get(DOMAIN, {}),
    )


def _domains(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns what a checkpoint of many branches knows of each domain."""
    names = branch_names(checkpoint)
    if not names:
        return {}
    settings = PretrainSettings.from_plans(checkpoint["init_args"]["plans"]).domains
    numbers = settings.numbers if settings is not None else {}
    records = domain_records(checkpoint)
    return {
        name: {
            "labels": records[name]["dataset_json"]["labels"],
            "channels": list(channel_names(records[name]["dataset_json"])),
            "spacing_mm": [round(mm, 4) for mm in numbers[name].spacing] if name in numbers else [],
            "normalization": list(numbers[name].normalization_schemes) if name in numbers else [],
            "parameters": count_parameters(branch_weights(checkpoint, name)),
            "pseudo_dice": records[name]["pseudo_dice"],
        }
        for name in names
    }


def _origin(record: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns what became of a foreign file, with numbers in place of the names of its tensors."""
    if record is None:
        return {}
    return {**record, "unmapped": dict(Counter(record["unmapped"].values()))}


def channel_names(dataset_json: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the input channels a dataset.json names, under nnU-Net's present key or its older one."""
    return tuple((dataset_json.get("channel_names") or dataset_json["modality"]).values())


def count_parameters(weights: Mapping[str, Any]) -> int:
    """Counts the values of a state dict; nnU-Net lists some tensors under several names, each is counted once."""
    unique = {(t.untyped_storage().data_ptr(), t.storage_offset(), tuple(t.shape)): t for t in weights.values()}
    return sum(math.prod(tensor.shape) for tensor in unique.values())
