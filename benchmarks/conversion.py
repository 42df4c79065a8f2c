"""Conversion of AbdomenAtlas-like cases: ours against the usual nibabel script, SimpleITK, and what gzip alone costs.

    python benchmarks/conversion.py --work /tmp/conversion_benchmark [--label shared/data/amos_label/amos_0001.nii.gz]

Every arm runs in a process of its own with one thread, on the same files, which are read once beforehand so that all
find them in the page cache. The cases are phantoms, 512 x 512 x (100 to 300), 25 gzipped masks and a CT each; they are
made on the first run (about a minute per case and core) and kept in --work.

Ours does more than the peers: it also reads the CT (checks, fingerprint), hashes every input and verifies every gzip
checksum. The limit inflates the same 26 files and deflates the merged label with the fastest gzip library found (isal),
and does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

SLICES = (100, 130, 160, 190, 215, 240, 270, 300)
ARMS = ("ours", "ours, labels only", "limit", "limit without CT", "nibabel", "SimpleITK")


def make_case(root: Path, seed: int, slices: int) -> None:
    """Writes one phantom the way AbdomenAtlas 1.1 lies on disk."""
    from nnunet_pretrain.conversion import find_source
    from nnunet_pretrain.phantom.datasets import write_phantom_source

    spacing = (0.8, 0.8, 400 / slices)
    write_phantom_source(
        find_source("AbdomenAtlas1.1"),
        root,
        [seed],
        ("RAS", "LPS")[seed % 2 :],
        shape=(512, 512, slices),
        spacing_mm=spacing,
    )


def cases_of(root: Path) -> list[Path]:
    """Returns the folders of the cases."""
    return sorted(path.parent for path in root.glob("BDMAP_*/ct.nii.gz"))


def ours(case: Path, output: Path) -> None:
    """Converts a case with this package."""
    from nnunet_pretrain.conversion.catalogue import find_source
    from nnunet_pretrain.conversion.convert import convert_case
    from nnunet_pretrain.conversion.layout import find_cases
    from nnunet_pretrain.conversion.record import Conversion
    from nnunet_pretrain.labels import DEFAULT_SPACE

    source = find_source("AbdomenAtlas1.1")
    (files,) = (files for files in find_cases(source, case.parent).cases if files.image.parent == case)
    convert_case(Conversion(files, source, DEFAULT_SPACE, output))


def labels_only(case: Path, output: Path) -> None:
    """The part of `ours` that the peers do: merge the masks and write the label; the CT's voxels are not read."""
    from nnunet_pretrain.conversion.geometry import Alignment
    from nnunet_pretrain.conversion.label_map import LabelMap
    from nnunet_pretrain.conversion.volume import NiftiVolume, write_nifti

    grid = NiftiVolume(case / "ct.nii.gz").grid
    labels, alignment = LabelMap(grid.size), Alignment(grid)
    for number, path in enumerate(sorted((case / "segmentations").glob("*.nii.gz")), start=1):
        labels.paint(alignment.chunks(NiftiVolume(path)), path.name, number, path)
    labels.settle_overlaps(None)
    write_nifti(output / "labels_only.nii.gz", labels.voxels.reshape(grid.shape, order="F"), grid.affine)


def with_nibabel(case: Path, output: Path) -> None:
    """The usual script: one mask after the other as a whole array, later ones over earlier ones."""
    import nibabel as nib

    merged, affine = None, None
    for number, path in enumerate(sorted((case / "segmentations").glob("*.nii.gz")), start=1):
        image = nib.load(path)
        mask = np.asanyarray(image.dataobj)
        if merged is None:
            merged, affine = np.zeros(mask.shape, np.uint8), image.affine
        merged[mask > 0] = number
    nib.save(nib.Nifti1Image(merged, affine), output / "nibabel.nii.gz")


def with_simpleitk(case: Path, output: Path) -> None:
    """The same with SimpleITK, written with compression."""
    import SimpleITK

    merged, reference = None, None
    for number, path in enumerate(sorted((case / "segmentations").glob("*.nii.gz")), start=1):
        reference = SimpleITK.ReadImage(str(path))
        mask = SimpleITK.GetArrayFromImage(reference)
        merged = np.zeros(mask.shape, np.uint8) if merged is None else merged
        merged[mask > 0] = number
    result = SimpleITK.GetImageFromArray(merged)
    result.CopyInformation(reference)
    SimpleITK.WriteImage(result, str(output / "simpleitk.nii.gz"), True)


def limit(case: Path, output: Path, with_ct: bool = True) -> None:
    """Inflates the inputs and deflates the merged label, which `ours` wrote, and does nothing else."""
    from isal import igzip

    buffer = bytearray(1 << 18)
    for path in [*sorted((case / "segmentations").glob("*.nii.gz")), *([case / "ct.nii.gz"] if with_ct else [])]:
        with igzip.open(path) as file:
            while file.readinto(buffer):
                pass
    label = igzip.open(output / "labelsTr" / f"AA11_{case.name.removeprefix('BDMAP_')}.nii.gz").read()
    with igzip.open(output / "limit.gz", "wb", compresslevel=1) as file:
        file.write(label)


