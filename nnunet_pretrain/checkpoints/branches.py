"""Checkpoints of many branches, each branch as the checkpoint of an ordinary network.

A `BranchedNetwork` has one encoder and a branch per domain. What exports and transfers need not know it: here one
domain's part becomes what nnU-Net would have written, had it trained that domain alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nnunet_pretrain.checkpoints.classifiers import without_classifier
from nnunet_pretrain.checkpoints.portable import build_network, unknown_imports
from nnunet_pretrain.checkpoints.reading import EXTRAS_KEY
from nnunet_pretrain.networks.branches import branch_key, inner_architecture
from nnunet_pretrain.networks.parts import unaliased
from nnunet_pretrain.planning.domain_plans import (
    BRANCHED_NETWORK,
    SIMPLE_NETWORK,
    dataset_json_of_domain,
    domain_tables,
    plans_of_domain,
)
from nnunet_pretrain.planning.settings import PretrainSettings

RECORDS = "domain_records"
"""Entry of a checkpoint's extras: what `domain_records` returns; for exports, which leave out the list of cases."""

DOMAIN = "domain"
"""Entry of a checkpoint's extras: where one that `ordinary` made comes from."""

ENCODER = "encoder."
_LISTED_AGAIN = "decoder.encoder."


def is_branched(checkpoint: Mapping[str, Any]) -> bool:
    """Tells whether a checkpoint holds one branch per domain."""
    return _architecture(checkpoint).get("network_class_name") == BRANCHED_NETWORK


