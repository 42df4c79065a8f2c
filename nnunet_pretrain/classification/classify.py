"""Classifying new images, or the lesions in them, with a trained model folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from tqdm import tqdm

from nnunet_pretrain.checkpoints.card import channel_names
from nnunet_pretrain.checkpoints.reading import read_checkpoint
from nnunet_pretrain.classification.crops import lesion_crop, whole_image
from nnunet_pretrain.classification.inference import probabilities_of, write_probabilities
from nnunet_pretrain.classification.labels import Example
from nnunet_pretrain.classification.lesions import Box, boxes_in_image, ids_of, read_label_map
from nnunet_pretrain.classification.resized_crops import centre_box, resized_volume
from nnunet_pretrain.planning.settings import ClassificationSettings, NaturalImageSettings, PretrainSettings
from nnunet_pretrain.training.depth_slices import grey_slices
from nnunet_pretrain.transfer.pretrained_network import facts_of

_SHOWN = 5
Report = Callable[[str], None]


@dataclass(frozen=True)
class _Model:
    """The folds of a trained classifier.

    Attributes:
        plans: Their plans.
        configuration: Their configuration.
        dataset_json: The dataset they were trained on.
        classification: What they tell apart.
        natural: How they learned from photographs, or None.
        networks: One per fold, with the axes each mirrors its images along.
        device: Where they are.
    """

    plans: Mapping[str, Any]
    configuration: str
    dataset_json: Mapping[str, Any]
    classification: ClassificationSettings
    natural: NaturalImageSettings | None
    networks: tuple[tuple[nn.Module, tuple[int, ...] | None], ...]
    device: torch.device

    def probabilities(self, image: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Returns the mean over folds, shape (classes,), for an image (channels, Z, Y, X)."""
        each = [probabilities_of(network, image, axes, self.device) for network, axes in self.networks]
        found: npt.NDArray[np.float64] = np.mean(each, axis=0)
        return found


def classify(
    images: Path,
    output: Path,
    model: Path,
    folds: Sequence[str] = (),
    checkpoint: str = "checkpoint_final.pth",
    lesions: Path | None = None,
    device: str = "cuda",
    report: Report = print,
) -> int:
    """Writes the probabilities of the classes for new images as CSV.

    Images are preprocessed by nnU-Net's own preprocessor as the plans say; probabilities are averaged over folds and
    mirrorings. A model of lesions makes one row for every lesion it finds in the label maps: for every connected
    component, the largest first, if it was trained on components, else for every label. A model of photographs is
    shown what its final validation showed it: the middle of an image, once, grey if it learned from grey ones.

    Args:
        images: Folder of images, named as in imagesTr (CASE_0000.nii.gz, ...).
        output: The CSV: case, for lesions lesion and component, and p_CLASS for every class.
        model: Folder of a trained model, with fold_0 and so on.
        folds: Folds to average over; none means all that are there.
        checkpoint: Name of the checkpoint in each.
        lesions: Folder of label maps CASE.nii.gz, for models of lesions.
        device: cuda, cpu or mps.
        report: Called with lines for the user.

    Returns:
        Number of rows.

    Raises:
        FileNotFoundError: A folder, a checkpoint or an image of a channel is missing.
        ValueError: The model is no classifier, or one that reads original photographs; label maps are missing or not
            wanted, or do not fit their images.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    if output.is_dir():
        raise ValueError(f"{output} is a folder; name a file such as {output / 'probabilities.csv'}")
    loaded = _load(model, folds, checkpoint, device)
    wanted = loaded.classification
    if (wanted.crop == "lesion") != (lesions is not None):
        needs = f"of lesions ({', '.join(wanted.lesions)}); give their label maps with --lesions FOLDER"
        raise ValueError(f"{model} is a model {needs if lesions is None else 'of whole images; leave out --lesions'}")
    cases = find_images(images, loaded.dataset_json)
    maps = {} if lesions is None else _label_maps(lesions, list(cases), loaded.dataset_json)
    plans = PlansManager(dict(loaded.plans))
    rows: list[Example] = []
    found: list[list[float]] = []
    for case, files in tqdm(cases.items(), desc="Classifying", unit="case"):
        label_map = maps.get(case)
        data, properties = _preprocessed(case, files, label_map, plans, loaded)
        size = plans.get_configuration(loaded.configuration).patch_size
        if label_map is None:
            rows.append(Example(case, ""))
            found.append(loaded.probabilities(_whole(data, size, loaded.natural)).tolist())
            continue
        boxes = _lesions(case, label_map, plans, properties, data.shape[1:], loaded)
        if not boxes:
            report(f"note: {case} has none of {', '.join(wanted.lesions)} in its label map, so it gets no row")
        for example, box in boxes:
            rows.append(example)
            found.append(loaded.probabilities(lesion_crop(data, box, size)).tolist())
    write_probabilities(output, wanted.classes, rows, found, with_class=False)
    return len(rows)


def _load(model: Path, folds: Sequence[str], name: str, device: str) -> _Model:
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("torch finds no GPU here; use -device cpu, or install torch for your GPU")
    there = sorted(path.name.removeprefix("fold_") for path in model.glob("fold_*") if (path / name).is_file())
    if not there:
        raise FileNotFoundError(f"{model} has no fold_*/{name}; give the folder of a trained model with -m")
    missing = [fold for fold in folds if fold not in there]
    if missing:
        raise FileNotFoundError(f"{model} has no {name} for the folds {missing}; it has {', '.join(there)}")
    checkpoints = [read_checkpoint(model / f"fold_{fold}" / name) for fold in folds or there]
    first = checkpoints[0]["init_args"]
    plans, dataset_json, configuration = first["plans"], first["dataset_json"], first["configuration"]
    every = [PretrainSettings.from_plans(read["init_args"]["plans"]) for read in checkpoints]
    settings, natural = _common_settings(dict(zip(folds or there, every, strict=True)), model)
    on = torch.device(device)
    networks = tuple(_network(read, plans, configuration, dataset_json).to(on).eval() for read in checkpoints)
    axes = [None if natural else read.get("inference_allowed_mirroring_axes") for read in checkpoints]
    return _Model(plans, configuration, dataset_json, settings, natural, tuple(zip(networks, axes, strict=True)), on)


def _common_settings(
    settings: Mapping[str, PretrainSettings], model: Path
) -> tuple[ClassificationSettings, NaturalImageSettings | None]:
    """Returns what all folds say of classes and photographs; refuses what cannot be applied to new images."""
    first = next(iter(settings.values()))
    classification, natural = first.classification, first.natural_images
    for fold, found in settings.items():
        if classification is None or (found.classification, found.natural_images) != (classification, natural):
            raise ValueError(
                f"fold {fold} of {model} is no classifier of the same classes as the first; give the model folder of "
                f"nnUNetTrainerClassification"
            )
    if natural is not None and natural.storage == "originals":
        raise ValueError(
            f"{model} reads photographs where they lie, which `classify` cannot: such a model is scored by its own "
            f"final validation, and made to be transferred with `nnunet_pretrain plan_transfer`; to classify new "
            f"photographs, train on a dataset of `nnunet_pretrain convert_2d --storage volumes`"
        )
    assert classification is not None
    return classification, natural


def _network(
    checkpoint: Mapping[str, Any], plans: Mapping[str, Any], configuration: str, dataset_json: Mapping[str, Any]
) -> nn.Module:
    network: nn.Module = facts_of(plans, configuration, dataset_json).build()
    network.load_state_dict(checkpoint["network_weights"])
    return network


def find_images(folder: Path, dataset_json: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the images of every case of a folder, in the order of the channels.

    Args:
        folder: Folder with files CASE_0000.nii.gz and so on.
        dataset_json: The dataset the model was trained on.

    Raises:
        FileNotFoundError: There is no such folder, no image in it, or a channel is missing.
    """
    ending, channels = dataset_json["file_ending"], channel_names(dataset_json)
    pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}")
    matches = [found for path in sorted(folder.glob("[!.]*")) if (found := pattern.fullmatch(path.name))]
    cases = sorted({found[1] for found in matches})
    if not cases:
        raise FileNotFoundError(f"no images CASE_0000{ending} in {folder}; name them as in imagesTr")
    files = {case: [folder / f"{case}_{i:04d}{ending}" for i in range(len(channels))] for case in cases}
    missing = [path.name for paths in files.values() for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing[:_SHOWN])} ({len(missing)} in all); every case needs the channels "
            f"{', '.join(f'{i:04d} {name}' for i, name in enumerate(channels))}"
        )
    return {case: [str(path) for path in paths] for case, paths in files.items()}


