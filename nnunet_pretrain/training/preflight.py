"""What is checked before the first step of a pre-training, so that nothing wrong is trained on for days."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.configuration import default_num_processes
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from tqdm import tqdm

from nnunet_pretrain.conversion.natural_images.index import NATURAL_KEY, ImageIndex
from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.labels import SCHEMES_KEY, LabelSetTable
from nnunet_pretrain.planning.settings import PretrainSettings
from nnunet_pretrain.preprocessing.case import cases_of_other_labels

MAX_NAMED = 5
MAX_LOOKED_FOR = 1000
"""Of a million originals on a shared disk, all could take hours."""


def check_dataset(dataset_json: Mapping[str, Any], plans_name: str, planned_for: Path) -> None:
    """Refuses plans that were made for another dataset than the one to train on.

    Args:
        dataset_json: dataset.json of the dataset to train on.
        plans_name: Name of the plans.
        planned_for: Preprocessed folder of the dataset the plans name; nnU-Net trains on its data.

    Raises:
        ValueError: The two datasets differ.
        FileNotFoundError: The folder has no dataset.json.
    """
    other = read_json(planned_for / "dataset.json")
    for key in ("labels", SCHEMES_KEY, "dataset"):
        if other.get(key) != dataset_json.get(key):
            raise ValueError(
                f"plans '{plans_name}' were made for {planned_for.name}, whose dataset.json has other '{key}' than the "
                f"dataset to train on; make plans for this dataset with `nnunet_pretrain plan`, and do not copy them"
            )


def check_preprocessed(folder: Path, found: Sequence[str], expected: Sequence[str], plans_name: str) -> None:
    """Refuses a preprocessed folder that lacks cases, or holds cases the dataset no longer has.

    Args:
        folder: Folder of the preprocessed configuration.
        found: Cases nnU-Net finds there.
        expected: Cases of dataset.json.
        plans_name: Name of the plans.

    Raises:
        ValueError: The two differ, or a case's files are not all there.
    """
    missing = sorted(set(expected) - set(found))
    surplus = sorted(set(found) - set(expected))
    if folder.is_dir():
        ending = ".b2nd" if any(folder.glob("*.b2nd")) else ".npz"
        parts = (ending, "_seg.b2nd", ".pkl") if ending == ".b2nd" else (ending, ".pkl")
        names = {path.name for path in folder.iterdir()}
        missing += [case for case in found if case in set(expected) and not {case + part for part in parts} <= names]
    for cases, what in ((missing, "lacks"), (surplus, "holds cases dataset.json does not have:")):
        if cases:
            raise ValueError(
                f"{folder} {what} {len(cases)} of {len(expected)} cases, such as {', '.join(cases[:MAX_NAMED])}; "
                f"run `nnunet_pretrain preprocess -p {plans_name}` (or nnUNetv2_preprocess) again"
            )


def check_labels(folder: Path, cases: Sequence[str], dataset_json: Mapping[str, Any], plans_name: str) -> None:
    """Refuses cases that were preprocessed when the dataset had other labels; some are looked at, drawn at random.

    Args:
        folder: Folder of the preprocessed configuration.
        cases: Cases of dataset.json.
        dataset_json: dataset.json of the dataset to train on.
        plans_name: Name of the plans.

    Raises:
        ValueError: There are such cases.
    """
    some = np.random.default_rng().permutation(np.asarray(cases))[:MAX_LOOKED_FOR].tolist()
    others = cases_of_other_labels(folder, some, dataset_json)
    if others:
        raise ValueError(
            f"{len(others)} of {len(some)} cases that were looked at in {folder} were made when dataset.json had other "
            f"labels, such as {', '.join(others[:MAX_NAMED])}; run `nnunet_pretrain preprocess -p {plans_name}` again"
        )


def check_natural_images(
    base: Path, dataset_json: Mapping[str, Any], settings: PretrainSettings, index: ImageIndex, plans_name: str
) -> str:
    """Refuses natural images that are not those the plans were made for, or that are not where they should be.

    Args:
        base: Preprocessed folder of the dataset.
        dataset_json: dataset.json of the dataset to train on.
        settings: The plans' settings.
        index: The dataset's images.
        plans_name: Name of the plans.

    Returns:
        What was looked at, for the log.

    Raises:
        ValueError: Dataset, plans and index do not belong together.
        FileNotFoundError: The folder of the original images is missing, or one of those that were looked for.
    """
    check_dataset(dataset_json, plans_name, base)
    natural, facts = settings.natural_images, dataset_json.get(NATURAL_KEY, {})
    assert natural is not None
    classes = list(settings.classification.classes) if settings.classification is not None else []
    planned = {"task": natural.task, "storage": natural.storage, "classes": classes}
    for key, expected in planned.items():
        if (facts.get(key) or []) != expected:
            raise ValueError(
                f"plans '{plans_name}' were made for other {key} than dataset.json of {base.name} now has "
                f"({_short(facts.get(key))}, the plans: {_short(expected)}); run `nnunet_pretrain plan_2d` again"
            )
    unknown = sorted(set(np.unique(index.labels).tolist()) - set(classes or [""]))
    if unknown or len(index) != dataset_json["numTraining"]:
        problem = f"the unknown class '{unknown[0]}'" if unknown else f"{len(index)} images"
        raise ValueError(
            f"the index of natural images in {base} has {problem}, dataset.json {dataset_json['numTraining']} images "
            f"of {len(classes)} classes; run `nnunet_pretrain convert_2d` and `plan_2d` again"
        )
    if natural.storage == "volumes":
        return f"{len(index):,} images, preprocessed."
    masks = base / "gt_segmentations" if natural.task == "segmentation" else None
    return _look_for_originals(Path(facts["root"]), masks, dataset_json["file_ending"], index)


def _look_for_originals(root: Path, masks: Path | None, ending: str, index: ImageIndex) -> str:
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root}, the folder of the original images, does not exist here; mount it, or correct 'root' of "
            f"'{NATURAL_KEY}' in dataset.json of the raw and of the preprocessed dataset"
        )
    number = min(len(index), MAX_LOOKED_FOR)
    rows = [index.at(int(i)) for i in np.random.default_rng().choice(len(index), number, replace=False)]
    wanted = [root / row.file for row in rows]
    wanted += [masks / f"{row.case}{ending}" for row in rows] if masks is not None else []
    missing = [str(path) for path in wanted if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(wanted)} files that were looked for do not exist, such as "
            f"{', '.join(missing[:MAX_NAMED])}; put them back, or run `nnunet_pretrain convert_2d` and `plan_2d` again"
        )
    drawn = "all are there" if number == len(index) else f"{number:,} of them, drawn at random, are there"
    return f"{len(index):,} original images under {root}: {drawn}."


def _short(content: Any) -> str:
    text = str(content)
    return text if len(text) < 200 else f"{text[:200]}..."


def check_stored_ids(dataset: nnUNetBaseDataset, cases: Sequence[str], table: LabelSetTable, remembered: Path) -> None:
    """Refuses cases whose label maps hold ids that their label scheme does not know.

    Reads every label map once; cases that passed are remembered by the size and time of their files.

    Args:
        dataset: The preprocessed cases.
        cases: Case names.
        table: The dataset's label sets.
        remembered: JSON file of the cases that passed.

    Raises:
        ValueError: An id is not known, or a case cannot be read.
    """
    passed: dict[str, Any] = read_json(remembered) if remembered.is_file() else {}
    states = {case: _state(Path(dataset.source_folder), case, table) for case in cases}
    unchecked = [case for case in cases if passed.get(case) != states[case]]

    def check(case: str) -> None:
        try:
            ids = np.unique(dataset.load_case(case)[1][:])
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"preprocessed case '{case}' in {dataset.source_folder} cannot be read ({reason}); "
                f"delete its files and preprocess again"
            ) from None
        scheme = table.schemes[table.scheme_of_case[case]]
        unknown = sorted(set(ids.tolist()) - set(scheme.sets) - {-1, 0})
        if unknown:
            raise ValueError(
                f"case '{case}' in {dataset.source_folder} stores the ids {unknown}, but its label scheme "
                f"'{scheme.name}' knows {list(scheme.sets)} only; its label map was changed after the merge: run "
                f"`nnunet_pretrain merge --resume` and preprocess again"
            )

    if not unchecked:
        return
    with ThreadPoolExecutor(default_num_processes) as pool:
        for _ in tqdm(pool.map(check, unchecked), total=len(unchecked), desc="Checking label maps", mininterval=1):
            pass
    write_json(remembered, {**passed, **{case: states[case] for case in unchecked}})


def _state(folder: Path, case: str, table: LabelSetTable) -> list[Any]:
    file = next(path for path in (folder / f"{case}_seg.b2nd", folder / f"{case}.npz") if path.is_file())
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, sorted(table.schemes[table.scheme_of_case[case]].sets)]
