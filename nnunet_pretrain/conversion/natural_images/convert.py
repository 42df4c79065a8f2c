"""Making one nnU-Net raw dataset of a folder of natural images.

The three colours of an image become the three slices of a volume of one channel (VDT, arXiv 2201.01426).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from nnunet_pretrain import __version__
from nnunet_pretrain.conversion.dataset_json import QUARANTINE
from nnunet_pretrain.conversion.engine import RECORDS, run_all
from nnunet_pretrain.conversion.natural_images.coco import check_installed
from nnunet_pretrain.conversion.natural_images.image import Rules
from nnunet_pretrain.conversion.natural_images.index import INDEX, NATURAL_KEY, ImageIndex, NaturalImage
from nnunet_pretrain.conversion.natural_images.layout import Layout, Task
from nnunet_pretrain.conversion.natural_images.listing import Listing, list_photographs
from nnunet_pretrain.conversion.natural_images.masks import MaskLabels, read_label_names, values_in
from nnunet_pretrain.conversion.natural_images.recognition import choose_layout
from nnunet_pretrain.conversion.natural_images.shards import (
    Shard,
    ShardResult,
    convert_shard,
    make_shards,
    read_shard,
    reshard,
    surplus,
)
from nnunet_pretrain.conversion.natural_images.summary import summary
from nnunet_pretrain.files import read_json, write_json
from nnunet_pretrain.folders import raw_folder_to_make
from nnunet_pretrain.labels import BACKGROUND

STORAGES = ("volumes", "originals")
_RUN = "run.json"
_NAMED = 5


@dataclass(frozen=True)
class NaturalImageOptions:
    """How to convert.

    Attributes:
        layout: Name or file of the layout, or None to recognise it.
        storage: `volumes` writes every image as a volume; `originals` leaves them to be read in training.
        labels: JSON that names the values of masks, or None.
        strict: Whether the first image that cannot be used ends the run.
        dask: Address of a Dask scheduler, or None.
        num_processes: Worker processes.
    """

    layout: str | None = None
    storage: str = "volumes"
    labels: Path | None = None
    strict: bool = False
    dask: str | None = None
    num_processes: int = 2


def convert_2d(
    path: Path,
    dataset_id: int,
    name: str,
    task: Task,
    options: NaturalImageOptions | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Makes a raw dataset of natural images, or brings it up to date; what is there and unchanged is left alone.

    Images that cannot be used are left out and listed in quarantine.json.

    Args:
        path: Folder of the images.
        dataset_id: nnU-Net dataset id, 1 to 999.
        name: Dataset name without its number.
        task: What the images' labels are: classes of images, or masks.
        options: How to convert.
        report: Called with lines for the user.

    Returns:
        The folder of the dataset.

    Raises:
        ValueError: An argument or the folder is unusable, a class has no usable image, or with `strict` an image
            cannot be used.
        FileNotFoundError: The folder, or a file the layout names, is missing.
    """
    options, started = options or NaturalImageOptions(), time.monotonic()
    if options.storage not in STORAGES:
        raise ValueError(f"--storage must be one of {', '.join(STORAGES)}, got '{options.storage}'")
    root, folder = Path(os.path.abspath(path.expanduser())), raw_folder_to_make(dataset_id, name)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; expected the folder of the images")
    layout = choose_layout(root, task, options.layout, report)
    listing = list_photographs(root, layout, task)
    for remark in listing.remarks:
        report(remark)
    if listing.classes:
        more = ", ..." if len(listing.classes) > _NAMED else ""
        report(f"{len(listing.classes)} classes: {', '.join(listing.classes[:_NAMED])}{more}")
    run = _Run(folder, root, task, layout, listing, options, _rules(root, listing, layout, task, options))
    run.claim()
    report(f"{folder.name}: {len(listing.photographs)} images, in {folder}")
    index = run.convert()
    run.finish(index)
    for line in summary(run.tally, index, listing.classes, options.storage, time.monotonic() - started):
        report(line)
    return folder


