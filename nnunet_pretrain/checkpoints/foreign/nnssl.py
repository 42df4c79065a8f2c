"""nnssl: self-supervised pre-training, which writes an adaptation plan beside the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nnunet_pretrain.checkpoints.foreign.file import ForeignFile
from nnunet_pretrain.checkpoints.foreign.fit import fitted
from nnunet_pretrain.checkpoints.foreign.key_table import KeyTable
from nnunet_pretrain.checkpoints.foreign.v2_form import Origin, Training, architecture, checkpoint
from nnunet_pretrain.checkpoints.unpickling import shown
from nnunet_pretrain.networks.locate import locate_network

FORMAT = "nnssl"
PLAN = "nnssl_adaptation_plan"
_UNETS = "dynamic_network_architectures.architectures.unet"
_NO_DECODER = "NoSkipResEncL"
_MOST_LAYERS = 64
_READERS = ("SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient")
_HEADS = re.compile(r"decoder\.seg_layers\..*")


def recognises(file: ForeignFile) -> bool:
    """Says whether the file has an adaptation plan."""
    return isinstance(file.content.get(PLAN), Mapping)


def key_table(encoder: str) -> KeyTable:
    """Returns nnssl's names and nnU-Net's: equal behind what comes before the encoder.

    Args:
        encoder: The adaptation plan's name of the encoder, such as "encoder.stages".
    """
    before = encoder.removesuffix("encoder.stages")
    return KeyTable([(f"{before}{part}.{{rest}}", f"{part}.{{rest}}") for part in ("encoder", "decoder")])


def convert(file: ForeignFile) -> dict[str, Any]:
    """Converts a convolutional network of nnssl; whether it has a decoder is decided by its tensors.

    There are no segmentation heads: the output layers of self-supervision show images.

    Raises:
        ValueError: The network is a transformer, or the plan names something that is no layer.
    """
    plan = file.content[PLAN]
    named = str(plan["architecture_plans"]["arch_class_name"]).rpartition(".")[2]
    network = _architecture(named, plan["architecture_plans"], file)
    origin = Origin(FORMAT)
    renamed = key_table(str(plan.get("key_to_encoder") or "encoder.stages")).to_v2(file.weights)
    origin.leave_out(file, renamed, f"{named} has no such tensor")
    kept = _kept(named, file, renamed, origin)
    sizes = int(plan["pretrain_num_input_channels"]), 1
    fit = fitted(network, kept, sizes)
    names = {v2: file.names[name] for name, v2 in renamed.items()}
    origin.unmapped |= {names[name]: reason for name, reason in fit.misfits.items()}
    origin.notes.append("self-supervised: there are no segmentation heads to transfer")
    missing = [name for name in fit.missing if not _HEADS.fullmatch(name)]
    if missing:
        origin.notes.append(f"{len(missing)} tensors of {named} are not in the file, such as {missing[0]}")
    training = _training(plan, file.content.get("citations") or (), sizes[0], origin)
    return checkpoint(file, origin, network, fit.state, sizes, training)


def _kept(named: str, file: ForeignFile, renamed: Mapping[str, str], origin: Origin) -> dict[str, Tensor]:
    """Returns the tensors that nnU-Net's network shares, and records the others."""
    kept = {}
    for name, v2 in renamed.items():
        if _HEADS.fullmatch(v2):
            origin.unmapped[file.names[name]] = "output of the self-supervision, no segmentation head"
        elif named == _NO_DECODER and v2.startswith("decoder.") and not v2.startswith("decoder.encoder."):
            origin.unmapped[file.names[name]] = "decoder without skip connections, nnU-Net's has them"
        else:
            kept[v2] = file.weights[name]
    return kept


