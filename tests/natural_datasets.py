"""Datasets of natural images as convert_2d writes them, 3D targets, and checkpoints; nothing is trained."""

import copy

import nibabel as nib
import numpy as np
import torch
from small_checkpoints import COMMON, DYNAMIC, IMPORTED, INTENSITY

from nnunet_pretrain.conversion.natural_images.index import INDEX, ImageIndex, NaturalImage
from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.networks.planned import planned_network
from nnunet_pretrain.planning.plan_2d import plan_2d

TARGET = "Dataset027_Target"
IMAGES = "Dataset920_Photos"
STRIDES = {
    "isotropic": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    "mixed": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "flat": [[1, 1, 1], [1, 2, 2], [1, 2, 2]],
    "along depth only": [[1, 1, 1], [2, 1, 1], [2, 2, 2]],
}
NARROW = [[1, 3, 3], [1, 3, 3], [3, 3, 3]]
CLASSES = ["cat", "dog", "owl"]


def target_architecture(residual=False, strides="mixed", kernels=None):
    blocks = {"n_blocks_per_stage": [1, 2, 1]} if residual else {"n_conv_per_stage": [2, 1, 1]}
    arguments = {**copy.deepcopy(COMMON), **blocks, "strides": STRIDES[strides]}
    arguments["kernel_sizes"] = kernels or [[3, 3, 3]] * 3
    name = f"{DYNAMIC}{'ResidualEncoderUNet' if residual else 'PlainConvUNet'}"
    return {"network_class_name": name, "arch_kwargs": arguments, "_kw_requires_import": IMPORTED}


def write_target_plans(root, architecture=None, transpose=(0, 1, 2), name="nnUNetPlans", **changes):
    """Writes stock plans of a 3D CT target and returns the file."""
    resampling = {}
    for what, is_seg in (("data", False), ("seg", True), ("probabilities", False)):
        resampling[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        resampling[f"resampling_fn_{what}_kwargs"] = {
            "is_seg": is_seg, "order": 1, "order_z": 0, "force_separate_z": None
        }  # fmt: skip
    plans = {
        "dataset_name": TARGET,
        "plans_name": name,
        "original_median_spacing_after_transp": [3.0, 1.0, 1.0],
        "original_median_shape_after_transp": [12, 28, 28],
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": list(transpose),
        "transpose_backward": [transpose.index(axis) for axis in range(3)],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": dict(INTENSITY)},
        "configurations": {
            "2d": {"patch_size": [32, 32], "batch_size": 8, "architecture": architecture or target_architecture()},
            "3d_fullres": {
                "data_identifier": f"{name}_3d_fullres",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": [16, 32, 32],
                "spacing": [3.0, 1.0, 1.0],
                "normalization_schemes": ["CTNormalization"],
                "use_mask_for_norm": [False],
                **resampling,
                "batch_dice": False,
                "architecture": architecture or target_architecture(),
            },
            "wide": {"inherits_from": "3d_fullres", "patch_size": [16, 64, 64]},
            "cascade": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
        **changes,
    }
    path = root / "nnUNet_preprocessed" / TARGET / f"{name}.json"
    write_json(path, plans)
    return path


def write_natural_images(root, task="classification", storage="originals", count=6, files=False):
    """Writes a raw dataset of natural images; with files, also images and label maps."""
    raw = root / "nnUNet_raw" / IMAGES
    rng, rows = np.random.default_rng(0), []
    for i in range(count):
        case = f"photo_{i:05d}"
        rgb = rng.integers(0, 200 + i % 50, (20 + i % 3, 30, 3), dtype=np.uint8)
        label = CLASSES[i % 3] if task == "classification" else ""
        rows.append(NaturalImage(case, f"{case}.png", label, "", *rgb.shape[:2], rgb.mean(), rgb.std(), ""))
        if files:
            mask = np.full((3, *rgb.shape[:2]), i % 2, np.uint8)
            mask[:, :8, :8] = 1
            for name, volume in ((f"imagesTr/{case}_0000", rgb.transpose(2, 0, 1)), (f"labelsTr/{case}", mask)):
                (raw / name).parent.mkdir(parents=True, exist_ok=True)
                nib.save(nib.Nifti1Image(volume.transpose(2, 1, 0), np.eye(4)), raw / f"{name}.nii.gz")
    names = CLASSES if task == "classification" else ["animal"]
    natural = {"task": task, "storage": storage, "root": str(root / "photos"), "layout": "folders"}
    if task == "classification":
        natural["classes"] = CLASSES
    content = {
        "channel_names": {"0": "natural image"},
        "labels": {"background": 0, **{name: i for i, name in enumerate(names, 1)}},
        "numTraining": count,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        "natural_images": natural,
    }
    write_json(raw / "dataset.json", content)
    ImageIndex.from_rows(rows).write(raw / INDEX)
    return raw


def natural_checkpoint(root, seed=3, **options):
    """Plans natural images for the target's plans and saves a checkpoint as our trainers write it, of drawn weights."""
    plans = read_json(plan_2d(920, 27, num_processes=1, **options))
    dataset_json = read_json(root / "nnUNet_raw" / IMAGES / "dataset.json")
    network = planned_network(plans["configurations"]["3d_fullres"]["architecture"], 1, len(dataset_json["labels"]))
    torch.manual_seed(seed)
    for tensor in network.parameters():  # norms and biases start at 1 and 0, which hides mistakes
        torch.nn.init.normal_(tensor, std=0.3)
    content = {
        "network_weights": network.state_dict(),
        "optimizer_state": {},
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": 0.5,
        "current_epoch": 2,
        "init_args": {
            "plans": plans,
            "configuration": "3d_fullres",
            "fold": "all",
            "dataset_json": dataset_json,
            "device": torch.device("cpu"),
        },
        "trainer_name": f"nnUNetTrainerVDT{plans['nnunet_pretrain']['natural_images']['task'].title()}",
        "inference_allowed_mirroring_axes": None,
    }
    path = root / f"natural_{seed}.pth"
    torch.save(content, path)
    return path
