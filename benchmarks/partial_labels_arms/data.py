"""Phantoms, datasets and plans: one partial and one complete dataset per seed, equal but for their labels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_pretrain.conversion import find_source, merge
from nnunet_pretrain.conversion.merge import MergeOptions
from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.labels import LabelSpace
from nnunet_pretrain.phantom import Appearance
from nnunet_pretrain.phantom.datasets import write_phantom_source
from nnunet_pretrain.planning import PRETRAIN_PLANS, SETTINGS_KEY, plan
from partial_labels_arms.design import DESIGNS, FIRST_SEED, SOURCES, Design, Scale

CONFIGURATION = "3d_fullres"


def dataset_id(seed: int, complete: bool) -> int:
    """Returns the dataset's number; seeds count from 0."""
    return 700 + 2 * seed + complete


def dataset_name(seed: int, complete: bool) -> str:
    """Returns the dataset's folder name."""
    return f"Dataset{dataset_id(seed, complete)}_{'Complete' if complete else 'Partial'}{seed}"


def test_folder(work: Path) -> Path:
    """Returns the folder of the unseen phantoms, laid out as their source lays out training cases."""
    return work / "test"


def source_file(name: str) -> str:
    """Returns the path of a source file of this benchmark."""
    return str(SOURCES / f"{name}.yaml")


def write_test_cases(work: Path, design: Design, scale: Scale) -> None:
    """Draws the unseen phantoms with complete labels."""
    seeds = range(FIRST_SEED["test"], FIRST_SEED["test"] + scale.test_cases)
    _draw(design.complete, test_folder(work), seeds, scale)


def prepare(work: Path, design_name: str, scale: Scale, seed: int) -> None:
    """Makes both datasets of a seed: draws, merges, plans, preprocesses. What is there is left alone."""
    done = work / "nnUNet_preprocessed" / f"seed{seed}_ready.json"
    if done.is_file():
        return
    design = DESIGNS[design_name]
    # The seed decides which phantom each source has; the complete dataset has all of them.
    number = scale.cases * len(design.partial)
    phantoms = FIRST_SEED["train"] + np.random.default_rng(seed).permutation(number)
    shares = {name: phantoms[i :: len(design.partial)].tolist() for i, name in enumerate(design.partial)}
    space = LabelSpace(name="benchmark", structures=design.structures)
    for complete in (False, True):
        members = {design.complete: phantoms.tolist()} if complete else shares
        folders = [
            (source_file(name), _draw(name, work / f"seed{seed}" / name, ids, scale)) for name, ids in members.items()
        ]
        number, name = dataset_name(seed, complete).removeprefix("Dataset").split("_")
        merge(int(number), name, folders, MergeOptions(space=space, overwrite=True, strict=True), print)
        path = plan(dataset_name(seed, complete), "tiny", 1)
        write_json(path, _plans(read_json(path), seed, complete, path, scale))
        command = [Path(sys.executable).with_name("nnUNetv2_preprocess"), "-d", number]
        subprocess.run([*command, "-plans_name", PRETRAIN_PLANS, "-c", CONFIGURATION, "-np", "1"], check=True)
    write_json(done, {name: list(map(int, ids)) for name, ids in shares.items()})


def _draw(name: str, root: Path, seeds: Any, scale: Scale) -> Path:
    appearance = Appearance(phase=scale.phase) if scale.phase else None
    spacing = (scale.spacing_mm,) * 3
    write_phantom_source(find_source(source_file(name)), root, seeds, spacing_mm=spacing, appearance=appearance)
    return root


def _plans(plans: dict[str, Any], seed: int, complete: bool, path: Path, scale: Scale) -> dict[str, Any]:
    """Returns the plans of a dataset; the complete one takes those of the partial one, HU statistics included."""
    if complete:
        partial = read_json(path.parent.with_name(dataset_name(seed, False)) / path.name)
        return {**partial, "dataset_name": plans["dataset_name"]}
    stages = len(scale.strides)
    configuration = plans["configurations"][CONFIGURATION]
    configuration["patch_size"] = list(scale.patch_size)
    configuration["architecture"]["arch_kwargs"].update(
        n_stages=stages,
        features_per_stage=list(scale.features_per_stage),
        strides=[list(stride) for stride in scale.strides],
        kernel_sizes=[[3, 3, 3]] * stages,
        n_conv_per_stage=[2] * stages,
        n_conv_per_stage_decoder=[2] * (stages - 1),
    )
    plans[SETTINGS_KEY]["training"].update(
        num_epochs=max(2, round(scale.steps / scale.steps_per_epoch)),
        num_iterations_per_epoch=scale.steps_per_epoch,
        num_val_iterations_per_epoch=1,
        save_every=1000,
        seed=seed,
        **scale.training,
    )
    return plans
