"""Reading and writing volumes: NIfTI as a stream, everything else through SimpleITK.

Voxels of a volume are one flat array in Fortran order (first axis fastest), as NIfTI stores them, so that a file can be
worked on while it is being inflated and never has to lie in memory as a whole. ISA-L (`isal`) inflates and deflates
several times faster than the standard library; see benchmarks/RESULTS.md.
"""

from __future__ import annotations

import hashlib
import io
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip, isal_zlib
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError

CHUNK_VOXELS = 1 << 18
"""Voxels per step: a slice of 512 x 512, which stays in a core's cache."""

COMPRESSION_LEVEL = 1
SPACING_TOLERANCE = 0.1
"""Largest relative difference of a header's two statements about voxel size; a tilted gantry explains less."""

_FARTHEST_MM = 1e6
_LEAST_ANGLE = 1e-6  # volume of a voxel over the product of its edges, below which axes count as parallel
_GZIP_MAX_RATIO = 1100  # deflate cannot shrink data further than 1032 to 1
_READ_ERRORS: tuple[Any, ...] = (OSError, EOFError, zlib.error, isal_zlib.error)


@dataclass(frozen=True)
class Grid:
    """Where voxels lie.

    Attributes:
        shape: Number of voxels along each of the three axes.
        affine: Shape (4, 4), voxel index to RAS+ mm.
    """

    shape: tuple[int, int, int]
    affine: npt.NDArray[np.float64]

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along each axis, in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    @property
    def orientation(self) -> npt.NDArray[np.float64]:
        """Nibabel's orientation array, shape (3, 2)."""
        return io_orientation(self.affine)

    @property
    def axis_codes(self) -> str:
        """The direction each axis points to, such as RAS."""
        return "".join(nib.aff2axcodes(self.affine))


@dataclass
class Volume:
    """A volume whose voxels are read once, either as a whole or in steps.

    Attributes:
        path: The file, for messages.
        grid: Its grid.
        sha256: Digest of each file read, filled in as the voxels are read.
    """

    path: Path
    grid: Grid
    sha256: dict[Path, str] = field(default_factory=dict)

    def chunks(self) -> Iterator[npt.NDArray[Any]]:
        """Yields all voxels in Fortran order, scaled as the header says; the arrays are overwritten by the next step.

        Raises:
            ValueError: The file ends early, cannot be inflated, or does not hold what its header says.
        """
        raise TypeError("a Volume is a NiftiVolume or an ArrayVolume")

    def check_for_nnunet(self) -> None:
        """Refuses an image that nnU-Net's reader, nibabel, could not read or would see at another voxel size.

        Raises:
            ValueError: The file's name does not say whether it is compressed, or its header contradicts itself.
        """

    def read(self) -> npt.NDArray[Any]:
        """Returns all voxels as an array of the grid's shape."""
        pieces = [chunk.copy() for chunk in self.chunks()]
        return np.concatenate(pieces).reshape(self.grid.shape, order="F")


@dataclass
class ArrayVolume(Volume):
    """A volume that had to be read as a whole: DICOM, PNG, or a file SimpleITK reads."""

    array: npt.NDArray[Any] = field(default_factory=lambda: np.zeros((0, 0, 0)))

    def chunks(self) -> Iterator[npt.NDArray[Any]]:
        """See `Volume.chunks`."""
        flat = self.array.reshape(-1, order="F")
        for start in range(0, len(flat), CHUNK_VOXELS):
            yield flat[start : start + CHUNK_VOXELS]


