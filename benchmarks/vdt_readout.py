"""Does a linear layer read classes out of instance-normalised features? `vdt.py --study readout` runs this.

The same classifier learns the same coloured shapes in the same order, with and without the batch norm between pooling
and linear layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from domain_steps import made_up
from torch.nn.functional import cross_entropy

from nnunet_pretrain.networks.classifier import classifier_architecture
from nnunet_pretrain.networks.planned import planned_network
from nnunet_pretrain.phantom.coloured_shapes import SHAPES, coloured_shapes
from nnunet_pretrain.planning.domain_plans import CONFIGURATION, plans_of_domain
from nnunet_pretrain.planning.natural_plans import depth_preserving
from nnunet_pretrain.study.tables import table

FEATURES, SIZE, BATCH, LR = (8, 16, 32, 48), 48, 32, 3e-3
IMAGES, HELD_OUT = 1200, 240


def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Returns volumes (images, 1, 3, SIZE, SIZE), z-scored each, and their classes."""
    names, volumes = list(SHAPES), []
    for number in range(IMAGES):
        rgb, _ = coloured_shapes(np.random.default_rng((5, number)), [names[number % len(names)]], SIZE)
        volumes.append((rgb - rgb.mean()) / rgb.std())
    classes = torch.arange(IMAGES) % len(names)
    return torch.from_numpy(np.stack(volumes)).float().permute(0, 3, 1, 2)[:, None], classes


def top1(normalised: bool, seed: int, steps: int, device: str) -> list[float]:
    """Trains a classifier; returns its top-1 on held-out images at the half and at the end of the training."""
    plans = plans_of_domain(made_up(1, (24, SIZE, SIZE), FEATURES)[0], "domain0")
    segmentation = depth_preserving(plans["configurations"][CONFIGURATION]["architecture"])
    torch.manual_seed(seed)
    network = planned_network(
        classifier_architecture(segmentation, len(SHAPES), normalised), 1, len(SHAPES) + 1, initialise=True
    ).to(device)
    volumes, classes = (tensor.to(device) for tensor in images())
    optimizer = torch.optim.AdamW(network.parameters(), LR, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draws, found = torch.Generator().manual_seed(seed), []
    for step in range(1, steps + 1):
        chosen = torch.randint(0, IMAGES - HELD_OUT, (BATCH,), generator=draws).to(device)
        order = torch.randperm(3, generator=draws)
        loss = cross_entropy(network(volumes[chosen][:, :, order]), classes[chosen], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step in (steps // 2, steps):
            network.eval()
            with torch.no_grad():
                right = network(volumes[-HELD_OUT:]).argmax(1) == classes[-HELD_OUT:]
            network.train()
            found.append(float(right.float().mean()))
    return found


def readout(seeds: int, steps: int, device: str) -> None:
    """Prints top-1 of both classifiers, mean and range over seeds."""
    rows = []
    for name, normalised in (("linear layer on pooled features", False), ("batch norm between", True)):
        found = [top1(normalised, seed, steps, device) for seed in range(seeds)]
        rows.append([name, *(_over(values) for values in zip(*found, strict=True))])
    print(table([f"{len(SHAPES)} classes, n = {seeds}", f"top-1 after {steps // 2} steps", f"after {steps}"], rows))


def _over(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
