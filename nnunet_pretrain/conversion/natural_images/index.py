"""The index of a dataset of natural images: one row per image, small enough for millions of them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnunet_pretrain.files import written_atomically

INDEX = "natural_images.csv"
NATURAL_KEY = "natural_images"
"""Entry of dataset.json: task, storage, root of the original images, classes, layout."""

HEADER = ("case", "file", "class", "part", "height", "width", "mean", "std", "note")

_BLOCK = 1 << 16  # rows held as Python objects at a time


@dataclass(frozen=True, slots=True)
class NaturalImage:
    """One image of the dataset.

    Attributes:
        case: Name of its case.
        file: Path of the original relative to the root of the originals, with forward slashes.
        label: Its class; empty in a dataset of masks.
        part: `train` or `val` where the data come split, else empty.
        height: Rows, after any rotation its EXIF asks for.
        width: Columns, likewise.
        mean: Mean of its red, green and blue values together, 0 to 255.
        std: Standard deviation of the same values.
        note: What was special about it, such as `grey; alpha on white`.
    """

    case: str
    file: str
    label: str
    part: str
    height: int
    width: int
    mean: float
    std: float
    note: str = ""


class ImageIndex:
    """The rows of a dataset, held as columns: text as bytes, repeated text as numbers.

    Forked processes share the columns, for nothing in them counts references.

    Args:
        columns: One array per field of `NaturalImage`, all equally long; text as bytes in UTF-8.

    Raises:
        ValueError: A case occurs twice.
    """

    def __init__(self, columns: dict[str, npt.NDArray[Any]]) -> None:
        order = np.argsort(columns["case"], kind="stable")
        self._cases = columns["case"][order]
        self._files = columns["file"][order]
        self._repeated = {
            name: np.unique(columns[name][order], return_inverse=True) for name in ("label", "part", "note")
        }
        self.shapes: npt.NDArray[np.int32] = np.stack([columns["height"], columns["width"]], axis=1)[order]
        """Shape (n, 2): height and width of every image."""
        self.means: npt.NDArray[np.float64] = columns["mean"][order]
        self.stds: npt.NDArray[np.float64] = columns["std"][order]
        twice = np.flatnonzero(self._cases[1:] == self._cases[:-1])
        if len(twice):
            raise ValueError(f"case '{_text(self._cases[twice[0]])}' stands twice in the index of natural images")

    @classmethod
    def from_rows(cls, rows: Iterable[NaturalImage]) -> ImageIndex:
        """Makes an index of rows in any order.

        Raises:
            ValueError: A case occurs twice.
        """
        names = [field.name for field in fields(NaturalImage)]
        return cls._of_values(tuple(getattr(row, name) for name in names) for row in rows)

    @classmethod
    def read(cls, path: Path) -> ImageIndex:
        """Reads natural_images.csv.

        Raises:
            FileNotFoundError: The file is missing.
            ValueError: It is not such a file.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path} not found; make the dataset with `nnunet_pretrain convert_2d`")
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file)
            header = tuple(next(rows, ()))
            if header != HEADER:
                raise ValueError(f"{path} has the columns {','.join(header)}, expected {','.join(HEADER)}")
            try:
                return cls._of_values(tuple(row) for row in rows)
            except (ValueError, csv.Error) as error:
                raise ValueError(
                    f"{path}, around line {rows.line_num}: {error}; make it again with `nnunet_pretrain convert_2d`"
                ) from None

    @classmethod
    def _of_values(cls, rows: Iterator[tuple[Any, ...]]) -> ImageIndex:
        blocks: list[dict[str, npt.NDArray[Any]]] = []
        while block := list(islice(rows, _BLOCK)):
            blocks.append(_columns(block))
        blocks = blocks or [_columns([])]
        return cls({name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]})

    def write(self, path: Path) -> None:
        """Writes natural_images.csv atomically, a row per case, sorted by case."""
        with (
            written_atomically(path) as temporary,
            temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(HEADER)
            for row in self:
                numbers = (row.height, row.width, f"{row.mean:.4f}", f"{row.std:.4f}")
                writer.writerow((row.case, row.file, row.label, row.part, *numbers, row.note))

    def __len__(self) -> int:
        return len(self._cases)

    def __iter__(self) -> Iterator[NaturalImage]:
        return map(self.at, range(len(self)))

    def __contains__(self, case: object) -> bool:
        return isinstance(case, str) and self._find(case) is not None

    @property
    def cases(self) -> npt.NDArray[np.str_]:
        """Names of all cases, sorted; made anew at every call."""
        return _decoded(self._cases)

    @property
    def labels(self) -> npt.NDArray[np.str_]:
        """Class of every image, in the order of `cases`; made anew at every call."""
        return self._spread("label")

    @property
    def parts(self) -> npt.NDArray[np.str_]:
        """Part of every image, in the order of `cases`; made anew at every call."""
        return self._spread("part")

    def position(self, case: str) -> int:
        """Returns where a case stands in `cases`.

        Raises:
            ValueError: There is no such case.
        """
        found = self._find(case)
        if found is None:
            raise ValueError(
                f"case '{case}' is not in the index of natural images, which has {len(self)}; "
                f"run `nnunet_pretrain convert_2d` again"
            )
        return found

    def row(self, case: str) -> NaturalImage:
        """Returns the row of a case.

        Raises:
            ValueError: There is no such case.
        """
        return self.at(self.position(case))

    def at(self, position: int) -> NaturalImage:
        """Returns a row by its position in `cases`."""
        label, part, note = (self._value(name, position) for name in ("label", "part", "note"))
        height, width = self.shapes[position].tolist()
        mean, std = float(self.means[position]), float(self.stds[position])
        file = _text(self._files[position])
        return NaturalImage(_text(self._cases[position]), file, label, part, height, width, mean, std, note)

    def _find(self, case: str) -> int | None:
        key = case.encode("utf-8", "surrogateescape")
        if len(key) > self._cases.dtype.itemsize:  # numpy would widen all cases to look for it
            return None
        position = int(np.searchsorted(self._cases, np.bytes_(key)))
        return position if position < len(self) and self._cases[position] == key else None

    def _value(self, name: str, position: int) -> str:
        values, codes = self._repeated[name]
        return _text(values[codes[position]])

    def _spread(self, name: str) -> npt.NDArray[np.str_]:
        values, codes = self._repeated[name]
        return _decoded(values)[codes]


def _columns(rows: Sequence[tuple[Any, ...]]) -> dict[str, npt.NDArray[Any]]:
    """Turns rows into columns.

    Raises:
        ValueError: A row has another number of fields, or a number is none.
    """
    names = [field.name for field in fields(NaturalImage)]
    short = next((row for row in rows if len(row) != len(names)), None)
    if short is not None:
        raise ValueError(f"a row has {len(short)} fields, expected {len(names)}")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {name: () for name in names}
    kinds: dict[str, Any] = {"height": np.int32, "width": np.int32, "mean": np.float64, "std": np.float64}
    return {
        name: np.array(values, kinds[name]) if name in kinds else _encoded(values) for name, values in columns.items()
    }


def _encoded(values: Iterable[str]) -> npt.NDArray[np.bytes_]:
    return np.array([value.encode("utf-8", "surrogateescape") for value in values], dtype=np.bytes_)


def _decoded(values: npt.NDArray[np.bytes_]) -> npt.NDArray[np.str_]:
    return np.array(np.char.decode(values, "utf-8", "surrogateescape"), dtype=np.str_)


def _text(value: Any) -> str:
    return bytes(value).decode("utf-8", "surrogateescape")
