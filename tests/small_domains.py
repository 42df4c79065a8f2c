"""Three small datasets that share nothing: CT with two organs, two-channel MR with regions and `ignore`, thick MR."""

import json

import nibabel as nib
import numpy as np

CT, MR, THICK = "Dataset003_Ct", "Dataset007_Mr", "Dataset009_Thick"
NAME = "Dataset910_Domains"
AXES = {"RAS": np.diag([1, 1, 1, 1]), "LPS": np.diag([-1, -1, 1, 1])}

MEMBERS = {
    CT: {
        "channels": ["CT"],
        "labels": {"background": 0, "liver": 1, "spleen": 2},
        "cases": [((30, 32, 26), (1.0, 1.0, 1.2)), ((28, 30, 24), (1.2, 1.2, 1.2)), ((30, 32, 28), (1.0, 1.0, 1.4))],
        "facts": {"licence": "CC BY 4.0", "reference": "Somebody et al."},
    },
    MR: {
        "channels": ["T1", "T2"],
        "labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3},
        "cases": [((24, 24, 24), (0.8, 0.8, 0.8)), ((24, 28, 24), (0.8, 0.9, 0.8))],
        "dtype": np.float32,
        "facts": {"regions_class_order": [1, 2]},
    },
    THICK: {
        "channels": ["MR"],
        "labels": {"background": 0, "heart chamber": 1},
        "cases": [((32, 32, 10), (0.7, 0.7, 3.0)), ((32, 36, 9), (0.7, 0.7, 4.0)), ((36, 32, 12), (0.9, 0.9, 3.0))],
        "dtype": np.uint16,
        "axes": "LPS",
    },
}


def write_member(raw, name, channels, labels, cases, dtype=np.int16, axes="RAS", facts=None):
    """Writes a dataset in nnU-Net raw format: noise with a cube of voxels for every id."""
    folder = raw / name
    last = max(max(ids) if isinstance(ids, list) else ids for ids in labels.values())
    for number, (shape, spacing) in enumerate(cases):
        random = np.random.default_rng([number, len(name)])
        label = np.zeros(shape, np.uint8)
        for label_id in range(1, last + 1):
            centre = [size * label_id // (last + 1) for size in shape]
            label[tuple(slice(max(0, place - 2), place + 3) for place in centre)] = label_id
        affine = AXES[axes] @ np.diag([*spacing, 1.0])
        write_volume(folder / f"labelsTr/case{number}.nii.gz", label, affine)
        for channel in range(len(channels)):
            image = 500 + 300 * channel + random.normal(0, 60, shape) + (100 - 200 * channel) * label.astype(float)
            write_volume(folder / f"imagesTr/case{number}_{channel:04d}.nii.gz", image.astype(dtype), affine)
    change_description(
        folder,
        channel_names={str(i): channel for i, channel in enumerate(channels)},
        labels=labels,
        numTraining=len(cases),
        file_ending=".nii.gz",
        **(facts or {}),
    )
    return folder


def write_members(raw, *names):
    """Writes some of MEMBERS, or all."""
    for name in names or MEMBERS:
        write_member(raw, name, **MEMBERS[name])


def write_volume(path, array, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def change_description(folder, **changes):
    """Changes entries of a dataset.json."""
    path = folder / "dataset.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**content, **changes}), encoding="utf-8")


def voxels_of(path):
    """Returns the voxels of a NIfTI file as they are stored."""
    return np.asarray(nib.load(path).dataobj)
