"""Trainer part: how each source's structures get on, in the log, in a figure, as JSON and in the checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import numpy.typing as npt
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import distributed as dist

from nnunet_pretrain.training.label_set_metrics import COUNTS
from nnunet_pretrain.training.progress import EpochProgress, plot_progress, write_progress_json

PROGRESS_FIGURE = "progress_sources.png"
PROGRESS_JSON = "training_progress.json"


class ProgressBySource(nnUNetTrainer):
    """Adds pseudo Dice per source and structure, cases drawn, and time spent waiting, to nnU-Net's progress."""

    scored: tuple[str, ...]
    scored_by_source: Mapping[str, set[int]]
    source_of_case: Mapping[str, str]
    drawn_in_epoch: Counter[str]
    waiting_seconds: float

    def initialize(self) -> None:
        """As nnU-Net; nothing is known yet."""
        super().initialize()
        self.progress: list[EpochProgress] = []
        self.seen: set[str] = set()
        self._counts: dict[str, npt.NDArray[np.float64]] = {}

    def group_names(self) -> list[str]:
        """Returns what nnU-Net's list of pseudo Dice stands for: the decidable groups."""
        return list(self.scored)

    def on_validation_epoch_start(self) -> None:
        """As nnU-Net; also starts counting per source."""
        super().on_validation_epoch_start()
        self._counts = {source: np.zeros((3, len(self.scored))) for source in self._sources()}

    def validation_step(self, batch: dict) -> dict:
        """As the other parts; adds each sample's counts to those of its source."""
        result = super().validation_step(batch)
        by_sample = np.stack([result.pop(f"{name}_by_sample") for name in COUNTS], axis=1)
        for case, counts in zip(batch["keys"], by_sample, strict=True):
            self._counts[self.source_of_case[str(case)]] += counts
        return result

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """As nnU-Net, without its warning for groups that had no voxel in the epoch and so no Dice.

        If no group had one, the moving average, by which nnU-Net chooses the best checkpoint, stays what it was.
        """
        with np.errstate(invalid="ignore"):
            super().on_validation_epoch_end(val_outputs)
        average = self.logger.local_logger.my_fantastic_logging["ema_fg_dice"]
        if not np.isfinite(average[-1]):
            average[-1] = average[-2] if len(average) > 1 else 0.0

    def on_epoch_end(self) -> None:
        """As nnU-Net; before its checkpoints are written, the epoch's progress is put together."""
        self._gather()
        self.progress.append(self._entry())
        if self.local_rank == 0:
            folder = Path(self.output_folder)
            write_progress_json(folder / PROGRESS_JSON, self.progress)
            plot_progress(folder / PROGRESS_FIGURE, self.progress, self.scored, self._sources())
            self._log_entry(self.progress[-1])
        super().on_epoch_end()

    def _sources(self) -> list[str]:
        return list(dict.fromkeys(self.source_of_case.values()))

    def _gather(self) -> None:
        """Adds up what all processes counted."""
        if self.is_ddp:
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, (self._counts, self.drawn_in_epoch))
            self._counts = {source: sum(counts[source] for counts, _ in gathered) for source in self._counts}
            self.drawn_in_epoch = sum((drawn for _, drawn in gathered), Counter())
        self.seen.update(self.drawn_in_epoch)

    def _entry(self) -> EpochProgress:
        logged = self.logger.local_logger.my_fantastic_logging
        seconds = time() - logged["epoch_start_timestamps"][-1]
        return {
            "epoch": self.current_epoch,
            "lr": float(logged["lrs"][-1]),
            "train_loss": float(logged["train_losses"][-1]),
            "val_loss": float(logged["val_losses"][-1]),
            "mean_dice": float(logged["mean_fg_dice"][-1]),
            "ema_dice": float(logged["ema_fg_dice"][-1]),
            "seconds": seconds,
            "waiting_share": min(1.0, self.waiting_seconds / seconds),
            "cases_seen": dict(Counter(self.source_of_case[case] for case in sorted(self.seen))),
            "pseudo_dice": {source: self._dice(source) for source in self._sources()},
        }

    def _dice(self, source: str) -> dict[str, float | None]:
        tp, fp, fn = self._counts[source]
        with np.errstate(invalid="ignore"):
            dice = 2 * tp / (2 * tp + fp + fn)
        return {
            group: float(dice[i]) if np.isfinite(dice[i]) else None
            for i, group in enumerate(self.scored)
            if i in self.scored_by_source[source]
        }

    def _log_entry(self, entry: EpochProgress) -> None:
        drawn: Counter[str] = Counter()
        for case, number in self.drawn_in_epoch.items():
            drawn[self.source_of_case[case]] += number
        for source, dice in entry["pseudo_dice"].items():
            seen = f"{entry['cases_seen'].get(source, 0)} of {self._trained_on[source]} cases seen so far"
            found = ", ".join(f"{group} {value:.3f}" for group, value in dice.items() if value is not None)
            self.print_to_log_file(
                f"{source}: {drawn[source]} patches, {seen}; pseudo Dice: {found or 'no decidable voxel in this epoch'}"
            )
            for logger in self.logger.loggers:
                for group, value in dice.items():
                    if value is not None:
                        logger.log(f"pseudo_dice/{source}/{group}", value, self.current_epoch)
        self.print_to_log_file(f"Waiting for data: {entry['waiting_share']:.1%} of the epoch")

    @cached_property
    def _trained_on(self) -> Counter[str]:
        """Number of training cases of each source."""
        return Counter(self.source_of_case[case] for case in self.do_split()[0])

    def checkpoint_extras(self) -> dict[str, Any]:
        """As the other parts, with the progress so far."""
        extras = super().checkpoint_extras()
        return {**extras, "progress": {"epochs": self.progress, "seen": sorted(self.seen)}}

    def restore_extras(self, extras: Mapping[str, Any]) -> None:
        """As the other parts; the progress goes on where it was."""
        super().restore_extras(extras)
        stored = extras.get("progress", {"epochs": [], "seen": []})
        self.progress, self.seen = list(stored["epochs"])[: self.current_epoch], set(stored["seen"])
