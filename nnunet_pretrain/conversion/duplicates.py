"""Duplicates: the same CT under different names, found by content.

LiTS, MSD03, CT-ORG, AbdomenCT-1K and AbdomenAtlas share images and contradict each other's labels; folds that part them
leak, and so does a test set that hides in a pre-training set.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_pretrain.conversion.engine import run_all
from nnunet_pretrain.conversion.fingerprint import SKETCH_SIZE, Fingerprint, read_fingerprint
from nnunet_pretrain.files import read_json
from nnunet_pretrain.folders import dataset_name, nnunet_folder

FINGERPRINTS = "fingerprints.json"
MIN_COMMON = 4
"""Patterns two images must share. One shared 64-bit pattern is no accident; four are safe from repeated artefacts."""

NUM_FOLDS = 5


@dataclass(frozen=True)
class Pair:
    """Two images with the same content.

    Attributes:
        first: Case of the first dataset.
        second: Case of the second one (or of the same).
        exact: Whether every voxel is equal.
        common: Number of sketched patterns they share, of at most `SKETCH_SIZE`.
    """

    first: str
    second: str
    exact: bool
    common: int

    def __str__(self) -> str:
        kind = "identical" if self.exact else f"{self.common} of {SKETCH_SIZE} patterns in common"
        return f"{self.first} = {self.second} ({kind})"


def find_pairs(first: Mapping[str, Fingerprint], second: Mapping[str, Fingerprint] | None = None) -> list[Pair]:
    """Finds images with the same content inside one dataset, or between two.

    The work grows with the number of cases, not of pairs: an index leads from each pattern to its images.
    """
    others = first if second is None else second
    by_voxels: dict[str, list[str]] = defaultdict(list)
    by_pattern: dict[int, list[str]] = defaultdict(list)
    for case, fingerprint in others.items():
        by_voxels[fingerprint.voxels].append(case)
        for pattern in fingerprint.sketch.tolist():
            by_pattern[pattern].append(case)
    pairs = []
    for case, fingerprint in first.items():
        common: dict[str, int] = defaultdict(int)
        for pattern in fingerprint.sketch.tolist():
            for other in by_pattern.get(pattern, ()):
                common[other] += 1
        same = set(by_voxels.get(fingerprint.voxels, ()))
        for other in sorted(same | {o for o, n in common.items() if n >= MIN_COMMON}):
            if second is not None or case < other:
                pairs.append(Pair(case, other, other in same, common[other]))
    return sorted(pairs, key=lambda pair: (pair.first, pair.second))


def groups_of(pairs: Iterable[Pair]) -> list[list[str]]:
    """Returns the sets of cases that pairs connect, each in alphabetical order."""
    group_of: dict[str, set[str]] = {}
    for pair in pairs:
        first, second = (group_of.setdefault(case, {case}) for case in (pair.first, pair.second))
        if first is not second:
            smaller, larger = sorted((first, second), key=len)
            larger |= smaller
            group_of |= dict.fromkeys(smaller, larger)
    return sorted(sorted(group) for group in {id(group): group for group in group_of.values()}.values())


def to_drop(groups: Iterable[Sequence[str]], order: Sequence[str]) -> dict[str, str]:
    """Chooses what `--drop-duplicates` removes: of each group the case of the source named first stays.

    Args:
        groups: Duplicate cases.
        order: All cases, in the order in which their sources were given.

    Returns:
        Dropped case to the case that stays.
    """
    place = {case: position for position, case in enumerate(order)}
    return {case: min(group, key=place.__getitem__) for group in groups for case in sorted(group, key=place.get)[1:]}  # type: ignore[arg-type]


def make_folds(source_of: Mapping[str, str], groups: Iterable[Sequence[str]]) -> list[dict[str, list[str]]]:
    """Makes nnU-Net's splits: five folds, duplicates together, every source spread over all folds.

    Args:
        source_of: Case to source.
        groups: Duplicate cases.

    Returns:
        The content of splits_final.json, or an empty list if there is only one group.
    """
    members = {group[0]: list(group) for group in groups}
    in_group = {case for group in members.values() for case in group}
    members |= {case: [case] for case in source_of if case not in in_group}
    by_source: dict[str, list[str]] = defaultdict(list)
    for first in sorted(members):
        by_source[source_of[first]].append(first)
    dealt: list[str] = []
    for source in sorted(by_source):
        dealt += np.random.default_rng(12345).permutation(by_source[source]).tolist()
    number = min(NUM_FOLDS, len(dealt))
    folds = []
    for fold in range(number if number > 1 else 0):
        held_out = {case for first in dealt[fold::number] for case in members[first]}
        folds.append({"train": sorted(set(source_of) - held_out), "val": sorted(held_out)})
    return folds


def dataset_fingerprints(dataset: int | str, num_processes: int) -> dict[str, Fingerprint]:
    """Returns the fingerprints of a raw dataset: those `merge` wrote, or else newly computed ones.

    Raises:
        FileNotFoundError: There is no such dataset, or an image of it is missing.
        ValueError: An image is not readable.
    """
    folder = nnunet_folder("nnUNet_raw") / dataset_name(dataset)
    stored = folder / FINGERPRINTS
    if stored.is_file():
        return {case: Fingerprint.from_dict(content) for case, content in read_json(stored).items()}
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    files = get_filenames_of_train_images_and_targets(str(folder))
    cases = [(case, Path(files[case]["images"][0])) for case in sorted(files)]
    missing = [str(path) for _, path in cases if not path.exists()]
    if missing:
        raise FileNotFoundError(f"{folder.name}: image {missing[0]} not found ({len(missing)} in all)")
    return dict(run_all(_named_fingerprint, cases, num_processes=num_processes, what=f"reading {folder.name}"))


def _named_fingerprint(case: tuple[str, Path]) -> tuple[str, Fingerprint]:
    return case[0], read_fingerprint(case[1])
