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

from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.labels import SCHEMES_KEY, LabelSetTable

MAX_NAMED = 5


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
