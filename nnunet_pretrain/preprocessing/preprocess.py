"""Preprocessing a dataset: the files stock `nnUNetv2_preprocess` writes, sooner, and without starting over."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_pretrain.conversion.engine import run_all
from nnunet_pretrain.files import read_json, written_atomically
from nnunet_pretrain.folders import dataset_name, nnunet_folder
from nnunet_pretrain.labels import IGNORE, SCHEMES_KEY
from nnunet_pretrain.labels.branches import source_of
from nnunet_pretrain.planning.domain_plans import CONFIGURATION, DOMAINS_KEY, plans_of_domain
from nnunet_pretrain.planning.settings import SETTINGS_KEY, DomainSettings, PretrainSettings
from nnunet_pretrain.preprocessing.case import (
    CaseInput,
    Recipe,
    is_complete,
    labels_of,
    make_case,
    remove_others,
    was_made,
)

_NAMED_FAULTS = 5


def preprocess(
    dataset: int | str,
    plans_name: str = "nnUNetPlans",
    configurations: Sequence[str] = ("3d_fullres",),
    device: str | None = None,
    num_processes: int = 2,
    overwrite: bool = False,
    report: Callable[[str], None] = print,
) -> list[Path]:
    """Preprocesses a dataset for stock training; cases that are there and up to date are left alone.

    With plans of `plan_domains`, every case gets the spacing and the normalisation of its domain.

    Each worker process reads, resamples and writes a whole case, so that the device, the CPU and the disk are busy with
    different cases, and at most `num_processes` cases are in memory.

    Args:
        dataset: Id or name of a dataset in nnUNet_raw.
        plans_name: Plans in nnUNet_preprocessed, without `.json`.
        configurations: Configurations of the plans.
        device: `cuda` or `cpu`, used where the plans resample with torch; None takes the GPU if there is one.
        num_processes: Worker processes; each has a case in memory, and one in GPU memory if there is a GPU.
        overwrite: Whether to make all cases again.
        report: Called with lines for the user.

    Returns:
        The data folders, one per configuration; none where training reads original natural images.

    Raises:
        ValueError: A configuration is not in the plans, there is no such device, `num_processes` is not positive, or
            cases could not be made (after all others are).
        FileNotFoundError: The dataset, its plans or nnU-Net's folders are missing.
    """
    if num_processes < 1:
        raise ValueError(f"-np must be at least 1, got {num_processes}")
    name = dataset_name(dataset)
    base = nnunet_folder("nnUNet_preprocessed") / name
    plans = _read_planned(base / f"{plans_name}.json", name)
    dataset_json = _read_planned(base / "dataset.json", name)
    if _reads_originals(plans):
        report(f"nothing to preprocess: by plans '{plans_name}', training reads the original images of {name}")
        return []
    unknown = [c for c in configurations if c not in plans["configurations"]]
    if unknown or not configurations:
        raise ValueError(
            f"{base / plans_name}.json has no configuration {' or '.join(map(repr, unknown)) or 'to make'}; "
            f"it has {', '.join(plans['configurations'])}"
        )
    device = chosen_device(device)
    cases = _cases(nnunet_folder("nnUNet_raw") / name, dataset_json)
    folders, faults = [], []
    for configuration in configurations:
        recipes = _recipes(base, plans, configuration, dataset_json, device, num_processes)
        of_case = {files.case: recipes[_domain_of(files.case, dataset_json, recipes)] for files in cases}
        faults += _preprocess_configuration(of_case, configuration, cases, num_processes, overwrite, report)
        folders.append(next(iter(recipes.values())).folder)
    if faults:
        rest = f"; and {len(faults) - _NAMED_FAULTS} more" if len(faults) > _NAMED_FAULTS else ""
        raise ValueError(
            f"{len(faults)} cases could not be preprocessed, all others are; correct or remove them, then run the "
            f"command again: {'; '.join(faults[:_NAMED_FAULTS])}{rest}"
        )
    _copy_labels(cases, base / "gt_segmentations", dataset_json["file_ending"])
    return folders


def check_domain_records(plans: Mapping[str, Any], dataset_json: Mapping[str, Any]) -> None:
    """Refuses preprocessed cases that were not made by `preprocess` for their domain, by these plans.

    Stock `nnUNetv2_preprocess` would give all domains one spacing. The raw data are not needed.

    Args:
        plans: Plans of `plan_domains`.
        dataset_json: dataset.json of the preprocessed dataset.

    Raises:
        ValueError: There is such a case, or one whose files are missing.
    """
    base = nnunet_folder("nnUNet_preprocessed") / plans["dataset_name"]
    recipes = _recipes(base, plans, CONFIGURATION, dataset_json, "cpu", 1)
    digests = {domain: recipe.digest for domain, recipe in recipes.items()}
    domains = {case: _domain_of(case, dataset_json, recipes) for case in dataset_json["dataset"]}
    foreign = [case for case, domain in domains.items() if not was_made(recipes[domain], case, digests[domain])]
    if foreign:
        raise ValueError(
            f"{len(foreign)} of {len(domains)} cases in {next(iter(recipes.values())).folder} were not made for their "
            f"domain by plans '{plans['plans_name']}' ({', '.join(foreign[:_NAMED_FAULTS])}); make them with "
            f"`nnunet_pretrain preprocess -d {plans['dataset_name']} -p {plans['plans_name']}`, not with "
            f"nnUNetv2_preprocess, which gives all domains one spacing"
        )


def chosen_device(device: str | None) -> str:
    """Returns the device to use: what was asked for, or the GPU if there is one.

    Raises:
        ValueError: The device is unknown, or not there.
    """
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cuda or cpu, got '{device}'")
    if device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: torch finds no GPU here; use --device cpu, or install torch for your GPU")
    return device


def _read_planned(path: Path, name: str) -> dict[str, Any]:
    """Reads a file that planning writes."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} not found; plan first: `nnunet_pretrain plan -d {name}` for a merged dataset, `nnunet_pretrain "
            f"plan_domains` for domains, `nnunet_pretrain plan_2d` for natural images, `nnunet_pretrain plan_transfer` "
            f"for a target, or nnUNetv2_plan_experiment"
        )
    content: dict[str, Any] = read_json(path)
    return content


