"""Trainer part: progress with the training loss of every domain, which survives an interruption."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import distributed as dist

from nnunet_pretrain.training.progress import DomainProgress, EpochProgress
from nnunet_pretrain.training.progress_by_source import ProgressBySource


class ProgressByDomain(ProgressBySource):
    """Adds the mean training loss of each domain's branch to the progress."""

    domain_losses: dict[str, list[float]]
    _losses: list[float]
    _stored_losses: dict[str, list[float]] | None = None

    def on_train_epoch_start(self) -> None:
        """As the other parts; a continued epoch keeps the losses it had."""
        super().on_train_epoch_start()
        if self._stored_losses is not None and self._losses:
            self.domain_losses = {domain: list(losses) for domain, losses in self._stored_losses.items()}
        self._stored_losses = None

    def _entry(self) -> DomainProgress:
        gathered: list[dict[str, list[float]]] = [self.domain_losses]
        if self.is_ddp:
            gathered = [{}] * dist.get_world_size()
            dist.all_gather_object(gathered, self.domain_losses)
        losses = {domain: [loss for part in gathered for loss in part[domain]] for domain in self.domain_losses}
        means = {domain: float(np.mean(own)) if own else None for domain, own in losses.items()}
        return {**super()._entry(), "train_loss_by_source": means}

    def _log_entry(self, entry: EpochProgress) -> None:
        super()._log_entry(entry)
        losses: dict[str, float | None] = entry.get("train_loss_by_source", {})  # type: ignore[assignment]
        for domain, loss in losses.items():
            if loss is None:
                self.print_to_log_file(f"{domain}: no step in this epoch")
                continue
            steps = len(self.domain_losses[domain])
            self.print_to_log_file(f"{domain}: training loss {loss:.4f} in {steps} steps")
            for logger in self.logger.loggers:
                logger.log(f"train_loss/{domain}", loss, self.current_epoch)

    def checkpoint_extras(self) -> dict[str, Any]:
        """As the other parts, with the losses of a begun epoch."""
        begun = {domain: list(losses) for domain, losses in self.domain_losses.items()}
        return {**super().checkpoint_extras(), "domain_losses": begun}

    def restore_extras(self, extras: Mapping[str, Any]) -> None:
        """As the other parts, with the losses of a begun epoch."""
        super().restore_extras(extras)
        self._stored_losses = extras.get("domain_losses")
