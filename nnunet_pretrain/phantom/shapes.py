"""Solid shapes of the phantom in reference millimetres: ellipsoids, and tubes along smooth curves.

Every shape breaks up into *pieces*; a piece knows its bounding box and an approximate signed distance to its surface
(mm, negative inside). A signed distance, and not a mask, is what lets the canvas blend borders as partial volume,
merge parts smoothly and find walls ("3 mm below the surface").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation

Point = tuple[float, float, float]
FloatArray = NDArray[np.float32]
Bounds = tuple[NDArray[np.float64], NDArray[np.float64]]


def _point(values: Sequence[float] | NDArray[np.float64]) -> Point:
    return (float(values[0]), float(values[1]), float(values[2]))


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid.

    Attributes:
        center: Centre (x, y, z) in mm.
        radii: Half axes in mm.
        turn: Rotation about x, y and z in degrees.
    """

    center: Point
    radii: Point
    turn: Point = (0.0, 0.0, 0.0)

    def _rotation(self) -> NDArray[np.float64]:
        return Rotation.from_euler("xyz", self.turn, degrees=True).as_matrix()

    def pieces(self) -> tuple[Ellipsoid, ...]:
        """Return the shape itself: it is evaluated as a whole."""
        return (self,)

    def bounds(self) -> Bounds:
        """Return the lowest and highest corner of the bounding box in mm."""
        half = np.sqrt(((self._rotation() * np.asarray(self.radii)) ** 2).sum(axis=1))
        return np.asarray(self.center) - half, np.asarray(self.center) + half

    def distance(self, x: FloatArray, y: FloatArray, z: FloatArray) -> FloatArray:
        """Return the approximate signed distance in mm to points given by three arrays of one shape."""
        offset = [x - self.center[0], y - self.center[1], z - self.center[2]]
        if any(self.turn):
            rotation = self._rotation().T.tolist()
            offset = [row[0] * offset[0] + row[1] * offset[1] + row[2] * offset[2] for row in rotation]
        scaled = [axis / radius for axis, radius in zip(offset, self.radii, strict=True)]
        level = np.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2)
        slopes = [axis / radius for axis, radius in zip(scaled, self.radii, strict=True)]
        gradient = np.sqrt(slopes[0] ** 2 + slopes[1] ** 2 + slopes[2] ** 2)
        # The small terms keep the centre itself, where both vanish, inside.
        return (level + 1e-6) * (level - 1.0) / (gradient + 1e-9)

    def moved(self, shift: Point, scale: float, about: Point) -> Ellipsoid:
        """Return a copy scaled about a point, then shifted (mm)."""
        return replace(
            self,
            center=_moved(self.center, shift, scale, about),
            radii=_point([radius * scale for radius in self.radii]),
        )

    def mirrored(self) -> Ellipsoid:
        """Return the copy on the other side of the body (x negated)."""
        x, y, z = self.center
        return replace(self, center=(-x, y, z), turn=(self.turn[0], -self.turn[1], -self.turn[2]))


@dataclass(frozen=True)
class Segment:
    """A straight round piece whose radius changes linearly between its two ends."""

    start: Point
    end: Point
    start_radius: float
    end_radius: float

    def bounds(self) -> Bounds:
        """Return the lowest and highest corner of the bounding box in mm."""
        ends = np.array([self.start, self.end])
        radius = max(self.start_radius, self.end_radius)
        return ends.min(axis=0) - radius, ends.max(axis=0) + radius

    def distance(self, x: FloatArray, y: FloatArray, z: FloatArray) -> FloatArray:
        """Return the approximate signed distance in mm to points given by three arrays of one shape."""
        ax, ay, az = (b - a for a, b in zip(self.start, self.end, strict=True))
        px, py, pz = x - self.start[0], y - self.start[1], z - self.start[2]
        t = np.clip((px * ax + py * ay + pz * az) / max(ax * ax + ay * ay + az * az, 1e-6), 0.0, 1.0)
        gap = np.sqrt((px - t * ax) ** 2 + (py - t * ay) ** 2 + (pz - t * az) ** 2)
        return gap - (self.start_radius + t * (self.end_radius - self.start_radius))


@dataclass(frozen=True)
class Tube:
    """A tube along a smooth curve through given points.

    Attributes:
        points: Points of the centre line in mm.
        radii: Radius in mm at each point; a single value holds for all.
        ripple: Relative amplitude of a periodic narrowing (haustra of the colon).
        ripple_mm: Length of one period in mm.
    """

    points: tuple[Point, ...]
    radii: tuple[float, ...]
    ripple: float = 0.0
    ripple_mm: float = 28.0

    def curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the sampled centre line ``(n, 3)`` and its radii ``(n,)`` in mm."""
        knots = np.asarray(self.points, dtype=np.float64)
        radii = np.broadcast_to(np.asarray(self.radii, dtype=np.float64), (len(knots),))
        along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(knots, axis=0), axis=1))])
        if len(knots) < 3:
            return knots, np.array(radii)
        # Finer than the radius adds nothing visible, finer than a quarter period would lose the ripple.
        step = min(max(5.0, 0.8 * float(radii.mean())), self.ripple_mm / 4 if self.ripple else np.inf)
        at = np.linspace(0.0, along[-1], max(2, int(np.ceil(along[-1] / step)) + 1))
        centre = CubicSpline(along, knots, bc_type="natural")(at)
        swell = 1.0 + self.ripple * np.sin(2 * np.pi * at / self.ripple_mm)
        return centre, np.interp(at, along, radii) * swell

    def pieces(self) -> tuple[Segment, ...]:
        """Return the straight segments that approximate the tube."""
        centre, radii = self.curve()
        return tuple(
            Segment(_point(centre[i]), _point(centre[i + 1]), float(radii[i]), float(radii[i + 1]))
            for i in range(len(centre) - 1)
        )

    def moved(self, shift: Point, scale: float, about: Point) -> Tube:
        """Return a copy scaled about a point, then shifted (mm)."""
        return replace(
            self,
            points=tuple(_moved(point, shift, scale, about) for point in self.points),
            radii=tuple(radius * scale for radius in self.radii),
        )

    def mirrored(self) -> Tube:
        """Return the copy on the other side of the body (x negated)."""
        return replace(self, points=tuple((-x, y, z) for x, y, z in self.points))


Shape = Ellipsoid | Tube
Piece = Ellipsoid | Segment


def _moved(point: Point, shift: Point, scale: float, about: Point) -> Point:
    return _point([a + scale * (p - a) + s for p, s, a in zip(point, shift, about, strict=True)])


def shapes_center(shapes: Sequence[Shape]) -> Point:
    """Return the middle of several shapes in mm, judged by the points that define them."""
    points = np.array([point for s in shapes for point in (s.points if isinstance(s, Tube) else (s.center,))])
    return _point((points.min(axis=0) + points.max(axis=0)) / 2)


def smooth_minimum(a: FloatArray, b: FloatArray, blend_mm: float) -> FloatArray:
    """Return the union of two signed distances whose seam is rounded over ``blend_mm`` (0: sharp)."""
    if blend_mm <= 0:
        return np.minimum(a, b)
    overlap = np.maximum(blend_mm - np.abs(a - b), 0.0)
    return np.minimum(a, b) - overlap * overlap / (4.0 * blend_mm)
