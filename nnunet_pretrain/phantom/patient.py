"""Individuals: random sizes, poses, deformations, organ positions, bowel loops, gas and lesions.

Everything random about the anatomy is drawn here, in reference millimetres and before any voxel exists: the same
individual can then be drawn at any resolution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from nnunet_pretrain.phantom import anatomy
from nnunet_pretrain.phantom.anatomy import LESION_KINDS, LesionKind, Organ
from nnunet_pretrain.phantom.shapes import Ellipsoid, FloatArray, Point, Shape, Tube, shapes_center
from nnunet_pretrain.phantom.skeleton import rounded_box_level

_GAS: anatomy.Density = (-960.0, -960.0, -960.0)
_BOWEL_WALL: anatomy.Density = (40.0, 85.0, 90.0)


@dataclass(frozen=True)
class Waves:
    """A smooth random field: a sum of plane waves, one row of amplitudes and phases per component.

    Attributes:
        vectors: Wave vectors in rad/mm, shape ``(waves, 3)``.
        amplitudes: Shape ``(components, waves)``.
        phases: Shape ``(components, waves)``.
    """

    vectors: NDArray[np.float64]
    amplitudes: NDArray[np.float64]
    phases: NDArray[np.float64]

    def evaluate(self, component: int, x: FloatArray, y: FloatArray, z: FloatArray) -> FloatArray:
        """Return one component on the grid of three coordinate vectors (mm), shape ``(len(x), len(y), len(z))``."""
        kx, ky, kz = self.vectors.T
        plane = np.multiply.outer(x, kx)[:, None, :] + np.multiply.outer(y, ky)[None] + self.phases[component]
        # cos(p + q) = cos p cos q - sin p sin q turns the sum of waves into one matrix product.
        in_plane = np.concatenate([np.cos(plane), -np.sin(plane)], axis=-1).astype(np.float32)
        upright = np.multiply.outer(kz, z)
        amplitude = self.amplitudes[component][:, None]
        along = np.concatenate([amplitude * np.cos(upright), amplitude * np.sin(upright)]).astype(np.float32)
        return in_plane @ along


@dataclass(frozen=True)
class Patient:
    """One individual.

    Attributes:
        organs: What to draw, in drawing order.
        scale: Size relative to the reference along x, y and z.
        turn: Pose: rotation about x, y and z in degrees.
        shift: Pose: displacement in mm.
        fat_mm: Thickness of the subcutaneous fat at the flanks.
        sway: Deformation of the anatomy in mm, three components.
        mottle: Pattern of uneven fat and stool, one component of about unit size.
        planes: The same, coarser; its zeros are the planes of fat between muscles.
    """

    organs: tuple[Organ, ...]
    scale: Point
    turn: Point
    shift: Point
    fat_mm: float
    sway: Waves
    mottle: Waves
    planes: Waves


def draw_patient(rng: np.random.Generator) -> Patient:
    """Return a random individual."""
    size = rng.uniform(0.9, 1.04)
    scale = size * rng.uniform(0.96, 1.04, size=3)
    turn = rng.normal(0, (1.5, 1.5, 3.0))
    shift = rng.normal(0, (4.0, 4.0, 4.0))
    long_waves = _draw_waves(rng, components=3, count=6, wavelength=(160, 380), size=4.0)
    short_waves = _draw_waves(rng, components=3, count=8, wavelength=(45, 90), size=1.3)
    return Patient(
        organs=_draw_organs(rng),
        scale=_point(scale),
        turn=_point(turn),
        shift=_point(shift),
        fat_mm=float(rng.uniform(8, 36)),
        sway=Waves(*(np.concatenate(pair, axis=axis) for pair, axis in _pairs(long_waves, short_waves))),
        mottle=_draw_waves(rng, components=1, count=10, wavelength=(22, 70), size=1.0),
        planes=_draw_waves(rng, components=1, count=8, wavelength=(60, 160), size=1.0),
    )


def _point(values: NDArray[np.float64]) -> Point:
    return (float(values[0]), float(values[1]), float(values[2]))


def _pairs(a: Waves, b: Waves) -> list[tuple[tuple[NDArray[np.float64], NDArray[np.float64]], int]]:
    return [((a.vectors, b.vectors), 0), ((a.amplitudes, b.amplitudes), 1), ((a.phases, b.phases), 1)]


def _draw_waves(
    rng: np.random.Generator, components: int, count: int, wavelength: tuple[float, float], size: float
) -> Waves:
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    vectors = directions * (2 * np.pi / rng.uniform(*wavelength, size=(count, 1)))
    amplitudes = rng.uniform(0.5, 1.5, size=(components, count)) * size * np.sqrt(2.0 / count)
    return Waves(vectors, amplitudes, rng.uniform(0, 2 * np.pi, size=(components, count)))


def _draw_organs(rng: np.random.Generator) -> tuple[Organ, ...]:
    """Return everything to draw: the moved reference organs, each followed by what lies inside it."""
    lesions = {kind.name: _lesion_hosts(rng, kind) for kind in LESION_KINDS}
    drawn: list[Organ] = []
    abdomen = (*_draw_bowel(rng), *anatomy.ABDOMEN, *anatomy.PELVIS, *anatomy.VESSELS)
    for organ in (*anatomy.FRAME, *abdomen, *anatomy.BONES):
        missing = rng.random() < organ.absent
        moved = _vary(rng, organ)
        extras = _draw_gas(rng, moved)
        if organ.name in ("lung_left", "lung_right"):
            extras += _draw_lung_vessels(rng, moved)
        for kind in LESION_KINDS:
            extras += [_draw_lesion(rng, kind, moved) for host in lesions[kind.name] if host == organ.name]
        if not missing:
            drawn += [moved, *extras]
    return tuple(drawn)


def _vary(rng: np.random.Generator, organ: Organ) -> Organ:
    """Return the organ displaced, resized and of slightly different density."""
    shift = _point(rng.normal(0, 1, size=3).clip(-2, 2) * organ.shift_mm)
    scale = 1 + float(np.clip(rng.normal(), -2, 2)) * organ.size_sd
    brighter = rng.normal(0, 0.05)
    middle = shapes_center(organ.parts)
    native, arterial, portal = (value + brighter * max(abs(value), 50.0) for value in organ.hu)
    return replace(
        organ,
        hu=(native, arterial, portal),
        parts=tuple(part.moved(shift, scale, middle) for part in organ.parts),
        carve=tuple(part.moved(shift, scale, middle) for part in organ.carve),
    )


def _draw_gas(rng: np.random.Generator, organ: Organ) -> list[Organ]:
    """Return a hollow organ's gas: stretches of the lumen in front of a fluid level (the patient lies supine)."""
    if organ.gas <= 0:
        return []
    pockets = []
    for tube in organ.parts:
        centre, radii = tube.curve() if isinstance(tube, Tube) else (np.empty((0, 3)), np.empty(0))
        stretch = len(centre) if organ.gas >= 1 else 9
        for start in range(0, len(centre) - 2, stretch):
            part = slice(start, start + stretch + 1)
            y, radius = float(centre[part, 1].mean()), float(radii[part].mean())
            level = y + radius * rng.uniform(-0.9, 0.7)
            if rng.random() < organ.gas and len(centre[part]) > 2:
                points = tuple(_point(point) for point in centre[part])
                lumen = tuple(float(r) for r in np.maximum(radii[part] - organ.core_mm, 1.0))
                pockets.append(Organ(organ.name, _GAS, (Tube(points, lumen),), inside=(organ.name,), above_y=level))
    return pockets