def run_arm(arm: str, root: Path, output: Path) -> dict[str, float]:
    """Runs one arm over all cases and returns seconds per case and peak memory in MB."""
    functions = {
        "ours": ours,
        "ours, labels only": labels_only,
        "nibabel": with_nibabel,
        "SimpleITK": with_simpleitk,
        "limit": limit,
        "limit without CT": lambda case, output: limit(case, output, with_ct=False),
    }
    cases = cases_of(root)
    functions[arm](cases[0], output)  # imports, page cache
    start = time.perf_counter()
    for case in cases:
        functions[arm](case, output)
    seconds = (time.perf_counter() - start) / len(cases)
    return {"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000}


def in_own_process(arm: str, root: Path, output: Path) -> dict[str, float]:
    """Runs one arm in a fresh process with one thread."""
    command = [sys.executable, __file__, "--work", str(root), "--arm", arm, "--output", str(output)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), "1")
    done = subprocess.run(
        command, env={**os.environ, **threads}, capture_output=True, text=True, encoding="utf-8", check=True
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def scaling(root: Path, output: Path, rounds: int) -> float:
    """Returns the efficiency of two processes: time with one over twice the time with two, start-up included."""
    from nnunet_pretrain.conversion.catalogue import find_source
    from nnunet_pretrain.conversion.engine import convert_or_quarantine, run_all
    from nnunet_pretrain.conversion.layout import find_cases
    from nnunet_pretrain.conversion.record import Conversion
    from nnunet_pretrain.labels import DEFAULT_SPACE

    source = find_source("AbdomenAtlas1.1")
    jobs = [Conversion(files, source, DEFAULT_SPACE, output) for files in find_cases(source, root).cases] * rounds
    seconds = []
    for processes in (1, 2):
        start = time.perf_counter()
        records = list(run_all(convert_or_quarantine, jobs, num_processes=processes, what=f"{processes} processes"))
        seconds.append(time.perf_counter() - start)
        assert not any(record.quarantined for record in records), records
    return seconds[0] / (2 * seconds[1])


def one_label(label: Path) -> dict[str, float]:
    """Times a real multi-label file: read, remapped and written by us, by nibabel, and inflated and deflated only."""
    import nibabel as nib
    from isal import igzip

    from nnunet_pretrain.conversion.label_map import LabelMap
    from nnunet_pretrain.conversion.volume import NiftiVolume, write_nifti

    lookup = np.arange(256, dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "label.nii.gz"

        def by_us() -> None:
            volume = NiftiVolume(label)
            labels = LabelMap(volume.grid.size)
            labels.remap(volume.chunks(), {i: i for i in range(1, 256)}, label)
            write_nifti(out, labels.voxels.reshape(volume.grid.shape, order="F"), volume.grid.affine)

        def by_nibabel() -> None:
            image = nib.load(label)
            nib.save(nib.Nifti1Image(lookup[np.asanyarray(image.dataobj)], image.affine), out)

        def only_gzip() -> None:
            buffer = bytearray(1 << 18)
            with igzip.open(label) as file:
                while file.readinto(buffer):
                    pass
            with igzip.open(Path(folder) / "limit.gz", "wb", compresslevel=1) as file:
                file.write(plain)

        by_us()
        plain = igzip.open(out).read()
        return {f.__name__: min(_timed(f) for _ in range(5)) for f in (by_us, by_nibabel, only_gzip)}


def _timed(function) -> float:  # type: ignore[no-untyped-def]
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Prepares the cases, runs every arm, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--label", type=Path, default=None, help="a real multi-label file to time as well")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--arm", choices=ARMS, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.arm:
        print(json.dumps(run_arm(arguments.arm, arguments.work, arguments.output)))
        return
    root, output = arguments.work / "data", arguments.work / "output"
    output.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(make_case, [root] * len(SLICES), range(len(SLICES)), SLICES))
    # the peers take ten times as long and vary little
    rounds = {arm: 1 if arm in ("nibabel", "SimpleITK") else arguments.repeats for arm in ARMS}
    runs = {arm: [in_own_process(arm, root, output) for _ in range(rounds[arm])] for arm in ARMS}
    best = {arm: min(result["seconds"] for result in results) for arm, results in runs.items()}
    print("| arm | s per case (least, most) | ours is so many times as fast | peak MB |\n|---|---|---|---|")
    for arm, results in runs.items():
        seconds = [result["seconds"] for result in results]
        peak = max(result["peak_mb"] for result in results)
        print(f"| {arm} | {min(seconds):.2f} ({max(seconds):.2f}) | {best[arm] / best['ours']:.2f} | {peak:.0f} |")
    print(f"ours / limit: {best['ours'] / best['limit']:.2f}")
    print(f"largest CT as int16: {512 * 512 * max(SLICES) * 2 / 1e6:.0f} MB")
    print(f"efficiency of two processes: {scaling(root, output, 3):.2f}")
    if arguments.label:
        print("one real label:", {name: f"{seconds:.3f} s" for name, seconds in one_label(arguments.label).items()})


if __name__ == "__main__":
    main()