def _architecture(named: str, plans: Mapping[str, Any], file: ForeignFile) -> dict[str, Any]:
    if named in ("ResEncL", _NO_DECODER):
        return _resenc_l()
    arguments = plans.get("arch_kwargs")
    if named not in ("ResidualEncoderUNet", "PlainConvUNet") or not isinstance(arguments, Mapping):
        raise ValueError(
            f"{file.path} holds nnssl's network {shown(named)}, which is not supported yet: only convolutional ones "
            f"(ResEncL, ResidualEncoderUNet and PlainConvUNet with their arguments)"
        )
    given = {
        key: value
        for key, value in arguments.items()
        if key not in ("input_channels", "num_classes", "deep_supervision")
    }
    _check_size(given, file)
    imported = tuple(plans.get("arch_kwargs_requiring_import") or ())
    for key in imported:
        if given.get(key) is not None:
            # The file may name any function; only layers of torch are built from it.
            if not str(given[key]).startswith("torch.nn."):
                raise ValueError(
                    f"{file.path} wants {shown(str(key))}={shown(str(given[key]))}; expected a class of torch.nn"
                )
            locate_network(str(given[key]))
    return architecture(f"{_UNETS}.{named}", imported, **given)


def _check_size(arguments: Mapping[str, Any], file: ForeignFile) -> None:
    """Refuses networks that nobody trains, but that would take hours and all memory to build.

    Raises:
        ValueError: There are more stages or layers than any U-Net has.
    """
    counts = [arguments.get(key, 1) for key in arguments if key.startswith("n_")]
    listed = [n for count in counts for n in (count if isinstance(count, (list, tuple)) else [count])]
    if not all(isinstance(n, int) and 0 < n <= _MOST_LAYERS for n in listed) or len(listed) > _MOST_LAYERS:
        raise ValueError(f"{file.path} describes no U-Net: numbers of stages and layers are {shown(str(counts))}")


def _resenc_l() -> dict[str, Any]:
    return architecture(
        f"{_UNETS}.ResidualEncoderUNet",
        ("conv_op", "norm_op", "dropout_op", "nonlin"),
        n_stages=6,
        features_per_stage=[32, 64, 128, 256, 320, 320],
        conv_op="torch.nn.modules.conv.Conv3d",
        kernel_sizes=[[3, 3, 3]] * 6,
        strides=[[1, 1, 1], *[[2, 2, 2]] * 5],
        n_blocks_per_stage=[1, 3, 4, 6, 6, 6],
        n_conv_per_stage_decoder=[1] * 5,
        conv_bias=True,
        norm_op="torch.nn.modules.instancenorm.InstanceNorm3d",
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        dropout_op=None,
        dropout_op_kwargs=None,
        nonlin="torch.nn.LeakyReLU",
        nonlin_kwargs={"inplace": True},
    )


def _training(plan: Mapping[str, Any], citations: Any, channels: int, origin: Origin) -> Training:
    pretrain = plan["pretrain_plan"]
    configuration = next(iter(pretrain["configurations"].values()))
    schemes = configuration.get("normalization_schemes")
    if schemes is not None and len(schemes) != channels:
        origin.notes.append(f"its plans name {len(schemes)} normalisation schemes for {channels} channels")
        schemes = [schemes[0]] * channels if schemes else None
    dataset = str(pretrain.get("dataset_name", "unknown"))
    reader = str(pretrain.get("image_reader_writer") or _READERS[0])
    if reader not in _READERS:
        origin.notes.append(f"its reader {shown(reader)} is none of nnU-Net's for volumes; {_READERS[0]} was taken")
        reader = _READERS[0]
    return Training(
        spacing=configuration.get("spacing"),
        patch_size=plan.get("pretrain_patch_size") or configuration.get("patch_size"),
        batch_size=configuration.get("batch_size"),
        normalization=schemes,
        transpose_forward=pretrain.get("transpose_forward"),
        labels={"background": 0},
        reader=reader,
        dataset=dataset,
        plans=str(pretrain.get("plans_name", "nnsslPlans")),
        sources=_sources(dataset, citations),
    )


def _sources(dataset: str, citations: Any) -> list[dict[str, Any]]:
    """Returns one source per citation, in the form `merge` writes; `inspect` prints them."""
    sources = []
    for citation in citations:
        texts = citation.get("apa_citations") or citation.get("bibtex_citations") or ()
        text = texts if isinstance(texts, str) else "; ".join(str(text) for text in texts)
        name = str(citation.get("name") or dataset)
        sources.append({"name": name, "cases": "unknown", "licence": "unknown", "citation": text})
    return sources
