"""Planning a dataset of domains: own spacing and intensities for each, one network, patch and batch for all.

Every domain is resampled to the median spacing of its own images and normalised by its own statistics (Med3D, Chen et
al., arXiv 1904.00625). nnU-Net's planner is run once, on the typical shape of a domain's images in voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_pretrain.conversion.domain_checks import check_foreground
from nnunet_pretrain.conversion.domain_members import LEAST_CASES
from nnunet_pretrain.conversion.domains import CLIP_KEY, make_domains
from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.folders import dataset_name, nnunet_folder
from nnunet_pretrain.labels import SCHEMES_KEY
from nnunet_pretrain.labels.branches import source_of
from nnunet_pretrain.planning.domain_fingerprints import (
    Z_SCORE,
    DomainNormalization,
    extract_domain_fingerprints,
    median_spacing,
)
from nnunet_pretrain.planning.domain_network import branched, check_architecture, planned_architecture, try_branch
from nnunet_pretrain.planning.domain_plans import (
    CONFIGURATION,
    DOMAINS_KEY,
    domain_tables,
)
from nnunet_pretrain.planning.plan import hand_on_fingerprints, hand_on_folds, planned_by_preset, planner_class
from nnunet_pretrain.planning.preset import Preset, load_preset, recorded_name
from nnunet_pretrain.planning.resampling import Resampling, use_torch_resampling
from nnunet_pretrain.planning.settings import (
    DOMAIN_PLANS,
    SETTINGS_KEY,
    DomainNumbers,
    DomainSettings,
    PretrainSettings,
)


def plan_domains(
    dataset: int | str,
    name: str | None = None,
    members: Sequence[int | str] = (),
    channels: Sequence[str] = (),
    preset: str = "default",
    num_processes: int = 2,
    resampling: Resampling | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Writes nnUNetDomainPlans.json: for existing datasets as domains, or for a merged dataset, one branch per source.

    Args:
        dataset: Id of the dataset to make of the members; without members, id or name of one that is there.
        name: Name of the dataset to make, without its number.
        members: Ids or names of existing datasets, one per domain; none to plan a dataset that is there.
        channels: Which channel to use of members with several; see `conversion.domain_members.read_members`.
        preset: Name of a preset, or path of one's own, ending with .json.
        num_processes: Worker processes.
        resampling: As `plan`.
        report: Called with lines for the user.

    Returns:
        The plans file.

    Raises:
        ValueError: The preset or a member is unusable, a domain has too few cases or no foreground, or nnU-Net plans
            no 3d_fullres.
        FileNotFoundError: A dataset or a file is missing, or nnU-Net's folders are not set.
    """
    chosen = load_preset(preset)
    _check_preset(chosen)
    if members:
        name = _converted(dataset, name, members, channels, chosen, num_processes, report)
    elif name is not None or channels:
        raise ValueError("-n and --channel make a new dataset and need --members; without them, -d alone is planned")
    else:
        name = dataset_name(dataset)
    dataset_json = read_json(nnunet_folder("nnUNet_raw") / name / "dataset.json")
    if SCHEMES_KEY not in dataset_json:
        raise ValueError(
            f"{name} is one dataset, not many; name datasets with --members, such as -d 910 -n MyDomains --members "
            f"{dataset} 7, or a dataset that `merge` made"
        )
    cases_of = _checked_domains(name, dataset_json, chosen)
    plans = _plan(name, dataset_json, cases_of, chosen, num_processes)
    if (resampling or chosen.resampling) == "torch":
        plans = use_torch_resampling(plans)
    training = chosen.training
    if chosen.domains.branch == "simple" and training.deep_supervision:
        report("simple branches have one output: deep supervision is off")
        training = training.model_copy(update={"deep_supervision": False})
    settings = PretrainSettings(preset=recorded_name(preset), training=training, domains=plans.pop(DOMAINS_KEY))
    plans[SETTINGS_KEY] = settings.model_dump(mode="json", exclude_none=True)
    try_branch(plans, dataset_json, training.deep_supervision)
    path = nnunet_folder("nnUNet_preprocessed") / name / f"{DOMAIN_PLANS}.json"
    write_json(path, plans)
    return path


def _check_preset(preset: Preset) -> None:
    """Refuses what a preset cannot ask for where every domain keeps its own spacing and intensities."""
    planner_class(preset.planner)
    asked = [key for key in ("spacing_mm", "window_hu") if getattr(preset, key) is not None]
    if asked:
        raise ValueError(
            f"the preset sets {' and '.join(asked)}, but every domain keeps its own spacing and intensities; choose "
            f"another preset, such as 'default' or 'med3d', or leave these keys out of your own"
        )
    if preset.architecture is not None:
        check_architecture(preset.architecture, preset)


def _converted(
    dataset: int | str,
    name: str | None,
    members: Sequence[int | str],
    channels: Sequence[str],
    preset: Preset,
    num_processes: int,
    report: Callable[[str], None],
) -> str:
    """Makes the dataset of the members and returns its name."""
    if not str(dataset).isdigit() or name is None:
        raise ValueError("a dataset made of --members needs a number and a name, such as -d 910 -n MyDomains")
    clip = preset.domains.clip_percentiles
    return make_domains(int(dataset), name, members, channels, clip, num_processes, report).name


