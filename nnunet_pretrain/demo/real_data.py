"""Bringing a user's real CT into the layout of the TotalSegmentator dataset."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from nnunet_pretrain.files import read_json, written_atomically

SOURCE = "TotalSegmentatorV2"


def find_real_source(data: Path, work: Path) -> Path:
    """Finds a real CT with TotalSegmentator labels.

    Args:
        data: A TotalSegmentator dataset (its first case is taken), the folder of one of its cases (ct.nii.gz and
            segmentations/), or a folder with one CT (*_ct.nii.gz), one label map on the same grid (*_seg*.nii.gz)
            and class_map.json (id to name).
        work: Where a label map is split into masks, if that is what `data` holds.

    Returns:
        The folder of one case, with ct.nii.gz and segmentations/.

    Raises:
        FileNotFoundError: The folder is missing or holds none of these.
    """
    data = data.expanduser()
    for image in (data / "ct.nii.gz", *sorted(data.glob("*/ct.nii.gz"))):
        if image.is_file():
            return image.parent
    images, labels = sorted(data.glob("*_ct.nii.gz")), sorted(data.glob("*_seg*.nii.gz"))
    if len(images) == len(labels) == 1 and (data / "class_map.json").is_file():
        return _split_label_map(images[0], labels[0], data / "class_map.json", work)
    raise FileNotFoundError(
        f"no real CT found in {data}; expected ct.nii.gz with segmentations/, folders of that kind, "
        f"or NAME_ct.nii.gz with NAME_seg.nii.gz and class_map.json"
    )


def _split_label_map(image: Path, label_map: Path, class_map: Path, work: Path) -> Path:
    case = work / image.name.removesuffix("_ct.nii.gz")
    loaded = nib.load(label_map)
    values = np.asanyarray(loaded.dataobj)
    for class_id, name in read_json(class_map).items():
        with written_atomically(case / "segmentations" / f"{name}.nii.gz") as temporary:
            nib.save(nib.Nifti1Image((values == int(class_id)).astype(np.uint8), loaded.affine), temporary)
    link = case / "ct.nii.gz"
    if not link.is_symlink():
        link.symlink_to(image.absolute())
    return case
