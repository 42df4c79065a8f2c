"""Networks of other programs, small, under the names their checkpoints have, and what lies in those files."""

import pickle
from collections import OrderedDict

import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn


class V1Convolution(nn.Module):
    """nnU-Net v1: convolution, norm, LeakyReLU."""

    def __init__(self, op, norm, features_in, features, kernel, stride, bias):
        super().__init__()
        self.conv = op(features_in, features, kernel, stride, [k // 2 for k in kernel], bias=bias)
        self.instnorm = norm(features, eps=1e-5, affine=True)

    def forward(self, x):
        return nn.functional.leaky_relu(self.instnorm(self.conv(x)), 1e-2)


class V1Stack(nn.Module):
    """nnU-Net v1: several convolutions, the first with a stride."""

    def __init__(self, op, norm, features_in, features, kernel, count, stride=None, bias=True):
        super().__init__()
        steps = [stride or [1] * len(kernel)] + [[1] * len(kernel)] * (count - 1)
        self.blocks = nn.Sequential(
            *(
                V1Convolution(op, norm, features if i else features_in, features, kernel, steps[i], bias)
                for i in range(count)
            )
        )

    def forward(self, x):
        return self.blocks(x)


class GenericUNet(nn.Module):
    """nnU-Net v1's U-Net: the same tensors and order of layers; a decoder stage has the next coarser kernel."""

    def __init__(self, inputs, outputs, features, pools, kernels, count=2, bias=True, norm="InstanceNorm"):
        super().__init__()
        dimension = len(pools[0])
        op = getattr(nn, f"Conv{dimension}d")
        up = getattr(nn, f"ConvTranspose{dimension}d")
        norm = getattr(nn, f"{norm}{dimension}d")
        steps = [None, *pools]
        stages = [
            V1Stack(op, norm, features[s - 1] if s else inputs, features[s], kernels[s], count, steps[s], bias)
            for s in range(len(pools))
        ]
        bottom = nn.Sequential(
            V1Stack(op, norm, features[-2], features[-1], kernels[-1], count - 1, steps[-1], bias),
            V1Stack(op, norm, features[-1], features[-1], kernels[-1], 1, None, bias),
        )
        self.conv_blocks_context = nn.ModuleList([*stages, bottom])
        self.tu, self.conv_blocks_localization, self.seg_outputs = (nn.ModuleList() for _ in range(3))
        for u in range(len(pools)):
            skip = features[-2 - u]
            self.tu.append(up(features[-1 - u], skip, pools[-1 - u], pools[-1 - u], bias=False))
            self.conv_blocks_localization.append(
                nn.Sequential(
                    V1Stack(op, norm, 2 * skip, skip, kernels[-1 - u], count - 1, None, bias),
                    V1Stack(op, norm, skip, skip, kernels[-1 - u], 1, None, bias),
                )
            )
            self.seg_outputs.append(op(skip, outputs, 1, bias=False))

    def forward(self, x):
        skips, outputs = [], []
        for stage in self.conv_blocks_context:
            x = stage(x)
            skips.append(x)
        for u in range(len(self.tu)):
            x = self.conv_blocks_localization[u](torch.cat((self.tu[u](x), skips[-2 - u]), 1))
            outputs.append(self.seg_outputs[u](x))
        return outputs[::-1]


def randomised(network, seed=0):
    """Gives every tensor random values, so that a swapped or forgotten one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.5)
    return network.eval()


def v1_model(weights):
    """What nnU-Net v1 writes as `.model`."""
    return {
        "epoch": 1000,
        "state_dict": weights,
        "optimizer_state_dict": {"state": {}, "param_groups": []},
        "lr_scheduler_state_dict": None,
        "plot_stuff": ([], [], [], []),
        "best_stuff": (np.float64(0.5), 0.1, None),
    }


def v1_plans(stages, trainer="nnUNetTrainerV2", **changes):
    """What nnU-Net v1 writes as `.model.pkl`, as far as it matters; `stages` is plans_per_stage."""
    intensity = {"median": 50.0, "mean": np.float32(60.5), "sd": 100.0, "mn": -1000, "mx": 2000}
    intensity |= {"percentile_00_5": np.float64(-300.0), "percentile_99_5": 400.0, "local_props": {"case": {}}}
    plans = {
        "num_modalities": 1,
        "modalities": {0: "CT"},
        "normalization_schemes": {0: "CT"},
        "use_mask_for_norm": {0: False},
        "dataset_properties": {"modalities": {0: "CT"}, "intensityproperties": {0: intensity}},
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "all_classes": [1, 2],
        "plans_per_stage": stages,
        **changes,
    }
    arguments = ("/x/nnUNet_preprocessed/Task123_Test/nnUNetPlansv2.1_plans_3D.pkl", 0, "/o", "/d", False, 1, True)
    return {"init": arguments, "name": trainer, "plans": plans}


def v1_stage(spacing, patch_size, pools):
    """One resolution of v1's plans."""
    return {
        "batch_size": 2,
        "patch_size": np.array(patch_size),
        "current_spacing": np.array(spacing),
        "pool_op_kernel_sizes": pools,
    }


def write_pickle(path, content):
    """Writes a plain pickle."""
    path.write_bytes(pickle.dumps(content, protocol=4))


def plain_unet(stages=3, dimension=3, residual=False):
    """The plans' entry of a small network of nnU-Net v2."""
    blocks = "n_blocks_per_stage" if residual else "n_conv_per_stage"
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet."
        + ("ResidualEncoderUNet" if residual else "PlainConvUNet"),
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [4, 6, 8, 8][:stages],
            "conv_op": f"torch.nn.modules.conv.Conv{dimension}d",
            "kernel_sizes": [[3] * dimension] * stages,
            "strides": [[1] * dimension] + [[2] * dimension] * (stages - 1),
            blocks: [1] * stages,
            "n_conv_per_stage_decoder": [1] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimension}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def v2_plans(architecture):
    """nnU-Net v2's plans around a network, as far as a card needs them."""
    configuration = {
        "patch_size": [16, 16, 16],
        "batch_size": 2,
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "architecture": architecture,
    }
    return {
        "dataset_name": "Dataset001_X",
        "plans_name": "nnUNetPlans",
        "foreground_intensity_properties_per_channel": {"0": {}},
        "configurations": {"3d_fullres": configuration},
    }


def v2_checkpoint(weights, architecture, dataset_json, trainer="nnUNetTrainer"):
    """What nnU-Net v2 writes."""
    arguments = {
        "plans": v2_plans(architecture),
        "configuration": "3d_fullres",
        "fold": 0,
        "dataset_json": dataset_json,
        "device": torch.device("cpu"),
    }
    return {
        "network_weights": weights,
        "init_args": arguments,
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": (0, 1, 2),
        "current_epoch": 7,
    }


def nnssl_checkpoint(weights, name, arguments=None, imported=None, spacing=None):
    """What nnssl writes."""
    configuration = {"spacing": spacing, "patch_size": [16, 16, 16], "normalization_schemes": ["ZScoreNormalization"]}
    return {
        "network_weights": weights,
        "citations": [{"type": "dataset", "name": "OpenMind", "apa_citations": ["Wald et al. (2024)"]}],
        "nnssl_adaptation_plan": {
            "architecture_plans": {
                "arch_class_name": name,
                "arch_kwargs": arguments,
                "arch_kwargs_requiring_import": imported,
            },
            "pretrain_plan": {
                "dataset_name": "Dataset745_OpenMind",
                "plans_name": "nnsslPlans",
                "image_reader_writer": "SimpleITKIO",
                "transpose_forward": [0, 1, 2],
                "configurations": {"onemmiso": configuration},
            },
            "pretrain_num_input_channels": 1,
            "recommended_downstream_patchsize": [160, 160, 160],
            "key_to_encoder": "encoder.stages",
            "key_to_stem": "encoder.stem",
            "keys_to_in_proj": ("encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"),
            "key_to_lpe": None,
        },
    }


def suprem_checkpoint(weights):
    """What SuPreM writes."""
    return {"net": weights, "optimizer": {"state": {}}, "scheduler": {"last_epoch": 3}, "epoch": 800}


def text_head(bottom=8):
    """Some tensors of SuPreM's text-conditioned head."""
    return {
        "module.organ_embedding": torch.zeros(32, 512),
        "module.controller.weight": torch.zeros(4, 2 * bottom, 1, 1, 1),
        "module.GAP.0.weight": torch.zeros(bottom),
        "module.precls_conv.2.bias": torch.zeros(8),
        "module.text_to_vision.weight": torch.zeros(bottom, 512),
    }


ISOTROPIC = {"pools": [[2, 2, 2], [2, 2, 2]], "kernels": [[3, 3, 3]] * 3}
ANISOTROPIC = {"pools": [[1, 2, 2], [2, 2, 2]], "kernels": [[1, 3, 3], [3, 3, 3], [3, 3, 3]]}
FLAT = {"pools": [[2, 2], [2, 1]], "kernels": [[3, 3]] * 3}
SMALL_STUNET = {
    "n_stages": 3,
    "features_per_stage": [4, 8, 8],
    "kernel_sizes": [[3, 3, 3]] * 3,
    "strides": [[1, 1, 1], [2, 2, 2], [1, 1, 2]],
    "n_blocks_per_stage": [2, 2, 2],
}


def saved(path, content):
    torch.save(content, path)
    return path


def origin_of(checkpoint):
    return checkpoint["init_args"]["nnunet_pretrain"]["origin"]


def configuration_of(checkpoint):
    return PlansManager(checkpoint["init_args"]["plans"]).get_configuration(checkpoint["init_args"]["configuration"])


def built(checkpoint, strict=True, deep_supervision=True):
    """The network nnU-Net builds from the plans, with the checkpoint's weights."""
    arguments = checkpoint["init_args"]
    chosen = configuration_of(checkpoint)
    labels = LabelManager(arguments["dataset_json"]["labels"], arguments["dataset_json"].get("regions_class_order"))
    network = get_network_from_plans(
        chosen.network_arch_class_name,
        chosen.network_arch_init_kwargs,
        chosen.network_arch_init_kwargs_req_import,
        len(arguments["dataset_json"]["channel_names"]),
        labels.num_segmentation_heads,
        deep_supervision=deep_supervision,
    )
    network.load_state_dict(checkpoint["network_weights"], strict=strict)
    return network.eval()


def wrapped(weights, prefix="module."):
    return OrderedDict((prefix + name, tensor) for name, tensor in weights.items())


def accounted(checkpoint, source, table, prefix=""):
    """Asserts that every tensor is converted or left out with a reason, never both, and that names come back."""
    unmapped = origin_of(checkpoint)["unmapped"]
    back = table.to_origin(checkpoint["network_weights"])
    assert {prefix + name for name in back.values()} | set(unmapped) >= set(source)
    assert not {prefix + name for name in back.values()} & set(unmapped)
    assert all(unmapped.values())
    forth = table.to_v2([name.removeprefix(prefix) for name in source if name not in unmapped])
    assert len(forth) == len(source) - len(unmapped)
    assert table.to_origin(forth.values()) == {v2: name for name, v2 in forth.items()}


def v1_file(tmp_path, shape, **arguments):
    features = {"features": [4, 6, 8]}
    network = randomised(GenericUNet(**{"inputs": 1, "outputs": 3, **features, **shape, **arguments}))
    return network, saved(tmp_path / "any_name.bin", v1_model(network.state_dict()))
