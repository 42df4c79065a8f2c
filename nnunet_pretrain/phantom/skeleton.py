"""The unlabelled frame of the phantom: body wall, diaphragm, muscles and bones, in reference millimetres.

Axes and origin as in :mod:`nnunet_pretrain.phantom.anatomy`: x to the patient's right, y forward, z up, z = 0 at the
third lumbar vertebra.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nnunet_pretrain.phantom.shapes import Ellipsoid, FloatArray, Point, Shape, Tube

# Cross-section of the trunk by height: half width, half depth and centre (y) of the body cavity and of the outer
# border of the muscles. The subcutaneous fat of the individual is added outside.
_PROFILE = np.array(
    # z    cavity: width depth centre  muscle: width depth centre
    [
        [-220, 27, 46, -10, 150, 97, -4],
        [-170, 41, 57, -7, 153, 100, -4],
        [-130, 58, 62, 3, 149, 100, -4],
        [-95, 92, 75, 6, 144, 100, -3],
        [-40, 116, 80, 8, 137, 99, -3],
        [0, 121, 79, 8, 135, 99, -3],
        [60, 126, 81, 7, 138, 101, -3],
        [110, 130, 84, 5, 143, 103, -3],
        [160, 128, 84, 4, 143, 103, -3],
        [230, 120, 82, 3, 138, 100, -3],
    ],
    dtype=np.float64,
)


def trunk_profile(z_mm: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the trunk's cross-section by height.

    Args:
        z_mm: Reference heights, shape ``(n,)``.

    Returns:
        Shape ``(6, n)`` in mm: half width, half depth and centre of the cavity, then of the muscles' outer border.
    """
    columns = [np.interp(z_mm, _PROFILE[:, 0], _PROFILE[:, i]) for i in range(1, 7)]
    return np.asarray(columns, dtype=np.float32)


def rounded_box_level(u: FloatArray, v: FloatArray) -> FloatArray:
    """Return ``|u|^2.5 + |v|^2.5``: 1 on the border of a superellipse, whose body-like shape 2.5 gives."""
    return u * u * np.sqrt(np.abs(u)) + v * v * np.sqrt(np.abs(v))


def diaphragm_height(x: FloatArray, y: FloatArray) -> FloatArray:
    """Return the height z in mm of the diaphragm: two domes, the right one higher, falling off to the chest wall."""
    level = rounded_box_level(x / 131.0, (y - 4.0) / 87.0)
    right = 36.0 * np.exp(-(((x - 68.0) / 46.0) ** 2))
    left = 17.0 * np.exp(-(((x + 70.0) / 44.0) ** 2))
    return 96.0 + 0.32 * y * np.minimum(level, 1.0) + (58.0 + right + left) * np.sqrt(np.maximum(1.0 - level, 0.0))


