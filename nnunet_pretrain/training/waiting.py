"""Trainer part: how long the device waited for data."""

from __future__ import annotations

from time import perf_counter

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class WaitingTime(nnUNetTrainer):
    """Adds up the time between the steps of an epoch, in which the device had no batch.

    Attributes:
        waiting_seconds: Of this epoch so far.
    """

    waiting_seconds: float = 0.0
    _step_ended: float | None = None

    def on_train_epoch_start(self) -> None:
        """As nnU-Net; also starts the epoch's clock."""
        super().on_train_epoch_start()
        self.waiting_seconds, self._step_ended = 0.0, perf_counter()

    def train_step(self, batch: dict) -> dict:
        """As nnU-Net; the time since the step before was waiting."""
        if self._step_ended is not None:
            self.waiting_seconds += perf_counter() - self._step_ended
        result = super().train_step(batch)
        self._step_ended = perf_counter()
        return result
