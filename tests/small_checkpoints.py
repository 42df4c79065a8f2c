"""Checkpoints of tiny networks as our trainers write them, for what is done with checkpoints; nothing is trained."""

import copy

import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

DYNAMIC = "dynamic_network_architectures.architectures.unet."
COMMON = {
    "n_stages": 3,
    "features_per_stage": [4, 8, 8],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "n_conv_per_stage_decoder": [1, 1],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
IMPORTED = ["conv_op", "norm_op", "dropout_op", "nonlin"]
NETWORKS = {
    "PlainConvUNet": (f"{DYNAMIC}PlainConvUNet", {**COMMON, "n_conv_per_stage": [1, 1, 1]}, IMPORTED),
    "ResidualEncoderUNet": (f"{DYNAMIC}ResidualEncoderUNet", {**COMMON, "n_blocks_per_stage": [1, 2, 1]}, IMPORTED),
    "SegResNet": (
        "nnunet_pretrain.networks.adapter.AdaptedNetwork",
        {"network": "monai.networks.nets.SegResNet", "arguments": {"init_filters": 8}, "strides": [[1, 1, 1]]},
        [],
    ),
}
INTENSITY = {"mean": 50.0, "std": 80.0, "percentile_00_5": -100.0, "percentile_99_5": 300.0}
INTENSITY |= {"min": -1000.0, "max": 2000.0, "median": 45.0}
FINGERPRINTS = {"case_1": {"voxels": "ab", "sketch": "AAAAAAAAAAA="}}


def checkpoint(network="PlainConvUNet", fold=0):
    """A checkpoint as our trainers write it, of a tiny network with drawn weights; nothing is trained."""
    class_name, arguments, imported = copy.deepcopy(NETWORKS[network])
    torch.manual_seed(3)
    weights = get_network_from_plans(class_name, arguments, imported, 1, 3, deep_supervision=True).state_dict()
    plans = {
        "dataset_name": "Dataset007_Tiny",
        "plans_name": "nnUNetPretrainPlans",
        "original_median_spacing_after_transp": [3.0, 1.0, 1.0],
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": dict(INTENSITY)},
        "configurations": {
            "3d_fullres": {
                "data_identifier": "nnUNetPretrainPlans_3d_fullres",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": [16, 16, 16],
                "spacing": [3.0, 1.0, 1.0],
                "normalization_schemes": ["CTNormalization"],
                "use_mask_for_norm": [False],
                "architecture": {
                    "network_class_name": class_name,
                    "arch_kwargs": arguments,
                    "_kw_requires_import": imported,
                },
            }
        },
        "nnunet_pretrain": {"preset": "/home/someone/my.json", "transfer": {"checkpoint": "C:\\data\\first.pth"}},
    }
    dataset_json = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "spleen": 2},
        "file_ending": ".nii.gz",
        "numTraining": 1,
        "label_schemes": {"BTCV": {"0": ["background"], "1": ["liver"], "2": ["spleen"]}},
        "sources": [
            {"name": "BTCV", "cases": 1, "licence": "CC BY 4.0", "citation": "Landman 2015", "url": "https://x"}
        ],
        "dataset": {"case_1": {"images": ["/home/someone/img.nii.gz"], "label": "labelsTr/case_1.nii.gz"}},
    }
    card = {"versions": {"torch": "2"}, "fingerprints": FINGERPRINTS, "pseudo_dice": {"liver": np.float64(0.5)}}
    return {
        "network_weights": weights,
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(100_000)}}},
        "grad_scaler_state": None,
        "logging": {"ema_fg_dice": [np.float64(0.25)]},
        "_best_ema": np.float64(0.25),
        "current_epoch": 12,
        "init_args": {
            "plans": plans,
            "configuration": "3d_fullres",
            "fold": fold,
            "dataset_json": dataset_json,
            "device": torch.device("cpu"),
            "nnunet_pretrain": {"card": card, "resume": {"random_states": torch.get_rng_state()}},
        },
        "trainer_name": "nnUNetTrainerPretrain",
        "inference_allowed_mirroring_axes": (0, 1),
    }


def bits(tensor):
    return (tensor.dtype, tuple(tensor.shape), tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def same_weights(first, second):
    assert set(first) == set(second)
    return all(bits(first[name]) == bits(second[name]) for name in first)


def no_path_of_this_machine(content):
    return not any(text in content for text in (b"/home/", b"C:\\", b"/tmp/", b"someone"))


def save_as_trained(model, content):
    """Saves a checkpoint in its fold's folder below a model, as nnU-Net does, and returns the file."""
    folder = model / f"fold_{content['init_args']['fold']}"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / "checkpoint_final.pth")
    return folder / "checkpoint_final.pth"
