"""Content fingerprint of an image: the same CT is recognised under any name, header, dtype, mirroring or crop.

Two parts. The *exact* part is a hash of the voxels in RAS order. The *near* part is a sketch of local patterns: around
every voxel of soft tissue with a chosen HU the 26 neighbours are hashed as a multiset, and the smallest hashes are kept
(a bottom-k sketch; Broder, "On the resemblance and containment of documents", 1997). Noise makes such a pattern unique
to one scan. It does not change when the array is mirrored or its axes are exchanged, when HU are clipped to a window
wider than `PATTERN_HU`, when the file is saved in another dtype, or when parts of the volume are cut off. It does
change when the image is resampled, smoothed, or compressed with loss: such copies are not found.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.orientations import apply_orientation

from nnunet_pretrain.conversion.volume import Grid, NiftiVolume, Volume

SKETCH_SIZE = 256
PATTERN_HU = (-55, 155)
"""All voxels of a pattern lie in this range, which the usual abdominal windows keep."""

MIN_PATTERN_RANGE_HU = 10
"""Least spread inside a pattern; without it flat, noise-free tissue would look alike in all patients."""

# Patterns are centred on voxels of these HU, one value after the other until there are enough. The tier takes the
# highest bits of a hash, so that a small crop, which needs more tiers, still keeps the patterns of the first ones.
_CENTRES_HU = (37, 38, 36, 40, 34, 42, 32, 45, 30, 48, 27, 51, 55, 60, 65, 70)
_TIER_BITS = 5
_ENOUGH = 4 * SKETCH_SIZE


@dataclass(frozen=True)
class Fingerprint:
    """What identifies an image's content.

    Attributes:
        voxels: Hash of shape and HU in RAS order, hexadecimal.
        sketch: Up to `SKETCH_SIZE` pattern hashes, ascending, uint64.
    """

    voxels: str
    sketch: npt.NDArray[np.uint64]

    def as_dict(self) -> dict[str, str]:
        """Returns the fingerprint as JSON can hold it."""
        return {"voxels": self.voxels, "sketch": base64.b64encode(self.sketch.astype("<u8").tobytes()).decode()}

    @classmethod
    def from_dict(cls, content: dict[str, str]) -> Fingerprint:
        """Reads what `as_dict` wrote."""
        return cls(content["voxels"], np.frombuffer(base64.b64decode(content["sketch"]), "<u8").astype(np.uint64))


def fingerprint(hu: npt.NDArray[np.int16], grid: Grid) -> Fingerprint:
    """Computes the fingerprint of an image.

    Args:
        hu: The image, int16, axes as stored.
        grid: Its grid; only the axis directions are used.
    """
    return Fingerprint(_voxel_hash(hu, grid), _sketch(hu))


def _voxel_hash(hu: npt.NDArray[np.int16], grid: Grid) -> str:
    canonical = apply_orientation(hu, grid.orientation)
    digest = hashlib.sha256(repr(canonical.shape).encode())
    for index in range(canonical.shape[2]):
        digest.update(np.ascontiguousarray(canonical[:, :, index].T).data)
    return digest.hexdigest()[:32]


def _sketch(hu: npt.NDArray[np.int16]) -> npt.NDArray[np.uint64]:
    kept = np.zeros(0, np.uint64)
    if min(hu.shape) < 3:
        return kept
    flat = hu.reshape(-1, order="F")
    x, y, _ = hu.shape
    offsets = [i + x * (j + y * k) for i, j, k in product((-1, 0, 1), repeat=3) if (i, j, k) != (0, 0, 0)]
    for tier, centre in enumerate(_CENTRES_HU):
        places = _inner(np.flatnonzero(flat == centre), hu.shape)
        hashes = _patterns(flat, places, offsets)
        shifted = (hashes >> np.uint64(_TIER_BITS)) | np.uint64(tier << (64 - _TIER_BITS))
        kept = np.concatenate([kept, np.unique(shifted)])
        if len(kept) >= _ENOUGH:
            break
    return np.sort(kept)[:SKETCH_SIZE]


def _inner(places: npt.NDArray[np.int64], shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Keeps flat indices whose 26 neighbours exist."""
    x, y, z = shape
    i, rest = places % x, places // x
    j, k = rest % y, rest // y
    return places[(i > 0) & (i < x - 1) & (j > 0) & (j < y - 1) & (k > 0) & (k < z - 1)]


def _patterns(flat: npt.NDArray[np.int16], places: npt.NDArray[np.int64], offsets: list[int]) -> npt.NDArray[np.uint64]:
    """Returns a hash of the neighbours of each place, as a multiset, where they are soft tissue and not flat."""
    low, high = PATTERN_HU
    total = np.zeros(len(places), np.uint64)
    least, most = (np.full(len(places), value, np.int16) for value in (32767, -32768))
    for offset in offsets:
        values = flat[places + offset]
        inside = (values >= low) & (values <= high)
        if not inside.all():
            places, total, values = places[inside], total[inside], values[inside]
            least, most = least[inside], most[inside]
        np.minimum(least, values, out=least)
        np.maximum(most, values, out=most)
        total += _random_of_hu()[values - low]
    return _mixed(total[most - least >= MIN_PATTERN_RANGE_HU])


@cache
def _random_of_hu() -> npt.NDArray[np.uint64]:
    return _mixed(np.arange(1, PATTERN_HU[1] - PATTERN_HU[0] + 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Scrambles 64-bit numbers (the finaliser of SplitMix64; Steele et al., OOPSLA 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def as_hu(voxels: npt.NDArray[Any], what: str) -> npt.NDArray[np.int16]:
    """Returns voxels as whole HU in int16.

    Raises:
        ValueError: A voxel is not finite.
    """
    if voxels.dtype == np.int16:
        return voxels
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        raise ValueError(f"{what} holds voxels that are not finite numbers; nnU-Net cannot train on them")
    return np.clip(np.rint(voxels), -32768, 32767).astype(np.int16)


def read_hu(volume: Volume) -> npt.NDArray[np.int16]:
    """Reads an image as whole HU in int16, step by step: scaled voxels are four times as large.

    Raises:
        ValueError: The file is damaged, or a voxel is not finite.
    """
    if isinstance(volume, NiftiVolume) and volume.scaling is None and volume.dtype == np.int16:
        return as_hu(volume.read(), str(volume.path))
    hu, start = np.empty(volume.grid.size, np.int16), 0
    for chunk in volume.chunks():
        hu[start : start + len(chunk)] = as_hu(chunk, str(volume.path))
        start += len(chunk)
    return hu.reshape(volume.grid.shape, order="F")


def read_fingerprint(path: Any) -> Fingerprint:
    """Reads an image of any kind and returns its fingerprint."""
    from nnunet_pretrain.conversion.reading import open_volume

    volume = open_volume(path)
    return fingerprint(read_hu(volume), volume.grid)
