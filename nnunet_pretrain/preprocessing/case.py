"""Preprocessing one case, so that a kill at any moment leaves nothing that looks complete and is not.

The files are written in a hidden folder beside the data folder, for nnU-Net refuses a data folder with foreign files,
and then moved there, the .pkl last. A record of what the case was made from follows; only it makes a case complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_pretrain.files import read_json, write_json

RULES_VERSION = 1
"""Raised whenever preprocessing gives another result for the same input and plans, so that older cases are redone."""

ENDINGS = (".b2nd", "_seg.b2nd", ".pkl")

_LABEL_KEYS = ("labels", "regions_class_order")
_PLAN_KEYS = (
    "transpose_forward",
    "image_reader_writer",
    "label_manager",
    "foreground_intensity_properties_per_channel",
)
_CONFIGURATION_KEYS = ("preprocessor_name", "spacing", "patch_size", "normalization_schemes", "use_mask_for_norm")
_RESAMPLING_KEYS = tuple(f"resampling_fn_{what}{part}" for what in ("data", "seg") for part in ("", "_kwargs"))


@dataclass(frozen=True)
class Recipe:
    """How the cases of a configuration are made.

    Attributes:
        plans: The plans.
        configuration: The configuration's entries, inheritance resolved.
        labels: The entries of dataset.json that say what the labels are.
        folder: The data folder stock nnU-Net would write to.
        device: Where torch resamples, if the plans ask for torch.
        num_threads: CPU threads of that.
    """

    plans: dict[str, Any]
    configuration: dict[str, Any]
    labels: dict[str, Any]
    folder: Path
    device: str
    num_threads: int

    @property
    def hidden(self) -> Path:
        """The hidden folder beside the data folder."""
        return _hidden_beside(self.folder)

    @property
    def digest(self) -> str:
        """Digest of everything but the files that decides the result."""
        facts = [
            RULES_VERSION,
            {key: self.plans.get(key) for key in _PLAN_KEYS},
            {key: self.configuration.get(key) for key in (*_CONFIGURATION_KEYS, *_RESAMPLING_KEYS)},
            self.labels,
        ]
        return _digest_of(facts)


@dataclass(frozen=True)
class CaseInput:
    """The files of a case.

    Attributes:
        case: Its name.
        images: One image per channel.
        label: The label map.
    """

    case: str
    images: tuple[str, ...]
    label: str


def _hidden_beside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}")


def _digest_of(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def labels_of(dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of dataset.json that nnU-Net's preprocessing reads; a merged dataset's is large."""
    return {key: dataset_json[key] for key in _LABEL_KEYS if key in dataset_json}


def is_complete(recipe: Recipe, files: CaseInput, digest: str) -> bool:
    """Tells whether a case is there and was made from these files and plans.

    Args:
        recipe: How it is made.
        files: What it is made of.
        digest: The recipe's digest.
    """
    try:
        record = read_json(_record_path(recipe, files.case))
        expected = {"digest": digest, "inputs": _inputs(files), "outputs": _outputs(recipe, files.case)}
        return {key: record.get(key) for key in expected} == expected
    except (OSError, ValueError, AttributeError):
        return False


