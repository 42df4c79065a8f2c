"""The merged label map of one case while it is written, source id by source id or mask by mask.

Most voxels of a label are background. Both ways of filling the map look at eight bytes at a time, skip what is zero and
work on the rest only, so that the cost follows the labelled volume and not the field of view.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.int64]
WHOLE_NUMBER_TOLERANCE = 1e-3
"""Largest distance of a stored label value from a whole number; scaled and float files round by less."""


class LabelMap:
    """Stored ids of a case, flat in Fortran order.

    Args:
        size: Number of voxels.

    Attributes:
        voxels: Stored id of every voxel, shape (size,), uint8.
        present: Voxel count of each source id (or mask) before overlaps are decided.
        overlapping: Number of voxels that masks of different structures claimed.
    """

    def __init__(self, size: int) -> None:
        self._padded = np.zeros(-(-size // 8) * 8, np.uint8)
        self.voxels = self._padded[:size]
        self.present: Counter[int | str] = Counter()
        self.overlapping = 0
        self._claims: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8], int]] = []
        self._sizes: Counter[int] = Counter()

    def remap(self, chunks: Iterable[npt.NDArray[Any]], stored: Mapping[int | str, int], path: Path) -> None:
        """Fills the map from a multi-label file.

        Args:
            chunks: The file's voxels in order, in pieces of a multiple of eight voxels.
            stored: Source id to stored id.
            path: The file, for messages.

        Raises:
            ValueError: A value is negative, fractional, not finite, or not a source id.
        """
        known = {0: 0, **{int(raw_id): stored_id for raw_id, stored_id in stored.items()}}
        table = np.zeros(max(known) + 1, np.uint8)
        table[list(known)] = list(known.values())
        counts = np.zeros(len(table), np.int64)
        unknown: set[int] = set()
        for start, words, values in _labelled_words(chunks):
            ids = _whole_numbers(values, path)
            outside = (ids < 0) | (ids >= len(table)) if ids.size and _out_of_range(ids, len(table)) else None
            if outside is not None:
                unknown |= set(np.unique(ids[outside]).tolist())
                continue
            counts += np.bincount(ids, minlength=len(table))
            self._rows(start, len(values) // max(len(words), 1))[words] = table[ids].reshape(len(words), -1)
        unknown |= {int(raw_id) for raw_id in np.flatnonzero(counts) if int(raw_id) not in known}
        if unknown:
            shown = f"{sorted(unknown)[:8]}{' and more' if len(unknown) > 8 else ''}"
            raise ValueError(
                f"{path} holds label ids {shown}, expected only {sorted(known)} (the source's label scheme)"
            )
        self.present.update({int(raw_id): int(counts[raw_id]) for raw_id in np.flatnonzero(counts) if raw_id})

    def paint(self, chunks: Iterable[npt.NDArray[Any]], name: str, stored_id: int, path: Path) -> None:
        """Paints a binary mask; what another structure holds already is noted for `settle_overlaps`.

        Args:
            chunks: The mask's voxels in order, in pieces of a multiple of eight voxels.
            name: Name of the mask.
            stored_id: Id to paint.
            path: The file, for messages.

        Raises:
            ValueError: The file holds other values than 0 and 1 (or 255).
        """
        for start, words, values in _labelled_words(chunks):
            ids = _whole_numbers(values, path)
            if _out_of_range(ids, 2) and not np.isin(ids, (0, 1, 255)).all():
                raise ValueError(f"{path} holds values {np.unique(ids)[:8].tolist()}, expected a binary mask")
            painted = (ids != 0).reshape(len(words), -1)
            rows = self._rows(start, painted.shape[1])
            held = rows[words]
            contested = painted & (held != 0) & (held != stored_id)
            if contested.any():
                row, column = np.nonzero(contested)
                voxels = start + words[row] * painted.shape[1] + column
                self._claims.append((voxels, held[contested], stored_id))
            held[painted] = stored_id
            rows[words] = held
            count = int(np.count_nonzero(painted))
            self.present[name] += count
            self._sizes[stored_id] += count

    def settle_overlaps(self, ignore_id: int | None) -> None:
        """Decides the voxels several structures claim.

        Args:
            ignore_id: Id they get, or None: the structure with fewer voxels in this case wins (of two equal ones the
                later in the label space).
        """
        if not self._claims:
            return
        voxels = np.concatenate([voxels for voxels, _, _ in self._claims])
        self.overlapping = len(np.unique(voxels))
        if ignore_id is not None:
            self.voxels[voxels] = ignore_id
            return
        claimed: dict[int, list[npt.NDArray[np.int64]]] = {}
        for places, held, stored_id in self._claims:
            claimed.setdefault(stored_id, []).append(places)
            for other in np.unique(held):
                claimed.setdefault(int(other), []).append(places[held == other])
        for stored_id in sorted(claimed, key=lambda i: (-self._sizes[i], i)):
            self.voxels[np.concatenate(claimed[stored_id])] = stored_id

    def counts(self) -> dict[int, int]:
        """Returns stored id to voxel count, background included."""
        words = self._padded.view(np.uint64)
        labelled = words[np.flatnonzero(words != 0)].view(np.uint8)
        counts = np.bincount(labelled, minlength=1)
        counts[0] = len(self.voxels) - int(counts[1:].sum())
        return {int(i): int(counts[i]) for i in np.flatnonzero(counts)}

    def _rows(self, start: int, per_word: int) -> npt.NDArray[np.uint8]:
        """Returns the map from voxel `start` on as rows of the voxels that share a word of the file."""
        return self._padded[start : start + (len(self._padded) - start) // per_word * per_word].reshape(-1, per_word)


def _labelled_words(chunks: Iterable[npt.NDArray[Any]]) -> Iterable[tuple[int, Words, npt.NDArray[Any]]]:
    """Yields first voxel of a chunk, indices of its 8-byte words that are not all zero, and the values in these."""
    start = 0
    for chunk in chunks:
        padding = -len(chunk) % 8
        padded = np.concatenate([chunk, np.zeros(padding, chunk.dtype)]) if padding else np.ascontiguousarray(chunk)
        as_words = padded.view(np.uint64)
        words = np.flatnonzero(as_words != 0)  # of booleans, which numpy counts far faster
        if len(words):
            yield start, words, as_words[words].view(padded.dtype)
        start += len(chunk)


def _whole_numbers(values: npt.NDArray[Any], path: Path) -> npt.NDArray[np.integer[Any]]:
    if values.dtype == np.uint64:  # which numpy before 2.1 does not count
        return np.minimum(values, 2**62).astype(np.int64)
    if values.dtype.kind in "iu":
        return values
    rounded = np.rint(values)
    if not np.isfinite(values).all() or np.abs(values - rounded).max() > WHOLE_NUMBER_TOLERANCE:
        raise ValueError(f"{path} holds fractional or non-finite values, expected whole label ids")
    return np.clip(rounded, -(2**31), 2**31).astype(np.int64)


def _out_of_range(ids: npt.NDArray[np.integer[Any]], end: int) -> bool:
    return bool(ids.min() < 0 or ids.max() >= end)