@dataclass
class _Run:
    """One conversion: what is to be done, and what came of it."""

    folder: Path
    root: Path
    task: Task
    layout: Layout
    listing: Listing
    options: NaturalImageOptions
    rules: Rules
    tally: ShardResult = field(default_factory=ShardResult)

    def claim(self) -> None:
        """Makes sure that the folder is empty or holds an earlier run of the same command.

        Raises:
            ValueError: It holds something else.
        """
        path = self.folder / RECORDS / _RUN
        now = {"task": self.task, "storage": self.options.storage, "root": str(self.root)}
        if path.is_file():
            before = read_json(path)
            for key in ("task", "storage"):
                if before.get(key) != now[key]:
                    raise ValueError(
                        f"{self.folder} was made with --{key} {before.get(key)}, not {now[key]}; choose another -d, or "
                        f"remove it first"
                    )
            if before.get("root") != now["root"] and not self._shares_images():
                raise ValueError(
                    f"{self.folder} was made of the images in {before.get('root')}, none of which is in {self.root}; "
                    f"choose another -d, or remove it first"
                )
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise ValueError(
                f"{self.folder} exists and was not made by `nnunet_pretrain convert_2d`; choose another -d"
            )
        write_json(path, now)

    def _shares_images(self) -> bool:
        """Tells whether some image of the earlier run is there now, as it is when all were moved."""
        cases = {photograph.case for photograph in self.listing.photographs}
        records = sorted((self.folder / RECORDS).glob("*-of-*.json"))
        return not records or any(case in cases for path in records[:8] for case in read_shard(path))

    def convert(self) -> ImageIndex:
        """Converts what is not there yet, and removes what belongs to images that are gone."""
        photographs = self.listing.photographs
        make = partial(Shard, folder=self.folder, root=self.root, rules=self.rules, strict=self.options.strict)
        shards = make_shards(photographs, make)
        reshard(self.folder, shards[0].of)
        for path in surplus(self.folder, photographs, shards):
            (self.folder / "dataset.json").unlink(missing_ok=True)  # until it is written again, it is incomplete
            path.unlink()
        results = run_all(
            convert_shard,
            shards,
            num_processes=self.options.num_processes,
            what="converting",
            dask=self.options.dask,
            unit="shard",
        )
        return ImageIndex.from_rows(self._counted(results))

    def _counted(self, results: Iterable[ShardResult]) -> Iterator[NaturalImage]:
        for result in results:
            self.tally.add(result)
            yield from result.rows

    def finish(self, index: ImageIndex) -> None:
        """Writes the index, what was quarantined and, last, dataset.json.

        Raises:
            ValueError: Too few images are left, or none of some class.
        """
        reasons = list(self.tally.quarantined.values())
        if len(index) < 2:
            raise ValueError(
                f"{len(index)} of {len(index) + len(reasons)} images can be used, expected at least 2: "
                f"{'; '.join(reasons[:_NAMED])}"
            )
        empty = sorted(set(self.listing.classes) - set(index.labels.tolist()))
        if empty:
            raise ValueError(
                f"{len(empty)} classes have no image that can be used: {', '.join(empty[:_NAMED])}; remove their "
                f"folders or correct their images, then run the command again: {'; '.join(reasons[:_NAMED])}"
            )
        (self.folder / "dataset.json").unlink(missing_ok=True)
        index.write(self.folder / INDEX)
        if reasons:
            write_json(self.folder / QUARANTINE, dict(sorted(self.tally.quarantined.items())))
        else:
            (self.folder / QUARANTINE).unlink(missing_ok=True)
        write_json(self.folder / "dataset.json", self._dataset_json(len(index)))

    def _dataset_json(self, count: int) -> dict[str, Any]:
        """Returns nnU-Net's dataset.json; its cases stand in the index, for millions would burden every checkpoint."""
        masks, layout = self.rules.masks, self.layout
        labels = {BACKGROUND: 0, **self.rules.class_ids}
        own = {"task": self.task, "storage": self.options.storage, "root": str(self.root)}
        classes = {"classes": self.listing.classes} if masks is None else {}
        return {
            "name": self.folder.name,
            "channel_names": {"0": "natural image"},
            "labels": labels if masks is None else masks.dataset_labels(masks.ignore_id in self.tally.ids),
            "numTraining": count,
            "file_ending": ".nii.gz",
            "overwrite_image_reader_writer": "SimpleITKIO",
            "converted_by": f"nnunet_pretrain {__version__}",
            **{key: getattr(layout, key) for key in ("licence", "citation", "url") if getattr(layout, key)},
            NATURAL_KEY: {**own, **classes, "layout": layout.name},
        }


def _rules(root: Path, listing: Listing, layout: Layout, task: Task, options: NaturalImageOptions) -> Rules:
    """Returns what is to be made of every image.

    Raises:
        ValueError: Nothing says what the values of masks mean, or --labels was given where the data say it.
    """
    if task == "classification" or layout.segmentation is None:
        if options.labels is not None:
            raise ValueError("--labels names the values of masks; with --task classification leave it out")
        ids = {name: number for number, name in enumerate(listing.classes, start=1)}
        return Rules(options.storage, ids)
    if layout.segmentation.is_coco:
        check_installed()
        if options.labels is not None:
            raise ValueError(
                "--labels names the values of masks, but COCO annotations name their categories; leave it out"
            )
        return Rules(options.storage, masks=MaskLabels.of_values(listing.values or {}))
    # Masks of colours are refused here, before hours are spent on quarantining them one by one.
    masks = [root / photo.mask for photo in listing.photographs if photo.mask]
    if not masks:
        first = listing.photographs[0]
        raise ValueError(
            f"none of {len(listing.photographs)} images has a mask, such as {first.file}: it {first.fault}; name the "
            f"masks as the images, or say with --layout FILE.yaml where they are"
        )
    found = values_in(masks)
    values = read_label_names(options.labels) if options.labels is not None else listing.values
    if values is None:
        raise ValueError(
            f"nothing says what the values of the masks mean; some masks hold the values "
            f"{', '.join(map(str, found[:40]))}; name all values with --labels FILE.json, such as "
            f'{{"background": 0, "cat": 1, "ignore": 255}}'
        )
    return Rules(options.storage, masks=MaskLabels.of_values(values))