def _draw_lung_vessels(rng: np.random.Generator, lung: Organ) -> list[Organ]:
    side = np.sign(shapes_center(lung.parts)[0])
    ends = np.stack([rng.uniform(40, 120, 16) * side, rng.uniform(-75, 70, 16), rng.uniform(90, 190, 16)], axis=1)
    hilum = np.array([34.0 * side, -8.0, 225.0])
    tubes = tuple(
        Tube((_point(hilum), _point((hilum + end) / 2 + rng.normal(0, 6, 3)), _point(end)), (4.5, 3.0, 1.2))
        for end in ends
    )
    return [Organ(lung.name, (20.0, 90.0, 90.0), tubes, inside=(lung.name,))]


def _lesion_hosts(rng: np.random.Generator, kind: LesionKind) -> list[str]:
    """Return the host of each lesion of a kind in this individual; empty in most."""
    present = rng.random() < kind.chance
    number = int(rng.integers(1, kind.most + 1))
    hosts = [str(host) for host in rng.choice(kind.hosts, size=kind.most)]
    return hosts[:number] if present else []


def _draw_lesion(rng: np.random.Generator, kind: LesionKind, host: Organ) -> Organ:
    """Return a lesion at a random place of its host: one lobe, or three merged ones if it is solid."""
    radius = float(rng.uniform(*kind.radius_mm))
    centre = _random_place(rng, host.parts)
    lobes: list[Shape] = [Ellipsoid(_point(centre), _point(radius * rng.uniform(0.85, 1.15, 3)))]
    if not kind.name.endswith("cyst"):
        for offset in rng.normal(0, 0.45 * radius, size=(2, 3)):
            lobes.append(Ellipsoid(_point(centre + offset), _point(radius * rng.uniform(0.5, 0.75, 3))))
    core = 0.45 * radius if kind.name == "liver_tumor" else 0.0
    necrosis = tuple(value - 14.0 for value in kind.hu)
    return Organ(
        kind.name,
        kind.hu,
        tuple(lobes),
        blend_mm=0.4 * radius,
        inside=(host.name,),
        over_fat=kind.bulges,
        core_mm=core,
        core_hu=(necrosis[0], necrosis[1], necrosis[2]),
    )