class _HashedFile(io.RawIOBase):
    """A file that is hashed while it is read front to back."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer) or 0
        self.digest.update(memoryview(buffer)[:count])
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class NiftiVolume(Volume):
    """A NIfTI-1 or NIfTI-2 file, gzipped or not, of which only the header was read so far.

    Raises:
        ValueError: The file is not readable as NIfTI, or not a plain 3D volume with a usable affine.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"{path} is not a file")
        try:
            self._raw = _HashedFile(path)
            buffered = io.BufferedReader(self._raw, 1 << 17)
            self.zipped = buffered.peek(2)[:2] == b"\x1f\x8b"
            self._data: io.BufferedIOBase = igzip.IGzipFile(fileobj=buffered, mode="rb") if self.zipped else buffered
            self._rest: io.BufferedIOBase = buffered
            header = _header(self._data, path)
            self._skip(int(header.get_data_offset()) - len(header.binaryblock), path)
        except _READ_ERRORS as error:
            raise ValueError(f"{path} is not readable as NIfTI: {error}") from None
        self.dtype = header.get_data_dtype()
        self._stated_spacing = tuple(float(mm) for mm in header.get_zooms()[:3])
        slope, inter = header.get_slope_inter()
        self.scaling = None if slope in (None, 1.0) and not inter else (float(slope or 1.0), float(inter or 0.0))
        super().__init__(path, _grid(header, path))
        expected, size = self.grid.size * self.dtype.itemsize, path.stat().st_size
        if expected > size * (_GZIP_MAX_RATIO if self.zipped else 1):
            raise ValueError(
                f"{path} has {size} bytes, far fewer than its header's {self.grid.shape} voxels need; "
                f"the file is cut off or its header is damaged"
            )

    def check_for_nnunet(self) -> None:
        """See `Volume.check_for_nnunet`."""
        if self.zipped != (self.path.suffix.lower() == ".gz"):
            state, ending = ("compressed", ".nii.gz") if self.zipped else ("not compressed", ".nii")
            raise ValueError(f"{self.path} is {state}, which its name denies; nnU-Net cannot read it; call it {ending}")
        if not np.allclose(self._stated_spacing, self.grid.spacing, rtol=SPACING_TOLERANCE, atol=0):
            stated, true = (" x ".join(f"{mm:.4g}" for mm in s) for s in (self._stated_spacing, self.grid.spacing))
            raise ValueError(
                f"{self.path} has voxels of {true} mm by its affine and {stated} mm by its pixdim, which nnU-Net "
                f"reads; its header needs repair"
            )

    def _skip(self, count: int, path: Path) -> None:
        if not 0 <= count < 1 << 24 or len(self._data.read(count)) != count:
            raise ValueError(f"{path} is not readable as NIfTI: its voxels are said to begin after {count} more bytes")

    def chunks(self) -> Iterator[npt.NDArray[Any]]:
        """See `Volume.chunks`."""
        buffer = bytearray(CHUNK_VOXELS * self.dtype.itemsize)
        remaining = self.grid.size
        while remaining:
            count = min(remaining, CHUNK_VOXELS)
            self._fill(memoryview(buffer)[: count * self.dtype.itemsize])
            remaining -= count
            voxels = np.frombuffer(buffer, self.dtype, count)
            yield voxels if self.scaling is None else _scaled(voxels, *self.scaling)
        self._finish()

    def read(self) -> npt.NDArray[Any]:
        """See `Volume.read`; the voxels are inflated into their final place."""
        if self.scaling is not None:
            return super().read()
        voxels = np.empty(self.grid.size, self.dtype)
        self._fill(voxels.view(np.uint8).data)
        self._finish()
        return voxels.reshape(self.grid.shape, order="F")

    def _fill(self, target: memoryview) -> None:
        filled = 0
        try:
            while filled < len(target):
                # In pieces, so that what was just inflated is still in the cache when it is worked on.
                count = self._data.readinto(target[filled : filled + (1 << 20)])
                if not count:
                    raise EOFError(f"the file ends {len(target) - filled} bytes early")
                filled += count
        except _READ_ERRORS as error:
            raise ValueError(f"{self.path} cannot be inflated: {error}") from None

    def _finish(self) -> None:
        """Reads to the end, where gzip's checksum is compared, and notes the digest of the file."""
        try:
            while self._data.read(1 << 20):
                pass
            while self._rest.read(1 << 20):
                pass
        except _READ_ERRORS as error:
            raise ValueError(f"{self.path} cannot be inflated: {error}") from None
        self.sha256 = {self.path: self._raw.digest.hexdigest()}
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._data.close()
        self._rest.close()


