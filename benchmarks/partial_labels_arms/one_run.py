"""One training of one arm with one seed, and its score on the unseen phantoms; a process of its own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from nnunet_pretrain.conversion import find_source
from nnunet_pretrain.files import write_json
from nnunet_pretrain.planning import PRETRAIN_PLANS
from partial_labels_arms.data import CONFIGURATION, dataset_name, source_file, test_folder
from partial_labels_arms.design import ARMS, Design

Array = npt.NDArray[Any]


def run(work: Path, design: Design, arm: str, seed: int, device_name: str, result: Path) -> None:
    """Trains, predicts and scores; writes the result as JSON, atomically."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    device = torch.device(device_name)
    name = dataset_name(seed, ARMS[arm].complete)
    started = time.monotonic()
    trainer = get_trainer_from_args(name, CONFIGURATION, "all", ARMS[arm].trainer, PRETRAIN_PLANS, device=device)
    trainer.run_training()
    trained = time.monotonic() - started
    cases = score_all(work, design, Path(trainer.output_folder), trainer.label_sets.space.names, device)
    write_json(result, {"arm": arm, "seed": seed, "train_s": trained, "s": time.monotonic() - started, "cases": cases})


def score_all(
    work: Path, design: Design, fold: Path, names: tuple[str, ...], device: Any
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Predicts every unseen phantom and scores it; returns case to scored name to numbers (`score`)."""
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=device, perform_everything_on_device=device.type == "cuda", allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(fold.parent), ("all",), "checkpoint_final.pth")
    cases = {}
    for path in sorted((test_folder(work) / "imagesTr").glob("*_0000.nii.gz")):
        case = path.name.removesuffix("_0000.nii.gz")
        image, properties = NibabelIOWithReorient().read_images((str(path),))
        prediction = predictor.predict_single_npy_array(image, properties, None, None, False)
        truth_file = test_folder(work) / "labelsTr" / f"{case}.nii.gz"
        truth, _ = NibabelIOWithReorient().read_seg(str(truth_file))
        voxel_ml = float(np.prod(nib.load(truth_file).header.get_zooms()[:3])) / 1000
        cases[case] = score(design, truth[0], prediction, names, voxel_ml)
    return cases


def score(
    design: Design, truth: Array, prediction: Array, names: tuple[str, ...], voxel_ml: float
) -> dict[str, dict[str, float | None]]:
    """Compares a prediction with the complete truth.

    Args:
        design: What is scored.
        truth: Ids of the design's complete source.
        prediction: Ids of the label space, same shape.
        names: Names of the label space by id.
        voxel_ml: Volume of a voxel in ml.

    Returns:
        Scored name to `dice` (None if absent in both), `fp_ml` (volume predicted where the truth is something else)
        and `outside_ml` (the part of it on no scored structure at all).
    """
    raw = find_source(source_file(design.complete)).label_sets
    somewhere = truth > 0
    found: dict[str, dict[str, float | None]] = {}
    for name, structures in design.scored.items():
        t = np.isin(truth, [raw_id for raw_id, members in raw.items() if set(members) <= set(structures)])
        p = np.isin(prediction, [names.index(structure) for structure in structures])
        size = int(t.sum() + p.sum())
        found[name] = {
            "dice": 2 * float((t & p).sum()) / size if size else None,
            "fp_ml": float((p & ~t).sum()) * voxel_ml,
            "outside_ml": float((p & ~somewhere).sum()) * voxel_ml,
        }
    return found
