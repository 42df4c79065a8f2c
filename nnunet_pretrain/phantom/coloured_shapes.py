"""Natural images in small: coloured shapes with textures, as trees of classes or as images with masks.

Real photographs cannot be shipped. These have what the pretext tasks need: edges that all three colours share with
contrasts of their own, textures, and backgrounds that vary. The class of an image is the outline of its shape, a mask
tells textures apart; everything else is drawn at random, so neither colour nor size, place or angle gives them away.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import gaussian_filter

Plane = npt.NDArray[np.float64]
Outline = Callable[[Plane, Plane], npt.NDArray[np.bool_]]

_NOISE = 6.0
"""Standard deviation of the grain, in grey levels."""


def _polygon(corners: int) -> Outline:
    """Returns the inside of a regular polygon with its corners at distance 1."""
    angles = 2 * np.pi * (np.arange(corners) + 0.5) / corners
    reach = np.cos(np.pi / corners)
    return lambda y, x: np.max([x * np.cos(a) + y * np.sin(a) for a in angles], 0) < reach


def _ring(y: Plane, x: Plane) -> npt.NDArray[np.bool_]:
    return np.abs(np.hypot(y, x) - 0.72) < 0.28


def _cross(y: Plane, x: Plane) -> npt.NDArray[np.bool_]:
    return (np.minimum(np.abs(y), np.abs(x)) < 0.3) & (np.maximum(np.abs(y), np.abs(x)) < 1)


def _star(y: Plane, x: Plane) -> npt.NDArray[np.bool_]:
    return np.hypot(y, x) < 0.62 + 0.38 * np.cos(5 * np.arctan2(y, x))


SHAPES: dict[str, Outline] = {
    "cross": _cross,
    "disc": lambda y, x: np.hypot(y, x) < 1,
    "ring": _ring,
    "square": _polygon(4),
    "star": _star,
    "triangle": _polygon(3),
}
"""Name of a shape to the inside of its outline, in coordinates in which it fills the circle of radius 1."""


TEXTURES = ("plain", "striped", "chequered", "dotted")
"""What shapes are filled with: one colour, or two."""


def coloured_shapes(
    rng: np.random.Generator, names: list[str], size: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Draws one image.

    Args:
        rng: Source of all draws.
        names: Shapes to draw, the last one on top.
        size: Edge of the image in pixels.

    Returns:
        The image (size, size, 3), and its mask (size, size): 0 is background, i the i-th of `TEXTURES` from 1.
    """
    y, x = np.mgrid[0:size, 0:size] / (size - 1)
    clouds = gaussian_filter(rng.standard_normal((size, size, 3)), (size / 8, size / 8, 0))
    image = _colour(rng) + 50 * clouds / clouds.std() + np.multiply.outer(x - 0.5, rng.uniform(-60, 60, 3))
    mask = np.zeros((size, size), np.uint8)
    largest = 0.42 if len(names) == 1 else 0.26
    for name in names:
        radius = rng.uniform(0.6, 1.0) * largest
        centre, angle = rng.uniform(radius, 1 - radius, 2), rng.uniform(0, 2 * np.pi)
        dy, dx = (y - centre[0]) / radius, (x - centre[1]) / radius
        turned = dy * np.cos(angle) - dx * np.sin(angle), dy * np.sin(angle) + dx * np.cos(angle)
        inside, texture = SHAPES[name](*turned), int(rng.integers(len(TEXTURES)))
        image[inside] = _textured(rng, texture, y, x)[inside]
        mask[inside] = texture + 1
    image += rng.normal(0, _NOISE, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), mask


def _colour(rng: np.random.Generator) -> Plane:
    return rng.uniform(40, 215, 3)


def _textured(rng: np.random.Generator, texture: int, y: Plane, x: Plane) -> Plane:
    """Returns a picture (size, size, 3) with one of TEXTURES."""
    first, second = _colour(rng), _colour(rng)
    angle, waves = rng.uniform(0, np.pi), rng.uniform(8, 20)
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    a, b = np.sin(2 * np.pi * waves * u), np.sin(2 * np.pi * waves * v)
    pattern = (np.zeros_like(u, bool), a > 0, (a > 0) ^ (b > 0), a + b > 0.7)[texture]
    return np.where(pattern[..., None], second, first)


def write_coloured_shapes(
    folder: Path, task: Literal["classification", "segmentation"], count: int, size: int = 64, seed: int = 0
) -> None:
    """Writes a small set of labelled images, in a layout that `convert_2d` knows.

    Args:
        folder: Where to: one folder per shape with one of them per image, or `images`, `masks` (of textures) and
            `labels.json`, with two to four shapes per image.
        task: Which of the two.
        count: Number of images; classes take turns.
        size: Edge of the images in pixels.
        seed: Seed; each image depends on it and on its number only.
    """
    import json

    kinds = list(SHAPES)
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        if task == "classification":
            kind = kinds[number % len(kinds)]
            image, _ = coloured_shapes(rng, [kind], size)
            _write(folder / kind / f"{kind}_{number:05d}.png", image)
            continue
        image, mask = coloured_shapes(rng, rng.choice(kinds, rng.integers(2, 5)).tolist(), size)
        _write(folder / "images" / f"shapes_{number:05d}.png", image)
        _write(folder / "masks" / f"shapes_{number:05d}.png", mask)
    if task == "segmentation":
        labels = {"background": 0, **{texture: i for i, texture in enumerate(TEXTURES, 1)}}
        (folder / "labels.json").write_text(json.dumps(labels, indent=2), encoding="utf-8")


def _write(path: Path, image: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
