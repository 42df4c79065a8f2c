"""Domains of phantoms: the anatomy of the CT phantom as images of other contrasts, each a target dataset of its own.

What it is: a map from HU to another intensity, with a bias field, gain and noise where the contrast stands for magnetic
resonance. Tissues that a CT tells apart can look alike and the other way round, so that a network cannot take one
domain's intensities for another's. What it is not: a simulation of magnetic resonance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from nnunet_pretrain.phantom.datasets import write_shown_target

Show = Callable[[NDArray[np.int16], np.random.Generator], NDArray[np.int16]]

_GAIN = 600.0
_GAIN_SPREAD = 0.2
_BIAS = 0.2
_NOISE = 0.02


@dataclass(frozen=True)
class Contrast:
    """How a domain shows the phantom.

    Attributes:
        channel: Name of the image channel in dataset.json; nnU-Net chooses the normalisation by it.
        show: Makes the domain's image, int16, of HU of any shape and a generator.
    """

    channel: str
    show: Show


def _as_it_is(hu: NDArray[np.int16], rng: np.random.Generator) -> NDArray[np.int16]:
    return hu


def _inverted(hu: NDArray[np.int16], rng: np.random.Generator) -> NDArray[np.int16]:
    return np.rint((1024.0 - hu) / 2).astype(np.int16)


def _magnetic(signal_of_hu: Mapping[float, float]) -> Show:
    """Returns a contrast like magnetic resonance: gain * |signal * bias field + complex noise|.

    The magnitude of a signal with Gaussian noise in both parts is Rician (Gudbjartsson and Patz, MRM 1995).

    Args:
        signal_of_hu: HU to signal, the brightest tissue 1; between them the map is smooth and monotone (PCHIP).
    """
    curve = PchipInterpolator(list(signal_of_hu), list(signal_of_hu.values()))
    ends = min(signal_of_hu), max(signal_of_hu)

    def show(hu: NDArray[np.int16], rng: np.random.Generator) -> NDArray[np.int16]:
        gain = _GAIN * np.exp(_GAIN_SPREAD * rng.standard_normal())
        signal = curve(np.clip(hu, *ends)) * _bias_field(hu.shape, rng)
        real, imaginary = _NOISE * rng.standard_normal((2, *hu.shape))
        return np.rint(gain * np.hypot(signal + real, imaginary)).astype(np.int16)

    return show


def _bias_field(shape: Sequence[int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Returns a smooth factor around 1: the exponential of three waves, each at most half a period over the image."""
    axes = np.meshgrid(*(np.linspace(-0.5, 0.5, n) for n in shape), indexing="ij", sparse=True)
    total = np.zeros(shape)
    for _ in range(3):
        vector, phase = rng.uniform(-np.pi, np.pi, len(axes)), rng.uniform(0, 2 * np.pi)
        total += np.cos(sum(k * axis for k, axis in zip(vector, axes, strict=True)) + phase)
    return np.exp(_BIAS * (total - total.mean()))


# Air, fat, fluid, muscle, liver, contrast-enhanced vessels and kidneys, cortical bone.
_T1: Mapping[float, float] = {
    -1000: 0.0, -300: 0.05, -100: 1.0, 5: 0.2, 52: 0.4, 110: 0.6, 190: 0.85, 300: 0.6, 530: 0.06, 1500: 0.0,
}  # fmt: skip
_T2: Mapping[float, float] = {
    -1000: 0.0, -300: 0.05, -100: 0.65, 5: 1.0, 52: 0.3, 110: 0.5, 190: 0.15, 300: 0.1, 530: 0.04, 1500: 0.0,
}  # fmt: skip

CONTRASTS: dict[str, Contrast] = {
    "ct": Contrast("CT", _as_it_is),
    "t1": Contrast("T1", _magnetic(_T1)),
    "inverted": Contrast("INV", _inverted),
    "t2": Contrast("T2", _magnetic(_T2)),
}
"""The contrasts by name: HU, two maps like T1- and T2-weighted MR, and HU turned upside down in units of its own."""


def shown(image: NDArray[np.int16], contrast: str, seed: int) -> NDArray[np.int16]:
    """Returns a phantom's image in another contrast; the same seed gives the same image.

    Args:
        image: HU, any shape.
        contrast: A name of CONTRASTS.
        seed: Seed of gain, bias field and noise, such as the phantom's own.

    Raises:
        ValueError: There is no such contrast.
    """
    if contrast not in CONTRASTS:
        raise ValueError(f"unknown contrast '{contrast}'; known are {', '.join(CONTRASTS)}")
    return CONTRASTS[contrast].show(image, np.random.default_rng([seed, crc32(contrast.encode())]))


def write_phantom_domain(
    folder: Path,
    contrast: str,
    labels: Mapping[str, Sequence[str]],
    train: Iterable[int],
    val: Iterable[int] = (),
    test: Iterable[int] = (),
    **options: Any,
) -> None:
    """Writes a small, completely labelled dataset of one domain in nnU-Net raw format.

    Args:
        folder: The dataset's folder, such as Dataset912_T1.
        contrast: A name of CONTRASTS.
        labels: Label name to the structures it unites; ids follow the order.
        train: Seeds of the training cases.
        val: Seeds of the cases fold 0 validates on.
        test: Seeds of the held-out cases.
        **options: Passed on to `generate_phantom`, such as the domain's spacing.

    Raises:
        ValueError: There is no such contrast.
    """
    if contrast not in CONTRASTS:
        raise ValueError(f"unknown contrast '{contrast}'; known are {', '.join(CONTRASTS)}")
    write_shown_target(
        folder,
        CONTRASTS[contrast].channel,
        lambda image, seed: shown(image, contrast, seed),
        labels,
        train,
        val,
        test,
        **options,
    )
