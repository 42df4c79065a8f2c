"""The labels of a classification: a table beside dataset.json, one row for every image or lesion."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnunet_pretrain.files import read_json, write_json

TABLE = "classification"
COLUMNS = ("case", "class", "lesion", "component")
_SHOWN = 5


@dataclass(frozen=True)
class Example:
    """What gets one class.

    Attributes:
        case: Case of the dataset.
        label: Its class.
        lesion: Label of dataset.json to crop around, or None for the whole image.
        component: Which connected component of that label, 1 is the largest; None means all its voxels together.
    """

    case: str
    label: str
    lesion: str | None = None
    component: int | None = None

    @property
    def key(self) -> str:
        """Name of the example in batches and messages; no two of a table have the same."""
        return " ".join(str(part) for part in (self.case, self.lesion, self.component) if part is not None)


def read_table(raw: Path, dataset_json: Mapping[str, Any], cases: Collection[str]) -> tuple[Example, ...]:
    """Reads and checks `classification.csv` or `classification.json` (a list of objects) beside a dataset.json.

    The columns are `case` and `class`, and for lesions `lesion` (a label of dataset.json) and, if wanted, `component`.
    Cases without a row are not used.

    Args:
        raw: Folder of the raw dataset.
        dataset_json: The dataset's.
        cases: Names of its training cases.

    Raises:
        FileNotFoundError: There is no table.
        ValueError: There are two, or one is wrong; the message names rows and says what to do.
    """
    found = [path for path in (raw / f"{TABLE}.csv", raw / f"{TABLE}.json") if path.is_file()]
    if not found:
        raise FileNotFoundError(
            f"{raw / TABLE}.csv not found; write it with the columns case,class and for lesions case,class,lesion"
            f"[,component], one row for every image or lesion"
        )
    if len(found) > 1:
        raise ValueError(f"{raw} has {found[0].name} and {found[1].name}; keep one of them")
    examples = _rows(found[0])
    check_examples(examples, dataset_json, cases, str(found[0]))
    return examples


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """Writes a checked table as JSON, for the training, which may run where the raw data are not."""
    write_json(path, [asdict(example) for example in examples])


def read_examples(path: Path) -> tuple[Example, ...]:
    """Reads what `write_examples` wrote.

    Raises:
        FileNotFoundError: The file is missing; the message says how to make it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found; plan again with `nnunet_pretrain plan_classification`")
    return tuple(Example(**entry) for entry in read_json(path))


def _rows(path: Path) -> tuple[Example, ...]:
    """Reads a table's rows; numbers in messages count data rows from 1."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows: list[Any] = list(reader)
            columns = list(reader.fieldnames or ())
    else:
        rows = read_json(path)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f'{path} must hold a list of objects such as {{"case": "case_01", "class": "benign"}}')
        columns = list(dict.fromkeys(key for row in rows for key in row))
    unknown, missing = [c for c in columns if c not in COLUMNS], [c for c in COLUMNS[:2] if c not in columns]
    if unknown or missing:
        raise ValueError(f"{path} has the columns {columns}; expected case,class and, for lesions, lesion[,component]")
    return tuple(_example(path, number, row) for number, row in enumerate(rows, 1))


def _example(path: Path, number: int, row: Mapping[Any, Any]) -> Example:
    values = {key: str(row[key]).strip() for key in COLUMNS if row.get(key) is not None}
    if None in row or not values.get("case") or not values.get("class"):
        raise ValueError(f"{path}, row {number}: expected a value for case and for class, and no further ones: {row}")
    component = values.get("component") or None
    if component is not None and not (component.isdecimal() and int(component) > 0):
        raise ValueError(f"{path}, row {number}: component is '{component}', expected 1 for the largest, 2, ...")
    if component is not None and not values.get("lesion"):
        raise ValueError(f"{path}, row {number}: a component needs a lesion; name the label of dataset.json it is of")
    return Example(values["case"], values["class"], values.get("lesion") or None, int(component) if component else None)


def check_examples(
    examples: Sequence[Example], dataset_json: Mapping[str, Any], cases: Collection[str], where: str
) -> None:
    """Refuses a table that cannot be learned from.

    Args:
        examples: The rows.
        dataset_json: The dataset's.
        cases: Names of its training cases.
        where: The table, for the messages.

    Raises:
        ValueError: A case or lesion is unknown, rows are given twice, images and lesions are mixed, there are less
            than two classes, or a class is in one case only.
    """
    labels = [name for name in dataset_json["labels"] if name not in ("background", "ignore")]
    _refuse(where, examples, [e.case not in cases for e in examples], "name no training case; correct or remove them")
    wrong = [e.lesion is not None and e.lesion not in labels for e in examples]
    _refuse(where, examples, wrong, f"name no label of dataset.json; its labels are {', '.join(labels)}")
    times = Counter(example.key for example in examples)
    _refuse(where, examples, [times[e.key] > 1 for e in examples], "are given more than once; keep one of each")
    without = [e.lesion is None for e in examples]
    if any(without) and not all(without):
        _refuse(where, examples, without, "have no lesion, others have; make two datasets of them, or name all lesions")
    both = {(e.case, e.lesion) for e in examples if e.component is None}
    mixed = [e.component is not None and (e.case, e.lesion) in both for e in examples]
    _refuse(where, examples, mixed, "are part of a lesion that another row takes as a whole; give every component")
    by_class = cases_by_class(examples)
    if len(by_class) < 2:
        raise ValueError(f"{where} has the classes {sorted(by_class)}; expected at least two")
    alone = [len(by_class[e.label]) == 1 for e in examples]
    remedy = "are the only case of their class, which cannot be trained and tested on; add cases, or unite classes"
    _refuse(where, examples, alone, remedy)


def _refuse(where: str, examples: Sequence[Example], wrong: Sequence[bool], remedy: str) -> None:
    """Raises a ValueError that names the wrong rows, if there are any."""
    found = [f"row {i} ({e.key}: {e.label})" for i, (e, bad) in enumerate(zip(examples, wrong, strict=True), 1) if bad]
    if found:
        rest = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ValueError(f"{where}: {', '.join(found[:_SHOWN])}{rest} {remedy}")


def classes_of(examples: Sequence[Example]) -> tuple[str, ...]:
    """Returns the classes in the order of the network's outputs: sorted by name."""
    return tuple(sorted({example.label for example in examples}))


def cases_by_class(examples: Sequence[Example]) -> dict[str, set[str]]:
    """Returns for every class the cases that have it."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for example in examples:
        found[example.label].add(example.case)
    return dict(found)


def classes_by_case(examples: Sequence[Example]) -> dict[str, frozenset[str]]:
    """Returns for every case the classes its examples have."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for example in examples:
        found[example.case].add(example.label)
    return {case: frozenset(classes) for case, classes in found.items()}