def was_made(recipe: Recipe, case: str, digest: str) -> bool:
    """Tells whether the files of a case are those that were made by a recipe; the raw data are not needed.

    The times of files do not count, so that preprocessed data may be copied to another machine.

    Args:
        recipe: How it should be made.
        case: The case.
        digest: The recipe's digest.
    """
    try:
        record = read_json(_record_path(recipe, case))
        sizes = {ending: state[0] for ending, state in _outputs(recipe, case).items()}
        recorded = {ending: state[0] for ending, state in record["outputs"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return False
    return bool(record.get("digest") == digest and recorded == sizes)


def cases_of_other_labels(folder: Path, cases: Iterable[str], dataset_json: Mapping[str, Any]) -> list[str]:
    """Returns the cases that were made when dataset.json had other labels, as far as they have a record.

    Args:
        folder: Data folder of a configuration.
        cases: Names of cases.
        dataset_json: What dataset.json says now.
    """
    hidden, now = _hidden_beside(folder), _digest_of(labels_of(dataset_json))
    found = []
    for case in cases:
        try:
            labels = read_json(hidden / f"{case}.json").get("labels", now)
        except (OSError, ValueError, AttributeError):
            continue  # made by nnU-Net, or copied without its record
        if labels != now:
            found.append(case)
    return found


def remove_case(recipe: Recipe, case: str) -> None:
    """Removes the record and the files of a case, in that order, finished or not."""
    _record_path(recipe, case).unlink(missing_ok=True)
    for folder in (recipe.folder, _partial(recipe)):
        for ending in reversed(ENDINGS):
            (folder / f"{case}{ending}").unlink(missing_ok=True)


def remove_others(recipe: Recipe, cases: Iterable[str]) -> None:
    """Removes what an interrupted run left, and everything in the data folder that belongs to no case, as stock does.

    Args:
        recipe: How the cases are made.
        cases: The cases to keep.
    """
    cases = set(cases)
    shutil.rmtree(_partial(recipe), ignore_errors=True)
    records = recipe.hidden.glob("*.json") if recipe.hidden.is_dir() else []
    for path in records:
        if path.stem not in cases:
            path.unlink()
    kept = {f"{case}{ending}" for case in cases for ending in ENDINGS}
    for path in recipe.folder.iterdir() if recipe.folder.is_dir() else []:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in kept:
            path.unlink()


def make_case(recipe: Recipe, files: CaseInput) -> str | None:
    """Preprocesses a case.

    Args:
        recipe: How.
        files: What.

    Returns:
        None, or why the case could not be made, naming its files.
    """
    remove_case(recipe, files.case)
    try:
        inputs = _inputs(files)
        made = _run_nnunet(recipe, files)
        recipe.folder.mkdir(parents=True, exist_ok=True)
        for ending in ENDINGS:
            os.replace(f"{made}{ending}", recipe.folder / f"{files.case}{ending}")
        outputs = _outputs(recipe, files.case)
    except Exception as error:  # one damaged file among thousands must not end the run
        remove_case(recipe, files.case)
        return f"case {files.case}: {_reason(recipe, files, error)}"
    record = {"digest": recipe.digest, "labels": _digest_of(recipe.labels), "inputs": inputs, "outputs": outputs}
    write_json(_record_path(recipe, files.case), record)
    return None


def _run_nnunet(recipe: Recipe, files: CaseInput) -> Path:
    """Lets nnU-Net's preprocessor write the case, and returns the path of its files without their endings."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    from nnunet_pretrain.preprocessing.fast_preprocessor import FastConfiguration, FastPlans, FastPreprocessor

    configuration = FastConfiguration(recipe.configuration, recipe.device, recipe.num_threads)
    planned = configuration.preprocessor_class
    preprocessor = (FastPreprocessor if planned is DefaultPreprocessor else planned)(verbose=False)
    made = _partial(recipe) / files.case
    made.parent.mkdir(parents=True, exist_ok=True)
    preprocessor.run_case_save(
        str(made), list(files.images), files.label, FastPlans(recipe.plans), configuration, recipe.labels
    )
    return made


def _reason(recipe: Recipe, files: CaseInput, error: Exception) -> str:
    """Says what is wrong, and with which file: that which cannot be read alone, or else all of them."""
    message = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
    for path in _input_paths(files):
        if not Path(path).is_file():
            return f"{path} is missing"
    if "out of memory" in message:
        return f"{message}; use fewer processes (-np) or --device cpu"
    for path in _input_paths(files):
        try:
            _reader(recipe).read_images([path])
        except Exception as reason:  # readers raise anything
            return f"{path} cannot be read: {type(reason).__name__}: {' '.join(str(reason).split())[:500]}"
    return f"{message} (files: {', '.join(_input_paths(files))})"


def _reader(recipe: Recipe) -> Any:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return PlansManager(recipe.plans).image_reader_writer_class()


def _input_paths(files: CaseInput) -> list[str]:
    return [*files.images, files.label]


def _outputs(recipe: Recipe, case: str) -> dict[str, list[int]]:
    return {ending: _state(recipe.folder / f"{case}{ending}") for ending in ENDINGS}


def _inputs(files: CaseInput) -> dict[str, list[int]]:
    return {path: _state(Path(path)) for path in _input_paths(files)}


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _partial(recipe: Recipe) -> Path:
    return recipe.hidden / "partial"


def _record_path(recipe: Recipe, case: str) -> Path:
    return recipe.hidden / f"{case}.json"
