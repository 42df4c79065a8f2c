"""Models Genesis (Zhou et al., MedIA 2021): its self-supervised 3D U-Net, from which SuPreM's U-Net started."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nnunet_pretrain.checkpoints.foreign.file import ForeignFile
from nnunet_pretrain.checkpoints.foreign.fit import fitted
from nnunet_pretrain.checkpoints.foreign.key_table import KeyTable
from nnunet_pretrain.checkpoints.foreign.v2_form import Origin, Training, adapted, checkpoint
from nnunet_pretrain.networks.adapter import PREFIX
from nnunet_pretrain.networks.genesis_unet import GenesisUNet

FORMAT = "Models Genesis"
_PARTS = ("down_tr64", "down_tr128", "down_tr256", "down_tr512", "up_tr256", "up_tr128", "up_tr64")
KEY_TABLE = KeyTable([(f"{part}.{{rest}}", f"{PREFIX}{part}.{{rest}}") for part in _PARTS])


def recognises(file: ForeignFile) -> bool:
    """Says whether the file holds the U-Net of Models Genesis."""
    return file.has(r"down_tr64\.ops\.0\.conv1\.weight")


def convert(file: ForeignFile) -> dict[str, Any]:
    """Converts the self-supervised U-Net to ours; its output layer shows images and is left out."""
    origin = Origin(
        FORMAT,
        [
            "self-supervised: there are no segmentation heads to transfer",
            "its axis order is taken for SuPreM's, x, y, z, whose U-Net started from it",
        ],
    )
    renamed = KEY_TABLE.to_v2(file.weights)
    origin.leave_out(file, renamed, "output of the self-supervision, no segmentation head")
    weights = {v2: file.weights[name] for name, v2 in renamed.items()}
    network, inputs = unet_architecture(weights)
    check_unet(network, weights, (inputs, 1), file)
    return checkpoint(file, origin, network, weights, (inputs, 1), Training(labels={"background": 0}, plans="Genesis"))


def unet_architecture(weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], int]:
    """Returns the plans' entry for the U-Net and its number of input channels.

    Args:
        weights: Its tensors under the names they have in `AdaptedNetwork`.
    """
    first = weights[f"{PREFIX}down_tr64.ops.0.conv1.weight"]
    path = f"{GenesisUNet.__module__}.{GenesisUNet.__qualname__}"
    return adapted(path, {"base_features": first.shape[0]}, 4, [2, 1, 0]), first.shape[1]


def check_unet(
    network: Mapping[str, Any], weights: Mapping[str, Tensor], sizes: tuple[int, int], file: ForeignFile
) -> None:
    """Compares tensors with the U-Net.

    Raises:
        ValueError: A tensor has no place, or one outside the head is missing.
    """
    fit = fitted(network, weights, sizes)
    missing = [name for name in fit.missing if not name.startswith(f"{PREFIX}out_tr.")]
    problems = [*(f"{name}: {why}" for name, why in fit.misfits.items()), *(f"{name}: missing" for name in missing)]
    if problems:
        raise ValueError(f"{file.path} does not fit the U-Net of Models Genesis: {'; '.join(problems[:3])}")
