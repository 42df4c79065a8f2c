"""A target with two kinds of lesions, and a tiny checkpoint to start from, for the tests of the classification."""

import csv
import json

import nibabel as nib
import numpy as np
from small_checkpoints import checkpoint, save_as_trained

EDGE = 28
CLASSES = ("bright", "dark")
RESAMPLING = {"batch_dice": False}
for what, order, is_seg in (("data", 3, False), ("seg", 1, True), ("probabilities", 1, False)):
    RESAMPLING[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
    RESAMPLING[f"resampling_fn_{what}_kwargs"] = {
        "is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None
    }  # fmt: skip


def write_target(raw, cases=20, seed=0):
    """Writes noise with one lesion per case, brighter or darker than it, and a larger neutral structure.

    Returns the rows of the table: case, class, lesion.
    """
    rng = np.random.default_rng(seed)
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    grid = np.stack(np.meshgrid(*[np.arange(EDGE)] * 3, indexing="ij"))
    rows = []
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    for i in range(cases):
        middle = rng.integers(7, EDGE - 7, 3)
        lesion = ((grid - middle[:, None, None, None]) ** 2).sum(0) <= 9
        image = rng.normal(50, 60, lesion.shape)
        kind = CLASSES[i % 2]
        image[lesion] += 150 if kind == "bright" else -150
        case = f"case_{i:02d}"
        nib.save(nib.Nifti1Image(image.astype(np.float32), affine), raw / f"imagesTr/{case}_0000.nii.gz")
        nib.save(nib.Nifti1Image(lesion.astype(np.uint8), affine), raw / f"labelsTr/{case}.nii.gz")
        rows.append({"case": case, "class": kind, "lesion": "nodule"})
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "nodule": 1},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return rows


def write_csv(path, rows):
    """Writes rows with the columns of the first one."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_pretrained(folder, network="PlainConvUNet"):
    """Saves a tiny checkpoint as trained, and returns the file."""
    content = checkpoint(network)
    del content["init_args"]["dataset_json"]["label_schemes"]
    content["init_args"]["plans"]["configurations"]["3d_fullres"].update(RESAMPLING)
    return save_as_trained(folder, content)


def made_up(examples=60, classes=3, seed=0):
    """Returns classes (examples,) and probabilities (examples, classes) that are somewhat right."""
    rng = np.random.default_rng(seed)
    truth = np.arange(examples) % classes
    logits = rng.normal(size=(examples, classes)).round(1) + 1.2 * np.eye(classes)[truth]
    return truth, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
