"""A checkpoint as it is handed to others: without what only this machine, or only a continued training, needs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_pretrain.checkpoints.reading import EXTRAS_KEY
from nnunet_pretrain.networks.adapter import AdaptedNetwork
from nnunet_pretrain.networks.classifier import CLASSIFIER
from nnunet_pretrain.networks.locate import locate_network
from nnunet_pretrain.networks.parts import parts_of, unaliased
from nnunet_pretrain.planning.domain_plans import BRANCHED_NETWORK, SIMPLE_NETWORK

ENCODER_ONLY = "encoder_only"
"""Entry of a checkpoint's extras: whether it was exported without decoder and heads."""

_ONLY_TO_CONTINUE = ("resume", "progress", "domain_losses")
_KNOWN_PACKAGES = ("dynamic_network_architectures.", "nnunet_pretrain.networks.", "monai.networks.", "torch.nn.")


def plain(content: Any) -> Any:
    """Returns content as JSON can hold it, numpy's numbers as Python's, and absolute paths as the file's name.

    Raises:
        ValueError: Something in it is neither a number, text, None nor a container.
    """
    if isinstance(content, Mapping):
        return {str(plain(key)): plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [plain(value) for value in content]
    if isinstance(content, (np.generic, np.ndarray)):
        return plain(content.tolist())
    if isinstance(content, str):
        return _without_folder(content)
    if content is None or isinstance(content, (bool, int, float)):
        return content
    raise ValueError(f"an object of type {type(content).__name__} cannot be exported: {str(content)[:100]}")


def _without_folder(text: str) -> str:
    for kind in (PurePosixPath, PureWindowsPath):
        path = kind(text)
        if path.is_absolute() and path.name:
            return path.name
    return str(text)


def portable(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a checkpoint with what transfer and prediction need, in plain values; the weights are the same tensors.

    Left out: the optimiser's state (about as large as the weights, or twice as large with AdamW), the log, random
    states, the list of the dataset's files, and the folders of absolute paths. Kept: plans, labels and label schemes,
    sources with their licences, and the card with its fingerprints.

    Args:
        checkpoint: A checkpoint in the form of nnU-Net v2.
    """
    arguments = checkpoint["init_args"]
    extras = arguments.get(EXTRAS_KEY, {})
    axes = checkpoint.get("inference_allowed_mirroring_axes")
    dataset_json = {key: value for key, value in arguments["dataset_json"].items() if key != "dataset"}
    return {
        "network_weights": dict(checkpoint["network_weights"]),
        "current_epoch": int(checkpoint.get("current_epoch") or 0),
        "init_args": {
            "plans": plain(arguments["plans"]),
            "configuration": str(arguments["configuration"]),
            "fold": plain(arguments.get("fold", "all")),
            "dataset_json": plain(dataset_json),
            "device": torch.device("cpu"),
            EXTRAS_KEY: plain({key: value for key, value in extras.items() if key not in _ONLY_TO_CONTINUE}),
        },
        "trainer_name": str(checkpoint["trainer_name"]),
        "inference_allowed_mirroring_axes": None if axes is None else tuple(int(axis) for axis in axes),
    }


def without_aliases(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Splits a state dict into its tensors and the names it lists them under.

    Names belong to one tensor if they name the same memory; equal values are not enough.

    Args:
        weights: State dict, as nnU-Net writes it.

    Returns:
        Canonical name to tensor, and every name, in the state dict's order, to its canonical name.
    """
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in weights.items():
        layout = (tensor.dtype, tuple(tensor.shape), tensor.stride())
        place = tensor.data_ptr() if tensor.numel() else name
        groups.setdefault((place, *layout), []).append(name)
    canonical = {}
    for names in groups.values():
        chosen = next((name for name in names if unaliased(name) == name), names[0])
        canonical.update(dict.fromkeys(names, chosen))
    return {name: weights[name] for name in canonical.values()}, {name: canonical[name] for name in weights}


def imports_of(checkpoint: Mapping[str, Any]) -> list[str]:
    """Returns the dotted paths that building a checkpoint's network imports, the network's class first."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    arguments = checkpoint["init_args"]
    chosen = PlansManager(arguments["plans"]).get_configuration(arguments["configuration"])
    return _imports(
        chosen.network_arch_class_name, chosen.network_arch_init_kwargs, chosen.network_arch_init_kwargs_req_import
    )


def _imports(class_name: str, given: Mapping[str, Any], imported: Sequence[str]) -> list[str]:
    """Returns what a network imports, and what the networks within it import."""
    paths = [str(path) for path in (class_name, *(given.get(key) for key in imported)) if path is not None]
    if class_name == f"{AdaptedNetwork.__module__}.{AdaptedNetwork.__qualname__}":
        wrapped = given.get("arguments") or {}
        paths += _imports(str(given.get("network")), wrapped, given.get("imported_arguments", ()))
    if class_name == CLASSIFIER:
        paths += _imports(str(given.get("network")), given.get("arguments") or {}, given.get("imported", ()))
    if class_name in (BRANCHED_NETWORK, SIMPLE_NETWORK):
        within = given.get("arch_kwargs") or {}
        paths += _imports(str(given.get("network_class_name")), within, given.get("imported", ()))
    return paths


def unknown_imports(checkpoint: Mapping[str, Any]) -> list[str]:
    """Returns which of a network's imports are not network classes of packages whose code we know.

    A file from elsewhere could name any function there, with arguments of its choice. So we build only networks for
    which this list is empty.

    Raises:
        ValueError: A class that should be in a known package is not there, or is no network.
    """
    paths = imports_of(checkpoint)
    unknown = [path for path in paths if not path.startswith(_KNOWN_PACKAGES)]
    for path in paths:
        if path not in unknown:
            locate_network(path)
    return unknown


def build_network(checkpoint: Mapping[str, Any], trainer: type | None = None) -> nn.Module:
    """Builds the network of a checkpoint as nnU-Net's predictor does, without memory for its weights.

    Args:
        checkpoint: A checkpoint in the form of nnU-Net v2.
        trainer: Trainer class whose network to build; None means the one the plans name.

    Returns:
        The network on the device "meta".

    Raises:
        ValueError: The network cannot be built, or would import what we do not know.
    """
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    if unknown := unknown_imports(checkpoint):
        raise ValueError(f"the network needs {unknown}; only networks from {list(_KNOWN_PACKAGES)} are built")
    arguments = checkpoint["init_args"]
    plans, dataset_json = PlansManager(arguments["plans"]), arguments["dataset_json"]
    try:
        chosen = plans.get_configuration(arguments["configuration"])
        named = (
            chosen.network_arch_class_name,
            chosen.network_arch_init_kwargs,
            chosen.network_arch_init_kwargs_req_import,
        )
        channels = determine_num_input_channels(plans, chosen, dataset_json)
        heads = plans.get_label_manager(dataset_json).num_segmentation_heads
        with torch.device("meta"):
            if trainer is None:
                return get_network_from_plans(*named, channels, heads, deep_supervision=False)
            build: Any = trainer.build_network_architecture  # type: ignore[attr-defined]
            if "plans_manager" in inspect.signature(build).parameters:
                return build(plans, chosen, channels, heads, enable_deep_supervision=False)
            return build(*named, channels, heads, enable_deep_supervision=False)
    except (ImportError, AttributeError, KeyError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
        raise ValueError(f"the checkpoint's network cannot be built from its plans ({reason})") from error


def encoder_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the encoder's part of a checkpoint's state dict, under all the names that belong to the encoder.

    Raises:
        ValueError: The network cannot be built, or the checkpoint holds no weight of its encoder.
    """
    network = build_network(checkpoint)
    with torch.device("meta"):
        encoder = {name for name, part in parts_of(network).items() if part == "encoder"}
    weights = checkpoint["network_weights"]
    chosen = {n: t for n, t in weights.items() if unaliased(n) in encoder and not n.startswith("decoder.")}
    if not chosen:
        raise ValueError(
            f"no weight of the encoder found: expected names such as {sorted(encoder)[:3]}, found {list(weights)[:3]}"
        )
    return chosen
