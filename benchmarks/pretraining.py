"""Times pre-training beside stock nnU-Net training: the loss alone, and the whole training step.

All arms see the same logits, labels, network and batch, in one process and in turns; tables give the least time of each
and its ratio to ours. Memory is measured one arm to a process, in a second step, beyond what the process then holds
(CPU, Linux only: peak resident size; GPU: peak allocation).

    python benchmarks/pretraining.py [-device cpu|cuda] [--part loss|step] [--repeats N] [--threads N] [--progress FILE]

`--progress` adds the share of time a real run waited for data, from its training_progress.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn

from nnunet_pretrain.conversion import find_source
from nnunet_pretrain.labels import LabelSetTable, LabelSpace
from nnunet_pretrain.labels.structures import ABDOMEN_ATLAS_STRUCTURES, LESIONS
from nnunet_pretrain.training.label_set_loss import LabelSetLoss
from nnunet_pretrain.training.label_sets import LabelSets

sys.path.insert(0, str(Path(__file__).parent))
from peer_losses import ClipTemplateLoss, LeafDiceLoss, MarginalizedDiceLoss, MultiTalentLoss

SOURCES = ("BTCV", "KiTS23")
OURS, STOCK = "label-set loss", "nnU-Net DC_and_CE"
PEERS = ("MultiTalent, double loop", "CLIP-Driven, template", "leaf-Dice", "marginalised Dice")
Step = Callable[[], None]


def label_sets(heads: int, sources: tuple[str, ...] = SOURCES) -> LabelSetTable:
    """Returns a table of real sources' label sets in a space with that many channels."""
    known = (*ABDOMEN_ATLAS_STRUCTURES, *LESIONS)
    extra = tuple(f"structure_{i}" for i in range(heads - 1 - len(known)))
    space = LabelSpace(name="benchmark", structures=(*known, *extra)[: heads - 1])
    return LabelSetTable(space, tuple(find_source(name).scheme(space)[0] for name in sources), {})


