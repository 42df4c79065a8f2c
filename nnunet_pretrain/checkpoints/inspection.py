"""What a file says about itself, read and put into words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from nnunet_pretrain.checkpoints.card import Card, card_of
from nnunet_pretrain.checkpoints.natural_images import natural_settings
from nnunet_pretrain.checkpoints.pretrained import read_pretrained
from nnunet_pretrain.checkpoints.refusals import shown

_SHOWN = 200
"""So many structures are listed; classes of natural images can be thousands."""


def read_card(path: Path) -> Card:
    """Reads the card of any checkpoint that `read_pretrained` knows.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is unreadable, unsafe or of an unknown format, or its plans lack the configuration it was
            trained with.
    """
    checkpoint = read_pretrained(path)
    try:
        return card_of(path, checkpoint)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{path} is no complete nnU-Net v2 checkpoint: {type(error).__name__}: {shown(str(error))}"
        ) from None


def describe(card: Card) -> str:
    """Returns the card as text for a terminal."""
    lines = [
        f"{card.file} ({card.size_mb} MB)",
        f"  trained by     {card.trainer}, {card.epoch} epochs, on {card.dataset}",
        f"  plans          {card.plans}, configuration {card.configuration}",
        f"  network        {card.network.rpartition('.')[2]}, {card.parameters:,} parameters",
        f"  spacing        {_sizes(card.spacing_mm, 'mm')}, patch {_sizes(card.patch_size, 'voxels')}",
        *_describe_origin(card),
        *_describe_branches(card),
        *_describe_natural_images(card),
    ]
    for i, (channel, scheme) in enumerate(zip_longest(card.channels, card.normalization, fillvalue="unknown")):
        numbers = card.intensity.get(str(i), {})
        clip = (
            f", clipped to {numbers['percentile_00_5']:.0f} ... {numbers['percentile_99_5']:.0f}, "
            f"mean {numbers['mean']:.0f}, standard deviation {numbers['std']:.0f}"
            if scheme == "CTNormalization" and numbers
            else ""
        )
        lines.append(f"  channel {i}      {channel}: {scheme}{clip}")
    lines.append(f"  structures     {_listed([f'{i} {name}' for name, i in card.structures.items()])}")
    lines += _describe_own(card)
    for source in card.sources:
        licence = source.get("licence") or "not stated"
        lines.append(f"  source         {source['name']}, {source['cases']} cases, licence: {licence}")
        if source.get("citation"):
            lines.append(f"                 cite: {source['citation']}")
    for scheme, sets in card.label_schemes.items():
        hidden = [structure for structure in sets["0"] if structure != "background"]
        lines.append(f"  scheme         {scheme}: not annotated: {', '.join(hidden) or 'nothing'}")
        coarse = {i: s for i, s in sets.items() if i != "0" and len(s) > 1}
        lines += [f"                 id {i} may be {', '.join(s)}" for i, s in coarse.items()]
    # A file from elsewhere could hold escape sequences for the terminal.
    return "\n".join(line if line.isprintable() else ascii(line) for line in lines)


def _listed(names: Sequence[str]) -> str:
    """Returns names one after the other; of very many, the first ones and their number."""
    if len(names) <= _SHOWN:
        return ", ".join(names)
    return f"{', '.join(names[:10])}, ... ({len(names)} in all)"


def _describe_natural_images(card: Card) -> list[str]:
    """Returns the lines about a training on natural images."""
    found = natural_settings(card.settings)
    if found is None:
        return []
    slices = {"rgb": "red, green and blue", "grey": "grey repeated three times"}[found.slices]
    order = "in random order" if found.shuffle_depth else "in this order"
    dataset, plans, configuration = found.target
    return [
        f"  trained on     natural images, {found.task}, read from {found.storage}; slices: {slices}, {order}",
        f"                 with the network of {plans}, {configuration}, of {dataset}",
    ]


def _sizes(values: Sequence[float], unit: str) -> str:
    return f"{' x '.join(f'{value:g}' for value in values)} {unit}" if values else "unknown"


def _describe_origin(card: Card) -> list[str]:
    """Returns the lines about a foreign file and its conversion."""
    if not card.origin:
        return []
    lines = [f"  converted from {card.origin['format']}"]
    if card.origin["unknown"]:
        lines.append(f"  unknown        {', '.join(card.origin['unknown'])}: the file does not say")
    lines += [f"  note           {note}" for note in card.origin["notes"]]
    return lines + [f"  left out       {count} x {reason}" for reason, count in card.origin["unmapped"].items()]


def _describe_branches(card: Card) -> list[str]:
    """Returns the lines about the domains of a network with branches, or about the network a branch was taken from."""
    lines = []
    if card.branch_of:
        name, domains = card.branch_of["name"], ", ".join(card.branch_of["domains"])
        what = f"branch {name}" if name else "the encoder alone (spacing, intensities and labels of the first domain)"
        lines.append(f"  taken from     {card.branch_of['of']} with the domains {domains}: {what}")
    if card.branch_of.get("clip_percentiles"):
        low, high = card.branch_of["clip_percentiles"]
        lines.append(f"  clipping       every image is clipped to its percentiles {low:g} and {high:g} beforehand")
    if card.domains:
        lines.append(f"  encoder        {card.encoder_parameters:,} parameters, shared by {len(card.domains)} domains")
    for name, domain in card.domains.items():
        channels = ", ".join(
            f"{channel}: {scheme}"
            for channel, scheme in zip_longest(domain["channels"], domain["normalization"], fillvalue="unknown")
        )
        lines.append(f"  domain         {name}: branch of {domain['parameters']:,} parameters")
        lines.append(f"                 spacing {_sizes(domain['spacing_mm'], 'mm')}, {channels}")
        labels = ", ".join(f"{value} {label}" for label, value in domain["labels"].items())
        lines.append(f"                 labels {labels}")
        if domain["pseudo_dice"]:
            found = ", ".join(f"{group} {dice:.3f}" for group, dice in domain["pseudo_dice"].items())
            lines.append(f"                 pseudo Dice {found}")
    return lines


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
    for name, found in card.validation.get("metrics", {}).items():
        known = not math.isnan(found["low"])
        between = f"({found['low']:.3f} to {found['high']:.3f})" if known else "(too few cases for an interval)"
        lines.append(f"  validation     {name} {found['value']:.3f} {between}")
    return lines