def _cases(raw: Path, dataset_json: dict[str, Any]) -> list[CaseInput]:
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    files = get_filenames_of_train_images_and_targets(str(raw), dataset_json)
    if not files:
        raise ValueError(f"{raw} holds no training cases; expected imagesTr and labelsTr, or 'dataset' in dataset.json")
    return [CaseInput(case, tuple(files[case]["images"]), files[case]["label"]) for case in sorted(files)]


def _recipes(
    base: Path,
    plans: Mapping[str, Any],
    configuration: str,
    dataset_json: Mapping[str, Any],
    device: str,
    num_processes: int,
) -> dict[str | None, Recipe]:
    """Returns how the cases of every domain are made; in plans without domains, of all cases, under None."""
    domains = _domains_of(plans)
    planned = {None: plans} if domains is None else {name: plans_of_domain(plans, name) for name in domains.numbers}
    return {
        domain: _recipe(base, own, configuration, _labels_of_domain(dataset_json, domain), device, num_processes)
        for domain, own in planned.items()
    }


def _labels_of_domain(dataset_json: Mapping[str, Any], domain: str | None) -> dict[str, Any]:
    """Returns the labels that decide how cases are made: a member's own, so that further members leave its cases alone.

    With `ignore`, nnU-Net writes all labels of the dataset into every case.
    """
    labels = labels_of(dataset_json)
    if domain is None or DOMAINS_KEY not in dataset_json or IGNORE in labels["labels"]:
        return labels
    own = {int(stored) for stored in dataset_json[SCHEMES_KEY][domain]}
    return {"labels": {name: stored for name, stored in labels["labels"].items() if stored in own}}


def _reads_originals(plans: Mapping[str, Any]) -> bool:
    """Tells whether training reads natural images where they lie."""
    if "natural_images" not in plans.get(SETTINGS_KEY, {}):
        return False
    natural = PretrainSettings.from_plans(plans).natural_images
    return natural is not None and natural.storage == "originals"


def _domains_of(plans: Mapping[str, Any]) -> DomainSettings | None:
    return PretrainSettings.from_plans(plans).domains if "domains" in plans.get(SETTINGS_KEY, {}) else None


def _domain_of(case: str, dataset_json: Mapping[str, Any], recipes: Mapping[str | None, Recipe]) -> str | None:
    if None in recipes:
        return None
    domain = source_of(dataset_json["dataset"][case])
    if domain not in recipes:
        raise ValueError(
            f"case {case} is of domain '{domain}', which the plans do not know; plan again with "
            f"`nnunet_pretrain plan_domains`"
        )
    return domain


def _recipe(
    base: Path,
    plans: Mapping[str, Any],
    configuration: str,
    labels: dict[str, Any],
    device: str,
    num_processes: int,
) -> Recipe:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    resolved = PlansManager(dict(plans)).get_configuration(configuration)
    threads = max(1, (os.cpu_count() or 1) // num_processes)
    # What is not read by the workers is not sent to them.
    sent = {key: value for key, value in plans.items() if key not in ("configurations", SETTINGS_KEY)}
    folder = base / resolved.data_identifier
    return Recipe(sent, resolved.configuration, labels, folder, device, threads)


def _preprocess_configuration(
    recipes: Mapping[str, Recipe],
    name: str,
    cases: Sequence[CaseInput],
    num_processes: int,
    overwrite: bool,
    report: Callable[[str], None],
) -> list[str]:
    """Makes what is missing of a configuration and returns what is wrong with the cases that could not be made.

    Args:
        recipes: Case to how it is made; all write to one folder.
        name: The configuration.
        cases: All cases.
        num_processes: Worker processes.
        overwrite: Whether to make all cases again.
        report: Called with lines for the user.
    """
    one = recipes[cases[0].case]
    remove_others(one, (files.case for files in cases))
    digests = {id(recipe): recipe.digest for recipe in recipes.values()}
    jobs = [(recipes[files.case], files) for files in cases]
    missing = [job for job in jobs if overwrite or not is_complete(*job, digests[id(job[0])])]
    report(f"{name}: {len(missing)} of {len(cases)} cases to make, in {one.folder}")
    results = run_all(
        _make,
        missing,
        num_processes=num_processes,
        what=f"Preprocessing {name}",
        done=len(cases) - len(missing),
    )
    faults = []
    try:
        for fault in results:
            if fault is not None:
                faults.append(fault)
    except ValueError:  # make_case raises none: a worker process is gone
        raise ValueError(
            "a worker process died, most likely for lack of memory; run the command again with a smaller -np, "
            "finished cases are kept"
        ) from None
    return faults


def _make(job: tuple[Recipe, CaseInput]) -> str | None:
    return make_case(*job)


def _copy_labels(cases: Sequence[CaseInput], folder: Path, file_ending: str) -> None:
    """Copies the label maps that are newer than their copies, as stock does, for validation without the raw data."""
    for files in cases:
        copy, label = folder / f"{files.case}{file_ending}", Path(files.label)
        if copy.is_file() and copy.stat().st_mtime_ns >= label.stat().st_mtime_ns:
            continue
        with written_atomically(copy) as temporary:
            shutil.copy2(label, temporary)
