"""Holes in organs: background that an organ encloses, left by lesions that somebody cut out and did not label."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt


def enclosed_holes(
    labels: npt.NDArray[np.uint8], organ_id: int, part_ids: Iterable[int]
) -> tuple[npt.NDArray[np.int64], ...]:
    """Finds background that cannot be left without crossing an organ.

    Args:
        labels: Stored ids, three axes.
        organ_id: Id of the organ.
        part_ids: Ids of what lies in the organ (vessels, lesions); they are walls too.

    Returns:
        Indices of the holes' voxels, one array per axis.
    """
    from scipy.ndimage import label as label_components

    nowhere = tuple(np.zeros(0, np.int64) for _ in range(3))
    box = _bounding_box(labels, organ_id)
    if box is None:
        return nowhere
    wall = np.isin(labels[box], [organ_id, *part_ids])
    # A hole has walls in all six directions; few voxels outside of holes have, so what follows looks at few.
    candidates = (labels[box] == 0) & _walled_in(wall)
    tight = _bounding_box(candidates.view(np.uint8), 1)
    if tight is None:
        return nowhere
    components, count = label_components(candidates[tight])
    start = np.array([span.start for span in tight])
    places = np.argwhere(components)
    leaking = np.zeros(count + 1, bool)
    for step in np.vstack([np.eye(3, dtype=int), -np.eye(3, dtype=int)]):
        # Walls on all sides keep candidates, and so their neighbours, inside the organ's box.
        there = tuple((places + start + step).T)
        leaking[components[tuple(places.T)][~wall[there] & ~candidates[there] & (labels[box][there] == 0)]] = True
    holes = places[~leaking[components[tuple(places.T)]]] + start
    return tuple(axis + span.start for axis, span in zip(holes.T, box, strict=True))


def _bounding_box(labels: npt.NDArray[np.uint8], wanted: int) -> tuple[slice, ...] | None:
    spans: list[slice] = []
    part = labels
    for axis in reversed(range(3)):  # the last axis first: it is the slowest in memory and cuts off most
        hit = np.flatnonzero(np.array([(cut == wanted).any() for cut in np.moveaxis(part, axis, 0)]))
        if not len(hit):
            return None
        span = slice(int(hit[0]), int(hit[-1]) + 1)
        part = part[(slice(None),) * axis + (span,)]
        spans.insert(0, span)
    return tuple(spans)


def _walled_in(wall: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Tells for each voxel whether a wall lies somewhere in each of the six directions."""
    result = np.ones(wall.shape, bool)
    for axis in range(3):
        result &= np.logical_or.accumulate(wall, axis)
        result &= np.flip(np.logical_or.accumulate(np.flip(wall, axis), axis), axis)
    return result
