"""What nnU-Net measures about a dataset, measured for every domain alone.

nnU-Net's fingerprint of a dataset of domains would mix the intensities and spacings of different modalities. Its own
extractor is given the cases of one domain after the other, so that every number is nnU-Net's.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

from nnunet_pretrain.conversion.record import stat_of
from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.folders import nnunet_folder

FINGERPRINT = "dataset_fingerprint.json"
FOLDER = "domains"
"""Folder beside the plans with a fingerprint per domain."""

INPUTS = "fingerprint_inputs.json"
"""File beside a domain's fingerprint: the sizes and times of the files it was extracted from."""

Z_SCORE = "zscore"
"""The channel name for which nnU-Net plans ZScoreNormalization."""


class DomainFingerprintExtractor(DatasetFingerprintExtractor):
    """nnU-Net's fingerprint extractor for the cases of one domain, with the samples it would draw of them alone.

    Args:
        name: Name of the dataset of domains.
        domain: The domain, whose fingerprint is written to `domains/<domain>/` beside the plans.
        cases: Its cases.
        num_processes: Worker processes.
    """

    dataset: dict[str, Any]

    def __init__(self, name: str, domain: str, cases: Sequence[str], num_processes: int) -> None:
        super().__init__(name, num_processes)
        self.dataset = {case: self.dataset[case] for case in cases}
        self.dataset_name = f"{name}/{FOLDER}/{domain}"

    def inputs(self) -> dict[str, Any]:
        """Returns what the fingerprint depends on: per case the sizes and times of its files."""
        return {case: [stat_of(Path(p)) for p in (*e["images"], e["label"])] for case, e in self.dataset.items()}


class DomainNormalization(ExperimentPlanner):
    """nnU-Net's choice of normalisation for one domain.

    Args:
        name: Name of the dataset of domains, whose joint fingerprint is there.
        channel_names: The domain's channels.
        fingerprint: The domain's fingerprint.
    """

    dataset_json: dict[str, Any]

    def __init__(self, name: str, channel_names: Mapping[str, str], fingerprint: Mapping[str, Any]) -> None:
        super().__init__(name)
        self.dataset_json = {**self.dataset_json, "channel_names": dict(channel_names)}
        self.dataset_fingerprint = dict(fingerprint)

    def chosen(self) -> tuple[tuple[str, ...], tuple[bool, ...]]:
        """Returns the scheme of each channel, and whether it is normalised inside the nonzero region only."""
        schemes, use_mask = self.determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        return tuple(schemes), tuple(bool(mask) for mask in use_mask)


def extract_domain_fingerprints(
    name: str, cases_of: Mapping[str, Sequence[str]], num_processes: int
) -> dict[str, dict[str, Any]]:
    """Lets nnU-Net extract the fingerprint of every domain, and writes the joint one that its planner reads.

    Fingerprints of an earlier call are kept where no file of the domain changed.

    Args:
        name: Name of the dataset of domains.
        cases_of: Domain to its cases.
        num_processes: Worker processes.

    Returns:
        Domain to nnU-Net's fingerprint of it.
    """
    base = nnunet_folder("nnUNet_preprocessed") / name
    for folder in (base / FOLDER).glob("*"):
        if folder.name not in cases_of:
            shutil.rmtree(folder)
    fingerprints = {}
    for domain, cases in cases_of.items():
        extractor = DomainFingerprintExtractor(name, domain, cases, num_processes)
        folder, inputs = base / FOLDER / domain, extractor.inputs()
        if not _is_current(folder, inputs):
            (folder / INPUTS).unlink(missing_ok=True)
            extractor.run(overwrite_existing=True)
            write_json(folder / INPUTS, inputs)
        fingerprints[domain] = read_json(folder / FINGERPRINT)
    write_json(base / FINGERPRINT, joint_fingerprint(list(fingerprints.values())))
    return fingerprints


def _is_current(folder: Path, inputs: Mapping[str, Any]) -> bool:
    """Tells whether a domain's fingerprint is there and of these files."""
    try:
        return bool((folder / FINGERPRINT).is_file() and read_json(folder / INPUTS) == inputs)
    except (FileNotFoundError, ValueError):
        return False


def median_spacing(fingerprint: Mapping[str, Any]) -> tuple[float, float, float]:
    """Returns the per-axis median of a domain's voxel spacings in mm (Med3D, eq. 1), in the images' axis order."""
    x, y, z = np.median(np.vstack(fingerprint["spacings"]), axis=0)
    return float(x), float(y), float(z)


def median_shape(fingerprint: Mapping[str, Any]) -> list[float]:
    """Returns the per-axis median of a domain's image shapes at its own median spacing, as nnU-Net resamples them.

    A shape s at spacing sp becomes round(s * sp / sp_med). (Med3D prints eq. 2 the other way up.)
    """
    target = median_spacing(fingerprint)
    sizes = zip(fingerprint["shapes_after_crop"], fingerprint["spacings"], strict=True)
    shapes = [compute_new_shape(shape, spacing, target) for shape, spacing in sizes]
    return [float(n) for n in np.median(np.vstack(shapes), axis=0)]


def joint_fingerprint(fingerprints: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns a fingerprint with one entry per domain, so that every domain has one vote on topology and patch.

    A domain counts with its shape in voxels at its own spacing. The spacing that nnU-Net derives the shape of patch and
    kernels from is the per-axis median of the domains' spacings. There are no joint intensities.
    """
    spacing = [float(mm) for mm in np.median([median_spacing(one) for one in fingerprints], axis=0)]
    relative = [one["median_relative_size_after_cropping"] for one in fingerprints]
    return {
        "spacings": [spacing] * len(fingerprints),
        "shapes_after_crop": [median_shape(one) for one in fingerprints],
        "foreground_intensity_properties_per_channel": {},
        "median_relative_size_after_cropping": float(np.median(relative)),
    }