def _label_maps(folder: Path, cases: Sequence[str], dataset_json: Mapping[str, Any]) -> dict[str, str]:
    paths = {case: folder / f"{case}{dataset_json['file_ending']}" for case in cases}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks the label maps {', '.join(missing[:_SHOWN])} ({len(missing)} in all); segment the images "
            f"first, for instance with nnUNetv2_predict, or remove the images"
        )
    return {case: str(path) for case, path in paths.items()}


def _preprocessed(
    case: str, files: list[str], label_map: str | None, plans: Any, model: _Model
) -> tuple[npt.NDArray[Any], Mapping[str, Any]]:
    """Returns an image (channels, Z, Y, X) as nnU-Net preprocesses it, and what the preprocessor noted of it."""
    configuration = plans.get_configuration(model.configuration)
    preprocessor = configuration.preprocessor_class(verbose=False)
    try:
        # The label map decides with the image what counts as outside the body for the normalisation.
        data, _, properties = preprocessor.run_case(files, label_map, plans, configuration, dict(model.dataset_json))
    except (AssertionError, RuntimeError) as error:
        given = [*files, *([label_map] if label_map else [])]
        raise ValueError(f"case {case} cannot be preprocessed: {error}; look at {', '.join(given)}") from error
    return data, properties


def _whole(
    data: npt.NDArray[Any], size: Sequence[int], natural: NaturalImageSettings | None
) -> npt.NDArray[np.float32]:
    """Returns what the network sees of an image (channels, Z, Y, X), shape (channels, *size)."""
    if natural is None:
        return whole_image(data, size)
    middle = resized_volume(data, partial(centre_box, size=size[1:]), size)
    return grey_slices(torch.from_numpy(middle)).numpy() if natural.slices == "grey" else middle


def _lesions(
    case: str, label_map: str, plans: Any, properties: Mapping[str, Any], shape: Sequence[int], model: _Model
) -> list[tuple[Example, Box]]:
    """Returns the lesions of a label map as it was given, with their boxes in the preprocessed image (Z, Y, X)."""
    wanted, found = model.classification, []
    seg = read_label_map(Path(label_map), plans, properties)
    for lesion in wanted.lesions:
        ids = ids_of(lesion, model.dataset_json)
        boxes = boxes_in_image(seg, ids, wanted.components, plans, properties, shape)
        for number, box in enumerate(boxes, 1):
            found.append((Example(case, "", lesion, number if wanted.components else None), box))
    return found
