"""Plans that are there already: those of a 3D dataset, whose network natural images or a transfer take over."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_pretrain.files import read_json
from nnunet_pretrain.folders import check_dataset_id, datasets_with_id, nnunet_folder
from nnunet_pretrain.networks.planned import PLANNED_NETWORKS

CONFIGURATION = "3d_fullres"
STOCK_PLANS = "nnUNetPlans"

_PACKAGE = "dynamic_network_architectures."


@dataclass(frozen=True)
class ExistingPlans:
    """A 3D configuration of plans that were made before.

    Attributes:
        plans: The plans.
        configuration: Name of the configuration.
        chosen: What it says, with everything it inherits.
    """

    plans: Mapping[str, Any]
    configuration: str
    chosen: Mapping[str, Any]

    @property
    def identity(self) -> tuple[str, str, str]:
        """Dataset, name of the plans, and configuration."""
        return str(self.plans["dataset_name"]), str(self.plans["plans_name"]), self.configuration

    @property
    def architecture(self) -> Mapping[str, Any]:
        """The entry of the network."""
        found: Mapping[str, Any] = self.chosen["architecture"]
        return found

    @property
    def voxels(self) -> int:
        """Voxels of one training step."""
        return math.prod(self.chosen["patch_size"]) * int(self.chosen["batch_size"])

    def __str__(self) -> str:
        dataset, name, configuration = self.identity
        return f"{name}, {configuration}, of {dataset}"


def find_plans(plans: str | Path, configuration: str = CONFIGURATION) -> ExistingPlans:
    """Finds plans of a 3D dataset.

    Args:
        plans: Path of a plans file, ending with .json; or the id or name of a dataset, whose nnUNetPlans are taken; or
            DATASET/PLANS, such as `27/nnUNetResEncUNetMPlans`. Datasets are looked up in nnUNet_preprocessed.
        configuration: Configuration of the plans.

    Raises:
        FileNotFoundError: There are no such plans.
        ValueError: They have no such configuration, it is 2D or the second stage of a cascade, or its network is not
            one that nnU-Net's planners make.
    """
    path = _plans_file(str(plans))
    content = read_json(path)
    known = content.get("configurations") if isinstance(content, dict) else None
    if not isinstance(known, dict) or not all(key in content for key in ("dataset_name", "plans_name")):
        raise ValueError(f"{path} holds no plans of nnU-Net; expected such as {STOCK_PLANS}.json of a 3D dataset")
    if configuration not in known:
        raise ValueError(f"{path} has no configuration '{configuration}'; it has {', '.join(known)}, choose with -c")
    try:
        chosen = resolved(content, configuration)
        _check_3d(path, configuration, chosen)
        _check_network(path, configuration, chosen["architecture"])
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path}, configuration '{configuration}', is not whole: {error!r:.200}; plan again") from None
    return ExistingPlans(content, configuration, chosen)


def resolved(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """Returns a configuration of plans with everything it inherits."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return copy.deepcopy(PlansManager(copy.deepcopy(dict(plans))).get_configuration(configuration).configuration)


def _plans_file(text: str) -> Path:
    """Returns the plans file that a user means, which is there."""
    dataset, _, name = text.rpartition("/") if "/" in text else (text, "", STOCK_PLANS)
    path = Path(text).expanduser() if text.endswith(".json") else _dataset_folder(dataset) / f"{name}.json"
    if path.is_file():
        return path
    there = ", ".join(sorted(file.stem for file in path.parent.glob("*Plans*.json"))) or "none"
    raise FileNotFoundError(
        f"plans {path} not found; there are {there}. Plan the 3D dataset first, for example with "
        f"`nnUNetv2_plan_and_preprocess -d {'ID' if text.endswith('.json') else dataset} --no_pp`"
    )


def _dataset_folder(dataset: str) -> Path:
    """Returns the folder of a dataset in nnUNet_preprocessed; of a name it need not be there."""
    root = nnunet_folder("nnUNet_preprocessed")
    if not dataset.isdigit():
        return root / dataset
    check_dataset_id(int(dataset))
    found = datasets_with_id(int(dataset)).get("nnUNet_preprocessed", [])
    if len(found) > 1:
        raise ValueError(f"id {dataset} names several datasets in {root}: {', '.join(path.name for path in found)}")
    return found[0] if found else root / f"Dataset{int(dataset):03d}_*"


def _check_3d(path: Path, configuration: str, chosen: Mapping[str, Any]) -> None:
    if len(chosen["patch_size"]) != 3:
        raise ValueError(f"{path}: configuration '{configuration}' is 2D; name a 3D one, such as -c {CONFIGURATION}")
    if chosen.get("previous_stage"):
        raise ValueError(
            f"{path}: configuration '{configuration}' takes the output of '{chosen['previous_stage']}' as channels; "
            f"name one that needs no other, such as -c {CONFIGURATION}"
        )


def _check_network(path: Path, configuration: str, architecture: Mapping[str, Any]) -> None:
    name, given = str(architecture["network_class_name"]), architecture["arch_kwargs"]
    possible = f"{' and '.join(PLANNED_NETWORKS)} as nnU-Net's planners make them"
    if not name.startswith(_PACKAGE) or name.rpartition(".")[2] not in PLANNED_NETWORKS:
        raise ValueError(
            f"{path}: configuration '{configuration}' has the network {name}; possible are {possible}. Name plans of "
            f"nnU-Net's own planners"
        )
    if not all(_per_stage(given.get(key), int(given["n_stages"])) for key in ("strides", "kernel_sizes")):
        raise ValueError(
            f"{path}: the network of configuration '{configuration}' has no `strides` or no `kernel_sizes` with three "
            f"numbers for each stage; possible are {possible}"
        )


def _per_stage(sizes: Any, stages: int) -> bool:
    def is_list(value: Any, length: int) -> bool:
        return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == length

    return is_list(sizes, stages) and all(is_list(one, 3) and all(isinstance(n, int) for n in one) for one in sizes)
