"""nnU-Net's dataset of natural images that are read where they lie, without any preprocessed copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from PIL import Image

from nnunet_pretrain.conversion.natural_images.decoding import Decoded, as_volume, decode, mirrored_axes
from nnunet_pretrain.conversion.natural_images.index import INDEX, NATURAL_KEY, ImageIndex, NaturalImage
from nnunet_pretrain.files import read_json

Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""
BoxChoice = Callable[[int, int], Box]
"""From height and width of an image to the part of it that is shown."""

LABELS = "gt_segmentations"
_SMALLEST_STD = 1e-8  # ZScoreNormalization's
_GEOMETRY = {"spacing": (1.0, 1.0, 1.0), "origin": (0.0, 0.0, 0.0), "direction": (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)}


def index_of(base: Path) -> ImageIndex:
    """Returns the index of a preprocessed dataset of natural images; read once as long as the file stays the same.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: It is not such a file.
    """
    path = base / INDEX
    return _index(path, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=2)
def _index(path: Path, changed: int) -> ImageIndex:
    return ImageIndex.read(path)


class ClassLocations(Mapping[Any, npt.NDArray[np.int64]]):
    """The voxels of each label, for nnU-Net's loader; looked for only when a patch is to be centred on one.

    Args:
        seg: Label map of one slice, shape (Y, X); all slices have the same.
        labels: Ids to look for.
        annotated: nnU-Net's key for all voxels but those to ignore, and the ids it stands for, or None.
    """

    def __init__(
        self, seg: npt.NDArray[Any], labels: Sequence[int], annotated: tuple[tuple[int, ...], Sequence[int]] | None
    ) -> None:
        self._seg, self._labels, self._annotated = seg, labels, annotated
        self._found: dict[Any, npt.NDArray[np.int64]] | None = None

    def __getitem__(self, key: Any) -> npt.NDArray[np.int64]:
        return self._all[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    @property
    def _all(self) -> dict[Any, npt.NDArray[np.int64]]:
        if self._found is None:
            present = set(np.flatnonzero(np.bincount(self._seg.reshape(-1))).tolist())
            self._found = {label: self._voxels(self._seg == label) for label in self._labels if label in present}
            if self._annotated is not None:
                key, ids = self._annotated
                self._found[key] = self._voxels(np.isin(self._seg, ids))
        return self._found

    @staticmethod
    def _voxels(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        y, x = np.nonzero(mask)
        return np.stack([np.zeros_like(y), np.ones_like(y), y, x], axis=1)  # the slice in the middle


class OriginalImages(nnUNetBaseDataset):
    """Photographs as nnU-Net's cases: decoded and normalised when they are loaded.

    Args:
        folder: Where nnU-Net would look for preprocessed cases; index, dataset.json and label maps lie one above.
        identifiers: Cases; None takes all.
        folder_with_segs_from_previous_stage: nnU-Net gives it; there are no cascades of natural images.
    """

    def __init__(
        self,
        folder: str,
        identifiers: Sequence[str] | None = None,
        folder_with_segs_from_previous_stage: str | None = None,
    ) -> None:
        self.base = Path(folder).parent
        self.index = index_of(self.base)
        self.source_folder = folder
        self.folder_with_segs_from_previous_stage = folder_with_segs_from_previous_stage
        # An array, because nnU-Net's loader makes one of a list for every batch.
        self.identifiers = self.index.cases if identifiers is None else np.sort(np.array(identifiers, dtype=np.str_))
        dataset_json = read_json(self.base / "dataset.json")
        self.root = Path(dataset_json[NATURAL_KEY]["root"])
        self.has_masks = dataset_json[NATURAL_KEY]["task"] == "segmentation"
        self._ending = dataset_json["file_ending"]
        ids = {name: int(value) for name, value in dataset_json["labels"].items()}
        used = sorted(value for name, value in ids.items() if name != "ignore")
        self._labels = [value for value in used if value]
        self._annotated = ((-1, *used), [-1, *used]) if "ignore" in ids else None

    def load_case(self, identifier: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any], None, dict[str, Any]]:
        """Reads an image and its label map.

        Returns:
            Image (1, 3, Y, X) with the z-scores nnU-Net's ZScoreNormalization gives the whole image; label map
            (1, 3, Y, X), zeros where images have classes; nothing of a cascade; what nnU-Net's loader and export ask.

        Raises:
            ValueError: The image cannot be used, or it or its mask has another size than when the dataset was made.
        """
        row = self.index.row(str(identifier))
        rgb = self._decoded(row).rgb
        data = normalised(as_volume(rgb), row)[None]
        seg, properties = self._labels_of(row) if self.has_masks else (np.zeros(data.shape, np.int8), _no_mask())
        if seg.shape != data.shape:
            raise ValueError(
                f"the label map of {row.case} has the shape {seg.shape[1:]}, its image {data.shape[1:]}; "
                f"run `nnunet_pretrain convert_2d` and `plan_2d` again"
            )
        shape = data.shape[1:]
        properties |= {
            "shape_before_cropping": shape,
            "bbox_used_for_cropping": [[0, edge] for edge in shape],
            "shape_after_cropping_and_before_resampling": shape,
            "class_locations": ClassLocations(seg[0, 0], self._labels, self._annotated),
        }
        return data, seg, None, properties

    def load_crop(self, identifier: str, choose: BoxChoice, size: Sequence[int]) -> npt.NDArray[np.float32]:
        """Reads a part of an image, resampled to a size.

        The part is chosen from the index, before anything is decoded: of a large JPEG only as much detail is then
        decoded as the wanted size can show.

        Args:
            identifier: The case.
            choose: From height and width to the part.
            size: Wanted height and width.

        Returns:
            Shape (1, 3, height, width), normalised as the whole image.

        Raises:
            ValueError: The image cannot be used, or has another size than when the dataset was made.
        """
        row = self.index.row(str(identifier))
        top, left, height, width = choose(row.height, row.width)
        shown = min(1.0, size[0] / height), min(1.0, size[1] / width)
        found = self._decoded(row, (ceil(row.height * shown[0]), ceil(row.width * shown[1])))
        by, rgb = found.reduction, found.rgb
        # The last stored row and column of pixels are not whole; turned by EXIF, they may be the first.
        mirrored = mirrored_axes(found.orientation)
        top, left = top + mirrored[0] * (-row.height % by), left + mirrored[1] * (-row.width % by)
        upper, lower, before, after = (edge / by for edge in (top, top + height, left, left + width))
        # Without pixels beyond the part, which pillow would take into account at its border.
        y, x = int(upper), int(before)
        part = rgb[y : ceil(lower), x : ceil(after)]
        box = (before - x, upper - y, after - x, lower - y)
        image = Image.fromarray(part).resize((size[1], size[0]), Image.Resampling.BILINEAR, box)
        return normalised(as_volume(np.asarray(image)), row)[None]

    def _decoded(self, row: NaturalImage, smallest: tuple[int, int] | None = None) -> Decoded:
        found = decode(self.root / row.file, smallest)
        height, width = found.rgb.shape[:2]
        if (height, width) != (ceil(row.height / found.reduction), ceil(row.width / found.reduction)):
            read = f" at 1/{found.reduction} of its size" if found.reduction > 1 else ""
            raise ValueError(
                f"{self.root / row.file} has {height} x {width} pixels{read}, when the dataset was made it had "
                f"{row.height} x {row.width}; run `nnunet_pretrain convert_2d` and `plan_2d` again"
            )
        return found

    def _labels_of(self, row: NaturalImage) -> tuple[npt.NDArray[np.int16], dict[str, Any]]:
        path = self.base / LABELS / f"{row.case}{self._ending}"
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; run `nnunet_pretrain plan_2d` again")
        seg, properties = SimpleITKIO().read_seg(str(path))
        return seg.astype(np.int16), properties

    @staticmethod
    def save_case(data: Any, seg: Any, properties: dict, output_filename_truncated: str) -> None:
        """Originals are read, never written.

        Raises:
            TypeError: Always.
        """
        raise TypeError(f"{output_filename_truncated}: original images are not written as preprocessed cases")

    @staticmethod
    def get_identifiers(folder: str) -> list[str]:
        """Returns all cases of the index beside a folder of preprocessed cases."""
        cases: list[str] = index_of(Path(folder).parent).cases.tolist()
        return cases


def normalised(volume: npt.NDArray[Any], row: NaturalImage) -> npt.NDArray[np.float32]:
    """Returns z-scores by the mean and standard deviation of the whole image, as ZScoreNormalization would."""
    scores: npt.NDArray[np.float32] = volume.astype(np.float32)
    scores -= np.float32(row.mean)
    scores /= np.float32(max(row.std, _SMALLEST_STD))
    return scores


def _no_mask() -> dict[str, Any]:
    return {"spacing": [1.0, 1.0, 1.0], "sitk_stuff": dict(_GEOMETRY)}