def blocks(patch: tuple[int, ...]) -> Tensor:
    """Returns stored ids that both sources know: background with three blocks."""
    target = torch.zeros(2, 1, *patch, dtype=torch.int16)
    depth, height, width = patch
    target[:, :, depth // 8 : depth // 3, height // 4 : -height // 4] = 3
    target[1, :, depth // 2 :, : height // 2, : width // 2] = 26
    target[0, :, depth // 2 :, : height // 2, : width // 2] = 5
    return target


def loss_steps(heads: int, patch: tuple[int, int, int], device: str, compile_it: bool) -> dict[str, Step]:
    """Returns forward and backward of every loss on the same logits, batch 2."""
    table = label_sets(heads)
    sets = LabelSets(table).to(device)
    schemes = torch.tensor([0, 1], device=device)
    ours = LabelSetLoss(sets, batch_dice=False, compile_it=compile_it)
    peers = dict(
        zip(
            PEERS,
            (MultiTalentLoss(table), ClipTemplateLoss(table), LeafDiceLoss(sets), MarginalizedDiceLoss(sets)),
            strict=True,
        )
    )
    stock = stock_loss(compile_it)
    logits = torch.randn(2, heads, *patch, device=device, requires_grad=True)
    target = blocks(patch).to(device)

    def step(loss: nn.Module, encoded: bool) -> Step:
        loss = loss.to(device)

        def run() -> None:
            logits.grad = None
            loss(logits, sets.encode(target, schemes) if encoded else target).backward()

        return run

    return {OURS: step(ours, True), STOCK: step(stock, False), **{n: step(p, True) for n, p in peers.items()}}


def stock_loss(compile_it: bool) -> nn.Module:
    """Returns nnU-Net's loss as its trainer makes it."""
    settings = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DC_and_CE_loss(settings, {}, dice_class=MemoryEfficientSoftDiceLoss)
    if compile_it:
        loss.dc = torch.compile(loss.dc)
    return loss


def train_steps(heads: int, patch: tuple[int, int, int], device: str, compile_it: bool) -> dict[str, Step]:
    """Returns whole training steps: network, deep supervision, clipping and SGD, as nnU-Net's trainer does them."""
    table = label_sets(heads)
    sets = LabelSets(table).to(device)
    schemes = torch.tensor([0, 1], device=device)
    ours = LabelSetLoss(sets, batch_dice=False, compile_it=compile_it)
    features = (32, 64, 128, 256) if device == "cuda" else (16, 32, 64)
    strides = (1, *[2] * (len(features) - 1))
    weights = [1 / 2**i for i in range(len(features) - 1)]
    full, batch = blocks(patch), torch.randn(2, 1, *patch)
    targets = [full[:, :, :: 2**i, :: 2**i, :: 2**i].contiguous() for i in range(len(features) - 1)]

    def step(loss: nn.Module, encoded: bool) -> Step:
        torch.manual_seed(0)
        network = PlainConvUNet(
            1, len(features), features, nn.Conv3d, 3, strides, 2, heads, 2, True, nn.InstanceNorm3d,
            {"affine": True}, None, None, nn.LeakyReLU, {"inplace": True}, deep_supervision=True,
        ).to(device)  # fmt: skip
        network = torch.compile(network) if compile_it else network
        optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.99, nesterov=True)
        scaler = torch.amp.GradScaler(device, enabled=device == "cuda")
        supervised = DeepSupervisionWrapper(loss.to(device), [w / sum(weights) for w in weights])

        def run() -> None:
            data = batch.to(device)
            there = [target.to(device) for target in targets]
            there = [sets.encode(target, schemes) for target in there] if encoded else there
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, enabled=device == "cuda"):
                value = supervised(network(data), there)
            scaler.scale(value).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
            scaler.step(optimizer)
            scaler.update()

        return run

    return {OURS: step(ours, True), STOCK: step(stock_loss(compile_it), False)}


def least_times(steps: dict[str, Step], device: str, repeats: int) -> dict[str, float]:
    """Returns the least time of each step in milliseconds; steps take turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(repeats + 2):
        for name, step in steps.items():
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            if round_number > 1:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: min(values) for name, values in times.items()}


def peak_mb(arm: str, arguments: argparse.Namespace, part: str, heads: int, patch: tuple[int, int, int]) -> float:
    """Returns the peak memory of one arm's step beyond what was there before, in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", arm, "--part", part, "--heads", str(heads)]
    command += ["--patch", *map(str, patch), "-device", arguments.device, "--threads", str(arguments.threads)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def print_peak(arguments: argparse.Namespace) -> None:
    """Runs one arm twice and prints its peak memory in megabytes."""
    make = {"loss": loss_steps, "step": train_steps}[arguments.part]
    run = make(arguments.heads, tuple(arguments.patch), arguments.device, arguments.device == "cuda")[
        arguments.memory_of
    ]
    if arguments.device == "cuda":
        run()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        print((torch.cuda.max_memory_allocated() - before) / 1e6)
        return
    run()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
    before = resident_mb("VmRSS")
    run()
    print(resident_mb("VmHWM") - before)


def resident_mb(entry: str) -> float:
    """Returns an entry of this process's memory table, in megabytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(entry))) * 1024 / 1e6


def report(part: str, arguments: argparse.Namespace) -> None:
    """Prints one part's table."""
    small, large = ((64, 64, 64), (128, 128, 128)) if arguments.device == "cuda" else ((24, 32, 32), (48, 64, 64))
    make = {"loss": loss_steps, "step": train_steps}[part]
    print(f"\n{part}, {arguments.device}, batch 2\n")
    print("| heads | patch | arm | ms | ratio to ours | peak MB |\n|---|---|---|---|---|---|")
    for heads in (32, 118):
        for patch in (small, large):
            steps = make(heads, patch, arguments.device, arguments.device == "cuda")
            times = least_times(steps, arguments.device, arguments.repeats)
            for arm, value in times.items():
                memory = f"{peak_mb(arm, arguments, part, heads, patch):.0f}" if patch == large else ""
                ratio = value / times[OURS]
                print(f"| {heads} | {patch} | {arm} | {value:.1f} | {ratio:.2f} | {memory} |", flush=True)


def report_waiting(file: Path) -> None:
    """Prints how much of a run's time its device waited for data."""
    shares = [entry["waiting_share"] for entry in json.loads(file.read_text(encoding="utf-8"))]
    print(f"\nwaiting for data: median {statistics.median(shares):.1%} of an epoch, at most {max(shares):.1%}")


def main() -> None:
    """Prints Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--part", choices=("loss", "step"))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--progress", type=Path)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--heads", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--patch", type=int, nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print_peak(arguments)
        return
    for part in [arguments.part] if arguments.part else ["loss", "step"]:
        report(part, arguments)
    if arguments.progress:
        report_waiting(arguments.progress)


if __name__ == "__main__":
    main()
