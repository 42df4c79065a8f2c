"""The canvas: a voxel grid onto which a patient's organs are drawn with partial volume at their borders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from nnunet_pretrain.phantom.anatomy import AIR_HU, FAT_HU, MUSCLE_HU, PHASES, STRUCTURES, Organ
from nnunet_pretrain.phantom.patient import Patient
from nnunet_pretrain.phantom.shapes import Bounds, FloatArray, Shape, smooth_minimum
from nnunet_pretrain.phantom.skeleton import diaphragm_height, rounded_box_level, trunk_profile

Box = tuple[slice, slice, slice]
_FAR = np.float32(1e4)
_SKIN_HU = 5.0
_SLAB_VOXELS = 4_000_000


class Canvas:
    """Image and labels of one patient on a grid whose axes run along RAS+.

    Attributes:
        image: HU, float32, shape ``(x, y, z)``.
        labels: uint8, same shape; 0, or the index in STRUCTURES + 1.
    """

    def __init__(
        self, patient: Patient, axes_mm: Sequence[NDArray[np.float64]], phase: str, oral_contrast_hu: float
    ) -> None:
        """Prepare an empty grid.

        Args:
            patient: Whom to draw.
            axes_mm: World coordinates in mm of the voxel centres along x, y and z.
            phase: One of PHASES.
            oral_contrast_hu: Added to the lumen of stomach and small bowel.
        """
        self._patient = patient
        self._world = [np.asarray(axis, dtype=np.float32) for axis in axes_mm]
        self._phase = PHASES.index(phase)
        self._oral = oral_contrast_hu
        self._spacing = [float(axis[1] - axis[0]) if len(axis) > 1 else 1.0 for axis in axes_mm]
        self._voxel = float(np.prod(self._spacing)) ** (1 / 3)
        # reference -> world: x_world = turn @ (scale * x_ref) + shift
        self._to_world = Rotation.from_euler("xyz", patient.turn, degrees=True).as_matrix() * np.asarray(patient.scale)
        self._coordinates = self._reference_coordinates()
        shape = tuple(len(axis) for axis in axes_mm)
        self.image = np.full(shape, AIR_HU, dtype=np.float32)
        self.labels = np.zeros(shape, dtype=np.uint8)
        # Where the cavity's fat is free. Not read off the image: labels must not depend on densities.
        self._free_fat = np.zeros(shape, dtype=bool)

    def draw(self) -> None:
        """Draw the table, the body wall and all organs of the patient."""
        self._draw_table()
        nx, ny, nz = self.image.shape
        step = max(1, _SLAB_VOXELS // (ny * nz))
        for start in range(0, nx, step):
            self._draw_wall((slice(start, min(start + step, nx)), slice(0, ny), slice(0, nz)))
        for organ in self._patient.organs:
            self._draw_organ(organ)

    def _reference_coordinates(self) -> list[FloatArray]:
        """Return the reference position x, y, z (mm) of every voxel and note the largest deformation."""
        inverse = np.linalg.inv(self._to_world)
        wx, wy, wz = self._world
        offset = inverse @ np.asarray(self._patient.shift)
        coordinates = []
        self._largest_sway = 0.0
        for i, row in enumerate(inverse.astype(np.float32)):
            field = self._patient.sway.evaluate(i, wx, wy, wz)
            self._largest_sway = max(self._largest_sway, float(field.max()), -float(field.min()))
            field += (row[0] * wx - np.float32(offset[i]))[:, None, None]
            field += (row[1] * wy)[None, :, None] + (row[2] * wz)[None, None, :]
            coordinates.append(field)
        # The wall's cross-section changes so slowly with height that one height per slice will do.
        self._profile = trunk_profile(inverse[2, 2] * wz.astype(np.float64) - offset[2])
        return coordinates

    def _box(self, bounds: Bounds, margin: float) -> Box:
        """Return the voxels that may lie within a margin (mm) of a box given in reference mm."""
        low, high = bounds[0] - margin - self._largest_sway, bounds[1] + margin + self._largest_sway
        centre = self._to_world @ ((low + high) / 2) + np.asarray(self._patient.shift)
        half = np.abs(self._to_world) @ ((high - low) / 2)
        slices = []
        for axis, step, middle, reach in zip(self._world, self._spacing, centre, half, strict=True):
            first = int(np.floor((middle - reach - axis[0]) / step))
            last = int(np.ceil((middle + reach - axis[0]) / step))
            start = min(max(first, 0), len(axis))
            slices.append(slice(start, max(start, min(last + 1, len(axis)))))
        return (slices[0], slices[1], slices[2])

    def _at(self, box: Box) -> tuple[FloatArray, FloatArray, FloatArray]:
        x, y, z = (coordinate[box] for coordinate in self._coordinates)
        return x, y, z

    def _cover(self, distance: FloatArray) -> FloatArray:
        """Return the share (0..1) of each voxel that lies inside a surface."""
        return np.clip(0.5 - distance / np.float32(self._voxel), 0.0, 1.0)

    def _mix(self, box: Box, share: FloatArray, hu: float | FloatArray) -> None:
        view = self.image[box]
        view += share * (hu - view)

    def _distance(self, shapes: tuple[Shape, ...], blend_mm: float, margin: float) -> tuple[Box, FloatArray]:
        """Return a box around a union of shapes and the signed distance (mm) to their surface in it."""
        pieces = [(piece, piece.bounds()) for shape in shapes for piece in shape.pieces()]
        low = np.min([bounds[0] for _, bounds in pieces], axis=0)
        high = np.max([bounds[1] for _, bounds in pieces], axis=0)
        whole = self._box((low, high), margin)
        distance = np.full([axis.stop - axis.start for axis in whole], _FAR, dtype=np.float32)
        if distance.size:
            for piece, bounds in pieces:
                box = self._box(bounds, margin)
                inner = tuple(slice(b.start - w.start, b.stop - w.start) for b, w in zip(box, whole, strict=True))
                if all(axis.stop > axis.start for axis in box):
                    distance[inner] = smooth_minimum(distance[inner], piece.distance(*self._at(box)), blend_mm)
        return whole, distance

    def _wall_distance(self, box: Box, first: int, extra_mm: float = 0.0) -> FloatArray:
        """Return the signed distance (mm) to the cavity's (first = 0) or the muscles' (3) outline, grown by fat."""
        width, depth, centre = (self._profile[first + i][box[2]] for i in range(3))
        width, depth = width + extra_mm, depth + 0.75 * extra_mm
        x, y, _ = self._at(box)
        level = rounded_box_level(x / width, (y - centre) / depth)
        return (level - 1.0) * (np.sqrt(width * depth) / np.float32(2.5))

    def _clip(self, name: str, box: Box) -> FloatArray:
        """Return the signed distance (mm) to one of the regions that organs are confined to."""
        cavity = self._wall_distance(box, 0)
        if name == "cavity":
            return cavity
        x, y, z = self._at(box)
        above = (z - diaphragm_height(x, y)) * np.float32(0.7)
        if name == "abdomen":
            return np.maximum(cavity, above)
        if name == "thorax":
            return np.maximum(cavity + 1.0, 2.5 - above)
        raise ValueError(f"unknown clip region {name!r}: expected 'cavity', 'abdomen' or 'thorax'")

    def _draw_table(self) -> None:
        """Draw the curved table top straight into the world: the patient's pose and deformation do not bend it."""
        back = (104.0 + 0.75 * self._patient.fat_mm) * self._patient.scale[1] + 5.0 - self._patient.shift[1]
        wx, wy, _ = self._world
        depth = wy[None, :] + np.float32(back) - (wx[:, None] ** 2) / 1100.0
        beside = np.abs(wx)[:, None] - 190.0
        outer = self._cover(np.maximum(np.abs(depth + 9.0) - 9.0, beside))
        inner = self._cover(np.maximum(np.abs(depth + 9.0) - 5.5, beside + 3.5))
        flat = AIR_HU + outer * (20.0 - AIR_HU)
        self.image[...] = (flat + inner * (-920.0 - flat))[:, :, None]

    def _draw_wall(self, box: Box) -> None:
        """Draw skin, fat, muscles with fat planes, the fat of the cavity and the diaphragm."""
        x, y, z = self._at(box)
        wx, wy, wz = (axis[part] for axis, part in zip(self._world, box, strict=True))
        mottle = self._patient.mottle.evaluate(0, wx, wy, wz)
        fat = np.float32(FAT_HU) + 7.0 * mottle
        skin = self._wall_distance(box, 3, self._patient.fat_mm)
        # A shallow furrow along the spine makes the back a back.
        skin += 5.0 * np.exp(-((x / 14.0) ** 2)) * (y < 0)
        self._mix(box, self._cover(skin), _SKIN_HU)
        self._mix(box, self._cover(skin + 2.5), fat)
        planes = np.exp(-((self._patient.planes.evaluate(0, wx, wy, wz) / 0.1) ** 2)) * np.float32(0.8)
        self._mix(box, self._cover(self._wall_distance(box, 3)), MUSCLE_HU + planes * (FAT_HU - MUSCLE_HU))
        cavity = self._wall_distance(box, 0)
        self._mix(box, self._cover(cavity), fat)
        sheet = np.abs((z - diaphragm_height(x, y)) * np.float32(0.7) - 1.5) - 1.5
        self._mix(box, self._cover(np.maximum(cavity, sheet)), MUSCLE_HU)
        self._free_fat[box] = (cavity < 0) & (sheet > 0)

    def _draw_organ(self, organ: Organ) -> None:
        margin = organ.blend_mm + organ.halo_mm + self._voxel
        box, distance = self._distance(organ.parts, organ.blend_mm, margin)
        if not distance.size:
            return
        if organ.carve:
            distance = self._carved(box, distance, organ)
        halo = distance - np.float32(organ.halo_mm)
        if organ.clip:
            region = self._clip(organ.clip, box)
            distance, halo = np.maximum(distance, region), np.maximum(halo, region)
        if organ.above_y is not None:
            distance = np.maximum(distance, np.float32(organ.above_y) - self._at(box)[1])
        if organ.halo_mm:
            self._mix(box, self._cover(halo), FAT_HU)
            self.labels[box][halo < 0] = 0
            self._free_fat[box][halo < 0] = True
        self._fill(box, distance, organ)

    def _carved(self, box: Box, distance: FloatArray, organ: Organ) -> FloatArray:
        """Return the distance with the organ's carving shapes taken away, seams rounded like those of its parts."""
        hollow_box, hollow = self._distance(organ.carve, organ.blend_mm, organ.blend_mm + organ.halo_mm + self._voxel)
        common = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(box, hollow_box, strict=True)]
        if any(axis.stop <= axis.start for axis in common):
            return distance
        mine = tuple(slice(c.start - b.start, c.stop - b.start) for c, b in zip(common, box, strict=True))
        theirs = tuple(slice(c.start - b.start, c.stop - b.start) for c, b in zip(common, hollow_box, strict=True))
        distance[mine] = -smooth_minimum(-distance[mine], hollow[theirs], organ.blend_mm)
        return distance

    def _fill(self, box: Box, distance: FloatArray, organ: Organ) -> None:
        """Paint an organ and its core where it is allowed, and label it."""
        labels = self.labels[box]
        share, inside = self._cover(distance), distance < 0
        if organ.inside or organ.over_fat:
            hosts = [STRUCTURES.index(name) + 1 for name in organ.inside]
            allowed = np.isin(labels, hosts)
            if organ.over_fat:
                allowed |= self._free_fat[box]
            share, inside = share * allowed, inside & allowed
        self._mix(box, share, organ.hu[self._phase])
        if organ.core_mm:
            core_hu: float | FloatArray = organ.core_hu[self._phase] + (self._oral if organ.enteric else 0.0)
            if organ.texture_hu:
                axes = [axis[part] for axis, part in zip(self._world, box, strict=True)]
                core_hu = core_hu + np.float32(organ.texture_hu) * self._patient.mottle.evaluate(0, *axes)
            self._mix(box, np.minimum(share, self._cover(distance + np.float32(organ.core_mm))), core_hu)
        self._free_fat[box][inside] = False
        labels[inside] = STRUCTURES.index(organ.name) + 1 if organ.name in STRUCTURES else 0
