"""Planning the pre-training with nnU-Net's own fingerprint and planner, called through its Python API.

nnU-Net's command line looks planners up inside nnunetv2 only, so a preset is applied to the plans a stock planner
wrote. The plans name only preprocessors, resamplers and label managers of nnU-Net, so stock commands read them.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_pretrain.conversion.duplicates import FINGERPRINTS
from nnunet_pretrain.files import read_json, write_json, written_atomically
from nnunet_pretrain.folders import dataset_name, nnunet_folder
from nnunet_pretrain.labels import LabelSetTable
from nnunet_pretrain.networks.adapter import AdaptedNetwork
from nnunet_pretrain.networks.trial import try_network
from nnunet_pretrain.planning.preset import Architecture, Network, Preset, load_preset, recorded_name
from nnunet_pretrain.planning.resampling import Resampling, use_torch_resampling
from nnunet_pretrain.planning.settings import PRETRAIN_PLANS, SETTINGS_KEY, PretrainSettings


def plan(
    dataset: int | str, preset: str = "default", num_processes: int = 2, resampling: Resampling | None = None
) -> Path:
    """Writes nnUNetPretrainPlans.json for a merged dataset.

    What a preset asks for is checked before anything is computed or written.

    Args:
        dataset: Id or name of a dataset made by `merge`.
        preset: Name of a preset, or path of one's own, ending with .json.
        num_processes: Worker processes for the fingerprint.
        resampling: Which of nnU-Net's resamplers the plans name for images and logits: its default (`nnunet`) or the
            faster `torch`; None means what the preset says. Transfer plans made from the checkpoint keep it.

    Returns:
        The plans file.

    Raises:
        ValueError: Unknown preset, the dataset has no label schemes, the preset's window finds no CT channel, its
            network cannot be built or does not fit its patch, or nnU-Net plans no 3d_fullres for it.
        FileNotFoundError: The dataset is missing, or nnU-Net's folders are not set.
    """
    chosen = load_preset(preset)
    name = dataset_name(dataset)
    path = nnunet_folder("nnUNet_preprocessed") / name / f"{PRETRAIN_PLANS}.json"
    dataset_json = read_json(nnunet_folder("nnUNet_raw") / name / "dataset.json")
    LabelSetTable.from_dataset_json(dataset_json)
    planner_class(chosen.planner)
    _windows(dataset_json, chosen.window_hu)
    if chosen.architecture is not None:
        _try_architecture(chosen, chosen.architecture, dataset_json)
    extract_fingerprint(name, num_processes)
    hand_on_folds(name)
    hand_on_fingerprints(name)
    plans = planned_by_preset(name, chosen, PRETRAIN_PLANS)
    if (resampling or chosen.resampling) == "torch":
        plans = use_torch_resampling(plans)
    settings = PretrainSettings(preset=recorded_name(preset), training=chosen.training)
    write_json(path, {**plans, SETTINGS_KEY: settings.model_dump(mode="json", exclude_none=True)})
    return path


def planned_by_preset(name: str, preset: Preset, plans_name: str, planner: type | None = None) -> dict[str, Any]:
    """Lets a stock planner plan a dataset whose fingerprint is extracted, and changes that to what a preset says.

    Args:
        name: Dataset.
        preset: The recipe.
        plans_name: Name of the plans; nnU-Net writes its own under it, which the caller replaces.
        planner: Planner class; None means the preset's.

    Returns:
        The plans.

    Raises:
        ValueError: The preset does not fit the dataset; no plans of that name are left.
    """
    path = nnunet_folder("nnUNet_preprocessed") / name / f"{plans_name}.json"
    dataset_json = read_json(nnunet_folder("nnUNet_raw") / name / "dataset.json")
    windows = _windows(dataset_json, preset.window_hu)
    # nnU-Net keeps configurations of an older plans file of the same name; ours must be what the preset says.
    path.unlink(missing_ok=True)
    plans = _stock_plans(name, preset, plans_name, planner or planner_class(preset.planner))
    try:
        _apply(preset, plans, plans_name)
    except ValueError:
        path.unlink()  # nnU-Net's own, which are not what the preset asks for
        raise
    for channel, window in windows.items():
        plans["foreground_intensity_properties_per_channel"][channel].update(window)
    return plans


def _apply(preset: Preset, plans: dict[str, Any], plans_name: str) -> None:
    """Changes a stock planner's plans to what a preset says of data and network."""
    configurations = plans["configurations"]
    for name, configuration in configurations.items():
        if "data_identifier" in configuration:
            # Some planners share the data of nnUNetPlans, which may have been made with another spacing.
            configuration["data_identifier"] = f"{plans_name}_{name}"
    if not (preset.spacing_mm or preset.network or preset.architecture):
        return
    if "3d_fullres" not in configurations:
        raise ValueError(
            f"the preset is for 3d_fullres, but nnU-Net planned {list(configurations)} for images of one slice; "
            f"choose a preset without spacing, network and architecture, such as 'default'"
        )
    if preset.network is not None:
        _fit_network(configurations["3d_fullres"], preset.network)
    if preset.architecture is not None:
        _replace_network(configurations["3d_fullres"], preset.architecture)


