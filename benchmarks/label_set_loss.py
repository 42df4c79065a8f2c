"""Times the label-set loss beside nnU-Net's Dice and cross-entropy loss: forward and backward, one scale.

Both see the same logits and labels in one process, in turns; the table gives the median of each and their ratio.
Run `python benchmarks/label_set_loss.py [-device cpu|cuda]`.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from nnunet_pretrain.conversion import find_source
from nnunet_pretrain.labels import LabelSetTable, LabelSpace
from nnunet_pretrain.labels.structures import ABDOMEN_ATLAS_STRUCTURES, LESIONS
from nnunet_pretrain.training.label_set_loss import LabelSetLoss, LabelSets


def seconds(step: Callable[[], None], device: str) -> float:
    """Returns the time of one step."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(heads: int, patch: tuple[int, int, int], device: str, repeats: int) -> tuple[float, float]:
    """Returns the median time of our loss and of nnU-Net's, in milliseconds."""
    extra = tuple(f"structure_{i}" for i in range(heads - 1 - len(ABDOMEN_ATLAS_STRUCTURES) - len(LESIONS)))
    space = LabelSpace(name="benchmark", structures=(*ABDOMEN_ATLAS_STRUCTURES, *LESIONS, *extra))
    schemes = tuple(find_source(name).scheme(space)[0] for name in ("BTCV", "KiTS23"))
    sets = LabelSets(LabelSetTable(space, schemes, {})).to(device)
    ours = LabelSetLoss(sets, batch_dice=False)
    stock_dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    stock = DC_and_CE_loss(stock_dice, {}, dice_class=MemoryEfficientSoftDiceLoss)
    logits = torch.randn(2, heads, *patch, device=device, requires_grad=True)
    target = torch.zeros(2, 1, *patch, dtype=torch.int16, device=device)
    target[:, :, 4:12] = 3
    scheme = torch.tensor([0, 1], device=device)

    def step_ours() -> None:
        ours(logits, sets.encode(target, scheme)).backward()

    def step_stock() -> None:
        stock(logits, target).backward()

    times = [(seconds(step_ours, device), seconds(step_stock, device)) for _ in range(repeats + 3)][3:]
    return statistics.median(t[0] for t in times) * 1e3, statistics.median(t[1] for t in times) * 1e3


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    large = (128, 128, 128) if arguments.device == "cuda" else (48, 64, 64)
    print("| heads | patch, batch 2 | label-set loss | nnU-Net DC_and_CE | ratio |\n|---|---|---|---|---|")
    for heads in (32, 118):
        for patch in ((24, 32, 32), large):
            ours, stock = compare(heads, patch, arguments.device, arguments.repeats)
            print(f"| {heads} | {patch} | {ours:.1f} ms | {stock:.1f} ms | {ours / stock:.2f} |")


if __name__ == "__main__":
    main()