def both_sides(shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
    """Return shapes of the right side together with their mirror images."""
    return shapes + tuple(shape.mirrored() for shape in shapes)


# Vertebrae from T8 to L5: height and centre (y) of the body.
VERTEBRAE: tuple[tuple[float, float], ...] = (
    (193, -60), (170, -59), (146, -57), (121, -53), (95, -48), (65, -43), (33, -39), (0, -36), (-33, -35), (-66, -38),
)  # fmt: skip


def _vertebra_bodies() -> tuple[Shape, ...]:
    # Two discs one above the other are closer to the drum of a vertebral body than one ellipsoid.
    return tuple(
        Ellipsoid((0, y, z + dz), (22.0 - 0.02 * z, 17.0 - 0.01 * z, 9.0))
        for z, y in VERTEBRAE
        for dz in (-6.0, 0.0, 6.0)
    )


def _vertebra_arches() -> tuple[Shape, ...]:
    arches: list[Shape] = []
    for z, y in VERTEBRAE:
        back = y - 20.0
        right: tuple[Shape, ...] = (
            Tube(((14, back + 6, z + 3), (15, back - 6, z), (0, back - 17, z - 6)), (5.0, 5.5, 4.5)),
            Tube(((15, back - 5, z + 1), (38, back - 9, z + 2)), (4.5, 3.5)),
        )
        arches += both_sides(right)
        arches.append(Tube(((0, back - 16, z - 6), (0, back - 34, z - 12)), (4.0, 4.0)))
    return tuple(arches)


def _rib(number: int) -> Shape:
    """Return the right rib of a number (5..12): an arc in the chest wall that falls towards the front."""
    z_back = 193.0 + 24.0 * (8 - number)
    end = {12: 75.0, 11: 100.0, 10: 125.0}.get(number, 140.0)
    angle = np.radians(np.linspace(14.0, end, 12))
    x = 134.5 * np.abs(np.sin(angle)) ** 0.8
    y = 3.0 - 88.0 * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** 0.8
    z = z_back + 4.0 - 88.0 * (angle / np.pi) ** 1.1
    return Tube(tuple((float(a), float(b), float(c)) for a, b, c in zip(x, y, z, strict=True)), (4.2,))


def _iliac_wing() -> tuple[Shape, ...]:
    """Return the right iliac wing: a plate made of spokes from the acetabulum's roof to the crest."""
    crest = Tube(
        ((112, 44, -80), (117, 28, -58), (115, 8, -43), (107, -14, -37), (93, -34, -40), (76, -52, -50), (58, -66, -70),
         (47, -72, -92)),
        (5.0,),
    )  # fmt: skip
    tops = crest.curve()[0][::2]
    foot = np.array([86.0, 14.0, -140.0]) + np.linspace(0, 1, len(tops))[:, None] * np.array([-30.0, -64.0, 22.0])
    spokes = (Tube((_as_point(a), _as_point(b)), (8.0, 5.0)) for a, b in zip(foot, tops, strict=True))
    return (*spokes, crest)


def _as_point(values: NDArray[np.float64]) -> Point:
    return (float(values[0]), float(values[1]), float(values[2]))


SPINE_DISCS: tuple[Shape, ...] = (
    Tube(tuple((0.0, y, z) for z, y in VERTEBRAE), (18.0,)),
    Tube(((0, -38, -66), (0, -46, -92)), (19.0, 19.0)),
)
SPINE: tuple[Shape, ...] = _vertebra_bodies() + _vertebra_arches()
SPINAL_CANAL: tuple[Shape, ...] = (Tube((*((0.0, y - 25.0, z) for z, y in VERTEBRAE), (0.0, -72.0, -105.0)), (8.0,)),)
SACRUM: tuple[Shape, ...] = (
    Tube(
        ((0, -50, -92), (0, -60, -115), (0, -73, -138), (0, -83, -158), (0, -83, -175), (0, -75, -190)),
        (19, 18, 14, 11, 8, 5),
    ),
    *both_sides((Ellipsoid((29, -58, -106), (23, 15, 21)),)),
)
RIBS: tuple[Shape, ...] = both_sides(tuple(_rib(number) for number in range(5, 13)))
COSTAL_CARTILAGE: tuple[Shape, ...] = both_sides(
    (
        Tube(((121, 42, 100), (100, 64, 103), (70, 82, 118), (38, 91, 142), (12, 93, 170)), (4.5,)),
        Tube(((108, 58, 135), (70, 83, 142), (25, 93, 170)), (4.5,)),
    )
)
STERNUM: tuple[Shape, ...] = (Tube(((0, 92, 150), (0, 94, 172), (0, 94, 240)), (4, 8, 12)),)
HIP_BONE: tuple[Shape, ...] = both_sides(
    (
        *_iliac_wing(),
        Ellipsoid((82, -1, -164), (30, 32, 30)),
        Tube(((74, 24, -156), (46, 48, -164), (10, 54, -178)), (9, 8, 9)),
        Tube(((9, 52, -182), (32, 20, -215)), (8, 6)),
        Tube(((72, -22, -170), (66, -42, -195), (55, -32, -228)), (14, 14, 12)),
    )
)
HIP_SOCKET: tuple[Shape, ...] = both_sides(
    (Ellipsoid((87, 0, -166), (25, 25, 25)), Ellipsoid((118, -2, -178), (30, 30, 32)))
)
SEMINAL_VESICLES: tuple[Shape, ...] = both_sides((Ellipsoid((17, -6, -167), (17, 7, 8), (0, 15, 20)),))
GLUTEAL_CLEFT: tuple[Shape, ...] = (Tube(((0, -104, -150), (0, -98, -180), (0, -88, -230)), (6, 11, 16)),)
MUSCLES: tuple[Shape, ...] = both_sides(
    (
        Tube(
            ((26, -44, 45), (36, -44, 0), (44, -36, -50), (54, -12, -100), (68, 24, -145), (85, 14, -195)),
            (9, 15, 20, 18, 15, 13),
        ),
        Tube(((64, -66, 55), (70, -64, 10), (76, -60, -40)), (9, 11, 10)),
        Tube(((9, -23, 25), (11, -22, 75), (9, -22, 110), (6, -14, 140)), (5, 5, 5, 4)),
        Tube(((70, -50, -130), (30, -68, -150)), (10, 7)),
    )
)