def _checked_domains(name: str, dataset_json: Mapping[str, Any], preset: Preset) -> dict[str, list[str]]:
    """Returns the cases of every domain of a raw dataset, once it is sure that each can be trained on."""
    branches = domain_tables(dataset_json)
    made, wanted = dataset_json.get(CLIP_KEY), preset.domains.clip_percentiles
    if (tuple(made) if made else None) != wanted:
        remedy = "give --members again" if DOMAINS_KEY in dataset_json else "choose a preset without clip_percentiles"
        raise ValueError(
            f"the preset's clip_percentiles are {wanted}, but the images of {name} are "
            f"{f'clipped to {tuple(made)}' if made else 'not clipped'}; {remedy}, such as 'default'"
        )
    cases_of: dict[str, list[str]] = {domain: [] for domain in branches}
    for case, entry in dataset_json["dataset"].items():
        cases_of[source_of(entry)].append(case)
    folder = nnunet_folder("nnUNet_raw") / name
    for domain, cases in cases_of.items():
        if len(cases) < LEAST_CASES:
            raise ValueError(
                f"domain {domain} has {len(cases)} case and needs at least {LEAST_CASES}, to train and to validate on; "
                f"make {name} without it"
            )
        label_maps = [folder / dataset_json["dataset"][case]["label"] for case in cases]
        foreground = branches[domain].stored_ids[1:]
        check_foreground(domain, label_maps, foreground, dataset_json["overwrite_image_reader_writer"])
    return cases_of


def _plan(
    name: str, dataset_json: Mapping[str, Any], cases_of: Mapping[str, Sequence[str]], preset: Preset, processes: int
) -> dict[str, Any]:
    """Returns plans with the network of all branches and, under DOMAINS_KEY, the settings of the domains."""
    fingerprints = extract_domain_fingerprints(name, cases_of, processes)
    hand_on_folds(name)
    hand_on_fingerprints(name)
    channels_of = {domain: len(table.stored_ids) for domain, table in domain_tables(dataset_json).items()}
    planner = _for_one_branch(planner_class(preset.planner), max(channels_of.values()))
    plans = planned_by_preset(name, preset, DOMAIN_PLANS, planner)
    (nnunet_folder("nnUNet_preprocessed") / name / f"{DOMAIN_PLANS}.json").unlink()  # the planner's own
    if CONFIGURATION not in plans["configurations"]:
        raise ValueError(f"nnU-Net planned no {CONFIGURATION} for {name}: its images have one slice only")
    configuration = plans["configurations"][CONFIGURATION]
    inner = configuration["architecture"] if preset.architecture is None else planned_architecture(preset.architecture)
    configuration["architecture"] = branched(inner, channels_of, preset.domains.branch)
    # No domain's: with these, stock commands come as far as the network or the trainer, which say what to do instead.
    count = len(dataset_json["channel_names"])
    configuration.update(normalization_schemes=["ZScoreNormalization"] * count, use_mask_for_norm=[False] * count)
    plans["foreground_intensity_properties_per_channel"] = {str(channel): {} for channel in range(count)}
    numbers = {
        domain: _numbers(name, dataset_json, domain, fingerprint, plans["transpose_forward"], preset)
        for domain, fingerprint in fingerprints.items()
    }
    settings = DomainSettings(
        batches=preset.domains.batches, clip_percentiles=preset.domains.clip_percentiles, numbers=numbers
    )
    return {**plans, "configurations": {CONFIGURATION: configuration}, DOMAINS_KEY: settings}


def _for_one_branch(stock: Any, channels: int) -> type:
    """Returns a planner that reckons with the memory of one branch: a step needs one, not the labels of all domains."""

    class OneBranch(stock):
        @staticmethod
        def static_estimate_VRAM_usage(patch_size: Any, input_channels: int, output_channels: int, *rest: Any) -> Any:  # noqa: N802
            return stock.static_estimate_VRAM_usage(patch_size, input_channels, min(output_channels, channels), *rest)

    OneBranch.__name__ = stock.__name__  # the plans name it
    return OneBranch


def _numbers(
    name: str,
    dataset_json: Mapping[str, Any],
    domain: str,
    fingerprint: Mapping[str, Any],
    axes: Sequence[int],
    preset: Preset,
) -> DomainNumbers:
    """Returns what a domain keeps of its own; clipped images are normalised by their own mean and deviation."""
    channels = dataset_json.get(DOMAINS_KEY, {}).get(domain, {}).get("channel_names", dataset_json["channel_names"])
    if preset.domains.clip_percentiles is not None:
        channels = dict.fromkeys(channels, Z_SCORE)
    schemes, use_mask = DomainNormalization(name, channels, fingerprint).chosen()
    spacing = median_spacing(fingerprint)
    return DomainNumbers(
        spacing=(spacing[axes[0]], spacing[axes[1]], spacing[axes[2]]),
        normalization_schemes=schemes,
        use_mask_for_norm=use_mask,
        foreground_intensity_properties_per_channel=fingerprint["foreground_intensity_properties_per_channel"],
    )
