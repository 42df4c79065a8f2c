"""Natural images: how long their conversion takes, and how much space each image needs as what.

    python benchmarks/natural_images.py --work /tmp/natural_images [--images 1000] [-np 2]

The images are made up: smooth noise of several sizes, edges and grain, 500 x 375 pixels as the average of ImageNet, at
the JPEG quality at which a file has about ImageNet's 110 kB. Every arm converts all of them from nothing, with files in
the page cache; on a busy machine look at the seconds of the CPU, which include the start of the processes. What is said
of ImageNet's 1,281,167 images is the CPU's time per image times their number, shared evenly by as many cores; disks
that cannot follow make it longer.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import zoom

from nnunet_pretrain.conversion.natural_images.convert import NaturalImageOptions, convert_2d
from nnunet_pretrain.conversion.natural_images.decoding import as_volume, decode
from nnunet_pretrain.conversion.natural_images.layout import Task
from nnunet_pretrain.files import read_json, write_json

IMAGENET = 1_281_167
SHAPE = (375, 500)
FILE_BYTES = 110_000
CLASSES = 10
PATCH = (3, 224, 224)
ARMS: tuple[tuple[Task, str], ...] = (
    ("classification", "volumes"),
    ("classification", "originals"),
    ("segmentation", "volumes"),
    ("segmentation", "originals"),
)


def photograph(random: np.random.Generator) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Returns something with the statistics of a photograph, and a mask of its objects.

    Returns:
        Colours of shape (*SHAPE, 3), and ids of shape SHAPE.
    """
    height, width = SHAPE
    colours = np.full((*SHAPE, 3), 115.0)
    for cells, strength in ((4, 50), (12, 25), (40, 14), (120, 8)):
        shared = random.standard_normal((cells, cells, 1)) + 0.4 * random.standard_normal((cells, cells, 3))
        smooth = zoom(shared, ((height + cells) / cells, (width + cells) / cells, 1), order=1)
        colours += strength * smooth[:height, :width]
    rows, columns = np.ogrid[:height, :width]
    mask = np.zeros(SHAPE, np.uint8)
    for structure in range(1, 6):
        y, x, a, b = random.uniform((0, 0, 20, 20), (height, width, height / 3, width / 3))
        inside = ((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 < 1
        colours[inside] = 0.5 * colours[inside] + 0.5 * random.uniform(0, 255, 3)
        mask[inside] = structure
    colours += random.normal(0, 4, (*SHAPE, 1)) + random.normal(0, 1, (*SHAPE, 3))
    return np.clip(colours, 0, 255).astype(np.uint8), mask


def make_images(root: Path, count: int) -> float:
    """Writes images and masks in folders that serve both tasks, and returns the mean size of an image in bytes."""
    random = np.random.default_rng(0)
    sizes = []
    for number in range(count):
        name = f"class{number % CLASSES}/{number:06d}"
        image, mask = root / "images" / f"{name}.jpg", root / "masks" / f"{name}.png"
        if not image.is_file() or not mask.is_file():
            for path in (image, mask):
                path.parent.mkdir(parents=True, exist_ok=True)
            colours, ids = photograph(np.random.default_rng([int(random.integers(1 << 31)), number]))
            _save_as_large(image, colours)
            Image.fromarray(ids).save(mask)
        sizes.append(image.stat().st_size)
    return float(np.mean(sizes))


def _save_as_large(path: Path, colours: npt.NDArray[np.uint8]) -> None:
    """Saves at the first quality at which the file is as large as ImageNet's."""
    for quality in range(50, 100, 2):
        Image.fromarray(colours).save(path, quality=quality)
        if path.stat().st_size >= FILE_BYTES:
            return


def cpu_seconds() -> float:
    """Returns the time all cores spent on this process and on those it started that have ended."""
    used = (resource.getrusage(whom) for whom in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def conversion_table(work: Path, arguments: argparse.Namespace) -> list[Sequence[object]]:
    """Converts all images in every arm; returns a table with its headings."""
    per_original = make_images(work / "photos", arguments.images)
    write_json(work / "labels.json", {"background": 0, **{f"object{i}": i for i in range(1, 6)}})
    headings = (
        "arm",
        f"s per 1,000 images, {arguments.np} processes",
        "the same of CPU",
        "images per s",
        "original bytes per image",
        "written bytes per image",
        "1.28 M images: h of 2 cores",
        "h of 32 cores",
        "written GB",
    )
    rows: list[Sequence[object]] = [headings]
    for number, (task, storage) in enumerate(ARMS, start=1):
        seconds, cpu, written = _convert(work, number, task, storage, arguments)
        hours = cpu * IMAGENET / 3600
        measured = (f"{1000 * seconds:.1f}", f"{1000 * cpu:.1f}", f"{1 / seconds:.0f}")
        sizes = (f"{per_original:,.0f}", f"{written:,.0f}")
        imagenet = (f"{hours / 2:.1f}", f"{hours / 32:.2f}", f"{written * IMAGENET / 1e9:,.0f}")
        rows.append((f"{task}, {storage}", *measured, *sizes, *imagenet))
    return rows


def _convert(
    work: Path, number: int, task: Task, storage: str, arguments: argparse.Namespace
) -> tuple[float, float, float]:
    """Converts all images; returns seconds, seconds of the CPU and bytes written, each per image."""
    masks = task == "segmentation"
    labels = work / "labels.json" if masks else None
    options = NaturalImageOptions(storage=storage, num_processes=arguments.np, labels=labels)
    shutil.rmtree(work / "nnUNet_raw", ignore_errors=True)
    (work / "nnUNet_raw").mkdir(parents=True)
    started, before = time.perf_counter(), cpu_seconds()
    folder = convert_2d(work / "photos" / ("" if masks else "images"), number, "Photos", task, options)
    seconds, cpu = time.perf_counter() - started, cpu_seconds() - before
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return seconds / arguments.images, cpu / arguments.images, written / arguments.images


def preprocessed_table(work: Path, arguments: argparse.Namespace) -> list[Sequence[object]]:
    """Normalises some images and writes them as nnU-Net's preprocessing does; returns a table with its headings."""
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    paths = sorted((work / "photos" / "images").rglob("*.jpg"))[: min(50, arguments.images)]
    folder = work / "preprocessed"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    values, seconds = 0, 0.0
    for path in paths:
        volume = as_volume(decode(path).rgb)[None]
        started = time.perf_counter()
        data = volume.astype(np.float32)
        data = (data - data.mean()) / data.std()
        seg = np.ones(data.shape, np.int8)
        chunking = comp_blosc2_params(data.shape, PATCH, data.itemsize)
        chunking_seg = comp_blosc2_params(seg.shape, PATCH, seg.itemsize)
        nnUNetDatasetBlosc2.save_case(
            data,
            seg,
            {},
            str(folder / path.stem),
            chunks=chunking[1],
            blocks=chunking[0],
            chunks_seg=chunking_seg[1],
            blocks_seg=chunking_seg[0],
        )
        seconds += time.perf_counter() - started
        values += data.size
    size = sum(path.stat().st_size for path in folder.iterdir())
    per_image = size / len(paths)
    return [
        ("preprocessed bytes per image", "bytes per value", "ms to normalise and write", "1.28 M images: GB"),
        (
            f"{per_image:,.0f}",
            f"{size / values:.2f}",
            f"{1000 * seconds / len(paths):.1f}",
            f"{per_image * IMAGENET / 1e9:,.0f}",
        ),
    ]


def reading_table(work: Path, arguments: argparse.Namespace) -> list[Sequence[object]]:
    """Reads images as the two trainers do, from originals and from volumes; returns a table with its headings.

    One core does everything, from files in the page cache, and its own time is what counts.
    """
    import torch
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    from nnunet_pretrain.classification.image_classes import OneVoxel
    from nnunet_pretrain.classification.resized_crops import ImageCrops, random_box
    from nnunet_pretrain.training.depth_slices import DepthShuffle, for_slices
    from nnunet_pretrain.training.natural_image_cases import CentredCases, FirstFailure

    torch.set_num_threads(1)
    np.random.seed(0)
    datasets = _both_storages(work, arguments)
    labels, failure = LabelManager(read_json(work / "labels.json"), None), FirstFailure()
    box = partial(random_box, area=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
    classes = ComposeTransforms([DepthShuffle(), OneVoxel()])
    stock = nnUNetTrainer.get_training_transforms(PATCH, (-np.pi, np.pi), None, (2,), True)
    rows: list[Sequence[object]] = [("batches of", "from", "ms of CPU per image", "images per s and core")]
    for storage, dataset in datasets.items():
        cases, larger = CentredCases(dataset, failure), (3, 318, 318)  # what nnU-Net cuts out for its rotations
        arms = {
            "random parts, for classes": (ImageCrops(dataset, PATCH, box, failure), PATCH, classes),
            "patches, for masks": (cases, PATCH, None),
            "patches, for masks, augmented": (cases, larger, for_slices(stock, grey=False, shuffle=True)),
        }
        for what, (shown, size, transforms) in arms.items():
            loader = nnUNetDataLoader(shown, 16, size, PATCH, labels, 0.33, transforms=transforms)
            next(loader)
            before, batches = time.process_time(), 6
            for _ in range(batches):
                next(loader)
            each = (time.process_time() - before) / (16 * batches)
            rows.append((what, storage, f"{1000 * each:.1f}", f"{1 / each:.0f}"))
    return rows


def _both_storages(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Converts the images to originals with masks, and writes some of them as nnU-Net's preprocessing does."""
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    from nnunet_pretrain.preprocessing.class_locations import sample_class_locations
    from nnunet_pretrain.training.original_images import OriginalImages

    write_json(work / "labels.json", {"background": 0, **{f"object{i}": i for i in range(1, 6)}})
    options = NaturalImageOptions(storage="originals", num_processes=arguments.np, labels=work / "labels.json")
    base = convert_2d(work / "photos", len(ARMS) + 1, "Reading", "segmentation", options)
    if not (base / "gt_segmentations").exists():
        (base / "gt_segmentations").symlink_to("labelsTr")
    folder = base / "volumes"
    originals = OriginalImages(str(folder))
    originals.identifiers = originals.identifiers[: min(100, arguments.images)]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for case in originals.identifiers.tolist():
        data, seg, _, properties = originals.load_case(case)
        properties["class_locations"] = sample_class_locations(seg, range(1, 6))
        sizes = dict(zip(("blocks", "chunks"), comp_blosc2_params(data.shape, PATCH, data.itemsize), strict=True))
        named = zip(("blocks_seg", "chunks_seg"), comp_blosc2_params(seg.shape, PATCH, seg.itemsize), strict=True)
        nnUNetDatasetBlosc2.save_case(data, seg, properties, str(folder / case), **sizes, **dict(named))
    return {"originals": originals, "volumes": nnUNetDatasetBlosc2(str(folder))}


Table = Callable[[Path, argparse.Namespace], list[Sequence[object]]]
TABLES: dict[str, Table] = {
    "conversion": conversion_table,
    "preprocessed": preprocessed_table,
    "reading": reading_table,
}
"""What is measured: a heading, and a function that returns a table with its headings in the first row."""


def markdown(rows: Sequence[Sequence[object]]) -> str:
    """Returns a table in Markdown."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("-np", type=int, default=2)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (work / variable).mkdir(parents=True, exist_ok=True)
        os.environ[variable] = str(work / variable)
    make_images(work / "photos", arguments.images)
    for heading, table in TABLES.items():
        if heading in arguments.tables:
            print(f"\n{heading}\n\n{markdown(table(work, arguments))}", flush=True)


if __name__ == "__main__":
    main()
