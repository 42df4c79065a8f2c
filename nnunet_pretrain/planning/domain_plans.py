"""One domain of a dataset of many, as the ordinary nnU-Net dataset and plans it would be alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from nnunet_pretrain.labels import LabelSetTable
from nnunet_pretrain.labels.branches import BranchTable, branch_tables, source_of
from nnunet_pretrain.networks.branches import inner_architecture
from nnunet_pretrain.planning.settings import SETTINGS_KEY, PretrainSettings

DOMAINS_KEY = "domains"
"""Entry of dataset.json: member to the entries its own dataset.json had; only in datasets made of members."""

CONFIGURATION = "3d_fullres"
BRANCHED_NETWORK = "nnunet_pretrain.networks.branches.BranchedNetwork"
SIMPLE_NETWORK = "nnunet_pretrain.networks.branches.SimpleBranchNetwork"


def domain_tables(dataset_json: Mapping[str, Any]) -> dict[str, BranchTable]:
    """Returns the branch of every domain of a dataset, from its dataset.json."""
    table = LabelSetTable.from_dataset_json(dataset_json)
    return branch_tables(table, {case: source_of(entry) for case, entry in dataset_json["dataset"].items()})


def plans_of_domain(plans: Mapping[str, Any], domain: str) -> dict[str, Any]:
    """Returns the plans of one domain alone: its spacing and intensities, and a network with its branch only.

    Network, patch, batch, order of axes and the folder of the preprocessed data are the shared ones.

    Args:
        plans: Plans of `plan_domains`.
        domain: A domain of theirs.

    Raises:
        ValueError: The plans know no such domain.
    """
    settings = PretrainSettings.from_plans(plans)
    numbers = settings.domains.numbers if settings.domains is not None else {}
    if domain not in numbers:
        raise ValueError(f"plans '{plans.get('plans_name')}' have no domain '{domain}'; they have {', '.join(numbers)}")
    own = numbers[domain].model_dump(mode="json")
    configuration = copy.deepcopy(plans["configurations"][CONFIGURATION])
    configuration["architecture"] = _alone(configuration["architecture"])
    for key in ("spacing", "normalization_schemes", "use_mask_for_norm"):
        configuration[key] = own[key]
    intensities = "foreground_intensity_properties_per_channel"
    return {
        **copy.deepcopy({key: value for key, value in plans.items() if key not in ("configurations", intensities)}),
        intensities: own[intensities],
        "configurations": {CONFIGURATION: configuration},
        SETTINGS_KEY: settings.model_copy(update={"domains": None}).model_dump(mode="json", exclude_none=True),
    }


def dataset_json_of_domain(dataset_json: Mapping[str, Any], domain: str, branch: BranchTable) -> dict[str, Any]:
    """Returns the dataset.json of one domain alone: labels with the ids of its branch's channels.

    A member keeps the names its own dataset gave to labels and channels, and the ending of its files; the source of a
    merged dataset has the names of the structures it stores.

    Args:
        dataset_json: The whole dataset's.
        domain: The domain.
        branch: Its branch.
    """
    own = dataset_json.get(DOMAINS_KEY, {}).get(domain, {})
    labels = {name: channel for channel, name in enumerate(branch.channel_names)}
    cases = {case: entry for case, entry in dataset_json["dataset"].items() if source_of(entry) == domain}
    return {
        "name": domain,
        "channel_names": own.get("channel_names", dataset_json["channel_names"]),
        "labels": own.get("labels", labels),
        "numTraining": len(cases),
        "file_ending": own.get("file_ending", dataset_json["file_ending"]),
        "overwrite_image_reader_writer": dataset_json.get("overwrite_image_reader_writer"),
        "sources": [facts for facts in dataset_json.get("sources", ()) if facts["name"] == domain],
    }


def _alone(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the architecture of a network with one branch."""
    arguments = architecture["arch_kwargs"]
    if arguments["branch"] == "unet":
        return inner_architecture(arguments)
    simple = {key: arguments[key] for key in ("network_class_name", "arch_kwargs", "imported", "strides")}
    return {"network_class_name": SIMPLE_NETWORK, "arch_kwargs": simple, "_kw_requires_import": []}
