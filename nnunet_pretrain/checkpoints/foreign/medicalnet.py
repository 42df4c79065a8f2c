"""MedicalNet (Chen et al., arXiv 1904.00625): the published weights of Med3D's 3D ResNets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nnunet_pretrain.checkpoints.foreign.file import ForeignFile
from nnunet_pretrain.checkpoints.foreign.fit import fitted
from nnunet_pretrain.checkpoints.foreign.key_table import KeyTable
from nnunet_pretrain.checkpoints.foreign.v2_form import Origin, Training, architecture, checkpoint
from nnunet_pretrain.networks.medicalnet import BLOCKS, BOTTLENECK_FROM, STRIDES, MedicalNet

FORMAT = "MedicalNet"
_ENCODER = "encoder."
_PARTS = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
KEY_TABLE = KeyTable([(f"{part}.{{rest}}", f"{_ENCODER}{part}.{{rest}}") for part in _PARTS])
"""Our MedicalNet names the encoder's tensors as the published files do."""

_HEADS = {
    "conv_seg.": "head of the released fine-tuning, which new tasks start anew",
    "fc.": "classification layer, no segmentation head",
}
_COUNTER = ".num_batches_tracked"


def recognises(file: ForeignFile) -> bool:
    """Says whether the file holds a 3D ResNet under the names MedicalNet gives it."""
    first = file.weights.get("conv1.weight")
    return first is not None and first.ndim == 5 and file.has(r"layer4\.0\.conv1\.weight")


def convert(file: ForeignFile) -> dict[str, Any]:
    """Converts the encoder to that of our class; all its tensors must be there, and the decoder starts anew.

    Depth and type of the shortcuts are told by the tensors.

    Raises:
        ValueError: The depth is not supported, or a tensor of the encoder is missing, left over or of another shape.
    """
    origin = Origin(
        FORMAT,
        [
            "there is no segmentation head to transfer: the decoder, a 1x1x1 convolution, starts anew",
            "spacing, patch, intensities and order of axes of the pre-training were not published; axes are taken for "
            "z, y, x",
        ],
    )
    encoder: dict[str, Tensor] = {}
    for name, tensor in file.weights.items():
        reason = next((reason for start, reason in _HEADS.items() if name.startswith(start)), None)
        if reason is None:
            encoder[name] = tensor
        else:
            origin.unmapped[file.names[name]] = reason
    sizes = encoder["conv1.weight"].shape[1], 1
    network = _architecture(encoder, file)
    state = _fitted_encoder(network, encoder, sizes, file, origin)
    if sizes[0] != 1:
        origin.notes.append(
            f"its first layer takes {sizes[0]} channels and that of the published files 1; networks of videos have the "
            f"same names without being dilated"
        )
    training = Training(labels={"background": 0}, dataset="Med3D", plans=FORMAT)
    return checkpoint(file, origin, network, state, sizes, training)


def _architecture(encoder: Mapping[str, Tensor], file: ForeignFile) -> dict[str, Any]:
    """Returns the plans' entry for the network the tensors describe."""
    blocks = re.compile(r"layer([1-4])\.\d+\.conv1\.weight")
    layers = [found[1] for found in map(blocks.fullmatch, encoder) if found]
    counts = tuple(layers.count(layer) for layer in "1234")
    bottleneck = "layer1.0.conv3.weight" in encoder
    depths = [d for d, known in BLOCKS.items() if known == counts and (d >= BOTTLENECK_FROM) == bottleneck]
    if not depths:
        kind = "bottlenecks" if bottleneck else "basic blocks"
        raise ValueError(
            f"{file.path} holds a 3D ResNet with {counts} {kind} in its layers, expected one of the depths "
            f"{', '.join(map(str, BLOCKS))}; take a file of one of these"
        )
    return architecture(
        f"{MedicalNet.__module__}.{MedicalNet.__qualname__}",
        depth=depths[0],
        shortcut="B" if any(".downsample." in name for name in encoder) else "A",
        strides=[list(stride) for stride in STRIDES],
        features=encoder["conv1.weight"].shape[0],
    )


def _fitted_encoder(
    network: Mapping[str, Any],
    encoder: Mapping[str, Tensor],
    sizes: tuple[int, int],
    file: ForeignFile,
    origin: Origin,
) -> dict[str, Tensor]:
    """Returns the encoder's tensors under the network's names.

    Raises:
        ValueError: A tensor has no place, or a place no tensor; counters of batches, which old torch lacks, may miss.
    """
    renamed = KEY_TABLE.to_v2(encoder)
    fit = fitted(network, {renamed.get(name, name): tensor for name, tensor in encoder.items()}, sizes)
    missing = [name for name in fit.missing if name.startswith(_ENCODER) and not name.endswith(_COUNTER)]
    problems = [f"{name.removeprefix(_ENCODER)}: {why}" for name, why in fit.misfits.items()]
    problems += [f"{name.removeprefix(_ENCODER)}: missing" for name in missing]
    if problems:
        arguments = network["arch_kwargs"]
        raise ValueError(
            f"{file.path} does not fit the MedicalNet of depth {arguments['depth']} and shortcut type "
            f"{arguments['shortcut']} that its tensors describe: {'; '.join(problems[:5])} ({len(problems)} in all); "
            f"it is cut off, or was made by a changed version of the network"
        )
    counters = sum(name.endswith(_COUNTER) for name in fit.missing)
    if counters:
        origin.notes.append(f"{counters} counters of batches, which old versions of torch did not write, start anew")
    return fit.state
