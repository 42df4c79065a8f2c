"""Reading a checkpoint of about 400 MB: seconds and memory, against torch's readers and the reading of plain bytes.

    python benchmarks/loading.py --work /tmp/loading_benchmark [--repeats 5] [--epochs 1000] [--classes 31]

The file is what nnU-Net saves: a residual encoder U-Net with all its second names, SGD's momentum, and a log of
1,000 epochs with 31 classes as numpy scalars. Every run is a process of its own, arms in turn, the file in the page
cache. Seconds are counted after the imports, from opening the file until every value has been copied into tensors that
exist already, as a network's do: the weights (a transfer), or weights and momentum (a run that goes on). Memory is the
largest resident size beyond that before the reading, pages of the mapped file included. The CPU's seconds are what to
look at on a busy machine. `torch.load(weights_only=True)`
is told of numpy's scalars, without which it refuses nnU-Net's files. The table gives medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

BLOCKS = (1, 3, 4, 4, 2, 2)
ARMS = {
    "bytes of the file": ("bytes", "-"),
    "ours, weights": ("ours", "weights"),
    "torch.load (stock), weights": ("stock", "weights"),
    "torch.load weights_only mmap, weights": ("torch_safe", "weights"),
    "ours, all": ("ours", "all"),
    "torch.load (stock), all": ("stock", "all"),
    "torch.load weights_only mmap, all": ("torch_safe", "all"),
    "ours, inspect": ("inspect", "-"),
}


def make_checkpoint(path: Path, epochs: int, classes: int) -> None:
    """Writes the file."""
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    features = [32, 64, 128, 256, 320, 320]
    network = ResidualEncoderUNet(
        1, 6, features, torch.nn.Conv3d, 3, [1] + [2] * 5, BLOCKS, classes + 1, [1] * 5, conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d, norm_op_kwargs={"affine": True}, nonlin=torch.nn.LeakyReLU,
        deep_supervision=True,
    )  # fmt: skip
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    random = np.random.default_rng(0)
    dice = [list(random.random(classes)) for _ in range(epochs)]
    logging = {"dice_per_class_or_region": dice, "mean_fg_dice": list(random.random(epochs))}
    content = {
        "network_weights": network.state_dict(),
        "optimizer_state": optimizer.state_dict(),
        "grad_scaler_state": None,
        "logging": logging,
        "_best_ema": np.float64(0.5),
        "current_epoch": epochs,
        "init_args": {"plans": plans(), "configuration": "3d_fullres", "fold": 0, "dataset_json": dataset(classes)},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(content, path)


def plans() -> dict[str, Any]:
    """What a card needs of plans."""
    network = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    configuration = {
        "spacing": [1.5] * 3,
        "patch_size": [128] * 3,
        "normalization_schemes": ["CTNormalization"],
        "architecture": {"network_class_name": network, "arch_kwargs": {}, "_kw_requires_import": []},
    }
    statistics_of_ct = {"mean": 90.0, "std": 130.0, "percentile_00_5": -900.0, "percentile_99_5": 300.0}
    return {
        "dataset_name": "Dataset900_Merged",
        "plans_name": "nnUNetPlans",
        "configurations": {"3d_fullres": configuration},
        "foreground_intensity_properties_per_channel": {"0": statistics_of_ct},
    }


def dataset(classes: int) -> dict[str, Any]:
    """A dataset.json."""
    labels = {"background": 0, **{f"structure_{i}": i for i in range(1, classes + 1)}}
    return {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}


def shapes(path: Path) -> dict[str, list[list[int]]]:
    """Returns the shapes of the tensors to fill, for every part."""
    content = torch.load(path, weights_only=False, mmap=True)
    return {"-": [], **{part: [list(tensor.shape) for tensor in tensors(content, part)] for part in ("weights", "all")}}


def tensors(content: dict[str, Any], part: str) -> Iterator[torch.Tensor]:
    """Yields weights, each once, and momentum if asked."""
    seen = set()
    for tensor in content["network_weights"].values():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            yield tensor
    if part == "all":
        yield from (state["momentum_buffer"] for state in content["optimizer_state"]["state"].values())


def reader(arm: str) -> Callable[[Path], Any]:
    """Returns what an arm reads with; imports what it needs."""
    if arm == "ours":
        from nnunet_pretrain.checkpoints.reading import read_checkpoint

        return read_checkpoint
    if arm == "inspect":
        import nnunetv2.utilities.plans_handling.plans_handler  # noqa: F401

        from nnunet_pretrain.checkpoints.inspection import describe, read_card

        return lambda path: describe(read_card(path))
    if arm == "torch_safe":
        scalars = [np.dtype, type(np.dtype(float)), np._core.multiarray.scalar]  # type: ignore[attr-defined]
        torch.serialization.add_safe_globals(scalars)
        return lambda path: torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if arm == "stock":
        return lambda path: torch.load(path, map_location="cpu", weights_only=False)
    return lambda path: path.read_bytes()


def measure(path: Path, arm: str, part: str, sizes: list[list[int]]) -> dict[str, float]:
    """Reads the file once and copies its tensors."""
    torch.set_num_threads(1)
    read = reader(arm)
    network = [torch.ones(size) for size in sizes]
    before, started, cpu = largest_memory(), time.perf_counter(), time.process_time()
    content = read(path)
    for target, tensor in zip(network, tensors(content, part) if sizes else (), strict=True):
        target.copy_(tensor)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "mb": (largest_memory() - before) / 1e6}


def largest_memory() -> int:
    """Returns the most memory this process has had, in bytes (Linux)."""
    return 1024 * int(Path("/proc/self/status").read_text(encoding="ascii").partition("VmHWM:")[2].split()[0])


def run(path: Path, arm: str, part: str, sizes: list[list[int]]) -> dict[str, float]:
    """Measures in a new process."""
    question = json.dumps({"path": str(path), "arm": arm, "part": part, "sizes": sizes})
    done = subprocess.run(
        [sys.executable, __file__, "--measure"], input=question, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def table(path: Path, runs: dict[str, list[dict[str, float]]]) -> str:
    """Returns the Markdown table."""
    size = path.stat().st_size / 1e6
    medians = {
        name: {key: statistics.median(r[key] for r in found) for key in found[0]} for name, found in runs.items()
    }
    plain = medians["bytes of the file"]
    lines = [
        f"File of {size:.0f} MB.",
        "",
        "| what | s | of reading the bytes | CPU s | of reading the bytes | MB | of the file |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in medians.items():
        ratios = [f"{found[key]:.3f} | {found[key] / plain[key]:.2f}" for key in ("seconds", "cpu")]
        lines.append(f"| {name} | {' | '.join(ratios)} | {found['mb']:.0f} | {found['mb'] / size:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Makes the file, measures all arms in turn, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("loading_benchmark"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--classes", type=int, default=31)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        asked = json.loads(sys.stdin.read())
        print(json.dumps(measure(Path(asked["path"]), asked["arm"], asked["part"], asked["sizes"])))
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    path = arguments.work / f"checkpoint_{arguments.epochs}_{arguments.classes}.pth"
    if not path.is_file():
        make_checkpoint(path, arguments.epochs, arguments.classes)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    sizes = shapes(path)
    for _ in range(arguments.repeats):
        for name, (arm, part) in ARMS.items():
            runs[name].append(run(path, arm, part, sizes[part]))
    print(table(path, runs))


if __name__ == "__main__":
    main()
