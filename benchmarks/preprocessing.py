"""Preprocessing of one case of 512 x 512 x 300 with 25 structures: ours against stock nnU-Net, whole and by stage.

    python benchmarks/preprocessing.py --work /tmp/preprocessing_benchmark [-device cpu|cuda] [--ignore] [--repeats 3]

The case is resampled from 0.8 x 0.8 x 1.5 mm to 1.5 mm. Stock runs the default plan (splines); ours runs the torch plan
(linear for the image, the default for labels) and the default plan. Every run is a process of its own, arms in turn, on
the same files, which are in the page cache, after a small case that starts imports and CUDA. The table gives the least
seconds of each arm and stage, on the clock / of the CPU (all cores); on a busy machine look at the CPU's. Labels and
class locations must be equal in all arms, else the script fails. With --ignore the dataset has an ignore label, and
nnU-Net then also draws from all voxels.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

STRUCTURES = 25
SHAPE, SPACING = (512, 512, 300), (0.8, 0.8, 1.5)
STAGES = ("read", "crop and normalise", "resample image", "resample labels", "class locations", "write", "whole case")
PARTS = {
    "read": ("run_case", "run_case_npy"),
    "crop and normalise": ("run_case_npy", "resample image", "resample labels", "class locations"),
    "write": ("whole case", "run_case"),
}


def make_case(folder: Path) -> None:
    """Writes a noisy ellipse of a body with ellipsoids of wavy surface in it."""
    import nibabel as nib

    random = np.random.default_rng(0)
    x, y, z = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    body = ((x - 256) / 230) ** 2 + ((y - 256) / 160) ** 2 < 1
    image, label = np.empty(SHAPE, np.int16), np.zeros(SHAPE, np.uint8)
    for k in range(SHAPE[2]):
        noise = random.normal(0, 15, SHAPE[:2])
        image[..., k] = np.where(body[..., 0], 40 + noise, -1000 + np.maximum(noise, 0))
    waves = 0.15 * np.sin(x / 5) * np.sin(y / 7) * np.sin(z / 4)
    for structure in range(1, STRUCTURES + 1):
        centre = random.uniform((90, 150, 30), (420, 360, 270))
        radii = random.uniform(12, 55, 3)
        inside = sum(((axis - c) / r) ** 2 for axis, c, r in zip((x, y, z), centre, radii, strict=True)) + waves < 1
        label[inside] = structure
        image[inside] += 20 + 4 * structure
    folder.mkdir(parents=True, exist_ok=True)
    small = (slice(200, 260), slice(200, 260), slice(100, 130))
    for name, array in (("small_0000", image[small]), ("small", label[small]), ("case_0000", image), ("case", label)):
        nib.save(nib.Nifti1Image(array, np.diag([*SPACING, 1.0])), folder / f"{name}.nii.gz")


def plans() -> dict[str, Any]:
    """Returns what preprocessing reads of nnU-Net's plans."""
    splines = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration: dict[str, Any] = {
        "data_identifier": "benchmark",
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": [128, 128, 128],
        "spacing": [1.5, 1.5, 1.5],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {},
    }
    for what, settings in (("data", splines), ("seg", {**splines, "is_seg": True, "order": 1})):
        configuration[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        configuration[f"resampling_fn_{what}_kwargs"] = settings
    window = {"mean": 50.0, "std": 100.0, "percentile_00_5": -900.0, "percentile_99_5": 250.0}
    return {
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": window},
        "configurations": {"3d_fullres": configuration},
    }


class Watch(dict[str, Any]):
    """Seconds by stage, on the clock and of all CPU cores together."""

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Times a block."""
        start = np.array([time.perf_counter(), time.process_time()])
        yield
        self[stage] = np.array([time.perf_counter(), time.process_time()]) - start

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function, timed."""

        def call(*arguments: Any, **options: Any) -> Any:
            with self(stage):
                return function(*arguments, **options)

        return call

    def timed_property(self, stage: str, function: Callable[..., Any]) -> property:
        """Returns a property that gives the function, timed."""
        call = self.timed(stage, function)
        return property(lambda _: call)

    def stages(self) -> dict[str, list[float]]:
        """Returns wall and CPU seconds of every stage of the table."""
        parts = {stage: self[parts[0]] - sum(self[part] for part in parts[1:]) for stage, parts in PARTS.items()}
        return {stage: {**self, **parts}[stage].tolist() for stage in STAGES}


def run_arm(arm: str, work: Path, ignore: bool) -> dict[str, list[float]]:
    """Preprocesses the case once and returns wall and CPU seconds by stage, and the peak memory in MB."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

    from nnunet_pretrain.planning.resampling import use_torch_resampling
    from nnunet_pretrain.preprocessing.fast_preprocessor import FastConfiguration, FastPlans, FastPreprocessor

    who, plan, device = arm.split(", ")
    chosen = use_torch_resampling(plans()) if plan == "torch plan" else plans()
    entries = chosen["configurations"]["3d_fullres"]
    if who == "stock":
        configuration, preprocessor = ConfigurationManager(entries), DefaultPreprocessor(verbose=False)
    else:
        configuration, preprocessor = FastConfiguration(entries, device, os.cpu_count() or 1), FastPreprocessor(False)
    manager = (PlansManager if who == "stock" else FastPlans)(chosen)
    labels = {"background": 0, **{f"structure_{i}": i for i in range(1, STRUCTURES + 1)}}
    labels |= {"ignore": STRUCTURES + 1} if ignore else {}
    # Imports, look-ups of classes and the start of CUDA, which a worker does once and not per case.
    small = ([str(work / "small_0000.nii.gz")], str(work / "small.nii.gz"))
    preprocessor.run_case(*small, manager, configuration, {"labels": labels})
    watch = Watch()
    stages = {"resampling_fn_data": "resample image", "resampling_fn_seg": "resample labels"}
    timed = {name: watch.timed_property(stage, getattr(configuration, name)) for name, stage in stages.items()}
    configuration.__class__ = type("Timed", (type(configuration),), timed)
    for method, stage in (("_sample_foreground_locations", "class locations"), ("run_case", ""), ("run_case_npy", "")):
        setattr(preprocessor, method, watch.timed(stage or method, getattr(preprocessor, method)))
    out = work / "out" / arm.replace(", ", "_").replace(" ", "_")
    out.mkdir(parents=True, exist_ok=True)
    for path in out.iterdir():
        path.unlink()
    files = ([str(work / "case_0000.nii.gz")], str(work / "case.nii.gz"))
    with watch("whole case"):
        preprocessor.run_case_save(str(out / "case"), *files, manager, configuration, {"labels": labels})
    return {**watch.stages(), "peak MB": [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]}


def check_equal(work: Path) -> None:
    """Fails unless labels and class locations are equal in all arms."""
    import blosc2

    first, *others = sorted((work / "out").iterdir())
    for other in others:
        one, two = (blosc2.open(str(folder / "case_seg.b2nd"), mode="r")[:] for folder in (first, other))
        if one.dtype != two.dtype or not np.array_equal(one, two):
            sys.exit(f"labels differ between {first} and {other}")
        one, two = (pickle.loads((f / "case.pkl").read_bytes())["class_locations"] for f in (first, other))
        if list(one) != list(two) or not all(np.array_equal(one[key], two[key]) for key in one):
            sys.exit(f"class locations differ between {first} and {other}")


def table(best: dict[str, dict[str, list[float]]]) -> str:
    """Returns a Markdown table; seconds on the clock and of the CPU, ratios are stock over ours."""
    stock, *ours = best
    head = ["stage", stock, *(cell for arm in ours for cell in (arm, "ratio"))]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for stage in (*STAGES, "peak MB"):
        shown = [" / ".join(f"{value:.{0 if stage == 'peak MB' else 2}f}" for value in best[stock][stage])]
        for arm in ours:
            pairs = list(zip(best[stock][stage], best[arm][stage], strict=True))
            shown.append(" / ".join(f"{mine:.{0 if stage == 'peak MB' else 2}f}" for _, mine in pairs))
            shown.append(" / ".join(f"{theirs / mine:.1f}" for theirs, mine in pairs))
        lines.append(f"| {stage} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the case and the results")
    parser.add_argument("-device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--ignore", action="store_true", help="the dataset has an ignore label")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        import nnunetv2  # noqa: F401
    except ImportError:
        sys.exit(
            "this benchmark compares with nnU-Net, which is not installed here; pip install 'nnunetv2>=2.8.1,<2.9'"
        )
    if arguments.arm:
        print(json.dumps(run_arm(arguments.arm, arguments.work, arguments.ignore)))
        return
    if not (arguments.work / "case.nii.gz").is_file():
        make_case(arguments.work)
    arms = ["stock, default plan, cpu", "ours, torch plan, cpu", "ours, default plan, cpu"]
    if arguments.device == "cuda":
        arms.insert(1, "ours, torch plan, cuda")
    best: dict[str, dict[str, list[float]]] = {}
    for _ in range(arguments.repeats):
        for arm in arms:
            command = [sys.executable, __file__, *sys.argv[1:], "--arm", arm]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8")
            seconds = json.loads(done.stdout.splitlines()[-1])
            before = best.get(arm, seconds)
            best[arm] = {key: [min(pair) for pair in zip(v, before[key], strict=True)] for key, v in seconds.items()}
            print(f"{arm}: {seconds['whole case']} s", file=sys.stderr)
    check_equal(arguments.work)
    print(table(best))


if __name__ == "__main__":
    main()