def _scaled(voxels: npt.NDArray[Any], slope: float, inter: float) -> npt.NDArray[np.float64]:
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused where it matters
        return voxels.astype(np.float64) * slope + inter


def _header(data: io.BufferedIOBase, path: Path) -> Nifti1Header:
    start = data.read(4)
    sizes = {int.from_bytes(start, order) for order in ("little", "big")} if len(start) == 4 else set()
    kinds = {348: Nifti1Header, 540: Nifti2Header}
    kind = next((kinds[size] for size in sizes if size in kinds), None)
    if kind is None:
        raise ValueError(f"{path} is not readable as NIfTI: its first bytes are {start!r}")
    block = start + data.read(kind.template_dtype.itemsize - 4)
    try:
        with LoggingOutputSuppressor():  # it mends codes as nnU-Net's reader will see them, and need not say so
            header = kind(block)
        if header["magic"].item() not in (b"n+1", b"n+2"):
            raise HeaderDataError(f"magic {header['magic'].item()!r}, expected a single file (n+1)")
        with np.errstate(all="ignore"):  # nibabel finds most faults only when it is asked for the value
            header.get_best_affine(), header.get_slope_inter(), header.get_data_dtype(), header.get_data_shape()
            int(header.get_data_offset())
    except (HeaderDataError, ValueError, KeyError, OverflowError, ZeroDivisionError) as error:
        raise ValueError(f"{path} is not readable as NIfTI: {' '.join(str(error).split())}") from None
    dtype = header.get_data_dtype()
    if dtype.fields is not None or dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ValueError(f"{path} holds voxels of type {dtype}, expected plain numbers")
    return header


def _grid(header: Nifti1Header, path: Path) -> Grid:
    shape = tuple(int(n) for n in header.get_data_shape())
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"{path} has shape {shape}, expected three dimensions")
    with np.errstate(invalid="ignore"):
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    axes = affine[:3, :3] if (np.abs(affine) < _FARTHEST_MM).all() else np.zeros((3, 3))
    # Of spacing only float32 is stored; a zero there is as good as a missing one.
    least = max(1e-9, _LEAST_ANGLE * float(np.prod(np.linalg.norm(axes, axis=0))))
    if abs(np.linalg.det(axes)) < least:
        raise ValueError(f"{path} has an unusable affine {affine.tolist()}; its header needs repair")
    return Grid((shape[0], shape[1], shape[2]), affine)


def reoriented(array: npt.NDArray[Any], grid: Grid, to: Grid) -> tuple[npt.NDArray[Any], Grid]:
    """Turns an array and its grid into the axis directions of another grid; voxels are moved, never resampled."""
    turn = ornt_transform(grid.orientation, to.orientation)
    turned = apply_orientation(array, turn)
    return turned, Grid(turned.shape, grid.affine @ inv_ornt_aff(turn, grid.shape))


def write_nifti(path: Path, array: npt.NDArray[Any], affine: npt.NDArray[np.float64]) -> str:
    """Writes a gzipped NIfTI; the same array gives the same bytes.

    Args:
        path: File to write.
        array: Voxels, three axes.
        affine: Shape (4, 4), voxel index to RAS+ mm.

    Returns:
        The SHA-256 of the file.
    """
    image = nib.Nifti1Image(np.zeros((1, 1, 1), array.dtype), affine)
    header = image.header
    header.set_data_shape(array.shape)
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner")
    header.set_xyzt_units("mm")
    header["magic"], header["vox_offset"] = b"n+1", 352
    header["scl_slope"], header["scl_inter"] = 1, 0
    flat = np.ascontiguousarray(array.reshape(-1, order="F"))
    with path.open("wb") as file, igzip.IGzipFile("", "wb", COMPRESSION_LEVEL, file, mtime=0) as zipped:
        zipped.write(header.binaryblock + b"\0" * 4)
        for start in range(0, len(flat), 1 << 22):
            zipped.write(flat[start : start + (1 << 22)].data)
    return hashlib.sha256(path.read_bytes()).hexdigest()