def branch_names(checkpoint: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the domains that have a branch, in the network's order; none for an ordinary network."""
    return tuple(_architecture(checkpoint)["arch_kwargs"]["branches"]) if is_branched(checkpoint) else ()


def is_encoder_of_many(checkpoint: Mapping[str, Any], branch: str | None) -> bool:
    """Tells whether what is taken is the encoder of many domains, whose plan is that of none or of the first of them.

    Args:
        checkpoint: A checkpoint in the form of nnU-Net v2: one of many branches, or what was taken from one.
        branch: The branch that is taken with the encoder, or None.
    """
    if is_branched(checkpoint):
        return branch is None
    origin = checkpoint["init_args"].get(EXTRAS_KEY, {}).get(DOMAIN, {})
    return bool(origin) and origin["name"] is None


def chosen_branch(checkpoint: Mapping[str, Any], branch: str) -> str:
    """Returns the domain a user means.

    Args:
        checkpoint: A checkpoint in the form of nnU-Net v2.
        branch: The domain's name, or the number of its dataset, such as "3" for Dataset003_Liver.

    Raises:
        ValueError: The checkpoint has no such branch, no branches at all, or several of that number.
    """
    names = branch_names(checkpoint)
    if not names:
        raise ValueError(
            f"branch '{branch}' was asked for, but the checkpoint holds an ordinary network without branches; leave "
            f"--branch out, or name a checkpoint of nnUNetTrainerDomains"
        )
    if branch in names:
        return branch
    numbered = [name for name in names if branch.isdecimal() and _number(name) == int(branch)]
    if len(numbered) != 1:
        found = f"{len(numbered)} branches" if numbered else "no branch"
        raise ValueError(f"the checkpoint has {found} '{branch}'; name one of {', '.join(names)} with --branch")
    return numbered[0]


def ordinary(checkpoint: Mapping[str, Any], branch: str | None = None) -> dict[str, Any]:
    """Returns a checkpoint as nnU-Net v2 would have written it, had it trained one domain alone.

    Args:
        checkpoint: A checkpoint in the form of nnU-Net v2.
        branch: Domain whose branch is taken with the encoder. None takes the encoder alone; plans and labels are then
            those of the first domain, with the network whose encoder it is.

    Returns:
        Plans, dataset.json and weights of an ordinary network, under all the names nnU-Net lists them. The card still
        has the fingerprints of all images the encoder has seen, and the domain's own results. The checkpoint of an
        ordinary network comes back as it is; of a classifier, the encoder is left.

    Raises:
        ValueError: There is no such branch, or weights are missing.
    """
    if not is_branched(checkpoint):
        if branch is not None:
            chosen_branch(checkpoint, branch)  # raises
        return without_classifier(checkpoint)
    names = branch_names(checkpoint)
    domain = names[0] if branch is None else chosen_branch(checkpoint, branch)
    arguments = checkpoint["init_args"]
    extras = {key: value for key, value in arguments.get(EXTRAS_KEY, {}).items() if key != RECORDS}
    record = domain_records(checkpoint)[domain]
    if branch is not None:
        extras["card"] = _card(extras.get("card", {}), domain, record)
    origin = {
        "name": None if branch is None else domain,
        "of": str(arguments["plans"].get("dataset_name", "")),
        "domains": list(names),
        "clip_percentiles": _clip_percentiles(arguments["plans"]),
    }
    made = {
        **checkpoint,
        "init_args": {
            **arguments,
            "plans": _plans(arguments["plans"], domain, whole=branch is not None),
            "dataset_json": record["dataset_json"],
            EXTRAS_KEY: {**extras, DOMAIN: origin},
        },
    }
    found = encoder_of(checkpoint) | (branch_weights(checkpoint, domain) if branch is not None else {})
    return {**made, "network_weights": _listed(made, found, domain, decoder=branch is not None)}


def domain_records(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns what is known of every domain: `dataset_json`, the one it has alone, and `pseudo_dice`, group to value.

    Raises:
        ValueError: The checkpoint has branches for other domains than its dataset.json.
    """
    arguments = checkpoint["init_args"]
    extras = arguments.get(EXTRAS_KEY, {})
    found = extras.get(RECORDS)
    if found is None:
        whole, epochs = arguments["dataset_json"], extras.get("progress", {}).get("epochs")
        latest = epochs[-1]["pseudo_dice"] if epochs else {}
        found = {
            domain: {
                "dataset_json": dataset_json_of_domain(whole, domain, table),
                "pseudo_dice": {group: dice for group, dice in latest.get(domain, {}).items() if _finite(dice)},
            }
            for domain, table in domain_tables(whole).items()
        }
    missing = [name for name in branch_names(checkpoint) if name not in found]
    if missing:
        raise ValueError(
            f"the checkpoint has branches for {', '.join(missing)}, but its dataset.json knows only "
            f"{', '.join(found)}; plans and dataset.json do not belong together"
        )
    return dict(found)


def with_records(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a checkpoint of many branches whose domains can be told apart without its list of cases."""
    arguments = checkpoint["init_args"]
    extras = {**arguments.get(EXTRAS_KEY, {}), RECORDS: domain_records(checkpoint)}
    return {**checkpoint, "init_args": {**arguments, EXTRAS_KEY: extras}}


def clip_lines(checkpoint: Mapping[str, Any]) -> list[str]:
    """Returns what a user must do to images before they are shown to what `ordinary` made, nothing for others."""
    percentiles = checkpoint["init_args"].get(EXTRAS_KEY, {}).get(DOMAIN, {}).get("clip_percentiles")
    if not percentiles:
        return []
    low, high = percentiles
    return [
        f"it was trained on clipped images: clip yours first, with nnunet_pretrain clip --percentiles {low:g} {high:g}"
    ]


def encoder_of(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the weights of the encoder that all branches share."""
    return {name: tensor for name, tensor in checkpoint["network_weights"].items() if name.startswith(ENCODER)}


def branch_weights(checkpoint: Mapping[str, Any], domain: str) -> dict[str, Tensor]:
    """Returns the weights of one branch, under their names in the decoder of an ordinary network."""
    start = f"branches.{branch_key(domain)}."
    return {
        f"decoder.{name.removeprefix(start)}": tensor
        for name, tensor in checkpoint["network_weights"].items()
        if name.startswith(start)
    }


def _architecture(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    arguments = checkpoint["init_args"]
    configurations = arguments.get("plans", {}).get("configurations", {})
    return dict(configurations.get(arguments.get("configuration"), {}).get("architecture") or {})


def _card(card: Mapping[str, Any], domain: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a card with the results of one domain; its images stay those of the whole training."""
    own = card.get("validation", {}).get("per_source", {}).get(domain)
    validation = {} if own is None else {**own, "per_source": {domain: own}}
    return {**card, "pseudo_dice": record["pseudo_dice"], "validation": validation}


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _number(name: str) -> int | None:
    found = re.match(r"Dataset(\d+)_", name)
    return int(found[1]) if found else None


def _clip_percentiles(plans: Mapping[str, Any]) -> list[float] | None:
    domains = PretrainSettings.from_plans(plans).domains
    return list(domains.clip_percentiles) if domains is not None and domains.clip_percentiles else None


def _plans(plans: Mapping[str, Any], domain: str, whole: bool) -> dict[str, Any]:
    """Returns a domain's plans; those of the encoder alone have the network it was taken from."""
    made = plans_of_domain(plans, domain)
    if whole:
        return {**made, "dataset_name": domain}
    for configuration in made["configurations"].values():
        network = configuration["architecture"]
        if network["network_class_name"] == SIMPLE_NETWORK:
            configuration["architecture"] = inner_architecture(network["arch_kwargs"])
    return made


def _listed(made: Mapping[str, Any], found: dict[str, Tensor], domain: str, decoder: bool) -> dict[str, Tensor]:
    """Returns weights under every name in nnU-Net's state dict, or in that of the encoder alone."""
    if unknown_imports(made):  # a network of code we do not know is not built
        return found
    expected = [name for name in build_network(made).state_dict() if decoder or name.startswith(ENCODER)]
    source = {name: name.replace(_LISTED_AGAIN, ENCODER, 1) for name in expected}
    missing = list(dict.fromkeys(unaliased(name) for name in expected if source[name] not in found))
    if missing:
        part = "encoder" if missing[0].startswith(ENCODER) else f"branch of '{domain}'"
        raise ValueError(
            f"the checkpoint lacks {len(missing)} weights of its {part}, such as {missing[0]}; it is not whole, take "
            f"checkpoint_final.pth of the training"
        )
    return {name: found[source[name]] for name in expected}