def _random_place(rng: np.random.Generator, shapes: tuple[Shape, ...]) -> NDArray[np.float64]:
    """Return a random point within shapes, larger pieces being likelier."""
    boxes = [piece.bounds() for shape in shapes for piece in shape.pieces()]
    volumes = np.array([np.prod(high - low) for low, high in boxes])
    low, high = boxes[int(rng.choice(len(boxes), p=volumes / volumes.sum()))]
    direction = rng.normal(size=3)
    reach = 0.7 * rng.random() ** (1 / 3)
    return (low + high) / 2 + reach * direction / np.linalg.norm(direction) * (high - low) / 2


def _draw_bowel(rng: np.random.Generator) -> list[Organ]:
    """Return the small bowel, one long tube winding through the free space, and its mesenteric vessels."""
    nodes = _bowel_nodes(rng)
    order = [int(nodes[:, 1].argmax())]
    left = set(range(len(nodes))) - set(order)
    while left:
        names = sorted(left)
        steps = np.linalg.norm(nodes[names] - nodes[order[-1]], axis=1) * rng.uniform(0.75, 1.25, len(names))
        order.append(names[int(steps.argmin())])
        left.remove(order[-1])
    path = nodes[order]
    radii = np.interp(np.linspace(0, 1, len(path)), [0, 1], [14.5, 11.5]) * rng.uniform(0.85, 1.1, len(path))
    # A jump between far nodes would be a straight bar: the loop is cut there instead.
    cuts = [0, *(np.flatnonzero(np.linalg.norm(np.diff(path, axis=0), axis=1) > 55) + 1).tolist(), len(path)]
    tubes = tuple(
        Tube(tuple(_point(p) for p in path[a:b]), tuple(radii[a:b].tolist())) for a, b in pairwise(cuts) if b - a > 1
    )
    root = np.array([4.0, 16.0, 0.0])
    vessels = tuple(
        Tube((_point(root), _point((root + end) / 2 + rng.normal(0, 6, 3)), _point(end)), (2.6, 2.0, 1.3))
        for end in path[::2]
    )
    loops = Organ(
        "intestine", _BOWEL_WALL, tubes, clip="cavity", core_mm=3.0, core_hu=(22, 24, 24), enteric=True, gas=0.06,
        shift_mm=0.0, size_sd=0.0,
    )  # fmt: skip
    return [Organ("mesentery", (40.0, 120.0, 150.0), vessels, over_fat=True, shift_mm=1.0), loops]


def _bowel_nodes(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return turning points of the small bowel: a jittered grid in the cavity, away from its neighbours."""
    axes = [np.arange(-88, 89, 26.0), np.arange(2, 79, 24.5), np.arange(-126, 26, 25.0)]
    nodes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    nodes = nodes + rng.uniform(-6, 6, nodes.shape)
    x, y, z = nodes.T
    half_width = np.interp(z, [-130, -95, -40], [54, 84, 106])
    free = rounded_box_level((x / half_width).astype(np.float32), ((y - 6) / 72).astype(np.float32)) < 0.95
    free &= ~((np.abs(x) < 34) & (y < 20))
    for organ in (*anatomy.ABDOMEN, *anatomy.PELVIS):
        if organ.name in ("colon", "bladder", "duodenum", "pancreas", "stomach"):
            pieces = [piece for part in organ.parts for piece in part.pieces()]
            near = [piece.distance(*nodes.T.astype(np.float32)) for piece in pieces]
            free &= np.min(near, axis=0) > 8.0
    return nodes[free]
