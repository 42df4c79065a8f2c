"""Surface Dice against all pairwise distances, distance transforms, its authors' package, and by hand."""

import math

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt, gaussian_filter

from nnunet_pretrain.training.surface_distance import surface_dice

BOX = np.zeros((12, 12, 12), dtype=bool)
BOX[2:7, 2:7, 2:7] = True


def shifted(steps, axis=0):
    return np.roll(BOX, steps, axis=axis)


def box_nsd(shift, spacing, tolerance):
    """Surface Dice of `BOX` and itself shifted along axis 0, from all distances between surface elements."""
    elements, areas = [], []
    for mask in (BOX, shifted(shift)):
        cubes = np.lib.stride_tricks.sliding_window_view(np.pad(mask, 1), (2, 2, 2)).astype(int)
        where = np.argwhere((cubes.sum((3, 4, 5)) % 8) > 0)
        faces = np.stack([np.abs(np.diff(cubes, axis=3 + a)).sum((3, 4, 5)) for a in range(3)], -1)[tuple(where.T)]
        area = np.linalg.norm(faces / 4 * np.prod(spacing) / np.array(spacing), axis=1)
        elements.append(where * np.array(spacing))
        areas.append(area)
    distances = np.linalg.norm(elements[0][:, None] - elements[1][None], axis=-1)
    near = [distances.min(1) <= tolerance, distances.min(0) <= tolerance]
    return sum((a * n).sum() for a, n in zip(areas, near, strict=True)) / sum(a.sum() for a in areas)


def test_surface_dice_of_identical_and_shifted_boxes():
    assert surface_dice(BOX, BOX, (1, 1, 1), 1e-3) == 1
    assert surface_dice(BOX, shifted(1), (1, 1, 1), 1) == 1
    assert surface_dice(BOX, shifted(1), (1.0000002, 1, 1), 1) == 1  # voxel sizes in files are single precision
    assert surface_dice(BOX, shifted(1), (1.01, 1, 1), 1) < 1
    assert surface_dice(BOX, shifted(1, axis=2), (3, 3, 0.5), 1) == 1
    assert surface_dice(BOX, shifted(1, axis=0), (3, 3, 0.5), 1) < 1
    assert surface_dice(BOX, shifted(2, axis=2), (3, 3, 0.5), 1) == 1
    assert surface_dice(BOX[:, :, 2:], BOX[:, :, 2:], (1, 1, 1), 1) == 1  # cut by the edge of the image


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.7, 0.7, 2.5), (3, 1, 0.5)])
@pytest.mark.parametrize(("shift", "tolerance"), [(1, 0.5), (3, 1.0), (3, 2.2), (4, 3.0)])
def test_surface_dice_is_that_of_all_pairwise_distances(spacing, shift, tolerance):
    expected = box_nsd(shift, spacing, tolerance)
    assert surface_dice(BOX, shifted(shift), spacing, tolerance) == pytest.approx(expected, abs=1e-12)
    assert (expected < 1) == (shift * spacing[0] > tolerance)


def test_surface_dice_of_a_plane_shifted_by_three_voxels():
    """Two slabs as wide as the array: one face of each is further than 1 mm, but for its rim, and a bit of a side."""
    slabs = np.zeros((2, 40, 100, 100), dtype=bool)
    slabs[0, 5:20] = slabs[1, 5:23] = True
    face, rim = 100 * 100, 4 * 100
    total = 2 * 2 * face + (15 + 18) * rim
    near = 2 * face + (15 + 15 + 1) * rim
    assert surface_dice(slabs[0], slabs[1], (1, 1, 1), 1) == pytest.approx(near / total, abs=0.02)


def test_surface_dice_of_empty_masks_and_bad_arguments():
    empty = np.zeros_like(BOX)
    assert math.isnan(surface_dice(empty, empty, (1, 1, 1)))
    assert surface_dice(BOX, empty, (1, 1, 1)) == surface_dice(empty, BOX, (1, 1, 1)) == 0
    assert math.isnan(surface_dice(BOX, BOX, (1, 1, 1), 1.0, ~BOX))
    with pytest.raises(ValueError, match="one shape"):
        surface_dice(BOX, BOX[1:], (1, 1, 1))
    with pytest.raises(ValueError, match="must be positive"):
        surface_dice(BOX, BOX, (1, 1, 1), 0)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.8, 0.8, 2.5), (3, 0.7, 0.7)])
def test_surface_dice_agrees_with_the_authors_package(spacing):
    package = pytest.importorskip("surface_distance")
    grid = np.stack(np.meshgrid(*[np.arange(48) for _ in range(3)], indexing="ij"), -1) * np.array(spacing)
    centre = 23.5 * np.array(spacing)
    for radii in ((15, 15, 15), (14, 9, 6), (5, 12, 12)):
        masks = [((((grid - centre - move) / radii) ** 2).sum(-1) < 1) for move in (0, np.array([1.1, 0.4, -0.7]))]
        for tolerance in (1, 2):
            theirs = package.compute_surface_dice_at_tolerance(
                package.compute_surface_distances(*masks, spacing), tolerance
            )
            assert surface_dice(*masks, spacing, tolerance) == pytest.approx(theirs, abs=0.02)


@pytest.mark.parametrize("tolerance", [0.9, 2.0])
def test_surface_dice_of_blobs_equals_distance_transforms(tolerance):
    rng = np.random.default_rng(2)
    spacing = (0.8, 1.1, 2.0)
    masks = [gaussian_filter(rng.normal(size=(24, 20, 16)), 2) > 0.02 for _ in range(2)]
    borders, areas = [], []
    for mask in masks:
        cubes = np.lib.stride_tricks.sliding_window_view(np.pad(mask, 1), (2, 2, 2)).astype(int)
        borders.append(cubes.sum((3, 4, 5)) % 8 > 0)
        faces = np.stack([np.abs(np.diff(cubes, axis=3 + a)).sum((3, 4, 5)) for a in range(3)], -1)
        areas.append(np.linalg.norm(faces / 4 * np.prod(spacing) / np.array(spacing), axis=-1))
    near = [distance_transform_edt(~other, sampling=spacing) <= tolerance for other in borders[::-1]]
    expected = sum(a[b & n].sum() for a, b, n in zip(areas, borders, near, strict=True))
    expected /= sum(a.sum() for a in areas)
    assert 0.05 < expected < 0.95
    assert surface_dice(*masks, spacing, tolerance) == pytest.approx(expected, abs=1e-12)