def hand_on_folds(name: str) -> None:
    """Puts the folds of `merge` (duplicates together) where nnU-Net looks; folds of the same cases there stay."""
    made = nnunet_folder("nnUNet_raw") / name / "splits_final.json"
    used = nnunet_folder("nnUNet_preprocessed") / name / "splits_final.json"
    if not made.is_file():
        return
    folds = read_json(made)
    if not used.is_file() or _cases_in(read_json(used)) != _cases_in(folds):
        write_json(used, folds)


def hand_on_fingerprints(name: str) -> None:
    """Puts the images' content fingerprints where training finds them, which keeps them in its checkpoints."""
    made = nnunet_folder("nnUNet_raw") / name / FINGERPRINTS
    if made.is_file():
        with written_atomically(nnunet_folder("nnUNet_preprocessed") / name / FINGERPRINTS) as temporary:
            shutil.copyfile(made, temporary)


def _cases_in(folds: list[dict[str, list[str]]]) -> set[str]:
    return {case for fold in folds for part in fold.values() for case in part}


def extract_fingerprint(name: str, num_processes: int) -> None:
    """Lets nnU-Net extract the fingerprint of a raw dataset anew."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    DatasetFingerprintExtractor(name, num_processes).run(overwrite_existing=True)


def planner_class(planner: str) -> type:
    """Returns one of nnU-Net's planners.

    Raises:
        ValueError: nnU-Net has none of that name.
    """
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    folder = Path(nnunetv2.__path__[0]) / "experiment_planning"
    found = recursive_find_python_class(str(folder), planner, "nnunetv2.experiment_planning")
    if found is None:
        raise ValueError(f"nnU-Net has no planner '{planner}'; correct the preset")
    return found


def _stock_plans(name: str, preset: Preset, plans_name: str, planner: type) -> dict[str, Any]:
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset

    plans, _ = plan_experiment_dataset(
        name,
        planner,
        preset.gpu_memory_gb,
        overwrite_target_spacing=preset.spacing_mm,
        overwrite_plans_name=plans_name,
    )
    return plans


def _windows(dataset_json: dict[str, Any], window: tuple[float, float] | None) -> dict[str, dict[str, float]]:
    """Returns for every CT channel the intensity properties with which nnU-Net's CTNormalization gives 0 to 1."""
    from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

    if window is None:
        return {}
    low, high = window
    channels = dataset_json["channel_names"]
    ct = [i for i, channel in channels.items() if get_normalization_scheme(channel).__name__ == "CTNormalization"]
    if not ct:
        raise ValueError(
            f"the preset has a window in Hounsfield units, but the channels are {list(channels.values())}; "
            f"name the CT channel 'CT' in dataset.json, or choose another preset"
        )
    properties = {"percentile_00_5": low, "percentile_99_5": high, "mean": low, "std": high - low}
    return {channel: dict(properties) for channel in ct}


def _try_architecture(preset: Preset, architecture: Architecture, dataset_json: dict[str, Any]) -> None:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    channels = len(dataset_json["channel_names"])
    heads = LabelManager(dataset_json["labels"], dataset_json.get("regions_class_order")).num_segmentation_heads
    for deep_supervision in sorted({preset.training.deep_supervision, preset.transfer.deep_supervision}):
        try_network(
            partial(AdaptedNetwork, channels, heads, deep_supervision=deep_supervision, **architecture.arch_kwargs()),
            (channels, heads),
            architecture.patch_size,
            architecture.strides if deep_supervision else None,
        )


def _replace_network(configuration: dict[str, Any], architecture: Architecture) -> None:
    """Puts a network of another class in place of the planner's."""
    configuration["architecture"] = {
        "network_class_name": f"{AdaptedNetwork.__module__}.{AdaptedNetwork.__qualname__}",
        "arch_kwargs": architecture.arch_kwargs(),
        "_kw_requires_import": [],
    }
    configuration.update(patch_size=list(architecture.patch_size), batch_size=architecture.batch_size)


def _fit_network(configuration: dict[str, Any], network: Network) -> None:
    """Replaces patch, batch and topology, by nnU-Net's own rules for pooling and kernels."""
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    _, strides, kernels, patch_size, _ = get_pool_and_conv_props(
        configuration["spacing"], network.patch_size, network.min_edge, 999999
    )
    stages = len(strides)
    architecture = configuration["architecture"]["arch_kwargs"]
    blocks = next(key for key in ("n_conv_per_stage", "n_blocks_per_stage") if key in architecture)
    architecture.update(
        n_stages=stages,
        features_per_stage=[min(network.max_features, network.base_features * 2**i) for i in range(stages)],
        strides=[[int(s) for s in stride] for stride in strides],
        kernel_sizes=[[int(k) for k in kernel] for kernel in kernels],
    )
    architecture[blocks] = _repeated(architecture[blocks], stages)
    architecture["n_conv_per_stage_decoder"] = _repeated(architecture["n_conv_per_stage_decoder"], stages - 1)
    configuration.update(patch_size=[int(p) for p in patch_size], batch_size=network.batch_size)


def _repeated(per_stage: list[int], length: int) -> list[int]:
    return [*per_stage, *[per_stage[-1]] * length][:length]
