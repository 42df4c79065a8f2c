"""Planning the pre-training with nnU-Net's own fingerprint and planner, called through its Python API.

nnU-Net's command line looks planners up inside nnunetv2 only, so a preset is applied to the plans a stock planner
wrote. The plans name only preprocessors, resamplers and label managers of nnU-Net, so stock commands read them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.folders import dataset_name, nnunet_folder
from nnunet_pretrain.labels import LabelSetTable
from nnunet_pretrain.planning.preset import Network, load_preset
from nnunet_pretrain.planning.settings import PRETRAIN_PLANS, SETTINGS_KEY, PretrainSettings


def plan(dataset: int | str, preset: str = "default", num_processes: int = 2) -> Path:
    """Writes nnUNetPretrainPlans.json for a merged dataset.

    Args:
        dataset: Id or name of a dataset made by `merge`.
        preset: Name of a preset.
        num_processes: Worker processes for the fingerprint.

    Returns:
        The plans file.

    Raises:
        ValueError: Unknown preset, or the dataset has no label schemes.
        FileNotFoundError: The dataset is missing, or nnU-Net's folders are not set.
    """
    chosen = load_preset(preset)
    name = dataset_name(dataset)
    path = nnunet_folder("nnUNet_preprocessed") / name / f"{PRETRAIN_PLANS}.json"
    LabelSetTable.from_dataset_json(read_json(nnunet_folder("nnUNet_raw") / name / "dataset.json"))
    extract_fingerprint(name, num_processes)
    _hand_on_folds(name)
    plans = _stock_plans(name, chosen.planner, chosen.gpu_memory_gb, chosen.spacing_mm)
    for configuration_name, configuration in plans["configurations"].items():
        if "data_identifier" in configuration:
            # Some planners share the data of nnUNetPlans, which may have been made with another spacing.
            configuration["data_identifier"] = f"{PRETRAIN_PLANS}_{configuration_name}"
    if chosen.network is not None:
        if "3d_fullres" not in plans["configurations"]:
            raise ValueError(f"preset '{preset}' needs 3d_fullres, but nnU-Net planned {list(plans['configurations'])}")
        _fit_network(plans["configurations"]["3d_fullres"], chosen.network)
    settings = PretrainSettings(preset=preset, training=chosen.training)
    write_json(path, {**plans, SETTINGS_KEY: settings.model_dump(mode="json", exclude_none=True)})
    return path


def _hand_on_folds(name: str) -> None:
    """Puts the folds of `merge` (duplicates together) where nnU-Net looks; folds of the same cases there stay."""
    made = nnunet_folder("nnUNet_raw") / name / "splits_final.json"
    used = nnunet_folder("nnUNet_preprocessed") / name / "splits_final.json"
    if not made.is_file():
        return
    folds = read_json(made)
    if not used.is_file() or _cases_in(read_json(used)) != _cases_in(folds):
        write_json(used, folds)


def _cases_in(folds: list[dict[str, list[str]]]) -> set[str]:
    return {case for fold in folds for part in fold.values() for case in part}


def extract_fingerprint(name: str, num_processes: int) -> None:
    """Lets nnU-Net extract the fingerprint of a raw dataset anew."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    DatasetFingerprintExtractor(name, num_processes).run(overwrite_existing=True)


def _stock_plans(
    name: str, planner: str, gpu_memory_gb: float | None, spacing_mm: tuple[float, float, float] | None
) -> dict[str, Any]:
    import nnunetv2
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    folder = Path(nnunetv2.__path__[0]) / "experiment_planning"
    planner_class = recursive_find_python_class(str(folder), planner, "nnunetv2.experiment_planning")
    if planner_class is None:
        raise ValueError(f"nnU-Net has no planner '{planner}'; correct the preset")
    # nnU-Net keeps configurations of an older plans file of the same name; ours must be what the preset says.
    (nnunet_folder("nnUNet_preprocessed") / name / f"{PRETRAIN_PLANS}.json").unlink(missing_ok=True)
    plans, _ = plan_experiment_dataset(
        name, planner_class, gpu_memory_gb, overwrite_target_spacing=spacing_mm, overwrite_plans_name=PRETRAIN_PLANS
    )
    return plans


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
