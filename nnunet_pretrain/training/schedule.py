"""Learning-rate schedule: linear warm-up, then nnU-Net's polynomial decay or a half cosine."""

from __future__ import annotations

from math import cos, pi
from typing import Literal

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class WarmupDecayLR(LRScheduler):
    """Scales every parameter group's own learning rate, so that ratios between groups hold over the whole run.

    Without warm-up the factor of `poly` is nnU-Net's (1 - epoch / epochs) ** 0.9.

    Args:
        optimizer: Its groups' `initial_lr` (or `lr`) is the rate at factor 1.
        num_epochs: Epochs in all.
        warmup_epochs: Epochs over which the factor rises linearly to 1.
        decay: `poly`, or `cosine` for (1 + cos(pi * share of epochs)) / 2.
        exponent: Exponent of `poly`.
        before: Epochs before the warm-up with a linear rise of their own, for a network of which only a part learns.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        num_epochs: int,
        warmup_epochs: int = 0,
        decay: Literal["poly", "cosine"] = "poly",
        exponent: float = 0.9,
        before: int = 0,
    ) -> None:
        if not 0 <= before + warmup_epochs < num_epochs:
            raise ValueError(
                f"warmup_epochs ({warmup_epochs}) and the epochs before them ({before}) must be fewer than num_epochs "
                f"({num_epochs}) together"
            )
        self.num_epochs, self.warmup_epochs, self.decay, self.exponent = num_epochs, warmup_epochs, decay, exponent
        self.before = before
        super().__init__(optimizer)

    def factor(self, epoch: int) -> float:
        """Returns what the learning rates are multiplied with in an epoch, counted from 0."""
        if epoch < self.before:
            return (epoch + 1) / self.before
        epoch, num_epochs = epoch - self.before, self.num_epochs - self.before
        if epoch < self.warmup_epochs:
            return (epoch + 1) / (self.warmup_epochs + 1)
        share = (epoch - self.warmup_epochs) / (num_epochs - self.warmup_epochs)
        return (1 + cos(pi * share)) / 2 if self.decay == "cosine" else (1 - share) ** self.exponent

    def get_lr(self) -> list[float | Tensor]:
        """Returns the learning rate of each parameter group in the current epoch."""
        return [base_lr * self.factor(self.last_epoch) for base_lr in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        """Sets the learning rates of an epoch; nnU-Net passes the epoch it is about to run."""
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
