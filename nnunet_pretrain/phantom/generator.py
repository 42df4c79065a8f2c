"""A procedural abdominal CT: images in HU with a complete voxel-wise truth, made from nothing but a seed.

What it is: a drawing of the abdomen made of ellipsoids and tubes at anatomical places, with plausible sizes, relations
and densities, varied in size, pose, shape, contrast phase, gas, lesions and noise. It is the embedded data of the demo
and the tests: a network can learn organs from place, shape and density, as on real CT, without any download.

What it is not: a simulation of X-ray physics (no beam hardening, no reconstruction), realistic texture, or evidence
about real anatomy and its variants. Results on it prove that code works, and how methods relate to each other under
the same budget; they say nothing about clinical performance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from nnunet_pretrain.phantom.anatomy import PHASES
from nnunet_pretrain.phantom.canvas import Canvas
from nnunet_pretrain.phantom.patient import Patient, draw_patient

# Lowest and highest reference z in mm.
_FIELDS: dict[str, tuple[float, float]] = {
    "abdomen": (-205.0, 186.0),
    "upper": (-60.0, 190.0),
    "pelvis": (-215.0, 20.0),
}
FIELDS_OF_VIEW: tuple[str, ...] = (*_FIELDS, "random")
_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}


@dataclass(frozen=True)
class PhantomCase:
    """One generated CT.

    Attributes:
        image: int16 HU, axes in the stored orientation.
        labels: uint8, same shape: 0 for background (air, fat, muscle, bone, ...), else the index in STRUCTURES + 1.
            The truth is complete: every structure that is visible is labelled.
        affine: ``(4, 4)``, voxel index to RAS+ mm.
    """

    image: NDArray[np.int16]
    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]


@dataclass(frozen=True)
class Appearance:
    """How a scanner and a protocol show the anatomy; it changes the image and never the labels.

    Attributes:
        phase: Contrast phase: "native", "arterial" or "portal".
        noise_hu: Standard deviation of the noise in HU, in the voxels as generated.
        noise_grain: Share (0..1) of the noise that is correlated between neighbouring voxels.
        blur_mm: Standard deviation in mm of the blur (reconstruction kernel).
        hu_scale: Factor on HU + 1000 (miscalibration, or a deliberate domain shift); air stays at -1000.
        hu_shift: Added to all HU.
        oral_contrast_hu: Added to the lumen of stomach and small bowel; 0 for none.

    Raises:
        ValueError: If the phase is unknown or a value is negative or out of range.
    """

    phase: str = "portal"
    noise_hu: float = 12.0
    noise_grain: float = 0.5
    blur_mm: float = 1.5
    hu_scale: float = 1.0
    hu_shift: float = 0.0
    oral_contrast_hu: float = 0.0

    def __post_init__(self) -> None:
        """Reject values that have no meaning."""
        if self.phase not in PHASES:
            raise ValueError(f"phase is {self.phase!r}; expected one of {', '.join(PHASES)}. Choose one of these.")
        if min(self.noise_hu, self.blur_mm) < 0 or not 0 <= self.noise_grain <= 1 or self.hu_scale <= 0:
            raise ValueError(
                f"{self} is not possible; expected noise_hu and blur_mm of at least 0, noise_grain within 0..1 and "
                "hu_scale above 0. Correct the value."
            )


def generate_phantom(
    seed: int,
    *,
    shape: Sequence[int] | None = None,
    spacing_mm: Sequence[float] | None = None,
    orientation: str = "RAS",
    appearance: Appearance | None = None,
    field_of_view: str = "abdomen",
) -> PhantomCase:
    """Generate one abdominal CT with complete labels.

    The seed alone decides the individual: the same seed gives the same anatomy at every spacing, shape, orientation
    and appearance. With all arguments equal, the arrays are equal bit by bit.

    Args:
        seed: Not negative.
        shape: Voxels along x, y and z (RAS order, before storing in ``orientation``). None: as many as cover the field
            of view, about 60 x 50 x 70 at the default spacing. The volume is centred on the body and the field of view.
        spacing_mm: Voxel size along x, y and z. None: random, 4.5 to 6 in plane and 4.5 to 6.5 along z.
        orientation: Axis code of the stored arrays such as "RAS" or "LPI", as nibabel's ``aff2axcodes`` names it: the
            letter says towards which side of the patient the index of that axis grows.
        appearance: Contrast phase, noise and the like. None: random.
        field_of_view: "abdomen" (lung bases to hips), "upper" (lung bases to the iliac crest), "pelvis" (kidneys'
            lower poles to hips) or "random" (one of these with random ends).

    Returns:
        Image, labels and affine.

    Raises:
        ValueError: If an argument is not one of the values above.
    """
    _check_arguments(seed, shape, spacing_mm, orientation, field_of_view)
    # Independent streams, so that asking for a spacing, say, does not change the patient.
    anatomy, grid, look, noise = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(4))
    patient = draw_patient(anatomy)
    axes = _grid_axes(patient, grid, shape, spacing_mm, field_of_view)
    random_look = _random_appearance(look)
    appearance = appearance or random_look
    canvas = Canvas(patient, axes, appearance.phase, appearance.oral_contrast_hu)
    canvas.draw()
    spacing = [float(axis[1] - axis[0]) for axis in axes]
    image = _scan(canvas.image, spacing, appearance, noise)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [axis[0] for axis in axes]
    return _store(image, canvas.labels, affine, orientation.upper())


def _check_arguments(
    seed: int,
    shape: Sequence[int] | None,
    spacing_mm: Sequence[float] | None,
    orientation: str,
    field_of_view: str,
) -> None:
    if seed < 0:
        raise ValueError(f"seed is {seed}; expected 0 or more. Use a non-negative whole number.")
    if shape is not None and (len(shape) != 3 or min(shape) < 2):
        raise ValueError(
            f"shape is {tuple(shape)}; expected three sizes (x, y, z) of at least 2. Correct it or pass None."
        )
    if spacing_mm is not None and (len(spacing_mm) != 3 or not all(0 < step < np.inf for step in spacing_mm)):
        raise ValueError(
            f"spacing_mm is {tuple(spacing_mm)}; expected three positive numbers (x, y, z in mm). "
            "Correct it or pass None."
        )
    pairs = sorted("".join(sorted(letter + _OPPOSITE.get(letter, "?"))) for letter in orientation.upper())
    if pairs != ["AP", "IS", "LR"]:
        raise ValueError(
            f"orientation is {orientation!r}; expected three letters, one of each pair R/L, A/P and S/I in any order. "
            "Use for example 'RAS', 'LPS' or 'IPL'."
        )
    if field_of_view not in FIELDS_OF_VIEW:
        raise ValueError(
            f"field_of_view is {field_of_view!r}; expected one of {', '.join(FIELDS_OF_VIEW)}. Choose one of these."
        )


def _random_appearance(rng: np.random.Generator) -> Appearance:
    return Appearance(
        phase=str(rng.choice(PHASES, p=(0.15, 0.25, 0.6))),
        noise_hu=float(rng.uniform(5, 14)),
        noise_grain=float(rng.uniform(0.3, 0.7)),
        blur_mm=float(rng.uniform(0.6, 2.0)),
        hu_scale=float(rng.uniform(0.99, 1.01)),
        hu_shift=float(rng.uniform(-5, 5)),
        oral_contrast_hu=float(rng.uniform(80, 220)) if rng.random() < 0.3 else 0.0,
    )


def _grid_axes(
    patient: Patient,
    rng: np.random.Generator,
    shape: Sequence[int] | None,
    spacing_mm: Sequence[float] | None,
    field_of_view: str,
) -> list[NDArray[np.float64]]:
    """Return the world coordinates in mm of the voxel centres along x, y and z."""
    in_plane, through, margin = rng.uniform(4.5, 6.0), rng.uniform(4.5, 6.5), rng.uniform(4, 16)
    chosen = str(rng.choice(list(_FIELDS))) if field_of_view == "random" else field_of_view
    ends = np.array(_FIELDS[chosen]) + rng.uniform(-8, 8, 2)
    if field_of_view == "random":
        ends += rng.uniform(0, 30, 2) * (1, -1)
    scale, shift = np.array(patient.scale), np.array(patient.shift)
    # Half extents of the body with fat, skin and table.
    half = np.array([150 + patient.fat_mm, 114 + 0.75 * patient.fat_mm, (ends[1] - ends[0]) / 2])
    middle = np.array([0.0, -12.0, ends.mean()]) * scale + shift
    steps = np.array([in_plane, in_plane, through] if spacing_mm is None else spacing_mm, dtype=np.float64)
    extent = 2 * half * scale + np.array([2 * margin, 2 * margin, 0.0])
    sizes = np.maximum(np.ceil(extent / steps), 2).astype(int) if shape is None else np.array(shape, dtype=int)
    return [m + step * (np.arange(n) - (n - 1) / 2) for m, step, n in zip(middle, steps, sizes, strict=True)]


def _scan(
    image: NDArray[np.float32], spacing: Sequence[float], appearance: Appearance, rng: np.random.Generator
) -> NDArray[np.int16]:
    """Return the image as scanned: blurred, noisy, rescaled, int16."""
    sigma = [appearance.blur_mm / step for step in spacing]
    if max(sigma) > 0.2:
        image = gaussian_filter(image, sigma, truncate=3.0)
    if appearance.noise_hu > 0:
        grain = gaussian_filter(rng.standard_normal(image.shape, dtype=np.float32), 0.8, truncate=2.5)
        grain *= np.float32(appearance.noise_hu * appearance.noise_grain) / grain.std()
        image = image + grain
        white = rng.standard_normal(image.shape, dtype=np.float32)
        white *= np.float32(appearance.noise_hu * np.sqrt(1 - appearance.noise_grain**2))
        image += white
    image = (image + 1000.0) * np.float32(appearance.hu_scale) + np.float32(appearance.hu_shift - 1000.0)
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16)


def _store(
    image: NDArray[np.int16], labels: NDArray[np.uint8], affine: NDArray[np.float64], orientation: str
) -> PhantomCase:
    """Return the case with its axes permuted and flipped from RAS to the orientation."""
    order = [next(i for i, pair in enumerate(("RL", "AP", "SI")) if letter in pair) for letter in orientation]
    flips = [axis for axis, letter in enumerate(orientation) if letter in "LPI"]
    transform = np.zeros((4, 4))
    transform[3, 3] = 1.0
    for axis, source in enumerate(order):
        flipped = axis in flips
        transform[source, axis] = -1.0 if flipped else 1.0
        transform[source, 3] = image.shape[source] - 1 if flipped else 0.0
    return PhantomCase(
        image=np.ascontiguousarray(np.flip(image.transpose(order), tuple(flips))),
        labels=np.ascontiguousarray(np.flip(labels.transpose(order), tuple(flips))),
        affine=affine @ transform,
    )
